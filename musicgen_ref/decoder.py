"""The MusicGen decoder: a causal transformer over K parallel streams of codes, reading text by cross-attention.

A step reads one column of the delayed table: K codes, one of each codebook. Each has a vector of its own, and their sum
is the step's input; at the other end K heads predict the K codes of the next column from one state. So a step costs as
much as it would with a single codebook. The number V, one past the codes 0..V - 1, is the special token: it starts a
sequence and fills the cells of the table that hold no code. It is read, but never predicted.

B batch, K codebooks, S steps of this call, P steps before them, in the cache, L text tokens, E model width, H heads,
D head width, V codes per codebook. Source: Copet et al. 2023 (arXiv:2306.05284), sections 2.2 to 2.4; numbers as
transformers' MusicgenForCausalLM computes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import checks
from .attention import Attention, KVCache, Trace

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder; the defaults are musicgen-small (medium: 1536, 48, 24; large: 2048, 48, 32; ffn is 4 *
    width).

    text_width: width of the text encoder's states; they are projected where it differs from `width`.
    channels: 2 for stereo, whose codebooks alternate left and right. delays: steps by which each codebook runs behind;
    by default 0, 1, 2, ... in mono and 0, 0, 1, 1, ... in stereo. Raises ValueError naming the impossible field.
    """

    vocab_size: int = 2048
    codebooks: int = 4
    channels: int = 1
    width: int = 1024
    layers: int = 24
    heads: int = 16
    ffn: int = 4096
    text_width: int = 768
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    layerdrop: float = 0.0
    delays: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks.sizes(self)
        delays = self.delays or [k // self.channels for k in range(self.codebooks)]
        object.__setattr__(self, "delays", tuple(delays))
        checks.decoder_config(self, ACTIVATIONS)


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """Position vectors (S, width) in fp32 of whole positions (S,): all cosines, then all sines.

    Attention itself does not know order; these vectors, added to the input, tell it. A pair of a cosine and a sine
    turns with its own frequency, so moving by some steps is the same rotation wherever one starts. They are computed
    where they are needed, so there is no last position. Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """
    half = width // 2
    # tensor2tensor's spacing, not Vaswani's: divided by half - 1, so that the last frequency is exactly 1e-4.
    freq = torch.exp(torch.arange(half, device=positions.device).float() * -(math.log(10000) / (half - 1)))
    angle = positions[:, None].float() * freq
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))


class Pass(NamedTuple):
    """What all blocks of one forward pass share; each field is described at Decoder.forward()."""

    cache: KVCache | None
    memory: Tensor | None
    memory_mask: Tensor | None
    step_mask: Tensor | None
    backend: str
    self_head_mask: Tensor | None
    cross_head_mask: Tensor | None
    trace: Trace | None


