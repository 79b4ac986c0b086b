"""Bad input is a ValueError that says what was got and what is allowed, and nothing has been computed by then."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from musicgen_ref import MusicGen
from musicgen_ref.decoder import DecoderConfig
from musicgen_ref.encodec import EncodecConfig
from musicgen_ref.model import GenerationOptions
from musicgen_ref.t5 import T5Config
from tests import tiny

FRAMES, ROWS = 14, 3
OPTIONS = GenerationOptions(frames=FRAMES)
IDS, MASK = tiny.text(ROWS)  # (3, 7)
META = torch.device("meta")


@pytest.fixture(scope="module")
def mono() -> Iterator[MusicGen]:
    yield guarded(tiny.ours(tiny.musicgen_of(tiny.CODES)))


@pytest.fixture(scope="module")
def stereo() -> Iterator[MusicGen]:
    yield guarded(tiny.ours(tiny.musicgen_of(tiny.CODES, 8, 2)))


def guarded(model: MusicGen) -> MusicGen:
    """Let every layer of T5, decoder and codec fail the test that runs it."""

    def fail(layer: nn.Module, inputs: object) -> None:
        raise AssertionError(f"{type(layer).__name__} ran before the bad input was found")

    for module in model.modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            module.register_forward_pre_hook(fail)
    return model


def test_the_guard_sees_text_decoder_and_codec(mono: MusicGen) -> None:
    """Good input runs into it everywhere, so a bad one that does not was found in time."""
    calls: list[Callable[[], object]] = [
        lambda: mono.encode_text((IDS, MASK)),
        lambda: mono.encode(tiny.noise(1, 1, 50), tiny.RATE),
        lambda: mono.decode(tiny.codes(1, 4, 3)),
        lambda: mono.loss(tiny.codes(1, 4, 3)),
        lambda: mono.generate(None, OPTIONS),
        lambda: next(mono.generate_codes(None, OPTIONS)),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="ran before"):
            call()


def refuses(allowed_and_got: Sequence[str], call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """The call is a ValueError whose message matches each of the patterns."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    for part in allowed_and_got:
        assert re.search(part, str(caught.value)), f"{part!r} is not in: {caught.value}"


def generating(model: MusicGen) -> list[Callable[..., object]]:
    """Everything that takes the arguments of generate()."""
    return [model.generate, model.generate_codes, model.generate_steps]


# Text

