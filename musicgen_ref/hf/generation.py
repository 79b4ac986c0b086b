"""The loop of generate(): our decoder, delay pattern and sampling, with what transformers lets its callers hook in.

B clips, K codebooks, T frames, P frames of a prompt, S columns: a column of special tokens, then the delayed codes.
Rows of callers are (B * K): row b * K + k is codebook k of clip b.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .. import checks, delay, sampling
from ..attention import KVCache, Trace
from ..decoder import Decoder, DecoderConfig
from ..model import FREE, fill_in
from .configs import FIELDS, HONOURED, GenerationConfig
from .loading import backend, kernels
from .messages import check_names

# None, given at the call, turns these off; of the others it is no word at all.
CAN_BE_OFF = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "guidance_scale": None}
DEFAULT_NEW_TOKENS = 20  # where nothing says how long


def settle(
    own: GenerationConfig, given: GenerationConfig | None, fields: Mapping[str, Any], special: int
) -> GenerationConfig:
    """What a call asks for: its fields, over the configuration it gives, over the model's own, over the defaults.

    `own` and `given` stay as they are. special: the special token. Raises ValueError naming the first that cannot be
    honoured.
    """
    asked = GenerationConfig()
    asked.update(HONOURED)
    for source in (own, given):
        if source is not None:  # one of transformers' has to_dict(), too
            unread = getattr(source, "_passed_over", ())
            said = {name: value for name, value in source.to_dict().items() if name not in unread}
            asked.update({name: value for name, value in said.items() if value is not None})
    off = {name: value for name, value in CAN_BE_OFF.items() if name in fields and fields[name] is None}
    asked.update({name: value for name, value in fields.items() if value is not None} | off)
    if fields.get("max_length") is not None and fields.get("max_new_tokens") is None:
        asked.max_new_tokens = None  # the call's max_length, not a configuration's max_new_tokens
    asked.update({name: checks.as_python(value) for name, value in asked.to_dict().items()})
    asked.validate()
    for name, ok, must in (
        *((n, asked[n] is None or (_whole(asked[n]) and asked[n] > 0), "a whole number above 0")
          for n in ("max_new_tokens", "max_length", "num_return_sequences")),
        # Where nothing is drawn it means nothing, and files say 0 for that.
        ("temperature", _number(asked.temperature) and (0 < asked.temperature < float("inf")
         or (asked.temperature == 0 and not asked.do_sample)), "a number above 0"),
        ("top_k", _whole(asked.top_k) and asked.top_k >= 0, "a whole number from 0, which keeps all"),
        ("top_p", _number(asked.top_p) and asked.top_p > 0, "above 0; 1 keeps all"),
        ("min_p", asked.min_p is None or (_number(asked.min_p) and 0 <= asked.min_p <= 1), "from 0 to 1"),
        ("guidance_scale", asked.guidance_scale is None or (_number(asked.guidance_scale)
         and abs(asked.guidance_scale) < float("inf")), "a finite number, or None for none"),
        *checks.sampling(asked.temperature if asked.do_sample else 1.0,
                         1.0 if asked.guidance_scale is None else asked.guidance_scale),
        ("max_time", asked.max_time is None or (_number(asked.max_time) and asked.max_time > 0), "seconds above 0"),
        *((n, type(asked[n]) is bool, "True or False") for n in ("do_sample", "return_dict_in_generate",
          "output_scores", "output_logits", "output_attentions", "output_hidden_states")),
        ("num_return_sequences", asked.do_sample or asked.num_return_sequences == 1,
         "1 unless do_sample=True: greedy search would repeat itself"),
        *((n, asked[n] is None or (_whole(asked[n]) and asked[n] == special),
           f"{special}, the one special token, which begins every clip")
          for n in ("decoder_start_token_id", "pad_token_id", "bos_token_id")),
    ):  # fmt: skip
        if not ok:
            raise ValueError(f"{name} must be {must}, got {asked[name]!r}")
    return asked


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one(first: str, a: Any, second: str, b: Any) -> Any:
    """The one of two arguments that is given, or None. Raises ValueError where both are."""
    if a is not None and b is not None:
        raise ValueError(f"{first} and {second} are the same thing: give one, got both")
    return b if a is None else a


def check_generator(given: Any, batch: int, asked: GenerationConfig, device: torch.device) -> None:
    """Raise ValueError for what is no torch.Generator, nor a list of one for each sample of `batch` clips."""
    checks.generators(given, batch * asked.num_return_sequences, device)


def hooks(name: str, given: Any) -> list[Callable[..., Any]]:
    """The caller's functions, as a list of ours, which theirs stays apart from."""
    if given is None:
        return []
    each = list(given) if isinstance(given, Iterable) else [given]
    for hook in each:
        if not callable(hook):
            raise ValueError(f"{name} must be functions of (input_ids, scores), got {hook!r}")
    return each


