"""Checks of chapter 4."""

from collections.abc import Callable
from typing import Any

import torch

from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref import DecoderConfig
from musicgen_ref.attention import attend
from musicgen_ref.checkpoint.source import without_values
from musicgen_ref.decoder import Decoder, sinusoid


def check_causal_attention(answer: Callable[..., Any]) -> None:
    """The package's attend()."""
    q, k, v = (2 * tools.random(6, 9, seed=i) for i in range(3))
    right = attend(q[None, None], k[None, None], v[None, None], scale=9**-0.5, causal=True)[0, 0]
    got = tools.tensor(answer(q.clone(), k.clone(), v.clone()), (6, 9), "the output")
    if not torch.allclose(got[0], v[0], atol=1e-4):
        raise Wrong("step 0 has only itself to read: its output must be its own value")
    tools.close(got, right, "attention", "divide the scores by the root of D, and take the softmax over the keys")


def check_count_parameters(answer: Callable[..., Any]) -> None:
    """The package's decoder, counted: sizes that are all different, with a text projection and without."""
    for sizes in (
        {"vocab_size": 11, "codebooks": 3, "width": 12, "layers": 2, "heads": 2, "ffn": 20, "text_width": 7},
        {"vocab_size": 11, "codebooks": 1, "width": 12, "layers": 1, "heads": 3, "ffn": 5, "text_width": 12},
        {},
    ):
        config = DecoderConfig(**sizes)
        with without_values():
            decoder = Decoder(config)
        right, got = sum(p.numel() for p in decoder.parameters()), answer(config)
        if got != right:
            parts = {name: sum(p.numel() for p in part.parameters()) for name, part in decoder.named_children()}
            raise Wrong(f"{config} has {right:,}, got {got:,}: {got - right:+,}; there are {parts}")


def check_look_back(answer: Callable[..., Any]) -> None:
    """The package's sinusoid(), at positions of which the answer is not told."""
    for width in (16, 64):
        for position, steps in ((9, 3), (500, 3), (40, 40), (100, 1)):
            vector, right = sinusoid(torch.tensor([position, position - steps]), width)
            what = f"the vector {steps} steps before position {position}, width {width},"
            tools.close(answer(vector.clone(), steps), right, what, "cosines come first, then sines", atol=2e-3)
