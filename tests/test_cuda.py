"""Decoding steps as CUDA graphs: the codes of the plain loop, and nothing in a graph that a graph cannot hold.

Without a card a graph is what WrittenDown makes of a step: a list of operations on the very tensors that they had. Done
again, it does the same to the same memory, as a CUDA graph does, and runs no Python of ours: a number that Python chose
when the list was made is frozen in it. The tests at the end need a card.
"""

import copy
import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.attention import KVCache, Trace
from musicgen_ref.decoder import Decoder, DecoderConfig
from musicgen_ref.fast import cuda
from musicgen_ref.fast.cache import CACHES
from musicgen_ref.model import DEFAULT, Generated, Sampling, Step, decide
from tests import tiny

FRAMES = 22
GREEDY = GenerationOptions(frames=FRAMES, greedy=True)
DRAWN = GenerationOptions(frames=FRAMES)
SHAPED = GenerationOptions(frames=FRAMES, temperature=0.7, top_k=30, top_p=0.9, min_p=0.01)
FP32 = 1e-5  # of the scale of logits: attention sums over masked keys, too


class WrittenDown(TorchDispatchMode):
    """What torch does under it, as a list of operations on tensors, to be done again."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def __call__(self) -> None:
        """Do it again: what an operation made is made anew, and all else is the very tensor of then."""
        made: dict[int, Tensor] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, Tensor) else value

        for func, args, kwargs, result in self.operations:
            anew = func(*tree_map(now, args), **tree_map(now, kwargs))
            for was, new in zip(tree_leaves(result), tree_leaves(anew), strict=True):
                made[id(was)] = new

    def names(self) -> set[str]:
        return {func.overloadpacket.__name__ for func, *_ in self.operations}


def write_down(recorder: cuda.Recorder, step: Callable[[], object], written: Sequence[Tensor]) -> WrittenDown:
    """A Recorder's way to capture a step, in place of its own."""
    before = [tensor.clone() for tensor in written]
    with WrittenDown() as graph:
        step()
    for tensor, was in zip(written, before, strict=True):
        tensor.copy_(was)
    return graph


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs for 8, 16 ... steps and 4, 8 ... tokens, so that a second of music needs a few; frozen ones."""
    monkeypatch.setattr(cuda, "STEPS", 8)
    monkeypatch.setattr(cuda, "TOKENS", 4)
    monkeypatch.setattr(cuda.Recorder, "__call__", write_down)


@pytest.fixture(scope="module")
def mono() -> MusicGen:
    return tiny.ours_in_memory(tiny.musicgen_of(tiny.CODES))


@pytest.fixture(scope="module")
def stereo() -> MusicGen:
    return tiny.ours_in_memory(tiny.musicgen_of(tiny.CODES, 8, 2))


@pytest.fixture
def both(mono: MusicGen) -> tuple[MusicGen, MusicGen]:
    """A plain model, and the same one with graphs."""
    return mono, captured(mono)


def captured(model: MusicGen) -> MusicGen:
    twin = copy.copy(model)
    assert cuda.capture(twin) is twin
    return twin


def static(model: MusicGen) -> cuda.Static:
    found = model.fill_in.static  # type: ignore[attr-defined]
    assert isinstance(found, cuda.Static)
    return found


def graphs(model: MusicGen) -> list[tuple[int, int]]:
    """Steps and tokens of each graph."""
    return [(kind.steps, kind.tokens) for kind in static(model).graphs]


def generators(count: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(count)]


def prompts(model: MusicGen, *frames: int) -> list[Tensor]:
    K = len(model.delays)
    return [tiny.codes(1, K, length, seed=length)[0] for length in frames]


def assert_same(got: Generated, expected: Generated) -> None:
    assert torch.equal(got.codes, expected.codes)
    assert torch.equal(got.audio, expected.audio)
    if expected.logits is not None:
        assert got.logits is not None
        scale = expected.logits.nan_to_num(0).abs().max().item()
        assert torch.allclose(got.logits, expected.logits, rtol=0, atol=FP32 * scale, equal_nan=True)


# What is served


CASES: dict[str, tuple[dict[str, Any], GenerationOptions]] = {
    "greedy, guided": ({"text": tiny.text(2)}, GREEDY),
    "drawn, guided": ({"text": tiny.text(2)}, DRAWN),
    "every option": ({"text": tiny.text(2)}, SHAPED),
    "without guidance": ({"text": tiny.text(2)}, replace(SHAPED, guidance_scale=1.0)),
    "away from the text": ({"text": tiny.text(2)}, replace(SHAPED, guidance_scale=-0.5)),
    "no text": ({}, DRAWN),
    "three rows without text": ({"text": (torch.zeros(3, 1).long(), torch.zeros(3, 1).long())}, GREEDY),
    "guidance that reads no text": ({"text": tiny.text(2)}, replace(DRAWN, guidance_scale=0.0)),
    "texts of one length": ({"text": tiny.text(1)}, GREEDY),
    "parallel": ({"text": tiny.text(1)}, replace(DRAWN, pattern="parallel")),
    "one frame": ({"text": tiny.text(1)}, replace(GREEDY, frames=1)),
    "a step of the plain loop and no more": ({"text": tiny.text(1)}, replace(GREEDY, frames=1, pattern="parallel")),
    # The last one, also on a card: there a row all masked that became NaN would stop the device.
    "a text beside none": ({"text": (tiny.text(2)[0], tiny.text(2)[1] * torch.tensor([[1], [0]]))}, DRAWN),
}


@pytest.mark.parametrize("kind", ["mono", "stereo"])
@pytest.mark.parametrize("case", CASES)
def test_graphs_make_the_codes_of_the_plain_loop(case: str, kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    given, options = CASES[case]
    expected = model.generate(options=options, generator=generators(1)[0], return_logits=True, **given)
    got = captured(model).generate(options=options, generator=generators(1)[0], return_logits=True, **given)
    assert_same(got, expected)


@pytest.mark.parametrize("kind", ["mono", "stereo"])
@pytest.mark.parametrize("frames", [(3, 3), (1, 9), (13, 5), (FRAMES, 4), (FRAMES, FRAMES)], ids=str)
@pytest.mark.parametrize("each", [False, True], ids=["one generator", "one a row"])
def test_prompts_are_continued_and_generators_are_used_as_in_the_plain_loop(
    each: bool, frames: tuple[int, int], kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    text, known, made = tiny.text(2), prompts(model, *frames), []
    for one in (model, captured(model)):
        own = generators(2) if each else generators(1)
        given: Any = own if each else own[0]
        result = one.generate(text, SHAPED, prompt=known, generator=given, return_logits=True)
        made.append((result, [generator.get_state() for generator in own]))
    (expected, states), (got, own_states) = made
    assert_same(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(own_states, states, strict=True))
    for row, codes in zip(got.codes, known, strict=True):
        assert torch.equal(row[:, : codes.shape[1]], codes)


def test_without_a_generator_draws_are_those_of_the_global_one(both: tuple[MusicGen, MusicGen]) -> None:
    made = []
    for model in both:
        torch.manual_seed(3)
        made.append((model.generate(tiny.text(2), DRAWN).codes, torch.get_rng_state()))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])


def test_the_same_without_anything_written_down(
    both: tuple[MusicGen, MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it runs where there is no CUDA."""
    monkeypatch.undo()
    options = replace(SHAPED, frames=cuda.STEPS + 10)
    expected, got = (model.generate(tiny.text(2), options, generator=generators(1)[0]) for model in both)
    assert_same(got, expected)
    assert graphs(both[1]) == [(256, 16), (512, 16)]


