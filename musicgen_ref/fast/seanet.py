"""The codec's layers on CPUs in compiled C++: native.cpp says how they are multiplied.

Between the layers the channels of a position lie side by side, and before the first position and after the last there
is room for what the next layer pads, so that nothing is copied for it. Where a filter is two or three strides long,
four products of matrices do what six did, see winograd(). Latents and audio are as near to the exact ones as those of
the plain layers: their error is at most 1.7 times as large, as a rule smaller for audio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..encodec import LSTM, Conv, ConvTranspose, Residual, pad
from . import native

NARROW = 4  # outputs of which each is computed alone: more make a panel of native.cpp
SHORTEST = 128  # numbers of a row that are worth adding up for Winograd's products


def put_in(module: nn.Module) -> None:
    """Move the weights of LSTMs, which every frame reads anew, into large pages."""
    lstms = [layer for layer in module.modules() if isinstance(layer, nn.LSTM)]
    native.move_together([weight for layer in lstms for weight in layer.parameters()])


def computes(x: Tensor) -> bool:
    """Whether C++ was compiled, and x is what it computes with."""
    return native.is_built() and native.takes(x) and x.dtype == torch.float32


def run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Layers over x (B, C, N): either LSTMs or others."""
    if isinstance(layers[0], LSTM):
        for layer in layers:
            x = recurrent(cast(LSTM, layer), x)
        return x
    made = list(map(Convolutions(layers), rearrange(x, "b c n -> b n c")))
    return rearrange(made, "b n c -> b c n")


def recurrent(layer: LSTM, x: Tensor) -> Tensor:
    """The forward() of an LSTM whose width is a multiple of 16."""
    past = y = rearrange(x, "b c t -> t b c").contiguous()
    for of_input, of_state, *biases in layer.lstm.all_weights:
        y = native.lstm(F.linear(y, of_input, biases[0] + biases[1]), of_state.detach().contiguous())
    return rearrange(y.add_(past), "t b c -> b c t")


class Positions:
    """Positions (N, C) with room for others before and after them, in some memory (numbers,)."""

    def __init__(self, count: int, channels: int, room: int, memory: Tensor):
        self.count, self.channels, self.room, self.memory = count, channels, room, memory
        self.all = memory[: (count + 2 * room) * channels].view(-1, channels)

    @property
    def own(self) -> Tensor:
        """The positions alone."""
        return self.all[self.room : self.room + self.count]

    def first(self, count: int) -> Tensor:
        """So many of them, and of the room behind them."""
        return self.all[self.room : self.room + count]

    def padded(self, left: int, right: int, mode: str, more: int = 0) -> Tensor:
        """Pad in place, as encodec.pad() does, with some more zeros behind that: (left + N + right + more, C)."""
        edge, begin, end = max(left, right) + 1, self.room, self.room + self.count
        self.all[begin - left : begin] = 0
        self.all[end:] = 0
        if mode != "constant" and (left or right):
            ends = self.own if self.count <= 2 * edge else torch.cat([self.own[:edge], self.own[-edge:]])
            around = pad(ends.t(), left, right, mode).t()
            self.all[begin - left : begin], self.all[end : end + right] = around[:left], around[len(around) - right :]
        return self.all[begin - left : end + right + more]


@dataclass(frozen=True)
class Filters:
    """The weights of a layer, in the order in which C++ reads them.

    at_once: rows that Winograd's products make at once, see winograd(); 1 where it has others.
    """

    weights: list[Tensor]
    bias: Tensor | None
    at_once: int = 1


