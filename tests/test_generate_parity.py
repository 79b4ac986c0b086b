"""The same seed gives the codes and the audio of transformers' MusicgenForConditionalGeneration.generate (5.24.0)."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import EncodecFeatureExtractor, MusicgenForConditionalGeneration

from musicgen_ref import MusicGen
from musicgen_ref.model import GenerationOptions, Prompt, Text
from tests import fuzz_generate, tiny

CODES = 512  # so that top-k 250 does what its name says
NEW_TOKENS = 9


class Case(NamedTuple):
    """One input, as transformers takes it and as ours does; frames of the prompt."""

    arguments: dict[str, Any]
    text: Text
    prompt: Prompt = None
    prompt_frames: int = 0


class Pair(NamedTuple):
    theirs: MusicgenForConditionalGeneration
    ours: MusicGen

    @property
    def sizes(self) -> tuple[int, int]:
        return self.ours.decoder.config.codebooks, self.ours.decoder.config.channels


@pytest.fixture(scope="module", params=[(4, 1), (8, 2)], ids=["mono", "stereo"])
def pair(request: pytest.FixtureRequest) -> Pair:
    model = tiny.musicgen_of(CODES, *request.param)
    return Pair(model, tiny.ours(model))


def text(pair: Pair, guidance: float, batch: int = 1) -> Case:
    ids, mask = tiny.text(batch)
    return Case({"input_ids": ids, "attention_mask": mask}, (ids, mask))


def padded_text(pair: Pair, guidance: float) -> Case:
    return text(pair, guidance, batch=3)


def unconditional(pair: Pair, guidance: float) -> Case:
    arguments = dict(pair.theirs.get_unconditional_inputs(num_samples=2))
    if guidance > 1:  # its encoder_outputs are not doubled for guidance: a masked text is the same condition
        ids, _ = tiny.text(2)
        arguments = {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}
    return Case(arguments, [None, None])


def audio_prompt(pair: Pair, guidance: float) -> Case:
    case = text(pair, guidance)
    audio = tiny.noise(1, pair.sizes[1], 5 * tiny.HOP + 3)
    prompt = (audio, tiny.RATE)
    return Case(case.arguments | {"input_values": audio}, case.text, prompt, 6)


def padded_audio_prompt(pair: Pair, guidance: float) -> Case:
    case = text(pair, guidance, batch=3)
    channels = pair.sizes[1]
    clips = [tiny.noise(channels, n, seed=n).squeeze(0).numpy() for n in (43, 30, 9)]
    extractor = EncodecFeatureExtractor(feature_size=channels, sampling_rate=tiny.RATE, padding_side="left")
    inputs = extractor(clips, sampling_rate=tiny.RATE, return_tensors="pt")
    assert inputs["padding_mask"].sum(1).tolist() == [43, 30, 9]
    # Ours has no padding mask here: what the extractor filled up is silence, at the beginning of the prompt.
    return Case(case.arguments | dict(inputs), case.text, (inputs["input_values"], tiny.RATE), 6)


CONDITIONS = [text, padded_text, unconditional, audio_prompt, padded_audio_prompt]
SAMPLING = {
    "greedy": ({"do_sample": False}, {"greedy": True}),
    "top-k 1": ({"do_sample": True, "top_k": 1}, {"top_k": 1}),
    "top-k 50": ({"do_sample": True}, {"top_k": 50}),  # transformers' default
    "top-k 250": ({"do_sample": True, "top_k": 250}, {}),  # ours
    "top-p 0.9": ({"do_sample": True, "top_k": 0, "top_p": 0.9}, {"top_k": 0, "top_p": 0.9}),
    "temperature 0.7": ({"do_sample": True, "top_k": 0, "temperature": 0.7}, {"top_k": 0, "temperature": 0.7}),
}


def both(pair: Pair, case: Case, new_tokens: int, theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[Tensor, ...]:
    """Codes and audio of transformers, then ours, both after the same seed, and the next number of each RNG."""
    length = tiny.clip(case.prompt_frames, new_tokens, *pair.sizes)
    torch.manual_seed(7)
    codes, audio = tiny.theirs(pair.theirs, max_new_tokens=new_tokens, **case.arguments, **theirs)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    made = pair.ours.generate(case.text, GenerationOptions(**length, **ours), prompt=case.prompt)
    return codes, audio, state, made.codes, made.audio, torch.get_rng_state()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_same_seed_gives_the_codes_audio_and_rng_state_of_transformers(
    pair: Pair, condition: Callable[[Pair, float], Case], sampling: str, guidance: float
) -> None:
    case = condition(pair, guidance)
    arguments, fields = SAMPLING[sampling]
    scale = {} if condition is unconditional and guidance == 1 else {"guidance_scale": guidance}
    codes, audio, state, our_codes, our_audio, our_state = both(
        pair, case, NEW_TOKENS, arguments | scale, fields | {"guidance_scale": guidance}
    )
    assert codes.shape[2] == case.prompt_frames + NEW_TOKENS + 1 - 4
    assert torch.equal(our_codes, codes)
    assert torch.equal(our_audio, audio)
    # Not one number more or less is drawn: what follows in a seeded program is the same, too.
    assert torch.equal(our_state, state)


def test_the_options_that_are_compared_make_a_difference(pair: Pair) -> None:
    """So that no comparison above is between two runs that ignore what they were asked for."""
    made = {}
    for guidance in (1.0, 3.0):
        for name, (_, fields) in SAMPLING.items():
            torch.manual_seed(7)
            options = GenerationOptions(frames=12, guidance_scale=guidance, **fields)
            made[name, guidance] = pair.ours.generate(tiny.text(1), options).codes
    assert torch.equal(made.pop(("top-k 1", 1.0)), made["greedy", 1.0])
    assert torch.equal(made.pop(("top-k 1", 3.0)), made["greedy", 3.0])
    different = {tuple(codes.flatten().tolist()) for codes in made.values()}
    assert len(different) == len(made)


@pytest.fixture(scope="module", params=[(1, 1), (3, 1), (4, 1), (2, 2), (8, 2)], ids=str)
def short(request: pytest.FixtureRequest) -> Pair:
    model = tiny.musicgen_of(tiny.CODES, *request.param)
    return Pair(model, tiny.ours(model))


@pytest.mark.parametrize("prompt_frames", [0, 1, 5])
def test_every_short_length_equals_transformers(short: Pair, prompt_frames: int) -> None:
    """Below 2 * codebooks - 1 columns transformers drops the delay pattern: "parallel" is that."""
    codebooks, channels = short.sizes
    lags = codebooks // channels
    ids, mask = tiny.text(2)
    patterns = set()
    for new_tokens in range(1, 2 * lags + 3):
        length = tiny.clip(prompt_frames, new_tokens, codebooks, channels)
        case = Case({"input_ids": ids, "attention_mask": mask}, (ids, mask))
        if prompt_frames:
            audio = tiny.noise(2, channels, prompt_frames * tiny.HOP)
            arguments = case.arguments | {"input_values": audio}
            case = Case(arguments, case.text, (audio, tiny.RATE), prompt_frames)
            if length["pattern"] == "delay" and new_tokens < lags - 1:
                # The clip would be shorter than its prompt: transformers fails in its pattern, ours says so.
                with pytest.raises(RuntimeError, match="size"):
                    both(short, case, new_tokens, {"guidance_scale": 3.0}, {})
                with pytest.raises(ValueError, match=f"prompt .* {length['frames']} frames, got {prompt_frames}"):
                    short.ours.generate(case.text, GenerationOptions(**length), prompt=case.prompt)
                continue
        codes, audio, _, our_codes, our_audio, _ = both(
            short, case, new_tokens, {"do_sample": True, "guidance_scale": 3.0}, {"top_k": 50}
        )
        assert torch.equal(our_codes, codes), f"{new_tokens} new tokens"
        assert torch.equal(our_audio, audio), f"{new_tokens} new tokens"
        patterns.add(length["pattern"])
    # Both sides of the jump were seen, where there is one with this prompt.
    assert patterns == {"delay", "parallel"} or (patterns == {"delay"} and prompt_frames + 2 >= 2 * lags - 1)


def test_a_model_without_files_between_is_the_one_that_was_saved(pair: Pair) -> None:
    """The random configurations below are made so."""
    own = tiny.ours_in_memory(pair.theirs)
    assert [part.config for part in (own.text_encoder, own.decoder, own.codec)] == [
        part.config for part in (pair.ours.text_encoder, pair.ours.decoder, pair.ours.codec)
    ]
    states = own.state_dict(), pair.ours.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_random_configurations_equal_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    """The same 40 in every run; `python -m tests.fuzz_generate --count 5000` draws others."""
    ran: Counter[str] = Counter()
    mismatched: list[fuzz_generate.Configuration] = []
    fuzz_generate.fuzz(40, None, ran, mismatched)
    with capsys.disabled():
        print(f"\n{fuzz_generate.report(ran, mismatched)}")
    assert not mismatched
    assert ran[""] == 40
    every = {"stereo", "without text", "guided", "greedy", "min-p", "generator", "masks with holes", "prompt: codes"}
    assert every | {"hf: inputs", "hf: return_dict", "hf: start column"} <= ran.keys()
