"""What the public boundary checks before any work begins.

Each function raises a ValueError that names the argument, what was got and what is allowed, and otherwise does nothing.
It imports nothing of ours, so that a file of the reading path stands alone with this one (and attention.py) beside it.
Configurations are given as they are; the letters are those of the README's legend.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Generator, Tensor

WHOLE = (torch.int64, torch.int32)


def require(rules: Iterable[tuple[str, Any, str, Any]]) -> None:
    """Raise for the first of the rules (name, whether it holds, what it must be, what was got) that does not hold."""
    for name, holds, must, got in rules:
        if not holds:
            raise ValueError(f"{name} must be {must}, got {got!r}")


# Configurations


def sizes(config: Any, unset: str = "") -> None:
    """Every whole number of a configuration is 1 or more; the one called `unset` may be 0, which is none."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and (type(value) is not int or value < (field.name != unset)):
            name = f"{type(config).__name__}.{field.name}"
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def t5_config(config: Any) -> None:
    """A T5Config that a model can have."""
    sizes(config)
    if config.buckets % 4 or config.max_distance <= config.buckets // 4:
        got = f"{config.buckets} and {config.max_distance}"
        raise ValueError(f"T5Config.buckets must be a multiple of 4 below 4 * T5Config.max_distance, got {got}")
    require(
        (
            ("T5Config.dropout", 0 <= config.dropout < 1, "in [0, 1)", config.dropout),
            ("T5Config.eps", 0 < config.eps < 1, "in (0, 1)", config.eps),
        )
    )


