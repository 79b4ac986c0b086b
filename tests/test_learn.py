"""The course: chapters run and show what they promise, the checker tells right answers from wrong ones."""

import ast
import functools
import inspect
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learn import check, render
from learn.lab import Lab
from musicgen_ref.fast import native
from tests.browser import Browser, find

ROOT = Path(__file__).parents[1]
LEARN = ROOT / "learn"
CHAPTERS = render.chapters()
SOUND = {1, 2, 4, 5, 6, 7}  # the chapters in which there is something to hear


def run(number: int, out: Path, short: bool = True) -> dict[str, Any]:
    """Run a chapter as a script, in this process; returns what it defined."""
    path = CHAPTERS[number]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(render.source(path, out, short), str(path), "exec"), names)
    return names


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `python learn/01_....py` looks first: the folder of the chapters."""
    monkeypatch.syspath_prepend(str(LEARN))


def test_there_are_nine_chapters_with_headings_and_settings(tmp_path: Path) -> None:
    assert list(CHAPTERS) == list(range(1, 10))
    for number, path in CHAPTERS.items():
        assert render.title(path).startswith(f"{number}. ")
        text = path.read_text(encoding="utf-8")
        assert re.search(rf"python -m learn\.check {number}`", text)
        assert f"| [{render.title(path)}]({path.name}) | " in (LEARN / "README.md").read_text(encoding="utf-8")
        set_to = render.source(path, tmp_path, short=True)
        assert "\nSHORT = True" in set_to
        assert f"\nOUT = {str(tmp_path)!r}" in set_to
        assert len(set_to.splitlines()) == len(text.splitlines())


@pytest.mark.parametrize("number", CHAPTERS)
def test_a_chapter_runs_in_its_short_form(number: int, tmp_path: Path, beside: None) -> None:
    run(number, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    figures = {name for name in names if name.endswith(".png")}
    assert f"{number:02}_path.png" in figures
    assert len(figures) >= 2  # the path, and one of its own
    assert any(name.endswith(".wav") for name in names) == (number in SOUND)
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_a_chapter_runs_as_a_plain_script_without_ipython(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(render.source(CHAPTERS[3], tmp_path / "out", short=True))
    program = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('IPython', 'jupytext', 'nbclient', 'nbconvert')))\n"  # not installed
        f"sys.path.insert(0, {str(LEARN)!r})\n"
        f"runpy.run_path({str(tmp_path / 'script.py')!r}, run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120, capture_output=True)
    assert (tmp_path / "out" / "03_attention.png").exists()


def test_the_chapter_on_speed_runs_without_a_compiler(
    tmp_path: Path, beside: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(native, "library", functools.cache(native.library.__wrapped__))  # nothing is built yet
    names = run(8, tmp_path)
    told = capsys.readouterr().out
    assert told.startswith("Nothing is compiled here, so that what is said of compiled code is not measured: ")
    assert "compiling needs a C++ compiler" in told
    assert "Without a C++ compiler this is not measured." in told
    assert not names["compiled"]
    assert set(names["curves"]) == {"torch", "the bytes alone, fp32"}
    assert {"08_roofline.png", "08_kinds.png", "08_block.png"} <= {path.name for path in tmp_path.iterdir()}


def outside(page: str) -> list[str]:
    """What a page would load from elsewhere: sources and style sheets that are not inside it."""
    sources = re.findall(r'<(?:img|audio|script|link|iframe)\b[^>]*?(?:src|href)="(?!data:)([^"]*)"', page)
    return sources + re.findall(r"@import|url\((?!data:)", page)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pages of chapter 2 in its short form."""
    return render.render(tmp_path_factory.mktemp("course"), [2], short=True)


def test_a_chapter_renders_to_a_page_that_holds_all_it_shows(rendered: list[Path]) -> None:
    pages, tmp_path = rendered, rendered[0].parent
    assert [page.name for page in pages] == ["02_k_codes_at_once.html", "questions.html", "answers.html", "index.html"]
    chapter, index = pages[0].read_text(encoding="utf-8"), pages[-1].read_text(encoding="utf-8")
    assert len(re.findall(r'<img [^>]*alt="[^"]+[^>]* src="data:image/png;base64,', chapter)) == 3
    assert len(re.findall(r'<audio [^>]*src="data:audio/wav;base64,', chapter)) == 2
    assert "What a cell has seen" in chapter
    assert "output_error" not in chapter
    assert str(tmp_path) not in chapter
    assert 'href="02_k_codes_at_once.html"' in index
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert outside(text) == []
        links = set(re.findall(r'<a [^>]*href="([^"#]+)"', text))
        assert links or page == pages[-1]
        assert [link for link in links if not (tmp_path / link).is_file()] == []
    assert "3. Text in" in index  # a chapter that was not rendered is named, without a link
    assert "03_text_in" not in index


