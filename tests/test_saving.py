"""A directory that is saved over: all of it or nothing, whatever it is, and whatever stops it; what is never copied."""

import ctypes
import errno
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, MusicgenForConditionalGeneration
from transformers import MusicgenConfig as TheirConfig

from musicgen_ref import MusicGen, checkpoint, hf
from musicgen_ref.checkpoint import atomic, files, source
from tests import kill_save, tiny
from weights_convert import convert

LAYOUTS = ["transformers", "audiocraft"]
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="exchanges directories as Linux can")


@pytest.fixture(scope="module")
def models() -> list[MusicGen]:
    """Two of the same sizes; not to be changed."""
    return [kill_save.model(which) for which in range(2)]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(models: list[MusicGen], layout: str, tmp_path: Path) -> Path:
    """The first of the models, saved."""
    models[0].save_pretrained(tmp_path / "model", layout)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with tokenizer and processor, of a model that both layouts have a place for; not to be written to."""
    folder = tmp_path_factory.mktemp("complete") / "model"
    tiny.musicgen_of(256, text={"vocab_size": 200}, decoder={"ffn_dim": 64}).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(tiny.spiece())
    MusicGen.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture
def whole(complete: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete, tmp_path / "whole"))


def no_exchange(monkeypatch: pytest.MonkeyPatch, number: int = errno.EINVAL) -> None:
    def refused(*_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "_exchange", refused)


@pytest.fixture(params=["exchanged", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files get into place."""
    if request.param == "one by one":
        no_exchange(monkeypatch)
    elif sys.platform != "linux":
        pytest.skip("exchanges directories as Linux can")
    return str(request.param)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def same(path: Path, model: MusicGen) -> bool:
    """Whether a directory holds this model, with its configuration."""
    own = MusicGen.from_pretrained(path)
    state, expected = own.state_dict(), model.state_dict()
    return own.text_encoder.config == model.text_encoder.config and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


def alone(folder: Path) -> bool:
    """Whether nothing was left beside a directory."""
    return [file.name for file in folder.parent.iterdir()] == [folder.name]


# What else the directory is and holds


@ON_LINUX
def test_directories_exchange_and_what_else_is_there_is_the_same_file(
    folder: Path, layout: str, models: list[MusicGen]
) -> None:
    (folder / "notes.txt").write_text("the user's")
    (folder / "shortcut").symlink_to("notes.txt")
    (folder / "gone").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    os.chmod(folder, 0o2750)
    os.chmod(folder / "notes.txt", 0o400)
    before, notes = folder.stat(), (folder / "notes.txt").stat()
    models[1].save_pretrained(folder, layout)
    after = folder.stat()
    assert after.st_ino != before.st_ino and after.st_mode == before.st_mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert (folder / "notes.txt").stat()[:8] == notes[:8] and (folder / "notes.txt").read_text() == "the user's"
    assert os.readlink(folder / "shortcut") == "notes.txt" and os.readlink(folder / "gone") == "nowhere"
    assert (folder / "pipe").is_fifo()
    assert same(folder, models[1]) and alone(folder)


