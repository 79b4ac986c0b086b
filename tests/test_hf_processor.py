"""musicgen_ref.hf's processor against transformers 5.23.0: ids, masks, padded audio, decoded lists, errors."""

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_array_equal

from musicgen_ref import hf
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
        else:
            assert ours[name].dtype == value.dtype
            assert_array_equal(ours[name], value)


TEXT_CASES: dict[str, dict[str, Any]] = {
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


def test_a_tokenizer_by_itself(tmp_path: Path) -> None:
    theirs, ours = (processor.tokenizer for processor in pair())
    assert len(ours) == len(theirs)
    assert ours.vocab_size == len(ours)
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
    "whole numbers": (1, {"audio": np.zeros(9, np.int16)}, "audio must be floating point, .* got int16"),
    "padding and truncation": (
        1, {"audio": np.zeros(9), "padding": True, "truncation": True, "max_length": 3}, "give one, got both"
    ),
    "no length": (1, {"text": "a", "truncation": True}, "max_length must be a whole number above 0"),
    "no length to pad to": (1, {"text": "a", "padding": "max_length"}, "max_length must be a whole number above 0"),
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
