"""Reading what torch.save() wrote, without torch and without running anything.

Such a file is a zip archive, and in it a pickle says what is stored. Two programs may find different archives in one
file, where one of them tolerates damage that the other does not. So nothing is tolerated here: an archive begins with
its first entry, ends with its only end record, its entries do not overlap, and the code that checks is the code that
reads. A pickle is a program. Only those of its instructions are followed that build dictionaries, lists, strings and
numbers, and, in place of the calls of a few known functions, StoredTensors; no function is ever called.
"""

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..messages import shown, spelled

LIMIT = 8_000_000  # bytes of a pickle; the largest public model's has 200 kB
INSTRUCTIONS = 400_000  # of a pickle, some 60 for each tensor; more of them could build hundreds of MB
LIST = 4_000_000  # bytes of a list of entries, some 100 for each
DIMENSIONS, SIZE = 8, 2**60  # the most dimensions of a tensor, and a bound on every size
VERSIONS = range(1, 11)  # of the format, which torch reads; torch.save() has written 3 since 2020


class SameFile:
    """A file that is opened again for each reading. Raises ValueError naming the file where it has changed since."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as opened:
            self._state = _state(opened)
        self.size = self._state[2]

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """The file, opened; checks before and after the block that it has not changed."""
        with self.path.open("rb") as opened:
            self._check(opened)
            yield opened
            self._check(opened)

    def read(self, begin: int, end: int) -> Tensor:
        """Its bytes from `begin` to `end`, in memory of their own."""
        # numpy's memory comes in huge pages, which takes half the time to fill; torch's begins at a multiple of 64.
        memory = np.empty(end - begin + 64, np.uint8)
        flat = torch.from_numpy(memory[-memory.ctypes.data % 64 :][: end - begin])
        with self.open() as opened:
            opened.seek(begin)
            if begin < end and opened.readinto(flat.numpy().data) != end - begin:
                self._changed()
        return flat

    def _check(self, opened: io.BufferedReader) -> None:
        if _state(opened) != self._state:
            self._changed()

    def _changed(self) -> NoReturn:
        raise ValueError(f"{self.path}: changed while it was being read")


def _state(opened: io.BufferedReader) -> tuple[int, ...]:
    state = os.fstat(opened.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


# The archive: entries, a list of them ("central directory"), and an end record that says where the list is.

END, LOCATOR, LONG_END = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
LISTED, HEADER = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
SHORT, LONG = 2**16 - 1, 2**32 - 1  # what a field holds where its number is too large and stands elsewhere (zip64)
MAY_HAVE = 0x0808  # the flags that an entry may have: its sizes follow its bytes, its name is UTF-8
OLD = "files of torch before 1.6 are not read: save it again with a newer one"


class Entry(NamedTuple):
    """Where the bytes of an entry begin, how many they are, and their checksum."""

    begin: int
    size: int
    checksum: int


class Archive:
    """The entries of an archive by name; they must be uncompressed, as torch.save() leaves them. Raises ValueError
    that says what is wrong, without the name of the file."""

    def __init__(self, path: Path):
        self.file = SameFile(path)
        with self.file.open() as opened:
            self.entries = _read_entries(opened, self.file.size)
        # All entries lie in one folder, which is named after the file as it was saved.
        self.folder = next(iter(self.entries), "").partition("/")[0]
        if outside := [name for name in self.entries if not name.startswith(f"{self.folder}/")]:
            raise ValueError(f"its entries must lie in one folder, {spelled(outside[0])} lies elsewhere")

    def check(self) -> None:
        """Raise ValueError for an entry whose bytes do not have its checksum."""
        with self.file.open() as opened:
            for name, entry in self.entries.items():
                opened.seek(entry.begin)
                checksum, left = 0, entry.size
                while left and (read := opened.read(min(left, 2**20))):
                    checksum, left = zlib.crc32(read, checksum), left - len(read)
                if left or checksum != entry.checksum:
                    raise ValueError(f"the checksum of its entry {spelled(name)} is another")

    def holds(self, name: str) -> bool:
        """Whether there is an entry of that name in its folder."""
        return f"{self.folder}/{name}" in self.entries

    def get(self, name: str, most: int) -> bytes:
        """The bytes of a small entry."""
        if (entry := self.entries.get(f"{self.folder}/{name}")) is None:
            raise ValueError(f"it holds no {name}, which torch.save() writes")
        if entry.size > most:
            raise ValueError(f"its {name} must have at most {most} bytes, it has {entry.size}")
        return self.file.read(entry.begin, entry.begin + entry.size).numpy().tobytes()


def _read_entries(opened: io.BufferedReader, size: int) -> dict[str, Entry]:
    count, begin, length = _read_end(opened, size)
    opened.seek(begin)
    listed = io.BytesIO(opened.read(length))
    found: dict[str, Entry] = {}
    at = 0
    for _ in range(count):
        fields = LISTED.unpack(_exactly(listed, LISTED.size))
        _, _, _, flags, method, _, _, checksum, packed, unpacked, *lengths, disk, _, _, header = fields
        name = _exactly(listed, lengths[0])
        extra = _exactly(listed, lengths[1])
        _exactly(listed, lengths[2])
        unpacked, packed, header = _long_sizes(extra, unpacked, packed, header)
        if fields[0] != b"PK\1\2" or flags & ~MAY_HAVE or disk:
            raise ValueError("its list of entries is damaged")
        if method or packed != unpacked:
            raise ValueError("it is compressed, which torch.save() does not do")
        # Entries must be listed in the order in which they lie in the file, and the first must begin it.
        if header < at or (at == 0 and header):
            raise ValueError(f"its entries must follow one another from byte 0, one is at byte {header} after {at}")
        at = _begin(opened, header, (flags, method, checksum, packed, unpacked), name)
        text = name.decode("utf-8", "replace")
        if text in found:
            raise ValueError(f"it has two entries of one name, {spelled(text)}")
        found[text] = Entry(at, unpacked, checksum)
        at += unpacked
        if at > begin:
            raise ValueError("its entries are longer than the file")
    if listed.read(1):
        raise ValueError("its list of entries is longer than its end record says")
    return found


def _read_end(opened: io.BufferedReader, size: int) -> tuple[int, int, int]:
    """How many entries there are, where their list begins, and its length in bytes."""
    fixed = END.size + LOCATOR.size + LONG_END.size
    opened.seek(max(0, size - fixed))
    tail = opened.read(fixed)
    if len(tail) < END.size or not tail[-END.size :].startswith(b"PK\5\6"):
        raise ValueError(f"it does not end as an archive does ({OLD})")
    _, disk, first, here, count, length, begin, comment = END.unpack(tail[-END.size :])
    if comment or disk or first or here != count:
        raise ValueError("its end record is not that of one whole archive")
    end = size - END.size
    if tail[-END.size - LOCATOR.size :].startswith(b"PK\6\7"):
        # A second end record directly before the first, for larger archives (zip64), which must say the same.
        end = size - fixed
        short = count, length, begin
        locator, record = LOCATOR.unpack(tail[-END.size - LOCATOR.size : -END.size]), tail[: LONG_END.size]
        if len(tail) < fixed or locator[1:] != (0, end, 1) or not record.startswith(b"PK\6\6"):
            raise ValueError("its two end records are not those of one archive")
        _, rest, _, _, disk, first, here, count, length, begin = LONG_END.unpack(record)
        pairs = zip(short, (count, length, begin), (SHORT, LONG, LONG), strict=True)
        same = all(said in (number, instead) for said, number, instead in pairs)
        if not same or rest != LONG_END.size - 12 or disk or first or here != count:
            raise ValueError("its two end records say different things")
    if begin + length != end or length > LIST or count * LISTED.size > length:
        raise ValueError("its list of entries is not where its end record says")
    return count, begin, length


def _long_sizes(extra: bytes, *sizes: int) -> tuple[int, ...]:
    """The sizes of an entry; one that was too large for its field is taken from the extra data beside the name."""
    out, long, found = list(sizes), b"", False
    while extra:
        kind, length = struct.unpack("<2H", extra[:4]) if len(extra) >= 4 else (0, len(extra))
        if len(extra) < 4 + length or (kind == 1 and found):
            raise ValueError("its list of entries is damaged")
        if kind == 1:
            found, long = True, extra[4 : 4 + length]
        extra = extra[4 + length :]
    for i, size in enumerate(sizes):
        if size == LONG:
            out[i], long = int.from_bytes(_exactly(io.BytesIO(long), 8), "little"), long[8:]
    return tuple(out)


def _begin(opened: io.BufferedReader, header: int, listed: tuple[int, ...], name: bytes) -> int:
    """Where the bytes of an entry begin: after its header, which must say the same as the list of entries."""
    opened.seek(header)
    signature, _, flags, method, _, _, *sizes, length, extra = HEADER.unpack(_exactly(opened, HEADER.size))
    # Checksum and sizes may be 0 where the header was written before the bytes, and LONG where they stand elsewhere.
    known = all(a in (b, LONG) or (a == 0 and flags & 8) for a, b in zip(sizes, listed[2:], strict=True))
    same = (signature, flags, method, length) == (b"PK\3\4", *listed[:2], len(name))
    if not known or not same or _exactly(opened, length) != name:
        raise ValueError(f"its entry at byte {header} is not the one that its list names")
    return header + HEADER.size + length + extra


def _exactly(opened: io.BufferedReader | io.BytesIO, size: int) -> bytes:
    if len(read := opened.read(size)) != size:
        raise ValueError("it ends before it should")
    return read


# The pickle


class Storage(NamedTuple):
    """The bytes of an entry, as numbers of one dtype."""

    file: SameFile
    entry: Entry
    dtype: torch.dtype
    swapped: bool  # written by a big-endian machine


class StoredTensor(NamedTuple):
    """A tensor that has not been read yet: which numbers of a storage it consists of."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def size(self) -> int:
        """Bytes of the tensor once it is read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read the tensor. Raises ValueError if the file has changed since it was opened."""
        width, begin = self.dtype.itemsize, self.storage.entry.begin + self.offset * self.dtype.itemsize
        flat = self.storage.file.read(begin, begin + _reach(self.shape, self.strides) * width)
        if self.storage.swapped and width > 1:
            flat = flat.view(-1, width).flip(1).reshape(-1)
        tensor = flat.view(self.dtype).as_strided(self.shape, self.strides)
        return tensor if tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


