"""Mutation run: plant faults in the source one at a time; does a test fail for each?

`python -m tests.mutate musicgen_ref/delay.py` draws 25 faults, always the same of one seed, plants each in a copy of
the tree, runs the tests that reach it until one fails, prints a table and writes a report; CONTRIBUTING.md says how to
read it. Without a file: every file of the packages. It needs the extra `mutation`.

The faults are those of cosmic-ray, and two of our own for what calls and statements do: a keyword argument is not
passed, a statement is not run. One place is not drawn twice before every place was drawn once, so that a place with
eleven operators in its stead weighs no more than one with two. Not drawn:
- what cosmic-ray has no argument-free form of: variables replaced and inserted, which draws at random by itself;
- shifts and bit operators for + - * / // % **: on the floats and tensors here they raise at once, and any test notices;
- `is` for `==`, and the like: small numbers and interned strings are identical where they are equal;
- annotations, which nothing runs, and `if __name__ == "__main__"`;
- what does not compile, or compiles to the same.

Which tests reach a fault is measured once for each test file, and again when that file changes. A changed source needs
no new measurement: its lines are matched with those of the source that was measured.
"""

import argparse
import ast
import difflib
import functools
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("musicgen_ref", "weights_convert")
# Imported once, before the first fork: what the tests need and takes seconds. Nothing of the tree, which differs.
SLOW_IMPORTS = (
    "torch", "numpy", "scipy.signal", "sentencepiece", "safetensors.torch", "einops", "yaml", "pytest", "hypothesis",
    "coverage", "transformers", "transformers.models.musicgen.modeling_musicgen", "transformers.models.t5.modeling_t5",
    "transformers.models.encodec.modeling_encodec",
)  # fmt: skip
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
BITS = ("RShift", "LShift", "BitOr", "BitAnd", "BitXor")
MEMORY = 8 << 30  # bytes that one run of tests may take: a fault in a size must not take the machine down

Position = tuple[int, int]  # line from 1, column from 0


# Faults


class DropArgument(Operator):
    """A keyword argument is not passed: f(x, scale=2) becomes f(x)."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        for argument in self._arguments(node):
            yield argument.start_pos, argument.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        at = node.children.index(self._arguments(node)[index])
        # With the comma behind it, or that before it where it is the last.
        last = at + 1 == len(node.children)
        drop = {at} if node.type == "trailer" else {at, at - 1 if last else at + 1}
        node.children = [child for i, child in enumerate(node.children) if i not in drop]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example("f(x, scale=2)", "f(x)"), Example("f(scale=2, *x)", "f( *x)"), Example("f(x=1)", "f()")

    @staticmethod
    def _arguments(node: Any) -> list[Any]:
        if node.type not in ("arglist", "trailer"):
            return []
        arguments = [child for child in node.children if child.type == "argument"]
        return [argument for argument in arguments if argument.children[1].get_code().strip() == "="]


class DropStatement(Operator):
    """A statement that is there for its effect is not run: a call, a raise, an assignment to a part of something."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type == "simple_stmt" and self._has_an_effect(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[0] = parso.parse(node.children[0].get_first_leaf().prefix + "pass")
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return tuple(Example(f"{statement}\n", "pass\n") for statement in ("f(x)", "raise x", "x[0] = 1", "x += 1"))

    @staticmethod
    def _has_an_effect(statement: Any) -> bool:
        if statement.type == "expr_stmt":
            target, sign = statement.children[:2]
            return target.type == "atom_expr" or (sign.type == "operator" and sign.value != "=")
        return statement.type in ("raise_stmt", "atom_expr")


OUR_OPERATORS = {"ours/DropArgument": DropArgument, "ours/DropStatement": DropStatement}


@dataclass(frozen=True)
class Fault:
    """One mutation of a file, as the tool counts them: which of the places where the operator applies."""

    operator: str
    occurrence: int
    line: int
    column: int
    definition: str | None


def operator(name: str) -> Operator:
    return OUR_OPERATORS[name]() if name in OUR_OPERATORS else get_operator(name)()


