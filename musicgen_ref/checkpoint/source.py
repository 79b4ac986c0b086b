"""Opening a checkpoint directory of any layout: its configurations, its name table, and its tensors, not read yet."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import checks
from ..checks import LEFT_OPEN
from ..decoder import DecoderConfig
from ..encodec import Encodec, EncodecConfig
from ..messages import listed, shown
from ..model import GenerationOptions, MusicGen
from ..t5 import T5Config
from ..text import FILES as TOKENIZER_FILES
from ..text import Tokenizer
from . import adapter, audiocraft, huggingface, mapping
from .files import PLAIN, Bin, Choice, Tensors, check_small, load_bin, open_weights, read_json, weight_files
from .mapping import Piece, Row

Configs = tuple[T5Config, DecoderConfig, EncodecConfig]


class Source(NamedTuple):
    """An opened checkpoint. text and decoder are None where it holds an EnCodec alone.

    where: the file with the configuration, for messages. sections: how that file names the fields. tokenizer: the
    directory in which a tokenizer may lie. others: the directories of parts that lie elsewhere.
    """

    path: Path
    where: str
    text: T5Config | None
    decoder: DecoderConfig | None
    codec: EncodecConfig
    table: list[Row]
    sections: huggingface.Sections
    tensors: Tensors
    tokenizer: Path
    others: tuple[Path, ...] = ()

    def skeleton(self) -> nn.Module:
        """The model without values, on the meta device: a MusicGen, or for an EnCodec a module with that as `codec`.

        Raises ValueError, which names fields as the file does, where the parts do not fit together, where the model
        would have many more tensors than the files hold (building it and listing them all would take minutes), and
        where sizes that are in no tensor would take much memory.
        """
        c, there = self.codec, len(self.tensors.shapes)
        few = 2 * (c.residual_layers * len(c.ratios) * 4 + c.lstm_layers * 4) + c.codebooks
        if self.text is not None and self.decoder is not None:
            few += 8 * self.text.layers + 16 * self.decoder.layers + self.decoder.codebooks
        if few > 4 * there + 50:
            raise ValueError(f"{self.where}: describes a model of {few} tensors or more, the files hold {there}")
        # Nothing is allocated until the tensors are known to fit.
        with building(self.where, self.sections), without_values():
            huggingface.check_reach(c)
            if self.text is not None and self.decoder is not None:
                return MusicGen(self.text, self.decoder, self.codec)
            return nn.ModuleDict({"codec": Encodec(self.codec)})

    def read_tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, None without one. Raises ValueError for a tokenizer with more ids than the text
        encoder has embeddings, and as read_tokenizer() does."""
        if not Tokenizer.lies_in(self.tokenizer):
            return None
        return read_tokenizer(self.tokenizer, None if self.text is None else self.text.vocab_size)

    def pieces(self, state: Mapping[str, Tensor], statistics: bool = False) -> dict[str, Piece]:
        """The pieces of the checkpoint's tensors, for the state_dict() of the skeleton. statistics: True adds the
        statistics of the codebooks that the files hold.

        Raises ValueError that lists the tensors that are left over, missing or of a wrong shape.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        pieces = mapping.expand(self.table, shapes)
        if statistics:
            extra = mapping.expand(self.table, huggingface.statistics(self.codec))
            pieces |= {name: piece for name, piece in extra.items() if name in self.tensors.shapes}
        mapping.check(pieces, self.tensors.shapes, str(self.path))
        return pieces

    def not_finite(self, pieces: Mapping[str, Piece]) -> str:
        """A message that lists the tensors with NaN or infinity, or that would give NaN in a model; "" without any.

        Every tensor is read, one at a time. A filter whose direction is 0 becomes NaN when its weight norm is folded.
        """
        found = []
        for name, piece in pieces.items():
            tensor = self.tensors.get(name)
            wrong = int(tensor.numel() - tensor.isfinite().sum())
            if not wrong and piece.norm is not None and name == piece.norm.v:
                wrong = int((tensor.float().flatten(1).norm(dim=1) == 0).sum())
            if wrong:
                found.append(f"{name} ({wrong} of {tensor.numel()})")
        return f"NaN or infinity in {len(found)} of {len(pieces)} tensors: {listed(found)}" if found else ""


def read_defaults(path: Path) -> GenerationOptions:
    """The sampling options in a directory's generation_config.json; None for each that it leaves out or sets to null.

    Raises ValueError naming the file and the field whose value is impossible.
    """
    file = path / "generation_config.json"
    said = read_json(file) if file.exists() else {}
    try:
        return GenerationOptions(**{name: said[name] for name in LEFT_OPEN if said.get(name) is not None})
    except ValueError as error:
        raise ValueError(f"{file}: {error}; correct it, or remove it for the library's default") from None


def read_tokenizer(path: Path, limit: int | None = None) -> Tokenizer:
    """The tokenizer of a directory. limit: as Tokenizer takes it.

    Raises as check_small() does, since the files are copied when the tokenizer is saved, and as
    Tokenizer.from_directory() does.
    """
    for name in TOKENIZER_FILES:
        if (path / name).exists():
            check_small(path / name)
    return Tokenizer.from_directory(path, limit)


class _NoInit(TorchFunctionMode):
    # Skips the initialisation of weights: on the meta device it makes torch import its compiler, which takes seconds.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Modules that are made in this block have shapes and dtypes but no values, on torch's meta device; see fill()."""
    with torch.device("meta"), _NoInit():
        yield


