"""From logits to codes: equal to transformers' processors and draws, and right in itself where it has no equal."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor
from torch.testing import assert_close
from transformers.generation import (
    ClassifierFreeGuidanceLogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from musicgen_ref import GenerationOptions, checks
from musicgen_ref.model import Sampling, choose
from musicgen_ref.sampling import draw, guide, min_p, top_k, top_p

NONE = torch.empty(0, 0, dtype=torch.long)  # the ids so far, which none of these processors reads
INF, NAN = math.inf, math.nan
LARGEST = torch.finfo(torch.float32).max
properties = settings(deadline=None)

seeds = st.integers(0, 2**32)
# Near the ends on purpose: 1 - p rounds to 1, to 0, or to the last digits of a sum.
probabilities = st.floats(0, 1, exclude_min=True) | st.sampled_from(
    [1e-45, 1e-20, 1e-7, 0.5, 0.9, 1 - 2**-24, 1 - 1e-7, 1 - 2**-53, 1.0]
)


@st.composite
def random_logits(draw: st.DrawFn) -> Tensor:
    """(B, K, V): normal at any scale, some rounded so that many tie, some with values at the ends of fp32."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70)))
    generator = Generator().manual_seed(draw(seeds))
    logits = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.0, 0.01, 1.0, 10.0, 1e4, 1e30]))
    kind = draw(st.sampled_from(["plain", "ties", "extreme"]))
    if kind == "ties":
        logits = logits.round()
    if kind == "extreme":
        extremes = torch.tensor([-LARGEST, LARGEST, 0.0, 1e-45])
        chosen = torch.randint(8, shape, generator=generator)
        logits = torch.where(chosen < 4, extremes[chosen.clamp(max=3)], logits)
    return logits


