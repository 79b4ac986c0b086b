"""LoRA adapters: what is merged equals what peft computes with the same files; everything else is refused by name."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from musicgen_ref import GenerationOptions, MusicGen, hf
from musicgen_ref.__main__ import main as command
from tests import release, tiny
from weights_convert.__main__ import main as convert
from weights_convert.convert import from_huggingface, to_audiocraft

TARGETS = [
    "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "enc_to_dec_proj",
    *(f"{name}.{k}" for name in ("embed_tokens", "lm_heads") for k in range(4)),
]  # fmt: skip
NEW = 12  # frames
# Sums of four matrices in another order: peft adds W x and s B (A x), we multiply by W + s B A.
CLOSE = {"rtol": 0, "atol": 1e-4}


def randomize(model: Any, seed: int = 0) -> Any:
    """Draw both matrices of every adapter, so that each changes much of what its layer computes."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data.normal_(0, 0.25, generator=generator)
    return model


def adapted(kind: Any, base: Path, folder: Path, **fields: Any) -> Any:
    """peft's model of a directory with a random adapter, which is saved into another directory."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS} | fields)
    model = randomize(peft.get_peft_model(tiny.opened(kind, base), config)).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Of a padded batch, from transformers' model, peft's or the facade's."""
    ids, mask = tiny.text(2)
    given = tiny.noise(8, 9, seed=3).mul(100).long() % 256
    return model(input_ids=ids, attention_mask=mask, decoder_input_ids=given, use_cache=False).logits


@torch.no_grad()
def our_logits(model: MusicGen) -> Tensor:
    ids, mask = tiny.text(2)
    given = tiny.noise(8, 9, seed=3).mul(100).long() % 256
    return model.decoder(given.view(2, 4, 9), *model.encode_text((ids, mask))).flatten(0, 1)


def greedy(model: MusicGen) -> Tensor:
    return model.generate(tiny.text(2), GenerationOptions(frames=NEW, greedy=True)).codes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.musicgen_of(256, text={"vocab_size": 200}, decoder={"ffn_dim": 64}).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(tiny.spiece())
    return folder


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter in a directory of its own."""
    folder = tmp_path_factory.mktemp("alone")
    adapted(transformers.MusicgenForConditionalGeneration, base, folder)
    return folder


@pytest.fixture(scope="module")
def beside(base: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and an adapter in one directory, as fine-tunes are uploaded."""
    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("beside") / "model"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(alone / name, folder)
    return folder


@pytest.fixture(scope="module")
def theirs(base: Path, alone: Path) -> Any:
    model = tiny.opened(transformers.MusicgenForConditionalGeneration, base)
    return peft.PeftModel.from_pretrained(model, alone).eval()


@pytest.fixture(scope="module")
def merged(beside: Path) -> MusicGen:
    return MusicGen.from_pretrained(beside, adapter=True)


def test_a_merged_adapter_computes_what_peft_computes(theirs: Any, merged: MusicGen, base: Path) -> None:
    expected, unloaded = logits(theirs), copy.deepcopy(theirs).merge_and_unload()
    torch.testing.assert_close(our_logits(merged), expected, **CLOSE)
    torch.testing.assert_close(our_logits(merged), logits(unloaded), **CLOSE)
    plain = MusicGen.from_pretrained(base)
    assert (our_logits(plain) - expected).abs().max() > 1
    ids, mask = tiny.text(2)
    arguments = {"do_sample": False, "guidance_scale": 3.0, "max_new_tokens": NEW + 3}  # 3 columns of the delay
    for model in (theirs.base_model.model, unloaded):
        codes = tiny.theirs(model, input_ids=ids, attention_mask=mask, **arguments)[0]
        assert torch.equal(greedy(merged), codes)
    assert not torch.equal(greedy(merged), greedy(plain))