class Other(NamedTuple):
    """Stands for an object that torch.load() would build and that is not needed here; `what` names its builder."""

    what: str


class Global(NamedTuple):
    """The name of a class or function in a pickle. It is never imported, and never called."""

    module: str
    name: str


STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
DENSE = (Global("torch._utils", "_rebuild_tensor"), Global("torch._utils", "_rebuild_tensor_v2"))
PARAMETERS = (
    Global("torch._utils", "_rebuild_parameter"),
    Global("torch._utils", "_rebuild_parameter_with_state"),
)
WITH_STATE = Global("torch._tensor", "_rebuild_from_type_v2")
ORDERED = Global("collections", "OrderedDict")
# How many arguments each of these functions takes; torch would refuse any other number.
ARGUMENTS = {
    DENSE[0]: range(4, 5), DENSE[1]: range(6, 8), PARAMETERS[0]: range(3, 4), PARAMETERS[1]: range(4, 5),
    WITH_STATE: range(4, 5),
}  # fmt: skip
# The other names that torch.load(weights_only=True) accepts. No weights are made by them.
PASSED_OVER = {
    *(
        Global("torch._utils", f"_rebuild_{name}")
        for name in (
            "tensor_v3", "qtensor", "sparse_tensor", "meta_tensor_no_storage", "nested_tensor", "wrapper_subclass",
            "device_tensor_from_numpy", "device_tensor_from_cpu_tensor",
        )
    ),
    *(Global(module, name) for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")),
    Global("torch.serialization", "_get_layout"),
    Global("torch.nn.parameter", "Parameter"),
    Global("collections", "Counter"),
    Global("torch.storage", "UntypedStorage"),
    Global("_codecs", "encode"),
}  # fmt: skip
# Names in torch itself that are accepted, too: its other dtypes, their storages, and ways to quantise.
OF_TORCH = re.compile(
    r"(b?float|complex|q?u?int|bits)\d\w{0,20}|bool|Q\w{1,20}Storage|per_(tensor|channel)_\w{1,30}|device|Size|Tensor"
)
KNOWN = {
    *DENSE, *PARAMETERS, *PASSED_OVER, WITH_STATE, ORDERED, *(Global("torch", name) for name in STORAGES),
}  # fmt: skip
KEYS = (str, int, float, bool, type(None))  # a tuple as a key could take for ever to hash


def contents(archive: Archive) -> Any:
    """What an archive holds: dictionaries, lists, tuples, strings, numbers, StoredTensors and Others.

    Raises ValueError, without the name of the file, for a pickle that would build anything else.
    """
    reader = _Pickle(archive)
    try:
        return reader.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"its pickle is damaged at byte {reader.at}: {type(error).__name__}") from None


