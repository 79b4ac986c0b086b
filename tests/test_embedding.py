"""musicgen_ref.hf inside other programs: parts that are replaced, names inside, peft, saving, planted files."""

import copy
import io
import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import peft
import pytest
import torch
import transformers
from accelerate.utils import convert_outputs_to_fp32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import scatter_gather

from musicgen_ref import MusicGen, hf
from musicgen_ref.hf import initial
from musicgen_ref.hf.names import View, Views
from tests import tiny

Model = hf.MusicgenForConditionalGeneration
PARTS = ("text_encoder", "audio_encoder", "decoder", "enc_to_dec_proj")


class Pair(NamedTuple):
    theirs: Any
    ours: Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.complete(tmp_path_factory.mktemp("mono"))


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the same sizes."""
    path = tmp_path_factory.mktemp("other")
    tiny.musicgen_of(256, text={"vocab_size": 200}, seed=7).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path, other_folder: Path) -> list[Pair]:
    kind = transformers.MusicgenForConditionalGeneration
    return [Pair(tiny.opened(kind, path), Model.from_pretrained(path)) for path in (folder, other_folder)]


@pytest.fixture
def pair(loaded: list[Pair]) -> Pair:
    return copy.deepcopy(loaded[0])


@pytest.fixture
def other(loaded: list[Pair]) -> Pair:
    return copy.deepcopy(loaded[1])


def inputs(batch: int = 2) -> dict[str, Tensor]:
    ids, mask = tiny.text(batch)
    codes = torch.randint(0, 256, (4 * batch, 5), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": codes}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(**inputs(), use_cache=False).logits


def made(model: Any, **more: Any) -> Tensor:
    torch.manual_seed(5)
    ids, mask = tiny.text(2)
    settings = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 9}
    return model.generate(input_ids=ids, attention_mask=mask, **settings | more)


def near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


# A part that is set is the part that is used and saved


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_set_is_used_and_saved_like_theirs(pair: Pair, other: Pair, part: str, tmp_path: Path) -> None:
    before = made(pair.ours)
    for model, source in zip(pair, other, strict=True):
        setattr(model, part, getattr(source, part))
        if part == "decoder":  # which brings the projection here, and not there
            model.enc_to_dec_proj = source.enc_to_dec_proj
    assert getattr(pair.ours, part) is getattr(other.ours, part)
    near(logits(pair.ours), logits(pair.theirs))
    near(made(pair.ours), made(pair.theirs))
    assert not torch.equal(made(pair.ours), before)
    pair.ours.save_pretrained(tmp_path)
    for kind in (Model, transformers.MusicgenForConditionalGeneration):
        near(made(kind.from_pretrained(tmp_path).eval()), made(pair.theirs))
    core = MusicGen.from_pretrained(tmp_path)
    assert core.state_dict().keys() == pair.ours.core.state_dict().keys()
    assert all(torch.equal(t, core.state_dict()[n]) for n, t in pair.ours.core.state_dict().items())


def copied(model: Any, way: str) -> Any:
    if way == "pickle":
        return pickle.loads(pickle.dumps(model))
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)
    if way in ("deepcopy", "deepcopy, half"):
        model = copy.deepcopy(model)
        return model.half().float() if "half" in way else model
    return model.to(torch.float64).to(torch.float32) if way == "to" else model.bfloat16().half().float()


@pytest.mark.parametrize("way", ["deepcopy", "deepcopy, half", "pickle", "torch.save", "to", "half"])
def test_a_part_is_set_in_copies_and_after_moves(pair: Pair, other: Pair, way: str) -> None:
    """The copy's part is the copy's, and what is set there has nothing to do with the original."""
    model = copied(pair.ours, way)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, pair.ours.state_dict()[name], rtol=0.01, atol=0.01)
    kept = made(pair.ours)
    for part in PARTS:
        own = getattr(other.ours, part)
        setattr(model, part, own)
        assert getattr(model, part) is own
    near(made(model), made(other.theirs))
    near(logits(model), logits(other.theirs))
    assert model.core.decoder is other.ours.decoder.core
    assert model.core.codec is other.ours.audio_encoder.core
    if way in ("deepcopy", "deepcopy, half", "pickle", "torch.save"):
        assert torch.equal(made(pair.ours), kept)
    layer = model.decoder.model.decoder.layers[1]
    layer.fc1 = nn.Linear(32, 48, bias=False)
    assert model.core.decoder.blocks[1].fc1 is layer.fc1
    assert not torch.equal(logits(model), logits(other.theirs))


def test_a_part_of_the_core_is_the_models(pair: Pair, other: Pair, tmp_path: Path) -> None:
    """The native MusicGen likewise: what is set there is used, saved, and what the model shows."""
    model, core = pair.ours, pair.ours.core
    core.codec, core.text_encoder = other.ours.core.codec, other.ours.core.text_encoder
    assert model.audio_encoder.core is core.codec
    assert model.text_encoder.encoder.block[1].core is core.text_encoder.blocks[1]
    core.decoder = other.ours.core.decoder
    assert model.decoder.lm_heads is core.decoder.heads
    assert model.enc_to_dec_proj is core.decoder.text_proj
    near(made(model), made(other.theirs))
    core.save_pretrained(tmp_path / "core")
    model.save_pretrained(tmp_path / "model")
    for name in ("core", "model"):
        near(made(Model.from_pretrained(tmp_path / name)), made(other.theirs))
    # Another size: the configuration says what is there.
    codec = hf.EncodecModel(hf.EncodecConfig(**{**model.config.audio_encoder, "num_filters": 8}))
    core.codec = codec.core
    assert model.audio_encoder.config.num_filters == model.config.audio_encoder.num_filters == 8
    model.save_pretrained(tmp_path / "wide")
    assert json.loads((tmp_path / "wide/config.json").read_text())["audio_encoder"]["num_filters"] == 8
    assert transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path / "wide").audio_encoder is not None
    core.decoder.blocks[0].fc1 = nn.Linear(32, 50, bias=False)
    for save in (core.save_pretrained, model.save_pretrained):
        with pytest.raises(ValueError, match=r"tensors must be those of its configuration.*fc1\.weight \(50, 32\)"):
            save(tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_what_cannot_take_a_parts_place_is_refused(pair: Pair) -> None:
    model = pair.ours
    stack = model.decoder.model.decoder
    for owner, name, value, message in (
        (model, "decoder", nn.Linear(2, 2), "decoder must be made around a musicgen_ref.decoder.Decoder, got Linear"),
        (model, "audio_encoder", model.text_encoder, "audio_encoder must be made around a musicgen_ref.encodec.Enc"),
        (stack, "layers", nn.ModuleList([nn.Linear(2, 2)]), r"layers\.0 must be made around a .*\.Block, got Linear"),
        (model.decoder, "model", hf.MusicgenModel(model.config.decoder), "model cannot be another one"),
        (stack.layers[0], "self_attn", nn.Identity(), "self_attn must be made around a .*Attention, got Identity"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            setattr(owner, name, value)
    for change in (
        lambda: setattr(model, "core", nn.Linear(2, 2)),
        lambda: setattr(stack.layers[0], "cross_attn", nn.Linear(2, 2)),
        lambda: delattr(model, "decoder"),
        lambda: stack.layers.append(stack.layers[0]),
        lambda: stack.layers.__delitem__(0),
        lambda: stack.layers.pop(0),
    ):
        with pytest.raises(AttributeError, match=r"there is no part|cannot be taken out"):
            change()
    near(logits(model), logits(pair.theirs))


def test_layers_are_pruned_reordered_and_kept(pair: Pair) -> None:
    for model in pair:
        stack = model.decoder.model.decoder
        assert len(stack.layers) == 2
        assert len(stack.layers[:1]) == 1
        stack.layers[0], stack.layers[1] = stack.layers[1], stack.layers[0]
    near(logits(pair.ours), logits(pair.theirs))
    for model in pair:
        model.decoder.model.decoder.layers = nn.ModuleList(list(model.decoder.model.decoder.layers)[:1])
        model.text_encoder.encoder.block = model.text_encoder.encoder.block[:1]
    near(logits(pair.ours), logits(pair.theirs))
    assert len(pair.ours.core.decoder.blocks) == len(pair.ours.decoder.model.decoder.layers) == 1


def test_a_decoder_without_a_projection_gets_the_one_that_there_is(pair: Pair, other: Pair, tmp_path: Path) -> None:
    other.theirs.decoder.save_pretrained(tmp_path)
    projection, kept = pair.ours.enc_to_dec_proj, logits(other.ours)
    for model, library in zip(pair, (transformers, hf), strict=True):
        model.decoder = library.MusicgenForCausalLM.from_pretrained(tmp_path)
    assert pair.ours.enc_to_dec_proj is pair.ours.core.decoder.text_proj is projection
    near(logits(pair.ours), logits(pair.theirs))
    near(logits(other.ours), kept)


def test_a_new_projection_and_text_of_another_width(pair: Pair) -> None:
    wide = hf.T5EncoderModel(hf.T5Config(vocab_size=200, d_model=20, d_kv=8, d_ff=9, num_layers=1, num_heads=2)).eval()
    pair.ours.text_encoder = wide
    with pytest.raises(ValueError, match=r"must be \(B, L, 24\), got \(2, 7, 20\)"):
        logits(pair.ours)
    pair.ours.enc_to_dec_proj = nn.Linear(20, 32)
    assert logits(pair.ours).shape == (8, 5, 256)
    assert pair.ours.config.text_encoder.d_model == 20


# Names


def named(model: Any) -> set[str]:
    """Names of the modules that hold numbers, or modules that do; without how a weight norm is kept."""
    return {
        name for name, module in model.named_modules()
        if name and "parametrizations" not in name and "embed_positions" not in name and [*module.parameters()]
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["mono", "stereo", "gated, no projection"])
def test_modules_have_transformers_names(kind: str, tmp_path: Path) -> None:
    theirs = tiny.musicgen(**tiny.KINDS[kind])
    theirs.save_pretrained(tmp_path)
    ours = Model.from_pretrained(tmp_path)
    # A module that has two names is listed under one.
    for name in named(theirs):
        mine, their = ours.get_submodule(name), theirs.get_submodule(name)
        for field, tensor in mine.named_parameters(recurse=False):
            assert torch.equal(tensor, getattr(their, field)), (name, field)
    assert named(ours) - named(theirs) == set()
    for k, layer in enumerate(theirs.audio_encoder.quantizer.layers):
        assert torch.equal(ours.audio_encoder.quantizer.layers[k].codebook.embed, layer.codebook.embed)


@pytest.mark.parametrize("kind", ["mono", "stereo", "gated, no projection", "nothing by default"])
def test_state_dicts_go_there_and_back(kind: str, tmp_path: Path) -> None:
    """Names, shapes and dtypes of all tensors, whole and by part; weight norm's two make the filters that are used."""
    theirs = tiny.musicgen(**tiny.KINDS[kind])
    theirs.save_pretrained(tmp_path)
    ours = Model.from_pretrained(tmp_path)
    told = {name: (tensor.shape, tensor.dtype) for name, tensor in theirs.state_dict().items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in ours.state_dict().items()} == told
    for part in ("text_encoder", "audio_encoder", "decoder"):
        assert getattr(ours, part).state_dict().keys() == getattr(theirs, part).state_dict().keys()
    fresh = transformers.MusicgenForConditionalGeneration(theirs.config).eval()
    fresh.load_state_dict(ours.state_dict(), strict=True)
    again = Model(ours.config).eval()
    result = again.load_state_dict(theirs.state_dict(), strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    for name, tensor in again.core.state_dict().items():
        near(tensor, ours.core.state_dict()[name])
    codes = torch.randint(0, 64, (1, 2, ours.audio_encoder.config.num_quantizers, 6))
    audio = theirs.audio_encoder.decode(codes, [None]).audio_values
    near(fresh.audio_encoder.decode(codes, [None]).audio_values.detach(), audio.detach())
    save_file(ours.state_dict(), tmp_path / "state.safetensors")  # no two of them share memory
    assert load_file(tmp_path / "state.safetensors").keys() == told.keys()
    with torch.no_grad():  # what load_state_dict() put there is what runs
        for name, tensor in again.state_dict().items():
            near(tensor.float(), ours.state_dict()[name].float())


def test_loading_a_state_dict_tells_what_theirs_tells(pair: Pair) -> None:
    state = pair.theirs.state_dict()
    gone = (
        "decoder.lm_heads.2.weight", "text_encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight",
        "audio_encoder.encoder.layers.0.conv.parametrizations.weight.original0",
        "audio_encoder.quantizer.layers.3.codebook.embed", "enc_to_dec_proj.bias",
    )  # fmt: skip
    changed = {name: tensor for name, tensor in state.items() if name not in gone}
    more = ("decoder.lm_heads.9.weight", "audio_encoder.decoder.layers.99.conv.bias", "rest")
    changed |= {name: torch.zeros(1) for name in more}
    results = [model.load_state_dict(changed, strict=False) for model in pair]
    assert set(results[0].missing_keys) == set(results[1].missing_keys) == set(gone)
    assert set(results[0].unexpected_keys) == set(results[1].unexpected_keys)
    wrong = state | {"audio_encoder.encoder.layers.0.conv.parametrizations.weight.original1": torch.zeros(3, 1, 7)}
    for model in pair:
        with pytest.raises(RuntimeError, match=r"size mismatch for .*layers\.0\.conv\.parametrizations"):
            model.load_state_dict(wrong)
        with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*\"rest\""):
            model.load_state_dict(state | {"rest": torch.zeros(1)})
    spelled = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {}
    for name, tensor in state.items():
        stem = next((stem for stem in spelled if name.endswith(stem)), "")
        old[name.removesuffix(stem) + spelled.get(stem, "")] = tensor
    before = made(pair.ours)
    with torch.no_grad():
        for parameter in pair.ours.parameters():
            parameter.zero_()
    pair.ours.load_state_dict(old)  # the spelling of older torch
    near(made(pair.ours), before)


