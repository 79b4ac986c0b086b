"""fast/: every layer that is put in beside the plain one, and speed_up() of whole models."""

import copy
import importlib.util
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from musicgen_ref import DecoderConfig, EncodecConfig, GenerationOptions, MusicGen, T5Config, hf
from musicgen_ref.attention import Attention
from musicgen_ref.encodec import LSTM, Conv, ConvTranspose, Encodec, SEANetDecoder, SEANetEncoder
from musicgen_ref.fast import codec, linear, native, seanet, speed_up
from musicgen_ref.fast.codec import Windowed
from musicgen_ref.fast.linear import FewRows
from tests.test_attention import draw
from tests.test_compile import can_compile, needs_compiler


def few_rows(inputs: int, outputs: int) -> tuple[FewRows, Tensor]:
    plain = nn.Linear(inputs, outputs, bias=False)
    return FewRows(plain), plain.weight


# Linear layers


@pytest.mark.parametrize("avx512", [False, True], ids=["MKL with AVX2", "MKL with AVX-512"])
@pytest.mark.parametrize("sizes", [(512, 768), (768, 512)], ids=["high", "wide"])
@pytest.mark.parametrize("shape", [(), (1, 1), (1, 2), (2, 1), (5,), (16,), (8, 8)], ids=str)
def test_few_rows_of_a_large_weight_are_near_those_of_torch_and_contiguous(
    shape: tuple[int, ...], sizes: tuple[int, int], avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "MKL_AVX512", avx512)
    (layer, weight), x = few_rows(*sizes), draw(*shape, sizes[0]).requires_grad_()
    made, expected = layer(x), F.linear(x, weight)
    assert made.shape == expected.shape
    # Another order of summation: fp32 within 1e-6 of the scale.
    assert_close(made, expected, rtol=0, atol=1e-6 * float(expected.detach().abs().max()))
    assert made.is_contiguous(), "SDPA is slow on anything else"
    grads = [torch.autograd.grad(y.square().sum(), (x, weight)) for y in (made, expected)]
    for mine, theirs in zip(*grads, strict=True):
        assert_close(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


class Products(TorchFunctionMode):
    """Writes down how x W' is computed: by F.linear, as (W x')', or in blocks of outputs."""

    def __init__(self, weight: Tensor):
        self.weight, self.seen = weight, list[str]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear:
            self.seen.append("linear")
        elif function.__name__ in ("matmul", "__matmul__"):
            self.seen.append("turned" if args[0] is self.weight else "blocks")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("outputs", "inputs", "rows", "avx2", "avx512"),
    [
        (512, 512, 0, "linear", "linear"),
        (512, 512, 1, "blocks", "linear"),
        (512, 512, 2, "turned", "linear"),
        (512, 512, 3, "turned", "linear"),
        (512, 512, 4, "blocks", "linear"),
        (512, 512, 5, "blocks", "linear"),
        (512, 512, 6, "blocks", "turned"),
        (512, 512, 64, "blocks", "turned"),
        (512, 512, 65, "linear", "linear"),
        (512, 528, 2, "blocks", "linear"),  # wide
        (528, 512, 6, "blocks", "turned"),  # the blocks are 16, not 15 or 17
    ],
)
def test_the_order_of_operands_follows_the_rows_the_weight_and_the_processor(
    outputs: int, inputs: int, rows: int, avx2: str, avx512: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, weight = few_rows(inputs, outputs)
    for mkl, expected in ((False, avx2), (True, avx512)):
        monkeypatch.setattr(linear, "MKL_AVX512", mkl)
        with Products(weight) as products:
            layer(draw(rows, inputs))
        assert products.seen == [expected]


def test_bf16_is_what_nn_linear_computes() -> None:
    layer, weight = few_rows(512, 768)
    layer, x = layer.bfloat16(), draw(2, 1, 512).bfloat16()
    with Products(layer.weight) as products:
        assert torch.equal(layer(x), F.linear(x, weight.bfloat16()))
    assert products.seen[0] == "linear", "another way may give the same sums on this machine"


def test_elsewhere_than_on_a_cpu_it_is_what_nn_linear_computes() -> None:
    layer, _ = few_rows(512, 768)
    layer = layer.to("meta")
    with Products(layer.weight) as products:
        assert layer(draw(2, 1, 512).to("meta")).shape == (2, 1, 768)
    assert products.seen == ["linear"]


@pytest.mark.parametrize(
    ("processor", "instructions", "expected"),
    [
        ({"cpu_name": "Intel(R) Xeon(R)"}, "AVX512", True),
        ({"cpu_name": "Intel(R) Xeon(R)"}, "AVX2", False),
        ({"cpu_name": "Intel(R) Xeon(R)"}, "DEFAULT", False),
        ({"cpu_name": "AMD EPYC"}, "AVX512", False),
        ({}, "AVX512", True),
        (None, "AVX512", True),
    ],
    ids=["Intel", "Intel with AVX2", "Intel without either", "AMD", "no name", "old torch"],
)
def test_mkl_uses_avx512_on_processors_of_intel_that_have_it(
    processor: dict[str, str] | None, instructions: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    if processor is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    spec = importlib.util.spec_from_file_location(
        "musicgen_ref.fast.again", linear.__file__
    )  # what importing makes of it
    assert spec is not None and spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.MKL_AVX512 is expected


@pytest.mark.parametrize(
    ("width", "head_width", "large"),
    [(512, 64, True), (511, 64, False), (512, 65, False), (512, 66, True)],
    ids=["2 ** 18 numbers", "fewer", "no 16 blocks", "16 blocks"],
)
def test_it_is_put_in_for_large_weights_of_16_blocks(width: int, head_width: int, large: bool) -> None:
    attention = Attention(width, 8, head_width, 1.0, 0.0)
    speed_up(attention)
    assert [type(attention.q) is FewRows, type(attention.k) is FewRows, type(attention.v) is FewRows] == [large] * 3


def test_it_is_put_in_where_it_helps_alone() -> None:
    text = T5Config(vocab_size=9, width=512, layers=1, heads=8, head_width=64, ffn=1024)
    decoder = DecoderConfig(vocab_size=512, codebooks=1, width=512, layers=1, heads=8, ffn=1032, text_width=512)
    model = MusicGen(text, decoder, EncodecConfig(filters=2, hidden=4, codebook_size=512))
    assert not any(isinstance(module, FewRows) for module in model.modules())
    speed_up(model)
    sped_up = {name for name, module in model.named_modules() if isinstance(module, FewRows)}
    parts = {"text_encoder.blocks.0.attn", "decoder.blocks.0.self_attn", "decoder.blocks.0.cross_attn"}
    expected = {f"{part}.{name}" for part in parts for name in ("q", "k", "v", "out")}
    expected |= {"decoder.heads.0", "decoder.blocks.0.fc2"}
    assert sped_up == expected  # the 1032 outputs of fc1 do not divide into 16 blocks; T5's feed-forward stays
    small = MusicGen(T5Config(vocab_size=9, width=64, layers=1, heads=2, head_width=8, ffn=16), *small_parts())
    assert not any(isinstance(module, FewRows) for module in speed_up(small).modules())


def small_parts() -> tuple[DecoderConfig, EncodecConfig]:
    decoder = DecoderConfig(vocab_size=32, codebooks=2, width=64, layers=1, heads=2, ffn=64, text_width=64)
    return decoder, EncodecConfig(filters=2, hidden=4, ratios=(2, 2), codebook_size=32, codebooks=2)


# The codec


@st.composite
def codecs(draw: st.DrawFn) -> EncodecConfig:
    causal = draw(st.booleans())
    return EncodecConfig(
        filters=draw(st.sampled_from([2, 3, 4, 8, 16])),
        hidden=draw(st.integers(1, 4)),
        ratios=tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))),
        sampling_rate=1000,
        codebook_size=4,
        causal=causal,
        trim_right_ratio=draw(st.floats(0, 1)) if causal else 1.0,
        pad_mode=draw(st.sampled_from(["reflect", "constant", "replicate"])),
        conv_shortcut=draw(st.booleans()),
        kernel=draw(st.integers(1, 8)),
        last_kernel=draw(st.integers(1, 8)),
        residual_kernel=draw(st.integers(1, 4)),
        residual_layers=draw(st.integers(1, 2)),
        dilation_growth=draw(st.integers(1, 3)),
        lstm_layers=1,
    )


