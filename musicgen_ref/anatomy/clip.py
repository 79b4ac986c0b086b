"""Generate a clip and keep what was computed on the way: of every code its probability, its alternatives, how undecided
the model was, and what guidance changed; of every step what it read of the text; and the sound of the first codebooks.

K codebooks, T frames, S delayed steps, V codes per codebook, H heads, L text tokens, C audio channels, N samples.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor

from .. import delay
from ..attention import Trace
from ..encodec import Chunk
from ..model import DEFAULT, GenerationOptions, MusicGen, Sampling, Step, narrow

ALTERNATIVES = 10


@dataclass(frozen=True)
class Anatomy:
    """One clip. What is told of a code stands at its codebook and frame, (K, T), as in codes.

    probability: of the code, in the distribution that it was drawn from: guided, after temperature, top-k, top-p and
    min-p; where the likeliest is taken, in the guided distribution. rank: how many codes were likelier. kept: how many
    could be drawn. entropy: of that distribution, in bits.
    likeliest, likeliest_probability: (K, T, 10), or fewer where there are fewer codes.
    moved: the root mean square, over the V codes, of what guidance added to the logits; None without guidance.
    attention: (blocks, H, columns, L), what the steps read of the tokens, each column the mean of `steps_per_column` of
    the S steps; `heads` is H, or 1 where the mean over all heads is kept, and blocks likewise. None without a text.
    audio: K / C clips (C, N), of the first 1, 2, ... codebooks of each channel.
    """

    text: str | None
    tokens: Sequence[str]
    sampling: Sampling
    delays: Sequence[int]
    codebook_size: int
    sampling_rate: int
    hop: int
    codes: Tensor
    probability: Tensor
    rank: Tensor
    kept: Tensor
    entropy: Tensor
    likeliest: Tensor
    likeliest_probability: Tensor
    moved: Tensor | None
    attention: Tensor | None
    steps_per_column: int
    blocks: int
    heads: int
    audio: Sequence[Tensor]

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.codes.shape[1] * self.hop / self.sampling_rate


def page_bytes(seconds: float) -> int:
    """Bytes that the page of a clip may have: 5 MB for 8 seconds or less, of more in proportion."""
    return int(5_000_000 * max(1.0, seconds / 8))


def attention_budget(frames: int, codebooks: int, sampling_rate: int, hop: int) -> int:
    """Bytes, one a weight, that the attention of a clip may take: what its codes and sounds leave of the page, but at
    least a fifth of it, for which sounds give way."""
    limit = page_bytes(frames * hop / sampling_rate) * 3 // 4  # base64 takes 4 bytes for 3
    sounds = 2 * codebooks * frames * hop  # the first 1, 2, ... codebooks of each channel
    numbers = 80 * codebooks * frames + 60_000  # and the page's own text
    return max(limit // 5, limit - sounds - numbers)


@torch.no_grad()
def dissect(
    model: MusicGen, text: str | None = None, options: GenerationOptions = DEFAULT, *,
    generator: Generator | None = None, watch: Callable[[Iterable[Step], int], Iterable[Step]] | None = None,
) -> Anatomy:  # fmt: skip
    """Generate one clip, the very one that generate() makes, and keep what it was made of.

    text: None for none. watch: called with the steps and their number, to show progress while they are taken.
    What would be too large (see attention_budget()) is kept as a mean: over neighbouring steps, then over heads, then
    over blocks. Raises what generate() raises.
    """
    caption = None if text is None else [text]
    table, steps = model.generate_steps(caption, options, generator=generator, trace=Trace(weights=True, states=False))
    how = options.sampling(model.defaults)
    delays = model.delays if options.pattern == "delay" else (0,) * len(model.delays)
    S, V = table.shape[2] - 1, model.decoder.config.vocab_size
    T = S - max(delays)
    tokens = [] if text is None else _tokens(model, text)
    hop = model.codec.config.hop
    attention = _Attention(S, attention_budget(T, len(delays), model.sampling_rate, hop))
    cells: list[dict[str, Tensor]] = []
    for step in steps if watch is None else watch(steps, S):
        cells.append(_cells(step, table[0, :, step.column], how))
        if step.trace is not None and step.trace.cross_weights:
            attention.add(step.trace.cross_weights)
    # What stands in the triangles of the delay pattern belongs to no frame, and is left behind.
    by_frame = {
        name: delay.undo(torch.stack([cell[name] for cell in cells], dim=1)[None], delays)[0].cpu() for name in cells[0]
    }
    codes = delay.undo(table[..., 1:], delays)
    return Anatomy(
        text=text,
        tokens=tokens if attention.sums is not None else [],
        sampling=how,
        delays=delays,
        codebook_size=V,
        sampling_rate=model.sampling_rate,
        hop=hop,
        codes=codes[0].cpu(),
        attention=attention.means(),
        steps_per_column=attention.steps_per_column,
        blocks=model.decoder.config.layers,
        heads=model.decoder.config.heads,
        audio=_first_codebooks(model, codes),
        moved=by_frame.pop("moved", None),
        **by_frame,
    )


def _cells(step: Step, codes: Tensor, how: Sampling) -> dict[str, Tensor]:
    """What is told of the K codes of a column, (K, ...) each."""
    logits = step.logits if how.greedy else narrow(step.logits, how)
    probs = logits[0].softmax(-1)
    drawn = codes.clamp(max=probs.shape[-1] - 1)[:, None]  # a special token has no probability, and is not kept
    probability = probs.gather(-1, drawn)
    likeliest = probs.topk(min(ALTERNATIVES, probs.shape[-1]))
    told = {
        "probability": probability[:, 0],
        "rank": (probs > probability).sum(-1),
        "kept": (probs > 0).sum(-1),
        "entropy": torch.special.entr(probs).sum(-1) / torch.log(torch.tensor(2.0)),
        "likeliest": likeliest.indices,
        "likeliest_probability": likeliest.values,
    }
    if len(step.unguided) == 2:
        told["moved"] = (step.logits[0] - step.unguided[0]).pow(2).mean(-1).sqrt()
    return told


class _Attention:
    """Weights of cross-attention, added up in as many columns as fit into a budget of bytes, one a weight."""

    def __init__(self, steps: int, budget: int):
        self.steps, self.budget = steps, budget
        self.steps_per_column, self.taken = 1, 0
        self.over: tuple[int, ...] = ()  # axes of (blocks, H, L) that are averaged
        self.sums: Tensor | None = None

    def add(self, weights: Sequence[Tensor]) -> None:
        """Of one more step: (1, H, 1, L) of every block."""
        own = torch.stack([block[0, :, -1].float().cpu() for block in weights])
        if self.sums is None:
            self._plan(own)
        if self.over:
            own = own.mean(self.over, keepdim=True)
        assert self.sums is not None
        self.sums[:, :, self.taken // self.steps_per_column] += own
        self.taken += 1

    def _plan(self, own: Tensor) -> None:
        for self.over in ((), (1,), (0, 1)):
            blocks, heads, tokens = own.mean(self.over, keepdim=True).shape if self.over else own.shape
            for self.steps_per_column in (1, 2, 4, 8):
                columns = -(-self.steps // self.steps_per_column)
                if blocks * heads * columns * tokens <= self.budget:
                    break
            else:
                continue
            break
        self.sums = torch.zeros(blocks, heads, columns, tokens)

    def means(self) -> Tensor | None:
        """(blocks, H, columns, L)."""
        if self.sums is None:
            return None
        taken = torch.full((self.sums.shape[2], 1), float(self.steps_per_column))
        taken[-1] = self.taken - (len(taken) - 1) * self.steps_per_column
        return self.sums / taken


def _tokens(model: MusicGen, text: str) -> list[str]:
    """What the ids of a text stand for; the ids themselves where the tokenizer does not tell."""
    ids = model.tokenizer([text])[0][0].tolist()
    decode = getattr(model.tokenizer, "decode", None)
    return [str(i) if decode is None else decode([i]) for i in ids]


def _first_codebooks(model: MusicGen, codes: Tensor) -> list[Tensor]:
    """What the first 1, 2, ... codebooks of each channel of codes (1, K, T) sound like, (C, N) each."""
    codes = codes.to(model.codec.quantizer.codebooks.device)
    sides = rearrange(codes, "b (k c) t -> c b k t", c=model.decoder.config.channels)
    clips = [
        torch.cat([model.codec.decode([Chunk(side[:, :count])]) for side in sides], dim=1)
        for count in range(1, sides.shape[2] + 1)
    ]
    return [clip[0].float().cpu() for clip in clips]
