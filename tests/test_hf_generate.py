"""musicgen_ref.hf's generate() against transformers 5.24.0 under a seed, and what it does on purpose otherwise."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TypicalLogitsWarper,
)

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


def away_from_the_last(ids: Tensor, scores: Tensor) -> Tensor:
    """A logits processor: no row draws the codes around its last one again."""
    near = (torch.arange(256) - ids[:, -1:] % 256).abs() < 40
    return scores.masked_fill(near, -1e9)


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
    "min-p": {"do_sample": True, "top_k": None, "min_p": 0.2},
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


# Steps of a prompt that may not be seen, other ones in each row.
HOLES = torch.tensor([[1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])


@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("start", [False, True], ids=["without start column", "with start column"])
def test_a_mask_of_the_prompt_equals_transformers_and_each_row_alone(pair: Pair, guidance: Any, start: bool) -> None:
    books = 4 * pair.channels
    codes, mask = torch.randint(0, 256, (3, books, 6), generator=torch.Generator().manual_seed(1)), HOLES
    if start:
        codes, mask = torch.nn.functional.pad(codes, (1, 0), value=256), torch.nn.functional.pad(mask, (1, 0), value=1)
    settings = {"max_new_tokens": NEW, "guidance_scale": guidance}
    prompt = {"decoder_input_ids": codes.flatten(0, 1), "decoder_attention_mask": mask}
    result, _ = assert_equal(pair, **text(3), **settings, **prompt)
    plain = generate(pair.ours, **text(3), **settings, decoder_input_ids=codes.flatten(0, 1))
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in text(3).items()}
        prompt = {"decoder_input_ids": codes[row], "decoder_attention_mask": mask[row : row + 1]}
        alone = generate(pair.ours, **one, **settings, **prompt)[0]
        torch.testing.assert_close(result[row], alone, rtol=0, atol=1e-5)  # BLAS sums a batch in another order
        assert (result[row] - plain[row]).abs().max() > 1e-3, "the mask changes what is made"
    # With or without the start column, which is always seen, it is the same mask.
    other = {"decoder_attention_mask": mask[:, 1:] if start else torch.nn.functional.pad(mask, (1, 0), value=1)}
    assert torch.equal(
        generate(pair.ours, **text(3), **settings, decoder_input_ids=codes.flatten(0, 1), **other), result
    )


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_a_cache_goes_on_where_it_stopped(pair: Pair, guidance: Any) -> None:
    """Of padded text: the next step from them equals the whole forward pass. Under guidance they hold both halves."""
    got: list[Tensor] = []
    streamer = type("Streamer", (), {"put": lambda self, value: got.append(value), "end": lambda self: None})()
    settings = {"max_new_tokens": NEW, "guidance_scale": guidance, "return_dict_in_generate": True}
    out = generate(pair.ours, **text(3), **settings, streamer=streamer)
    raw = torch.cat([got[0], torch.stack(got[1:], dim=1)], dim=1)
    decoder = pair.ours.decoder
    ids = decoder.apply_delay_pattern_mask(raw, decoder.build_delay_pattern_mask(raw[:, :1], 256, raw.shape[1])[1])
    assert out.cache.get_seq_length() == NEW  # the last one was drawn, but not yet read
    assert len(out.cache) == 2
    assert [tuple(t.shape[2:]) for t in out.cache[1]] == [(NEW, 8)] * 2 + [(7, 8)] * 2
    assert text(3)["attention_mask"].sum(1).tolist() == [7, 5, 3]
    with torch.no_grad():
        expected = pair.ours(**text(3), decoder_input_ids=ids).logits[:, -1]
        again = pair.theirs(**text(3), decoder_input_ids=ids).logits[:, -1]
        last = ids[:, -1:] if guidance is None else ids[:, -1:].repeat(2, 1)
        states = text(3) | {name: value.repeat(2, 1) for name, value in text(3).items() if guidance is not None}
        step = pair.ours(**states, decoder_input_ids=last, cache=out.cache).logits[:, -1]
    torch.testing.assert_close(step[: len(expected)], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(step[: len(expected)], again, rtol=0, atol=1e-5)
    stop = {"stopping_criteria": lambda ids, scores: ids.shape[1] == 1 + 8}
    out = generate(pair.ours, **text(3), **settings, **stop)
    assert out.cache.get_seq_length() == out.cache[0][0].shape[2] == 8
    with torch.no_grad():
        last = ids[:, 8:9] if guidance is None else ids[:, 8:9].repeat(2, 1)
        step = pair.ours(**states, decoder_input_ids=last, cache=out.cache).logits[:, -1]
        expected = pair.ours(**text(3), decoder_input_ids=ids[:, :9]).logits[:, -1]
    torch.testing.assert_close(step[: len(expected)], expected, rtol=0, atol=1e-5)
    out = generate(pair.ours, **text(3), **settings)
    off = generate(pair.ours, **text(3), **settings, use_cache=False)
    assert off.cache is None
    assert torch.equal(off.sequences, out.sequences)


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


def test_what_guided_texts_without_a_token_return_has_both_halves_too(pair: Pair) -> None:
    """They are the same, and callers find the rows with text in the first of them whatever the texts are."""
    nothing = text() | {"attention_mask": torch.zeros(2, 7, dtype=torch.long)}
    asked = {"return_dict_in_generate": True, "output_logits": True, "guidance_scale": 3.0, "do_sample": True}
    ours, theirs = assert_equal(pair, **nothing, **asked, max_new_tokens=NEW)
    assert len(ours.logits) == len(theirs.logits) == NEW
    for mine, their in zip(ours.logits, theirs.logits, strict=True):
        assert mine.shape == their.shape == (2 * 2 * 4 * pair.channels, 256)
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-5)
    keys = theirs[tiny.CACHE].self_attention_cache.layers[0].keys
    assert len(ours.cache[0][0]) == len(keys) == 2 * 2


def test_inputs_that_stand_for_others(mono: Pair) -> None:
    settings = {"max_new_tokens": NEW, "guidance_scale": 3.0}
    ids, mask = text().values()
    embeds = mono.ours.get_input_embeddings()(ids).detach()
    expected = generate(mono.ours, **text(), **settings)
    assert torch.equal(generate(mono.ours, inputs_embeds=embeds, attention_mask=mask, **settings), expected)
    states = mono.ours.text_encoder(ids, mask).last_hidden_state
    given = {"encoder_outputs": states, "attention_mask": mask}
    assert torch.equal(generate(mono.ours, **given, **settings), expected)
    # Without a mask encoder_outputs have no padding, whatever ids stand beside them.
    whole = generate(mono.ours, encoder_outputs=states, **settings)
    assert torch.equal(generate(mono.ours, encoder_outputs=states, input_ids=ids, **settings), whole)

    # A prompt alone: as many clips as it has, of no text. Codes of 32 bits are codes.
    codes = torch.randint(0, 256, (8, 5), generator=torch.Generator().manual_seed(1))
    none = mono.ours.get_unconditional_inputs(2)
    there = mono.theirs.get_unconditional_inputs(2)
    assert torch.equal(none.encoder_outputs[0], there.encoder_outputs[0])
    assert torch.equal(none.attention_mask, there.attention_mask)
    assert none.guidance_scale == there.guidance_scale
    expected = generate(mono.ours, **none, decoder_input_ids=codes, max_new_tokens=NEW)
    assert len(expected) == 2
    for prompt in (codes, codes.int(), codes.view(2, 4, 5)):
        assert torch.equal(generate(mono.ours, decoder_input_ids=prompt, max_new_tokens=NEW), expected)
    seen: list[torch.dtype] = []
    watch = {"logits_processor": lambda ids, scores: seen.append(ids.dtype) or scores}
    generate(mono.ours, decoder_input_ids=codes.int(), max_new_tokens=NEW, **watch)
    assert set(seen) == {torch.int64}
    nothing = generate(mono.ours, decoder_input_ids=codes[:, :0], max_new_tokens=NEW)
    assert torch.equal(nothing, generate(mono.ours, **none, max_new_tokens=NEW))
    # The fewest new columns after a prompt, which complete no frame of their own: K - 1.
    least = generate(mono.ours, decoder_input_ids=codes, max_new_tokens=3)
    assert torch.equal(least, mono.ours.core.decode(codes.view(2, 4, 5)))
    for count in (0, -1, True, 1.0):
        with pytest.raises(ValueError, match="num_samples must be a whole number above 0"):
            mono.ours.get_unconditional_inputs(count)


def test_padding_is_what_the_configuration_says(mono: Pair) -> None:
    ids = torch.tensor([[5, 6, 7, 9, 9], [5, 9, 0, 8, 4]])
    section = mono.ours.config.text_encoder
    section.pad_token_id = 9
    try:
        made = generate(mono.ours, input_ids=ids, max_new_tokens=NEW)
    finally:
        section.pad_token_id = 0
    assert torch.equal(made, generate(mono.ours, input_ids=ids, attention_mask=ids != 9, max_new_tokens=NEW))
    assert not torch.equal(made, generate(mono.ours, input_ids=ids, max_new_tokens=NEW))


def test_none_at_the_call_turns_off_what_a_configuration_says(mono: Pair) -> None:
    said = {"top_k": 30, "top_p": 0.8, "temperature": 1.7, "guidance_scale": 3.0}
    settings = {**text(), "do_sample": True, "max_new_tokens": NEW}
    off = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "guidance_scale": 1.0}
    for name in said:
        config = hf.GenerationConfig(**said)
        made = generate(mono.ours, **settings, generation_config=config, **{name: None})
        assert torch.equal(made, generate(mono.ours, **settings, **said | {name: off[name]})), name
        assert not torch.equal(made, generate(mono.ours, **settings, generation_config=config)), name


def test_half_precision_is_guided_in_float32(mono: Pair) -> None:
    half = hf.MusicgenForConditionalGeneration.from_pretrained(mono.folder, dtype=torch.bfloat16)
    shown = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = generate(half, **text(), guidance_scale=3.0, max_new_tokens=NEW, **shown)
    for scores, logits in zip(out.scores, out.logits, strict=True):
        assert scores.dtype == logits.dtype == torch.float32
        assert torch.equal(logits, logits.bfloat16().float())
        torch.testing.assert_close(scores, 3 * logits[:8] - 2 * logits[8:], rtol=0, atol=1e-5)
    assert out.sequences.dtype == torch.bfloat16
    stopped = generate(half, **text(), max_new_tokens=NEW, stopping_criteria=lambda *_: True)
    assert (stopped.shape[-1], stopped.dtype) == (0, torch.bfloat16)
    none = half.get_unconditional_inputs()
    assert none.encoder_outputs[0].dtype == torch.bfloat16
    assert generate(half, **none, max_new_tokens=NEW).shape[-1] == (NEW - 3) * tiny.HOP


def test_what_is_shown_is_what_was_asked_for(mono: Pair) -> None:
    settings = {**text(), "max_new_tokens": 8, "return_dict_in_generate": True}
    names = {
        "output_scores": ["scores"],
        "output_logits": ["logits"],
        "output_attentions": ["encoder_attentions", "decoder_attentions", "cross_attentions"],
        "output_hidden_states": ["encoder_hidden_states", "decoder_hidden_states"],
        "use_cache": ["cache"],
    }
    for asked, shown in names.items():
        out = generate(mono.ours, **settings | {"use_cache": False}, **{asked: True} if asked != "use_cache" else {})
        if asked == "use_cache":
            out = generate(mono.ours, **settings)
        assert set(out) == {"sequences", *shown}
        for name in shown:  # of each step; of the text's two layers and its embeddings
            layers = {"encoder_attentions": 2, "encoder_hidden_states": 3, "cache": 2}
            assert len(out[name]) == layers.get(name, 8)
    states = mono.ours.text_encoder(**text(), output_attentions=True, output_hidden_states=True)
    given = {"encoder_outputs": states, "attention_mask": text()["attention_mask"]}
    settings = {"max_new_tokens": 8, "return_dict_in_generate": True}
    assert list(generate(mono.ours, **given, **settings)) == ["sequences", "cache"]
    out = generate(mono.ours, **given, **settings, output_hidden_states=True, output_attentions=True)
    assert out.encoder_hidden_states is states.hidden_states
    assert out.encoder_attentions is states.attentions
    # At a scale of 1 there is no second half.
    out = generate(mono.ours, **text(), **settings, guidance_scale=1.0, output_logits=True)
    assert out.logits[0].shape == (8, 256)
    assert out.cache[0][0].shape[0] == 2


def test_time_is_given_up_to_its_end(mono: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second a step."""
    now = iter(range(100))
    monkeypatch.setattr(hf.generation.time, "monotonic", lambda: next(now))
    shown = {"return_dict_in_generate": True, "output_scores": True}
    assert len(generate(mono.ours, **text(), max_new_tokens=NEW, max_time=7.5, **shown).scores) == 8


