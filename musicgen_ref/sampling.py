"""From logits to codes: free functions on (..., V).

The likeliest code at every step makes dull, looping music; drawing from all codes lets in every error of the model's
tail. So codes are drawn from a distribution that is sharpened by the text (guidance) and cut at its tail (top-k, top-p,
min-p). The order of a step is that of transformers: guidance, temperature, top-k, top-p, min-p, softmax, draw.

B batch, K codebooks, V codes per codebook.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def guide(cond: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: move from the logits without text along the difference that the text makes.

    In training some rows lose their text, so that one model learns both predictions; here a row without text is one
    whose text is all masked. scale 1 is the text's own prediction, 0 ignores the text, above 1 overstates it: codes
    that the text makes likelier become likelier still. Source: Ho and Salimans 2022 (arXiv:2207.12598), MusicGen's
    section 2.4; the order of operations is transformers', which decides the rounding.
    """
    return null + (cond - null) * scale


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest (and what ties with the k-th); the rest becomes -inf. k = 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely codes whose probabilities reach p; the rest becomes -inf. p = 1 keeps all.

    Probabilities are summed from the unlikely end, as transformers does: the codes whose sum is at most 1 - p are
    dropped, but never the most likely one. Source: Holtzman et al. 2020 (arXiv:1904.09751).
    """
    if p >= 1:
        return logits
    ascending, order = logits.sort(dim=-1)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the codes that are at least p times as probable as the most likely one; the rest becomes -inf. p = 0 keeps
    all.

    Unlike top-p it keeps few codes where the model is sure and many where it is not. Source: Nguyen et al. 2024
    (arXiv:2407.01082).
    """
    if p == 0:
        return logits
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), -torch.inf)


def draw(logits: Tensor, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
    """Draw one code from each softmax of logits (B, K, V), as (B, K).

    generator None or a torch.Generator: one multinomial over (B * K, V), the very draws that transformers makes under
    the same seed. A sequence of B generators: each row draws from its own, so its codes do not depend on its batch.
    """
    probs = logits.softmax(-1)
    if generator is None or isinstance(generator, Generator):
        return torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(logits.shape[:-1])
    rows = [torch.multinomial(row, 1, generator=own) for row, own in zip(probs, generator, strict=True)]
    return torch.stack(rows).squeeze(-1)
