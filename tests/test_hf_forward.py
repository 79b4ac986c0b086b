"""musicgen_ref.hf's forward passes against transformers 5.24.0, argument by argument, and what errors say."""

import functools
import tempfile
import warnings
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
    assert list(ours) == tiny.our_names(theirs)
    assert len(ours) == fields
    for i, (name, value) in enumerate(theirs.items()):
        if name != tiny.CACHE:
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
LABELS[0, 2, 1] = LABELS[2, 5:7, 3] = 256  # the special token, which is not scored
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
            model(**arguments, **mask, decoder_input_ids=codes[:, start:end], **{name: past})
            for model, name, past in zip((theirs, ours), (tiny.CACHE, "cache"), pasts, strict=True)
        ]
        pasts = [outs[0][tiny.CACHE], outs[1].cache]
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
    with pytest.raises(ValueError, match=r"input_values must be stereo, \(B, 2, N\), got \(3, 1, 2, 77\)"):
        ours(**arguments, input_values=audio[:, None])


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


CHUNKED: dict[str, dict[str, Any]] = {
    "no overlap": {"chunk_length_s": 0.1, "overlap": 0.0},
    "overlapping": {"chunk_length_s": 0.1, "overlap": 0.2},
    "normalised": {"chunk_length_s": 0.1, "overlap": 0.2, "normalize": True},
    "whole": {},
}


@pytest.mark.parametrize("case", CHUNKED)
@torch.no_grad()
def test_a_codec_of_pieces_equals_transformers(case: str, tmp_path: Path) -> None:
    """75 samples in pieces of 40, the last of which is short; two bandwidths."""
    config = tiny.codec_config(4, target_bandwidths=[0.6, 1.2], **CHUNKED[case])
    theirs = tiny.codec(config)
    theirs.save_pretrained(tmp_path)
    ours = hf.EncodecModel.from_pretrained(tmp_path)
    audio, mask = tiny.noise(2, 1, 75, seed=3), (torch.arange(75) >= torch.tensor([[0], [9]])).int()
    pieces = 1 if case == "whole" else 2 if case == "no overlap" else 3
    for bandwidth, books in ((None, 2), (0.6, 2), (1.2, 4)):
        coded = [model.encode(audio, mask, bandwidth) for model in (theirs, ours)]
        assert list(coded[1]) == list(coded[0])
        assert torch.equal(coded[1].audio_codes, coded[0].audio_codes)
        assert coded[1].audio_codes.shape[:3] == (pieces, 2, books)
        short = coded[1].last_frame_pad_length
        assert short == coded[0].last_frame_pad_length
        assert (short > 0) == (case in ("overlapping", "normalised"))
        if case == "normalised":
            assert all(map(torch.equal, coded[1].audio_scales, coded[0].audio_scales))
        given = {"audio_codes": coded[0].audio_codes, "audio_scales": coded[0].audio_scales}
        for cut in ({}, {"padding_mask": mask}, {"padding_mask": mask[:, :50]}):
            for last in (0, short):
                decoded = [model.decode(**given, **cut, last_frame_pad_length=last) for model in (theirs, ours)]
                assert_same(decoded[1].audio_values, decoded[0].audio_values)
                if cut:
                    assert decoded[1].audio_values.shape[-1] == cut["padding_mask"].shape[-1]
        start = ours.decode(**given, padding_mask=mask[:, :50], last_frame_pad_length=short).audio_values
        assert torch.equal(start, ours.decode(**given, last_frame_pad_length=short).audio_values[..., :50])
        whole = ours(audio, mask, bandwidth)
        assert torch.equal(whole.audio_codes, coded[1].audio_codes)
        assert torch.equal(
            whole.audio_values,
            ours.decode(**given, padding_mask=mask, last_frame_pad_length=short).audio_values,
        )
        assert not torch.equal(whole.audio_codes, ours(audio, None, bandwidth).audio_codes)
        assert torch.equal(ours.encode(audio, mask[:, None], bandwidth).audio_codes, whole.audio_codes)
        for made in (
            (ours.encode(audio, mask, bandwidth, return_dict=False), coded[1]),
            (ours.decode(**given, return_dict=False), ours.decode(**given)),
            (ours(audio, mask, bandwidth, return_dict=False), whole),
        ):
            assert type(made[0]) is tuple
            assert len(made[0]) == len(made[1])
        with pytest.raises(ValueError, match=r"audio_codes must be \(frames, B, K, T\)"):
            ours.decode(coded[1].audio_codes[0])
    if case != "whole":
        with pytest.raises(ValueError, match=f"audio_scales must be one for each of {pieces} frames, got 1"):
            ours.decode(coded[1].audio_codes, [None])
    half = ours.to(torch.bfloat16)(audio)  # audio of float32, as a processor makes it
    assert half.audio_values.dtype == torch.bfloat16


