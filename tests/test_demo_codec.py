"""The demo codec's training: codebooks, measures, a toy run, resuming."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.demo_model import train_codec
from examples.demo_model.codec_codebooks import CodebookTrainer, kmeans, quantise
from examples.demo_model.codec_files import load_codec, save_codec
from examples.demo_model.codec_measures import evaluate, log_mel, reconstruction_loss, si_sdr, unseen_clips
from examples.demo_model.codec_scaling import normalise_latents
from examples.demo_model.train_codec import CODEC, TOY_CODEC, Options, Training, train
from musicgen_ref.encodec import Encodec

TOY = Options(steps=8, batch=4, crop=1920, clips_per_round=4, clip_crops=4, warmup=0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Codebooks


def test_kmeans_ends_where_each_centre_is_the_mean_of_the_points_nearest_to_it():
    points = torch.randn(200, 3, generator=generator())
    start, found = (kmeans(points, 5, rounds=rounds, generator=generator(1)) for rounds in (0, 100))
    nearest = torch.cdist(points, found).argmin(1)
    means = torch.stack([points[nearest == i].mean(0) for i in range(5)])
    torch.testing.assert_close(found, means)
    assert torch.cdist(points, found).amin(1).pow(2).sum() < 0.8 * torch.cdist(points, start).amin(1).pow(2).sum()


def test_kmeans_moves_centres_that_lose_all_their_points_back_onto_points():
    points = torch.cat([torch.zeros(30, 2), torch.ones(30, 2)])  # two distinct points for four centres
    found = kmeans(points, 4, rounds=5, generator=generator())
    assert torch.isfinite(found).all()
    assert {tuple(row.tolist()) for row in found} == {(0.0, 0.0), (1.0, 1.0)}


def test_kmeans_with_fewer_points_than_centres_says_so():
    with pytest.raises(ValueError, match="at least size 4, got 3"):
        kmeans(torch.zeros(3, 2), 4, rounds=1, generator=generator())


def test_codebooks_start_as_residual_kmeans():
    books = torch.zeros(2, 8, 4)
    trainer = CodebookTrainer(books, decay=0.9)
    latents = torch.randn(4, 4, 100, generator=generator())
    trainer.start(latents, 20, generator())
    codec = Encodec(replace(TOY_CODEC, hidden=4, codebook_size=8, bandwidths=(), codebooks=2))
    codec.quantizer.codebooks.copy_(books)
    sums, _, _ = quantise(codec, latents)
    errors = [float((latents - total).pow(2).mean()) for total in (torch.zeros_like(latents), *sums)]
    assert errors[0] > 1.4 * errors[1] > 1.4 * 1.2 * errors[2]  # each book removes a good part of what is left
    torch.testing.assert_close(trainer.count.sum(1), torch.full((2,), 8.0))
    torch.testing.assert_close(trainer.total, books * trainer.count[..., None])


def test_update_is_the_moving_average_written_out():
    books = torch.randn(2, 4, 3, generator=generator())
    trainer = CodebookTrainer(books, decay=0.9)
    count, total = trainer.count.clone(), trainer.total.clone()
    left = torch.randn(2, 12, 3, generator=generator(1))
    codes = torch.arange(4).repeat(2, 3)  # every word three times
    assert trainer.update(left, codes, generator()) == 0
    for k in range(2):
        for v in range(4):
            hits = left[k][codes[k] == v]
            expected = (0.9 * total[k, v] + 0.1 * hits.mean(0)) / (0.9 * count[k, v] + 0.1)
            torch.testing.assert_close(books[k, v], expected)


def test_words_converge_to_the_mean_of_what_they_code():
    books = torch.tensor([[[1.0], [-1.0]]])
    trainer = CodebookTrainer(books, decay=0.9)
    left = torch.tensor([[[2.0], [4.0], [-3.0], [-5.0]]])
    for _ in range(300):  # 0.9 ** 300 < 1e-13
        trainer.update(left, torch.tensor([[0, 0, 1, 1]]), generator())
    torch.testing.assert_close(books, torch.tensor([[[3.0], [-4.0]]]))


def test_a_word_that_is_no_longer_used_is_revived_on_a_vector_of_the_batch():
    books = torch.tensor([[[1.0], [50.0]]])
    trainer = CodebookTrainer(books, decay=0.9, dead=0.05)
    left, codes = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.zeros(1, 3, dtype=torch.long)
    moved = [trainer.update(left, codes, generator(i)) for i in range(29)]
    assert moved == [0] * 28 + [1]  # 0.9 ** 29 is the first below 0.05
    assert books[0, 1].item() in (1.0, 2.0, 3.0)
    assert trainer.count[0, 1] == 1 and trainer.total[0, 1] == books[0, 1]


def test_quantise_agrees_with_the_codec():
    torch.manual_seed(0)
    codec = Encodec(TOY_CODEC)
    codec.quantizer.codebooks.normal_()
    latents = torch.randn(2, TOY_CODEC.hidden, 7)
    sums, left, codes = quantise(codec, latents)
    codes = codes.view(TOY_CODEC.codebooks, 2, 7).transpose(0, 1)
    assert torch.equal(codes, codec.quantizer.encode(latents, TOY_CODEC.codebooks))
    for k in range(TOY_CODEC.codebooks):
        # Sums of up to four words of size 1 in another order: some units in the last place.
        torch.testing.assert_close(sums[k], codec.quantizer.decode(codes[:, : k + 1]), rtol=0, atol=1e-5)
        before = sums[k - 1] if k else torch.zeros_like(latents)
        assert torch.equal(left[k], (latents - before).transpose(1, 2).reshape(14, -1))


# Measures


def test_si_sdr_ignores_scale_and_offset_and_measures_added_noise():
    audio, noise = torch.randn(3, 4000, generator=generator()), torch.randn(3, 4000, generator=generator(1))
    assert (si_sdr(0.3 * audio + 0.1, audio) > 90).all()
    # Noise of a tenth of the amplitude is 20 dB below; 4000 samples leave 0.3 dB of chance.
    torch.testing.assert_close(si_sdr(audio + 0.1 * noise, audio), torch.full((3,), 20.0), rtol=0, atol=0.3)


def test_a_tone_falls_into_its_mel_band():
    t = torch.arange(16_000) / 16_000
    loudest = [int(log_mel(torch.sin(2 * torch.pi * hz * t)[None])[0].mean(1).argmax()) for hz in (500, 4000)]
    # mel(500) = 607.4, mel(4000) = 2146.1, mel(8000) = 2840.0; 64 bands are centred on 1 ... 64 of 65 steps of that.
    assert loudest == [round(607.4 / 2840.0 * 65) - 1, round(2146.1 / 2840.0 * 65) - 1]


def test_loss_is_zero_for_the_audio_itself_only():
    audio = torch.randn(2, 1, 4000, generator=generator())
    assert reconstruction_loss(audio, audio) == 0
    assert reconstruction_loss(audio.flip(0), audio) > 1


def test_evaluation_clips_are_not_among_the_training_combinations():
    clips = unseen_clips(3, 0.5)
    assert clips.shape == (3, 1, 8000)
    assert torch.equal(unseen_clips(3, 0.5, shift=100)[..., :-100], clips[..., 100:])


# Training


def test_the_demo_codec_is_50_frames_a_second_of_4_codebooks():
    codec = Encodec(CODEC)
    assert (CODEC.frame_rate, CODEC.hop, CODEC.codebooks) == (50, 320, 4)
    assert 1.5e6 < sum(p.numel() for p in codec.parameters()) < 2.5e6


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "seconds": 5.0}, {"steps": 0}, {"seconds": -1.0}])
def test_options_want_exactly_one_positive_budget(budget):
    with pytest.raises(ValueError, match="one budget"):
        Options(**budget)


def test_batches_never_repeat_and_are_a_function_of_seed_and_step():
    first, second = (train_codec.Batches(TOY, TOY_CODEC.hop) for _ in range(2))
    batches = [first[i] for i in range(6)]  # four to a round
    assert torch.equal(second[5], batches[5]) and torch.equal(second[2], batches[2])
    sounding = [crop for crop in torch.cat(batches) if crop.abs().max() > 0]
    assert len({crop.numpy().tobytes() for crop in sounding}) == len(sounding) > 20
    other = train_codec.Batches(replace(TOY, seed=1), TOY_CODEC.hop)
    assert not torch.equal(other[0], batches[0])


def test_layers_are_scaled_for_the_audio():
    run = Training(TOY_CODEC, TOY)
    audio = run.batches[0]
    with torch.no_grad():
        first, out = run.codec.encoder[0](audio), run.codec.decoder(run.codec.encoder(audio))
    assert float(first.std()) == pytest.approx(1, rel=1e-4)
    assert float(out.std()) == pytest.approx(float(audio.std()), rel=1e-3)


def test_normalised_latents_have_mean_0_and_variance_1_and_give_the_same_audio():
    run = Training(TOY_CODEC, TOY)
    audio = run.batches[0]
    with torch.no_grad():
        run.codec.encoder[-1].conv.bias += 5  # latents off the origin, and too large
        run.codec.encoder[-1].conv.weight *= 7
        latents = run.codec.encoder(audio)
        before = run.codec.decoder(latents)
        changed = normalise_latents(run.codec, latents)
        latents = run.codec.encoder(audio)
        after = run.codec.decoder(latents)
    assert {id(p) for p in changed} < {id(p) for p in run.codec.parameters()} and len(changed) == 4
    assert latents.mean(dim=(0, 2)).abs().max() < 1e-4
    assert float(latents.std(dim=(0, 2)).square().mean()) == pytest.approx(1, rel=1e-4)
    # The same sums in another order: fp32 rounding, carried through the decoder.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4 * float(before.abs().max()))


def test_a_small_codec_overfits_one_batch():
    run = Training(TOY_CODEC, replace(TOY, steps=150, lr=1e-2, batch=1, crop=3200, warmup=2.0, one_batch=True))
    losses = [run.step()["loss"] for _ in range(150)]
    assert np.mean(losses[-5:]) < 0.4 * losses[0]


def test_quantised_steps_train_encoder_and_decoder_and_move_the_codebooks():
    run = Training(TOY_CODEC, replace(TOY, steps=4, warmup=0.0))
    run.step()
    before = {name: tensor.clone() for name, tensor in run.codec.state_dict().items()}
    values = run.step()
    still = [name for name, tensor in run.codec.state_dict().items() if torch.equal(tensor, before[name])]
    assert run.quantised and values["commitment"] > 0 and still == []


def test_a_resumed_run_has_the_losses_of_the_uninterrupted_one(tmp_path):
    whole = Training(TOY_CODEC, TOY)
    expected = [whole.step() for _ in range(8)]
    run = Training(TOY_CODEC, TOY)
    losses = []
    for step in range(8):
        if step in (2, 6):  # without codebooks, and with them
            run.save(tmp_path / "checkpoint.pt")
            run = Training(TOY_CODEC, TOY)
            run.load(tmp_path / "checkpoint.pt")
        losses.append(run.step())
    assert losses == expected
    assert same(run.codec.state_dict(), whole.codec.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_resuming_with_other_options_says_which(tmp_path):
    Training(TOY_CODEC, TOY).save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"\['seed', 'lr'\]"):
        Training(TOY_CODEC, replace(TOY, seed=1, lr=1.0)).load(tmp_path / "checkpoint.pt")


def test_a_run_that_diverges_stops():
    run = Training(TOY_CODEC, TOY)
    next(run.codec.parameters()).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="diverged at step 0"):
        run.step()


def test_train_goes_on_from_its_checkpoint_and_logs(tmp_path):
    train(TOY_CODEC, replace(TOY, steps=2), tmp_path, every=1, save_seconds=0.0)
    codec = train(TOY_CODEC, replace(TOY, steps=4), tmp_path, every=1, save_seconds=0.0)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all(set(row["si_sdr"]) == {"1", "2", "3", "4", "unquantised"} for row in log)
    assert not codec.training
    assert torch.load(tmp_path / "unquantised.pt", weights_only=True)["progress"][::2] == (1, False)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_trains_evaluates_and_writes_a_codec_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_codec", "--toy", "--steps", "4", "--out", str(tmp_path)])
    train_codec.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((tmp_path / "evaluation.json").read_text())
    codec = load_codec(tmp_path)
    assert codec.config == TOY_CODEC
    assert evaluate(codec, unseen_clips(2, 1.0)) == figures["from the first sample"]
    assert len(list(tmp_path.glob("sample*.coded.wav"))) == 2


def test_a_codec_saved_in_half_precision_loads_as_its_rounded_self(tmp_path):
    codec = Training(TOY_CODEC, TOY).codec
    save_codec(codec, tmp_path, torch.float16)
    rounded = {name: tensor.half().float() for name, tensor in codec.state_dict().items()}
    assert same(load_codec(tmp_path).state_dict(), rounded)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codec.json", "codec.safetensors"]


def test_loading_where_no_codec_is_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"codec\.json"):
        load_codec(tmp_path)
