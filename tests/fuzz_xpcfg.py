"""Random settings as PyYAML writes them, and such texts broken: is xp.cfg read as PyYAML reads it?

`python -m tests.fuzz_xpcfg --count 10000` dumps that many random trees, each as audiocraft does and once more with
other settings, and breaks as many of these texts. It prints, as JSON, how many texts were read, which were read
differently and which were refused (none may be), and how many neither of the two reads: PyYAML writes keys that are
too long for itself. Then the same of the broken texts, of which any may be refused.
"""

import argparse
import json
import math
import random
import sys
from typing import Any

import yaml

from musicgen_ref.checkpoint import xpcfg

# How texts are dumped: as by audiocraft's tools, then in every other way that yields the same kind of text.
USUAL: dict[str, Any] = {"default_flow_style": False, "allow_unicode": True}
OTHERS: list[dict[str, Any]] = [
    {"sort_keys": False},
    {"width": 20},
    {"width": 1000},
    {"indent": 4},
    {"indent": 3, "width": 40, "sort_keys": False},
    {"allow_unicode": False},
    {"allow_unicode": False, "width": 30},
    {"explicit_start": True, "explicit_end": True},
    {"line_break": "\r\n"},
    {"line_break": "\r", "width": 25},
]

LOOKS = [
    "", " ", "  ", "~", "null", "Null", "NULL", "nULL", "true", "True", "tRUE", "false", "yes", "No", "nO", "on",
    "OFF", "y", "Y", "n", "N", "0", "-0", "+1", "007", "08", "0x1f", "0xg", "0o7", "0b10", "0b2", "1_000", "_1",
    "1:30", "0:30", "1:60", "1:30.5", "190:20:30", "1e5", "1.e5", "1.5e5", "1.5e+5", "-.5", ".5", "+.5", "5.", ".",
    "..", "...", "---", "--- a", "... b", ".inf", "-.INF", "+.Inf", ".iNF", ".nan", ".NaN", "-.nan", "2020-01-01",
    "2020-1-1", "2020-01-01 10:00:00", "2001-12-14t21:59:43.10-05:00", "2020-01-01 x", "=", "==", "<<", "<", "???",
    "?", "? x", "?x", "${a.b}", "${oc.env:USER}", "/x/${a}/y", "-", "- x", "-x", "#", "# x", "#x", "a #b", "a# b",
    ":", ": ", ":x", "a:", "a: b", "a :b", "a:b", "%", "%YAML 1.1", "@", "`", "&a", "*a", "!t", "!", "|", ">", "|-",
    "[", "]", "[]", "{", "}", "{}", "[a]", "{a: b}", ",", "a, b", "'", "''", '"', '""', "it's", '"a" b', "'a' b",
    "\\", "\\n", "a\\", "\\ ", "\n", "\n\n", "\t", "a\tb", "\ta", "a\t", "a\n", "\na", "a\n\nb", "a\n b", "a \nb",
    "a \n b", "a\n\tb", "\r", "a\r\nb", "\x85", "a\x85b", "a\u2028b", "a\u2029\n\u2028b", "\xa0", "a\xa0b", "\ufeff",
    "a\ufeffb", "\ufffe", "\ufffd", "\ud800", "\U0010ffff", "\x00", "\x07\x1b\x7f", "\u0661\u0662", "\u3000", "æøå",
    "日本語", "😀", "e\u0301", "👩‍👩‍👧", "http://a.b/c?d=e#f", "C:\\dir", "//pretrained/facebook/encodec_32khz",
    "a" * 130, "😀" * 127, "\x07" * 120, "x" * 127, "x y" * 60,
]  # fmt: skip
CHARACTERS = "abcxyz019 .,:;-_+*&!?|>%@`'\"\\/#~$(){}[]=<\t\n\n\r\x85\xa0\u2028\u2029\ufeff\x00\x1b\x7fäß語😀\U0010fffe"
WORDS = [
    "the", "a", "prompt", "music:", "#loud", "with", "don't", '"drums"', "and", "-", "--", "é", "日本", "😀", "80s",
    "${x}", "x" * 30, "y" * 90, "\\", "'", "?", ":", "|", "%", "&", "key: value", "tab\there", "nbsp\xa0here",
]  # fmt: skip


def text(r: random.Random) -> str:
    kind = r.randrange(6)
    if kind == 0:
        return r.choice(LOOKS)
    if kind == 1:
        return "".join(r.choices(CHARACTERS, k=r.randrange(12)))
    if kind == 2:
        return "".join(r.choices(LOOKS, k=r.randrange(1, 4)))
    if kind == 3:
        return "".join(
            chr(r.choice([r.randrange(32, 127), r.randrange(0x250), r.randrange(0x110000)])) for _ in range(8)
        )
    # Long enough to be folded, with all that may stand where a line ends.
    blanks = [" "] * 12 + ["  ", "   ", "\n", "\n\n", " \n", "\n ", "\t"] * (kind == 4)
    parts = [r.choice(WORDS) + r.choice(blanks) for _ in range(r.randrange(3, 70))]
    return r.choice(["", "", " ", "\n", "\t"]) + "".join(parts) + r.choice(["", "end", "\n"])