def columns(config: DecoderConfig, prompt: Tensor, length: int) -> Tensor:
    """The table (B, K, length) of a clip: the special tokens, the prompt (B, K, P), FREE where codes are to come.

    Short tables have no delay pattern, as in transformers. Raises ValueError where the prompt does not fit.
    """
    P = prompt.shape[2]
    lags = lags_for(config, length)
    frames = length - 1 - max(lags)
    if length - 1 - P < 1 or frames < P:
        more = max(1, max(lags))
        raise ValueError(
            f"max_new_tokens must be {more} or more, max_length {1 + P + more} or more, after {P} frames of prompt "
            f"(the delay pattern takes {max(lags)} steps), got a length of {length}, {length - 1 - P} new"
        )
    codes = F.pad(prompt, (0, frames - P), value=FREE)
    return F.pad(delay.apply(codes, lags, fill=config.vocab_size), (1, 0), value=config.vocab_size)


def lags_for(config: DecoderConfig, length: int) -> tuple[int, ...]:
    """The delays of a clip of this many columns: none below 2 * K - 1 (K per channel), which is transformers' rule."""
    lags = config.delays
    return lags if length >= 2 * (max(lags) + 1) - 1 else (0,) * len(lags)


class Made(NamedTuple):
    """codes (B, K, T), and of each step what was asked for; cache: the decoder's, of both halves under guidance."""

    codes: Tensor
    cache: KVCache
    scores: list[Tensor]
    logits: list[Tensor]
    traces: list[Trace]
    asked: GenerationConfig

    def seen(self, cache: Any) -> dict[str, Any]:
        """The fields of the output, in transformers' order, but the first."""
        asked = self.asked
        weights, hidden = asked.output_attentions, asked.output_hidden_states
        return {
            "scores": tuple(self.scores) if asked.output_scores else None,
            "logits": tuple(self.logits) if asked.output_logits else None,
            "decoder_attentions": tuple(tuple(t.self_weights) for t in self.traces) if weights else None,
            "cross_attentions": tuple(tuple(t.cross_weights) for t in self.traces) if weights else None,
            "decoder_hidden_states": tuple(tuple(t.hidden) for t in self.traces) if hidden else None,
            "cache": cache if asked.use_cache else None,
        }


