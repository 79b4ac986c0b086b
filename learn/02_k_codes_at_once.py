# %% [markdown]
# # 2. K codes at once
#
# Chapter 1 ended with a table: K codes for each frame of 20 ms. Text is a line, and the recipe for a line is old:
# predict the next symbol from all before it. **In which order does one write a table?** MusicGen's answer, the delay
# pattern, is one short file of the package (`delay.py`); this chapter finds it by looking at what it gives up and
# what it keeps.

# %%
import time

import torch
from lab import Lab, draw_table
from matplotlib.figure import Figure
from torch.nn import functional as F

from musicgen_ref import GenerationOptions, MusicGen, delay

# %% tags=["parameters"]
SHORT = False  # True: the same chapter on a shorter clip
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(2, OUT)
lab.path("codes", "delay", "undo")

# %% [markdown]
# ## Three orders
#
# **Idea.** *Flat*: all codes in one line, frame by frame. Every code knows all before it, and nothing is lost; but a
# clip takes K times as many steps. *Parallel*: a step writes the K codes of one frame at once. That is K times
# faster, but the four codes are then drawn without knowing of each other, although the second only makes sense as the
# refinement of the first. *Delay*: codebook k runs k steps behind. A step still writes K codes, but of K
# **different** frames, so that a code knows the coarser codes of its own frame.
#
# **Formula.** Every order gives the probability of the whole table as a product. With c[k, f] the code of codebook k
# in frame f, flat is the chain rule, exactly:
#
#     p(table) = product over f, k of  p(c[k, f] | all frames before f, and c[0..k-1, f])
#
# Parallel leaves out the second part of the condition. Delay has all of `c[0..k-1, f]`, but gives up some codes of
# the frames shortly before: c[k, f] does not see c[j, g] unless
#
#     g + delays[j] < f + delays[k]
#
# where `delays[k]` says by how many steps codebook k runs behind: 0, 1, 2, 3.
#
# **Figure.** Three frames a, b, c; "." is the special token that stands where there is no code. Column 0 is the start
# column: something must be read before the first code can be written.

# %%
K, names = 4, "abc"


def cells(delays: tuple[int, ...]) -> list[list[str]]:
    """The table of three frames as text, with its start column."""
    codes = torch.arange(len(names)).expand(1, len(delays), -1)
    table = F.pad(delay.apply(codes, delays, fill=-1), (1, 0), value=-1)[0]
    return [["." if code < 0 else names[code] for code in row] for row in table.tolist()]


