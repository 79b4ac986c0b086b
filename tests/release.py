"""Tiny checkpoints in the layout of audiocraft's release, written from transformers' models without weights_convert.

The names are spelled out here a second time, from files that audiocraft wrote, so that a wrong row of the table shows.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import EncodecModel, MusicgenForConditionalGeneration, T5EncoderModel

from tests import tiny


def codec_cfg(model: EncodecModel, n_q: int, **changes: Any) -> dict[str, Any]:
    """What xp.cfg says of a codec, among what it says of its training."""
    c = model.config
    seanet = {
        "dimension": c.hidden_size, "channels": "${channels}", "causal": "${encodec.causal}",
        "n_filters": c.num_filters, "n_residual_layers": c.num_residual_layers, "ratios": list(c.upsampling_ratios),
        "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": c.norm_type, "norm_params": {},
        "kernel_size": c.kernel_size, "residual_kernel_size": c.residual_kernel_size,
        "last_kernel_size": c.last_kernel_size, "dilation_base": c.dilation_growth_rate, "pad_mode": c.pad_mode,
        "true_skip": not c.use_conv_shortcut, "compress": c.compress, "lstm": c.num_lstm_layers,
        "disable_norm_outer_blocks": 0, "encoder": {},
        "decoder": {
            "trim_right_ratio": c.trim_right_ratio, "final_activation": None, "final_activation_params": None
        },
    }  # fmt: skip
    config = {
        "solver": "compression", "device": "cuda", "datasource": {"max_sample_rate": "???"}, "l1": {},
        "optim": {"lr": 0.0003, "adam": {"betas": [0.5, 0.9]}}, "dora": {"dir": "/x/${oc.env:USER}", "exclude": []},
        "sample_rate": c.sampling_rate, "channels": c.audio_channels, "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet", "quantizer": "rvq", "sample_rate": "${sample_rate}", "channels": "${channels}",
            "causal": c.use_causal_conv, "renormalize": c.normalize,
        },
        "seanet": seanet,
        "rvq": {"n_q": n_q, "q_dropout": False, "bins": c.codebook_size},
    }  # fmt: skip
    return edited(config, changes)


def lm_cfg(model: MusicgenForConditionalGeneration, **changes: Any) -> dict[str, Any]:
    """What xp.cfg says of a decoder."""
    c = model.config.decoder
    lags = [k // c.audio_channels for k in range(c.num_codebooks)]
    config = {
        "solver": "musicgen", "autocast": True, "sample_rate": model.config.audio_encoder.sampling_rate,
        "channels": c.audio_channels, "lm_model": "transformer_lm", "compression_model_n_q": None,
        "generate": {"audio": {"sample_rate": "${sample_rate}"}, "lm": {"top_k": 250, "top_p": 0.0}},
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
        "fuser": {
            "cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "prepend": [],
            "cross": ["description"], "input_interpolate": [],
        },
        "conditioners": {
            "description": {"model": "t5", "t5": {"name": "t5-base", "finetune": False, "normalize_text": False}}
        },
        "interleave_stereo_codebooks": {"use": c.audio_channels == 2, "per_timestep": False},
        "codebooks_pattern": {
            "modeling": "delay", "delay": {"delays": lags, "flatten_first": 0, "empty_initial": 0},
            "unroll": {"delays": [0, 0, 0, 0]},
        },
        "transformer_lm": {
            "dim": c.hidden_size, "num_heads": c.num_attention_heads, "num_layers": c.num_hidden_layers,
            "hidden_scale": c.ffn_dim // c.hidden_size, "n_q": c.num_codebooks, "card": c.vocab_size,
            "dropout": c.dropout, "attention_dropout": c.attention_dropout, "activation": "gelu", "norm_first": True,
            "bias_ff": False, "bias_attn": False, "bias_proj": False, "kv_repeat": 1,
            "past_context": None, "causal": True, "custom": False, "memory_efficient": True, "layer_scale": None,
            "positional_embedding": "sin", "xpos": False, "norm": "layer_norm", "cross_attention": False,
            "qk_layer_norm": False, "qk_layer_norm_cross": False,
        },
    }  # fmt: skip
    return edited(config, changes)


def edited(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings changed by dotted path, with "__" for the dots; ... removes one."""
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = config
        for name in sections:
            section = section[name]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return config


