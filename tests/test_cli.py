"""The command line, on a tiny model with a tokenizer, run in this process (and once on a pseudo-terminal)."""

import argparse
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import T5TokenizerFast

import musicgen_ref
from musicgen_ref import GenerationOptions, MusicGen, __version__
from musicgen_ref.__main__ import main, parser
from musicgen_ref.audio import match_channels, read_wav, resample, write_wav
from tests import tiny
from weights_convert.__main__ import parser as conversions

ROOT = Path(__file__).parents[1]


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
    assert (args.max_bytes, args.max_text_tokens) == (options.max_bytes, options.max_text_tokens)
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
CLIP = (
    "[--model DIR] [--adapter [ADAPTER] | --no-adapter] [--variant NAME] [-o FILE] [--seconds SECONDS] [--seed SEED] "
    "[--guidance GUIDANCE] [--temperature TEMPERATURE] [--top-k TOP_K] [--top-p TOP_P] [--min-p MIN_P] [--greedy] "
    "[--dtype {float32,bfloat16,float16,int8}] [--device DEVICE] [--max-bytes BYTES] [--max-text-tokens TOKENS]"
)
USAGE = (
    "musicgen-ref [-h] [--version] {generate,anatomy,info,record,parity} ...",
    f"musicgen-ref generate [-h] {CLIP} [--audio-prompt FILE] [--compile] [--cache {{bfloat16,int8}}] [text]",
    f"musicgen-ref anatomy [-h] {CLIP} [text]",
    "musicgen-ref info [-h] [--check] [DIR]",
    "musicgen-ref record [-h] [--adapter [ADAPTER] | --no-adapter] [--variant NAME] [-o FILE] [--frames FRAMES] "
    "[--plain] [--dtype {float32,bfloat16,float16}] [--device DEVICE] [DIR]",
    "musicgen-ref parity [-h] [--adapter [ADAPTER] | --no-adapter] [--variant NAME] [--against WHAT] "
    "[--tolerance TOLERANCE] [--json FILE] [--report FILE] [--frames FRAMES] [--plain] "
    "[--dtype {float32,bfloat16,float16}] [--device DEVICE] [DIR]",
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
    monkeypatch.setattr(
        MusicGen, "compile", lambda model, batch=1, guided=True, cache=None: asked.append((batch, guided, cache))
    )
    arguments = ("a", "--seconds", "0.1", "--seed", "0", *guidance)
    generate(*arguments, name="plain.wav")
    assert asked == [] and capsys.readouterr().err == ""
    generate(*arguments, "--compile", name="compiled.wav")
    assert asked == [(1, guided, None)]
    assert re.fullmatch(r"compiled in \d+ s\n", capsys.readouterr().err)
    generate(*arguments, "--compile", "--cache", "int8", name="compiled.wav")
    assert asked[1:] == [(1, guided, "int8")]


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
    """The length in whole frames, the samples that the file cannot hold, and the seed."""
    _, output = generate("a", "--seconds", "0.505", "--seed", "4")
    options = GenerationOptions(seconds=0.505)
    made = MusicGen.from_pretrained(folder).generate(["a"], options, generator=torch.Generator().manual_seed(4))
    clipped = int((made.audio.abs() > 1).sum())
    told = f", {clipped} samples beyond full scale clipped" if clipped else ""
    assert capsys.readouterr().out == f"{output}: 0.5 s{told}, seed 4\n"


@pytest.mark.parametrize("suffix", ["flac", "ogg"])
def test_the_suffix_of_the_output_is_its_format(folder: Path, generate, suffix: str) -> None:
    status, output = generate("a", "--seconds", "1", "--seed", "4", name=f"out.{suffix}")
    assert status == 0 and soundfile.info(output).format == suffix.upper()
    _, plain = generate("a", "--seconds", "1", "--seed", "4")
    if suffix == "flac":
        assert torch.equal(read_wav(output)[0], read_wav(plain)[0])


def test_what_a_clip_clips_is_told(
    generate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MusicGen, "decode", lambda *_: torch.tensor([[[0.5, 1.5, -1.2]]]))
    _, output = generate("a", "--seconds", "1", "--seed", "4")
    assert capsys.readouterr().out == f"{output}: 1 s, 2 samples beyond full scale clipped, seed 4\n"


def test_the_limits_are_given_on_the_command_line(generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for limit, words in (("--max-bytes", "more than max_bytes, 1,000 bytes"), ("--max-text-tokens", "got one of 8")):
        value = {"--max-bytes": "1000", "--max-text-tokens": "7"}[limit]
        assert generate("abcdef", "--seconds", "1", limit, value)[0] == 2
        assert words in capsys.readouterr().err
    assert generate("abcdef", "--seconds", "1", "--max-bytes", str(10**7), "--max-text-tokens", "8")[0] == 0


def test_an_audio_prompt_is_measured_by_the_clip_that_is_asked_for(
    generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "clip.wav", torch.zeros(1, 3 * tiny.RATE), tiny.RATE)
    write_wav(tmp_path / "slow.wav", torch.zeros(1, 1000), 1)
    monkeypatch.setattr(MusicGen, "from_pretrained", None)  # it is refused before the model is opened
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    for name, words in (("clip.wav", "holds 3.00 s of audio"), ("slow.wav", "holds 1,000.00 s of audio")):
        assert generate("a", "--seconds", "1", "--audio-prompt", str(tmp_path / name))[0] == 2
        assert f"{words} (" in capsys.readouterr().err


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
        (["--temperature", "1e-40"], "temperature must be from 1e-20 to 1e+20, beyond which fp32 overflows, got 1e-40"),
        (["--guidance", "1e39"], "guidance_scale must be from -1e+10 to 1e+10, beyond which fp32 overflows, got 1e+39"),
        (["--seconds", "0"], "seconds must be above 0, got 0.0"),
        (["--seconds", "1e6"], "more than max_bytes, 16.0 GiB: ask for a shorter clip"),
        (["--seconds", "1e300"], "seconds must be at most 1000000000, got 1e+300"),
        (["--seed", str(2**64)], "--seed must be a whole number from -2**63 to 2**64 - 1"),
        (["--device", "meta"], "--device must be one that"),
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
    assert errors[1:] == [
        f"musicgen-ref: --output: no folder {tmp_path / 'no'} to write out.wav into",
        f"musicgen-ref: --output: {tmp_path} is a folder, must be a file name",
    ]


def test_an_output_that_cannot_be_written_is_told_before_the_model_is_opened(
    generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MusicGen, "from_pretrained", None)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for name, words in (
        ("out.mp4", "must end in .wav, .flac, .ogg, .mp3"),
        ("out.mp3", "writing .mp3 needs soundfile"),
    ):
        assert generate("a", name=name)[0] == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert generate("a")[0] == 2
    assert f"the folder must not be written to: '{tmp_path}'" in capsys.readouterr().err


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


# Whatever happens: the exit code, the last line on stderr, and what is left behind

# Runs commands as processes of their own without importing torch for each: children of one that has.
SERVER = """
import json, os, pkgutil, signal, sys
from unittest import mock
import torch
from musicgen_ref.__main__ import main as musicgen_ref
from weights_convert.__main__ import main as weights_convert
torch.set_num_threads(1)

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

def turn(number, where):
    if where == "closed":
        os.close(number)
        setattr(sys, "stdout" if number == 1 else "stderr", None)  # as Python finds it
    elif where == "nobody reads":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)
    else:
        os.dup2(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)

turn(1, job["stdout"])
turn(2, job["stderr"])
if job["ascii"]:
    sys.stdout.reconfigure(encoding="ascii", errors="strict")
# The tests themselves may run under nohup, or in the background of a script, where some are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
if job["ignored"]:
    signal.signal(job["ignored"], signal.SIG_IGN)
if job["at"]:
    real = pkgutil.resolve_name(job["at"])

    def happens(*arguments, **named):
        if job["happens"] == "memory":
            bytearray(2**62)
        elif job["happens"] == "fault":
            None + 1
        else:
            os.kill(os.getpid(), job["happens"])
        return real(*arguments, **named)

    mock.patch(job["at"], happens).start()
sys.exit({"musicgen-ref": musicgen_ref, "weights_convert": weights_convert}[job["command"]](job["arguments"]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, env=environment, **pipes) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


MAKE = "generate a --seconds 0.5 --seed 3"
DECODING, MOVING = "musicgen_ref.model.MusicGen.decode", "os.replace"
STOPPED = "musicgen-ref: stopped, nothing written"
GONE = "musicgen-ref: stopped: nobody reads what it prints"
FULL = r".*: \[Errno 28\] No space left on device"
# By name: arguments (musicgen-ref's, unless it is another), what is done to it, the exit code, the last line on stderr,
# and whether out.wav is there afterwards, whole; nothing else ever is.
OUTCOMES: dict[str, tuple[str, dict[str, Any], int, str, bool]] = {
    "all is well": (MAKE, {}, 0, "", True),
    "info": ("info", {}, 0, "", False),
    "help": ("--help", {}, 0, "", False),
    "no command": ("", {}, 2, "musicgen-ref: error: the following arguments are required: command", False),
    "no such option": (f"{MAKE} --loud", {}, 2, "musicgen-ref: error: unrecognized arguments: --loud", False),
    "no number": (f"{MAKE} --top-k x", {}, 2, ".*argument --top-k: invalid int value: 'x'", False),
    "a bad number": (f"{MAKE} --top-k -1", {}, 2, "musicgen-ref: top_k must be a whole number .*, got -1", False),
    "no such model": ("info nowhere", {}, 2, "musicgen-ref: no such checkpoint directory: nowhere", False),
    "no such folder": (f"{MAKE} -o no/a.wav", {}, 2, ".*: --output: no folder .*no to write a.wav into", False),
    "a full device": (f"{MAKE} -o /dev/full", {}, 2, FULL + ": '/dev/full'", False),
    "a device": (f"{MAKE} -o /dev/null", {}, 0, "", False),
    "stdout as output": (f"{MAKE} -o /dev/stdout", {}, 0, "/dev/stdout: 0.5 s, .*seed 3", False),
    "full stdout": (MAKE, {"stdout": "/dev/full"}, 2, FULL, True),
    "info, full stdout": ("info", {"stdout": "/dev/full"}, 2, FULL, False),
    "help, full stdout": ("--help", {"stdout": "/dev/full"}, 2, FULL, False),
    "closed stdout": (MAKE, {"stdout": "closed"}, 0, "", True),
    "info, closed stdout": ("info", {"stdout": "closed"}, 0, "", False),
    "help, closed stdout": ("--help", {"stdout": "closed"}, 0, "", False),
    "nobody reads": (MAKE, {"stdout": "nobody reads"}, 141, GONE, True),
    "info, nobody reads": ("info", {"stdout": "nobody reads"}, 141, GONE, False),
    "help, nobody reads": ("--help", {"stdout": "nobody reads"}, 141, GONE, False),
    "closed stderr": (MAKE, {"stderr": "closed"}, 0, "", True),
    "error, closed stderr": ("info nowhere", {"stderr": "closed"}, 2, "", False),
    "error, full stderr": ("info nowhere", {"stderr": "/dev/full"}, 2, "", False),
    "error, nobody reads stderr": ("info nowhere", {"stderr": "nobody reads"}, 2, "", False),
    "usage, full stderr": (f"{MAKE} --loud", {"stderr": "/dev/full"}, 2, "", False),
    "all closed": (MAKE, {"stdout": "closed", "stderr": "closed"}, 0, "", True),
    "all full": (MAKE, {"stdout": "/dev/full", "stderr": "/dev/full"}, 2, "", True),
    "ascii": (f"{MAKE} -o ä.wav", {"ascii": True}, 0, "", False),
    "Ctrl-C": (MAKE, {"at": DECODING, "happens": 2}, 130, STOPPED, False),
    "Ctrl-C, nearly done": (MAKE, {"at": MOVING, "happens": 2}, 130, STOPPED, False),
    "SIGTERM": (MAKE, {"at": DECODING, "happens": 15}, 143, STOPPED, False),
    "SIGTERM, nearly done": (MAKE, {"at": MOVING, "happens": 15}, 143, STOPPED, False),
    "SIGHUP": (MAKE, {"at": DECODING, "happens": 1}, 129, STOPPED, False),
    "SIGHUP, nearly done": (MAKE, {"at": MOVING, "happens": 1}, 129, STOPPED, False),
    "SIGTERM, closed stderr": (MAKE, {"at": MOVING, "happens": 15, "stderr": "closed"}, 143, "", False),
    "SIGHUP under nohup": (MAKE, {"at": DECODING, "happens": 1, "ignored": 1}, 0, "", True),
    "no memory": (MAKE, {"at": DECODING, "happens": "memory"}, 70, r"musicgen-ref: MemoryError: .*\(at .*\)", False),
    "a fault": (MAKE, {"at": DECODING, "happens": "fault"}, 70, r"musicgen-ref: TypeError: .*\(at .*\)", False),
    "convert": ("weights_convert info nowhere", {}, 2, "weights_convert: no such checkpoint directory: nowhere", False),
    "convert, full stdout": ("weights_convert --help", {"stdout": "/dev/full"}, 2, FULL, False),
    "convert, nobody reads": ("weights_convert info MODEL", {"stdout": "nobody reads"}, 141, ".*nobody.*", False),
    "convert, SIGTERM": (
        "weights_convert huggingface MODEL new",
        {"at": "weights_convert.convert.write_json", "happens": 15},
        143, "weights_convert: stopped, nothing written", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
def test_whatever_happens_is_an_exit_code_and_a_line(
    name: str, folder: Path, server: subprocess.Popen[str], tmp_path: Path
) -> None:
    arguments, done, code, line, made = OUTCOMES[name]
    here, out, err = tmp_path / "here", tmp_path / "stdout", tmp_path / "stderr"
    here.mkdir()
    words = [{"MODEL": str(folder), "new": str(here / "new"), "ä.wav": str(tmp_path / "ä.wav")}.get(word, word)
             for word in arguments.split()]  # fmt: skip
    if words[:1] == ["generate"]:
        words = (
            words[:1] + ["--model", str(folder)] + ([] if "-o" in words else ["-o", str(here / "out.wav")]) + words[1:]
        )
    command, *words = words if words[:1] == ["weights_convert"] else ["musicgen-ref", *words]
    job = {"stdout": str(out), "stderr": str(err), "ascii": False, "ignored": None, "happens": None, "at": ""}
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(job | done | {"command": command, "arguments": words}) + "\n")
    server.stdin.flush()
    assert int(server.stdout.readline()) == code
    lines = err.read_text(errors="replace").splitlines() if err.exists() else []
    assert re.fullmatch(line, lines[-1] if lines else ""), lines
    usage = lines[:1] and lines[0].startswith("usage: ")
    assert len(lines) <= 1 or usage
    assert [file.name for file in here.iterdir()] == ["out.wav"] * made
    if made:
        read = read_wav(here / "out.wav")
        assert (read[1], tuple(read[0].shape)) == (tiny.RATE, (1, tiny.RATE // 2))
    if name == "ascii":
        assert "xe4.wav: 0.5 s" in out.read_text()
    if name == "stdout as output":
        (here / "same.wav").write_bytes(out.read_bytes())
        assert tuple(read_wav(here / "same.wav")[0].shape) == (1, tiny.RATE // 2)


@pytest.mark.parametrize("module", ["musicgen_ref", "weights_convert"])
def test_ctrl_c_during_the_imports_is_a_line(tmp_path: Path, module: str) -> None:
    """In place of torch, whose import takes seconds, one that is interrupted at once."""
    (tmp_path / "torch").mkdir()
    stopped = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    (tmp_path / "torch" / "__init__.py").write_text(stopped)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    # A script that runs in the background, as these tests may, ignores Ctrl-C, and what it starts does too.
    again = "import signal, runpy, sys; signal.signal(2, signal.default_int_handler); sys.argv = ['x', 'info']; "
    again += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    run = [sys.executable, "-c", again]
    told = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (130, "")
    assert re.fullmatch(r"(musicgen-ref|weights_convert): stopped, nothing written\n", told.stderr)


def test_the_package_imports_torch_when_it_is_used(tmp_path: Path) -> None:
    """So that the command line runs before the seconds that it takes."""
    program = "import sys, musicgen_ref; print('torch' in sys.modules, sorted(dir(musicgen_ref))[:2])"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "False ['DecoderConfig', 'EncodecConfig']\n"
    for name in musicgen_ref.__all__:
        assert getattr(musicgen_ref, name) is not None
    assert musicgen_ref.delay is sys.modules["musicgen_ref.delay"]
    with pytest.raises(AttributeError, match="module 'musicgen_ref' has no attribute 'Musicgen'"):
        musicgen_ref.Musicgen  # noqa: B018


def test_signals_are_handled_by_the_command_alone(generate) -> None:
    """Those of the process that calls it are as before; in another thread, where none can be handled, it runs, too."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    codes = [generate("a", "--seconds", "0.1")[0]]
    thread = threading.Thread(target=lambda: codes.append(generate("a", "--seconds", "0.1")[0]))
    thread.start()
    thread.join()
    assert codes == [0, 0] and [signal.getsignal(number) for number in numbers] == before


HUGE = (2**31 - 1, 2**62, 10**400, 1e308)


def test_info_tells_of_huge_sizes_what_it_tells_of_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever number of the configuration is huge, alone or with all others of its section, weights there or not."""
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for section in ("text_encoder", "decoder", "audio_encoder"):
        numbers = {key: value for key, value in config[section].items() if type(value) in (int, float)}
        lists = {key: value for key, value in config[section].items() if isinstance(value, list) and value}
        for value in HUGE:
            changes = [{key: value} for key in numbers] + [{key: [value] * len(old)} for key, old in lists.items()]
            for change in [*changes, dict.fromkeys(numbers, value), {"upsampling_ratios": [value] * 32}]:
                changed = config | {section: config[section] | change}
                (tmp_path / "config.json").write_text(json.dumps(changed))
                status = main(["info", str(tmp_path)])
                errors = capsys.readouterr().err.splitlines()
                assert (status, len(errors)) in ((0, 0), (2, 1)), (change, errors)
                assert all(len(line) < 4096 and line.startswith("musicgen-ref: ") for line in errors)
