"""The parts of a MusicGen by transformers' names: each wraps a module of ours and speaks (B * K, T).

B batch, K codebooks, T delayed steps, P cached steps, L text tokens, E decoder width, V codes per codebook, N samples.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks
from ..attention import KVCache, Trace
from ..decoder import Decoder
from ..encodec import Chunk, Encodec
from ..model import FREE
from ..t5 import T5Encoder
from . import generation
from .configs import EncodecConfig, GenerationConfig, MusicgenDecoderConfig, T5Config, alone, to_ours
from .loading import backend, kernels, load_part, read_attention, read_generation, save_part
from .outputs import ModelOutput


class Cache:
    """Keys and values of past steps for forward(): grows with every call, and gradients pass through it.

    layers: (keys, values) of each, (B, H, P, D); cross: those of the text, (B, H, L, D). generate() has the decoder's
    own, which is allocated once.
    """

    def __init__(self, decoder: Decoder, batch: int, memory: Tensor | None = None, memory_mask: Tensor | None = None):
        text = decoder.new_cache(batch, 1, memory, memory_mask)  # for the keys and values of the text alone
        self.batch, self.length = batch, 0
        self.cross, self.cross_mask = text.cross, text.cross_mask
        self.layers: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder calls with the new steps of one layer; returns all its steps so far."""
        if layer == len(self.layers):
            self.layers.append((k.contiguous(), v.contiguous()))
        else:
            past_k, past_v = self.layers[layer]
            self.layers[layer] = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        return self.layers[layer]

    def get_seq_length(self) -> int:
        """P, the steps so far."""
        return self.length

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[Tensor, ...]:
        return (*self.layers[layer], *(self.cross[layer] if self.cross else ()))

    @classmethod
    def of(cls, decoder: Decoder, cache: KVCache) -> "Cache":
        """A view of the decoder's own cache."""
        made = cls(decoder, cache.batch)
        made.length, made.cross, made.cross_mask = cache.length, cache.cross, cache.cross_mask
        made.layers = [
            (k[:, :, : cache.length], v[:, :, : cache.length]) for k, v in zip(cache.keys, cache.values, strict=True)
        ]
        return made


