"""audiocraft's names <-> ours: tensors (a table for mapping.py) and the settings of its two xp.cfg texts.

A release is state_dict.bin (the decoder) and compression_state_dict.bin (the codec), each {"best_state": tensors by
name, "xp.cfg": text}. T5 is not in it, and the second file may hold the name of a codec instead of a codec. Names of
tensors here begin with the part that they belong to, "lm:", "codec:" or "t5:". All this was checked against files that
audiocraft 1.3.0 wrote.

An xp.cfg describes a whole training. Some settings, listed below, decide what the model computes: where one of them has
a value that is not supported here, the file is refused and the message names the setting. Every other section and key
is ignored.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..decoder import DecoderConfig
from ..encodec import EncodecConfig, price
from ..messages import shown, spelled
from ..t5 import T5Config
from . import huggingface, xpcfg
from .huggingface import Fields, read_fields
from .mapping import Fused, Row, WeightNorm

LM, CODEC, TEXT = "lm:", "codec:", "t5:"
LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"


def codec_table(codec: EncodecConfig) -> list[Row]:
    """The rows of the codec. audiocraft names transposed convolutions otherwise, so their positions are needed."""
    step = 2 + codec.residual_layers
    upwards = "|".join(str(3 + i * step) for i in range(len(codec.ratios)))
    conv, up = CODEC + r"\1.model.\2.conv.conv.", CODEC + r"decoder.model.\1.convtr.convtr."
    weight_norm: list[Row] = [
        (rf"codec\.decoder\.({upwards})\.conv\.weight", WeightNorm(up + "weight_g", up + "weight_v")),
        (r"codec\.(encoder|decoder)\.(.+)\.conv\.weight", WeightNorm(conv + "weight_g", conv + "weight_v")),
    ]
    return [
        *(weight_norm if codec.norm == "weight_norm" else []),
        (rf"codec\.decoder\.({upwards})\.conv\.(weight|bias)", up + r"\2"),
        (rf"codec\.decoder\.({upwards})\.norm\.(weight|bias)", CODEC + r"decoder.model.\1.convtr.norm.\2"),
        (r"codec\.(encoder|decoder)\.(.+)\.conv\.(weight|bias)", conv + r"\3"),
        (r"codec\.(encoder|decoder)\.(.+)\.norm\.(weight|bias)", CODEC + r"\1.model.\2.conv.norm.\3"),
        (r"codec\.(encoder|decoder)\.(.+)\.lstm\.(\w+)", CODEC + r"\1.model.\2.lstm.\3"),
        (r"codec\.quantizer\.codebooks", (CODEC + "quantizer.vq.layers.{k}._codebook.embed", codec.codebooks)),
        (r"codec\.quantizer\.(\d+)\.(\w+)", CODEC + r"quantizer.vq.layers.\1._codebook.\2"),
    ]


def table(text: T5Config, decoder: DecoderConfig, codec: EncodecConfig) -> list[Row]:
    """The name table of a MusicGen of these sizes."""
    layer, projection = LM + r"transformer.layers.\1.", LM + "condition_provider.conditioners.description.output_proj."
    block = r"decoder\.blocks\.(\d+)\."
    attentions = {"self_attn": "self_attn", "cross_attn": "cross_attention"}
    norms = {"self_norm": "norm1", "cross_norm": "norm_cross", "ffn_norm": "norm2"}
    return [
        *huggingface.text_table(text, TEXT),
        (r"decoder\.embed\.(\d+)\.weight", LM + r"emb.\1.weight"),
        (r"decoder\.text_proj\.(weight|bias)", projection + r"\1"),
        *(
            (rf"{block}{ours}\.{part}\.weight", Fused(f"{layer}{theirs}.in_proj_weight", i, 3))
            for ours, theirs in attentions.items()
            for i, part in enumerate("qkv")
        ),
        *((rf"{block}{ours}\.out\.weight", f"{layer}{theirs}.out_proj.weight") for ours, theirs in attentions.items()),
        *((rf"{block}{ours}\.(weight|bias)", rf"{layer}{theirs}.\2") for ours, theirs in norms.items()),
        (rf"{block}fc(1|2)\.weight", layer + r"linear\2.weight"),
        (r"decoder\.norm\.(weight|bias)", LM + r"out_norm.\1"),
        (r"decoder\.heads\.(\d+)\.weight", LM + r"linears.\1.weight"),
        *codec_table(codec),
    ]


# The names that other options and versions of audiocraft give to tensors -> the names in the release.
OTHER_NAMES = (
    (r"(.+)\.mha\.(in_proj_weight|out_proj\.weight)", r"\1.\2"),
    (r"(.+)\.parametrizations\.weight\.original0", r"\1.weight_g"),
    (r"(.+)\.parametrizations\.weight\.original1", r"\1.weight_v"),
)
STATISTICS = re.compile(r"codec:quantizer\.vq\.layers\.\d+\._codebook\.(inited|cluster_size|embed_avg)")


def current_name(name: str, statistics: bool = False) -> str | None:
    """The release's name of a tensor; None for a tensor that is not part of the model.

    statistics: True keeps the statistics of the codebooks, which a conversion to another layout does not lose.
    """
    if STATISTICS.fullmatch(name):
        return name if statistics else None
    for other, release in OTHER_NAMES:
        if match := re.fullmatch(other, name):
            return match.expand(release)
    return name


# Our field, its path in xp.cfg, and a value that shows the type. The file must have the setting, unless it is OPTIONAL:
# then this value is the default.
LM_FIELDS: Fields = (
    ("vocab_size", "transformer_lm.card", 2048),
    ("codebooks", "transformer_lm.n_q", 4),
    ("width", "transformer_lm.dim", 1024),
    ("layers", "transformer_lm.num_layers", 24),
    ("heads", "transformer_lm.num_heads", 16),
    ("ffn", "transformer_lm.hidden_scale", 4),  # times the width
    ("activation", "transformer_lm.activation", "gelu"),
    ("dropout", "transformer_lm.dropout", 0.0),
)
CODEC_FIELDS: Fields = (
    ("sampling_rate", "encodec.sample_rate", 32000),
    ("channels", "encodec.channels", 1),
    ("filters", "seanet.n_filters", 64),
    ("ratios", "seanet.ratios", (8, 5, 4, 4)),
    ("hidden", "seanet.dimension", 128),
    ("codebook_size", "rvq.bins", 2048),
    ("bandwidths", "rvq.n_q", 4),  # their number, not kbit/s
    ("causal", "encodec.causal", False),
    ("norm", "seanet.norm", "weight_norm"),
    ("normalize", "encodec.renormalize", False),
    ("pad_mode", "seanet.pad_mode", "reflect"),
    ("conv_shortcut", "seanet.true_skip", True),  # which is the opposite
    ("kernel", "seanet.kernel_size", 7),
    ("last_kernel", "seanet.last_kernel_size", 7),
    ("residual_kernel", "seanet.residual_kernel_size", 3),
    ("residual_layers", "seanet.n_residual_layers", 1),
    ("dilation_growth", "seanet.dilation_base", 2),
    ("compress", "seanet.compress", 2),
    ("lstm_layers", "seanet.lstm", 2),
    ("trim_right_ratio", "seanet.decoder.trim_right_ratio", 1.0),
)
# Settings that some versions leave out or set to null; their code then uses the value in the tables above.
OPTIONAL = {
    "transformer_lm.activation",
    "transformer_lm.dropout",
    "encodec.renormalize",
    "seanet.decoder.trim_right_ratio",
}
# Settings that decide what is computed, and the only supported value of each.
LM_FIXED = {
    "lm_model": "transformer_lm",
    "transformer_lm.norm_first": True,
    "transformer_lm.bias_ff": False,
    "transformer_lm.bias_attn": False,
    "transformer_lm.bias_proj": False,
    "transformer_lm.past_context": None,
    "transformer_lm.causal": True,
    "transformer_lm.layer_scale": None,
    "transformer_lm.positional_embedding": "sin",
    "transformer_lm.xpos": False,
    "transformer_lm.norm": "layer_norm",
    "transformer_lm.qk_layer_norm": False,
    "transformer_lm.qk_layer_norm_cross": False,
    "transformer_lm.kv_repeat": 1,
    "interleave_stereo_codebooks.per_timestep": False,
    "fuser.cross_attention_pos_emb": False,
    "fuser.sum": [],
    "fuser.prepend": [],
    "fuser.cross": ["description"],
    "fuser.input_interpolate": [],
    "conditioners.description.model": "t5",
    "conditioners.description.t5.finetune": False,
    "conditioners.description.t5.normalize_text": False,
}
# The same for settings that no release has, but for which audiocraft's code has an argument.
LM_DEFAULTS = {"transformer_lm.max_period": 10000, "transformer_lm.positional_scale": 1.0}
# The same for settings that are read only where codebooks_pattern.modeling is "delay".
PATTERN_FIXED = {"codebooks_pattern.delay.flatten_first": 0, "codebooks_pattern.delay.empty_initial": 0}
CODEC_FIXED = {
    "compression_model": "encodec",
    "encodec.autoencoder": "seanet",
    "encodec.quantizer": "rvq",
    "seanet.activation": "ELU",
    "seanet.activation_params.alpha": 1.0,
    "seanet.disable_norm_outer_blocks": 0,
    "seanet.decoder.final_activation": None,
}
# Sections in which any key changes what is computed, and the keys that they may have.
LM_CLOSED = {
    "conditioners": {"description", "args"},  # args: what training did to the texts
    "fuser": {
        "sum", "prepend", "cross", "input_interpolate", "cross_attention_pos_emb", "cross_attention_pos_emb_scale",
    },
}  # fmt: skip
CODEC_CLOSED: dict[str, set[str]] = {
    "seanet.encoder": set(),
    "seanet.decoder": {"trim_right_ratio", "final_activation", "final_activation_params"},
    "seanet.norm_params": set(),
    "seanet.activation_params": {"alpha"},
}
LM_READ = {
    *LM_FIXED, *LM_DEFAULTS, *PATTERN_FIXED, *(path for _, path, _ in LM_FIELDS), "transformer_lm.attention_dropout",
    "transformer_lm.q_modeling", "codebooks_pattern.modeling", "codebooks_pattern.delay.delays",
    "interleave_stereo_codebooks.use", "conditioners.description.t5.name", "compression_model_checkpoint",
}  # fmt: skip
CODEC_READ = {
    *CODEC_FIXED, *(path for _, path, _ in CODEC_FIELDS), "seanet.causal", "seanet.channels", "rvq.q_dropout",
}  # fmt: skip
OTHER = "audiocraft itself opens this file"
LONGEST_DELAY = 1000  # steps, 20 s; a longer one would only take time and memory
REASONS = {  # why a setting is refused: the reason of the first key that the setting's path begins with
    "conditioners.description": "the text is read by a T5 as it was published",
    "conditioners": "melody and style are other models, this one knows text alone",
    "fuser": "this model reads the text by cross-attention alone",
    "seanet": "it changes how the codec is built",
    "codebooks_pattern": "no other pattern is computed here",
    "transformer_lm.q_modeling": "no other pattern is computed here",
    "": "nothing else is computed here",
}


def sections(lm: str, codec: str, text: str, codec_fields: Fields = CODEC_FIELDS) -> huggingface.Sections:
    """Where a release keeps the fields of our configurations. lm, codec, text: the files of the three parts."""
    return {
        "T5Config": (f"{text}: ", huggingface.T5_FIELDS),
        "DecoderConfig": (f"{lm}: ", LM_FIELDS),
        "EncodecConfig": (f"{codec}: ", codec_fields),
    }


def _reasons(call: Callable[[], object]) -> Iterator[str]:
    """The message of the ValueError that a call raises, if it raises one."""
    try:
        call()
    except ValueError as error:
        yield str(error)


def _reason(path: str) -> str:
    return f"{next(why for start, why in REASONS.items() if path.startswith(start))}, {OTHER}"


def _first(problems: Iterable[str]) -> None:
    for problem in problems:
        raise ValueError(problem)


def _fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> Iterator[str]:
    for path, only in fixed.items():
        try:
            got = xpcfg.value(config, path, only, where)
        except ValueError as error:
            yield str(error)
            continue
        # null is as good as false or an empty list in audiocraft's code. 1 does not pass for true, but does for 1.0.
        if not (got is None and not only) and (got != only or (type(got) is bool) != (type(only) is bool)):
            yield f"{where}: {path} must be {only!r}, got {shown(got)}: {_reason(path)}"


def _closed(config: Mapping[str, Any], closed: Mapping[str, set[str]], where: str) -> Iterator[str]:
    for path, known in closed.items():
        try:
            section = xpcfg.value(config, path, None, where)
        except ValueError as error:
            yield str(error)
            continue
        section = {} if section is None else section
        if not isinstance(section, Mapping):
            yield f"{where}: {path} must be a section, got {shown(section)}"
            continue
        for key, item in section.items():
            if key not in known and not (path == "fuser" and item in ([], None)):  # such a way conveys no condition
                yield f"{where}: {path}.{spelled(key)} must be left out, got {shown(item)}: {_reason(path)}"


def _given(config: Mapping[str, Any], fields: Fields, where: str) -> dict[str, Any]:
    section = {path: xpcfg.value(config, path, _ABSENT, where) for _, path, _ in fields}
    return {
        path: got for path, got in section.items() if got is not _ABSENT and (path not in OPTIONAL or got is not None)
    }


def _field_problems(config: Mapping[str, Any], fields: Fields, where: str) -> Iterator[str]:
    """What is wrong with each field by itself: it is missing, refers to nothing, or is of another type."""
    for field in fields:
        try:
            given = _given(config, (field,), where)
            if field[1] not in given and field[1] not in OPTIONAL:
                raise ValueError(f"{where}: must have {field[1]}, the model cannot be built without it")
            read_fields(given, (field,), f"{where}: xp.cfg")
        except ValueError as error:
            yield str(error)


_ABSENT = object()


def codec_problems(config: Mapping[str, Any], where: str) -> list[str]:
    """Why read_codec() refuses the codec that an xp.cfg describes: a message for each wrong setting, naming the file
    (`where`), the key, what was got and what is allowed. Empty where it does not refuse it."""
    problems = [
        *_fixed(config, CODEC_FIXED, where),
        *_closed(config, CODEC_CLOSED, where),
        *_field_problems(config, CODEC_FIELDS, where),
    ]
    return problems or list(_reasons(lambda: _codec(config, where)))


def read_codec(text: str, where: str) -> EncodecConfig:
    """The codec that an xp.cfg describes. Raises ValueError naming the file (`where`) and the setting."""
    config = xpcfg.parse(text, where)
    _first(codec_problems(config, where))
    return _codec(config, where)


def _codec(config: Mapping[str, Any], where: str) -> EncodecConfig:
    fields = read_fields(_given(config, CODEC_FIELDS, where), CODEC_FIELDS, f"{where}: xp.cfg")
    for path, same in {"seanet.causal": fields["causal"], "seanet.channels": fields["channels"]}.items():
        if (got := xpcfg.value(config, path, same, where)) != same:
            raise ValueError(f"{where}: {path} must be that of encodec, {same!r}, got {shown(got)}")
    fields["conv_shortcut"] = not fields["conv_shortcut"]
    most = fields.pop("bandwidths")
    if not 1 <= most <= huggingface.MOST["codebooks"]:
        raise ValueError(f"{where}: xp.cfg.rvq.n_q must be in 1..{huggingface.MOST['codebooks']}, got {shown(most)}")
    # A codec that was trained with randomly dropped codebooks can code with any number of them. transformers offers
    # 2, 4, 8, ... of them, as bandwidths.
    dropped = xpcfg.value(config, "rvq.q_dropout", False, where) is True
    counts = sorted({2**i for i in range(1, 9) if dropped and 2**i < most} | {most})
    try:
        EncodecConfig(**fields)  # the other fields are checked first
        codec = EncodecConfig(**fields, codebooks=most)
    except ValueError as error:
        raise ValueError(huggingface.in_their_names(error, sections("", where, ""))) from None
    return replace(codec, bandwidths=tuple(price(count, codec.bitrate) for count in counts))


def decoder_problems(config: Mapping[str, Any], where: str) -> list[str]:
    """Why read_decoder() refuses the decoder that an xp.cfg describes: a message for each wrong setting, as in
    codec_problems(). Empty where it does not refuse it."""
    problems = [
        *_closed(config, LM_CLOSED, where),
        *_reasons(lambda: _text_name(config, where)),
        *_fixed(config, LM_FIXED | LM_DEFAULTS, where),
        *_field_problems(config, LM_FIELDS, where),
    ]
    return problems or list(_reasons(lambda: _decoder(config, where)))


def read_decoder(text: str, where: str) -> DecoderConfig:
    """The decoder that an xp.cfg describes, without its text_width, which T5's own configuration says. Raises
    ValueError naming the file (`where`) and the setting."""
    config = xpcfg.parse(text, where)
    _first(decoder_problems(config, where))
    return _decoder(config, where)


def _decoder(config: Mapping[str, Any], where: str) -> DecoderConfig:
    fields = read_fields(_given(config, LM_FIELDS, where), LM_FIELDS, f"{where}: xp.cfg")
    fields["ffn"] *= fields["width"]
    # A missing attention_dropout is `dropout`; the dropout between the two layers of the feed-forward always is.
    attention = xpcfg.value(config, "transformer_lm.attention_dropout", None, where)
    fields["attention_dropout"] = fields["dropout"] if attention is None else attention
    if type(fields["attention_dropout"]) not in (int, float):
        raise ValueError(f"{where}: transformer_lm.attention_dropout must be a number, got {shown(attention)}")
    stereo = xpcfg.value(config, "interleave_stereo_codebooks.use", None, where)
    if type(stereo) is not bool and stereo is not None:
        raise ValueError(f"{where}: interleave_stereo_codebooks.use must be true or false, got {shown(stereo)}")
    fields |= {"channels": 2 if stereo else 1, "activation_dropout": fields["dropout"]}
    try:
        return DecoderConfig(**fields, delays=_delays(config, fields["codebooks"], where))
    except ValueError as error:
        raise ValueError(huggingface.in_their_names(error, sections(where, "", ""))) from None


def _delays(config: Mapping[str, Any], codebooks: int, where: str) -> tuple[int, ...]:
    key, modeling = "codebooks_pattern.modeling", xpcfg.value(config, "codebooks_pattern.modeling", None, where)
    path, given = "codebooks_pattern.delay.delays", None
    if named := modeling is not None:
        given = xpcfg.value(config, path, None, where)
    else:  # audiocraft 0.0.2 had no section for the pattern: the decoder names it, and its delays are the usual ones
        key, modeling = "transformer_lm.q_modeling", xpcfg.value(config, "transformer_lm.q_modeling", None, where)
    if modeling != "delay":
        rest = "" if named else ", since codebooks_pattern.modeling is null or left out"
        raise ValueError(f"{where}: {key} must be 'delay'{rest}, got {shown(modeling)}: {_reason(key)}")
    if named:
        _first(_fixed(config, PATTERN_FIXED, where))
    delays = list(range(codebooks)) if given is None else given
    whole = isinstance(delays, list) and all(type(lag) is int and 0 <= lag <= LONGEST_DELAY for lag in delays)
    if not whole or len(delays) != codebooks:
        must = f"a whole number in 0..{LONGEST_DELAY} for each of {codebooks} codebooks"
        raise ValueError(f"{where}: {path} must be {must}, got {shown(given)}: {_reason(path)}")
    return tuple(delays)


# The parts that a release names instead of holding them.

OTHER_CODECS = ("dac_44khz", "dac_24khz", "debug_compression_model")
CODEC_NAME = "facebook/encodec_32khz"  # the codec of the authors' own models


def text_name(text: str, where: str) -> str:
    """The name of the T5 in an xp.cfg, "t5-base" in the release. Raises ValueError for what is no model's name."""
    return _text_name(xpcfg.parse(text, where), where)


