"""Ours and transformers side by side on a GPU: python -m benchmarks.gpu

Builds a model of the real size with random weights, as `python -m benchmarks` does, and looks in this order at parity
with transformers in fp32 on the same card, the speed of ours and of transformers in half precision, how far half
precision drifts, the tests that need a card, and transformers with its static cache, for which it compiles its step.
Each is a process with a limit of its own, all together stay below --budget seconds, and RESULTS-gpu.md,
results-gpu.json and steps-gpu.png are written anew as it goes: what is cut short loses only what was not measured yet.
It needs no network.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from torch import Tensor

from musicgen_ref import GenerationOptions, MusicGen, delay
from musicgen_ref.fast import cuda

from . import worker
from .int8 import divergence
from .worker import CODEBOOKS, FRAME_RATE, PROMPT_TOKENS, RATE

HERE = Path(__file__).parent

Row = tuple[str, dict[str, Any]]  # a name, and what was measured


# The libraries


class Clock:
    """Times of a device: an event a mark on CUDA, which nobody waits for until all are read."""

    def __init__(self, device: str):
        self.on_card = device == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.on_card:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds between one mark and the next."""
        wait(self.on_card)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) / 1000 if self.on_card else b - a for a, b in pairs]


def wait(on_card: bool) -> None:
    """Until the card has done what it was given."""
    if on_card:
        torch.cuda.synchronize()


class Ours:
    """musicgen_ref; graphs: with the steps of fast/cuda.py."""

    def __init__(self, path: str, device: str, dtype: torch.dtype, graphs: bool = True):
        self.device = device
        self.model = MusicGen.from_pretrained(path, dtype=dtype, device=device)
        if graphs:
            cuda.capture(self.model)

    def codes(self, text: tuple[Tensor, Tensor], frames: int, options: GenerationOptions, clock: Clock) -> Tensor:
        table, steps = self.model.generate_steps(text, options, generator=torch.Generator(self.device).manual_seed(0))
        clock.mark()
        for _ in steps:
            clock.mark()
        return delay.undo(table[..., 1:], self.model.delays)

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)

    def codec(self, audio: Tensor) -> dict[str, Callable[[], Any]]:
        codes = self.model.encode(audio, RATE)
        return {"encode": lambda: self.model.encode(audio, RATE), "decode": lambda: self.model.decode(codes)}


