"""from_pretrained() and save_pretrained() of a whole MusicGen and of its parts, and what they take."""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import checkpoint, checks
from ..checkpoint import huggingface, mapping
from ..checkpoint.adapter import check_base
from ..checkpoint.atomic import steady
from ..checkpoint.files import UNITS, WEIGHTS, Choice, Tensors, open_weights, read_json, weight_files
from ..checkpoint.source import add_files, building, fill, is_audiocraft, read_tokenizer, without_values
from ..decoder import Decoder
from ..encodec import Encodec
from ..fast import speed_up
from ..fast.int8 import Int8Linear, quantize
from ..messages import listed, shown
from ..model import MusicGen
from ..t5 import T5Encoder
from ..text import Tokenizer
from . import initial
from .configs import ATTENTIONS, DTYPES, FLASH, SECTIONS, Config, MusicgenConfig, alone, to_ours
from .files import CHOICE, HUB, IGNORED, check_push, directory, read_choice
from .messages import check_names
from .names import Around

PARTS = ("text_encoder", "decoder", "audio_encoder")  # the parts for which attn_implementation can be chosen
LOADING = (
    "config", "dtype", "torch_dtype", "attn_implementation", "device_map", "load_in_8bit", "quantization_config", "fast"
)  # fmt: skip
# For each kind of part: our name of it, the prefix of its tensors, and prefixes of tensors that a directory of it may
# also hold and that are ignored.
TENSORS = {
    "t5": ("text_encoder", "text_encoder.", ("text_encoder.decoder.", "text_encoder.lm_head.")),
    "encodec": ("codec", "audio_encoder.", ()),
    "musicgen_decoder": ("decoder", "decoder.", ()),
}


# A decoder without its heads has this prefix of its tensors instead; the heads' own prefix.
HEADLESS, HEADS = "decoder.model.", "decoder.lm_heads."


class BitsAndBytesConfig(NamedTuple):
    """quantization_config=BitsAndBytesConfig(load_in_8bit=True) means the same as load_in_8bit=True."""

    load_in_8bit: bool = False


class Loading(NamedTuple):
    """The checked arguments of from_pretrained() that say how to load. dtype: None for the file's."""

    dtype: torch.dtype | None
    device: torch.device
    attention: dict[str, str]  # by PARTS: "sdpa", "eager" or FLASH
    int8: bool
    fast: bool  # with the layers of musicgen_ref.fast


def read_options(given: Mapping[str, Any]) -> Loading:
    """Check the arguments of from_pretrained() that say how to load. Raises ValueError naming a wrong one."""
    quantization = given.get("quantization_config")
    int8 = bool(given.get("load_in_8bit") or getattr(quantization, "load_in_8bit", False))
    if quantization is not None and not int8:
        raise ValueError(f"quantization_config must have load_in_8bit=True, which is all there is, got {quantization}")
    dtype: Any = given.get("dtype") if given.get("dtype") is not None else given.get("torch_dtype")
    if dtype not in (None, "auto", *DTYPES, *DTYPES.values()):
        raise ValueError(f"dtype must be one of {['auto', *DTYPES]} or torch's dtypes of these names, got {dtype!r}")
    wanted = DTYPES.get(dtype, dtype) if dtype != "auto" else None
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
    """The attention of each part, from attn_implementation, which is one for all parts or a dictionary by PARTS. The
    default is "sdpa". (The codec has no attention, but may be named.)"""
    each = dict.fromkeys(PARTS, given) if given is None or isinstance(given, str) else dict(given)
    check_names("attn_implementation", each, ("", *PARTS))
    chosen: dict[str, str] = {part: each.get(part) or each.get("") or "sdpa" for part in PARTS}
    for name in chosen.values():
        if name not in ATTENTIONS:
            raise ValueError(f"attn_implementation must be one of {ATTENTIONS}, got {name!r}")
    return chosen


def _device(device_map: Any, int8: bool) -> torch.device:
    if isinstance(device_map, Mapping) and len(set(device_map.values())) == 1:
        device_map = next(iter(device_map.values()))
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and not int8 else "cpu")  # int8 is for CPUs
    try:
        device = torch.device("cpu" if device_map is None else device_map)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        must = "'auto' or one device that torch has here: the model is not split"
        raise ValueError(f"device_map must be {must}, got {device_map!r}: {error}") from None
    return device


