"""Checks of the arguments of public functions, before any work begins, and of how large a call may be.

A function here raises a ValueError that names the argument, what was got and what is allowed; if all is well it does
nothing. The first line of its docstring says what must hold. Functions called as_...() return the argument, converted
from any of the accepted forms to the one that is computed with.
This file imports nothing of ours, so that a file of the reading path needs only this one (and attention.py) beside it.
The letters are those of the README's legend.
"""

import math
import os
import reprlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any, get_args, get_origin

import torch
from torch import Generator, Tensor

WHOLE = (torch.int64, torch.int32)
CODES = (*WHOLE, torch.int16, torch.uint8)
# The whole numbers in which WAV files hold audio: the value of silence, and the distance from it to full scale.
PCM = {torch.uint8: (2**7, 2**7), torch.int16: (0, 2**15), torch.int32: (0, 2**31)}

# Limits. The first three are defaults: arguments of the same names raise them.
MAX_BYTES = 16 * 2**30  # that one call of generate() keeps as keys, values, codes and audio
MAX_TEXT_TOKENS = 4096  # of a text; T5 compares every token with every other
MAX_AUDIO_BYTES = 2**30  # of audio that is read from a file, or resampled: 47 minutes of stereo at 48 kHz
MAX_SECONDS = 10**9  # of a clip: 30 years; the number of frames is still exact in floating point
MAX_SIZE = 2**31 - 1  # of a whole number in a configuration
# Logits up to 1e8, guided by 1e10 at a temperature of 1e-20, stay below 3e38, the largest number of fp32.
MAX_GUIDANCE, MIN_TEMPERATURE, MAX_TEMPERATURE = 1e10, 1e-20, 1e20
MAX_CHANNELS = 1024  # of audio that is resampled; the filter has a state for each
MAX_RATIO = 10_000  # between two sampling rates; at a hundred times that the resampler's filter crashes

# The fields of GenerationOptions that may be None: then the checkpoint's value holds.
LEFT_OPEN = ("guidance_scale", "temperature", "top_k", "top_p")

SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 200, 200


def shown(value: Any) -> str:
    """A value as a message shows it: short, and made in no time whatever the value is. A tensor is shown by its dtype
    and shape, a very large whole number by its length."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}" + ("" if value.is_nested else f" {tuple(value.shape)}")
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    return SHORT.repr(value)


def require(rules: Iterable[tuple[str, Any, str, Any]]) -> None:
    """Raise ValueError for the first rule that does not hold. Rules are (name, whether it holds, what it must be, what
    was got)."""
    for name, holds, must, got in rules:
        if not holds:
            raise ValueError(f"{name} must be {must}, got {shown(got)}")


# Numbers, tensors, paths: the type of an argument


def traced() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace is recording the computation. Checks then do not look at
    the numbers in tensors, since these are an example's, or not there at all."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def is_number(value: Any) -> bool:
    """Whether a value is a number of Python's; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_array(value: Any) -> bool:
    """Whether a value is an array of numpy's."""
    # By the name of its module, since importing numpy takes time and nothing else here needs it.
    return type(value).__module__ == "numpy" and hasattr(value, "__setitem__")


def as_python(value: Any) -> Any:
    """Numpy's scalars and arrays, also those in a list, and tensors without dimensions, as numbers of Python's. Any
    other value is returned as it is."""
    if isinstance(value, tuple | list) and any(type(each).__module__ == "numpy" for each in value):
        return [each.tolist() if type(each).__module__ == "numpy" else each for each in value]
    if isinstance(value, Tensor):
        plain = value.dim() == 0 and value.layout == torch.strided and not value.is_meta
        return value.item() if plain else value
    return value.tolist() if type(value).__module__ == "numpy" and hasattr(value, "tolist") else value