def test_a_codec_whose_pieces_overlap_by_more_than_half_says_what_it_cannot_hold(tmp_path: Path) -> None:
    """Where transformers stops too, at a stack of different lengths."""
    theirs = tiny.codec(tiny.codec_config(4, chunk_length_s=0.1, overlap=0.6))
    theirs.save_pretrained(tmp_path)
    ours = hf.EncodecModel.from_pretrained(tmp_path)
    audio = tiny.noise(2, 1, 75)
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        theirs.encode(audio)
    for call in (ours.encode, ours):
        with pytest.raises(ValueError, match=r"only the last piece short, got 75 samples, .* \[5, 5, 5, 4, 2\] frames"):
            call(audio)
    assert torch.equal(ours.encode(audio[..., :20]).audio_codes, theirs.encode(audio[..., :20]).audio_codes)


@torch.no_grad()
def test_head_masks_reach_the_heads_they_name() -> None:
    """They are factors on heads, as the decoder's own; one of transformers that honours them is in test_decoder.py."""
    _, ours = pair()
    arguments = given()
    own, cross = torch.tensor([[1, 0, 1, 0.5], [1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1], [0.5, 1, 0, 1]])
    codes, mask = arguments["decoder_input_ids"], arguments["attention_mask"]
    memory, _ = ours.core.encode_text((arguments["input_ids"], mask))
    core = functools.partial(ours.core.decoder, codes.view(3, 4, T), memory, mask, backend="eager")
    results = []
    for one, other in ((own, None), (None, cross), (own, cross), (None, None)):
        expected = core(self_head_mask=one, cross_head_mask=other).flatten(0, 1)
        made = ours(**arguments, use_cache=False, decoder_head_mask=one, decoder_cross_attn_head_mask=other)
        assert_same(made.logits, expected)
        states = {"encoder_hidden_states": memory, "encoder_attention_mask": mask}
        masks = {"head_mask": one, "cross_attn_head_mask": other}
        assert_same(ours.decoder(codes, **states, **masks).logits, expected)
        last = ours.decoder.model(codes, **states, **masks).last_hidden_state
        assert_same(torch.stack([head(last) for head in ours.decoder.lm_heads], dim=1).flatten(0, 1), expected)
        results.append(expected)
    assert all((results[i] - results[j]).abs().max() > 0.01 for i in range(4) for j in range(i))


@torch.no_grad()
def test_each_thing_is_shown_by_itself_and_caches_go_by_the_configuration() -> None:
    theirs, ours = pair()
    arguments = given()
    ids, mask, codes = arguments.values()
    memory = embeddings(32, 7)
    lm = {"input_ids": codes, "encoder_hidden_states": memory, "encoder_attention_mask": mask}
    for shown in ({"output_attentions": True}, {"output_hidden_states": True}, {}):
        compare(theirs(**arguments, use_cache=False, **shown), ours(**arguments, use_cache=False, **shown), 2 + (
            3 if "output_attentions" in shown else 2 if shown else 0))  # fmt: skip
        text = [list(model.text_encoder(ids, mask, **shown)) for model in (ours, theirs)]
        assert text[0] == [name for name in text[1] if name != "cross_attentions"]  # an encoder has none
        for mine, their in ((ours.decoder, theirs.decoder), (ours.decoder.model, theirs.decoder.model)):
            assert list(mine(**lm, **shown)) == tiny.our_names(their(**lm, **shown))
            bare = {"input_ids": codes, "use_cache": False, **shown}  # reads no text
            assert list(mine(**bare)) == [name for name in their(**bare) if name != "cross_attentions"]
    for model in (ours, ours.decoder, ours.decoder.model):
        inputs = arguments if model is ours else lm
        assert model(**inputs, return_dict=True).cache is not None
        for said in (True, False):
            ours.config.decoder.use_cache = said
            try:
                assert (model(**inputs).cache is not None) == said
                assert model(**inputs, use_cache=not said).cache is None or not said
                model.train()
                assert model(**inputs).cache is None
                assert model(**inputs, use_cache=True).cache is not None
            finally:
                model.eval()
                ours.config.decoder.use_cache = True
    # The decoder's own passes go on from their caches; the text is read again without being given.
    first = {name: value if name != "input_ids" else codes[:, :4] for name, value in lm.items()}
    for mine, their in ((ours.decoder, theirs.decoder), (ours.decoder.model, theirs.decoder.model)):
        past = mine(**first).cache
        step = mine(codes[:, 4:], cache=past, encoder_attention_mask=mask)
        assert_same(step[0], their(**lm, use_cache=False)[0][:, 4:])
        for model, name in ((mine, "cache"), (their, tiny.CACHE)):  # one that is given is used, and handed on
            past = model(**first)[name]
            assert model(codes[:, 4:5], **{name: past}, use_cache=False)[name] is past
            assert past.get_seq_length() == 5
    none = ours.decoder(codes[:, :4]).cache
    assert len(none) == len(none[0]) == 2
    assert_same(ours.decoder(codes[:, 4:], cache=none).logits, theirs.decoder(codes).logits[:, 4:])


