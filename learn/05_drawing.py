# %% [markdown]
# # 5. Drawing
#
# The decoder gives V scores, **logits**, for each codebook of the next column. Taking the best one every time sounds
# like the obvious thing to do, and tends to make dull, looping music; drawing from all of them lets in every error of
# the tail. What happens between logits and codes is a file of five short functions (`sampling.py`), and it decides
# what you hear at least as much as the weights do.

# %%
import torch
from lab import Lab
from matplotlib.figure import Figure

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.model import Sampling, choose
from musicgen_ref.sampling import draw, guide, min_p, top_k, top_p

# %% tags=["parameters"]
SHORT = False  # True: the same chapter on shorter clips
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(5, OUT)
model = MusicGen.from_pretrained("demo")
K, V = model.decoder.config.codebooks, model.decoder.config.vocab_size
caption = "slow shimmering FM bell melody, F major, simple drums"
length = 1.0 if SHORT else 5.0
lab.path("logits", "draw")

# %% [markdown]
# One clip, and every step's logits: those with the caption, those without, and what guidance made of them.
# `generate_steps` hands out what a step did, as it happens. The demo asks for temperature 0.3 (`model.defaults`, from
# its generation_config.json); here it is 1 throughout, as the model learnt it.

# %%
options = GenerationOptions(seconds=length, guidance_scale=3.0, temperature=1.0)
table, loop = model.generate_steps([caption], options, generator=torch.Generator().manual_seed(0))
steps = list(loop)
cond = torch.stack([step.unguided[0] for step in steps], dim=1)  # (K, S, V)
null = torch.stack([step.unguided[1] for step in steps], dim=1)
guided = torch.stack([step.logits[0] for step in steps], dim=1)
print(tuple(guided.shape), "are codebooks, steps, scores")

# %% [markdown]
# ## Temperature
#
# **Idea.** Softmax makes probabilities of scores. Dividing the scores by a temperature first makes the likely
# likelier (below 1) or all more alike (above).
#
# **Formula.** `p(v) = exp(logit_v / temperature) / sum over u of exp(logit_u / temperature)`
#
# How spread out that is has a number, the **entropy**, in bits:
#
#     entropy = - sum over v of  p(v) log2 p(v)
#
# 0 bits: there is no choice. 8 bits: all 256 codes are equally likely.


# %%
def entropy(logits: torch.Tensor) -> torch.Tensor:
    """In bits, over the last dimension."""
    return torch.distributions.Categorical(logits=logits).entropy() / torch.log(torch.tensor(2.0))


assert abs(entropy(torch.zeros(256)).item() - 8) < 1e-5
step = int(entropy(cond[0]).argmax())  # the step of the clip at which codebook 0 is least sure
one = cond[0, step]
figure = Figure(figsize=(10, 3))
axes = figure.subplots()
for temperature in (0.3, 1.0, 2.0):
    probs = (one / temperature).softmax(-1).sort(descending=True).values
    bits = entropy(one / temperature).item()
    axes.semilogy(probs, label=f"temperature {temperature}: {bits:.2f} bits")
axes.set_ylim(bottom=1e-7)
axes.set_xlabel("codes, from the likeliest on")
axes.set_ylabel("probability")
axes.legend()
assert entropy(one / 0.3) < entropy(one) < entropy(one / 2.0)
lab.figure(figure, "temperature", "Sorted probabilities of one step at three temperatures.")

# %% [markdown]
# ## Cutting the tail
#
# **Idea.** Hundreds of unlikely codes have together a probability that is not small, and each of them is a small
# accident. Three ways to forbid them: keep the k best (**top-k**); keep the fewest whose probabilities reach p
# (**top-p**); keep those at least p times as probable as the best (**min-p**). The first keeps as many where the
# model is sure as where it is not; the other two adapt.
#
# **Formula.** With the codes ordered from the likeliest on, p_1 >= p_2 >= ..., code i is kept where
#
#     top-k    i <= k
#     top-p    p_1 + ... + p_(i-1) < p
#     min-p    p_i >= p * p_1
#
# **A worked number.** Probabilities 0.5, 0.25, 0.15, 0.1 and p = 0.7: 0.5 is not enough, 0.5 + 0.25 reaches it, so
# two are kept. The code sums from the other end, as transformers does: what sums to at most 1 - p = 0.3 is dropped:
# 0.1, and 0.1 + 0.15.

