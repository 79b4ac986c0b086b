"""Ours and transformers side by side on this machine, and audiocraft where it is installed: python -m benchmarks

Builds a model of the real size with random weights (transformers writes it once), then measures the libraries in
turn, every measurement in a process of its own. Writes RESULTS.md, results.json and steps.png. A 30 s clip takes
transformers minutes on a CPU; --seconds 5 is a quick look.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weights_convert.convert import to_audiocraft

from .report import write

HERE = Path(__file__).parent
SHORT = 2.0  # seconds of the clips whose steps alone are compared
TIMES = {"import": 5, "load": 5, "codec": 3}  # how often in a round, as a moment of the machine decides on one of them


def measure(library: str, task: str, *arguments: str) -> dict[str, Any]:
    """Run one worker; raises RuntimeError with what it said where it fails."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", library, task, *arguments]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[4:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def median(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Number by number and step by step; of anything else the first."""

    def middle(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return [statistics.median(each) for each in zip(*values, strict=True)]
        return statistics.median(values) if isinstance(values[0], (int, float)) else values[0]

    return {name: middle([result[name] for result in results]) for name in results[0]}


ALL, BOTH, OURS = ("ours", "plain", "transformers", "audiocraft"), ("ours", "transformers"), ("ours",)


def tasks(seconds: float, batch_seconds: float) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What is measured, by name: the libraries, and the worker's task and arguments, without the model.

    Only ours has a compiled step; audiocraft on a CPU has nothing but fp32; the plain layers are timed where the fast
    ones take their place.
    """

    def clip(length: float, *more: str) -> tuple[str, ...]:
        return "generate", "--seconds", str(length), *more

    int8, short = ("--variant", "int8"), min(seconds, SHORT)
    return {
        "import": (("ours", "transformers", "audiocraft"), ("import",)),
        "load": (("ours", "transformers", "audiocraft"), ("load",)),
        "load bf16": (BOTH, ("load", "--variant", "bf16")),
        "load int8": (BOTH, ("load", *int8)),
        "clip fp32": (ALL, clip(seconds)),
        "clip fp32 compiled": (OURS, clip(seconds, "--compile")),
        "clip bf16 compiled": (OURS, clip(seconds, "--variant", "bf16", "--compile")),
        "clip int8 compiled": (OURS, clip(seconds, *int8, "--compile", "--cache", "int8")),
        "clip int8": (("transformers",), clip(seconds, *int8)),
        "short bf16": (BOTH, clip(short, "--variant", "bf16")),
        "short int8": (OURS, clip(short, *int8)),
        "8 prompts fp32": (ALL, clip(batch_seconds, "--rows", "8")),
        "8 prompts fp32 compiled": (OURS, clip(batch_seconds, "--rows", "8", "--compile")),
        "codec 5 s": (ALL, ("codec", "--seconds", "5")),
        "codec 30 s": (ALL, ("codec", "--seconds", "30")),
        "codec 30 s compiled": (OURS, ("codec", "--seconds", "30", "--compile")),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch
    import transformers

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="small", choices=["small", "medium", "large", "toy"])
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the clip (default: %(default)s)")
    parser.add_argument("--batch-seconds", type=float, default=5.0, help="of the 8 prompts (default: %(default)s)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="each measured so often, loading and the codec more often; the median counts",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="measurements whose name has a word of these"
    )
    parser.add_argument("--libraries", nargs="+", choices=ALL, default=ALL, help="(default: all that are installed)")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "musicgen_ref_benchmarks")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)  # before anything is measured

    from .build import build

    path = build(args.size, args.models).absolute()
    paths = {"ours": path, "transformers": path}
    if find_spec("audiocraft") and args.size != "toy":  # it knows T5's real sizes alone
        paths["audiocraft"] = path.with_name(f"{path.name}-audiocraft")
        if not paths["audiocraft"].exists():
            to_audiocraft(path, paths["audiocraft"])
    every = tasks(args.seconds, args.batch_seconds)
    chosen = {name: task for name, task in every.items() if not args.only or any(word in name for word in args.only)}
    paths = {library: own for library, own in paths.items() if library in args.libraries}
    for library, own in paths.items():  # not counted: who comes first would read the files from the disk for the other
        measure(library, "load", "--variant", "bf16", "--model", str(own))
    results: dict[str, Any] = {"limits": measure("torch", "limits"), "import of torch": measure("torch", "import")}
    rounds: dict[str, list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for name, (libraries, task) in chosen.items():
            # In turn, so that a machine that changes its pace changes it for all.
            for library in libraries * TIMES.get(task[0], 1):
                if library not in args.libraries or (library == "audiocraft" and library not in paths):
                    continue
                result = measure(library, *task, "--model", str(paths.get(library, path)))
                rounds.setdefault(f"{name}: {library}", []).append(result)
                shown = {key: round(value, 2) for key, value in result.items() if isinstance(value, float)}
                print(f"{name}, {library}: {shown}", flush=True)
    results |= {name: median(each) for name, each in rounds.items()}
    # Measured again: what a busy host did not give at the beginning, the others may have had since.
    again = measure("torch", "limits")
    results["limits"] = {name: max(value, again[name]) for name, value in results["limits"].items()}
    settings = {"size": args.size, "seconds": args.seconds, "batch seconds": args.batch_seconds, "rounds": args.rounds}
    write(args.out, machine(), settings, results)


if __name__ == "__main__":
    main()
