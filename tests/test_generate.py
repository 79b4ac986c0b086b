"""What generate() promises of its own: rows, prompts, lengths, streaming, logits, randomness, guidance, dtypes."""

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from musicgen_ref import MusicGen, delay, hf
from musicgen_ref.attention import Trace
from musicgen_ref.decoder import Decoder, DecoderConfig
from musicgen_ref.encodec import EncodecConfig
from musicgen_ref.model import FREE, Generated, GenerationOptions, TextStates, fill_in
from musicgen_ref.t5 import T5Config
from tests import tiny

GREEDY = GenerationOptions(frames=14, greedy=True, guidance_scale=3.0)
SAMPLED = GenerationOptions(frames=14, top_k=40, temperature=0.9)
SMALL = DecoderConfig(tiny.CODES, codebooks=2, width=8, layers=1, heads=1, ffn=8, text_width=8)
FP32 = 1e-5  # of the value's scale: the same sums in another order (a batch, a cache, a mask)


@pytest.fixture(scope="module", params=[(4, 1), (8, 2)], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicGen:
    return tiny.ours(tiny.musicgen_of(tiny.CODES, *request.param))


@pytest.fixture(scope="module")
def mono() -> MusicGen:
    return tiny.ours(tiny.musicgen_of(tiny.CODES))


@pytest.fixture(scope="module")
def long() -> MusicGen:
    """As small as a decoder gets, for clips of more than a thousand frames."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn_dim": 8}
    return tiny.ours(tiny.musicgen_of(tiny.CODES, decoder=sizes, codec={"num_filters": 2, "hidden_size": 4}))


def generators(seeds: Sequence[int] = (0, 1, 2)) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


def codebooks(model: MusicGen) -> int:
    return model.decoder.config.codebooks


def alone(text: tuple[Tensor, Tensor], row: int) -> tuple[Tensor, Tensor]:
    """One row of a padded batch, without its padding."""
    ids, mask = text
    length = int(mask[row].sum())
    return ids[row : row + 1, :length], mask[row : row + 1, :length]


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to 1e-5 of the scale, NaN in the same places."""
    scale = b[b.isfinite()].abs().max().item()
    return torch.allclose(a, b, rtol=0, atol=FP32 * scale, equal_nan=True)


def same(a: Generated, b: Generated) -> bool:
    return torch.equal(a.codes, b.codes) and torch.equal(a.audio, b.audio)


# Rows of a batch


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_each_row_of_a_padded_text_batch_equals_its_single_run(
    model: MusicGen, options: GenerationOptions, guidance: float
) -> None:
    text = tiny.text(3)
    assert not text[1].bool().all()
    options = replace(options, guidance_scale=guidance)
    batch = model.generate(text, options, generator=generators(), return_logits=True)
    for row, own in enumerate(generators()):
        single = model.generate(alone(text, row), options, generator=[own], return_logits=True)
        assert torch.equal(batch.codes[row], single.codes[0])
        assert batch.logits is not None and single.logits is not None
        assert close(batch.logits[row], single.logits[0])
        assert close(batch.audio[row], single.audio[0])


def test_a_generator_and_a_list_of_it_are_the_same_for_one_row(model: MusicGen) -> None:
    text = tiny.text(1)
    listed = model.generate(text, SAMPLED, generator=generators([5]))
    assert same(listed, model.generate(text, SAMPLED, generator=Generator().manual_seed(5)))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["codes", "audio"])
def test_each_row_of_a_batch_of_prompts_of_different_lengths_equals_its_single_run(
    model: MusicGen, kind: str, options: GenerationOptions, guidance: float
) -> None:
    """One frame, a few, and all but one."""
    text = tiny.text(3)
    channels = model.decoder.config.channels
    options = replace(options, guidance_scale=guidance)
    if kind == "codes":
        prompts = [tiny.codes(1, codebooks(model), n, seed=n)[0] for n in (6, 1, 13)]
        known = prompts
        batch = model.generate(text, options, prompt=prompts, generator=generators())
    else:
        clips = [tiny.noise(channels, n, seed=n) for n in (5 * tiny.HOP + 3, 2, 13 * tiny.HOP)]
        known = [model.encode(clip[None], tiny.RATE)[0] for clip in clips]
        batch = model.generate(text, options, prompt=(clips, tiny.RATE), generator=generators())
    assert [part.shape[1] for part in known] == [6, 1, 13]
    for row, own in enumerate(generators()):
        prompt = known[row][None] if kind == "codes" else (clips[row][None], tiny.RATE)
        single = model.generate(alone(text, row), options, prompt=prompt, generator=[own])
        assert torch.equal(batch.codes[row], single.codes[0])
        assert torch.equal(batch.codes[row, :, : known[row].shape[1]], known[row])


def test_logits_of_prompts_of_different_lengths_equal_those_of_single_runs(model: MusicGen) -> None:
    text = tiny.text(2)
    prompts = [tiny.codes(1, codebooks(model), n, seed=n)[0] for n in (9, 3)]
    batch = model.generate(text, GREEDY, prompt=prompts, return_logits=True)
    for row, prompt in enumerate(prompts):
        single = model.generate(alone(text, row), GREEDY, prompt=prompt[None], return_logits=True)
        assert batch.logits is not None and single.logits is not None
        assert close(batch.logits[row], single.logits[0])


@pytest.mark.parametrize("channels", [1, 2])
def test_an_audio_prompt_is_coded_with_the_models_codebooks_whatever_bandwidths_the_codec_has(channels: int) -> None:
    """Not with those of the lowest bandwidth, which is the codec's own default: 2 of the 4."""
    codec = {"target_bandwidths": [0.6, 1.2]}
    model = tiny.ours(tiny.musicgen_of(tiny.CODES, 4 * channels, channels, codec=codec))
    assert model.codec.config.codebooks_for(0.6) == 2
    audio = tiny.noise(2, channels, 5 * tiny.HOP + 3)
    codes = model.encode(audio, tiny.RATE)
    assert codes.shape == (2, 4 * channels, 6)
    for c in range(channels):
        assert torch.equal(codes[:, c::channels], model.codec.encode(audio[:, c : c + 1], 4)[0].codes)
    made = model.generate(tiny.text(2), GREEDY, prompt=(audio, tiny.RATE))
    assert torch.equal(made.codes[..., :6], codes)
    # And with fewer where the decoder has fewer: it reads the first of the codec's.
    fewer = MusicGen(T5Config(width=8, layers=1, heads=1, ffn=8), replace(SMALL, channels=channels), model.codec.config)
    fewer.codec.load_state_dict(model.codec.state_dict())
    assert torch.equal(fewer.encode(audio, tiny.RATE), codes[:, :2])


