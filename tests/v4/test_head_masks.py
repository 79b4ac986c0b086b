"""Head masks against transformers 4.57.6, the last release that has them; it honours them in eager attention alone."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import MusicgenForConditionalGeneration

from musicgen_ref import MusicGen
from musicgen_ref.attention import BACKENDS, Trace
from tests import tiny

LAYERS, HEADS, STEPS = 3, 4, 9
KINDS: dict[str, dict[str, Any]] = {
    "mono": {"codebooks": 4},
    "stereo, no projection": {"codebooks": 8, "channels": 2, "text": {"d_model": 32}},
}


@functools.cache
def pair(kind: str = "mono") -> tuple[MusicgenForConditionalGeneration, MusicGen]:
    return tiny.pair(tiny.musicgen(**KINDS[kind], decoder={"num_hidden_layers": LAYERS}), "eager")


def factors(name: str, seed: int = 0) -> Tensor:
    """Head masks (layers, H) of each sort."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "ones": torch.ones(LAYERS, HEADS),
        "zeros": torch.zeros(LAYERS, HEADS),
        "pruned heads": (torch.rand(LAYERS, HEADS, generator=generator) < 0.6).float(),
        "powers of two": 2.0 ** torch.randint(-2, 2, (LAYERS, HEADS), generator=generator),
        "random": torch.randn(LAYERS, HEADS, generator=generator) * 2,
    }[name]


SORTS = ["ones", "zeros", "pruned heads", "powers of two", "random"]
# A factor on the weights or on their product with the values: the same to the bit where a multiplication is exact.
EXACT = SORTS[:-1]
# Which of the two attentions have a head mask.
WHICH = {"self": (True, False), "cross": (False, True), "both": (True, True)}


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """fp32 within 1e-5 of the scale: the same products in another order."""
    assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def run_theirs(model: MusicgenForConditionalGeneration, codes: Tensor, masks: list[Tensor | None], **more: Any) -> Any:
    ids, mask = tiny.text()
    return model(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=codes.flatten(0, 1),
        decoder_head_mask=masks[0],
        decoder_cross_attn_head_mask=masks[1],
        **{"use_cache": False} | more,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_head_masks_equal_those_of_transformers(backend: str, sort: str, which: str, kind: str) -> None:
    theirs, ours = pair(kind)
    codes = tiny.codes(3, ours.decoder.config.codebooks, STEPS, special=True)
    masks = [factors(sort, seed) if used else None for seed, used in enumerate(WHICH[which])]
    expected = run_theirs(theirs, codes, masks, output_hidden_states=True, output_attentions=True)
    trace = Trace(weights=True)
    memory, mask = ours.encode_text(tiny.text())
    given = {"self_head_mask": masks[0], "cross_head_mask": masks[1], "backend": backend}
    logits = ours.decoder(codes, memory, mask, trace=trace, **given)

    pairs = [
        (logits.flatten(0, 1), expected.logits),
        *zip(trace.hidden, expected.decoder_hidden_states, strict=True),
        *zip(trace.self_weights, expected.decoder_attentions, strict=True),
        *zip(trace.cross_weights, expected.cross_attentions, strict=True),
    ]
    assert len(pairs) == 1 + (LAYERS + 1) + 2 * LAYERS
    for mine, their in pairs:
        if backend == "eager" and sort in EXACT:
            assert torch.equal(mine, their)
        else:
            assert_near(mine, their)

    plain = ours.decoder(codes, memory, mask, backend=backend)
    if sort == "ones":
        assert torch.equal(logits, plain)
    else:
        assert (logits - plain).abs().max() > 0.1, "the case is real"


@pytest.mark.parametrize("sort", ["pruned heads", "powers of two", "random"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_head_masks_in_cached_steps_equal_those_of_transformers(backend: str, sort: str) -> None:
    theirs, ours = pair()
    codes = tiny.codes(3, 4, STEPS, special=True)
    masks = [factors(sort, seed) for seed in range(2)]
    cache, past = ours.decoder.new_cache(3, STEPS, *ours.encode_text(tiny.text())), None
    for start, end in [(0, 4), *((t, t + 1) for t in range(4, STEPS))]:
        part = codes[..., start:end]
        expected = run_theirs(theirs, part, masks, use_cache=True, past_key_values=past)
        past = expected.past_key_values
        logits = ours.decoder(part, cache=cache, backend=backend, self_head_mask=masks[0], cross_head_mask=masks[1])
        assert_near(logits.flatten(0, 1), expected.logits)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_head_masks_without_text_equal_those_of_the_causal_lm(backend: str) -> None:
    theirs, ours = pair()
    codes = tiny.codes(2, 4, STEPS)
    mask = factors("pruned heads")
    expected = theirs.decoder(input_ids=codes.flatten(0, 1), head_mask=mask, use_cache=False).logits
    logits = ours.decoder(codes, backend=backend, self_head_mask=mask).flatten(0, 1)
    assert_near(logits, expected)
    if backend == "eager":
        assert torch.equal(logits, expected)
