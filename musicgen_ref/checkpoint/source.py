"""A checkpoint directory of any layout, opened: configurations, name table, and tensors, of which none is read yet."""

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
    """An opened checkpoint. text and decoder are None where it is an EnCodec alone.

    where: the file with the configuration, for messages. tokenizer: the directory that may have one's files. others:
    directories of parts that are read from elsewhere.
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

        Raises ValueError, in the file's words, where the parts do not fit together, where the model would have many
        more tensors than there are (to build it, and then to list them all, would take minutes), and where sizes that
        are in no tensor would take much memory.
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
        """The tokenizer that lies with it, if any. Raises ValueError for one with more ids than there are vectors, and
        as read_tokenizer() does."""
        if not Tokenizer.lies_in(self.tokenizer):
            return None
        return read_tokenizer(self.tokenizer, None if self.text is None else self.text.vocab_size)

    def pieces(self, state: Mapping[str, Tensor], statistics: bool = False) -> dict[str, Piece]:
        """Its tensors by name, for the state_dict() of the skeleton; statistics: those of the codebooks it has too.

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
        """Of which tensors the values are not all finite, or would not be in a model, for a message; "" for none.

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
    """How a directory's generation_config.json wants codes to be drawn; where it says nothing, or null, None.

    Raises ValueError naming the file and the field that cannot be followed.
    """
    file = path / "generation_config.json"
    said = read_json(file) if file.exists() else {}
    try:
        return GenerationOptions(**{name: said[name] for name in LEFT_OPEN if said.get(name) is not None})
    except ValueError as error:
        raise ValueError(f"{file}: {error}; correct it, or remove it for the library's default") from None


def read_tokenizer(path: Path, limit: int | None = None) -> Tokenizer:
    """The tokenizer of a directory, whose files are written again when it is saved; limit: as Tokenizer takes it.

    Raises as check_small() and Tokenizer.from_directory() do.
    """
    for name in TOKENIZER_FILES:
        if (path / name).exists():
            check_small(path / name)
    return Tokenizer.from_directory(path, limit)


class _NoInit(TorchFunctionMode):
    # Leaves new weights as they are: drawing numbers that have no memory makes torch import its compiler, for seconds.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Modules that are made inside have shapes and dtypes alone, on torch's meta device; see fill()."""
    with torch.device("meta"), _NoInit():
        yield


@contextmanager
def building(where: str, sections: huggingface.Sections = huggingface.SECTIONS) -> Iterator[None]:
    """Where a model that is made inside cannot be, the error is a ValueError that names the file and its fields."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_located(huggingface.in_their_names(error, sections), where)) from None
    except (RuntimeError, OverflowError, TypeError) as error:  # more elements than torch can count
        raise ValueError(f"{where}: the sizes are beyond any machine: {str(error)[:200]}") from None


def describe(path: Path) -> MusicGen:
    """The MusicGen that a directory's config.json describes, without values: no other file is read.

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
    """Give a module that was made without values those of a file; prefix: of its names in the model; mapped: leave
    those that have the right dtype in the file."""
    like = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    values = mapping.read(like, pieces, tensors, device, mapped)
    module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in values.items()}, assign=True)


def read_configs(path: str | PathLike[str]) -> Configs:
    """The configurations of a MusicGen's directory. Raises as open_source() does."""
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


# How audio is prepared. transformers 5 writes the first with the same inside, and reads the second where that is
# missing. No number of the model depends on either.
PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
MEND = (
    "remove the file, and config.json says what is needed, or give MusicgenProcessor() an EncodecFeatureExtractor of "
    "your own"
)


def read_processor(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that says how a directory's audio is prepared, and what it says; None without one.

    Raises ValueError naming a file that is damaged.
    """
    if (found := first_processor(path)) is not None:
        return found
    file = path / PREPROCESSOR
    return (file, _read_processor(file)) if file.exists() else None


def first_processor(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """As read_processor(), of the file that is read in place of the other."""
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
    """Raise ValueError where what a file says of a processor is not what it must be, or it is of another kind."""
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

    text_encoder: the directory of T5, which audiocraft's files do not hold; None looks for one inside and beside.
    codec: the directory of the codec, in either layout, where audiocraft's files hold its name alone; likewise.
    alone: an EnCodec without a MusicGen around it will do. statistics: keep those that trained the codebooks.
    choice: of the weights that a directory of transformers may hold.
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
    """Take in the tensors of a directory of transformers under other names, its adapter merged if that is asked for.

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
    """With the file in front, unless it begins with that or another of the files that hold a configuration."""
    return message if message.partition(": ")[0].endswith((".json", ".bin")) else f"{file}: {message}"


def package(file: Path, tested: bool = True) -> tuple[Bin, str]:
    """The tensors and the xp.cfg of one file of a release; tested: see load_bin(). Raises FileNotFoundError, or
    ValueError naming the file."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    return unpacked(file, load_bin(file, tested))


def unpacked(file: Path, content: Any) -> tuple[Bin, str]:
    """As package(), of what load_bin() made of the file."""
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
    # Some write what the solver keeps, the module's name above its tensors.
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
    if lm is not None:  # a model that is none of ours is refused before any part is looked for
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
    add_files(tensors, folder, _text_name, choice)
    decoder = replace(decoder, text_width=text.width)
    table = [*codec_rows, *audiocraft.table(text, decoder, codec)]  # of two rows for one name the first counts
    return Source(path, str(lm_file), text, decoder, codec, table, sections, tensors, folder, (folder, *others))


def open_codec(
    path: Path,
    given: str | PathLike[str] | None,
    settings: str | None,
    tensors: Tensors,
    statistics: bool,
    choice: Choice,
) -> tuple[EncodecConfig, list[Row], Path, huggingface.Fields]:
    """The codec of a release, its rows, the file it stands in and its fields there; its tensors are added.

    It is in the release's own file, or in the directory that is given, or in one inside or beside of the name that the
    file has in its place. settings: the decoder's xp.cfg, which names it where there is no such file.
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
    """The codec that a release names instead of holding it, the file and the key that do; None where it holds one.

    content: of its codec file, None where there is none. settings: the decoder's xp.cfg.
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
    """The codec that a release names instead of holding it. Raises as package() does, and ValueError where it holds its
    own, or names no model."""
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
    """The directory of a part that a release only names: the given one, or one of that name inside or beside it.

    files: of which it has one at least. other: a second name inside.
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


def _text_name(name: str) -> str | None:
    # A whole T5 has a decoder too, and several names for one embedding.
    if name.startswith(("decoder.", "lm_head.")):
        return None
    return audiocraft.TEXT + name.replace("encoder.embed_tokens.weight", "shared.weight")
