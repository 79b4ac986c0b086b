"""The stages of transformers' models, 4.57 to 5.x, taken at its public doors."""

import inspect
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .. import delay
from ..text import Tokenizer
from .inputs import Inputs
from .ours import Stage, distances, layers, scale


def load(path: str | PathLike[str], dtype: torch.dtype, device: torch.device | str, codec_alone: bool) -> Any:
    """transformers' model of a directory in its layout, with what its release does by default. Raises as version()
    and transformers do."""
    transformers = _library()
    kind = transformers.EncodecModel if codec_alone else transformers.MusicgenForConditionalGeneration
    model = kind.from_pretrained(str(path), dtype=dtype, local_files_only=True).to(device).eval()
    for parameter in model.parameters():
        # It leaves weights where the file happens to have them; BLAS sums a matrix that is not aligned otherwise.
        parameter.data = parameter.data.clone()
    return model


def version() -> str:
    """Its name and release. Raises ModuleNotFoundError that says what to install."""
    return f"transformers {_library().__version__}"


def tokenizer(path: PathLike[str] | str) -> Any:
    """Its tokenizer of a directory; None where the directory has none."""
    if not Tokenizer.lies_in(Path(path)):
        return None
    return _library().AutoTokenizer.from_pretrained(str(path), local_files_only=True)


def _library() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to compare with transformers, install it: pip install transformers") from None
    return transformers


@torch.no_grad()
def of_model(model: Any, tokenizer: Any, given: Inputs) -> Iterator[Stage]:
    """The stages of a MusicgenForConditionalGeneration, see recording.STAGES."""
    ids, mask, table, codes = (cast(Tensor, x) for x in (given.ids, given.mask, given.table, given.codes))
    B, K, S = table.shape
    if tokenizer is not None:
        yield "text.ids", tokenizer(list(given.captions), padding=True, return_tensors="pt").input_ids
    states = model.text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    yield from layers("text", [hidden * mask[..., None] for hidden in states])
    projection = getattr(model, "enc_to_dec_proj", None)  # it has none where the widths are the same
    memory = (states[-1] if projection is None else projection(states[-1])) * mask[..., None]
    yield "memory", memory

    decoder, special = model.decoder, model.decoder.config.vocab_size
    start = torch.full((B * K, 1), special, device=codes.device)
    begun = torch.cat([start, codes.flatten(0, 1)], dim=1)
    _, pattern = decoder.build_delay_pattern_mask(begun, special, 1 + codes.shape[2] + max(given.delays))
    yield "delay", pattern.view(B, K, -1)
    read = {"encoder_hidden_states": memory, "encoder_attention_mask": mask}
    out = decoder(table.flatten(0, 1), **read, output_hidden_states=True, use_cache=False)
    yield from layers("decoder", out.hidden_states)
    yield "decoder.logits", out.logits.view(B, K, S, -1)
    # Without text it reads zeros under a mask of zeros, as in its own generate().
    both = {"encoder_hidden_states": torch.cat([memory, torch.zeros_like(memory)])}
    both["encoder_attention_mask"] = torch.cat([mask, torch.zeros_like(mask)])
    null = {name: value[B:] for name, value in both.items()}
    yield "decoder.logits_without_text", decoder(table.flatten(0, 1), **null, use_cache=False).logits.view(B, K, S, -1)
    cached = torch.cat([*_cached(decoder, table.repeat(2, 1, 1), both)], dim=2)
    yield "decoder.logits_cached", cached
    yield "guided.logits", guided(cached.flatten(0, 1).float(), given.guidance).view(B, K, S, -1)

    for name, drawn in (("greedy", False), ("sampled", True)):
        settings = {"temperature": given.temperature, "top_k": given.top_k, "top_p": 1.0} if drawn else {}
        codes, logits = _generated(model, given, do_sample=drawn, **settings)
        yield f"{name}.logits", delay.undo(logits, given.delays)
        yield f"{name}.codes", codes

    yield from of_codec(model.audio_encoder, given)
    sides = cast(Tensor, given.codes)
    channels = decoder.config.audio_channels
    split = [model.audio_encoder.decode(sides[None, :, c::channels], [None]).audio_values for c in range(channels)]
    yield "audio", torch.cat(split, dim=1)


def _cached(decoder: Any, table: Tensor, read: dict[str, Tensor]) -> Iterator[Tensor]:
    # The cache has another name from 5.24 on.
    name = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    cache = None
    for column in table.split(1, dim=2):
        out = decoder(column.flatten(0, 1), **read, use_cache=True, **{name: cache})
        cache = getattr(out, name)
        yield out.logits.view(*table.shape[:2], 1, -1)


def guided(logits: Tensor, guidance: float) -> Tensor:
    """transformers' guidance of (2 * B * K, ..., V), whose second half has no text."""
    from transformers.generation.logits_process import ClassifierFreeGuidanceLogitsProcessor

    processor: Any = ClassifierFreeGuidanceLogitsProcessor(guidance)
    half = len(logits) // 2
    return cast(Tensor, processor(torch.zeros(half, 1, dtype=torch.long, device=logits.device), logits))


def _generated(model: Any, given: Inputs, **settings: Any) -> tuple[Tensor, Tensor]:
    """Codes (B, K, T) and guided logits (B, K, S, V) of a generation.

    generate() draws from the global generator, which is seeded. It returns audio alone: the codes are those that it
    hands to its codec, channel by channel.
    """
    ids, codes = cast(Tensor, given.ids), cast(Tensor, given.codes)
    B, K, T = codes.shape
    sides: list[Tensor] = []
    decode = model.audio_encoder.decode

    def watched(codes: Tensor, *rest: Any, **kept: Any) -> Any:
        sides.append(codes[0])
        return decode(codes, *rest, **kept)

    model.audio_encoder.decode = watched
    try:
        torch.manual_seed(given.sampling_seed)
        out = model.generate(
            input_ids=ids, attention_mask=given.mask, guidance_scale=given.guidance,
            max_new_tokens=T + max(given.delays), return_dict_in_generate=True, output_logits=True, **settings,
        )  # fmt: skip
    finally:
        del model.audio_encoder.decode
    logits = torch.stack([guided(step.float(), given.guidance) for step in out.logits], dim=1)  # (B * K, S, V)
    return torch.stack(sides, dim=2).flatten(1, 2), logits.unflatten(0, (B, K))


@torch.no_grad()
def of_codec(model: Any, given: Inputs) -> Iterator[Stage]:
    """The stages of an EncodecModel."""
    c = model.config
    audio = given.audio.to(next(model.parameters()).dtype)
    latents = model.encoder(audio[..., : c.chunk_length] if c.chunk_length else audio)
    yield "codec.latents", latents
    encoded = model.encode(audio, bandwidth=c.target_bandwidths[-1])
    codes = encoded.audio_codes.movedim(0, 2).flatten(2, 3)
    if not (c.chunk_length or c.normalize):
        books = torch.stack([layer.codebook.embed for layer in model.quantizer.layers])
        yield "codec.distances", distances(books, latents, codes)
    yield "codec.codes", codes
    yield "codec.quantized", model.quantizer.decode(given.codec_codes.transpose(0, 1))
    loudness = scale(given, audio) if c.normalize else None
    yield "codec.audio", model.decode(given.codec_codes[None], [loudness]).audio_values
