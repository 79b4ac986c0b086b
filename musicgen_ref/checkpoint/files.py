"""Weight files, read without trusting them and written without holding them.

A reader knows the names, shapes and dtypes from the head of a file, and reads a tensor when it is asked for it. Memory
for a tensor is allocated only when it is known that the file holds as many bytes.
"""

import functools
import io
import json
import math
import mmap
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from ..messages import shown
from ..strict import LIMIT, parse_json, read_file
from .archive import Archive, Other, SameFile, StoredTensor, contents
from .atomic import UNFINISHED

# The dtypes that may be in a file, by safetensors' names.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_NAME = 200  # characters of a tensor's name; the longest public one has 90
MOST_TENSORS = 20_000  # of a file; the largest public model has 1,500
WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # dtypes that the weights of a model may have


# JSON


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError naming the file."""
    content = read_small(path)
    if content == UNFINISHED:
        raise ValueError(
            f"{path.parent}: is not complete: to save a model into it was stopped, or is not over: save again"
        )
    return parse_json(content, str(path))


# These files, like the weights, may be links to anywhere: only known values of them are used.
LINKED = re.compile(r"(adapter_)?config\.json|.+\.index(\..+)?\.json")


def check_small(file: Path) -> None:
    """Raise FileNotFoundError for a file that is not there; ValueError for one that is too large to be anything but
    weights, and for a link that leads out of the file's directory.

    Such a file is copied when the model is saved or converted, and a directory from a stranger must not be able to make
    that copy another file of this machine. Two kinds of links are allowed: within the Hub's cache (from
    snapshots/REVISION to blobs/), and, where config.json is a link, to the file of the same name beside its target.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    if (size := file.stat().st_size) > LIMIT:
        raise ValueError(f"{file}: must have at most {LIMIT} bytes, got {size}")
    folder, target = file.parent.resolve(), file.resolve()
    if LINKED.fullmatch(file.name) or target.is_relative_to(folder):
        return
    blobs = [above.parent.parent / "blobs" for above in (folder, *folder.parents) if above.parent.name == "snapshots"]
    same = Path(os.path.realpath(folder / "config.json")).with_name(file.name)
    if target != same and target.parent not in blobs:
        raise ValueError(f"{file}: is a link out of its directory, to {target}: put a copy of that in its place")


def read_small(file: Path) -> bytes:
    """The content of a file that holds no weights. Raises as check_small() does."""
    check_small(file)
    return read_file(file)


# Reading


class Safetensors:
    """The tensors of a .safetensors file.

    Raises ValueError naming the file unless its head is a JSON object that gives the name of each tensor a dtype, a
    shape and offsets, and the tensors follow one another and cover the file.
    """

    def __init__(self, path: Path):
        self._file = SameFile(path)
        self._map: mmap.mmap | None = None
        size = self._file.size
        with self._file.open() as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, LIMIT):
                raise ValueError(f"{path}: not a readable weights file: of its {size} bytes the head would be {length}")
            head = parse_json(opened.read(length), f"{path}: not a readable weights file")
        metadata = head.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError(f"{path}: __metadata__ must be an object of strings, got {shown(metadata)}")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        check_names(path, head)
        for name, entry in head.items():
            fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
            dtype, shape, span = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
            if not isinstance(dtype, str) or dtype not in DTYPES:
                raise ValueError(f"{path}: dtype of {name} must be one of {list(DTYPES)}, got {shown(dtype)}")
            if (
                shape is None
                or span is None
                or not (_sizes(shape) and _sizes(span))
                or len(span) != 2
                or len(shape) > 8
                or math.prod(n or 1 for n in shape) >= 2**60
            ):
                got = f"{shown(shape)} and {shown(span)}"
                raise ValueError(f"{path}: shape and data_offsets of {name} must be lists of sizes, got {got}")
            if span[1] - span[0] != math.prod(shape) * DTYPES[dtype].itemsize:
                raise ValueError(f"{path}: {name} is {dtype} {shape}, which are not the bytes {span[0]} to {span[1]}")
            self.shapes[name], self.dtypes[name] = tuple(shape), DTYPES[dtype]
            self._spans[name] = span[0] + 8 + length, span[1] + 8 + length
        end = 8 + length
        for begin, after, name in sorted((*span, name) for name, span in self._spans.items()):
            if begin != end:
                raise ValueError(f"{path}: {name} must begin at byte {end}, where the one before it ends, got {begin}")
            end = after
        if end != size:
            raise ValueError(f"{path}: not a readable weights file: its tensors end at byte {end} of {size}")

    def get(self, name: str, mapped: bool = False) -> Tensor:
        """The tensor of that name. Raises ValueError if the file has changed since it was opened.

        mapped: True maps the tensor into memory: the system reads a page of the file when it is first used, and copies
        it when it is first written to.
        """
        (begin, end), dtype, shape = self._spans[name], self.dtypes[name], self.shapes[name]
        if mapped and begin < end and begin % dtype.itemsize == 0:
            if self._map is None:  # one for all tensors: each holds a file open
                with self._file.open() as opened:
                    self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            return torch.frombuffer(self._map, dtype=dtype, count=math.prod(shape), offset=begin).view(shape)
        return self._file.read(begin, end).view(dtype).view(shape)


