"""MusicgenProcessor: text to ids, audio to padded batches, and the padding of generated audio off again.

B batch, L text tokens, C audio channels, N samples.
"""

import math
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import source
from ..checkpoint.files import read_json
from ..text import Tokenizer
from .files import CHOICE, HUB, IGNORED, directory, save_json
from .messages import check_names
from .outputs import ModelOutput

TENSORS = (None, "pt", "np")
PADDING = (None, True, False, "longest", "max_length", "do_not_pad")
# What a processor's file says of audio; and what it may say beside, which changes nothing here.
FIELDS = ("feature_size", "sampling_rate", "padding_value", "padding_side", "chunk_length_s", "overlap")
UNUSED = ("feature_extractor_type", "processor_class", "return_attention_mask")


class T5Tokenizer:
    """Strings to ids and masks, and ids to strings, with transformers' arguments over musicgen_ref.text.Tokenizer."""

    pad_token_id, eos_token_id, unk_token_id = Tokenizer.pad_id, Tokenizer.eos_id, Tokenizer.unk_id
    pad_token, eos_token, unk_token = "<pad>", "</s>", "<unk>"
    padding_side = "right"

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "T5Tokenizer":
        """Of a directory with spiece.model or tokenizer.json, "demo", or a Hub id."""
        check_names("from_pretrained()", given, {*HUB, *CHOICE, *IGNORED})
        return cls(source.read_tokenizer(directory(name, given)))

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(path)

    def __len__(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def __call__(
        self,
        text: str | Sequence[str],
        padding: bool | str | None = False,
        truncation: bool | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> ModelOutput:
        """input_ids and attention_mask: lists, or (B, L) with return_tensors "pt" or "np".

        padding: True or "longest", "max_length", or False. truncation: to max_length, the end token stays. Raises
        ValueError for what is no text, and for rows of different lengths that are to be a tensor.
        """
        _check("padding", padding, PADDING)
        _check("return_tensors", return_tensors, TENSORS)
        if (truncation or padding == "max_length") and (type(max_length) is not int or max_length < 1):
            raise ValueError(f"max_length must be a whole number above 0 to pad or cut to, got {max_length!r}")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(row, str) for row in texts):
            raise ValueError(f"text must be a string or a non-empty list of strings, got {text!r}")
        rows = [self.tokenizer.encode(row) for row in texts]
        if truncation:
            rows = [row if len(row) <= (max_length or 0) else [*row[: (max_length or 0) - 1], row[-1]] for row in rows]
        longest = max(map(len, rows))
        if padding in (True, "longest", "max_length"):
            width = max_length if padding == "max_length" and max_length is not None else longest
        else:
            width = 0
        lengths = [max(width, len(row)) for row in rows]
        ids = [row + [self.pad_token_id] * (n - len(row)) for row, n in zip(rows, lengths, strict=True)]
        mask = [[1] * len(row) + [0] * (n - len(row)) for row, n in zip(rows, lengths, strict=True)]
        if return_tensors is None:
            single = isinstance(text, str)
            return ModelOutput(input_ids=ids[0] if single else ids, attention_mask=mask[0] if single else mask)
        if len(set(lengths)) > 1:
            raise ValueError(f"padding must be True for texts of different lengths to be a tensor, got {lengths}")
        arrays = {"input_ids": np.array(ids), "attention_mask": np.array(mask)}
        return ModelOutput(**{k: torch.from_numpy(v) if return_tensors == "pt" else v for k, v in arrays.items()})

    def encode(self, text: str) -> list[int]:
        """Ids of one text, the end token last."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Ids to a string; raises ValueError for ids that there are not."""
        return self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """decode() of each row."""
        return [self.decode(row, skip_special_tokens) for row in sequences]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


class EncodecFeatureExtractor:
    """Audio to a batch (B, C, N); feature_size is C, sampling_rate is in Hz, padding_side "right" or "left".

    chunk_length_s and overlap, both given: for a codec that codes long audio in pieces (48 kHz), audio is padded to
    whole pieces. Raises ValueError naming the impossible field.
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
        check_names("EncodecFeatureExtractor()", others, {*FIELDS, *UNUSED})
        rate, chunk, lap = sampling_rate, chunk_length_s, overlap
        for name, got, ok, must in (
            ("feature_size", feature_size, feature_size in (1, 2), "1 (mono) or 2 (stereo)"),
            ("sampling_rate", rate, type(rate) is int and rate > 0, "a whole number above 0"),
            ("padding_value", padding_value, _number(padding_value) and padding_value == 0, "0, which is silence"),
            ("padding_side", padding_side, padding_side in ("left", "right"), "'left' or 'right'"),
            ("chunk_length_s", chunk, chunk is None or (_number(chunk) and 0 < chunk < 1e9), "above 0, or None"),
            ("overlap", lap, lap is None or (_number(lap) and 0 <= lap < 1), "in [0, 1), or None"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {must}, got {got!r:.100}")
        self.feature_size, self.sampling_rate, self.padding_side = feature_size, sampling_rate, padding_side
        self.padding_value, self.chunk_length_s, self.overlap = padding_value, chunk_length_s, overlap
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
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "EncodecFeatureExtractor":
        """Of a MusicGen or an EnCodec, in a directory or the Hub's, or of "demo": what its processor's file says, or
        else what its config.json implies.

        Raises ValueError naming the file and the field of a processor that is damaged, or another model's: its
        feature_size or sampling_rate is not the model's. The model itself opens all the same.
        """
        check_names("from_pretrained()", given, {*HUB, *CHOICE, *IGNORED})
        folder = directory(name, given)
        found = source.read_processor(folder)
        model = _audio_of(folder) if found is None or (folder / "config.json").exists() else {}
        if found is None:
            return cls(**model)
        file, section = found
        # Size and rate that a file leaves out the model says; the rest has transformers' defaults.
        must = {key: value for key, value in model.items() if key in ("feature_size", "sampling_rate")}
        source.check_processor(file, section, must)
        try:
            return cls(**must | {key: value for key, value in section.items() if key in FIELDS})
        except ValueError as error:
            raise ValueError(f"{file}: {error}; {source.MEND}") from None

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        return fields | {"feature_extractor_type": type(self).__name__, "return_attention_mask": True}

    def save_pretrained(self, path: str | PathLike[str], processor_class: str | None = None) -> None:
        """Write preprocessor_config.json into a directory. processor_class: of the processor that this is part of.

        Raises ValueError where a processor_config.json that says something else lies there.
        """
        # transformers 5 and from_pretrained() read that file first.
        if (stale := source.first_processor(Path(path))) is not None:
            source.check_processor(*stale, {name: getattr(self, name) for name in FIELDS})
        more = {} if processor_class is None else {"processor_class": processor_class}
        save_json(path, source.PREPROCESSOR, self.to_dict() | more)

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

        A clip is an array or list, (N,) in mono and (2, N) in stereo. padding: True (default) or "longest",
        "max_length", which leaves longer clips as they are, or "do_not_pad"; False leaves out the mask, too.
        truncation: to max_length. Where there are chunks and no max_length, padding (of any name) is to the end of the
        chunk in which the longest clip ends, and truncation to that of the last chunk whose stride the shortest fills.
        Raises ValueError for another sampling rate than the model's, another number of channels, no samples, and whole
        numbers, which transformers takes unscaled.
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
        if sized and stride is None and (type(max_length) is not int or max_length < 1):
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
        masks = [self._pad(np.ones((1, n), np.int32), least)[0] for n in lengths]
        clips = [self._pad(clip, least) for clip in clips]
        even = len({clip.shape[1] for clip in clips}) == 1
        if return_tensors is not None and not even:
            got = [clip.shape[1] for clip in clips]
            raise ValueError(f"padding must be True for audio of different lengths to be a tensor, got {got}")
        values: Any = clips if return_tensors is None else np.stack(clips)
        fields: dict[str, Any] = {}
        if padding is not False:
            fields["padding_mask"] = np.array(masks, dtype=np.int32 if even else object)
        fields["input_values"] = values
        if return_tensors == "pt":
            fields = {key: torch.from_numpy(array) for key, array in fields.items()}
        return ModelOutput(**fields)

    def _pad(self, clip: np.ndarray, least: int) -> np.ndarray:
        more = max(0, least - clip.shape[1])
        return np.pad(clip, ((0, 0), (more, 0) if self.padding_side == "left" else (0, more)))

    def _clip(self, clip: Any) -> np.ndarray:
        array = np.asarray(clip.detach().cpu() if isinstance(clip, Tensor) else clip)
        must = "mono audio, (N,)" if self.feature_size == 1 else "stereo audio, (2, N)"
        shape = array.shape
        if array.ndim != self.feature_size or (self.feature_size == 2 and shape[0] != 2) or not array.size:
            raise ValueError(f"audio must be {must}, with samples, got {shape}")
        if array.dtype.kind != "f":
            raise ValueError(f"audio must be floating point, full scale at -1 and 1, got {array.dtype}")
        return array.astype(np.float32, copy=False).reshape(self.feature_size, -1)


def _audio_of(folder: Path) -> dict[str, Any]:
    """The fields of a feature extractor that a model's configuration implies."""
    kind: Any = "musicgen" if source.is_audiocraft(folder) else read_json(folder / "config.json").get("model_type")
    if kind == "encodec":
        codec = source.read_codec(folder)
        chunks = {"chunk_length_s": codec.chunk_seconds, "overlap": codec.overlap}
        return {"feature_size": codec.channels, "sampling_rate": codec.sampling_rate, **chunks}
    if kind != "musicgen":
        raise ValueError(f"{folder / 'config.json'}: model_type must be 'musicgen' or 'encodec', got {kind!r:.100}")
    _, decoder, codec = source.read_configs(folder)
    return {"feature_size": decoder.channels, "sampling_rate": codec.sampling_rate, "padding_side": "left"}


class MusicgenProcessor:
    """A feature extractor for audio and a tokenizer for text."""

    def __init__(self, feature_extractor: EncodecFeatureExtractor, tokenizer: T5Tokenizer):
        self.feature_extractor, self.tokenizer = feature_extractor, tokenizer

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "MusicgenProcessor":
        """Of a directory, "demo", or a Hub id. Raises as EncodecFeatureExtractor.from_pretrained() does, and
        FileNotFoundError where there is no tokenizer."""
        return cls(EncodecFeatureExtractor.from_pretrained(name, **given), T5Tokenizer.from_pretrained(name, **given))

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write what from_pretrained() here and transformers 4 and 5 open, beside a model's config.json."""
        self.feature_extractor.save_pretrained(path, processor_class=type(self).__name__)
        self.tokenizer.save_pretrained(path)

    @property
    def sampling_rate(self) -> int:
        return self.feature_extractor.sampling_rate

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
    ) -> ModelOutput:
        """input_ids and attention_mask of text, padding_mask and input_values of audio: arguments of generate().

        See T5Tokenizer and EncodecFeatureExtractor; padding is by default on for audio, off for text. Raises
        ValueError where both are missing.
        """
        if audio is None and text is None:
            raise ValueError("give audio, text or both, got neither")
        both: dict[str, Any] = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
        }
        out: dict[str, Any] = {}
        if text is not None:
            out |= self.tokenizer(text, **both)
        if audio is not None:
            out |= self.feature_extractor(audio, sampling_rate=sampling_rate, **both)
        return ModelOutput(**out)

    def batch_decode(
        self, audio: Any = None, padding_mask: Any = None, *, sequences: Any = None, skip_special_tokens: bool = False
    ) -> list[Any]:
        """Generated audio (B, C, N) as a list of arrays (C, n) without the padding of its prompt; or sequences of text
        ids as strings.

        padding_mask: (B, N) or shorter, from __call__(); what lies beyond it is new, and kept. Raises ValueError for a
        mask that is longer than the audio, or of another batch.
        """
        if sequences is not None and audio is None:
            return self.tokenizer.batch_decode(sequences, skip_special_tokens)
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

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Ids of text to a string."""
        return self.tokenizer.decode(token_ids, skip_special_tokens)


class AutoProcessor:
    """What prepares the inputs of a directory's model, by its model_type."""

    @staticmethod
    def from_pretrained(
        name: str | PathLike[str], **given: Any
    ) -> "MusicgenProcessor | EncodecFeatureExtractor | T5Tokenizer":
        """The processor of a MusicGen, the feature extractor of an EnCodec, the tokenizer of a T5."""
        check_names("from_pretrained()", given, {*HUB, *IGNORED})
        file = directory(name, given) / "config.json"
        kind = read_json(file).get("model_type") if file.exists() else "musicgen"
        kinds: dict[Any, Any] = {"encodec": EncodecFeatureExtractor, "t5": T5Tokenizer}
        processor: MusicgenProcessor | EncodecFeatureExtractor | T5Tokenizer = kinds.get(
            kind, MusicgenProcessor
        ).from_pretrained(name, **given)
        return processor


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.is_floating_point() else value)
    if isinstance(value, Iterable):
        return np.asarray(value)
    raise ValueError(f"audio must be a tensor or an array, got {type(value).__name__}")
