# %% [markdown]
# # 9. Equal to the other one
#
# How does one know that a model written from scratch is right? That it makes music proves nothing: a transformer with
# a wrong scale in one block still makes music. What proves it is another implementation of the same model, and the
# same numbers at **every stage**. This chapter compares the package with Hugging Face transformers on the demo's
# weights, looks at where the last digits come from, and then at what a bug looks like.

# %%
import copy

import torch
from lab import Lab
from matplotlib.figure import Figure
from torch import Tensor

from learn import bugs
from musicgen_ref import MusicGen, parity
from musicgen_ref.parity.ours import of_model

# %% tags=["parameters"]
SHORT = False  # True: the same chapter on shorter clips
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(9, OUT)
torch.manual_seed(0)
lab.path("caption", "T5", "memory", "encode", "codes", "delay", "decoder", "logits", "draw", "decode", "heard")

# %% [markdown]
# ## Stage by stage
#
# **Idea.** Compare not only the ends but everything between, and give each stage of both sides the **same** input,
# not what its own side made before. The first stage that differs is then the place to look.
#
# **Formula.** A difference needs a scale: `max |a - b| / max |b|`. It counts as rounding below what the type of the
# numbers explains, and as a difference above. Whole numbers have no rounding: tokens and codes are equal or they are
# not.
#
# **Code.** `musicgen_ref.parity` does that: a recording of each side on one fixed input, and their comparison.
# (`musicgen-ref parity DIR` is the same for your own checkpoint.) `fast=False` gives the package's plain layers: the
# point is the arithmetic, not the speed.

# %%
ours = parity.record("demo", frames=12 if SHORT else 50, fast=False)
theirs = parity.record_transformers("demo", ours.inputs)
report = parity.compare(ours, theirs)
print(report)
assert report.agree
assert {"text.ids", "memory", "delay", "decoder.logits", "sampled.codes", "codec.codes", "audio"} <= ours.stages.keys()

# %% [markdown]
# "Largest" is the largest difference, and 0 means that both sides added the same numbers in the same order. Even that
# is not only a matter of code: the library that multiplies matrices, the BLAS, reads a matrix that begins at a round
# address in other pieces than one that does not. So `parity` first copies the other model's weights, which lie in
# memory as they lie in the file, to round addresses.
#
# ## Where rounding comes from
#
# **Idea.** A float has 24 bits. Adding two of them rounds, so `(a + b) + c` and `a + (b + c)` may differ, and a sum
# of a thousand terms depends on the order. That is not an error of either order; it is what floats are.

# %%
big, one = torch.tensor(2.0**24), torch.tensor(1.0)
print("(2**24 + 1) - 2**24 =", float((big + one) - big), "   1 + (2**24 - 2**24) =", float(one + (big - big)))
assert float((big + one) - big) == 0.0

terms = torch.randn(400, 1024)  # 400 sums of 1024 terms
exact = terms.double().sum(1)


def one_by_one(terms: Tensor) -> Tensor:
    total = torch.zeros(len(terms))
    for column in terms.unbind(1):
        total = total + column
    return total


def in_pairs(terms: Tensor) -> Tensor:
    return terms[:, 0] if terms.shape[1] == 1 else in_pairs(terms[:, ::2] + terms[:, 1::2])


orders = {
    "one after another": one_by_one(terms),
    "backwards": one_by_one(terms.flip(1)),
    "in pairs": in_pairs(terms),
    "as torch does": terms.sum(1),
}
figure = Figure(figsize=(9, 3))
axes = figure.subplots()
for name, result in orders.items():
    off = (result.double() - exact) / terms.double().abs().sum(1) * 2**24
    axes.hist(off.numpy(), bins=80, range=(-0.6, 0.6), histtype="step", label=name)
    assert off.abs().max() < 1024 / 2  # the bound of the theory, hardly ever come near
axes.set_xlabel("error, in units of 2 ** -24 of the sum of the terms' sizes")
axes.set_ylabel("sums of 1,024 terms")
axes.legend(fontsize=8)
lab.figure(figure, "orders", "Errors of sums of the same terms in four orders.")

