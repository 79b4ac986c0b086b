"""Exercises of chapter 5. Write the bodies, then: python -m learn.check 5"""

from torch import Tensor


def entropy_bits(logits: Tensor) -> Tensor:
    """Entropy in bits of the softmax of logits (..., V), as (...). Logits of minus infinity are codes of probability 0,
    which add nothing."""
    raise NotImplementedError


def nucleus(probs: Tensor, p: float) -> Tensor:
    """Which codes top-p keeps of probabilities (V,): the fewest most likely ones that together reach p; bool (V,)."""
    raise NotImplementedError


def temperature_for(logits: Tensor, bits: float) -> float:
    """The temperature at which the softmax of logits (V,) has that entropy, to a thousandth of a bit. The logits are
    all different, and bits is between 0.1 and log2(V) - 0.1."""
    raise NotImplementedError