def assert_windows_are_the_whole(config: EncodecConfig, window: int, samples: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        plain = Encodec(config).eval()
        fast = speed_up(copy.deepcopy(plain))
        audio = draw(2, config.channels, samples)
        latents = plain.encoder(audio)
        decoded = plain.decoder(latents)
        patch.setattr(codec, "WINDOW", window)
        for compiled, shortest in ((False, 1), (True, 1), (True, 10**9)) if can_compile() else ((False, 1),):
            patch.setattr(native, "is_built", lambda compiled=compiled: compiled)
            patch.setattr(seanet, "SHORTEST", shortest)
            # Convolutions of other lengths, sums in another order; a sample that a window left out is off by far more.
            assert_close(fast.encoder(audio), latents, rtol=0, atol=1e-5 * float(latents.abs().max()))
            assert_close(fast.decoder(latents), decoded, rtol=0, atol=1e-5 * float(decoded.abs().max()))


@pytest.mark.parametrize(
    "fields",
    [
        {"residual_kernel": 1, "ratios": (1, 1, 1)},  # transposed convolutions alone reach beyond
        {"residual_kernel": 1, "ratios": (1, 4, 2)},
        {"residual_kernel": 3, "ratios": (2,), "residual_layers": 3, "dilation_growth": 3},
        {"residual_kernel": 5, "ratios": (3, 2), "causal": True},
        {"residual_kernel": 4, "ratios": (2, 3), "kernel": 8, "last_kernel": 8},
        {"filters": 20, "ratios": (2, 3), "channels": 2, "kernel": 7, "last_kernel": 7},  # more channels than a panel
        {"filters": 16, "ratios": (4,), "lstm_layers": 2, "hidden": 100},
    ],
    ids=str,
)
def test_windows_reach_as_far_as_the_convolutions(fields: dict[str, Any]) -> None:
    config = EncodecConfig(**{"filters": 4, "hidden": 6, "kernel": 1, "last_kernel": 1} | fields)
    for frames in (1, 2, 3, 7):
        for samples in (frames * config.hop, (frames - 1) * config.hop + 1):
            for window in (1, 2, 5):
                assert_windows_are_the_whole(config, window, samples)


def test_a_window_sees_its_frames_and_what_they_depend_on_and_no_more() -> None:
    # A frame is two positions here: a convolution over seven reaches three frames at most on either side.
    seen = []
    conv, x = Conv(EncodecConfig(), 1, 1, 7), torch.randn(1, 1, 2 * 3 * codec.WINDOW)

    def as_image(layers: list[nn.Module], window: Tensor, at_end: bool) -> Tensor:
        seen.append((window.shape[-1], at_end))
        return real(layers, window, at_end)

    real = codec.as_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "as_image", as_image)
        patch.setattr(native, "is_built", lambda: False)
        made = codec.in_windows([conv], x, 2, 2)
    assert_close(made, conv(x), rtol=0, atol=1e-6)
    assert seen == [(2 * (codec.WINDOW + margins), margins < 6) for margins in (3, 6, 3)]


