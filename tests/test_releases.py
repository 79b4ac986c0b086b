"""Tiny releases with every trait that published files have: what does not change what is computed opens and computes
the same, what does is refused by its name, its value and its file."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import EncodecModel, MusicgenForConditionalGeneration

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.checkpoint import audiocraft, load_codec
from musicgen_ref.checkpoint.source import read_configs
from tests import release, tiny
from tests.hub import Hub
from weights_convert import convert
from weights_convert.__main__ import main

TEXTS = ["soft rain", "loud drums and a heavy bass"]
NEW_TOKENS = 13
LM, CODEC = "state_dict.bin", "compression_state_dict.bin"


class Plain(NamedTuple):
    """transformers' model, a release of it as of 2023, and what that computes."""

    model: MusicgenForConditionalGeneration
    folder: Path
    codes: Tensor
    audio: Tensor


def computed(model: MusicGen) -> tuple[Tensor, Tensor]:
    """Greedy codes with guidance, and their audio."""
    sizes = model.decoder.config.codebooks, model.decoder.config.channels
    options = GenerationOptions(greedy=True, **tiny.clip(0, NEW_TOKENS, *sizes))
    made = model.generate(TEXTS, options)
    return made.codes, made.audio


@pytest.fixture(scope="module")
def plains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plain]:
    """By kind; not to be written to."""
    out = {}
    for kind in ("mono", "stereo"):
        folder, model = tmp_path_factory.mktemp(kind) / "release", release.model(kind)
        release.write(model, folder, torch.float16, tokenizer=tiny.spiece())  # by audiocraft 1.3.0
        out[kind] = Plain(model, folder, *computed(MusicGen.from_pretrained(folder)))
        assert out[kind].codes.unique().numel() > 10
    return out


@pytest.fixture
def plain(plains: dict[str, Plain]) -> Plain:
    return plains["mono"]


def copied(plain: Plain, tmp_path: Path) -> Path:
    """A release as of 2023 to be changed, deep enough that what lies beside it is the test's."""
    folder = tmp_path / "here" / "release"
    shutil.copytree(plain.folder / "t5-base", folder / "t5-base")
    release.publish_lm(plain.model, folder)
    codebooks = plain.model.config.decoder.num_codebooks // plain.model.config.decoder.audio_channels
    release.publish_codec(plain.model.audio_encoder, folder, codebooks)
    return folder


def check(plain: Plain, folder: Path, out: Path, **parts: Any) -> None:
    """That a release computes what the plain one does: opened, converted, and by transformers."""
    codes, audio = computed(MusicGen.from_pretrained(folder, **parts))
    assert torch.equal(codes, plain.codes) and torch.equal(audio, plain.audio)
    convert.from_audiocraft(folder, out, **parts)
    model = MusicGen.from_pretrained(out)
    codes, audio = computed(model)
    assert torch.equal(codes, plain.codes) and torch.equal(audio, plain.audio)
    opened, info = MusicgenForConditionalGeneration.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    assert {name: list(value) for name, value in info.items() if value} == {}
    ids, mask = model.tokenizer(TEXTS)
    arguments = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": NEW_TOKENS}
    codes, _ = tiny.theirs(opened.eval(), input_ids=ids, attention_mask=mask, **arguments)
    assert torch.equal(codes, plain.codes)


# Settings: changes to the xp.cfg of the decoder and of the codec, see release.edited().

