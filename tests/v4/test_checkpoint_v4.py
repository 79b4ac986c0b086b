"""Directories of transformers 4.57.6 load, and it opens ours: the same logits and audio, with its eager attention.

Eager because its T5 has nothing else, so that every operation is the same on both sides.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor, EncodecFeatureExtractor, MusicgenForConditionalGeneration, MusicgenProcessor
from transformers import MusicgenConfig as TheirConfig

from musicgen_ref import MusicGen
from tests import tiny


class Made(NamedTuple):
    model: MusicgenForConditionalGeneration
    folder: Path  # where transformers saved it; not to be written to


@pytest.fixture(scope="module", params=tiny.KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    tiny.musicgen(**tiny.KINDS[request.param]).save_pretrained(folder)
    return Made(opened(folder), folder)


def opened(folder: Path) -> MusicgenForConditionalGeneration:
    return MusicgenForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, dtypes and bits."""
    same = [torch.equal(state[name], other[name]) and state[name].dtype == other[name].dtype for name in state]
    return state.keys() == other.keys() and all(same)


def test_what_it_saves_computes_the_same(made: Made) -> None:
    tiny.assert_equal(made.model, MusicGen.from_pretrained(made.folder))


def test_what_we_save_it_opens_whole(made: Made, tmp_path: Path) -> None:
    own = MusicGen.from_pretrained(made.folder)
    own.save_pretrained(tmp_path)
    _, info = MusicgenForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: list(value) for name, value in info.items() if value} == {}
    tiny.assert_equal(opened(tmp_path), own)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, made.folder))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}


def test_every_field_that_decides_a_number_is_written(made: Made, tmp_path: Path) -> None:
    MusicGen.from_pretrained(made.folder).save_pretrained(tmp_path)
    written = TheirConfig.from_pretrained(tmp_path)
    # Bookkeeping of transformers that decides no number here.
    ignored = {"decoder_start_token_id", "is_decoder", "num_decoder_layers", "max_position_embeddings"}
    ignored |= {"_attn_implementation_autoset", "transformers_version", "dtype", "tie_word_embeddings"}
    for name in ("text_encoder", "audio_encoder", "decoder"):
        expected, got = (getattr(config, name).to_dict() for config in (made.model.config, written))
        assert {k: v for k, v in expected.items() if k not in ignored and got.get(k) != v} == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_it_saves_in_half_precision_loads(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.musicgen().to(dtype).save_pretrained(tmp_path)
    model = opened(tmp_path)
    assert model.dtype == torch.float32  # whatever the file's
    tiny.assert_equal(model, MusicGen.from_pretrained(tmp_path))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "shards"])
def test_its_other_files_load(safe: bool, sharded: bool, tmp_path: Path) -> None:
    model = tiny.musicgen()
    size = "100KB" if sharded else "1GB"
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=size)
    files = list(tmp_path.glob("*.safetensors" if safe else "*.bin"))
    assert (len(files) > 1) == sharded and files
    assert equal(MusicGen.from_pretrained(tmp_path).state_dict(), tiny.ours(model).state_dict())


def test_it_reads_the_hubs_layout_as_we_do(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "hub"))
    tiny.hub_layout(folder)
    own = MusicGen.from_pretrained(folder)
    assert equal(own.state_dict(), MusicGen.from_pretrained(made.folder).state_dict())
    tiny.assert_equal(opened(folder), own)


TEXTS = ["a calm piano", "loud drums", "rain </s> <extra_id_3> Ω", ""]


def test_processors_open_both_ways(tmp_path: Path) -> None:
    tiny.musicgen(text={"vocab_size": 200}).save_pretrained(tmp_path / "first")
    (tmp_path / "first" / "spiece.model").write_bytes(tiny.spiece())
    own = MusicGen.from_pretrained(tmp_path / "first")
    own.save_pretrained(tmp_path / "ours")

    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert isinstance(processor, MusicgenProcessor) and isinstance(processor.feature_extractor, EncodecFeatureExtractor)
    assert processor.feature_extractor.sampling_rate == tiny.RATE
    inputs = processor(text=TEXTS, padding=True, return_tensors="pt")
    ids, mask = own.tokenizer(TEXTS)
    assert torch.equal(inputs.input_ids, ids) and torch.equal(inputs.attention_mask.bool(), mask)

    opened(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "preprocessor_config.json").exists()
    again = MusicGen.from_pretrained(tmp_path / "theirs")
    assert torch.equal(again.tokenizer(TEXTS)[0], ids)
    tiny.assert_equal(opened(tmp_path / "theirs"), own)
