"""Exercises of chapter 6. Write the bodies, then: python -m learn.check 6"""

from collections.abc import Iterator, Sequence

from torch import Tensor


def columns_read(steps: int, prompt: int, cached: bool) -> int:
    """How many columns the decoder reads in all, until column `steps` is decided, where the columns 0 to `prompt` are
    known from the start (prompt 0: only the start column). The first call reads all known columns at once; with a cache
    every later call reads one, without it all columns so far."""
    raise NotImplementedError


def start_table(known: Tensor, frames: int, delays: Sequence[int], special: int) -> Tensor:
    """The table (K, 1 + S) of a clip of so many frames that begins with known codes (K, P): -1 in every cell to be
    decided, `special` in those that never hold a code, the known codes in their places."""
    raise NotImplementedError


def until_silence(frames: Iterator[Tensor], wanted: int, silence: Tensor) -> Tensor:
    """Collect frames (K,) of a stream until `wanted` of them are there, or until three in a row equal `silence` (K,);
    as codes (K, T), without those three. Not one frame more than needed may be taken from the stream."""
    raise NotImplementedError
