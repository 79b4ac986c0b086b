"""The reader of xp.cfg against PyYAML: what it reads it reads the same, and the rest it refuses."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_ref.checkpoint import xpcfg
from tests import fuzz_xpcfg

RELEASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "audiocraft"
FILES = sorted(RELEASES.rglob("*.yaml"))


def assert_read_as_yaml_reads(text: str) -> None:
    """The same values of the same types, in the same order; equal as texts, since a NaN equals nothing."""
    assert repr(xpcfg.parse(text)) == repr(yaml.safe_load(text))


@pytest.mark.skipif(not FILES, reason="needs the files that audiocraft wrote")
def test_the_files_of_audiocraft_are_read_as_yaml_reads_them() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert xpcfg.parse(text) == yaml.safe_load(text)
        assert xpcfg.parse(xpcfg.dump(yaml.safe_load(text))) == yaml.safe_load(text)


DOCUMENT = """
# a comment
device: cuda          # another
ratios: [8, 5, 4, 2]
words: [a, 'b c', "d", null, 1.5]
reference: ${x.y}
nested:
  deep:
    empty: {}
    list:
    - 0.5
    - 0.9
  indented:
    - conv
    - lstm
nothing:
null_word: null
yes_word: true
path: //pretrained/facebook/encodec_32khz
dir: /checkpoint/${oc.env:USER}/outputs
open: ???
text: 'it''s'
quoted: "a: b # c\\n"
number: 1.0e-05
colon: a:b
entries:
- name: b
  size: 3
