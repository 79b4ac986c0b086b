"""weights_convert: what comes out computes the same, every bit comes back, and what does not fit is refused."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EncodecModel, MusicgenForConditionalGeneration

from musicgen_ref import DecoderConfig, EncodecConfig, GenerationOptions, MusicGen, T5Config
from musicgen_ref.checkpoint import atomic, audiocraft, files, huggingface, load_codec
from musicgen_ref.checkpoint.source import read_configs
from tests import release, tiny
from tests.hub import Hub
from weights_convert import convert
from weights_convert.__main__ import main, size
from weights_convert.verify import outputs, verify

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ["mono", "stereo"]
# Of a configuration, what decides no number.
BOOKKEEPING = {"decoder_start_token_id", "is_decoder", "num_decoder_layers", "dtype", "architectures"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[MusicgenForConditionalGeneration, Path]:
    """transformers' model, and a release of it; not to be written to."""
    model, folder = release.model(kind), tmp_path_factory.mktemp("release")
    release.write(model, folder, tokenizer=tiny.spiece())
    return model, folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mono release with a decoder in float16, as published; not to be written to."""
    folder = tmp_path_factory.mktemp("original") / "release"
    release.write(release.model(), folder, torch.float16, tokenizer=tiny.spiece())
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that transformers saved; not to be written to."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    release.model().save_pretrained(folder)
    return folder


@pytest.fixture
def target(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint that is there already."""
    return Path(shutil.copytree(saved, tmp_path / "target" / "model"))


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory in either layout, by file and name."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        found |= {f"{file.parent.name if file.parent != folder else ''}/{n}": t for n, t in load_file(file).items()}
    for file in sorted(folder.glob("*state_dict.bin")):
        state = torch.load(file, weights_only=True)["best_state"]
        found |= {f"{file.name}/{name}": tensor for name, tensor in state.items()}
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8))
        for n in one
        if one[n].dim()
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


# From audiocraft


def test_a_release_computes_what_transformers_model_does(made: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = made
    tiny.assert_equal(model, MusicGen.from_pretrained(folder))
    convert.from_audiocraft(folder, tmp_path / "out")
    opened, info = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: list(value) for name, value in info.items() if value} == {}
    tiny.assert_equal(opened, MusicGen.from_pretrained(tmp_path / "out"))
    expected = {n: t for n, t in model.state_dict().items() if n != "text_encoder.encoder.embed_tokens.weight"}
    assert same({n.removeprefix("/"): t for n, t in tensors(tmp_path / "out").items()}, expected)
    for name in ("text_encoder", "audio_encoder", "decoder"):
        theirs, got = (getattr(config, name).to_dict() for config in (model.config, opened.config))
        differing = {field for field in theirs.keys() | got.keys() if theirs.get(field) != got.get(field)}
        assert differing <= BOOKKEEPING, name


def test_it_generates_as_the_release_means_it(original: Path, tmp_path: Path) -> None:
    convert.from_audiocraft(original, tmp_path / "out")
    generation = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out").generation_config
    assert (generation.do_sample, generation.top_k, generation.guidance_scale) == (True, 250, 3.0)
    assert generation.max_length == 30 * 50
    assert generation.decoder_start_token_id == generation.pad_token_id == tiny.CODES


def test_a_conversion_says_how_audio_is_prepared(original: Path, tmp_path: Path) -> None:
    expected = {
        "feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "sampling_rate": tiny.RATE,
        "padding_side": "left", "padding_value": 0.0, "return_attention_mask": True, "chunk_length_s": None,
        "overlap": None,
    }  # fmt: skip
    convert.from_audiocraft(original, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert written == expected | {"processor_class": "MusicgenProcessor"}
    (tmp_path / "codec").mkdir()
    shutil.copy(original / "compression_state_dict.bin", tmp_path / "codec")
    convert.from_audiocraft(tmp_path / "codec", tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text()) == expected


def test_lengths_follow_the_frames_and_the_pieces_of_the_codec() -> None:
    codec = EncodecConfig(sampling_rate=24000, ratios=(8, 5, 4, 2), chunk_seconds=1.5, overlap=0.02)
    assert huggingface.write_generation(DecoderConfig(), codec)["max_length"] == 30 * 75
    written = huggingface.write_processor(2, codec)
    assert (written["feature_size"], written["sampling_rate"]) == (2, 24000)
    assert (written["chunk_length_s"], written["overlap"]) == (1.5, 0.02)


def test_every_tensor_keeps_its_dtype(original: Path, tmp_path: Path) -> None:
    convert.from_audiocraft(original, tmp_path / "out")
    for name, tensor in tensors(tmp_path / "out").items():
        half = name.startswith(("/decoder.", "/enc_to_dec_proj."))
        assert tensor.dtype == (torch.float16 if half else torch.float32), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    "text, decoder, stored",
    [
        (torch.float16, torch.float16, "float32"),  # the codec is in float32
        (torch.bfloat16, torch.float16, "float32"),
        (torch.float32, torch.bfloat16, "float32"),
    ],
    ids=str,
)
def test_the_dtype_that_a_mixture_is_opened_in_is_one_that_holds_every_part(
    text: torch.dtype, decoder: torch.dtype, stored: str, original: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    release.write_lm(release.model(), folder, decoder)
    file = folder / "t5-base" / "model.safetensors"
    save_file({name: tensor.to(text) for name, tensor in load_file(file).items()}, file)
    convert.from_audiocraft(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == stored
    opened = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert str(opened.dtype) == f"torch.{stored}"
    # T5 has a directory of its own in the other layout, and its own dtype there.
    convert.to_audiocraft(tmp_path / "out", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "t5-base" / "config.json").read_text())
    assert config["dtype"] == str(text).removeprefix("torch.")


def test_the_text_encoder_may_be_given_or_lie_beside(original: Path, tmp_path: Path) -> None:
    expected = MusicGen.from_pretrained(original).state_dict()
    folder = tmp_path / "a" / "release"
    shutil.copytree(original, folder)
    (folder / "t5-base").rename(tmp_path / "mine")
    for path in (folder, tmp_path / "out"):
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(folder))}.*text encoder.*--text-encoder"):
            MusicGen.from_pretrained(folder) if path == folder else convert.from_audiocraft(folder, path)
    convert.from_audiocraft(folder, tmp_path / "out", text_encoder=tmp_path / "mine")
    got = MusicGen.from_pretrained(tmp_path / "out")
    assert all(torch.equal(got.state_dict()[name], tensor) for name, tensor in expected.items())
    assert got.tokenizer(["rain"])[0].shape == (1, MusicGen.from_pretrained(original).tokenizer(["rain"])[0].shape[1])
    (tmp_path / "mine").rename(folder.parent / "t5-base")
    assert torch.equal(MusicGen.from_pretrained(folder).decoder.norm.weight, expected["decoder.norm.weight"])
    with pytest.raises(FileNotFoundError, match=r"text_encoder.*nowhere"):
        convert.from_audiocraft(folder, tmp_path / "b", text_encoder=tmp_path / "nowhere")


