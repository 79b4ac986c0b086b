"""What transformers' own suites ask of the processor, the feature extractor and the pipeline, asked of both libraries.

A row for each test there, named by its file and its name; the assertion is written anew. Models and clips of the Hub
are replaced by tiny ones and noise, of which nothing that is asserted depends.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from musicgen_ref import hf
from tests import tiny
from tests.peers.rows import equal

PROCESSOR = "models/musicgen/test_processing_musicgen.py::"
EXTRACTOR = "models/encodec/test_feature_extraction_encodec.py::"
SEQUENCE = "test_sequence_feature_extraction_common.py::"
SAVING = "test_feature_extraction_common.py::"
PIPELINE = "pipelines/test_pipelines_text_to_audio.py::"

# Why a test does not apply.
REASONS = {
    SEQUENCE + "test_batch_feature": "BatchFeature, which makes arrays of lists, is transformers' own class: here "
    "extractors return a ModelOutput, and pad() makes arrays of lists.",
    SEQUENCE + "test_batch_feature_pt": "As test_batch_feature, of tensors.",
    SEQUENCE + "test_batch_feature_tf": "There are no tensors of TensorFlow, in transformers 5 neither.",
    SEQUENCE + "test_padding_accepts_tensors_tf": "There are no tensors of TensorFlow, in transformers 5 neither.",
    PIPELINE + "test_small_speecht5_pt": "SpeechT5 is another model.",
    PIPELINE + "test_csm_model_pt": "CSM is another model.",
    PIPELINE + "test_dia_model": "Dia is another model.",
    PIPELINE + "test_medium_seamless_m4t_pt": "SeamlessM4T is another model.",
    PIPELINE + "test_small_bark_pt": "Bark is another model.",
    PIPELINE + "test_vits_model_pt": "VITS is another model.",
    PIPELINE + "test_forward_model_kwargs": "A model that generates nothing: MusicGen does.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole MusicGen; not to be written to."""
    return tiny.complete(tmp_path_factory.mktemp("model"))


Made = list[Any]
Row = Callable[[Any, Path, Path], Made]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    """Asserts of a library (its module, the model's folder, an empty one), and returns what is equal in both."""

    def add(function: Row) -> Row:
        assert name not in ROWS
        ROWS[name] = function
        return function

    return add


def noise(*lengths: int, kind: Callable[[np.ndarray], Any] = np.asarray) -> list[Any]:
    return [kind(tiny.noise(n, seed=n).numpy()) for n in lengths]


# Processor


def processor(library: Any, folder: Path, **fields: Any) -> Any:
    tokenizer = library.T5Tokenizer.from_pretrained(folder)
    extractor = library.EncodecFeatureExtractor.from_pretrained(folder, **fields)
    return library.MusicgenProcessor(tokenizer=tokenizer, feature_extractor=extractor)


@row(PROCESSOR + "test_save_load_pretrained_default")
def saved(library: Any, folder: Path, empty: Path) -> Made:
    made = processor(library, folder)
    made.save_pretrained(empty)
    again = library.MusicgenProcessor.from_pretrained(empty)
    assert again.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert isinstance(again.tokenizer, library.T5TokenizerFast)
    assert again.feature_extractor.to_json_string() == made.feature_extractor.to_json_string()
    assert isinstance(again.feature_extractor, library.EncodecFeatureExtractor)
    return [again.tokenizer.get_vocab(), again.feature_extractor.to_json_string()]


@row(PROCESSOR + "test_save_load_pretrained_additional_features")
def saved_with_other_fields(library: Any, folder: Path, empty: Path) -> Made:
    """Of the fields, those that change something here: other end tokens, do_normalize and a padding that is no silence
    are ValueErrors."""
    processor(library, folder).save_pretrained(empty)
    given = {"padding_side": "right", "model_max_length": 9}
    again = library.MusicgenProcessor.from_pretrained(empty, **given)
    tokenizer = library.T5Tokenizer.from_pretrained(folder, **given)
    extractor = library.EncodecFeatureExtractor.from_pretrained(folder, padding_side="right")
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert again.tokenizer.model_max_length == tokenizer.model_max_length == 9
    assert again.feature_extractor.to_json_string() == extractor.to_json_string()
    if library is hf:
        for field in ({"eos_token": "(EOS)"}, {"do_normalize": False}, {"padding_value": 1.0}):
            with pytest.raises(ValueError, match=next(iter(field))):
                library.MusicgenProcessor.from_pretrained(empty, **field)
    return [extractor.to_json_string()]


