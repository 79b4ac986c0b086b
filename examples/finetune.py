"""Fine-tune a MusicGen on a folder of captioned audio: each clip beside a .txt of the same name that describes it.

    python examples/finetune.py FOLDER --out DIR [--model demo] [--steps 200] [--seconds 8]

Clips are WAV files; with the extra `audio` FLAC, MP3 and Ogg as well. Text encoder and codec stay as they are; the
result is a directory that musicgen_ref and transformers open.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from musicgen_ref import MusicGen
from musicgen_ref.audio import match_channels, read_wav, resample

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")


def read_folder(model: MusicGen, folder: Path, seconds: float) -> tuple[Tensor, list[str]]:
    """Codes (clips, K, T) of the first `seconds` of every clip, shorter ones padded with -1, and their captions.

    Raises ValueError and FileNotFoundError, naming the file, for a clip that cannot be read or has no caption.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} must hold clips ({', '.join(SUFFIXES)}), each with a .txt of its name, got none")
    texts = [read_caption(file.with_suffix(".txt")) for file in files]
    codes = torch.full((len(files), len(model.delays), model.frames(seconds)), -1)
    for i, file in enumerate(files):
        coded = read_clip(model, file, seconds)
        codes[i, :, : coded.shape[1]] = coded[:, : codes.shape[2]]
        show(i + 1, len(files), f"clip {i + 1} of {len(files)}", every=len(files))
    return codes, texts


def read_caption(file: Path) -> str:
    """What a clip is. Raises FileNotFoundError and ValueError naming the file."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8: {error}") from None
    if not text:
        raise ValueError(f"{file} must describe its clip, got nothing")
    return text


def read_clip(model: MusicGen, file: Path, seconds: float) -> Tensor:
    """Codes (K, T) of the first `seconds`. Raises ValueError naming the file."""
    try:
        audio, rate = read_wav(file)
        audio = audio[:, : round(seconds * rate) + rate]  # a second more, for the resampler to see the end
        audio = match_channels(resample(audio, rate, model.sampling_rate), model.decoder.config.channels)
        return model.encode(audio[None, :, : round(seconds * model.sampling_rate)], model.sampling_rate)[0]
    except ValueError as error:
        raise error if str(file) in str(error) else ValueError(f"{file}: {error}") from None


def finetune(model: MusicGen, codes: Tensor, texts: list[str], steps: int, lr: float = 1e-4, batch: int = 8) -> float:
    """Train the decoder; one text in ten is left out, so that guidance keeps its meaning. Returns the last loss."""
    model.decoder.train()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.randint(len(codes), (min(batch, len(codes)),), generator=generator)
        left_out = torch.rand(len(rows), generator=generator) < 0.1
        with_text = [None if out else texts[int(i)] for i, out in zip(rows, left_out, strict=True)]
        loss = model.loss(codes[rows], with_text)  # applies the delay pattern itself
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        show(step + 1, steps, f"step {step + 1} of {steps}, loss {float(loss.detach()):.3f}")
    model.eval()
    return float(loss.detach())


def show(done: int, of: int, text: str, every: int = 20) -> None:
    """A progress bar on a terminal; elsewhere a line now and then."""
    if sys.stderr.isatty():
        end = "\n" if done == of else ""
        print(f"\r[{'#' * (30 * done // of):30}] {text}\033[K", end=end, file=sys.stderr, flush=True)
    elif done % every == 0 or done == of:
        print(text)


def check_out(out: Path) -> None:
    """Raise, before anything is trained, where the result could not be saved: it needs a new or an empty directory."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a directory, got the file {out}")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out must be a new or an empty directory, got {out}, which holds files")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out must lie in a directory that is there, got {out}")
    for folder in (out.absolute().parent, out):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"--out must be a directory that can be written, got {out}")


def main(argv: list[str] | None = None) -> None:
    """Check, read, train, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a new or an empty directory")
    parser.add_argument("--model", default="demo", help='checkpoint directory, or "demo"')
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args(argv)
    try:
        if args.steps < 1:
            raise ValueError(f"--steps must be above 0, got {args.steps}")
        check_out(args.out)
        model = MusicGen.from_pretrained(args.model)
        model.text_encoder.requires_grad_(False)
        codes, texts = read_folder(model, args.folder, args.seconds)
        finetune(model, codes, texts, args.steps)
        model.save_pretrained(args.out)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"finetune: {error}")


if __name__ == "__main__":
    main()
