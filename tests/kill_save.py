"""kill -9 while a checkpoint is saved or converted over another, and a reader beside: the old one, the new one, or a
refusal.

`python -m tests.kill_save --count 200` kills each of the ways below before every step that it takes in the file system,
and then, 200 times in all, at a random moment, while another process loads the directory over and over. Where
directories cannot exchange their names (which is made so here) a refusal is what a stopped save may leave; where they
can, nothing but the old and the new one.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from musicgen_ref import DecoderConfig, EncodecConfig, MusicGen, T5Config
from musicgen_ref.checkpoint import atomic
from weights_convert import convert

# What changes a name in the file system, and what looks up the function that exchanges two.
STEPS = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "ctypes.dlsym"}


class Way(NamedTuple):
    """How a model gets into a directory: by save() in a layout or by a conversion; whether names can be exchanged;
    whether files are written inside of the directory; what of the user's it holds; whether there is none before."""

    layout: str = "transformers"
    conversion: bool = False
    exchange: bool = True
    inside: bool = False
    users: tuple[str, ...] = ()
    fresh: bool = False

    @property
    def allowed(self) -> set[str]:
        """What a stopped one may leave."""
        return {"absent" if self.fresh else "old", "new"} | (set() if self.exchange or self.fresh else {"refused"})


WAYS = {
    "save": Way(users=("notes.txt", "README.md")),
    "save a release": Way(layout="audiocraft"),
    "convert": Way(conversion=True),
    "save, no exchange": Way(exchange=False, users=("notes.txt", "logs/run.txt")),
    "save inside, no exchange": Way(exchange=False, inside=True, users=(".git/HEAD",)),
    "save a release, no exchange": Way(layout="audiocraft", exchange=False),
    "convert, no exchange": Way(conversion=True, exchange=False),
    "convert anew": Way(conversion=True, fresh=True),
}


def model(which: int) -> MusicGen:
    """One of two of the same sizes: one of them with the weights of the other would load."""
    torch.manual_seed(which)
    text = T5Config(vocab_size=100, width=48, layers=1, heads=2, head_width=8, ffn=32, max_distance=128 + which)
    decoder = DecoderConfig(vocab_size=64, width=32, layers=1, heads=2, ffn=32, text_width=48)
    codec = EncodecConfig(filters=2, hidden=16, codebook_size=64)
    return MusicGen(text, decoder, codec).eval()


def digest(folder: Path) -> str:
    """Of names and contents, but for what stopped runs left inside; "absent" where there is none."""
    if not folder.exists():
        return "absent"
    state = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = str(file.relative_to(folder))
        if not name.startswith(f".{folder.name}."):
            state.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()


def forked(work: Callable[[], None], seconds: float) -> float:
    """Run in a forked process that is killed after so many seconds; how long it ran, infinite if it was killed."""
    began = time.perf_counter()
    child = os.fork()
    if not child:
        failed = 1
        try:
            work()
            failed = 0
        finally:
            os._exit(failed)
    watched = os.pidfd_open(child)
    ended = bool(select.select([watched], [], [], seconds)[0])
    took = time.perf_counter() - began
    os.kill(child, signal.SIGKILL)
    os.close(watched)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        raise RuntimeError("what was to be killed failed by itself")
    return took if ended and status == 0 else math.inf


class Place:
    """A directory, and the two models that one way puts into it."""

    def __init__(self, root: Path, name: str):
        self.name, self.way = name, WAYS[name]
        self.target = root / "target" / "model"
        self.target.parent.mkdir(parents=True)
        self.models = [model(which) for which in range(2)]
        self.sources = [root / f"source{which}" for which in range(2)]
        if self.way.conversion:
            for one, source in zip(self.models, self.sources, strict=True):
                one.save_pretrained(source, layout="audiocraft")
        self.states: list[dict[str, Tensor]] = []
        self.digests: dict[str, int | str] = {"absent": "absent"}
        for which in range(2):
            self.write(which)
            for file in self.way.users:
                (self.target / file).parent.mkdir(exist_ok=True)
                (self.target / file).write_text("the user's")
            self.digests[digest(self.target)] = which
            self.states.append(MusicGen.from_pretrained(self.target).state_dict())

    def write(self, which: int) -> None:
        """Put one of the models there, over whatever is there."""
        if self.way.conversion:
            convert.from_audiocraft(self.sources[which], self.target, overwrite=True, shard_size=20_000)
        else:
            self.models[which].save_pretrained(self.target, layout=self.way.layout)

    def reset(self, which: int) -> str:
        """Put one of the models there, or nothing where that is how the way begins; "" or what went wrong."""
        if self.way.fresh:
            if self.target.exists():
                gone = Path(tempfile.mkdtemp(dir=self.target.parent))
                self.target.rename(gone / "model")
                shutil.rmtree(gone)
            return ""
        self.write(which)
        return (
            "" if self.digests.get(digest(self.target)) == which else f"{self.name}: the next one gave something else"
        )

    def loaded(self) -> int | str:
        """What a reader gets: one of the two models, "refused", or what it should not get."""
        try:
            own = MusicGen.from_pretrained(self.target)
        except (ValueError, FileNotFoundError) as error:
            return "refused" if str(self.target) in str(error) else f"an error that does not name it: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        state = own.state_dict()
        same = [all(torch.equal(state[name], t) for name, t in one.items()) for one in self.states]
        which = own.text_encoder.config.max_distance - 128
        return which if same[which] else f"a mixture: the configuration of {which}, weights of which {same} are whole"

    def found(self) -> int | str:
        """What there is: one of the two, "absent", "refused", or what should not be there."""
        state, got = self.digests.get(digest(self.target)), self.loaded()
        if state == "absent":
            return state if got == "refused" else f"absent, and loaded: {got}"
        if state is not None:
            return state if got == state else f"model {state}, and loaded: {got}"
        return got if isinstance(got, str) else f"neither of them, and loaded: {got}"