def test_what_is_written_in_place_is_what_runs(pair: Pair) -> None:
    for model in pair:
        with torch.no_grad():
            model.decoder.model.decoder.layers[0].self_attn.q_proj.weight.mul_(2)
            model.decoder.lm_heads[1].weight.mul_(3)
            model.text_encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(2)
            model.text_encoder.encoder.block[1].layer[1].DenseReluDense.wo.weight.mul_(2)
            model.enc_to_dec_proj.bias.add_(1)
            model.audio_encoder.quantizer.layers[0].codebook.embed.mul_(2)
        model.audio_encoder.quantizer.layers[1].codebook.embed = model.audio_encoder.quantizer.layers[2].codebook.embed
    near(logits(pair.ours), logits(pair.theirs))
    near(made(pair.ours), made(pair.theirs))
    shared = nn.Embedding(200, 24)
    for model in pair:
        model.text_encoder.shared = model.text_encoder.encoder.embed_tokens = shared
    near(logits(pair.ours), logits(pair.theirs))


def test_hooks_run_where_the_module_runs_and_are_refused_where_none_does(pair: Pair) -> None:
    states: dict[str, list[Tensor]] = {"theirs": [], "ours": []}
    for (name, seen), model in zip(states.items(), pair, strict=True):
        layer = model.decoder.model.decoder.layers[1]
        keep = [layer.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))]
        keep += [module.register_forward_hook(lambda module, given, out, seen=seen: seen.append(out)) for module in (
            layer.fc1, layer.encoder_attn.out_proj, model.text_encoder.encoder.block[0].layer[1].DenseReluDense,
            model.audio_encoder.decoder)]  # fmt: skip
        logits(model)
        model.audio_encoder.decode(torch.zeros(1, 1, 4, 6, dtype=torch.long), [None])
        for handle in keep:
            handle.remove()
        logits(model)
        assert len(seen) == 5, name
    for mine, their in zip(states["ours"], states["theirs"], strict=True):
        near(mine.detach(), their.detach())
    # A steering vector: what a hook returns goes on.
    for model in pair:
        hook = lambda module, given, out: out + 1.0  # noqa: E731
        model.decoder.model.decoder.layers[0].register_forward_hook(hook)
    near(logits(pair.ours), logits(pair.theirs))
    half = pair.ours.text_encoder.encoder.block[0].layer[0]
    with pytest.raises(ValueError, match=r"no module runs under this name.*SelfAttention"):
        half.register_forward_hook(print)
    for outer in (pair.ours.decoder.model, pair.ours.decoder.model.decoder):
        for register in (outer.register_forward_hook, outer.register_forward_pre_hook):
            with pytest.raises(ValueError, match="does not run inside a MusicgenForCausalLM: hook that one, or its"):
                register(print)


