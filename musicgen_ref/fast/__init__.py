"""Speed, put in from outside: layers of the same weights that compute the same numbers sooner.

speed_up() is what from_pretrained() calls unless it is told `fast=False`. A model that was made by hand is plain until
it is sped up. int8.py and cache.py change numbers, and compile.py needs a compiler or a GPU, so they are put in on
request alone.
"""

from typing import TypeVar

from torch import nn

from . import codec, linear

Module = TypeVar("Module", bound=nn.Module)


def speed_up(module: Module) -> Module:
    """Put faster layers into a MusicGen, or into a part of one, in place; returns it.

    The new layers own the parameters of those that they replace, under the same names: state_dict(), saving, copies,
    pickling, training and gradients stay as they were. To speed up twice changes nothing. Each file here says what it
    replaces, why, and how far numbers may differ in rounding.
    """
    linear.put_in(module)
    codec.put_in(module)
    return module
