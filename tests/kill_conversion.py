"""kill -9 at random moments of conversions: what was to be written is absent, as before, or complete.

`python -m tests.kill_conversion --count 50` converts in forked processes, half of them over a directory that is there,
and kills each after a random part of the time that a conversion takes, until so many were killed before they ended.
"""

import argparse
import hashlib
import json
import math
import os
import random
import select
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from musicgen_ref import MusicGen
from tests import release, tiny
from weights_convert import convert


def digest(folder: Path) -> str:
    """Of names and contents; "absent" where there is none."""
    if not folder.exists():
        return "absent"
    state = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        state.update(f"{file.relative_to(folder)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()


def forked(work: Callable[[], None], seconds: float) -> float:
    """Run in a forked process that is killed after so many seconds; how long it ran, infinite if it was killed."""
    began = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    watched = os.pidfd_open(child)
    ended = bool(select.select([watched], [], [], seconds)[0])
    took = time.perf_counter() - began
    os.kill(child, signal.SIGKILL)
    os.close(watched)
    os.waitpid(child, 0)
    return took if ended else math.inf


def run(count: int, seed: int) -> dict[str, object]:
    """How often the target was found absent, old and new, how many runs were cut short, and what else was found."""
    torch.set_num_threads(1)
    r = random.Random(seed)
    found: Counter[str] = Counter()
    wrong: list[str] = []
    interrupted = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source, old, target = root / "source", root / "old", root / "target" / "model"
        release.write(release.model(), source, tokenizer=tiny.spiece())
        release.model(seed=1).save_pretrained(old)
        target.parent.mkdir()

        def work() -> None:
            convert.from_audiocraft(source, target, overwrite=True, shard_size=100_000)

        work()  # the first also imports and warms
        MusicGen.from_pretrained(target)
        new = digest(target)
        usual = statistics.median(forked(work, 600) for _ in range(3))
        states = {"absent": "absent", digest(old): "old", new: "new"}
        i = 0
        while interrupted < count and i < 20 * count:  # on a busy machine many end before they are killed
            i += 1
            shutil.rmtree(target.parent)
            target.parent.mkdir()
            if i % 2:
                shutil.copytree(old, target)
            # Every other one near the end, where it moves into place.
            took = forked(work, usual * (r.uniform(0, 1) if i % 4 < 2 else r.uniform(0.7, 1.1)))
            interrupted += math.isinf(took)
            state = states.get(digest(target), "half")
            if state == "half":
                wrong.append(f"run {i}: {sorted(file.name for file in target.rglob('*'))}")
            found[state] += 1
            work()  # what a killed run left beside is in nobody's way
            if digest(target) != new:
                wrong.append(f"run {i}: the next conversion gave something else")
    return {"found": found, "interrupted": interrupted, "wrong": wrong}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.kill_conversion")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments.count, arguments.seed)
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))
