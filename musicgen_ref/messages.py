"""Values from files as messages show them: short and on one line, whatever the value is.

repr() builds its whole text before anything can be cut. For lists that contain one another many times over, which a
small pickle can hold, it never ends; for deeply nested ones it fails. The functions here look only at the part of a
value that they show.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

ITEMS, INSIDE = 8, 4  # how many entries are shown of a list, and of a list in a list
LONGEST = 10**40  # numbers up to here are shown digit by digit


def shown(value: Any, most: int = 100, depth: int = 2) -> str:
    """A value as a message shows it: its first `most` characters, or a container's first entries, and its length.

    depth: down to which containers are shown with their entries; below it only their lengths are.
    """
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < LONGEST else f"a whole number of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        text = repr(value[:most])
        return text if len(value) <= most else f"{text} ... ({len(value)} in all)"
    if type(value) not in (list, tuple, dict):
        return f"a {type(value).__name__}"
    if not depth and value:
        return f"a {type(value).__name__} of {len(value)}"
    items = ITEMS if depth == 2 else INSIDE
    first: list[Any] = list(islice(value.items() if isinstance(value, dict) else value, items))
    if isinstance(value, dict):
        entries = [f"{shown(key, 30, 0)}: {shown(item, 30, depth - 1)}" for key, item in first]
    else:
        entries = [shown(item, 80, depth - 1) for item in first]
    text = ", ".join(entries)
    if len(value) > items:
        text += f", ... {len(value)} in all"
    elif isinstance(value, tuple) and len(value) == 1:
        text += ","
    begin, end = ("[", "]") if isinstance(value, list) else ("(", ")") if isinstance(value, tuple) else ("{", "}")
    return f"{begin}{text if len(text) < 1000 else f'{text[:1000]} ...'}{end}"


def spelled(name: Any, most: int = 100) -> str:
    """A name from a file, without quotes if it is short and printable; otherwise as shown() gives it."""
    plain = isinstance(name, str) and 0 < len(name) <= most and name.isprintable()
    return name if plain else shown(name, most)


def listed(entries: Iterable[str], most: int = 1000, between: str = ", ") -> str:
    """Entries one after another, as many as fit into `most` characters, and how many more there are."""
    told: list[str] = []
    length = more = 0
    for entry in entries:
        length += len(entry) + len(between)
        if told and length > most:
            more += 1
        else:
            told.append(entry if len(entry) <= most else f"{entry[:most]} ...")
    return between.join(told) + (f", and {more} more" if more else "")
