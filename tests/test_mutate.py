"""The mutation run: what it draws, which tests it chooses, and whether it knows a fault that no test notices."""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="comes with the extra `mutation`")

from cosmic_ray.mutating import mutate_code

from tests import mutate

SOURCE = '''"""Of a toy."""

SIZE = 3


def scaled(x: "int | None", scale: int = 2, *, offset: int = 0) -> "int | None":
    if x is None or scale < 0:
        raise ValueError("no")
    return x * scale + offset


def both(x: int) -> int:
    return scaled(x, offset=SIZE) - scaled(x, offset=0)


if __name__ == "__main__":
    print(1 + 1)
'''
TEST = """from musicgen_ref.toy import both, scaled


def test_scaled():
    assert scaled(3) == 6


def test_both():
    assert both(2) == 3
"""


@pytest.mark.parametrize("name", mutate.OUR_OPERATORS)
def test_our_operators_do_what_their_examples_say(name: str) -> None:
    for example in mutate.operator(name).examples():
        assert mutate_code(example.pre_mutation_code, mutate.operator(name), 0) == example.post_mutation_code


def test_a_draw_is_that_of_its_seed_and_every_place_has_one_before_any_has_two() -> None:
    drawn = mutate.draw(SOURCE, 12, "0")
    assert drawn == mutate.draw(SOURCE, 12, "0") != mutate.draw(SOURCE, 12, "1")
    assert len({(fault.line, fault.column) for fault in drawn}) == 12
    everything = mutate.draw(SOURCE, 1000, "0")
    assert set(drawn) < set(everything)
    texts = [mutate.planted(SOURCE, fault) for fault in everything]
    assert None not in texts and SOURCE not in texts
    assert {3, 6, 7, 8, 9, 13} == {fault.line for fault in everything}  # no docstring, no `if __name__`
    assert not [fault for fault in everything if "BitOr" in fault.operator]  # an annotation


def test_a_fault_is_found_again_where_its_lines_have_moved() -> None:
    for fault in mutate.draw(SOURCE, 12, "0"):
        changed = mutate.planted(SOURCE, fault)
        assert changed is not None
        entry = {**vars(fault), "diff": mutate.difference(SOURCE, changed)}
        moved = mutate.again("\n\n" + SOURCE, entry)
        assert moved is not None
        assert (moved.line, mutate.planted("\n\n" + SOURCE, moved)) == (fault.line + 2, "\n\n" + changed)
        assert mutate.again("x = 1\n", entry) is None


def test_the_tests_of_a_line_run_it_or_what_lies_around_it_or_the_file() -> None:
    tests = ("a.py::both", "a.py::scaled", "a.py::again", "a.py::elsewhere")
    both, scaled, again, elsewhere = tests
    measured = mutate.Measured(
        tests=dict.fromkeys(tests, 1.0),
        contexts=["", f"{both}|call", f"{scaled}|call", f"{again}|setup"],
        shared={again: ["a.py::made"], elsewhere: ["a.py::made"]},
        sources={"toy.py": SOURCE},
        lines={"toy.py": {"3": [0, 1], "6": [0], "7": [1, 2], "9": [2], "13": [3]}},
    )
    # A line more in front: the lines have moved since they were measured.
    coverage = mutate.Coverage("toy.py", "#\n" + SOURCE, {"a.py": measured}, [])
    everything = set(tests)
    assert coverage.tests(10, []) == [{scaled}, {both, scaled}]
    assert coverage.tests(14, []) == [{again, elsewhere}, {again, elsewhere}]  # they share what its setup made
    assert coverage.tests(4, []) == [{both}, {both}, everything]  # importing runs it, and a test that imports anew
    assert coverage.tests(7, []) == [set(), {both, scaled}, everything]
    assert coverage.tests(9, ["a.py"]) == [everything, set()]  # no test that is seen


def test_the_likeliest_tests_are_chosen_first_and_run_file_by_file() -> None:
    seconds = {"b.py::slow": 5.0, "b.py::fast": 1.0, "a.py::x": 3.0, "c.py::y": 2.0, "c.py::far": 0.1}
    tiers = [{"b.py::slow", "b.py::fast", "a.py::x", "c.py::y"}, {"c.py::far"}]
    everything = [["b.py::fast", "b.py::slow"], ["c.py::far", "c.py::y"], ["a.py::x"]]
    assert mutate.chosen(tiers, seconds, ["b.py"], 20) == everything
    assert mutate.chosen(tiers, seconds, [], 4) == [["b.py::fast"], ["c.py::far", "c.py::y"]]


def test_planted_faults_are_noticed_where_a_test_fails_and_survive_where_none_does(tmp_path: Path) -> None:
    (tmp_path / "repository" / "musicgen_ref").mkdir(parents=True)
    for name, text in (
        ("musicgen_ref/__init__.py", ""), ("weights_convert.py", ""), ("musicgen_ref/toy.py", SOURCE),
        ("test_toy.py", TEST), ("pyproject.toml", "[tool.pytest.ini_options]\n"),
    ):  # fmt: skip
        (tmp_path / "repository" / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path / "repository", check=True)
    tree = mutate.copy_tree(tmp_path / "repository", tmp_path)
    mutate.prepare([tree], ["test_toy.py"])
    (tmp_path / "kept").mkdir()
    measured = mutate.measured_files([tree], ["test_toy.py"], tmp_path / "kept")
    assert measured["test_toy.py"].tests.keys() == {"test_toy.py::test_scaled", "test_toy.py::test_both"}

    drop, negative, table = (
        next(fault for fault in mutate.all_faults(SOURCE) if (fault.operator, fault.line) == wanted)
        for wanted in (("ours/DropArgument", 13), ("ours/DropStatement", 8), ("core/NumberReplacer", 3))
    )
    wanted = {"musicgen_ref/toy.py": [drop, negative, table]}
    found = {
        entry["line"]: (entry["outcome"], entry.get("by"))
        for _, entry in mutate.plant(wanted, [tree], measured, limit=60, budget=60)
    }
    assert found == {
        13: ("noticed", "test_toy.py::test_both"),
        8: ("survived", None),
        3: ("noticed", "test_toy.py::test_both"),
    }
    assert (tree / "musicgen_ref" / "toy.py").read_text() == SOURCE
