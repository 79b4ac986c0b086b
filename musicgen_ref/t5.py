"""T5 encoder: text ids to one vector per token, each informed by all others.

MusicGen does not train it: the text encoder of a T5 that was trained on text alone comes as it is, and the decoder
learns to read its states. Two things set it apart from the decoder's transformer. Order enters through the scores: T5
adds to each a learned number that depends on the distance of the two tokens, instead of adding vectors to the input.
And its scores are not divided by the root of the head width: the initialisation it was trained from absorbed that.

B batch, L text tokens, E model width, H heads, D head width (H * D need not be E).
Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1; gated, as in Flan-T5: Shazeer 2020 (arXiv:2002.05202).
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from . import checks
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
        checks.t5_config(self)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, with the mean square taken in fp32: LayerNorm without its mean and its bias."""

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
    largest = torch.finfo(x.dtype).max
    limit = torch.where(x.isinf().any(), largest - 1000, largest)
    return x.clamp(-limit, limit)


class Block(nn.Module):
    """Self-attention, then feed-forward, each of a normalised copy, added to the stream (pre-norm, see decoder.py)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.attn_norm = RMSNorm(config.width, config.eps)
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

    Equal to transformers' T5EncoderModel: bit for bit with the same backend (5 runs SDPA by default, 4.57 eager).
    """

    def __init__(self, config: T5Config):
        super().__init__()
        checks.instance("config", config, T5Config)
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
        self, ids: Tensor | None = None, mask: Tensor | None = None, *, embeddings: Tensor | None = None,
        backend: str = "sdpa", trace: Trace | None = None,
    ) -> Tensor:  # fmt: skip
        """Encode ids (B, L), or embeddings (B, L, E) in place of their vectors, to (B, L, E).

        mask: (B, L), True or 1 where there is text; padding is not attended to. A row that masks everything stays
        finite. trace: filled with hidden states and, if it asks, self_weights. Raises ValueError for a wrong rank,
        a mask of another shape, or ids outside the vocabulary.
        """
        checks.t5_input(self.config, ids, mask, embeddings)
        x = self.dropout(self.embed(ids) if embeddings is None else embeddings)
        bias = self.position_bias(x.shape[1])
        if mask is not None and (checks.traced() or not mask.all()):
            # The smallest number rather than -inf, so that a row with nothing to see has uniform weights, not NaN.
            bias = torch.where(mask.bool()[:, None, None, :], bias, torch.finfo(bias.dtype).min)
        for i, block in enumerate(self.blocks):
            if trace is not None:
                trace.see(i - 1, x)
            x = block(x, bias, backend, None if trace is None else trace.weights_of(i)[0])
        x = self.dropout(self.norm(x))
        if trace is not None:
            trace.see(len(self.blocks) - 1, x)
        return x
