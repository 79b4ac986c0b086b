"""musicgen_ref.hf: what from_pretrained() takes, makes and refuses, configurations, saving, the pipeline."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from musicgen_ref import MusicGen, checkpoint, hf
from musicgen_ref import attention as attention_module
from tests import tiny
from tests.hub import Hub

Model = hf.MusicgenForConditionalGeneration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.complete(tmp_path_factory.mktemp("mono"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return Model.from_pretrained(folder)


def generated(model: Any, **more: Any) -> Tensor:
    torch.manual_seed(5)
    ids, mask = tiny.text(2)
    settings = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 9}
    return model.generate(input_ids=ids, attention_mask=mask, **settings | more)


RUN = """
import sys
{before}
import musicgen_ref.hf as hf
assert not {{"transformers", "huggingface_hub"}} & {{n for n, m in sys.modules.items() if m is not None}}
{after}
"""


def run(before: str, after: str) -> None:
    subprocess.run([sys.executable, "-c", RUN.format(before=before, after=after)], check=True)


def test_importing_it_imports_neither_transformers_nor_the_hub() -> None:
    """And where the extra is missing, a Hub id says what to install."""
    after = """
for make in (hf.MusicgenForConditionalGeneration, hf.AutoProcessor, hf.AutoConfig, hf.MusicgenForCausalLM):
    try:
        make.from_pretrained("facebook/musicgen-small")
    except ModuleNotFoundError as error:
        assert "pip install 'musicgen-ref[hub]'" in str(error), error
    else:
        raise AssertionError(make)
