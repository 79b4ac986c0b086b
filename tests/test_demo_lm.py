"""The demo's training of text encoder and decoder, on a toy budget."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.demo_model import captions, evaluate, synth, train_lm
from examples.demo_model.analysis import fit_analyser
from examples.demo_model.train_codec import TOY_CODEC
from musicgen_ref import DecoderConfig, MusicGen, T5Config
from musicgen_ref.encodec import Encodec

TEXT = T5Config(vocab_size=256, width=32, layers=1, heads=2, head_width=16, ffn=64, dropout=0.0)
DECODER = DecoderConfig(
    vocab_size=TOY_CODEC.codebook_size, codebooks=4, width=48, layers=2, heads=2, ffn=96, text_width=32, dropout=0.0
)
OPTIONS = train_lm.Options(steps=6, name_steps=5, lengths=((20, 6, 6), (40, 4, 6), (400, 1, 6)))


@pytest.fixture(scope="module")
def codec() -> Encodec:
    """Untrained, but with codebooks that give varied codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = Encodec(TOY_CODEC).eval()
    attributes = synth.Attributes("lead", "busy", "fast", 0, "major", "melody")
    clip = torch.from_numpy(synth.render(attributes, 2.0, np.random.default_rng(0)))
    latents = codec.encoder(clip[None, None])
    spread = latents.detach().std()
    generator = torch.Generator().manual_seed(1)
    codec.quantizer.codebooks.normal_(0, 1, generator=generator).mul_(spread)
    return codec


def train(codec: Encodec, folder: Path, **changes: object) -> MusicGen:
    options = replace(OPTIONS, **changes)
    return train_lm.train(codec, options, folder, every=2, save_seconds=0.0, text=TEXT, decoder=DECODER)


