"""The delay pattern: codebook k runs `delays[k]` steps behind the first.

Within one frame a coarse codebook is decided before the finer ones, yet each step predicts all K of them in parallel.
Mono K = 4 (a frame's letter, codebooks downwards, "." = special token):

    step   0 1 2 3 4 5
    k = 0  a b c . . .
    k = 1  . a b c . .
    k = 2  . . a b c .
    k = 3  . . . a b c

B batch, K codebooks, T frames, S = T + max(delays) steps. Source: Copet et al. 2023 (arXiv:2306.05284), section 2.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def delays(codebooks: int, channels: int = 1) -> tuple[int, ...]:
    """Steps by which each of K codebooks lags: 0, 1, 2, ... in mono; 0, 0, 1, 1, ... in stereo (left and right
    interleaved).

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
