"""musicgen_ref.hf under transformers' Trainer, Seq2SeqTrainer and accelerate, beside transformers' own model."""

import json
import re
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers
from torch import Tensor

from musicgen_ref import hf
from tests import tiny

Model = hf.MusicgenForConditionalGeneration
Row = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout, whose draws would differ."""
    path = tmp_path_factory.mktemp("still")
    still = {"text": {"vocab_size": 200, "dropout_rate": 0.0}, "decoder": {"dropout": 0.0}}
    tiny.musicgen_of(256, **still).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ships, which has learned something, without dropout."""
    path = tmp_path_factory.mktemp("demo")
    Model.from_pretrained("demo").save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config["decoder"]["dropout"] = config["text_encoder"]["dropout_rate"] = 0.0
    (path / "config.json").write_text(json.dumps(config))
    return path


def rows(count: int = 6) -> list[Row]:
    """Texts, padded, and labels (T, K), some of them -100: other counts of labels in every row."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = tiny.text(count, 9)
    labels = torch.randint(0, 256, (count, 8, 4), generator=generator)
    labels.masked_fill_(torch.arange(8)[None, :, None] > 3 + torch.arange(count)[:, None, None] % 5, -100)
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return [{name: values[row] for name, values in columns.items()} for row in range(count)]


def opened(library: Any, folder: Path) -> Any:
    model = library.MusicgenForConditionalGeneration.from_pretrained(folder)
    model.config.decoder.decoder_start_token_id = 256  # what transformers shifts labels behind
    model.freeze_audio_encoder()
    model.freeze_text_encoder()
    return model


def save_whole() -> Any:
    """The README's callback. A Trainer itself writes only the tensors of a model that is not transformers' own."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "TrainerCallback" in block)
    made: dict[str, Any] = {}
    exec(block, made)
    return made["SaveWhole"]()


