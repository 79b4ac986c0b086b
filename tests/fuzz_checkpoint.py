"""Damaged and hostile checkpoints: each ends in a ValueError or FileNotFoundError that names a file, or loads right.

`python -m tests.fuzz_checkpoint --count 5000` first loads each of the directories of tests/handcrafted.py, which must
be refused. Then it mutates every part of valid directories of all layouts, one mutation or two at a time, and loads
each in this process. A directory that still loads must hold what independent readers (safetensors, torch) find in its
files, and is used: a text is encoded, codes are made, decoded and coded again. What a case may take, its use included,
is measured as what this process took: 2 seconds of its own time, and 300 MB above what it had.

`python -m tests.fuzz_checkpoint --unknown 1000` puts sections and keys that nobody knows anywhere into the
configurations of all layouts, but where an addition changes what is computed: each must open and generate the same.
"""

import argparse
import io
import json
import os
import pickle
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.checkpoint import audiocraft, huggingface, mapping
from tests import handcrafted, release, tiny

SECONDS, BYTES, MESSAGE = 2.0, 300_000_000, 4096
HOSTILE: list[Any] = [
    -1, 0, 1, 3, 10**9, 2**31, 2**62, 10**400, 1.5, 1e308, float("nan"), float("inf"), True, None, "", "8", "../x", [],
    {}, [[]], [10**9], "x" * 100_000,
]  # fmt: skip


