"""All stages of one implementation, kept: in memory, or in a file that any language with safetensors reads."""

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import fields
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import safetensors.torch
import torch
from torch import Tensor

from .. import __version__, checks, output
from ..checkpoint import DEMO, load, load_codec
from ..checkpoint.source import is_audiocraft, is_codec_alone
from ..model import MusicGen
from . import of_audiocraft
from . import of_transformers as theirs
from .inputs import Inputs, for_codec, for_model
from .ours import of_codec, of_model

FRAMES = 50  # one second: the tables of positions, the cache and the pattern have all been used
# What a stage is, its shape by the legend of this package, and what it reads of the inputs.
STAGES = {
    "text.ids": ("B L", "tokens of `captions`, right padded with 0"),
    "text.embeddings": ("B L E_text", "vectors of `ids`, 0 where `mask` is 0"),
    "text.block.*": ("B L E_text", "after each block of T5, the last one normalised; 0 where `mask` is 0"),
    "memory": ("B L E", "the last states of T5, projected to the decoder's width; 0 where `mask` is 0"),
    "delay": (
        "B K 1+S",
        "`codes`, delayed by `delays`, behind a column of V, the special token; V where there is no code",
    ),
    "decoder.embeddings": ("B S E", "summed vectors of the columns of `table`, and positions"),
    "decoder.block.*": ("B S E", "after each block, which reads `memory` under `mask`; the last one normalised"),
    "decoder.logits": ("B K S V", "of `table` in one pass"),
    "decoder.logits_without_text": ("B K S V", "the same where no row reads any text"),
    "decoder.logits_cached": ("2*B K S V", "the same column by column from a cache: rows with text, then without"),
    "guided.logits": ("B K S V", "without text + (with text - without) * `guidance`, of decoder.logits_cached"),
    "greedy.logits": ("B K T V", "guided, of each step of a generation from `ids` and `mask`; delays undone"),
    "greedy.codes": ("B K T", "the likeliest code at every step of it; delays undone"),
    "sampled.logits": ("B K T V", "guided, of each step of a generation that draws"),
    "sampled.codes": (
        "B K T",
        "drawn by torch.multinomial under `sampling_seed` from the `top_k` likeliest",
    ),
    "codec.latents": ("1 Z T", "the codec's encoder on `audio`, on its first piece where the codec codes in pieces"),
    "codec.distances": ("1 K_codec T V_codec", "squared, of every codeword from what the codes before it leave over"),
    "codec.codes": ("1 K_codec T", "of `audio`, by all codebooks: the nearest codewords"),
    "codec.quantized": ("1 Z T", "summed codewords of `codec_codes`"),
    "codec.audio": ("1 C_codec N", "decoded from `codec_codes`; at a scale of 0.5 where the codec normalises"),
    "audio": ("B C N", "decoded from `codes`"),
}


