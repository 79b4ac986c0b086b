"""pipeline("text-to-audio"): strings in, arrays out."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from . import generation
from .conditional import MusicgenForConditionalGeneration
from .configs import FIELDS
from .files import CHOICE, HUB, IGNORED
from .loading import LOADING, read_options
from .messages import check_names
from .processor import T5Tokenizer

TASKS = ("text-to-audio", "text-to-speech")
NEW_TOKENS = 256  # where neither the call nor the model's generation_config says how long


class TextToAudioPipeline:
    """A model and its tokenizer: called with texts, it returns what generate() makes of each.

    model: see MusicgenForConditionalGeneration. fields: of GenerationConfig, for every call.
    """

    task = TASKS[0]

    def __init__(self, model: MusicgenForConditionalGeneration, tokenizer: T5Tokenizer, **fields: Any):
        generation.check_fields("pipeline()", fields, ("generation_config",))
        self.model, self.tokenizer, self.fields = model, tokenizer, fields
        self.sampling_rate = model.config.sampling_rate

    def __call__(
        self,
        text_inputs: str | Sequence[str],
        *,
        forward_params: Mapping[str, Any] | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """{"audio": float32 (N,), or (2, N) in stereo, "sampling_rate": Hz} of a string; a list of them of a list.

        Texts are made one after another. generate_kwargs take precedence over forward_params: both go to generate().
        """
        if not isinstance(text_inputs, str):
            both = {"forward_params": forward_params, "generate_kwargs": generate_kwargs}
            return [self(text, **both) for text in text_inputs]
        given = {**self.fields, **(forward_params or {}), **(generate_kwargs or {})}
        asked = [given, self.model.generation_config, given.get("generation_config") or {}]
        if not any(source[name] for source in asked for name in ("max_length", "max_new_tokens") if name in source):
            given["max_new_tokens"] = NEW_TOKENS
        inputs = self.tokenizer([text_inputs], return_tensors="pt").to(self.model.device)
        audio = self.model.generate(**inputs, **given | {"return_dict_in_generate": False})
        return {"audio": audio.float().cpu().numpy().squeeze(), "sampling_rate": self.sampling_rate}


def pipeline(
    task: str | None = None,
    model: str | PathLike[str] | MusicgenForConditionalGeneration | None = None,
    tokenizer: str | PathLike[str] | T5Tokenizer | None = None,
    *,
    device: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **given: Any,
) -> TextToAudioPipeline:
    """A pipeline for "text-to-audio" of a directory, "demo", a Hub id, or a model.

    tokenizer: the model's own if None; needed beside a model. device: where to put the model. The other arguments are
    those of from_pretrained(), or of generate() for every call. Raises ValueError for another task, and for what
    neither knows.
    """
    if task not in (None, *TASKS):
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    if model is None:
        raise ValueError("model must be a directory, 'demo', a Hub id or a model, got None")
    loading = {*LOADING, *HUB, *CHOICE, *IGNORED}
    check_names("pipeline()", given, {*loading, *FIELDS, "generation_config", "device", "model_kwargs"})
    fields = {name: value for name, value in given.items() if name not in loading}
    options = {name: value for name, value in given.items() if name in loading} | dict(model_kwargs or {})
    if device is not None:
        read_options({"device_map": device})  # a device that is not there is told of before the loading
    if isinstance(model, MusicgenForConditionalGeneration):
        if options:
            raise ValueError(f"{sorted(options)} are for a model that is yet to be loaded, got a model")
        if tokenizer is None and model.core.tokenizer is not None:
            tokenizer = T5Tokenizer(model.core.tokenizer)
        if tokenizer is None:
            raise ValueError("tokenizer must be given beside a model that was loaded without one, got None")
    else:
        hub = {name: value for name, value in options.items() if name in HUB}
        tokenizer = T5Tokenizer.from_pretrained(model, **hub) if tokenizer is None else tokenizer
        model = MusicgenForConditionalGeneration.from_pretrained(model, **options)
    if not isinstance(tokenizer, T5Tokenizer):
        tokenizer = T5Tokenizer.from_pretrained(tokenizer)
    if device is not None:
        model.to(read_options({"device_map": device}).device)
    return TextToAudioPipeline(model, tokenizer, **fields)
