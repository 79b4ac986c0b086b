"""Checkpoint directories: which layouts load, what is refused and in what words, what save_pretrained() writes."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, EncodecFeatureExtractor, MusicgenForConditionalGeneration
from transformers import MusicgenConfig as TheirConfig

from musicgen_ref import GenerationOptions, MusicGen, checkpoint
from musicgen_ref.checkpoint import atomic, huggingface, mapping
from musicgen_ref.text import Tokenizer
from tests import tiny

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN, INF = float("nan"), float("inf")
EMBED = "text_encoder.encoder.embed_tokens.weight"
SHARED = "text_encoder.shared.weight"
FIRST_G = "audio_encoder.encoder.layers.0.conv.parametrizations.weight.original0"


class Made(NamedTuple):
    model: MusicgenForConditionalGeneration
    folder: Path  # where transformers saved it; not to be written to


@pytest.fixture(scope="module", params=tiny.KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    model, folder = tiny.musicgen(**tiny.KINDS[request.param]), tmp_path_factory.mktemp("made")
    model.save_pretrained(folder)
    return Made(model, folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that transformers saved; not to be written to."""
    path = tmp_path_factory.mktemp("saved") / "model"
    tiny.musicgen().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reference(saved: Path) -> dict[str, Tensor]:
    """Our tensors of that directory."""
    return MusicGen.from_pretrained(saved).state_dict()


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of that directory, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_config(folder: Path, **sections: Any) -> None:
    """Change config.json: the fields of a section where a dict is given, else the entry itself."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for name, value in sections.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_bin(folder: Path, content: Any = None) -> Path:
    """Replace model.safetensors by a pytorch_model.bin of `content`, or of the same tensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors if content is None else content, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def write_shards(folder: Path, suffix: str = "safetensors") -> list[Path]:
    """Replace model.safetensors by three shards and their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-{i:05}-of-00003.{suffix}" for i in (1, 2, 3)]
    weight_map = {name: names[i % 3] for i, name in enumerate(tensors)}
    for name in names:
        part = {key: tensors[key] for key in tensors if weight_map[key] == name}
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return [folder / name for name in names]


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, dtypes and bits."""
    same = [torch.equal(state[name], other[name]) and state[name].dtype == other[name].dtype for name in state]
    return state.keys() == other.keys() and all(same)


def refused(path: str | Path, *words: Any, error: type[Exception] = ValueError, **arguments: Any) -> str:
    """Loading raises exactly this error, whose message has all the words."""
    with pytest.raises(error) as caught:
        MusicGen.from_pretrained(path, **arguments)
    assert caught.type is error
    message = str(caught.value)
    assert not [word for word in words if str(word) not in message], message
    return message


# What loads


def test_what_transformers_saves_computes_the_same(made: Made) -> None:
    own = MusicGen.from_pretrained(str(made.folder))
    assert not own.training
    tiny.assert_equal(made.model, own)


def test_the_weights_asked_for_are_those_that_are_loaded(folder: Path, reference: dict[str, Tensor]) -> None:
    name = "decoder.lm_heads.1.weight"
    tensors = load_file(folder / "model.safetensors")
    for add, file in ((1, "pytorch_model.bin"), (2, "model.fp32.safetensors")):
        changed = tensors | {name: tensors[name] + add}
        save_file(changed, folder / file) if file.endswith("s") else torch.save(changed, folder / file)
    head = reference["decoder.heads.1.weight"]
    for add, choice in ((0, {}), (1, {"use_safetensors": False}), (2, {"variant": "fp32"})):
        loaded = checkpoint.load(folder, **choice).decoder.heads[1].weight  # type: ignore[arg-type]
        assert torch.equal(loaded, head + add), choice


