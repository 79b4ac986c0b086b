"""Exercises of chapter 1. Write the bodies, then: python -m learn.check 1"""

from collections.abc import Sequence

from torch import Tensor


def bits_per_second(rate: int, ratios: Sequence[int], codebooks: int, size: int) -> float:
    """Bits a second of a codec's codes: `rate` samples a second, strides `ratios`, `codebooks` of `size` entries."""
    raise NotImplementedError


def residual_quantise(latents: Tensor, books: Tensor) -> Tensor:
    """Codes (K, T) of latents (T, Z) by codebooks (K, V, Z): each names the entry nearest to what is left over."""
    raise NotImplementedError


def padding(samples: int, kernel: int, stride: int) -> tuple[int, int]:
    """Positions to add on the left and on the right, so that a convolution makes ceil(samples / stride) positions.

    kernel - stride positions are shared out, of an odd number the larger part on the left; what fills the last stride
    comes on the right.
    """
    raise NotImplementedError
