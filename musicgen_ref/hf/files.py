"""From a name to a directory: a path, "demo", or a model id on the Hub."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from .. import checks
from ..checkpoint import DEMO, hub
from ..checkpoint.atomic import beside
from ..checkpoint.files import Choice

# What from_pretrained() takes on the way to the files: of huggingface_hub; all that says where they are; which weights;
# how to load, which does not matter here.
DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "revision", "token")
HUB = (*DOWNLOAD, "subfolder")
CHOICE = ("variant", "use_safetensors", "adapter")  # the fields of Choice that callers have a say in
IGNORED = ("low_cpu_mem_usage", "trust_remote_code", "use_fast", "weights_only")


def save_json(path: str | PathLike[str], name: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file into a directory, which is made if need be; the file is there when it is complete."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with beside(folder) as new:
        (new / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_choice(options: Mapping[str, Any]) -> Choice:
    """Which weights are asked for."""
    return Choice(**{name: options[name] for name in CHOICE if name in options})


def directory(name: str | PathLike[str], options: Mapping[str, Any], choice: Choice | None = None) -> Path:
    """The directory of a checkpoint: `name` if it is one, the package's own for "demo", else a download from the Hub;
    or the subfolder in it that the options name.

    options: those of HUB count. choice: of the weights that are downloaded, None for none. Raises FileNotFoundError for
    what is no directory and cannot be a model id, and as hub.download() does.
    """
    checks.paths(name=name)
    subfolder = options.get("subfolder") or ""
    path = DEMO if name == "demo" else Path(name)
    if path.is_dir():
        if not (path / subfolder).is_dir():
            raise FileNotFoundError(f"no such checkpoint directory: {path / subfolder}")
        return path / subfolder
    parts = str(name).split("/")
    if not isinstance(name, str) or len(parts) > 2 or path.is_absolute() or parts[0] in ("", ".", "..", "~"):
        raise FileNotFoundError(f"no such checkpoint directory: {name}")
    wanted = {key: value for key, value in options.items() if key in DOWNLOAD and value is not None}
    return hub.download(name, choice, subfolder, wanted)