@row(PROCESSOR + "test_feature_extractor")
def audio_through_the_processor(library: Any, folder: Path, empty: Path) -> Made:
    made, clips = processor(library, folder), noise(1000, 1000, 1000, kind=np.ndarray.tolist)
    direct = made.feature_extractor(clips, return_tensors="np")
    through = made(clips, return_tensors="np")
    assert list(direct) == list(through)
    for name, value in direct.items():
        np.testing.assert_array_equal(through[name], value)
    return list(direct.values())


@row(PROCESSOR + "test_tokenizer")
def text_through_the_processor(library: Any, folder: Path, empty: Path) -> Made:
    made = processor(library, folder)
    direct, through = made.tokenizer("This is a test string"), made(text="This is a test string")
    assert {name: direct[name] for name in direct} == {name: through[name] for name in through}
    return [direct["input_ids"], direct["attention_mask"]]


@row(PROCESSOR + "test_tokenizer_decode")
def ids_through_the_processor(library: Any, folder: Path, empty: Path) -> Made:
    made, ids = processor(library, folder), [[1, 4, 5, 8, 1, 0, 8], [3, 4, 3, 1, 1, 8, 9]]
    assert made.batch_decode(sequences=ids) == made.tokenizer.batch_decode(ids)
    return [made.batch_decode(sequences=ids)]


@row(PROCESSOR + "test_model_input_names")
def names(library: Any, folder: Path, empty: Path) -> Made:
    made = processor(library, folder)
    assert set(made.feature_extractor.model_input_names) <= set(made.model_input_names)
    return [sorted(made.model_input_names), made.feature_extractor.model_input_names]


@row(PROCESSOR + "test_decode_audio")
def padding_of_audio_is_taken_off(library: Any, folder: Path, empty: Path) -> Made:
    made = processor(library, folder, padding_side="left")
    mask = made(noise(5, 10, 15, kind=np.ndarray.tolist)).padding_mask
    decoded = made.batch_decode(np.stack(noise(20, 20, 20))[:, None], padding_mask=mask)
    assert isinstance(decoded, list)
    assert all(isinstance(clip, np.ndarray) for clip in decoded)
    assert [clip.shape for clip in decoded] == [(1, 10), (1, 15), (1, 20)]
    return decoded


# Feature extractor


@row(EXTRACTOR + "test_call")
def lists_and_arrays(library: Any, folder: Path, empty: Path) -> Made:
    extractor = library.EncodecFeatureExtractor()
    clips, lists = noise(800, 1000, 1200), noise(800, 1000, 1200, kind=np.ndarray.tolist)
    made = []
    for a, b, more in ((clips[0], lists[0], {}), (clips, lists, {"padding": True})):
        made += [extractor(given, return_tensors="np", **more).input_values for given in (a, b)]
        np.testing.assert_allclose(made[-1], made[-2], atol=1e-3)
    return made


@row(EXTRACTOR + "test_double_precision_pad")
def double_precision(library: Any, folder: Path, empty: Path) -> Made:
    extractor, made = library.EncodecFeatureExtractor(), []
    clip = np.random.default_rng(0).random(100)
    for given in (clip.tolist(), clip):
        for kind, dtype in (("np", np.float32), ("pt", torch.float32)):
            made.append(extractor.pad([{"input_values": given}], return_tensors=kind).input_values)
            assert made[-1].dtype == dtype
    return made


@row(EXTRACTOR + "test_integration")
def values_of_a_clip(library: Any, folder: Path, empty: Path) -> Made:
    """There of a recording, of which the first values are written down."""
    clip = noise(93680)[0]
    values = library.EncodecFeatureExtractor()([clip], return_tensors="pt").input_values
    assert values.shape == (1, 1, 93680)
    np.testing.assert_allclose(values[0, 0, :30], clip[:30], rtol=1e-6, atol=1e-6)
    return [values]


@row(EXTRACTOR + "test_integration_stereo")
def values_of_both_sides(library: Any, folder: Path, empty: Path) -> Made:
    clip = noise(93680)[0]
    given = [np.stack([clip, clip * 0.5])]
    values = library.EncodecFeatureExtractor(feature_size=2)(given, return_tensors="pt").input_values
    assert values.shape == (1, 2, 93680)
    np.testing.assert_allclose(values[0, 1, :30], clip[:30] * 0.5, rtol=1e-6, atol=1e-6)
    return [values]