def test_tensors_are_read_to_the_device_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be one alone, and a tensor on "cpu:0" says that it is on "cpu": it is seen what is asked for."""
    asked, read = [], mapping.read

    def watched(like: Any, pieces: Any, tensors: Any, device: Any, mapped: bool) -> dict[str, Tensor]:
        asked.append(device)
        return read(like, pieces, tensors, device, mapped)

    monkeypatch.setattr(mapping, "read", watched)
    MusicGen.from_pretrained(folder, device="cpu:0")
    assert asked and set(asked) == {"cpu:0"}


def test_the_hubs_layout_computes_the_same(folder: Path, reference: dict[str, Tensor]) -> None:
    tiny.hub_layout(folder)
    assert {"torch_dtype"} < json.loads((folder / "config.json").read_text()).keys() and "dropout" not in (
        json.loads((folder / "config.json").read_text())["decoder"]
    )
    own = MusicGen.from_pretrained(folder)
    assert equal(own.state_dict(), reference)
    tiny.assert_equal(MusicgenForConditionalGeneration.from_pretrained(folder), own)


def old_norm_names(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".parametrizations." in name]:
        stem, number = name.split(".parametrizations.weight.original")
        tensors[f"{stem}.weight_{'gv'[int(number)]}"] = tensors.pop(name)


def both_norm_names(tensors: dict[str, Tensor]) -> None:
    now = dict(tensors)
    old_norm_names(tensors)
    tensors |= {name: tensor.clone() for name, tensor in now.items()}


def stored_positions(tensors: dict[str, Tensor]) -> None:
    tensors["decoder.model.decoder.embed_positions.weights"] = torch.randn(100, 32)


def only_the_other_embedding(tensors: dict[str, Tensor]) -> None:
    tensors[EMBED] = tensors.pop(SHARED)


def both_embeddings(tensors: dict[str, Tensor]) -> None:
    tensors[EMBED] = tensors[SHARED].clone()


@pytest.mark.parametrize(
    "edit", [old_norm_names, both_norm_names, stored_positions, only_the_other_embedding, both_embeddings]
)
def test_an_older_spelling_of_the_tensors_loads(
    edit: Callable[[dict[str, Tensor]], Any], folder: Path, reference: dict[str, Tensor]
) -> None:
    edit_tensors(folder, edit)
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


@pytest.mark.parametrize("name", [EMBED, FIRST_G.replace(".parametrizations.weight.original0", ".weight_g")])
def test_two_spellings_of_one_tensor_that_differ_are_refused(name: str, folder: Path) -> None:
    now = SHARED if name == EMBED else FIRST_G
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[now] + 1}))
    refused(folder, folder / "model.safetensors", name, now)


def test_a_field_that_is_left_out_has_the_default_of_transformers() -> None:
    kinds = {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": "musicgen_decoder"}
    short = {"model_type": "musicgen"} | {name: {"model_type": kind} for name, kind in kinds.items()}
    full = TheirConfig(**{name: AutoConfig.for_model(kind).to_dict() for name, kind in kinds.items()}).to_dict()
    assert {len(full[name]) > 10 for name in kinds} == {True}
    assert huggingface.read_config(short, "") == huggingface.read_config(full, "")


def test_shards_of_transformers_load(folder: Path, reference: dict[str, Tensor]) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1 and not (folder / "model.safetensors").exists()
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


def test_a_bin_file_loads(folder: Path, reference: dict[str, Tensor]) -> None:
    to_bin(folder)
    own = MusicGen.from_pretrained(folder)
    assert equal(own.state_dict(), reference)
    tiny.assert_equal(MusicgenForConditionalGeneration.from_pretrained(folder), own)


def test_shards_of_bin_files_load(folder: Path, reference: dict[str, Tensor]) -> None:
    write_shards(folder, "bin")
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


def test_safetensors_come_before_a_bin_file(folder: Path, reference: dict[str, Tensor]) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


def test_a_directory_of_links_loads(folder: Path, tmp_path: Path, reference: dict[str, Tensor]) -> None:
    links = tmp_path / "snapshot"  # as huggingface_hub's cache has it
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    assert equal(MusicGen.from_pretrained(links).state_dict(), reference)


def test_no_generation_config_and_no_processor_are_needed(folder: Path, reference: dict[str, Tensor]) -> None:
    (folder / "generation_config.json").unlink()
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


def write_processor(folder: Path, nested: bool, **fields: Any) -> Path:
    """What transformers 4 (preprocessor_config.json) or 5 (nested, in processor_config.json) writes."""
    extractor = EncodecFeatureExtractor(**{"feature_size": 1, "sampling_rate": tiny.RATE} | fields)
    content = json.loads(extractor.to_json_string())
    file = folder / ("processor_config.json" if nested else "preprocessor_config.json")
    file.write_text(json.dumps({"feature_extractor": content} if nested else content))
    return file


@pytest.mark.parametrize("layouts", [[False], [True], [False, True]], ids=["version 4", "version 5", "both"])
def test_a_processor_that_agrees_loads(layouts: list[bool], folder: Path, reference: dict[str, Tensor]) -> None:
    for nested in layouts:
        write_processor(folder, nested)
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


@pytest.mark.parametrize("nested", [False, True], ids=["version 4", "version 5"])
@pytest.mark.parametrize("field, value", [("sampling_rate", 24000), ("feature_size", 12)])
def test_another_models_processor_leaves_the_model_alone(
    nested: bool, field: str, value: int, folder: Path, reference: dict[str, Tensor]
) -> None:
    write_processor(folder, nested, **{field: value})
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"feature_extractor": 3}', '{"sampling_rate": null}', '{"sampling_rate": ']
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_a_damaged_processor_leaves_the_model_alone(
    name: str, content: str, folder: Path, reference: dict[str, Tensor]
) -> None:
    (folder / name).write_text(content)
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)


@pytest.mark.parametrize(
    "stored, dtype",
    [*((torch.float32, dtype) for dtype in DTYPES), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_dtype_is_that_of_transformers_model(stored: torch.dtype, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.musicgen().to(stored).save_pretrained(tmp_path)
    own = MusicGen.from_pretrained(tmp_path, dtype=dtype)
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).state_dict()
    single = MusicgenForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)

    state = own.state_dict()
    configs = own.text_encoder.config, own.decoder.config, own.codec.config
    pieces = mapping.expand(huggingface.table(*configs), {name: tuple(t.shape) for name, t in state.items()})
    for name, tensor in mapping.collect(state, pieces).items():
        if pieces[name].norm is None:
            assert torch.equal(tensor, theirs[name]), name
            # In float16 transformers 5 keeps the T5 outputs that overflow in float32.
            wide = dtype == torch.float16 and name.endswith("DenseReluDense.wo.weight")
            assert tensor.dtype == theirs[name].dtype == (torch.float32 if wide else dtype), name
    # transformers normalises in the model's dtype at run time; ours are what it computes in float32, rounded once.
    convolutions = [name for name in state if re.fullmatch(r"codec\..+\.conv\.weight", name)]
    assert len(convolutions) == 2 * 8
    for name in convolutions:
        module = re.sub(r"^codec\.(encoder|decoder)", r"audio_encoder.\1.layers", name).removesuffix(".weight")
        assert torch.equal(state[name], single.get_submodule(module).weight.detach().to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64, "float32", None], ids=str)
def test_another_dtype_is_refused(dtype: Any, folder: Path) -> None:
    refused(folder, "dtype", dtype, "float32", "bfloat16", "float16", dtype=dtype)


@pytest.mark.parametrize(
    "device", ["gpu", "", "cuda" if not torch.cuda.is_available() else "cuda:99", None, 1.5], ids=str
)
def test_a_device_that_is_not_there_is_refused(device: Any, folder: Path) -> None:
    refused(folder, "device", device, device=device)


def test_loading_and_saving_change_nothing_global(folder: Path, tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        flags = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_device()
        return *flags, torch.get_rng_state().tolist(), Path.cwd(), dict(os.environ)

    before = state()
    MusicGen.from_pretrained(folder, dtype=torch.float16).save_pretrained(tmp_path / "copy")
    assert state() == before


def overwrite(file: Path) -> None:
    """In place: what is only mapped into memory changes with it."""
    size = file.stat().st_size
    with file.open("r+b") as open_file:
        open_file.write(b"\xff" * size)


@pytest.mark.parametrize("bin_file, dtype", [(True, torch.float32), (False, torch.bfloat16), (False, "int8")], ids=str)
def test_weights_that_are_not_as_in_the_file_are_the_models_own(bin_file: bool, dtype: Any, folder: Path) -> None:
    file = to_bin(folder) if bin_file else folder / "model.safetensors"
    own = MusicGen.from_pretrained(folder, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    overwrite(file)
    assert equal(own.state_dict(), before)
    assert all(parameter.requires_grad for parameter in own.parameters())


def test_weights_that_are_as_in_the_file_are_mapped(folder: Path, reference: dict[str, Tensor]) -> None:
    mapped = MusicGen.from_pretrained(folder)
    assert all(parameter.requires_grad for parameter in mapped.parameters())
    overwrite(folder / "model.safetensors")
    assert not equal(mapped.state_dict(), reference)


def test_training_a_mapped_model_leaves_the_file_alone(folder: Path) -> None:
    model = MusicGen.from_pretrained(folder)
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert (folder / "model.safetensors").read_bytes() == before
    assert equal(
        {name: tensor / 2 for name, tensor in model.named_parameters()},
        dict(MusicGen.from_pretrained(folder).named_parameters()),
    )


def test_a_mapped_model_outlives_its_file(folder: Path, reference: dict[str, Tensor]) -> None:
    model = MusicGen.from_pretrained(folder)
    changed = MusicGen.from_pretrained(folder)
    with torch.no_grad():
        changed.decoder.norm.weight.add_(1)
    changed.save_pretrained(folder)  # moves a new file into the place of the mapped one
    assert equal(model.state_dict(), reference)
    model.save_pretrained(folder)
    assert equal(MusicGen.from_pretrained(folder).state_dict(), reference)
    shutil.rmtree(folder)
    assert equal(model.state_dict(), reference)


@pytest.mark.parametrize("spaces", range(9))
def test_tensors_that_begin_anywhere_in_the_file_load(spaces: int, folder: Path, reference: dict[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    head = content[8 : 8 + length] + b" " * spaces
    file.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    model = MusicGen.from_pretrained(folder)
    assert equal(model.state_dict(), reference)
    # What begins where its dtype may not lie in memory is copied: torch assumes that it may, and so do its kernels.
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in model.state_dict().values())


OFFLINE = """
import json, socket, sys
import einops, numpy, safetensors.torch, sentencepiece, torch
known = set(sys.modules)  # what the dependencies bring along is theirs

