"""Exercises of chapter 4. Write the bodies, then: python -m learn.check 4"""

from torch import Tensor

from musicgen_ref import DecoderConfig


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head of the decoder over its own steps: q, k, v are (S, D), and step i takes from the steps up to itself."""
    raise NotImplementedError


def count_parameters(config: DecoderConfig) -> int:
    """How many numbers a decoder of these sizes learns."""
    raise NotImplementedError


def look_back(position: Tensor, steps: int) -> Tensor:
    """Given the vector (E,) of some position s (cosines, then sines), the vector of position s - steps. You are not
    told s, and need not find it out."""
    raise NotImplementedError
