"""generation_config.json: how a checkpoint wants to be sampled is how it is sampled where the caller does not say."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MusicgenForConditionalGeneration

from musicgen_ref import GenerationOptions, MusicGen, fast, hf, parity
from musicgen_ref.__main__ import main
from musicgen_ref.anatomy import dissect
from musicgen_ref.checkpoint.info import report
from musicgen_ref.model import Sampling
from tests import release, tiny
from weights_convert import convert
from weights_convert.verify import verify

NEW = 17
FRAMES = tiny.clip(0, NEW, 4)["frames"]
LIBRARY = Sampling()
# Every field is another than the library's and than transformers', and changes the codes.
SAID: dict[str, Any] = {"guidance_scale": 1.5, "temperature": 0.6, "top_k": 20, "top_p": 0.7}
OTHERS: dict[str, Any] = {"guidance_scale": 4.0, "temperature": 1.4, "top_k": 3, "top_p": 0.2}
TEXTS = ["a calm piano", "loud drums and a heavy bass"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that says all four; not to be written to."""
    return tiny.complete(tmp_path_factory.mktemp("saved") / "model", do_sample=False, max_length=9, **SAID)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def say(folder: Path, **fields: Any) -> None:
    """Write a generation_config.json with the special tokens and these alone."""
    special = dict.fromkeys(("decoder_start_token_id", "pad_token_id", "bos_token_id"), 256)
    (folder / "generation_config.json").write_text(json.dumps(special | fields))


def said(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "generation_config.json").read_text())
    return {name: content[name] for name in SAID if name in content}


