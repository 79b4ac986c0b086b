# %% [markdown]
# # 3. Text in
#
# "A fast arpeggio in A minor on a plucked string" has to reach a network of numbers. MusicGen does not learn to read:
# it takes the text encoder of a T5, trained on text alone, and lets its decoder learn what to make of the states.
# This chapter follows a caption through that encoder, up to the **memory** that the decoder reads. L is the number of
# tokens, E the width of the vectors, H the number of attention's heads, D the width of one.

# %%
import copy
import itertools

import torch
from lab import Lab
from matplotlib.figure import Figure

from musicgen_ref import MusicGen, T5Config
from musicgen_ref.attention import Trace
from musicgen_ref.t5 import T5Encoder

# %% tags=["parameters"]
SHORT = False  # True: the same chapter; this one takes seconds as it is
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(3, OUT)
model = MusicGen.from_pretrained("demo")
encoder, tokenizer = model.text_encoder, model.tokenizer
lab.path("caption", "T5", "memory")

# %% [markdown]
# ## Tokens
#
# **Idea.** A vocabulary of whole words would never be complete, one of letters would make long texts. T5 uses
# **pieces**, in between: frequent words are one piece, rare ones several. Each piece has a score, the logarithm of
# how probable it is in the text that the vocabulary was made from.
#
# **Formula.** Of all ways to cut a word into pieces of the vocabulary, take the one of the highest probability:
#
#     argmax over cuts of   sum of the scores of the pieces
#
# (Kudo 2018; "▁" marks the beginning of a word.) **Code.** What the tokenizer chose, and all that it could have
# chosen:

# %%
caption = "a fast arpeggio in A minor on a plucked string with busy drums"
ids = tokenizer.encode(caption)
print([tokenizer.pieces[i][0] for i in ids])
assert ids[-1] == tokenizer.eos_id  # every text ends with </s>

scores = dict(tokenizer.pieces)


def cuts(word: str) -> list[list[str]]:
    """All ways to cut a word into pieces of the vocabulary."""
    borders = range(1, len(word))
    chosen = itertools.chain.from_iterable(itertools.combinations(borders, n) for n in range(len(word)))
    pieces = [[word[a:b] for a, b in itertools.pairwise((0, *cut, len(word)))] for cut in chosen]
    return [cut for cut in pieces if all(piece in scores for piece in cut)]


for word in ("drums", "string", "musicgen"):
    ranked = sorted(cuts(f"▁{word}"), key=lambda cut: -sum(scores[piece] for piece in cut))
    for cut in ranked[:3]:
        print(f"{sum(scores[piece] for piece in cut):8.2f}  {' '.join(cut)}")
    chosen = [tokenizer.pieces[i][0] for i in tokenizer.encode(word)[:-1]]
    assert abs(sum(scores[piece] for piece in chosen) - sum(scores[piece] for piece in ranked[0])) < 1e-4
print(f"the demo's vocabulary has {tokenizer.vocab_size} pieces, T5's has {T5Config().vocab_size:,}")

# %% [markdown]
# Texts of a batch have different lengths, so shorter ones are padded, and a **mask** says what is text. Padding must
# not change anything: each row of a batch gives what it gives alone. That is checked here, and it will be true of
# everything that follows.

# %%
captions = [caption, "slow pad chords, no drums"]
ids, mask = tokenizer(captions)
print(tuple(ids.shape), mask.sum(1).tolist())
with torch.no_grad():
    together, alone = encoder(ids, mask), encoder(*tokenizer(captions[1:]))
assert torch.allclose(together[1, : alone.shape[1]], alone[0], atol=1e-5)

