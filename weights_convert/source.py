"""A checkpoint directory of any layout, opened: configurations, name table, and tensors, of which none is read yet."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from musicgen_ref.decoder import DecoderConfig
from musicgen_ref.encodec import Encodec, EncodecConfig
from musicgen_ref.model import MusicGen
from musicgen_ref.t5 import T5Config
from musicgen_ref.text import Tokenizer

from . import adapter, audiocraft, huggingface, mapping
from .files import PLAIN, Bin, Choice, Tensors, load_bin, open_weights, read_json, weight_files
from .mapping import Piece, Row

Configs = tuple[T5Config, DecoderConfig, EncodecConfig]


class Source(NamedTuple):
    """An opened checkpoint. text and decoder are None where it is an EnCodec alone.

    where: the file with the configuration, for messages. tokenizer: the directory that may have one's files.
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

    def skeleton(self) -> nn.Module:
        """The model without values, on the meta device: a MusicGen, or for an EnCodec a module with that as `codec`.

        Raises ValueError, in the file's words, where the parts do not fit together, and where the model would have
        many more tensors than there are: to build it, and then to list them all, would take minutes.
        """
        c, there = self.codec, len(self.tensors.shapes)
        few = 2 * (c.residual_layers * len(c.ratios) * 4 + c.lstm_layers * 4) + c.codebooks
        if self.text is not None and self.decoder is not None:
            few += 8 * self.text.layers + 16 * self.decoder.layers + self.decoder.codebooks
        if few > 4 * there + 50:
            raise ValueError(f"{self.where}: describes a model of {few} tensors or more, the files hold {there}")
        try:
            with without_values():  # nothing is allocated until the tensors are known to fit
                if self.text is not None and self.decoder is not None:
                    return MusicGen(self.text, self.decoder, self.codec)
                return nn.ModuleDict({"codec": Encodec(self.codec)})
        except ValueError as error:
            raise ValueError(f"{self.where}: {huggingface.in_their_names(error, self.sections)}") from None
        except (RuntimeError, OverflowError, TypeError) as error:  # more elements than torch can count
            raise ValueError(f"{self.where}: the sizes are beyond any machine: {str(error)[:200]}") from None

    def read_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies with it, if any. Raises ValueError for one with more ids than there are vectors."""
        if not Tokenizer.lies_in(self.tokenizer):
            return None
        tokenizer = Tokenizer.from_directory(self.tokenizer)
        if self.text is not None and tokenizer.vocab_size > self.text.vocab_size:
            raise ValueError(
                f"{self.tokenizer}: the tokenizer has {tokenizer.vocab_size} ids, text_encoder.vocab_size must be as "
                f"many at least, got {self.text.vocab_size}"
            )
        return tokenizer

    def pieces(self, state: Mapping[str, Tensor], statistics: bool = False) -> dict[str, Piece]:
        """Its tensors by name, for the state_dict() of the skeleton; statistics: those of the codebooks it has too.

        Raises ValueError that lists every tensor that is left over, missing or of a wrong shape.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        pieces = mapping.expand(self.table, shapes)
        if statistics:
            extra = mapping.expand(self.table, huggingface.statistics(self.codec))
            pieces |= {name: piece for name, piece in extra.items() if name in self.tensors.shapes}
        mapping.check(pieces, self.tensors.shapes, str(self.path))
        return pieces


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
    path = Path(path)
    if is_audiocraft(path):
        source = open_source(path)
        return cast(Configs, (source.text, source.decoder, source.codec))
    if not path.is_dir():
        raise FileNotFoundError(f"no such checkpoint directory: {path}")
    adapter.check_base(path)
    file = path / "config.json"
    text, decoder, codec = huggingface.read_config(read_json(file), str(file))
    check_processor(path, decoder.channels, codec.sampling_rate)
    return text, decoder, codec


def check_processor(path: Path, channels: int, sampling_rate: int) -> None:
    """Raise ValueError where a directory's processor is for other audio than that."""
    # transformers 4 writes preprocessor_config.json, 5 writes processor_config.json with the same inside. Everything in
    # it follows from config.json, so all there is to do is to see that it agrees.
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path / name).exists():
            section = read_json(path / name)
            section = section.get("feature_extractor", section)
            expected = {"feature_size": channels, "sampling_rate": sampling_rate}
            for field, value in expected.items():
                if not isinstance(section, dict) or section.get(field, value) != value:
                    got = section.get(field) if isinstance(section, dict) else section
                    raise ValueError(f"{path / name}: {field} must be {value} as in config.json, got {got!r:.100}")


def open_source(
    path: str | PathLike[str],
    text_encoder: str | PathLike[str] | None = None,
    *,
    alone: bool = False,
    statistics: bool = False,
    choice: Choice = PLAIN,
) -> Source:
    """Open a directory of transformers (config.json) or audiocraft (state_dict.bin, compression_state_dict.bin, or the
    latter alone).

    text_encoder: the directory of T5, which audiocraft's files do not hold; None looks for one inside and beside.
    alone: an EnCodec without a MusicGen around it will do. statistics: keep those that trained the codebooks.
    choice: of the weights that a directory of transformers may hold.
    Raises FileNotFoundError, or ValueError naming file and field.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such checkpoint directory: {path}")
    if is_audiocraft(path):
        if adapter.find(path, choice.adapter) or choice.variant is not None:
            raise ValueError(
                f"{path}: adapter and variant are for transformers' layout: convert it first (python -m "
                f"weights_convert audiocraft), got {choice}"
            )
        source = _open_audiocraft(path, text_encoder, statistics, choice)
        if not alone and source.decoder is None:
            raise ValueError(f"{path}: holds an EnCodec alone, without {audiocraft.LM_FILE}")
        return source
    if text_encoder is not None:
        raise ValueError(f"text_encoder is for audiocraft's files, which hold none; {path} has its own: {text_encoder}")
    return _open_huggingface(path, alone, statistics, choice)


def is_audiocraft(path: Path) -> bool:
    """Whether a directory is in audiocraft's layout."""
    files = (path / audiocraft.LM_FILE, path / audiocraft.CODEC_FILE)
    return not (path / "config.json").exists() and any(file.exists() for file in files)


