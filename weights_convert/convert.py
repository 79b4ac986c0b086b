"""Conversions between checkpoint layouts: one tensor in memory at a time, the directory in place when it is complete.

Values go from one layout to the other as they are: weight norm stays split, and nothing is rounded unless a dtype is
asked for.
"""

import re
from collections.abc import Mapping
from functools import partial, reduce
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_ref import checks
from musicgen_ref.checkpoint import audiocraft, hub, huggingface, mapping
from musicgen_ref.checkpoint.atomic import CONFIG, KNOWN, beside, check_target, steady
from musicgen_ref.checkpoint.files import (
    PLAIN,
    WEIGHTS,
    Choice,
    Spec,
    Tensors,
    dtype_name,
    read_json,
    read_small,
    write_json,
    write_weights,
    writing,
)
from musicgen_ref.checkpoint.mapping import Piece, Row
from musicgen_ref.checkpoint.release import write_release
from musicgen_ref.checkpoint.source import Source, codec_name, is_audiocraft, open_source, text_name
from musicgen_ref.messages import shown
from musicgen_ref.text import Tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HUB = "hub"  # in place of a directory: download the T5, or the codec, that the checkpoint names


def from_audiocraft(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    text_encoder: str | PathLike[str] | None = None,
    codec: str | PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """audiocraft's directory to one in transformers' layout: a MusicGen, or an EnCodec where there is only that.

    text_encoder: T5's directory, or "hub" to download it; None looks inside and beside the source. codec: likewise,
    that of the codec where the source holds its name alone, in either layout. dtype, shard_size, overwrite: as in
    from_huggingface(); without a dtype every tensor keeps its own (the release's decoder is float16).
    Raises FileNotFoundError, or ValueError naming the file and what in it does not fit.
    """
    checks.paths(source=source, target=target)
    source, target = Path(source), Path(target)
    _check_arguments(source, dtype, shard_size)
    if (source / CONFIG).exists():
        raise ValueError(f"{source}: is in transformers' layout already")
    check_target(target, [source], overwrite)
    if text_encoder == HUB:
        text_encoder = download(text_name(source))
    if codec == HUB:
        codec = download(codec_name(source))
    opened, tokenizer = _opened(source, text_encoder, codec)
    check_target(target, opened.others, overwrite)
    specs = translated(opened, _table(opened), dtype)
    stored = dtype_name(specs, dtype)
    if opened.text is None or opened.decoder is None:
        prefix = huggingface.CODEC
        specs = {name.removeprefix(prefix): spec for name, spec in specs.items()}
        config = {"architectures": ["EncodecModel"], "dtype": stored} | huggingface.write_codec(opened.codec)
        files = {"preprocessor_config.json": huggingface.write_processor(opened.codec.channels, opened.codec)}
    else:
        try:
            config = huggingface.write_config(opened.text, opened.decoder, opened.codec, stored)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        # The release generates with top-k 250, which transformers does only if told.
        files = {
            "generation_config.json": huggingface.write_generation(opened.decoder, opened.codec, top_k=250),
            "preprocessor_config.json": huggingface.write_processor(
                opened.decoder.channels, opened.codec, processor_class="MusicgenProcessor"
            ),
        }
    with beside(target, _bytes(specs), keep=False) as folder:
        write_weights(folder, specs, shard_size)
        for name, content in {"config.json": config, **files}.items():
            write_json(folder / name, content)
        if tokenizer is not None:
            tokenizer.save(folder)


def from_huggingface(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    shard_size: int | None = None,
    overwrite: bool = False,
    adapter: bool | str | PathLike[str] | None = None,
    variant: str | None = None,
) -> None:
    """transformers' directory to one in safetensors with today's names; every other file of a checkpoint is kept.

    dtype: of the weights, a floating-point one of 16, 32 or 64 bits; None keeps each tensor's. A narrower one gives the
    very values that loading in it gives: the codec's weights are folded, rounded and split again, and in float16 T5's
    `wo` stays float32. shard_size: bytes of a file at most, 1 or more. overwrite: replace a target that is there.
    adapter, variant: which weights, as in MusicGen.from_pretrained(); an adapter that is merged is no longer beside
    them.
    Raises FileNotFoundError, or ValueError naming the argument or the file and what in it does not fit, before anything
    is written.
    """
    checks.paths(source=source, target=target)
    source, target = Path(source), Path(target)
    _check_arguments(source, dtype, shard_size)
    if is_audiocraft(source):
        raise ValueError(f"{source}: is in audiocraft's layout, not transformers'")
    check_target(target, [source], overwrite)

    def read() -> tuple[Source, dict[str, Any], dict[str, bytes]]:
        opened = open_source(source, alone=True, statistics=True, choice=Choice(variant, adapter=adapter))
        names = [file.name for file in sorted(source.iterdir()) if file.is_file() and KNOWN.fullmatch(file.name)]
        others = {name: read_small(source / name) for name in names if name != CONFIG and not _is_weights(name)}
        return opened, read_json(source / CONFIG), others

    opened, config, others = steady(source, read)
    specs = translated(opened, _table(opened), dtype)
    if dtype is not None:
        for section in (config, *(part for part in config.values() if isinstance(part, dict))):
            if section is config or {"dtype", "torch_dtype"} & section.keys():
                section.pop("torch_dtype", None)
                section["dtype"] = _name(dtype)
    if opened.decoder is None:
        specs = {name.removeprefix(huggingface.CODEC): spec for name, spec in specs.items()}
    with beside(target, _bytes(specs), keep=False) as folder:
        write_weights(folder, specs, shard_size)
        write_json(folder / CONFIG, config)
        for name, content in others.items():
            with writing(folder / name) as written:
                written.write(content)


def to_audiocraft(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    overwrite: bool = False,
    adapter: bool | str | PathLike[str] | None = None,
    variant: str | None = None,
) -> None:
    """transformers' directory to audiocraft's: state_dict.bin, compression_state_dict.bin, T5 in a directory inside.

    The xp.cfg of both files has what builds the models, and nothing of how they were trained. An EnCodec alone gives
    the second file alone. adapter, variant: as in from_huggingface(). Raises ValueError for a model that the layout has
    no place for.
    """
    checks.paths(source=source, target=target)
    source, target = Path(source), Path(target)
    _check_arguments(source)
    if is_audiocraft(source):
        raise ValueError(f"{source}: is in audiocraft's layout already")
    check_target(target, [source], overwrite)
    opened, tokenizer = _opened(source, choice=Choice(variant, adapter=adapter))
    text, decoder, codec = opened.text, opened.decoder, opened.codec
    try:
        settings = {audiocraft.CODEC: audiocraft.write_codec(codec)}
        if text is not None and decoder is not None:
            settings[audiocraft.LM] = audiocraft.write_decoder(text, decoder, codec)
            table = audiocraft.table(text, decoder, codec)
        else:
            table = audiocraft.codec_table(codec)
    except ValueError as error:
        raise ValueError(f"{source / 'config.json'}: {huggingface.in_their_names(error)}") from None
    specs = translated(opened, table)
    with beside(target, _bytes(specs), keep=False) as folder:
        write_release(folder, specs, settings, text, tokenizer)


def _opened(
    source: Path,
    text_encoder: str | PathLike[str] | None = None,
    codec: str | PathLike[str] | None = None,
    choice: Choice = PLAIN,
) -> tuple[Source, Tokenizer | None]:
    """A checkpoint with its statistics, and its tokenizer, of one state of the directory."""

    def read() -> tuple[Source, Tokenizer | None]:
        opened = open_source(source, text_encoder, codec, alone=True, statistics=True, choice=choice)
        return opened, opened.read_tokenizer()

    return steady(source, read)


def _check_arguments(source: Path, dtype: torch.dtype | None = None, shard_size: int | None = None) -> None:
    """Raise FileNotFoundError for what is no directory; ValueError for a dtype of which no model could be loaded, and a
    size that no file could have."""
    if not source.is_dir():
        raise FileNotFoundError(f"no such checkpoint directory: {source}")
    if dtype is not None and dtype not in WEIGHTS:
        raise ValueError(f"dtype must be None or one of {WEIGHTS}, got {shown(dtype)}")
    if shard_size is not None and (type(shard_size) is not int or shard_size < 1):
        raise ValueError(f"shard_size must be None or a whole number of bytes above 0, got {shown(shard_size)}")


def download(name: str) -> Path:
    """Fetch the T5 or the EnCodec of that name from the Hub; the directory it is in then. Raises as hub.download()."""
    return hub.download(name, PLAIN)


def translated(opened: Source, table: list[Row], dtype: torch.dtype | None = None) -> dict[str, Spec]:
    """The tensors of an opened checkpoint under another table's names, to be made one by one.

    dtype: None keeps each tensor's. Raises ValueError that lists every tensor that is left over, missing or of a wrong
    shape.
    """
    state = opened.skeleton().state_dict()
    source = opened.pieces(state, statistics=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()} | huggingface.statistics(opened.codec)
    target = mapping.expand(table, shapes)
    given = {part for piece in source.values() for part in (piece.ours, *piece.fused)}
    origins = mapping.translate(source, {name: piece for name, piece in target.items() if piece.ours in given})
    specs = {}
    for name, piece in target.items():
        if name in origins:
            kept = reduce(torch.promote_types, (opened.tensors.dtypes[origin.name] for origin in origins[name]))
            spec = Spec(kept, piece.shape, partial(mapping.assemble, origins[name], opened.tensors))
            specs[name] = spec if dtype is None else _cast(spec, name, piece, source, opened.tensors, dtype)
        else:  # a statistic that the source lacks: that of a codebook whose words were used once each
            k, what = piece.ours.split(".")[2:]
            book = next(n for n, p in target.items() if (p.ours, p.part) == ("codec.quantizer.codebooks", int(k)))
            make = specs[book].make if what == "embed_avg" else partial(torch.ones, piece.shape)
            specs[name] = Spec(specs[book].dtype, piece.shape, make)
    return specs


def _cast(
    spec: Spec, name: str, piece: Piece, source: Mapping[str, Piece], tensors: Tensors, dtype: torch.dtype
) -> Spec:
    """The tensor in another dtype, with the value that a model loaded in that has."""
    if piece.norm is None:
        wide = dtype == torch.float16 and re.fullmatch(r"text_encoder\..+\.ffn\.wo\.weight", piece.ours)
        return spec._replace(dtype=torch.float32 if wide and spec.dtype != dtype else dtype)
    parts = {n: other for n, other in source.items() if other.ours == piece.ours}
    g, v = next(other.norm for other in parts.values() if other.norm is not None)
    if tensors.dtypes[v] == dtype:
        return spec
    if all(torch.promote_types(tensors.dtypes[n], dtype) == dtype for n in (g, v)):  # wider, so no value changes
        return spec._replace(dtype=dtype)
    norm, shape = piece.norm, tensors.shapes[v]

    def make() -> Tensor:
        folded = mapping.read({piece.ours: torch.empty(shape, dtype=dtype, device="meta")}, parts, tensors)
        return mapping.collect(folded, {n: Piece(shape, piece.ours, norm=norm) for n in norm})[name]

    return Spec(torch.float32 if name == norm.g else dtype, spec.shape, make)


def _table(opened: Source) -> list[Row]:
    if opened.text is None or opened.decoder is None:
        return huggingface.codec_table(opened.codec)
    return huggingface.table(opened.text, opened.decoder, opened.codec)


def _bytes(specs: Mapping[str, Spec]) -> int:
    return sum(spec.size for spec in specs.values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".index.json"))
