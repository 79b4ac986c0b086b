"""musicgen_ref.hf's forward passes against transformers 5.23.0, argument by argument, and what errors say."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from musicgen_ref import hf
from tests import tiny

T = 9
Pair = tuple[Any, Any]


@functools.cache
def pair(channels: int = 1, attention: str = "eager") -> Pair:
    """Both libraries' models of one directory, with one attention."""
    with tempfile.TemporaryDirectory() as name:
        folder = tiny.complete(Path(name), channels)
        backends = {"text_encoder": attention, "decoder": attention, "audio_encoder": "eager"}
        theirs = tiny.opened(transformers.MusicgenForConditionalGeneration, folder, attn_implementation=backends)
        ours = hf.MusicgenForConditionalGeneration.from_pretrained(folder, attn_implementation=attention)
    theirs.config.decoder.decoder_start_token_id = 256  # what labels alone are shifted behind
    return theirs, ours


def given(channels: int = 1, **more: Any) -> dict[str, Any]:
    """Three texts, two of them padded, and delayed codes (B * K, T)."""
    ids, mask = tiny.text()
    codes = torch.randint(0, 257, (3 * 4 * channels, T), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": codes} | more


def assert_same(ours: Any, theirs: Any, name: str = "") -> None:
    """Equal within 1e-5 of the scale: a cache of another memory layout, or SDPA's kernel, sums in another order."""
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor)
        assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()), msg=lambda m: f"{name}: {m}")
    else:
        assert isinstance(theirs, tuple)
        assert len(ours) == len(theirs) > 0, name
        for i, (mine, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, their, f"{name}[{i}]")


def compare(theirs: Any, ours: Any, fields: int) -> None:
    """Every field, by name and by position, but the caches, which have no common type."""
    assert list(ours) == list(theirs)
    assert len(ours) == fields
    for i, (name, value) in enumerate(theirs.items()):
        if name != "past_key_values":
            assert_same(ours[name], value, name)
            assert ours[i] is ours[name] is getattr(ours, name)


SHOW = {"output_attentions": True, "output_hidden_states": True}


def embeddings(width: int, rows: int) -> Tensor:
    return torch.randn(3, rows, width, generator=torch.Generator().manual_seed(2))


def states() -> Tensor:
    return embeddings(24, 7)


LABELS = torch.randint(0, 257, (3, T, 4), generator=torch.Generator().manual_seed(3)).masked_fill(
    torch.rand(3, T, 4, generator=torch.Generator().manual_seed(4)) < 0.2, -100
)
# Steps that may not be seen, but the first: what a step that sees nothing gives differs between attentions.
HOLES = torch.ones(3, T, dtype=torch.long)
HOLES[1, 1:3] = HOLES[2, 2:6] = 0
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "text and codes": ({}, 3),
    "no cache": ({"use_cache": False}, 2),
    "everything shown": ({"use_cache": False, **SHOW}, 7),
    "no text mask": ({"attention_mask": None}, 3),
    "nothing but mask": ({"attention_mask": torch.zeros(3, 7, dtype=torch.long)}, 3),
    "mask of steps": ({"decoder_attention_mask": HOLES, "use_cache": False, **SHOW}, 7),
    "encoder_outputs": ({"input_ids": None, "encoder_outputs": (states(),)}, 3),
    "inputs_embeds": ({"input_ids": None, "inputs_embeds": states()}, 3),
    "labels alone": ({"decoder_input_ids": None, "labels": LABELS}, 4),
    "labels and codes": ({"labels": LABELS}, 4),
    "labels of the last steps": ({"labels": LABELS[:, :4]}, 4),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_forward_equals_transformers(case: str) -> None:
    theirs, ours = pair()
    change, fields = CASES[case]
    arguments = given(**change)
    compare(theirs(**arguments), ours(**arguments), fields)
    tuples = theirs(**arguments, return_dict=False), ours(**arguments, return_dict=False)
    assert type(tuples[1]) is tuple
    assert len(tuples[0]) == len(tuples[1]) == fields


