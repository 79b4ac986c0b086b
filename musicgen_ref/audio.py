"""Reading and writing audio files, resampling, and matching channels.

C channels, N samples. Audio is a floating-point tensor (C, N) with full scale at -1 and 1. All functions also take
numpy arrays, and the whole numbers of a WAV file (int16, int32, uint8), which are scaled.
"""

import io
import os
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checks, output

AUDIO_EXTRA = "pip install 'musicgen_ref[audio]'"
# By suffix: what is written here, and what soundfile writes, as its format and subtype.
WAV = ("", ".wav", ".wave")
FORMATS = {".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
BLOCK = 2**16  # samples to encode at a time: libsndfile's Vorbis encoder puts each block on the stack


def read_wav(
    path: str | os.PathLike[str], *, max_seconds: float | None = None, max_bytes: int = checks.MAX_AUDIO_BYTES
) -> tuple[Tensor, int]:
    """Audio (C, N) float32 and the sample rate in Hz of a file, whatever its rate and number of channels.

    With the extra ``audio`` installed: every format that soundfile knows (WAV, MP3, FLAC, Ogg, ...). Without it: WAV of
    8, 16, 24 or 32-bit integers, with the same values (the extensible header from Python 3.12 on).
    max_seconds: the longest audio to accept, None for any. max_bytes: the most memory, at 4 bytes a sample. Both are
    compared with what the file's header says, before anything is decoded.
    Raises FileNotFoundError where there is no such file, and ValueError for a file that is not such audio, is longer or
    larger than allowed, or holds no samples, or NaN or infinite ones.
    """
    checks.paths(path=path)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no audio file at {path}")
    try:
        import soundfile
    except (ModuleNotFoundError, OSError):  # OSError: soundfile is installed without the C library that it wraps
        samples, rate = _read_integer_wav(path, max_seconds, max_bytes)
    else:
        try:
            with soundfile.SoundFile(path) as file:
                rate = file.samplerate
                _measure(path, file.frames, file.channels, rate, max_seconds, max_bytes)
                samples = file.read(dtype="float32", always_2d=True)
        # TypeError: a file without a header, recognised by its suffix. MemoryError: less memory than max_bytes.
        except (soundfile.SoundFileError, TypeError, MemoryError) as error:
            raise ValueError(f"path: {path} is not audio that soundfile can read: {error}") from error
    if len(samples) == 0:
        raise ValueError(f"path: {path} holds no samples")
    if not np.isfinite(samples).all():
        raise ValueError(f"path: {path} holds NaN or infinite samples")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate


def _measure(path: Path, samples: int, channels: int, rate: int, max_seconds: float | None, max_bytes: int) -> None:
    """Raise ValueError for a file that cannot be played, or is longer or larger than allowed, by its header."""
    if rate < 1:
        raise ValueError(f"path: {path} has a sample rate of {rate} Hz")
    if max_seconds is not None and samples > max_seconds * rate:
        seconds = f"{samples / rate:,.2f} s of audio ({samples:,} samples at {rate:,} Hz)"
        raise ValueError(f"path: {path} holds {seconds}, at most {max_seconds:g} s are taken: cut it")
    checks.audio_size(f"path: {path}", samples, channels, 4, max_bytes)


def _read_integer_wav(path: Path, max_seconds: float | None, max_bytes: int) -> tuple[np.ndarray, int]:
    """Samples (N, C) float32 and the sample rate in Hz of an integer WAV file, through the standard library alone."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            if not 1 <= width <= 4:
                raise ValueError(f"path: {path} has samples of {width} bytes, must be 1 to 4")
            # The header of a damaged file may claim more samples than there are.
            samples = min(file.getnframes(), path.stat().st_size // (width * channels))
            _measure(path, samples, channels, rate, max_seconds, max_bytes)
            data = file.readframes(samples)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk ends beyond the file
        reason = str(error) or "damaged or cut short"
        raise ValueError(
            f"path: {path} is not a WAV file of integer samples ({reason}); for other formats: {AUDIO_EXTRA}"
        ) from error
    # A file that was cut short may end inside a frame.
    raw = np.frombuffer(data, np.uint8)[: len(data) // (width * channels) * width * channels].reshape(-1, width)
    if width == 1:
        raw = raw ^ np.uint8(0x80)  # 8-bit WAV is unsigned: this makes it signed, as the wider ones are
    # The bytes of every width become the highest of 32 bits, so that one scale is right for all.
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 4 - width :] = raw
    return (wide.view("<i4").astype(np.float32) / 2**31).reshape(-1, channels), rate


def write_wav(path: str | os.PathLike[str], audio: Tensor | np.ndarray, rate: int, *, scale_peak: bool = False) -> int:
    """Write audio (C, N) as a 16-bit file of `rate` Hz; returns how many samples were beyond full scale and clipped.

    scale_peak: True divides audio that goes beyond full scale by its peak, so that nothing is clipped.
    The suffix says the format. .wav, .wave or none is PCM: a sample x is stored as round(32768 x), so that 16-bit audio
    from `read_wav` is written back unchanged. .flac holds the same numbers, .ogg and .mp3 what their codecs make of
    them; these three are written by soundfile (extra ``audio``).
    A regular file appears whole or not at all, and replaces an older one, whose mode and owner it keeps. A link is
    followed; a device or a pipe is written to directly. Raises what check_target() raises; ValueError for a shape other
    than (C, N), NaN, infinity, and audio that the format cannot hold; and OSError, with the file's name, where the
    system fails to write.
    """
    check_target(path)
    path, audio, rate = Path(path), _audio(audio), _rate("rate", rate)
    channels, samples = audio.shape
    suffix = path.suffix.lower()
    # WAV's header has 16 bits for the bytes of a sample of all channels, and 32 each for the bytes of a second and of
    # the rest of the file.
    beyond = 2 * channels >= 2**16 or 2 * channels * rate >= 2**32 or 2 * channels * samples + 36 >= 2**32
    if beyond and suffix not in FORMATS:
        raise ValueError(f"audio: {channels} channels of {samples} samples at {rate} Hz do not fit into a WAV file")
    if not torch.isfinite(audio).all():
        raise ValueError("audio: holds NaN or infinite samples")
    sound = audio.detach().cpu().to(torch.float32)
    peak = float(sound.abs().max())
    if scale_peak and peak > 1:
        sound = sound / peak
    clipped = int((sound.abs() > 1).sum())
    output.write(path, _encoded(sound.clamp(-1, 1), rate, suffix) if suffix in FORMATS else _wav(_pcm(sound), rate))
    return clipped


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise the error that write_wav() would raise for a path, before the clip is made.

    Raises FileNotFoundError where the folder of `path` does not exist; PermissionError where folder or file must not be
    written to; ValueError for an unknown suffix, and where the path is a folder, a block device or a socket; and
    ModuleNotFoundError, saying what to install, where the format needs the extra ``audio``.
    """
    checks.paths(path=path)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        _soundfile(suffix)
    elif suffix not in WAV:
        raise ValueError(f"path: {path} must end in .wav, {', '.join(FORMATS)}, or have no suffix, which is WAV")
    output.check_target(path)


def _soundfile(suffix: str) -> Any:
    try:
        import soundfile
    except (ModuleNotFoundError, OSError) as error:  # OSError: its C library is missing
        raise ModuleNotFoundError(f"writing {suffix} needs soundfile: {AUDIO_EXTRA}", name="soundfile") from error
    return soundfile


def _pcm(sound: Tensor) -> np.ndarray:
    """Samples (N, C) of 16 bits."""
    pcm = (sound * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    return pcm.T.contiguous().numpy()


def _wav(pcm: np.ndarray, rate: int) -> memoryview:
    """The bytes of a WAV file of samples (N, C)."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((pcm.shape[1], 2, rate, len(pcm), "NONE", "not compressed"))
        file.writeframes(pcm.astype("<i2", copy=False).tobytes())
    return buffer.getbuffer()


def _encoded(sound: Tensor, rate: int, suffix: str) -> memoryview:
    """The bytes of a file of another format."""
    soundfile, buffer = _soundfile(suffix), io.BytesIO()
    kind, subtype = FORMATS[suffix]
    samples = _pcm(sound) if subtype == "PCM_16" else sound.T.contiguous().numpy()
    try:
        with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], subtype=subtype, format=kind) as file:
            for start in range(0, len(samples), BLOCK):
                file.write(samples[start : start + BLOCK])
    except (soundfile.SoundFileError, ValueError, OverflowError) as error:
        reason = str(error).rpartition("Error : ")[2]
        what = f"{samples.shape[1]} channels at {rate} Hz"
        raise ValueError(f"audio: {what} cannot be written as {suffix} by this soundfile: {reason}") from error
    return buffer.getbuffer()


def resample(
    audio: Tensor | np.ndarray, rate: int, new_rate: int, *, max_bytes: int = checks.MAX_AUDIO_BYTES
) -> Tensor:
    """Resample audio (C, N) of `rate` Hz to `new_rate` Hz, which gives (C, floor(N * new_rate / rate + 1/2)) samples.

    It is done by soxr with its quality HQ. That computes in float32, so float64 is resampled with VHQ. Keeps dtype and
    device; equal rates return `audio` itself; gradients do not pass through. Raises ValueError for a shape other than
    (C, N), a rate that is no positive integer, rates ten thousand times apart, and a result without samples or of more
    than max_bytes; and ModuleNotFoundError, saying what to install, where the extra ``audio`` is missing.
    """
    audio, rate, new_rate = _audio(audio), _rate("rate", rate), _rate("new_rate", new_rate)
    if rate == new_rate:
        return audio
    checks.resampling(audio, rate, new_rate, max_bytes)
    try:
        import soxr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"resampling needs soxr: {AUDIO_EXTRA}", name="soxr") from error
    dtype, quality = (torch.float64, "VHQ") if audio.dtype == torch.float64 else (torch.float32, "HQ")
    samples = audio.detach().cpu().to(dtype).T.numpy()
    return torch.from_numpy(soxr.resample(samples, rate, new_rate, quality=quality).T).contiguous().to(audio)


def match_channels(audio: Tensor | np.ndarray, channels: int) -> Tensor:
    """Audio (C, N) with another number of channels, 1 or 2: mono is doubled, stereo is averaged. Audio that has this
    number already is returned itself.

    Raises ValueError for a shape other than (C, N) and for any other number of channels.
    """
    audio = _audio(audio)
    if channels not in (1, 2):
        raise ValueError(f"channels: must be 1 (mono) or 2 (stereo), got {checks.shown(channels)}")
    if len(audio) not in (1, 2):
        raise ValueError(f"audio: must have 1 or 2 channels, got {len(audio)}")
    if len(audio) == channels:
        return audio
    return audio.repeat(2, 1) if channels == 2 else audio.mean(dim=0, keepdim=True)


def _audio(given: Any) -> Tensor:
    audio = checks.as_audio(given)
    checks.valued("audio", audio)
    if audio.dim() != 2 or audio.numel() == 0:
        raise ValueError(f"audio: must be (C, N) with at least one channel and one sample, got {tuple(audio.shape)}")
    if not audio.is_floating_point():
        raise ValueError(f"audio: must be floating point, full scale at -1 and 1, got {audio.dtype}")
    return audio


def _rate(name: str, given: Any) -> int:
    rate = checks.as_python(given)
    if type(rate) is not int or rate < 1:
        raise ValueError(f"{name}: must be a positive integer in Hz, got {checks.shown(rate)}")
    return rate
