"""Run chapters and write them as pages with their figures and players.

    python -m learn.render -o DIR            all chapters, in full
    python -m learn.render -o DIR 1 6        these alone
    python -m learn.render -o DIR --short    in seconds: shorter clips, a training of a few steps

A chapter is a text file in jupytext's percent format. It begins with two settings, SHORT and OUT; render() sets them,
opens the file as a notebook, runs it from top to bottom in a kernel of its own and writes what came of it. Pages load
nothing from anywhere: pictures and sounds are inside.
"""

import argparse
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TIMEOUT = 1800  # seconds that one cell may take, on a machine that has other things to do
SETTINGS = {"SHORT": re.compile(r"^SHORT = False\b", re.M), "OUT": re.compile(r'^OUT = "out"', re.M)}
STYLE = """
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.55 system-ui, sans-serif; }
p, li { max-width: 52rem; }
img { max-width: 100%; background: white; }
pre { overflow-x: auto; padding: .6rem; border-radius: 4px; background: #7772; font-size: .85rem; }
.output pre { background: none; border-left: 3px solid #7775; white-space: pre-wrap; }
.prompt, .anchor-link { display: none; }
.sound { display: inline-block; margin: .4rem 1rem .4rem 0; }
.sound audio { width: 15rem; }
table { border-collapse: collapse; } td, th { border: 1px solid #7775; padding: .2rem .6rem; }
nav { display: flex; gap: 1rem; flex-wrap: wrap; }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #dde; } a { color: #8bf; } }
"""


def chapters() -> dict[int, Path]:
    """The chapters' files by their number."""
    return {int(path.name[:2]): path for path in sorted(HERE.glob("[0-9][0-9]_*.py"))}


def title(path: Path) -> str:
    """The heading that a chapter begins with. Raises ValueError for a file without one."""
    found = re.search(r"^# # (.+)$", path.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise ValueError(f"{path}: a chapter must begin with a heading, `# # ...`")
    return found[1]


def source(path: Path, out: Path, short: bool = False) -> str:
    """A chapter's text with its two settings set, its lines where they were.

    Raises ValueError for a file that does not have each of the settings exactly once.
    """
    text = path.read_text(encoding="utf-8")
    for (name, pattern), value in zip(SETTINGS.items(), (short, str(out.resolve())), strict=True):
        if (count := len(pattern.findall(text))) != 1:
            raise ValueError(f"{path}: must set {name} once, at the start of a line, got {count} times")
        text = pattern.sub(f"{name} = {value!r}".replace("\\", "\\\\"), text)
    return text


def execute(path: Path, out: Path, short: bool = False) -> Any:
    """A chapter as a notebook that has run, in a kernel of its own.

    Raises nbclient's CellExecutionError where the chapter fails.
    """
    import jupytext
    import nbclient

    notebook = jupytext.reads(source(path, out, short), fmt="py:percent")
    where = {"metadata": {"path": str(HERE)}}  # chapters import lab.py, which lies beside them
    nbclient.NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=where).execute()
    for cell in notebook.cells:  # a page is not to say where it was made, nor what libraries warn of as they load
        cell.source = cell.source.replace(repr(str(out.resolve())), '"out"')
        if "outputs" in cell:
            cell.outputs = _joined([output for output in cell.outputs if output.get("name") != "stderr"])
    return notebook


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """What a cell printed in one piece, however long it took between two lines."""
    pieces: list[Any] = []
    for output in outputs:
        if pieces and output.get("name") == pieces[-1].get("name") == "stdout":
            pieces[-1].text += output.text
        else:
            pieces.append(output)
    return pieces


def body(notebook: Any) -> str:
    """What a notebook shows, as the inside of a page."""
    from nbconvert import HTMLExporter

    text: str = HTMLExporter(template_name="basic").from_notebook_node(notebook)[0]
    return text


def prose(path: Path, pages: Mapping[str, str]) -> str:
    """A Markdown file as the inside of a page. pages: what there is a page of, by the file's name; a link to another
    file becomes plain text, because a reader of the pages does not have it."""
    import nbformat

    def linked(found: re.Match[str]) -> str:
        return f"[{found[1]}]({pages[found[2]]})" if found[2] in pages else found[1]

    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", linked, path.read_text(encoding="utf-8"))
    return body(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]))


def page(heading: str, inside: str, links: Sequence[tuple[str, str]]) -> str:
    """A whole page. links: (address, text) of the pages around it."""
    from pygments.formatters import HtmlFormatter

    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    around = "".join(f'<a href="{address}">{html.escape(text)}</a>' for address, text in links)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{colours}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{STYLE}</style></head>\n"
        f"<body><nav>{around}</nav>\n<main>{inside}</main>\n<nav>{around}</nav></body></html>\n"
    )


def render(out: Path, numbers: Sequence[int] = (), short: bool = False) -> list[Path]:
    """Run chapters (none named: all) and write them, the questions and an index as pages; returns the pages' paths.

    Raises ValueError for a chapter that there is not, and what execute() raises.
    """
    there = chapters()
    if unknown := set(numbers) - there.keys():
        raise ValueError(f"chapters must be among {list(there)}, got {sorted(unknown)}")
    out.mkdir(parents=True, exist_ok=True)
    chosen = [there[number] for number in numbers or there]
    written, index = [], ("index.html", "The course")

    def write(name: str, heading: str, inside: str, links: Sequence[tuple[str, str]]) -> None:
        (out / name).write_text(page(heading, inside, links), encoding="utf-8")
        written.append(out / name)

    for i, path in enumerate(chosen):
        around = [
            (f"{other.stem}.html", title(other)) for other in (*chosen[max(0, i - 1) : i], *chosen[i + 1 : i + 2])
        ]
        write(f"{path.stem}.html", title(path), body(execute(path, out / "files", short)), [index, *around])
    texts = {name: HERE / f"{name}.md" for name in ("questions", "answers")}
    pages = {path.name: f"{path.stem}.html" for path in (*chosen, *texts.values())}
    for name, path in texts.items():
        write(f"{name}.html", name.capitalize(), prose(path, pages), [index])
    write("index.html", "Learn MusicGen", prose(HERE / "README.md", pages), [])
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m learn.render", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("chapters", nargs="*", type=int, help="their numbers (default: all)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write the pages to")
    parser.add_argument("--short", action="store_true", help="the chapters' short forms, in seconds")
    args = parser.parse_args(argv)
    try:
        pages = render(args.out, args.chapters, args.short)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {len(pages)} pages; begin with {args.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
