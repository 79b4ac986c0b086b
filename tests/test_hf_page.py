"""Every code block of Hugging Face's MusicGen page, run with `transformers` and with only its import line changed.

The blocks are the page's (transformers 5.23); the model's name is that of a directory, the data set is a local clip.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal
from scipy.io import wavfile

from musicgen_ref import hf
from musicgen_ref.checkpoint import DEMO
from tests import tiny

PIPELINE = """
from transformers import pipeline
pipe = pipeline("text-to-audio", model="facebook/musicgen-small")
audio = pipe("80s pop track with bassy drums and synth")
"""
AUTO_MODEL = """
from transformers import AutoProcessor, MusicgenForConditionalGeneration

processor = AutoProcessor.from_pretrained("facebook/musicgen-small")
model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")

inputs = processor(
    text=["80s pop track with bassy drums and synth"],
    padding=True,
    return_tensors="pt",
)
audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)
"""
EIGHT_BIT = """
from transformers import MusicgenForConditionalGeneration
import torch

model = MusicgenForConditionalGeneration.from_pretrained(
    "facebook/musicgen-small",
    load_in_8bit=True,
    device_map="auto"
)
"""
UNCONDITIONAL = """
from transformers import MusicgenForConditionalGeneration
model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")
unconditional_inputs = model.get_unconditional_inputs(num_samples=1)
audio_values = model.generate(**unconditional_inputs, do_sample=True, max_new_tokens=256)
"""
LISTEN = """
from IPython.display import Audio
sampling_rate = model.config.audio_encoder.sampling_rate
Audio(audio_values[0].numpy(), rate=sampling_rate)
"""
SAVE = """
import scipy
sampling_rate = model.config.audio_encoder.sampling_rate
scipy.io.wavfile.write("musicgen_out.wav", rate=sampling_rate, data=audio_values[0, 0].numpy())
"""
AUDIO_PROMPT = """
from transformers import AutoProcessor, MusicgenForConditionalGeneration
from datasets import load_dataset

processor = AutoProcessor.from_pretrained("facebook/musicgen-small")
model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")
dataset = load_dataset("sanchit-gandhi/gtzan", split="train", streaming=True)
sample = next(iter(dataset))["audio"]
sample["array"] = sample["array"][: len(sample["array"]) // 2]
inputs = processor(
    audio=sample["array"],
    sampling_rate=sample["sampling_rate"],
    text=["80s blues track with groovy saxophone"],
    padding=True,
    return_tensors="pt",
)
audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)
"""
BATCHED_AUDIO_PROMPT = """
from transformers import AutoProcessor, MusicgenForConditionalGeneration
from datasets import load_dataset

