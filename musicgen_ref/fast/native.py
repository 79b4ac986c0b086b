"""native.cpp, compiled for this machine's processor, and what it has for single layers.

A compiler takes seconds for the file, so nothing is kept from one process to the next.
"""

import ctypes
import functools
import mmap
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.cpp")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float16: 3}  # of weights, keys and values


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
    built.scratch_size.restype = c_int64
    built.step.restype = built.product.restype = built.elu.restype = None
    built.elu.argtypes = [c_void_p, c_int64, c_float, c_void_p, c_int64]
    built.product.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64]
    return built


def is_built() -> bool:
    """Whether this process has compiled it."""
    return library.cache_info().currsize > 0


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


def elu(x: Tensor, alpha: float, out: Tensor) -> None:
    """ELU of each number of x, in fp32 and dense in memory, written to `out`, which lies as x does and may be x."""
    library().elu(x.data_ptr(), x.numel(), alpha, out.data_ptr(), torch.get_num_threads())


class HugePages:
    """One piece of memory for copies of tensors, for which Linux is asked for pages of 2 MB in place of 4 kB: reading
    through it waits for fewer translations of addresses, which take a fifth to two fifths of the time."""

    def __init__(self, size: int):
        # Private, as Linux has huge pages for shared memory only where it was told to.
        self.region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.region.madvise(mmap.MADV_HUGEPAGE)
        self.bytes, self.end = torch.frombuffer(self.region, dtype=torch.uint8), 0

    @staticmethod
    def size(tensor: Tensor) -> int:
        """Bytes that a tensor takes, up to the next line of the caches."""
        return -(-tensor.nbytes // 64) * 64

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy behind those that were made before."""
        begin, self.end = self.end, self.end + self.size(tensor)
        return self.bytes[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def huge_pages(tensors: Sequence[Tensor]) -> HugePages | None:
    """Room for copies of all of these; None where the system has no such pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        return HugePages(sum(map(HugePages.size, tensors)))
    except OSError:  # a kernel without them
        return None
