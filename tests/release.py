"""Tiny checkpoints in the layout of audiocraft's release, written from transformers' models without weights_convert.

The names are spelled out here a second time, from files that audiocraft wrote, so that a wrong row of the table shows.
"""

from collections import OrderedDict
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


# What the xp.cfg of 2023 says beside that, of how, where and on what the models were trained.
AROUND: dict[str, Any] = {
    "device": "cuda", "dtype": "float32", "autocast": True, "autocast_dtype": "float16", "seed": 2036, "show": False,
    "continue_from": None, "execute_only": None, "benchmark_no_load": False, "efficient_attention_backend": "torch",
    "num_threads": 1, "mp_start_method": "forkserver", "label": None,
    "logging": {"level": "INFO", "log_updates": 10, "log_tensorboard": True}, "tensorboard": {"name": None},
    "slurm": {"gpus": 4, "mem_per_gpu": 40, "time": 3600, "constraint": None, "setup": [], "exclude": ""},
    "dora": {
        "dir": "/checkpoint/${oc.env:USER}/experiments/audiocraft/outputs", "exclude": ["device", "wandb.*"],
        "git_save": True,
    },
    "datasource": {"max_sample_rate": "???", "max_channels": "???", "train": "???", "generate": None},
    "optim": {
        "epochs": 500, "lr": 1, "optimizer": "dadam", "adam": {"betas": [0.9, 0.95], "weight_decay": 0.1, "eps": 1e-08},
        "ema": {"use": True, "updates": 10, "device": "cuda"}, "max_norm": 1.0,
    },
    "schedule": {"lr_scheduler": "cosine", "cosine": {"warmup": 4000, "lr_min_ratio": 0.0, "cycle_length": 1.0}},
    "dataset": {"batch_size": 192, "segment_duration": 30, "train": {"merge_text_p": 0.25, "drop_desc_p": 0.5}},
    "checkpoint": {"save_last": True, "save_every": 50, "keep_last": 10, "keep_every_states": None},
    "evaluate": {"every": 25, "metrics": {"base": False, "fad": False}},
}  # fmt: skip


def published_lm_cfg(model: MusicgenForConditionalGeneration, **changes: Any) -> dict[str, Any]:
    """What xp.cfg says of a decoder in the files of 2023; changes: see edited()."""
    config = AROUND | lm_cfg(model)
    conditioner = config["conditioners"]["description"]
    conditioner["t5"] |= {"word_dropout": 0.3}
    config |= {
        "conditioners": {"args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}, "description": conditioner},
        "attribute_dropout": {}, "compression_model_checkpoint": "//sig/5091833e",
    }  # fmt: skip
    # Of the first version, which knew no stereo.
    if not config["interleave_stereo_codebooks"]["use"]:
        del config["interleave_stereo_codebooks"]
    config["codebooks_pattern"] |= {
        "parallel": {"empty_initial": 0}, "coarse_first": {"delays": [0, 0, 0]}, "valle": {"delays": [0, 0, 0]},
    }  # fmt: skip
    config["transformer_lm"] |= {
        "emb_lr": None, "attention_as_float32": False, "checkpointing": "none", "weight_init": "gaussian",
        "depthwise_init": "current", "zero_bias_init": True, "two_step_cfg": False,
    }  # fmt: skip
    return edited(config, changes)


def published_codec_cfg(model: EncodecModel, n_q: int, **changes: Any) -> dict[str, Any]:
    """What xp.cfg says of a codec in the files of 2023; changes: see edited()."""
    config = AROUND | codec_cfg(model, n_q)
    config["encodec"] |= {"renorm": False}
    config["rvq"] |= {
        "decay": 0.99, "kmeans_init": True, "kmeans_iters": 50, "threshold_ema_dead_code": 2,
        "orthogonal_reg_weight": 0.0, "orthogonal_reg_active_codes_only": False,
    }  # fmt: skip
    return edited(config, changes)


def to_yaml(config: dict[str, Any]) -> str:
    """As the export writes it, OmegaConf.to_yaml()."""
    return str(yaml.safe_dump(config, default_flow_style=False, allow_unicode=True, sort_keys=False))


def publish_lm(
    model: MusicgenForConditionalGeneration, folder: Path, config: dict[str, Any] | None = None, **more: Any
) -> None:
    """state_dict.bin as of 2023: two keys, an OrderedDict of half precision. config: its xp.cfg; more: other keys."""
    state = OrderedDict(lm_state(model, torch.float16))
    settings = published_lm_cfg(model) if config is None else config
    torch.save({"best_state": state, "xp.cfg": to_yaml(settings)} | more, folder / "state_dict.bin")


def publish_codec(model: EncodecModel, folder: Path, n_q: int, config: dict[str, Any] | None = None) -> None:
    """compression_state_dict.bin as of 2023: two keys, an OrderedDict with the statistics of the codebooks, in fp32."""
    settings = published_codec_cfg(model, n_q) if config is None else config
    content = {"best_state": OrderedDict(codec_state(model)), "xp.cfg": to_yaml(settings)}
    torch.save(content, folder / "compression_state_dict.bin")


def publish_stub(folder: Path, name: str = "facebook/encodec_32khz") -> None:
    """compression_state_dict.bin as the stereo models and most fine-tunes have it: the codec's name."""
    content = {"pretrained": name, "exported": True, "version": "1.2.0a2"}
    torch.save(content, folder / "compression_state_dict.bin")


def publish(model: MusicgenForConditionalGeneration, folder: Path, tokenizer: bytes | None = None) -> None:
    """A release as of 2023, with T5 inside."""
    folder.mkdir(parents=True, exist_ok=True)
    c = model.config.decoder
    publish_codec(model.audio_encoder, folder, c.num_codebooks // c.audio_channels)
    publish_lm(model, folder)
    write_text(model, folder / "t5-base", tokenizer)


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
