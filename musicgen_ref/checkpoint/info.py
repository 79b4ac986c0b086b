"""A report on a directory: what it holds, and every reason why it does not open.

It is meant for files that nobody here has seen. Configurations and the heads of files are read; tensors are not, unless
the caller asks for it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn

from .. import checks
from ..checks import LEFT_OPEN
from ..encodec import Encodec
from ..messages import listed, shown, spelled
from ..model import MusicGen
from ..text import FILES as TOKENIZER_FILES
from . import adapter, audiocraft, huggingface, xpcfg
from .files import OF_VARIANT, Choice, Tensors, load_bin, read_json, weight_files
from .source import (
    PREPROCESSOR,
    PROCESSOR,
    check_processor,
    describe,
    find_text,
    is_audiocraft,
    named_codec,
    open_codec,
    open_source,
    read_defaults,
    read_processor,
    unpacked,
)

Result = TypeVar("Result")


class Report(NamedTuple):
    """rows: pairs of a name and what the directory has under it. reasons: why it does not open, the first of them what
    loading it would say; empty where it opens. values: what is wrong with the tensors' numbers, if they were read."""

    rows: list[tuple[str, str]]
    reasons: list[str]
    values: str = ""

    def lines(self) -> list[str]:
        """The report as lines of text."""
        width = 2 + max(len(name) for name, _ in self.rows)
        told = [f"{name:<{width}}{value}" for name, value in self.rows]
        return told + [f"does not open: {number}. {reason}" for number, reason in enumerate(self.reasons, start=1)]