def test_clips_with_a_text_and_without_take_turns(both: tuple[MusicGen, MusicGen]) -> None:
    options = replace(GREEDY, guidance_scale=1.0)
    for text in (None, tiny.text(1), None, tiny.text(1, 3), tiny.text(1)):
        plain, got = (model.generate(text, options, return_logits=True) for model in both)
        assert_same(got, plain)
    assert static(both[1]).tokens == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, mono: MusicGen) -> None:
    """Logits as near to the plain loop's as one rounding of the stream is; codes alone cannot be compared."""
    half = copy.deepcopy(mono).to(dtype)
    expected, got = (model.generate(tiny.text(2), GREEDY, return_logits=True) for model in (half, captured(half)))
    assert expected.logits is not None and got.logits is not None
    first = 4  # frames: what is decided from the same codes in any case
    assert torch.equal(got.codes[..., :first], expected.codes[..., :first])
    scale = float(expected.logits.abs().max())
    difference = (got.logits - expected.logits)[:, :, :first].abs().max()
    assert difference < 4 * torch.finfo(dtype).eps * scale
    assert static(captured_after(half)).cache.keys[0].dtype == dtype


def captured_after(model: MusicGen) -> MusicGen:
    twin = captured(model)
    twin.generate(tiny.text(1), GREEDY)
    return twin


