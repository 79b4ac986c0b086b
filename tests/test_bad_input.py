"""Bad input is a ValueError that says what was got and what is allowed, and nothing has been computed by then."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from musicgen_ref import MusicGen, hf, parity
from musicgen_ref.audio import read_wav
from musicgen_ref.checkpoint import load_codec
from musicgen_ref.checkpoint.info import report
from musicgen_ref.decoder import Decoder, DecoderConfig
from musicgen_ref.encodec import Chunk, Encodec, EncodecConfig
from musicgen_ref.model import GenerationOptions, TextStates
from musicgen_ref.t5 import T5Config, T5Encoder
from tests import tiny
from weights_convert import convert

CSR, NESTED = torch.ones(3, 5).to_sparse_csr(), torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
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
    "a number": (7, "non-empty list of strings", "got 7"),
    "bytes": (b"a song", "non-empty list of strings", "got b'a song'"),
    "a list of numbers": ([1, 2, 3], "non-empty list of strings", r"got \[1, 2, 3\]"),
    "a dictionary": ({"text": "a song"}, "non-empty list of strings", "got {'text': 'a song'}"),
    "sparse ids": ((IDS.to_sparse(), MASK), "text must be a dense tensor", "sparse_coo"),
    "nested ids": ((NESTED, MASK), "text must be a dense tensor", "nested"),
    "a sparse mask": ((IDS, MASK.to_sparse()), "text must be a dense tensor", "sparse_coo"),
    "too long": ((IDS[:, :1].repeat(1, 4097),) * 2, "at most max_text_tokens, 4096", "got one of 4097 tokens"),
}
TEXTS |= {
    f"states: {name}": (TextStates(states, mask), "text", words)
    for name, states, mask, words in (
        ("none", None, MASK, "must be a tensor, got NoneType"),
        ("no mask", torch.zeros(ROWS, 7, 32), None, "must be a tensor, got NoneType"),
        ("sparse", CSR, MASK, "dense tensor, got a sparse_csr one"),
    )
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
        "int8": (codes.to(torch.int8), "int64 or int32", "got torch.int8"),
        "an array of floats": (codes.float().numpy(), "int64 or int32", "got torch.float32"),
        "sparse": (codes.to_sparse(), "codes must be a dense tensor", "sparse_coo"),
        "nested": (NESTED, "codes must be a dense tensor", "nested"),
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
        "whole numbers of no WAV file": ((audio * 32767).long(), rate, "floating point", "got torch.int64"),
        "sparse": (audio.to_sparse(), rate, "audio must be a dense tensor", "sparse_coo"),
        "an array of strings": (np.array([[["a"]]]), rate, "audio must hold numbers", "array of <U1"),
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
        if isinstance(audio, Tensor) and audio.dim() == 3 and len(audio) and name != "sparse":
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


@pytest.mark.parametrize("kind", ["int16", "uint8", "int64 of numpy", "int16 of numpy", "big-endian", "reversed"])
def test_codes_of_other_whole_numbers_and_of_numpy_are_as_good_as_tensors_of_int64(kind: str) -> None:
    model = tiny.ours(tiny.musicgen_of(tiny.CODES))
    codes = tiny.codes(2, 4, 5)
    backwards = codes.flip(2).numpy()[..., ::-1]  # a stride below 0, which torch has not
    arrays = {"int64 of numpy": codes.numpy(), "int16 of numpy": codes.short().numpy(), "reversed": backwards}
    tensors = {"int16": codes.short(), "uint8": codes.byte(), "big-endian": codes.numpy().astype(">i4")}
    given: Any = (arrays | tensors)[kind]
    assert torch.equal(model.decode(given), model.decode(codes))
    options = replace(OPTIONS, greedy=True)
    expected = model.generate((IDS[:2], MASK[:2]), options, prompt=codes)
    for prompt in (given, list(given)):
        made = model.generate((IDS[:2].numpy(), MASK[:2].numpy()), options, prompt=prompt)
        assert torch.equal(made.codes, expected.codes)
    if kind != "uint8":
        given, codes = given.copy() if isinstance(given, np.ndarray) else given, codes.clone()
        given[0, :, 3:], codes[0, :, 3:] = -1, -1
    assert torch.equal(model.loss(given), model.loss(codes))


@pytest.mark.parametrize("kind", ["float32", "float64", "int16", "int32", "uint8"])
@pytest.mark.parametrize("of_numpy", [False, True], ids=["torch", "numpy"])
def test_audio_of_numpy_and_of_a_wav_reader_is_coded_as_its_fraction_of_full_scale(kind: str, of_numpy: bool) -> None:
    model = tiny.ours(tiny.musicgen_of(tiny.CODES))
    audio = (tiny.noise(2, 1, 100) * 100).round() / 128
    silence, scale = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (128, 128)}.get(kind, (0, 1))
    given: Any = (audio.double() * scale + silence).to(getattr(torch, kind))
    given, rate = (given.numpy(), np.int64(tiny.RATE)) if of_numpy else (given, tiny.RATE)
    codes = model.encode(audio, tiny.RATE)
    assert len(codes.unique()) > 10
    assert torch.equal(model.encode(given, rate), codes)
    options = replace(OPTIONS, greedy=True)
    expected = model.generate(None, options, prompt=(audio, tiny.RATE)).codes
    for prompt in ((given, rate), (list(given), rate)):
        assert torch.equal(model.generate(None, options, prompt=prompt).codes, expected)


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


@pytest.mark.parametrize(
    "prompt, parts",
    [
        (7, ("prompt must be tensors of codes", "got 7")),
        ("abc", ("prompt must be tensors of codes", "got 'abc'")),
        ({"codes": 1}, ("prompt must be tensors of codes", "got {'codes': 1}")),
        ([None, None, None], ("codes must be a tensor or a numpy array", "got NoneType")),
        ((None, 400), ("prompt must be tensors of codes", "got")),
        (([None] * 3, 400), ("audio must be a tensor or a numpy array", "got NoneType")),
        ((tiny.noise(3, 1, 50), None), ("pair of audio and its sampling rate", "got the rate None")),
        ((tiny.noise(3, 1, 50), "400"), ("pair of audio and its sampling rate", "got the rate '400'")),
        ((tiny.noise(3, 1, 50), True), ("pair of audio and its sampling rate", "got the rate True")),
        ((tiny.noise(3, 1, 50), 400, 1), ("codes must be a tensor or a numpy array|codes", "got")),
    ],
    ids=str,
)
def test_a_prompt_of_another_kind(mono: MusicGen, prompt: Any, parts: Sequence[str]) -> None:
    for generate in generating(mono):
        refuses(parts, generate, (IDS, MASK), OPTIONS, prompt=prompt)


def test_one_bad_row_in_a_list_of_codes(mono: MusicGen) -> None:
    good = tiny.codes(1, 4, 5)[0]
    rows = {r"\(B, 4, T\)": good[:3], "int64 or int32": good.float(), r"0\.\.63": good + 64, "T > 0": good[:, :0]}
    for allowed, bad in rows.items():
        for generate in generating(mono):
            refuses((allowed, "got"), generate, (IDS, MASK), OPTIONS, prompt=[good, good, bad])


# Generators

TWICE = Generator()
GENERATORS: dict[str, tuple[Any, ...]] = {
    "too few": ([Generator()] * 2, "3 rows", "got 2"),
    "too many": ([Generator()] * 4, "3 rows", "got 4"),
    "none at all": ([], "3 rows", "got 0"),
    "a seed": (42, "torch.Generator", "got 42"),
    "the seed 0": (0, "torch.Generator", "got 0"),
    "seeds": ([1, 2, 3], "torch.Generator", r"got \[1, 2, 3\]"),
    "one missing": ([Generator(), None, Generator()], "torch.Generator", "None"),
    "a string": ("abc", "torch.Generator", "got 'abc'"),
    "one twice": ([TWICE, Generator(), TWICE], "another one for each row", "one in several rows"),
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
    ({"pattern": ["delay"]}, "'delay' or 'parallel'", r"got \['delay'\]"),
    ({"seconds": 1e300}, "seconds must be at most 1000000000", r"got 1e\+300"),
    ({"seconds": 10**400}, "seconds must be at most 1000000000", "got a whole number of 1329 bits"),
    ({"temperature": 1e-40}, r"temperature must be from 1e-20 to 1e\+20, beyond which fp32 overflows", "got 1e-40"),
    ({"temperature": 1e39}, r"temperature must be from 1e-20 to 1e\+20", r"got 1e\+39"),
    ({"temperature": 10**400}, r"temperature must be from 1e-20 to 1e\+20", "got a whole number of 1329 bits"),
    ({"guidance_scale": 1e39}, r"guidance_scale must be from -1e\+10 to 1e\+10, beyond which fp32", r"got 1e\+39"),
    ({"guidance_scale": -(10**400)}, r"guidance_scale must be from -1e\+10 to 1e\+10", "got a whole number of 1329"),
    ({"max_bytes": 0}, "max_bytes must be a whole number above 0", "got 0"),
    ({"max_bytes": 1e9}, "max_bytes must be a whole number above 0", "got 1000000000.0"),
    ({"max_text_tokens": 0}, "max_text_tokens must be a whole number above 0", "got 0"),
    *(
        ({name: value}, f"{name} must be", "got")
        for name in ("seconds", "frames", "guidance_scale", "temperature", "top_k", "top_p", "min_p", "greedy",
                     "pattern", "max_bytes", "max_text_tokens")
        for value in ("8", b"8", [8], {}, object(), 1j, torch.ones(2), np.ones(2), CSR, torch.ones((), device="meta"))
    ),
    *(
        ({name: None}, f"{name} must be", "got None")
        for name in ("min_p", "greedy", "pattern", "max_bytes", "max_text_tokens")
    ),
]  # fmt: skip


@pytest.mark.parametrize("given, allowed, got", OPTION_ERRORS, ids=lambda value: str(value)[:40])
def test_bad_options(given: dict[str, Any], allowed: str, got: str) -> None:
    """No method sees them: they do not come into being."""
    refuses((allowed, got), GenerationOptions, **given)
    refuses((allowed, got), replace, OPTIONS, **{"frames": None} | given)


def test_options_of_numpy_are_those_of_python() -> None:
    given: dict[str, Any] = {
        "seconds": np.float32(2.5), "guidance_scale": np.float64(1.5), "temperature": np.array(0.5),
        "top_k": np.int16(7), "top_p": torch.tensor(0.25), "min_p": np.float16(0.5), "greedy": np.bool_(True),
        "max_bytes": np.uint64(2**40), "max_text_tokens": np.array(9),
    }  # fmt: skip
    plain = GenerationOptions(2.5, None, 1.5, 0.5, 7, 0.25, True, "delay", 0.5, 2**40, 9)
    options = GenerationOptions(**given)
    assert options == plain
    assert [type(value) for value in vars(options).values()] == [type(value) for value in vars(plain).values()]
    assert GenerationOptions(frames=np.int64(3)) == GenerationOptions(frames=3)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.array, torch.tensor])
def test_numbers_of_numpy_are_taken_by_every_method(mono: MusicGen, kind: Any) -> None:
    assert mono.frames(kind(2)) == 100 and type(mono.frames(kind(2))) is int
    whole = np.int32(2) if kind in (np.float32, np.float64) else kind(2)
    assert mono.decoder.new_cache(whole, whole).keys[0].shape == (2, 4, 2, 8)
    with pytest.raises(AssertionError, match="ran before"):
        mono.codec.encode(torch.zeros(1, 1, 9), whole)
    with pytest.raises(AssertionError, match="ran before"):
        mono.encode_text((IDS, MASK), whole * 4)


@pytest.mark.parametrize("options", [None, 8, {"seconds": 8}])
def test_options_of_another_kind(mono: MusicGen, options: Any) -> None:
    for generate in generating(mono):
        refuses(("options must be a GenerationOptions", "got"), generate, (IDS, MASK), options)


def test_less_than_half_a_frame(mono: MusicGen) -> None:
    for generate in generating(mono):
        refuses(("half a frame, 0.01", "got 0.009"), generate, (IDS, MASK), GenerationOptions(seconds=0.009))
    refuses(("half a frame, 0.01", "got 0.0"), mono.frames, 0.0)
    refuses(("half a frame, 0.01", "got -2.0"), mono.frames, -2.0)
    for value in ("8", None, 1e300, 10**400, float("nan"), True):
        refuses(("half a frame, 0.01|at most 1000000000", "got"), mono.frames, value)


# How large a call is


@pytest.fixture
def nothing_allocated(mono: MusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test fails where a table or a cache is made."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(type(mono.decoder), "new_cache", fail)
    monkeypatch.setattr(torch, "full", fail)


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    "length, words",
    [
        ({"seconds": 1e6}, r"the call would take 1\d\d\.\d GiB"),
        ({"seconds": 1e9}, r"the call would take 1\d\d,\d\d\d\.\d GiB"),
        ({"frames": 10**8}, r"the call would take 3\d\d\.\d GiB"),
        ({"frames": 10**400}, r"the call would take over 2\*\*50 GiB"),
    ],
    ids=str,
)
def test_a_clip_that_no_memory_holds_is_refused_by_what_it_would_take(
    mono: MusicGen, length: dict[str, Any], words: str
) -> None:
    options = GenerationOptions(**length)
    for generate in generating(mono):
        parts = ("of keys and values", "of codes", "of audio", "more than max_bytes, 16.0 GiB", "raise max_bytes")
        refuses((words, *parts), generate, (IDS, MASK), options)
        refuses(parts, generate, (IDS, MASK), options, prompt=(tiny.noise(ROWS, 1, 50), tiny.RATE))


@pytest.mark.usefixtures("nothing_allocated")
def test_the_rows_and_the_text_of_a_call_count_as_well(mono: MusicGen) -> None:
    few = GenerationOptions(frames=5, max_bytes=10**6)
    many = IDS[:1].repeat(500, 1)
    for text in ((many, many.bool()), [None] * 500):
        refuses(("the call would take .* MiB", "max_bytes, 976,?.*bytes|max_bytes, 1,000,000 bytes"),
                mono.generate, text, few)  # fmt: skip
    long = torch.ones(1, 4000, dtype=torch.long)
    refuses((r"2\d\d\.\d MiB of scores of the text",), mono.generate, (long, long), few)


def test_a_text_has_at_most_as_many_tokens_as_the_options_say(mono: MusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of the caller's and of the tokenizer."""

    def tokenizer(texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        ids = torch.ones(len(texts), max(len(text or "") for text in texts), dtype=torch.long)
        return ids, ids

    monkeypatch.setattr(mono, "tokenizer", tokenizer)
    words = "at most max_text_tokens, 6, got one of 7 tokens", "raise max_text_tokens"
    for text in ((IDS, MASK), ["abc", "abcdefg", None]):
        refuses(words, mono.encode_text, text, 6)
        for generate in generating(mono):
            refuses(words, generate, text, replace(OPTIONS, max_text_tokens=6))
        with pytest.raises(AssertionError, match="ran before"):
            mono.encode_text(text, 7)
    long = ["a" * 4097]
    words = "at most max_text_tokens, 4096", "got one of 4097 tokens"
    refuses(words, mono.encode_text, long)
    refuses(words, mono.loss, tiny.codes(1, 4, 5), long)
    refuses(words, mono.generate, long, OPTIONS)
    for wrong in (0, -1, "7", 2.5, None, True):
        refuses(("max_text_tokens must be a whole number above 0", "got"), mono.encode_text, (IDS, MASK), wrong)


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


# Kinds of things that are no configuration, no path, no tensor


@pytest.mark.parametrize("wrong", [None, 7, "small", {}], ids=str)
def test_what_is_no_configuration(wrong: Any) -> None:
    text, decoder, codec = T5Config(), DecoderConfig(), EncodecConfig()
    for part, config in ((T5Encoder, "T5Config"), (Decoder, "DecoderConfig"), (Encodec, "EncodecConfig")):
        refuses((f"config must be a {config}", "got"), part, wrong)
    refuses(("text must be a T5Config", "got"), MusicGen, wrong, decoder, codec)
    refuses(("decoder must be a DecoderConfig", "got"), MusicGen, text, wrong, codec)
    refuses(("codec must be a EncodecConfig", "got"), MusicGen, text, decoder, wrong)
    refuses(("text must be a T5Config", "got DecoderConfig"), MusicGen, decoder, decoder, codec)


@pytest.mark.parametrize("config", [T5Config, DecoderConfig, EncodecConfig])
def test_a_field_of_a_wrong_type_is_named(config: Any) -> None:
    for field in fields(config):
        for wrong in ("x" * 3, b"8", {"a": 1}, object(), 1j, torch.ones(2, 2), 10**400, None):
            kind = str(getattr(field.type, "__name__", field.type))
            fits = (wrong is None and "None" in kind) or (isinstance(wrong, str) and kind == "str")
            if not fits and not (isinstance(wrong, int) and "float" in kind):
                refuses((rf"{config.__name__}\.{field.name} must be", "got"), config, **{field.name: wrong})


def test_a_configuration_of_numpy_is_that_of_python() -> None:
    assert DecoderConfig(width=np.int64(64), heads=np.uint8(4), dropout=np.float32(0.5)) == DecoderConfig(
        width=64, heads=4, dropout=0.5
    )
    delays = DecoderConfig(delays=np.arange(4))
    assert delays == DecoderConfig(delays=tuple(np.arange(4))) == DecoderConfig() and type(delays.delays[3]) is int
    codec = EncodecConfig(ratios=np.array([8, 5, 4, 4]), bandwidths=[np.float64(2.2)], causal=np.bool_(False))
    assert codec == EncodecConfig(bandwidths=(2.2,)) and type(codec.bandwidths[0]) is float
    assert T5Config(width=np.int32(768)) == T5Config() and hash(codec) is not None


@pytest.mark.parametrize("path", [None, 7, b"demo", ["demo"], "de\0mo"])
def test_what_is_no_path(mono: MusicGen, path: Any) -> None:
    refuses(("path must be a path", "got"), MusicGen.from_pretrained, path)
    refuses(("path must be a path", "got"), mono.save_pretrained, path)
    for name, must in (
        ("text_encoder", "a path"),
        ("codec", "a path"),
        ("adapter", "True, False, None or a directory"),
    ):
        if path is not None:
            refuses((f"{name} must be {must}", "got"), MusicGen.from_pretrained, "demo", **{name: path})
    for read in (read_wav, report, load_codec, parity.record):
        refuses(("path must be a path", "got"), read, path)
    for part in (hf.MusicgenForConditionalGeneration, hf.AutoProcessor, hf.T5Tokenizer, hf.MusicgenConfig):
        refuses(("must be",) if path is None else ("name must be a path", "got"), part.from_pretrained, path)
    for move in (convert.from_audiocraft, convert.from_huggingface, convert.to_audiocraft):
        refuses(("source must be a path", "got"), move, path, "out")
        refuses(("target must be a path", "got"), move, "demo", path)


def test_a_device_without_values() -> None:
    refuses(("device must be one that torch has here, got 'meta'", "no values"), MusicGen.from_pretrained, "demo",
            device="meta")  # fmt: skip


def test_parts_refuse_tensors_of_another_kind(mono: MusicGen) -> None:
    wrong: list[tuple[Any, str]] = [
        (None, "must be a tensor, got NoneType"), ([1], "must be a tensor, got list"),
        (CSR, "must be a dense tensor, got a sparse_csr one"), (NESTED, "must be a dense tensor, got a nested one"),
    ]  # fmt: skip
    T5, decoder, codec = mono.text_encoder, mono.decoder, mono.codec
    codes, memory = tiny.codes(ROWS, 4, 5), torch.zeros(ROWS, 7, 32)
    for value, words in wrong:
        refuses((f"states {words}",), decoder.project_text, value)
        refuses((f"audio {words}",), codec.encode, value)
        refuses((f"codes {words}",), codec.decode, [Chunk(value)])
        if value is None:
            continue
        refuses((f"ids {words}",), T5, value)
        refuses((f"mask {words}",), T5, IDS, value)
        refuses((f"embeddings {words}",), T5, embeddings=value)
        refuses((f"codes {words}",), decoder, value)
        refuses((f"embeddings {words}",), decoder, embeddings=value)
        refuses((f"memory {words}",), decoder, codes, value)
        refuses((f"memory_mask {words}",), decoder, codes, memory, value)
        refuses((f"memory {words}",), decoder.new_cache, ROWS, 5, value)
        for name in ("step_mask", "self_head_mask", "cross_head_mask"):
            refuses((f"{name} {words}",), decoder, codes, **{name: value})
    for part, value in ((T5, IDS.to(META)), (codec.encode, torch.zeros(1, 1, 9, device=META))):
        refuses(("with values, got one on the meta device",), part, value)
    refuses(("codes must be a tensor with values",), codec.decode, [Chunk(codes.to(META))])
    for chunks in (None, 7, codes, [codes], [None]):
        refuses(("chunks must be", "got"), codec.decode, chunks)
    for steps in (None, "5", 2.5, 0):
        refuses(("batch and steps must be above 0",), decoder.new_cache, 1, steps)


def test_messages_stay_short_whatever_they_show(mono: MusicGen) -> None:
    nested: Any = []
    for _ in range(100):
        nested = [nested, nested]  # 2 ** 100 brackets to print
    for value in (nested, "x" * 10**6, list(range(10**6)), 10**5000, torch.zeros(10**6), np.zeros(10**6)):
        for call in (lambda v: GenerationOptions(temperature=v), lambda v: mono.generate(None, OPTIONS, generator=v),
                     mono.encode_text, mono.decode, lambda v: T5Config(width=v)):  # fmt: skip
            with pytest.raises(ValueError) as caught:
                call(value)
            assert len(str(caught.value)) < 1000
