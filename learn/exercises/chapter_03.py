"""Exercises of chapter 3. Write the bodies, then: python -m learn.check 3"""

from torch import Tensor


def bucket(distance: int, buckets: int = 32, max_distance: int = 128) -> int:
    """The row of T5's table for a distance (key - query), of `buckets` rows; all from max_distance on share the last of
    their half."""
    raise NotImplementedError


def t5_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """One head of T5: queries q (L, D) take the mean of the values v (L, D) of the keys k (L, D), weighted by their
    scores with the bias (L, L) added. mask (L,): True where there is text; padding is not attended to."""
    raise NotImplementedError