"""
    run("sys.modules['huggingface_hub'] = None; sys.modules['transformers'] = None", after)


def test_a_hub_id_is_downloaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Hub(monkeypatch, tmp_path, {"facebook/musicgen-small": folder})
    loaded = Model.from_pretrained("facebook/musicgen-small", revision="abc", token=None)
    assert loaded.num_parameters() == Model.from_pretrained(folder).num_parameters()
    assert all(options == {"revision": "abc"} for options in there.calls)
    assert "model.safetensors" in there.files


def test_demo_is_the_model_that_ships() -> None:
    demo, processor = Model.from_pretrained("demo"), hf.AutoProcessor.from_pretrained("demo")
    core = MusicGen.from_pretrained(checkpoint.DEMO)
    assert demo.core.state_dict().keys() == core.state_dict().keys()
    assert all(torch.equal(t, core.state_dict()[n]) for n, t in demo.core.state_dict().items())
    assert processor.sampling_rate == core.sampling_rate == hf.AutoConfig.from_pretrained("demo").sampling_rate


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "float16", "float32", "auto", None])
def test_dtypes(folder: Path, name: str, dtype: Any) -> None:
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    ours = Model.from_pretrained(folder, **{name: dtype})
    assert ours.dtype == ours.decoder.dtype == ours.audio_encoder.dtype == theirs.dtype


def test_the_default_dtype_is_the_files(folder: Path, tmp_path: Path) -> None:
    Model.from_pretrained(folder, dtype="bfloat16").save_pretrained(tmp_path)
    assert Model.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert hf.MusicgenForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert Model.from_pretrained(folder).dtype == torch.float32


def test_attention_implementations(folder: Path, model: Any) -> None:
    eager = Model.from_pretrained(folder, attn_implementation="eager")
    mixed = Model.from_pretrained(folder, attn_implementation={"text_encoder": "eager", "decoder": "sdpa"})
    assert [eager.decoder.attention, eager.text_encoder.attention] == ["eager", "eager"]
    assert [mixed.decoder.attention, mixed.text_encoder.attention] == ["sdpa", "eager"]
    assert [model.decoder.attention, model.text_encoder.attention] == ["sdpa", "sdpa"]
    expected = generated(model)
    for other in (eager, mixed):  # the same codes: rounding alone differs
        assert torch.equal(generated(other), expected)
    mixed.set_attn_implementation("eager")
    assert [mixed.decoder.attention, mixed.text_encoder.attention] == ["eager", "eager"]


def test_the_model_is_a_module_of_its_parts(folder: Path) -> None:
    model = Model.from_pretrained(folder)
    assert not model.training
    parts = {"text_encoder", "audio_encoder", "decoder", "enc_to_dec_proj"}
    assert {name for name, _ in model.named_children()} == parts
    parameters = list(model.parameters())
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(model.core.parameters()))
    model.freeze_text_encoder()
    assert not any(p.requires_grad for p in model.core.text_encoder.parameters())
    model.freeze_audio_encoder()
    assert not any(p.requires_grad for p in model.core.codec.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    projection = sum(p.numel() for p in model.enc_to_dec_proj.parameters())
    assert model.num_parameters(only_trainable=True) == model.decoder.num_parameters() + projection
    assert model.train() is model
    assert model.core.decoder.training
    assert model.eval().to(torch.bfloat16).core.codec.quantizer.codebooks.dtype == torch.bfloat16
    assert generated(model).dtype == torch.bfloat16
    model.gradient_checkpointing_enable()
    assert model.core.decoder.gradient_checkpointing
    ids, mask = tiny.text(2)
    labels = torch.randint(0, 256, (2, 9, 4))
    loss = model.float().train()(input_ids=ids, attention_mask=mask, labels=labels)
    assert loss.cache is None
    loss.loss.backward()
    assert all(p.grad is not None for p in model.decoder.core.blocks.parameters())


def test_what_it_saves_both_libraries_open(folder: Path, model: Any, tmp_path: Path) -> None:
    model.generation_config.update({"guidance_scale": 2.5, "top_k": 9})
    processor = hf.AutoProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "new" / "both")
    model.save_pretrained(tmp_path / "new" / "both")
    model.generation_config.update({"guidance_scale": None, "top_k": None})
    again = Model.from_pretrained(tmp_path / "new" / "both")
    assert (again.generation_config.guidance_scale, again.generation_config.top_k) == (2.5, 9)
    assert torch.equal(generated(again, top_k=50), generated(model))
    theirs = tiny.opened(transformers.MusicgenForConditionalGeneration, tmp_path / "new" / "both")
    assert theirs.generation_config.guidance_scale == 2.5
    assert torch.equal(generated(theirs, top_k=50), generated(model))


def test_parts_by_themselves(folder: Path, model: Any, tmp_path: Path) -> None:
    """From a whole checkpoint, from what we save, from what transformers saves; and together again."""
    whole = tiny.opened(transformers.MusicgenForConditionalGeneration, folder)
    ids, mask = tiny.text(2)
    codes, audio = torch.randint(0, 256, (8, 9)), tiny.noise(2, 1, 77)
    calls: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
        "text_encoder": (hf.T5EncoderModel, transformers.T5EncoderModel, "last_hidden_state",
                         {"input_ids": ids, "attention_mask": mask}),
        "audio_encoder": (hf.EncodecModel, transformers.EncodecModel, "audio_values", {"input_values": audio}),
        "decoder": (hf.MusicgenForCausalLM, transformers.MusicgenForCausalLM, "logits", {"input_ids": codes}),
    }  # fmt: skip
    for part, (kind, theirs, field, arguments) in calls.items():
        getattr(whole, part).save_pretrained(tmp_path / "theirs" / part)
        getattr(model, part).save_pretrained(tmp_path / "ours" / part)
        with torch.no_grad():
            expected = getattr(model, part)(**arguments)[field]
            for source in (folder, tmp_path / "theirs" / part, tmp_path / "ours" / part):
                assert torch.equal(kind.from_pretrained(source)(**arguments)[field], expected), (part, source)
            opened = tiny.opened(theirs, tmp_path / "ours" / part)
            torch.testing.assert_close(opened(**arguments)[field], expected, rtol=0, atol=1e-4)

    together = Model.from_sub_models_pretrained(folder, folder, folder)
    assert torch.equal(generated(together), generated(model))
    parts = [tmp_path / "theirs" / part for part in calls]
    fresh = Model.from_sub_models_pretrained(*parts, decoder_dropout=0.3)
    assert fresh.enc_to_dec_proj.weight.std() < 0.03  # new: the parts have none
    assert fresh.config.decoder.dropout == fresh.decoder.core.dropout.p == 0.3
    assert not fresh.training
    given = Model.from_sub_models_pretrained(text_encoder_model=model.text_encoder, decoder_model=model.decoder,
                                             audio_encoder_pretrained_model_name_or_path=folder)  # fmt: skip
    assert torch.equal(generated(given), generated(model))
    with pytest.raises(ValueError, match="decoder_pretrained_model_name_or_path or decoder_model must be given"):
        Model.from_sub_models_pretrained(folder, folder)


def test_a_decoder_without_heads_is_saved_and_opened_on_both_sides(folder: Path, model: Any, tmp_path: Path) -> None:
    whole = tiny.opened(transformers.MusicgenForConditionalGeneration, folder)
    paths = {name: tmp_path / name for name in ("theirs", "ours", "inside", "with heads")}
    bare = hf.MusicgenModel.from_pretrained(folder)
    whole.decoder.model.save_pretrained(paths["theirs"])
    bare.save_pretrained(paths["ours"])
    model.decoder.model.save_pretrained(paths["inside"])
    model.decoder.save_pretrained(paths["with heads"])
    theirs, *ours = (load_file(paths[name] / "model.safetensors") for name in ("theirs", "ours", "inside"))
    assert bare.state_dict().keys() == whole.decoder.model.state_dict().keys()
    for tensors in ours:
        assert tensors.keys() == theirs.keys()
        assert all(torch.equal(tensors[name], theirs[name]) for name in theirs)
    config = json.loads((paths["ours"] / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["MusicgenModel"], "musicgen_decoder")
    given = {"input_ids": torch.randint(0, 256, (8, 9))}
    with torch.no_grad():
        expected = model.decoder(**given, output_hidden_states=True).hidden_states[-1]
        for source in (folder, *paths.values()):
            assert torch.equal(hf.MusicgenModel.from_pretrained(source)(**given).last_hidden_state, expected), source
        for source in (paths["ours"], paths["inside"]):
            opened = tiny.opened(transformers.MusicgenModel, source)
            torch.testing.assert_close(opened(**given).last_hidden_state, expected, rtol=0, atol=1e-4)
        for source in (paths["ours"], paths["with heads"], folder):
            loose, info = hf.MusicgenModel.from_pretrained(
                source, ignore_mismatched_sizes=True, output_loading_info=True
            )
            assert torch.equal(loose(**given).last_hidden_state, expected) and not info["missing_keys"], source
    with pytest.raises(ValueError, match=r"4 missing: decoder\.lm_heads\.0\.weight"):
        hf.MusicgenForCausalLM.from_pretrained(paths["ours"])
    drawn, info = hf.MusicgenForCausalLM.from_pretrained(
        paths["ours"], ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["missing_keys"] == {f"lm_heads.{k}.weight" for k in range(4)}
    assert torch.equal(drawn.core.norm.weight, bare.core.norm.weight)
    assert 0.015 < float(drawn.lm_heads[0].weight.detach().std()) < 0.025
    state = torch.random.get_rng_state()
    hf.MusicgenModel.from_pretrained(paths["ours"])
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing is drawn for heads that nobody sees


def test_configurations(folder: Path) -> None:
    config = hf.AutoConfig.from_pretrained(folder)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert config.sampling_rate == theirs.sampling_rate == config.audio_encoder.sampling_rate
    for name in ("frame_rate", "hop_length", "num_quantizers"):
        assert getattr(config.audio_encoder, name) == getattr(theirs.audio_encoder, name)
    assert config.text_encoder.hidden_size == theirs.text_encoder.hidden_size == config.text_encoder["d_model"]
    derived = ("is_encoder_decoder", "codebook_dim")  # of the whole model, of hidden_size
    others = {  # fields of other models than a MusicGen's parts, or of how transformers makes one
        hf.T5Config: {"classifier_dropout", "initializer_factor", "num_decoder_layers", "is_decoder", "use_cache"},
        hf.EncodecConfig: set(),
        hf.MusicgenDecoderConfig: {"add_cross_attention", "cross_attention_hidden_size", "is_decoder"},
    }
    for section in ("text_encoder", "audio_encoder", "decoder"):
        kind = type(getattr(config, section))
        assert kind.from_pretrained(folder) == getattr(config, section)
        default = getattr(transformers, kind.__name__)()
        theirs_of = {name: getattr(default, name) for name in kind.defaults if name not in derived}
        assert set(type(default).__annotations__) - set(kind.defaults) - set(kind.aliases) == others[kind]
        for name, value in theirs_of.items():
            assert kind.defaults[name] == (tuple(value) if isinstance(value, list) else value), name
    assert '"d_model": 24' in repr(config)
    with pytest.raises(ValueError, match="no field 'num_codebook': did you mean 'num_codebooks'"):
        hf.MusicgenDecoderConfig(num_codebook=4)


def test_a_model_of_a_configuration(folder: Path) -> None:
    config = hf.MusicgenConfig.from_pretrained(folder)
    random = Model(config)
    assert {n: t.shape for n, t in random.state_dict().items()} == {
        n: t.shape for n, t in Model.from_pretrained(folder).state_dict().items()
    }
    assert hf.MusicgenForCausalLM(config.decoder).num_codebooks == 4
    config.decoder.dropout = 0.4
    assert Model.from_pretrained(folder, config=config).decoder.core.dropout.p == 0.4
    config.decoder.ffn_dim = 99
    with pytest.raises(ValueError, match="config must fit the checkpoint"):
        Model.from_pretrained(folder, config=config)


def test_eight_bit_swaps_linear_layers_and_is_not_saved(folder: Path, model: Any, tmp_path: Path) -> None:
    for given in ({"load_in_8bit": True}, {"quantization_config": hf.BitsAndBytesConfig(load_in_8bit=True)}):
        small = Model.from_pretrained(folder, **given, device_map="auto", torch_dtype="auto")
        linear = [m for m in small.decoder.modules() if isinstance(m, torch.nn.Linear)]
        assert linear == []
        assert generated(small).shape == generated(model).shape
    with pytest.raises(ValueError, match="cannot be saved"):
        small.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{}, {"config": "its own"}])
def test_eight_bit_packs_layer_by_layer_and_under_a_configuration_afterwards(
    folder: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    load = checkpoint.load
    monkeypatch.setattr(
        checkpoint, "load", lambda *a, dtype, **more: asked.append(dtype) or load(*a, dtype=dtype, **more)
    )
    if given:
        given = {"config": hf.MusicgenConfig.from_pretrained(folder)}
        given["config"].decoder.dropout = 0.3
    small = Model.from_pretrained(folder, load_in_8bit=True, **given)
    assert asked == [torch.float32 if given else "int8"]
    assert not [m for m in small.decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert small.core.decoder.config.dropout == (0.3 if given else 0.1)


@pytest.mark.parametrize("part", ["text_encoder", "audio_encoder", "decoder"])
def test_a_part_whose_saving_fails_leaves_what_was_there(
    model: Any, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, path = getattr(model, part), tmp_path / "part"
    module.save_pretrained(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(checkpoint, "write_weights", full)
    with pytest.raises(OSError, match="full"):
        module.save_pretrained(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["part"]


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"torch_dtype": "float64"}, "dtype must be one of .* got 'float64'"),
    "attention": ({"attn_implementation": "flex"}, "attn_implementation must be one of .* got 'flex'"),
    "attention of a part": ({"attn_implementation": {"decode": "sdpa"}}, "did you mean 'decoder'"),
    "flash on a CPU": (
        {"attn_implementation": "flash_attention_2", "dtype": torch.float16}, "must be with device_map='cuda'"
    ),
    "device": ({"device_map": "tpu"}, "device_map must be .* got 'tpu'"),
    "devices": ({"device_map": {"decoder": 0, "text_encoder": "cpu"}}, "device_map must be"),
    "half of 8 bit": ({"load_in_8bit": True, "torch_dtype": torch.float16}, "load_in_8bit must be on a CPU and in"),
    "4 bit": ({"quantization_config": hf.BitsAndBytesConfig()}, "must have load_in_8bit=True"),
    "what the tools alone choose": ({"tested": False}, "no argument 'tested'"),
    "a misspelt name": ({"torchdtype": "auto"}, "no argument 'torchdtype': did you mean 'torch_dtype'"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_before_anything_is_read(case: str, tmp_path: Path) -> None:
    arguments, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        Model.from_pretrained(tmp_path, **arguments)  # an empty directory


def test_errors_of_names(folder: Path, tmp_path: Path) -> None:
    for name in ("no/such/directory", "/none", tmp_path / "none", "../none"):
        with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
            Model.from_pretrained(name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"model_type must be one of .* got 'bert'"):
        hf.AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type must be 't5', got 'bert'"):
        hf.T5EncoderModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "text_encoder": {"d_model": 24}}))
    with pytest.raises(ValueError, match="model_type must be 't5', got 'bert'"):
        hf.T5Config.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "musicgen", "text_encoder": None}))
    with pytest.raises(ValueError, match="model_type must be 't5', got 'musicgen'"):
        hf.T5Config.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_hidden_layer'.*did you mean 'num_hidden_layers'"):
        hf.MusicgenForCausalLM.from_pretrained(folder, num_hidden_layer=3)
    with pytest.raises(ValueError, match="tensors do not fit"):
        hf.MusicgenForCausalLM.from_pretrained(folder, num_hidden_layers=3)


def test_pipelines(folder: Path, model: Any) -> None:
    theirs = transformers.pipeline("text-to-audio", model=str(folder))
    ours = hf.pipeline("text-to-audio", model=folder, device="cpu")
    calls = (
        ("a calm piano", {"forward_params": {"max_new_tokens": 9, "do_sample": True}}),
        # Greedy: for a list, transformers draws a random number more.
        (["loud drums", "rain"], {"forward_params": {"max_new_tokens": 40},
                                  "generate_kwargs": {"do_sample": False, "max_new_tokens": 9, "guidance_scale": 2.0}}),
    )  # fmt: skip
    for texts, arguments in calls:
        results = []
        for pipe in (theirs, ours, hf.pipeline(model=model), hf.pipeline(model=folder, do_sample=True)):
            torch.manual_seed(0)
            made = pipe(texts, **arguments)
            results.append([made] if isinstance(texts, str) else made)
        for other in results[1:]:
            assert len(other) == len(results[0])
            for mine, their in zip(other, results[0], strict=True):
                assert mine["sampling_rate"] == their["sampling_rate"] == tiny.RATE
                np.testing.assert_allclose(mine["audio"], their["audio"], rtol=0, atol=1e-5)  # see test_hf_page.py
    for arguments, message in (
        ({"task": "text-to-speech"}, "model must be"),
        ({"task": "text-generation", "model": folder}, "task must be one of"),
        ({"model": folder, "batchsize": 3}, "no argument 'batchsize'"),
        ({"model": model, "torch_dtype": "float16"}, "for a model that is yet to be loaded"),
        ({"model": Model(model.config)}, "tokenizer must be given"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.pipeline(**arguments)


def test_pipelines_take_the_length_that_is_said(folder: Path, model: Any) -> None:
    """Of the call, of a configuration of the call, of the pipeline, or of the model: only then the pipeline's 256."""
    pipe = hf.pipeline(model=model)
    model.generation_config.max_length = 15
    try:
        assert pipe("rain")["audio"].shape == ((15 - 4) * tiny.HOP,)
        assert pipe("rain", generate_kwargs={"max_new_tokens": 9})["audio"].shape == ((9 - 3) * tiny.HOP,)
        assert pipe("rain", forward_params={"max_length": 12})["audio"].shape == ((12 - 4) * tiny.HOP,)
    finally:
        model.generation_config.max_length = None
    theirs = transformers.pipeline("text-to-audio", model=str(folder))
    theirs.model.generation_config.max_length = 15  # which there counts the new columns
    assert theirs("rain")["audio"].shape[-1] == (15 - 3) * tiny.HOP
    given = {"generation_config": hf.GenerationConfig(max_new_tokens=9)}
    for made in (pipe("rain", generate_kwargs=given), hf.pipeline(model=model, **given)("rain")):
        assert made["audio"].shape == ((9 - 3) * tiny.HOP,)


