"""examples/export.py, and what it stands on: plain modules are written down by torch.export, torch.jit.trace and ONNX
so that the graphs hold for other batches, lengths and numbers than those of the example inputs."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
import torch

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
from examples import export
from musicgen_ref import GenerationOptions, MusicGen

from . import tiny

TEXT = "a calm piano with soft rain"
NAMES = ("text_encoder", "decoder_step", "codec_encoder", "codec_decoder")


class Exported(NamedTuple):
    """What the example wrote of a tiny model, what it said, and the model."""

    folder: Path
    told: str
    model: MusicGen
    files: export.Onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A stereo model; not to be written to."""
    path = tiny.complete(tmp_path_factory.mktemp("model") / "model", channels=2, codes=64)
    folder = path.parent / "out"
    told = io.StringIO()
    with contextlib.redirect_stdout(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export.main([str(path), "--out", str(folder), "--pt2", "--text", TEXT, "--seconds", "0.5"])
    return Exported(folder, told.getvalue(), MusicGen.from_pretrained(path, fast=False), export.Onnx(folder))


def inputs(
    model: MusicGen, name: str, batch: int, length: int, past: int = 3, steps: int = 2
) -> dict[str, torch.Tensor]:
    """Random inputs of a graph, of any size: text of `length` tokens, audio or codes of `length` frames."""
    c, generator = model.decoder.config, torch.Generator().manual_seed(length)
    mask = (torch.arange(length) < length - 2 * torch.arange(batch)[:, None] % length).long()
    if name == "text_encoder":
        ids = torch.randint(model.text_encoder.config.vocab_size, (batch, length), generator=generator)
        return {"ids": ids, "mask": mask}
    if name == "decoder_step":
        shapes = {"keys": past, "values": past, "cross_keys": length, "cross_values": length}
        cache = {
            key: torch.randn(c.layers, batch, c.heads, n, c.width // c.heads, generator=generator)
            for key, n in shapes.items()
        }
        codes = torch.randint(c.vocab_size + 1, (batch, c.codebooks, steps), generator=generator)
        return {"codes": codes, **cache, "mask": mask}
    if name == "codec_encoder":
        samples = length * model.codec.config.hop - 3  # the last frame is filled up
        return {"audio": torch.rand(batch, c.channels, samples, generator=generator) * 2 - 1}
    return {"codes": torch.randint(c.vocab_size, (batch, c.codebooks, length), generator=generator)}


# Other sizes than those of the examples, among them 1 and an empty cache.
SIZES = [
    *(("text_encoder", {"batch": batch, "length": length}) for batch, length in ((1, 1), (3, 130))),
    ("decoder_step", {"batch": 1, "length": 1, "past": 0, "steps": 1}),
    ("decoder_step", {"batch": 3, "length": 6, "past": 0, "steps": 5}),
    ("decoder_step", {"batch": 4, "length": 9, "past": 11, "steps": 1}),
    ("decoder_step", {"batch": 1, "length": 9, "past": 7, "steps": 4}),
    *((name, {"batch": 1, "length": 31}) for name in ("codec_encoder", "codec_decoder")),
    ("codec_encoder", {"batch": 3, "length": 5}),
    ("codec_decoder", {"batch": 3, "length": 4}),
]


@torch.no_grad()
def plain(model: MusicGen, name: str, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    got = export.graphs(model)[name].module(**given)
    return [got] if isinstance(got, torch.Tensor) else list(got)


def assert_close(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Codes equal, numbers within rounding: sums may be taken in another order."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=1e-4 if one.is_floating_point() else 0, rtol=1e-5)


def test_the_example_writes_the_files_and_makes_the_models_own_codes_of_them(exported: Exported) -> None:
    kinds = [file for name in NAMES for file in (f"{name}.onnx", f"{name}.pt2")]
    assert {*kinds, "settings.json", "clip.wav"} <= {file.name for file in exported.folder.iterdir()}
    frames = exported.model.frames(0.5)
    assert exported.told == f"{frames} of {frames} frames are those of the model itself\n"
    clip, rate = soundfile.read(exported.folder / "clip.wav", always_2d=True)
    assert (clip.shape, rate) == ((frames * tiny.HOP, 2), tiny.RATE)
    assert clip.std() > 0.01


@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_onnxruntime_computes_what_the_model_does(exported: Exported, name: str, sizes: dict[str, int]) -> None:
    given = inputs(exported.model, name, **sizes)
    got = exported.files.run(name, **{key: tensor.numpy() for key, tensor in given.items()})
    assert_close([torch.from_numpy(array) for array in got], plain(exported.model, name, given))


@pytest.fixture(scope="module")
def programs(exported: Exported) -> dict[str, torch.nn.Module]:
    # torch adds a guard against a single row where it flattens the codec encoder's LSTM, which computes right without.
    return {
        name: torch.export.load(exported.folder / f"{name}.pt2").module(check_guards=name != "codec_encoder")
        for name in NAMES
    }


@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_an_exported_program_computes_what_the_model_does(
    exported: Exported, programs: dict[str, torch.nn.Module], name: str, sizes: dict[str, int]
) -> None:
    given = inputs(exported.model, name, **sizes)
    with torch.no_grad():
        got = programs[name](**given)
    assert_close([got] if isinstance(got, torch.Tensor) else list(got), plain(exported.model, name, given))


@pytest.mark.parametrize("frames", [1, 20])
def test_a_batch_with_a_row_without_text_has_the_models_greedy_codes(exported: Exported, frames: int) -> None:
    ids, mask = tiny.text(3, 9)
    mask[1] = 0
    own = exported.model.generate((ids, mask), GenerationOptions(frames=frames, greedy=True, guidance_scale=2.0))
    codes = exported.files.generate(ids.numpy(), mask.numpy(), frames, guidance=2.0)
    assert torch.equal(torch.from_numpy(codes), own.codes)


def test_codes_of_the_files_are_those_of_the_model_there_and_back(exported: Exported) -> None:
    model, audio = exported.model, tiny.noise(2, 2, 20 * tiny.HOP + 1)
    codes = exported.files.encode(audio.numpy())
    assert torch.equal(torch.from_numpy(codes), model.encode(audio, tiny.RATE))
    assert len({*codes.flatten().tolist()}) > 10
    torch.testing.assert_close(torch.from_numpy(exported.files.decode(codes)), model.decode(torch.from_numpy(codes)))


@pytest.fixture(scope="module", params=["tiny", "demo"])
def traced(request: pytest.FixtureRequest) -> tuple[MusicGen, dict[str, torch.nn.Module]]:
    """A model, and its four graphs by torch.jit.trace, which runs each once more and compares (check_trace)."""
    tiny_one = request.param == "tiny"
    model = tiny.ours_in_memory(tiny.musicgen_of(64)) if tiny_one else MusicGen.from_pretrained("demo", fast=False)
    traced = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every comparison of sizes, and that it is deprecated
        for name, graph in export.graphs(model).items():
            traced[name] = torch.jit.trace(graph.module, example_kwarg_inputs=graph.inputs, check_trace=True)
    return model, traced


@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_a_traced_module_computes_what_the_model_does(
    traced: tuple[MusicGen, dict[str, torch.nn.Module]], name: str, sizes: dict[str, int]
) -> None:
    model, modules = traced
    given = inputs(model, name, **sizes)
    with torch.no_grad():
        got = modules[name](**given)
    assert_close([got] if isinstance(got, torch.Tensor) else list(got), plain(model, name, given))


def test_a_model_itself_is_traced_where_its_checks_would_read_codes_and_audio() -> None:
    """MusicGen.encode() and decode() look at the codes, too."""
    model = tiny.ours_in_memory(tiny.musicgen_of(64))

    class Both(torch.nn.Module):
        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return model.decode(model.encode(audio, tiny.RATE))

    graph = export.graphs(model)["codec_encoder"]
    with export.register_lstm_while_loop_decomposition():
        program = torch.export.export(Both(), (), graph.inputs, dynamic_shapes=graph.dynamic)
    audio = tiny.noise(3, 1, 13 * tiny.HOP + 5)
    torch.testing.assert_close(program.module()(audio=audio), Both()(audio))


@pytest.mark.parametrize("arguments", [["--seconds", "0"], []])
def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^export: [^\n]+$"):
        export.main([str("demo" if arguments else tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_makes_its_own_codes_in_onnxruntime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export.main(["demo", "--out", str(tmp_path / "out"), "--text", TEXT, "--seconds", "2"])
    assert capsys.readouterr().out == "100 of 100 frames are those of the model itself\n"
