"""Directories and repositories of the Hub: the files that are taken, variants, subfolders, dtypes, each year's."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from musicgen_ref import GenerationOptions, MusicGen, hf
from musicgen_ref.__main__ import main as command
from musicgen_ref.checkpoint.hub import download
from tests import hub, release, tiny
from tests.hub import Hub
from weights_convert.__main__ import main as convert
from weights_convert.convert import from_huggingface

Model = hf.MusicgenForConditionalGeneration
BESIDE = {
    "config.json", "generation_config.json", "preprocessor_config.json", "special_tokens_map.json", "spiece.model",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.complete(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub with the authors' repositories, a sharded one, a fine-tune with an adapter, an adapter alone."""
    repositories = {
        "facebook/musicgen-small": hub.repository(folder, tmp_path / "small", hub.SMALL),
        "facebook/musicgen-stereo-small": hub.repository(folder, tmp_path / "stereo", hub.STEREO_SMALL),
        "facebook/musicgen-large": hub.repository(folder, tmp_path / "large", [*BESIDE, "state_dict.bin"]),
        "who/finetune": hub.repository(
            folder, tmp_path / "tune", [*hub.SMALL, "adapter_config.json", "adapter_model.safetensors"]
        ),
        "who/large-finetune": hub.repository(folder, tmp_path / "large-tune", [*BESIDE, "adapter_model.safetensors"]),
        "who/adapter": hub.repository(tmp_path, tmp_path / "adapter", ["README.md", "adapter_model.safetensors"]),
    }
    weights = load_file(folder / "model.safetensors")
    for stem in ("model", "pytorch_model"):
        hub.shards(weights, repositories["facebook/musicgen-large"], stem)
    hub.shards(weights, repositories["who/large-finetune"])
    settings = {"peft_type": "LORA", "base_model_name_or_path": "facebook/musicgen-small", "r": 2, "lora_alpha": 2}
    for name in ("who/finetune", "who/large-finetune", "who/adapter"):
        (repositories[name] / "adapter_config.json").write_text(json.dumps(settings))
        a, b = torch.ones(2, 32), torch.ones(48, 2)
        layer = "base_model.model.decoder.model.decoder.layers.0.fc1"
        save_file(
            {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}, repositories[name] / "adapter_model.safetensors"
        )
    return Hub(monkeypatch, tmp_path / "cache", repositories)


def greedy(model: MusicGen) -> Tensor:
    return model.generate(tiny.text(2), GenerationOptions(frames=12, greedy=True)).codes


# Downloads

