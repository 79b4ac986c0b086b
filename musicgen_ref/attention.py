"""Attention: one function, one module, one cache.

Every query compares itself with all keys, and takes the mean of their values, weighted by how alike they are. In
self-attention queries, keys and values come from the same steps; in cross-attention keys and values come from the text.
While decoding, keys and values of earlier steps do not change, so a cache keeps them and a step computes its own alone.

B batch, H heads, Q queries, M keys and values, D head width, E model width, S steps of this call, P steps before them,
in the cache, L text tokens. Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

BACKENDS = ("sdpa", "eager")


@dataclass
class Trace:
    """What a caller wants to see of a forward pass: create one, pass it in, read it afterwards.

    states: fill `hidden` with (B, S, E) each, layers + 1 in all: the embeddings, then every block's output, the last
    one after the final norm. weights: fill `self_weights` (B, H, S, P + S) and `cross_weights` (B, H, S, L) with every
    block's: computed exactly whichever backend runs, after the head mask, before dropout.
    layers: of these blocks alone, counted from 0 (-1: the embeddings); None: of all.
    """

    weights: bool = False
    states: bool = True
    layers: Collection[int] | None = None
    hidden: list[Tensor] = field(default_factory=list)
    self_weights: list[Tensor] = field(default_factory=list)
    cross_weights: list[Tensor] = field(default_factory=list)

    def another(self) -> "Trace":
        """An empty one that sees the same."""
        return Trace(self.weights, self.states, self.layers)

    def see(self, layer: int, x: Tensor) -> None:
        """Keep the output of a block, if it was asked for."""
        if self.states and (self.layers is None or layer in self.layers):
            self.hidden.append(x)

    def weights_of(self, layer: int) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """Where a block appends its weights of self-attention and of cross-attention; None: nowhere."""
        asked = self.weights and (self.layers is None or layer in self.layers)
        return (self.self_weights, self.cross_weights) if asked else (None, None)

    def rows(self, count: int) -> "Trace":
        """The same of the first rows of the batch alone."""
        lists = (self.hidden, self.self_weights, self.cross_weights)
        kept = ([t if len(t) <= count else t[:count].clone() for t in each] for each in lists)
        return Trace(self.weights, self.states, self.layers, *kept)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q k' * scale, masked) of (B, H, Q, D) and (B, H, M, D), as (B, H, Q, M)."""
    scores = q @ k.transpose(-2, -1) * scale
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        return (scores + mask).softmax(-1)
    # The second fill only matters to a row that may see nothing: it gets weights of 0, which is what SDPA does.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~mask, 0)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None, causal: bool = False,
    backend: str = "sdpa", head_mask: Tensor | None = None, dropout: float = 0.0, weights: list[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention of q (B, H, Q, D) over k and v (B, H, M, D), as (B, H, Q, D).

    mask: two dimensions or more that broadcast to (B, H, Q, M); bool (True = may be seen) or float (added to the
    scores).
    causal: the queries are the last Q of the M positions, and each sees the keys up to its own; any mask is then bool.
    head_mask: (H,), a factor on each head's output. A factor on all weights of a head is the same as one on its output,
    which both backends can have (transformers 4.57 honours it in eager only, 5.x not at all).
    weights: a list to append the weights (B, H, Q, M) to.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    Q, M = q.shape[-2], k.shape[-2]
    # SDPA has a causal path of its own for Q == M; one new query may see everything, so it needs no mask at all.
    # A traced Q may be a symbol, of which neither is known: the mask is right for all.
    known = isinstance(Q, int)
    is_causal = causal and backend == "sdpa" and mask is None and known and 1 < Q == M
    if causal and not (known and Q <= 1) and (not is_causal or weights is not None):
        position = torch.arange(M, device=q.device)
        seen = position <= position[M - Q :, None]
        mask = seen if mask is None else mask & seen

    factor = None if head_mask is None else head_mask[:, None, None].to(q.dtype)
    if backend == "eager" or weights is not None:
        w = attention_weights(q, k, mask, scale)
        if weights is not None:
            weights.append(w if factor is None else w * factor)
    if backend == "eager":
        out = F.dropout(w, dropout) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, None if is_causal else mask, dropout, is_causal, scale=scale)
    return out if factor is None else out * factor


class Attention(nn.Module):
    """Multi-head attention without biases, for T5 (scale 1) and the decoder (scale D ** -0.5)."""

    def __init__(self, width: int, heads: int, head_width: int, scale: float, dropout: float):
        super().__init__()
        self.heads, self.scale, self.dropout = heads, scale, dropout
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.k = nn.Linear(width, heads * head_width, bias=False)
        self.v = nn.Linear(width, heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is attended to: (B, M, E) to keys and values (B, H, M, D)."""
        k, v = (rearrange(y, "b m (h d) -> b h m d", h=self.heads) for y in (self.k(x), self.v(x)))
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
        """Let x (B, Q, E) attend to keys and values (B, H, M, D); the other arguments are those of attend()."""
        q = rearrange(self.q(x), "b q (h d) -> b h q d", h=self.heads)
        dropout = self.dropout if self.training else 0.0
        out = attend(
            q, *keys_values, scale=self.scale, mask=mask, causal=causal, backend=backend, head_mask=head_mask,
            dropout=dropout, weights=weights
        )  # fmt: skip
        return self.out(rearrange(out, "b h q d -> b q (h d)"))


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
        """Write S new steps (B, H, S, D) of one layer; return all its steps so far (B, H, P + S, D).

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
