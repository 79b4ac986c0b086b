"""All of MusicGen at the sizes of musicgen-small, with random weights, against transformers.

It takes 8 GB of memory, 2.5 GB of disk and a minute or two; run it with `-m slow`.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from musicgen_ref import GenerationOptions, MusicGen
from musicgen_ref.attention import Trace
from tests import tiny

pytestmark = pytest.mark.slow
V = 2048


class Pair(NamedTuple):
    theirs: MusicgenForConditionalGeneration
    ours: MusicGen
    ids: Tensor
    mask: Tensor


@pytest.fixture(scope="module")
def pair() -> Pair:
    text = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    codec = {"sampling_rate": 32000, "num_filters": 64, "hidden_size": 128, "upsampling_ratios": [8, 5, 4, 4]}
    codec |= {"codebook_size": V, "target_bandwidths": [2.2], "use_causal_conv": False, "use_conv_shortcut": False}
    config = MusicgenConfig(
        text_encoder=T5Config(**text).to_dict(),
        audio_encoder=EncodecConfig(**codec).to_dict(),
        decoder=MusicgenDecoderConfig().to_dict(),
    )
    theirs = tiny.randomize(MusicgenForConditionalGeneration(config))
    theirs.generation_config.decoder_start_token_id = theirs.config.decoder.decoder_start_token_id = V
    with torch.no_grad():
        for name, p in theirs.text_encoder.named_parameters():
            if name.endswith("SelfAttention.q.weight"):
                p *= 64**-0.5  # T5 leaves the scaling of its scores to the initialisation
        for table in theirs.decoder.model.decoder.embed_tokens:
            table.weight *= 32  # as large as the positions, so that one code decides the next
    tiny.fill_codebooks(theirs.audio_encoder, tiny.noise(1, 1, 64000))
    ids = torch.randint(2, 32100, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return Pair(theirs, tiny.ours(theirs), ids * mask, mask)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """fp32 within 1e-5 of the scale: at these sizes BLAS may sum a fused or a shorter matrix in another order."""
    assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_it_has_the_parameters_of_transformers(pair: Pair) -> None:
    # Weight norm is two tensors to them and one to us; the codebooks are no parameters to them.
    norms = {n: p.numel() for n, p in pair.theirs.named_parameters() if n.endswith("original0")}
    assert len(norms) == 28
    count = sum(p.numel() for p in pair.theirs.parameters()) - sum(norms.values())
    assert sum(p.numel() for n, p in pair.ours.named_parameters() if "quantizer" not in n) == count == 586_876_737
    codec = pair.ours.codec.config
    assert (codec.hop, codec.frame_rate, codec.codebooks, codec.codebook_size) == (640, 50, 4, V)


@torch.no_grad()
def test_text_states_equal_those_of_transformers(pair: Pair) -> None:
    expected = pair.theirs.text_encoder(pair.ids, pair.mask, output_hidden_states=True)
    trace = Trace()
    states = pair.ours.text_encoder(pair.ids, pair.mask, trace=trace)
    assert_near(states, expected.last_hidden_state)
    for mine, their in zip(trace.hidden, expected.hidden_states, strict=True):
        assert_near(mine, their)


@torch.no_grad()
def test_logits_equal_those_of_transformers(pair: Pair) -> None:
    theirs, ours, ids, mask = pair
    codes = torch.randint(0, V + 1, (2, 4, 10), generator=torch.Generator().manual_seed(1))
    texts = {"input_ids": ids, "attention_mask": mask}
    expected = theirs(**texts, decoder_input_ids=codes.flatten(0, 1), output_hidden_states=True, use_cache=False)
    trace, memory = Trace(), ours.encode_text((ids, mask))
    logits = ours.decoder(codes, *memory, trace=trace).flatten(0, 1)
    assert_near(logits, expected.logits)
    for mine, their in zip(trace.hidden, expected.decoder_hidden_states, strict=True):
        assert_near(mine, their)
    cache, past = ours.decoder.new_cache(2, 10, *memory), None
    for start, end in [(0, 6), (6, 7), (7, 8), (8, 9), (9, 10)]:
        part = codes[..., start:end]
        out = theirs(**texts, decoder_input_ids=part.flatten(0, 1), **{tiny.CACHE: past}, use_cache=True)
        past = out[tiny.CACHE]
        cached = ours.decoder(part, cache=cache).flatten(0, 1)
        assert_near(cached, out.logits)
        assert_near(cached, expected.logits[:, start:end])


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_generated_codes_and_audio_equal_those_of_transformers(pair: Pair, greedy: bool) -> None:
    theirs, ours, ids, mask = pair
    torch.manual_seed(0)
    texts = {"input_ids": ids, "attention_mask": mask, "guidance_scale": 3.0, "max_new_tokens": 12}
    codes, audio = tiny.theirs(theirs, **texts, do_sample=not greedy, top_k=250)
    assert codes.shape == (2, 4, 9)
    assert len(codes.unique()) > 12, "the case is real: the codes vary"
    torch.manual_seed(0)
    result = ours.generate((ids, mask), GenerationOptions(greedy=greedy, **tiny.clip(0, 12, 4)))
    assert torch.equal(result.codes, codes)
    assert result.audio.shape == (2, 1, 9 * 640)
    assert_near(result.audio, audio)


@torch.no_grad()
def test_the_codec_equals_that_of_transformers(pair: Pair) -> None:
    theirs, ours = pair.theirs.audio_encoder, pair.ours
    audio = tiny.noise(2, 1, 20000)
    latents = theirs.encoder(audio)
    assert_near(ours.codec.encoder(audio), latents)
    codes = theirs.encode(audio).audio_codes[0]
    assert codes.shape == (2, 4, 32)
    assert torch.equal(ours.encode(audio, 32000), codes)
    assert_near(ours.decode(codes), theirs.decode(codes[None], [None]).audio_values)
