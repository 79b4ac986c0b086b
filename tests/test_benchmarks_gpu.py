"""The benchmark for a card: all of it runs on a CPU, on a model of no size; what is cut short loses nothing else."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[1]
SETTINGS = gpu.Settings("no model", "cpu")


def test_every_part_runs_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # what is set in there ends with the test
    arguments = ["--device", "cpu", "--size", "toy", "--seconds", "0.3", "--rows", "2", "--here"]
    assert gpu.main([*arguments, "--models", str(tmp_path / "models"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "RESULTS-gpu.md",
        "results-gpu.json",
        "steps-gpu.png",
    ]
    results = json.loads((tmp_path / "out" / "results-gpu.json").read_text())
    assert results["not_run"] == {}
    rows = results["rows"]
    compared = [row for name, row in rows.items() if name.startswith("parity: ") and "frames" in row]
    assert len(compared) == 4 and all(row["plain"] == row["graphs"] == row["frames"] == 8 for row in compared)
    assert rows["parity: audio"]["difference"] < 1e-5
    for column in ("graphs", "plain", "transformers", "static"):
        assert len(rows[f"one prompt: {column}"]["steps"]) >= 8
        assert rows[f"2 prompts: {column}"]["rows"] == 2
    assert rows["step"]["weights"] == 2 * (2 * (6 * 64**2 + 2 * 64 * 128 + 6 * 64) + 4 * 2048 * 64)
    assert rows["step"]["position"] == 2 * 2 * 2 * 2 * 64, "of both halves, keys and values, layers, in two bytes"
    for library in ("ours", "transformers"):
        # 11 bits against 8: eight times as near.
        half, brain = (rows[f"drift: {library} in {dtype}"] for dtype in ("float16", "bfloat16"))
        assert 0 < half["logits error"] < brain["logits error"] / 4 < 0.01
        assert half["same likeliest code"] > 0.98
    table = (tmp_path / "out" / "RESULTS-gpu.md").read_text()
    assert "| greedy | 8 of 8 | 8 of 8 |" in table and "| ours in float16 | 0.000" in table
    assert "| codec, decode 0.3 s |" in table and "Not measured" not in table


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_what_was_measured_before_the_limit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = """echo '["card", {"bytes per second": 5}]'"""
    monkeypatch.setattr(gpu.sys, "executable", program(tmp_path / "slow", f"{row}; exec sleep 60"))
    rows = gpu.measured("ours", SETTINGS, 0.5)
    assert next(rows) == ("card", {"bytes per second": 5})
    with pytest.raises(RuntimeError, match="ended after 0 s"):
        next(rows)
    failing = f"{row}; echo 'something else'; echo 'RuntimeError: no kernel' >&2; exit 1"
    monkeypatch.setattr(gpu.sys, "executable", program(tmp_path / "failing", failing))
    rows = gpu.measured("ours", SETTINGS, 60)
    assert next(rows)[0] == "card"
    with pytest.raises(RuntimeError, match="RuntimeError: no kernel"):
        next(rows)


def test_a_part_that_fails_and_one_for_which_no_time_is_left_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.build.build", lambda size, folder: folder / size)
    monkeypatch.setattr(gpu.sys, "executable", program(tmp_path / "failing", "echo 'OSError: no disk' >&2; exit 3"))
    arguments = ["--device", "cpu", "--size", "toy", "--models", str(tmp_path), "--out", str(tmp_path / "out")]
    assert gpu.main([*arguments, "--only", "ours", "theirs"]) == 0
    assert gpu.main([*arguments, "--only", "drift", "--budget", "1"]) == 0
    written = json.loads((tmp_path / "out" / "results-gpu.json").read_text())
    assert written["not_run"] == {"drift": "no time was left"}
    assert "- drift: no time was left" in (tmp_path / "out" / "RESULTS-gpu.md").read_text()


def test_codes_that_are_not_those_of_transformers_are_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.build.build", lambda size, folder: folder / size)
    arguments = ["--device", "cpu", "--size", "toy", "--out", str(tmp_path), "--only", "parity", "--here"]
    for graphs, code in ((8, 0), (7, 1)):
        row = {"frames": 8, "plain": 8, "graphs": graphs}
        monkeypatch.setitem(gpu.PARTS, "parity", (lambda settings, row=row: iter([("parity: greedy", row)]), 1.0))
        assert gpu.main(arguments) == code


def test_a_ratio_is_that_of_the_better_of_transformers_two() -> None:
    def clip(step: float) -> dict[str, object]:
        return {"steps": [9.0, step, step, step]}

    rows = {
        "one prompt: graphs": clip(0.002),
        "one prompt: plain": clip(0.02),
        "one prompt: transformers": clip(0.025),
        "one prompt: static": clip(0.01),
        "codec: graphs": {"encode": 0.5, "decode": 0.25},
        "codec: transformers": {"encode": 0.25, "decode": 1.0},
    }
    lines = gpu.table(gpu.Results({}, {"seconds": 30.0}, rows))
    assert "| one prompt, guidance 3 | 500 steps/s | 50 steps/s | 40 steps/s | 100 steps/s | 5.00 |" in lines
    assert "| codec, decode 30 s | 0.250 s |  | 1.000 s |  | 4.00 |" in lines
    assert "| codec, encode 30 s | 0.500 s |  | 0.250 s |  | 0.50 |" in lines


@pytest.mark.parametrize("arguments, said", [(["no-such-folder"], "not a folder"), ([], "lacks torch einops")])
def test_the_script_refuses_what_it_cannot_do(arguments: list[str], said: str, tmp_path: Path) -> None:
    environment = {"PYTHON": program(tmp_path / "python", "echo torch einops"), "PATH": "/usr/bin:/bin"}
    script = [ROOT / "benchmarks" / "gpu.sh", *arguments]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2 and said in done.stderr


def test_the_readme_says_whether_it_was_run() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    was_run = (ROOT / "benchmarks" / "RESULTS-gpu.md").exists()
    assert ("Nobody has run it on a card yet" in text) != was_run
    assert "benchmarks/gpu.sh" in text