- name: c
"""


def test_a_document_of_everything_is_read_as_yaml_reads_it() -> None:
    assert xpcfg.parse(DOCUMENT) == yaml.safe_load(DOCUMENT)


READ = {
    "folded plain": [
        "a: b\n  c", "a: b\n c", "a: b\n\n  c", "a: b\n\n\n  c\n", "a:\n  b\n  c", "a:\n   b\n  c",
        "a: b  \n    c  \nd: 1", "a: b\n  - c", "a: b\n  ? c", "a: b\n  'c'", "a: b\n  #c\nd: 1",
        "a: b\n\n  # c\nd: 1", "a: b #c\nd: 1", "a:\n- b\n c", "a:\n- b\n  c\n- d", "a: b\n  c:d\n  e#f",
        "a: 1\n  2", "a: b\n   \n  c\n   \nd: 1", "a: 2020-01-01\n  x", "a: b\n  c\n...\n", "a: -\u00a0b\n  c",
    ],
    "folded in single quotes": [
        "a: 'b\n  c'", "a: 'b\n\n  c'", "a: 'b\n\n\n\n  c'", "a: 'b  \n  \t c'", "a: '\n  b'", "a: 'b\n  '",
        "a: '\n'", "a: ' b\n c '", "a: 'it''s\n  it''s'''", "a: 'b\n# c'", "a: 'b\nc: d'\ne: 1", "a: 'b\n- c'",
        "a: 'b\\\n  c'", "a: 'b\n  ''c'", "a: '\"\n\"'", "a:\n  'b\n  c'\nd: 1", "a:\n- 'b\n  c'\n- d",
        "a: 'b\n  c'   # d",
    ],
    "folded in double quotes": [
        'a: "b\n  c"', 'a: "b\n\n  c"', 'a: "b\\\n  c"', 'a: "b \\\n  c"', 'a: "b\\\n  \\ c"', 'a: "b\\\n\n  c"',
        'a: "b\\\n\n\n  c"', 'a: "b\\n\\\n  c\\\n  \\  d"', 'a: "\\\n  b"', 'a: "b\\\n  "', 'a: "b \\ \n c"',
        'a: "b \\\t\n c"', 'a: "b\\\\\n c"', 'a: "b\\"\n \\"c"', 'a: "b \t\n \t c"', 'a: "b\t c"',
    ],
    "escapes": [
        r'a: "\0\a\b\t\n\v\f\r\e\"\\\/\N\_\L\P\ "', 'a: "\\\t"', r'a: "\x41\u00e6\U0001F600"',
        r'a: "\x0a\u2028\uFEFF\uD83D\uDE00\U0010FFFF"', r'"\x41\n": 1', r'a: "\\n\\\\"', "a: '\\n \\x41'",
    ],
    "keys": [
        "a b: 1", "a b c : 1", "'a: b': 1", '"a: b": 1', "'a #b': 1", "a#b: 1", "a:b: 1", "a::b: 1", "'it''s': 1",
        '"a\\"b": 1', "'' : 1", "? ''\n: 1", "? a\n: 1", "? 'a\n\n  b'\n: 1", "? a\n  b\n: 1\nc: 2",
        "? a\n: b: 1\n  c: 2", "? a\n: - 1\n  - 2", "? a\n:\n- 1\n- 2", "? a\n:", "? a # b\n# c\n: d",
        "x:\n- ? a\n  : 1\n  b: 2\n", "x:\n  ? a\n  : y:\n    - 1\n", "-a: 1", "?a: 1", ":a: 1", "æ ø: 1", "日本: 1",
        "😀: 1", "a\u00a0b: 1", "${a}: 1", "???: 1", "/x/y: 1", "a,b: 1", "a]: 1", "a{b}: 1", "a'b: 1", "a\"b': 1",
        "---a: 1", "....: 1",
    ],
    "keys that are no strings": [
        "1: a", "-1: a", "0: a", "1.5: a", "-.inf: a", ".nan: a", "true: a", "False: a", "null: a", "~: a",
        "? 1\n: a", "'1': a\n1: b", "1.0: a", f"{10**300}: a", f"{-(2**200)}: a", "1e5: a",
    ],
    "words that are strings": [
        f"a: {word}" for word in (
            "y", "n", "Y", "N", "nULL", "tRUE", "yES", "oN", "1e5", "1.e5", "1.5e5", "-.5", "+.5", ".iNF", "-.nan",
            "0:30", "1:60", "08", "0xg", "0b2", "_1", ".", "..", "+", "+a", "2020-1-1", "2020-01-01x", "==", "<",
            "<<<", "a=b", "?x", ":x", "-x", "---", "...", "???", "${a}", "a@b", "a%b", "a&b", "a*b", "a!b", "a|b",
            "a>b", "a`b", "http://a/b", "1,2", "\u0661\u0662", "\u0661.5", "1.2.3", "\u00a0", "\u3000",
        )
    ],
    "numbers": [
        f"a: {number}" for number in (
            "0", "-0", "+0", "1", "-1", "+7", "12345678901234567890", "1.5", "-1.5", "+1.5", "1.", ".5", ".5e+3",
            "1.5e-7", "1.0e+22", "08.5", "007.5", "-0.0", ".inf", ".Inf", ".INF", "-.inf", "+.INF", ".nan", ".NaN",
            ".NAN", "1.0e+400", "1.0e-400",
        )
    ] + [f"a: {10**29}", f"a: -{'9' * 4300}", f"a: {'9' * 4300}"],
    "null": [
        "a:", "a: ~", "a: null", "a: Null", "a: NULL", "a: # b", "a:\nb:\n", "a:\n-\n- b\n-\n", "a:\n- # b\n- c",
        "a:\n-\n  b\n",
    ],
    "booleans": ["a: true", "a: True", "a: TRUE", "a: false", "a: False", "a: FALSE"],
    "blocks": [
        "a:\n- - - 1\n    - 2\n  - - 3\n- - 4", "a:\n- b: 1\n  c: 2\n- d: 3", "a:\n-   b: 1\n    c: 2\n",
        "a:\n  - b\n  - c\nd: 1", "a:\n- b\n- c\nd: 1", "a:\n- b:\n  - c\n  - d:\n    - e\n- f",
        "a:\n    b:\n        c: 1\n    d: 2", " a: 1\n b: 2", "a:\n-\n  - b\n-\n  c: 1\n", "a:\n- []\n- {}\n- - []",
        "a: []\nb: {}\nc: [ ]\nd: { }", "a:\n  []\nb:\n  {}", "a: [b c, d, 'e, f', \"g\\n\", ]\nb: [a:b, -c, d#e]",
        "a: ['b\n  c', d]", "{}", "{} # a", "a:\n\n\n  b: 1\n\n\nc: 2", "a:   1\nb:\n       c",
        "# x\n\n  # y\na: 1\n    # z\nb:\n# w\n  c: 1 # v\n", "a: 1 #\n#", "a: 1   ",
    ],
    "marks of a document": [
        "---\na: 1", "--- # b\na: 1\n", "---\n{}", "--- {}\n", "---\na: 1\n...\n", "a: 1\n... # b\n\n# c",
        "# b\n---\n# c\na: 1",
    ],
    "breaks": [
        "a: 1\r\nb: 'c\r\n  d'\r\n", "a: 1\rb: 2\r", "a: 1\x85b: 'c\x85  d'\x85", "a: b\u2028c: 1",
        "a: 'b\u2028  c'", "a: 'b\u2029\u2028  c'", "a: 'b\n\u2028  c'", "a: 'b\u2028\n  c'", 'a: "b\\\u2028  c"',
        "a: b\u2028  c", "a: 1 # b\u2028c: 2", "a: 'b\r\n\r\n  c'", "a: 'b\r\r\n\n  c'",
    ],
    "characters": [
        "a: b\u00a0c", "a: '\u00a0b\u00a0'", "a: 日本語 æøå é", "a: 😀 b\n  😀", "a: '\U0010fffd'",
        "a: \ue000\ufffd", "a: 1 # \t 😀", "a: '\t'",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_what_a_dump_may_hold_is_read_as_yaml_reads_it(kind: str) -> None:
    for text in READ[kind]:
        assert_read_as_yaml_reads(text)
        assert_read_as_yaml_reads(f"before: 1\n{text}\n" if text[0] not in " {-#" and "---" not in text else text)


LONG = "the quick brown fox jumps over the lazy dog, " * 6
TREES: dict[str, dict[Any, Any]] = {
    "long texts": {
        "a": LONG,
        "b": f"'{LONG}",
        "c": f"\t{LONG}",
        "d": LONG.replace(" ", "  "),
        "e": LONG.replace(",", "\n"),
        "f": "x" * 300,
    },
    "long keys": {
        LONG: 1,
        f"'{LONG}": {"a": LONG},
        f"\t{LONG}": [LONG, [LONG]],
        "x" * 127: 1,
        "x" * 128: 2,
        "": 3,
        "a\nb": 4,
        "\n": [1],
        " ": {},
    },
    "in sequences": {"a": [LONG, {LONG: LONG, "b": [{LONG: [LONG]}]}, [[LONG], []]]},
    "newlines": {"a": ["\n", "\nb", "b\n", "b\n\nc", "b\n c", "b \nc", "\n\n b\n\n", " ", " b", "b ", "\t", "b\tc"]},
    "control characters": {
        "a": "".join(map(chr, range(32))),
        "b": "\x7f\x80\x85\x9f\xa0\u2028\u2029\ufeff\ufffe\uffff",
        "c": "\U0001f600\U0010ffff",
    },
    "keys of all types": {
        None: 1,
        True: 2,
        False: 3,
        7: 4,
        -1.5: 5,
        math.inf: 6,
        math.nan: 7,
        "y": 8,
        "null": 9,
        "7": 10,
        "~": 11,
        -(10**40): 12,
    },
    "what looks like something else": {"a": [{look: [look]} for look in fuzz_xpcfg.LOOKS if len(look) < 99]},
    "empty": {"a": {}, "b": [], "c": [[], {}, [[]], {"d": {}}], "e": ""},
    "deep": {"a": {"b": {"c": {"d": [{"e": [[{"f": 1, "g": [{}]}]]}]}}}},
    "nothing": {},
}


@pytest.mark.parametrize("name", TREES)
def test_what_yaml_dumps_is_read_in_every_way_of_dumping(name: str) -> None:
    for other in ({}, *fuzz_xpcfg.OTHERS):
        text = yaml.safe_dump(TREES[name], **{**fuzz_xpcfg.USUAL, **other})
        assert_read_as_yaml_reads(text)


def test_what_yaml_dumps_is_what_is_read() -> None:
    """Not only what PyYAML reads; but it loses breaks that are not \\n."""
    for name in ("long texts", "long keys", "in sequences", "newlines", "keys of all types", "empty", "deep"):
        text = yaml.safe_dump(TREES[name], sort_keys=False, **fuzz_xpcfg.USUAL)
        assert repr(xpcfg.parse(text)) == repr(TREES[name])


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1", "a: *x", "a: !!python/object:os.system {}", "&x a: 1", "*x : 1", "!!str a: 1", "a: |\n  text",
        "a: >\n  text", "a: |-\n  text", "a: {b: 1}", "a: {", "a: {}b", "a: [1, [2]]", "a: [1", "a: [1\n  , 2]",
        "a: 'open", 'a: "open', "a: 'b\n---\nc'", 'a: "b\n... \nc"', 'a: "\\q"', 'a: "\\x4"', 'a: "\\xg0"',
        'a: "\\u123"', 'a: "\\U00110000"', 'a: "\\UFFFFFFFF"', "a", "- a", "'a'", "a: 1\n b: 2", "a:\n  b: 1\n c: 2",
        "a:\n    b: 1\n  c: 2", " a: 1\nb: 2", "a: 1\na: 2", "1: a\n1: b", "true: a\n1: b", "? a\n: 1\na: 2",
        "a: 0x10", "a: 010", "a: 0b1", "a: 1_0", "a: 1_0.5", "a: 1:30", "a: 1:30.5", "a: 2020-01-01",
        "a: 2020-1-1 1:00:00", "a: 2020-01-01\n  10:00:00", "a: yes", "a: Off", "a: =", "a: <<", "=: 1", "yes: 1",
        "2020-01-01: 1", f"a: {'1' * 4301}", f"a: -{'1' * 4301}", "a: b: c", "a: b\n  c: d", "a: b\n  c:", "a: - b",
        "a: ? b", "a: 'b' c", "a: 'b'\n  c", "a: 'b': c", "a: b #c\n  d", "a:\n- b: 1\n  - c", "a:\n  - b\n c: 1",
        "a:\n  - b\n  c: 1", "a:\n- b\n - c\n  -d\n- e: 1\n f", "---\na: 1\n---\nb: 2", "a: 1\n---\n",
        "a: 1\n...\nb: 2", "--- a: 1", "---\n---\na: 1", "...\na: 1", "%YAML 1.1", "%YAML 1.1\n---\na: 1",
        "? a\nb: 1", "? a", "?\n: b", "? a: b\n: c", "? - a\n: c", "? []\n: c", "? a\n : b", "? a : b", ": b",
        "[a]: b", "{}: b", "<<: {}", "<<: *a", "a: @b", "a: `b`", "a: %b", "a:\tb", "a: b\tc", "a:\n\tb: 1",
        "\ta: 1", "a: 'b'\t", "-\ta", "a: [b: c]", "a: [${b}]", "a: [b,, c]", "a: [b?c]", "a: [???]", "a: [:b]",
        "a: [b #c]", "a: [b] c", "a: 1\n\x00", "a: \x07", "a: \x7f", "a: \ufeffb", "\ufeffa: 1", "a: \ufffe",
        "a: \ud800", f"{'x' * 1025}: 1", f"'{'x' * 1023}': 1", f"a{' ' * 1024}: 1",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here: line \d+: [^\n]*$"):
        xpcfg.parse(text, "here")


def test_a_key_may_be_as_long_as_yaml_allows() -> None:
    for text in (f"{'x' * 1024}: 1", f"'{'x' * 1022}': 1", f"a{' ' * 1023}: 1", f"? {'x' * 2000}\n: 1"):
        assert_read_as_yaml_reads(text)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: &x 1", 2, "anchors"), ("a: 1\nb: *x", 2, "aliases"), ("a:\n- !x 1", 2, "tags"),
        ("a:\n\n\n  - |\n   b", 4, "block scalars"), ("a: 1\n---\nb: 1", 2, "several documents"),
        ("# c\na: {b: 1}", 2, "braces"), ("a: 1\nb: 'c\n\n\n", 2, "closing quote"), ("a: 1\n\na: 2", 3, "twice"),
        ('a: "b\n\n  \\q"', 3, r"\q"), ("a: b\n  c\n  d: e", 3, "colon"), ("a: 1\r\nb: 1\r\nc: \x07", 3, "x07"),
        ("a: 1\n\n\nb", 4, "key: value"), ("x: 1\na: 2020-01-01\n  10:00:00\nb: 1", 2, "string must be quoted"),
        ("a: 1\n\tb: 1", 2, "tab"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_line_and_the_reason(text: str, line: int, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        xpcfg.parse(text, "here")
    assert str(refusal.value).startswith(f"here: line {line}: ") and words in str(refusal.value)


def test_no_text_is_no_settings() -> None:
    for text in ("", "\n", "  ", "# a\n", "\n\n# a", "---", "---\n# a\n"):
        assert xpcfg.parse(text) == {} and yaml.safe_load(text) is None


def test_bombs_are_refused() -> None:
    deep = "\n".join(" " * i + "a:" for i in range(1000))
    with pytest.raises(ValueError, match="levels"):
        xpcfg.parse(deep)
    with pytest.raises(ValueError, match="levels"):
        xpcfg.parse("a:\n" + "- " * 1000 + "b")
    with pytest.raises(ValueError, match="characters"):
        xpcfg.parse("a: 1\n" * 300_000)
    with pytest.raises(ValueError, match="line 1001: more than 1000 integer keys"):
        xpcfg.parse(COLLIDING)


def test_settings_of_as_many_levels_as_allowed_are_read() -> None:
    for link in (lambda inner: {"a": inner}, lambda inner: [inner]):
        inner: Any = "b"
        for _ in range(xpcfg.DEPTH):
            inner = link(inner)
        assert_read_as_yaml_reads(yaml.safe_dump({"a": inner}))
        with pytest.raises(ValueError, match="levels"):
            xpcfg.parse(yaml.safe_dump({"a": link(inner)}))


COLLIDING = "".join(f"{k * (2**61 - 1)}: 1\n" for k in range(1, 36_000))  # Python hashes them all to 0
NASTY = [
    "a: b" + " " * 999_000 + "c", "a: b" + " #" * 490_000, "a: '" + "'" * 900_000, 'a: "' + "\\" * 900_000,
    'a: "' + " \t" * 450_000, 'a: "' + " \t" * 450_000 + '"', "a: '" + " \n" * 450_000, "a: 1" + ":11" * 300_000,
    "a: 1" + ":1" * 450_000 + "x", "a: 1" + "_" * 900_000, "a: 2020-01-01" + " " * 900_000 + "x",
    "a: " + "1" * 900_000 + ".5", "a: " + "9" * 900_000, "a: [" + " " * 900_000, "a: [" + "'" * 900_000,
    "a:\n" + "- " * 450_000, "? " * 450_000, "a: " * 300_000, ":" * 900_000, " " * 900_000, COLLIDING,
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_the_time_is_linear_in_the_text(text: str) -> None:
    """A fraction of a second here, minutes and hours where it grew with the square."""
    assert len(text) <= xpcfg.LIMIT
    started = time.process_time()
    try:
        xpcfg.parse(text)
    except ValueError as refusal:
        assert len(str(refusal)) < 300
    assert time.process_time() - started < 10


NUMBERS = st.integers() | st.floats()
STRINGS = st.text(max_size=40) | st.text("ab '\"\\\n\t:#-?\x85\u2028", max_size=300) | st.sampled_from(fuzz_xpcfg.LOOKS)
SCALARS = st.none() | st.booleans() | NUMBERS | STRINGS
TREE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(SCALARS.filter(lambda key: key == key), inner, max_size=4)
    ),
    max_leaves=15,
)
WAYS = st.sampled_from([{}, *fuzz_xpcfg.OTHERS])


@given(st.dictionaries(STRINGS, TREE, max_size=4), WAYS)
@settings(max_examples=150)
def test_what_yaml_dumps_is_read_the_same(config: dict[str, Any], way: dict[str, Any]) -> None:
    text = yaml.safe_dump(config, **{**fuzz_xpcfg.USUAL, **way})
    assert fuzz_xpcfg.judged(text) in ("read", "neither")


def test_random_settings_are_read_the_same_and_broken_ones_the_same_or_refused() -> None:
    """`python -m tests.fuzz_xpcfg --count 10000` draws more of them."""
    for result in (fuzz_xpcfg.fuzz(150, seed=1), fuzz_xpcfg.fuzz(12, seed=2, ways=len(fuzz_xpcfg.OTHERS))):
        assert result["different"] == result["refused"] == result["broken"]["different"] == []
        assert result["read"] > 130 and result["broken"]["read"] > 0 and result["broken"]["neither"] > 0


def test_the_fuzzer_reports_what_is_read_differently_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz_xpcfg", "--count", "20"])
    with pytest.raises(SystemExit, match="0"):
        fuzz_xpcfg.main()
    result = json.loads(capsys.readouterr().out)
    assert result["read"] == 40 and result["different"] == result["refused"] == []
    monkeypatch.setattr(xpcfg, "_folded", lambda breaks: " ")  # as if there were no blank lines
    with pytest.raises(SystemExit, match="1"):
        fuzz_xpcfg.main()
    assert json.loads(capsys.readouterr().out)["different"]
    monkeypatch.setattr(xpcfg, "DEPTH", 1)
    with pytest.raises(SystemExit, match="1"):
        fuzz_xpcfg.main()
    assert json.loads(capsys.readouterr().out)["refused"]


@given(st.text("ab:- \n'\"[]{},#10.$?~\\&*!|>", max_size=40))
@settings(max_examples=1000)
def test_any_text_is_read_the_same_or_refused(text: str) -> None:
    assert fuzz_xpcfg.judged(text) != "different"


# The writer

# Other keys than these are written bare; no setting has such a name.
BARE = ("yes", "no", "on", "off", "null", "true", "false")
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12).filter(str.isprintable)
PLAIN = (
    st.none() | st.booleans() | NUMBERS | PRINTABLE | st.sampled_from([t for t in fuzz_xpcfg.LOOKS if t.isprintable()])
)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True).filter(lambda key: key not in BARE)
WRITTEN = st.recursive(
    PLAIN | st.lists(PLAIN, max_size=4), lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(KEYS, WRITTEN, max_size=5))
def test_what_is_dumped_yaml_and_we_read_back(config: dict[str, Any]) -> None:
    text = xpcfg.dump(config)
    assert repr(yaml.safe_load(text) or {}) == repr(config)
    assert repr(xpcfg.parse(text)) == repr(config)


def test_floats_are_written_so_that_yaml_reads_floats() -> None:
    for number in (1e-05, 1e22, 2.2, -0.0, 1e-300, math.inf, -math.inf):
        assert repr(yaml.safe_load(xpcfg.dump({"a": number}))["a"]) == repr(number)


def test_words_that_some_reader_of_yaml_takes_for_a_boolean_are_written_in_quotes() -> None:
    for word in ("y", "N", "yes", "Off", "true", "NULL"):
        assert xpcfg.dump({"a": word}) == f'a: "{word}"\n'


# References


def test_references_are_followed() -> None:
    config = xpcfg.parse("a: ${b.c}\nb:\n  c: ${d}\nd: 3\np: ${q}\nq: ${p}\nr: ???\ns: ${r}\nt: a${d}\nu: ${none}\n")
    assert xpcfg.value(config, "a") == xpcfg.value(config, "b.c") == 3
    assert xpcfg.value(config, "absent.path", 7) == 7
    for path in ("p", "r", "s", "t", "u"):
        with pytest.raises(ValueError, match=f"here: .*{path}"):
            xpcfg.value(config, path, where="here")


def test_a_reference_that_is_no_path_is_refused_by_its_key() -> None:
    config = xpcfg.parse("a: ${oc.env:USER}\nb: ${c\nc: ${}\nd:\n  e: '${a} b'\nf: \"${a}\\n\"\n")
    for path in ("a", "b", "c", "d.e", "f"):
        with pytest.raises(ValueError, match=f"^here: {path} must be a value or a reference"):
            xpcfg.value(config, path, where="here")


def test_a_path_leads_over_keys_that_are_strings() -> None:
    config = xpcfg.parse("1: a\nnull: b\nfalse: c\n1.5: d\nx: ${1}\ny:\n  2: e\n  '2': f\nz: [g]\n")
    for path in ("1", "null", "None", "false", "False", "1.5", "z.0", "y.2.g", ""):
        assert xpcfg.value(config, path, "absent") == "absent"
    assert xpcfg.value(config, "y.2") == "f"
    with pytest.raises(ValueError, match="x -> 1 leads to no value"):
        xpcfg.value(config, "x")


def test_a_chain_of_references_is_followed_so_far_and_a_longer_one_named_in_short() -> None:
    most = xpcfg.MOST_REFERENCES
    for count in (1, most, most + 1, 40_000):
        text = "".join(f"k{i}: ${{k{i + 1}}}\n" for i in range(count))
        settings = xpcfg.parse(text + f"k{count}: end\n")
        if count <= most:
            assert xpcfg.value(settings, "k0") == "end"
            continue
        began = time.process_time()
        with pytest.raises(ValueError, match=rf"k0 -> k1 -> .* leads to no value within {most} references") as refusal:
            xpcfg.value(settings, "k0")
        assert len(str(refusal.value)) < 300 and time.process_time() - began < 0.1
    lost = xpcfg.parse("".join(f"{'key' * 10}{i}: ${{{'key' * 10}{i + 1}}}\n" for i in range(most)))
    with pytest.raises(ValueError, match=r"keykey.*0 -> .* \.\.\. .* -> (key){10}20 leads to no value$") as refusal:
        xpcfg.value(lost, "key" * 10 + "0")
    assert len(str(refusal.value)) < 300
