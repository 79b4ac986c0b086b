"""From a name to a directory: a path, "demo", or a model id on the Hub."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..checkpoint import DEMO, beside

# What from_pretrained() takes on the way to the files. The second row says how to load, which does not matter here.
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")
IGNORED = ("low_cpu_mem_usage", "use_safetensors", "trust_remote_code", "use_fast", "variant", "weights_only")
WANTED = ["*.json", "*.safetensors", "*.bin", "spiece.model"]


def save_json(path: str | PathLike[str], name: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file into a directory, which is made if need be; the file is there when it is complete."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with beside(folder) as new:
        (new / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def directory(name: str | PathLike[str], options: Mapping[str, Any]) -> Path:
    """The directory of a checkpoint: `name` if it is one, the package's own for "demo", else a download from the Hub.

    options: those of HUB, passed to huggingface_hub. Raises FileNotFoundError for what is no directory and cannot be a
    model id; ModuleNotFoundError, saying what to install, for a model id without the extra `hub`.
    """
    if name == "demo":
        return DEMO
    path = Path(name)
    if path.is_dir():
        return path
    parts = str(name).split("/")
    if not isinstance(name, str) or len(parts) > 2 or path.is_absolute() or parts[0] in ("", ".", "..", "~"):
        raise FileNotFoundError(f"no such checkpoint directory: {name}")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name!r} is no directory here; to get it from the Hub: pip install 'musicgen-ref[hub]'", name=error.name
        ) from error
    wanted: dict[str, Any] = {key: value for key, value in options.items() if key in HUB and value is not None}
    return Path(snapshot_download(name, allow_patterns=WANTED, **wanted))