@pytest.mark.parametrize("new", range(1, 8))
def test_short_lengths_equal_transformers(mono: Pair, new: int) -> None:
    assert_equal(mono, **text(), max_new_tokens=new, do_sample=True)


def test_max_length_of_the_call_equals_transformers(mono: Pair) -> None:
    result, _ = assert_equal(mono, **text(), max_length=15)
    assert result.shape[-1] == (15 - 4) * tiny.HOP


def test_returned_scores_and_logits_equal_transformers(pair: Pair) -> None:
    shown = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    ours, theirs = assert_equal(pair, **text(), max_new_tokens=8, do_sample=True, guidance_scale=2.0, **shown)
    assert list(ours) == tiny.our_names(theirs) == ["sequences", "scores", "logits", "cache"]
    for name in ("scores", "logits"):
        for mine, their in zip(ours[name], theirs[name], strict=True):
            # The first step's text is as long as a cache of it, in which theirs lie in another order.
            torch.testing.assert_close(mine, their, rtol=0, atol=1e-5)
    assert ours.cache.get_seq_length() == 8


def test_hooks_of_transformers_work_as_there(mono: Pair) -> None:
    """Without guidance: with it they come after it, which is one of the differences below."""
    processors = LogitsProcessorList([MinPLogitsWarper(0.05), away_from_the_last])
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
        guided = generate(mono.ours, **text(), guidance_scale=3, max_new_tokens=NEW)
        config = library.GenerationConfig(guidance_scale=3, max_new_tokens=NEW)
        assert torch.equal(generate(model, **text(), generation_config=config), guided)
        assert not torch.equal(generate(model, **text(), generation_config=config, guidance_scale=1), guided)
    for library, model in ((transformers, mono.theirs), (hf, mono.ours)):  # the call's over the model's
        model.generation_config.guidance_scale, model.generation_config.temperature = 2.0, 0.6
        config = library.GenerationConfig(guidance_scale=3, max_new_tokens=NEW, do_sample=True)
        result = generate(model, **text(), generation_config=config)
        for name in ("guidance_scale", "temperature"):
            setattr(model.generation_config, name, None)
        more = {"guidance_scale": 3, "max_new_tokens": NEW, "do_sample": True, "temperature": 0.6}
        assert torch.equal(result, generate(mono.ours, **text(), **more))
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


