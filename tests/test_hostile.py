"""Hostile and damaged checkpoints, and conversions that are killed; the long runs have commands of their own."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from musicgen_ref import MusicGen
from musicgen_ref.checkpoint import files, source
from tests import fuzz_checkpoint, tiny

ROOT = Path(__file__).parents[1]


def run(module: str, *arguments: Any) -> dict[str, Any]:
    """The result that a module of the tests prints; one process, so that a crash or a limit is not this one's."""
    command = [sys.executable, "-W", "ignore", "-m", f"tests.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3000)
    assert done.stdout, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def check_fuzz(count: int, seed: int) -> None:
    result = run("fuzz_checkpoint", "--count", count, "--seed", seed)
    assert result["wrong"] == []
    assert result["refused"] + result["loaded"] == count
    assert result["refused"] > count / 2 and result["loaded"] > count / 20


def test_200_mutations_are_refused_by_file_or_load_right() -> None:
    check_fuzz(200, seed=0)


@pytest.mark.slow
def test_2500_mutations_are_refused_by_file_or_load_right() -> None:
    check_fuzz(2500, seed=1)


def check_unknown(count: int, seed: int) -> None:
    result = fuzz_checkpoint.run_unknown(count, seed)
    assert result["wrong"] == []
    assert result["same"] == count and result["keys"] > count


def test_settings_that_nobody_knows_change_nothing() -> None:
    check_unknown(24, seed=0)


@pytest.mark.slow
def test_1000_times_settings_that_nobody_knows_change_nothing() -> None:
    check_unknown(1000, seed=1)


def check_kills(count: int, every: int, seed: int) -> None:
    result = run("kill_save", "--count", count, "--every", every, "--seed", seed)
    assert result["wrong"] == []
    found = Counter[str]()
    for name, states in result["found"].items():
        assert states, name
        found.update(states)
    assert found.keys() == {"absent", "old", "new", "refused"}
    assert sum(read.get("loaded", 0) for read in result["read"].values()) > 0


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches a process as Linux can")
def test_saves_and_conversions_that_are_killed_leave_the_old_model_the_new_one_or_a_refusal() -> None:
    check_kills(8, every=6, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches a process as Linux can")
def test_so_do_those_killed_at_any_step_and_at_200_moments() -> None:
    check_kills(200, every=1, seed=1)


# Heads of .safetensors files: what the library's own reader refuses, and what it does not look for


def entry(begin: int, end: int, dtype: str = "F32", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": [begin, end]}


def write(file: Path, head: dict[str, Any] | bytes, data: int = 16) -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return file


BOTH = {"a": entry(0, 8), "b": entry(8, 16)}
HEADS: dict[str, dict[str, Any] | bytes] = {
    "overlap": {"a": entry(0, 8), "b": entry(4, 12)},
    "the same bytes": {"a": entry(0, 8), "b": entry(0, 8)},
    "a hole": {"a": entry(0, 8), "b": entry(12, 16, shape=[1])},
    "not from the start": {"b": entry(8, 16)},
    "bytes left": {"a": entry(0, 8)},
    "beyond the file": {"a": entry(0, 8), "b": entry(8, 24, shape=[4])},
    "terabytes": {"a": entry(0, 2**42, shape=[2**40])},
    "backwards": {"a": entry(8, 0), "b": entry(8, 16)},
    "negative": {"a": entry(-8, 0), "b": entry(0, 16, shape=[4])},
    "a negative shape": {"a": entry(0, 8, shape=[-2]), "b": entry(8, 16)},
    "a shape of other bytes": {"a": entry(0, 8, shape=[3]), "b": entry(8, 16)},
    "a shape that overflows": {"a": entry(0, 8, shape=[2**32, 2**32]), "b": entry(8, 16)},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}, "b": entry(8, 16)},
    "a real number": {"a": entry(0, 8, shape=[2.0]), "b": entry(8, 16)},
    "an unknown dtype": {"a": entry(0, 8, "F33"), "b": entry(8, 16)},
    "no object": {"a": [0, 8], "b": entry(8, 16)},
    "metadata that is no text": {"__metadata__": {"format": 3}, **BOTH},
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a name twice": json.dumps(BOTH).encode()[:-1] + b', "a": ' + json.dumps(entry(0, 8)).encode() + b"}",
}
# These it opens: the second entry of a name wins, and what both say is the same here.
UNSEEN = {"a name twice"}