TEXTS: dict[str, tuple[Any, ...]] = {
    "empty list": ([], "non-empty list of strings", r"got \[\]"),
    "empty tuple": ((), "non-empty list of strings", r"got \(\)"),
    "plain string": ("a song", "non-empty list of strings", "got 'a song'"),
    "strings without a tokenizer": (["a song"] * ROWS, "pair of ids and mask", "no tokenizer"),
    "ids without a mask": (IDS, "pair of ids and mask", "."),
    "rank 1": ((IDS[0], MASK[0]), r"\(B, L\)", r"got \(7,\) and \(7,\)"),
    "rank 3": ((IDS[None], MASK[None]), r"\(B, L\)", r"got \(1, 3, 7\)"),
    "mask of other rows": ((IDS, MASK[:1]), r"both be \(B, L\)", r"got \(3, 7\) and \(1, 7\)"),
    "mask of another length": ((IDS, MASK[:, :6]), r"both be \(B, L\)", r"got \(3, 7\) and \(3, 6\)"),
    "no tokens": ((IDS[:, :0], MASK[:, :0]), "not empty", r"got \(3, 0\)"),
    "no rows": ((IDS[:0], MASK[:0]), "not empty", r"got \(0, 7\)"),
    "float ids": ((IDS.float(), MASK), "whole numbers", "got torch.float32"),
    "ids too large": ((IDS.clamp(min=99), MASK), r"0\.\.98", r"got 99\.\.99"),
    "negative ids": ((IDS - 2, MASK), r"0\.\.98", r"got -2\.\."),
    "ids on another device": ((IDS.to(META), MASK), "device cpu", "got meta"),
    "mask on another device": ((IDS, MASK.to(META)), "device cpu", "got meta"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_bad_text(mono: MusicGen, name: str) -> None:
    text, *parts = TEXTS[name]
    refuses(parts, mono.encode_text, text)
    refuses(parts, mono.loss, tiny.codes(ROWS, 4, 5), text)
    for generate in generating(mono):
        for guidance in (0.0, 1.0, 3.0):
            refuses(parts, generate, text, replace(OPTIONS, guidance_scale=guidance))
        # Audio is not encoded before the text is checked.
        refuses(parts, generate, text, OPTIONS, prompt=(tiny.noise(ROWS, 1, 50), tiny.RATE))


@pytest.mark.parametrize("text", ["a song", []], ids=["plain string", "empty list"])
def test_bad_text_never_reaches_the_tokenizer(mono: MusicGen, text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenizer(texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"tokenized {texts!r}")

    monkeypatch.setattr(mono, "tokenizer", tokenizer)
    refuses(("list of strings, or a pair of ids and mask", "got"), mono.encode_text, text)
    refuses(("list of strings, or a pair of ids and mask", "got"), mono.generate, text, OPTIONS)


# Codes and audio: what any method that takes them refuses


def bad_codes(K: int) -> dict[str, tuple[Any, ...]]:
    codes = tiny.codes(ROWS, K, 5)
    shape = rf"\(B, {K}, T\)"
    return {
        "rank 2": (codes[0], shape, rf"got torch.int64 \({K}, 5\)"),
        "rank 4": (codes[None], shape, rf"got torch.int64 \(1, 3, {K}, 5\)"),
        "too few codebooks": (codes[:, 1:], shape, rf"got torch.int64 \(3, {K - 1}, 5\)"),
        "too many codebooks": (codes.repeat(1, 2, 1), shape, rf"got torch.int64 \(3, {2 * K}, 5\)"),
        "no frames": (codes[..., :0], "T > 0", rf"got torch.int64 \(3, {K}, 0\)"),
        "no rows": (codes[:0], shape, rf"got torch.int64 \(0, {K}, 5\)"),
        "float": (codes.float(), "int64 or int32", "got torch.float32"),
        "bool": (codes > 9, "int64 or int32", "got torch.bool"),
        "complex": (codes.to(torch.complex64), "int64 or int32", "got torch.complex64"),
        "int16": (codes.short(), "int64 or int32", "got torch.int16"),
        "uint8": (codes.byte(), "int64 or int32", "got torch.uint8"),
        "special token": (codes.clamp(min=tiny.CODES), r"0\.\.63", r"got 64\.\.64"),
        "on another device": (codes.to(META), "device cpu", "got meta"),
    }


def bad_audio(C: int) -> dict[str, tuple[Any, ...]]:
    audio, rate = tiny.noise(ROWS, C, 50), tiny.RATE
    broken = audio.clone()
    broken[1, 0, 7] = torch.nan
    loud = audio.clone()
    loud[1, 0, 7] = -torch.inf
    shape = rf"\(B, {C}, N\)"
    return {
        "rank 1": (audio[0, 0], rate, shape, r"got torch.float32 \(50,\)"),
        "rank 2": (audio[0], rate, shape, rf"got torch.float32 \({C}, 50\)"),
        "other channels": (audio[:, :1].repeat(1, 3 - C, 1), rate, shape, rf"got torch.float32 \(3, {3 - C}, 50\)"),
        "three channels": (audio[:, :1].repeat(1, 3, 1), rate, shape, r"got torch.float32 \(3, 3, 50\)"),
        "no samples": (audio[..., :0], rate, "N > 0", rf"got torch.float32 \(3, {C}, 0\)"),
        "no rows": (audio[:0], rate, shape, rf"got torch.float32 \(0, {C}, 50\)"),
        "NaN": (broken, rate, "finite", "got NaN"),
        "infinity": (loud, rate, "finite", "got .*infinity"),
        "whole numbers": ((audio * 32767).to(torch.int16), rate, "floating point", "got torch.int16"),
        "another sampling rate": (audio, 32000, "400 Hz", "got 32000"),
        "no sampling rate": (audio, 0, "400 Hz", "got 0"),
        "on another device": (audio.to(META), rate, "device cpu", "got meta"),
    }


CODES, AUDIO = list(bad_codes(4)), list(bad_audio(1))


@pytest.fixture(params=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicGen:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", [*CODES, "negative"])
def test_bad_codes(model: MusicGen, name: str) -> None:
    K = model.decoder.config.codebooks
    text = (IDS, MASK)
    if name == "negative":  # padding to loss()
        codes, *parts = tiny.codes(ROWS, K, 5) - 64, r"0\.\.63", r"got -64\.\."
    else:
        codes, *parts = bad_codes(K)[name]
        refuses(parts, model.loss, codes, text)
    refuses(parts, model.decode, codes)
    for generate in generating(model):
        refuses(parts, generate, text, OPTIONS, prompt=codes)


@pytest.mark.parametrize("name", AUDIO)
def test_bad_audio(model: MusicGen, name: str) -> None:
    audio, rate, *parts = bad_audio(model.decoder.config.channels)[name]
    refuses(parts, model.encode, audio, rate)
    for generate in generating(model):
        refuses(parts, generate, (IDS, MASK), OPTIONS, prompt=(audio, rate))
        if audio.dim() == 3 and len(audio):
            # One bad row of a list is found before the first is encoded.
            good = tiny.noise(model.decoder.config.channels, 40)
            prompt = ([good, good, audio[1]], rate)
            refuses(parts[:1], generate, (IDS, MASK), OPTIONS, prompt=prompt)


def test_codes_of_int32_are_as_good_as_those_of_int64() -> None:
    model = tiny.ours(tiny.musicgen_of(tiny.CODES))
    codes = tiny.codes(2, 4, 5)
    assert torch.equal(model.decode(codes.int()), model.decode(codes))
    options = replace(OPTIONS, greedy=True)
    made = model.generate(None, options, prompt=codes.int())
    assert torch.equal(made.codes, model.generate(None, options, prompt=codes).codes)
    codes[0, :, 3:] = -1
    assert torch.equal(model.loss(codes.int()), model.loss(codes))


# Prompts


@pytest.mark.parametrize("samples", [14 * tiny.HOP + 1, 20 * tiny.HOP], ids=["by a sample", "by six frames"])
def test_a_prompt_longer_than_the_clip(model: MusicGen, samples: int) -> None:
    K, C = model.decoder.config.codebooks, model.decoder.config.channels
    frames = -(-samples // tiny.HOP)
    longer, audio = tiny.codes(ROWS, K, frames), tiny.noise(ROWS, C, samples)
    prompts: list[Any] = [
        longer,
        [longer[0, :, :3], longer[1], longer[2]],
        (audio, tiny.RATE),
        ([audio[0, :, :9], audio[1], audio[2]], tiny.RATE),
    ]
    for prompt in prompts:
        for generate in generating(model):
            refuses(("14 frames", f"got {frames}"), generate, (IDS, MASK), OPTIONS, prompt=prompt)


def test_prompts_for_another_number_of_rows(model: MusicGen) -> None:
    K, C = model.decoder.config.codebooks, model.decoder.config.channels
    prompts: list[Any] = [
        tiny.codes(2, K, 5),
        list(tiny.codes(2, K, 5)),
        (tiny.noise(2, C, 50), tiny.RATE),
        (list(tiny.noise(2, C, 50)), tiny.RATE),
    ]
    for prompt in prompts:
        for generate in generating(model):
            refuses(("each of the 3 texts", "got 2"), generate, (IDS, MASK), OPTIONS, prompt=prompt)
            refuses(("each of the 3 texts", "got 2"), generate, [None] * 3, OPTIONS, prompt=prompt)


def test_an_empty_list_of_prompts(mono: MusicGen) -> None:
    for generate in generating(mono):
        for prompt in ([], ([], tiny.RATE)):
            refuses(("prompt .*row or more", "got none"), generate, (IDS, MASK), OPTIONS, prompt=prompt)


def test_one_bad_row_in_a_list_of_codes(mono: MusicGen) -> None:
    good = tiny.codes(1, 4, 5)[0]
    rows = {r"\(B, 4, T\)": good[:3], "int64 or int32": good.float(), r"0\.\.63": good + 64, "T > 0": good[:, :0]}
    for allowed, bad in rows.items():
        for generate in generating(mono):
            refuses((allowed, "got"), generate, (IDS, MASK), OPTIONS, prompt=[good, good, bad])


# Generators

GENERATORS: dict[str, tuple[Any, ...]] = {
    "too few": ([Generator()] * 2, "3 rows", "got 2"),
    "too many": ([Generator()] * 4, "3 rows", "got 4"),
    "none at all": ([], "3 rows", "got 0"),
    "a seed": (42, "torch.Generator", "got 42"),
    "the seed 0": (0, "torch.Generator", "got 0"),
    "seeds": ([1, 2, 3], "torch.Generator", r"got \[1, 2, 3\]"),
    "one missing": ([Generator(), None, Generator()], "torch.Generator", "None"),
    "a string": ("abc", "torch.Generator", "got 'abc'"),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_bad_generators(mono: MusicGen, name: str) -> None:
    generator, *parts = GENERATORS[name]
    for generate in generating(mono):
        refuses(("generator", *parts), generate, (IDS, MASK), OPTIONS, generator=generator)
        prompt = (tiny.noise(ROWS, 1, 50), tiny.RATE)
        refuses(("generator", *parts), generate, (IDS, MASK), OPTIONS, prompt=prompt, generator=generator)


def test_a_generator_of_another_device() -> None:
    with torch.device("meta"):
        model = MusicGen(T5Config(width=8, heads=1), DecoderConfig(width=8, heads=1, text_width=8), EncodecConfig())
    for generator in (Generator(), [Generator()]):
        refuses(("generator .* device meta", "got cpu"), model.generate, None, OPTIONS, generator=generator)


# Options

OPTION_ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({"seconds": 0.0}, "seconds must be above 0", "got 0.0"),
    ({"seconds": -1.5}, "seconds must be above 0", "got -1.5"),
    ({"seconds": float("nan")}, "seconds must be above 0", "got nan"),
    ({"seconds": float("inf")}, "seconds must be", "got inf"),
    ({"frames": 0}, "frames must be a whole number above 0", "got 0"),
    ({"frames": -3}, "frames must be a whole number above 0", "got -3"),
    ({"frames": 2.5}, "frames must be a whole number above 0", "got 2.5"),
    ({"frames": True}, "frames must be a whole number above 0", "got True"),
    ({"frames": 10, "seconds": 1.0}, "seconds must be None where frames are given", "got 1.0"),
    ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number", "got nan"),
    ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number", "got inf"),
    ({"temperature": 0.0}, "temperature must be above 0", "got 0.0"),
    ({"temperature": -1.0}, "temperature must be above 0", "got -1.0"),
    ({"temperature": float("nan")}, "temperature must be above 0", "got nan"),
    ({"temperature": float("inf")}, "temperature must be", "got inf"),
    ({"top_k": -1}, "top_k must be a whole number from 0", "got -1"),
    ({"top_k": 2.5}, "top_k must be a whole number from 0", "got 2.5"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1", "got 0.0"),
    ({"top_p": -0.1}, "top_p must be above 0 and at most 1", "got -0.1"),
    ({"top_p": 1.1}, "top_p must be above 0 and at most 1", "got 1.1"),
    ({"top_p": float("nan")}, "top_p must be above 0 and at most 1", "got nan"),
    ({"pattern": "flat"}, "'delay' or 'parallel'", "got 'flat'"),
]


@pytest.mark.parametrize("fields, allowed, got", OPTION_ERRORS, ids=lambda value: str(value)[:40])
def test_bad_options(fields: dict[str, Any], allowed: str, got: str) -> None:
    """No method sees them: they do not come into being."""
    refuses((allowed, got), GenerationOptions, **fields)
    refuses((allowed, got), replace, OPTIONS, **{"frames": None} | fields)


def test_less_than_half_a_frame(mono: MusicGen) -> None:
    for generate in generating(mono):
        refuses(("half a frame, 0.01", "got 0.009"), generate, (IDS, MASK), GenerationOptions(seconds=0.009))
    refuses(("half a frame, 0.01", "got 0.0"), mono.frames, 0.0)
    refuses(("half a frame, 0.01", "got -2.0"), mono.frames, -2.0)


# Loss


def test_a_loss_of_nothing(model: MusicGen) -> None:
    K = model.decoder.config.codebooks
    padding = torch.full((ROWS, K, 5), -1)
    refuses(("a code of every codebook", "got only padding"), model.loss, padding)
    one = tiny.codes(ROWS, K, 5)
    one[:, K - 1] = -1
    refuses(("a code of every codebook", "got only padding"), model.loss, one, (IDS, MASK))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_loss_with_text_for_another_number_of_rows(mono: MusicGen, rows: int) -> None:
    codes = tiny.codes(rows, 4, 5)
    refuses((f"each of the {rows} rows of codes", "got 3"), mono.loss, codes, (IDS, MASK))
    refuses((f"each of the {rows} rows of codes", "got 3"), mono.loss, codes, [None] * 3)


# Parts that do not fit together

PARTS: list[tuple[dict[str, Any], str, str]] = [
    ({"decoder": {"text_width": 16}}, "DecoderConfig.text_width must be T5Config.width 8", "got 16"),
    ({"decoder": {"vocab_size": 2049}}, "vocab_size must be at most EncodecConfig.codebook_size 2048", "got 2049"),
    ({"decoder": {"codebooks": 5}}, "codebooks must be at most 4 a channel", "got 5"),
    ({"codec": {"channels": 2}}, "EncodecConfig.channels must be 1", "got 2"),
    ({"codec": {"normalize": True}}, "EncodecConfig.normalize must be False", "got True"),
    ({"codec": {"chunk_seconds": 1.0, "overlap": 0.01}}, "EncodecConfig.chunk_seconds must be None", "got 1.0"),
    ({"backend": "flash"}, "('sdpa', 'eager')", "got 'flash'"),
]


@pytest.mark.parametrize("parts, allowed, got", PARTS, ids=lambda value: str(value)[:40])
def test_parts_that_do_not_fit(parts: dict[str, Any], allowed: str, got: str) -> None:
    decoder = {"width": 8, "layers": 1, "heads": 1, "ffn": 8, "text_width": 8} | parts.get("decoder", {})
    codec = EncodecConfig(**{"filters": 2, "hidden": 4} | parts.get("codec", {}))
    text = T5Config(width=8, layers=1, heads=1, ffn=8)
    backend = {"backend": parts["backend"]} if "backend" in parts else {}
    refuses((allowed, got), MusicGen, text, DecoderConfig(**decoder), codec, **backend)
