"""from_pretrained() and save_pretrained() of a whole MusicGen and of its parts, and what they take."""

import contextlib
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import checkpoint
from ..attention import BACKENDS
from ..checkpoint import huggingface, mapping
from ..checkpoint.atomic import beside, steady
from ..checkpoint.files import (
    WEIGHTS,
    Choice,
    Spec,
    Tensors,
    open_weights,
    read_json,
    weight_files,
    write_weights,
)
from ..checkpoint.source import add_files, building, fill, read_tokenizer, without_values
from ..decoder import Decoder
from ..encodec import Encodec
from ..fast import speed_up
from ..fast.int8 import Int8Linear, quantize
from ..model import MusicGen
from ..t5 import T5Encoder
from ..text import Tokenizer
from .configs import KINDS, SECTIONS, Config, MusicgenConfig, alone, from_ours, to_ours
from .files import CHOICE, HUB, IGNORED, directory, read_choice
from .messages import check_names

FLASH = "flash_attention_2"
PARTS = ("text_encoder", "decoder", "audio_encoder")  # whose attention can be chosen
LOADING = (
    "config", "dtype", "torch_dtype", "attn_implementation", "device_map", "load_in_8bit", "quantization_config", "fast"
)  # fmt: skip
# Our name of each part, the prefix of its tensors, and what else a directory of it may hold that is not asked for.
TENSORS = {
    "t5": ("text_encoder", "text_encoder.", ("text_encoder.decoder.", "text_encoder.lm_head.")),
    "encodec": ("codec", "audio_encoder.", ()),
    "musicgen_decoder": ("decoder", "decoder.", ()),
}


class BitsAndBytesConfig(NamedTuple):
    """quantization_config=BitsAndBytesConfig(load_in_8bit=True) is load_in_8bit=True."""

    load_in_8bit: bool = False


class Loading(NamedTuple):
    """What from_pretrained() was asked for, checked: dtype None is the file's."""

    dtype: torch.dtype | None
    device: torch.device
    attention: dict[str, str]  # by PARTS: "sdpa", "eager" or FLASH
    int8: bool
    fast: bool  # with the layers of musicgen_ref.fast


def read_options(given: Mapping[str, Any]) -> Loading:
    """Check the arguments of from_pretrained(). Raises ValueError naming the one that cannot be."""
    quantization = given.get("quantization_config")
    int8 = bool(given.get("load_in_8bit") or getattr(quantization, "load_in_8bit", False))
    if quantization is not None and not int8:
        raise ValueError(f"quantization_config must have load_in_8bit=True, which is all there is, got {quantization}")
    dtype: Any = given.get("dtype") if given.get("dtype") is not None else given.get("torch_dtype")
    names = {str(kind).removeprefix("torch."): kind for kind in checkpoint.DTYPES}
    if dtype not in (None, "auto", *names, *names.values()):
        raise ValueError(f"dtype must be one of {['auto', *names]} or torch's dtypes of these names, got {dtype!r}")
    wanted = names.get(dtype, dtype) if dtype != "auto" else None
    device = _device(given.get("device_map"), int8)
    if int8 and (device.type != "cpu" or wanted not in (None, torch.float32)):
        raise ValueError(f"load_in_8bit must be on a CPU and in float32, got {device} and {dtype}")
    attention = read_attention(given.get("attn_implementation"))
    if FLASH in attention.values() and (device.type != "cuda" or wanted not in (torch.float16, torch.bfloat16)):
        raise ValueError(
            f"attn_implementation={FLASH!r} must be with device_map='cuda' and dtype float16 or bfloat16, which its "
            f"kernel needs, got {device} and {dtype}; 'sdpa' runs everywhere"
        )
    if type(fast := given.get("fast", True)) is not bool:
        raise ValueError(f"fast must be True or False, got {fast!r:.100}")
    return Loading(torch.float32 if int8 else wanted, device, attention, int8, fast)


def read_attention(given: Any) -> dict[str, str]:
    """attn_implementation, one for all parts or by PARTS, as one each (default "sdpa"; the codec has no attention)."""
    each = dict.fromkeys(PARTS, given) if given is None or isinstance(given, str) else dict(given)
    check_names("attn_implementation", each, ("", *PARTS))
    chosen: dict[str, str] = {part: each.get(part) or each.get("") or "sdpa" for part in PARTS}
    for name in chosen.values():
        if name not in (*BACKENDS, FLASH):
            raise ValueError(f"attn_implementation must be one of {(*BACKENDS, FLASH)}, got {name!r}")
    return chosen