def test_the_standalone_decoder_takes_what_the_whole_model_does(pair: Pair) -> None:
    whole, decoder = pair.ours, hf.MusicgenForCausalLM.from_pretrained(pair.folder)
    books = 4 * pair.channels
    memory = whole.core.decoder.project_text(whole.text_encoder(**text()).last_hidden_state, text()["attention_mask"])
    states = {"encoder_hidden_states": memory.detach(), "encoder_attention_mask": text()["attention_mask"]}
    prompt = torch.randint(0, 256, (2 * books, 6), generator=torch.Generator().manual_seed(1))
    told: list[Any] = []
    streamer = type("Streamer", (), {"put": lambda self, value: told.append(value), "end": lambda self: None})()
    shown = {"return_dict_in_generate": True, "output_scores": True, "do_sample": True, "guidance_scale": 3.0}
    hooks: dict[str, Any] = {
        "logits_processor": [lambda ids, scores: scores / 2, away_from_the_last],
        "stopping_criteria": lambda ids, scores: ids.shape[1] == 1 + 6 + 9,
        "streamer": streamer,
        "generation_config": hf.GenerationConfig(top_k=9, max_new_tokens=NEW),
    }
    outs = []
    for run, given in (
        (whole.generate, text() | {"decoder_input_ids": prompt, "decoder_attention_mask": HOLES[:2]}),
        (decoder.generate, states | {"input_ids": prompt, "attention_mask": HOLES[:2]}),
        (decoder.generate, states | {"inputs": prompt, "attention_mask": HOLES[:2]}),
    ):
        told.clear()
        outs.append(run(**given, **shown, **hooks, generator=torch.Generator().manual_seed(3)))
        assert len(outs[-1].scores) == 9 == len(told) - 1
        torch.testing.assert_close(outs[-1].scores, outs[0].scores, rtol=0, atol=1e-4)  # weights lie elsewhere
    assert torch.equal(outs[0].sequences, whole.core.decode(outs[1].sequences))
    assert torch.equal(outs[2].sequences, outs[1].sequences)
    assert outs[1].sequences.shape == (2, books, 6 + 9 - 3)
    decoder.generation_config.update({"top_k": 9, "max_new_tokens": NEW, "do_sample": True})
    own = generate(decoder, **states)
    expected = generate(decoder, **states, generation_config=hooks["generation_config"], do_sample=True)
    assert torch.equal(own, expected)
    assert generate(decoder).shape == (1, books, NEW + 1 - 4)  # nothing at all: one clip
    with pytest.raises(ValueError, match="inputs and input_ids are the same thing"):
        decoder.generate(prompt, input_ids=prompt)


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
        for said in (True, 1.0, torch.ones(2, dtype=torch.bool), torch.ones(8 * pair.channels, dtype=torch.bool)):
            stop = [lambda ids, scores, at=steps, word=said: word if ids.shape[1] > at else torch.zeros_like(ids[:, 0])]
            out = generate(pair.ours, **settings, output_scores=True, stopping_criteria=stop)
            assert len(out.scores) == steps
            assert all(map(torch.equal, out.scores, whole.scores[:steps]))
            assert out.sequences.shape == (2, pair.channels, max(0, steps - 3) * tiny.HOP)
    rows = 8 * pair.channels
    row = [lambda ids, scores: torch.arange(len(ids)) == ids.shape[1] % rows]  # one at a time, in the end all
    assert len(generate(pair.ours, **settings, output_scores=True, stopping_criteria=row).scores) == rows
    row = [lambda ids, scores: (torch.arange(len(ids)) < rows - 1) & (ids.shape[1] > 3)]  # all but the last
    assert len(generate(pair.ours, **settings, output_scores=True, stopping_criteria=row).scores) == 20
    assert generate(pair.ours, **settings, max_time=1e-9).sequences.shape[-1] == 0
    every = list(range(256))
    assert generate(pair.ours, **settings, eos_token_id=every).sequences.shape[-1] == 0


