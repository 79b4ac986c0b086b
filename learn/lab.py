"""What the chapters share: figures and sounds that a notebook shows and a script writes; a picture of the path.

Everything that a chapter shows is a file too, under the folder `out`: figures as PNG, sounds as WAV. What the methods
return knows how to show itself in a notebook (`_repr_html_`, which Jupyter looks for), so that IPython is not needed to
run a chapter as a script.
"""

import base64
import html
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

# The chapters read the packages of this repository, examples/ among them, from wherever they are started.
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from musicgen_ref.audio import write_wav  # noqa: E402

SPECIAL_COLOUR, CODE_COLOUR, SEEN_COLOUR, CELL_COLOUR = "#e8e8e8", "#ffffff", "#bfe3bf", "#ffb74d"


class Shown:
    """A piece of a page: shows itself in a notebook, and does nothing in a script."""

    def __init__(self, page: str):
        self.page = page

    def _repr_html_(self) -> str:
        return self.page


class Lab:
    """Where one chapter puts what it shows.

    chapter: its number, which begins the names of its files; out: the folder, which is made.
    """

    def __init__(self, chapter: int, out: str | Path):
        self.chapter, self.out = chapter, Path(out)
        self.out.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str, suffix: str) -> Path:
        return self.out / f"{self.chapter:02}_{name}.{suffix}"

    def figure(self, figure: Figure, name: str, alt: str) -> Shown:
        """Write a figure as <chapter>_<name>.png. alt: what is to be seen in it, for those who do not see it."""
        path = self._file(name, "png")
        figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
        data = base64.b64encode(path.read_bytes()).decode()
        return Shown(f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">')

    def sound(self, audio: Tensor, rate: int, name: str, label: str = "") -> Shown:
        """Write audio (C, N) or (N,) as <chapter>_<name>.wav, and show a player with its label."""
        path = self._file(name, "wav")
        write_wav(path, audio.detach().reshape(-1, audio.shape[-1]).float(), rate)
        data = base64.b64encode(path.read_bytes()).decode()
        text = html.escape(label or name, quote=True)
        return Shown(
            f'<figure class="sound"><figcaption>{text}</figcaption>'
            f'<audio controls aria-label="{text}" src="data:audio/wav;base64,{data}"></audio></figure>'
        )

    def sounds(self, sounds: Mapping[str, Tensor], rate: int, name: str) -> Shown:
        """A player for each of the labelled sounds, written as <chapter>_<name>_0.wav and so on."""
        shown = [self.sound(audio, rate, f"{name}_{i}", label) for i, (label, audio) in enumerate(sounds.items())]
        return Shown("".join(one.page for one in shown))

    def path(self, *lit: str) -> Shown:
        """The picture of the whole path, from caption to sound, with the boxes of this chapter lit."""
        return self.figure(draw_path(lit), "path", f"The path from caption to sound; lit: {', '.join(lit)}.")


# What each box of the path is called, where it stands, what it holds, and where its arrows go.
BOXES = {
    "sound": (0, 0, "sound in\n(B, C, N)", ["encode"]),
    "encode": (1, 0, "EnCodec\nencode", ["codes"]),
    "codes": (2, 0, "codes\n(B, K, T)", ["delay"]),
    "delay": (3, 0, "delay:\ntable\n(B, K, 1 + S)", ["decoder"]),
    "decoder": (4, 0, "decoder:\none column,\nall before it", ["logits"]),
    "logits": (5, 0, "logits\n(B, K, V)", ["draw"]),
    "draw": (6, 0, "guide, cut,\ndraw", ["undo"]),
    "undo": (7, 0, "undo:\ncodes\n(B, K, T)", ["decode"]),
    "decode": (8, 0, "EnCodec\ndecode", ["heard"]),
    "heard": (9, 0, "sound out\n(B, C, N)", []),
    "caption": (2, 1, "caption:\nids (B, L)", ["T5"]),
    "T5": (3, 1, "T5 encoder", ["memory"]),
    "memory": (4, 1, "memory\n(B, L, E)", ["decoder"]),
}


def draw_path(lit: Sequence[str]) -> Figure:
    """The whole path as boxes and arrows. Raises ValueError for a box that there is not."""
    if unknown := set(lit) - BOXES.keys():
        raise ValueError(f"lit must be among {list(BOXES)}, got {sorted(unknown)}")
    figure = Figure(figsize=(11, 2.8))
    axes = figure.subplots()
    for name, (x, y, text, after) in BOXES.items():
        colour = CELL_COLOUR if name in lit else "#f3f3f3"
        box = FancyBboxPatch((x - 0.4, 1.25 * y - 0.35), 0.8, 0.7, boxstyle="round,pad=0.02", fc=colour, ec="#444444")
        axes.add_patch(box)
        axes.text(x, 1.25 * y, text, ha="center", va="center", fontsize=8)
        for other in after:
            u, v = BOXES[other][:2]
            start, end = ((x + 0.43, 1.25 * y), (u - 0.43, 1.25 * v)) if v == y else ((x, 0.87), (u, 0.4))
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444444"})
    loop = {"arrowstyle": "->", "color": "#444444", "connectionstyle": "arc3,rad=-0.3"}
    axes.annotate("", (3, -0.4), (6, -0.4), arrowprops=loop)
    axes.text(4.5, -1.02, "the next column, until the table is full", ha="center", fontsize=8)
    axes.set_xlim(-0.5, 9.5)
    axes.set_ylim(-1.1, 1.7)
    axes.axis("off")
    return figure


def draw_table(
    axes: Axes, cells: Sequence[Sequence[str]], colours: Mapping[tuple[int, int], str] | None = None
) -> None:
    """A table of codes: cells[k][column] is its text, "." for the special token; colours by (k, column)."""
    for k, row in enumerate(cells):
        for column, text in enumerate(row):
            colour = (colours or {}).get((k, column), SPECIAL_COLOUR if text == "." else CODE_COLOUR)
            axes.add_patch(Rectangle((column, k), 1, 1, facecolor=colour, edgecolor="#888888"))
            axes.text(column + 0.5, k + 0.5, text, ha="center", va="center", fontsize=9)
    columns = len(cells[0])
    axes.set_xlim(0, columns)
    axes.set_ylim(len(cells), 0)
    axes.set_xticks([c + 0.5 for c in range(columns)], [str(c) for c in range(columns)])
    axes.set_yticks([k + 0.5 for k in range(len(cells))], [f"k = {k}" for k in range(len(cells))])
    axes.tick_params(length=0)
    axes.set_xlabel("column")
    axes.set_aspect("equal")


def spectrogram(axes: Axes, audio: Tensor, rate: int, title: str = "") -> None:
    """Draw what frequencies sound when: the logarithm of the magnitudes of short windows of audio (N,)."""
    size, hop = 512, 128
    magnitude = torch.stft(audio.float(), size, hop, window=torch.hann_window(size), return_complex=True).abs()
    extent = (0.0, audio.shape[-1] / rate, 0.0, rate / 2000)
    picture = (magnitude + 1e-3).log().numpy()
    axes.imshow(picture, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-6, vmax=4)
    axes.set_xlabel("seconds")
    axes.set_ylabel("kHz")
    axes.set_title(title, fontsize=10)


def heads(axes: Axes, maps: Sequence[Tensor], rows: Sequence[str] = (), colour: str = "Blues") -> None:
    """Attention maps of all layers and heads as one picture: maps[layer] is (heads, height, width), a layer a line.

    rows: what to write beside each row of a map. Small weights are shown by their root, so that they can be seen.
    """
    layers, (count, height, width) = len(maps), maps[0].shape
    picture = torch.cat([torch.cat(list(layer), dim=1) for layer in maps]) ** 0.5
    axes.imshow(picture.numpy(), aspect="auto", cmap=colour, vmin=0, interpolation="nearest")
    for layer in range(1, layers):
        axes.axhline(layer * height - 0.5, color="#555555", linewidth=1)
    for head in range(1, count):
        axes.axvline(head * width - 0.5, color="#555555", linewidth=1)
    axes.set_xticks([(head + 0.5) * width for head in range(count)], [f"head {head}" for head in range(count)])
    middles, names = [(layer + 0.5) * height for layer in range(layers)], [f"block {i}" for i in range(layers)]
    if rows:
        axes.set_yticks(range(layers * height), [*rows] * layers, fontsize=7)
        axes.tick_params(length=0)
        right = axes.secondary_yaxis("right")
        right.set_yticks(middles, names, rotation=90, va="center")
    else:
        axes.set_yticks(middles, names)


def seconds(run: Callable[[], Any], times: int = 5) -> float:
    """The median time of some runs, after one that does not count."""
    run()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
