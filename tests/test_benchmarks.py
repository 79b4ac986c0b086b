"""The benchmark runs, on a model of no size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import int8
from musicgen_ref import checkpoint
from musicgen_ref.fast import native
from musicgen_ref.fast.cache import CACHES
from musicgen_ref.fast.int8 import Int8Linear
from tests import tiny

ROOT = Path(__file__).parents[1]


def test_the_error_of_int8_is_some_percent_of_the_logits_and_none_where_nothing_is_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.musicgen().save_pretrained(tmp_path)
    found = int8.compare(tmp_path, ["a", "b"], 0.4)
    assert 0.001 < found["logits error"] < 0.2
    assert 0 < found["KL"] < 0.1
    assert 0.5 < found["same likeliest code"] <= 1
    assert 0 <= found["equal greedy frames"] <= found["frames"] == 20
    monkeypatch.setattr(checkpoint, "quantize", lambda model, fill: model)
    exact = {"logits error": 0, "KL": 0, "same likeliest code": 1, "equal greedy frames": 20, "frames": 20}
    assert int8.compare(tmp_path, ["a", "b"], 0.4) == exact


@pytest.mark.parametrize("variant", int8.VARIANTS)
def test_every_variant_is_compared_with_the_weights_and_the_cache_that_it_names(variant: str) -> None:
    model = int8.open_variant("demo", variant)
    assert ("int8 weights" in variant) == any(isinstance(part, Int8Linear) for part in model.modules())
    assert model.decoder.norm.weight.dtype == (torch.bfloat16 if "bfloat16 w" in variant else torch.float32)
    kind = "int8" if "int8 cache" in variant else "bfloat16" if "bfloat16 cache" in variant else None
    assert type(model.decoder.new_cache(1, 2)) is CACHES[kind]
    assert (model.decoder._compiled_call_impl is not None) == native.is_built() == ("compiled" in variant)
    found = int8.compare("demo", ["a bell"], 0.5, variant)
    assert 0 < found["logits error"] < 0.2 and 0.7 < found["same likeliest code"] <= 1


@pytest.mark.slow
def test_the_gain_of_each_file_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.gains", "--rounds", "1", "--layers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = {line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]}
    here = {path.name for path in (ROOT / "musicgen_ref" / "fast").glob("*.py")}
    assert files == here - {"__init__.py", "compile.py", "cuda.py"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the memory of a process from Linux")
@pytest.mark.parametrize("size", ["toy", "small"])
def test_loading_and_converting_stay_within_their_memory(size: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--size", size, "--models", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 2 + 6
    assert [path.name for path in tmp_path.iterdir()] == [size]


@pytest.mark.slow
def test_the_benchmark_measures_both_libraries_and_writes_its_results(tmp_path: Path) -> None:
    command = ["--size", "toy", "--seconds", "0.5", "--batch-seconds", "0.2", "--models", tmp_path / "models"]
    out = tmp_path / "results" / "of today"  # not there yet
    command += ["--out", out, "--only", "clip", "import"]
    subprocess.run([sys.executable, "-m", "benchmarks", *map(str, command)], cwd=ROOT, check=True, timeout=600)
    results = json.loads((out / "results.json").read_text())["results"]
    fp32 = {library: results[f"clip fp32: {library}"] for library in ("ours", "transformers")}
    assert fp32["ours"]["codes"] == fp32["transformers"]["codes"]
    assert all(len(result["steps"]) == 25 + 3 - 1 for result in fp32.values())
    assert results["clip fp32: plain"]["codes"] == fp32["ours"]["codes"]
    table = (out / "RESULTS.md").read_text()
    assert "| what | ours | plain | transformers | ratio |" in table
    clips = ("fp32", "fp32, compiled", "bf16, compiled, beside fp32", "int8, compiled, int8 cache")
    assert all(f"| clip, {told} |" in table and f"| step 0, {told} |" in table for told in clips)
    assert "| import |" in table and "- ours, int8, compiled, int8 cache: " in table
    assert (out / "steps.png").stat().st_size > 1000
    assert sorted(path.name for path in out.iterdir()) == ["RESULTS.md", "results.json", "steps.png"]
