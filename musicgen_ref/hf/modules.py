"""The parts of a MusicGen under transformers' names: each wraps a module of ours, and has codes as (B * K, T).

B batch, K codebooks, T delayed steps, P cached steps, L text tokens, E decoder width, V codes per codebook, N samples.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import PathLike
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks, delay
from ..attention import KVCache, Trace
from ..checkpoint import huggingface, mapping, statistics
from ..decoder import Decoder
from ..encodec import Chunk, Encodec
from ..model import FREE
from ..t5 import T5Encoder
from . import generation
from .configs import EncodecConfig, GenerationConfig, MusicgenDecoderConfig, T5Config, alone, to_ours
from .initial import draw
from .loading import backend, kernels, load_part, read_attention, save_part
from .messages import check_names
from .names import Around, Slot, codec_slots, decoder_slots, same, stack_slots
from .outputs import ModelOutput

Method = TypeVar("Method", bound=Callable[..., Any])


def takes_arrays(method: Method) -> Method:
    """Let a model's method take numpy arrays where it takes tensors: each becomes one, on the model's device.

    float64, which is numpy's usual dtype, becomes float32. Raises ValueError for an array that holds no numbers.
    """

    @functools.wraps(method)
    def taken(self: Any, *given: Any, **named: Any) -> Any:
        def tensor(value: Any) -> Any:
            if type(value) in (list, tuple):
                return type(value)(map(tensor, value))
            if not checks.is_array(value):
                return value
            made = checks.as_tensor(f"an array in {method.__name__}()", value, self.device)
            return made.float() if made.dtype == torch.float64 else made

        return method(self, *map(tensor, given), **{name: tensor(value) for name, value in named.items()})

    return cast(Method, taken)


class Cache:
    """Keys and values of past steps for forward(). It grows with every call, and gradients pass through it.

    layers: (keys, values) of each layer, (B, H, P, D). cross: those of the text, (B, H, L, D). generate() uses the
    decoder's own cache instead, which is allocated once.
    """

    def __init__(self, decoder: Decoder, batch: int, memory: Tensor | None = None, memory_mask: Tensor | None = None):
        text = decoder.new_cache(batch, 1, memory, memory_mask)  # for the keys and values of the text alone
        self.batch, self.length = batch, 0
        self.cross, self.cross_mask = text.cross, text.cross_mask
        self.layers: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Called by the decoder with keys and values of the new steps in one layer; returns those of all steps."""
        if layer == len(self.layers):
            self.layers.append((k.contiguous(), v.contiguous()))
        else:
            past_k, past_v = self.layers[layer]
            self.layers[layer] = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        return self.layers[layer]

    def get_seq_length(self) -> int:
        """P, the number of past steps."""
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