# One clip after another, and beside it


def test_a_clip_needs_a_few_graphs_and_the_next_one_none(
    both: tuple[MusicGen, MusicGen], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, model = both
    model.generate(tiny.text(2), replace(GREEDY, frames=37))
    assert graphs(model) == [(8, 8), (16, 8), (32, 8), (40, 8)], "40 steps, of which a graph for 64 would waste 24"
    before = static(model)
    addresses = [tensor.data_ptr() for tensor in tensors(before)]
    made = []
    monkeypatch.setattr(cuda.Recorder, "__call__", lambda self, step, written: made.append(step) or step)
    for frames in (37, 20, 5):
        options = replace(GREEDY, frames=frames)
        assert torch.equal(model.generate(tiny.text(2), options).codes, plain.generate(tiny.text(2), options).codes)
    assert static(model) is before and made == []
    assert [tensor.data_ptr() for tensor in tensors(before)] == addresses
    # Other options, other texts: other graphs over the same buffers.
    model.generate(tiny.text(2), replace(GREEDY, frames=5, guidance_scale=2.0))
    model.generate(tiny.text(2, length=3), replace(GREEDY, frames=5))
    assert static(model) is before and len(made) == 2
    # A longer clip, a longer text, another batch: other buffers, and no shorter ones where the rows are the same.
    for text, frames, room in (
        (tiny.text(2), 50, (56, 8)),
        (tiny.text(2, 11), 20, (56, 16)),
        (tiny.text(1), 20, (24, 8)),
    ):
        options = replace(GREEDY, frames=frames)
        assert torch.equal(model.generate(text, options).codes, plain.generate(text, options).codes)
        assert (static(model).steps, static(model).tokens) == room


def tensors(of: cuda.Static) -> list[Tensor]:
    cross = [tensor for pair in of.cache.text for tensor in pair]
    return [
        *of.cache.keys,
        *of.cache.values,
        *cross,
        of.cache.length,
        of.cache.text_mask,
        of.table,
        of.noise,
        of.logits,
    ]


def test_graphs_that_were_not_used_for_long_make_room(mono: MusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "GRAPHS", 2)
    model = captured(mono)
    for frames in (20, 5):
        model.generate(tiny.text(1), replace(GREEDY, frames=frames))
    assert graphs(model) == [(24, 8), (8, 8)]
    model.generate(tiny.text(1), replace(GREEDY, frames=20))
    assert graphs(model) == [(16, 8), (24, 8)]
    model.generate(tiny.text(1), replace(GREEDY, frames=13), prompt=prompts(model, 9))  # uses the older one alone
    model.generate(tiny.text(1), replace(GREEDY, frames=5))
    assert graphs(model) == [(16, 8), (8, 8)]


def test_steps_are_the_callers_to_keep_and_the_table_is_filled_step_by_step(both: tuple[MusicGen, MusicGen]) -> None:
    kept: list[list[Step]] = []
    for model in both:
        table, steps = model.generate_steps(tiny.text(2), SHAPED, generator=generators(1)[0])
        kept.append([])
        for step in steps:
            assert (table[..., step.column] >= 0).all() and (table[..., step.column + 1 :] < 0).any(1).any(1).sum() in (
                0,
                2,
            )
            kept[-1].append(step)
    for a, b in zip(*kept, strict=True):
        assert a.column == b.column and a.trace is None and b.trace is None
        assert torch.allclose(a.logits, b.logits, atol=1e-4) and torch.allclose(a.unguided, b.unguided, atol=1e-4)
        assert a.unguided.shape == b.unguided.shape


def test_a_clip_may_end_early_and_the_next_one_is_served(both: tuple[MusicGen, MusicGen]) -> None:
    plain, model = both
    made = []
    for one in both:
        own = generators(1)[0]
        frames = one.generate_codes(tiny.text(2), DRAWN, generator=own)
        made.append(([next(frames) for _ in range(9)], own.get_state()))
        frames.close()  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(made[0][0], made[1][0], strict=True))
    assert torch.equal(made[0][1], made[1][1])
    before = static(model)
    assert torch.equal(model.generate(tiny.text(2), GREEDY).codes, plain.generate(tiny.text(2), GREEDY).codes)
    assert static(model) is before


