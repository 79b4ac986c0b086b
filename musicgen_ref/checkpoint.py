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

from weights_convert import huggingface, mapping, source
from weights_convert.adapter import files_in as adapter_files
from weights_convert.files import WEIGHT_FILES, Choice, write_json

from .model import MusicGen
from .quantize import quantize
from .t5 import Block
from .text import Tokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEMO = Path(__file__).with_name("demo")  # the small checkpoint that ships with the package


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
) -> MusicGen:
    """Read a MusicGen saved by transformers (4.x, 5.x, the Hub's older files), audiocraft or save(), in eval mode.

    path: a directory, or "demo" for the small model that ships with the package (a directory of that name is "./demo").
    dtype: of the weights in memory, float32, bfloat16 or float16, whatever the file's. In float16 T5's `wo` stays
    float32, as in transformers 5. "int8": linear layers are quantised one after another as they are read (quantize.py),
    on CPUs; the rest is float32.
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
    return model.eval()


def to_dtype(part: nn.Module, dtype: torch.dtype) -> None:
    """Convert a MusicGen or a part of one; in float16 T5's `wo` becomes float32."""
    part.to(dtype)
    if dtype == torch.float16:
        for block in part.modules():
            if isinstance(block, Block):
                block.ffn.wo.float()


def save(model: MusicGen, path: str | PathLike[str]) -> None:
    """Write a model, and its tokenizer if it has one, as a directory that transformers and load() open.

    Files are written beside and moved into place when all are complete. Raises ValueError where `path` holds what would
    be read in place of these: weights under other names, an adapter, or a processor_config.json for other audio;
    FileNotFoundError where the directory above it is not there.
    """
    path = Path(path)
    stale = [name for name in WEIGHT_FILES[1:] if (path / name).exists()]
    if stale:
        raise ValueError(f"path {path} holds other weights, {stale}: remove them or choose another directory")
    check_adapter(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {path.parent}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"path must be a directory, got the file {path}")
    if model.tokenizer is None and Tokenizer.lies_in(path):
        raise ValueError(f"path {path} holds a tokenizer, this model has none: remove it or choose another directory")
    text, decoder, codec = model.text_encoder.config, model.decoder.config, model.codec.config
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    pieces = mapping.expand(huggingface.table(text, decoder, codec), {n: tuple(t.shape) for n, t in state.items()})
    tensors = mapping.collect(state, pieces)
    tensors |= statistics({name: t for name, t in tensors.items() if name.endswith(".codebook.embed")})
    if (other := source.first_processor(path)) is not None:  # it would be read in place of the one below
        source.check_processor(*other, {"feature_size": decoder.channels, "sampling_rate": codec.sampling_rate})
    dtype = str(model.decoder.norm.weight.dtype).removeprefix("torch.")
    files = {
        "config.json": huggingface.write_config(text, decoder, codec, dtype),
        "generation_config.json": huggingface.write_generation(decoder, codec),
        "preprocessor_config.json": huggingface.write_processor(
            decoder.channels, codec, processor_class="MusicgenProcessor"
        ),
    }
    with beside(path) as folder:
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        for name, content in files.items():
            write_json(folder / name, content)
        if model.tokenizer is not None:
            model.tokenizer.save(folder)


def check_adapter(path: Path) -> None:
    """Raise ValueError for a directory with an adapter, which is to other weights than are to be written."""
    if files := adapter_files(path):
        raise ValueError(f"path {path} holds an adapter, {files}: remove it or choose another directory")


def statistics(books: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers expects to find beside codebooks: the statistics that trained them, here those of codebooks
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
