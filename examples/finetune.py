"""Fine-tune a MusicGen on a folder of captioned audio: each `name.wav` beside a `name.txt` that describes it.

    python examples/finetune.py FOLDER --out DIR [--model demo] [--steps 200] [--seconds 8]

Text encoder and codec stay as they are; the result is a directory that musicgen_ref and transformers open.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from musicgen_ref import MusicGen
from musicgen_ref.audio import match_channels, read_wav, resample


def read_folder(model: MusicGen, folder: Path, seconds: float) -> tuple[Tensor, list[str]]:
    """Codes (clips, K, T) of the first `seconds` of every clip, shorter ones padded with -1, and their captions."""
    files = sorted(folder.glob("*.wav"))
    if not files:
        raise ValueError(f"folder must hold WAV files with a .txt of the same name beside each, got none in {folder}")
    texts = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    codes = torch.full((len(files), len(model.delays), model.frames(seconds)), -1)
    for row, file in zip(codes, files, strict=True):
        audio = match_channels(resample(*read_wav(file), model.sampling_rate), model.decoder.config.channels)
        coded = model.encode(audio[None, :, : round(seconds * model.sampling_rate)], model.sampling_rate)[0]
        row[:, : coded.shape[1]] = coded[:, : row.shape[1]]
    return codes, texts


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
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss.detach()):.3f}")
    model.eval()
    return float(loss.detach())


def main() -> None:
    """Read, train, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="demo", help='checkpoint directory, or "demo"')
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    model = MusicGen.from_pretrained(args.model)
    model.text_encoder.requires_grad_(False)
    codes, texts = read_folder(model, args.folder, args.seconds)
    finetune(model, codes, texts, args.steps)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
