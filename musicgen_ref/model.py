"""MusicGen: text to codes to audio.

    text ids --T5--> text states --project--> memory (B, L, E)
    table of codes (B, K, 1 + S) --decoder, reading the memory--> logits --guide, draw--> the table's next column
    codes (B, K, T) --EnCodec--> audio (B, C, N)

B batch, K codebooks, T frames, S delayed steps, L text tokens, E model width, V codes per codebook, C audio channels,
N samples. A frame is one time step of codes (1/50 s in the public models); T frames take S = T + max(delays) steps.
delay.py draws the table. Source: Copet et al. 2023, "Simple and Controllable Music Generation" (arXiv:2306.05284).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os import PathLike
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from . import checks, delay
from .attention import BACKENDS, KVCache, Trace
from .decoder import Decoder, DecoderConfig
from .encodec import Chunk, Encodec, EncodecConfig
from .sampling import draw, guide, min_p, top_k, top_p
from .t5 import T5Config, T5Encoder

FREE = -1  # a cell of the table that is still to be decided


class Step(NamedTuple):
    """One step of generation, which filled a column of the table.

    logits: (B, K, V) in fp32, guided. unguided: before guidance, the rows with their texts (B, K, V) and, under
    guidance, the same rows without, behind them. trace: what was recorded of the rows with their texts.
    """

    column: int
    logits: Tensor
    unguided: Tensor
    trace: Trace | None


@torch.no_grad()
def fill_in(
    decoder: Decoder, table: Tensor, begin: int, cache: KVCache, decide: Callable[[Tensor, int], Tensor], *,
    guidance: float = 1.0, step_mask: Tensor | None = None, backend: str = "sdpa", trace: Trace | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Generate: decide the FREE cells of a table of codes (B, K, 1 + S), one column after another, from `begin` on.

    A column is decided from all columns before it. Its other cells stay what they are: special tokens of the delay
    pattern, codes of a prompt; what was decided for those is dropped. To stop early, stop iterating.

    cache: made for B rows, or for 2 * B to guide: classifier-free guidance runs every row twice, with its text and
    without, in one batch whose second half reads no text.
    decide: called with guided logits (B, K, V) and the index of their column; returns codes (B, K).
    step_mask: (B, 1 + S), True for the columns that may be attended to. trace: what to record of a step; each step
    fills a new one like it.
    """
    B, _, end = table.shape
    copies = cache.batch // B
    read = table[..., cache.length : begin]
    for column in range(begin, end):
        seen = None if step_mask is None else step_mask[:, :column].repeat(copies, 1)
        own = None if trace is None else trace.another()
        steps = decoder(read.repeat(copies, 1, 1), cache=cache, step_mask=seen, backend=backend, trace=own)
        unguided = steps[:, :, -1].float()
        logits = guide(unguided[:B], unguided[B:], guidance) if copies == 2 else unguided
        decided = decide(logits, column)
        read = table[..., column : column + 1]
        read.copy_(torch.where(read == FREE, decided[..., None], read))
        yield Step(column, logits, unguided, None if own is None else own.rows(B))


def first_free(table: Tensor) -> Tensor:
    """Each row's first column with a cell to decide, (B,); the number of columns where there is none."""
    free = (table == FREE).any(1)
    return torch.where(free.any(1), free.int().argmax(1), table.shape[2])


class TextStates(NamedTuple):
    """What the decoder reads of B texts: memory (B, L, E), which is T5's states, projected, and mask (B, L), True or 1
    where there is text. A row without text has states of zeros under a mask of zeros."""

    memory: Tensor
    mask: Tensor


# Strings (None: a row without text); or ids and mask, both (B, L); or what encode_text() returned.
Text = Sequence[str | None] | tuple[Tensor, Tensor] | TextStates | None
# None or one for all rows, which draw as transformers' do, or one for each row.
Generators = Generator | Sequence[Generator] | None
# Codes, or audio and its sampling rate; a sequence of tensors has rows of different lengths.
Prompt = Tensor | Sequence[Tensor] | tuple[Tensor | Sequence[Tensor], int] | None


