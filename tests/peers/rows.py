"""What the peer suites share: rows of two libraries, and transformers' ModelTesterMixin as rows that hold of any model.

The names are those of transformers' tests/test_modeling_common.py; every assertion is written anew. What its version 5
no longer asks, because the thing itself is gone, has a reason in place of a row.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from musicgen_ref import hf
from tests import tiny


def equal(ours: Any, theirs: Any) -> None:
    """Numbers within 1e-5, everything else the same."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor)
        assert ours.dtype == theirs.dtype
        ours, theirs = (tensor.detach().float().numpy() for tensor in (ours, theirs))
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for mine, their in zip(ours, theirs, strict=True):
            equal(mine, their)
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        equal(list(ours), list(theirs))
    elif isinstance(theirs, np.ndarray):
        assert ours.shape == theirs.shape
        most = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=1))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * most)
    else:
        assert ours == theirs


@dataclass
class Subject:
    """One model of one library: its class, a directory that holds it and is not written to, and an empty one."""

    library: Any
    kind: str
    folder: Path
    empty: Path
    inputs: dict[str, Any]
    labels: Tensor | None = None
    cached: dict[tuple[Any, str, Path], Any] = field(default_factory=dict)

    @property
    def cls(self) -> Any:
        return getattr(self.library, self.kind)

    @property
    def ours(self) -> bool:
        return self.library is hf

    def open(self, **load: Any) -> Any:
        """A model of its own for the caller to change."""
        if load:
            return self._opened(**load)
        return copy.deepcopy(self.shared)

    @property
    def shared(self) -> Any:
        """The model as it is saved, opened once; it is not to be changed."""
        key = self.library, self.kind, self.folder
        if key not in self.cached:
            self.cached[key] = self._opened()
        return self.cached[key]

    def _opened(self, **load: Any) -> Any:
        model = self.cls.from_pretrained(self.folder, **load)
        for p in (model[0] if isinstance(model, tuple) else model).parameters():
            p.data = p.data.clone()  # to where BLAS sums as it does for ours: see tiny.pair()
        return model

    def config(self) -> Any:
        return copy.deepcopy(self.shared.config)

    def parts(self, config: Any) -> list[Any]:
        """The configurations that hold the fields of layers."""
        names = ("text_encoder", "audio_encoder", "decoder")
        return [getattr(config, name) for name in names] if self.whole else [config]

    @property
    def whole(self) -> bool:
        return self.kind == "MusicgenForConditionalGeneration"

    @torch.no_grad()
    def run(self, model: Any, **more: Any) -> Any:
        return model(**self.inputs | more)


Made = list[Any]
Row = Callable[[Subject], Made]

WHOLE, CAUSAL, BASE = "MusicgenForConditionalGeneration", "MusicgenForCausalLM", "MusicgenModel"
CODEC, TEXT = "EncodecModel", "T5EncoderModel"
ALL = (WHOLE, CAUSAL, BASE, CODEC, TEXT)
SAVED = (WHOLE, CAUSAL, CODEC, TEXT)  # MusicgenModel is saved with its heads, by MusicgenForCausalLM
ATTENDING = (WHOLE, CAUSAL, BASE, TEXT)
SCORED = (WHOLE, CAUSAL)


