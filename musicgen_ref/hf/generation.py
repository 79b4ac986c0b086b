"""generate() under transformers' names: the loop of model.py, with the options and functions that its callers may give.

B clips, K codebooks, T frames, P frames of a prompt, S columns: a column of special tokens, then the delayed codes.
Callers see rows (B * K): row b * K + k is codebook k of clip b.
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
from ..encodec import EncodecConfig
from ..model import FREE, fill_in
from .configs import FIELDS, HONOURED, GenerationConfig
from .loading import backend, kernels
from .messages import check_names

# Fields that None in a call turns off, and the value that does it. For any other field None means that it is not given.
CAN_BE_OFF = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "guidance_scale": None}
DEFAULT_NEW_TOKENS = 20  # where neither the call nor a configuration gives a length


def settle(
    own: GenerationConfig, given: GenerationConfig | None, fields: Mapping[str, Any], special: int
) -> GenerationConfig:
    """The settings of a call: its fields override the configuration that it gives, which overrides the model's own,
    which overrides the defaults.

    `own` and `given` are not changed. special: the special token. Raises ValueError for the first field that cannot be
    honoured, naming it.
    """
    asked = GenerationConfig()
    asked.update(HONOURED)
    for source in (own, given):
        if source is not None:  # it may be one of transformers', which has to_dict(), too
            unread = getattr(source, "_passed_over", ())
            said = {name: value for name, value in source.to_dict().items() if name not in unread}
            asked.update({name: value for name, value in said.items() if value is not None})
    off = {name: value for name, value in CAN_BE_OFF.items() if name in fields and fields[name] is None}
    asked.update({name: value for name, value in fields.items() if value is not None} | off)
    if fields.get("max_length") is not None and fields.get("max_new_tokens") is None:
        asked.max_new_tokens = None  # the call's max_length counts before a configuration's max_new_tokens
    asked.update({name: checks.as_python(value) for name, value in asked.to_dict().items()})
    asked.validate()
    for name, ok, must in (
        *((n, asked[n] is None or (_whole(asked[n]) and asked[n] > 0), "a whole number above 0")
          for n in ("max_new_tokens", "max_length", "num_return_sequences")),
        # Greedy search does not use the temperature; files that ask for it may have 0 there.
        ("temperature", checks.is_number(asked.temperature) and (0 < asked.temperature < float("inf")
         or (asked.temperature == 0 and not asked.do_sample)), "a number above 0"),
        ("top_k", _whole(asked.top_k) and asked.top_k >= 0, "a whole number from 0, which keeps all"),
        ("top_p", checks.is_number(asked.top_p) and asked.top_p > 0, "above 0; 1 keeps all"),
        ("min_p", asked.min_p is None or (checks.is_number(asked.min_p) and 0 <= asked.min_p <= 1), "from 0 to 1"),
        ("guidance_scale", asked.guidance_scale is None or (checks.is_number(asked.guidance_scale)
         and abs(asked.guidance_scale) < float("inf")), "a finite number, or None for none"),
        *checks.sampling(asked.temperature if asked.do_sample else 1.0,
                         1.0 if asked.guidance_scale is None else asked.guidance_scale),
        ("max_time", asked.max_time is None or (checks.is_number(asked.max_time) and asked.max_time > 0),
         "seconds above 0"),
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


def one(first: str, a: Any, second: str, b: Any) -> Any:
    """The value of an argument that has two names; None where neither is given. Raises ValueError where both are."""
    if a is not None and b is not None:
        raise ValueError(f"{first} and {second} are the same thing: give one, got both")
    return b if a is None else a


def hooks(name: str, given: Any) -> list[Callable[..., Any]]:
    """The caller's functions as a new list, so that the caller's own list is never changed."""
    if given is None:
        return []
    each = list(given) if isinstance(given, Iterable) else [given]
    for hook in each:
        if not callable(hook):
            raise ValueError(f"{name} must be functions of (input_ids, scores), got {hook!r}")
    return each


def columns(config: DecoderConfig, prompt: Tensor, length: int) -> Tensor:
    """The table (B, K, length) of a clip: special tokens, the codes of the prompt (B, K, P), and FREE in all cells for
    which codes will be generated.

    Short tables have no delay pattern, as in transformers. Raises ValueError where the prompt does not fit.
    """
    P = prompt.shape[2]
    lags = lags_for(config, length)
    frames = length - 1 - max(lags)
    if length - 1 - P < 1 or frames < P:
        more = max(1, *lags)
        raise ValueError(
            f"max_new_tokens must be {more} or more, max_length {1 + P + more} or more, after {P} frames of prompt "
            f"(the delay pattern takes {max(lags)} steps), got a length of {length}, {length - 1 - P} new"
        )
    codes = F.pad(prompt, (0, frames - P), value=FREE)
    return F.pad(delay.apply(codes, lags, fill=config.vocab_size), (1, 0), value=config.vocab_size)


def lags_for(config: DecoderConfig, length: int) -> tuple[int, ...]:
    """The delays in a table of this many columns. Below 2 * K - 1 columns (K per channel) there are none, which is
    transformers' rule."""
    lags = config.delays
    return lags if length >= 2 * (max(lags) + 1) - 1 else (0,) * len(lags)


