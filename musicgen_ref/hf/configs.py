"""Configurations under transformers' names, which are read from a config.json and converted to and from ours."""

import difflib
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, ClassVar

import torch

from .. import checkpoint, checks, decoder, encodec, t5
from ..attention import BACKENDS
from ..checkpoint import huggingface
from ..checkpoint.adapter import check_base
from ..checkpoint.files import read_json
from ..messages import shown
from .files import CHOICE, HUB, IGNORED, check_push, directory, save_json
from .messages import check_names

Ours = tuple[t5.T5Config, decoder.DecoderConfig, encodec.EncodecConfig]
FLASH = "flash_attention_2"
ATTENTIONS = (*BACKENDS, FLASH)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in checkpoint.DTYPES}


# Fields of transformers' configurations that no number depends on here. They are listed since their names are so much
# like those of other fields that they would be taken for misspelt ones.
COMMON = (
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "tie_word_embeddings",
    "tie_encoder_decoder", "is_decoder", "is_encoder_decoder", "add_cross_attention", "num_decoder_layers", "use_cache",
    "initializer_factor", "initializer_range", "output_attentions", "output_hidden_states", "return_dict",
    "dense_act_fn", "is_gated_act", "classifier_dropout", "cross_attention_hidden_size", "chunk_size_feed_forward",
)  # fmt: skip


class Config:
    """A configuration, whose fields are attributes and entries of a mapping (`config.dropout`, `config["dropout"]`,
    `f(**config)`).

    Fields that are not given have transformers' defaults. Raises ValueError for a name that is almost that of a field.
    Any other unknown field is kept, since files of every age hold some. A field never hides a method: one that a file
    calls "to_dict" is only config["to_dict"]. Fields that begin with an underscore are in the mapping alone, too.
    """

    model_type: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}
    aliases: ClassVar[Mapping[str, str]] = {"torch_dtype": "dtype"}  # other names of fields
    file: ClassVar[str] = "config.json"
    _fields: dict[str, Any]

    def __init__(self, **fields: Any):
        vars(self).update(_fields={}, _attention=None)
        for name in fields:
            known = {*self.defaults, *self.aliases, *COMMON}
            if name not in known and (close := difflib.get_close_matches(name, known, n=1, cutoff=0.88)):
                raise ValueError(f"{type(self).__name__} has no field {name!r}: did you mean {close[0]!r}?")
        Config.update(self, self.defaults)  # shared by all instances, which is safe since no default is mutable
        self.update(fields)

    def update(self, fields: Mapping[str, Any]) -> Any:
        """Set fields."""
        for name, value in fields.items():
            real = self.aliases.get(name, name)
            if name != "model_type" and (real == name or value is not None or real not in fields):
                # The name of a dtype that a model may have becomes torch's dtype, and numpy's numbers become Python's.
                self._fields[real] = _dtype(value) if real == "dtype" else checks.as_python(value)

    @property
    def _attn_implementation(self) -> str:
        """The attention of the part: one of ATTENTIONS. It is not a field, and is not saved."""
        return self._attention or "sdpa"

    @_attn_implementation.setter
    def _attn_implementation(self, name: str | None) -> None:
        if name is not None and name not in ATTENTIONS:
            raise ValueError(f"attn_implementation must be one of {ATTENTIONS}, got {name!r:.100}")
        vars(self)["_attention"] = name

    def __getattr__(self, name: str) -> Any:
        name, fields = self.aliases.get(name, name), vars(self).get("_fields", {})
        if name in fields and not name.startswith("_"):
            return fields[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        elif hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__}.{name} is no field that could be set")
        else:
            self.update({name: value})

    def __delattr__(self, name: str) -> None:
        if self.aliases.get(name, name) not in self._fields:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        del self._fields[self.aliases.get(name, name)]

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(self.aliases.get(name, name), default)

    def keys(self) -> list[str]:
        return [name for name in self._fields if not name.startswith("_")]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __getitem__(self, name: str) -> Any:
        name = self.aliases.get(name, name)
        return self._fields[name] if name in self._fields else getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and type(other) is type(self) and other._fields == self._fields

    __hash__ = None  # type: ignore[assignment]  # mutable

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        own = {name: _written(value) for name, value in self._fields.items() if not name.startswith("_attn")}
        return own | ({"model_type": self.model_type} if self.model_type else {})

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that are neither None nor the default."""
        return {k: v for k, v in self.to_dict().items() if v is not None and self.defaults.get(k) != v}

    def to_json_string(self, use_diff: bool = True) -> str:
        return json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True, default=str)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}\n"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], **more: Any) -> Any:
        """A configuration made of a dictionary of fields. `more` overrides fields of it."""
        config = cls(**more)
        given = {config.aliases.get(name, name) for name in more}
        Config.update(config, {n: v for n, v in config.read(fields).items() if config.aliases.get(n, n) not in given})
        return config

    def read(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of a file, converted to values of this class. Raises ValueError naming an impossible field."""
        return fields

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **more: Any) -> Any:
        """Read the configuration of a directory, "demo", or a Hub id; from the file of a whole MusicGen, the section of
        this kind. Raises FileNotFoundError, or ValueError naming the file."""
        hub = {key: more.pop(key) for key in [*more] if key in HUB + CHOICE + IGNORED}
        folder = directory(pretrained_model_name_or_path, hub)
        check_base(folder)
        fields = read_json(folder / cls.file)
        if cls.model_type and fields.get("model_type") != cls.model_type:
            section = SECTIONS.get(cls.model_type, "")
            if fields.get("model_type") != "musicgen" or not isinstance(fields.get(section), dict):
                got = fields.get("model_type")
                raise ValueError(f"{folder / cls.file}: model_type must be {cls.model_type!r}, got {got!r}")
            fields = fields[section]
        try:
            return cls.from_dict(fields, **more)
        except ValueError as error:
            raise ValueError(f"{folder / cls.file}: {error}") from None

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False) -> None:
        """Write the file into a directory, which is made if it does not exist. Raises ValueError for push_to_hub."""
        check_push(push_to_hub)
        save_json(save_directory, self.file, self.to_dict())


