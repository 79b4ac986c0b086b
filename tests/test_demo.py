"""The model that ships with the package: trained, opened by transformers, used offline, following its captions."""

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from examples import finetune
from examples.demo_model import captions, evaluate, synth
from examples.demo_model.codec_files import load_codec
from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.__main__ import main
from musicgen_ref.audio import read_wav, write_wav
from musicgen_ref.checkpoint import DEMO
from tests import tiny

ROOT = Path(__file__).parents[1]
TEXTS = [
    "a fast arpeggio in A minor on a plucked string with busy drums",
    "slow dreamy pad chords, F major, no drums",
    "mid-tempo saw bass line, simple drums",
]


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return MusicGen.from_pretrained("demo")


@pytest.fixture(scope="module")
def theirs() -> MusicgenForConditionalGeneration:
    return MusicgenForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()


def test_it_is_small_and_complete() -> None:
    files = {file.name for file in DEMO.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md"} <= files
    weights = [file for file in DEMO.iterdir() if file.suffix in (".safetensors", ".json", ".model")]
    assert sum(file.stat().st_size for file in weights) < 12_000_000


def test_transformers_reads_every_caption_alike(model: MusicGen) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    rng = np.random.default_rng(0)
    texts = [captions.caption(synth.sample_attributes(rng), rng)[0] for _ in range(200)]
    for text in [*texts, *TEXTS, "80s pop track with bassy drums and synth", "", "HELLO wörld 漢字"]:
        assert model.tokenizer.encode(text) == tokenizer(text).input_ids


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("greedy", [False, True])
def test_transformers_makes_the_same_codes_and_audio(
    model: MusicGen, theirs: MusicgenForConditionalGeneration, greedy: bool, guidance: float
) -> None:
    ids, mask = model.tokenizer(TEXTS)
    options = GenerationOptions(frames=97, guidance_scale=guidance, greedy=greedy, temperature=1.0)
    torch.manual_seed(3)
    own = model.generate(TEXTS, options)
    torch.manual_seed(3)
    choice = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0}
    codes, audio = tiny.theirs(
        theirs, input_ids=ids, attention_mask=mask.long(), guidance_scale=guidance, max_new_tokens=100, **choice
    )
    assert torch.equal(own.codes, codes)
    torch.testing.assert_close(own.audio, audio, rtol=0, atol=1e-5)  # one-row products of unaligned weights


def test_nobody_says_how_to_draw_and_both_draw_as_its_card_recommends(
    model: MusicGen, theirs: MusicgenForConditionalGeneration
) -> None:
    said = json.loads((DEMO / "generation_config.json").read_text())
    assert (said["temperature"], said["top_k"], said["guidance_scale"]) == (evaluate.TEMPERATURE, evaluate.TOP_K, 3.0)
    card = " ".join((DEMO / "README.md").read_text().split())
    assert (
        f"top-k {said['top_k']} and, but where another is named, temperature {said['temperature']}, chosen on" in card
    )
    assert model.defaults == GenerationOptions(temperature=0.3, top_k=250, guidance_scale=3.0)
    ids, mask = model.tokenizer(TEXTS)
    torch.manual_seed(3)
    own = model.generate(TEXTS, GenerationOptions(frames=47)).codes
    torch.manual_seed(3)
    codes, _ = tiny.theirs(theirs, input_ids=ids, attention_mask=mask.long(), max_new_tokens=50)
    assert torch.equal(own, codes)
    torch.manual_seed(3)
    warm = model.generate(TEXTS, GenerationOptions(frames=47, temperature=1.0)).codes
    assert not torch.equal(warm, codes)


def test_transformers_continues_audio_alike(model: MusicGen, theirs: MusicgenForConditionalGeneration) -> None:
    rng = np.random.default_rng(1)
    clip = torch.from_numpy(synth.render(synth.sample_attributes(rng), 1.0, rng))[None, None]
    ids, mask = model.tokenizer(TEXTS[:1])
    torch.manual_seed(0)
    own = model.generate(TEXTS[:1], GenerationOptions(frames=97, temperature=1.0), prompt=(clip, 16_000))
    torch.manual_seed(0)
    given = {"input_ids": ids, "attention_mask": mask.long(), "input_values": clip}
    codes, _ = tiny.theirs(theirs, **given, guidance_scale=3.0, do_sample=True, temperature=1.0, max_new_tokens=50)
    assert torch.equal(own.codes, codes)
    assert torch.equal(own.codes[..., :50], model.encode(clip, 16_000))


