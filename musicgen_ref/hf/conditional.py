"""MusicgenForConditionalGeneration: text, decoder and codec under transformers' names.

B batch, K codebooks, T delayed steps, L text tokens, E decoder width, C audio channels, N samples.
"""

import copy
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..model import MusicGen
from . import generation
from .configs import GenerationConfig, MusicgenConfig
from .loading import Loading, build, config_of, load_whole, read_generation, save_whole, split
from .messages import check_names
from .modules import Cache, EncodecModel, MusicgenForCausalLM, PreTrainedModel, T5EncoderModel, masked, unflatten
from .outputs import ModelOutput

INPUTS = (
    "inputs", "input_ids", "attention_mask", "input_values", "padding_mask", "decoder_input_ids",
    "decoder_attention_mask", "encoder_outputs", "inputs_embeds", "generator", "logits_processor", "stopping_criteria",
    "generation_config", "streamer", "synced_gpus", "max_bytes", "max_text_tokens",
)  # fmt: skip


class MusicgenForConditionalGeneration(PreTrainedModel):
    """A MusicGen that is called as transformers' is.

    Made by from_pretrained(); or with random weights of a MusicgenConfig; or of the three parts. .text_encoder,
    .decoder and .audio_encoder are its parts; .core is the musicgen_ref.MusicGen of the same weights.
    """

    config_class = MusicgenConfig
    core: MusicGen

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
        super().__init__()
        self._hold(core, config, {})

    def _hold(self, core: MusicGen, config: MusicgenConfig, attention: dict[str, str]) -> None:
        self.config = config
        # Its modules are registered below under transformers' names; registered twice, they would be saved twice.
        self.__dict__["core"] = core
        self.attention = attention.get("decoder", "sdpa")
        self.text_encoder = T5EncoderModel(
            config.text_encoder, core.text_encoder, attention.get("text_encoder", "sdpa")
        )
        self.audio_encoder = EncodecModel(config.audio_encoder, core.codec)
        self.decoder = MusicgenForCausalLM(config.decoder, core.decoder, self.attention)
        self.generation_config = GenerationConfig.from_model_config(config)
        self.train(core.text_encoder.training)

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **given: Any) -> "MusicgenForConditionalGeneration":
        """Load a directory in transformers' layout, "demo", or a Hub id (with the extra `hub`), in eval mode.

        dtype (or torch_dtype): float32, bfloat16, float16, as torch's dtype or its name; "auto" and None: the file's.
        attn_implementation: "sdpa" (default), "eager", "flash_attention_2" (SDPA's flash kernel: CUDA and half
        precision), or a dictionary of them by part. device_map: a device; "auto" is CUDA where there is one.
        load_in_8bit: int8 linear layers in decoder and text encoder, on CPUs. config: a MusicgenConfig of the same
        sizes. Options of the Hub: revision, cache_dir, token, local_files_only, force_download, subfolder.
        variant: "fp32" reads model.fp32.safetensors or its like. use_safetensors: False reads .bin files, True refuses
        them. adapter: True merges the LoRA adapter that lies beside the weights into them, the path of a directory the
        one in there, False leaves out one that lies beside, which is otherwise an error.
        Raises ValueError for another argument, or an impossible value, before anything is read.
        """
        options, _ = split("from_pretrained()", given)
        core, config, loading, folder = load_whole(name, options)
        model = cls.of(core, config, loading)
        for key, value in read_generation(folder).items():
            setattr(model.generation_config, key, value)
        return model

    @classmethod
    def of(
        cls, core: MusicGen, config: MusicgenConfig | None = None, loading: Loading | None = None
    ) -> "MusicgenForConditionalGeneration":
        """Around a musicgen_ref.MusicGen, whose weights it shares."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        attention = dict.fromkeys(("text_encoder", "decoder"), core.backend) if loading is None else loading.attention
        model._hold(core, config_of(core) if config is None else config, attention)
        return model

    @classmethod
    def from_sub_models_pretrained(
        cls,
        text_encoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        audio_encoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        decoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        **given: Any,
    ) -> "MusicgenForConditionalGeneration":
        """Of three directories (or ids), each of one part or of a whole MusicGen; text_encoder_model,
        audio_encoder_model and decoder_model take models in their place.

        Arguments of from_pretrained() go to all parts, or to one under its prefix (decoder_dropout=0.2). A projection
        between text and decoder comes from the decoder's checkpoint where that is a whole MusicGen whose text is as
        wide; otherwise it is new (transformers always makes a new one). Raises ValueError for a part that is neither
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

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write a directory that from_pretrained() and transformers open. Raises ValueError for an int8 model."""
        save_whole(self.core, self.generation_config, path)

    # Parts

    @property
    def enc_to_dec_proj(self) -> nn.Module | None:
        """The projection of the text to the decoder's width; None where they are equal."""
        return self.decoder.module.text_proj

    def get_encoder(self) -> T5EncoderModel:
        return self.text_encoder

    def get_decoder(self) -> MusicgenForCausalLM:
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def can_generate(self) -> bool:
        return True

    def freeze_audio_encoder(self) -> None:
        """No gradients for the codec."""
        self.audio_encoder.requires_grad_(False)

    def freeze_text_encoder(self) -> None:
        """No gradients for the text encoder."""
        self.text_encoder.requires_grad_(False)

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """Recompute the decoder's activations in the backward pass of training."""
        self.decoder.gradient_checkpointing_enable()

    def gradient_checkpointing_disable(self) -> None:
        self.decoder.gradient_checkpointing_disable()

    # The forward pass

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        decoder_head_mask: Tensor | None = None,
        decoder_cross_attn_head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """loss, logits (B * K, T, V), past_key_values, decoder_hidden_states, decoder_attentions, cross_attentions,
        encoder_last_hidden_state, encoder_hidden_states, encoder_attentions.

        input_ids (B, L), or inputs_embeds, or encoder_outputs (a tuple or output whose first is (B, L, width)), and
        attention_mask (B, L): None masks nothing here. decoder_input_ids: (B * K, T) or (B, K, T), delayed; or
        decoder_inputs_embeds (B, T, E); or labels (B, T, K), see MusicgenForCausalLM.forward(); or input_values
        (B, C, N), coded, without a delay, with padding_mask (B, N). decoder_attention_mask: (B, P + T).
        decoder_head_mask, decoder_cross_attn_head_mask: (layers, heads). past_key_values: those of the call before; the
        text it read then is read again. return_dict=False: the tuple of what is not None.
        Raises ValueError for another argument, more than one input of a kind, none, and wrong shapes.
        """
        check_names("forward()", unknown, FORWARD)
        if decoder_input_ids is not None and decoder_inputs_embeds is not None:
            raise ValueError("decoder_input_ids and decoder_inputs_embeds: give one, got both")
        seen = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        encoded = self._encode_text(input_ids, inputs_embeds, attention_mask, encoder_outputs, **seen)
        memory = self.core.decoder.project_text(encoded[0], attention_mask)
        if decoder_input_ids is None and decoder_inputs_embeds is None and labels is None:
            if input_values is None:
                raise ValueError("give decoder_input_ids, decoder_inputs_embeds, labels or input_values, got none")
            mono = input_values.dim() == 3 and input_values.shape[1] == 1
            if mono and self.decoder.module.config.channels == 2:  # as in transformers: both sides the same
                input_values = masked(input_values, padding_mask).expand(-1, 2, -1)
                padding_mask = None
            decoder_input_ids = self._encode_audio(input_values, padding_mask)
        out = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            memory,
            attention_mask,
            decoder_head_mask,
            decoder_cross_attn_head_mask,
            past_key_values,
            decoder_inputs_embeds,
            labels,
            use_cache,
            **seen,
        )
        result = ModelOutput(
            loss=out.loss,
            logits=out.logits,
            past_key_values=out.past_key_values,
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
            return self.text_encoder(ids, mask, embeds, **seen)
        return ModelOutput(last_hidden_state=given) if isinstance(given, Tensor) else given

    def _encode_audio(self, audio: Tensor, mask: Tensor | None) -> Tensor:
        # To codes (B, K, T); what the mask excludes is coded as silence.
        channels = self.decoder.module.config.channels
        if audio.dim() != 3 or audio.shape[1] != channels:
            kind = "stereo" if channels == 2 else "mono"
            raise ValueError(f"input_values must be {kind}, (B, {channels}, N), got {tuple(audio.shape)}")
        return self.core.encode(masked(audio, mask), self.core.sampling_rate)

    # Generation

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
        input_values: Tensor | None = None,
        padding_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        generator: Any = None,
        max_bytes: int = checks.MAX_BYTES,
        max_text_tokens: int = checks.MAX_TEXT_TOKENS,
        **fields: Any,
    ) -> Any:
        """Audio (B * num_return_sequences, C, N); with return_dict_in_generate an output whose sequences is the audio.

        Text: input_ids (B, L) (or inputs, its other name), inputs_embeds, or encoder_outputs, and attention_mask
        (B, L); without one, padding is masked. None of them: no text. A prompt to continue: input_values (B, C, N) and
        padding_mask (B, N), or decoder_input_ids (B * K, P), codes without a delay; decoder_attention_mask (B, P).
        fields: those of GenerationConfig (max_new_tokens, do_sample, guidance_scale, temperature, top_k, top_p,
        num_return_sequences, ...), over generation_config's, over self.generation_config's. One new token is a step of
        the decoder; the delay pattern takes K - 1 of them (K per channel).
        logits_processor: functions (ids, scores) -> scores, of ids (B * K, steps) and guided scores (B * K, V);
        stopping_criteria: functions (ids, scores) -> True, or one a row or clip; it stops when all rows have, and what
        is complete is returned. streamer: its put() gets the prompt (B * K, 1 + P), (B * K,) each step, end().
        generator: a torch.Generator, or a list of one a clip, in place of torch's global one.
        max_bytes: of keys, values, codes and audio of the call; max_text_tokens: of a text; both as GenerationOptions'.
        Under the same seed the samples are transformers' 5.23.0; the table in musicgen_ref.hf lists what differs.
        Raises ValueError, before any long work, for what cannot be honoured.
        """
        generation.check_fields("generate()", fields, INPUTS)
        asked = generation.settle(self.generation_config, generation_config, fields)
        ids = generation.one("inputs", inputs, "input_ids", input_ids)
        processors = generation.hooks("logits_processor", logits_processor)
        criteria = generation.hooks("stopping_criteria", stopping_criteria)
        text = [name for name, value in (("input_ids", ids), ("inputs_embeds", inputs_embeds)) if value is not None]
        if len(text) > 1:
            raise ValueError("input_ids and inputs_embeds: give one, got both")
        for given in (ids, inputs_embeds):
            if isinstance(given, Tensor) and given.dim() > 1:
                checks.text_length(given.shape[1], max_text_tokens)

        prompt = None
        if decoder_input_ids is not None:
            prompt = unflatten("decoder_input_ids", decoder_input_ids, self.decoder.num_codebooks)
        elif input_values is not None:
            prompt = self._encode_audio(input_values, padding_mask)
        encoded: Any = None
        memory = None
        if ids is not None and attention_mask is None and encoder_outputs is None:
            # transformers compares the ids of text with the special token of audio, and so masks no padding.
            attention_mask = (ids != (self.config.text_encoder.pad_token_id or 0)).long()
        batch = 1 if prompt is None else len(prompt)
        if text or encoder_outputs is not None:
            seen = {name: asked[name] for name in ("output_attentions", "output_hidden_states")}
            encoded = self._encode_text(ids, inputs_embeds, attention_mask, encoder_outputs, **seen)
            memory = self.core.decoder.project_text(encoded[0], attention_mask)
            batch = len(memory)
        made = generation.run(
            self.decoder.module, self.decoder.attention, asked, batch, memory, attention_mask, prompt,
            decoder_attention_mask, processors, criteria, streamer, generator, self.core.codec.config.hop, max_bytes,
        )  # fmt: skip
        channels = self.decoder.module.config.channels
        silence = torch.zeros(len(made.codes), channels, 0, dtype=self.dtype, device=self.device)
        audio = self.core.decode(made.codes) if made.codes.numel() else silence
        if not asked.return_dict_in_generate:
            return audio
        seen = made.seen(Cache.of(self.decoder.module, made.cache))
        return ModelOutput(
            sequences=audio,
            scores=seen.pop("scores"),
            logits=seen.pop("logits"),
            encoder_attentions=getattr(encoded, "attentions", None) if asked.output_attentions else None,
            encoder_hidden_states=getattr(encoded, "hidden_states", None) if asked.output_hidden_states else None,
            **seen,
        )

    def get_unconditional_inputs(self, num_samples: int = 1) -> ModelOutput:
        """Arguments of generate() for num_samples clips of no text: encoder_outputs, attention_mask, guidance_scale."""
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
    """Put a part's module in the place of core's own, which is as it was made: random."""
    if name == "text_encoder":
        core.text_encoder = part.encoder
    elif name == "audio_encoder":
        core.codec = part.codec
    else:
        fresh, module = core.decoder, part.module
        if module.text_proj is None or module.config.text_width != fresh.config.text_width:
            module.text_proj, module.config = fresh.text_proj, fresh.config
            if fresh.text_proj is not None:  # drawn as transformers 5 does
                nn.init.normal_(fresh.text_proj.weight, std=0.02)
                nn.init.zeros_(fresh.text_proj.bias)
                module.text_proj = fresh.text_proj.to(module.norm.weight)
        core.decoder = module