@row(EXTRACTOR + "test_truncation_and_padding")
def chunks(library: Any, folder: Path, empty: Path) -> Made:
    extractor = library.EncodecFeatureExtractor(feature_size=1, chunk_length_s=1, overlap=0.01)
    clips = noise(93680, 74400)
    with pytest.raises(ValueError):
        extractor(clips, padding="max_length", truncation=True, return_tensors="pt")
    made = []
    for given, shape in (
        ({"truncation": True}, (2, 1, 71520)),
        ({"truncation": True, "max_length": 48000}, (2, 1, 48000)),
        ({"padding": True}, (2, 1, 95280)),
        ({}, (2, 1, 95280)),
        ({"padding": "max_length", "max_length": 100000}, (2, 1, 100000)),
    ):
        made.append(extractor(clips, return_tensors="pt", **given).input_values)
        assert made[-1].shape == shape
    for chunk, overlap in ((1, 0.01), (None, 0.01), (2, None)):
        extractor.chunk_length_s, extractor.overlap = chunk, overlap
        with pytest.raises(ValueError):
            extractor(clips, padding=False, return_tensors="pt")
        made.append(extractor(clips[0], padding=False, return_tensors="pt").input_values)
        assert made[-1].shape == (1, 1, 93680)
    return made


@row(SEQUENCE + "test_feat_extract_common_properties")
def properties(library: Any, folder: Path, empty: Path) -> Made:
    extractor = library.EncodecFeatureExtractor()
    return [extractor.feature_size, extractor.sampling_rate, extractor.padding_value]


LENGTHS = (400, 666, 932, 1198, 1464, 1730, 1996)


def padded(library: Any, kind: Callable[[np.ndarray], Any]) -> Made:
    extractor = library.EncodecFeatureExtractor()
    clips = noise(*LENGTHS, kind=kind)

    def pad(**given: Any) -> Any:
        return extractor.pad({"input_values": list(clips)}, **given)["input_values"]

    with pytest.raises(ValueError):
        pad(padding="max_length")
    plain, longest, to_longest = pad(padding=False), pad(padding="longest"), pad(padding="max_length", max_length=1996)
    assert [len(clip) for clip in plain] == [*LENGTHS]
    assert {len(clip) for clip in longest} == {1996}
    np.testing.assert_array_equal(longest, to_longest)
    assert pad(padding="longest", return_tensors="np").shape == (7, 1996)
    assert pad(padding="max_length", max_length=2266, return_tensors="np").shape == (7, 2266)
    for given, width in (
        ({}, 2000),
        ({"padding": "longest"}, 2000),
        ({"padding": "max_length", "max_length": 2266}, 2270),
        ({"padding": "max_length", "max_length": 2266, "return_tensors": "np"}, 2270),
    ):
        made = pad(pad_to_multiple_of=10, **given)
        assert {len(clip) for clip in made} == {width}
    assert not np.asarray(longest[0])[400:].any()
    return [plain, longest, made]


ROWS[SEQUENCE + "test_padding_from_list"] = lambda library, folder, empty: padded(library, np.ndarray.tolist)
ROWS[SEQUENCE + "test_padding_from_array"] = lambda library, folder, empty: padded(library, np.asarray)


def cut(library: Any, kind: Callable[[np.ndarray], Any]) -> Made:
    extractor = library.EncodecFeatureExtractor()
    clips = noise(*LENGTHS, kind=kind)

    def pad(**given: Any) -> Any:
        return extractor.pad({"input_values": list(clips)}, **given)["input_values"]

    made = []
    for length in (400, 666):
        for more in ({}, {"return_tensors": "np"}):
            made += [pad(padding="max_length", max_length=length, truncation=cut, **more) for cut in (True, False)]
            assert {len(clip) for clip in made[-2]} == {length}
            assert [len(clip) for clip in made[-1]] == [max(length, n) for n in LENGTHS]
    for given in ({}, {"padding": "longest"}, {"padding": "max_length"}):
        with pytest.raises(ValueError):
            pad(truncation=True, **given)
    made += [pad(padding="max_length", max_length=400, pad_to_multiple_of=12, truncation=cut) for cut in (True, False)]
    assert {len(clip) for clip in made[-2]} == {408}
    assert len({len(clip) for clip in made[-1]}) > 1
    return made


