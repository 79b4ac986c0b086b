# %% [markdown]
# # 7. Train one
#
# So far the weights fell from the sky. In this chapter a decoder learns from nothing, in a few minutes on two cores:
# a toy of a million parameters that hears a second and a half of twenty kinds of synthesised music, and their
# captions. It will know nothing else. But one can hear that it learnt, and one can **measure** whether it learnt to
# listen to the caption, which is a different thing.

# %%
import time
from itertools import product

import numpy as np
import torch
from lab import Lab
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from examples.demo_model import synth
from examples.demo_model.captions import caption
from examples.demo_model.train_lm import initialise
from musicgen_ref import DecoderConfig, GenerationOptions, MusicGen, delay
from musicgen_ref.model import TextStates

# %% tags=["parameters"]
SHORT = False  # True: a few steps on a few clips, which learn next to nothing
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(7, OUT)
FRAMES = 25 if SHORT else 75  # of a clip; 50 are a second
CLIPS, UNSEEN = (16, 8) if SHORT else (1200, 96)
STEPS, BATCH = (6, 8) if SHORT else (240, 32)
began = time.perf_counter()
lab.path("caption", "T5", "memory", "delay", "decoder", "logits")

# %% [markdown]
# ## The data
#
# **Idea.** The smallest task that is still music. Twenty kinds: five instruments, arpeggio or chords, with busy drums
# or none, all fast and in A minor. The captions say it in the words of the demo's captions. The clips that are judged
# are never trained on; but the world is so small that an unseen clip is often nearly one that was seen, so the losses
# below are those of a toy.

# %%
demo = MusicGen.from_pretrained("demo")
kinds = list(product(synth.INSTRUMENTS, ("none", "busy"), ("arpeggio", "chords")))
print(len(kinds), "kinds")