processor = AutoProcessor.from_pretrained("facebook/musicgen-small")
model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")
dataset = load_dataset("sanchit-gandhi/gtzan", split="train", streaming=True)
sample = next(iter(dataset))["audio"]
sample_1 = sample["array"][: len(sample["array"]) // 4]
sample_2 = sample["array"][: len(sample["array"]) // 2]
inputs = processor(
    audio=[sample_1, sample_2],
    sampling_rate=sample["sampling_rate"],
    text=["80s blues track with groovy saxophone", "90s rock song with loud guitars and heavy drums"],
    padding=True,
    return_tensors="pt",
)
audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)
# Remove padding from batched audio
audio_values = processor.batch_decode(audio_values, padding_mask=inputs.padding_mask)
"""
GENERATION_CONFIG = """
from transformers import MusicgenForConditionalGeneration
model = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small")
# Inspect the default generation config
print(model.generation_config)
# Update guidance scale and max length
model.generation_config.guidance_scale = 4.0
model.generation_config.max_length = 256
"""
STRUCTURE_1 = """
from transformers import AutoConfig, MusicgenForCausalLM, MusicgenForConditionalGeneration
# Option 1: get decoder config and pass to `.from_pretrained`
decoder_config = AutoConfig.from_pretrained("facebook/musicgen-small").decoder
decoder = MusicgenForCausalLM.from_pretrained("facebook/musicgen-small", **decoder_config)
"""
STRUCTURE_2 = """
from transformers import AutoConfig, MusicgenForCausalLM, MusicgenForConditionalGeneration
# Option 2: load the entire composite model, but only return the decoder
decoder = MusicgenForConditionalGeneration.from_pretrained("facebook/musicgen-small").decoder
"""
LENGTH = re.compile(r"max_new_tokens=256")
# The waveforms come from the same codes through the same operations; where transformers leaves its weights in memory
# moves BLAS's sums by a rounding or two (tests/tiny.py), and full scale is 1.
ATOL = 1e-5


class Checkpoint(NamedTuple):
    folder: Path
    channels: int
    rate: int
    new_tokens: int  # in place of the page's 256, so that the test is quick


@pytest.fixture(scope="module", params=["demo", "mono", "stereo"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("page")
    if request.param != "demo":
        channels = 1 + (request.param == "stereo")
        tiny.complete(folder, channels, do_sample=True, guidance_scale=3.0)
        return Checkpoint(folder, channels, tiny.RATE, 40 if channels == 1 else 20)
    # The demo's files, but for the default length of 30 seconds.
    for file in DEMO.iterdir():
        shutil.copy(file, folder / file.name)
    generation = json.loads((folder / "generation_config.json").read_text())
    del generation["max_length"]
    (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    return Checkpoint(folder, config["decoder"]["audio_channels"], config["audio_encoder"]["sampling_rate"], 30)


@pytest.fixture(autouse=True)
def around(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[np.ndarray, int]]:
    """What the page imports beside the library: a data set of one clip, a notebook's player. Returns what it played."""
    played: list[tuple[np.ndarray, int]] = []
    clip = tiny.noise(*([2] if checkpoint.channels == 2 else []), checkpoint.rate, seed=3).numpy() * 0.5
    sample = {"array": clip, "sampling_rate": checkpoint.rate}
    datasets = ModuleType("datasets")
    datasets.load_dataset = lambda *_, **__: [{"audio": dict(sample)}]
    display = ModuleType("IPython.display")
    display.Audio = lambda data, rate: played.append((data, rate))
    for module in (datasets, ModuleType("IPython"), display):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    return played


def run(block: str, library: str, checkpoint: Checkpoint, names: dict[str, Any] | None = None) -> SimpleNamespace:
    """The variables of a block after it ran, with a seed set where it begins to generate."""
    if library != "transformers":
        block = block.replace("from transformers import", f"from {library} import")
    block = block.replace("facebook/musicgen-small", str(checkpoint.folder))
    block = LENGTH.sub(f"max_new_tokens={checkpoint.new_tokens}", block)
    if checkpoint.channels == 2:  # the page halves the first dimension of a mono clip
        block = re.sub(r"\[: len\((.*?)\) //", r"[:, : \1.shape[1] //", block)
    block = re.sub(r"^(audio\w* = (pipe|model\.generate)\()", r"seed(0); \1", block, flags=re.M)
    names = {} if names is None else names
    names["seed"] = torch.manual_seed
    exec(compile(block, "the page", "exec"), names)
    return SimpleNamespace(**{name: value for name, value in names.items() if not name.startswith("__")})


def both(block: str, checkpoint: Checkpoint) -> tuple[SimpleNamespace, SimpleNamespace]:
    return run(block, "transformers", checkpoint), run(block, "musicgen_ref.hf", checkpoint)


def assert_same_audio(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(theirs)).max() > 0.01, "there is something to hear"
    assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=ATOL)


def test_pipeline(checkpoint: Checkpoint) -> None:
    theirs, ours = both(PIPELINE, checkpoint)
    assert ours.audio.keys() == theirs.audio.keys() == {"audio", "sampling_rate"}
    assert ours.audio["sampling_rate"] == theirs.audio["sampling_rate"] == checkpoint.rate
    assert ours.audio["audio"].dtype == theirs.audio["audio"].dtype == np.float32
    assert_same_audio(ours.audio["audio"], theirs.audio["audio"])


def test_auto_model(checkpoint: Checkpoint) -> None:
    theirs, ours = both(AUTO_MODEL, checkpoint)
    assert ours.inputs.keys() == theirs.inputs.keys()
    assert torch.equal(ours.inputs.input_ids, theirs.inputs.input_ids)
    assert_same_audio(ours.audio_values, theirs.audio_values)


def test_eight_bit(checkpoint: Checkpoint) -> None:
    """transformers needs bitsandbytes and a GPU for it: ours is compared with itself in float32."""
    quantised = run(EIGHT_BIT, "musicgen_ref.hf", checkpoint).model
    exact = hf.MusicgenForConditionalGeneration.from_pretrained(checkpoint.folder)
    books = exact.decoder.num_codebooks
    arguments = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    codes = torch.randint(0, exact.config.decoder.vocab_size, (books, 20))
    with torch.no_grad():
        logits, expected = (model(**arguments, decoder_input_ids=codes).logits for model in (quantised, exact))
    # 255 levels a row of the weights, 128 of the inputs, through a few layers.
    error = (logits - expected).pow(2).mean().sqrt() / expected.std()
    assert 0 < error < 0.1
    assert (
        quantised.generate(**arguments, max_new_tokens=10).shape == exact.generate(**arguments, max_new_tokens=10).shape
    )


