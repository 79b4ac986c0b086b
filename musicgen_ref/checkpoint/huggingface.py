"""transformers' names <-> ours: tensors (a table for mapping.py) and configuration fields.

Checked against transformers 4.57.6, 5.23.0 and 5.24.0, whose directories have the same tensor names.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .. import delay
from ..decoder import DecoderConfig
from ..encodec import EncodecConfig
from ..messages import shown
from ..t5 import T5Config
from .mapping import Row, WeightNorm

TEXT, CODEC, DECODER = "text_encoder.", "audio_encoder.", "decoder.model.decoder."


def text_table(text: T5Config, prefix: str = TEXT) -> list[Row]:
    """The rows of the text encoder. prefix: stands before the names that a T5 has in a directory of its own."""
    block = prefix + r"encoder.block.\1.layer."
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        (r"text_encoder\.embed\.weight", prefix + "shared.weight"),
        (r"text_encoder\.relative_bias\.weight", prefix + bias),
        (r"text_encoder\.blocks\.(\d+)\.attn\.([qkv])\.weight", block + r"0.SelfAttention.\2.weight"),
        (r"text_encoder\.blocks\.(\d+)\.attn\.out\.weight", block + "0.SelfAttention.o.weight"),
        (r"text_encoder\.blocks\.(\d+)\.attn_norm\.weight", block + "0.layer_norm.weight"),
        (r"text_encoder\.blocks\.(\d+)\.ffn_norm\.weight", block + "1.layer_norm.weight"),
        (r"text_encoder\.blocks\.(\d+)\.ffn\.gate\.weight", block + "1.DenseReluDense.wi_0.weight"),
        (
            r"text_encoder\.blocks\.(\d+)\.ffn\.wi\.weight",
            block + f"1.DenseReluDense.{'wi_1' if text.gated else 'wi'}.weight",
        ),
        (r"text_encoder\.blocks\.(\d+)\.ffn\.wo\.weight", block + "1.DenseReluDense.wo.weight"),
        (r"text_encoder\.norm\.weight", prefix + "encoder.final_layer_norm.weight"),
    ]


def codec_table(codec: EncodecConfig) -> list[Row]:
    """The rows of the codec. The last one is for the statistics of the codebooks, which our model does not have but a
    conversion between layouts keeps."""
    conv = r"codec\.(encoder|decoder)\.(.+)\.conv\.weight"
    split = CODEC + r"\1.layers.\2.conv.parametrizations.weight.original"
    return [
        *([(conv, WeightNorm(split + "0", split + "1"))] if codec.norm == "weight_norm" else []),
        (r"codec\.(encoder|decoder)\.(.+)", CODEC + r"\1.layers.\2"),
        (r"codec\.quantizer\.codebooks", (CODEC + "quantizer.layers.{k}.codebook.embed", codec.codebooks)),
        (r"codec\.quantizer\.(\d+)\.(\w+)", CODEC + r"quantizer.layers.\1.codebook.\2"),
    ]


def table(text: T5Config, decoder: DecoderConfig, codec: EncodecConfig) -> list[Row]:
    """The name table of a MusicGen of these sizes."""
    layer = DECODER + r"layers.\1."
    return [
        *text_table(text),
        (r"decoder\.embed\.(\d+)\.weight", DECODER + r"embed_tokens.\1.weight"),
        (r"decoder\.text_proj\.(weight|bias)", r"enc_to_dec_proj.\1"),
        (r"decoder\.blocks\.(\d+)\.self_attn\.([qkv]|out)\.weight", layer + r"self_attn.\2_proj.weight"),
        (r"decoder\.blocks\.(\d+)\.cross_attn\.([qkv]|out)\.weight", layer + r"encoder_attn.\2_proj.weight"),
        (r"decoder\.blocks\.(\d+)\.self_norm\.(weight|bias)", layer + r"self_attn_layer_norm.\2"),
        (r"decoder\.blocks\.(\d+)\.cross_norm\.(weight|bias)", layer + r"encoder_attn_layer_norm.\2"),
        (r"decoder\.blocks\.(\d+)\.ffn_norm\.(weight|bias)", layer + r"final_layer_norm.\2"),
        (r"decoder\.blocks\.(\d+)\.(fc1|fc2)\.weight", layer + r"\2.weight"),
        (r"decoder\.norm\.(weight|bias)", DECODER + r"layer_norm.\1"),
        (r"decoder\.heads\.(\d+)\.weight", r"decoder.lm_heads.\1.weight"),
        *codec_table(codec),
    ]


# Names that older files have, also on the Hub -> today's names. The T5 embedding is saved under either name, or both.
OLD_NAMES = (
    (r"(.+)\.weight_g", r"\1.parametrizations.weight.original0"),
    (r"(.+)\.weight_v", r"\1.parametrizations.weight.original1"),
    (r"text_encoder\.encoder\.embed_tokens\.weight", "text_encoder.shared.weight"),
)
# Tensors that the model does not need: positions, which are computed, and the codebooks' statistics from training.
POSITIONS = "decoder.model.decoder.embed_positions.weights"
STATISTICS = re.compile(r"audio_encoder\.quantizer\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg)")


def current_name(name: str, statistics: bool = False) -> str | None:
    """Today's name of a tensor; None for a tensor that is not part of the model.

    statistics: True keeps the statistics of the codebooks, which a conversion to another layout does not lose.
    """
    if STATISTICS.fullmatch(name):
        return name if statistics else None
    if name == POSITIONS:
        return None
    for old, new in OLD_NAMES:
        if match := re.fullmatch(old, name):
            return match.expand(new)
    return name


def statistics(codec: EncodecConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the codebooks' statistics from training, under names like ours."""
    shapes = {"inited": (1,), "cluster_size": (codec.codebook_size,), "embed_avg": (codec.codebook_size, codec.hidden)}
    return {f"codec.quantizer.{k}.{name}": shapes[name] for k in range(codec.codebooks) for name in shapes}