parallel, delayed = (0,) * K, delay.delays(K)
flat = [["."] + [names[s // K] if s % K == k else "." for s in range(K * len(names))] for k in range(K)]
assert delayed == (0, 1, 2, 3)
assert cells(delayed)[2] == [".", ".", ".", "a", "b", "c", "."]  # codebook 2 runs two steps behind

figure = Figure(figsize=(10, 6.5))
for axes, (title, table) in zip(
    figure.subplots(3, 1),
    {"flat": flat, "parallel": cells(parallel), "delay": cells(delayed)}.items(),
    strict=True,
):
    draw_table(axes, table)
    axes.set_title(f"{title}: {len(table[0]) - 1} steps after the start", fontsize=10)
figure.tight_layout()
lab.figure(figure, "orders", "The table of three frames in flat, parallel and delayed order, with its start column.")

# %% [markdown]
# **Code.** `delay.apply` makes the columns behind the start, `delay.undo` collects the frames again. Code f of
# codebook k stands in column `1 + f + delays[k]`, and T frames take `T + max(delays)` steps. For 30 s that is:

# %%
T = 30 * 50
steps = {"flat": K * T, "parallel": T, "delay": T + max(delayed)}
print(steps)
assert steps["delay"] == 1503
some = torch.randint(0, 256, (1, K, T))
assert delay.apply(some, delayed, fill=256).shape == (1, K, steps["delay"])
assert torch.equal(delay.undo(delay.apply(some, delayed, fill=256), delayed), some)

# %% [markdown]
# ## What a cell has seen
#
# **Idea.** The formula above is a claim about the model. It can be measured: change one cell of the table, run the
# decoder, and see whether the logits of another cell move. A causal model that reads columns must behave exactly as
# the formula says, to the last cell. So take one cell, change every other one in turn (a batch with one changed cell
# a row), and colour what had an effect.

# %%
model = MusicGen.from_pretrained("demo")
V, T = model.decoder.config.vocab_size, 6
codes = torch.randint(0, V, (1, K, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def measured(delays: tuple[int, ...], k: int, f: int) -> set[tuple[int, int]]:
    """The cells (codebook, frame) that change the logits from which code f of codebook k is drawn."""
    table = F.pad(delay.apply(codes, delays, fill=V), (1, 0), value=V)
    where = [(j, g) for j in range(K) for g in range(T)]
    changed = table.repeat(1 + len(where), 1, 1)
    for row, (j, g) in enumerate(where, start=1):
        column = 1 + g + delays[j]
        changed[row, j, column] = (table[0, j, column] + 1) % V
    logits = model.decoder(changed[..., :-1])[:, k, f + delays[k]]  # the step that decides column 1 + f + delays[k]
    moved = (logits[1:] - logits[:1]).abs().amax(dim=1) > 1e-4  # rounding moves them by less
    return {cell for cell, moves in zip(where, moved.tolist(), strict=True) if moves}


def claimed(delays: tuple[int, ...], k: int, f: int) -> set[tuple[int, int]]:
    """The formula."""
    return {(j, g) for j in range(K) for g in range(T) if g + delays[j] < f + delays[k]}


k, f = 2, 3
figure = Figure(figsize=(10, 5))
for axes, (title, delays) in zip(figure.subplots(2, 1), {"parallel": parallel, "delay": delayed}.items(), strict=True):
    seen = measured(delays, k, f)
    assert seen == claimed(delays, k, f)
    table = F.pad(delay.apply(torch.arange(T).expand(1, K, -1), delays, fill=-1), (1, 0), value=-1)[0]
    # A cell shows the number of its frame.
    text = [["." if g < 0 else str(g) for g in row] for row in table.tolist()]
    colours = {(j, 1 + g + delays[j]): "#bfe3bf" for j, g in seen} | {(k, 1 + f + delays[k]): "#ffb74d"}
    draw_table(axes, text, colours)
    axes.set_title(f"{title}: what code {f} of codebook {k} (orange) has seen (green), measured", fontsize=10)
figure.tight_layout()
lab.figure(figure, "seen", "What one cell has seen in the parallel and in the delayed order.")

# %% [markdown]
# In the parallel order the orange cell does not see codebooks 0 and 1 of its own frame, which it refines. In the
# delayed one it does, and even codebook 0 of the frame **after**. In return it misses one code of codebook 3, of the
# frame before: the last refinement, of which the least is left over (chapter 1).

# %%
own_frame = {(j, f) for j in range(k)}
assert not own_frame & measured(parallel, k, f)
assert own_frame <= measured(delayed, k, f)
assert (0, f + 1) in measured(delayed, k, f)
missed = {(j, g) for j in range(K) for g in range(f)} - measured(delayed, k, f)
print("of the frames before, delay does not see:", missed)
assert missed == {(3, f - 1)}

# %% [markdown]
# ## The two triangles
#
# The special tokens on the left of the table are read: they tell the model that a codebook has not begun. Those on
# the right are never written: a step there draws codes for all K codebooks, and those of codebooks that have ended
# are dropped. That is why the decoder has V + 1 input vectors for each codebook, and only V outputs.

# %%
kept = delay.valid(T, delayed)
print(kept.int())
assert int(kept.sum()) == K * T
assert model.decoder.embed[0].num_embeddings == V + 1
assert [head.out_features for head in model.decoder.heads] == [V] * K

# %% [markdown]
# ## Hear it
#
# The demo model was trained on delayed tables. Told to write parallel ones (an option that exists for comparison) it
# takes three steps less, and each code must be drawn without those that it refines. It has not learnt for that: what
# you hear is how much the codes of one frame need each other.

# %%
text, options = ["a fast arpeggio in A minor on a plucked string, no drums"], {"seconds": 1.0 if SHORT else 4.0}
heard, took = {}, {}
for pattern in ("delay", "parallel"):
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(1)
    heard[pattern] = model.generate(text, GenerationOptions(pattern=pattern, **options), generator=generator).audio[0]
    took[pattern] = time.perf_counter() - began
print({pattern: f"{seconds:.2f} s" for pattern, seconds in took.items()})
assert heard["delay"].shape == heard["parallel"].shape
lab.sounds(heard, model.sampling_rate, "patterns")

# %% [markdown]
# ## Where this leaves us
#
# There is now a line to write: the columns of the table, from left to right. Stereo doubles the codebooks, left and
# right in turn, and gives both sides the same delay:

# %%
print(delay.delays(8, channels=2))
assert delay.delays(8, channels=2) == (0, 0, 1, 1, 2, 2, 3, 3)

# %% [markdown]
# What is still missing is what the music should be. Chapter 3 reads the caption.
#
# ## Exercises
#
# In `learn/exercises/chapter_02.py`; `python -m learn.check 2` marks them.
#
# 1. `has_seen(delays, cell, other)`: the formula, for any pattern.
# 2. `flatten(codes)` and `unflatten(line, codebooks)`: the order that gives nothing up.
# 3. `another_pattern(codebooks)`: the shortest delays with which a code knows the coarser codes of its own frame
#    **and of the next one**. Then try it: `DecoderConfig(delays=...)` is trained and generated with like any other.
