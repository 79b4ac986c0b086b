"""Reading small files from strangers: at most LIMIT bytes, and JSON in which no name is given twice."""

import json
from pathlib import Path
from typing import Any

from .messages import shown

LIMIT = 8_000_000  # bytes; the head of the largest public model has 200 kB, the text of its tokenizer 2.4 MB
POINTER = b"version https://git-lfs.github.com/spec/"  # begins the file that git leaves in place of one of git-lfs


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises FileNotFoundError, or ValueError naming a file of more than LIMIT bytes."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    # A larger file is not read at all; a file that grows while it is read is noticed by one byte beyond the limit.
    size = path.stat().st_size
    if size <= LIMIT:
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        size = len(content)
    if size > LIMIT:
        raise ValueError(f"{path}: must have at most {LIMIT} bytes, got {size}")
    return content


def check_pointer(content: bytes, where: str) -> None:
    """Raise ValueError naming `where` if the content is a pointer of git-lfs instead of the file itself."""
    if content.startswith(POINTER):
        raise ValueError(f"{where}: is a pointer of git-lfs, not the file itself: fetch that with `git lfs pull`")


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The object that a JSON text holds. Raises ValueError naming `where` for anything else, and for a name that is
    given twice in an object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{shown(name)} is given twice")
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