def test_every_weight_is_the_sum_rounded_once(base: Path, alone: Path, theirs: Any) -> None:
    unloaded = copy.deepcopy(theirs).merge_and_unload().state_dict()
    saved = load_file(alone / "adapter_model.safetensors")
    layer = "decoder.model.decoder.layers.1.fc1"
    a, b = (saved[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
    expected = load_file(base / "model.safetensors")[f"{layer}.weight"] + 6 / 4 * (b @ a)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours = MusicGen.from_pretrained(base, adapter=alone, dtype=dtype).decoder.blocks[1].fc1.weight
        assert torch.equal(ours, expected.to(dtype))
    torch.testing.assert_close(expected, unloaded[f"{layer}.weight"], rtol=0, atol=1e-6)


def test_what_is_not_changed_stays_in_the_file(merged: MusicGen, base: Path, alone: Path, tmp_path: Path) -> None:
    plain = MusicGen.from_pretrained(base).state_dict()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, plain[name])}
    kinds = ("embed", "heads", "text_proj.weight", "attn.q", "attn.k", "attn.v", "attn.out", "fc1", "fc2")
    assert changed == {name for name in plain if name.startswith("decoder.") and any(k in name for k in kinds)}

    def mapped(**load: Any) -> set[str]:
        """What changes with the bytes of the file."""
        folder = Path(shutil.copytree(base, tmp_path / str(len(load))))
        state = MusicGen.from_pretrained(folder, **load).state_dict()
        before = {name: tensor.clone() for name, tensor in state.items()}
        with (folder / "model.safetensors").open("r+b") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            size = file.seek(0, 2)
            file.seek(begin)
            file.write(bytes(size - begin))
        return {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}

    assert mapped(adapter=alone) == mapped() - changed > {"decoder.norm.weight", "text_encoder.embed.weight"}


def test_int8_rounds_what_was_merged(beside: Path, merged: MusicGen) -> None:
    small = MusicGen.from_pretrained(beside, adapter=True, dtype="int8")
    for ours, full in ((small.decoder.blocks[0].fc1, merged.decoder.blocks[0].fc1),
                       (small.decoder.text_proj, merged.decoder.text_proj)):  # fmt: skip
        step = full.weight.abs().amax(1, keepdim=True) / 127
        assert ((ours.weight - full.weight).abs() <= step / 2 * 1.001).all()


@pytest.mark.parametrize("kind", ["safetensors", "bin", "named", "rslora", "fp16", "gaussian", "orthogonal"])
def test_other_files_of_the_same_kind(kind: str, base: Path, tmp_path: Path) -> None:
    """A .bin; keys with the adapter's name; scale over the root of r; half precision; other beginnings."""
    fields: dict[str, Any] = {"rslora": {"use_rslora": True}, "gaussian": {"init_lora_weights": "gaussian"},
                              "orthogonal": {"init_lora_weights": "orthogonal"}}.get(kind, {})  # fmt: skip
    if kind == "orthogonal":
        fields["target_modules"] = ["q_proj", "fc1"]  # it is for linear layers
    model = adapted(transformers.MusicgenForConditionalGeneration, base, tmp_path, **fields)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    if kind == "bin":
        file.unlink()
        torch.save(tensors, tmp_path / "adapter_model.bin")
    if kind == "named":
        names = {key: key.replace("_A.w", "_A.default.w").replace("_B.w", "_B.default.w") for key in tensors}
        names |= {key: f"{key}.default" for key in tensors if "embedding" in key}
        assert all(names[key] != key for key in tensors)
        save_file({names[key]: tensor for key, tensor in tensors.items()}, file)
    if kind == "fp16":
        save_file({key: tensor.half() for key, tensor in tensors.items()}, file)
        model = peft.PeftModel.from_pretrained(
            tiny.opened(transformers.MusicgenForConditionalGeneration, base), tmp_path
        )
    torch.testing.assert_close(our_logits(MusicGen.from_pretrained(base, adapter=tmp_path)), logits(model), **CLOSE)


def test_an_adapter_of_the_text_encoder(base: Path, tmp_path: Path) -> None:
    targets = ["q", "v", "o", "wi", "wo", "encoder.embed_tokens", "relative_attention_bias", "q_proj"]
    model = adapted(transformers.MusicgenForConditionalGeneration, base, tmp_path, target_modules=targets)
    ours = MusicGen.from_pretrained(base, adapter=tmp_path)
    torch.testing.assert_close(our_logits(ours), logits(model), **CLOSE)
    plain = MusicGen.from_pretrained(base).text_encoder
    with torch.no_grad():
        assert (ours.text_encoder(*tiny.text(2)) - plain(*tiny.text(2))).abs().max() > 0.1
    part = hf.T5EncoderModel.from_pretrained(base, adapter=tmp_path)
    assert torch.equal(part.shared.weight, ours.text_encoder.embed.weight)


