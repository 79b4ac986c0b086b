"""The MusicGen decoder: a causal transformer over K parallel streams of codes, reading text by cross-attention.

B batch, K codebooks, T delayed steps, P cached steps, L text tokens, E model width, H heads, D head width, V codes per
codebook. The number V itself is the special token: it starts a sequence and fills the cells of the delay pattern that
hold no code.
Source: Copet et al. 2023 (arXiv:2306.05284), section 2; numbers as transformers' MusicgenForCausalLM computes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import Attention, KVCache, Linear, Trace

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder; the defaults are musicgen-small (medium: 1536, 48, 24; large: 2048, 48, 32; ffn is 4 *
    width).

    text_width: width of the text encoder's states; they are projected where it differs from `width`.
    channels: 2 for stereo, whose codebooks alternate left and right. Raises ValueError naming the impossible field.
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"DecoderConfig.{field.name} must be a positive whole number, got {value!r}")
            if field.type is float and not 0 <= value < 1:
                raise ValueError(f"DecoderConfig.{field.name} must be in [0, 1), got {value!r}")
        if self.width < 4 or self.width % self.heads:
            raise ValueError(f"DecoderConfig.heads must divide width, 4 or more, got {self.heads} and {self.width}")
        if (C := self.channels) > 2 or self.codebooks % C:
            raise ValueError(f"DecoderConfig.channels must be 1 or 2 and divide codebooks {self.codebooks}, got {C}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"DecoderConfig.activation must be one of {list(ACTIVATIONS)}, got {self.activation!r}")


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """Position vectors (T, width) in fp32 of whole positions (T,): all cosines, then all sines.

    Computed where they are needed, so that there is no last position.
    """
    half = width // 2
    # tensor2tensor's spacing, not Vaswani's: divided by half - 1, so that the last frequency is exactly 1e-4.
    freq = torch.exp(torch.arange(half, device=positions.device).float() * -(math.log(10000) / (half - 1)))
    angle = positions[:, None].float() * freq
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))


class Block(nn.Module):
    """Pre-norm: self-attention over the steps, cross-attention over the text, feed-forward."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        E, D = config.width, config.width // config.heads
        self.self_norm = nn.LayerNorm(E)
        self.self_attn = Attention(E, config.heads, D, D**-0.5, config.attention_dropout)
        self.cross_norm = nn.LayerNorm(E)
        self.cross_attn = Attention(E, config.heads, D, D**-0.5, config.attention_dropout)
        self.ffn_norm = nn.LayerNorm(E)
        self.fc1 = Linear(E, config.ffn)
        self.fc2 = Linear(config.ffn, E)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(
        self,
        x: Tensor,
        layer: int,
        cache: KVCache | None,
        memory: Tensor | None,
        memory_mask: Tensor | None,
        step_mask: Tensor | None,
        backend: str,
        self_head_mask: Tensor | None,
        cross_head_mask: Tensor | None,
        trace: Trace | None,
    ) -> Tensor:
        own, read = (trace.self_weights, trace.cross_weights) if trace and trace.weights else (None, None)
        h = self.self_norm(x)
        kv = self.self_attn.keys_values(h)
        if cache is not None:
            kv = cache.append(layer, *kv)
        h = self.self_attn(h, kv, mask=step_mask, causal=True, backend=backend, head_mask=self_head_mask, weights=own)
        x = x + self.dropout(h)

        text = self.cross_attn.keys_values(memory) if memory is not None else None
        if cache is not None and cache.cross:
            text = cache.cross[layer]
        if text is not None:
            # Rows past those of the memory read no text: keys and values of zero would add exactly 0.
            rows = len(text[0])
            h = self.cross_norm(x[:rows])
            h = self.cross_attn(h, text, mask=memory_mask, backend=backend, head_mask=cross_head_mask, weights=read)
            h = x[:rows] + self.dropout(h)
            x = h if rows == len(x) else torch.cat([h, x[rows:]])

        h = self.activation_dropout(self.activation(self.fc1(self.ffn_norm(x))))
        return x + self.dropout(self.fc2(h))


