"""Tiny random models built by transformers, and ours loaded from the directories that it saves.

Every weight is drawn anew, norms and biases too: transformers' own initialisation (0.02, zeros, ones, all-zero
codebooks) would leave most of the arithmetic without effect.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedModel,
    T5Config,
)

from musicgen_ref import MusicGen
from musicgen_ref.decoder import DecoderConfig as OurDecoderConfig
from musicgen_ref.encodec import Encodec
from musicgen_ref.encodec import EncodecConfig as OurEncodecConfig
from musicgen_ref.t5 import T5Config as OurT5Config
from weights_convert import huggingface, mapping

VOCAB, CODES = 99, 64  # text ids, codes per codebook
RATE, HOP = 400, 8  # Hz, samples per frame: 50 frames a second


def text_config(gated: bool = False, **fields: Any) -> T5Config:
    sizes = {"vocab_size": VOCAB, "d_model": 24, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return T5Config(**sizes | {"feed_forward_proj": "gated-gelu" if gated else "relu"} | fields)


def codec_config(codebooks: int = 4, **fields: Any) -> EncodecConfig:
    """MusicGen's kind of codec (not causal, no shortcut convolution) with `codebooks` codebooks; fields override."""
    sizes = {"sampling_rate": RATE, "num_filters": 4, "hidden_size": 16, "upsampling_ratios": [4, 2]}
    kind = {"codebook_size": CODES, "use_causal_conv": False, "use_conv_shortcut": False}
    return EncodecConfig(**sizes | kind | {"target_bandwidths": [50 * 6 * codebooks / 1000]} | fields)


def decoder_config(codebooks: int = 4, channels: int = 1, **fields: Any) -> MusicgenDecoderConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
    special = {"vocab_size": CODES, "pad_token_id": CODES, "bos_token_id": CODES}
    return MusicgenDecoderConfig(**sizes | special | {"num_codebooks": codebooks, "audio_channels": channels} | fields)


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw every weight: matrices at 1.5 / sqrt(fan in), vectors around their initial value; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("codebook.embed"):
                p.normal_(0, 1, generator=generator)
            elif isinstance(p, torch.nn.Parameter) and p.dim() >= 2 and "original0" not in name:
                fan_in = p.shape[1:].numel()
                p.normal_(0, 1.5 / fan_in**0.5, generator=generator)
            elif isinstance(p, torch.nn.Parameter):
                p.add_(torch.randn(p.shape, generator=generator) * 0.2 * p.abs().mean().clamp(min=0.5))
    return model.eval()


