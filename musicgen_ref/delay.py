"""The delay pattern: the order in which the K codes of every frame are decided.

A frame of audio is K codes, each of which refines the ones before it. Flat, all codes of all frames stand in one
sequence: every code knows all before it, but a clip takes K times as many steps. Parallel, a step decides the K codes
of one frame at once: the fewest steps, but codes of one frame are then drawn without knowing of each other. The delay
pattern takes nearly as few steps as parallel and loses little against flat: codebook k runs `delays[k]` steps behind
the first, so a step decides K codes of K different frames, and a code knows the coarser codes of its own frame.

What is decoded is a table of codes. In mono, K = 4, three frames a, b, c ("." is the special token):

    column   0 1 2 3 4 5 6
    k = 0    . a b c . . .
    k = 1    . . a b c . .
    k = 2    . . . a b c .
    k = 3    . . . . a b c

Column 0 is the start. A step at position s reads column s and, through the cache, all columns before it; its logits
decide column s + 1. So code f of codebook k stands in column 1 + f + delays[k], and T frames take S = T + max(delays)
steps, which fill the columns 1 to S. The b of k = 1, in column 3, has been decided from the columns 0 to 2: it has seen
a and b of k = 0 and a of k = 1. The triangle of special tokens on the left is read, the one on the right is not: a step
that reads it decides nothing that is kept in these codebooks.

apply() makes the columns 1 to S, undo() collects the frames again; the caller puts the start column in front.

B batch, K codebooks, T frames, S delayed steps. Source: Copet et al. 2023 (arXiv:2306.05284), section 2.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def delays(codebooks: int, channels: int = 1) -> tuple[int, ...]:
    """The pattern of the public models: 0, 1, 2, ... in mono; 0, 0, 1, 1, ... in stereo, whose codebooks alternate left
    and right.

    Raises ValueError if the codebooks do not divide among the channels.
    """
    if codebooks < 1 or channels < 1 or codebooks % channels:
        raise ValueError(f"codebooks must be a positive multiple of channels, got {codebooks} and {channels}")
    return tuple(k // channels for k in range(codebooks))


def apply(codes: Tensor, delays: Sequence[int], fill: int) -> Tensor:
    """Delay codes (B, K, T) to (B, K, T + max(delays)); cells that hold no code become `fill`."""
    if codes.dim() != 3 or codes.shape[1] != len(delays):
        raise ValueError(f"codes must be (B, {len(delays)}, T), got {tuple(codes.shape)}")
    B, K, T = codes.shape
    out = codes.new_full((B, K, T + max(delays)), fill)
    for k, lag in enumerate(delays):
        out[:, k, lag : lag + T] = codes[:, k]
    return out


def undo(steps: Tensor, delays: Sequence[int]) -> Tensor:
    """Collect the frames again: (B, K, T + max(delays), ...) to (B, K, T, ...); for codes and logits alike."""
    T = steps.shape[2] - max(delays) if steps.dim() >= 3 else -1
    if T < 0 or steps.shape[1] != len(delays):
        raise ValueError(f"steps must be (B, {len(delays)}, T + {max(delays)}, ...), got {tuple(steps.shape)}")
    return torch.stack([steps[:, k, lag : lag + T] for k, lag in enumerate(delays)], dim=1)


def valid(frames: int, delays: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Which cells of apply()'s result hold a code: bool (K, frames + max(delays))."""
    step = torch.arange(frames + max(delays), device=device)
    lag = torch.tensor(delays, device=device)[:, None]
    return (step >= lag) & (step < lag + frames)
