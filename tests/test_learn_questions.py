"""learn/questions.md and its key: each question has an answer, the place it names is there, numbers are computed."""

import importlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ref import DecoderConfig, EncodecConfig, GenerationOptions, MusicGen, T5Config, delay
from musicgen_ref.attention import KVCache, Trace, attend, attention_weights
from musicgen_ref.checkpoint.source import without_values
from musicgen_ref.decoder import Decoder, sinusoid
from musicgen_ref.encodec import Conv, ConvTranspose, Encodec, ResidualVectorQuantizer, SEANetEncoder
from musicgen_ref.model import FREE, Sampling, choose
from musicgen_ref.sampling import guide, min_p, top_k, top_p
from musicgen_ref.t5 import Block as T5Block
from musicgen_ref.t5 import RMSNorm, T5Encoder

LEARN = Path(__file__).parents[1] / "learn"
QUESTION = re.compile(r"^(\d+)\. (.+\?)$", re.M)
ANSWER = re.compile(r"^(\d+)\. \*\*(.+?)\*\*: `(musicgen_ref\.[\w.]+)`\. (.+\.)$", re.M)

QUESTIONS = {int(number): text for number, text in QUESTION.findall((LEARN / "questions.md").read_text())}
ANSWERS = {int(n): (answer, place) for n, answer, place, _ in ANSWER.findall((LEARN / "answers.md").read_text())}
FOUR = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


@cache
def public() -> MusicGen:
    """The public models' sizes, without numbers."""
    with without_values():
        return MusicGen(T5Config(), DecoderConfig(), EncodecConfig())


def parameters(model: Callable[..., torch.nn.Module], config: Any) -> int:
    with without_values():
        return sum(p.numel() for p in model(config).parameters())


def tiny(**decoder: Any) -> MusicGen:
    """Small enough to generate at once; four codebooks, and a codec of which nobody listens to the sound."""
    text = T5Config(vocab_size=9, width=8, layers=1, heads=1, head_width=8, ffn=8)
    codec = EncodecConfig(sampling_rate=400, filters=2, ratios=(4, 2), hidden=4, codebook_size=8, codebooks=4)
    fields = {"vocab_size": 8, "width": 8, "layers": 2, "heads": 2, "ffn": 8, "text_width": 8}
    model = MusicGen(text, DecoderConfig(**fields | decoder), codec).eval()
    model.codec.quantizer.codebooks.normal_(generator=torch.Generator().manual_seed(0))
    return model


def ids(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((rows, 3), 5), torch.ones(rows, 3, dtype=torch.bool)


def first_tie() -> str:
    quantizer = ResidualVectorQuantizer(1, 2, 3)  # two equal words
    return "the first" if int(quantizer.encode(torch.ones(1, 3, 1), 1)) == 0 else "the last"


def columns(delays: tuple[int, ...], frames: int) -> torch.Tensor:
    """Of every code (K, frames): the column in which it stands, start column counted."""
    K = len(delays)
    table = delay.apply(torch.arange(K * frames).view(1, K, frames), delays, fill=-1)[0]
    return torch.stack([1 + (row >= 0).nonzero()[:, 0] for row in table])


def past_seen() -> int:
    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 5, 4)
    weights: list[torch.Tensor] = []
    attend(q, k, k, scale=1.0, causal=True, weights=weights)
    return int((weights[0][0, 0, 0] > 0).sum())