def decoder_config(config: Any, activations: Collection[str]) -> None:
    """A DecoderConfig that a model can have, its sizes aside."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is float and not 0 <= value < 1:
            raise ValueError(f"DecoderConfig.{field.name} must be in [0, 1), got {value!r}")
    if config.width < 4 or config.width % config.heads:
        raise ValueError(f"DecoderConfig.heads must divide width, 4 or more, got {config.heads} and {config.width}")
    if (C := config.channels) > 2 or config.codebooks % C:
        raise ValueError(f"DecoderConfig.channels must be 1 or 2 and divide codebooks {config.codebooks}, got {C}")
    lags = config.delays
    if len(lags) != config.codebooks or not all(type(lag) is int and lag >= 0 for lag in lags):
        must = f"a whole number from 0 for each of {config.codebooks} codebooks"
        raise ValueError(f"DecoderConfig.delays must be {must}, got {lags!r}")
    if config.activation not in activations:
        must = f"one of {list(activations)}"
        raise ValueError(f"DecoderConfig.activation must be {must}, got {config.activation!r}")


def encodec_config(config: Any) -> None:
    """An EncodecConfig that a model can have, its sizes aside."""
    norms, modes = ("weight_norm", "time_group_norm"), ("reflect", "constant", "replicate")
    power = config.codebook_size & (config.codebook_size - 1) == 0
    seconds, chunked = config.chunk_seconds or 0, config.chunk_seconds is not None
    rules = (
        ("norm", config.norm in norms, f"one of {norms}"),
        ("pad_mode", config.pad_mode in modes, f"one of {modes}"),
        ("ratios", config.ratios and all(type(r) is int and r > 0 for r in config.ratios), "positive whole numbers"),
        ("channels", config.channels <= 2, "1 or 2"),
        ("compress", config.compress <= config.filters, f"at most filters {config.filters}"),
        ("codebook_size", power and config.codebook_size > 1, "a power of 2, from 2"),
        ("trim_right_ratio", 0 <= config.trim_right_ratio <= 1, "in [0, 1]"),
        ("trim_right_ratio", config.trim_right_ratio == 1 or config.causal, "1 unless causal"),
        ("overlap", (config.overlap is not None) == chunked, "given with chunk_seconds, and only then"),
        ("overlap", config.overlap is None or 0 <= config.overlap < 1, "in [0, 1)"),
        ("chunk_seconds", not chunked or 1 <= seconds * config.sampling_rate < math.inf, "a sample or more"),
        ("bandwidths", all(0 < b < math.inf for b in config.bandwidths), "finite and above 0"),
        ("bandwidths", list(config.bandwidths) == sorted(config.bandwidths), "ascending"),
    )
    require((f"EncodecConfig.{name}", holds, must, getattr(config, name)) for name, holds, must in rules)


def encodec_codebooks(config: Any, paid: int) -> None:
    """Codebooks that the largest bandwidth pays for."""
    if paid < 1:
        raise ValueError(f"EncodecConfig.bandwidths must pay for one codebook or more, got {config.bandwidths!r}")
    if config.codebooks != paid:
        must = f"the {paid} that bandwidths {config.bandwidths!r} pay for"
        raise ValueError(f"EncodecConfig.codebooks must be {must}, got {config.codebooks!r}")


def bandwidth(config: Any, kbits: float) -> None:
    """A bandwidth that an EnCodec was trained at."""
    if kbits not in config.bandwidths:
        raise ValueError(f"bandwidth must be one of {config.bandwidths} kbit/s, got {kbits!r}")


# Text


def ids(tokens: Tensor, vocab_size: int) -> None:
    """Whole numbers in 0..vocab_size - 1 of shape (B, L)."""
    if tokens.dim() != 2 or tokens.dtype not in WHOLE:
        raise ValueError(f"ids must be whole numbers of shape (B, L), got {tokens.dtype} {tuple(tokens.shape)}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        got = f"{int(tokens.min())}..{int(tokens.max())}"
        raise ValueError(f"ids must be in 0..{vocab_size - 1}, got {got}")


def t5_input(config: Any, tokens: Tensor | None, mask: Tensor | None, embeddings: Tensor | None) -> None:
    """Ids (B, L) or embeddings (B, L, E), one of them, and a mask of the same rows and tokens."""
    if (tokens is None) == (embeddings is None):
        raise ValueError("give ids or embeddings, one of them")
    if tokens is not None:
        ids(tokens, config.vocab_size)
        shape = tokens.shape
    elif embeddings is not None:
        if embeddings.dim() != 3 or embeddings.shape[-1] != config.width:
            raise ValueError(f"embeddings must be (B, L, {config.width}), got {tuple(embeddings.shape)}")
        shape = embeddings.shape[:2]
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask must have the shape of ids, {tuple(shape)}, got {tuple(mask.shape)}")


# The decoder


def text_states(states: Tensor, mask: Tensor | None, width: int) -> None:
    """States (B, L, width) of a text, and a mask of the same rows and tokens."""
    if states.dim() != 3 or states.shape[-1] != width:
        raise ValueError(f"states must be (B, L, {width}), got {tuple(states.shape)}")
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(f"mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}")


def memory(config: Any, states: Tensor | None, mask: Tensor | None, batch: int) -> None:
    """What cross-attention reads: (B_text, L, E) for the first rows of a batch, and its mask."""
    if states is None:
        if mask is not None:
            raise ValueError("memory_mask must come with a memory, got the mask alone")
        return
    if states.dim() != 3 or states.shape[-1] != config.width or not 1 <= len(states) <= batch:
        raise ValueError(f"memory must be (1..{batch}, L, {config.width}), got {tuple(states.shape)}")
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(f"memory_mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}")


def new_cache(config: Any, batch: int, steps: int, states: Tensor | None, mask: Tensor | None) -> None:
    """The sizes of a cache, and the text that is written into it."""
    if steps < 1 or batch < 1:
        raise ValueError(f"batch and steps must be above 0, got {batch} and {steps}")
    memory(config, states, mask, batch)


def delayed_codes(codes: Tensor, codebooks: int) -> None:
    """Whole numbers (B, K, S). Their range is not looked at, which would cost a pass over them at every step."""
    if codes.dim() != 3 or codes.shape[1] != codebooks or codes.dtype not in WHOLE:
        got = f"{codes.dtype} {tuple(codes.shape)}"
        raise ValueError(f"codes must be int64 or int32 of shape (B, {codebooks}, T), got {got}")


def decoder_input(
    config: Any,
    codes: Tensor | None,
    embeddings: Tensor | None,
    states: Tensor | None,
    mask: Tensor | None,
    cache: Any,
    step_mask: Tensor | None,
    **head_masks: Tensor | None,
) -> None:
    """The arguments of Decoder.forward()."""
    if (codes is None) == (embeddings is None):
        raise ValueError("give codes or embeddings, one of them")
    if codes is not None:
        delayed_codes(codes, config.codebooks)
        B, S = codes.shape[0], codes.shape[2]
    elif embeddings is not None:
        if embeddings.dim() != 3 or embeddings.shape[-1] != config.width:
            raise ValueError(f"embeddings must be (B, T, {config.width}), got {tuple(embeddings.shape)}")
        B, S, _ = embeddings.shape
    for name, head_mask in head_masks.items():
        shape = (config.layers, config.heads)
        if head_mask is not None and head_mask.shape != shape:
            raise ValueError(f"{name} must be (layers, H) = {shape}, got {tuple(head_mask.shape)}")
    start = 0 if cache is None else cache.length
    if step_mask is not None and step_mask.shape != (B, start + S):
        raise ValueError(f"step_mask must be (B, P + S) = {(B, start + S)}, got {tuple(step_mask.shape)}")
    if cache is None:
        memory(config, states, mask, B)
    elif states is not None or mask is not None:
        raise ValueError("memory and memory_mask go to new_cache(), which writes keys and values once")
    elif cache.batch != B:
        raise ValueError(f"the cache was made for a batch of {cache.batch}, got {B}")


# The codec


def audio(wave: Tensor, channels: int) -> None:
    """Floating point, finite, (B, channels, N) with N > 0."""
    if wave.dim() != 3 or wave.shape[1] != channels or wave.numel() == 0 or not wave.is_floating_point():
        got = f"{wave.dtype} {tuple(wave.shape)}"
        raise ValueError(f"audio must be floating point of shape (B, {channels}, N) with N > 0, got {got}")
    if not torch.isfinite(wave).all():
        raise ValueError("audio must be finite, got NaN or infinity")


def codes(given: Tensor, fewest: int, most: int, size: int) -> None:
    """int64 or int32, (B, fewest..most, T) with T > 0, and below size."""
    if given.dtype not in WHOLE or given.dim() != 3 or not fewest <= given.shape[1] <= most or given.numel() == 0:
        books, got = fewest if fewest == most else f"{fewest}..{most}", f"{given.dtype} {tuple(given.shape)}"
        raise ValueError(f"codes must be int64 or int32 of shape (B, {books}, T) with T > 0, got {got}")
    if not 0 <= int(given.min()) <= int(given.max()) < size:
        raise ValueError(f"codes must be in 0..{size - 1}, got {int(given.min())}..{int(given.max())}")


def codec_input(config: Any, wave: Tensor, dtype: torch.dtype, codebooks: int | None) -> None:
    """The arguments of Encodec.encode()."""
    audio(wave, config.channels)
    if wave.dtype != dtype:
        raise ValueError(f"audio must have the codec's dtype {dtype}, got {wave.dtype}")
    if codebooks is not None and (type(codebooks) is not int or not 1 <= codebooks <= config.codebooks):
        raise ValueError(f"codebooks must be a whole number in 1..{config.codebooks}, got {codebooks}")


def chunks(config: Any, pieces: Sequence[tuple[Tensor, Tensor | None]]) -> None:
    """Pieces of one clip: codes (B, K, T) and, where the codec normalises, loudness (B, 1)."""
    if not pieces or (config.chunk_seconds is None and len(pieces) != 1):
        must = "a non-empty list" if config.chunk_seconds else "one"
        raise ValueError(f"chunks must be {must}, got {len(pieces)}")
    B, T = len(pieces[0][0]), pieces[0][0].shape[-1]
    for i, (coded, scale) in enumerate(pieces):
        codes(coded, 1, config.codebooks, config.codebook_size)
        # Samples that no piece would cover.
        gap = i < len(pieces) - 1 and coded.shape[2] * config.hop < config.chunk_stride
        if len(coded) != B or coded.shape[2] > T or gap:
            raise ValueError(f"chunks must be pieces of one batch in order, got {tuple(coded.shape)} at {i}")
        if config.normalize and (scale is None or scale.shape != (B, 1)):
            got = None if scale is None else tuple(scale.shape)
            raise ValueError(f"chunks must have the scale {(B, 1)} of a normalising codec: scale, got {got}")


# A MusicGen


def parts(text: Any, decoder: Any, codec: Any) -> None:
    """Configurations of three parts that fit together."""
    most, V = decoder.channels * codec.codebooks, codec.codebook_size
    rules = (
        (decoder, "text_width", decoder.text_width == text.width, f"T5Config.width {text.width}"),
        (decoder, "vocab_size", decoder.vocab_size <= V, f"at most EncodecConfig.codebook_size {V}"),
        (decoder, "codebooks", decoder.codebooks <= most, f"at most {codec.codebooks} a channel"),
        (codec, "channels", codec.channels == 1, "1"),  # stereo is coded side by side
        (codec, "normalize", not codec.normalize, "False"),
        (codec, "chunk_seconds", codec.chunk_seconds is None, "None"),
    )
    require((f"{type(part).__name__}.{name}", holds, must, getattr(part, name)) for part, name, holds, must in rules)


def one_of(name: str, got: Any, allowed: Collection[Any]) -> None:
    """One of a few values."""
    if got not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {got!r}")


def generation_options(options: Any) -> None:
    """GenerationOptions that can be followed."""
    o, whole = options, {name: type(getattr(options, name)) is int for name in ("frames", "top_k")}
    require(
        (name, holds, must, getattr(o, name))
        for name, holds, must in (
            ("seconds", o.seconds is None or o.frames is None, "None where frames are given"),
            ("seconds", o.seconds is None or 0 < o.seconds < math.inf, "above 0"),
            ("frames", o.frames is None or (whole["frames"] and o.frames > 0), "a whole number above 0"),
            ("guidance_scale", math.isfinite(o.guidance_scale), "a finite number"),
            ("temperature", 0 < o.temperature < math.inf, "above 0"),
            ("top_k", whole["top_k"] and o.top_k >= 0, "a whole number from 0, which keeps all"),
            ("top_p", 0 < o.top_p <= 1, "above 0 and at most 1, which keeps all"),
            ("min_p", 0 <= o.min_p <= 1, "from 0, which keeps all, to 1"),
            ("pattern", o.pattern in ("delay", "parallel"), "'delay' or 'parallel'"),
        )
    )


def on_device(name: str, device: torch.device, *tensors: Tensor) -> None:
    """Tensors where the model is."""
    for tensor in tensors:
        if tensor.device != device:
            raise ValueError(f"{name} must be on the model's device {device}, got {tensor.device}")


def text_ids(tokens: Tensor, mask: Tensor, vocab_size: int, device: torch.device) -> None:
    """Ids and mask, both (B, L) and not empty, where the model is."""
    if tokens.dim() != 2 or tokens.shape != mask.shape or tokens.numel() == 0:
        got = f"{tuple(tokens.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"text ids and mask must both be (B, L) and not empty, got {got}")
    on_device("text", device, tokens, mask)
    ids(tokens, vocab_size)


def encoded_text(states: Tensor, mask: Tensor, width: int, device: torch.device) -> None:
    """What encode_text() returns: states (B, L, E) and mask (B, L), not empty, where the model is."""
    shape = (*mask.shape, width)
    if mask.dim() != 2 or mask.numel() == 0 or states.shape != shape or not states.is_floating_point():
        got = f"{states.dtype} {tuple(states.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"text states must be floating point (B, L, {width}) with a mask (B, L), got {got}")
    on_device("text", device, states, mask)


def strings(text: Any, tokenizer: Any) -> None:
    """A list of strings, None for a row without text, that a tokenizer is there for."""
    if isinstance(text, str) or not len(text):
        raise ValueError(f"text must be a non-empty list of strings, or a pair of ids and mask, got {text!r}")
    if tokenizer is None and any(row is not None for row in text):
        raise ValueError("text must be a pair of ids and mask: this model has no tokenizer")


def rows(name: str, got: int, must: int, of: str) -> None:
    """As many rows as something else has."""
    if got != must:
        raise ValueError(f"{name} must have a row for each of the {must} {of}, got {got}")


def scored(cells: Tensor) -> None:
    """Cells (B, K, S) of a loss, among which every codebook has one."""
    if not cells.any(2).any(0).all():
        raise ValueError("codes must hold a code of every codebook, got only padding")


def not_empty(name: str, given: Sequence[Any]) -> None:
    """A row or more."""
    if not given:
        raise ValueError(f"{name} must have a row or more, got none")


def audio_at(wave: Tensor, rate: int, model: Any, channels: int) -> None:
    """Audio (B, channels, N) at the model's sampling rate, where the model is."""
    if rate != model.sampling_rate:
        must = f"the model's {model.sampling_rate} Hz (audio.resample gets there)"
        raise ValueError(f"sampling_rate must be {must}, got {rate}")
    on_device("audio", model.device, wave)
    audio(wave, channels)