@torch.no_grad()
def test_encoder_outputs_of_every_type_and_what_they_show() -> None:
    theirs, ours = pair()
    ids, mask, codes = given().values()
    rest = {"attention_mask": mask, "decoder_input_ids": codes, "use_cache": False}
    for outs in ((m.text_encoder(ids, mask, **SHOW) for m in pair()), [transformers.modeling_outputs.BaseModelOutput(
        last_hidden_state=states())] * 2):  # fmt: skip
        their, mine = outs
        compare(theirs(encoder_outputs=their, **rest), ours(encoder_outputs=mine, **rest), len(mine) + 1)
    assert_same(ours(encoder_outputs=states(), **rest).logits, theirs(encoder_outputs=(states(),), **rest).logits)
    encoder = ours.text_encoder
    assert type(encoder(ids, mask, return_dict=False)) is tuple
    assert encoder(ids, mask, return_dict=True).last_hidden_state.shape == (3, 7, 24)
    assert type(ours.decoder.model(codes, return_dict=False)) is tuple


def test_labels_beside_embeddings_and_special_tokens() -> None:
    _, ours = pair()
    arguments = given(labels=LABELS)
    embeds = ours.core.decoder.embed_codes(arguments["decoder_input_ids"].view(3, 4, T))
    with_codes = ours(**arguments).loss
    del arguments["decoder_input_ids"]
    assert_same(ours(**arguments, decoder_inputs_embeds=embeds).loss.detach(), with_codes.detach())
    with pytest.raises(ValueError, match="encoder_attention_mask must come with encoder_hidden_states"):
        ours.decoder(LABELS.clamp(0).transpose(1, 2), encoder_attention_mask=torch.ones(3, 7))
    for decoder in (ours.decoder, ours.decoder.model):
        with pytest.raises(ValueError, match=r"input_ids or inputs_embeds .*give one, got none"):
            decoder()
        with pytest.raises(ValueError, match=r"input_ids and inputs_embeds .*give one, got both"):
            decoder(LABELS.clamp(0).transpose(1, 2), inputs_embeds=embeds)


def test_padding_masks_have_one_channel_or_all() -> None:
    audio = tiny.noise(2, 2, 20)
    mask = (torch.arange(20) >= torch.tensor([[3], [7]])).int()
    expected = audio * mask[:, None]
    for one in (mask, mask[:, None], mask[:, None].expand(-1, 2, -1), mask * 5, mask.bool()):
        assert torch.equal(hf.modules.masked(audio, one), expected)
    for wrong in (mask[:, 1:], mask[:1], mask[:, None].expand(-1, 3, -1)):
        with pytest.raises(ValueError, match=r"padding_mask must be \(B, N\)"):
            hf.modules.masked(audio, wrong)
    with pytest.raises(ValueError, match=r"input_values must be \(B, C, N\)"):
        hf.modules.masked(audio[0], mask)