def test_a_page_shows_and_plays_in_a_browser(rendered: list[Path]) -> None:
    program = find()
    if program is None:
        pytest.skip("no Chromium is installed here: the page is not tried in a browser")
    with Browser(program) as browser:
        page = browser.open(rendered[0])
        pictures = page.value("[...document.images].map(image => [image.naturalWidth, image.clientWidth])")
        assert len(pictures) == 3
        for own, shown in pictures:
            assert 0.8 * own <= shown <= own  # hardly smaller than drawn: its letters can be read
        assert page.value("document.documentElement.scrollWidth <= innerWidth")
        page.until("[...document.querySelectorAll('audio')].every(player => player.readyState === 4)")
        assert page.value("[...document.querySelectorAll('audio')].map(player => player.duration)") == [1, 1]
        page.value("document.querySelector('audio').focus()")
        page.press(" ")
        page.until("document.querySelector('audio').currentTime > 0.1")
        assert browser.console == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [rendered[0].as_uri()]


def test_a_chapter_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        render.main(["-o", str(tmp_path), "12"])
    assert stopped.value.code == 2
    assert "chapters must be among [1, 2, 3, 4, 5, 6, 7, 8, 9], got [12]" in capsys.readouterr().err


def test_a_chapter_without_its_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "10_other.py").write_text("# # Ten\nSHORT = False\n")
    with pytest.raises(ValueError, match=r"10_other\.py: must set OUT once, at the start of a line, got 0 times"):
        render.source(tmp_path / "10_other.py", tmp_path)
    (tmp_path / "11_other.py").write_text("SHORT = False\n")
    with pytest.raises(ValueError, match=r"11_other\.py: a chapter must begin with a heading"):
        render.title(tmp_path / "11_other.py")


def test_a_box_of_the_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lit must be among .*, got \['quantiser'\]"):
        Lab(1, tmp_path).path("quantiser")


def test_the_loop_without_a_cache_has_thirty_lines_at_most() -> None:
    tree = ast.parse(CHAPTERS[6].read_text(encoding="utf-8"))
    (plain,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "plain")
    assert plain.end_lineno is not None
    assert plain.end_lineno - min(d.lineno for d in plain.decorator_list) + 1 <= 30


@pytest.mark.slow
def test_every_chapter_renders_in_full_within_ten_minutes(tmp_path: Path) -> None:
    began = time.perf_counter()
    pages = render.render(tmp_path)
    assert time.perf_counter() - began < 600
    assert len(pages) == len(CHAPTERS) + 3
    for number, path in CHAPTERS.items():
        page = (tmp_path / f"{path.stem}.html").read_text(encoding="utf-8")
        assert page.count("<img") >= 2
        assert ("<audio" in page) == (number in SOUND)
        assert outside(page) == []
    training = (tmp_path / f"{CHAPTERS[7].stem}.html").read_text(encoding="utf-8")
    (taken,) = re.findall(r"the whole chapter: (\d+) s", training)
    assert int(taken) < 360
    (gap,) = re.findall(r"right one: \S+ \+- \S+, (\S+) standard errors", training)
    assert float(gap) > 3  # the chapter asserts it, too, and that the loss is below the unigram entropy


