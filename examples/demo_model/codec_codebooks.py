"""Codebooks in training: a k-means start, moving averages, revival of dead words.

B batch, T frames, D latent width, K codebooks, V codes per codebook, M vectors of a batch.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from musicgen_ref.encodec import Encodec


def kmeans(points: Tensor, size: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Centres (size, D) of points (N, D), N >= size; a centre that loses all its points restarts at a random one."""
    if len(points) < size:
        raise ValueError(f"points must be at least size {size}, got {len(points)}")
    centres = points[torch.randperm(len(points), generator=generator)[:size]].clone()
    for _ in range(rounds):
        nearest = (points @ centres.t() - centres.pow(2).sum(1) / 2).argmax(1)
        count = torch.bincount(nearest, minlength=size)
        centres = torch.zeros_like(centres).index_add_(0, nearest, points) / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        centres[empty] = points[torch.randint(len(points), (len(empty),), generator=generator)]
    return centres


class CodebookTrainer:
    """Keeps each codeword at the moving average of what it codes.

    count (K, V), of mean 1 in each codebook, and total (K, V, D) are the averages; a word whose count falls below
    `dead` is moved onto a vector of the batch. Sources: van den Oord et al. 2017 (arXiv:1711.00937), appendix A;
    Dhariwal et al. 2020 (arXiv:2005.00341) for the revival.
    """

    def __init__(self, books: Tensor, decay: float, dead: float = 0.05):
        self.books, self.decay, self.dead = books, decay, dead
        self.count, self.total = torch.ones(books.shape[:2]), books.clone()

    def start(self, latents: Tensor, rounds: int, generator: torch.Generator) -> None:
        """k-means, codebook by codebook, on latents (B, D, T) and what is left of them."""
        left = rearrange(latents, "b d t -> (b t) d")
        for k, book in enumerate(self.books):
            book.copy_(kmeans(left, len(book), rounds, generator))
            nearest = (left @ book.t() - book.pow(2).sum(1) / 2).argmax(1)
            left = left - book[nearest]
            self.count[k] = torch.bincount(nearest, minlength=len(book)) * len(book) / len(left)
        self.total = self.books * self.count[..., None]

    def update(self, left: Tensor, codes: Tensor, generator: torch.Generator) -> int:
        """Move the words towards left (K, M, D), coded as codes (K, M); returns how many were dead and moved."""
        revived = 0
        for k, book in enumerate(self.books):
            share = len(book) / codes.shape[1]  # so that the counts have mean 1
            count = torch.bincount(codes[k], minlength=len(book)) * share
            total = torch.zeros_like(book).index_add_(0, codes[k], left[k]) * share
            self.count[k].lerp_(count, 1 - self.decay)
            self.total[k].lerp_(total, 1 - self.decay)
            book.copy_(self.total[k] / self.count[k].clamp(min=1e-5)[:, None])
            dead = (self.count[k] < self.dead).nonzero()[:, 0]
            book[dead] = left[k][torch.randint(codes.shape[1], (len(dead),), generator=generator)]
            self.count[k][dead], self.total[k][dead] = 1.0, book[dead]
            revived += len(dead)
        return revived


def quantise(codec: Encodec, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of latents (B, D, T): sums of the first 1 ... K words (K, B, D, T); book inputs (K, M, D); codes (K, M)."""
    codes = codec.quantizer.encode(latents, codec.config.codebooks)
    words = torch.stack([F.embedding(codes[:, k], book) for k, book in enumerate(codec.quantizer.codebooks)])
    sums = rearrange(words, "k b t d -> k b d t").cumsum(0)
    left = latents - torch.cat([torch.zeros_like(sums[:1]), sums[:-1]])
    return sums, rearrange(left, "k b d t -> k (b t) d"), rearrange(codes, "b k t -> k (b t)")