class Decoder(nn.Module):
    """Delayed codes and text states to logits of the next step.

    gradient_checkpointing: set it to True to recompute the blocks' activations in the backward pass of training.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        # V + 1 rows: the special token has an input vector, but is never predicted.
        self.embed = nn.ModuleList(nn.Embedding(config.vocab_size + 1, config.width) for _ in range(config.codebooks))
        self.text_proj = nn.Linear(config.text_width, config.width) if config.text_width != config.width else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        # The K heads in one matrix: codebook k owns rows k * V to (k + 1) * V.
        self.heads = Linear(config.width, config.codebooks * config.vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False

    def project_text(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Text states (B, L, text_width) to the memory (B, L, E) that cross-attention reads; masked tokens become 0."""
        if states.dim() != 3 or states.shape[-1] != self.config.text_width:
            raise ValueError(f"states must be (B, L, {self.config.text_width}), got {tuple(states.shape)}")
        if mask is not None and mask.shape != states.shape[:2]:
            raise ValueError(f"mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}")
        memory = states if self.text_proj is None else self.text_proj(states)
        # After the projection, whose bias would otherwise give padding a voice.
        return memory if mask is None else memory * mask[..., None].to(memory.dtype)

    def new_cache(
        self, batch: int, steps: int, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> KVCache:
        """A cache for `batch` rows of up to `steps` delayed steps, with the memory's keys and values written."""
        c = self.config
        if steps < 1 or batch < 1:
            raise ValueError(f"batch and steps must be above 0, got {batch} and {steps}")
        like = self.norm.weight.detach()
        cache = KVCache(c.layers, batch, c.heads, steps, c.width // c.heads, like)
        self._check_memory(memory, memory_mask, batch)
        if memory is not None:
            cache.cross = [cast(Block, block).cross_attn.keys_values(memory) for block in self.blocks]
            cache.cross_mask = _key_mask(memory_mask)
        return cache

    def forward(
        self,
        codes: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        embeddings: Tensor | None = None,
        step_mask: Tensor | None = None,
        backend: str = "sdpa",
        self_head_mask: Tensor | None = None,
        cross_head_mask: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Logits (B, K, T, V) of the step after each of T steps.

        codes: delayed codes (B, K, T), 0..V (V is the special token); or embeddings: (B, T, E) in place of their sum.
        memory, memory_mask: (B_text, L, E) and (B_text, L) from project_text(); rows from B_text on read no text.
        None: no row reads any. With a cache, give them to new_cache() instead.
        cache: the T steps follow its P; they are appended.
        step_mask: (B, P + T), True or 1 for the steps that may be attended to; None: all.
        self_head_mask, cross_head_mask: (layers, H) factors on the heads' outputs. trace: see Trace.
        Raises ValueError for wrong shapes, and where both or neither of codes and embeddings are given; IndexError for
        codes out of range, which are not looked for at every step.
        """
        if codes is not None and embeddings is None:
            embeddings = self.embed_codes(codes)
        elif codes is not None or embeddings is None:
            raise ValueError("give codes or embeddings, one of them")
        if embeddings.dim() != 3 or embeddings.shape[-1] != self.config.width:
            raise ValueError(f"embeddings must be (B, T, {self.config.width}), got {tuple(embeddings.shape)}")
        B, T, _ = embeddings.shape
        for name, head_mask in (("self_head_mask", self_head_mask), ("cross_head_mask", cross_head_mask)):
            shape = (self.config.layers, self.config.heads)
            if head_mask is not None and head_mask.shape != shape:
                raise ValueError(f"{name} must be (layers, H) = {shape}, got {tuple(head_mask.shape)}")
        start = 0 if cache is None else cache.length
        if step_mask is not None and step_mask.shape != (B, start + T):
            raise ValueError(f"step_mask must be (B, P + T) = {(B, start + T)}, got {tuple(step_mask.shape)}")
        if cache is not None:
            if memory is not None or memory_mask is not None:
                raise ValueError("memory and memory_mask go to new_cache(), which writes keys and values once")
            if cache.batch != B:
                raise ValueError(f"the cache was made for a batch of {cache.batch}, got {B}")
            memory_mask = cache.cross_mask
        else:
            self._check_memory(memory, memory_mask, B)
            memory_mask = _key_mask(memory_mask)
        step_mask = _key_mask(step_mask)

        position = torch.arange(start, start + T, device=embeddings.device)
        x = self.dropout(embeddings + sinusoid(position, self.config.width).to(embeddings.dtype))
        for i, block in enumerate(self.blocks):
            if trace is not None:
                trace.hidden.append(x)
            # Never with a cache, in which a skipped block would leave its steps unwritten.
            if self.training and cache is None and self.config.layerdrop and torch.rand(()) < self.config.layerdrop:
                continue
            masks = (None if m is None else m[i].to(x.dtype) for m in (self_head_mask, cross_head_mask))
            args = (x, i, cache, memory, memory_mask, step_mask, backend, *masks, trace)
            # A recomputed block would write the cache and the trace twice.
            recompute = self.gradient_checkpointing and self.training and cache is None and trace is None
            x = checkpoint(block, *args, use_reentrant=False) if recompute else block(*args)
        x = self.norm(x)
        if trace is not None:
            trace.hidden.append(x)
        if cache is not None:
            cache.length += T
        return rearrange(self.heads(x), "b t (k v) -> b k t v", k=self.config.codebooks)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Sum of the K codebooks' vectors: codes (B, K, T) to (B, T, E)."""
        K = self.config.codebooks
        if codes.dim() != 3 or codes.shape[1] != K or codes.dtype not in (torch.int64, torch.int32):
            got = f"{codes.dtype} {tuple(codes.shape)}"
            raise ValueError(f"codes must be int64 or int32 of shape (B, {K}, T), got {got}")
        vectors: list[Tensor] = [embed(codes[:, k]) for k, embed in enumerate(self.embed)]
        return sum(vectors[1:], vectors[0])

    def _check_memory(self, memory: Tensor | None, mask: Tensor | None, batch: int) -> None:
        if memory is None:
            if mask is not None:
                raise ValueError("memory_mask must come with a memory, got the mask alone")
            return
        if memory.dim() != 3 or memory.shape[-1] != self.config.width or not 1 <= len(memory) <= batch:
            raise ValueError(f"memory must be (1..{batch}, L, {self.config.width}), got {tuple(memory.shape)}")
        if mask is not None and mask.shape != memory.shape[:2]:
            raise ValueError(f"memory_mask must be {tuple(memory.shape[:2])}, got {tuple(mask.shape)}")


def _key_mask(mask: Tensor | None) -> Tensor | None:
    # (B, L) to what attend() broadcasts. Nothing masked is no mask, which lets SDPA take its fast path; a traced
    # graph must not depend on what it holds.
    if mask is None or (not torch.compiler.is_compiling() and mask.all()):
        return None
    return mask.bool()[:, None, None, :]