def _dtype(value: Any) -> Any:
    return DTYPES.get(value.removeprefix("torch."), value) if isinstance(value, str) else value


def _written(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _defaults(fields: huggingface.Fields, **more: Any) -> dict[str, Any]:
    return {theirs: default for _, theirs, default in fields} | more


class T5Config(Config):
    model_type = "t5"
    defaults = _defaults(
        huggingface.T5_FIELDS, feed_forward_proj="relu", pad_token_id=0, eos_token_id=1, is_encoder_decoder=False
    )
    aliases: ClassVar = {
        "hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads",
        "torch_dtype": "dtype",
    }  # fmt: skip


class EncodecConfig(Config):
    model_type = "encodec"
    defaults = _defaults(huggingface.CODEC_FIELDS, codebook_dim=None)

    def ours(self) -> encodec.EncodecConfig:
        """Our configuration of the same codec. Raises ValueError naming an impossible field."""
        return to_ours(MusicgenConfig(audio_encoder=self))[2]

    @property
    def frame_rate(self) -> int:
        return self.ours().frame_rate

    @property
    def hop_length(self) -> int:
        return self.ours().hop

    @property
    def num_quantizers(self) -> int:
        return self.ours().codebooks

    @property
    def chunk_length(self) -> int | None:
        """Samples of a piece; None where audio is coded whole."""
        return self.ours().chunk or None

    @property
    def chunk_stride(self) -> int | None:
        """Samples from the start of one piece to the start of the next; None where audio is coded whole."""
        ours = self.ours()
        return ours.chunk_stride if ours.chunk else None


class MusicgenDecoderConfig(Config):
    model_type = "musicgen_decoder"
    defaults = _defaults(
        huggingface.DECODER_FIELDS,
        max_position_embeddings=2048,
        use_cache=True,
        initializer_factor=0.02,
        scale_embedding=False,
        pad_token_id=2048,
        bos_token_id=2048,
        eos_token_id=None,
        tie_word_embeddings=False,
    )


class MusicgenConfig(Config):
    """The configuration of a MusicGen, which holds those of its three parts. Each may be given as a configuration, as a
    dictionary of its fields, or as None for the defaults."""

    model_type = "musicgen"
    defaults: ClassVar[Mapping[str, Any]] = {
        "text_encoder": None, "audio_encoder": None, "decoder": None, "is_encoder_decoder": True,
        "initializer_factor": 0.02,
    }  # fmt: skip

    def __init__(self, **fields: Any):
        super().__init__(**dict.fromkeys(PART_KINDS) | fields)

    def update(self, fields: Mapping[str, Any]) -> None:
        """Set fields; raises ValueError for a part that is neither a configuration of its kind nor a mapping."""
        super().update(self.read(fields))

    def read(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        parts: dict[str, Config] = {}
        for name in PART_KINDS.keys() & fields.keys():
            part, kind = fields[name], PART_KINDS[name]
            if not isinstance(part, (kind, Mapping, type(None))) and not hasattr(part, "to_dict"):
                raise ValueError(f"{name} must be an object, the fields of a {kind.__name__}, got {shown(part)}")
            if not isinstance(part, (kind, Mapping)):
                part = {} if part is None else part.to_dict()
            if part.get("model_type", kind.model_type) != kind.model_type and not isinstance(part, Config):
                raise ValueError(f"{name}.model_type must be {kind.model_type!r}, got {shown(part['model_type'])}")
            parts[name] = part if isinstance(part, Config) else kind.from_dict(part)
        return {**fields, **parts}

    @property
    def _attn_implementation(self) -> str:
        """The decoder's attention. Setting it sets the attention of every part."""
        return str(self.decoder._attn_implementation)

    @_attn_implementation.setter
    def _attn_implementation(self, name: str | None) -> None:
        for part in PART_KINDS:
            self[part]._attn_implementation = name

    @property
    def sampling_rate(self) -> int:
        """The sampling rate of the audio, in Hz."""
        return int(self.audio_encoder.sampling_rate)

    @classmethod
    def from_sub_models_config(cls, text: Config, audio: Config, decoder: Config, **more: Any) -> "MusicgenConfig":
        return cls(text_encoder=text, audio_encoder=audio, decoder=decoder, **more)


PART_KINDS: dict[str, type[Config]] = {
    "text_encoder": T5Config, "audio_encoder": EncodecConfig, "decoder": MusicgenDecoderConfig
}  # fmt: skip
# For each kind of part, its section in the config.json of a whole MusicGen.
SECTIONS = {"t5": "text_encoder", "encodec": "audio_encoder", "musicgen_decoder": "decoder"}
KINDS: dict[str, type[Config]] = {
    kind.model_type: kind for kind in (T5Config, EncodecConfig, MusicgenDecoderConfig, MusicgenConfig)
}


class AutoConfig:
    """Reads the configuration of a directory, of the class that its model_type says."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | PathLike[str], **more: Any) -> Any:
        """As Config.from_pretrained(); raises ValueError for the model_type of something else."""
        folder = directory(pretrained_model_name_or_path, more)
        check_base(folder)
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in KINDS:
            raise ValueError(f"{folder}/config.json: model_type must be one of {sorted(KINDS)}, got {kind!r}")
        return KINDS[kind].from_pretrained(folder, **{key: value for key, value in more.items() if key not in HUB})


def to_ours(config: Config) -> Ours:
    """Our three configurations of a MusicgenConfig. Raises ValueError naming an impossible field."""
    return huggingface.read_config(config.to_dict(), type(config).__name__)


# Generation: the fields that generate() honours, with transformers' defaults.
HONOURED: dict[str, Any] = {
    "max_length": None, "max_new_tokens": None, "max_time": None,
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "guidance_scale": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False, "output_scores": False, "output_logits": False, "output_attentions": False,
    "output_hidden_states": False, "use_cache": True,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": None,
}  # fmt: skip
# The fields that it does not honour, with the values that change nothing and are accepted (None always is).
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "penalty_alpha": (0,), "early_stopping": (False,),
    "length_penalty": (1,), "diversity_penalty": (0,), "dola_layers": (), "prompt_lookup_num_tokens": (),
    "repetition_penalty": (1,), "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "bad_words_ids": (), "suppress_tokens": (), "begin_suppress_tokens": (),
    "sequence_bias": (), "forced_bos_token_id": (), "forced_eos_token_id": (), "typical_p": (1,),
    "top_h": (), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "renormalize_logits": (False,),
    "remove_invalid_values": (False,), "exponential_decay_length_penalty": (), "watermarking_config": (),
    "stop_strings": (), "constraints": (), "force_words_ids": (), "prefill_chunk_size": (),
}  # fmt: skip
# Fields of these whose work a class of transformers can do, given as a logits_processor.
WARPERS = {
    "typical_p": "TypicalLogitsWarper", "epsilon_cutoff": "EpsilonLogitsWarper", "eta_cutoff": "EtaLogitsWarper",
    "top_h": "TopHLogitsWarper", "repetition_penalty": "RepetitionPenaltyLogitsProcessor",
    "no_repeat_ngram_size": "NoRepeatNGramLogitsProcessor", "suppress_tokens": "SuppressTokensLogitsProcessor",
    "begin_suppress_tokens": "SuppressTokensAtBeginLogitsProcessor", "sequence_bias": "SequenceBiasLogitsProcessor",
    "bad_words_ids": "NoBadWordsLogitsProcessor", "renormalize_logits": "LogitNormalization",
    "remove_invalid_values": "InfNanRemoveLogitsProcessor",
}  # fmt: skip
# Fields that no number depends on here.
HARMLESS = ("min_length", "min_new_tokens", "cache_implementation", "cache_config", "transformers_version")
FIELDS = {*HONOURED, *NEUTRAL, *HARMLESS}
BEAMS = ("num_beams", "num_beam_groups", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens", "constraints")


class GenerationConfig(Config):
    """The settings of generate(). A field that is None has transformers' default, see HONOURED."""

    defaults = dict.fromkeys(HONOURED)
    file = "generation_config.json"

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if value is not None}

    def update(
        self, fields: Mapping[str, Any] | None = None, /, *, defaults_only: bool = False, **more: Any
    ) -> dict[str, Any]:
        """Set fields. Unknown ones in `more` are returned, as in transformers. defaults_only: set only fields that have
        no value yet."""
        known = {name: value for name, value in more.items() if name in FIELDS}
        given = {**(fields or {}), **known}
        super().update({n: v for n, v in given.items() if not defaults_only or self.get(n) is None})
        return {name: value for name, value in more.items() if name not in FIELDS}

    # The two things that transformers' Seq2SeqTrainer reads of a model's generation_config.
    _from_model_config = False

    def _get_default_generation_params(self) -> dict[str, Any]:
        return HONOURED | {"max_length": 20}

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers has another name for its argument here
        cls, pretrained_model_name: str | PathLike[str], **more: Any
    ) -> Any:
        config = super().from_pretrained(pretrained_model_name, **more)
        config.pass_over(config)
        return config

    def pass_over(self, fields: Mapping[str, Any]) -> None:
        """Take the fields of a file. Unknown ones are kept but ignored, unlike those that a caller gives."""
        Config.update(self, dict(fields))
        vars(self)["_passed_over"] = {*fields} - FIELDS

    @classmethod
    def from_model_config(cls, config: Config) -> "GenerationConfig":
        """The settings of a model without a generation_config.json: the special token, which is all that the model's
        configuration tells."""
        special = getattr(config, "decoder", config).vocab_size
        return cls(pad_token_id=special, bos_token_id=special, decoder_start_token_id=special)

    def validate(self) -> None:
        """Raise ValueError for the first field that cannot be honoured, naming it."""
        passed_over = vars(self).get("_passed_over", ())
        for name, value in self._fields.items():
            if name.startswith("_") or name in passed_over or name in HARMLESS or name in HONOURED or value is None:
                continue
            check_names("generation_config", [name], FIELDS)
            if value not in NEUTRAL[name]:
                hint = "give a function (input_ids, scores) -> scores in logits_processor"
                if name in WARPERS:
                    hint = f"logits_processor=[transformers.{WARPERS[name]}(...)] does it, or a function of your own"
                if name in BEAMS:
                    hint = "there is greedy search and sampling; beam search is off with num_beams=1"
                raise ValueError(f"{name} must be one of {(None, *NEUTRAL[name])}, got {value!r}: {hint}")


def alone(config: Config) -> MusicgenConfig:
    """A MusicgenConfig around the configuration of one part alone, with other parts that fit it."""
    if config.model_type == "musicgen_decoder":  # text of the decoder's own width: such a decoder has no projection
        return MusicgenConfig(decoder=config, text_encoder=T5Config(d_model=config.hidden_size))
    return MusicgenConfig(**{SECTIONS[config.model_type]: config})
