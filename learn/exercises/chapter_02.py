"""Exercises of chapter 2. Write the bodies, then: python -m learn.check 2"""

from collections.abc import Sequence

from torch import Tensor


def has_seen(delays: Sequence[int], cell: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the code of `cell` was decided with knowledge of the code of `other`; both are (codebook, frame)."""
    raise NotImplementedError


def flatten(codes: Tensor) -> Tensor:
    """Codes (K, T) as one line (K * T,): frame by frame, within a frame codebook by codebook."""
    raise NotImplementedError


def unflatten(line: Tensor, codebooks: int) -> Tensor:
    """The codes (K, T) of such a line."""
    raise NotImplementedError


def another_pattern(codebooks: int) -> tuple[int, ...]:
    """The smallest delays, the first of them 0, with which every code has seen the codes of all coarser codebooks of
    its own frame and of the next frame."""
    raise NotImplementedError
