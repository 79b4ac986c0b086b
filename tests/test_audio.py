"""Audio files, resampling and channel layout, with the extra ``audio`` and without it."""

import errno
import math
import os
import socket
import stat
import sys
import threading
import tty
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from musicgen_ref import audio as audio_module
from musicgen_ref.audio import check_target, match_channels, read_wav, resample, write_wav

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "audio"
RATES = st.sampled_from([8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
SUBTYPES = {1: "PCM_U8", 2: "PCM_16", 3: "PCM_24", 4: "PCM_32"}

# A fixture that lasts for all examples of a property is what these tests want: the folder's files are overwritten.
properties = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(channels: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Uniform noise (C, N) in (-1, 1)."""
    return torch.rand(channels, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sine(hertz: float, samples: int, rate: int) -> torch.Tensor:
    """One channel (1, N) of a sine at half of full scale."""
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate)[None].float()


def block(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Make ``import module`` fail as it does where the module is not installed."""
    monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture(params=["with soundfile", "without soundfile"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: with the extra, and with its import blocked."""
    if request.param == "without soundfile":
        block(monkeypatch, "soundfile")


@pytest.fixture
def no_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    block(monkeypatch, "soundfile")


def write_integers(path: Path, values: np.ndarray, width: int, rate: int = 32000) -> None:
    """Write integers (N, C) of `width` bytes as WAV stores them: 8 bits unsigned, the wider ones signed."""
    stored = values + 128 if width == 1 else values
    with wave.open(str(path), "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in stored.flat))


# Reading


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.usefixtures("reader")
@properties
@given(data=st.data(), channels=st.integers(1, 3), samples=st.integers(1, 40), rate=RATES)
def test_every_integer_width_reads_as_its_fraction_of_full_scale(
    tmp_path: Path, width: int, data: st.DataObject, channels: int, samples: int, rate: int
) -> None:
    full = 2 ** (8 * width - 1)
    count = channels * samples
    integers = data.draw(st.lists(st.integers(-full, full - 1), min_size=count, max_size=count))
    values = np.array(integers, np.int64).reshape(samples, channels)
    write_integers(tmp_path / "clip.wav", values, width, rate)
    audio, read_rate = read_wav(tmp_path / "clip.wav")
    assert read_rate == rate
    assert audio.dtype == torch.float32
    assert audio.is_contiguous()
    assert torch.equal(audio, torch.from_numpy(values.T / full).float())


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_file_of_soundfile_reads_the_same_without_soundfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    soundfile.write(tmp_path / "clip.wav", noise(2, 333).T.numpy(), 44100, subtype=SUBTYPES[width])
    expected, _ = read_wav(tmp_path / "clip.wav")
    block(monkeypatch, "soundfile")
    audio, rate = read_wav(tmp_path / "clip.wav")
    assert rate == 44100
    assert torch.equal(audio, expected)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_the_extra_reads_what_integers_cannot_say(tmp_path: Path, suffix: str) -> None:
    audio = noise(2, 501)
    subtype = "FLOAT" if suffix == "wav" else "PCM_24"
    soundfile.write(tmp_path / f"clip.{suffix}", audio.T.numpy(), 48000, subtype=subtype)
    read, rate = read_wav(tmp_path / f"clip.{suffix}")
    assert rate == 48000
    assert_close(read, audio, rtol=0, atol=0 if suffix == "wav" else 2**-23)


@pytest.mark.usefixtures("no_soundfile")
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_without_the_extra_other_formats_name_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise(1, 10).T.numpy(), 48000, subtype="FLOAT" if suffix == "wav" else "PCM_16")
    with pytest.raises(ValueError, match=r"clip\.\w+ .*pip install 'musicgen_ref\[audio\]'"):
        read_wav(path)


def test_a_soundfile_without_its_c_library_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "clip.wav", noise(1, 10), 16000)
    (tmp_path / "soundfile.py").write_text("raise OSError('sndfile library not found')")
    monkeypatch.delitem(sys.modules, "soundfile")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_wav(tmp_path / "clip.wav")[0].shape == (1, 10)


@pytest.mark.usefixtures("reader")
def test_missing_files_and_folders_are_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.wav", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read_wav(path)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("content", [b"", b"RIFF", b"no audio at all" * 20], ids=["empty", "header", "text"])
@pytest.mark.parametrize("name", ["bad.wav", "bad.mp3", "bad.raw"])
def test_what_is_no_audio_is_a_value_error_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"path: .*{name}"):
        read_wav(tmp_path / name)


def claim_samples(path: Path, samples: int) -> None:
    """Let the header of a FLAC claim so many samples (36 bits, from the 22nd byte on)."""
    content = bytearray(path.read_bytes())
    number = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
    path.write_bytes(content[:18] + number.to_bytes(8, "big") + content[26:])


def test_a_length_that_no_memory_holds_is_a_value_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a damaged header, before anything is decoded."""
    path = tmp_path / "bad.flac"
    soundfile.write(path, noise(2, 1000).T.numpy(), 16000)
    assert read_wav(path)[0].shape == (2, 1000)
    claim_samples(path, 2**36 - 1)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(ValueError, match=r"path: .*bad\.flac would take 512\.0 GiB .*2 channels.*max_bytes, 1\.0 GiB"):
        read_wav(path)


@pytest.mark.usefixtures("reader")
def test_audio_is_measured_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is asked for: a length, and memory."""
    path = tmp_path / "clip.wav"
    write_wav(path, noise(3, 16000), 16000)
    assert read_wav(path, max_seconds=1, max_bytes=3 * 16000 * 4)[0].shape == (3, 16000)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    monkeypatch.setattr(wave.Wave_read, "readframes", None)
    with pytest.raises(ValueError, match=r"path: .*clip\.wav holds 1\.00 s of audio \(16,000 .*at most 0\.99 s"):
        read_wav(path, max_seconds=0.99)
    with pytest.raises(ValueError, match=r"path: .*clip\.wav would take 192,000 bytes .*max_bytes, 191,999 bytes"):
        read_wav(path, max_bytes=3 * 16000 * 4 - 1)


@pytest.mark.usefixtures("reader")
def test_a_file_that_claims_one_sample_a_second_lasts_for_days(tmp_path: Path) -> None:
    path = tmp_path / "slow.wav"
    write_wav(path, noise(1, 500_000), 1)
    with pytest.raises(ValueError, match=r"slow\.wav holds 500,000\.00 s of audio .* at 1 Hz\), at most 30 s"):
        read_wav(path, max_seconds=30)
    with pytest.raises(ValueError, match=r"rate: must be within 10,000 times of new_rate 32000 Hz, got 1 Hz"):
        resample(*read_wav(path), 32000)


@pytest.mark.usefixtures("no_soundfile")
def test_a_header_that_claims_more_than_its_file_holds_reads_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    audio = (noise(1, 50) * 2**15).round() / 2**15
    write_wav(path, audio, 16000)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 4 + content[8:40] + b"\xf0" + b"\xff" * 3 + content[44:])
    assert torch.equal(read_wav(path)[0], audio)


@pytest.mark.usefixtures("reader")
def test_a_file_without_samples_is_a_value_error(tmp_path: Path) -> None:
    write_integers(tmp_path / "empty.wav", np.zeros((0, 2), np.int64), 2)
    with pytest.raises(ValueError, match=r"empty\.wav holds no samples"):
        read_wav(tmp_path / "empty.wav")


@pytest.mark.usefixtures("reader")
def test_a_file_without_a_rate_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    write_wav(path, noise(1, 10), 16000)
    content = path.read_bytes()
    path.write_bytes(content[:24] + bytes(4) + content[28:])
    with pytest.raises(ValueError, match=r"path: .*bad\.wav "):
        read_wav(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_float_file_with_non_finite_samples_is_a_value_error(tmp_path: Path, value: float) -> None:
    soundfile.write(tmp_path / "bad.wav", np.array([0.0, value], np.float32), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"bad\.wav holds NaN or infinite"):
        read_wav(tmp_path / "bad.wav")


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_file_cut_inside_a_frame_gives_its_whole_frames(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.wav"
    audio = (noise(2, 50) * 2**15).round() / 2**15
    write_wav(path, audio, 16000)
    path.write_bytes(path.read_bytes()[:-cut])
    read, _ = read_wav(path)
    assert torch.equal(read, audio[:, : 50 - math.ceil(cut / 4)])


@pytest.mark.usefixtures("reader")
@settings(properties, max_examples=400)
@given(position=st.integers(0, 51), byte=st.integers(0, 255), length=st.integers(0, 84))
def test_a_damaged_file_reads_as_audio_or_is_a_value_error(
    tmp_path: Path, position: int, byte: int, length: int
) -> None:
    path = tmp_path / "damaged.wav"
    write_wav(path, noise(2, 10), 16000)
    content = bytearray(path.read_bytes())
    content[position] = byte
    path.write_bytes(content[: 84 - length])
    try:
        audio, rate = read_wav(path)
    except ValueError as error:
        assert "damaged.wav" in str(error)
    else:
        assert audio.dim() == 2
        assert audio.numel() > 0
        assert audio.isfinite().all()
        assert rate > 0


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not there")
@pytest.mark.parametrize(
    ("name", "rate", "shape"),
    [("clip_24k_mono.wav", 24000, (1, 480000)), ("beatbox_44k_stereo.wav", 44100, (2, 470400))],
)
@pytest.mark.usefixtures("reader")
def test_real_wav_clips_survive_a_round_trip_to_the_bit(
    tmp_path: Path, name: str, rate: int, shape: tuple[int, int]
) -> None:
    audio, read_rate = read_wav(CLIPS / name)
    assert (read_rate, tuple(audio.shape)) == (rate, shape)
    assert 0.1 < audio.abs().max() <= 1
    write_wav(tmp_path / "copy.wav", audio, rate)
    assert torch.equal(read_wav(tmp_path / "copy.wav")[0], audio)


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not there")
def test_a_real_mp3_reads_with_the_extra_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    audio, rate = read_wav(CLIPS / "bach.mp3")
    assert (rate, len(audio)) == (44100, 2)
    assert 10.0 < audio.shape[1] / rate < 10.1
    assert 0.1 < audio.abs().max() < 1.5  # a decoded MP3 may overshoot full scale
    block(monkeypatch, "soundfile")
    with pytest.raises(ValueError, match=r"bach\.mp3 .*pip install 'musicgen_ref\[audio\]'"):
        read_wav(CLIPS / "bach.mp3")


# Writing


@pytest.mark.usefixtures("reader")
@properties
@given(channels=st.integers(1, 3), samples=st.integers(1, 3000), rate=RATES, seed=st.integers(0, 99))
def test_what_is_written_reads_back_within_half_a_step(
    tmp_path: Path, channels: int, samples: int, rate: int, seed: int
) -> None:
    audio = noise(channels, samples, seed).clamp(max=1 - 2**-15)
    write_wav(tmp_path / "clip.wav", audio, rate)
    read, read_rate = read_wav(tmp_path / "clip.wav")
    assert read_rate == rate
    assert_close(read, audio, rtol=0, atol=2**-16)
    write_wav(tmp_path / "again.wav", read, rate)
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "clip.wav").read_bytes()


def test_a_written_file_is_what_another_reader_expects(tmp_path: Path) -> None:
    write_wav(tmp_path / "clip.wav", noise(2, 1001), 32000)
    info = soundfile.info(tmp_path / "clip.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (32000, 2, 1001, "PCM_16")


def test_samples_beyond_full_scale_are_clipped_not_wrapped(tmp_path: Path) -> None:
    audio = torch.tensor([[-1e30, -1.5, -1.0, 0.0, 1.0, 1.5, 1e30]])
    write_wav(tmp_path / "loud.wav", audio, 16000)
    top = 1 - 2**-15
    assert read_wav(tmp_path / "loud.wav")[0].tolist() == [[-1, -1, -1, 0, top, top, top]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_floating_dtype_is_written_like_its_float32_value(tmp_path: Path, dtype: torch.dtype) -> None:
    audio = noise(2, 100).to(dtype).requires_grad_()
    write_wav(tmp_path / "clip.wav", audio, 16000)
    write_wav(tmp_path / "float32.wav", audio.detach().float(), 16000)
    assert (tmp_path / "clip.wav").read_bytes() == (tmp_path / "float32.wav").read_bytes()


def test_a_transposed_view_is_written_in_its_own_order(tmp_path: Path) -> None:
    audio = (noise(50, 2).T * 2**15).round() / 2**15
    write_wav(tmp_path / "clip.wav", audio, 16000)
    assert torch.equal(read_wav(tmp_path / "clip.wav")[0], audio)


class Failing:
    """A file that fails when half of what it is given is written."""

    def __init__(self, file: Any, error: BaseException):
        self.file, self.error = file, error

    def __enter__(self) -> "Failing":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: memoryview) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        raise self.error


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NO_SPACE], ids=["interrupt", "full disk"])
@pytest.mark.parametrize("moment", ["half written", "before the move"])
@pytest.mark.parametrize("old", [None, b"the old file"])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_an_interrupted_write_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: str, old: bytes | None, suffix: str
) -> None:
    path = tmp_path / f"clip.{suffix}"
    if old is not None:
        path.write_bytes(old)
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}

    def fail(*args: object) -> None:
        raise error

    def half(*arguments: Any) -> Failing:
        return Failing(open(*arguments), error)

    if moment == "half written":
        monkeypatch.setattr(audio_module, "open", half, raising=False)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)) as caught:
        write_wav(path, noise(1, 1000), 16000)
    if isinstance(error, OSError):  # the name of the file, whoever met it
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_a_write_replaces_the_old_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"the old file" * 1000)
    write_wav(path, noise(1, 10), 16000)
    assert read_wav(path)[0].shape == (1, 10)
    assert list(tmp_path.iterdir()) == [path]


# Where to write to


def written(path: Path) -> bytes:
    """What write_wav() makes of a short clip, as a file of its own."""
    write_wav(path, noise(1, 100), 16000)
    return path.read_bytes()


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe, 0o600)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_wav(pipe, noise(1, 100), 16000)
    reader.join()
    assert pipe.is_fifo() and [entry.name for entry in tmp_path.iterdir()] == ["pipe"]
    assert read == [written(tmp_path / "file.wav")]


def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    """A pseudo-terminal, through a link, which stays as well."""
    reader, writer = os.openpty()
    tty.setraw(writer)
    (tmp_path / "device").symlink_to(os.ttyname(writer))
    write_wav(tmp_path / "device", noise(1, 100), 16000)
    assert (tmp_path / "device").is_symlink() and (tmp_path / "device").is_char_device()
    assert os.read(reader, 1000) == written(tmp_path / "file.wav")
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_link_is_followed(tmp_path: Path, there: bool) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target.wav", tmp_path / "link.wav"
    link.symlink_to(Path("folder") / "target.wav")
    if there:
        target.write_bytes(b"the old file")
    write_wav(link, noise(1, 100), 16000)
    assert link.is_symlink() and not target.is_symlink()
    assert target.read_bytes() == written(tmp_path / "file.wav")
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["target.wav"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_the_mode_of_an_older_file_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "clip.wav"
    path.touch()
    path.chmod(mode)
    write_wav(path, noise(1, 100), 16000)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.stat().st_size == 244


def test_a_new_file_has_the_mode_that_the_process_gives(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_wav(tmp_path / "clip.wav", noise(1, 100), 16000)
    assert (tmp_path / "clip.wav").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_target_is_refused_before_there_is_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the address of a socket is short
        server.bind("socket")
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "file").touch()
        (tmp_path / "song.wav").mkdir()
        refused: list[tuple[Any, type[Exception], str]] = [
            (tmp_path / "missing" / "clip.wav", FileNotFoundError, "path: no folder .*missing"),
            (tmp_path / "song.wav", ValueError, r"path: .*song\.wav is a folder"),
            (tmp_path / "socket", ValueError, "path: .*socket is a socket"),
            (tmp_path / "loop", OSError, "loop"),
            (tmp_path / "file" / "clip.wav", OSError, "clip"),
            (tmp_path / ("x" * 300 + ".wav"), OSError, "too long"),
            (tmp_path / "clip.mp4", ValueError, r"path: .*clip\.mp4 must end in \.wav, \.flac, \.ogg, \.mp3"),
            (None, ValueError, "path must be a path, .* got None"),
            (7, ValueError, "path must be a path, .* got 7"),
            ("a\0b", ValueError, "path must be a path, .* without NUL"),
        ]
        before = sorted(tmp_path.iterdir())
        for path, error, message in refused:
            with pytest.raises(error, match=message):
                check_target(path)
            with pytest.raises(error, match=message):
                write_wav(path, noise(1, 10), 16000)
        assert sorted(tmp_path.iterdir()) == before
    longest = tmp_path / ("x" * 246 + ".wav")
    write_wav(longest, noise(1, 10), 16000)
    assert longest.stat().st_size == 64


@pytest.mark.parametrize("forbidden", ["file", "folder"])
def test_what_must_not_be_written_to_is_told_before_there_is_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    """Seen through the eyes of one who is not root, to whom nothing is forbidden."""
    path = tmp_path / "clip.wav"
    path.touch()
    no = path if forbidden == "file" else tmp_path
    monkeypatch.setattr(os, "access", lambda asked, mode: Path(asked) != no)
    with pytest.raises(PermissionError, match=f"{forbidden} must not be written to: '{no}'"):
        check_target(path)


# Other formats


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "FLAC"])
def test_another_suffix_is_another_format(tmp_path: Path, suffix: str) -> None:
    path, seconds = tmp_path / f"song.{suffix}", 3
    audio = torch.cat([sine(440, seconds * 32000, 32000), sine(660, seconds * 32000, 32000)])
    assert write_wav(path, audio, 32000) == 0
    assert soundfile.info(path).format == {"ogg": "OGG", "mp3": "MP3"}.get(suffix, "FLAC")
    read, rate = read_wav(path)
    assert (rate, read.shape[0]) == (32000, 2)
    if suffix.lower() == "flac":  # the very numbers of the WAV file
        write_wav(tmp_path / "song.wav", audio, 32000)
        assert torch.equal(read, read_wav(tmp_path / "song.wav")[0])
    else:  # what is heard is there, at its loudness, channel by channel
        spectrum = torch.fft.rfft(read[:, 16000:48000]).abs()
        assert spectrum.argmax(1).tolist() == [440, 660]
        assert read.abs().max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("suffix", "rate"), [("mp3", 96000), ("mp3", 400), ("flac", 700_000)])
def test_what_a_format_cannot_hold_is_a_value_error(tmp_path: Path, suffix: str, rate: int) -> None:
    with pytest.raises(ValueError, match=rf"audio: 1 channels at {rate} Hz cannot be written as \.{suffix}"):
        write_wav(tmp_path / f"song.{suffix}", noise(1, 100), rate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_soundfile")
@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_without_the_extra_another_format_names_it_and_wav_is_written(tmp_path: Path, suffix: str) -> None:
    for call in (check_target, lambda path: write_wav(path, noise(1, 10), 16000)):
        with pytest.raises(ModuleNotFoundError, match=rf"writing \.{suffix} .*pip install 'musicgen_ref\[audio\]'"):
            call(tmp_path / f"song.{suffix}")
    for name in ("song", "song.WAV", "song.wave"):
        assert written(tmp_path / name)[:4] == b"RIFF"


# Beyond full scale


def test_clipped_samples_are_counted(tmp_path: Path) -> None:
    audio = torch.tensor([[-1.5, -1.0, 0.0], [1.0, 1.4, 1.01]])
    for name in ("loud.wav", "loud.flac"):
        assert write_wav(tmp_path / name, audio, 16000) == 3
        top = 1 - 2**-15
        assert read_wav(tmp_path / name)[0].tolist() == [[-1, -1, 0], [top, top, top]]
    assert write_wav(tmp_path / "quiet.wav", audio / 2, 16000) == 0


def test_audio_is_scaled_by_its_peak_on_request(tmp_path: Path) -> None:
    audio = noise(2, 500) * 1.6
    assert write_wav(tmp_path / "scaled.wav", audio, 16000, scale_peak=True) == 0
    expected = (audio / audio.abs().max()).clamp(max=1 - 2**-15)
    assert_close(read_wav(tmp_path / "scaled.wav")[0], expected, rtol=0, atol=2**-16)
    quiet = noise(2, 500) / 2  # within full scale nothing is done
    write_wav(tmp_path / "quiet.wav", quiet, 16000, scale_peak=True)
    write_wav(tmp_path / "plain.wav", quiet, 16000)
    assert (tmp_path / "quiet.wav").read_bytes() == (tmp_path / "plain.wav").read_bytes()


# What audio may be


@pytest.mark.parametrize(("dtype", "silence", "scale"), [("u1", 128, 2**7), ("i2", 0, 2**15), ("i4", 0, 2**31)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_whole_numbers_of_a_wav_reader_are_scaled(
    tmp_path: Path, dtype: str, silence: int, scale: int, order: str
) -> None:
    """As scipy.io.wavfile.read() returns them, in a numpy array (N, C), or in a tensor."""
    audio = (noise(2, 300) * 100).round() / 128
    array = (audio.numpy() * scale + silence).astype(order + dtype)
    backwards = array[:, ::-1].copy()[:, ::-1]
    for numbers in (array, torch.from_numpy(array.astype("=" + dtype)), backwards):
        assert torch.equal(match_channels(numbers, 2), audio)
        write_wav(tmp_path / "clip.wav", numbers, 16000)
        assert torch.equal(resample(numbers, np.int64(8000), 16000), resample(audio, 8000, np.array(16000)))
        assert torch.equal(read_wav(tmp_path / "clip.wav")[0], audio)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_numpy_array_is_as_good_as_a_tensor(tmp_path: Path, dtype: type) -> None:
    audio = noise(1, 100).numpy().astype(dtype)
    audio.flags.writeable = False
    resampled = resample(audio, 8000, np.int32(16000))
    assert torch.equal(resampled, resample(torch.from_numpy(audio.copy()), 8000, 16000))
    write_wav(tmp_path / "array.wav", audio, np.int32(8000))
    write_wav(tmp_path / "tensor.wav", torch.from_numpy(audio.copy()), 8000)
    assert (tmp_path / "array.wav").read_bytes() == (tmp_path / "tensor.wav").read_bytes()
    assert torch.equal(match_channels(audio, 2)[1], torch.from_numpy(audio[0].copy()))


BAD_AUDIO: dict[str, tuple[Any, str]] = {
    "rank 1": (torch.zeros(10), r"\(C, N\).*\(10,\)"),
    "rank 3": (torch.zeros(1, 1, 10), r"\(C, N\).*\(1, 1, 10\)"),
    "no samples": (torch.zeros(1, 0), r"one sample, got \(1, 0\)"),
    "no channels": (torch.zeros(0, 10), r"one channel .* got \(0, 10\)"),
    "integers of no WAV file": (torch.zeros(1, 10, dtype=torch.int64), r"floating point.*int64"),
    "complex": (torch.zeros(1, 10, dtype=torch.complex64), r"floating point.*complex64"),
    "an array of strings": (np.array([["a", "b"]]), "must hold numbers, got an array of <U1"),
    "an array of objects": (np.array([[None, 1]]), "must hold numbers, got an array of object"),
    "a list": ([[0.0, 0.5]], "must be a tensor or a numpy array, got list"),
    "nothing": (None, "must be a tensor or a numpy array, got NoneType"),
    "a number of numpy": (np.float32(1), "must be a tensor or a numpy array, got float32"),
    "sparse": (torch.ones(1, 10).to_sparse(), "must be a dense tensor, got a sparse_coo one"),
    "compressed": (torch.ones(2, 10).to_sparse_csr(), "must be a dense tensor, got a sparse_csr one"),
    "nested": (torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]), "must be a dense tensor, got a nested one"),
    "without values": (torch.zeros(1, 10, device="meta"), "must be a tensor with values, got one on the meta device"),
}


@pytest.mark.parametrize(("audio", "message"), BAD_AUDIO.values(), ids=BAD_AUDIO.keys())
def test_audio_of_another_shape_or_kind_is_a_value_error(tmp_path: Path, audio: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"audio:? .*{message}"):
        write_wav(tmp_path / "clip.wav", audio, 16000)
    with pytest.raises(ValueError, match=rf"audio:? .*{message}"):
        resample(audio, 16000, 16000)
    with pytest.raises(ValueError, match=rf"audio:? .*{message}"):
        match_channels(audio, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_samples_are_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="audio: holds NaN or infinite"):
        write_wav(tmp_path / "clip.wav", torch.tensor([[0.0, value]]), 16000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [0, -1, 16000.0, True, "16000", None, np.float32(16000), np.array([16000])])
def test_a_rate_is_a_positive_integer(tmp_path: Path, rate: Any) -> None:
    with pytest.raises(ValueError, match=r"^rate: must be a positive integer"):
        write_wav(tmp_path / "clip.wav", noise(1, 10), rate)
    with pytest.raises(ValueError, match=r"^rate: must be a positive integer"):
        resample(noise(1, 10), rate, 16000)
    with pytest.raises(ValueError, match=r"^new_rate: must be a positive integer"):
        resample(noise(1, 10), 16000, rate)


@pytest.mark.parametrize(("channels", "samples", "rate"), [(2**15, 1, 16000), (1, 2**31 - 18, 16000), (1, 1, 2**31)])
def test_what_the_header_cannot_count_is_a_value_error(tmp_path: Path, channels: int, samples: int, rate: int) -> None:
    with pytest.raises(ValueError, match="do not fit into a WAV file"):
        write_wav(tmp_path / "clip.wav", torch.zeros(1, 1).expand(channels, samples), rate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("channels", "rate"), [(2**15 - 1, 1), (1, 2**31 - 1)])
def test_what_the_header_can_just_count_is_written(tmp_path: Path, channels: int, rate: int) -> None:
    write_wav(tmp_path / "clip.wav", noise(channels, 1), rate)
    with wave.open(str(tmp_path / "clip.wav"), "rb") as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (channels, rate, 1)


def test_a_write_into_a_missing_folder_or_onto_a_folder_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: no folder .*missing"):
        write_wav(tmp_path / "missing" / "clip.wav", noise(1, 10), 16000)
    with pytest.raises(ValueError, match=r"path: .* is a folder"):
        write_wav(tmp_path, noise(1, 10), 16000)
    assert list(tmp_path.iterdir()) == []


# Resampling


def test_what_resampling_would_take_is_measured_before(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = noise(2, 1000)
    assert resample(audio, 8000, 16000, max_bytes=2 * 2000 * 4).shape == (2, 2000)
    assert resample(audio.double(), 8000, 16000, max_bytes=2 * 2000 * 8).shape == (2, 2000)
    monkeypatch.setitem(sys.modules, "soxr", None)  # it is not even looked for
    with pytest.raises(ValueError, match=r"audio: 1,000 samples .* 16000 Hz, would take 16,000 bytes .* 15,999 bytes"):
        resample(audio, 8000, 16000, max_bytes=2 * 2000 * 4 - 1)
    with pytest.raises(ValueError, match=r"would take 32,000 bytes"):
        resample(audio.double(), 8000, 16000, max_bytes=2 * 2000 * 8 - 1)
    with pytest.raises(ValueError, match=r"would take 1\.5 GiB .* max_bytes, 1\.0 GiB"):
        resample(noise(1, 400_000), 100, 100_000)
    with pytest.raises(ValueError, match=r"audio: must have at most 1024 channels to be resampled, got 65535"):
        resample(torch.zeros(65535, 4), 8000, 16000)
    for rate, new_rate in ((1, 10_001), (10_001, 1), (2**32 - 1, 32000)):
        with pytest.raises(ValueError, match=r"rate: must be within 10,000 times"):
            resample(torch.zeros(1, 10**6), rate, new_rate)


@properties
@given(channels=st.integers(1, 3), samples=st.integers(10, 5000), rate=RATES, new_rate=RATES)
def test_the_length_is_the_exact_one_rounded_half_up(channels: int, samples: int, rate: int, new_rate: int) -> None:
    resampled = resample(noise(channels, samples), rate, new_rate)
    assert resampled.shape == (channels, (2 * samples * new_rate + rate) // (2 * rate))
    assert resampled.dtype == torch.float32
    assert resampled.is_contiguous()


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 32000), (24000, 32000), (48000, 32000), (32000, 16000)])
def test_a_sine_stays_the_same_sine(rate: int, new_rate: int) -> None:
    resampled = resample(torch.cat([sine(440, rate + 1, rate), sine(5000, rate + 1, rate)]), rate, new_rate)
    samples = resampled.shape[1]
    expected = torch.cat([sine(440, samples, new_rate), sine(5000, samples, new_rate)])
    # Away from the ends, where the filter sees the silence around the clip: phase, frequency and amplitude all agree.
    inside = slice(1000, samples - 1000)
    assert_close(resampled[:, inside], expected[:, inside], rtol=0, atol=1e-4)


def test_what_the_lower_rate_cannot_hold_is_removed() -> None:
    resampled = resample(sine(12000, 32000, 32000), 32000, 16000)
    assert resampled[:, 1000:-1000].abs().max() < 1e-4


def test_channels_are_resampled_each_for_itself() -> None:
    audio = noise(3, 777)
    together = resample(audio, 44100, 32000)
    assert torch.equal(together, torch.cat([resample(row[None], 44100, 32000) for row in audio]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    audio = noise(2, 500).to(dtype)
    resampled = resample(audio, 44100, 32000)
    assert resampled.dtype == dtype
    expected = resample(audio.float(), 44100, 32000)
    assert_close(resampled.float(), expected.to(dtype).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 32000), (24000, 32000), (32000, 16000)])
def test_float64_keeps_its_precision(rate: int, new_rate: int) -> None:
    seconds = torch.arange(rate + 1, dtype=torch.float64)[None] / rate
    resampled = resample(0.5 * torch.sin(2 * math.pi * 440 * seconds), rate, new_rate)
    assert resampled.dtype == torch.float64
    assert resampled.shape == (1, (2 * (rate + 1) * new_rate + rate) // (2 * rate))
    seconds = torch.arange(resampled.shape[1], dtype=torch.float64)[None] / new_rate
    # float32 is 3e-8 off before anything is computed, and soxr's high quality 5e-7.
    expected = 0.5 * torch.sin(2 * math.pi * 440 * seconds)
    assert_close(resampled[:, 1000:-1000], expected[:, 1000:-1000], rtol=0, atol=2e-9)


def test_equal_rates_and_equal_channels_return_the_audio_itself() -> None:
    audio = noise(2, 10)
    assert resample(audio, 32000, 32000) is audio
    assert match_channels(audio, 2) is audio


def test_too_few_samples_for_the_lower_rate_are_a_value_error() -> None:
    assert resample(noise(1, 3), 48000, 8000).shape == (1, 1)
    with pytest.raises(ValueError, match="audio: 2 samples at 48000 Hz are none at 8000 Hz"):
        resample(noise(1, 2), 48000, 8000)


def test_without_soxr_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    block(monkeypatch, "soxr")
    audio = noise(1, 10)
    assert resample(audio, 32000, 32000) is audio
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'musicgen_ref\[audio\]'"):
        resample(audio, 32000, 16000)


# Channels


@given(samples=st.integers(1, 50), seed=st.integers(0, 99))
@properties
def test_mono_doubles_and_stereo_averages(samples: int, seed: int) -> None:
    mono, stereo = noise(1, samples, seed), noise(2, samples, seed)
    doubled = match_channels(mono, 2)
    assert torch.equal(doubled, torch.cat([mono, mono]))
    assert torch.equal(match_channels(doubled, 1), mono)
    assert torch.equal(match_channels(stereo, 1), (stereo[:1] + stereo[1:]) / 2)


def test_a_doubled_clip_has_two_channels_of_its_own() -> None:
    doubled = match_channels(torch.zeros(1, 4), 2)
    doubled[0] += 1
    assert doubled.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("channels", [0, 3, -1])
def test_other_channel_layouts_are_a_value_error(channels: int) -> None:
    with pytest.raises(ValueError, match=r"^channels: must be 1 \(mono\) or 2 \(stereo\)"):
        match_channels(noise(1, 10), channels)


@pytest.mark.parametrize("channels", [1, 2])
def test_more_than_two_channels_are_a_value_error(channels: int) -> None:
    with pytest.raises(ValueError, match="audio: must have 1 or 2 channels, got 3"):
        match_channels(noise(3, 10), channels)
