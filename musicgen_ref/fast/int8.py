"""int8 linear layers, put in from outside: a quarter of the bytes to read at each step, on CPUs.

A step of decoding reads every weight once for a row or two, so its time is that of reading them.
O output features, I input features.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..model import MusicGen
from . import native
from .cache import rounded


class Int8Linear(nn.Module):
    """nn.Linear with weights (O, I) rounded to 255 levels a row, in place of the one given.

    Its product is that of native.cpp, if a model has been compiled, which rounds the input to the levels of 16 bits;
    before that it is torch's, which rounds the input to 128 levels between its least and its largest number: products
    of 7 and 8 bits are added in pairs of 16 bits without overflow on CPUs that have no wider instruction.
    Raises ValueError for weights that are not on a CPU or not finite.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        if weight.device.type != "cpu":
            raise ValueError(f"int8 must be on a CPU: torch has its products nowhere else, got {weight.device}")
        self.scales = torch.empty(len(weight))
        # No buffers: what converts a model to another dtype would convert the scales, too.
        self._numbers: Tensor | None = torch.empty(weight.shape, dtype=torch.int8)
        # A few rows at a time stay in the caches, and ask for no memory of their own.
        rows = max(1, 2**17 // weight.shape[1])
        for some, scales, numbers in zip(
            *(each.split(rows) for each in (weight, self.scales, self._numbers)), strict=True
        ):
            for kept, made in zip((numbers, scales), rounded(some), strict=True):
                kept.copy_(made)
            if not torch.isfinite(scales).all():
                raise ValueError("weights must be finite, got NaN or infinity")
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed: Any = None  # for torch's product; in place of the numbers, once it has been called
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def numbers(self) -> Tensor:
        """The rounded weights (O, I) in int8."""
        if self._numbers is None:
            self._numbers, self.packed = torch.ops.quantized.linear_unpack(self.packed)[0].int_repr(), None
        return self._numbers

    @property
    def weight(self) -> Tensor:
        """What the input is multiplied by, (O, I) in fp32."""
        return self.numbers * self.scales[:, None]

    def forward(self, x: Tensor) -> Tensor:
        if native.is_built():
            out = native.product(x.float(), self.numbers, self.scales)
            return (out if self.bias is None else out + self.bias).to(x.dtype)
        if self.packed is None:
            # torch warns once that it means to retire these. Its product of plain int8 tensors, which stays, takes ten
            # times as long (aten._weight_int8pack_mm).
            zero = torch.zeros(self.out_features, dtype=torch.long)
            int8 = torch._make_per_channel_quantized_tensor(self.numbers, self.scales.double(), zero, 0)
            self.packed, self._numbers = torch.ops.quantized.linear_prepack(int8, self.bias), None
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed, reduce_range=True).to(x.dtype)


def quantize(model: MusicGen, fill: Callable[[nn.Module, str], None] | None = None) -> MusicGen:
    """Swap the linear layers of decoder and text encoder for Int8Linear ones, in place; returns the model.

    What is left is inference in fp32: the model can be neither trained nor saved. Embeddings, norms and the codec stay
    as they are. fill: for a model on the meta device: gives a layer, and the prefix of its names in the model, its
    weights. One layer at a time, so that they are never in memory together. Raises ValueError for a model
    that is not on a CPU, or not in fp32.
    """
    if (dtype := model.decoder.norm.weight.dtype) != torch.float32:
        raise ValueError(f"model must be in float32 to be quantised, got {dtype}")
    put_in(model, fill)
    return model


def put_in(module: nn.Module, fill: Callable[[nn.Module, str], None] | None = None) -> None:
    """Swap the linear layers inside a module; fill: see quantize()."""
    # Names, not layers: a list of those would keep in memory what was replaced.
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for path in names:
        parent, _, name = path.rpartition(".")
        layer = cast(nn.Linear, module.get_submodule(path))
        if fill is not None:
            fill(layer, f"{path}.")
        setattr(module.get_submodule(parent), name, Int8Linear(layer))