def test_a_prompt_as_long_as_the_clip_is_the_clip(model: MusicGen) -> None:
    prompt = tiny.codes(2, codebooks(model), GREEDY.frames or 0)
    with mock.patch.object(Decoder, "forward", side_effect=AssertionError("nothing is left to decide")):
        made = model.generate(tiny.text(2), GREEDY, prompt=prompt)
    assert torch.equal(made.codes, prompt)
    assert torch.equal(torch.stack(list(model.generate_codes(tiny.text(2), GREEDY, prompt=prompt)), 2), prompt)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_rows_without_text_among_rows_with_text_equal_single_runs(model: MusicGen, guidance: float) -> None:
    ids, mask = tiny.text(3)
    mask[1] = 0
    options = replace(SAMPLED, guidance_scale=guidance)
    batch = model.generate((ids, mask), options, generator=generators())
    for row, own in enumerate(generators()):
        text = [None] if row == 1 else alone((ids, mask), row)
        single = model.generate(text, options, generator=[own])
        assert torch.equal(batch.codes[row], single.codes[0])


def test_strings_and_none_are_what_the_tokenizer_makes_of_them(mono: MusicGen) -> None:
    ids, mask = tiny.text(3)
    mask[1] = 0
    rows = {"a long text": 0, None: 1, "a text": 2}

    def tokenizer(texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([rows[text] for text in texts])
        return ids[index], mask[index]

    with mock.patch.object(mono, "tokenizer", tokenizer):
        batch = mono.generate(["a long text", None, "a text"], SAMPLED, generator=generators())
        assert same(batch, mono.generate((ids, mask), SAMPLED, generator=generators()))
        for row, text in enumerate(rows):
            single = mono.generate([text], SAMPLED, generator=generators()[row])
            assert torch.equal(batch.codes[row], single.codes[0])


def test_unconditional_equals_a_batch_of_none(model: MusicGen) -> None:
    nothing = model.generate(None, SAMPLED, generator=Generator().manual_seed(0))
    assert same(nothing, model.generate([None], SAMPLED, generator=Generator().manual_seed(0)))
    three = model.generate([None] * 3, SAMPLED, generator=generators())
    for row, own in enumerate(generators()):
        assert torch.equal(three.codes[row], model.generate(None, SAMPLED, generator=own).codes[0])
    # Without text the number of rows is that of the prompt.
    prompt = tiny.codes(3, codebooks(model), 4)
    continued = model.generate(None, SAMPLED, prompt=prompt, generator=generators())
    assert same(continued, model.generate([None] * 3, SAMPLED, prompt=prompt, generator=generators()))


# Cache, continuation, lengths


def recomputed(
    model: MusicGen, text: tuple[Tensor, Tensor], frames: int, lags: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Greedy codes and guided logits, cell by cell and without a cache: two full forward passes for every step."""
    V, B = model.decoder.config.vocab_size, len(text[0])
    memory, mask = model.encode_text(text)
    codes = torch.full((B, len(lags), frames), FREE)
    logits = torch.full((B, len(lags), frames, V), torch.nan)
    steps = torch.full((B, len(lags), 1), V)
    for s in range(frames + max(lags)):
        cond = model.decoder(steps, memory, mask)[:, :, -1]
        null = model.decoder(steps)[:, :, -1]
        column = torch.full((B, len(lags), 1), V)
        for k, lag in enumerate(lags):
            if 0 <= s - lag < frames:
                logits[:, k, s - lag] = null[:, k] + scale * (cond[:, k] - null[:, k])
                codes[:, k, s - lag] = column[:, k, 0] = logits[:, k, s - lag].argmax(-1)
        steps = torch.cat([steps, column], dim=2)
    return codes, logits


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["delay", "parallel"])
def test_cached_generation_equals_recomputing_every_step_from_scratch(model: MusicGen, pattern: str) -> None:
    text = tiny.text(2)
    K, C = codebooks(model), model.decoder.config.channels
    lags = [k // C if pattern == "delay" else 0 for k in range(K)]
    made = model.generate(text, replace(GREEDY, pattern=pattern), return_logits=True)
    codes, logits = recomputed(model, text, GREEDY.frames or 0, lags, GREEDY.guidance_scale)
    assert torch.equal(made.codes, codes)
    assert made.logits is not None and close(made.logits, logits)


@pytest.mark.parametrize("pattern", ["delay", "parallel"])
def test_greedy_100_frames_equal_50_continued(model: MusicGen, pattern: str) -> None:
    text = tiny.text(2)
    options = GenerationOptions(frames=100, greedy=True, pattern=pattern)
    whole = model.generate(text, options)
    assert len(whole.codes.unique()) > 4, "a run that repeats one code would be continued by anything"
    continued = model.generate(text, options, prompt=whole.codes[:, :, :50])
    assert same(whole, continued)


def test_a_clip_of_50_frames_ends_like_one_of_100_but_for_the_frames_that_the_pattern_closes(mono: MusicGen) -> None:
    """Its last codebooks see special tokens where the longer clip has further frames: K - 1 frames may differ."""
    text = tiny.text(2)
    short = mono.generate(text, GenerationOptions(frames=50, greedy=True)).codes
    whole = mono.generate(text, GenerationOptions(frames=100, greedy=True)).codes
    assert torch.equal(short[:, :, :47], whole[:, :, :47])
    assert torch.equal(short[:, 0], whole[:, 0, :50])
    continued = mono.generate(text, GenerationOptions(frames=100, greedy=True), prompt=short).codes
    assert torch.equal(continued[:, :, :50], short)


def test_a_greedy_continuation_of_15_s_to_30_s_equals_the_uninterrupted_run(long: MusicGen) -> None:
    options = GenerationOptions(seconds=30, greedy=True)
    whole = long.generate(tiny.text(1), options)
    assert whole.codes.shape == (1, 4, 1500)
    assert len(whole.codes[..., 750:].unique()) > 4
    assert same(whole, long.generate(tiny.text(1), options, prompt=whole.codes[:, :, :750]))


def test_45_seconds_are_2250_frames(long: MusicGen) -> None:
    """Past max_position_embeddings of the checkpoint, too: the positions are computed, not looked up."""
    made = long.generate(tiny.text(1), GenerationOptions(seconds=45), generator=Generator().manual_seed(0))
    assert made.codes.shape == (1, 4, 2250)
    assert made.audio.shape == (1, 1, 45 * tiny.RATE)
    assert made.sampling_rate == tiny.RATE
    assert made.audio.isfinite().all()


@pytest.mark.parametrize("rate, ratios", [(400, (4, 2)), (32000, (8, 5, 4, 4)), (24000, (8, 5, 4, 2))])
def test_seconds_frames_and_samples_convert_exactly(rate: int, ratios: tuple[int, ...]) -> None:
    codec = EncodecConfig(sampling_rate=rate, ratios=ratios, filters=2, hidden=4, bandwidths=(2.2,))
    decoder = DecoderConfig(codebooks=1, width=8, layers=1, heads=1, ffn=8, text_width=8)
    model = MusicGen(T5Config(width=8, layers=1, heads=1, ffn=8), decoder, codec)
    for frames in range(1, 6001):
        samples = frames * codec.hop
        assert model.frames(samples / rate) == frames
        # Anything nearer to this frame than to its neighbours.
        assert model.frames((samples - codec.hop * 0.499) / rate) == frames
        assert model.frames((samples + codec.hop * 0.499) / rate) == frames
    for seconds in range(1, 301):
        assert model.frames(seconds) * codec.hop == seconds * rate


@pytest.mark.parametrize(
    "rate, ratios", [(400, (4, 2)), (16000, (8, 5, 4, 2)), (32000, (8, 5, 4, 4)), (24000, (8, 5, 8))]
)
def test_half_a_frame_is_one_and_other_halves_go_to_the_even_frame(rate: int, ratios: tuple[int, ...]) -> None:
    codec = EncodecConfig(sampling_rate=rate, ratios=ratios, filters=2, hidden=4, bandwidths=(2.2,))
    decoder = DecoderConfig(codebooks=1, width=8, layers=1, heads=1, ffn=8, text_width=8)
    model = MusicGen(T5Config(width=8, layers=1, heads=1, ffn=8), decoder, codec)
    half = codec.hop / rate / 2
    assert model.frames(half) == 1
    assert [model.frames(n * half) for n in (2, 3, 4, 5, 6, 7)] == [1, 2, 2, 2, 3, 4]
    for n in range(101, 40000):  # every hundredth of a frame
        seconds = n * half / 100
        assert model.frames(seconds) == round(seconds * rate / codec.hop)
    for less in (math.nextafter(half, 0), half / 2, 0.0, -half, -math.inf, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"seconds must be finite and at least half a frame, {half}, got {less}"):
            model.frames(less)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 31])
def test_the_audio_has_exactly_the_frames_asked_for(model: MusicGen, frames: int) -> None:
    channels = model.decoder.config.channels
    made = model.generate(tiny.text(2), GenerationOptions(frames=frames))
    assert made.codes.shape == (2, codebooks(model), frames)
    assert made.audio.shape == (2, channels, frames * tiny.HOP)
    assert made.logits is None
    by_time = model.generate(tiny.text(2), GenerationOptions(seconds=frames / 50))
    assert by_time.codes.shape == made.codes.shape


def test_the_default_is_8_seconds(long: MusicGen) -> None:
    assert long.generate(tiny.text(1)).audio.shape == (1, 1, 8 * tiny.RATE)


@pytest.mark.parametrize(
    "options",
    [SAMPLED, GREEDY, replace(SAMPLED, top_k=0, temperature=50.0), replace(SAMPLED, pattern="parallel")],
    ids=["sampled", "greedy", "nearly uniform", "parallel"],
)
def test_no_special_token_and_no_free_cell_is_ever_in_the_codes(model: MusicGen, options: GenerationOptions) -> None:
    for frames in (1, 3, 30):
        for prompt in (None, tiny.codes(2, codebooks(model), 1)):
            codes = model.generate(tiny.text(2), replace(options, frames=frames), prompt=prompt).codes
            assert codes.min() >= 0 and codes.max() < tiny.CODES


def test_every_code_can_be_drawn(model: MusicGen) -> None:
    nearly_uniform = replace(SAMPLED, frames=500, top_k=0, temperature=50.0)
    codes = model.generate(tiny.text(2), nearly_uniform, generator=Generator().manual_seed(0)).codes
    assert len(codes.unique()) == tiny.CODES


# Streaming


@pytest.mark.parametrize("pattern", ["delay", "parallel"])
@pytest.mark.parametrize("prompt_frames", [0, 2, 6, 13])
def test_streamed_frames_equal_those_of_generate(model: MusicGen, prompt_frames: int, pattern: str) -> None:
    text = tiny.text(2)
    options = replace(SAMPLED, pattern=pattern)
    prompt = tiny.codes(2, codebooks(model), prompt_frames) if prompt_frames else None
    whole = model.generate(text, options, prompt=prompt, generator=Generator().manual_seed(0)).codes
    stream = model.generate_codes(text, options, prompt=prompt, generator=Generator().manual_seed(0))
    frames = list(stream)
    assert all(frame.shape == (2, codebooks(model)) for frame in frames)
    assert torch.equal(torch.stack(frames, dim=2), whole)
    if prompt is not None:
        assert torch.equal(torch.stack(frames[:prompt_frames], dim=2), prompt)


def test_frames_come_as_soon_as_they_are_decided(mono: MusicGen) -> None:
    """Those of the prompt that the delay has passed before any decoder step, every other K - 1 steps behind."""
    prompt = tiny.codes(1, 4, 6)
    steps_before = []
    with mock.patch.object(mono.decoder, "forward", wraps=mono.decoder.forward) as forward:
        for _ in mono.generate_codes(tiny.text(1), GREEDY, prompt=prompt):
            steps_before.append(forward.call_count)
    assert steps_before == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_stream_keeps_no_gradient_and_leaves_the_callers_grad_mode(mono: MusicGen) -> None:
    for frame in mono.generate_codes(tiny.text(1), GREEDY):
        assert torch.is_grad_enabled()
        assert not frame.requires_grad
    made = mono.generate(tiny.text(1), GREEDY, return_logits=True)
    assert made.logits is not None and not made.logits.requires_grad and not made.audio.requires_grad


def test_a_stream_stopped_at_any_frame_leaves_the_model_as_it_was(model: MusicGen) -> None:
    text = tiny.text(2)
    prompt = tiny.codes(2, codebooks(model), 3)
    options = replace(SAMPLED, frames=8)
    whole = model.generate(text, options, prompt=prompt, generator=Generator().manual_seed(0))
    for stop in range(8):
        stream = model.generate_codes(text, options, prompt=prompt, generator=Generator().manual_seed(0))
        for f, frame in enumerate(stream):
            assert torch.equal(frame, whole.codes[:, :, f])
            if f == stop:
                break
        again = model.generate(text, options, prompt=prompt, generator=Generator().manual_seed(0))
        assert same(again, whole), f"stopped at frame {stop}"


def test_two_streams_at_once_do_not_disturb_each_other(mono: MusicGen) -> None:
    def streams() -> list[Iterator[Tensor]]:
        one = mono.generate_codes(tiny.text(1), SAMPLED, generator=Generator().manual_seed(1))
        return [one, mono.generate_codes(tiny.text(2, seed=1), SAMPLED, generator=Generator().manual_seed(2))]

    together = list(zip(*streams(), strict=True))
    for apart, side in zip(streams(), zip(*together, strict=True), strict=True):
        assert torch.equal(torch.stack(list(apart)), torch.stack(side))


def test_bad_arguments_raise_at_the_call_of_generate_codes(mono: MusicGen) -> None:
    """Not at the first next(), which may be far away."""
    with pytest.raises(ValueError, match="prompt must not be longer"):
        mono.generate_codes(tiny.text(1), GREEDY, prompt=tiny.codes(1, 4, 15))
    with pytest.raises(ValueError, match="generator must be one"):
        mono.generate_codes(tiny.text(1), GREEDY, generator=generators())
    with pytest.raises(ValueError, match="no tokenizer"):
        mono.generate_codes(["text"], GREEDY)
    with pytest.raises(ValueError, match=r"must be in 0\.\.98, got 99\.\.99"):
        mono.generate_codes((torch.full((1, 2), tiny.VOCAB), torch.ones(1, 2)), GREEDY)


def test_generate_steps_fills_its_table_column_by_column(mono: MusicGen) -> None:
    prompt = tiny.codes(2, 4, 5)
    whole = mono.generate(tiny.text(2), GREEDY, prompt=prompt)
    columns, steps = mono.generate_steps(tiny.text(2), GREEDY, prompt=prompt)
    V, frames = tiny.CODES, GREEDY.frames or 0
    assert columns.shape == (2, 4, 1 + frames + 3)
    for k in range(4):
        assert (columns[:, k, : 1 + k] == V).all() and (columns[:, k, 1 + k + frames :] == V).all()
        assert torch.equal(columns[:, k, 1 + k : 6 + k], prompt[:, k])
        assert (columns[:, k, 6 + k : 1 + k + frames] == FREE).all()
    filled = []
    for s, logits, unguided, trace in steps:
        assert unguided.shape == (4, 4, V) and trace is None
        assert logits.shape == (2, 4, V) and logits.dtype == torch.float32
        assert not (columns[..., : s + 1] == FREE).any()
        assert (columns[:, 0, s + 1 : 1 + frames] == FREE).all()
        filled.append(s)
    assert filled == list(range(6, 1 + frames + 3))
    assert torch.equal(torch.stack([columns[:, k, 1 + k : 1 + k + frames] for k in range(4)], 1), whole.codes)


# Logits


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_returned_logits_are_those_of_a_teacher_forced_forward_pass(model: MusicGen, guidance: float) -> None:
    text = tiny.text(2)
    K, C, V, frames = codebooks(model), model.decoder.config.channels, tiny.CODES, 14
    prompt = tiny.codes(2, K, 5)
    options = replace(SAMPLED, guidance_scale=guidance)
    made = model.generate(text, options, prompt=prompt, return_logits=True)
    assert made.logits is not None
    assert made.logits.shape == (2, K, frames, V) and made.logits.dtype == torch.float32
    steps = torch.full((2, K, 1 + frames + (K // C - 1)), V)
    for k in range(K):
        steps[:, k, 1 + k // C : 1 + k // C + frames] = made.codes[:, k]
    cond, null = model.decoder(steps[..., :-1], *model.encode_text(text)), model.decoder(steps[..., :-1])
    full = null + (cond - null) * guidance
    forced = torch.stack([full[:, k, k // C : k // C + frames] for k in range(K)], dim=1)
    forced[:, :, :5] = torch.nan  # the prompt left nothing to decide
    assert (made.logits.isnan() == forced.isnan()).all()
    assert close(made.logits, forced)


def test_returned_logits_decide_the_codes(model: MusicGen) -> None:
    greedy = model.generate(tiny.text(3), GREEDY, return_logits=True)
    assert greedy.logits is not None and torch.equal(greedy.logits.argmax(-1), greedy.codes)
    sampled = model.generate(tiny.text(3), replace(SAMPLED, top_k=5), return_logits=True)
    assert sampled.logits is not None
    best = sampled.logits.topk(5).indices
    assert (best == sampled.codes[..., None]).any(-1).all()
    assert not torch.equal(sampled.logits.argmax(-1), sampled.codes)


def test_asking_for_logits_changes_nothing(model: MusicGen) -> None:
    plain = model.generate(tiny.text(2), SAMPLED, generator=Generator().manual_seed(0))
    assert same(plain, model.generate(tiny.text(2), SAMPLED, generator=Generator().manual_seed(0), return_logits=True))


def test_decoding_the_returned_codes_gives_the_returned_audio(model: MusicGen) -> None:
    made = model.generate(tiny.text(3), SAMPLED, prompt=tiny.codes(3, codebooks(model), 4))
    assert torch.equal(model.decode(made.codes), made.audio)
    assert made.audio.abs().max() > 0


# Randomness


@pytest.mark.parametrize("own", [Generator, lambda: generators()], ids=["one", "one a row"])
def test_with_a_generator_the_global_rng_is_untouched(model: MusicGen, own: type[Generator]) -> None:
    before = torch.get_rng_state()
    model.generate(tiny.text(3), SAMPLED, generator=own())
    model.generate(tiny.text(3), GREEDY)
    list(model.generate_codes(None, SAMPLED, generator=Generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_draws_from_no_generator(model: MusicGen) -> None:
    own = Generator().manual_seed(0)
    before = own.get_state()
    model.generate(tiny.text(3), GREEDY, generator=own)
    assert torch.equal(own.get_state(), before)


def test_a_repeated_run_is_bit_identical_and_another_seed_is_not(model: MusicGen) -> None:
    runs = [model.generate(tiny.text(3), SAMPLED, generator=Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not torch.equal(runs[0].codes, runs[2].codes)
    torch.manual_seed(0)
    assert same(model.generate(tiny.text(3), SAMPLED), runs[0])


@pytest.mark.slow
def test_a_repeated_run_of_30_s_is_bit_identical(long: MusicGen) -> None:
    options = GenerationOptions(seconds=30)
    runs = [long.generate(tiny.text(1), options, generator=Generator().manual_seed(0)) for _ in range(2)]
    assert same(*runs)


# Guidance


def test_guidance_0_is_unconditional_and_1_is_unguided(model: MusicGen) -> None:
    text = tiny.text(3)

    def run(given: tuple[Tensor, Tensor] | list[None], guidance: float) -> Generated:
        options = replace(SAMPLED, guidance_scale=guidance)
        return model.generate(given, options, generator=Generator().manual_seed(0), return_logits=True)

    ignored, nothing = run(text, 0.0), run([None] * 3, 3.0)
    assert same(ignored, nothing)
    assert ignored.logits is not None and nothing.logits is not None
    assert torch.equal(ignored.logits, nothing.logits)
    with mock.patch("musicgen_ref.model.guide", side_effect=AssertionError("scale 1 needs no second half")):
        unguided = run(text, 1.0)
    with torch.no_grad():
        start = torch.full((3, codebooks(model), 1), tiny.CODES)
        expected = model.decoder(start, *model.encode_text(text))[:, :1, 0]
    assert unguided.logits is not None and close(unguided.logits[:, :1, 0], expected)
    assert not torch.equal(unguided.codes, ignored.codes)


@pytest.mark.parametrize("scale", [-2.0, -0.5, 0.25, 0.5, 0.99, 2.0, 10.0])
def test_any_guidance_scale_moves_along_the_line_between_no_text_and_text(model: MusicGen, scale: float) -> None:
    def first(guidance: float) -> Tensor:
        options = replace(GREEDY, guidance_scale=guidance)
        return next(model.generate_steps(tiny.text(3), options)[1])[1]

    null, cond, made = first(0.0), first(1.0), first(scale)
    assert not torch.allclose(null, cond, atol=0.1)
    assert close(made, null + (cond - null) * scale)
    if 0 < scale < 1:
        slack = FP32 * cond.abs().max()
        assert (made >= torch.minimum(null, cond) - slack).all()
        assert (made <= torch.maximum(null, cond) + slack).all()
    codes = model.generate(tiny.text(3), replace(GREEDY, guidance_scale=scale)).codes
    assert codes.min() >= 0 and codes.max() < tiny.CODES


# Finite, whichever rows have text, dtype and backend


@pytest.mark.parametrize("rows", ["null", "mixed", "text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_logits_are_finite_and_the_backends_agree(dtype: torch.dtype, rows: str) -> None:
    theirs = tiny.musicgen_of(tiny.CODES)
    model = tiny.ours(theirs, dtype=dtype)
    ids, mask = tiny.text(3)
    mask[{"null": slice(None), "mixed": slice(1, 2), "text": slice(0)}[rows]] = 0
    logits = {}
    for backend in ("sdpa", "eager"):
        model.backend = backend
        made = model.generate((ids, mask), GREEDY, return_logits=True)
        assert made.logits is not None and made.logits.isfinite().all()
        assert made.audio.isfinite().all()
        logits[backend] = made.logits
    if dtype == torch.float32:
        assert close(logits["eager"], logits["sdpa"])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_runs_end_to_end(dtype: torch.dtype, channels: int) -> None:
    """Text, sampling and a waveform prompt in fp32, whose samples are cast at the boundary."""
    model = tiny.ours(tiny.musicgen_of(tiny.CODES, 4 * channels, channels), dtype=dtype)
    assert {p.dtype for p in model.decoder.parameters()} == {dtype}
    prompt = (tiny.noise(3, channels, 45), tiny.RATE)
    made = model.generate(tiny.text(3), SAMPLED, prompt=prompt, generator=generators(), return_logits=True)
    assert made.codes.dtype == torch.long and made.codes.min() >= 0 and made.codes.max() < tiny.CODES
    assert made.audio.shape == (3, channels, 14 * tiny.HOP) and made.audio.dtype == dtype
    assert made.audio.isfinite().all() and made.audio.abs().max() > 0
    assert made.logits is not None and made.logits.dtype == torch.float32
    assert torch.equal(made.codes[..., :6], model.encode(*prompt))
    assert same(made, model.generate(tiny.text(3), SAMPLED, prompt=prompt, generator=generators()))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_guided_logits_of_a_half_precision_model_are_computed_in_fp32(dtype: torch.dtype) -> None:
    model = tiny.ours(tiny.musicgen_of(tiny.CODES), dtype=dtype)
    text, scale = tiny.text(2), GREEDY.guidance_scale
    guided = next(model.generate_steps(text, GREEDY)[1])[1]
    cache = model.decoder.new_cache(4, 1, *model.encode_text(text))
    logits = model.decoder(torch.full((4, 4, 1), tiny.CODES), cache=cache)[:, :, -1]
    cond, null = logits.float().chunk(2)
    assert torch.equal(guided, null + (cond - null) * scale)
    cond, null = logits.chunk(2)
    assert not torch.equal(guided, (null + (cond - null) * scale).float()), "in half it would be another number"


# Conditioning


@torch.no_grad()
def test_different_texts_give_different_logits_at_step_0_and_from_the_cache(model: MusicGen) -> None:
    texts = [tiny.text(1, seed=0), tiny.text(1, seed=1), [None]]
    start = torch.full((1, codebooks(model), 1), tiny.CODES)
    following = tiny.codes(1, codebooks(model), 1)
    seen: list[list[Tensor]] = [[], []]
    for text in texts:
        cache = model.decoder.new_cache(1, 2, *model.encode_text(text))
        seen[0].append(model.decoder(start, cache=cache))
        seen[1].append(model.decoder(following, cache=cache))
    for logits in seen:
        for one, other in [(0, 1), (0, 2), (1, 2)]:
            assert (logits[one] - logits[other]).abs().max() > 0.1
    for guidance in (1.0, 3.0):
        options = replace(GREEDY, guidance_scale=guidance)
        first = [next(model.generate_steps(text, options)[1])[1] for text in texts]
        assert (first[0] - first[1]).abs().max() > 0.1
        assert (first[0] - first[2]).abs().max() > 0.1


def test_different_prompts_give_different_logits_and_continuations(model: MusicGen) -> None:
    channels = model.decoder.config.channels
    made = []
    for seed in (0, 1):
        prompt = (tiny.noise(1, channels, 6 * tiny.HOP, seed=seed), tiny.RATE)
        _, steps = model.generate_steps(tiny.text(1), GREEDY, prompt=prompt)
        made.append((next(steps)[1], model.generate(tiny.text(1), GREEDY, prompt=prompt).codes[..., 6:]))
    assert (made[0][0] - made[1][0]).abs().max() > 0.1
    assert not torch.equal(made[0][1], made[1][1])


def test_the_parallel_pattern_decides_a_whole_frame_in_each_step(mono: MusicGen) -> None:
    options = replace(GREEDY, pattern="parallel")
    columns, steps = mono.generate_steps(tiny.text(2), options)
    assert columns.shape == (2, 4, 1 + 14)
    assert [step.column for step in steps] == list(range(1, 15))
    assert torch.equal(columns[..., 1:], mono.generate(tiny.text(2), options).codes)
    assert not torch.equal(columns[..., 1:], mono.generate(tiny.text(2), GREEDY).codes)
    prompts = [tiny.codes(1, 4, n, seed=n)[0] for n in (7, 2)]
    batch = mono.generate(tiny.text(2), replace(options, greedy=False), prompt=prompts, generator=generators([0, 1]))
    for row, own in enumerate(generators([0, 1])):
        text, prompt = alone(tiny.text(2), row), prompts[row][None]
        single = mono.generate(text, replace(options, greedy=False), prompt=prompt, generator=own)
        assert torch.equal(batch.codes[row], single.codes[0])


def test_every_tensor_is_made_on_the_device_of_the_model(mono: MusicGen) -> None:
    # With another default device, where tensors hold no values: what is made there by mistake cannot give the same.
    text, options = tiny.text(), replace(SAMPLED, guidance_scale=3.0)
    audio = torch.randn(len(text[0]), 1, 100, generator=Generator().manual_seed(1))

    def everything() -> list[Tensor]:
        states, _ = mono.encode_text(text)
        out = mono.generate(text, options, prompt=(audio, tiny.RATE), generator=Generator().manual_seed(0))
        codes = mono.encode(audio, tiny.RATE)
        with torch.no_grad():
            return [states, out.codes, out.audio, codes, mono.decode(codes), mono.loss(out.codes, text)]

    expected = everything()
    with torch.device("meta"):
        made = everything()
    for a, b in zip(made, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["generate", "generate_codes", "generate_steps"])
def test_text_and_options_go_by_place_or_name_and_all_else_by_name(name: str) -> None:
    kinds = {key: one.kind for key, one in inspect.signature(getattr(MusicGen, name)).parameters.items()}
    either = [key for key, kind in kinds.items() if kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
    by_name = [key for key, kind in kinds.items() if kind == inspect.Parameter.KEYWORD_ONLY]
    assert either == ["self", "text", "options"]
    more = {"generate": ["return_logits", "trace"], "generate_codes": [], "generate_steps": ["trace"]}
    assert by_name == ["prompt", "generator", *more[name]]


# What one function returns, the next accepts


def test_text_states_stand_in_for_text(mono: MusicGen) -> None:
    text = tiny.text(3)
    states = mono.encode_text(text)
    assert mono.encode_text(states) is states
    for options in (GREEDY, replace(SAMPLED, guidance_scale=1.0)):
        a, b = (mono.generate(given, options, generator=generators()) for given in (text, states))
        assert same(a, b)
    codes = tiny.codes(3, 4, 9)
    assert torch.equal(mono.loss(codes, text), mono.loss(codes, states))


def test_rows_without_text_keep_their_place(mono: MusicGen) -> None:
    states = mono.encode_text([None, None])
    assert isinstance(states, TextStates)
    assert states.memory.shape == (2, 1, 32) and not states.memory.any() and not states.mask.any()
    made = mono.generate(states, GREEDY)
    assert made.codes.shape[0] == 2 and same(made, mono.generate([None, None], GREEDY))
    codes = tiny.codes(2, 4, 9)
    assert torch.equal(mono.loss(codes, states), mono.loss(codes))
    with pytest.raises(ValueError, match="prompt must have a row for each of the 2 texts, got 1"):
        mono.generate(states, GREEDY, prompt=codes[:1])
    assert mono.encode_text(None).mask.shape == (1, 1)


def test_text_states_of_another_model_are_refused(mono: MusicGen) -> None:
    memory, mask = mono.encode_text(tiny.text(2))
    for wrong in (
        TextStates(memory[..., :-1], mask), TextStates(memory, mask[:, :-1]), TextStates(memory.long(), mask),
        TextStates(memory[:0], mask[:0]), TextStates(memory.to("meta"), mask.to("meta")),
    ):  # fmt: skip
        for call in (mono.generate, mono.encode_text, lambda text: mono.loss(tiny.codes(2, 4, 9), text)):
            with pytest.raises(ValueError, match="text"):
                call(wrong)


# Traces


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_traces_of_every_step_are_those_of_a_teacher_forced_pass(model: MusicGen, guidance: float) -> None:
    text, K = tiny.text(2), codebooks(model)
    options = replace(GREEDY, frames=5, guidance_scale=guidance)
    made = model.generate(text, options, prompt=tiny.codes(2, K, 2), trace=Trace(weights=True))
    table = F.pad(delay.apply(made.codes, model.delays, fill=tiny.CODES), (1, 0), value=tiny.CODES)
    forced = Trace(weights=True)
    model.decoder(table[..., :-1], *model.encode_text(text), trace=forced)
    steps = table.shape[2] - 1
    assert len(made.traces) == steps - 2  # the first step reads the start and the prompt's two columns
    for i, trace in enumerate(made.traces):
        s = i + 2
        assert len(trace.hidden) == len(forced.hidden) == 3
        assert len(trace.self_weights) == len(trace.cross_weights) == 2
        for mine, whole in zip(trace.hidden, forced.hidden, strict=True):
            assert close(mine[:, -1], whole[:, s])
        for mine, whole in zip(trace.self_weights, forced.self_weights, strict=True):
            assert mine.shape == (2, 4, 3 if i == 0 else 1, s + 1)
            assert close(mine[:, :, -1], whole[:, :, s, : s + 1])
        for mine, whole in zip(trace.cross_weights, forced.cross_weights, strict=True):
            assert close(mine[:, :, -1], whole[:, :, s])


def test_a_trace_keeps_what_it_was_asked_for_and_nothing_else(model: MusicGen) -> None:
    options = replace(GREEDY, frames=3)
    whole = model.generate(tiny.text(2), options, trace=Trace(weights=True))
    asked = Trace(weights=True, states=False, layers=[1])
    made = model.generate(tiny.text(2), options, trace=asked)
    assert same(made, whole) and same(made, model.generate(tiny.text(2), options))
    assert (asked.hidden, asked.self_weights, asked.cross_weights) == ([], [], [])  # a pattern, not a result
    for mine, every in zip(made.traces, whole.traces, strict=True):
        assert mine.hidden == [] and len(mine.self_weights) == len(mine.cross_weights) == 1
        assert torch.equal(mine.self_weights[0], every.self_weights[1])
        assert torch.equal(mine.cross_weights[0], every.cross_weights[1])
        assert mine.self_weights[0].untyped_storage().nbytes() == mine.self_weights[0].nbytes  # of the text's rows
    states = model.generate(tiny.text(2), options, trace=Trace(layers=[-1, 1])).traces
    for mine, every in zip(states, whole.traces, strict=True):
        assert mine.self_weights == [] and all(map(torch.equal, mine.hidden, [every.hidden[0], every.hidden[2]]))
    assert list(model.generate(tiny.text(2), options).traces) == []


# The loop


def test_the_loop_fills_in_whatever_it_is_told(mono: MusicGen) -> None:
    V = tiny.CODES
    table = torch.full((2, 4, 6), FREE)
    table[..., 0] = V
    table[0, 1, 3], table[1, :, 1] = 7, 9  # cells that are decided already stay
    seen = []

    def decide(logits: Tensor, column: int) -> Tensor:
        seen.append((column, tuple(logits.shape)))
        return torch.full((2, 4), column)

    cache = mono.decoder.new_cache(2, 5)
    for step in fill_in(mono.decoder, table, 1, cache, decide):
        if step.column == 4:
            break  # to stop is the caller's
    assert seen == [(column, (2, 4, V)) for column in (1, 2, 3, 4)]
    expected = torch.arange(5).repeat(2, 4, 1)
    expected[..., 0] = V
    expected[0, 1, 3], expected[1, :, 1] = 7, 9
    assert torch.equal(table[..., :5], expected) and (table[..., 5] == FREE).all()


# Other patterns


@pytest.mark.parametrize("delays", [(0, 2, 4, 6), (0, 0, 0, 0), (3, 0, 1, 0)])
def test_another_delay_pattern_is_followed_by_generation_streaming_and_loss(
    delays: tuple[int, ...], mono: MusicGen
) -> None:
    parts = mono.text_encoder.config, replace(mono.decoder.config, delays=delays), mono.codec.config
    model = MusicGen(*parts).eval()
    model.load_state_dict(mono.state_dict())
    text, frames, V = tiny.text(2), 6, tiny.CODES
    options = replace(GREEDY, frames=frames, guidance_scale=1.0)
    made = model.generate(text, options)
    assert torch.equal(torch.stack(list(model.generate_codes(text, options)), -1), made.codes)
    # By hand, without a cache: every column from those before it.
    table = torch.full((2, 4, 1 + frames + max(delays)), V)
    memory, mask = model.encode_text(text)
    for column in range(1, table.shape[2]):
        with torch.no_grad():
            best = model.decoder(table[..., :column], memory, mask)[:, :, -1].argmax(-1)
        for k, lag in enumerate(delays):
            if lag < column <= lag + frames:
                table[:, k, column] = best[:, k]
    assert torch.equal(torch.stack([table[:, k, 1 + d : 1 + d + frames] for k, d in enumerate(delays)], 1), made.codes)
    logits = model.decoder(table[..., :-1], memory, mask)
    rows = [
        F.cross_entropy(logits[:, k, d : d + frames].flatten(0, 1), made.codes[:, k].flatten())
        for k, d in enumerate(delays)
    ]
    assert_close(model.loss(made.codes, text), torch.stack(rows).mean())
    prompt = made.codes[..., :2]
    assert torch.equal(model.generate(text, options, prompt=prompt).codes, made.codes)


# Memory


def kept(model: MusicGen, text: Any, options: GenerationOptions, prompt: Any = None) -> int:
    """Bytes of keys, values, codes and audio that a call of generate() makes."""
    caches = []
    make = model.decoder.new_cache

    def watched(*arguments: Any) -> Any:
        caches.append(make(*arguments))
        return caches[-1]

    with mock.patch.object(model.decoder, "new_cache", watched):
        table, steps = model.generate_steps(text, options, prompt=prompt)
    (cache,) = caches
    for _ in steps:
        pass
    delays = model.delays if options.pattern == "delay" else (0,) * len(model.delays)
    codes = delay.undo(table[..., 1:], delays)
    cross = [tensor for pair in cache.cross for tensor in pair]
    tensors = [*cache.keys, *cache.values, *cross, table, codes]
    return sum(t.numel() * t.element_size() for t in tensors) + 4 * model.decode(codes).numel()


@pytest.mark.parametrize("options", [SAMPLED, replace(SAMPLED, pattern="parallel")], ids=["delay", "parallel"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("text", [True, False], ids=["text", "no text"])
def test_what_a_call_would_take_is_what_it_takes(
    model: MusicGen, text: bool, guidance: float, options: GenerationOptions
) -> None:
    """To the byte: the call is made with so many, and refused with one less."""
    options = replace(options, guidance_scale=guidance)
    # States, as T5's scores are counted where there are ids.
    given = model.encode_text(tiny.text(3)) if text else [None] * 3
    size = kept(model, given, options)
    model.generate(given, replace(options, max_bytes=size))
    message = f"the call would take {size:,} bytes .*more than max_bytes, {size - 1:,} bytes"
    for generate in (model.generate, model.generate_codes, model.generate_steps):
        with pytest.raises(ValueError, match=message):
            generate(given, replace(options, max_bytes=size - 1))


def test_a_model_in_half_precision_takes_half_of_keys_and_values(mono: MusicGen) -> None:
    half = tiny.ours(tiny.musicgen_of(tiny.CODES), dtype=torch.bfloat16)
    options, states = replace(SAMPLED, frames=200), mono.encode_text(tiny.text(3))
    sizes = [kept(model, states, options) for model in (mono, half)]
    assert sizes[1] < 0.6 * sizes[0]
    half.generate(states, replace(options, max_bytes=sizes[1]))


def test_logits_that_are_asked_for_count_as_well(mono: MusicGen) -> None:
    options = replace(SAMPLED, max_bytes=3 * 4 * (14 + 3) * 64 * 4)
    assert kept(mono, [None] * 3, options) < options.max_bytes
    mono.generate([None] * 3, options, return_logits=True)
    with pytest.raises(ValueError, match=r"52,224 bytes of logits.*max_bytes, 52,223 bytes"):
        mono.generate([None] * 3, replace(options, max_bytes=options.max_bytes - 1), return_logits=True)


def test_the_facade_has_the_same_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.complete(tmp_path / "model")
    facade = hf.MusicgenForConditionalGeneration.from_pretrained(folder)
    ids, mask = tiny.text(2)
    arguments = {"input_ids": ids, "attention_mask": mask, "do_sample": False}
    size = kept(facade.core, facade.core.encode_text((ids, mask)), GenerationOptions(frames=9, greedy=True))
    facade.generate(**arguments, guidance_scale=3.0, max_new_tokens=12, max_bytes=size)
    with pytest.raises(ValueError, match=f"the call would take {size:,} bytes .*max_bytes, {size - 1:,} bytes"):
        facade.generate(**arguments, guidance_scale=3.0, max_new_tokens=12, max_bytes=size - 1)
    monkeypatch.setattr(Decoder, "forward", None)
    for length in ({"max_new_tokens": 10**8}, {"max_length": 10**400}):
        with pytest.raises(ValueError, match=r"the call would take .*GiB .*max_bytes, 16\.0 GiB"):
            facade.generate(**arguments, **length)
    with pytest.raises(ValueError, match="at most max_text_tokens, 6, got one of 7 tokens"):
        facade.generate(**arguments, max_new_tokens=12, max_text_tokens=6)
    for fields in ({"temperature": 1e-40}, {"guidance_scale": 1e39}):
        with pytest.raises(ValueError, match=f"{next(iter(fields))} must be from .* beyond which fp32 overflows"):
            facade.generate(**arguments | {"do_sample": True} | fields, max_new_tokens=12)


# Parts in dtypes of their own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_codec_keeps_its_dtype_beside_a_decoder_in_half_precision(mono: MusicGen, dtype: torch.dtype) -> None:
    mixed = tiny.ours(tiny.musicgen_of(tiny.CODES))
    mixed.decoder.to(dtype)
    audio = tiny.noise(2, 1, 10 * tiny.HOP)
    codes = mixed.encode(audio, tiny.RATE)
    assert torch.equal(codes, mono.encode(audio, tiny.RATE))
    assert mixed.decode(codes).dtype == torch.float32
    assert torch.equal(mixed.decode(codes), mono.decode(codes))
    made = mixed.generate(tiny.text(2), GREEDY, prompt=(audio, tiny.RATE))  # T5 is in fp32, too
    assert made.audio.dtype == torch.float32 and torch.equal(made.codes[..., :10], codes)
    assert mixed.loss(codes, tiny.text(2)).item() == pytest.approx(mono.loss(codes, tiny.text(2)).item(), rel=0.02)


def test_the_codec_in_half_precision_beside_a_decoder_in_fp32(mono: MusicGen) -> None:
    mixed = tiny.ours(tiny.musicgen_of(tiny.CODES))
    mixed.codec.bfloat16()
    half = tiny.ours(tiny.musicgen_of(tiny.CODES), dtype=torch.bfloat16)
    audio = tiny.noise(2, 1, 10 * tiny.HOP)
    codes = mixed.encode(audio, tiny.RATE)
    assert torch.equal(codes, half.encode(audio, tiny.RATE))
    assert mixed.decode(codes).dtype == torch.bfloat16
    assert torch.equal(mixed.decode(codes), half.decode(codes))
    made = mixed.generate(tiny.text(2), GREEDY)
    assert torch.equal(made.codes, mono.generate(tiny.text(2), GREEDY).codes)


def test_a_decoder_in_half_precision_reads_text_in_fp32_as_its_own(mono: MusicGen) -> None:
    """What T5 makes is rounded before it is projected; states of another model in fp32 are taken, too."""
    mixed = tiny.ours(tiny.musicgen_of(tiny.CODES))
    mixed.decoder.bfloat16()
    states = mixed.encode_text(tiny.text(3))
    ids, mask = tiny.text(3)
    rounded = mono.text_encoder(ids, mask).bfloat16()
    assert states.memory.dtype == torch.bfloat16
    assert torch.equal(states.memory, mixed.decoder.project_text(rounded, mask))
    full = mono.encode_text(tiny.text(3))
    expected = mixed.generate(TextStates(full.memory.bfloat16(), full.mask), GREEDY)
    assert same(mixed.generate(full, GREEDY), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no second device")
def test_the_codec_may_lie_on_a_device_of_its_own() -> None:
    model = tiny.ours(tiny.musicgen_of(tiny.CODES))
    audio, text = tiny.noise(2, 1, 10 * tiny.HOP), tiny.text(2)
    codes = model.encode(audio, tiny.RATE)
    model.decoder.to("cuda", torch.float16)
    model.text_encoder.to("cuda", torch.float16)
    text = (text[0].cuda(), text[1].cuda())
    for given in (audio, audio.cuda()):
        own = model.encode(given, tiny.RATE)
        assert own.device == model.device and torch.equal(own.cpu(), codes)
        made = model.generate(text, GREEDY, prompt=(given, tiny.RATE))
        assert made.audio.device.type == "cpu" and torch.equal(made.codes[..., :10].cpu(), codes)
    for given in (codes, codes.cuda()):
        assert model.decode(given).device.type == "cpu"
        assert model.loss(given, text).device.type == "cuda"
