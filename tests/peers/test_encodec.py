"""What transformers' suite asks of EnCodec, asked of both libraries.

A row for each test of models/encodec/test_modeling_encodec.py, and of the mixin under it (rows.py); the assertion is
written anew. Codecs and recordings of the Hub are replaced by tiny codecs of the same kinds, of 24 and of 48 kHz, and
by noise.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from musicgen_ref import hf
from tests import tiny
from tests.peers.rows import CODEC, COMMON, MIXIN, Made, Subject, first, state_of

SUITE = MIXIN.of(CODEC)

# The two kinds of public codecs, with fewer and narrower layers: causal and mono, or normalised stereo in chunks.
SIZES: dict[str, Any] = {"num_filters": 4, "hidden_size": 16, "upsampling_ratios": [4, 2], "codebook_size": 64}
KINDS: dict[str, dict[str, Any]] = {
    "24": SIZES | {"sampling_rate": 400, "target_bandwidths": [0.6, 1.2], "use_causal_conv": True},
    "48": SIZES | {"sampling_rate": 400, "target_bandwidths": [0.6, 1.2], "audio_channels": 2, "normalize": True}
    | {"use_causal_conv": False, "norm_type": "time_group_norm", "chunk_length_s": 1.0, "overlap": 0.01},
}  # fmt: skip


def codec(s: Subject, kind: str, **fields: Any) -> Any:
    """A codec of the kind with the same weights in both libraries."""
    torch.manual_seed(0)  # biases lie around what transformers draws for them
    theirs = tiny.codec(transformers.EncodecConfig(**KINDS[kind] | fields))
    if not s.ours:
        return theirs
    return hf.EncodecModel.from_pretrained(
        None, config=hf.EncodecConfig(**KINDS[kind] | fields), state_dict=state_of(theirs)
    ).eval()


@SUITE.row("test_config", CODEC)
def configuration(s: Subject) -> Made:
    kind = s.library.EncodecConfig
    config = kind(hidden_size=37)
    assert json.loads(config.to_json_string())["hidden_size"] == 37
    config.save_pretrained(s.empty)
    again = kind.from_pretrained(s.empty)
    written = [json.loads(made.to_json_string(use_diff=False)) for made in (config, again)]
    assert written[0] == written[1]
    kept = ("hidden_size", "frame_rate", "hop_length", "num_quantizers", "chunk_length", "chunk_stride")
    # A codebook_dim that is not said is None here and in files; transformers fills in the hidden_size, which it means.
    return [{name: getattr(again, name) for name in kept}, again.codebook_dim or again.hidden_size]


@SUITE.row("test_model_forward", CODEC)
def there_and_back(s: Subject) -> Made:
    audio = s.inputs["input_values"]
    made = s.run(s.shared)
    assert made.audio_values.shape == audio.shape
    return [made.audio_codes, made.audio_values]


@SUITE.row("test_forward_signature", CODEC)
def arguments(s: Subject) -> Made:
    names = list(inspect.signature(s.cls.forward).parameters)[1:4]
    assert names == ["input_values", "padding_mask", "bandwidth"]
    return names


@SUITE.replaced("test_feed_forward_chunking", CODEC)
def in_chunks(s: Subject) -> Made:
    """There of an untrained codec, within a tenth: here of the codes and the sound of two chunks in both libraries."""
    audio = tiny.noise(2, 2, 800, seed=3)
    made = []
    with torch.no_grad():
        for fields in ({"chunk_length_s": None, "overlap": None}, {"chunk_length_s": 1.0, "overlap": 0.0}):
            out = codec(s, "48", **fields)(audio)
            assert out.audio_values.shape == audio.shape
            made += [out.audio_codes, out.audio_values]
    assert [len(codes) for codes in made[::2]] == [1, 2]
    return made


@SUITE.row("test_identity_shortcut", CODEC)
def without_a_convolution_beside(s: Subject) -> Made:
    made, audio = [], tiny.noise(2, 1, 120, seed=1)
    for shortcut in (False, True):
        with torch.no_grad():
            made.append(codec(s, "24", use_conv_shortcut=shortcut)(audio).audio_values)
        assert made[-1].shape == audio.shape
    assert not torch.equal(*made)
    return made


@SUITE.row("test_model_forward_with_normalization", CODEC)
def normalised(s: Subject) -> Made:
    clips = [clip.numpy() for clip in tiny.noise(3, 2, 200, seed=2)]
    extractor = s.library.EncodecFeatureExtractor(feature_size=2, sampling_rate=400)
    given = extractor(clips, sampling_rate=400, padding=True, return_tensors="pt")
    with torch.no_grad():
        made = codec(s, "48", chunk_length_s=None, overlap=None)(given["input_values"], given["padding_mask"])
    assert made.audio_values.shape == (3, 2, 200)
    return [made.audio_values]


def each_bandwidth(s: Subject, kind: str, clips: list[np.ndarray], masked: bool) -> Made:
    """encode(), decode() and forward() agree, and twice the bits are twice the codebooks. There the sound is compared
    with that before, too, which takes a codec that has learned to keep it."""
    model = codec(s, kind)
    fields = {"chunk_length_s": 1.0, "overlap": 0.01} if kind == "48" else {}
    extractor = s.library.EncodecFeatureExtractor(feature_size=len(clips[0]), sampling_rate=400, **fields)
    extractor.save_pretrained(s.empty)
    extractor = s.library.AutoFeatureExtractor.from_pretrained(s.empty)
    raw = [clip if len(clip) == 2 else clip[0] for clip in clips]
    given = extractor(raw_audio=raw, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    audio, mask = given["input_values"], given["padding_mask"] if masked else None
    made = []
    for bandwidth in (0.6, 1.2):
        with torch.no_grad():
            codes, scales, short = model.encode(audio, mask, bandwidth=bandwidth, return_dict=False)
            apart = model.decode(codes, scales, mask, last_frame_pad_length=short)[0]
            whole = model(audio, mask, bandwidth=bandwidth)[-1]
        apart = apart[..., : audio.shape[-1]]
        torch.testing.assert_close(apart, whole, rtol=0, atol=1e-3)
        assert whole.shape == audio.shape
        made += [[int(piece.sum()) for piece in codes], codes, whole]
    assert made[1].shape[2] * 2 == made[4].shape[2]
    return made


@SUITE.row("test_integration_24kHz", CODEC)
def every_bandwidth_of_mono(s: Subject) -> Made:
    return each_bandwidth(s, "24", [tiny.noise(1, 480, seed=4).numpy()], masked=True)


@SUITE.row("test_integration_48kHz", CODEC)
def every_bandwidth_of_stereo(s: Subject) -> Made:
    one = tiny.noise(1, 720, seed=5).numpy()
    return each_bandwidth(s, "48", [np.concatenate([one, one])], masked=True)


@SUITE.row("test_batch_48kHz", CODEC)
def every_bandwidth_of_a_batch(s: Subject) -> Made:
    clips = [np.concatenate([clip, clip]) for clip in (tiny.noise(1, n, seed=n).numpy() for n in (720, 600))]
    return each_bandwidth(s, "48", clips, masked=False)


@SUITE.replaced("test_batching_equivalence", CODEC)
def one_clip_of_a_batch(s: Subject) -> Made:
    audio = s.inputs["input_values"]
    batched, alone = first(s, s.shared), first(s, s.shared, input_values=audio[:1])
    assert torch.equal(batched[:, :1], alone)
    return [alone]


NOT_A_TRANSFORMER = "EnCodec has neither attention nor hidden states nor embeddings, and the suite leaves it out."
SUITE.reason(
    NOT_A_TRANSFORMER, "test_inputs_embeds", "test_model_get_set_embeddings", "test_attention_outputs",
    "test_retain_grad_hidden_states_attentions", "test_hidden_states_output", "test_enable_input_require_grads",
    "test_attn_implementation_composite_models", "test_sdpa_can_dispatch_non_composite_models",
    "test_sdpa_can_dispatch_composite_models", "test_eager_matches_sdpa_inference", "test_correct_missing_keys",
)  # fmt: skip
SUITE.reason(
    "A codec has no loss here and there: the suite trains none.", "test_training",
    "test_training_gradient_checkpointing", "test_training_gradient_checkpointing_use_reentrant",
    "test_training_gradient_checkpointing_use_reentrant_false", "test_gradient_checkpointing_enable_disable",
    "test_peft_gradient_checkpointing_enable_disable",
)  # fmt: skip

OWN = [
    "test_config", "test_model_forward", "test_forward_signature", "test_identity_shortcut",
    "test_model_forward_with_normalization", "test_integration_24kHz", "test_integration_48kHz", "test_batch_48kHz",
]  # fmt: skip


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    folder = tmp_path_factory.mktemp("codec")
    tiny.codec(transformers.EncodecConfig(**KINDS["24"])).save_pretrained(folder)
    given = {"input_values": tiny.noise(4, 1, 160, seed=9)}
    return [Subject(library, CODEC, folder, folder, given) for library in (transformers, hf)]


def test_every_test_has_a_row_or_a_reason() -> None:
    SUITE.check(COMMON + OWN)


@pytest.mark.parametrize(("name", "kind"), SUITE.cases())
def test_both_libraries_do_what_the_suite_asks(name: str, kind: str, subjects: list[Subject], tmp_path: Path) -> None:
    SUITE.compare(name, tmp_path, *subjects)
