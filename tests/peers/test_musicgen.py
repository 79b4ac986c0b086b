"""What transformers' suite asks of MusicGen, asked of both libraries.

A row for each test of models/musicgen/test_modeling_musicgen.py, and of the two mixins under it: that of every model
(rows.py) and that of generation (generation/test_utils.py), which the suite has run in part; here the rest of it runs,
too. The assertion is written anew. Models of the Hub are replaced by tiny ones, and numbers that were written down by
those of transformers itself.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from musicgen_ref import hf
from tests import tiny
from tests.peers.rows import (
    BASE,
    CAUSAL,
    COMMON,
    MIXIN,
    SCORED,
    WHOLE,
    Made,
    Row,
    Subject,
    Suite,
)

DECODER, MUSICGEN = MIXIN.of(CAUSAL, BASE), MIXIN.of(WHOLE)  # MusicgenDecoderTest, MusicgenTest
GENERATION = Suite()  # GenerationTesterMixin, of both
INTEGRATION = Suite()  # MusicgenIntegrationTests, MusicgenStereoIntegrationTests

# Of the decoder


@DECODER.row("test_config", CAUSAL)
def configuration(s: Subject) -> Made:
    kind = s.library.MusicgenDecoderConfig
    config = kind(hidden_size=16, num_attention_heads=4)
    assert config.hidden_size == 16
    assert json.loads(config.to_json_string())["hidden_size"] == 16
    config.save_pretrained(s.empty)
    again = kind.from_pretrained(s.empty)
    assert again.to_dict() == config.to_dict()
    assert kind(output_attentions=True).output_attentions
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "ffn_dim", "num_codebooks", "audio_channels", "dropout")
    return [{name: getattr(again, name) for name in kept}]


def shown_in_generate(s: Subject, channels: int = 1, **settings: Any) -> Made:
    """Sequences, scores and logits of every step; what transformers leaves None here is real: see musicgen_ref.hf."""
    model = (stereo(s) if channels == 2 else s).shared
    out = generated(
        s, model, return_dict_in_generate=True, output_scores=True, output_logits=True, max_new_tokens=12, **settings
    )
    B = len(s.inputs["input_ids"]) if s.whole else 1
    for each in (out.scores, out.logits):
        assert isinstance(each, tuple)
        assert len(each) == 12
        assert {tuple(step.shape) for step in each} == {(B * 4 * channels, 256)}
    return [out.sequences, list(out.scores), list(out.logits)]


def stereo(s: Subject) -> Subject:
    return Subject(s.library, s.kind, s.folder.parent / f"stereo-{s.kind}", s.empty, s.inputs, cached=s.cached)


def generated(s: Subject, model: Any, **settings: Any) -> Any:
    """Of the text; of a decoder alone, of one clip without text: it goes on from a start column."""
    if s.whole:
        text = {name: s.inputs[name] for name in ("input_ids", "attention_mask")}
        return model.generate(**text, **{"do_sample": False, "guidance_scale": 1.0} | settings)
    start = torch.full((model.config.num_codebooks, 1), 256)  # masked by transformers where no mask is given
    given = {"input_ids": start, "attention_mask": torch.ones(1, 1, dtype=torch.long), "num_return_sequences": 1}
    given |= {"pad_token_id": 256, "decoder_start_token_id": 256}
    return model.generate(**given | {"do_sample": False} | settings)


DECODER.row("test_greedy_generate_stereo_outputs", CAUSAL)(lambda s: shown_in_generate(s, channels=2))
MUSICGEN.row("test_greedy_generate_stereo_outputs", WHOLE)(lambda s: shown_in_generate(s, channels=2))


CUSTOM = "It says that the suite runs a part of the mixin of generation; here the rest of it has rows or reasons."
for suite in (DECODER, MUSICGEN):
    suite.reason(CUSTOM, "test_generation_tester_mixin_inheritance")
DECODER.reason(
    "Of a decoder alone, transformers hangs its hook on a list that never runs; ours is tested in test_embedding.py.",
    "test_enable_input_require_grads",
)
DECODER.reason(
    "The decoder is one model, not several in one.", "test_attn_implementation_composite_models",
    "test_sdpa_can_dispatch_composite_models",
)  # fmt: skip


# Of the whole


@MUSICGEN.row("test_forward_signature", WHOLE)
def arguments(s: Subject) -> Made:
    names = list(inspect.signature(s.cls.forward).parameters)[1:8]
    assert names[:4] == ["input_ids", "attention_mask", "input_values", "padding_mask"]
    assert names[4:] == ["decoder_input_ids", "decoder_attention_mask", "encoder_outputs"]
    return names


@MUSICGEN.row("test_requires_grad_with_frozen_encoders", WHOLE)
def frozen(s: Subject) -> Made:
    told = []
    for part, other in (("audio_encoder", "text_encoder"), ("text_encoder", "audio_encoder")):
        model = s.open()
        getattr(model, f"freeze_{part}")()
        for name in (part, other):
            told.append({p.requires_grad for p in getattr(model, name).parameters()})
        assert told[-2:] == [{False}, {True}]
    return told


MUSICGEN.reason(
    "It needs a GPU, on which half precision is generated from; test_hf_generate.py does on a CPU.",
    "test_generate_fp16",
)
MUSICGEN.reason(
    "It looks for modules of flash-attn, which is no dependency: flash kernels here are SDPA's.",
    "test_flash_attn_2_conversion",
)
MUSICGEN.reason(
    "Heads and embeddings of codebooks are not tied, and the suite has it off.", "test_tied_model_weights_key_ignore"
)
MUSICGEN.reason(
    "The whole is several models in one, of which the composite tests ask.",
    "test_sdpa_can_dispatch_non_composite_models",
)


# Generation


def audio_or_codes(s: Subject, **settings: Any) -> Made:
    torch.manual_seed(3)
    made = generated(s, s.shared, max_new_tokens=12, **settings)
    assert made.shape[-1] == 12 - 3 if not s.whole else made.shape[1:] == (1, 9 * tiny.HOP)
    return [made]


GENERATION.row("test_greedy_generate", WHOLE)(audio_or_codes)
GENERATION.row("test_sample_generate", WHOLE)(lambda s: audio_or_codes(s, do_sample=True, temperature=0.7, top_k=10))
GENERATION.row("test_greedy_generate_dict_outputs", *SCORED)(shown_in_generate)


@GENERATION.row("test_greedy_generate_dict_outputs_use_cache", WHOLE)
def with_the_cache(s: Subject) -> Made:
    """And without it: the same, from the same sequences. transformers gives no cache back where it was not used."""
    return shown_in_generate(s, use_cache=True)


@GENERATION.row("test_sample_generate_dict_output", WHOLE)
def drawn(s: Subject) -> Made:
    """There of two samples of each text, which transformers mixes up: of one."""
    torch.manual_seed(1)
    return shown_in_generate(s, do_sample=True)


@GENERATION.row("test_generate_without_input_ids", WHOLE)
def of_no_text(s: Subject) -> Made:
    model = s.shared
    made = model.generate(**model.get_unconditional_inputs(num_samples=2), do_sample=False, max_new_tokens=7)
    assert made.shape == (2, 1, 4 * tiny.HOP)
    return [made]


@GENERATION.row("test_past_key_values_format", *SCORED)
def a_cache(s: Subject) -> Made:
    out = s.run(s.shared, use_cache=True)
    past = out.past_key_values
    config = s.shared.config.decoder if s.whole else s.shared.config
    assert len(past) == config.num_hidden_layers
    T = s.inputs["decoder_input_ids" if s.whole else "input_ids"].shape[-1]
    assert past.get_seq_length() == T
    layers = [past[i] for i in range(len(past))] if s.ours else []
    theirs = [] if s.ours else [
        (own.keys, own.values, cross.keys, cross.values)
        for own, cross in zip(past.self_attention_cache.layers, past.cross_attention_cache.layers, strict=True)
    ]  # fmt: skip
    made = [list(layer) for layer in layers or theirs]
    assert {len(layer) for layer in made} == {4}
    return made


@GENERATION.row("test_left_padding_compatibility", CAUSAL)
def padded_on_the_left(s: Subject) -> Made:
    """Of codes without text. Positions are counted from the first column, so that padding moves them there and here:
    the mask alone is compared."""
    ids = s.inputs["input_ids"]
    padded = torch.nn.functional.pad(ids, (3, 0), value=256)
    mask = torch.ones(len(ids) // 4, padded.shape[1], dtype=torch.long)
    mask[:, :3] = 0
    with torch.no_grad():
        made = [
            s.shared(input_ids=padded.masked_fill(torch.arange(padded.shape[1]) < 3, code), attention_mask=mask)
            .logits[:, 3:]
            for code in (256, 7)
        ]  # fmt: skip
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-5)
    return made


@GENERATION.row("test_generate_from_inputs_embeds", WHOLE)
def of_embedded_text(s: Subject) -> Made:
    """There of a decoder's embeddings: of the text's, which MusicGen generates from."""
    model, given = s.shared, dict(s.inputs)
    settings = {"do_sample": False, "max_new_tokens": 9, "attention_mask": given["attention_mask"]}
    embeds = model.get_input_embeddings()(given["input_ids"])
    by_ids = model.generate(input_ids=given["input_ids"], **settings)
    encoded = model.text_encoder(inputs_embeds=embeds, attention_mask=given["attention_mask"])
    by_embeds = model.generate(encoder_outputs=encoded, **settings)
    torch.testing.assert_close(by_embeds, by_ids, rtol=0, atol=1e-5)
    if s.ours:
        assert torch.equal(model.generate(inputs_embeds=embeds, **settings), by_ids)
    return [by_ids]


@GENERATION.row("test_eager_matches_sdpa_generate", WHOLE)
def both_kinds_of_attention(s: Subject) -> Made:
    parts = {"text_encoder": "eager", "audio_encoder": "eager"}
    made = [
        generated(s, s.open(attn_implementation=parts | {"decoder": name}), max_new_tokens=12)
        for name in ("eager", "sdpa")
    ]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-3)
    return made


# What generate() here refuses, by the test that asks for it; in transformers the test runs of other models alone.
REFUSED: dict[str, dict[str, Any]] = {
    "test_beam_search_generate": {"num_beams": 2},
    "test_beam_search_generate_dict_output": {"num_beams": 2, "length_penalty": 2.0},
    "test_beam_search_generate_dict_outputs_use_cache": {"num_beams": 2, "use_cache": True},
    "test_beam_sample_generate": {"num_beams": 2, "do_sample": True},
    "test_beam_sample_generate_dict_output": {"num_beams": 2, "do_sample": True, "early_stopping": False},
    "test_group_beam_search_generate": {"num_beam_groups": 2},
    "test_group_beam_search_generate_dict_output": {"diversity_penalty": 2.0},
    "test_constrained_beam_search_generate": {"constraints": [1]},
    "test_constrained_beam_search_generate_dict_output": {"force_words_ids": [[1]]},
    "test_contrastive_generate": {"penalty_alpha": 0.6},
    "test_contrastive_generate_dict_outputs_use_cache": {"penalty_alpha": 0.6, "use_cache": True},
    "test_contrastive_generate_low_memory": {"penalty_alpha": 0.6, "low_memory": True},
    "test_assisted_decoding_matches_greedy_search": {"assistant_model": 1},
    "test_assisted_decoding_sample": {"assistant_model": 1, "do_sample": True},
    "test_prompt_lookup_decoding_matches_greedy_search": {"prompt_lookup_num_tokens": 2},
    "test_dola_decoding_sample": {"dola_layers": "low"},
}
GENERATION.reason(
    "The suite runs it of no MusicGen: several codebooks are not one sequence to search in. It is refused, see below.",
    *REFUSED,
)
CACHES = {
    "test_offloaded_cache_implementation": "offloaded",
    "test_generate_with_static_cache": "static",
    "test_generate_from_inputs_embeds_with_static_cache": "static",
    "test_generate_with_quant_cache": "quantized",
}
GENERATION.reason(
    "There is one cache, which is allocated once; the name of another is taken and changes nothing, see below.",
    *CACHES,
)
GENERATION.reason(
    "It makes candidates of transformers' own class alone, without a model.", "test_prompt_lookup_decoding_stops_at_eos"
)
GENERATION.reason(
    "Head masks are gone from transformers 5; tests/v4/test_head_masks.py asks both libraries.",
    "test_generate_with_head_masking",
)
GENERATION.reason("It needs several devices, and beams.", "test_model_parallel_beam_search")
GENERATION.reason(
    "It asks this of models with a static cache alone; compiling is tested in test_compile.py.",
    "test_generate_compile_model_forward",
)
GENERATION.reason(
    "MusicGen has no logits_to_keep, there neither.", "test_generate_methods_with_logits_to_keep",
    "test_assisted_decoding_with_logits_to_keep",
)  # fmt: skip
GENERATION.reason(
    "The suite runs it of no MusicGen; a call goes on from the cache of another in test_hf_generate.py.",
    "test_generate_continue_from_past_key_values",
)
GENERATION.reason("It looks for a base class of transformers' own.", "test_inherits_generation_mixin")
GENERATION.reason(
    "It needs a GPU and the package flash-attn; flash kernels here are SDPA's.", "test_eager_matches_fa2_generate"
)

GENERATED = [
    "test_greedy_generate", "test_greedy_generate_dict_outputs", "test_greedy_generate_dict_outputs_use_cache",
    "test_sample_generate", "test_sample_generate_dict_output", "test_beam_search_generate",
    "test_beam_search_generate_dict_output", "test_beam_search_generate_dict_outputs_use_cache",
    "test_model_parallel_beam_search", "test_beam_sample_generate", "test_beam_sample_generate_dict_output",
    "test_generate_without_input_ids", "test_group_beam_search_generate",
    "test_group_beam_search_generate_dict_output", "test_constrained_beam_search_generate",
    "test_constrained_beam_search_generate_dict_output", "test_contrastive_generate",
    "test_contrastive_generate_dict_outputs_use_cache", "test_contrastive_generate_low_memory",
    "test_assisted_decoding_matches_greedy_search", "test_prompt_lookup_decoding_matches_greedy_search",
    "test_dola_decoding_sample", "test_assisted_decoding_sample", "test_prompt_lookup_decoding_stops_at_eos",
    "test_generate_with_head_masking", "test_left_padding_compatibility", "test_past_key_values_format",
    "test_generate_from_inputs_embeds", "test_generate_from_inputs_embeds_with_static_cache",
    "test_generate_continue_from_past_key_values", "test_offloaded_cache_implementation",
    "test_generate_with_static_cache", "test_generate_with_quant_cache", "test_generate_compile_model_forward",
    "test_generate_methods_with_logits_to_keep", "test_assisted_decoding_with_logits_to_keep",
    "test_inherits_generation_mixin", "test_eager_matches_sdpa_generate", "test_eager_matches_fa2_generate",
]  # fmt: skip


# Integration


PAIR = ["80s music", "Club techno"]


def processed(s: Subject, **given: Any) -> dict[str, Any]:
    made = s.library.MusicgenProcessor.from_pretrained(s.folder)(text=PAIR, padding=True, return_tensors="pt", **given)
    assert len(made["input_ids"]) == len(PAIR)
    return dict(made)


def beeps(channels: int = 1) -> dict[str, Any]:
    """A tone that is there half of the time, of half a second and of one, at the tiny codec's rate."""
    clips = []
    for seconds in (0.5, 1.0):
        t = np.arange(int(seconds * tiny.RATE)) / tiny.RATE
        tone = np.cos(2 * np.pi * 40 * t) * (t % 0.25 >= 0.125)
        clips.append(tone if channels == 1 else np.stack([tone, tone]))
    return {"audio": clips, "sampling_rate": tiny.RATE}


