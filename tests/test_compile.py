"""The compiled decode step: the codes of the plain one, how often it runs, and what it refuses.

Inductor makes C++ of it, for which it needs a C++ compiler and Python's headers, and minutes. What is compiled, and
when that is called, shows without.
"""

import copy
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.__main__ import main
from musicgen_ref.fast import compile as compiling

from . import tiny

TEXT = "a fast arpeggio in A minor on a plucked string with busy drums"


def can_compile() -> bool:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()


needs_compiler = pytest.mark.skipif(not can_compile(), reason="no C++ compiler, or no Python.h")


def count(run: Callable[[], object]) -> int:
    """How many compiled calls run() makes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.name.startswith("Torch-Compiled Region") for event in profile.events())


@needs_compiler
def test_a_trained_model_makes_the_same_codes_compiled(demo: MusicGen) -> None:
    lengths, texts = (20, 75), (TEXT, "slow pad")
    plain = [
        demo.generate([text], GenerationOptions(frames=frames, greedy=True), return_logits=True)
        for frames, text in zip(lengths, texts, strict=True)
    ]
    assert demo.compile() is demo
    for frames, text, expected in zip(lengths, texts, plain, strict=True):
        options = GenerationOptions(frames=frames, greedy=True)
        got = demo.generate([text], options, return_logits=True)
        assert torch.equal(got.codes, expected.codes)
        # Sums in another order: some 1e-5 of logits of size 10, which a wrong weight would move by 1.
        assert torch.allclose(got.logits, expected.logits, atol=1e-3, rtol=0)
        steps = frames + max(demo.delays)
        # The first step and the last, which fills the cache, have shapes of their own.
        assert count(lambda options=options, text=text: demo.generate([text], options)) == steps - 2


@pytest.fixture
def demo() -> MusicGen:
    return MusicGen.from_pretrained("demo")


def texts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of texts of these lengths."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(2, tiny.VOCAB, mask.shape, generator=generator) * mask, mask


# What to run, and how many calls of it are compiled: by inductor, to which the first step and the last, which fills the
# cache, are of shapes of their own; and where what was traced runs as it is, and only a prompt is of another.
Case = tuple[Callable[[], torch.Tensor], int, int]


def cases(model: MusicGen) -> dict[str, Case]:
    """For a model that is compiled for two texts without guidance."""
    options = GenerationOptions(frames=12, greedy=True, guidance_scale=1)
    steps = 12 + max(model.delays)
    prompt = torch.randint(0, tiny.CODES, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    guided = GenerationOptions(frames=12, greedy=True)
    return {
        "texts of two lengths": (lambda: model.generate(texts(7, 4), options).codes, steps - 2, steps),
        "texts of one length": (lambda: model.generate(texts(5, 5), options).codes, steps - 2, steps),
        "after a prompt": (
            lambda: model.generate(texts(7, 4), options, prompt=prompt).codes,
            steps - 2 - 5,
            steps - 1 - 5,
        ),
        "texts of one token": (lambda: model.generate(texts(1, 1), options).codes, 0, 0),
        "another batch": (lambda: model.generate(texts(7), options).codes, 0, 0),
        "with guidance": (lambda: model.generate(texts(7, 4), guided).codes, 0, 0),
        "no text": (lambda: model.generate(None, options).codes, 0, 0),
        "loss": (lambda: model.loss(prompt, texts(7, 4)).detach(), 0, 0),
    }


@needs_compiler
def test_what_was_not_compiled_runs_plain() -> None:
    model = tiny.ours(tiny.musicgen())
    plain = {name: run() for name, (run, *_) in cases(model).items()}
    model.compile(batch=2, guided=False)
    for name, (run, compiled, _) in cases(model).items():
        assert torch.equal(run(), plain[name]), name
        assert count(run) == compiled, name
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for head in twin.decoder.heads:
            head.weight.zero_()
    options = GenerationOptions(frames=12, greedy=True, guidance_scale=1)
    assert not twin.generate(texts(7, 4), options).codes.any(), "a copy is plain, and reads its own weights"


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Compiling ends before inductor, where a compiler would be needed: what was traced runs as it is. A list of
    inductor's settings, those of each graph that it would have been given."""
    seen: list[dict[str, object]] = []

    def inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        now = torch._inductor.config.get_config_copy()
        seen.append({name: now[name] for name in compiling.CPU})
        return graph.forward

    traced = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **named: traced(module, backend=inductor, **named))
    monkeypatch.setattr(compiling, "get_cpp_compiler", lambda: "c++")
    torch._dynamo.reset()
    return seen