def _device(device_map: Any, int8: bool) -> torch.device:
    if isinstance(device_map, Mapping) and len(set(device_map.values())) == 1:
        device_map = next(iter(device_map.values()))
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and not int8 else "cpu")  # int8 is a CPU's
    try:
        device = torch.device("cpu" if device_map is None else device_map)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        must = "'auto' or one device that torch has here: the model is not split"
        raise ValueError(f"device_map must be {must}, got {device_map!r}: {error}") from None
    return device


def kernels(attention: str) -> contextlib.AbstractContextManager[Any]:
    """SDPA's kernels while a model with this attention runs: flash first, the others where a mask is in its way."""
    if attention != FLASH:
        return contextlib.nullcontext()
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def backend(attention: str) -> str:
    """Our name of it."""
    return "eager" if attention == "eager" else "sdpa"


def split(where: str, given: Mapping[str, Any], fields: Config | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of from_pretrained() as those of loading and those that override fields of a configuration.

    Raises ValueError for a name that is neither, with the one that may have been meant.
    """
    known = {} if fields is None else dict.fromkeys([*fields.keys(), *fields.aliases, "model_type"])
    check_names(where, given, {*LOADING, *HUB, *CHOICE, *IGNORED, *known})
    return (
        {name: value for name, value in given.items() if name not in known or name in ("dtype", "torch_dtype")},
        {name: value for name, value in given.items() if name in known and name not in ("dtype", "torch_dtype")},
    )


def _file_dtype(config: Config, folder: Path, choice: Choice) -> torch.dtype:
    """The dtype that transformers 5 loads a directory in: what the configuration says, or else that of the first tensor
    by name (in a .bin: by place) of its first file."""
    name = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)  # older files call it torch_dtype
    if name is not None:
        return cast(torch.dtype, getattr(torch, str(name).removeprefix("torch.")))
    file = weight_files(folder, choice)[0]
    dtypes = open_weights(file).dtypes
    names = sorted(dtypes) if file.suffix == ".safetensors" else [*dtypes]
    found = next((dtypes[name] for name in names if dtypes[name] in WEIGHTS), torch.float32)
    return found if found in checkpoint.DTYPES else torch.float32  # no model is in float64 here


def load_whole(name: str | PathLike[str], given: Mapping[str, Any]) -> tuple[MusicGen, MusicgenConfig, Loading, Path]:
    """A MusicGen of a directory, "demo" or a Hub id, its configuration, what was asked for, and the directory.

    Raises as read_options(), directory() and checkpoint.load() do.
    """
    loading, choice = read_options(given), read_choice(given)
    folder = directory(name, given, choice)
    core, config = steady(folder, partial(_load_whole, folder, given, loading, choice))
    return core, config, loading, folder


def _load_whole(
    folder: Path, given: Mapping[str, Any], loading: Loading, choice: Choice
) -> tuple[MusicGen, MusicgenConfig]:
    config = given.get("config") or MusicgenConfig.from_pretrained(folder)
    # Under another configuration the layers must still be plain ones when with_configs() looks at them.
    at_once = loading.int8 and given.get("config") is None
    dtype = "int8" if at_once else loading.dtype or _file_dtype(config, folder, choice)
    chosen = {name: getattr(choice, name) for name in CHOICE}
    core = with_configs(checkpoint.load(folder, dtype=dtype, device=loading.device, fast=False, **chosen), config)
    if loading.int8 and not at_once:
        quantize(core)
    return (speed_up(core) if loading.fast else core), config


def build(config: MusicgenConfig) -> MusicGen:
    """A MusicGen with random weights. Raises ValueError naming the field that cannot be."""
    ours = to_ours(config)
    with building(type(config).__name__):
        return MusicGen(*ours)


def with_configs(core: MusicGen, config: MusicgenConfig) -> MusicGen:
    """The same weights under another configuration, of the same sizes (another dropout). Raises ValueError if not."""
    ours = to_ours(config)
    if ours == (core.text_encoder.config, core.decoder.config, core.codec.config):
        return core
    with without_values():
        fresh = build(config)
    fresh.tokenizer, fresh.backend = core.tokenizer, core.backend
    try:
        fresh.load_state_dict(core.state_dict(), assign=True)
    except RuntimeError as error:
        raise ValueError(f"config must fit the checkpoint: {error}") from None
    return fresh.train(core.training)


def load_part(name: str | PathLike[str], kind: str, given: Mapping[str, Any]) -> tuple[Any, Any, Loading, Path]:
    """One part of a MusicGen (its model_type: "t5", "encodec", "musicgen_decoder") from a directory of it alone, or of
    a whole MusicGen, whose other tensors are not read; its configuration, what was asked for, and the directory.
    Keyword arguments may override fields of the configuration.

    Raises as load_whole() does.
    """
    choice = read_choice(given)
    folder = directory(name, given, choice)
    module, config, loading = steady(folder, partial(_load_part, folder, kind, given, choice))
    return module, config, loading, folder


def _load_part(folder: Path, kind: str, given: Mapping[str, Any], choice: Choice) -> tuple[Any, Any, Loading]:
    section = SECTIONS[kind]
    stored = KINDS[kind].from_pretrained(folder)
    options, overrides = split("from_pretrained()", given, stored)
    loading = read_options(options)
    config = options.get("config") or stored
    config.update(overrides)
    whole = read_json(folder / "config.json").get("model_type") == "musicgen"
    composite = MusicgenConfig.from_pretrained(folder) if whole else alone(config)
    # A part is loaded as the whole is: transformers leaves it random, in whatever dtype.
    dtype = loading.dtype or _file_dtype(composite if whole else config, folder, choice)
    setattr(composite, section, config)

    text, lm, codec = to_ours(composite)
    part, prefix, extra = TENSORS[kind]
    with building(str(folder / "config.json")), without_values():
        module: Any = {"t5": lambda: T5Encoder(text), "encodec": lambda: Encodec(codec)}.get(
            kind, lambda: Decoder(lm)
        )()
    shapes = {f"{part}.{n}": tuple(t.shape) for n, t in module.state_dict().items()}
    pieces = mapping.expand(huggingface.table(text, lm, codec), shapes)
    tensors = Tensors()
    add_files(tensors, folder, lambda name: huggingface.current_name(name if whole else prefix + name), choice)
    prefixes = (prefix, "enc_to_dec_proj.") if kind == "musicgen_decoder" else (prefix,)
    found = {n: s for n, s in tensors.shapes.items() if n.startswith(prefixes) and not n.startswith(extra or ("!",))}
    mapping.check(pieces, found, str(folder))
    checkpoint.to_dtype(module, dtype)
    fill(module, pieces, tensors, prefix=f"{part}.", device=loading.device)
    return (speed_up(module) if loading.fast else module), config, loading


def save_part(module: nn.Module, config: Config, path: str | PathLike[str], generation: Config | None = None) -> None:
    """Write a part as a directory that transformers and load_part() open. generation: its generation_config.json, if it
    has one. Raises ValueError for an int8 one, for a directory that holds an adapter, and as atomic.beside().

    A decoder's projection of the text belongs to the whole MusicGen, and is left out.
    """
    check_savable(module)
    checkpoint.check_adapter(Path(path))
    part, prefix, _ = TENSORS[config.model_type]
    state = {f"{part}.{n}": t.detach().cpu() for n, t in module.state_dict().items() if "text_proj" not in n}
    table = huggingface.table(*to_ours(alone(config)))
    pieces = mapping.expand(table, {n: tuple(t.shape) for n, t in state.items()})
    tensors = {n.removeprefix(prefix): tensor for n, tensor in mapping.collect(state, pieces).items()}
    if config.model_type == "encodec":
        tensors |= checkpoint.statistics({n: t for n, t in tensors.items() if n.endswith("codebook.embed")})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    specs = {n: Spec(tensor.dtype, tuple(tensor.shape), tensor.contiguous) for n, tensor in tensors.items()}
    with beside(Path(path), sum(spec.size for spec in specs.values())) as folder:
        config.save_pretrained(folder)
        if generation is not None:
            generation.save_pretrained(folder)
        write_weights(folder, specs)


def save_whole(core: MusicGen, generation: Config, path: str | PathLike[str]) -> None:
    """Write a MusicGen and its generation_config.json. Raises ValueError for an int8 one, and as checkpoint.save()."""
    check_savable(core)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tokenizer = core.tokenizer
    try:
        if tokenizer is None and Tokenizer.lies_in(path):
            core.tokenizer = read_tokenizer(Path(path))  # the processor was saved first: it stays as it is
        checkpoint.save(core, path, generation=generation.to_dict())
    finally:
        core.tokenizer = tokenizer


def check_savable(module: nn.Module) -> None:
    if any(isinstance(layer, Int8Linear) for layer in module.modules()):
        raise ValueError("a model that was loaded with load_in_8bit=True cannot be saved: save it before")


def config_of(core: MusicGen) -> MusicgenConfig:
    """transformers' configuration of a MusicGen."""
    dtype = str(core.decoder.norm.weight.dtype).removeprefix("torch.")
    return from_ours(core.text_encoder.config, core.decoder.config, core.codec.config, dtype)


def read_generation(folder: Path) -> dict[str, Any]:
    """What the directory's generation_config.json says, {} without one."""
    file = folder / "generation_config.json"
    return read_json(file) if file.exists() else {}