@INTEGRATION.row("MusicgenIntegrationTests::test_logits_text_prompt", WHOLE)
def logits_of_a_text(s: Subject) -> Made:
    given = processed(s)
    start = torch.full((2 * 4, 1), 256)
    with torch.no_grad():
        made = s.shared(**given, decoder_input_ids=start).logits
    assert made.shape == (8, 1, 256)
    return [made]


@INTEGRATION.row("MusicgenIntegrationTests::test_logits_text_audio_prompt", WHOLE)
def logits_of_a_text_and_a_sound(s: Subject) -> Made:
    with torch.no_grad():
        made = s.shared(**processed(s, **beeps())).logits
    assert made.shape == (8, 50, 256)
    return [made]


def clips(s: Subject, columns: int, frames: int, channels: int = 1, sound: bool = False, **settings: Any) -> Made:
    source = stereo(s) if channels == 2 else s
    given = processed(source, **beeps(channels) if sound else {})
    transformers.set_seed(0)
    made = source.shared.generate(**given, max_new_tokens=columns, **settings)
    assert made.shape == (2, channels, frames * tiny.HOP)
    return [made]


def of_none(s: Subject, samples: int, columns: int, channels: int = 1, **settings: Any) -> Made:
    model = (stereo(s) if channels == 2 else s).shared
    transformers.set_seed(0)
    made = model.generate(**model.get_unconditional_inputs(samples), max_new_tokens=columns, **settings)
    frames = columns - 3 if columns >= 6 else columns  # there is no delay pattern below 7 columns
    assert made.shape == (samples, channels, frames * tiny.HOP)
    return [made]


