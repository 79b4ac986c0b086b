"""RESULTS.md, results.json and steps.png of what was measured."""

import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .build import SIZES

POSITIONS = (0, 250, 750, 1470)
AROUND = 10  # steps on either side whose median is the time at a position
# A clip's name among the results, as it is told; whose of transformers' stands beside it; bytes of a weight and of a
# number of the cache, its scale included. Compiled, weights in fp32 that fp16 has are read as fp16.
CLIPS = (
    ("clip fp32", "fp32", "clip fp32", 4, 4),
    ("clip fp32 compiled", "fp32, compiled", "clip fp32", 2, 4),
    ("clip bf16 compiled", "bf16, compiled, beside fp32", "clip fp32", 2, 2),
    ("clip int8 compiled", "int8, compiled, int8 cache", "clip int8", 1, 1 + 4 / 64),
)


def at(steps: list[float], position: int) -> float:
    """Seconds a step around a position."""
    return statistics.median(steps[max(0, position - AROUND) : position + AROUND + 1])


def rows(results: dict[str, Any], other: str) -> list[tuple[str, float, float | None, float, str]]:
    """What, ours, ours with the plain layers (None: not measured), the other library's, the unit; less is better."""
    table: list[tuple[str, float, float | None, float, str]] = []

    def measured(name: str, beside: str | None) -> list[dict[str, Any] | None]:
        of = {"ours": name, "plain": name, other: beside or name}
        return [results.get(f"{which}: {library}") for library, which in of.items()]

    def add(what: str, name: str, key: str, unit: str, scale: float = 1, beside: str | None = None) -> None:
        ours, plain, theirs = measured(name, beside)
        if ours and theirs:
            table.append((what, ours[key] * scale, plain and plain[key] * scale, theirs[key] * scale, unit))

    add("import", "import", "seconds", "s")
    add("load", "load", "seconds", "s")
    add("load as bf16", "load bf16", "seconds", "s")
    add("load as int8", "load int8", "seconds", "s")
    for name, told, beside, *_ in CLIPS:
        add(f"clip, {told}", name, "seconds", "s", beside=beside)
        add(f"first frame, {told}", name, "first frame", "s", beside=beside)
        ours, plain, theirs = ((each or {}).get("steps", []) for each in measured(name, beside))
        if len(ours) > 100 and theirs:
            hundred = [sum(each[:100]) if each else None for each in (ours, plain, theirs)]
            table.append((f"first 100 steps, {told}", *hundred, "s"))  # type: ignore[arg-type]
        for position in POSITIONS:
            times = [at(each, position) * 1000 if len(each) > position else None for each in (ours, plain, theirs)]
            if times[0] is not None and times[2] is not None:
                table.append((f"step {position}, {told}", *times, "ms"))  # type: ignore[arg-type]
        add(f"peak memory of the clip, {told}", name, "memory", "GB", 1e-9, beside)
    add("short clip, bf16", "short bf16", "seconds", "s")
    add("8 prompts, fp32", "8 prompts fp32", "seconds", "s")
    add("8 prompts, fp32, compiled", "8 prompts fp32 compiled", "seconds", "s", beside="8 prompts fp32")
    for length in ("5 s", "30 s"):
        for what in ("decode", "encode"):
            add(f"codec, {what} {length}", f"codec {length}", what, "s")
    for what in ("decode", "encode"):
        add(f"codec, {what} 30 s, compiled", "codec 30 s compiled", what, "s", beside="codec 30 s")
    add("peak memory after loading", "load", "memory", "GB", 1e-9)
    return table


def read(size: str, position: int, weight: int, number: float) -> float:
    """Bytes that a step of a guided clip reads: every weight once, and two rows' keys and values of all steps."""
    width, layers, _, ffn = SIZES[size]
    weights = layers * (6 * width**2 + 2 * width * ffn) + 4 * 2048 * width
    return weights * weight + 2 * layers * 2 * width * (position + 1) * number


def shares(results: dict[str, Any], size: str) -> list[str]:
    """Of the machine's bandwidth, what the steps of a clip reach, at its beginning and at its end."""
    limit = results["limits"]["bytes per second"]
    lines = []
    for name, told, beside, weight, number in CLIPS:
        theirs = [("transformers", beside, told.split(",")[0])] if name == "clip fp32" or beside != "clip fp32" else []
        for library, which, shown in [("ours", name, told), *theirs]:
            steps = results.get(f"{which}: {library}", {}).get("steps")
            if not steps:
                continue
            numbers = (weight, number if library == "ours" else 4)
            last = min(len(steps) - 1, POSITIONS[-1])
            rates = [read(size, position, *numbers) / at(steps, position) for position in (0, last)]
            parts = " and ".join(f"{rate / 1e9:.1f} GB/s, {100 * rate / limit:.0f} %" for rate in rates)
            lines.append(f"- {library}, {shown}: {parts}")
    # Counted as the plain layers multiply: compiled ones and transformers' may need less.
    flop = results.get("codec 30 s: ours", {}).get("flop")
    for told, which in (
        ("ours", "codec 30 s: ours"),
        ("ours, compiled", "codec 30 s compiled: ours"),
        ("transformers", "codec 30 s: transformers"),
    ):
        if flop and which in results:
            rate = flop / results[which]["decode"]
            share = 100 * rate / results["limits"]["flop per second"]
            lines.append(f"- {told}, decoding 30 s: {rate / 1e9:.0f} GFLOP/s, {share:.0f} % of what matrices reach")
    return lines


