# %% [markdown]
# # 8. Make it fast
#
# Chapter 6 removed work that need not be done. What is left must be done: at every step, every weight of the decoder
# is multiplied by a vector. This chapter asks how fast that **can** be on the machine in front of you, measures it,
# and then looks at the package's ways to come nearer (`musicgen_ref/fast/`). All numbers below were measured where
# this page was made; run it, and they are yours.

# %%
import copy
import warnings

import torch
from lab import Lab, seconds
from matplotlib.figure import Figure
from torch import nn

from musicgen_ref import DecoderConfig, GenerationOptions, MusicGen
from musicgen_ref.checkpoint.source import without_values
from musicgen_ref.decoder import Decoder
from musicgen_ref.fast.int8 import Int8Linear
from musicgen_ref.fast.linear import FewRows

# %% tags=["parameters"]
SHORT = False  # True: fewer and smaller measurements, without torch.compile
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(8, OUT)
torch.manual_seed(0)
times = 3 if SHORT else 7  # a median of so many
lab.path("decoder")

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
# and additions a second its cores can do. Add up a large tensor for the first, multiply large matrices for the
# second.

# %%
big = torch.randn(2**24 if SHORT else 2**26)
bandwidth = 4 * big.numel() / seconds(lambda: big.sum(), times)
n = 512 if SHORT else 1536
a, b = torch.randn(n, n), torch.randn(n, n)
peak = 2 * n**3 / seconds(lambda: a @ b, times)
threads = torch.get_num_threads()
print(f"{threads} threads: memory {bandwidth / 1e9:.1f} GB/s, arithmetic {peak / 1e9:.0f} GFLOP/s")
print(f"a number of 4 bytes must be used {4 * peak / bandwidth:.0f} times before arithmetic is what one waits for")
floor = weights_read(small) / bandwidth
print(f"a step of musicgen-small takes at least {1000 * floor:.0f} ms here, 30 s of music {1503 * floor:.0f} s")

# %% [markdown]
# ## The roofline
#
# **Formula.** With the **intensity** of a piece of work, its operations per byte,
#
#     operations a second  <=  min(peak, intensity * bandwidth)
#
# A slanted roof, where memory decides, and a flat one, where arithmetic does. **Figure.** A layer of musicgen-small's
# feed-forward, for 1 row to 256: a decoding step stands at the far left, training at the right. The weights of
# several layers take turns, so that no cache holds them from one call to the next.

# %%
E, F = small.width, small.ffn
layers = [nn.Linear(E, F, bias=False).requires_grad_(False) for _ in range(4 if SHORT else 8)]


def through(layers: list[nn.Module], x: torch.Tensor) -> float:
    """Seconds that one layer takes for x."""
    return seconds(lambda: [layer(x) for layer in layers], times) / len(layers)


points = {}
for rows in (1, 2, 8, 64) if SHORT else (1, 2, 4, 8, 16, 64, 256):
    taken = through(layers, torch.randn(rows, E))
    work, moved = 2 * rows * E * F, 4 * (E * F + rows * (E + F))
    points[rows] = (work / moved, work / taken, taken)
    print(f"{rows:4} rows: {1000 * taken:6.2f} ms, {work / taken / 1e9:6.1f} GFLOP/s, {moved / taken / 1e9:5.1f} GB/s")
assert points[8][2] < 8 * points[1][2]  # eight rows cost less than eight times one: the weights are read once

figure = Figure(figsize=(9, 4))
axes = figure.subplots()
reach = torch.logspace(-1, 3, 100)
axes.loglog(reach, (reach * bandwidth).clamp(max=peak) / 1e9, color="#444444", label="the roof")
for rows, (intensity, rate, _) in points.items():
    axes.loglog(intensity, rate / 1e9, "o", color="#d35400")
    axes.annotate(f"{rows}", (intensity, rate / 1e9), textcoords="offset points", xytext=(5, -10), fontsize=8)
axes.set_xlabel("operations a byte")
axes.set_ylabel("GFLOP/s")
axes.set_title(f"{E} x {F} by so many rows, {threads} thread(s)", fontsize=10)
axes.grid(alpha=0.3)
lab.figure(figure, "roofline", "Roofline of this machine: a linear layer for 1 row and more.")

# %% [markdown]
# ## The order of operands
#
# **Idea.** `x W'` and `(W x')'` are the same numbers. But a BLAS reads W along its rows or across them, shares it
# among threads or does not, and which of the forms it was written for shows in the time. `FewRows` is nn.Linear with
# the form that reads fastest on the processors that it was measured on; its file has the table. On other processors
# it is the plain one, and the two columns below are alike.