def _text_name(config: Mapping[str, Any], where: str) -> str:
    if xpcfg.value(config, "conditioners.description", None, where) is None:
        raise ValueError(f"{where}: must have conditioners.description, the text, which this model is conditioned on")
    key = "conditioners.description.t5.name"
    return check_name(xpcfg.value(config, key, "t5-base", where), where, key)


def stub(content: Any, where: str) -> str | None:
    """The name of the codec, where a file holds that instead of a codec; else None. Raises ValueError where it names
    another kind of codec, or holds a codec as well."""
    if not isinstance(content, dict) or "pretrained" not in content:
        return None
    name = content["pretrained"]
    if "best_state" in content:
        raise ValueError(
            f"{where}: must hold best_state or pretrained, the name of another codec {shown(name)}, not both"
        )
    return _encodec(name, where, "pretrained")


def codec_name(text: str, where: str) -> str:
    """The name of the codec that a decoder was trained with, by its xp.cfg; where that names no public codec, the one
    of the authors' own models. Raises ValueError where it is another kind of codec."""
    key = "compression_model_checkpoint"
    name = xpcfg.parse(text, where).get(key)
    prefix, public, name = name.partition("//pretrained/") if isinstance(name, str) else ("", "", "")
    return _encodec(name, where, key) if public and not prefix else CODEC_NAME


