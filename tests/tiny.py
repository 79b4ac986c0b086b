"""Tiny random models built by transformers, and ours loaded from the directories that it saves.

Every weight is drawn anew, norms and biases too: transformers' own initialisation (0.02, zeros, ones, all-zero
codebooks) would leave most of the arithmetic without effect.
"""

import inspect
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedModel,
    T5Config,
)

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.checkpoint import huggingface, mapping, source
from musicgen_ref.encodec import Encodec
from musicgen_ref.encodec import EncodecConfig as OurEncodecConfig

VOCAB, CODES = 99, 64  # text ids, codes per codebook
RATE, HOP = 400, 8  # Hz, samples per frame: 50 frames a second
# transformers' name of the decoder's cache, of arguments and of outputs: cache from 5.24 on, past_key_values before.
FORWARD = inspect.signature(MusicgenForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in FORWARD else "past_key_values"


def our_names(theirs: Iterable[str]) -> list[str]:
    """The names of transformers' fields, of whichever release is installed, as musicgen_ref.hf has them: as 5.24's."""
    return ["cache" if name == CACHE else name for name in theirs]


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
    with torch.random.fork_rng(devices=[]):  # transformers draws initial values, which biases keep a part of
        torch.manual_seed(0)
        model = randomize(MusicgenForConditionalGeneration(config), seed)
    model.generation_config.decoder_start_token_id = CODES
    model.config.decoder.decoder_start_token_id = CODES
    return model


def ours(model: MusicgenForConditionalGeneration, **load: Any) -> MusicGen:
    """Our model of the directory that transformers saves; keyword arguments go to from_pretrained."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return MusicGen.from_pretrained(Path(folder), **load)


def ours_in_memory(model: MusicgenForConditionalGeneration) -> MusicGen:
    """The same model without the files between, which take longer than all that a tiny model generates."""
    configs = huggingface.read_config(model.config.to_dict(), "config.json")
    with source.without_values():
        own = MusicGen(*configs)
    fill(own, huggingface.table(*configs), model.state_dict(), "")
    return own.eval()


def fill(
    part: torch.nn.Module, table: list[mapping.Row], state: dict[str, torch.Tensor], ours: str, prefix: str = ""
) -> None:
    """Give our module the values of transformers' state_dict(); ours, prefix: before the names of either in a whole
    model."""
    theirs = {huggingface.current_name(prefix + name): tensor for name, tensor in state.items()}
    theirs.pop(None, None)  # positions, and the statistics that trained the codebooks
    pieces = mapping.expand(table, {ours + name: tuple(tensor.shape) for name, tensor in part.state_dict().items()})
    mapping.check(pieces, {name: tuple(t.shape) for name, t in theirs.items()}, "transformers' model")
    reader = SimpleNamespace(shapes={}, get=lambda name, mapped=False: theirs[name].clone())
    source.fill(part, pieces, reader, prefix=ours)


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
    with torch.random.fork_rng(devices=[]):  # as in musicgen()
        torch.manual_seed(0)
        model = randomize(EncodecModel(config), seed)
    if audio is None:
        audio = noise(2, config.audio_channels, 100 * config.hop_length, seed=seed)
    return fill_codebooks(model, audio, seed)


def our_codec(model: EncodecModel) -> Encodec:
    """Our codec with the configuration and the weights of transformers', through the tables of weights_convert."""
    fields = huggingface.read_fields(model.config.to_dict(), huggingface.CODEC_FIELDS, "audio_encoder")
    with torch.device("meta"):
        codec = Encodec(OurEncodecConfig(**fields))
    fill(codec, huggingface.codec_table(codec.config), model.state_dict(), "codec.", "audio_encoder.")
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


# What musicgen() makes: the public models' kinds, and one in which every number and choice is another than the default.
KINDS: dict[str, dict[str, Any]] = {
    "mono": {},
    "stereo": {"codebooks": 8, "channels": 2},
    "gated, no projection": {"gated": True, "text": {"d_model": 32}},
    "one codebook": {"codebooks": 1},
    "nothing by default": {
        "text": {"d_model": 20, "d_kv": 6, "num_heads": 3, "d_ff": 29, "num_layers": 3, "dropout_rate": 0.2}
        | {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 20, "layer_norm_epsilon": 1e-5},
        "decoder": {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6, "ffn_dim": 40, "dropout": 0.2}
        | {"activation_function": "relu", "attention_dropout": 0.05, "activation_dropout": 0.15, "layerdrop": 0.25},
        "codec": {"num_filters": 8, "hidden_size": 12, "upsampling_ratios": [2, 4], "target_bandwidths": [1.2, 2.4]}
        | {"use_causal_conv": True, "trim_right_ratio": 0.5, "pad_mode": "constant", "use_conv_shortcut": True}
        | {"kernel_size": 5, "last_kernel_size": 3, "residual_kernel_size": 5, "num_residual_layers": 2}
        | {"dilation_growth_rate": 3, "compress": 4, "num_lstm_layers": 1},
    },
}


def assert_equal(model: MusicgenForConditionalGeneration, own: MusicGen) -> None:
    """Logits of padded texts, and audio drawn under one seed: the same to the bit, with the attention of `model`."""
    eager = model.decoder.config._attn_implementation == "eager"
    own.backend = "eager" if eager else "sdpa"
    sizes = own.decoder.config.codebooks, own.decoder.config.channels
    ids, mask = text()
    given = codes(len(ids), sizes[0], 9, special=True)
    with torch.no_grad():
        # Its cache would hand the eager attention keys of another memory layout, which sums in another order.
        arguments = {"attention_mask": mask, "decoder_input_ids": given.flatten(0, 1), "use_cache": False}
        expected = model(input_ids=ids, **arguments).logits
        logits = own.decoder(given, *own.encode_text((ids, mask)), backend=own.backend)
    assert torch.equal(logits.flatten(0, 1), expected)
    arguments = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 11, "decoder_start_token_id": CODES}
    torch.manual_seed(0)
    audio = model.generate(input_ids=ids, attention_mask=mask, **arguments)
    torch.manual_seed(0)
    assert torch.equal(own.generate((ids, mask), GenerationOptions(top_k=50, **clip(0, 11, *sizes))).audio, audio)