def is_drawn(name: str) -> bool:
    """Whether faults of an operator are drawn; the module's docstring gives the reasons."""
    if name in OUR_OPERATORS:
        return True
    if get_operator(name).arguments() or name.endswith("/NoOp"):
        return False
    kind, _, change = name.rpartition("/")[2].partition("_")
    old, _, new = change.partition("_")
    if kind == "ReplaceBinaryOperator":
        return not (old in ARITHMETIC and new in BITS)
    if kind == "ReplaceComparisonOperator":
        return {old, new} == {"Is", "IsNot"} or not {old, new} & {"Is", "IsNot"}
    return True


def is_skipped(source: str) -> Callable[[int, int], bool]:
    """Whether a position, in characters, lies in code that no test can reach: annotations and `if __name__`."""
    lines = source.splitlines()
    spans = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
            parts = [node]
        spans += [part for part in parts if part is not None]

    def character(line: int, offset: int) -> Position:
        return line, len(lines[line - 1].encode()[:offset].decode())

    ranges = [
        (character(span.lineno, span.col_offset), character(span.end_lineno, span.end_col_offset)) for span in spans
    ]
    return lambda line, column: any(start <= (line, column) < end for start, end in ranges)


@functools.cache  # a replay asks for those of one file once for each fault
def all_faults(source: str) -> tuple[Fault, ...]:
    """Every fault of every drawn operator, in the tool's order; some of them do not compile."""
    nodes, skipped = list(ast_nodes(get_ast(source))), is_skipped(source)
    faults = []
    for name in (*operator_names(), *OUR_OPERATORS):
        if not is_drawn(name):
            continue
        positions = operator(name).mutation_positions
        places = [(node, start) for node in nodes for start, _ in positions(node)]
        for occurrence, (node, (line, column)) in enumerate(places):
            if not skipped(line, column):
                faults.append(Fault(name, occurrence, line, column, ASTQuery(node).get_definition_name()))
    return tuple(faults)


def planted(source: str, fault: Fault) -> str | None:
    """The source with the fault in it; None where it does not compile, or is the same program."""
    changed = mutate_code(source, operator(fault.operator), fault.occurrence)
    try:
        if changed is None or ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
            return None
        compile(changed, "planted", "exec")
    except SyntaxError:
        return None
    return changed


def draw(source: str, count: int, seed: str) -> list[Fault]:
    """`count` faults that compile, or all where there are fewer: at every place one before any place has two."""
    generator = random.Random(seed)
    places: dict[Position, list[Fault]] = {}
    for fault in all_faults(source):
        places.setdefault((fault.line, fault.column), []).append(fault)
    for faults in places.values():
        generator.shuffle(faults)
    waiting = deque(generator.sample(list(places.values()), len(places)))
    drawn: list[Fault] = []
    while waiting and len(drawn) < count:
        faults = waiting.popleft()
        while faults and planted(source, faults[-1]) is None:
            faults.pop()
        if faults:
            drawn.append(faults.pop())
            waiting.append(faults)
    return sorted(drawn, key=lambda fault: (fault.line, fault.column))


def difference(before: str, after: str) -> list[str]:
    """The lines that go, marked with "-", and those that come, with "+"."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[:2] not in ("--", "++", "@@")]


# The tree, and runs of its tests in forked processes


@dataclass(frozen=True)
class Task:
    """What one forked process does in a copy of the tree: `work` returns what JSON can hold."""

    work: Callable[[Path], dict[str, Any]]
    limit: float  # seconds of CPU time, and five times as many by the clock
    file: str = ""
    content: str = ""  # of the file, while the task runs
    about: Any = None  # for the caller


def copy_tree(root: Path, folder: Path) -> Path:
    """Copy what git tracks and what it does not ignore to folder/tree; ../shared is the same."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout.decode()
    tree = folder / "tree"
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tree / name)
    if (root.parent / "shared").is_dir():
        (folder / "shared").symlink_to(root.parent / "shared")
    return tree


def enter(tree: Path) -> None:
    """In a forked process: everything that is imported from now on, here and in subprocesses, is that of the tree."""
    log = os.open(tree.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    ours = {"tests", "conftest", *PACKAGES}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(tree)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    os.chdir(tree)


def start(task: Task, tree: Path) -> int:
    """Fork a process, in a group of its own, that performs a task; the id of both."""
    for name in ("result.json", "running"):
        (tree.parent / name).unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        enter(tree)
        # The kernel ends a loop; what waits for ever is left to the clock, which depends on what else runs.
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(task.limit), math.ceil(task.limit) + 1))
        (tree.parent / "result.json").write_text(json.dumps(task.work(tree)))
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


