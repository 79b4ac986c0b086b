"""musicgen_ref.hf against transformers 4.57.6: head masks and output tuples in eager attention, streams, lengths."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from musicgen_ref import hf
from tests import tiny

T = 9


@functools.cache
def pair(channels: int = 1) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = tiny.complete(Path(name), channels)
        kinds = (transformers.MusicgenForConditionalGeneration, hf.MusicgenForConditionalGeneration)
        theirs = tiny.opened(kinds[0], folder, attn_implementation="eager")
        return theirs, kinds[1].from_pretrained(folder, attn_implementation="eager")


def assert_same(ours: Any, theirs: Any) -> None:
    """fp32 within 1e-5 of the scale: the same products in another order."""
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    else:
        assert len(ours) == len(theirs) > 0
        for mine, their in zip(ours, theirs, strict=True):
            assert_same(mine, their)


def given(channels: int = 1) -> dict[str, Any]:
    ids, mask = tiny.text()
    codes = torch.randint(0, 257, (3 * 4 * channels, T), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": codes, "use_cache": False}


MASKS = [torch.rand(2, 4, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (1, 2)]


@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["self", "cross", "both"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_head_masks_and_tuples_equal_transformers(attention: str, which: tuple[int, ...], channels: int) -> None:
    """Ours with SDPA, too: theirs honours them in eager attention alone."""
    theirs, ours = pair(channels)
    names = ("decoder_head_mask", "decoder_cross_attn_head_mask")
    masks = {names[i]: MASKS[i] for i in which}
    arguments = given(channels) | {"output_attentions": True, "output_hidden_states": True}
    expected = theirs(**arguments, **masks)
    ours.set_attn_implementation(attention)
    made = ours(**arguments, **masks)
    assert list(made) == list(expected)
    for name in expected:
        assert_same(made[name], expected[name])
    assert_same(ours(**arguments, **masks, return_dict=False), theirs(**arguments, **masks, return_dict=False))
    assert (made.logits - ours(**arguments).logits).abs().max() > 0.01

    unprefixed = {name.removeprefix("decoder_"): mask for name, mask in masks.items()}
    lm = {"input_ids": arguments["decoder_input_ids"], "encoder_hidden_states": torch.randn(3, 7, 32)}
    assert_same(ours.decoder(**lm, **unprefixed).logits, theirs.decoder(**lm, **unprefixed).logits)


@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
@pytest.mark.parametrize("prompt", [0, 5])
def test_streams_equal_transformers(channels: int, prompt: int) -> None:
    """The last release that streams: the same prompt, the same tokens, step by step, then the end."""
    got: list[list[Any]] = []

    class Streamer:
        def __init__(self) -> None:
            self.got: list[Any] = []
            got.append(self.got)

        def put(self, value: Tensor) -> None:
            self.got.append(value)

        def end(self) -> None:
            self.got.append("end")

    ids, mask = tiny.text(2)
    arguments = {"input_ids": ids, "attention_mask": mask, "do_sample": True, "guidance_scale": 3.0}
    if prompt:
        arguments["decoder_input_ids"] = torch.randint(0, 256, (8 * channels, prompt))
    audio = []
    for model in pair(channels):
        torch.manual_seed(5)
        audio.append(model.generate(**arguments, max_new_tokens=11, streamer=Streamer()))
    assert torch.equal(*audio)
    theirs, ours = got
    assert len(ours) == len(theirs) == 13
    assert ours[-1] == theirs[-1] == "end"
    for step, (mine, their) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
        # Codebook k's last k codes of a prompt are known when its first step is drawn: ours streams them, theirs what
        # was drawn for them and dropped.
        known = torch.arange(4 * channels).div(channels, rounding_mode="floor").repeat(2) >= step
        rows = ~known if prompt and step else slice(None)
        assert torch.equal(mine[rows], their[rows])


@pytest.mark.parametrize("length", [12, 30])
def test_max_length_of_the_model_equals_transformers(length: int) -> None:
    """The documented meaning, which 5.23.0 no longer has: all columns, the start and the prompt among them."""
    ids, mask = tiny.text(2)
    audio = []
    for model in pair():
        model.generation_config.max_length = length
        torch.manual_seed(5)
        audio.append(model.generate(input_ids=ids, attention_mask=mask, do_sample=True))
        model.generation_config.max_length = 20 if model is pair()[0] else None
    assert torch.equal(*audio)
    assert audio[1].shape[-1] == (length - 4) * tiny.HOP
