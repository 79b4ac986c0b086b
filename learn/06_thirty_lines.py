# %% [markdown]
# # 6. Generation in thirty lines, and then faster
#
# All parts are there. This chapter puts them together as plainly as possible, in a loop that fits on a screen and
# recomputes everything at every step. Then it makes it fast, one idea at a time. After each idea three things are
# shown: the lines that changed, the time that it took, and that **the codes are still the same**.

# %%
import difflib
import inspect
import time
from collections.abc import Callable

import torch
from lab import Lab, seconds
from matplotlib.figure import Figure
from torch import Generator, Tensor

from musicgen_ref import GenerationOptions, MusicGen, delay
from musicgen_ref.sampling import draw, guide, top_k

# %% tags=["parameters"]
SHORT = False  # True: the same chapter on a shorter clip
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(6, OUT)
model = MusicGen.from_pretrained("demo")
caption = "a fast arpeggio in A minor on a plucked string with busy drums"
frames = 25 if SHORT else 200
lab.path("caption", "T5", "memory", "delay", "decoder", "logits", "draw", "undo")

# %% [markdown]
# ## Thirty lines
#
# A table of special tokens; for each column after the start: read all columns before it, with the caption and
# without; guide; cut; draw; and write the codes into the cells that are to hold one. Everything that it calls is from
# the chapters before.


# %%
@torch.no_grad()
def plain(model: MusicGen, text: str, frames: int, generator: Generator) -> Tensor:
    K, V, delays = len(model.delays), model.decoder.config.vocab_size, model.delays
    memory, mask = model.encode_text([text])
    nothing, unseen = torch.zeros_like(memory), torch.zeros_like(mask)
    table = torch.full((1, K, 1 + frames + max(delays)), V)  # column 0 is the start
    for column in range(1, table.shape[2]):
        read = table[..., :column]
        cond = model.decoder(read, memory, mask)[:, :, -1]  # (1, K, V), of the last column that was read
        null = model.decoder(read, nothing, unseen)[:, :, -1]
        logits = guide(cond, null, 3.0)
        codes = draw(top_k(logits, 250), generator)
        for k, lag in enumerate(delays):
            if lag < column <= lag + frames:  # otherwise the cell holds no code, and stays special
                table[:, k, column] = codes[:, k]
    return delay.undo(table[..., 1:], delays)


lines = [line for line in inspect.getsource(plain).splitlines() if line.strip()]
print(f"{len(lines)} lines")
assert len(lines) <= 30

# %% [markdown]
# Does it make the music that the package makes? The same seed, the same codes, all of them.


# %%
def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# Guidance 3 and top-k 250 are the defaults. The demo asks for temperature 0.3; at 1 there is one line less to write.
options = GenerationOptions(frames=frames, temperature=1.0)
reference = model.generate([caption], options, generator=seeded())
times: dict[str, float] = {}


def diff(before: Callable[..., Tensor], after: Callable[..., Tensor]) -> None:
    """Print the lines that changed."""
    old, new = (inspect.getsource(one).splitlines() for one in (before, after))
    changed = difflib.unified_diff(old, new, lineterm="", n=0)
    print("\n".join(line for line in changed if not line.startswith(("---", "+++", "@@"))))


def show(name: str, version: Callable[..., Tensor], before: Callable[..., Tensor] | None = None) -> None:
    """Time a version, check that its codes are the reference's, and show what changed."""
    version(model, caption, 2, seeded())  # what happens once only, happens here
    taken = []
    for _ in range(1 if SHORT or version is plain else 3):  # the least of three: a machine has other things to do, too
        began = time.perf_counter()
        codes = version(model, caption, frames, seeded())
        taken.append(time.perf_counter() - began)
    times[name] = min(taken)
    assert torch.equal(codes, reference.codes), f"{name}: the codes are others"
    if before is not None:
        diff(before, version)
    print(f"\n{name}: {times[name]:.2f} s for {frames / 50:g} s of music; the same codes")


show("plain", plain)
lab.sound(reference.audio[0], model.sampling_rate, "clip", caption)

# %% [markdown]
# ## Step 1: a cache
#
# **Idea.** At column 100 the loop recomputes the columns 0 to 98, and nothing in them has changed: causal attention
# never looks ahead, so their keys and values are what they were. Keep them, and a step reads **one** column.
#
# **Formula.** The columns that the decoder reads in all, for S steps:
#
#     before   1 + 2 + ... + S = S (S + 1) / 2
#     after    S


