"""Random models and random options: do ours and transformers generate the same codes and audio?

`python -m tests.fuzz_generate --count 5000` prints how many configurations ran, of which kinds, and which mismatched.
Each goes through MusicGen.generate() and, with arguments as callers of transformers write them, through
musicgen_ref.hf. Left out is what transformers cannot do: guidance below 1, and guidance of a model without text, crash.
"""

import argparse
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from musicgen_ref import hf
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
    holes: bool  # whether masks also hide tokens, and steps of a prompt, in between
    unconditional: bool  # by get_unconditional_inputs, instead of text
    prompt: str  # "none", "codes", "audio" or "padded audio"
    prompt_samples: tuple[int, ...]  # of each row
    new_tokens: int
    guidance: float
    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    generator: bool  # ours draw from one of their own, not from the global one
    seed: int
    spelling: frozenset[str]  # of the call of musicgen_ref.hf, see SPELLINGS


# How callers of transformers may write the same call.
SPELLINGS = (
    "inputs",  # input_ids by its other name, by position
    "encoder_outputs",  # in place of input_ids, where nothing is guided
    "generation_config",  # an object, not keywords
    "max_length",  # in place of max_new_tokens, where there is no prompt
    "start column",  # before the codes of a prompt
    "return_dict",  # with logits, which are compared, too
    "logits_processor",  # where nothing is guided (theirs runs before guidance) and there is no prompt (see spelt())
    "no cache",
)


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
        holes=draw(st.booleans()),
        unconditional=unconditional,
        prompt=prompt,
        prompt_samples=tuple(samples),
        new_tokens=draw(st.sampled_from(allowed)),
        guidance=draw(st.sampled_from([1.0, 1.5, 3.0, 7.3])),
        greedy=draw(st.sampled_from([False, False, True])),
        temperature=draw(st.sampled_from([1.0, 1.0, 0.7, 1.9])),
        top_k=draw(st.sampled_from([0, 1, 5, 50, 250])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.9, 0.3])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 0.4, 1.0])),
        generator=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
        spelling=draw(st.frozensets(st.sampled_from(SPELLINGS), max_size=4)),
    )


def matches(c: Configuration) -> bool:
    """Whether codes and audio are equal, to the last bit, and those of the same call of musicgen_ref.hf."""
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
        if c.holes:
            mask *= torch.rand(batch, length, generator=generator) < 0.7
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
        arguments |= {"temperature": c.temperature, "top_k": c.top_k, "top_p": c.top_p, "min_p": c.min_p}

    torch.manual_seed(c.seed)
    codes, audio = tiny.theirs(model, max_new_tokens=c.new_tokens, do_sample=not c.greedy, **arguments)
    options = GenerationOptions(
        **tiny.clip(frames, c.new_tokens, c.codebooks, c.channels),
        guidance_scale=c.guidance,
        greedy=c.greedy,
        temperature=c.temperature,
        top_k=c.top_k,
        top_p=c.top_p,
        min_p=c.min_p,
    )
    made = ours.generate(text, options, prompt=prompt, generator=seeded_draws(c))
    same = torch.equal(made.codes, codes) and torch.equal(made.audio, audio)
    return same and hf_matches(
        c, model, arguments | {"max_new_tokens": c.new_tokens, "do_sample": not c.greedy}, frames
    )


def seeded_draws(c: Configuration) -> torch.Generator | None:
    """The configuration's seed, in a generator of its own or in the global one (None)."""
    torch.manual_seed(c.seed if not c.generator else c.seed + 1)
    return torch.Generator().manual_seed(c.seed) if c.generator else None


def spelt(c: Configuration) -> frozenset[str]:
    """Of c.spelling, what such a call can have.

    Under the delay pattern of a prompt, logits processors of transformers see the codes that were drawn and dropped,
    ours the prompt's.
    """
    guided = c.guidance > 1 and not c.unconditional
    possible = {
        "inputs": not c.unconditional and ("encoder_outputs" not in c.spelling or guided),
        "encoder_outputs": not c.unconditional and not guided,
        "max_length": c.prompt == "none",
        "start column": c.prompt == "codes",
        "logits_processor": c.prompt == "none" and not guided,
    }
    return frozenset(name for name in c.spelling if possible.get(name, True))


