"""A decoder of fewer codes than the codec has, as in transformers' own tiny test models, and of more, its default."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from musicgen_ref import GenerationOptions, MusicGen, hf
from musicgen_ref.__main__ import main
from musicgen_ref.audio import write_wav
from musicgen_ref.fast.cuda import decision
from musicgen_ref.model import Sampling, among, decide
from tests import release, tiny
from weights_convert.__main__ import main as convert

FEW, BOOK = 99, 128  # decoder.vocab_size, codebook_size
GREEDY = GenerationOptions(frames=12, greedy=True)
KINDS: dict[str, tuple[int, int]] = {"mono": (4, 1), "stereo": (8, 2)}  # codebooks, channels


def model_of(kind: str = "mono", few: int = FEW, reachable: bool = False) -> Any:
    """transformers' model; reachable: whether its codec gives audio the codes that its decoder lacks."""
    special = {"vocab_size": few, "pad_token_id": few, "bos_token_id": few, "ffn_dim": 128}
    model = tiny.musicgen_of(BOOK, *KINDS[kind], decoder=special, text={"vocab_size": 200})
    model.generation_config.decoder_start_token_id = model.config.decoder.decoder_start_token_id = few
    if not reachable:
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed[few:] = 1000.0  # far from any latent
    return model


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, MusicGen]:
    return tiny.pair(model_of(request.param))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that transformers saved, with a tokenizer; its codec codes audio beyond the decoder's codes."""
    folder = tmp_path_factory.mktemp("few")
    model_of(reachable=True).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(tiny.spiece())
    return folder


@pytest.fixture(scope="module")
def plain_codes(folder: Path) -> Tensor:
    return MusicGen.from_pretrained(folder).generate(["a calm piano"], GREEDY).codes


def beyond(model: MusicGen) -> Tensor:
    """Audio whose codes are beyond the decoder's."""
    for seed in range(20):
        audio = tiny.noise(1, 1, 10 * tiny.HOP, seed=seed)
        if int(model.codec.encode(audio)[0].codes.max()) > FEW:
            return audio
    raise AssertionError("no such audio")


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompted", [False, True], ids=["text", "text and audio"])
def test_it_generates_what_transformers_generates(pair: tuple[Any, MusicGen], prompted: bool, sampled: bool) -> None:
    theirs, ours = pair
    sizes = ours.decoder.config.codebooks, ours.decoder.config.channels
    ids, mask = tiny.text(2)
    prompt = tiny.noise(2, sizes[1], 5 * tiny.HOP) if prompted else None
    more = {"input_values": prompt} if prompted else {}
    torch.manual_seed(3)
    codes, audio = tiny.theirs(
        theirs, input_ids=ids, attention_mask=mask, guidance_scale=3.0, max_new_tokens=17, do_sample=sampled, **more
    )
    torch.manual_seed(3)
    options = GenerationOptions(greedy=not sampled, top_k=50, **tiny.clip(5 * prompted, 17, *sizes))
    made = ours.generate((ids, mask), options, prompt=(prompt, tiny.RATE) if prompted else None)
    assert torch.equal(made.codes, codes)
    assert torch.equal(made.audio, audio)
    assert int(codes.max()) < FEW
    facade = hf.MusicgenForConditionalGeneration.of(ours)
    assert facade.generation_config.pad_token_id == facade.generation_config.decoder_start_token_id == FEW
    torch.manual_seed(3)
    again = facade.generate(
        input_ids=ids, attention_mask=mask, guidance_scale=3.0, max_new_tokens=17, do_sample=sampled, **more
    )
    assert torch.equal(again, audio)


def test_logits_and_loss_are_those_of_transformers(pair: tuple[Any, MusicGen]) -> None:
    theirs, ours = pair
    (ids, mask), K = tiny.text(2), ours.decoder.config.codebooks
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, FEW + 1, (2, K, 9), generator=generator)
    labels = torch.randint(0, FEW + 1, (2, 9, K), generator=generator)
    arguments = {"input_ids": ids, "attention_mask": mask}
    facade = hf.MusicgenForConditionalGeneration.of(ours)
    with torch.no_grad():
        expected = theirs(**arguments, decoder_input_ids=given.flatten(0, 1), use_cache=False).logits
        assert torch.equal(ours.decoder(given, *ours.encode_text((ids, mask))).flatten(0, 1), expected)
        assert expected.shape == (2 * K, 9, FEW)
        torch.testing.assert_close(
            facade(**arguments, labels=labels).loss, theirs(**arguments, labels=labels).loss, rtol=1e-6, atol=0
        )
        loss = ours.loss(given.clamp(max=FEW - 1), (ids, mask))
    assert 0 < float(loss) < 20
    with pytest.raises(ValueError, match=rf"codes must be in 0\.\.{FEW - 1}, got 0\.\.{FEW}"):
        ours.loss(torch.tensor([[[0, FEW]] * K]), (ids[:1], mask[:1]))