class Theirs:
    """transformers; cache: the cache_implementation of generate()."""

    def __init__(self, path: str, device: str, dtype: torch.dtype, cache: str | None = None):
        from transformers import MusicgenForConditionalGeneration

        self.device, self.cache = device, {} if cache is None else {"cache_implementation": cache}
        self.model = MusicgenForConditionalGeneration.from_pretrained(path, dtype=dtype).to(device).eval()

    def codes(self, text: tuple[Tensor, Tensor], frames: int, options: GenerationOptions, clock: Clock) -> Tensor:
        seen: list[Tensor] = []

        def note(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            clock.mark()
            seen[:] = [input_ids]
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        torch.manual_seed(0)
        self.model.generate(
            input_ids=text[0], attention_mask=text[1], do_sample=not options.greedy, top_k=50,
            guidance_scale=options.guidance_scale, max_new_tokens=frames + CODEBOOKS - 1, stopping_criteria=[note],
            **self.cache,
        )  # fmt: skip
        rows = seen[0].view(len(text[0]), CODEBOOKS, -1)
        return torch.stack([rows[:, k, 1 + k : 1 + k + frames] for k in range(CODEBOOKS)], dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.model.audio_encoder.decode(codes[None], [None]).audio_values

    @torch.no_grad()
    def codec(self, audio: Tensor) -> dict[str, Callable[[], Any]]:
        codec = self.model.audio_encoder
        codes = codec.encode(audio).audio_codes
        encode, decode = torch.no_grad()(codec.encode), torch.no_grad()(codec.decode)
        return {"encode": lambda: encode(audio), "decode": lambda: decode(codes, [None])}


def texts(rows: int, device: str, ragged: bool = False) -> tuple[Tensor, Tensor]:
    """Random ids and mask of short texts; ragged: every second one is half as long."""
    ids = torch.randint(2, 32000, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if ragged:
        mask[1::2, PROMPT_TOKENS // 2 :] = 0
    return (ids * mask).to(device), mask.to(device)


# What is looked at


@dataclass(frozen=True)
class Settings:
    """Of all parts. seconds: of the longest clip; the others are parts of it."""

    model: str
    device: str = "cuda"
    dtype: str = "float16"
    seconds: float = 30.0
    rows: int = 16

    def frames(self, share: float = 1.0) -> int:
        return max(8, round(self.seconds * share * FRAME_RATE))


def parity(s: Settings) -> Iterator[Row]:
    """Codes in fp32, without TF32, of the plain loop and of the graphs beside transformers', and the codec's audio."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    plain, graphs = (Ours(s.model, s.device, torch.float32, graphs) for graphs in (False, True))
    theirs = Theirs(s.model, s.device, torch.float32)
    frames = s.frames(1 / 15)
    cases = {
        "greedy": (texts(1, s.device), GenerationOptions(frames=frames, greedy=True, guidance_scale=3.0)),
        "drawn": (texts(1, s.device), GenerationOptions(frames=frames, guidance_scale=3.0, top_k=50)),
        "drawn, without guidance": (texts(1, s.device), GenerationOptions(frames=frames, guidance_scale=1.0, top_k=50)),
        "4 texts of two lengths": (
            texts(4, s.device, True),
            GenerationOptions(frames=frames, guidance_scale=3.0, top_k=50),
        ),
    }
    for name, (text, options) in cases.items():
        expected = theirs.codes(text, frames, options, Clock(s.device))
        row: dict[str, Any] = {"frames": frames}
        for kind, ours in (("plain", plain), ("graphs", graphs)):
            codes = ours.codes(text, frames, options, Clock(s.device))
            row[kind] = int((codes == expected).all(1).all(0).long().cumprod(0).sum())
        yield f"parity: {name}", row
    codes = expected[:1]
    ours_audio, their_audio = plain.decode(codes), theirs.decode(codes)
    yield "parity: audio", {"difference": float((ours_audio - their_audio).abs().max() / their_audio.abs().max())}


def of_card_tests(s: Settings) -> Iterator[Row]:
    """The tests that need a card, where pytest and what they import are installed."""
    missing = [name for name in ("pytest", "hypothesis", "sentencepiece", "transformers") if find_spec(name) is None]
    if missing or s.device != "cuda":
        yield "tests", {"said": f"not run: {', '.join(missing) or 'a card'} is missing"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py", "-k", "on_a_card"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    yield "tests", {"said": (done.stdout.strip() or done.stderr.strip()).splitlines()[-1], "failed": done.returncode}


def clip(library: Any, s: Settings, rows: int, frames: int) -> dict[str, Any]:
    """A clip with guidance 3, drawn: every step, and the time from text to audio."""
    clock, options = Clock(s.device), GenerationOptions(frames=frames, guidance_scale=3.0, top_k=50)
    wait(s.device == "cuda")
    began = time.perf_counter()
    codes = library.codes(texts(rows, s.device), frames, options, clock)
    library.decode(codes)
    wait(s.device == "cuda")
    return {"seconds": time.perf_counter() - began, "frames": frames, "rows": rows, "steps": clock.steps()}


def codec(library: Any, s: Settings) -> dict[str, float]:
    """Seconds to encode and to decode the longest clip, the best of some rounds."""
    noise = torch.rand(1, 1, round(s.seconds * RATE), generator=torch.Generator().manual_seed(0)) - 0.5
    audio = noise.to(s.device, getattr(torch, s.dtype))
    return {name: best(run, s.device) for name, run in library.codec(audio).items()}


def best(run: Callable[[], Any], device: str, rounds: int = 4) -> float:
    """Seconds of the fastest of some rounds after one that sets up."""

    def done() -> None:
        run()
        wait(device == "cuda")

    done()
    return worker.best(done, rounds)


def ours(s: Settings) -> Iterator[Row]:
    """The speed of ours, with graphs and with the plain loop."""
    size = 2**30 if s.device == "cuda" else 2**22
    source, target = (torch.zeros(size, dtype=torch.uint8, device=s.device) for _ in range(2))
    yield "card", {"bytes per second": 2 * size / best(partial(target.copy_, source), s.device, 20)}  # read and written
    del source, target
    graphs = Ours(s.model, s.device, getattr(torch, s.dtype))
    decoder = graphs.model.decoder
    unread = sum(w.numel() for block in decoder.blocks for w in (block.cross_attn.k.weight, block.cross_attn.v.weight))
    read = sum(p.numel() for part in (decoder.blocks, decoder.heads) for p in part.parameters()) - unread
    size = decoder.norm.weight.element_size()
    yield "step", {"weights": read * size, "position": 2 * 2 * decoder.config.layers * decoder.config.width * size}
    yield "one prompt: first clip", clip(graphs, s, 1, s.frames())  # captures
    yield "one prompt: graphs", clip(graphs, s, 1, s.frames())
    clip(graphs, s, s.rows, s.frames(1 / 3))  # captures
    yield f"{s.rows} prompts: graphs", clip(graphs, s, s.rows, s.frames(1 / 3))
    yield "codec: graphs", codec(graphs, s)
    plain = Ours(s.model, s.device, getattr(torch, s.dtype), graphs=False)
    yield "one prompt: plain", clip(plain, s, 1, s.frames(1 / 6))
    yield f"{s.rows} prompts: plain", clip(plain, s, s.rows, s.frames(1 / 6))
    plain.model = MusicGen.from_pretrained(s.model, dtype=getattr(torch, s.dtype), device=s.device, fast=False)
    yield "codec: plain", codec(plain, s)


def theirs(s: Settings) -> Iterator[Row]:
    """The speed of transformers."""
    library = Theirs(s.model, s.device, getattr(torch, s.dtype))
    clip(library, s, 1, 8)
    yield "one prompt: transformers", clip(library, s, 1, s.frames(1 / 3))
    yield f"{s.rows} prompts: transformers", clip(library, s, s.rows, s.frames(1 / 6))
    yield "codec: transformers", codec(library, s)


def theirs_static(s: Settings) -> Iterator[Row]:
    """The speed of transformers with its static cache, for which it compiles its step by itself."""
    library = Theirs(s.model, s.device, getattr(torch, s.dtype), "static")
    yield "one prompt: first clip, static", clip(library, s, 1, s.frames(1 / 3))  # compiles
    yield "one prompt: static", clip(library, s, 1, s.frames(1 / 3))
    clip(library, s, s.rows, s.frames(1 / 6))
    yield f"{s.rows} prompts: static", clip(library, s, s.rows, s.frames(1 / 6))


@torch.no_grad()
def drift(s: Settings) -> Iterator[Row]:
    """Logits in half precision beside those in fp32, of codes that the fp32 model drew, of ours and of transformers."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = Ours(s.model, s.device, torch.float32)
    text, frames = texts(2, s.device), s.frames(1 / 6)
    drawn = exact.codes(text, frames, GenerationOptions(frames=frames, guidance_scale=1.0, top_k=50), Clock(s.device))
    special = exact.model.decoder.config.vocab_size
    start = torch.full_like(drawn[..., :1], special)
    table = torch.cat([start, delay.apply(drawn, exact.model.delays, fill=special)], dim=2)[..., :-1]

    def of_ours(dtype: torch.dtype) -> Tensor:
        model = Ours(s.model, s.device, dtype).model
        return model.decoder(table, *model.encode_text(text)).float()

    def of_theirs(dtype: torch.dtype) -> Tensor:
        model = Theirs(s.model, s.device, dtype).model
        made = model(input_ids=text[0], attention_mask=text[1], decoder_input_ids=table.flatten(0, 1), use_cache=False)
        return made.logits.float().unflatten(0, drawn.shape[:2])

    expected = of_ours(torch.float32)
    for library, logits_of in (("ours", of_ours), ("transformers", of_theirs)):
        for dtype in (torch.float16, torch.bfloat16):
            pair = [delay.undo(logits, exact.model.delays) for logits in (expected, logits_of(dtype))]
            yield f"drift: {library} in {str(dtype).removeprefix('torch.')}", divergence(*pair)


# In this order, each with the seconds that it may take.
PARTS: dict[str, tuple[Callable[[Settings], Iterator[Row]], float]] = {
    "parity": (parity, 90),
    "ours": (ours, 90),
    "theirs": (theirs, 80),
    "drift": (drift, 60),
    "tests": (of_card_tests, 60),
    "static": (theirs_static, 120),
}


def measured(part: str, settings: Settings, limit: float) -> Iterator[Row]:
    """The rows of a part, of a process of its own that is ended at its limit. Raises RuntimeError with what it said
    last where it fails."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--part", part, "--model", settings.model]
    command += ["--device", settings.device, "--dtype", settings.dtype]
    command += ["--seconds", str(settings.seconds), "--rows", str(settings.rows)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=said, text=True)
        assert process.stdout is not None
        timer = Timer(limit, process.kill)
        timer.start()
        began = time.monotonic()
        try:
            for line in process.stdout:
                if line.startswith('["'):
                    name, row = json.loads(line)
                    yield name, row
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if process.returncode:
            said.seek(0)
            last = [line for line in said.read().splitlines() if line.strip()][-1:]
            late = time.monotonic() - began >= limit
            raise RuntimeError(f"ended after {limit:.0f} s" if late else " ".join(last) or "it ended by itself")


# What is written


@dataclass
class Results:
    """All that is known so far."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    import transformers

    of_card = {}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        of_card = {"card": card.name, "memory": f"{card.total_memory / 2**30:.0f} GiB", "CUDA": torch.version.cuda}
    return of_card | {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def rate(row: dict[str, Any] | None) -> float | None:
    """Steps a second: one over the median step, the first, which reads the text, left out."""
    steps = row["steps"][1:] if row else []
    return 1 / statistics.median(steps) if steps else None


def table(results: Results) -> list[str]:
    """The rows of speed: what, four columns, and the better one of transformers' beside ours with graphs."""
    lines = [
        "| what | ours | plain | transformers | its static cache | ratio |",
        "|---|---|---|---|---|---|",
    ]
    columns, rows = ("graphs", "plain", "transformers", "static"), results.rows
    prompts = [
        name.partition(":")[0] for name in rows if name.endswith("prompts: graphs") or name == "one prompt: graphs"
    ]

    def line(what: str, values: Sequence[float | None], shown: str, more_is_better: bool) -> None:
        known = [value for value in values[2:] if value is not None]
        ratio = ""
        if known and (own := values[0]) is not None:
            ratio = f"{own / max(known) if more_is_better else min(known) / own:.2f}"
        cells = ["" if value is None else shown.format(value) for value in values]
        lines.append(f"| {what} | {' | '.join(cells)} | {ratio} |")

    for what in prompts:
        of = [rows.get(f"{what}: {column}") for column in columns]
        line(f"{what}, guidance 3", [rate(row) for row in of], "{:.0f} steps/s", True)
    for what in ("decode", "encode"):
        times = [rows.get(f"codec: {column}", {}).get(what) for column in columns]
        line(f"codec, {what} {results.settings['seconds']:g} s", times, "{:.3f} s", False)
    return lines


def report(results: Results) -> str:
    """RESULTS-gpu.md."""
    rows = results.rows
    described, settings = (
        ", ".join(f"{key} {value}" for key, value in each.items()) for each in (results.machine, results.settings)
    )
    text = ["# Benchmark on a GPU", "", f"`benchmarks/gpu.sh` wrote this. {described}. Settings: {settings}.", ""]
    text += ["## Parity", "", "fp32 without TF32: frames whose codes are those of transformers on the same device.", ""]
    text += ["| what | plain loop | graphs |", "|---|---|---|"]
    for name, row in rows.items():
        if name.startswith("parity: ") and "frames" in row:
            cells = [f"{row[kind]} of {row['frames']}" for kind in ("plain", "graphs")]
            text.append(f"| {name.removeprefix('parity: ')} | {' | '.join(cells)} |")
    if audio := rows.get("parity: audio"):
        text += ["", f"Audio of the same codes differs by {audio['difference']:.1e} of its peak."]
    if tests := rows.get("tests"):
        text += ["", f"`pytest tests/test_cuda.py -k on_a_card`: {tests['said']}."]
    text += ["", "## Speed", ""]
    text += [
        f"In {results.settings['dtype']}, drawn. Steps a second are one over the median step. Plain is ours with its "
        "plain loop, of the codec with fast=False; the ratio is the faster one of transformers' beside ours.",
        "",
        *table(results),
    ]
    first, graphs, limit = (rows.get(name) for name in ("one prompt: first clip", "one prompt: graphs", "card"))
    if graphs and first:
        text += [
            "",
            f"{results.settings['seconds']:g} s of music of one prompt take {graphs['seconds']:.2f} s from text to "
            f"audio; the first clip, which captures its graphs, {first['seconds'] - graphs['seconds']:.2f} s more.",
        ]
    if graphs and limit and (step := rows.get("step")) and (reached := rate(graphs)):
        share = 100 * step["weights"] * reached / limit["bytes per second"]
        text += [
            "",
            f"Memory copies {limit['bytes per second'] / 1e9:.0f} GB/s, read and written. A step reads "
            f"{step['weights'] / 1e9:.2f} GB of weights, which is {share:.0f} % of that.",
        ]
    text += ["", "## Half precision", "", "Logits beside those of ours in fp32, of the same codes.", ""]
    text += ["| what | logits error | KL | same likeliest code |", "|---|---|---|---|"]
    for name, row in rows.items():
        if name.startswith("drift: "):
            cells = [f"{row['logits error']:.4f}", f"{row['KL']:.1e}", f"{100 * row['same likeliest code']:.2f} %"]
            text.append(f"| {name.removeprefix('drift: ')} | {' | '.join(cells)} |")
    if results.not_run:
        text += ["", "Not measured, or not to the end:", ""]
        text += [f"- {part}: {why}" for part, why in results.not_run.items()]
    if pictured(results):
        text += ["", "![step time over position](steps-gpu.png)"]
    return "\n".join(text) + "\n"


def pictured(results: Results) -> bool:
    """Whether there is a picture: something to plot, and what plots it."""
    return find_spec("matplotlib") is not None and any("steps" in row for row in results.rows.values())


def plot(path: Path, results: Results) -> None:
    """Time of a step over its position, and what the memory allows: the weights, and the keys and values so far."""
    from matplotlib.figure import Figure

    from .report import at  # deferred: it imports transformers

    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    longest = 0
    for column in ("graphs", "plain", "transformers", "static"):
        if row := results.rows.get(f"one prompt: {column}"):
            steps = row["steps"][1:]
            axes.plot(range(1, 1 + len(steps)), [at(steps, i) * 1000 for i in range(len(steps))], label=column)
            longest = max(longest, len(steps))
    limit, step = results.rows.get("card"), results.rows.get("step")
    if limit and step:
        ends = [(step["weights"] + at * step["position"]) / limit["bytes per second"] * 1000 for at in (0, longest)]
        axes.plot((0, longest), ends, "k--", label="memory")
    axes.set(xlabel="position (steps)", ylabel="ms a step", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100, format="png")


def write(folder: Path, results: Results, picture: bool) -> None:
    """Write the files; each appears whole."""
    from .report import as_json, replace  # deferred, as above

    files: dict[str, Callable[[Path], object]] = {
        "results-gpu.json": partial(Path.write_text, data=as_json(vars(results)), encoding="utf-8"),
        "RESULTS-gpu.md": partial(Path.write_text, data=report(results), encoding="utf-8"),
    }
    if picture and pictured(results):
        files["steps-gpu.png"] = partial(plot, results=results)
    for name, write_to in files.items():
        replace(folder / name, write_to)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the results. The exit code is 1 where codes in fp32 are not transformers', or a test fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: to see that this works")
    parser.add_argument("--size", default="small", choices=["small", "medium", "large", "toy"])
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=30.0, help="of the longest clip (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="of the batch (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=330.0, help="seconds in all (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    parser.add_argument("--here", action="store_true", help="in this process, without limits")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "musicgen_ref_benchmarks")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results (default: %(default)s)")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)  # a process that measures one
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device here; --device cpu --size toy is a dry run")
    if args.part:
        settings = Settings(args.model, args.device, args.dtype, args.seconds, args.rows)
        for pair in PARTS[args.part][0](settings):
            print(json.dumps(pair), flush=True)
        return 0

    began = time.monotonic()
    from .build import build

    args.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(str(build(args.size, args.models).absolute()), args.device, args.dtype, args.seconds, args.rows)
    told = {"device": args.device, "size": args.size, "dtype": args.dtype, "seconds": args.seconds, "rows": args.rows}
    results = Results(machine(args.device), told)
    for part in args.only:
        run, limit = PARTS[part]
        left = args.budget - (time.monotonic() - began)
        if left < 10 and not args.here:
            results.not_run[part] = "no time was left"
            continue
        try:
            for name, row in run(settings) if args.here else measured(part, settings, min(limit, left)):
                results.rows[name] = row
                shown = {key: value for key, value in row.items() if key != "steps"}
                print(f"{time.monotonic() - began:.0f} s, {name}: {shown}", flush=True)
                write(args.out, results, picture=False)
        except Exception as error:  # one part that fails does not keep the others from being measured
            results.not_run[part] = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"{part}: {results.not_run[part]}", file=sys.stderr, flush=True)
    write(args.out, results, picture=True)
    print((args.out / "RESULTS-gpu.md").read_text(encoding="utf-8"))
    equal = all(
        row[kind] == row["frames"] for row in results.rows.values() for kind in ("plain", "graphs") if kind in row
    )
    return 0 if equal and not results.rows.get("tests", {}).get("failed") else 1


if __name__ == "__main__":
    sys.exit(main())
