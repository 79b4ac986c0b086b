"""The matrix of environments: what it runs in each, what it counts, what its table and its exit code say."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import matrix

SUITE = """
import pytest

def test_good(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_numbers(n): assert n == 1

@pytest.mark.skip(reason="no")
def test_left_out(): pass
"""


def test_it_counts_what_ran_in_the_environment_and_fails_where_a_test_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "test_toy.py"
    suite.write_text(SUITE)
    assert matrix.main([sys.executable, "--share", str(suite)]) == 1
    out, err = capsys.readouterr()
    python = ".".join(str(n) for n in sys.version_info[:3])
    row = f"| {version('transformers')} | {version('torch')} | {python} | {suite} | 2 | 1 | 1 |"
    assert out.splitlines()[-1] == row
    assert re.search(r"test_toy::test_numbers\[2\]", err)
    suite.write_text("def test_good(): pass")
    assert matrix.main([sys.executable, "--share", str(suite)]) == 0
    assert capsys.readouterr().out.endswith(" | 1 | 0 | 0 |\n")


def test_packages_of_a_folder_go_before_the_environments_own_and_transformers_4_runs_its_own_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "transformers-4.57.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.6\n")
    asked: list[list[str]] = []
    monkeypatch.setattr(matrix, "files", lambda shares: asked.append(shares) or ["tests/nowhere.py"])
    row = matrix.run(f"{sys.executable}:{tmp_path}", ["hf"])
    assert (row.transformers, row.tests, row.passed) == ("4.57.6", "tests/v4", 0)
    assert asked == [["tests/v4"]]
    assert len(row.failed) == 1 and row.failed[0].startswith("pytest ended with 4: ")  # its code for no such file


def test_every_share_has_its_files_and_what_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share, patterns in matrix.SHARES.items():
        assert all(list(matrix.ROOT.glob(pattern)) for pattern in patterns), share
    assert "tests/test_hf_forward.py" in matrix.files(["hf", "hf"])
    for given, message in (
        (str(tmp_path / "python"), "no such interpreter; name an environment's bin/python"),
        (f"{sys.executable}:{tmp_path}/none", "no such folder of packages; make one with pip install --target"),
    ):
        with pytest.raises(SystemExit):
            matrix.main([given])
        assert message in capsys.readouterr().err
