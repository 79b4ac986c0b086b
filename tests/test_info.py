"""`info`: what a directory is, and every reason why it does not open, without tensors being read."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from musicgen_ref import MusicGen
from musicgen_ref.__main__ import main
from musicgen_ref.checkpoint.archive import Archive, StoredTensor
from musicgen_ref.checkpoint.files import Bin, Safetensors
from musicgen_ref.checkpoint.info import report
from tests import hub, release, tiny
from weights_convert.__main__ import main as convert


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release as published, whole, its codec as transformers saves it beside; not to be written to."""
    folder, model = tmp_path_factory.mktemp("releases"), release.model()
    release.publish(model, folder / "release", tiny.spiece())
    model.audio_encoder.save_pretrained(folder / "codec")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of transformers; not to be written to."""
    return tiny.complete(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def copy(releases: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(releases / "release", tmp_path / "here" / "release"))


def told(folder: Path, **parts: Path) -> tuple[dict[str, str], list[str]]:
    rows, reasons, _ = report(folder, **parts)
    return dict(rows), reasons


def test_a_release_is_told_by_its_parts_and_what_is_passed_over(releases: Path) -> None:
    rows, reasons = told(releases / "release")
    assert reasons == []
    assert rows["layout"] == "audiocraft's release"
    assert rows["state_dict.bin"] == "keys best_state, xp.cfg"
    assert rows["T5"] == f"t5-base, in {releases / 'release' / 't5-base'}"
    assert rows["decoder"].startswith("2 x 32, 4 heads, ")
    passed_over = rows["passed over in state_dict.bin"].split(", ")
    assert {"conditioners.args", "attribute_dropout", "slurm", "transformer_lm.emb_lr"} <= set(passed_over)
    assert not {"conditioners", "conditioners.description", "transformer_lm", "fuser"} & set(passed_over)
    assert {"optim", "rvq.decay"} <= set(rows["passed over in compression_state_dict.bin"].split(", "))
    assert "float16" in rows["tensors"] and "float32" in rows["tensors"]
    assert rows["files"].startswith("compression_state_dict.bin (")


def test_a_stub_is_told_with_the_place_where_its_codec_is_or_is_not(releases: Path, copy: Path, tmp_path: Path) -> None:
    release.publish_stub(copy)
    rows, reasons = told(copy)
    named = "'facebook/encodec_32khz' by pretrained in compression_state_dict.bin"
    assert rows["codec is named"] == f"{named}, not found"
    assert "pretrained 'facebook/encodec_32khz'" in rows["compression_state_dict.bin"]
    assert len(reasons) == 1 and "hf download facebook/encodec_32khz" in reasons[0]
    rows, reasons = told(copy, codec=releases / "codec")
    assert rows["codec is named"] == f"{named}, in {releases / 'codec'}" and reasons == []
    shutil.copytree(releases / "codec", copy.parent / "encodec_32khz")
    rows, reasons = told(copy)
    assert rows["codec is named"] == f"{named}, in {copy.parent / 'encodec_32khz'}" and reasons == []


def test_every_reason_is_told_and_first_the_one_that_loading_tells(copy: Path) -> None:
    model = release.model()
    changes = {
        "conditioners__self_wav": {"model": "chroma_stem"},
        "fuser__prepend": ["self_wav"],
        "transformer_lm__xpos": True,
        "transformer_lm__num_layers": "two",
    }
    release.publish_lm(model, copy, config=release.published_lm_cfg(model, **changes))
    settings = release.published_codec_cfg(model.audio_encoder, 4, seanet__disable_norm_outer_blocks=2)
    release.publish_codec(model.audio_encoder, copy, 4, settings)
    shutil.rmtree(copy / "t5-base")
    _, reasons = told(copy)
    parts = (
        "state_dict.bin: conditioners.self_wav must be left out",
        "state_dict.bin: fuser.prepend must be []",
        "state_dict.bin: transformer_lm.xpos must be False, got True",
        "state_dict.bin: xp.cfg.transformer_lm.num_layers must be int, got 'two'",
        "hf download t5-base",
        "compression_state_dict.bin: seanet.disable_norm_outer_blocks must be 0, got 2",
    )
    for part in parts:
        assert sum(part in reason for reason in reasons) == 1, part
    assert len(reasons) == len(parts)
    with pytest.raises(ValueError, match=r"conditioners\.self_wav") as error:
        MusicGen.from_pretrained(copy)
    assert reasons[0] == str(error.value)


def test_every_field_of_a_configuration_is_told(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["text_encoder"]["num_layers"] = 1.5
    config["audio_encoder"]["pad_mode"] = 7
    config["decoder"] |= {"hidden_size": "wide", "num_codebooks": None, "a_note": 1}
    config["later"] = {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    rows, reasons = told(tmp_path)
    fields = ("text_encoder.num_layers", "audio_encoder.pad_mode", "decoder.hidden_size", "decoder.num_codebooks")
    for field in fields:
        assert sum(f"{field} must be" in reason for reason in reasons) == 1, field
    with pytest.raises(ValueError, match="must be") as error:
        MusicGen.from_pretrained(tmp_path)
    assert reasons[0] == str(error.value)
    assert "a_note" in rows["passed over in decoder"].split(", ") and "later" in rows["passed over"].split(", ")
    assert "hidden_size" not in rows["passed over in decoder"]
    assert rows["weights"] == "model.safetensors"
    assert rows["layout"] == "transformers, version which is not said; model_type 'musicgen'"


def test_weights_that_do_not_fit_variants_and_a_foreign_processor_are_told(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 12, "sampling_rate": tiny.RATE}))
    (folder / "model.safetensors").rename(folder / "model.fp32.safetensors")
    save_file({"decoder.lm_heads.0.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    rows, reasons = told(folder)
    assert rows["variants"] == "fp32"
    assert "the model can: " in rows["processor"] and "feature_size must be 1" in rows["processor"]
    assert len(reasons) == 1
    with pytest.raises(ValueError, match=r".") as error:
        MusicGen.from_pretrained(folder)
    assert reasons[0] == str(error.value)


def test_an_adapter_is_told_beside_weights_and_alone(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "me/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    rows, reasons = told(folder)
    assert rows["adapter"].startswith("adapter_config.json: peft_type 'LORA', base_model_name_or_path 'me/base', r 4")
    assert len(reasons) == 1 and "adapter=True" in reasons[0]
    assert rows["in all"].endswith("parameters")  # what is beside it opens
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "adapter_config.json", alone)
    rows, reasons = told(alone)
    assert rows["layout"] == "adapter alone" and "'me/base'" in reasons[0]


def test_an_encodec_alone_and_what_is_nothing(releases: Path, tmp_path: Path) -> None:
    rows, reasons = told(releases / "codec")
    assert reasons == [] and "model_type 'encodec'" in rows["layout"] and rows["codec"].startswith("EnCodec, 4 filters")
    (tmp_path / "ba7a97ba-830fe5771e.th").write_bytes(b"x")
    rows, reasons = told(tmp_path)
    assert rows["layout"] == "none that is known" and rows["files"] == "ba7a97ba-830fe5771e.th (1)"
    assert "neither state_dict.bin nor compression_state_dict.bin" in reasons[0]
    with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
        report(tmp_path / "nowhere")


def test_the_sizes_of_a_model_are_told(saved: Path, releases: Path, tmp_path: Path) -> None:
    model = MusicGen.from_pretrained(saved)

    def count(module: torch.nn.Module) -> str:
        return f"{sum(tensor.numel() for tensor in module.state_dict().values()):,} parameters"

    rows, _ = told(saved)
    assert rows["text encoder"] == f"T5 2 x 24, {count(model.text_encoder)}"
    assert rows["decoder"] == f"2 x 32, 4 heads, {count(model.decoder)}"
    assert rows["codec"] == f"EnCodec, 4 filters, hop 8 samples, {count(model.codec)}"
    assert rows["in all"] == count(model)
    assert rows["audio"] == f"{tiny.RATE} Hz, mono"
    assert rows["codes"] == f"4 codebooks of 256, {tiny.RATE / 8:g} frames per second"
    assert rows["tokenizer"] == "spiece.model, tokenizer.json, tokenizer_config.json"
    config = json.loads((saved / "config.json").read_text())
    config["text_encoder"]["feed_forward_proj"] = "gated-gelu"
    config["decoder"]["audio_channels"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows, _ = told(tmp_path)
    assert rows["text encoder"].startswith("T5 gated 2 x 24, ")
    assert rows["audio"] == f"{tiny.RATE} Hz, stereo"
    assert rows["tokenizer"] == "none" and rows["processor"] == "none" and rows["weights"] == "none"


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sizes_of_an_encodec_are_told(channels: int, releases: Path, tmp_path: Path) -> None:
    config = json.loads((releases / "codec" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"audio_channels": channels}))
    shutil.copy(releases / "codec" / "model.safetensors", tmp_path)
    rows, reasons = told(tmp_path)
    assert rows["audio"] == f"{config['sampling_rate']} Hz, {'mono' if channels == 1 else 'stereo'}"
    assert bool(reasons) == (channels != config["audio_channels"])


def test_of_a_file_of_many_tensors_the_first_keys_are_told(tmp_path: Path) -> None:
    torch.save({f"layer {i:02}": torch.zeros(1) for i in range(30)}, tmp_path / "state_dict.bin")
    rows, reasons = told(tmp_path)
    assert rows["state_dict.bin"] == f"keys {', '.join(f'layer {i:02}' for i in range(20))}"
    assert "must hold best_state and xp.cfg" in reasons[0]


@pytest.mark.parametrize("year", ["4.31", "4.46", "4.57", "5.23"])
def test_directories_of_each_year_open(year: str, saved: Path, tmp_path: Path) -> None:
    rows, reasons = told(hub.published(saved, tmp_path / "published", year))
    assert reasons == []
    assert f"version {year}" in rows["layout"]


def test_no_tensor_is_read(releases: Path, saved: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release.publish_stub(copy)

    def read(*arguments: object, **named: object) -> None:
        raise AssertionError("a tensor was read")

    for kind, method in ((Safetensors, "get"), (Bin, "get"), (StoredTensor, "read"), (Archive, "check")):
        monkeypatch.setattr(kind, method, read)
    assert told(releases / "release")[1] == told(saved)[1] == []
    assert told(copy, codec=releases / "release")[1] == []


def test_no_tensor_of_a_release_that_does_not_open_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []  # written down, not raised: what is raised while a file is opened is told as its damage
    shutil.rmtree(copy / "t5-base")
    for kind, method in ((Safetensors, "get"), (Bin, "get"), (StoredTensor, "read"), (Archive, "check")):
        monkeypatch.setattr(kind, method, lambda *_, method=method: read.append(method))
    assert len(told(copy)[1]) == 1
    assert read == []


def test_numbers_that_are_not_finite_are_told_where_asked(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    assert report(folder, check=True) == (
        [
            *(row for row in report(folder).rows if row[0] != "files"),
            ("numbers", "all finite"),
            report(folder).rows[-1],
        ],
        [],
        "",
    )
    assert main(["info", str(folder), "--check"]) == 0 and "all finite" in capsys.readouterr().out
    state = load_file(folder / "model.safetensors")
    head, norm = "decoder.lm_heads.1.weight", "text_encoder.encoder.final_layer_norm.weight"
    state[head][0, :2] = float("nan")
    state[norm][3] = float("-inf")
    direction = next(name for name in state if name.endswith("original1"))
    state[direction][1] = 0  # which no magnitude makes a filter of
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    told = report(folder, check=True)
    assert told.reasons == [] and told.values == f"{folder}: {dict(told.rows)['numbers']}"
    assert "NaN or infinity in 3 of " in told.values
    for name, wrong in ((head, 2), (norm, 1), (direction, 1)):
        assert f"{name} ({wrong} of {state[name].numel()})" in told.values
    MusicGen.from_pretrained(folder)  # which reads no numbers, and says nothing of them
    assert report(folder).values == "" and main(["info", str(folder)]) == 0
    capsys.readouterr()
    for command in (main, convert):
        assert command(["info", str(folder), "--check"]) == 2
        out, err = capsys.readouterr()
        assert "numbers" in out and err.count("\n") == 1 and told.values in err


def test_a_checksum_of_a_release_is_tested_where_asked(copy: Path) -> None:
    assert report(copy, check=True).reasons == []
    file = copy / "state_dict.bin"
    content = file.read_bytes()
    at = Archive(file).entries[f"{Archive(file).folder}/data/0"].begin
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert report(copy).reasons == []
    assert "checksum" in report(copy, check=True).reasons[0]


def test_names_that_a_file_makes_up_stay_on_their_line(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config |= {"x" * 1000: 1, "a\nb": 2, "\x1b[31m": 3, "transformers_version": ["\n"] * 10**5, "dtype": "\n" * 10**5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = report(tmp_path).lines()
    assert all(line.isprintable() and len(line) < 5000 for line in lines)
    assert len(lines) == len(report(tmp_path).rows) + len(report(tmp_path).reasons)


def test_a_configuration_of_a_hundred_thousand_settings_is_told_in_seconds(copy: Path) -> None:
    content = torch.load(copy / "state_dict.bin", weights_only=True)
    content["xp.cfg"] += "".join(f"c{i}: ${{c{i + 1}}}\n" for i in range(40_000)) + "c40000: 32\n"
    content["xp.cfg"] = re.sub(r"\bdim: \d+", "dim: ${c0}", content["xp.cfg"])
    torch.save(content, copy / "state_dict.bin")
    began = time.process_time()
    reasons = report(copy).reasons
    assert "transformer_lm.dim -> c0 -> c1" in reasons[0] and "leads to no value within 20 references" in reasons[0]
    assert time.process_time() - began < 5


def test_both_commands_print_it(releases: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (main, convert):
        assert command(["info", str(releases / "release")]) == 0
        out, err = capsys.readouterr()
        assert "audiocraft's release" in out and err == ""
    release.publish_stub(copy)
    for command, name in ((main, "musicgen-ref"), (convert, "weights_convert")):
        assert command(["info", str(copy)]) == 2
        out, err = capsys.readouterr()
        reason = err.removeprefix(f"{name}: ").rstrip("\n")
        assert "\n" not in reason and "hf download" in reason
        assert f"does not open: 1. {reason}\n" in out
    assert convert(["info", str(copy), "--codec", str(releases / "codec")]) == 0
    shutil.move(copy / "t5-base", copy.parent.parent / "mine")
    assert convert(["info", str(copy), "--codec", str(releases / "codec")]) == 2
    mine = str(copy.parent.parent / "mine")
    assert convert(["info", str(copy), "--codec", str(releases / "codec"), "--text-encoder", mine]) == 0