def trainer(model: Any, out: Path, kind: Any = transformers.Trainer, **more: Any) -> Any:
    named = {"num_train_epochs": 1, "learning_rate": 3e-3, "per_device_train_batch_size": 1}
    fixed = {
        "report_to": [],
        "use_cpu": True,
        "seed": 3,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    arguments = transformers.Seq2SeqTrainingArguments if kind is transformers.Seq2SeqTrainer else None
    arguments = arguments or transformers.TrainingArguments
    given = named | fixed | {"gradient_accumulation_steps": 2} | more
    return kind(
        model=model, args=arguments(output_dir=str(out), **given), train_dataset=rows(), eval_dataset=rows(2),
        callbacks=[save_whole()] if given["save_strategy"] == "steps" and isinstance(model, Model) else [],
    )  # fmt: skip


def losses(trained: Any) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def test_an_epoch_of_the_demo_has_the_losses_of_transformers(demo: Path, tmp_path: Path) -> None:
    history = {}
    for library in (transformers, hf):
        run = trainer(opened(library, demo), tmp_path / library.__name__, learning_rate=1e-4)
        before = run.evaluate()["eval_loss"]
        run.train()
        history[library] = [before, *losses(run), run.evaluate()["eval_loss"]]
        assert history[library][-1] < before
    torch.testing.assert_close(history[hf], history[transformers], rtol=1e-4, atol=0)
    # What is recomputed in the backward pass changes no number.
    again = trainer(opened(hf, demo), tmp_path, learning_rate=1e-4, activation_checkpointing=True)
    again.train()
    assert again.model.is_activation_checkpointing
    torch.testing.assert_close(losses(again), history[hf][1:-1], rtol=1e-5, atol=0)


def test_an_epoch_has_the_losses_of_transformers_and_is_resumed(folder: Path, tmp_path: Path) -> None:
    history = {}
    for library in (transformers, hf):
        out = tmp_path / library.__name__
        run = trainer(opened(library, folder), out, save_strategy="steps", save_steps=2)
        before = run.evaluate()["eval_loss"]
        run.train()
        history[library] = losses(run), run.evaluate()["eval_loss"]
        assert history[library][1] < before
    assert len(history[hf][0]) == 3
    torch.testing.assert_close(history[hf][0], history[transformers][0], rtol=2e-4, atol=0)
    torch.testing.assert_close(history[hf][1], history[transformers][1], rtol=2e-4, atol=0)
    checkpoint = tmp_path / "musicgen_ref.hf" / "checkpoint-2"
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "musicgen"
    again = trainer(opened(hf, folder), tmp_path / "musicgen_ref.hf", save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(losses(again), history[hf][0], rtol=1e-5, atol=0)
    # What it wrote opens here and there.
    state = run.model.state_dict()
    for library in (transformers, hf):
        path = tmp_path / "musicgen_ref.hf" / "checkpoint-3"
        loaded = library.MusicgenForConditionalGeneration.from_pretrained(path).state_dict()
        assert all(torch.allclose(loaded[name], state[name], atol=1e-6) for name in state if "original" not in name)


def test_a_trainers_own_checkpoint_opens_with_a_configuration(folder: Path, tmp_path: Path) -> None:
    run = trainer(opened(hf, folder), tmp_path, save_strategy="steps", save_steps=3)
    run.callback_handler.callbacks = [
        each for each in run.callback_handler.callbacks if type(each).__name__ != "SaveWhole"
    ]
    run.train()
    checkpoint, state = tmp_path / "checkpoint-3", run.model.state_dict()
    assert not (checkpoint / "config.json").exists()
    loaded = Model.from_pretrained(checkpoint, config=hf.MusicgenConfig.from_pretrained(folder)).state_dict()
    assert all(torch.allclose(loaded[name], state[name], atol=1e-6) for name in state if "original" not in name)
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint-3/config\.json; config must be given for a directory that"
    ):
        Model.from_pretrained(checkpoint)
    fewer = hf.MusicgenConfig.from_pretrained(folder)
    fewer.decoder.num_hidden_layers = 1
    with pytest.raises(
        ValueError, match=r"checkpoint-3: the tensors do not fit the configuration: \d+ left over: decoder"
    ):
        Model.from_pretrained(checkpoint, config=fewer)
    part = tmp_path / "part"
    run.model.decoder.save_pretrained(part)
    (part / "config.json").unlink()
    decoder = hf.MusicgenForCausalLM.from_pretrained(part, config=run.model.config.decoder)
    assert torch.equal(decoder.lm_heads[0].weight, run.model.decoder.lm_heads[0].weight)
    with pytest.raises(FileNotFoundError, match=r"part/config\.json; config must be given"):
        hf.MusicgenForCausalLM.from_pretrained(part)


def test_a_checkpoint_of_transformers_is_resumed_here(folder: Path, tmp_path: Path) -> None:
    run = trainer(opened(transformers, folder), tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    again = trainer(opened(hf, folder), tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(losses(again)[-1], losses(run)[-1], rtol=2e-4, atol=0)


def test_an_adapter_is_trained_by_a_trainer(folder: Path, tmp_path: Path) -> None:
    history = {}
    for library in (transformers, hf):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "fc1"])
        wrapped = peft.get_peft_model(opened(library, folder), config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, p in sorted(wrapped.named_parameters()):
                if "lora_" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        run = trainer(wrapped, tmp_path / library.__name__, save_strategy="steps", save_steps=3)
        run.train()
        history[library] = losses(run)
    torch.testing.assert_close(history[hf], history[transformers], rtol=2e-4, atol=0)
    batch = {name: value[None] for name, value in rows(1)[0].items()}
    with torch.no_grad():
        expected = wrapped.eval()(**batch).logits
        for name in ("musicgen_ref.hf", "transformers"):
            adapter = tmp_path / name / "checkpoint-3"
            loaded = peft.PeftModel.from_pretrained(opened(hf, folder), adapter).eval()
            torch.testing.assert_close(loaded(**batch).logits, expected, rtol=0, atol=1e-3)


def test_predict_with_generate(folder: Path, tmp_path: Path) -> None:
    """The settings are those under which transformers' own model gets through: its labels are padded to max_length."""
    predictions = {}
    for library in (transformers, hf):
        model = opened(library, folder)
        special = {"pad_token_id": 256, "bos_token_id": 256, "decoder_start_token_id": 256}
        model.generation_config.update(**special, max_length=4, guidance_scale=3.0)
        run = trainer(
            model, tmp_path, transformers.Seq2SeqTrainer, predict_with_generate=True, per_device_eval_batch_size=2
        )
        out = run.predict(run.eval_dataset, max_new_tokens=9)
        predictions[library] = out
    assert predictions[hf].predictions.shape == predictions[transformers].predictions.shape == (2, 1, 48)
    ours, theirs = (torch.from_numpy(predictions[library].predictions) for library in (hf, transformers))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    mine, their = (predictions[library].metrics["test_loss"] for library in (hf, transformers))
    assert mine == pytest.approx(their, rel=1e-4)


@pytest.mark.parametrize("which", ["folder", "demo"])
def test_a_step_under_accelerate_in_bf16(which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    results = {}
    for library in (transformers, hf):
        # One state for the whole process, which the trainers above have made.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        model = opened(library, folder)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        data = torch.utils.data.DataLoader(rows(2), batch_size=2)
        model, optimizer, data = accelerator.prepare(model.train(), optimizer, data)
        batch = next(iter(data))
        out = model(**batch)
        assert out.logits.dtype == out.loss.dtype == torch.float32  # what accelerate rebuilds
        accelerator.backward(out.loss)
        optimizer.step()
        with torch.no_grad():
            after = model(**batch).loss
        assert after < out.loss
        inner = accelerator.unwrap_model(model)
        head = inner.decoder.lm_heads[0].weight
        results[library] = torch.stack([out.loss.detach(), after]), head.detach()
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    torch.testing.assert_close(results[hf][0], results[transformers][0], rtol=0.01, atol=0)
    torch.testing.assert_close(results[hf][1], results[transformers][1], rtol=0, atol=0.01)


# Names of modules, as they stand in the decoder and in the text encoder, and of the projection between them.
TARGETS = {"decoder": ["q_proj", "v_proj", "fc1"], "text encoder": ["q", "v", "wo", "enc_to_dec_proj"]}


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_of_the_demo_that_was_trained_there_has_the_same_logits_here(
    targets: str, demo: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        tiny.opened(transformers.MusicgenForConditionalGeneration, demo),
        peft.LoraConfig(r=4, target_modules=TARGETS[targets]),
    )
    theirs.get_base_model().config.decoder.decoder_start_token_id = 256
    batch = {name: torch.stack([row[name] for row in rows(2)]) for name in rows(1)[0]}
    with torch.no_grad():
        untrained = theirs.eval()(**batch).logits
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        theirs(**batch).loss.backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path)
    ours = peft.PeftModel.from_pretrained(Model.from_pretrained(demo), tmp_path).eval()
    with torch.no_grad():
        expected, logits = theirs(**batch).logits, ours(**batch).logits
    assert (expected - untrained).abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
