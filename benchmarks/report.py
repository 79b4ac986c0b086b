"""RESULTS.md, results.json and steps.png of what was measured."""

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from .build import SIZES

POSITIONS = (0, 250, 750, 1470)
PLOTTED = ("clip fp32", "clip int8", "clip compiled")
AROUND = 10  # steps on either side whose median is the time at a position


def at(steps: list[float], position: int) -> float:
    """Seconds a step around a position."""
    return statistics.median(steps[max(0, position - AROUND) : position + AROUND + 1])


def rows(results: dict[str, Any], other: str) -> list[tuple[str, float, float | None, float, str]]:
    """What, ours, ours with the plain layers (None: not measured), the other library's, the unit; less is better."""
    table: list[tuple[str, float, float | None, float, str]] = []

    def add(what: str, name: str, key: str, unit: str, scale: float = 1) -> None:
        ours, plain, theirs = (results.get(f"{name}: {library}") for library in ("ours", "plain", other))
        if ours and theirs:
            table.append((what, ours[key] * scale, plain and plain[key] * scale, theirs[key] * scale, unit))

    add("import", "import", "seconds", "s")
    add("load", "load", "seconds", "s")
    add("load as bf16", "load bf16", "seconds", "s")
    if fp32 := results.get(f"clip fp32: {other}"):
        results = results | {f"clip compiled: {other}": fp32}
    for variant in ("fp32", "compiled", "int8", "bf16"):
        name = f"clip {variant}"
        add(f"clip, {variant}", name, "seconds", "s")
        add(f"first frame, {variant}", name, "first frame", "s")
        for position in POSITIONS:
            measured = [results.get(f"{name}: {lib}", {}).get("steps", []) for lib in ("ours", "plain", other)]
            ours, plain, theirs = (at(s, position) * 1000 if len(s) > position else None for s in measured)
            if ours is not None and theirs is not None:
                table.append((f"step {position}, {variant}", ours, plain, theirs, "ms"))
        add(f"peak memory of the clip, {variant}", name, "memory", "GB", 1e-9)
    add("8 prompts, fp32", "8 prompts fp32", "seconds", "s")
    for length in ("5 s", "30 s"):
        add(f"codec, decode {length}", f"codec {length}", "decode", "s")
        add(f"codec, encode {length}", f"codec {length}", "encode", "s")
    add("peak memory after loading", "load", "memory", "GB", 1e-9)
    return table


def shares(results: dict[str, Any], size: str) -> list[str]:
    """Of the machine's bandwidth, what the first steps of a clip reach: every weight of the blocks is read once."""
    width, layers, _, ffn = SIZES[size]
    weights = layers * (6 * width**2 + 2 * width * ffn) + 4 * 2048 * width
    limit = results["limits"]["bytes per second"]
    lines = []
    for variant, size_of in (("fp32", 4), ("compiled", 4), ("int8", 1)):
        for library in ("ours", "transformers"):
            steps = results.get(f"clip {variant}: {library}", {}).get("steps")
            if steps:
                rate = weights * size_of / at(steps, 0)
                lines.append(f"- {library}, {variant}: {rate / 1e9:.1f} GB/s of weights, {100 * rate / limit:.0f} %")
    codec = {library: results.get(f"codec 30 s: {library}") for library in ("ours", "transformers")}
    for library, result in codec.items():
        if result and codec["ours"]:
            rate = codec["ours"]["flop"] / result["decode"]
            share = 100 * rate / results["limits"]["flop per second"]
            lines.append(f"- {library}, decoding 30 s: {rate / 1e9:.0f} GFLOP/s, {share:.0f} % of what matrices reach")
    return lines


def plot(path: Path, results: dict[str, Any]) -> None:
    """Step time over position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    for name, result in results.items():
        if name.startswith(PLOTTED):
            steps = result["steps"]
            axes.plot([at(steps, i) * 1000 for i in range(len(steps))], label=name.removeprefix("clip "))
    axes.set(xlabel="position (steps)", ylabel="ms a step", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    _replace(path, partial(figure.savefig, dpi=100, format="png"))


def _replace(path: Path, write_to: Any) -> None:
    beside = path.with_name(f".{path.name}")
    try:
        write_to(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write(folder: Path, machine: dict[str, Any], settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the three files."""
    limits = results["limits"]
    same = {}
    for name in ("clip fp32", "8 prompts fp32", "clip bf16"):
        pair = [results.get(f"{name}: {library}", {}).get("codes") for library in ("ours", "transformers")]
        if all(pair):
            same[name] = "equal" if pair[0] == pair[1] else "different"
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = [
        "# Benchmark",
        "",
        f"Sizes of musicgen-{settings['size']}, random weights, guidance 3, sampled under one seed; a clip of "
        f"{settings['seconds']:g} s, 8 prompts of {settings['batch seconds']:g} s. The libraries in turn, each "
        f"measurement in a fresh process, {settings['rounds']} round(s); `python -m benchmarks` wrote this. The ratio "
        "is the other library's number over ours; plain is ours with fast=False.",
        "",
        f"{described}. Read bandwidth {limits['bytes per second'] / 1e9:.1f} GB/s, fp32 matrices "
        f"{limits['flop per second'] / 1e9:.0f} GFLOP/s; torch alone is imported in "
        f"{results['import of torch']['seconds']:.2f} s.",
        "",
    ]
    for other in ("transformers", "audiocraft"):
        if table := rows(results, other):
            text += [f"| what | ours | plain | {other} | ratio |", "|---|---|---|---|---|"]
            for what, ours, plain, theirs, unit in table:
                shown = "" if plain is None else f"{plain:.2f} {unit}"
                text.append(f"| {what} | {ours:.2f} {unit} | {shown} | {theirs:.2f} {unit} | {theirs / ours:.2f} |")
            text.append("")
    if same:
        text += ["Codes under one seed: " + ", ".join(f"{name} {verdict}" for name, verdict in same.items()) + ".", ""]
    if reached := shares(results, settings["size"]):
        text += ["Weights read a second at the first steps, and that share of the bandwidth:", "", *reached, ""]
    if compiled := results.get("clip compiled: ours"):
        text += [f"Compiled: beside others in fp32; it took {compiled['compiling']:.0f} s, not counted above.", ""]
    if any(name.startswith(PLOTTED) for name in results):
        plot(folder / "steps.png", results)
        text += ["![step time over position](steps.png)"]
    data = json.dumps({"machine": machine, "settings": settings, "results": results}, indent=1) + "\n"
    _replace(folder / "results.json", partial(Path.write_text, data=data, encoding="utf-8"))
    _replace(folder / "RESULTS.md", partial(Path.write_text, data="\n".join(text).strip() + "\n", encoding="utf-8"))