@torch.no_grad()
def clips(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Codes (count, K, FRAMES) of new clips, and their captions."""
    rng = np.random.default_rng(seed)
    chosen = [kinds[i] for i in rng.permutation(np.arange(count) % len(kinds))]
    what = [synth.Attributes(i, drums, "fast", 9, "minor", texture) for i, drums, texture in chosen]
    length = FRAMES * demo.codec.config.hop / demo.sampling_rate
    audio = torch.from_numpy(np.stack([synth.render(a, length, rng) for a in what]))[:, None]
    codes = torch.cat([demo.encode(part, demo.sampling_rate) for part in audio.split(16)])
    return codes, [caption(a, rng, complete=True)[0] for a in what]


codes, texts = clips(CLIPS, seed=0)
unseen, asked = clips(UNSEEN, seed=1)
print(f"{CLIPS} clips in {time.perf_counter() - began:.0f} s; the first: {texts[0]!r}")
lab.sound(demo.decode(codes[:1])[0], demo.sampling_rate, "data", f"{texts[0]} (through the codec)")

# %% [markdown]
# ## What has to be beaten
#
# **Idea.** A loss is a number of nats for each code, and by itself it says nothing. Two numbers give it a scale. A
# model that knows nothing needs log V. A model that only knows **how often** each code occurs needs the entropy of
# these frequencies, the **unigram entropy**. Only below that does a model know anything about music.
#
# **Formula.** `H_k = - sum over v of  p_k(v) log p_k(v)`, with p_k(v) the share of code v in codebook k.

# %%
K, V = codes.shape[1], demo.decoder.config.vocab_size
shares = torch.stack([torch.bincount(codes[:, k].flatten(), minlength=V) for k in range(K)]) / codes[:, 0].numel()
unigram = -torch.where(shares > 0, shares * shares.log(), 0.0).sum(1)  # (K,)
print(f"log V {np.log(V):.2f}; unigram entropies {[round(h, 2) for h in unigram.tolist()]}, mean {unigram.mean():.2f}")
assert (unigram < np.log(V)).all()

# %% [markdown]
# ## The model
#
# MusicGen trains its decoder alone: the text encoder and the codec come as they are. So here: the demo's, frozen;
# only the decoder is new.
#
# **A trap.** Weights must start somewhere, and where is not a detail. With the usual normal of 0.02 everywhere, the
# cross-attention of a small decoder starts so quiet that the caption never gets a say: the loss falls, the music
# comes, and the caption is ignored for good. Xavier's sizes (`initialise` has them, with the reason) open that path.

# %%
small = DecoderConfig(vocab_size=V, width=128, layers=3, heads=4, ffn=512, text_width=128, dropout=0.0)
model = MusicGen(demo.text_encoder.config, small, demo.codec.config, demo.tokenizer)
initialise(model, seed=0)
model.text_encoder, model.codec = demo.text_encoder, demo.codec
model.requires_grad_(False)
model.decoder.requires_grad_(True)
print(f"{sum(p.numel() for p in model.decoder.parameters()):,} parameters learn")

# %% [markdown]
# ## The loss
#
# **Idea.** Every step predicts the next column, and in training all columns are known: one forward pass scores them
# all at once (teacher forcing). Cells that hold no code are not scored.
#
# **Formula.** `loss = mean over codebooks of  mean over frames of  - log p(c[k, f] | what it has seen)`
#
# **Code.** `model.loss` is that number, and what training minimises. For curves we want it for each clip and
# codebook, so here are its lines once more with the means left for later, and the check that they are the same.


# %%
def nats(codes: Tensor, states: TextStates) -> Tensor:
    """Mean - log p of each clip's and codebook's codes (B, K)."""
    target = delay.apply(codes, model.delays, fill=-1)  # (B, K, S)
    table = F.pad(target.masked_fill(target < 0, V), (1, 0), value=V)
    logits = model.decoder(table[..., :-1], *states)  # (B, K, S, V)
    each = F.cross_entropy(logits.movedim(3, 1), target, ignore_index=-1, reduction="none")
    return each.sum(2) / codes.shape[2]


right = model.encode_text(asked)
other = model.encode_text(asked[1:] + asked[:1])  # another clip's caption
with torch.no_grad():
    first = nats(unseen, right)
    assert torch.allclose(first.mean(), model.loss(unseen, asked), atol=1e-4)
print(f"before training: {first.mean():.2f} nats a code, where knowing nothing takes {np.log(V):.2f}")
assert abs(first.mean() - np.log(V)) < 0.5

# %% [markdown]
# ## Does it listen?
#
# **Idea.** A caption can make only a small difference to the mean loss: it says the same few things once, and there
# are hundreds of codes. A loss that looks fine can belong to a model that is deaf. So measure the difference itself:
# each unseen clip's loss with its own caption, and with another clip's.
#
# **Formula.** With d_i the second less the first, for clip i of n,
#
#     gap = mean of d        standard error = std of d / sqrt(n)
#
# The clips differ much more among each other than d does, so the pairing matters: d is taken for each clip, and only
# then averaged. A gap of three standard errors is no accident.


# %%
@torch.no_grad()
def listen() -> tuple[Tensor, float, float]:
    """Loss of unseen clips by codebook (K,), the gap, and its standard error."""
    own = nats(unseen, right)
    d = nats(unseen, other).mean(1) - own.mean(1)
    return own.mean(0), d.mean().item(), (d.std() / len(d) ** 0.5).item()


_, gap, error = listen()
print(f"before training: gap {gap:.4f} +- {error:.4f}")

# %% [markdown]
# ## Before: hear it know nothing

# %%
wanted = [
    "a fast arpeggio in A minor on a plucked string with busy drums",
    "fast sine pad chords, A minor, no drums",
]


def play() -> list[Tensor]:
    options = GenerationOptions(frames=FRAMES, temperature=0.7)
    return list(model.generate(wanted, options, generator=[torch.Generator().manual_seed(i) for i in (1, 2)]).audio)


def treble(text: str) -> float:
    """Energy above 5 kHz of some clips, where in this world nothing sounds but drums."""
    rows = [torch.Generator().manual_seed(i) for i in range(2 if SHORT else 8)]
    audio = model.generate([text] * len(rows), GenerationOptions(frames=FRAMES), generator=rows).audio
    return float(torch.fft.rfft(audio).abs().square()[..., 5000 * audio.shape[-1] // demo.sampling_rate :].sum())


print(f"treble with drums asked for, by that without: {treble(wanted[0]) / treble(wanted[1]):.1f}")
lab.sounds({f"before: {text}": audio for text, audio in zip(wanted, play(), strict=True)}, demo.sampling_rate, "before")

# %% [markdown]
# ## Training
#
# **Idea.** Draw a batch of clips, compute the loss, move every weight a little against its gradient; again and again.
# The rest is experience: AdamW, a short warm-up, a learning rate that falls like a cosine, gradients cut at length 1.
# In one row of ten the caption is left out: that is all that guidance needs.

# %%
rng = np.random.default_rng(2)
optimizer = torch.optim.AdamW(model.decoder.parameters(), betas=(0.9, 0.95), weight_decay=0.02)
history: list[tuple[int, list[float], float, float]] = []
started = time.perf_counter()
for step in range(STEPS + 1):
    if step % max(1, STEPS // 12) == 0 or step == STEPS:
        losses, gap, error = listen()
        history.append((step, losses.tolist(), gap, error))
        taken = time.perf_counter() - started
        by_codebook = " ".join(f"{loss:.2f}" for loss in losses)
        print(
            f"step {step:4}, {taken:4.0f} s: unseen {losses.mean():.3f} ({by_codebook}), gap {gap:.4f} +- {error:.4f}"
        )
    if step == STEPS:
        break
    rows = rng.integers(CLIPS, size=BATCH)
    said = [None if rng.random() < 0.1 else texts[row] for row in rows]
    loss = model.loss(codes[rows], said)
    rate = 2e-3 * min(1, (step + 1) / 20) * (0.55 + 0.45 * np.cos(np.pi * step / STEPS))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
    optimizer.step()

# %% [markdown]
# ## What it learnt
#
# **Figure.** Each codebook's loss, beside its unigram entropy (dashed): the first ones are learnt furthest, because
# there is a tune in them. And the gap, with three standard errors to either side. It need not grow for ever: the
# better a model reads a clip's past, the more of what the caption says it can hear in the first frames, and the less
# the caption adds.

# %%
figure = Figure(figsize=(11, 3.5))
curves, gaps = figure.subplots(1, 2)
at = [step for step, *_ in history]
for k in range(K):
    (line,) = curves.plot(at, [losses[k] for _, losses, *_ in history], label=f"codebook {k}")
    curves.axhline(unigram[k].item(), color=line.get_color(), linestyle="--", linewidth=0.8)
curves.set_xlabel("step")
curves.set_ylabel("nats a code, unseen clips")
curves.legend(fontsize=8)
gaps.errorbar(at, [gap for *_, gap, _ in history], yerr=[3 * error for *_, error in history], capsize=3)
gaps.axhline(0, color="#999999", linewidth=0.8)
gaps.set_xlabel("step")
gaps.set_ylabel("gap, nats a code; bars: 3 standard errors")
figure.tight_layout()

_, losses, gap, error = history[-1]
loss = float(np.mean(losses))
print(f"unseen clips: {loss:.3f} nats a code; unigram entropy {unigram.mean():.3f}")
print(f"gap between another's caption and the right one: {gap:.4f} +- {error:.4f}, {gap / error:.1f} standard errors")
assert loss < first.mean()
if not SHORT:
    assert loss < unigram.mean()
    assert gap > 3 * error
    assert losses == sorted(losses)  # the first ones are learnt furthest
lab.figure(figure, "curves", "Loss of unseen clips by codebook with unigram entropies; the gap between captions.")

# %% [markdown]
# ## After
#
# The same captions and seeds as before. One asks for drums and one for none, and drums are all that sounds above 5
# kHz: so that it listens can also be measured in the sound itself.

# %%
drums = treble(wanted[0]) / treble(wanted[1])
print(f"treble with drums asked for, by that without: {drums:.1f}")
assert SHORT or drums > 2
lab.sounds({f"after: {text}": audio for text, audio in zip(wanted, play(), strict=True)}, demo.sampling_rate, "after")

# %%
total = time.perf_counter() - began
print(f"the whole chapter: {total:.0f} s")

# %% [markdown]
# ## Exercises
#
# In `learn/exercises/chapter_07.py`; `python -m learn.check 7` marks them. And one without a checker: change one
# thing (the width, the rate, `initialise` for torch's own initial weights), and see which of the two curves notices.
#
# 1. `unigram_entropy(codes, size)`: what has to be beaten.
# 2. `gap(own, other)`: the difference with its standard error.
# 3. `leave_out(texts, share, generator)`: captions dropped for guidance.
