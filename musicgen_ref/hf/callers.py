"""What callers of transformers make or call beside a model."""

import random
from typing import Any

import numpy as np
import torch


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed random, numpy and torch, all of which are global; deterministic: make torch's algorithms so, too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of every device
    if deterministic:
        torch.use_deterministic_algorithms(True)


class BaseStreamer:
    """What generate(streamer=) calls: put() with the prompt's ids and then with each step's, end() at the end."""

    def put(self, value: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no put()")

    def end(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no end()")