class PreTrainedModel(Around):
    """The base class of all models here: a module of ours, the core, and its configuration.

    The core owns the weights. Its modules can be found, and replaced, under transformers' names. The attention is
    config._attn_implementation. config.dtype changes with to(), half() and their like.
    """

    config: Any
    config_class: Any
    main_input_name = "input_ids"
    has_heads = True  # False for the one class whose core has heads that it does not show
    _require_grads: tuple[Any, ...] = ()  # the hooks of enable_input_require_grads()
    _keys_to_ignore_on_save = None  # a Trainer reads it where a file lacks a tensor, such as one that is tied

    def __init__(self, config: Any, core: nn.Module, slots: Mapping[str, Slot]):
        super().__init__(core, slots, grows=True)
        self.config = config
        self.tell_dtype()

    @property
    def device(self) -> torch.device:
        return next(tensor.device for tensor in [*self.core.parameters(), *self.core.buffers()])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; under load_in_8bit, of those that stay in floating point."""
        return next(tensor.dtype for tensor in self.core.parameters())

    @property
    def attention(self) -> str:
        """ "sdpa", "eager" or "flash_attention_2"."""
        return str(self.config._attn_implementation)

    def tell_dtype(self) -> None:
        """Write the weights' dtype into the configuration."""
        self.config.dtype = self.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.tell_dtype()
        return self

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        embeddings = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)] if exclude_embeddings else []
        left_out = {id(weight) for weight in embeddings}
        counted = (p for p in self.parameters() if p.requires_grad or not only_trainable)
        return sum(p.numel() for p in counted if id(p) not in left_out)

    def set_attn_implementation(self, attn_implementation: Any) -> None:
        """Choose the attention: one for all parts, or a dictionary by part. Raises ValueError for an unknown one."""
        chosen = read_attention(attn_implementation)
        for part in self.modules():
            if isinstance(part, T5EncoderModel):
                part.config._attn_implementation = chosen["text_encoder"]
            elif isinstance(part, (MusicgenModel, MusicgenForCausalLM)):
                part.config._attn_implementation = chosen["decoder"]

    @classmethod
    def can_generate(cls) -> bool:
        return hasattr(cls, "generate")

    def enable_input_require_grads(self) -> None:
        """Make the outputs of the embeddings require gradients, which checkpointed layers need where all before them is
        frozen."""
        self.disable_input_require_grads()
        each = [module for name, module in self.core.named_modules() if isinstance(module, nn.Embedding)
                and not name.endswith("relative_bias")]  # fmt: skip
        self._require_grads = tuple(module.register_forward_hook(_require_grad) for module in each)

    def disable_input_require_grads(self) -> None:
        for hook in self._require_grads:
            hook.remove()
        self._require_grads = ()


def _require_grad(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.requires_grad_(True)


class T5EncoderModel(PreTrainedModel):
    """The text encoder: text ids to one vector a token."""

    config_class = T5Config
    core: T5Encoder
    encoder: Any

    def __init__(self, config: T5Config, core: T5Encoder | None = None):
        core = draw(T5Encoder(to_ours(alone(config))[0]), config) if core is None else core
        super().__init__(config, core, self._slots(core))

    def _slots(self, core: T5Encoder) -> dict[str, Slot]:
        return same(core, shared="embed") | {"encoder": Slot(core, "", self._stack)}

    def _stack(self, core: T5Encoder) -> "T5Stack":
        return T5Stack(self.config, core)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **given: Any) -> Any:
        """Load a directory of a T5 or of a whole MusicGen; arguments and errors are those of load_part()."""
        return load_part(cls, pretrained_model_name_or_path, given)

    save_pretrained = save_part

    def get_input_embeddings(self) -> nn.Module:
        return self.core.embed

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        out = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        # transformers has the embedding under two names. The second is a copy: .safetensors files share no memory.
        tied = f"{prefix}encoder.embed_tokens.weight"
        if tied in out and not keep_vars:
            out[tied] = out[tied].clone()
        return out

    @takes_arrays
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """last_hidden_state (B, L, E), hidden_states and attentions, of either input_ids or inputs_embeds.

        Attentions can also be had with SDPA.
        """
        if "encoder" in self._modules:
            return self.encoder(
                input_ids, attention_mask, inputs_embeds, output_attentions, output_hidden_states, return_dict
            )
        output_attentions, output_hidden_states = wanted(self.config, output_attentions, output_hidden_states)
        trace = Trace(weights=output_attentions) if output_attentions or output_hidden_states else None
        with kernels(self.attention):
            states = self.core(
                input_ids, attention_mask, embeddings=inputs_embeds, backend=backend(self.attention), trace=trace
            )
        out = ModelOutput(
            last_hidden_state=states,
            hidden_states=tuple(trace.hidden) if trace and output_hidden_states else None,
            attentions=tuple(trace.self_weights) if trace and output_attentions else None,
        )
        return out if return_dict is None or return_dict else out.to_tuple()


class T5Stack(T5EncoderModel):
    """The .encoder of a T5EncoderModel: the same, with another name for the embedding."""

    def _slots(self, core: T5Encoder) -> dict[str, Slot]:
        return stack_slots(core)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        return Around.state_dict(self, *args, destination=destination, prefix=prefix, keep_vars=keep_vars)