def test_the_codecs_parts_are_called_as_theirs(pair: Pair) -> None:
    audio, codes = tiny.noise(2, 1, 80), torch.randint(0, 256, (4, 2, 6))
    theirs, ours = (model.audio_encoder for model in pair)
    with torch.no_grad():
        latents = theirs.encoder(audio)
        near(ours.encoder(audio), latents)
        assert torch.equal(ours.quantizer.encode(latents), theirs.quantizer.encode(latents))
        near(ours.quantizer.decode(codes), theirs.quantizer.decode(codes))
        near(ours.decoder(latents), theirs.decoder(latents))
        near(ours.encoder.layers[0](audio), theirs.encoder.layers[0](audio))
    assert len(ours.quantizer.layers) == len(theirs.quantizer.layers) == 4
    assert [type(ours.quantizer), type(ours.quantizer.layers)] == [hf.names.Quantizer, Views]
    assert isinstance(ours.quantizer.layers[0], View)
    with pytest.raises(ValueError, match="bandwidth must be None here"):
        ours.quantizer.encode(latents, 1.2)


def test_training_mode_and_gradients_reach_every_layer(pair: Pair) -> None:
    model = pair.ours
    layer = model.decoder.model.decoder.layers[0]
    model.train()
    assert layer.training and model.core.decoder.blocks[0].dropout.training and model.audio_encoder.training
    layer.eval()
    assert not layer.training and not model.core.decoder.blocks[0].dropout.training and model.training
    model.eval()
    layer.training = True
    assert model.core.decoder.blocks[0].training
    model.eval()
    layer.requires_grad_(False)
    assert [name for name, p in model.core.decoder.named_parameters() if not p.requires_grad] == [
        f"blocks.0.{name}" for name, _ in model.core.decoder.blocks[0].named_parameters()
    ]
    names = dict(model.named_parameters())
    assert len({id(p) for p in names.values()}) == len(names) == len([*model.core.parameters()])
    theirs = {name for name, _ in pair.theirs.named_parameters() if "parametrizations" not in name}
    assert {name for name in names if not name.endswith(".conv.weight")} == theirs


# peft

USUAL = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TARGETS: dict[str, list[str]] = {
    "attention": ["q_proj", "v_proj"],
    "decoder": USUAL,
    "of a fine-tuning script": [
        "enc_to_dec_proj", *USUAL, *(f"{name}.{k}" for name in ("lm_heads", "embed_tokens") for k in range(4))
    ],
    "text encoder": ["q", "k", "v", "o", "wi", "wo"],
}  # fmt: skip


