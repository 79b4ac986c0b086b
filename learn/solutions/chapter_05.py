"""Solutions of chapter 5."""

import math

import torch
from torch import Tensor


def entropy_bits(logits: Tensor) -> Tensor:
    """0 times minus infinity is taken as 0, its limit."""
    probs = logits.softmax(-1)
    return -torch.where(probs > 0, probs * probs.log2(), 0.0).sum(-1)


def nucleus(probs: Tensor, p: float) -> Tensor:
    """A code is kept where those before it, from the likeliest on, have not reached p yet."""
    descending, order = probs.sort(descending=True)
    before = descending.cumsum(0) - descending
    kept = torch.zeros_like(probs, dtype=torch.bool)
    kept[order] = before < p
    return kept


def temperature_for(logits: Tensor, bits: float) -> float:
    """Entropy grows with temperature, so halving an interval finds it; on a scale of logarithms, as it may be any."""
    low, high = 1e-4, 1e4
    for _ in range(80):
        middle = math.sqrt(low * high)
        if float(entropy_bits(logits.double() / middle)) < bits:
            low = middle
        else:
            high = middle
    return middle
