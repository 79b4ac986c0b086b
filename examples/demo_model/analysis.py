"""What can be heard in a clip: tempo, key, drums, instrument and texture, measured from the audio alone.

The analysers know nothing of how the synthesiser makes its sounds. Tempo comes from the autocorrelation of onsets; key
from a chroma profile; instrument, texture and drums from spectral and rhythmic features. The profile and the
classifier are fitted on rendered clips, half of them degraded, so that they rely on what survives a lossy codec. The
fit is seeded and takes about a minute; nothing is stored.

N samples, D features, H random features. `python -m examples.demo_model.analysis --validate` prints the accuracies.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .features import KEYS, chroma, features, find_peaks, log_mel, stft
from .synth import DRUMS, INSTRUMENTS, SAMPLE_RATE, SCALES, TEXTURES, Attributes, render, sample_attributes

ALLOWED = {"instrument": INSTRUMENTS, "drums": DRUMS, "texture": TEXTURES}


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of two (N,) signals (Le Roux et al., 2019)."""
    check_pair(reference, estimate)
    reference, estimate = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (reference, estimate))
    target = (estimate @ reference) / (reference @ reference + 1e-12) * reference
    return float(10 * np.log10((target @ target + 1e-12) / (((estimate - target) ** 2).sum() + 1e-12)))


