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

# Arguments of from_pretrained() that have to do with files.
DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # passed on to huggingface_hub
HUB = (*DOWNLOAD, "subfolder")  # where the files are
CHOICE = ("variant", "use_safetensors", "adapter")  # which weights: fields of Choice
IGNORED = ("low_cpu_mem_usage", "trust_remote_code", "use_fast", "weights_only")  # how to load: no difference here


def save_json(path: str | PathLike[str], name: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file into a directory, which is made if it does not exist; the file appears when it is complete."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with beside(folder) as new:
        (new / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_push(push_to_hub: bool) -> None:
    """Raise ValueError where a call of save_pretrained() asks for an upload."""
    if push_to_hub:
        raise ValueError("push_to_hub must be False: a directory is written, which huggingface_hub can upload")


def read_choice(options: Mapping[str, Any]) -> Choice:
    """The choice of weights in the arguments of from_pretrained()."""
    return Choice(**{name: options[name] for name in CHOICE if name in options})


def directory(name: str | PathLike[str], options: Mapping[str, Any], choice: Choice | None = None) -> Path:
    """The directory of a checkpoint: `name` itself if it is a directory, the package's own for "demo", or else a
    download of the model id `name` from the Hub. If the options name a subfolder, it is the subfolder in there.

    options: of these the ones in HUB are used. choice: which weights are downloaded, None for none. Raises
    FileNotFoundError for a name that is no directory and cannot be a model id, and as hub.download() does.
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