def number(r: random.Random) -> float:
    kind = r.randrange(5)
    if kind == 0:
        return r.randrange(-10, 1000)
    if kind == 1:
        return r.randrange(-(10 ** r.randrange(1, 400)), 10 ** r.randrange(1, 400))
    if kind == 2:
        return r.choice([0.0, -0.0, 1e-05, 1e22, 1e16, 1e17, -1.5e-300, 5e-324, 1.7e308, math.inf, -math.inf, math.nan])
    return r.choice([-1, 1]) * r.random() * 10.0 ** r.randrange(-20, 25)


def scalar(r: random.Random) -> Any:
    return r.choice([None, True, False, number(r), number(r), *(text(r) for _ in range(5))])


def mapping(r: random.Random, depth: int) -> dict[Any, Any]:
    """No object in it twice, so that its dump has no anchors."""
    keys = [scalar(r) if r.random() < 0.5 else f"key_{r.randrange(100)}" for _ in range(r.choice([0, 1, 2, 3, 5]))]
    return {key: tree(r, depth) for key in keys}


def tree(r: random.Random, depth: int) -> Any:
    if depth == 0 or r.random() < 0.55:
        return scalar(r)
    return mapping(r, depth - 1) if r.random() < 0.6 else [tree(r, depth - 1) for _ in range(r.choice([0, 1, 2, 4]))]


def dumps(r: random.Random, count: int) -> list[str]:
    """Of one tree: as usual, and in `count` of the other ways."""
    settings = mapping(r, r.choice([1, 2, 3, 5]))
    for _ in range(r.choice([0] * 9 + [12])):  # deep, sometimes
        settings = {"deep": r.choice([settings, [settings]])}
    settings = {"first": scalar(r), **settings}
    ways = [USUAL, *({**USUAL, **other} for other in r.sample(OTHERS, count))]
    return [yaml.safe_dump(settings, **way) for way in ways]


def broken(r: random.Random, text: str) -> str:
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        lines = text.splitlines(keepends=True)
        if not lines:
            return text
        line, other, at = r.randrange(len(lines)), r.randrange(len(lines)), r.randrange(len(text))
        what = r.randrange(9)
        if what == 0:
            text = text[:at] + text[at + r.choice([1, 1, 2, 9]) :]
        elif what == 1:
            text = text[:at] + r.choice(CHARACTERS) + text[at:]
        elif what == 2:
            text = text[:at] + r.choice(LOOKS) + text[at:]
        elif what == 3:
            text = text[:at] + text[at : at + r.choice([1, 2, 20])] + text[at:]
        elif what == 4:
            at = text.find(r.choice(["'", '"', ": ", "- ", "\n", "\\"]), at)
            text = (
                text[:at]
                + r.choice(["", "'", '"', "? ", ": ", "- ", "\n", "\n  ", "\\", " # c\n", "\t", " "])
                + text[at:]
            )
        else:
            if what == 5:
                del lines[line]
            elif what == 6:
                lines.insert(other, lines[line])
            elif what == 7:
                lines[line] = r.choice([" ", "  ", "- ", "? ", ": ", "    "]) + lines[line]
            else:
                lines[line] = lines[line][r.choice([1, 2, 4]) :]
            text = "".join(lines)
    return text


def judged(text: str) -> str:
    """How a text was read: "read" as PyYAML reads it, "different", "refused", or "neither" where PyYAML refuses too."""
    try:
        theirs = repr(yaml.safe_load(text) or {})  # shows types, the order of keys, the signs of zeros; NaNs are equal
    except Exception:  # of a broken text it raises much
        theirs = None
    try:
        ours = repr(xpcfg.parse(text, "here"))
    except ValueError as refusal:
        if not str(refusal).startswith("here: line ") or len(str(refusal).splitlines()) != 1:
            return "different"
        return "neither" if theirs is None else "refused"
    return "read" if ours == theirs else "different"


def fuzz(count: int, seed: int, ways: int = 1) -> dict[str, Any]:
    """Of `count` trees, dumped as usual and in as many other ways, and as many broken texts: how they were read."""
    r = random.Random(seed)
    out: dict[str, Any] = {"read": 0, "different": [], "refused": [], "neither": 0}
    of_broken: dict[str, Any] = {"read": 0, "different": [], "refused": 0, "neither": 0}
    for _ in range(count):
        written = dumps(r, ways)
        # Last, one that is broken.
        for counts, text in [*((out, each) for each in written), (of_broken, broken(r, r.choice(written)))]:
            result = judged(text)
            if isinstance(counts[result], list):
                counts[result].append(text)
            else:
                counts[result] += 1
    return {**out, "broken": of_broken}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_xpcfg", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="trees to dump, and texts to break")
    parser.add_argument("--seed", type=int, default=0, help="of the trees")
    arguments = parser.parse_args()
    result = fuzz(arguments.count, arguments.seed)
    print(json.dumps(result))
    sys.exit(1 if result["different"] or result["refused"] or result["broken"]["different"] else 0)


if __name__ == "__main__":
    main()
