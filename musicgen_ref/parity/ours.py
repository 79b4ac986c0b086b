"""The stages of this package's models."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import delay
from ..attention import Trace
from ..encodec import Chunk, Encodec
from ..model import GenerationOptions, MusicGen
from ..sampling import guide
from .inputs import Inputs

Stage = tuple[str, Tensor]


@torch.no_grad()
def of_model(model: MusicGen, given: Inputs) -> Iterator[Stage]:
    """Every stage of a MusicGen, one after another: see recording.STAGES."""
    ids, mask, table = (cast(Tensor, x) for x in (given.ids, given.mask, given.table))
    B = len(ids)
    if model.tokenizer is not None:
        yield "text.ids", model.tokenizer(list(given.captions))[0]
    trace = Trace()
    model.text_encoder(ids, mask, backend=model.backend, trace=trace)
    yield from layers("text", [hidden * mask[..., None] for hidden in trace.hidden])
    memory = model.decoder.project_text(trace.hidden[-1], mask)
    yield "memory", memory

    special = model.decoder.config.vocab_size
    codes = cast(Tensor, given.codes)
    yield "delay", F.pad(delay.apply(codes, model.delays, fill=special), (1, 0), value=special)
    trace = Trace()
    logits = model.decoder(table, memory, mask, backend=model.backend, trace=trace)
    yield from layers("decoder", trace.hidden)
    yield "decoder.logits", logits
    yield "decoder.logits_without_text", model.decoder(table, backend=model.backend)
    cache = model.decoder.new_cache(2 * B, table.shape[2], memory, mask)
    both = table.repeat(2, 1, 1).split(1, dim=2)
    cached = torch.cat([model.decoder(column, cache=cache, backend=model.backend) for column in both], dim=2)
    yield "decoder.logits_cached", cached
    yield "guided.logits", guide(cached[:B].float(), cached[B:].float(), given.guidance)

    for name, greedy in (("greedy", True), ("sampled", False)):
        options = GenerationOptions(
            frames=codes.shape[2], guidance_scale=given.guidance, greedy=greedy, temperature=given.temperature,
            top_k=given.top_k, top_p=1.0,
        )  # fmt: skip
        generator = torch.Generator(model.device).manual_seed(given.sampling_seed)
        table, steps = model.generate_steps((ids, mask), options, generator=generator)
        decided = torch.stack([step.logits for step in steps], dim=2)
        yield f"{name}.logits", delay.undo(decided, model.delays)
        yield f"{name}.codes", delay.undo(table[..., 1:], model.delays)

    yield from of_codec(model.codec, given)
    yield "audio", model.decode(codes)


@torch.no_grad()
def of_codec(codec: Encodec, given: Inputs) -> Iterator[Stage]:
    """The stages of an EnCodec: each decodes or encodes the given audio or codes, not what the other made."""
    c = codec.config
    audio = given.audio.to(codec.quantizer.codebooks.dtype)
    piece = audio[..., : c.chunk] if c.chunk else audio
    latents = codec.encoder(piece)
    yield "codec.latents", latents
    codes = torch.cat([chunk.codes for chunk in codec.encode(audio, c.codebooks)], dim=2)
    if not (c.chunk or c.normalize):  # where the latents are those that were coded
        yield "codec.distances", distances(codec.quantizer.codebooks, latents, codes)
    yield "codec.codes", codes
    yield "codec.quantized", codec.quantizer.decode(given.codec_codes)
    yield "codec.audio", codec.decode([Chunk(given.codec_codes, scale(given, audio) if c.normalize else None)])


def distances(codebooks: Tensor, latents: Tensor, codes: Tensor) -> Tensor:
    """(1, K, T, V): squared distances of the codewords of (K, V, Z) from what the codes before leave of (1, Z, T)."""
    rest, measured = latents[0].t(), []
    for book, chosen in zip(codebooks, codes[0], strict=True):
        measured.append(rest.pow(2).sum(1, keepdim=True) - 2 * rest @ book.t() + book.t().pow(2).sum(0, keepdim=True))
        rest = rest - F.embedding(chosen, book)
    return torch.stack(measured)[None]


def scale(given: Inputs, like: Tensor) -> Tensor:
    """A loudness for codecs that normalise, (1, 1)."""
    return torch.full((1, 1), 0.5, device=like.device, dtype=like.dtype)


def layers(part: str, hidden: list[Tensor]) -> Iterator[Stage]:
    """Names for the states of a stack: its input, then every block's output, the last one normalised."""
    yield f"{part}.embeddings", hidden[0]
    for i, states in enumerate(hidden[1:]):
        yield f"{part}.block.{i}", states