@ON_LINUX
@pytest.mark.parametrize("number", ["EINVAL", "ENOSYS", "EXDEV", "EPERM", "EBUSY"])
def test_where_directories_cannot_exchange_files_move_one_by_one(
    number: str, folder: Path, layout: str, models: list[MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_exchange(monkeypatch, getattr(errno, number))
    (folder / "notes.txt").write_text("the user's")
    before = folder.stat().st_ino
    models[1].save_pretrained(folder, layout)
    assert folder.stat().st_ino == before and (folder / "notes.txt").read_text() == "the user's"
    assert same(folder, models[1]) and alone(folder)
    assert (layout == "transformers") == (folder / "config.json").exists()


@pytest.mark.parametrize("reason", ["another system", "an old C library"])
def test_other_systems_move_files_one_by_one(
    reason: str, folder: Path, layout: str, models: list[MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "another system":
        monkeypatch.setattr(atomic.sys, "platform", "darwin")
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    before = folder.stat().st_ino
    models[1].save_pretrained(folder, layout)
    assert folder.stat().st_ino == before
    assert same(folder, models[1]) and alone(folder)


def test_an_exchange_that_is_not_possible_is_an_error_that_changes_nothing(folder: Path) -> None:
    (folder / "inside").mkdir()
    before = contents(folder)
    for other, error in ((folder / "inside", OSError), (folder / "absent", FileNotFoundError)):
        with pytest.raises(error, match=re.escape(str(folder))):
            atomic._exchange(other, folder)
    assert contents(folder) == before


def test_the_users_directories_stay_what_they_are(folder: Path, layout: str, models: list[MusicGen]) -> None:
    (folder / ".git" / "refs").mkdir(parents=True)
    (folder / ".git" / "refs" / "main").write_text("the user's")
    (folder / "runs").mkdir()
    before = [(folder / name).stat().st_ino for name in ("", ".git", ".git/refs", ".git/refs/main", "runs")]
    models[1].save_pretrained(folder, layout)
    assert [(folder / name).stat().st_ino for name in ("", ".git", ".git/refs", ".git/refs/main", "runs")] == before
    assert (folder / ".git" / "refs" / "main").read_text() == "the user's"
    assert same(folder, models[1]) and alone(folder)


@ON_LINUX
@pytest.mark.parametrize("kind", ["a new file", "a new directory", "a file replaced"])
def test_what_comes_in_at_the_last_moment_stays(
    kind: str, models: list[MusicGen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    models[0].save_pretrained(folder)
    (folder / "notes.txt").write_text("old")
    exchange = atomic._exchange

    def late(one: Path, other: Path) -> None:
        if kind == "a new directory":
            (folder / "run").mkdir()
            (folder / "run" / "log").write_text("late")
        else:
            (tmp_path / "written").write_text("late")
            os.replace(tmp_path / "written", folder / ("notes.txt" if kind == "a file replaced" else "late.txt"))
        exchange(one, other)

    monkeypatch.setattr(atomic, "_exchange", late)
    models[1].save_pretrained(folder)
    name = {"a new file": "late.txt", "a new directory": "run/log", "a file replaced": "notes.txt"}[kind]
    assert (folder / name).read_text() == "late"
    assert same(folder, models[1]) and alone(folder)


def test_a_link_to_a_directory_stays_a_link(models: list[MusicGen], way: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "work").mkdir()
    models[0].save_pretrained(tmp_path / "real" / "model")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "real" / "model")
    models[1].save_pretrained(tmp_path / "work" / "link")
    assert (tmp_path / "work" / "link").is_symlink() and same(tmp_path / "real" / "model", models[1])
    assert alone(tmp_path / "real" / "model") and alone(tmp_path / "work" / "link")


def test_a_link_to_nothing_is_refused(models: list[MusicGen], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="link"):
        models[0].save_pretrained(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == str(tmp_path / "nothing") and alone(tmp_path / "link")


def test_the_directory_in_which_one_works_stays_that(
    models: list[MusicGen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for which in (0, 1):
        models[which].save_pretrained(tmp_path)
        assert same(Path("."), models[which]) and same(tmp_path, models[which])
    assert Path("config.json").exists()


@pytest.mark.parametrize("number", ["EXDEV", "EACCES", "EROFS", "EPERM", "EBUSY"])
def test_over_a_mount_point_and_where_nothing_may_be_written_above_files_are_written_inside(
    number: str, folder: Path, layout: str, models: list[MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Path] = []

    def refused(one: Path, other: Path) -> Path:
        moved.append(one)
        raise OSError(getattr(errno, number), "no", str(other))

    monkeypatch.setattr(Path, "rename", refused)
    (folder / "notes.txt").write_text("the user's")
    before = folder.stat().st_ino
    models[1].save_pretrained(folder, layout)
    assert [path.parent for path in moved] == [folder]
    assert folder.stat().st_ino == before and same(folder, models[1]) and alone(folder)
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_a_model_is_saved_over_the_very_files_it_is_mapped_from(models: list[MusicGen], way: str, folder: Path) -> None:
    layout = "transformers" if (folder / "config.json").exists() else "audiocraft"
    for _ in range(2):
        own = MusicGen.from_pretrained(folder)
        own.save_pretrained(folder, layout)
        assert same(folder, models[0]) and same(folder, own) and alone(folder)


@pytest.mark.parametrize("name", ["n" * 250, "é" * 125, "n" * 255], ids=["250", "é", "255"])
def test_a_long_name_works(name: str, models: list[MusicGen], way: str, tmp_path: Path) -> None:
    for which in (0, 1):
        models[which].save_pretrained(tmp_path / name)
        assert same(tmp_path / name, models[which]) and alone(tmp_path / name)
    for _ in range(2):
        convert.from_huggingface(tmp_path / name, tmp_path / name[1:], overwrite=True)
    assert same(tmp_path / name[1:], models[1])


def test_a_name_that_is_too_long_is_refused_before_anything_is_written(
    models: list[MusicGen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_weights", None)
    with pytest.raises(OSError, match="nnnn") as caught:
        models[0].save_pretrained(tmp_path / ("n" * 256))
    assert caught.value.errno == errno.ENAMETOOLONG and list(tmp_path.iterdir()) == []


def test_the_cache_of_the_hub_is_saved_over_by_files(whole: Path, way: str, tmp_path: Path) -> None:
    snapshot = in_cache(whole, tmp_path)
    before = contents(tmp_path / "hub" / "blobs")
    own = MusicGen.from_pretrained(snapshot)
    with torch.no_grad():
        own.decoder.norm.weight.add_(1)
    own.save_pretrained(snapshot)
    assert same(snapshot, own) and MusicGen.from_pretrained(snapshot).tokenizer is not None
    assert contents(tmp_path / "hub" / "blobs") == before  # which other revisions share
    assert not (snapshot / "model.safetensors").is_symlink()


# Refused before anything is written


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json", "state_dict.bin"])
def test_a_directory_of_a_files_name_is_refused_before_anything_is_written(
    name: str, models: list[MusicGen], layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    (folder / name).mkdir(parents=True)
    for module in (checkpoint, convert):
        monkeypatch.setattr(module, "write_weights", None)
    monkeypatch.setattr(checkpoint, "write_release", None)
    savers: list[Callable[[], None]] = [lambda: models[1].save_pretrained(folder, layout)]
    if name != "state_dict.bin":
        savers.append(lambda: hf.MusicgenConfig().save_pretrained(folder))
    for save in savers:
        with pytest.raises(ValueError, match=f"path {folder} holds other weights|{folder / name}: is a directory"):
            save()
    assert [file.name for file in folder.iterdir()] == [name] and alone(folder)


def test_a_conversion_over_a_directory_of_a_files_name_is_refused(models: list[MusicGen], tmp_path: Path) -> None:
    models[0].save_pretrained(tmp_path / "model")
    (tmp_path / "out" / "config.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"out/config\.json: is a directory"):
        convert.from_huggingface(tmp_path / "model", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "config.json").is_dir()


def test_parts_are_not_saved_over_a_file_or_a_directory(models: list[MusicGen], tmp_path: Path) -> None:
    part = hf.MusicgenForConditionalGeneration.of(models[0]).text_encoder
    (tmp_path / "file").write_text("the user's")
    with pytest.raises(ValueError, match="path must be a directory, got the file"):
        part.save_pretrained(tmp_path / "file")
    (tmp_path / "part" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"part/model\.safetensors: is a directory"):
        part.save_pretrained(tmp_path / "part")
    assert (tmp_path / "file").read_text() == "the user's"
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")) == [
        "file", "part", "part/model.safetensors"
    ]  # fmt: skip


@ON_LINUX
def test_what_a_killed_process_left_inside_is_in_nobodys_way(models: list[MusicGen], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    models[0].save_pretrained(folder)
    (folder / ".model.12345678").mkdir()  # killed before it was moved out
    before = folder.stat().st_ino
    models[1].save_pretrained(folder)
    assert folder.stat().st_ino != before and same(folder, models[1])
    assert not (folder / ".model.12345678").exists() and alone(folder)


# What stops it


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """A file cannot grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("most", [0, 1, 500, 20_000])
def test_a_full_disk_is_an_error_with_the_files_name_and_changes_nothing(
    most: int, folder: Path, layout: str, models: list[MusicGen]
) -> None:
    before = contents(folder)
    part = hf.MusicgenForConditionalGeneration.of(models[1]).text_encoder
    weights = "model.safetensors" if layout == "transformers" else "compression_state_dict.bin"
    with small_files(most):
        with pytest.raises(OSError, match=re.escape(str(folder))) as caught:
            models[1].save_pretrained(folder, layout)
        with pytest.raises(OSError, match=re.escape(str(folder.parent / "part"))) as other:
            part.save_pretrained(folder.parent / "part")
    assert caught.value.errno == other.value.errno == errno.EFBIG
    assert "nothing written" in str(caught.value) and "nothing written" in str(other.value)
    assert caught.value.filename == str(folder / weights) or most == 20_000
    assert contents(folder) == before and alone(folder)


def test_a_full_disk_while_a_tokenizer_is_written_names_the_directory(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = MusicGen.from_pretrained(whole)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write does, of no file

    monkeypatch.setattr(type(own.tokenizer), "save", full)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "out"))) as caught:
        own.save_pretrained(tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out") and not (tmp_path / "out").exists()


def test_a_disk_without_room_is_an_error_before_any_work(
    folder: Path, layout: str, models: list[MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(checkpoint, "write_weights", None)
    monkeypatch.setattr(checkpoint, "write_release", None)
    before = contents(folder)
    with pytest.raises(OSError, match=rf"{folder}: needs 0\.00 GB, the disk has 0\.00 GB free"):
        models[1].save_pretrained(folder, layout)
    assert contents(folder) == before and alone(folder)


@pytest.mark.parametrize("keep", [True, False], ids=["save", "convert"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_at_any_step_leaves_the_old_one_or_the_new_one(
    error: type[BaseException], keep: bool, way: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a directory with two files and a directory, and a config.json in the layout that has one."""
    path = tmp_path / "model"
    names = ["config.json"] * (layout == "transformers") + ["a.bin", "b.bin", "t5/weights"]

    def write(folder: Path, value: str) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(value)

    def old() -> dict[str, bytes]:
        shutil.rmtree(path, ignore_errors=True)
        write(path, "old")
        if keep:
            (path / "notes.txt").write_text("the user's")
        return contents(path)

    old()
    with atomic.beside(path, keep=keep) as folder:
        write(folder, "new")
    new = contents(path)
    assert new == dict.fromkeys(names, b"new") | ({"notes.txt": b"the user's"} if keep else {})
    stopped = 0
    for last in count(1):
        before, calls = old(), 0

        def step(name: str, owner: Any, last: int = last) -> None:
            call = getattr(owner, name)

            def counted(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                calls += "dir_fd" not in named  # or else it is of what removes the folder, after the last step
                if calls == last and "dir_fd" not in named:
                    raise error(f"stopped before {name}")
                return call(*arguments, **named)

            patch.setattr(owner, name, counted)

        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "link", "unlink", "chown"):
                step(name, os)
            step("_exchange", atomic)
            try:
                with atomic.beside(path, keep=keep) as folder:
                    write(folder, "new")
            except error:
                stopped += 1
                assert contents(path) == before, f"stopped at step {last}"
            else:
                assert contents(path) == new, f"went on at step {last}"
        assert alone(path), f"step {last}"
        if calls < last:
            break
    assert stopped or (way, error) == ("exchanged", OSError)  # where it moves files one by one then


def test_what_cannot_be_moved_back_is_kept_and_the_directory_refused(
    models: list[MusicGen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    models[0].save_pretrained(folder)
    before = contents(folder)
    no_exchange(monkeypatch)
    rename = os.rename
    moves: list[str] = []

    def breaks(one: Any, other: Any) -> None:
        moves.append(str(one))
        if len(moves) > 4:
            raise OSError(errno.EIO, "the disk is broken", str(one))
        rename(one, other)

    monkeypatch.setattr(os, "rename", breaks)
    with pytest.raises(OSError, match="broken"):
        models[1].save_pretrained(folder)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ValueError, match=f"{folder}: is not complete"):
        MusicGen.from_pretrained(folder)
    (left,) = (file for file in tmp_path.iterdir() if file != folder)
    kept = contents(folder) | contents(left / "old")
    assert {name: kept[name] for name in before if name != "config.json"} == {
        name: content for name, content in before.items() if name != "config.json"
    }
    assert (left / "old" / "config.json").read_bytes() == before["config.json"]


def test_an_unfinished_directory_is_refused_by_every_reader_until_it_is_saved_again(
    folder: Path, layout: str, models: list[MusicGen], tmp_path: Path
) -> None:
    (folder / "config.json").write_bytes(atomic.UNFINISHED)  # as a process leaves it that is killed meanwhile
    message = f"{folder}: is not complete: to save a model into it was stopped, or is not over: save again"
    readers: list[Callable[[], Any]] = [
        lambda: MusicGen.from_pretrained(folder),
        lambda: hf.MusicgenForConditionalGeneration.from_pretrained(folder),
        lambda: hf.T5EncoderModel.from_pretrained(folder),
        lambda: convert.from_huggingface(folder, tmp_path / "copy"),
        lambda: convert.to_audiocraft(folder, tmp_path / "copy"),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=message):
            read()
    for kind in (MusicgenForConditionalGeneration, TheirConfig, AutoConfig):
        with pytest.raises(OSError, match=r"config file at '.*config\.json' is not a valid JSON file"):
            kind.from_pretrained(folder)
    with pytest.raises(ValueError, match="is in transformers' layout already"):
        convert.from_audiocraft(folder, tmp_path / "copy")
    with pytest.raises(ValueError, match=f"{folder}: holds a model whose saving was stopped: save a whole one"):
        hf.MusicgenConfig().save_pretrained(folder)  # which would let it be opened
    models[1].save_pretrained(folder, layout)
    assert same(folder, models[1]) and alone(folder)


# A reader beside


Read = Callable[[Path], tuple[int, dict[str, Tensor]]]


def ours(path: Path) -> tuple[int, dict[str, Tensor]]:
    own = MusicGen.from_pretrained(path)
    return own.text_encoder.config.max_distance, own.state_dict()


def facade(path: Path) -> tuple[int, dict[str, Tensor]]:
    own = hf.MusicgenForConditionalGeneration.from_pretrained(path)
    assert own.config.text_encoder.relative_attention_max_distance == own.core.text_encoder.config.max_distance
    return own.core.text_encoder.config.max_distance, own.core.state_dict()


def part(path: Path) -> tuple[int, dict[str, Tensor]]:
    own = hf.T5EncoderModel.from_pretrained(path)
    state = {f"text_encoder.{name}": tensor for name, tensor in own.core.state_dict().items()}
    return own.config.relative_attention_max_distance, state


def converted(path: Path) -> tuple[int, dict[str, Tensor]]:
    out = path.parent / "converted"
    to = convert.from_huggingface if (path / "config.json").exists() else convert.from_audiocraft
    to(path, out, overwrite=True)
    return ours(out)


READERS: dict[str, Read] = {"ours": ours, "facade": facade, "part": part, "converted": converted}


def saves_after(monkeypatch: pytest.MonkeyPatch, save: Callable[[int], None], times: int = 1) -> list[int]:
    """Let a save happen when configurations have been read and weights are not open, each of the first times; a list of
    those that happened."""
    call, saved = source.weight_files, list[int]()

    def then(*arguments: Any, **named: Any) -> Any:
        result = call(*arguments, **named)
        if len(saved) < times:
            saved.append(1)
            save(len(saved))
        return result

    monkeypatch.setattr(source, "weight_files", then)
    return saved


@pytest.mark.parametrize("reader", READERS)
def test_a_model_that_is_replaced_between_its_configuration_and_its_weights_is_read_once_more(
    reader: str, way: str, folder: Path, layout: str, models: list[MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    if layout == "audiocraft" and reader in ("facade", "part"):
        pytest.skip("reads transformers' layout alone")
    saved = saves_after(monkeypatch, lambda _: models[1].save_pretrained(folder, layout))
    distance, state = READERS[reader](folder)
    assert saved == [1] and distance == 129
    expected = models[1].state_dict()
    assert state and all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_one_that_is_replaced_every_time_is_an_error_in_the_end(
    way: str, folder: Path, layout: str, models: list[MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = saves_after(monkeypatch, lambda n: models[n % 2].save_pretrained(folder, layout), times=10**6)
    with pytest.raises(ValueError, match=f"{folder}: its files were replaced while they were being read, 10 times"):
        MusicGen.from_pretrained(folder)
    assert len(saved) == 10


def test_a_save_that_fails_meanwhile_is_noticed_too(
    folder: Path, layout: str, models: list[MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of the new one before it was taken back must not be kept."""
    no_exchange(monkeypatch)
    rename = os.rename
    taken: list[dict[str, Any]] = []

    def save(_: int) -> None:
        moved = 0

        def stops(one: Any, other: Any) -> None:
            nonlocal moved
            moved += Path(other).parent == folder
            if moved > 2:
                monkeypatch.setattr(os, "rename", rename)
                raise OSError("stopped")
            rename(one, other)

        monkeypatch.setattr(os, "rename", stops)
        before = atomic._identities(folder)
        with pytest.raises(OSError, match="stopped"):
            models[1].save_pretrained(folder, layout)
        taken.append({"before": before, "after": atomic._identities(folder)})

    saves_after(monkeypatch, save)
    assert same(folder, models[0])
    assert taken[0]["before"] != taken[0]["after"]


def test_errors_of_files_that_stay_as_they_are_are_raised_at_once(folder: Path) -> None:
    tried: list[int] = []

    def read() -> None:
        tried.append(1)
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        atomic.steady(folder, read)
    with pytest.raises(ValueError, match="as it is"):
        atomic.steady(folder / "absent", read)
    assert len(tried) == 2


# Nothing from outside is copied


SECRET = '{"token": "a secret"}'
OF_THE_TOKENIZER = ["special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"]
COPIED = ["README.md", "generation_config.json", *OF_THE_TOKENIZER]


def leaked(*folders: Path) -> bool:
    return any(b"a secret" in content for folder in folders if folder.exists() for content in contents(folder).values())


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside" / "secret.json"
    file.parent.mkdir()
    file.write_text(SECRET)
    return file


def attempts(source: Path, out: Path) -> Iterator[Callable[[], Any]]:
    """Whatever could write again what it read."""
    out.mkdir()
    kinds = hf.MusicgenForConditionalGeneration, hf.AutoProcessor, hf.AutoTokenizer, hf.GenerationConfig
    yield lambda: convert.from_huggingface(source, out / "a")
    yield lambda: convert.to_audiocraft(source, out / "b")
    yield lambda: MusicGen.from_pretrained(source).save_pretrained(out / "c")
    for i, kind in enumerate(kinds):
        yield lambda kind=kind, i=i: kind.from_pretrained(source).save_pretrained(out / f"d{i}")


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_link_out_of_the_directory_is_copied_by_nothing(
    name: str, relative: bool, whole: Path, outside: Path, tmp_path: Path
) -> None:
    (whole / name).unlink(missing_ok=True)
    (whole / name).symlink_to(Path("..", "outside", "secret.json") if relative else outside)
    refused = 0
    for attempt in attempts(whole, tmp_path / "out"):
        try:
            attempt()
        except ValueError as error:
            assert f"{whole / name}: is a link out of its directory, to {outside}: put a copy" in str(error)
            refused += 1
    assert refused >= 1 and not leaked(tmp_path / "out")
    assert leaked(whole)  # it would have been


def test_a_link_chain_and_a_linked_directory_lead_nowhere_either(whole: Path, outside: Path, tmp_path: Path) -> None:
    (whole / "inner").symlink_to(outside.parent)
    (whole / "first").symlink_to("inner/secret.json")
    (whole / "README.md").symlink_to("first")
    with pytest.raises(ValueError, match="is a link out of its directory"):
        convert.from_huggingface(whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_within_the_directory_is_followed(whole: Path, tmp_path: Path) -> None:
    (whole / "docs").mkdir()
    (whole / "docs" / "card.md").write_text("a card")
    (whole / "README.md").symlink_to("docs/card.md")
    convert.from_huggingface(whole, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "a card"
    assert not (tmp_path / "out" / "README.md").is_symlink()


def in_cache(folder: Path, tmp_path: Path) -> Path:
    """The files of a directory as huggingface_hub's cache has them: links to what is named by its contents."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{i:040x}"))
    return snapshot


def on_a_cluster(folder: Path, tmp_path: Path) -> Path:
    """A directory of links to the files of a shared one."""
    links = tmp_path / "links"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    return links


@pytest.mark.parametrize("linked", [in_cache, on_a_cluster])
def test_directories_of_links_load_save_and_convert(
    linked: Callable[[Path, Path], Path], whole: Path, tmp_path: Path
) -> None:
    (whole / "README.md").write_text("a card")
    links = linked(whole, tmp_path)
    for attempt in attempts(links, tmp_path / "out"):
        attempt()
    assert (tmp_path / "out" / "a" / "README.md").read_text() == "a card"
    for name in "abc":
        assert same(tmp_path / "out" / name, MusicGen.from_pretrained(whole)), name
        assert MusicGen.from_pretrained(tmp_path / "out" / name).tokenizer is not None
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_symlink()]


@pytest.mark.parametrize("name", ["README.md", "special_tokens_map.json"])
def test_in_the_cache_of_the_hub_too_a_link_leads_to_its_files_alone(
    name: str, whole: Path, outside: Path, tmp_path: Path
) -> None:
    snapshot = in_cache(whole, tmp_path)
    (snapshot / name).unlink(missing_ok=True)
    (tmp_path / "hub" / "blobs" / "evil").symlink_to(outside)
    (snapshot / name).symlink_to("../../blobs/evil")
    with pytest.raises(ValueError, match=f"{name}: is a link out of its directory, to {outside}"):
        convert.from_huggingface(snapshot, tmp_path / "out")
    shutil.rmtree(tmp_path / "hub" / "blobs")  # and where it is no cache, though it is named like one
    (tmp_path / "hub" / "blobs").symlink_to(outside.parent)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to("../../blobs/secret.json")
    with pytest.raises(ValueError, match=f"{name}: is a link out of its directory, to {outside}"):
        files.check_small(snapshot / name)
    assert not (tmp_path / "out").exists()


def test_weights_may_lie_elsewhere(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (whole / "model.safetensors").rename(tmp_path / "scratch" / "weights-of-17")
    (whole / "model.safetensors").symlink_to(tmp_path / "scratch" / "weights-of-17")
    convert.from_huggingface(whole, tmp_path / "out")
    assert same(tmp_path / "out", MusicGen.from_pretrained(whole))
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()


@pytest.mark.parametrize("name", COPIED)
def test_a_file_of_a_terabyte_is_refused_before_it_is_read(name: str, whole: Path, tmp_path: Path) -> None:
    with (whole / name).open("wb") as opened:
        opened.truncate(2**40)  # of which the disk holds nothing
    refused = 0
    for attempt in attempts(whole, tmp_path / "out"):
        try:
            attempt()
        except ValueError as error:
            assert str(error).startswith(f"{whole / name}: ") and str(2**40) in str(error)
            refused += 1
    assert refused >= 1
    assert all(file.stat().st_size < 10**7 for file in (tmp_path / "out").rglob("*"))


def test_what_the_facade_saves_is_one_step(whole: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generation_config.json is in place with the weights, not after them."""
    own = hf.MusicgenForConditionalGeneration.from_pretrained(whole)
    own.generation_config.top_k = 17
    put: list[str] = []
    call = atomic._put
    monkeypatch.setattr(atomic, "_put", lambda path, *more: put.append(path.name) or call(path, *more))
    own.save_pretrained(whole)
    assert put == ["whole"]
    assert json.loads((whole / "generation_config.json").read_text())["top_k"] == 17
