"""LoRA adapters, as peft saves them: merged into the tensors of a checkpoint as these are read.

An adapter is adapter_config.json and adapter_model.safetensors (or .bin). For each weight W that it changes it holds
two small matrices A and B: the merged weight is W + s B A, of an embedding W + s (B A)^T, where s is lora_alpha / r.
Anything else that peft may have trained is refused by its name.
"""

import math
import re
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..messages import listed, shown, spelled
from .files import Bin, Safetensors, Tensors, open_weights, read_json
from .huggingface import CODEC, TEXT, current_name

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")  # the first that is there is read
# Fields by which an adapter could be something else than the sum above, and the values with which it is that sum. All
# other fields say how it was trained, or which tensors it has, which the tensors themselves tell.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    # How the two matrices began. The other ways also change W, which is then no longer the checkpoint's.
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
    **dict.fromkeys(
        (
            "use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern",
            "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
            "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
            "megatron_config",
        ),
        (None, False, [], {}),
    ),
}  # fmt: skip
CONFIG_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 8, "use_rslora": False}  # peft's
# "base_model.model." is peft's prefix. Older files have the adapter's name ("default") in the middle or at the end.
KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)
# What names lack where one part was trained alone: the decoder with its heads or without them, the text encoder.
PARTS = ("", "decoder.", "decoder.model.", TEXT)
EMBEDDINGS = re.compile(r".+\.(embed_tokens\.\d+|shared|relative_attention_bias)\.weight")


def check_base(path: Path) -> None:
    """Raise FileNotFoundError for a directory that holds an adapter alone; the message says where to get the model."""
    if (path / CONFIG).exists() and not (path / "config.json").exists():
        base = read_json(path / CONFIG).get("base_model_name_or_path")
        raise FileNotFoundError(
            f"{path}: holds an adapter alone, {CONFIG} without config.json, of the model {shown(base, 200)}: get that "
            f"(hf download {spelled(base, 200) if isinstance(base, str) else 'NAME'} --local-dir BASE), and load BASE "
            f"with adapter={str(path)!r} (--adapter {path})"
        )


def files_in(path: Path) -> list[str]:
    """The names of the adapter's files in a directory."""
    return [name for name in (CONFIG, *FILES) if (path / name).exists()]


def find(path: Path, given: bool | str | PathLike[str] | None) -> Path | None:
    """The directory of the adapter to merge into the weights that lie in `path`; None where none is to be merged.

    given: True means the adapter beside the weights, a path the adapter in that directory, False no adapter. Raises
    ValueError where None is given and an adapter lies beside the weights, since the caller has to choose; and
    FileNotFoundError for an adapter that is not there.
    """
    beside = files_in(path)
    if given is None and beside:
        kind = read_json(path / CONFIG).get("peft_type") if beside[0] == CONFIG else "unknown"
        raise ValueError(
            f"{path / beside[0]}: an adapter ({spelled(kind, 50)}) lies beside the weights: adapter=True (--adapter) "
            f"merges it into them, adapter=False (--no-adapter) leaves it out"
        )
    if given is None or given is False:
        return None
    if given is not True and (not isinstance(given, str | PathLike) or "\0" in str(given)):
        raise ValueError(f"adapter must be True, False, None or a directory, got {shown(given)}")
    folder = path if given is True else Path(given)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"adapter: no such file: {folder / CONFIG}")
    return folder


