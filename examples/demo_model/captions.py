"""Paraphrased captions of clips, such as "a fast arpeggio in A minor on a plucked string with busy drums".

A caption says some of a clip's attributes and never a wrong one. Mood words ("dreamy") belong to an instrument and are
used only beside its name, so they add no claim.
"""

import numpy as np

from .synth import Attributes

ATTRIBUTES = ("instrument", "drums", "tempo", "key", "texture")

INSTRUMENT_NAMES = {
    "pad": ("pad", "sine pad", "synth pad"),
    "pluck": ("plucked string", "plucked strings", "pluck"),
    "lead": ("square lead", "square wave lead", "square synth"),
    "bell": ("FM bell", "bell", "FM bells"),
    "bass": ("saw bass", "sawtooth bass", "saw synth bass"),
}
MOODS = {
    "pad": ("dreamy", "warm", "soft"),
    "pluck": ("crisp", "acoustic"),
    "lead": ("retro", "bright"),
    "bell": ("shimmering", "glassy"),
    "bass": ("gritty", "growling"),
}
DRUM_PHRASES = {
    "none": ("no drums", "no percussion", "no beat"),
    "simple": ("simple drums", "a simple beat", "a basic drum beat"),
    "busy": ("busy drums", "a busy beat", "a busy drum groove"),
}
TEMPO_WORDS = {
    "slow": ("slow", "slow-paced", "unhurried"),
    "medium": ("medium-tempo", "mid-tempo", "moderate"),
    "fast": ("fast", "fast-paced", "quick"),
}
TEXTURE_NAMES = {
    "melody": ("melody", "tune"),
    "arpeggio": ("arpeggio", "arpeggiated pattern"),
    "chords": ("chords", "chord progression"),
    "bass line": ("bass line", "bassline"),
}
SHARPS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FLATS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")


def caption(
    attributes: Attributes, rng: np.random.Generator, complete: bool | None = None
) -> tuple[str, frozenset[str]]:
    """Draw a caption; returns it with the names of the ATTRIBUTES it says, at least one.

    complete=True says all five, which identifies the combination (what an evaluation on held-out combinations needs);
    None says all five half of the time and else leaves each out with probability 0.3.
    """
    said = list(ATTRIBUTES)
    if not complete and (complete is False or rng.random() < 0.5):
        said = [name for name in ATTRIBUTES if rng.random() > 0.3] or [ATTRIBUTES[rng.integers(5)]]
    words = draw_words(attributes, rng)
    number = "tempo" in said and rng.random() < 0.3
    word = not number or rng.random() < 0.5  # the number stands beside the word or instead of it
    part = {name: words[name] if name in said else "" for name in ATTRIBUTES}
    part["mood"] = words["mood"] if "instrument" in said and rng.random() < 0.4 else ""
    if not word:
        part["tempo"] = ""
    style = (sentence_on, sentence_playing, clauses, tags)[rng.choice(4, p=(0.35, 0.2, 0.3, 0.15))]
    text = style(part, f"{attributes.bpm} bpm" if number else "", rng)
    return text, frozenset(said)


def draw_words(attributes: Attributes, rng: np.random.Generator) -> dict[str, str]:
    """Wording for each attribute and a mood; the first wording of each is the most frequent."""

    def draw(options: tuple[str, ...]) -> str:
        return options[0] if rng.random() < 0.5 else options[rng.integers(len(options))]

    root = (SHARPS if rng.random() < 0.5 else FLATS)[attributes.root]
    if rng.random() < 0.2:
        root = root.replace("#", " sharp").replace("b", " flat")
    return {
        "instrument": draw(INSTRUMENT_NAMES[attributes.instrument]),
        "drums": draw(DRUM_PHRASES[attributes.drums]),
        "tempo": draw(TEMPO_WORDS[attributes.tempo]),
        "key": f"{root} {attributes.mode}",
        "texture": draw(TEXTURE_NAMES[attributes.texture]),
        "mood": draw(MOODS[attributes.instrument]),
    }


def join(*words: str) -> str:
    """The words that are not empty, with spaces between."""
    return " ".join(word for word in words if word)


def with_article(phrase: str) -> str:
    """The noun phrase after "a" or "an", or bare if it is a plural."""
    if phrase.endswith(("chords", "bells", "strings", "drums", "music")):
        return phrase
    return f"an {phrase}" if phrase.startswith(("a", "e", "i", "o", "un", "FM")) else f"a {phrase}"


def sentence_on(part: dict[str, str], number: str, rng: np.random.Generator) -> str:
    """A fast arpeggio in A minor on a plucked string with busy drums."""
    subject = with_article(join(part["tempo"], part["texture"] or "piece"))
    key = part["key"] and f"in {'the key of ' if rng.random() < 0.1 else ''}{part['key']}"
    instrument = part["instrument"] and f"on {with_article(join(part['mood'], part['instrument']))}"
    return join(subject, number and f"at {number}", key, instrument, part["drums"] and f"with {part['drums']}")


def sentence_playing(part: dict[str, str], number: str, rng: np.random.Generator) -> str:
    """A plucked string playing a fast arpeggio in A minor over busy drums."""
    if not part["instrument"]:
        return sentence_on(part, number, rng)
    player = with_article(join(part["mood"], part["instrument"]))
    played = with_article(join(part["tempo"], part["texture"] or "piece"))
    drums = part["drums"] and f"{'with' if part['drums'].startswith('no ') else 'over'} {part['drums']}"
    return join(player, "playing", played, part["key"] and f"in {part['key']}", number and f"at {number}", drums)


def clauses(part: dict[str, str], number: str, rng: np.random.Generator) -> str:
    """Slow dreamy pad chords, F major, no drums."""
    instrument, texture = part["instrument"], part["texture"]
    if instrument.endswith("bass") and texture.startswith("bass"):
        texture = "line"  # "saw bass line" says both
    elif instrument.endswith(("bells", "strings")):
        instrument = instrument[:-1]
    subject = join(part["tempo"], part["mood"], instrument, texture)
    return ", ".join(clause for clause in (subject, part["key"], number, part["drums"]) if clause)


def tags(part: dict[str, str], number: str, rng: np.random.Generator) -> str:
    """A minor, busy drums, plucked string, fast, arpeggio."""
    words = [part[name] for name in ATTRIBUTES] + [number]
    words = [word.removeprefix("a ") for word in words if word]
    return ", ".join(words[i] for i in rng.permutation(len(words)))
