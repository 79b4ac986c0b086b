"""The compiled decode step, put in from outside: what model.compile() does on each device."""

from ..model import MusicGen
from . import cuda, seanet, step
from .cache import CACHES


def compile_step(model: MusicGen, batch: int, guided: bool, cache: str | None = None) -> MusicGen:
    """Compile the decoder's step of one column, in place; returns the model.

    On a CPU that takes seconds, and serves weights in int8 and in every dtype that can be loaded, see step.py. On CUDA
    graphs are captured when they are first needed, see cuda.py. Both serve every batch, with guidance or without:
    `batch` and `guided` are there for those who gave them when a step served one of each.
    cache: on a CPU, keep keys and values in "bfloat16" or "int8", which changes numbers, see cache.py; None: in the
    dtype that is computed in.
    Raises ValueError for another device or cache, or where the decoder has layers that cannot be compiled;
    FileNotFoundError where there is no C++ compiler.
    """
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be a whole number above 0, got {batch!r}")
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {tuple(CACHES)}, got {cache!r}")
    if model.device.type == "cuda" and cache is None:
        return cuda.capture(model)
    if model.device.type != "cpu":
        told = "" if cache is None else f", with cache {cache!r} on a CPU"
        raise ValueError(f"model must be on a CPU or CUDA to be compiled{told}, got {model.device}")
    step.put_in(model.decoder)
    seanet.put_in(model)
    model.decoder.cache_class = CACHES[cache]
    return model