def codec_state(model: EncodecModel) -> dict[str, Tensor]:
    """A codec's tensors under audiocraft's names."""
    up = {f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ConvTranspose1d)}
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("quantizer."):
            _, _, k, _, what = name.split(".")
            state[f"quantizer.vq.layers.{k}._codebook.{what}"] = tensor
            continue
        side, _, rest = name.split(".", 2)
        if ".lstm." not in name:
            kind = "convtr" if any(name.startswith(prefix) for prefix in up) else "conv"
            block, last = rest.rsplit(".conv.", 1) if ".norm." not in rest else rest.rsplit(".norm.", 1)
            if ".norm." in rest:
                kind = "convtr" if f"{side}.layers.{block}.conv." in up else "conv"
                rest = f"{block}.{kind}.norm.{last}"
            else:
                norm = {
                    "parametrizations.weight.original0": "weight_g",
                    "parametrizations.weight.original1": "weight_v",
                }
                rest = f"{block}.{kind}.{kind}.{norm.get(last, last)}"
        state[f"{side}.model.{rest}"] = tensor
    return state


def lm_state(model: MusicgenForConditionalGeneration, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A decoder's tensors under audiocraft's names."""
    theirs = {name.removeprefix("decoder."): tensor.to(dtype) for name, tensor in model.state_dict().items()}
    state = {}
    for what in ("weight", "bias"):
        state[f"condition_provider.conditioners.description.output_proj.{what}"] = theirs[f"enc_to_dec_proj.{what}"]
        state[f"out_norm.{what}"] = theirs[f"model.decoder.layer_norm.{what}"]
    for k in range(model.config.decoder.num_codebooks):
        state[f"emb.{k}.weight"] = theirs[f"model.decoder.embed_tokens.{k}.weight"]
        state[f"linears.{k}.weight"] = theirs[f"lm_heads.{k}.weight"]
    norms = {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm_cross", "final_layer_norm": "norm2"}
    for i in range(model.config.decoder.num_hidden_layers):
        ours, layer = f"transformer.layers.{i}", f"model.decoder.layers.{i}"
        for attention, name in (("self_attn", "self_attn"), ("encoder_attn", "cross_attention")):
            parts = [theirs[f"{layer}.{attention}.{p}_proj.weight"] for p in "qkv"]
            state[f"{ours}.{name}.in_proj_weight"] = torch.cat(parts)
            state[f"{ours}.{name}.out_proj.weight"] = theirs[f"{layer}.{attention}.out_proj.weight"]
        for n in "12":
            state[f"{ours}.linear{n}.weight"] = theirs[f"{layer}.fc{n}.weight"]
        for norm, name in norms.items():
            state |= {f"{ours}.{name}.{what}": theirs[f"{layer}.{norm}.{what}"] for what in ("weight", "bias")}
    return state


def write_codec(model: EncodecModel, folder: Path, n_q: int, **changes: Any) -> None:
    """compression_state_dict.bin; changes: to its xp.cfg, see edited()."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"best_state": codec_state(model), "xp.cfg": yaml.safe_dump(codec_cfg(model, n_q, **changes))}
    torch.save(content | {"version": "1.3.0", "exported": True}, folder / "compression_state_dict.bin")


def write_lm(
    model: MusicgenForConditionalGeneration, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any
) -> None:
    """state_dict.bin; changes: to its xp.cfg, see edited()."""
    content = {"best_state": lm_state(model, dtype), "xp.cfg": yaml.safe_dump(lm_cfg(model, **changes))}
    torch.save(content | {"version": "1.3.0", "exported": True}, folder / "state_dict.bin")


def write_text(model: MusicgenForConditionalGeneration, folder: Path, tokenizer: bytes | None = None) -> None:
    """The directory of T5, as transformers saves it."""
    text = T5EncoderModel(model.text_encoder.config)
    text.load_state_dict(model.text_encoder.state_dict(), strict=False)
    text.save_pretrained(folder)
    if tokenizer is not None:
        (folder / "spiece.model").write_bytes(tokenizer)


def write(
    model: MusicgenForConditionalGeneration,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: bytes | None = None,
    **changes: Any,
) -> None:
    """All of a release, with T5 inside; changes: to the decoder's xp.cfg."""
    c = model.config.decoder
    write_codec(model.audio_encoder, folder, c.num_codebooks // c.audio_channels)
    write_lm(model, folder, dtype, **changes)
    write_text(model, folder / "t5-base", tokenizer)


# The layout has one number for dropout in the feed-forward and elsewhere.
DROPOUT = {"dropout": 0.1, "activation_dropout": 0.1, "attention_dropout": 0.05}
KINDS: dict[str, dict[str, Any]] = {
    "mono": {"decoder": {"ffn_dim": 128} | DROPOUT},
    "stereo": {"codebooks": 8, "channels": 2, "decoder": {"ffn_dim": 64} | DROPOUT},
}


def model(kind: str = "mono", **parts: Any) -> MusicgenForConditionalGeneration:
    """A model that the layout has a place for: its feed-forward is a multiple of its width."""
    return tiny.musicgen(**{"text": {"vocab_size": 200}} | KINDS[kind] | parts)
