# %% [markdown]
# # 8. Make it fast
#
# Chapter 6 removed work that need not be done. What is left must be done: at every step, every weight of the decoder
# is multiplied by a vector. This chapter asks how fast that **can** be on the machine in front of you, measures it,
# and then looks at the package's ways to come nearer (`musicgen_ref/fast/`). All numbers below were measured where
# this page was made; run it, and they are yours.

# %%
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from lab import Lab, seconds
from matplotlib.figure import Figure
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from musicgen_ref import DecoderConfig, EncodecConfig, GenerationOptions, MusicGen, T5Config
from musicgen_ref.checkpoint.source import without_values
from musicgen_ref.decoder import Decoder
from musicgen_ref.fast import native
from musicgen_ref.fast.int8 import Int8Linear, quantize
from musicgen_ref.fast.linear import FewRows

# %% tags=["parameters"]
SHORT = False  # True: fewer and smaller measurements
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(8, OUT)
torch.manual_seed(0)
times = 3 if SHORT else 7  # a median of so many
lab.path("decoder")

# %% [markdown]
# Some of what follows is C++, which is compiled now: that takes seconds, and needs a compiler. Where there is none,
# the chapter runs without, and says what it leaves out.

# %%
began = time.perf_counter()
try:
    native.library()  # musicgen_ref/fast/native.cpp
    compiled = True
    print(f"compiled in {time.perf_counter() - began:.0f} s")
except (FileNotFoundError, RuntimeError) as missing:
    compiled = False
    print(f"Nothing is compiled here, so that what is said of compiled code is not measured: {missing}")

# %% [markdown]
# ## What a step reads
#
# **Idea.** A step of decoding has one row of numbers for each clip (two with guidance). Every weight is read from
# memory, used for that row or two, and forgotten. So count bytes, not multiplications.
#
# **Formula.** Of the matrices: in each block the four of self-attention, two of cross-attention (keys and values of
# the text are computed once, chapter 6), and the two of the feed-forward; then the heads. And of the cache, at step
# P, the keys and values of all steps so far, in every block and row:
#
#     weights = (layers (6 E E + 2 E F) + K V E) * bytes a number
#     cache   = 2 layers rows P E                * bytes a number


# %%
def weights_read(c: DecoderConfig, size: int = 4) -> int:
    """Bytes of the matrices that a step multiplies by."""
    return size * (c.layers * (6 * c.width**2 + 2 * c.width * c.ffn) + c.codebooks * c.vocab_size * c.width)


def cache_read(c: DecoderConfig, position: int, rows: int = 2, size: int = 4) -> int:
    """Bytes of keys and values that the steps before leave to read."""
    return size * 2 * c.layers * rows * position * c.width


demo, small = MusicGen.from_pretrained("demo", fast=False), DecoderConfig()
with without_values():
    linear = {name: part for name, part in Decoder(small).named_modules() if isinstance(part, nn.Linear)}
every = {name: part.weight.numel() for name, part in linear.items()}
once = [n for name, n in every.items() if name.endswith(("cross_attn.k", "cross_attn.v")) or name == "text_proj"]
assert weights_read(small) == 4 * (sum(every.values()) - sum(once))
for name, config in {"demo": demo.decoder.config, "musicgen-small": small}.items():
    weights, cache = weights_read(config) / 1e6, cache_read(config, 1500) / 1e6
    print(f"{name}: weights {weights:,.0f} MB a step, cache {cache:,.0f} MB at 30 s")

# %% [markdown]
# ## How fast can it be read?
#
# **Idea.** Two numbers describe a machine: how many bytes a second come out of memory, and how many multiplications
# and additions a second its cores can do. For the first, read a large matrix in a few ways and take the fastest: its
# sum, its product with a vector, and the same product in C++. For the second, multiply large matrices.

# %%
big, vector = torch.randn(2**12 if SHORT else 2**14, 2**12), torch.randn(1, 2**12)
ways: dict[str, Callable[[], Any]] = {"sum": big.sum, "product": lambda: big @ vector[0]}
if compiled:
    ways["product in C++"] = lambda: native.product(vector, big)
speeds = {name: big.nbytes / seconds(way, times) for name, way in ways.items()}
bandwidth = max(speeds.values())
print(", ".join(f"{name}: {speed / 1e9:.1f} GB/s" for name, speed in speeds.items()))
n = 512 if SHORT else 1536
a, b = torch.randn(n, n), torch.randn(n, n)
peak = 2 * n**3 / seconds(lambda: a @ b, times)
threads = torch.get_num_threads()
print(f"{threads} thread(s): memory {bandwidth / 1e9:.1f} GB/s, arithmetic {peak / 1e9:.0f} GFLOP/s")
print(f"a number of 4 bytes must be used {4 * peak / bandwidth:.0f} times before arithmetic is what one waits for")
floor = weights_read(small) / bandwidth
print(f"a step of musicgen-small takes at least {1000 * floor:.0f} ms here, 30 s of music {1503 * floor:.0f} s")