# %% [markdown]
# ## Order without positions
#
# **Idea.** A block lets every token take from all tokens, in proportion to a score: the one that takes is called the
# query, those that it takes from the keys (the next section has the formula). Such attention does not know which
# token comes first. T5 tells it through the scores: to the score of query q and key k it **adds a learned number that
# depends on their distance**. Nearby distances have a number each; far ones share numbers, in steps that grow like a
# logarithm, because it matters whether a word is the next or the one after, and hardly whether it is the 40th or the
# 41st.
#
# **Formula.** The row of the table for the distance d = k - q, of 32 rows:
#
#     |d| < 8       row |d|
#     |d| >= 8      row 8 + log(|d| / 8) / log(128 / 8) * 8,  rounded down, at most 15
#     d > 0         16 more: before and after are told apart
#
# **Code.** `T5Encoder.position_bias` looks rows up. Give it a table whose entries are the row numbers, and it shows
# which row it took.

# %%
probe = T5Encoder(T5Config(vocab_size=8, width=8, layers=1, heads=1, head_width=8, ffn=8))
with torch.no_grad():
    probe.relative_bias.weight.copy_(torch.arange(32.0)[:, None])
    rows = probe.position_bias(400)[0, 0]  # (L, L)
bucket = {int(d): int(rows[200, 200 + d]) for d in range(-199, 200)}
print({d: bucket[d] for d in (0, -1, -7, -8, -11, -12, -16, -64, -127, -128, -199, 1, 8, 199)})
assert [bucket[-d] for d in range(8)] == list(range(8))  # a row each
assert bucket[-8] == bucket[-11] == 8  # the first rows that are shared
assert bucket[-12] == 9
assert (bucket[-90], bucket[-91]) == (14, 15)
assert bucket[-199] == 15  # the last row
assert all(bucket[d] == bucket[-d] + 16 for d in range(1, 200))

figure = Figure(figsize=(10, 3))
left, right = figure.subplots(1, 2)
left.step(list(bucket), list(bucket.values()), where="mid")
left.set_xlabel("distance: key - query")
left.set_ylabel("row of the table")
bias = encoder.position_bias(25)[0, :, 12].detach()  # (H, L): the bias of the token in the middle
for head, line in enumerate(bias):
    right.plot(range(-12, 13), line, label=f"head {head}")
right.set_xlabel("distance: key - query")
right.set_ylabel("added to the score")
right.set_title("what the demo's heads add to their scores", fontsize=10)
right.legend(fontsize=8)
figure.tight_layout()
lab.figure(figure, "distance", "The row for each distance, and what the demo's heads add for each distance.")

# %% [markdown]
# That this is **all** the encoder knows of order can be checked: set the table to zero, and shuffling the tokens of a
# caption shuffles its states and changes nothing else, but for rounding. With the table it does; how much is a matter
# of what the encoder was trained on. A model of captions like "A minor, busy drums, plucked string" has little to
# learn from order, and the second number says how little.

# %%
ids, mask = tokenizer([caption])
order = torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))
blind = copy.deepcopy(encoder)
with torch.no_grad():
    blind.relative_bias.weight.zero_()
    changed = {
        name: (one(ids[:, order]) - one(ids)[:, order]).abs().max().item()
        for name, one in {"without the table": blind, "with it": encoder}.items()
    }
    largest = encoder(ids).abs().max().item()
print({name: f"{value:.1e}" for name, value in changed.items()}, f"of {largest:.1f}")
assert changed["without the table"] < 1e-5 * largest
assert changed["with it"] > 100 * changed["without the table"]

# %% [markdown]
# ## Attention, seen
#
# **Idea.** Three matrices make of every token's vector three others: a **query**, what it looks for; a **key**, what
# it can be found by; a **value**, what it gives. A token takes the mean of all values, weighted by how well its query
# fits their keys. H heads do so side by side, each with matrices of its own.
#
# **Formula.** In a head, q, k and v have D numbers each. Token i takes
#
#     sum over j of  softmax_j( q_i . k_j + bias(j - i) ) * v_j
#
# Unlike in most transformers the scores are **not** divided by the root of D: T5's initialisation absorbed that.
#
# **Figure.** A `Trace` goes along and keeps the weights. A row is a query and says where this token looks; the
# darker, the more it takes from there. A dot marks the beginning of a word.

