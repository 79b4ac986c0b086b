"""pipeline("text-to-audio"): strings in, arrays out."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from os import PathLike
from typing import Any

import torch

from . import generation
from .conditional import MusicgenForConditionalGeneration
from .configs import FIELDS
from .files import CHOICE, HUB, IGNORED
from .loading import LOADING, read_options
from .messages import check_names
from .processor import MusicgenProcessor, T5Tokenizer

TASKS = ("text-to-audio", "text-to-speech")
NEW_TOKENS = 256  # where neither the call nor the model's generation_config says how long


class TextToAudioPipeline:
    """A model and its tokenizer: called with texts, it returns the audio that generate() makes of each.

    model: a MusicgenForConditionalGeneration. tokenizer, processor: one of them, or neither if the model was loaded
    with a tokenizer. device: where to put the model; -1 and None leave it where it is. batch_size: how many texts of a
    list are generated together. preprocess_params: arguments of the tokenizer. fields: of GenerationConfig, for every
    call. feature_extractor and num_workers are ignored.
    """

    task = TASKS[0]

    def __init__(
        self,
        model: MusicgenForConditionalGeneration,
        tokenizer: T5Tokenizer | None = None,
        *,
        processor: MusicgenProcessor | None = None,
        feature_extractor: Any = None,
        device: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        preprocess_params: Mapping[str, Any] | None = None,
        **fields: Any,
    ):
        generation.check_fields("pipeline()", fields, ("generation_config", *CALL))
        if tokenizer is None and processor is not None:
            tokenizer = processor.tokenizer
        if tokenizer is None and model.core.tokenizer is not None:
            tokenizer = T5Tokenizer(model.core.tokenizer)
        if tokenizer is None:
            raise ValueError("tokenizer must be given beside a model that was loaded without one, got None")
        self.model, self.tokenizer, self.fields = model, tokenizer, fields
        self.batch_size = _batch_size(1 if batch_size is None else batch_size)
        self.preprocess_params = dict(preprocess_params or {})
        self.sampling_rate = model.config.sampling_rate
        if (place := read_device(device)) is not None:
            model.to(place)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def __call__(
        self,
        text_inputs: Any,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        preprocess_params: Mapping[str, Any] | None = None,
        forward_params: Mapping[str, Any] | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """For a string, {"audio": float32, "sampling_rate": Hz}; for a list of strings, a list of them; for another
        iterable of strings (a generator, a Dataset), an iterator that makes each when it is asked for.

        The audio is (N,) in mono and (2, N) in stereo; of n samples of a text (num_return_sequences), (n, N) or
        (n, 2, N). batch_size: how many texts are padded to one length and generated together. preprocess_params go to
        the tokenizer. forward_params and generate_kwargs go to generate(): the latter override the former, and both
        override the pipeline's own fields, which are not used at all in a call with a generation_config.
        """
        given = {**(forward_params or {}), **(generate_kwargs or {})}
        given = given if "generation_config" in given else {**self.fields, **given}
        options = {**self.preprocess_params, **(preprocess_params or {})}
        size = self.batch_size if batch_size is None else _batch_size(batch_size)
        if isinstance(text_inputs, str):
            return self._made([text_inputs], given, options)[0]
        # By its length where it has one: a Dataset need not raise IndexError at its end.
        if hasattr(text_inputs, "__getitem__") and hasattr(text_inputs, "__len__"):
            texts: Iterator[str] = (text_inputs[i] for i in range(len(text_inputs)))
        elif isinstance(text_inputs, Iterable):
            texts = iter(text_inputs)
        else:
            raise ValueError(f"text_inputs must be a string or strings, got {type(text_inputs).__name__}")
        each = self._each(texts, size, given, options)
        return list(each) if isinstance(text_inputs, (list, tuple)) else each

    def _each(
        self, texts: Iterator[str], size: int, given: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        while batch := list(islice(texts, size)):
            yield from self._made(batch, given, options)

    def _made(self, texts: list[str], given: Mapping[str, Any], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The result for each text of a batch."""
        asked = [given, self.model.generation_config, given.get("generation_config") or {}]
        more: dict[str, Any] = {"return_dict_in_generate": False}
        if not any(source[name] for source in asked for name in ("max_length", "max_new_tokens") if name in source):
            more["max_new_tokens"] = NEW_TOKENS
        padding = {"padding": True} if len(texts) > 1 else {}
        inputs = self.tokenizer(texts, **{**padding, **options, "return_tensors": "pt"}).to(self.device)
        audio = self.model.generate(**inputs, **{**given, **more}).float().cpu().numpy()  # (B * n, C, N)
        clips = audio.reshape(len(texts), len(audio) // len(texts), *audio.shape[1:])
        if audio.shape[1] == 1:  # mono
            clips = clips[:, :, 0]
        return [{"audio": clip[0] if len(clip) == 1 else clip, "sampling_rate": self.sampling_rate} for clip in clips]


# The arguments that pipeline() passes on to TextToAudioPipeline.
CALL = ("processor", "feature_extractor", "device", "batch_size", "num_workers", "preprocess_params")


def _batch_size(value: Any) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(f"batch_size must be a whole number above 0, got {value!r:.100}")
    return size


def read_device(device: Any) -> torch.device | None:
    """The device to which a pipeline moves its model; None for -1 and None, which leave it where it is. Raises
    ValueError for a device that torch does not have here."""
    if device is None or (type(device) is int and device == -1):
        return None
    return read_options({"device_map": device}).device


def pipeline(
    task: str | None = None,
    model: str | PathLike[str] | MusicgenForConditionalGeneration | None = None,
    tokenizer: str | PathLike[str] | T5Tokenizer | None = None,
    *,
    processor: str | PathLike[str] | MusicgenProcessor | None = None,
    feature_extractor: Any = None,
    device: Any = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    preprocess_params: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **given: Any,
) -> TextToAudioPipeline:
    """A pipeline for "text-to-audio" from a directory, "demo", a Hub id, or a model.

    tokenizer, processor: one of them; with neither, the model's own tokenizer is used. device: where to put the model;
    -1 leaves it where it is. feature_extractor, batch_size, num_workers and preprocess_params go to
    TextToAudioPipeline. All other arguments are those of from_pretrained(), or of generate() for every call. Raises
    ValueError for another task, and for an unknown argument.
    """
    if task not in (None, *TASKS):
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    if model is None:
        raise ValueError("model must be a directory, 'demo', a Hub id or a model, got None")
    loading = {*LOADING, *HUB, *CHOICE, *IGNORED}
    check_names("pipeline()", given, {*loading, *FIELDS, "generation_config", "model_kwargs", *CALL})
    fields = {name: value for name, value in given.items() if name not in loading}
    options = {name: value for name, value in given.items() if name in loading} | dict(model_kwargs or {})
    read_device(device)  # raises for a missing device before the model is loaded
    if isinstance(processor, (str, PathLike)):
        processor = MusicgenProcessor.from_pretrained(processor)
    if tokenizer is None and processor is not None:
        tokenizer = processor.tokenizer
    if isinstance(model, MusicgenForConditionalGeneration):
        if options:
            raise ValueError(f"{sorted(options)} are for a model that is yet to be loaded, got a model")
    else:
        hub = {name: value for name, value in options.items() if name in HUB}
        tokenizer = T5Tokenizer.from_pretrained(model, **hub) if tokenizer is None else tokenizer
        model = MusicgenForConditionalGeneration.from_pretrained(model, **options)
    if tokenizer is not None and not isinstance(tokenizer, T5Tokenizer):
        tokenizer = T5Tokenizer.from_pretrained(tokenizer)
    return TextToAudioPipeline(
        model,
        tokenizer,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
        preprocess_params=preprocess_params,
        **fields,
    )
