"""Directories and repositories of the Hub: the files that are taken, variants, subfolders, dtypes, each year's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from musicgen_ref import GenerationOptions, MusicGen, hf
from tests import hub, release, tiny
from tests.hub import Hub
from weights_convert.__main__ import main as convert

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
        "who/adapter": hub.repository(tmp_path, tmp_path / "adapter", ["README.md", "adapter_model.safetensors"]),
    }
    weights = load_file(folder / "model.safetensors")
    for stem in ("model", "pytorch_model"):
        hub.shards(weights, repositories["facebook/musicgen-large"], stem)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "facebook/musicgen-small", "r": 2, "lora_alpha": 2}
    for name in ("who/finetune", "who/adapter"):
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


def test_a_subfolder_of_a_repository(there: Hub, folder: Path) -> None:
    there.repositories["who/run"] = there.cache.parent / "run"
    hub.repository(folder, there.repositories["who/run"] / "checkpoint-500", [*hub.SMALL, "optimizer.pt"])
    inside = {f"checkpoint-500/{name}" for name in BESIDE}
    hf.AutoProcessor.from_pretrained("who/run", subfolder="checkpoint-500")
    assert there.files == inside
    model = Model.from_pretrained("who/run", subfolder="checkpoint-500/")
    assert there.files == inside | {"checkpoint-500/model.safetensors"}
    assert torch.equal(greedy(model.core), greedy(MusicGen.from_pretrained(folder)))


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
