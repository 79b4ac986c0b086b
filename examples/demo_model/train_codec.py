"""Train the demo's EnCodec on synthesised music: 16 kHz mono, 50 frames a second, 4 codebooks.

    python -m examples.demo_model.train_codec --out DIR --minutes 80

The first part of the budget trains encoder and decoder without quantisation, which is most of the way to a good
reconstruction; then k-means on many latents starts the codebooks, and the rest trains with them. Every batch is
rendered anew and is a function of the seed and the step, so a run that was stopped goes on from DIR/checkpoint.pt as if
nothing had happened. A budget of time depends on the machine; --steps is the same everywhere. Written to DIR as it
goes: log.jsonl, loss.png, audio samples; at the end codec.safetensors and codec.json, evaluation.json.

B batch, N samples, T frames, D latent width, K codebooks, V codes per codebook.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from musicgen_ref.audio import write_wav
from musicgen_ref.encodec import Encodec, EncodecConfig

from . import synth
from .codec_codebooks import CodebookTrainer, quantise
from .codec_files import plot, replace, save_codec
from .codec_measures import evaluate, reconstruction_loss, unseen_clips
from .codec_scaling import normalise_latents, scale_layers

# The time goes into the layers at 16 kHz, so these are narrow (8 channels) and the stride of 8 comes at once; five
# stages still end 256 wide. 16 filters with ratios (2, 4, 5, 8) have as many parameters: 5 dB behind after a minute.
CODEC = EncodecConfig(
    sampling_rate=synth.SAMPLE_RATE, filters=8, ratios=(2, 2, 2, 5, 8), codebook_size=256, bandwidths=(1.6,),
    lstm_layers=1,
)  # fmt: skip
TOY_CODEC = EncodecConfig(
    sampling_rate=synth.SAMPLE_RATE, filters=4, ratios=(2, 4, 5, 8), hidden=16, codebook_size=16, bandwidths=(0.8,),
    lstm_layers=1,
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How to train. Of the budgets steps and seconds the one given ends the run and paces its schedule.

    warmup: share of the budget without quantisation. dropout: probability that a clip is decoded from fewer codebooks,
    so that these mean something by themselves. one_batch: every batch is the same (can it be learned?).
    """

    steps: int | None = None
    seconds: float | None = None
    seed: int = 0
    batch: int = 8
    crop: int = 8_000  # samples
    clips_per_round: int = 32
    clip_crops: int = 12  # crops cut from one rendered clip
    lr: float = 3e-3
    lr_warmup: float = 0.01  # share of the budget
    warmup: float = 0.75
    dropout: float = 0.2
    commitment: float = 4.0
    decay: float = 0.98
    one_batch: bool = False

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None) or not (self.steps or self.seconds or 0) > 0:
            raise ValueError(f"give one budget, steps or seconds, above 0; got {self.steps} and {self.seconds}")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget used, from 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (self.seconds or 1))


# Data ----------------------------------------------------------------------------------------------------------------


def render_crops(options: Options, hop: int, index: int) -> Tensor:
    """Crops (clips_per_round * clip_crops, 1, crop) of newly rendered clips, shuffled; a function of seed and index.

    Three clips in four are cut on the frame grid, as a clip coded from its start is; the rest anywhere.
    """
    rng = np.random.default_rng((options.seed, index))
    crops = []
    for _ in range(options.clips_per_round):
        span = options.crop * options.clip_crops
        attributes = synth.sample_attributes(rng, held_out=False)
        clip = synth.render(attributes, (span + options.crop) / synth.SAMPLE_RATE, rng)
        start = int(rng.integers(options.crop))
        start -= start % hop if rng.random() < 0.75 else 0
        crops.append(clip[start : start + span].reshape(options.clip_crops, 1, options.crop))
    return torch.from_numpy(np.concatenate(crops)[rng.permutation(options.clips_per_round * options.clip_crops)])