def merge(tensors: Tensors, folder: Path) -> None:
    """Merge the adapter of a directory into the tensors of a checkpoint, which have transformers' names.

    A tensor is merged when it is read; the sum is made in fp32, whatever the dtypes. Raises FileNotFoundError for a
    file that is not there, and ValueError for anything but a plain LoRA, naming file and field, or for tensors that do
    not fit, listing them all.
    """
    rank, scale = _read_config(folder / CONFIG)
    file = next((folder / name for name in FILES if (folder / name).exists()), folder / FILES[0])
    reader = open_weights(file)
    pairs: dict[tuple[str, bool], dict[str, str]] = {}
    wrong: list[str] = []
    for key in reader.shapes:
        match = KEY.fullmatch(key)
        name = None if match is None else _target(match["module"], tensors)
        if match is None or name is None:
            wrong.append(f"{key} changes nothing that is known")
        elif name.startswith(CODEC):
            wrong.append(f"{key} is of the codec, whose weights are normed")
        elif name == TEXT + "shared.weight" and match["module"].endswith("shared"):
            wrong.append(f"{key} is of a table that only its other name, encoder.embed_tokens, applies")
        elif match["side"] in pairs.setdefault((name, match["embedding"] is not None), {}):
            wrong.append(f"{key} is a second {match['side']} for {name}")
        elif not reader.dtypes[key].is_floating_point:
            wrong.append(f"{key} must be floating point, is {reader.dtypes[key]}")
        else:
            pairs[name, match["embedding"] is not None][match["side"]] = key
    for (name, embedding), pair in pairs.items():
        wrong += _misfits(name, embedding, pair, reader, tensors.shapes[name], rank)
    if wrong or not pairs:
        told = listed(wrong, 2000, "; ") or "it has no tensors"
        raise ValueError(f"{file}: the adapter does not fit the model: {told}")
    for (name, embedding), pair in pairs.items():
        tensors.change(name, partial(_merged, reader, pair["A"], pair["B"], scale, embedding))


def _read_config(file: Path) -> tuple[int, float]:
    """The rank r and the scale s of an adapter. Raises ValueError for anything but a plain LoRA."""
    config = read_json(file)
    for field, allowed in PLAIN.items():
        value = config.get(field, "nothing" if field == "peft_type" else None)
        same = value.lower() if field == "init_lora_weights" and isinstance(value, str) else value
        if not any(type(same) is type(one) and same == one for one in allowed):
            raise ValueError(f"{file}: {field} must be one of {allowed}, got {shown(value)}: only plain LoRA is merged")
    rank, alpha, root = (config.get(field, default) for field, default in CONFIG_DEFAULTS.items())
    if type(rank) is not int or not 0 < rank < 2**31:
        raise ValueError(f"{file}: r must be a whole number above 0, got {shown(rank)}")
    if type(alpha) not in (int, float) or not -(2**31) < alpha < 2**31:
        raise ValueError(f"{file}: lora_alpha must be a number of reasonable size, got {shown(alpha)}")
    if root not in (None, True, False):
        raise ValueError(f"{file}: use_rslora must be true or false, got {shown(root)}")
    return rank, alpha / (math.sqrt(rank) if root else rank)


def _target(module: str, tensors: Tensors) -> str | None:
    """The name that a module's weight has in the checkpoint; None where it has no such tensor."""
    if module.startswith(CODEC):
        return module
    names = (current_name(f"{prefix}{module}.weight") for prefix in PARTS)
    return next((name for name in names if name in tensors.shapes), None)


def _misfits(
    name: str,
    embedding: bool,
    pair: dict[str, str],
    reader: Safetensors | Bin,
    shape: tuple[int, ...],
    rank: int,
) -> list[str]:
    if len(pair) < 2:
        return [f"{key} has no {'B' if side == 'A' else 'A'} beside it" for side, key in pair.items()]
    if len(shape) != 2 or embedding != bool(EMBEDDINGS.fullmatch(name)):
        return [f"{pair['A']} is not what a change of {name} {shape} looks like"]
    first, last = shape if embedding else shape[::-1]
    expected = {"A": (rank, first), "B": (last, rank)}
    return [
        f"{pair[side]} must be {must} for {name} {shape} and r {rank}, is {reader.shapes[pair[side]]}"
        for side, must in expected.items()
        if reader.shapes[pair[side]] != must
    ]


def _merged(reader: Safetensors | Bin, a: str, b: str, scale: float, embedding: bool, weight: Tensor) -> Tensor:
    change = scale * (reader.get(b).float() @ reader.get(a).float())
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + (change.T if embedding else change)