def test_a_tokenizer_of_more_ids_than_the_embedding_is_refused(tmp_path: Path) -> None:
    release.write(release.model(text={"vocab_size": 99}), tmp_path / "release", tokenizer=tiny.spiece())
    with pytest.raises(ValueError, match=r"t5-base: the tokenizer has 1\d\d ids"):
        convert.from_audiocraft(tmp_path / "release", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_whole_t5_serves_as_text_encoder(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    state = load_file(folder / "t5-base" / "model.safetensors")
    shared = state["shared.weight"]
    state |= {"lm_head.weight": shared + 1, "decoder.embed_tokens.weight": shared + 2, "decoder.x": torch.zeros(3)}
    save_file(state | {"encoder.embed_tokens.weight": shared.clone()}, folder / "t5-base" / "model.safetensors")
    (a, b) = (MusicGen.from_pretrained(path).state_dict() for path in (original, folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_hub_is_asked_for_the_t5_that_the_file_names(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(shutil.copytree(original / "t5-base", tmp_path / "t5"))
    (text / "pytorch_model.bin").write_bytes(b"not asked for")
    there = Hub(monkeypatch, tmp_path, {"t5-base": text})
    assert run("audiocraft", original, tmp_path / "out", "--text-encoder", "hub") == 0
    assert {"config.json", "model.safetensors"} <= (files := there.files) and "pytorch_model.bin" not in files
    assert MusicGen.from_pretrained(tmp_path / "out").tokenizer is not None
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run("audiocraft", original, tmp_path / "none", "--text-encoder", "hub") == 2


def test_other_spellings_of_the_tensors_are_read(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        content = torch.load(folder / name, weights_only=True)
        content["best_state"] = {
            re.sub(r"(self_attn|cross_attention)\.", r"\1.mha.", n)
            .replace("weight_g", "parametrizations.weight.original0")
            .replace("weight_v", "parametrizations.weight.original1"): tensor
            for n, tensor in content["best_state"].items()
        }
        torch.save(content, folder / name)
    (a, b) = (MusicGen.from_pretrained(path).state_dict() for path in (original, folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


# EnCodec alone: 24, 32 and 48 kHz have these kinds of codec.

CODECS: dict[str, dict[str, Any]] = {
    "24 kHz": {"use_causal_conv": True, "use_conv_shortcut": True, "sampling_rate": 24000},
    "32 kHz": {},
    "48 kHz": {"norm_type": "time_group_norm", "normalize": True, "audio_channels": 2, "sampling_rate": 48000}
    | {"use_conv_shortcut": True},
    "variant": {"use_causal_conv": True, "pad_mode": "constant", "num_residual_layers": 2, "trim_right_ratio": 0.5}
    | {"num_lstm_layers": 1},
}


def codec_of(name: str) -> EncodecModel:
    fields = {"upsampling_ratios": [4, 2]} | CODECS[name]
    rate = fields.get("sampling_rate", tiny.RATE) // 8
    return tiny.codec(tiny.codec_config(4, **fields | {"target_bandwidths": [rate * 6 * 4 / 1000]}))


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_alone_becomes_transformers_codec(name: str, tmp_path: Path) -> None:
    model = codec_of(name)
    release.write_codec(model, tmp_path / "codec", 4)
    assert run("audiocraft", tmp_path / "codec", tmp_path / "out") == 0
    opened, info = EncodecModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert same(opened.state_dict(), model.state_dict())
    audio = tiny.noise(2, model.config.audio_channels, 83)
    with torch.no_grad():
        expected = model(audio)
        got = opened(audio)
    assert torch.equal(got.audio_codes, expected.audio_codes)
    assert torch.equal(got.audio_values, expected.audio_values)
    own = load_codec(tmp_path / "codec")
    chunk = own.encode(audio, 4)[0]
    assert torch.equal(chunk.codes, expected.audio_codes[0])
    torch.testing.assert_close(own.decode([chunk])[..., :83], expected.audio_values, rtol=0, atol=1e-6)

    assert run("to-audiocraft", tmp_path / "out", tmp_path / "back") == 0
    assert [file.name for file in (tmp_path / "back").iterdir()] == ["compression_state_dict.bin"]
    assert same(tensors(tmp_path / "back"), tensors(tmp_path / "codec"))
    assert run("verify", tmp_path / "codec", tmp_path / "back") == 0
    with pytest.raises(ValueError, match="EnCodec alone"):
        MusicGen.from_pretrained(tmp_path / "codec")


# Frames a second and bits a code: of the released codecs, and one of odd numbers.
PUBLIC = [(50, 11), (75, 10), (150, 10), (49, 7)]
ROUNDED_DOWN = [(75, 7, 31), (50, 7, 93), (150, 9, 97), (50, 11, 234)]


def test_a_codec_trained_at_many_rates_offers_them(tmp_path: Path) -> None:
    config = tiny.codec_config(8, sampling_rate=24000, codebook_size=1024, upsampling_ratios=[20, 16])
    config.target_bandwidths = [6.0]
    release.write_codec(tiny.codec(config), tmp_path / "codec", 8, rvq__q_dropout=True)
    convert.from_audiocraft(tmp_path / "codec", tmp_path / "out")
    got = json.loads((tmp_path / "out" / "config.json").read_text())
    assert got["target_bandwidths"] == [1.5, 3.0, 6.0]  # 2, 4 and 8 codebooks, as the 24 kHz model of transformers


@pytest.mark.parametrize(
    "rate, bits, codebooks", [*((rate, bits, n) for rate, bits in PUBLIC for n in range(1, 33)), *ROUNDED_DOWN]
)
def test_a_bandwidth_pays_for_exactly_its_codebooks(rate: int, bits: int, codebooks: int) -> None:
    """Where the product of codebooks, bits and rate in kbit/s is rounded down, it would pay for one less."""
    least = codebooks * bits * rate / 1000
    assert int(1000 * least // (bits * rate)) == codebooks - ((rate, bits, codebooks) in ROUNDED_DOWN)
    text = yaml.safe_dump(
        release.codec_cfg(
            SimpleNamespace(  # type: ignore[arg-type]
                config=tiny.codec_config(
                    1, sampling_rate=8 * rate, codebook_size=2**bits, target_bandwidths=[rate * bits / 1000]
                )
            ),
            codebooks,
        )
    )
    codec = audiocraft.read_codec(text, "here")
    assert codec.codebooks == codec.codebooks_for(codec.bandwidths[-1]) == codebooks
    assert codec.bandwidths[-1] == pytest.approx(least, rel=1e-12)


def test_a_codec_that_codes_in_pieces_has_no_place_in_the_original_layout(tmp_path: Path) -> None:
    model = codec_of("48 kHz")
    model.config.chunk_length_s, model.config.overlap = 1.0, 0.01
    model.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match=r"config\.json: chunk_length_s"):
        convert.to_audiocraft(tmp_path / "codec", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# There and back


def test_audiocraft_there_and_back_is_the_same_to_the_bit(original: Path, tmp_path: Path) -> None:
    assert run("audiocraft", original, tmp_path / "there", "--shard-size", "100KB") == 0
    assert run("to-audiocraft", tmp_path / "there", tmp_path / "back") == 0
    assert len(list((tmp_path / "there").glob("model-*-of-*.safetensors"))) > 2
    assert same(tensors(tmp_path / "back"), tensors(original))
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        before, after = (
            yaml.safe_load(torch.load(folder / name, weights_only=True)["xp.cfg"])
            for folder in (original, tmp_path / "back")
        )
        flat = resolved(after)
        shared = {path: value for path, value in resolved(before).items() if path in flat}
        assert len(shared) > 20
        assert {path for path, value in shared.items() if flat[path] != value} <= {"device", "rvq.q_dropout"}


@pytest.mark.parametrize(
    "dropout, attention, expected",
    [
        (0.2, None, (0.2, 0.2, 0.2)),  # without one of its own, attention has the other
        (0.2, ..., (0.2, 0.2, 0.2)),
        (0.2, 0.05, (0.2, 0.05, 0.2)),
        (0.2, 0, (0.2, 0.0, 0.2)),
        (..., 0.05, (0.0, 0.05, 0.0)),
    ],
)
def test_both_dropouts_are_read_and_written(
    dropout: Any, attention: Any, expected: tuple[float, float, float], original: Path, tmp_path: Path
) -> None:
    """Dropout, that of attention, and that between the layers of the feed-forward, which is always the first."""
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    changes = {"transformer_lm__dropout": dropout, "transformer_lm__attention_dropout": attention}
    release.write_lm(release.model(), folder, **changes)
    convert.from_audiocraft(folder, tmp_path / "there")
    convert.to_audiocraft(tmp_path / "there", tmp_path / "back")
    for path in (folder, tmp_path / "there", tmp_path / "back"):
        config = read_configs(path)[1]
        assert (config.dropout, config.attention_dropout, config.activation_dropout) == expected, path
    written = json.loads((tmp_path / "there" / "config.json").read_text())["decoder"]
    assert tuple(written[name] for name in ("dropout", "attention_dropout", "activation_dropout")) == expected


def resolved(config: dict[str, Any], top: dict[str, Any] | None = None, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted path, with references to the top level followed."""
    top, out = top or config, {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= resolved(value, top, f"{prefix}{key}.")
        elif isinstance(value, str) and (match := re.fullmatch(r"\$\{(?:encodec\.)?(\w+)\}", value)):
            out[prefix + key] = top.get(match[1], top.get("encodec", {}).get(match[1]))
        else:
            out[prefix + key] = value
    return out


def test_transformers_there_and_back_is_the_same_to_the_bit(made: tuple[Any, Path], tmp_path: Path) -> None:
    made[0].save_pretrained(tmp_path / "model")
    convert.to_audiocraft(tmp_path / "model", tmp_path / "there")
    convert.from_audiocraft(tmp_path / "there", tmp_path / "back")
    assert same(tensors(tmp_path / "back"), tensors(tmp_path / "model"))
    tiny.assert_equal(made[0], MusicGen.from_pretrained(tmp_path / "there"))


def test_what_is_written_for_audiocraft_is_what_it_writes(original: Path, tmp_path: Path) -> None:
    convert.from_audiocraft(original, tmp_path / "there")
    convert.to_audiocraft(tmp_path / "there", tmp_path / "back")
    for name in ("state_dict.bin", "compression_state_dict.bin"):
        before, after = (torch.load(f / name, weights_only=True, mmap=True) for f in (original, tmp_path / "back"))
        assert before.keys() == after.keys() and isinstance(after["xp.cfg"], str)
        for key, tensor in after["best_state"].items():
            assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0, key
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
        for entry in ("byteorder", "version"):
            texts = []
            for folder in (original, tmp_path / "back"):
                with zipfile.ZipFile(folder / name) as archive:
                    texts.append(archive.read(f"{archive.namelist()[0].partition('/')[0]}/{entry}"))
            assert texts[0] == texts[1] != b""


@pytest.mark.parametrize(
    "width, gated, name",
    [
        (512, False, "t5-small"), (768, False, "t5-base"), (1024, False, "t5-large"), (32, False, "t5-base"),
        (512, True, "google/flan-t5-small"), (768, True, "google/flan-t5-base"), (1024, True, "google/flan-t5-large"),
    ],
)  # fmt: skip
def test_the_t5_that_a_release_names_is_the_public_one_of_its_width(width: int, gated: bool, name: str) -> None:
    decoder = DecoderConfig(width=1536, ffn=4 * 1536, heads=24, text_width=width)
    text = audiocraft.write_decoder(T5Config(width=width, gated=gated), decoder, EncodecConfig())
    assert yaml.safe_load(text)["conditioners"]["description"]["t5"]["name"] == name
    assert audiocraft.text_name(text, "here") == name


@pytest.mark.parametrize(
    "decoder, words",
    [
        ({"ffn_dim": 48}, "ffn_dim"),
        ({"hidden_size": 24, "ffn_dim": 48}, "hidden_size"),
        ({"layerdrop": 0.5}, "layerdrop"),
    ],
)
def test_a_model_that_the_original_layout_has_no_place_for_is_refused(
    decoder: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tiny.musicgen(decoder=decoder | ({"ffn_dim": 128} if "layerdrop" in decoder else {})).save_pretrained(
        tmp_path / "m"
    )
    with pytest.raises(ValueError, match=rf"config\.json: decoder.*{words}"):
        convert.to_audiocraft(tmp_path / "m", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_statistics_that_a_source_lacks_are_made_up(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    state = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not huggingface.STATISTICS.fullmatch(name)}
    assert len(kept) == len(state) - 12
    save_file(kept, folder / "model.safetensors")
    convert.to_audiocraft(folder, tmp_path / "out")
    got = torch.load(tmp_path / "out" / "compression_state_dict.bin", weights_only=True)["best_state"]
    for k in range(4):
        book = f"quantizer.vq.layers.{k}._codebook."
        assert torch.equal(got[book + "embed_avg"], got[book + "embed"])
        assert got[book + "inited"].tolist() == [1] and got[book + "cluster_size"].tolist() == [1] * tiny.CODES


# transformers to transformers


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("name, dtype", convert.DTYPES.items())
def test_another_dtype_holds_what_loading_in_it_gives(
    name: str, dtype: torch.dtype, stored: torch.dtype, tmp_path: Path
) -> None:
    release.model().to(stored).save_pretrained(tmp_path / "m")
    assert run("huggingface", tmp_path / "m", tmp_path / "out", "--dtype", name) == 0
    expected, got = (MusicGen.from_pretrained(tmp_path / path, dtype=dtype).state_dict() for path in ("m", "out"))
    assert same(expected, got)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.") and "torch_dtype" not in config
    assert MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out").dtype == dtype
    if stored == dtype:
        assert same(tensors(tmp_path / "out"), tensors(tmp_path / "m"))
    else:
        sizes = [sum(t.nbytes for t in tensors(tmp_path / path).values()) for path in ("m", "out")]
        ratio = dtype.itemsize / stored.itemsize
        assert sizes[1] == pytest.approx(sizes[0] * ratio, rel=0.15)


def test_an_encodec_alone_is_written_in_another_dtype(tmp_path: Path) -> None:
    codec_of("32 kHz").save_pretrained(tmp_path / "codec")
    convert.from_huggingface(tmp_path / "codec", tmp_path / "same")
    assert same(tensors(tmp_path / "same"), tensors(tmp_path / "codec"))
    assert run("huggingface", tmp_path / "codec", tmp_path / "half", "--dtype", "bf16") == 0
    opened, info = EncodecModel.from_pretrained(tmp_path / "half", output_loading_info=True)
    assert {name: list(value) for name, value in info.items() if value} == {} and opened.dtype == torch.bfloat16


def test_another_dtype_is_told_in_every_section_that_told_one(saved: Path, tmp_path: Path) -> None:
    """In today's spelling: transformers 4 wrote torch_dtype, in the sections too, and 5 opens those parts in it."""
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for section in (config, *(config[name] for name in ("text_encoder", "audio_encoder", "decoder"))):
        section.pop("dtype", None)
    config["text_encoder"]["torch_dtype"] = "float32"
    config["decoder"]["dtype"] = "float32"
    config["decoder"]["id2label"] = {"0": "LABEL_0"}
    file.write_text(json.dumps(config))
    assert run("huggingface", folder, tmp_path / "out", "--dtype", "bf16") == 0
    got = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = config | {"dtype": "bfloat16"}
    expected["text_encoder"] = {k: v for k, v in config["text_encoder"].items() if k != "torch_dtype"}
    expected["text_encoder"]["dtype"] = "bfloat16"
    expected["decoder"] = config["decoder"] | {"dtype": "bfloat16"}
    assert got == expected
    opened = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in opened.parameters()} == {torch.bfloat16}


def old_files(folder: Path) -> None:
    """The directory as it was in 2023: older names, and a .bin file."""
    tiny.hub_layout(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_old_files_become_todays(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    old_files(folder)
    (folder / "spiece.model").write_bytes(tiny.spiece())
    assert run("huggingface", folder, tmp_path / "out", "--shard-size", "100KB") == 0
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "out" / "pytorch_model.bin").exists()
    assert all(
        sum(t.nbytes for t in load_file(shard).values()) <= 100_000 or len(load_file(shard)) == 1 for shard in shards
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(saved).values())
    assert same(tensors(tmp_path / "out"), tensors(saved))
    assert (tmp_path / "out" / "spiece.model").read_bytes() == tiny.spiece()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((folder / name).read_text())
    opened, info = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    tiny.assert_equal(opened, MusicGen.from_pretrained(tmp_path / "out"))


def test_the_files_we_write_are_those_of_safetensors(saved: Path, tmp_path: Path) -> None:
    convert.from_huggingface(saved, tmp_path / "out")
    ours = (tmp_path / "out" / "model.safetensors").read_bytes()
    state = load_file(saved / "model.safetensors")
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize(
    "text, number",
    [
        ("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("100", 100), ("1KB", 1000), ("1", 1),
        ("3MiB", 3 * 2**20), (" 2kib ", 2048), ("0" * 26 + "2GB", 2 * 10**9),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.9", "2TB", "1e9", "nan", "0" * 27 + "2GB", "9" * 400])
def test_a_size_that_is_none_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("huggingface", tmp_path, tmp_path / "out", f"--shard-size={text}")
    assert "must be a size like 2GB" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["audiocraft", "huggingface", "to-audiocraft"])
def test_the_wrong_layout_is_refused(
    command: str, original: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved if command == "audiocraft" else original
    assert run(command, source, tmp_path / "out") == 2
    assert f"{source}: is in " in capsys.readouterr().err
    assert run(command, tmp_path / "nowhere", tmp_path / "out") == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# verify


def test_verify_shows_what_differs(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.from_audiocraft(original, tmp_path / "out")
    assert run("verify", original, tmp_path / "out") == 0
    table = capsys.readouterr().out
    assert table.count("same") == 7 and "DIFFERENT" not in table
    file = tmp_path / "out" / "model.safetensors"
    state = load_file(file)
    state["decoder.lm_heads.1.weight"] += 0.01
    save_file(state, file, {"format": "pt"})
    assert run("verify", original, tmp_path / "out") == 1
    differing = {row.what for row in verify(original, tmp_path / "out") if not row.agree}
    assert {"logits with text", "logits without text"} <= differing
    assert not any("codec" in what or "states" in what for what in differing)
    assert run("verify", original, tmp_path / "out", "--tolerance", "1e9") == 0
    # No tolerance is for other codes, nor for NaN, which is in the logits alone: of the codes it makes others.
    changed = state | {"decoder.lm_heads.1.weight": -state["decoder.lm_heads.1.weight"]}
    save_file(changed, file, {"format": "pt"})
    assert [row.what for row in verify(original, tmp_path / "out", 1e9) if not row.agree] == ["greedy codes"]
    state["decoder.lm_heads.1.weight"][0, 0] = float("nan")
    save_file(state, file, {"format": "pt"})
    told, *differing = [row.what for row in verify(original, tmp_path / "out", 1e9) if not row.agree]
    assert set(differing) == {"logits with text", "logits without text", "greedy codes"}
    values = state["decoder.lm_heads.1.weight"].numel()
    assert told.startswith(f"{tmp_path / 'out'}: NaN or infinity in 1 of ")
    assert told.endswith(f" tensors: decoder.lm_heads.1.weight (1 of {values})")
    assert run("verify", original, tmp_path / "out", "--tolerance", "1e9") == 1
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("tolerance", [-1, -1e-9, float("nan"), float("inf"), True, "1e-5", None], ids=repr)
def test_a_tolerance_of_nothing_is_refused_before_anything_is_read(tolerance: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tolerance must be a finite number from 0"):
        verify(tmp_path / "absent", tmp_path / "absent", tolerance)


KINDS_OF_DTYPE = [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int64, "bf16", "float16", 16]


@pytest.mark.parametrize("dtype", KINDS_OF_DTYPE, ids=str)
def test_a_dtype_of_which_no_model_can_be_loaded_is_refused(
    dtype: Any, saved: Path, original: Path, tmp_path: Path
) -> None:
    for convert_model, source in ((convert.from_huggingface, saved), (convert.from_audiocraft, original)):
        with pytest.raises(ValueError, match=r"dtype must be None or one of .*float32.*bfloat16"):
            convert_model(source, tmp_path / "out", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -1, float("nan"), True, 1e9, "2GB"], ids=repr)
def test_a_size_that_no_file_could_have_is_refused(size: Any, saved: Path, original: Path, tmp_path: Path) -> None:
    for convert_model, source in ((convert.from_huggingface, saved), (convert.from_audiocraft, original)):
        with pytest.raises(ValueError, match="shard_size must be None or a whole number of bytes above 0"):
            convert_model(source, tmp_path / "out", shard_size=size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_written_in_any_dtype_that_is_allowed_loads(dtype: torch.dtype, saved: Path, tmp_path: Path) -> None:
    convert.from_huggingface(saved, tmp_path / "out", dtype=dtype, shard_size=50_000)
    MusicGen.from_pretrained(tmp_path / "out")


def test_a_source_that_is_a_link_to_itself_is_file_not_found(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for convert_model in (convert.from_huggingface, convert.from_audiocraft, convert.to_audiocraft):
        with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
            convert_model(tmp_path / "loop", tmp_path / "out")


def test_verify_compares_all_that_a_checkpoint_computes_from_one_input(original: Path, tmp_path: Path) -> None:
    one, other = outputs(original), outputs(original)
    of_codec = ["latents of the codec", "codes of the codec", "audio of the codec"]
    assert list(one) == ["text states", "logits with text", "logits without text", "greedy codes", *of_codec]
    assert all(torch.equal(one[what], other[what]) for what in one)
    assert one["greedy codes"].unique().numel() > 4 and one["codes of the codec"].unique().numel() > 4
    # Many tokens, not the first ones alone: a row of the text's table for each codebook is no table.
    convert.from_audiocraft(original, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    state = load_file(file)
    for k in range(4):
        state[f"decoder.model.decoder.embed_tokens.{k}.weight"][-1] += 1  # of the special token, which is among them
    state["text_encoder.shared.weight"][release.model().config.decoder.num_codebooks :] += 0.1
    save_file(state, file, {"format": "pt"})
    differing = {row.what for row in verify(original, tmp_path / "out") if not row.agree}
    assert {"text states", "logits without text"} <= differing
    # Of an EnCodec alone, in both layouts.
    (tmp_path / "codec").mkdir()
    shutil.copy(original / "compression_state_dict.bin", tmp_path / "codec")
    convert.from_audiocraft(tmp_path / "codec", tmp_path / "theirs")
    rows = verify(tmp_path / "codec", tmp_path / "theirs")
    assert [row.what for row in rows] == of_codec and all(row.agree for row in rows)


def test_verify_of_other_sizes_is_an_error(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release.write(release.model("stereo"), tmp_path / "stereo")
    for pair in ((original, tmp_path / "stereo"), (tmp_path / "stereo", original)):
        assert run("verify", *pair) == 2
        assert "not of the same sizes" in capsys.readouterr().err


def test_the_command_line_runs_as_a_module(original: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "weights_convert", "audiocraft", str(original), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}: written\n"), done.stderr
    assert (
        MusicGen.from_pretrained(tmp_path / "out").generate(["rain"], GenerationOptions(frames=2)).codes.shape[1] == 4
    )


# What is refused


@pytest.mark.parametrize(
    "path, value",
    [
        ("transformer_lm__norm_first", False), ("transformer_lm__bias_ff", True), ("transformer_lm__kv_repeat", 2),
        ("transformer_lm__positional_embedding", "rope"), ("transformer_lm__xpos", True),
        ("transformer_lm__layer_scale", 0.1), ("transformer_lm__qk_layer_norm", True),
        ("transformer_lm__past_context", 10), ("transformer_lm__activation", "tanh"), ("lm_model", "magnet"),
        ("transformer_lm__num_heads", 5), ("transformer_lm__num_heads", 0), ("transformer_lm__num_heads", ...),
        ("transformer_lm__num_layers", 10**9), ("transformer_lm__num_layers", -1), ("transformer_lm__dim", 1.5),
        ("transformer_lm__dim", float("nan")), ("transformer_lm__card", "many"), ("transformer_lm__n_q", None),
        ("codebooks_pattern__delay__delays", [0, 1, 2, 2.0]), ("codebooks_pattern__delay__delays", [0, 0, 0, -1]),
        ("codebooks_pattern__delay__delays", [0, 1, 2]), ("codebooks_pattern__delay__delays", [0, 1, 2, 1001]),
        ("codebooks_pattern__delay__delays", 3), ("codebooks_pattern__modeling", "parallel"),
        ("codebooks_pattern__delay__flatten_first", 1), ("interleave_stereo_codebooks__use", 1),
        ("interleave_stereo_codebooks__per_timestep", True), ("fuser__prepend", ["description"]),
        ("fuser__cross", []), ("conditioners__description__model", "clap"), ("conditioners", {}),
        ("conditioners__self_wav", {"model": "chroma_stem"}), ("conditioners__description__t5__finetune", True),
        ("conditioners__description__t5__name", "../../etc"), ("transformer_lm__attention_dropout", "x"),
    ],
)  # fmt: skip
def test_a_decoder_of_another_kind_is_refused_by_its_setting(
    path: str, value: Any, original: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    release.write_lm(release.model(), folder, **{path: value})
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder / 'state_dict.bin'))}: .*") as caught:
        MusicGen.from_pretrained(folder)
    last = path.split("__")[-1]
    assert last in str(caught.value) or path.split("__")[0] in str(caught.value)


@pytest.mark.parametrize(
    "path, value",
    [
        ("compression_model", "dac"), ("encodec__autoencoder", "other"), ("encodec__quantizer", "no_quant"),
        ("seanet__activation", "ReLU"), ("seanet__activation_params", {"alpha": 0.5}), ("seanet__norm", "none"),
        ("seanet__pad_mode", "circular"), ("seanet__disable_norm_outer_blocks", 1), ("seanet__ratios", [4, -2]),
        ("seanet__ratios", []), ("seanet__ratios", [2] * 1000), ("seanet__ratios", ...), ("seanet__lstm", 0),
        ("seanet__lstm", 10**9), ("seanet__n_residual_layers", 10**9), ("seanet__encoder", {"lstm": 1}),
        ("seanet__decoder__final_activation", "Tanh"), ("seanet__causal", True), ("seanet__channels", 2),
        ("rvq__n_q", 10**9), ("rvq__n_q", 0), ("rvq__bins", 63), ("encodec__sample_rate", "???"),
        ("encodec__sample_rate", "${nothing}"), ("seanet__kernel_size", 10**9), ("seanet__n_filters", 2**30),
    ],
)  # fmt: skip
def test_a_codec_of_another_kind_is_refused_by_its_setting(path: str, value: Any, tmp_path: Path) -> None:
    release.write_codec(codec_of("32 kHz"), tmp_path, 4, **{path: value})
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}.*") as caught:
        load_codec(tmp_path)
    sized = path in ("seanet__kernel_size", "seanet__n_filters")  # found out by the shapes of the tensors
    assert path.split("__")[-1] in str(caught.value) or (
        sized and ("shape" in str(caught.value) or "size" in str(caught.value))
    )


def test_every_tensor_that_does_not_fit_is_listed_with_its_nearest(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    content = torch.load(folder / "state_dict.bin", weights_only=True)
    state = content["best_state"]
    state["transformer.layers.0.selfattn.out_proj.weight"] = state.pop("transformer.layers.0.self_attn.out_proj.weight")
    state["emb.9.weight"] = torch.zeros(65, 32)
    state["linears.0.weight"] = torch.zeros(64, 31)
    torch.save(content, folder / "state_dict.bin")
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        MusicGen.from_pretrained(folder)
    message = str(caught.value)
    assert "2 left over: lm:emb.9.weight" in message and "1 missing: lm:transformer.layers.0.self_attn.out_" in message
    assert (
        "lm:transformer.layers.0.selfattn.out_proj.weight (nearest missing: "
        "lm:transformer.layers.0.self_attn.out_proj.weight)"
    ) in message
    assert "lm:linears.0.weight (64, 31), expected (64, 32)" in message


class DictConfig(dict):  # type: ignore[type-arg]
    """Stands for omegaconf's class of that name, which torch must not build."""


DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"


def package(folder: Path, edit: Callable[[dict[str, Any]], Any], name: str = "state_dict.bin") -> Path:
    content = torch.load(folder / name, weights_only=True)
    edit(content)
    torch.save(content, folder / name)
    return folder / name


def test_a_configuration_of_omegaconf_is_refused_with_the_way_out(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    module = SimpleNamespace(DictConfig=DictConfig)
    monkeypatch.setitem(sys.modules, "omegaconf", SimpleNamespace(dictconfig=module))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    file = package(folder, lambda content: content.update({"xp.cfg": DictConfig(a=1)}))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}.*omegaconf.*trust.*OmegaConf\.to_yaml"):
        MusicGen.from_pretrained(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"xp.cfg": None}, "xp.cfg must be a text"),
        ({"xp.cfg": "a: &x 1"}, "line 1"),
        ({"xp.cfg": ""}, ""),
        ({"best_state": [1]}, "tensors by name"),
        ({"best_state": {}}, "tensors by name"),
        ({"best_state": {"emb.0.weight": 3}}, "emb.0.weight"),
        ({"best_state": {3: torch.zeros(1)}}, "names must be strings"),
        ({"best_state": {"a": torch.zeros(1).expand(10**6)}}, "claim"),
        ({"best_state": {"a": torch.zeros(2, dtype=torch.int32)}}, "a must be one of"),
        ({"best_state": {"a": torch.zeros(2, dtype=torch.complex64)}}, "a must be a dense tensor"),
        ({"best_state": {"a": torch.zeros(2).to_sparse()}}, "a must be a dense tensor"),
        ({"pretrained": "facebook/encodec_32khz"}, "facebook/encodec_32khz"),
    ],
)
@pytest.mark.parametrize("name", ["state_dict.bin", "compression_state_dict.bin"])
def test_a_package_of_something_else_is_refused(
    name: str, change: dict[str, Any], words: str, original: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "release"))
    file = package(folder, lambda content: content.update(change), name)
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}.*{re.escape(words)}"):
        MusicGen.from_pretrained(folder)


# The command line's options


@pytest.fixture(scope="module")
def separate(original: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A release without its T5, and the directory of that."""
    folder = tmp_path_factory.mktemp("separate") / "release"
    shutil.copytree(original, folder)
    (folder / "t5-base").rename(folder.parent / "mine")
    return folder, folder.parent / "mine"


OPTIONS = {
    "audiocraft": ("", "--text-encoder", "--dtype", "--shard-size", "--overwrite"),
    "huggingface": ("", "--dtype", "--shard-size", "--overwrite"),
    "to-audiocraft": ("", "--overwrite"),
}


@pytest.mark.parametrize("command, option", [(command, option) for command in OPTIONS for option in OPTIONS[command]])
def test_every_option_gives_what_the_library_gives_with_it(
    command: str, option: str, separate: tuple[Path, Path], original: Path, saved: Path, target: Path
) -> None:
    convert_model: Callable[..., None] = {
        "audiocraft": convert.from_audiocraft,
        "huggingface": convert.from_huggingface,
        "to-audiocraft": convert.to_audiocraft,
    }[command]
    source, to, expected = original if command == "audiocraft" else saved, target.parent / "to", target.parent / "alike"
    values: dict[str, tuple[Any, ...]] = {"": (), "--overwrite": (), "--dtype": ("bf16",), "--shard-size": ("50KB",)}
    named: dict[str, Any] = {"--dtype": {"dtype": torch.bfloat16}, "--shard-size": {"shard_size": 50_000}}
    if option == "--text-encoder":
        source, given = separate
        values[option], named[option] = (given,), {"text_encoder": given}
    if option == "--overwrite":
        to = target
    assert run(command, source, to, *filter(None, [option]), *values[option]) == 0
    convert_model(source, expected, **named.get(option, {}))
    assert contents(to) == contents(expected)
    if option in ("--dtype", "--shard-size"):
        convert_model(source, target.parent / "plain")
        assert contents(target.parent / "plain") != contents(expected)


@pytest.mark.parametrize("command", ["huggingface", "to-audiocraft"])
def test_a_variant_is_what_the_conversion_reads(command: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    state = load_file(folder / "model.safetensors")
    state["decoder.lm_heads.1.weight"] += 1
    save_file(state, folder / "model.fp32.safetensors", {"format": "pt"})
    assert run(command, folder, tmp_path / "variant", "--variant", "fp32") == 0
    assert run(command, folder, tmp_path / "plain") == 0
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert run(command, folder, tmp_path / "expected") == 0
    assert contents(tmp_path / "variant") == contents(tmp_path / "expected") != contents(tmp_path / "plain")


# The place of the result


def test_what_is_there_is_replaced_only_if_asked(
    original: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(target.parent)
    assert run("audiocraft", original, target) == 2
    assert "--overwrite" in capsys.readouterr().err and contents(target.parent) == before
    (target / "pytorch_model.bin").write_text("older weights")
    assert run("audiocraft", original, target, "--overwrite") == 0
    assert not (target / "pytorch_model.bin").exists()
    assert MusicGen.from_pretrained(target).tokenizer is not None
    assert [file.name for file in target.parent.iterdir()] == ["model"]


def test_a_directory_with_more_than_a_checkpoint_is_never_replaced(original: Path, target: Path) -> None:
    (target / "notes.txt").write_text("the user's")
    before = contents(target.parent)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        convert.from_audiocraft(original, target, overwrite=True)
    assert contents(target.parent) == before


def test_a_file_or_a_link_is_never_replaced(original: Path, target: Path) -> None:
    (target.parent / "file").write_text("the user's")
    (target.parent / "link").symlink_to(target)
    for name in ("file", "link"):
        with pytest.raises(ValueError, match=name):
            convert.from_audiocraft(original, target.parent / name, overwrite=True)
    with pytest.raises(FileNotFoundError, match="absent"):
        convert.from_audiocraft(original, target.parent / "absent" / "model")


def test_what_is_read_is_never_replaced(original: Path, saved: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(original, tmp_path / "all" / "release"))
    model = Path(shutil.copytree(saved, tmp_path / "all" / "model"))
    before = contents(tmp_path)
    for target in (source, source.parent, source / "t5-base"):
        with pytest.raises(ValueError, match=f"{target}: must be another directory"):
            convert.from_audiocraft(source, target, text_encoder=source / "t5-base", overwrite=True)
    shutil.copytree(source / "t5-base", tmp_path / "t5")  # which lies outside of the source
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{source}: must be another directory"):
        convert.from_audiocraft(source, source, text_encoder=tmp_path / "t5", overwrite=True)
    for convert_model in (convert.from_huggingface, convert.to_audiocraft):
        with pytest.raises(ValueError, match=f"{model}: must be another directory"):
            convert_model(model, model, overwrite=True)
    assert contents(tmp_path) == before


COMMANDS: dict[str, Callable[[Path, Path, Path], None]] = {
    "audiocraft": lambda original, saved, to: convert.from_audiocraft(original, to, overwrite=True),
    "huggingface": lambda original, saved, to: convert.from_huggingface(saved, to, overwrite=True),
    "to-audiocraft": lambda original, saved, to: convert.to_audiocraft(saved, to, overwrite=True),
}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_error_and_changes_nothing(
    command: str, existing: bool, original: Path, saved: Path, target: Path
) -> None:
    before = contents(target.parent)
    to = target if existing else target.parent / "new"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # a file cannot grow beyond it
    try:
        with pytest.raises(OSError, match=re.escape(str(to))) as caught:
            COMMANDS[command](original, saved, to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and "nothing written" in str(caught.value)
    assert contents(target.parent) == before


def test_a_disk_without_room_is_an_error_before_any_work(
    original: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(convert, "write_weights", None)
    assert run("audiocraft", original, target.parent / "new") == 2
    assert "0.00 GB free" in capsys.readouterr().err and not (target.parent / "new").exists()


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_at_any_tensor_or_move_changes_nothing(
    command: str, existing: bool, original: Path, saved: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, to = contents(target.parent), target if existing else target.parent / "new"
    calls = 0

    def stops(call: Callable[..., Any], at: int) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return call(*arguments, **named)

        return counted

    def refused(*_: Path) -> None:
        raise OSError(errno.EINVAL, "directories cannot exchange their names here")

    steps: list[tuple[Any, str, int, bool]] = [(files, "_bytes", 100, True), (os, "rename", 1, True)]
    if existing:  # or else there is one move only
        steps += [(atomic, "_exchange", 1, True), (os, "replace", 1, False), (os, "rename", 2, False)]
        steps += [(os, "rename", 3, False), (os, "rename", 4, False)]
    for owner, name, last, exchange in steps:
        calls = 0
        with monkeypatch.context() as patch:
            if not exchange:
                patch.setattr(atomic, "_exchange", refused)
            patch.setattr(owner, name, stops(getattr(owner, name), last))
            with pytest.raises(KeyboardInterrupt):
                COMMANDS[command](original, saved, to)
        assert contents(target.parent) == before
        assert [file.name for file in target.parent.iterdir()] == ["model"]


def test_the_command_line_says_that_it_was_stopped(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "write_weights", stopped)
    assert run("audiocraft", original, tmp_path / "out") == 130
    assert "nothing written" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# The original's own numbers

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "audiocraft"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs what the original code computed")


def arrays(*path: str) -> Any:
    import numpy as np

    return np.load(DATA.joinpath(*path))


def near(got: Tensor, expected: Any, tolerance: float = 1e-5) -> bool:
    """Within `tolerance` of the largest expected value, which is at least 1 in every array compared here."""
    expected = torch.from_numpy(expected)
    return bool((got - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max())))


@pytest.fixture(scope="module", params=["opened directly", "converted"])
def theirs(request: pytest.FixtureRequest, kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MusicGen]:
    path = DATA / kind
    if request.param == "converted":
        path = tmp_path_factory.mktemp("converted") / "out"
        convert.from_audiocraft(DATA / kind, path)
    return kind, MusicGen.from_pretrained(path)


@needs_data
@torch.no_grad()
def test_text_and_logits_are_the_originals(theirs: tuple[str, MusicGen]) -> None:
    kind, model = theirs
    text, lm = arrays(kind, "text.npz"), arrays(kind, "lm.npz")
    sequence = torch.from_numpy(lm["sequence"]).long()
    ids, mask = model.tokenizer([str(each) for each in text["texts"]])
    assert torch.equal(ids.int() * mask, torch.from_numpy(text["input_ids"]) * mask)
    for i in range(3):
        alone = torch.from_numpy(text[f"single{i}_input_ids"]).long()
        memory, kept = model.encode_text((alone, torch.ones_like(alone)))
        assert memory is not None and near(memory, text[f"single{i}_proj"])
        assert near(model.text_encoder(alone), text[f"single{i}_t5_hidden"])
        logits = model.decoder(sequence[i : i + 1], memory, kept)
        assert near(logits, lm[f"single{i}_logits_cond"])
    null = model.decoder(sequence)
    assert near(null, lm["logits_null"])
    # In a batch the original lets padding into the softmax as keys of zero; only the longest text has none.
    longest = int(mask.sum(1).argmax())
    one = slice(longest, longest + 1)
    memory, kept = model.encode_text((ids[one], mask[one]))
    logits = model.decoder(sequence[one], memory, kept)
    assert near(logits, lm["logits_cond"][one])
    assert near(null[one] + 3 * (logits - null[one]), lm["logits_cfg3"][one])
    if kind == "mono":
        other = int(mask.sum(1).argmin())
        apart = model.decoder(sequence[[other]], *model.encode_text((ids[[other]], mask[[other]])))
        assert not near(apart, lm["logits_cond"][[other]])  # or the exception above would be for nothing


@needs_data
def test_greedy_codes_are_the_originals(theirs: tuple[str, MusicGen]) -> None:
    kind, model = theirs
    texts, gen = arrays(kind, "text.npz")["texts"], arrays(kind, "gen.npz")
    options = GenerationOptions(frames=40, greedy=True)
    for i, text in enumerate(texts):
        got = model.generate([str(text)], options)
        assert torch.equal(got.codes, torch.from_numpy(gen[f"single{i}_greedy"]).long())
        prompt = torch.from_numpy(gen["prompt"][i : i + 1]).long()
        got = model.generate([str(text)], options, prompt=prompt)
        assert torch.equal(got.codes, torch.from_numpy(gen[f"single{i}_cont"]).long())
    assert torch.equal(model.generate([None, None], options).codes, torch.from_numpy(gen["greedy_uncond"]).long())


@needs_data
@torch.no_grad()
@pytest.mark.parametrize("where", ["mono", "stereo", "codec24", "codec24/variant_cfg"])
@pytest.mark.parametrize("converted", [False, True], ids=["opened directly", "converted"])
def test_the_codec_is_the_originals(where: str, converted: bool, tmp_path: Path) -> None:
    path = tmp_path / "codec"
    path.mkdir()
    shutil.copy(DATA / where / "compression_state_dict.bin", path)
    if converted:
        convert.from_audiocraft(path, tmp_path / "out")
        path = tmp_path / "out"
    codec, expected = load_codec(path), arrays(*where.split("/"), "codec.npz")
    assert (codec.config.hop, codec.config.sampling_rate) == (int(expected["hop"]), int(expected["sample_rate"]))
    for n in expected["lengths"]:
        wav = torch.from_numpy(expected[f"L{n}_wav"])
        chunk = codec.encode(wav, codec.config.codebooks)[0]
        assert near(codec.encoder(wav), expected[f"L{n}_latent"])
        assert torch.equal(chunk.codes, torch.from_numpy(expected[f"L{n}_codes"]).long())
        assert near(codec.quantizer.decode(chunk.codes), expected[f"L{n}_quantized"])
        assert near(codec.decode([chunk]), expected[f"L{n}_audio"])
    for key in [key for key in expected.files if re.fullmatch(r"(F\d+|nq2)_codes", key)]:
        codes = torch.from_numpy(expected[key]).long()
        assert near(codec.decode([checkpoint_chunk(codes)]), expected[key.replace("codes", "audio")])


def checkpoint_chunk(codes: Tensor) -> Any:
    from musicgen_ref.encodec import Chunk

    return Chunk(codes)


@needs_data
@torch.no_grad()
def test_audio_is_the_originals(theirs: tuple[str, MusicGen]) -> None:
    kind, model = theirs
    gen, codec = arrays(kind, "gen.npz"), arrays(kind, "codec.npz")
    assert near(model.decode(torch.from_numpy(gen["greedy_batch"][:2]).long()), gen["api_audio"])
    if kind == "stereo":
        for key in ("S4480", "S3277"):
            wav = torch.from_numpy(codec[f"{key}_wav"])
            codes = model.encode(wav, model.sampling_rate)
            assert torch.equal(codes, torch.from_numpy(codec[f"{key}_codes"]).long())
            assert near(model.decode(codes), codec[f"{key}_audio"])


@needs_data
def test_the_originals_tensors_come_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    convert.from_audiocraft(DATA / kind, tmp_path / "there")
    convert.to_audiocraft(tmp_path / "there", tmp_path / "back")
    assert same(tensors(tmp_path / "back"), tensors(DATA / kind))
    assert read_configs(DATA / kind) == read_configs(tmp_path / "back")