def add_files(tensors: Tensors, path: Path, rename: Callable[[str], str | None], choice: Choice = PLAIN) -> None:
    """Take in the tensors of a directory of transformers under other names, its adapter merged if that is asked for.

    Raises as weight_files(), Tensors, adapter.find() and adapter.merge() do.
    """
    merged = adapter.find(path, choice.adapter)
    for file in weight_files(path, choice):
        tensors.add(file, open_weights(file), rename)
    if merged is not None:
        adapter.merge(tensors, merged)


def _open_huggingface(path: Path, alone: bool, statistics: bool, choice: Choice) -> Source:
    adapter.check_base(path)
    file = path / "config.json"
    config = read_json(file)
    tensors = Tensors()
    if alone and config.get("model_type") == "encodec":
        try:
            codec = huggingface.read_codec(config, f"{file}: EnCodec")
        except ValueError as error:
            raise ValueError(_located(huggingface.in_their_names(error), file)) from None
        check_processor(path, codec.channels, codec.sampling_rate)
        add_files(tensors, path, lambda name: huggingface.current_name(huggingface.CODEC + name, statistics), choice)
        table = huggingface.codec_table(codec)
        return Source(path, str(file), None, None, codec, table, huggingface.SECTIONS, tensors, path)
    text, decoder, codec = read_configs(path)
    add_files(tensors, path, partial(huggingface.current_name, statistics=statistics), choice)
    table = huggingface.table(text, decoder, codec)
    return Source(path, str(file), text, decoder, codec, table, huggingface.SECTIONS, tensors, path)


def _located(message: str, file: Path | str) -> str:
    return message if message.startswith(f"{file}: ") else f"{file}: {message}"


def package(file: Path) -> tuple[Bin, str]:
    """The tensors and the xp.cfg of one file of a release."""
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    content = load_bin(file)
    if isinstance(content, dict) and "pretrained" in content:
        raise ValueError(
            f"{file}: holds no codec, only the name of one, {content['pretrained']!r:.100}: put that model's own file "
            f"in its place"
        )
    if not isinstance(content, dict) or not {"best_state", "xp.cfg"} <= content.keys():
        got: Any = list(content)[:5] if isinstance(content, dict) else content
        raise ValueError(f"{file}: must hold best_state and xp.cfg, got {got!r:.100}")
    if not isinstance(content["xp.cfg"], str):
        raise ValueError(f"{file}: xp.cfg must be a text, got {type(content['xp.cfg']).__name__}")
    return Bin(file, content["best_state"]), content["xp.cfg"]


def _open_audiocraft(path: Path, text_encoder: str | PathLike[str] | None, statistics: bool, choice: Choice) -> Source:
    tensors = Tensors()
    file = path / audiocraft.CODEC_FILE
    state, settings = package(file)
    where = str(file)
    try:
        codec = audiocraft.read_codec(settings, where)
        tensors.add(file, state, lambda name: audiocraft.current_name(audiocraft.CODEC + name, statistics))
        table, sections = audiocraft.codec_table(codec), audiocraft.SECTIONS
        file = path / audiocraft.LM_FILE
        if not file.exists():
            if text_encoder is not None:
                raise ValueError(f"text_encoder must be left out, {path} holds an EnCodec alone, got {text_encoder}")
            return Source(path, where, None, None, codec, table, sections, tensors, path)
        where = str(file)
        state, settings = package(file)
        tensors.add(file, state, lambda name: audiocraft.current_name(audiocraft.LM + name))
        folder = _find_text(path, text_encoder, audiocraft.text_name(settings, where))
        where = str(folder / "config.json")
        text = _read_text(folder)
        add_files(tensors, folder, _text_name, choice)
        where = str(file)
        decoder = audiocraft.read_decoder(settings, text.width, where)
    except ValueError as error:
        message = huggingface.in_their_names(error, audiocraft.SECTIONS)
        raise ValueError(message if str(path) in message else f"{where}: {message}") from None
    table = audiocraft.table(text, decoder, codec)
    return Source(path, where, text, decoder, codec, table, sections, tensors, folder)


def _find_text(path: Path, given: str | PathLike[str] | None, name: str) -> Path:
    if given is not None:
        if not Path(given).is_dir():
            raise FileNotFoundError(f"text_encoder: no such directory: {given}")
        return Path(given)
    short = name.rpartition("/")[2]
    places = [path / short, path / "t5", path.parent / short]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(
        f"{path}: holds no text encoder, which audiocraft's files leave out: put {name}, as transformers saves it, "
        f"into {places[0]}, or convert with --text-encoder DIR"
    )


def _read_text(folder: Path) -> T5Config:
    file = folder / "config.json"
    config = read_json(file)
    if config.get("model_type") != "t5":
        raise ValueError(f"{file}: model_type must be 't5', got {config.get('model_type')!r:.100}")
    return huggingface.read_text(config, f"{file}: T5")


def _text_name(name: str) -> str | None:
    # A whole T5 has a decoder too, and several names for one embedding.
    if name.startswith(("decoder.", "lm_head.")):
        return None
    return audiocraft.TEXT + name.replace("encoder.embed_tokens.weight", "shared.weight")
