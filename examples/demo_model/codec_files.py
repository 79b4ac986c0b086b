"""Files of the codec's training: the codec itself, and the picture of its loss."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from musicgen_ref import MusicGen
from musicgen_ref.encodec import Encodec, EncodecConfig


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside path, then move it into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_codec(codec: Encodec, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
    """Write codec.safetensors, its state dict in dtype, and codec.json, its configuration, into an existing folder."""
    folder = Path(folder)
    state = {name: tensor.detach().to(dtype).contiguous() for name, tensor in codec.state_dict().items()}
    replace(folder / "codec.safetensors", lambda path: save_file(state, path, {"format": "pt"}))
    config = json.dumps(asdict(codec.config), indent=2) + "\n"
    replace(folder / "codec.json", partial(Path.write_text, data=config, encoding="utf-8"))


def load_codec(folder: str | os.PathLike[str]) -> Encodec:
    """The codec that save_codec wrote, or that of a MusicGen's directory or "demo"; float32, in eval mode.

    Raises FileNotFoundError where it is not there.
    """
    if str(folder) == "demo" or (Path(folder) / "config.json").exists():
        return MusicGen.from_pretrained(str(folder)).codec
    folder = Path(folder)
    fields = json.loads((folder / "codec.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    codec = Encodec(EncodecConfig(**config))
    codec.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "codec.safetensors").items()})
    return codec.eval()


def plot(folder: str | os.PathLike[str]) -> None:
    """Draw loss and SI-SDR over steps, as logged in folder/log.jsonl, to folder/loss.png. Needs matplotlib."""
    from matplotlib.figure import Figure

    folder = Path(folder)
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(9, 6))
    top, bottom = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] for row in history]
    top.plot(steps, [row["loss"] for row in history])
    top.set_ylabel("loss")
    checks = [row for row in history if "si_sdr" in row]
    for name in checks[0]["si_sdr"] if checks else ():
        bottom.plot([row["step"] for row in checks], [row["si_sdr"][name] for row in checks], label=name)
    bottom.set(xlabel="step", ylabel="SI-SDR on unseen clips (dB)", ylim=(-5, None))
    if checks:
        bottom.legend(title="codebooks")
    figure.tight_layout()
    replace(folder / "loss.png", partial(figure.savefig, dpi=100))


def plot_curves(folder: str | os.PathLike[str], names: tuple[str, ...], label: str) -> None:
    """Draw these columns of folder/log.jsonl over steps to folder/loss.png. Needs matplotlib."""
    from matplotlib.figure import Figure

    folder = Path(folder)
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(9, 4))
    axes = figure.subplots()
    for name in names:
        rows = [row for row in history if name in row]
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
    axes.set(xlabel="step", ylabel=label)
    axes.legend()
    figure.tight_layout()
    replace(folder / "loss.png", partial(figure.savefig, dpi=100))