def adapted(model: Any, targets: list[str], seed: int = 3) -> Any:
    """A model under peft, its adapter with numbers that matter."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(wrapped.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return wrapped


@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_go_there_and_back_with_equal_logits(pair: Pair, folder: Path, targets: str, tmp_path: Path) -> None:
    plain = logits(pair.ours)
    theirs, ours = (adapted(model, TARGETS[targets]) for model in pair)
    adapters = [{name for name, _ in wrapped.named_parameters() if "lora_" in name} for wrapped in (theirs, ours)]
    assert adapters[0] == adapters[1] != set()
    assert (logits(ours) - plain).abs().max() > 1e-3 * plain.abs().max()
    near(logits(ours), logits(theirs))
    kinds = (transformers.MusicgenForConditionalGeneration, Model)
    for wrapped, name in ((theirs, "theirs"), (ours, "ours")):
        wrapped.save_pretrained(tmp_path / name)
        for kind in kinds:
            again = peft.PeftModel.from_pretrained(kind.from_pretrained(folder), tmp_path / name).eval()
            near(logits(again), logits(theirs))
    near(made(ours), made(theirs))
    merged = ours.merge_and_unload()
    assert merged is pair.ours
    near(logits(merged), logits(theirs))
    merged.save_pretrained(tmp_path / "merged")
    near(logits(Model.from_pretrained(tmp_path / "merged")), logits(theirs))
    # What the loader merges is the same.
    if targets != "text encoder":
        near(logits(Model.from_pretrained(folder, adapter=tmp_path / "theirs")), logits(theirs))


def test_an_adapter_is_trained_saved_and_not_lost(pair: Pair, folder: Path, tmp_path: Path) -> None:
    wrapped = adapted(pair.ours, USUAL)
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    assert len(trainable) == sum("lora_" in name for name, _ in wrapped.named_parameters()) == 2 * 2 * (4 + 4 + 2)
    labels = torch.randint(0, 256, (2, 5, 4))
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        given = {name: value for name, value in inputs().items() if name != "decoder_input_ids"}
        loss = wrapped(**given, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trainable)
    with pytest.raises(ValueError, match="merge the adapter first"):
        pair.ours.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="merge the adapter first"):
        pair.ours.core.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="merge the adapter first"):
        pair.ours.decoder.save_pretrained(tmp_path / "part")
    assert not list(tmp_path.iterdir())


def test_parts_inside_pefts_wrappers(pair: Pair, other: Pair, tmp_path: Path) -> None:
    """A wrapper in the place of a part, and a part that is set inside a wrapper."""
    expected = logits(adapted(copy.deepcopy(pair.ours), ["q_proj", "v_proj"]))
    wrapper = adapted(pair.ours.decoder, ["q_proj", "v_proj"])
    pair.ours.decoder = wrapper
    assert pair.ours.decoder is wrapper
    near(logits(pair.ours), expected)
    assert made(pair.ours).shape == made(other.ours).shape
    assert any(name.startswith("decoder.base_model.model.model.decoder.layers.0") for name in pair.ours.state_dict())
    whole = adapted(copy.deepcopy(other.ours), ["q_proj"])
    whole.base_model.model.audio_encoder = pair.ours.audio_encoder
    assert whole.base_model.model.core.codec is pair.ours.core.codec
    copied = copy.deepcopy(whole)
    near(logits(copied), logits(whole))
    near(made(copied), made(whole))
    assert copied.base_model.model.core.codec is not pair.ours.core.codec
    half = whole.half()
    assert half.base_model.model.core.decoder.blocks[0].self_attn.q.base_layer.weight.dtype == torch.float16


def test_adapters_of_the_codec_reach_long_clips(folder: Path) -> None:
    """Whose windows would go past a convolution's own forward()."""
    results = []
    for fast in (False, True):
        model = Model.from_pretrained(folder, fast=fast)
        plain = model.audio_encoder.decode(torch.zeros(1, 1, 4, 250, dtype=torch.long), [None]).audio_values
        wrapped = adapted(model, ["audio_encoder.decoder.layers.7.block.1.conv"])
        audio = model.audio_encoder.decode(torch.zeros(1, 1, 4, 250, dtype=torch.long), [None]).audio_values
        assert wrapped.base_model.model is model
        assert (audio - plain).abs().max() > 1e-3 * plain.abs().max()
        results.append(audio.detach())
    near(results[1], results[0])


# What else ordinary code asks


@torch.no_grad()
def test_outputs_are_rebuilt_from_mappings(pair: Pair) -> None:
    for given in ({"logits": torch.ones(2)}, [("logits", torch.ones(2))]):
        out = hf.ModelOutput(given)
        assert torch.equal(out.logits, torch.ones(2)) and list(out) == ["logits"] and len(out) == 1
    assert hf.ModelOutput({"logits": 1}, loss=2).loss == 2
    half = pair.ours(**inputs()).to(torch.bfloat16)
    full = convert_outputs_to_fp32(lambda: half)()
    assert type(full) is hf.ModelOutput
    assert full.logits.dtype == torch.float32 and torch.equal(full.logits, half.logits.float())
    for again in (copy.deepcopy(full), pickle.loads(pickle.dumps(full)), copy.copy(full)):
        assert torch.equal(again.logits, full.logits)
    assert pickle.loads(pickle.dumps(pair.ours(**inputs()))).loss is None


