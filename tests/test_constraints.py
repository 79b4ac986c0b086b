"""The two constraints files describe one set of versions, but for what transformers 4 needs older."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent


def pins(path: Path) -> dict[str, str]:
    """Version by package name, from the ``name==version; marker`` lines of a constraints file."""
    lines = [line.partition(";")[0].strip() for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines if line)


def test_the_two_environments_differ_in_transformers_and_what_it_forces() -> None:
    main, v4 = pins(TESTS.parent / "constraints.txt"), pins(TESTS / "v4" / "constraints.txt")
    differing = {name for name in main.keys() & v4.keys() if main[name] != v4[name]}
    assert differing == {"transformers", "tokenizers", "huggingface-hub"}
    assert (main["transformers"], v4["transformers"]) == ("5.24.0", "4.57.6")


def test_every_runtime_dependency_is_pinned_in_both() -> None:
    for path in (TESTS.parent / "constraints.txt", TESTS / "v4" / "constraints.txt"):
        assert {"torch", "numpy", "sentencepiece", "safetensors", "einops", "pytest"} <= pins(path).keys()