def test_one_graph_serves_texts_of_any_length_and_all_else_runs_plain(graphs: list[dict[str, object]]) -> None:
    model = tiny.ours(tiny.musicgen())
    plain = {name: run() for name, (run, *_) in cases(model).items()}
    model.compile(batch=2, guided=False)
    for name, (run, _, traced) in cases(model).items():
        assert torch.equal(run(), plain[name]), name
        assert count(run) == traced, name
    products = {"max_autotune": True, "max_autotune_gemm_backends": "CPP", "cpp.enable_concat_linear": True}
    assert graphs == [{"freezing": True} | products], "weights are packed for products of a few rows"


@pytest.mark.parametrize("batch, guided", [(1, True), (2, True)], ids=str)
def test_what_is_served_is_the_batch_and_the_guidance_asked_for(
    batch: int, guided: bool, graphs: list[dict[str, object]]
) -> None:
    model = tiny.ours(tiny.musicgen())
    (model.compile() if (batch, guided) == (1, True) else model.compile(batch, guided))
    served = set()
    for texts_ in (texts(7), texts(7, 4), texts(3, 7, 4)):
        for scale in (1, 3):
            options = GenerationOptions(frames=3, greedy=True, guidance_scale=scale)
            made = count(lambda texts_=texts_, options=options: model.generate(texts_, options))
            assert made in (0, 3 + max(model.delays))
            if made:
                served.add((len(texts_[0]), scale == 3))
    assert served == {(batch, guided)} and len(graphs) == 1


@pytest.mark.usefixtures("graphs")
def test_a_step_that_cannot_be_one_graph_is_an_error_and_not_two() -> None:
    model = tiny.ours(tiny.musicgen())
    model.decoder.norm.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        model.compile()


def test_what_is_for_cpus_alone_is_set_on_cpus_alone(graphs: list[dict[str, object]]) -> None:
    """Tensors without values stand for those of another device: all must be there, and inductor is left as it is."""
    model = tiny.ours(tiny.musicgen()).to("meta")
    model.compile(batch=2)
    unchanged = torch._inductor.config.get_config_copy()
    assert graphs == [{name: unchanged[name] for name in compiling.CPU}]


@needs_compiler
def test_the_command_line_compiles_and_says_how_long_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", TEXT, "--seed", "3", "--seconds", "1", "--guidance", "1"]
    assert main([*arguments, "-o", str(tmp_path / "plain.wav")]) == 0
    assert main([*arguments, "-o", str(tmp_path / "compiled.wav"), "--compile"]) == 0
    assert "compiled in " in capsys.readouterr().err
    assert (tmp_path / "plain.wav").read_bytes() == (tmp_path / "compiled.wav").read_bytes()


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="got int8"):
        MusicGen.from_pretrained("demo", dtype="int8").compile()
    model = tiny.ours(tiny.musicgen())
    for batch in (0, True, 1.0):
        with pytest.raises(ValueError, match="batch must be"):
            model.compile(batch)  # type: ignore[arg-type]
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(FileNotFoundError, match=r"install g\+\+"):
        model.compile()
    output = tmp_path / "out.wav"
    assert main(["generate", TEXT, "--compile", "-o", str(output)]) == 2
    assert "install g++" in capsys.readouterr().err and not output.exists()
