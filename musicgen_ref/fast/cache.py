"""Keys and values of earlier steps in fewer bits: other numbers, fewer bytes to read at each step.

After 30 s a step reads as many bytes of keys and values in fp32 as of weights in bf16. The compiled step reads a cache
of these as it lies; the plain one makes fp32 of all of it at every step, and gains nothing.
"""

import torch
from torch import Tensor

from ..attention import KVCache


class Bf16Cache(KVCache):
    """Keys and values of 8 significant bits, half of fp32's bytes."""

    def __init__(self, layers: int, batch: int, heads: int, steps: int, head_width: int, like: Tensor):
        super().__init__(layers, batch, heads, steps, head_width, like.new_empty(0, dtype=torch.bfloat16))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().append(layer, k, v)
        return keys.to(k.dtype), values.to(v.dtype)


class Int8Cache(KVCache):
    """Keys and values of 255 levels, whose scale is that of a head at a step: 0.27 of fp32's bytes for a width of 64.

    key_scales, value_scales: of every layer (B, H, steps) in fp32.
    """

    def __init__(self, layers: int, batch: int, heads: int, steps: int, head_width: int, like: Tensor):
        super().__init__(layers, batch, heads, steps, head_width, like.new_empty(0, dtype=torch.int8))
        self.key_scales = [like.new_empty(batch, heads, steps, dtype=torch.float32) for _ in range(layers)]
        self.value_scales = [torch.empty_like(scales) for scales in self.key_scales]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        (rounded_k, scale_k), (rounded_v, scale_v) = rounded(k), rounded(v)
        keys, values = super().append(layer, rounded_k, rounded_v)
        end = keys.shape[-2]
        scales = self.key_scales[layer], self.value_scales[layer]
        for all_scales, new in zip(scales, (scale_k, scale_v), strict=True):
            all_scales[..., self.length : end] = new
        k_scales, v_scales = (each[..., :end, None] for each in scales)
        return (keys * k_scales).to(k.dtype), (values * v_scales).to(v.dtype)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., D) as int8, and the scale (...) in fp32 that makes it x again; a scale is not finite where x is not."""
    # Where a 127th of the largest is below the smallest normal number, that is the level.
    scales = (x.float().abs().amax(-1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / scales[..., None]).round_().to(torch.int8), scales


CACHES: dict[str | None, type[KVCache]] = {None: KVCache, "bfloat16": Bf16Cache, "int8": Int8Cache}
