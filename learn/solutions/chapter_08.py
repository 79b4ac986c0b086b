"""Solutions of chapter 8."""

import torch
from torch import Tensor

from musicgen_ref import DecoderConfig


def bytes_a_step(config: DecoderConfig, rows: int, position: int, size: int) -> int:
    """Six matrices of attention, two of the feed-forward, the heads; keys and values of the steps before."""
    c = config
    weights = c.layers * (6 * c.width**2 + 2 * c.width * c.ffn) + c.codebooks * c.vocab_size * c.width
    return size * (weights + 2 * c.layers * rows * position * c.width)


def attainable(work: float, moved: float, peak: float, bandwidth: float) -> float:
    """The slower of the two."""
    return max(work / peak, moved / bandwidth)


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A row of zeros gets a scale of 1, which divides it without harm."""
    largest = weight.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (weight / scale).round().to(torch.int8), scale