def test_two_clips_at_a_time_do_not_meet(both: tuple[MusicGen, MusicGen]) -> None:
    plain, model = both
    texts = [tiny.text(2, seed=seed) for seed in (0, 1)]
    expected = [list(plain.generate_codes(text, GREEDY)) for text in texts]
    streams = [model.generate_codes(text, GREEDY) for text in texts]
    got = list(zip(*streams, strict=True))
    for stream in (0, 1):
        assert all(torch.equal(a, turn[stream]) for a, turn in zip(expected[stream], got, strict=True))


def test_what_a_call_allocates_is_given_back_once_the_graphs_run(
    mono: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[KVCache]] = []
    new_cache = Decoder.new_cache

    def watched(*args: Any) -> KVCache:
        cache = new_cache(*args)
        made.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(Decoder, "new_cache", watched)
    _, steps = captured(mono).generate_steps(tiny.text(1), GREEDY)
    next(steps)
    assert made[0]() is not None
    next(steps)
    assert made[0]() is None


def test_a_clip_that_was_no_number_is_an_error_and_does_not_spoil_the_next_one(both: tuple[MusicGen, MusicGen]) -> None:
    plain, model = both
    expected = plain.generate(tiny.text(2), GREEDY, return_logits=True)
    weight = model.decoder.blocks[0].self_attn.v.weight  # type: ignore[union-attr]
    steps = model.generate_steps(tiny.text(2), DRAWN)[1]
    next(steps)
    was = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="not numbers"):
        list(steps)
    with torch.no_grad():
        weight.copy_(was)
    before = static(model)
    assert_same(model.generate(tiny.text(2), GREEDY, return_logits=True), expected)
    assert static(model) is before


def test_a_text_that_was_no_number_does_not_spoil_a_shorter_one(both: tuple[MusicGen, MusicGen]) -> None:
    plain, model = both
    expected = plain.generate(tiny.text(2, 9), GREEDY, return_logits=True)
    states = model.encode_text(tiny.text(2, 12))
    model.generate(states._replace(memory=states.memory * torch.nan), GREEDY)  # draws nothing, so that nothing raises
    before = static(model)
    assert_same(model.generate(tiny.text(2, 9), GREEDY, return_logits=True), expected)
    assert static(model) is before and before.tokens == 16


def test_a_clip_of_inference_mode_leaves_what_others_can_write(both: tuple[MusicGen, MusicGen]) -> None:
    plain, model = both
    with torch.inference_mode():
        model.generate(tiny.text(2), GREEDY)
    assert_same(model.generate(tiny.text(2), GREEDY), plain.generate(tiny.text(2), GREEDY))


# What happens to the model later


def test_weights_that_change_count_and_parts_that_are_replaced_do(mono: MusicGen) -> None:
    model = copy.deepcopy(mono)
    cuda.capture(model)
    text = tiny.text(2)
    model.generate(text, GREEDY)
    before = static(model)

    def agree() -> bool:
        got = model.generate(text, GREEDY).codes
        return torch.equal(got, copy.deepcopy(model).generate(text, GREEDY).codes)

    with torch.no_grad():
        model.decoder.heads[0].weight.neg_()  # type: ignore[operator]
    assert agree() and static(model) is before
    model.decoder.heads[1].weight = torch.nn.Parameter(-model.decoder.heads[1].weight.detach())
    assert agree() and static(model) is not before
    before = static(model)
    model.decoder.blocks[1].fc1 = copy.deepcopy(model.decoder.blocks[1].fc1).requires_grad_(False)
    with torch.no_grad():
        model.decoder.blocks[1].fc1.weight.mul_(3)  # type: ignore[union-attr]
    assert agree() and static(model) is not before