def end(tree: Path, process: int) -> None:
    """Kill what is left of a process and those that it started, and remove the files of its tests."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    shutil.rmtree(tree.parent / "tmp", ignore_errors=True)


def perform(tasks: Sequence[Task], trees: Sequence[Path]) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Each task and what it returned, in the order in which they end, one at a time in each copy of the tree.

    In place of a result: {"late": the test that ran} of a process that was killed at its limit, {"died": the signal} of
    one that died of itself, {"broke": the exception} of one in which `work` raised.
    """
    waiting, free = deque(tasks), list(trees)
    running: dict[int, tuple[Task, Path, float, tuple[str, os.stat_result] | None]] = {}
    try:
        while waiting or running:
            while waiting and free:
                task, tree = waiting.popleft(), free.pop()
                before = None
                if task.file:
                    before = (tree / task.file).read_text(encoding="utf-8"), (tree / task.file).stat()
                    (tree / task.file).write_text(task.content, encoding="utf-8")
                running[start(task, tree)] = task, tree, time.monotonic() + 5 * task.limit, before
            time.sleep(0.02)
            for process, (task, tree, deadline, before) in list(running.items()):
                ended, status = os.waitpid(process, os.WNOHANG)
                if not ended and time.monotonic() < deadline:
                    continue
                end(tree, process)
                if not ended:
                    os.waitpid(process, 0)
                del running[process]
                free.append(tree)
                if before is not None:
                    # With its old time, so that the compiled module that lies beside it is the right one again.
                    (tree / task.file).write_text(before[0], encoding="utf-8")
                    os.utime(tree / task.file, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
                if not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
                    running_test = tree.parent / "running"
                    yield task, {"late": running_test.read_text() if running_test.exists() else ""}
                elif os.WIFSIGNALED(status):
                    yield task, {"died": f"signal {os.WTERMSIG(status)}"}
                elif status:
                    log = (tree.parent / "log").read_text(errors="replace").splitlines()
                    yield task, {"broke": " ".join(log[-1:])}
                else:
                    yield task, json.loads((tree.parent / "result.json").read_text())
    finally:
        for process, (_, tree, _, _) in running.items():
            end(tree, process)
            os.waitpid(process, 0)


def imported_files(tree: Path) -> dict[str, Any]:
    """In a forked process: where it and its subprocesses in any folder import the packages from."""
    told = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)})"
    other = subprocess.run([sys.executable, "-c", told], cwd="/", capture_output=True, text=True, check=True)
    return {"files": [*(str(import_module(name).__file__) for name in PACKAGES), *other.stdout.split()]}


def compile_all(tree: Path, test_files: Sequence[str]) -> dict[str, Any]:
    """In a forked process: leave every module compiled, so that a run with a fault only compiles the file with it."""
    sys.dont_write_bytecode = False
    return {"status": pytest_main(tree, [*test_files, "--collect-only"], None)}


def prepare(trees: Sequence[Path], test_files: Sequence[str]) -> None:
    """Raise RuntimeError unless the tests can be collected in each copy of the tree, and import the copy."""
    for tree in trees:
        tasks = Task(imported_files, 300), Task(lambda tree: compile_all(tree, test_files), 600)
        (_, imported), (_, compiled) = perform(tasks, [tree])
        if not all(file.startswith(f"{tree}/") for file in imported.get("files", [""])):
            raise RuntimeError(f"the tests in {tree} import other files: {imported}")
        if compiled.get("status") != 0:
            raise RuntimeError(f"the tests cannot be collected: {compiled}")


def pytest_main(tree: Path, arguments: list[str], plugin: Any) -> int:
    import pytest

    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tree.parent / 'tmp'}"]
    return int(pytest.main([*arguments, *options], plugins=[plugin] if plugin else []))


# Which tests run which lines


