"""Applies a name table, both ways; a tensor left over on either side is an error.

A table is a list of rows (our names, their names): a regular expression that matches our names whole, and the
template of theirs that its groups fill in. A row says what happens to the values by the form of its right side:

    "name"                 the same tensor
    ("name.{k}", count)    their `count` tensors are parts of ours along the first dimension
    WeightNorm(g, v)       ours is v * g / |v|, the norm over all but the first dimension

The first row that matches wins. Rows are written from our side, so that a model's shapes tell every name to expect.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class WeightNorm(NamedTuple):
    """Names of the magnitude and the direction that a weight is split into."""

    g: str
    v: str


class Reader(Protocol):
    """Tensors by name, read when asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def get(self, name: str) -> Tensor: ...


Row = tuple[str, str | tuple[str, int] | WeightNorm]


class Piece(NamedTuple):
    """One of their tensors: its shape, and what it is to ours."""

    shape: tuple[int, ...]
    ours: str
    part: int | None = None
    norm: WeightNorm | None = None


def expand(table: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Piece]:
    """Their tensors, by name, for our names and shapes. Raises ValueError for a name of ours that no row matches."""
    rows = [(re.compile(ours), theirs) for ours, theirs in table]
    pieces: dict[str, Piece] = {}
    for name, shape in shapes.items():
        found = next(((match, theirs) for row, theirs in rows if (match := row.fullmatch(name))), None)
        if found is None:
            raise ValueError(f"no row of the name table matches {name}")
        match, theirs = found
        if isinstance(theirs, WeightNorm):
            norm = WeightNorm(match.expand(theirs.g), match.expand(theirs.v))
            pieces[norm.g] = Piece((shape[0], *(1 for _ in shape[1:])), name, norm=norm)
            pieces[norm.v] = Piece(shape, name, norm=norm)
        elif isinstance(theirs, tuple):
            template, count = theirs
            # Parts of a matrix are blocks of rows; the parts of a stack lack its first dimension.
            part = (shape[0] // count, *shape[1:]) if shape[0] != count or len(shape) < 3 else shape[1:]
            for k in range(count):
                pieces[match.expand(template).format(k=k)] = Piece(part, name, part=k)
        else:
            pieces[match.expand(theirs)] = Piece(shape, name)
    return pieces


def check(pieces: Mapping[str, Piece], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise one ValueError that lists every tensor that is left over, missing or of a wrong shape."""
    lists = {
        "left over": sorted(shapes.keys() - pieces.keys()),
        "missing": sorted(pieces.keys() - shapes.keys()),
        "of a wrong shape": [
            f"{name} {tuple(shapes[name])}, expected {tuple(piece.shape)}"
            for name, piece in sorted(pieces.items())
            if name in shapes and tuple(shapes[name]) != tuple(piece.shape)
        ],
    }
    if any(lists.values()):
        text = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in lists.items() if names)
        raise ValueError(f"{where}: the tensors do not fit the configuration: {text}")


@torch.no_grad()
def fill(state: Mapping[str, Tensor], pieces: Mapping[str, Piece], reader: Reader) -> None:
    """Copy their tensors into ours, one at a time, in our dtype. Call check() first."""
    for name, piece in pieces.items():
        target = state[piece.ours]
        if piece.norm is not None:
            if name == piece.norm.v:
                # Folded in fp32 whatever the dtypes: transformers norms in the model's dtype at run time.
                g, v = reader.get(piece.norm.g).float(), reader.get(name).float()
                target.copy_(torch._weight_norm(v, g, 0))
        elif piece.part is not None:
            target.view(-1, *piece.shape)[piece.part].copy_(reader.get(name))
        else:
            target.copy_(reader.get(name))


def collect(state: Mapping[str, Tensor], pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """Their tensors of our values: fill() backwards. What is split shares no memory with ours; the rest does."""
    out: dict[str, Tensor] = {}
    for name, piece in pieces.items():
        ours = state[piece.ours].detach()
        if piece.norm is not None:
            # The norms come from the very kernel that divides by them, so that folding again gives the same weight.
            # They stay in fp32: rounded to half, they would not give back the same weight.
            g = torch._weight_norm_interface(ours.float(), ours.new_ones(len(ours), 1, 1).float(), 0)[1]
            g = g.view(len(ours), 1, 1)
            # A filter without a norm has any direction, and the magnitude 0.
            out[name] = g if name == piece.norm.g else ours.clone().masked_fill_(g == 0, 1)
        elif piece.part is not None:
            out[name] = ours.view(-1, *piece.shape)[piece.part].clone()
        else:
            out[name] = ours
    return out