def test_the_training_runs_end_to_end_and_its_model_saves_and_loads(codec: Encodec, tmp_path: Path) -> None:
    model = train(codec, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert {"right", "shuffled", "none", "whole", "gradient"} <= rows[-1].keys()
    assert len(list((tmp_path / "samples").glob("*.wav"))) == 3 * len(train_lm.CAPTIONS)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    model.save_pretrained(tmp_path / "model")
    loaded = MusicGen.from_pretrained(tmp_path / "model")
    codes = torch.randint(0, DECODER.vocab_size, (2, 4, 9), generator=torch.Generator().manual_seed(0))
    texts = ["slow pad chords, F major, no drums", None]
    with torch.no_grad():
        assert torch.equal(loaded.loss(codes, texts), model.loss(codes, texts))


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(codec: Encodec, tmp_path: Path) -> None:
    whole = train(codec, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        gate, calls = train_lm.Training.gate, []

        def counted(run: train_lm.Training, unseen: train_lm.Clips) -> dict[str, float]:
            calls.append(run.done)
            if run.done == 4:
                run.save(tmp_path / "stopped" / "checkpoint.pt")
                stop()
            return gate(run, unseen)

        patch.setattr(train_lm.Training, "gate", counted)
        with pytest.raises(Stopped):
            train(codec, tmp_path / "stopped")
    resumed = train(codec, tmp_path / "stopped")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(ValueError, match=r"trained with other options: \['lr'\]"):
        train(codec, tmp_path / "stopped", lr=1e-2)


def test_one_clip_can_be_overfitted(codec: Encodec) -> None:
    model = train_lm.new_model(codec, 0, TEXT, DECODER)
    clip = train_lm.encode_clips(codec, 1, (0,), held_out=False)["codes"][:, :, :30]
    codes = torch.from_numpy(clip.astype(np.int64))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(150):
        loss = model.loss(codes, ["a fast melody"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 2.0
    assert losses[-1] < 0.1


def test_the_vocabulary_knows_captions_in_any_case_and_letters_that_no_caption_has() -> None:
    tokenizer = train_lm.train_tokenizer(256)
    assert tokenizer.vocab_size <= 256
    text, _ = captions.caption(synth.sample_attributes(np.random.default_rng(0)), np.random.default_rng(0))
    assert tokenizer.encode(text) == tokenizer.encode(text.upper())
    assert tokenizer.unk_id not in tokenizer.encode(
        "80s pop track with bassy drums, jazz & quirky synth".replace("&", "")
    )


def test_attributes_survive_as_rows() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        attributes = synth.sample_attributes(rng)
        assert train_lm.from_row(np.array(train_lm.to_row(attributes), np.uint8)) == attributes


def test_batches_follow_the_schedule_and_leave_texts_out(codec: Encodec) -> None:
    model = train_lm.new_model(codec, 0, TEXT, DECODER)
    data = {
        frames: train_lm.encode_clips(codec, 4, (0,), held_out=False, frames=frames) for frames, *_ in OPTIONS.lengths
    }
    run = train_lm.Training(model, OPTIONS, data)
    early = [run.batch(i, 0.1) for i in range(100)]
    late = [run.batch(i, 0.9) for i in range(100)]
    assert {codes.shape[2] for codes, *_ in early} == {20, 40}
    assert {codes.shape[2] for codes, *_ in late} == {20, 40, 400}
    texts = [text for _, rows, _ in early for text in rows]
    assert 0.08 < sum(text is None for text in texts) / len(texts) < 0.16  # 0.12 of some 570
    others = [text for _, _, rows in early for text in rows]
    words = [
        tuple(caption.replace(",", "").split() for caption in pair)
        for pair in zip(texts, others, strict=True)
        if None not in pair
    ]
    assert [text is None for text in texts] == [text is None for text in others]
    differ = [(a, b) for a, b in words if a != b]
    assert 0.5 < len(differ) / len(words) < 0.95  # the rest leaves out what is another
    mode = [{*a} ^ {*b} == {"major", "minor"} for a, b in differ]
    assert 0.4 < sum(mode) / len(mode) < 0.7


@torch.no_grad()
def test_the_contrast_is_the_cross_entropy_of_two_captions(codec: Encodec) -> None:
    run = train_lm.Training(train_lm.new_model(codec, 0, TEXT, DECODER), OPTIONS, {})
    codes = torch.randint(0, codec.config.codebook_size, (3, 4, 20))
    texts = ["slow pad chords, F major", "a bell melody", "fast drums"]
    others = ["slow pad chords, F minor", "a bell melody", "busy drums"]
    nats = [
        [float(run.model.loss(row[None], [text])) * row.numel() for row, text in zip(codes, side, strict=True)]
        for side in (texts, others)
    ]
    right, other = torch.tensor(nats)
    expected = -torch.log_softmax(torch.stack([-right, -other]), dim=0)[0]
    assert abs(float(expected[1]) - math.log(2)) < 1e-3  # told nothing
    torch.testing.assert_close(run.contrast(codes, texts, others), expected.mean(), rtol=1e-3, atol=1e-3)


def test_the_judge_hears_what_was_asked_and_not_what_another_was_asked() -> None:
    asked, texts = evaluate.asked_clips(30)
    assert all(synth.is_held_out(a) for a in asked)
    assert len(set(texts)) == 30
    rng = np.random.default_rng(0)
    table = evaluate.judge(fit_analyser(clips=120), [synth.render(a, 4.0, rng) for a in asked], asked)
    for name in ("drums yes/no", "tempo", "instrument"):
        right, other = table[name]
        assert right > other + 0.2, name


def test_the_history_is_confused_in_half_of_the_rows_with_what_another_row_has(codec: Encodec) -> None:
    run = train_lm.Training(train_lm.new_model(codec, 0, TEXT, DECODER), OPTIONS, {})
    columns = torch.arange(200)[:, None, None].expand(200, 4, 50)
    read = run.confuse(columns)
    own = read == columns
    assert (own | (read == columns.roll(1, 0))).all()
    assert 0.4 < float(own.all(2).all(1).float().mean()) < 0.6
    assert 0.5 < float(own.float().mean(dim=(1, 2)).min()) < 0.7  # noise is 0.4 at most, drawn for each of 200 codes
    run.done += 1
    assert not torch.equal(run.confuse(columns), read)


def test_training_goes_on_from_a_model(codec: Encodec, tmp_path: Path) -> None:
    start = train(codec, tmp_path / "first")
    before = [p.detach().clone() for p in start.parameters()]
    options = replace(OPTIONS, steps=2, lr=1e-9)
    model = train_lm.train(codec, options, tmp_path / "second", every=1, save_seconds=0.0, start=start.train())
    assert max(float((p - b).abs().max().detach()) for p, b in zip(model.parameters(), before, strict=True)) < 1e-6
    assert "named before" not in (tmp_path / "second" / "log.jsonl").read_text()
