"""native.cpp, compiled for this machine's processor, and what it has for single layers.

A compiler takes seconds for the file, so nothing is kept from one process to the next.
"""

import ctypes
import functools
import math
import mmap
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from ctypes import c_bool, c_float, c_int64, c_void_p
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from .. import checks

SOURCE = Path(__file__).with_name("native.cpp")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float16: 3}  # of weights, keys and values
# The results and the arguments of its functions: nothing, addresses, whole numbers, floats, truth values.
TYPES = {"": None, "a": c_void_p, "w": c_int64, "f": c_float, "b": c_bool}
FUNCTIONS = {
    "step": ("", "a"), "scratch_size": ("w", "a"), "product": ("", "aawawwwaw"), "halve": ("b", "awaw"),
    "convolve": ("", "awwaawwabfw"), "panel": ("w", ""), "lstm": ("", "aaaawwww"), "elu": ("", "awfaw"),
}  # fmt: skip


def compiler() -> list[str]:
    """The C++ compiler's command. Raises FileNotFoundError where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = [name for name in (named[:1] or ["g++", "clang++", "c++"]) if shutil.which(name)]
    if not found:
        raise FileNotFoundError(
            "compiling needs a C++ compiler: install g++ or clang++, or name one in the environment variable CXX"
        )
    return [found[0], *named[1:]]


@functools.cache
def library() -> ctypes.CDLL:
    """native.cpp, compiled; the file is gone when this returns. Raises FileNotFoundError where there is no compiler,
    and RuntimeError with its words where it fails."""
    processor = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    options = ["-std=c++17", "-O3", processor, "-fno-math-errno", "-Wno-psabi", "-fPIC", "-shared"]
    with TemporaryDirectory(prefix="musicgen_ref_") as folder:
        out = Path(folder) / "native.so"
        for threads in (["-fopenmp"], []):  # Apple's compiler has no OpenMP: what it makes runs on one core
            command = [*compiler(), *options, *threads, str(SOURCE), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr.strip()[-2000:]}")
        built = ctypes.CDLL(str(out))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(built, name)
        function.restype, function.argtypes = TYPES[result], [TYPES[letter] for letter in arguments]
    return built


def is_built() -> bool:
    """Whether this process has compiled it."""
    return library.cache_info().currsize > 0


def takes(x: Tensor) -> bool:
    """Whether x is numbers on a CPU, and nothing follows what is done with them: no gradients, autocast or trace."""
    followed = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or checks.traced()
    return type(x) is Tensor and x.device.type == "cpu" and not followed


def product(x: Tensor, weight: Tensor, scales: Tensor | None = None) -> Tensor:
    """x (..., I) in fp32 times the transpose of a weight (O, I), as (..., O) in fp32; a weight in int8 has a scale for
    each output (O,)."""
    (outputs, inputs), rows = weight.shape, x.shape[:-1].numel()
    x, out = x.contiguous(), x.new_empty(*x.shape[:-1], outputs)
    factors = None if scales is None else scales.data_ptr()
    library().product(
        weight.data_ptr(), factors, KINDS[weight.dtype], x.data_ptr(), rows, inputs, outputs, out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def halve(weight: Tensor, out: Tensor) -> bool:
    """Round a weight in fp32 to `out` in fp16; returns whether nothing was rounded off. If so, `out` is complete."""
    return bool(library().halve(weight.data_ptr(), weight.numel(), out.data_ptr(), torch.get_num_threads()))


def elu(x: Tensor, alpha: float, out: Tensor) -> None:
    """ELU of each number of x, in fp32 and dense in memory, written to `out`, which lies as x does and may be x."""
    library().elu(x.data_ptr(), x.numel(), alpha, out.data_ptr(), torch.get_num_threads())


def convolve(
    x: Tensor, stride: int, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool = False, alpha: float = math.nan
) -> None:
    """A product of matrices whose rows may overlap, in fp32, to out (N, O), or added to it; then an ELU, if alpha is a
    number.

    Row n of the left one are I numbers from x's first one on, n * stride further; weight: (O / panel, I, panel), the
    outputs of the right one by panels, and bias: (O / panel * panel,) or None, see seanet.py.
    """
    library().convolve(
        x.data_ptr(), len(out), stride, weight.data_ptr(), None if bias is None else bias.data_ptr(), weight.shape[1],
        out.shape[1], out.data_ptr(), add, alpha, torch.get_num_threads(),
    )  # fmt: skip


def lstm(gates: Tensor, weight: Tensor) -> Tensor:
    """The outputs (T, B, H) of an LSTM in fp32 whose H is a multiple of 16.

    gates: (T, B, 4 H), what the inputs and the biases make of the gates, in torch's order; they are overwritten.
    weight: (4 H, H), of the step before.
    """
    T, B, H = (*gates.shape[:2], weight.shape[1])
    cell, out = gates.new_zeros(B, H), gates.new_empty(T, B, H)
    addresses = (each.data_ptr() for each in (weight, gates, cell, out))
    library().lstm(*addresses, T, B, H, torch.get_num_threads())
    return out


class HugePages:
    """One piece of memory for tensors, for which Linux is asked for pages of 2 MB in place of 4 kB: reading
    through it waits for fewer translations of addresses, which take up to a third of the time."""

    def __init__(self, size: int):
        # Private, as Linux has huge pages for shared memory only where it was told to.
        self.region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.region.madvise(mmap.MADV_HUGEPAGE)
        self.bytes, self.end = torch.frombuffer(self.region, dtype=torch.uint8), 0

    @staticmethod
    def size(tensor: Tensor) -> int:
        """Bytes that a tensor takes, up to the next line of the caches."""
        return -(-tensor.nbytes // 64) * 64

    def empty_like(self, tensor: Tensor) -> Tensor:
        """A tensor behind those that were made before, of this one's shape and type."""
        begin, self.end = self.end, self.end + self.size(tensor)
        return self.bytes[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy behind those that were made before."""
        return self.empty_like(tensor).copy_(tensor)


def huge_pages(tensors: Sequence[Tensor]) -> HugePages | None:
    """Room for as many as these; None where the system has no such pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        return HugePages(sum(map(HugePages.size, tensors)))
    except OSError:  # a kernel without them
        return None


def move_together(tensors: Sequence[Tensor]) -> None:
    """Let tensors lie behind one another in huge pages, where the system has them."""
    if (room := huge_pages(tensors)) is None:
        return
    # The C library would keep what is freed for later, beside as much that is new.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    for i, tensor in enumerate(tensors):
        tensor.data = room.copy(tensor.detach())
        if trim is not None and i % 8 == 0:
            trim(0)
