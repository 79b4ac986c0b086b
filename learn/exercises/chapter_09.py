"""Exercises of chapter 9. Write the bodies, then: python -m learn.check 9"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors by the largest number of `theirs`. Infinity where `ours` holds NaN or where
    the shapes differ: a comparison must not pass because of what it cannot compare. Where both are all zeros: 0."""
    raise NotImplementedError


def find_bug(right: nn.Module, wrong: nn.Module, run: Callable[[nn.Module], Any]) -> str:
    """The name (as in named_modules()) of the module of `wrong` that has a bug: the innermost one that is given the
    same as in `right`, and makes something else of it. run(module) runs either model on the same input."""
    raise NotImplementedError
