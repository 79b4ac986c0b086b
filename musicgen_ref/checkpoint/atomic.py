"""A checkpoint directory that is replaced as a whole, and read as a whole.

Files are written into a folder beside the directory, and then take its place in one of three ways:

- There is no directory yet: the folder takes its name.
- There is one, and Linux and its file system can exchange two names in one step (renameat2, RENAME_EXCHANGE): the
  folder and the directory exchange theirs. Before that, the other files of the directory are linked into the folder.
- Otherwise the files are moved one by one. So it is on other systems, and where the directory cannot change its name: a
  mount point, the working directory of this process, a directory above which nothing may be written, or one that holds
  directories of the user's own, which cannot be linked. Before the first file is moved, a notice takes the place of
  config.json: it is no JSON, so that neither this package nor transformers opens the directory, and it says why. The
  new config.json replaces it after the last file.

So when the process is killed, the directory is the old one or the new one, or, in the third case only, it is refused
until a model is saved into it again. This holds for kill -9 but not for a power cut: nothing is forced to the disk.

A reader opens one file after the other, and each could belong to another save. So steady() compares the identities of
the files before and after reading. This works in all three cases; in the third, keeping the directory itself open
would not help, since it stays the same directory.
"""

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

# The files of a checkpoint directory in either layout. No other file is ever replaced.
KNOWN = re.compile(
    r"(config|generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens)\.json|spiece\.model|README\.md|(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)"
    r"|(model\.safetensors|pytorch_model\.bin)\.index\.json|(compression_)?state_dict\.bin"
)
CONFIG = "config.json"
# The notice in place of config.json. It is no JSON object, since transformers would open any: missing fields have
# defaults.
UNFINISHED = b"This directory is not complete: to save a model into it was stopped, or is not over. Save it again.\n"
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


# Writing


def check_target(path: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Raise FileNotFoundError where the directory above `path` does not exist; ValueError where `path` holds one of the
    sources, or exists, unless `overwrite` is set and it holds nothing but a checkpoint."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {path.parent}")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path}: must be a directory or not there, it is a file or a link")
    for source in sources:
        if source.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{path}: must be another directory than the one that is read, {source}")
    if path.exists():
        if not overwrite:
            raise ValueError(f"{path}: exists; --overwrite replaces it")
        files = [file for file in path.rglob("*") if not file.is_dir()]
        if foreign := [str(file) for file in files if not KNOWN.fullmatch(file.name)]:
            raise ValueError(f"{path}: would be replaced, but holds more than a checkpoint: {foreign[:5]}")
        _check_files(path)


def unfinished(path: Path) -> bool:
    """Whether a directory holds the notice: its files were being replaced one by one, and that was not completed."""
    file = path / CONFIG
    return file.is_file() and file.stat().st_size == len(UNFINISHED) and file.read_bytes() == UNFINISHED


