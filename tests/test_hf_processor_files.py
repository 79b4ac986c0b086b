"""Files that say how audio is prepared: another model's, damaged, EnCodec's own; they stop the processor at most."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from musicgen_ref import GenerationOptions, MusicGen, hf
from musicgen_ref.__main__ import main
from tests import release, tiny
from tests.test_hf_processor import same
from weights_convert.__main__ import main as convert

# What lies in directories of the Hub.
MELODY = {
    "chunk_length": 30, "feature_extractor_type": "MusicgenMelodyFeatureExtractor", "feature_size": 12,
    "hop_length": 4096, "n_fft": 16384, "num_chroma": 12, "padding_side": "left", "padding_value": 0.0,
    "processor_class": "MusicgenMelodyProcessor", "return_attention_mask": True, "sampling_rate": 32000,
    "stem_indices": [3, 2],
}  # fmt: skip
ENCODEC = {
    "chunk_length_s": None, "feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "overlap": None,
    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": 24000,
}  # fmt: skip
RELEASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "24 kHz": ({"sampling_rate": 24000}, {}),
    "32 kHz": ({"sampling_rate": 32000, "use_causal_conv": False}, {"sampling_rate": 32000}),
    "48 kHz": (
        {"sampling_rate": 48000, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}
        | {"norm_type": "time_group_norm", "use_causal_conv": False, "target_bandwidths": [3.0, 6.0, 12.0, 24.0]},
        {"sampling_rate": 48000, "feature_size": 2, "chunk_length_s": 1.0, "overlap": 0.01},
    ),
}
AUTO = ("AutoProcessor", "AutoFeatureExtractor", "EncodecFeatureExtractor")
TEXTS = ["a calm piano", "loud drums"]
Model = hf.MusicgenForConditionalGeneration


def codes_of(folder: Path) -> Tensor:
    return MusicGen.from_pretrained(folder).generate(TEXTS, GenerationOptions(frames=9, greedy=True)).codes


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MusicGen with its own processor and tokenizer; not to be written to."""
    return tiny.complete(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def plain_codes(plain: Path) -> Tensor:
    return codes_of(plain)


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "model")


# file, its content, what its message says beside the file
FOREIGN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "melody's": ("preprocessor_config.json", json.dumps(MELODY), ("feature_size must be 1", "got 12")),
    "melody's, of transformers 5": (
        "processor_config.json", json.dumps({"feature_extractor": MELODY}), ("feature_size must be 1", "got 12")
    ),
    "another kind": (
        "preprocessor_config.json", json.dumps(MELODY | {"feature_size": 1, "sampling_rate": tiny.RATE}),
        ("feature_extractor_type must be 'EncodecFeatureExtractor'", "got 'MusicgenMelodyFeatureExtractor'"),
    ),
    "another rate": (
        "preprocessor_config.json", json.dumps(ENCODEC), (f"sampling_rate must be {tiny.RATE}", "got 24000")
    ),
    "another rate, of transformers 5": (
        "processor_config.json", json.dumps({"feature_extractor": ENCODEC}), ("sampling_rate must be", "got 24000")
    ),
    "other channels": (
        "preprocessor_config.json", json.dumps(ENCODEC | {"sampling_rate": tiny.RATE, "feature_size": 2}),
        ("feature_size must be 1", "got 2"),
    ),
    "no number": ("preprocessor_config.json", '{"sampling_rate": null}', ("sampling_rate must be", "got None")),
    "another padding": (
        "preprocessor_config.json", '{"padding_side": "middle"}', ("padding_side must be 'left' or 'right'", "'middle'")
    ),
    "padded with noise": ("preprocessor_config.json", '{"padding_value": 1}', ("padding_value must be 0", "got 1")),
    "a chunk of nothing": ("preprocessor_config.json", '{"chunk_length_s": 0.001}', ("chunk_length_s must be", "0.00")),
    "damaged": ("preprocessor_config.json", '{"feature_size": ', ()),
    "damaged, of transformers 5": ("processor_config.json", "", ()),
    "a list": ("preprocessor_config.json", "[]", ()),
    "no section": ("processor_config.json", '{"feature_extractor": 3}', ("feature_extractor must be an object", "3")),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_stops_the_processor_and_not_the_model(case: str, folder: Path, plain_codes: Tensor) -> None:
    name, content, words = FOREIGN[case]
    (folder / name).write_text(content)
    assert torch.equal(codes_of(folder), plain_codes)
    for kind in (hf.AutoProcessor, hf.MusicgenProcessor, hf.EncodecFeatureExtractor):
        with pytest.raises(ValueError) as caught:
            kind.from_pretrained(folder)
        message = str(caught.value)
        assert message.startswith(f"{folder / name}: ")
        assert all(word in message for word in words), message
        assert "remove the file" in message
        assert "EncodecFeatureExtractor of your own" in message
        assert "\n" not in message
    # Both ways that it names.
    tokenizer = hf.T5Tokenizer.from_pretrained(folder)
    made = hf.MusicgenProcessor(hf.EncodecFeatureExtractor(1, tiny.RATE, padding_side="left"), tokenizer)
    (folder / name).unlink()
    again = hf.AutoProcessor.from_pretrained(folder)
    arguments = {"text": TEXTS, "audio": [np.ones(9), np.ones(5)], "padding": True, "return_tensors": "pt"}
    same(again(**arguments), made(**arguments))


