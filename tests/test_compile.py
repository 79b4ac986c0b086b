"""The step in C++: the numbers of the plain one, when it runs, and what it refuses."""

import copy
import gc
import pickle
import subprocess
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from musicgen_ref import GenerationOptions, MusicGen, hf
from musicgen_ref.__main__ import main
from musicgen_ref.attention import KVCache, Trace
from musicgen_ref.decoder import Decoder, DecoderConfig
from musicgen_ref.encodec import Encodec, EncodecConfig
from musicgen_ref.fast import int8, native, seanet, speed_up, step
from musicgen_ref.fast.cache import CACHES, Bf16Cache, Int8Cache
from musicgen_ref.fast.int8 import Int8Linear

from . import tiny

TEXT = "a fast arpeggio in A minor on a plucked string with busy drums"


def can_compile() -> bool:
    try:
        native.compiler()
    except FileNotFoundError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not can_compile(), reason="no C++ compiler")
pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The position of every step that ran in C++."""
    seen: list[int] = []
    run = step.Run.__call__

    def counted(self: step.Run, codes: Tensor, cache: KVCache) -> Tensor:
        seen.append(cache.length)
        return run(self, codes, cache)

    monkeypatch.setattr(step.Run, "__call__", counted)
    return seen


def texts(*lengths: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of these lengths."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(2, tiny.VOCAB, mask.shape, generator=generator) * mask, mask


def drawn(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A decoder whose weights make logits of size 1, its norms' too being drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(config).eval()
        for name, parameter in decoder.named_parameters():
            nn.init.normal_(parameter, 1.0 if "norm.weight" in name else 0.0, parameter.shape[-1] ** -0.5)
    return decoder.requires_grad_(False)


def rounded(decoder: Decoder) -> Decoder:
    """Its linear layers in int8, but for the projection of the text."""
    int8.put_in(decoder.blocks)
    int8.put_in(decoder.heads)
    return decoder


def logits(decoder: Decoder, codes: Tensor, memory: Tensor | None, mask: Tensor | None) -> Tensor:
    """Logits (B, K, S, V) of codes (B, K, S), one column after another."""
    with torch.no_grad():
        cache = decoder.new_cache(codes.shape[0], codes.shape[2], memory, mask)
        return torch.cat([decoder(column, cache=cache) for column in codes.split(1, dim=2)], dim=2)


def assert_near(got: Tensor, expected: Tensor, part: float = 1e-5) -> None:
    """Sums in another order, of some thousand products: `part` of the scale. What is wrong is off by a tenth."""
    assert (got - expected).abs().max() <= part * expected.abs().max()


@st.composite
def cases(draw: st.DrawFn) -> tuple[DecoderConfig, int, int, int, int]:
    """Sizes; rows; rows that read text; tokens; steps."""
    heads, width = draw(st.integers(1, 4)), draw(st.integers(4, 40))
    rows = draw(st.integers(1, 9))
    config = DecoderConfig(
        vocab_size=draw(st.integers(2, 21)),
        codebooks=draw(st.integers(1, 5)),
        width=heads * width,
        layers=draw(st.integers(1, 2)),
        heads=heads,
        ffn=draw(st.integers(1, 70)),
        text_width=draw(st.sampled_from([heads * width, 5])),
        activation=draw(st.sampled_from(["gelu", "relu", "silu"])),
    )
    return config, rows, draw(st.integers(0, rows)), draw(st.integers(1, 7)), draw(st.integers(1, 20))


def inputs(case: tuple[DecoderConfig, int, int, int, int], decoder: Decoder) -> tuple[Tensor, Any, Any]:
    config, B, R, L, S = case
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, config.vocab_size + 1, (B, config.codebooks, S), generator=generator)
    if R == 0:
        return codes, None, None
    mask = torch.rand(R, L, generator=generator) < 0.7  # some rows may read nothing at all
    states = torch.randn(R, L, config.text_width, generator=generator)
    return codes, decoder.project_text(states, mask), mask


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 3))
def test_every_step_has_the_logits_of_the_plain_one(
    case: tuple[DecoderConfig, int, int, int, int], threads: int
) -> None:
    decoder = drawn(case[0])
    given = inputs(case, decoder)
    expected = logits(decoder, *given)
    step.put_in(decoder)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_near(logits(decoder, *given), expected)
    finally:
        torch.set_num_threads(before)


SMALL = DecoderConfig(vocab_size=64, codebooks=4, width=96, layers=3, heads=3, ffn=200, text_width=48)
SMALL_CASE = (SMALL, 5, 3, 6, 70)


def test_all_steps_ran_in_cpp_and_threads_change_no_bit(calls: list[int]) -> None:
    decoder = drawn(SMALL)
    given = inputs(SMALL_CASE, decoder)
    step.put_in(decoder)
    made = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        made.append(logits(decoder, *given))
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert calls == 3 * list(range(70))


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16", "int8"])
def test_weights_and_caches_of_every_kind_are_what_they_stand_for(weights: str, kind: str | None) -> None:
    assert_is_what_it_stands_for(weights, kind)


@pytest.fixture
def unbuilt() -> Iterator[None]:
    """As if this process had not compiled it."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.mark.skipif(native.platform.machine() != "x86_64", reason="instructions of x86")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
