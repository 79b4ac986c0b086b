"""The command line, on a tiny model with a tokenizer, run in this process (and once on a pseudo-terminal)."""

import argparse
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5TokenizerFast

from musicgen_ref import GenerationOptions, MusicGen, __version__
from musicgen_ref.__main__ import main, parser
from musicgen_ref.audio import match_channels, read_wav, resample, write_wav
from tests import tiny
from weights_convert.__main__ import parser as conversions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.musicgen().save_pretrained(path)
    letters = [("▁", -2.0), *((chr(ord("a") + i), -3.0 - i / 10) for i in range(26))]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    T5TokenizerFast(vocab=vocab, extra_ids=0).save_pretrained(path)
    return path


@pytest.fixture
def generate(folder: Path, tmp_path: Path):
    """Run `generate` with these arguments into a fixed file; the exit status and the file's path."""

    def run(*arguments: str, name: str = "out.wav") -> tuple[int, Path]:
        output = tmp_path / name
        return main(["generate", *arguments, "--model", str(folder), "-o", str(output)]), output

    return run


def test_generate_writes_what_the_library_makes(folder: Path, generate) -> None:
    status, output = generate("slow piano", "--seconds", "2", "--seed", "7", "--top-k", "20", "--guidance", "2")
    assert status == 0
    audio, rate = read_wav(output)
    assert (rate, audio.shape) == (tiny.RATE, (1, 2 * tiny.RATE))
    options = GenerationOptions(seconds=2, top_k=20, guidance_scale=2)
    model = MusicGen.from_pretrained(folder)
    expected = model.generate(["slow piano"], options, generator=torch.Generator().manual_seed(7)).audio[0]
    # The file has 16 bits: half a step of 2 ** -15, and clipping.
    torch.testing.assert_close(audio, expected.clamp(-1, 1 - 2**-15), rtol=0, atol=2**-16)


def test_a_seed_repeats_and_is_told_when_it_was_chosen(generate, capsys: pytest.CaptureFixture[str]) -> None:
    def chosen(name: str) -> tuple[Path, int]:
        _, file = generate("piano", "--seconds", "1", name=name)
        return file, int(capsys.readouterr().out.split()[-1])

    (first, seed), (_, another) = chosen("first.wav"), chosen("another.wav")
    assert seed != another and min(seed, another) >= 0 and max(seed, another) < 2**32
    _, again = generate("piano", "--seconds", "1", "--seed", str(seed), name="again.wav")
    _, other = generate("piano", "--seconds", "1", "--seed", str(seed + 1), name="other.wav")
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_a_mono_prompt_of_a_stereo_model_is_doubled(tmp_path: Path) -> None:
    tiny.musicgen(8, 2).save_pretrained(tmp_path / "model")
    write_wav(tmp_path / "clip.wav", tiny.noise(1, 200) / 2, tiny.RATE)
    arguments = ["--audio-prompt", str(tmp_path / "clip.wav"), "--model", str(tmp_path / "model")]
    output = tmp_path / "out.wav"
    assert main(["generate", *arguments, "--seconds", "1", "--greedy", "-o", str(output)]) == 0
    model = MusicGen.from_pretrained(tmp_path / "model")
    prompt = read_wav(tmp_path / "clip.wav")[0].repeat(2, 1)[None]
    made = model.generate(None, GenerationOptions(seconds=1, greedy=True), prompt=(prompt, tiny.RATE))
    write_wav(tmp_path / "expected.wav", made.audio[0], tiny.RATE)
    assert output.read_bytes() == (tmp_path / "expected.wav").read_bytes()


def test_seed_0_is_a_seed(generate) -> None:
    _, first = generate("piano", "--seconds", "1", "--seed", "0", name="first.wav")
    _, again = generate("piano", "--seconds", "1", "--seed", "0", name="again.wav")
    assert first.read_bytes() == again.read_bytes()


