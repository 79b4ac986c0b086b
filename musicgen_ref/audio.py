"""Audio files in and out, resampling, channel layout.

C channels, N samples. Audio is a floating-point tensor (C, N), full scale at -1 and 1.
"""

import os
import uuid
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

AUDIO_EXTRA = "pip install 'musicgen_ref[audio]'"


def read_wav(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Audio (C, N) float32 and the sample rate in Hz of a file, whatever its rate and number of channels.

    With the extra ``audio`` installed: every format that soundfile knows (WAV, MP3, FLAC, Ogg, ...). Without it: WAV of
    8, 16, 24 or 32-bit integers, with the same values (the extensible header from Python 3.12 on). Raises
    FileNotFoundError where there is no such file, and ValueError where it is no such audio, holds no sample, or holds
    NaN or infinite ones.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no audio file at {path}")
    try:
        import soundfile
    except (ModuleNotFoundError, OSError):  # OSError: soundfile is installed, the C library that it wraps is not
        samples, rate = _read_integer_wav(path)
    else:
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        # TypeError: a headerless file, known by its suffix alone. MemoryError: a damaged header that claims any length.
        except (soundfile.SoundFileError, TypeError, MemoryError) as error:
            raise ValueError(f"path: {path} is not audio that soundfile can read: {error}") from error
    if rate < 1:
        raise ValueError(f"path: {path} has a sample rate of {rate} Hz")
    if len(samples) == 0:
        raise ValueError(f"path: {path} holds no samples")
    if not np.isfinite(samples).all():
        raise ValueError(f"path: {path} holds NaN or infinite samples")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate


def _read_integer_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples (N, C) float32 and the sample rate in Hz of an integer WAV file, through the standard library alone."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk ends beyond the file
        reason = str(error) or "damaged or cut short"
        raise ValueError(
            f"path: {path} is not a WAV file of integer samples ({reason}); for other formats: {AUDIO_EXTRA}"
        ) from error
    if not 1 <= width <= 4:
        raise ValueError(f"path: {path} has samples of {width} bytes, must be 1 to 4")
    # A file that was cut short may end inside a frame.
    raw = np.frombuffer(data, np.uint8)[: len(data) // (width * channels) * width * channels].reshape(-1, width)
    if width == 1:
        raw = raw ^ np.uint8(0x80)  # 8-bit WAV is unsigned, the wider ones are signed: moves its zero from 128 to 0
    # Every width fills its 32 bits from the top, so that one scale fits all.
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 4 - width :] = raw
    return (wide.view("<i4").astype(np.float32) / 2**31).reshape(-1, channels), rate


def write_wav(path: str | os.PathLike[str], audio: Tensor, rate: int) -> None:
    """Write audio (C, N) as a 16-bit PCM WAV file of `rate` Hz; samples beyond full scale are clipped, not wrapped.

    The file appears whole or not at all, and replaces an older one. A sample x is stored as round(32768 x), so that
    16-bit audio that `read_wav` read is written back unchanged. Raises FileNotFoundError where the folder of `path`
    does not exist, and ValueError for a shape other than (C, N), NaN, infinity, or what the format cannot hold.
    """
    path = Path(path)
    _check_audio(audio)
    _check_rate("rate", rate)
    channels, samples = audio.shape
    # The header has 16 bits for the bytes of a frame, 32 for those of a second and for those of the rest of the file.
    if 2 * channels >= 2**16 or 2 * channels * rate >= 2**32 or 2 * channels * samples + 36 >= 2**32:
        raise ValueError(f"audio: {channels} channels of {samples} samples at {rate} Hz do not fit into a WAV file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: no folder {path.parent} to write {path.name} into")
    if path.is_dir():
        raise ValueError(f"path: {path} is a folder, must be a file name")
    if not torch.isfinite(audio).all():
        raise ValueError("audio: holds NaN or infinite samples")
    pcm = (audio.detach().cpu().to(torch.float32) * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with wave.open(str(temporary), "wb") as file:
            file.setparams((channels, 2, rate, samples, "NONE", "not compressed"))
            file.writeframes(pcm.T.contiguous().numpy().astype("<i2", copy=False).tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # nothing to remove once it has been moved into place


def resample(audio: Tensor, rate: int, new_rate: int) -> Tensor:
    """Audio (C, N) of `rate` Hz as (C, floor(N * new_rate / rate + 1/2)) of `new_rate` Hz, by soxr at its high quality;
    float64, which that computes in float32, at its very high one.

    Keeps dtype and device; equal rates return `audio` itself; no gradient passes. Raises ValueError for a shape other
    than (C, N), a rate that is no positive integer, or a result without samples, and ModuleNotFoundError, saying what
    to install, where the extra ``audio`` is missing.
    """
    _check_audio(audio)
    _check_rate("rate", rate)
    _check_rate("new_rate", new_rate)
    if rate == new_rate:
        return audio
    if 2 * audio.shape[1] * new_rate < rate:
        raise ValueError(f"audio: {audio.shape[1]} samples at {rate} Hz are none at {new_rate} Hz")
    try:
        import soxr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"resampling needs soxr: {AUDIO_EXTRA}", name="soxr") from error
    dtype, quality = (torch.float64, "VHQ") if audio.dtype == torch.float64 else (torch.float32, "HQ")
    samples = audio.detach().cpu().to(dtype).T.numpy()
    return torch.from_numpy(soxr.resample(samples, rate, new_rate, quality=quality).T).contiguous().to(audio)


def match_channels(audio: Tensor, channels: int) -> Tensor:
    """Audio (C, N) as (channels, N), each 1 or 2: mono is doubled, stereo averaged, equal ones return `audio` itself.

    Raises ValueError for a shape other than (C, N) and for any other number of channels.
    """
    _check_audio(audio)
    if channels not in (1, 2):
        raise ValueError(f"channels: must be 1 (mono) or 2 (stereo), got {channels!r}")
    if len(audio) not in (1, 2):
        raise ValueError(f"audio: must have 1 or 2 channels, got {len(audio)}")
    if len(audio) == channels:
        return audio
    return audio.repeat(2, 1) if channels == 2 else audio.mean(dim=0, keepdim=True)


def _check_audio(audio: Tensor) -> None:
    if not isinstance(audio, Tensor):
        raise ValueError(f"audio: must be a tensor, got {type(audio).__name__}")
    if audio.dim() != 2 or audio.numel() == 0:
        raise ValueError(f"audio: must be (C, N) with at least one channel and one sample, got {tuple(audio.shape)}")
    if not audio.is_floating_point():
        raise ValueError(f"audio: must be floating point, full scale at -1 and 1, got {audio.dtype}")


def _check_rate(name: str, rate: int) -> None:
    if not isinstance(rate, int) or isinstance(rate, bool) or rate < 1:
        raise ValueError(f"{name}: must be a positive integer in Hz, got {rate!r}")
