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
from concurrent.futures import ThreadPoolExecutor
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
    "convolve": ("", "awww"), "panel": ("w", ""), "lstm": ("", "aaaawwww"), "elu": ("", "awfaw"),
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
    options = ["-std=c++17", "-O3", processor, "-fno-math-errno", "-Wno-psabi", "-fPIC"]
    with TemporaryDirectory(prefix="musicgen_ref_") as folder:
        out, objects = str(Path(folder) / "native.so"), [str(Path(folder) / f"{i}.o") for i in (1, 2)]
        for threads in (["-fopenmp"], []):  # Apple's compiler has no OpenMP: what it makes runs on one core
            command = [*compiler(), *options, *threads]
            compiled = [[*command, f"-DOBJECT={i}", "-c", str(SOURCE), "-o", each] for i, each in enumerate(objects, 1)]
            with ThreadPoolExecutor() as pool:
                failed = "".join(pool.map(words_of_failure, compiled))
            failed = failed or words_of_failure([*command, "-shared", *objects, "-o", out])
            if not failed:
                break
        else:
            raise RuntimeError(failed)
        built = ctypes.CDLL(out)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(built, name)
        function.restype, function.argtypes = TYPES[result], [TYPES[letter] for letter in arguments]
    return built


def words_of_failure(command: Sequence[str]) -> str:
    """What a command said when it failed; nothing if it did not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{shlex.join(command)} failed: {done.stderr.strip()[-2000:]}\n" if done.returncode else ""


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
    library().product(
        weight.data_ptr(), address(scales), KINDS[weight.dtype], x.data_ptr(), rows, inputs, outputs, out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def halve(weight: Tensor, out: Tensor) -> bool:
    """Round a weight in fp32 to `out` in fp16; returns whether nothing was rounded off. If so, `out` is complete."""
    return bool(library().halve(weight.data_ptr(), weight.numel(), out.data_ptr(), torch.get_num_threads()))


def elu(x: Tensor, alpha: float, out: Tensor) -> None:
    """ELU of each number of x, in fp32 and dense in memory, written to `out`, which lies as x does and may be x."""
    library().elu(x.data_ptr(), x.numel(), alpha, out.data_ptr(), torch.get_num_threads())


class Convolution(ctypes.Structure):
    """A product of matrices in fp32, of which the left one's rows may overlap, to out (N, O): before + x W + bias, then
    an ELU, if alpha is a number; and to minus (N, O), if it is given, before - x W, then an ELU of minus_alpha.

    Row n of the left one are I numbers from x's first one on, n * stride further, plus `sign` times those of `other`
    that lie as they do. weight: (O / panel, I, panel), the outputs of the right one by panels, see seanet.py, or of few
    outputs (O, I); bias: (O / panel * panel,) or None. out, minus and before: (N, O), whose rows are equally far apart;
    before may be out or minus.
    """

    _fields_ = [
        *((name, c_void_p) for name in ("x", "other", "weight", "bias", "before", "out", "minus")),
        *((name, c_int64) for name in ("stride", "inputs", "outputs", "width")),
        *((name, c_float) for name in ("sign", "alpha", "minus_alpha")),
        ("narrow", c_bool),
    ]

    def __init__(
        self,
        x: Tensor,
        stride: int,
        weight: Tensor,
        out: Tensor,
        bias: Tensor | None = None,
        *,
        other: Tensor | None = None,
        sign: float = 1,
        before: Tensor | None = None,
        alpha: float = math.nan,
        minus: Tensor | None = None,
        minus_alpha: float = math.nan,
    ):
        self.tensors = (x, other, weight, bias, before, out, minus)  # which must be there as long as this is
        (rows, outputs), width, inputs = out.shape, out.stride(0), weight.shape[1]
        self.rows, narrow = rows, weight.dim() == 2
        super().__init__(*map(address, self.tensors), stride, inputs, outputs, width, sign, alpha, minus_alpha, narrow)


def convolve(convolutions: Sequence[Convolution]) -> None:
    """Convolutions of equally many rows, one after the other: each may read what those before it made of that row."""
    structures = (Convolution * len(convolutions))(*convolutions)
    library().convolve(structures, len(convolutions), convolutions[0].rows, torch.get_num_threads())


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor lies."""
    return None if tensor is None else tensor.data_ptr()


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
