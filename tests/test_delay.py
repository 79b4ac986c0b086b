"""The delay pattern: what it does to codes, that it can be undone, and that it is transformers'."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MusicgenForCausalLM

from musicgen_ref import delay
from tests import tiny

FILL = 99
properties = settings(deadline=None)
# Any lags, those of mono and stereo among them, for any number of codebooks.
lags = st.lists(st.integers(0, 9), min_size=1, max_size=9).map(tuple) | st.builds(
    lambda per_channel, channels: delay.delays(per_channel * channels, channels), st.integers(1, 9), st.integers(1, 2)
)


def numbered(batch: int, codebooks: int, frames: int) -> Tensor:
    """Codes (B, K, T) of which no two are the same."""
    return torch.arange(batch * codebooks * frames).view(batch, codebooks, frames)


# Lags


@pytest.mark.parametrize("codebooks", range(1, 17))
def test_a_mono_codebook_lags_one_step_behind_the_one_before(codebooks: int) -> None:
    assert delay.delays(codebooks) == delay.delays(codebooks, 1) == tuple(range(codebooks))


@pytest.mark.parametrize(
    ("codebooks", "expected"), [(2, (0, 0)), (4, (0, 0, 1, 1)), (8, (0, 0, 1, 1, 2, 2, 3, 3)), (6, (0, 0, 1, 1, 2, 2))]
)
def test_left_and_right_lag_alike(codebooks: int, expected: tuple[int, ...]) -> None:
    assert delay.delays(codebooks, 2) == expected


@pytest.mark.parametrize(("codebooks", "channels"), [(0, 1), (-4, 1), (4, 0), (4, -1), (3, 2), (1, 2), (8, 3)])
def test_codebooks_that_do_not_divide_among_channels_are_refused(codebooks: int, channels: int) -> None:
    with pytest.raises(ValueError, match=f"^codebooks must be .* got {codebooks} and {channels}$"):
        delay.delays(codebooks, channels)


# Layout


def test_the_layout_is_that_of_the_docstring() -> None:
    rows = [line.split()[3:] for line in delay.__doc__.splitlines() if line.strip().startswith("k = ")]
    expected = torch.tensor([[FILL if cell == "." else ord(cell) - ord("a") for cell in row] for row in rows])
    codes = torch.tensor([0, 1, 2]).expand(1, 4, 3)
    assert expected.shape == (4, 1 + 6)
    assert (expected[:, 0] == FILL).all()  # the start column
    assert torch.equal(delay.apply(codes, delay.delays(4), FILL)[0], expected[:, 1:])


def test_the_stereo_layout() -> None:
    codes = torch.tensor([[[1, 2], [3, 4], [5, 6], [7, 8]]])
    expected = [[1, 2, FILL], [3, 4, FILL], [FILL, 5, 6], [FILL, 7, 8]]
    assert delay.apply(codes, delay.delays(4, 2), FILL)[0].tolist() == expected


@properties
@given(lags=lags, batch=st.integers(1, 3), frames=st.integers(0, 30))
def test_each_code_lies_its_lag_later_and_the_rest_is_filled(lags: tuple[int, ...], batch: int, frames: int) -> None:
    codes = numbered(batch, len(lags), frames)
    out = delay.apply(codes, lags, fill=-7)
    assert out.shape == (batch, len(lags), frames + max(lags))
    for b in range(batch):
        for k, lag in enumerate(lags):
            row = [-7] * (frames + max(lags))
            row[lag : lag + frames] = codes[b, k].tolist()
            assert out[b, k].tolist() == row


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.float32])
def test_apply_keeps_the_type_and_leaves_its_input_alone(dtype: torch.dtype) -> None:
    codes = numbered(2, 4, 5).to(dtype)
    before = codes.clone()
    out = delay.apply(codes, delay.delays(4), FILL)
    assert out.dtype == dtype
    out.zero_()
    assert torch.equal(codes, before)


# Undone


@properties
@given(lags=lags, batch=st.integers(1, 3), frames=st.integers(0, 40), fill=st.integers(-1, 200))
def test_undo_of_apply_gives_the_codes_back(lags: tuple[int, ...], batch: int, frames: int, fill: int) -> None:
    # The fill may be a code as well: what is a code is told by its place, not by its value.
    codes = numbered(batch, len(lags), frames)
    assert torch.equal(delay.undo(delay.apply(codes, lags, fill), lags), codes)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("per_channel", range(1, 9))
def test_undo_of_apply_gives_every_short_clip_back(per_channel: int, channels: int) -> None:
    lags = delay.delays(per_channel * channels, channels)
    for frames in range(1, 3 * per_channel):
        codes = numbered(2, len(lags), frames)
        assert torch.equal(delay.undo(delay.apply(codes, lags, FILL), lags), codes)


@properties
@given(lags=lags, frames=st.integers(0, 12), trailing=st.lists(st.integers(0, 4), max_size=2))
def test_undo_collects_logits_like_codes(lags: tuple[int, ...], frames: int, trailing: list[int]) -> None:
    steps = torch.arange(2 * len(lags) * (frames + max(lags))).view(2, len(lags), -1)
    logits = steps.view(*steps.shape, *[1] * len(trailing)).expand(*steps.shape, *trailing)
    collected = delay.undo(logits, lags)
    assert collected.shape == (2, len(lags), frames, *trailing)
    codes = delay.undo(steps, lags)
    assert torch.equal(collected, codes.view(*codes.shape, *[1] * len(trailing)).expand_as(collected))


def test_a_gradient_flows_back_to_the_cells_of_codes_alone() -> None:
    logits = torch.zeros(1, 4, 6, 5, requires_grad=True)
    delay.undo(logits, delay.delays(4)).sum().backward()
    assert torch.equal(logits.grad, delay.valid(3, delay.delays(4))[None, :, :, None].expand_as(logits).float())


@pytest.mark.parametrize("channels", [1, 2])
def test_a_clip_of_one_frame(channels: int) -> None:
    lags = delay.delays(4, channels)
    codes = numbered(2, 4, 1)
    out = delay.apply(codes, lags, FILL)
    assert out.shape == (2, 4, 1 + max(lags))
    assert [out[1, k, lag] for k, lag in enumerate(lags)] == codes[1, :, 0].tolist()
    assert (out == FILL).sum() == 2 * 4 * max(lags)
    assert torch.equal(delay.undo(out, lags), codes)


# Valid cells


@properties
@given(lags=lags, frames=st.integers(0, 30))
def test_valid_cells_are_those_where_apply_puts_codes(lags: tuple[int, ...], frames: int) -> None:
    mask = delay.valid(frames, lags)
    assert mask.dtype == torch.bool
    assert torch.equal(mask.long(), delay.apply(torch.ones(1, len(lags), frames, dtype=torch.long), lags, 0)[0])


def test_valid_cells_on_another_device() -> None:
    assert delay.valid(5, delay.delays(4), device=torch.device("meta")).device.type == "meta"


# transformers


@pytest.fixture(scope="module", params=[(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (8, 2)])
def model(request: pytest.FixtureRequest) -> MusicgenForCausalLM:
    return MusicgenForCausalLM(tiny.decoder_config(*request.param))


def columns(table: Tensor, lags: tuple[int, ...]) -> Tensor:
    """Codes (B, K, T), -1 where there is none yet, as a column of special tokens and the delayed codes."""
    special = torch.full((*table.shape[:2], 1), tiny.CODES)
    return torch.cat([special, delay.apply(table, lags, tiny.CODES)], dim=2)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_table_to_generate_is_the_mask_of_transformers(model: MusicgenForCausalLM, batch: int) -> None:
    K, channels = model.config.num_codebooks, model.config.audio_channels
    lags = delay.delays(K, channels)
    own = K // channels
    compared = 0
    for frames in range(1, 3 * own + 3):
        length = frames + own  # with the column of special tokens
        if length < 2 * own - 1:
            continue  # transformers drops the pattern from clips as short as this
        for prompt in range(frames + 1):
            table = torch.full((batch, K, frames), -1)
            table[..., :prompt] = tiny.codes(batch, K, prompt)
            given_ids = torch.cat([torch.full((batch, K, 1), tiny.CODES), table[..., :prompt]], dim=2)
            ids, mask = model.build_delay_pattern_mask(
                given_ids.view(batch * K, -1), pad_token_id=tiny.CODES, max_length=length
            )
            ours = columns(table, lags)
            assert torch.equal(mask.view(batch, K, -1), ours)
            assert torch.equal(ids.view(batch, K, -1), ours[..., : 1 + prompt])
            compared += 1
    assert compared > 3


def test_generated_ids_of_transformers_undo_to_the_same_frames(model: MusicgenForCausalLM) -> None:
    K, channels = model.config.num_codebooks, model.config.audio_channels
    lags = delay.delays(K, channels)
    own = K // channels
    frames = 2 * own + 1
    start = torch.full((2 * K, 1), tiny.CODES)
    _, mask = model.build_delay_pattern_mask(start, pad_token_id=tiny.CODES, max_length=frames + own)
    sampled = tiny.codes(2, K, frames + own)  # whatever was drawn, the cells of the pattern too
    ids = model.apply_delay_pattern_mask(sampled.view(2 * K, -1), mask)
    kept = ids[ids != tiny.CODES].view(2, K, -1)  # how generate() collects the codes
    assert kept.shape == (2, K, frames)
    assert torch.equal(delay.undo(sampled[..., 1:], lags), kept)


# Bad input


@pytest.mark.parametrize("shape", [(4, 5), (4,), (1, 1, 4, 5), (1, 3, 5), (1, 5, 5), (1, 0, 5), (2, 5, 4)])
def test_codes_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        delay.apply(torch.zeros(shape, dtype=torch.long), delay.delays(4), FILL)
    assert str(error.value) == f"codes must be (B, 4, T), got {shape}"


@pytest.mark.parametrize("shape", [(4, 9), (9,), (1, 3, 9), (1, 5, 9), (1, 4, 2), (1, 4, 0), (1, 4, 2, 7), (1, 9, 4)])
def test_steps_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        delay.undo(torch.zeros(shape), delay.delays(4))
    assert str(error.value) == f"steps must be (B, 4, T + 3, ...), got {shape}"
