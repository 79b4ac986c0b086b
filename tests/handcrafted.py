"""Hostile checkpoints made by hand, each by its name: what to do to a valid directory, and what the refusal must say.

Each is one way to get more out of a file than its size allows: another archive than the one that was checked, a value
that takes for ever to show or to compare, a number that claims what is nowhere. tests/test_hostile.py opens each, and
tests/fuzz_checkpoint.py measures what that takes.
"""

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml


class Crafted(NamedTuple):
    """change: of a copy of the directory of that name, see fuzz_checkpoint.build(). words: of the message."""

    folder: str
    change: Callable[[Path], object]
    words: str


# Pickles, instruction by instruction: Python's own would not write most of these.


def written(value: Any) -> bytes:
    """The instructions that make a value; bytes are instructions already."""
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    inside = [each for pair in value.items() for each in pair] if isinstance(value, dict) else value
    begin, end = {tuple: (b"(", b"t"), list: (b"](", b"e"), dict: (b"}(", b"u")}[type(value)]
    return begin + b"".join(map(written, inside)) + end


def program(value: Any) -> bytes:
    return b"\x80\x02" + written(value) + b"."


def called(module: str, name: str, *arguments: Any) -> bytes:
    """The instructions that call a function."""
    return f"c{module}\n{name}\n".encode() + written(tuple(arguments)) + b"R"


def storage(key: Any = "0", kind: str = "FloatStorage", count: Any = 6) -> bytes:
    return written(("storage", f"ctorch\n{kind}\n".encode(), key, "cpu", count)) + b"Q"


def tensor(at: bytes | None = None, offset: Any = 0, shape: Any = (6,), strides: Any = (1,), *more: Any) -> bytes:
    """The instructions that make a tensor of the storage `at`."""
    rest = (False, called("collections", "OrderedDict"), *more)
    return called("torch._utils", "_rebuild_tensor_v2", at or storage(), offset, shape, strides, *rest)


def doubled(times: int, key: bool = False) -> bytes:
    """A list that holds one twice that holds one twice ...: written out it would have 2 ** times. key: of tuples."""
    again = [b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) for i in range(times)]
    if key:
        return b")" + b"".join(each + b"\x86" for each in again)
    return b"](" * times + b"]" + b"".join(each + b"e" for each in again)