class _Pickle:
    """Follows the instructions of a pickle, with a stack of values and a memory of values that are used again."""

    def __init__(self, archive: Archive):
        self.archive = archive
        self.data = archive.get("data.pkl", LIMIT)
        # Newer versions of torch may write the version to the second place.
        version = archive.get("version" if archive.holds("version") else ".data/version", 10).strip()
        if not version.isdigit() or int(version) not in VERSIONS:
            raise ValueError(f"its version must be in {VERSIONS[0]}..{VERSIONS[-1]}, is {shown(version)}")
        order = archive.get("byteorder", 10) if archive.holds("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"its byteorder must be little or big, is {shown(order)}")
        self.swapped = order == b"big"
        self.at = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks that mark() has put aside
        self.memory: dict[int, Any] = {}
        self.dtypes: dict[str, torch.dtype] = {}  # of each storage by its key

    def steps(self) -> dict[int, Callable[[], object]]:
        """The method for each instruction, by its byte."""
        return {
            ord("("): self.mark,
            ord("N"): lambda: self.stack.append(None),
            0x88: lambda: self.stack.append(True),
            0x89: lambda: self.stack.append(False),
            ord(")"): lambda: self.stack.append(()),
            ord("]"): lambda: self.stack.append([]),
            ord("}"): lambda: self.stack.append({}),
            ord("J"): lambda: self.stack.append(self.number("<i")),
            ord("K"): lambda: self.stack.append(self.number("<B")),
            ord("M"): lambda: self.stack.append(self.number("<H")),
            ord("G"): lambda: self.stack.append(self.number(">d")),
            0x8A: lambda: self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True)),
            ord("X"): lambda: self.stack.append(self.take(self.number("<I")).decode("utf-8", "surrogatepass")),
            ord("U"): lambda: self.stack.append(self.take(self.number("<B")).decode("utf-8")),
            ord("q"): lambda: self.keep(self.number("<B")),
            ord("r"): lambda: self.keep(self.number("<I")),
            ord("h"): lambda: self.stack.append(self.memory[self.number("<B")]),
            ord("j"): lambda: self.stack.append(self.memory[self.number("<I")]),
            ord("t"): self.close_tuple,
            0x85: lambda: self.tuple_of(1),
            0x86: lambda: self.tuple_of(2),
            0x87: lambda: self.tuple_of(3),
            ord("a"): lambda: self.extend([self.stack.pop()]),
            ord("e"): lambda: self.extend(self.since_mark()),
            ord("s"): lambda: self.set_items([self.stack.pop(-2), self.stack.pop()]),
            ord("u"): lambda: self.set_items(self.since_mark()),
            ord("c"): self.name_global,
            ord("R"): self.call,
            ord("Q"): self.find_storage,
            ord("b"): self.build,
            0x80: lambda: self.take(1),  # the version of the pickle format
        }

    def run(self) -> Any:
        steps = self.steps()
        for _ in range(INSTRUCTIONS):
            instruction = self.data[self.at]
            self.at += 1
            if instruction == ord("."):
                return self.stack.pop()
            if instruction not in steps:
                raise ValueError(f"refused to run a program: its pickle has the instruction {instruction:#04x}")
            steps[instruction]()
        raise ValueError(f"its pickle has more than {INSTRUCTIONS} instructions")

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise IndexError
        self.at += count
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 200)
        if end < 0:
            raise IndexError
        return self.take(end + 1 - self.at)[:-1].decode("utf-8")

    # The stack

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.outer.pop()
        return values

    def keep(self, place: int) -> None:
        self.memory[place] = self.stack[-1]

    def close_tuple(self) -> None:
        values = tuple(self.since_mark())
        self.stack.append(values)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("its pickle appends to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        into = self.stack[-1]
        if type(into) is not dict or len(values) % 2:
            raise ValueError("its pickle puts entries into what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Large whole numbers can be chosen so that their hashes collide, which would make the dictionary slow.
            if type(key) not in KEYS or (type(key) is int and abs(key) >= SIZE):
                raise ValueError(f"the keys of its dictionaries must be strings or small numbers, one is {shown(key)}")
            into[key] = value

    # What stands for objects

    def name_global(self) -> None:
        found = Global(self.line(), self.line())
        if found not in KNOWN and not (found.module == "torch" and OF_TORCH.fullmatch(found.name)):
            raise ValueError(f"refused to run a program: {shown(f'{found.module}.{found.name}')}")
        self.stack.append(found)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise ValueError("refused to run a program: its pickle calls what is no function")
        self.stack.append(self.made(function, arguments))

    def made(self, function: Global, arguments: tuple[Any, ...]) -> Any:
        """What stands here for the result of calling that function."""
        if function in ARGUMENTS and len(arguments) not in ARGUMENTS[function]:
            raise ValueError(f"its pickle gives {function.name} {len(arguments)} arguments")
        # Only the empty call: its entries are set one by one, while a list of them could be repeated without limit.
        if function == ORDERED and not arguments:
            return {}
        if function in DENSE:
            return self.tensor(*arguments[:4], *arguments[6:7])
        if function in PARAMETERS:  # a parameter is its tensor; what else was set on it is left out
            return arguments[0]
        if function == WITH_STATE and type(arguments[0]) is Global and type(arguments[2]) is tuple:
            plain = arguments[0] in DENSE and arguments[1] == Global("torch", "Tensor")
            return self.made(arguments[0], arguments[2]) if plain else Other("a class of tensors")
        return Other(f"{function.module}.{function.name}")

    def build(self) -> None:
        """Drop the attributes of a dictionary, such as those that state_dict() sets."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise ValueError("refused to run a program: its pickle sets attributes of what is no dictionary")

    def find_storage(self) -> None:
        identity = self.stack.pop()
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            raise ValueError("its pickle refers to something else than the bytes of a tensor")
        _, kind, key, _, count = identity
        dtype = STORAGES.get(kind.name) if type(kind) is Global and kind.module == "torch" else None
        if dtype is None and type(kind) is Global:
            return self.stack.append(Other(f"{kind.module}.{kind.name}"))
        if dtype is None or type(key) is not str or type(count) is not int:
            raise ValueError("its pickle refers to something else than the bytes of a tensor")
        entry = self.archive.entries.get(f"{self.archive.folder}/data/{key}")
        if entry is None or entry.size != count * dtype.itemsize:
            got = "there is none" if entry is None else f"it has {entry.size} bytes"
            raise ValueError(f"its pickle wants {shown(count)} of {dtype} in the entry data/{spelled(key)}: {got}")
        if self.dtypes.setdefault(key, dtype) != dtype:
            raise ValueError(f"its entry data/{spelled(key)} is of two dtypes, {dtype} and {self.dtypes[key]}")
        return self.stack.append(Storage(self.archive.file, entry, dtype, self.swapped))

    def tensor(
        self, storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, metadata: Any = None
    ) -> Any:
        if type(storage) is Other:
            return storage
        if metadata:  # the stored values are not the tensor's own, but for example their negatives
            return Other("a tensor whose values stand for others")
        whole = _sizes(shape) and _sizes((offset,)) and type(strides) is tuple and len(shape) == len(strides)
        if type(storage) is not Storage or not whole or not all(_sizes((step,)) for step in strides):
            raise ValueError("its pickle describes a tensor without an offset and the same number of sizes and strides")
        there = storage.entry.size // storage.dtype.itemsize
        if offset + _reach(shape, strides) > there:
            raise ValueError(f"its pickle describes a tensor that reaches beyond its entry of {there} numbers")
        return StoredTensor(storage, offset, shape, strides)


def _sizes(value: Any) -> bool:
    """Whether this is a tuple of at most DIMENSIONS whole numbers from 0, whose product, zeros aside, is below SIZE."""
    whole = type(value) is tuple and len(value) <= DIMENSIONS and all(type(n) is int and n >= 0 for n in value)
    return whole and math.prod(n or 1 for n in value) < SIZE


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many numbers of a storage lie from the first to the last of a tensor."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if math.prod(shape) else 0