def test_the_facade_generates_beside_a_foreign_file(folder: Path) -> None:
    plain = Model.from_pretrained(folder)
    inputs = hf.AutoProcessor.from_pretrained(folder)(text=TEXTS, padding=True, return_tensors="pt")
    (folder / "preprocessor_config.json").write_text(json.dumps(MELODY))
    expected = plain.generate(**inputs, max_new_tokens=9)
    assert torch.equal(Model.from_pretrained(folder).generate(**inputs, max_new_tokens=9), expected)
    parts = Model.from_sub_models_pretrained(folder, folder, folder)
    assert torch.equal(parts.generate(**inputs, max_new_tokens=9), expected)
    piped = hf.pipeline("text-to-audio", folder)(TEXTS[0], generate_kwargs={"max_new_tokens": 9})
    alone = plain.generate(**hf.T5Tokenizer.from_pretrained(folder)(TEXTS[:1], return_tensors="pt"), max_new_tokens=9)
    assert torch.equal(torch.from_numpy(piped["audio"]), alone[0, 0])


def test_the_command_lines_work_beside_a_foreign_file(
    folder: Path, tmp_path: Path, plain_codes: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", TEXTS[0], "--seconds", "0.2", "--greedy", "--seed", "0", "--model", str(folder), "-o"]
    assert main([*arguments, str(tmp_path / "plain.wav")]) == 0
    (folder / "preprocessor_config.json").write_text(json.dumps(MELODY))
    assert main([*arguments, str(tmp_path / "foreign.wav")]) == 0
    assert (tmp_path / "foreign.wav").read_bytes() == (tmp_path / "plain.wav").read_bytes()
    assert main(["info", str(folder)]) == 0
    assert f"{tiny.RATE} Hz, mono" in capsys.readouterr().out
    assert convert(["huggingface", str(folder), str(tmp_path / "copy")]) == 0
    kept = (tmp_path / "copy" / "preprocessor_config.json").read_bytes()
    assert kept == (folder / "preprocessor_config.json").read_bytes()
    assert torch.equal(codes_of(tmp_path / "copy"), plain_codes)
    assert convert(["verify", str(folder), str(tmp_path / "copy")]) == 0


def test_a_foreign_file_stops_no_conversion_to_the_original_layout(tmp_path: Path) -> None:
    release.model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps({"feature_extractor": MELODY}))
    assert convert(["to-audiocraft", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert convert(["verify", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    tiny.codec(tiny.codec_config()).save_pretrained(tmp_path / "codec")
    (tmp_path / "codec" / "preprocessor_config.json").write_text(json.dumps(ENCODEC))  # another rate
    assert convert(["to-audiocraft", str(tmp_path / "codec"), str(tmp_path / "codec out")]) == 0
    assert convert(["verify", str(tmp_path / "codec"), str(tmp_path / "codec out")]) == 0


# Which file is read, and what it leaves out


def test_the_file_of_transformers_5_is_read_first_as_there(folder: Path) -> None:
    own = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": own | {"padding_side": "right"}}))
    (folder / "preprocessor_config.json").write_text(json.dumps(MELODY))
    assert transformers.EncodecFeatureExtractor.from_pretrained(folder).padding_side == "right"
    assert hf.EncodecFeatureExtractor.from_pretrained(folder).padding_side == "right"
    # Without a section for audio it says nothing of it.
    (folder / "processor_config.json").write_text('{"processor_class": "MusicgenProcessor", "sampling_rate": 7}')
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    assert transformers.EncodecFeatureExtractor.from_pretrained(folder).padding_side == "left"
    assert hf.EncodecFeatureExtractor.from_pretrained(folder).to_dict() == {
        key: value for key, value in own.items() if key != "processor_class"
    }


def test_padding_is_on_the_right_where_nothing_says_otherwise(folder: Path) -> None:
    assert hf.EncodecFeatureExtractor().to_dict() == transformers.EncodecFeatureExtractor().to_dict()
    assert hf.EncodecFeatureExtractor().padding_side == "right"
    assert hf.AutoProcessor.from_pretrained("demo").feature_extractor.padding_side == "left"
    assert hf.AutoProcessor.from_pretrained(folder).feature_extractor.padding_side == "left"
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "padding_side"}))
    theirs, ours = (kind.from_pretrained(folder) for kind in (transformers.AutoProcessor, hf.AutoProcessor))
    assert theirs.feature_extractor.padding_side == ours.feature_extractor.padding_side == "right"
    file.unlink()  # a MusicGen's own
    assert hf.AutoProcessor.from_pretrained(folder).feature_extractor.padding_side == "left"


def test_a_processor_alone_opens_without_a_model(plain: Path, tmp_path: Path) -> None:
    transformers.AutoProcessor.from_pretrained(plain).save_pretrained(tmp_path / "theirs")
    hf.AutoProcessor.from_pretrained(plain).save_pretrained(tmp_path / "ours")
    arguments = {"text": TEXTS, "audio": [np.ones(9), np.ones(5)], "padding": True, "return_tensors": "pt"}
    expected = transformers.AutoProcessor.from_pretrained(plain)(**arguments)
    for name in ("theirs", "ours"):
        assert not (tmp_path / name / "config.json").exists()
        same(hf.AutoProcessor.from_pretrained(tmp_path / name)(**arguments), expected)
    with pytest.raises(FileNotFoundError, match=re.escape("config.json")):
        hf.AutoFeatureExtractor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", RELEASES)
def test_an_extractor_alone_opens_without_a_model(name: str, tmp_path: Path) -> None:
    """Saved by either library, read by either."""
    fields = {key: value for key, value in (ENCODEC | RELEASES[name][1]).items() if key != "feature_extractor_type"}
    for library, other in ((transformers, hf), (hf, transformers)):
        made = library.EncodecFeatureExtractor(**fields)
        made.save_pretrained(tmp_path / library.__name__)
        for kind in (other.EncodecFeatureExtractor, other.AutoFeatureExtractor, other.AutoProcessor):
            assert kind.from_pretrained(tmp_path / library.__name__).to_dict() == made.to_dict()


def test_a_tokenizer_alone_opens_without_a_model(plain: Path, tmp_path: Path) -> None:
    hf.T5Tokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    for kind in (hf.AutoTokenizer, hf.AutoProcessor, transformers.AutoTokenizer):
        opened = kind.from_pretrained(tmp_path)
        assert type(opened).__name__.startswith("T5Tokenizer")
        assert opened(TEXTS).input_ids == hf.T5Tokenizer.from_pretrained(plain)(TEXTS).input_ids


# Saving


def test_saving_replaces_a_foreign_file(folder: Path, plain_codes: Tensor) -> None:
    for content in (json.dumps(MELODY), "damaged"):
        (folder / "preprocessor_config.json").write_text(content)
        MusicGen.from_pretrained(folder).save_pretrained(folder)
        assert hf.AutoProcessor.from_pretrained(folder).feature_extractor.feature_size == 1
        assert transformers.AutoProcessor.from_pretrained(folder).feature_extractor.feature_size == 1
        assert torch.equal(codes_of(folder), plain_codes)


@pytest.mark.parametrize("content", [json.dumps({"feature_extractor": MELODY}), "damaged"], ids=["melody's", "damaged"])
def test_saving_is_refused_where_a_foreign_file_would_be_read_in_place_of_ours(content: str, folder: Path) -> None:
    processor, model = hf.AutoProcessor.from_pretrained(folder), MusicGen.from_pretrained(folder)
    stale = folder / "processor_config.json"
    stale.write_text(content)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for save in (processor.save_pretrained, processor.feature_extractor.save_pretrained, model.save_pretrained):
        with pytest.raises(ValueError, match=re.escape(f"{stale}: ") + ".*remove the file"):
            save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_processor_is_not_saved_beside_another_that_would_be_read(folder: Path) -> None:
    transformers.AutoProcessor.from_pretrained(folder).save_pretrained(folder)  # padded on the left
    hf.AutoProcessor.from_pretrained(folder).save_pretrained(folder)
    right = hf.EncodecFeatureExtractor(1, tiny.RATE)
    with pytest.raises(ValueError, match=r"padding_side must be 'right' .* got 'left'"):
        right.save_pretrained(folder)


# EnCodec's own directories


@pytest.fixture(scope="module", params=RELEASES)
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as encodec_24khz, encodec_32khz, encodec_48khz have it, with a small network."""
    config, file = RELEASES[request.param]
    folder = tmp_path_factory.mktemp("codec")
    fields = {"num_filters": 2, "hidden_size": 8, "codebook_size": 64, "target_bandwidths": [0.9, 1.8]} | config
    made = transformers.EncodecConfig(**fields)
    tiny.codec(made, tiny.noise(1, made.audio_channels, 9000)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(ENCODEC | file))
    return folder


@pytest.mark.parametrize("name", AUTO)
def test_an_encodec_gives_its_extractor(name: str, codec: Path) -> None:
    theirs, ours = (getattr(library, name).from_pretrained(codec) for library in (transformers, hf))
    assert type(ours).__name__ == type(theirs).__name__ == "EncodecFeatureExtractor"
    assert ours.to_dict() == theirs.to_dict()
    assert (ours.chunk_length, ours.chunk_stride) == (theirs.chunk_length, theirs.chunk_stride)
    rate = ours.sampling_rate
    stereo = [2] if ours.feature_size == 2 else []
    clips = [tiny.noise(*stereo, n, seed=n).numpy() for n in (rate * 7 // 10, rate // 3)]
    arguments = {"sampling_rate": rate, "return_tensors": "pt"}
    same(ours(clips, **arguments), theirs(clips, **arguments))
    assert ours(clips, **arguments).input_values.shape == (2, 1 + len(stereo), rate if stereo else rate * 7 // 10)
    assert ours(clips, **arguments).padding_mask.sum(1).tolist() == [len(clip.T) for clip in clips]


def test_an_encodec_is_no_whole_processor_and_has_its_config_without_a_file(codec: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("spiece.model")):
        hf.MusicgenProcessor.from_pretrained(codec)
    shutil.copy(codec / "config.json", tmp_path)
    expected = transformers.EncodecFeatureExtractor.from_pretrained(codec).to_dict()
    assert hf.AutoProcessor.from_pretrained(tmp_path).to_dict() == expected
    hf.AutoProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert transformers.AutoProcessor.from_pretrained(tmp_path).to_dict() == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(MELODY))
    with pytest.raises(ValueError, match=r"preprocessor_config.json: feature_size must be .* got 12"):
        hf.AutoProcessor.from_pretrained(tmp_path)
    assert hf.EncodecModel.from_pretrained(codec).config.sampling_rate == expected["sampling_rate"]


@pytest.mark.parametrize("seconds", [(0.7,), (1.0,), (0.7, 0.2), (1.5, 0.4, 0.99)], ids=str)
def test_an_encodec_codes_what_its_extractor_made_as_in_transformers(seconds: tuple[float, ...], codec: Path) -> None:
    extractor = hf.AutoProcessor.from_pretrained(codec)
    rate, stereo = extractor.sampling_rate, [2] if extractor.feature_size == 2 else []
    clips = [tiny.noise(*stereo, int(rate * s), seed=i).numpy() for i, s in enumerate(seconds)]
    inputs = extractor(clips, sampling_rate=rate, return_tensors="pt")
    theirs, ours = transformers.EncodecModel.from_pretrained(codec).eval(), hf.EncodecModel.from_pretrained(codec)
    with torch.no_grad():
        given = inputs.input_values, inputs.padding_mask, 6.0 if stereo else 1.8
        mine, expected = ours.encode(*given), theirs.encode(*given)
        assert torch.equal(mine.audio_codes, expected.audio_codes)
        assert mine.last_frame_pad_length == expected.last_frame_pad_length
        for a, b in zip(mine.audio_scales, expected.audio_scales, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        decoded = [
            model.decode(c.audio_codes, c.audio_scales, inputs.padding_mask, None, c.last_frame_pad_length).audio_values
            for model, c in ((ours, mine), (theirs, expected))
        ]
        both = ours(*given), theirs(*given)
    assert torch.equal(both[0].audio_codes, both[1].audio_codes)
    torch.testing.assert_close(
        both[0].audio_values, both[1].audio_values, rtol=0, atol=1e-5 * float(abs(decoded[1]).max())
    )
    for name in ("chunk_length", "chunk_stride"):
        assert getattr(ours.config, name) == getattr(theirs.config, name)
    assert decoded[0].shape == decoded[1].shape == inputs.input_values.shape
    torch.testing.assert_close(*decoded, rtol=0, atol=1e-5 * float(decoded[1].abs().max()))
    if stereo:
        assert len(mine.audio_codes) == -(-inputs.input_values.shape[-1] // extractor.chunk_stride) > 1


CHUNKS: dict[str, dict[str, Any]] = {
    "none": {},
    "overlapping": {"chunk_length_s": 1.0, "overlap": 0.1},
    "half": {"chunk_length_s": 0.5, "overlap": 0.5},
    "side by side": {"chunk_length_s": 0.5, "overlap": 0},
    "without overlap": {"chunk_length_s": 1},  # which transformers does not take for chunks
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_every_way_of_padding_and_cutting_equals_transformers(chunks: str, channels: int, side: str) -> None:
    fields = {"feature_size": channels, "sampling_rate": 40, "padding_side": side} | CHUNKS[chunks]
    theirs, ours = (library.EncodecFeatureExtractor(**fields) for library in (transformers, hf))
    assert ours.to_dict() == theirs.to_dict()
    lengths = np.random.default_rng(0).integers(20, 130, (400, 3))
    compared = 0
    padding = (None, True, False, "longest", "max_length", "do_not_pad")
    for i, (how, cut, most, tensors) in enumerate(
        itertools.product(padding, (False, True), (None, 1, 40, 100), (None, "np", "pt"))
    ):
        clips = [tiny.noise(*[2][: channels - 1], int(n), seed=i).numpy() for n in lengths[i, : 1 + i % 3]]
        arguments = {"padding": how, "truncation": cut, "max_length": most, "return_tensors": tensors}
        try:
            expected = theirs(clips, sampling_rate=40, **arguments)
        except ValueError:  # clips of different lengths as a tensor, no length to cut to, padding and truncation
            with pytest.raises(ValueError):
                ours(clips, sampling_rate=40, **arguments)
            continue
        got = ours(clips, sampling_rate=40, **arguments)
        compared += 1
        assert list(got) == list(expected)
        for name, value in expected.items():
            assert type(got[name]) is type(value), (name, arguments)
            if not isinstance(value, list):
                assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape), (name, arguments)
            for mine, their in zip(got[name], value, strict=True):
                assert mine.dtype == their.dtype
                assert mine.shape == their.shape
                assert bool((mine == their).all())
    assert compared > 40


def test_chunks_are_a_sample_apart_at_least() -> None:
    for library in (transformers, hf):
        assert library.EncodecFeatureExtractor(1, 40, chunk_length_s=0.5, overlap=0.99).chunk_stride == 1


def test_a_clip_that_fills_no_chunk_is_not_cut_to_nothing() -> None:
    extractor = hf.EncodecFeatureExtractor(1, 40, chunk_length_s=0.5, overlap=0)
    assert extractor(np.ones(39), truncation=True).input_values[0].shape == (1, 20)
    with pytest.raises(ValueError, match="audio must be 20 samples or more to be cut to whole chunks, got 19"):
        extractor(np.ones(19), truncation=True)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"feature_size": 3}, r"feature_size must be 1 \(mono\) or 2 \(stereo\), got 3"),
        ({"sampling_rate": 0}, "sampling_rate must be a whole number above 0, got 0"),
        ({"sampling_rate": 400.0}, "sampling_rate must be a whole number above 0, got 400.0"),
        ({"padding_value": 0.5}, "padding_value must be 0, which is silence, got 0.5"),
        ({"padding_value": None}, "padding_value must be 0, which is silence, got None"),
        ({"padding_side": "middle"}, "padding_side must be 'left' or 'right', got 'middle'"),
        ({"chunk_length_s": -1}, "chunk_length_s must be above 0, or None, got -1"),
        ({"chunk_length_s": "1"}, "chunk_length_s must be above 0, or None, got '1'"),
        ({"chunk_length_s": float("nan")}, "chunk_length_s must be above 0, or None, got nan"),
        ({"chunk_length_s": 1e-5}, "chunk_length_s must be a sample or more at 24000 Hz, got 1e-05"),
        ({"chunk_length_s": 1, "overlap": 1.0}, r"overlap must be in \[0, 1\), or None, got 1.0"),
        ({"chunk_length_s": 1, "overlap": True}, r"overlap must be in \[0, 1\), or None, got True"),
        ({"paddingside": "left"}, "has no argument 'paddingside': did you mean 'padding_side'"),
    ],
    ids=str,
)
def test_an_impossible_extractor_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf.EncodecFeatureExtractor(**fields)


def test_what_else_there_is_by_itself(plain: Path, tmp_path: Path) -> None:
    """A T5's directory has a tokenizer to prepare its inputs; a decoder's has nothing."""
    whole = Model.from_pretrained(plain)
    whole.text_encoder.save_pretrained(tmp_path / "t5")
    shutil.copy(plain / "spiece.model", tmp_path / "t5")
    assert hf.AutoProcessor.from_pretrained(tmp_path / "t5")(TEXTS) == hf.AutoTokenizer.from_pretrained(plain)(TEXTS)
    whole.decoder.save_pretrained(tmp_path / "decoder")
    for name in ("t5", "decoder"):
        with pytest.raises(ValueError, match=r"config.json: model_type must be 'musicgen' or 'encodec', got "):
            hf.AutoFeatureExtractor.from_pretrained(tmp_path / name)