def kernels(attention: str) -> contextlib.AbstractContextManager[Any]:
    """Chooses SDPA's kernels while a model runs: for flash attention its kernel, or others where there is a mask, which
    it cannot take; for any other attention nothing is changed."""
    if attention != FLASH:
        return contextlib.nullcontext()
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def backend(attention: str) -> str:
    """The name that attention.attend() has for an attention implementation of transformers'."""
    return "eager" if attention == "eager" else "sdpa"


def split(where: str, given: Mapping[str, Any], fields: Config | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of from_pretrained() in two dictionaries: those that say how to load, and those that
    override fields of a configuration. Raises ValueError for a name that is neither."""
    known = {} if fields is None else dict.fromkeys([*fields.keys(), *fields.defaults, *fields.aliases, "model_type"])
    check_names(where, given, {*LOADING, *HUB, *CHOICE, *IGNORED, *known})
    return (
        {name: value for name, value in given.items() if name not in known or name in ("dtype", "torch_dtype")},
        {name: value for name, value in given.items() if name in known and name not in ("dtype", "torch_dtype")},
    )


def _file_dtype(config: Config, folder: Path, choice: Choice) -> torch.dtype:
    """The dtype in which transformers 5 loads a directory: the one in the configuration, or else that of the first
    tensor in the first file, in the order of names (in a .bin file, in the order of places). Raises ValueError for a
    configuration with a dtype that no model here has."""
    said = config.get("dtype")
    if said is not None:
        if said not in checkpoint.DTYPES:
            raise ValueError(f"{folder / 'config.json'}: dtype must be one of {[*DTYPES]}, got {shown(said)}")
        return cast(torch.dtype, said)
    file = weight_files(folder, choice)[0]
    dtypes = open_weights(file).dtypes
    names = sorted(dtypes) if file.suffix == ".safetensors" else [*dtypes]
    found = next((dtypes[name] for name in names if dtypes[name] in WEIGHTS), torch.float32)
    return found if found in checkpoint.DTYPES else torch.float32  # float64 is read as float32


def load_whole(cls: Any, name: str | PathLike[str] | None, given: Mapping[str, Any]) -> Any:
    """MusicgenForConditionalGeneration.from_pretrained().

    Raises as read_options(), directory() and checkpoint.load() do.
    """
    given, how = loosely(given)
    options, _ = split("from_pretrained()", given)
    loading, choice = read_options(options), read_choice(options)
    folder = None if name is None else directory(name, options, choice)
    read = partial(_load_whole, cls, folder, options, how, loading, choice)
    return read() if folder is None else steady(folder, read)


def _load_whole(
    cls: Any, folder: Path | None, options: Mapping[str, Any], how: "Loosely", loading: Loading, choice: Choice
) -> Any:
    config = _config(options, MusicgenConfig, folder, how)
    if how.exact and _has_config(folder):
        assert folder is not None
        # with_configs() needs plain layers: with another configuration they are quantised after it.
        at_once = loading.int8 and options.get("config") is None
        dtype = "int8" if at_once else loading.dtype or _file_dtype(config, folder, choice)
        chosen = {name: getattr(choice, name) for name in CHOICE}
        core = checkpoint.load(folder, dtype=dtype, device=loading.device, fast=False, defaults=False, **chosen)
        core = with_configs(core, config)
        if loading.int8 and not at_once:
            quantize(core)
        model, info = cls.of(core, config), Info()
    else:
        model = cls(config)
        info = fill_loosely(model, how, folder, choice, "", loading)
        if folder is not None and Tokenizer.lies_in(folder):
            model.core.tokenizer = read_tokenizer(folder)
        if loading.int8:
            quantize(model.core)
    for part in PARTS:
        config[part]._attn_implementation = loading.attention[part]
    if loading.fast:
        speed_up(model.core)
    if folder is not None:
        model.generation_config.pass_over(read_generation(folder))
    model.eval()
    return (model, info._asdict()) if how.output_loading_info else model


class Info(NamedTuple):
    """What output_loading_info=True returns beside a model, with transformers' names of tensors."""

    missing_keys: Collection[str] = frozenset()
    unexpected_keys: Collection[str] = frozenset()
    mismatched_keys: Collection[Any] = frozenset()  # (name, shape in the file, shape in the model)
    error_msgs: Collection[str] = ()


class Loosely(NamedTuple):
    """The arguments of from_pretrained() for tensors that need not be a directory's, or need not fit the model. Weights
    that are missing, or of another shape, are drawn."""

    state_dict: Mapping[str, torch.Tensor] | None = None  # in place of the directory's tensors
    ignore_mismatched_sizes: bool = False
    output_loading_info: bool = False

    @property
    def exact(self) -> bool:
        """Whether all tensors must come from the directory, and fit."""
        return self.state_dict is None and not self.ignore_mismatched_sizes


def loosely(given: Mapping[str, Any]) -> tuple[dict[str, Any], Loosely]:
    """Split the arguments of from_pretrained() into the others and those of Loosely. Raises ValueError naming a wrong
    one of the latter."""
    how = Loosely(**{name: given[name] for name in Loosely._fields if given.get(name) is not None})
    for name in ("ignore_mismatched_sizes", "output_loading_info"):
        if type(getattr(how, name)) is not bool:
            raise ValueError(f"{name} must be True or False, got {getattr(how, name)!r:.100}")
    if how.state_dict is not None and not isinstance(how.state_dict, Mapping):
        raise ValueError(f"state_dict must hold tensors by name, got {type(how.state_dict).__name__}")
    return {name: value for name, value in given.items() if name not in Loosely._fields}, how


def _config(options: Mapping[str, Any], kind: Any, folder: Path | None, how: Loosely) -> Any:
    config = options.get("config")
    if config is None and folder is not None and not _has_config(folder):
        check_base(folder)
        must = "must be given for a directory that lacks it, as a Trainer's checkpoints do"
        raise FileNotFoundError(f"no such file: {folder / 'config.json'}; config {must}")
    if folder is None and (config is None or how.state_dict is None):
        raise ValueError("pretrained_model_name_or_path must be given; None takes config= and state_dict=")
    if config is None:
        return kind.from_pretrained(folder)
    if not isinstance(config, kind) and not hasattr(config, "to_dict"):
        raise ValueError(f"config must be a {kind.__name__}, got {type(config).__name__}")
    return config if isinstance(config, kind) else kind.from_dict(config.to_dict())


def _has_config(folder: Path | None) -> bool:
    return folder is not None and ((folder / "config.json").exists() or is_audiocraft(folder))


def fill_loosely(model: Any, how: Loosely, folder: Path | None, choice: Choice, prefix: str, loading: Loading) -> Info:
    """Give a model with random weights the tensors that fit it, and the dtype and device that were asked for.

    prefix: of the model's tensors in the files. Raises ValueError for a tensor of another shape, unless these are to be
    ignored; and, where all must fit, for tensors that are missing or left over.
    """
    state = how.state_dict
    if state is None:
        assert folder is not None
        tensors = Tensors()
        add_files(tensors, folder, huggingface.current_name, choice)
        state = {n.removeprefix(prefix): tensors.get(n) for n in tensors.shapes if n.startswith(prefix)}
    own = model.state_dict()
    # A decoder with heads and one without have the same names, but for "model." in front.
    spellings = {n: (n, f"model.{n}", n.removeprefix("model.")) for n in state}
    state = {next((each for each in spellings[n] if each in own), n): t for n, t in state.items()}
    wrong = {n: (tuple(t.shape), tuple(own[n].shape)) for n, t in state.items() if n in own and t.shape != own[n].shape}
    if wrong and not how.ignore_mismatched_sizes:
        told = ", ".join(f"{name} {got}, expected {must}" for name, (got, must) in [*wrong.items()][:5])
        raise ValueError(f"{len(wrong)} tensors have a wrong shape, which ignore_mismatched_sizes=True draws: {told}")
    # A weight norm has two tensors: if one of them does not fit, the other is of no use.
    pairs = {name[:-1] for name in wrong if name.endswith(("original0", "original1"))}
    fits = {name: t for name, t in state.items() if name not in wrong and name[:-1] not in pairs}
    checkpoint.to_dtype(model.core, loading.dtype or _state_dtype(model.config, state))
    model.to(loading.device)
    result = model.load_state_dict(fits, strict=False)
    # Tensors that files may leave out without loss: a second name of one that is there, and statistics of codebooks.
    implied = re.compile(r"(.*\.)?(encoder\.embed_tokens\.weight|codebook\.(inited|cluster_size|embed_avg))")
    missing = {name for name in result.missing_keys if not implied.fullmatch(name)} - wrong.keys()
    if how.exact and (missing or result.unexpected_keys):
        lists = {"missing": missing, "left over": result.unexpected_keys}
        told = "; ".join(f"{len(names)} {what}: {listed(sorted(names))}" for what, names in lists.items() if names)
        raise ValueError(f"{folder}: the tensors do not fit the configuration: {told}")
    return Info(missing, frozenset(result.unexpected_keys), frozenset((n, *shapes) for n, shapes in wrong.items()))


def _state_dtype(config: Config, state: Mapping[str, torch.Tensor]) -> torch.dtype:
    said = config.get("dtype")
    found = next((tensor.dtype for tensor in state.values() if tensor.dtype in checkpoint.DTYPES), torch.float32)
    return said if said in checkpoint.DTYPES else found


def build(config: MusicgenConfig) -> MusicGen:
    """A MusicGen with random weights. Raises ValueError naming an impossible field."""
    ours = to_ours(config)
    with building(type(config).__name__):
        core = MusicGen(*ours)
    initial.draw(core.text_encoder, config.text_encoder)
    initial.draw(core.decoder, config.decoder)
    initial.draw(core.codec, config.audio_encoder)
    if core.decoder.text_proj is not None:
        initial.plain(core.decoder.text_proj, float(config.get("initializer_factor", initial.STD)))
    return core


def with_configs(core: MusicGen, config: MusicgenConfig) -> MusicGen:
    """The same weights under a configuration of the same sizes that may differ otherwise, as in a dropout. Raises
    ValueError for other sizes."""
    ours = to_ours(config)
    if ours == (core.text_encoder.config, core.decoder.config, core.codec.config):
        return core
    with building(type(config).__name__), without_values():
        fresh = MusicGen(*ours)
    fresh.tokenizer, fresh.backend = core.tokenizer, core.backend
    try:
        fresh.load_state_dict(core.state_dict(), assign=True)
    except RuntimeError as error:
        raise ValueError(f"config must fit the checkpoint: {error}") from None
    return fresh.train(core.training)


def load_part(cls: Any, name: str | PathLike[str] | None, given: Mapping[str, Any]) -> Any:
    """from_pretrained() of one part of a MusicGen (cls is a class of modules.py), from a directory of that part or of a
    whole MusicGen, whose other tensors are not read.

    given: as MusicgenForConditionalGeneration.from_pretrained() takes them, and fields of the part's configuration,
    which override the file's. Raises as load_whole() does.
    """
    given, how = loosely(given)
    choice = read_choice(given)
    folder = None if name is None else directory(name, given, choice)
    read = partial(_load_part, cls, folder, given, how, choice)
    return read() if folder is None else steady(folder, read)


def _load_part(cls: Any, folder: Path | None, given: Mapping[str, Any], how: Loosely, choice: Choice) -> Any:
    kind = cls.config_class.model_type
    section = SECTIONS[kind]
    described = _has_config(folder)
    stored = _config({} if described else given, cls.config_class, folder, how)
    options, overrides = split("from_pretrained()", given, stored)
    loading = read_options(options)
    config = _config({"config": options.get("config") or stored}, cls.config_class, folder, how)
    config.update(overrides)
    whole = folder is not None and described and read_json(folder / "config.json").get("model_type") == "musicgen"
    part, prefix, extra = TENSORS[kind]
    if how.exact and described:
        assert folder is not None
        composite = MusicgenConfig.from_pretrained(folder) if whole else alone(config)
        # From a whole MusicGen the part gets the dtype of the whole. (transformers does not load its weights at all.)
        dtype = loading.dtype or _file_dtype(composite if whole else config, folder, choice)
        composite[section] = config
        module: Any = _module(kind, composite, str(folder / "config.json"))
        tensors = Tensors()

        def renamed(name: str) -> str | None:
            headless = kind == "musicgen_decoder" and name.startswith("decoder.")
            return huggingface.current_name(name if whole else (HEADLESS if headless else prefix) + name)

        add_files(tensors, folder, renamed, choice)
        children = {f"{part}.{name}.": child for name, child in module.named_children()}
        if not cls.has_heads and not any(name.startswith(HEADS) for name in tensors.shapes):
            heads = children.pop(f"{part}.heads.").to_empty(device=loading.device)
            for head in heads:  # the core has heads, which the class does not show
                nn.init.zeros_(head.weight)
        shapes = {name + n: tuple(t.shape) for name, child in children.items() for n, t in child.state_dict().items()}
        pieces = mapping.expand(huggingface.table(*to_ours(composite)), shapes)
        prefixes = (prefix, "enc_to_dec_proj.") if kind == "musicgen_decoder" else (prefix,)
        there = tensors.shapes.items()
        found = {n: s for n, s in there if n.startswith(prefixes) and not n.startswith(extra or ("!",))}
        mapping.check(pieces, found, str(folder))
        checkpoint.to_dtype(module, dtype)
        for name, child in children.items():
            fill(child, pieces, tensors, prefix=name, device=loading.device)
        model, info = cls(config, module), Info()
    else:
        model = cls(config)
        info = fill_loosely(model, how, folder, choice, prefix if whole else "", loading)
    config._attn_implementation = loading.attention[section]
    if loading.fast:
        speed_up(model.core)
    if folder is not None and cls.can_generate():
        model.generation_config.pass_over(read_generation(folder))
    model.eval()
    return (model, info._asdict()) if how.output_loading_info else model


def _module(kind: str, composite: MusicgenConfig, where: str) -> nn.Module:
    # The module of one part, without values.
    text, lm, codec = to_ours(composite)
    with building(where), without_values():
        if kind == "t5":
            return T5Encoder(text)
        return Encodec(codec) if kind == "encodec" else Decoder(lm)


def shard_bytes(given: int | str | None) -> int | None:
    """max_shard_size in bytes; None for None. Raises ValueError for what is no size."""
    match = re.fullmatch(r"(\d{1,15}) ?([KMG]I?B)?", given.upper()) if isinstance(given, str) else None
    size = int(match[1]) * UNITS[match[2] or ""] if match else checks.as_python(given)
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"max_shard_size must be bytes above 0, as a number or like '5GB', got {given!r:.100}")
    return size


