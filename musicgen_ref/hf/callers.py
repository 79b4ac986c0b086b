"""What programs that use transformers need beside models and processors: a seed, and the base class of streamers."""

import random
from typing import Any

import numpy as np
import torch

from .. import checks


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed the global generators of random, numpy and torch. deterministic: True also makes torch's algorithms so."""
    seed = checks.as_python(seed)  # random takes no numbers of numpy's
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of every device
    if deterministic:
        torch.use_deterministic_algorithms(True)


class BaseStreamer:
    """A receiver of tokens for generate(streamer=), which calls put() with the ids of the prompt and then of each step,
    and end() at the end."""

    def put(self, value: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no put()")

    def end(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no end()")