FILES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "small": ("facebook/musicgen-small", {}, {"model.safetensors"}),
    "small, .bin": ("facebook/musicgen-small", {"use_safetensors": False}, {"pytorch_model.bin"}),
    "stereo-small": ("facebook/musicgen-stereo-small", {}, {"model.safetensors"}),
    "stereo-small, fp32": ("facebook/musicgen-stereo-small", {"variant": "fp32"}, {"model.fp32.safetensors"}),
    "stereo-small, fp32, .bin": (
        "facebook/musicgen-stereo-small", {"variant": "fp32", "use_safetensors": False}, {"pytorch_model.fp32.bin"}
    ),
    "large": (
        "facebook/musicgen-large", {},
        {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
    ),
    "large, .bin": (
        "facebook/musicgen-large", {"use_safetensors": False},
        {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"},
    ),
    "adapter merged": (
        "who/finetune", {"adapter": True}, {"adapter_config.json", "adapter_model.safetensors", "model.safetensors"}
    ),
    "adapter merged, large": (
        "who/large-finetune", {"adapter": True},
        {
            "adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json",
            "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        },
    ),
    "adapter left out": ("who/finetune", {"adapter": False}, {"adapter_config.json", "model.safetensors"}),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("kind", [Model, hf.MusicgenForCausalLM], ids=["whole", "decoder"])
def test_a_download_takes_one_weight_format_and_nothing_else(case: str, kind: Any, there: Hub, folder: Path) -> None:
    name, given, weights = FILES[case]
    model = kind.from_pretrained(name, **given)
    assert there.files == BESIDE | weights
    plain = kind.from_pretrained(folder).state_dict()
    same = {key for key, tensor in model.state_dict().items() if torch.equal(tensor, plain[key])}
    assert len(plain.keys() - same) == ("adapter_model.safetensors" in weights)


def test_what_describes_a_model_is_read_without_its_weights(there: Hub) -> None:
    for read in (hf.AutoConfig, hf.MusicgenConfig, hf.T5Config, hf.GenerationConfig, hf.AutoProcessor,
                 hf.AutoTokenizer, hf.AutoFeatureExtractor):  # fmt: skip
        read.from_pretrained("facebook/musicgen-small")
        assert there.files == BESIDE


def test_the_options_of_the_download_are_passed_on(there: Hub) -> None:
    Model.from_pretrained("facebook/musicgen-small", revision="abc", token=None, cache_dir="here", device_map="cpu")
    assert there.calls == [{"revision": "abc", "cache_dir": "here"}] * 2


def test_offline_takes_what_the_cache_has(there: Hub, folder: Path) -> None:
    Model.from_pretrained("facebook/musicgen-small")
    expected = greedy(MusicGen.from_pretrained(folder))
    assert there.files
    assert torch.equal(greedy(Model.from_pretrained("facebook/musicgen-small", local_files_only=True).core), expected)
    there.offline = True
    assert torch.equal(greedy(Model.from_pretrained("facebook/musicgen-small").core), expected)
    assert there.files == set()
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        Model.from_pretrained("facebook/musicgen-large")


def test_an_answer_of_the_hub_is_told_and_no_cache_taken(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    Model.from_pretrained("facebook/musicgen-small")

    class Refusal(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "401: gated")

    def refuse(*_: Any, **__: Any) -> list[str]:
        raise Refusal

    monkeypatch.setattr("huggingface_hub.list_repo_files", refuse)
    with pytest.raises(HfHubHTTPError, match="401: gated"):
        Model.from_pretrained("facebook/musicgen-small")


def test_weights_that_a_repository_lacks_are_told_before_any_download(there: Hub) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"musicgen-small: holds none of model\.fp16\.safetensors, .*there is mo"
    ):
        Model.from_pretrained("facebook/musicgen-small", variant="fp16")
    with pytest.raises(FileNotFoundError, match=r"variants that are there are \['fp32'\]"):
        Model.from_pretrained("facebook/musicgen-stereo-small", variant="fp16")
    with pytest.raises(ValueError, match=r"an adapter \(LORA\) lies beside the weights: adapter=True"):
        Model.from_pretrained("who/finetune")
    assert there.files == BESIDE | {"adapter_config.json"}
    with pytest.raises(ValueError, match=r"subfolder must be a folder inside the repository, got '\.\./small'"):
        Model.from_pretrained("facebook/musicgen-small", subfolder="../small")


def test_an_adapter_alone_comes_with_the_way_to_its_base(there: Hub, folder: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"hf download facebook/musicgen-small --local-dir BASE.*adapter='"
    ) as told:
        Model.from_pretrained("who/adapter")
    assert there.files == {"adapter_config.json", "adapter_model.safetensors"}
    place = str(told.value).split("adapter='")[1].split("'")[0]
    ours = MusicGen.from_pretrained(folder, adapter=place).decoder.blocks[0].fc1.weight
    assert torch.equal(ours, MusicGen.from_pretrained(folder).decoder.blocks[0].fc1.weight + 2)


@pytest.mark.parametrize("alone", [False, True])
def test_of_an_adapter_in_both_formats_one_is_downloaded(alone: bool, there: Hub, folder: Path, tmp_path: Path) -> None:
    name = "who/adapter" if alone else "who/finetune"
    torch.save({}, there.repositories[name] / "adapter_model.bin")
    if alone:
        with pytest.raises(FileNotFoundError, match="holds an adapter alone"):
            Model.from_pretrained(name)
    else:
        Model.from_pretrained(name, adapter=True)
    assert {file for file in there.files if file.startswith("adapter_model")} == {"adapter_model.safetensors"}


def test_without_the_hubs_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^'who/model' is no directory here; .* 'musicgen-ref\[hub\]'"
    ) as told:
        download("who/model")
    assert told.value.name == "huggingface_hub"


def test_a_subfolder_of_a_repository(there: Hub, folder: Path) -> None:
    there.repositories["who/run"] = there.cache.parent / "run"
    hub.repository(folder, there.repositories["who/run"] / "checkpoint-500", [*hub.SMALL, "optimizer.pt"])
    inside = {f"checkpoint-500/{name}" for name in BESIDE}
    hf.AutoProcessor.from_pretrained("who/run", subfolder="checkpoint-500")
    assert there.files == inside
    model = Model.from_pretrained("who/run", subfolder="checkpoint-500/")
    assert there.files == inside | {"checkpoint-500/model.safetensors"}
    assert torch.equal(greedy(model.core), greedy(MusicGen.from_pretrained(folder)))


def test_a_subfolder_that_is_not_there_is_told(folder: Path) -> None:
    for kind in (Model, hf.AutoProcessor, hf.MusicgenConfig):
        with pytest.raises(
            FileNotFoundError, match=rf"no such checkpoint directory: {re.escape(str(folder / 'run'))}$"
        ):
            kind.from_pretrained(folder, subfolder="run")


def test_t5_is_downloaded_in_one_format(there: Hub, tmp_path: Path) -> None:
    """Its repositories hold five: without safetensors, the .bin."""
    model = release.model()
    original = tmp_path / "original"
    release.write(model, original, tokenizer=tiny.spiece())
    for name, weights in (("a", "model.safetensors"), ("b", "pytorch_model.bin")):
        text = tmp_path / name
        names = [
            "config.json",
            "spiece.model",
            "tokenizer.json",
            "generation_config.json",
            "rust_model.ot",
            "tf_model.h5",
        ]
        hub.repository(original / "t5-base", text, [*names, "flax_model.msgpack", weights, "pytorch_model.bin"])
        (text / "tokenizer.json").unlink()
        there.repositories["t5-base"] = text
        shutil.rmtree(there.cache, ignore_errors=True)
        assert convert(["audiocraft", str(original), str(tmp_path / f"out {name}"), "--text-encoder", "hub"]) == 0
        assert there.files == {"config.json", "spiece.model", "generation_config.json", weights}
        assert torch.equal(
            greedy(MusicGen.from_pretrained(tmp_path / f"out {name}")), greedy(MusicGen.from_pretrained(original))
        )


# Variants, formats and subfolders of directories


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with weights of another seed, which the variants are."""
    path = tmp_path_factory.mktemp("changed")
    tiny.musicgen_of(256, text={"vocab_size": 200}, seed=9).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def other(changed: Path, plain: Tensor) -> Tensor:
    codes = greedy(MusicGen.from_pretrained(changed))
    assert not torch.equal(plain, codes)
    return codes


@pytest.fixture(scope="module")
def plain(folder: Path) -> Tensor:
    return greedy(MusicGen.from_pretrained(folder))


def variants(folder: Path, changed: Path, out: Path, names: list[str]) -> Path:
    """A directory with the weights of one under plain names, and those of the other under the names of a variant;
    "shards" and a stem stand for an index and two files."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("model.safetensors"))
    for name in names:
        tensors = load_file((changed if "fp" in name else folder) / "model.safetensors")
        if name.startswith("shards"):
            hub.shards(tensors, out, *name.split()[1:])
        elif name.endswith(".bin"):
            torch.save(tensors, out / name)
        else:
            save_file(tensors, out / name, {"format": "pt"})
    return out


VARIANTS: dict[str, list[str]] = {
    "safetensors": ["model.safetensors", "model.fp32.safetensors"],
    "bin": ["pytorch_model.bin", "pytorch_model.fp32.bin"],
    "safetensors before bin": ["model.safetensors", "model.fp32.safetensors", "pytorch_model.fp32.bin"],
    "sharded safetensors": ["model.safetensors", "shards model fp32"],
    "sharded bin": ["pytorch_model.bin", "shards pytorch_model fp32"],
    "plain weights sharded": ["shards model", "model.fp32.safetensors"],
}


@pytest.mark.parametrize("case", VARIANTS)
def test_a_variant_is_read(
    case: str, folder: Path, changed: Path, plain: Tensor, other: Tensor, tmp_path: Path
) -> None:
    path = variants(folder, changed, tmp_path / "model", VARIANTS[case])
    assert torch.equal(greedy(MusicGen.from_pretrained(path)), plain)
    assert torch.equal(greedy(MusicGen.from_pretrained(path, variant="fp32")), other)
    ours = Model.from_pretrained(path, variant="fp32")
    part = hf.MusicgenForCausalLM.from_pretrained(path, variant="fp32")
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(path, variant="fp32").state_dict()
    for model in (ours.decoder, part):
        assert torch.equal(model.lm_heads[1].weight, theirs["decoder.lm_heads.1.weight"])
    from_huggingface(path, tmp_path / "converted", variant="fp32")
    state = MusicGen.from_pretrained(tmp_path / "converted").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.core.state_dict().items())
    assert not [file.name for file in (tmp_path / "converted").iterdir() if "fp32" in file.name]


def test_a_variant_on_the_command_lines(folder: Path, changed: Path, tmp_path: Path) -> None:
    path = variants(folder, changed, tmp_path / "model", VARIANTS["safetensors"])
    assert convert(["huggingface", str(path), str(tmp_path / "fp32"), "--variant", "fp32"]) == 0
    music = []
    for name, more in ((path, ["--variant", "fp32"]), (tmp_path / "fp32", []), (path, [])):
        file = tmp_path / "out.wav"
        assert command(["generate", "--greedy", "--seconds", "1", "-o", str(file), "--model", str(name), *more]) == 0
        music.append(file.read_bytes())
    assert music[0] == music[1] != music[2]


def test_a_variant_that_is_not_there_is_told_with_those_that_are(folder: Path, changed: Path, tmp_path: Path) -> None:
    both = variants(folder, changed, tmp_path / "both", VARIANTS["safetensors"])
    only = variants(folder, changed, tmp_path / "only", ["model.fp32.safetensors", "shards pytorch_model fp16"])
    looked = (
        r"holds none of model\.fp8\.safetensors, model\.safetensors\.index\.fp8\.json, pytorch_model\.fp8\.bin, pyt"
    )
    for path, variant, message in (
        (both, "fp8", looked + r".*; without a variant there is model\.safetensors; .* are \['fp32'\]"),
        (only, "fp8", looked + r".*; the variants that are there are \['fp16', 'fp32'\] \(variant='fp16'\)"),
        (only, None, r"holds none of model\.safetensors, .*; the variants that are there are \['fp16', 'fp32'\]"),
    ):
        for opener in (MusicGen, Model, hf.MusicgenForCausalLM):
            with pytest.raises(FileNotFoundError, match=message):
                opener.from_pretrained(path, variant=variant)
    for variant in ("a/b", "../x", "", 3):
        with pytest.raises(ValueError, match="variant must be a part of a file's name"):
            Model.from_pretrained(both, variant=variant)


def test_the_format_that_is_asked_for_is_read(
    folder: Path, changed: Path, plain: Tensor, other: Tensor, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "both")
    torch.save(load_file(changed / "model.safetensors"), tmp_path / "both" / "pytorch_model.bin")
    for asked, expected in ((None, plain), (True, plain), (False, other)):
        whole = Model.from_pretrained(tmp_path / "both", use_safetensors=asked).core
        assert torch.equal(greedy(whole), expected)
        part = hf.T5EncoderModel.from_pretrained(tmp_path / "both", use_safetensors=asked).shared.weight
        assert torch.equal(part, whole.text_encoder.embed.weight)
    (tmp_path / "both" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"use_safetensors=True leaves out pytorch_model\.bin"):
        Model.from_pretrained(tmp_path / "both", use_safetensors=True)
    with pytest.raises(
        FileNotFoundError, match=r"holds none of pytorch_model\.bin, .*=False leaves out model\.safetensors"
    ):
        Model.from_pretrained(folder, use_safetensors=False)
    with pytest.raises(ValueError, match="use_safetensors must be True, False or None, got 'yes'"):
        Model.from_pretrained(folder, use_safetensors="yes")


def test_a_subfolder_of_a_directory(folder: Path, plain: Tensor, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "checkpoint-500")
    run, inside = tmp_path / "run", {"subfolder": "checkpoint-500"}
    assert torch.equal(greedy(Model.from_pretrained(run, **inside).core), plain)
    assert torch.equal(greedy(hf.pipeline(model=run, **inside).model.core), plain)
    for kind in (hf.AutoConfig, hf.MusicgenConfig, hf.EncodecConfig, hf.GenerationConfig):
        assert kind.from_pretrained(run, **inside) == kind.from_pretrained(folder)
    for kind in (hf.T5EncoderModel, hf.EncodecModel, hf.MusicgenModel, hf.MusicgenForCausalLM):
        ours, expected = kind.from_pretrained(run, **inside).state_dict(), kind.from_pretrained(folder).state_dict()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
    for reader in (hf.AutoProcessor, hf.AutoTokenizer, hf.AutoFeatureExtractor):
        reader.from_pretrained(run, **inside)
    parts = Model.from_sub_models_pretrained(run, run, run, **inside)
    assert torch.equal(greedy(parts.core), plain)
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint directory: .*run/checkpoint-400"):
        Model.from_pretrained(run, subfolder="checkpoint-400")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Model.from_pretrained(run)


# The dtype that weights are loaded in

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "null": {"torch_dtype": None},
    "of the whole": {"torch_dtype": "float32"},
    "of today": {"dtype": "bfloat16"},
    "of the decoder": {"decoder": "bfloat16"},
    "of the text encoder": {"text_encoder": "bfloat16"},
    "of the codec": {"audio_encoder": "bfloat16"},
}