def test_it_streams_saves_and_quantises(folder: Path, tmp_path: Path, plain_codes: Tensor) -> None:
    own = MusicGen.from_pretrained(folder)
    frames = list(own.generate_codes(["a calm piano"], GREEDY))
    assert torch.equal(torch.stack(frames, dim=-1), plain_codes)
    own.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["decoder"]["vocab_size"], config["audio_encoder"]["codebook_size"]) == (FEW, BOOK)
    for kind in (MusicGen, hf.MusicgenForConditionalGeneration):
        again = kind.from_pretrained(tmp_path / "ours")
        core = again if isinstance(again, MusicGen) else again.core
        assert torch.equal(core.generate(["a calm piano"], GREEDY).codes, plain_codes)
    theirs = transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path / "ours")
    ids, mask = own.tokenizer(["a calm piano"])
    arguments = {"input_ids": ids, "attention_mask": mask, "do_sample": False, "guidance_scale": 3.0}
    codes, _ = tiny.theirs(theirs, **arguments, max_new_tokens=12 + 3)  # the frames and the delay
    assert torch.equal(codes, plain_codes)
    small = MusicGen.from_pretrained(folder, dtype="int8").generate(["a calm piano"], GREEDY).codes
    assert (small.shape, bool((small < FEW).all())) == (plain_codes.shape, True)