MONO, STEREO = "MusicgenIntegrationTests::", "MusicgenStereoIntegrationTests::"
PLAIN: dict[str, Any] = {"do_sample": False, "guidance_scale": None}
CLIPS: dict[str, Row] = {
    MONO + "test_generate_unconditional_greedy": lambda s: of_none(s, 1, 5, do_sample=False),
    MONO + "test_generate_unconditional_sampling": lambda s: of_none(s, 2, 10, do_sample=True),
    MONO + "test_generate_text_prompt_greedy": lambda s: clips(s, 10, 7, **PLAIN),
    MONO + "test_generate_text_prompt_greedy_with_classifier_free_guidance": lambda s: clips(
        s, 10, 7, do_sample=False, guidance_scale=3
    ),
    MONO + "test_generate_text_prompt_sampling": lambda s: clips(s, 10, 7, **PLAIN | {"do_sample": True}),
    MONO + "test_generate_text_audio_prompt": lambda s: clips(s, 10, 57, sound=True, **PLAIN),
    STEREO + "test_generate_unconditional_greedy": lambda s: of_none(s, 1, 12, 2, do_sample=False),
    STEREO + "test_generate_text_audio_prompt": lambda s: clips(
        s, 12, 59, 2, sound=True, do_sample=False, guidance_scale=3.0
    ),
}
for name, function in CLIPS.items():
    INTEGRATION.row(name, WHOLE)(function)