# %%
@torch.no_grad()
def cached(model: MusicGen, text: str, frames: int, generator: Generator) -> Tensor:
    K, V, delays = len(model.delays), model.decoder.config.vocab_size, model.delays
    memory, mask = model.encode_text([text])
    nothing, unseen = torch.zeros_like(memory), torch.zeros_like(mask)
    table = torch.full((1, K, 1 + frames + max(delays)), V)  # column 0 is the start
    with_text = model.decoder.new_cache(1, table.shape[2] - 1, memory, mask)
    without = model.decoder.new_cache(1, table.shape[2] - 1, nothing, unseen)
    for column in range(1, table.shape[2]):
        read = table[..., column - 1 : column]
        cond = model.decoder(read, cache=with_text)[:, :, -1]  # (1, K, V), of the last column that was read
        null = model.decoder(read, cache=without)[:, :, -1]
        logits = guide(cond, null, 3.0)
        codes = draw(top_k(logits, 250), generator)
        for k, lag in enumerate(delays):
            if lag < column <= lag + frames:  # otherwise the cell holds no code, and stays special
                table[:, k, column] = codes[:, k]
    return delay.undo(table[..., 1:], delays)


show("cache", cached, plain)

# %% [markdown]
# What a step costs, by the column that it decides: without a cache it grows, with one it hardly does.

