"""musicgen_ref.hf's processor against transformers 5.24.0: ids, masks, padded audio, decoded lists, errors."""

import copy
import functools
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_array_equal
from scipy.io import wavfile

from musicgen_ref import hf
from musicgen_ref.audio import read_wav
from tests import tiny

TEXTS = ["a calm piano with soft rain", "loud drums", "rain </s> <extra_id_3> Ω", "", "ﬁne  CAFÉ, 80s!"]


@functools.cache
def pair(channels: int = 1) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = tiny.complete(Path(name), channels)
        return transformers.AutoProcessor.from_pretrained(folder), hf.AutoProcessor.from_pretrained(folder)


def same(ours: Any, theirs: Any) -> None:
    """The same names in the same order, types, dtypes and values."""
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
        if isinstance(value, list) and isinstance(value[0], np.ndarray):
            assert all(a.dtype == b.dtype for a, b in zip(ours[name], value, strict=True))
            assert all(map(np.array_equal, ours[name], value))
        elif isinstance(value, list):
            assert ours[name] == value
        elif isinstance(value, np.ndarray) and value.dtype == object:  # rows of different lengths
            assert ours[name].dtype == object
            assert all(map(np.array_equal, ours[name], value))
        else:
            assert ours[name].dtype == value.dtype
            assert_array_equal(ours[name], value)


TEXT_CASES: dict[str, dict[str, Any]] = {
    "cut to a length that there is not": {"text": TEXTS, "truncation": True, "padding": True},
    "padded to a length that there is not": {"text": TEXTS, "padding": "max_length"},
    "a length alone": {"text": TEXTS, "max_length": 5},
    "to a multiple": {"text": TEXTS, "padding": True, "pad_to_multiple_of": 8, "return_tensors": "pt"},
    "without the end": {"text": TEXTS, "add_special_tokens": False},
    "without a mask": {"text": TEXTS, "return_attention_mask": False, "padding": True, "return_tensors": "np"},
    "one": {"text": TEXTS[0]},
    "one, tensors": {"text": TEXTS[0], "return_tensors": "pt"},
    "many": {"text": TEXTS},
    "padded": {"text": TEXTS, "padding": True, "return_tensors": "pt"},
    "padded to the longest, numpy": {"text": TEXTS, "padding": "longest", "return_tensors": "np"},
    "padded to a length": {"text": TEXTS[1:2], "padding": "max_length", "max_length": 30, "return_tensors": "pt"},
    "cut": {"text": TEXTS, "padding": True, "truncation": True, "max_length": 5, "return_tensors": "pt"},
    "cut to a row's length": {"text": TEXTS, "truncation": True, "max_length": 6},
    "padded to less than there is": {"text": TEXTS[:2], "padding": "max_length", "max_length": 4},
    "one in a list": {"text": TEXTS[:1]},
    "not padded": {"text": TEXTS, "padding": "do_not_pad"},
    "cut and padded": {"text": TEXTS, "padding": "max_length", "truncation": True, "max_length": 6},
}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_texts_equal_transformers(case: str) -> None:
    theirs, ours = (processor(**TEXT_CASES[case]) for processor in pair())
    same(ours, theirs)


def clips(channels: int) -> list[np.ndarray]:
    shape = [2] if channels == 2 else []
    return [tiny.noise(*shape, n, seed=n).numpy() for n in (43, 17, 30)]


AUDIO_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "tensors": {"return_tensors": "pt"},
    "padded, numpy": {"padding": True, "return_tensors": "np"},
    "not padded": {"padding": False},
    "to a length": {"padding": "max_length", "max_length": 50, "return_tensors": "pt"},
    "cut": {"padding": False, "truncation": True, "max_length": 17, "return_tensors": "np"},
    "cut, not padded": {"padding": False, "truncation": True, "max_length": 20},
    "to the longest": {"padding": "longest", "return_tensors": "pt"},
    "no rate": {"sampling_rate": None},
}


@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
@pytest.mark.parametrize("case", AUDIO_CASES)
def test_audio_equals_transformers(case: str, channels: int) -> None:
    every = clips(channels)
    for audio in (every, every[0], every[0].astype(np.float64), every[:1], every[0].tolist()):
        if case != "default" and audio is not every:
            continue
        if channels == 2 and isinstance(audio, list) and not isinstance(audio[0], np.ndarray):
            continue  # transformers takes a list of two lists for two mono clips
        arguments = {"audio": audio, "sampling_rate": tiny.RATE, **AUDIO_CASES[case]}
        theirs, ours = (processor(**arguments) for processor in pair(channels))
        same(ours, theirs)