def check_names(path: Path, names: Collection[Any]) -> None:
    """Raise ValueError for a name of a tensor that is no string or that a message could not show, and for so many names
    that it would take seconds to look at them."""
    if len(names) > MOST_TENSORS:
        raise ValueError(f"{path}: must hold at most {MOST_TENSORS} tensors, got {len(names)}")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            must = f"strings of at most {LONGEST_NAME} printable characters"
            raise ValueError(f"{path}: not a readable weights file: names must be {must}, got {shown(name)}")


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**60 for n in value)


def load_bin(path: Path, tested: bool = True) -> Any:
    """What torch.save() wrote, with a StoredTensor in place of each tensor; see archive.py. Raises FileNotFoundError,
    or ValueError naming the file.

    The checksums of the archive are tested, since a changed bit in the pickle could name the values of another tensor.
    tested=False leaves that out, for a caller that does not look at values.
    """
    if not path.is_file():  # a pipe is refused, too: opening it would wait for a writer
        raise FileNotFoundError(f"no such file: {path}")
    try:
        archive = Archive(path)
        if tested:
            archive.check()
        return contents(archive)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        if "omegaconf" in reason:
            reason = (
                "refused to run a program: its xp.cfg is pickled as omegaconf objects, which only a program could "
                "read. Where you trust the file and have omegaconf, save it again, as text, into an empty directory: "
                'python -c "import torch; from omegaconf import OmegaConf; p = '
                f"torch.load({str(path.absolute())!r}, 'cpu', weights_only=False); "
                "torch.save({'best_state': p.get('best_state', p.get('model')), 'xp.cfg': "
                f"OmegaConf.to_yaml(p['xp.cfg'])}}, {path.name!r})\""
            )
        raise ValueError(f"{path}: not a readable weights file: {reason}") from None


class Bin:
    """The tensors of a dictionary from load_bin(). Raises ValueError, naming file and tensor, for anything else in the
    dictionary, and for tensors that are together larger than the file."""

    def __init__(self, path: Path, content: Any):
        if not isinstance(content, dict) or not content:
            raise ValueError(f"{path}: not a readable weights file: must hold tensors by name, got {_kind(content)}")
        self._tensors: dict[str, StoredTensor] = {}
        check_names(path, content)
        for name, tensor in content.items():
            if not isinstance(tensor, StoredTensor) or tensor.dtype not in NAMES:
                must = f"a dense tensor of one of {list(NAMES)}"
                raise ValueError(f"{path}: {name} must be {must}, got {_kind(tensor)}")
            self._tensors[name] = tensor
        # Tied tensors count once. Others that overlap, or repeat numbers, could fill the memory from a small file.
        distinct = {(t.storage.entry, *t[1:]): t.size for t in self._tensors.values()}
        if (total := sum(distinct.values())) > (size := path.stat().st_size):
            raise ValueError(f"{path}: its tensors claim {total} bytes, it has {size}")
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def get(self, name: str, mapped: bool = False) -> Tensor:
        """The tensor of that name, read into memory also where `mapped` is set. Raises ValueError if the file has
        changed since it was opened."""
        return self._tensors[name].read()


def _kind(value: Any) -> str:
    if isinstance(value, StoredTensor):
        return f"a tensor of {value.dtype}"
    return value.what if isinstance(value, Other) else shown(value)


