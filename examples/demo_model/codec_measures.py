"""How well a codec reconstructs: the loss it is trained with, and the figures it is judged by.

B batch, N samples, F frequency bins, T frames, K codebooks.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musicgen_ref.encodec import Encodec

from . import synth


def spectrum(audio: Tensor, size: int) -> Tensor:
    """Magnitudes (B, F, T) of audio (B, N): a Hann window of `size` samples, a quarter apart, of amplitude about 1."""
    window = torch.hann_window(size)
    return torch.stft(audio, size, size // 4, window=window, return_complex=True).abs() * (2 / size)


def reconstruction_loss(out: Tensor, audio: Tensor) -> Tensor:
    """Waveform L1, spectral convergence and log-magnitude L1 at three resolutions, each relative to the audio's level.

    out and audio are (B, 1, N). Source of the spectral terms: Yamamoto et al. 2020 (arXiv:1910.11480).
    """
    out, audio = out[:, 0], audio[:, 0]
    level = audio.abs().mean(1).clamp(min=0.01)
    loss = 2 * ((out - audio).abs().mean(1) / level).mean()
    for size in (2048, 512, 128):
        x, y = spectrum(out, size), spectrum(audio, size)
        convergence = (x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1).clamp(min=0.05)
        loss = loss + convergence.mean() / 3 + 0.15 * ((x + 1e-4).log() - (y + 1e-4).log()).abs().mean()
    return loss


def mel_filters(bins: int, mels: int = 64) -> Tensor:
    """Triangles (bins, mels), evenly spaced on the mel scale from 0 Hz to half the sample rate."""
    top = 2595 * math.log10(1 + synth.SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, mels + 2) / 2595) - 1)
    hz = torch.linspace(0, synth.SAMPLE_RATE / 2, bins)[:, None]
    rise = (hz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - hz) / (corners[2:] - corners[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


def log_mel(audio: Tensor) -> Tensor:
    """Natural logarithm of 64 mel bands of magnitude, floor 1e-4, of audio (B, N)."""
    magnitude = spectrum(audio, 1024)
    return (mel_filters(magnitude.shape[1]).t() @ magnitude).clamp(min=1e-4).log()


def si_sdr(out: Tensor, audio: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, (B,), of out against audio, both (B, N).

    Source: Le Roux et al. 2018 (arXiv:1811.02508).
    """
    out, audio = out - out.mean(1, keepdim=True), audio - audio.mean(1, keepdim=True)
    target = (out * audio).sum(1, keepdim=True) / audio.pow(2).sum(1, keepdim=True) * audio
    return 10 * torch.log10(target.pow(2).sum(1) / (out - target).pow(2).sum(1))


@lru_cache(maxsize=4)
def unseen_clips(count: int, seconds: float, shift: int = 0) -> Tensor:
    """Clips (count, 1, N) of attribute combinations that training never renders, from sample `shift` on."""
    rng = np.random.default_rng(20_000)
    clips = [
        synth.render(synth.sample_attributes(rng, held_out=True), seconds + shift / synth.SAMPLE_RATE, rng)
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(clips))[:, None, shift:]


@torch.no_grad()
def evaluate(codec: Encodec, clips: Tensor) -> dict[str, Any]:
    """SI-SDR (dB) and log-mel L1 with 1 ... K codebooks and unquantised; used share and perplexity of each codebook."""
    latents = codec.encoder(clips)
    codes = codec.quantizer.encode(latents, codec.config.codebooks)
    inputs = {str(k): codec.quantizer.decode(codes[:, :k]) for k in range(1, codec.config.codebooks + 1)}
    result: dict[str, Any] = {"si_sdr": {}, "log_mel_l1": {}, "used": [], "perplexity": []}
    for name, vectors in {**inputs, "unquantised": latents}.items():
        out = codec.decoder(vectors)[:, 0, : clips.shape[-1]]
        result["si_sdr"][name] = round(float(si_sdr(out, clips[:, 0]).mean()), 2)
        result["log_mel_l1"][name] = round(float((log_mel(out) - log_mel(clips[:, 0])).abs().mean()), 3)
    for k in range(codec.config.codebooks):
        share = torch.bincount(codes[:, k].flatten(), minlength=codec.config.codebook_size) / codes[:, k].numel()
        result["used"].append(round(float((share > 0).float().mean()), 3))
        result["perplexity"].append(round(float(torch.special.entr(share).sum().exp()), 1))
    return result