@contextmanager
def beside(path: Path, needed: int = 0, keep: bool = True, drop: Collection[str] = ()) -> Iterator[Path]:
    """A new folder for the block to write into. At the end of the block its files become the files of the directory
    `path`, all at once; if anything fails before, the folder is removed.

    path: may be absent, or a link to a directory, which stays a link. needed: how many bytes will be written. keep:
    True keeps the directory's files of other names, except those in `drop`; False replaces the directory with all that
    is in it.

    Raises ValueError where `path` is a file, or where a directory has the name of a checkpoint's file; OSError where
    nothing may be written, and where the disk has no room, naming the file. After an error nothing has changed.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"path must be a directory, got the file {path}")
    if path.is_dir():
        _check_files(path)
    given, path = path, path.resolve()
    folder = _folder(path)
    new = folder / "new"
    try:
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{given}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free")
        new.mkdir()
        try:
            yield new
            _put(path, folder, keep, drop)
        except OSError as error:
            if error.errno not in FULL:
                raise
            file = Path(error.filename or new)
            file = given / file.relative_to(new) if file.is_relative_to(new) else file
            reason = f"nothing written: {os.strerror(error.errno)} ({needed / 1e9:.2f} GB are needed)"
            raise OSError(error.errno, reason, str(file)) from None
    finally:
        if not (unfinished(path) and (folder / "old").exists()):  # "old" then holds files that could not be moved back
            shutil.rmtree(folder, ignore_errors=True)


def _check_files(path: Path) -> None:
    for name in sorted(os.listdir(path)):
        if KNOWN.fullmatch(name) and (path / name).is_dir():
            raise ValueError(f"{path / name}: is a directory, a file belongs there: remove it, or choose another path")


def _folder(path: Path) -> Path:
    """A new folder on the file system of `path`, from which files can be moved there: beside `path` if possible, or
    inside it."""
    prefix = f".{path.name[:40]}."  # cut, since the length of a name is limited
    if not path.exists():
        return Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    for name in os.listdir(path):
        if name.startswith(prefix):
            with suppress(OSError):  # removes what is left where a process was killed between mkdtemp() and rename()
                os.rmdir(path / name)
    inside = Path(tempfile.mkdtemp(prefix=prefix, dir=path))
    try:
        return inside.rename(path.parent / inside.name)
    except OSError:  # the directory above cannot be written to, or is on another file system
        return inside
    except BaseException:
        inside.rmdir()
        raise


def _put(path: Path, folder: Path, keep: bool, drop: Collection[str]) -> None:
    new = folder / "new"
    names = sorted(os.listdir(new))
    if not path.exists():
        os.rename(new, path)
    elif keep and len(names) == 1:
        if names == [CONFIG] and unfinished(path):
            raise ValueError(f"{path}: holds a model whose saving was stopped: save a whole one, not {CONFIG} alone")
        os.replace(new / names[0], path / names[0])
    elif folder.parent == path or not _swap(path, new, names, keep, drop):
        _move(path, folder, names, keep, drop)


def _swap(path: Path, new: Path, names: list[str], keep: bool, drop: Collection[str]) -> bool:
    """Let `path` and `new` exchange their names; False if they cannot."""
    if sys.platform != "linux":
        return False
    try:
        if os.path.samefile(os.curdir, path):  # the working directory of this process would be removed
            return False
        replaced = {*names, *drop, CONFIG} if unfinished(path) else {*names, *drop}
        for name in sorted(set(os.listdir(path)) - replaced) if keep else ():
            if (path / name).is_dir() and not (path / name).is_symlink():
                return False
            os.link(path / name, new / name, follow_symlinks=False)
        state = path.stat()
        os.chown(new, state.st_uid, state.st_gid)
        shutil.copystat(path, new)
        os.utime(new)
        _exchange(new, path)
    except OSError:
        return False
    for name in sorted(set(os.listdir(new)) - replaced) if keep else ():  # files that were added in the meantime
        if not (os.path.lexists(path / name) and os.path.samestat(os.lstat(new / name), os.lstat(path / name))):
            os.replace(new / name, path / name)
    return True


def _exchange(one: Path, other: Path) -> None:
    """Let two files or directories take each other's name, in one step. Raises OSError where that is not possible."""
    at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(other)) from None
    if renameat2(at, os.fsencode(one), at, os.fsencode(other), exchange):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _move(path: Path, folder: Path, names: list[str], keep: bool, drop: Collection[str]) -> None:
    """Move the files of folder/new to `path` one after the other, and the old ones to folder/old; if anything fails,
    move all of them back."""
    new, old, notice = folder / "new", folder / "old", folder / CONFIG
    old.mkdir()
    notice.write_bytes(UNFINISHED)
    there = os.path.lexists(path / CONFIG)
    if there:  # a copy: config.json is never missing then, and readers see another file if this one is put back
        shutil.copy2(path / CONFIG, old / CONFIG, follow_symlinks=False)
    others = [name for name in names if name != CONFIG]
    inside = set(os.listdir(path)) - {*names, CONFIG, folder.name}
    gone = sorted(inside & {*drop} if keep else inside)
    try:
        os.replace(notice, path / CONFIG)
        for name in [*others, *gone]:
            if os.path.lexists(path / name):
                os.rename(path / name, old / name)
            if name in others:
                os.rename(new / name, path / name)
        if CONFIG in names:
            os.replace(new / CONFIG, path / CONFIG)
        else:
            os.unlink(path / CONFIG)
    except BaseException:
        if unfinished(path):  # otherwise moving had not begun, or had been completed
            for name in [*others, *gone]:
                if name in others and not os.path.lexists(new / name):
                    os.rename(path / name, new / name)
                if os.path.lexists(old / name):
                    os.rename(old / name, path / name)
            if there:
                os.replace(old / CONFIG, path / CONFIG)
            else:
                os.unlink(path / CONFIG)
        raise


# Reading

ATTEMPTS = 10


def steady(path: Path, read: Callable[[], Result]) -> Result:
    """The result of read(), which reads the files of a directory, from files that did not change while it ran.

    Where they were replaced in the meantime, read() runs again. Raises what read() raises, if the files did not change,
    and ValueError where they were replaced during every one of several attempts, as by a process that saves without a
    pause.
    """
    for _ in range(ATTEMPTS):
        before = _identities(path)
        try:
            result = read()
        except (OSError, ValueError):
            if _identities(path) == before:
                raise
        else:
            if before and before.items() <= _identities(path).items():
                return result
    raise ValueError(f"{path}: its files were replaced while they were being read, {ATTEMPTS} times: try again")


def _identities(path: Path) -> dict[str, tuple[int, ...]]:
    """The identity of each file of a checkpoint, by which it differs from another file of the same name."""
    found: dict[str, tuple[int, ...]] = {}
    for name in filter(KNOWN.fullmatch, os.listdir(path) if path.is_dir() else ()):
        with suppress(OSError):  # it may have been removed in the meantime
            state = (path / name).stat()
            found[name] = state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
    return found
