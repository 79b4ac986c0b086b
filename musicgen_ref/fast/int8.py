"""int8 linear layers, put in from outside: a quarter of the bytes to read at each step, on CPUs.

A step of decoding reads every weight once for a row or two, so its time is that of reading them.
O output features, I input features.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..model import MusicGen


class Int8Linear(nn.Module):
    """nn.Linear with weights (O, I) rounded to 255 levels a row, in place of the one given.

    Each call also rounds its input, to 128 levels between its least and its largest number: products of 7 and 8 bits
    are added in pairs of 16 bits without overflow on CPUs that have no wider instruction. Raises ValueError for weights
    that are not on a CPU or not finite.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        if weight.device.type != "cpu":
            raise ValueError(f"int8 must be on a CPU: torch has its products nowhere else, got {weight.device}")
        largest = weight.abs().amax(1)
        if not torch.isfinite(largest).all():
            raise ValueError("weights must be finite, got NaN or infinity")
        scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny).double()
        zero = torch.zeros(len(weight), dtype=torch.long)
        bias = None if linear.bias is None else linear.bias.detach().float()
        # torch warns once that it means to retire this way of making them. Its products of plain int8 tensors read half
        # as fast (aten._weight_int8pack_mm) or a tenth (torch._int_mm).
        int8 = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(int8, bias)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed, reduce_range=True).to(x.dtype)

    @property
    def weight(self) -> Tensor:
        """What the input is multiplied by, (O, I) in fp32."""
        return torch.ops.quantized.linear_unpack(self.packed)[0].dequantize()


def quantize(model: MusicGen, fill: Callable[[nn.Module, str], None] | None = None) -> MusicGen:
    """Swap the linear layers of decoder and text encoder for Int8Linear ones, in place; returns the model.

    What is left is inference in fp32: the model can be neither trained nor saved. Embeddings, norms and the codec stay
    as they are. fill: for a model on the meta device: gives a layer, and the prefix of its names in the model, its
    weights. One layer at a time, so that they are never in memory together. Raises ValueError for a model
    that is not on a CPU, or not in fp32.
    """
    if (dtype := model.decoder.norm.weight.dtype) != torch.float32:
        raise ValueError(f"model must be in float32 to be quantised, got {dtype}")
    # Names, not layers: a list of those would keep in memory what was replaced.
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for path in names:
        parent, _, name = path.rpartition(".")
        layer = cast(nn.Linear, model.get_submodule(path))
        if fill is not None:
            fill(layer, f"{path}.")
        setattr(model.get_submodule(parent), name, Int8Linear(layer))
    return model