def theirs(logits: Tensor, seed: int) -> Tensor:
    """transformers' draw from scores (B * K, V): one multinomial from the default generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.multinomial(logits.flatten(0, 1).softmax(-1), 1).squeeze(1).view(logits.shape[:-1])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


# Guidance


@properties
@given(logits=random_logits(), scale=st.floats(1, 20, exclude_min=True), seed=seeds)
def test_guidance_above_1_is_that_of_transformers(logits: Tensor, scale: float, seed: int) -> None:
    null = torch.randn(logits.shape, generator=Generator().manual_seed(seed))
    processor = ClassifierFreeGuidanceLogitsProcessor(scale)
    rows = math.prod(logits.shape[:2])
    expected = processor(torch.zeros(rows, 1), torch.cat([logits, null]).flatten(0, 1))
    assert torch.equal(guide(logits, null, scale), expected.view_as(logits))


@pytest.mark.parametrize("scale", [-1, 0, 0.5, 1, 3])
def test_guidance_is_a_line_through_both_predictions(scale: float) -> None:
    cond, null = normal(2, 4, 64), normal(2, 4, 64, seed=1)
    exact = (1 - scale) * null.double() + scale * cond.double()
    guided = guide(cond, null, scale)
    assert guided.dtype == torch.float32
    assert_close(guided.double(), exact, rtol=0, atol=3e-6)  # two or three roundings of numbers up to 16
    if scale == 0:
        assert torch.equal(guided, null)


def test_guidance_between_equal_predictions_changes_nothing() -> None:
    cond = normal(2, 4, 64)
    for scale in (-1, 0, 0.5, 1, 3, 100):
        assert torch.equal(guide(cond, cond, scale), cond)


# Top-k and top-p


@properties
@given(logits=random_logits(), k=st.integers(1, 80))
def test_top_k_is_that_of_transformers(logits: Tensor, k: int) -> None:
    before = logits.clone()
    kept = top_k(logits, k)
    assert torch.equal(kept, TopKLogitsWarper(k)(NONE, logits.flatten(0, 1)).view_as(logits))
    assert torch.equal(logits, before)


@properties
@given(logits=random_logits(), p=probabilities)
@example(logits=torch.zeros(1, 1, 4), p=0.5)  # sums that are whole in fp32: 0.25, 0.5, ...
@example(logits=torch.tensor([[[0.0, 0.0, -INF, -INF]]]), p=0.9)
@example(logits=torch.tensor([[[5.0, 5.0, 1.0]]]), p=1e-45)
def test_top_p_is_that_of_transformers(logits: Tensor, p: float) -> None:
    before = logits.clone()
    kept = top_p(logits, p)
    # transformers leaves the warper out at 1.
    expected = logits if p == 1 else TopPLogitsWarper(p)(NONE, logits.flatten(0, 1)).view_as(logits)
    assert torch.equal(kept, expected)
    assert torch.equal(logits, before)


@properties
@given(logits=random_logits(), p=probabilities)
@example(logits=torch.zeros(1, 1, 4), p=1.0)
def test_min_p_is_that_of_transformers(logits: Tensor, p: float) -> None:
    before = logits.clone()
    assert torch.equal(min_p(logits, p), MinPLogitsWarper(p)(NONE, logits.flatten(0, 1)).view_as(logits))
    assert torch.equal(logits, before)


def test_min_p_keeps_what_is_p_times_as_probable_as_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, kept in ((0, 4), (0.09, 4), (0.11, 3), (0.31, 2), (0.59, 2), (0.61, 1), (1, 1)):
        assert torch.isfinite(min_p(logits, p)).tolist() == [i < kept for i in range(4)]


@pytest.mark.parametrize("k", [0, 64, 65, 10**9])
def test_top_k_of_all_keeps_all(k: int) -> None:
    logits = normal(2, 4, 64)
    assert torch.equal(top_k(logits, k), logits)


@pytest.mark.parametrize("p", [1, 1.0])
def test_top_p_of_1_keeps_all(p: float) -> None:
    logits = 100 * normal(2, 4, 64)
    assert torch.equal(top_p(logits, p), logits)


def test_top_k_keeps_the_k_largest_and_what_ties_with_the_last() -> None:
    logits = torch.tensor([[[3.0, 1, 2, 2, 0], [0, 0, 0, 0, 0]]])
    assert top_k(logits, 1).tolist() == [[[3, -INF, -INF, -INF, -INF], [0, 0, 0, 0, 0]]]
    assert top_k(logits, 2).tolist() == [[[3, -INF, 2, 2, -INF], [0, 0, 0, 0, 0]]]
    assert top_k(logits, 4).tolist() == [[[3, 1, 2, 2, -INF], [0, 0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (1e-9, [True, False, False, False]),
        (0.49, [True, False, False, False]),
        (0.51, [True, True, False, False]),
        (0.79, [True, True, False, False]),
        (0.81, [True, True, True, False]),
        (0.94, [True, True, True, False]),
        (0.96, [True, True, True, True]),
    ],
)
def test_top_p_keeps_the_fewest_codes_that_reach_p(p: float, kept: list[bool]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.isfinite(top_p(logits[order], p)).tolist() == torch.tensor(kept)[order].tolist()


@properties
@given(logits=random_logits(), k=st.integers(0, 80), p=probabilities)
def test_what_is_left_is_unchanged_and_never_nothing(logits: Tensor, k: int, p: float) -> None:
    kept = top_p(top_k(logits, k), p)
    alive = torch.isfinite(kept)
    assert alive.any(-1).all()
    assert torch.equal(kept[alive], logits[alive])
    assert torch.equal(kept.amax(-1), logits.amax(-1))
    assert not kept.softmax(-1).isnan().any()


# Draws


@properties
@given(logits=random_logits(), seed=seeds)
def test_draws_are_those_of_transformers_under_the_same_seed(logits: Tensor, seed: int) -> None:
    expected = theirs(logits, seed)
    assert torch.equal(draw(logits, Generator().manual_seed(seed)), expected)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        assert torch.equal(draw(logits), expected)
        assert torch.equal(draw(logits, None), theirs_again(logits, seed))


def theirs_again(logits: Tensor, seed: int) -> Tensor:
    """transformers' second draw after a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probs = logits.flatten(0, 1).softmax(-1)
        torch.multinomial(probs, 1)
        return torch.multinomial(probs, 1).squeeze(1).view(logits.shape[:-1])