def test_pipelines_settings_tokenizers_and_options(folder: Path, model: Any, tmp_path: Path) -> None:
    settings = {"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 9}

    def audio(pipe: Any, **more: Any) -> np.ndarray:
        torch.manual_seed(0)
        return pipe("rain", **more)["audio"]

    pipe = hf.pipeline("text-to-speech", model=model, **settings)
    assert pipe.sampling_rate == tiny.RATE
    assert pipe.task == "text-to-audio"  # of which speech is another name
    torch.manual_seed(0)
    inputs = hf.AutoTokenizer.from_pretrained(folder)(["rain"], return_tensors="pt")
    expected = model.generate(**inputs, **settings)[0, 0].numpy()
    assert np.array_equal(audio(pipe), expected)
    assert np.array_equal(audio(pipe, forward_params={"return_dict_in_generate": True}), expected)
    greedy = audio(pipe, forward_params={"do_sample": False})  # the call's over the pipeline's
    assert not np.array_equal(greedy, expected)
    assert np.array_equal(greedy, audio(hf.pipeline(model=model, **settings | {"do_sample": False})))

    # Another tokenizer than the model's, by itself or by its name, beside a model or a name.
    hf.AutoTokenizer.from_pretrained("demo").save_pretrained(tmp_path)
    other = hf.AutoTokenizer.from_pretrained(tmp_path)
    ids = other(["rain"], return_tensors="pt")
    assert ids.input_ids.tolist() != inputs.input_ids.tolist()
    torch.manual_seed(0)
    expected = model.generate(**ids, **settings)[0, 0].numpy()
    for source in (model, folder):
        for tokenizer in (other, tmp_path):
            assert np.array_equal(audio(hf.pipeline(model=source, tokenizer=tokenizer, **settings)), expected)

    half = hf.pipeline(model=folder, model_kwargs={"dtype": "bfloat16"}, attn_implementation="eager", **settings)
    assert (half.model.dtype, half.model.attention) == (torch.bfloat16, "eager")
    assert audio(half).dtype == np.float32
    with pytest.raises(ValueError, match="device_map must be"):
        hf.pipeline(model=tmp_path / "none", device="tpu")  # before the model is looked for
    moved = hf.pipeline(model=Model.from_pretrained(folder), device="meta", max_new_tokens=9)
    assert moved.model.device.type == "meta"
    with pytest.raises(ValueError, match="no argument 'topk': did you mean 'top_k'"):
        hf.TextToAudioPipeline(model, other, topk=3)


def test_a_changed_configuration_changes_nothing_else(folder: Path, model: Any) -> None:
    """from_pretrained(config=) of another dropout: eval mode, the tokenizer and the numbers are as without."""
    configs = [kind.from_pretrained(folder) for kind in (hf.MusicgenConfig, transformers.MusicgenConfig)]
    for config in configs:
        config.decoder.dropout = config.text_encoder.dropout_rate = 0.4
    ours = Model.from_pretrained(folder, config=configs[0])
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(folder, config=configs[1])
    assert ours.config is configs[0]
    for changed in (ours, theirs):
        assert not any(module.training for module in changed.modules())
    assert ours.core.text_encoder.config.dropout == 0.4
    assert torch.equal(generated(ours), generated(model))
    assert hf.pipeline(model=ours, max_new_tokens=9)("rain")["audio"].shape == (6 * tiny.HOP,)
    for section, kind in (
        ("text_encoder", hf.T5EncoderModel), ("audio_encoder", hf.EncodecModel),
        ("decoder", hf.MusicgenForCausalLM), ("decoder", hf.MusicgenModel),
    ):  # fmt: skip
        part = kind.from_pretrained(folder, config=getattr(configs[0], section))
        assert part.config is getattr(configs[0], section)
        assert not any(module.training for module in [*part.modules(), *kind.from_pretrained(folder).modules()])
    codes = torch.zeros(4, 3, dtype=torch.long)
    for kind in (hf.MusicgenForCausalLM, hf.MusicgenModel):
        assert kind.from_pretrained(folder)(codes).cache.get_seq_length() == 3  # as in eval mode
    assert hf.MusicgenForCausalLM.from_pretrained(folder, config=configs[0].decoder).core.dropout.p == 0.4


def test_the_decoder_alone_reads_and_writes_generation_config(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "whole")
    file = tmp_path / "whole" / "generation_config.json"
    said = {"do_sample": True, "top_k": 3, "max_new_tokens": 9}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    decoder = hf.MusicgenForCausalLM.from_pretrained(tmp_path / "whole")
    theirs = transformers.MusicgenForCausalLM.from_pretrained(
        tmp_path / "whole", config=transformers.AutoConfig.from_pretrained(folder).decoder
    )
    decoder.save_pretrained(tmp_path / "part")
    again = hf.MusicgenForCausalLM.from_pretrained(tmp_path / "part")
    for one in (decoder, theirs, again):
        assert {name: getattr(one.generation_config, name) for name in said} == said
    plain = hf.MusicgenForCausalLM.from_pretrained(folder)
    ids = torch.full((4, 1), 256)
    results = []
    for one, fields in ((decoder, {}), (again, {}), (plain, said)):
        torch.manual_seed(0)
        results.append(one.generate(ids, **fields))
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])
    file.unlink()  # not every checkpoint has one
    for kind in (Model, hf.MusicgenForCausalLM):
        bare = kind.from_pretrained(tmp_path / "whole").generation_config
        special = {"pad_token_id": 256, "bos_token_id": 256, "decoder_start_token_id": 256}
        assert {name: getattr(bare, name) for name in [*special, "top_k"]} == special | {"top_k": None}


