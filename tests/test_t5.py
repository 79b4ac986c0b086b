"""The T5 encoder against transformers' T5EncoderModel, and what it promises by itself."""

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from musicgen_ref.attention import Trace
from musicgen_ref.t5 import T5Config, T5Encoder
from tests import tiny

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The inner width is heads * d_kv; the model width is 24.
SIZES: dict[str, dict[str, Any]] = {
    "inner width above the model's": {"num_heads": 3, "d_kv": 16},
    "inner width below the model's": {"num_heads": 2, "d_kv": 5},
    "small table, three blocks": {
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 9,
        "num_layers": 3,
        "layer_norm_epsilon": 1e-3,
    },
}


@functools.cache
def pair(
    gated: bool = False, backend: str = "sdpa", dtype: torch.dtype = torch.float32, size: str | None = None
) -> tuple[T5EncoderModel, T5Encoder]:
    model = tiny.musicgen(gated=gated, text=SIZES[size] if size else None)
    theirs, ours = tiny.pair(model, backend, dtype)
    return theirs.text_encoder, ours.text_encoder


def padding(kind: str, mask: torch.Tensor) -> torch.Tensor | None:
    if kind == "no mask":
        return None
    if kind == "no padding":
        return torch.ones_like(mask)
    if kind == "a row of padding alone":
        return mask * (torch.arange(len(mask)) != 1)[:, None]
    return mask


@torch.no_grad()
def assert_same(
    theirs: T5EncoderModel, ours: T5Encoder, ids: torch.Tensor, mask: torch.Tensor | None, backend: str
) -> None:
    """Bit for bit: the result, every hidden state, and in eager mode the attention weights."""
    eager = backend == "eager"
    expected = theirs(ids, mask, output_hidden_states=True, output_attentions=eager)
    trace = Trace(weights=True)
    out = ours(ids, mask, backend=backend, trace=trace)
    assert out.isfinite().all()
    assert out.dtype == expected.last_hidden_state.dtype
    assert torch.equal(out, expected.last_hidden_state)
    assert len(trace.hidden) == len(expected.hidden_states) == ours.config.layers + 1
    assert all(torch.equal(a, b) for a, b in zip(trace.hidden, expected.hidden_states, strict=True))
    assert len(trace.self_weights) == ours.config.layers
    assert trace.cross_weights == []
    if eager:
        assert all(torch.equal(a, b) for a, b in zip(trace.self_weights, expected.attentions, strict=True))


@pytest.mark.parametrize("kind", ["padding", "no padding", "no mask", "a row of padding alone"])
@pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_equals_transformers(backend: str, dtype: torch.dtype, gated: bool, kind: str) -> None:
    # The operations are the same in every dtype: fp16 too is equal, as both keep `wo` in fp32.
    ids, mask = tiny.text(4, 9)
    assert_same(*pair(gated, backend, dtype), ids, padding(kind, mask), backend)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_equals_transformers_at_other_sizes(backend: str, size: str) -> None:
    ids, mask = tiny.text(3, 30)
    assert_same(*pair(backend=backend, size=size), ids, mask, backend)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_equals_transformers_past_the_largest_distance(backend: str) -> None:
    ids, mask = tiny.text(2, 300)
    theirs, ours = pair(backend=backend)
    assert ours.config.max_distance == 128
    assert_same(theirs, ours, ids, mask, backend)


@pytest.mark.parametrize("length", [1, 2])
def test_equals_transformers_for_the_shortest_texts(length: int) -> None:
    assert_same(*pair(), torch.full((2, length), 5), None, "sdpa")


def test_fp16_keeps_wo_in_fp32() -> None:
    theirs, ours = pair(dtype=torch.float16)
    for name, kept in (("wo.weight", torch.float32), ("wi.weight", torch.float16), ("q.weight", torch.float16)):
        for model in (theirs, ours):
            assert {p.dtype for n, p in model.named_parameters() if n.endswith(name)} == {kept}


@pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated gelu"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@torch.no_grad()
def test_weights_on_request_do_not_depend_on_the_backend(backend: str, gated: bool) -> None:
    ids, mask = tiny.text(4, 9)
    ours = pair(gated, backend)[1]
    eager, trace = Trace(weights=True), Trace(weights=True)
    ours(ids, mask, backend="eager", trace=eager)
    out = ours(ids, mask, backend=backend, trace=trace)
    for weights, expected in zip(trace.self_weights, eager.self_weights, strict=True):
        assert weights.shape == (4, ours.config.heads, 9, 9)
        # From the second block on they are taken of states that the two backends round differently (1e-6 of them).
        assert_close(weights, expected, rtol=0, atol=1e-5)
        assert_close(weights.sum(-1), torch.ones(4, ours.config.heads, 9), rtol=0, atol=1e-6)
        assert (weights.movedim(3, 1)[mask == 0] == 0).all()
    assert torch.equal(trace.self_weights[0], eager.self_weights[0])
    assert torch.equal(out, ours(ids, mask, backend=backend)), "asking for weights changes nothing"


@torch.no_grad()
def test_a_trace_without_weights_holds_hidden_states_alone() -> None:
    ours, trace = pair()[1], Trace()
    out = ours(*tiny.text(), trace=trace)
    assert torch.equal(trace.hidden[-1], out)
    assert torch.equal(trace.hidden[0], ours.embed(tiny.text()[0]))
    assert trace.self_weights == []


@torch.no_grad()
def test_the_two_backends_agree() -> None:
    ours, (ids, mask) = pair()[1], tiny.text()
    eager = ours(ids, mask, backend="eager")
    # The same sums in another order.
    assert_close(ours(ids, mask, backend="sdpa"), eager, rtol=0, atol=1e-5 * float(eager.abs().max()))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@torch.no_grad()
def test_a_row_of_a_padded_batch_equals_its_single_run(backend: str) -> None:
    ours = pair(backend=backend)[1]
    ids, mask = tiny.text(4, 9)
    batch = ours(ids, mask, backend=backend)
    for row, length in enumerate(mask.sum(1)):
        alone = ours(ids[row : row + 1, :length], backend=backend)
        # A shorter sum is a sum in another order.
        assert_close(batch[row, :length], alone[0], rtol=0, atol=1e-5 * float(alone.abs().max()))


@torch.no_grad()
def test_what_is_masked_has_no_effect() -> None:
    ours = pair()[1]
    ids, mask = tiny.text(4, 9)
    other = torch.where(mask.bool(), ids, (ids + 17) % tiny.VOCAB)
    assert not torch.equal(ids, other)
    kept = mask.bool()
    assert torch.equal(ours(ids, mask)[kept], ours(other, mask)[kept])


@torch.no_grad()
def test_masks_of_bool_and_of_whole_numbers_are_the_same() -> None:
    ours, (ids, mask) = pair()[1], tiny.text()
    assert torch.equal(ours(ids, mask), ours(ids, mask.bool()))
    assert torch.equal(ours(ids, mask), ours(ids, mask.to(torch.int32)))


# Relative positions


def bucket_table(config: T5Config, length: int) -> torch.Tensor:
    """The row of the table (L, L) that each pair of query and key reads."""
    encoder = T5Encoder(config)
    with torch.no_grad():
        encoder.relative_bias.weight.copy_(torch.arange(config.buckets)[:, None].expand(-1, config.heads))
        bias = encoder.position_bias(length)
    assert bias.shape == (1, config.heads, length, length)
    assert (bias == bias[:, :1]).all()
    return bias[0, 0].long()


