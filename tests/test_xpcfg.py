"""The reader of xp.cfg against PyYAML: what it reads it reads the same, and the rest it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from weights_convert import xpcfg

RELEASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "audiocraft"
FILES = sorted(RELEASES.rglob("*.yaml"))


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


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1", "a: *x", "a: !!python/object:os.system {}", "a: |\n  text", "a: >\n  text", "a: {b: 1}",
        "a: [1, [2]]", "a: [1", "a: 'open", 'a: "open', 'a: "\\x41"', "a", "- a", "a: 1\n b: 2", "a:\n  b: 1\n c: 2",
        "a: 1\na: 2", "a: 0x10", "a: 010", "a: 1:30", "a: 2020-01-01", "a: yes", "a: Off", "a: b: c", "a: - b",
        "---\na: 1\n---\nb: 2", "%YAML 1.1", "a: 'b' c", "? a\n: b", "<<: {}", "a: @b", "a: `b`", "a:\n\tb: 1",
        "a: [b: c]", "a: [${b}]", "a: %b", "1: a", "null: a", "a: \u00a0b", "a: [b,, c]",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here: line \d+: "):
        xpcfg.parse(text, "here")


def test_bombs_are_refused() -> None:
    deep = "\n".join(" " * i + "a:" for i in range(1000))
    with pytest.raises(ValueError, match="levels"):
        xpcfg.parse(deep)
    with pytest.raises(ValueError, match="levels"):
        xpcfg.parse("a:\n" + "- " * 1000 + "b")
    with pytest.raises(ValueError, match="characters"):
        xpcfg.parse("a: 1\n" * 300_000)


SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12).filter(str.isprintable)
    | st.sampled_from(["yes", "null", "1.5", "0x1", "${a.b}", "???", "a: b", "# x", "- x", "", " x ", "1e5", "~"])
)  # fmt: skip
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True).filter(lambda key: xpcfg.AMBIGUOUS.fullmatch(key) is None)
TREES = st.recursive(
    SCALARS | st.lists(SCALARS, max_size=4), lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(KEYS.filter(lambda key: key not in ("null", "true", "false")), TREES, max_size=5))
def test_what_is_dumped_yaml_and_we_read_back(config: dict[str, Any]) -> None:
    text = xpcfg.dump(config)
    assert (yaml.safe_load(text) or {}) == config
    assert xpcfg.parse(text) == config


@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_what_yaml_dumps_is_read_the_same_or_refused(config: dict[str, Any]) -> None:
    text = yaml.safe_dump(config)
    try:
        got = xpcfg.parse(text)
    except ValueError:
        return
    assert got == yaml.safe_load(text)


@given(st.text("ab:- \n'\"[]{},#10.$?~\\&*!|>", max_size=40))
def test_any_text_is_read_the_same_or_refused(text: str) -> None:
    try:
        got = xpcfg.parse(text)
    except ValueError:
        return
    assert got == (yaml.safe_load(text) or {})


def test_references_are_followed() -> None:
    config = xpcfg.parse("a: ${b.c}\nb:\n  c: ${d}\nd: 3\np: ${q}\nq: ${p}\nr: ???\ns: ${r}\nt: a${d}\nu: ${none}\n")
    assert xpcfg.value(config, "a") == xpcfg.value(config, "b.c") == 3
    assert xpcfg.value(config, "absent.path", 7) == 7
    for path in ("p", "r", "s", "t", "u"):
        with pytest.raises(ValueError, match=f"here: .*{path}"):
            xpcfg.value(config, path, where="here")


def test_floats_are_written_so_that_yaml_reads_floats() -> None:
    for number in (1e-05, 1e22, 2.2, -0.0, 1e-300, math.inf, -math.inf):
        assert repr(yaml.safe_load(xpcfg.dump({"a": number}))["a"]) == repr(number)