def full_cache() -> str:
    cache = KVCache(1, 1, 1, 2, 4, torch.zeros(1))
    try:
        cache.append(0, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
    except ValueError as error:
        return type(error).__name__
    return "it grows"


def cache_numbers() -> int:
    c = DecoderConfig()
    cache = KVCache(c.layers, 1, c.heads, 1503, c.width // c.heads, torch.empty(0))  # never written: takes no memory
    return sum(tensor.numel() for tensor in (*cache.keys, *cache.values))


def traced(memory_rows: int, rows: int, layers: int = 2) -> tuple[Decoder, Trace, torch.Tensor]:
    decoder = Decoder(DecoderConfig(vocab_size=7, width=8, layers=layers, heads=2, ffn=8, text_width=8)).eval()
    trace = Trace(weights=True)
    logits = decoder(torch.zeros(rows, 4, 3, dtype=torch.long), torch.randn(memory_rows, 2, 8), trace=trace)
    return decoder, trace, logits


def after_norm() -> str:
    decoder, trace, logits = traced(1, 1)
    return "yes" if torch.allclose(decoder.heads[0](trace.hidden[-1])[0, 0], logits[0, 0, 0], atol=1e-6) else "no"


def skipped() -> float:
    """Share of blocks that leave no keys in the cache under layerdrop."""
    decoder = Decoder(DecoderConfig(vocab_size=7, width=8, layers=20, heads=2, ffn=8, text_width=8, layerdrop=0.9))
    cache = decoder.train().new_cache(1, 1)
    for keys in cache.keys:
        keys.fill_(torch.nan)
    decoder(torch.zeros(1, 4, 1, dtype=torch.long), cache=cache)
    return sum(bool(keys.isnan().any()) for keys in cache.keys) / 20


def bias_rows() -> torch.Tensor:
    """The row of the table for each distance to keys before the query, 0 and more."""
    encoder = T5Encoder(T5Config(vocab_size=4, width=8, layers=1, heads=1, head_width=8, ffn=8))
    with torch.no_grad():
        encoder.relative_bias.weight.copy_(torch.arange(32.0)[:, None])
        return encoder.position_bias(200)[0, 0, -1].flip(0)


def decoded_alike() -> str:
    quantizer = ResidualVectorQuantizer(4, 5, 3)
    quantizer.codebooks.normal_()
    two = quantizer.codebooks[:2, 3].sum(0)
    return "nothing" if torch.allclose(quantizer.decode(torch.full((1, 2, 1), 3))[0, :, 0], two) else "something"


def rows_run(guidance: float) -> int:
    """Rows of the batch that the decoder is given for three texts."""
    model, seen = tiny(), []
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.generate(ids(3), GenerationOptions(frames=2, guidance_scale=guidance))
    return seen[0]


def steps_to_the_first_frame() -> int:
    model, calls = tiny(), []
    model.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    next(model.generate_codes(ids(1), GenerationOptions(frames=9)))
    return len(calls)


def steps_in_parallel() -> int:
    table, _ = tiny().generate_steps(ids(1), GenerationOptions(frames=1500, pattern="parallel"))
    return table.shape[2] - 1


def logits_of_a_prompt() -> str:
    prompt = torch.zeros(1, 4, 3, dtype=torch.long)
    out = tiny().generate(ids(1), GenerationOptions(frames=5), prompt=prompt, return_logits=True)
    assert out.logits is not None
    assert out.logits[:, :, 3:].isfinite().all()
    return "NaN" if out.logits[:, :, :3].isnan().all() else "numbers"


def guided_precision() -> str:
    _, steps = tiny().bfloat16().generate_steps(ids(1), GenerationOptions(frames=2))
    return str(next(steps).logits.dtype).removeprefix("torch.")


def order() -> str:
    """The one order of the four that draws like choose(), of those that can be told apart."""
    logits = 2 * torch.randn(1, 64, 40, generator=torch.Generator().manual_seed(0))
    how = Sampling(temperature=0.6, top_k=9, top_p=0.8, min_p=0.2)
    cuts = {
        "temperature": lambda x: x / 0.6,
        "top-k": lambda x: top_k(x, 9),
        "top-p": lambda x: top_p(x, 0.8),
        "min-p": lambda x: min_p(x, 0.2),
    }
    named = "temperature, top-k, top-p, min-p"
    kept = logits
    for name in named.split(", "):
        kept = cuts[name](kept)
    drawn = torch.stack([choose(logits, how, torch.Generator().manual_seed(i)) for i in range(60)])
    allowed = torch.stack([kept.isfinite().gather(2, codes[..., None])[..., 0] for codes in drawn])
    seen = torch.zeros_like(logits).scatter_(2, drawn.permute(1, 2, 0), 1).bool()
    # Nothing else is ever drawn, and the most of what is allowed is.
    return named if allowed.all() and seen.sum() > 0.9 * kept.isfinite().sum() else "another"


def latents(samples: int) -> tuple[int, ...]:
    """The shape of what the public models' encoder makes of mono audio; fewer filters between change nothing."""
    return tuple(SEANetEncoder(EncodecConfig(filters=2))(torch.zeros(1, 1, samples)).shape)


COMPUTED: dict[int, Callable[[], Any]] = {
    1: lambda: EncodecConfig().bitrate * EncodecConfig().codebooks,
    2: lambda: EncodecConfig().hop,
    3: lambda: EncodecConfig().codebook_size ** EncodecConfig().codebooks,
    4: lambda: Conv(EncodecConfig(), 1, 1, 16, 8).padding(100),
    5: lambda: latents(1000)[-1],
    6: first_tie,
    7: lambda: latents(32000),
    8: lambda: (
        (up := ConvTranspose(EncodecConfig(), 1, 1, 5)).conv.kernel_size[0],
        up(torch.zeros(1, 1, 7)).shape[-1],
    ),
    9: decoded_alike,
    10: lambda: EncodecConfig(sampling_rate=24000, ratios=(8, 5, 4, 2), codebook_size=1024).bitrate,
    11: lambda: int(columns(DecoderConfig().delays, 9)[2, 5]),
    12: lambda: delay.apply(torch.zeros(1, 4, 30 * 50), DecoderConfig().delays, fill=0).shape[2],
    13: lambda: int((~delay.valid(100, DecoderConfig().delays)).sum()),
    14: lambda: DecoderConfig(codebooks=8, channels=2).delays,
    15: lambda: "yes" if (at := columns(DecoderConfig().delays, 9))[3, 2] < at[2, 3] else "no",
    16: steps_in_parallel,
    17: lambda: (
        "zeros"
        if not attend(*(torch.randn(1, 1, 2, 4),) * 3, scale=1.0, mask=torch.zeros(2, 2).bool(), backend="eager").any()
        else "else"
    ),
    18: lambda: (
        "yes"
        if torch.equal(
            attend(q := torch.randn(1, 1, 3, 4), q, q, scale=1.0, head_mask=torch.tensor([0.5])),
            0.5 * attend(q, q, q, scale=1.0),
        )
        else "no"
    ),
    19: past_seen,
    20: cache_numbers,
    21: full_cache,
    22: lambda: (
        -1
        if torch.allclose(attention_weights(*(torch.randn(1, 1, 3, 4),) * 2, None, 1.0).sum(-1), torch.ones(3))
        else 0
    ),
    23: lambda: public().decoder.embed[0].num_embeddings,
    24: lambda: parameters(Decoder, DecoderConfig()),
    25: lambda: DecoderConfig().width // DecoderConfig().heads,
    26: lambda: round(1 / public().decoder.blocks[0].self_attn.scale),
    27: lambda: round(float(sinusoid(torch.tensor([1]), 1024)[0, -1].double().asin()), 7),
    28: lambda: "none" if sinusoid(torch.tensor([10**7]), 64).isfinite().all() else "some",
    29: lambda: "cosines" if sinusoid(torch.tensor([0]), 8)[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0] else "else",
    30: lambda: len(traced(3, 6)[1].cross_weights[0]),
    31: lambda: len(traced(1, 1, layers=DecoderConfig().layers)[1].hidden),
    32: after_norm,
    33: lambda: round(skipped()),
    34: lambda: sum(head.out_features for head in public().decoder.heads),
    35: lambda: int(bias_rows()[12]),
    36: lambda: int((bias_rows() == bias_rows()[-1]).float().argmax()),
    37: lambda: round(T5Block(T5Config(8, 8, 1, 1, 8, 8)).attn.scale),
    38: lambda: sum("relative" in name for name, _ in public().text_encoder.named_parameters()),
    39: lambda: tuple(round(x, 3) for x in RMSNorm(2, 1e-6)(torch.tensor([3.0, 4.0])).tolist()),
    40: lambda: parameters(T5Encoder, T5Config()),
    41: lambda: int(top_p(FOUR, 0.7).isfinite().sum()),
    42: lambda: int(top_k(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).isfinite().sum()),
    43: lambda: int(min_p(FOUR, 0.25).isfinite().sum()),
    44: lambda: round(float(guide(torch.tensor(2.0).log(), torch.tensor(0.0), 3.0).exp())),
    45: lambda: "the one without text" if guide(torch.tensor(5.0), torch.tensor(1.0), 0.0) == 1 else "else",
    46: lambda: EncodecConfig().hop * public().frames(8.0),
    47: lambda: 1 + delay.apply(torch.zeros(1, 4, public().frames(8.0)), DecoderConfig().delays, fill=0).shape[2],
    48: lambda: FREE,
    49: lambda: rows_run(3.0),
    50: lambda: rows_run(1.0),
    51: steps_to_the_first_frame,
    52: lambda: public().frames(0.01),
    53: logits_of_a_prompt,
    54: guided_precision,
    55: order,
}


def told(value: Any) -> str:
    """A value as the key writes it."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def test_there_are_forty_questions_and_each_has_an_answer() -> None:
    assert len(QUESTIONS) >= 40
    assert list(QUESTIONS) == list(range(1, len(QUESTIONS) + 1))
    assert ANSWERS.keys() == QUESTIONS.keys()
    lines = [line for line in (LEARN / "answers.md").read_text().splitlines() if re.match(r"\d", line)]
    assert len(lines) == len(ANSWERS)  # none is written so that this file passes it over


@pytest.mark.parametrize("number", ANSWERS)
def test_the_place_that_answers_is_in_the_code(number: int) -> None:
    parts = ANSWERS[number][1].split(".")
    found: Any = importlib.import_module(".".join(parts[:2]))
    for name in parts[2:]:
        assert hasattr(found, name), f"{ANSWERS[number][1]}: there is no {name}"
        found = getattr(found, name)


@pytest.mark.parametrize("number", ANSWERS)
@torch.no_grad()
def test_the_answer_is_what_the_code_gives(number: int) -> None:
    assert told(COMPUTED[number]()) == ANSWERS[number][0]


def test_the_codec_and_the_key_count_frames_alike() -> None:
    codec = Encodec(EncodecConfig(filters=2, hidden=4, codebook_size=8))
    assert str(codec.encode(torch.zeros(1, 1, 1000))[0].codes.shape[-1]) == ANSWERS[5][0]
