"""The decoder against transformers' MusicgenForCausalLM inside its composite model, and what it promises by itself."""

import dataclasses
import functools
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    T5EncoderModel,
)
from transformers import T5Config as TheirT5Config
from transformers.models.musicgen.modeling_musicgen import MusicgenSinusoidalPositionalEmbedding

from musicgen_ref import MusicGen
from musicgen_ref.attention import BACKENDS, KVCache, Trace
from musicgen_ref.decoder import Decoder, DecoderConfig, sinusoid
from musicgen_ref.t5 import T5Config, T5Encoder
from tests import tiny

both = pytest.mark.parametrize("backend", BACKENDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

# The text encoder is 24 wide and the decoder 32: text is projected where a kind does not say d_model=32.
KINDS: dict[str, dict[str, Any]] = {
    "K=1": {"codebooks": 1},
    "K=2": {"codebooks": 2, "text": {"d_model": 32}},
    "K=4": {"codebooks": 4},
    "K=4, no projection": {"codebooks": 4, "text": {"d_model": 32}},
    "K=8": {"codebooks": 8},
    "K=2, stereo": {"codebooks": 2, "channels": 2},
    "K=8, stereo": {"codebooks": 8, "channels": 2, "text": {"d_model": 32}},
    "odd width": {"codebooks": 2, "decoder": {"hidden_size": 33, "num_attention_heads": 3}},
    "relu": {"codebooks": 2, "decoder": {"activation_function": "relu", "num_hidden_layers": 3, "ffn_dim": 17}},
    "silu, one head": {"codebooks": 2, "decoder": {"activation_function": "silu", "num_attention_heads": 1}},
}
# bf16 for the kinds that differ most: every kind runs the same lines.
kinds = pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in KINDS),
        *((kind, torch.bfloat16) for kind in ("K=4", "K=8, stereo", "odd width")),
    ],
    ids=str,
)
Pair = tuple[MusicgenForConditionalGeneration, MusicGen]


