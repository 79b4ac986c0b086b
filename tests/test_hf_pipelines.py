"""musicgen_ref.hf's pipeline against transformers 5.24.0: batches, devices, processors, the shapes of what is made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from musicgen_ref import hf
from tests import tiny

TEXTS = ["rain", "loud drums and a heavy bass", "a calm piano"]
GREEDY = {"do_sample": False, "max_new_tokens": 9}


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model; not to be written to."""
    return tiny.complete(tmp_path_factory.mktemp("model"), request.param, guidance_scale=3.0)


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    """Theirs and ours."""
    model = tiny.opened(transformers.MusicgenForConditionalGeneration, folder)
    theirs = transformers.TextToAudioPipeline(model, transformers.AutoTokenizer.from_pretrained(folder), device="cpu")
    return theirs, hf.pipeline("text-to-audio", folder, device="cpu")


@pytest.fixture(scope="module")
def channels(folder: Path) -> int:
    return int(hf.AutoConfig.from_pretrained(folder).decoder.audio_channels)


def check(ours: Any, theirs: Any) -> None:
    """The same clips, of codes that are the same; the codec sums what is batched in another order."""
    assert len(ours) == len(theirs)
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.keys() == their.keys() == {"audio", "sampling_rate"}
        assert mine["sampling_rate"] == their["sampling_rate"] == tiny.RATE
        assert (mine["audio"].shape, mine["audio"].dtype) == (their["audio"].shape, np.float32)
        np.testing.assert_allclose(mine["audio"], their["audio"], rtol=0, atol=1e-5 * float(abs(their["audio"]).max()))