@pytest.mark.parametrize("layout", ["one file", "two files"])
def test_padding_on_the_right_equals_transformers(layout: str, tmp_path: Path) -> None:
    """As its file says: the one of transformers 4, or the one that 5 writes."""
    tiny.complete(tmp_path)
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path)
    theirs.feature_extractor.padding_side = "right"
    if layout == "one file":
        (tmp_path / "preprocessor_config.json").unlink()
        theirs.save_pretrained(tmp_path)
        assert not (tmp_path / "preprocessor_config.json").exists()
    else:
        theirs.feature_extractor.save_pretrained(tmp_path)
        (tmp_path / "processor_config.json").unlink(missing_ok=True)
    ours = hf.AutoProcessor.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "ours")
    shutil.copy(tmp_path / "config.json", tmp_path / "ours")
    for processor in (ours, hf.AutoProcessor.from_pretrained(tmp_path / "ours")):
        for case in ("default", "tensors", "to a length"):
            arguments = {"audio": clips(1), "sampling_rate": tiny.RATE, **AUDIO_CASES[case]}
            same(processor(**arguments), theirs(**arguments))
    made = ours(clips(1), return_tensors="pt")
    assert made.padding_mask.sum(1).tolist() == [43, 17, 30]
    assert made.padding_mask[:, :17].all()
    assert (made.input_values[1, 0, 17:] == 0).all()
    audio = torch.cat([made.input_values, torch.ones(3, 1, 5)], dim=-1)  # what is new is kept
    decoded = ours.batch_decode(audio, padding_mask=made.padding_mask)
    for mine, clip in zip(decoded, clips(1), strict=True):
        assert_array_equal(mine[0], np.concatenate([clip, np.ones(5, np.float32)]))


def test_audio_that_is_not_padded_has_a_mask_unless_padding_is_false() -> None:
    theirs, ours = pair()
    for many, more in ((clips(1)[:1], {"return_tensors": "pt"}), (clips(1)[0], {}), (clips(1), {})):
        arguments = {"audio": many, "padding": "do_not_pad", "sampling_rate": tiny.RATE, **more}
        expected, made = theirs(**arguments), ours(**arguments)
        assert list(made) == list(expected) == ["padding_mask", "input_values"]
        assert made.padding_mask.dtype == expected.padding_mask.dtype
        for name in made:
            assert all(map(np.array_equal, made[name], expected[name]))
    assert list(ours(clips(1), padding=False)) == ["input_values"]


def test_clips_of_every_type(tmp_path: Path) -> None:
    ours = pair()[1]
    every = clips(1)
    expected = ours(every, return_tensors="np").input_values
    for audio in (tuple(every), [torch.from_numpy(clip).requires_grad_() for clip in every], [*map(list, every)]):
        assert_array_equal(ours(audio, return_tensors="np").input_values, expected)
    stereo = pair(2)[1]
    for wrong in (np.zeros((3, 9)), np.zeros((1, 2, 9)), np.zeros((2, 0))):
        with pytest.raises(ValueError, match="audio must be stereo"):
            stereo(wrong)
    # Audio as a model in half precision makes it.
    half = tiny.noise(2, 1, 9).bfloat16()
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    for given, shape in ((None, (1, 9)), (mask, (1, 8))):
        first, second = ours.batch_decode(half, padding_mask=given)
        assert (first.dtype, first.shape, second.shape) == (np.float32, shape, (1, 9))
        assert_array_equal(second, half[1].float())
    assert_array_equal(ours.batch_decode(half.float().numpy())[1], half[1].float())
    extractor = hf.EncodecFeatureExtractor()
    assert (extractor.feature_size, extractor.sampling_rate, extractor.padding_side) == (1, 24000, "right")
    extractor.save_pretrained(tmp_path / "new" / "folder")
    assert transformers.EncodecFeatureExtractor.from_pretrained(tmp_path / "new" / "folder").sampling_rate == 24000


