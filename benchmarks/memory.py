"""Memory that loading and converting take, above what Python and torch hold: python -m benchmarks.memory --size small

Builds a checkpoint of the real size with random weights (benchmarks/build.py), then loads and converts it, each in a
process of its own. Two limits: a loaded model may have peaked at its own size and 15 %, and where it is converted at
the largest tensor of the file beside it, if that is more; a conversion from safetensors at the largest tensor and
200 MB. The peak is that of the whole process; of an fp32 model loaded as it is in the file, which is mapped, that is
what has been looked at so far. A .bin file is mapped too, to be copied from: of it, memory that is not a file's counts,
sampled 500 times a second. Linux only.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MB = 10**6
TASKS = ("load fp32", "load bf16", "to bf16 in shards", "to audiocraft", "from audiocraft", "load audiocraft")


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def peak(run: Callable[[], Any], mapped: bool) -> tuple[int, Any]:
    """Bytes that `run` made the process hold above those before, and its result; mapped: without those of files."""
    if not mapped:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = status("VmRSS")
        result = run()
        return status("VmHWM") - before, result
    seen, stop = [before := status("RssAnon")], threading.Event()

    def sample() -> None:
        while not stop.is_set():
            seen.append(status("RssAnon"))
            time.sleep(0.002)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        result = run()
    finally:
        stop.set()
        thread.join()
    return max(seen) - before, result


def measure(task: str, model: Path, work: Path) -> dict[str, Any]:
    """One task: bytes at the peak, and the limit."""
    import torch

    from musicgen_ref import DecoderConfig, EncodecConfig, MusicGen, T5Config
    from musicgen_ref.checkpoint.source import open_source
    from weights_convert.convert import from_audiocraft, from_huggingface, to_audiocraft

    # What the libraries allocate when they are first used is not the model's.
    text, codec = T5Config(vocab_size=9, width=8, layers=1), EncodecConfig(filters=2)
    decoder = DecoderConfig(width=8, layers=1, heads=1, text_width=8)
    MusicGen(text, decoder, codec).save_pretrained(work / "warm")
    dtype = torch.bfloat16 if task == "load bf16" else torch.float32
    MusicGen.from_pretrained(work / "warm", dtype=dtype)
    mapped = task in ("from audiocraft", "load audiocraft")
    began = time.perf_counter()
    path = work / "audiocraft" if mapped else model
    tensors = open_source(path, alone=True).tensors
    largest = max(tensors.dtypes[name].itemsize * torch.Size(shape).numel() for name, shape in tensors.shapes.items())
    del tensors
    if task.startswith("load"):
        used, loaded = peak(lambda: MusicGen.from_pretrained(path, dtype=dtype), mapped)
        size = sum(t.numel() * t.element_size() for t in loaded.state_dict().values())
        beside = largest + 4 * MB if task == "load bf16" else 0  # at both ends a page of the file, of 2 MB at most
        limit = size + max(int(0.15 * size), beside)
        return {"peak": used, "of": size, "limit": limit, "seconds": time.perf_counter() - began}
    runs: dict[str, Callable[[], None]] = {
        "to bf16 in shards": lambda: from_huggingface(
            model, work / "bf16", dtype=torch.bfloat16, shard_size=500 * MB, overwrite=True
        ),
        "to audiocraft": lambda: to_audiocraft(model, work / "audiocraft", overwrite=True),
        "from audiocraft": lambda: from_audiocraft(work / "audiocraft", work / "back", overwrite=True),
    }
    used, _ = peak(runs[task], mapped)
    return {"peak": used, "of": largest, "limit": largest + 200 * MB, "seconds": time.perf_counter() - began}


def main() -> int:
    """Measure everything, print a table; 1 if a limit was passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="small", choices=["toy", "small", "medium", "large"])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "musicgen_ref_benchmarks")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(measure(args.task, args.models, args.work)))
        return 0
    from .build import build

    model = build(args.size, args.models).absolute()
    work = Path(tempfile.mkdtemp(prefix="memory.", dir=args.models))
    failed = False
    print(f"musicgen-{args.size}, MB\n{'':<20} {'peak':>8} {'of':>8} {'limit':>8} {'seconds':>8}")
    try:
        for task in TASKS:
            command = [sys.executable, "-m", "benchmarks.memory", "--task", task, "--models", str(model)]
            done = subprocess.run(
                [*command, "--work", str(work)],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{task} failed:\n{done.stderr[-2000:]}")
            got = json.loads(done.stdout.splitlines()[-1])
            failed |= got["peak"] > got["limit"]
            numbers = " ".join(f"{got[name] / MB:>8.0f}" for name in ("peak", "of", "limit"))
            print(f"{task:<20} {numbers} {got['seconds']:>8.1f}{'  TOO MUCH' if got['peak'] > got['limit'] else ''}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
