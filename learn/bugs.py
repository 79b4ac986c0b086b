"""Bugs to find: plant() puts one into a copy of a decoder. Whoever wants to search does not read on.

Each is of a kind that really happens when a model is written a second time: an eps, a scale, an activation, an order.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch.nn import functional as F

from musicgen_ref.decoder import Decoder


def eps(decoder: Any) -> None:
    decoder.blocks[1].cross_norm.eps = 0.1


def scale(decoder: Any) -> None:
    decoder.blocks[1].self_attn.scale = 1.0


def activation(decoder: Any) -> None:
    decoder.blocks[0].activation = F.relu


def order(decoder: Any) -> None:
    weights = [head.weight.data for head in decoder.heads]
    for head, weight in zip(decoder.heads, weights[-1:] + weights[:-1], strict=True):
        head.weight.data = weight


def bias(decoder: Any) -> None:
    decoder.text_proj.bias.data = decoder.text_proj.bias.data * 0


def swap(decoder: Any) -> None:
    attn = decoder.blocks[0].cross_attn
    attn.k.weight.data, attn.v.weight.data = attn.v.weight.data, attn.k.weight.data


# Each bug, and the name of the module in which it is.
BUGS: dict[str, tuple[Callable[[Any], None], str]] = {
    "eps": (eps, "blocks.1.cross_norm"),
    "scale": (scale, "blocks.1.self_attn"),
    "activation": (activation, "blocks.0"),
    "order": (order, "heads.0"),
    "bias": (bias, "text_proj"),
    "swap": (swap, "blocks.0.cross_attn.k"),
}


def plant(decoder: Decoder, name: str) -> Decoder:
    """A copy of a decoder (of two blocks or more, with a text projection) with the bug of that name."""
    wrong = copy.deepcopy(decoder)
    BUGS[name][0](wrong)
    return wrong