class Made(NamedTuple):
    """The result of run(): codes (B, K, T), and the scores, logits and traces of each step if they were asked for.
    cache: the decoder's; under guidance it has the rows with text and those without."""

    codes: Tensor
    cache: KVCache
    scores: list[Tensor]
    logits: list[Tensor]
    traces: list[Trace]
    asked: GenerationConfig

    def seen(self, cache: Any) -> dict[str, Any]:
        """The fields of the output, except the first, in transformers' order."""
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
    codec: EncodecConfig | None,
    max_bytes: int,
) -> Made:
    """Generate num_return_sequences samples for each of `batch` clips; the samples of a clip are neighbours.

    memory, memory_mask: the projected text (B, L, E) and its mask (B, L); None for no text. prompt: codes (B, K, P),
    with or without the start column. step_mask: (B, columns of the prompt). processors and criteria are called with ids
    (B * K, S), whatever was drawn in all steps so far, and with scores (B * K, V) after guidance, so that -inf stays
    -inf. past: a cache that has read the start column and frames of the prompt, which are not read again. codec: of the
    codec that will decode the codes, None without one; codes that it does not have are not drawn. max_bytes: the most
    that keys, values, codes and audio may take, see checks.call_size().
    """
    c = decoder.config
    hop, size = (0, c.vocab_size) if codec is None else (codec.hop, min(c.vocab_size, codec.codebook_size))
    prompt = _prompt(decoder, prompt, batch, size)
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
    # What callers see is whatever was drawn, also in cells that the delay pattern then fills with the special token.
    ids = table.flatten(0, 1).clone()
    # Except where the prompt has a code: that one is shown. (transformers shows a drawn code there, which is dropped.)
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
        if size < c.vocab_size:
            scores = F.pad(scores[:, :size], (0, c.vocab_size - size), value=-torch.inf)
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
    # If it was stopped early, only the frames that are complete count.
    done = table[..., 1:end] if end - 1 >= max(lags) else table[..., 1 : 1 + max(lags)]
    return made._replace(codes=delay.undo(done, lags))


def _go_on(cache: KVCache, past: Any, P: int) -> None:
    # Copy the keys and values that `past` has of the table's columns 0..P - 1 into a new cache. Column P is read again:
    # the first step begins there, and in an earlier run that column had special tokens of the delay pattern.
    if not hasattr(past, "layers") or not hasattr(past, "batch"):
        raise ValueError(f"cache must be one of a generate() or forward() here, got {type(past).__name__}")
    if past.batch != cache.batch:
        raise ValueError(f"cache must be of {cache.batch} rows (guided ones twice), got {past.batch}")
    cache.length = min(past.length, P)
    for layer, (keys, values) in enumerate(past.layers):
        cache.keys[layer][:, :, : cache.length] = keys[:, :, : cache.length]
        cache.values[layer][:, :, : cache.length] = values[:, :, : cache.length]


def _prompt(decoder: Decoder, prompt: Tensor | None, batch: int, size: int) -> Tensor:
    # The codes (B, K, P) of a prompt, all below `size`, without the start column.
    c, device = decoder.config, decoder.norm.weight.device
    if prompt is None:
        return torch.empty(batch, c.codebooks, 0, dtype=torch.long, device=device)
    if prompt.dtype not in (torch.int64, torch.int32) or prompt.device != device:
        raise ValueError(f"prompt codes must be int64 or int32 on {device}, got {prompt.dtype} on {prompt.device}")
    if prompt.shape[2] and bool((prompt[..., 0] == c.vocab_size).all()):
        prompt = prompt[..., 1:]
    if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < size:
        got = f"{int(prompt.min())}..{int(prompt.max())}"
        raise ValueError(f"prompt codes must be in 0..{size - 1} after the start column, got {got}")
    if len(prompt) != batch:
        raise ValueError(f"text and prompt must have as many rows, got {batch} and {len(prompt)}")
    return prompt.long()


def _length(asked: GenerationConfig, P: int) -> int:
    # The number of columns: the start column, the prompt and the new ones. max_length counts the same columns.
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
    """Called after a step, tells whether every row has been stopped: by the caller's criteria, by an end token, or by
    the time limit."""

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
                said = said.repeat_interleave(self.codebooks)  # one answer for each clip
            if said.dim() and said.shape != self.left.shape:
                must = f"True, False, or one for each of {len(ids)} rows"
                raise ValueError(f"stopping_criteria must return {must}, got {tuple(said.shape)}")
            self.left = self.left & ~said
        if self.ends is not None:
            self.left = self.left & ~torch.isin(ids[:, -1], torch.as_tensor(self.ends, device=ids.device))
        return not bool(self.left.any()) or (self.until is not None and time.monotonic() >= self.until)


def check_fields(where: str, fields: Mapping[str, Any], arguments: Iterable[str] = ()) -> None:
    """Raise ValueError for a keyword argument that is neither a field of GenerationConfig nor one of `arguments`."""
    check_names(where, fields, {*FIELDS, *arguments})