class Batches:
    """Batch number `step` is the same whenever it is asked for; no audio is in two of them."""

    def __init__(self, options: Options, hop: int):
        self.options, self.hop = options, hop
        self.index, self.crops = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Tensor:
        o = self.options
        per_round = o.clips_per_round * o.clip_crops // o.batch
        index, place = divmod(0 if o.one_batch else step, per_round)
        if index != self.index:
            self.index, self.crops = index, render_crops(o, self.hop, index)
        return self.crops[place * o.batch : (place + 1) * o.batch]


# Training ------------------------------------------------------------------------------------------------------------


class Training:
    """A run: the codec, its optimiser and codebooks, and how far it is. step() does one step, state and all."""

    def __init__(self, config: EncodecConfig, options: Options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.codec = Encodec(config)
        self.options = options
        self.batches = Batches(options, config.hop)
        scale_layers(self.codec, self.batches[0])
        self.optimizer = torch.optim.AdamW(self.codec.parameters(), options.lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.books = CodebookTrainer(self.codec.quantizer.codebooks, options.decay)
        self.done, self.seconds, self.quantised = 0, 0.0, False
        self.history: list[dict[str, Any]] = []

    def lr(self, progress: float) -> float:
        """Learning rate: linear to its peak, then half a cosine to a hundredth of it."""
        o = self.options
        return o.lr * min(1.0, (progress + 1e-4) / o.lr_warmup) * (0.505 + 0.495 * math.cos(math.pi * progress))

    def step(self) -> dict[str, float]:
        """Train on the next batch."""
        o, codec, began = self.options, self.codec, time.perf_counter()
        generator = torch.Generator().manual_seed(o.seed * 1_000_003 + self.done)
        progress = o.progress(self.done, self.seconds)
        if progress >= o.warmup and not self.quantised:
            self.start_codebooks(generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(progress)
        audio = self.batches[self.done]
        latents = codec.encoder(audio)
        commitment, revived = latents.new_zeros(()), 0
        vectors = latents
        if self.quantised:
            with torch.no_grad():
                sums, left, codes = quantise(codec, latents)
            # Each clip is decoded from all its codebooks, or from fewer at random.
            used = torch.randint(codec.config.codebooks, (len(audio),), generator=generator)
            used[torch.rand(len(audio), generator=generator) >= o.dropout] = codec.config.codebooks - 1
            words = sums[used, torch.arange(len(audio))]
            vectors = latents + (words - latents).detach()  # straight through: the gradient ignores the rounding
            commitment = (latents - sums).pow(2).mean()
        reconstruction = reconstruction_loss(codec.decoder(vectors), audio)
        self.optimizer.zero_grad()
        (reconstruction + o.commitment * commitment).backward()
        norm = nn.utils.clip_grad_norm_(codec.parameters(), 5.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"training diverged at step {self.done}: gradient norm {float(norm)}")
        self.optimizer.step()
        if self.quantised:
            revived = self.books.update(left, codes, generator)
        self.done += 1
        self.seconds += time.perf_counter() - began
        values = {"loss": reconstruction, "commitment": commitment, "gradient": norm}
        return {name: float(value.detach()) for name, value in values.items()} | {"revived": revived}

    @torch.no_grad()
    def start_codebooks(self, generator: torch.Generator) -> None:
        """k-means on the latents of clips that no step trains on."""
        crops = render_crops(self.options, self.codec.config.hop, 10**9)
        latents = torch.cat([self.codec.encoder(part) for part in crops.split(32)])
        for parameter in normalise_latents(self.codec, latents):
            self.optimizer.state.pop(parameter, None)  # its averages are of gradients of another scale
        latents = torch.cat([self.codec.encoder(part) for part in crops.split(32)])
        self.books.start(latents, 20, generator)
        self.quantised = True

    def save(self, path: Path) -> None:
        """Write everything a run needs to go on."""
        state = {
            "codec": self.codec.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "count": self.books.count,
            "total": self.books.total,
            "progress": (self.done, self.seconds, self.quantised),
            "history": self.history,
            "options": asdict(self.options),
        }
        replace(path, lambda beside: torch.save(state, beside))

    def load(self, path: Path) -> None:
        """Go on where save() was called. Budgets may differ; raises ValueError where another option does."""
        state = torch.load(path, weights_only=True)
        ours, theirs = asdict(self.options), state["options"]
        differ = [name for name in ours if ours[name] != theirs[name] and name not in ("steps", "seconds")]
        if differ:
            raise ValueError(f"{path} was trained with other options: {differ}; remove it or choose another folder")
        self.codec.load_state_dict(state["codec"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.books.count, self.books.total = state["count"], state["total"]
        self.done, self.seconds, self.quantised = state["progress"]
        self.history = state["history"]


def train(config: EncodecConfig, options: Options, out: Path, every: int = 100, save_seconds: float = 180.0) -> Encodec:
    """Train to the end of the budget, from out/checkpoint.pt if it is there; logs every `every` steps."""
    out.mkdir(parents=True, exist_ok=True)
    run = Training(config, options)
    if (out / "checkpoint.pt").exists():
        run.load(out / "checkpoint.pt")
    saved, rows = run.seconds, []
    while options.progress(run.done, run.seconds) < 1:
        if not run.quantised and options.progress(run.done, run.seconds) >= options.warmup:
            run.save(out / "unquantised.pt")  # what to go back to, should the codebooks go wrong
        rows.append(run.step())
        if run.done % every:
            continue
        row = {name: round(sum(r[name] for r in rows) / len(rows), 4) for name in rows[0]}
        rows = []
        run.history.append({"step": run.done, "seconds": round(run.seconds), **row})
        due = run.seconds - saved >= save_seconds
        if due:
            run.history[-1] |= evaluate(run.codec, unseen_clips(12, 2.0))
        log = "".join(json.dumps(row) + "\n" for row in run.history)
        replace(out / "log.jsonl", partial(Path.write_text, data=log, encoding="utf-8"))
        if due:
            run.save(out / "checkpoint.pt")
            saved = run.seconds
            write_samples(run.codec, unseen_clips(12, 2.0)[:8], out)
            plot(out)
    run.save(out / "checkpoint.pt")
    return run.codec.eval()


@torch.no_grad()
def write_samples(codec: Encodec, clips: Tensor, out: Path) -> None:
    """Clips (B, 1, N) and what the codec makes of them: out/sample0.original.wav, out/sample0.coded.wav and so on."""
    for i, clip in enumerate(clips):
        coded = codec.decode(codec.encode(clip[None]))[0, :, : clip.shape[-1]]
        write_wav(out / f"sample{i}.original.wav", clip, synth.SAMPLE_RATE)
        write_wav(out / f"sample{i}.coded.wav", coded.clamp(-1, 1), synth.SAMPLE_RATE)


def main() -> None:
    """Train, evaluate, write the results and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results and the checkpoint")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="time to train, earlier runs in this folder included")
    budget.add_argument("--seconds", type=float)
    budget.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="a very small codec for a few steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seconds = args.minutes * 60 if args.minutes else args.seconds
    if args.toy:
        steps = args.steps or (None if seconds else 20)
        options = Options(steps=steps, seconds=seconds, seed=args.seed, batch=4, crop=1920)
    elif args.steps or seconds:
        options = Options(steps=args.steps, seconds=seconds, seed=args.seed)
    else:
        parser.error("give a budget: --minutes, --seconds or --steps")
    codec = train(TOY_CODEC if args.toy else CODEC, options, args.out, every=5 if args.toy else 100)
    save_codec(codec, args.out)
    if not args.toy:
        plot(args.out)
    count, length = (2, 1.0) if args.toy else (48, 4.0)
    result = {
        "from the first sample": evaluate(codec, unseen_clips(count, length)),
        "cut off the frame grid": evaluate(codec, unseen_clips(count, length, shift=5_417)),
    }
    text = json.dumps(result, indent=2) + "\n"
    replace(args.out / "evaluation.json", partial(Path.write_text, data=text, encoding="utf-8"))
    print(text)
    write_samples(codec, unseen_clips(count, length)[:8], args.out)


if __name__ == "__main__":
    main()
