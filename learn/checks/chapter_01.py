"""Checks of chapter 1."""

from collections.abc import Callable
from typing import Any

import torch

from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref import EncodecConfig
from musicgen_ref.encodec import Conv, ResidualVectorQuantizer


def check_bits_per_second(answer: Callable[..., Any]) -> None:
    """MusicGen's, this demo's, and one whose size is no power of two."""
    for rate, ratios, codebooks, size, right in (
        (32000, (8, 5, 4, 4), 4, 2048, 2200),
        (16000, (2, 2, 2, 5, 8), 4, 256, 1600),
        (24000, (8, 5, 4, 2), 1, 1024, 750),
    ):
        got = answer(rate, ratios, codebooks, size)
        if abs(got - right) > 1e-6 * right:
            raise Wrong(
                f"{rate} Hz, strides {ratios}, {codebooks} codebooks of {size}: must be {right}, got {got}: "
                "frames a second, times codes a frame, times bits a code"
            )


def check_residual_quantise(answer: Callable[..., Any]) -> None:
    """The package's quantiser, on latents for which the order and the rest matter."""
    quantizer = ResidualVectorQuantizer(3, 16, 5)
    quantizer.codebooks = tools.random(3, 16, 5) * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    latents = tools.random(40, 5, seed=1)
    right = quantizer.encode(latents.T[None], 3)[0]
    got = tools.tensor(answer(latents.clone(), quantizer.codebooks.clone()), (3, 40), "the codes")
    if not torch.equal(got[0].long(), right[0]):
        raise Wrong("already the first codebook's codes are not those of the entries nearest to the latents")
    if not torch.equal(got.long(), right):
        k = int((got.long() != right).any(dim=1).float().argmax())
        nearest = torch.cdist(latents, quantizer.codebooks[k]).argmin(dim=1)
        hint = (
            "they are nearest to the latents themselves" if torch.equal(got[k].long(), nearest) else "look at the rest"
        )
        raise Wrong(f"the codes of codebook {k} (from 0) must be nearest to what the ones before left over: {hint}")


def check_padding(answer: Callable[..., Any]) -> None:
    """encodec's convolution, over lengths that end on a stride and lengths that do not."""
    for kernel, stride in ((16, 8), (7, 1), (10, 5), (7, 4)):
        conv = Conv(EncodecConfig(), 1, 1, kernel, stride)
        for samples in (100, 101, 104, 7 * stride):
            right = conv.padding(samples)
            got = tuple(answer(samples, kernel, stride))
            tools.same(
                got, right, f"padding({samples}, {kernel}, {stride})", "left, then right with the last stride filled"
            )