class _Reasons:
    """Messages, each of them once, in the order in which they came."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, message: str) -> None:
        if message not in self.found:
            self.found.append(message)

    def attempt(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result | None:
        """The result of a call; where it raises an error, None, and the message is kept."""
        try:
            return call(*arguments, **named)
        except (ValueError, OSError) as error:
            self.add(str(error))
            return None


def report(
    path: str | PathLike[str],
    text_encoder: str | PathLike[str] | None = None,
    codec: str | PathLike[str] | None = None,
    check: bool = False,
) -> Report:
    """The report on a directory that holds a checkpoint of any layout, or may hold one.

    text_encoder, codec: as open_source() takes them. check: True also reads the tensors, tests the checksums of .bin
    files, and tells whether all numbers are finite. Raises FileNotFoundError where there is no directory.
    """
    checks.paths(path=path)
    path, rows, reasons = Path(path), list[tuple[str, str]](), _Reasons()
    values: str | None = None
    if not path.is_dir():
        raise FileNotFoundError(f"no such checkpoint directory: {path}")
    opened = reasons.attempt(open_source, path, text_encoder, codec, alone=True, choice=Choice(tested=check))
    beside = adapter.files_in(path)
    if opened is None and beside:  # the adapter is one reason: find the others without it
        opened = reasons.attempt(open_source, path, text_encoder, codec, alone=True, choice=WITHOUT)
    if is_audiocraft(path):
        _release(path, text_encoder, codec, rows, reasons)
    elif (path / "config.json").is_file():
        _directory(path, rows, reasons)
    else:
        rows.append(("layout", "adapter alone" if beside else "none that is known"))
    if beside:
        settings = reasons.attempt(read_json, path / adapter.CONFIG) or {}
        told = (f"{key} {shown(settings[key])}" for key in ADAPTER if key in settings)
        rows.append(("adapter", f"{', '.join(beside)}: {', '.join(told)}"))
    if opened is not None:
        model = reasons.attempt(opened.skeleton)
        if opened.decoder is not None:
            rows += _sampling(path, reasons)
        if model is not None:
            pieces = reasons.attempt(opened.pieces, model.state_dict())
            if check and pieces is not None:
                values = reasons.attempt(opened.not_finite, pieces)
            rows += _sizes(model)
        reasons.attempt(opened.read_tokenizer)
        rows.append(("tensors", _counted(opened.tensors)))
    elif (model := _Reasons().attempt(describe, path)) is not None:  # config.json is sound, other files are not
        rows += _sampling(path, reasons) + _sizes(model)
    if values is not None:
        rows.append(("numbers", values or "all finite"))
    rows.append(("files", ", ".join(_file(file) for file in sorted(path.iterdir()))))
    return Report(rows, reasons.found, f"{path}: {values}" if values else "")


WITHOUT = Choice(adapter=False, tested=False)
ADAPTER = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")


def _file(file: Path) -> str:
    return f"{file.name}/" if file.is_dir() else f"{file.name} ({file.stat().st_size if file.exists() else 'gone'})"


def _counted(tensors: Tensors) -> str:
    kinds = Counter(str(dtype).removeprefix("torch.") for dtype in tensors.dtypes.values())
    return ", ".join(f"{count} of {kind}" for kind, count in kinds.items())


def _sizes(model: nn.Module) -> list[tuple[str, str]]:
    """The sizes of a model's parts, and how many parameters they have."""

    def count(module: nn.Module) -> str:
        return f"{sum(p.numel() for p in [*module.parameters(), *module.buffers()]):,} parameters"

    codec = cast(Encodec, model.get_submodule("codec"))
    c = codec.config
    coder = ("codec", f"EnCodec, {c.filters} filters, hop {c.hop} samples, {count(codec)}")
    rate = f"{c.sampling_rate / c.hop:g} frames per second"
    if not isinstance(model, MusicGen):
        audio = f"{c.sampling_rate} Hz, {'stereo' if c.channels == 2 else 'mono'}"
        return [coder, ("audio", audio), ("codes", f"{c.codebooks} codebooks of {c.codebook_size}, {rate}")]
    text, decoder = model.text_encoder.config, model.decoder.config
    kind = f"T5 {'gated ' if text.gated else ''}{text.layers} x {text.width}"
    return [
        ("text encoder", f"{kind}, {count(model.text_encoder)}"),
        ("decoder", f"{decoder.layers} x {decoder.width}, {decoder.heads} heads, {count(model.decoder)}"),
        coder,
        ("audio", f"{c.sampling_rate} Hz, {'stereo' if decoder.channels == 2 else 'mono'}"),
        ("codes", f"{decoder.codebooks} codebooks of {decoder.vocab_size}, {rate}"),
        ("in all", count(model)),
    ]


def _sampling(path: Path, reasons: _Reasons) -> list[tuple[str, str]]:
    """The sampling options that hold where the caller gives none."""
    said = reasons.attempt(read_defaults, path)
    if said is None:
        return []
    how = said.sampling(said)
    origins = {name: " (default)" if getattr(said, name) is None else "" for name in LEFT_OPEN}
    return [("sampling", ", ".join(f"{name} {shown(getattr(how, name))}{origins[name]}" for name in LEFT_OPEN))]


# transformers' directories


def _directory(path: Path, rows: list[tuple[str, str]], reasons: _Reasons) -> None:
    file = path / "config.json"
    config = reasons.attempt(read_json, file) or {}
    kind = config.get("model_type")
    version = config.get("transformers_version", "which is not said")
    rows.append(("layout", f"transformers, version {spelled(version, 50)}; model_type {shown(kind, 50)}"))
    rows.append(("dtype", f"{shown(config.get('dtype', config.get('torch_dtype')), 50)} in config.json"))
    if kind == "musicgen":
        for problem in huggingface.config_problems(config, str(file)):
            reasons.add(problem)
    weights = reasons.attempt(weight_files, path)
    rows.append(("weights", ", ".join(weight.name for weight in weights or ()) or "none"))
    matches = (OF_VARIANT.fullmatch(each.name) for each in path.iterdir())
    if variants := sorted({match[1] or match[2] for match in matches if match}):
        rows.append(("variants", ", ".join(variants)))
    names = [name for name in TOKENIZER_FILES if (path / name).exists()]
    rows.append(("tokenizer", ", ".join(names) or "none"))
    rows.append(("processor", _processor(path, config)))
    for section, keys in huggingface.settings_passed_over(config).items():
        rows.append((f"passed over{' in ' if section else ''}{section}", listed(map(spelled, keys), 3000)))