def test_copies_and_pickles_are_plain(both: tuple[MusicGen, MusicGen]) -> None:
    plain, model = both
    model.generate(tiny.text(2), GREEDY)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.fill_in is MusicGen.fill_in
        assert_same(twin.generate(tiny.text(2), GREEDY), plain.generate(tiny.text(2), GREEDY))
    assert model.state_dict().keys() == plain.state_dict().keys()


# What is not served


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a graph was captured")

    monkeypatch.setattr(cuda.Recorder, "__call__", refuse)


@pytest.mark.usefixtures("never")
def test_traces_eager_attention_hooks_training_autocast_and_other_caches_run_plain(mono: MusicGen) -> None:
    model = copy.deepcopy(mono)
    cuda.capture(model)
    text, expected = tiny.text(2), mono.generate(tiny.text(2), GREEDY, return_logits=True)
    traced = model.generate(text, GREEDY, trace=Trace(), return_logits=True)
    assert_same(traced, expected)
    assert len(traced.traces) == FRAMES + 3
    model.backend = "eager"
    assert torch.equal(model.generate(text, GREEDY).codes, expected.codes)
    model.backend = "sdpa"
    calls: list[object] = []
    hook = model.decoder.blocks[1].fc1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    assert_same(model.generate(text, GREEDY, return_logits=True), expected)
    hook.remove()
    assert len(calls) == FRAMES + 3
    hook = model.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same(model.generate(text, GREEDY, return_logits=True), expected)
    hook.remove()
    assert len(calls) == 2 * (FRAMES + 3)
    model.decoder.cache_class = CACHES["bfloat16"]
    assert not torch.equal(model.generate(text, GREEDY, return_logits=True).logits, expected.logits)
    model.decoder.cache_class = KVCache
    model.decoder.blocks[0].dropout.train()  # type: ignore[union-attr]
    model.generate(text, GREEDY)
    model.decoder.eval()
    with torch.autocast("cpu", torch.bfloat16):
        model.generate(text, GREEDY)
    cache = model.decoder.new_cache(1, 4)
    table = torch.tensor([tiny.CODES, -1, -1, -1]).repeat(1, 4, 1)
    list(model.fill_in(model.decoder, table, 1, cache, lambda logits, column: logits.argmax(-1)))
    assert cache.length == 3 and (table >= 0).all()


@pytest.mark.usefixtures("never")
def test_masks_of_steps_run_plain(mono: MusicGen) -> None:
    model = captured(mono)
    table, _ = model.generate_steps(tiny.text(1), replace(GREEDY, frames=4, guidance_scale=1.0))
    cache = model.decoder.new_cache(1, 7)
    deciding = partial(decide, torch.ones(1).long(), Sampling(greedy=True), None)
    list(model.fill_in(model.decoder, table, 1, cache, deciding, step_mask=torch.ones(1, 8).bool()))
    assert cache.length == 7


# What a graph may hold


