"""The codec, equal to transformers' EncodecModel at every stage: latents, codes, quantised latents, audio.

Both sides run the same operations on the same numbers, so that equal means to the bit unless a test says otherwise.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import soundfile
import soxr
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.testing import assert_close
from transformers import EncodecConfig as TheirConfig
from transformers import EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecConvTranspose1d

from musicgen_ref import encodec
from musicgen_ref.checkpoint import huggingface
from musicgen_ref.encodec import Chunk, Encodec, EncodecConfig
from tests import tiny

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "audio"

# Fields that differ from tiny.codec_config(): 400 Hz mono, hop 8, not causal, no shortcut convolution, 4 codebooks.
CAUSAL = {"use_causal_conv": True, "use_conv_shortcut": True}
# Like the real one, 150 frames a piece and pieces that start 148.5 frames apart, which is not a whole number.
CHUNKED = {
    "sampling_rate": 1200,
    "audio_channels": 2,
    "use_conv_shortcut": True,
    "norm_type": "time_group_norm",
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
    "target_bandwidths": [0.9, 1.8, 3.6],
}
KINDS: dict[str, dict[str, Any]] = {
    "32 kHz": {},
    "24 kHz": {**CAUSAL, "target_bandwidths": [0.3, 0.6, 1.2, 2.4]},
    "48 kHz": CHUNKED,
    "causal, trimmed on both sides": {**CAUSAL, "trim_right_ratio": 0.5},
    "causal, trimmed on the left": {**CAUSAL, "trim_right_ratio": 0.0},
    "two residual layers": {"num_residual_layers": 2, "dilation_growth_rate": 3},
    "causal, three residual layers": {**CAUSAL, "num_residual_layers": 3},
    "one LSTM layer": {"num_lstm_layers": 1},
    "odd ratios": {"upsampling_ratios": [5, 3], "sampling_rate": 750},
    "causal, odd ratios": {**CAUSAL, "upsampling_ratios": [3, 5], "sampling_rate": 750, "trim_right_ratio": 0.5},
    "constant padding": {"pad_mode": "constant"},
    "replicate padding": {"pad_mode": "replicate"},
    "even kernels": {"kernel_size": 6, "last_kernel_size": 4, "residual_kernel_size": 2},
    "ratio 1": {"upsampling_ratios": [2, 1, 4]},
    "narrow inside": {"num_filters": 6, "compress": 3},
    "normalised mono": {"normalize": True, "use_conv_shortcut": True},
    "stereo": {"audio_channels": 2},
}
# Kinds whose lengths are those of others: 32 kHz, three residual layers, trimmed on both sides.
SAME_LENGTHS = ("one LSTM layer", "narrow inside", "normalised mono", "stereo", "two residual layers")
SAME_LENGTHS += ("causal, trimmed on the left", "replicate padding")
kinds = pytest.mark.parametrize("kind", KINDS)


def build(**fields: Any) -> tuple[EncodecModel, Encodec]:
    """transformers' tiny codec and ours with the same weights."""
    theirs = tiny.codec(tiny.codec_config(**fields))
    return theirs, tiny.our_codec(theirs)


@cache
def pair(kind: str = "32 kHz") -> tuple[EncodecModel, Encodec]:
    """build() of a kind, shared between tests: to change a model, build it."""
    return build(**KINDS[kind])


def audio_for(codec: Encodec, samples: int, batch: int = 2, seed: int = 1) -> Tensor:
    return tiny.noise(batch, codec.config.channels, samples, seed=seed)


def pieces_of(theirs: EncodecModel, audio: Tensor, bandwidth: float) -> list[Chunk]:
    """transformers' coding of each piece of audio, before it stacks them into one tensor."""
    length = theirs.config.chunk_length or audio.shape[-1]
    starts = range(0, audio.shape[-1], theirs.config.chunk_stride or audio.shape[-1])
    return [Chunk(*theirs._encode_frame(audio[..., i : i + length], bandwidth)) for i in starts]


def can_be_stacked(pieces: list[Chunk]) -> bool:
    """Whether transformers' encode() survives: it pads the last piece alone to the length of the first."""
    frames = [piece.codes.shape[-1] for piece in pieces]
    return all(n == frames[0] for n in frames[:-1]) and frames[-1] <= frames[0]


def can_be_joined(pieces: list[Chunk], config: EncodecConfig) -> bool:
    """Whether transformers' decode() survives: no piece may end after the last one."""
    ends = [i * config.chunk_stride + piece.codes.shape[-1] * config.hop for i, piece in enumerate(pieces)]
    return max(ends) == ends[-1]


def weighted_mean(pieces: list[Tensor], stride: int) -> Tensor:
    """What overlap-add means, in fp64: at each sample, the pieces' mean with weights 1 - |distance to the middle|."""
    total = stride * (len(pieces) - 1) + pieces[-1].shape[-1]
    sums = torch.zeros(*pieces[0].shape[:-1], total, dtype=torch.float64)
    weights = torch.zeros(total, dtype=torch.float64)
    full = pieces[0].shape[-1]
    triangle = 1 - (2 * torch.arange(1, full + 1, dtype=torch.float64) / (full + 1) - 1).abs()
    for i, piece in enumerate(pieces):
        begin, end = i * stride, min(i * stride + piece.shape[-1], total)
        sums[..., begin:end] += triangle[: end - begin] * piece[..., : end - begin]
        weights[begin:end] += triangle[: end - begin]
    return sums / weights


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The inputs and outputs of a module, call by call."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    yield calls
    handle.remove()


def theirs_in_ours(**fields: Any) -> EncodecConfig:
    """Our configuration for fields of transformers'."""
    config = tiny.codec_config(**fields).to_dict()
    return EncodecConfig(**huggingface.read_fields(config, huggingface.CODEC_FIELDS, "fields"))