class Suite:
    """Rows and reasons, by the name of the test."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Row, tuple[str, ...]]] = {}
        self.reasons: dict[str, str] = {}

    def row(self, name: str, *kinds: str) -> Callable[[Row], Row]:
        """A function that asserts of a model of a library, and returns what is equal in both; kinds: the models."""

        def add(function: Row) -> Row:
            assert name not in self.rows
            self.rows[name] = function, kinds
            return function

        return add

    def of(self, *kinds: str) -> "Suite":
        """The rows for these models, in a suite of their own."""
        made = Suite()
        made.reasons |= self.reasons
        for name, (function, there) in self.rows.items():
            made.rows[name] = function, tuple(kind for kind in there if kind in kinds)
        return made

    def reason(self, text: str, *names: str) -> None:
        """Why tests do not apply; in place of a row, where a mixin has one."""
        for name in names:
            self.rows.pop(name, None)
            self.reasons[name] = text

    def replaced(self, name: str, *kinds: str) -> Callable[[Row], Row]:
        """A row in the place of the mixin's."""
        self.rows.pop(name, None)
        self.reasons.pop(name, None)
        return self.row(name, *kinds)

    def cases(self) -> list[Any]:
        return [
            pytest.param(name, kind, id=f"{name}-{kind}") for name, (_, kinds) in self.rows.items() for kind in kinds
        ]

    def check(self, names: list[str]) -> None:
        """That every test has a row that runs or a reason, and no other has."""
        assert len(names) == len({*names})
        assert {*names} == self.rows.keys() | self.reasons.keys()
        assert not self.rows.keys() & self.reasons.keys()
        assert all(kinds for _, kinds in self.rows.values())
        assert all(text.endswith(".") and len(text.split()) > 3 for text in self.reasons.values())

    def compare(self, name: str, folder: Path, theirs: Subject, ours: Subject) -> None:
        """Run a row for both, each with an empty directory of its own inside `folder`."""
        for subject in (theirs, ours):
            subject.empty = folder / subject.library.__name__
            subject.empty.mkdir()
        function, _ = self.rows[name]
        expected = function(theirs)
        equal(function(ours), expected)


MIXIN = Suite()
mixin = MIXIN.row


def first(s: Subject, model: Any, **more: Any) -> Tensor:
    return s.run(model, **more)[0]


def state_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor], but: set[str] | frozenset[str] = frozenset()) -> None:
    assert a.keys() == b.keys()
    for name in a.keys() - but:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)


# Saving and loading


@mixin("test_save_load", *SAVED)
def saved_and_loaded(s: Subject) -> Made:
    model = s.open()
    before = first(s, model)
    model.save_pretrained(s.empty)
    assert (s.empty / "config.json").exists()
    assert (s.empty / "generation_config.json").exists() == bool(model.can_generate())
    after = first(s, s.cls.from_pretrained(s.empty))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    return [after, bool(model.can_generate())]


@mixin("test_from_pretrained_no_checkpoint", *ALL)
def of_a_state_and_no_directory(s: Subject) -> Made:
    state = state_of(s.shared)
    made = s.cls.from_pretrained(pretrained_model_name_or_path=None, config=s.config(), state_dict=state).eval()
    same_state(made.state_dict(), state)
    return [first(s, made)]


@mixin("test_keep_in_fp32_modules", *SAVED)
def dtypes_of_half_precision(s: Subject) -> Made:
    """But for the norms of a codec's weights, which are made here as they are asked for, in float32."""
    state = s.open(dtype=torch.float16).state_dict()
    dtypes = {name: t.dtype for name, t in state.items() if t.is_floating_point() and "original0" not in name}
    assert torch.float16 in dtypes.values()
    return [sorted(dtypes.items(), key=str)]


