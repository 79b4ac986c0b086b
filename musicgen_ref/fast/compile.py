"""The compiled decode step, put in from outside: what model.compile() does on each device."""

from ..model import MusicGen
from . import step
from .cache import CACHES


def compile_step(model: MusicGen, batch: int, guided: bool, cache: str | None = None) -> MusicGen:
    """Compile the decoder's step of one column, in place; returns the model. On a CPU it takes seconds.

    On a CPU every batch is served, with guidance or without, and weights in int8, bfloat16 and float32, see step.py.
    cache: keep keys and values in "bfloat16" or "int8", which changes numbers, see cache.py; None: as the weights are
    computed with.
    Raises ValueError for another device or cache, or where the decoder has layers that cannot be compiled;
    FileNotFoundError where there is no C++ compiler.
    """
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be a whole number above 0, got {batch!r}")
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {tuple(CACHES)}, got {cache!r}")
    if model.device.type != "cpu":
        raise ValueError(f"model must be on a CPU to be compiled, got {model.device}")
    step.put_in(model.decoder)
    model.decoder.cache_class = CACHES[cache]
    return model