def archive(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of entries as torch.save() names them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as opened:
        for name, content in entries.items():
            opened.writestr(f"x/{name}", content)
    return out.getvalue()


FLOATS = struct.pack("<6f", *range(6))


def pickled(value: Any, **entries: bytes) -> bytes:
    """An archive whose pickle makes a value, and the six numbers that storage() is about."""
    return archive({"data.pkl": program(value), "byteorder": b"little", "data/0": FLOATS, "version": b"3\n"} | entries)


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


# Archives that are two

END, LOCATOR, RECORD = 22, 20, 56  # bytes of the records with which torch's archives end


def moved(content: bytes, by: int, note: bytes = b"") -> bytes:
    """An archive of zipfile's whose offsets are those that it has after so many other bytes; note: behind the last of
    its list of entries, as what that says of it."""
    count, length, begin = struct.unpack("<HLL", content[-END + 10 : -END + 20])
    listed = bytearray(content[begin : begin + length])
    at = last = 0
    for _ in range(count):
        last = at
        names = sum(struct.unpack("<3H", listed[at + 28 : at + 34]))
        listed[at + 42 : at + 46] = struct.pack("<L", struct.unpack("<L", listed[at + 42 : at + 46])[0] + by)
        at += 46 + names
    listed[last + 32 : last + 34] = struct.pack("<H", len(note))
    end = content[-END:-10] + struct.pack("<LLH", length + len(note), begin + by, 0)
    return content[:begin] + bytes(listed) + note + end


def two_in_one(checked: bytes, read: bytes) -> bytes:
    """A file in which Python's zipfile finds one archive, and torch the other, which its long end record names."""
    first = read[: -END - LOCATOR]  # with its long end record, at the end
    return first + moved(checked, len(first), struct.pack("<4sLQL", b"PK\6\7", 0, len(first) - RECORD, 1))


def edited(content: bytes, at: int, new: bytes) -> bytes:
    at = at % len(content)
    return content[:at] + new + content[at + len(new) :]


def moved_out(content: bytes) -> bytes:
    """An archive whose numbers lie in another folder than its pickle."""
    return content.replace(b"x/data/0", b"y/data/0")


def first_listed(content: bytes) -> int:
    """Where the list of entries begins."""
    return int(struct.unpack("<L", content[-6:-2])[0])


PLAIN = pickled({"a": tensor()})
OWN = saved({"a": torch.arange(6.0)})  # with two end records
DEFLATED = {"data.pkl": program({"a": tensor(), "z": "\0" * 7_000_000}), "data/0": FLOATS}
LISTED = first_listed(PLAIN)
SECOND = LISTED + 46 + len("x/data.pkl")  # of the entries that are listed
ARCHIVES = {
    "one archive behind another": (saved({"a": torch.ones(6)}) + PLAIN, "list of entries is not where"),
    "an archive that knows of what lies before it": (b"x" * 100 + moved(PLAIN, 100), "from byte 0"),
    "an archive behind one, which it knows of": (PLAIN + moved(PLAIN, len(PLAIN)), "from byte 0"),
    "one archive to check, one to read": (two_in_one(PLAIN, saved({"a": torch.ones(6)})), "two end records"),
    "a long end record with another list": (edited(OWN, -END - LOCATOR - 8, struct.pack("<Q", 0)), "different things"),
    "a long end record with more entries": (edited(OWN, -END - LOCATOR - 24, struct.pack("<Q", 9)), "different things"),
    "a locator of another disk": (edited(OWN, -END - LOCATOR + 4, struct.pack("<L", 1)), "two end records"),
    "a locator that leads elsewhere": (edited(OWN, -END - LOCATOR + 8, struct.pack("<Q", 0)), "two end records"),
    "a comment behind the end": (PLAIN[:-2] + struct.pack("<H", 4) + b"note", "does not end as an archive"),
    "a comment that ends as an archive does": (PLAIN[:-2] + struct.pack("<H", END) + PLAIN[-END:], "is not where"),
    "bytes behind the end": (PLAIN + b"\0", "does not end as an archive"),
    "a list of a million entries": (
        edited(PLAIN, -END + 8, struct.pack("<HH", 65000, 65000)), "list of entries is not where"
    ),
    "a deflated pickle": (archive(DEFLATED, zipfile.ZIP_DEFLATED), "compressed"),
    "a deflated pickle that says it is stored": (
        edited(archive(DEFLATED, zipfile.ZIP_DEFLATED), first_listed(archive(DEFLATED, zipfile.ZIP_DEFLATED)) + 10,
               b"\0\0"),
        "compressed",
    ),
    "sizes that the header tells otherwise": (edited(PLAIN, 22, struct.pack("<L", 3)), "is not the one"),
    "a name that the header tells otherwise": (edited(PLAIN, 30, b"y"), "is not the one"),
    "an entry inside of another": (edited(PLAIN, SECOND + 42, struct.pack("<L", 5)), "follow one another"),
    "an entry longer than the file": (
        edited(PLAIN, LISTED + 20, struct.pack("<LL", 10**6, 10**6)), "is not the one|longer than the file"
    ),
    "an entry that is encrypted": (edited(PLAIN, LISTED + 8, b"\1"), "damaged"),
    "a long size without a place": (edited(PLAIN, LISTED + 20, b"\xff" * 8), "ends before it should"),
    "a pickle without an end": (archive({"data.pkl": b"\x80\x02N", "version": b"3\n"}), "damaged at byte 3"),
    "an entry of another folder": (moved_out(PLAIN), "lie in one folder, y/data/0 lies elsewhere"),
    "no version": (archive({"data.pkl": program({"a": tensor()}), "data/0": FLOATS}), "holds no .data/version"),
    "a version to come": (pickled({"a": tensor()}, version=b"11\n"), "version must be in 1..10"),
    "an entry of another disk": (edited(PLAIN, LISTED + 34, b"\1"), "damaged"),
    "no pickle": (archive({"data/0": FLOATS}), "holds no data.pkl"),
    "no entry": (archive({}), "holds no data.pkl"),
    "a byte order of its own": (pickled({"a": tensor()}, byteorder=b"middle"), "byteorder"),
    "another checksum": (edited(PLAIN, LISTED - 2, b"\7"), "checksum"),
}  # fmt: skip


# Pickles that ask for more than they are


def nested(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1)


COLLIDING = {i * (2**61 - 1): None for i in range(1000)}
PICKLES = {
    "shared lists in a tensor's place": ({"a": doubled(60)}, "a must be a dense tensor"),
    "shared lists for everything": (doubled(60), "must hold tensors by name"),
    "a shape of a list, over and over": (
        written([0] * 10_000) + b"q\0ctorch\nSize\nq\1" + b"h\1h\0\x85R" * 90_000, "hold tensors by name"
    ),
    "bytes of a string, over and over": (
        written(("x" * 10**6, "latin1")) + b"q\0c_codecs\nencode\nq\1" + b"h\1h\0R" * 120_000, "hold tensors by name"
    ),
    "a dictionary of pairs, over and over": (
        written([["a", 1]] * 1000) + b"\x85q\0ccollections\nOrderedDict\nq\1" + b"h\1h\0R" * 120_000,
        "hold tensors by name"
    ),
    "a list 1,000 deep": ({"a": nested(1000)}, "a must be a dense tensor"),
    "a list 190,000 deep": (nested(190_000), "must hold tensors by name"),
    "a list that holds itself": ({"a": b"]q\0h\0a"}, "a must be a dense tensor"),
    "a name that is shared tuples": ({doubled(60, key=True): tensor()}, "keys of its dictionaries"),
    "a name of a million characters": ({"x" * 10**6: tensor()}, "names must be strings"),
    "a name that colours the terminal": ({"\x1b[31m\n": tensor()}, "names must be strings"),
    "a name of 600 digits": ({b"\x8a\xff" + b"\x7f" * 255: tensor()}, "small numbers"),
    "numbers that collide": ({"a": COLLIDING}, "small numbers"),
    "a byte array of gigabytes": ({"a": called("__builtin__", "bytearray", 10**10)}, "dense tensor.*bytearray"),
    "a storage of gigabytes": ({"a": called("torch.storage", "UntypedStorage", 10**10)}, "dense.*UntypedStorage"),
    "a storage of gigabytes that is in no entry": ({"a": tensor(storage(count=10**10))}, "data/0: it has 24 bytes"),
    "a storage of less than its entry": ({"a": tensor(storage(count=5), shape=(5,))}, "data/0: it has 24 bytes"),
    "a storage that is nowhere": ({"a": tensor(storage("1"))}, "data/1: there is none"),
    "a storage of another entry": ({"a": tensor(storage("../data.pkl"))}, "there is none"),
    "a storage of two dtypes": ({"a": tensor(), "b": tensor(storage(kind="IntStorage"))}, "two dtypes"),
    "a storage of no name": ({"a": tensor(storage(0))}, "something else than the bytes"),
    "a size that is none": ({"a": tensor(storage(count="6"))}, "something else than the bytes"),
    "a tensor beyond its storage": ({"a": tensor(offset=1)}, "reaches beyond"),
    "a tensor of terabytes": ({"a": tensor(shape=(2**40,), strides=(1,))}, "reaches beyond"),
    "a tensor of one number a thousand million times": ({"a": tensor(shape=(10**9,), strides=(0,))}, "claim"),
    "a tensor of the same rows": ({"a": tensor(shape=(4, 1000), strides=(1, 0))}, "claim"),
    "a tensor from before its storage": ({"a": tensor(offset=-1)}, "sizes and strides"),
    "a tensor that goes backwards": ({"a": tensor(offset=5, strides=(-1,))}, "sizes and strides"),
    "a tensor of half a size": ({"a": tensor(shape=(6.0,))}, "sizes and strides"),
    "a tensor of a size too many": ({"a": tensor(shape=(6, 1))}, "sizes and strides"),
    "a tensor of nothing and of numbers beyond counting": (
        {"a": tensor(shape=(0, 2**50, 2**50), strides=(0, 0, 0))}, "sizes and strides"
    ),
    "a tensor of 100 dimensions": ({"a": tensor(shape=(1,) * 100, strides=(1,) * 100)}, "sizes and strides"),
    "a tensor of no storage": ({"a": tensor(written(3))}, "sizes and strides"),
    "a tensor of the opposite numbers": ({"a": tensor(None, 0, (6,), (1,), {"neg": True})}, "stand for others"),
    "a tensor as state of another": ({"a": tensor() + tensor() + b"b"}, "refused to run a program"),
    "a program": ({"a": called("os", "system", "true")}, "refused to run a program: 'os.system'"),
    "a program that is not called": ({"a": tensor(), "b": b"cbuiltins\neval\n"}, "'builtins.eval'"),
    "a program of torch": ({"a": called("torch", "hub.load", "x", "y")}, "'torch.hub.load'"),
    "a program of a name without end": (b"c" + b"x" * 10**6, "damaged"),
    "a call of what is no function": ({"a": written("os.system") + b")R"}, "calls what is no function"),
    "a call without arguments": ({"a": b"ctorch._utils\n_rebuild_parameter\n)R"}, "_rebuild_parameter 0 arguments"),
    "a tensor without its hooks": (
        {"a": called("torch._utils", "_rebuild_tensor_v2", storage(), 0, (6,), (1,), False)}, "_v2 5 arguments",
    ),
    "a tensor with too much": ({"a": tensor(None, 0, (6,), (1,), {}, 1)}, "_v2 8 arguments"),
    "an instruction of later versions": (b"\x8c\2os\x8c\6system\x93)R", "instruction 0x8c"),
    "an instruction that makes an object": ({"a": b"ctorch.nn.parameter\nParameter\n)\x81"}, "instruction 0x81"),
    "entries of what is no dictionary": (tensor() + b"(" + written("a") + b"K\1u", "no dictionary"),
    "an entry of what is no list": ({"a": b"}K\1a"}, "no list"),
    "a dictionary of no pairs": (called("collections", "OrderedDict", [[1, 2, 3]]), "hold tensors by name"),
    "a name without a value": (b"}(" + written("a") + b"u", "no dictionary"),
    "a stack that is empty": (b"R", "damaged"),
    "a mark that is not there": (b"t", "damaged"),
    "a memory that is not there": (b"h\7", "damaged"),
    "a string longer than the pickle": (b"X\xff\xff\xff\xff", "damaged"),
    "millions of instructions": (b"N" * 2_000_000, "more than 400000 instructions"),
    "400,000 lists": (b"]" * 390_000, "must hold tensors by name"),
    "400,000 memories": (b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(390_000)), "hold tensors"),
}  # fmt: skip