def test_unconditional_then_listen_then_save(checkpoint: Checkpoint, around: list[tuple[np.ndarray, int]]) -> None:
    saved = []
    for library in ("transformers", "musicgen_ref.hf"):
        names: dict[str, Any] = {}
        run(UNCONDITIONAL, library, checkpoint, names)
        run(LISTEN, library, checkpoint, names)
        result = run(SAVE, library, checkpoint, names)
        saved.append((result.audio_values, *wavfile.read("musicgen_out.wav"), result.sampling_rate))
    (theirs, their_rate, their_wav, _), (ours, rate, wav, sampling_rate) = saved
    assert_same_audio(ours, theirs)
    assert rate == their_rate == sampling_rate == checkpoint.rate
    assert_same_audio(wav, their_wav)
    (their_data, _), (data, played_rate) = around
    assert data.shape == (checkpoint.channels, ours.shape[-1])
    assert_same_audio(data, their_data)
    assert played_rate == checkpoint.rate


def test_audio_prompt(checkpoint: Checkpoint) -> None:
    theirs, ours = both(AUDIO_PROMPT, checkpoint)
    assert list(ours.inputs) == list(theirs.inputs)
    for name, value in theirs.inputs.items():
        assert torch.equal(ours.inputs[name], value) and ours.inputs[name].dtype == value.dtype
    assert_same_audio(ours.audio_values, theirs.audio_values)


def test_batched_audio_prompt(checkpoint: Checkpoint) -> None:
    ours = run(BATCHED_AUDIO_PROMPT, "musicgen_ref.hf", checkpoint)
    if checkpoint.channels == 1:
        expected = run(BATCHED_AUDIO_PROMPT, "transformers", checkpoint).audio_values
    else:  # its batch_decode() does not take stereo
        names: dict[str, Any] = {}
        with pytest.raises(IndexError):
            run(BATCHED_AUDIO_PROMPT, "transformers", checkpoint, names)
        padding = (names["inputs"].padding_mask == 0).sum(1)
        assert padding[0] > 0
        expected = [clip[:, n:].numpy() for clip, n in zip(names["audio_values"], padding, strict=True)]
    assert isinstance(ours.audio_values, list)
    lengths = {clip.shape[1] for clip in ours.audio_values}
    assert len(lengths) == len(ours.audio_values) == 2, "one of them was padded"
    for clip, theirs in zip(ours.audio_values, expected, strict=True):
        assert_same_audio(clip, theirs)


def test_generation_configuration(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for library in ("transformers", "musicgen_ref.hf"):
        model = run(GENERATION_CONFIG, library, checkpoint).model
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert '"guidance_scale": 3.0' in printed[1]
    assert (model.generation_config.guidance_scale, model.generation_config.max_length) == (4.0, 256)
    # And they are honoured.
    model.generation_config.max_length = 12
    ids = torch.tensor([[5, 6, 1]])
    torch.manual_seed(0)
    changed = model.generate(input_ids=ids, do_sample=True)
    torch.manual_seed(0)
    assert torch.equal(changed, model.generate(input_ids=ids, do_sample=True, guidance_scale=4.0, max_new_tokens=11))
    torch.manual_seed(0)
    assert not torch.equal(changed, model.generate(input_ids=ids, do_sample=True, guidance_scale=1.0))


def test_model_structure(checkpoint: Checkpoint) -> None:
    with pytest.raises(TypeError, match="mapping"):  # the page is ahead of it
        run(STRUCTURE_1, "transformers", checkpoint)
    first, second = (run(block, "musicgen_ref.hf", checkpoint).decoder for block in (STRUCTURE_1, STRUCTURE_2))
    theirs = run(STRUCTURE_2, "transformers", checkpoint).decoder
    codes = torch.randint(0, theirs.config.vocab_size, (theirs.num_codebooks * 2, 9))
    with torch.no_grad():
        expected = theirs(codes).logits
        assert_allclose(second(codes).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert_array_equal(first(codes).logits, second(codes).logits)
    assert type(first).__name__ == type(theirs).__name__ == "MusicgenForCausalLM"
    assert isinstance(theirs, transformers.MusicgenForCausalLM)