def instance(name: str, value: Any, kind: type) -> None:
    """An object of a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {shown(value)}")


def paths(**given: Any) -> None:
    """Strings or path objects, by the names of their arguments."""
    for name, value in given.items():
        if not isinstance(value, str | os.PathLike) or "\0" in str(value):
            raise ValueError(f"{name} must be a path, a string or an os.PathLike without NUL, got {shown(value)}")


def dense(name: str, tensor: Any) -> None:
    """A dense tensor, neither a sparse nor a nested one."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not traced() and (tensor.is_nested or tensor.layout != torch.strided):
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise ValueError(f"{name} must be a dense tensor, got a {kind} one")


def optional(name: str, tensor: Any) -> None:
    """A dense tensor, or None."""
    if tensor is not None:
        dense(name, tensor)


def valued(name: str, tensor: Any) -> None:
    """A dense tensor that has values, as a tensor on the meta device has not."""
    dense(name, tensor)
    if tensor.is_meta:
        raise ValueError(f"{name} must be a tensor with values, got one on the meta device")


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """A dense tensor, returned as it is; or a numpy array, returned as a tensor on the device (default: the CPU)."""
    if isinstance(value, Tensor):
        dense(name, value)
        return value
    if not is_array(value):
        raise ValueError(f"{name} must be a tensor or a numpy array, got {type(value).__name__}")
    try:  # copied, since torch takes neither another byte order nor negative strides
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C")).to(device)
    except TypeError:
        raise ValueError(f"{name} must hold numbers, got an array of {value.dtype}") from None


def as_audio(wave: Any, device: torch.device | None = None, name: str = "audio") -> Tensor:
    """Audio in floating point; the whole numbers of a WAV file (int16, int32, uint8) are scaled to [-1, 1)."""
    wave = as_tensor(name, wave, device)
    if wave.dtype not in PCM:
        return wave
    silence, scale = PCM[wave.dtype]
    return (wave.to(torch.float32) - silence) / scale


def as_codes(given: Any, device: torch.device | None = None) -> Tensor:
    """Codes as int64; accepts int32, int16 and uint8, too."""
    given = as_tensor("codes", given, device)
    return given.long() if given.dtype in CODES else given


def below(name: str, numbers: Tensor, end: int) -> None:
    """One or more whole numbers, all of them in 0..end - 1."""
    if not traced() and not 0 <= int(numbers.min()) <= int(numbers.max()) < end:
        raise ValueError(f"{name} must be in 0..{end - 1}, got {int(numbers.min())}..{int(numbers.max())}")


# How large


def amount(size: int) -> str:
    """A number of bytes as text, in a readable unit."""
    if size >= 2**80:  # much larger numbers could not be divided as floats
        return "over 2**50 GiB"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,} bytes"


def takes(max_bytes: int, **parts: int) -> None:
    """The parts of a call, in bytes, are together not larger than `max_bytes`."""
    require((("max_bytes", type(as_python(max_bytes)) is int and max_bytes > 0, "a whole number above 0", max_bytes),))
    if (total := sum(parts.values())) > max_bytes:
        told = ", ".join(f"{amount(size)} of {name.replace('_', ' ')}" for name, size in parts.items())
        raise ValueError(
            f"the call would take {amount(total)} ({told}), more than max_bytes, {amount(max_bytes)}: "
            "ask for a shorter clip or fewer rows, or raise max_bytes"
        )


def call_size(
    config: Any, hop: int, *, rows: int, copies: int, steps: int, frames: int, tokens: int, size: int, max_bytes: int,
    scores: int = 0,
) -> None:  # fmt: skip
    """A call of generate() keeps at most `max_bytes` in memory: keys and values, codes, audio, and T5's scores.

    There are keys and values of all steps, in each of the `copies` of every row, and of the text's tokens, with `size`
    bytes a number. scores: the bytes of T5's scores. config: the decoder's. The temporary memory of a step, and that of
    the codec, is not counted.
    """
    position = 2 * config.layers * config.width * size
    takes(
        max_bytes,
        keys_and_values=rows * position * (copies * steps + tokens),
        codes=rows * config.codebooks * 8 * (1 + steps + frames),  # the table, and the codes that are taken from it
        audio=rows * config.channels * 4 * frames * hop,  # fp32
        scores_of_the_text=scores,
    )


