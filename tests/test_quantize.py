"""int8 linear layers: against the arithmetic they stand for, and in a whole model."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.fast import native
from musicgen_ref.fast.int8 import Int8Linear, quantize

from . import tiny


@pytest.fixture(autouse=True, scope="module")
def nothing_is_compiled() -> Iterator[None]:
    """The product is torch's, whatever other tests have compiled; test_compile.py has the other one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "is_built", lambda: False)
        yield


def linear(inputs: int, outputs: int, bias: bool, seed: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    return layer


def product(layer: Int8Linear, x: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer computes of a rounded weight, in float64: x on 128 levels that hold 0."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    step = (high - low) / 127
    zero = (-low / step).round()
    levels = ((x / step).round() + zero).clamp(0, 127) - zero
    y = levels.double() @ layer.weight.double().T * step.double()
    return y if bias is None else y + bias.double()


@given(
    inputs=st.integers(1, 70), outputs=st.integers(1, 70), rows=st.integers(1, 5), bias=st.booleans(),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_a_layer_is_its_rounded_weights_times_its_rounded_input(
    inputs: int, outputs: int, rows: int, bias: bool, seed: int
) -> None:
    given = linear(inputs, outputs, bias, seed)
    layer = Int8Linear(given)
    step = given.weight.detach().abs().amax(1, keepdim=True) / 127
    assert ((layer.weight - given.weight).abs() <= step * 0.5001).all(), "the nearest level"
    levels = layer.weight / step
    assert torch.allclose(levels, levels.round(), atol=1e-3) and levels.abs().max() < 127.5
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed + 1))
    expected = product(layer, x, given.bias)
    # One number of the input in a tie of two levels may go the other way in fp32: a level of it times a weight.
    near = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127 * layer.weight.abs().max() * 1.01
    assert (layer(x) - expected).abs().max() <= near
    assert ((layer(x) - expected).abs() <= 1e-5 * expected.abs().max().clamp(min=1)).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_result_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    assert Int8Linear(linear(8, 6, True, 0))(torch.ones(2, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (2, 3, 8), (2, 0, 8)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    layer = Int8Linear(linear(8, 6, False, 0))
    assert layer(torch.zeros(shape)).shape == (*shape[:-1], 6)


def test_rows_of_zeros_and_of_almost_zero_take_the_nearest_level() -> None:
    """Where a 127th of the largest weight is below the smallest normal number, that is the level: 1 / a lesser one
    would overflow, and every weight that is not 0 would become the largest."""
    given, level = linear(8, 3, False, 0), torch.finfo(torch.float32).tiny
    with torch.no_grad():
        given.weight[1] = 0
        given.weight[2] = torch.tensor([8.0, -8, 4, 2, 1, -1, 0.3, 0]) * level
    layer = Int8Linear(given)
    assert layer.weight[1].abs().max() == 0 and layer(torch.ones(1, 8))[0, 1] == 0
    assert (layer.weight[2] / level).tolist() == [8, -8, 4, 2, 1, -1, 0, 0]


def test_weights_that_are_not_finite_are_refused() -> None:
    given = linear(8, 3, False, 0)
    with torch.no_grad():
        given.weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="weights must be finite"):
        Int8Linear(given)


def test_weights_that_are_not_on_a_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be on a CPU.*meta"):
        Int8Linear(nn.Linear(4, 4, device="meta"))


@pytest.fixture(scope="module")
def models() -> tuple[MusicGen, MusicGen]:
    saved = tiny.musicgen(text={"d_model": 24})
    return tiny.ours(saved), quantize(tiny.ours(saved))


def test_every_linear_layer_of_decoder_and_text_encoder_is_swapped(models: tuple[MusicGen, MusicGen]) -> None:
    plain, int8 = models
    linears = [m for part in (plain.text_encoder, plain.decoder) for m in part.modules() if isinstance(m, nn.Linear)]
    assert not any(isinstance(module, nn.Linear) for module in int8.modules())
    assert sum(isinstance(module, Int8Linear) for module in int8.modules()) == len(linears) > 20


def test_a_quantised_model_generates_and_its_logits_are_near(models: tuple[MusicGen, MusicGen]) -> None:
    plain, int8 = models
    options = GenerationOptions(frames=6, greedy=True)
    made = int8.generate(tiny.text(2), options, return_logits=True)
    assert made.codes.shape == (2, len(int8.delays), 6)
    assert torch.equal(made.codes, int8.generate(tiny.text(2), options).codes)
    codes = tiny.codes(2, len(plain.delays), 9)
    with torch.no_grad():
        exact, near = (model.decoder(codes, *model.encode_text(tiny.text(2))) for model in models)
    assert 0 < (near - exact).std() < 0.1 * exact.std(), "7 and 8 bits leave a few percent"


def test_loading_as_int8_is_quantising_what_was_loaded(tmp_path: Path) -> None:
    saved = tiny.musicgen(text={"d_model": 24})
    saved.save_pretrained(tmp_path)
    loaded = MusicGen.from_pretrained(tmp_path, dtype="int8")
    swapped = quantize(MusicGen.from_pretrained(tmp_path))
    state, expected = loaded.state_dict(), swapped.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    codes = tiny.codes(2, len(loaded.delays), 9)
    with torch.no_grad():
        mine, same = (model.decoder(codes, *model.encode_text(tiny.text(2))) for model in (loaded, swapped))
    assert torch.equal(mine, same)


def test_loading_as_int8_holds_one_layer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.musicgen().save_pretrained(tmp_path)
    alive: list[weakref.ref[nn.Linear]] = []
    pack = Int8Linear.__init__

    def watched(self: Int8Linear, given: nn.Linear) -> None:
        # The one before may still have a name in the loop.
        assert not [ref for ref in alive[:-1] if ref() is not None]
        alive.append(weakref.ref(given))
        pack(self, given)

    monkeypatch.setattr(Int8Linear, "__init__", watched)
    MusicGen.from_pretrained(tmp_path, dtype="int8")
    assert len(alive) > 20


def test_int8_is_refused_elsewhere_than_on_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"int8 must be on a CPU.*meta"):
        Int8Linear(nn.Linear(8, 4, device="meta"))


def test_other_dtypes_are_refused_before_anything_is_swapped() -> None:
    model = tiny.ours(tiny.musicgen()).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"model must be in float32.*bfloat16"):
        quantize(model)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())