# %% [markdown]
# ## The roofline
#
# **Idea.** A piece of work waits for memory or for arithmetic, whichever takes longer. Which of them it is depends on
# how often a number is used once it has been read.
#
# **Formula.** With the **intensity** of a piece of work, its operations per byte,
#
#     operations a second  <=  min(peak, intensity * bandwidth)
#
# A slanted roof, where memory decides, and a flat one, where arithmetic does.
#
# **Figure.** A layer of musicgen-small's feed-forward, for 1 row to 256: a decoding step stands at the far left,
# training at the right. The weights of several layers take turns, so that no cache holds them from one call to the
# next.

# %%
E, F = small.width, small.ffn
layers = [nn.Linear(E, F, bias=False).requires_grad_(False) for _ in range(4 if SHORT else 8)]


def through(layers: list[Any], x: torch.Tensor) -> float:
    """Seconds that one layer takes for x."""
    return seconds(lambda: [layer(x) for layer in layers], times) / len(layers)


points = {}
for rows in (1, 2, 8, 64) if SHORT else (1, 2, 4, 8, 16, 64, 256):
    taken = through(layers, torch.randn(rows, E))
    work, moved = 2 * rows * E * F, 4 * (E * F + rows * (E + F))
    points[rows] = (work / moved, work / taken, taken)
    print(f"{rows:4} rows: {1000 * taken:6.2f} ms, {work / taken / 1e9:6.1f} GFLOP/s, {moved / taken / 1e9:5.1f} GB/s")
assert points[8][2] < 8 * points[1][2]  # eight rows cost less than eight times one: the weights are read once


