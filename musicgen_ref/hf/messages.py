"""An error that several modules raise."""

import difflib
from collections.abc import Collection, Iterable


def check_names(where: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Raise ValueError for the first name that is not allowed. The message says which one may have been meant."""
    for name in given:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"allowed are {sorted(allowed)}"
            raise ValueError(f"{where} has no argument {name!r}: {meant}")
