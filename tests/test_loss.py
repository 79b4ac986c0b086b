"""The training loss: by hand, against transformers', with padding, without text, its gradients, and what it is for."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MusicgenForConditionalGeneration

from musicgen_ref import MusicGen
from musicgen_ref.model import GenerationOptions
from tests import tiny

V = tiny.CODES
RELATIVE = 1e-6  # the mean of a few hundred fp32 numbers, summed in another order


@pytest.fixture(scope="module", params=[(4, 1), (1, 1), (8, 2)], ids=["mono", "one codebook", "stereo"])
def theirs(request: pytest.FixtureRequest) -> MusicgenForConditionalGeneration:
    return tiny.musicgen_of(V, *request.param)


@pytest.fixture(scope="module")
def model(theirs: MusicgenForConditionalGeneration) -> MusicGen:
    return tiny.ours(theirs)


@pytest.fixture
def trained() -> MusicGen:
    """A model of its own for each test that changes weights or gradients."""
    return tiny.ours(tiny.musicgen_of(V))


def clips(model: MusicGen, *lengths: int) -> Tensor:
    """Random codes (B, K, T) of B clips of these lengths, padded with -1."""
    codes = tiny.codes(len(lengths), model.decoder.config.codebooks, max(lengths))
    for row, length in zip(codes, lengths, strict=True):
        row[:, length:] = -1
    return codes


def lags(model: MusicGen) -> list[int]:
    return [k // model.decoder.config.channels for k in range(model.decoder.config.codebooks)]


def delayed(codes: Tensor, lags: list[int], fill: int) -> Tensor:
    """What a caller of transformers does: frame t of codebook k at step t + lag, every other cell `fill`."""
    B, K, T = codes.shape
    steps = torch.full((B, K, T + max(lags)), fill)
    for b in range(B):
        for k in range(K):
            for t in range(T):
                if codes[b, k, t] >= 0:
                    steps[b, k, t + lags[k]] = codes[b, k, t]
    return steps


def cells_by_hand(model: MusicGen, codes: Tensor, text: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """Of each codebook, -log softmax at the code, cell by cell."""
    steps = delayed(codes, lags(model), fill=V)
    inputs = torch.cat([torch.full_like(steps[..., :1], V), steps[..., :-1]], dim=2)
    memory, mask = (None, None) if text is None else model.encode_text(text)
    log_p = model.decoder(inputs, memory, mask).double().log_softmax(-1)
    found = []
    for k, lag in enumerate(lags(model)):
        cells = [(b, t) for b in range(codes.shape[0]) for t in range(codes.shape[2]) if codes[b, k, t] >= 0]
        found.append(torch.stack([-log_p[b, k, t + lag, codes[b, k, t]] for b, t in cells]))
    return found


def by_hand(model: MusicGen, codes: Tensor, text: tuple[Tensor, Tensor] | None) -> Tensor:
    """Averaged within a codebook, then over codebooks."""
    return torch.stack([cells.mean() for cells in cells_by_hand(model, codes, text)]).mean()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(9,), (9, 9, 9), (9, 2, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("with_text", [True, False], ids=["text", "no text"])
def test_the_loss_is_the_mean_over_codebooks_of_the_mean_over_codes(
    model: MusicGen, lengths: tuple[int, ...], with_text: bool
) -> None:
    codes = clips(model, *lengths)
    text = tiny.text(len(lengths)) if with_text else None
    assert model.loss(codes, text).item() == pytest.approx(by_hand(model, codes, text).item(), rel=RELATIVE)


@torch.no_grad()
def test_where_padding_differs_by_codebook_each_codebook_still_weighs_the_same(model: MusicGen) -> None:
    codes, text = clips(model, 9, 9), tiny.text(2)
    K = codes.shape[1]
    for k in range(K):
        codes[0, k, 9 - 2 * k % 9 :] = -1
        codes[1, k, 9 - k % 9 :] = -1
    assert model.loss(codes, text).item() == pytest.approx(by_hand(model, codes, text).item(), rel=RELATIVE)
    cells = torch.cat(cells_by_hand(model, codes, text))
    if K > 1:
        assert len(cells) < 2 * K * 9
        assert abs(cells.mean() - by_hand(model, codes, text)) > 1e-3, "a mean over all cells is another number"


def test_the_loss_of_each_codebook_is_told_on_request(model: MusicGen) -> None:
    codes, text = clips(model, 9, 2, 5), tiny.text(3)
    each = model.loss(codes, text, per_codebook=True)
    by_hand = torch.stack([cells.mean() for cells in cells_by_hand(model, codes, text)])
    assert each.shape == (codes.shape[1],) and each.requires_grad
    torch.testing.assert_close(each.double(), by_hand, rtol=RELATIVE, atol=0)
    assert torch.equal(each.mean(), model.loss(codes, text))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 2, 5)], ids=str)
@pytest.mark.parametrize("masked", [0, 1, 3], ids=lambda rows: f"{rows} rows without text")
def test_the_loss_is_transformers_loss_of_delayed_labels(
    theirs: MusicgenForConditionalGeneration, model: MusicGen, lengths: tuple[int, ...], masked: int
) -> None:
    """transformers takes labels (B, T, K), shifts them by one step behind decoder_start_token_id, and does no more:
    its caller delays them, with -100 (which it feeds as the special token and does not score) in the empty cells."""
    assert theirs.config.decoder.decoder_start_token_id == V
    codes = clips(model, *lengths)
    ids, mask = tiny.text(3)
    mask[:masked] = 0
    labels = delayed(codes, lags(model), fill=-100).transpose(1, 2)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert model.loss(codes, (ids, mask)).item() == pytest.approx(expected.item(), rel=RELATIVE)
    if len(lags(model)) > 1:
        undelayed = theirs(input_ids=ids, attention_mask=mask, labels=codes.masked_fill(codes < 0, -100).mT).loss
        assert abs(undelayed - expected) > 0.01, "without the delay it is another number"


@torch.no_grad()
def test_padding_neither_counts_nor_leaks(model: MusicGen) -> None:
    """A batch of a padded and a full clip scores the same codes as the two clips by themselves."""
    codes = clips(model, 9, 4)
    text = tiny.text(2)
    long, short = model.loss(codes[:1], (text[0][:1], text[1][:1])), model.loss(codes[1:, :, :4], row(text, 1))
    assert model.loss(codes, text).item() == pytest.approx((9 * long + 4 * short).item() / 13, rel=RELATIVE)
    # What stands for padding is any negative number.
    other = codes.masked_fill(codes < 0, -100)
    assert torch.equal(model.loss(other, text), model.loss(codes, text))


def row(text: tuple[Tensor, Tensor], b: int) -> tuple[Tensor, Tensor]:
    return text[0][b : b + 1], text[1][b : b + 1]


@torch.no_grad()
def test_rows_without_text_train_the_null_condition(model: MusicGen) -> None:
    codes = clips(model, 6, 6)
    ids, mask = tiny.text(2)
    mask[0] = 0
    null, told = model.loss(codes[:1]), model.loss(codes[1:], row((ids, mask), 1))
    assert model.loss(codes, (ids, mask)).item() == pytest.approx((null + told).item() / 2, rel=RELATIVE)
    assert torch.equal(model.loss(codes, [None, None]), model.loss(codes))
    assert abs(null - model.loss(codes[:1], tiny.text(1))) > 0.01, "a text makes a difference"


def test_gradients_reach_text_encoder_projection_and_decoder_but_not_the_codec(trained: MusicGen) -> None:
    trained.loss(clips(trained, 9, 5), tiny.text(2)).backward()
    assert trained.decoder.text_proj is not None
    for name, parameter in trained.named_parameters():
        if name.startswith("codec."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_gradients_equal_those_of_transformers(trained: MusicGen) -> None:
    model = tiny.musicgen_of(V)
    codes, (ids, mask) = clips(trained, 9, 5), tiny.text(2)
    trained.loss(codes, (ids, mask)).backward()
    labels = delayed(codes, lags(trained), fill=-100).transpose(1, 2)
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    block: Any = trained.decoder.blocks[0]
    layers = model.decoder.model.decoder
    pairs: list[tuple[Any, Any]] = [
        *(
            (own.weight.grad, head.weight.grad)
            for own, head in zip(trained.decoder.heads, model.decoder.lm_heads, strict=True)
        ),
        (trained.decoder.embed[1].weight.grad, layers.embed_tokens[1].weight.grad),
        (block.self_attn.q.weight.grad, layers.layers[0].self_attn.q_proj.weight.grad),
        (block.cross_attn.k.weight.grad, layers.layers[0].encoder_attn.k_proj.weight.grad),
        (trained.decoder.text_proj.weight.grad, model.enc_to_dec_proj.weight.grad),
        (trained.text_encoder.embed.weight.grad, model.text_encoder.shared.weight.grad),
    ]
    for ours, theirs in pairs:
        # fp32, through every layer back
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_training_mode_with_gradient_checkpointing_has_the_same_gradients(trained: MusicGen) -> None:
    trained.train()
    codes, text, gradients = clips(trained, 9, 5), tiny.text(2), []
    for trained.decoder.gradient_checkpointing in (False, True):
        trained.zero_grad()
        torch.manual_seed(0)  # dropout's
        trained.loss(codes, text).backward()
        gradients.append([p.grad for p in [*trained.decoder.parameters(), *trained.text_encoder.parameters()]])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and torch.equal(plain, recomputed)


def test_a_tiny_model_overfits_one_clip_and_then_sings_it(trained: MusicGen) -> None:
    """60 steps take the loss from 5.1 (chance is log(64) = 4.2) to below 0.02; greedy generation then repeats the
    clip under the text that it was trained with."""
    audio, text = tiny.noise(1, 1, 25 * tiny.HOP), tiny.text(1)
    codes = trained.encode(audio, tiny.RATE)
    assert len(codes.unique()) > 20
    optimizer = torch.optim.AdamW([*trained.text_encoder.parameters(), *trained.decoder.parameters()], lr=1e-2)
    with torch.no_grad():
        assert trained.loss(codes, text) > 5
    for _ in range(60):
        optimizer.zero_grad()
        loss = trained.loss(codes, text)
        loss.backward()
        optimizer.step()
    assert trained.loss(codes, text) < 0.02
    made = trained.generate(text, GenerationOptions(frames=25, greedy=True, guidance_scale=1.0))
    assert torch.equal(made.codes, codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_loss_of_a_half_precision_model_is_near_the_fp32_one(
    theirs: MusicgenForConditionalGeneration, model: MusicGen, dtype: torch.dtype
) -> None:
    half = tiny.ours(theirs, dtype=dtype)
    codes, text = clips(model, 9, 5), tiny.text(2)
    loss = half.loss(codes, text)
    assert loss.dtype == torch.float32  # summed there: hundreds of cells would lose digits
    # A logit of bf16 is off by 2 ** -8 of its size, here a few hundredths; the mean of hundreds by less.
    assert loss.item() == pytest.approx(model.loss(codes, text).item(), abs=0.01)