@pytest.mark.parametrize("case", ["text and codes", "mask of steps"])
@torch.no_grad()
def test_forward_with_sdpa_equals_transformers_and_shows_attentions(case: str) -> None:
    theirs, ours = pair(2, "sdpa")
    arguments = given(2, **CASES[case][0])
    expected, made = theirs(**arguments), ours(**arguments)
    assert_same(made.logits, expected.logits)
    assert_same(made.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    shown = ours(**arguments | SHOW)
    assert not theirs(**arguments | SHOW).cross_attentions, "transformers has none with SDPA"
    eager = pair(2, "eager")[0](**arguments | SHOW)
    for name in ("decoder_attentions", "cross_attentions", "encoder_attentions", "decoder_hidden_states"):
        assert_same(shown[name], eager[name], name)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_steps_from_the_cache_equal_transformers(attention: str) -> None:
    theirs, ours = pair(1, attention)
    arguments = given()
    codes, pasts = arguments.pop("decoder_input_ids"), [None, None]
    for start, end in [(0, 4), (4, 5), (5, T)]:
        mask = {"decoder_attention_mask": HOLES[:, :end]}
        outs = [
            model(**arguments, **mask, decoder_input_ids=codes[:, start:end], past_key_values=past)
            for model, past in zip((theirs, ours), pasts, strict=True)
        ]
        pasts = [out.past_key_values for out in outs]
        assert_same(outs[1].logits, outs[0].logits)
        assert pasts[1].get_seq_length() == pasts[0].get_seq_length() == end
    k, v, text_k, text_v = pasts[1][0]
    assert k.shape == v.shape == (3, 4, T, 8)
    assert text_k.shape == text_v.shape == (3, 4, 7, 8)


@pytest.mark.parametrize(("channels", "given_channels"), [(1, 1), (2, 1)])
@torch.no_grad()
def test_audio_in_place_of_codes_equals_transformers(channels: int, given_channels: int) -> None:
    theirs, ours = pair(channels)
    arguments = given(channels, decoder_input_ids=None, input_values=tiny.noise(3, given_channels, 77))
    arguments["padding_mask"] = (torch.arange(77) >= torch.tensor([[0], [9], [30]])).int()
    expected, made = theirs(**arguments), ours(**arguments)
    assert made.logits.shape == (3 * 4 * channels, 10, 256)
    assert_same(made.logits, expected.logits)


@torch.no_grad()
def test_stereo_audio_in_place_of_codes() -> None:
    """Where transformers fails in its first convolution."""
    _, ours = pair(2)
    audio = tiny.noise(3, 2, 77)
    arguments = given(2, decoder_input_ids=None)
    codes = ours.core.encode(audio, tiny.RATE).flatten(0, 1)
    expected = ours(**arguments | {"decoder_input_ids": codes}).logits
    assert torch.equal(ours(**arguments, input_values=audio).logits, expected)


@torch.no_grad()
def test_decoder_inputs_embeds_are_the_sum_of_codes() -> None:
    """transformers gives every step the position of the first: here they equal the codes they stand for."""
    _, ours = pair()
    arguments = given()
    codes = arguments.pop("decoder_input_ids")
    embeds = ours.core.decoder.embed_codes(codes.view(3, 4, T))
    expected = ours(**arguments, decoder_input_ids=codes).logits
    assert torch.equal(ours(**arguments, decoder_inputs_embeds=embeds).logits, expected)
    assert torch.equal(ours(**arguments, decoder_input_ids=codes.view(3, 4, T)).logits, expected)


def test_gradients_equal_transformers() -> None:
    theirs, ours = pair()
    arguments = given(labels=LABELS)
    grads = []
    for model in (theirs, ours):
        loss = model(**arguments).loss
        embed = model.text_encoder.get_input_embeddings().weight
        grads.append((loss.detach(), torch.autograd.grad(loss, embed)[0]))
    assert_same(grads[1], grads[0])
    assert grads[1][1].abs().max() > 0


@torch.no_grad()
def test_the_parts_equal_transformers() -> None:
    theirs, ours = pair()
    arguments = given()
    ids, mask, codes = arguments.values()
    memory = embeddings(32, 7)
    text = {"input_ids": ids, "attention_mask": mask, **SHOW}
    expected, made = theirs.text_encoder(**text), ours.text_encoder(**text)
    for name in ("last_hidden_state", "hidden_states", "attentions"):
        assert_same(made[name], expected[name], name)
    lm = {"input_ids": codes, "encoder_hidden_states": memory, "encoder_attention_mask": mask, **SHOW}
    lm |= {"labels": LABELS, "attention_mask": HOLES, "use_cache": False}
    compare(theirs.decoder(**lm), ours.decoder(**lm), 5)
    del lm["labels"]
    compare(theirs.decoder.model(**lm), ours.decoder.model(**lm), 4)
    assert_same(ours.decoder(codes).logits, theirs.decoder(codes).logits)

    audio, padding = tiny.noise(2, 1, 77), (torch.arange(77) >= torch.tensor([[0], [9]])).int()
    coded = [model.audio_encoder.encode(audio, padding) for model in (theirs, ours)]
    assert torch.equal(coded[1].audio_codes, coded[0].audio_codes)
    decoded = [
        model.audio_encoder.decode(c.audio_codes, c.audio_scales) for model, c in zip(pair(), coded, strict=True)
    ]
    assert torch.equal(decoded[1].audio_values, decoded[0].audio_values)
    whole = [model.audio_encoder(audio, padding) for model in (theirs, ours)]
    assert torch.equal(whole[1].audio_values, whole[0].audio_values)


@torch.no_grad()
def test_delay_pattern_masks_equal_transformers() -> None:
    for channels in (1, 2):
        theirs, ours = (model.decoder for model in pair(channels))
        for prompt, length in [(0, 3), (0, 6), (0, 7), (0, 12), (4, 12)]:
            ids = torch.full((8 * channels, 1 + prompt), 256)
            ids[:, 1:] = torch.randint(0, 256, (8 * channels, prompt))
            expected = theirs.build_delay_pattern_mask(ids, 256, length)
            made = ours.build_delay_pattern_mask(ids, 256, length)
            assert all(map(torch.equal, made, expected))
            raw = torch.randint(0, 256, (8 * channels, length))
            assert torch.equal(
                ours.apply_delay_pattern_mask(raw, made[1]), theirs.apply_delay_pattern_mask(raw, expected[1])
            )


def test_labels_need_no_start_token_in_the_configuration() -> None:
    """The cases above give transformers one, without which it stops; ours has none."""
    theirs, ours = pair()
    assert not hasattr(ours.config.decoder, "decoder_start_token_id")
    del theirs.config.decoder.decoder_start_token_id
    try:
        with pytest.raises(AttributeError, match="decoder_start_token_id"):
            theirs(**given(decoder_input_ids=None, labels=LABELS))
    finally:
        theirs.config.decoder.decoder_start_token_id = 256


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "ids and embeds of text": ({"inputs_embeds": states()}, "input_ids and inputs_embeds: give one, got both"),
    "ids and embeds of codes": ({"decoder_inputs_embeds": embeddings(32, T)}, "decoder_input_ids and decoder_inputs_"),
    "no text": ({"input_ids": None}, "input_ids, inputs_embeds or encoder_outputs, got none"),
    "nothing to decode": ({"decoder_input_ids": None}, "labels or input_values, got none"),
    "a misspelt name": ({"decoder_inputs_ids": 1}, "argument 'decoder_inputs_ids': did you mean 'decoder_input_ids'"),
    "the text's head mask": ({"head_mask": torch.ones(2, 4)}, "did you mean 'decoder_head_mask'"),
    "head mask of another shape": ({"decoder_head_mask": torch.ones(3, 4)}, r"\(2, 4\), got \(3, 4\)"),
    "mask of rows": ({"decoder_attention_mask": torch.ones(12, T)}, r"\(3, 9\), got \(12, 9\)"),
    "rows of a part of a clip": ({"decoder_input_ids": torch.zeros(11, T).long()}, r"\(B \* 4, T\)"),
    "labels of another shape": ({"labels": torch.zeros(3, T, 5).long()}, r"labels must be \(3, 1\.\.9, 4\)"),
    "cache of another library": ({"past_key_values": transformers.DynamicCache()}, "got DynamicCache"),
    "audio without a channel": (
        {"decoder_input_ids": None, "input_values": tiny.noise(3, 77)}, r"input_values must be mono, \(B, 1, N\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_forward(case: str) -> None:
    change, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        pair()[1](**given(**change))


@torch.no_grad()
def test_an_output_is_a_mapping_a_tuple_and_an_object() -> None:
    out = pair()[1](**given())
    assert out.to_tuple()[0] is out.logits is out["logits"] is out[0]
    assert out[:2] == (out.logits, out.past_key_values)
    assert out.loss is None
    assert "loss" not in out
    assert dict(**out).keys() == out.keys()
    with pytest.raises(AttributeError, match="no field 'logit'"):
        _ = out.logit