def drawn(model: MusicGen, seed: int = 5, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return model.generate(TEXTS, GenerationOptions(frames=FRAMES, **options), generator=generator).codes


@pytest.mark.parametrize("names", [*([name] for name in SAID), list(SAID)], ids=lambda names: " ".join(names))
def test_without_arguments_the_codes_are_those_of_transformers(names: list[str], folder: Path) -> None:
    """Of what the file does not say, transformers has another default for two, which are given there."""
    fields = {name: SAID[name] for name in names}
    say(folder, **fields)
    model = MusicGen.from_pretrained(folder)
    theirs = tiny.opened(MusicgenForConditionalGeneration, folder)
    ids, mask = model.tokenizer(TEXTS)
    other = {"guidance_scale": 3.0, "top_k": 250}
    given = {name: value for name, value in other.items() if name not in fields}
    torch.manual_seed(5)
    codes, _ = tiny.theirs(
        theirs, input_ids=ids, attention_mask=mask.long(), do_sample=True, max_new_tokens=NEW, **given
    )
    torch.manual_seed(5)
    assert torch.equal(model.generate(TEXTS, GenerationOptions(frames=FRAMES)).codes, codes)
    assert torch.equal(drawn(model, **fields), codes)
    assert not torch.equal(drawn(model, **LIBRARY._asdict()), codes)  # the fields matter


@pytest.mark.parametrize("name", SAID)
def test_what_the_caller_says_wins_and_the_rest_stays_the_checkpoints(name: str, saved: Path) -> None:
    model = MusicGen.from_pretrained(saved)
    made = drawn(model, **{name: OTHERS[name]})
    assert torch.equal(made, drawn(model, **SAID | {name: OTHERS[name]}))
    assert not torch.equal(made, drawn(model))
    library = {name: getattr(LIBRARY, name)}
    assert torch.equal(drawn(model, **library), drawn(model, **SAID | library))
    assert model.defaults == GenerationOptions(**SAID)  # a call leaves nothing behind


def test_what_a_checkpoint_leaves_open_is_the_librarys(folder: Path) -> None:
    expected = drawn(MusicGen.from_pretrained(folder), **LIBRARY._asdict())
    for fields in ({}, dict.fromkeys(SAID), {"do_sample": False, "max_length": 9, "max_new_tokens": 3, "typical_p": 0}):
        say(folder, **fields)
        model = MusicGen.from_pretrained(folder)
        assert model.defaults == GenerationOptions()
        assert torch.equal(drawn(model), expected)  # drawn, and as long as was asked for
    (folder / "generation_config.json").unlink()
    assert torch.equal(drawn(MusicGen.from_pretrained(folder)), expected)


def test_greedy_follows_the_checkpoints_guidance_and_nothing_else_of_it(saved: Path) -> None:
    model = MusicGen.from_pretrained(saved)
    made = drawn(model, greedy=True)
    assert torch.equal(made, drawn(model, greedy=True, guidance_scale=SAID["guidance_scale"], temperature=9.0))
    assert not torch.equal(made, drawn(model, greedy=True, guidance_scale=3.0))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a temperature of 0": ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    "a temperature in words": ({"temperature": "warm"}, "temperature must be above 0, got 'warm'"),
    "a negative top_k": ({"top_k": -1}, "top_k must be a whole number from 0, which keeps all, got -1"),
    "half a code": ({"top_k": 2.5}, "top_k must be a whole number from 0, which keeps all, got 2.5"),
    "a top_p of 2": ({"top_p": 2}, "top_p must be above 0 and at most 1, which keeps all, got 2"),
    "a list": ({"guidance_scale": [3.0]}, "guidance_scale must be a finite number, got [3.0]"),
    "a truth value": ({"guidance_scale": True}, "guidance_scale must be a finite number, got True"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_cannot_be_followed_is_refused_with_file_and_field(name: str, folder: Path) -> None:
    fields, message = BAD[name]
    say(folder, **fields)
    with pytest.raises(ValueError, match=r"correct it, or remove it") as error:
        MusicGen.from_pretrained(folder)
    assert str(error.value).startswith(f"{folder / 'generation_config.json'}: {message}; ")
    assert report(folder).reasons == [str(error.value)]


def test_a_damaged_file_is_refused_by_its_name(folder: Path) -> None:
    for content in ("{", "[]", '{"top_k": 1, "top_k": 2}'):
        (folder / "generation_config.json").write_text(content)
        with pytest.raises(ValueError, match=r"generation_config\.json") as error:
            MusicGen.from_pretrained(folder)
        assert str(error.value) in report(folder).reasons


def test_the_facade_reads_the_file_by_its_own_rules(folder: Path) -> None:
    """As transformers does: a temperature of 0 means nothing where nothing is drawn."""
    say(folder, temperature=0.0, do_sample=False, max_new_tokens=NEW)
    model = hf.MusicgenForConditionalGeneration.from_pretrained(folder)
    assert model.generation_config.temperature == 0
    assert model.core.defaults == GenerationOptions()
    ids, mask = model.core.tokenizer(TEXTS)
    assert model.generate(input_ids=ids, attention_mask=mask).shape[0] == 2


def test_saving_and_converting_keep_what_the_checkpoint_says(saved: Path, tmp_path: Path) -> None:
    model = MusicGen.from_pretrained(saved)
    model.save_pretrained(tmp_path / "saved")
    convert.from_huggingface(saved, tmp_path / "converted")
    for made in ("saved", "converted"):
        assert said(tmp_path / made) == SAID
        assert MusicGen.from_pretrained(tmp_path / made).defaults == model.defaults == GenerationOptions(**SAID)
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "saved").generation_config
    assert {name: getattr(theirs, name) for name in SAID} == SAID
    assert copy.deepcopy(model).defaults == model.defaults
    model.defaults = GenerationOptions(temperature=0.5)
    model.save_pretrained(tmp_path / "saved")
    assert said(tmp_path / "saved") == {"guidance_scale": 3.0, "temperature": 0.5}


def test_the_authors_layout_has_no_place_for_it(tmp_path: Path) -> None:
    release.model().save_pretrained(tmp_path / "model")
    say(tmp_path / "model", **SAID)
    model = MusicGen.from_pretrained(tmp_path / "model")
    assert model.defaults == GenerationOptions(**SAID)
    model.save_pretrained(tmp_path / "saved", layout="audiocraft")
    convert.to_audiocraft(tmp_path / "model", tmp_path / "converted")
    for made in ("saved", "converted"):
        assert MusicGen.from_pretrained(tmp_path / made).defaults == GenerationOptions()
        assert dict(report(tmp_path / made).rows)["sampling"].count("(default)") == 4


def test_the_command_line_draws_as_the_checkpoint_says_unless_told_otherwise(saved: Path, tmp_path: Path) -> None:
    def made(*arguments: str) -> bytes:
        output = tmp_path / "out.wav"
        command = ["generate", TEXTS[0], "--seconds", "1", "--seed", "3", "--model", str(saved), "-o", str(output)]
        assert main([*command, *arguments]) == 0
        return output.read_bytes()

    options = {"guidance": "guidance_scale", "temperature": "temperature", "top-k": "top_k", "top-p": "top_p"}
    plain = made()
    assert plain == made(*(word for option, name in options.items() for word in (f"--{option}", str(SAID[name]))))
    for option, name in options.items():
        assert made(f"--{option}", str(OTHERS[name])) != plain, option


@pytest.mark.parametrize(
    ("scale", "told", "guided"), [(1.0, [], False), (3.0, [], True), (1.0, ["--guidance", "2"], True)]
)
def test_the_compiled_step_is_guided_if_the_checkpoint_is(
    scale: float, told: list[str], guided: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(folder, guidance_scale=scale)
    asked: list[bool] = []
    monkeypatch.setattr(MusicGen, "compile", lambda self, batch=1, guided=True, cache=None: asked.append(guided))
    output = folder.parent / "out.wav"
    command = ["generate", TEXTS[0], "--seconds", "0.5", "--compile", "--model", str(folder), "-o", str(output)]
    assert main([*command, *told]) == 0
    assert asked == [guided]


def test_info_prints_how_a_checkpoint_is_sampled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row() -> str:
        assert main(["info", str(folder)]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sampling ")]
        return line.split(maxsplit=1)[1]

    assert row() == "guidance_scale 1.5, temperature 0.6, top_k 20, top_p 0.7"
    say(folder, temperature=0.3)
    assert row() == "guidance_scale 3.0 (default), temperature 0.3, top_k 250 (default), top_p 1.0 (default)"
    (folder / "model.safetensors").unlink()
    assert dict(report(folder).rows)["sampling"].startswith("guidance_scale 3.0 (default), temperature 0.3, ")
    tiny.musicgen().audio_encoder.save_pretrained(folder.parent / "codec")
    assert "sampling" not in dict(report(folder.parent / "codec").rows)


def test_a_clip_from_the_inside_is_drawn_and_told_as_the_checkpoint_says(saved: Path) -> None:
    model = MusicGen.from_pretrained(saved)
    options = GenerationOptions(frames=FRAMES, top_k=OTHERS["top_k"])
    seen = dissect(model, TEXTS[0], options, generator=torch.Generator().manual_seed(5))
    assert seen.sampling == Sampling(**SAID | {"top_k": OTHERS["top_k"]})
    made = model.generate([TEXTS[0]], options, generator=torch.Generator().manual_seed(5)).codes[0]
    assert torch.equal(seen.codes, made)
    assert (seen.probability > 0).all() and (seen.kept <= OTHERS["top_k"]).all()


def test_neither_recordings_nor_verification_depend_on_it(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    (plain / "generation_config.json").unlink()
    one, other = (parity.record(path, frames=6) for path in (folder, plain))
    assert one.stages.keys() == other.stages.keys()
    for name in ("greedy.codes", "sampled.codes", "sampled.logits"):
        assert torch.equal(one.stages[name], other.stages[name]), name
    assert {row.what: row.agree for row in verify(folder, plain)}["greedy codes"] is True


def test_int8_and_the_fast_layers_keep_it(saved: Path) -> None:
    for model in (MusicGen.from_pretrained(saved, dtype="int8"), MusicGen.from_pretrained(saved, fast=False)):
        assert model.defaults == GenerationOptions(**SAID)
    assert fast.speed_up(model).defaults == GenerationOptions(**SAID)
