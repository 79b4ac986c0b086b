"""Checks of chapter 7."""

import math
from collections.abc import Callable
from typing import Any

import torch

from learn.checks import tools
from learn.checks.tools import Wrong


def check_unigram_entropy(answer: Callable[..., Any]) -> None:
    """Codebooks of known entropy, and random ones."""
    codes = torch.stack([torch.tensor([0, 1, 2, 3]), torch.tensor([5, 5, 5, 5]), torch.tensor([0, 0, 7, 7])])[None]
    right = torch.tensor([math.log(4), 0.0, math.log(2)])
    hint = "nats, for each codebook; codes that never occur add nothing"
    tools.close(answer(codes.clone(), 8), right, f"the entropies of {codes[0].tolist()}", hint)
    codes = torch.randint(0, 9, (6, 2, 20), generator=torch.Generator().manual_seed(0)) // torch.tensor([1, 2])[:, None]
    shares = torch.stack([torch.bincount(codes[:, k].flatten(), minlength=9) for k in range(2)]).double() / 120
    right = torch.distributions.Categorical(probs=shares).entropy().float()
    tools.close(answer(codes.clone(), 9), right, "the entropies of 6 clips", "count over all clips together")


def check_gap(answer: Callable[..., Any]) -> None:
    """Losses that differ much between clips and little within one."""
    own = 3 + tools.random(20)
    other = own + 0.05 + 0.02 * tools.random(20, seed=1)
    difference = (other - own).double()
    right = float(difference.mean()), float(difference.std() / 20**0.5)
    got = tuple(float(part) for part in answer(own.clone(), other.clone()))
    if len(got) != 2:
        raise Wrong(f"the answer must be a pair, got {got}")
    if abs(got[0] - right[0]) > 1e-4:
        raise Wrong(f"the gap is {right[0]:.4f}, got {got[0]:.4f}: above 0 where another's caption makes losses larger")
    if abs(got[1] - right[1]) > 1e-5:
        raise Wrong(
            f"the standard error is {right[1]:.5f}, got {got[1]:.5f}: of the differences clip by clip, "
            "their standard deviation over the root of n"
        )


def check_leave_out(answer: Callable[..., Any]) -> None:
    """How often, that nothing else changes, and that the generator decides."""
    texts = [f"text {i}" for i in range(4000)]
    drawn = answer(list(texts), 0.2, torch.Generator().manual_seed(0))
    if len(drawn) != len(texts) or any(new is not None and new != old for new, old in zip(drawn, texts, strict=True)):
        raise Wrong("every text must stay in its place, or be None there")
    left = sum(text is None for text in drawn) / len(texts)
    if not 0.17 < left < 0.23:
        raise Wrong(f"with a share of 0.2, {left:.3f} of 4,000 texts were left out")
    if drawn != answer(list(texts), 0.2, torch.Generator().manual_seed(0)):
        raise Wrong("the same seed must leave out the same texts: draw from the generator alone")
    if drawn == answer(list(texts), 0.2, torch.Generator().manual_seed(1)):
        raise Wrong("another seed must leave out other texts: draw from the generator")
    counts = {
        sum(text is None for text in answer(texts[:10], 0.5, torch.Generator().manual_seed(s))) for s in range(20)
    }
    if len(counts) == 1:
        raise Wrong(f"of 10 texts exactly {counts.pop()} are left out each time: each text is to be drawn by itself")