@torch.no_grad()
def test_delay_patterns_of_another_pad_token_and_of_the_configured_length() -> None:
    theirs, ours = (model.decoder for model in pair())
    ids = torch.full((8, 5), 256)
    ids[:, 1:] = torch.randint(0, 256, (8, 4))
    expected = theirs.build_delay_pattern_mask(ids, 300, 12)
    assert all(map(torch.equal, ours.build_delay_pattern_mask(ids, 300, 12), expected))
    ours.generation_config.max_length = theirs.generation_config.max_length = 12
    try:
        expected = theirs.build_delay_pattern_mask(ids, 300)
        made = ours.build_delay_pattern_mask(ids, 300)
    finally:
        ours.generation_config.max_length = theirs.generation_config.max_length = None
    assert all(map(torch.equal, made, expected))
    raw = torch.randint(0, 256, (8, 7))  # fewer columns than the pattern
    assert torch.equal(ours.apply_delay_pattern_mask(raw, made[1]), theirs.apply_delay_pattern_mask(raw, expected[1]))


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
    "labels of one codebook": (
        {"decoder_input_ids": None, "labels": torch.zeros(3, T).long()}, r"labels must be \(B, T, K\), got \(3, 9\)"
    ),
    "labels of another shape": ({"labels": torch.zeros(3, T, 5).long()}, r"labels must be \(3, 1\.\.9, 4\)"),
    "cache of another library": ({"cache": transformers.DynamicCache()}, "cache must be .*, got DynamicCache"),
    "cache by two names": ({"cache": 1, "past_key_values": 1}, "cache and past_key_values .*: give one, got both"),
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
def test_the_old_name_of_the_cache_is_taken_and_read_everywhere() -> None:
    """past_key_values, as of transformers before 5.24: an argument and a field, but not one of the mapping's names."""
    _, ours = pair()
    ids, mask, codes = given().values()
    text = {"input_ids": ids, "attention_mask": mask}
    lm = {"encoder_hidden_states": embeddings(32, 7), "encoder_attention_mask": mask}
    calls = [(ours, text, "decoder_input_ids"), (ours.decoder, lm, "input_ids"), (ours.decoder.model, lm, "input_ids")]
    for model, more, name in calls:
        expected = model(**more, **{name: codes}, use_cache=False)[0][:, 4:]
        out = model(**more, **{name: codes[:, :4]})
        assert out.past_key_values is out["past_key_values"] is out.get("past_key_values") is out.cache is out["cache"]
        assert "past_key_values" in out and "past_key_values" not in list(out)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(model(**more, **{name: codes[:, 4:]}, past_key_values=out.past_key_values)[0], expected)
        assert model(**more, **{name: codes}, use_cache=False).past_key_values is None
        with pytest.raises(ValueError, match="cache and past_key_values are the same thing: give one, got both"):
            model(**more, **{name: codes}, cache=out.cache, past_key_values=out.cache)
        if model is not ours.decoder.model:  # whichever name is given, the new one is handed on
            pattern = "decoder_delay_pattern_mask" if model is ours else "delay_pattern_mask"
            for argument in ("past_key_values", "cache"):
                more = {argument: out.cache, pattern: torch.full_like(codes, -1)}
                prepared = model.prepare_inputs_for_generation(codes, **more)
                assert prepared["cache"] is out.cache and "past_key_values" not in prepared
    out.past_key_values = 5
    assert (out.cache, hf.ModelOutput(past_key_values=3).cache) == (5, 3)
    made = {"max_new_tokens": 8, "return_dict_in_generate": True}
    first = ours.generate(**text, **made)
    again = {"decoder_input_ids": codes[:, :0], **made}
    by_old, by_new = (ours.generate(**text, **again, **{n: first.cache}) for n in ("past_key_values", "cache"))
    assert torch.equal(by_old.sequences, first.sequences) and torch.equal(by_new.sequences, first.sequences)
    first = ours.decoder.generate(codes[:, :0], **made)
    for name in ("past_key_values", "cache"):
        again = ours.decoder.generate(codes[:, :0], **made, **{name: first.past_key_values})
        assert torch.equal(again.sequences, first.sequences)
    for model in (ours, ours.decoder):
        with pytest.raises(ValueError, match="cache and past_key_values are the same thing: give one, got both"):
            model.generate(codes, cache=first.cache, past_key_values=first.cache)


@torch.no_grad()
def test_an_output_is_a_mapping_a_tuple_and_an_object() -> None:
    out = pair()[1](**given())
    assert out.to_tuple()[0] is out.logits is out["logits"] is out[0]
    assert out[:2] == (out.logits, out.cache)
    assert out.loss is None
    assert "loss" not in out
    assert dict(**out).keys() == out.keys()
    with pytest.raises(AttributeError, match="no field 'logit'"):
        _ = out.logit
    assert "loss" not in dict(out)
    out.logits = out.logits[:1]
    assert len(out["logits"]) == len(out[0]) == len(out.logits) == 1


def test_an_output_moves_to_a_device_and_a_dtype() -> None:
    def made() -> hf.ModelOutput:
        return hf.ModelOutput(values=torch.zeros(2), ids=torch.zeros(2, dtype=torch.long), name="a clip")

    half, meta = torch.float16, torch.device("meta")
    for args, fields in (
        (("meta", half), {}), ((half, "meta"), {}), ((meta,), {"dtype": half}), ((half,), {"device": meta}),
        ((), {"device": "meta", "dtype": half}),
    ):  # fmt: skip
        out = made()
        assert out.to(*args, **fields) is out
        assert (out["values"].dtype, out.ids.dtype, out.name) == (half, torch.long, "a clip")
        assert out["values"].device == out.ids.device == meta
    assert made().to("meta")["values"].dtype == torch.float32
