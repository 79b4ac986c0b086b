"""The demo's music, its captions and the analysers that judge them."""

import re
from itertools import product

import numpy as np
import pytest

from examples.demo_model import analysis, captions, features, synth
from examples.demo_model.synth import SAMPLE_RATE, Attributes

EVERY = [
    Attributes(instrument, drums, tempo, root, mode, texture)
    for instrument, drums, tempo, root, mode, texture in product(
        synth.INSTRUMENTS, synth.DRUMS, synth.TEMPOS, range(12), synth.SCALES, synth.TEXTURES
    )
]
SAID = {  # how a reader would recognise each value; the first match wins
    "instrument": {
        "pad": "pad",
        "pluck": "pluck",
        "lead": "square",
        "bell": "bell",
        "bass": r"saw(tooth)?( synth)? bass",
    },
    "drums": {"none": r"no (drums|percussion|beat)", "simple": "simple|basic drum", "busy": "busy"},
    "tempo": {"slow": "slow|unhurried|80 bpm", "medium": "medium|mid-|moderate|110 bpm", "fast": "fast|quick|140 bpm"},
    "texture": {"melody": "melody|tune", "arpeggio": "arpeggi", "chords": "chord", "bass line": r"bass ?line"},
}
PITCH = {name: i for names in (captions.SHARPS, captions.FLATS) for i, name in enumerate(names)}


def read_caption(text: str) -> dict[str, set[object]]:
    """Every claim that a reader finds in a caption, by attribute."""
    found: dict[str, set[object]] = {
        name: {value for value, pattern in values.items() if re.search(pattern, text)} for name, values in SAID.items()
    }
    keys = re.findall(r"\b([A-G])(#|b| sharp| flat|) (major|minor)", text)
    found["key"] = {(PITCH[n + {" sharp": "#", " flat": "b"}.get(s, s)], mode) for n, s, mode in keys}
    return {name: values for name, values in found.items() if values}


def claims(attributes: Attributes, said: frozenset[str]) -> dict[str, set[object]]:
    return {n: {(attributes.root, attributes.mode) if n == "key" else getattr(attributes, n)} for n in said}


def decibels(audio: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(audio.astype(np.float64) ** 2) + 1e-12))


# --- music


def test_a_seed_gives_one_clip_and_touches_no_global_state() -> None:
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    clips = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        attributes = synth.sample_attributes(rng)
        clips.append((attributes, synth.render(attributes, 3.0, rng), captions.caption(attributes, rng)))
    assert clips[0][0] == clips[1][0] and clips[0][2] == clips[1][2]
    assert np.array_equal(clips[0][1], clips[1][1])
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])
    other = synth.render(clips[0][0], 3.0, np.random.default_rng(6))
    assert not np.array_equal(clips[0][1], other)


def test_a_short_clip_is_the_start_of_a_long_one() -> None:
    for seed in range(8):
        attributes = synth.sample_attributes(np.random.default_rng(seed))
        short, long = (synth.render(attributes, seconds, np.random.default_rng(seed)) for seconds in (0.6, 7.0))
        assert np.array_equal(short, long[: len(short)])


