"""The scale of a codec's signals: set at the start of its training, and again before its codebooks start.

B batch, N samples, T frames, D latent width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from musicgen_ref.encodec import Conv, ConvTranspose, Encodec, Residual


@torch.no_grad()
def scale_layers(codec: Encodec, audio: Tensor) -> None:
    """Scale each convolution for outputs of standard deviation 1 on audio (B, 1, N), the last for the audio's own.

    PyTorch's initialisation shrinks the signal in every layer, and audio is quiet to begin with. Source:
    layer-sequential unit variance, Mishkin & Matas 2015 (arXiv:1511.06422).
    """
    last = codec.decoder[-1]
    branches = {m.block[-1] for m in codec.modules() if isinstance(m, Residual)}  # added to a signal: start small

    def rescale(module: Any, inputs: Any, output: Tensor) -> Tensor:
        target = float(audio.std()) if module is last else 0.3 if module in branches else 1.0
        gain = target / float(output.std())
        module.conv.weight.mul_(gain)
        module.conv.bias.mul_(gain)
        return output * gain

    hooks = [m.register_forward_hook(rescale) for m in codec.modules() if isinstance(m, (Conv, ConvTranspose))]
    codec.decoder(codec.encoder(audio))
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def normalise_latents(codec: Encodec, latents: Tensor) -> list[nn.Parameter]:
    """Give latents (B, D, T) mean 0 and variance 1 without changing the audio; returns the parameters it changed.

    The commitment loss has a fixed weight: were it relative to the latents' variance, nothing would keep the encoder
    from growing faster than its codebooks follow, and these would collapse.
    """
    ends: Any = codec.encoder[-1], codec.decoder[0]
    last, first = (end.conv for end in ends)
    mean, deviation = latents.mean(dim=(0, 2)), float(latents.std(dim=(0, 2)).square().mean().sqrt())
    last.weight /= deviation
    last.bias.copy_((last.bias - mean) / deviation)
    first.bias += first.weight.sum(2) @ mean
    first.weight *= deviation
    return [last.weight, last.bias, first.weight, first.bias]