def wanted(config: Any, attentions: bool | None, hidden: bool | None) -> tuple[bool, bool]:
    """Whether attentions and hidden states are to be returned: as the call says, or else as the configuration does."""
    said = (("output_attentions", attentions), ("output_hidden_states", hidden))
    both = [bool(config.get(name, False) if given is None else given) for name, given in said]
    return both[0], both[1]


class EncodecModel(PreTrainedModel):
    """The codec. In encode() and decode() codes have transformers' first dimension, the pieces ("frames") in which the
    audio is coded; in a MusicGen there is one."""

    config_class = EncodecConfig
    main_input_name = "input_values"
    core: Encodec

    def __init__(self, config: EncodecConfig, core: Encodec | None = None):
        core = draw(Encodec(to_ours(alone(config))[2]), config) if core is None else core
        super().__init__(config, core, codec_slots(core))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **given: Any) -> Any:
        """Load a directory of an EnCodec or of a whole MusicGen; arguments and errors are those of load_part()."""
        return load_part(cls, pretrained_model_name_or_path, given)

    save_pretrained = save_part

    # In memory weight norm is folded and the codebooks are one tensor; files and state_dict() have transformers' names
    # for them, by the same table.

    def _pieces(self) -> dict[str, mapping.Piece]:
        shapes = {f"codec.{name}": tuple(tensor.shape) for name, tensor in self.core.state_dict().items()}
        return mapping.expand(huggingface.codec_table(self.core.config), shapes)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        own = {f"codec.{name}": t for name, t in self.core.state_dict(keep_vars=keep_vars).items()}
        theirs = mapping.collect(own, self._pieces())
        theirs |= statistics({name: tensor for name, tensor in theirs.items() if name.endswith("codebook.embed")})
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        destination.update({prefix + name.removeprefix(huggingface.CODEC): t for name, t in theirs.items()})
        return destination

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """nn.Module.load_state_dict() calls this for the model, and then for each child. Here transformers' tensors are
        replaced in the state_dict by ours, under the names by which the children look for them."""
        theirs: dict[str, Tensor] = {}
        for name in [name for name in state_dict if name.startswith(prefix)]:
            current = huggingface.current_name(huggingface.CODEC + name.removeprefix(prefix))
            tensor = state_dict.pop(name)
            if current is not None:
                theirs[current] = tensor
        own = {f"codec.{name}": tensor for name, tensor in self.core.state_dict().items()}
        pieces = self._pieces()
        whole = {*own}
        for name, piece in pieces.items():
            called = prefix + name.removeprefix(huggingface.CODEC)
            if name not in theirs:
                missing_keys.append(called)
            elif tuple(theirs[name].shape) != piece.shape:
                got = f"{tuple(theirs[name].shape)}, the model has {piece.shape}"
                error_msgs.append(f"size mismatch for {called}: the state_dict has {got}")
            else:
                continue
            whole.discard(piece.ours)
        reader: Any = SimpleNamespace(
            shapes={name: tuple(tensor.shape) for name, tensor in theirs.items()},
            dtypes={name: tensor.dtype for name, tensor in theirs.items()},
            get=lambda name, mapped=False: theirs[name],
        )
        given = mapping.read({name: own[name] for name in whole}, pieces, reader, self.device)
        for name, tensor in (own | given).items():
            part, dot, rest = name.removeprefix("codec.").partition(".")
            state_dict[f"{prefix}{part}{dot}{'' if part == 'quantizer' else 'layers.'}{rest}"] = tensor
        for name in theirs.keys() - pieces.keys():
            state_dict[prefix + name.removeprefix(huggingface.CODEC)] = theirs[name]
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @takes_arrays
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """audio_codes (pieces, B, K, T), audio_scales and last_frame_pad_length, by which the last piece is shorter.

        input_values: (B, C, N), floating point, or whole numbers of a WAV file (int16, int32, uint8), which are scaled;
        it is one piece, unless the codec codes long audio in several. Padding, where the mask (B, N) or (B, C, N) is 0,
        is coded as silence. Raises ValueError as Encodec.encode() does, and where not only the last piece is short
        (this happens if they overlap by half), since the result has no place for its length.
        """
        audio = masked(input_values, padding_mask).to(self.dtype)
        books = None if bandwidth is None else self.core.config.codebooks_for(bandwidth)
        chunks = self.core.encode(audio, books)
        lengths = [chunk.codes.shape[-1] for chunk in chunks]
        if len({*lengths[:-1]}) > 1:
            must = "of a length that leaves only the last piece short"
            got = f"{audio.shape[-1]} samples, whose pieces have {lengths} frames"
            raise ValueError(f"input_values must be {must}, got {got}: pad the audio, or code it in parts")
        short = lengths[0] - lengths[-1]
        codes = torch.stack([F.pad(c.codes, (0, lengths[0] - c.codes.shape[-1])) for c in chunks])
        out = ModelOutput(audio_codes=codes, audio_scales=[c.scale for c in chunks], last_frame_pad_length=short)
        return out if return_dict is None or return_dict else out.to_tuple()

    @takes_arrays
    def decode(
        self,
        audio_codes: Tensor,
        audio_scales: Any = None,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
        last_frame_pad_length: int = 0,
    ) -> Any:
        """audio_values (B, C, N) of audio_codes (pieces, B, K, T); a padding mask (B, N) cuts them to N samples."""
        audio_codes = checks.as_codes(audio_codes)
        if audio_codes.dim() != 4:
            raise ValueError(f"audio_codes must be (frames, B, K, T), got {tuple(audio_codes.shape)}")
        scales = [None] * len(audio_codes) if audio_scales is None else audio_scales
        if len(scales) < len(audio_codes):
            raise ValueError(f"audio_scales must be one for each of {len(audio_codes)} frames, got {len(scales)}")
        chunks = [Chunk(codes, scale) for codes, scale in zip(audio_codes, scales, strict=False)]
        T, short = audio_codes.shape[-1], checks.as_python(last_frame_pad_length)
        if type(short) is not int or not 0 <= short < max(T, 1):
            raise ValueError(f"last_frame_pad_length must be a whole number in 0..{T - 1}, got {short!r:.100}")
        if short:
            chunks[-1] = Chunk(chunks[-1].codes[..., :-short], chunks[-1].scale)
        audio = self.core.decode(chunks)
        if padding_mask is not None:
            audio = audio[..., : padding_mask.shape[-1]]
        out = ModelOutput(audio_values=audio)
        return out if return_dict is None or return_dict else out.to_tuple()

    @takes_arrays
    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth: float | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """audio_codes and audio_values (B, C, N): what encode() makes of the audio, and decode() of the codes."""
        coded = self.encode(input_values, padding_mask, bandwidth)
        audio = self.decode(
            coded.audio_codes, coded.audio_scales, last_frame_pad_length=coded.last_frame_pad_length
        ).audio_values[..., : input_values.shape[-1]]
        out = ModelOutput(audio_codes=coded.audio_codes, audio_values=audio)
        return out if return_dict is None or return_dict else out.to_tuple()