class Sampling(NamedTuple):
    """How codes are decided: some fields of GenerationOptions, all of them set. The defaults are those of the authors'
    release; transformers has another top_k, 50."""

    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    min_p: float = 0.0
    greedy: bool = False


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate. Raises ValueError naming the impossible field.

    seconds or frames: length of the whole clip, prompt included (default 8 seconds).
    guidance_scale: 1 is off, 0 ignores the text, between them interpolates, above 1 overstates the text.
    temperature, top_k (0: all), top_p (1: all), min_p (0: all): shape the distribution that codes are drawn from;
    greedy takes the likeliest. Where guidance_scale, temperature, top_k or top_p is None, the checkpoint's value holds
    (see MusicGen.defaults), or else Sampling's.
    pattern: "delay", as the models were trained, or "parallel", all codebooks of a frame in one step.
    max_bytes: of the keys, values, codes and audio of a call, 16 GiB; max_text_tokens: of a text, 4096. A call that
    would take more is refused before anything is allocated; raise them if you have the memory.
    """

    seconds: float | None = None
    frames: int | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    pattern: str = "delay"
    min_p: float = 0.0
    max_bytes: int = checks.MAX_BYTES
    max_text_tokens: int = checks.MAX_TEXT_TOKENS

    def __post_init__(self) -> None:
        checks.generation_options(self)

    def sampling(self, defaults: "GenerationOptions") -> Sampling:
        """How codes are decided: as these options say, or else the defaults, or else Sampling."""
        said = [(name, getattr(each, name)) for each in (defaults, self) for name in Sampling._fields]
        return Sampling(**{name: value for name, value in said if value is not None})


DEFAULT = GenerationOptions()


class Generated(NamedTuple):
    """The result of generate(): audio (B, C, N) at sampling_rate Hz, and the codes (B, K, T) it was decoded from.

    Full scale is at -1 and 1, but the codec is not bound to it: loud music has peaks of 1.4. A file of whole numbers
    clips them or is scaled, see audio.write_wav().

    logits: if asked for, (B, K, T, V) in fp32, guided, before temperature; NaN for the codes of a prompt. traces: if
    asked for, one for each step.
    """

    audio: Tensor
    codes: Tensor
    sampling_rate: int
    logits: Tensor | None = None
    traces: Sequence[Trace] = ()


class MusicGen(nn.Module):
    """A text encoder, a decoder and a codec.

    tokenizer: called with a list of strings (None for no text), returns ids and mask (B, L); without one, give ids
    and masks in place of text. backend: "sdpa" or "eager" attention. Raises ValueError where the three do not fit
    together.
    defaults: guidance_scale, temperature, top_k and top_p where generate()'s options leave them None. from_pretrained()
    takes these four from generation_config.json and nothing else: even where that says do_sample false, codes are drawn
    unless the options are greedy.
    """

    fill_in = staticmethod(fill_in)  # the loop of generate(): fast/cuda.py gives a model another one

    def __init__(
        self, text: T5Config, decoder: DecoderConfig, codec: EncodecConfig, tokenizer: Any = None, backend: str = "sdpa"
    ):
        super().__init__()
        checks.parts(text, decoder, codec)
        checks.one_of("backend", backend, BACKENDS)
        self.text_encoder = T5Encoder(text)
        self.decoder = Decoder(decoder)
        self.codec = Encodec(codec)
        self.tokenizer = tokenizer
        self.backend = backend
        self.defaults = DEFAULT

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu",
        text_encoder: str | PathLike[str] | None = None, codec: str | PathLike[str] | None = None,
        adapter: bool | str | PathLike[str] | None = None, variant: str | None = None, fast: bool = True,
    ) -> "MusicGen":  # fmt: skip
        """Load a directory in transformers' or audiocraft's layout, or "demo"; see checkpoint.load()."""
        from .checkpoint import load  # deferred: checkpoint/ builds on this module

        return load(
            path, dtype=dtype, device=device, text_encoder=text_encoder, codec=codec, adapter=adapter, variant=variant,
            fast=fast,
        )  # fmt: skip

    def save_pretrained(self, path: str | PathLike[str], layout: str = "transformers") -> None:
        """Write a directory that from_pretrained() and transformers, or audiocraft, open; see checkpoint.save()."""
        from .checkpoint import save  # deferred, as above

        save(self, path, layout)

    def compile(self, batch: int = 1, guided: bool = True, cache: str | None = None) -> "MusicGen":  # type: ignore[override]
        """Compile the decode step, which takes seconds; see fast/compile.py."""
        from .fast.compile import compile_step  # deferred: it builds on this module

        return compile_step(self, batch, guided, cache)

    @property
    def sampling_rate(self) -> int:
        """Sampling rate of the audio, in Hz."""
        return self.codec.config.sampling_rate

    @property
    def device(self) -> torch.device:
        """The device of the decoder's weights, where inputs must be; audio and codes may also be on the codec's."""
        return self.decoder.norm.weight.device

    @property
    def delays(self) -> tuple[int, ...]:
        """Steps by which each codebook runs behind."""
        return self.decoder.config.delays

    def frames(self, seconds: float) -> int:
        """Whole frames nearest to a time. Raises ValueError for less than half a frame, decades, infinity, NaN."""
        seconds = checks.as_seconds(seconds, self.codec.config.hop / self.sampling_rate / 2)
        return max(1, round(seconds * self.sampling_rate / self.codec.config.hop))  # half a frame would round to 0

    # Text

    def encode_text(self, text: Text, max_text_tokens: int = checks.MAX_TEXT_TOKENS) -> TextStates:
        """Text to what the decoder reads, which generate() and loss() take in place of text.

        text: B strings, None for a row without text; or (ids, mask), both (B, L), where a mask of zeros is no text;
        None is one row without text. Raises ValueError for what is neither, and for more tokens than max_text_tokens.
        """
        read = self._read_text([None] if text is None else text, max_text_tokens)
        if isinstance(read, TextStates):
            return read
        ids, mask = read
        if not mask.any():  # nothing that T5 could read
            return TextStates(self.decoder.norm.weight.new_zeros(*ids.shape, self.decoder.config.width), mask)
        states = self.text_encoder(ids, mask, backend=self.backend)
        return TextStates(self.decoder.project_text(states, mask), mask)

    def _read_text(self, text: Any, max_text_tokens: int) -> tuple[Tensor, Tensor] | TextStates:
        if isinstance(text, TextStates):
            checks.encoded_text(*text, self.decoder.config.width, self.device)
            memory = text.memory.to(self.decoder.norm.weight.dtype)
            return text if memory is text.memory else TextStates(memory, text.mask)
        if (given := checks.as_text_ids(text, self.device)) is not None:
            checks.text_ids(*given, self.text_encoder.config.vocab_size, self.device, max_text_tokens)
            return given
        checks.strings(text, self.tokenizer)
        if all(row is None for row in text):
            nothing = torch.zeros(len(text), 1, dtype=torch.long, device=self.device)
            return nothing, nothing.bool()
        ids, mask = self.tokenizer(text)
        checks.text_length(ids.shape[1], max_text_tokens)
        return ids.to(self.device), mask.to(self.device)

    # Audio

    @torch.no_grad()
    def encode(self, audio: Tensor, sampling_rate: int) -> Tensor:
        """Audio (B, C, N) in [-1, 1] to codes (B, K, ceil(N / hop)); stereo is coded channel by channel.

        audio: floating point, or whole numbers of a WAV file, which are scaled (int16, int32, uint8); a numpy array is
        taken, too. It is coded in the dtype and on the device of the codec; the codes are where the model is.
        Raises ValueError for another sampling rate than the model's (see audio.resample), a wrong shape or number of
        channels, no samples, NaN, and codes beyond the decoder's vocab_size, where that is below the codebook_size.
        """
        audio = checks.as_audio_of(self, audio, sampling_rate)
        books = len(self.delays) // self.decoder.config.channels
        sides = [self.codec.encode(side, books)[0].codes for side in audio.split(1, dim=1)]
        checks.coded(sides, self.decoder.config.vocab_size)
        return torch.stack([side[:, k] for k in range(books) for side in sides], dim=1).to(self.device)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T) to audio (B, C, T * hop), in the dtype and on the device of the codec.

        codes: int64, int32, int16 or uint8; a numpy array is taken, too. Raises ValueError for a wrong shape, other
        numbers, or codes out of range.
        """
        codes = checks.as_codes_of(self, codes).to(self.codec.quantizer.codebooks.device)
        sides = rearrange(codes, "b (k c) t -> c b k t", c=self.decoder.config.channels)
        return torch.cat([self.codec.decode([Chunk(side)]) for side in sides], dim=1)

    # Training

    def loss(self, codes: Tensor, text: Text = None, per_codebook: bool = False) -> Tensor:
        """What training minimises: the mean over codebooks of the mean cross entropy of their codes.

        per_codebook: return the mean of each codebook, (K,), instead of the mean over them.
        codes: (B, K, T) as encode() gives them: the delay pattern is applied here. Negative codes pad shorter clips:
        the decoder sees the special token there, and nothing is scored. text: as in generate(); rows without text
        train the null condition of guidance. transformers' loss is the same number where its caller delays the labels.
        Raises ValueError for codes that decode() would refuse, the padding aside, for a codebook without any, and for
        text that generate() would refuse, or of another number of rows.
        """
        V = self.decoder.config.vocab_size
        codes = checks.as_codes_of(self, codes, padded=True).to(self.device)
        target = delay.apply(codes, self.delays, fill=FREE)
        scored = target >= 0
        checks.scored(scored)
        read = None if text is None else self._read_text(text, checks.MAX_TEXT_TOKENS)
        checks.rows("text", len(codes) if read is None else len(read[0]), len(codes), "rows of codes")
        unread = read is None or not read[1].any()
        memory, mask = (None, None) if unread else self.encode_text(cast(Text, read))
        table = F.pad(target.masked_fill(~scored, V), (1, 0), value=V)
        logits = self.decoder(table[..., :-1], memory, mask, backend=self.backend).float()
        each = F.cross_entropy(logits.movedim(3, 1), target.masked_fill(~scored, 0), reduction="none")  # (B, K, S)
        losses = (each * scored).sum((0, 2)) / scored.sum((0, 2))
        return losses if per_codebook else losses.mean()

    # Generation

    def generate(
        self, text: Text = None, options: GenerationOptions = DEFAULT, *, prompt: Prompt = None,
        generator: Generators = None, return_logits: bool = False, trace: Trace | None = None,
    ) -> Generated:  # fmt: skip
        """Make music of a text, of nothing (unconditional), or as the continuation of a prompt.

        text: B strings, None for a row without text; or (ids, mask), both (B, L); or what encode_text() returned; or
        None for no text at all.
        prompt: what the clip begins with. Codes (B, K, P), or a list of B codes (K, P) of different lengths; or a pair
        of audio (B, C, N), or a list of B (C, N), and its sampling rate. Every row then equals its single run. Numpy
        arrays, and the whole numbers that encode() and decode() take, are accepted, too.
        generator: None or one torch.Generator gives transformers' draws under the same seed; B of them, one a row, make
        a row's draws independent of its batch. trace: what to record of every step, see Trace; the result's traces has
        one for each. Raises ValueError before any long work for what does not fit, options.max_bytes included.
        """
        table, steps = self.generate_steps(text, options, prompt=prompt, generator=generator, trace=trace)
        logits, free, traces = None, table == FREE, []
        if return_logits:
            cells, V = table[..., 1:], self.decoder.config.vocab_size
            checks.takes(options.max_bytes, logits=4 * cells.numel() * V)
            logits = torch.full((*cells.shape, V), torch.nan, device=self.device)
        for step in steps:
            if logits is not None:
                logits[:, :, step.column - 1] = step.logits.where(free[..., step.column, None], torch.nan)
            if step.trace is not None:
                traces.append(step.trace)
        delays = self._delays(options)
        codes = delay.undo(table[..., 1:], delays)
        logits = None if logits is None else delay.undo(logits, delays)
        return Generated(self.decode(codes), codes, self.sampling_rate, logits, traces)

    def generate_codes(
        self, text: Text = None, options: GenerationOptions = DEFAULT, *, prompt: Prompt = None,
        generator: Generators = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Like generate(), but iterate over the frames (B, K) as they are decided, those of the prompt first.

        Progress, streaming and stopping early are the caller's loop. Bad arguments raise at the call, not at the first
        frame.
        """
        table, steps = self.generate_steps(text, options, prompt=prompt, generator=generator)
        return _frames(table, steps, self._delays(options))

    @torch.no_grad()
    def generate_steps(
        self, text: Text = None, options: GenerationOptions = DEFAULT, *, prompt: Prompt = None,
        generator: Generators = None, trace: Trace | None = None,
    ) -> tuple[Tensor, Iterator[Step]]:  # fmt: skip
        """The table of codes of generate() and generate_codes(), and the iterator that fills it in.

        The table (B, K, 1 + S) has a first column of special tokens, then the delayed codes: the prompt's, and FREE
        (-1) in every cell to be generated. Each turn of the iterator fills one column, see fill_in().
        """
        checks.instance("options", options, GenerationOptions)
        how = options.sampling(self.defaults)
        frames = options.frames or self.frames(options.seconds or 8.0)
        read = None if text is None else self._read_text(text, options.max_text_tokens)
        parts, rate = checks.as_prompt(self, prompt, frames)
        given = sum(map(len, parts))
        B = len(read[0]) if read is not None else max(1, given)
        checks.rows("prompt", given if parts else B, B, "texts")
        checks.generators(generator, B, self.device)
        # Reading the zeros of rows without text would add exactly 0 and take time.
        unread = read is None or how.guidance_scale == 0 or not read[1].any()
        # Without guidance no row runs without its text; where no row has any, both halves would be the same.
        copies = 1 if unread or how.guidance_scale == 1 else 2
        checks.generation_size(self, options, B, copies, frames, None if unread else read)
        prompts = [row for part in parts for row in (part if rate is None else self.encode(part, rate))]

        codes = torch.full((B, len(self.delays), frames), FREE, device=self.device)
        for row, known in zip(codes, prompts, strict=False):
            row[:, : known.shape[1]] = known
        special = self.decoder.config.vocab_size
        table = F.pad(delay.apply(codes, self._delays(options), fill=special), (1, 0), value=special)
        memory, mask = (None, None) if unread else self.encode_text(cast(Text, read), options.max_text_tokens)
        cache = self.decoder.new_cache(copies * B, table.shape[2] - 1, memory, mask)
        begin, scale, backend = first_free(table), how.guidance_scale, self.backend
        first, own = int(begin.min()), partial(decide, begin, how, generator)
        if (size := self.codec.config.codebook_size) < special:
            own = partial(among, size, own)
        return table, self.fill_in(self.decoder, table, first, cache, own, guidance=scale, backend=backend, trace=trace)

    def _delays(self, options: GenerationOptions) -> tuple[int, ...]:
        return self.delays if options.pattern == "delay" else (0,) * len(self.delays)


def decide(begin: Tensor, how: Sampling, generator: Generators, logits: Tensor, column: int) -> Tensor:
    """The codes (B, K) of a column, of its logits (B, K, V). begin: (B,), each row's first column to be decided."""
    # Only rows past their prompt draw, so that a row's generator is used as in its single run.
    rows = (begin <= column).nonzero()[:, 0]
    own = [generator[int(b)] for b in rows] if isinstance(generator, Sequence) else generator
    decided = torch.zeros_like(logits[..., 0], dtype=torch.long)
    decided[rows] = choose(logits[rows], how, own)
    return decided


def among(size: int, decide: Callable[[Tensor, int], Tensor], logits: Tensor, column: int) -> Tensor:
    """As decide(), but only the first `size` codes of a codebook can be chosen: the codec does not have the others."""
    return decide(F.pad(logits[..., :size], (0, logits.shape[-1] - size), value=-torch.inf), column)


def choose(logits: Tensor, how: Sampling, generator: Generators) -> Tensor:
    """One code (B, K) for each of the logits (B, K, V)."""
    return logits.argmax(-1) if how.greedy else draw(narrow(logits, how), generator)


def narrow(logits: Tensor, how: Sampling) -> Tensor:
    """Logits (B, K, V) of the distribution that codes are drawn from."""
    return min_p(top_p(top_k(logits / how.temperature, how.top_k), how.top_p), how.min_p)


def _frames(table: Tensor, steps: Iterator[Step], delays: Sequence[int]) -> Iterator[Tensor]:
    last, f = table.shape[2] - 1, 0
    for filled in chain([int(first_free(table).min()) - 1], (step.column for step in steps)):
        while f + 1 + max(delays) <= min(filled, last):  # the column that completes frame f
            yield torch.stack([table[:, k, 1 + f + lag] for k, lag in enumerate(delays)], dim=1)
            f += 1