@pytest.mark.parametrize("said", ["a word a row", "a word a clip", "end tokens"])
def test_what_was_told_to_stop_stays_told(mono: Pair, said: str) -> None:
    """Row 0 (clip 0, or its first codebook) is told at step 2 and not again, the others at step 5 alone."""
    first = torch.arange(2 if said == "a word a clip" else 8) == 0

    def now(ids: Tensor, step: int) -> Tensor:  # the rows that are told by the draw of this step, from 1
        return first if step == 2 else ~first if step == 5 else torch.zeros_like(first)

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        tokens = torch.where(now(ids, ids.shape[1]), 7, 9)
        return torch.full_like(scores, -1e9).scatter(1, tokens[:, None], 0.0)

    told: dict[str, Any] = {"eos_token_id": [7], "logits_processor": [force]}
    if said != "end tokens":
        told = {"stopping_criteria": [lambda ids, scores: now(ids, ids.shape[1] - 1)]}
    shown = {"return_dict_in_generate": True, "output_scores": True}
    out = generate(mono.ours, **text(), max_new_tokens=NEW, **told, **shown)
    assert len(out.scores) == 5
    assert out.sequences.shape[-1] == (5 - 3) * tiny.HOP


def test_words_of_rows_and_of_clips_stop_together(mono: Pair) -> None:
    """The rows of clip 0 are told one by one at step 2, clip 1 as a whole at step 5."""
    criteria = [
        lambda ids, scores: (torch.arange(len(ids)) < 4) & (ids.shape[1] == 1 + 2),
        lambda ids, scores: torch.tensor([False, ids.shape[1] == 1 + 5]),
    ]
    shown = {"return_dict_in_generate": True, "output_scores": True}
    out = generate(mono.ours, **text(), max_new_tokens=NEW, stopping_criteria=criteria, **shown)
    assert len(out.scores) == 5


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
    mono.ours.generation_config.max_new_tokens = 20
    try:  # the call's max_length is over the model's max_new_tokens, which in transformers wins
        shown = {"return_dict_in_generate": True, "output_scores": True}
        out = generate(mono.ours, **text(), max_length=15, **shown)
        assert len(out.scores) == 14
        assert out.sequences.shape[-1] == (14 - 3) * tiny.HOP
        out = generate(mono.ours, **text(), max_length=15, max_new_tokens=9, **shown)  # both at the call, as there
        assert len(out.scores) == 9
    finally:
        mono.ours.generation_config.max_new_tokens = None
    mono.theirs.generation_config.max_new_tokens = 20
    try:
        assert generate(mono.theirs, **text(), max_length=15).shape[-1] == (20 - 3) * tiny.HOP
    finally:
        mono.theirs.generation_config.max_new_tokens = None
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
    assert list(out) == [*names, "decoder_hidden_states", "cache"]
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
    "a penalty": ({"repetition_penalty": 1.2}, "repetition_penalty .*logits_processor=.*RepetitionPenaltyLogitsProce"),
    "a warper": ({"typical_p": 0.9}, r"typical_p .*logits_processor=\[transformers\.TypicalLogitsWarper\(\.\.\.\)\]"),
    "another warper": ({"eta_cutoff": 0.1}, "eta_cutoff .*logits_processor=.*EtaLogitsWarper"),
    "a word of another kind": ({"stop_strings": ["a"]}, "stop_strings .* give a function .* in logits_processor"),
    "another start": ({"decoder_start_token_id": 5}, "decoder_start_token_id must be 256, the one special token, .* 5"),
    "another padding": ({"pad_token_id": 0}, "pad_token_id must be 256, the one special token, .* got 0"),
    "another beginning": ({"bos_token_id": True}, "bos_token_id must be 256, the one special token, .* got True"),
    "two prompts": (
        {"input_values": tiny.noise(2, 1, 40), "decoder_input_ids": torch.zeros(8, 4).long()},
        "decoder_input_ids and input_values: give one, got both",
    ),
    "no generator": ({"generator": 5}, "generator must be a torch.Generator or a list of them, one a row, got 5"),
    "generators of other rows": (
        {"generator": [torch.Generator()] * 3}, "generator must be one, or one for each of the 2 rows, got 3"
    ),
    "the cache of another library": (
        {"cache": transformers.DynamicCache(), "decoder_input_ids": torch.zeros(8, 4).long()},
        "cache must be one of a generate.. or forward.. here, got DynamicCache",
    ),
    "a cache by two names": (
        {"cache": 1, "past_key_values": 1}, "cache and past_key_values are the same thing: give one, got both"
    ),
    "a misspelt name": ({"max_new_token": 3}, "no argument 'max_new_token': did you mean 'max_new_tokens'"),
    "a name of nothing": ({"zzz": 3}, "no argument 'zzz': allowed are"),
    "no tokens": ({"max_new_tokens": 0}, "max_new_tokens must be a whole number above 0, got 0"),
    "too short": ({"max_length": 1}, "max_new_tokens must be .* got a length of 1"),
    "no length after a prompt": ({"input_values": tiny.noise(2, 1, 40), "max_new_tokens": 2}, "must be 3 or more"),
    "a temperature of 0": ({"do_sample": True, "temperature": 0.0}, "temperature must be a number above 0, got 0"),
    "a negative top-k": ({"top_k": -1}, "top_k must be a whole number from 0"),
    "no top-p": ({"top_p": 0.0}, "top_p must be above 0"),
    "a min-p above 1": ({"min_p": 1.5}, "min_p must be from 0 to 1, got 1.5"),
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
    "a number for a truth value": ({"output_scores": 1}, "output_scores must be True or False, got 1"),
    "no truth value for an output": ({"return_dict_in_generate": 1}, "return_dict_in_generate must be True or False"),
    "no samples": ({"num_return_sequences": 0, "do_sample": True}, "num_return_sequences must be a whole number above"),
    "no columns": ({"max_length": 0}, "max_length must be a whole number above 0, got 0"),
    "a part of a token": ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number above 0, got 2.5"),
    "a truth value for a number": ({"max_new_tokens": True}, "max_new_tokens must be a whole number above 0, got True"),
    "a truth value for a factor": ({"temperature": True}, "temperature must be a number above 0, got True"),
    "a temperature without end": ({"temperature": float("inf")}, "temperature must be a number above 0, got inf"),
    "a temperature of NaN": ({"temperature": float("nan")}, "temperature must be a number above 0, got nan"),
    "a top-p of NaN": ({"top_p": float("nan")}, "top_p must be above 0"),
    "guidance of NaN": ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
    "time of NaN": ({"max_time": float("nan")}, "max_time must be seconds above 0"),
    "guidance without end": ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number"),
    "no time": ({"max_time": 0}, "max_time must be seconds above 0"),
    "codes of half a batch": ({"decoder_input_ids": torch.zeros(4, 4).long()}, "as many rows, got 2 and 1"),
    "codes that are no whole numbers": ({"decoder_input_ids": torch.zeros(8, 4)}, "codes must be int64 or int32"),
    "the special token in a prompt": (
        {"decoder_input_ids": torch.full((8, 4), 256).tril()}, r"codes must be in 0\.\.255 after the start column"
    ),
    "a start column of some rows": (
        {"decoder_input_ids": torch.tensor([[256, 1]] * 7 + [[1, 1]])}, r"codes must be in 0\.\.255 after the start"
    ),
    "a mask of a part of the prompt": (
        {"decoder_input_ids": torch.zeros(8, 4).long(), "decoder_attention_mask": torch.ones(2, 3)},
        r"must be \(2, 4\) or, with the start column, \(2, 5\), got \(2, 3\)",
    ),
    "a mask of codebooks": (
        {"decoder_input_ids": torch.zeros(8, 4).long(), "decoder_attention_mask": torch.ones(8, 4)},
        r"must be \(2, 4\) or, with the start column, \(2, 5\), got \(8, 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_generate(mono: Pair, case: str) -> None:
    change, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        mono.ours.generate(**text() | change)


def test_a_generator_is_looked_at_before_anything_runs(mono: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the text encoder ran")

    monkeypatch.setattr("musicgen_ref.t5.T5Encoder.forward", started)
    monkeypatch.setattr("musicgen_ref.encodec.Encodec.encode", started)
    for prompt in ({}, {"input_values": tiny.noise(2, 1, 40)}, {"decoder_input_ids": torch.zeros(8, 4).long()}):
        for wrong in ("seed", [torch.Generator()], [torch.Generator(), 3]):
            with pytest.raises(ValueError, match="generator must be"):
                mono.ours.generate(**text(), **prompt, generator=wrong)
    with pytest.raises(ValueError, match="generator must be"):
        mono.ours.decoder.generate(torch.zeros(4, 1).long(), generator="seed")


WARPERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "typical_p": (lambda: TypicalLogitsWarper(0.6), {"typical_p": 0.6}),
    "epsilon_cutoff": (lambda: EpsilonLogitsWarper(0.004), {"epsilon_cutoff": 0.004}),
    "eta_cutoff": (lambda: EtaLogitsWarper(0.01, device="cpu"), {"eta_cutoff": 0.01}),
    "repetition_penalty": (lambda: RepetitionPenaltyLogitsProcessor(1.8), {"repetition_penalty": 1.8}),
    "no_repeat_ngram_size": (lambda: NoRepeatNGramLogitsProcessor(1), {"no_repeat_ngram_size": 1}),
    "suppress_tokens": (
        lambda: SuppressTokensLogitsProcessor(list(range(0, 256, 2))), {"suppress_tokens": list(range(0, 256, 2))}
    ),
    "sequence_bias": (lambda: SequenceBiasLogitsProcessor({(7,): 9.0}), {"sequence_bias": [[[7], 9.0]]}),
    "renormalize_logits": (lambda: LogitNormalization(), {"renormalize_logits": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", WARPERS)
def test_transformers_own_warpers_work_in_logits_processor_with_equal_tokens(mono: Pair, name: str) -> None:
    """Equal to the field there, which cuts after temperature and top-k: here those are off; under guidance, too."""
    make, field = WARPERS[name]
    settings = {**text(), "do_sample": True, "top_k": 0, "max_new_tokens": NEW}
    if name in ("typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits"):
        settings["guidance_scale"] = 3.0
    expected = generate(mono.theirs, **settings, **field)
    assert torch.equal(generate(mono.ours, **settings, logits_processor=LogitsProcessorList([make()])), expected)
    if name != "renormalize_logits":
        assert not torch.equal(generate(mono.ours, **settings), expected)
    with pytest.raises(ValueError, match=f"{name} must be .*logits_processor=.*{type(make()).__name__}"):
        mono.ours.generate(**settings, **field)


def test_a_temperature_of_0_means_nothing_where_nothing_is_drawn(mono: Pair) -> None:
    greedy = generate(mono.ours, **text(), max_new_tokens=NEW)
    config = hf.GenerationConfig(temperature=0.0, do_sample=False)
    for settings in ({"temperature": 0.0}, {"temperature": 0, "do_sample": False}, {"generation_config": config}):
        assert torch.equal(generate(mono.ours, **text(), max_new_tokens=NEW, **settings), greedy)


def test_it_goes_on_from_a_cache(pair: Pair) -> None:
    """As from the prompt alone, but for what is read: the columns that the cache has are not read again."""
    books = 4 * pair.channels
    settings = {**text(), "guidance_scale": 3.0}
    shown = {"return_dict_in_generate": True}
    first = generate(pair.ours, **settings, max_new_tokens=NEW, **shown)
    prompt = pair.ours.core.encode(tiny.noise(2, pair.channels, 40), tiny.RATE).flatten(0, 1)
    made = generate(pair.ours, **settings, max_new_tokens=NEW, decoder_input_ids=prompt, **shown)
    codes = pair.ours.decoder.generate(prompt, max_new_tokens=NEW)
    lengths: list[int] = []
    hook = pair.ours.core.decoder.blocks[0].register_forward_hook(lambda m, args, out: lengths.append(out.shape[1]))
    for cache, begin, read in ((made.cache, prompt, 1), (first.cache, prompt[:, :0], 1)):
        lengths.clear()
        more = {"decoder_input_ids": begin, "max_new_tokens": NEW + 5}
        again = generate(pair.ours, **settings, **more, cache=cache)
        assert lengths[0] == read and len(lengths) == NEW + 5
        assert torch.equal(again, generate(pair.ours, **settings, **more))
    lengths.clear()
    made = pair.ours.decoder.generate(prompt, max_new_tokens=NEW, return_dict_in_generate=True)
    on = made.sequences.flatten(0, 1)
    expected = pair.ours.decoder.generate(on, max_new_tokens=7)
    lengths.clear()
    again = pair.ours.decoder.generate(on, max_new_tokens=7, cache=made.cache)
    assert torch.equal(again, expected)
    assert lengths == [1] * 7 and torch.equal(made.sequences, codes)
    hook.remove()
    with pytest.raises(ValueError, match=r"cache must be of 1 rows \(guided ones twice\), got 2"):
        pair.ours.decoder.generate(on[:books], max_new_tokens=7, cache=made.cache)


def test_seeds_streamers_and_settings_that_are_updated(mono: Pair) -> None:
    import random

    import numpy as np

    drawn = []
    for library in (transformers, hf, hf):
        library.set_seed(7)
        audio = mono.ours.generate(**text(), do_sample=True, max_new_tokens=NEW)
        drawn.append((audio, random.random(), float(np.random.rand())))
    assert all(torch.equal(one[0], drawn[0][0]) and one[1:] == drawn[0][1:] for one in drawn)

    class Streamer(hf.BaseStreamer):
        def __init__(self) -> None:
            self.got: list[Any] = []

        def put(self, value: Any) -> None:
            self.got.append(value)

        def end(self) -> None:
            self.got.append("end")

    streamer = Streamer()
    generate(mono.ours, **text(), max_new_tokens=NEW, streamer=streamer)
    assert len(streamer.got) == NEW + 2 and streamer.got[-1] == "end"
    for name in ("put", "end"):
        with pytest.raises(NotImplementedError, match=f"BaseStreamer has no {name}"):
            getattr(hf.BaseStreamer(), name)(*([1] if name == "put" else []))

    mine, theirs = hf.GenerationConfig(top_k=9), transformers.GenerationConfig(top_k=9)
    for config in (mine, theirs):
        assert config.update(max_new_tokens=40, something=3) == {"something": 3}
        assert (config.max_new_tokens, config.top_k) == (40, 9)
        assert not hasattr(config, "something")
    mine.update({"top_p": 0.5})
    assert mine.top_p == 0.5
    mono.ours.generation_config.update(max_new_tokens=9)
    try:
        assert generate(mono.ours, **text()).shape[-1] == (9 - 3) * tiny.HOP
    finally:
        mono.ours.generation_config.max_new_tokens = None


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
    arguments += [*hf.GenerationConfig.defaults, *hf.MusicgenConfig(), *hf.MusicgenDecoderConfig(), *hf.EncodecConfig()]
    public = " ".join([*arguments, *dir(hf), *dir(model), *dir(hf.MusicgenProcessor), "decoder_config"])
    for row in rows:
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", row):
            assert name in public, f"{row}: there is no {name}"


@pytest.mark.parametrize("kind", [torch.int16, torch.int32, torch.uint8], ids=str)
def test_codes_of_small_whole_numbers_are_the_codes_that_they_are(pair: Pair, kind: torch.dtype) -> None:
    model, books = pair.ours, 4 * pair.channels
    codes = torch.randint(0, 256, (2 * books, 5), generator=torch.Generator().manual_seed(0))
    small = codes.to(kind)
    assert torch.equal(small.long(), codes)
    with torch.no_grad():
        logits = [model(**text(), decoder_input_ids=given).logits for given in (codes, small)]
        assert torch.equal(*logits)
        labels = [given.unflatten(0, (2, books)).transpose(1, 2) for given in (codes, small)]
        assert torch.equal(*(model(**text(), labels=given).loss for given in labels))
    audio = [generate(model, **text(), max_new_tokens=NEW, decoder_input_ids=given) for given in (codes, small)]
    assert torch.equal(*audio)
    frames = [given.unflatten(0, (2, books))[None, :, :4] for given in (codes, small)]
    assert torch.equal(*(model.audio_encoder.decode(given, [None]).audio_values for given in frames))


def test_numbers_of_numpy_are_settings_as_pythons_own(mono: Pair) -> None:
    import numpy as np

    plain = {"max_new_tokens": NEW, "guidance_scale": 3.0, "temperature": 0.5, "top_k": 7, "do_sample": True}
    kinds = {"max_new_tokens": np.int64, "guidance_scale": np.float32, "temperature": np.float64, "top_k": np.int16}
    of_numpy = plain | {name: kind(plain[name]) for name, kind in kinds.items()} | {"do_sample": np.bool_(True)}
    made = []
    for settings in (plain, of_numpy, {"generation_config": hf.GenerationConfig(**of_numpy)}):
        hf.set_seed(2)
        made.append(mono.ours.generate(**text(), **settings))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
