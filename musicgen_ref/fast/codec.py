"""The codec's convolutions over a hundred frames at a time, channels last.

Convolved whole, 30 s of audio pass through tensors of 64 channels of 960,000 samples, 245 MB each, in and out of memory
at every layer. Cut into windows that overlap by as much as the layers reach, the numbers between layers stay in the
caches, and peak memory no longer grows with the clip. CPUs also multiply fastest where the channels of a position lie
side by side in memory, which torch offers for images: a window is convolved as one of height 1.
Measured on two cores for 30 s: decode 1.7 to 1.9 times, encode 1.4 to 1.5 times as fast. Where C++ has been compiled,
it computes all layers, the outer ones too, see seanet.py.

The LSTM and the layers around it see the whole clip as before. Sums are taken in another order: latents and audio of
clips longer than a window differ by 1e-6 of their scale, and a code may be the other of two that are equally near.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..encodec import LSTM, Conv, ConvTranspose, Encodec, Residual
from . import seanet

WINDOW = 100  # frames
KNOWN = (Conv, ConvTranspose, Residual, nn.ELU, nn.Conv1d, nn.ConvTranspose1d, nn.Sequential, nn.Identity)


class Windowed(nn.Sequential):
    """The layers of a SEANetEncoder or a SEANetDecoder, of which those from `first` up to `end` run over windows.

    frame: positions of a frame before all layers. before, after: see in_windows().
    """

    def __init__(self, plain: nn.Sequential, frame: int, first: int, end: int | None, before: int, after: int):
        super().__init__(*plain)
        self.frame, self.first, self.end, self.before, self.after = frame, first, end, before, after
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] <= WINDOW * self.frame:
            return cast(Tensor, super().forward(x))
        layers = list(self)
        whole, outer, rest = layers[: self.first], layers[self.first : self.end], layers[len(layers[: self.end]) :]
        return run(rest, in_windows(outer, run(whole, x), self.before, self.after)).contiguous()


def run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """One layer after the other, over all of the clip."""
    for are_lstms, group in groupby(layers, lambda layer: isinstance(layer, LSTM)):
        alike, known = list(group), (LSTM, nn.LSTM) if are_lstms else KNOWN
        if seanet.computes(x) and not is_changed(alike, known) and (not are_lstms or x.shape[1] % 16 == 0):
            x = seanet.run(alike, x)
        else:
            x = nn.Sequential(*alike)(x)
    return x


def is_changed(layers: Iterable[nn.Module], known: tuple[type[nn.Module], ...]) -> bool:
    """Whether something in these layers is of another class, such as peft's, or has hooks, which must be called."""
    inside = [part for layer in layers for part in layer.modules()]
    return any(type(part) not in known or part._forward_hooks or part._forward_pre_hooks for part in inside)


def in_windows(layers: Sequence[nn.Module], x: Tensor, before: int, after: int) -> Tensor:
    """Layers over x (B, C, N), WINDOW frames at a time.

    before, after: how many positions a frame has before the layers and after them. A norm over all of the time keeps
    the clip whole, as does a layer that somebody has changed.
    """
    if is_changed(layers, KNOWN):
        return run(layers, x)
    convolutions = seanet.Convolutions(layers) if seanet.computes(x) else None
    frames, margin, windows = math.ceil(x.shape[-1] / before), reach(layers, before), []
    x = rearrange(x, "b c n -> b n c").contiguous()
    for frame in range(0, frames, WINDOW):
        start, end = max(0, frame - margin), frame + WINDOW + margin
        window, at_end = x[:, start * before : end * before], start == 0 or end >= frames
        if convolutions:
            made = torch.stack([convolutions(item, at_end) for item in window])
        else:
            image = as_image(layers, rearrange(window, "b n c -> b c 1 n"), at_end)
            made = rearrange(image, "b c 1 n -> b n c")
        windows.append(made[:, (frame - start) * after :][:, : WINDOW * after])
    return rearrange(torch.cat(windows, dim=1), "b n c -> b c n")


