"""The codec's layers on CPUs in compiled C++: native.cpp says how they are multiplied.

Between the layers the channels of a position lie side by side, and before the first position and after the last there
is room for what the next layer pads, so that nothing is copied for it. Measured on two cores for 30 s, beside the same
windows in torch: decode 1.1 times, encode 1.2 times as fast, at some nine tenths of what the processor can multiply.
"""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..encodec import LSTM, Conv, ConvTranspose, Residual, pad
from . import native


def put_in(module: nn.Module) -> None:
    """Move the weights of LSTMs, which every frame reads anew, into large pages."""
    lstms = [layer for layer in module.modules() if isinstance(layer, nn.LSTM)]
    native.move_together([weight for layer in lstms for weight in layer.parameters()])


def computes(x: Tensor) -> bool:
    """Whether C++ was compiled, and x is what it computes with."""
    return native.is_built() and native.takes(x) and x.dtype == torch.float32


def recurrent(layer: LSTM, x: Tensor) -> Tensor:
    """The forward() of an LSTM whose width is a multiple of 16."""
    past = y = rearrange(x, "b c t -> t b c").contiguous()
    for of_input, of_state, *biases in layer.lstm.all_weights:
        y = native.lstm(F.linear(y, of_input, biases[0] + biases[1]), of_state.detach().contiguous())
    return rearrange(y.add_(past), "t b c -> b c t")


class Positions:
    """Positions (N, C) with room for others before and after them, in some memory (numbers,)."""

    def __init__(self, count: int, channels: int, room: int, memory: Tensor):
        self.count, self.room, self.memory = count, room, memory
        self.all = memory[: (count + 2 * room) * channels].view(-1, channels)

    @property
    def own(self) -> Tensor:
        """The positions alone."""
        return self.all[self.room : self.room + self.count]

    def padded(self, left: int, right: int, mode: str) -> Tensor:
        """Pad in place, as encodec.pad() does: (left + N + right, C)."""
        edge, begin, end = max(left, right) + 1, self.room, self.room + self.count
        ends = self.own if self.count <= 2 * edge else torch.cat([self.own[:edge], self.own[-edge:]])
        around = pad(ends.t(), left, right, mode).t()
        self.all[begin - left : begin], self.all[end : end + right] = around[:left], around[len(around) - right :]
        return self.all[begin - left : end + right]