class PreTrainedModel(nn.Module):
    """What all models here share. attention: "sdpa", "eager" or "flash_attention_2"."""

    config: Any
    attention: str

    @property
    def device(self) -> torch.device:
        return next(tensor.device for tensor in [*self.parameters(), *self.buffers()])

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that stay in floating point under load_in_8bit, too."""
        return next(tensor.dtype for tensor in self.parameters())

    def num_parameters(self, only_trainable: bool = False) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def set_attn_implementation(self, attn_implementation: Any) -> None:
        """Choose the attention: one for all parts, or by part. Raises ValueError for one that there is not."""
        chosen = read_attention(attn_implementation)
        for part in self.modules():
            if isinstance(part, PreTrainedModel):
                part.attention = chosen["text_encoder" if isinstance(part, T5EncoderModel) else "decoder"]


class T5EncoderModel(PreTrainedModel):
    """The text encoder: text ids to one vector a token."""

    config_class = T5Config

    def __init__(self, config: T5Config, module: T5Encoder | None = None, attention: str = "sdpa"):
        super().__init__()
        self.config, self.attention = config, attention
        self.encoder = T5Encoder(to_ours(alone(config))[0]) if module is None else module

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "T5EncoderModel":
        """Of a directory of a T5 or of a whole MusicGen; see load_part() for the arguments and what raises."""
        module, config, loading, _ = load_part(name, "t5", given)
        return cls(config, module, loading.attention["text_encoder"]).eval()

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        save_part(self.encoder, self.config, path)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """last_hidden_state (B, L, E), hidden_states, attentions of input_ids or inputs_embeds, one of them.

        Attentions are real with SDPA, too.
        """
        trace = Trace(weights=bool(output_attentions)) if output_attentions or output_hidden_states else None
        with kernels(self.attention):
            states = self.encoder(
                input_ids, attention_mask, embeddings=inputs_embeds, backend=backend(self.attention), trace=trace
            )
        out = ModelOutput(
            last_hidden_state=states,
            hidden_states=tuple(trace.hidden) if trace and output_hidden_states else None,
            attentions=tuple(trace.self_weights) if trace and output_attentions else None,
        )
        return out if return_dict is None or return_dict else out.to_tuple()


class EncodecModel(PreTrainedModel):
    """The codec. encode() and decode() have transformers' frame dimension, of which there is one in a MusicGen."""

    config_class = EncodecConfig

    def __init__(self, config: EncodecConfig, module: Encodec | None = None):
        super().__init__()
        self.config, self.attention = config, "eager"
        self.codec = Encodec(to_ours(alone(config))[2]) if module is None else module

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "EncodecModel":
        """Of a directory of an EnCodec or of a whole MusicGen; see load_part() for the arguments and what raises."""
        module, config, _, _ = load_part(name, "encodec", given)
        return cls(config, module).eval()

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        save_part(self.codec, self.config, path)

    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """audio_codes (pieces, B, K, T), audio_scales and last_frame_pad_length, by which the last piece is shorter.

        input_values: (B, C, N), one piece, unless the codec codes long audio in pieces. Padding, where the mask (B, N)
        or (B, C, N) is 0, is coded as silence. Raises ValueError as Encodec.encode() does, and where other pieces than
        the last are short, too, as where they overlap by half: nothing would say by how much.
        """
        audio = masked(input_values, padding_mask).to(self.dtype)
        books = None if bandwidth is None else self.codec.config.codebooks_for(bandwidth)
        chunks = self.codec.encode(audio, books)
        lengths = [chunk.codes.shape[-1] for chunk in chunks]
        if len({*lengths[:-1]}) > 1:
            must = "of a length that leaves only the last piece short"
            got = f"{audio.shape[-1]} samples, whose pieces have {lengths} frames"
            raise ValueError(f"input_values must be {must}, got {got}: pad the audio, or code it in parts")
        short = lengths[0] - lengths[-1]
        codes = torch.stack([F.pad(c.codes, (0, lengths[0] - c.codes.shape[-1])) for c in chunks])
        out = ModelOutput(audio_codes=codes, audio_scales=[c.scale for c in chunks], last_frame_pad_length=short)
        return out if return_dict is None or return_dict else out.to_tuple()

    def decode(
        self,
        audio_codes: Tensor,
        audio_scales: Any = None,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int = 0,
    ) -> Any:
        """audio_values (B, C, N) of audio_codes (1, B, K, T); a padding mask (B, N) cuts it to N samples."""
        if audio_codes.dim() != 4:
            raise ValueError(f"audio_codes must be (frames, B, K, T), got {tuple(audio_codes.shape)}")
        scales = [None] * len(audio_codes) if audio_scales is None else audio_scales
        if len(scales) < len(audio_codes):
            raise ValueError(f"audio_scales must be one for each of {len(audio_codes)} frames, got {len(scales)}")
        chunks = [Chunk(codes, scale) for codes, scale in zip(audio_codes, scales, strict=False)]
        if last_frame_pad_length:
            last = chunks[-1]
            chunks[-1] = Chunk(last.codes[..., :-last_frame_pad_length], last.scale)
        audio = self.codec.decode(chunks)
        if padding_mask is not None:
            audio = audio[..., : padding_mask.shape[-1]]
        out = ModelOutput(audio_values=audio)
        return out if return_dict is None or return_dict else out.to_tuple()

    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """audio_codes, and audio_values (B, C, N): encode(), then decode()."""
        coded = self.encode(input_values, padding_mask, bandwidth)
        audio = self.decode(
            coded.audio_codes, coded.audio_scales, last_frame_pad_length=coded.last_frame_pad_length
        ).audio_values[..., : input_values.shape[-1]]
        out = ModelOutput(audio_codes=coded.audio_codes, audio_values=audio)
        return out if return_dict is None or return_dict else out.to_tuple()


