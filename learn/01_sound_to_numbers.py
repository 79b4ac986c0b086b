# %% [markdown]
# # 1. Sound to numbers
#
# A transformer predicts one of a few symbols. Sound is not symbols: it is a pressure that changes, measured thousands
# of times a second. So the first question of every model that writes music as others write text is: **which
# symbols?** This chapter follows a clip from pressure to symbols and back, and listens to what each step loses.
#
# The chapters walk along one path. This picture of it comes back in each of them, and what is lit is what the chapter
# is about. The letters are sizes, and mean the same everywhere, in the code too: B is the batch, C audio channels, N
# samples, T frames, Z numbers of a frame, K codebooks of V entries each. (The README has the whole legend.)

# %%
from itertools import pairwise

import numpy as np
import torch
from lab import Lab, spectrogram  # learn/lab.py, beside this file: figures, players, the picture of the path
from matplotlib.figure import Figure

from examples.demo_model import synth
from examples.demo_model.codec_measures import si_sdr
from musicgen_ref import EncodecConfig, MusicGen
from musicgen_ref.encodec import Conv, ConvTranspose

# %% tags=["parameters"]
SHORT = False  # True: the same chapter on a shorter clip
OUT = "out"  # the folder for figures and sounds

# %%
lab = Lab(1, OUT)
lab.path("sound", "encode", "codes", "decode", "heard")

# %% [markdown]
# ## A waveform
#
# **Idea.** A microphone's voltage, or here a synthesiser's, is written down at even distances in time. The demo model
# was trained on the clips of a small synthesiser, so one of those is what we take apart: a plucked string that plays
# a melody over a simple beat.
#
# **Formula.** A clip of `s` seconds at the sampling rate `r` is
#
#     N = s * r        numbers, each between -1 and 1,
#
# and where each is kept in 16 bits, a second costs `16 * r` bits.

# %%
model = MusicGen.from_pretrained("demo")
codec, rate = model.codec, model.sampling_rate
length = 1.0 if SHORT else 4.0
clip = synth.Attributes(instrument="pluck", drums="simple", tempo="medium", root=9, mode="minor", texture="melody")
audio = torch.from_numpy(synth.render(clip, length, np.random.default_rng(1)))  # (N,)
assert len(audio) == length * rate

figure = Figure(figsize=(10, 6))
whole, close, picture = figure.subplots(3, 1)
time = torch.arange(len(audio)) / rate
whole.plot(time, audio, linewidth=0.3)
whole.set_xlim(0, length)
whole.set_ylim(-1, 1)
whole.set_xlabel("seconds")
whole.set_ylabel("pressure")
whole.set_title("the clip: it looks like its loudness", fontsize=10)
some = slice(int(0.3 * rate), int(0.32 * rate))
close.plot(1000 * time[some], audio[some], ".-", markersize=3)
close.margins(x=0)
close.set_xlabel("milliseconds")
close.set_ylabel("pressure")
close.set_title("20 ms of it: the dots are the numbers", fontsize=10)
spectrogram(picture, audio, rate, "which frequencies sound when: lines are notes, columns are drums")
figure.tight_layout()
print(f"{len(audio):,} numbers; {16 * rate:,} bits a second")
lab.figure(figure, "waveform", "The waveform of the clip, 20 ms of it as dots, and its spectrogram.")

# %%
lab.sound(audio, rate, "original", "the clip, as synthesised")

# %% [markdown]
# ## Fewer, richer numbers
#
# **Idea.** Neighbouring samples say nearly the same. A stack of convolutions, each of which makes fewer positions of
# more channels, turns the waveform into a few vectors a second: the **latents**. EnCodec's encoder is such a stack,
# with an LSTM behind it that carries what lasts longer.
#
# **Formula.** With strides `s_1, s_2, ...`, one latent stands for
#
#     hop = s_1 * s_2 * ...        samples, so N samples become T = ceil(N / hop) frames.
#
# The rounding is up because the last frame is filled with padding. How much is a small sum, and the code does it in
# whole numbers: a kernel of 16 that moves by 8 over 100 samples. 100 is 12 strides and a half, so there must be 13
# positions.