@contextmanager
def made_so(way: Way) -> Iterator[None]:
    """The file system as the way has it."""

    def refused(*_: object) -> None:
        raise OSError(22, "no such thing here")

    def inside(path: Path) -> Path:
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path if path.exists() else path.parent))

    with (
        mock.patch.object(atomic, "_exchange", atomic._exchange if way.exchange else refused),
        mock.patch.object(atomic, "_folder", inside if way.inside else atomic._folder),
    ):
        yield


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Kill it before its step of that number; False if it has not as many."""

    def counted() -> None:
        left = step

        def hook(event: str, _: object) -> None:
            nonlocal left
            left -= event in STEPS
            if left == 0 and event in STEPS:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return math.isinf(forked(counted, 600))


def reading(place: Place, stop: int, result: Path) -> None:
    """Load what there is until something can be read from `stop`; then write down how often what was found."""
    found: Counter[str] = Counter()
    while not select.select([stop], [], [], 0)[0]:
        found[str(place.loaded())] += 1
    result.write_text(json.dumps(found))


@contextmanager
def reader(place: Place, found: Counter[str]) -> Iterator[None]:
    """A process that loads what there is over and over, all the while."""
    stop, end = os.pipe()
    result = place.target.parents[1] / "read.json"
    child = os.fork()
    if not child:
        try:
            reading(place, stop, result)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.write(end, b"x")
        os.waitpid(child, 0)
        os.close(stop)
        os.close(end)
    found.update(json.loads(result.read_text()))


def told(place: Place, which: int, found: int | str) -> str:
    """What was found, where `which` was to be written: "old", "new", or as it is."""
    if isinstance(found, str):
        return found
    return "new" if found == which else "old"


def at_every_step(place: Place, found: Counter[str], every: int, first: int) -> list[str]:
    """Killed before each step, or every so many."""
    wrong: list[str] = []
    for step in count(1 + first % every, every):
        wrong += filter(None, [place.reset(0)])
        if not killed_at(step, partial(place.write, 1)):
            break
        state = told(place, 1, place.found())
        found[state] += 1
        if state not in place.way.allowed:
            wrong.append(f"{place.name}: before step {step}: {state}")
    return wrong if found else [*wrong, f"{place.name}: no step was seen"]


def at_random(place: Place, found: Counter[str], read: Counter[str], moments: int, r: random.Random) -> list[str]:
    """Killed at so many random moments, every other one near the end, where files move into place."""
    wrong = list(filter(None, [place.reset(0)]))
    usual = statistics.median(forked(partial(place.write, 0), 600) for _ in range(3))
    interrupted = which = 0
    seen: Counter[str] = Counter()
    with reader(place, seen):
        for i in range(20 * moments):  # on a busy machine many end before they are killed
            if interrupted == moments:
                break
            wrong += filter(None, [place.reset(which)])
            which = 1 - which
            seconds = usual * (r.uniform(0, 1) if i % 2 else r.uniform(0.7, 1.1))
            took = forked(partial(place.write, which), seconds)
            interrupted += math.isinf(took)
            state = told(place, which, place.found())
            found[state] += 1
            if state not in place.way.allowed:
                wrong.append(f"{place.name}: run {i}: {state}")
    wrong += [f"{place.name}: read {what}" for what in seen if what not in ("0", "1", "refused")]
    read.update({"loaded" if what in ("0", "1") else "refused": number for what, number in seen.items()})
    if interrupted < moments:
        wrong.append(f"{place.name}: only {interrupted} were killed before they ended")
    return wrong


def run(moments: int, every: int, seed: int) -> dict[str, object]:
    """What was found after kills, by way; what the readers beside got; and what should not have been."""
    torch.set_num_threads(1)
    r = random.Random(seed)
    wrong: list[str] = []
    found: dict[str, Counter[str]] = {}
    read: dict[str, Counter[str]] = {}
    for i, (name, way) in enumerate(WAYS.items()):
        with tempfile.TemporaryDirectory() as root, made_so(way):
            place = Place(Path(root), name)
            found[name], read[name] = Counter(), Counter()
            wrong += at_every_step(place, found[name], every, seed + i)
            if share := (moments + i) // len(WAYS):
                wrong += at_random(place, found[name], read[name], share, r)
    return {"found": found, "read": read, "wrong": wrong}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.kill_save")
    parser.add_argument("--count", type=int, default=200, help="random moments, of all ways together")
    parser.add_argument("--every", type=int, default=1, help="of the steps in the file system, every so many")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = run(arguments.count, arguments.every, arguments.seed)
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))
