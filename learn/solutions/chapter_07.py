"""Solutions of chapter 7."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def unigram_entropy(codes: Tensor, size: int) -> Tensor:
    """Codes that never occur add nothing."""
    counts = torch.stack([torch.bincount(book.flatten(), minlength=size) for book in codes.unbind(1)])
    shares = counts / counts.sum(1, keepdim=True)
    return -torch.where(counts > 0, shares * shares.log(), 0.0).sum(1)


def gap(own: Tensor, other: Tensor) -> tuple[float, float]:
    """Pair first: what clips have in common cancels."""
    d = other - own
    return d.mean().item(), (d.std() / len(d) ** 0.5).item()


def leave_out(texts: Sequence[str], share: float, generator: Generator) -> list[str | None]:
    """A draw for each text."""
    drawn = torch.rand(len(texts), generator=generator)
    return [None if one < share else text for text, one in zip(texts, drawn.tolist(), strict=True)]
