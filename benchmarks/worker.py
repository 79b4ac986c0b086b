"""One measurement of one library in a process of its own; the result is a line of JSON.

python -m benchmarks.worker LIBRARY TASK --model DIR [--variant fp32|bf16|int8] [--compile] [--cache bfloat16|int8]
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CODES, CODEBOOKS, RATE, FRAME_RATE = 2048, 4, 32000, 50
PROMPT_TOKENS = 12  # of a short description


def peak_memory() -> int:
    """Bytes that this process held at most.

    Linux counts them anew when a program begins (VmHWM); ru_maxrss would begin with what its parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def best(run: Callable[[], Any], rounds: int = 7) -> float:
    """Seconds of the fastest of some rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


class Ours:
    """musicgen_ref."""

    fast = True

    def __init__(self, path: str, variant: str, compiled: bool = False, cache: str | None = None):
        import torch

        from musicgen_ref import MusicGen

        began = time.perf_counter()
        dtype: Any = {"bf16": torch.bfloat16, "int8": "int8"}.get(variant, torch.float32)
        self.model = MusicGen.from_pretrained(path, dtype=dtype, fast=self.fast)
        self.load_seconds = time.perf_counter() - began
        self.compile_seconds = 0.0
        if compiled:
            began = time.perf_counter()
            self.model.compile(cache=cache)
            self.compile_seconds = time.perf_counter() - began

    def generate(self, ids: Any, frames: int) -> tuple[list[float], Any]:
        """The clock after every step and the codes (B, K, T)."""
        import torch

        from musicgen_ref import GenerationOptions

        clock = []
        generator = torch.Generator().manual_seed(0)
        options = GenerationOptions(frames=frames, top_k=50)
        columns, steps = self.model.generate_steps((ids, torch.ones_like(ids)), options, generator=generator)
        for _ in steps:
            clock.append(time.perf_counter())
        codes = torch.stack([columns[:, k, 1 + k : 1 + k + frames] for k in range(CODEBOOKS)], dim=1)
        self.model.decode(codes)
        return clock, codes

    def codec(self, audio: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        codes = self.model.encode(audio, RATE)
        return lambda: self.model.encode(audio, RATE), lambda: self.model.decode(codes)


class Transformers:
    """transformers, as its users would tune it."""

    def __init__(self, path: str, variant: str):
        import torch
        from transformers import MusicgenForConditionalGeneration

        began = time.perf_counter()
        dtype = {"bf16": torch.bfloat16}.get(variant, torch.float32)
        self.model = MusicgenForConditionalGeneration.from_pretrained(path, dtype=dtype).eval()
        if variant == "int8":
            from torch.ao.quantization import quantize_dynamic

            self.model = quantize_dynamic(self.model, {torch.nn.Linear}, torch.qint8)
        self.load_seconds = time.perf_counter() - began

    def generate(self, ids: Any, frames: int) -> tuple[list[float], Any]:
        import torch

        clock, seen = [], []

        def note(input_ids: Any, scores: Any, **_: Any) -> Any:
            clock.append(time.perf_counter())
            seen[:] = [input_ids]
            return torch.zeros(len(input_ids), dtype=torch.bool)

        torch.manual_seed(0)
        self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, guidance_scale=3.0, top_k=50,
            max_new_tokens=frames + CODEBOOKS - 1, stopping_criteria=[note]
        )  # fmt: skip
        rows = seen[0].view(len(ids), CODEBOOKS, -1)
        return clock, torch.stack([rows[:, k, 1 + k : 1 + k + frames] for k in range(CODEBOOKS)], dim=1)

    def codec(self, audio: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        import torch

        codec = self.model.audio_encoder
        with torch.no_grad():
            codes = codec.encode(audio).audio_codes
        return torch.no_grad()(lambda: codec.encode(audio)), torch.no_grad()(lambda: codec.decode(codes, [None]))


class Audiocraft:
    """audiocraft; path: a directory in its layout, its text encoder in one of that name inside."""

    def __init__(self, path: str, variant: str):
        from audiocraft.models import loaders
        from audiocraft.modules import conditioners

        # It loads the text encoder by its name, which transformers looks for here before it asks the Hub. No tokenizer
        # lies there: ids are given.
        os.chdir(path)
        conditioners.T5Tokenizer = SimpleNamespace(from_pretrained=lambda name: None)
        began = time.perf_counter()
        self.decoder = loaders.load_lm_model(path, device="cpu")
        self.compression = loaders.load_compression_model(path, device="cpu")
        self.load_seconds = time.perf_counter() - began

    def generate(self, ids: Any, frames: int) -> tuple[list[float], Any]:
        import torch
        from audiocraft.modules.conditioners import ConditioningAttributes

        mask = torch.ones_like(ids)
        both = {"input_ids": ids.repeat(2, 1), "attention_mask": torch.cat([mask, 0 * mask])}  # text, then no text
        self.decoder.condition_provider.conditioners["description"].tokenize = lambda texts: both
        clock: list[float] = []
        torch.manual_seed(0)
        with torch.no_grad():
            codes = self.decoder.generate(
                conditions=[ConditioningAttributes(text={"description": "given as ids"}) for _ in ids],
                max_gen_len=frames, top_k=50, cfg_coef=3.0, callback=lambda *_: clock.append(time.perf_counter())
            )  # fmt: skip
            self.compression.decode(codes)
        return clock, codes

    def codec(self, audio: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        import torch

        with torch.no_grad():
            codes, _ = self.compression.encode(audio)
        encode, decode = self.compression.encode, self.compression.decode
        return torch.no_grad()(lambda: encode(audio)), torch.no_grad()(lambda: decode(codes))


class Plain(Ours):
    """musicgen_ref with the plain layers of its reading path."""

    fast = False


WORKERS: dict[str, Any] = {"ours": Ours, "plain": Plain, "transformers": Transformers, "audiocraft": Audiocraft}


def measure_import(library: str) -> dict[str, Any]:
    """Seconds to import the class that users import."""
    began = time.perf_counter()
    if library in ("ours", "plain"):
        from musicgen_ref import MusicGen  # noqa: F401
    elif library == "transformers":
        from transformers import MusicgenForConditionalGeneration  # noqa: F401
    elif library == "audiocraft":
        from audiocraft.models import MusicGen as _  # noqa: F401
    else:
        import torch  # noqa: F401
    return {"seconds": time.perf_counter() - began}


def measure_load(model: Any) -> dict[str, Any]:
    """Seconds and memory to load a checkpoint."""
    return {"seconds": model.load_seconds, "memory": peak_memory()}


def measure_generate(model: Any, seconds: float, rows: int) -> dict[str, Any]:
    """A clip with guidance 3, text to audio: total, first frame, every step, memory, and a digest of the codes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 32000, (rows, PROMPT_TOKENS), generator=generator)
    began = time.perf_counter()
    clock, codes = model.generate(ids, round(seconds * FRAME_RATE))
    end = time.perf_counter()
    steps = [after - before for before, after in zip([began, *clock], clock, strict=False)]
    return {
        "seconds": end - began,
        "first frame": clock[CODEBOOKS - 1] - began,
        "steps": steps[1:],
        "memory": peak_memory(),
        "compiling": getattr(model, "compile_seconds", 0.0),
        "codes": hashlib.sha256(codes.to(torch.int16).contiguous().numpy().tobytes()).hexdigest(),
    }