class Convolutions:
    """Layers of a SEANet without its LSTM: a function of (C, N).

    Their weights are copied when this is made, in the order in which C++ reads them.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers, self.room = layers, 1
        self.free: list[Tensor] = []  # memory in which nothing lies: to ask for more takes longer than to fill it
        self.weights: dict[nn.Module, list[Tensor]] = {}
        self.biases: dict[nn.Module, Tensor | None] = {}
        for part in (part for layer in layers for part in layer.modules()):
            if isinstance(part, Conv):
                taps = rearrange(part.conv.weight.detach(), "o c k -> k c 1 o")
                if is_narrow(part):
                    self.weights[part] = [packed(rearrange(taps, "k c 1 o -> 1 c k o"))]
                else:  # with dilation, taps do not lie behind one another: each is a product of its own
                    self.weights[part] = list(map(packed, taps.split(1 if part.conv.dilation[0] > 1 else len(taps))))
                self.biases[part] = filled_up(part.conv.bias)
                self.room = max(self.room, part.left + part.right + part.stride)
            elif isinstance(part, ConvTranspose):
                # A frame's positions come from the frame before, through the filter's second half, and from itself.
                self.weights[part] = [packed(rearrange(part.conv.weight.detach(), "c o (h s) -> h c s o", h=2).flip(0))]
                self.biases[part] = filled_up(part.conv.bias, part.conv.stride[0])
                self.room = max(self.room, part.conv.stride[0])

    def __call__(self, x: Tensor) -> Tensor:
        positions = self._new(x.shape[1], x.shape[0])
        positions.own.copy_(x.t())
        out = self._run(self.layers, positions)
        self.free.append(out.memory)
        return out.own.t().clone()

    def _new(self, count: int, channels: int) -> Positions:
        size = (count + 2 * self.room) * channels
        fits = [memory for memory in self.free if len(memory) >= size]
        memory = min(fits, key=len) if fits else torch.empty(size)
        self.free = [other for other in self.free if other is not memory]
        return Positions(count, channels, self.room, memory)

    def _run(self, layers: Sequence[nn.Module], x: Positions) -> Positions:
        """One layer after the other; x is overwritten. An ELU is computed with the layer before it."""
        for before, layer, after in zip([None, *layers], layers, [*layers[1:], None], strict=False):
            given, alpha = x, after.alpha if isinstance(after, nn.ELU) else math.nan
            if isinstance(layer, Conv):
                x = self._convolve(layer, x, alpha)
            elif isinstance(layer, ConvTranspose):
                x = self._transposed(layer, x, alpha)
            elif isinstance(layer, Residual):
                x = self._residual(layer, x, alpha)
            elif isinstance(layer, nn.ELU) and before is None:
                native.elu(x.own, layer.alpha, x.own)
            if x is not given:
                self.free.append(given.memory)
        return x

    def _residual(self, layer: Residual, x: Positions, alpha: float) -> Positions:
        elu, *middle, last = cast(Iterable[nn.Module], layer.block)
        y = self._new(x.count, x.all.shape[1])
        native.elu(x.own, cast(nn.ELU, elu).alpha, y.own)
        y = self._run(middle, y)
        out = self._convolve(layer.shortcut, x) if isinstance(layer.shortcut, Conv) else x
        self._convolve(cast(Conv, last), y, alpha, to=out)
        self.free.append(y.memory)
        return out

    def _convolve(self, layer: Conv, x: Positions, alpha: float = math.nan, to: Positions | None = None) -> Positions:
        """A convolution, and the ELU of an alpha, if it is a number; to: what is added before that, in place."""
        c, dilation, weights = layer.conv, layer.conv.dilation[0], self.weights[layer]
        around = x.padded(*layer.padding(x.count), layer.mode)
        out = to or self._new(math.ceil(x.count / layer.stride), c.out_channels)
        if is_narrow(layer):  # what each tap makes of every position is then moved to its place
            taps, outputs = c.kernel_size[0], c.out_channels
            made = torch.empty(len(around), taps * outputs)
            native.convolve(around, c.in_channels, weights[0], None, made)
            moved = made.as_strided((out.count, outputs, taps), (made.shape[1], 1, dilation * made.shape[1] + outputs))
            torch.add(moved.sum(-1), 0 if c.bias is None else c.bias, out=out.own)
            if not math.isnan(alpha):
                native.elu(out.own, alpha, out.own)
            return out
        for tap, weight in enumerate(weights):
            first, stride = around[tap * dilation :], layer.stride * c.in_channels
            bias, add = self.biases[layer] if tap == 0 else None, to is not None or tap > 0
            then = alpha if tap == len(weights) - 1 else math.nan
            native.convolve(first, stride, weight, bias, out.own, add, then)
        return out

    def _transposed(self, layer: ConvTranspose, x: Positions, alpha: float) -> Positions:
        c, stride = layer.conv, layer.conv.stride[0]
        out = self._new(x.count * stride, c.out_channels)
        first = self.room - layer.left  # what is trimmed lies in the room
        every = out.all[first : first + (x.count + 1) * stride].view(x.count + 1, stride * c.out_channels)
        around, (weight,), bias = x.padded(1, 1, "constant"), self.weights[layer], self.biases[layer]
        native.convolve(around, c.in_channels, weight, bias, every, alpha=alpha)
        return out


def is_narrow(layer: Conv) -> bool:
    """Whether all taps of a filter have so few outputs that C++ multiplies them at once."""
    taps, outputs = layer.conv.kernel_size[0], layer.conv.out_channels
    return layer.stride == 1 and taps > 1 and taps * outputs <= int(native.library().panel())


def filled_up(bias: Tensor | None, times: int = 1) -> Tensor | None:
    """A bias (O,) repeated, with zeros up to the last of native.cpp's panels; None for None."""
    if bias is None:
        return None
    bias = bias.detach().repeat(times)
    return F.pad(bias, (0, -len(bias) % native.library().panel()))


def packed(weight: Tensor) -> Tensor:
    """A weight (A, B, C, O), A * B inputs and C * O outputs, in native.cpp's panels; zeros fill up the last one."""
    panel = native.library().panel()
    if weight.shape[-1] % panel:
        weight = rearrange(weight, "a b c o -> a b 1 (c o)")
        weight = F.pad(weight, (0, -weight.shape[-1] % panel))
    return rearrange(weight, "a b c (o panel) -> (c o) (a b) panel", panel=panel).contiguous()