def test_parts_in_dtypes_of_their_own(folder: Path, model: Any, tmp_path: Path) -> None:
    """What is said of all goes to all, what is said of one over it; a new projection is in the decoder's dtype."""
    parts = ("text_encoder", "audio_encoder", "decoder")

    def dtypes(whole: Any) -> list[torch.dtype]:
        return [getattr(whole, part).dtype for part in parts]

    half, full = torch.bfloat16, torch.float32
    made = Model.from_sub_models_pretrained(folder, folder, folder, dtype="bfloat16", decoder_dtype=torch.float32)
    assert dtypes(made) == [half, half, full]
    assert made.enc_to_dec_proj.weight.dtype == full
    assert dtypes(Model.from_sub_models_pretrained(folder, folder, folder, dtype=half)) == [half] * 3
    for part in parts:
        getattr(model, part).save_pretrained(tmp_path / part)
    paths = [tmp_path / part for part in parts]
    with pytest.raises(AttributeError, match="add_cross_attention"):
        transformers.MusicgenForConditionalGeneration.from_sub_models_pretrained(*paths, decoder_dtype=half)
    made = Model.from_sub_models_pretrained(*paths, decoder_dtype=half)
    assert dtypes(made) == [full, full, half]
    assert made.enc_to_dec_proj.weight.dtype == half
    assert not made.enc_to_dec_proj.bias.any()
    assert 0.015 < made.enc_to_dec_proj.weight.std() < 0.025
    assert made.decoder.core.config.text_width == 24
    whole = Model.from_sub_models_pretrained(*paths, dtype=half)
    assert generated(whole).dtype == half
    # Text of another width than the decoder's checkpoint reads: its projection cannot stay.
    wide = hf.T5EncoderModel(hf.T5Config(vocab_size=200, d_model=20, d_kv=8, d_ff=9, num_layers=1, num_heads=2))
    other = Model.from_sub_models_pretrained(None, folder, folder, text_encoder_model=wide)
    assert other.enc_to_dec_proj.weight.shape == (32, 20)
    assert not any(module.training for module in other.modules())  # wide was
    assert generated(other).shape == generated(model).shape


