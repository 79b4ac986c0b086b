"""Checks of chapter 5."""

from collections.abc import Callable
from typing import Any

import torch

from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref.sampling import top_k, top_p


def check_entropy_bits(answer: Callable[..., Any]) -> None:
    """Known values, any shape, and logits that were cut."""
    for size, bits in ((2, 1.0), (256, 8.0)):
        got = tools.tensor(answer(torch.zeros(3, 2, size)), (3, 2), f"the entropy of (3, 2, {size}) logits")
        hint = "log2, not the natural logarithm"
        tools.close(got, torch.full((3, 2), bits), f"the entropy of {size} equal logits", hint)
    sure = answer(torch.tensor([0.0, -torch.inf, -torch.inf]))
    tools.close(sure, torch.tensor(0.0), "the entropy of a single code", "0 * log 0 must be 0, not NaN")
    logits = tools.random(50, seed=3)
    right = torch.distributions.Categorical(logits=logits[logits >= logits.topk(9).values[-1]]).entropy() / 0.6931472
    tools.close(answer(top_k(logits, 9)), right, "the entropy of logits of which top-k kept 9")


def check_nucleus(answer: Callable[..., Any]) -> None:
    """The worked number, then the package's top_p()."""
    worked, exact = [0.1, 0.5, 0.15, 0.25], [0.125, 0.5, 0.125, 0.25]  # sums of the second are exact
    crosses, reaches = "the code that crosses p is kept too", "where a sum is p itself, p is reached"
    for probs, p, right, hint in (
        (worked, 0.7, [False, True, False, True], crosses),
        (worked, 0.4, [False, True, False, False], crosses),
        (worked, 0.99, [True] * 4, crosses),
        (exact, 0.75, [False, True, False, True], reaches),
        (exact, 0.5, [False, True, False, False], reaches),
    ):
        got = [bool(kept) for kept in tools.tensor(answer(torch.tensor(probs), p), (4,), "what is kept")]
        tools.same(got, right, f"what p = {p} keeps of {probs}", hint)
    for seed in range(5):
        logits = 3 * tools.random(64, seed=seed)
        kept = top_p(logits, 0.8).isfinite()
        if not torch.equal(tools.tensor(answer(logits.softmax(-1), 0.8), (64,), "what is kept"), kept):
            raise Wrong(f"of 64 random probabilities p = 0.8 keeps {int(kept.sum())} codes, and yours are others")


def check_temperature_for(answer: Callable[..., Any]) -> None:
    """The entropy at the temperature that the answer gives."""
    for seed, scale in ((0, 1.0), (1, 5.0), (2, 0.2)):
        logits = scale * tools.random(64, seed=seed)
        for bits in (0.5, 3.0, 5.5):
            temperature = float(answer(logits.clone(), bits))
            if not temperature > 0:
                raise Wrong(f"a temperature must be above 0, got {temperature}")
            got = float(
                torch.distributions.Categorical(logits=logits.double() / temperature).entropy() / 0.6931471805599453
            )
            if abs(got - bits) > 2e-3:
                raise Wrong(f"at temperature {temperature:.4g} the entropy is {got:.3f} bits, asked for {bits}")
