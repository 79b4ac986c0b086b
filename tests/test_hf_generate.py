"""musicgen_ref.hf's generate() against transformers 5.23.0 under a seed, and what it does on purpose otherwise."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, StoppingCriteriaList, SuppressTokensLogitsProcessor

from musicgen_ref import GenerationOptions, hf
from musicgen_ref.hf import loading
from tests import tiny

NEW = 11


class Pair(NamedTuple):
    theirs: Any
    ours: Any
    folder: Path
    channels: int


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made(request.param, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made(1, tmp_path_factory.mktemp("mono"))


def made(channels: int, folder: Path) -> Pair:
    tiny.complete(folder, channels)
    theirs = tiny.opened(transformers.MusicgenForConditionalGeneration, folder)
    return Pair(theirs, hf.MusicgenForConditionalGeneration.from_pretrained(folder), folder, channels)


def text(batch: int = 2) -> dict[str, Tensor]:
    ids, mask = tiny.text(batch)
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, **arguments: Any) -> Any:
    torch.manual_seed(5)
    return model.generate(**arguments)


def assert_equal(pair: Pair, **arguments: Any) -> Any:
    """The same samples, and the same draws from the global generator; returns ours."""
    expected = generate(pair.theirs, **arguments)
    state = torch.get_rng_state()
    result = generate(pair.ours, **arguments)
    assert torch.equal(torch.get_rng_state(), state)
    for mine, their in ((result, expected),) if isinstance(result, Tensor) else ((result[0], expected[0]),):
        assert torch.equal(mine, their)
        assert mine.std() > 0.01
    return result, expected


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-k 50 by default": {"do_sample": True},
    "no top-k": {"do_sample": True, "top_k": None},
    "top-p, temperature": {"do_sample": True, "top_k": 0, "top_p": 0.8, "temperature": 0.7},
    "guided": {"do_sample": True, "guidance_scale": 3.0},
    "guided, greedy": {"guidance_scale": 3},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_samples_equal_transformers(pair: Pair, settings: str) -> None:
    assert_equal(pair, **text(3), max_new_tokens=NEW, **SETTINGS[settings])


def test_prompts_equal_transformers(pair: Pair) -> None:
    audio = tiny.noise(2, pair.channels, 43)
    settings = {**text(), "max_new_tokens": NEW, "do_sample": True, "guidance_scale": 3.0}
    mask = (torch.arange(43) >= torch.tensor([[0], [20]])).int()
    first, _ = assert_equal(pair, **settings, input_values=audio)
    masked, _ = assert_equal(pair, **settings, input_values=audio, padding_mask=mask)
    assert not torch.equal(first, masked)
    codes = pair.ours.core.encode(audio, tiny.RATE).flatten(0, 1)
    again, _ = assert_equal(pair, **settings, decoder_input_ids=codes)
    assert torch.equal(again, first)
    started = torch.cat([torch.full_like(codes[:, :1], 256), codes], dim=1)
    assert torch.equal(assert_equal(pair, **settings, decoder_input_ids=started)[0], first)


def test_the_rest_of_the_inputs_equals_transformers(pair: Pair) -> None:
    settings = {"max_new_tokens": NEW, "do_sample": True}
    assert_equal(pair, **settings, inputs=text()["input_ids"], attention_mask=text()["attention_mask"])
    states = pair.theirs.text_encoder(**text()).last_hidden_state.detach()
    assert_equal(pair, **settings, encoder_outputs=(states,), attention_mask=text()["attention_mask"])
    inputs = [model.get_unconditional_inputs(num_samples=2) for model in pair[:2]]
    assert list(inputs[0]) == list(inputs[1])
    none, _ = assert_equal(pair, **settings, **inputs[1])
    assert len({tuple(clip.flatten().tolist()) for clip in none}) == 2
    alone = generate(pair.ours, **settings, **pair.ours.get_unconditional_inputs())
    assert torch.equal(generate(pair.ours, **settings), alone)  # nothing at all: one clip of no text


@pytest.mark.parametrize("new", range(1, 8))
def test_short_lengths_equal_transformers(mono: Pair, new: int) -> None:
    assert_equal(mono, **text(), max_new_tokens=new, do_sample=True)


def test_max_length_of_the_call_equals_transformers(mono: Pair) -> None:
    result, _ = assert_equal(mono, **text(), max_length=15)
    assert result.shape[-1] == (15 - 4) * tiny.HOP


def test_returned_scores_and_logits_equal_transformers(pair: Pair) -> None:
    shown = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    ours, theirs = assert_equal(pair, **text(), max_new_tokens=8, do_sample=True, guidance_scale=2.0, **shown)
    assert list(ours) == list(theirs) == ["sequences", "scores", "logits", "past_key_values"]
    for name in ("scores", "logits"):
        for mine, their in zip(ours[name], theirs[name], strict=True):
            # The first step's text is as long as a cache of it, in which theirs lie in another order.
            torch.testing.assert_close(mine, their, rtol=0, atol=1e-5)
    assert ours.past_key_values.get_seq_length() == 8


def test_hooks_of_transformers_work_as_there(mono: Pair) -> None:
    """Without guidance: with it they come after it, which is one of the differences below."""
    processors = LogitsProcessorList([MinPLogitsWarper(0.05), lambda ids, scores: scores + ids[:, -1:] % 2])
    settings = {**text(), "do_sample": True, "logits_processor": processors, "max_new_tokens": NEW}
    plain = generate(mono.ours, **settings | {"logits_processor": None})

    def never(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.zeros(len(ids), dtype=torch.bool)

    result, _ = assert_equal(mono, **settings, stopping_criteria=StoppingCriteriaList([never]))
    assert not torch.equal(result, plain)


def test_a_generation_configuration_of_the_call_and_of_the_model(mono: Pair) -> None:
    for library, model in ((transformers, mono.theirs), (hf, mono.ours)):
        config = library.GenerationConfig(do_sample=True, top_k=7, max_new_tokens=NEW, temperature=1.5)
        result = generate(model, **text(), generation_config=config, temperature=0.9)
        expected = generate(mono.ours, **text(), do_sample=True, top_k=7, max_new_tokens=NEW, temperature=0.9)
        assert torch.equal(result, expected)
        assert config.temperature == 1.5
    before = repr(mono.ours.generation_config)
    mono.ours.generation_config.update({"do_sample": True, "top_k": 7, "max_new_tokens": NEW})
    assert torch.equal(generate(mono.ours, **text(), temperature=0.9), expected)
    for name in ("do_sample", "top_k", "max_new_tokens"):
        setattr(mono.ours.generation_config, name, None)
    assert repr(mono.ours.generation_config) == before


def test_a_generator_in_place_of_the_global_one(mono: Pair) -> None:
    settings = {**text(), "do_sample": True, "max_new_tokens": NEW}
    state = torch.get_rng_state()
    drawn = mono.ours.generate(**settings, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, generate(mono.ours, **settings))
    single = {k: v[1:] for k, v in text().items()}
    own = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = mono.ours.generate(**settings, generator=own)
    alone = mono.ours.generate(**settings | single, generator=[torch.Generator().manual_seed(2)])
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)  # BLAS sums a batch in another order


def test_the_standalone_decoder_equals_transformers(pair: Pair) -> None:
    ids = torch.full((2 * 4 * pair.channels, 1), 256)
    # Without a mask it masks the start column, which is a pad token, too; and it does not fill in top_k.
    mask = torch.ones(2, 1, dtype=torch.long)
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "do_sample": True, "top_k": 50}
    text_states = {"encoder_hidden_states": torch.randn(2, 7, 32), "encoder_attention_mask": text()["attention_mask"]}
    pair.theirs.decoder.generation_config.decoder_start_token_id = 256
    decoder = hf.MusicgenForCausalLM.from_pretrained(pair.folder)
    # Its cache adds the text to itself at every step.
    for more in ({}, text_states | {"use_cache": False}):
        expected = generate(pair.theirs.decoder, **arguments, **more, num_return_sequences=1)
        assert torch.equal(generate(decoder, **arguments, **more), expected)
        assert expected.shape == (2, 4 * pair.channels, NEW + 1 - 4)
    guided = generate(decoder, **arguments, **text_states, num_return_sequences=2, guidance_scale=3.0)
    assert guided.shape == (4, 4 * pair.channels, NEW + 1 - 4)


# What differs on purpose, row by row of the table in musicgen_ref.hf.


def test_num_return_sequences_are_samples_of_each_prompt(pair: Pair) -> None:
    settings = {"max_new_tokens": NEW, "do_sample": True, "guidance_scale": 3.0}
    several = generate(pair.ours, **text(), **settings, num_return_sequences=3)
    assert several.shape == (6, pair.channels, (NEW - 3) * tiny.HOP)
    repeated = {name: value.repeat_interleave(3, 0) for name, value in text().items()}
    assert torch.equal(several, generate(pair.ours, **repeated, **settings))
    assert len({tuple(clip.flatten().tolist()) for clip in several}) == 6
    audio = tiny.noise(2, pair.channels, 43)
    prompted = generate(pair.ours, **text(), **settings, num_return_sequences=2, input_values=audio)
    again = {name: value.repeat_interleave(2, 0) for name, value in (text() | {"input_values": audio}).items()}
    assert torch.equal(prompted, generate(pair.ours, **again, **settings))


def test_stopping_early_returns_what_is_complete(pair: Pair) -> None:
    settings = {**text(), "do_sample": True, "max_new_tokens": 20, "return_dict_in_generate": True}
    whole = generate(pair.ours, **settings, output_scores=True)
    for steps in (1, 3, 4, 9):
        for said in (True, torch.ones(2, dtype=torch.bool), torch.ones(8 * pair.channels, dtype=torch.bool)):
            stop = [lambda ids, scores, at=steps, word=said: word if ids.shape[1] > at else torch.zeros_like(ids[:, 0])]
            out = generate(pair.ours, **settings, output_scores=True, stopping_criteria=stop)
            assert len(out.scores) == steps
            assert all(map(torch.equal, out.scores, whole.scores[:steps]))
            assert out.sequences.shape == (2, pair.channels, max(0, steps - 3) * tiny.HOP)
    row = [lambda ids, scores: torch.arange(len(ids)) == ids.shape[1] % 3]  # never all at once, in the end all
    assert len(generate(pair.ours, **settings, output_scores=True, stopping_criteria=row).scores) == 20
    assert generate(pair.ours, **settings, max_time=1e-9).sequences.shape[-1] == 0
    every = list(range(256))
    assert generate(pair.ours, **settings, eos_token_id=every).sequences.shape[-1] == 0


@pytest.mark.parametrize("scale", [0, 0.5, -1.0, 3.0])
def test_any_guidance_scale_is_defined(mono: Pair, scale: float) -> None:
    result = generate(mono.ours, **text(), do_sample=True, guidance_scale=scale, max_new_tokens=NEW)
    torch.manual_seed(5)
    options = GenerationOptions(frames=NEW - 3, guidance_scale=scale, top_k=50)
    expected = mono.ours.core.generate(tuple(text().values()), options).audio
    assert torch.equal(result, expected)
    states = mono.ours.text_encoder(**text()).last_hidden_state
    given = {"encoder_outputs": (states,), "attention_mask": text()["attention_mask"]}
    assert torch.equal(generate(mono.ours, **given, do_sample=True, guidance_scale=scale, max_new_tokens=NEW), expected)


def test_max_length_counts_all_columns_wherever_it_is_said(mono: Pair) -> None:
    audio = tiny.noise(2, 1, 40)
    config = hf.GenerationConfig(max_length=20)
    for more, frames in (({}, 16), ({"input_values": audio}, 16)):
        for said in ({"max_length": 20}, {"generation_config": config}):
            assert generate(mono.ours, **text(), **more, **said).shape[-1] == frames * tiny.HOP
    theirs = generate(mono.theirs, **text(), generation_config=transformers.GenerationConfig(max_length=20))
    assert theirs.shape[-1] == 17 * tiny.HOP
    assert_equal(mono, **text())  # nothing said at all: 20 new columns


def test_a_streamer_gets_every_token(pair: Pair) -> None:
    got: list[Any] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            got.append(value)

        def end(self) -> None:
            got.append("end")

    codes = torch.randint(0, 256, (8 * pair.channels, 5))
    arguments = {**text(), "decoder_input_ids": codes, "do_sample": True, "max_new_tokens": NEW}
    audio = generate(pair.ours, **arguments, streamer=Streamer())
    assert got.pop() == "end"
    assert got[0].shape == (8 * pair.channels, 6)
    assert [value.shape for value in got[1:]] == [(8 * pair.channels,)] * NEW
    # What was streamed is what was made, through the pattern that a consumer of transformers' streams applies.
    raw = torch.cat([got[0], torch.stack(got[1:], dim=1)], dim=1)
    decoder = pair.ours.decoder
    _, pattern = decoder.build_delay_pattern_mask(got[0][:, :1], 256, raw.shape[1])
    ids = decoder.apply_delay_pattern_mask(raw, pattern)
    frames = ids[ids != 256].view(2, 4 * pair.channels, -1)
    assert torch.equal(pair.ours.core.decode(frames), audio)
    assert torch.equal(frames[..., :5], codes.view(2, -1, 5))


def test_the_callers_processors_stay_as_they_are_and_come_after_guidance(mono: Pair) -> None:
    seen: list[tuple[torch.Size, torch.Size]] = []

    def watch(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append((ids.shape, scores.shape))
        return scores

    # transformers' -inf minus -inf is NaN
    mine = LogitsProcessorList([SuppressTokensLogitsProcessor(list(range(200))), watch])
    tokens: list[Tensor] = []
    streamer = type("Streamer", (), {"put": lambda self, value: tokens.append(value), "end": lambda self: None})()
    settings = {**text(), "do_sample": True, "guidance_scale": 3.0, "max_new_tokens": NEW, "logits_processor": mine}
    first = generate(mono.ours, **settings, streamer=streamer)
    assert len(mine) == 2
    assert torch.equal(first, generate(mono.ours, **settings))
    assert seen[:2] == [((8, 1), (8, 256)), ((8, 2), (8, 256))]
    assert all(int(value.min()) >= 200 for value in tokens[1:])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_attentions_and_hidden_states_of_each_step_are_real(mono: Pair, guidance: float) -> None:
    shown = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    given: list[Tensor] = []
    streamer = type("Streamer", (), {"put": lambda self, value: given.append(value), "end": lambda self: None})()
    out = generate(mono.ours, **text(), max_new_tokens=8, guidance_scale=guidance, **shown, streamer=streamer)
    names = ["sequences", "encoder_attentions", "encoder_hidden_states", "decoder_attentions", "cross_attentions"]
    assert list(out) == [*names, "decoder_hidden_states", "past_key_values"]
    decoder = mono.ours.decoder
    raw = torch.cat([given[0], torch.stack(given[1:], dim=1)], dim=1)
    ids = decoder.apply_delay_pattern_mask(raw, decoder.build_delay_pattern_mask(raw[:, :1], 256, raw.shape[1])[1])
    whole = mono.ours(**text(), decoder_input_ids=ids[:, :-1], output_attentions=True, output_hidden_states=True)
    for step in range(8):
        for layer in range(2):
            weights = out.decoder_attentions[step][layer]
            assert weights.shape == (2, 4, 1, step + 1)
            expected = whole.decoder_attentions[layer][:, :, step : step + 1, : step + 1]
            torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)  # a cached step sums in another order
            expected = whole.cross_attentions[layer][:, :, step : step + 1]
            torch.testing.assert_close(out.cross_attentions[step][layer], expected, rtol=0, atol=1e-5)
        for layer in range(3):
            expected = whole.decoder_hidden_states[layer][:, step : step + 1]
            torch.testing.assert_close(out.decoder_hidden_states[step][layer], expected, rtol=0, atol=1e-4)


def test_a_missing_text_mask_masks_the_padding(mono: Pair) -> None:
    settings = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": NEW}
    ids, mask = tiny.text(3)
    expected = generate(mono.ours, input_ids=ids, attention_mask=mask, **settings)
    assert torch.equal(generate(mono.ours, input_ids=ids, **settings), expected)
    assert not torch.equal(generate(mono.theirs, input_ids=ids, **settings), expected)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "beam search": ({"num_beams": 4}, "num_beams must be .* got 4: there is greedy search and sampling"),
    "contrastive search": ({"penalty_alpha": 0.6}, "penalty_alpha must be .* greedy search and sampling"),
    "a penalty": ({"repetition_penalty": 1.2}, "repetition_penalty .* in logits_processor"),
    "a misspelt name": ({"max_new_token": 3}, "no argument 'max_new_token': did you mean 'max_new_tokens'"),
    "a name of nothing": ({"zzz": 3}, "no argument 'zzz': allowed are"),
    "no tokens": ({"max_new_tokens": 0}, "max_new_tokens must be a whole number above 0, got 0"),
    "too short": ({"max_length": 1}, "max_new_tokens must be .* got a length of 1"),
    "no length after a prompt": ({"input_values": tiny.noise(2, 1, 40), "max_new_tokens": 2}, "must be 3 or more"),
    "a temperature of 0": ({"do_sample": True, "temperature": 0.0}, "temperature must be a number above 0, got 0"),
    "a negative top-k": ({"top_k": -1}, "top_k must be a whole number from 0"),
    "no top-p": ({"top_p": 0.0}, "top_p must be above 0"),
    "samples of greedy search": ({"num_return_sequences": 2}, "num_return_sequences must be 1 unless do_sample"),
    "ids twice": ({"inputs": torch.ones(2, 3)}, "inputs and input_ids are the same thing"),
    "ids and embeds": ({"inputs_embeds": torch.ones(2, 7, 24)}, "input_ids and inputs_embeds: give one, got both"),
    "stereo for mono": ({"input_values": tiny.noise(2, 2, 40)}, r"input_values must be mono, \(B, 1, N\)"),
    "another batch": ({"input_values": tiny.noise(3, 1, 40)}, "as many rows, got 2 and 3"),
    "a mask of another length": (
        {"input_values": tiny.noise(2, 1, 40), "padding_mask": torch.ones(2, 39)}, r"padding_mask must be \(B, N\)"
    ),
    "codes out of range": ({"decoder_input_ids": torch.full((8, 4), 257)}, "codes must be in 0..255"),
    "what is no function": ({"logits_processor": [3]}, "logits_processor must be functions"),
    "a criterion of another shape": ({"stopping_criteria": [lambda *_: torch.ones(3)]}, "must return True, False, or"),
    "no truth value": ({"do_sample": "yes"}, "do_sample must be True or False"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_generate(mono: Pair, case: str) -> None:
    change, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        mono.ours.generate(**text() | change)


def test_mono_audio_for_a_stereo_model(pair: Pair) -> None:
    if pair.channels == 2:
        with pytest.raises(ValueError, match=r"input_values must be stereo, \(B, 2, N\), got \(2, 1, 40\)"):
            pair.ours.generate(**text(), input_values=tiny.noise(2, 1, 40))


def test_the_table_of_what_differs_has_a_row_for_each() -> None:
    """The one place in the docs; each row is about a name that is there, or about a word of the page."""
    assert hf.__doc__ is not None
    rows = [line[:52].strip() for line in hf.__doc__.split("=\n")[2].splitlines() if line[:52].strip()]
    wanted = (
        "num_return_sequences", "stopping_criteria", "guidance_scale below 1", "max_length", "streamer",
        "logits_processor", "output_attentions", "head masks", "attention_mask missing", "decoder_inputs_embeds",
        "batch_decode", "load_in_8bit", "beam search", "MusicgenForCausalLM", "attn_implementation",
    )  # fmt: skip
    for name in wanted:
        assert any(name in row for row in rows), name
    model = hf.MusicgenForConditionalGeneration
    arguments = [*model.forward.__annotations__, *model.generate.__annotations__, *loading.LOADING]
    arguments += [*hf.GenerationConfig.defaults, *hf.MusicgenConfig(), *hf.MusicgenDecoderConfig()]
    public = " ".join([*arguments, *dir(hf), *dir(model), *dir(hf.MusicgenProcessor), "decoder_config"])
    for row in rows:
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", row):
            assert name in public, f"{row}: there is no {name}"