def build(root: Path) -> list[Path]:
    """Valid directories: one file, shards, .bin, .bin shards, audiocraft's, that with the name of its codec."""
    folders = [root / name for name in ("whole", "shards", "bin", "bin shards", "audiocraft")]
    for kind, folder in zip(["mono", "stereo", "mono", "mono"], folders, strict=False):
        model = release.model(kind)
        if folder.name == "shards":
            model.save_pretrained(folder, max_shard_size="60KB")
        else:
            model.save_pretrained(folder)
        (folder / "spiece.model").write_bytes(tiny.spiece())
    for folder in folders[2:4]:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        if folder.name == "bin":
            torch.save(state, folder / "pytorch_model.bin")
            continue
        names = [f"pytorch_model-{i:05}-of-00002.bin" for i in (1, 2)]
        weight_map = {name: names[i % 2] for i, name in enumerate(state)}
        for file in names:
            torch.save({name: state[name] for name in state if weight_map[name] == file}, folder / file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    release.write(release.model(), folders[4], tokenizer=tiny.spiece())
    folders.append(named_codec(folders[4], root / "stub"))
    return folders


def named_codec(original: Path, folder: Path) -> Path:
    """A copy of a release that names its codec, which lies inside as transformers saves it."""
    shutil.copytree(original, folder)
    release.publish_stub(folder)
    release.model().audio_encoder.save_pretrained(folder / "encodec_32khz")
    return folder


# Mutations. Each takes a random generator and the directory, and changes something in it.


def files_of(folder: Path) -> list[Path]:
    """Without links, through which a case would reach into others."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def flip(r: random.Random, folder: Path) -> None:
    """Bytes anywhere, most often near the start or the end, where the structure is."""
    file = r.choice(files_of(folder))
    data = bytearray(file.read_bytes())
    for _ in range(r.choice([1, 1, 1, 3, 20])):
        near = r.choice([len(data), 200, 3000])
        at = r.randrange(min(near, len(data)))
        data[at if r.random() < 0.6 else len(data) - 1 - at] = r.randrange(256)
    file.write_bytes(data)


def cut(r: random.Random, folder: Path) -> None:
    """Truncated, emptied, lengthened, or with a piece left out or doubled."""
    file = r.choice(files_of(folder))
    data = file.read_bytes()
    a, b = sorted(r.randrange(len(data) + 1) for _ in range(2))
    file.write_bytes(
        r.choice(
            [data[:a], b"", data + data[a:b], data[:a] + data[b:], data[:b] + data[a:], data + bytes(r.randrange(99))]
        )
    )


def remove(r: random.Random, folder: Path) -> None:
    """A file is gone, is a directory, or is another file."""
    file = r.choice(files_of(folder))
    file.unlink()
    what = r.randrange(3)
    if what == 1:
        file.mkdir()
    elif what == 2:
        shutil.copy(r.choice(files_of(folder)), file)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(Container, key) of everything in a tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []:
        yield tree, key
        yield from places(tree[key])


def mutate_tree(r: random.Random, tree: Any) -> None:
    """A value replaced, removed, copied from elsewhere, or under another name."""
    found = list(places(tree))
    container, key = r.choice(found)
    what = r.randrange(6)
    if what <= 2:
        container[key] = r.choice(HOSTILE)
    elif what == 3:
        other, name = r.choice(found)
        container[key] = json.loads(json.dumps(other[name]))
    elif what == 4:
        del container[key]
    elif isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)


def change_json(r: random.Random, folder: Path) -> None:
    file = r.choice([file for file in files_of(folder) if file.suffix == ".json"])
    tree = json.loads(file.read_text())
    mutate_tree(r, tree)
    file.write_text(json.dumps(tree))


def bomb(r: random.Random, folder: Path) -> None:
    """JSON that is deep, large, doubled or none."""
    file = r.choice([file for file in files_of(folder) if file.suffix == ".json"])
    text = file.read_text()
    doubled = text.rstrip()[:-1] + ', "model_type": "musicgen", "model_type": "t5"}'
    file.write_text(
        r.choice(
            [
                "[" * 10**6,
                '{"a":' * 10**5,
                text.replace("{", '{"x": ' + "[" * 5000 + "]" * 5000 + ",", 1),
                text + " " * 10**7,
                '{"a": "' + "x" * 10**7 + '"}',
                '{"a": ' + "9" * 10**6 + "}",
                doubled,
                "[1, 2]",
                "{",
            ]
        )
    )


def change_head(r: random.Random, folder: Path) -> None:
    """The head of a .safetensors file, consistent in itself again: names, dtypes, shapes, offsets."""
    found = [file for file in files_of(folder) if file.suffix == ".safetensors"]
    if not found:
        return change_pickle(r, folder)
    file = r.choice(found)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    names = [name for name in head if name != "__metadata__"]
    one, other = r.choice(names), r.choice(names)
    entry = head[one]
    what = r.randrange(11)
    if what == 0:
        entry["dtype"] = r.choice(["I32", "F64", "F16", "BF16", "F8_E4M3", "C64", "BOOL", "f32", 4, None])
    elif what == 1:
        entry["shape"] = r.choice(
            [[], [2**40], [-1, 4], entry["shape"][::-1], [*entry["shape"], 1], [0], [2**31, 2**31]]
        )
    elif what == 2:
        entry["data_offsets"] = r.choice([[0, 2**50], [-4, 0], [4, 0], [0], head[other]["data_offsets"], "x", [1.5, 2]])
    elif what == 3:
        head[one + r.choice(["", "x", ".weight"])] = head.pop(one)
    elif what == 4:
        del head[one]
    elif what == 5:
        head[f"{one}.copy"] = entry
    elif what == 6:
        head[one], head[other] = head[other], head[one]
    elif what == 7:
        head["__metadata__"] = r.choice([{"format": 3}, [], {"x": "y" * 10**6}])
    elif what == 8:
        entry["data_offsets"][1] += 4
    elif what == 9:
        head = {name: head[name] for name in r.sample(list(head), len(head) // 2)}
    else:
        mutate_tree(r, head)
    text = json.dumps(head)
    if r.random() < 0.1:
        text = text[:-1] + f", {json.dumps(one)}: {json.dumps(entry)}" + "}"
    size = len(text) if r.random() < 0.9 else r.choice([0, 2**63, 2**40, len(text) - 1, len(data)])
    file.write_bytes(size.to_bytes(8, "little") + text.encode() + data[8 + length :])


def change_map(r: random.Random, folder: Path) -> None:
    """The map from tensors to shards."""
    found = [file for file in files_of(folder) if file.name.endswith(".index.json")]
    if not found:
        return change_json(r, folder)
    index = json.loads(found[0].read_text())
    weight_map = index["weight_map"]
    one, other = r.choice(list(weight_map)), r.choice(list(weight_map))
    outside = folder.parent / "outside.safetensors"
    (folder / "link.safetensors").symlink_to(outside)
    weight_map[one] = r.choice(
        [
            *("../outside.safetensors", str(outside), "link.safetensors", weight_map[other], "config.json", "", ".", 3),
            *("a/../../outside.safetensors", "spiece.model", "nothing.safetensors", "/dev/zero", "\0", None, []),
        ]
    )
    if r.random() < 0.3:
        del weight_map[other]
    found[0].write_text(json.dumps(index))
    return None


class Program:
    """Unpickled, it would make a file."""

    def __init__(self, target: str):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def program_of(folder: Path) -> Program:
    return Program(str(folder.parent / "it ran"))


def change_pickle(r: random.Random, folder: Path) -> None:
    """What a .bin file holds: names, shapes, dtypes, kinds of values, programs, xp.cfg."""
    found = [file for file in files_of(folder) if file.suffix == ".bin"]
    if not found:
        return change_json(r, folder)
    file = r.choice(found)
    content = torch.load(file, weights_only=True)
    state = content.get("best_state", content)
    if "pretrained" in content:
        content["pretrained"] = r.choice([*HOSTILE, "dac_44khz", ".", "..", "a/b/c", "/etc", program_of(folder)])
        torch.save(content, file)
        return None
    one, other = r.choice(list(state)), r.choice(list(state))
    tensor = state[one]
    program = program_of(folder)
    what = r.randrange(14)
    values: list[Any] = [
        tensor.double(), tensor.half(), tensor.int(), tensor[None], tensor.flatten(), tensor[:0], tensor.to_sparse(),
        tensor.new_zeros(1).expand(10**9), tensor.to("meta"), torch.nn.Parameter(tensor), tensor.numpy(), None,
        tensor.flatten()[:1].as_strided(tensor.shape, [0] * tensor.dim()), "x", program, 3, {"a": tensor}, [tensor],
        tensor.t() if tensor.dim() == 2 else tensor + 0j,
    ]  # fmt: skip
    if what <= 3:
        state[one] = r.choice(values)
    elif what == 4:
        state[f"{one}x"] = state.pop(one)
    elif what == 5:
        del state[one]
    elif what == 6:
        state[r.choice([3, None, (1, 2), b"x"])] = tensor
    elif what == 7:
        state[one], state[other] = state[other], state[one]
    elif what == 8:
        content[r.choice(["best_state", "xp.cfg", "pretrained", "extra"])] = r.choice([*HOSTILE, program, [state]])
    elif what == 9:
        file.write_bytes(pickle.dumps(content if r.random() < 0.5 else {"a": program}, protocol=r.choice([2, 4])))
        return None
    elif what == 10:
        torch.save(content, file, _use_new_zipfile_serialization=False)
        return None
    elif "xp.cfg" in content and what == 11:
        text = content["xp.cfg"]
        at = r.randrange(len(text))
        content["xp.cfg"] = (
            text[:at] + r.choice(["", "\n", ":", "- ", "x", "&a ", " " * 9, "[" * 9, "{", "\0"]) + text[at + 1 :]
        )
    elif "xp.cfg" in content:
        tree = yaml.safe_load(content["xp.cfg"])
        sections = ("transformer_lm", "codebooks_pattern", "conditioners", "fuser", "seanet", "encodec", "rvq")
        mutate_tree(r, {name: tree[name] for name in sections if name in tree})
        content["xp.cfg"] = yaml.safe_dump(tree)
    else:
        content = r.choice([[state], {"state_dict": state}, tensor, 3, program, {}])
    try:
        torch.save(content, file)
    except (RuntimeError, TypeError):  # of some kinds torch cannot save a part
        return flip(r, folder)
    return None


def change_archive(r: random.Random, folder: Path) -> None:
    """The records of a .bin file: a number in the header or in the list of an entry, or in the end, or entries put
    together anew with one of them doubled, packed, cut, renamed or left out, or one archive beside another."""
    found = [file for file in files_of(folder) if file.suffix == ".bin"]
    if not found:
        return change_head(r, folder)
    file = r.choice(found)
    data = bytearray(file.read_bytes())
    what = r.randrange(4)
    if what <= 1:
        starts = [
            at for sign in (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7") for at in places_of(data, sign)
        ]
        at = r.choice(starts) + r.randrange(4, 46)
        size = min(r.choice([1, 2, 4, 8]), len(data) - at)
        if size > 0:
            number = r.choice([0, 1, 2**32 - 1, 2**64 - 1, len(data), r.randrange(len(data)), r.randrange(2**16)])
            data[at : at + size] = (number % 256**size).to_bytes(size, "little")
    elif what == 2:
        other = r.choice(found).read_bytes()
        data = bytearray(
            r.choice([data + other, other[: r.randrange(99)] + data, data[: r.randrange(len(data))] + other])
        )
    else:
        with zipfile.ZipFile(file) as old:
            entries = [(info.filename, old.read(info)) for info in old.infolist()]
        one, other_one = r.randrange(len(entries)), r.randrange(len(entries))
        name, content = entries[one]
        entries[one] = r.choice(
            [
                *((name, content[: len(content) // 2]), (name, content + b"\0"), (f"{name}x", content)),
                *((name, entries[other_one][1]), (entries[other_one][0], content), (name.partition("/")[2], content)),
            ]
        )
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", r.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED])) as new:
            for each, inside in entries:
                if each not in new.namelist():
                    new.writestr(each, inside)
        data = bytearray(out.getvalue())
    file.write_bytes(data)
    return None


def places_of(data: bytearray, sign: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(sign), data)]


def change_program(r: random.Random, folder: Path) -> None:
    """The pickle of a .bin file, in an archive with the right checksums: instructions changed, doubled, left out."""
    found = [file for file in files_of(folder) if file.suffix == ".bin"]
    if not found:
        return change_head(r, folder)
    file = r.choice(found)
    with zipfile.ZipFile(file) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(file, "w") as new:
        for name, content in entries:
            if name.endswith("data.pkl"):
                content = bytearray(content)
                for _ in range(r.choice([1, 1, 1, 2, 5])):
                    at, what = r.randrange(len(content)), r.randrange(4)
                    if what == 0:
                        content[at] = r.randrange(256)
                    elif what == 1:
                        content[at] = r.choice(b"(N\x88\x89)]}JKMG\x8aXUqrhjt\x85\x86\x87aesucRQb\x80.")
                    elif what == 2:
                        del content[at : at + r.choice([1, 2, 5, 40])]
                    else:
                        content[at:at] = content[(b := r.randrange(len(content))) : b + r.choice([1, 2, 5, 40])]
            new.writestr(name, bytes(content))
    return None


def link(r: random.Random, folder: Path) -> None:
    """A file that is a link: to itself, to a directory, to nothing, to another of the files, or a pipe."""
    file = r.choice(files_of(folder))
    other = r.choice(files_of(folder))
    file.unlink()
    if r.random() < 0.2:
        os.mkfifo(file)
    else:
        file.symlink_to(r.choice([file.name, ".", "nothing", other.name, "/dev/zero", "/dev/null"]))


# Sizes that are in no tensor, or decide how many there are, in either layout.
SIZES = {
    "config.json": [
        *(("audio_encoder", name) for name in ("sampling_rate", "dilation_growth_rate", "num_residual_layers")),
        *(("audio_encoder", name) for name in ("upsampling_ratios", "chunk_length_s", "overlap", "trim_right_ratio")),
        *(("audio_encoder", name) for name in ("compress", "use_causal_conv", "pad_mode", "target_bandwidths")),
        *(("decoder", name) for name in ("num_attention_heads", "audio_channels", "layerdrop")),
        *(("text_encoder", name) for name in ("relative_attention_max_distance", "num_heads", "layer_norm_epsilon")),
    ],
    "state_dict.bin": [("codebooks_pattern.delay", "delays"), ("transformer_lm", "num_heads")],
    "compression_state_dict.bin": [
        *((".", "sample_rate"), ("seanet", "dilation_base"), ("seanet", "n_residual_layers"), ("seanet", "ratios")),
        *(("seanet", "compress"), ("rvq", "n_q"), ("rvq", "q_dropout"), ("seanet.decoder", "trim_right_ratio")),
    ],
}  # fmt: skip
SOME: list[Any] = [
    1, 2, 3, 7, 50, 1000, 30_000, 192_000, 10**6, 0.01, 0.5, 0.99, 1.0, 100.0, True, [1], [2, 2, 2], [8, 1], [128, 128],
    [100, 100, 100, 100], "constant",
]  # fmt: skip


def change_sizes(r: random.Random, folder: Path) -> None:
    """Some of the sizes to others that may stand there."""
    file = r.choice([file for file in files_of(folder) if file.name in SIZES])
    content: Any = None
    if file.suffix == ".json":
        tree = json.loads(file.read_text())
    else:
        content = torch.load(file, weights_only=True)
        if "xp.cfg" not in content:
            return change_json(r, folder)
        tree = yaml.safe_load(content["xp.cfg"])
    for path, name in r.sample(SIZES[file.name], r.choice([1, 1, 2])):
        section = tree
        for key in path.strip(".").split(".") if path != "." else []:
            section = section.get(key, section)
        section[name] = r.choice(SOME)
    if content is None:
        file.write_text(json.dumps(tree))
    else:
        torch.save(content | {"xp.cfg": yaml.safe_dump(tree)}, file)
    return None


MUTATIONS: list[Callable[[random.Random, Path], None]] = [
    flip, flip, cut, remove, change_json, change_json, bomb, change_head, change_head, change_map, change_pickle,
    change_pickle, change_pickle, change_archive, change_archive, change_program, change_program, change_sizes,
    change_sizes, change_sizes, link,
]  # fmt: skip


# Judging


def expected(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What independent readers find in the files."""
    for file in files_of(folder):
        if file.suffix == ".safetensors":
            inside = {folder.name: "", "encodec_32khz": huggingface.CODEC}.get(file.parent.name, "t5:")
            yield (inside, load_file(file))
        elif file.suffix == ".bin":
            content = torch.load(file, weights_only=True)
            prefix = {"state_dict.bin": "lm:", "compression_state_dict.bin": "codec:"}.get(file.name, "")
            if "pretrained" not in content:
                yield (prefix, content["best_state"] if prefix else content)


def loads_right(folder: Path, model: MusicGen) -> bool:
    """Whether the model holds what is in the files."""
    configs = model.text_encoder.config, model.decoder.config, model.codec.config
    original = not (folder / "config.json").exists()
    layout: Any = audiocraft if original else huggingface
    found: dict[str, Tensor] = {}
    weights = [file.name for file in folder.iterdir() if file.name in ("model.safetensors", "pytorch_model.bin")]
    for prefix, state in expected(folder):
        if weights and not original and "model.safetensors" in weights and not state:
            continue
        current = huggingface.current_name if prefix == huggingface.CODEC else layout.current_name
        found |= {current(prefix + name): tensor for name, tensor in state.items()}
    state = model.state_dict()
    table = layout.table(*configs)
    if (folder / "encodec_32khz").exists():
        table = [*huggingface.codec_table(configs[2]), *table]
    pieces = mapping.expand(table, {name: tuple(t.shape) for name, t in state.items()})
    right = mapping.read(state, pieces, SimpleNamespace(shapes={}, get=lambda name, mapped=False: found[name]))
    return all(torch.equal(right[name].nan_to_num(7), state[name].nan_to_num(7)) for name in state)


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def use(model: MusicGen) -> str:
    """ "" for a model that computes something of everything, or says by ValueError why it does not; else what is wrong.
    Weights may be any, so that what is computed may be, too."""
    ids = torch.arange(5)[None] % model.text_encoder.config.vocab_size
    try:
        codes = model.generate((ids, torch.ones_like(ids)), GenerationOptions(frames=4, greedy=True)).codes
        audio = model.decode(codes)
        model.encode(audio.nan_to_num().clamp(-1, 1), model.sampling_rate)
    except ValueError as error:
        return f"a message of {len(str(error))} characters" if len(str(error)) > MESSAGE else ""
    except BaseException:
        return traceback.format_exc()
    return ""


class Judged(NamedTuple):
    """verdict: "" for a case that ends as it must, "loaded" where it loads right; else what is wrong. seconds, used: of
    its own time, and the most bytes above what it had, that the process took."""

    verdict: str
    seconds: float
    used: int

    def with_(self, other: "Judged") -> "Judged":
        """The most of both."""
        return Judged(self.verdict, max(self.seconds, other.seconds), max(self.used, other.used))


def judge(folder: Path) -> Judged:
    """Load a directory and use what was loaded."""
    linux = Path("/proc/self/clear_refs").exists()
    if linux:
        Path("/proc/self/clear_refs").write_text("5")
    # Of this process's own time: what else the machine does is no case's doing. A hang is cut by whoever runs this.
    before, began = memory("VmRSS:"), time.process_time()
    loaded, verdict = None, ""
    try:
        loaded = MusicGen.from_pretrained(folder)
        verdict = use(loaded)
    except (ValueError, FileNotFoundError) as error:
        if type(error) not in (ValueError, FileNotFoundError):
            verdict = f"{type(error).__name__}: {error}"
        elif str(folder) not in str(error):
            verdict = f"names no file: {error}"
        elif len(str(error)) > MESSAGE or not str(error).isprintable():
            verdict = f"a message of {len(str(error))} characters: {str(error)[:1000]!r}"
    except BaseException:
        verdict = traceback.format_exc()
    seconds, used = time.process_time() - began, memory("VmHWM:") - before
    if not verdict and seconds > SECONDS:
        verdict = f"took {seconds:.1f} s"
    if not verdict and linux and used > BYTES:
        verdict = f"took {used / 1e6:.0f} MB"
    if not verdict and (folder.parent / "it ran").exists():
        verdict = "ran a program"
    if not verdict and loaded is not None:
        try:
            verdict = "loaded" if loads_right(folder, loaded) else "loaded wrong"
        except Exception:
            verdict = f"loaded what others refuse: {traceback.format_exc()}"
    return Judged(verdict, seconds, used)


# What nobody knows

# Sections of an xp.cfg in which every key counts: one more is refused by its name.
COUNTED = {*audiocraft.LM_CLOSED, *audiocraft.CODEC_CLOSED}
JSON_FIELDS = (*huggingface.T5_FIELDS, *huggingface.DECODER_FIELDS, *huggingface.CODEC_FIELDS)
KNOWN = {path.rpartition(".")[2] for path in (*audiocraft.LM_READ, *audiocraft.CODEC_READ)}
KNOWN |= {theirs for _, theirs, _ in JSON_FIELDS} | {"args", "model_type", "codebook_dim", "feed_forward_proj"}
KNOWN |= {"pad_token_id", "bos_token_id", "quantization_config"}


def unknown_text(r: random.Random) -> str:
    """A word, or any text: quotes, newlines, escapes, colons, other alphabets, longer than a line."""
    if r.random() < 0.4:
        return "".join(r.choice("bcdfghjklmpqrstvwxz") for _ in range(r.randrange(3, 13)))
    pieces = [
        "a",
        "Z",
        " ",
        "  ",
        "\n",
        "'",
        '"',
        "\\",
        ":",
        ": ",
        " #",
        "-",
        "- ",
        "?",
        "{",
        "]",
        ",",
        "&",
        "*",
        "!",
        "%",
        "@",
        "|",
    ]
    pieces += [
        "\t",
        "é",
        "\u00a0",
        "音",
        "😀",
        "\x07",
        "0",
        "1e3",
        "null",
        "yes",
        "y",
        "~",
        "${x}",
        "/a b/c",
        "x" * 30,
        ".",
    ]
    return "".join(r.choice(pieces) for _ in range(r.choice([0, 1, 2, 5, 40])))


def unknown_key(r: random.Random) -> Any:
    """A key that no reader has heard of."""
    if r.random() < 0.8:
        key: Any = unknown_text(r)
    else:
        key = r.choice([r.randrange(-5, 5000), f"{unknown_text(r)} {unknown_text(r)}", f"{unknown_text(r)}: "])
    return key if str(key).strip() and key not in KNOWN else f"un{r.randrange(1000)}known"


def unknown_value(r: random.Random, depth: int = 0) -> Any:
    """null, a boolean, a number, a string, a list or a mapping."""
    kind = r.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return None
    if kind == 1:
        return r.random() < 0.5
    if kind == 2:
        return r.choice([0, -1, r.randrange(10**6), 2**40, -(10**15)])
    if kind == 3:
        return r.choice([0.5, 1e-08, -2.5e20, 1e300, float("inf"), float("nan"), r.random()])
    if kind == 4:
        return unknown_text(r)
    size = r.choice([0, 1, 2, 4])
    if kind == 5:
        return [unknown_value(r, depth + 1) for _ in range(size)]
    keys = {str(key): key for key in (unknown_key(r) for _ in range(size))}  # in JSON 5 and "5" are one
    return {key: unknown_value(r, depth + 1) for key in keys.values()}


def mappings(tree: Any, path: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """The mappings of a tree in which a key more changes nothing, by their dotted paths."""
    if isinstance(tree, dict):
        if path not in COUNTED:
            yield path, tree
        for key, item in tree.items():
            yield from mappings(item, f"{path}.{key}".removeprefix("."))
    elif isinstance(tree, list):
        for i, item in enumerate(tree):
            yield from mappings(item, f"{path}.{i}")


def add_unknown(r: random.Random, tree: dict[Any, Any]) -> list[str]:
    """Put up to four keys anywhere into a configuration; where they are."""
    added = []
    for _ in range(r.randrange(1, 5)):
        path, place = r.choice(list(mappings(tree)))
        key = unknown_key(r)
        if key in place or str(key) in place:
            continue
        items = list(place.items())
        items.insert(r.randrange(len(items) + 1), (key, unknown_value(r)))
        place.clear()
        place.update(items)
        added.append(f"{path}.{key}")
    return added


def change_unknown(r: random.Random, folder: Path) -> list[str]:
    """Add to one configuration of a directory, or to all of them; where."""
    files = [file for file in files_of(folder) if file.name == "config.json" or file.name.endswith("state_dict.bin")]
    added = []
    for file in files if r.random() < 0.3 else [r.choice(files)]:
        if file.suffix == ".json":
            tree = json.loads(file.read_text())
            added += [f"{file.name}: {where}" for where in add_unknown(r, tree)]
            file.write_text(json.dumps(tree))
            continue
        content = torch.load(file, weights_only=True)
        if "xp.cfg" in content:
            tree = yaml.safe_load(content["xp.cfg"])
            added += [f"{file.name}: {where}" for where in add_unknown(r, tree)]
            content["xp.cfg"] = release.to_yaml(tree)
        else:  # the name of a codec
            content[str(unknown_key(r))] = unknown_text(r)
        torch.save(content, file)
    return added


def generated(folder: Path) -> Tensor:
    """Greedy codes of a directory."""
    options = GenerationOptions(frames=6, greedy=True)
    return MusicGen.from_pretrained(folder).generate(tiny.text(2), options).codes


def run_unknown(count: int, seed: int) -> dict[str, Any]:
    """How many directories with unknown settings opened and generated the same, and what became of the others."""
    same = keys = 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        release.model().save_pretrained(root / "whole")
        tiny.hub_layout(Path(shutil.copytree(root / "whole", root / "hub")))
        release.publish(release.model(), root / "release")
        named_codec(root / "release", root / "stub")
        folders = [root / name for name in ("whole", "hub", "release", "stub")]
        right = [generated(folder) for folder in folders]
        for i in range(count):
            r, which = random.Random(f"{seed}-{i}"), i % len(folders)
            folder = Path(shutil.copytree(folders[which], root / "case"))
            added = change_unknown(r, folder)
            keys += len(added)
            try:
                verdict = "" if torch.equal(generated(folder), right[which]) else "generates others"
            except Exception as error:
                verdict = f"{type(error).__name__}: {error}"
            shutil.rmtree(folder)
            same += not verdict
            if verdict:
                wrong.append(f"case {i}, {folders[which].name}, {added}: {verdict}")
    return {"same": same, "keys": keys, "wrong": wrong}


def run(count: int, seed: int) -> dict[str, Any]:
    """How many cases were refused and loaded, how many made by hand were refused, what the most was that one took, and
    what was wrong with the others."""
    torch.set_num_threads(1)
    refused = loaded = crafted = 0
    wrong: list[str] = []
    most = Judged("", 0, 0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = build(root)
        shutil.copy(folders[0] / "model.safetensors", root / "outside.safetensors")
        for folder in folders:  # valid as they are; and what is imported on first use is no case's
            assert judge(folder).verdict == "loaded", folder
        for name, case in handcrafted.CRAFTED.items():
            folder = Path(shutil.copytree(root / case.folder, root / "case"))
            case.change(folder)
            judged = judge(folder)
            shutil.rmtree(folder)
            most = most.with_(judged)
            crafted += not judged.verdict
            if judged.verdict:
                wrong.append(f"{name}: {judged.verdict}")
        for i in range(count):
            r = random.Random(f"{seed}-{i}")
            folder = Path(shutil.copytree(folders[i % len(folders)], root / "case"))
            changes = [r.choice(MUTATIONS) for _ in range(r.choice([1, 1, 1, 2]))]
            for change in changes:
                if files_of(folder):
                    try:
                        change(r, folder)
                    except Exception:
                        flip(r, folder)  # after a first change there may be nothing that a second can read
            judged = judge(folder)
            verdict = judged.verdict
            shutil.rmtree(folder)
            most = most.with_(judged)
            loaded += verdict == "loaded"
            refused += not verdict
            if verdict not in ("", "loaded"):
                wrong.append(f"case {i}, {folders[i % len(folders)].name}, {[c.__name__ for c in changes]}: {verdict}")
    took = {"slowest": round(most.seconds, 2), "largest": round(most.used / 1e6)}
    return {"refused": refused, "loaded": loaded, "crafted": crafted, "wrong": wrong} | took


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_checkpoint")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--unknown", type=int, metavar="COUNT", help="add unknown settings instead")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.unknown:
        torch.set_num_threads(1)
        result = run_unknown(arguments.unknown, arguments.seed)
    else:
        result = run(arguments.count, arguments.seed)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["wrong"]))
