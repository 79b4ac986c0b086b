"""One fixed input, which depends on the sizes of a model alone."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import delay
from ..encodec import EncodecConfig
from ..model import MusicGen

CAPTIONS = ("a slow piano over soft rain, warm and quiet", "fast drums")
TOKENS = 11  # of a text where there is no tokenizer


@dataclass(frozen=True)
class Inputs:
    """What every implementation is given.

    audio: (1, C, N) at the codec's rate. codec_codes: (1, K_codec, T), to be decoded.
    Of a MusicGen, not of an EnCodec alone: captions: B strings; ids, mask: (B, L), right padded, and 1 where there is
    text; codes: (B, K, T); delays: K steps; table: (B, K, S), what the decoder reads: a column of special tokens (V),
    then delayed codes. guidance, temperature, top_k and sampling_seed: how codes are decided, greedy ones with guidance
    alone.
    """

    audio: Tensor
    codec_codes: Tensor
    captions: tuple[str, ...] = ()
    ids: Tensor | None = None
    mask: Tensor | None = None
    codes: Tensor | None = None
    table: Tensor | None = None
    delays: tuple[int, ...] = ()
    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int = 50
    sampling_seed: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors among its fields, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def numbers(self) -> dict[str, Any]:
        """The other fields, by name, as JSON has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: value for name, value in values.items() if not isinstance(value, Tensor) and value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def to(self, device: torch.device | str) -> "Inputs":
        """The same on another device."""
        moved = {name: value.to(device) for name, value in self.tensors().items()}
        return Inputs(**{field.name: moved.get(field.name, getattr(self, field.name)) for field in fields(self)})


def for_codec(config: EncodecConfig, frames: int) -> Inputs:
    """Noise that grows louder, and random codes; of one sample less than whole frames, so that the end is padded."""
    generator = torch.Generator().manual_seed(0)
    audio = torch.rand(1, config.channels, config.hop * frames - 1, generator=generator) * 2 - 1
    audio = audio * torch.linspace(0.05, 1, audio.shape[-1])
    codes = torch.randint(0, config.codebook_size, (1, config.codebooks, frames), generator=generator)
    return Inputs(audio, codes)


def for_model(model: MusicGen, frames: int) -> Inputs:
    """Captions, or random ids where the model has no tokenizer, and random codes. The second row's text is shorter."""
    generator = torch.Generator().manual_seed(1)
    vocab, c = model.text_encoder.config.vocab_size, model.decoder.config
    if model.tokenizer is not None:
        ids, mask = model.tokenizer(list(CAPTIONS))
    else:
        mask = (torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS // 2]])).long()
        ids = torch.randint(min(3, vocab - 1), vocab, mask.shape, generator=generator) * mask
    # Codes that the codec has too: a decoder may know more of them.
    V = min(c.vocab_size, model.codec.config.codebook_size)
    codes = torch.randint(0, V, (len(ids), c.codebooks, frames), generator=generator)
    table = F.pad(delay.apply(codes, c.delays, fill=c.vocab_size), (1, 0), value=c.vocab_size)[..., :-1]
    codec = for_codec(model.codec.config, frames)
    return Inputs(
        codec.audio, codec.codec_codes, CAPTIONS, ids.cpu(), mask.long().cpu(), codes, table, c.delays,
        top_k=min(50, c.vocab_size),
    )  # fmt: skip