def bin_of(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "pytorch_model.bin").write_bytes(content)


# Configurations and indices


def change_json(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return changed


def field(section: str, **fields: Any) -> Callable[[Path], object]:
    return change_json("config.json", lambda config: config[section].update(fields))


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def text_of(file: str, make: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(make((folder / file).read_text()))


def twice_at_last(text: str) -> str:
    many = "".join(f'"{i}": 0, ' for i in range(400_000))
    return f'{{{many}"399999": 0}}'


def many_shards(index: dict[str, Any]) -> None:
    index["weight_map"] = {f"{i}": f"{i % 100_000}.bin" for i in range(200_000)}


def own_link(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.unlink()
    shard.symlink_to(shard.name)


def links_in_a_circle(folder: Path) -> None:
    one, other, *_ = sorted(folder.glob("model-*.safetensors"))
    for file, to in ((one, other), (other, one)):
        file.unlink()
        file.symlink_to(to.name)


def change_head(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Of model.safetensors, its bytes left as they are."""

    def changed(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + length])
        change(head)
        text = json.dumps(head).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return changed


def renamed(make: Callable[[int], str]) -> Callable[[dict[str, Any]], object]:
    def change(head: dict[str, Any]) -> None:
        head |= {make(i): head.pop(name) for i, name in enumerate([name for name in head if name != "__metadata__"])}

    return change


def nearly(head: dict[str, Any]) -> None:
    """Of 45 tensors, whose names are compared with all that are missing."""
    for name in [name for name in head if name != "__metadata__"][:45]:
        head[(name[::2] + name[1::2])[::-1]] = head.pop(name)


def add_empty(count: int) -> Callable[[dict[str, Any]], object]:
    def change(head: dict[str, Any]) -> None:
        head |= {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}

    return change


def change_settings(file: str, change: Callable[[dict[str, Any]], object], more: str = "") -> Callable[[Path], object]:
    """The xp.cfg of one file of a release, and what is written behind it."""

    def changed(folder: Path) -> None:
        content = torch.load(folder / file, weights_only=True)
        settings = yaml.safe_load(content["xp.cfg"])
        change(settings)
        content["xp.cfg"] = yaml.safe_dump(settings, sort_keys=False) + more
        torch.save(content, folder / file)

    return changed


CHAIN = "".join(f"c{i}: ${{c{i + 1}}}\n" for i in range(40_000)) + "c40000: 32\n"


def width(value: str) -> Callable[[dict[str, Any]], object]:
    return lambda settings: settings["transformer_lm"].update(dim=value)


def pipe(name: str) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return changed


def terabyte(name: str) -> Callable[[Path], object]:
    """A file of holes."""
    return lambda folder: os.truncate(folder / name, 10**12)


LM, CODEC = "state_dict.bin", "compression_state_dict.bin"
OTHERS = {
    "a growth of 10 ** 9": Crafted(
        "whole", field("audio_encoder", dilation_growth_rate=10**9, num_residual_layers=2), "dilation_growth_rate"
    ),
    "a growth of 8 over 9 layers": Crafted(
        "whole", field("audio_encoder", dilation_growth_rate=8, num_residual_layers=9), "dilation_growth_rate"
    ),
    "audio of 10 ** 9 Hz": Crafted(
        "whole", field("audio_encoder", sampling_rate=10**9), "sampling_rate must be at most"
    ),
    "frames of 10 ** 9 samples": Crafted(
        "whole", field("audio_encoder", upsampling_ratios=[32] * 6), "upsampling_ratios must multiply to at most"
    ),
    "pieces of a sample": Crafted(
        "whole", field("audio_encoder", chunk_length_s=0.01, overlap=0.5), "chunk_length_s must begin pieces"
    ),
    "pieces that begin at every sample": Crafted(
        "whole", field("audio_encoder", chunk_length_s=100.0, overlap=0.99), "chunk_length_s must begin pieces"
    ),
    "a release's growth": Crafted(
        "audiocraft",
        change_settings(CODEC, lambda all: all["seanet"].update(dilation_base=10**9, n_residual_layers=2)),
        "seanet.dilation_base",
    ),
    "a release's rate": Crafted(
        "audiocraft",
        change_settings(CODEC, lambda all: all.update(sample_rate=10**9)),
        "encodec.sample_rate must be at",
    ),
    "a release's frames": Crafted(
        "audiocraft", change_settings(CODEC, lambda all: all["seanet"].update(ratios=[32] * 6)), "seanet.ratios"
    ),
    "a chain of 40,000 references": Crafted(
        "audiocraft", change_settings(LM, width("${c0}"), CHAIN), "within 20 references"
    ),
    "a reference of 400,000 characters": Crafted(
        "audiocraft", change_settings(LM, width("${" + "a." * 200_000 + "a}")), "transformer_lm.dim"
    ),
    "a section 400 deep": Crafted(
        "whole",
        change_json("config.json", lambda config: config.update(decoder=deep(400))),
        "decoder must be an object",
    ),
    "a field 400 deep": Crafted("whole", field("decoder", hidden_size=deep(400)), "decoder.hidden_size must be"),
    "a type 400 deep": Crafted("whole", field("decoder", model_type=deep(400)), "decoder.model_type must be"),
    "a list of a million sizes": Crafted(
        "whole", field("audio_encoder", upsampling_ratios=[2] * 10**6), "upsampling_ratios must be at most"
    ),
    "400,000 names, one of them twice": Crafted("whole", text_of("config.json", twice_at_last), "given twice"),
    "a map 400 deep": Crafted(
        "shards",
        change_json("model.safetensors.index.json", lambda index: index.update(weight_map=deep(400))),
        "weight_map",
    ),
    "a map of 100,000 files": Crafted(
        "shards", change_json("model.safetensors.index.json", many_shards), "at most 1000 files"
    ),
    "a shard that is a link to itself": Crafted("shards", own_link, "is a link to itself"),
    "shards that are links to one another": Crafted("shards", links_in_a_circle, "is a link to itself"),
    "tensors of long names": Crafted("whole", change_head(renamed(lambda i: f"{i}" * 10_000)), "names must be"),
    "tensors whose names break the line": Crafted(
        "whole", change_head(renamed(lambda i: f"{i}\n\x1b")), "names must be"
    ),
    "tensors of other names": Crafted(
        "whole", change_head(renamed(lambda i: f"decoder.{'weight' * 28}.{i}")), "do not fit"
    ),
    "80,000 tensors of nothing": Crafted("whole", change_head(add_empty(80_000)), "at most 20000 tensors"),
    "10,000 tensors of nothing": Crafted("whole", change_head(add_empty(10_000)), "do not fit"),
    "names that are nearly those of others": Crafted("whole", change_head(nearly), "do not fit"),
    "a dtype 400 deep": Crafted(
        "whole", change_head(lambda head: [*head.values()][-1].update(dtype=deep(400))), "dtype of"
    ),
    "a pipe in place of weights": Crafted("whole", pipe("model.safetensors"), "no such file"),
    "a pipe in place of a codec": Crafted("stub", pipe(CODEC), "no such file"),
    "a pipe in place of a configuration": Crafted("whole", pipe("config.json"), "no such file"),
    "a configuration of a terabyte": Crafted("whole", terabyte("config.json"), "must have at most"),
    "weights of a terabyte": Crafted("whole", terabyte("model.safetensors"), "not a readable weights file"),
    "an archive of a terabyte": Crafted("bin", terabyte("pytorch_model.bin"), "does not end as an archive"),
    "metadata 400 deep": Crafted(
        "whole", change_head(lambda head: head.update(__metadata__={"x": deep(400)})), "__metadata__"
    ),
}

CRAFTED: dict[str, Crafted] = {
    **{name: Crafted("bin", bin_of(content), words) for name, (content, words) in ARCHIVES.items()},
    **{name: Crafted("bin", bin_of(pickled(value)), words) for name, (value, words) in PICKLES.items()},
    **OTHERS,
}