@contextmanager
def building(where: str, sections: huggingface.Sections = huggingface.SECTIONS) -> Iterator[None]:
    """Errors of making a model in this block become a ValueError that names the file, and fields as the file does."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_located(huggingface.in_their_names(error, sections), where)) from None
    except (RuntimeError, OverflowError, TypeError) as error:  # more elements than torch can count
        raise ValueError(f"{where}: the sizes are beyond any machine: {str(error)[:200]}") from None


def describe(path: Path) -> MusicGen:
    """The MusicGen that a directory's config.json describes, without values. No other file is read.

    Raises FileNotFoundError, or ValueError naming the file and the field.
    """
    file = path / "config.json"
    configs = huggingface.read_config(read_json(file), str(file))
    with building(str(file)), without_values():
        return MusicGen(*configs)


def fill(
    module: nn.Module,
    pieces: Mapping[str, Piece],
    tensors: mapping.Reader,
    *,
    prefix: str = "",
    device: torch.device | str = "cpu",
    mapped: bool = False,
) -> None:
    """Give the values of a file to a module that was made without values. prefix: of the module's names in the whole
    model. mapped: True leaves tensors of the right dtype in the file."""
    like = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    values = mapping.read(like, pieces, tensors, device, mapped)
    module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in values.items()}, assign=True)


def read_configs(path: str | PathLike[str]) -> Configs:
    """The three configurations of a MusicGen's directory. Raises as open_source() does."""
    checks.paths(path=path)
    path = Path(path)
    check_old_names(path)
    if is_audiocraft(path):
        source = open_source(path)
        return cast(Configs, (source.text, source.decoder, source.codec))
    if not path.is_dir():
        raise FileNotFoundError(f"no such checkpoint directory: {path}")
    adapter.check_base(path)
    file = path / "config.json"
    return huggingface.read_config(read_json(file), str(file))


def read_codec(path: Path) -> EncodecConfig:
    """The configuration of an EnCodec's own directory in transformers' layout. Raises ValueError naming the field."""
    file = path / "config.json"
    config = read_json(file)
    if config.get("model_type") != "encodec":
        raise ValueError(f"{file}: model_type must be 'encodec', got {shown(config.get('model_type'))}")
    try:
        return huggingface.read_codec(config, f"{file}: EnCodec")
    except ValueError as error:
        raise ValueError(_located(huggingface.in_their_names(error), file)) from None


# The files that say how audio is prepared. transformers 5 writes the first, which has the content of the second as a
# section, and reads the second where the first is missing. No number of the model depends on either.
PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
MEND = (
    "remove the file, and config.json says what is needed, or give MusicgenProcessor() an EncodecFeatureExtractor of "
    "your own"
)


