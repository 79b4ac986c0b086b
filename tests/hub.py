"""The Hub, as a directory here: a fake huggingface_hub, and tiny models laid out as those of each year lie there."""

import copy
import fnmatch
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny

# What two of the authors' repositories hold.
SMALL = (
    ".gitattributes", "README.md", "compression_state_dict.bin", "config.json", "generation_config.json",
    "model.safetensors", "preprocessor_config.json", "pytorch_model.bin", "special_tokens_map.json", "spiece.model",
    "state_dict.bin", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
STEREO_SMALL = (*SMALL, "model.fp32.safetensors", "pytorch_model.fp32.bin")


class Hub:
    """huggingface_hub's two functions that are called, over directories here: a repository's files, and a download of
    those that match, into a cache.

    listed: the repositories whose files were asked for; asked: the files of each download; calls: its other arguments.
    offline: nothing answers.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, repositories: dict[str, Path]):
        self.cache, self.repositories, self.offline = cache, repositories, False
        self.listed: list[str] = []
        self.asked: list[set[str]] = []
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr("huggingface_hub.list_repo_files", self.list_repo_files)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)

    @property
    def files(self) -> set[str]:
        """All that was downloaded since the last time this was read."""
        asked, self.asked = set[str]().union(*self.asked), []
        return asked

    def list_repo_files(self, repo_id: str, *, revision: str | None = None, token: Any = None) -> list[str]:
        if self.offline:
            raise ConnectionError("no network")
        self.listed.append(repo_id)
        return self.names(repo_id)

    def names(self, repo_id: str) -> list[str]:
        """The files of a repository."""
        folder = self.repositories[repo_id]
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: Sequence[str], local_files_only: bool = False, **options: Any
    ) -> str:
        snapshot = self.cache / repo_id.replace("/", "--")
        if local_files_only:
            if not snapshot.is_dir():
                raise FileNotFoundError(f"not in the cache: {repo_id}")
            return str(snapshot)
        wanted = {
            name for name in self.names(repo_id) if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
        }
        for name in wanted:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.repositories[repo_id] / name, snapshot / name)
        self.asked.append(wanted)
        self.calls.append(options)
        return str(snapshot)


def repository(model: Path, folder: Path, names: Sequence[str]) -> Path:
    """A repository of these names around a model's directory: weights of every format and variant, the rest of no
    use."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.startswith("model.") and name.endswith(".safetensors"):
            shutil.copyfile(model / "model.safetensors", folder / name)
        elif name.startswith("pytorch_model."):
            torch.save(load_file(model / "model.safetensors"), folder / name)
        elif (model / name).exists():
            shutil.copyfile(model / name, folder / name)
        else:
            (folder / name).write_bytes(b"{}" if name.endswith(".json") else b"")
    return folder


def shards(tensors: dict[str, torch.Tensor], folder: Path, stem: str = "model", variant: str = "") -> None:
    """Weights in two files with an index, as transformers names them; stem: model or pytorch_model."""
    end = "safetensors" if stem == "model" else "bin"
    dot = variant and f".{variant}"
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    weight_map = {}
    for i, half in enumerate(halves, start=1):
        name = f"{stem}{dot}-{i:05}-of-00002.{end}"
        if end == "bin":
            torch.save(half, folder / name)
        else:
            save_file(half, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(half, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{end}.index{dot}.json").write_text(json.dumps(index))


# The layouts of the years. What is written here was seen in published directories; every value that the model does not
# depend on is another than a reader could take by mistake.

# Every configuration up to 4.46 spelled these out, in each of its sections.
SPELLED_OUT: dict[str, Any] = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
    "begin_suppress_tokens": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0, "eos_token_id": None, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None,
    "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tie_word_embeddings": True, "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": None,
    "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
SECTIONS = {
    "text_encoder": transformers.T5Config,
    "audio_encoder": transformers.EncodecConfig,
    "decoder": transformers.MusicgenDecoderConfig,
}
TASKS = {
    "summarization": {"early_stopping": True, "length_penalty": 2.0, "max_length": 200, "min_length": 30}
    | {"no_repeat_ngram_size": 3, "num_beams": 4, "prefix": "summarize: "},
    **{
        f"translation_en_to_{to}": {"early_stopping": True, "max_length": 300, "num_beams": 4, "prefix": f"to {to}: "}
        for to in ("de", "fr", "ro")
    },
}


def spelled_out(config: dict[str, Any], version: str, **top: Any) -> dict[str, Any]:
    """A configuration in which every section says all."""
    config = copy.deepcopy(config)
    for name, kind in SECTIONS.items():
        own = {key: value for key, value in kind().to_dict().items() if key not in ("dtype", "transformers_version")}
        section = SPELLED_OUT | own | config[name] | {"transformers_version": version, "torch_dtype": None}
        config[name] = {key: value for key, value in section.items() if key != "dtype"}
    config["text_encoder"] |= {
        "_name_or_path": "t5-base", "architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0,
        "is_encoder_decoder": True, "n_positions": 512, "output_past": True, "task_specific_params": TASKS,
        "use_cache": True,
    }  # fmt: skip
    config["audio_encoder"] |= {"_name_or_path": "facebook/encodec_32khz", "architectures": ["EncodecModel"]}
    config["decoder"] |= {"classifier_dropout": 0.0, "tie_word_embeddings": False}
    config.pop("dtype", None)
    return config | {"_commit_hash": None, "is_encoder_decoder": True, "transformers_version": version} | top


def short(config: dict[str, Any], version: str, **top: Any) -> dict[str, Any]:
    """A configuration whose sections leave out what equals a default."""
    config = copy.deepcopy(config)
    for name, kind in SECTIONS.items():
        default = kind().to_dict()
        config[name] = {
            key: value
            for key, value in config[name].items()
            if key == "model_type" or (key != "dtype" and (key not in default or default[key] != value))
        }
    config.pop("dtype", None)
    return config | {"transformers_version": version} | top


def of_2023(tensors: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Weights as torch before 2.1 names those with a norm, with the table of positions."""
    spelled = {"original0": "weight_g", "original1": "weight_v"}
    out = {}
    for name, tensor in tensors.items():
        stem, *norm = name.split(".parametrizations.weight.")
        out[f"{stem}.{spelled[norm[0]]}" if norm else name] = tensor
    # Of another table: whoever reads it is found out.
    return out | {
        "decoder.model.decoder.embed_positions.weights": tiny.noise(2048, width).to(tensors["enc_to_dec_proj.bias"])
    }


def write_bin(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """With both names of T5's embedding, which safetensors do not take."""
    shared = tensors["text_encoder.shared.weight"]
    torch.save(tensors | {"text_encoder.encoder.embed_tokens.weight": shared}, file)


YEARS = ("4.31", "4.31, fine-tuned", "4.36 stereo", "4.46", "4.57", "5.23")


def published(plain: Path, folder: Path, year: str) -> Path:
    """A model's directory, as transformers 5 saves it, in the layout of a year: configuration, names and formats of
    the weights, generation, processor, tokenizer, and what lies beside them."""
    folder.mkdir(parents=True)
    config = json.loads((plain / "config.json").read_text())
    tensors = load_file(plain / "model.safetensors")
    codes, width = config["decoder"]["vocab_size"], config["decoder"]["hidden_size"]
    ids = dict.fromkeys(("bos_token_id", "decoder_start_token_id", "pad_token_id"), codes)
    generation = ids | {"do_sample": True, "guidance_scale": 3.0, "max_length": 1500, "transformers_version": year}
    if year.startswith("4.31"):
        config = spelled_out(config, "4.31.0.dev0", torch_dtype="float32")
        del config["decoder"]["audio_channels"]
        tensors = of_2023(tensors, width)
        generation = {"_from_model_config": True, **ids, "transformers_version": "4.31.0.dev0"}
        write_bin(tensors, folder / "pytorch_model.bin")
    elif year == "4.36 stereo":
        config = spelled_out(config, "4.36.0.dev0", torch_dtype="float16")
        config["audio_encoder"]["torch_dtype"] = "float32"
        tensors = of_2023(tensors, width)
        save_file(tensors, folder / "model.fp32.safetensors", {"format": "pt"})
        write_bin(tensors, folder / "pytorch_model.fp32.bin")
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        write_bin(tensors, folder / "pytorch_model.bin")
    elif year == "4.46":
        config = spelled_out(config, "4.46.3", torch_dtype="float32", _attn_implementation_autoset=True)
        for name in SECTIONS:
            config[name]["_attn_implementation_autoset"] = name != "audio_encoder"
        tensors["decoder.model.decoder.embed_positions.weights"] = tiny.noise(2048, width)
    elif year == "4.57":
        config = short(config, "4.57.6", torch_dtype="float32")
    else:
        config = short(config, "5.23.0", dtype="float32")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = transformers.T5Tokenizer.from_pretrained(plain)
    tokenizer.save_pretrained(folder)
    shutil.copy(plain / "spiece.model", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": 1000000000000000019884624838656, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    processor = {
        "chunk_length_s": None, "feature_extractor_type": "EncodecFeatureExtractor", "overlap": None,
        "feature_size": json.loads((plain / "config.json").read_text())["decoder"]["audio_channels"],
        "padding_side": "left", "padding_value": 0.0, "processor_class": "MusicgenProcessor",
        "return_attention_mask": True, "sampling_rate": config["audio_encoder"].get("sampling_rate", 24000),
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    beside(folder, "fine-tuned" in year)
    return folder


def beside(folder: Path, trained: bool) -> None:
    """What else lies in published directories: the authors' files, or the stub of one; what a training left."""
    (folder / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "README.md").write_text("# A model\n")
    torch.save({"xp.cfg": "", "best_state": {}}, folder / "state_dict.bin")
    stub = {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.2.0a2"}
    torch.save(stub, folder / "compression_state_dict.bin")
    if trained:
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {"decoder.lm_heads.0.weight": "model-00001-of-00002.safetensors"},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "trainer_state.json").write_text(json.dumps({"best_metric": None, "epoch": 3.0}))
        for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
            (folder / name).write_bytes(b"not read")
