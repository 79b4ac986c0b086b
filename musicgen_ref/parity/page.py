"""A report as one page without scripts: the table, difference over depth, difference over steps."""

import math
from collections.abc import Sequence
from html import escape

from .compare import DIFFERENT, EQUAL, Report, Row

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 900, 260, 56, 12, 34  # of a picture, and of what surrounds its axes
LEAST, MOST = -10, 1  # decades of the vertical axis; what is equal to the bit lies on its foot
STEPS = ("decoder.logits", "decoder.logits_cached", "greedy.logits", "sampled.logits")
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 960px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15em .8em .15em 0; text-align: right } td:first-child, th:first-child { text-align: left }
.different { color: #dc2626; font-weight: bold } .figure { overflow-x: auto }
text { fill: currentColor; font-size: 12px } .axis { stroke: currentColor; stroke-opacity: .25 }
"""


def page(report: Report) -> str:
    """The report in HTML; it needs no other file and no network."""
    about = "".join(
        f"<li><b>{side}</b>: {escape(', '.join(f'{key} {value}' for key, value in told.items()))}</li>"
        for side, told in (("ours", report.ours), ("theirs", report.theirs))
    )
    notes = "".join(f"<li>{escape(row.stage)}: {escape(row.note)}</li>" for row in report.rows if row.note)
    missing = f"<p>Only one side has: {escape(', '.join(report.missing))}</p>" if report.missing else ""
    timed = [row for row in report.rows if row.stage in STEPS and row.by_step]
    steps = f"<h2>Difference over steps</h2><div class=figure>{_over_steps(timed)}</div>" if timed else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Parity of {escape(report.ours.get("checkpoint", "two implementations"))}</title><style>{STYLE}</style>
<h1>Parity</h1><p><b>{escape(report.conclusion())}</b></p><ul>{about}{notes}</ul>{missing}
<h2>Difference over depth</h2>
<p>The largest difference of each stage over its largest number, on a logarithmic axis. What lies on the foot is equal
to the bit; the mark above a point is what counts as rounding.</p>
<div class=figure>{_over_depth(report.rows)}</div>{steps}
<h2>Stages</h2><table>{_table(report.rows)}</table></html>
"""


def _table(rows: Sequence[Row]) -> str:
    lines = ["<tr><th>stage<th>shape<th>scale<th>largest<th>mean<th>verdict</tr>"]
    for row in rows:
        shape, mark = "×".join(map(str, row.shape)), " class=different" if row.verdict == DIFFERENT else ""
        numbers = f"<td>{row.scale:.3g}<td>{row.largest:.2g}<td>{row.mean:.2g}"
        lines.append(f"<tr><td>{escape(row.stage)}<td>{shape}{numbers}<td{mark}>{row.verdict}</tr>")
    return "".join(lines)


def _height(part: float) -> float:
    """Where a relative difference lies, in pixels from the top."""
    decade = max(LEAST, min(MOST, math.log10(part))) if part > 0 else LEAST if part == 0 else MOST
    return TOP + (MOST - decade) / (MOST - LEAST) * (HEIGHT - TOP - BOTTOM)


def _relative(row: Row, difference: float) -> float:
    return difference / row.scale if row.scale else difference


def _picture(label: str, inside: str, below: str) -> str:
    grid = "".join(
        f'<line class=axis x1={LEFT} x2={WIDTH} y1="{_height(10.0**d):.1f}" y2="{_height(10.0**d):.1f}"/>'
        f'<text x={LEFT - 6} y="{_height(10.0**d) + 4:.1f}" text-anchor=end>{"0" if d == LEAST else f"1e{d}"}</text>'
        for d in range(LEAST, MOST + 1, 2)
    )
    foot = f"<text x={(LEFT + WIDTH) // 2} y={HEIGHT - 6} text-anchor=middle>{below}</text>"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width={WIDTH} height={HEIGHT}'
    return f'<svg {size} role=img aria-label="{escape(label)}">{grid}{inside}{foot}</svg>'


def _over_depth(rows: Sequence[Row]) -> str:
    step = (WIDTH - LEFT - 20) / max(1, len(rows) - 1)
    marks = []
    for i, row in enumerate(rows):
        x, y = LEFT + 10 + i * step, _height(_relative(row, row.largest))
        colour = "#dc2626" if row.verdict == DIFFERENT else "#059669" if row.verdict == EQUAL else "#2563eb"
        told = escape(f"{row.stage}: {row.largest:.2g} of {row.scale:.3g}, {row.verdict}")
        if row.allowed:
            level = _height(row.allowed)
            marks.append(f'<line stroke=#94a3b8 x1="{x - 3:.1f}" x2="{x + 3:.1f}" y1="{level:.1f}" y2="{level:.1f}"/>')
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r=4 fill="{colour}"><title>{told}</title></circle>')
    return _picture("Largest difference of every stage", "".join(marks), "stages, in the order of the table")


def _over_steps(rows: Sequence[Row]) -> str:
    longest = max(len(row.by_step) for row in rows)
    lines = []
    for i, (row, colour) in enumerate(zip(rows, COLOURS, strict=False)):
        points = " ".join(
            f"{LEFT + 10 + s * (WIDTH - LEFT - 20) / max(1, longest - 1):.1f},{_height(_relative(row, value)):.1f}"
            for s, value in enumerate(row.by_step)
        )
        lines.append(f'<polyline points="{points}" fill=none stroke="{colour}" stroke-width=1.5 />')
        lines.append(f'<text x={LEFT + 20 + 200 * i} y={TOP + 12} style="fill:{colour}">{escape(row.stage)}</text>')
    return _picture("Largest difference at every step", "".join(lines), "step, or frame where delays are undone")