Fields = tuple[tuple[str, str, Any], ...]
# The largest values of some fields. A model of more modules would take minutes to build before its tensors could be
# found missing. The sampling rate is the size of no tensor, so that a small file could claim any.
MOST = {"layers": 512, "codebooks": 256, "residual_layers": 32, "lstm_layers": 32, "sampling_rate": 192_000}
# The most samples of a frame (public codecs have 640 and fewer), and that a dilated convolution reaches over (a few).
REACH = 16_384
PIECES = 10  # the most pieces that share a sample, where audio is coded in pieces; public codecs have 2
# Our field, theirs, and transformers' default, which version 4 leaves out of a file.
T5_FIELDS = (
    ("vocab_size", "vocab_size", 32128),
    ("width", "d_model", 512),
    ("layers", "num_layers", 6),
    ("heads", "num_heads", 8),
    ("head_width", "d_kv", 64),
    ("ffn", "d_ff", 2048),
    ("buckets", "relative_attention_num_buckets", 32),
    ("max_distance", "relative_attention_max_distance", 128),
    ("dropout", "dropout_rate", 0.1),
    ("eps", "layer_norm_epsilon", 1e-6),
)
DECODER_FIELDS = (
    ("vocab_size", "vocab_size", 2048),
    ("codebooks", "num_codebooks", 4),
    ("channels", "audio_channels", 1),
    ("width", "hidden_size", 1024),
    ("layers", "num_hidden_layers", 24),
    ("heads", "num_attention_heads", 16),
    ("ffn", "ffn_dim", 4096),
    ("activation", "activation_function", "gelu"),
    ("dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.0),
    ("activation_dropout", "activation_dropout", 0.0),
    ("layerdrop", "layerdrop", 0.0),
)
CODEC_FIELDS = (
    ("sampling_rate", "sampling_rate", 24000),
    ("channels", "audio_channels", 1),
    ("filters", "num_filters", 32),
    ("ratios", "upsampling_ratios", (8, 5, 4, 2)),
    ("hidden", "hidden_size", 128),
    ("codebook_size", "codebook_size", 1024),
    ("bandwidths", "target_bandwidths", (1.5, 3.0, 6.0, 12.0, 24.0)),
    ("causal", "use_causal_conv", True),
    ("norm", "norm_type", "weight_norm"),
    ("normalize", "normalize", False),
    ("pad_mode", "pad_mode", "reflect"),
    ("conv_shortcut", "use_conv_shortcut", True),
    ("kernel", "kernel_size", 7),
    ("last_kernel", "last_kernel_size", 7),
    ("residual_kernel", "residual_kernel_size", 3),
    ("residual_layers", "num_residual_layers", 1),
    ("dilation_growth", "dilation_growth_rate", 2),
    ("compress", "compress", 2),
    ("lstm_layers", "num_lstm_layers", 2),
    ("trim_right_ratio", "trim_right_ratio", 1.0),
    ("chunk_seconds", "chunk_length_s", None),
    ("overlap", "overlap", None),
)


def read_fields(section: Mapping[str, Any], fields: Fields, where: str) -> dict[str, Any]:
    """Our fields, read from a section of their config.json. Raises ValueError, naming file and field, for a value of
    another type than the default, or of an unreasonable size."""
    out = {}
    for ours, theirs, default in fields:
        value = section.get(theirs, default)
        for number in value if isinstance(value, list) else (value,):
            if type(number) in (int, float) and not -(2**31) < number < 2**31:  # NaN included
                raise ValueError(f"{where}.{theirs} must be a number of reasonable size, got {shown(number)}")
        kind = float if default is None else type(default)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and isinstance(value, list):
            value = tuple(float(v) if type(default[0]) is float and type(v) is int else v for v in value)
            if any(type(v) is not type(default[0]) for v in value):
                raise ValueError(f"{where}.{theirs} must hold {type(default[0]).__name__}, got {shown(list(value))}")
        if type(value) is not kind and not (value is None and default is None):
            raise ValueError(f"{where}.{theirs} must be {kind.__name__}, got {shown(value)}")
        most, count = (32, len(value)) if isinstance(value, tuple) else (MOST.get(ours), value)
        if most is not None and isinstance(count, int) and count > most:
            raise ValueError(f"{where}.{theirs} must be at most {most}, got {shown(count)}")
        if isinstance(value, str) and len(value) > 100:
            raise ValueError(f"{where}.{theirs} must be a short name, got {shown(value)}")
        out[ours] = value
    return out


def _section(config: Mapping[str, Any], name: str, model_types: tuple[str, ...], where: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise ValueError(f"{where}: {name} must be an object, got {shown(section)}")
    if section.get("model_type", model_types[0]) not in model_types:
        raise ValueError(f"{where}: {name}.model_type must be one of {model_types}, got {shown(section['model_type'])}")
    return section


def read_text(section: Mapping[str, Any], where: str) -> T5Config:
    """The configuration of a T5. Raises ValueError naming file and section (`where`) and the field."""
    fields = read_fields(section, T5_FIELDS, where)
    feed_forward = section.get("feed_forward_proj", "relu")
    if feed_forward not in ("relu", "gated-gelu"):
        raise ValueError(f"{where}.feed_forward_proj must be 'relu' or 'gated-gelu', got {shown(feed_forward)}")
    return T5Config(**fields, gated=feed_forward == "gated-gelu")


def read_codec(section: Mapping[str, Any], where: str) -> EncodecConfig:
    """The configuration of an EnCodec. Raises ValueError naming file and section (`where`) and the field."""
    fields = read_fields(section, CODEC_FIELDS, where)
    if section.get("codebook_dim") not in (None, fields["hidden"]):
        raise ValueError(
            f"{where}.codebook_dim must be hidden_size {fields['hidden']}, got {shown(section['codebook_dim'])}"
        )
    if not fields["bandwidths"]:
        raise ValueError("EncodecConfig.bandwidths must be finite and above 0, got ()")
    return _counted(EncodecConfig(**fields))


def _counted(codec: EncodecConfig) -> EncodecConfig:
    if codec.codebooks > MOST["codebooks"]:
        most = f"pay for at most {MOST['codebooks']} codebooks"
        raise ValueError(f"EncodecConfig.bandwidths must {most}, got {codec.bandwidths!r}, which pay {codec.codebooks}")
    return codec


def check_reach(codec: EncodecConfig) -> None:
    """Raise ValueError, naming the field, for sizes of a codec that are in no tensor and so large that using the codec
    of a small file would take any amount of memory."""
    hop, growth = codec.hop, codec.dilation_growth
    if hop > REACH:
        raise ValueError(f"EncodecConfig.ratios must multiply to at most {REACH}, got {codec.ratios}")
    if (codec.residual_kernel - 1) * growth ** (codec.residual_layers - 1) > REACH:
        must = f"let {codec.residual_layers} layers of kernel {codec.residual_kernel} reach over at most {REACH}"
        raise ValueError(f"EncodecConfig.dilation_growth must {must} samples, got {growth}")
    if codec.chunk and (codec.chunk_stride < hop or codec.chunk_stride * PIECES < codec.chunk):
        must = f"begin pieces a frame of {hop} samples apart or more, and at most {PIECES} for a sample"
        got = f"{codec.chunk_seconds} and EncodecConfig.overlap {codec.overlap}"
        raise ValueError(f"EncodecConfig.chunk_seconds must {must}, got {got}")


def read_config(config: Mapping[str, Any], where: str) -> tuple[T5Config, DecoderConfig, EncodecConfig]:
    """The three configurations in their config.json. Raises ValueError naming the file (`where`) and the field."""
    if config.get("model_type") != "musicgen":
        raise ValueError(f"{where}: model_type must be 'musicgen', got {shown(config.get('model_type'))}")
    t5 = _section(config, "text_encoder", ("t5",), where)
    lm = _section(config, "decoder", ("musicgen_decoder",), where)
    audio = _section(config, "audio_encoder", ("encodec",), where)
    try:
        text = read_text(t5, f"{where}: text_encoder")
        codec = read_codec(audio, f"{where}: audio_encoder")
        fields = read_fields(lm, DECODER_FIELDS, f"{where}: decoder")
        for token in ("pad_token_id", "bos_token_id"):
            if lm.get(token, 2048) != fields["vocab_size"]:
                special = f"vocab_size {fields['vocab_size']}, the special token"
                raise ValueError(f"{where}: decoder.{token} must be {special}, got {shown(lm.get(token, 2048))}")
        return text, DecoderConfig(**fields, text_width=text.width), codec
    except ValueError as error:
        message = in_their_names(error)
        raise ValueError(message if message.startswith(f"{where}: ") else f"{where}: {message}") from None


def config_problems(config: Mapping[str, Any], where: str) -> list[str]:
    """Why read_config() refuses a config.json: a message for each wrong field, naming the file (`where`). Empty where
    it does not refuse it."""
    problems = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
        except ValueError as error:
            if str(error) not in problems:
                problems.append(str(error))

    for name, kind, fields in (
        ("text_encoder", "t5", T5_FIELDS),
        ("audio_encoder", "encodec", CODEC_FIELDS),
        ("decoder", "musicgen_decoder", DECODER_FIELDS),
    ):
        attempt(partial(_section, config, name, (kind,), where))
        section = config.get(name)
        if isinstance(section, dict):
            for field in fields:
                attempt(partial(read_fields, section, (field,), f"{where}: {name}"))
    attempt(partial(read_config, config, where))
    return problems


def settings_passed_over(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys of a config.json that nothing here reads, by section ("" is the whole)."""
    read = {
        "text_encoder": {name for _, name, _ in T5_FIELDS} | {"feed_forward_proj"},
        "audio_encoder": {name for _, name, _ in CODEC_FIELDS} | {"codebook_dim"},
        "decoder": {name for _, name, _ in DECODER_FIELDS} | {"pad_token_id", "bos_token_id"},
        "": {"text_encoder", "audio_encoder", "decoder", "dtype", "torch_dtype", "transformers_version"},
    }
    out = {}
    for name, known in read.items():
        section = config.get(name) if name else config
        keys = section.keys() - known - {"model_type"} if isinstance(section, dict) else ()
        if keys:
            out[name] = sorted(keys)
    return out


# Where a layout keeps the fields of each of our configurations: the prefix of a field in messages, and the names there.
Sections = Mapping[str, tuple[str, Fields]]
SECTIONS = {
    "T5Config": ("text_encoder.", T5_FIELDS),
    "DecoderConfig": ("decoder.", DECODER_FIELDS),
    "EncodecConfig": ("audio_encoder.", CODEC_FIELDS),
}


def in_their_names(error: ValueError, sections: Sections = SECTIONS) -> str:
    """The message of an error from one of our configurations, with the fields named as they are in the file."""

    def theirs(match: re.Match[str]) -> str:
        section, fields = sections[match[1]]
        return section + next((name for ours, name, _ in fields if ours == match[2]), match[2])

    return re.sub(r"\b(T5Config|DecoderConfig|EncodecConfig)\.(\w+)", theirs, str(error))


def _written(config: Any, fields: Fields, **more: Any) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs, _ in fields} | more


def write_text(text: T5Config) -> dict[str, Any]:
    """Their configuration of a T5 encoder."""
    feed_forward = "gated-gelu" if text.gated else "relu"
    special = {"is_encoder_decoder": False, "use_cache": False, "pad_token_id": 0, "eos_token_id": 1}
    return _written(text, T5_FIELDS, model_type="t5", feed_forward_proj=feed_forward, **special)


def write_codec(codec: EncodecConfig) -> dict[str, Any]:
    """Their configuration of an EnCodec."""
    return _written(codec, CODEC_FIELDS, model_type="encodec", codebook_dim=codec.hidden)


def write_config(text: T5Config, decoder: DecoderConfig, codec: EncodecConfig, dtype: str) -> dict[str, Any]:
    """Their config.json. dtype: of the weights, as torch names it without the "torch.".

    Raises ValueError for a delay pattern other than the public models', since a config.json has no place for one.
    """
    if decoder.delays != (usual := delay.delays(decoder.codebooks, decoder.channels)):
        place = "transformers' layout has no place for another; audiocraft's has: save_pretrained(path, layout=...)"
        raise ValueError(f"DecoderConfig.delays must be {usual}, got {decoder.delays}: {place}")
    return {
        "architectures": ["MusicgenForConditionalGeneration"],
        "model_type": "musicgen",
        "is_encoder_decoder": True,
        "dtype": dtype,
        "text_encoder": write_text(text),
        "audio_encoder": write_codec(codec),
        "decoder": _written(
            decoder,
            DECODER_FIELDS,
            model_type="musicgen_decoder",
            pad_token_id=decoder.vocab_size,
            bos_token_id=decoder.vocab_size,
            max_position_embeddings=2048,
            is_decoder=True,
        ),
    }


def write_generation(decoder: DecoderConfig, codec: EncodecConfig, **more: Any) -> dict[str, Any]:
    """Their generation_config.json: 30 seconds, drawn, with guidance 3."""
    special = dict.fromkeys(("decoder_start_token_id", "pad_token_id", "bos_token_id"), decoder.vocab_size)
    return special | {"do_sample": True, "guidance_scale": 3.0, "max_length": 30 * codec.frame_rate} | more


def write_processor(channels: int, codec: EncodecConfig, **more: Any) -> dict[str, Any]:
    """Their preprocessor_config.json for audio of that many channels."""
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": channels,
        "sampling_rate": codec.sampling_rate,
        "padding_side": "left",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "chunk_length_s": codec.chunk_seconds,
        "overlap": codec.overlap,
    } | more
