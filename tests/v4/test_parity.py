"""Logits, codes and audio against transformers 4.57.6, each from a directory that it saved (more of them:
test_checkpoint_v4.py)."""

import functools
from typing import Any

import pytest
import torch
from transformers import MusicgenForConditionalGeneration

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.attention import BACKENDS
from tests import tiny

NEW_TOKENS, CODES = 12, 512  # codes enough for top-k 250 to choose
KINDS: dict[str, dict[str, Any]] = {
    "mono": {"codebooks": 4},
    "stereo, gated, no projection": {"codebooks": 8, "channels": 2, "gated": True, "text": {"d_model": 32}},
    "one codebook": {"codebooks": 1},
}


@functools.cache
def pair(
    kind: str = "mono", backend: str = "sdpa", dtype: torch.dtype = torch.float32
) -> tuple[MusicgenForConditionalGeneration, MusicGen]:
    return tiny.pair(tiny.musicgen_of(CODES, **KINDS[kind]), backend, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_text_states_and_logits_equal_those_of_transformers(backend: str, dtype: torch.dtype, kind: str) -> None:
    theirs, ours = pair(kind, backend, dtype)
    ids, mask = tiny.text(3)
    codes = tiny.codes(3, ours.decoder.config.codebooks, 11)
    # Its T5 knows eager attention alone.
    states = ours.text_encoder(ids, mask, backend="eager")
    assert torch.equal(states, theirs.text_encoder(ids, mask).last_hidden_state)
    memory = ours.decoder.project_text(states, mask)
    run = functools.partial(theirs, input_ids=ids, attention_mask=mask)
    expected = run(decoder_input_ids=codes.flatten(0, 1), use_cache=False).logits
    assert torch.equal(ours.decoder(codes, memory, mask, backend=backend).flatten(0, 1), expected)

    cache, past = ours.decoder.new_cache(3, 11, memory, mask), None
    for t in range(11):
        step = codes[..., t : t + 1]
        out = run(decoder_input_ids=step.flatten(0, 1), use_cache=True, past_key_values=past)
        past = out.past_key_values
        assert torch.equal(ours.decoder(step, cache=cache, backend=backend).flatten(0, 1), out.logits)


def inputs(name: str, channels: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Arguments of their generate() and of ours, and frames of the prompt."""
    ids, mask = tiny.text(3)
    texts = {"input_ids": ids, "attention_mask": mask}
    if name == "padded texts":
        return texts, {"text": (ids, mask)}, 0
    if name == "no text":
        nothing = {"input_ids": ids, "attention_mask": torch.zeros_like(mask)}
        return nothing, {"text": [None] * 3}, 0
    audio = tiny.noise(3, channels, 4 * tiny.HOP + 3)
    return texts | {"input_values": audio}, {"text": (ids, mask), "prompt": (audio, tiny.RATE)}, 5


SAMPLING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"do_sample": False}, {"greedy": True}),
    "top-k 250": ({"do_sample": True, "top_k": 250}, {"top_k": 250}),
    "top-p, temperature": (
        {"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.7},
        {"top_k": 0, "top_p": 0.9, "temperature": 0.7},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("name", ["padded texts", "no text", "audio prompt"])
def test_the_same_seed_gives_the_same_codes_and_audio(name: str, sampling: str, guidance: float, kind: str) -> None:
    theirs, ours = pair(kind)
    sizes = ours.decoder.config.codebooks, ours.decoder.config.channels
    arguments, own, prompt = inputs(name, sizes[1])
    their_options, our_options = SAMPLING[sampling]
    torch.manual_seed(5)
    codes, audio = tiny.theirs(theirs, **arguments, **their_options, guidance_scale=guidance, max_new_tokens=NEW_TOKENS)
    options = GenerationOptions(guidance_scale=guidance, **our_options, **tiny.clip(prompt, NEW_TOKENS, *sizes))
    torch.manual_seed(5)
    result = ours.generate(options=options, **own)
    assert torch.equal(result.codes, codes)
    assert torch.equal(result.audio, audio)