class Saving(NamedTuple):
    """The arguments of save_pretrained() but for the directory; see save_whole()."""

    is_main_process: bool
    state_dict: Mapping[str, torch.Tensor] | None
    push_to_hub: bool
    max_shard_size: int | str | None
    safe_serialization: bool


def save_part(
    model: Any,
    save_directory: str | PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str | None = None,
    safe_serialization: bool = True,
) -> None:
    """Write a part as a directory that from_pretrained() and transformers open. Arguments and errors are those of
    save_whole().

    A decoder is written without its projection of the text, which belongs to the whole MusicGen.
    """
    kind = model.config_class.model_type
    part, prefix, _ = TENSORS[kind]
    prefix = prefix if model.has_heads else HEADLESS
    composite = alone(model.config)
    configs = to_ours(composite)
    shapes = {f"{part}.{name}": tuple(t.shape) for name, t in _module(kind, composite, "config").state_dict().items()}
    if not model.has_heads:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("decoder.heads.")}

    def files() -> dict[str, Any]:
        generation = {"generation_config.json": model.generation_config.to_dict()} if model.can_generate() else {}
        return {"config.json": config_json(model)} | generation

    how = Saving(is_main_process, state_dict, push_to_hub, max_shard_size, safe_serialization)
    names = huggingface.table(*configs), shapes, f"{part}.", prefix
    _save(model, Path(save_directory), names, files, None, how)


