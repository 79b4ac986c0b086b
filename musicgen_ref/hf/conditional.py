"""MusicgenForConditionalGeneration: text, decoder and codec under transformers' names.

B batch, K codebooks, T delayed steps, L text tokens, E decoder width, C audio channels, N samples.
"""

import copy
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..decoder import Decoder
from ..encodec import Encodec
from ..model import MusicGen
from ..t5 import T5Encoder
from . import generation
from .configs import GenerationConfig, MusicgenConfig
from .loading import build, config_of, load_whole, save_whole
from .messages import check_names
from .modules import (
    Cache,
    EncodecModel,
    MusicgenForCausalLM,
    PreTrainedModel,
    T5EncoderModel,
    masked,
    shifted,
    stepped,
    takes_arrays,
    unflatten,
)  # fmt: skip
from .names import Slot
from .outputs import ModelOutput

INPUTS = (
    "inputs", "input_ids", "attention_mask", "input_values", "padding_mask", "decoder_input_ids",
    "decoder_attention_mask", "encoder_outputs", "inputs_embeds", "cache", "past_key_values", "labels",
    "generator", "logits_processor", "stopping_criteria", "generation_config", "streamer", "synced_gpus", "max_bytes",
    "max_text_tokens",
)  # fmt: skip


class MusicgenForConditionalGeneration(PreTrainedModel):
    """A MusicGen that is called as transformers' is.

    It is made by from_pretrained(), from a MusicgenConfig (with random weights), or from its three parts. .core is the
    musicgen_ref.MusicGen that runs. .text_encoder, .decoder, .audio_encoder and .enc_to_dec_proj are parts of the core:
    a part that is set is used and saved. A decoder that was in another model keeps the projection of the text that it
    had there. A decoder without a projection, or with one for text of another width, gets the one that is here.
    """

    config_class = MusicgenConfig
    core: MusicGen
    text_encoder: T5EncoderModel
    audio_encoder: EncodecModel
    decoder: MusicgenForCausalLM

    def __init__(
        self,
        config: MusicgenConfig | None = None,
        text_encoder: T5EncoderModel | None = None,
        audio_encoder: EncodecModel | None = None,
        decoder: MusicgenForCausalLM | None = None,
    ):
        parts = {"text_encoder": text_encoder, "audio_encoder": audio_encoder, "decoder": decoder}
        missing = [name for name, part in parts.items() if part is None]
        if config is None and missing:
            raise ValueError(f"give a config, or text_encoder, audio_encoder and decoder; missing are {missing}")
        if config is None:
            config = MusicgenConfig(**{name: copy.deepcopy(part.config) for name, part in parts.items() if part})
        core = build(config)
        for name, part in parts.items():
            if part is not None:
                _adopt(core, name, part)
        core.train(core.text_encoder.training)
        self._hold(core, config)

    def _hold(self, core: MusicGen, config: MusicgenConfig) -> None:
        slots = {
            "text_encoder": Slot(core, "text_encoder", self._text_encoder, partial(self._taken, "text_encoder")),
            "audio_encoder": Slot(core, "codec", self._audio_encoder, partial(self._taken, "audio_encoder")),
            "decoder": Slot(core, "decoder", self._decoder, partial(self._taken, "decoder")),
            "enc_to_dec_proj": Slot(core, "decoder.text_proj", taken=self._projected),
        }
        super().__init__(config, core, slots)
        self.generation_config = GenerationConfig.from_model_config(config)

    # The parts of the core, wrapped.

    def _text_encoder(self, core: T5Encoder) -> T5EncoderModel:
        return T5EncoderModel(self._configured("text_encoder"), core)

    def _audio_encoder(self, core: Encodec) -> EncodecModel:
        return EncodecModel(self._configured("audio_encoder"), core)

    def _decoder(self, core: Decoder) -> MusicgenForCausalLM:
        return MusicgenForCausalLM(self._configured("decoder"), core)

    def _configured(self, part: str) -> Any:
        if part in self._modules.views:  # another module has been put into the core itself: its configuration counts
            self.config[part] = config_of(self.core)[part]
        return self.config[part]

    def _taken(self, part: str, new: Any, old: nn.Module) -> None:
        # Called when another part has been set.
        self.config[part] = new.config
        decoder = self.core.decoder
        if part == "decoder" and isinstance(old, Decoder) and decoder.config.width == old.config.width:
            width = self.core.text_encoder.config.width
            if decoder.text_proj is None or decoder.config.text_width != width:
                decoder.text_proj = old.text_proj
                decoder.config = replace(decoder.config, text_width=old.config.text_width)

    def _projected(self, new: Any, old: nn.Module | None) -> None:
        # Called when another projection of the text has been set.
        decoder = self.core.decoder
        width = decoder.config.width if new is None else getattr(new, "in_features", decoder.config.text_width)
        decoder.config = replace(decoder.config, text_width=width)

    def tell_dtype(self) -> None:
        """Write the weights' dtypes into the configurations; the whole model's is the decoder's."""
        for part in (self.text_encoder, self.audio_encoder, self.decoder):
            part.tell_dtype()
        self.config.dtype = self.core.decoder.norm.weight.dtype

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, **given: Any
    ) -> "MusicgenForConditionalGeneration":
        """Load a directory in transformers' layout, "demo", or a Hub id (with the extra `hub`), in eval mode.

        dtype (or torch_dtype): float32, bfloat16 or float16, as torch's dtype or its name; "auto" and None take the
        file's. attn_implementation: "sdpa" (default), "eager", "flash_attention_2" (SDPA's flash kernel, for CUDA and
        half precision), or a dictionary of them by part. device_map: a device; "auto" is CUDA where there is one.
        load_in_8bit: True makes the linear layers of decoder and text encoder int8, on CPUs. fast: False leaves out the
        faster layers of musicgen_ref.fast. config: a MusicgenConfig of the same sizes. For the Hub: revision,
        cache_dir, token, local_files_only, force_download, subfolder.
        variant: "fp32" reads model.fp32.safetensors or its like. use_safetensors: False reads .bin files, True refuses
        them. adapter: True merges the LoRA adapter that lies beside the weights into them, a path merges the adapter in
        that directory, and False ignores an adapter beside the weights, which is otherwise an error.
        state_dict: tensors by transformers' names, used in place of the directory's (the directory may then be None if
        a config is given). ignore_mismatched_sizes: True leaves out tensors of another shape. With either of them,
        weights that are missing are drawn.
        output_loading_info: True also returns a dictionary of missing_keys, unexpected_keys and mismatched_keys.
        Raises ValueError for an unknown argument or an impossible value, before anything is read.
        """
        loaded: MusicgenForConditionalGeneration = load_whole(cls, pretrained_model_name_or_path, given)
        return loaded

    @classmethod
    def of(cls, core: MusicGen, config: MusicgenConfig | None = None) -> "MusicgenForConditionalGeneration":
        """A model around a musicgen_ref.MusicGen, with which it shares the weights. config: None describes the MusicGen
        as it is, including its attention."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        if config is None:
            config = config_of(core)
            config._attn_implementation = core.backend
        core.train(core.text_encoder.training)
        model._hold(core, config)
        return model

    @classmethod
    def from_sub_models_pretrained(
        cls,
        text_encoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        audio_encoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        decoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        **given: Any,
    ) -> "MusicgenForConditionalGeneration":
        """A model of three checkpoints (directories or ids), each of one part or of a whole MusicGen.
        text_encoder_model, audio_encoder_model and decoder_model take a model in place of a checkpoint.

        Arguments of from_pretrained() go to all parts, or, with a prefix, to one (decoder_dropout=0.2). The projection
        between text and decoder comes from the decoder's checkpoint, if that is a whole MusicGen with text of the same
        width; otherwise it is new (transformers always makes a new one). Raises ValueError for a part that is neither
        named nor given.
        """
        names = {
            "text_encoder": text_encoder_pretrained_model_name_or_path,
            "audio_encoder": audio_encoder_pretrained_model_name_or_path,
            "decoder": decoder_pretrained_model_name_or_path,
        }
        kinds: dict[str, Any] = {
            "text_encoder": T5EncoderModel, "audio_encoder": EncodecModel, "decoder": MusicgenForCausalLM
        }  # fmt: skip
        parts: dict[str, Any] = {}
        for part, kind in kinds.items():
            own = {k.removeprefix(part + "_"): v for k, v in given.items() if k.startswith(part + "_")}
            shared = {k: v for k, v in given.items() if not k.startswith(tuple(other + "_" for other in kinds))}
            parts[part] = own.pop("model", None)
            if parts[part] is None:
                if names[part] is None:
                    raise ValueError(f"{part}_pretrained_model_name_or_path or {part}_model must be given, got neither")
                parts[part] = kind.from_pretrained(names[part], **shared | own)
        return cls(**parts).eval()

    save_pretrained = save_whole

    # Parts

    def get_encoder(self, modality: str | None = None) -> Any:
        """The text encoder, or for modality="audio" the codec."""
        if modality not in (None, "text", "audio"):
            raise ValueError(f"modality must be 'text' or 'audio', got {modality!r:.100}")
        return self.audio_encoder if modality == "audio" else self.text_encoder

    def get_audio_encoder(self) -> EncodecModel:
        return self.audio_encoder

    def get_decoder(self) -> MusicgenForCausalLM:
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def freeze_audio_encoder(self) -> None:
        """No gradients for the codec."""
        self.audio_encoder.requires_grad_(False)

    def freeze_text_encoder(self) -> None:
        """No gradients for the text encoder."""
        self.text_encoder.requires_grad_(False)

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the decoder's activations are recomputed in the backward pass of training."""
        return self.decoder.is_activation_checkpointing

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Recompute the decoder's activations in the backward pass of training."""
        self.decoder.activation_checkpointing_enable()

    def activation_checkpointing_disable(self) -> None:
        self.decoder.activation_checkpointing_disable()

    # The names of the three before transformers 5.
    is_gradient_checkpointing = is_activation_checkpointing
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable

    # The forward pass

    @takes_arrays
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        decoder_head_mask: Tensor | None = None,
        decoder_cross_attn_head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Any = None,
        past_key_values: Cache | None = None,
        **unknown: Any,
    ) -> Any:
        """loss, logits (B * K, T, V), cache, decoder_hidden_states, decoder_attentions, cross_attentions,
        encoder_last_hidden_state, encoder_hidden_states, encoder_attentions.

        The text: input_ids (B, L), or inputs_embeds, or encoder_outputs (a tuple or an output whose first entry is
        (B, L, width)), and attention_mask (B, L); without a mask nothing is masked.
        The decoder's input: decoder_input_ids (B * K, T) or (B, K, T), delayed; or decoder_inputs_embeds (B, T, E); or
        labels (B, T, K), see MusicgenForCausalLM.forward(); or audio, input_values (B, C, N) with padding_mask (B, N),
        whose codes are read without a delay. decoder_attention_mask: (B, P + T).
        decoder_head_mask, decoder_cross_attn_head_mask: (layers, heads). cache: that of the call before, with the keys
        and values of the text that it read; past_key_values: its name before transformers 5.24. return_dict: False
        returns the tuple of all fields that are not None. num_items_in_batch: given by a Trainer, and ignored: the loss
        is a mean, as in transformers.
        Raises ValueError for an unknown argument, for two inputs of one kind or none, and for wrong shapes.
        """
        check_names("forward()", unknown, FORWARD)
        cache = generation.one("cache", cache, "past_key_values", past_key_values)
        if decoder_input_ids is not None and decoder_inputs_embeds is not None:
            raise ValueError("decoder_input_ids and decoder_inputs_embeds: give one, got both")
        if decoder_input_ids is not None and input_values is not None:
            raise ValueError("decoder_input_ids and input_values: give one, got both")
        seen = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        encoded = self._encode_text(input_ids, inputs_embeds, attention_mask, encoder_outputs, **seen)
        memory = self.core.decoder.project_text(encoded[0], attention_mask)
        if decoder_input_ids is None and decoder_inputs_embeds is None and labels is None:
            if input_values is None:
                raise ValueError("give decoder_input_ids, decoder_inputs_embeds, labels or input_values, got none")
            input_values = checks.as_audio(input_values, name="input_values")
            mono = input_values.dim() == 3 and input_values.shape[1] == 1
            if mono and self.core.decoder.config.channels == 2:  # both sides get the same audio, as in transformers
                input_values = masked(input_values, padding_mask).expand(-1, 2, -1)
                padding_mask = None
            decoder_input_ids = self._encode_audio(input_values, padding_mask)
        out = self.decoder(  # arguments by name: peft's wrappers have another order of them
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=memory,
            encoder_attention_mask=attention_mask,
            head_mask=decoder_head_mask,
            cross_attn_head_mask=decoder_cross_attn_head_mask,
            cache=cache,
            inputs_embeds=decoder_inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **seen,
        )
        result = ModelOutput(
            loss=out.loss,
            logits=out.logits,
            cache=out.cache,
            decoder_hidden_states=out.hidden_states,
            decoder_attentions=out.attentions,
            cross_attentions=out.cross_attentions,
            encoder_last_hidden_state=encoded[0],
            encoder_hidden_states=getattr(encoded, "hidden_states", None),
            encoder_attentions=getattr(encoded, "attentions", None),
        )
        return result if return_dict is None or return_dict else result.to_tuple()

    def _encode_text(
        self, ids: Tensor | None, embeds: Tensor | None, mask: Tensor | None, given: Any, **seen: Any
    ) -> Any:
        if given is None:
            if ids is None and embeds is None:
                raise ValueError("give input_ids, inputs_embeds or encoder_outputs, got none")
            if ids is not None and embeds is not None:
                raise ValueError("input_ids and inputs_embeds: give one, got both")
            return self.text_encoder(input_ids=ids, attention_mask=mask, inputs_embeds=embeds, **seen)
        return ModelOutput(last_hidden_state=given) if isinstance(given, Tensor) else given

    def _encode_audio(self, audio: Tensor, mask: Tensor | None) -> Tensor:
        # Codes (B, K, T) of audio; samples that the mask excludes are coded as silence.
        channels = self.core.decoder.config.channels
        audio = checks.as_audio(audio, name="input_values")
        if audio.dim() != 3 or audio.shape[1] != channels:
            kind = "stereo" if channels == 2 else "mono"
            raise ValueError(f"input_values must be {kind}, (B, {channels}, N), got {tuple(audio.shape)}")
        return self.core.encode(masked(audio, mask), self.core.sampling_rate)

    # Generation

    @takes_arrays
    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The inputs (B, K, T) that predict the labels (B, T, K)."""
        return shifted(labels, self.core.decoder.config.vocab_size)

    @takes_arrays
    def prepare_inputs_for_generation(
        self,
        decoder_input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_outputs: Any = None,
        decoder_delay_pattern_mask: Tensor | None = None,
        guidance_scale: float | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The arguments of forward() for the next step of a caller's own loop, with the delay pattern applied. Where
        guidance is above 1, every row is there twice. next_sequence_length: how many steps the cache has not read."""
        cache = generation.one("cache", cache, "past_key_values", past_key_values)
        ids, mask = stepped(
            self.decoder, decoder_input_ids, decoder_attention_mask, decoder_delay_pattern_mask, guidance_scale,
            self.generation_config,
        )  # fmt: skip
        if cache is not None and next_sequence_length is not None:
            ids = ids[:, -next_sequence_length:]
        return {
            "input_ids": None,  # encoder_outputs take their place
            "encoder_outputs": encoder_outputs,
            "cache": cache,
            "decoder_input_ids": ids,
            "attention_mask": attention_mask,
            "decoder_attention_mask": mask,
            "use_cache": use_cache,
        }

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
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Any = None,
        generator: Any = None,
        max_bytes: int = checks.MAX_BYTES,
        max_text_tokens: int = checks.MAX_TEXT_TOKENS,
        **fields: Any,
    ) -> Any:
        """Audio (B * num_return_sequences, C, N); with return_dict_in_generate, an output that has it as `sequences`.

        The text: input_ids (B, L) (or inputs, another name), or inputs_embeds, or encoder_outputs; and attention_mask
        (B, L), without which padding is masked. Without all of them there is no text.
        A prompt to continue: input_values (B, C, N) and padding_mask (B, N), or decoder_input_ids (B * K, P), codes
        without a delay; decoder_attention_mask (B, P). cache: that of the call that made the prompt, whose frames are
        then not read again; past_key_values: its name before transformers 5.24.
        fields: of GenerationConfig (max_new_tokens, do_sample, guidance_scale, temperature, top_k, top_p,
        num_return_sequences, ...). They override those of generation_config, which override self.generation_config. A
        new token is a step of the decoder; the delay pattern takes K - 1 steps (K per channel).
        logits_processor: functions (ids, scores) -> scores, of ids (B * K, steps) and guided scores (B * K, V).
        stopping_criteria: functions (ids, scores) -> True or False, for all rows, or one for each row or clip.
        Generation stops when every row has been stopped; the frames that are complete are returned. streamer: its put()
        gets the prompt (B * K, 1 + P) and then each step (B * K,); end() is called at the end.
        generator: a torch.Generator, or a list of one for each clip, in place of torch's global one. labels: given by
        Seq2SeqTrainer with the rest of a batch, and ignored.
        max_bytes: of keys, values, codes and audio of the call; max_text_tokens: of a text; both as in
        GenerationOptions. Under the same seed the samples are those of transformers 5.24.0, except where the table in
        musicgen_ref.hf says otherwise. Raises ValueError, before any long work, for what cannot be honoured.
        """
        generation.check_fields("generate()", fields, INPUTS)
        cache = generation.one("cache", cache, "past_key_values", past_key_values)
        special, num_codebooks = self.core.decoder.config.vocab_size, self.core.decoder.config.codebooks
        asked = generation.settle(self.generation_config, generation_config, fields, special)
        ids = generation.one("inputs", inputs, "input_ids", input_ids)
        processors = generation.hooks("logits_processor", logits_processor)
        criteria = generation.hooks("stopping_criteria", stopping_criteria)
        text = [name for name, value in (("input_ids", ids), ("inputs_embeds", inputs_embeds)) if value is not None]
        if len(text) > 1:
            raise ValueError("input_ids and inputs_embeds: give one, got both")
        if decoder_input_ids is not None and input_values is not None:
            raise ValueError("decoder_input_ids and input_values: give one, got both")
        first = encoder_outputs if isinstance(encoder_outputs, (Tensor, type(None))) else encoder_outputs[0]
        rows = (len(given) for given in (first, ids, inputs_embeds, input_values) if given is not None)
        codes = 0 if decoder_input_ids is None else decoder_input_ids.shape[:-1].numel()
        clips = next(rows, max(1, codes // num_codebooks)) * asked.num_return_sequences
        checks.generators(generator, clips, self.device)
        for given in (ids, inputs_embeds):
            if isinstance(given, Tensor) and given.dim() > 1:
                checks.text_length(given.shape[1], max_text_tokens)

        prompt = None
        if decoder_input_ids is not None:
            prompt = unflatten("decoder_input_ids", decoder_input_ids, num_codebooks)
        elif input_values is not None:
            prompt = self._encode_audio(input_values, padding_mask)
        encoded: Any = None
        memory = None
        if ids is not None and attention_mask is None and encoder_outputs is None:
            # transformers masks no padding here: it compares the ids of the text with the special token of audio.
            attention_mask = (ids != (self.config.text_encoder.pad_token_id or 0)).long()
        batch = 1 if prompt is None else len(prompt)
        if text or encoder_outputs is not None:
            seen = {name: asked[name] for name in ("output_attentions", "output_hidden_states")}
            encoded = self._encode_text(ids, inputs_embeds, attention_mask, encoder_outputs, **seen)
            memory = self.core.decoder.project_text(encoded[0], attention_mask)
            batch = len(memory)
        made = generation.run(
            self.core.decoder, self.attention, asked, batch, memory, attention_mask, prompt,
            decoder_attention_mask, processors, criteria, streamer, generator, cache,
            self.core.codec.config, max_bytes,
        )  # fmt: skip
        channels = self.core.decoder.config.channels
        silence = torch.zeros(len(made.codes), channels, 0, dtype=self.dtype, device=self.device)
        audio = self.core.decode(made.codes) if made.codes.numel() else silence
        if not asked.return_dict_in_generate:
            return audio
        seen = made.seen(Cache.of(self.core.decoder, made.cache))
        return ModelOutput(
            sequences=audio,
            scores=seen.pop("scores"),
            logits=seen.pop("logits"),
            encoder_attentions=getattr(encoded, "attentions", None) if asked.output_attentions else None,
            encoder_hidden_states=getattr(encoded, "hidden_states", None) if asked.output_hidden_states else None,
            **seen,
        )

    def get_unconditional_inputs(self, num_samples: int = 1) -> ModelOutput:
        """The arguments of generate() for num_samples clips without text: encoder_outputs, attention_mask and
        guidance_scale."""
        num_samples = checks.as_python(num_samples)
        if type(num_samples) is not int or num_samples < 1:
            raise ValueError(f"num_samples must be a whole number above 0, got {num_samples!r}")
        width = self.core.decoder.config.text_width
        return ModelOutput(
            encoder_outputs=(torch.zeros(num_samples, 1, width, device=self.device, dtype=self.dtype),),
            attention_mask=torch.zeros(num_samples, 1, device=self.device, dtype=torch.long),
            guidance_scale=1.0,
        )


FORWARD = [
    name for name in MusicgenForConditionalGeneration.forward.__annotations__ if name not in ("unknown", "return")
]


def _adopt(core: MusicGen, name: str, part: Any) -> None:
    """Put a given part's module in the place of the core's own, which has random weights."""
    if name == "text_encoder":
        core.text_encoder = part.core
    elif name == "audio_encoder":
        core.codec = part.core
    else:
        fresh, module = core.decoder, part.core
        if module.text_proj is None or module.config.text_width != fresh.config.text_width:
            module.text_proj, module.config = fresh.text_proj, fresh.config
            if fresh.text_proj is not None:
                module.text_proj = fresh.text_proj.to(module.norm.weight)
        core.decoder = module