def reach(layers: Iterable[nn.Module], positions: int) -> int:
    """Frames on either side that the output of a frame depends on; positions: of a frame before the layers."""
    frames, rate = 0.0, float(positions)
    for part in (part for layer in layers for part in layer.modules()):
        if isinstance(part, nn.Conv1d):
            frames += (part.kernel_size[0] - 1) * part.dilation[0] / rate
            rate /= part.stride[0]
        elif isinstance(part, nn.ConvTranspose1d):
            frames += part.kernel_size[0] / part.stride[0] / rate
            rate *= part.stride[0]
    return math.ceil(frames)


def as_image(layers: Iterable[nn.Module], x: Tensor, at_end: bool) -> Tensor:
    """What layers of the codec make of x (B, C, N), of the same as an image (B, C, 1, N) of height 1.

    at_end: whether the clip begins or ends in x; elsewhere the padding is in the margins, where any number will do.
    """
    free = not torch.is_grad_enabled()  # gradients may need what would be overwritten
    ours = False  # whether x is our own and may be overwritten, which saves asking for memory
    for layer in layers:
        if isinstance(layer, nn.ELU):
            x = F.elu(x, layer.alpha, inplace=ours)
        elif isinstance(layer, Residual):
            past = as_image([layer.shortcut], x, at_end)
            x = as_image(layer.block, x, at_end)
            x = x.add_(past) if free else x + past
        elif isinstance(layer, Conv):
            # From one channel to many torch forgets the order that was asked for.
            x = convolve(layer, x, at_end).contiguous(memory_format=torch.channels_last)
        elif isinstance(layer, ConvTranspose):
            t = layer.conv
            x = layer.trim(F.conv_transpose2d(x, t.weight[:, :, None], t.bias, (1, *t.stride)))
        else:
            continue  # nothing is done where there is no shortcut
        ours = free
    return x


def convolve(layer: Conv, x: Tensor, at_end: bool) -> Tensor:
    """A convolution of an image. What F.pad() makes is a copy: zeros that are only thought of on both sides do where
    they end up in the margins, and what they make too many on the right is cut off."""
    c, (left, right), length = layer.conv, layer.padding(x.shape[-1]), math.ceil(x.shape[-1] / layer.stride)
    stride, dilation = (1, *c.stride), (1, *c.dilation)
    if c.out_channels == 1 and c.stride == (1,):
        return to_one_channel(layer, x, left, right)
    if at_end or right > left:
        x, left = pad_image(x, left, right, layer.mode), 0
    return F.conv2d(x, c.weight[:, :, None], c.bias, stride, (0, left), dilation)[..., :length]


def to_one_channel(layer: Conv, x: Tensor, left: int, right: int) -> Tensor:
    """A convolution to one channel, for which oneDNN has no fast kernel: a convolution of kernel 1 makes what each tap
    makes of every position, which is then padded and moved to its place."""
    c = layer.conv
    taps = pad_image(F.conv2d(x, c.weight[0].t()[:, :, None, None]), left, right, layer.mode)
    length = taps.shape[-1] - c.dilation[0] * (c.kernel_size[0] - 1)
    moved = [taps[:, k : k + 1, :, k * c.dilation[0] :][..., :length] for k in range(c.kernel_size[0])]
    return torch.stack(moved).sum(0) + (0 if c.bias is None else c.bias)


def pad_image(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """encodec.pad() of an image."""
    short = max(left, right) - x.shape[-1] + 1 if mode == "reflect" else 0
    if short > 0:
        return F.pad(F.pad(x, (0, short)), (left, right, 0, 0), mode)[..., :-short]
    return F.pad(x, (left, right, 0, 0), mode) if left or right else x


def put_in(module: nn.Module) -> None:
    """Replace encoder and decoder of every EnCodec inside a module."""
    for codec in list(module.modules()):
        if isinstance(codec, Encodec) and not isinstance(codec.encoder, Windowed):
            encoder, decoder = cast(nn.Sequential, codec.encoder), cast(nn.Sequential, codec.decoder)
            hop, ratio = codec.config.hop, codec.config.ratios[0]
            codec.encoder = Windowed(encoder, hop, 0, -5, hop, ratio)  # up to the last strided convolution
            codec.decoder = Windowed(decoder, 1, 4, None, ratio, hop)  # from the first transposed one