@pytest.mark.parametrize("what", HEADS)
def test_a_head_that_claims_what_is_not_there_is_refused(what: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", HEADS[what])
    with pytest.raises(ValueError, match=str(file)) as caught:
        files.open_weights(file)
    assert caught.type is ValueError
    try:
        safe_open(file, framework="pt")
    except (SafetensorError, OverflowError):
        assert what not in UNSEEN
    else:
        assert what in UNSEEN


def test_good_heads_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    state = {
        "half": torch.rand(3, 5).half(), "bf16": torch.rand(2).bfloat16(), "double": torch.rand(1, 1, 1).double(),
        "empty": torch.rand(0, 4), "scalar": torch.tensor(3.5), "whole": torch.arange(5), "flags": torch.ones(3) > 0,
    }  # fmt: skip
    save_file(state, tmp_path / "x.safetensors", {"format": "pt", "note": "é"})
    reader = files.open_weights(tmp_path / "x.safetensors")
    assert reader.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        for got in (reader.get(name), reader.get(name, mapped=True)):
            assert got.dtype == tensor.dtype == reader.dtypes[name] and torch.equal(got, tensor)
    files.write_safetensors(
        tmp_path / "y.safetensors",
        {name: files.Spec(t.dtype, tuple(t.shape), lambda t=t: t) for name, t in state.items()},
    )
    again = load_file(tmp_path / "y.safetensors")
    assert all(torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in state.items())


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4)}, file)
    reader = files.open_weights(file)
    save_file({"a": torch.ones(4)}, tmp_path / "y.safetensors")
    os.replace(tmp_path / "y.safetensors", file)
    for mapped in (False, True):
        with pytest.raises(ValueError, match="changed while it was being read"):
            reader.get("a", mapped)


# Directories


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of shards that transformers saved; not to be written to."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny.musicgen().save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_shard_that_is_a_link_out_of_the_directory_is_refused(folder: Path, tmp_path: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=rf"index\.json: .*{shard.name}.*link.*elsewhere"):
        MusicGen.from_pretrained(folder)
    shard.unlink()
    (tmp_path / "elsewhere.safetensors").rename(folder / "inside.safetensors")
    shard.symlink_to("inside.safetensors")
    MusicGen.from_pretrained(folder)


def test_shards_in_the_cache_of_the_hub_load(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    folder.rename(blobs)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / f"{i:064x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{i:064x}"))
    MusicGen.from_pretrained(snapshot)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "bomb, words",
    [
        (lambda text: "[" * 10**6, "not valid JSON"),
        (lambda text: text + " " * 10**7, "at most"),
        (lambda text: text.rstrip()[:-1] + ', "x": 1, "x": 2}', "'x' is given twice"),
        (lambda text: text.rstrip()[:-1] + f', "x": {"9" * 10**5}' + "}", "not valid JSON"),
    ],
    ids=["deep", "large", "twice", "digits"],
)
def test_a_json_bomb_is_refused(name: str, bomb: Callable[[str], str], words: str, folder: Path) -> None:
    file = folder / name
    file.write_text(bomb(file.read_text()))
    with pytest.raises(ValueError, match=f"{file}: .*{words}"):
        MusicGen.from_pretrained(folder)


ABSURD = [
    ("text_encoder", "num_layers", 10**9), ("decoder", "num_hidden_layers", 10**9), ("decoder", "num_codebooks", 10**9),
    ("audio_encoder", "num_residual_layers", 10**9), ("audio_encoder", "num_lstm_layers", 10**9),
    ("audio_encoder", "target_bandwidths", [10**9]), ("audio_encoder", "upsampling_ratios", [2] * 10**5),
]  # fmt: skip