def read_processor(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that says how audio is prepared for a directory's model, and its content; None without such a file.

    Raises ValueError naming a file that is damaged.
    """
    if (found := first_processor(path)) is not None:
        return found
    file = path / PREPROCESSOR
    return (file, _read_processor(file)) if file.exists() else None


def first_processor(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """As read_processor(), but only of processor_config.json, which is read in place of the other file."""
    file = path / PROCESSOR
    if not file.exists() or "feature_extractor" not in (content := _read_processor(file)):
        return None
    if not isinstance(section := content["feature_extractor"], dict):
        raise ValueError(f"{file}: feature_extractor must be an object, got {shown(section)}; {MEND}")
    return file, section


def _read_processor(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}; {MEND}") from None


def check_processor(file: Path, section: Mapping[str, Any], must: Mapping[str, Any]) -> None:
    """Raise ValueError where the fields of a processor's file are not those in `must`, or it is no EnCodec's."""
    for field, value in {**must, "feature_extractor_type": "EncodecFeatureExtractor"}.items():
        if section.get(field, value) != value:
            got = section[field]
            raise ValueError(f"{file}: {field} must be {value!r} for this model, got {shown(got)}; {MEND}")


def open_source(
    path: str | PathLike[str],
    text_encoder: str | PathLike[str] | None = None,
    codec: str | PathLike[str] | None = None,
    *,
    alone: bool = False,
    statistics: bool = False,
    choice: Choice = PLAIN,
) -> Source:
    """Open a directory of transformers (config.json) or audiocraft (state_dict.bin, compression_state_dict.bin, or the
    latter alone).

    text_encoder: the directory of T5, which audiocraft's files do not hold; None looks for it inside `path` and beside.
    codec: the directory of the codec, in either layout, where audiocraft's files only name it; None likewise.
    alone: True also opens an EnCodec without a MusicGen around it. statistics: True keeps the codebooks' statistics.
    choice: which weights are read where a directory of transformers holds several.
    Raises FileNotFoundError, or ValueError naming file and field.
    """
    checks.paths(path=path)
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such checkpoint directory: {path}")
    check_old_names(path)
    if is_audiocraft(path):
        if adapter.find(path, choice.adapter) or choice.variant is not None:
            raise ValueError(
                f"{path}: adapter and variant are for transformers' layout: convert it first (python -m "
                f"weights_convert audiocraft), got {choice}"
            )
        source = _open_audiocraft(path, text_encoder, codec, statistics, choice)
        if not alone and source.decoder is None:
            raise ValueError(f"{path}: holds an EnCodec alone, without {audiocraft.LM_FILE}")
        return source
    for name, given in {"text_encoder": text_encoder, "codec": codec}.items():
        if given is not None:
            raise ValueError(f"{name} is for audiocraft's files, which hold none; {path} has its own: {given}")
    return _open_huggingface(path, alone, statistics, choice)


def is_audiocraft(path: Path) -> bool:
    """Whether a directory is in audiocraft's layout."""
    files = (path / audiocraft.LM_FILE, path / audiocraft.CODEC_FILE)
    return not (path / "config.json").exists() and any(file.exists() for file in files)


def is_codec_alone(path: Path) -> bool:
    """Whether a directory holds an EnCodec without a MusicGen around it. Raises ValueError for damaged JSON."""
    if is_audiocraft(path):
        return not (path / audiocraft.LM_FILE).exists()
    file = path / "config.json"
    return file.is_file() and read_json(file).get("model_type") == "encodec"


def check_old_names(path: Path) -> None:
    """Raise FileNotFoundError for a directory that holds audiocraft's files under the names of its first version."""
    old = sorted(file.name for file in path.glob("*.th"))
    if old and not (path / "config.json").exists() and not is_audiocraft(path):
        raise FileNotFoundError(
            f"{path}: holds {', '.join(old)[:100]}, and neither {audiocraft.LM_FILE} nor {audiocraft.CODEC_FILE}: "
            f"rename the larger file of the authors' first release, the decoder, to the one and the smaller, the "
            f"codec, to the other; a training's checkpoint.th is a {audiocraft.LM_FILE}"
        )


def add_files(tensors: Tensors, path: Path, rename: Callable[[str], str | None], choice: Choice = PLAIN) -> None:
    """Add the tensors of a directory of transformers, renamed, and merge its adapter if `choice` asks for it.

    Raises as weight_files(), Tensors, adapter.find() and adapter.merge() do.
    """
    merged = adapter.find(path, choice.adapter)
    for file in weight_files(path, choice):
        tensors.add(file, open_weights(file, choice.tested), rename)
    if merged is not None:
        adapter.merge(tensors, merged)


def _open_huggingface(path: Path, alone: bool, statistics: bool, choice: Choice) -> Source:
    adapter.check_base(path)
    file = path / "config.json"
    config = read_json(file)
    tensors = Tensors()
    if alone and config.get("model_type") == "encodec":
        codec = read_codec(path)
        add_files(tensors, path, lambda name: huggingface.current_name(huggingface.CODEC + name, statistics), choice)
        table = huggingface.codec_table(codec)
        return Source(path, str(file), None, None, codec, table, huggingface.SECTIONS, tensors, path)
    text, decoder, codec = read_configs(path)
    add_files(tensors, path, partial(huggingface.current_name, statistics=statistics), choice)
    table = huggingface.table(text, decoder, codec)
    return Source(path, str(file), text, decoder, codec, table, huggingface.SECTIONS, tensors, path)


def _located(message: str, file: Path | str) -> str:
    """A message with the file in front, unless it begins with this or another file that holds a configuration."""
    return message if message.partition(": ")[0].endswith((".json", ".bin")) else f"{file}: {message}"


def package(file: Path, tested: bool = True) -> tuple[Bin, str]:
    """The tensors and the xp.cfg of one file of a release; tested: see load_bin(). Raises FileNotFoundError, or
    ValueError naming the file."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    return unpacked(file, load_bin(file, tested))


def unpacked(file: Path, content: Any) -> tuple[Bin, str]:
    """As package(), for a file that load_bin() has read already: content is what it returned."""
    if isinstance(content, dict) and "pretrained" in content:
        raise ValueError(
            f"{file}: must hold best_state and xp.cfg, holds only the name of a codec, pretrained "
            f"{shown(content['pretrained'])}: that belongs into {audiocraft.CODEC_FILE}"
        )
    if not isinstance(content, dict) or not {"best_state", "xp.cfg"} <= content.keys():
        got: Any = list(content)[:5] if isinstance(content, dict) else content
        raise ValueError(
            f"{file}: must hold best_state and xp.cfg, got {shown(got)}: tensors without the configuration that "
            f"audiocraft's own export writes beside them say too little of the model"
        )
    if not isinstance(content["xp.cfg"], str):
        raise ValueError(f"{file}: xp.cfg must be a text, got {type(content['xp.cfg']).__name__}")
    state = content["best_state"]
    # Some files have what audiocraft's solver keeps: the tensors in a dictionary under the name of the module.
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    return Bin(file, state), content["xp.cfg"]


def _open_audiocraft(
    path: Path,
    text_encoder: str | PathLike[str] | None,
    given_codec: str | PathLike[str] | None,
    statistics: bool,
    choice: Choice,
) -> Source:
    tensors = Tensors()
    lm_file = path / audiocraft.LM_FILE
    lm = package(lm_file, choice.tested) if lm_file.exists() else None
    if lm is not None:  # an unsupported model is refused before its other parts are looked for
        decoder = audiocraft.read_decoder(lm[1], str(lm_file))
    codec, codec_rows, codec_file, fields = open_codec(path, given_codec, lm and lm[1], tensors, statistics, choice)
    others = () if codec_file.parent == path else (codec_file.parent,)
    if lm is None:
        if text_encoder is not None:
            raise ValueError(f"text_encoder must be left out, {path} holds an EnCodec alone, got {text_encoder}")
        sections = audiocraft.sections(str(lm_file), str(codec_file), str(lm_file), fields)
        return Source(path, str(codec_file), None, None, codec, codec_rows, sections, tensors, path, others)
    state, settings = lm
    folder = find_text(path, text_encoder, audiocraft.text_name(settings, str(lm_file)))
    sections = audiocraft.sections(str(lm_file), str(codec_file), str(folder / "config.json"), fields)
    tensors.add(lm_file, state, lambda name: audiocraft.current_name(audiocraft.LM + name))
    try:
        text = _read_text(folder)
    except ValueError as error:
        raise ValueError(_located(huggingface.in_their_names(error, sections), folder / "config.json")) from None
    add_files(tensors, folder, _text_tensor, choice)
    decoder = replace(decoder, text_width=text.width)
    table = [*codec_rows, *audiocraft.table(text, decoder, codec)]  # where two rows match a name, the first counts
    return Source(path, str(lm_file), text, decoder, codec, table, sections, tensors, folder, (folder, *others))


def open_codec(
    path: Path,
    given: str | PathLike[str] | None,
    settings: str | None,
    tensors: Tensors,
    statistics: bool,
    choice: Choice,
) -> tuple[EncodecConfig, list[Row], Path, huggingface.Fields]:
    """The codec of a release, its rows, the file of its configuration, and the fields of that file. Its tensors are
    added to `tensors`.

    The codec is in the release's own file. Where that only names one, it is in the directory that is given, or in a
    directory of that name inside the release or beside it. settings: the decoder's xp.cfg, which names the codec where
    there is no such file.
    """
    file = path / audiocraft.CODEC_FILE
    content = load_bin(file, choice.tested) if file.exists() else None
    named = named_codec(path, content, settings)
    if named is None:
        if given is not None:
            raise ValueError(f"codec must be left out, {file} holds the release's own, got {given}")
        return _released_codec(file, content, tensors, statistics)
    if given is None:
        audiocraft.check_name(*named)
    folder = _find(path, "codec", given, named[0], ("config.json", audiocraft.CODEC_FILE))
    if (file := folder / audiocraft.CODEC_FILE).is_file():
        content = load_bin(file, choice.tested)
        if (other := audiocraft.stub(content, str(file))) is not None:
            raise ValueError(
                f"{file}: must hold a codec, holds only the name of one, pretrained {shown(other)}: give the directory "
                f"of that"
            )
        return _released_codec(file, content, tensors, statistics)
    file = folder / "config.json"
    codec = read_codec(folder)
    add_files(tensors, folder, lambda name: huggingface.current_name(huggingface.CODEC + name, statistics), choice)
    return codec, huggingface.codec_table(codec), file, huggingface.CODEC_FIELDS


def named_codec(path: Path, content: Any, settings: str | None) -> tuple[str, str, str] | None:
    """Where a release names a codec instead of holding one: its name, and the file and the key that name it; else None.

    content: of the codec's file, None where there is no such file. settings: the decoder's xp.cfg.
    """
    if content is not None:
        file = str(path / audiocraft.CODEC_FILE)
        name = audiocraft.stub(content, file)
        return None if name is None else (name, file, "pretrained")
    file = str(path / audiocraft.LM_FILE)
    return audiocraft.codec_name(settings or "", file), file, "compression_model_checkpoint"


def text_name(path: Path) -> str:
    """The T5 that a release names. Raises as package() does, and ValueError for what is no model's name."""
    file = path / audiocraft.LM_FILE
    return audiocraft.text_name(package(file)[1], str(file))


def codec_name(path: Path) -> str:
    """The name of the codec that a release names instead of holding one. Raises as package() does, and ValueError where
    the release holds its own codec, or names no model."""
    file = path / audiocraft.CODEC_FILE
    content = load_bin(file) if file.exists() else None
    named = named_codec(path, content, None if content is not None else package(path / audiocraft.LM_FILE)[1])
    if named is None:
        raise ValueError(f"codec must be left out, {file} holds the release's own")
    return audiocraft.check_name(*named)


def _released_codec(
    file: Path, content: Any, tensors: Tensors, statistics: bool
) -> tuple[EncodecConfig, list[Row], Path, huggingface.Fields]:
    state, settings = unpacked(file, content)
    codec = audiocraft.read_codec(settings, str(file))
    tensors.add(file, state, lambda name: audiocraft.current_name(audiocraft.CODEC + name, statistics))
    return codec, audiocraft.codec_table(codec), file, audiocraft.CODEC_FIELDS


PARTS = {
    "codec": f"codec, {audiocraft.CODEC_FILE} is missing or holds a name alone",
    "text_encoder": "text encoder, which audiocraft's files leave out",
}


def _find(
    path: Path, part: str, given: str | PathLike[str] | None, name: str, files: tuple[str, ...], other: str = ""
) -> Path:
    """The directory of a part that a release only names: the given one, or one of that name inside `path` or beside it.

    files: the directory must have one of these. other: another name that the directory may have inside `path`.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise FileNotFoundError(f"{part}: no such directory: {given}")
        if not any((Path(given) / file).is_file() for file in files):
            raise FileNotFoundError(f"{part}: {given} holds no {' and no '.join(files)}")
        return Path(given)
    short = name.rpartition("/")[2]
    for place in (path / short, *([path / other] if other else []), path.absolute().parent / short):
        if any((place / file).is_file() for file in files):
            return place
    raise FileNotFoundError(
        f"{path}: holds no {PARTS[part]}: fetch {name} with `hf download {shlex.quote(name)} --local-dir "
        f"{shlex.quote(str(path / short))}`, or give its directory: {part}=DIR, on the command line of weights_convert "
        f"--{part.replace('_', '-')} DIR"
    )


def find_text(path: Path, given: str | PathLike[str] | None, name: str) -> Path:
    """The directory of a release's T5 of this name: the given one, or one inside or beside it. Raises
    FileNotFoundError."""
    return _find(path, "text_encoder", given, name, ("config.json",), other="t5")


def _read_text(folder: Path) -> T5Config:
    file = folder / "config.json"
    config = read_json(file)
    if config.get("model_type") != "t5":
        raise ValueError(f"{file}: model_type must be 't5', got {shown(config.get('model_type'))}")
    return huggingface.read_text(config, f"{file}: T5")


def _text_tensor(name: str) -> str | None:
    # The tensor's name here. A whole T5 has a decoder, too, and several names for one embedding.
    if name.startswith(("decoder.", "lm_head.")):
        return None
    return audiocraft.TEXT + name.replace("encoder.embed_tokens.weight", "shared.weight")