def masked(audio: Tensor, mask: Tensor | None) -> Tensor:
    """Audio (B, C, N) in floating point, with zeros where the mask, (B, N), (B, 1, N) or (B, C, N), is 0."""
    audio = checks.as_audio(audio, name="input_values")
    if audio.dim() != 3:
        raise ValueError(f"input_values must be (B, C, N), got {tuple(audio.shape)}")
    if not audio.is_floating_point():
        must = "floating point, full scale at -1 and 1, or int16, int32 or uint8 as WAV files have them"
        raise ValueError(f"input_values must be {must}, got {audio.dtype}")
    if mask is None:
        return audio
    mask = mask[:, None] if mask.dim() == 2 else mask
    if mask.shape[0] != len(audio) or mask.shape[1] not in (1, audio.shape[1]) or mask.shape[-1] != audio.shape[-1]:
        raise ValueError(f"padding_mask must be (B, N) of input_values {tuple(audio.shape)}, got {tuple(mask.shape)}")
    return audio * mask.bool()


def unflatten(name: str, ids: Tensor, codebooks: int) -> Tensor:
    """transformers' rows (B * K, T), in which row b * K + k is codebook k of clip b, as (B, K, T)."""
    ids = checks.as_codes(ids)
    if ids.dim() == 3 and ids.shape[1] == codebooks:
        return ids
    if ids.dim() != 2 or len(ids) % codebooks:
        raise ValueError(f"{name} must be (B * {codebooks}, T) or (B, {codebooks}, T), got {tuple(ids.shape)}")
    return rearrange(ids, "(b k) t -> b k t", k=codebooks)