# %%
S = frames + max(model.delays)
reads = {"plain": 2 * S * (S + 1) // 2, "cache": 2 * S}  # columns read, with the caption and without
print(f"columns read: {reads['plain']:,} without a cache, {reads['cache']:,} with one")
states = model.encode_text([caption])
positions = torch.linspace(1, S, 5 if SHORT else 9).long().tolist()
cost: dict[str, list[float]] = {"without a cache": [], "with a cache": []}
full = torch.zeros(1, len(model.delays), S, dtype=torch.long)
with torch.no_grad():
    for position in positions:
        cache = model.decoder.new_cache(1, S + 8, *states)
        model.decoder(full[..., : position - 1], cache=cache) if position > 1 else None
        cost["without a cache"].append(seconds(lambda p=position: model.decoder(full[..., :p], *states)))
        cost["with a cache"].append(seconds(lambda cache=cache: model.decoder(full[..., :1], cache=cache)))
figure = Figure(figsize=(10, 3))
axes = figure.subplots()
for name, taken in cost.items():
    axes.plot(positions, [1000 * value for value in taken], "o-", label=name)
axes.set_ylim(bottom=0)
axes.set_xlabel("column")
axes.set_ylabel("ms for a step of one row")
axes.legend()
lab.figure(figure, "cost", "Time of a step over the column, without a cache and with one.")

# %% [markdown]
# Two things come with it for free: the keys and values of the **text** are computed once, not at every step
# (`new_cache` does that), and the step's time no longer grows with the clip, but for attention itself.
#
# ## Step 2: both halves of guidance in one batch
#
# **Idea.** A large model's step takes the time that it takes to read the weights (chapter 8 measures it). Two calls
# of one row read them twice; one call of two rows reads them once.


# %%
@torch.no_grad()
def batched(model: MusicGen, text: str, frames: int, generator: Generator) -> Tensor:
    K, V, delays = len(model.delays), model.decoder.config.vocab_size, model.delays
    memory, mask = model.encode_text([text, None])  # None: zeros under a mask of zeros
    table = torch.full((1, K, 1 + frames + max(delays)), V)  # column 0 is the start
    cache = model.decoder.new_cache(2, table.shape[2] - 1, memory, mask)
    for column in range(1, table.shape[2]):
        read = table[..., column - 1 : column].repeat(2, 1, 1)
        cond, null = model.decoder(read, cache=cache)[:, :, -1].split(1)  # (1, K, V) each
        logits = guide(cond, null, 3.0)
        codes = draw(top_k(logits, 250), generator)
        for k, lag in enumerate(delays):
            if lag < column <= lag + frames:  # otherwise the cell holds no code, and stays special
                table[:, k, column] = codes[:, k]
    return delay.undo(table[..., 1:], delays)


show("one batch", batched, cached)

# %% [markdown]
# ## Step 3: the null half reads nothing
#
# **Idea.** The row without a caption attends to zeros: keys and values of zero add exactly 0 to the stream. So leave
# that out. The package's rule is that rows past those of the memory read no text: give it the memory of the first row
# alone.


# %%
@torch.no_grad()
def skipped(model: MusicGen, text: str, frames: int, generator: Generator) -> Tensor:
    K, V, delays = len(model.delays), model.decoder.config.vocab_size, model.delays
    memory, mask = model.encode_text([text])
    table = torch.full((1, K, 1 + frames + max(delays)), V)  # column 0 is the start
    cache = model.decoder.new_cache(2, table.shape[2] - 1, memory, mask)
    for column in range(1, table.shape[2]):
        read = table[..., column - 1 : column].repeat(2, 1, 1)
        cond, null = model.decoder(read, cache=cache)[:, :, -1].split(1)  # (1, K, V) each
        logits = guide(cond, null, 3.0)
        codes = draw(top_k(logits, 250), generator)
        for k, lag in enumerate(delays):
            if lag < column <= lag + frames:  # otherwise the cell holds no code, and stays special
                table[:, k, column] = codes[:, k]
    return delay.undo(table[..., 1:], delays)


show("null half reads nothing", skipped, batched)

# %% [markdown]
# ## Step 4: many clips, each with a generator of its own
#
# **Idea.** If reading the weights is what takes time, several clips at once cost little more than one. But with one
# generator for the batch a clip's draws would depend on its neighbours. A generator for each row makes every clip
# what it would be alone: the first of these is still the reference.

# %%
ROWS = 4


@torch.no_grad()
def rows(model: MusicGen, text: str, frames: int, generators: list[Generator]) -> Tensor:
    K, V, delays, B = len(model.delays), model.decoder.config.vocab_size, model.delays, len(generators)
    memory, mask = model.encode_text([text] * B)
    table = torch.full((B, K, 1 + frames + max(delays)), V)  # column 0 is the start
    cache = model.decoder.new_cache(2 * B, table.shape[2] - 1, memory, mask)
    for column in range(1, table.shape[2]):
        read = table[..., column - 1 : column].repeat(2, 1, 1)
        cond, null = model.decoder(read, cache=cache)[:, :, -1].split(B)  # (B, K, V) each
        logits = guide(cond, null, 3.0)
        codes = draw(top_k(logits, 250), generators)
        for k, lag in enumerate(delays):
            if lag < column <= lag + frames:  # otherwise the cell holds no code, and stays special
                table[:, k, column] = codes[:, k]
    return delay.undo(table[..., 1:], delays)


show("a generator a row", lambda model, text, frames, generator: rows(model, text, frames, [generator]))
diff(skipped, rows)
own = [seeded(row) for row in range(ROWS)]
began = time.perf_counter()
several = rows(model, caption, frames, own)
times[f"{ROWS} clips"] = time.perf_counter() - began
assert torch.equal(several[:1], reference.codes)  # whatever its neighbours are
again = model.generate([caption] * ROWS, options, generator=[seeded(row) for row in range(ROWS)])
assert torch.equal(several, again.codes)
print(f"{ROWS} clips: {times[f'{ROWS} clips']:.2f} s, {times[f'{ROWS} clips'] / ROWS:.2f} s a clip")
heard = {f"seed {i}": audio for i, audio in enumerate(model.decode(several))}
lab.sounds(heard, model.sampling_rate, "rows")

# %% [markdown]
# ## What it all came to
#
# `model.generate()` is this last loop; what it has besides is prompts, streaming and stopping early, because the loop
# (`model.fill_in`) is an iterator. Read it now: there should be no line that you do not know.

# %%
began = time.perf_counter()
for frame in model.generate_codes([caption], options, generator=seeded()):
    assert frame.shape == (1, len(model.delays))
times["the package"] = time.perf_counter() - began

figure = Figure(figsize=(10, 3))
axes = figure.subplots()
bars = axes.barh(list(times), list(times.values()))
axes.bar_label(bars, [f"{taken:.2f} s" for taken in times.values()], padding=3)
axes.invert_yaxis()
axes.margins(x=0.12)
axes.set_xlabel(f"seconds for {frames / 50:g} s of music ({ROWS} clips: {ROWS} times as much)")
lab.figure(figure, "times", "Measured time of each version.")

# %% [markdown]
# ## Exercises
#
# In `learn/exercises/chapter_06.py`; `python -m learn.check 6` marks them.
#
# 1. `columns_read(steps, prompt, cached)`: how many columns the decoder reads in all, where the clip begins with a
#    prompt.
# 2. `start_table(known, frames, delays, special)`: the table of a continuation, with the cells to decide marked.
# 3. `until_silence(frames, wanted, silence)`: stop a stream early; the loop is an iterator, so this is yours to write.