@settings(max_examples=50, deadline=None)
@given(config=codecs(), window=st.integers(1, 9), data=st.data())
def test_windows_of_any_size_are_the_whole(config: EncodecConfig, window: int, data: st.DataObject) -> None:
    """Up to 4 windows: a first, a last, and those between."""
    assert_windows_are_the_whole(config, window, data.draw(st.integers(1, 4 * window * config.hop)))


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_a_clip_of_one_window_is_the_plain_one_to_the_bit_and_a_longer_one_to_rounding(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "is_built", lambda: compiled)
    torch.manual_seed(0)
    plain = Encodec(EncodecConfig(filters=4, hidden=8)).eval()
    fast, exact = speed_up(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    hop = plain.config.hop
    for samples in (1, 100 * hop, 100 * hop + 1, 250 * hop + 17):
        audio = draw(1, 1, samples)
        latents = plain.encoder(audio)
        made = [(fast.encoder(audio), latents, exact.encoder(audio.double()))]
        made += [(fast.decoder(latents), plain.decoder(latents), exact.decoder(latents.double()))]
        for own, plains, true in made:
            if samples <= 100 * hop:
                assert torch.equal(own, plains)
            # Saved products round in other places than the plain ones, whose own error takes up most of the bound.
            for right in (true.float(),) if compiled else (true.float(), plains):
                assert_close(own, right, rtol=0, atol=1e-6 * float(right.abs().max()))
            error, plain_error = ((each - true).square().mean().sqrt() for each in (own, plains))
            assert error <= 2 * plain_error <= 1e-6 * true.abs().max()


@torch.no_grad()
def test_a_norm_over_all_of_the_time_keeps_the_clip_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_built", lambda: False)
    torch.manual_seed(0)
    plain = Encodec(EncodecConfig(filters=4, hidden=8, norm="time_group_norm")).eval()
    fast = speed_up(copy.deepcopy(plain))
    audio = draw(1, 1, 110 * plain.config.hop)
    assert torch.equal(fast.encoder(audio), plain.encoder(audio))
    latents = draw(1, 8, 110)
    assert torch.equal(fast.decoder(latents), plain.decoder(latents))


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_layers_that_somebody_has_changed_are_called(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_built", lambda: compiled)
    torch.manual_seed(0)
    plain = Encodec(EncodecConfig(filters=4, hidden=8, ratios=(4, 2))).eval()
    audio = draw(1, 1, 8 * 2 * codec.WINDOW)

    class Larger(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def larger(model: Encodec) -> None:
        conv = cast(Any, model.encoder)[0]
        conv.conv = copy.deepcopy(conv.conv)
        conv.conv.__class__ = Larger

    def other(model: Encodec) -> None:
        cast(Any, model.encoder)[2] = nn.GELU()

    def hook(model: Encodec) -> None:
        cast(Any, model.encoder)[3].register_forward_hook(lambda layer, given, out: 2 * out)

    def hook_of_lstm(model: Encodec) -> None:
        cast(Any, model.encoder)[7].lstm.register_forward_hook(lambda layer, given, out: (2 * out[0], out[1]))

    unchanged = plain.encoder(audio)
    for change in (larger, other, hook, hook_of_lstm):
        changed = copy.deepcopy(plain)
        change(changed)
        expected = changed.encoder(audio)
        assert (expected - unchanged).abs().max() > 1e-3 * unchanged.abs().max()
        assert_close(speed_up(changed).encoder(audio), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@needs_compiler
def test_a_trace_of_the_codec_computes_with_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_built", lambda: True)
    torch.manual_seed(0)
    model = speed_up(Encodec(EncodecConfig(filters=4, hidden=8, ratios=(2, 2))).eval())
    with torch.no_grad():
        given, other = draw(1, 8, 2 * codec.WINDOW), torch.randn(1, 8, 2 * codec.WINDOW)
        traced = torch.jit.trace(model.decoder, given)
        assert_close(traced(other), model.decoder(other), rtol=0, atol=1e-5)


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3, 4, 25, 26, 800])
@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": 200, "outputs": 65, "kernel": 3},
        {"inputs": 1100, "outputs": 33, "kernel": 3},  # more than are added up at once
        {"inputs": 130, "outputs": 70, "kernel": 10, "stride": 5},
        {"inputs": 64, "outputs": 300, "kernel": 3, "dilation": 2},
        {"inputs": 40, "outputs": 9, "kernel": 4},
        {"inputs": 37, "outputs": 3, "kernel": 7},
        {"inputs": 1, "outputs": 2, "kernel": 4, "stride": 2},
        {"inputs": 600, "outputs": 20, "stride": 3},
        {"inputs": 3, "outputs": 150, "stride": 1},
    ],
    ids=str,
)
def test_a_compiled_convolution_is_as_near_to_the_exact_one_as_torchs(fields: dict[str, int], count: int) -> None:
    native.library()
    torch.manual_seed(0)
    layer = (Conv if "kernel" in fields else ConvTranspose)(EncodecConfig(), **fields).eval()
    x = torch.randn(fields["inputs"], count)
    own, torchs = seanet.run([layer, nn.ELU(0.5)], x[None])[0], F.elu(layer(x[None])[0], 0.5)
    exact = F.elu(layer.double()(x[None].double())[0], 0.5)
    error, limit = ((each - exact).abs().max() for each in (own, torchs))
    assert own.shape == exact.shape and error <= 4 * limit + 1e-6


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_the_compiled_lstm_is_as_near_to_the_exact_one_as_torchs(
    blocks: int, steps: int, rows: int, layers: int, seed: int
) -> None:
    native.library()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        layer, x = LSTM(16 * blocks, layers).eval(), 2 * torch.randn(rows, 16 * blocks, steps)
        for weight in layer.parameters():
            weight.mul_(3)  # for gates that are nearly open or closed
        own, torchs = seanet.recurrent(layer, x), layer(x)
        exact = layer.double()(x.double())
    error, limit = ((each - exact).abs().max() for each in (own, torchs))
    assert error <= 2 * limit + 1e-7


