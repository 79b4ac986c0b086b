"""The decoder's step on CPUs as one call of compiled C++: native.cpp says what it computes, and why that is fast.

Between the layers everything is fp32, also where the weights are not; sums are taken in another order than BLAS's.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_float, c_int64, c_void_p
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..attention import Attention, KVCache
from ..decoder import Block, Decoder, sinusoid
from . import native
from .cache import CACHES, Int8Cache
from .int8 import Int8Linear
from .linear import FewRows

ACTIVATIONS = ("gelu", "relu", "silu")
PRODUCTS = ("q", "k", "v", "out", "cross_q", "cross_out", "fc1", "fc2")
LINEAR = (nn.Linear, FewRows, Int8Linear)
KNOWN = (Decoder, Block, Attention, *LINEAR, nn.LayerNorm, nn.Embedding, nn.Dropout, nn.ModuleList)


# The structures of native.cpp.
class Weight(ctypes.Structure):
    _fields_ = [("numbers", c_void_p), ("scales", c_void_p)]


class Norm(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, Norm) for name in ("self_norm", "cross_norm", "ffn_norm")),
        *((name, Weight) for name in PRODUCTS),
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales", "text_keys", "text_values")),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("B", "R", "E", "H", "D", "F", "L", "K", "V", "layers", "capacity", "P")),
        *((name, c_int64) for name in ("threads", "weights", "cache", "activation")),
        ("scale", c_float),
        ("layer", ctypes.POINTER(Layer)),
        ("norm", Norm),
        ("heads", ctypes.POINTER(Weight)),
        *((name, c_void_p) for name in ("mask", "x", "logits", "scratch")),
    ]


def put_in(decoder: Decoder) -> None:
    """Let the decoder run its steps of one column in C++, of any batch, with text or without.

    All else runs as before: several columns at once, calls without a cache or with embeddings, masks, traces or
    gradients, training, autocast, and a decoder that is no longer on a CPU or has got other layers or hooks. Weights
    in fp32 that are numbers of fp16 are read as such, see Halves; those of other linear layers move into one piece of
    memory, in the order in which a step reads them. What weights are is looked at when a cache is first used. Raises
    ValueError for a decoder of which C++ does not know a layer; FileNotFoundError where there is no compiler.
    """
    if (other := unknown(decoder)) is not None:
        raise ValueError(f"the decoder cannot be compiled, as it has {other}")
    native.library()
    halves = Halves()
    if halves.of(decoder) is None:
        native.move_together(list(map(numbers, linear_layers(decoder))))
    runs: WeakKeyDictionary[KVCache, Run | None] = WeakKeyDictionary()
    plain: Callable[..., Tensor] = decoder._call_impl

    def call(
        codes: Tensor | None = None, *positional: Any, cache: KVCache | None = None, backend: str = "sdpa", **given: Any
    ) -> Tensor:
        alone = not positional and all(value is None for value in given.values())
        known = type(cache) in CACHES.values()
        if codes is not None and cache is not None and known and alone and native.takes(codes):
            if cache not in runs:
                runs[cache] = None
                if not decoder.training and unknown(decoder) is None:
                    weights = halves.of(decoder) or list(map(numbers, linear_layers(decoder)))
                    runs[cache] = Run(decoder, cache, weights)
            run = runs[cache]
            if run is not None and codes.shape == run.shape and cache.length < run.step.capacity:
                return run(codes, cache)
        return plain(codes, *positional, cache=cache, backend=backend, **given)

    decoder._compiled_call_impl = call  # which nn.Module leaves out of copies and files


def unknown(decoder: Decoder) -> str | None:
    """What a decoder has that the compiled step does not know, in words; None: nothing."""
    for name, part in decoder.named_modules():
        if type(part) not in KNOWN:
            return f"a {type(part).__name__} at {name}"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"hooks at {name or 'itself'}, which would not be called"
    weights = [numbers(layer) for layer in linear_layers(decoder)]
    if len(dtypes := {weight.dtype for weight in weights}) > 1 or not dtypes <= native.KINDS.keys():
        return f"weights in {', '.join(sorted(map(str, dtypes)))}"
    if not all(weight.device.type == "cpu" and weight.is_contiguous() for weight in weights):
        return "weights that are not on a CPU, each in one piece"
    return None


class Halves:
    """Copies in fp16 of weights in fp32 that fp16 has as well, as those that were published in fp16: C++ makes the same
    numbers of them, and reads half the bytes."""

    def __init__(self) -> None:
        self.copies: list[Tensor] = []

    def of(self, decoder: Decoder) -> list[Tensor] | None:
        """The weights of the linear layers as they are now; None if they are not in fp32, or one is not in fp16."""
        weights = list(map(numbers, linear_layers(decoder)))
        if weights[0].dtype != torch.float32:
            return None
        if [copy.shape for copy in self.copies] != [weight.shape for weight in weights]:
            like = [torch.empty(weight.shape, dtype=torch.float16, device="meta") for weight in weights]
            room = native.huge_pages(like)
            self.copies = [
                torch.empty_like(each, device="cpu") if room is None else room.empty_like(each) for each in like
            ]
        if all(native.halve(weight, copy) for weight, copy in zip(weights, self.copies, strict=True)):
            return self.copies
        self.copies = []
        return None


def linear_layers(decoder: Decoder) -> list[nn.Module]:
    """Those of a step, in the order in which it reads them."""
    return [*(layer for block in decoder.blocks for layer in products(cast(Block, block))), *decoder.heads]


def products(block: Block) -> list[nn.Module]:
    """The linear layers of a block, in the order of Layer's fields."""
    own, text = block.self_attn, block.cross_attn
    return [own.q, own.k, own.v, own.out, text.q, text.out, block.fc1, block.fc2]