# %% [markdown]
# The package has two ways to compute attention, with the same formula: torch's fused one and a plain one, "eager".
# They add in different orders. And from there on everything differs in its last digits, a little more with every
# block. A comparison takes stages from wherever they come: here from the same model, told to be eager.

# %%
model = MusicGen.from_pretrained("demo", fast=False)


def stages(model: MusicGen) -> dict[str, Tensor]:
    """All stages of a model on the same input."""
    return dict(of_model(model, ours.inputs))


def drift(report: parity.Report) -> dict[str, float]:
    """How far the decoder's stream is off after each block, by its scale."""
    rows = [row for row in report.rows if row.stage.startswith("decoder.")]
    return {row.stage.removeprefix("decoder."): row.largest / row.scale for row in rows}


eager = copy.deepcopy(model)
eager.backend = "eager"
rounding = parity.compare(stages(eager), ours)
print(rounding.conclusion())
print({stage: f"{value:.0e}" for stage, value in drift(rounding).items()})
assert rounding.agree
assert 0 < max(drift(rounding).values()) < 1e-4

# %% [markdown]
# ## What a bug looks like
#
# **Idea.** Rounding creeps: every sum adds a little. A bug jumps, at its block. `learn/bugs.py` plants bugs of the
# kinds that really happen. Here is one: the scale of the scores in the second block is not 1 / sqrt(D). The music
# would go on.
#
# **Figure.** Both differences from the right model, block by block.

# %%
broken = copy.deepcopy(model)
broken.decoder = bugs.plant(model.decoder, "scale")
found = parity.compare(stages(broken), ours)
print(found.conclusion())
assert found.first is not None
assert found.first.stage == "decoder.block.1"

figure = Figure(figsize=(9, 3.5))
axes = figure.subplots()
for name, one in {"another order of sums": rounding, "a bug in block 1": found}.items():
    shown = {stage: value for stage, value in drift(one).items() if "logits" not in stage}
    axes.semilogy(list(shown), [max(value, 1e-9) for value in shown.values()], "o-", label=name)
axes.set_ylabel("relative difference (0 is drawn as 1e-9)")
axes.legend()
creeps, jumps = max(drift(rounding).values()), drift(found)["block.1"]
print(f"rounding: {creeps:.0e} at most; the bug, where it is: {jumps:.0e}, {jumps / creeps:,.0f} times as much")
assert jumps > 100 * creeps
lab.figure(figure, "bug", "Differences by block: rounding grows slowly, the bug jumps at block 1.")

# %% [markdown]
# A tolerance is a statement: **this** much may come from rounding, and here is why. Between the two there is a wide
# empty valley, and a tolerance in it tells them apart. Where nothing can round, as in token ids, it is 0.
# Codes are a warning: where a latent lies between two codewords, or two codes are nearly as likely, rounding chooses,
# and a whole number changes. `parity` then looks at how near that decision was.
#
# In half precision the valley is narrow: a bfloat16 has 8 bits, so each number is off by up to one part in 512 as
# soon as it is written down.

# %%
half = parity.record("demo", inputs=ours.inputs, fast=False, dtype=torch.bfloat16)
coarse = drift(parity.compare(half, ours))
print({stage: f"{value:.0e}" for stage, value in coarse.items()})
assert 1e-4 < coarse["logits"] < 0.5

# %% [markdown]
# ## The end of the path
#
# You have seen every box. What is left is to read the seven files themselves, in the order that the README gives, and
# to answer `learn/questions.md` from them.
#
# ## Exercises
#
# In `learn/exercises/chapter_09.py`; `python -m learn.check 9` marks them.
#
# 1. `relative_error(ours, theirs)`: one that cannot be fooled.
# 2. `find_bug(right, wrong, run)`: given two decoders, the name of the module with the bug. The checker hides six.
#    Write it before you read `learn/bugs.py`.
