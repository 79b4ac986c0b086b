"""The Hub, as a directory here: a fake huggingface_hub, and tiny models laid out as those of each year lie there."""

import fnmatch
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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

    asked: the files of each download; calls: its other arguments. offline: nothing answers.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, repositories: dict[str, Path]):
        self.cache, self.repositories, self.offline = cache, repositories, False
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
        names = self.list_repo_files(repo_id)
        wanted = {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)}
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
