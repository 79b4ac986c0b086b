"""A directory in transformers' layout <-> a MusicGen: strict, one tensor at a time, moved into place when complete."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from weights_convert import huggingface, mapping

from .decoder import DecoderConfig
from .encodec import EncodecConfig
from .model import GenerationOptions, MusicGen
from .t5 import Block, T5Config
from .text import Tokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEMO = Path(__file__).with_name("demo")  # the small checkpoint that ships with the package


def load(
    path: str | PathLike[str], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> MusicGen:
    """Read a MusicGen saved by transformers (4.x, 5.x, the Hub's older files) or by save(), in eval mode.

    path: a directory, or "demo" for the small model that ships with the package (a directory of that name is "./demo").
    dtype: of the weights in memory, float32, bfloat16 or float16, whatever the file's. In float16 T5's `wo` stays
    float32, as in transformers 5.
    Weight norm is folded. Raises FileNotFoundError for a directory or file that is not there; ValueError for
    malformed JSON, impossible configurations, and tensors that are left over, missing or of a wrong shape (all of
    them in one message).
    """
    path = DEMO if path == "demo" else Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype}")
    try:
        torch.empty(0, device=str(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch has here, got {device!r}: {error}") from None
    text, decoder, codec = read_configs(path)
    tensors = _Tensors(path)
    try:
        with torch.device("meta"):  # shapes alone: nothing is allocated until the tensors are known to fit
            model = MusicGen(text, decoder, codec)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {huggingface.in_their_names(error)}") from None
    pieces = mapping.expand(
        huggingface.table(text, decoder, codec), {n: tuple(t.shape) for n, t in model.state_dict().items()}
    )
    mapping.check(pieces, tensors.shapes, str(path))
    if any((path / name).exists() for name in ("spiece.model", "tokenizer.json")):
        model.tokenizer = Tokenizer.from_directory(path)
        if model.tokenizer.vocab_size > text.vocab_size:
            raise ValueError(
                f"{path}: the tokenizer has {model.tokenizer.vocab_size} ids, text_encoder.vocab_size must be as "
                f"many at least, got {text.vocab_size}"
            )
    model.to(dtype)
    if dtype == torch.float16:
        for block in model.text_encoder.blocks:
            cast(Block, block).ffn.wo.float()
    model.to_empty(device=device)
    mapping.fill(model.state_dict(), pieces, tensors)
    return model.eval()


def save(model: MusicGen, path: str | PathLike[str]) -> None:
    """Write a model, and its tokenizer if it has one, as a directory that transformers and load() open.

    Files are written beside and moved into place when all are complete. Raises ValueError where `path` holds weights
    under other names, which would be read in place of these; FileNotFoundError where the directory above it is not
    there.
    """
    path = Path(path)
    stale = [name for name in WEIGHT_FILES[1:] if (path / name).exists()]
    if stale:
        raise ValueError(f"path {path} holds other weights, {stale}: remove them or choose another directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such directory: {path.parent}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"path must be a directory, got the file {path}")
    if model.tokenizer is None and any((path / name).exists() for name in ("spiece.model", "tokenizer.json")):
        raise ValueError(f"path {path} holds a tokenizer, this model has none: remove it or choose another directory")
    text, decoder, codec = model.text_encoder.config, model.decoder.config, model.codec.config
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    pieces = mapping.expand(huggingface.table(text, decoder, codec), {n: tuple(t.shape) for n, t in state.items()})
    tensors = mapping.collect(state, pieces)
    for k, book in enumerate(state["codec.quantizer.codebooks"]):
        # Training statistics that transformers expects to find: those of a codebook whose words were used once each.
        prefix = f"audio_encoder.quantizer.layers.{k}.codebook."
        tensors |= {prefix + "inited": book.new_ones(1), prefix + "cluster_size": book.new_ones(len(book))}
        tensors[prefix + "embed_avg"] = book.clone()
    _check_processor(path, decoder.channels, codec.sampling_rate)
    dtype = str(model.decoder.norm.weight.dtype).removeprefix("torch.")
    special = decoder.vocab_size
    options = GenerationOptions()
    files = {
        "config.json": huggingface.write_config(text, decoder, codec, dtype),
        "generation_config.json": {
            "decoder_start_token_id": special,
            "pad_token_id": special,
            "bos_token_id": special,
            "do_sample": True,
            "guidance_scale": options.guidance_scale,
            "max_length": 30 * codec.frame_rate,
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "EncodecFeatureExtractor",
            "processor_class": "MusicgenProcessor",
            "feature_size": decoder.channels,
            "sampling_rate": codec.sampling_rate,
            "padding_side": "left",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "chunk_length_s": None,
            "overlap": None,
        },
    }
    with _beside(path) as folder:
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if model.tokenizer is not None:
            model.tokenizer.save(folder)


def read_configs(path: str | PathLike[str]) -> tuple[T5Config, DecoderConfig, EncodecConfig]:
    """The configurations of a checkpoint directory, or of "demo". Raises as load() does."""
    path = DEMO if path == "demo" else Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such checkpoint directory: {path}")
    file = path / "config.json"
    text, decoder, codec = huggingface.read_config(read_json(file), str(file))
    _check_processor(path, decoder.channels, codec.sampling_rate)
    return text, decoder, codec


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold an object, got {type(content).__name__}")
    return content


def _check_processor(path: Path, channels: int, sampling_rate: int) -> None:
    # transformers 4 writes preprocessor_config.json, 5 writes processor_config.json with the same inside. Everything in
    # it follows from config.json, so all there is to do is to see that it agrees.
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path / name).exists():
            section = read_json(path / name)
            section = section.get("feature_extractor", section)
            expected = {"feature_size": channels, "sampling_rate": sampling_rate}
            for field, value in expected.items():
                if not isinstance(section, dict) or section.get(field, value) != value:
                    got = section.get(field) if isinstance(section, dict) else section
                    raise ValueError(f"{path / name}: {field} must be {value} as in config.json, got {got!r}")


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class _Tensors:
    """The tensors of a checkpoint under today's names, read when asked for: one file or shards, safetensors first."""

    def __init__(self, path: Path):
        found = [path / name for name in WEIGHT_FILES if (path / name).exists()]
        if not found:
            raise FileNotFoundError(f"{path}: holds none of {', '.join(WEIGHT_FILES)}")
        shards = [found[0]]
        if found[0].suffix == ".json":
            weight_map = read_json(found[0]).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ValueError(f"{found[0]}: weight_map must be an object of tensor names, got {weight_map!r}")
            for name in weight_map.values():
                if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
                    raise ValueError(f"{found[0]}: weight_map must name files of the directory, got {name!r}")
            shards = [path / name for name in sorted(set(weight_map.values()))]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._source: dict[str, tuple[Any, str]] = {}
        for shard in shards:
            if not shard.is_file():
                raise FileNotFoundError(f"no such file: {shard}")
            self._open(shard)

    def _open(self, file: Path) -> None:
        try:
            if file.suffix == ".safetensors":
                handle = safe_open(file, framework="pt")
                shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
            else:
                # weights_only: a pickle is a program, and this one is only let build tensors.
                handle = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
                shapes = {str(name): tuple(tensor.shape) for name, tensor in handle.items()}
        except Exception as error:  # a damaged file fails in any way, a pickle most of all
            raise ValueError(f"{file}: not a readable weights file: {error}") from None
        for name, shape in shapes.items():
            current = huggingface.current_name(name)
            if current is None:
                continue
            if current in self._source and not torch.equal(self.get(current), self._read(handle, name)):
                raise ValueError(f"{file}: {name} and {self._source[current][1]} are the same tensor, but differ")
            self.shapes[current], self._source[current] = shape, (handle, name)

    def get(self, name: str) -> Tensor:
        return self._read(*self._source[name])

    @staticmethod
    def _read(handle: Any, name: str) -> Tensor:
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
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
