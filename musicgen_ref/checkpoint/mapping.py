"""Applies a name table, both ways; a tensor left over on either side is an error.

A table is a list of rows (our names, their names). The left side is a regular expression that matches a name of ours as
a whole, and the right side a template of theirs, which the groups of the expression fill in. The form of the right side
says what happens to the values:

    "name"                 the same tensor
    ("name.{k}", count)    their `count` tensors are parts of ours along the first dimension
    Fused(name, i, parts)  ours is part `i` of `parts` of theirs along the first dimension
    WeightNorm(g, v)       ours is v * g / |v|, the norm over all but the first dimension

The first row that matches counts. Rows are written from our side, so that a model's shapes say which of their names to
expect. Two tables for the same names of ours translate a checkpoint from one layout to the other directly: weights are
not folded on the way.
"""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..messages import listed


class WeightNorm(NamedTuple):
    """The names of the two tensors that a weight is split into: g, the magnitude, and v, the direction."""

    g: str
    v: str


class Fused(NamedTuple):
    """The name of a tensor that holds several of ours, how many (`parts`), and which of them the row is about."""

    name: str
    part: int
    parts: int


class Reader(Protocol):
    """Tensors by name. get() reads one into memory; any thread may call it.

    mapped: True leaves the tensor in the file, mapped into memory, if that is possible.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]: ...

    def get(self, name: str, mapped: bool = False) -> Tensor: ...


Row = tuple[str, str | tuple[str, int] | WeightNorm | Fused]


class Piece(NamedTuple):
    """One of their tensors: its shape, and how it relates to ours.

    ours: the tensor of ours that it is, or is a part of. part: which part, where ours has several of theirs. norm: the
    names of both tensors, where ours is split by a weight norm. fused: all tensors of ours, where it holds several.
    """

    shape: tuple[int, ...]
    ours: str
    part: int | None = None
    norm: WeightNorm | None = None
    fused: tuple[str, ...] = ()


def expand(table: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Piece]:
    """Their tensors, by name, for our names and shapes. Raises ValueError for a name of ours that no row matches."""
    rows = [(re.compile(ours), theirs) for ours, theirs in table]
    pieces: dict[str, Piece] = {}
    fused: dict[str, dict[int, str]] = {}
    for name, shape in shapes.items():
        found = next(((match, theirs) for row, theirs in rows if (match := row.fullmatch(name))), None)
        if found is None:
            raise ValueError(f"no row of the name table matches {name}")
        match, theirs = found
        if isinstance(theirs, WeightNorm):
            norm = WeightNorm(match.expand(theirs.g), match.expand(theirs.v))
            pieces[norm.g] = Piece((shape[0], *(1 for _ in shape[1:])), name, norm=norm)
            pieces[norm.v] = Piece(shape, name, norm=norm)
        elif isinstance(theirs, Fused):
            whole = match.expand(theirs.name)
            held = fused.setdefault(whole, {})
            held[theirs.part] = name
            stacked = (theirs.parts * shape[0], *shape[1:])
            pieces[whole] = Piece(stacked, name, fused=tuple(held[i] for i in sorted(held)))
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
    """Raise one ValueError that lists the tensors that are left over, missing or of a wrong shape. It lists all of
    them, or, if there are dozens, the first ones and how many more there are.

    Beside a name that is left over the message shows the missing names that are most like it.
    """
    missing = sorted(pieces.keys() - shapes.keys())
    extra = sorted(shapes.keys() - pieces.keys())

    def near(name: str) -> str:
        # With more than some dozens of both, comparing all pairs would take too long.
        close = get_close_matches(name, missing, n=2) if len(extra) * len(missing) <= 2500 else []
        return f"{name} (nearest missing: {' or '.join(close)})" if close else name

    lists = {
        "left over": [near(name) for name in extra],
        "missing": missing,
        "of a wrong shape": [
            f"{name} {tuple(shapes[name])}, expected {tuple(piece.shape)}"
            for name, piece in sorted(pieces.items())
            if name in shapes and tuple(shapes[name]) != tuple(piece.shape)
        ],
    }
    if any(lists.values()):
        text = "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in lists.items() if names)
        raise ValueError(f"{where}: the tensors do not fit the configuration: {text}")


def read(
    like: Mapping[str, Tensor],
    pieces: Mapping[str, Piece],
    reader: Reader,
    device: torch.device | str = "cpu",
    mapped: bool = False,
) -> dict[str, Tensor]:
    """Our tensors, made from theirs, in our dtypes; as many at a time as torch has threads. Call check() first.

    like: tensors with our names, shapes and dtypes; they may be some of the model's, and no others are read. A tensor
    that is the same in both layouts is the reader's own, not a copy. mapped: True leaves tensors of the right dtype in
    the file.
    """
    out: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}  # for each of their names, the tensor of `like` that it goes into
    for name, piece in pieces.items():
        wanted = [ours for ours in piece.fused or (piece.ours,) if ours in like]
        if not wanted or (piece.norm is not None and name == piece.norm.g):  # the magnitude comes with the direction
            continue
        target = targets[name] = like[wanted[0]]
        if piece.part is not None and piece.ours not in out:
            out[piece.ours] = torch.empty(target.shape, dtype=target.dtype, device=device)

    @torch.no_grad()
    def put(name: str) -> None:
        piece, target = pieces[name], targets[name]
        tensor = reader.get(name, mapped=mapped and reader.dtypes[name] == target.dtype)
        if piece.fused:
            parts = zip(piece.fused, tensor.chunk(len(piece.fused)), strict=True)
            out.update((ours, part.to(device, target.dtype, copy=True)) for ours, part in parts if ours in like)
        elif piece.part is not None:
            out[piece.ours].view(-1, *piece.shape)[piece.part].copy_(tensor)
        else:
            if piece.norm is not None:
                # Folded in fp32 whatever the dtypes; transformers normalises in the model's dtype at run time.
                tensor = torch._weight_norm(tensor.float(), reader.get(piece.norm.g).float(), 0)
            out[piece.ours] = tensor.to(device, target.dtype)

    # The largest first: when most of our tensors are in memory, only small ones of theirs are beside them.
    names = sorted(targets, key=lambda name: -targets[name].numel())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(put, names):  # raises the first error; calls that have not begun are cancelled
            pass
    return out


def collect(state: Mapping[str, Tensor], pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """Their tensors, made from ours: the inverse of read(). Tensors that are split are copies; others may share memory
    with ours."""
    out: dict[str, Tensor] = {}
    for name, piece in pieces.items():
        ours = state[piece.ours].detach()
        if piece.norm is not None:
            # The norms come from the kernel that also divides by them, and stay in fp32: so folding again gives the
            # same weight to the bit. Rounded to half precision they would not.
            g = torch._weight_norm_interface(ours.float(), ours.new_ones(len(ours), 1, 1).float(), 0)[1]
            g = g.view(len(ours), 1, 1)
            # A filter of zeros has no direction: any will do, since its magnitude is 0.
            out[name] = g if name == piece.norm.g else ours.clone().masked_fill_(g == 0, 1)
        elif piece.part is not None:
            out[name] = ours.view(-1, *piece.shape)[piece.part].clone()
        elif piece.fused:
            out[name] = torch.cat([state[part].detach() for part in piece.fused])
        else:
            out[name] = ours
    return out


Atom = tuple[str, int | str | None]


def _atoms(name: str, piece: Piece) -> list[Atom]:
    # The smallest units, which no table splits: our tensor, a part of it, or the magnitude or direction of its norm.
    if piece.norm is not None:
        return [(piece.ours, "g" if name == piece.norm.g else "v")]
    return [(ours, piece.part) for ours in piece.fused or (piece.ours,)]


class Origin(NamedTuple):
    """Where values come from: part `part` of `parts` of the tensor of that name, along the first dimension."""

    name: str
    part: int
    parts: int


def translate(source: Mapping[str, Piece], target: Mapping[str, Piece]) -> dict[str, list[Origin]]:
    """For each tensor of the target layout, the parts of tensors of the source layout that make it; see assemble().

    source, target: the pieces of two tables for the same names and shapes of ours. Raises ValueError where the source
    lacks a part of the target.
    """
    found: dict[Atom, Origin] = {}
    for name, piece in source.items():
        atoms = _atoms(name, piece)
        found |= {atom: Origin(name, i, len(atoms)) for i, atom in enumerate(atoms)}
    out = {}
    for name, piece in target.items():
        atoms = _atoms(name, piece)
        if absent := [atom for atom in atoms if atom not in found]:
            raise ValueError(f"{name} holds {absent}, which nothing in the other layout does")
        out[name] = [found[atom] for atom in atoms]
    return out


def assemble(origins: Iterable[Origin], reader: Reader) -> Tensor:
    """The tensor that these parts make, bit for bit."""
    tensors = [reader.get(name).chunk(parts)[part] for name, part, parts in origins]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
