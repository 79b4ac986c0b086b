"""Checks of chapter 2."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref import delay


def columns(delays: tuple[int, ...], frames: int) -> dict[tuple[int, int], int]:
    """Where the package puts code f of codebook k: its column."""
    numbers = torch.arange(len(delays) * frames).view(1, len(delays), frames)
    table = F.pad(delay.apply(numbers, delays, fill=-1), (1, 0), value=-1)[0]
    places = ((k, column, int(n)) for k, row in enumerate(table) for column, n in enumerate(row) if n >= 0)
    return {(k, n % frames): column for k, column, n in places}


def check_has_seen(answer: Callable[..., Any]) -> None:
    """Every pair of cells of three patterns, by the columns that they stand in."""
    for delays in ((0, 1, 2, 3), (0, 0, 0), (0, 2, 1)):
        column = columns(delays, 3)
        for cell in column:
            for other in column:
                right, got = column[other] < column[cell], answer(delays, cell, other)
                if bool(got) != right:
                    raise Wrong(
                        f"delays {delays}: has {cell} seen {other}? {right}: they stand in columns {column[cell]} and "
                        f"{column[other]}; got {got}"
                    )


def check_flatten(answer: Callable[..., Any]) -> None:
    """Numbers that tell where they were."""
    codes = torch.arange(12).view(4, 3)
    right = torch.tensor([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11])
    got = tools.tensor(answer(codes.clone()), (12,), "the line")
    tools.same(got.tolist(), right.tolist(), f"the line of {codes.tolist()}", "the codes of a frame stand side by side")


def check_unflatten(answer: Callable[..., Any]) -> None:
    """The line of the check above, and one of two codebooks."""
    line = torch.tensor([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11])
    got = tools.tensor(answer(line.clone(), 4), (4, 3), "the codes")
    tools.same(got.tolist(), torch.arange(12).view(4, 3).tolist(), f"the codes of the line {line.tolist()}")
    tools.tensor(answer(line.clone(), 2), (2, 6), "the codes of two codebooks")


def check_another_pattern(answer: Callable[..., Any]) -> None:
    """The property, by the columns; then that no smaller delay would do."""
    for K in (1, 2, 4, 6):
        delays = tuple(int(lag) for lag in answer(K))
        if len(delays) != K or delays[0] != 0 or min(delays) < 0:
            raise Wrong(f"for {K} codebooks there must be {K} delays from 0 on, got {delays}")
        column = columns(delays, 5)
        for k in range(K):
            for j in range(k):
                for g in (1, 2):
                    if not column[j, g] < column[k, 1]:
                        frame = "its own frame" if g == 1 else "the next frame"
                        raise Wrong(f"with delays {delays} codebook {k} has not seen codebook {j} of {frame}")
        if sum(delays) > K * (K - 1):
            raise Wrong(f"delays {delays} do what is asked, but smaller ones do too")