class NoWaiting(TorchDispatchMode):
    """Raises where the host looks at what a tensor holds, for which it would have to wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITS:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_consecutive", "_unique2")


@pytest.mark.parametrize("case", ["greedy, guided", "every option", "no text"])
def test_the_host_waits_for_nothing_between_the_first_step_and_the_last(case: str, mono: MusicGen) -> None:
    model = captured(mono)
    given, options = CASES[case]
    _, steps = model.generate_steps(options=options, generator=generators(1)[0], **given)
    next(steps)
    with NoWaiting():
        for _ in range(FRAMES + 3 - 1):
            next(steps)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        mono.generate(options=options, **given)


def test_a_graph_holds_nothing_that_a_host_would_do(mono: MusicGen) -> None:
    model = captured(mono)
    model.generate(tiny.text(2), SHAPED)
    for graph in static(model).graphs.values():
        assert isinstance(graph, WrittenDown)
        names = graph.names()
        assert {"index_copy_", "logical_or_", "argmax"} < names
        # What a host decides, waits for, draws, or copies to the device.
        assert not names & {*WAITS, "exponential_", "multinomial", "bernoulli_", "uniform_", "lift_fresh_copy"}


def test_a_step_stays_on_the_device() -> None:
    """Tensors without values stand for those of a GPU: one on the CPU does not mix with them, and none can be read."""
    decoder = (
        Decoder(DecoderConfig(32, width=16, layers=2, heads=2, ffn=16, text_width=16)).eval().to("meta", torch.half)
    )
    cache = decoder.new_cache(4, 20, torch.empty(2, 3, 16, device="meta", dtype=torch.half))
    cache.length = 5
    buffers = cuda.Static(decoder, 2, 4, 24, 4)
    with torch.no_grad():
        buffers.load(torch.zeros(2, 4, 20, dtype=torch.long, device="meta"), cache)
        for how in (Sampling(greedy=True), Sampling(top_k=5, top_p=0.9, min_p=0.1)):
            buffers.step(cuda.Kind(8, 4, how))
    assert {tensor.device.type for tensor in tensors(buffers)} == {"meta"}
    assert buffers.logits.shape == (3, 2, 4, 32)


@pytest.mark.parametrize(
    "count, least, expected", [(1, 8, 8), (8, 8, 8), (9, 8, 16), (16, 8, 16), (17, 8, 32), (33, 8, 64)]
)
def test_enough(count: int, least: int, expected: int) -> None:
    assert cuda.enough(count, least) == expected


# On a card


needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, on which graphs are real")


@pytest.fixture
def card(mono: MusicGen, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[MusicGen, MusicGen]]:
    """A plain model, and one with graphs, on the card, in fp32 without TF32."""
    monkeypatch.undo()
    was = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    plain, model = (copy.deepcopy(mono).to("cuda") for _ in range(2))
    cuda.capture(model)
    yield plain, model
    torch.backends.cuda.matmul.allow_tf32 = was


def on_card(given: Any) -> Any:
    if isinstance(given, tuple):
        return tuple(part.cuda() for part in given)
    return given


@needs_card
@pytest.mark.parametrize("each", [False, True], ids=["one generator", "one a row"])
def test_on_a_card_prompts_are_continued(each: bool, card: tuple[MusicGen, MusicGen]) -> None:
    made = []
    for model in card:
        own = [Generator("cuda").manual_seed(seed) for seed in range(2)]
        known = [codes.cuda() for codes in prompts(model, 5, 13)]
        given: Any = own if each else own[0]
        made.append(model.generate(on_card(tiny.text(2)), SHAPED, prompt=known, generator=given).codes)
    assert torch.equal(made[0], made[1])


@needs_card
def test_on_a_card_the_host_waits_for_nothing_between_the_first_step_and_the_last(
    card: tuple[MusicGen, MusicGen],
) -> None:
    _, model = card
    text = on_card(tiny.text(2))
    model.generate(text, SHAPED)  # captures, which waits
    _, steps = model.generate_steps(text, SHAPED)
    next(steps)
    next(steps)  # the first one of a clip loads
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(FRAMES + 3 - 2):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_card
def test_on_a_card_codes_are_those_of_transformers(card: tuple[MusicGen, MusicGen]) -> None:
    ids, mask = on_card(tiny.text(2))
    theirs = tiny.musicgen_of(tiny.CODES).cuda()
    for sample in (False, True):
        torch.manual_seed(0)
        expected, _ = tiny.theirs(
            theirs, input_ids=ids, attention_mask=mask, do_sample=sample, guidance_scale=3.0, max_new_tokens=FRAMES + 3
        )
        torch.manual_seed(0)
        options = replace(DEFAULT, frames=FRAMES, top_k=50, greedy=not sample)
        assert torch.equal(card[1].generate((ids, mask), options).codes, expected)


@needs_card
@pytest.mark.parametrize("case", CASES)
def test_on_a_card_graphs_make_the_codes_of_the_plain_loop(case: str, card: tuple[MusicGen, MusicGen]) -> None:
    given, options = CASES[case]
    given = {name: on_card(value) for name, value in given.items()}
    for frames in (FRAMES, 300):
        made = []
        for model in card:
            own = Generator("cuda").manual_seed(0)
            long = replace(options, frames=max(options.frames or 0, frames))
            made.append((model.generate(options=long, generator=own, return_logits=True, **given), own.get_state()))
        (expected, state), (got, own_state) = made
        assert torch.equal(got.codes, expected.codes) and torch.equal(own_state, state)
        assert torch.allclose(got.logits, expected.logits, atol=1e-3, equal_nan=True)