# The facade


def test_the_facade_merges_leaves_out_and_asks(beside: Path, base: Path, alone: Path, merged: MusicGen) -> None:
    kind, expected = hf.MusicgenForConditionalGeneration, our_logits(merged)
    for folder, given in ((beside, True), (beside, alone), (base, str(alone))):
        assert torch.equal(logits(kind.from_pretrained(folder, adapter=given)), expected)
    assert torch.equal(logits(kind.from_pretrained(beside, adapter=False)), our_logits(MusicGen.from_pretrained(base)))
    pipe = hf.pipeline(model=beside, adapter=True)
    assert torch.equal(pipe.model.core.decoder.heads[2].weight, merged.decoder.heads[2].weight)
    for name in ("MusicgenForConditionalGeneration", "AutoModelForTextToWaveform", "MusicgenForCausalLM",
                 "MusicgenModel", "T5EncoderModel", "EncodecModel"):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"adapter_config.json: an adapter \(LORA\) lies beside the weights: adapter=T"
        ):
            getattr(hf, name).from_pretrained(beside)
    # Nothing of it is in what describes the model, so these open.
    assert hf.AutoConfig.from_pretrained(beside) == hf.AutoConfig.from_pretrained(base)
    assert len(hf.AutoTokenizer.from_pretrained(beside)) == len(hf.AutoProcessor.from_pretrained(base).tokenizer)


def test_a_decoder_by_itself(beside: Path, base: Path, merged: MusicGen, tmp_path: Path) -> None:
    """The whole model's adapter, and one that was trained on the decoder's own directory."""
    part = hf.MusicgenForCausalLM.from_pretrained(beside, adapter=True)
    assert all(torch.equal(t, merged.decoder.state_dict()[n]) for n, t in part.core.state_dict().items())
    hf.MusicgenForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "decoder")
    targets = [name for name in TARGETS if name != "enc_to_dec_proj"]
    theirs = adapted(transformers.MusicgenForCausalLM, tmp_path / "decoder", tmp_path / "own", target_modules=targets)
    codes = tiny.noise(8, 9, seed=3).mul(100).long() % 256
    with torch.no_grad():
        expected = theirs(input_ids=codes, use_cache=False).logits
        for folder in (tmp_path / "decoder", base):  # of the part, and of the whole, where its names are longer
            ours = hf.MusicgenForCausalLM.from_pretrained(folder, adapter=tmp_path / "own")
            torch.testing.assert_close(ours(input_ids=codes).logits, expected, **CLOSE)
    with pytest.raises(ValueError, match=r"enc_to_dec_proj.lora_A.weight changes nothing that is known"):
        hf.MusicgenForCausalLM.from_pretrained(tmp_path / "decoder", adapter=beside)


# Being asked


def test_an_adapter_beside_weights_is_told_of(beside: Path, base: Path) -> None:
    message = (
        rf"{beside}/adapter_config.json: an adapter \(LORA\) lies beside the weights: adapter=True "
        r"\(--adapter\) merges it into them, adapter=False \(--no-adapter\) leaves it out"
    )
    with pytest.raises(ValueError, match=message):
        MusicGen.from_pretrained(beside)
    without, plain = (MusicGen.from_pretrained(folder, adapter=False).state_dict() for folder in (beside, base))
    assert all(torch.equal(without[name], plain[name]) for name in plain)


def test_the_matrices_alone_are_told_of(base: Path, alone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    shutil.copy(alone / "adapter_model.safetensors", folder)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: an adapter \(unknown\) lies beside"):
        MusicGen.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"adapter: no such file: .*model/adapter_config.json"):
        MusicGen.from_pretrained(folder, adapter=True)