@properties
@given(
    logits=random_logits(),
    temperature=st.floats(0.01, 10) | st.just(1.0),
    k=st.integers(0, 80),
    p=probabilities,
    least=st.sampled_from([0.0, 0.1, 1.0]),
    greedy=st.booleans(),
    seed=seeds,
)
def test_a_chosen_code_is_that_of_transformers_processors(
    logits: Tensor, temperature: float, k: int, p: float, least: float, greedy: bool, seed: int
) -> None:
    options = Sampling(temperature=temperature, top_k=k, top_p=p, min_p=least, greedy=greedy)
    # Divided by a temperature below 1, the largest numbers of fp32 are infinite.
    logits = logits.clamp(-LARGEST * 0.01, LARGEST * 0.01)
    processors = LogitsProcessorList()
    if temperature != 1:
        processors.append(TemperatureLogitsWarper(temperature))
    if k:
        processors.append(TopKLogitsWarper(k))
    if p < 1:
        processors.append(TopPLogitsWarper(p))
    if least:
        processors.append(MinPLogitsWarper(least))
    generator = Generator().manual_seed(seed)
    chosen = choose(logits, options, generator)
    assert chosen.shape == logits.shape[:-1]
    assert chosen.dtype == torch.long
    if greedy:
        assert torch.equal(chosen, logits.argmax(-1))
        assert torch.equal(generator.get_state(), Generator().manual_seed(seed).get_state())
    else:
        expected = processors(NONE, logits.flatten(0, 1)).view_as(logits)
        assert torch.equal(chosen, theirs(expected, seed))


def test_greedy_takes_the_first_of_the_likeliest_whatever_else_the_options_say() -> None:
    logits = torch.tensor([[[0.0, 2, 2, 1], [-1, -1, -1, -1]]])
    options = Sampling(greedy=True, temperature=5.0, top_k=3, top_p=0.1)
    assert choose(logits, options, None).tolist() == [[1, 0]]


@properties
@given(logits=random_logits(), seed=seeds)
def test_top_k_of_1_draws_the_likeliest(logits: Tensor, seed: int) -> None:
    drawn = choose(logits, Sampling(top_k=1), Generator().manual_seed(seed))
    assert torch.equal(logits.gather(-1, drawn[..., None]).squeeze(-1), logits.amax(-1))


@properties
@given(seed=seeds, alive=st.integers(1, 8))
def test_a_code_at_minus_infinity_is_never_drawn(seed: int, alive: int) -> None:
    generator = Generator().manual_seed(seed)
    logits = torch.full((5, 4, 64), -INF)
    chosen = torch.randint(64, (5, 4, alive), generator=generator)
    logits.scatter_(-1, chosen, torch.randn(5, 4, alive, generator=generator))
    for _ in range(10):
        drawn = draw(logits, generator)
        assert torch.isfinite(logits.gather(-1, drawn[..., None])).all()


