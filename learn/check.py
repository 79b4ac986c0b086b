"""Mark a chapter's exercises: python -m learn.check 3

The functions of learn/exercises/chapter_03.py are called, and what they do is looked at; how they do it is yours. For
each there is a line: right, not written yet, or what is wrong. The exit status is 0 when all are right. With
--solutions the solutions are marked instead.
"""

import argparse
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from learn.checks.tools import Wrong

HERE = Path(__file__).resolve().parent
Check = Callable[[Callable[..., Any]], None]


def load(kind: str, chapter: int) -> ModuleType:
    """learn/<kind>/chapter_NN.py as it is now. Raises FileNotFoundError for a chapter without it."""
    path = HERE / kind / f"chapter_{chapter:02}.py"
    if not path.is_file():
        there = sorted(int(file.stem[-2:]) for file in (HERE / kind).glob("chapter_*.py"))
        raise FileNotFoundError(f"chapter: must be among {there}, got {chapter}: there is no {path}")
    spec = importlib.util.spec_from_file_location(f"learn.{kind}.chapter_{chapter:02}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checks(chapter: int) -> dict[str, Check]:
    """What looks at each exercise of a chapter, by the exercise's name, in the order of the file."""
    functions = inspect.getmembers(load("checks", chapter), inspect.isfunction)
    found = {name.removeprefix("check_"): check for name, check in functions if name.startswith("check_")}
    return dict(sorted(found.items(), key=lambda item: inspect.unwrap(item[1]).__code__.co_firstlineno))


def mark(check: Check, answer: Callable[..., Any] | None) -> str:
    """ "" for a right answer, else a sentence that says what is the matter with it."""
    if not callable(answer):
        return "there is no such function in the file"
    try:
        check(answer)
    except Wrong as wrong:
        return f"wrong: {wrong}"
    except NotImplementedError:
        return "not written yet"
    except Exception as error:  # whatever a reader's function may raise
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        where = f", line {last.tb_lineno} of {Path(last.tb_frame.f_code.co_filename).name}" if last else ""
        return f"it raised {type(error).__name__}: {error}{where}"
    return ""


def chapter(number: int, kind: str = "exercises") -> dict[str, str]:
    """What is the matter with each answer of a chapter, by its name; "" where it is right.

    Raises FileNotFoundError for a chapter that there is not, and what an answer file raises that does not even load.
    """
    answers = load(kind, number)
    return {name: mark(check, getattr(answers, name, None)) for name, check in checks(number).items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m learn.check", description="Mark a chapter's exercises.")
    parser.add_argument("chapter", type=int, help="its number")
    parser.add_argument("--solutions", action="store_true", help="mark the solutions instead")
    args = parser.parse_args(argv)
    kind = "solutions" if args.solutions else "exercises"
    try:
        marks = chapter(args.chapter, kind)
    except (FileNotFoundError, SyntaxError) as error:
        parser.error(str(error))
    for name, matter in marks.items():
        print(f"{name}: {matter or 'right'}")
    wrong = sum(map(bool, marks.values()))
    print(f"{len(marks) - wrong} of {len(marks)} right; the answers are in learn/{kind}/chapter_{args.chapter:02}.py")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
