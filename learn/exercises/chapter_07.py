"""Exercises of chapter 7. Write the bodies, then: python -m learn.check 7"""

from collections.abc import Sequence

from torch import Generator, Tensor


def unigram_entropy(codes: Tensor, size: int) -> Tensor:
    """Entropy in nats of how often each of `size` codes occurs, for each codebook: codes (B, K, T) to (K,)."""
    raise NotImplementedError


def gap(own: Tensor, other: Tensor) -> tuple[float, float]:
    """The mean of how much larger clips' losses are with another's caption, (n,), than with their own, (n,); and its
    standard error, from the sample's standard deviation (n - 1 in the denominator)."""
    raise NotImplementedError


def leave_out(texts: Sequence[str], share: float, generator: Generator) -> list[str | None]:
    """The texts, each replaced by None with probability `share`, independently, as the generator draws."""
    raise NotImplementedError
