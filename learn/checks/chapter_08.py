"""Checks of chapter 8."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref import DecoderConfig
from musicgen_ref.decoder import Decoder


@torch.no_grad()
def check_bytes_a_step(answer: Callable[..., Any]) -> None:
    """What a decoder calls in a step, seen by hooks, and what its cache holds."""
    sizes = {"vocab_size": 11, "codebooks": 3, "width": 12, "layers": 2, "heads": 2, "ffn": 20, "text_width": 7}
    config = DecoderConfig(**sizes)
    decoder = Decoder(config).eval()
    for rows, position, size in ((1, 0, 4), (2, 0, 2), (2, 7, 4)):
        cache = decoder.new_cache(rows, 9, torch.zeros(rows, 5, 12))
        cache.length = position
        called: list[int] = []
        hooks = [
            part.register_forward_hook(lambda part, *_, called=called: called.append(part.weight.numel()))
            for part in decoder.modules()
            if isinstance(part, nn.Linear)
        ]
        decoder(torch.zeros(rows, 3, 1, dtype=torch.long), cache=cache)
        for hook in hooks:
            hook.remove()
        held = sum(tensor[:, :, :position].numel() for tensor in (*cache.keys, *cache.values))
        right, got = size * (sum(called) + held), answer(config, rows, position, size)
        if got != right:
            raise Wrong(
                f"{config}, {rows} rows behind {position} steps: {right:,} bytes, got {got:,}; of these the matrices "
                f"are {size * sum(called):,} and the cache {size * held:,}"
            )


def check_attainable(answer: Callable[..., Any]) -> None:
    """Work on either side of the ridge, and on it."""
    for work, moved, right in ((1e9, 1e9, 0.1), (1e12, 1e9, 10.0), (1e10, 1e9, 0.1)):
        got = answer(work, moved, 1e11, 1e10)
        if abs(got - right) > 1e-9 * right:
            raise Wrong(f"{work:g} operations on {moved:g} bytes at 1e11 and 1e10 a second take {right} s, got {got}")


def check_round_rows(answer: Callable[..., Any]) -> None:
    """Half a scale at most; rows of very different sizes, and one of zeros."""
    weight = tools.random(6, 30) * torch.tensor([1.0, 1e-3, 50.0, 1.0, 0.0, 7.0])[:, None]
    got = answer(weight.clone())
    if not isinstance(got, tuple) or len(got) != 2:
        raise Wrong("the answer must be a pair: the whole numbers and the scales")
    whole, scale = tools.tensor(got[0], (6, 30), "the whole numbers"), tools.tensor(got[1], (6, 1), "the scales")
    if whole.dtype != torch.int8:
        raise Wrong(f"the whole numbers must be of type int8, got {whole.dtype}")
    if not torch.isfinite(scale).all():
        raise Wrong("a scale is not finite: what is the scale of a row of zeros?")
    restored, largest = whole.float() * scale, weight.abs().amax(1, keepdim=True)
    for row in range(6):
        if row != 4 and int(whole[row].abs().max()) != 127:
            raise Wrong(f"the largest number of row {row} must become 127 or -127, got {int(whole[row].abs().max())}")
        off = float((restored[row] - weight[row]).abs().max())
        if off > 0.501 * float(largest[row]) / 127:
            raise Wrong(
                f"row {row} is off by {off:.3g}, half a scale is {float(largest[row]) / 254:.3g}: round, not cut"
            )