def hf_matches(c: Configuration, model: Any, arguments: dict[str, Any], frames: int) -> bool:
    """Whether musicgen_ref.hf and transformers answer this call, spelt as c.spelling says, with the same."""
    mine = hf.MusicgenForConditionalGeneration(hf.MusicgenConfig.from_dict(model.config.to_dict())).eval()
    mine.load_state_dict(model.state_dict())
    arguments, positional = dict(arguments), []
    spelling = spelt(c)
    generator = torch.Generator().manual_seed(c.seed + 2)
    uncached = "no cache" in spelling
    if c.holes and c.prompt == "codes" and not uncached:  # which theirs crashes on
        seen = (torch.rand(len(c.text_lengths), frames, generator=generator) < 0.7).long()
        arguments["decoder_attention_mask"] = seen
    if "start column" in spelling:
        codes = arguments["decoder_input_ids"]
        arguments["decoder_input_ids"] = torch.nn.functional.pad(codes, (1, 0), value=c.codes)
        if "decoder_attention_mask" in arguments:  # without the column, theirs puts it before the mask, too
            arguments["decoder_attention_mask"] = torch.nn.functional.pad(seen, (1, 0), value=1)
    if "max_length" in spelling:
        arguments["max_length"] = 1 + arguments.pop("max_new_tokens")
    if uncached:
        arguments["use_cache"] = False
    if "encoder_outputs" in spelling:
        with torch.no_grad():
            states = model.text_encoder(arguments.pop("input_ids"), attention_mask=arguments["attention_mask"])
        arguments["encoder_outputs"] = states
    elif "inputs" in spelling:
        positional = [arguments.pop("input_ids")]
    if "logits_processor" in spelling:
        arguments["logits_processor"] = [forbid_the_last]
    if "return_dict" in spelling:
        arguments |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    fields = ("do_sample", "temperature", "top_k", "top_p", "min_p")
    settings = {name: arguments.pop(name) for name in fields if name in arguments}

    results = []
    for library, one in ((transformers, model), (hf, mine)):
        given = dict(arguments)
        if "generation_config" in spelling:
            own = dict.fromkeys(("decoder_start_token_id", "pad_token_id", "bos_token_id"), c.codes)
            given["generation_config"] = library.GenerationConfig(**settings, **own)
        else:
            given |= settings
        draws = seeded_draws(c) if one is mine else torch.manual_seed(c.seed)
        results.append(one.generate(*positional, **given, **({"generator": draws} if one is mine else {})))
    their, our = results
    if "return_dict" not in spelling:
        return torch.equal(our, their)
    same = list(our) == tiny.our_names(their) and torch.equal(our.sequences, their.sequences)
    # The same but for the order of sums. The scores are not compared: what top-p cuts off turns on the last bit.
    steps = zip(our.logits, their.logits, strict=True)
    return (
        same and len(our.scores) == len(their.scores) and all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in steps)
    )


def forbid_the_last(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A logits processor: no codebook's last code is drawn again."""
    last = ids[:, -1:].clamp(max=scores.shape[1] - 1)
    return scores.scatter(1, last, -1e9)


def kinds(c: Configuration) -> list[str]:
    """What of this configuration the report counts."""
    named = {
        "stereo": c.channels == 2,
        "without text": c.unconditional,
        "guided": c.guidance > 1 and not c.unconditional,
        "greedy": c.greedy,
        "min-p": c.min_p > 0 and not c.greedy,
        "generator": c.generator,
        "masks with holes": c.holes,
        f"prompt: {c.prompt}": c.prompt != "none",
    }
    return [*(name for name, is_so in named.items() if is_so), *(f"hf: {name}" for name in sorted(spelt(c)))]


def fuzz(count: int, seed: int | None, ran: Counter[str], mismatched: list[Configuration]) -> None:
    """Try `count` configurations. `ran` counts those that ran, in all ("") and of each kind; `mismatched` gets those
    that did, and those in which either side crashed, which is printed; an interrupted run leaves both as far as it
    came. seed None: the same configurations every time."""

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
        try:
            same = matches(configuration)
        except Exception:  # the others are tried all the same
            traceback.print_exc()
            same = False
        if not same:
            mismatched.append(configuration)
        ran.update(["", *kinds(configuration)])
        if ran[""] % 500 == 0:
            print(f"{ran['']} ran, {len(mismatched)} mismatched", file=sys.stderr, flush=True)

    (each if seed is None else seeded(seed)(each))()


def report(ran: Counter[str], mismatched: list[Configuration]) -> str:
    parts = ", ".join(f"{count} {name}" for name, count in ran.most_common() if name)
    return f"{ran['']} random configurations ran, {len(mismatched)} mismatched ({parts})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="configurations to try")
    parser.add_argument("--seed", type=int, default=0, help="of the configurations")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ran: Counter[str] = Counter()
    mismatched: list[Configuration] = []
    try:
        fuzz(arguments.count, arguments.seed, ran, mismatched)
    except KeyboardInterrupt:
        print("stopped: this is what ran until then", file=sys.stderr)
    for configuration in mismatched:
        print(configuration)
    print(report(ran, mismatched))
    sys.exit(1 if mismatched else 0)


if __name__ == "__main__":
    main()
