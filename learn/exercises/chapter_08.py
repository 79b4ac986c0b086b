"""Exercises of chapter 8. Write the bodies, then: python -m learn.check 8"""

from torch import Tensor

from musicgen_ref import DecoderConfig


def bytes_a_step(config: DecoderConfig, rows: int, position: int, size: int) -> int:
    """Bytes that a decoding step reads, behind `position` steps: the matrices that it multiplies by (the text's keys
    and values were computed before) and the cache of so many rows, at `size` bytes a number."""
    raise NotImplementedError


def attainable(work: float, moved: float, peak: float, bandwidth: float) -> float:
    """The least seconds that so many operations on so many bytes can take, at `peak` operations and `bandwidth` bytes a
    second, where reading and computing go on at the same time."""
    raise NotImplementedError


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (O, I) as int8 in -127..127, and the scale of each row (O, 1): their product is nearest to the matrix
    that it can be with the largest number of each row at 127 or -127."""
    raise NotImplementedError