class _Run:
    """One pass of the decoder, as MusicgenModel and MusicgenForCausalLM need it. given: the arguments of forward()."""

    def __init__(self, model: PreTrainedModel, given: Mapping[str, Any]):
        decoder: Decoder = model.core
        attention, use_cache = model.attention, given["use_cache"]
        if use_cache is None:
            use_cache = model.config.use_cache and not model.training
        codes, embeds = given["input_ids"], given["inputs_embeds"]
        if codes is not None and embeds is not None:
            raise ValueError("input_ids and inputs_embeds (decoder_... in the whole model): give one, got both")
        if codes is None and embeds is None:
            raise ValueError("input_ids or inputs_embeds (decoder_... in the whole model): give one, got none")
        codes = None if codes is None else unflatten("input_ids", codes, decoder.config.codebooks)
        memory, mask, past = given["encoder_hidden_states"], given["encoder_attention_mask"], given["cache"]
        if memory is None and past is None and mask is not None:
            raise ValueError("encoder_attention_mask must come with encoder_hidden_states, got it alone")
        if past is not None and not isinstance(past, Cache):
            raise ValueError(f"cache must be one that forward() returned, got {type(past).__name__}")
        self.weights, self.hidden = wanted(model.config, given["output_attentions"], given["output_hidden_states"])
        self.trace = Trace(weights=self.weights)
        self.cache: Cache | None = past
        batch = len(codes if codes is not None else embeds)
        if past is None and use_cache:
            self.cache = Cache(decoder, batch, memory, mask)
        text = {} if self.cache is not None else {"memory": memory, "memory_mask": mask if memory is not None else None}
        with kernels(attention):
            self.logits: Tensor = decoder(
                codes,
                cache=cast(KVCache | None, self.cache),  # a Cache has all that the decoder uses of a KVCache
                embeddings=embeds,
                step_mask=given["attention_mask"],
                backend=backend(attention),
                self_head_mask=given["head_mask"],
                cross_head_mask=given["cross_attn_head_mask"],
                trace=self.trace,
                **text,
            )

    def seen(self) -> dict[str, Any]:
        """The hidden states and attentions, if they are to be returned."""
        cross = tuple(self.trace.cross_weights)
        return {
            "hidden_states": tuple(self.trace.hidden) if self.hidden else None,
            "attentions": tuple(self.trace.self_weights) if self.weights else None,
            "cross_attentions": cross if self.weights and cross else None,
        }


INPUTS = """input_ids: (B * K, T) or (B, K, T), delayed; or inputs_embeds (B, T, E) in place of their sum.
        attention_mask: (B, P + T), 1 for the steps that may be attended to.
        encoder_hidden_states, encoder_attention_mask: text (B, L, E), already projected, and its mask (B, L).
        head_mask, cross_attn_head_mask: (layers, heads) factors, with every attention. (transformers 4.57 applies them
        in eager attention alone, and 5 ignores them.)
        cache: that of the call before; past_key_values: its name before transformers 5.24. use_cache: None means
        config.use_cache, and in training False."""


