"""Synthesised music with known attributes, 16 kHz mono, numpy only.

One instrument plays one texture over a chord progression, with or without drums. Everything a caption may promise is
audible at once: each clip starts on beat 1 with the tonic and its third, on a fixed grid, with the drums from the first
beat, because a small model can only learn to follow a caption from evidence in the first second.

Time is counted in steps (sixteenth notes); a slot is 8 steps (two beats, one chord), a phrase 4 slots (two bars).
Pitches are MIDI note numbers; degrees count scale steps from the tonic (0 tonic, 2 third, 7 octave).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

SAMPLE_RATE = 16_000
INSTRUMENTS = ("pad", "pluck", "lead", "bell", "bass")
DRUMS = ("none", "simple", "busy")
TEMPOS = {"slow": 80, "medium": 110, "fast": 140}  # beats per minute
TEXTURES = ("melody", "arpeggio", "chords", "bass line")
ROOTS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # minor is natural minor

SLOT, PHRASE = 8, 32  # steps


@dataclass(frozen=True)
class Attributes:
    """What a caption can say about a clip; root is a pitch class, 0 = C ... 11 = B."""

    instrument: str
    drums: str
    tempo: str
    root: int
    mode: str
    texture: str

    def __post_init__(self) -> None:
        allowed = {"instrument": INSTRUMENTS, "drums": DRUMS, "tempo": tuple(TEMPOS), "root": range(12)}
        for name, values in {**allowed, "mode": tuple(SCALES), "texture": TEXTURES}.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {list(values)}, got {getattr(self, name)!r}")

    @property
    def bpm(self) -> int:
        """Beats per minute."""
        return TEMPOS[self.tempo]

    @property
    def key(self) -> str:
        """The key with sharps only, such as "A# minor"."""
        return f"{ROOTS[self.root]} {self.mode}"


def is_held_out(attributes: Attributes) -> bool:
    """Whether this combination belongs to the tenth that training never sees; the same in every process."""
    return hashlib.sha256(repr(attributes).encode()).digest()[0] < 26  # 26 of 256


def sample_attributes(rng: np.random.Generator, held_out: bool | None = None) -> Attributes:
    """Draw every attribute uniformly; held_out=True or False keeps to that side of the split, None draws from both."""
    while True:
        instrument, drums, tempo, root, mode, texture = (
            int(rng.integers(n)) for n in (len(INSTRUMENTS), len(DRUMS), len(TEMPOS), 12, 2, len(TEXTURES))
        )
        drawn = Attributes(
            INSTRUMENTS[instrument], DRUMS[drums], tuple(TEMPOS)[tempo], root, tuple(SCALES)[mode], TEXTURES[texture]
        )
        if held_out is None or is_held_out(drawn) == held_out:
            return drawn


# ---------------------------------------------------------------------------------------------------------------------
# Sounds. Every note and hit is the same waveform each time it is played, which a small codec can learn by heart.

TONE_SECONDS = 2.0  # the longest note, two beats at 80 bpm, and its tail
TOP = 4_200.0  # Hz; the instruments keep mostly below, so that what is above belongs to the drums
GATE = {"pad": 0.85, "pluck": 1.0, "lead": 0.8, "bell": 1.0, "bass": 0.8}  # share of its length a note is held
TAIL = {"pad": 0.12, "pluck": 0.10, "lead": 0.03, "bell": 0.30, "bass": 0.04}  # seconds a note sounds on, fading


@cache
def tone(instrument: str, midi: int) -> np.ndarray:
    """One unreleased note, (TONE_SECONDS * SAMPLE_RATE,) float32, of the same energy for every instrument and pitch."""
    t = np.arange(int(TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    f = 440.0 * 2.0 ** ((midi - 69) / 12)
    harmonics = np.arange(1, max(2, int(TOP / f)) + 1)
    phase = 2 * np.pi * f * t
    if instrument == "pad":  # two nearly pure voices that beat slowly
        x = sum(np.sin(phase * (1 + d)) + 0.2 * np.sin(2 * phase * (1 - d)) for d in (-0.0012, 0.0012))
        x = x * np.minimum(t / 0.04, 1)
    elif instrument == "pluck":  # high harmonics die first; plucked at a fifth of the string
        x = sum(np.sin(np.pi * k / 5) / k * np.sin(k * phase) * np.exp(-t * (3 + 1.2 * k)) for k in harmonics)
    elif instrument == "lead":  # a square wave: odd harmonics, sustained
        x = sum(np.sin(k * phase) / k for k in harmonics[::2]) * np.minimum(t / 0.005, 1)
    elif instrument == "bell":  # FM; an integer ratio keeps the partials (4 f, 6 f, 9 f, 11 f) in key
        index = 1.3 * np.clip((SAMPLE_RATE / 2 - 6 * f) / (SAMPLE_RATE / 2 - TOP), 0, 1)  # no partial folds back
        x = np.sin(phase + index * np.exp(-5 * t) * np.sin(5 * phase)) * np.exp(-3 * t)
    elif instrument == "bass":  # a saw behind a low-pass filter that closes after the attack
        cutoff = 600 + 1800 * np.exp(-8 * t)
        x = sum(np.sin(k * phase) / k / (1 + (k * f / cutoff) ** 4) for k in harmonics) * np.minimum(t / 0.005, 1)
    else:
        raise ValueError(f"instrument must be one of {list(INSTRUMENTS)}, got {instrument!r}")
    x *= 0.12 / np.sqrt(np.mean(x[: SAMPLE_RATE // 4] ** 2))
    x = x.astype(np.float32)
    x.flags.writeable = False  # the cache hands the same array to every caller
    return x


@cache
def drum(name: str) -> np.ndarray:
    """One hit of the "kick", "snare" or "hat", (N,) float32; its noise has a seed of its own."""
    noise = np.random.default_rng(7).standard_normal(SAMPLE_RATE // 4)
    bright = np.diff(noise, 2, append=[0.0, 0.0]) / 2  # second difference: a high-pass filter
    t = np.arange(len(noise)) / SAMPLE_RATE
    if name == "kick":
        x = 0.55 * np.sin(2 * np.pi * (48 * t + 4.5 * (1 - np.exp(-t * 28)))) * np.exp(-t * 14)
    elif name == "snare":
        x = 0.22 * np.sin(2 * np.pi * 190 * t) * np.exp(-t * 25) + (0.10 * noise + 0.08 * bright) * np.exp(-t * 22)
    elif name == "hat":
        x = 0.13 * bright * np.exp(-t * 70)
    else:
        raise ValueError(f"drum must be kick, snare or hat, got {name!r}")
    x = (x * np.linspace(1, 0, len(x))).astype(np.float32)
    x.flags.writeable = False
    return x


# ---------------------------------------------------------------------------------------------------------------------
# Composition. Every phrase starts and ends on the tonic chord, so half of the music is the tonic's.

PROGRESSIONS = {  # degrees of the four slots
    "major": ((0, 3, 4, 0), (0, 4, 3, 0), (0, 1, 4, 0), (0, 5, 4, 0)),
    "minor": ((0, 3, 4, 0), (0, 5, 6, 0), (0, 3, 6, 0), (0, 5, 4, 0)),
}
# One row is one slot: lengths in steps, or which chord tone each sixteenth takes (0 root, 1 third, 2 fifth, 3 octave).
MELODY_RHYTHMS = ((2, 2, 4), (2, 2, 2, 2), (4, 2, 2), (2, 4, 2), (3, 3, 2))
CHORD_RHYTHMS = ((4, 4), (4, 2, 2), (2, 2, 4))
ARPEGGIOS = ((0, 1, 2, 3, 0, 1, 2, 3), (0, 1, 2, 3, 2, 1, 2, 1), (0, 2, 1, 3, 0, 2, 1, 3), (0, 1, 2, 1, 3, 2, 1, 2))
BASS_LINES = ((0, 0, 1, 2), (0, 1, 2, 1), (0, 2, 1, 0), (0, 1, 0, 2))  # eighths
OPENINGS = ((0, 2, 4, 2), (0, 4, 2, 4), (0, 2, 4, 7), (0, 2, 0, 4))  # melody degrees


class Note(NamedTuple):
    """step and length in sixteenths, pitch as MIDI number (or a drum's name), velocity in (0, 1]."""

    step: int
    length: int
    pitch: int | str
    velocity: float


def tonic_pitch(attributes: Attributes) -> int:
    """The MIDI note the music is built on: bass lines from E2, else from G3, for the bell C4, for the bass C3."""
    lowest = 40 if attributes.texture == "bass line" else 55 + {"bell": 5, "bass": -7}.get(attributes.instrument, 0)
    return lowest + (attributes.root - lowest) % 12


def melody_slot(chord: int, lengths: tuple[int, ...], degree: int, rng: np.random.Generator) -> list[int]:
    """Degrees of one slot that go on from degree: a near chord tone on its first beat, then a walk along the scale."""
    tones = [d for d in range(-2, 9) if (d - chord) % 7 in (0, 2, 4) and d != degree]
    line = [min(tones, key=lambda d: abs(d - degree) + rng.random())]
    for _ in lengths[1:]:
        step = 1 if rng.random() < 0.5 else -1
        line.append(line[-1] + (step if -2 <= line[-1] + step <= 8 else -step))
    return line


def compose(attributes: Attributes, rng: np.random.Generator) -> Iterator[list[Note]]:
    """Yield the notes of one phrase after another, for ever; steps count from the phrase's start."""
    progression = PROGRESSIONS[attributes.mode][rng.integers(4)]
    pattern, opening = rng.integers(4), OPENINGS[rng.integers(4)]
    rhythms = [MELODY_RHYTHMS[rng.integers(2)], *(MELODY_RHYTHMS[rng.integers(5)] for _ in range(2))]
    chord_rhythm = CHORD_RHYTHMS[rng.integers(3)]
    tonic, scale = tonic_pitch(attributes), SCALES[attributes.mode]

    def pitch(degree: int) -> int:
        return tonic + scale[degree % 7] + 12 * (degree // 7)

    while True:
        notes: list[tuple[int, int, int]] = []  # step, length, degree
        degree = 0
        for slot, chord in enumerate(progression):
            start, last = slot * SLOT, slot == 3
            root = chord - 7 if chord > 4 else chord
            tones = (root, root + 2, root + 4, root + 7)
            if attributes.texture == "melody":
                home = 7 if degree > 3 else 0
                lengths = (2, 6) if last else rhythms[slot]
                line = [home + 1 if rng.random() < 0.5 else home + 2, home] if last else list(opening)
                if 0 < slot < 3:
                    line = melody_slot(chord, lengths, degree, rng)
                for length, degree in zip(
                    lengths, line, strict=False
                ):  # an opening may have more notes than its rhythm
                    notes.append((start, length, degree))
                    start += length
            elif attributes.texture == "arpeggio":
                order = ARPEGGIOS[pattern]
                notes += [(start + i, 1, tones[order[i]]) for i in range(4 if last else 8)]
                notes += [(start + 4, 4, 0)] if last else []
            elif attributes.texture == "chords":  # inversions that stay within a sixth of the tonic chord
                voices = [d % 7 for d in tones[:3]]
                for length in (8,) if last else chord_rhythm:
                    notes += [(start, length, d) for d in voices]
                    start += length
            else:
                line = [tones[tone] for tone in BASS_LINES[pattern]]
                notes += [(start + 2 * i, 2, d) for i, d in enumerate(line[:2] if last else line)]
                notes += [(start + 4, 4, 0)] if last else []
        yield [Note(s, n, pitch(d), accent(s) * (0.94 + 0.06 * float(rng.random()))) for s, n, d in notes]


def accent(step: int) -> float:
    """Velocity by metrical weight: bar, beat, eighth, sixteenth."""
    return 1.0 if step % 16 == 0 else 0.88 if step % 4 == 0 else 0.78 if step % 2 == 0 else 0.7


def drum_phrase(drums: str, kicks: tuple[int, ...], ghosts: tuple[int, ...], fill: bool) -> list[Note]:
    """Hits of one phrase: simple is kick, snare, off-beat hats; busy has hats on every sixteenth and ghost notes."""
    hits = []
    for bar in (0, 16) if drums != "none" else ():
        hits += [Note(bar + s, 1, "kick", 1.0) for s in ((0, 8) if drums == "simple" else (0, 8, *kicks))]
        hits += [Note(bar + s, 1, "snare", 1.0) for s in (4, 12)]
        if drums == "simple":
            hits += [Note(bar + s, 1, "hat", 0.9) for s in (2, 6, 10, 14)]
        else:
            hits += [Note(bar + s, 1, "hat", 1.0 if s % 2 == 0 else 0.8) for s in range(16)]
            hits += [Note(bar + s, 1, "snare", 0.4) for s in ghosts]
    if fill and drums == "busy":
        hits += [Note(s, 1, "snare", 0.5 + 0.1 * (s - 28)) for s in range(29, 32)]
    return hits


# ---------------------------------------------------------------------------------------------------------------------

TEXTURE_GAIN = {"melody": 1.0, "arpeggio": 1.0, "chords": 0.6, "bass line": 1.0}


def render(attributes: Attributes, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Render a clip, (round(seconds * SAMPLE_RATE),) float32 within +-0.95.

    The same rng state gives the same music at any length: a shorter clip is the start of a longer one.
    Raises ValueError unless seconds is positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    size = round(seconds * SAMPLE_RATE)
    step = 60 / attributes.bpm / 4 * SAMPLE_RATE  # samples
    audio = np.zeros(size, np.float32)
    tail = int(TAIL[attributes.instrument] * SAMPLE_RATE)
    fade = np.linspace(1, 0, tail, dtype=np.float32)
    kicks = ((6,), (10,), (6, 11), (3, 10))[rng.integers(4)]
    ghosts = ((7,), (9, 15), (7, 9), (15,))[rng.integers(4)]
    for index, phrase in enumerate(compose(attributes, rng)):
        offset = index * PHRASE
        if round(offset * step) >= size:
            break
        for note in phrase:
            start = round((offset + note.step) * step)
            held = round(note.length * step * GATE[attributes.instrument])
            gain = note.velocity * TEXTURE_GAIN[attributes.texture]
            sound = tone(attributes.instrument, int(note.pitch))[: held + tail] * np.float32(gain)
            sound[held:] *= fade
            add(audio, sound, start)
        for hit in drum_phrase(attributes.drums, kicks, ghosts, fill=index % 2 == 1):
            add(audio, drum(str(hit.pitch)) * np.float32(hit.velocity), round((offset + hit.step) * step))
    # A knee at 0.8 instead of a gain for the whole clip, so that the start does not depend on what follows.
    loud = np.flatnonzero(np.abs(audio) > 0.8)
    audio[loud] = np.sign(audio[loud]) * (0.8 + 0.15 * np.tanh((np.abs(audio[loud]) - 0.8) / 0.15))
    return audio


def add(audio: np.ndarray, sound: np.ndarray, start: int) -> None:
    """Mix sound (N,) into audio in place from sample start on, cut at its end."""
    audio[start : start + len(sound)] += sound[: max(0, len(audio) - start)]
