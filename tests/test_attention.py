"""attend(), the Attention module and the KVCache: what they promise, in both backends."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from musicgen_ref.attention import BACKENDS, Attention, KVCache, attend, attention_weights

both = pytest.mark.parametrize("backend", BACKENDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def qkv(B: int = 2, H: int = 3, T: int = 5, S: int = 5, D: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return draw(B, H, T, D, seed=3 * seed), draw(B, H, S, D, seed=3 * seed + 1), draw(B, H, S, D, seed=3 * seed + 2)


def by_hand(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, causal: bool) -> Tensor:
    """The weights (B, H, T, S) in fp64, one query at a time: a softmax over the keys that it may see."""
    B, H, T, _ = q.shape
    S = k.shape[2]
    out = torch.zeros(B, H, T, S, dtype=torch.float64)
    whole = (B, H, T, S)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                scores = (k[b, h].double() @ q[b, h, t].double()) * scale
                seen = torch.ones(S, dtype=torch.bool)
                if causal:
                    seen &= torch.arange(S) <= t + S - T
                if mask is not None and mask.dtype == torch.bool:
                    seen &= mask.expand(whole)[b, h, t]
                elif mask is not None:
                    scores = scores + mask.expand(whole)[b, h, t].double()
                if seen.any():
                    out[b, h, t, seen] = scores[seen].softmax(0)
    return out


def make_mask(form: str, B: int, H: int, T: int, S: int, seed: int) -> tuple[Tensor | None, bool]:
    """The arguments `mask` and `causal` of each form that callers use."""
    generator = torch.Generator().manual_seed(seed)
    # Whole rows of False happen: padding that is all there is.
    keys = torch.rand(B, 1, 1, S, generator=generator) < 0.6
    pairs = torch.rand(B, H, T, S, generator=generator) < 0.7
    bias = torch.randn(1, H, T, S, generator=generator) * 2
    masks = {
        "none": None,
        "bool over keys": keys,
        "bool over pairs": pairs,
        "float": bias,
        "float with the smallest number": torch.where(keys, bias, torch.finfo(bias.dtype).min),
        "causal": None,
        "causal and bool over keys": keys,
        "causal and bool over pairs": pairs,
    }
    return masks[form], form.startswith("causal")


FORMS = [
    "none",
    "bool over keys",
    "bool over pairs",
    "float",
    "float with the smallest number",
    "causal",
    "causal and bool over keys",
    "causal and bool over pairs",
]
sizes = st.fixed_dictionaries(
    {"B": st.integers(1, 3), "H": st.integers(1, 4), "T": st.integers(1, 20), "D": st.integers(1, 12)}
)


@pytest.mark.parametrize("form", FORMS)
@given(size=sizes, before=st.integers(0, 20), factors=st.booleans(), seed=st.integers(0, 1000))
def test_both_backends_compute_the_same_as_the_definition(
    form: str, size: dict[str, int], before: int, factors: bool, seed: int
) -> None:
    # T == S where `before` is 0; a single query where T is 1.
    B, H, T, S = size["B"], size["H"], size["T"], size["T"] + before
    q, k, v = qkv(**size, S=S, seed=seed)
    scale = size["D"] ** -0.5
    mask, causal = make_mask(form, B, H, T, S, seed)
    head_mask = draw(H, seed=seed) * 2 if factors else None
    weights = by_hand(q, k, scale, mask, causal)
    expected = weights @ v.double()
    if head_mask is not None:
        expected = expected * head_mask.double()[:, None, None]
        weights = weights * head_mask.double()[:, None, None]
    for backend in BACKENDS:
        shown: list[Tensor] = []
        options: dict[str, Any] = {"scale": scale, "mask": mask, "causal": causal, "head_mask": head_mask}
        out = attend(q, k, v, **options, backend=backend)
        assert out.shape == (B, H, T, size["D"])
        assert_close(out.double(), expected, rtol=0, atol=1e-5)
        assert torch.equal(attend(q, k, v, **options, backend=backend, weights=shown), out), "asking changes nothing"
        assert len(shown) == 1
        assert_close(shown[0].double(), weights, rtol=0, atol=2e-6 * (1 if head_mask is None else 8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("T", [1, 5, 9])
def test_weights_on_request_are_exact_whichever_backend(form: str, T: int) -> None:
    q, k, v = qkv(T=T, S=9)
    mask, causal = make_mask(form, 2, 3, T, 9, seed=4)
    shown: list[Tensor] = []
    for backend in BACKENDS:
        attend(q, k, v, scale=0.5, mask=mask, causal=causal, backend=backend, weights=shown)
    assert torch.equal(*shown)
    # In eager mode they are the very weights of the result.
    assert torch.equal(shown[0] @ v, attend(q, k, v, scale=0.5, mask=mask, causal=causal, backend="eager"))


@both
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_sum_to_one(backend: str, causal: bool, masked: bool) -> None:
    q, k, v = qkv(T=6, S=8)
    shown: list[Tensor] = []
    mask = torch.ones(2, 1, 1, 8, dtype=torch.bool)
    mask[1, :, :, 2:] = False
    attend(q, k, v, scale=0.5, causal=causal, mask=mask if masked else None, backend=backend, weights=shown)
    assert shown[0].shape == (2, 3, 6, 8)
    assert (shown[0] >= 0).all()
    assert_close(shown[0].sum(-1), torch.ones(2, 3, 6), rtol=0, atol=1e-6)
    future = torch.arange(8) > torch.arange(6)[:, None] + 2
    assert bool((shown[0][..., future] == 0).all()) == causal
    assert bool((shown[0][1, ..., 2:] == 0).all()) == masked


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_that_may_see_nothing_gives_zeros(backend: str, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in qkv())
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1] = False
    mask[0, 0, 3] = False
    shown: list[Tensor] = []
    out = attend(q, k, v, scale=0.5, mask=mask, backend=backend, weights=shown)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert torch.equal(out[0, :, 3], torch.zeros_like(out[0, :, 3]))
    assert (out[0, :, [0, 1, 2, 4]] != 0).all()
    assert torch.equal(shown[0][1], torch.zeros_like(shown[0][1]))


@both
def test_a_masked_key_is_out_however_small_the_other_scores_are(backend: str) -> None:
    q, k, v = qkv()
    q, k = q.abs() * 1e4, -k.abs() * 1e4
    keys = torch.tensor([True, True, False, True, False])
    k[:, :, ~keys] = 0
    out = attend(q, k, v, scale=0.5, mask=keys[None], backend=backend)
    assert torch.equal(out, attend(q, k[:, :, keys], v[:, :, keys], scale=0.5, backend=backend))


@both
def test_a_float_mask_may_hide_keys_behind_minus_infinity(backend: str) -> None:
    q, k, v = qkv()
    keys = torch.tensor([True, True, False, True, False])
    out = attend(q, k, v, scale=0.5, mask=torch.zeros(1, 5).masked_fill(~keys, -torch.inf), backend=backend)
    assert_close(out, attend(q, k[:, :, keys], v[:, :, keys], scale=0.5, backend=backend), rtol=0, atol=1e-6)


@both
def test_the_scale_multiplies_the_scores(backend: str) -> None:
    q, k, v = qkv()
    out = attend(q, k, v, scale=1.0, backend=backend)
    assert_close(attend(q * 4, k, v, scale=0.25, backend=backend), out, rtol=0, atol=1e-6)
    assert not torch.allclose(attend(q, k, v, scale=0.25, backend=backend), out, atol=1e-2)


@both
@pytest.mark.parametrize("T", [1, 4, 7])
def test_causal_queries_are_the_last_of_the_steps(backend: str, T: int) -> None:
    q, k, v = qkv(T=7, S=7)
    whole = attend(q, k, v, scale=0.5, causal=True, backend=backend)
    out = attend(q[:, :, -T:], k, v, scale=0.5, causal=True, backend=backend)
    assert_close(out, whole[:, :, -T:], rtol=0, atol=1e-6)
    # What comes later has no effect on what was before, to the bit.
    other = v.clone()
    other[:, :, -1] += 1
    changed = attend(q, k, other, scale=0.5, causal=True, backend=backend)
    assert torch.equal(changed[:, :, :-1], whole[:, :, :-1])
    assert not torch.equal(changed[:, :, -1], whole[:, :, -1])


# Head masks


@both
def test_a_head_factor_of_zero_equals_zeroing_that_head_and_one_has_no_effect(backend: str) -> None:
    q, k, v = qkv()
    plain, masked = [], []
    out = attend(q, k, v, scale=0.5, backend=backend, weights=plain)
    options = {"scale": 0.5, "backend": backend, "head_mask": torch.tensor([1.0, 0.0, 1.0])}
    result = attend(q, k, v, **options, weights=masked)
    assert torch.equal(result[:, [0, 2]], out[:, [0, 2]])
    assert torch.equal(masked[0][:, [0, 2]], plain[0][:, [0, 2]])
    assert torch.equal(result[:, 1], torch.zeros_like(out[:, 1]))
    assert torch.equal(masked[0][:, 1], torch.zeros_like(plain[0][:, 1]))
    assert torch.equal(attend(q, k, v, scale=0.5, backend=backend, head_mask=torch.ones(3)), out)


@both
def test_a_head_factor_scales_the_output_and_the_weights_alike(backend: str) -> None:
    q, k, v = qkv()
    factors = torch.tensor([-0.5, 2.0, 1.25])
    shown: list[Tensor] = []
    out = attend(q, k, v, scale=0.5, causal=True, backend=backend, head_mask=factors, weights=shown)
    assert_close(shown[0] @ v, out, rtol=0, atol=2e-6)
    assert_close(shown[0].sum(-1), factors[None, :, None].expand(2, 3, 5), rtol=0, atol=2e-6)
    halves = attend(q, k, v, scale=0.5, causal=True, backend=backend, head_mask=factors / 2)
    assert torch.equal(halves * 2, out)


@both
@pytest.mark.parametrize("masked", [False, True])
def test_a_causal_mask_is_made_where_the_queries_are(backend: str, masked: bool) -> None:
    q, k, v = (x.to("meta") for x in qkv(T=2, S=5))
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool, device="meta") if masked else None
    out = attend(q, k, v, scale=0.5, mask=mask, causal=True, backend=backend)
    assert (out.device.type, out.shape) == ("meta", (2, 3, 2, 4))


@both
def test_gradients_reach_the_head_factors(backend: str) -> None:
    q, k, v = qkv()
    factors = torch.ones(3, requires_grad=True)
    out = attend(q, k, v, scale=0.5, backend=backend, head_mask=factors)
    out.sum().backward()
    assert_close(factors.grad, attend(q, k, v, scale=0.5, backend=backend).sum((0, 2, 3)), rtol=0, atol=1e-5)


# Dropout


@both
def test_dropout_drops_weights_and_scales_up_the_rest_only_when_asked(backend: str) -> None:
    # With values that are the identity, the result is the weights that were used.
    B, H, S = 2, 3, 64
    q, k, _ = qkv(B, H, S, S)
    v = torch.eye(S).expand(B, H, S, S)
    shown: list[Tensor] = []
    torch.manual_seed(0)
    used = attend(q, k, v, scale=0.5, backend=backend, dropout=0.25, weights=shown)
    dropped = used == 0
    # 24,576 draws: 0.25 within five standard deviations of 0.0028.
    assert abs(float(dropped.double().mean()) - 0.25) < 0.014
    assert_close(used, torch.where(dropped, 0.0, shown[0] / 0.75), rtol=0, atol=1e-6)
    state = torch.get_rng_state()
    plain = attend(q, k, v, scale=0.5, backend=backend)
    assert_close(plain, shown[0], rtol=0, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn where nothing is dropped"


@both
def test_the_module_drops_in_training_only(backend: str) -> None:
    module = Attention(12, heads=3, head_width=4, scale=0.5, dropout=0.5)
    x = draw(2, 6, 12)
    memory = module.keys_values(x)
    torch.manual_seed(0)
    first, second = (module.train()(x, memory, backend=backend) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(module.eval()(x, memory, backend=backend), module(x, memory, backend=backend))


# The module


@both
@pytest.mark.parametrize("inner", [12, 8, 20])
def test_the_module_is_the_sum_of_its_heads(backend: str, inner: int) -> None:
    heads, D = 4, inner // 4
    module = Attention(12, heads, D, scale=0.3, dropout=0.0).eval()
    x, y = draw(2, 5, 12), draw(2, 7, 12, seed=1)
    k, v = module.keys_values(y)
    assert k.shape == v.shape == (2, heads, 7, D)
    expected = torch.zeros(2, 5, 12)
    for h in range(heads):
        rows = slice(h * D, (h + 1) * D)
        scores = (x @ module.q.weight[rows].T) @ (y @ module.k.weight[rows].T).transpose(1, 2) * 0.3
        expected += scores.softmax(-1) @ (y @ module.v.weight[rows].T) @ module.out.weight[:, rows].T
    assert_close(module(x, (k, v), backend=backend), expected, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in module.parameters()) == 4 * 12 * inner, "no biases"


@pytest.mark.parametrize("backend", ["flash", "", "SDPA", None])
def test_an_unknown_backend_is_a_value_error(backend: Any) -> None:
    with pytest.raises(ValueError, match=rf"backend must be one of \('sdpa', 'eager'\), got {backend!r}"):
        attend(*qkv(), scale=1.0, backend=backend)


def test_attention_weights_without_a_mask_is_the_plain_softmax() -> None:
    q, k, _ = qkv()
    assert torch.equal(attention_weights(q, k, None, 0.5), (q @ k.transpose(2, 3) * 0.5).softmax(-1))


# The cache


def new_cache(steps: int = 10, layers: int = 2) -> KVCache:
    return KVCache(layers, batch=2, heads=3, steps=steps, head_width=4, like=torch.empty(0))


@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=8), spare=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_cache_gives_back_every_step_and_never_moves(chunks: list[int], spare: int, seed: int) -> None:
    steps = sum(chunks)
    keys, values = draw(2, 2, 3, steps, 4, seed=seed), draw(2, 2, 3, steps, 4, seed=seed + 100)
    cache = new_cache(steps + spare)
    buffers = [*cache.keys, *cache.values]
    where = [buffer.data_ptr() for buffer in buffers]
    assert [buffer.untyped_storage().nbytes() for buffer in buffers] == 4 * [4 * 2 * 3 * (steps + spare) * 4]
    for chunk in chunks:
        start, end = cache.length, cache.length + chunk
        for layer in range(2):
            k, v = cache.append(layer, keys[layer, :, :, start:end], values[layer, :, :, start:end])
            assert torch.equal(k, keys[layer, :, :, :end])
            assert torch.equal(v, values[layer, :, :, :end])
            # Slices of the buffer itself, of the exact length.
            assert k.data_ptr() == cache.keys[layer].data_ptr()
            assert v.data_ptr() == cache.values[layer].data_ptr()
            assert cache.length == start, "the decoder moves on when all layers are written"
        cache.length = end
    assert [buffer.data_ptr() for buffer in [*cache.keys, *cache.values]] == where


@pytest.mark.parametrize("chunks", [[11], [10, 1], [4, 7]])
def test_more_steps_than_the_cache_holds_is_a_value_error(chunks: list[int]) -> None:
    cache = new_cache(10)
    for chunk in chunks[:-1]:
        cache.append(0, draw(2, 3, chunk, 4), draw(2, 3, chunk, 4))
        cache.length += chunk
    before = cache.keys[0][:, :, : cache.length].clone()
    with pytest.raises(ValueError, match="the cache holds 10 steps, 11 are needed"):
        cache.append(0, draw(2, 3, chunks[-1], 4), draw(2, 3, chunks[-1], 4))
    assert cache.length == sum(chunks[:-1])
    assert torch.equal(cache.keys[0][:, :, : cache.length], before)


def test_setting_the_length_back_rewinds() -> None:
    cache = new_cache(6)
    first = draw(2, 3, 6, 4)
    cache.append(0, first, first)
    cache.length = 2
    again = draw(2, 3, 3, 4, seed=1)
    k, v = cache.append(0, again, -again)
    assert torch.equal(k, torch.cat([first[:, :, :2], again], dim=2))
    assert torch.equal(v, torch.cat([first[:, :, :2], -again], dim=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_cache_has_the_dtype_and_device_of_what_it_is_like(dtype: torch.dtype) -> None:
    for device in ("cpu", "meta"):
        cache = KVCache(1, 2, 3, steps=5, head_width=4, like=torch.empty(0, dtype=dtype, device=device))
        for (buffer,) in (cache.keys, cache.values):
            assert (buffer.dtype, buffer.device.type) == (dtype, device)
            assert buffer.shape == (2, 3, 5, 4)
    assert cache.length == 0
    assert cache.cross == []
    assert cache.cross_mask is None