@dataclass
class Measured:
    """What one run of a test file tells. Contexts are test ids with a phase, "" for what importing the file runs."""

    hash: str = ""  # of the test file
    tests: dict[str, float] = field(default_factory=dict)  # of each that passed: seconds of CPU time
    failed: list[str] = field(default_factory=list)
    shared: dict[str, list[str]] = field(default_factory=dict)  # the fixtures of each that other tests use too
    contexts: list[str] = field(default_factory=list)
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # of source file and line: its contexts
    sources: dict[str, str] = field(default_factory=dict)  # the files as they were


def cpu_seconds() -> float:
    """Of this process and of those that it started: unlike the clock's, they do not depend on what else runs."""
    return sum(os.times()[:4])


class Recorder:
    """A pytest plugin: the seconds of each test, whether it passed, and the coverage context for each phase."""

    def __init__(self, coverage: Any):
        self.coverage, self.measured, self.other = coverage, Measured(), set[str]()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(f"{nodeid}|setup")
        self.began = cpu_seconds()

    def pytest_runtest_call(self, item: Any) -> None:
        self.coverage.switch_context(f"{item.nodeid}|call")
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        shared = [f"{f[-1].baseid}::{f[-1].argname}" for f in fixtures if f[-1].scope != "function" and f[-1].baseid]
        self.measured.shared[item.nodeid] = shared

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.measured.tests[report.nodeid] = cpu_seconds() - self.began
        if not report.passed:
            self.other.add(report.nodeid)
        if report.failed:
            self.measured.failed.append(report.nodeid)


def measure(tree: Path, test_file: str) -> dict[str, Any]:
    """In a forked process: run a test file under coverage."""
    import coverage

    include = [str(tree / package / "*") for package in PACKAGES]
    watch = coverage.Coverage(data_file=None, include=include, config_file=False, check_preimported=False)
    recorder = Recorder(watch)
    watch.start()
    pytest_main(tree, [test_file], recorder)
    watch.stop()
    measured, data = recorder.measured, watch.get_data()
    measured.hash = digest(tree / test_file)
    measured.tests = {test: seconds for test, seconds in measured.tests.items() if test not in recorder.other}
    index: dict[str, int] = {}
    for file in data.measured_files():
        name = str(Path(file).relative_to(tree))
        measured.sources[name] = Path(file).read_text(encoding="utf-8")
        measured.lines[name] = {
            str(line): [index.setdefault(context, len(index)) for context in contexts]
            for line, contexts in data.contexts_by_lineno(file).items()
        }
    measured.contexts = list(index)
    return asdict(measured)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def measured_files(trees: Sequence[Path], test_files: Sequence[str], folder: Path) -> dict[str, Measured]:
    """What is known of each test file: from the folder, or measured now and kept there."""

    def kept(test_file: str) -> Path:
        return folder / f"{Path(test_file).stem}.json"

    known, unknown = {}, []
    for test_file in test_files:
        if kept(test_file).exists():
            known[test_file] = Measured(**json.loads(kept(test_file).read_text()))
        if test_file not in known or known[test_file].hash != digest(trees[0] / test_file):
            unknown.append(Task(lambda tree, t=test_file: measure(tree, t), 3600, about=test_file))
    for task, result in perform(unknown, trees):
        if "hash" not in result:
            raise RuntimeError(f"{task.about}: its coverage could not be measured: {result}")
        kept(task.about).write_text(json.dumps(result))
        m = known[task.about] = Measured(**result)
        print(f"{task.about}: {len(m.tests)} tests, {sum(m.tests.values()):.0f} s", flush=True)
        for test in m.failed:
            print(f"{test} fails without a fault and is left out", flush=True)
    return {test_file: known[test_file] for test_file in test_files}


@cache
def matched_lines(old: str, new: str) -> dict[int, int]:
    """Line of the new source by line of the old, for the lines that are in both."""
    blocks = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False).get_matching_blocks()
    return {a + i + 1: b + i + 1 for a, b, size in blocks for i in range(size)}


