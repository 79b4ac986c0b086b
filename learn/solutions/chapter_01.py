"""Solutions of chapter 1."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def bits_per_second(rate: int, ratios: Sequence[int], codebooks: int, size: int) -> float:
    """A frame is as many samples as the strides multiply to; each of its codes is one of `size`."""
    return rate / math.prod(ratios) * codebooks * math.log2(size)


def residual_quantise(latents: Tensor, books: Tensor) -> Tensor:
    """Nearest entry, subtract, again."""
    rest, codes = latents, []
    for book in books:
        nearest = torch.cdist(rest, book).argmin(dim=1)
        rest = rest - book[nearest]
        codes.append(nearest)
    return torch.stack(codes)


def padding(samples: int, kernel: int, stride: int) -> tuple[int, int]:
    """As encodec.Conv.padding() does without dilation."""
    shared = kernel - stride
    return shared - shared // 2, shared // 2 + -samples % stride
