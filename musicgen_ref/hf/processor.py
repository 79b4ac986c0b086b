"""MusicgenProcessor: text to ids, audio to padded batches, and generated audio without its padding.

B batch, L text tokens, C audio channels, N samples.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..checkpoint import source
from ..checkpoint.files import read_json
from ..messages import shown
from ..text import Tokenizer
from .files import CHOICE, HUB, IGNORED, check_push, directory, save_json
from .messages import check_names
from .outputs import ModelOutput

TENSORS = (None, "pt", "np")
PADDING = (None, True, False, "longest", "max_length", "do_not_pad")
TRUNCATION = (None, True, False, "longest_first", "only_first", "do_not_truncate")
NO_LIMIT = int(1e20)  # a model_max_length of this size or more means that there is no limit
# The settings of a tokenizer, beside its vocabulary, and their defaults.
SETTINGS_FILE = "tokenizer_config.json"
SETTINGS: dict[str, Any] = {
    "model_max_length": int(1e30),
    "padding_side": "right",
    "truncation_side": "right",
    "clean_up_tokenization_spaces": False,
}
# The fields of a feature extractor in a processor's file, and those that change nothing here.
FIELDS = ("feature_size", "sampling_rate", "padding_value", "padding_side", "chunk_length_s", "overlap")
MASK = "return_attention_mask"
UNUSED = ("feature_extractor_type", "processor_class")


class T5Tokenizer:
    """Strings to ids and masks, and ids to strings, with transformers' arguments over musicgen_ref.text.Tokenizer.

    settings: model_max_length, padding_side, truncation_side, clean_up_tokenization_spaces. They override those in
    tokenizer_config.json, and can also be set later, as attributes. Raises ValueError for an impossible one.
    """

    pad_token_id, eos_token_id, unk_token_id = Tokenizer.pad_id, Tokenizer.eos_id, Tokenizer.unk_id
    pad_token, eos_token, unk_token = "<pad>", "</s>", "<unk>"
    model_max_length: float
    padding_side: str
    truncation_side: str
    clean_up_tokenization_spaces: bool

    def __init__(self, tokenizer: Tokenizer, **settings: Any):
        check_names("T5Tokenizer()", settings, SETTINGS)
        self.tokenizer = tokenizer
        self.model_input_names = ["input_ids", "attention_mask"]
        for name, default in SETTINGS.items():
            value = settings.get(name, tokenizer.config.get(name))
            value = default if value is None else value
            if name == "model_max_length":
                ok, must = _number(value) and value >= 1, "1 or more"
            elif name == "clean_up_tokenization_spaces":
                ok, must = type(value) is bool, "True or False"
            else:
                ok, must = value in ("left", "right"), "'left' or 'right'"
            if not ok:
                where = "" if name in settings else f"{SETTINGS_FILE}: "
                raise ValueError(f"{where}{name} must be {must}, got {value!r:.100}")
            setattr(self, name, value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **given: Any) -> "T5Tokenizer":
        """Load a directory with spiece.model or tokenizer.json, "demo", or a Hub id, with settings of the class."""
        check_names("from_pretrained()", given, {*HUB, *CHOICE, *IGNORED, *SETTINGS})
        settings = {key: value for key, value in given.items() if key in SETTINGS}
        return cls(source.read_tokenizer(directory(pretrained_model_name_or_path, given)), **settings)

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False) -> None:
        """Write the files that from_pretrained() here and transformers open, with the settings as they are now. Raises
        ValueError for push_to_hub."""
        check_push(push_to_hub)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(save_directory)
        config = self.tokenizer.config
        changed = {
            name: getattr(self, name)
            for name, default in SETTINGS.items()
            if getattr(self, name) != (default if config.get(name) is None else config[name])
        }
        if changed:
            file = Path(save_directory) / SETTINGS_FILE
            save_json(save_directory, SETTINGS_FILE, read_json(file) | changed)

    def __len__(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def vocab_size(self) -> int:
        """The number of pieces. len() also counts the special tokens that are no pieces."""
        return len(self.tokenizer.pieces)

    def get_vocab(self) -> dict[str, int]:
        """The id of every piece and special token."""
        return {piece: i for i, (piece, _) in enumerate(self.tokenizer.pieces)} | self.tokenizer.special

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens that a configuration names or lists."""
        return list(self.tokenizer.listed)

    @property
    def all_special_ids(self) -> list[int]:
        return [self.tokenizer.special[token] for token in self.tokenizer.listed]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_token_type_ids: bool | None = None,
    ) -> ModelOutput:
        """input_ids and attention_mask: lists, or (B, L) with return_tensors "pt" or "np".

        add_special_tokens: False leaves the end token out. padding: True or "longest" pads to the longest row,
        "max_length" to that length, each rounded up to a multiple of pad_to_multiple_of; False does not pad.
        truncation: True cuts rows to max_length, with the end token last; so does a max_length without padding and
        truncation. Without a max_length it is model_max_length; if that sets no limit, nothing is cut, and "max_length"
        does not pad.
        Raises ValueError for a text that is no string or list of strings, for rows of different lengths that are to be
        a tensor, and for return_token_type_ids, which T5 does not have.
        """
        if return_token_type_ids:
            raise ValueError(f"return_token_type_ids must be None or False, got {return_token_type_ids!r:.100}")
        _check("truncation", truncation, TRUNCATION)
        if truncation is None:
            truncation = max_length is not None and (padding is None or padding is False)
        cut = truncation not in (False, "do_not_truncate")
        limit = self._limit(padding, cut, max_length, pad_to_multiple_of)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(row, str) for row in texts):
            raise ValueError(f"text must be a string or a non-empty list of strings, got {text!r:.100}")
        rows = [self.tokenizer.encode(row, end=add_special_tokens) for row in texts]
        if cut and limit is not None:
            rows = [self._cut(row, limit, int(add_special_tokens)) for row in rows]
        features = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        features = self._pad(features, padding, limit, pad_to_multiple_of, padding_side)
        if return_attention_mask is not None and not return_attention_mask:
            del features["attention_mask"]
        return _arrays(features, return_tensors, isinstance(text, str))

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str | None = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> ModelOutput:
        """Pad what __call__() returned: a mapping of lists, arrays or tensors, or a list of such mappings, which a
        DataLoader's collate function gets. Other fields stay as they are. Raises ValueError without input_ids, and for
        rows that cannot be a tensor."""
        limit = self._limit(padding, False, max_length, pad_to_multiple_of)
        features = _batched(encoded_inputs, "input_ids")
        kinds = {type(row) for row in features["input_ids"]}
        if return_tensors is None:
            return_tensors = "pt" if kinds & {Tensor} else "np" if kinds & {np.ndarray} else None
        features = {name: _plain(value) for name, value in features.items()}
        single = bool(features["input_ids"]) and not isinstance(features["input_ids"][0], list)
        if single:
            features = {name: [value] for name, value in features.items()}
        if return_attention_mask is None or return_attention_mask:
            features.setdefault("attention_mask", [[1] * len(row) for row in features["input_ids"]])
        made = _arrays(self._pad(features, padding, limit, pad_to_multiple_of, padding_side), return_tensors, single)
        return ModelOutput(**{name: rows[0] for name, rows in made.items()}) if single and return_tensors else made

    def _limit(self, padding: bool | str | None, cut: bool, max_length: int | None, multiple: int | None) -> int | None:
        """The length to cut or pad to, None without one. Raises ValueError for an impossible one."""
        _check("padding", padding, PADDING)
        for name, value in (("max_length", max_length), ("pad_to_multiple_of", multiple)):
            if value is not None and not (_whole(value) and value > 0):
                raise ValueError(f"{name} must be a whole number above 0, got {value!r:.100}")
        if max_length is None and self.model_max_length < NO_LIMIT:
            max_length = int(self.model_max_length)
        padded = padding is True or padding in ("longest", "max_length")
        if cut and padded and multiple is not None and max_length is not None and max_length % multiple:
            raise ValueError(
                f"max_length must be a multiple of pad_to_multiple_of {multiple} to cut and pad to, got {max_length}"
            )
        return max_length

    def _cut(self, row: list[int], limit: int, ends: int) -> list[int]:
        body, end = row[: len(row) - ends], row[len(row) - ends :]
        most = max(0, limit - ends)
        return (body[:most] if self.truncation_side == "right" else body[max(0, len(body) - most) :]) + end

    def _pad(
        self,
        features: dict[str, Any],
        padding: bool | str | None,
        limit: int | None,
        multiple: int | None,
        side: str | None,
    ) -> dict[str, Any]:
        """The features with the rows of ids and masks padded to one length; longer rows stay as they are."""
        side = self.padding_side if side is None else side
        _check("padding_side", side, ("left", "right"))
        rows = features["input_ids"]
        width = 0
        if padding is True or padding == "longest":
            width = max(map(len, rows))
        elif padding == "max_length":
            width = limit or 0
        width = -(-width // (multiple or 1)) * (multiple or 1)
        out = dict(features)
        for name, fill in {"input_ids": self.pad_token_id, "attention_mask": 0}.items():
            if name in features:
                more = [[fill] * (width - len(row)) for row in rows]
                pairs = zip(features[name], more, strict=True)
                out[name] = [row + extra if side == "right" else extra + row for row, extra in pairs]
        return out

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        padding: bool | str | None = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Any:
        """The input_ids of __call__() alone."""
        return self(
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )["input_ids"]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text as strings."""
        return self.tokenizer.tokens(text) + ([self.eos_token] if add_special_tokens else [])

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the ids of a list of tokens; unk_token_id for an unknown one."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.tokenizer.id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of a list of ids. Raises ValueError for ids that do not exist."""
        ids = _plain(ids)
        if not isinstance(ids, list):
            return self.tokenizer.token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.tokenizer.token(i) for i in ids if i not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text that tokens make."""
        return self.tokenizer.join(tokens)

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of an id or of a row of ids, or the list of texts of several rows. clean_up_tokenization_spaces:
        remove the space before punctuation, as in " !"; None does as the attribute says. Raises ValueError for ids that
        do not exist."""
        ids = _plain(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        tidy = clean_up_tokenization_spaces
        tidy = self.clean_up_tokenization_spaces if tidy is None else tidy
        return self.tokenizer.decode(ids if isinstance(ids, list) else [ids], skip_special_tokens, tidy)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The text of each row of ids, as decode() makes it."""
        made = self.decode(list(sequences), skip_special_tokens, clean_up_tokenization_spaces)
        return [made] if isinstance(made, str) else made


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value is one or (isinstance(one, str) and isinstance(value, str) and value == one) for one in allowed):
        raise ValueError(f"{name} must be one of {allowed}, got {value!r:.100}")


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists and numbers, also where they are in lists."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _batched(features: Any, name: str) -> dict[str, Any]:
    """A list of mappings as a mapping of lists. Raises ValueError without the field of this name."""
    if isinstance(features, (list, tuple)) and features and isinstance(features[0], Mapping):
        features = {key: [one[key] for one in features] for key in features[0]}
    if not isinstance(features, Mapping) or name not in features or not len(features[name]):
        got = list(features) if isinstance(features, Mapping) else type(features).__name__
        raise ValueError(f"give a mapping or a list of mappings that hold {name}, not empty, got {got!r:.100}")
    return dict(features)


def _arrays(features: dict[str, Any], tensors: str | None, single: bool) -> ModelOutput:
    """Rows as lists, or as arrays or tensors. single: there is one row, which as a list has no batch dimension. Rows of
    different lengths become an array of arrays; raises ValueError where they are to be a tensor."""
    _check("return_tensors", tensors, TENSORS)
    if tensors is None:
        return ModelOutput(**{name: rows[0] if single else rows for name, rows in features.items()})
    arrays = {name: _stack([np.array(row) for row in rows]) for name, rows in features.items()}
    if tensors == "np":
        return ModelOutput(**arrays)
    for name, array in arrays.items():
        if array.dtype == object:
            got = [len(row) for row in features[name]]
            raise ValueError(
                f"padding must be True for texts of different lengths to be a tensor, {name} has {got!r:.100}"
            )
    return ModelOutput(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """One array of several; an array of arrays where they have different lengths."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    ragged = np.empty(len(rows), dtype=object)
    ragged[:] = rows
    return ragged


class EncodecFeatureExtractor:
    """Audio to a batch (B, C, N). feature_size is C, sampling_rate is in Hz, padding_side is "right" or "left".

    chunk_length_s and overlap: for a codec that codes long audio in pieces (48 kHz); audio is then padded to whole
    pieces. Raises ValueError naming an impossible field.
    """

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 24000,
        padding_value: float = 0.0,
        chunk_length_s: float | None = None,
        overlap: float | None = None,
        padding_side: str = "right",
        **others: Any,
    ):
        check_names("EncodecFeatureExtractor()", others, {*FIELDS, *UNUSED, MASK})
        rate, chunk, lap = sampling_rate, chunk_length_s, overlap
        for name, got, ok, must in (
            ("feature_size", feature_size, _whole(feature_size) and feature_size in (1, 2), "1 (mono) or 2 (stereo)"),
            ("sampling_rate", rate, _whole(rate) and rate > 0, "a whole number above 0"),
            ("padding_value", padding_value, _number(padding_value) and padding_value == 0, "0, which is silence"),
            ("padding_side", padding_side, padding_side in ("left", "right"), "'left' or 'right'"),
            ("chunk_length_s", chunk, chunk is None or (_number(chunk) and 0 < chunk < 1e9), "above 0, or None"),
            ("overlap", lap, lap is None or (_number(lap) and 0 <= lap < 1), "in [0, 1), or None"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {must}, got {got!r:.100}")
        # Numpy's numbers become Python's, which JSON can hold.
        self.feature_size, self.sampling_rate, self.padding_side = int(feature_size), int(rate), padding_side
        self.padding_value, self.chunk_length_s, self.overlap = _plain(padding_value), _plain(chunk), _plain(lap)
        self.return_attention_mask = bool(others.get(MASK, True))
        self.model_input_names = ["input_values", "padding_mask"]
        if self.chunk_length == 0:
            raise ValueError(f"chunk_length_s must be a sample or more at {sampling_rate} Hz, got {chunk!r}")

    @property
    def chunk_length(self) -> int | None:
        """Samples of a piece; None where audio is coded whole."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from the start of one piece to the start of the next; None where audio is coded whole."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], **given: Any
    ) -> "EncodecFeatureExtractor":
        """The feature extractor for a MusicGen or an EnCodec: a directory, "demo", or a Hub id. Its fields are those in
        the processor's file, or without such a file those that config.json implies; given fields override both.

        Raises ValueError, naming the file and the field, for a processor's file that is damaged, or whose feature_size
        or sampling_rate is not the model's. Such a file does not stop the model itself from being loaded.
        """
        check_names("from_pretrained()", given, {*HUB, *CHOICE, *IGNORED, *FIELDS, MASK})
        own = {key: value for key, value in given.items() if key in (*FIELDS, MASK)}
        folder = directory(pretrained_model_name_or_path, given)
        found = source.read_processor(folder)
        model = _audio_of(folder) if found is None or (folder / "config.json").exists() else {}
        if found is None:
            return cls(**model | own)
        file, section = found
        # Where the file leaves out size and rate, the model says them; for other fields transformers' defaults hold.
        must = {key: value for key, value in model.items() if key in ("feature_size", "sampling_rate")}
        source.check_processor(file, section, must)
        stored = must | {key: value for key, value in section.items() if key in (*FIELDS, MASK)}
        try:
            made = cls(**stored)
        except ValueError as error:
            raise ValueError(f"{file}: {error}; {source.MEND}") from None
        return cls(**stored | own) if own else made

    @classmethod
    def from_json_file(cls, file: str | PathLike[str]) -> "EncodecFeatureExtractor":
        """The feature extractor of a file that to_json_file() wrote. Raises FileNotFoundError, or ValueError naming the
        file and what is wrong with it."""
        content = read_json(Path(file))
        source.check_processor(Path(file), content, {})
        try:
            return cls(**{key: value for key, value in content.items() if key not in UNUSED})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in (*FIELDS, MASK)}
        return fields | {"feature_extractor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """The text of preprocessor_config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, file: str | PathLike[str]) -> None:
        """Write to_json_string() into a file, which appears when it is complete."""
        save_json(Path(file).parent, Path(file).name, self.to_dict())

    def save_pretrained(
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, *, processor_class: str | None = None
    ) -> list[str]:
        """Write preprocessor_config.json into a directory, and return its path in a list. processor_class: the name of
        the processor's class, if this is part of one.

        Raises ValueError for push_to_hub, and where the directory has a processor_config.json that says something else.
        """
        check_push(push_to_hub)
        # transformers 5 and from_pretrained() read that file first.
        if (stale := source.first_processor(Path(save_directory))) is not None:
            source.check_processor(*stale, {name: getattr(self, name) for name in FIELDS})
        more = {} if processor_class is None else {"processor_class": processor_class}
        save_json(save_directory, source.PREPROCESSOR, self.to_dict() | more)
        return [str(Path(save_directory) / source.PREPROCESSOR)]

    def __call__(
        self,
        raw_audio: Any,
        padding: bool | str | None = None,
        truncation: bool | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> ModelOutput:
        """padding_mask (B, N) int32, 1 where there is audio, and input_values (B, C, N) float32, of one clip or a list.

        A clip is an array or list, (N,) in mono and (2, N) in stereo. padding: True (default) or "longest" pads to the
        longest clip, "max_length" to that length (longer clips stay as they are); "do_not_pad" does not pad, and False
        leaves out the mask, too. truncation: True cuts to max_length.
        For a codec with chunks, without a max_length, any padding goes to the end of the chunk in which the longest
        clip ends, and truncation cuts at the end of the last chunk whose stride the shortest clip fills.
        Arrays of int16, int32 and uint8, as WAV readers return them, are scaled to full scale at -1 and 1; transformers
        does not scale them. Raises ValueError for another sampling rate or number of channels than the model's, for
        clips without samples, and for other whole numbers.
        """
        _check("padding", padding, PADDING)
        _check("return_tensors", return_tensors, TENSORS)
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate must be {self.sampling_rate} Hz, the model's, got {sampling_rate}: resample the audio "
                "first (musicgen_ref.audio.resample)"
            )
        if padding and truncation:
            raise ValueError("padding and truncation: give one, got both")
        stride = self.chunk_stride if max_length is None else None
        sized = truncation or padding == "max_length"
        if sized and stride is None and (max_length is None or not _whole(max_length) or max_length < 1):
            raise ValueError(f"max_length must be a whole number above 0 to pad or cut to, got {max_length!r}")
        many = isinstance(raw_audio, (list, tuple)) and len(raw_audio) and np.ndim(raw_audio[0]) > 0
        clips = [self._clip(clip) for clip in (raw_audio if many else [raw_audio])]
        lengths = [clip.shape[1] for clip in clips]
        if stride is not None and (truncation or padding is not False):
            steps = min(lengths) // stride if truncation else math.ceil(max(lengths) / stride)
            max_length = (steps - 1) * stride + (self.chunk_length or 0)
            padding = padding if truncation else "max_length"
            if max_length < 1:
                raise ValueError(
                    f"audio must be {stride} samples or more to be cut to whole chunks, got {min(lengths)}"
                )
        if truncation:
            clips = [clip[:, :max_length] for clip in clips]
            lengths = [clip.shape[1] for clip in clips]
        least = max(lengths)
        if padding == "max_length":
            least = max_length or 0
        elif padding in (False, "do_not_pad"):
            least = 0
        masks = [self._pad(np.ones(n, np.int32), least) for n in lengths]
        clips = [self._pad(clip.T, least).T for clip in clips]
        even = len({clip.shape[1] for clip in clips}) == 1
        if return_tensors is not None and not even:
            got = [clip.shape[1] for clip in clips]
            raise ValueError(f"padding must be True for audio of different lengths to be a tensor, got {got}")
        values: Any = clips if return_tensors is None else np.stack(clips)
        fields: dict[str, Any] = {}
        if padding is not False:
            fields["padding_mask"] = _stack(masks)
        fields["input_values"] = values
        if return_tensors == "pt":
            fields = {key: torch.from_numpy(array) for key, array in fields.items()}
        return ModelOutput(**fields)

    def pad(
        self,
        processed_features: Any,
        padding: bool | str | None = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> ModelOutput:
        """input_values, arrays (N,), or (N, 2) in stereo, at one length, and attention_mask, 1 where there is audio.

        processed_features: {"input_values": clips}, or a list of mappings of one clip each. padding: True or "longest",
        "max_length" or False. truncation: True cuts clips to max_length. Both lengths are rounded up to a multiple of
        pad_to_multiple_of. Other fields stay as they are. Without return_tensors, tensors give tensors and anything
        else arrays, or an array of arrays for clips of different lengths. Raises ValueError without clips, without a
        max_length that is needed, and for tensors of different lengths.
        """
        _check("padding", padding, PADDING)
        _check("return_tensors", return_tensors, TENSORS)
        features = _batched(processed_features, "input_values")
        given = list(features["input_values"])
        if return_tensors is None:
            return_tensors = "pt" if isinstance(given[0], Tensor) else "np"
        clips = [_numpy(clip) for clip in given]
        clips = [clip.astype(np.float32) if clip.dtype == np.float64 else clip for clip in clips]
        if any(clip.ndim != self.feature_size or clip.dtype.kind not in "fi" for clip in clips):
            must = "(N,)" if self.feature_size == 1 else "(N, 2)"
            raise ValueError(f"input_values must be a list of clips of numbers {must}, got {clips[0].shape}")
        for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None and not (_whole(value) and value > 0):
                raise ValueError(f"{name} must be a whole number above 0, got {value!r:.100}")
        if max_length is None and (truncation or padding == "max_length"):
            raise ValueError("max_length must be given to pad or cut to, got None")
        masks = [_numpy(mask) for mask in features.pop("attention_mask", ())]
        masks = masks or [np.ones(len(clip), np.int32) for clip in clips]

        def rounded(length: int) -> int:
            return -(-length // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)

        if truncation:
            clips, masks = ([row[: rounded(max_length or 0)] for row in rows] for rows in (clips, masks))
        width = 0
        if padding is True or padding == "longest":
            width = rounded(max(map(len, clips)))
        elif padding == "max_length":
            width = rounded(max_length or 0)
        fields = {name: [_numpy(one) for one in value] for name, value in features.items()}
        fields["input_values"] = [self._pad(clip, width) for clip in clips]
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            fields["attention_mask"] = [self._pad(mask, width) for mask in masks]
        lengths = [len(clip) for clip in fields["input_values"]]
        if return_tensors == "pt" and len(set(lengths)) > 1:
            raise ValueError(
                f"padding must be True for audio of different lengths to be a tensor, got {lengths!r:.100}"
            )
        arrays = {name: _stack(rows) for name, rows in fields.items()}
        return ModelOutput(**{k: torch.from_numpy(v) if return_tensors == "pt" else v for k, v in arrays.items()})

    def _pad(self, clip: np.ndarray, least: int) -> np.ndarray:
        """An array (N, ...), padded with zeros to `least` samples if it is shorter."""
        more = max(0, least - len(clip))
        ends = [(more, 0) if self.padding_side == "left" else (0, more)]
        return np.pad(clip, ends + [(0, 0)] * (clip.ndim - 1))

    def _clip(self, clip: Any) -> np.ndarray:
        array = np.asarray(clip.detach().cpu() if isinstance(clip, Tensor) else clip)
        must = "mono audio, (N,)" if self.feature_size == 1 else "stereo audio, (2, N)"
        shape = array.shape
        if array.ndim != self.feature_size or (self.feature_size == 2 and shape[0] != 2) or not array.size:
            turned = "; WAV readers return (N, 2): give its .T" if array.ndim == 2 and shape[1:] == (2,) else ""
            raise ValueError(f"audio must be {must}, with samples, got {shape}{turned}")
        if array.dtype.name in ("uint8", "int16", "int32"):
            array = checks.as_audio(array).numpy()
        if array.dtype.kind != "f":
            raise ValueError(
                f"audio must be floating point, full scale at -1 and 1, or an array of int16, int32 or uint8 as WAV "
                f"files have them, got {array.dtype}"
            )
        return array.astype(np.float32, copy=False).reshape(self.feature_size, -1)


def _audio_of(folder: Path) -> dict[str, Any]:
    """The fields of a feature extractor that follow from a model's configuration."""
    kind: Any = "musicgen" if source.is_audiocraft(folder) else read_json(folder / "config.json").get("model_type")
    if kind == "encodec":
        codec = source.read_codec(folder)
        chunks = {"chunk_length_s": codec.chunk_seconds, "overlap": codec.overlap}
        return {"feature_size": codec.channels, "sampling_rate": codec.sampling_rate, **chunks}
    if kind != "musicgen":
        raise ValueError(f"{folder / 'config.json'}: model_type must be 'musicgen' or 'encodec', got {shown(kind)}")
    _, decoder, codec = source.read_configs(folder)
    return {"feature_size": decoder.channels, "sampling_rate": codec.sampling_rate, "padding_side": "left"}


class MusicgenProcessor:
    """A feature extractor for audio and a tokenizer for text."""

    def __init__(self, feature_extractor: EncodecFeatureExtractor, tokenizer: T5Tokenizer):
        self.feature_extractor, self.tokenizer = feature_extractor, tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **given: Any) -> "MusicgenProcessor":
        """The processor of a directory, "demo", or a Hub id. Fields of the feature extractor and settings of the
        tokenizer can be given, and override those of the files. Raises as EncodecFeatureExtractor.from_pretrained()
        does, and FileNotFoundError where there is no tokenizer."""
        check_names("from_pretrained()", given, {*HUB, *CHOICE, *IGNORED, *FIELDS, *SETTINGS})
        audio = {key: value for key, value in given.items() if key in FIELDS or key not in SETTINGS}
        text = {key: value for key, value in given.items() if key in SETTINGS or key not in FIELDS}
        name = pretrained_model_name_or_path
        return cls(EncodecFeatureExtractor.from_pretrained(name, **audio), T5Tokenizer.from_pretrained(name, **text))

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False) -> None:
        """Write the files that from_pretrained() here and transformers 4 and 5 open; they can lie beside a model's.
        Raises ValueError for push_to_hub."""
        self.feature_extractor.save_pretrained(save_directory, push_to_hub, processor_class=type(self).__name__)
        self.tokenizer.save_pretrained(save_directory)

    @property
    def sampling_rate(self) -> int:
        return self.feature_extractor.sampling_rate

    @property
    def model_input_names(self) -> list[str]:
        return self.feature_extractor.model_input_names + self.tokenizer.model_input_names

    def __call__(
        self,
        audio: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        sampling_rate: int | None = None,
        padding: bool | str | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> ModelOutput:
        """input_ids and attention_mask of text, padding_mask and input_values of audio: arguments of generate().

        See T5Tokenizer and EncodecFeatureExtractor for the arguments. By default audio is padded and text is not. The
        last four arguments are for text. Raises ValueError without audio and text, and for one of the last three in a
        call with audio.
        """
        if audio is None and text is None:
            raise ValueError("give audio, text or both, got neither")
        options: dict[str, Any] = {
            "pad_to_multiple_of": pad_to_multiple_of,
            "padding_side": padding_side,
            "return_attention_mask": return_attention_mask,
        }
        if audio is not None and (given := [name for name, value in options.items() if value is not None]):
            raise ValueError(f"{given} must be left out beside audio, which they are not for: call the tokenizer")
        both: dict[str, Any] = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
        }
        out: dict[str, Any] = {}
        if text is not None:
            out |= self.tokenizer(text, add_special_tokens=add_special_tokens, **both, **options)
        if audio is not None:
            out |= self.feature_extractor(audio, sampling_rate=sampling_rate, **both)
        return ModelOutput(**out)

    def batch_decode(
        self,
        audio: Any = None,
        padding_mask: Any = None,
        *,
        sequences: Any = None,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[Any]:
        """Generated audio (B, C, N) as a list of arrays (C, n), without the padding that the prompt had; or `sequences`
        of text ids as strings.

        padding_mask: (B, N) or shorter, from __call__(). Samples beyond its end are new, and are kept. Raises
        ValueError for a mask that is longer than the audio, or of another batch size.
        """
        if sequences is not None and audio is None:
            return self.tokenizer.batch_decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        values = _numpy(audio)
        if values.ndim != 3:
            raise ValueError(f"audio must be (B, C, N), got {values.shape}: ids of text go to sequences=")
        if padding_mask is None:
            return list(values)
        mask = _numpy(padding_mask)
        if mask.ndim != 2 or len(mask) != len(values) or mask.shape[1] > values.shape[2]:
            must = f"({len(values)}, {values.shape[2]}) or shorter"
            raise ValueError(f"padding_mask must be {must}, got {mask.shape}")
        kept = np.pad(mask != 0, ((0, 0), (0, values.shape[2] - mask.shape[1])), constant_values=True)
        return [clip[:, keep] for clip, keep in zip(values, kept, strict=True)]

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of ids, or the list of texts of several rows of ids."""
        return self.tokenizer.decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces)


class AutoProcessor:
    """Loads the class that prepares the inputs of a directory's model, by its model_type."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | PathLike[str], **given: Any
    ) -> "MusicgenProcessor | EncodecFeatureExtractor | T5Tokenizer":
        """The processor of a MusicGen, the feature extractor of an EnCodec, or the tokenizer of a T5. Without a
        config.json it is the one whose files are there. Raises as their from_pretrained() do."""
        check_names("from_pretrained()", given, {*HUB, *IGNORED, *FIELDS, *SETTINGS})
        folder = directory(pretrained_model_name_or_path, given)
        kind: Any = "musicgen"
        if (folder / "config.json").exists():
            kind = read_json(folder / "config.json").get("model_type")
        elif not source.is_audiocraft(folder):
            audio, text = source.read_processor(folder) is not None, Tokenizer.lies_in(folder)
            kind = "musicgen" if audio == text else "encodec" if audio else "t5"
        kinds: dict[Any, Any] = {"encodec": EncodecFeatureExtractor, "t5": T5Tokenizer}
        processor: MusicgenProcessor | EncodecFeatureExtractor | T5Tokenizer = kinds.get(
            kind if isinstance(kind, str) else None, MusicgenProcessor
        ).from_pretrained(pretrained_model_name_or_path, **given)
        return processor


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.is_floating_point() else value)
    if isinstance(value, Iterable):
        return np.asarray(value)
    raise ValueError(f"audio must be a tensor or an array, got {type(value).__name__}")