def roofline(lines: dict[str, dict[int, tuple[float, float, float]]]) -> Figure:
    """The roof, and the points of each line: by rows, (operations a byte, operations a second, seconds)."""
    figure = Figure(figsize=(9, 4))
    axes = figure.subplots()
    reach = torch.logspace(-1, 3, 100)
    axes.loglog(reach, (reach * bandwidth).clamp(max=peak) / 1e9, color="#444444", label="the roof")
    for name, by_rows in lines.items():
        intensities, rates = [[point[i] for point in by_rows.values()] for i in (0, 1)]
        axes.loglog(intensities, [rate / 1e9 for rate in rates], "o-", linewidth=0.7, label=name)
        for rows, intensity, rate in zip(by_rows, intensities, rates, strict=True):
            axes.annotate(f"{rows}", (intensity, rate / 1e9), textcoords="offset points", xytext=(5, -10), fontsize=8)
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("billions of operations a second")
    axes.set_title(f"a layer of {E} to {F}; the numbers are rows; {threads} thread(s)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


lab.figure(roofline({"fp32, torch": points}), "roofline", "Roofline of this machine: a layer for 1 row and more.")

# %% [markdown]
# ## The order of operands
#
# **Idea.** `x W'` and `(W x')'` are the same numbers, where `'` is the transpose. But the library that multiplies
# matrices, the BLAS, reads W along its rows or across them, shares it among threads or does not, and which of the
# forms it was written for shows in the time. `FewRows` is nn.Linear with the form that reads fastest on the
# processors that it was measured on; its file has the table. On other processors it is the plain one, and the two
# columns below are alike.

# %%
fast = [FewRows(layer) for layer in layers]
for rows in (1, 2, 8):
    x = torch.randn(rows, E)
    plain, few = through(layers, x), through(fast, x)
    difference = (fast[0](x) - layers[0](x)).abs().max() / layers[0](x).abs().max()
    assert difference < 1e-5  # sums in another order: see chapter 9
    print(f"{rows} rows: plain {1000 * plain:5.2f} ms, FewRows {1000 * few:5.2f} ms, they differ by {difference:.0e}")

# %% [markdown]
# ## Fewer bytes: bfloat16 and int8
#
# **Idea.** If bytes are what counts, use fewer. A bfloat16 is the upper half of a float: the same range, 8
# significant bits, half of the bytes. For int8, a quarter, round each row of a matrix to 255 levels and keep a scale
# for the row.
#
# **Formula.** For a row w of the matrix,
#
#     scale = max |w| / 127        w_int = round(w / scale)        w . x  is nearly  scale * (w_int . x)
#
# and an entry is off by half a scale at most. This is not the same number sooner: it is another number. What that
# does to the music must be measured for each checkpoint (`python -m benchmarks.int8`).

# %%
eighth = [Int8Linear(layer) for layer in layers]
W, x = layers[0].weight, torch.randn(2, E)
scale = W.abs().amax(1, keepdim=True) / 127
assert ((W - eighth[0].weight).abs() <= scale / 2 + 1e-7).all()
exact = layers[0](x)
halves = W.bfloat16().float()
for name, other in {"bfloat16": x @ halves.T, "int8": eighth[0](x)}.items():
    error = (other - exact).norm() / exact.norm()
    print(f"{name}: products are off by {error:.2%}")
    assert error < 0.05
if compiled:
    of_input = (eighth[0](x) - x @ eighth[0].weight.T).norm() / exact.norm()  # the same rounded weights on both sides
    print(f"of that, what rounding the input to 16 bits adds: {of_input:.4%}")
    assert of_input < error / 20
for size, name in ((4, "fp32"), (2, "bfloat16"), (1, "int8")):
    print(f"musicgen-small in {name}: {weights_read(small, size) / 1e6:,.0f} MB a step")

# %% [markdown]
# Fewer bytes help only if they are read **as they lie**. A product that first makes fp32 of the weights and writes it
# to memory reads and writes more than it saves, and that is what torch does on a processor without instructions for
# these numbers. `native.cpp` makes fp32 of them in registers, a vector at a time: nothing but the short weights ever
# leaves the memory. In int8 it stays with whole numbers: the input is rounded to 16 bits, and a register holds twice
# as many products of 8 and 16 bits as of floats. What that rounds away of the input was printed above: it is little
# beside what was rounded away of the weights.
#
# **Figure.** The same layer on the same roof. A weight of fewer bytes does more operations a byte, so its points
# stand further right, and where memory decides they may stand higher.

# %%
lines = {"fp32, torch": points}
if compiled:
    kinds = {
        "fp32, C++": [(layer.weight, None) for layer in layers],
        "bfloat16, C++": [(layer.weight.bfloat16(), None) for layer in layers for _ in range(2)],  # as many bytes
        "int8, C++": [(q.numbers.clone(), q.scales) for q in eighth for _ in range(4)],
    }
    for name, weights in kinds.items():
        products = [lambda x, w=w, scales=scales: native.product(x, w, scales) for w, scales in weights]
        lines[name] = {}
        for rows in (1, 2, 4) if SHORT else (1, 2, 4, 8, 16):
            taken = through(products, torch.randn(rows, E))
            work, moved = 2 * rows * E * F, weights[0][0].nbytes + 4 * rows * (E + F)
            lines[name][rows] = (work / moved, work / taken, taken)
        one, two = (f"{1000 * lines[name][rows][2]:5.2f} ms" for rows in (1, 2))
        print(f"{name:14} 1 row {one}, 2 rows {two}")
else:
    print("Without a C++ compiler there is nothing to add to the picture.")
lab.figure(roofline(lines), "kinds", "Roofline with the same layer in fp32, bfloat16 and int8.")

# %% [markdown]
# ## A step in one call
#
# **Idea.** A step through torch is a long list of small operations. Each is looked up by Python and by torch, each
# starts the threads anew and writes its numbers to memory for the next, and none knows what comes after. So the time
# of a step has two parts.
#
# **Formula.**
#
#     seconds a step = operations * seconds to start one + bytes / bandwidth
#
# The second part is the roof's. The first is what `model.compile()` takes away on a CPU: it lets the decoder run its
# step of one column as **one** call of compiled C++, and all else as before. Inside that call
#
# - the threads start once, and wait for each other only where one part needs the whole of another;
# - every product reads its weights in the order in which they lie, out of one piece of memory in large pages, for
#   which the processor translates few addresses;
# - memory is asked for 4 kB before it is needed, because the processor's own guesses end with a page;
# - weights in bfloat16 and int8, and keys and values too, are read as they lie.
#
# What comes out is the same but for rounding, and so are the codes.
#
# **Code.** First the list, counted, for the demo; then the demo's time through torch and compiled.


# %%
class Counted(TorchDispatchMode):
    """Counts the operations that torch is asked for."""

    count = 0

    def __torch_dispatch__(self, call: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        self.count += 1
        return call(*given, **(named or {}))


def step_of(decoder: Decoder, rows: int, position: int, memory: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A step of one column behind so many steps, as often as it is called."""
    cache = decoder.new_cache(rows, position + 1, memory)
    for tensor in (*cache.keys, *cache.values):
        tensor.zero_()
    column = torch.zeros(rows, decoder.config.codebooks, 1, dtype=torch.long)

    @torch.no_grad()
    def step() -> torch.Tensor:
        cache.length = position
        return decoder(column, cache=cache)

    return step


with torch.no_grad(), Counted() as counted:
    step_of(demo.decoder, 2, 100, torch.zeros(1, 12, demo.decoder.config.width))()
print(f"a step of the demo asks torch for {counted.count} operations")
assert counted.count > 100

options, text = GenerationOptions(seconds=0.5 if SHORT else 4.0, greedy=True), ["a fast bell melody"]


def clip(model: MusicGen) -> torch.Tensor:
    return torch.stack(list(model.generate_codes(text, options)), dim=-1)  # (B, K, T): without the codec's time


plain = clip(demo)
print(f"plain: {seconds(lambda: clip(demo), 3):.2f} s for {options.seconds:g} s of music")
if compiled:
    quick = copy.deepcopy(demo).compile()
    assert torch.equal(clip(quick), plain)
    print(f"compiled: {seconds(lambda: clip(quick), 3):.2f} s, the same codes")

# %% [markdown]
# ## Whole blocks
#
# **Idea.** Is it true that bytes are what a step waits for? Blocks of musicgen-small's size with weights that are
# drawn, two rows, behind 0 to 1,500 steps. The steps before are read, too: late in a clip they are a good part of the
# bytes, so the compiled step can keep keys and values in fewer bits: in bfloat16, or as here in 255 levels with a scale
# for each head at each step, which is `model.compile(cache="int8")`.
#
# **Figure.** The time of a step over its position: through torch, compiled, compiled with a cache of int8, and what
# the bytes alone would take at the bandwidth measured above.

# %%
sizes = DecoderConfig(layers=1 if SHORT else 4)
tiny = EncodecConfig(filters=4, hidden=16)
model = MusicGen(T5Config(vocab_size=8, layers=1), sizes, tiny).eval().requires_grad_(False)
memory = torch.randn(1, 12, E)
variants = {"torch": model}
if compiled:
    variants["compiled"] = copy.deepcopy(model).compile()
    variants["compiled, int8 cache"] = copy.deepcopy(model).compile(cache="int8")
positions = (0, 1500) if SHORT else (0, 500, 1000, 1500)
curves = {
    name: [1000 * seconds(step_of(one.decoder, 2, position, memory), times) for position in positions]
    for name, one in variants.items()
}
curves["the bytes alone, fp32"] = [
    1000 * (weights_read(sizes) + cache_read(sizes, position)) / bandwidth for position in positions
]
for name, curve in curves.items():
    print(f"{name:21}" + "".join(f"{taken:8.2f} ms" for taken in curve))

figure = Figure(figsize=(9, 3.5))
axes = figure.subplots()
for name, curve in curves.items():
    axes.plot(positions, curve, "--" if name.startswith("the bytes") else "o-", label=name)
axes.set_ylim(bottom=0)
axes.set_xlabel("steps before this one")
axes.set_ylabel(f"ms, {sizes.layers} block(s) and the heads")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
lab.figure(figure, "block", "Time of a step of some blocks over the position, measured and by its bytes.")

# %% [markdown]
# And with weights of fewer bytes, at the first step: its time, how far the logits are from those of fp32, and how
# many bytes of weights it read a second, which the bandwidth limits.

# %%
if compiled:
    expected = step_of(model.decoder, 2, 0, memory)()
    lower = {"float32": variants["compiled"], "bfloat16": copy.deepcopy(model), "int8": copy.deepcopy(model)}
    lower["bfloat16"].decoder.bfloat16()
    quantize(lower["int8"])
    for (name, one), size in zip(lower.items(), (4, 2, 1), strict=True):
        step = step_of(one.compile().decoder, 2, 0, memory.to(one.decoder.norm.weight.dtype))
        error = (step().float() - expected).norm() / expected.norm()
        taken, moved = seconds(step, times), weights_read(sizes, size)
        print(f"{name:9} {1000 * taken:6.2f} ms, logits off by {error:.0e}, {moved / taken / 1e9:5.1f} GB/s")
        assert error < {4: 1e-5, 2: 0.05, 1: 0.05}[size]
else:
    print("Without a C++ compiler this is not measured.")

# %% [markdown]
# ## Exercises
#
# In `learn/exercises/chapter_08.py`; `python -m learn.check 8` marks them.
#
# 1. `bytes_a_step(config, rows, position, size)`: weights and cache.
# 2. `attainable(work, moved, peak, bandwidth)`: the roof, in seconds.
# 3. `round_rows(weight)`: to int8, row by row; rows of zeros must survive it.
