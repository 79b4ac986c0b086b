"""What each file of musicgen_ref/fast/ gains alone, measured by leaving it out: python -m benchmarks.gains

On a decoder and a codec of musicgen-small's sizes with random weights; nothing is loaded. With it and without it in
turn, the best of some rounds. cuda.py is measured by benchmarks/gpu.sh.
"""

import argparse
import copy
from collections.abc import Callable
from unittest.mock import patch

import torch

from musicgen_ref.decoder import Decoder, DecoderConfig
from musicgen_ref.encodec import Chunk, Encodec, EncodecConfig
from musicgen_ref.fast import codec, int8, linear, native, seanet, step
from musicgen_ref.fast.cache import CACHES

from .worker import best

TOKENS, STEPS, SECONDS = 12, 1503, 30  # of text; of the cache; of the clip of the codec


def stepping(decoder: Decoder, position: int, cache: str | None = None, rows: int = 2) -> Callable[[], object]:
    """A function that runs one step of `rows` rows, half of which read text, behind `position` steps."""
    decoder.cache_class = CACHES[cache]
    memory = torch.zeros(rows // 2, TOKENS, decoder.config.width, dtype=decoder.norm.weight.dtype)
    kept = decoder.new_cache(rows, STEPS, memory)
    for tensor in (*kept.keys, *kept.values):
        tensor.zero_()
    codes = torch.zeros(rows, decoder.config.codebooks, 1, dtype=torch.long)

    def run() -> object:
        kept.length = position
        return decoder(codes, cache=kept)

    return run


def in_int8(decoder: Decoder) -> Decoder:
    """A copy whose linear layers are rounded."""
    rounded = copy.deepcopy(decoder)
    int8.put_in(rounded)
    return rounded


@torch.no_grad()
def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gains", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=24, help="of the decoder; fewer for a quick look")
    args = parser.parse_args()
    print("| file | what | without | with | gain |\n|---|---|---|---|---|")

    def report(file: str, what: str, without: float, with_it: float) -> None:
        times = " | ".join(f"{1000 * seconds:.1f} ms" for seconds in (without, with_it))
        print(f"| {file} | {what} | {times} | {without / with_it:.2f} |", flush=True)

    def compare(file: str, what: str, without: Callable[[], object], with_it: Callable[[], object]) -> None:
        # In turn: the memory's speed may change from one second to the next.
        times = [(best(without, 1), best(with_it, 1)) for _ in range(args.rounds)]
        report(file, what, *(min(each) for each in zip(*times, strict=True)))

    plain = Decoder(DecoderConfig(layers=args.layers)).eval()
    fast = copy.deepcopy(plain)
    linear.put_in(fast)
    compare("linear.py", "step 0", stepping(plain, 0), stepping(fast, 0))
    compare("linear.py", "step 0, 8 prompts", stepping(plain, 0, rows=16), stepping(fast, 0, rows=16))
    rounded = in_int8(plain)
    compare("int8.py", "step 0, not compiled", stepping(fast, 0), stepping(rounded, 0))

    audio, whole = torch.rand(1, 1, SECONDS * 32000) - 0.5, Encodec(EncodecConfig()).eval()
    windows = copy.deepcopy(whole)
    codec.put_in(windows)
    chunks = [Chunk(torch.randint(0, 2048, (1, 4, SECONDS * 50)))]
    compare("codec.py", "decode 30 s", lambda: whole.decode(chunks), lambda: windows.decode(chunks))
    compare("codec.py", "encode 30 s", lambda: whole.encode(audio), lambda: windows.encode(audio))
    of_codec = {"decode 30 s": lambda: windows.decode(chunks), "encode 30 s": lambda: windows.encode(audio)}
    not_built = {what: best(run, args.rounds) for what, run in of_codec.items()}

    native.library()
    seanet.put_in(windows)
    for what, run in of_codec.items():
        report("seanet.py", what, not_built[what], best(run, args.rounds))
    compiled, compiled_int8, half = copy.deepcopy(plain), in_int8(plain), copy.deepcopy(plain).bfloat16()
    half_plain, small_pages = copy.deepcopy(half), copy.deepcopy(plain)
    for decoder in (compiled, compiled_int8, half):
        step.put_in(decoder)
    with patch.object(native, "huge_pages", lambda tensors: None):
        step.put_in(small_pages)
    compare(
        "native.py", "step 0, compiled, large pages for the weights", stepping(small_pages, 0), stepping(compiled, 0)
    )
    del small_pages
    for position in (0, 1470):
        at = f"step {position}"
        compare("step.py", at, stepping(fast, position), stepping(compiled, position))
    compare("step.py", "step 0, 8 prompts", stepping(fast, 0, rows=16), stepping(compiled, 0, rows=16))
    exact = copy.deepcopy(plain)
    for weight in exact.parameters():
        weight.copy_(weight.half())
    step.put_in(exact)
    compare("step.py", "step 0, weights that fp16 has", stepping(compiled, 0), stepping(exact, 0))
    del exact
    compare("step.py", "step 0, bf16", stepping(half_plain, 0), stepping(half, 0))
    compare("int8.py", "step 0, compiled", stepping(compiled, 0), stepping(compiled_int8, 0))
    for cache in ("bfloat16", "int8"):
        what = f"step 1470, compiled, int8, {cache} cache"
        compare("cache.py", what, stepping(compiled_int8, 1470), stepping(compiled_int8, 1470, cache))


if __name__ == "__main__":
    main()