def masked(audio: Tensor, mask: Tensor | None) -> Tensor:
    """Audio (B, C, N) with zeros where the mask, (B, N), (B, 1, N) or (B, C, N), is 0."""
    if audio.dim() != 3:
        raise ValueError(f"input_values must be (B, C, N), got {tuple(audio.shape)}")
    if mask is None:
        return audio
    mask = mask[:, None] if mask.dim() == 2 else mask
    if mask.shape[0] != len(audio) or mask.shape[1] not in (1, audio.shape[1]) or mask.shape[-1] != audio.shape[-1]:
        raise ValueError(f"padding_mask must be (B, N) of input_values {tuple(audio.shape)}, got {tuple(mask.shape)}")
    return audio * mask.bool()


def unflatten(name: str, ids: Tensor, codebooks: int) -> Tensor:
    """transformers' rows (B * K, T), in which row b * K + k is codebook k of clip b, as (B, K, T)."""
    if ids.dim() == 3 and ids.shape[1] == codebooks:
        return ids
    if ids.dim() != 2 or len(ids) % codebooks:
        raise ValueError(f"{name} must be (B * {codebooks}, T) or (B, {codebooks}, T), got {tuple(ids.shape)}")
    return rearrange(ids, "(b k) t -> b k t", k=codebooks)


class _Run:
    """One pass of the decoder: what MusicgenModel and MusicgenForCausalLM have in common."""

    def __init__(self, decoder: Decoder, attention: str, use_cache: bool, given: Mapping[str, Any]):
        codes, embeds = given["input_ids"], given["inputs_embeds"]
        if codes is not None and embeds is not None:
            raise ValueError("input_ids and inputs_embeds (decoder_... in the whole model): give one, got both")
        if codes is None and embeds is None:
            raise ValueError("input_ids or inputs_embeds (decoder_... in the whole model): give one, got none")
        codes = None if codes is None else unflatten("input_ids", codes, decoder.config.codebooks)
        memory, mask, past = given["encoder_hidden_states"], given["encoder_attention_mask"], given["past_key_values"]
        if memory is None and past is None and mask is not None:
            raise ValueError("encoder_attention_mask must come with encoder_hidden_states, got it alone")
        if past is not None and not isinstance(past, Cache):
            raise ValueError(f"past_key_values must be those that forward() returned, got {type(past).__name__}")
        self.weights, self.hidden = bool(given["output_attentions"]), bool(given["output_hidden_states"])
        self.trace = Trace(weights=self.weights)
        self.cache: Cache | None = past
        batch = len(codes if codes is not None else embeds)
        if past is None and use_cache:
            self.cache = Cache(decoder, batch, memory, mask)
        text = {} if self.cache is not None else {"memory": memory, "memory_mask": mask if memory is not None else None}
        with kernels(attention):
            self.logits: Tensor = decoder(
                codes,
                cache=cast(KVCache | None, self.cache),  # it has all that the decoder asks of one
                embeddings=embeds,
                step_mask=given["attention_mask"],
                backend=backend(attention),
                self_head_mask=given["head_mask"],
                cross_head_mask=given["cross_attn_head_mask"],
                trace=self.trace,
                **text,
            )

    def seen(self) -> dict[str, Any]:
        """What was asked to be shown."""
        cross = tuple(self.trace.cross_weights)
        return {
            "hidden_states": tuple(self.trace.hidden) if self.hidden else None,
            "attentions": tuple(self.trace.self_weights) if self.weights else None,
            "cross_attentions": cross if self.weights and cross else None,
        }


