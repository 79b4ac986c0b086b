"""Attention: one function, one module, one cache.

B batch, H heads, T queries (new steps), S keys, D head width, E model width, L text tokens, P cached steps.
"""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

BACKENDS = ("sdpa", "eager")
PROCESSOR = getattr(torch.cpu, "get_capabilities", dict[str, str])().get("cpu_name", "Intel")
MKL_AVX512 = "Intel" in PROCESSOR and torch.backends.cpu.get_cpu_capability() == "AVX512"


@dataclass
class Trace:
    """What a caller wants to see of a forward pass: create one, pass it in, read it afterwards.

    hidden: (B, T, E) each, layers + 1 in all: the embeddings, then every block's output, the last one after the final
    norm. With weights=True also every block's self_weights (B, H, T, S) and cross_weights (B, H, T, L): computed
    exactly whichever backend runs, after the head mask, before dropout.
    """

    weights: bool = False
    hidden: list[Tensor] = field(default_factory=list)
    self_weights: list[Tensor] = field(default_factory=list)
    cross_weights: list[Tensor] = field(default_factory=list)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q k' * scale, masked) of (B, H, T, D) and (B, H, S, D), as (B, H, T, S)."""
    scores = q @ k.transpose(-2, -1) * scale
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        return (scores + mask).softmax(-1)
    # The second fill only matters to a row that may see nothing: it gets weights of 0, which is what SDPA does.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~mask, 0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
    backend: str = "sdpa",
    head_mask: Tensor | None = None,
    dropout: float = 0.0,
    weights: list[Tensor] | None = None,
) -> Tensor:
    """Scaled dot-product attention of q (B, H, T, D) over k and v (B, H, S, D), as (B, H, T, D).

    mask: two dimensions or more that broadcast to (B, H, T, S); bool (True = may be seen) or float (added to the
    scores).
    causal: the queries are the last T of the S positions, and each sees the keys up to its own; any mask is then bool.
    head_mask: (H,), a factor on each head's output. It commutes with `@ v`, so it works with both backends
    (transformers 4.57 honours it in eager only, 5.x not at all).
    weights: a list to append the weights (B, H, T, S) to. Source: Vaswani et al. 2017, section 3.2.1.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    T, S = q.shape[-2], k.shape[-2]
    # SDPA has a causal path of its own for T == S; one new query may see everything, so it needs no mask at all.
    is_causal = causal and backend == "sdpa" and mask is None and T > 1 and T == S
    if causal and T > 1 and (not is_causal or weights is not None):
        seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        mask = seen if mask is None else mask & seen

    if backend == "eager" or weights is not None:
        w = attention_weights(q, k, mask, scale)
        if weights is not None:
            weights.append(w if head_mask is None else w * head_mask[:, None, None])
    if backend == "eager":
        out = F.dropout(w, dropout) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, None if is_causal else mask, dropout, is_causal, scale=scale)
    return out if head_mask is None else out * head_mask[:, None, None]


class Linear(nn.Linear):
    """nn.Linear without a bias, in the order of operands that is fastest for the few rows of a decoding step.

    On CPUs BLAS reads a large weight W up to four times as fast for (W x')' where x has two or three rows and W is not
    wide, and up to twice for x W' in blocks of outputs. Where MKL uses AVX-512, which it does on Intel's processors
    alone (old torch does not tell whose they are), the former helps from six rows on.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        W, n = self.weight, x.shape[:-1].numel()
        large = W.numel() >= 2**18 and len(W) % 16 == 0 and x.dtype == torch.float32 and x.device.type == "cpu"
        if not large or not (6 if MKL_AVX512 else 1) <= n <= 64 or torch.compiler.is_compiling():
            return super().forward(x)
        rows = x.reshape(n, -1)
        if MKL_AVX512 or (2 <= n <= 3 and self.in_features <= self.out_features):
            out = (W @ rows.t()).t().contiguous()
        else:
            out = rearrange(rows @ W.unflatten(0, (16, -1)).mT, "c n o -> n (c o)")
        return out.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """Multi-head attention without biases, for T5 (scale 1) and the decoder (scale D ** -0.5)."""

    def __init__(self, width: int, heads: int, head_width: int, scale: float, dropout: float):
        super().__init__()
        self.heads, self.scale, self.dropout = heads, scale, dropout
        self.q = Linear(width, heads * head_width)
        self.k = Linear(width, heads * head_width)
        self.v = Linear(width, heads * head_width)
        self.out = Linear(heads * head_width, width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is attended to: (B, S, E) to keys and values (B, H, S, D)."""
        k, v = (rearrange(y, "b s (h d) -> b h s d", h=self.heads) for y in (self.k(x), self.v(x)))
        return k, v

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        backend: str = "sdpa",
        head_mask: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Let x (B, T, E) attend to keys and values (B, H, S, D); the other arguments are those of attend()."""
        q = rearrange(self.q(x), "b t (h d) -> b h t d", h=self.heads)
        dropout = self.dropout if self.training else 0.0
        out = attend(
            q, *keys_values, scale=self.scale, mask=mask, causal=causal, backend=backend, head_mask=head_mask,
            dropout=dropout, weights=weights
        )  # fmt: skip
        return self.out(rearrange(out, "b h t d -> b t (h d)"))


class KVCache:
    """Keys and values of one decoding run: allocated once, owned by the caller, written by the decoder.

    keys, values: of every layer (B, H, steps, D), the first `length` steps written; set `length` back to rewind.
    cross: of every layer those of the text (B_text, H, L, D), written once; cross_mask: (B_text, 1, 1, L) or None.
    """

    def __init__(self, layers: int, batch: int, heads: int, steps: int, head_width: int, like: Tensor):
        # A tensor a layer: torch.compile would copy all layers of a single one at each write.
        self.keys = [like.new_empty(batch, heads, steps, head_width) for _ in range(layers)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.batch, self.length = batch, 0
        self.cross: list[tuple[Tensor, Tensor]] = []
        self.cross_mask: Tensor | None = None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new steps (B, H, T, D) of one layer; return all its steps so far (B, H, P + T, D).

        Raises ValueError where the cache was made for fewer steps.
        """
        end = self.length + k.shape[-2]
        keys, values = self.keys[layer], self.values[layer]
        if end > keys.shape[-2]:
            raise ValueError(f"the cache holds {keys.shape[-2]} steps, {end} are needed")
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        # Slices of the exact length, not the whole buffer behind a mask: the sums are then those of an uncached run.
        return keys[:, :, :end], values[:, :, :end]