# What an option gives the library, and what it asks of generate(): all else is as without it.
OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "seconds": ("--seconds 0.7", {"seconds": 0.7}, {}),
    "guidance": ("--guidance 1.5", {"guidance_scale": 1.5}, {}),
    "temperature": ("--temperature 0.5", {"temperature": 0.5}, {}),
    "top-k": ("--top-k 3", {"top_k": 3}, {}),
    "top-p": ("--top-p 0.3", {"top_p": 0.3}, {}),
    "min-p": ("--min-p 0.6", {"min_p": 0.6}, {}),
    "greedy": ("--greedy", {"greedy": True}, {}),
    "bfloat16": ("--dtype bfloat16", {}, {"dtype": torch.bfloat16}),
    "float16": ("--dtype float16", {}, {"dtype": torch.float16}),
    "int8": ("--dtype int8", {}, {"dtype": "int8"}),
    "none": ("", {}, {}),
}


@pytest.fixture(scope="module")
def without(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of the options that the test below gives in every case."""
    output = tmp_path_factory.mktemp("without") / "out.wav"
    command = ["generate", "a b c", "--seconds", "0.5", "--seed", "3", "--model", str(folder), "-o", str(output)]
    assert main(command) == 0
    return output.read_bytes()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_what_the_library_gives_with_it(
    name: str, folder: Path, generate, without: bytes, tmp_path: Path
) -> None:
    arguments, fields, load = OPTIONS[name]
    status, output = generate("a b c", "--seconds", "0.5", "--seed", "3", *arguments.split())
    assert status == 0
    model = MusicGen.from_pretrained(folder, **load)
    options = GenerationOptions(**{"seconds": 0.5} | fields)
    made = model.generate(["a b c"], options, generator=torch.Generator().manual_seed(3))
    write_wav(tmp_path / "expected.wav", made.audio[0].float(), tiny.RATE)
    assert output.read_bytes() == (tmp_path / "expected.wav").read_bytes()
    assert (output.read_bytes() == without) == (name == "none")


def test_the_defaults_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    args, options = parser().parse_args(["generate"]), GenerationOptions()
    assert (args.guidance, args.temperature) == (options.guidance_scale, options.temperature)
    assert (args.top_k, args.top_p, args.greedy) == (options.top_k, options.top_p, options.greedy)
    assert (args.text, args.seconds, args.seed, args.audio_prompt) == (None, 8.0, None, None)
    assert (args.model, args.output, args.dtype, args.device) == ("demo", Path("out.wav"), "float32", "cpu")
    assert not args.compile
    assert parser().parse_args(["info"]).model == "demo"
    for command in ("audiocraft", "huggingface", "to-audiocraft"):
        given = vars(conversions().parse_args([command, "a", "b"]))
        assert (given.pop("command"), given.pop("source"), given.pop("target")) == (command, Path("a"), Path("b"))
        assert not any(given.values())
    assert conversions().parse_args(["verify", "a", "b"]).tolerance == 1e-5


def commands(main: argparse.ArgumentParser) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    (action,) = (action for action in main._actions if isinstance(action, argparse._SubParsersAction))
    return action


# What may be given, on one line.
USAGE = (
    "musicgen-ref [-h] [--version] {generate,info} ...",
    "musicgen-ref generate [-h] [--model DIR] [--adapter [ADAPTER] | --no-adapter] [--variant NAME] [-o FILE] "
    "[--seconds SECONDS] [--seed SEED] [--audio-prompt FILE] [--guidance GUIDANCE] [--temperature TEMPERATURE] "
    "[--top-k TOP_K] [--top-p TOP_P] [--min-p MIN_P] [--greedy] [--dtype {float32,bfloat16,float16,int8}] [--compile] "
    "[--device DEVICE] [text]",
    "musicgen-ref info [-h] [--check] [DIR]",
    "weights_convert [-h] {audiocraft,huggingface,to-audiocraft,info,verify} ...",
    "weights_convert audiocraft [-h] [--text-encoder DIR] [--codec DIR] [--dtype {fp32,bf16,fp16}] "
    "[--shard-size SIZE] [--overwrite] SRC DST",
    "weights_convert huggingface [-h] [--dtype {fp32,bf16,fp16}] [--shard-size SIZE] [--overwrite] "
    "[--adapter [ADAPTER] | --no-adapter] [--variant NAME] SRC DST",
    "weights_convert to-audiocraft [-h] [--overwrite] [--adapter [ADAPTER] | --no-adapter] [--variant NAME] SRC DST",
    "weights_convert info [-h] [--text-encoder DIR] [--codec DIR] [--check] DIR",
    "weights_convert verify [-h] [--tolerance TOLERANCE] SRC DST",
)


def test_the_usage_names_every_option_and_what_it_takes() -> None:
    every = [part for main in (parser(), conversions()) for part in (main, *commands(main).choices.values())]
    assert [" ".join(part.format_usage().split()) for part in every] == ["usage: " + line for line in USAGE]


@pytest.mark.parametrize("make", [parser, conversions], ids=["musicgen-ref", "weights_convert"])
def test_help_describes_every_command_and_argument(make: Callable[[], argparse.ArgumentParser]) -> None:
    main = make()
    for part in (main, *commands(main).choices.values()):
        assert part.description and part.description.endswith("."), part.prog
        for action in part._actions:
            told = [action]
            if action.dest == "command":
                told = commands(main)._choices_actions
                assert [one.dest for one in told] == list(commands(main).choices)
            assert all(one.help for one in told), f"{part.prog} {action.dest}"
            # The value that it has when it is not given.
            if action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
                assert action.help and "%(default)s" in action.help, f"{part.prog} {action.dest}"


@pytest.mark.parametrize(
    "guidance, guided", [((), True), (("--guidance", "1"), False), (("--guidance", "0"), False)], ids=str
)
def test_compile_compiles_the_step_that_is_taken(
    guidance: tuple[str, ...],
    guided: bool,
    generate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """tests/test_compile.py does so in earnest; here it is seen whether it is asked for."""
    asked = []
    monkeypatch.setattr(MusicGen, "compile", lambda model, batch=1, guided=True: asked.append((batch, guided)))
    arguments = ("a", "--seconds", "0.1", "--seed", "0", *guidance)
    generate(*arguments, name="plain.wav")
    assert asked == [] and capsys.readouterr().err == ""
    generate(*arguments, "--compile", name="compiled.wav")
    assert asked == [(1, guided)]
    assert re.fullmatch(r"compiled in \d+ s\n", capsys.readouterr().err)


def test_the_model_is_loaded_to_the_device_asked_for(generate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = MusicGen.from_pretrained
    monkeypatch.setattr(
        MusicGen, "from_pretrained", lambda path, **named: [asked.append(named["device"]), load(path, **named)][1]
    )
    assert generate("a", "--seconds", "0.1", "--device", "cpu:0")[0] == 0
    assert asked == ["cpu:0"]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_what_was_written_is_told(folder: Path, generate, capsys: pytest.CaptureFixture[str]) -> None:
    """The length in whole frames, and the seed."""
    _, output = generate("a", "--seconds", "0.505", "--seed", "4")
    assert capsys.readouterr().out == f"{output}: 0.5 s, seed 4\n"


def test_the_text_matters_and_may_be_left_out(generate) -> None:
    files = [
        generate(*text, "--seconds", "1", "--greedy", name=f"{i}.wav")[1] for i, text in enumerate((["a"], ["b"], []))
    ]
    assert len({file.read_bytes() for file in files}) == 3


def test_an_audio_prompt_of_another_rate_and_layout_is_continued(folder: Path, generate, tmp_path: Path) -> None:
    clip = torch.rand(2, 4410, generator=torch.Generator().manual_seed(0)) - 0.5  # 0.5 s of stereo at 8820 Hz
    write_wav(tmp_path / "clip.wav", clip, 8820)
    status, output = generate("piano", "--seconds", "1", "--greedy", "--audio-prompt", str(tmp_path / "clip.wav"))
    assert status == 0
    model = MusicGen.from_pretrained(folder)
    prompt = match_channels(resample(*read_wav(tmp_path / "clip.wav"), tiny.RATE), 1)[None]
    expected = model.generate(["piano"], GenerationOptions(seconds=1, greedy=True), prompt=(prompt, tiny.RATE))
    assert torch.equal(expected.codes[..., :25], model.encode(prompt, tiny.RATE))
    torch.testing.assert_close(read_wav(output)[0], expected.audio[0].clamp(-1, 1 - 2**-15), rtol=0, atol=2**-16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0"], "temperature must be above 0, got 0.0"),
        (["--seconds", "0"], "seconds must be above 0, got 0.0"),
        (["--top-k", "-1"], "top_k must be a whole number from 0"),
        (["--device", "cuda:99"], "--device must be one that"),
        (["--audio-prompt", "nowhere.wav"], "nowhere.wav"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(
    arguments: list[str], message: str, generate, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = generate("piano", *arguments)
    errors = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert not output.exists()


def test_what_is_not_there_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    assert main(["generate", "a", "--model", str(folder), "-o", str(tmp_path / "no" / "out.wav")]) == 2
    assert main(["generate", "a", "--model", str(folder), "-o", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "nowhere" in errors[0]
    assert all("--output must be a file in an existing directory" in line for line in errors[1:])


def test_a_missing_extra_is_one_line_and_status_2(
    generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "clip.wav", torch.zeros(1, 882), 8820)
    monkeypatch.setitem(sys.modules, "soxr", None)
    status, _ = generate("piano", "--audio-prompt", str(tmp_path / "clip.wav"))
    assert status == 2
    assert re.fullmatch(r"musicgen-ref: resampling needs soxr.*\n", capsys.readouterr().err)


def test_ctrl_c_leaves_the_old_file_and_no_other(
    generate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = generate("piano", "--seconds", "1")
    before = output.read_bytes()
    capsys.readouterr()

    def interrupted(*_: object, **named: object) -> torch.Tensor:
        raise KeyboardInterrupt

    for step in ("decode", "generate_codes"):
        monkeypatch.setattr(MusicGen, step, interrupted)
        status, _ = generate("violin", "--seconds", "1")
        assert status == 130
        assert tuple(capsys.readouterr()) == ("", "musicgen-ref: stopped, nothing written\n")
        assert output.read_bytes() == before
        assert [file.name for file in output.parent.iterdir()] == [output.name]


def test_a_terminal_gets_a_progress_bar_and_a_pipe_none(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "musicgen_ref", "generate", "a", "--model", str(folder), "--seconds", "1"]
    command += ["-o", str(tmp_path / "out.wav")]
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(command, stderr=writer, check=True, timeout=120)
    assert b"/50 " in os.read(reader, 1 << 16)
    os.close(writer)
    os.close(reader)
    assert subprocess.run(command, capture_output=True, check=True, timeout=120).stderr == b""


def test_info_tells_sizes_without_reading_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert main(["info", str(tmp_path)]) == 2
    told, reason = capsys.readouterr()
    assert reason.startswith(f"musicgen-ref: {tmp_path}: holds none of model.safetensors, ")
    model = MusicGen.from_pretrained(folder)

    def count(part: torch.nn.Module) -> str:
        return f"{sum(tensor.numel() for tensor in [*part.parameters(), *part.buffers()]):,} parameters"

    rows = dict(re.split("  +", line, maxsplit=1) for line in told.splitlines() if "  " in line)
    sizes = {
        "text encoder": f"T5 2 x 24, {count(model.text_encoder)}",
        "decoder": f"2 x 32, 4 heads, {count(model.decoder)}",
        "codec": f"EnCodec, 4 filters, hop 8 samples, {count(model.codec)}",
        "audio": "400 Hz, mono",
        "codes": "4 codebooks of 64, 50 frames per second",
        "in all": count(model),
    }
    assert {name: rows[name] for name in sizes} == sizes


def test_info_tells_what_is_gated_and_stereo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.musicgen(8, 2, gated=True).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for fact in ("T5 gated 2 x 24,", "400 Hz, stereo", "8 codebooks of 64, 50 frames per second"):
        assert fact in told