ROWS[SEQUENCE + "test_truncation_from_list"] = lambda library, folder, empty: cut(library, np.ndarray.tolist)
ROWS[SEQUENCE + "test_truncation_from_array"] = lambda library, folder, empty: cut(library, np.asarray)


@row(SEQUENCE + "test_padding_accepts_tensors_pt")
def tensors(library: Any, folder: Path, empty: Path) -> Made:
    extractor = library.EncodecFeatureExtractor()
    made = [extractor.pad({"input_values": noise(*LENGTHS)}, return_tensors=kind).input_values for kind in ("np", "pt")]
    np.testing.assert_array_equal(made[0], made[1].numpy())
    return made


@row(SEQUENCE + "test_attention_mask")
def mask(library: Any, folder: Path, empty: Path) -> Made:
    made = library.EncodecFeatureExtractor(return_attention_mask=True).pad(
        {"input_values": noise(*LENGTHS)}, padding="longest", return_tensors="np"
    )
    assert made.attention_mask.shape == made.input_values.shape[:2]
    assert made.attention_mask.sum(-1).tolist() == [*LENGTHS]
    return [made.attention_mask]


@row(SEQUENCE + "test_attention_mask_with_truncation")
def mask_of_what_is_cut(library: Any, folder: Path, empty: Path) -> Made:
    made = library.EncodecFeatureExtractor(return_attention_mask=True).pad(
        {"input_values": noise(*LENGTHS)}, padding="max_length", max_length=400, truncation=True, return_tensors="np"
    )
    assert made.attention_mask.shape == (7, 400)
    assert made.attention_mask.sum(-1).tolist() == [400] * 7
    return [made.attention_mask]


FIELDS = {"feature_size": 1, "padding_value": 0.0, "sampling_rate": 24000, "return_attention_mask": True}


@row(SAVING + "test_feat_extract_to_json_string")
def json_text(library: Any, folder: Path, empty: Path) -> Made:
    text = library.EncodecFeatureExtractor(**FIELDS).to_json_string()
    assert FIELDS.items() <= json.loads(text).items()
    return [text]


@row(SAVING + "test_feat_extract_to_json_file")
def json_file(library: Any, folder: Path, empty: Path) -> Made:
    first = library.EncodecFeatureExtractor(**FIELDS)
    first.to_json_file(empty / "x.json")
    second = library.EncodecFeatureExtractor.from_json_file(empty / "x.json")
    assert second.to_dict() == first.to_dict()
    return [second.to_dict(), (empty / "x.json").read_text()]


@row(SAVING + "test_feat_extract_from_and_save_pretrained")
def extractor_saved(library: Any, folder: Path, empty: Path) -> Made:
    first = library.EncodecFeatureExtractor(**FIELDS)
    file = Path(first.save_pretrained(empty)[0])
    text = file.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    second = library.EncodecFeatureExtractor.from_pretrained(empty)
    assert second.to_dict() == first.to_dict()
    return [file.name, text]


@row(SAVING + "test_init_without_params")
def without_arguments(library: Any, folder: Path, empty: Path) -> Made:
    return [library.EncodecFeatureExtractor().to_dict()]


# Pipeline


def pipe(library: Any, folder: Path, **fields: Any) -> Any:
    if library is hf:
        return hf.pipeline(task="text-to-audio", model=folder, **fields)
    made = transformers.pipeline(task="text-to-audio", model=str(folder), device=-1, **fields)
    for p in made.model.parameters():  # copies are where BLAS sums as it does for ours: see tiny.pair()
        p.data = p.data.clone()
    return made


def audio_of(outputs: Any) -> list[np.ndarray]:
    outputs = outputs if isinstance(outputs, list) else [outputs]
    for output in outputs:
        assert output.keys() == {"audio", "sampling_rate"}
        assert isinstance(output["audio"], np.ndarray)
        assert output["sampling_rate"] == tiny.RATE
    return [output["audio"] for output in outputs]


PAIR = ["This is a test", "This is a second test"]


@row(PIPELINE + "test_small_musicgen_pt")
def one_and_two_texts(library: Any, folder: Path, empty: Path) -> Made:
    generator = pipe(library, folder, do_sample=False, max_new_tokens=5)
    made = [audio_of(generator(PAIR[0])), audio_of(generator(PAIR))]
    plain = pipe(library, folder)
    made.append(audio_of(plain(PAIR, forward_params={"do_sample": False, "max_new_tokens": 5}, batch_size=2)))
    assert [len(clips) for clips in made] == [1, 2, 2]
    assert {clip.ndim for clips in made for clip in clips} == {1}  # mono
    return made


