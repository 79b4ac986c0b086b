"""Two checkpoints side by side: what both compute from the same input, and how far apart it is."""

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from musicgen_ref.checkpoint import load, load_codec
from musicgen_ref.checkpoint.files import Choice
from musicgen_ref.checkpoint.source import open_source
from musicgen_ref.encodec import Chunk
from musicgen_ref.messages import shown
from musicgen_ref.model import GenerationOptions, MusicGen

TOKENS, FRAMES = 11, 12


class Difference(NamedTuple):
    """Of one output: its largest absolute value, the largest difference, and whether the two agree."""

    what: str
    scale: float
    largest: float
    agree: bool


@torch.no_grad()
def outputs(path: str | PathLike[str]) -> dict[str, Tensor]:
    """What a checkpoint computes in float32 from an input that depends on its sizes alone.

    A MusicGen: text states, logits with and without text, greedy codes with guidance 3, then what its codec computes:
    latents, codes and audio.
    """
    opened = open_source(path, alone=True)
    generator = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    if opened.text is None or opened.decoder is None:
        codec = load_codec(path)
    else:
        sizes = opened.text.vocab_size, opened.decoder.codebooks, opened.decoder.vocab_size
        del opened
        model: MusicGen = load(path)
        codec = model.codec
        ids = torch.randint(min(3, sizes[0] - 1), sizes[0], (2, TOKENS), generator=generator)
        mask = torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS // 2]])
        codes = torch.randint(0, sizes[2] + 1, (2, sizes[1], FRAMES), generator=generator)
        out["text states"] = model.text_encoder(ids, mask) * mask[..., None]
        out["logits with text"] = model.decoder(codes, *model.encode_text((ids, mask)))
        out["logits without text"] = model.decoder(codes)
        options = GenerationOptions(frames=FRAMES, greedy=True, guidance_scale=3.0)  # whatever the two recommend
        out["greedy codes"] = model.generate((ids, mask), options).codes
    c = codec.config
    audio = torch.rand(1, c.channels, c.hop * FRAMES - 1, generator=generator) * 2 - 1
    chunk: Chunk = codec.encode(audio, c.codebooks)[0]
    out["latents of the codec"] = codec.encoder(audio)
    out["codes of the codec"] = chunk.codes
    out["audio of the codec"] = codec.decode([chunk])
    return out


def verify(source: str | PathLike[str], target: str | PathLike[str], tolerance: float = 1e-5) -> list[Difference]:
    """Compare two checkpoints of any layout, one after the other in memory: codes must be equal, numbers within
    `tolerance` times the largest of them. Weights that are not all finite are a row of their own, in which nothing
    agrees.

    Raises FileNotFoundError or ValueError as open_source() does, and ValueError for a tolerance that is no finite
    number from 0, and where the two are not of the same sizes.
    """
    if type(tolerance) not in (int, float) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number from 0, got {shown(tolerance)}")
    ours, theirs = outputs(Path(source)), outputs(Path(target))
    _same_shapes(ours, theirs, f"{source} and {target}")
    rows = [
        Difference(f"{path}: {wrong}", math.nan, math.nan, False)
        for path in (source, target)
        if (wrong := _not_finite(path))
    ]
    for what, one in ours.items():
        other = theirs[what]
        scale, largest = float(one.abs().max()), float((one.double() - other.double()).abs().max())
        # Written so that NaN disagrees.
        agree = torch.equal(one, other) if not one.is_floating_point() else largest <= tolerance * max(scale, 1e-30)
        rows.append(Difference(what, scale, largest, agree))
    return rows


def _not_finite(path: str | PathLike[str]) -> str:
    opened = open_source(path, alone=True, choice=Choice(tested=False))
    return opened.not_finite(opened.pieces(opened.skeleton().state_dict()))


def _same_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], where: str) -> None:
    for what in sorted(ours.keys() | theirs.keys()):
        one, other = (tuple(side[what].shape) if what in side else None for side in (ours, theirs))
        if one != other:
            raise ValueError(f"{where} are not of the same sizes: {what} {one} and {other}")