def test_an_adapter_that_is_not_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter: no such file: .*adapter_config.json"):
        MusicGen.from_pretrained(base, adapter=True)
    with pytest.raises(FileNotFoundError, match=r"adapter: no such file: .*none/adapter_config.json"):
        MusicGen.from_pretrained(base, adapter=tmp_path / "none")
    with pytest.raises(ValueError, match="adapter must be True, False, None or a directory, got 3"):
        MusicGen.from_pretrained(base, adapter=3)  # type: ignore[arg-type]


def test_an_adapter_alone_names_its_base_and_the_way(alone: Path, base: Path, tmp_path: Path) -> None:
    message = rf"{alone}: holds an adapter alone, .* of the model '{base}': get that .* with adapter='{alone}'"
    openers: list[Callable[[Path], Any]] = [
        MusicGen.from_pretrained, hf.MusicgenForConditionalGeneration.from_pretrained, hf.AutoConfig.from_pretrained,
        hf.MusicgenForCausalLM.from_pretrained, lambda path: from_huggingface(path, tmp_path / "out"),
    ]  # fmt: skip
    for opener in openers:
        with pytest.raises(FileNotFoundError, match=message):
            opener(alone)


def test_audiocraft_with_an_adapter_is_to_be_converted_first(base: Path, alone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(alone, tmp_path / "release"))
    (folder / "compression_state_dict.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="an adapter"):
        MusicGen.from_pretrained(folder)
    with pytest.raises(ValueError, match="adapter and variant are for transformers' layout: convert it first"):
        MusicGen.from_pretrained(folder, adapter=True)


def test_an_adapter_beside_the_t5_of_a_release_is_told_of_and_left_out(alone: Path, tmp_path: Path) -> None:
    release.write(release.model(), tmp_path)
    plain = greedy(MusicGen.from_pretrained(tmp_path))
    shutil.copy(alone / "adapter_config.json", tmp_path / "t5-base")
    with pytest.raises(ValueError, match=r"t5-base/adapter_config.json: an adapter \(LORA\) lies beside the weights"):
        MusicGen.from_pretrained(tmp_path)
    assert torch.equal(greedy(MusicGen.from_pretrained(tmp_path, adapter=False)), plain)


def test_what_is_saved_over_an_adapter_would_be_changed_by_it(beside: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(beside, tmp_path / "model"))
    model = hf.MusicgenForConditionalGeneration.from_pretrained(folder, adapter=True)
    for part in (model, model.decoder, model.text_encoder):
        with pytest.raises(ValueError, match=r"holds an adapter, .*adapter_config.json"):
            part.save_pretrained(folder)
    model.save_pretrained(tmp_path / "other")
    assert torch.equal(logits(hf.MusicgenForConditionalGeneration.from_pretrained(tmp_path / "other")), logits(model))


# Conversion and the command lines


def test_a_conversion_merges_and_leaves_no_adapter(beside: Path, base: Path, merged: MusicGen, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an adapter"):
        from_huggingface(beside, tmp_path / "asked")
    assert not (tmp_path / "asked").exists()
    assert convert(["huggingface", str(beside), str(tmp_path / "merged"), "--adapter"]) == 0
    assert convert(["huggingface", str(beside), str(tmp_path / "without"), "--no-adapter"]) == 0
    assert convert(["huggingface", str(base), str(tmp_path / "other"), "--adapter", str(beside)]) == 0
    to_audiocraft_of(beside, tmp_path / "audiocraft")
    for name, expected in (("merged", merged), ("other", merged), ("without", MusicGen.from_pretrained(base))):
        names = {file.name for file in (tmp_path / name).iterdir()}
        assert names >= {"config.json", "spiece.model", "model.safetensors"}
        assert not [file for file in names if file.startswith("adapter")]
        state = MusicGen.from_pretrained(tmp_path / name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in expected.state_dict().items())
    assert torch.equal(greedy(MusicGen.from_pretrained(tmp_path / "audiocraft")), greedy(merged))


def to_audiocraft_of(source: Path, target: Path) -> None:
    with pytest.raises(ValueError, match="an adapter"):
        to_audiocraft(source, target)
    assert convert(["to-audiocraft", str(source), str(target), "--adapter"]) == 0


def test_a_conversion_to_half_rounds_the_sum_once(beside: Path, base: Path, alone: Path, tmp_path: Path) -> None:
    from_huggingface(beside, tmp_path / "half", dtype=torch.bfloat16, adapter=True)
    state = MusicGen.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).state_dict()
    expected = MusicGen.from_pretrained(beside, adapter=True, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())
    # Half weights with an adapter keep their dtype.
    from_huggingface(base, tmp_path / "base", dtype=torch.float16)
    from_huggingface(tmp_path / "base", tmp_path / "merged", adapter=alone)
    assert {t.dtype for n, t in load_file(tmp_path / "merged" / "model.safetensors").items() if "fc1" in n} == {
        torch.float16
    }


def test_the_command_line(beside: Path, alone: Path, base: Path, tmp_path: Path, capsys: Any) -> None:
    def made(name: str, *arguments: str) -> bytes:
        file = tmp_path / name
        fixed = ["generate", "a calm piano", "--seconds", "1", "--greedy", "-o", str(file)]
        return file.read_bytes() if command([*fixed, *arguments]) == 0 else b""

    assert made("0.wav", "--model", str(beside)) == b""
    assert "--adapter" in capsys.readouterr().err
    sums = (
        made("1.wav", "--model", str(beside), "--adapter"),
        made("2.wav", "--model", str(base), "--adapter", str(alone)),
    )
    plain = made("3.wav", "--model", str(beside), "--no-adapter"), made("4.wav", "--model", str(base))
    assert sums[0] == sums[1] != plain[0] == plain[1] != b""


# Refusals

FIELDS: dict[str, tuple[str, Any]] = {
    "another kind": ("peft_type", "IA3"),
    "DoRA": ("use_dora", True),
    "biases": ("bias", "all"),
    "a bias of B": ("lora_bias", True),
    "whole modules": ("modules_to_save", ["lm_heads"]),
    "ranks by name": ("rank_pattern", {"q_proj": 2}),
    "alphas by name": ("alpha_pattern", {"q_proj": 2}),
    "turned weights": ("fan_in_fan_out", True),
    "repeated layers": ("layer_replication", [[0, 2], [1, 2]]),
    "parameters": ("target_parameters", ["x"]),
    "tokens": ("trainable_token_indices", [3]),
    "invocation": ("alora_invocation_tokens", [3]),
    "PiSSA": ("init_lora_weights", "pissa"),
    "PiSSA, quick": ("init_lora_weights", "pissa_niter_16"),
    "OLoRA": ("init_lora_weights", "olora"),
    "LoftQ": ("init_lora_weights", "loftq"),
    "CorDA": ("init_lora_weights", "corda"),
    "LoRA-GA": ("init_lora_weights", "lora_ga"),
    "a number": ("init_lora_weights", 1),
    "no rank": ("r", 0),
    "half a rank": ("r", 4.0),
    "alpha": ("lora_alpha", "6"),
    "an endless alpha": ("lora_alpha", float("inf")),
    "an alpha too large": ("lora_alpha", 2**31),
    "an alpha too small": ("lora_alpha", -(2**31)),
    "a rank too large": ("r", 2**31),
    "rslora": ("use_rslora", "yes"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_anything_but_plain_lora_is_refused_by_field_and_value(
    case: str, base: Path, alone: Path, tmp_path: Path
) -> None:
    field, value = FIELDS[case]
    folder = Path(shutil.copytree(alone, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert field in config
    (folder / "adapter_config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError) as error:
        MusicGen.from_pretrained(base, adapter=folder)
    for part in (f"{folder / 'adapter_config.json'}: {field} must be", f"got {value!r}"):
        assert part in str(error.value)


def test_fields_that_change_nothing_are_passed_over(beside: Path, base: Path, merged: MusicGen, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(beside, tmp_path / "adapter"))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6.0, "task_type": "CAUSAL_LM", "lora_dropout": 0.3, "new": [1]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert torch.equal(our_logits(MusicGen.from_pretrained(base, adapter=folder)), our_logits(merged))


@pytest.mark.parametrize("alpha", [2**31 - 1, 1 - 2**31, 64, 0.5, 0])
def test_alpha_may_be_any_number_of_reasonable_size(alpha: float, base: Path, alone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(alone, tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    layer = "decoder.model.decoder.layers.1.fc1"
    a, b = (load_file(alone / "adapter_model.safetensors")[f"base_model.model.{layer}.lora_{s}.weight"] for s in "AB")
    expected = load_file(base / "model.safetensors")[f"{layer}.weight"] + alpha / 4 * (b @ a)
    part = hf.MusicgenForCausalLM.from_pretrained(base, adapter=folder)
    assert torch.equal(part.core.state_dict()["blocks.1.fc1.weight"], expected)


LAYER = "base_model.model.decoder.model.decoder.layers.0"
EMBED = "base_model.model.decoder.model.decoder.embed_tokens.0"
TENSORS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "unknown layer": ({"base_model.model.decoder.model.decoder.layers.9.fc1.lora_A.weight": torch.ones(4, 32)},
                      "layers.9.fc1.lora_A.weight changes nothing that is known"),
    "unknown kind": ({f"{LAYER}.fc1.lora_magnitude_vector": torch.ones(64)}, "lora_magnitude_vector changes nothing"),
    "a bias": ({f"{LAYER}.fc1.bias": torch.ones(64)}, "fc1.bias changes nothing that is known"),
    "no A": ({f"{LAYER}.fc1.lora_A.weight": None}, "fc1.lora_B.weight has no A beside it"),
    "no B": ({f"{LAYER}.fc1.lora_B.weight": None}, "fc1.lora_A.weight has no B beside it"),
    "width": ({f"{LAYER}.fc1.lora_A.weight": torch.ones(4, 33)},
              r"fc1.lora_A.weight must be \(4, 32\) for .*fc1.weight \(64, 32\) and r 4, is \(4, 33\)"),
    "rank": ({f"{LAYER}.fc1.lora_A.weight": torch.ones(3, 32), f"{LAYER}.fc1.lora_B.weight": torch.ones(64, 3)},
             r"fc1.lora_A.weight must be \(4, 32\) .*; .*fc1.lora_B.weight must be \(64, 4\)"),
    "twice": ({f"{LAYER}.fc1.lora_A.other.weight": torch.ones(4, 32)}, "is a second A for decoder"),
    "a norm": ({f"{LAYER}.final_layer_norm.lora_A.weight": torch.ones(4, 32),
                f"{LAYER}.final_layer_norm.lora_B.weight": torch.ones(32, 4)}, "is not what a change of .*norm.weight"),
    "a table as a layer": ({f"{EMBED}.lora_embedding_A": None, f"{EMBED}.lora_embedding_B": None,
                            f"{EMBED}.lora_A.weight": torch.ones(4, 32), f"{EMBED}.lora_B.weight": torch.ones(257, 4)},
                           "is not what a change of .*embed_tokens.0.weight"),
    "the codec": ({"base_model.model.audio_encoder.decoder.layers.0.conv.lora_A.weight": torch.ones(4, 16, 7)},
                  "audio_encoder.decoder.layers.0.conv.lora_A.weight is of the codec, whose weights are normed"),
    "T5's other table": ({"base_model.model.text_encoder.shared.lora_embedding_A": torch.ones(4, 200)},
                         "shared.lora_embedding_A is of a table that only its other name"),
    "integers": ({f"{LAYER}.fc1.lora_A.weight": torch.ones(4, 32, dtype=torch.int64)}, "must be floating point"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_every_tensor_is_accounted_for(case: str, base: Path, alone: Path, tmp_path: Path) -> None:
    changes, message = TENSORS[case]
    folder = Path(shutil.copytree(alone, tmp_path / "adapter"))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    with pytest.raises(ValueError, match=rf"{file}: the adapter does not fit the model: .*{message}"):
        MusicGen.from_pretrained(base, adapter=folder)


def test_an_adapter_of_nothing_is_refused(base: Path, alone: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(alone, tmp_path / "adapter"))
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="it has no tensors"):
        MusicGen.from_pretrained(base, adapter=folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*adapter_model.safetensors"):
        MusicGen.from_pretrained(base, adapter=folder)
