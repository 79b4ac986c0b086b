"""Features of a clip that its tempo, key, drums, instrument and texture can be told from.

They are measured from the audio alone: band energies, onsets, spectral peaks.
N samples, F frames, M mel bands, P peaks.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from .synth import SAMPLE_RATE, SCALES, TEMPOS

WINDOW, HOP, BANDS = 1024, 160, 40  # samples, samples (100 frames a second), mel bands
PITCH_WINDOW, PITCH_HOP = 4096, 1280  # samples; long enough to part two semitones above 260 Hz
KEYS = [(root, mode) for root in range(12) for mode in SCALES]


def stft(audio: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Hann-windowed spectra (F, window / 2 + 1) of audio (N,), frame f centred on sample f * hop."""
    padded = np.pad(audio.astype(np.float32), (window // 2, window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.fft.rfft(frames * np.hanning(window + 1)[:-1].astype(np.float32))


@cache
def mel_filters(window: int, bands: int) -> np.ndarray:
    """Triangular filters (window / 2 + 1, bands), evenly spaced in mel from 30 Hz to the Nyquist frequency."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (30, SAMPLE_RATE / 2))
    mel = np.linspace(low, high, bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.arange(window // 2 + 1)[:, None] * SAMPLE_RATE / window
    rise, fall = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Natural logarithm of the mel magnitudes (F, M), with a floor of 1e-2 (a full-scale sine reaches about 256)."""
    return np.log(np.abs(stft(audio, WINDOW, HOP)) @ mel_filters(WINDOW, BANDS) + 1e-2)


def onsets(mel: np.ndarray) -> np.ndarray:
    """Rise of each band's log magnitude over 20 ms, (F, M); frame 0 counts as a rise from silence."""
    mel = np.maximum(mel, mel.max() - 7)  # 60 dB below the loudest is silence: its fluctuations are no onsets
    before = np.concatenate([np.full((2, mel.shape[1]), mel.min(), mel.dtype), mel[:-2]])
    return np.maximum(mel - before, 0)


def tempo_scores(flux: np.ndarray) -> np.ndarray:
    """For each tempo, the autocorrelation of the onsets (F, M) at multiples of its beat."""
    strength = flux.mean(axis=1)
    strength = np.convolve(strength, np.hanning(7)[1:-1], mode="same")
    strength -= strength.mean()
    spectrum = np.fft.rfft(strength, 2 * len(strength))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(strength)]
    correlation /= correlation[0] + 1e-9
    lags = np.arange(len(strength))
    beat = 60 / np.array(list(TEMPOS.values())) * SAMPLE_RATE / HOP
    return np.sum([np.interp(beat * k, lags, correlation, right=0) for k in (0.5, 1, 1.5, 2, 3, 4)], axis=0)


class Peaks(NamedTuple):
    """Spectral peaks (P,) in order of frame, then frequency: frame, pitch in fractional MIDI numbers, log magnitude."""

    frame: np.ndarray
    pitch: np.ndarray
    level: np.ndarray
    lowest: np.ndarray  # whether it is its frame's lowest
    spectra: np.ndarray  # (F, bins) log magnitudes, from which harmonics can be read


def find_peaks(audio: np.ndarray) -> Peaks:
    """Peaks between 75 and 1500 Hz within 22 dB of their frame's highest and 43 dB of the clip's."""
    low, high = (round(f * PITCH_WINDOW / SAMPLE_RATE) for f in (75, 1500))
    spectra = np.log(np.abs(stft(audio, PITCH_WINDOW, PITCH_HOP)[:, : 4 * high]) + 1e-3)
    mid = spectra[:, low:high]
    peak = (mid > spectra[:, low - 1 : high - 1]) & (mid > spectra[:, low + 1 : high + 1])
    frame, bin = np.nonzero(peak & (mid > mid.max(axis=1, keepdims=True) - 2.5) & (mid > mid.max() - 5))
    left, top, right = (spectra[frame, bin + low + d] for d in (-1, 0, 1))
    vertex = 0.5 * (left - right) / (left + right - 2 * top)  # of the parabola through the three
    pitch = 12 * np.log2((bin + low + vertex) * SAMPLE_RATE / PITCH_WINDOW / 440) + 69
    return Peaks(frame, pitch, top, np.diff(frame, prepend=-1) > 0, spectra)


def chroma(peaks: Peaks) -> np.ndarray:
    """Energy by pitch class, (3, 12), each row of sum 1: the whole clip, its first 0.6 s, each frame's lowest peak."""
    note = np.round(peaks.pitch)
    # Peaks halfway between two semitones count for nothing.
    energy = np.exp(2 * peaks.level) * np.cos(np.pi * (peaks.pitch - note)) ** 2
    start = peaks.frame * PITCH_HOP < 0.6 * SAMPLE_RATE
    masks = (np.ones_like(start), start, peaks.lowest)
    rows = [np.bincount(note[m].astype(int) % 12, energy[m], 12) for m in masks]
    return np.stack([row / (row.sum() + 1e-9) for row in rows])


def voice(peaks: Peaks) -> np.ndarray:
    """Features (15,) of the lowest voice: its harmonics 1 to 8 and how they vary, its register, range and company."""
    frame, pitch = peaks.frame[peaks.lowest], peaks.pitch[peaks.lowest]
    if len(frame) < 2:
        return np.zeros(15)
    base = 440 * 2 ** ((pitch - 69) / 12) * PITCH_WINDOW / SAMPLE_RATE  # in bins
    at = np.round(base[:, None] * np.arange(1, 9)).astype(int)  # (frames, 8)
    near = [peaks.spectra[frame[:, None], np.minimum(at + d, peaks.spectra.shape[1] - 1)] for d in (-2, -1, 0, 1, 2)]
    harmonics = np.max(near, axis=0)
    harmonics = np.maximum(harmonics - harmonics.max(axis=1, keepdims=True), -5)
    moves = np.abs(np.diff(pitch)) > 0.7
    company = len(peaks.frame) / len(frame)
    return np.array(
        [*harmonics.mean(axis=0), *harmonics.std(axis=0)[1:4], pitch.mean(), pitch.std(), moves.mean(), company]
    )


def timbre(mel: np.ndarray, flux: np.ndarray, bpm: float) -> np.ndarray:
    """Features of instrument, texture and drums: spectrum, its spread and decay, onsets by sixteenth of two beats."""
    mel = np.maximum(mel, mel.max() - 7)
    mel = mel - np.quantile(mel, 0.9)
    pairs = mel.reshape(len(mel), BANDS // 2, 2).mean(axis=2)
    spread = np.quantile(pairs, (0.1, 0.5, 0.9), axis=0)
    decay = np.maximum(pairs[:-5] - pairs[5:], 0).mean(axis=0)
    # Onsets in the bands of kick, bass, melody and cymbals, and (the last) those that fill most bands at once.
    groups = np.stack(
        [flux[:, a:b].mean(axis=1) for a, b in ((0, 3), (3, 10), (10, 26), (30, 40))]
        + [np.quantile(flux[:, 3:26], 0.25, axis=1)],
        axis=1,
    )
    places = np.round(np.arange(0, len(mel), SAMPLE_RATE / HOP * 15 / bpm)).astype(int)
    near = np.stack([groups[np.clip(places + d, 0, len(mel) - 1)] for d in (-1, 0, 1, 2)]).max(axis=0)
    folded = np.stack([near[i::8].mean(axis=0) for i in range(8)])
    parts = (mel.mean(axis=0), spread.ravel(), decay, flux.mean(axis=0), groups.std(axis=0), folded.ravel())
    return np.concatenate(parts)


def features(audio: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """Tempo, key features (24, 72) as seen from each of KEYS, and timbre features of audio (N,).

    Raises ValueError unless audio is (N,), finite, and two seconds or longer.
    """
    if audio.ndim != 1 or len(audio) < 2 * SAMPLE_RATE or not np.isfinite(audio).all():
        raise ValueError(f"audio must be (N,), finite, of at least {2 * SAMPLE_RATE} samples, got {audio.shape}")
    mel = log_mel(audio)
    flux = onsets(mel)
    tempo = list(TEMPOS)[int(tempo_scores(flux).argmax())]
    peaks = find_peaks(audio)
    profile = np.sqrt(chroma(peaks))
    seen = np.zeros((len(KEYS), 2, 36))
    for index, (root, mode) in enumerate(KEYS):
        seen[index, list(SCALES).index(mode)] = np.roll(profile, -root, axis=1).ravel()
    return tempo, seen.reshape(len(KEYS), -1), np.concatenate([timbre(mel, flux, TEMPOS[tempo]), voice(peaks)])