def run(
    decoder: Decoder,
    attention: str,
    asked: GenerationConfig,
    batch: int,
    memory: Tensor | None,
    memory_mask: Tensor | None,
    prompt: Tensor | None,
    step_mask: Tensor | None,
    processors: list[Callable[..., Any]],
    criteria: list[Callable[..., Any]],
    streamer: Any,
    generator: Generator | list[Generator] | None,
    past: Any,
    hop: int,
    max_bytes: int,
) -> Made:
    """Generate the codes of `batch` clips, times num_return_sequences, each clip's samples side by side.

    memory, memory_mask: text (B, L, E), (B, L), projected; None: no text. prompt: codes (B, K, P), with or without the
    start column. step_mask: (B, columns of prompt). processors and criteria get ids (B * K, S), undelayed draws of all
    steps so far, and scores (B * K, V): after guidance, so that -inf stays -inf. past: a cache that has read the start
    column and frames of the prompt, which are not read again. hop: samples a frame; max_bytes: of keys, values, codes
    and audio, see checks.call_size().
    """
    c = decoder.config
    prompt = _prompt(decoder, prompt, batch)
    P = prompt.shape[2]
    length = _length(asked, P)
    n, rows = asked.num_return_sequences, batch * asked.num_return_sequences
    scale = 1.0 if asked.guidance_scale is None else asked.guidance_scale
    # A text without tokens is none; but under guidance callers see both halves, as transformers' do.
    if scale == 0 or (scale == 1 and memory_mask is not None and not memory_mask.any()):
        memory = memory_mask = None
    halves = 1 if memory is None or scale == 1 else 2
    checks.call_size(
        c, hop, rows=rows, copies=halves, steps=length - 1, frames=length - 1 - max(lags_for(c, length)),
        tokens=0 if memory is None else memory.shape[1], size=decoder.norm.weight.element_size(), max_bytes=max_bytes,
    )  # fmt: skip
    table = columns(c, prompt, length).repeat_interleave(n, 0)
    seen = _step_mask(step_mask, batch, P, length)
    memory, memory_mask, seen = (None if t is None else t.repeat_interleave(n, 0) for t in (memory, memory_mask, seen))
    ids = table.flatten(0, 1).clone()  # what callers see: whatever is drawn, under the delay pattern, too
    # Where the prompt has a code it stays; transformers' callers see the one that was drawn and dropped.
    prompted = ((table != FREE) & (table != c.vocab_size)).flatten(0, 1)
    stop = _Stop(asked, criteria, len(ids), c.codebooks, ids.device)
    cache = decoder.new_cache(halves * rows, length - 1, memory, memory_mask)
    if past is not None:
        _go_on(cache, past, P)
    made = Made(prompt, cache, [], [], [], asked)
    if streamer is not None:
        streamer.put(ids[:, : 1 + P].cpu())

    def decide(logits: Tensor, s: int) -> Tensor:
        scores = logits.flatten(0, 1)
        for process in processors:
            scores = process(ids[:, :s], scores)
        if asked.do_sample:
            scores = sampling.top_p(sampling.top_k(scores / asked.temperature, asked.top_k), asked.top_p)
            scores = sampling.min_p(scores, asked.min_p or 0.0)
            drawn = sampling.draw(scores.unflatten(0, (rows, -1)), generator).flatten()
        else:
            drawn = scores.argmax(-1)
        ids[:, s] = torch.where(prompted[:, s], ids[:, s], drawn)
        made.scores.append(scores)
        return drawn.view(rows, -1)

    see = asked.output_attentions or asked.output_hidden_states
    steps = fill_in(
        decoder, table, 1 + P, cache, decide, guidance=scale, step_mask=seen, backend=backend(attention),
        trace=Trace(weights=asked.output_attentions, states=asked.output_hidden_states) if see else None,
    )  # fmt: skip
    end = 1 + P
    with kernels(attention):
        for step in steps:
            end = step.column + 1
            scores = made.scores[-1] if asked.output_scores else made.scores.pop()
            if asked.output_logits:
                made.logits.append(step.unguided.flatten(0, 1))
            if step.trace is not None:
                made.traces.append(step.trace)
            if streamer is not None:
                streamer.put(ids[:, step.column].cpu())
            if stop(ids[:, :end], scores):
                break
    if streamer is not None:
        streamer.end()
    lags = lags_for(c, length)
    # Stopped early: the frames that are complete.
    done = table[..., 1:end] if end - 1 >= max(lags) else table[..., 1 : 1 + max(lags)]
    return made._replace(codes=delay.undo(done, lags))


