"""Solutions of chapter 4."""

import torch
from torch import Tensor

from musicgen_ref import DecoderConfig


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores over the root of D; those of later keys are minus infinity before the softmax."""
    S, D = q.shape
    later = torch.ones(S, S).triu(1).bool()
    return (q @ k.T / D**0.5).masked_fill(later, -torch.inf).softmax(-1) @ v


def count_parameters(config: DecoderConfig) -> int:
    """The formula of the chapter."""
    c = config
    block = 8 * c.width**2 + 2 * c.width * c.ffn + 6 * c.width
    ends = c.codebooks * (2 * c.vocab_size + 1) * c.width + 2 * c.width
    projection = (c.text_width + 1) * c.width if c.text_width != c.width else 0
    return c.layers * block + ends + projection


def look_back(position: Tensor, steps: int) -> Tensor:
    """Each pair turns by its own angle, backwards."""
    half = len(position) // 2
    angle = -steps * 10000 ** (-torch.arange(half) / (half - 1))
    cos, sin = position[:half], position[half:]
    return torch.cat([cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()])