def blocked(*arguments, **named):
    raise AssertionError("a socket was opened")

socket.socket = socket.create_connection = socket.getaddrinfo = blocked
from musicgen_ref import GenerationOptions, MusicGen
imported = sorted(set(sys.modules) - known)
model = MusicGen.from_pretrained(sys.argv[1])
assert model.generate(["rain"], GenerationOptions(frames=3)).audio.shape == (1, 1, 24)
model.save_pretrained(sys.argv[2])
print(json.dumps([imported, sorted(set(sys.modules) - known)]))
"""
EXTRAS = {"transformers", "tokenizers", "huggingface_hub", "soundfile", "soxr", "tqdm", "scipy", "matplotlib"}


def test_everything_works_offline_and_without_any_extra(tmp_path: Path) -> None:
    for name in EXTRAS - {"matplotlib"}:  # there, so that an import of it would not go unseen
        assert importlib.util.find_spec(name) is not None
    tiny.musicgen(text={"vocab_size": 200}).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "spiece.model").write_bytes(tiny.spiece())
    command = [sys.executable, "-c", OFFLINE, str(tmp_path / "model"), str(tmp_path / "copy")]
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert run.returncode == 0, run.stderr
    imported, worked = ({name.partition(".")[0] for name in names} for names in json.loads(run.stdout))
    assert "musicgen_ref" in imported and "weights_convert" not in worked
    assert not EXTRAS & imported and not EXTRAS & worked


# What is refused: tensors


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(folder: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["decoder.lm_heads.4.weight"] = torch.zeros(64, 32)
        tensors["text_encoder.decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(3)
        del tensors["enc_to_dec_proj.bias"], tensors[FIRST_G]
        tensors["decoder.lm_heads.0.weight"] = torch.zeros(64, 31)
        tensors["audio_encoder.quantizer.layers.1.codebook.embed"] = torch.zeros(1, 64, 16)

    edit_tensors(folder, edit)
    message = refused(folder, folder, "2 left over: decoder.lm_heads.4.weight, text_encoder.decoder.block.0.")
    assert f"2 missing: {FIRST_G}, enc_to_dec_proj.bias" in message
    assert (
        "2 of a wrong shape: audio_encoder.quantizer.layers.1.codebook.embed (1, 64, 16), expected (64, 16)" in message
    )
    assert "decoder.lm_heads.0.weight (64, 31), expected (64, 32)" in message


def test_a_layer_too_many_or_too_few_is_refused(folder: Path) -> None:
    edit_config(folder, decoder={"num_hidden_layers": 1}, text_encoder={"num_layers": 3})
    message = refused(folder, "decoder.model.decoder.layers.1.fc1.weight", "text_encoder.encoder.block.2.layer.1.")
    assert "16 left over" in message and "8 missing" in message


MANY = {
    "text_encoder": {"num_layers": 500},
    "decoder": {"num_hidden_layers": 500},
    "audio_encoder": {"num_lstm_layers": 30},
    "audio_encoder ": {"num_residual_layers": 30},
}


@pytest.mark.parametrize("section", MANY)
def test_a_model_of_many_more_tensors_than_there_are_is_refused_before_it_is_built(section: str, folder: Path) -> None:
    """Whose number is told, with few of them not counted, none that is not there."""
    edit_config(folder, **{section.strip(): MANY[section]})
    file = folder / "config.json"
    with torch.device("meta"):
        held = len(MusicGen(*huggingface.read_config(json.loads(file.read_text()), str(file))).state_dict())
    save_file({}, folder / "model.safetensors")
    message = refused(folder, f"{file}: describes a model of ", " tensors or more, the files hold 0")
    told = int(message.split(" a model of ")[1].split()[0])
    assert 0.8 * held < told <= held


def test_the_wrong_feed_forward_is_refused(folder: Path) -> None:
    edit_config(folder, text_encoder={"feed_forward_proj": "gated-gelu"})
    refused(folder, "2 left over", "DenseReluDense.wi.weight", "4 missing", "wi_0.weight", "wi_1.weight")


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(tiny.spiece())
    assert Tokenizer.from_directory(folder).vocab_size > tiny.VOCAB
    refused(folder, folder, "tokenizer", "vocab_size", tiny.VOCAB)


# What is refused: configurations


@pytest.fixture
def config_folder(saved: Path, tmp_path: Path) -> Path:
    """A directory with config.json and nothing else: what it says is checked before any weights are looked for."""
    shutil.copy(saved / "config.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"model_type": "musicgen", ',
        b"hello",
        b"[]",
        b"3",
        b"null",
        b'"musicgen"',
        b"\xff\xfe{}",
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_config_that_is_no_object_is_refused(content: bytes, config_folder: Path) -> None:
    (config_folder / "config.json").write_bytes(content)
    refused(config_folder, config_folder / "config.json")


@pytest.mark.parametrize("value", ["t5", "musicgen_melody", "encodec", "", None, 3, ["musicgen"]], ids=repr)
def test_another_model_type_is_refused(value: Any, config_folder: Path) -> None:
    edit_config(config_folder, model_type=value)
    refused(config_folder, config_folder / "config.json", "model_type", repr(value), "musicgen")


@pytest.mark.parametrize("section", ["text_encoder", "audio_encoder", "decoder"])
@pytest.mark.parametrize("value", ["absent", None, [], "t5", 3, True], ids=repr)
def test_a_section_that_is_absent_or_no_object_is_refused(section: str, value: Any, config_folder: Path) -> None:
    edit_config(config_folder, **{section: value})
    if value == "absent":
        config = json.loads((config_folder / "config.json").read_text())
        del config[section]
        (config_folder / "config.json").write_text(json.dumps(config))
    refused(config_folder, config_folder / "config.json", section)


@pytest.mark.parametrize("section", ["text_encoder", "audio_encoder", "decoder"])
@pytest.mark.parametrize("value", ["dac", "musicgen", None, 3, ["t5"]], ids=repr)
def test_another_kind_of_part_is_refused(section: str, value: Any, config_folder: Path) -> None:
    edit_config(config_folder, **{section: {"model_type": value}})
    refused(config_folder, config_folder / "config.json", section, "model_type", repr(value))


WHOLE = {
    "text_encoder": "vocab_size d_model num_layers num_heads d_kv d_ff relative_attention_num_buckets "
    "relative_attention_max_distance",
    "decoder": "vocab_size num_codebooks audio_channels hidden_size num_hidden_layers num_attention_heads ffn_dim",
    "audio_encoder": "sampling_rate audio_channels num_filters hidden_size codebook_size kernel_size last_kernel_size "
    "residual_kernel_size num_residual_layers dilation_growth_rate compress num_lstm_layers",
}
REAL = {
    "text_encoder": "dropout_rate layer_norm_epsilon",
    "decoder": "dropout attention_dropout activation_dropout layerdrop",
    "audio_encoder": "trim_right_ratio",
}
NOT_WHOLE = ["8", True, 8.0, 8.5, NAN, None, [8], {}, 0, -8]
NOT_REAL = ["0.5", True, NAN, INF, None, [0.5], {}, -0.5, 1.5, 10**400]
NOT_A_SWITCH = [0, 1, "true", None, []]
BAD: dict[tuple[str, str], list[Any]] = {
    **{(section, field): NOT_WHOLE for section, fields in WHOLE.items() for field in fields.split()},
    **{(section, field): NOT_REAL for section, fields in REAL.items() for field in fields.split()},
    ("text_encoder", "feed_forward_proj"): ["gated-silu", "gated-relu", "gelu", "", None, 3, ["relu"]],
    ("decoder", "activation_function"): ["tanh", "", None, 3, ["gelu"]],
    ("audio_encoder", "norm_type"): ["batch_norm", "", None, 3],
    ("audio_encoder", "pad_mode"): ["circular", "", None, 3],
    ("audio_encoder", "use_causal_conv"): NOT_A_SWITCH,
    ("audio_encoder", "normalize"): NOT_A_SWITCH,
    ("audio_encoder", "use_conv_shortcut"): NOT_A_SWITCH,
    ("audio_encoder", "upsampling_ratios"): [4, "42", None, [], ["4"], [4.0], [True], [0], [-2], {}],
    ("audio_encoder", "target_bandwidths"): [
        1.2,
        "1.2",
        None,
        [],
        ["1.2"],
        [True],
        [0],
        [-1.2],
        [NAN],
        [INF],
        [0.001],
        {},
    ],
    ("audio_encoder", "codebook_dim"): [8, "16", 16.5],
    ("audio_encoder", "chunk_length_s"): ["1", True, [1.0], 0, -1, NAN, INF, 10**400],
    ("audio_encoder", "overlap"): ["0.1", True, [0.1], -0.1, 1.0, NAN, INF, 10**400],
}
# Possible alone, impossible beside the rest of the tiny model.
UNFIT = [
    ("text_encoder", "relative_attention_num_buckets", 30),
    ("text_encoder", "relative_attention_max_distance", 8),
    ("decoder", "num_attention_heads", 5),
    ("decoder", "num_attention_heads", 64),
    ("decoder", "audio_channels", 3),
    ("audio_encoder", "codebook_size", 63),
    ("audio_encoder", "compress", 5),  # there are 4 filters
    ("audio_encoder", "trim_right_ratio", 0.5),  # the convolutions are not causal
]
for section, field, value in UNFIT:
    BAD[section, field] = [*BAD[section, field], value]


@pytest.mark.parametrize("section, field", BAD)
def test_an_impossible_value_is_refused_by_file_and_field(section: str, field: str, config_folder: Path) -> None:
    # What goes with a field follows it, so that the field alone is wrong.
    beside: dict[str, dict[str, Any]] = {
        "audio_encoder.chunk_length_s": {"overlap": 0.1},
        "audio_encoder.overlap": {"chunk_length_s": 1.0},
        "audio_encoder.hidden_size": {"codebook_dim": None},
    }
    wrong = []
    for value in BAD[section, field]:
        if (section, field) == ("decoder", "vocab_size"):
            beside["decoder.vocab_size"] = {"pad_token_id": value, "bos_token_id": value}
        edit_config(config_folder, **{section: beside.get(f"{section}.{field}", {}) | {field: value}})
        got = "loaded"
        try:
            MusicGen.from_pretrained(config_folder)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        if not got.startswith(f"ValueError: {config_folder / 'config.json'}: ") or f"{section}.{field}" not in got:
            wrong.append((value, got))
    assert wrong == []


@pytest.mark.parametrize("field", ["text_encoder.num_layers", "decoder.hidden_size", "decoder.vocab_size"])
def test_a_size_beyond_any_machine_is_refused_before_the_weights(field: str, config_folder: Path) -> None:
    section, name = field.split(".")
    edit_config(config_folder, **{section: {name: 2**62}})
    refused(config_folder, config_folder / "config.json", field, 2**62)


MOST = {
    "text_encoder": {"num_layers": 512},
    "decoder": {"num_hidden_layers": 512, "num_codebooks": 256},
    "audio_encoder": {"num_residual_layers": 32, "num_lstm_layers": 32},
}


@pytest.mark.parametrize("section, field", [(section, field) for section, fields in MOST.items() for field in fields])
def test_a_model_of_more_modules_than_can_be_built_in_time_is_refused(
    section: str, field: str, config_folder: Path
) -> None:
    edit_config(config_folder, **{section: {field: MOST[section][field]}})
    file = config_folder / "config.json"
    configs = huggingface.read_config(json.loads(file.read_text()), str(file))  # which builds nothing
    assert MOST[section][field] in [value for config in configs for value in vars(config).values()]
    edit_config(config_folder, **{section: {field: MOST[section][field] + 1}})
    refused(config_folder, file, f"{section}.{field} must be at most {MOST[section][field]}")


def test_a_name_of_any_length_is_refused_in_short(config_folder: Path) -> None:
    for length in (101, 100_000):
        edit_config(config_folder, audio_encoder={"pad_mode": "x" * length})
        with pytest.raises(ValueError, match=r"audio_encoder\.pad_mode must be a short name, got 'x+") as error:
            MusicGen.from_pretrained(config_folder)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "section, fields, named",
    [
        ("decoder", {"num_codebooks": 5}, "decoder.num_codebooks"),
        ("decoder", {"num_codebooks": 3, "audio_channels": 2}, "decoder.audio_channels"),
        ("audio_encoder", {"audio_channels": 2}, "audio_encoder.audio_channels"),
        ("audio_encoder", {"normalize": True}, "audio_encoder.normalize"),
        ("audio_encoder", {"chunk_length_s": 1.0, "overlap": 0.1}, "audio_encoder.chunk_length_s"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_together_are_refused(
    section: str, fields: dict[str, Any], named: str, folder: Path
) -> None:
    edit_config(folder, **{section: fields})
    refused(folder, folder / "config.json", *named.split())


@pytest.mark.parametrize("field", ["pad_token_id", "bos_token_id"])
def test_a_special_token_that_is_another_code_is_refused(field: str, folder: Path) -> None:
    edit_config(folder, decoder={field: 3})  # ours has vocab_size there, always
    refused(folder, folder / "config.json", f"decoder.{field}", 3)


# What is refused: files


@pytest.mark.parametrize("name", ["absent", "a file", "facebook/musicgen-small", ""])
def test_a_directory_that_is_not_there_is_file_not_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("not a directory")
    refused(name, name, error=FileNotFoundError)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_there_is_file_not_found(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refused(folder, folder, name, error=FileNotFoundError)
    (folder / name).mkdir()
    refused(folder, folder, name, error=FileNotFoundError)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_shard_that_is_not_there_is_file_not_found(suffix: str, folder: Path) -> None:
    shard = write_shards(folder, suffix)[1]
    shard.unlink()
    refused(folder, shard, error=FileNotFoundError)


@pytest.mark.parametrize(
    "where", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", 3, None, ["x"]]
)
def test_a_shard_outside_the_directory_is_refused(where: Any, folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "x.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "sub" / "x.safetensors")
    write_shards(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {SHARED: where}}))
    refused(folder, index, "weight_map", repr(where))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": 3}', '{"weight_']
)
def test_a_malformed_index_is_refused(content: str, folder: Path) -> None:
    write_shards(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    refused(folder, index)


def huge_header(content: bytes) -> bytes:
    return (2**60).to_bytes(8, "little") + content[8:]


def broken_header(content: bytes) -> bytes:
    return content[:8] + b"}" * 100 + content[108:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "four bytes": lambda content: content[:4],
    "cut in its head": lambda content: content[:100],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut at its end": lambda content: content[:-1],
    "a pointer of git lfs": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "text": lambda content: b"hello" * 1000,
    "header beyond the file": huge_header,
    "header no json": broken_header,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_damaged_safetensors_are_refused(damage: str, sharded: bool, folder: Path) -> None:
    file = write_shards(folder)[1] if sharded else folder / "model.safetensors"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    refused(folder, file)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if not name.startswith("header")])
def test_a_damaged_bin_file_is_refused(damage: str, folder: Path) -> None:
    file = to_bin(folder)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    refused(folder, file)


@pytest.mark.parametrize(
    "content",
    [[1, 2], "weights", 3, torch.zeros(3), {"a": 1}, {"state_dict": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}],
    ids=repr,
)
def test_a_bin_file_of_something_else_is_refused(content: Any, folder: Path) -> None:
    to_bin(folder, content)
    refused(folder, folder)


class Program:
    """Unpickled, it would make a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["torch.save", "pickle"])