def generation_size(
    model: Any, options: Any, rows: int, copies: int, frames: int, text: tuple[Tensor, Tensor] | None
) -> None:
    """A MusicGen's generate() keeps at most the options' max_bytes in memory.

    copies: how many times a row is in the cache, 2 under guidance. text: ids, or text states, and their mask.
    """
    config, weight, t5 = model.decoder.config, model.decoder.norm.weight, model.text_encoder.config
    tokens = 0 if text is None else text[1].shape[1]
    to_encode = text is not None and not text[0].is_floating_point()
    call_size(
        config, model.codec.config.hop, rows=rows, frames=frames, tokens=tokens, size=weight.element_size(),
        copies=copies,
        steps=frames + (max(config.delays) if options.pattern == "delay" else 0),
        scores=rows * t5.heads * tokens**2 * weight.element_size() if to_encode else 0,
        max_bytes=options.max_bytes,
    )  # fmt: skip


def text_length(tokens: int, max_text_tokens: int) -> None:
    """A text of at most `max_text_tokens`."""
    whole = type(as_python(max_text_tokens)) is int and max_text_tokens > 0
    require((("max_text_tokens", whole, "a whole number above 0", max_text_tokens),))
    if tokens > max_text_tokens:
        raise ValueError(
            f"text must have at most max_text_tokens, {max_text_tokens}, got one of {tokens} tokens: shorten it, or "
            "raise max_text_tokens (time and memory grow with its square)"
        )


def audio_size(name: str, samples: int, channels: int, size: int, max_bytes: int) -> None:
    """Samples of so many channels, at `size` bytes each, take at most `max_bytes`."""
    if (total := samples * channels * size) > max_bytes:
        told = f"{samples:,} samples of {channels:,} channels"
        raise ValueError(f"{name} would take {amount(total)} ({told}), more than max_bytes, {amount(max_bytes)}")


def resampling(wave: Tensor, rate: int, new_rate: int, max_bytes: int) -> None:
    """Audio (C, N) that resampling makes one sample long or longer, and at most `max_bytes` large."""
    C, N = wave.shape
    if 2 * N * new_rate < rate:
        raise ValueError(f"audio: {N} samples at {rate} Hz are none at {new_rate} Hz")
    if C > MAX_CHANNELS:
        raise ValueError(f"audio: must have at most {MAX_CHANNELS} channels to be resampled, got {C}")
    if max(rate, new_rate) > MAX_RATIO * min(rate, new_rate):
        raise ValueError(f"rate: must be within {MAX_RATIO:,} times of new_rate {new_rate} Hz, got {rate} Hz")
    size = 8 if wave.dtype == torch.float64 else 4
    audio_size(
        f"audio: {N:,} samples at {rate} Hz, resampled to {new_rate} Hz,", N * new_rate // rate, C, size, max_bytes
    )


# Configurations


def sizes(config: Any, unset: str = "") -> None:
    """Every whole number of a configuration is 1 or more, and its other fields are of their types. The number called
    `unset` may also be 0, which means that it is not set. Numpy's numbers become Python's in the configuration."""
    for field in fields(config):
        value, name = as_python(getattr(config, field.name)), f"{type(config).__name__}.{field.name}"
        object.__setattr__(config, field.name, value)
        if field.type is int and (type(value) is not int or not (field.name != unset) <= value <= MAX_SIZE):
            raise ValueError(f"{name} must be a positive whole number up to {MAX_SIZE}, got {shown(value)}")
        if not _is_of(value, field.type):
            kind = getattr(field.type, "__name__", str(field.type))
            raise ValueError(f"{name} must be of type {kind}, got {shown(value)}")


def _is_of(value: Any, kind: Any) -> bool:
    # Handles the types that fields of configurations have. Elements of a tuple are checked only if they are floats.
    if kind is float:
        return is_number(value)
    if get_origin(kind) is tuple:
        floats = float in get_args(kind)
        whole = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return whole and (not floats or all(map(is_number, value)))
    return any(_is_of(value, each) for each in get_args(kind)) if get_args(kind) else isinstance(value, kind)