class Coverage:
    """Of one source file: the tests that run its lines, in all the test files that were measured."""

    def __init__(self, file: str, source: str, measured: dict[str, Measured], spawning: Sequence[str]):
        self.measured, self.tree, self.spawning = measured, ast.parse(source), spawning
        self.seconds = {test: seconds for m in measured.values() for test, seconds in m.tests.items()}
        self.runs: dict[int, set[str]] = {}  # the tests that run a line
        self.imported: set[int] = set()  # the lines that importing the file runs
        for m in measured.values():
            new = matched_lines(m.sources.get(file, ""), source)
            for line, contexts in m.lines.get(file, {}).items():
                if int(line) in new:
                    for context in contexts:
                        self._add(new[int(line)], m, m.contexts[context])

    def _add(self, line: int, measured: Measured, context: str) -> None:
        test, _, phase = context.rpartition("|")
        if not test:
            self.imported.add(line)
            return
        tests = {test}
        if phase == "setup" and measured.shared.get(test):
            # A fixture that other tests use too was made for the first of them; its value counts in all.
            tests |= {t for t, shared in measured.shared.items() if set(shared) & set(measured.shared[test])}
        self.runs.setdefault(line, set()).update(tests & measured.tests.keys())

    def _tests(self, lines: range) -> set[str]:
        return set().union(*(self.runs.get(line, set()) for line in lines))

    def tests(self, line: int, direct: Sequence[str]) -> list[set[str]]:
        """The tests that may notice a fault in a line, the likeliest first.

        Those that run its statement. Those that run anything of the class or function around it: a model that a test
        file makes once and keeps is made in the first test, and looked at in others. For what importing runs, those
        that run anything of the file. For what no test runs in its own process: the tests of the files named after this
        one, and of files that start processes.
        """
        statement, outer = range(line, line + 1), range(line, line + 1)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.stmt):
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                body = getattr(node, "body", None)
                last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
                if first <= line <= last:
                    statement = range(first, max(first, last) + 1)
                if node in self.tree.body and first <= line <= (node.end_lineno or node.lineno):
                    outer = range(first, (node.end_lineno or node.lineno) + 1)
        tiers = [self._tests(statement), self._tests(outer)]
        if self.imported & set(statement):  # which a test may also do, of a module that it imports anew
            tiers.append(set().union(*self.runs.values()))
        elif not tiers[0]:
            tiers = [{test for f in files for test in self.measured[f].tests} for files in (direct, self.spawning)]
        return tiers


def direct_files(file: str, test_files: Sequence[str]) -> list[str]:
    """The test files that are named after a source file: of hf/configs.py test_hf_configs.py, or else test_hf_*.py."""
    path = Path(file)
    stem = {"__main__": "cli", "__init__": path.parent.name}.get(path.stem, path.stem)
    stems = [stem, f"{path.parent.name}_{stem}"]
    named = [t for t in test_files if Path(t).stem.removeprefix("test_") in stems]
    return named or [t for t in test_files if Path(t).stem.startswith(f"test_{path.parent.name}_")]


def chosen(tiers: list[set[str]], seconds: dict[str, float], direct: Sequence[str], budget: float) -> list[list[str]]:
    """The tests to run for a fault, a list for each test file: those named after the source file, then the others.

    In all no more than `budget` seconds of tests: the likeliest, of these the files named after the source file, of
    these the fastest. Files stay together, because tests of one file share fixtures: that with the least to run comes
    first, and in it the fastest test.
    """
    left, picked = budget, dict[str, float]()
    for tier in tiers:
        of_direct = {test for test in tier if test.partition("::")[0] in direct}
        for part in (of_direct, tier - of_direct):
            for test in sorted(part - picked.keys(), key=lambda test: (seconds[test], test)):
                if seconds[test] > left:
                    break
                left -= seconds[test]
                picked[test] = seconds[test]
    files: dict[str, list[str]] = {}
    for test in sorted(picked, key=lambda test: (picked[test], test)):
        files.setdefault(test.partition("::")[0], []).append(test)
    order = sorted(files, key=lambda file: (file not in direct, sum(picked[test] for test in files[file]), file))
    return [files[file] for file in order]


# Planting