def hub_layout(folder: Path) -> None:
    """Rewrite a directory of transformers as Meta's of 2023 on the Hub: older names of the weight norm, the table of
    positions among the tensors, and a configuration with torch_dtype, without what equals a default, and with the
    generation fields that every configuration had then."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    width = config["decoder"]["hidden_size"]

    spelled = {"original0": "weight_g", "original1": "weight_v"}
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, *norm = name.split(".parametrizations.weight.")
        tensors[f"{stem}.{spelled[norm[0]]}" if norm else name] = tensor
    # The values are another table's: whoever reads them is found out.
    tensors["decoder.model.decoder.embed_positions.weights"] = noise(2048, width)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    sections = {"text_encoder": T5Config, "audio_encoder": EncodecConfig, "decoder": MusicgenDecoderConfig}
    legacy = (
        {"_name_or_path": "", "bad_words_ids": None, "chunk_size_feed_forward": 0, "do_sample": False, "num_beams": 1}
        | {"early_stopping": False, "max_length": 20, "min_length": 0, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
        | {"finetuning_task": None, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pruned_heads": {}}
        | {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "num_return_sequences": 1, "return_dict": True}
        | {"output_attentions": False, "torchscript": False, "torch_dtype": None, "use_bfloat16": False}
    )
    for name, kind in sections.items():
        default = kind().to_dict()
        section = {k: v for k, v in config[name].items() if k == "model_type" or k not in default or default[k] != v}
        config[name] = legacy | section
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.31.0.dev0"
    file.write_text(json.dumps(config, indent=2))


def spiece() -> bytes:
    """A small spiece.model, with T5's ids 0 to 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a calm piano with soft rain", "loud drums and a heavy bass", "no song at all"]),
        model_writer=model,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def pair(
    model: MusicgenForConditionalGeneration, backend: str = "sdpa", dtype: torch.dtype = torch.float32
) -> tuple[MusicgenForConditionalGeneration, MusicGen]:
    """transformers' model and ours, both loaded from the directory that `model` saves, with the same attention (but the
    T5 of transformers 4 is always eager)."""
    text_backend = "eager" if transformers.__version__.startswith("4.") else backend
    backends = {"text_encoder": text_backend, "decoder": backend, "audio_encoder": "eager"}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = type(model).from_pretrained(folder, dtype=dtype, attn_implementation=backends).eval()
        mine = MusicGen.from_pretrained(folder, dtype=dtype)
    mine.backend = backend
    for p in theirs.parameters():
        # transformers leaves weights where the file happens to have them; BLAS sums a matrix that is not aligned in
        # another order. Copies are aligned, as ours are.
        p.data = p.data.clone()
    return theirs, mine


def complete(folder: Path, channels: int = 1, codes: int = 256, **generation: Any) -> Path:
    """A whole directory that both libraries open, tokenizer and processor too; generation: fields of its
    generation_config.json, beside the special tokens."""
    musicgen_of(codes, 4 * channels, channels, text={"vocab_size": 200}).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(spiece())
    MusicGen.from_pretrained(folder).save_pretrained(folder)
    special = dict.fromkeys(("decoder_start_token_id", "pad_token_id", "bos_token_id"), codes)
    (folder / "generation_config.json").write_text(json.dumps(special | generation))
    return folder


def opened(kind: Any, folder: Path, **load: Any) -> Any:
    """transformers' model of a directory, its weights copied to where BLAS sums as it does for ours: see pair()."""
    model = kind.from_pretrained(str(folder), **load).eval()
    for p in model.parameters():
        p.data = p.data.clone()
    return model