def _go_on(cache: KVCache, past: Any, P: int) -> None:
    # Write what `past` has read of the table's columns 0..P - 1 into a new cache. Column P is read anew: the first step
    # begins there, and what an earlier run had to the right of its last frame was the pattern's triangle.
    if not hasattr(past, "layers") or not hasattr(past, "batch"):
        raise ValueError(f"cache must be one of a generate() or forward() here, got {type(past).__name__}")
    if past.batch != cache.batch:
        raise ValueError(f"cache must be of {cache.batch} rows (guided ones twice), got {past.batch}")
    cache.length = min(past.length, P)
    for layer, (keys, values) in enumerate(past.layers):
        cache.keys[layer][:, :, : cache.length] = keys[:, :, : cache.length]
        cache.values[layer][:, :, : cache.length] = values[:, :, : cache.length]


def _prompt(decoder: Decoder, prompt: Tensor | None, batch: int) -> Tensor:
    # Codes (B, K, P) without the start column.
    c, device = decoder.config, decoder.norm.weight.device
    if prompt is None:
        return torch.empty(batch, c.codebooks, 0, dtype=torch.long, device=device)
    if prompt.dtype not in (torch.int64, torch.int32) or prompt.device != device:
        raise ValueError(f"prompt codes must be int64 or int32 on {device}, got {prompt.dtype} on {prompt.device}")
    if prompt.shape[2] and bool((prompt[..., 0] == c.vocab_size).all()):
        prompt = prompt[..., 1:]
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < c.vocab_size:
        got = f"{int(prompt.min())}..{int(prompt.max())}"
        raise ValueError(f"prompt codes must be in 0..{c.vocab_size - 1} after the start column, got {got}")
    if len(prompt) != batch:
        raise ValueError(f"text and prompt must have as many rows, got {batch} and {len(prompt)}")
    return prompt.long()


def _length(asked: GenerationConfig, P: int) -> int:
    # In columns: the start column, the prompt and the new ones, which is what max_length counts, too.
    if asked.max_new_tokens is not None:
        return 1 + P + int(asked.max_new_tokens)
    return int(asked.max_length) if asked.max_length is not None else 1 + P + DEFAULT_NEW_TOKENS


def _step_mask(mask: Tensor | None, batch: int, P: int, length: int) -> Tensor | None:
    if mask is None:
        return None
    if mask.dim() != 2 or len(mask) != batch or mask.shape[1] not in (P, 1 + P):
        must = f"({batch}, {P}) or, with the start column, ({batch}, {1 + P})"
        raise ValueError(f"the mask of the prompt must be {must}, got {tuple(mask.shape)}")
    mask = F.pad(mask, (1 + P - mask.shape[1], 0), value=1)
    return F.pad(mask, (0, length - mask.shape[1]), value=1)


class _Stop:
    """Whether every row has been told to stop: by the caller's criteria, an end token, or the time."""

    def __init__(
        self, asked: GenerationConfig, criteria: list[Callable[..., Any]], rows: int, codebooks: int, device: Any
    ):
        self.criteria, self.codebooks = criteria, codebooks
        self.left = torch.ones(rows, dtype=torch.bool, device=device)
        self.ends = asked.eos_token_id
        self.until = None if asked.max_time is None else time.monotonic() + asked.max_time

    def __call__(self, ids: Tensor, scores: Tensor) -> bool:
        for criterion in self.criteria:
            said = torch.as_tensor(criterion(ids, scores), dtype=torch.bool, device=ids.device)
            if said.dim() and len(said) * self.codebooks == len(ids):
                said = said.repeat_interleave(self.codebooks)  # one word a clip
            if said.dim() and said.shape != self.left.shape:
                must = f"True, False, or one for each of {len(ids)} rows"
                raise ValueError(f"stopping_criteria must return {must}, got {tuple(said.shape)}")
            self.left = self.left & ~said
        if self.ends is not None:
            self.left = self.left & ~torch.isin(ids[:, -1], torch.as_tensor(self.ends, device=ids.device))
        return not bool(self.left.any()) or (self.until is not None and time.monotonic() >= self.until)


def check_fields(where: str, fields: Mapping[str, Any], arguments: Iterable[str] = ()) -> None:
    """Raise ValueError for a keyword that generate() does not know."""
    check_names(where, fields, {*FIELDS, *arguments})