def measure_codec(model: Any, seconds: float) -> dict[str, Any]:
    """Encode and decode; the better of two, after a run that sets up."""
    import torch

    audio = torch.rand(1, 1, round(seconds * RATE), generator=torch.Generator().manual_seed(0)) - 0.5
    result = {}
    for name, run in zip(("encode", "decode"), model.codec(audio), strict=True):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        result[name] = min(times[1:])
    return result | {"memory": peak_memory(), "flop": codec_flop(model, seconds)}


def codec_flop(model: Any, seconds: float) -> float:
    """Floating-point operations of one decoding by our codec, whose arithmetic transformers' shares; 0 for others."""
    if not isinstance(model, Ours):
        return 0.0
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    codec = model.model.codec
    frames, width = round(seconds * FRAME_RATE), codec.config.filters * 2 ** len(codec.config.ratios)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        codec.decoder(torch.zeros(1, codec.config.hidden, frames))
    # It counts no LSTM: 4 gates, each of two matrices, an addition with each product.
    return counter.get_total_flops() + codec.config.lstm_layers * frames * 4 * 2 * 2 * width**2


def measure_limits() -> dict[str, Any]:
    """What the machine can do: bytes a second read from memory, and multiply-adds (two FLOP each) of fp32 matrices.

    The memory is in large pages, where the system has them, as what the compiled step reads.
    """
    import torch

    from musicgen_ref.fast import native

    numbers, matrix = torch.ones(200_000_000), torch.ones(2048, 2048)
    if (room := native.huge_pages([numbers])) is not None:
        numbers = room.copy(numbers)
    return {
        "bytes per second": numbers.nbytes / best(numbers.sum),
        "flop per second": 2 * 2048**3 / best(lambda: matrix @ matrix),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("library", choices=[*WORKERS, "torch"])
    parser.add_argument("task", choices=["import", "limits", "load", "generate", "codec"])
    parser.add_argument("--model")
    parser.add_argument("--variant", choices=["fp32", "bf16", "int8"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="ours alone")
    parser.add_argument("--cache", choices=["bfloat16", "int8"], help="ours alone, compiled")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=1)
    args = parser.parse_args()
    if args.task == "import":
        result = measure_import(args.library)
    elif args.task == "limits":
        result = measure_limits()
    else:
        own = {"compiled": args.compile, "cache": args.cache} if args.library in ("ours", "plain") else {}
        model = WORKERS[args.library](args.model, args.variant, **own)
        if args.task == "load":
            result = measure_load(model)
        elif args.task == "generate":
            result = measure_generate(model, args.seconds, args.rows)
        else:
            result = measure_codec(model, args.seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