def test_the_package_imports_nothing_of_the_course() -> None:
    for package in ("musicgen_ref", "weights_convert"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not [name for name in names if name.partition(".")[0] in ("learn", "lab")], file


# The checker ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", CHAPTERS)
def test_the_checker_passes_the_solutions_and_fails_what_is_not_written(number: int) -> None:
    solved, empty = check.chapter(number, "solutions"), check.chapter(number)
    assert len(solved) >= 2
    assert set(solved.values()) == {""}
    assert set(empty.values()) == {"not written yet"}
    exercises, solutions = check.load("exercises", number), check.load("solutions", number)
    for name in solved:
        asked, given = getattr(exercises, name), getattr(solutions, name)
        assert inspect.signature(asked) == inspect.signature(given)
        assert asked.__doc__
        described = re.sub(r"\n# *", " ", CHAPTERS[number].read_text(encoding="utf-8"))
        assert f"`{name}({', '.join(inspect.signature(given).parameters)})`" in described


def solution(number: int, name: str) -> Callable[..., Any]:
    answer: Callable[..., Any] = getattr(check.load("solutions", number), name)
    return answer


def not_from_the_rest(latents: Tensor, books: Tensor) -> Tensor:
    return torch.stack([torch.cdist(latents, book).argmin(1) for book in books])


def added_instead(latents: Tensor, books: Tensor) -> Tensor:
    codes, rest = [], latents
    for book in books:
        codes.append(torch.cdist(rest, book).argmin(1))
        rest = rest + book[codes[-1]]
    return torch.stack(codes)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float = 1.0, dim: int = -1) -> Tensor:
    return (q @ k.T * scale).masked_fill(~mask, -torch.inf).softmax(dim) @ v


def turned(position: Tensor, steps: int, half: int, spacing: int) -> Tensor:
    angle = steps * 10000 ** (-torch.arange(half) / spacing)
    cos, sin = position[:half], position[half:]
    return torch.cat([cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()])


def bare_entropy(logits: Tensor) -> Tensor:
    probs = logits.softmax(-1)
    return -(probs * probs.log2()).sum(-1)


def without_the_crossing(probs: Tensor, p: float) -> Tensor:
    descending, order = probs.sort(descending=True)
    kept = torch.zeros_like(probs, dtype=torch.bool)
    kept[order] = descending.cumsum(0) <= p
    return kept


def past_the_sum(probs: Tensor, p: float) -> Tensor:
    """One code too many where the sum of the likeliest is p itself."""
    descending, order = probs.sort(descending=True)
    kept = torch.zeros_like(probs, dtype=torch.bool)
    kept[order] = descending.cumsum(0) - descending <= p
    return kept


def no_special_cells(known: Tensor, frames: int, delays: Sequence[int], special: int) -> Tensor:
    table = solution(6, "start_table")(known, frames, delays, special)
    table[:, 1:] = torch.where(table[:, 1:] == special, -1, table[:, 1:])
    return table


def special_for_all(known: Tensor, frames: int, delays: Sequence[int], special: int) -> Tensor:
    table = solution(6, "start_table")(known, frames, delays, special)
    return torch.where(table == -1, special, table)


def keeps_the_silence(frames: Iterator[Tensor], wanted: int, silence: Tensor) -> Tensor:
    kept: list[Tensor] = []
    while len(kept) < wanted and not (len(kept) >= 3 and all(torch.equal(one, silence) for one in kept[-3:])):
        kept.append(next(frames))
    return torch.stack(kept, 1)


def takes_everything(frames: Iterator[Tensor], wanted: int, silence: Tensor) -> Tensor:
    return solution(6, "until_silence")(iter(list(frames)), wanted, silence)


def by_clip(codes: Tensor, size: int) -> Tensor:
    return torch.stack([solution(7, "unigram_entropy")(clip[None], size) for clip in codes]).mean(0)


def unpaired(own: Tensor, other: Tensor) -> tuple[float, float]:
    error = (own.var() / len(own) + other.var() / len(other)).sqrt()
    return float((other - own).mean()), float(error)