def numbers(layer: nn.Module) -> Tensor:
    """The weight (O, I) of a linear layer as it is kept."""
    return layer.numbers if isinstance(layer, Int8Linear) else cast(nn.Linear, layer).weight


class Run:
    """The steps of one cache: where everything lies that they read and write.

    It must not refer to the cache, beside which it is kept, but to its tensors alone.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, weights: Sequence[Tensor]):
        """weights: of the linear layers, as C++ reads them."""
        c, (B, H, capacity, D) = decoder.config, cache.keys[0].shape
        text = [tuple(each.float().contiguous() for each in pair) for pair in cache.cross]
        R, L = (text[0][0].shape[0], text[0][0].shape[2]) if text else (0, 0)
        mask = None if cache.cross_mask is None else cache.cross_mask.reshape(R, L).to(torch.uint8)
        self.kept: list[Any] = [mask]  # what C++ has addresses of
        self.decoder, self.shape = decoder, (B, c.codebooks, 1)
        self.positions = sinusoid(torch.arange(capacity), c.width)
        self.scratch = torch.empty(0)

        layers, in_order = (Layer * c.layers)(), iter(weights)
        for i, (layer, block) in enumerate(zip(layers, cast(Iterator[Block], decoder.blocks), strict=True)):
            for name in ("self_norm", "cross_norm", "ffn_norm"):
                setattr(layer, name, self._norm(getattr(block, name)))
            for name, product in zip(PRODUCTS, products(block), strict=True):
                setattr(layer, name, self._weight(product, next(in_order)))
            layer.keys, layer.values = self._at(cache.keys[i]), self._at(cache.values[i])
            if isinstance(cache, Int8Cache):
                layer.key_scales, layer.value_scales = self._at(cache.key_scales[i]), self._at(cache.value_scales[i])
            if text:
                layer.text_keys, layer.text_values = (self._at(each) for each in text[i])
        heads = (Weight * c.codebooks)(*(self._weight(head, next(in_order)) for head in decoder.heads))
        self.step = Step(
            B=B, R=R, E=c.width, H=H, D=D, F=c.ffn, L=L, K=c.codebooks, V=c.vocab_size, layers=c.layers,
            capacity=capacity, weights=native.KINDS[weights[0].dtype], cache=native.KINDS[cache.keys[0].dtype],
            activation=ACTIVATIONS.index(c.activation), scale=D**-0.5, layer=layers, norm=self._norm(decoder.norm),
            heads=heads, mask=None if mask is None else mask.data_ptr(),
        )  # fmt: skip

    def _at(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _weight(self, layer: nn.Module, weight: Tensor) -> Weight:
        return Weight(self._at(weight), self._at(layer.scales) if isinstance(layer, Int8Linear) else None)

    def _norm(self, norm: nn.Module) -> Norm:
        norm = cast(nn.LayerNorm, norm)
        return Norm(self._at(norm.weight.detach().float()), self._at(norm.bias.detach().float()), norm.eps)

    def __call__(self, codes: Tensor, cache: KVCache) -> Tensor:
        """Decoder.forward() of one column of codes (B, K, 1)."""
        step = self.step
        x = self.decoder.embed_codes(codes)[:, 0].float() + self.positions[cache.length]
        logits = x.new_empty(step.B, step.K, 1, step.V)
        step.P, step.threads = cache.length, torch.get_num_threads()
        if (size := native.library().scratch_size(ctypes.byref(step))) != len(self.scratch):
            self.scratch = x.new_empty(size)
        step.x, step.logits, step.scratch = x.data_ptr(), logits.data_ptr(), self.scratch.data_ptr()
        native.library().step(ctypes.byref(step))
        cache.length += 1
        return logits.to(self.decoder.norm.weight.dtype)