class Block(nn.Module):
    """Self-attention over the steps, cross-attention over the text, feed-forward.

    Pre-norm: each of the three reads a normalised copy of the stream and adds its result to the stream itself. From the
    last block to the input the gradient then passes through sums alone, which lets deep stacks train without warm-up
    tricks (Xiong et al. 2020, arXiv:2002.04745). What is left to normalise at the end is the stream, once.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        E, D = config.width, config.width // config.heads
        self.self_norm = nn.LayerNorm(E)
        self.self_attn = Attention(E, config.heads, D, D**-0.5, config.attention_dropout)
        self.cross_norm = nn.LayerNorm(E)
        self.cross_attn = Attention(E, config.heads, D, D**-0.5, config.attention_dropout)
        self.ffn_norm = nn.LayerNorm(E)
        self.fc1 = nn.Linear(E, config.ffn, bias=False)
        self.fc2 = nn.Linear(config.ffn, E, bias=False)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor, layer: int, given: Pass) -> Tensor:
        cache, memory, backend, trace = given.cache, given.memory, given.backend, given.trace
        own, read = (None, None) if trace is None else trace.weights_of(layer)
        mask = None if given.self_head_mask is None else given.self_head_mask[layer]
        h = self.self_norm(x)
        kv = self.self_attn.keys_values(h)
        if cache is not None:
            kv = cache.append(layer, *kv)
        h = self.self_attn(h, kv, mask=given.step_mask, causal=True, backend=backend, head_mask=mask, weights=own)
        x = x + self.dropout(h)

        text = self.cross_attn.keys_values(memory) if memory is not None else None
        if cache is not None and cache.cross:
            text = cache.cross[layer]
        if text is not None:
            # Rows past those of the memory read no text: keys and values of zero would add exactly 0.
            rows = text[0].shape[0]
            mask = None if given.cross_head_mask is None else given.cross_head_mask[layer]
            h = self.cross_norm(x[:rows])
            h = self.cross_attn(h, text, mask=given.memory_mask, backend=backend, head_mask=mask, weights=read)
            h = x[:rows] + self.dropout(h)
            x = h if rows == x.shape[0] else torch.cat([h, x[rows:]])

        h = self.activation_dropout(self.activation(self.fc1(self.ffn_norm(x))))
        return x + self.dropout(self.fc2(h))


class Decoder(nn.Module):
    """Columns of delayed codes, and text, to the logits of the column after each.

    gradient_checkpointing: set it to True to recompute the blocks' activations in the backward pass of training.
    cache_class: what new_cache() makes; fast/cache.py has others.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        checks.instance("config", config, DecoderConfig)
        self.config = config
        K, V = config.codebooks, config.vocab_size
        # V + 1 rows: the special token has an input vector, but is never predicted.
        self.embed = nn.ModuleList(nn.Embedding(V + 1, config.width) for _ in range(K))
        self.text_proj = nn.Linear(config.text_width, config.width) if config.text_width != config.width else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.ModuleList(nn.Linear(config.width, V, bias=False) for _ in range(K))
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.cache_class = KVCache

    def project_text(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """T5's states (B, L, text_width), of any dtype, to the memory (B, L, E) that cross-attention reads; masked
        tokens become 0."""
        checks.text_states(states, mask, self.config.text_width)
        states = states.to(self.norm.weight.dtype)
        memory = states if self.text_proj is None else self.text_proj(states)
        # Masked after the projection, not before it, since the projection's bias would be added to the zeros.
        return memory if mask is None else memory * mask[..., None].to(memory.dtype)

    def new_cache(
        self, batch: int, steps: int, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> KVCache:
        """A cache for `batch` rows of up to `steps` steps. The memory's keys and values, the same at every step, are
        computed and written once, here."""
        c = self.config
        checks.new_cache(c, batch, steps, memory, memory_mask)
        cache = self.cache_class(c.layers, batch, c.heads, steps, c.width // c.heads, self.norm.weight.detach())
        if memory is not None:
            cache.cross = [cast(Block, block).cross_attn.keys_values(memory) for block in self.blocks]
            cache.cross_mask = _key_mask(memory_mask)
        return cache

    def forward(
        self, codes: Tensor | None = None, memory: Tensor | None = None, memory_mask: Tensor | None = None,
        cache: KVCache | None = None, *, embeddings: Tensor | None = None, step_mask: Tensor | None = None,
        backend: str = "sdpa", self_head_mask: Tensor | None = None, cross_head_mask: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, K, S, V): at each of S steps, what the next column may be.

        codes: columns of the delayed table (B, K, S), 0..V; or embeddings: (B, S, E) in place of their vectors' sums.
        memory, memory_mask: (B_text, L, E) and (B_text, L) from project_text(); rows from B_text on read no text.
        None: no row reads any. With a cache, give them to new_cache() instead.
        cache: the S steps follow its P; they are appended.
        step_mask: (B, P + S), True or 1 for the steps that may be attended to; None: all.
        self_head_mask, cross_head_mask: (layers, H) factors on the heads' outputs. trace: see Trace.
        Raises ValueError for wrong shapes, and where both or neither of codes and embeddings are given; IndexError for
        codes out of range, which are not looked for at every step.
        """
        checks.decoder_input(
            self.config, codes, embeddings, memory, memory_mask, cache, step_mask,
            self_head_mask=self_head_mask, cross_head_mask=cross_head_mask,
        )  # fmt: skip
        x = self.embed_codes(cast(Tensor, codes)) if embeddings is None else embeddings
        start, S = 0 if cache is None else cache.length, x.shape[1]
        position = start + torch.arange(S, device=x.device)
        x = self.dropout(x + sinusoid(position, self.config.width).to(x.dtype))
        memory_mask = _key_mask(memory_mask) if cache is None else cache.cross_mask
        masks = (_key_mask(step_mask), backend, self_head_mask, cross_head_mask)
        given = Pass(cache, memory, memory_mask, *masks, trace)
        for i, block in enumerate(self.blocks):
            if trace is not None:
                trace.see(i - 1, x)
            # Never with a cache, in which a skipped block would leave its steps unwritten.
            if self.training and cache is None and self.config.layerdrop and torch.rand(()) < self.config.layerdrop:
                continue
            # A recomputed block would write the cache and the trace twice.
            recompute = self.gradient_checkpointing and self.training and cache is None and trace is None
            x = checkpoint(block, x, i, given, use_reentrant=False) if recompute else block(x, i, given)
        x = self.norm(x)
        if trace is not None:
            trace.see(len(self.blocks) - 1, x)
        if cache is not None:
            cache.length += S
        return torch.stack([head(x) for head in self.heads], dim=1)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Sum of the K codebooks' vectors: codes (B, K, S) to (B, S, E)."""
        checks.delayed_codes(codes, self.config.codebooks)
        vectors: list[Tensor] = [embed(codes[:, k]) for k, embed in enumerate(self.embed)]
        return sum(vectors[1:], vectors[0])


def _key_mask(mask: Tensor | None) -> Tensor | None:
    # (B, L) to what attend() broadcasts. Nothing masked is no mask, which lets SDPA take its fast path; a traced
    # graph must not depend on what it holds.
    if mask is None or (not checks.traced() and mask.all()):
        return None
    return mask.bool()[:, None, None, :]
