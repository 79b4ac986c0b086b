"""MusicGen: text to codes to audio.

    text ids --T5--> text states --project--> memory (B, L, E)
    delayed codes (B, K, S) --decoder, reading the memory--> logits --guide, sample--> the next column of codes
    codes (B, K, T) --EnCodec--> audio (B, C, N)

B batch, K codebooks, T frames, S delayed steps, L text tokens, E model width, V codes per codebook, C audio channels,
N samples. A frame is one time step of codes (1/50 s in the public models); T frames take S = T + max(delays) steps.
Source: Copet et al. 2023, "Simple and Controllable Music Generation" (arXiv:2306.05284).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from . import delay
from .attention import BACKENDS
from .decoder import Decoder, DecoderConfig
from .encodec import Chunk, Encodec, EncodecConfig, check_audio, check_codes
from .sampling import draw, guide, top_k, top_p
from .t5 import T5Config, T5Encoder, check_ids

FREE = -1  # a cell that is still to be generated

# Strings (None: a row without text), or ids and mask, both (B, L).
Text = Sequence[str | None] | tuple[Tensor, Tensor] | None
# Codes, or audio and its sampling rate; a sequence of tensors has rows of different lengths.
Prompt = Tensor | Sequence[Tensor] | tuple[Tensor | Sequence[Tensor], int] | None


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate. Raises ValueError naming the impossible field.

    seconds or frames: length of the whole clip, prompt included (default 8 seconds).
    guidance_scale: 1 is off, 0 ignores the text, between them interpolates, above 1 overstates the text.
    temperature, top_k (0: all), top_p (1: all): shape the distribution that codes are drawn from; greedy takes the
    likeliest.
    pattern: "delay", as the models were trained, or "parallel", all codebooks of a frame in one step.
    The defaults are those of the authors' release; transformers' is top_k 50.
    """

    seconds: float | None = None
    frames: int | None = None
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    greedy: bool = False
    pattern: str = "delay"

    def __post_init__(self) -> None:
        whole = {name: type(getattr(self, name)) is int for name in ("frames", "top_k")}
        for name, ok, must in (
            ("seconds", self.seconds is None or self.frames is None, "None where frames are given"),
            ("seconds", self.seconds is None or 0 < self.seconds < math.inf, "above 0"),
            ("frames", self.frames is None or (whole["frames"] and self.frames > 0), "a whole number above 0"),
            ("guidance_scale", math.isfinite(self.guidance_scale), "a finite number"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("top_k", whole["top_k"] and self.top_k >= 0, "a whole number from 0, which keeps all"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1, which keeps all"),
            ("pattern", self.pattern in ("delay", "parallel"), "'delay' or 'parallel'"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {must}, got {getattr(self, name)!r}")


DEFAULT = GenerationOptions()


class Generated(NamedTuple):
    """What generate() made: audio (B, C, N) in [-1, 1] at sampling_rate Hz, decoded from the codes (B, K, T).

    logits: (B, K, T, V) in fp32, guided, before temperature, where asked for; NaN where a prompt decided already.
    """

    audio: Tensor
    codes: Tensor
    sampling_rate: int
    logits: Tensor | None = None


class MusicGen(nn.Module):
    """A text encoder, a decoder and a codec.

    tokenizer: called with a list of strings (None for no text), returns ids and mask (B, L); without one, give ids
    and masks in place of text. backend: "sdpa" or "eager" attention. Raises ValueError where the three do not fit
    together.
    """

    def __init__(
        self, text: T5Config, decoder: DecoderConfig, codec: EncodecConfig, tokenizer: Any = None, backend: str = "sdpa"
    ):
        super().__init__()
        most, V = decoder.channels * codec.codebooks, codec.codebook_size
        for part, field, ok, must in (
            (decoder, "text_width", decoder.text_width == text.width, f"T5Config.width {text.width}"),
            (decoder, "vocab_size", decoder.vocab_size <= V, f"at most EncodecConfig.codebook_size {V}"),
            (decoder, "codebooks", decoder.codebooks <= most, f"at most {codec.codebooks} a channel"),
            (codec, "channels", codec.channels == 1, "1"),  # stereo is coded side by side
            (codec, "normalize", not codec.normalize, "False"),
            (codec, "chunk_seconds", codec.chunk_seconds is None, "None"),
        ):
            if not ok:
                raise ValueError(f"{type(part).__name__}.{field} must be {must}, got {getattr(part, field)!r}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        self.text_encoder = T5Encoder(text)
        self.decoder = Decoder(decoder)
        self.codec = Encodec(codec)
        self.tokenizer, self.backend = tokenizer, backend
        self.delays = delay.delays(decoder.codebooks, decoder.channels)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu",
        text_encoder: str | PathLike[str] | None = None, codec: str | PathLike[str] | None = None,
        adapter: bool | str | PathLike[str] | None = None, variant: str | None = None
    ) -> "MusicGen":  # fmt: skip
        """Load a directory in transformers' or audiocraft's layout, or "demo"; see checkpoint.load()."""
        from .checkpoint import load  # deferred: checkpoint.py builds on this module

        return load(
            path, dtype=dtype, device=device, text_encoder=text_encoder, codec=codec, adapter=adapter, variant=variant
        )

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write a directory that from_pretrained() and transformers open; see checkpoint.save()."""
        from .checkpoint import save  # deferred, as above

        save(self, path)

    def compile(self, batch: int = 1, guided: bool = True) -> "MusicGen":  # type: ignore[override]
        """torch.compile the decode step for `batch` texts, which takes minutes; see compile.compile_step()."""
        from .compile import compile_step  # deferred: it imports torch's compiler, for seconds

        return compile_step(self, batch, guided)

    @property
    def sampling_rate(self) -> int:
        """Of the audio, in Hz."""
        return self.codec.config.sampling_rate

    @property
    def device(self) -> torch.device:
        """Where the weights lie, and where inputs must."""
        return self.decoder.norm.weight.device

    def frames(self, seconds: float) -> int:
        """Whole frames nearest to a time. Raises ValueError for less than half a frame, infinity, NaN."""
        half = self.codec.config.hop / self.sampling_rate / 2
        if not half <= seconds < math.inf:
            raise ValueError(f"seconds must be finite and at least half a frame, {half}, got {seconds!r}")
        return max(1, round(seconds * self.sampling_rate / self.codec.config.hop))  # half a frame would round to 0

    # Text

    def encode_text(self, text: Text) -> tuple[Tensor | None, Tensor | None]:
        """Text to what the decoder reads: memory (B, L, E) and mask (B, L); (None, None) where no row has any text.

        text: B strings, None for a row without text; or (ids, mask), both (B, L), where a mask of zeros is no text.
        """
        if text is None:
            return None, None
        ids, mask = self._tokenize(text)
        if not mask.any():
            return None, None
        states = self.text_encoder(ids, mask, backend=self.backend)
        return self.decoder.project_text(states, mask), mask

    def _tokenize(self, text: Sequence[str | None] | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, Tensor) for part in text):
            ids, mask = cast(tuple[Tensor, Tensor], text)
            if ids.dim() != 2 or ids.shape != mask.shape or ids.numel() == 0:
                got = f"{tuple(ids.shape)} and {tuple(mask.shape)}"
                raise ValueError(f"text ids and mask must both be (B, L) and not empty, got {got}")
            self._check_device("text", ids, mask)
            check_ids(ids, self.text_encoder.config.vocab_size)
            return ids, mask
        if isinstance(text, str) or not len(text):
            raise ValueError(f"text must be a non-empty list of strings, or a pair of ids and mask, got {text!r}")
        if all(row is None for row in text):
            nothing = torch.zeros(len(text), 1, dtype=torch.long, device=self.device)
            return nothing, nothing.bool()
        if self.tokenizer is None:
            raise ValueError("text must be a pair of ids and mask: this model has no tokenizer")
        ids, mask = self.tokenizer(text)
        return ids.to(self.device), mask.to(self.device)

    # Audio

    @torch.no_grad()
    def encode(self, audio: Tensor, sampling_rate: int) -> Tensor:
        """Audio (B, C, N) in [-1, 1] to codes (B, K, ceil(N / hop)); stereo is coded channel by channel.

        Raises ValueError for another sampling rate than the model's (see audio.resample), a wrong shape or number of
        channels, no samples, NaN, and codes beyond the decoder's vocab_size, where that is below the codebook_size.
        """
        self._check_audio(audio, sampling_rate)
        c, audio = self.decoder.config, audio.to(self.decoder.norm.weight.dtype)
        sides = [self.codec.encode(side, c.codebooks // c.channels)[0].codes for side in audio.split(1, dim=1)]
        if (most := max(int(side.max()) for side in sides)) >= c.vocab_size:
            raise ValueError(f"audio must be coded below the decoder's vocab_size {c.vocab_size}, got code {most}")
        return rearrange(sides, "c b k t -> b (k c) t")

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, K, T) to audio (B, C, T * hop). Raises ValueError for a wrong shape or codes out of range."""
        self._check_codes(codes)
        sides = rearrange(codes, "b (k c) t -> c b k t", c=self.decoder.config.channels)
        return torch.cat([self.codec.decode([Chunk(side)]) for side in sides], dim=1)

    # Training

    def loss(self, codes: Tensor, text: Text = None) -> Tensor:
        """What training minimises: the mean over codebooks of the mean cross entropy of their codes.

        codes: (B, K, T) as encode() gives them: the delay pattern is applied here. Negative codes pad shorter clips:
        the decoder sees the special token there, and nothing is scored. text: as in generate(); rows without text
        train the null condition of guidance. transformers' loss is the same number where its caller delays the labels.
        """
        V = self.decoder.config.vocab_size
        self._check_codes(codes.where(codes >= 0, 0) if codes.dtype in (torch.int32, torch.int64) else codes)
        target = delay.apply(codes.long(), self.delays, fill=FREE)
        scored = target >= 0
        if not scored.any(2).any(0).all():
            raise ValueError("codes must hold a code of every codebook, got only padding")
        tokens = None if text is None else self._tokenize(text)
        if tokens is not None and len(tokens[0]) != len(codes):
            raise ValueError(f"text must have a row for each of the {len(codes)} rows of codes, got {len(tokens[0])}")
        memory, mask = self.encode_text(tokens)
        columns = F.pad(target.masked_fill(~scored, V), (1, 0), value=V)
        logits = self.decoder(columns[..., :-1], memory, mask, backend=self.backend).float()
        each = F.cross_entropy(logits.movedim(3, 1), target.masked_fill(~scored, 0), reduction="none")  # (B, K, S)
        return ((each * scored).sum((0, 2)) / scored.sum((0, 2))).mean()

    # Generation

    def generate(
        self,
        text: Text = None,
        options: GenerationOptions = DEFAULT,
        *,
        prompt: Prompt = None,
        generator: Generator | Sequence[Generator] | None = None,
        return_logits: bool = False,
    ) -> Generated:
        """Make music of a text, of nothing (unconditional), or as the continuation of a prompt.

        text: B strings, None for a row without text; or (ids, mask), both (B, L); or None for no text at all.
        prompt: what the clip begins with. Codes (B, K, P), or a list of B codes (K, P) of different lengths; or a pair
        of audio (B, C, N), or a list of B (C, N), and its sampling rate. Every row then equals its single run.
        generator: None or one torch.Generator gives transformers' draws under the same seed; B of them, one a row, make
        a row's draws independent of its batch. Raises ValueError before any long work for what does not fit.
        """
        columns, steps = self.generate_steps(text, options, prompt=prompt, generator=generator)
        logits, free = None, columns == FREE
        if return_logits:
            size = (*columns[..., 1:].shape, self.decoder.config.vocab_size)
            logits = torch.full(size, torch.nan, device=self.device)
        for s, guided in steps:
            if logits is not None:
                logits[:, :, s - 1] = guided.where(free[..., s, None], torch.nan)
        lags = self._lags(options)
        codes = delay.undo(columns[..., 1:], lags)
        logits = None if logits is None else delay.undo(logits, lags)
        return Generated(self.decode(codes), codes, self.sampling_rate, logits)

    def generate_codes(
        self,
        text: Text = None,
        options: GenerationOptions = DEFAULT,
        *,
        prompt: Prompt = None,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> Iterator[Tensor]:
        """Like generate(), but iterate over the frames (B, K) as they are decided, those of the prompt first.

        Progress, streaming and stopping early are the caller's loop. Bad arguments raise at the call, before any frame.
        """
        columns, steps = self.generate_steps(text, options, prompt=prompt, generator=generator)
        return _frames(columns, steps, self._lags(options))

    @torch.no_grad()
    def generate_steps(
        self,
        text: Text = None,
        options: GenerationOptions = DEFAULT,
        *,
        prompt: Prompt = None,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> tuple[Tensor, Iterator[tuple[int, Tensor]]]:
        """What generate() and generate_codes() drain: a table of codes, and the iterator that fills it in.

        The table (B, K, 1 + S) has a first column of special tokens, then the delayed codes, FREE (-1) where one is to
        be generated. Each turn of the iterator fills one column and yields its index and guided logits (B, K, V).
        """
        frames = options.frames or self.frames(options.seconds or 8.0)
        tokens = None if text is None else self._tokenize(text)
        parts, rate = self._check_prompt(prompt, frames)
        given = sum(map(len, parts))
        B = len(tokens[0]) if tokens is not None else max(1, given)
        if parts and given != B:
            raise ValueError(f"prompt must have a row for each of the {B} texts, got {given}")
        self._check_generator(generator, B)
        prompts = [row for part in parts for row in (part if rate is None else self.encode(part, rate))]

        codes = torch.full((B, len(self.delays), frames), FREE, device=self.device)
        for row, known in zip(codes, prompts, strict=False):
            row[:, : known.shape[1]] = known
        special = self.decoder.config.vocab_size
        columns = F.pad(delay.apply(codes, self._lags(options), fill=special), (1, 0), value=special)
        memory, mask = (None, None) if options.guidance_scale == 0 else self.encode_text(tokens)
        return columns, self._steps(columns, memory, mask, options, generator)

    @torch.no_grad()
    def _steps(
        self,
        columns: Tensor,
        memory: Tensor | None,
        mask: Tensor | None,
        options: GenerationOptions,
        generator: Generator | Sequence[Generator] | None,
    ) -> Iterator[tuple[int, Tensor]]:
        B, _, end = columns.shape
        # The second half of a guided batch reads no text. Where no row does, both halves would be the same.
        halves = 1 if memory is None or options.guidance_scale == 1 else 2
        cache = self.decoder.new_cache(halves * B, end - 1, memory, mask)
        begin = _first_free(columns)
        new = columns[..., : begin.min()]
        for s in range(int(begin.min()), end):
            logits = self.decoder(new.repeat(halves, 1, 1), cache=cache, backend=self.backend)[:, :, -1].float()
            if halves == 2:
                logits = guide(logits[:B], logits[B:], options.guidance_scale)
            # Only rows past their prompt draw, so that a row's generator is used as in its single run.
            rows = (begin <= s).nonzero()[:, 0]
            own = [generator[int(b)] for b in rows] if isinstance(generator, Sequence) else generator
            drawn = torch.zeros_like(columns[..., s])
            drawn[rows] = choose(logits[rows], options, own)
            # Cells of the prompt and of the delay pattern stay what they are; what was drawn for them is dropped.
            new = columns[..., s : s + 1]
            new.copy_(torch.where(new == FREE, drawn[..., None], new))
            yield s, logits

    def _lags(self, options: GenerationOptions) -> tuple[int, ...]:
        return self.delays if options.pattern == "delay" else (0,) * len(self.delays)

    def _check_prompt(self, prompt: Prompt, frames: int) -> tuple[list[Tensor], int | None]:
        # Any form of a prompt as batches of codes, or of audio and its rate.
        if prompt is None:
            return [], None
        rows, rate = prompt, None
        if isinstance(prompt, tuple) and len(prompt) == 2 and not isinstance(prompt[1], Tensor):
            rows, rate = prompt
        batch = [rows] if isinstance(rows, Tensor) else [row[None] for row in cast(Sequence[Tensor], rows)]
        if not batch:
            raise ValueError("prompt must have a row or more, got none")
        for part in batch:
            if rate is None:
                self._check_codes(part)
            else:
                self._check_audio(part, rate)
            length = math.ceil(part.shape[-1] / (1 if rate is None else self.codec.config.hop))
            if length > frames:
                raise ValueError(f"prompt must not be longer than the clip's {frames} frames, got {length}")
        return batch, rate

    # Checks

    def _check_device(self, name: str, *tensors: Tensor) -> None:
        for tensor in tensors:
            if tensor.device != self.device:
                raise ValueError(f"{name} must be on the model's device {self.device}, got {tensor.device}")

    def _check_generator(self, generator: Generator | Sequence[Generator] | None, rows: int) -> None:
        if generator is None:
            return
        each = [generator] if isinstance(generator, Generator) else generator
        if not isinstance(each, Sequence) or not all(isinstance(own, Generator) for own in each):
            raise ValueError(f"generator must be a torch.Generator or a list of them, one a row, got {generator!r}")
        if len(each) != rows and each is generator:
            raise ValueError(f"generator must be one, or one for each of the {rows} rows, got {len(each)}")
        for own in each:
            if own.device.type != self.device.type:
                raise ValueError(f"generator must be on the model's device {self.device}, got {own.device}")

    def _check_audio(self, audio: Tensor, sampling_rate: int) -> None:
        if sampling_rate != self.sampling_rate:
            rate = f"the model's {self.sampling_rate} Hz (audio.resample gets there)"
            raise ValueError(f"sampling_rate must be {rate}, got {sampling_rate}")
        self._check_device("audio", audio)
        check_audio(audio, self.decoder.config.channels)

    def _check_codes(self, codes: Tensor) -> None:
        self._check_device("codes", codes)
        check_codes(codes, len(self.delays), len(self.delays), self.decoder.config.vocab_size)


def choose(logits: Tensor, options: GenerationOptions, generator: Generator | Sequence[Generator] | None) -> Tensor:
    """One code (B, K) for each of the logits (B, K, V), as the options say."""
    if options.greedy:
        return logits.argmax(-1)
    return draw(top_p(top_k(logits / options.temperature, options.top_k), options.top_p), generator)


def _first_free(columns: Tensor) -> Tensor:
    """Each row's first column with a cell to generate, (B,); the number of columns where there is none."""
    free = (columns == FREE).any(1)
    return torch.where(free.any(1), free.int().argmax(1), columns.shape[2])


def _frames(columns: Tensor, steps: Iterator[tuple[int, Tensor]], lags: Sequence[int]) -> Iterator[Tensor]:
    last, f = columns.shape[2] - 1, 0
    for filled in chain([int(_first_free(columns).min()) - 1], (s for s, _ in steps)):
        while f + 1 + max(lags) <= min(filled, last):  # the column that completes frame f
            yield torch.stack([columns[:, k, 1 + f + lag] for k, lag in enumerate(lags)], dim=1)
            f += 1