def plot(path: Path, results: dict[str, Any], size: str) -> None:
    """Step time over position, and what the bandwidth allows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    limit = results["limits"]["bytes per second"]
    for name, _, _, weight, number in CLIPS:
        if steps := results.get(f"{name}: ours", {}).get("steps"):
            (line,) = axes.plot([at(steps, i) * 1000 for i in range(len(steps))], label=name.removeprefix("clip "))
            allowed = [1000 * read(size, i, weight, number) / limit for i in range(len(steps))]
            axes.plot(allowed, color=line.get_color(), linestyle=":")
    for name in ("clip fp32", "clip int8"):
        if steps := results.get(f"{name}: transformers", {}).get("steps"):
            label = f"{name.removeprefix('clip ')}, transformers"
            axes.plot([at(steps, i) * 1000 for i in range(len(steps))], label=label, alpha=0.6)
    axes.plot([], color="gray", linestyle=":", label="what the bandwidth allows")
    axes.set(xlabel="position (steps)", ylabel="ms a step", yscale="log")
    axes.set_yticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
    axes.minorticks_off()
    axes.legend(fontsize="x-small", ncols=2)
    figure.tight_layout()
    replace(path, partial(figure.savefig, dpi=100, format="png"))


def replace(path: Path, write_to: Callable[[Path], object]) -> None:
    """Let a function write a file, which appears when it is complete."""
    beside = path.with_name(f".{path.name}")
    try:
        write_to(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def as_json(data: dict[str, Any]) -> str:
    """The content of a results file: each list of numbers on a line of its own, to the microsecond."""

    def on_a_line(numbers: re.Match[str]) -> str:
        return json.dumps([round(number, 6) for number in json.loads(numbers[0])])

    return re.sub(r"\[[\d.e\-\s,]*\]", on_a_line, json.dumps(data, indent=1)) + "\n"


def write(folder: Path, machine: dict[str, Any], settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write the three files."""
    limits = results["limits"]
    same = {}
    for name in ("clip fp32", "8 prompts fp32", "short bf16"):
        pair = [results.get(f"{name}: {library}", {}).get("codes") for library in ("ours", "transformers")]
        if all(pair):
            same[name] = "equal" if pair[0] == pair[1] else "different"
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = [
        "# Benchmark",
        "",
        f"Sizes of musicgen-{settings['size']}, random weights (the decoder's are numbers of fp16, in which MusicGen "
        f"was published), guidance 3, sampled under one seed; a clip of {settings['seconds']:g} s, 8 prompts of "
        f"{settings['batch seconds']:g} s. The libraries in turn, each measurement in a fresh process, "
        f"{settings['rounds']} round(s), loading and the codec several times, of which the "
        "median counts; `python -m benchmarks` wrote this. The ratio "
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
        text += [
            "Bytes of weights and cache read a second, and that share of the bandwidth, at the first and last steps:"
        ]
        text += ["", *reached, ""]
    compiling = [result["compiling"] for result in results.values() if result.get("compiling")]
    if compiling:
        text += [f"Compiling took {min(compiling):.1f} to {max(compiling):.1f} s, not counted above.", ""]
    ratios = [
        f"{told} {at(steps, POSITIONS[-1]) / at(steps, 0):.2f}"
        for name, told, *_ in CLIPS
        if len(steps := results.get(f"{name}: ours", {}).get("steps", [])) > POSITIONS[-1]
    ]
    if ratios:
        text += [f"Step {POSITIONS[-1]} over step 0: {'; '.join(ratios)}.", ""]
    if any(name.startswith("clip") for name in results):
        plot(folder / "steps.png", results, settings["size"])
        text += ["![step time over position](steps.png)"]
    data = as_json({"machine": machine, "settings": settings, "results": results})
    replace(folder / "results.json", partial(Path.write_text, data=data, encoding="utf-8"))
    replace(folder / "RESULTS.md", partial(Path.write_text, data="\n".join(text).strip() + "\n", encoding="utf-8"))