INTEGRATED = [MONO + "test_logits_text_prompt", MONO + "test_logits_text_audio_prompt", *CLIPS]

OWN = {
    "decoder": ["test_config", "test_greedy_generate_stereo_outputs", "test_generation_tester_mixin_inheritance"],
    "musicgen": [
        "test_forward_signature", "test_requires_grad_with_frozen_encoders", "test_generate_fp16",
        "test_flash_attn_2_conversion", "test_tied_model_weights_key_ignore", "test_greedy_generate_stereo_outputs",
        "test_generation_tester_mixin_inheritance",
    ],
}  # fmt: skip
SUITES = {
    "MusicgenDecoderTest": (DECODER, COMMON + OWN["decoder"]),
    "MusicgenTest": (MUSICGEN, COMMON + OWN["musicgen"]),
    "GenerationTesterMixin": (GENERATION, GENERATED),
    "Integration": (INTEGRATION, INTEGRATED),
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Subject]]:
    root = tmp_path_factory.mktemp("models")
    for name, channels in (("mono", 1), ("stereo", 2)):
        folder = tiny.complete(root / f"{name}-{WHOLE}", channels)
        config = json.loads((folder / "config.json").read_text())
        config["decoder"]["dropout"] = config["text_encoder"]["dropout_rate"] = 0.0
        (folder / "config.json").write_text(json.dumps(config))
        whole = transformers.MusicgenForConditionalGeneration.from_pretrained(folder)
        whole.decoder.save_pretrained(root / f"{name}-{CAUSAL}")
    ids, mask = tiny.text(3)
    codes = torch.randint(0, 256, (12, 5), generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 256, (3, 5, 4), generator=torch.Generator().manual_seed(2))
    whole_inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": codes}
    memory = {"encoder_hidden_states": tiny.noise(3, 7, 32), "encoder_attention_mask": mask}
    given = {WHOLE: whole_inputs, CAUSAL: {"input_ids": codes} | memory, BASE: {"input_ids": codes} | memory}
    cached: dict[Any, Any] = {}
    return {
        kind: [
            Subject(
                library, kind, root / f"mono-{WHOLE if kind == WHOLE else CAUSAL}", root, inputs,
                labels if kind in SCORED else None, cached,
            )
            for library in (transformers, hf)
        ]
        for kind, inputs in given.items()
    }  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_every_test_has_a_row_or_a_reason(suite: str) -> None:
    rows, names = SUITES[suite]
    rows.check(names)


@pytest.mark.parametrize(
    ("suite", "name", "kind"), [(suite, *case.values) for suite, (rows, _) in SUITES.items() for case in rows.cases()]
)
def test_both_libraries_do_what_the_suite_asks(
    suite: str, name: str, kind: str, subjects: dict[str, list[Subject]], tmp_path: Path
) -> None:
    SUITES[suite][0].compare(name, tmp_path, *subjects[kind])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name: str, subjects: dict[str, list[Subject]]) -> None:
    s = subjects[WHOLE][1]
    refused = "|".join(field for field in REFUSED[name] if field not in ("do_sample", "use_cache"))
    with pytest.raises(ValueError, match=refused):
        generated(s, s.shared, max_new_tokens=9, **REFUSED[name])


@pytest.mark.parametrize("cache", sorted({*CACHES.values()}))
def test_the_name_of_another_cache_changes_nothing(cache: str, subjects: dict[str, list[Subject]]) -> None:
    s = subjects[WHOLE][1]
    made = [generated(s, s.shared, max_new_tokens=9, **more) for more in ({}, {"cache_implementation": cache})]
    assert torch.equal(*made)
