"""Downloads from the Hub: the files that a model is read from, and nothing else of its repository."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..messages import shown
from ..text import FILES as TOKENIZER_FILES
from . import adapter
from .files import Choice, first_weights, weight_files

# The files beside the weights. They are small, and one class or another reads them.
SMALL = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", *TOKENIZER_FILES,
    adapter.CONFIG,
)  # fmt: skip
CACHED = ["*.json", "*.safetensors", "*.bin", "spiece.model"]  # taken from the cache where the Hub is not reached


def chosen(names: Iterable[str], choice: Choice | None, where: str) -> list[str]:
    """Which of a repository's files, given by their names, are read. Without a choice, these are all but the weights.

    Of sharded weights only the index is named. Raises FileNotFoundError where there are no weights of that choice.
    """
    names = set(names)
    files = [name for name in SMALL if name in names]
    if choice is None:
        return files
    alone = adapter.CONFIG in names and "config.json" not in names
    if not alone:
        files.append(first_weights(names, choice, where))
    if alone or choice.adapter is True:
        files += [name for name in adapter.FILES if name in names][:1]
    return files


def download(
    name: str, choice: Choice | None = None, folder: str | None = None, options: Mapping[str, Any] | None = None
) -> Path:
    """Fetch a model's files from the Hub and return their directory; where the Hub is not reached, that of the files in
    its cache.

    choice: which weights, None for none. folder: a folder inside the repository. options: for huggingface_hub. Raises
    ModuleNotFoundError, saying what to install, without the extra `hub`; what chosen(), weight_files() and
    adapter.find() raise, the last before any weights are fetched; ValueError for a folder that is not inside the
    repository; and what huggingface_hub raises for a repository that is not there.
    """
    try:
        from huggingface_hub import list_repo_files, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name!r} is no directory here; to get it from the Hub: pip install 'musicgen-ref[hub]'", name=error.name
        ) from error
    options = dict(options or {})
    inside = PurePosixPath(folder or "")
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"subfolder must be a folder inside the repository, got {shown(folder, 200)}")
    prefix = f"{inside}/" if inside.parts else ""

    def fetch(files: Iterable[str]) -> Path:
        return Path(snapshot_download(name, allow_patterns=[prefix + file for file in files], **options)) / inside

    if options.get("local_files_only"):
        return fetch(CACHED)
    try:
        place = {key: value for key, value in options.items() if key in ("revision", "token")}
        listing = list_repo_files(name, **place)
    except HfHubHTTPError:  # the Hub answered: there is no such repository, or not for this user
        raise
    except Exception:  # the Hub did not answer: without a network, or offline, any of many errors is raised
        options["local_files_only"] = True
        return fetch(CACHED)
    files = chosen((file.removeprefix(prefix) for file in listing if file.startswith(prefix)), choice, name)
    weights = [file for file in files if file not in SMALL]
    path = fetch(file for file in files if file in SMALL or file.endswith(".json"))
    if choice is None:
        return path
    if choice.adapter is None and (path / "config.json").exists():
        adapter.find(path, None)  # raises for an adapter before the weights are fetched, which may take long
    if weights and weights[0].endswith(".json"):
        weights[:1] = [file.name for file in weight_files(path, choice)]
    return fetch(weights) if weights else path