@pytest.fixture(scope="module")
def halves(folder: Path, tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by format whose codec is in half precision, the first by name; the .bin begins with the text
    encoder, in float32."""
    out = {name: tmp_path_factory.mktemp("halves") for name in ("safetensors", "bin", "sharded")}
    half = {name: t.half() if name.startswith("audio_encoder") else t for name, t in tensors.items()}
    save_file(half, out["safetensors"] / "model.safetensors", {"format": "pt"})
    torch.save(dict(sorted(half.items(), reverse=True)), out["bin"] / "pytorch_model.bin")
    hub.shards(half, out["sharded"])
    return out


@pytest.mark.parametrize("setting", SETTINGS)
def test_without_being_told_the_dtype_is_what_transformers_takes(
    setting: str, folder: Path, halves: dict[str, Path]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    for section in (config, *(part for part in config.values() if isinstance(part, dict))):
        section.pop("dtype", None)
    for name, value in SETTINGS[setting].items():
        config |= {name: config[name] | {"torch_dtype": value} if name in config else value}
    for name, path in halves.items():
        (path / "config.json").write_text(json.dumps(config))
        theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(path).dtype
        assert Model.from_pretrained(path).dtype == theirs, name
        for kind in (hf.MusicgenForCausalLM, hf.T5EncoderModel, hf.EncodecModel):
            assert kind.from_pretrained(path).dtype == theirs, name


@pytest.mark.parametrize("kind", ["MusicgenForCausalLM", "T5EncoderModel", "EncodecModel"])
def test_so_it_is_with_a_part_in_its_own_directory(kind: str, folder: Path, tmp_path: Path) -> None:
    getattr(hf, kind).from_pretrained(folder).save_pretrained(tmp_path)
    config, tensors = (tmp_path / "config.json"), load_file(tmp_path / "model.safetensors")
    fields = {name: value for name, value in json.loads(config.read_text()).items() if name != "dtype"}
    for weights, named, expected in (
        (torch.float16, None, torch.float16), (torch.float16, "float32", torch.float32),
        (torch.bfloat16, None, torch.bfloat16), (torch.float32, "bfloat16", torch.bfloat16),
    ):  # fmt: skip
        save_file(
            {name: t.to(weights) for name, t in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
        )
        config.write_text(json.dumps(fields | ({} if named is None else {"torch_dtype": named})))
        ours, theirs = (getattr(library, kind).from_pretrained(tmp_path) for library in (hf, transformers))
        assert ours.dtype == theirs.dtype == expected


def test_half_weights_without_a_dtype_are_loaded_as_they_are(
    folder: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    config.pop("dtype")
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path / "model.safetensors", {"format": "pt"})
    ours = Model.from_pretrained(path)
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(path)
    assert ours.dtype == theirs.dtype == torch.float16
    assert torch.equal(ours.core.decoder.norm.weight, theirs.decoder.model.decoder.layer_norm.weight)
    wo = theirs.text_encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight
    assert ours.core.text_encoder.blocks[0].ffn.wo.weight.dtype == wo.dtype == torch.float32
    save_file({name: tensor.double() for name, tensor in tensors.items()}, path / "model.safetensors", {"format": "pt"})
    assert Model.from_pretrained(path).dtype == torch.float32


# Every year


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.complete(tmp_path_factory.mktemp("stereo"), channels=2)


@pytest.mark.parametrize("year", hub.YEARS)
def test_a_directory_of_each_year_is_the_same_model(year: str, folder: Path, stereo: Path, tmp_path: Path) -> None:
    plain = stereo if "stereo" in year else folder
    path = hub.published(plain, tmp_path / "model", year)
    theirs = tiny.opened(transformers.MusicgenForConditionalGeneration, path, dtype=torch.float32)
    expected = tiny.ours(theirs)  # of a stereo model, the weights are rounded to half
    codes = greedy(expected)
    ids, mask = tiny.text(2)
    settings = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": 15}
    assert torch.equal(tiny.theirs(theirs, input_ids=ids, attention_mask=mask, **settings)[0], codes)

    read = {"native": MusicGen.from_pretrained(path)}
    read["facade"] = Model.from_pretrained(path, dtype="float32").core
    from_huggingface(path, tmp_path / "converted")
    read["converted"] = MusicGen.from_pretrained(tmp_path / "converted")
    if (path / "pytorch_model.bin").exists():
        read[".bin"] = Model.from_pretrained(path, use_safetensors=False, dtype="float32").core
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for name, model in read.items():
        assert torch.equal(greedy(model), codes), name
        state = expected.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items()), name
        assert model.tokenizer is not None
        assert model.tokenizer.encode("a calm piano") == tokenizer.encode("a calm piano")
    opened, their_default = (
        Model.from_pretrained(path),
        transformers.MusicgenForConditionalGeneration.from_pretrained(path),
    )
    assert opened.dtype == their_default.dtype == (torch.float16 if "stereo" in year else torch.float32)
    for name in ("do_sample", "guidance_scale", "max_length", "decoder_start_token_id"):
        assert getattr(opened.generation_config, name) == getattr(their_default.generation_config, name), name
    processor = hf.AutoProcessor.from_pretrained(path)
    assert processor.sampling_rate == opened.config.sampling_rate == tiny.RATE
    assert len(processor.tokenizer) == len(tokenizer)


def test_the_float32_variant_of_a_stereo_model_is_the_model_before_it_was_rounded(stereo: Path, tmp_path: Path) -> None:
    path = hub.published(stereo, tmp_path / "model", "4.36 stereo")
    plain = MusicGen.from_pretrained(stereo).state_dict()
    half = MusicGen.from_pretrained(path).state_dict()
    for model in (
        MusicGen.from_pretrained(path, variant="fp32"),
        Model.from_pretrained(path, variant="fp32", dtype="float32").core,
        Model.from_pretrained(path, variant="fp32", dtype="float32", use_safetensors=False).core,
    ):
        assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())
    assert not all(torch.equal(tensor, plain[name]) for name, tensor in half.items())