def test_audio_of_other_codes_is_refused_before_anything_is_generated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, model = MusicGen.from_pretrained(folder), hf.MusicgenForConditionalGeneration.from_pretrained(folder)
    audio = beyond(own)
    message = rf"audio must be coded below the decoder's vocab_size {FEW}, got code 1\d\d"
    ids, mask = tiny.text(1)
    theirs = tiny.opened(transformers.MusicgenForConditionalGeneration, folder)
    with pytest.raises(IndexError):
        theirs.generate(input_ids=ids, attention_mask=mask, input_values=audio, max_new_tokens=9)

    def started(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the decoder ran")

    monkeypatch.setattr("musicgen_ref.decoder.Decoder.forward", started)
    for call in (
        lambda: own.encode(audio, tiny.RATE),
        lambda: own.generate(["a"], GREEDY, prompt=(audio, tiny.RATE)),
        lambda: own.generate_codes(["a"], GREEDY, prompt=([audio[0]], tiny.RATE)),
        lambda: model.generate(input_ids=ids, attention_mask=mask, input_values=audio, max_new_tokens=9),
        lambda: model(input_ids=ids, attention_mask=mask, input_values=audio),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=rf"codes must be in 0\.\.{FEW - 1}, got"):
        own.generate(["a"], GREEDY, prompt=own.codec.encode(audio)[0].codes)
    write_wav(tmp_path / "clip.wav", audio[0], tiny.RATE)
    arguments = ["--model", str(folder), "--audio-prompt", str(tmp_path / "clip.wav"), "-o", str(tmp_path / "out.wav")]
    assert main(["generate", "a", "--seconds", "1", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert own.codec.decode(own.codec.encode(audio)).shape == audio.shape  # the codec has them all the same


def test_a_release_of_fewer_codes_than_its_codec_converts(tmp_path: Path) -> None:
    model = model_of()
    release.write(model, tmp_path / "release", tokenizer=tiny.spiece())
    model.save_pretrained(tmp_path / "model")
    ids, mask = tiny.text(2)
    expected = MusicGen.from_pretrained(tmp_path / "model").generate((ids, mask), GREEDY).codes
    assert torch.equal(MusicGen.from_pretrained(tmp_path / "release").generate((ids, mask), GREEDY).codes, expected)
    assert convert(["audiocraft", str(tmp_path / "release"), str(tmp_path / "out")]) == 0
    assert torch.equal(MusicGen.from_pretrained(tmp_path / "out").generate((ids, mask), GREEDY).codes, expected)
    assert convert(["to-audiocraft", str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    assert convert(["verify", str(tmp_path / "release"), str(tmp_path / "back")]) == 0
    assert convert(["huggingface", str(tmp_path / "model"), str(tmp_path / "copy")]) == 0
    assert convert(["verify", str(tmp_path / "model"), str(tmp_path / "copy")]) == 0


# What is refused, in the words of the file


def test_info_tells_both_numbers_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    assert f"4 codebooks of {FEW}" in capsys.readouterr().out


# changed sections of config.json, and the whole message
REFUSED: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "more codebooks than the codec": (
        {"decoder": {"num_codebooks": 5}}, "decoder.num_codebooks must be at most 4 a channel, got 5"
    ),
    "a stereo codec": (
        {"audio_encoder": {"audio_channels": 2}}, "audio_encoder.audio_channels must be 1, got 2"
    ),
    "a normalising codec": ({"audio_encoder": {"normalize": True}}, "audio_encoder.normalize must be False, got True"),
    "a codec in pieces": (
        {"audio_encoder": {"chunk_length_s": 1, "overlap": 0.1}},
        "audio_encoder.chunk_length_s must be None, got 1.0",
    ),
    "another special token": (
        {"decoder": {"pad_token_id": BOOK}}, "decoder.pad_token_id must be vocab_size 99, the special token, got 128"
    ),
    "no special token": (
        {"decoder": {"bos_token_id": None}}, "decoder.bos_token_id must be vocab_size 99, the special token, got None"
    ),
    "a field of ours": ({"text_encoder": {"num_heads": 0}}, "text_encoder.num_heads must be a positive whole number"),
    "sizes beyond any machine": (
        {"text_encoder": dict.fromkeys(("d_model", "vocab_size"), 2**31 - 1)}, "the sizes are beyond any machine"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_in_the_words_of_the_file(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = REFUSED[case]
    config = json.loads((folder / "config.json").read_text())
    for section, fields in changes.items():
        config[section] |= fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert main(["info", str(tmp_path)]) == 2
    assert main(["generate", "a", "--model", str(tmp_path), "-o", str(tmp_path / "out.wav")]) == 2
    assert convert(["huggingface", str(tmp_path), str(tmp_path / "copy")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert f": {tmp_path / 'config.json'}: {message}" in line
        assert "Config." not in line
    kinds: list[Any] = [MusicGen, hf.MusicgenForConditionalGeneration]
    if case == "sizes beyond any machine":
        kinds.append(hf.T5EncoderModel)
    for kind in kinds:
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'config.json'}: {message}")):
            kind.from_pretrained(tmp_path)


def test_a_release_of_more_codebooks_than_its_codec_is_refused_in_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release.write(model_of(), tmp_path, tokenizer=tiny.spiece())
    release.write_codec(tiny.codec(tiny.codec_config(2)), tmp_path, 2)
    message = f"{tmp_path / 'state_dict.bin'}: transformer_lm.n_q must be at most 2 a channel, got 4"
    with pytest.raises(ValueError, match=re.escape(message)):
        MusicGen.from_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["info", str(tmp_path)]) == 2
    assert convert(["audiocraft", str(tmp_path), str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(message in line for line in lines)


def test_a_configuration_of_ones_own_is_refused_in_its_words(folder: Path) -> None:
    config = hf.MusicgenConfig.from_pretrained(folder)
    config.decoder.num_codebooks = 5
    message = "MusicgenConfig: decoder.num_codebooks must be at most 4 a channel, got 5"
    for make in (
        lambda: hf.MusicgenForConditionalGeneration(config),
        lambda: hf.MusicgenForConditionalGeneration.from_pretrained(folder, config=config),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            make()


# More codes than the codec has


SMALL = 64  # codebook_size


def larger(drawn: bool, kind: str = "mono") -> Any:
    """transformers' model; drawn: whether its decoder is likely to draw codes that its codec does not have."""
    special = {"vocab_size": FEW, "pad_token_id": FEW, "bos_token_id": FEW, "ffn_dim": 128}
    model = tiny.musicgen_of(SMALL, *KINDS[kind], decoder=special, text={"vocab_size": 200})
    model.generation_config.decoder_start_token_id = model.config.decoder.decoder_start_token_id = FEW
    if not drawn:
        with torch.no_grad():
            model.decoder.model.decoder.layer_norm.bias.fill_(3.0)
            for head in model.decoder.lm_heads:
                head.weight[SMALL:] = -10.0
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_codes_that_the_codec_lacks_are_never_drawn_and_the_rest_is_transformers(kind: str, sampled: bool) -> None:
    theirs, ours = tiny.pair(larger(False, kind))
    sizes, (ids, mask) = KINDS[kind], tiny.text(2)
    arguments = {"input_ids": ids, "attention_mask": mask, "guidance_scale": 3.0, "max_new_tokens": 17}
    torch.manual_seed(3)
    codes, audio = tiny.theirs(theirs, **arguments, do_sample=sampled)
    torch.manual_seed(3)
    made = ours.generate((ids, mask), GenerationOptions(greedy=not sampled, top_k=50, **tiny.clip(0, 17, *sizes)))
    assert torch.equal(made.codes, codes) and torch.equal(made.audio, audio)
    torch.manual_seed(3)
    facade = hf.MusicgenForConditionalGeneration.of(ours)
    assert torch.equal(facade.generate(**arguments, do_sample=sampled), audio)

    wild, ours = tiny.pair(larger(True, kind))
    with pytest.raises(IndexError):
        wild.generate(**arguments, do_sample=sampled)
    options = GenerationOptions(greedy=not sampled, **tiny.clip(0, 17, *sizes))
    made = ours.generate((ids, mask), options, return_logits=True)
    assert int(made.codes.max()) < SMALL and made.audio.isfinite().all()
    assert made.logits is not None and int(made.logits.argmax(-1).max()) >= SMALL  # as the decoder has them
    facade = hf.MusicgenForConditionalGeneration.of(ours)
    out = facade.generate(**arguments, do_sample=sampled, return_dict_in_generate=True, output_scores=True)
    assert out.sequences.isfinite().all()
    assert all(bool((scores[:, SMALL:] == -torch.inf).all()) for scores in out.scores)
    alone = facade.decoder.generate(max_new_tokens=17, do_sample=sampled)
    assert int(alone.max()) >= SMALL  # a decoder by itself has no codec


def test_a_checkpoint_of_more_codes_than_its_codec_opens_and_refuses_what_cannot_be_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger(True).save_pretrained(tmp_path / "model")
    ids, mask = tiny.text(1)
    own = MusicGen.from_pretrained(tmp_path / "model")
    facade = hf.MusicgenForConditionalGeneration.from_pretrained(tmp_path / "model")
    codes = own.generate((ids, mask), GREEDY).codes
    own.save_pretrained(tmp_path / "copy")
    assert torch.equal(MusicGen.from_pretrained(tmp_path / "copy").generate((ids, mask), GREEDY).codes, codes)
    small = MusicGen.from_pretrained(tmp_path / "model", dtype="int8").generate((ids, mask), GREEDY).codes
    assert int(small.max()) < SMALL
    beyond = torch.full((1, 4, 3), SMALL)
    for refused in (
        lambda: own.decode(beyond),
        lambda: own.generate((ids, mask), GREEDY, prompt=beyond),
        lambda: own.loss(beyond, (ids, mask)),
        lambda: facade.generate(input_ids=ids, attention_mask=mask, decoder_input_ids=beyond.flatten(0, 1)),
    ):
        with pytest.raises(ValueError, match=rf"codes must be in 0\.\.{SMALL - 1}.*got {SMALL}\.\.{SMALL}"):
            refused()
    logits = facade(input_ids=ids, attention_mask=mask, decoder_input_ids=beyond.flatten(0, 1)).logits
    assert logits.shape == (4, 3, FEW)  # the decoder reads them all the same
    assert main(["info", str(tmp_path / "model")]) == 0
    assert f"4 codebooks of {FEW}" in capsys.readouterr().out
    assert convert(["to-audiocraft", str(tmp_path / "model"), str(tmp_path / "release")]) == 0
    assert convert(["verify", str(tmp_path / "model"), str(tmp_path / "release")]) == 0


def test_a_graph_that_decides_by_itself_is_not_used_where_codes_are_left_out() -> None:
    own = partial(decide, torch.ones(1), Sampling(greedy=True), None)
    assert decision(own) is not None
    assert decision(partial(among, SMALL, own)) is None
    logits = torch.arange(FEW).expand(1, 4, FEW).float()
    assert own(logits, 1).tolist() == [[FEW - 1] * 4]
    assert among(SMALL, own, logits, 1).tolist() == [[SMALL - 1] * 4]


def test_a_release_of_more_codes_than_its_codec_opens(tmp_path: Path) -> None:
    release.write(model_of(), tmp_path, tokenizer=tiny.spiece())
    release.write_codec(tiny.codec(tiny.codec_config()), tmp_path, 4)  # codebooks of 64
    codes = MusicGen.from_pretrained(tmp_path).generate(["a calm piano"], GREEDY).codes
    assert int(codes.max()) < SMALL
    assert main(["info", str(tmp_path)]) == 0
    assert convert(["audiocraft", str(tmp_path), str(tmp_path / "out")]) == 0
    assert torch.equal(MusicGen.from_pretrained(tmp_path / "out").generate(["a calm piano"], GREEDY).codes, codes)


def test_the_default_configuration_of_transformers_has_more_codes_than_its_codec() -> None:
    theirs, ours = transformers.MusicgenConfig(), hf.MusicgenConfig()
    for config in (theirs, ours):
        assert (config.decoder.vocab_size, config.audio_encoder.codebook_size) == (2048, 1024)
    sizes: dict[str, dict[str, int]] = {
        "text_encoder": {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        "decoder": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16},
        "audio_encoder": {"num_filters": 2, "hidden_size": 8},
    }
    for part, fields in sizes.items():
        for name, value in fields.items():
            setattr(ours[part], name, value)
    model = hf.MusicgenForConditionalGeneration(ours)
    assert model.generate(input_ids=torch.ones(1, 3, dtype=torch.long), max_new_tokens=5).isfinite().all()