# %%
four = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
print(top_p(four, 0.7).isfinite().tolist())
assert top_p(four, 0.7).isfinite().tolist() == [True, True, False, False]
assert top_k(four, 3).isfinite().tolist() == [True, True, True, False]
assert min_p(four, 0.25).isfinite().tolist() == [True, True, True, False]  # at least a quarter of 0.5

kept = {
    "top-k 50": top_k(cond[0], 50),
    "top-p 0.9": top_p(cond[0], 0.9),
    "min-p 0.05": min_p(cond[0], 0.05),
}
figure = Figure(figsize=(10, 3))
axes = figure.subplots()
for name, logits in kept.items():
    axes.plot(logits.isfinite().sum(-1), label=name)
axes.set_xlabel("step")
axes.set_ylabel("codes that are kept, codebook 0")
axes.legend()
assert (kept["top-k 50"].isfinite().sum(-1) == 50).all()
assert kept["top-p 0.9"].isfinite().sum(-1).min() >= 1
lab.figure(figure, "cut", "How many codes each way of cutting keeps over the steps.")

# %% [markdown]
# ## Drawing
#
# **Code.** `draw` takes one code for every codebook of every row, each with its probability. That it does so as often
# as the probabilities say is no matter of belief: draw ten thousand times.

# %%
many = draw(four.expand(1, 10_000, 4), torch.Generator().manual_seed(0))
shares = torch.bincount(many.flatten(), minlength=4) / many.numel()
print("asked [0.5, 0.25, 0.15, 0.1], got", [round(share, 3) for share in shares.tolist()])
assert (shares - four.exp()).abs().max() < 0.02

# %% [markdown]
# ## Guidance: a direction
#
# **Idea.** In training some rows lose their caption, so one model learns both: what music is like, and what music is
# like **given the caption**. The difference between the two predictions is what the caption changes. Walking further
# along that difference than the model itself would overstates the caption.
#
# **Formula.** `guided = null + scale * (cond - null)`
#
# 0 ignores the caption, 1 is the model's own prediction, 3 is MusicGen's choice. In probabilities the formula
# multiplies: a code that the caption makes twice as likely becomes 2 ** scale times as likely, before all are divided
# by their sum.
#
# **Figure.** At the step at which guidance changes the probabilities most: each dot is a code, where it stands
# without the caption and how far the caption moves it; then what becomes of the likeliest codes as the scale grows.

# %%
assert torch.equal(guide(cond, null, 3.0), guided)
moved = (guided[0].softmax(-1) - cond[0].softmax(-1)).abs().sum(-1)
step = int(moved.argmax())
scales = torch.linspace(0, 10, 41)
path = torch.stack([guide(cond[0, step], null[0, step], float(scale)) for scale in scales])  # (scales, V)
likely = path.softmax(-1).amax(0).topk(6).indices

figure = Figure(figsize=(11, 3.5))
dots, lines = figure.subplots(1, 2)
dots.scatter(null[0, step], cond[0, step] - null[0, step], s=8, color="#999999")
for code in likely.tolist():
    dots.annotate(str(code), (null[0, step, code], (cond - null)[0, step, code]), fontsize=8, color="#d35400")
    lines.plot(scales, path.softmax(-1)[:, code], label=f"code {code}")
dots.axhline(0, color="#cccccc", linewidth=1)
dots.set_xlabel("logit without the caption")
dots.set_ylabel("what the caption adds")
lines.set_xlabel("guidance scale")
lines.set_ylabel("probability")
lines.legend(fontsize=8)
figure.suptitle(f"step {step}, codebook 0", fontsize=10)
figure.tight_layout()
assert torch.allclose(path[0], null[0, step])
assert torch.allclose(path[4], cond[0, step], atol=1e-4)  # scale 1
lab.figure(figure, "guidance", "Codes by their logit and what the caption adds; their probability over the scale.")