def test_whole_numbers_of_a_wav_file_are_scaled(tmp_path: Path) -> None:
    """As read_wav() scales them; transformers takes the numbers as they are, which no model was trained on."""
    rng = np.random.default_rng(0)
    for kind in (np.int16, np.int32, np.uint8):
        most = np.iinfo(kind)
        samples = np.array([most.min, most.max, *rng.integers(most.min, most.max, 50, endpoint=True)], kind)
        wavfile.write(tmp_path / "x.wav", tiny.RATE, samples)
        rate, read = wavfile.read(tmp_path / "x.wav")
        expected = read_wav(tmp_path / "x.wav")[0].numpy()
        for given in (read, torch.from_numpy(read), [read], list(read)):
            made = pair()[1](given, sampling_rate=rate, return_tensors="np").input_values
            assert made.dtype == np.float32
            assert_array_equal(made[0], expected)
        wavfile.write(tmp_path / "x.wav", tiny.RATE, np.stack([samples, samples[::-1]], axis=1))
        stereo = pair(2)[1](wavfile.read(tmp_path / "x.wav")[1].T, return_tensors="np").input_values
        assert_array_equal(stereo[0], read_wav(tmp_path / "x.wav")[0].numpy())
        assert np.abs(stereo).max() == 1
    for given in (np.zeros(9, bool), np.zeros(9, np.int64), np.zeros(9, np.uint16), np.zeros(9, complex)):
        with pytest.raises(ValueError, match=f"audio must be floating point, .* got {given.dtype}"):
            pair()[1](given)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    ours = hf.EncodecFeatureExtractor(np.int64(1), np.int32(tiny.RATE), np.float32(0), np.float64(0.5), np.float32(0.5))
    assert ours.to_dict() == hf.EncodecFeatureExtractor(1, tiny.RATE, 0.0, 0.5, 0.5).to_dict()
    ours.save_pretrained(tmp_path)
    assert hf.EncodecFeatureExtractor.from_pretrained(tmp_path).to_dict() == ours.to_dict()
    theirs, mine = pair()
    arguments = {"text": TEXTS, "padding": "max_length", "max_length": np.int64(30), "return_tensors": "pt"}
    same(mine(**arguments), theirs(**arguments | {"max_length": 30}))
    audio = {"audio": clips(1), "padding": "max_length", "max_length": np.int64(50), "return_tensors": "pt"}
    same(
        mine(**audio, sampling_rate=np.int64(tiny.RATE)), theirs(**audio | {"max_length": 50}, sampling_rate=tiny.RATE)
    )


CALLS: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True, False),
    "padding": (False, True, "longest", "max_length", "do_not_pad"),
    "truncation": (None, True, False, "longest_first", "only_first", "do_not_truncate"),
    "max_length": (None, 1, 4, 12, 40),
    "pad_to_multiple_of": (None, 4, 7),
    "padding_side": (None, "left", "right"),
    "return_attention_mask": (None, True, False),
    "return_tensors": (None, "pt", "np"),
}


@pytest.mark.parametrize("settings", [{}, {"model_max_length": 8}, {"padding_side": "left", "truncation_side": "left"}])
def test_a_tokenizer_is_called_as_that_of_transformers(settings: dict[str, Any]) -> None:
    """Random choices of every argument; where theirs is an error, ours is a ValueError."""
    theirs, ours = (processor.tokenizer for processor in pair())
    theirs, ours = copy.copy(theirs), hf.T5Tokenizer(ours.tokenizer, **settings)
    for name, value in settings.items():
        setattr(theirs, name, value)
    rng = random.Random(0)
    compared = 0
    for _ in range(600):
        arguments = {name: rng.choice(values) for name, values in CALLS.items()}
        arguments["text"] = rng.choice([TEXTS[0], TEXTS, TEXTS[:2], tuple(TEXTS[2:])])
        try:
            expected = theirs(**arguments)
        except ValueError:
            with pytest.raises(ValueError):
                ours(**arguments)
            continue
        same(ours(**arguments), expected)
        compared += 1
    assert compared > 300