class Recording(NamedTuple):
    """What an implementation made of the inputs.

    about: who made it, and on what. stopped: the error that came after the last stage, where there was one.
    """

    inputs: Inputs
    stages: dict[str, Tensor]
    about: dict[str, str]
    stopped: str = ""

    def save(self, path: str | PathLike[str]) -> None:
        """Write a .safetensors file: stages by their names, inputs as input.NAME, and in the metadata a manifest in
        JSON: about, the inputs that are no tensors, and of every stage its shape, its axes and what it is.

        Raises as output.check_target() and output.write() do, and ValueError for one that stopped.
        """
        if self.stopped:
            raise ValueError(f"stopped after {[*self.stages][-1:]}: {self.stopped}")
        path = Path(path)
        output.check_target(path)
        tensors = self.stages | {f"input.{name}": tensor for name, tensor in self.inputs.tensors().items()}
        stages = {
            name: {"shape": list(tensor.shape), "axes": described(name)[0], "is": described(name)[1]}
            for name, tensor in self.stages.items()
        }
        manifest = {"about": self.about, "inputs": self.inputs.numbers(), "stages": stages}
        # Copies, because safetensors refuses tensors that share memory.
        kept = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        output.write(path, safetensors.torch.save(kept, {"manifest": json.dumps(manifest)}))

    @classmethod
    def open(cls, path: str | PathLike[str]) -> "Recording":
        """Read what save() wrote. Raises FileNotFoundError, or ValueError for a file that is no recording."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such file: {path}")
        try:
            with safetensors.safe_open(path, "pt") as opened:
                manifest = json.loads((opened.metadata() or {})["manifest"])
                tensors = {name: opened.get_tensor(name) for name in opened.offset_keys()}
            given = {name.removeprefix("input."): tensors.pop(name) for name in [*tensors] if name.startswith("input.")}
            numbers = {name: tuple(x) if isinstance(x, list) else x for name, x in manifest["inputs"].items()}
            known = {field.name for field in fields(Inputs)}
            inputs = Inputs(**{name: value for name, value in (given | numbers).items() if name in known})
            stages = {name: tensors[name] for name in manifest["stages"]}
            return cls(inputs, stages, {str(key): str(value) for key, value in manifest["about"].items()})
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a recording of `musicgen-ref record`: {error!r:.200}") from None


def described(stage: str) -> tuple[str, str]:
    """The axes of a stage, and what it is; two empty strings for one that is not known here."""
    stem = stage.rpartition(".")[0] + ".*" if stage.rpartition(".")[2].isdigit() else stage
    return STAGES.get(stem, ("", ""))


def about(by: str, path: Path, dtype: torch.dtype | str, device: torch.device | str) -> dict[str, str]:
    """What a comparison may depend on, for a reader of the report. The path is its last name alone."""
    return {
        "by": by,
        "checkpoint": path.resolve().name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def record(
    path: str | PathLike[str], *, inputs: Inputs | None = None, frames: int = FRAMES,
    dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu", fast: bool = True, **choice: Any,
) -> Recording:  # fmt: skip
    """All stages of a checkpoint, a MusicGen or an EnCodec alone, as this package computes them.

    inputs: of another recording; by default those that belong to the sizes of the checkpoint, `frames` frames long.
    dtype, device, fast: as in checkpoint.load(); choice: others of its arguments. Raises as load() does, and ValueError
    where the inputs do not fit.
    """
    checks.paths(path=path)
    path = DEMO if path == "demo" else Path(path)
    if frames < 1:
        raise ValueError(f"frames must be 1 or more, got {frames}")
    if is_codec_alone(path):
        codec = load_codec(path, dtype=cast(torch.dtype, dtype), device=device)
        inputs = inputs or for_codec(codec.config, frames)
        stages = of_codec(codec, inputs.to(device))
    else:
        model = load(path, dtype=dtype, device=device, fast=fast, **choice)
        inputs = inputs or for_model(model, frames)
        check_fits(inputs, model, path)
        stages = of_model(model, inputs.to(device))
    by = f"musicgen_ref {__version__}, {'fast' if fast else 'plain'} layers"
    return taken(stages, inputs, about(by, path, dtype, device))


def record_transformers(
    path: str | PathLike[str], inputs: Inputs, *, dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu", **choice: Any,
) -> Recording:  # fmt: skip
    """The same as transformers computes them. A directory that transformers does not open as it is, one of audiocraft
    or one that some `choice` of load()'s arguments belongs to, is first written in transformers' layout by save(), to a
    temporary directory.

    Raises ModuleNotFoundError where transformers is not installed, and ValueError where it has no place for the model.
    """
    path = DEMO if path == "demo" else Path(path)
    alone = is_codec_alone(path)
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    # It draws from the global generator, in loading too; its state is put back.
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices):
        there, by = path, theirs.version()
        if is_audiocraft(path) or any(value is not None for value in choice.values()):
            if alone:
                raise ValueError(f"{path}: transformers opens an EnCodec in its own layout alone: convert it first")
            load(path, fast=False, **choice).save_pretrained(folder)
            there, by = Path(folder), f"{by}, of a copy in its layout"
        model = theirs.load(there, dtype, device, alone)
        given = inputs.to(device)
        stages = theirs.of_codec(model, given) if alone else theirs.of_model(model, theirs.tokenizer(there), given)
        return taken(stages, inputs, about(by, path, dtype, device))


def record_audiocraft(path: str | PathLike[str], inputs: Inputs, **choice: Any) -> Recording:
    """The same as audiocraft computes them, in float32 on a CPU, in a process of its own: see of_audiocraft.py. A
    directory in transformers' layout is first written in audiocraft's, to a temporary directory.

    Raises ModuleNotFoundError where audiocraft is not installed, ValueError where it has no place for the model, and
    ChildProcessError with its own words where it fails.
    """
    path = DEMO if path == "demo" else Path(path)
    if find_spec("audiocraft") is None:
        raise ModuleNotFoundError(
            f"audiocraft is not installed here. It wants other releases of torch: in an environment of its own run "
            f"{of_audiocraft.__file__}, as its first lines say, and compare with the file that it writes"
        )
    with tempfile.TemporaryDirectory() as folder:
        there = path.resolve()
        if not is_audiocraft(path):
            if is_codec_alone(path):
                raise ValueError(f"{path}: audiocraft opens an EnCodec in its own layout alone: convert it first")
            there = Path(folder) / "release"
            load(path, fast=False, **choice).save_pretrained(there, layout="audiocraft")
        given, made = Path(folder) / "given", Path(folder) / "made"
        Recording(inputs, {}, {}).save(given)
        command = [sys.executable, of_audiocraft.__file__, str(given), "-o", str(made)]
        done = subprocess.run(command, cwd=there, capture_output=True, text=True)
        if done.returncode:
            raise ChildProcessError(f"audiocraft failed: {done.stderr.strip()[-500:]}")
        return Recording.open(made)


def taken(stages: Iterable[tuple[str, Tensor]], inputs: Inputs, told: dict[str, str]) -> Recording:
    """Every stage, on the CPU: on an accelerator there is then no more than one of them beside the model.

    What an error leaves is kept too: the stages before it may say why it came.
    """
    kept: dict[str, Tensor] = {}
    try:
        for name, tensor in stages:
            kept[name] = tensor.detach().cpu()
    except Exception as error:
        return Recording(inputs, kept, told, f"{type(error).__name__}: {str(error)[:200]}")
    return Recording(inputs, kept, told)


def check_fits(inputs: Inputs, model: MusicGen, path: Path) -> None:
    """Raise ValueError where a model cannot read the inputs, which may be those of a recording of another one."""
    if inputs.table is None or inputs.ids is None:
        raise ValueError(f"{path}: is a MusicGen, the inputs are those of an EnCodec alone")
    c, vocab = model.decoder.config, model.text_encoder.config.vocab_size
    theirs = inputs.table.shape[1], tuple(inputs.delays), int(inputs.table.max()), inputs.audio.shape[1]
    ours = c.codebooks, c.delays, c.vocab_size, model.codec.config.channels
    if theirs != ours or int(inputs.ids.max()) >= vocab:
        raise ValueError(
            f"{path}: the inputs are those of a model of other sizes: codebooks, delays, special token and channels of "
            f"the codec are {theirs}, here {ours}; text ids up to {int(inputs.ids.max())}, here below {vocab}"
        )