def t5_config(config: Any) -> None:
    """A T5Config of which a model can be made."""
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
    """A DecoderConfig of which a model can be made, given that its sizes were checked."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is float and not 0 <= value < 1:
            raise ValueError(f"DecoderConfig.{field.name} must be in [0, 1), got {shown(value)}")
    if config.width < 4 or config.width % config.heads:
        raise ValueError(f"DecoderConfig.heads must divide width, 4 or more, got {config.heads} and {config.width}")
    if (C := config.channels) > 2 or config.codebooks % C:
        raise ValueError(f"DecoderConfig.channels must be 1 or 2 and divide codebooks {config.codebooks}, got {C}")
    lags = config.delays
    if len(lags) != config.codebooks or not all(type(lag) is int and lag >= 0 for lag in lags):
        must = f"a whole number from 0 for each of {config.codebooks} codebooks"
        raise ValueError(f"DecoderConfig.delays must be {must}, got {shown(lags)}")
    if config.activation not in activations:
        must = f"one of {list(activations)}"
        raise ValueError(f"DecoderConfig.activation must be {must}, got {shown(config.activation)}")


def encodec_config(config: Any) -> None:
    """An EncodecConfig of which a model can be made, given that its sizes were checked."""
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
    """An EncodecConfig with as many codebooks as its largest bandwidth pays for, which is `paid`."""
    if paid < 1:
        raise ValueError(f"EncodecConfig.bandwidths must pay for one codebook or more, got {shown(config.bandwidths)}")
    if config.codebooks != paid:
        must = f"the {paid} that bandwidths {shown(config.bandwidths)} pay for"
        raise ValueError(f"EncodecConfig.codebooks must be {must}, got {config.codebooks!r}")


def bandwidth(config: Any, kbits: float) -> None:
    """A bandwidth that an EnCodec was trained at."""
    if kbits not in config.bandwidths:
        raise ValueError(f"bandwidth must be one of {config.bandwidths} kbit/s, got {shown(kbits)}")


# Text


def ids(tokens: Tensor, vocab_size: int) -> None:
    """Whole numbers in 0..vocab_size - 1 of shape (B, L)."""
    valued("ids", tokens)
    if tokens.dim() != 2 or tokens.dtype not in WHOLE:
        raise ValueError(f"ids must be whole numbers of shape (B, L), got {tokens.dtype} {tuple(tokens.shape)}")
    if tokens.numel():
        below("ids", tokens, vocab_size)


def t5_input(config: Any, tokens: Tensor | None, mask: Tensor | None, embeddings: Tensor | None) -> None:
    """Either ids (B, L) or embeddings (B, L, E), and None or a mask (B, L)."""
    if (tokens is None) == (embeddings is None):
        raise ValueError("give ids or embeddings, one of them")
    if tokens is not None:
        ids(tokens, config.vocab_size)
        shape = tokens.shape
    elif embeddings is not None:
        dense("embeddings", embeddings)
        if embeddings.dim() != 3 or embeddings.shape[-1] != config.width:
            raise ValueError(f"embeddings must be (B, L, {config.width}), got {tuple(embeddings.shape)}")
        shape = embeddings.shape[:2]
    optional("mask", mask)
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask must have the shape of ids, {tuple(shape)}, got {tuple(mask.shape)}")


# The decoder


def text_states(states: Tensor, mask: Tensor | None, width: int) -> None:
    """States (B, L, width) of a text, and None or a mask (B, L)."""
    dense("states", states)
    optional("mask", mask)
    if states.dim() != 3 or states.shape[-1] != width:
        raise ValueError(f"states must be (B, L, {width}), got {tuple(states.shape)}")
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(f"mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}")


def memory(config: Any, states: Tensor | None, mask: Tensor | None, batch: int) -> None:
    """What cross-attention reads: None, or states (B_text, L, E) for the first rows of a batch and their mask."""
    if states is None:
        if mask is not None:
            raise ValueError("memory_mask must come with a memory, got the mask alone")
        return
    dense("memory", states)
    optional("memory_mask", mask)
    if states.dim() != 3 or states.shape[-1] != config.width or not 1 <= states.shape[0] <= batch:
        raise ValueError(f"memory must be (1..{batch}, L, {config.width}), got {tuple(states.shape)}")
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(f"memory_mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}")


def new_cache(config: Any, batch: int, steps: int, states: Tensor | None, mask: Tensor | None) -> None:
    """Sizes above 0 of a cache, and the text whose keys and values it holds."""
    if not all(type(as_python(size)) is int and size > 0 for size in (steps, batch)):
        raise ValueError(f"batch and steps must be above 0, got {batch} and {steps}")
    memory(config, states, mask, batch)


def delayed_codes(codes: Tensor, codebooks: int) -> None:
    """Whole numbers (B, K, S). Their range is not checked: that would take a pass over them at every step."""
    dense("codes", codes)
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
        dense("embeddings", embeddings)
        if embeddings.dim() != 3 or embeddings.shape[-1] != config.width:
            raise ValueError(f"embeddings must be (B, T, {config.width}), got {tuple(embeddings.shape)}")
        B, S, _ = embeddings.shape
    for name, head_mask in head_masks.items():
        shape = (config.layers, config.heads)
        optional(name, head_mask)
        if head_mask is not None and head_mask.shape != shape:
            raise ValueError(f"{name} must be (layers, H) = {shape}, got {tuple(head_mask.shape)}")
    start = 0 if cache is None else cache.length
    optional("step_mask", step_mask)
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
    valued("audio", wave)
    if wave.dim() != 3 or wave.shape[1] != channels or wave.numel() == 0 or not wave.is_floating_point():
        got = f"{wave.dtype} {tuple(wave.shape)}"
        raise ValueError(f"audio must be floating point of shape (B, {channels}, N) with N > 0, got {got}")
    if not traced() and not torch.isfinite(wave).all():
        raise ValueError("audio must be finite, got NaN or infinity")


def codes(given: Tensor, fewest: int, most: int, size: int) -> None:
    """int64 or int32, (B, fewest..most, T) with T > 0, and below size."""
    valued("codes", given)
    if given.dtype not in WHOLE or given.dim() != 3 or not fewest <= given.shape[1] <= most or given.numel() == 0:
        books, got = fewest if fewest == most else f"{fewest}..{most}", f"{given.dtype} {tuple(given.shape)}"
        raise ValueError(f"codes must be int64 or int32 of shape (B, {books}, T) with T > 0, got {got}")
    below("codes", given, size)


def codec_input(config: Any, wave: Tensor, dtype: torch.dtype, codebooks: int | None) -> None:
    """The arguments of Encodec.encode()."""
    audio(wave, config.channels)
    if wave.dtype != dtype:
        raise ValueError(f"audio must have the codec's dtype {dtype}, got {wave.dtype}")
    if codebooks is not None and (type(as_python(codebooks)) is not int or not 1 <= codebooks <= config.codebooks):
        raise ValueError(f"codebooks must be a whole number in 1..{config.codebooks}, got {shown(codebooks)}")


def chunks(config: Any, pieces: Sequence[tuple[Tensor, Tensor | None]]) -> None:
    """Pieces of one clip: codes (B, K, T) and, where the codec normalises, loudness (B, 1)."""
    if not isinstance(pieces, Sequence) or not all(isinstance(piece, tuple) and len(piece) == 2 for piece in pieces):
        raise ValueError(f"chunks must be a list of pairs of codes and scale, got {shown(pieces)}")
    if not pieces or (config.chunk_seconds is None and len(pieces) != 1):
        must = "a non-empty list" if config.chunk_seconds else "one"
        raise ValueError(f"chunks must be {must}, got {len(pieces)}")
    for coded, _ in pieces:
        codes(coded, 1, config.codebooks, config.codebook_size)
    B, T = pieces[0][0].shape[0], pieces[0][0].shape[-1]
    for i, (coded, scale) in enumerate(pieces):
        # Whether the next piece begins behind the end of this one.
        gap = i < len(pieces) - 1 and coded.shape[2] * config.hop < config.chunk_stride
        if coded.shape[0] != B or coded.shape[2] > T or gap:
            raise ValueError(f"chunks must be pieces of one batch in order, got {tuple(coded.shape)} at {i}")
        if config.normalize and (scale is None or scale.shape != (B, 1)):
            got = None if scale is None else tuple(scale.shape)
            raise ValueError(f"chunks must have the scale {(B, 1)} of a normalising codec: scale, got {got}")


# A MusicGen


def parts(text: Any, decoder: Any, codec: Any) -> None:
    """Configurations of three parts that fit together."""
    for name, config, kind in (
        ("text", text, "T5Config"), ("decoder", decoder, "DecoderConfig"), ("codec", codec, "EncodecConfig"),
    ):  # fmt: skip
        if kind not in (base.__name__ for base in type(config).__mro__):
            raise ValueError(f"{name} must be a {kind}, got {shown(config)}")
    most = decoder.channels * codec.codebooks
    rules = (
        (decoder, "text_width", decoder.text_width == text.width, f"T5Config.width {text.width}"),
        (decoder, "codebooks", decoder.codebooks <= most, f"at most {codec.codebooks} a channel"),
        (codec, "channels", codec.channels == 1, "1"),  # the two sides of stereo are coded separately, in mono
        (codec, "normalize", not codec.normalize, "False"),
        (codec, "chunk_seconds", codec.chunk_seconds is None, "None"),
    )
    require((f"{type(part).__name__}.{name}", holds, must, getattr(part, name)) for part, name, holds, must in rules)


def one_of(name: str, got: Any, allowed: Collection[Any]) -> None:
    """One of a few values."""
    if got not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {shown(got)}")


def generation_options(options: Any) -> None:
    """GenerationOptions with possible values. Numpy's numbers become Python's in the options."""
    for field in fields(options):
        object.__setattr__(options, field.name, as_python(getattr(options, field.name)))
    o = options

    def number(value: Any, above: float = -math.inf, most: float = math.inf) -> bool:
        return is_number(value) and above < value <= most

    def whole(value: Any, least: int) -> bool:
        return type(value) is int and value >= least

    require(
        (name, holds, must, getattr(o, name))
        for name, holds, must in (
            ("seconds", o.seconds is None or o.frames is None, "None where frames are given"),
            ("seconds", o.seconds is None or number(o.seconds, 0), "above 0"),
            ("seconds", o.seconds is None or number(o.seconds, 0, MAX_SECONDS), f"at most {MAX_SECONDS}"),
            ("frames", o.frames is None or whole(o.frames, 1), "a whole number above 0"),
            ("guidance_scale", number(o.guidance_scale) and abs(o.guidance_scale) < math.inf, "a finite number"),
            *sampling(o.temperature, o.guidance_scale),
            ("top_k", whole(o.top_k, 0), "a whole number from 0, which keeps all"),
            ("top_p", number(o.top_p, 0, 1), "above 0 and at most 1, which keeps all"),
            ("min_p", is_number(o.min_p) and 0 <= o.min_p <= 1, "from 0, which keeps all, to 1"),
            ("greedy", type(o.greedy) is bool, "True or False"),
            ("pattern", type(o.pattern) is str and o.pattern in ("delay", "parallel"), "'delay' or 'parallel'"),
            ("max_bytes", whole(o.max_bytes, 1), "a whole number above 0"),
            ("max_text_tokens", whole(o.max_text_tokens, 1), "a whole number above 0"),
        )
        if name not in LEFT_OPEN or getattr(o, name) is not None
    )


def sampling(temperature: Any, guidance_scale: Any) -> tuple[tuple[str, bool, str], ...]:
    """The rules (name, whether it holds, what it must be) under which logits stay finite in fp32."""
    most = f"from {-MAX_GUIDANCE:g} to {MAX_GUIDANCE:g}, beyond which fp32 overflows"
    least = f"from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, beyond which fp32 overflows"
    return (
        ("temperature", is_number(temperature) and temperature > 0, "above 0"),
        ("temperature", is_number(temperature) and MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE, least),
        ("guidance_scale", is_number(guidance_scale) and abs(guidance_scale) <= MAX_GUIDANCE, most),
    )


def on_device(name: str, device: torch.device, *tensors: Tensor) -> None:
    """Tensors on the model's device."""
    for tensor in tensors:
        if tensor.device != device:
            raise ValueError(f"{name} must be on the model's device {device}, got {tensor.device}")