@row(PIPELINE + "test_conversion_additional_tensor")
def parameters_of_the_tokenizer(library: Any, folder: Path, empty: Path) -> Made:
    """There of Bark, and of a tensor among its parameters: what holds of MusicGen, too."""
    generator = pipe(library, folder)
    preprocess = {"max_length": 25, "add_special_tokens": False, "return_attention_mask": True, "padding": "max_length"}
    preprocess["return_token_type_ids"] = False
    forward = {"do_sample": False, "max_new_tokens": 9}
    made = audio_of(generator(PAIR[0], forward_params=forward, preprocess_params=preprocess))
    codes = torch.zeros(4, 3, dtype=torch.long)
    forward["decoder_input_ids"] = codes
    return [made, audio_of(generator(PAIR[0], forward_params=forward, preprocess_params=preprocess))]


@row(PIPELINE + "test_generative_model_kwargs")
def precedence(library: Any, folder: Path, empty: Path) -> Made:
    generator = pipe(library, folder)
    transformers.set_seed(555)
    drawn = audio_of(generator(PAIR[0], forward_params={"do_sample": True, "max_new_tokens": 20}))
    transformers.set_seed(555)
    forward = {"do_sample": False, "max_new_tokens": 20}
    again = audio_of(generator(PAIR[0], forward_params=forward, generate_kwargs={"do_sample": True}))
    np.testing.assert_array_equal(again[0], drawn[0])
    return [drawn]


@row(PIPELINE + "run_pipeline_test")
def of_parts(library: Any, folder: Path, empty: Path) -> Made:
    """Of samples of one text transformers makes one clip, of codebooks of both, so that their number is compared."""
    loaded, whole = pipe(library, folder), processor(library, folder)
    generator = library.TextToAudioPipeline(
        model=loaded.model,
        tokenizer=whole.tokenizer,
        feature_extractor=whole.feature_extractor,
        processor=whole,
        device=-1,
        max_new_tokens=5,
    )
    (single,) = audio_of(generator(PAIR[0]))
    forward = {"num_return_sequences": 2, "do_sample": True}
    made = audio_of(generator(["This is great !", "Something else"], forward_params=forward))
    assert len(made) == 2
    if library is hf:
        assert {clip.shape for clip in made} == {(2, *single.shape)}
    return [single.shape, len(made)]


# The names of the tests of each suite.
SUITES = {
    PROCESSOR: [
        "save_load_pretrained_default", "save_load_pretrained_additional_features", "feature_extractor", "tokenizer",
        "tokenizer_decode", "model_input_names", "decode_audio",
    ],
    EXTRACTOR: [
        "call", "double_precision_pad", "integration", "integration_stereo", "truncation_and_padding"
    ],
    SEQUENCE: [
        "feat_extract_common_properties", "batch_feature", "batch_feature_pt", "batch_feature_tf", "padding_from_list",
        "padding_from_array", "truncation_from_list", "truncation_from_array", "padding_accepts_tensors_pt",
        "padding_accepts_tensors_tf", "attention_mask", "attention_mask_with_truncation",
    ],
    SAVING: [
        "feat_extract_to_json_string", "feat_extract_to_json_file", "feat_extract_from_and_save_pretrained",
        "init_without_params",
    ],
    PIPELINE: [
        "small_speecht5_pt", "small_musicgen_pt", "medium_seamless_m4t_pt", "small_bark_pt",
        "conversion_additional_tensor", "vits_model_pt", "forward_model_kwargs", "generative_model_kwargs",
        "csm_model_pt", "dia_model",
    ],
}  # fmt: skip


def test_every_test_has_a_row_or_a_reason() -> None:
    named = {f"{suite}test_{name}" for suite, names in SUITES.items() for name in names}
    assert named | {PIPELINE + "run_pipeline_test"} == ROWS.keys() | REASONS.keys()
    assert not ROWS.keys() & REASONS.keys()
    assert all(reason.endswith(".") and len(reason.split()) > 3 for reason in REASONS.values())


@pytest.mark.parametrize("name", ROWS)
def test_both_libraries_do_what_the_suite_asks(name: str, folder: Path, tmp_path: Path) -> None:
    made = []
    for library in (transformers, hf):
        empty = tmp_path / library.__name__
        empty.mkdir()
        made.append(ROWS[name](library, folder, empty))
    theirs, ours = made
    equal(ours, theirs)