@pytest.mark.parametrize("section, field, value", ABSURD)
def test_a_count_that_would_take_minutes_to_build_is_refused_by_field(
    section: str, field: str, value: Any, folder: Path
) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config[section][field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"{file}: {section}\.{field} must .*at most"):
        MusicGen.from_pretrained(folder)


@pytest.mark.parametrize(
    "section, field, value",
    [("text_encoder", "num_layers", 500), ("decoder", "num_hidden_layers", 500)],
)
def test_a_model_of_more_tensors_than_there_are_is_not_built(
    section: str, field: str, value: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MusicGen", None)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config[section][field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{file}: .*tensors"):
        MusicGen.from_pretrained(folder)


@pytest.mark.parametrize("field", ["kernel_size", "num_filters", "hidden_size"])
def test_sizes_of_more_elements_than_there_are_numbers_for_are_refused(field: str, folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["audio_encoder"] |= {field: 2**31 - 1, "codebook_dim": None}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=str(folder)):
        MusicGen.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool], ids=str)
def test_weights_that_are_no_real_numbers_are_refused(dtype: torch.dtype, folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    state = load_file(shard)
    name = next(name for name in state if "codebook" not in name)
    state[name] = state[name].to(dtype)
    save_file(state, shard)
    with pytest.raises(ValueError, match=f"{shard}: {name} must be one of .*float32.*{dtype}"):
        MusicGen.from_pretrained(folder)


# Archives of torch


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(6.0), "b": torch.ones(6)}, tmp_path / "x.bin")
    return tmp_path / "x.bin"


def repack(file: Path, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, content in entries:
            new.writestr(name, edit(name, content))


def test_a_repacked_archive_is_read(archive: Path) -> None:
    repack(archive, lambda name, content: content)
    assert torch.equal(files.open_weights(archive).get("a"), torch.arange(6.0))


def test_a_compressed_archive_is_refused(archive: Path) -> None:
    repack(archive, lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=f"{archive}: .*compressed"):
        files.open_weights(archive)


def test_a_pickle_that_is_larger_than_any_models_is_refused(archive: Path) -> None:
    repack(archive, lambda name, content: content + bytes(files.LIMIT) if name.endswith("data.pkl") else content)
    with pytest.raises(ValueError, match=f"{archive}: .*its pickle is larger than {files.LIMIT} bytes"):
        files.open_weights(archive)


def test_two_entries_of_one_name_are_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        opened.writestr(next(name for name in opened.namelist() if name.endswith("data/0")), bytes(24))
    with pytest.raises(ValueError, match=f"{archive}: .*two entries of one name"):
        files.open_weights(archive)


def test_a_bit_that_names_other_values_is_found(archive: Path) -> None:
    content = archive.read_bytes()
    at = content.index(b"X\x01\x00\x00\x000q") + 5  # the number of the values of `a`, which becomes that of `b`
    archive.write_bytes(content[:at] + b"1" + content[at + 1 :])
    assert torch.equal(torch.load(archive, weights_only=True)["a"], torch.ones(6))  # torch does not look
    with pytest.raises(ValueError, match=f"{archive}: .*checksum"):
        files.open_weights(archive)


def test_values_that_are_longer_than_their_entry_are_refused(archive: Path) -> None:
    repack(archive, lambda name, content: content[:8] if name.endswith("data/0") else content)
    assert not torch.equal(torch.load(archive, weights_only=True, mmap=True)["a"], torch.arange(6.0))  # it reads on
    with pytest.raises(ValueError, match=f"{archive}: .*entry"):
        files.open_weights(archive)


def test_files_of_an_old_torch_are_refused_with_the_way_out(archive: Path) -> None:
    torch.save({"a": torch.ones(3)}, archive, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=f"{archive}: .*save it again"):
        files.open_weights(archive)