def save_whole(
    model: Any,
    save_directory: str | PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str | None = None,
    safe_serialization: bool = True,
) -> None:
    """Write a MusicGen as a directory that from_pretrained() and transformers open: config.json is model.config, with
    the dtypes that the weights have, generation_config.json model.generation_config.

    is_main_process: False writes nothing. state_dict: tensors by transformers' names, written in place of the model's.
    max_shard_size: the most bytes of a file, as a number or like "5GB". safe_serialization: False writes
    pytorch_model.bin. Weights that the directory holds under other names are removed.
    Raises ValueError for an int8 model, for one whose tensors are not those of its configuration (an adapter that is
    not merged, modules that were added), and for push_to_hub; otherwise as checkpoint.save() does.
    """
    core: MusicGen = model.core
    configs = to_ours(model.config)
    decoder, codec = configs[1], configs[2]

    def files() -> dict[str, Any]:
        # Raises for a delay pattern that the layout has no place for.
        huggingface.write_config(core.text_encoder.config, core.decoder.config, core.codec.config, "")
        return {
            "config.json": config_json(model),
            "generation_config.json": model.generation_config.to_dict(),
            "preprocessor_config.json": checkpoint.write_processor(Path(save_directory), decoder, codec),
        }

    with building(type(model.config).__name__):
        shapes = checkpoint.skeleton(*configs)
    tokenizer = core.tokenizer
    if tokenizer is None and Tokenizer.lies_in(save_directory):
        tokenizer = read_tokenizer(Path(save_directory))  # a processor was saved before the model: its files stay
    how = Saving(is_main_process, state_dict, push_to_hub, max_shard_size, safe_serialization)
    _save(model, Path(save_directory), (huggingface.table(*configs), shapes, "", ""), files, tokenizer, how)


