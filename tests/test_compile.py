"""The compiled decode step: the codes of the plain one, how often it runs, and what it refuses.

Inductor makes C++ of it, so that all but the refusals needs a C++ compiler and Python's headers.
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
from musicgen_ref.model import Text

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


def texts(*lengths: int) -> Text:
    """Ids and mask of texts of these lengths."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(2, tiny.VOCAB, mask.shape, generator=generator) * mask, mask


@needs_compiler
def test_what_was_not_compiled_runs_plain() -> None:
    model = tiny.ours(tiny.musicgen())
    options = GenerationOptions(frames=12, greedy=True, guidance_scale=1)
    steps = 12 + max(model.delays)
    prompt = torch.randint(0, tiny.CODES, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    guided = GenerationOptions(frames=12, greedy=True)
    cases: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        "texts of two lengths": (steps - 2, lambda: model.generate(texts(7, 4), options).codes),
        "texts of one length": (steps - 2, lambda: model.generate(texts(5, 5), options).codes),
        "after a prompt": (steps - 2 - 5, lambda: model.generate(texts(7, 4), options, prompt=prompt).codes),
        "texts of one token": (0, lambda: model.generate(texts(1, 1), options).codes),
        "another batch": (0, lambda: model.generate(texts(7), options).codes),
        "with guidance": (0, lambda: model.generate(texts(7, 4), guided).codes),
        "no text": (0, lambda: model.generate(None, options).codes),
        "loss": (0, lambda: model.loss(prompt, texts(7, 4)).detach()),
    }
    plain = {name: run() for name, (_, run) in cases.items()}
    model.compile(batch=2, guided=False)
    for name, (compiled, run) in cases.items():
        assert torch.equal(run(), plain[name]), name
        assert count(run) == compiled, name
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.decoder.heads.weight.zero_()
    assert not twin.generate(texts(7, 4), options).codes.any(), "a copy is plain, and reads its own weights"


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