@settings(max_examples=40)
@given(half=st.integers(1, 20).map(lambda n: 2 * n), beyond=st.integers(1, 300), length=st.integers(1, 200))
def test_relative_positions_share_rows_as_in_transformers(half: int, beyond: int, length: int) -> None:
    config = T5Config(
        vocab_size=3, width=4, layers=1, heads=2, head_width=2, ffn=3, buckets=2 * half, max_distance=half // 2 + beyond
    )
    bucket = bucket_table(config, length)
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    expected = T5Attention._relative_position_bucket(distance, True, config.buckets, config.max_distance)
    assert torch.equal(bucket, expected)

    # What the rule means: only the distance counts; its sign picks the half; what is farther never shares with nearer.
    for d in range(-length + 1, length):
        assert len(bucket.diagonal(d).unique()) == 1
    after, before = bucket[0], bucket[:, 0]  # keys at distance 0, 1, ... behind and before their query
    assert torch.equal(after[1:], before[1:] + half)
    assert (before.diff() >= 0).all()
    assert torch.equal(before[: half // 2], torch.arange(length)[: half // 2])
    assert (before[config.max_distance :] == half - 1).all()
    assert int(bucket.min()) == 0
    assert int(bucket.max()) < config.buckets


def test_relative_positions_of_the_default_table_by_hand() -> None:
    config = dataclasses.replace(T5Config(), vocab_size=3, width=4, layers=1, heads=1, head_width=2, ffn=3)
    expected = [n if n < 8 else min(15, 8 + int(math.log(n / 8) / math.log(128 / 8) * 8)) for n in range(600)]
    before = bucket_table(config, 600)[:, 0]
    assert before.tolist() == expected
    assert before[[7, 8, 11, 12, 127, 128, 599]].tolist() == [7, 8, 8, 9, 15, 15, 15]


# Training


@pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated gelu"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_training_drops_what_transformers_drops(backend: str, gated: bool) -> None:
    theirs, ours = tiny.pair(tiny.musicgen(gated=gated, text={"dropout_rate": 0.3}), backend)
    ids, mask = tiny.text()
    assert ours.text_encoder.config.dropout == 0.3
    torch.manual_seed(1)
    expected = theirs.text_encoder.train()(ids, mask).last_hidden_state
    torch.manual_seed(1)
    out = ours.text_encoder.train()(ids, mask, backend=backend)
    assert torch.equal(out, expected), "the same dropouts in the same order"
    assert not torch.equal(out, ours.text_encoder(ids, mask, backend=backend)), "drawn anew"
    ours.text_encoder.eval()
    assert torch.equal(ours.text_encoder(ids, mask), ours.text_encoder(ids, mask))


def test_gradients_equal_those_of_transformers() -> None:
    theirs, ours = tiny.pair(tiny.musicgen(gated=True))
    ids, mask = tiny.text()
    target = torch.randn(*ids.shape, 24, generator=torch.Generator().manual_seed(0))
    (theirs.text_encoder(ids, mask).last_hidden_state * target).sum().backward()
    (ours.text_encoder(ids, mask) * target).sum().backward()
    block, other = ours.text_encoder.blocks[0], theirs.text_encoder.encoder.block[0].layer
    pairs = {
        "embedding": (ours.text_encoder.embed.weight, theirs.text_encoder.shared.weight),
        "positions": (ours.text_encoder.relative_bias.weight, other[0].SelfAttention.relative_attention_bias.weight),
        "query": (block.attn.q.weight, other[0].SelfAttention.q.weight),
        "norm": (block.ffn_norm.weight, other[1].layer_norm.weight),
        "gate": (block.ffn.gate.weight, other[1].DenseReluDense.wi_0.weight),
    }
    for name, (mine, their) in pairs.items():
        scale = float(their.grad.abs().max())
        assert scale > 0, name
        assert_close(mine.grad, their.grad, rtol=0, atol=1e-5 * scale, msg=name)


# Half precision


def overflowing(encoder: T5EncoderModel) -> None:
    """Make the first attention of transformers' encoder, and its first feed-forward, leave the range of fp16."""
    with torch.no_grad():
        encoder.encoder.block[0].layer[0].SelfAttention.o.weight *= 2e4
        encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight *= 2e4


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_what_overflows_fp16_is_clamped_as_in_transformers(backend: str) -> None:
    model = tiny.musicgen()
    overflowing(model.text_encoder)
    theirs, ours = (m.text_encoder for m in tiny.pair(model, backend, torch.float16))
    ids, mask = tiny.text()
    seen: list[torch.Tensor] = []
    with ours.blocks[0].attn.register_forward_hook(lambda module, args, out: seen.append(out)):
        assert_same(theirs, ours, ids, mask, backend)
    assert seen[0].isinf().any(), "the case is real"


@torch.no_grad()
def test_what_overflows_fp16_is_clamped_after_a_feed_forward_in_fp16_too() -> None:
    model = tiny.musicgen()
    overflowing(model.text_encoder)
    theirs, ours = (m.text_encoder.half() for m in tiny.pair(model))
    seen: list[torch.Tensor] = []
    with ours.blocks[0].ffn.register_forward_hook(lambda module, args, out: seen.append(out)):
        assert_same(theirs, ours, *tiny.text(), "sdpa")
    assert seen[0].isinf().any(), "the case is real"
    assert seen[0].dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@torch.no_grad()
def test_half_precision_stays_near_fp32(backend: str, dtype: torch.dtype) -> None:
    ids, mask = tiny.text()
    full = pair(backend=backend)[1](ids, mask, backend=backend)
    half = pair(backend=backend, dtype=dtype)[1](ids, mask, backend=backend).float()
    # Two blocks of a dozen roundings each, at 2 ** -9 (bf16) and 2 ** -12 (fp16) of the scale apiece.
    atol = float(full.abs().max()) * 8 * torch.finfo(dtype).eps
    assert_close(half, full, rtol=0, atol=atol)


# Bad input


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.ones(4, dtype=torch.long), None, r"ids must be whole numbers of shape \(B, L\), got torch.int64 \(4,\)"),
        (torch.ones(1, 2, 4, dtype=torch.long), None, r"ids must be .* got torch.int64 \(1, 2, 4\)"),
        (torch.ones(2, 4), None, r"ids must be whole numbers .* got torch.float32 \(2, 4\)"),
        (torch.full((2, 4), 99), None, r"ids must be in 0..98, got 99..99"),
        (torch.tensor([[3, -1]]), None, r"ids must be in 0..98, got -1..3"),
        (torch.ones(2, 4, dtype=torch.long), torch.ones(2, 3), r"mask .* \(2, 4\), got \(2, 3\)"),
        (torch.ones(2, 4, dtype=torch.long), torch.ones(4), r"mask .* \(2, 4\), got \(4,\)"),
    ],
)
def test_bad_input_is_a_value_error(ids: torch.Tensor, mask: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair()[1](ids, mask)


@torch.no_grad()
def test_embeddings_stand_in_for_ids_and_one_of_them_is_given() -> None:
    ours, (ids, mask) = pair()[1], tiny.text()
    embeddings = ours.embed(ids)
    assert torch.equal(ours(mask=mask, embeddings=embeddings), ours(ids, mask))
    for tokens, vectors in ((None, None), (ids, embeddings)):
        with pytest.raises(ValueError, match="give ids or embeddings, one of them"):
            ours(tokens, mask, embeddings=vectors)
    for wrong in (embeddings[0], embeddings[..., 1:]):
        with pytest.raises(ValueError, match=r"embeddings must be \(B, L, 24\), got"):
            ours(embeddings=wrong)


def test_an_unknown_backend_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of \('sdpa', 'eager'\), got 'flash'"):
        pair()[1](tiny.text()[0], backend="flash")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("width", -1),
        ("layers", 0),
        ("heads", 2.0),
        ("head_width", True),
        ("ffn", "8"),
        ("buckets", 30),
        ("max_distance", 8),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("eps", 0.0),
        ("eps", 1.0),
        ("eps", float("nan")),
    ],
)
def test_an_impossible_size_is_a_value_error_that_names_it(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"T5Config\..*{field}"):
        T5Config(**{field: value})


def test_a_configuration_is_frozen_and_can_be_a_key() -> None:
    config = T5Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3  # type: ignore[misc]
    assert len({config, T5Config(), T5Config(width=3)}) == 2