@torch.no_grad()
def test_data_parallel_calls_the_model_and_gathers_its_outputs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU DataParallel calls the module itself; with several it makes one output of those of all replicas."""
    whole, given = pair.ours, inputs() | {"labels": torch.randint(0, 256, (2, 5, 4))}
    given |= {"decoder_input_ids": given["decoder_input_ids"].unflatten(0, (2, 4))}
    settings = {"use_cache": False, "output_hidden_states": True, "output_attentions": True}
    expected = whole(**given, **settings)
    parallel = nn.DataParallel(whole)
    assert parallel.module is whole
    alike(parallel(**given, **settings), expected)
    rows = [{name: value[i : i + 1] for name, value in given.items()} for i in range(2)]
    cat = SimpleNamespace(
        apply=lambda device, dim, *parts: torch.cat([part[None] if part.dim() == 0 else part for part in parts], dim)
    )
    monkeypatch.setattr(scatter_gather, "Gather", cat)  # torch's own takes tensors of GPUs alone
    gathered = scatter_gather.gather([parallel(**row, **settings) for row in rows], "cpu")
    assert type(gathered) is hf.ModelOutput and gathered.loss.shape == (2,)
    assert gathered.logits.shape == expected.logits.shape
    gathered["loss"] = expected.loss
    alike(gathered, expected, near)


def equal(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours, theirs)


def alike(ours: Any, theirs: Any, compare: Callable[[Tensor, Tensor], None] = equal) -> None:
    """Tensors, containers of them and outputs, whose caches are left out."""
    if isinstance(theirs, Tensor):
        compare(ours, theirs)
    elif isinstance(theirs, Mapping):
        assert list(ours) == list(theirs)
        for name in theirs:
            alike(ours[name], theirs[name], compare)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            alike(one, other, compare)
    else:
        assert type(ours) is type(theirs)


def arrays(value: Any) -> Any:
    """Tensors as numpy arrays, also where they are in containers."""
    if isinstance(value, (list, tuple)):
        return type(value)(arrays(each) for each in value)
    return value.numpy() if isinstance(value, Tensor) else value


def doors(model: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """What takes tensors, with arguments of each."""
    generator = torch.Generator().manual_seed(5)
    ids, mask = tiny.text(2, 5)
    codes = torch.randint(0, 256, (2, 4, 6), generator=generator)
    audio, kept = tiny.noise(2, 1, 40), torch.ones(2, 40, dtype=torch.long)
    states, memory = torch.randn(2, 5, 24, generator=generator), torch.randn(2, 5, 32, generator=generator)
    text = {"input_ids": ids, "attention_mask": mask}
    read = {"encoder_hidden_states": memory, "encoder_attention_mask": mask}
    masks = {"head_mask": torch.rand(2, 4, generator=generator), "attention_mask": torch.ones(2, 6)}
    labels = codes.mT.contiguous()

    def bare(**given: Any) -> Any:
        return hf.MusicgenModel(model.config.decoder, model.core.decoder)(**given)

    return {
        "text encoder": (model.text_encoder, text),
        "text encoder, embeddings": (model.text_encoder, {"inputs_embeds": states, "attention_mask": mask}),
        "decoder": (model.decoder, {"input_ids": codes.flatten(0, 1), **read, **masks}),
        "decoder, labels": (model.decoder, {"labels": labels, **read}),
        "decoder without heads": (bare, {"input_ids": codes, **read}),
        "decoder, generate": (model.decoder.generate, {
            "input_ids": codes.flatten(0, 1), **read, "max_new_tokens": 9,
        }),
        "delay pattern": (model.decoder.build_delay_pattern_mask, {
            "input_ids": codes, "pad_token_id": 256, "max_length": torch.tensor(15),
        }),
        "codec": (model.audio_encoder, {"input_values": audio, "padding_mask": kept}),
        "codec, encode": (model.audio_encoder.encode, {"input_values": audio, "padding_mask": kept}),
        "codec, decode": (model.audio_encoder.decode, {
            "audio_codes": codes[None], "audio_scales": [None], "padding_mask": kept,
            "last_frame_pad_length": torch.tensor(1),
        }),
        "whole": (model, {**text, "decoder_input_ids": codes.flatten(0, 1)}),
        "whole, labels": (model, {**text, "labels": labels}),
        "whole, states and audio": (model, {
            "encoder_outputs": (states,), "attention_mask": mask, "input_values": audio, "padding_mask": kept,
        }),
        "whole, generate": (model.generate, {
            **text, "input_values": audio, "padding_mask": kept, "max_new_tokens": 12,
        }),
        "whole, generate from states": (model.generate, {
            "encoder_outputs": (states,), "attention_mask": mask, "decoder_input_ids": codes.flatten(0, 1),
            "max_new_tokens": 12,
        }),
    }  # fmt: skip


@pytest.mark.parametrize("door", doors(mock.MagicMock()))
@torch.no_grad()
def test_arrays_of_numpy_go_in_wherever_tensors_do(pair: Pair, door: str) -> None:
    called, given = doors(pair.ours)[door]
    expected = called(**given)
    numbers = arrays(given)
    for name, value in numbers.items():
        if isinstance(value, np.ndarray) and value.dtype == np.float32 and name != "input_values":
            numbers[name] = value.astype(np.float64)  # numpy's usual floating point
    alike(called(**numbers), expected)


AUDIO_DOORS = [name for name, (_, given) in doors(mock.MagicMock()).items() if "input_values" in given]


@pytest.mark.parametrize("door", AUDIO_DOORS)
@torch.no_grad()
def test_whole_numbers_of_audio_are_scaled_or_refused_everywhere(pair: Pair, door: str) -> None:
    called, given = doors(pair.ours)[door]
    audio = given["input_values"]
    for dtype, silence, full in ((torch.int16, 0, 2**15), (torch.uint8, 128, 2**7)):
        whole = (audio * (full - 1) + silence).to(dtype)
        expected = called(**given | {"input_values": (whole.float() - silence) / full})
        for numbers in (whole, whole.numpy()):
            alike(called(**given | {"input_values": numbers}), expected)
    for wrong in (torch.ones(2, 1, 40, dtype=torch.long), np.ones((2, 1, 40), np.int64), torch.ones(2, 1, 40).bool()):
        with pytest.raises(ValueError, match="input_values must be floating point"):
            called(**given | {"input_values": wrong})
    with pytest.raises(ValueError, match="input_values must be a tensor or a numpy array, got list"):
        called(**given | {"input_values": [0.0, 1.0]})


def test_numbers_of_numpy_go_in_where_pythons_do(pair: Pair, tmp_path: Path) -> None:
    model = pair.ours
    assert len(model.get_unconditional_inputs(np.int64(2)).attention_mask) == 2
    model.decoder.save_pretrained(tmp_path, max_shard_size=np.int64(20_000))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    hf.set_seed(np.int64(3))
    drawn = torch.rand(2)
    hf.set_seed(3)
    assert torch.equal(torch.rand(2), drawn)
    with pytest.raises(ValueError, match=r"an array in forward\(\) must hold numbers, got an array of <U1"):
        model(input_ids=np.array([["a"]]))


def test_real_fields_are_accepted_where_they_stand(folder: Path, tmp_path: Path) -> None:
    fields: dict[str, dict[str, Any]] = {
        "T5Config": {"bos_token_id": 0, "tie_encoder_decoder": False, "decoder_start_token_id": 0},
        "EncodecConfig": {"tie_word_embeddings": False, "is_decoder": False},
        "MusicgenDecoderConfig": {"tie_encoder_decoder": False, "sep_token_id": None, "add_cross_attention": True},
        "MusicgenConfig": {"tie_encoder_decoder": False, "decoder_start_token_id": 256, "is_decoder": False},
    }
    for kind, given in fields.items():
        config = getattr(hf, kind)(**given)
        assert {name: config[name] for name in given} == given
        config.save_pretrained(tmp_path / kind)
        again = getattr(hf, kind).from_pretrained(tmp_path / kind)
        assert {name: again[name] for name in given} == given
    with pytest.raises(ValueError, match="did you mean 'bos_token_id'"):
        hf.T5Config(bos_token_idx=0)


def test_the_last_piece_is_shorter_by_frames_that_it_has(pair: Pair) -> None:
    codes = torch.zeros(1, 1, 4, 6, dtype=torch.long)
    for wrong in (-1, -6, 6, 7, 1.0, True, None):
        with pytest.raises(ValueError, match=r"last_frame_pad_length must be a whole number in 0\.\.5, got"):
            pair.ours.audio_encoder.decode(codes, [None], last_frame_pad_length=wrong)
    cut = pair.ours.audio_encoder.decode(codes, [None], last_frame_pad_length=2).audio_values
    assert cut.shape[-1] == 4 * tiny.HOP
    with pytest.raises(ValueError, match="decoder_input_ids and input_values: give one, got both"):
        pair.ours(**inputs(), input_values=tiny.noise(2, 1, 40))


def test_small_things_that_are_asked_of_models(pair: Pair) -> None:
    theirs, ours = pair
    for kind in ("MusicgenForConditionalGeneration", "MusicgenForCausalLM", "T5EncoderModel", "EncodecModel",
                 "MusicgenModel"):  # fmt: skip
        mine, their = getattr(hf, kind), getattr(transformers, kind)
        assert mine.can_generate() == their.can_generate()
        assert mine.main_input_name == their.main_input_name
    assert ours.get_audio_encoder() is ours.get_encoder(modality="audio") is ours.audio_encoder
    assert ours.get_encoder() is ours.text_encoder
    for name in ("text_encoder", "decoder"):
        for excluded in (False, True):
            mine = getattr(ours, name).num_parameters(exclude_embeddings=excluded)
            assert mine == getattr(theirs, name).num_parameters(exclude_embeddings=excluded)
    assert ours.num_parameters(exclude_embeddings=True) < ours.num_parameters()
    ours.requires_grad_(False)
    ours.enable_input_require_grads()
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert ours.train()(**inputs()).logits.requires_grad
    ours.disable_input_require_grads()
    assert not ours(**inputs()).logits.requires_grad
    labels = torch.randint(0, 257, (2, 5, 4))
    start = transformers.models.musicgen.modeling_musicgen.shift_tokens_right(labels, 256, 256)
    assert torch.equal(ours.prepare_decoder_input_ids_from_labels(labels), start)


def test_a_loop_of_the_callers_prepares_its_inputs_as_theirs(pair: Pair) -> None:
    ids = torch.full((8, 3), 256)
    ids[:, 1:] = torch.randint(0, 256, (8, 2), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(8, 3)
    for model in pair:
        model.generation_config.max_length = model.decoder.generation_config.max_length = 12
        model.generation_config.pad_token_id = model.decoder.generation_config.pad_token_id = 256
    for guidance in (None, 3.0):
        for past in (None, "a cache"):
            calls = [
                model.prepare_inputs_for_generation(
                    ids,
                    next_sequence_length=1,
                    **{tiny.CACHE: past},
                    decoder_attention_mask=mask,
                    attention_mask="m",
                    guidance_scale=guidance,
                    use_cache=True,
                    encoder_outputs="e",
                    cache_position=None,
                )
                for model in pair
            ]
            calls += [model.decoder.prepare_inputs_for_generation(
                ids, attention_mask=mask, **{tiny.CACHE: past}, guidance_scale=guidance, encoder_hidden_states="e",
                encoder_attention_mask="m") for model in pair]  # fmt: skip
            for their, mine in ((calls[0], calls[1]), (calls[2], calls[3])):
                assert sorted(mine) == sorted(tiny.our_names(their))
                for name, value in zip(tiny.our_names(their), their.values(), strict=True):
                    same = torch.equal(mine[name], value) if isinstance(value, Tensor) else mine[name] == value
                    assert same, (guidance, past, name)


@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
def test_delay_patterns_of_every_length_and_both_shapes(channels: int) -> None:
    books = 4 * channels
    theirs = tiny.musicgen(books, channels).decoder
    ours = hf.MusicgenForCausalLM(hf.MusicgenDecoderConfig(**theirs.config.to_dict()))
    for prompt in range(6):
        ids = torch.full((2, books, 1 + prompt), 64)
        ids[..., 1:] = torch.randint(0, 64, (2, books, prompt), generator=torch.Generator().manual_seed(prompt))
        for length in range(1, 16):
            for given in (ids, ids.flatten(0, 1)):
                try:
                    expected = theirs.build_delay_pattern_mask(given, 64, length)
                except RuntimeError:
                    with pytest.raises(ValueError, match=f"max_length must be {prompt + 4} or more after {prompt} fra"):
                        ours.build_delay_pattern_mask(given, 64, length)
                    continue
                made = ours.build_delay_pattern_mask(given, 64, length)
                for mine, their in zip(made, expected, strict=True):
                    assert mine.shape == their.shape and torch.equal(mine, their), (prompt, length)
    with pytest.raises(ValueError, match="max_length must be a whole number above 0, got None"):
        ours.build_delay_pattern_mask(ids, 64)


def test_attention_and_what_is_shown_go_by_the_configuration(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = pair.ours
    ran: list[str] = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: ran.append("sdpa") or attend(*a, **k)
    )
    for section, other in (("decoder", "text_encoder"), ("text_encoder", "decoder")):
        ours.config._attn_implementation = "sdpa"
        getattr(ours.config, section)._attn_implementation = "eager"
        assert getattr(ours, section).attention == "eager" and getattr(ours, other).attention == "sdpa"
        ran.clear()
        logits(ours)
        assert len(ran) == (2 if section == "decoder" else 4)  # of 2 layers of text, and 4 attentions of the decoder
    ours.config._attn_implementation = "eager"
    ran.clear()
    made(ours)
    assert ran == [] and ours.decoder.model.attention == "eager"
    with pytest.raises(ValueError, match=r"attn_implementation must be one of .* got 'flex'"):
        ours.config.decoder._attn_implementation = "flex"
    for model in pair:
        model.config._attn_implementation = "eager"
    for section in ("decoder", "text_encoder"):
        for field in ("output_attentions", "output_hidden_states"):
            shown = []
            for model in pair:
                setattr(getattr(model.config, section), field, True)
                shown.append(list(model(**inputs(), use_cache=False)))
                hidden = model(**inputs(), use_cache=False, **{field: False})
                assert list(hidden) == ["logits", "encoder_last_hidden_state"]
                setattr(getattr(model.config, section), field, False)
            assert shown[0] == shown[1] != ["logits", "encoder_last_hidden_state"]


# What was set is saved


def test_what_was_set_in_a_configuration_is_saved(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"a_note": {"by": "me"}}
    config["decoder"] |= {"another_note": [1, 2], "use_cache": False}
    path = tmp_path / "noted"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "config.json").write_text(json.dumps(config))
    generation = json.loads((path / "generation_config.json").read_text()) | {"of_the_future": 3, "top_k": 7}
    (path / "generation_config.json").write_text(json.dumps(generation))
    model = Model.from_pretrained(path)
    assert model.config.a_note == {"by": "me"} and model.config.decoder.another_note == [1, 2]
    model.config.decoder.dropout = 0.33
    model.config.text_encoder.mine = "yes"
    model.config.output_attentions = False
    model.generation_config.temperature = 0.7
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert saved["a_note"] == {"by": "me"} and saved["decoder"]["another_note"] == [1, 2]
    assert (saved["decoder"]["dropout"], saved["decoder"]["use_cache"]) == (0.33, False)
    assert saved["text_encoder"]["mine"] == "yes"
    settings = json.loads((tmp_path / "saved/generation_config.json").read_text())
    assert settings["of_the_future"] == 3 and settings["temperature"] == 0.7 and settings["top_k"] == 7
    again = Model.from_pretrained(tmp_path / "saved")
    assert again.config == model.config and again.generation_config == model.generation_config
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert theirs.config.decoder.dropout == 0.33 and theirs.config.a_note == {"by": "me"}
    assert torch.equal(made(again, temperature=1.0), made(Model.from_pretrained(path)))
    model.config.decoder.ffn_dim = 99
    with pytest.raises(ValueError, match="tensors must be those of its configuration"):
        model.save_pretrained(tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_dtypes_are_said_and_told(folder: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(folder, dtype=torch.bfloat16)
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.config.dtype == theirs.config.dtype == torch.bfloat16
    assert model.config.torch_dtype == model.config.decoder.dtype == torch.bfloat16
    for part, kind in (("text_encoder", "T5EncoderModel"), ("audio_encoder", "EncodecModel"),
                       ("decoder", "MusicgenForCausalLM")):  # fmt: skip
        getattr(model, part).save_pretrained(tmp_path / part)
        assert json.loads((tmp_path / part / "config.json").read_text())["dtype"] == "bfloat16"
        for library in (hf, transformers):
            opened = getattr(library, kind).from_pretrained(tmp_path / part, dtype="auto")
            assert opened.dtype == torch.bfloat16, (library, kind)
    model.half()
    assert model.config.dtype == model.config.audio_encoder.dtype == torch.float16
    model.decoder.float()
    model.save_pretrained(tmp_path / "mixed")
    saved = json.loads((tmp_path / "mixed/config.json").read_text())
    assert [saved["dtype"], saved["decoder"]["dtype"], saved["audio_encoder"]["dtype"]] == [
        "float32",
        "float32",
        "float16",
    ]


def test_saving_in_every_form_over_every_other(folder: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(folder)
    expected = made(model)
    forms: dict[str, dict[str, Any]] = {
        "one": {}, "shards": {"max_shard_size": "20KB"}, "bin": {"safe_serialization": False},
        "shards of bin": {"safe_serialization": False, "max_shard_size": 20_000},
    }  # fmt: skip
    (tmp_path / "notes.txt").write_text("mine")
    for form in ("one", "shards", "bin", "shards of bin", "one", "bin", "shards", "one", "shards of bin", "shards"):
        model.save_pretrained(tmp_path, push_to_hub=False, is_main_process=True, **forms[form])
        weights = {file.name for file in tmp_path.iterdir() if file.name.startswith(("model", "pytorch_model"))}
        assert any("index" in name for name in weights) == ("shards" in form)
        assert all(".bin" in name for name in weights) == ("bin" in form)
        assert any(".bin" in name for name in weights) == ("bin" in form)
        assert torch.equal(made(Model.from_pretrained(tmp_path)), expected), form
    near(made(transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path).eval()), expected)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    model.save_pretrained(save_directory=tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    for given, message in (
        ({"push_to_hub": True}, "push_to_hub must be False"),
        ({"max_shard_size": "much"}, "max_shard_size must be bytes above 0, as a number or like '5GB', got 'much'"),
        ({"max_shard_size": 0}, "max_shard_size must be bytes above 0"),
        ({"state_dict": {}}, "state_dict: the tensors do not fit the configuration: .* missing"),
    ):
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "none", **given)
    model.head = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"modules that were added must be saved apart.*\['head'\]"):
        model.save_pretrained(tmp_path / "none")


def test_state_dicts_that_are_given(folder: Path, other: Pair, tmp_path: Path) -> None:
    """To save_pretrained(), as a Trainer does, and to from_pretrained()."""
    model, state = Model.from_pretrained(folder), other.theirs.state_dict()
    model.save_pretrained(tmp_path / "whole", state_dict=state)
    near(made(Model.from_pretrained(tmp_path / "whole")), made(other.theirs))
    model.decoder.save_pretrained(tmp_path / "decoder", state_dict=other.theirs.decoder.state_dict())
    part = hf.MusicgenForCausalLM.from_pretrained(pretrained_model_name_or_path=tmp_path / "decoder")
    assert torch.equal(part.lm_heads[0].weight, other.theirs.decoder.lm_heads[0].weight)
    given = Model.from_pretrained(None, config=Model.from_pretrained(folder).config, state_dict=state)
    near(made(given), made(other.theirs))
    near(made(Model.from_pretrained(folder, state_dict=state)), made(other.theirs))
    text = hf.T5EncoderModel.from_pretrained(
        None, config=model.config.text_encoder, state_dict=other.theirs.text_encoder.state_dict()
    )
    assert torch.equal(text.shared.weight, other.theirs.text_encoder.shared.weight)
    with pytest.raises(ValueError, match="None takes config= and state_dict="):
        Model.from_pretrained(None)


def test_loading_tells_what_it_did_and_draws_what_does_not_fit(folder: Path) -> None:
    model, info = Model.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and set(info) >= {"missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"}
    config = hf.MusicgenConfig.from_pretrained(folder)
    config.decoder.ffn_dim = 50
    theirs_config = transformers.MusicgenConfig.from_pretrained(folder)
    theirs_config.decoder.ffn_dim = 50
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    wider, info = Model.from_pretrained(folder, config=config, **options)
    _, told = transformers.MusicgenForConditionalGeneration.from_pretrained(folder, config=theirs_config, **options)
    assert {name for name, *_ in info["mismatched_keys"]} == {name for name, *_ in told["mismatched_keys"]}
    assert set(info["unexpected_keys"]) == set(told["unexpected_keys"]) == set()
    assert wider.decoder.model.decoder.layers[0].fc1.weight.shape == (50, 32)
    head = model.decoder.lm_heads[1].weight
    assert torch.equal(wider.decoder.lm_heads[1].weight, head)
    assert made(wider).shape == made(model).shape
    with pytest.raises(ValueError, match="config must fit the checkpoint"):
        Model.from_pretrained(folder, config=config)
    with pytest.raises(ValueError, match="ignore_mismatched_sizes must be True or False, got 1"):
        Model.from_pretrained(folder, ignore_mismatched_sizes=1)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("enc_to_dec_proj")} | {"more": head}
    _, info = Model.from_pretrained(folder, state_dict=state, output_loading_info=True)
    assert info["missing_keys"] == {"enc_to_dec_proj.weight", "enc_to_dec_proj.bias"}
    assert info["unexpected_keys"] == {"more"}


def test_random_weights_are_spread_as_theirs() -> None:
    text = {"vocab_size": 300, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    decoder = {"hidden_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 120}
    for gated, factor, norm in ((False, None, "weight_norm"), (True, 0.5, "time_group_norm")):
        more = {} if factor is None else {"initializer_factor": factor}
        config = transformers.MusicgenConfig(
            text_encoder=tiny.text_config(gated, **text | more).to_dict(),
            audio_encoder=tiny.codec_config(num_filters=16, hidden_size=48, norm_type=norm).to_dict(),
            decoder=tiny.decoder_config(**decoder | more).to_dict(), **more,
        )  # fmt: skip
        torch.manual_seed(0)
        theirs = transformers.MusicgenForConditionalGeneration(config).state_dict()
        ours = Model(hf.MusicgenConfig(**config.to_dict())).state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            if "original" in name:  # the same filters as torch makes of both
                continue
            spread, expected = ours[name].float().std(correction=0), tensor.float().std(correction=0)
            if float(expected) == 0 and tensor.numel() > 1:
                assert torch.equal(ours[name], tensor) or "cluster_size" in name, name
            elif tensor.numel() > 500:
                assert 0.85 < float(spread / expected) < 1.18, (name, float(spread), float(expected))
    assert initial.STD == 0.02


@pytest.mark.parametrize("whole", [None, 0.3])
@pytest.mark.parametrize("part", [None, 0.1])
def test_the_projection_is_drawn_by_the_factor_of_the_whole_and_the_decoder_by_its_own(
    whole: float | None, part: float | None
) -> None:
    factors = [{} if factor is None else {"initializer_factor": factor} for factor in (whole, part)]
    config = transformers.MusicgenConfig(
        text_encoder=tiny.text_config(vocab_size=30, d_model=64).to_dict(),
        audio_encoder=tiny.codec_config().to_dict(),
        decoder=tiny.decoder_config(hidden_size=80, **factors[1]).to_dict(), **factors[0],
    )  # fmt: skip
    ours = Model(hf.MusicgenConfig(**config.to_dict()))
    for model in (transformers.MusicgenForConditionalGeneration(config), ours):
        drawn = model.enc_to_dec_proj.weight.detach().std(), model.decoder.lm_heads[0].weight.detach().std()
        for spread, factor in zip(drawn, (whole, part), strict=True):
            assert 0.9 < float(spread) / (factor or 0.02) < 1.1
        assert not model.enc_to_dec_proj.bias.any()


# Trust


class NoImports:
    """Lists what is imported or run while it is entered."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()

    def __call__(self, event: str, args: Any) -> None:
        if self.on and event in ("import", "exec", "compile", "subprocess.Popen", "socket.connect", "os.system"):
            self.seen.append(f"{event} {str(args[0])[:80]}")