INPUTS = """input_ids: (B * K, T) or (B, K, T), delayed; or inputs_embeds (B, T, E) in place of their sum.
        attention_mask: (B, P + T), 1 for the steps that may be attended to.
        encoder_hidden_states, encoder_attention_mask: text (B, L, E), already projected, and its mask (B, L).
        head_mask, cross_attn_head_mask: (layers, heads) factors; transformers 4.57 honours them in eager attention
        alone, 5 drops them without a word; here they work in both.
        past_key_values: those of the call before. use_cache: default config.use_cache, in training False."""


class MusicgenModel(PreTrainedModel):
    """The decoder without its heads."""

    config_class = MusicgenDecoderConfig

    def __init__(self, config: MusicgenDecoderConfig, module: Decoder | None = None, attention: str = "sdpa"):
        super().__init__()
        self.config, self.attention = config, attention
        self.decoder = Decoder(to_ours(alone(config))[1]) if module is None else module

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "MusicgenModel":
        """As MusicgenForCausalLM.from_pretrained()."""
        module, config, loading, _ = load_part(name, "musicgen_decoder", given)
        return cls(config, module, loading.attention["decoder"]).eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """last_hidden_state (B, T, E), past_key_values, hidden_states, attentions, cross_attentions."""
        given = {name: value for name, value in locals().items() if name != "self"}
        cached = self.config.use_cache and not self.training if use_cache is None else use_cache
        run = _Run(self.decoder, self.attention, cached, given)
        states = run.trace.hidden[-1]
        out = ModelOutput(last_hidden_state=states, past_key_values=run.cache, **run.seen())
        return out if return_dict is None or return_dict else out.to_tuple()


CAUSAL_INPUTS = (
    "inputs",
    "input_ids",
    "attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "max_bytes",
)


