"""torch.compile of the decode step, put in from outside: its products read weights that are packed for them.

On CPUs inductor's own products of a few rows read the weights about half again as fast as BLAS does.
"""

from typing import Any

import torch
import torch.compiler.config
from torch import Tensor
from torch._dynamo import mark_dynamic
from torch._inductor import config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from ..attention import KVCache
from ..model import MusicGen
from .int8 import Int8Linear

# On CPUs weights become constants (freezing), packed for inductor's micro-kernels (CPP), which only max_autotune takes
# into account; products of one input are joined (concat_linear).
CPU = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP",
    "cpp.enable_concat_linear": True,
}


@torch.no_grad()
def compile_step(model: MusicGen, batch: int, guided: bool) -> MusicGen:
    """Compile the decoder's step of one column for `batch` texts, in place; returns the model. Takes minutes.

    The compiled step serves generation of that many texts of two tokens or more, with guidance or without as said, of
    any length. All else (the first and the last step, prompts, other batches, no text, masks, training, another number
    of threads) runs plain as before. Sums are taken in another order. The weights are copied as they are: what is done
    to them later has no effect, and they take twice the memory. CUDA goes torch's default way, which nobody has run
    here.
    Raises ValueError for a model in int8, whose products inductor does not know; FileNotFoundError where there is no
    C++ compiler.
    """
    decoder, tokens = model.decoder, 8
    if any(isinstance(module, Int8Linear) for module in decoder.modules()):
        raise ValueError("model must be in float32, bfloat16 or float16 to be compiled, got int8")
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be a whole number above 0, got {batch!r}")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        message = "compiling needs a C++ compiler: install g++ or clang++, or name one in the environment variable CXX"
        raise FileNotFoundError(message) from None

    memory = decoder.norm.weight.new_zeros(batch, tokens, decoder.config.width)
    cache = decoder.new_cache(batch * (2 if guided else 1), 16, memory)
    cache.length = 2
    cache.cross_mask = torch.ones(batch, 1, 1, tokens, dtype=torch.bool, device=model.device) if batch > 1 else None
    for tensor in [*cache.keys, *cache.values, *(tensor for pair in cache.cross for tensor in pair)]:
        mark_dynamic(tensor, 2)
    if cache.cross_mask is not None:
        mark_dynamic(cache.cross_mask, 3)
    codes = torch.zeros(cache.batch, len(model.delays), 1, dtype=torch.long, device=model.device)
    decoder.compile(fullgraph=True, dynamic=False)
    # What stays dynamic all the same: the dimensions marked, and this number.
    dynamic = torch.compiler.config.patch(dynamic_sources="L['cache'].length")  # type: ignore[attr-defined]
    with dynamic, config.patch(CPU if model.device.type == "cpu" else {}):
        decoder(codes, cache=cache, backend=model.backend)

    compiled = torch.compiler.set_stance("eager_on_recompile")(decoder._compiled_call_impl)

    def step(*args: Any, cache: KVCache | None = None, **options: Any) -> Tensor:
        # Compiled with a mask, as most batches have one; a batch whose texts are of one length has none.
        if batch > 1 and cache is not None and cache.cross and cache.cross_mask is None:
            keys = cache.cross[0][0]
            cache.cross_mask = torch.ones(len(keys), 1, 1, keys.shape[2], dtype=torch.bool, device=keys.device)
        return compiled(*args, cache=cache, **options)

    decoder._compiled_call_impl = step  # which nn.Module leaves out of copies and files
    return model