class Convolutions:
    """Layers of a SEANet without its LSTM, from positions (N, C) to positions (M, O).

    Their weights are copied when this is made.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers, self.room, self.at_end = layers, 1, True
        self.free: list[Tensor] = []  # memory in which nothing lies: to ask for more takes longer than to fill it
        self.filters: dict[nn.Module, Filters] = {}
        for part in (part for layer in layers for part in layer.modules()):
            if isinstance(part, Conv):
                self.filters[part] = filters(part)
                self.room = max(self.room, part.left + part.right + 3 * part.stride)
            elif isinstance(part, ConvTranspose):
                self.filters[part] = filters_of_transposed(part)
                self.room = max(self.room, 3 * part.conv.stride[0])

    def __call__(self, x: Tensor, at_end: bool = True) -> Tensor:
        """x: (N, C). at_end: whether the clip begins or ends in it; elsewhere any padding will do."""
        self.at_end = at_end
        positions = self._new(*x.shape)
        positions.own.copy_(x)
        made = self._run(self.layers, positions)
        self.free.append(made.memory)
        return made.own.clone()

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
        elu, conv, next_elu, last = cast(tuple[nn.ELU, Conv, nn.ELU, Conv], tuple(layer.block))
        y, middle = self._new(x.count, conv.conv.in_channels), self._new(x.count, conv.conv.out_channels)
        native.elu(x.own, elu.alpha, y.own)
        out = self._convolve(layer.shortcut, x) if isinstance(layer.shortcut, Conv) else x
        convolutions = self._convolutions(conv, y, middle, next_elu.alpha)
        # The last one, of kernel 1, reads what the one before it has just made, as many positions at once.
        at_once, (weight,), bias = self.filters[conv].at_once, self.filters[last].weights, self.filters[last].bias
        given, made = (each.first(rounded_up(each.count, at_once)) for each in (middle, out))
        for i in range(at_once):
            rows, stride = made[i::at_once], at_once * last.conv.in_channels
            convolutions.append(native.Convolution(given[i:], stride, weight, rows, bias, before=rows, alpha=alpha))
        native.convolve(convolutions)
        self.free += [y.memory, middle.memory]
        return out

    def _convolve(self, layer: Conv, x: Positions, alpha: float = math.nan) -> Positions:
        out = self._new(math.ceil(x.count / layer.stride), layer.conv.out_channels)
        native.convolve(self._convolutions(layer, x, out, alpha))
        return out

    def _convolutions(self, layer: Conv, x: Positions, out: Positions, alpha: float) -> list[native.Convolution]:
        """What makes a convolution, and the ELU of an alpha, if it is a number."""
        f, stride, mode = self.filters[layer], layer.stride * x.channels, layer.mode if self.at_end else "constant"
        rows = out.first(rounded_up(out.count, f.at_once))
        around = x.padded(*layer.padding(x.count), mode, more=(len(rows) - out.count) * layer.stride)
        if f.at_once > 1:
            return winograd(f, around, stride, rows, alpha)
        made = []
        for i, weight in enumerate(f.weights):
            given, before = around[i * layer.conv.dilation[0] :], rows if i > 0 else None
            made.append(native.Convolution(given, stride, weight, rows, None if i > 0 else f.bias, before=before))
        made[-1].alpha = alpha
        return made

    def _transposed(self, layer: ConvTranspose, x: Positions, alpha: float) -> Positions:
        f, stride = self.filters[layer], layer.conv.stride[0]
        out = self._new(x.count * stride, layer.conv.out_channels)
        # What is trimmed, or made beside that, ends up in the room.
        first, rows = self.room - layer.left, rounded_up(x.count + 1, f.at_once)
        made = out.all[first : first + rows * stride].view(rows, stride * out.channels)
        around = x.padded(1, 1, "constant", more=rows - (x.count + 1))
        native.convolve(winograd(f, around, x.channels, made, alpha))
        return out


def filters(layer: Conv) -> Filters:
    """Those of a convolution."""
    c = layer.conv
    (outputs, inputs, kernel), dilation, bias = c.weight.shape, c.dilation[0], filled_up(c.bias)
    # A transpose comes first: torch is slow where more than two dimensions change places at once.
    taps = rearrange(c.weight.detach().flatten(1).t().contiguous(), "(c k) o -> k c 1 o", c=inputs)
    if outputs <= NARROW and dilation == 1:
        return Filters([rearrange(taps, "k c 1 o -> o (k c)").contiguous()], bias)
    pieces, rest = divmod(kernel, layer.stride)
    if pieces in (2, 3) and not rest and dilation == 1 and layer.stride * inputs >= SHORTEST:
        return Filters(winograd_filters(*map(packed, taps.chunk(pieces))), bias, 5 - pieces)
    # With dilation, what they read is not in one piece: each is a product of its own.
    return Filters(list(map(packed, taps.split(1 if dilation > 1 else kernel))), bias)


def filters_of_transposed(layer: ConvTranspose) -> Filters:
    """A frame's positions come from the frame before, through the filter's second half, and from itself."""
    own, later = map(packed, rearrange(layer.conv.weight.detach(), "c o (h s) -> h 1 c s o", h=2))
    return Filters(winograd_filters(later, own), filled_up(layer.conv.bias, layer.conv.stride[0]), 3)


def winograd_filters(first: Tensor, second: Tensor, third: Tensor | None = None) -> list[Tensor]:
    """Those that winograd() needs for 2 or 3 filters."""
    half_sum = torch.lerp(first if third is None else first + third, second, 0.5)
    return [first, half_sum, half_sum - second, second if third is None else third]


def winograd(f: Filters, x: Tensor, size: int, out: Tensor, alpha: float) -> list[native.Convolution]:
    """What makes row n of out (N, O) of as many rows of x as there are filters, 2 or 3, from row n on, of `size`
    numbers each.

    Four products in place of six make three rows of two filters, or two of three. With the filters A, B or A, B, C:

        s = (x1 + x2) (A + B [+ C]) / 2,  d = (x2 - x1) (A - B [+ C]) / 2
        three rows of two filters: s + d + (x0 - x2) A, s - d, s + d + (x3 - x1) B
        two rows of three filters: s + d + (x0 - x2) A, s - d + (x3 - x1) C

    (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308.)
    """
    first, half_sum, half_difference, last = f.weights
    x0, x1, x2, x3 = (x.view(-1)[i * size :] for i in range(4))
    rows = [out[i :: f.at_once] for i in range(f.at_once)]
    product, difference = partial(native.Convolution, stride=f.at_once * size), rows[1]
    both, last_alpha = (rows[2], alpha) if f.at_once == 3 else (rows[0], math.nan)
    return [
        product(x1, weight=half_sum, out=difference, bias=f.bias, other=x2),
        product(
            x2, weight=half_difference, out=both, other=x1, sign=-1, before=difference, minus=difference,
            minus_alpha=last_alpha,
        ),
        product(x0, weight=first, out=rows[0], other=x2, sign=-1, before=both, alpha=alpha),
        product(x3, weight=last, out=rows[-1], other=x1, sign=-1, before=rows[-1], alpha=alpha),
    ]  # fmt: skip


def rounded_up(count: int, unit: int) -> int:
    """The next multiple of a unit."""
    return count + -count % unit


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
