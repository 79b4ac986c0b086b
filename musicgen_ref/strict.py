"""Small files from strangers: none is read beyond a limit, and JSON is what it says, once."""

import json
from pathlib import Path
from typing import Any

LIMIT = 8_000_000  # bytes; the head of the largest public model has 200 kB, the text of its tokenizer 2.4 MB
POINTER = b"version https://git-lfs.github.com/spec/"  # what git leaves in a file's place without git-lfs


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises FileNotFoundError, or ValueError naming a file of more than LIMIT bytes."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    # One byte more than the limit tells a file that grows, too; of a larger one nothing is read.
    size = path.stat().st_size
    if size <= LIMIT:
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        size = len(content)
    if size > LIMIT:
        raise ValueError(f"{path}: must have at most {LIMIT} bytes, got {size}")
    return content


def check_pointer(content: bytes, where: str) -> None:
    """Raise ValueError naming `where` for a pointer of git-lfs in a file's place."""
    if content.startswith(POINTER):
        raise ValueError(f"{where}: is a pointer of git-lfs, not the file itself: fetch that with `git lfs pull`")


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The object that a text in JSON is. Raises ValueError naming `where`, also for a name that is given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{name[:100]!r} is given twice")
            found[name] = value
        return found

    check_pointer(content, where)
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{where}: must hold an object, got {type(parsed).__name__}")
    return parsed


def shown(value: Any) -> str:
    """A value of a file as messages show it: no longer than a line, whatever it holds."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value[:100])
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    return f"a {type(value).__name__}"
