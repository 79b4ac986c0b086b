"""Solutions of chapter 2."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor


def has_seen(delays: Sequence[int], cell: tuple[int, int], other: tuple[int, int]) -> bool:
    """A column is decided from the columns before it, and from none of its own cells."""
    (k, f), (j, g) = cell, other
    return g + delays[j] < f + delays[k]


def flatten(codes: Tensor) -> Tensor:
    """The codebook is what turns fastest."""
    return rearrange(codes, "k t -> (t k)")


def unflatten(line: Tensor, codebooks: int) -> Tensor:
    """The other way round."""
    return rearrange(line, "(t k) -> k t", k=codebooks)


def another_pattern(codebooks: int) -> tuple[int, ...]:
    """f + 1 + delays[j] < f + delays[k] for j < k: each runs two steps behind the one before."""
    return tuple(range(0, 2 * codebooks, 2))