class MusicgenModel(PreTrainedModel):
    """The decoder without its heads."""

    config_class = MusicgenDecoderConfig
    core: Decoder
    decoder: Any
    has_heads = False
    runs = True  # False inside a MusicgenForCausalLM: that calls the core itself, which applies the heads, too

    def __init__(self, config: MusicgenDecoderConfig, core: Decoder | None = None):
        core = draw(Decoder(to_ours(alone(config))[1]), config) if core is None else core
        super().__init__(config, core, self._slots(core))

    def _slots(self, core: Decoder) -> dict[str, Slot]:
        return {"decoder": Slot(core, "", self._stack)}

    def _stack(self, core: Decoder) -> "MusicgenDecoder":
        made = MusicgenDecoder(self.config, core)
        made.runs = self.runs
        return made

    def _called(self) -> Any:
        if not self.runs:
            raise ValueError("it does not run inside a MusicgenForCausalLM: hook that one, or its layers")
        return super()

    def register_forward_hook(self, hook: Any, **options: Any) -> Any:
        return self._called().register_forward_hook(hook, **options)

    def register_forward_pre_hook(self, hook: Any, **options: Any) -> Any:
        return self._called().register_forward_pre_hook(hook, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **given: Any) -> Any:
        """Load a decoder as MusicgenForCausalLM.from_pretrained() does; the directory need not have its heads."""
        return load_part(cls, pretrained_model_name_or_path, given)

    save_pretrained = save_part

    def get_input_embeddings(self) -> nn.Module:
        return self.core.embed

    @takes_arrays
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: Cache | None = None,
    ) -> Any:
        """last_hidden_state (B, T, E), cache, hidden_states, attentions, cross_attentions."""
        given = {name: value for name, value in locals().items() if name not in ("self", "past_key_values")}
        given["cache"] = generation.one("cache", cache, "past_key_values", past_key_values)
        if "decoder" in self._modules:
            return self.decoder(**given)
        run = _Run(self, given)
        states = run.trace.hidden[-1]
        out = ModelOutput(last_hidden_state=states, cache=run.cache, **run.seen())
        return out if return_dict is None or return_dict else out.to_tuple()


class MusicgenDecoder(MusicgenModel):
    """The .decoder of a MusicgenModel: the same, and the module that holds the layers."""

    def _slots(self, core: Decoder) -> dict[str, Slot]:
        return decoder_slots(core)


CAUSAL_INPUTS = (
    "inputs", "input_ids", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "cache",
    "past_key_values", "max_bytes",
)  # fmt: skip


