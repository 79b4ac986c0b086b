"""Solutions of chapter 3."""

import math

import torch
from torch import Tensor


def bucket(distance: int, buckets: int = 32, max_distance: int = 128) -> int:
    """Half of the table for either sign; half of a half for distances with a row of their own."""
    half, exact = buckets // 2, buckets // 4
    n = abs(distance)
    if n >= exact:
        n = min(half - 1, exact + int(math.log(n / exact) / math.log(max_distance / exact) * (half - exact)))
    return n + half * (distance > 0)


def t5_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """No root of D; the mask before the softmax, over the keys."""
    scores = (q @ k.T + bias).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v
