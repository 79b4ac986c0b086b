"""Solutions of chapter 6."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_ref import delay


def columns_read(steps: int, prompt: int, cached: bool) -> int:
    """Column c is decided from the columns 0 to c - 1."""
    first = prompt + 1  # columns known, all read by the first call, which decides column prompt + 1
    if steps < first:
        return 0
    if cached:
        return first + (steps - first)
    return sum(range(first, steps + 1))


def start_table(known: Tensor, frames: int, delays: Sequence[int], special: int) -> Tensor:
    """-1 for what is to be decided, then the package's pattern around it."""
    codes = torch.full((len(delays), frames), -1)
    codes[:, : known.shape[1]] = known
    return F.pad(delay.apply(codes[None], delays, fill=special), (1, 0), value=special)[0]


def until_silence(frames: Iterator[Tensor], wanted: int, silence: Tensor) -> Tensor:
    """next() is called only while something is missing."""
    kept: list[Tensor] = []
    quiet = 0
    while len(kept) < wanted and quiet < 3:
        frame = next(frames)
        quiet = quiet + 1 if torch.equal(frame, silence) else 0
        kept.append(frame)
    if quiet == 3:
        kept = kept[:-3]
    return torch.stack(kept, dim=1) if kept else torch.empty(len(silence), 0, dtype=torch.long)
