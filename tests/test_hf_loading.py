"""musicgen_ref.hf: what from_pretrained() takes, makes and refuses, configurations, saving, the pipeline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from musicgen_ref import MusicGen, checkpoint, hf
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
    assert {name for name, _ in model.named_children()} == {"text_encoder", "audio_encoder", "decoder"}
    parameters = list(model.parameters())
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(model.core.parameters()))
    model.freeze_text_encoder()
    assert not any(p.requires_grad for p in model.core.text_encoder.parameters())
    model.freeze_audio_encoder()
    assert not any(p.requires_grad for p in model.core.codec.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert model.num_parameters(only_trainable=True) == model.decoder.num_parameters()
    assert model.train() is model
    assert model.core.decoder.training
    assert model.eval().to(torch.bfloat16).core.codec.quantizer.codebooks.dtype == torch.bfloat16
    assert generated(model).dtype == torch.bfloat16
    model.gradient_checkpointing_enable()
    assert model.core.decoder.gradient_checkpointing
    ids, mask = tiny.text(2)
    labels = torch.randint(0, 256, (2, 9, 4))
    loss = model.float().train()(input_ids=ids, attention_mask=mask, labels=labels)
    assert loss.past_key_values is None
    loss.loss.backward()
    assert all(p.grad is not None for p in model.decoder.module.blocks.parameters())


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
    assert fresh.config.decoder.dropout == fresh.decoder.module.dropout.p == 0.3
    assert not fresh.training
    given = Model.from_sub_models_pretrained(text_encoder_model=model.text_encoder, decoder_model=model.decoder,
                                             audio_encoder_pretrained_model_name_or_path=folder)  # fmt: skip
    assert torch.equal(generated(given), generated(model))
    with pytest.raises(ValueError, match="decoder_pretrained_model_name_or_path or decoder_model must be given"):
        Model.from_sub_models_pretrained(folder, folder)


def test_configurations(folder: Path) -> None:
    config = hf.AutoConfig.from_pretrained(folder)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert config.sampling_rate == theirs.sampling_rate == config.audio_encoder.sampling_rate
    for name in ("frame_rate", "hop_length", "num_quantizers"):
        assert getattr(config.audio_encoder, name) == getattr(theirs.audio_encoder, name)
    assert config.text_encoder.hidden_size == theirs.text_encoder.hidden_size == config.text_encoder["d_model"]
    derived = ("is_encoder_decoder", "codebook_dim")  # of the whole model, of hidden_size
    for section in ("text_encoder", "audio_encoder", "decoder"):
        kind = type(getattr(config, section))
        assert kind.from_pretrained(folder) == getattr(config, section)
        default = getattr(transformers, kind.__name__)()
        theirs_of = {name: getattr(default, name) for name in kind.defaults if name not in derived}
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
    assert Model.from_pretrained(folder, config=config).decoder.module.dropout.p == 0.4
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

    monkeypatch.setattr(hf.loading, "save_file", full)
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