# %%
trace = Trace(weights=True)
with torch.no_grad():
    states = encoder(ids, mask, trace=trace)
pieces = [tokenizer.pieces[int(i)][0].replace("▁", "·") for i in ids[0]]
layers, heads = encoder.config.layers, encoder.config.heads
figure = Figure(figsize=(11, 2.8 * layers), layout="constrained")
for layer, line in enumerate(figure.subplots(layers, heads, sharex=True, sharey=True)):
    for head, axes in enumerate(line):
        weights = trace.self_weights[layer][0, head]  # (L, L)
        assert torch.allclose(weights.sum(1), torch.ones(len(pieces)), atol=1e-5)
        axes.imshow(weights.numpy(), cmap="Blues", vmin=0)
        axes.set_title(f"block {layer}, head {head}", fontsize=9)
        axes.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=7)
        axes.set_yticks(range(len(pieces)), pieces, fontsize=7)
figure.supxlabel("key: the token that is looked at", fontsize=9)
figure.supylabel("query: the token that looks", fontsize=9)
lab.figure(figure, "attention", "Attention weights of every head over the tokens of the caption.")

# %% [markdown]
# By hand, the first block's first head: normalise (T5 divides by the root mean square, and subtracts no mean),
# project, compare, add the bias. The same numbers as in the picture.

# %%
with torch.no_grad():
    block, D = encoder.blocks[0], encoder.config.head_width
    x = encoder.embed(ids[0])  # (L, E)
    h = x / (x.square().mean(-1, keepdim=True) + encoder.config.eps).sqrt() * block.attn_norm.weight
    q, key = h @ block.attn.q.weight[:D].T, h @ block.attn.k.weight[:D].T  # (L, D) each, of head 0
    by_hand = (q @ key.T + encoder.position_bias(len(pieces))[0, 0]).softmax(-1)
assert torch.allclose(by_hand, trace.self_weights[0][0, 0], atol=1e-5)

# %% [markdown]
# ## States: words in their company
#
# **Idea.** What the blocks are for: the vector of a token comes to depend on the other tokens. "bass" is an
# instrument in one caption and a texture in another; its input vector is the same in both, its state is not.

# %%
both = ["chords on a saw bass", "a bass line on a bell"]
ids, mask = tokenizer(both)
bass = next(i for i, (piece, _) in enumerate(tokenizer.pieces) if piece == "▁bass")
spots = [(row == bass).nonzero()[0, 0] for row in ids]
with torch.no_grad():
    embedded, states = encoder.embed(ids), encoder(ids, mask)
likeness = {
    name: torch.cosine_similarity(x[0, spots[0]], x[1, spots[1]], dim=0).item()
    for name, x in {"input vectors": embedded, "states": states}.items()
}
print({name: round(value, 3) for name, value in likeness.items()})
assert likeness["input vectors"] > 0.9999 > likeness["states"]

# %% [markdown]
# ## Memory
#
# What leaves this chapter are the states, projected to the decoder's width and zeroed where there is padding: the
# **memory** (B, L, E). A row without text is a memory of zeros under a mask of zeros. That is not a special case for
# its own sake: guidance (chapter 5) compares what the decoder says with a caption and without.

# %%
memory, mask = model.encode_text([caption, None])
print(tuple(memory.shape), mask.sum(1).tolist())
assert memory.shape[2] == model.decoder.config.width
assert memory[1].count_nonzero() == 0
assert mask[1].sum() == 0
with torch.no_grad():
    assert torch.allclose(memory[:1], model.decoder.project_text(encoder(*tokenizer([caption]))), atol=1e-5)

# %% [markdown]
# ## Exercises
#
# In `learn/exercises/chapter_03.py`; `python -m learn.check 3` marks them.
#
# 1. `bucket(distance, buckets, max_distance)`: the formula of the rows, for a table of any size.
# 2. `t5_attention(q, k, v, bias, mask)`: one head, with padding.
