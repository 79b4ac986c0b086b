"""Checks of chapter 9."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from learn import bugs
from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref import DecoderConfig
from musicgen_ref.decoder import Decoder


def check_relative_error(answer: Callable[..., Any]) -> None:
    """Known differences, and what could fool a comparison."""
    a = torch.tensor([[1.0, -4.0], [0.0, 2.0]])
    zeros, short = torch.zeros(2, 2), a[:1]
    for ours, theirs, right, why in (
        (a, a, 0.0, "equal tensors"),
        (a + torch.tensor([0.0, 0.4]), a, 0.1, "0.4 off, where the largest number is -4"),
        (a - torch.tensor([0.4, 0.0]), a, 0.1, "0.4 less: a difference has no sign"),
        (a.masked_fill(a == 2, torch.nan), a, math.inf, "a NaN in ours"),
        (short, a, math.inf, "shapes that differ, but would broadcast"),
        (zeros, zeros, 0.0, "zeros against zeros"),
    ):
        got = float(answer(ours.clone(), theirs.clone()))
        if not (got == right or abs(got - right) < 1e-6):
            raise Wrong(f"{why}: must be {right:g}, got {got:g}")


def check_find_bug(answer: Callable[..., Any]) -> None:
    """Six bugs in a small decoder whose weights are all drawn."""
    sizes = {"vocab_size": 11, "codebooks": 3, "width": 12, "layers": 3, "heads": 2, "ffn": 20, "text_width": 7}
    right = Decoder(DecoderConfig(**sizes, dropout=0.0)).eval()
    with torch.no_grad():
        for i, p in enumerate(right.parameters()):
            p.copy_(tools.random(*p.shape, seed=i))
    codes = torch.randint(0, 11, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    states, mask = tools.random(2, 4, 7), torch.ones(2, 4, dtype=torch.bool)

    def run(decoder: nn.Module) -> Tensor:
        return decoder(codes, decoder.project_text(states, mask), mask)

    for name, (_, where) in bugs.BUGS.items():
        got = answer(right, bugs.plant(right, name), run)
        if got != where:
            modules = dict(right.named_modules())
            inside = got in modules and where.startswith(f"{got}.")
            hint = (
                "that module contains the one with the bug: go further in"
                if inside
                else "that one was already given something else"
                if got in modules
                else "that is no module's name"
            )
            raise Wrong(f"of the bug {name!r} the answer is {got!r}: {hint}")
