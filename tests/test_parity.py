"""The parity command: it agrees with transformers, and finds the stage in which a mistake was made."""

import gc
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from musicgen_ref import MusicGen, attention, decoder, delay, encodec, model, t5, text
from musicgen_ref.__main__ import main
from musicgen_ref.parity import Inputs, Recording, compare, record, record_transformers
from musicgen_ref.parity import of_transformers as theirs
from musicgen_ref.parity import ours as stages_of_ours
from musicgen_ref.parity.compare import ROUNDING
from musicgen_ref.parity.recording import STAGES, described
from tests import tiny
from weights_convert.convert import to_audiocraft

FRAMES = 9
GENERATED = {"greedy.logits", "greedy.codes", "sampled.logits", "sampled.codes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mono model with a tokenizer."""
    return tiny.complete(tmp_path_factory.mktemp("mono"))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.complete(tmp_path_factory.mktemp("stereo"), channels=2)


@pytest.fixture(scope="module")
def golden(folder: Path) -> Recording:
    """What transformers makes of it."""
    return record_transformers(folder, record(folder, frames=FRAMES).inputs)


def run(*arguments: object) -> int:
    return main(["parity", *map(str, arguments), "--frames", str(FRAMES)])


def stems(names: Any) -> set[str]:
    return {name.rpartition(".")[0] + ".*" if name.rpartition(".")[2].isdigit() else name for name in names}


# Where nothing is wrong


def test_every_stage_is_compared_and_equal_on_the_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("demo", "--json", tmp_path / "table.json", "--report", tmp_path / "page.html") == 0
    told = json.loads((tmp_path / "table.json").read_text())
    assert told["agree"] is True and told["first"] is None and told["missing"] == []
    assert stems(row["stage"] for row in told["stages"]) == STAGES.keys()
    codes = {row["stage"]: row["largest"] for row in told["stages"] if row["stage"].endswith((".codes", ".ids"))}
    assert codes == dict.fromkeys(("text.ids", "greedy.codes", "sampled.codes", "codec.codes"), 0)
    printed = capsys.readouterr().out
    assert "transformers" in printed and "No stage differs by more than rounding" in printed
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "decoder.logits_cached" in page
    assert "http" not in page and "<script" not in page


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_kind_of_model_agrees(kind: str, tmp_path: Path) -> None:
    tiny.musicgen(**tiny.KINDS[kind]).save_pretrained(tmp_path)
    assert run(tmp_path) == 0


def test_a_stereo_model_agrees(stereo: Path) -> None:
    assert run(stereo) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"use_causal_conv": True, "use_conv_shortcut": True, "target_bandwidths": [0.3, 1.2]},
        {"audio_channels": 2, "normalize": True, "chunk_length_s": 0.4, "overlap": 0.1, "norm_type": "time_group_norm"},
    ],
    ids=["as 24 kHz", "as 48 kHz"],
)
def test_an_encodec_alone_agrees(fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.codec(tiny.codec_config(4, **fields)).save_pretrained(tmp_path)
    assert run(tmp_path) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("codec.")]
    assert [name for name in shown if name != "codec.distances"] == [
        "codec.latents", "codec.codes", "codec.quantized", "codec.audio"
    ]  # fmt: skip


def test_a_release_of_audiocraft_is_compared_through_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.musicgen_of(64, decoder={"ffn_dim": 128}).save_pretrained(tmp_path / "theirs")
    MusicGen.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "release", "audiocraft")
    assert run(tmp_path / "release") == 0
    assert "of a copy in its layout" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_with_transformers_in_the_same(dtype: str, folder: Path) -> None:
    assert run(folder, "--dtype", dtype) == 0


def test_the_plain_layers_are_compared_where_they_are_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--plain") == 0
    assert "plain layers" in capsys.readouterr().out


def test_one_model_is_gone_before_the_other_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[MusicGen]] = []
    of_model, load = stages_of_ours.of_model, theirs.load

    def watched(one: MusicGen, given: Inputs) -> Any:
        made.append(weakref.ref(one))
        return of_model(one, given)

    def loading(*arguments: Any) -> Any:
        gc.collect()
        assert [ref() for ref in made] == [None]
        return load(*arguments)

    monkeypatch.setattr("musicgen_ref.parity.recording.of_model", watched)
    monkeypatch.setattr(theirs, "load", loading)
    assert run(folder) == 0 and len(made) == 1


def test_the_global_generator_is_left_as_it_was(folder: Path) -> None:
    before = torch.get_rng_state()
    record_transformers(folder, record(folder, frames=2).inputs)
    assert torch.equal(torch.get_rng_state(), before)


