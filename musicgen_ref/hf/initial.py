"""Random weights for a new model, with the distributions that transformers draws them from.

They are drawn by torch's global generator. The configuration's initializer_factor scales their standard deviation.
"""

from typing import Any, TypeVar

import torch
from torch import nn

from ..decoder import Decoder
from ..encodec import Encodec
from ..t5 import RMSNorm, T5Encoder

STD = 0.02  # transformers' standard deviation where a configuration has no initializer_factor
Part = TypeVar("Part", bound=nn.Module)


@torch.no_grad()
def draw(part: Part, config: Any) -> Part:
    """Draw the weights of a new T5Encoder, Decoder or Encodec, in place; returns it."""
    if isinstance(part, T5Encoder):
        _draw_text(part, float(config.get("initializer_factor", 1.0)))
    elif isinstance(part, Decoder):
        for module in part.modules():
            plain(module, float(config.get("initializer_factor", STD)))
    elif isinstance(part, Encodec):
        _draw_codec(part)
    return part


@torch.no_grad()
def plain(module: nn.Module, std: float) -> None:
    """Draw the weights of a linear layer or of an embedding, in place; other modules stay as they are."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _draw_text(encoder: T5Encoder, factor: float) -> None:
    c = encoder.config
    nn.init.normal_(encoder.embed.weight, std=factor)
    nn.init.normal_(encoder.relative_bias.weight, std=factor * c.width**-0.5)
    for name, module in encoder.named_modules():
        if isinstance(module, RMSNorm):
            nn.init.constant_(module.weight, factor)
        elif isinstance(module, nn.Linear):
            # T5 does not divide scores by the square root of the head width: its queries begin smaller instead.
            last = name.rpartition(".")[2]
            inputs = {"q": c.width * c.head_width, "out": c.heads * c.head_width, "wo": c.ffn}.get(last, c.width)
            nn.init.normal_(module.weight, std=factor * inputs**-0.5)


def _draw_codec(codec: Encodec) -> None:
    # With a weight norm the filters keep the values that torch gave them, as in transformers, whose initialisation
    # writes into the product of the two tensors and so changes neither.
    normed = codec.config.norm == "weight_norm"
    for module in codec.modules():
        if isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                nn.init.xavier_uniform_(parameter) if "weight" in name else nn.init.zeros_(parameter)
        elif isinstance(module, nn.ConvTranspose1d):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if not normed:
                nn.init.normal_(module.weight, std=STD)
        elif isinstance(module, nn.Conv1d) and not normed:
            nn.init.kaiming_normal_(module.weight)
