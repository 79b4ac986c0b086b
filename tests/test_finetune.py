"""examples/finetune.py: which files it reads, and what it tells before it trains. test_demo.py trains with it."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from examples import finetune
from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.audio import write_wav
from tests import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a tiny model with a tokenizer; not to be written to."""
    return tiny.complete(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of one clip of half a second."""
    folder = tmp_path / "clips"
    folder.mkdir()
    add(folder, "one.wav")
    return folder


def add(folder: Path, name: str, seconds: float = 0.5, rate: int = tiny.RATE, channels: int = 1) -> None:
    audio = tiny.noise(channels, round(seconds * rate), seed=len(list(folder.iterdir()))) / 2
    if name.lower().endswith(".wav"):
        write_wav(folder / name, audio, rate)
    else:
        soundfile.write(folder / name, audio.T.numpy(), rate)
    (folder / name).with_suffix(".txt").write_text(f"a calm song called {name}")


def stops(words: str, *arguments: Any) -> None:
    """The program ends with one line that matches, and exit code 1."""
    with pytest.raises(SystemExit) as ended:
        finetune.main([str(argument) for argument in arguments])
    assert re.fullmatch(rf"finetune: .*{words}.*", str(ended.value.code)), ended.value.code


def test_it_reads_trains_and_saves(
    model: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    finetune.main([str(clips), "--out", str(out), "--model", str(model), "--steps", "21", "--seconds", "0.5"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == [
        "clip 1 of", "step 20 of 21, loss", "step 21 of 21, loss",
    ]  # fmt: skip
    tuned = MusicGen.from_pretrained(out)
    assert tuned.generate(["a calm song"], GenerationOptions(frames=3)).codes.shape == (1, 4, 3)
    before = MusicGen.from_pretrained(model)
    assert not torch.equal(tuned.decoder.heads[0].weight, before.decoder.heads[0].weight)
    for part in ("text_encoder", "codec"):
        for a, b in zip(getattr(tuned, part).parameters(), getattr(before, part).parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["file", "no parent", "not empty", "not ours"])
def test_a_bad_out_is_found_before_anything_is_read(
    kind: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MusicGen, "from_pretrained", None)
    (tmp_path / "file").touch()
    if kind == "not ours":
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    out, words = {
        "file": (tmp_path / "file", "--out must be a directory, got the file"),
        "no parent": (tmp_path / "no" / "out", "--out must lie in a directory that is there"),
        "not empty": (clips, "--out must be a new or an empty directory, got .*clips, which holds files"),
        "not ours": (tmp_path / "out", "--out must be a directory that can be written"),
    }[kind]
    stops(words, clips, "--out", out)


def test_an_empty_directory_and_a_new_one_are_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    finetune.check_out(tmp_path / "empty")
    finetune.check_out(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    finetune.check_out(Path("new"))


def test_every_format_counts_whatever_the_case_of_its_suffix(model: Path, clips: Path) -> None:
    names = ["b.WAV", "c.mp3", "d.flac", "e.Ogg", "f.FLAC"]
    for name in names:
        add(clips, name, rate=8000, channels=1 + (name == "d.flac"))
    add(clips, "long.wav", seconds=3)
    (clips / "notes.md").write_text("no clip")
    codes, texts = finetune.read_folder(MusicGen.from_pretrained(model), clips, 0.5)
    assert codes.shape == (7, 4, 25)
    assert [text.rpartition(" ")[2] for text in texts] == [*names, "long.wav", "one.wav"]
    assert (codes >= 0).all()


def test_a_file_that_cannot_be_used_is_named(model: Path, clips: Path, tmp_path: Path) -> None:
    def refused(words: str) -> None:
        stops(words, clips, "--out", tmp_path / "out", "--model", model, "--seconds", "0.5")
        assert not (tmp_path / "out").exists()

    caption = clips / "two.txt"
    (clips / "two.wav").write_bytes(b"no audio")
    refused(f"No such file or directory: '{caption}'")
    caption.write_text(" \n")
    refused(f"{caption} must describe its clip, got nothing")
    caption.write_bytes(b"\xff\xfe")
    refused(f"{caption} must be text in UTF-8: ")
    caption.write_text("a song")
    refused(f"{clips / 'two.wav'} is not audio")
    add(clips, "two.wav", channels=3)
    refused(f"{clips / 'two.wav'}: audio: must have 1 or 2 channels, got 3")
    write_wav(clips / "two.wav", torch.zeros(1, 10), 8_000_000)
    refused(f"{clips / 'two.wav'}: audio: 10 samples at 8000000 Hz are none at 400 Hz")
    (tmp_path / "empty").mkdir()
    stops("must hold clips .*, got none", tmp_path / "empty", "--out", tmp_path / "out", "--model", model)
    stops("No such file or directory: .*nowhere", tmp_path / "nowhere", "--out", tmp_path / "out", "--model", model)
    stops("no such checkpoint directory: nowhere", clips, "--out", tmp_path / "out", "--model", "nowhere")
    stops("--steps must be above 0, got 0", clips, "--out", tmp_path / "out", "--steps", 0)


def test_a_terminal_gets_a_progress_bar() -> None:
    program = "from examples.finetune import show; [show(i, 3, f'step {i} of 3') for i in (1, 2, 3)]"
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=writer, capture_output=False, check=True)
    shown = os.read(reader, 1000).decode()
    os.close(writer)
    os.close(reader)
    assert told.returncode == 0
    bars = re.findall(r"\[(#*) *\] step (\d) of 3", shown)
    assert bars == [("#" * 10, "1"), ("#" * 20, "2"), ("#" * 30, "3")]