def _encodec(name: Any, where: str, key: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{where}: {key} must be the name of an EnCodec, got {shown(name)}")
    if name in OTHER_CODECS:
        raise ValueError(f"{where}: {key} must be an EnCodec, got {name!r}: no other codec is computed here, {OTHER}")
    return name


def check_name(name: Any, where: str, key: str) -> str:
    """Return the name of a model, on the Hub and as a directory. Raises ValueError, naming file and key, for what
    cannot be one."""
    part = r"[\w.-]{1,100}"
    if not isinstance(name, str) or not re.fullmatch(f"{part}(/{part})?", name, re.ASCII) or ".." in name:
        raise ValueError(f"{where}: {key} must be a model's name, got {shown(name)}")
    return name


# Which settings of an xp.cfg count.


class Settings(NamedTuple):
    """The dotted paths of the settings that are read, of the sections that are ignored as a whole, and of the single
    keys that are ignored."""

    read: list[str]
    sections: list[str]
    keys: list[str]


def decoder_settings(config: Mapping[str, Any]) -> Settings:
    """Which settings of an xp.cfg read_decoder() reads, and which it ignores."""
    return _settings(config, LM_READ, LM_CLOSED)


def codec_settings(config: Mapping[str, Any]) -> Settings:
    """Which settings of an xp.cfg read_codec() reads, and which it ignores."""
    return _settings(config, CODEC_READ, CODEC_CLOSED)


def _referred(config: Mapping[str, Any], path: str) -> set[str]:
    """The paths from a setting to its value, by way of references ${..}; see xpcfg.value()."""
    seen: set[str] = set()
    while path not in seen and len(seen) <= xpcfg.MOST_REFERENCES:
        seen.add(path)
        found: Any = config
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, str) and (match := xpcfg.REFERENCE.fullmatch(found)):
            path = match[1]
    return seen


