"""Whole decoding steps as CUDA graphs, put in from outside: a step is one launch.

A step of musicgen-small is some five hundred small kernels, and Python takes longer to launch them, one by one, than a
GPU to run them. A CUDA graph is a list of kernels that is written down once and launched as a whole. It does the very
same each time, at the very same addresses, so a step has to be told what changes in what it reads from memory:

    table (B, K, 1 + S), position     the step reads the column at the position, moves on, and writes the next column
    keys and values (R, H, S, D)      it writes its own at the position, and reads as many as the graph has, masked
    noise (B, K, V)                   draws are the likeliest of probabilities over noise, as torch.multinomial has it

How many steps a graph attends to is fixed, too: a graph for 256, one for 512, and so on, serve a clip of any length.
Nothing in a step waits for the GPU, so that the host is ahead by as much as it likes until the caller reads something.
The noise is drawn before each launch by the caller's generator, in one call: its state is at every step what the plain
loop leaves, and no graph belongs to a generator.

Numbers: the decoder is the one of the reading path, over the same layers. Attention sums over more keys, of which the
masked ones add 0, and kernels may be others than those for the exact length: logits differ by rounding from the plain
loop's on the same card, and under one seed codes are the same but where two are equally likely within that. On a CPU,
where the tests run this, a graph is the function itself. Nobody has run it on a card yet, see benchmarks/gpu.py.

B rows of codes, R rows that the decoder runs: 2 * B under guidance; the other letters are those of decoder.py.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ..attention import Attention, KVCache, Trace
from ..decoder import Block, Decoder
from ..model import FREE, Generators, MusicGen, Sampling, Step, decide, fill_in, narrow
from ..sampling import guide

Module = TypeVar("Module", bound=nn.Module)

STEPS = 256  # that the shortest graph attends to; the next ones attend to twice as many each
TOKENS = 16  # of text, likewise; kernels of attention want masks of whole 16s
GRAPHS = 32  # kept, of which the one that was used longest ago makes room for another


def capture(model: MusicGen) -> MusicGen:
    """Make generate() and its like launch graphs, in place; returns the model.

    Served are clips of any number of texts, with guidance or without, prompts, any generators and any options, after
    the first step. The first clip captures its graphs on the way, each of which takes as long as a few plain steps.
    There is one set of keys and values, for as many steps as the longest clip so far took, beside those that a call
    counts against max_bytes: a clip with another number of rows makes a new one, and captures anew. All else runs the
    plain loop as before: the rows of a batch that begin while others are still in their prompts, traces, the "eager"
    backend, training, autocast, hooks, reduced caches, the loop of musicgen_ref.hf, and a second clip that is begun
    before the first has ended.

    A graph is what the decoder did when it was captured. Weights that change in place count, modules and weights that
    are replaced are noticed, and captured anew; what else is decided in Python (an adapter that is switched off, a
    precision that torch is set to) is not: call this again. Copies and pickles of the model are plain.
    The iterator raises RuntimeError at the end of a clip that was drawn from NaN, which in the plain loop stops the
    device.
    """
    model.fill_in = Graphs()
    return model


class Masked(nn.Module):
    """A self-attention to which a StaticCache says how far it is filled."""

    def __init__(self, plain: Attention, cache: "StaticCache"):
        super().__init__()
        self.plain, self.cache = plain, cache
        self.keys_values = plain.keys_values

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], *, mask: Tensor | None, causal: bool, backend: str,
        head_mask: Tensor | None, weights: list[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """Attention.forward() of one step; none of its masks is given where graphs serve."""
        return self.plain(x, keys_values, mask=self.cache.mask, backend=backend)


class StaticCache:
    """What a KVCache is to the decoder, where nothing moves: `length` (1,) is on the device, and what append() returns
    has `steps` steps, of which `mask` (1, 1, 1, steps), 0 or -inf, shows those that are written.

    steps, tokens: the most that there is room for; cut() says how much of it the decoder sees.
    """

    def __init__(self, decoder: Decoder, batch: int, rows: int, steps: int, tokens: int):
        c, like = decoder.config, decoder.norm.weight.detach()
        D = c.width // c.heads
        # Zeros, because a weight of 0 on a value that is not a number is not 0.
        self.keys = [like.new_zeros(rows, c.heads, steps, D) for _ in range(c.layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        pairs = range(c.layers if tokens else 0)
        self.text = [tuple(like.new_zeros(batch, c.heads, tokens, D) for _ in range(2)) for _ in pairs]
        self.text_mask = like.new_zeros(batch, 1, 1, tokens)
        self.batch, self.length = rows, torch.zeros(1, dtype=torch.long, device=like.device)

    def load(self, cache: KVCache) -> None:
        """Take over what another cache holds."""
        for own, given in zip((*self.keys, *self.values), (*cache.keys, *cache.values), strict=True):
            own.zero_()  # a clip before may have left what is not a number
            own[:, :, : cache.length] = given[:, :, : cache.length]
        for own_pair, given_pair in zip(self.text, cache.cross, strict=False):
            for own, given in zip(own_pair, given_pair, strict=True):
                own.zero_()
                own[:, :, : given.shape[2]] = given
        if cache.cross:
            seen = self.text_mask[..., : cache.cross[0][0].shape[2]]
            self.text_mask.fill_(-torch.inf)
            seen.fill_(0)
            if cache.cross_mask is not None:
                seen.masked_fill_(~cache.cross_mask, -torch.inf)
        self.length.fill_(cache.length)

    def cut(self, steps: int, tokens: int) -> None:
        """Let the decoder see so much of it."""
        self.steps = steps
        unwritten = torch.arange(steps, device=self.length.device) > self.length
        mask = torch.zeros_like(unwritten, dtype=self.text_mask.dtype).masked_fill(unwritten, -torch.inf)
        self.mask = mask[None, None, None]
        self.cross = [(k[:, :, :tokens], v[:, :, :tokens]) for k, v in self.text if tokens]
        self.cross_mask = self.text_mask[..., :tokens]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values (R, H, 1, D) of one step of a layer; return those of all steps of the graph."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.length, k)
        values.index_copy_(2, self.length, v)
        return keys[:, :, : self.steps], values[:, :, : self.steps]


class Kind(NamedTuple):
    """What a graph has built in: the steps and the tokens that it attends to, and how it decides."""

    steps: int
    tokens: int
    how: Sampling


class Static:
    """Everything that the graphs of a decoder read and write, for B rows, and the graphs.

    rows: R. steps, tokens: the most that there is room for. logits: of the last step, (1, B, K, V), or (3, B, K, V)
    under guidance: guided, with the text, without.
    """

    def __init__(self, decoder: Decoder, batch: int, rows: int, steps: int, tokens: int):
        c, device = decoder.config, decoder.norm.weight.device
        K, V = c.codebooks, c.vocab_size
        self.of, self.copies, self.steps, self.tokens = fingerprint(decoder), rows // batch, steps, tokens
        self.cache = StaticCache(decoder, batch, rows, steps, tokens)
        self.decoder = over(decoder, self.cache)
        self.table = torch.zeros(batch, K, 1 + steps, dtype=torch.long, device=device)
        self.noise = torch.ones(batch, K, V, device=device)
        self.logits = torch.zeros(1 if self.copies == 1 else 3, batch, K, V, device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)
        self.record = Recorder(device)
        self.graphs: OrderedDict[Kind, Callable[[], object]] = OrderedDict()

    def fits(self, decoder: Decoder, batch: int, rows: int, steps: int, tokens: int) -> bool:
        """Whether a clip can be made with these."""
        same = len(self.table) == batch and self.cache.batch == rows and self.of == fingerprint(decoder)
        return same and self.steps >= steps and self.tokens >= tokens

    @torch.no_grad()
    def load(self, table: Tensor, cache: KVCache) -> None:
        """Begin a clip at the position up to which the cache is filled."""
        self.table[..., : table.shape[2]] = table
        self.broken.fill_(False)
        self.cache.load(cache)

    @torch.no_grad()
    def next(self, kind: Kind, column: int, table: Tensor, generator: Generators) -> Step:
        """Decide the next column, which the caller has counted, too, and write it into the caller's table."""
        launch = self.graph(kind)
        if not kind.how.greedy:
            self.draw(generator)
        launch()
        table[..., column] = self.table[..., column]
        logits = self.logits.clone()  # which the next step writes over
        return Step(column, logits[0], logits[-self.copies :].flatten(0, 1), None)

    def graph(self, kind: Kind) -> Callable[[], object]:
        """What runs a step of this kind; captured where it is not there."""
        if kind not in self.graphs:
            if len(self.graphs) == GRAPHS:
                self.record.wait()
                self.graphs.popitem(last=False)
            written = [self.table, self.cache.length, self.broken]
            self.graphs[kind] = self.record(partial(self.step, kind), written)
        self.graphs.move_to_end(kind)
        return self.graphs[kind]

    def step(self, kind: Kind) -> None:
        """One turn of fill_in() and of decide(), of which all numbers that change are in memory."""
        cache, B = self.cache, len(self.table)
        cache.cut(kind.steps, kind.tokens)
        read = self.table.index_select(2, cache.length)
        # The position moves on in here: the decoder adds a step to the length of its cache.
        steps = self.decoder(read.repeat(self.copies, 1, 1), cache=cast(KVCache, cache))
        unguided = steps[:, :, -1].float()
        logits = guide(unguided[:B], unguided[B:], kind.how.guidance_scale) if self.copies == 2 else unguided
        self.logits[0].copy_(logits)
        if self.copies == 2:
            self.logits[1:].copy_(unguided.unflatten(0, (2, B)))
        if kind.how.greedy:
            decided = logits.argmax(-1)
        else:
            probs = narrow(logits, kind.how).softmax(-1)
            self.broken.logical_or_(probs.isnan().any())
            decided = (probs / self.noise).argmax(-1)
        known = self.table.index_select(2, cache.length)
        self.table.index_copy_(2, cache.length, torch.where(known == FREE, decided[..., None], known))

    def draw(self, generator: Generators) -> None:
        """The noise of the next step, in the shapes in which sampling.draw() has torch.multinomial make it."""
        if isinstance(generator, Sequence):
            for row, own in zip(self.noise, generator, strict=True):
                row.exponential_(1, generator=own)
        else:
            self.noise.exponential_(1, generator=generator)