def test_a_text_encoder_of_a_whole_t5(tmp_path: Path) -> None:
    """Whose decoder and head are not read."""
    config = transformers.T5Config(vocab_size=200, d_model=24, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    whole = tiny.randomize(transformers.T5ForConditionalGeneration(config))
    whole.save_pretrained(tmp_path)
    assert any(name.startswith("decoder.") for name in load_file(tmp_path / "model.safetensors"))
    ids, mask = tiny.text(2)
    with torch.no_grad():
        expected = tiny.opened(transformers.T5EncoderModel, tmp_path)(ids, mask).last_hidden_state
        assert torch.equal(hf.T5EncoderModel.from_pretrained(tmp_path)(ids, mask).last_hidden_state, expected)


def test_a_model_of_some_parts_and_what_it_says_of_them(folder: Path, model: Any) -> None:
    own = Model.from_pretrained(folder)
    made = Model(own.config, decoder=own.decoder)  # the others are random
    assert made.decoder.core is own.decoder.core
    assert made.core.codec is not own.core.codec
    again = Model(text_encoder=own.text_encoder, audio_encoder=own.audio_encoder, decoder=own.decoder)
    assert again.config.decoder == own.config.decoder
    assert again.config.decoder is not own.config.decoder
    with pytest.raises(ValueError, match=r"missing are \['text_encoder', 'audio_encoder'\]"):
        Model(decoder=own.decoder)

    assert own.get_encoder() is own.text_encoder
    assert own.get_decoder() is own.decoder
    assert own.get_input_embeddings() is own.text_encoder.get_input_embeddings() is own.core.text_encoder.embed
    assert own.get_output_embeddings() is own.decoder.get_output_embeddings() is own.core.decoder.heads
    assert own.decoder.get_input_embeddings() is own.core.decoder.embed
    assert own.enc_to_dec_proj is own.core.decoder.text_proj
    assert own.can_generate()
    assert own.decoder.can_generate()
    own.gradient_checkpointing_enable()
    own.gradient_checkpointing_disable()
    assert not own.core.decoder.gradient_checkpointing
    own.freeze_text_encoder()
    assert own.num_parameters() == model.num_parameters() > own.num_parameters(only_trainable=True)
    assert own.train().decoder.model.training
    assert not own.eval().decoder.model.training

    core = MusicGen.from_pretrained(folder, dtype=torch.bfloat16)
    core.backend = "eager"
    around = Model.of(core)
    assert around.core is core
    assert [around.attention, around.decoder.attention, around.text_encoder.attention] == ["eager"] * 3
    assert around.config.dtype == torch.bfloat16
    assert around.config.decoder.ffn_dim == own.config.decoder.ffn_dim
    assert Model.of(core, own.config).config is own.config


def test_attention_of_parts(folder: Path) -> None:
    kinds = (hf.T5EncoderModel, hf.MusicgenForCausalLM, hf.MusicgenModel)
    for kind in kinds:
        assert kind.from_pretrained(folder).attention == "sdpa"
        part = kind.from_pretrained(folder, attn_implementation="eager")
        assert part.attention == "eager"
        part.set_attn_implementation("sdpa")
        assert part.attention == "sdpa"
    text, decoder, _ = (kind.from_pretrained(folder) for kind in kinds)
    for part in (text, decoder):
        part.set_attn_implementation({"text_encoder": "eager"})
    assert (text.attention, decoder.attention) == ("eager", "sdpa")
    decoder.set_attn_implementation("eager")
    assert decoder.model.attention == "eager"
    whole = Model.from_pretrained(folder, attn_implementation={"": "eager", "decoder": "sdpa"})
    assert [whole.attention, whole.decoder.attention, whole.text_encoder.attention] == ["sdpa", "sdpa", "eager"]
    whole.set_attn_implementation({"text_encoder": "sdpa", "decoder": "eager"})
    assert [whole.attention, whole.decoder.attention, whole.text_encoder.attention] == ["eager", "eager", "sdpa"]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_the_attention_that_was_chosen_runs(folder: Path, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each part and in generate(); flash is SDPA with its kernel first, which a CPU has none of."""
    whole = Model.from_pretrained(folder)
    whole.set_attn_implementation(attention)
    ran: list[Any] = []
    entered: list[Any] = []
    kernel, attend = hf.loading.sdpa_kernel, attention_module.attend
    monkeypatch.setattr(hf.loading, "sdpa_kernel", lambda *a, **k: entered.append(a) or kernel(*a, **k))
    monkeypatch.setattr(
        attention_module, "attend", lambda *a, backend, **k: ran.append(backend) or attend(*a, backend=backend, **k)
    )
    ids, mask = tiny.text(1)
    codes = torch.zeros(4, 2, dtype=torch.long)
    for run in (
        lambda: whole.text_encoder(ids, mask),
        lambda: whole.decoder(codes),
        lambda: whole.decoder.model(codes),
        lambda: whole.decoder.generate(codes, max_new_tokens=9),
        lambda: whole.generate(decoder_input_ids=codes, max_new_tokens=9),
    ):
        ran.clear()
        entered.clear()
        run()
        assert set(ran) == {"eager" if attention == "eager" else "sdpa"}
        assert bool(entered) == (attention == "flash_attention_2")


def test_what_else_decides_how_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    assert Model.from_pretrained(folder, dtype="bfloat16", torch_dtype="float16").dtype == torch.bfloat16
    assert Model.from_pretrained(folder, device_map={"": "cpu"}).device.type == "cpu"
    assert hf.MusicgenForCausalLM.from_pretrained(folder, dtype="bfloat16").dtype == torch.bfloat16
    Model.from_pretrained(folder, dtype="float16").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as transformers 4 wrote it
    (tmp_path / "config.json").write_text(json.dumps(config))
    for kind in (Model, hf.MusicgenForCausalLM, hf.T5EncoderModel, hf.EncodecModel):
        assert kind.from_pretrained(tmp_path).dtype == torch.float16
    del config["torch_dtype"]  # nothing said: the file's
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Model.from_pretrained(tmp_path).dtype == torch.float16
    with pytest.raises(ValueError, match="load_in_8bit must be on a CPU"):
        Model.from_pretrained(folder, load_in_8bit=True, device_map="meta")


def test_saved_files_hold_what_transformers_saves(folder: Path, model: Any, tmp_path: Path) -> None:
    whole = tiny.opened(transformers.MusicgenForConditionalGeneration, folder)
    for part in ("text_encoder", "audio_encoder", "decoder"):
        getattr(whole, part).save_pretrained(tmp_path / "theirs" / part)
        getattr(model, part).save_pretrained(tmp_path / "ours" / part)
        names = [set(load_file(tmp_path / who / part / "model.safetensors")) for who in ("theirs", "ours")]
        # An encoder by itself has its embedding under a second name there, which is the first one's again.
        assert names[0] - names[1] <= {"encoder.embed_tokens.weight"}, "state_dict() has it, files do not"
        assert names[1] <= names[0]
        # Its config.json says a dtype, which is the argument's name, too: the argument says how to load.
        assert json.loads((tmp_path / "theirs" / part / "config.json").read_text())["dtype"] == "float32"
        loaded = type(getattr(model, part)).from_pretrained(tmp_path / "theirs" / part, dtype="bfloat16")
        assert loaded.dtype == torch.bfloat16
    # A model without a tokenizer leaves the one that lies there.
    hf.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "whole")
    bare = Model(model.config)
    bare.save_pretrained(tmp_path / "whole")
    assert bare.core.tokenizer is None
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "whole")("rain").input_ids == model.core.tokenizer.encode("rain")
    bare.save_pretrained(tmp_path / "a" / "new" / "folder")
    bare.decoder.save_pretrained(tmp_path / "another" / "new" / "folder")
    assert hf.MusicgenForCausalLM.from_pretrained(tmp_path / "another" / "new" / "folder").num_codebooks == 4
    small = Model.from_pretrained(folder, load_in_8bit=True)
    with pytest.raises(ValueError, match="cannot be saved"):
        small.decoder.save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_configurations_are_mappings_with_two_names_for_some_fields(folder: Path) -> None:
    config = hf.T5Config(hidden_size=20, dropout_rate=0.3)
    assert config.d_model == config.hidden_size == config["hidden_size"] == 20
    config.num_hidden_layers = 3
    assert config.num_layers == 3
    assert "num_hidden_layers" not in config.to_dict()
    assert "d_model" in config
    assert "hidden_siz" not in config
    assert len(config) == len(list(config)) == len(config.keys()) == len(dict(**config))
    assert config == hf.T5Config(d_model=20, dropout_rate=0.3, num_layers=3)
    assert config != hf.T5Config(d_model=20, dropout_rate=0.4, num_layers=3)
    assert type("Other", (hf.T5Config,), {})(**config) != config  # the same fields of another kind
    with pytest.raises(ValueError, match="no field 'num_hidden_layer': did you mean 'num_hidden_layers'"):
        hf.T5Config(num_hidden_layer=2)
    with pytest.raises(AttributeError, match="T5Config has no field 'width'"):
        _ = config.width

    assert config.to_dict()["model_type"] == "t5"
    assert hf.GenerationConfig().to_dict() == {}
    assert hf.T5Config.from_dict(config.to_dict()) == config
    assert "model_type" not in hf.T5Config.from_dict(config.to_dict())
    assert hf.T5Config.from_dict({"d_model": 20, "d_ff": 9}, d_model=30).to_diff_dict() == {
        "d_model": 30, "d_ff": 9, "model_type": "t5"
    }  # fmt: skip
    decoder = hf.MusicgenDecoderConfig(ffn_dim=None, dropout=0.3)
    assert decoder.to_json_string() == '{\n  "dropout": 0.3,\n  "model_type": "musicgen_decoder"\n}'
    whole = hf.MusicgenConfig()
    assert list(json.loads(whole.to_json_string(use_diff=False))) == sorted(whole.to_dict())
    full = json.loads(decoder.to_json_string(use_diff=False))
    assert (full["ffn_dim"], full["num_codebooks"]) == (None, 4)

    for kind in (hf.T5Config, hf.EncodecConfig, hf.MusicgenDecoderConfig, hf.MusicgenConfig, hf.GenerationConfig):
        for value in kind.defaults.values():  # one configuration's change is not another's
            assert isinstance(value, (int, float, str, tuple, type(None)))
    for kind in (hf.AutoConfig, hf.MusicgenConfig):
        read = kind.from_pretrained(folder, initializer_factor=0.5, revision=None, use_safetensors=True)
        assert read.initializer_factor == 0.5
        assert {"revision", "use_safetensors"}.isdisjoint(read.keys())
    assert hf.MusicgenDecoderConfig.from_pretrained(folder, dropout=0.3).dropout == 0.3

    parts = hf.T5Config(d_model=20), hf.EncodecConfig(sampling_rate=16000), hf.MusicgenDecoderConfig(dropout=0.3)
    whole = hf.MusicgenConfig.from_sub_models_config(*parts, initializer_factor=0.5)
    assert (whole.text_encoder, whole.audio_encoder, whole.decoder) == parts
    assert (whole.sampling_rate, whole.initializer_factor) == (16000, 0.5)
    assert hf.MusicgenConfig(decoder={"dropout": 0.3}).decoder == parts[2]
    assert hf.MusicgenConfig(decoder=None).decoder == hf.MusicgenDecoderConfig()


# What generation_config.json of transformers 4 said by default.
FOUR = {
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "early_stopping": False, "length_penalty": 1.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "min_length": 0,
    "renormalize_logits": False, "remove_invalid_values": False, "penalty_alpha": None, "min_new_tokens": None,
    "bad_words_ids": None, "transformers_version": "4.57.6", "cache_implementation": None, "dola_layers": None,
}  # fmt: skip


def test_generation_configurations_of_every_age(model: Any) -> None:
    asked = hf.GenerationConfig(**FOUR)
    asked.validate()
    expected = generated(model)
    assert torch.equal(generated(model, generation_config=asked), expected)
    assert torch.equal(
        generated(model, min_length=3, min_new_tokens=2, **{k: FOUR[k] for k in list(FOUR)[:12]}), expected
    )
    for name in list(FOUR)[:15]:
        if name != "min_length":
            with pytest.raises(ValueError, match=f"{name} must be one of"):
                generated(model, **{name: 0.37})
    hf.GenerationConfig(penalty_alpha=0).validate()  # the one number that files of transformers 4 leave out
    with pytest.raises(ValueError, match="no argument 'numbeams': did you mean 'num_beams'"):
        generated(model, generation_config=hf.GenerationConfig.from_dict({"numbeams": 1}))
    special = hf.GenerationConfig.from_model_config(model.config)
    assert special.to_dict() == {"pad_token_id": 256, "bos_token_id": 256, "decoder_start_token_id": 256}
    assert special == hf.GenerationConfig.from_model_config(model.config.decoder)


def test_a_download_is_asked_for_what_was_said(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **o: asked.append((name, o)) or str(folder))
    hub = {"revision": "abc", "cache_dir": str(tmp_path), "local_files_only": True, "force_download": False}
    loads = (
        hf.MusicgenForCausalLM.from_pretrained,
        hf.T5Tokenizer.from_pretrained,
        hf.AutoConfig.from_pretrained,
        lambda name, **options: hf.pipeline(model=name, **options),
    )
    for load in loads:
        asked.clear()
        load("owner/name", **hub, token=None, use_safetensors=True)
        assert asked
        for name, options in asked:  # every file of them is of one revision
            patterns = options.pop("allow_patterns")
            assert (name, options) == ("owner/name", hub)
            assert {"*.json", "*.safetensors", "*.bin", "spiece.model"} <= set(patterns)
    asked.clear()
    assert hf.AutoConfig.from_pretrained("name").sampling_rate == tiny.RATE  # an id of the Hub's early days
    assert {name for name, _ in asked} == {"name"}
    for name in ("a/b/c", "./a", "~/a", "../a", "/a"):
        with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
            hf.AutoConfig.from_pretrained(name)


@pytest.mark.parametrize(
    "kind",
    [
        "AutoConfig", "MusicgenConfig", "T5Config", "EncodecConfig", "MusicgenDecoderConfig", "AutoProcessor",
        "MusicgenProcessor", "AutoTokenizer", "T5Tokenizer", "AutoFeatureExtractor", "EncodecFeatureExtractor",
        "T5EncoderModel", "EncodecModel", "MusicgenModel", "MusicgenForCausalLM", "MusicgenForConditionalGeneration",
        "AutoModelForTextToWaveform",
    ],
)  # fmt: skip
def test_arguments_of_loading_and_saving_have_transformers_names(kind: str, folder: Path, tmp_path: Path) -> None:
    loaded = getattr(hf, kind).from_pretrained(pretrained_model_name_or_path=folder)
    loaded.save_pretrained(save_directory=tmp_path, push_to_hub=False)
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written
    with pytest.raises(ValueError, match="push_to_hub must be False: a directory is written"):
        loaded.save_pretrained(tmp_path / "other", push_to_hub=True)
    assert not (tmp_path / "other").exists()
    settings = hf.GenerationConfig.from_pretrained(pretrained_model_name=folder)
    settings.save_pretrained(save_directory=tmp_path, push_to_hub=False)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == settings.to_dict()


def test_fields_of_configurations_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    config = hf.MusicgenDecoderConfig(
        dropout=np.float32(0.25), hidden_size=np.int64(32), num_attention_heads=np.int32(4)
    )
    config.ffn_dim = np.int64(48)
    config["num_hidden_layers"] = np.array(2)
    config.save_pretrained(tmp_path)
    again = hf.MusicgenDecoderConfig.from_pretrained(tmp_path)
    assert again == config and type(again.dropout) is float
    model = hf.MusicgenForCausalLM(config)
    assert model.core.config.dropout == 0.25 and len(model.core.blocks) == 2
    codec = hf.EncodecConfig(upsampling_ratios=np.array([4, 2]), target_bandwidths=np.array([60.0]))
    assert codec.hop_length == 8
    settings = hf.GenerationConfig(max_new_tokens=np.int64(7), temperature=np.float64(0.5), do_sample=np.bool_(True))
    settings.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["max_new_tokens"] == 7
