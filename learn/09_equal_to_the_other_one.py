# %% [markdown]
# # 9. Equal to the other one
#
# How does one know that a model written from scratch is right? That it makes music proves nothing: a transformer with
# a wrong scale in one block still makes music. What proves it is another implementation of the same model, and the
# same numbers at **every stage**. This chapter compares the package with Hugging Face transformers on the demo's
# weights, looks at where the last digits come from, and then at what a bug looks like.

# %%
import torch
import transformers
from lab import Lab
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from learn import bugs
from musicgen_ref import MusicGen, delay
from musicgen_ref.attention import Trace
from musicgen_ref.checkpoint import DEMO

# %% tags=["parameters"]
SHORT = False  # True: the same chapter; this one takes seconds as it is
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(9, OUT)
torch.manual_seed(0)
lab.path("caption", "T5", "memory", "encode", "codes", "delay", "decoder", "logits", "decode", "heard")

# %% [markdown]
# ## Two of the same
#
# `fast=False` gives the package's plain layers: the point is the arithmetic, not the speed. One thing is strange
# enough to point out: the other model's weights are **copied** before the comparison. In a file tensors lie one
# behind the other, at any address; a BLAS reads a matrix that begins at an even address in other pieces than one that
# does not, and adds the same numbers in another order.

# %%
ours = MusicGen.from_pretrained("demo", fast=False)
theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()
for p in theirs.parameters():
    p.data = p.data.clone()
print("transformers", transformers.__version__)

texts = ["a fast arpeggio in A minor on a plucked string with busy drums", "slow pad chords, no drums"]
V, delays = ours.decoder.config.vocab_size, ours.delays
audio = 0.3 * torch.randn(2, 1, 16_000) * torch.linspace(0, 1, 16_000)
codes = torch.randint(0, V, (2, len(delays), 40))
columns = F.pad(delay.apply(codes, delays, fill=V), (1, 0), value=V)[..., :-1]

# %% [markdown]
# ## Stage by stage
#
# **Idea.** Compare not only ends but everything between, and feed each stage of both with the **same** input. The
# first stage that differs is where to look. **Formula.** A difference needs a scale: `max |a - b| / max |b|`.


# %%
@torch.no_grad()
def stages_of_ours(model: MusicGen) -> dict[str, Tensor]:
    """Everything on the way, by name."""
    ids, mask = model.tokenizer(texts)
    trace = Trace()
    memory, _ = model.encode_text((ids, mask))
    logits = model.decoder(columns, memory, mask, trace=trace)
    latents = model.codec.encoder(audio)
    return (
        {"token ids": ids, "text states": model.text_encoder(ids, mask), "memory": memory}
        | {f"decoder, block {i - 1}" if i else "decoder, input": x for i, x in enumerate(trace.hidden)}
        | {"logits": logits, "latents": latents, "codes": model.encode(audio, model.sampling_rate)}
        | {"audio": model.decode(codes)}
    )


@torch.no_grad()
def stages_of_theirs(model: transformers.MusicgenForConditionalGeneration) -> dict[str, Tensor]:
    """The same of transformers' model, under the same names."""
    given = transformers.AutoTokenizer.from_pretrained(DEMO)(texts, padding=True, return_tensors="pt")
    ids, mask = given.input_ids, given.attention_mask
    text = model.text_encoder(ids, mask).last_hidden_state
    out = model(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=columns.flatten(0, 1),
        output_hidden_states=True,
        use_cache=False,
    )
    codec = model.audio_encoder
    return (
        {"token ids": ids, "text states": text, "memory": model.enc_to_dec_proj(text) * mask[..., None]}
        | {f"decoder, block {i - 1}" if i else "decoder, input": x for i, x in enumerate(out.decoder_hidden_states)}
        | {"logits": out.logits.unflatten(0, (2, -1)), "latents": codec.encoder(audio)}
        | {"codes": codec.encode(audio).audio_codes[0], "audio": codec.decode(codes[None], [None]).audio_values}
    )


def relative(a: Tensor, b: Tensor) -> float:
    """How far a is from b, by the scale of b."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


own, other = stages_of_ours(ours), stages_of_theirs(theirs)
assert own.keys() == other.keys()
for name in own:
    print(f"{name:20} {relative(own[name], other[name]):9.1e}   {tuple(own[name].shape)}")
assert torch.equal(own["token ids"], other["token ids"])
assert torch.equal(own["codes"], other["codes"])
assert all(relative(own[name], other[name]) < 1e-5 for name in own)

# %% [markdown]
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
# block.


# %%
@torch.no_grad()
def hidden(decoder: torch.nn.Module, backend: str = "sdpa") -> list[Tensor]:
    """The stream after every block."""
    trace = Trace()
    decoder(columns, *ours.encode_text(texts), backend=backend, trace=trace)
    return trace.hidden


reference = hidden(ours.decoder)
rounding = [relative(a, b) for a, b in zip(hidden(ours.decoder, "eager"), reference, strict=True)]
print("eager against sdpa, by block:", " ".join(f"{value:.0e}" for value in rounding))
assert max(rounding) < 1e-4

# %% [markdown]
# ## What a bug looks like
#
# `learn/bugs.py` plants bugs of the kinds that really happen. Here is one: the scale of the scores in the second
# block is not 1 / sqrt(D). The music would go on. **Figure.** Rounding creeps; a bug jumps, at its block.

# %%
wrong = bugs.plant(ours.decoder, "scale")
bug = [relative(a, b) for a, b in zip(hidden(wrong), reference, strict=True)]
figure = Figure(figsize=(9, 3.5))
axes = figure.subplots()
names = ["input", *(f"block {i}" for i in range(len(bug) - 1))]
axes.semilogy(names, [max(value, 1e-9) for value in rounding], "o-", label="another order of sums")
axes.semilogy(names, [max(value, 1e-9) for value in bug], "o-", label="a bug in block 1")
axes.set_ylabel("relative difference")
axes.legend()
assert max(bug[:2]) == 0.0  # the input and block 0
assert bug[2] > 100 * max(rounding)
lab.figure(figure, "bug", "Differences by block: rounding grows slowly, the bug jumps at block 1.")

# %% [markdown]
# A tolerance is a statement: **this** much may come from rounding, and here is why. Between 1e-6 and 1e-2 there is a
# wide empty valley, and a tolerance in it tells the two apart. Where nothing can round, as in token ids, the
# tolerance is 0; and the codec's codes are a warning: when a latent lies between two codewords, rounding chooses, and
# a whole number changes.
#
# In half precision the valley is narrow: a bfloat16 has 8 bits, and the stream alone is off by a hundredth.

# %%
half = MusicGen.from_pretrained("demo", fast=False, dtype=torch.bfloat16)
with torch.no_grad():
    trace = Trace()
    half.decoder(columns, *half.encode_text(texts), trace=trace)
coarse = [relative(a.float(), b) for a, b in zip(trace.hidden, reference, strict=True)]
print("bfloat16 against float32, by block:", " ".join(f"{value:.0e}" for value in coarse))
assert 1e-4 < coarse[-1] < 0.5

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
