"""T5 encoder: text ids to one vector per token.

B batch, L text tokens, E model width, H heads, D head width (H * D need not be E).
Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1; gated, as in Flan-T5: Shazeer 2020 (arXiv:2002.05202).
"""

import math
from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, Trace


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder; the defaults are t5-base, which every public MusicGen uses.

    Raises ValueError naming the field for anything but positive sizes and a dropout in [0, 1).
    """

    vocab_size: int = 32128
    width: int = 768
    layers: int = 12
    heads: int = 12
    head_width: int = 64
    ffn: int = 3072
    gated: bool = False  # False: relu (T5); True: gated gelu (T5 1.1, Flan-T5)
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"T5Config.{field.name} must be a positive whole number, got {value!r}")
        if self.buckets % 4 or self.max_distance <= self.buckets // 4:
            got = f"{self.buckets} and {self.max_distance}"
            raise ValueError(f"T5Config.buckets must be a multiple of 4 below 4 * T5Config.max_distance, got {got}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"T5Config.dropout must be in [0, 1), got {self.dropout!r}")
        if not 0 < self.eps < 1:
            raise ValueError(f"T5Config.eps must be in (0, 1), got {self.eps!r}")


class RMSNorm(nn.Module):
    """x / rms(x) * weight, with the mean square taken in fp32: no mean subtracted, no bias."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(self.weight.dtype)


class FeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi = nn.Linear(config.width, config.ffn, bias=False)
        self.gate = nn.Linear(config.width, config.ffn, bias=False) if config.gated else None
        self.wo = nn.Linear(config.ffn, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.wi(x)) if self.gate is None else gelu_tanh(self.gate(x)) * self.wi(x)
        # An fp16 checkpoint keeps `wo` in fp32, as transformers 5 does: T5's activations overflow fp16 exactly here.
        return self.wo(self.dropout(h).to(self.wo.weight.dtype))


def gelu_tanh(x: Tensor) -> Tensor:
    # Written out as T5's authors did: F.gelu(approximate="tanh") rounds differently (5e-7).
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def clamp_half(x: Tensor) -> Tensor:
    # fp16 only: an activation that overflowed comes back below the largest number, so that the norm stays finite.
    if x.dtype != torch.float16:
        return x
    limit = torch.finfo(x.dtype).max
    return x.clamp(-limit + 1000, limit - 1000) if x.isinf().any() else x


class Block(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.eps)
        # T5 does not scale its scores: the initialisation absorbed the factor.
        self.attn = Attention(config.width, config.heads, config.head_width, scale=1.0, dropout=config.dropout)
        self.ffn_norm = RMSNorm(config.width, config.eps)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor, backend: str, weights: list[Tensor] | None) -> Tensor:
        h = self.attn_norm(x)
        h = self.attn(h, self.attn.keys_values(h), mask=bias, backend=backend, weights=weights)
        x = clamp_half(x + self.dropout(h))
        return clamp_half(x + self.dropout(self.ffn(self.ffn_norm(x))))


class T5Encoder(nn.Module):
    """Text ids to hidden states.

    Equal to transformers' T5EncoderModel: bit for bit with the same backend (5.23 runs SDPA by default, 4.57 eager).
    """

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        # Only the first block of a T5 checkpoint owns a table of relative positions; every block adds the same bias.
        self.relative_bias = nn.Embedding(config.buckets, config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def position_bias(self, length: int) -> Tensor:
        """What is added to the scores of `length` tokens, (1, H, L, L).

        The sign of the distance picks a half of the table. Within a half, distances below a quarter of the table have a
        row each; longer ones share rows logarithmically, up to max_distance, beyond which all share the last.
        """
        position = torch.arange(length, device=self.relative_bias.weight.device)
        distance = position[None, :] - position[:, None]  # key - query, (L, L)
        half, exact = self.config.buckets // 2, self.config.buckets // 4
        n = distance.abs()
        log_ratio = torch.log(n.clamp(min=1).float() / exact) / math.log(self.config.max_distance / exact)
        shared = (exact + (log_ratio * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(n < exact, n, shared) + half * (distance > 0)
        return rearrange(self.relative_bias(bucket), "q k h -> 1 h q k")

    def forward(
        self,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        backend: str = "sdpa",
        trace: Trace | None = None,
    ) -> Tensor:
        """Encode ids (B, L), or embeddings (B, L, E) in place of their vectors, to (B, L, E).

        mask: (B, L), True or 1 where there is text; padding is not attended to. A row that masks everything stays
        finite. trace: filled with hidden states and, if it asks, self_weights. Raises ValueError for a wrong rank,
        a mask of another shape, or ids outside the vocabulary.
        """
        if ids is not None and embeddings is None:
            check_ids(ids, self.config.vocab_size)
            embeddings = self.embed(ids)
        elif ids is not None or embeddings is None:
            raise ValueError("give ids or embeddings, one of them")
        if embeddings.dim() != 3 or embeddings.shape[-1] != self.config.width:
            raise ValueError(f"embeddings must be (B, L, {self.config.width}), got {tuple(embeddings.shape)}")
        if mask is not None and mask.shape != embeddings.shape[:2]:
            raise ValueError(f"mask must have the shape of ids, {tuple(embeddings.shape[:2])}, got {tuple(mask.shape)}")
        x = self.dropout(embeddings)
        bias = self.position_bias(embeddings.shape[1])
        if mask is not None and not mask.all():
            # The smallest number rather than -inf, so that a row with nothing to see has uniform weights, not NaN.
            bias = torch.where(mask.bool()[:, None, None, :], bias, torch.finfo(bias.dtype).min)
        weights = trace.self_weights if trace is not None and trace.weights else None
        for block in self.blocks:
            if trace is not None:
                trace.hidden.append(x)
            x = block(x, bias, backend, weights)
        x = self.dropout(self.norm(x))
        if trace is not None:
            trace.hidden.append(x)
        return x


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise ValueError unless ids are whole numbers in 0..vocab_size - 1 of shape (B, L)."""
    if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids must be whole numbers of shape (B, L), got {ids.dtype} {tuple(ids.shape)}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"ids must be in 0..{vocab_size - 1}, got {int(ids.min())}..{int(ids.max())}")