class MusicgenForCausalLM(PreTrainedModel):
    """The decoder with its heads, by itself or as the .decoder of a MusicgenForConditionalGeneration."""

    config_class = MusicgenDecoderConfig
    core: Decoder

    def __init__(self, config: MusicgenDecoderConfig, core: Decoder | None = None):
        core = draw(Decoder(to_ours(alone(config))[1]), config) if core is None else core
        slots = {"model": Slot(core, "", self._model)} | same(core, lm_heads="heads")
        super().__init__(config, core, slots)
        self.generation_config = GenerationConfig.from_model_config(config)

    def _model(self, core: Decoder) -> MusicgenModel:
        made = MusicgenModel(self.config, core)
        made.runs = False
        return made

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **given: Any) -> Any:
        """Load a directory of a decoder or of a whole MusicGen. (Of the latter, transformers loads no weights.) Fields
        of the configuration that are given as arguments override it.

        The other arguments, and the errors, are those of load_part().
        """
        return load_part(cls, pretrained_model_name_or_path, given)

    save_pretrained = save_part

    @property
    def num_codebooks(self) -> int:
        return self.core.config.codebooks

    def get_input_embeddings(self) -> nn.Module:
        return self.core.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.core.heads

    @property
    def is_activation_checkpointing(self) -> bool:
        return self.core.gradient_checkpointing

    def activation_checkpointing_enable(self, **_: Any) -> None:
        self.core.gradient_checkpointing = True

    def activation_checkpointing_disable(self) -> None:
        self.core.gradient_checkpointing = False

    # The names of the three before transformers 5.
    is_gradient_checkpointing = is_activation_checkpointing
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable

    @takes_arrays
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Any = None,
        past_key_values: Cache | None = None,
        **unknown: Any,
    ) -> Any:
        """loss (with labels), logits (B * K, T, V), cache, hidden_states, attentions, cross_attentions.

        labels: (B, T, K), delayed by the caller, as in transformers (MusicGen.loss() delays for you); -100 and the
        special token are not scored. Without input_ids and inputs_embeds the input is made of the labels, by shifting
        them right by one step. num_items_in_batch: given by a Trainer, and ignored: the loss is a mean, as in
        transformers. Raises ValueError for an unknown argument.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "labels", "unknown")}
        check_names("forward()", unknown, given)
        given["cache"] = generation.one("cache", cache, "past_key_values", given.pop("past_key_values"))
        if labels is not None and input_ids is None and inputs_embeds is None:
            given["input_ids"] = shifted(labels, self.core.config.vocab_size)
        run = _Run(self, given)
        out = ModelOutput(
            loss=None if labels is None else scored(run.logits, labels),
            logits=run.logits.flatten(0, 1),
            cache=run.cache,
            **run.seen(),
        )
        return out if return_dict is None or return_dict else out.to_tuple()

    @takes_arrays
    def build_delay_pattern_mask(
        self, input_ids: Tensor, pad_token_id: int, max_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Two tensors: ids (B * K, columns before the first with a free cell), and the pattern (B * K, max_length).

        input_ids: (B * K, 1 + P) or (B, K, 1 + P), the start column and a prompt. The pattern has pad_token_id where
        the delay pattern has no code, the prompt's code where there is one, and -1 in free cells. With fewer than
        2 * K - 1 columns (K per channel) it is all -1, as in transformers. Raises ValueError where max_length leaves no
        place for the prompt.
        """
        codes = unflatten("input_ids", input_ids, self.num_codebooks)
        length = checks.as_python(self.generation_config.max_length if max_length is None else max_length)
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"max_length must be a whole number above 0, got {length!r:.100}")
        B, K, given = codes.shape
        lags = self.core.config.delays
        pattern = torch.full((B, K, length), FREE, device=codes.device)
        if length < 2 * (max(lags) + 1) - 1:
            return codes.flatten(0, 1), pattern.flatten(0, 1)
        if (frames := length - 1 - max(lags)) < given - 1:
            must = f"{given + max(lags)} or more after {given - 1} frames of prompt"
            raise ValueError(f"max_length must be {must} (the delay pattern takes {max(lags)} steps), got {length}")
        pattern[..., 0] = pad_token_id
        known = F.pad(codes[..., 1:].long(), (0, frames - (given - 1)), value=FREE)
        pattern[..., 1:] = delay.apply(known, lags, fill=pad_token_id)
        free = (pattern[:, 0] == FREE).any(0)
        first = int(free.int().argmax()) if bool(free.any()) else given
        return pattern[..., :first].flatten(0, 1), pattern.flatten(0, 1)

    @takes_arrays
    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = True,
        delay_pattern_mask: Tensor | None = None,
        guidance_scale: float | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The arguments of forward() for the next step of a caller's own loop, with the delay pattern applied. Where
        guidance is above 1, every row is there twice."""
        cache = generation.one("cache", cache, "past_key_values", past_key_values)
        ids, mask = stepped(self, input_ids, attention_mask, delay_pattern_mask, guidance_scale, self.generation_config)
        return {
            "input_ids": ids if cache is None else ids[:, -1:],
            "attention_mask": mask,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "cache": cache,
            "use_cache": use_cache,
        }

    @staticmethod
    def apply_delay_pattern_mask(input_ids: Tensor, decoder_pad_token_mask: Tensor) -> Tensor:
        """input_ids (B * K, T), replaced by the pattern (B * K, T or more) wherever that is not -1."""
        pattern = decoder_pad_token_mask[..., : input_ids.shape[-1]]
        return torch.where(pattern == FREE, input_ids, pattern)

    @torch.no_grad()
    @takes_arrays
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
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        generator: Any = None,
        max_bytes: int = checks.MAX_BYTES,
        **fields: Any,
    ) -> Any:
        """Codes (B, K, frames), with the delay pattern undone, that continue input_ids (B * K, P) and follow a text,
        encoder_hidden_states (B, L, E).

        The other arguments are those of MusicgenForConditionalGeneration.generate(). (transformers 5.24 needs an
        explicit num_return_sequences=1 here; in 4.57 this method does not work.)
        """
        generation.check_fields("generate()", fields, CAUSAL_INPUTS)
        cache = generation.one("cache", cache, "past_key_values", past_key_values)
        special = self.core.config.vocab_size
        asked = generation.settle(self.generation_config, generation_config, fields, special)
        ids = generation.one("inputs", inputs, "input_ids", input_ids)
        memory, mask = encoder_hidden_states, encoder_attention_mask
        codes = None if ids is None else unflatten("input_ids", ids, self.num_codebooks)
        batch = next((len(given) for given in (memory, codes) if given is not None), 1)
        checks.generators(generator, batch * asked.num_return_sequences, self.device)
        made = generation.run(
            self.core, self.attention, asked, batch, memory, mask, codes, attention_mask,
            generation.hooks("logits_processor", logits_processor),
            generation.hooks("stopping_criteria", stopping_criteria), streamer, generator, cache,
            None, max_bytes,
        )  # fmt: skip
        if not asked.return_dict_in_generate:
            return made.codes
        return ModelOutput(sequences=made.codes, **made.seen(Cache.of(self.core, made.cache)))


def stepped(
    decoder: Any, ids: Tensor, mask: Tensor | None, pattern: Tensor | None, guidance: float | None,
    settings: GenerationConfig,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Ids (B * K, T) with the delay pattern applied, and the mask of their steps; every row twice under guidance."""
    if pattern is None:
        special = settings.pad_token_id if settings.pad_token_id is not None else decoder.core.config.vocab_size
        ids, pattern = decoder.build_delay_pattern_mask(ids, special, settings.max_length)
    ids = decoder.apply_delay_pattern_mask(ids, cast(Tensor, pattern))
    copies = 2 if guidance is not None and guidance > 1 else 1
    return ids.repeat(copies, 1), None if mask is None else mask.repeat(copies, 1)


