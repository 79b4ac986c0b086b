"""Checks of chapter 3."""

from collections.abc import Callable
from typing import Any

import torch

from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref import T5Config
from musicgen_ref.attention import attend
from musicgen_ref.t5 import T5Encoder


def check_bucket(answer: Callable[..., Any]) -> None:
    """The row that the package looks up, for two sizes of table and distances to either side."""
    for buckets, longest in ((32, 128), (16, 20)):
        sizes = T5Config(8, 8, 1, 1, 8, 8, buckets=buckets, max_distance=longest)
        encoder = T5Encoder(sizes)
        with torch.no_grad():
            encoder.relative_bias.weight.copy_(torch.arange(float(buckets))[:, None])
            rows = encoder.position_bias(301)[0, 0, 150]  # of the query in the middle
        for distance in (0, -1, 1, -3, 4, -5, 7, -8, 9, -11, 13, -15, 19, -25, 30, 60, -100, 120, -140, 150):
            right, got = int(rows[150 + distance]), answer(distance, buckets, longest)
            if got != right:
                hint = "the sign picks a half of the table" if abs(distance) < buckets // 4 else "far ones share rows"
                raise Wrong(f"bucket({distance}, {buckets}, {longest}) is {right}, got {got}: {hint}")


def check_t5_attention(answer: Callable[..., Any]) -> None:
    """The package's attend() with T5's scale of 1, with padding and without."""
    q, k, v = (tools.random(5, 4, seed=i) for i in range(3))
    bias = tools.random(5, 5, seed=3)
    for kept in (5, 3):
        mask = torch.arange(5) < kept
        seen = torch.where(mask, bias, torch.finfo(bias.dtype).min)
        right = attend(q[None, None], k[None, None], v[None, None], scale=1.0, mask=seen[None, None])[0, 0]
        got = answer(q.clone(), k.clone(), v.clone(), bias.clone(), mask)
        hint = (
            "T5 does not divide by the root of D, and the bias counts" if kept == 5 else "padding has no weight at all"
        )
        tools.close(got, right, f"attention with {kept} of 5 tokens", hint)
