"""A checkpoint directory <-> a MusicGen: strict, one tensor at a time, moved into place when complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..fast import speed_up
from ..fast.int8 import quantize
from ..model import MusicGen
from ..t5 import Block
from ..text import Tokenizer
from . import audiocraft, huggingface, mapping, source
from .adapter import files_in as adapter_files
from .files import WEIGHT_FILES, Choice, Spec, write_json
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
    configurations, and tensors that are left over, missing or of a wrong shape (in one message: all of them, or the
    first dozens and how many more).
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
    that the layout has no place for, and where `path` holds what would be read in place of these: weights under other
    names, another layout, an adapter, or a processor_config.json for other audio; FileNotFoundError where the directory
    above it is not there.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    stale = [name for name in STALE[layout] if (path / name).exists()]
    if stale:
        raise ValueError(f"path {path} holds other weights, {stale}: remove them or choose another directory")
    check_adapter(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {path.parent}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"path must be a directory, got the file {path}")
    if model.tokenizer is None and Tokenizer.lies_in(path):
        raise ValueError(f"path {path} holds a tokenizer, this model has none: remove it or choose another directory")
    write = _save_release if layout == "audiocraft" else _save_directory
    write(model, path)


STALE = {"transformers": WEIGHT_FILES[1:], "audiocraft": ["config.json", *WEIGHT_FILES]}


def _save_directory(model: MusicGen, path: Path) -> None:
    text, decoder, codec = model.text_encoder.config, model.decoder.config, model.codec.config
    dtype = str(model.decoder.norm.weight.dtype).removeprefix("torch.")
    files = {
        "config.json": huggingface.write_config(text, decoder, codec, dtype),
        "generation_config.json": huggingface.write_generation(decoder, codec),
        "preprocessor_config.json": huggingface.write_processor(
            decoder.channels, codec, processor_class="MusicgenProcessor"
        ),
    }
    if (other := source.first_processor(path)) is not None:  # it would be read in place of the one above
        source.check_processor(*other, {"feature_size": decoder.channels, "sampling_rate": codec.sampling_rate})
    tensors = _tensors(model, huggingface.table(text, decoder, codec))
    with beside(path) as folder:
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        for name, content in files.items():
            write_json(folder / name, content)
        if model.tokenizer is not None:
            model.tokenizer.save(folder)


def _save_release(model: MusicGen, path: Path) -> None:
    text, decoder, codec = model.text_encoder.config, model.decoder.config, model.codec.config
    settings = {
        audiocraft.CODEC: audiocraft.write_codec(codec),
        audiocraft.LM: audiocraft.write_decoder(text, decoder, codec),
    }
    tensors = _tensors(model, audiocraft.table(text, decoder, codec))
    specs = {name: Spec(t.dtype, tuple(t.shape), t.contiguous) for name, t in tensors.items()}
    with beside(path) as folder:
        write_release(folder, specs, settings, text, model.tokenizer)


def _tensors(model: MusicGen, table: list[mapping.Row]) -> dict[str, Tensor]:
    """A model's tensors under the names of a table, with what trained its codebooks."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors = mapping.collect(state, mapping.expand(table, {n: tuple(t.shape) for n, t in state.items()}))
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
def beside(path: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `path` at the end, and vanish if anything fails before."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = folder / "new", folder / "old"
    try:
        new.mkdir()
        old.mkdir()
        yield new
        if path.exists():
            _replace(path, new, old)
        else:
            os.rename(new, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(path: Path, new: Path, old: Path) -> None:
    """Move the files of `new` to `path`, all of them or none; what was there meanwhile lies in `old`."""
    names = [file.name for file in new.iterdir()]
    try:
        for name in names:
            if (path / name).exists():
                os.replace(path / name, old / name)
            os.replace(new / name, path / name)
    except BaseException:
        for name in names:
            if (old / name).exists():
                os.replace(old / name, path / name)
            elif not (new / name).exists():
                (path / name).unlink()
        raise