@pytest.mark.parametrize("size", [None, 1, 2, 5])
def test_texts_are_made_in_batches_as_in_transformers(size: int | None, pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    made = ours(TEXTS, batch_size=size, generate_kwargs=GREEDY)
    check(made, theirs(TEXTS, batch_size=size, generate_kwargs=GREEDY))
    check(made, [ours(text, generate_kwargs=GREEDY) for text in TEXTS])
    whole = hf.pipeline(model=ours.model, batch_size=size, **GREEDY)
    assert whole.batch_size == (size or 1)
    check(whole(TEXTS), made)


def test_a_batch_draws_what_transformers_draws(pair: tuple[Any, Any]) -> None:
    given = {"do_sample": True, "max_new_tokens": 9}
    torch.manual_seed(0)
    expected = pair[0](TEXTS, batch_size=3, generate_kwargs=given)
    torch.manual_seed(0)
    torch.empty((), dtype=torch.int64).random_()  # which its loader draws
    check(pair[1](TEXTS, batch_size=3, generate_kwargs=given), expected)


def test_a_batch_is_one_call_of_the_model(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, sizes = pair[1], []
    generate = ours.model.generate

    def watched(**given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        return generate(**given)

    monkeypatch.setattr(ours.model, "generate", watched)
    ours([*TEXTS, "snow"] * 2, batch_size=3, generate_kwargs=GREEDY)
    assert sizes == [3, 3, 2]


def test_an_iterator_is_made_as_it_is_asked_for(pair: tuple[Any, Any]) -> None:
    asked: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            asked.append(text)
            yield text

    class Dataset(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, i: int) -> str:
            return TEXTS[i % len(TEXTS)]  # which never says that it ends

    expected = pair[1](TEXTS, generate_kwargs=GREEDY)
    made = pair[1](texts(), generate_kwargs=GREEDY)
    assert asked == []
    first = next(made)
    assert asked == TEXTS[:1]
    check([first, *made], expected)
    for pipe in pair:
        lazy = pipe(Dataset(), batch_size=2, generate_kwargs=GREEDY)
        assert not isinstance(lazy, list)
        check(list(lazy), expected)
    check(pair[1](tuple(TEXTS), generate_kwargs=GREEDY), expected)
    assert pair[1]([], generate_kwargs=GREEDY) == []


def test_samples_of_a_text_lie_side_by_side(pair: tuple[Any, Any], channels: int) -> None:
    """n mono samples are (n, N), two of stereo (2, 2, N): the axis of the sides is there in stereo alone."""
    given = {"do_sample": True, "max_new_tokens": 9, "num_return_sequences": 2}
    for size in (1, 2):
        made = pair[1](TEXTS[:2], batch_size=size, generate_kwargs=given)
        assert [clip["audio"].shape for clip in made] == [(2, *[2][: channels - 1], 6 * tiny.HOP)] * 2
    one = pair[1](TEXTS[0], generate_kwargs=given)["audio"]
    assert not np.array_equal(*one)
    # Theirs are one clip, of codebooks of both.
    assert pair[0](TEXTS[0], generate_kwargs=given)["audio"].shape != one.shape
    alone = pair[1](TEXTS[0], generate_kwargs={**given, "num_return_sequences": 1})["audio"]
    assert alone.shape == ((2, 6 * tiny.HOP) if channels == 2 else (6 * tiny.HOP,))
    # Samples come from generate() as they are: those of one text, in order.
    inputs = pair[1].tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    torch.manual_seed(0)
    audio = pair[1].model.generate(**inputs, **given).numpy()
    torch.manual_seed(0)
    batch = pair[1](TEXTS[:2], batch_size=2, generate_kwargs=given)
    for i, clip in enumerate(batch):
        assert np.array_equal(clip["audio"].reshape(2, channels, -1), audio[2 * i : 2 * i + 2])


def test_parameters_of_the_tokenizer(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    for given in ({"truncation": True, "max_length": 2}, {"add_special_tokens": False}, {"pad_to_multiple_of": 8}):
        given = {"padding": True, **given}
        made = ours(TEXTS, preprocess_params=given, generate_kwargs=GREEDY)
        check(made, theirs(TEXTS, preprocess_params=given, generate_kwargs=GREEDY))
        check([ours(TEXTS[1], preprocess_params=given, generate_kwargs=GREEDY)], made[1:2])
        check(hf.pipeline(model=ours.model, preprocess_params=given, **GREEDY)(TEXTS), made)
    cut = ours(TEXTS[1], preprocess_params={"truncation": True, "max_length": 2}, generate_kwargs=GREEDY)["audio"]
    assert not np.allclose(cut, ours(TEXTS[1], generate_kwargs=GREEDY)["audio"])


def test_a_processor_brings_its_tokenizer(pair: tuple[Any, Any], folder: Path) -> None:
    theirs, ours = pair
    expected = ours(TEXTS[0], generate_kwargs=GREEDY)
    processor = hf.AutoProcessor.from_pretrained(folder)
    bare = hf.MusicgenForConditionalGeneration.of(ours.model.core)
    bare.generation_config = ours.model.generation_config
    bare.core.tokenizer, kept = None, bare.core.tokenizer
    try:
        for pipe in (
            hf.pipeline(model=bare, processor=processor),
            hf.pipeline(model=bare, processor=str(folder)),
            hf.TextToAudioPipeline(bare, processor=processor),
            hf.TextToAudioPipeline(model=bare, processor=processor, feature_extractor=processor.feature_extractor),
            hf.pipeline(model=bare, tokenizer=processor.tokenizer, processor=processor, num_workers=0),
        ):
            assert pipe.tokenizer is processor.tokenizer or isinstance(pipe.tokenizer, hf.T5Tokenizer)
            check([pipe(TEXTS[0], generate_kwargs=GREEDY)], [expected])
        with pytest.raises(ValueError, match="tokenizer must be given beside a model that was loaded without one"):
            hf.TextToAudioPipeline(bare)
    finally:
        bare.core.tokenizer = kept
    their = transformers.AutoProcessor.from_pretrained(folder)
    pipe = transformers.TextToAudioPipeline(model=theirs.model, processor=their, device="cpu")
    check([expected], [pipe(TEXTS[0], generate_kwargs=GREEDY)])


@pytest.mark.parametrize("device", [-1, "cpu", torch.device("cpu"), None], ids=str)
def test_a_pipeline_says_where_it_is(device: Any, folder: Path) -> None:
    ours = hf.pipeline(model=folder, device=device)
    assert ours.device == ours.model.device == torch.device("cpu")
    model = tiny.opened(transformers.MusicgenForConditionalGeneration, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.TextToAudioPipeline(model, tokenizer, device=-1 if device is None else device)
    assert ours.device == theirs.device
    if device in (-1, None):  # which leave a model where it is
        assert hf.pipeline(model=ours.model.to("meta"), device=device).device.type == "meta"


def test_a_configuration_of_the_call_replaces_that_of_the_pipeline(pair: tuple[Any, Any], folder: Path) -> None:
    theirs, ours = pair
    pipes = (
        transformers.TextToAudioPipeline(
            theirs.model, theirs.tokenizer, device="cpu", max_new_tokens=7, guidance_scale=1
        ),
        hf.pipeline(model=ours.model, max_new_tokens=7, guidance_scale=1),
    )
    for given in ({}, {"max_new_tokens": 9}, {"generation_config": None}):
        made = []
        for pipe, library in zip(pipes, (transformers, hf), strict=True):
            if "generation_config" in given:
                given = {"generation_config": library.GenerationConfig(max_new_tokens=12, do_sample=False)}
            made.append(pipe(TEXTS[0], generate_kwargs={"do_sample": False, **given}))
        check(made[1:], made[:1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size must be a whole number above 0, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number above 0, got 2.0"),
        ({"text_inputs": 5}, "text_inputs must be a string or strings, got int"),
        ({"text_inputs": [5]}, "text must be a string or a non-empty list of strings"),
        ({"preprocess_params": {"padding": "most"}}, "padding must be one of"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(arguments: dict[str, Any], message: str, pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        pair[1](**{"text_inputs": TEXTS, "generate_kwargs": GREEDY} | arguments)
    for given, words in (
        ({"task": "summarization"}, "task must be one of"),
        ({"model": None}, "model must be a directory"),
        ({"revision": "main"}, r"\['revision'\] are for a model that is yet to be loaded"),
        ({"model": "none", "device": "tpu"}, "device_map must be"),
    ):
        with pytest.raises(ValueError, match=words):
            hf.pipeline(**{"model": pair[1].model} | given)
    assert pair[1](TEXTS[:1], batch_size=np.int64(2), generate_kwargs=GREEDY)
    with pytest.raises(ValueError, match="no argument 'batchsize': did you mean 'batch_size'"):
        hf.pipeline(model=pair[1].model, batchsize=2)
    with pytest.raises(ValueError, match="no argument 'batchsize': did you mean 'batch_size'"):
        hf.TextToAudioPipeline(pair[1].model, batchsize=2)