def open_weights(file: Path, tested: bool = True) -> Safetensors | Bin:
    """The tensors of one .safetensors or .bin file; tested: see load_bin(). Raises FileNotFoundError, or ValueError
    naming the file."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    return Safetensors(file) if file.suffix == ".safetensors" else Bin(file, load_bin(file, tested))


class Choice(NamedTuple):
    """Which weights are read where a directory of transformers holds several.

    variant: "fp32" reads model.fp32.safetensors and its like, and nothing else. use_safetensors: False reads
    pytorch_model.bin, True refuses it, None reads it where there are no .safetensors. adapter: see adapter.find().
    tested: False does not test the checksums of .bin files, which would read them whole.
    """

    variant: str | None = None
    use_safetensors: bool | None = None
    adapter: bool | str | os.PathLike[str] | None = None
    tested: bool = True


PLAIN = Choice()
MOST_SHARDS = 1000  # the largest model there is has some 200
VARIANT = r"[\w-]{1,50}?"


def weight_names(choice: Choice = PLAIN) -> list[str]:
    """The names that files with weights of this choice may have, in the order in which they are looked for. Raises
    ValueError for an impossible choice."""
    variant, safetensors = choice.variant, choice.use_safetensors
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(VARIANT, variant, re.ASCII)):
        raise ValueError(f"variant must be a part of a file's name, like 'fp32', got {shown(variant)}")
    if safetensors not in (None, True, False):
        raise ValueError(f"use_safetensors must be True, False or None, got {shown(safetensors)}")
    dot = "" if variant is None else f".{variant}"
    kinds = [("model", "safetensors")] * (safetensors is not False) + [("pytorch_model", "bin")] * (not safetensors)
    return [name for stem, end in kinds for name in (f"{stem}{dot}.{end}", f"{stem}.{end}.index{dot}.json")]


WEIGHT_FILES = weight_names()
OF_VARIANT = re.compile(
    rf"(?:pytorch_)?model\.({VARIANT})(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
    rf"|(?:model\.safetensors|pytorch_model\.bin)\.index\.({VARIANT})\.json",
    re.ASCII,
)


def first_weights(names: Iterable[str], choice: Choice, where: object) -> str:
    """Which of these file names is read: that of the weights, or of the index of their shards.

    Raises FileNotFoundError where it is none of them; the message says what was looked for and what there is instead.
    """
    names, wanted = set(names), weight_names(choice)
    if found := [name for name in wanted if name in names]:
        return found[0]
    message = f"{where}: holds none of {', '.join(wanted)}"
    if other := [name for name in weight_names(choice._replace(use_safetensors=None)) if name in names]:
        message += f": use_safetensors={choice.use_safetensors} leaves out {', '.join(other)}"
    elif choice.variant is not None and (other := [name for name in weight_names() if name in names]):
        message += f"; without a variant there is {', '.join(other)}"
    matches = [match for name in names if (match := OF_VARIANT.fullmatch(name))]
    if variants := sorted({match[1] or match[2] for match in matches} - {choice.variant}):
        message += f"; the variants that are there are {variants[:10]} (variant={variants[0]!r})"
    raise FileNotFoundError(message)


def weight_files(path: Path, choice: Choice = PLAIN) -> list[Path]:
    """The files with the weights of a directory of transformers: one file, or its shards.

    Raises FileNotFoundError if there are none; ValueError for an index that is malformed or that names files outside of
    the directory.
    """
    index = path / first_weights((file.name for file in path.iterdir() if file.exists()), choice, path)
    if index.suffix != ".json":
        return [index]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map must be an object of tensor names, got {shown(weight_map)}")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) or name in (".", ".."):
            raise ValueError(f"{index}: weight_map must name files of the directory, got {shown(name)}")
    names = sorted(set(weight_map.values()))
    if len(names) > MOST_SHARDS:
        raise ValueError(f"{index}: weight_map must name at most {MOST_SHARDS} files, names {len(names)}")
    # A link may lead to the directory where the index really lies: huggingface_hub's cache is a directory of links.
    inside = {path.resolve(), index.resolve().parent}
    for name in names:
        try:
            target = (path / name).resolve()
            endless = target.is_symlink()
        except (OSError, RuntimeError):  # as older versions of Python tell it
            endless = True
        if endless:
            raise ValueError(f"{index}: weight_map must name files of the directory, {name} is a link to itself")
        if target.parent not in inside:
            raise ValueError(f"{index}: weight_map must name files of the directory, {name} is a link to {target}")
    return [path / name for name in names]


class Tensors:
    """The tensors of several files under one set of names.

    Raises ValueError for two tensors of one name that differ, and for numbers that are not floating point.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._source: dict[str, tuple[Safetensors | Bin, str]] = {}
        self._changes: dict[str, Callable[[Tensor], Tensor]] = {}

    def add(self, file: Path, reader: Safetensors | Bin, rename: Callable[[str], str | None]) -> None:
        """Add the tensors of a file. rename: makes the name here of the name in the file; None leaves a tensor out."""
        for name, shape in reader.shapes.items():
            current = rename(name)
            if current is None:
                continue
            if reader.dtypes[name] not in WEIGHTS:
                raise ValueError(f"{file}: {name} must be one of {WEIGHTS}, got {reader.dtypes[name]}")
            if current in self._source and not torch.equal(self.get(current), reader.get(name)):
                raise ValueError(f"{file}: {name} and {self._source[current][1]} are the same tensor, but differ")
            self.shapes[current], self.dtypes[current] = shape, reader.dtypes[name]
            self._source[current] = (reader, name)

    def change(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        """Change the tensor of that name when it is read. The function must keep the shape and not narrow the dtype."""
        self._changes[name] = function

    def get(self, name: str, mapped: bool = False) -> Tensor:
        """The tensor of that name. mapped: as Safetensors.get() takes it; a tensor that was changed is never mapped."""
        reader, theirs = self._source[name]
        if name in self._changes:
            return self._changes[name](reader.get(theirs))
        return reader.get(theirs, mapped)


# Writing


class Spec(NamedTuple):
    """A tensor that is to be written: its dtype and shape, and a function that makes it when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def _bytes(name: str, spec: Spec) -> memoryview:
    tensor = spec.make().to(spec.dtype).contiguous()
    if tuple(tensor.shape) != spec.shape:
        raise ValueError(f"{name} must be {spec.shape}, got {tuple(tensor.shape)}")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def writing(file: Path) -> Iterator[io.BufferedWriter]:
    """A new file, opened for writing. The OSError of a full disk names no file: it gets the name of this one."""
    try:
        with file.open("wb") as opened:
            yield opened
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(file)) from None
        raise


def write_safetensors(file: Path, specs: Mapping[str, Spec]) -> None:
    """Write a .safetensors file, one tensor in memory at a time."""
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # the widest first: all are aligned
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        spec = specs[name]
        offsets = [at, at := at + spec.size]
        head[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
    content = json.dumps(head, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with writing(file) as opened:
        opened.write(struct.pack("<Q", len(content)) + content)
        for name in order:
            opened.write(_bytes(name, specs[name]))


UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}  # in bytes


def write_weights(
    folder: Path, specs: Mapping[str, Spec], shard_size: int | None = None, safetensors: bool = True
) -> None:
    """Write model.safetensors, or shards of at most shard_size bytes (or of one tensor, if that is larger) and their
    index, as transformers does. safetensors: False writes pytorch_model.bin or its shards."""
    stem, end = ("model", "safetensors") if safetensors else ("pytorch_model", "bin")
    write: Callable[[Path, Mapping[str, Any]], None] = write_safetensors if safetensors else write_bin
    shards: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if shard_size is not None and shards[-1] and filled + spec.size > shard_size:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += spec.size
    if len(shards) == 1:
        write(folder / f"{stem}.{end}", specs)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = folder / f"{stem}-{i:05}-of-{len(shards):05}.{end}"
        write(file, shard)
        weight_map |= dict.fromkeys(shard, file.name)
    totals = {
        "total_parameters": sum(math.prod(spec.shape) for spec in specs.values()),
        "total_size": sum(spec.size for spec in specs.values()),
    }
    write_json(folder / f"{stem}.{end}.index.json", {"metadata": totals, "weight_map": weight_map})


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, formatted as transformers does."""
    with writing(file) as opened:
        opened.write(json.dumps(content, indent=2).encode() + b"\n")


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    elements: int


STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}