@pytest.mark.usefixtures("unbuilt")
def test_processors_with_fewer_instructions_compute_the_same(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{native.compiler()[0]} {without}")
    for weights in ("float32", "bfloat16", "float16", "int8"):
        for kind in CACHES:
            assert_is_what_it_stands_for(weights, kind)
    weight = torch.randn(37, 1001).half().float()
    half = torch.empty(37, 1001, dtype=torch.float16)
    assert native.halve(weight, half) and torch.equal(half.float(), weight)
    weight[-1, -1] = 1e-9
    assert not native.halve(weight, half)
    monkeypatch.setattr(seanet, "SHORTEST", 1)
    with torch.no_grad():
        plain = Encodec(EncodecConfig(filters=20, hidden=33, ratios=(2, 2), residual_layers=2)).eval()
        fast = speed_up(copy.deepcopy(plain))
        latents, audio = torch.randn(1, 33, 250), torch.randn(1, 1, 1001)
        assert_near(fast.decoder(latents), plain.decoder(latents), 1e-5)
        assert_near(fast.encoder(audio), plain.encoder(audio), 1e-5)


def assert_is_what_it_stands_for(weights: str, kind: str | None) -> None:
    """A plain decoder in fp32 that has the same rounded weights, and the same cache, whose rounding is its own."""
    decoder = drawn(SMALL)
    if weights == "int8":
        decoder = rounded(decoder)
        plain = drawn(SMALL)
        layers = {name: part for name, part in decoder.named_modules() if isinstance(part, Int8Linear)}
        assert len(layers) == 3 * 10 + 4, "k and v of the text too"
        for name, part in layers.items():
            plain.get_submodule(name).weight.copy_(part.weight)
    else:
        decoder = decoder.to(getattr(torch, weights))
        plain = copy.deepcopy(decoder).float()
    codes, memory, mask = inputs(SMALL_CASE, plain)
    plain.cache_class = decoder.cache_class = CACHES[kind]
    if weights == "bfloat16" and kind is None:
        plain.cache_class = Bf16Cache
    expected = logits(plain, codes, memory, mask)
    step.put_in(decoder)
    dtype = decoder.norm.weight.dtype
    memory = None if memory is None else memory.to(dtype)
    got = logits(decoder, codes, memory, mask)
    assert got.dtype == dtype
    if dtype != torch.float32:  # memory, embeddings and logits are rounded to it
        assert_near(got, expected, {torch.bfloat16: 2e-2, torch.float16: 5e-3}[dtype])
        own = logits(copy.deepcopy(decoder), codes, memory, mask)
        assert (got - expected).square().mean() < 0.5 * (own - expected).square().mean(), "nearer than the plain one"
    elif kind is None:  # with int8 weights the inputs are rounded to 16 bits
        assert_near(got, expected, 2e-4 if weights == "int8" else 1e-5)
    else:  # a key near the middle of two levels may be rounded to the other one
        assert_near(got, expected, {"bfloat16": 2e-3, "int8": 5e-3}[str(kind)])
        assert (got - expected).abs().median() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16", "int8"])
def test_what_is_not_a_number_stays_none_in_its_row(weights: str, kind: str | None) -> None:
    decoder = drawn(SMALL)
    if weights == "int8":
        decoder = rounded(decoder)
    decoder = decoder.to(torch.float32 if weights == "int8" else getattr(torch, weights))
    with torch.no_grad():
        decoder.embed[0].weight[7] = torch.nan
        decoder.embed[0].weight[8] = torch.inf
    decoder.cache_class = CACHES[kind]
    step.put_in(decoder)
    codes = torch.full((3, 4, 4), 3)
    codes[1, 0, 1], codes[2, 0, 1] = 7, 8
    got = logits(decoder, codes, None, None)
    assert torch.isfinite(got[0]).all() and torch.isfinite(got[:, :, 0]).all()
    assert torch.isnan(got[1:, :, 1:]).all()


def test_activations_keep_what_is_not_a_number_and_are_torchs() -> None:
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-30])])
    out = torch.empty_like(x)
    for alpha in (1.0, 0.3):
        native.elu(x, alpha, out)
        assert torch.allclose(out, nn.functional.elu(x, alpha), rtol=1e-6, atol=2e-7, equal_nan=True)


