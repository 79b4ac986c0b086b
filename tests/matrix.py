"""Which releases pass which tests: runs a share of the suite in every environment that is given, and prints a table.

`python -m tests.matrix` runs the tests of musicgen_ref.hf and of parity in `.venv` and `.venv-v4`, where those are.
Other environments are named by their interpreter, if need be with a folder of packages that go before its own:
`python -m tests.matrix .venv/bin/python ~/torch214/bin/python .venv/bin/python:/tmp/transformers-5.24`. Beside
transformers 4 it runs tests/v4, whatever the share. The exit code is 1 where a test fails or an environment has none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
# What each share runs; what compares with transformers stage by stage is parity.
SHARES = {
    "hf": ["tests/test_hf_*.py", "tests/test_embedding.py"],
    "parity": [
        f"tests/test_{name}.py" for name in ("parity", "generate_parity", "t5", "decoder", "encodec", "sampling")
    ],
    "all": ["tests"],
}
INSTALLED = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in ("torch", "transformers"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = "none"
print(json.dumps(found))
"""


class Row(NamedTuple):
    """One environment's outcome; failed: the names of tests, or the last line of a run that made no report."""

    python: str
    torch: str
    transformers: str
    tests: str
    passed: int
    skipped: int
    failed: tuple[str, ...]
    seconds: float


def environment(given: str) -> tuple[str, dict[str, str]]:
    """The interpreter of "PYTHON" or "PYTHON:FOLDER", and the variables to run it with.

    Raises FileNotFoundError where either is not there.
    """
    python, _, folder = given.partition(":")
    if not Path(python).is_file():
        raise FileNotFoundError(f"{python}: no such interpreter; name an environment's bin/python")
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of packages; make one with pip install --target")
    before = [str(Path(folder).resolve())] if folder else []
    return str(Path(python).absolute()), os.environ | {"PYTHONPATH": os.pathsep.join([*before, str(ROOT)])}


def files(shares: Iterable[str]) -> list[str]:
    """The test files of these shares; a share that has no name of its own is a file."""
    patterns = [pattern for share in shares for pattern in SHARES.get(share, [share])]
    found = [p if Path(p).is_absolute() else str(f.relative_to(ROOT)) for p in patterns
             for f in ([Path(p)] if Path(p).is_absolute() else sorted(ROOT.glob(p)))]  # fmt: skip
    return list(dict.fromkeys(found))


def run(given: str, shares: list[str]) -> Row:
    """Run the shares in one environment. Raises FileNotFoundError as environment() does."""
    python, variables = environment(given)
    asked = subprocess.run([python, "-c", INSTALLED], env=variables, capture_output=True, text=True, check=True)
    installed = json.loads(asked.stdout)
    if installed["transformers"].startswith("4."):
        shares = ["tests/v4"]
    with tempfile.TemporaryDirectory() as folder:
        report, begun = Path(folder) / "report.xml", time.monotonic()
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files(shares)]
        out = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        seconds = time.monotonic() - begun
        cases = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
    if not failed and (out.returncode or not cases):
        said = (out.stdout + out.stderr).strip().splitlines()
        failed = [f"pytest ended with {out.returncode}: {said[-1] if said else 'nothing said'}"]
    passed = len(cases) - len(bad) - len(skipped)
    return Row(**installed, tests=" ".join(shares), passed=passed, skipped=len(skipped), failed=tuple(failed),
               seconds=seconds)  # fmt: skip


def table(rows: Iterable[Row]) -> str:
    """The rows as a table of Markdown, which the README shows."""
    lines = ["| transformers | torch | Python | tests | passed | skipped | failed |", "|" + "---|" * 7]
    for r in rows:
        values = (r.transformers, r.torch, r.python, r.tests, r.passed, r.skipped, len(r.failed))
        lines.append("| " + " | ".join(str(value) for value in values) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environments", nargs="*", metavar="PYTHON[:FOLDER]", help="default: .venv and .venv-v4")
    parser.add_argument("--share", action="append", help=f"of {', '.join(SHARES)}, or a file; default: hf and parity")
    given = parser.parse_args(arguments)
    own = [ROOT / name / "bin" / "python" for name in (".venv", ".venv-v4")]
    environments = given.environments or [str(python) for python in own if python.is_file()]
    if not environments:
        parser.error("no .venv here: make it with tests/run environments, or name an interpreter")
    rows = []
    for each in environments:
        try:
            rows.append(run(each, given.share or ["hf", "parity"]))
        except FileNotFoundError as error:
            parser.error(str(error))
        print(f"{each}: {rows[-1].seconds:.0f} s", *rows[-1].failed, sep="\n  ", file=sys.stderr, flush=True)
    print(table(rows))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