def _settings(config: Mapping[str, Any], paths: set[str], closed: Mapping[str, set[str]]) -> Settings:
    out = Settings([], [], [])
    paths = paths | {path for start in paths for path in _referred(config, start)}
    above = {path[: dot.start()] for path in (*paths, *closed) for dot in re.finditer(r"\.", path)}

    def walk(tree: Mapping[Any, Any], prefix: str) -> None:
        for key, item in tree.items():
            path = f"{prefix}{key}"
            below = path in above
            if path in paths or (prefix.removesuffix(".") in closed and key not in closed[prefix.removesuffix(".")]):
                out.read.append(path)
            elif below and isinstance(item, Mapping):
                walk(item, f"{path}.")
            elif below or path in closed:
                out.read.append(path)
            else:
                (out.keys if prefix else out.sections).append(path)

    walk(config, "")
    return out


T5_NAMES = {(512, False): "t5-small", (768, False): "t5-base", (1024, False): "t5-large"} | {
    (512, True): "google/flan-t5-small", (768, True): "google/flan-t5-base", (1024, True): "google/flan-t5-large"
}  # fmt: skip


def _written(config: Any, fields: Fields, changed: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for ours, path, _ in fields:
        *sections, key = path.split(".")
        section = out
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = changed[ours] if ours in changed else getattr(config, ours)
    return out


def _merge(into: dict[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    for path, only in fixed.items():
        *sections, key = path.split(".")
        section = into
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = only
    return into


def write_codec(codec: EncodecConfig) -> str:
    """The xp.cfg of a codec: the settings that build the model, without those of its training. Raises ValueError for a
    codec that codes long audio in pieces, which audiocraft's does not."""
    if codec.chunk_seconds is not None:
        raise ValueError(f"chunk_length_s must be null, audiocraft codes audio whole, got {codec.chunk_seconds}")
    changed = {"bandwidths": codec.codebooks, "conv_shortcut": not codec.conv_shortcut}
    config: dict[str, Any] = {"solver": "compression", "device": "cpu", "dtype": "float32"}
    config |= {"sample_rate": codec.sampling_rate, "channels": codec.channels}
    config = _merge(config | _written(codec, CODEC_FIELDS, changed), CODEC_FIXED)
    config["seanet"] |= {"causal": codec.causal, "channels": codec.channels}
    config["seanet"] |= {"norm_params": {}, "encoder": {}}
    config["seanet"]["decoder"] |= {"final_activation_params": None}
    training = {"decay": 0.99, "kmeans_init": True, "kmeans_iters": 50, "threshold_ema_dead_code": 2}
    orthogonal = {"orthogonal_reg_weight": 0.0, "orthogonal_reg_active_codes_only": False}
    config["rvq"] |= {"q_dropout": len(codec.bandwidths) > 1} | training | orthogonal
    return xpcfg.dump(config)


def write_decoder(text: T5Config, decoder: DecoderConfig, codec: EncodecConfig) -> str:
    """The xp.cfg of a decoder: the settings that build the model, without those of its training. Raises ValueError for
    a model that the layout has no place for."""
    if decoder.text_width == decoder.width:
        raise ValueError(
            f"decoder.hidden_size must differ from text_encoder.d_model {decoder.width}: audiocraft projects"
        )
    if decoder.ffn % decoder.width or decoder.layerdrop:
        raise ValueError(
            f"decoder.ffn_dim must be a multiple of hidden_size {decoder.width} and layerdrop 0, "
            f"got {decoder.ffn} and {decoder.layerdrop}"
        )
    config = _written(decoder, LM_FIELDS, {"ffn": decoder.ffn // decoder.width})
    name = T5_NAMES.get((text.width, text.gated), "t5-base")
    config = {"solver": "musicgen", "device": "cpu", "dtype": "float32"} | config
    config |= {"sample_rate": codec.sampling_rate, "channels": decoder.channels}
    config |= {"dataset": {"segment_duration": 30}, "compression_model_n_q": None}
    config |= {"classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0}, "attribute_dropout": {}}
    config |= {"generate": {"lm": {"use_sampling": True, "temp": 1.0, "top_k": 250, "top_p": 0.0}}}
    config = _merge(config, LM_FIXED | {"codebooks_pattern.modeling": "delay"} | PATTERN_FIXED)
    config["conditioners"]["description"]["t5"] |= {"name": name, "word_dropout": 0.3}
    config["codebooks_pattern"]["delay"]["delays"] = list(decoder.delays)
    config["interleave_stereo_codebooks"]["use"] = decoder.channels == 2
    config["fuser"]["cross_attention_pos_emb_scale"] = 1
    config["transformer_lm"] |= {"attention_dropout": decoder.attention_dropout, "emb_lr": None, "custom": False}
    config["transformer_lm"] |= {"memory_efficient": True, "attention_as_float32": False, "checkpointing": "none"}
    config["transformer_lm"] |= {"weight_init": "gaussian", "depthwise_init": "current", "zero_bias_init": True}
    config["transformer_lm"] |= {"cross_attention": False, "two_step_cfg": False}
    return xpcfg.dump(config)