def seconds(given: float, half: float) -> None:
    """A finite time of half a frame or more."""
    if not half <= given < math.inf:
        raise ValueError(f"seconds must be finite and at least half a frame, {half}, got {given!r}")


def coded(sides: Sequence[Tensor], vocab_size: int) -> None:
    """Codes of audio that the decoder knows: it may have fewer than the codec."""
    if (most := max(int(side.max()) for side in sides)) >= vocab_size:
        raise ValueError(f"audio must be coded below the decoder's vocab_size {vocab_size}, got code {most}")


def prompt_length(length: int, frames: int) -> None:
    """A prompt that is not longer than the clip."""
    if length > frames:
        raise ValueError(f"prompt must not be longer than the clip's {frames} frames, got {length}")


def generators(generator: Any, rows: int, device: torch.device) -> None:
    """None, a torch.Generator, or a list of them, one a row, where the model is."""
    if generator is None:
        return
    each = [generator] if isinstance(generator, Generator) else generator
    if not isinstance(each, Sequence) or not all(isinstance(own, Generator) for own in each):
        raise ValueError(f"generator must be a torch.Generator or a list of them, one a row, got {generator!r}")
    if len(each) != rows and each is generator:
        raise ValueError(f"generator must be one, or one for each of the {rows} rows, got {len(each)}")
    for own in each:
        if own.device.type != device.type:
            raise ValueError(f"generator must be on the model's device {device}, got {own.device}")