@pytest.mark.parametrize("own", [False, True])
def test_a_generator_leaves_the_default_one_alone(own: bool) -> None:
    logits = normal(3, 4, 64)
    generators = [Generator().manual_seed(b) for b in range(3)]
    before = torch.get_rng_state()
    state = generators[0].get_state()
    draw(logits, generators if own else generators[0])
    choose(logits, Sampling(), generators if own else generators[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(generators[0].get_state(), state)


def test_no_generator_uses_the_default_one() -> None:
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        draw(normal(3, 4, 64))
        assert not torch.equal(torch.get_rng_state(), before)


@properties
@given(logits=random_logits(), seed=seeds, order=st.randoms(use_true_random=False))
def test_a_row_with_its_own_generator_does_not_depend_on_its_batch(logits: Tensor, seed: int, order: Any) -> None:
    def generators(rows: list[int]) -> list[Generator]:
        return [Generator().manual_seed(seed + b) for b in rows]

    B = len(logits)
    every = draw(logits, generators(list(range(B))))
    assert every.shape == logits.shape[:-1]
    shuffled = list(range(B))
    order.shuffle(shuffled)
    assert torch.equal(draw(logits[shuffled], generators(shuffled)), every[shuffled])
    for b in range(B):
        (own,) = generators([b])
        assert torch.equal(draw(logits[b : b + 1], own), every[b : b + 1])  # as the single run of that row
        (again,) = generators([b])
        draw(logits[b : b + 1], [again])
        assert torch.equal(own.get_state(), again.get_state())


def test_rows_with_equal_generators_draw_alike_and_others_do_not() -> None:
    logits = torch.zeros(1, 4, 64).expand(3, -1, -1)
    first, second, other = draw(logits, [Generator().manual_seed(seed) for seed in (7, 7, 8)])
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_generators_that_are_not_one_a_row_are_refused(count: int) -> None:
    with pytest.raises(ValueError):
        draw(normal(3, 4, 64), [Generator().manual_seed(b) for b in range(count)])


# Statistics: the seeds are fixed, so that these tests give the same numbers in every run


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = counts.sum() * probabilities
    assert expected.min() >= 5  # below, the statistic does not follow its distribution
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("own", [False, True], ids=["one generator", "one a row"])
@pytest.mark.parametrize(
    "options",
    [
        Sampling(top_k=0),
        Sampling(top_k=0, temperature=2.0),
        Sampling(top_k=5),
        Sampling(top_k=0, top_p=0.8),
    ],
    ids=["plain", "temperature", "top-k", "top-p"],
)
def test_codes_are_drawn_as_often_as_the_softmax_says(options: Sampling, own: bool) -> None:
    rows, codebooks = 2_000, 4
    logits = normal(codebooks, 16)
    scaled = top_p(top_k(logits / options.temperature, options.top_k), options.top_p).double().softmax(-1)
    batch = logits.expand(rows, -1, -1)
    generator = [Generator().manual_seed(b) for b in range(rows)] if own else Generator().manual_seed(0)
    drawn = torch.cat([choose(batch, options, generator) for _ in range(5)])
    for k in range(codebooks):
        counts = drawn[:, k].bincount(minlength=16).double()
        alive = scaled[k] > 0
        assert counts[~alive].sum() == 0
        # A right sampler exceeds this quantile once in 10,000 seeds.
        bound = stats.chi2.ppf(0.9999, df=int(alive.sum()) - 1)
        assert chi_square(counts[alive], scaled[k][alive]) < bound


def test_codebooks_and_rows_are_drawn_independently() -> None:
    logits = normal(2, 2, 6) / 2
    generator = Generator().manual_seed(0)
    probs = logits.double().softmax(-1).flatten(0, 1)  # of the four cells (row, codebook)
    drawn = torch.stack([draw(logits, generator).flatten() for _ in range(10_000)])
    for i, j in ((0, 1), (0, 2), (1, 3), (2, 3)):
        pairs = (drawn[:, i] * 6 + drawn[:, j]).bincount(minlength=36).double()
        joint = (probs[i][:, None] * probs[j]).flatten()
        assert chi_square(pairs, joint) < stats.chi2.ppf(0.9999, df=35)  # as above
    steps = (drawn[:-1, 0] * 6 + drawn[1:, 0]).bincount(minlength=36).double()  # a cell's draw and its next
    assert chi_square(steps, (probs[0][:, None] * probs[0]).flatten()) < stats.chi2.ppf(0.9999, df=35)


# Options


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (0, 0.0, -1, -0.001, NAN, INF, -INF)],
        *[("top_k", value) for value in (-1, -250, 2.0, 250.5, NAN, True)],
        *[("top_p", value) for value in (0, 0.0, -0.5, 1.0001, 2, NAN, INF)],
        *[("seconds", value) for value in (0, 0.0, -1, -0.5, NAN, INF)],
        *[("frames", value) for value in (0, -1, 1.0, 2.5, NAN, True)],
        *[("guidance_scale", value) for value in (NAN, INF, -INF)],
        *[("pattern", value) for value in ("flat", "", "Delay", None)],
    ],
)
def test_an_impossible_option_names_the_field_and_says_what_was_got(field: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        GenerationOptions(**{field: value})
    assert str(error.value).startswith(f"{field} must be ")
    assert f"got {value!r}" in str(error.value)


@pytest.mark.parametrize("temperature", [checks.MIN_TEMPERATURE, 1.0, checks.MAX_TEMPERATURE])
@pytest.mark.parametrize("guidance", [-checks.MAX_GUIDANCE, 0.0, checks.MAX_GUIDANCE])
def test_logits_stay_numbers_within_the_limits_of_the_options(temperature: float, guidance: float) -> None:
    """Those of the largest models are below a hundred; these are of 1e7."""
    asked = GenerationOptions(temperature=temperature, guidance_scale=guidance, top_p=0.9, min_p=0.01)
    options = asked.sampling(GenerationOptions())
    cond, null = normal(2, 4, 64) * 1e7, normal(2, 4, 64, seed=1) * 1e7
    logits = guide(cond, null, options.guidance_scale)
    assert (logits / options.temperature).isfinite().all()
    drawn = choose(logits, options, Generator().manual_seed(0))
    if temperature < 1e10:  # so cold that the likeliest is drawn
        assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize(
    "field, value", [("temperature", 0.99e-20), ("temperature", 1.01e20), ("guidance_scale", 1.01e10)]
)
def test_what_lies_beyond_the_limits_of_fp32_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be from .*1e\+[12]0, beyond which fp32 overflows, got "):
        GenerationOptions(**{field: value})


def test_seconds_and_frames_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seconds .*frames.* got 2\.0"):
        GenerationOptions(seconds=2.0, frames=100)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-3},
        {"temperature": 100},
        {"top_k": 0},
        {"top_k": 10**6},
        {"top_p": 1},
        {"top_p": 1e-9},
        {"seconds": 0.001},
        {"frames": 1},
        {"guidance_scale": 0},
        {"guidance_scale": -1.5},
        {"guidance_scale": 0.5},
        {"pattern": "parallel"},
        {"greedy": True},
    ],
)
def test_a_possible_option_is_kept(fields: dict[str, Any]) -> None:
    options = GenerationOptions(**fields)
    ((field, value),) = fields.items()
    assert getattr(options, field) == value
    with pytest.raises(AttributeError):
        options.top_k = 3  # type: ignore[misc]


def test_the_default_options_are_those_of_the_authors() -> None:
    options = GenerationOptions()
    assert options.sampling(GenerationOptions()) == Sampling() == (3.0, 1.0, 250, 1.0, 0.0, False)
    assert (options.greedy, options.pattern, options.seconds, options.frames) == (False, "delay", None, None)


def test_what_the_caller_says_wins_over_the_checkpoint_and_that_over_the_library() -> None:
    of_checkpoint = GenerationOptions(temperature=0.5, top_k=9, min_p=0.3, greedy=True)  # no default but the first two
    asked = GenerationOptions(top_k=0, guidance_scale=1.5)
    assert asked.sampling(of_checkpoint) == Sampling(guidance_scale=1.5, temperature=0.5, top_k=0)
    same = GenerationOptions(temperature=1.0, top_k=250)  # the library's own, said: not the checkpoint's
    assert same.sampling(of_checkpoint) == Sampling()
    assert asked == GenerationOptions(top_k=0, guidance_scale=1.5)