@functools.cache
def pair(kind: str = "K=4", backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> Pair:
    return tiny.pair(tiny.musicgen(**KINDS[kind]), backend, dtype)


def memory_of(ours: MusicGen, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Memory and mask of `batch` texts, all but the first padded."""
    with torch.no_grad():
        memory, mask = ours.encode_text(tiny.text(batch))
    assert memory is not None
    assert mask is not None
    return memory, mask


def codes_for(ours: MusicGen, steps: int, batch: int = 3, seed: int = 0) -> Tensor:
    return tiny.codes(batch, ours.decoder.config.codebooks, steps, seed, special=True)


def run_theirs(model: MusicgenForConditionalGeneration, codes: Tensor, **options: Any) -> Any:
    """transformers' outputs for the texts of memory_of(). No cache by default: theirs copies keys and values to another
    layout, in which BLAS sums in another order."""
    ids, mask = tiny.text(len(codes))
    options = {"input_ids": ids, "attention_mask": mask, "use_cache": False} | options
    out = model(decoder_input_ids=codes.flatten(0, 1), **options)
    out.logits = out.logits.view(*codes.shape, -1)
    return out


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the scale: the same sums in another order."""
    assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


def same(actual: list[Tensor], expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# Parity: the same operations, so equal to the bit


@kinds
@both
@torch.no_grad()
def test_logits_and_every_hidden_state_equal_those_of_transformers(backend: str, dtype: torch.dtype, kind: str) -> None:
    theirs, ours = pair(kind, backend, dtype)
    codes = codes_for(ours, 11)
    expected = run_theirs(theirs, codes, output_hidden_states=True, output_attentions=backend == "eager")
    trace = Trace(weights=backend == "eager")
    logits = ours.decoder(codes, *memory_of(ours), backend=backend, trace=trace)
    assert logits.dtype == dtype
    assert torch.equal(logits, expected.logits)
    assert len(trace.hidden) == ours.decoder.config.layers + 1
    assert same(trace.hidden, expected.decoder_hidden_states)
    if backend == "eager":
        assert same(trace.self_weights, expected.decoder_attentions)
        assert same(trace.cross_weights, expected.cross_attentions)


@both
@pytest.mark.parametrize("steps", [1, 2, 64])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_logits_equal_those_of_transformers_at_other_shapes(backend: str, steps: int, batch: int) -> None:
    theirs, ours = pair(backend=backend)
    codes = codes_for(ours, steps, batch)
    logits = ours.decoder(codes, *memory_of(ours, batch), backend=backend)
    assert torch.equal(logits, run_theirs(theirs, codes).logits)


@kinds
@both
@torch.no_grad()
def test_cached_steps_one_by_one_equal_those_of_transformers(backend: str, dtype: torch.dtype, kind: str) -> None:
    theirs, ours = pair(kind, backend, dtype)
    codes = codes_for(ours, 12)
    cache, past = ours.decoder.new_cache(3, 12, *memory_of(ours)), None
    for t in range(12):
        step = codes[..., t : t + 1]
        expected = run_theirs(theirs, step, use_cache=True, **{tiny.CACHE: past})
        past = expected[tiny.CACHE]
        logits = ours.decoder(step, cache=cache, backend=backend)
        if kind == "odd width" and dtype == torch.float32:
            # Heads 11 wide lie at other addresses in our cache than in theirs: BLAS sums them in another order.
            assert_near(logits, expected.logits)
        else:
            assert torch.equal(logits, expected.logits)
    assert cache.length == 12


chunkings = st.lists(st.integers(1, 6), min_size=1, max_size=6)


@dtypes
@both
@settings(max_examples=20)
@given(chunks=chunkings, batch=st.integers(1, 3), seed=st.integers(0, 1000))
@torch.no_grad()
def test_chunked_prefill_equals_that_of_transformers_and_the_full_run(
    backend: str, dtype: torch.dtype, chunks: list[int], batch: int, seed: int
) -> None:
    theirs, ours = pair("K=4", backend, dtype)
    steps = sum(chunks)
    codes = codes_for(ours, steps, batch, seed)
    full = ours.decoder(codes, *memory_of(ours, batch), backend=backend)
    cache, past = ours.decoder.new_cache(batch, steps, *memory_of(ours, batch)), None
    for end, chunk in zip(accumulate(chunks), chunks, strict=True):
        part = codes[..., end - chunk : end]
        expected = run_theirs(theirs, part, use_cache=True, **{tiny.CACHE: past})
        past = expected[tiny.CACHE]
        logits = ours.decoder(part, cache=cache, backend=backend)
        assert cache.length == end
        if backend == "sdpa" or dtype == torch.bfloat16:
            assert torch.equal(logits, expected.logits)
        else:
            # In eager mode the fp32 product of BLAS depends on the layout of the keys, which a cache decides.
            assert_near(logits, expected.logits)
        # bf16: a last bit apart in every block, 2 ** -8 of the scale.
        assert_near(logits, full[:, :, end - chunk : end], 1e-5 if dtype == torch.float32 else 0.02)


@both
@torch.no_grad()
def test_without_any_text_it_is_the_causal_lm_of_transformers(backend: str) -> None:
    theirs, ours = pair(backend=backend)
    codes = codes_for(ours, 9)
    lm = functools.partial(theirs.decoder, use_cache=False)
    expected = lm(input_ids=codes.flatten(0, 1), output_hidden_states=True)
    trace = Trace(weights=True)
    logits = ours.decoder(codes, backend=backend, trace=trace)
    assert torch.equal(logits.flatten(0, 1), expected.logits)
    assert same(trace.hidden, expected.hidden_states)
    assert trace.cross_weights == []
    cache, past = ours.decoder.new_cache(3, 9), None
    assert cache.cross == []
    for t in range(9):
        step = codes[..., t : t + 1]
        expected = theirs.decoder(input_ids=step.flatten(0, 1), **{tiny.CACHE: past}, use_cache=True)
        past = expected[tiny.CACHE]
        assert torch.equal(ours.decoder(step, cache=cache, backend=backend).flatten(0, 1), expected.logits)


@torch.no_grad()
def test_a_causal_lm_that_never_saw_a_composite_model_equals_ours() -> None:
    lm = tiny.randomize(MusicgenForCausalLM(tiny.decoder_config(2)), seed=3)
    composite = tiny.musicgen(2)
    composite.decoder.load_state_dict(lm.state_dict())
    codes = tiny.codes(2, 2, 8, special=True)
    expected = lm(input_ids=codes.flatten(0, 1), use_cache=False).logits
    assert torch.equal(tiny.ours(composite).decoder(codes).flatten(0, 1), expected)


@both
@torch.no_grad()
def test_embeddings_given_instead_of_codes_equal_those_of_transformers(backend: str) -> None:
    theirs, ours = pair(backend=backend)
    embeddings = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    ids, mask = tiny.text()
    texts = {"input_ids": ids, "attention_mask": mask}
    # One step at a time: given more at once, transformers puts all of them at the position of the first.
    cache, past = ours.decoder.new_cache(3, 7, *memory_of(ours)), None
    for t in range(7):
        step = embeddings[:, t : t + 1]
        expected = theirs(**texts, decoder_inputs_embeds=step, **{tiny.CACHE: past}, use_cache=True)
        past = expected[tiny.CACHE]
        assert torch.equal(ours.decoder(embeddings=step, cache=cache, backend=backend).flatten(0, 1), expected.logits)
    position = sinusoid(torch.arange(7), 32)
    expected = theirs(**texts, decoder_inputs_embeds=embeddings + position - position[:1], use_cache=False).logits
    logits = ours.decoder(None, *memory_of(ours), embeddings=embeddings, backend=backend)
    assert_near(logits.flatten(0, 1), expected)


@torch.no_grad()
def test_embeddings_of_the_codes_give_the_logits_of_the_codes() -> None:
    ours = pair()[1].decoder
    codes = codes_for(pair()[1], 9)
    embeddings = ours.embed_codes(codes)
    assert embeddings.shape == (3, 9, 32)
    expected = sum(ours.embed[k].weight[codes[:, k]] for k in range(4))
    assert torch.equal(embeddings, expected)
    assert torch.equal(ours(embeddings=embeddings), ours(codes))
    cache = ours.new_cache(3, 9)
    cached = [ours(codes[..., :5], cache=cache), ours(embeddings=embeddings[:, 5:], cache=cache)]
    assert_near(torch.cat(cached, dim=2), ours(codes))


# Positions


@both
@torch.no_grad()
def test_positions_go_on_past_max_position_embeddings(backend: str) -> None:
    theirs, ours = tiny.pair(tiny.musicgen(decoder={"max_position_embeddings": 16}), backend)
    assert theirs.decoder.model.decoder.embed_positions.weights.shape == (16, 32)
    codes = codes_for(ours, 24)
    full = ours.decoder(codes, *memory_of(ours), backend=backend)
    cache, past = ours.decoder.new_cache(3, 24, *memory_of(ours)), None
    for t in range(24):
        step = codes[..., t : t + 1]
        expected = run_theirs(theirs, step, use_cache=True, **{tiny.CACHE: past})
        past = expected[tiny.CACHE]
        logits = ours.decoder(step, cache=cache, backend=backend)
        assert torch.equal(logits, expected.logits)
        assert_near(logits, full[:, :, t : t + 1])
    assert torch.equal(full, run_theirs(theirs, codes).logits)


@pytest.mark.parametrize("width", [4, 5, 32, 33, 1024])
def test_sinusoids_equal_the_table_of_transformers(width: int) -> None:
    table = MusicgenSinusoidalPositionalEmbedding.get_embedding(3000, width)
    assert torch.equal(sinusoid(torch.arange(3000), width), table)
    assert torch.equal(sinusoid(torch.arange(2990, 3000), width), table[2990:])
    half = width // 2
    assert torch.equal(table[0, :half], torch.ones(half)), "cosines first"
    assert bool((table[:, 2 * half :] == 0).all()), "an odd width ends in zeros"
    angle = torch.atan2(table[1, 2 * half - 1], table[1, half - 1])
    assert_close(float(angle), 1e-4, rtol=1e-5, atol=0.0)


@torch.no_grad()
def test_the_order_of_steps_matters_by_position_alone_in_the_embedding() -> None:
    ours = pair()[1]
    codes = codes_for(ours, 1).expand(-1, -1, 6)
    trace = Trace()
    ours.decoder(codes, trace=trace)
    steps = trace.hidden[0] - trace.hidden[0][:, :1]
    expected = sinusoid(torch.arange(6), 32) - sinusoid(torch.arange(1), 32)
    assert_close(steps, expected.expand(3, -1, -1), rtol=0, atol=1e-5)


# The cache


@both
@torch.no_grad()
def test_a_rewound_cache_gives_the_same_again(backend: str) -> None:
    ours = pair(backend=backend)[1]
    codes = codes_for(ours, 12)
    cache = ours.decoder.new_cache(3, 12, *memory_of(ours))
    where = [tensor.data_ptr() for tensor in (*cache.keys, *cache.values, *(k for k, _ in cache.cross))]
    ours.decoder(codes[..., :5], cache=cache, backend=backend)
    first = ours.decoder(codes[..., 5:9], cache=cache, backend=backend)
    cache.length = 5
    ours.decoder(codes_for(ours, 7, seed=1), cache=cache, backend=backend)
    assert cache.length == 12
    cache.length = 5
    assert torch.equal(ours.decoder(codes[..., 5:9], cache=cache, backend=backend), first)
    assert where == [tensor.data_ptr() for tensor in (*cache.keys, *cache.values, *(k for k, _ in cache.cross))]


@torch.no_grad()
def test_a_step_too_many_is_a_value_error_and_leaves_the_cache_usable() -> None:
    ours = pair()[1]
    codes = codes_for(ours, 9)
    cache = ours.decoder.new_cache(3, 6, *memory_of(ours))
    first = ours.decoder(codes[..., :5], cache=cache)
    with pytest.raises(ValueError, match="the cache holds 6 steps, 9 are needed"):
        ours.decoder(codes[..., 5:], cache=cache)
    assert cache.length == 5
    last = ours.decoder(codes[..., 5:6], cache=cache)
    assert_near(torch.cat([first, last], dim=2), ours.decoder(codes[..., :6], *memory_of(ours)))


@torch.no_grad()
def test_the_text_is_projected_to_keys_and_values_once() -> None:
    ours = pair()[1]
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handles = [block.cross_attn.k.register_forward_hook(count) for block in ours.decoder.blocks]
    cache = ours.decoder.new_cache(3, 9, *memory_of(ours))
    for t in range(9):
        ours.decoder(codes_for(ours, 9)[..., t : t + 1], cache=cache)
    for handle in handles:
        handle.remove()
    assert calls == ours.decoder.config.layers


@both
@torch.no_grad()
def test_a_trace_of_cached_steps_holds_the_rows_of_the_full_trace(backend: str) -> None:
    ours = pair(backend=backend)[1]
    codes = codes_for(ours, 8)
    full, part = Trace(weights=True), Trace(weights=True)
    ours.decoder(codes, *memory_of(ours), backend=backend, trace=full)
    cache = ours.decoder.new_cache(3, 20, *memory_of(ours))
    ours.decoder(codes[..., :5], cache=cache, backend=backend)
    ours.decoder(codes[..., 5:], cache=cache, backend=backend, trace=part)
    for name in ("self_weights", "cross_weights"):
        for whole, rows in zip(getattr(full, name), getattr(part, name), strict=True):
            assert_close(rows, whole[:, :, 5:], rtol=0, atol=1e-5)
    for whole, rows in zip(full.hidden, part.hidden, strict=True):
        assert_near(rows, whole[:, 5:])


# Attention weights


@torch.no_grad()
def test_weights_requested_of_sdpa_equal_those_of_eager() -> None:
    theirs, eager = pair(backend="eager")
    ours = pair(backend="sdpa")[1]
    codes = codes_for(ours, 11)
    expected = run_theirs(theirs, codes, output_attentions=True)
    trace = Trace(weights=True)
    # The memory of the eager run: the text encoder's two backends round differently too.
    logits = ours.decoder(codes, *memory_of(eager), trace=trace)
    for weights, others in (
        (trace.self_weights, expected.decoder_attentions),
        (trace.cross_weights, expected.cross_attentions),
    ):
        assert len(weights) == len(others) == 2
        for mine, their in zip(weights, others, strict=True):
            assert_close(mine, their, rtol=0, atol=1e-6)
            assert_close(mine.sum(-1), torch.ones(3, 4, 11), rtol=0, atol=1e-6)
    assert torch.equal(trace.self_weights[0], expected.decoder_attentions[0])
    assert torch.equal(logits, ours.decoder(codes, *memory_of(eager))), "asking for weights changes nothing"


@torch.no_grad()
def test_padded_text_gets_no_weight_and_has_no_effect() -> None:
    ours = pair()[1]
    codes, (memory, mask) = codes_for(ours, 5), memory_of(ours)
    assert (memory[mask == 0] == 0).all()
    trace = Trace(weights=True)
    logits = ours.decoder(codes, memory, mask, trace=trace)
    for weights in trace.cross_weights:
        assert (weights.movedim(3, 1)[mask == 0] == 0).all()
    noisy = memory + 7 * (1 - mask)[..., None]
    assert torch.equal(ours.decoder(codes, noisy, mask), logits)


# Rows without text


@both
@dtypes
@torch.no_grad()
def test_memory_of_fewer_rows_than_the_batch_equals_rows_of_zeros(backend: str, dtype: torch.dtype) -> None:
    theirs, ours = pair("K=4", backend, dtype)
    codes, (memory, mask) = codes_for(ours, 6, batch=5), memory_of(ours, 2)
    fewer = ours.decoder(codes, memory, mask, backend=backend)
    zeros, nothing = torch.zeros(3, *memory.shape[1:], dtype=dtype), torch.zeros(3, mask.shape[1])
    padded, padded_mask = torch.cat([memory, zeros]), torch.cat([mask, nothing.long()])
    assert torch.equal(fewer, ours.decoder(codes, padded, padded_mask, backend=backend))
    assert torch.equal(fewer[2:], ours.decoder(codes, backend=backend)[2:])

    # transformers' joint batch of guidance: its null half is masked altogether.
    ids, _ = tiny.text(2)
    states = theirs.text_encoder(ids, mask).last_hidden_state
    joint = (torch.cat([states, torch.zeros(3, *states.shape[1:], dtype=dtype)]),)
    expected = theirs(
        encoder_outputs=joint, attention_mask=padded_mask, decoder_input_ids=codes.flatten(0, 1), use_cache=False
    )
    assert torch.equal(fewer.flatten(0, 1), expected.logits)

    cache = ours.decoder.new_cache(5, 6, memory, mask)
    assert all(len(k) == len(v) == 2 for k, v in cache.cross)
    joint_cache, alone = ours.decoder.new_cache(5, 6, padded, padded_mask), ours.decoder.new_cache(5, 6)
    for t in range(6):
        step = codes[..., t : t + 1]
        few, all_rows = (ours.decoder(step, cache=c, backend=backend) for c in (cache, joint_cache))
        if dtype == torch.bfloat16:
            assert torch.equal(few, all_rows)
        else:
            # In fp32 BLAS multiplies two rows by another kernel than five.
            assert_near(few, all_rows)
        assert torch.equal(few[2:], ours.decoder(step, cache=alone, backend=backend)[2:])


@both
@torch.no_grad()
def test_a_row_of_a_batch_equals_its_single_run(backend: str) -> None:
    ours = pair(backend=backend)[1]
    codes, (memory, mask) = codes_for(ours, 7), memory_of(ours)
    batch = ours.decoder(codes, memory, mask, backend=backend)
    for b in range(3):
        length = int(mask[b].sum())
        alone = ours.decoder(codes[b : b + 1], memory[b : b + 1, :length], backend=backend)
        assert_near(alone, batch[b : b + 1])


@torch.no_grad()
def test_text_reaches_the_logits_at_the_first_step_and_from_the_cache() -> None:
    ours = pair()[1]
    codes, (memory, mask) = codes_for(ours, 4), memory_of(ours)
    logits = ours.decoder(codes, memory, mask)
    other = ours.decoder(codes, memory.flip(0), mask.flip(0))
    assert (logits[0, :, 0] - other[0, :, 0]).abs().max() > 0.1
    caches = [ours.decoder.new_cache(3, 4, *args) for args in ((memory, mask), (memory.flip(0), mask.flip(0)))]
    for t in range(4):
        first, second = (ours.decoder(codes[..., t : t + 1], cache=cache) for cache in caches)
        assert (first[0] - second[0]).abs().max() > 0.1


@torch.no_grad()
def test_a_step_does_not_see_later_ones() -> None:
    ours = pair()[1]
    codes = codes_for(ours, 8)
    changed = codes.clone()
    changed[..., 5] = (changed[..., 5] + 1) % tiny.CODES
    before, after = (ours.decoder(c, *memory_of(ours)) for c in (codes, changed))
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert (before[:, :, 5:] != after[:, :, 5:]).any(-1).all()


# Head masks (against transformers: tests/v4)


@both
@pytest.mark.parametrize("which", ["self", "cross"])
@torch.no_grad()
def test_a_head_factor_of_zero_equals_a_head_without_output(backend: str, which: str) -> None:
    model = tiny.musicgen()
    ours = tiny.ours(model).decoder
    memory, mask = memory_of(tiny.ours(model))
    codes = tiny.codes(3, 4, 7)
    factors = torch.ones(2, 4)
    factors[1, 2] = 0
    logits = ours(codes, memory, mask, backend=backend)
    masked = ours(codes, memory, mask, backend=backend, **{f"{which}_head_mask": factors})
    ones = ours(codes, memory, mask, backend=backend, **{f"{which}_head_mask": torch.ones(2, 4)})
    assert torch.equal(ones, logits)
    assert not torch.allclose(masked, logits, atol=1e-3)
    getattr(ours.blocks[1], f"{which}_attn").out.weight[:, 2 * 8 : 3 * 8] = 0
    assert_near(masked, ours(codes, memory, mask, backend=backend))


@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_head_factors_are_the_same_in_both_backends(cached: bool) -> None:
    ours = pair()[1]
    codes, (memory, mask) = codes_for(ours, 7), memory_of(ours)
    factors = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    results, traces = [], []
    for backend in BACKENDS:
        options = {"self_head_mask": factors[0], "cross_head_mask": factors[1], "backend": backend}
        trace = Trace(weights=True)
        cache = ours.decoder.new_cache(3, 7, memory, mask) if cached else None
        args = (codes, None, None, cache) if cached else (codes, memory, mask)
        results.append(ours.decoder(*args, trace=trace, **options))
        traces.append(trace)
    assert_near(results[0], results[1])
    for name, own in (("self_weights", factors[0]), ("cross_weights", factors[1])):
        for layer, (mine, other) in enumerate(zip(*(getattr(t, name) for t in traces), strict=True)):
            assert_close(mine, other, rtol=0, atol=1e-5)
            sums = own[layer][None, :, None].expand(3, 4, 7)
            assert_close(mine.sum(-1), sums, rtol=0, atol=1e-5)


# Training


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@both
def test_gradients_equal_those_of_transformers(backend: str) -> None:
    theirs, ours = tiny.pair(tiny.musicgen(), backend)
    codes = codes_for(ours, 9)
    target = torch.randn(3, 4, 9, tiny.CODES, generator=torch.Generator().manual_seed(0))
    (run_theirs(theirs, codes).logits * target).sum().backward()
    (ours.decoder(codes, *ours.encode_text(tiny.text()), backend=backend) * target).sum().backward()
    decoder, layers = theirs.decoder.model.decoder, theirs.decoder.model.decoder.layers
    mine = gradients(ours)
    expected = {
        **{f"decoder.embed.{k}.weight": decoder.embed_tokens[k].weight for k in range(4)},
        "decoder.text_proj.weight": theirs.enc_to_dec_proj.weight,
        "decoder.text_proj.bias": theirs.enc_to_dec_proj.bias,
        "decoder.blocks.0.self_attn.k.weight": layers[0].self_attn.k_proj.weight,
        "decoder.blocks.1.cross_attn.v.weight": layers[1].encoder_attn.v_proj.weight,
        "decoder.blocks.0.cross_norm.bias": layers[0].encoder_attn_layer_norm.bias,
        "decoder.blocks.1.fc2.weight": layers[1].fc2.weight,
        "decoder.norm.weight": decoder.layer_norm.weight,
        "text_encoder.embed.weight": theirs.text_encoder.shared.weight,
    }
    for name, p in expected.items():
        assert p.grad.abs().max() > 0, name
        assert_close(mine[name], p.grad, rtol=0, atol=1e-5 * float(p.grad.abs().max()), msg=name)
    for k, head in enumerate(theirs.decoder.lm_heads):
        assert_near(mine[f"decoder.heads.{k}.weight"], head.weight.grad)
    # Every weight of the decoder learns; an input vector learns where its code occurs, and nowhere else.
    assert {n for n, p in ours.decoder.named_parameters() if p.grad is None} == set()
    for k in range(4):
        rows = mine[f"decoder.embed.{k}.weight"].abs().sum(1) > 0
        assert rows.nonzero()[:, 0].tolist() == codes[:, k].unique().tolist()


DROPOUTS = {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.1}


@both
def test_training_drops_what_transformers_drops(backend: str) -> None:
    theirs, ours = tiny.pair(tiny.musicgen(decoder=DROPOUTS), backend)
    codes, (memory, mask) = codes_for(ours, 9), memory_of(ours)
    ids, _ = tiny.text()
    with torch.no_grad():
        states = (theirs.text_encoder(ids, mask).last_hidden_state,)
    torch.manual_seed(1)
    expected = run_theirs(theirs.train(), codes, input_ids=None, encoder_outputs=states).logits
    torch.manual_seed(1)
    logits = ours.train().decoder(codes, memory, mask, backend=backend)
    assert torch.equal(logits, expected), "the same dropouts in the same order"
    assert not torch.equal(ours.decoder(codes, memory, mask, backend=backend), logits), "drawn anew"
    ours.eval()
    first, second = (ours.decoder(codes, memory, mask, backend=backend) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_acts_by_itself(name: str) -> None:
    ours = tiny.ours(tiny.musicgen(decoder=dict.fromkeys(DROPOUTS, 0.0) | {name: 0.5}))
    codes, (memory, mask) = codes_for(ours, 5), memory_of(ours)
    still = ours.decoder(codes, memory, mask)
    ours.train()
    first, second = (ours.decoder(codes, memory, mask) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, still, atol=1e-3)


@both
def test_gradient_checkpointing_gives_equal_logits_and_gradients(backend: str) -> None:
    ours = tiny.ours(tiny.musicgen(decoder=DROPOUTS)).train()
    codes = codes_for(ours, 9)
    factors = torch.rand(2, 4)
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    ours.decoder.blocks[0].register_forward_pre_hook(count)
    results = []
    for checkpointing in (False, True):
        ours.decoder.gradient_checkpointing = checkpointing
        ours.zero_grad()
        torch.manual_seed(2)
        memory, mask = ours.encode_text(tiny.text())
        logits = ours.decoder(codes, memory, mask, backend=backend, self_head_mask=factors)
        logits.square().mean().backward()
        results.append((logits, gradients(ours)))
    (logits, plain), (again, recomputed) = results
    assert forwards == 3, "one run without, two with"
    assert torch.equal(logits, again)
    assert plain.keys() == recomputed.keys()
    assert any(name.startswith("text_encoder") for name in plain)
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


@pytest.mark.parametrize("seen", ["cache", "trace"])
def test_gradient_checkpointing_leaves_caches_and_traces_right(seen: str) -> None:
    ours = tiny.ours(tiny.musicgen(decoder={"dropout": 0.0}))
    ours.decoder.train().gradient_checkpointing = True
    codes = codes_for(ours, 6)
    if seen == "trace":
        trace = Trace(weights=True)
        ours.decoder(codes, trace=trace).sum().backward()
        assert len(trace.hidden) == 3
        assert len(trace.self_weights) == 2
    else:
        cache = ours.decoder.new_cache(3, 6)
        with torch.no_grad():
            logits = [ours.decoder(codes[..., t : t + 1], cache=cache) for t in range(6)]
        assert cache.length == 6
        assert_near(torch.cat(logits, dim=2), ours.decoder(codes))


def test_layerdrop_skips_blocks_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {"num_hidden_layers": 6, "layerdrop": 0.25, "dropout": 0.0}
    ours = tiny.ours(tiny.musicgen(decoder=layers)).decoder
    assert ours.config.layerdrop == 0.25
    codes = tiny.codes(2, 4, 5)
    whole = ours(codes)
    assert torch.equal(whole, ours(codes))

    def skipped(seed: int) -> list[bool]:
        torch.manual_seed(seed)
        trace = Trace()
        logits = ours(codes, trace=trace)
        assert len(trace.hidden) == 7
        # After the last block comes the norm: that block is seen by the logits alone.
        out = [torch.equal(a, b) for a, b in zip(trace.hidden[:-2], trace.hidden[1:-1], strict=True)]
        return [*out, torch.equal(logits, _head_of(ours, trace.hidden[5]))]

    assert not any(skipped(0))
    ours.train()
    runs = [skipped(seed) for seed in range(40)]
    assert runs[7] == skipped(7)
    # 240 draws at 0.25: the mean within five standard deviations of 0.028, and far from 0.75; every block is skipped,
    # and is kept.
    assert abs(sum(map(sum, runs)) / 240 - 0.25) < 0.14
    assert all({run[layer] for run in runs} == {False, True} for layer in range(6))
    # A block is skipped where the draw is below the probability, and each block draws its own.
    draws = iter([0.0, 0.2499, 0.25, 0.2501, 0.7499, 0.9999])
    monkeypatch.setattr(torch, "rand", lambda size: torch.tensor(next(draws)))
    assert skipped(0) == [True, True, False, False, False, False]
    assert next(draws, None) is None


def test_layerdrop_skips_no_block_that_writes_a_cache() -> None:
    """The steps of a skipped block would be left unwritten: whatever memory held would be read as keys and values."""
    layers = {"num_hidden_layers": 6, "layerdrop": 0.9, "dropout": 0.0}
    ours = tiny.ours(tiny.musicgen(decoder=layers)).decoder
    codes = tiny.codes(2, 4, 5)
    with torch.no_grad():
        expected = ours(codes)
        ours.train()
        assert not torch.equal(ours(codes), expected), "without a cache blocks are skipped"
        cache = ours.new_cache(2, 5)
        logits = [ours(codes[..., t : t + 1], cache=cache) for t in range(5)]
    assert_near(torch.cat(logits, dim=2), expected)


def _head_of(decoder: Decoder, hidden: Tensor) -> Tensor:
    """The logits of a decoder whose last block's output is `hidden`."""
    return torch.stack([head(decoder.norm(hidden)) for head in decoder.heads], dim=1)


# Export


class Step(nn.Module):
    """One decoder step after `length` others, the cache in buffers: what a deployment exports."""

    def __init__(self, decoder: Decoder, cache: KVCache):
        super().__init__()
        self.decoder, self.length = decoder, cache.length
        self.register_buffer("keys", torch.stack(cache.keys))
        self.register_buffer("values", torch.stack(cache.values))
        self.register_buffer("cross_mask", cache.cross_mask)
        self.cross_keys = nn.ParameterList(k for k, _ in cache.cross)
        self.cross_values = nn.ParameterList(v for _, v in cache.cross)

    def forward(self, codes: Tensor) -> Tensor:
        c = self.decoder.config
        cache = KVCache(c.layers, len(codes), c.heads, 1, c.width // c.heads, like=self.keys)
        cache.keys, cache.values, cache.length = list(self.keys), list(self.values), self.length
        cache.cross = list(zip(self.cross_keys, self.cross_values, strict=True))
        cache.cross_mask = self.cross_mask
        return self.decoder(codes, cache=cache)


@torch.no_grad()
def test_a_decoder_step_survives_export() -> None:
    ours = pair()[1]
    codes = codes_for(ours, 8)
    cache = ours.decoder.new_cache(3, 8, *memory_of(ours))
    ours.decoder(codes[..., :5], cache=cache)
    step = Step(ours.decoder, cache)
    before = step.keys[:, :, :, 5].clone()
    program = torch.export.export(step, (codes[..., 5:6],)).module()
    other = codes_for(ours, 1, seed=9)
    for new in (codes[..., 5:6], other):
        exported = program(new)
        written = dict(program.named_buffers())["keys"][:, :, :, 5].clone()
        cache.length = 5
        assert torch.equal(exported, ours.decoder(new, cache=cache))
        assert torch.equal(written, torch.stack(cache.keys)[:, :, :, 5])
        assert not torch.equal(written, before)


@pytest.mark.parametrize("text", [False, True])
@torch.no_grad()
def test_a_full_forward_survives_export(text: bool) -> None:
    ours = pair()[1]
    codes, memory = codes_for(ours, 6), memory_of(ours)[0]
    args = (codes, memory) if text else (codes,)
    program = torch.export.export(ours.decoder, args).module()
    other = (codes_for(ours, 6, seed=1), *args[1:])
    assert torch.equal(program(*other), ours.decoder(*other))


# Sizes


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_default_decoder_has_the_parameters_of_musicgen_small() -> None:
    with torch.device("meta"):
        ours = Decoder(DecoderConfig())
        theirs = MusicgenForCausalLM(MusicgenDecoderConfig())
        projection = nn.Linear(768, 1024)
    K, V, E, ffn = 4, 2048, 1024, 4096
    block = 8 * E * E + 2 * E * ffn + 3 * 2 * E
    by_hand = K * (V + 1) * E + 24 * block + 2 * E + K * V * E + (768 * E + E)
    assert parameters(ours) == by_hand == 420_371_456
    assert parameters(ours) == parameters(theirs) + parameters(projection)


def test_the_large_stereo_decoder_has_the_parameters_of_transformers() -> None:
    sizes = {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "ffn_dim": 8192}
    own = DecoderConfig(codebooks=8, channels=2, width=2048, layers=48, heads=32, ffn=8192, text_width=2048)
    with torch.device("meta"):
        theirs = MusicgenForCausalLM(MusicgenDecoderConfig(**sizes, num_codebooks=8, audio_channels=2))
        assert parameters(Decoder(own)) == parameters(theirs)


def test_the_default_text_encoder_has_the_parameters_of_t5_base() -> None:
    sizes = {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072}
    with torch.device("meta"):
        ours, theirs = T5Encoder(T5Config()), T5EncoderModel(TheirT5Config(**sizes))
    block = 4 * 768 * 768 + 2 * 768 * 3072 + 2 * 768
    assert parameters(ours) == parameters(theirs) == 32128 * 768 + 32 * 12 + 12 * block + 768 == 109_628_544


# Bad input


CODES = torch.zeros(3, 4, 5, dtype=torch.long)
MEMORY = torch.zeros(3, 7, 32)
EMBEDDINGS = torch.zeros(3, 5, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give codes or embeddings, one of them"),
        ({"codes": CODES, "embeddings": EMBEDDINGS}, "give codes or embeddings, one of them"),
        ({"codes": CODES[0]}, r"codes must be .* \(B, 4, T\), got torch.int64 \(4, 5\)"),
        ({"codes": CODES.flatten(0, 1)}, r"codes must be .* \(B, 4, T\), got torch.int64 \(12, 5\)"),
        ({"codes": CODES[None]}, r"codes must be .* got torch.int64 \(1, 3, 4, 5\)"),
        ({"codes": CODES[:, :3]}, r"codes must be .* \(B, 4, T\), got torch.int64 \(3, 3, 5\)"),
        ({"codes": CODES.float()}, r"codes must be int64 or int32 .* got torch.float32 \(3, 4, 5\)"),
        ({"embeddings": EMBEDDINGS[0]}, r"embeddings must be \(B, T, 32\), got \(5, 32\)"),
        ({"embeddings": EMBEDDINGS[..., :24]}, r"embeddings must be \(B, T, 32\), got \(3, 5, 24\)"),
        ({"codes": CODES, "memory": MEMORY[0]}, r"memory must be \(1..3, L, 32\), got \(7, 32\)"),
        ({"codes": CODES, "memory": MEMORY[..., :24]}, r"memory must be \(1..3, L, 32\), got \(3, 7, 24\)"),
        ({"codes": CODES[:2], "memory": MEMORY}, r"memory must be \(1..2, L, 32\), got \(3, 7, 32\)"),
        ({"codes": CODES, "memory": MEMORY[:0]}, r"memory must be \(1..3, L, 32\), got \(0, 7, 32\)"),
        (
            {"codes": CODES, "memory": MEMORY, "memory_mask": torch.ones(3, 6)},
            r"memory_mask must be \(3, 7\), got \(3, 6\)",
        ),
        (
            {"codes": CODES, "memory": MEMORY, "memory_mask": torch.ones(7)},
            r"memory_mask must be \(3, 7\), got \(7,\)",
        ),
        ({"codes": CODES, "self_head_mask": torch.ones(4)}, r"self_head_mask must be .*\(2, 4\), got \(4,\)"),
        ({"codes": CODES, "self_head_mask": torch.ones(3, 4)}, r"self_head_mask must be .*\(2, 4\), got \(3, 4\)"),
        ({"codes": CODES, "cross_head_mask": torch.ones(2, 3)}, r"cross_head_mask must be .*\(2, 4\), got \(2, 3\)"),
        ({"codes": CODES, "backend": "flash"}, r"backend must be one of \('sdpa', 'eager'\), got 'flash'"),
    ],
)
def test_bad_input_is_a_value_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair()[1].decoder(**arguments)


def test_a_cache_of_another_batch_or_beside_memory_is_a_value_error() -> None:
    decoder = pair()[1].decoder
    cache = decoder.new_cache(2, 5)
    with pytest.raises(ValueError, match="the cache was made for a batch of 2, got 3"):
        decoder(CODES, cache=cache)
    with pytest.raises(ValueError, match=r"memory and memory_mask go to new_cache\(\)"):
        decoder(CODES[:2], MEMORY[:2], cache=cache)
    with pytest.raises(ValueError, match=r"memory and memory_mask go to new_cache\(\)"):
        decoder(CODES[:2], memory_mask=torch.ones(2, 7), cache=cache)
    with pytest.raises(ValueError, match="memory_mask must come with a memory"):
        decoder(CODES[:2], memory_mask=torch.ones(2, 7))
    with pytest.raises(ValueError, match="memory_mask must come with a memory"):
        decoder.new_cache(2, 5, memory_mask=torch.ones(2, 7))
    with pytest.raises(ValueError, match="batch and steps must be above 0, got 2 and 0"):
        decoder.new_cache(2, 0)
    assert cache.length == 0


@pytest.mark.parametrize(
    ("memory", "mask", "message"),
    [
        (MEMORY[0], None, r"memory must be \(1..3, L, 32\), got \(7, 32\)"),
        (torch.zeros(4, 7, 32), None, r"memory must be \(1..3, L, 32\), got \(4, 7, 32\)"),
        (MEMORY, torch.ones(3, 8), r"memory_mask must be \(3, 7\), got \(3, 8\)"),
    ],
)
def test_a_cache_checks_its_memory(memory: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair()[1].decoder.new_cache(3, 5, memory, mask)


@pytest.mark.parametrize("shape", [(7, 24), (3, 7, 32), (3, 24, 7)])
def test_text_states_of_another_width_are_a_value_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"states must be \(B, L, 24\), got"):
        pair()[1].decoder.project_text(torch.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"layers": -1}, "layers"),
        ({"ffn": 4.0}, "ffn"),
        ({"heads": True}, "heads"),
        ({"heads": 3}, "heads must divide width"),
        ({"width": 3, "heads": 3}, "heads must divide width, 4 or more, got 3 and 3"),
        ({"codebooks": 0}, "codebooks"),
        ({"codebooks": 3, "channels": 2}, "channels must be 1 or 2 and divide codebooks 3, got 2"),
        ({"codebooks": 3, "channels": 3}, "channels must be 1 or 2"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention_dropout": -0.1}, "attention_dropout"),
        ({"activation_dropout": float("nan")}, "activation_dropout"),
        ({"layerdrop": 1.5}, "layerdrop"),
    ],
)
def test_an_impossible_size_is_a_value_error_that_names_it(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"DecoderConfig\..*{message}"):
        DecoderConfig(**fields)


def test_a_configuration_is_frozen_and_can_be_a_key() -> None:
    config = DecoderConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3  # type: ignore[misc]
    assert len({config, DecoderConfig(), DecoderConfig(layers=3)}) == 2


# The pattern


def test_the_pattern_is_part_of_the_configuration() -> None:
    assert DecoderConfig().delays == (0, 1, 2, 3)
    assert DecoderConfig(codebooks=8, channels=2).delays == (0, 0, 1, 1, 2, 2, 3, 3)
    told = DecoderConfig(delays=[0, 2, 4, 6])  # as JSON has it
    assert told.delays == (0, 2, 4, 6) and told != DecoderConfig() and hash(told) is not None
    for wrong in ((0, 1, 2), (0, 1, 2, -1), (0, 1, 2, 3.0), (0, 1, 2, True)):
        must = "DecoderConfig.delays must be a whole number from 0 for each of 4 codebooks"
        with pytest.raises(ValueError, match=must):
            DecoderConfig(delays=wrong)