@torch.no_grad()
def test_no_layer_sees_more_than_a_window_and_its_margins() -> None:
    fast = speed_up(Encodec(EncodecConfig(filters=2, hidden=4)).eval())
    seen: list[int] = []

    def conv2d(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(x.shape[-1])
        return plain(x, *rest, **more)

    plain = F.conv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", conv2d)
        patch.setattr(native, "is_built", lambda: False)
        fast.encoder(draw(1, 1, 640 * 500))
    assert max(seen) < 640 * 120 < 640 * 500


# Whole models


@pytest.fixture(scope="module")
def plain() -> MusicGen:
    return MusicGen.from_pretrained("demo", fast=False)


@pytest.fixture(scope="module")
def fast() -> MusicGen:
    return MusicGen.from_pretrained("demo")


def test_from_pretrained_is_fast_unless_it_is_told_otherwise(plain: MusicGen, fast: MusicGen) -> None:
    assert isinstance(fast.codec.encoder, Windowed) and isinstance(fast.codec.decoder, Windowed)
    assert type(plain.codec.encoder) is SEANetEncoder and type(plain.codec.decoder) is SEANetDecoder
    assert all(type(m) is nn.Linear for m in plain.modules() if isinstance(m, nn.Linear))


def test_the_names_stay_and_a_second_time_changes_nothing(plain: MusicGen) -> None:
    once = speed_up(copy.deepcopy(plain))
    types = [type(module) for module in once.modules()]
    assert list(once.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in speed_up(once).modules()] == types


def test_the_weights_are_shared_not_copied(plain: MusicGen) -> None:
    model = copy.deepcopy(plain)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in speed_up(model).state_dict().items()} == before