@pytest.mark.parametrize(("kind", "part"), [("bfloat16", 2**-7), ("int8", 1 / 127)])
def test_a_cache_in_fewer_bits_holds_the_nearest_levels(kind: str, part: float) -> None:
    cache = CACHES[kind](2, 3, 4, 9, 16, torch.empty(0))
    k, v = torch.randn(2, 3, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    k[1, 2, 3], v[0, 0, 0] = 0, 1e-20
    got = cache.append(1, k[..., :4, :], v[..., :4, :])
    cache.length = 4
    got = cache.append(1, k[..., 4:, :], v[..., 4:, :])
    for each, exact in zip(got, (k, v), strict=True):
        assert each.shape == (3, 4, 5, 16) and each.dtype == torch.float32
        largest = exact.abs().amax(-1, keepdim=True)
        assert ((each - exact).abs() <= largest * part / 2 * 1.001).all()
    assert got[0][1, 2, 3].abs().max() == 0
    with pytest.raises(ValueError, match="the cache holds 9 steps, 10 are needed"):
        cache.append(0, torch.zeros(3, 4, 6, 16), torch.zeros(3, 4, 6, 16))


def test_a_trained_model_makes_the_same_codes_compiled(calls: list[int]) -> None:
    demo = MusicGen.from_pretrained("demo")
    lengths, each = (20, 75), (TEXT, "slow pad")
    plain = [
        demo.generate([text], GenerationOptions(frames=frames, greedy=True), return_logits=True)
        for frames, text in zip(lengths, each, strict=True)
    ]
    assert demo.compile() is demo
    for frames, text, expected in zip(lengths, each, plain, strict=True):
        calls.clear()
        got = demo.generate([text], GenerationOptions(frames=frames, greedy=True), return_logits=True)
        assert torch.equal(got.codes, expected.codes)
        # Sums in another order: some 1e-5 of logits of size 10, which a wrong weight would move by 1.
        assert torch.allclose(got.logits, expected.logits, atol=1e-3, rtol=0)
        assert calls == list(range(frames + max(demo.delays)))


# What to run, and how many steps of it are in C++.
Case = tuple[Callable[[], Tensor], int]


def runs(model: MusicGen) -> dict[str, Case]:
    options, guided = (GenerationOptions(frames=12, greedy=True, guidance_scale=scale) for scale in (1, 3))
    steps = 12 + max(model.delays)
    prompt = torch.randint(0, tiny.CODES, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    audio = torch.rand(2, 1, 5 * model.codec.config.hop, generator=torch.Generator().manual_seed(1)) - 0.5
    return {
        "texts of two lengths": (lambda: model.generate(texts(7, 4), options).codes, steps),
        "texts of one length": (lambda: model.generate(texts(5, 5), options).codes, steps),
        "with guidance": (lambda: model.generate(texts(7, 4), guided).codes, steps),
        "after a prompt": (lambda: model.generate(texts(7, 4), options, prompt=prompt).codes, steps - 1 - 5),
        "after audio": (
            lambda: model.generate(texts(7, 4), options, prompt=(audio, model.sampling_rate)).codes,
            steps - 1 - 5,
        ),
        "texts of one token": (lambda: model.generate(texts(1, 1), options).codes, steps),
        "one text": (lambda: model.generate(texts(7), options).codes, steps),
        "no text": (lambda: model.generate(None, options).codes, steps),
        "in parallel": (
            lambda: model.generate(texts(7), GenerationOptions(frames=12, greedy=True, pattern="parallel")).codes,
            12,
        ),
        "with what it saw": (
            lambda: model.generate(texts(7), options, trace=Trace(weights=True)).traces[-1].self_weights[0],
            0,
        ),
        "loss": (lambda: model.loss(prompt, texts(7, 4)).detach(), 0),
    }


def test_one_compiled_step_serves_every_call_that_runs_columns(calls: list[int]) -> None:
    model = tiny.ours(tiny.musicgen())
    plain = {name: run() for name, (run, _) in runs(model).items()}
    model.compile()
    for name, (run, compiled) in runs(model).items():
        calls.clear()
        assert torch.equal(run(), plain[name]), name
        assert len(calls) == compiled, name


def test_the_facade_runs_it_too(calls: list[int]) -> None:
    model = hf.MusicgenForConditionalGeneration.from_pretrained("demo")
    ids = torch.tensor([[5, 9, 1]])
    expected = model.generate(input_ids=ids, max_new_tokens=20, do_sample=False)
    model.core.compile()
    got = model.generate(input_ids=ids, max_new_tokens=20, do_sample=False)
    assert len(calls) == 20
    assert_near(got, expected, 1e-4)


@pytest.fixture
def compiled() -> tuple[MusicGen, Tensor]:
    """A compiled model, and what it makes."""
    model = tiny.ours(tiny.musicgen()).compile()
    return model, model.generate(texts(7), GREEDY).codes


GREEDY = GenerationOptions(frames=12, greedy=True)


def test_weights_are_read_where_they_lie(compiled: tuple[MusicGen, Tensor], calls: list[int]) -> None:
    """What is done to them after compiling counts, in a copy as in the model itself."""
    model, codes = compiled
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for head in twin.decoder.heads:
            head.weight.zero_()
    calls.clear()
    assert not twin.generate(texts(7), GREEDY).codes.any() and not calls, "a copy is plain, and has its own weights"
    assert torch.equal(model.generate(texts(7), GREEDY).codes, codes) and len(calls) == 15
    for head in model.decoder.heads:
        head.weight = nn.Parameter(torch.zeros_like(head.weight))
    assert not model.generate(texts(7), GREEDY).codes.any() and len(calls) == 30


def test_files_and_pickles_know_nothing_of_it(compiled: tuple[MusicGen, Tensor], calls: list[int]) -> None:
    model, codes = compiled
    assert list(model.state_dict()) == list(tiny.ours(tiny.musicgen()).state_dict())
    again = pickle.loads(pickle.dumps(model))
    calls.clear()
    assert torch.equal(again.generate(texts(7), GREEDY).codes, codes) and not calls


def changes() -> dict[str, Callable[[MusicGen], Any]]:
    """What is done to a compiled model that C++ does not know."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def other_layer(model: MusicGen) -> None:
        old, block = model.decoder.blocks[1].fc1, model.decoder.blocks[1]
        block.fc1 = Doubled(old.in_features, old.out_features, bias=False)
        block.fc1.weight = old.weight

    def hook(model: MusicGen) -> None:
        model.decoder.blocks[0].register_forward_hook(lambda block, inputs, output: 2 * output)

    def hook_before(model: MusicGen) -> None:
        model.decoder.norm.register_forward_pre_hook(lambda norm, inputs: (2 * inputs[0],))

    return {
        "a layer of another class": other_layer,
        "a hook": hook,
        "a hook before": hook_before,
        "float64": lambda model: model.double(),
        "one layer in another dtype": lambda model: model.decoder.blocks[0].fc1.double(),
        "training": lambda model: model.train(),
    }


@pytest.mark.parametrize("name", changes())
def test_what_cpp_does_not_know_runs_plain(name: str, compiled: tuple[MusicGen, Tensor], calls: list[int]) -> None:
    model, _ = compiled
    plain = copy.deepcopy(model)
    for each in (model, plain):
        changes()[name](each)
    calls.clear()
    try:
        torch.manual_seed(0)
        expected = plain.generate(texts(7), GREEDY).codes
    except RuntimeError:  # two dtypes in one product
        with pytest.raises(RuntimeError):
            model.generate(texts(7), GREEDY)
    else:
        torch.manual_seed(0)
        assert torch.equal(model.generate(texts(7), GREEDY).codes, expected)
    assert not calls
    if name != "training":
        with pytest.raises(ValueError, match="cannot be compiled, as it has "):
            plain.compile()


def test_gradients_pass_through_the_plain_step(compiled: tuple[MusicGen, Tensor], calls: list[int]) -> None:
    decoder = compiled[0].decoder
    calls.clear()
    cache = decoder.new_cache(1, 3)
    decoder(torch.zeros(1, 4, 1, dtype=torch.long), cache=cache).sum().backward()
    assert decoder.heads[0].weight.grad is not None and not calls


@torch.no_grad()
def test_arguments_that_make_no_sense_are_refused_as_before(compiled: tuple[MusicGen, Tensor]) -> None:
    decoder = compiled[0].decoder
    cache, code = decoder.new_cache(1, 2), torch.zeros(1, 4, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="the cache was made for a batch of 1, got 2"):
        decoder(code.repeat(2, 1, 1), cache=cache)
    with pytest.raises(IndexError):
        decoder(code + 10**6, cache=cache)
    with pytest.raises(ValueError, match="codes must be int64 or int32"):
        decoder(code.float(), cache=cache)
    assert cache.length == 0
    decoder(code, cache=cache)
    decoder(code, cache=cache)
    with pytest.raises(ValueError, match="the cache holds 2 steps, 3 are needed"):
        decoder(code, cache=cache)


def test_weights_move_together_and_stay_what_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny.ours(tiny.musicgen())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    model.save_pretrained(tmp_path / "before")
    model.compile()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    model.save_pretrained(tmp_path / "after")
    files = [(tmp_path / when / "model.safetensors").read_bytes() for when in ("before", "after")]
    assert files[0] == files[1]
    if hasattr(native.mmap, "MADV_HUGEPAGE"):
        heads = [head.weight for head in model.decoder.heads]
        assert len({weight.untyped_storage().data_ptr() for weight in heads}) == 1
        assert all(weight.data_ptr() % 64 == heads[0].data_ptr() % 64 for weight in heads)
        recurrent = [weight for name, weight in model.codec.named_parameters() if "lstm" in name]
        assert len({weight.untyped_storage().data_ptr() for weight in recurrent}) == 1 and len(recurrent) == 16
    twin = copy.deepcopy(model).decoder.heads[0].weight
    assert twin.untyped_storage().nbytes() == twin.nbytes, "a copy does not take all of it along"
    monkeypatch.delattr(native.mmap, "MADV_HUGEPAGE", raising=False)
    other = tiny.ours(tiny.musicgen())
    places = [head.weight.data_ptr() for head in other.decoder.heads]
    other.compile()
    assert [head.weight.data_ptr() for head in other.decoder.heads] == places, "where there are none, none moves"
    assert torch.equal(other.generate(texts(7), GREEDY).codes, model.generate(texts(7), GREEDY).codes)


def test_autocast_runs_plain(compiled: tuple[MusicGen, Tensor], calls: list[int]) -> None:
    decoder = compiled[0].decoder
    calls.clear()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        decoder(torch.zeros(1, 4, 1, dtype=torch.long), cache=decoder.new_cache(1, 3))
    assert not calls


@torch.no_grad()
def test_a_cache_is_rewound_and_two_are_filled_in_turn(compiled: tuple[MusicGen, Tensor], calls: list[int]) -> None:
    decoder = compiled[0].decoder
    codes = torch.randint(0, tiny.CODES, (1, 4, 6), generator=torch.Generator().manual_seed(0))
    expected = logits(decoder, codes, None, None)
    caches = [decoder.new_cache(1, 6), decoder.new_cache(1, 6)]
    calls.clear()
    for column in range(6):
        for cache in caches:
            assert torch.equal(
                decoder(codes[..., column : column + 1], cache=cache), expected[:, :, column : column + 1]
            )
    caches[0].length = 2
    assert torch.equal(decoder(codes[..., 2:3], cache=caches[0]), expected[:, :, 2:3])
    assert calls == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 2]


@torch.no_grad()
def test_weights_that_fp16_has_are_read_as_such_and_make_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, ffn=208)  # whole vectors: GCC sums what is beyond them in another order for each kind
    decoder = drawn(config)
    for weight in decoder.parameters():
        weight.copy_(weight.half())
    own = [layer.weight for layer in step.linear_layers(decoder)]
    own[0][0, 0], own[1][0, 0] = 2.0**-24, -65504.0  # the least and the largest of fp16
    halves = step.Halves()
    read = halves.of(decoder)
    assert read is not None and all(
        a.dtype == torch.float16 and torch.equal(a, b) for a, b in zip(read, own, strict=True)
    )
    given = inputs((config, *SMALL_CASE[1:]), decoder)
    step.put_in(decoder)
    exact = logits(decoder, *given)
    with monkeypatch.context() as patch:
        patch.setattr(step.Halves, "of", lambda *_: None)
        assert torch.equal(logits(decoder, *given), exact), "to the bit those of fp32"
    own[2].mul_(2)
    changed = logits(decoder, *given)
    assert not torch.equal(changed, exact), "a change is seen when the next cache is used"
    for value in (2.0**-25, 65520.0, 1 + 2.0**-11, torch.nan):
        kept = float(own[-1][-1, -1])
        own[-1][-1, -1] = value
        assert halves.of(decoder) is None, value
        own[-1][-1, -1] = kept
    own[3].add_(1e-5)
    assert halves.of(decoder) is None
    fresh = copy.deepcopy(decoder)
    step.put_in(fresh)
    assert torch.equal(logits(fresh, *given), logits(decoder, *given)), "then as they are"


@torch.no_grad()
def test_a_cache_is_freed_when_nobody_has_it(compiled: tuple[MusicGen, Tensor]) -> None:
    decoder = compiled[0].decoder
    cache = decoder.new_cache(1, 6)
    decoder(torch.zeros(1, 4, 1, dtype=torch.long), cache=cache)
    gone, keys = weakref.ref(cache), weakref.ref(cache.keys[0])
    del cache
    gc.collect()
    assert gone() is None and keys() is None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), st.integers(1, 30), st.integers(1, 120), st.integers(0, 99), st.booleans())
def test_int8_rounds_its_input_to_sixteen_bits(inputs: int, outputs: int, rows: int, seed: int, bias: bool) -> None:
    native.library()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = Int8Linear(nn.Linear(inputs, outputs, bias))
        x = torch.randn(rows, 1, inputs)
    expected = x.double() @ layer.weight.double().T + (0 if layer.bias is None else layer.bias)
    half = x.abs().amax(-1, keepdim=True) / 32767 / 2
    assert ((layer(x) - expected).abs() <= half * layer.weight.abs().sum(1) + 1e-5).all()


def test_sums_of_the_largest_numbers_do_not_overflow() -> None:
    native.library()
    for inputs in (4096, 8192, 20000):
        linear = nn.Linear(inputs, 5, bias=False)
        with torch.no_grad():
            linear.weight.fill_(1.0)
        expected = torch.full((3, 5), float(inputs))
        assert_near(Int8Linear(linear)(torch.ones(3, inputs)), expected, 1e-6)


def test_layers_are_packed_for_torch_and_unpacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Int8Linear(nn.Linear(37, 29)), torch.randn(3, 37, generator=torch.Generator().manual_seed(0))
    weight = layer.weight.clone()
    for _ in range(2):
        monkeypatch.setattr(native, "is_built", lambda: False)
        assert_near(layer(x), nn.functional.linear(x, weight, layer.bias), 0.05)
        assert layer.packed is not None and layer._numbers is None
        monkeypatch.undo()
        native.library()
        assert_near(layer(x), nn.functional.linear(x, weight, layer.bias), 1e-4)
        assert layer.packed is None and torch.equal(layer.weight, weight)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_cache_in_fewer_bits_is_used_when_it_is_asked_for(kind: str, calls: list[int]) -> None:
    model = MusicGen.from_pretrained("demo", dtype="int8").compile(cache=kind)
    cache = model.decoder.new_cache(2, 5)
    assert type(cache) is {"bfloat16": Bf16Cache, "int8": Int8Cache}[kind]
    made = model.generate([TEXT], GenerationOptions(seconds=1, greedy=True))
    assert made.codes.shape == (1, 4, 50) and len(calls) == 53
    assert type(model.compile().decoder.new_cache(2, 5)) is KVCache, "none, unless it is asked for again"


# Compiling


@pytest.mark.usefixtures("unbuilt")
def test_a_compiler_without_openmp_makes_a_step_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    run, commands = subprocess.run, []

    def without(command: list[str], **options: Any) -> Any:
        commands.append(command)
        if "-fopenmp" in command:
            return subprocess.CompletedProcess(command, 1, stderr="unsupported option '-fopenmp'")
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", without)
    decoder = drawn(SMALL)
    given = inputs(SMALL_CASE, decoder)
    expected = logits(decoder, *given)
    step.put_in(decoder)
    assert_near(logits(decoder, *given), expected)
    assert ["-fopenmp" in command for command in commands] == [True, True, False, False, False]  # two files, and a link


@pytest.mark.usefixtures("unbuilt")
def test_a_compiler_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'no space left for step' >&2; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{broken}' -O0")
    with pytest.raises(RuntimeError, match=r"broken-compiler -O0 .*no space left for step"):
        native.library()


@pytest.mark.usefixtures("unbuilt")
def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.ours(tiny.musicgen())
    for batch in (0, True, 1.0):
        with pytest.raises(ValueError, match="batch must be"):
            model.compile(batch)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cache must be one of \(None, 'bfloat16', 'int8'\), got 'int4'"):
        model.compile(cache="int4")
    with pytest.raises(ValueError, match="got meta"):
        copy.deepcopy(model).to("meta").compile()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FileNotFoundError, match=r"install g\+\+"):
        model.compile()
    output = tmp_path / "out.wav"
    assert main(["generate", TEXT, "--compile", "-o", str(output)]) == 2
    assert "install g++" in capsys.readouterr().err and not output.exists()


def test_the_command_line_compiles_and_says_how_long_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[int]
) -> None:
    arguments = ["generate", TEXT, "--seed", "3", "--seconds", "1", "--guidance", "1"]
    assert main([*arguments, "-o", str(tmp_path / "plain.wav")]) == 0
    assert not calls
    assert main([*arguments, "-o", str(tmp_path / "compiled.wav"), "--compile"]) == 0
    assert "compiled in " in capsys.readouterr().err and len(calls) == 53
    assert (tmp_path / "plain.wav").read_bytes() == (tmp_path / "compiled.wav").read_bytes()
    assert main([*arguments, "-o", str(tmp_path / "int8.wav"), "--compile", "--cache", "int8"]) == 0
    assert main([*arguments, "-o", str(tmp_path / "int8.wav"), "--cache", "int8"]) == 2
    assert "--cache" in capsys.readouterr().err