def text_ids(tokens: Tensor, mask: Tensor, vocab_size: int, device: torch.device, max_text_tokens: int) -> None:
    """Ids and mask, both (B, L), on the model's device, not empty and of at most `max_text_tokens`."""
    if tokens.dim() != 2 or tokens.shape != mask.shape or tokens.numel() == 0:
        got = f"{tuple(tokens.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"text ids and mask must both be (B, L) and not empty, got {got}")
    text_length(tokens.shape[1], max_text_tokens)
    on_device("text", device, tokens, mask)
    ids(tokens, vocab_size)


def encoded_text(states: Tensor, mask: Tensor, width: int, device: torch.device) -> None:
    """What encode_text() returns: states (B, L, E) and mask (B, L), not empty, on the model's device."""
    dense("text states", states)
    dense("text mask", mask)
    shape = (*mask.shape, width)
    if mask.dim() != 2 or mask.numel() == 0 or states.shape != shape or not states.is_floating_point():
        got = f"{states.dtype} {tuple(states.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"text states must be floating point (B, L, {width}) with a mask (B, L), got {got}")
    on_device("text", device, states, mask)


def strings(text: Any, tokenizer: Any) -> None:
    """A list of strings, or of None for rows without text; and a tokenizer, if there is any string."""
    rows = text if isinstance(text, Sequence) and not isinstance(text, str | bytes) else ()
    if not rows or not all(row is None or isinstance(row, str) for row in rows):
        raise ValueError(f"text must be a non-empty list of strings, or a pair of ids and mask, got {shown(text)}")
    if tokenizer is None and any(row is not None for row in text):
        raise ValueError(
            "text must be a pair of ids and mask, or None: this model has no tokenizer "
            "(put the spiece.model or tokenizer.json of its text encoder into its directory)"
        )