def test_settings_of_a_tokenizers_file_are_honoured(tmp_path: Path) -> None:
    tiny.complete(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    plain = json.loads(file.read_text())
    calls: list[dict[str, Any]] = [
        {"text": TEXTS, "padding": True, "truncation": True},
        {"text": TEXTS, "padding": "max_length"},
        {"text": TEXTS[0]},
    ]
    for settings in (
        {"model_max_length": 6},
        {"model_max_length": 1e30, "padding_side": "left"},
        {"model_max_length": 7, "truncation_side": "left", "padding_side": "left"},
        {"clean_up_tokenization_spaces": True},
        {},
    ):
        file.write_text(json.dumps(plain | settings))
        theirs, ours = (kind.from_pretrained(tmp_path) for kind in (transformers.AutoTokenizer, hf.AutoTokenizer))
        for name in ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces"):
            assert getattr(ours, name) == getattr(theirs, name)
        for call in calls:
            same(ours(**call), theirs(**call))
        ids = ours("rain ! and snow , all 's well .").input_ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.batch_decode([ids, ids[:3]]) == theirs.batch_decode([ids, ids[:3]])
        for clean in (True, False):
            assert ours.decode(ids, clean_up_tokenization_spaces=clean) == theirs.decode(
                ids, clean_up_tokenization_spaces=clean
            )
        processor = hf.AutoProcessor.from_pretrained(tmp_path)
        assert processor.batch_decode(sequences=[ids]) == theirs.batch_decode([ids])
        ours.save_pretrained(tmp_path / "again")
        assert hf.T5Tokenizer.from_pretrained(tmp_path / "again").model_max_length == ours.model_max_length
    given = {"model_max_length": 5, "padding_side": "left"}
    theirs, ours = (kind.from_pretrained(tmp_path, **given) for kind in (transformers.AutoTokenizer, hf.AutoTokenizer))
    ours.truncation_side = theirs.truncation_side = "left"
    for call in calls:
        same(ours(**call), theirs(**call))
    for library in (transformers, hf):  # what was set is saved
        ours.save_pretrained(tmp_path / "set")
        for call in calls:
            same(library.AutoTokenizer.from_pretrained(tmp_path / "set")(**call), dict(theirs(**call)))
    for settings, message in (
        ({"model_max_length": "long"}, "tokenizer_config.json: model_max_length must be 1 or more, got 'long'"),
        ({"model_max_length": 0}, "tokenizer_config.json: model_max_length must be 1 or more, got 0"),
        ({"padding_side": "top"}, "tokenizer_config.json: padding_side must be 'left' or 'right', got 'top'"),
        ({"clean_up_tokenization_spaces": 1}, "clean_up_tokenization_spaces must be True or False, got 1"),
    ):
        file.write_text(json.dumps(plain | settings))
        with pytest.raises(ValueError, match=message):
            hf.T5Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^padding_side must be 'left' or 'right', got 3"):
        hf.T5Tokenizer(ours.tokenizer, padding_side=3)


def test_tokens_and_ids_are_those_of_transformers() -> None:
    theirs, ours = (processor.tokenizer for processor in pair())
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.model_input_names == theirs.model_input_names
    for text in [*TEXTS, "ΩΩ aΩΩb ☃ <pad>☃", "a  b\tc"]:
        tokens = theirs.tokenize(text)
        assert ours.tokenize(text) == tokens
        assert ours.tokenize(text, add_special_tokens=True) == theirs.tokenize(text, add_special_tokens=True)
        ids = theirs.convert_tokens_to_ids(tokens)
        assert ours.convert_tokens_to_ids(tokens) == ids == theirs.encode(text, add_special_tokens=False)
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
        assert ours.convert_ids_to_tokens(torch.tensor(ids)) == theirs.convert_ids_to_tokens(ids)
        whole = theirs.encode(text)
        assert ours.convert_ids_to_tokens(whole, skip_special_tokens=True) == theirs.convert_ids_to_tokens(
            whole, skip_special_tokens=True
        )
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
        for options in (
            {},
            {"add_special_tokens": False},
            {"truncation": True, "max_length": 3},
            {"return_tensors": "np"},
        ):
            assert_array_equal(ours.encode(text, **options), theirs.encode(text, **options))
    same(ours(TEXTS, return_token_type_ids=False), theirs(TEXTS, return_token_type_ids=False))
    with pytest.raises(ValueError, match="return_token_type_ids must be None or False, got True"):
        ours(TEXTS, return_token_type_ids=True)
    assert ours.convert_tokens_to_ids("no token") == theirs.convert_tokens_to_ids("no token") == ours.unk_token_id
    assert ours.convert_tokens_to_ids("</s>") == theirs.convert_tokens_to_ids("</s>") == 1
    for i in range(len(ours)):
        assert ours.convert_ids_to_tokens(i) == theirs.convert_ids_to_tokens(i)
        assert ours.decode(i) == theirs.decode(i)
    rows = [[5, 6, 1], [7, 8]]
    for given in (rows, np.array([rows[0]]), torch.tensor([rows[0]]), [torch.tensor(row) for row in rows]):
        assert ours.decode(given) == ours.batch_decode(given)
        assert ours.batch_decode(given) == theirs.batch_decode(given)
    assert ours.batch_decode([5, 6]) == theirs.batch_decode([5, 6])
    with pytest.raises(ValueError, match=r"ids must be in 0\.\."):
        ours.convert_ids_to_tokens(10**6)


PADS: dict[str, dict[str, Any]] = {
    "to the longest": {},
    "not": {"padding": False},
    "to a length": {"padding": "max_length", "max_length": 40},
    "to less than there is": {"padding": "max_length", "max_length": 4},
    "to a multiple": {"pad_to_multiple_of": 16},
    "on the left": {"padding_side": "left", "pad_to_multiple_of": 5},
    "without a mask": {"return_attention_mask": False},
    "tensors": {"return_tensors": "pt"},
}


@pytest.mark.parametrize("case", PADS)
def test_a_batch_is_padded_as_in_transformers(case: str) -> None:
    theirs, ours = (processor.tokenizer for processor in pair())
    for rows in (
        lambda tokenizer: tokenizer(TEXTS),
        lambda tokenizer: [tokenizer(text) for text in TEXTS],
        lambda tokenizer: [{"input_ids": tokenizer(text).input_ids, "labels": [1, 2]} for text in TEXTS],
        lambda tokenizer: [{"input_ids": torch.tensor(tokenizer(text).input_ids)} for text in TEXTS[:2]],
        lambda tokenizer: tokenizer(TEXTS[0]),
    ):
        plain = rows(ours)
        if case == "without a mask" and "attention_mask" in (plain if isinstance(plain, Mapping) else plain[0]):
            continue  # theirs leaves the mask that is there as long as it was
        given = [dict(rows(t)) if isinstance(rows(t), Mapping) else [*map(dict, rows(t))] for t in (theirs, ours)]
        try:
            expected = theirs.pad(given[0], **PADS[case])
        except ValueError:
            with pytest.raises(ValueError):
                ours.pad(given[1], **PADS[case])
            continue
        got = ours.pad(given[1], **PADS[case])
        assert set(got) == set(expected)
        same({name: got[name] for name in expected}, dict(expected))
    with pytest.raises(ValueError, match="give a mapping or a list of mappings that hold input_ids, not empty, got"):
        ours.pad({"labels": [[1]]})


def test_audio_is_padded_as_in_transformers() -> None:
    rng = random.Random(0)
    compared = 0
    for channels, side in itertools.product((1, 2), ("left", "right")):
        fields = {"feature_size": channels, "sampling_rate": tiny.RATE, "padding_side": side}
        theirs, ours = (library.EncodecFeatureExtractor(**fields) for library in (transformers, hf))
        for _ in range(80):
            shape = [2] if channels == 2 else []
            lengths = [rng.randint(1, 30) for _ in range(rng.randint(1, 4))]
            kinds = (lambda a: a, lambda a: a.astype(np.float64), torch.from_numpy, lambda a: a.tolist())
            given = [rng.choice(kinds[:2])(tiny.noise(n, *shape, seed=n).numpy()) for n in lengths]
            if rng.random() < 0.5:
                given = [rng.choice(kinds)(clip) for clip in given[:1]] if rng.random() < 0.5 else [
                    torch.as_tensor(clip) for clip in given
                ]  # fmt: skip
            features: Any = {"input_values": given}
            if rng.random() < 0.3:
                features["attention_mask"] = [np.ones(len(clip), np.int32) for clip in given]
            masked = "attention_mask" in features
            if rng.random() < 0.5:
                features = [{name: value[i] for name, value in features.items()} for i in range(len(given))]
            arguments = {
                "padding": rng.choice([True, False, "longest", "max_length", "do_not_pad"]),
                "max_length": rng.choice([None, 1, 10, 40]), "truncation": rng.random() < 0.4,
                "pad_to_multiple_of": rng.choice([None, 7, 10]),
                # Asked for none, theirs leaves one that is there as long as it was.
                "return_attention_mask": rng.choice([None, True, *([] if masked else [False])]),
                "return_tensors": rng.choice([None, None, "np", "pt"]),
            }  # fmt: skip
            try:
                expected = theirs.pad(copy.deepcopy(features), **arguments)
            except ValueError:
                with pytest.raises(ValueError):
                    ours.pad(features, **arguments)
                continue
            got = ours.pad(features, **arguments)
            compared += 1
            assert set(got) == set(expected)
            for name, value in expected.items():
                assert type(got[name]) is type(value), (name, arguments)
                assert got[name].dtype == value.dtype
                assert len(got[name]) == len(value)
                for mine, their in zip(got[name], value, strict=True):
                    assert mine.dtype == their.dtype
                    assert_array_equal(mine, their)
    assert compared > 150
    for features, message in (
        ({"values": [np.zeros(3)]}, "give a mapping or a list of mappings that hold input_values, not empty"),
        ({"input_values": []}, "not empty, got"),
        ({"input_values": [0.5, 0.5]}, "audio must be a tensor or an array, got float"),
        ({"input_values": [np.zeros(9)]}, r"input_values must be a list of clips of numbers \(N, 2\), got \(9,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.pad(features)
    for name in ("max_length", "pad_to_multiple_of"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number above 0, got 0"):
            ours.pad({"input_values": [np.zeros((9, 2))]}, **{name: 0})


def test_an_extractor_as_json(tmp_path: Path) -> None:
    fields = {"feature_size": 2, "sampling_rate": 48000, "chunk_length_s": 1.0, "overlap": 0.01, "padding_side": "left"}
    for given in ({}, fields, {"return_attention_mask": False}):
        theirs, ours = (library.EncodecFeatureExtractor(**given) for library in (transformers, hf))
        assert ours.to_dict() == theirs.to_dict()
        assert ours.to_json_string() == theirs.to_json_string()
        assert ours.model_input_names == theirs.model_input_names
        ours.to_json_file(tmp_path / "ours.json")
        theirs.to_json_file(tmp_path / "theirs.json")
        assert (tmp_path / "ours.json").read_text() == (tmp_path / "theirs.json").read_text()
        for library in (transformers, hf):
            read = library.EncodecFeatureExtractor.from_json_file(tmp_path / "ours.json")
            assert read.to_dict() == ours.to_dict()
        assert ours.save_pretrained(tmp_path / "a") == [str(tmp_path / "a" / "preprocessor_config.json")]
        assert theirs.save_pretrained(tmp_path / "b") == [str(tmp_path / "b" / "preprocessor_config.json")]
        for name in ("a", "b"):
            assert hf.EncodecFeatureExtractor.from_pretrained(tmp_path / name).to_dict() == ours.to_dict()
    for content, message in (("[]", "must hold an object"), ('{"overlap": 2}', r"overlap must be in \[0, 1\)")):
        (tmp_path / "ours.json").write_text(content)
        with pytest.raises(ValueError, match=f"{tmp_path / 'ours.json'}: .*{message}"):
            hf.EncodecFeatureExtractor.from_json_file(tmp_path / "ours.json")
    with pytest.raises(FileNotFoundError):
        hf.EncodecFeatureExtractor.from_json_file(tmp_path / "none.json")


def test_fields_that_are_given_count_before_the_files(tmp_path: Path) -> None:
    tiny.complete(tmp_path)
    given = {"padding_side": "right", "chunk_length_s": 0.5}
    theirs, ours = (
        library.EncodecFeatureExtractor.from_pretrained(tmp_path, **given) for library in (transformers, hf)
    )
    assert ours.to_dict() == theirs.to_dict()
    processors = [
        library.AutoProcessor.from_pretrained(tmp_path, padding_side="right") for library in (transformers, hf)
    ]
    same(processors[1](clips(1), return_tensors="pt"), processors[0](clips(1), return_tensors="pt"))
    both = hf.MusicgenProcessor.from_pretrained(tmp_path, padding_side="left", model_max_length=7)
    assert (both.feature_extractor.padding_side, both.tokenizer.padding_side) == ("left", "left")
    assert both.tokenizer.model_max_length == 7
    for name, kind in (("paddingside", hf.MusicgenProcessor), ("model_max_length", hf.EncodecFeatureExtractor)):
        with pytest.raises(ValueError, match=f"has no argument '{name}'"):
            kind.from_pretrained(tmp_path, **{name: 5})
    with pytest.raises(ValueError, match=r"^padding_side must be 'left' or 'right', got 'top'"):
        hf.EncodecFeatureExtractor.from_pretrained(tmp_path, padding_side="top")


def test_a_tokenizer_by_itself(tmp_path: Path) -> None:
    theirs, ours = (processor.tokenizer for processor in pair())
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.encode(TEXTS[0]) == theirs.encode(TEXTS[0])
    ids = ours(TEXTS[0]).input_ids
    for one in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert ours.decode(one) == theirs.decode(ids)
        assert ours.decode(one, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.batch_decode([ids]) == theirs.batch_decode([ids])  # special tokens stay unless told
    ours.save_pretrained(tmp_path / "new" / "folder")
    assert hf.T5Tokenizer.from_pretrained(tmp_path / "new" / "folder").encode(TEXTS[0]) == ids
    with pytest.raises(ValueError, match="no argument 'revison': did you mean 'revision'"):
        hf.T5Tokenizer.from_pretrained("demo", revison="abc")
    with pytest.raises(ValueError, match="no argument 'revison': did you mean 'revision'"):
        hf.EncodecFeatureExtractor.from_pretrained("demo", revison="abc")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_size": 3}, r"feature_size must be 1 \(mono\) or 2 \(stereo\), got 3"),
        ({"padding_side": "top"}, "padding_side must be 'left' or 'right', got 'top'"),
        ({"padding_value": 1.0}, "padding_value must be 0"),
        ({"chunk_length_s": 0.0}, "chunk_length_s must be above 0, or None, got 0"),
    ],
)
def test_errors_of_feature_extractors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf.EncodecFeatureExtractor(**fields)


def test_text_and_audio_together_equal_transformers() -> None:
    arguments = {"text": TEXTS[:3], "sampling_rate": tiny.RATE, "padding": True, "return_tensors": "pt"}
    theirs, ours = (processor(clips(1), **arguments) for processor in pair())  # the first argument is the audio
    same(ours, theirs)
    assert ours.padding_mask.sum(1).tolist() == [43, 17, 30]
    assert (ours.input_values[1, 0, :26] == 0).all()  # on the left
    moved = ours.to(torch.float64)
    assert moved is ours
    assert (moved.input_values.dtype, moved.input_ids.dtype) == (torch.float64, torch.int64)


def test_decoded_audio_equals_transformers() -> None:
    audio = tiny.noise(3, 1, 60)
    mask = torch.from_numpy(np.arange(43) >= np.array([[0], [26], [13]])).int()
    theirs, ours = (processor.batch_decode(audio, padding_mask=mask) for processor in pair())
    assert [clip.shape for clip in ours] == [(1, 60), (1, 34), (1, 47)]
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float32  # theirs: float64, of the same numbers
        assert_array_equal(mine, their)
    for mine, their in zip(*(processor.batch_decode(audio) for processor in pair()), strict=True):
        assert_array_equal(mine, their)


def test_decoded_stereo_audio_has_no_padding() -> None:
    theirs, ours = pair(2)
    audio, mask = tiny.noise(2, 2, 20), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with pytest.raises(IndexError):
        theirs.batch_decode(audio, padding_mask=mask)
    first, second = ours.batch_decode(audio, padding_mask=mask)
    assert_array_equal(first, audio[0, :, 2:])
    assert_array_equal(second, audio[1])


@pytest.mark.parametrize("skip", [False, True])
def test_decoded_texts_equal_transformers(skip: bool) -> None:
    theirs, ours = pair()
    generator = torch.Generator().manual_seed(0)
    rows = [theirs.tokenizer(text).input_ids for text in TEXTS]
    rows += [torch.randint(0, len(ours.tokenizer), (n,), generator=generator).tolist() for n in range(1, 30)]
    expected = theirs.batch_decode(sequences=rows, skip_special_tokens=skip)
    assert ours.batch_decode(sequences=rows, skip_special_tokens=skip) == expected
    assert ours.decode(torch.tensor(rows[0]), skip_special_tokens=skip) == expected[0]


def test_saved_processors_open_in_both_libraries(tmp_path: Path) -> None:
    tiny.complete(tmp_path / "model", 2)
    hf.AutoProcessor.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "ours")
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    assert isinstance(again, transformers.MusicgenProcessor)
    fields = hf.EncodecFeatureExtractor(2, tiny.RATE, padding_side="left").to_dict()
    assert again.feature_extractor.to_dict().items() >= fields.items()
    text = (tmp_path / "ours" / "preprocessor_config.json").read_text()
    written = json.loads(text)
    assert text == json.dumps(written, indent=2, sort_keys=True) + "\n"  # as transformers writes it
    assert written == fields | {"processor_class": "MusicgenProcessor"}
    arguments = {"text": TEXTS, "padding": True, "return_tensors": "pt"}
    same(pair(2)[1](**arguments), again(**arguments))
    # What transformers 5 writes, beside a model: one file for both, no spiece.model.
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    for name in ("spiece.model", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    again.save_pretrained(tmp_path / "model")
    same(hf.MusicgenProcessor.from_pretrained(tmp_path / "model")(**arguments), again(**arguments))


ERRORS: dict[str, tuple[int, dict[str, Any], str]] = {
    "nothing": (1, {}, "audio, text or both, got neither"),
    "another rate": (1, {"audio": np.zeros(9), "sampling_rate": 44100}, "sampling_rate must be 400 Hz, .* got 44100"),
    "mono for stereo": (2, {"audio": np.zeros(9)}, r"audio must be stereo audio, \(2, N\), .* got \(9,\)"),
    "stereo for mono": (1, {"audio": np.zeros((2, 9))}, r"audio must be mono audio, \(N,\), .* got \(2, 9\)"),
    "no samples": (1, {"audio": np.zeros(0)}, r"with samples, got \(0,\)"),
    "whole numbers": (1, {"audio": [0, 1, 2]}, "audio must be floating point, .* or an array of int16.* got int64"),
    "stereo as WAV readers return it": (2, {"audio": np.zeros((9, 2))}, r"got \(9, 2\); WAV readers .* give its .T"),
    "padding and truncation": (
        1, {"audio": np.zeros(9), "padding": True, "truncation": True, "max_length": 3}, "give one, got both"
    ),
    "a length of nothing": (
        1, {"text": "a", "truncation": True, "max_length": 0}, "max_length must be a whole number above 0, got 0"
    ),
    "a multiple of nothing": (1, {"text": "a", "pad_to_multiple_of": 1.5}, "pad_to_multiple_of must be a whole number"),
    "a length that is no multiple": (
        1, {"text": "a", "truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 4},
        "max_length must be a multiple of pad_to_multiple_of 4 to cut and pad to, got 9",
    ),
    "a multiple for audio": (
        1, {"audio": np.zeros(9), "pad_to_multiple_of": 4}, r"\['pad_to_multiple_of'\] must be left out beside audio"
    ),
    "another side": (1, {"text": "a", "padding_side": "top"}, "padding_side must be one of"),
    "another truncation": (1, {"text": "a", "truncation": "most"}, "truncation must be one of"),
    "no length of audio": (
        1, {"audio": np.zeros(9), "padding": "max_length", "max_length": 0}, "max_length must be a whole number above 0"
    ),
    "no length of cut audio": (
        1, {"audio": np.zeros(9), "padding": False, "truncation": True}, "max_length must be a whole number above 0"
    ),
    "no texts": (1, {"text": []}, "text must be a string or a non-empty list of strings"),
    "other tensors of audio": (1, {"audio": np.zeros(9), "return_tensors": "tf"}, "return_tensors must be one of"),
    "no text": (1, {"text": [3]}, "text must be a string or a non-empty list of strings"),
    "ragged texts": (1, {"text": ["a", "a b c"], "return_tensors": "pt"}, "padding must be True for texts"),
    "texts longer than the length": (
        1,
        {"text": ["a", "a b c"], "padding": "max_length", "max_length": 1, "return_tensors": "pt"},
        "padding must be True for texts",
    ),
    "ragged audio": (1, {"audio": clips(1), "padding": False, "return_tensors": "pt"}, "must be True for audio"),
    "other tensors": (1, {"text": "a", "return_tensors": "tf"}, "return_tensors must be one of"),
    "other padding": (1, {"text": "a", "padding": "most"}, "padding must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    channels, arguments, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        pair(channels)[1](**arguments)


def test_errors_of_batch_decode() -> None:
    ours = pair()[1]
    for audio, mask, message in (
        (torch.zeros(1, 9), None, r"audio must be \(B, C, N\), got \(1, 9\)"),
        (torch.zeros(1, 1, 9), torch.ones(1, 10), r"padding_mask must be \(1, 9\) or shorter, got \(1, 10\)"),
        (torch.zeros(2, 1, 9), torch.ones(1, 9), r"padding_mask must be \(2, 9\)"),
        (torch.zeros(2, 1, 9), torch.ones(2, 1, 9), r"padding_mask must be \(2, 9\) or shorter, got \(2, 1, 9\)"),
        (None, None, "audio must be a tensor or an array, got NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.batch_decode(audio, padding_mask=mask)
    with pytest.raises(ValueError, match=r"ids must be in 0\.\."):
        ours.batch_decode(sequences=[[100000]])