class Recorder:
    """Captures CUDA graphs, all on one stream and in one pool of memory: of two graphs only one runs at a time, and
    nothing that a graph leaves in the pool is read after it."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, step: Callable[[], object], written: Sequence[Tensor]) -> Callable[[], object]:
        """What does again what step() does: in one launch on CUDA, elsewhere step() itself.

        written: what is put back, because step() is run once before: at a first call libraries set themselves up, which
        is nothing for a graph.
        """
        before = [tensor.clone() for tensor in written]
        launch: Callable[[], object] = step
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                self.stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.stream):
                    step()
                torch.cuda.current_stream().wait_stream(self.stream)
                graph = torch.cuda.CUDAGraph()
                # Of this thread alone: what others do meanwhile is their own.
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    step()
                launch = graph.replay
        else:
            step()
        for tensor, was in zip(written, before, strict=True):
            tensor.copy_(was)
        return launch

    def wait(self) -> None:
        """Until the graphs that were launched are done, before one is thrown away."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Graphs:
    """What capture() puts in the place of a model's fill_in()."""

    def __init__(self) -> None:
        self.static: Static | None = None
        self.in_use = Lock()

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return plain, ()

    def __call__(
        self, decoder: Decoder, table: Tensor, begin: int, cache: KVCache, decide: Callable[[Tensor, int], Tensor], *,
        guidance: float = 1.0, step_mask: Tensor | None = None, backend: str = "sdpa", trace: Trace | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """See fill_in()."""
        steps = fill_in(
            decoder, table, begin, cache, decide, guidance=guidance, step_mask=step_mask, backend=backend, trace=trace
        )
        simple = step_mask is None and trace is None and backend == "sdpa" and type(cache) is KVCache
        if (known := decision(decide)) is None or not simple or not only_computes(decoder):
            return steps
        return self.run(steps, decoder, table, begin, cache, *known)

    def run(
        self, plain: Iterator[Step], decoder: Decoder, table: Tensor, begin: int, cache: KVCache,
        first: Tensor, how: Sampling, generator: Generators,
    ) -> Iterator[Step]:  # fmt: skip
        """The steps of a clip: the plain loop's up to the column in which all rows draw, then graphs.

        first, how, generator: what decide() is given.
        """
        if not self.in_use.acquire(blocking=False):
            yield from plain
            return
        try:
            end = table.shape[2]
            last = min(max(begin + 1, int(first.max())), end)
            yield from islice(plain, last - begin)
            if last == end:
                return
            tokens = enough(cache.cross[0][0].shape[2], TOKENS) if cache.cross else 0
            static = self.room(decoder, len(table), cache.batch, end - 1, tokens)
            static.load(table, cache)
            del plain, cache  # and with them the keys and values that the call allocated
            for column in range(last, end):
                kind = Kind(min(enough(column, STEPS), static.steps), tokens, how)
                yield static.next(kind, column, table, generator)
            if bool(static.broken):
                raise RuntimeError("codes were drawn from logits that are not numbers: a wider dtype may hold them")
        finally:
            self.in_use.release()

    @torch.no_grad()
    def room(self, decoder: Decoder, batch: int, rows: int, steps: int, tokens: int) -> Static:
        """Buffers for a clip: those that are there if they fit."""
        if self.static is None or not self.static.fits(decoder, batch, rows, steps, tokens):
            was, self.static = self.static, None
            if was is not None:
                was.record.wait()
                same = (len(was.table), was.cache.batch) == (batch, rows)
                steps, tokens = (max(steps, was.steps), max(tokens, was.tokens)) if same else (steps, tokens)
            del was  # before others are allocated
            # Also where the caller is in inference mode, whose tensors may not be written outside.
            with torch.inference_mode(False):
                self.static = Static(decoder, batch, rows, -(-steps // STEPS) * STEPS, tokens)
        return self.static


def plain() -> Callable[..., Iterator[Step]]:
    """The loop that a copy of a model has."""
    return fill_in


def decision(given: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Sampling, Generators] | None:
    """What model.decide() was given for all columns; None where codes are decided by anything else."""
    return cast(Any, given.args) if isinstance(given, partial) and given.func is decide else None


def only_computes(decoder: Decoder) -> bool:
    """Whether a pass does nothing that a graph would leave out or freeze: hooks, dropout, autocast."""
    inside = list(decoder.modules())
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in inside)
    random = any(module.training for module in inside)
    return not hooked and not random and not torch.is_autocast_enabled(decoder.norm.weight.device.type)


def fingerprint(decoder: Decoder) -> tuple[int, ...]:
    """What must not change under a graph: which modules there are, and where their weights lie."""
    return (*map(id, decoder.modules()), *(p.data_ptr() for p in decoder.parameters()))


def over(decoder: Decoder, cache: StaticCache) -> Decoder:
    """The decoder, of the same layers, with self-attention over a StaticCache."""
    blocks = [cast(Block, block) for block in decoder.blocks]
    masked = [with_part(block, "self_attn", Masked(block.self_attn, cache)) for block in blocks]
    return with_part(decoder, "blocks", nn.ModuleList(masked))


def with_part(module: Module, name: str, part: nn.Module) -> Module:
    """A module that shares all with another but one part."""
    made = copy.copy(module)
    made._modules = {**module._modules, name: part}
    return made


def enough(count: int, least: int) -> int:
    """The first of least, 2 * least, 4 * least and so on that is not below a count."""
    return least << ((count - 1) // least).bit_length()