def assert_same_calls(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> None:
    assert len(ours) == len(theirs) > 0
    for (our_input, our_output), (their_input, their_output) in zip(ours, theirs, strict=True):
        assert torch.equal(our_input, their_input)
        assert torch.equal(our_output, their_output)


@torch.no_grad()
def assert_equal_stages(theirs: EncodecModel, ours: Encodec, audio: Tensor, bandwidth: float) -> None:
    """Latents, codes, scales, quantised latents and audio are equal; where transformers crashes, its pieces are."""
    config = ours.config
    with recorded(ours.encoder) as our_calls, recorded(theirs.encoder) as their_calls:
        chunks = ours.encode(audio, config.codebooks_for(bandwidth))
        if config.chunk_seconds is None:
            coded = theirs.encode(audio, bandwidth=bandwidth)
            pieces = [Chunk(coded.audio_codes[0], coded.audio_scales[0])]
        else:
            pieces = pieces_of(theirs, audio, bandwidth)
    assert_same_calls(our_calls, their_calls)
    for chunk, piece, (samples, latents) in zip(chunks, pieces, our_calls, strict=True):
        assert latents.shape == (len(audio), config.hidden, math.ceil(samples.shape[-1] / config.hop))
        assert torch.equal(chunk.codes, piece.codes)
        assert (chunk.scale is None) == (piece.scale is None) == (not config.normalize)
        assert chunk.scale is None or torch.equal(chunk.scale, piece.scale)

    chunks = [Chunk(piece.codes, chunk.scale) for chunk, piece in zip(chunks, pieces, strict=True)]
    with recorded(ours.decoder) as our_calls:
        decoded = ours.decode(chunks)
    stride = config.chunk_stride if config.chunk_seconds else 0
    assert decoded.shape[-1] == (len(chunks) - 1) * stride + chunks[-1].codes.shape[-1] * config.hop
    with recorded(theirs.decoder) as their_calls:
        if not can_be_stacked(pieces):
            with pytest.raises(RuntimeError, match="equal size"):
                theirs.encode(audio, bandwidth=bandwidth)
            expected = None
            for piece in pieces:
                theirs._decode_frame(*piece)
        else:
            if config.chunk_seconds is not None:
                coded = theirs.encode(audio, bandwidth=bandwidth)
                for i, chunk in enumerate(chunks):
                    padded = F.pad(chunk.codes, (0, coded.audio_codes.shape[-1] - chunk.codes.shape[-1]))
                    assert torch.equal(coded.audio_codes[i], padded)
            expected = decode_as_theirs(theirs, coded, survives=stride == 0 or can_be_joined(pieces, config))
    assert_same_calls(our_calls, their_calls)
    if expected is not None:
        assert torch.equal(decoded, expected)
        return
    # Where transformers crashes: its own pieces, joined as its code says, until the last piece begins ...
    scales = [1 if piece.scale is None else piece.scale.view(-1, 1, 1) for piece in pieces]
    sides = [output * scale for (_, output), scale in zip(their_calls, scales, strict=True)]
    begin = stride * (len(sides) - 1)
    padded = F.pad(sides[-1], (0, sides[0].shape[-1] - sides[-1].shape[-1]))
    expected = theirs._linear_overlap_add([*sides[:-1], padded], stride)
    assert torch.equal(decoded[..., :begin], expected[..., :begin])
    # ... and the weighted mean after that. fp32 gives weights near a piece's edge, small differences of numbers near
    # 0.5, to 4 digits.
    expected = weighted_mean(sides, stride)
    assert_close(decoded.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def decode_as_theirs(theirs: EncodecModel, coded: Any, survives: bool) -> Tensor | None:
    """transformers' audio, or None where it crashes as foreseen."""
    arguments = {"last_frame_pad_length": coded.last_frame_pad_length}
    if survives:
        return theirs.decode(coded.audio_codes, coded.audio_scales, **arguments).audio_values
    with pytest.raises(RuntimeError, match="must match"):
        theirs.decode(coded.audio_codes, coded.audio_scales, **arguments)
    return None


# Joining pieces: direct tests, which stand ahead of those that code and decode


def test_pieces_that_agree_join_without_a_trace() -> None:
    signal = tiny.noise(1, 2, 100)
    pieces = [signal[..., i : i + 40] for i in (0, 30, 60)]
    assert_close(encodec.overlap_add(pieces, 30), signal, rtol=0, atol=1e-6)  # fp32: w x / w


@settings(deadline=None)
@given(
    count=st.integers(1, 6),
    length=st.integers(1, 40),
    last=st.integers(1, 40),
    stride=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_overlap_add_equals_transformers_and_its_definition(
    count: int, length: int, last: int, stride: int, dtype: torch.dtype
) -> None:
    assume(stride <= length and last <= length)
    lengths = [length] * (count - 1) + [last if count > 1 else length]
    pieces = [tiny.noise(2, 1, n, seed=i).to(dtype) for i, n in enumerate(lengths)]
    joined = encodec.overlap_add(pieces, stride)
    if max(i * stride + n for i, n in enumerate(lengths)) == stride * (count - 1) + lengths[-1]:
        assert torch.equal(joined, EncodecModel._linear_overlap_add(pieces, stride))
    assert joined.dtype == dtype
    # Samples are below 1, and weights at the edge of a long piece are differences of numbers near 0.5.
    assert_close(joined.double(), weighted_mean(pieces, stride), rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)


# Every stage


@kinds
def test_every_stage_equals_transformers_at_every_bandwidth(kind: str) -> None:
    theirs, ours = pair(kind)
    audio = audio_for(ours, 20 * ours.config.hop + 3)
    for bandwidth in ours.config.bandwidths:
        assert_equal_stages(theirs, ours, audio, bandwidth)


@kinds
def test_every_codebook_of_these_models_uses_many_codes(kind: str) -> None:
    # Otherwise equal codes would say little: transformers initialises the codebooks to zero, and all codes are then 0.
    _, ours = pair(kind)
    chunk = ours.encode(audio_for(ours, 100 * ours.config.hop), ours.config.codebooks)[0]
    for k in range(ours.config.codebooks):
        assert len(chunk.codes[:, k].unique()) > 5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SAME_LENGTHS])
def test_every_short_length_equals_transformers(kind: str) -> None:
    theirs, ours = pair(kind)
    for samples in range(1, 3 * ours.config.hop + 2):
        assert_equal_stages(theirs, ours, audio_for(ours, samples, seed=samples), ours.config.bandwidths[-1])


@pytest.mark.parametrize("kind", ["32 kHz", "24 kHz"])
def test_a_long_clip_equals_transformers(kind: str) -> None:
    theirs, ours = pair(kind)
    assert_equal_stages(theirs, ours, audio_for(ours, 20001, batch=1), ours.config.bandwidths[-1])


def test_a_gradient_reaches_the_audio_through_the_encoder() -> None:
    theirs, ours = pair()
    audio = audio_for(ours, 50)
    gradients = []
    for model in (theirs, ours):
        leaf = audio.clone().requires_grad_()
        model.encoder(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().min() > 0


# Half precision


def fold_weight_norm(model: EncodecModel) -> EncodecModel:
    """transformers' model with plain weights, folded in fp32 as ours are on load."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return model


@kinds
def test_bf16_equals_transformers_with_weight_norm_folded(kind: str) -> None:
    theirs, ours = build(**KINDS[kind])
    audio = audio_for(ours, 150).bfloat16()
    theirs, ours = fold_weight_norm(theirs).bfloat16(), ours.bfloat16()
    for bandwidth in ours.config.bandwidths:
        assert_equal_stages(theirs, ours, audio, bandwidth)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].get("norm_type") is None])
def test_a_bf16_convolution_of_transformers_with_its_norm_in_bf16_is_within_rounding_of_ours(kind: str) -> None:
    # transformers rounds g and v to bf16 and computes g * v / |v| in bf16 at every call; ours is rounded once, when it
    # is loaded. A rounding is at most 2**-8 of a number: g, v, |v|, the quotient, the product and ours make 6 of each
    # weight, and each output is rounded on either side.
    theirs, ours = build(**KINDS[kind])
    theirs, ours = theirs.bfloat16(), ours.bfloat16()
    convs = [m for m in theirs.modules() if isinstance(m, EncodecConv1d | EncodecConvTranspose1d)]
    mine = [m for m in ours.modules() if isinstance(m, encodec.Conv | encodec.ConvTranspose)]
    differ = 0
    for conv, own in zip(convs, mine, strict=True):
        x = tiny.noise(2, own.conv.in_channels, 30).bfloat16()
        expected, got = conv(x), own(x)
        assert got.dtype == expected.dtype == torch.bfloat16
        exact = copy.deepcopy(own).float()
        exact.conv.weight.abs_()
        exact.conv.bias.zero_()
        bound = 6 * exact(x.float().abs()) + 2 * got.float().abs()
        difference = (got.float() - expected.float()).abs()
        assert (difference <= 2**-8 * bound).all()
        differ += int(difference.count_nonzero())
    assert differ > 0  # or the test above would do


# Lengths


@kinds
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 20])
def test_decoded_audio_has_frames_times_hop_samples(kind: str, frames: int) -> None:
    _, ours = pair(kind)
    codes = tiny.codes(2, ours.config.codebooks, frames)
    scale = torch.tensor([[0.5], [2.0]]) if ours.config.normalize else None
    assert ours.decode([Chunk(codes, scale)]).shape == (2, ours.config.channels, frames * ours.config.hop)


def conv(stride: int, kernel: int, dilation: int = 1, **fields: Any) -> encodec.Conv:
    """A convolution that computes shapes alone, so that inputs may have any length."""
    with torch.device("meta"):
        return encodec.Conv(EncodecConfig(**fields), 1, 1, kernel, stride, dilation)


@settings(deadline=None)
@given(
    samples=st.integers(1, 2**40) | st.integers(1, 100) | st.integers(2**24 - 99, 2**24 + 99),
    stride=st.integers(1, 12),
    more=st.integers(0, 12),
    dilation=st.integers(1, 4),
    causal=st.booleans(),
)
def test_padding_follows_exact_arithmetic_at_any_length(
    samples: int, stride: int, more: int, dilation: int, causal: bool
) -> None:
    kernel = stride + more
    reach = (kernel - 1) * dilation + 1
    total = reach - stride
    # transformers' rule in fractions: pad to a whole number of windows.
    windows = math.ceil(Fraction(samples - reach + total, stride) + 1) - 1
    extra = windows * stride + reach - total - samples
    right = 0 if causal else total // 2
    seen: list[tuple[int, int]] = []

    def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
        seen.append((left, right))
        return x.new_empty(1, 1, x.shape[-1] + left + right)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encodec, "pad", pad)
        out = conv(stride, kernel, dilation, causal=causal)(torch.empty(1, 1, samples, device="meta"))
    padding = (total - right, right + extra)
    assert seen == [padding]
    assert out.shape[-1] == math.ceil(samples / stride)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("samples", [2**24 + 1, 2**26 + 1, 2**31 + 1, 10 * 3600 * 32000 + 7])
def test_an_hour_long_input_gets_every_frame(samples: int, causal: bool) -> None:
    """On both sides of 2 ** 24 samples, from where fp32 rounds them."""
    codec = EncodecConfig(causal=causal)
    with torch.device("meta"):
        encoder = encodec.SEANetEncoder(codec)
        for layer in encoder:
            if isinstance(layer, encodec.LSTM):
                layer.lstm = torch.nn.Identity()  # no meta kernel; its output is as long as its input
                layer.forward = lambda x: x
        assert encoder(torch.empty(1, 1, samples)).shape == (1, codec.hidden, -(-samples // codec.hop))


def test_transformers_rounds_the_padding_of_long_inputs_and_ours_does_not() -> None:
    theirs = EncodecModel(tiny.codec_config()).encoder.layers[3]  # kernel 4, stride 2
    for samples, exact, rounded in [(2**24 - 1, 1, 1), (2**24 + 1, 1, -1), (2**25 + 3, 1, -3)]:
        x = torch.empty(1, 1, samples, device="meta")
        assert -samples % 2 == exact
        assert int(theirs._get_extra_padding_for_conv1d(x)) == rounded
        assert conv(2, 4)(x).shape[-1] == (samples + 1) // 2


@settings(deadline=None)
@given(
    length=st.integers(1, 12),
    left=st.integers(0, 12),
    right=st.integers(0, 12),
    mode=st.sampled_from(["reflect", "constant", "replicate"]),
)
def test_pad_equals_transformers_on_inputs_shorter_than_the_padding(
    length: int, left: int, right: int, mode: str
) -> None:
    x = tiny.noise(2, 3, length)
    assert torch.equal(encodec.pad(x, left, right, mode), EncodecConv1d._pad1d(x, (left, right), mode))


# Batches, padding, scale


def assert_same_but_for_ties(ours: Encodec, latents: Tensor, codes: Tensor, others: Tensor) -> None:
    """Codes (K, T) of latents (D, T) may part only where two codewords are equally near, to 1e-5 of the scale."""
    left, same = latents.double().T, torch.ones(latents.shape[1], dtype=torch.bool)
    for book, code, other in zip(ours.quantizer.codebooks.double(), codes, others, strict=False):
        distance, rival = ((left - book[chosen]).square().sum(1) for chosen in (code, other))
        assert_close(distance[same], rival[same], rtol=0, atol=1e-5 * float(left.square().sum(1).max()))
        left, same = left - book[code], same & (code == other)
    assert same.float().mean() > 0.9, "ties are rare"


@torch.no_grad()
@kinds
def test_a_batch_equals_its_single_runs(kind: str) -> None:
    # Not to the bit: a matrix product with more rows may sum in another order. 1e-5 of the scale is fp32's share.
    _, ours = pair(kind)
    audio = audio_for(ours, 40 * ours.config.hop - 3, batch=5)
    chunks = ours.encode(audio, ours.config.codebooks)
    decoded = ours.decode(chunks)
    latents: list[Tensor] = []
    hook = ours.encoder.register_forward_hook(lambda _module, _inputs, output: latents.append(output))
    try:
        for b in range(5):
            latents.clear()
            single = ours.encode(audio[b : b + 1], ours.config.codebooks)
            for chunk, alone, latent in zip(chunks, single, latents, strict=True):
                assert_same_but_for_ties(ours, latent[0], chunk.codes[b], alone.codes[0])
                assert chunk.scale is None or torch.equal(chunk.scale[b : b + 1], alone.scale)
            row = [Chunk(c.codes[b : b + 1], None if c.scale is None else c.scale[b : b + 1]) for c in chunks]
            assert_close(decoded[b : b + 1], ours.decode(row), rtol=0, atol=1e-5 * float(decoded.abs().max()))
    finally:
        hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["32 kHz", "24 kHz", "48 kHz"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padding_mask_of_transformers_is_zeroed_audio(kind: str, side: str) -> None:
    theirs, ours = pair(kind)
    audio = audio_for(ours, 24 * ours.config.hop + 5)
    mask = torch.ones(2, audio.shape[-1], dtype=torch.long)
    mask[1, 71:] = 0
    if side == "left":
        mask = mask.flip(1)
    coded = theirs.encode(audio, mask)
    chunks = ours.encode(audio * mask[:, None])
    assert torch.equal(chunks[0].codes, coded.audio_codes[0])
    if ours.config.normalize:
        assert torch.equal(chunks[0].scale, coded.audio_scales[0])  # the loudness counts the padding too
    assert not torch.equal(chunks[0].codes, ours.encode(audio)[0].codes)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["normalised mono", "48 kHz"])
def test_loudness_travels_in_the_scale_alone(kind: str) -> None:
    _, ours = pair(kind)
    audio = audio_for(ours, 200)
    chunk, louder = ours.encode(audio)[0], ours.encode(4 * audio)[0]
    mono = audio.double().mean(1)
    assert chunk.scale.shape == (2, 1)
    assert_close(chunk.scale[:, 0].double(), mono.square().mean(-1).sqrt(), rtol=1e-5, atol=0)  # fp32 against fp64
    assert torch.equal(chunk.codes, louder.codes)
    assert_close(louder.scale, 4 * chunk.scale, rtol=1e-6, atol=0)  # 1e-8 is added to either
    decoded = ours.decode([chunk])
    doubled = ours.decode([Chunk(chunk.codes, 2 * chunk.scale)])
    assert decoded.abs().max() > 0
    assert torch.equal(doubled, 2 * decoded)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["normalised mono", "48 kHz"])
def test_silence_is_coded_like_any_audio(kind: str) -> None:
    theirs, ours = pair(kind)
    silence = torch.zeros(2, ours.config.channels, 100)
    assert_equal_stages(theirs, ours, silence, ours.config.bandwidths[-1])
    assert torch.equal(ours.encode(silence)[0].scale, torch.full((2, 1), 1e-8))


def test_a_codec_that_does_not_normalise_has_no_scale() -> None:
    _, ours = pair()
    assert ours.encode(audio_for(ours, 30))[0].scale is None


# Quantiser


def quantizer(*books: Tensor) -> encodec.ResidualVectorQuantizer:
    rvq = encodec.ResidualVectorQuantizer(len(books), *books[0].shape)
    rvq.codebooks.copy_(torch.stack(books))
    return rvq


def test_a_tie_takes_the_first_codeword() -> None:
    book = tiny.noise(8, 3)
    rvq = quantizer(torch.cat([book, book]))
    codes = rvq.encode(tiny.noise(2, 3, 50, seed=1), 1)
    assert codes.shape == (2, 1, 50)
    assert len(codes.unique()) > 5
    assert int(codes.max()) < 8
    # Halfway between codewords, in numbers without rounding.
    rvq = quantizer(torch.tensor([[5.0, 0], [0, 1], [1, 0], [-1, 0], [0, -1]]))
    assert rvq.encode(torch.zeros(1, 2, 4), 1).tolist() == [[[1, 1, 1, 1]]]


def test_each_codebook_codes_what_those_before_it_left() -> None:
    coarse = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    fine = torch.tensor([[1.0, 1], [-1, 1], [0, -2]])
    rvq = quantizer(coarse, fine)
    latents = torch.tensor([[[11.0, -1, 0], [1.0, 11, -2]]])  # (1, 2, 3): 10,0 + 1,1; 0,10 + -1,1; 0,0 + 0,-2
    codes = rvq.encode(latents, 2)
    assert codes.tolist() == [[[1, 2, 0], [0, 1, 2]]]
    assert torch.equal(rvq.decode(codes), latents)
    assert torch.equal(rvq.decode(codes[:, :1]), coarse[codes[:, 0]].transpose(1, 2))


@pytest.mark.parametrize("kind", ["24 kHz", "48 kHz"])
def test_codes_with_fewer_codebooks_are_a_prefix(kind: str) -> None:
    _, ours = pair(kind)
    audio = audio_for(ours, 300)
    every = ours.encode(audio, ours.config.codebooks)[0].codes
    assert every.shape[1] == ours.config.codebooks > 3
    for k in range(1, ours.config.codebooks):
        assert torch.equal(ours.encode(audio, k)[0].codes, every[:, :k])
    fewest = ours.config.codebooks_for(ours.config.bandwidths[0])
    assert torch.equal(ours.encode(audio)[0].codes, every[:, :fewest])  # the default is the lowest bandwidth


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {2.2: 4}),  # 32 kHz
        (
            {
                "sampling_rate": 24000,
                "ratios": (8, 5, 4, 2),
                "codebook_size": 1024,
                "bandwidths": (1.5, 3.0, 6.0, 12.0, 24.0),
            },
            {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32},
        ),
        (
            {
                "sampling_rate": 48000,
                "ratios": (8, 5, 4, 2),
                "codebook_size": 1024,
                "bandwidths": (3.0, 6.0, 12.0, 24.0),
            },
            {3.0: 2, 6.0: 4, 12.0: 8, 24.0: 16},
        ),
        ({"bandwidths": (0.1, 2.2)}, {0.1: 1, 2.2: 4}),  # too low for one codebook: one
    ],
)
def test_a_bandwidth_pays_for_as_many_codebooks_as_published(
    fields: dict[str, Any], expected: dict[float, int]
) -> None:
    config = EncodecConfig(**fields)
    assert {bandwidth: config.codebooks_for(bandwidth) for bandwidth in config.bandwidths} == expected
    assert config.codebooks == max(expected.values())


@pytest.mark.parametrize(
    ("fields", "frame_rate", "hop"),
    [
        ({}, 50, 640),
        ({"sampling_rate": 24000, "ratios": (8, 5, 4, 2)}, 75, 320),
        ({"sampling_rate": 32001}, 51, 640),  # rounded up
    ],
)
def test_frame_rate_and_hop(fields: dict[str, Any], frame_rate: int, hop: int) -> None:
    config = EncodecConfig(**fields)
    assert (config.frame_rate, config.hop) == (frame_rate, hop)


# Pieces


@pytest.mark.parametrize("strides", [0, 1, 2])
def test_every_last_piece_equals_transformers_or_outlives_it(strides: int) -> None:
    # A last piece of 1 to 20 samples after `strides` whole strides, then lengths around a whole piece. transformers
    # survives some of them only: assert_equal_stages() expects its crashes, and counts on its pieces for the rest.
    theirs, ours = pair("48 kHz")
    stride = ours.config.chunk_stride
    assert (ours.config.chunk, stride, ours.config.hop) == (1200, 1188, 8)
    for rest in [*range(1, 21), 600, 1187, 1188]:
        assert_equal_stages(theirs, ours, audio_for(ours, strides * stride + rest, batch=1, seed=rest), 3.6)


@torch.no_grad()
def test_transformers_crashes_where_a_stride_is_not_a_whole_number_of_frames() -> None:
    # The lengths of the test above, by what transformers does with three pieces: the second one has 149 frames where
    # the first has 150 (1 to 4 samples in the third), or ends after the third (5 to 8).
    theirs, ours = pair("48 kHz")
    for rest, survives in [(1, "nothing"), (4, "nothing"), (5, "encode"), (8, "encode"), (9, "both")]:
        audio = audio_for(ours, 2 * ours.config.chunk_stride + rest, batch=1)
        pieces = pieces_of(theirs, audio, 3.6)
        assert can_be_stacked(pieces) == (survives != "nothing")
        assert not can_be_stacked(pieces) or can_be_joined(pieces, ours.config) == (survives == "both")
        decoded = ours.decode(ours.encode(audio, ours.config.codebooks))
        assert decoded.shape[-1] == 2 * 1188 + math.ceil(rest / 8) * 8
        assert torch.isfinite(decoded).all()


def test_a_codec_with_pieces_but_no_overlap_joins_end_to_end() -> None:
    theirs, ours = build(**CHUNKED | {"overlap": 0.0})
    audio = audio_for(ours, 3000, batch=1)
    assert_equal_stages(theirs, ours, audio, 3.6)
    chunks = ours.encode(audio)
    sides = [theirs._decode_frame(*chunk) for chunk in chunks]
    # w x / w: not to the bit, rounded twice
    assert_close(ours.decode(chunks), torch.cat(sides, -1), rtol=1e-5, atol=0)


# Bad input


@pytest.mark.parametrize(
    ("audio", "got"),
    [
        (torch.zeros(2, 30), r"torch\.float32 \(2, 30\)"),
        (torch.zeros(30), r"torch\.float32 \(30,\)"),
        (torch.zeros(1, 1, 1, 30), r"\(1, 1, 1, 30\)"),
        (torch.zeros(1, 2, 30), r"\(1, 2, 30\)"),
        (torch.zeros(1, 3, 30), r"\(1, 3, 30\)"),
        (torch.zeros(1, 1, 0), r"\(1, 1, 0\)"),
        (torch.zeros(0, 1, 30), r"\(0, 1, 30\)"),
        (torch.zeros(1, 1, 30, dtype=torch.int16), r"torch\.int16"),
        (torch.zeros(1, 1, 30, dtype=torch.complex64), r"torch\.complex64"),
    ],
)
def test_audio_of_a_wrong_shape_or_type_is_refused(audio: Tensor, got: str) -> None:
    _, ours = pair()
    with pytest.raises(ValueError, match=rf"^audio must be floating point of shape \(B, 1, N\) with .* got .*{got}"):
        ours.encode(audio)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_audio_of_another_floating_point_type_is_refused(dtype: torch.dtype) -> None:
    _, ours = pair()
    with pytest.raises(ValueError, match=rf"^audio .*float32.* got .*{dtype}"):
        ours.encode(torch.zeros(1, 1, 30, dtype=dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_audio_that_is_not_finite_is_refused(value: float) -> None:
    _, ours = pair()
    audio = audio_for(ours, 30)
    audio[1, 0, 17] = value
    with pytest.raises(ValueError, match=r"^audio must be finite, got NaN or infinity"):
        ours.encode(audio)


@pytest.mark.parametrize("codebooks", [0, -1, 5, 10**6, 2.0, 2.5, math.nan])
def test_codebooks_that_are_not_there_are_refused(codebooks: Any) -> None:
    _, ours = pair()
    with pytest.raises(ValueError, match=rf"^codebooks must be .*1\.\.4, got {codebooks!r}"):
        ours.encode(audio_for(ours, 30), codebooks)


@pytest.mark.parametrize("bandwidth", [3.0, 0, -2.2, math.nan, None, "2.2"])
def test_an_unknown_bandwidth_is_refused(bandwidth: Any) -> None:
    with pytest.raises(ValueError, match=rf"^bandwidth must be one of \(2\.2,\) kbit/s, got {bandwidth!r}"):
        EncodecConfig().codebooks_for(bandwidth)


@pytest.mark.parametrize(
    ("codes", "got"),
    [
        (torch.zeros(4, 5, dtype=torch.long), r"torch\.int64 \(4, 5\)"),
        (torch.zeros(1, 1, 4, 5, dtype=torch.long), r"\(1, 1, 4, 5\)"),
        (torch.zeros(1, 5, 5, dtype=torch.long), r"\(1, 5, 5\)"),
        (torch.zeros(1, 0, 5, dtype=torch.long), r"\(1, 0, 5\)"),
        (torch.zeros(1, 4, 0, dtype=torch.long), r"\(1, 4, 0\)"),
        (torch.zeros(0, 4, 5, dtype=torch.long), r"\(0, 4, 5\)"),
        (torch.zeros(1, 4, 5), r"torch\.float32"),
        (torch.zeros(1, 4, 5, dtype=torch.bool), r"torch\.bool"),
        (torch.zeros(1, 4, 5, dtype=torch.complex64), r"torch\.complex64"),
        (torch.zeros(1, 4, 5, dtype=torch.int16), r"torch\.int16"),  # torch looks nothing up with these
        (torch.zeros(1, 4, 5, dtype=torch.uint8), r"torch\.uint8"),
        (torch.full((1, 4, 5), tiny.CODES), "64..64"),
        (torch.full((1, 4, 5), -1), "-1..-1"),
        (torch.arange(20).view(1, 4, 5) * 4, r"0\.\.76"),
    ],
)
def test_codes_of_a_wrong_shape_type_or_range_are_refused(codes: Tensor, got: str) -> None:
    _, ours = pair()
    with pytest.raises(ValueError, match=rf"^codes must be .*got .*{got}"):
        ours.decode([Chunk(codes)])


def test_int32_codes_decode_like_int64() -> None:
    _, ours = pair()
    codes = tiny.codes(2, 4, 9)
    assert torch.equal(ours.decode([Chunk(codes.int())]), ours.decode([Chunk(codes)]))


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_codec_without_pieces_decodes_one_chunk(count: int) -> None:
    _, ours = pair()
    with pytest.raises(ValueError, match=f"^chunks must be one.*, got {count}"):
        ours.decode([Chunk(tiny.codes(1, 4, 5))] * count)


def test_a_codec_with_pieces_decodes_one_chunk_or_more() -> None:
    _, ours = pair("48 kHz")
    with pytest.raises(ValueError, match=r"^chunks must be a non-empty list, got 0"):
        ours.decode([])


def test_a_normalising_codec_decodes_no_chunk_without_its_scale() -> None:
    _, ours = pair("48 kHz")
    first, second = ours.encode(audio_for(ours, 1300))
    with pytest.raises(ValueError, match="scale, got None"):
        ours.decode([first, Chunk(second.codes)])


def test_a_scale_of_another_batch_is_refused() -> None:
    _, ours = pair("normalised mono")
    with pytest.raises(ValueError, match=r"scale .*got \(3, 1\)"):
        ours.decode([Chunk(tiny.codes(2, 4, 5), torch.ones(3, 1))])


@pytest.mark.parametrize("wrong", ["batch", "shorter than a stride", "longer than the first"])
def test_chunks_that_do_not_fit_together_are_refused(wrong: str) -> None:
    _, ours = pair("48 kHz")
    first, second = ours.encode(audio_for(ours, 1300), ours.config.codebooks)
    chunks = {
        "batch": [first, Chunk(second.codes[:1], second.scale[:1])],
        # Samples that no piece covers: dividing by their weight, 0, would make NaN.
        "shorter than a stride": [Chunk(first.codes[..., :100], first.scale), second],
        "longer than the first": [second, first],
    }[wrong]
    with pytest.raises(ValueError, match=r"^chunks must .*got "):
        ours.decode(chunks)


WHOLE = (
    "sampling_rate",
    "channels",
    "filters",
    "hidden",
    "codebook_size",
    "kernel",
    "last_kernel",
    "residual_kernel",
    "residual_layers",
    "dilation_growth",
    "compress",
    "lstm_layers",
)
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("field", "value", "others"),
    [
        *[(field, value, {}) for field in WHOLE for value in (0, -1, 1.0, True, None, "2")],
        ("channels", 3, {}),
        ("compress", 65, {}),
        ("codebook_size", 1000, {}),
        ("codebook_size", 1, {}),
        *[("ratios", value, {}) for value in ((), (8, 0), (8, -5), (2.0,), (True,), ("8",))],
        *[("bandwidths", value, {}) for value in ((0.1,), (-1.0,), (0.0, 2.2), (NAN,), (INF,))],
        ("bandwidths", (24.0, 2.2), {}),  # not ascending
        *[("norm", value, {}) for value in ("layer_norm", "", None)],
        *[("pad_mode", value, {}) for value in ("circular", "zeros", None)],
        *[("trim_right_ratio", value, {"causal": True}) for value in (-0.1, 1.1, NAN, INF)],
        ("trim_right_ratio", 0.5, {}),
        *[("chunk_seconds", value, {"overlap": 0.1}) for value in (0.0, -1.0, 1e-9, NAN, INF, None)],
        *[("overlap", value, {"chunk_seconds": 1.0}) for value in (-0.1, 1.0, 2.0, NAN, INF, None)],
    ],
)
def test_an_impossible_configuration_names_the_field(field: str, value: Any, others: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"EncodecConfig.*\b{field}\b"):
        EncodecConfig(**{field: value}, **others)


@pytest.mark.parametrize("field", [*WHOLE, "ratios", "bandwidths", "norm", "pad_mode"])
def test_an_impossible_configuration_says_what_was_got(field: str) -> None:
    with pytest.raises(ValueError, match=r"got .*\b77\.5\b"):
        EncodecConfig(**{field: (77.5, -1) if field in ("ratios", "bandwidths") else 77.5})


def test_a_configuration_is_frozen_and_its_defaults_are_those_of_32_khz() -> None:
    config = EncodecConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden = 3  # type: ignore[misc]
    assert (config.sampling_rate, config.hop, config.codebooks, config.codebook_size) == (32000, 640, 4, 2048)
    assert (config.chunk_seconds, config.normalize, config.causal, config.conv_shortcut) == (None, False, False, False)


def test_no_padding_copies_nothing() -> None:
    x = tiny.noise(1, 1, 5)
    assert all(encodec.pad(x, 0, 0, mode) is x for mode in ("reflect", "constant", "replicate"))


def test_a_file_without_bandwidths_is_refused() -> None:
    fields = tiny.codec_config().to_dict() | {"target_bandwidths": []}
    with pytest.raises(ValueError, match=r"bandwidths must be finite and above 0, got \(\)"):
        huggingface.read_codec(fields, "config.json: audio_encoder")


def test_codebooks_and_bandwidths_follow_from_each_other() -> None:
    assert (EncodecConfig().codebooks, EncodecConfig().bandwidths) == (4, (2.2,))
    told = EncodecConfig(ratios=[8, 5, 4, 2], codebooks=8)  # as JSON has them
    assert (told.ratios, told.codebooks, told.bandwidths, told.frame_rate) == ((8, 5, 4, 2), 8, (8.8,), 100)
    assert told == EncodecConfig(ratios=(8, 5, 4, 2), bandwidths=[8.8]) and hash(told) is not None
    assert EncodecConfig(bandwidths=(1.1, 2.2), codebooks=4).codebooks_for(1.1) == 2
    for books in range(1, 257):  # whatever rounding does, a bandwidth that is made of a number pays for it
        config = EncodecConfig(codebooks=books, sampling_rate=24000, codebook_size=1024)
        assert config.codebooks == books == config.codebooks_for(config.bandwidths[0])
    with pytest.raises(ValueError, match=r"codebooks must be the 2 that bandwidths \(1.1,\) pay for, got 4"):
        EncodecConfig(bandwidths=(1.1,), codebooks=4)
    for wrong in (-1, 2.0, "4"):
        with pytest.raises(ValueError, match=r"EncodecConfig\.codebooks must be a positive whole number"):
            EncodecConfig(codebooks=wrong)


def test_pieces_are_joined_on_their_device() -> None:
    pieces = [torch.ones(2, 1, 6), torch.ones(2, 1, 6), torch.ones(2, 1, 3)]
    with torch.device("meta"):
        joined = encodec.overlap_add(pieces, 4)
    assert torch.equal(joined, torch.ones(2, 1, 11))


# Random configurations, after the direct tests, which say more of a fault


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of transformers' configuration; pieces of 1 to 4 frames in one case of two."""
    ratios = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    hop = math.prod(ratios)
    rate = draw(st.integers(100, 1000))
    books = sorted(draw(st.sets(st.integers(1, 6), min_size=1, max_size=3)))
    bits = draw(st.integers(1, 6))
    grouped = draw(st.booleans())
    # GroupNorm refuses a single value, as of one channel and one frame, in transformers as in ours.
    assume(not grouped or hop > 1)
    compress = draw(st.integers(1, 3))
    fields = {
        "sampling_rate": rate,
        "audio_channels": draw(st.integers(1, 2)),
        "num_filters": draw(st.integers(2 * compress, 8)),
        "upsampling_ratios": ratios,
        "hidden_size": draw(st.integers(2, 12)),
        "codebook_size": 2**bits,
        # A little above what k codebooks cost: a quotient that is whole in theory may round down.
        "target_bandwidths": [k * math.ceil(rate / hop) * bits / 1000 * 1.001 for k in books],
        "use_causal_conv": draw(st.booleans()),
        "norm_type": "time_group_norm" if grouped else "weight_norm",
        "normalize": draw(st.booleans()),
        "pad_mode": draw(st.sampled_from(["reflect", "constant", "replicate"])),
        "use_conv_shortcut": draw(st.booleans()),
        "kernel_size": draw(st.integers(1, 8)),
        "last_kernel_size": draw(st.integers(1, 8)),
        "residual_kernel_size": draw(st.integers(1, 5)),
        "num_residual_layers": draw(st.integers(1, 2)),
        "dilation_growth_rate": draw(st.integers(1, 3)),
        "compress": compress,
        "num_lstm_layers": draw(st.integers(1, 2)),
    }
    if fields["use_causal_conv"]:
        fields["trim_right_ratio"] = draw(st.floats(0, 1))
    if draw(st.booleans()):
        fields["chunk_length_s"] = draw(st.integers(max(2, hop), 4 * hop)) / rate
        fields["overlap"] = draw(st.floats(0, 0.7))
    return fields


@settings(deadline=None, max_examples=30)
@given(data=st.data(), fields=configurations())
def test_random_configurations_and_lengths_equal_transformers(data: st.DataObject, fields: dict[str, Any]) -> None:
    theirs, ours = build(**fields)
    samples = data.draw(st.integers(1, 6 * ours.config.hop), label="samples")
    audio = audio_for(ours, samples, batch=data.draw(st.integers(1, 3), label="batch"))
    assert_equal_stages(theirs, ours, audio, data.draw(st.sampled_from(ours.config.bandwidths), label="bandwidth"))


# Real clips through the real sizes; the weights are random

REAL = {
    "32 kHz": TheirConfig(
        sampling_rate=32000,
        num_filters=64,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        target_bandwidths=[2.2],
        use_causal_conv=False,
        use_conv_shortcut=False,
    ),
    "24 kHz": TheirConfig(),
    "48 kHz": TheirConfig(
        sampling_rate=48000,
        audio_channels=2,
        use_causal_conv=False,
        norm_type="time_group_norm",
        normalize=True,
        chunk_length_s=1.0,
        overlap=0.01,
        target_bandwidths=[3.0, 6.0, 12.0, 24.0],
    ),
}


def test_the_defaults_are_the_codec_of_the_release() -> None:
    fields = huggingface.read_fields(REAL["32 kHz"].to_dict(), huggingface.CODEC_FIELDS, "audio_encoder")
    assert EncodecConfig(**fields) == EncodecConfig()


def clip(name: str, begin: float, seconds: float, rate: int, channels: int) -> Tensor:
    """(1, C, N): an excerpt, resampled, mixed down or doubled to the channels asked for."""
    samples, own_rate = soundfile.read(CLIPS / name, dtype="float32", always_2d=True)
    excerpt = samples[int(begin * own_rate) : int((begin + seconds) * own_rate)]
    audio = torch.from_numpy(soxr.resample(excerpt, own_rate, rate)).T
    audio = audio.mean(0, keepdim=True) if channels == 1 else audio.expand(2, -1)
    assert audio.abs().max() > 0.05
    return audio[None].contiguous()


def assert_equal_on_clip(kind: str, name: str, begin: float, seconds: float) -> None:
    sizes = REAL[kind]
    audio = clip(name, begin, seconds, sizes.sampling_rate, sizes.audio_channels)
    theirs = tiny.codec(sizes, audio[..., : sizes.chunk_length])
    ours = tiny.our_codec(theirs)
    assert_equal_stages(theirs, ours, audio, sizes.target_bandwidths[-1])
    codes = ours.encode(audio[..., : sizes.sampling_rate // 2], ours.config.codebooks)[0].codes
    assert min(len(codes[:, k].unique()) for k in range(ours.config.codebooks)) > 3


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not there")
@pytest.mark.parametrize(
    ("kind", "name", "begin", "seconds"),
    [
        ("32 kHz", "bach.mp3", 3.0, 1.01),
        ("24 kHz", "clip_24k_mono.wav", 5.0, 0.5),
        ("48 kHz", "beatbox_44k_stereo.wav", 2.0, 1.003),
    ],
)
def test_a_real_clip_codes_and_decodes_as_in_transformers_at_real_sizes(
    kind: str, name: str, begin: float, seconds: float
) -> None:
    assert_equal_on_clip(kind, name, begin, seconds)


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is not there")
@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("name", ["bach.mp3", "clip_24k_mono.wav", "beatbox_44k_stereo.wav"])
def test_longer_real_clips_code_and_decode_as_in_transformers_at_real_sizes(kind: str, name: str) -> None:
    assert_equal_on_clip(kind, name, 4.0, 5.0 if kind == "48 kHz" else 3.37)