class Chosen:
    """A pytest plugin: run these tests in this order, and tell what failed."""

    def __init__(self, tests: Sequence[str], running: Path):
        self.place = {test: i for i, test in enumerate(tests)}
        self.running, self.ran, self.failed = running, 0, dict[str, str]()

    def pytest_sessionstart(self) -> None:
        from hypothesis import Phase, settings

        # Whether an example fails counts, not which is the smallest: to look for that can take a minute.
        settings.register_profile("mutation", settings.default, phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda item: self.place[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.ran += 1
        self.running.write_text(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.setdefault(report.nodeid, str(report.longreprtext).strip().splitlines()[-1])

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.setdefault(report.nodeid, "while it is collected: " + report.longreprtext.splitlines()[-1])


def run_tests(tree: Path, files: list[list[str]], first_only: bool) -> dict[str, Any]:
    """In a forked process: run tests file by file; how many ran, and those that failed with their last line."""
    ran, failed = 0, dict[str, str]()
    for tests in files:
        plugin = Chosen(tests, tree.parent / "running")
        file = tests[0].partition("::")[0]
        code = pytest_main(tree, [file] + ["-x"] * first_only, plugin)
        ran += plugin.ran
        failed |= plugin.failed
        if code not in (0, 1, 5) and not failed:  # passed, failed, no test of that name
            failed[file] = f"pytest ends with status {code}"
        if failed and first_only:
            break
    return {"ran": ran, "failed": failed}


def plant(
    wanted: dict[str, list[Fault]],
    trees: Sequence[Path],
    measured: dict[str, Measured],
    *,
    limit: float,
    budget: float,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Plant each fault of each file; the file and the entry of the report for each, as they end.

    In the end the tests that noticed one run without any. An entry whose test fails then as well comes again, "unsure".
    """
    spawning = [file for file in measured if "subprocess" in (trees[0] / file).read_text(encoding="utf-8")]
    tasks = []
    for file, faults in wanted.items():
        source = (trees[0] / file).read_text(encoding="utf-8")
        coverage, direct = Coverage(file, source, measured, spawning), direct_files(file, list(measured))
        for fault in faults:
            tiers = coverage.tests(fault.line, direct)
            tests = chosen(tiers, coverage.seconds, direct, budget)
            changed, count = planted(source, fault), sum(map(len, tests))
            assert changed is not None
            entry = {
                **asdict(fault),
                "diff": difference(source, changed),
                "tests": count,  # to run until one fails
                "tests_left_out": len(set().union(*tiers)) - count,  # for want of time
            }
            tasks.append(Task(lambda tree, tests=tests: run_tests(tree, tests, True), limit, file, changed, entry))
    noticed: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for task, result in perform(tasks, trees):
        entry = task.about
        if "broke" in result:
            raise RuntimeError(f"{task.file}, {entry}: {result['broke']}")
        if "late" in result:
            entry |= {"outcome": "time limit", "by": result["late"]}
        elif "died" in result:
            entry |= {"outcome": "noticed", "by": result["died"]}
        elif result["failed"]:
            (test, line), *_ = result["failed"].items()
            noticed.setdefault(test, []).append((task.file, entry))
            entry |= {"outcome": "noticed", "by": test, "error": line, "ran": result["ran"]}
        else:
            entry |= {"outcome": "survived", "ran": result["ran"]}
        yield task.file, entry
    files: dict[str, list[str]] = {}
    for test in noticed:
        files.setdefault(test.partition("::")[0], []).append(test)
    controls = [Task(lambda tree, tests=tests: run_tests(tree, [tests], False), 1800) for tests in files.values()]
    for _, result in perform(controls, trees):
        if "failed" not in result:
            raise RuntimeError(f"the tests that noticed faults do not run without one: {result}")
        for test in result["failed"]:
            for file, entry in noticed.get(test, []):
                entry["outcome"] = "unsure"
                yield file, entry


# The report


def table(report: dict[str, list[dict[str, Any]]]) -> str:
    """Counts by file, then every fault that no test noticed, and every one that is unsure, with its lines."""
    rows = ["| file | planted | noticed | at the time limit | survived | unsure |", "|---|---|---|---|---|---|"]
    everything = [entry for entries in report.values() for entry in entries]
    for file, entries in (*report.items(), ("all", everything)):
        of = Counter(entry["outcome"] for entry in entries)
        counts = (of.total(), of["noticed"], of["time limit"], of["survived"], of["unsure"])
        rows.append(f"| {file} | {' | '.join(map(str, counts))} |")
    for file, entries in report.items():
        for entry in entries:
            if entry["outcome"] != "noticed":
                ran = f"{entry.get('ran', '?')} of {entry['tests']} tests ran, {entry['tests_left_out']} left out"
                by = f" in {entry['by']}" if entry.get("by") else ""
                what = f"{file}:{entry['line']} {entry['operator']}: {entry['outcome']}{by} ({ran})"
                rows += ["", what, *entry["diff"]]
    return "\n".join(rows)


def again(source: str, entry: dict[str, Any]) -> Fault | None:
    """The fault of a report's entry in the source of today, whose lines may have moved; None if it is gone."""
    same = [
        fault
        for fault in all_faults(source)
        if fault.operator == entry["operator"] and fault.definition == entry["definition"]
    ]
    for fault in sorted(same, key=lambda fault: (abs(fault.line - entry["line"]), abs(fault.column - entry["column"]))):
        changed = planted(source, fault)
        if changed is not None and difference(source, changed) == entry["diff"]:
            return fault
    return None


def packages_files(root: Path) -> list[str]:
    files = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    return sorted(str(file.relative_to(root)) for file in files)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="of the packages (default: all)")
    parser.add_argument("--faults", type=int, default=25, help="drawn of each file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="LINE", help="every fault of this line of the one FILE")
    parser.add_argument(
        "--replay", type=Path, metavar="REPORT", help="only what no test noticed in a report; it is updated"
    )
    parser.add_argument("--report", type=Path, help="where to write it (default: report.json in --coverage)")
    parser.add_argument(
        "--coverage", type=Path, metavar="DIR", default=ROOT / ".mutation",
        help="where what test files reach is kept (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--tests", nargs="+", metavar="TEST_FILE", help="use these alone (default: tests/test_*.py)")
    parser.add_argument(
        "--limit", type=float, default=120,
        help="CPU seconds that the tests of a fault may take; five times as many by the clock (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=45,
        help="CPU seconds of tests, as they were measured, that are chosen for a fault (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    folder = args.coverage.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    test_files = args.tests or sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").glob("test_*.py"))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # a process that has started threads cannot be forked
    for name in SLOW_IMPORTS:
        import_module(name)
    import_module("torch").set_num_threads(1)

    report: dict[str, list[dict[str, Any]]] = {}
    target = args.replay or args.report or folder / "report.json"
    with tempfile.TemporaryDirectory(prefix="mutate-") as temporary:
        trees = []
        for i in range(args.jobs):
            (Path(temporary) / str(i)).mkdir()
            trees.append(copy_tree(ROOT, Path(temporary) / str(i)))
        if args.replay:
            report = json.loads(args.replay.read_text())
        wanted: dict[str, list[Fault]] = {}
        for file in args.files or (list(report) if args.replay else packages_files(ROOT)):
            source = (trees[0] / file).read_text(encoding="utf-8")
            if args.replay:
                survivors = [entry for entry in report[file] if entry["outcome"] not in ("noticed", "gone")]
                found = [(entry, again(source, entry)) for entry in survivors]
                wanted[file] = [fault for _, fault in found if fault is not None]
                for entry, fault in found:
                    # Where it lies today; the line that it changed may be no more.
                    entry |= {"outcome": "gone"} if fault is None else asdict(fault)
            elif args.only:
                wanted[file] = [f for f in all_faults(source) if f.line == args.only and planted(source, f) is not None]
            else:
                wanted[file] = draw(source, args.faults, f"{args.seed} {file}")
        prepare(trees, test_files)
        measured = measured_files(trees, test_files, folder)
        for file, entry in plant(wanted, trees, measured, limit=args.limit, budget=args.budget):
            this = entry["operator"], entry["occurrence"]
            others = [other for other in report.get(file, []) if (other["operator"], other["occurrence"]) != this]
            report[file] = sorted([*others, entry], key=lambda entry: (entry["line"], entry["column"]))
            target.write_text(json.dumps(report, indent=1) + "\n")
            print(f"{file}:{entry['line']} {entry['operator']}: {entry['outcome']} {entry.get('by', '')}", flush=True)
    print(table(report))


if __name__ == "__main__":
    main()