def test_both_make_the_same_codes_and_audio_equal_to_rounding(plain: MusicGen, fast: MusicGen) -> None:
    options = GenerationOptions(seconds=3, top_k=50)
    made = [m.generate(["a bell"], options, generator=torch.Generator().manual_seed(0)) for m in (plain, fast)]
    assert torch.equal(made[0].codes, made[1].codes)
    assert_close(made[0].audio, made[1].audio, rtol=0, atol=1e-6 * float(made[0].audio.abs().max()))


def test_copies_and_pickles_compute_the_same(fast: MusicGen) -> None:
    options = GenerationOptions(frames=110, greedy=True)
    made = fast.generate(["a bell"], options)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again.generate(["a bell"], options).audio, made.audio)


def test_training_takes_the_same_gradients(plain: MusicGen) -> None:
    models = [copy.deepcopy(plain).train(), speed_up(copy.deepcopy(plain)).train()]
    codes = torch.randint(0, 32, (2, 4, 30), generator=torch.Generator().manual_seed(0))
    for model in models:
        torch.manual_seed(0)
        model.loss(codes, ["a bell", None]).backward()
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        if one.grad is None:
            assert other.grad is None, name
        else:
            assert_close(other.grad, one.grad, rtol=0, atol=1e-5 * float(one.grad.abs().max()))


def test_what_is_saved_is_the_same_file(plain: MusicGen, fast: MusicGen, tmp_path: Path) -> None:
    plain.save_pretrained(tmp_path / "plain")
    fast.save_pretrained(tmp_path / "fast")
    names = sorted(file.name for file in (tmp_path / "plain").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "fast").iterdir())
    assert all((tmp_path / "plain" / n).read_bytes() == (tmp_path / "fast" / n).read_bytes() for n in names)


def test_the_facade_is_fast_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    kinds = (hf.MusicgenForConditionalGeneration, hf.EncodecModel)
    config = hf.MusicgenConfig.from_pretrained("demo")
    config.decoder.dropout = 0.3
    for options in ({}, {"config": config}):
        for fast in (True, False):
            model = kinds[0].from_pretrained("demo", fast=fast, **options)
            assert isinstance(model.core.codec.encoder, Windowed) is fast
    for fast in (True, False):
        assert isinstance(kinds[1].from_pretrained("demo", fast=fast).core.encoder, Windowed) is fast
    for kind in kinds:
        with pytest.raises(ValueError, match="fast must be True or False, got 'yes'"):
            kind.from_pretrained("demo", fast="yes")