MELODY = {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as of 2023": ({}, {}),
    "no args": ({"conditioners__args": ...}, {}),
    "args of any kind": ({"conditioners__args": {"drop_other_p": 0.5, "later": {"a": [1, "b"]}, "none": None}}, {}),
    "args null": ({"conditioners__args": None}, {}),
    "dropout of melody's attributes": (
        {"attribute_dropout": {"args": {"active_on_eval": False}, "text": {}, "wav": {"self_wav": 0.5}}},
        {},
    ),
    "q_modeling of 0.0.2": (
        {"codebooks_pattern__modeling": None, "codebooks_pattern__delay": ..., "transformer_lm__q_modeling": "delay"},
        {},
    ),
    "q_modeling, no section of patterns": ({"codebooks_pattern": ..., "transformer_lm__q_modeling": "delay"}, {}),
    "q_modeling, other delays that are not meant": (
        {
            "codebooks_pattern__modeling": None,
            "codebooks_pattern__delay__delays": [0, 0, 0, 0],
            "codebooks_pattern__delay__flatten_first": 2,
            "transformer_lm__q_modeling": "delay",
        },
        {},
    ),
    "modeling said, q_modeling of another kind not meant": ({"transformer_lm__q_modeling": "parallel"}, {}),
    "no delays": ({"codebooks_pattern__delay__delays": ...}, {}),
    "delays null": ({"codebooks_pattern__delay__delays": None}, {}),
    "nothing of delays": ({"codebooks_pattern__delay": ...}, {}),
    "no flatten_first, no empty_initial": (
        {"codebooks_pattern__delay__flatten_first": ..., "codebooks_pattern__delay__empty_initial": None},
        {},
    ),
    "renormalize null": ({}, {"encodec__renormalize": None}),
    "no renormalize": ({}, {"encodec__renormalize": ...}),
    "renorm of another kind": ({}, {"encodec__renorm": {"after": True}}),
    "no renorm": ({}, {"encodec__renorm": ...}),
    "no metrics, no evaluation, no datasets": ({"evaluate": ..., "dataset": ..., "datasource": ...}, {"optim": ...}),
    "sections of later versions": (
        {"interleave_stereo_codebooks": {"use": False, "per_timestep": False}, "metrics": {"fad": {}}, "cache": None},
        {"metrics": {"visqol": {"bin": "/usr/local/visqol"}}, "cache": {"path": None}},
    ),
    "stereo null": ({"interleave_stereo_codebooks": {"use": None, "per_timestep": None}}, {}),
    "truths null": ({"transformer_lm__qk_layer_norm": None, "transformer_lm__xpos": None}, {}),
    "an empty way to fuse": ({"fuser__ignore": [], "fuser__cross_attention_pos_emb_scale": 7}, {}),
    "activation without parameters": ({}, {"seanet__activation_params": {}}),
    "parameters of no activation": ({}, {"seanet__decoder__final_activation_params": {"alpha": 2}}),
    "keys of nobody": (
        {"transformer_lm__lr_scale": 0.5, "conditioners__description__clap": {"name": "x"}, "label": "mine"},
        {"seanet__checkpoint": False, "rvq__codebook_offset": 3, "encodec__owner": "me"},
    ),
    "other training": ({"transformer_lm__checkpointing": "torch", "transformer_lm__two_step_cfg": True}, {}),
}


@pytest.mark.parametrize("name", SAME)
def test_settings_that_change_nothing_are_passed_over(name: str, plain: Plain, tmp_path: Path) -> None:
    folder, (of_lm, of_codec) = copied(plain, tmp_path), SAME[name]
    config = release.published_lm_cfg(plain.model, **{"conditioners__args": MELODY} | of_lm)
    release.publish_lm(plain.model, folder, config)
    codec = plain.model.audio_encoder
    release.publish_codec(codec, folder, 4, release.published_codec_cfg(codec, 4, **of_codec))
    check(plain, folder, tmp_path / "out")


@pytest.mark.parametrize("last", [False, True])
def test_the_order_of_the_conditioners_is_free(last: bool, plain: Plain, tmp_path: Path) -> None:
    folder, config = copied(plain, tmp_path), release.published_lm_cfg(plain.model)
    names = sorted(config["conditioners"], reverse=last)
    config["conditioners"] = {name: config["conditioners"][name] for name in names}
    assert list(config["conditioners"])[-1] == ("args" if last else "description")
    release.publish_lm(plain.model, folder, config)
    check(plain, folder, tmp_path / "out")


def test_what_stereo_models_have_opens(plains: dict[str, Plain], tmp_path: Path) -> None:
    plain = plains["stereo"]
    folder = copied(plain, tmp_path)
    release.publish_stub(folder)
    plain.model.audio_encoder.save_pretrained(folder / "encodec_32khz")
    check(plain, folder, tmp_path / "out")


# Packages: what the files hold around the tensors.

FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "version and exported": lambda content: content | {"version": "1.3.0", "exported": True},
    "tensors under model": lambda content: content | {"best_state": {"model": content["best_state"]}},
    "tensors under model, more beside": lambda content: (
        content | {"best_state": {"model": content["best_state"], "ema": {}}, "history": [{"train": {"ce": 3.5}}]}
    ),
    "a dictionary of no order": lambda content: content | {"best_state": dict(content["best_state"])},
    "parameters": lambda content: (
        content | {"best_state": {name: torch.nn.Parameter(tensor) for name, tensor in content["best_state"].items()}}
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_packages_of_every_version_open(name: str, plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    for file in (LM, CODEC):
        torch.save(FORMS[name](torch.load(folder / file, weights_only=True)), folder / file)
    check(plain, folder, tmp_path / "out")


def test_the_fixture_is_like_the_files_of_2023(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    lm, codec = (torch.load(folder / file, weights_only=True) for file in (LM, CODEC))
    assert list(lm) == list(codec) == ["best_state", "xp.cfg"]
    assert type(lm["best_state"]).__name__ == type(codec["best_state"]).__name__ == "OrderedDict"
    assert {tensor.dtype for tensor in lm["best_state"].values()} == {torch.float16}
    assert {tensor.dtype for tensor in codec["best_state"].values()} == {torch.float32}
    endings = {name.rpartition(".")[2] for name in codec["best_state"]}
    assert {"inited", "cluster_size", "embed_avg", "weight_g", "weight_v"} <= endings
    assert not any(name.startswith("condition_provider.conditioners.description.t5") for name in lm["best_state"])
    settings = yaml.safe_load(codec["xp.cfg"])
    assert settings["seanet"]["pad_mode"] == "reflect"
    assert "1.0e-08" in lm["xp.cfg"] and "${oc.env:USER}" in lm["xp.cfg"] and "???" in lm["xp.cfg"]


# Codecs that are named: where they may lie.


def as_safetensors(model: EncodecModel, folder: Path) -> None:
    model.save_pretrained(folder)


def as_bin(model: EncodecModel, folder: Path) -> None:
    """The names and the format that the directory of encodec_32khz had in 2023."""
    model.save_pretrained(folder)
    spelled = {"original0": "weight_g", "original1": "weight_v"}
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, *norm = name.split(".parametrizations.weight.")
        state[f"{stem}.{spelled[norm[0]]}" if norm else name] = tensor
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_released(model: EncodecModel, folder: Path) -> None:
    folder.mkdir()
    release.publish_codec(model, folder, 4)


CODECS = {"safetensors": as_safetensors, "bin": as_bin, "audiocraft's": as_released}


@pytest.mark.parametrize("place", ["inside", "beside", "given"])
@pytest.mark.parametrize("form", CODECS)
def test_a_stub_opens_with_the_codec_that_it_names(form: str, place: str, plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    release.publish_stub(folder)
    codec = {
        "inside": folder / "encodec_32khz",
        "beside": folder.parent / "encodec_32khz",
        "given": tmp_path / "elsewhere",
    }[place]
    CODECS[form](plain.model.audio_encoder, codec)
    parts = {"codec": codec} if place == "given" else {}
    check(plain, folder, tmp_path / "out", **parts)
    if place != "given":
        assert run("verify", folder, tmp_path / "out") == 0


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def test_without_a_codec_file_the_configuration_names_the_codec(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    (folder / CODEC).unlink()
    as_safetensors(plain.model.audio_encoder, tmp_path / "mine")
    check(plain, folder, tmp_path / "given", codec=tmp_path / "mine")
    config = release.published_lm_cfg(plain.model)
    config["compression_model_checkpoint"] = "//pretrained/somebody/encodec_of_ours"
    release.publish_lm(plain.model, folder, config)
    with pytest.raises(FileNotFoundError, match="hf download somebody/encodec_of_ours") as caught:
        MusicGen.from_pretrained(folder)
    assert str(folder) in str(caught.value) and CODEC in str(caught.value)
    (tmp_path / "mine").rename(folder.parent / "encodec_of_ours")
    check(plain, folder, tmp_path / "named")


def test_a_part_that_is_missing_comes_with_the_command_that_fetches_it(
    plain: Plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(plain, tmp_path / "with space")
    release.publish_stub(folder)
    for name, part in {"facebook/encodec_32khz": "codec", "t5-base": "text-encoder"}.items():
        short = name.rpartition("/")[2]
        with pytest.raises(FileNotFoundError) as caught:
            MusicGen.from_pretrained(folder)
        message = str(caught.value)
        assert message.startswith(f"{folder}: ") and "\n" not in message
        command = shlex.split(message[message.index("`") + 1 : message.rindex("`")])
        assert command == ["hf", "download", name, "--local-dir", str(folder / short)]
        assert f"{part.replace('-', '_')}=DIR" in message and f"--{part} DIR" in message
        assert run("audiocraft", folder, tmp_path / "out", "--text-encoder", tmp_path / "nowhere") == 2
        assert ("nowhere" if part == "text-encoder" else "hf download") in capsys.readouterr().err
        if part == "codec":  # what the command does
            as_bin(plain.model.audio_encoder, folder / short)
            (folder / "t5-base").rename(tmp_path / "t5")
    parts = {"text_encoder": tmp_path / "t5"}
    check(plain, folder, tmp_path / "out", **parts)
    with pytest.raises(FileNotFoundError, match=r"codec: .*with space holds no config\.json and no compression_state"):
        MusicGen.from_pretrained(folder, codec=tmp_path / "with space", **parts)
    with pytest.raises(FileNotFoundError, match=r"codec: no such directory: .*nowhere"):
        MusicGen.from_pretrained(folder, codec=tmp_path / "nowhere", **parts)


def test_what_lies_beside_the_working_directory_is_found(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(plain, tmp_path)
    release.publish_stub(folder)
    as_safetensors(plain.model.audio_encoder, folder.parent / "encodec_32khz")
    (folder / "t5-base").rename(folder.parent / "t5-base")
    monkeypatch.chdir(folder)
    assert torch.equal(computed(MusicGen.from_pretrained("."))[0], plain.codes)


def test_the_hub_is_asked_for_the_codec_that_the_stub_names(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(plain, tmp_path)
    as_safetensors(plain.model.audio_encoder, tmp_path / "codec")
    there = Hub(monkeypatch, tmp_path / "cache", {"facebook/encodec_32khz": tmp_path / "codec"})
    assert run("audiocraft", folder, tmp_path / "own", "--codec", "hub") == 2 and there.listed == []
    release.publish_stub(folder)
    assert run("audiocraft", folder, tmp_path / "out", "--codec", "hub") == 0
    (folder / CODEC).unlink()
    assert run("audiocraft", folder, tmp_path / "none", "--codec", "hub") == 0
    assert there.listed == ["facebook/encodec_32khz"] * 2
    for out in ("out", "none"):
        assert torch.equal(computed(MusicGen.from_pretrained(tmp_path / out))[1], plain.audio)


def test_a_stub_alone_is_the_codec_that_it_names(plain: Plain, tmp_path: Path) -> None:
    folder = tmp_path / "codec"
    folder.mkdir()
    release.publish_stub(folder)
    as_safetensors(plain.model.audio_encoder, folder / "encodec_32khz")
    audio = tiny.noise(1, 1, 80)
    expected = plain.model.audio_encoder(audio).audio_codes[0]
    assert torch.equal(load_codec(folder).encode(audio, 4)[0].codes, expected)
    convert.from_audiocraft(folder, tmp_path / "out")
    assert torch.equal(EncodecModel.from_pretrained(tmp_path / "out")(audio).audio_codes[0], expected)


def test_a_stub_of_a_path_needs_the_codec_given(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    release.publish_stub(folder, "/checkpoints/of mine/codec.bin")
    with pytest.raises(ValueError, match=rf"{CODEC}: pretrained must be a model's name, got '/checkpoints/of mine"):
        MusicGen.from_pretrained(folder)
    as_safetensors(plain.model.audio_encoder, tmp_path / "mine")
    assert torch.equal(computed(MusicGen.from_pretrained(folder, codec=tmp_path / "mine"))[1], plain.audio)


def test_a_codec_that_does_not_belong_to_the_decoder_is_refused_by_its_own_file(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    release.publish_stub(folder)
    tiny.codec(tiny.codec_config(2)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=rf"{LM}: transformer_lm\.n_q must be at most 2 a channel"):
        MusicGen.from_pretrained(folder, codec=tmp_path / "other")
    tiny.codec(tiny.codec_config(4, audio_channels=2)).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/two/config\.json: audio_channels must be 1, got 2"):
        MusicGen.from_pretrained(folder, codec=tmp_path / "two")


def test_a_part_that_the_release_holds_is_not_replaced(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    as_safetensors(plain.model.audio_encoder, tmp_path / "mine")
    for open_it in (MusicGen.from_pretrained, lambda path, codec: convert.from_audiocraft(path, path, codec=codec)):
        with pytest.raises(ValueError, match=r"codec must be left out.*compression_state_dict|must be another"):
            open_it(folder, codec=tmp_path / "mine")
    with pytest.raises(ValueError, match="codec must be left out"):
        convert.from_audiocraft(folder, tmp_path / "out", codec=tmp_path / "mine")
    plain.model.save_pretrained(tmp_path / "theirs")
    for part in ("codec", "text_encoder"):
        with pytest.raises(ValueError, match=rf"^{part} is for audiocraft's files.*theirs has its own"):
            MusicGen.from_pretrained(tmp_path / "theirs", **{part: tmp_path / "mine"})
        with pytest.raises(ValueError, match=rf"^{part} is for audiocraft's files"):
            MusicGen.from_pretrained("demo", **{part: tmp_path / "mine"})


@pytest.mark.parametrize("part", ["encodec_32khz", "t5-base"])
def test_a_part_that_is_read_is_never_replaced(part: str, plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    release.publish_stub(folder)
    as_safetensors(plain.model.audio_encoder, folder.parent / "encodec_32khz")
    (folder / "t5-base").rename(folder.parent / "t5-base")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"{part}: must be another directory"):
        convert.from_audiocraft(folder, folder.parent / part, overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


# What is refused. Each row: what is changed, the file that is to be named, and what else the message says.

SELF_WAV = {
    "model": "chroma_stem",
    "chroma_stem": {
        "sample_rate": "${sample_rate}", "n_chroma": 12, "radix2_exp": 14, "argmax": True,
        "cache_path": "/fsx-audio-craft-llm/cache", "match_len_on_eval": False, "eval_wavs": None, "n_eval_wavs": 100,
    },
}  # fmt: skip
STYLE = {"model": "style", "style": {"sample_rate": "${sample_rate}", "transformer_scale": "default", "rvq_n_q": 6}}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, list[str]]] = {
    "melody": (
        {"conditioners__self_wav": SELF_WAV, "fuser__prepend": ["self_wav", "description"], "fuser__cross": []},
        {},
        LM,
        ["conditioners.self_wav", "chroma_stem", "melody"],
    ),
    "melody's fuser": ({"fuser__prepend": ["description"]}, {}, LM, ["fuser.prepend", "['description']", "[]"]),
    "style": ({"conditioners__self_wav": STYLE}, {}, LM, ["conditioners.self_wav", "'style'"]),
    "a long conditioner": (
        {"conditioners__a_condition_of_a_long_name_that_nobody_has_heard_of_before_today": {"model": "x" * 5000}},
        {},
        LM,
        ["conditioners.a_condition_of_a_long_name_that_nobody_has_heard_of_before_today", "{'model': 'xxx"],
    ),
    "no text": ({"conditioners__description": ...}, {}, LM, ["conditioners.description"]),
    "conditioners of another type": ({"conditioners": ["description"]}, {}, LM, ["conditioners", "['description']"]),
    "another encoder of texts": (
        {"conditioners__description__model": "clap"}, {}, LM, ["conditioners.description.model", "'clap'", "'t5'"]
    ),
    "a T5 that was trained": (
        {"conditioners__description__t5__finetune": True}, {}, LM, ["conditioners.description.t5.finetune", "True"]
    ),
    "q_modeling of another kind": (
        {"codebooks_pattern__modeling": None, "transformer_lm__q_modeling": "valle"},
        {}, LM, ["transformer_lm.q_modeling", "'valle'", "'delay'", "codebooks_pattern.modeling"],
    ),
    "no pattern": ({"codebooks_pattern__modeling": None}, {}, LM, ["transformer_lm.q_modeling", "None", "'delay'"]),
    "another pattern": (
        {"codebooks_pattern__modeling": "parallel"}, {}, LM, ["codebooks_pattern.modeling", "'parallel'", "'delay'"]
    ),
    "delays that are not one a codebook": (
        {"codebooks_pattern__delay__delays": [0, 0, 1]},
        {}, LM, ["codebooks_pattern.delay.delays", "[0, 0, 1]", "for each of 4 codebooks"],
    ),
    "flattened": (
        {"codebooks_pattern__delay__flatten_first": 1}, {}, LM, ["codebooks_pattern.delay.flatten_first", "1", "0"]
    ),
    "stereo in turns of time": (
        {"interleave_stereo_codebooks": {"per_timestep": True}},
        {}, LM, ["interleave_stereo_codebooks.per_timestep", "True"],
    ),
    "rope": (
        {"transformer_lm__positional_embedding": "rope"},
        {}, LM, ["transformer_lm.positional_embedding", "'rope'", "'sin'"],
    ),
    "xpos": ({"transformer_lm__xpos": True}, {}, LM, ["transformer_lm.xpos", "True"]),
    "positions of another scale": (
        {"transformer_lm__positional_scale": 0.5}, {}, LM, ["transformer_lm.positional_scale", "0.5", "1.0"]
    ),
    "positions of another period": (
        {"transformer_lm__max_period": 100}, {}, LM, ["transformer_lm.max_period", "100", "10000"]
    ),
    "norm": ({"transformer_lm__norm": "rms_norm"}, {}, LM, ["transformer_lm.norm", "'rms_norm'", "'layer_norm'"]),
    "norm of queries": ({"transformer_lm__qk_layer_norm": True}, {}, LM, ["transformer_lm.qk_layer_norm", "True"]),
    "layer scale": ({"transformer_lm__layer_scale": 0.1}, {}, LM, ["transformer_lm.layer_scale", "0.1", "None"]),
    "kv_repeat": ({"transformer_lm__kv_repeat": 2}, {}, LM, ["transformer_lm.kv_repeat", "2", "1"]),
    "past_context": ({"transformer_lm__past_context": 500}, {}, LM, ["transformer_lm.past_context", "500", "None"]),
    "biases": ({"transformer_lm__bias_ff": True}, {}, LM, ["transformer_lm.bias_ff", "True", "False"]),
    "another model": ({"lm_model": "transformer_lm_magnet"}, {}, LM, ["lm_model", "'transformer_lm_magnet'"]),
    "fuser.sum": ({"fuser__sum": ["description"]}, {}, LM, ["fuser.sum", "['description']", "[]"]),
    "another way to fuse": ({"fuser__film": ["description"]}, {}, LM, ["fuser.film", "['description']"]),
    "positions of the text": (
        {"fuser__cross_attention_pos_emb": True}, {}, LM, ["fuser.cross_attention_pos_emb", "True"]
    ),
    "renormalize": ({}, {"encodec__renormalize": True}, CODEC, ["encodec.renormalize", "True", "False"]),
    "stereo codec": ({}, {"channels": 2}, CODEC, ["encodec.channels", "2", "1"]),
    "an encoder of its own": ({}, {"seanet__encoder": {"lstm": 0}}, CODEC, ["seanet.encoder.lstm", "0"]),
    "a decoder of its own": (
        {}, {"seanet__decoder__n_filters": 32}, CODEC, ["seanet.decoder.n_filters", "32"]
    ),
    "a last activation": (
        {}, {"seanet__decoder__final_activation": "Tanh"}, CODEC, ["seanet.decoder.final_activation", "'Tanh'", "None"]
    ),
    "norm_params": ({}, {"seanet__norm_params": {"eps": 0.1}}, CODEC, ["seanet.norm_params.eps", "0.1"]),
    "activation_params": (
        {}, {"seanet__activation_params": {"alpha": 1.0, "inplace": True}},
        CODEC, ["seanet.activation_params.inplace", "True"],
    ),
    "another alpha": (
        {}, {"seanet__activation_params": {"alpha": 0.5}}, CODEC, ["seanet.activation_params.alpha", "0.5", "1.0"]
    ),
    "another activation": ({}, {"seanet__activation": "ReLU"}, CODEC, ["seanet.activation", "'ReLU'", "'ELU'"]),
    "another norm": ({}, {"seanet__norm": "none"}, CODEC, ["seanet.norm", "'none'", "weight_norm"]),
    "another quantiser": ({}, {"encodec__quantizer": "no_quant"}, CODEC, ["encodec.quantizer", "'no_quant'", "'rvq'"]),
    "another codec": ({}, {"compression_model": "dac"}, CODEC, ["compression_model", "'dac'", "'encodec'"]),
    "no ratios": ({}, {"seanet__ratios": ...}, CODEC, ["seanet.ratios"]),
}  # fmt: skip


def refused(folder: Path, out: Path) -> str:
    """The one message with which model and conversion refuse a directory."""
    messages = []
    for open_it in (MusicGen.from_pretrained, lambda path: convert.from_audiocraft(path, out)):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            open_it(folder)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and not out.exists()
    assert "\n" not in messages[0] and len(messages[0]) < 1000
    return messages[0]


@pytest.mark.parametrize("name", REFUSED)
def test_another_model_is_refused_by_key_value_and_file(name: str, plain: Plain, tmp_path: Path) -> None:
    folder, (of_lm, of_codec, file, words) = copied(plain, tmp_path), REFUSED[name]
    lm = release.published_lm_cfg(plain.model, **of_lm)
    release.publish_lm(plain.model, folder, lm)
    model = plain.model.audio_encoder
    codec = release.published_codec_cfg(model, 4, **of_codec)
    release.publish_codec(model, folder, 4, codec)
    message = refused(folder, tmp_path / "out")
    assert message.startswith(f"{folder / file}: ")
    assert [word for word in words if word not in message] == []
    problems = audiocraft.decoder_problems(lm, LM) + audiocraft.codec_problems(codec, CODEC)
    if "channels" not in of_codec and "encodec__renormalize" not in of_codec:  # of an EnCodec alone they are read
        assert message.replace(str(folder / file), file) in problems


@pytest.mark.parametrize("changes", [{"codebooks_pattern__delay__delays": ...}, {"codebooks_pattern__modeling": None}])
def test_delays_left_out_are_0_to_7_in_stereo_too(
    changes: dict[str, Any], plains: dict[str, Plain], tmp_path: Path
) -> None:
    folder, model = copied(plains["stereo"], tmp_path), plains["stereo"].model
    release.publish_lm(
        model, folder, release.published_lm_cfg(model, **changes | {"transformer_lm__q_modeling": "delay"})
    )
    assert MusicGen.from_pretrained(folder).delays == tuple(range(8))
    with pytest.raises(ValueError, match=r"delays must be \(0, 0, 1, 1, 2, 2, 3, 3\).* audiocraft's has") as error:
        convert.from_audiocraft(folder, tmp_path / "out")
    assert str(error.value).startswith(f"{folder}: ") and not (tmp_path / "out").exists()


def test_another_pattern_is_read_followed_and_written_again(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    config = release.published_lm_cfg(plain.model, codebooks_pattern__delay__delays=[0, 2, 4, 6])
    release.publish_lm(plain.model, folder, config)
    model = MusicGen.from_pretrained(folder)
    assert model.delays == model.decoder.config.delays == (0, 2, 4, 6)
    codes, _ = computed(model)
    assert not torch.equal(codes, plain.codes)
    with pytest.raises(ValueError, match=r"layout=\.\.\."):
        model.save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "again", layout="audiocraft")
    again = MusicGen.from_pretrained(tmp_path / "again")
    assert again.delays == (0, 2, 4, 6)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(computed(again)[0], codes)


def test_all_reasons_of_a_file_are_told() -> None:
    model = release.model()
    config = release.published_lm_cfg(
        model,
        conditioners__self_wav=SELF_WAV,
        fuser__prepend=["self_wav", "description"],
        fuser__cross=[],
        transformer_lm__xpos=True,
        transformer_lm__dim="wide",
        transformer_lm__n_q=...,
        transformer_lm__num_layers="${nothing}",
    )
    problems = audiocraft.decoder_problems(config, "here")
    keys = ["conditioners.self_wav", "transformer_lm.xpos", "fuser.prepend", "fuser.cross"]
    keys += ["transformer_lm.n_q", "transformer_lm.dim", "transformer_lm.num_layers -> nothing"]
    assert len(problems) == len(keys)
    assert [key for key, told in zip(keys, problems, strict=True) if not re.search(rf"{re.escape(key)}\b", told)] == []
    assert all(problem.startswith("here: ") for problem in problems)
    assert audiocraft.decoder_problems(release.published_lm_cfg(model), "here") == []

    codec = model.audio_encoder
    changes = {"seanet__encoder": {"lstm": 1, "ratios": [2]}, "compression_model": "dac", "rvq__bins": None}
    problems = audiocraft.codec_problems(release.published_codec_cfg(codec, 4, **changes), "there")
    keys = ["compression_model", "seanet.encoder.lstm", "seanet.encoder.ratios", "rvq.bins"]
    assert [key for key, problem in zip(keys, problems, strict=True) if f"{key} " not in problem] == []
    assert audiocraft.codec_problems(release.published_codec_cfg(codec, 4), "there") == []


def test_what_is_read_and_what_is_passed_over_is_told() -> None:
    model = release.model()
    config = release.published_lm_cfg(model, transformer_lm__mine=3, conditioners__description__clap={"a": 1})
    lm = audiocraft.decoder_settings(config)
    assert {"optim", "slurm", "attribute_dropout", "classifier_free_guidance", "solver"} <= set(lm.sections)
    assert {"transformer_lm.mine", "conditioners.args", "conditioners.description.clap"} <= set(lm.keys)
    assert {"fuser.cross_attention_pos_emb_scale", "conditioners.description.t5.word_dropout"} <= set(lm.keys)
    assert {"transformer_lm.dim", "codebooks_pattern.delay.delays", "lm_model", "fuser.cross"} <= set(lm.read)
    assert not {"transformer_lm", "conditioners", "fuser", "codebooks_pattern"} & set(lm.sections)
    codec = audiocraft.codec_settings(release.published_codec_cfg(model.audio_encoder, 4))
    assert {"sample_rate", "channels", "seanet.encoder", "seanet.ratios", "seanet.causal"} <= set(codec.read)
    assert {"encodec.renorm", "rvq.decay", "seanet.decoder.final_activation_params"} <= set(codec.keys)
    assert {"optim", "solver"} <= set(codec.sections)
    for settings in (lm, codec):
        told = [*settings.read, *settings.sections, *settings.keys]
        assert len(told) == len(set(told))
        # What is passed over changes nothing: without it all is as before.
    for path in (*lm.sections, *lm.keys):
        release.edited(config, {path.replace(".", "__"): ...})
    assert audiocraft.read_decoder(release.to_yaml(config), "") == audiocraft.read_decoder(
        release.to_yaml(release.published_lm_cfg(model)), ""
    )
    assert audiocraft.decoder_settings(config) == (lm.read, [], [])


# Files that are no release.


def bare(file: Path) -> None:
    """lm_final.pt, renamed."""
    torch.save(dict(torch.load(file, weights_only=True)["best_state"]), file)


def lightning(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    torch.save({"state_dict": content["best_state"], "epoch": 3, "hyper_parameters": {}}, file)


def other_tensors(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    content["best_state"] = {f"model.{name}": tensor for name, tensor in content["best_state"].items()}
    torch.save(content, file)


FOREIGN: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "bare tensors": (bare, ["best_state", "xp.cfg", "condition_provider.conditioners.description.output_proj"]),
    "lightning's": (lightning, ["best_state", "xp.cfg", "state_dict", "epoch", "hyper_parameters"]),
    "a stub in the decoder's place": (
        lambda file: torch.save({"pretrained": "facebook/encodec_32khz"}, file),
        ["pretrained", "facebook/encodec_32khz", CODEC],
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_none_of_a_release_is_refused_with_its_keys(name: str, plain: Plain, tmp_path: Path) -> None:
    folder, (change, words) = copied(plain, tmp_path), FOREIGN[name]
    change(folder / LM)
    message = refused(folder, tmp_path / "out")
    assert message.startswith(f"{folder / LM}: ")
    assert [word for word in words if word not in message] == []


def test_tensors_of_other_names_in_the_authors_package_are_listed(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    other_tensors(folder / LM)
    with pytest.raises(ValueError, match=rf"^{folder}.*lm:model\.emb\.0\.weight \(nearest missing: lm:emb\.0\.weight"):
        MusicGen.from_pretrained(folder)


@pytest.mark.parametrize("name", audiocraft.OTHER_CODECS)
@pytest.mark.parametrize("file", [CODEC, LM])
def test_the_name_of_another_codec_is_refused(file: str, name: str, plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    if file == CODEC:
        release.publish_stub(folder, name)
    else:
        (folder / CODEC).unlink()
        config = release.published_lm_cfg(plain.model, compression_model_checkpoint=f"//pretrained/{name}")
        release.publish_lm(plain.model, folder, config)
    as_safetensors(plain.model.audio_encoder, folder / name)
    message = refused(folder, tmp_path / "out")
    key = "pretrained" if file == CODEC else "compression_model_checkpoint"
    assert message.startswith(f"{folder / file}: {key} must be an EnCodec, got '{name}'")
    with pytest.raises(ValueError, match="must be an EnCodec"):
        MusicGen.from_pretrained(folder, codec=folder / name)


def test_a_chain_of_names_is_refused(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    release.publish_stub(folder)
    (folder / "encodec_32khz").mkdir()
    release.publish_stub(folder / "encodec_32khz", "somebody/another")
    message = refused(folder, tmp_path / "out")
    assert message.startswith(f"{folder / 'encodec_32khz' / CODEC}: ") and "somebody/another" in message
    (folder / "encodec_32khz" / CODEC).unlink()
    (folder / "encodec_32khz" / "config.json").write_text('{"model_type": "dac"}')
    message = refused(folder, tmp_path / "out")
    assert message.startswith(f"{folder / 'encodec_32khz' / 'config.json'}: model_type must be 'encodec', got 'dac'")


@pytest.mark.parametrize("names", [["ba7a97ba-830fe5771e.th"], ["ba7a97ba-830fe5771e.th", "aa73ae27-9f2edb13a3.th"]])
def test_the_first_versions_file_names_are_refused_with_those_expected(
    names: list[str], plain: Plain, tmp_path: Path
) -> None:
    folder = copied(plain, tmp_path)
    for old, name in zip((CODEC, LM), names, strict=False):
        (folder / old).rename(folder / name)
    (folder / LM).unlink(missing_ok=True)
    message = refused(folder, tmp_path / "out")
    assert message.startswith(f"{folder}: ")
    assert all(word in message for word in (*names, LM, CODEC, "rename"))
    with pytest.raises(FileNotFoundError, match=r"ba7a97ba-830fe5771e\.th"):
        read_configs(folder)
    if len(names) == 2:  # what the message says to do; of these tiny files the decoder is not the larger one
        for old, name in zip((CODEC, LM), names, strict=True):
            (folder / name).rename(folder / old)
        assert torch.equal(computed(MusicGen.from_pretrained(folder))[0], plain.codes)


class DictConfig(dict):  # type: ignore[type-arg]
    """Stands for omegaconf's class of that name, which torch must not build."""


DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"


@pytest.mark.parametrize("key", ["model", "best_state"])
def test_omegaconfs_objects_are_refused_with_a_way_out_that_works(
    key: str, plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(plain, tmp_path)
    module = SimpleNamespace(DictConfig=DictConfig)
    to_yaml = SimpleNamespace(to_yaml=lambda config: release.to_yaml(dict(config)))
    monkeypatch.setitem(sys.modules, "omegaconf", SimpleNamespace(dictconfig=module, OmegaConf=to_yaml))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    state = torch.load(folder / LM, weights_only=True)["best_state"]
    config = DictConfig(release.published_lm_cfg(plain.model))
    torch.save({"xp.cfg": config, key: state if key == "model" else {"model": state}}, folder / LM)
    message = refused(folder, tmp_path / "out")
    assert message.startswith(f"{folder / LM}: ") and "xp.cfg" in message and "trust" in message
    # The command that it gives, run where it says.
    command = shlex.split(message[message.index("python -c") :])
    assert command[:2] == ["python", "-c"] and len(command) == 3
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    exec(command[2], {})
    shutil.move(tmp_path / "empty" / LM, folder / LM)
    check(plain, folder, tmp_path / "out")


def test_settings_of_t5_and_of_the_codec_are_named_with_their_own_files(plain: Plain, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    release.publish_stub(folder)
    as_safetensors(plain.model.audio_encoder, folder / "encodec_32khz")
    rows = {
        "t5-base": [("num_heads", 0), ("d_model", "wide"), ("feed_forward_proj", "silu"), ("model_type", "mt5")],
        "encodec_32khz": [("num_filters", 0), ("norm_type", "none"), ("upsampling_ratios", 3), ("normalize", True)],
    }
    for part, fields in rows.items():
        file = folder / part / "config.json"
        text = file.read_text()
        for field, value in fields:
            file.write_text(json.dumps(json.loads(text) | {field: value}))
            message = refused(folder, tmp_path / "out")
            assert message.startswith(f"{file}: ") and field in message, message
            assert message.count(str(file)) == 1 and repr(value) in message
        file.write_text(text)