def test_a_program_in_a_bin_file_is_refused_and_never_runs(form: str, folder: Path, tmp_path: Path) -> None:
    content = {SHARED: Program(tmp_path / "it ran")}
    file = to_bin(folder, content)
    if form == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    refused(folder, file)
    assert not (tmp_path / "it ran").exists()
    torch.load(file, weights_only=False) if form == "torch.save" else pickle.loads(file.read_bytes())
    assert (tmp_path / "it ran").exists()  # it would have


# What is written


def test_what_we_save_transformers_opens_whole(made: Made, tmp_path: Path) -> None:
    own = MusicGen.from_pretrained(made.folder)
    own.save_pretrained(tmp_path / "ours")
    opened, info = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {name: list(value) for name, value in info.items() if value} == {}
    tiny.assert_equal(opened, own)

    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "ours", made.folder))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}


def test_every_field_that_decides_a_number_is_written(made: Made, tmp_path: Path) -> None:
    MusicGen.from_pretrained(made.folder).save_pretrained(tmp_path)
    written = TheirConfig.from_pretrained(tmp_path)
    # Bookkeeping of transformers that decides no number here: where a model starts to generate is in
    # generation_config.json, which version 5 also reads.
    ignored = {"decoder": {"decoder_start_token_id", "is_decoder"}, "text_encoder": {"num_decoder_layers"}}
    for name in ("text_encoder", "audio_encoder", "decoder"):
        expected, got = (getattr(config, name).to_dict() for config in (made.model.config, written))
        differing = {field for field in expected.keys() | got.keys() if expected.get(field) != got.get(field)}
        assert differing <= ignored.get(name, set()), name
    assert (written.model_type, written.is_encoder_decoder) == ("musicgen", True)
    assert written.sampling_rate == made.model.config.sampling_rate == tiny.RATE


