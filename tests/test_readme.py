"""The README's walk-through runs as it stands, and its other claims that can be checked are."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_walk_through_is_a_doctest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes a file
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted >= 15
    assert result.failed == 0


def test_the_files_that_the_readme_names_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| `(\w+\.py)` \|", readme, re.M):
        assert (ROOT / "musicgen_ref" / name).is_file()
    for name in (
        "tests/run",
        "constraints.txt",
        "musicgen_ref/checkpoint/huggingface.py",
        "musicgen_ref/checkpoint/audiocraft.py",
    ):
        assert name in readme
        assert (ROOT / name).is_file()