class MusicgenForCausalLM(PreTrainedModel):
    """The decoder with its heads, standalone or as the .decoder of a MusicgenForConditionalGeneration."""

    config_class = MusicgenDecoderConfig

    def __init__(self, config: MusicgenDecoderConfig, module: Decoder | None = None, attention: str = "sdpa"):
        super().__init__()
        self.config, self.attention = config, attention
        self.module = Decoder(to_ours(alone(config))[1]) if module is None else module
        self.generation_config = GenerationConfig.from_model_config(config)

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "MusicgenForCausalLM":
        """Of a directory of a decoder, or of a whole MusicGen, whose decoder is really loaded (transformers leaves it
        random, and cannot take `**config`). Fields of the configuration given by name override it.

        See load_part() for the other arguments and what raises.
        """
        module, config, loading, folder = load_part(name, "musicgen_decoder", given)
        model = cls(config, module, loading.attention["decoder"]).eval()
        for key, value in read_generation(folder).items():
            setattr(model.generation_config, key, value)
        return model

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        save_part(self.module, self.config, path, self.generation_config)

    @property
    def num_codebooks(self) -> int:
        return self.module.config.codebooks

    @property
    def model(self) -> MusicgenModel:
        """The same decoder without its heads."""
        return MusicgenModel(self.config, self.module, self.attention).train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.module.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.module.heads

    def can_generate(self) -> bool:
        return True

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        self.module.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.module.gradient_checkpointing = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """loss (with labels), logits (B * K, T, V), past_key_values, hidden_states, attentions, cross_attentions.

        labels: (B, T, K), delayed by the caller, as in transformers (MusicGen.loss() delays for you); -100 and the
        special token are not scored. Without input_ids and inputs_embeds they are shifted right by one step to be them.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "labels")}
        if labels is not None and input_ids is None and inputs_embeds is None:
            given["input_ids"] = shifted(labels, self.module.config.vocab_size)
        cached = self.config.use_cache and not self.training if use_cache is None else use_cache
        run = _Run(self.module, self.attention, cached, given)
        out = ModelOutput(
            loss=None if labels is None else scored(run.logits, labels),
            logits=run.logits.flatten(0, 1),
            past_key_values=run.cache,
            **run.seen(),
        )
        return out if return_dict is None or return_dict else out.to_tuple()

    def build_delay_pattern_mask(
        self, input_ids: Tensor, pad_token_id: int, max_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """input_ids (B * K, 1 + P), the start column and a prompt, as (ids up to the first free step, pattern).

        pattern: (B * K, max_length), pad_token_id where the delay pattern has no code, the prompt where it has one, -1
        where codes are free. All -1 below 2 * K - 1 columns (K per channel), as in transformers.
        """
        codes = unflatten("input_ids", input_ids, self.num_codebooks)
        length = int(max_length if max_length is not None else self.generation_config.max_length)
        table = generation.columns(self.module.config, codes[..., 1:], length).flatten(0, 1)
        if length >= 2 * self.num_codebooks // self.module.config.channels - 1:
            table = table.masked_fill(table == self.module.config.vocab_size, pad_token_id)
            return table[:, : input_ids.shape[1]].contiguous(), table
        return input_ids, torch.full_like(table, FREE)

    @staticmethod
    def apply_delay_pattern_mask(input_ids: Tensor, decoder_pad_token_mask: Tensor) -> Tensor:
        """input_ids (B * K, T), with what the pattern (B * K, T or more) says in its place where it is not -1."""
        pattern = decoder_pad_token_mask[..., : input_ids.shape[-1]]
        return torch.where(pattern == FREE, input_ids, pattern)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        synced_gpus: bool | None = None,
        streamer: Any = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        generator: Any = None,
        max_bytes: int = checks.MAX_BYTES,
        **fields: Any,
    ) -> Any:
        """Codes (B, K, frames), the delay pattern undone, that continue input_ids (B * K, P), of text (B, L, E).

        The other arguments are those of MusicgenForConditionalGeneration.generate(). In transformers 5.23 it needs
        num_return_sequences=1 said, in 4.57 it does not work.
        """
        generation.check_fields("generate()", fields, CAUSAL_INPUTS)
        asked = generation.settle(self.generation_config, generation_config, fields)
        ids = generation.one("inputs", inputs, "input_ids", input_ids)
        memory, mask = encoder_hidden_states, encoder_attention_mask
        codes = None if ids is None else unflatten("input_ids", ids, self.num_codebooks)
        batch = next((len(given) for given in (memory, codes) if given is not None), 1)
        made = generation.run(
            self.module, self.attention, asked, batch, memory, mask, codes, attention_mask,
            generation.hooks("logits_processor", logits_processor),
            generation.hooks("stopping_criteria", stopping_criteria), streamer, generator, 0, max_bytes,
        )  # fmt: skip
        if not asked.return_dict_in_generate:
            return made.codes
        return ModelOutput(sequences=made.codes, **made.seen(Cache.of(self.module, made.cache)))


def shifted(labels: Tensor, special: int) -> Tensor:
    """Labels (B, T, K) as the inputs (B, K, T) that predict them: a step later, after a column of special tokens."""
    if labels.dim() != 3:
        raise ValueError(f"labels must be (B, T, K), got {tuple(labels.shape)}")
    codes = rearrange(labels, "b t k -> b k t")
    return F.pad(codes.masked_fill(codes == -100, special), (1, 0), value=special)[..., :-1]


def scored(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over codebooks of the mean cross entropy of labels (B, T, K) under the last T of logits (B, K, T, V)."""
    B, K, T, V = logits.shape
    if labels.dim() != 3 or (labels.shape[0], labels.shape[2]) != (B, K) or labels.shape[1] > T:
        raise ValueError(f"labels must be ({B}, 1..{T}, {K}), got {tuple(labels.shape)}")
    logits = logits[:, :, -labels.shape[1] :]
    target = labels.masked_fill(labels == V, -100)
    each = [F.cross_entropy(logits[:, k].flatten(0, 1), target[..., k].flatten()) for k in range(K)]
    return torch.stack(each).sum() / K


for kind in (MusicgenModel, MusicgenForCausalLM):
    kind.forward.__doc__ = f"{kind.forward.__doc__}\n        {INPUTS}\n"