def dtype_name(specs: Mapping[str, Spec], dtype: torch.dtype | None = None) -> str:
    """The dtype that a config.json names: `dtype` if it is given, or else the widest of the tensors', in which
    transformers 5 opens a model whose parts differ."""
    widest = dtype or functools.reduce(torch.promote_types, (spec.dtype for spec in specs.values()))
    return str(widest).removeprefix("torch.")


class _Pickler(pickle.Pickler):
    # A class, because Python 3.13.0 refuses to set the method of a Pickler.
    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if type(value) is not _Storage:
            return None
        return "storage", STORAGES[value.dtype], value.key, "cpu", value.elements


def write_bin(file: Path, content: Mapping[str, Any]) -> None:
    """Write the file that torch.save() would write of a dictionary, in which Specs stand for tensors; one tensor is in
    memory at a time.

    The format is a zip archive that holds a pickle, which refers to tensors by numbers, and an entry of bytes for each
    number.
    """
    specs: list[Spec] = []

    def as_tensor(spec: Spec) -> tuple[Any, ...]:
        strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
        storage = _Storage(str(len(specs)), spec.dtype, math.prod(spec.shape))
        specs.append(spec)
        return _rebuild_tensor_v2, (storage, 0, spec.shape, tuple(strides), False, OrderedDict())

    text = io.BytesIO()
    pickler = _Pickler(text, protocol=2)
    pickler.dispatch_table = {Spec: as_tensor}
    pickler.dump(dict(content))
    with writing(file) as written, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes | memoryview) -> None:
            entry = zipfile.ZipInfo(f"archive/{name}")
            # The extra field is filled up so that the bytes begin at a multiple of 64. Before it come a header of 30
            # bytes and the name, and its own first 4 bytes say how long it is.
            begin = archive.fp.tell() + 30 + len(entry.filename) + 4  # type: ignore[union-attr]
            entry.extra = struct.pack("<2sH", b"FB", -begin % 64) + b"Z" * (-begin % 64)
            with archive.open(entry, "w") as opened:
                opened.write(data)

        add("data.pkl", text.getvalue())
        add("byteorder", b"little")
        for i, spec in enumerate(specs):
            add(f"data/{i}", _bytes(str(i), spec))
        add("version", b"3\n")