def test_its_codec_can_be_trained_upon(model: MusicGen) -> None:
    codec = load_codec("demo")
    clip = torch.randn(1, 1, 3200, generator=torch.Generator().manual_seed(0)) * 0.1
    assert torch.equal(codec.encode(clip)[0].codes, model.encode(clip, 16_000))


def test_the_caption_is_followed(model: MusicGen) -> None:
    # Drums are all that sounds above 5 kHz: 8 clips asked for with drums against 8 without, from the same seeds.
    def treble(text: str) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(8)]
        audio = model.generate([text] * 8, GenerationOptions(seconds=3), generator=generators).audio[:, 0]
        return torch.fft.rfft(audio).abs().square()[:, 15_000:].sum(1)

    assert (treble("slow pad chords with busy drums") > 3 * treble("slow pad chords, no drums")).sum() >= 7


def test_the_command_line_needs_no_model_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, blocked)
    output = tmp_path / "out.wav"
    assert main(["generate", TEXTS[0], "--seconds", "2", "--seed", "0", "-o", str(output)]) == 0
    audio, rate = read_wav(output)
    assert (rate, audio.shape) == (16_000, (1, 32_000))
    assert audio.square().mean().sqrt() > 0.01


def test_the_wheel_carries_it(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a build writes beside what it builds
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "musicgen_ref", "weights_convert", "learn"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    offline = {**os.environ, "PIP_NO_INDEX": "1"}
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, env=offline, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    packages = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"musicgen_ref", "weights_convert"}
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True, env=offline
    )
    program = """
import sys
def blocked(event, arguments):
    if event.startswith("socket."):
        raise AssertionError("the network was asked for")
sys.addaudithook(blocked)
import musicgen_ref
from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.anatomy import dissect, page
model = MusicGen.from_pretrained("demo")
out = model.generate(["a slow bell melody"], GenerationOptions(seconds=1))
assert "</html>" in page(dissect(model, "a slow bell melody", GenerationOptions(seconds=0.1)))
print(musicgen_ref.__file__, tuple(out.audio.shape))
"""
    run = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    told = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    assert told.stdout.split(" ", 1) == [str(tmp_path / "site" / "musicgen_ref" / "__init__.py"), "(1, 1, 16000)\n"]


def test_fine_tuning_on_a_folder_lowers_the_loss_and_opens_in_transformers(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for i in range(3):
        attributes = synth.sample_attributes(rng)
        audio = torch.from_numpy(synth.render(attributes, 2.0 - 0.5 * (i == 2), rng))[None]
        write_wav(tmp_path / f"{i}.wav", audio, 16_000)
        (tmp_path / f"{i}.txt").write_text(f"clip number {i} of a kind never heard")
    model = MusicGen.from_pretrained("demo")
    codes, texts = finetune.read_folder(model, tmp_path, 2.0)
    assert codes.shape == (3, 4, 100)
    assert (codes[2, :, 75:] == -1).all()
    assert (codes[:2] >= 0).all()
    with torch.no_grad():
        before = float(model.loss(codes, texts))
    finetune.finetune(model, codes, texts, steps=12, lr=1e-3)
    with torch.no_grad():
        after = model.loss(codes, texts)
    assert float(after) < 0.8 * before
    model.save_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        assert torch.equal(MusicGen.from_pretrained(tmp_path / "tuned").loss(codes, texts), after)
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "tuned", dtype=torch.float32).eval()
    ids, mask = model.tokenizer(texts)
    with torch.no_grad():
        given = {"input_ids": ids, "attention_mask": mask.long(), "decoder_input_ids": codes[:, :, :75].flatten(0, 1)}
        logits = model.decoder(codes[:, :, :75], *model.encode_text(texts)).flatten(0, 1)
        torch.testing.assert_close(logits, theirs(**given).logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
