"""Checks of chapter 6."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from learn.checks import tools
from learn.checks.tools import Wrong
from musicgen_ref import delay
from musicgen_ref.decoder import Decoder, DecoderConfig

SIZES = DecoderConfig(vocab_size=5, codebooks=2, width=8, layers=1, heads=1, ffn=8, text_width=8)


@torch.no_grad()
def check_columns_read(answer: Callable[..., Any]) -> None:
    """A decoder that counts what it is given, in the loop of the chapter."""
    decoder = Decoder(SIZES).eval()
    for steps, prompt in ((10, 0), (10, 4), (3, 2), (40, 15)):
        for cached in (False, True):
            cache = decoder.new_cache(1, steps) if cached else None
            table = torch.zeros(1, 2, steps + 1, dtype=torch.long)
            read = 0
            for column in range(prompt + 1, steps + 1):
                known = 0 if cache is None else cache.length
                given = table[..., known:column]
                decoder(given, cache=cache)
                read += given.shape[2]
            what = f"columns_read({steps}, {prompt}, {cached})"
            hint = "the first call reads all that is known" if prompt else "column c is decided from the c before it"
            tools.same(answer(steps, prompt, cached), read, what, hint)


def check_start_table(answer: Callable[..., Any]) -> None:
    """Where the package puts the known codes, the free cells and the special ones."""
    known = torch.tensor([[1, 2], [3, 4], [5, 6]])
    for delays in ((0, 1, 2), (0, 0, 1)):
        codes = F.pad(known, (0, 2), value=-1)[None]
        right = F.pad(delay.apply(codes, delays, fill=9), (1, 0), value=9)[0]
        got = tools.tensor(answer(known.clone(), 4, delays, 9), tuple(right.shape), "the table")
        if not torch.equal(got, right):
            k, column = (int(i) for i in (got != right).nonzero()[0])
            raise Wrong(
                f"delays {delays}: the cell of codebook {k} in column {column} must be {int(right[k, column])}, "
                f"got {int(got[k, column])} (9 is the special token, -1 is to be decided)"
            )


def check_until_silence(answer: Callable[..., Any]) -> None:
    """Streams with silence in the middle, at the end, broken, and none; and how much is taken of them."""
    quiet = torch.tensor([0, 0])

    def stream(codes: list[int], taken: list[int]) -> Iterator[Tensor]:
        for code in codes:
            taken.append(code)
            yield torch.tensor([code, code])

    for codes, wanted, right, most in (
        ([1, 2, 0, 0, 0, 3, 4], 7, [1, 2], 5),
        ([1, 0, 0, 2, 0, 0, 0], 7, [1, 0, 0, 2], 7),
        ([1, 2, 3, 4], 3, [1, 2, 3], 3),
        ([0, 0, 0, 1], 4, [], 3),
    ):
        taken: list[int] = []
        got = tools.tensor(answer(stream(codes, taken), wanted, quiet), (2, len(right)), f"the codes of {codes}")
        tools.same(got[0].tolist(), right, f"what is kept of {codes}, {wanted} wanted,")
        if len(taken) > most:
            raise Wrong(f"of {codes} ({wanted} wanted) {most} frames were needed, {len(taken)} were taken")