# %%
conv = Conv(EncodecConfig(), 1, 1, kernel=16, stride=8)
left, right = conv.padding(100)
print(f"left {left}, right {right}: {left + 100 + right} samples, {(left + 100 + right - 16) // 8 + 1} positions")
assert (left, right) == (4, 4 + 4)  # kernel - stride = 8 is shared out; 4 more fill the last stride
assert conv(torch.zeros(1, 1, 100)).shape[-1] == 13 == -(-100 // 8)

# %% [markdown]
# **Code.** The encoder is an `nn.Sequential`: running its layers one by one shows the waveform getting shorter and
# wider. Only layers that change the shape are printed; between them stand small convolutions that add to what they
# read, and before the last the LSTM.

# %%
x = audio[None, None]  # (B, C, N)
print(f"{'':14} {tuple(x.shape)}")
with torch.no_grad():
    for layer in codec.encoder:
        before, x = x.shape, layer(x)
        if x.shape != before:
            stride = layer.conv.stride[0] if isinstance(layer, Conv) else 1
            print(f"{type(layer).__name__:8} / {stride:<3} {tuple(x.shape)}")
    latents = codec.encoder(audio[None, None])  # (B, Z, T)
frames = -(-len(audio) // codec.config.hop)
assert latents.shape == (1, codec.config.hidden, frames)
assert torch.allclose(x, latents, atol=1e-4)  # long clips are coded a few seconds at a time: see chapter 8
print(f"hop {codec.config.hop}: {rate / codec.config.hop:g} frames a second, each of {codec.config.hidden} numbers")

# %% [markdown]
# ## Residual quantisation, codebook by codebook
#
# **Idea.** A latent is a vector of real numbers; a symbol is a whole number. So keep a list of V vectors, a
# **codebook**, and name the nearest one. One list is too coarse, and a list fine enough would have billions of
# entries. Therefore name the nearest entry of a first list, subtract it, and name **what is left over**, the
# residual, from a second list, and so on. (To name the nearest of a few values is called to quantise.)
#
# **Formula.** Codebooks are counted from 0. With `r_0` the latent and `e_k[v]` entry v of codebook k,
#
#     c_k     = the v for which |r_k - e_k[v]| is least
#     r_(k+1) = r_k - e_k[c_k]
#
# and the latent is read back as `e_0[c_0] + e_1[c_1] + ...`, K terms in all. K look-ups among V entries tell V ** K
# vectors apart.
#
# **Code.** By hand, in the words of the formula; then the package's, which does the same for all frames at once.

# %%
books = codec.quantizer.codebooks  # (K, V, Z)
K, V, _ = books.shape
codes = codec.quantizer.encode(latents, K)  # (B, K, T)

rest = latents[0].T  # (T, Z): r_0
left_over = [rest.square().sum().item()]
for k in range(K):
    distance = torch.cdist(rest, books[k])  # (T, V)
    chosen = distance.gather(1, codes[0, k, :, None])[:, 0]
    assert torch.allclose(chosen, distance.min(dim=1).values, atol=1e-3)  # the package named the nearest one
    rest = rest - books[k][codes[0, k]]  # r_(k+1)
    left_over.append(rest.square().sum().item())
words = codec.quantizer.decode(codes)  # the sum of the entries
assert torch.allclose(words[0].T + rest, latents[0].T, atol=1e-4)  # latent = what was named + what is left
print(f"{V} ** {K} = {V**K:,} vectors can be told apart, by {K} look-ups among {V}")

figure = Figure(figsize=(10, 3))
bars, grid = figure.subplots(1, 2, width_ratios=(1, 2))
bars.bar(range(K + 1), [100 * part / left_over[0] for part in left_over])
bars.set_xlabel("codebooks used")
bars.set_ylabel("% of the latents' energy left over")
shown = grid.imshow(codes[0, :, :100].numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
figure.colorbar(shown, label="code")
grid.set_yticks(range(K))
grid.set_xlabel("frame")
grid.set_ylabel("codebook")
grid.set_title(f"{min(frames, 100) / 50:g} s of music, as the decoder will see it", fontsize=10)
figure.tight_layout()
assert all(after < before for before, after in pairwise(left_over))
lab.figure(figure, "residual", "Energy left over after each codebook, and the codes as a picture.")

# %% [markdown]
# ## Hear 1, 2, 3, 4
#
# **Idea.** The sum may stop anywhere, so any number of codebooks can be decoded. Is the first alone already the tune?
# The numbers are dB of signal to distortion: every 6 dB more are half the error. The last player decodes the latents
# themselves, without quantising: what is lost there is lost in the convolutions.
#
# **Formula.** `dB = 20 log10( |signal| / |error| )`, at the loudness at which the error is least.

# %%
heard = {"original": audio}
with torch.no_grad():
    for k in range(1, K + 1):
        heard[f"{k} of {K} codebooks"] = codec.decoder(codec.quantizer.decode(codes[:, :k]))[0, 0, : len(audio)]
    heard["latents, not quantised"] = codec.decoder(latents)[0, 0, : len(audio)]
ratios = {name: si_sdr(out[None], audio[None]).item() for name, out in heard.items() if name != "original"}
for name, ratio in ratios.items():
    print(f"{name:24} {ratio:6.2f} dB")
assert ratios[f"{K} of {K} codebooks"] > ratios[f"1 of {K} codebooks"]
assert torch.allclose(heard[f"{K} of {K} codebooks"], model.decode(codes)[0, 0, : len(audio)], atol=1e-4)
lab.sounds(heard, rate, "codebooks")

# %% [markdown]
# The way back is the encoder's mirror image: transposed convolutions, each of which makes more positions of fewer
# channels, from one vector a frame back to one number a sample.

# %%
ups = [layer.conv.stride[0] for layer in codec.decoder if isinstance(layer, ConvTranspose)]
print("positions are multiplied by", " * ".join(map(str, ups)), "=", codec.config.hop)
assert tuple(ups) == codec.config.ratios
assert model.decode(codes).shape == (1, 1, frames * codec.config.hop)

# %% [markdown]
# ## Bits per second
#
# **Idea.** What did all this buy? A code out of V costs log2(V) bits.
#
# **Formula.**
#
#     bits a second = frames a second * K * log2(V)


# %%
def bits(config: EncodecConfig) -> int:
    return config.codebooks * config.bitrate  # bitrate: of one codebook


for name, config in {"this codec": codec.config, "MusicGen's": EncodecConfig()}.items():
    plain = 16 * config.sampling_rate
    print(f"{name}: {plain:,} bits a second become {bits(config):,}, {plain / bits(config):.0f} times fewer")
assert bits(EncodecConfig()) == 50 * 4 * 11 == 2200

# %% [markdown]
# ## Where this leaves us
#
# A clip is now a small table of whole numbers (K, T). Nothing in the following chapters ever sees a waveform until
# the last step. But it is a **table**, and a transformer reads a line: four codes belong to each moment. That is
# chapter 2.
#
# ## Exercises
#
# In `learn/exercises/chapter_01.py`; `python -m learn.check 1` marks them.
#
# 1. `bits_per_second(rate, ratios, codebooks, size)`: for any codec.
# 2. `residual_quantise(latents, books)`: the formula above, for real.
# 3. `padding(samples, kernel, stride)`: what to add on the left and on the right.