# Where something is


def swapped_halves(positions: Tensor, width: int) -> Tensor:
    return SINUSOID(positions, width).roll(width // 2, dims=1)


SINUSOID, ATTEND, APPLY = decoder.sinusoid, attention.attend, delay.apply
APPEND, TOP_K, CHOOSE, PAD = attention.KVCache.append, model.top_k, model.choose, encodec.pad


def unscaled(*tensors: Tensor, scale: float, **more: Any) -> Tensor:
    return ATTEND(*tensors, scale=1.0, **more)


def late(codes: Tensor, delays: Any, fill: int) -> Tensor:
    return APPLY(codes, delays, fill).roll(1, dims=2)


def shifted_values(cache: attention.KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = APPEND(cache, layer, k, v)
    return keys, values.roll(1, dims=2)


def other_decode(quantizer: encodec.ResidualVectorQuantizer, codes: Tensor) -> Tensor:
    return torch.nn.functional.embedding(codes[:, 0], quantizer.codebooks[0]).transpose(1, 2)


def no_projection_mask(self: decoder.Decoder, states: Tensor, mask: Tensor | None = None) -> Tensor:
    return states if self.text_proj is None else self.text_proj(states)


def swapped_sides(self: MusicGen, codes: Tensor) -> Tensor:
    return DECODE(self, codes).flip(1)


DECODE, T5_FORWARD, IDS = MusicGen.decode, t5.T5Encoder.forward, text.Tokenizer.__call__

# What is put in its place, and the stage that is the first to differ.
FAULTS: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "no end token": (
        text.Tokenizer, "__call__", lambda self, texts: tuple(x[:, :-1] for x in IDS(self, texts)), "text.ids",
    ),
    "relative positions mirrored": (
        t5.T5Encoder, "position_bias", lambda self, length, own=t5.T5Encoder.position_bias: own(self, length).mT,
        "text.block.0",
    ),
    "text mask dropped": (
        t5.T5Encoder, "forward", lambda self, ids, mask=None, **more: T5_FORWARD(self, ids, **more), "text.block.0",
    ),
    "memory not masked": (decoder.Decoder, "project_text", no_projection_mask, "memory"),
    "delay off by one": (delay, "apply", late, "delay"),
    "halves of the sinusoid swapped": (decoder, "sinusoid", swapped_halves, "decoder.embeddings"),
    "scores not scaled": (attention, "attend", unscaled, "decoder.block.0"),
    "mask of the memory dropped": (decoder, "_key_mask", lambda mask: None, "decoder.block.0"),
    "cache off by one": (attention.KVCache, "append", shifted_values, "decoder.logits_cached"),
    "guidance the wrong way": (
        stages_of_ours, "guide", lambda cond, null, scale: cond + (null - cond) * scale, "guided.logits",
    ),
    "guidance the wrong way in the loop alone": (
        model, "guide", lambda cond, null, scale: cond + (null - cond) * scale, "greedy.logits",
    ),
    "the least likely code": (model, "choose", lambda logits, *rest: logits.argmin(-1), "greedy.codes"),
    "top-k of five": (model, "top_k", lambda logits, k: TOP_K(logits, 5), "sampled.codes"),
    "padding of zeros": (
        encodec, "pad", lambda x, left, right, mode: PAD(x, left, right, "constant"), "codec.latents",
    ),
    "one codebook alone is decoded": (encodec.ResidualVectorQuantizer, "decode", other_decode, "codec.quantized"),
    "sides swapped": (MusicGen, "decode", swapped_sides, "audio"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_stage_in_which_a_mistake_was_made_is_named(
    fault: str, folder: Path, stereo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, name, wrong, stage = FAULTS[fault]
    monkeypatch.setattr(where, name, wrong)
    assert run(stereo if fault == "sides swapped" else folder, "--plain") == 1
    assert f"The first stage that differs by more than rounding is {stage}." in capsys.readouterr().out


def test_a_weight_that_is_wrong_is_found_in_its_block(folder: Path, golden: Recording) -> None:
    own = MusicGen.from_pretrained(folder)
    with torch.no_grad():
        own.decoder.blocks[1].fc1.weight[0, 0] += 3
    report = compare(dict(stages_of_ours.of_model(own, golden.inputs)), golden)
    assert report.first is not None and report.first.stage == "decoder.block.1"


# Codes that differ: how near was the decision?


def generated(golden: Recording, kind: str) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in golden.stages.items() if name.startswith(kind)}


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_the_first_code_that_differs_is_told_with_its_step(kind: str, golden: Recording) -> None:
    changed = generated(golden, kind)
    codes = changed[f"{kind}.codes"]
    codes[1, 2, 3] = (codes[1, 2, 3] + 1) % 256  # decided at step 3 + 2
    codes[0, 0, 7] = (codes[0, 0, 7] + 1) % 256  # at step 7
    changed[f"{kind}.logits"][1, :, 8] += 100  # of other columns by then: not compared
    report = compare(changed, golden)
    logits, row = report.rows
    assert logits.verdict == "equal"
    assert row.first == 5 and row.verdict == "DIFFERENT"
    assert "step 5: row 1, codebook 2, frame 3" in row.note and "not so near" in row.note


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_a_decision_that_was_nearer_than_rounding_is_a_near_tie(kind: str, folder: Path, golden: Recording) -> None:
    """The logits of the other side are moved by rounding, until one of its codes comes out otherwise."""
    theirs = generated(golden, kind)
    logits, codes = theirs[f"{kind}.logits"], theirs[f"{kind}.codes"]
    b, k, t = 1, 1, 4
    step = t + golden.inputs.delays[k]
    noise = torch.zeros(256, dtype=torch.double)
    if kind == "sampled":
        generator = torch.Generator().manual_seed(golden.inputs.sampling_seed)
        for _ in range(step + 1):
            drawn = torch.empty(2 * 4, 256).exponential_(generator=generator)
        noise = drawn[b * 4 + k].double().log()
    scores = logits[b, k, t].double() - noise
    allowed = logits[b, k, t].double().topk(50).indices if kind == "sampled" else torch.arange(256)
    best, second = (int(allowed[i]) for i in scores[allowed].topk(2).indices)
    assert best == codes[b, k, t]  # so torch draws
    mine = {f"{kind}.logits": logits.clone(), f"{kind}.codes": codes.clone()}
    logits[b, k, t, second] += scores[best] - scores[second] - 1e-5
    mine[f"{kind}.logits"][b, k, t, second] = logits[b, k, t, second] + 2e-5
    mine[f"{kind}.codes"][b, k, t] = second
    report = compare(mine, theirs, golden.inputs)
    assert [row.verdict for row in report.rows] == ["rounding", "near tie"]
    assert report.agree and "nearer" in report.rows[1].note


def test_a_code_that_its_own_logits_do_not_explain_differs(golden: Recording) -> None:
    changed = generated(golden, "greedy")
    changed["greedy.codes"][0, 0, 0] = (changed["greedy.codes"][0, 0, 0] + 1) % 256
    report = compare(golden, changed, golden.inputs)
    assert report.rows[1].verdict == "DIFFERENT" and "do not explain" in report.rows[1].note


# Recordings


def test_a_recording_says_what_it_holds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "golden.safetensors"
    assert main(["record", str(folder), "-o", str(file), "--frames", str(FRAMES)]) == 0
    assert "stages" in capsys.readouterr().out
    opened = Recording.open(file)
    assert stems(opened.stages) == STAGES.keys()
    c = MusicGen.from_pretrained(folder).decoder.config
    sizes = {"B": 2, "L": opened.inputs.ids.shape[1], "E": c.width, "E_text": c.text_width, "K": 4, "T": FRAMES}
    sizes |= {
        "S": FRAMES + 3,
        "1+S": FRAMES + 4,
        "2*B": 4,
        "1": 1,
        "V": 256,
        "V_codec": 256,
        "Z": 16,
        "C": 1,
        "C_codec": 1,
    }
    sizes |= {"K_codec": 4, "N": FRAMES * tiny.HOP}
    for name, tensor in opened.stages.items():
        axes, what = described(name)
        assert tuple(tensor.shape) == tuple(sizes[axis] for axis in axes.split()), name
        assert what
    assert opened.about["dtype"] == "float32" and opened.inputs.captions[1] == "fast drums"


def test_a_recording_equals_itself_to_the_bit(folder: Path, tmp_path: Path) -> None:
    made = record(folder, frames=FRAMES)
    made.save(tmp_path / "a")
    report = compare(Recording.open(tmp_path / "a"), made)
    assert {row.verdict for row in report.rows} == {"equal"}
    assert run(folder, "--against", tmp_path / "a") == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_recording_finds_what_another_dtype_changes(folder: Path, tmp_path: Path) -> None:
    record(folder, frames=FRAMES).save(tmp_path / "a")
    half = record(folder, inputs=Recording.open(tmp_path / "a").inputs, dtype=torch.bfloat16)
    report = compare(half, Recording.open(tmp_path / "a"))
    logits = next(row for row in report.rows if row.stage == "decoder.logits")
    assert 1e-4 < logits.largest / logits.scale < 0.1 and logits.verdict == "rounding"
    assert compare(half, Recording.open(tmp_path / "a"), tolerance=1e-5).first is not None
    # Guided logits are float32 on both sides, and what they were made of is not.
    assert report.agree and {row.allowed for row in report.rows} == {0.0, ROUNDING[torch.bfloat16]}
    guided = half.stages["guided.logits"]
    half.stages["guided.logits"] = guided * 0.8
    assert guided.dtype == torch.float32
    first = compare(half, Recording.open(tmp_path / "a")).first
    assert first is not None and first.stage == "guided.logits"


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"PK\x03\x04", b"\xff" * 40], ids=["empty", "bare", "zip", "noise"]
)
def test_what_is_no_recording_is_refused(
    content: bytes, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(content)
    assert run(folder, "--against", tmp_path / "a") == 2
    assert "not a recording" in capsys.readouterr().err


def test_inputs_of_other_sizes_are_refused(folder: Path, stereo: Path, tmp_path: Path) -> None:
    made = record(stereo, frames=2)
    with pytest.raises(ValueError, match="the inputs are those of a model of other sizes"):
        record(folder, inputs=made.inputs)
    with pytest.raises(ValueError, match=r"different inputs: .*codes"):
        compare(made, record(folder, frames=2))
    tiny.codec(tiny.codec_config(4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="those of an EnCodec alone"):
        record(folder, inputs=record(tmp_path, frames=2).inputs)


def test_bad_arguments_are_refused(folder: Path, golden: Recording, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames must be 1 or more, got 0"):
        record(folder, frames=0)
    for wrong in (-1.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance must be 0 or more and below 1"):
            compare(golden, golden, tolerance=wrong)
    with pytest.raises(ValueError, match="no stage in common"):
        compare(golden, {"something": torch.zeros(1)})
    assert main(["record", str(folder), "-o", str(tmp_path / "none" / "file")]) == 2
    assert run(folder, "--against", tmp_path / "none") == 2


def test_without_transformers_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run(folder) == 2
    assert "pip install transformers" in capsys.readouterr().err


def test_without_audiocraft_it_says_how_to_run_it_elsewhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--against", "audiocraft") == 2
    told = capsys.readouterr().err
    script = re.search(r"run (\S+of_audiocraft\.py)", told)
    assert script and Path(script[1]).is_file()


@pytest.mark.parametrize("fails", [False, True])
def test_audiocraft_runs_in_a_process_of_its_own(
    fails: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own package stands in for audiocraft's: it finds release and inputs, and what it writes is compared."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import sys\nfrom musicgen_ref.parity import Recording, record\n"
        f"if {fails}: sys.exit('no T5 here')\n"
        "record('.', inputs=Recording.open(sys.argv[1]).inputs).save(sys.argv[3])\n"
    )
    tiny.musicgen_of(64, decoder={"ffn_dim": 128}).save_pretrained(tmp_path / "model")
    monkeypatch.setattr("musicgen_ref.parity.recording.find_spec", lambda name: name)
    monkeypatch.setattr("musicgen_ref.parity.of_audiocraft.__file__", str(stand_in))
    assert run(tmp_path / "model", "--against", "audiocraft") == (2 if fails else 0)
    told = capsys.readouterr()
    if fails:
        assert "no T5 here" in told.err
    else:
        # Not to the bit: the other process may have another number of threads.
        assert re.search(r"No stage differs by more than rounding; \d\d of 2\d are equal", told.out)


def test_an_encodec_alone_is_compared_with_audiocraft_in_the_layout_that_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import sys\nfrom musicgen_ref.parity import Recording, record\n"
        "record('.', inputs=Recording.open(sys.argv[1]).inputs).save(sys.argv[3])\n"
    )
    tiny.codec(tiny.codec_config(4)).save_pretrained(tmp_path / "codec")
    to_audiocraft(tmp_path / "codec", tmp_path / "release")
    monkeypatch.setattr("musicgen_ref.parity.recording.find_spec", lambda name: name)
    monkeypatch.setattr("musicgen_ref.parity.of_audiocraft.__file__", str(stand_in))
    assert run(tmp_path / "codec", "--against", "audiocraft") == 2
    assert "an EnCodec in its own layout alone: convert it first" in capsys.readouterr().err
    assert run(tmp_path / "release", "--against", "audiocraft") == 0
    # Not all to the bit: of another process memory lies otherwise, and sums over it are taken in another order.
    assert "No stage differs by more than rounding; " in capsys.readouterr().out


def test_an_adapter_is_merged_for_both_sides(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that lies beside is refused without a word about it, as wherever a checkpoint is opened."""
    shutil.copytree(folder, tmp_path / "model")
    layer = "base_model.model.decoder.model.decoder.layers.1.fc1"
    low_rank = {f"{layer}.lora_A.weight": tiny.noise(2, 32), f"{layer}.lora_B.weight": tiny.noise(48, 2)}
    save_file(low_rank, tmp_path / "model" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc1"]}
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps(settings))
    assert run(tmp_path / "model") == 2
    assert "adapter" in capsys.readouterr().err
    made = {}
    for choice in ("--adapter", "--no-adapter"):
        assert run(tmp_path / "model", choice, "--json", tmp_path / choice) == 0
        made[choice] = json.loads((tmp_path / choice).read_text())
        assert "of a copy in its layout" in made[choice]["theirs"]["by"]
    scales = [{row["stage"]: row["scale"] for row in each["stages"]} for each in made.values()]
    assert scales[0]["decoder.logits"] != scales[1]["decoder.logits"]


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_what_is_no_file_is_written_to_and_not_replaced(option: str, folder: Path, tmp_path: Path) -> None:
    """Root could replace a device, or where a link leads."""
    golden = tmp_path / "golden"
    record(folder, frames=2).save(golden)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert run(folder, "--against", golden, option, tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").stat().st_size > 1000
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert run(folder, "--against", golden, option, tmp_path / "pipe") == 0
    assert os.read(reader, 10) and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)
    assert run(folder, "--against", golden, option, tmp_path) == 2


# A third implementation


def test_functions_of_the_inputs_take_part(folder: Path, golden: Recording) -> None:
    """Memory by numpy, right and wrong."""
    own = MusicGen.from_pretrained(folder)
    assert own.decoder.text_proj is not None
    weight, bias = (p.detach().numpy() for p in (own.decoder.text_proj.weight, own.decoder.text_proj.bias))
    states = golden.stages["text.block.1"].numpy()

    def memory(given: Inputs) -> np.ndarray:
        assert given.mask is not None
        return (states @ weight.T + bias) * given.mask.numpy()[..., None]

    report = compare({"memory": memory}, golden)
    assert report.agree and len(report.missing) == len(golden.stages) - 1
    assert compare({"memory": lambda given: memory(given) + 0.01}, golden).first is not None
    with pytest.raises(ValueError, match="inputs must be given"):
        compare({"memory": memory}, {"memory": golden.stages["memory"]})


def test_what_stops_halfway_is_compared_up_to_there(golden: Recording) -> None:
    def broken(given: Inputs) -> Tensor:
        raise RuntimeError("no such kernel")

    report = compare({"memory": golden.stages["memory"], "decoder.logits": broken}, golden)
    assert [row.verdict for row in report.rows] == ["equal", "DIFFERENT"]
    assert report.rows[1].note == "failed: RuntimeError: no such kernel"
    stopped = golden._replace(stages={"memory": golden.stages["memory"]}, stopped="RuntimeError: no such kernel")
    report = compare(stopped, golden)
    assert not report.agree and report.first is None
    assert report.conclusion() == "Ours stopped after memory: RuntimeError: no such kernel."


def test_shapes_and_nan_differ(golden: Recording) -> None:
    memory = golden.stages["memory"]
    longer = compare({"memory": memory[:1]}, golden).rows[0]
    assert longer.verdict == "DIFFERENT" and "shapes differ: (1, " in longer.note
    broken = memory.clone()
    broken[0, 0, 0] = torch.nan
    report = compare({"memory": broken}, golden)
    assert report.rows[0].verdict == "DIFFERENT"
    json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(name))
    undecided = golden.stages["greedy.logits"].clone()
    undecided[0, 0, 0] = torch.nan
    assert compare({"greedy.logits": undecided}, {"greedy.logits": undecided.clone()}).rows[0].verdict == "equal"


def test_other_inputs_are_told(golden: Recording) -> None:
    other = Recording(replace(golden.inputs, sampling_seed=1), golden.stages, golden.about)
    with pytest.raises(ValueError, match="different inputs: sampling_seed"):
        compare(golden, other)


def test_the_command_imports_transformers_only_when_it_is_needed() -> None:
    code = "import sys, musicgen_ref.__main__; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
