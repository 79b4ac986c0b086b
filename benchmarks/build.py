"""Checkpoints of the real sizes with random weights, written by transformers: what both libraries then load."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

# Width, layers, heads and feed-forward width of the decoder; text encoder and codec are the same for all.
SIZES = {"small": (1024, 24, 16, 4096), "medium": (1536, 48, 24, 6144), "large": (2048, 48, 32, 8192)}
# A model of a second or two, to see that the benchmark itself works.
SIZES |= {"toy": (64, 2, 4, 128)}
CODES, RATE = 2048, 32000


def build(size: str, folder: Path) -> Path:
    """The directory of this size under folder; written first if it is not there (2.4 GB for "small", in float32; 6.9 GB
    for "large", in float16, as it was published)."""
    path = folder / size
    if path.exists():
        return path
    width, layers, heads, ffn = SIZES[size]
    text = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    codec = {"num_filters": 64, "hidden_size": 128, "upsampling_ratios": [8, 5, 4, 4]}
    if size == "toy":
        text |= {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        codec |= {"num_filters": 4, "hidden_size": 16}
    codec |= {"sampling_rate": RATE, "codebook_size": CODES, "target_bandwidths": [2.2]}
    codec |= {"use_causal_conv": False, "use_conv_shortcut": False}
    decoder = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": ffn}
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16 if size == "large" else torch.float32)
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(
            text_encoder=T5Config(**text).to_dict(),
            audio_encoder=EncodecConfig(**codec).to_dict(),
            decoder=MusicgenDecoderConfig(**decoder).to_dict(),
        )
    )
    torch.set_default_dtype(before)
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith("codebook.embed"):  # zeros, as transformers leaves them, make every code the first
                tensor.normal_()
        for tensor in model.decoder.parameters():
            tensor.copy_(tensor.half())  # the decoders were published in fp16
    model.generation_config.decoder_start_token_id = model.config.decoder.decoder_start_token_id = CODES
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = CODES
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    try:
        model.save_pretrained(beside)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path