def test_a_configuration_says_what_other_readers_look_for(made: Made) -> None:
    """Also what transformers has a default for."""
    theirs = made.model.config.to_dict()
    written = huggingface.write_config(*huggingface.read_config(theirs, ""), "float32")
    assert written["architectures"] == ["MusicgenForConditionalGeneration"] and written["dtype"] == "float32"
    assert (written["model_type"], written["is_encoder_decoder"]) == ("musicgen", True)
    kinds = {"text_encoder": "t5", "audio_encoder": "encodec", "decoder": "musicgen_decoder"}
    assert {name: written[name]["model_type"] for name in kinds} == kinds
    decoder = written["decoder"]
    assert decoder["max_position_embeddings"] == theirs["decoder"]["max_position_embeddings"] == 2048
    assert decoder["pad_token_id"] == decoder["bos_token_id"] == theirs["decoder"]["vocab_size"]
    assert decoder["is_decoder"] is True
    text = written["text_encoder"]
    assert (text["is_encoder_decoder"], text["pad_token_id"], text["eos_token_id"]) == (False, 0, 1)


def test_generation_starts_where_transformers_checkpoints_do(folder: Path) -> None:
    MusicGen.from_pretrained(folder).save_pretrained(folder)
    generation = MusicgenForConditionalGeneration.from_pretrained(folder).generation_config
    special = generation.decoder_start_token_id, generation.pad_token_id, generation.bos_token_id
    assert special == (tiny.CODES,) * 3
    # What the Hub's files say, with 50 frames a second for 30 seconds.
    assert (generation.do_sample, generation.guidance_scale, generation.max_length) == (True, 3.0, 1500)