def _save(
    model: Any,
    path: Path,
    names: tuple[list[mapping.Row], dict[str, tuple[int, ...]], str, str],  # table, shapes, our prefix and theirs
    files: Callable[[], dict[str, Any]],
    tokenizer: Tokenizer | None,
    how: Saving,
) -> None:
    table, shapes, part, prefix = names
    shard_size = shard_bytes(how.max_shard_size)
    check_push(how.push_to_hub)
    if any(isinstance(layer, Int8Linear) for layer in model.core.modules()):
        raise ValueError("a model that was loaded with load_in_8bit=True cannot be saved: save it before")
    if added := [name for module in model.modules() if isinstance(module, Around) for name in module._modules.added]:
        raise ValueError(f"modules that were added must be saved apart: the layout has no place for {added}")
    if not how.is_main_process:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.check_adapter(path)
    if how.state_dict is None:
        # A decoder by itself is written without the projection, which belongs to the whole model.
        left_out = (("text_proj.",) if part else ()) + (() if model.has_heads else ("heads.",))
        state = {part + name: t for name, t in model.core.state_dict().items() if not name.startswith(left_out)}
        tensors = checkpoint.to_layout(state, table, shapes)
    else:
        renamed = {huggingface.current_name(prefix + name, statistics=True): name for name in how.state_dict}
        tensors = {new: how.state_dict[old].detach().cpu() for new, old in renamed.items() if new is not None}
        own = {name: tuple(tensor.shape) for name, tensor in tensors.items() if huggingface.current_name(name)}
        mapping.check(mapping.expand(table, shapes), own, "state_dict")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    checkpoint.write_directory(
        path, tensors, files(), tokenizer, shard_size=shard_size, safetensors=how.safe_serialization, over=True
    )


def config_json(model: Any) -> dict[str, Any]:
    """The content of a model's config.json: its configuration, with the dtypes that its weights have now."""
    model.tell_dtype()
    return {"architectures": [type(model).__name__]} | model.config.to_dict()


def config_of(core: MusicGen) -> MusicgenConfig:
    """transformers' configuration of a MusicGen."""
    dtype = str(core.decoder.norm.weight.dtype).removeprefix("torch.")
    ours = core.text_encoder.config, core.decoder.config, core.codec.config
    config: MusicgenConfig = MusicgenConfig.from_dict(huggingface.write_config(*ours, dtype))
    return config


def read_generation(folder: Path) -> dict[str, Any]:
    """The content of the directory's generation_config.json; {} without one."""
    file = folder / "generation_config.json"
    return read_json(file) if file.exists() else {}