@mixin("test_save_load_keys_to_ignore_on_save", *SAVED)
def nothing_is_left_out_of_the_file(s: Subject) -> Made:
    model = s.open()
    assert not model._keys_to_ignore_on_save
    model.save_pretrained(s.empty)
    with safe_open(s.empty / "model.safetensors", "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    result = model.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert {*result.missing_keys} <= {name for name in model.state_dict() if name.endswith("embed_tokens.weight")}
    return [sorted(state)]


@mixin("test_save_load_fast_init_from_base", *ALL)
def one_tensor_is_missing(s: Subject) -> Made:
    """What a state lacks is drawn, and told; the rest is loaded. Every model opens with one tensor of each dimension
    left out."""
    state, missing = state_of(s.shared), []
    for dims in (1, 2):
        key = next(name for name, t in sorted(state.items()) if t.dim() == dims and "layer.0" not in name
                   and "original" not in name and "embed" not in name and t.is_floating_point())  # fmt: skip
        given = {name: tensor for name, tensor in state.items() if name != key}
        made, info = s.cls.from_pretrained(None, config=s.config(), state_dict=given, output_loading_info=True)
        assert {*info["missing_keys"]} == {key}
        same_state(made.state_dict(), state, {key})
        missing.append(key)
    return missing


@mixin("test_torch_save_load", *ALL)
def states_through_a_file(s: Subject) -> Made:
    state = s.shared.state_dict()
    for zipped in (True, False):
        torch.save(state, s.empty / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        same_state(torch.load(s.empty / "pytorch_model.bin", weights_only=True), state)
    return [{name: tuple(tensor.shape) for name, tensor in state.items()}]


@mixin("test_can_use_safetensors", *SAVED)
def safetensors(s: Subject) -> Made:
    model = s.open()
    model.save_pretrained(s.empty, safe_serialization=True)
    again, info = s.cls.from_pretrained(s.empty, output_loading_info=True)
    same_state(again.state_dict(), model.state_dict())
    assert not info["missing_keys"]
    return [sorted(info["unexpected_keys"])]


@mixin("test_load_save_without_tied_weights", *SAVED)
def untied(s: Subject) -> Made:
    """Heads and embeddings are two; a T5's two names of its embedding are one tensor whatever the field says, of
    which transformers unties them."""
    config = s.config()
    for part in (config, *s.parts(config)):
        part.tie_word_embeddings = s.kind == TEXT
    torch.manual_seed(0)
    model = s.cls(config).eval()
    model.save_pretrained(s.empty)
    again, info = s.cls.from_pretrained(s.empty, output_loading_info=True)
    same_state(again.state_dict(), model.state_dict())
    assert not info["missing_keys"]
    return [sorted(model.state_dict())]


@mixin("test_model_weights_reload_no_missing_tied_weights", *ALL)
def every_tensor_is_missing(s: Subject) -> Made:
    """There of a file of another tensor alone, which is an error here: of a state without any."""
    made, info = s.cls.from_pretrained(None, config=s.config(), state_dict={}, output_loading_info=True)
    missing = {*info["missing_keys"]}
    assert missing <= made.state_dict().keys()
    left = made.state_dict().keys() - missing
    assert all(name.endswith(("embed_tokens.weight", "inited", "cluster_size", "embed_avg")) for name in left)
    return []


@mixin("test_correct_missing_keys", *SCORED)
def heads_are_missing(s: Subject) -> Made:
    state = {name: tensor for name, tensor in state_of(s.shared).items() if "lm_heads" not in name}
    _, info = s.cls.from_pretrained(None, config=s.config(), state_dict=state, output_loading_info=True)
    assert len(info["missing_keys"]) == 4
    return [sorted(info["missing_keys"])]


@mixin("test_load_with_mismatched_shapes", *ALL)
def another_shape(s: Subject) -> Made:
    """There of the heads that classify, of another number of classes."""
    state = state_of(s.shared)
    key = next(name for name, t in sorted(state.items()) if t.dim() == 1 and t.is_floating_point() and t.numel() > 1)
    given = state | {key: state[key][:-1].clone()}
    with pytest.raises((RuntimeError, ValueError)):
        s.cls.from_pretrained(None, config=s.config(), state_dict=given)
    made, info = s.cls.from_pretrained(
        None, config=s.config(), state_dict=given, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert key in str(info["mismatched_keys"])
    same_state(made.state_dict(), state, {key})
    return [key]


@mixin("test_model_is_small", *ALL)
def small(s: Subject) -> Made:
    """Of a codec the parameters differ, whose weight norm is folded here."""
    count = s.shared.num_parameters()
    assert 0 < count < 1_000_000
    if s.kind in (CODEC, WHOLE):
        count -= sum(p.numel() for name, p in s.shared.named_parameters() if "conv" in name or "lstm" in name)
    return [count]


# Values


@mixin("test_initialization", *ALL)
def initial_values(s: Subject) -> Made:
    """With a spread of next to nothing all that is drawn is 0, or stays 1, but for convolutions and LSTMs."""
    config = s.config()
    for part in (config, *s.parts(config)):
        part.initializer_factor = 1e-10
    torch.manual_seed(0)
    means = {}
    for name, p in s.cls(config).named_parameters():
        if "conv" in name or "lstm" in name or "audio_encoder" in name or s.kind == CODEC or not p.requires_grad:
            assert abs(float(p.detach().mean())) <= 1
        else:
            means[name] = round(float(p.detach().mean()), 6)
            assert means[name] in (0, 1), name
    return [means]


@mixin("test_determinism", *ALL)
def the_same_again(s: Subject) -> Made:
    a, b = first(s, s.shared), first(s, s.shared)
    assert torch.equal(a, b)
    return [a]


@mixin("test_batching_equivalence", *ALL)
def one_row_of_a_batch(s: Subject) -> Made:
    batched = first(s, s.shared)
    B = len(next(iter(s.inputs.values())))
    if s.kind in (CAUSAL, BASE):
        B //= 4
    alone = first(s, s.shared, **{name: value[: len(value) // B] for name, value in s.inputs.items()})
    if s.kind == CODEC:
        batched = batched[:, :1]  # pieces come first
    torch.testing.assert_close(batched[: len(alone)], alone, rtol=0, atol=1e-3)
    return [alone]


def trained(s: Subject, checkpointing: dict[str, Any] | None = None, enable: bool = True) -> Made:
    """Of models without dropout, whose draws would differ."""
    model = s.open()
    if s.whole:
        model.freeze_audio_encoder()  # it has no part in the loss
    if enable:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    model.train()
    loss = model(**s.inputs, labels=s.labels, use_cache=False).loss
    loss.backward()
    wanting = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not wanting
    grads = {name: p.grad for name, p in model.named_parameters() if "lm_heads" in name or "fc1.weight" in name}
    return [loss, [grads[name] for name in sorted(grads)]]


mixin("test_training", *SCORED)(lambda s: trained(s, enable=False))
mixin("test_training_gradient_checkpointing", *SCORED)(lambda s: trained(s))
mixin("test_training_gradient_checkpointing_use_reentrant", *SCORED)(lambda s: trained(s, {"use_reentrant": True}))
mixin("test_training_gradient_checkpointing_use_reentrant_false", *SCORED)(
    lambda s: trained(s, {"use_reentrant": False})
)


@mixin("test_gradient_checkpointing_enable_disable", *SCORED)
def switched(s: Subject) -> Made:
    """By its name in transformers 5, and by the one before."""
    model, told = s.open(), []
    for kind in ("activation", "gradient"):
        told.append(getattr(model, f"is_{kind}_checkpointing"))
        for name in ("enable", "disable"):
            getattr(model, f"{kind}_checkpointing_{name}")()
            told.append(model.is_activation_checkpointing)
    assert told == [False, True, False] * 2
    return told


@mixin("test_peft_gradient_checkpointing_enable_disable", *SCORED)
def switched_under_an_adapter(s: Subject) -> Made:
    wrapped = peft.get_peft_model(s.open(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model = wrapped.get_base_model()
    told = []
    for name in ("enable", "disable"):
        getattr(wrapped, f"gradient_checkpointing_{name}")()
        told.append(model.is_activation_checkpointing)
    assert told == [True, False]
    return told


@mixin("test_enable_input_require_grads", WHOLE, TEXT)
def inputs_that_need_gradients(s: Subject) -> Made:
    model = s.open().requires_grad_(False)
    before = model(**s.inputs)[0].requires_grad
    model.enable_input_require_grads()
    after = model(**s.inputs)[0].requires_grad
    model.disable_input_require_grads()
    assert (before, after, model(**s.inputs)[0].requires_grad) == (False, True, False)
    return []


@mixin("test_feed_forward_chunking", *ATTENDING)
def fed_forward_in_chunks(s: Subject) -> Made:
    """A field that none of these models reads: it is kept, and changes nothing."""
    model = s.open()
    before = first(s, model)
    for part in s.parts(model.config):
        part.chunk_size_feed_forward = 1
    torch.testing.assert_close(first(s, model), before, rtol=0, atol=1e-6)
    return [before]


# What is shown


def names_of(s: Subject, what: str) -> tuple[str, ...]:
    if s.whole:
        return (f"encoder_{what}", f"decoder_{what}") + (("cross_attentions",) if what == "attentions" else ())
    return (what, "cross_attentions") if what == "attentions" and s.kind != TEXT else (what,)


def shown(s: Subject, what: str) -> Made:
    asked = s.run(s.shared if s.ours else s.open(attn_implementation="eager"), **{f"output_{what}": True})
    told = s.open(attn_implementation="eager")
    for part in s.parts(told.config):
        setattr(part, f"output_{what}", True)
    by_configuration = s.run(told)
    made = []
    for name in names_of(s, what):
        assert isinstance(asked[name], tuple)
        assert len(asked[name]) == 2 + (what == "hidden_states")
        equal(by_configuration[name], asked[name])
        made.append(asked[name])
    quiet = s.run(s.shared)
    assert all(quiet.get(name) is None for name in names_of(s, what))
    return made


mixin("test_attention_outputs", *ATTENDING)(lambda s: shown(s, "attentions"))
mixin("test_hidden_states_output", *ATTENDING)(lambda s: shown(s, "hidden_states"))


@mixin("test_retain_grad_hidden_states_attentions", *ATTENDING)
def gradients_of_what_is_shown(s: Subject) -> Made:
    model = s.open(attn_implementation="eager")
    out = model(**s.inputs, output_hidden_states=True, output_attentions=True)
    kept = [out[name][0] for what in ("hidden_states", "attentions") for name in names_of(s, what)]
    for tensor in kept:
        tensor.retain_grad()
    out[0].flatten()[0].backward()
    assert all(tensor.grad is not None for tensor in kept)
    return [tensor.grad for tensor in kept]


@mixin("test_model_outputs_equivalence", *ALL)
def tuples_and_outputs(s: Subject) -> Made:
    model = s.shared if s.ours or s.kind == CODEC else s.open(attn_implementation="eager")
    seen = {} if s.kind == CODEC else {"output_hidden_states": True, "output_attentions": True}
    labels = {} if s.labels is None else {"labels": s.labels}
    made = []
    for more in ({}, labels, seen, labels | seen):
        a, b = s.run(model, **more, return_dict=False), s.run(model, **more, return_dict=True)
        assert isinstance(a, tuple)
        assert isinstance(b, dict)
        assert len(a) == len(b.to_tuple()) == len(b)
        for mine, their in zip(a, b.to_tuple(), strict=True):
            if isinstance(mine, Tensor):
                torch.testing.assert_close(mine, their, rtol=0, atol=1e-5)
        names = tiny.our_names(b)
        made.append([name for name in names if s.kind != TEXT or name != "cross_attentions"])  # theirs has an empty one
    return made


@mixin("test_inputs_embeds", *ATTENDING)
def embeddings_in_place_of_ids(s: Subject) -> Made:
    model, given = s.shared, dict(s.inputs)
    ids, embed = given.pop("input_ids"), model.get_input_embeddings()
    if isinstance(embed, torch.nn.Embedding):
        given["inputs_embeds"] = embed(ids)
    else:
        codes = ids.unflatten(0, (-1, len(embed)))
        given["inputs_embeds"] = sum(layer(codes[:, k]) for k, layer in enumerate(embed))
    with torch.no_grad():
        made = model(**given)[0]
    if s.ours or s.kind not in (CAUSAL, BASE):
        torch.testing.assert_close(made, first(s, model), rtol=0, atol=1e-5)
    return [made[:, :1]]  # transformers puts every step of a decoder's embeddings at the first position


@mixin("test_model_get_set_embeddings", *ATTENDING)
def embeddings(s: Subject) -> Made:
    """Setting them is assigning them under their name: set_input_embeddings() of several codebooks fails there, too."""
    inputs = s.shared.get_input_embeddings()
    heads = s.shared.get_output_embeddings() if s.kind in SCORED else None
    each = [inputs] if isinstance(inputs, torch.nn.Embedding) else [*inputs]
    assert all(isinstance(layer, torch.nn.Embedding) for layer in each)
    assert heads is None or all(isinstance(layer, torch.nn.Linear) for layer in heads)
    return [[layer.weight for layer in each], [layer.weight for layer in heads or ()]]


@mixin("test_model_main_input_name", *ALL)
def main_input(s: Subject) -> Made:
    name = list(inspect.signature(s.cls.forward).parameters)[1]
    assert name == s.cls.main_input_name
    return [name]


# Attention


@mixin("test_attn_implementation_composite_models", WHOLE)
def attention_by_part(s: Subject) -> Made:
    parts = ("text_encoder", "audio_encoder", "decoder")
    model = s.open(attn_implementation=dict.fromkeys(parts, "eager"))
    told = [getattr(model.config, part)._attn_implementation for part in parts]
    assert told == ["eager"] * 3
    return [first(s, model)]


@mixin("test_sdpa_can_dispatch_non_composite_models", CAUSAL, BASE, TEXT)
def attention_of_a_part(s: Subject) -> Made:
    made = [s.open(**{"attn_implementation": name} if name else {}) for name in (None, "eager")]
    told = [model.config._attn_implementation for model in made]
    assert told == ["sdpa", "eager"]
    return [told, [first(s, model) for model in made]]


@mixin("test_sdpa_can_dispatch_composite_models", WHOLE)
def attention_of_the_whole(s: Subject) -> Made:
    """What is said of a codec, which has none, is not compared."""
    told = []
    for name in (None, "eager"):
        model = s.open(**{"attn_implementation": name} if name else {})
        told.append([getattr(model.config, part)._attn_implementation for part in ("text_encoder", "decoder")])
    assert told == [["sdpa", "sdpa"], ["eager", "eager"]]
    return told


@mixin("test_eager_matches_sdpa_inference", *ATTENDING)
def both_kinds_of_attention(s: Subject) -> Made:
    made = []
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.15)):
        given = {name: v.to(dtype) if v.is_floating_point() else v for name, v in s.inputs.items()}
        each = []
        for name in ("eager", "sdpa"):
            parts = dict.fromkeys(("text_encoder", "decoder"), name) | {"audio_encoder": "eager"}
            model = s.open(dtype=dtype, attn_implementation=parts if s.whole else name)
            each.append(replace(s, inputs=given).run(model)[0])
        torch.testing.assert_close(each[0], each[1], rtol=0.05 if dtype != torch.float32 else 0, atol=near)
        made += each if dtype == torch.float32 else [each[0].dtype]
    return made


TENSORFLOW = "There are no models of TensorFlow and Flax, in transformers 5 neither."
SEVERAL = "It needs several GPUs: where outputs are gathered, they are rebuilt as test_embedding.py rebuilds them."
OFFLOAD = "Parts on several devices, and on disk, are not offered: device_map is one device."
PRUNING = (
    "prune_heads() is gone from transformers 5, and the suites have it off; layers are pruned in test_embedding.py."
)
RESIZED = "The suites have it off: a vocabulary of codes is its codec's, and that of the text its tokenizer's."
FLASH = "It needs a GPU and the package flash-attn; flash kernels here are SDPA's."
TORCHSCRIPT = "config.torchscript and transformers' tracer are gone from transformers 5."
CLASSES = "It asks this of models that classify alone, which MusicGen has none of."

MIXIN.reason(
    TENSORFLOW, "test_pt_tf_model_equivalence", "test_equivalence_pt_to_flax", "test_equivalence_flax_to_pt",
    "test_tf_from_pt_safetensors", "test_flax_from_pt_safetensors",
)  # fmt: skip
MIXIN.reason(
    SEVERAL, "test_multi_gpu_data_parallel_forward", "test_model_parallelization", "test_model_parallel_equal_results"
)
MIXIN.reason(
    OFFLOAD, "test_disk_offload_bin", "test_disk_offload_safetensors", "test_cpu_offload", "test_model_parallelism"
)
MIXIN.reason(
    PRUNING, "test_head_pruning", "test_head_pruning_save_load_from_pretrained",
    "test_head_pruning_save_load_from_config_init", "test_head_pruning_integration",
)  # fmt: skip
MIXIN.reason(
    RESIZED, "test_resize_position_vector_embeddings", "test_resize_tokens_embeddings",
    "test_resize_tokens_embeddings_with_deepspeed", "test_resize_tokens_embeddings_with_deepspeed_multi_gpu",
    "test_resize_embeddings_untied", "test_resize_embeddings_untied_with_deepspeed",
    "test_resize_embeddings_untied_with_deepspeed_multi_gpu",
)  # fmt: skip
MIXIN.reason(
    FLASH, "test_flash_attn_2_inference_equivalence", "test_flash_attn_2_inference_equivalence_right_padding",
    "test_flash_attn_2_can_dispatch_composite_models", "test_flash_attn_2_fp32_ln", "test_flash_attn_2_from_config",
    "test_flash_attention_2_padding_matches_padding_free_with_position_ids", "test_sdpa_can_dispatch_on_flash",
)  # fmt: skip
MIXIN.reason(
    TORCHSCRIPT, "test_torchscript_simple", "test_torchscript_output_attentions",
    "test_torchscript_output_hidden_state", "test_torch_fx", "test_torch_fx_output_loss",
)  # fmt: skip
MIXIN.reason(
    CLASSES, "test_problem_types", "test_mismatched_shapes_have_properly_initialized_weights",
)  # fmt: skip
MIXIN.reason(
    "It makes a model of its own of transformers' PreTrainedModel; another shape is test_load_with_mismatched_shapes.",
    "test_matched_shapes_have_loaded_weights_when_some_mismatched_shapes_exist",
)
MIXIN.reason(
    "_fast_init is gone from transformers 5; a tensor that is missing is test_save_load_fast_init_from_base.",
    "test_save_load_fast_init_to_base",
)
MIXIN.reason(
    "low_cpu_mem_usage is how transformers 5 always loads, and here too: a file is read tensor by tensor.",
    "test_save_load_low_cpu_mem_usage", "test_save_load_low_cpu_mem_usage_checkpoints",
    "test_save_load_low_cpu_mem_usage_no_safetensors",
)  # fmt: skip
MIXIN.reason(
    "Head masks are gone from transformers 5; tests/v4/test_head_masks.py asks both libraries.", "test_headmasking"
)
MIXIN.reason(
    "Checkpointing is switched on by a method: transformers 5 reads no field of the configuration for it.",
    "test_gradient_checkpointing_backward_compatibility",
)
MIXIN.reason(
    "Embeddings in place of ids are compared with them in test_inputs_embeds.", "test_inputs_embeds_matches_input_ids"
)
MIXIN.reason(
    "Heads and embeddings of codebooks are not tied, and the suites have it off.", "test_tie_model_weights",
    "test_tied_weights_keys",
)  # fmt: skip
MIXIN.reason("None of these models attends within a sliding window.", "test_sdpa_matches_eager_sliding_window")
MIXIN.reason("It needs a GPU; compiling is tested in test_compile.py.", "test_sdpa_can_compile_dynamic",
             "test_torch_compile_for_training")  # fmt: skip
MIXIN.reason("It asks this of models with a static cache alone, none of these.", "test_custom_4d_attention_mask")
MIXIN.reason("MusicGen has no num_logits_to_keep, there neither.", "test_forward_with_num_logits_to_keep")

# The tests of the mixin.
COMMON = [
    "test_save_load", "test_from_pretrained_no_checkpoint", "test_keep_in_fp32_modules",
    "test_save_load_keys_to_ignore_on_save", "test_gradient_checkpointing_backward_compatibility",
    "test_gradient_checkpointing_enable_disable", "test_peft_gradient_checkpointing_enable_disable",
    "test_enable_input_require_grads", "test_save_load_fast_init_from_base", "test_save_load_low_cpu_mem_usage",
    "test_save_load_low_cpu_mem_usage_checkpoints", "test_save_load_low_cpu_mem_usage_no_safetensors",
    "test_save_load_fast_init_to_base", "test_torch_save_load", "test_initialization", "test_determinism",
    "test_batching_equivalence", "test_training", "test_training_gradient_checkpointing",
    "test_training_gradient_checkpointing_use_reentrant", "test_training_gradient_checkpointing_use_reentrant_false",
    "test_attention_outputs", "test_torchscript_simple", "test_torchscript_output_attentions",
    "test_torchscript_output_hidden_state", "test_torch_fx", "test_torch_fx_output_loss", "test_headmasking",
    "test_head_pruning", "test_head_pruning_save_load_from_pretrained", "test_head_pruning_save_load_from_config_init",
    "test_head_pruning_integration", "test_hidden_states_output", "test_retain_grad_hidden_states_attentions",
    "test_feed_forward_chunking", "test_resize_position_vector_embeddings", "test_resize_tokens_embeddings",
    "test_resize_tokens_embeddings_with_deepspeed", "test_resize_tokens_embeddings_with_deepspeed_multi_gpu",
    "test_resize_embeddings_untied", "test_resize_embeddings_untied_with_deepspeed",
    "test_resize_embeddings_untied_with_deepspeed_multi_gpu", "test_model_get_set_embeddings",
    "test_model_main_input_name", "test_correct_missing_keys", "test_tie_model_weights", "test_can_use_safetensors",
    "test_load_save_without_tied_weights", "test_tied_weights_keys",
    "test_model_weights_reload_no_missing_tied_weights", "test_model_outputs_equivalence",
    "test_pt_tf_model_equivalence", "test_equivalence_pt_to_flax", "test_equivalence_flax_to_pt", "test_inputs_embeds",
    "test_inputs_embeds_matches_input_ids", "test_multi_gpu_data_parallel_forward", "test_model_parallelization",
    "test_model_parallel_equal_results", "test_disk_offload_bin", "test_disk_offload_safetensors", "test_cpu_offload",
    "test_model_parallelism", "test_problem_types", "test_load_with_mismatched_shapes",
    "test_mismatched_shapes_have_properly_initialized_weights",
    "test_matched_shapes_have_loaded_weights_when_some_mismatched_shapes_exist", "test_model_is_small",
    "test_flash_attn_2_inference_equivalence", "test_flash_attn_2_inference_equivalence_right_padding",
    "test_attn_implementation_composite_models", "test_sdpa_can_dispatch_non_composite_models",
    "test_sdpa_can_dispatch_composite_models", "test_eager_matches_sdpa_inference", "test_sdpa_can_dispatch_on_flash",
    "test_sdpa_can_compile_dynamic", "test_sdpa_matches_eager_sliding_window",
    "test_flash_attn_2_can_dispatch_composite_models", "test_flash_attn_2_fp32_ln",
    "test_flash_attention_2_padding_matches_padding_free_with_position_ids", "test_tf_from_pt_safetensors",
    "test_flax_from_pt_safetensors", "test_flash_attn_2_from_config", "test_custom_4d_attention_mask",
    "test_torch_compile_for_training", "test_forward_with_num_logits_to_keep",
]  # fmt: skip