def scaled_by_the_whole(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / 127
    return (weight / scale).round().to(torch.int8), scale.expand(len(weight), 1)


def cut_off(weight: Tensor) -> tuple[Tensor, Tensor]:
    _, scale = solution(8, "round_rows")(weight)
    return (weight / scale).trunc().to(torch.int8), scale


def zeros_divided(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).nan_to_num().round().to(torch.int8), torch.where(scale > 0, scale, torch.nan)


def first_that_differs(right: Any, wrong: Any, run: Callable[[Any], Any]) -> str:
    """Whatever it was given: wrong where a function inside a module has the bug."""
    solved = solution(9, "find_bug").__globals__
    pairs = zip(solved["watch"](right, run), solved["watch"](wrong, run), strict=True)
    return next(name for (name, _, out), (_, _, other) in pairs if not solved["same"](out, other))


LAST = torch.finfo(torch.float32).min
WRONG: dict[tuple[int, str], list[Callable[..., Any]]] = {
    (1, "bits_per_second"): [
        lambda rate, ratios, codebooks, size: rate / math.prod(ratios) * codebooks * math.log(size),
        lambda rate, ratios, codebooks, size: rate / math.prod(ratios) * math.log2(size),
        lambda rate, ratios, codebooks, size: rate / sum(ratios) * codebooks * math.log2(size),
    ],
    (1, "residual_quantise"): [not_from_the_rest, added_instead, lambda latents, books: added_instead(-latents, books)],
    (1, "padding"): [
        lambda n, kernel, stride: ((kernel - stride) // 2, kernel - stride - (kernel - stride) // 2 + -n % stride),
        lambda n, kernel, stride: (kernel - stride - (kernel - stride) // 2, (kernel - stride) // 2),
    ],
    (2, "has_seen"): [
        lambda delays, cell, other: other[1] + delays[other[0]] <= cell[1] + delays[cell[0]],
        lambda delays, cell, other: other[1] < cell[1],
    ],
    (2, "flatten"): [lambda codes: codes.flatten(), lambda codes: codes.flip(0).T.flatten()],
    (2, "unflatten"): [lambda line, K: line.view(K, -1), lambda line, K: line.view(-1, K)],
    (2, "another_pattern"): [
        lambda K: tuple(range(K)),
        lambda K: tuple(3 * k for k in range(K)),
        lambda K: tuple(2 * k + 1 for k in range(K)),
    ],
    (3, "bucket"): [
        lambda d, buckets, longest: solution(3, "bucket")(-d, buckets, longest),
        lambda d, buckets, longest: min(abs(d), buckets // 2 - 1) + buckets // 2 * (d > 0),
        lambda d, buckets, longest: solution(3, "bucket")(d),
    ],
    (3, "t5_attention"): [
        lambda q, k, v, bias, mask: (((q @ k.T) / 2 + bias).masked_fill(~mask, LAST)).softmax(-1) @ v,
        lambda q, k, v, bias, mask: (q @ k.T + bias).softmax(-1) @ v,
        lambda q, k, v, bias, mask: (q @ k.T + bias).masked_fill(~mask, LAST).softmax(0) @ v,
        lambda q, k, v, bias, mask: attention(q, k, v, mask),
    ],
    (4, "causal_attention"): [
        lambda q, k, v: attention(q, k, v, torch.ones(6, 6).bool(), 1 / 3),
        lambda q, k, v: attention(q, k, v, torch.ones(6, 6).tril().bool()),
        lambda q, k, v: attention(q, k, v, torch.ones(6, 6).triu().bool(), 1 / 3),
    ],
    (4, "count_parameters"): [
        lambda c: solution(4, "count_parameters")(c) - c.codebooks * c.width,  # no special token
        lambda c: solution(4, "count_parameters")(c) - c.width * (c.text_width != c.width),  # no bias
        lambda c: solution(4, "count_parameters")(c) - 2 * c.width * c.layers,  # two norms a block
    ],
    (4, "look_back"): [
        lambda position, steps: turned(position, steps, len(position) // 2, len(position) // 2 - 1),  # ahead
        lambda position, steps: turned(position, -steps, len(position) // 2, len(position) // 2),  # Vaswani's spacing
        lambda position, steps: position,
    ],
    (5, "entropy_bits"): [
        bare_entropy,
        lambda logits: solution(5, "entropy_bits")(logits) * math.log(2),
        lambda logits: solution(5, "entropy_bits")(logits.flatten()),
    ],
    (5, "nucleus"): [without_the_crossing, past_the_sum, lambda probs, p: probs >= 1 - p],
    (5, "temperature_for"): [
        lambda logits, bits: 1.0,
        lambda logits, bits: 1 / solution(5, "temperature_for")(logits, bits),
        lambda logits, bits: solution(5, "temperature_for")(logits, bits * math.log(2)),
    ],
    (6, "columns_read"): [
        lambda steps, prompt, cached: steps if cached else steps * (steps + 1) // 2,  # as if there were no prompt
        lambda steps, prompt, cached: steps,
        lambda steps, prompt, cached: solution(6, "columns_read")(steps, prompt, cached) - prompt,
    ],
    (6, "start_table"): [
        no_special_cells,
        special_for_all,
        lambda *given: solution(6, "start_table")(*given)[:, 1:],
    ],
    (6, "until_silence"): [keeps_the_silence, takes_everything],
    (7, "unigram_entropy"): [
        lambda codes, size: solution(7, "unigram_entropy")(codes, size) / math.log(2),
        by_clip,
    ],
    (7, "gap"): [
        unpaired,
        lambda own, other: solution(7, "gap")(other, own),
        lambda own, other: (float((other - own).mean()), float((other - own).std())),
    ],
    (7, "leave_out"): [
        lambda texts, share, generator: [None if torch.rand(()) < share else text for text in texts],
        lambda texts, share, generator: [text if i % 5 else None for i, text in enumerate(texts)],
        lambda texts, share, generator: solution(7, "leave_out")(texts, 1 - share, generator),
        lambda texts, share, generator: [
            None if i < share * len(texts) else texts[j]
            for j, i in enumerate(torch.randperm(len(texts), generator=generator).tolist())
        ],
    ],
    (8, "bytes_a_step"): [
        lambda c, rows, position, size: (
            solution(8, "bytes_a_step")(c, rows, position, size) + size * 2 * c.layers * c.width**2
        ),  # the text's keys and values at every step
        lambda c, rows, position, size: solution(8, "bytes_a_step")(c, rows, 0, size),
        lambda c, rows, position, size: solution(8, "bytes_a_step")(c, rows, position, 4),
    ],
    (8, "attainable"): [
        lambda work, moved, peak, bandwidth: work / peak + moved / bandwidth,
        lambda work, moved, peak, bandwidth: min(work / peak, moved / bandwidth),
    ],
    (8, "round_rows"): [scaled_by_the_whole, cut_off, zeros_divided],
    (9, "relative_error"): [
        lambda ours, theirs: float((ours - theirs).abs().max() / theirs.abs().max()),
        lambda ours, theirs: (
            float((ours - theirs).max() / theirs.abs().max()) if ours.shape == theirs.shape else math.inf
        ),
    ],
    (9, "find_bug"): [first_that_differs, lambda right, wrong, run: "", lambda right, wrong, run: "blocks.1"],
}


def test_every_exercise_has_two_planted_wrong_answers() -> None:
    exercises = {(number, name) for number in CHAPTERS for name in check.checks(number)}
    assert WRONG.keys() == exercises
    assert min(map(len, WRONG.values())) >= 2


@pytest.mark.parametrize(("number", "name"), WRONG)
def test_the_checker_says_what_is_wrong_with_wrong_answers(number: int, name: str) -> None:
    for answer in WRONG[number, name]:
        told = check.mark(check.checks(number)[name], answer)
        assert told.startswith("wrong: "), told
        assert len(told) > 30


def test_a_reader_who_edits_the_file_is_told_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("exercises", "checks", "solutions"):
        shutil.copytree(LEARN / folder, tmp_path / folder)
    monkeypatch.setattr(check, "HERE", tmp_path)
    assert check.main(["2"]) == 1
    assert "has_seen: not written yet\n" in capsys.readouterr().out

    file = tmp_path / "exercises" / "chapter_02.py"
    written = file.read_text()
    for body in (
        "return other[1] + delays[other[0]] <= cell[1] + delays[cell[0]]",
        "return codes.T.flatten()",
        "return line.view(codebooks, nothing)",
        "return tuple(range(0, 2 * codebooks, 2))",
    ):
        written = written.replace("raise NotImplementedError", body, 1)
    file.write_text(written)
    assert check.main(["2"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "has_seen: wrong: delays (0, 1, 2, 3): has (0, 0) seen (0, 0)? False: they stand in columns 1 and 1; got True",
        "flatten: right",
        "unflatten: it raised NameError: name 'nothing' is not defined, line 20 of chapter_02.py",
        "another_pattern: right",
        "2 of 4 right; the answers are in learn/exercises/chapter_02.py",
    ]

    file.write_text(written.replace("def flatten", "def flat"))
    assert check.main(["2"]) == 1
    assert "flatten: there is no such function in the file\n" in capsys.readouterr().out
    assert check.main(["2", "--solutions"]) == 0
    with pytest.raises(SystemExit):
        check.main(["10"])
    assert "chapter: must be among [1, 2, 3, 4, 5, 6, 7, 8, 9], got 10" in capsys.readouterr().err
    file.write_text("def has_seen(:\n")
    with pytest.raises(SystemExit):
        check.main(["2"])
    assert "chapter_02.py, line 1" in capsys.readouterr().err