def rows(name: str, got: int, must: int, of: str) -> None:
    """As many rows (`got`) as something else has (`must`, called `of`)."""
    if got != must:
        raise ValueError(f"{name} must have a row for each of the {must} {of}, got {got}")


def scored(cells: Tensor) -> None:
    """The cells (B, K, S) that a loss scores: at least one of every codebook."""
    if not cells.any(2).any(0).all():
        raise ValueError("codes must hold a code of every codebook, got only padding")


def as_text_ids(text: Any, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """A pair of ids and mask as tensors; None for a text that is not given as a pair of tensors or arrays."""
    if not isinstance(text, tuple) or len(text) != 2 or not all(isinstance(p, Tensor) or is_array(p) for p in text):
        return None
    return as_tensor("text", text[0], device), as_tensor("text", text[1], device)


def as_audio_of(model: Any, wave: Any, rate: Any) -> Tensor:
    """Audio (B, C, N) at the model's sampling rate, as the codec takes it: in the codec's dtype, on its device. It may
    come from the codec's or the model's device."""
    channels, book = model.decoder.config.channels, model.codec.quantizer.codebooks
    if as_python(rate) != model.sampling_rate:
        must = f"the model's {model.sampling_rate} Hz (audio.resample gets there)"
        raise ValueError(f"sampling_rate must be {must}, got {shown(rate)}")
    wave = as_audio(wave, book.device)
    on_device("audio", book.device if wave.device == book.device else model.device, wave)
    audio(wave, channels)
    return wave.to(book)


def as_codes_of(model: Any, given: Any, padded: bool = False) -> Tensor:
    """Codes (B, K, T) that decoder and codec have, as int64. They may be on the model's device or its codec's.
    padded: numbers below 0 are allowed, and mean that there is no code."""
    K, book = len(model.delays), model.codec.quantizer.codebooks
    end = min(model.decoder.config.vocab_size, model.codec.config.codebook_size)
    given = as_codes(given, model.device)
    on_device("codes", book.device if given.device == book.device else model.device, given)
    codes(given.clamp(min=0) if padded and given.dtype in WHOLE else given, K, K, end)
    return given


def as_prompt(model: Any, prompt: Any, frames: int) -> tuple[list[Tensor], int | None]:
    """A prompt in any of its forms, as a list of batches of codes, and None; or of audio, and its sampling rate. None
    of them may be longer than the clip's `frames`."""
    if prompt is None:
        return [], None
    rows, rate = prompt, None
    if isinstance(prompt, tuple) and len(prompt) == 2 and not isinstance(prompt[1], Tensor) and not is_array(prompt[1]):
        rows, rate = prompt[0], as_python(prompt[1])
        if not is_number(rate):
            raise ValueError(
                f"prompt must be codes, or a pair of audio and its sampling rate, got the rate {shown(rate)}"
            )
    whole = isinstance(rows, Tensor) or is_array(rows)
    batch = [rows] if whole else rows
    if not isinstance(batch, Sequence) or isinstance(batch, str | bytes):
        raise ValueError(f"prompt must be tensors of codes, or a pair of audio and its rate, got {shown(prompt)}")
    if not batch:
        raise ValueError("prompt must have a row or more, got none")
    tensors = [as_tensor("codes" if rate is None else "audio", each, model.device) for each in batch]
    parts = []
    for part in tensors if whole else [tensor[None] for tensor in tensors]:
        parts.append(as_codes_of(model, part) if rate is None else as_audio_of(model, part, rate))
        length = part.shape[-1] if rate is None else math.ceil(part.shape[-1] / model.codec.config.hop)
        if length > frames:
            raise ValueError(f"prompt must not be longer than the clip's {frames} frames, got {length}")
    return parts, rate


def as_seconds(given: Any, half: float) -> float:
    """A time in seconds of half a frame or more, not longer than MAX_SECONDS."""
    given = as_python(given)
    if not is_number(given) or not half <= given < math.inf:
        raise ValueError(f"seconds must be finite and at least half a frame, {half}, got {shown(given)}")
    if given > MAX_SECONDS:
        raise ValueError(f"seconds must be at most {MAX_SECONDS}, got {shown(given)}")
    return float(given)


def coded(sides: Sequence[Tensor], vocab_size: int) -> None:
    """Codes of audio, per side, that the decoder has, too: its vocab_size may be below the codec's codebook_size."""
    if not traced() and (most := max(int(side.max()) for side in sides)) >= vocab_size:
        raise ValueError(f"audio must be coded below the decoder's vocab_size {vocab_size}, got code {most}")


def generators(generator: Any, rows: int, device: torch.device) -> None:
    """None, a torch.Generator on the model's device, or a list of different ones, one for each row."""
    if generator is None:
        return
    each = [generator] if isinstance(generator, Generator) else generator
    if not isinstance(each, Sequence) or not all(isinstance(own, Generator) for own in each):
        raise ValueError(f"generator must be a torch.Generator or a list of them, one a row, got {shown(generator)}")
    if len(each) != rows and each is generator:
        raise ValueError(f"generator must be one, or one for each of the {rows} rows, got {len(each)}")
    if len({id(own) for own in each}) < len(each):
        raise ValueError(
            "generator must be another one for each row, got one in several rows, which would share its draws"
        )
    for own in each:
        if own.device.type != device.type:
            raise ValueError(f"generator must be on the model's device {device}, got {own.device}")