def log_mel_distance(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Mean absolute difference of the log-mel spectra of two (N,) signals, in nepers."""
    check_pair(reference, estimate)
    return float(np.abs(log_mel(reference) - log_mel(estimate)).mean())


def check_pair(reference: np.ndarray, estimate: np.ndarray) -> None:
    """Raise ValueError unless both are (N,) with the same N > 0."""
    if reference.ndim != 1 or reference.shape != estimate.shape or not reference.size:
        raise ValueError(f"reference and estimate must both be (N,), got {reference.shape} and {estimate.shape}")


def in_scale(audio: np.ndarray, root: int, mode: str) -> float:
    """Share of the chroma energy of audio (N,) that lies on the scale of the key, 0 to 1."""
    return float(chroma(find_peaks(audio))[0][[(root + s) % 12 for s in SCALES[mode]]].sum())


# ---------------------------------------------------------------------------------------------------------------------
# Fitting


@dataclass(frozen=True)
class Classifier:
    """Ridge regression to one-hot labels over random rectified features (Rahimi and Recht, 2007)."""

    mean: np.ndarray
    scale: np.ndarray
    projection: np.ndarray
    shift: np.ndarray
    weights: dict[str, np.ndarray]

    def expand(self, x: np.ndarray) -> np.ndarray:
        """Standardised features and their random rectified mixtures, (clips, D + H + 1), of x (clips, D)."""
        x = (x - self.mean) / self.scale
        hidden = np.maximum(x @ self.projection + self.shift, 0)
        return np.concatenate([x, hidden, np.ones((len(x), 1))], axis=1)

    def __call__(self, x: np.ndarray) -> dict[str, int]:
        """The best label of features x (D,) for every attribute."""
        expanded = self.expand(x[None])[0]
        return {name: int((expanded @ weights).argmax()) for name, weights in self.weights.items()}


def fit_classifier(
    x: np.ndarray, labels: dict[str, np.ndarray], rng: np.random.Generator, hidden: int = 1200, ridge: float = 0.02
) -> Classifier:
    """Fit features x (clips, D) to labels (clips,) of each attribute in closed form."""
    size = x.shape[1]
    projection, shift = rng.standard_normal((size, hidden)) / np.sqrt(size), 0.5 * rng.standard_normal(hidden)
    classifier = Classifier(x.mean(axis=0), x.std(axis=0) + 1e-6, projection, shift, {})
    expanded = classifier.expand(x)
    gram = expanded.T @ expanded / len(x) + ridge * np.eye(expanded.shape[1])
    targets = np.concatenate([np.eye(len(ALLOWED[name]))[labels[name]] for name in ALLOWED], axis=1)
    weights = np.linalg.solve(gram, expanded.T @ targets / len(x))
    parts = np.split(weights, np.cumsum([len(values) for values in ALLOWED.values()])[:-1], axis=1)
    return replace(classifier, weights=dict(zip(ALLOWED, parts, strict=True)))


def fit_key_profile(seen: np.ndarray, keys: np.ndarray, steps: int = 300, rate: float = 2.0) -> np.ndarray:
    """Profile (D,) by softmax regression: seen (clips, 24, D) scores highest where the clip was seen from its key."""
    profile, velocity = np.zeros(seen.shape[2]), np.zeros(seen.shape[2])
    target = np.eye(len(KEYS))[keys]
    for _ in range(steps):
        scores = np.exp(seen @ profile)
        error = scores / scores.sum(axis=1, keepdims=True) - target
        velocity = 0.9 * velocity + np.einsum("ck,ckd->d", error, seen) / len(seen) + 1e-3 * profile
        profile = profile - rate * velocity
    return profile


@dataclass(frozen=True)
class Analyser:
    """Estimates the attributes of clips that start on beat 1; make one with fit_analyser."""

    classifier: Classifier
    profile: np.ndarray

    def __call__(self, audio: np.ndarray) -> Attributes:
        """The attributes heard in audio (N,) of 16 kHz, two seconds or longer; ValueError for anything else."""
        tempo, seen, x = features(audio)
        root, mode = KEYS[int((seen @ self.profile).argmax())]
        heard = {name: ALLOWED[name][label] for name, label in self.classifier(x).items()}
        return Attributes(tempo=tempo, root=root, mode=mode, **heard)


def fit_analyser(seed: int = 0, clips: int = 1500, coded: Callable[[np.ndarray], np.ndarray] | None = None) -> Analyser:
    """Fit on freshly rendered clips of 4 to 8 s, every second one degraded; the same seed gives the same analyser.

    coded: what a codec makes of a clip (N,), to judge a model that it decodes: half of the degraded clips are its.
    """
    rng = np.random.default_rng(seed)
    truths, seen, x = [], [], []
    for index in range(clips):
        truths.append(sample_attributes(rng, held_out=False))
        audio = render(truths[-1], rng.uniform(4, 8), rng)
        if coded and index % 4 == 3:
            audio = coded(audio)
        elif index % 2:
            noise, cutoff, tilt, white = rng.uniform((3, 2500, -2, 6), (12, 8000, 8, 40))
            noise, cutoff, white = np.where(rng.random(3) < (0.7, 0.4, 0.4), (noise, cutoff, white), np.inf)
            audio = degrade(audio, rng, noise, cutoff, tilt, white)
        _, key_features, timbre_features = features(audio)
        seen.append(key_features)
        x.append(timbre_features)
    labels = {name: np.array([v.index(getattr(t, name)) for t in truths]) for name, v in ALLOWED.items()}
    keys = np.array([KEYS.index((t.root, t.mode)) for t in truths])
    return Analyser(fit_classifier(np.stack(x), labels, rng), fit_key_profile(np.stack(seen), keys))


def degrade(
    audio: np.ndarray,
    rng: np.random.Generator,
    noise: float = np.inf,
    cutoff: float = np.inf,
    tilt: float = 0.0,
    white: float = np.inf,
) -> np.ndarray:
    """Audio (N,) as a poor codec might return it, (N,) float32.

    noise: dB of signal over an error that follows the signal's spectrum, smoothed over 500 Hz, from frame to frame;
    cutoff: Hz kept; tilt: dB lost per octave above 500 Hz; white: dB over white noise.
    """
    hop = 256
    spectra = stft(audio, 2 * hop, hop)
    hertz = np.arange(hop + 1) * SAMPLE_RATE / 2 / hop
    power = np.cumsum(np.pad(np.abs(spectra) ** 2, ((0, 0), (9, 8)), mode="reflect"), axis=1, dtype=np.float64)
    error = rng.standard_normal((2, *spectra.shape)) * np.sqrt((power[:, 17:] - power[:, :-17]) / 17)
    gain = (hertz <= cutoff) * 10 ** (-tilt * np.log2(np.maximum(hertz, 500) / 500) / 20)
    spectra = (spectra + 0.82 * 10 ** (-noise / 20) * (error[0] + 1j * error[1])) * gain
    halves = np.fft.irfft(spectra).reshape(len(spectra), 2, hop)  # Hann windows at half overlap add up to one
    degraded = np.concatenate([halves[1:, 0], np.zeros((1, hop))]) + halves[:, 1]
    degraded = np.pad(degraded.ravel(), (0, hop))[: len(audio)]
    hiss = np.sqrt(np.mean(audio**2)) * 10 ** (-white / 20)
    return (degraded + hiss * rng.standard_normal(len(audio))).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def accuracies(heard: list[Attributes], asked: list[Attributes]) -> dict[str, float]:
    """Share of clips on which what was heard is what was asked for, for each attribute."""
    if not heard or len(heard) != len(asked):
        raise ValueError(f"heard and asked must have the same length, not 0, got {len(heard)} and {len(asked)}")
    pairs = list(zip(heard, asked, strict=True))
    names = ("instrument", "drums", "tempo", "texture", "key")
    table = {name: float(np.mean([getattr(h, name) == getattr(a, name) for h, a in pairs])) for name in names}
    table["drums yes/no"] = float(np.mean([(h.drums == "none") == (a.drums == "none") for h, a in pairs]))
    return table


def validate(clips: int, seed: int) -> None:
    """Print the accuracies on unseen combinations of 6 to 8 s, as rendered and degraded, right and shuffled."""
    analyser = fit_analyser()
    rng = np.random.default_rng([seed, 1])
    asked = [sample_attributes(rng, held_out=True) for _ in range(clips)]
    audio = [render(a, rng.uniform(6, 8), rng) for a in asked]
    shuffled = asked[1:] + asked[:1]
    print(f"{clips} unseen clips of 6 to 8 s, right (against another clip's attributes)")
    conditions = {
        "as rendered": {},
        "error 6 dB": {"noise": 6.0},
        "error 6 dB, 4 kHz": {"noise": 6.0, "cutoff": 4000.0},
        "low-pass 3 kHz": {"cutoff": 3000.0},
        "error 6 dB, 6 dB/octave": {"noise": 6.0, "tilt": 6.0},
        "white noise 12 dB": {"white": 12.0},
    }
    for name, settings in conditions.items():
        heard_audio = [degrade(x, rng, **settings) if settings else x for x in audio]
        heard = [analyser(x) for x in heard_audio]
        right, chance = accuracies(heard, asked), accuracies(heard, shuffled)
        for table, keys in ((right, asked), (chance, shuffled)):
            table["energy in scale"] = float(
                np.mean([in_scale(x, a.root, a.mode) for x, a in zip(heard_audio, keys, strict=True)])
            )
        distortion = np.mean([si_sdr(x, y) for x, y in zip(audio, heard_audio, strict=True)]) if settings else np.inf
        print(f"\n{name}: SI-SDR {distortion:.1f} dB")
        for attribute, value in right.items():
            print(f"  {attribute:16}{value:.3f} ({chance[attribute]:.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true", required=True, help="print the table of accuracies")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    validate(arguments.clips, arguments.seed)
