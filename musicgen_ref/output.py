"""Writing a file that the user asked for: whether it can be written to a path, and writing it whole or not at all."""

import contextlib
import errno
import os
import stat
import uuid
from pathlib import Path


def check_target(path: Path) -> None:
    """Raise the error that write() would raise for a path, before the work for its content begins.

    Raises FileNotFoundError where the folder does not exist; PermissionError where folder or file must not be written
    to; ValueError where the path is a folder, a block device or a socket.
    """
    folder = Path(os.path.realpath(path)).parent  # that of the target, if the path is a link
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not folder.is_dir():
            raise FileNotFoundError(f"path: no folder {folder} to write {path.name} into") from None
        mode = None
    kinds = {stat.S_IFDIR: "folder", stat.S_IFBLK: "block device", stat.S_IFSOCK: "socket"}
    if mode is not None and stat.S_IFMT(mode) in kinds:
        raise ValueError(f"path: {path} is a {kinds[stat.S_IFMT(mode)]}, must be a file name")
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file must not be written to", str(path))
    if (mode is None or stat.S_ISREG(mode)) and not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the folder must not be written to", str(folder))


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all; a device or a pipe is written to directly. An OSError names the file."""
    try:
        there = path.stat() if path.exists() else None
        if there is not None and not stat.S_ISREG(there.st_mode):
            with open(path, "wb") as file:
                file.write(content)
            return
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
            if there is not None:
                new = temporary.stat()
                if (new.st_uid, new.st_gid) != (there.st_uid, there.st_gid):
                    with contextlib.suppress(PermissionError):  # only root may change a file's owner
                        os.chown(temporary, there.st_uid, there.st_gid)
                temporary.chmod(stat.S_IMODE(there.st_mode))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)  # nothing to remove once it has been moved into place
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
