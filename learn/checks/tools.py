"""What the checks share: Wrong, and comparisons that say in a sentence what they found."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Wrong(Exception):
    """A sentence that says what is wrong with an answer."""


def tensor(got: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """The answer as a tensor of that shape. Raises Wrong for anything else."""
    if not isinstance(got, Tensor):
        raise Wrong(f"{what} must be a tensor, got {type(got).__name__}")
    if tuple(got.shape) != shape:
        raise Wrong(f"{what} must be of shape {shape}, got {tuple(got.shape)}")
    return got


def same(got: Any, expected: Any, what: str, hint: str = "") -> None:
    """Raises Wrong unless the two are equal. hint: what to think of."""
    if got != expected:
        raise Wrong(f"{what} is {expected}, got {got}" + (f": {hint}" if hint else ""))


def close(got: Any, expected: Tensor, what: str, hint: str = "", atol: float = 1e-4) -> None:
    """Raises Wrong unless the answer is that tensor within atol; infinities must be where they are expected."""
    given = tensor(got, tuple(expected.shape), what).to(expected.dtype)
    if torch.isnan(given).any():
        raise Wrong(f"{what} holds NaN" + (f": {hint}" if hint else ""))
    if not torch.allclose(given, expected, rtol=0, atol=atol):
        off = (given - expected).abs().nan_to_num(nan=0.0)  # two infinities of one sign
        at = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
        place = f" at {at}" if at else ""
        raise Wrong(f"{what}{place} must be {expected[at]:.4g}, got {given[at]:.4g}" + (f": {hint}" if hint else ""))


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same ones for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