def test_what_a_file_plants_is_data(folder: Path, tmp_path: Path) -> None:
    planted = {
        "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, "to_dict": "x", "__class__": "y",
        "__deepcopy__": 3, "__getstate__": 3, "sampling_rate": 1, "keys": 0, "update": None, "_fields": {}, "core": 1,
        "_attn_implementation_internal": "kernels-community/evil", "_attn_implementation": "evil/kernel", "config": 5,
        "trust_remote_code": True, "custom_pipelines": {"text-to-audio": {"impl": "evil.Pipeline"}}, "attention": "z",
    }  # fmt: skip
    path = tmp_path / "planted"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "evil.py").write_text("raise SystemExit('imported')")
    for name in ("config.json", "generation_config.json"):
        content = planted | json.loads((path / name).read_text())
        for section in ("text_encoder", "audio_encoder", "decoder"):
            if section in content:
                content[section] = planted | content[section]
        (path / name).write_text(json.dumps(content))
    made(Model.from_pretrained(folder, trust_remote_code=True))  # what is imported when first used, is by now
    audit = NoImports()
    sys.addaudithook(audit)
    audit.on = True
    try:
        model = Model.from_pretrained(path, trust_remote_code=True)
        config = hf.AutoConfig.from_pretrained(path, trust_remote_code=True)
        audio = made(model)
        model.save_pretrained(tmp_path / "again")
        copied = copy.deepcopy(model)
    finally:
        audit.on = False
    assert audit.seen == []
    assert torch.equal(audio, made(Model.from_pretrained(folder)))
    assert type(config) is hf.MusicgenConfig and config.sampling_rate == tiny.RATE and config["sampling_rate"] == 1
    assert callable(config.to_dict) and config["to_dict"] == "x" and config["__class__"] == "y"
    assert config.decoder._attn_implementation == model.decoder.attention == "sdpa"
    assert torch.equal(made(copied), audio)
    assert torch.equal(made(Model.from_pretrained(tmp_path / "again")), audio)
    for name in ("to_dict", "sampling_rate", "keys", "model_type"):
        with pytest.raises(AttributeError, match=f"{name} is no field that could be set"):
            setattr(config, name, 3)


@pytest.mark.parametrize("change, message", [
    ({"text_encoder": 3}, "text_encoder must be an object, the fields of a T5Config, got 3"),
    ({"decoder": ["x"]}, "decoder must be an object, the fields of a MusicgenDecoderConfig, got"),
    ({"audio_encoder": {"model_type": "dac"}}, "audio_encoder.model_type must be 'encodec', got 'dac'"),
    ({"dtype": "nn"}, r"dtype must be one of \['float32', 'bfloat16', 'float16'\], got 'nn'"),
    ({"dtype": {"a": 1}}, "dtype must be one of"),
    ({"dtype": "manual_seed"}, "dtype must be one of"),
])  # fmt: skip
def test_fields_of_a_wrong_kind_are_refused(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        Model.from_pretrained(tmp_path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="must be"):
        hf.MusicgenForCausalLM.from_pretrained(tmp_path, config=None)