# %%
fast = [FewRows(layer) for layer in layers]
for rows in (1, 2, 8):
    x = torch.randn(rows, E)
    plain, few = through(layers, x), through(fast, x)
    difference = (fast[0](x) - layers[0](x)).abs().max() / layers[0](x).abs().max()
    assert difference < 1e-5  # sums in another order: see chapter 9
    print(f"{rows} rows: plain {1000 * plain:5.2f} ms, FewRows {1000 * few:5.2f} ms, they differ by {difference:.0e}")

# %% [markdown]
# ## int8: fewer bytes
#
# **Idea.** If bytes are what counts, use fewer. Round each row of a matrix to 255 levels, and keep a scale for the
# row.
#
# **Formula.** `w_int = round(w / scale)` with `scale = max |w| / 127`; the product is `scale * (w_int . x)`, and an
# entry is off by half a scale at most.
#
# This is not the same number sooner: it is another number. What that does to the music must be measured for each
# checkpoint (`python -m benchmarks.int8`).

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # torch means to retire what makes them: see int8.py
    packed = [Int8Linear(layer) for layer in layers]
W, rounded = layers[0].weight, packed[0].weight
scale = W.abs().amax(1, keepdim=True) / 127
assert ((W - rounded).abs() <= scale / 2 + 1e-7).all()
x = torch.randn(2, E)
error = (packed[0](x) - layers[0](x)).norm() / layers[0](x).norm()
print(f"two rows: fp32 {1000 * through(layers, x):.2f} ms, int8 {1000 * through(packed, x):.2f} ms; error {error:.1%}")
print(f"musicgen-small: {weights_read(small) / 1e6:,.0f} MB a step, in int8 {weights_read(small, 1) / 1e6:,.0f}")

assert error < 0.05

# %% [markdown]
# ## A whole block
#
# Is it true that the weights are what a step waits for? A block of musicgen-small, two rows, behind 0 to 1500 steps:
# measured, and what the bytes alone would take.

# %%
with torch.no_grad():
    decoder = Decoder(DecoderConfig(layers=2 if SHORT else 4)).eval()
    column, memory = torch.zeros(2, 4, 1, dtype=torch.long), torch.randn(1, 12, E)
    positions, measured, bytes_alone = (0, 1500) if SHORT else (0, 500, 1000, 1500), [], []
    for position in positions:
        cache = decoder.new_cache(2, 1600, memory)
        for tensor in (*cache.keys, *cache.values):
            tensor.zero_()

        def one_step(cache=cache, position=position) -> None:
            cache.length = position
            decoder(column, cache=cache)

        measured.append(seconds(one_step, times))
        moved = weights_read(decoder.config) + cache_read(decoder.config, position)
        bytes_alone.append(moved / bandwidth)
        print(f"step {position:4}: {1000 * measured[-1]:6.2f} ms, the bytes alone {1000 * bytes_alone[-1]:6.2f} ms")
figure = Figure(figsize=(8, 3))
axes = figure.subplots()
axes.plot(positions, [1000 * t for t in measured], "o-", label="measured")
axes.plot(positions, [1000 * t for t in bytes_alone], "o--", label="the bytes alone")
axes.set_ylim(bottom=0)
axes.set_xlabel("step")
axes.set_ylabel(f"ms, {decoder.config.layers} blocks and heads")
axes.legend(loc="lower right")
lab.figure(figure, "block", "Time of a step of some blocks over the position, measured and by its bytes.")

# %% [markdown]
# ## Compile
#
# **Idea.** A step is some two hundred operations, and each costs a few microseconds of Python and of torch finding
# out what to call. For a model as small as the demo that is a good part of the time. `torch.compile` writes one
# program for the whole step; that takes a minute or more, once, and needs a C++ compiler. The codes stay the same.

# %%
options = GenerationOptions(seconds=0.5 if SHORT else 4.0, greedy=True)
text = ["a fast bell melody"]


def clip(model: MusicGen) -> torch.Tensor:
    return model.generate(text, options).codes


plain = clip(demo)
print(f"plain: {seconds(lambda: clip(demo), 3):.2f} s for {options.seconds:g} s of music")
if not SHORT:
    try:
        compiled = copy.deepcopy(demo).compile()
    except FileNotFoundError as missing:
        print(f"not compiled: {missing}")
    else:
        assert torch.equal(clip(compiled), plain)
        print(f"compiled: {seconds(lambda: clip(compiled), 3):.2f} s, the same codes")

# %% [markdown]
# ## Exercises
#
# In `learn/exercises/chapter_08.py`; `python -m learn.check 8` marks them.
#
# 1. `bytes_a_step(config, rows, position, size)`: weights and cache.
# 2. `attainable(work, moved, peak, bandwidth)`: the roof, in seconds.
# 3. `round_rows(weight)`: to int8, row by row; rows of zeros must survive it.