def musicgen(
    codebooks: int = 4,
    channels: int = 1,
    gated: bool = False,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    decoder: dict[str, Any] | None = None,
    codec: dict[str, Any] | None = None,
) -> MusicgenForConditionalGeneration:
    """transformers' composite model: `codebooks` in all, `channels` 2 for stereo; text d_model=32 means no
    projection."""
    config = MusicgenConfig(
        text_encoder=text_config(gated, **text or {}).to_dict(),
        audio_encoder=codec_config(codebooks // channels, **codec or {}).to_dict(),
        decoder=decoder_config(codebooks, channels, **decoder or {}).to_dict(),
    )
    model = randomize(MusicgenForConditionalGeneration(config), seed)
    model.generation_config.decoder_start_token_id = CODES
    model.config.decoder.decoder_start_token_id = CODES
    return model


def ours(model: MusicgenForConditionalGeneration, **load: Any) -> MusicGen:
    """Our model of the directory that transformers saves; keyword arguments go to from_pretrained."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return MusicGen.from_pretrained(Path(folder), **load)


def text(batch: int = 3, length: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and mask (batch, length), right padded: the first row is full, the others lose 2 tokens more each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (batch, length), generator=generator)
    kept = length - 2 * torch.arange(batch)[:, None] % length
    mask = (torch.arange(length) < kept.clamp(min=1)).long()
    return ids * mask, mask


def codes(batch: int, codebooks: int, frames: int, seed: int = 0, special: bool = False) -> torch.Tensor:
    """Random codes (batch, codebooks, frames), the special token among them if asked."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CODES + special, (batch, codebooks, frames), generator=generator)


@torch.no_grad()
def fill_codebooks(model: EncodecModel, audio: torch.Tensor, seed: int = 0) -> EncodecModel:
    """Draw each codebook around what those before it leave over of the audio's latents, so that codes vary."""
    generator = torch.Generator().manual_seed(seed)
    if model.config.normalize:
        audio = audio / audio.std()
    left = model.encoder(audio).transpose(1, 2).flatten(0, 1)
    for layer in model.quantizer.layers:
        book = layer.codebook.embed
        noise = torch.randn(book.shape, generator=generator)
        book.copy_(left.mean(0) + 0.7 * left.std(0) * noise)
        left = left - book[layer.codebook.quantize(left)]
    return model


def codec(config: EncodecConfig, audio: torch.Tensor | None = None, seed: int = 0) -> EncodecModel:
    """transformers' codec with weights drawn anew and codebooks that suit the audio (default: noise)."""
    model = randomize(EncodecModel(config), seed)
    if audio is None:
        audio = noise(2, config.audio_channels, 100 * config.hop_length, seed)
    return fill_codebooks(model, audio, seed)


def our_codec(model: EncodecModel) -> Encodec:
    """Our codec with the configuration and the weights of transformers', through the tables of weights_convert."""
    fields = huggingface.read_fields(model.config.to_dict(), huggingface.CODEC_FIELDS, "audio_encoder")
    codec = Encodec(OurEncodecConfig(**fields))
    state = {f"codec.{name}": tensor for name, tensor in codec.state_dict().items()}
    theirs = {huggingface.current_name(f"audio_encoder.{name}"): t for name, t in model.state_dict().items()}
    del theirs[None]  # the statistics that trained the codebooks
    table = huggingface.table(OurT5Config(), OurDecoderConfig(), codec.config)
    pieces = mapping.expand(table, {name: tuple(t.shape) for name, t in state.items()})
    mapping.check(pieces, {name: tuple(t.shape) for name, t in theirs.items()}, "transformers' codec")
    mapping.fill(state, pieces, SimpleNamespace(shapes={}, get=theirs.__getitem__))
    return codec.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform noise in (-1, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def musicgen_of(vocab: int, codebooks: int = 4, channels: int = 1, **parts: Any) -> MusicgenForConditionalGeneration:
    """Like musicgen(), with `vocab` codes per codebook; the codec's codebooks suit its own latents, so codes vary."""
    decoder = {"vocab_size": vocab, "pad_token_id": vocab, "bos_token_id": vocab} | parts.pop("decoder", {})
    bits = (vocab - 1).bit_length()
    codec = {"codebook_size": vocab, "target_bandwidths": [50 * bits * codebooks // channels / 1000]}
    codec |= parts.pop("codec", {})
    model = musicgen(codebooks, channels, decoder=decoder, codec=codec, **parts)
    model.generation_config.decoder_start_token_id = model.config.decoder.decoder_start_token_id = vocab
    fill_codebooks(model.audio_encoder, noise(1, 1, 100 * HOP))
    return model


def theirs(model: MusicgenForConditionalGeneration, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (B, K, T) and audio of transformers' generate(). It returns the audio alone: the codes are those that it
    hands to its codec, channel by channel."""
    sides: list[torch.Tensor] = []
    decode = model.audio_encoder.decode

    def watched(codes: torch.Tensor, **kept: Any) -> Any:
        sides.append(codes[0])
        return decode(codes, **kept)

    with mock.patch.object(model.audio_encoder, "decode", watched):
        audio = model.generate(**arguments)
    return torch.stack(sides, dim=2).flatten(1, 2), audio


def clip(prompt: int, new_tokens: int, codebooks: int, channels: int = 1) -> dict[str, Any]:
    """Our length and pattern for transformers' max_new_tokens, which counts decoder steps: it drops the delay pattern
    where its sequence (start column, prompt, new tokens) is shorter than 2 * codebooks per channel - 1."""
    columns, lags = 1 + prompt + new_tokens, codebooks // channels
    if columns < 2 * lags - 1:
        return {"frames": columns - 1, "pattern": "parallel"}
    return {"frames": columns - lags, "pattern": "delay"}