def _processor(path: Path, config: Mapping[str, Any]) -> str:
    """The file of the processor, and what is wrong with it, if anything is; the model opens all the same."""
    try:
        found = read_processor(path)
        if found is None:
            return "none"
        file, section = found
        if config.get("model_type") == "musicgen":
            _, decoder, codec = huggingface.read_config(config, str(path / "config.json"))
            must = {"feature_size": decoder.channels, "sampling_rate": codec.sampling_rate}
            check_processor(file, section, must)
        return file.name
    except ValueError as error:
        return f"{PROCESSOR} or {PREPROCESSOR} cannot be used, the model can: {error}"


# audiocraft's releases


def _release(
    path: Path,
    text_encoder: str | PathLike[str] | None,
    codec: str | PathLike[str] | None,
    rows: list[tuple[str, str]],
    reasons: _Reasons,
) -> None:
    rows.append(("layout", "audiocraft's release"))
    lm, coder = path / audiocraft.LM_FILE, path / audiocraft.CODEC_FILE
    contents = {file: reasons.attempt(load_bin, file, False) for file in (lm, coder) if file.exists()}
    for file, content in contents.items():
        rows.append((file.name, _keys(content)))
    settings = None
    if contents.get(lm) is not None:
        packed = reasons.attempt(unpacked, lm, contents[lm])
        settings = None if packed is None else packed[1]
        _settings(lm, settings, audiocraft.decoder_problems, audiocraft.decoder_settings, rows, reasons)
        if settings is not None:
            name = reasons.attempt(audiocraft.text_name, settings, str(lm))
            if name is not None:
                folder = reasons.attempt(find_text, path, text_encoder, name)
                rows.append(("T5", f"{name}, {'not found' if folder is None else f'in {folder}'}"))
    content = contents.get(coder)
    named = None
    if coder not in contents or content is not None:
        named = reasons.attempt(named_codec, path, content, settings)
    if named is not None:
        found = reasons.attempt(open_codec, path, codec, settings, Tensors(), False, WITHOUT)
        where = "not found" if found is None else f"in {found[2].parent}"
        rows.append(("codec is named", f"{shown(named[0])} by {named[2]} in {Path(named[1]).name}, {where}"))
    elif isinstance(content, dict) and isinstance(content.get("xp.cfg"), str):
        text = content["xp.cfg"]
        _settings(coder, text, audiocraft.codec_problems, audiocraft.codec_settings, rows, reasons)


def _keys(content: Any) -> str:
    """The keys of a release's file, and the short ones among their values."""
    if not isinstance(content, dict):
        return type(content).__name__
    told = (f"{key} {shown(content[key])}" for key in ("pretrained", "version", "exported") if key in content)
    return ", ".join([f"keys {listed(spelled(key, 50) for key in list(content)[:20])}", *told])


def _settings(
    file: Path,
    text: str | None,
    problems: Callable[[Mapping[str, Any], str], list[str]],
    settings: Callable[[Mapping[str, Any]], audiocraft.Settings],
    rows: list[tuple[str, str]],
    reasons: _Reasons,
) -> None:
    """Add the ignored settings of an xp.cfg to the rows, and what is wrong with the others to the reasons."""
    config = None if text is None else reasons.attempt(xpcfg.parse, text, str(file))
    if config is None:
        return
    for problem in problems(config, str(file)):
        reasons.add(problem)
    made = settings(config)
    rows.append((f"passed over in {file.name}", listed(map(spelled, [*made.sections, *made.keys]), 3000)))