@pytest.mark.parametrize("instrument", synth.INSTRUMENTS)
def test_clips_have_their_length_no_nan_no_clipping_and_the_same_loudness(instrument: str) -> None:
    rng = np.random.default_rng(1)
    for drums, tempo, texture in product(synth.DRUMS, synth.TEMPOS, synth.TEXTURES):
        attributes = Attributes(instrument, drums, tempo, int(rng.integers(12)), "minor", texture)
        audio = synth.render(attributes, 6.01, rng)
        assert audio.shape == (96_160,) and audio.dtype == np.float32 and np.isfinite(audio).all()
        assert np.abs(audio).max() <= 0.95
        assert -26 < decibels(audio) < -15, attributes
        assert decibels(audio[: SAMPLE_RATE // 2]) > -26, attributes  # something sounds from the start


@pytest.mark.parametrize("tempo", synth.TEMPOS)
def test_busy_drums_strike_on_the_sixteenth_grid(tempo: str) -> None:
    attributes = Attributes("pad", "busy", tempo, 0, "major", "chords")
    audio = synth.render(attributes, 6.0, np.random.default_rng(3))
    treble = np.abs(features.stft(audio, 256, 80))[:, 256 * 6 // 16 :].sum(axis=1)  # above 6 kHz, every 5 ms
    rise = np.maximum(treble[2:] - treble[:-2], 0)
    hits = np.flatnonzero((rise > 0.2 * rise.max()) & (rise >= np.roll(rise, 1)) & (rise >= np.roll(rise, -1))) + 1
    step = 15 / attributes.bpm
    beside = hits * 80 / SAMPLE_RATE / step
    assert len(hits) > 0.8 * 6.0 / step
    assert np.abs(beside - np.round(beside)).max() * step < 0.015


def test_drums_own_the_treble() -> None:
    for instrument, texture in product(synth.INSTRUMENTS, synth.TEXTURES):
        treble = {}
        for drums in synth.DRUMS:
            audio = synth.render(
                Attributes(instrument, drums, "fast", 7, "major", texture), 2.0, np.random.default_rng(0)
            )
            size = np.abs(features.stft(audio, 512, 256)) ** 2
            treble[drums] = float(size[:, 512 * 6 // 16 :].sum())
        assert treble["simple"] > 2 * treble["none"], (instrument, texture)
        assert treble["busy"] > 2 * treble["simple"], (instrument, texture)


def test_notes_lie_in_the_key_and_the_first_beats_on_its_triad() -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        attributes = synth.sample_attributes(rng)
        scale = {(attributes.root + s) % 12 for s in synth.SCALES[attributes.mode]}
        triad = {(attributes.root + s) % 12 for s in (0, 4 if attributes.mode == "major" else 3, 7)}
        phrase = next(synth.compose(attributes, rng))
        assert {int(note.pitch) % 12 for note in phrase} <= scale
        assert {int(note.pitch) % 12 for note in phrase if note.step < synth.SLOT} <= triad
        first, last = (
            [int(note.pitch) % 12 for note in phrase if note.step == step]
            for step in (0, max(note.step for note in phrase))
        )
        assert attributes.root in first and attributes.root in last  # a phrase leaves from home and comes back
        assert all(note.step + note.length <= synth.PHRASE and 0 < note.velocity <= 1 for note in phrase)


def test_wrong_attributes_and_lengths_are_refused() -> None:
    good = {"instrument": "pad", "drums": "none", "tempo": "slow", "root": 0, "mode": "major", "texture": "chords"}
    for name, wrong in [("instrument", "piano"), ("drums", "loud"), ("tempo", 80), ("root", 12), ("mode", "dorian")]:
        with pytest.raises(ValueError, match=f"{name} must be one of .*{wrong}"):
            Attributes(**{**good, name: wrong})  # type: ignore[arg-type]
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            synth.render(Attributes(**good), seconds, np.random.default_rng(0))  # type: ignore[arg-type]


# --- the split


def test_the_held_out_tenth_is_the_same_everywhere_and_disjoint() -> None:
    held_out = {a for a in EVERY if synth.is_held_out(a)}
    assert len(held_out) == 483  # 11 % of 4,320; a change of this number would leak evaluation into training
    for values in (synth.INSTRUMENTS, synth.DRUMS, synth.TEMPOS, range(12), synth.SCALES, synth.TEXTURES):
        names = {"instrument", "drums", "tempo", "root", "mode", "texture"}
        assert any(set(values) == {getattr(a, name) for a in held_out} for name in names)
    rng = np.random.default_rng(0)
    for _ in range(500):
        assert synth.sample_attributes(rng, held_out=True) in held_out
        assert synth.sample_attributes(rng, held_out=False) not in held_out


def test_training_never_sees_a_complete_caption_of_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    training = {captions.caption(synth.sample_attributes(rng, held_out=False), rng)[0] for _ in range(3000)}
    evaluation = {captions.caption(synth.sample_attributes(rng, held_out=True), rng, True)[0] for _ in range(500)}
    assert len(training) > 2000 and len(evaluation) > 450
    assert not training & evaluation


# --- captions


def test_captions_say_what_they_claim_to_say_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    times_said = dict.fromkeys(captions.ATTRIBUTES, 0)
    for _ in range(4000):
        attributes = EVERY[rng.integers(len(EVERY))]
        text, said = captions.caption(attributes, rng)
        assert said and said <= set(captions.ATTRIBUTES)
        assert read_caption(text) == claims(attributes, said), text
        assert text == text.strip() and "  " not in text and " ," not in text
        for name in said:
            times_said[name] += 1
    assert all(0.7 < times / 4000 < 0.95 for times in times_said.values()), times_said


def test_complete_captions_say_everything() -> None:
    rng = np.random.default_rng(1)
    for attributes in EVERY[::7]:
        text, said = captions.caption(attributes, rng, complete=True)
        assert said == set(captions.ATTRIBUTES)
        assert read_caption(text) == claims(attributes, said), text


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        (
            "a fast arpeggio in A minor on a plucked string with busy drums",
            Attributes("pluck", "busy", "fast", 9, "minor", "arpeggio"),
        ),
        ("slow dreamy pad chords, F major, no drums", Attributes("pad", "none", "slow", 5, "major", "chords")),
    ],
)
def test_the_documented_captions_are_drawn(text: str, attributes: Attributes) -> None:
    rng = np.random.default_rng(0)
    assert text in {captions.caption(attributes, rng)[0] for _ in range(4000)}


# --- analysers


@pytest.fixture(scope="module")
def analyser() -> analysis.Analyser:
    return analysis.fit_analyser(clips=350)


def test_attributes_are_decidable_from_audio_even_when_degraded(analyser: analysis.Analyser) -> None:
    rng = np.random.default_rng(11)
    asked = [synth.sample_attributes(rng, held_out=True) for _ in range(60)]
    audio = [synth.render(a, 6.0, rng) for a in asked]
    heard = [analyser(x) for x in audio]
    right = analysis.accuracies(heard, asked)
    assert min(right.values()) >= 0.85, right
    degraded = analysis.accuracies([analyser(analysis.degrade(x, rng, noise=6.0)) for x in audio], asked)
    assert min(degraded.values()) >= 0.75, degraded
    chance = analysis.accuracies(heard, asked[1:] + asked[:1])
    assert max(value for name, value in chance.items() if name != "drums yes/no") < 0.5, chance


def test_energy_lies_in_the_scale_of_the_key_that_was_asked_for() -> None:
    rng = np.random.default_rng(12)
    asked = [synth.sample_attributes(rng) for _ in range(40)]
    audio = [synth.render(a, 6.0, rng) for a in asked]
    right = [analysis.in_scale(x, a.root, a.mode) for x, a in zip(audio, asked, strict=True)]
    tritone = [analysis.in_scale(x, (a.root + 6) % 12, a.mode) for x, a in zip(audio, asked, strict=True)]
    assert np.mean(right) > 0.93 and min(right) > 0.8
    assert np.mean(tritone) < 0.45


def test_the_analyser_is_deterministic_and_checks_its_input() -> None:
    first, second = (analysis.fit_analyser(seed=3, clips=24) for _ in range(2))
    assert np.array_equal(first.profile, second.profile)
    for name, weights in first.classifier.weights.items():
        assert np.array_equal(weights, second.classifier.weights[name])
    for wrong in (np.zeros(SAMPLE_RATE), np.zeros((1, 5 * SAMPLE_RATE)), np.full(5 * SAMPLE_RATE, np.nan)):
        with pytest.raises(ValueError, match="audio"):
            first(wrong)
    first(np.zeros(4 * SAMPLE_RATE, np.float32))  # silence has an answer, not an error
    with pytest.raises(ValueError, match="same length"):
        analysis.accuracies([], [])


def test_si_sdr_and_log_mel_distance_have_their_textbook_values() -> None:
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone, other = np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 1000 * t)
    assert analysis.si_sdr(tone, tone + np.sqrt(0.1) * other) == pytest.approx(10, abs=1e-3)
    assert analysis.si_sdr(tone, 0.3 * tone + 0.3 * np.sqrt(0.1) * other) == pytest.approx(10, abs=1e-3)
    assert analysis.si_sdr(tone, -2 * tone) > 100
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    assert analysis.log_mel_distance(noise, noise) == 0
    assert analysis.log_mel_distance(noise, np.e * noise) == pytest.approx(1, abs=0.01)
    for measure in (analysis.si_sdr, analysis.log_mel_distance):
        with pytest.raises(ValueError, match="reference and estimate"):
            measure(tone, tone[1:])


def test_degradation_is_as_strong_as_asked_for() -> None:
    rng = np.random.default_rng(4)
    audio = synth.render(Attributes("bass", "simple", "fast", 4, "minor", "melody"), 4.0, rng)
    assert np.allclose(analysis.degrade(audio, rng), audio, atol=1e-5)
    assert analysis.si_sdr(audio, analysis.degrade(audio, rng, noise=6.0)) == pytest.approx(6, abs=0.8)
    assert analysis.si_sdr(audio, analysis.degrade(audio, rng, white=12.0)) == pytest.approx(12, abs=0.2)
    dull = np.abs(features.stft(analysis.degrade(audio, rng, cutoff=3000.0), 1024, 512)) ** 2
    assert dull[:, 1024 * 4 // 16 :].sum() < 1e-3 * dull.sum()


def test_a_quarter_of_the_clips_that_the_analyser_is_fitted_on_may_go_through_a_codec():
    lengths = []

    def reversed_in_time(clip):
        lengths.append(len(clip))
        return clip[::-1].copy()

    plain, coded = analysis.fit_analyser(clips=40), analysis.fit_analyser(clips=40, coded=reversed_in_time)
    assert len(lengths) == 10
    assert not np.allclose(plain.profile, coded.profile)
