"""A checkpoint directory <-> a MusicGen: strict, one tensor at a time, moved into place when complete."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import checks
from ..decoder import DecoderConfig
from ..encodec import EncodecConfig
from ..fast import speed_up
from ..fast.int8 import quantize
from ..model import MusicGen
from ..t5 import Block, T5Config
from ..text import Tokenizer
from . import audiocraft, huggingface, mapping, source
from .adapter import files_in as adapter_files
from .files import WEIGHT_FILES, Choice, Spec, write_json, write_weights
from .release import write_release

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEMO = Path(__file__).parent.with_name("demo")  # the small checkpoint that ships with the package


def load(
    path: str | PathLike[str],
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    text_encoder: str | PathLike[str] | None = None,
    codec: str | PathLike[str] | None = None,
    adapter: bool | str | PathLike[str] | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    fast: bool = True,
) -> MusicGen:
    """Read a MusicGen saved by transformers (4.x, 5.x, the Hub's older files), audiocraft or save(), in eval mode.

    path: a directory, or "demo" for the small model that ships with the package (a directory of that name is "./demo").
    dtype: of the weights in memory, float32, bfloat16 or float16, whatever the file's. In float16 T5's `wo` stays
    float32, as in transformers 5. "int8": linear layers are quantised one after another as they are read, on CPUs, see
    fast/int8.py; the rest is float32.
    fast: put in the faster layers of fast/, which compute the same numbers but for rounding; False: the plain ones.
    Tensors of a .safetensors file that keep dtype and device are mapped, not read: a page is read when it is first used
    and copied when it is first written to. Do not write into such a file while the model is in use; to move another one
    into its place, as save() does, is safe.
    text_encoder and codec: the directories of what audiocraft's files only name, T5 always, the codec sometimes; None
    looks for one of that name inside and beside. Weight norm is folded.
    Of transformers' directory alone: adapter: True merges the LoRA adapter that lies beside the weights into them, the
    path of a directory the one in there, False leaves out one that lies beside, which is otherwise an error. variant:
    "fp32" reads model.fp32.safetensors or its like. use_safetensors: False reads .bin files, True refuses them.
    Raises FileNotFoundError for a directory or file that is not there; ValueError for malformed JSON, impossible
    configurations, and tensors that are left over, missing or of a wrong shape (all of them in one message).
    """
    path = DEMO if path == "demo" else Path(path)
    int8 = dtype == "int8"
    dtype = torch.float32 if int8 else dtype
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES} or 'int8', got {dtype!r}")
    try:
        torch.empty(0, device=str(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch has here, got {device!r}: {error}") from None
    opened = source.open_source(path, text_encoder, codec, choice=Choice(variant, use_safetensors, adapter))
    model = cast(MusicGen, opened.skeleton())
    pieces = opened.pieces(model.state_dict())
    model.tokenizer = opened.read_tokenizer()
    to_dtype(model, dtype)

    def fill(part: nn.Module, prefix: str = "") -> None:
        source.fill(part, pieces, opened.tensors, prefix=prefix, device=device, mapped=not int8)

    if int8:
        quantize(model, fill)
    fill(model)
    return (speed_up(model) if fast else model).eval()


def to_dtype(part: nn.Module, dtype: torch.dtype) -> None:
    """Convert a MusicGen or a part of one; in float16 T5's `wo` becomes float32."""
    part.to(dtype)
    if dtype == torch.float16:
        for block in part.modules():
            if isinstance(block, Block):
                block.ffn.wo.float()


LAYOUTS = ("transformers", "audiocraft")


def save(model: MusicGen, path: str | PathLike[str], layout: str = "transformers") -> None:
    """Write a model, and its tokenizer if it has one, as a directory that load() opens.

    layout: "transformers", which transformers opens too, or "audiocraft", the authors' own, which has a place for any
    delay pattern. Files are written beside and moved into place when all are complete. Raises ValueError for a model
    that the layout has no place for, or whose parts do not fit together, and where `path` holds what would be read in
    place of these: weights under other names, another layout, an adapter, or a processor_config.json for other audio;
    FileNotFoundError where the directory above it is not there.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    text, decoder, codec = model.text_encoder.config, model.decoder.config, model.codec.config
    checks.parts(text, decoder, codec)
    tensors = theirs(
        model.state_dict(), (audiocraft if layout == "audiocraft" else huggingface).table(text, decoder, codec),
        skeleton(text, decoder, codec),
    )  # fmt: skip
    stale = [name for name in STALE[layout] if (path / name).exists()]
    if stale:
        raise ValueError(f"path {path} holds other weights, {stale}: remove them or choose another directory")
    check_target(path)
    if model.tokenizer is None and Tokenizer.lies_in(path):
        raise ValueError(f"path {path} holds a tokenizer, this model has none: remove it or choose another directory")
    if layout == "audiocraft":
        settings = {
            audiocraft.CODEC: audiocraft.write_codec(codec),
            audiocraft.LM: audiocraft.write_decoder(text, decoder, codec),
        }
        with beside(path) as folder:
            write_release(folder, specs_of(tensors), settings, text, model.tokenizer)
        return
    dtype = str(model.decoder.norm.weight.dtype).removeprefix("torch.")
    files = {
        "config.json": huggingface.write_config(text, decoder, codec, dtype),
        "generation_config.json": huggingface.write_generation(decoder, codec),
        "preprocessor_config.json": write_processor(path, decoder, codec),
    }
    write_directory(path, tensors, files, model.tokenizer)


STALE = {"transformers": WEIGHT_FILES[1:], "audiocraft": ["config.json", *WEIGHT_FILES]}
SHARD = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")


def check_target(path: Path) -> None:
    """Raise for a path that no model can be saved to: see save()."""
    check_adapter(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {path.parent}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"path must be a directory, got the file {path}")


def write_processor(path: Path, decoder: DecoderConfig, codec: EncodecConfig) -> dict[str, Any]:
    """The preprocessor_config.json of a directory. Raises ValueError where another file of it is read in its place and
    is for other audio."""
    if (other := source.first_processor(path)) is not None:
        source.check_processor(*other, {"feature_size": decoder.channels, "sampling_rate": codec.sampling_rate})
    return huggingface.write_processor(decoder.channels, codec, processor_class="MusicgenProcessor")


def write_directory(
    path: Path,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Mapping[str, Any]],
    tokenizer: Tokenizer | None = None,
    *,
    shard_size: int | None = None,
    safetensors: bool = True,
    over: bool = False,
) -> None:
    """Write tensors, JSON files and a tokenizer as a directory of transformers, whose files appear together.

    shard_size: bytes of a shard, None for one file. safetensors: False writes .bin files. over: weights that lie there
    in another form are taken away.
    """
    with beside(path, over) as folder:
        write_weights(folder, specs_of(tensors), shard_size, safetensors)
        for name, content in files.items():
            write_json(folder / name, content)
        if tokenizer is not None:
            tokenizer.save(folder)


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Tensors that are there, for who writes one after another."""
    return {name: Spec(t.dtype, tuple(t.shape), t.contiguous) for name, t in tensors.items()}


def skeleton(text: T5Config, decoder: DecoderConfig, codec: EncodecConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a MusicGen of these sizes, by our names."""
    with source.without_values():
        return {name: tuple(tensor.shape) for name, tensor in MusicGen(text, decoder, codec).state_dict().items()}


def theirs(
    state: Mapping[str, Tensor], table: list[mapping.Row], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Tensors of ours under the names of a table, with what trained the codebooks.

    Raises ValueError where they are not of these shapes, which are those that the configuration says: a part was
    replaced by one of other sizes, or an adapter has put layers of its own into the model.
    """
    wrong = sorted(n for n in state.keys() ^ shapes.keys() if "lora_" not in n)
    wrong += [f"{n} {tuple(state[n].shape)}" for n in shapes if n in state and tuple(state[n].shape) != shapes[n]]
    adapter = "" if all(".base_layer." not in n for n in state) else " (merge the adapter first: merge_and_unload())"
    if wrong:
        some = ", ".join(wrong[:5])
        raise ValueError(f"the model's tensors must be those of its configuration, differ in {some}{adapter}")
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    tensors = mapping.collect(state, mapping.expand(table, dict(shapes)))
    return tensors | statistics({n: t for n, t in tensors.items() if n.endswith(("codebook.embed", "_codebook.embed"))})


def check_adapter(path: Path) -> None:
    """Raise ValueError for a directory with an adapter, which is to other weights than are to be written."""
    if files := adapter_files(path):
        raise ValueError(f"path {path} holds an adapter, {files}: remove it or choose another directory")


def statistics(books: dict[str, Tensor]) -> dict[str, Tensor]:
    """What both layouts have beside codebooks: the statistics that trained them, here those of codebooks
    whose words were used once each."""
    out: dict[str, Tensor] = {}
    for name, book in books.items():
        prefix = name.removesuffix("embed")
        out |= {prefix + "inited": book.new_ones(1), prefix + "cluster_size": book.new_ones(len(book))}
        out[prefix + "embed_avg"] = book.clone()
    return out


@contextmanager
def beside(path: Path, over: bool = False) -> Iterator[Path]:
    """A temporary folder whose files move into `path` at the end, and vanish if anything fails before.

    over: weights in `path` that are not among them go.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = folder / "new", folder / "old"
    try:
        new.mkdir()
        old.mkdir()
        yield new
        if path.exists():
            _replace(path, new, old, over)
        else:
            os.rename(new, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(path: Path, new: Path, old: Path, over: bool) -> None:
    """Move the files of `new` to `path`, all of them or none; what was there meanwhile lies in `old`."""
    names = [file.name for file in new.iterdir()]
    there = [file.name for file in path.iterdir() if file.name in WEIGHT_FILES or SHARD.fullmatch(file.name)]
    gone = [name for name in there if over and name not in names]
    try:
        for name in gone:
            os.replace(path / name, old / name)
        for name in names:
            if (path / name).exists():
                os.replace(path / name, old / name)
            os.replace(new / name, path / name)
    except BaseException:
        for name in [*gone, *names]:
            if (old / name).exists():
                os.replace(old / name, path / name)
            elif name not in gone and not (new / name).exists():
                (path / name).unlink()
        raise