# %% [markdown]
# ## Hear it: 0, 1, 3, 10
#
# The same caption and the same seed. At 0 the model plays what it likes; at 10 it overstates until the music suffers:
# the logits leave the region that training has ever shown, and what is left of the distribution is a few codes.

# %%
heard, spread = {}, {}
for scale in (0.0, 1.0, 3.0, 10.0):
    chosen = GenerationOptions(seconds=length, guidance_scale=scale, temperature=1.0)
    generator = torch.Generator().manual_seed(2)
    out = model.generate([caption], chosen, generator=generator, return_logits=True)
    heard[f"guidance {scale:g}"] = out.audio[0]
    spread[scale] = entropy(out.logits[0]).mean(-1)  # (K,)
print("bits of entropy by codebook:")
for scale, bits in spread.items():
    print(f"guidance {scale:4g}: " + "  ".join(f"{value:5.2f}" for value in bits.tolist()))
assert spread[10.0].mean() < spread[1.0].mean()
assert all(bits[0] < bits[-1] for bits in spread.values())
lab.sounds(heard, model.sampling_rate, "guidance")

# %% [markdown]
# And what this chapter began with: always the likeliest code. How much it repeats itself is counted in frames, four
# codes that stand together, that have not occurred before; how that sounds, you hear.

# %%
greedy = model.generate([caption], GenerationOptions(seconds=length, greedy=True))
drawn = model.generate([caption], options, generator=torch.Generator().manual_seed(2))
for name, codes in {"greedy": greedy.codes, "drawn": drawn.codes}.items():
    frames = [tuple(frame) for frame in codes[0].T.tolist()]
    print(f"{name}: {len(set(frames))} different frames of {len(frames)}")
lab.sound(greedy.audio[0], model.sampling_rate, "greedy", "the likeliest code every time")

# %% [markdown]
# Entropy by codebook: how much is decided where. The first codebook carries the tune and is told much by what came
# before; the later ones carry detail that nothing foretells.

# %%
figure = Figure(figsize=(10, 3))
left, right = figure.subplots(1, 2)
for k in range(K):
    left.plot(entropy(guided[k]), label=f"codebook {k}", linewidth=0.8)
left.set_xlabel("step")
left.set_ylabel("bits, guidance 3")
left.legend(fontsize=8)
for scale, bits in spread.items():
    right.plot(range(K), bits, "o-", label=f"guidance {scale:g}")
right.set_xticks(range(K))
right.set_xlabel("codebook")
right.set_ylabel("mean bits")
right.legend(fontsize=8)
figure.tight_layout()
lab.figure(figure, "entropy", "Entropy over the steps by codebook, and its mean by codebook for four guidance scales.")

# %% [markdown]
# ## All of it at once
#
# `model.choose` is the whole of this chapter in one line, in this order: temperature, top-k, top-p, min-p, draw. The
# order matters: top-p after top-k sums the probabilities of what top-k has left. A `Sampling` is what options come
# to, the checkpoint's defaults included.

# %%
chosen = Sampling(temperature=0.8, top_k=100, top_p=0.9)
row = guided[None, :, step]  # (B, K, V)
by_hand = draw(top_p(top_k(row / 0.8, 100), 0.9), torch.Generator().manual_seed(7))
assert torch.equal(choose(row, chosen, torch.Generator().manual_seed(7)), by_hand)
assert torch.equal(choose(row, Sampling(greedy=True), None), row.argmax(-1))

# %% [markdown]
# ## Exercises
#
# In `learn/exercises/chapter_05.py`; `python -m learn.check 5` marks them.
#
# 1. `entropy_bits(logits)`: of logits that may hold minus infinity (where something was cut). The chapter's function
#    would give NaN there.
# 2. `nucleus(probs, p)`: top-p without logits: which codes are kept.
# 3. `temperature_for(logits, bits)`: the temperature at which the entropy is what was asked for.