def check_round_trip(folder: Path, dtype: torch.dtype, copy: Path) -> None:
    first = MusicGen.from_pretrained(folder, dtype=dtype)
    first.save_pretrained(copy)
    second = MusicGen.from_pretrained(copy, dtype=dtype)
    assert [name for name, t in first.state_dict().items() if not torch.equal(t, second.state_dict()[name])] == []
    assert equal(first.state_dict(), second.state_dict())
    for part in ("text_encoder", "decoder", "codec"):
        assert getattr(first, part).config == getattr(second, part).config
    assert TheirConfig.from_pretrained(copy).dtype == dtype


def test_a_round_trip_keeps_every_bit(made: Made, tmp_path: Path) -> None:
    check_round_trip(made.folder, torch.float32, tmp_path / "copy")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_round_trip_in_half_precision_keeps_every_bit(dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    check_round_trip(folder, dtype, tmp_path / "copy")


def test_saving_leaves_the_model_as_it_was(folder: Path, reference: dict[str, Tensor], tmp_path: Path) -> None:
    own = MusicGen.from_pretrained(folder)
    own.train().save_pretrained(tmp_path / "copy")
    assert own.training and equal(own.state_dict(), reference)
    assert all(parameter.requires_grad for parameter in own.parameters())


def test_a_filter_of_zeros_survives(folder: Path, tmp_path: Path) -> None:
    own = MusicGen.from_pretrained(folder)
    with torch.no_grad():  # a filter that training or pruning has switched off has no direction
        own.codec.encoder[0].conv.weight[2] = 0
        own.codec.decoder[3].conv.weight[1] = 0
    own.save_pretrained(tmp_path / "copy")
    assert equal(MusicGen.from_pretrained(tmp_path / "copy").state_dict(), own.state_dict())
    tiny.assert_equal(MusicgenForConditionalGeneration.from_pretrained(tmp_path / "copy"), own)


def test_paths_may_be_strings_and_relative(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = MusicGen.from_pretrained(folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    own.save_pretrained("model")
    own.save_pretrained(".")
    assert equal(MusicGen.from_pretrained("model").state_dict(), own.state_dict())
    assert equal(MusicGen.from_pretrained(".").state_dict(), own.state_dict())
    files = {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in Path("model").iterdir()} == files
    assert {file.name for file in Path.cwd().iterdir()} == files | {"model"}
    assert {file.name for file in tmp_path.iterdir()} == {"model", "work"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def another(seed: int = 1) -> MusicGen:
    return tiny.ours(tiny.musicgen(seed=seed))


def test_saving_over_a_model_replaces_it(folder: Path) -> None:
    (folder / "notes.txt").write_text("the user's")
    own = another()
    own.save_pretrained(folder)
    assert equal(MusicGen.from_pretrained(folder).state_dict(), own.state_dict())
    assert (folder / "notes.txt").read_text() == "the user's"
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_saving_beside_weights_of_another_name_is_refused(name: str, folder: Path) -> None:
    (folder / name).write_text("{}")
    before = contents(folder)
    with pytest.raises(ValueError, match=re.escape(name)):
        another().save_pretrained(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("leftover", ["processor", "tokenizer"])
def test_saving_over_another_kind_of_model_never_leaves_what_does_not_load(leftover: str, folder: Path) -> None:
    own = tiny.ours(tiny.musicgen(codebooks=8, channels=2))
    if leftover == "processor":
        write_processor(folder, nested=True)  # of a mono model
    else:
        (folder / "spiece.model").write_bytes(tiny.spiece())  # of a model with more text ids
    before = contents(folder)
    try:
        own.save_pretrained(folder)
    except ValueError:
        assert contents(folder) == before
    else:
        assert equal(MusicGen.from_pretrained(folder).state_dict(), own.state_dict())


def test_saving_where_there_is_no_directory_above_is_file_not_found(folder: Path, tmp_path: Path) -> None:
    own = MusicGen.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "absent"))):
        own.save_pretrained(tmp_path / "absent" / "model")
    assert not (tmp_path / "absent").exists()


def test_saving_over_a_file_is_refused_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = MusicGen.from_pretrained(folder)
    (tmp_path / "file").write_text("the user's")

    def started(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the tensors were written")

    monkeypatch.setattr(checkpoint, "write_weights", started)
    with pytest.raises(ValueError, match="path"):
        own.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "the user's"


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_everything_as_it_was(
    error: type[BaseException], existing: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = another()
    target = folder if existing else folder.parent / "new"
    before = contents(folder.parent)

    def fail(new: Path, *arguments: Any) -> None:
        (new / "model.safetensors").write_bytes(b"half a file")
        raise error("the disk is full")

    monkeypatch.setattr(checkpoint, "write_weights", fail)
    with pytest.raises(error):
        own.save_pretrained(target)
    assert contents(folder.parent) == before
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_a_failure_while_moving_into_place_leaves_everything_as_it_was(
    existing: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = another()
    target = folder if existing else folder.parent / "new"
    before = contents(folder.parent)
    for last in count(1):  # Ctrl-C at the first move, at the second, ... until there are no more
        moves = 0

        def stopped(owner: Any, name: str, last: int = last) -> Callable[..., None]:
            move = getattr(owner, name)

            def moved(*arguments: Any, **named: Any) -> None:
                nonlocal moves
                moves += 1
                if moves == last:
                    raise KeyboardInterrupt
                move(*arguments, **named)

            return moved

        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "rename"), (atomic, "_exchange")):
                patch.setattr(owner, name, stopped(owner, name))
            try:
                own.save_pretrained(target)
            except KeyboardInterrupt:
                assert contents(folder.parent) == before, f"stopped at move {last}"
                assert [file.name for file in folder.parent.iterdir()] == [folder.name]
            else:
                break
    assert last > 1
    assert equal(MusicGen.from_pretrained(target).state_dict(), own.state_dict())


# With a tokenizer


TEXTS = ["a calm piano", "loud drums", "rain </s> <extra_id_3> Ω", ""]


@pytest.fixture
def with_tokenizer(tmp_path: Path) -> MusicGen:
    tiny.musicgen(text={"vocab_size": 200}).save_pretrained(tmp_path / "with")
    (tmp_path / "with" / "spiece.model").write_bytes(tiny.spiece())
    return MusicGen.from_pretrained(tmp_path / "with")


def test_transformers_opens_the_processor_we_save(with_tokenizer: MusicGen, tmp_path: Path) -> None:
    with_tokenizer.save_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(processor).__name__ == "MusicgenProcessor"
    extractor = processor.feature_extractor
    assert (extractor.feature_size, extractor.sampling_rate, extractor.padding_side) == (1, tiny.RATE, "left")
    inputs = processor(text=TEXTS, padding=True, return_tensors="pt")
    ids, mask = MusicGen.from_pretrained(tmp_path / "ours").tokenizer(TEXTS)
    assert torch.equal(inputs.input_ids, ids)
    assert torch.equal(inputs.attention_mask.bool(), mask)
    model = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "ours")
    audio = model.generate(**inputs, do_sample=False, guidance_scale=3.0, max_new_tokens=9)
    options = GenerationOptions(greedy=True, **tiny.clip(0, 9, 4))
    assert torch.equal(with_tokenizer.generate(TEXTS, options).audio, audio)


def test_the_processor_of_transformers_loads(with_tokenizer: MusicGen, tmp_path: Path) -> None:
    with_tokenizer.save_pretrained(tmp_path / "ours")
    model = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    AutoProcessor.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "processor_config.json").exists()
    assert not (tmp_path / "theirs" / "spiece.model").exists()
    own = MusicGen.from_pretrained(tmp_path / "theirs")
    for got, expected in zip(own.tokenizer(TEXTS), with_tokenizer.tokenizer(TEXTS), strict=True):
        assert torch.equal(got, expected)


def test_loading_leaves_torchs_compiler_alone(tmp_path: Path) -> None:
    # torch imports it to draw numbers without memory and to give modules memory: seconds that loading does not need.
    tiny.musicgen().save_pretrained(tmp_path)
    program = f"""
import sys
from musicgen_ref import MusicGen
MusicGen.from_pretrained({str(tmp_path)!r})
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout == "[]\n"


# The authors' layout


def test_a_model_is_saved_in_the_authors_layout_too(tmp_path: Path) -> None:
    tiny.musicgen(text={"vocab_size": 200}, decoder={"ffn_dim": 64}).save_pretrained(tmp_path / "with")
    (tmp_path / "with" / "spiece.model").write_bytes(tiny.spiece())
    with_tokenizer = MusicGen.from_pretrained(tmp_path / "with")
    with_tokenizer.save_pretrained(tmp_path / "release", layout="audiocraft")
    names = sorted(file.name for file in (tmp_path / "release").iterdir())
    assert names == ["compression_state_dict.bin", "state_dict.bin", "t5-base"]
    again = MusicGen.from_pretrained(tmp_path / "release")
    for name, tensor in with_tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    options = GenerationOptions(frames=5, greedy=True)
    assert torch.equal(again.generate(TEXTS, options).audio, with_tokenizer.generate(TEXTS, options).audio)
    with_tokenizer.save_pretrained(tmp_path / "release", layout="audiocraft")  # over what was there
    assert sorted(file.name for file in (tmp_path / "release").iterdir()) == names
    with_tokenizer.save_pretrained(tmp_path / "model")
    for path, layout, message in (
        (tmp_path / "model", "audiocraft", "holds other weights, .*config.json"),
        (tmp_path / "new", "lightning", r"layout must be one of \('transformers', 'audiocraft'\), got 'lightning'"),
    ):
        with pytest.raises(ValueError, match=message):
            with_tokenizer.save_pretrained(path, layout=layout)
    assert not (tmp_path / "new").exists()
