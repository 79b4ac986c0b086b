"""What transformers' suite asks of T5's encoder alone, asked of both libraries.

A row for each test of T5EncoderOnlyModelTest of models/t5/test_modeling_t5.py, and of the mixin under it (rows.py); the
assertion is written anew.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers

from musicgen_ref import hf
from tests import tiny
from tests.peers.rows import COMMON, MIXIN, TEXT, Made, Subject, first

SUITE = MIXIN.of(TEXT)
CLASS = "models/t5/test_modeling_t5.py::T5EncoderOnlyModelTest::"


@SUITE.row("test_config", TEXT)
def configuration(s: Subject) -> Made:
    kind = s.library.T5Config
    config = kind(d_model=37)
    assert config.d_model == config.hidden_size == 37
    assert json.loads(config.to_json_string())["d_model"] == 37
    config.save_pretrained(s.empty)
    again = kind.from_pretrained(s.empty)
    assert again.to_dict() == config.to_dict()
    assert kind(output_attentions=True).output_attentions
    assert kind.from_dict(config.to_dict()).to_dict() == config.to_dict()
    kept = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size", "dropout_rate", "feed_forward_proj")
    return [{name: getattr(again, name) for name in kept}]


@SUITE.row("test_model", TEXT)
def states(s: Subject) -> Made:
    ids = s.inputs["input_ids"]
    made = [first(s, s.shared), s.run(s.shared, attention_mask=None).last_hidden_state]
    assert made[0].shape == made[1].shape == (*ids.shape, s.shared.config.d_model)
    return made


@SUITE.row("test_model_fp16_forward", TEXT)
def half_precision(s: Subject) -> Made:
    made = s.run(s.open().half())["last_hidden_state"]
    assert made.dtype == torch.float16
    assert not made.isnan().any()
    return []


@SUITE.replaced("test_tied_weights_keys", TEXT)
def one_embedding_of_two_names(s: Subject) -> Made:
    model = s.open()
    with torch.no_grad():
        model.shared.weight.zero_()
    assert not model.encoder.embed_tokens.weight.any()
    names = sorted(name for name in model.state_dict() if "embed" in name or "shared" in name)
    assert names == ["encoder.embed_tokens.weight", "shared.weight"]
    return [first(s, model)]


SUITE.reason("T5ForTokenClassification is another model.", "test_with_token_classification_head")
SUITE.reason(
    "It asks this of models with heads, which an encoder has none of.", "test_training", "test_correct_missing_keys",
    "test_training_gradient_checkpointing", "test_training_gradient_checkpointing_use_reentrant",
    "test_training_gradient_checkpointing_use_reentrant_false", "test_tie_model_weights",
)  # fmt: skip
SUITE.reason(
    "Here the decoder's activations are recomputed, the text encoder's, which is frozen in training MusicGen, are not.",
    "test_gradient_checkpointing_enable_disable", "test_peft_gradient_checkpointing_enable_disable",
)  # fmt: skip
SUITE.reason(
    "The encoder is one model, not several in one.", "test_attn_implementation_composite_models",
    "test_sdpa_can_dispatch_composite_models",
)  # fmt: skip

OWN = ["test_config", "test_model", "test_model_fp16_forward", "test_with_token_classification_head"]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    folder = tmp_path_factory.mktemp("text")
    model = transformers.T5EncoderModel(tiny.text_config(relative_attention_num_buckets=8))
    tiny.randomize(model).save_pretrained(folder)
    ids, mask = tiny.text(3)
    given = {"input_ids": ids, "attention_mask": mask}
    return [Subject(library, TEXT, folder, folder, given) for library in (transformers, hf)]


def test_every_test_has_a_row_or_a_reason() -> None:
    SUITE.check(COMMON + OWN)


@pytest.mark.parametrize(("name", "kind"), SUITE.cases())
def test_both_libraries_do_what_the_suite_asks(name: str, kind: str, subjects: list[Subject], tmp_path: Path) -> None:
    SUITE.compare(name, tmp_path, *subjects)
