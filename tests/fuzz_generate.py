"""Random models and random options: do ours and transformers generate the same codes and audio?

`python -m tests.fuzz_generate --count 1000` prints how many configurations ran and how many mismatched.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from musicgen_ref.model import GenerationOptions, Prompt, Text
from tests import tiny


@dataclass(frozen=True)
class Configuration:
    """A tiny model, and what is asked of it."""

    text: dict[str, Any]
    gated: bool
    decoder: dict[str, Any]
    codec: dict[str, Any]
    codes: int
    codebooks: int
    channels: int
    weights: int  # their seed
    text_lengths: tuple[int, ...]  # tokens of each row, 0 for none; the longest decides the padding
    unconditional: bool  # by get_unconditional_inputs, instead of text
    prompt: str  # "none", "codes", "audio" or "padded audio"
    prompt_samples: tuple[int, ...]  # of each row
    new_tokens: int
    guidance: float
    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    heads, head_width = draw(st.sampled_from([(1, 7), (1, 16), (2, 8), (3, 5), (4, 8)]))
    width = heads * head_width
    text = {
        "d_model": draw(st.sampled_from([width, 12, 25])),  # a projection where it is not the decoder's width
        "d_kv": draw(st.sampled_from([3, 8])),
        "num_heads": draw(st.integers(1, 4)),
        "num_layers": draw(st.integers(1, 3)),
        "d_ff": draw(st.integers(5, 40)),
    }
    decoder = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "ffn_dim": draw(st.integers(5, 60)),
        "activation_function": draw(st.sampled_from(["gelu", "relu"])),
        "max_position_embeddings": draw(st.sampled_from([2048, 6])),  # transformers' table grows past it
    }
    codec = {"num_filters": draw(st.sampled_from([2, 4])), "hidden_size": draw(st.sampled_from([4, 16]))}
    channels = draw(st.sampled_from([1, 1, 2]))
    lags = draw(st.sampled_from([1, 2, 3, 4, 4, 5]))
    batch = draw(st.integers(1, 4))
    unconditional = draw(st.sampled_from([False, False, False, True]))
    prompt = draw(st.sampled_from(["none", "codes", "audio", "padded audio"]))
    if unconditional:
        prompt = draw(st.sampled_from(["none", "codes"]))  # transformers reads audio only beside text
    longest = draw(st.integers(1, 60))
    samples = [draw(st.integers(1, longest)) for _ in range(batch)] if prompt == "padded audio" else [longest] * batch
    columns = 1 + (0 if prompt == "none" else -(-max(samples) // tiny.HOP))
    # With a prompt, transformers fails where the delay pattern is used and leaves no room for the whole prompt.
    allowed = [n for n in range(1, 17) if prompt == "none" or n >= lags - 1 or columns + n < 2 * lags - 1]
    return Configuration(
        text=text,
        gated=draw(st.booleans()),
        decoder=decoder,
        codec=codec,
        codes=draw(st.sampled_from([16, 64, 256])),
        codebooks=lags * channels,
        channels=channels,
        weights=draw(st.integers(0, 2**31)),
        text_lengths=tuple(draw(st.integers(0, draw(st.sampled_from([9, 40])))) for _ in range(batch)),
        unconditional=unconditional,
        prompt=prompt,
        prompt_samples=tuple(samples),
        new_tokens=draw(st.sampled_from(allowed)),
        guidance=draw(st.sampled_from([1.0, 1.5, 3.0, 7.3])),
        greedy=draw(st.sampled_from([False, False, True])),
        temperature=draw(st.sampled_from([1.0, 1.0, 0.7, 1.9])),
        top_k=draw(st.sampled_from([0, 1, 5, 50, 250])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.9, 0.3])),
        seed=draw(st.integers(0, 2**31)),
    )


def matches(c: Configuration) -> bool:
    """Whether codes and audio are equal, to the last bit."""
    model = tiny.musicgen_of(
        c.codes, c.codebooks, c.channels, gated=c.gated, seed=c.weights, text=c.text, decoder=c.decoder, codec=c.codec
    )
    ours = tiny.ours_in_memory(model)
    generator = torch.Generator().manual_seed(c.seed)
    batch, length = len(c.text_lengths), max(1, *c.text_lengths)
    text: Text
    if c.unconditional:
        arguments, text = dict(model.get_unconditional_inputs(batch)), [None] * batch
    else:
        ids = torch.randint(0, tiny.VOCAB, (batch, length), generator=generator)
        mask = (torch.arange(length) < torch.tensor(c.text_lengths)[:, None]).long()
        arguments, text = {"input_ids": ids, "attention_mask": mask, "guidance_scale": c.guidance}, (ids, mask)
    prompt: Prompt = None
    samples = max(c.prompt_samples)
    frames = 0 if c.prompt == "none" else -(-samples // tiny.HOP)
    if c.prompt == "codes":
        codes = torch.randint(0, c.codes, (batch, c.codebooks, frames), generator=generator)
        arguments["decoder_input_ids"], prompt = codes.flatten(0, 1), codes
    elif c.prompt != "none":
        audio = torch.rand(batch, c.channels, samples, generator=generator) * 2 - 1
        heard = torch.arange(samples) >= samples - torch.tensor(c.prompt_samples)[:, None]  # padded on the left
        prompt = (audio * heard[:, None], tiny.RATE)
        arguments |= {"input_values": audio, "padding_mask": heard.long()}
    if not c.greedy:
        arguments |= {"temperature": c.temperature, "top_k": c.top_k, "top_p": c.top_p}

    torch.manual_seed(c.seed)
    codes, audio = tiny.theirs(model, max_new_tokens=c.new_tokens, do_sample=not c.greedy, **arguments)
    options = GenerationOptions(
        **tiny.clip(frames, c.new_tokens, c.codebooks, c.channels),
        guidance_scale=c.guidance,
        greedy=c.greedy,
        temperature=c.temperature,
        top_k=c.top_k,
        top_p=c.top_p,
    )
    torch.manual_seed(c.seed)
    made = ours.generate(text, options, prompt=prompt)
    return torch.equal(made.codes, codes) and torch.equal(made.audio, audio)


def fuzz(count: int, seed: int | None) -> tuple[int, list[Configuration]]:
    """Try `count` configurations: how many ran, and those that mismatched. seed None: the same ones every time."""
    ran, mismatched = 0, []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(configurations())
    def each(configuration: Configuration) -> None:
        nonlocal ran
        if not matches(configuration):
            mismatched.append(configuration)
        ran += 1

    (each if seed is None else seeded(seed)(each))()
    return ran, mismatched


def report(ran: int, mismatched: list[Configuration]) -> str:
    return f"{ran} random configurations ran, {len(mismatched)} mismatched"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="configurations to try")
    parser.add_argument("--seed", type=int, default=0, help="of the configurations")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ran, mismatched = fuzz(arguments.count, arguments.seed)
    for configuration in mismatched:
        print(configuration)
    print(report(ran, mismatched))
    sys.exit(1 if mismatched else 0)


if __name__ == "__main__":
    main()