def shifted(labels: Tensor, special: int) -> Tensor:
    """The inputs (B, K, T) that predict labels (B, T, K): the labels a step later, after a column of special tokens."""
    labels = checks.as_codes(labels)
    if labels.dim() != 3:
        raise ValueError(f"labels must be (B, T, K), got {tuple(labels.shape)}")
    codes = rearrange(labels, "b t k -> b k t")
    return F.pad(codes.masked_fill(codes == -100, special), (1, 0), value=special)[..., :-1]


def scored(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of labels (B, T, K) under the last T steps of logits (B, K, T', V): the cross entropy, averaged over the
    cells of each codebook and then over the codebooks."""
    labels = checks.as_codes(labels)
    B, K, T, V = logits.shape
    if labels.dim() != 3 or (labels.shape[0], labels.shape[2]) != (B, K) or labels.shape[1] > T:
        raise ValueError(f"labels must be ({B}, 1..{T}, {K}), got {tuple(labels.shape)}")
    logits = logits[:, :, -labels.shape[1] :]
    target = labels.masked_fill(labels == V, -100)
    each = [F.cross_entropy(logits[:, k].flatten(0, 1), target[..., k].flatten()) for k in range(K)]
    return torch.stack(each).sum() / K


for kind in (MusicgenModel, MusicgenForCausalLM):
    kind.forward.__doc__ = f"{kind.forward.__doc__}\n        {INPUTS}\n"
