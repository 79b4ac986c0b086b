"""Train the demo's text encoder and decoder together, on the codes of synthesised, captioned clips.

    python -m examples.demo_model.train_lm --codec DIR --out DIR --minutes 80

1. A sentencepiece vocabulary on captions. 2. Clips of several lengths rendered and encoded by the trained codec, kept
in DIR/data: many short ones, because what is asked for must be heard in the first second, and because 6,000 starts
were learnt by heart. 3. The text encoder learns to name what a caption says (a minute: a caption carries some 8 nats,
which a model of 1,600 codes a clip is slow to find by itself). 4. Text encoder and decoder train on `model.loss`, first
on the first 0.8 s of clips, where the text is all there is to go by, then on longer and longer ones; a row in eight has
no text, for guidance. In half of the rows some of the history is another clip's, so that the text counts for more and
a slip while generating is not followed. Some rows are also read with a caption in which one attribute is another, and
the right caption must make them likelier: major or minor is one bit of a clip, which the loss alone left unlearnt. The
text encoder goes on naming what captions say.

Every batch is a function of the seed and the step, so a run that was stopped goes on from DIR/checkpoint.pt. The log
gates on the gap between right and shuffled captions over the first frames: without a gap the text is ignored, however
good the loss looks. Written to DIR as it goes: log.jsonl, loss.png, samples; at the end the model in transformers'
layout (DIR/model).

B batch, K codebooks, T frames.
"""

import argparse
import io
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicgen_ref import DecoderConfig, GenerationOptions, MusicGen, T5Config, delay
from musicgen_ref.audio import write_wav
from musicgen_ref.encodec import Encodec
from musicgen_ref.text import Tokenizer

from . import synth
from .captions import caption
from .codec_files import load_codec, plot_curves
from .codec_files import replace as replace_file

TEXT = T5Config(vocab_size=256, width=128, layers=2, heads=4, head_width=32, ffn=256, dropout=0.0)
DECODER = DecoderConfig(vocab_size=256, width=192, layers=5, heads=6, ffn=640, text_width=128, dropout=0.0)
SECONDS = 8.0
CAPTIONS = [
    "a fast arpeggio in A minor on a plucked string with busy drums",
    "slow dreamy pad chords, F major, no drums",
    "a mid-tempo bass line in D minor on a saw bass with simple drums",
]  # of the samples that are written as the training goes
CURVES = ("right", "shuffled", "none", "whole"), "cross entropy of unseen clips"
NAMED = {"instrument": synth.INSTRUMENTS, "drums": synth.DRUMS, "tempo": tuple(synth.TEMPOS), "root": tuple(range(12))}
NAMED |= {"mode": tuple(synth.SCALES), "texture": synth.TEXTURES}


@dataclass(frozen=True)
class Options:
    """How to train. Of the budgets steps and seconds the one given ends the run and paces its schedule.

    lengths: frames of a batch, its rows, and how many clips there are of that length; schedule: until which share of
    the budget which length is drawn how often; noise: of how much history at most another clip's stands in; bfloat16:
    multiply matrices in it, which is faster where the processor has instructions for it (AMX, AVX512-BF16); contrast,
    contrast_rows: weight of the loss that tells captions apart, and how many rows of the shortest clips it reads;
    naming: weight of the loss of Naming.
    """

    steps: int | None = None
    seconds: float | None = None
    seed: int = 0
    name_steps: int = 600
    lengths: tuple[tuple[int, int, int], ...] = ((40, 40, 48_000), (120, 16, 24_000), (400, 6, 10_000))
    schedule: tuple[tuple[float, tuple[float, ...]], ...] = (
        (0.3, (0.7, 0.3, 0.0)),
        (0.6, (0.4, 0.4, 0.2)),
        (1.0, (0.25, 0.35, 0.4)),
    )
    no_text: float = 0.12
    noise: float = 0.4
    lr: float = 1.5e-3
    lr_warmup: float = 0.02
    average: float = 0.998
    bfloat16: bool = False
    contrast: float = 0.03
    contrast_rows: int = 12
    naming: float = 0.1

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None) or not (self.steps or self.seconds or 0) > 0:
            raise ValueError(f"give one budget, steps or seconds, above 0; got {self.steps} and {self.seconds}")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget used, from 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (self.seconds or 1))


# Data ----------------------------------------------------------------------------------------------------------------


def train_tokenizer(size: int, seed: int = 0) -> Tokenizer:
    """A T5-like vocabulary of at most `size` pieces on 20,000 captions; case is folded, every letter is in it."""
    rng = np.random.default_rng((seed, 1))
    texts = [caption(synth.sample_attributes(rng), rng)[0] for _ in range(20_000)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        vocab_size=size,
        hard_vocab_limit=False,
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789#.,-'",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": []}
    settings |= {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer({"spiece.model": model.getvalue(), "tokenizer_config.json": json.dumps(settings).encode()})


def to_row(attributes: synth.Attributes) -> list[int]:
    """Attributes as indices into NAMED's values."""
    return [values.index(getattr(attributes, name)) for name, values in NAMED.items()]  # type: ignore[arg-type]


def from_row(row: np.ndarray) -> synth.Attributes:
    """The attributes of such indices."""
    fields: dict[str, Any] = {name: values[int(i)] for (name, values), i in zip(NAMED.items(), row, strict=True)}
    return synth.Attributes(**fields)


Clips = dict[str, np.ndarray]  # codes (clips, K, T) and attributes (clips, 6), both uint8


@torch.no_grad()
def encode_clips(codec: Encodec, count: int, seed: tuple[int, ...], held_out: bool, frames: int = 400) -> Clips:
    """Render and encode clips; eight at a time, which stay in a processor's cache."""
    rng = np.random.default_rng(seed)
    attributes = [synth.sample_attributes(rng, held_out) for _ in range(count)]
    seconds = frames * codec.config.hop / codec.config.sampling_rate
    audio = torch.from_numpy(np.stack([synth.render(a, seconds, rng) for a in attributes]))[:, None]
    codes = torch.cat([codec.encode(part, codec.config.codebooks)[0].codes for part in audio.split(8)])
    return {"codes": codes.numpy().astype(np.uint8), "attributes": np.array([to_row(a) for a in attributes], np.uint8)}


def dataset(codec: Encodec, options: Options, folder: Path) -> dict[int, Clips]:
    """The training clips by their frames, encoded in shards that are kept in folder; missing ones are made."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {}
    for frames, _, clips in options.lengths:
        shard, parts = 100_000 // frames, []
        for i in range(math.ceil(clips / shard)):
            path = folder / f"{frames}.{i:04}.npz"
            if not path.exists():
                part = encode_clips(codec, min(shard, clips), (options.seed, 2, frames, i), False, frames)
                replace_file(path, lambda beside, part=part: np.savez(beside, **part))
            with np.load(path) as file:
                parts.append({name: file[name] for name in ("codes", "attributes")})
        data[frames] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return data


# Model ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def initialise(model: MusicGen, seed: int) -> None:
    """Xavier for every matrix, cross-attention and text projection included: at 0.02 the text path never opened."""
    generator = torch.Generator().manual_seed(seed)
    for part, layers in (
        (model.text_encoder, len(model.text_encoder.blocks)),
        (model.decoder, len(model.decoder.blocks)),
    ):
        for name, module in part.named_modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(
                    0, 0.1 if name == "relative_bias" else 0.5 if part is model.decoder else 1.0, generator=generator
                )
            elif isinstance(module, nn.Linear):
                outputs, inputs = module.weight.shape
                std = math.sqrt(2 / (inputs + outputs))
                if name.startswith("heads."):
                    std = 0.02
                elif name.endswith((".out", ".fc2", ".wo")):  # the ends of residual branches
                    std /= math.sqrt(2 * layers)
                elif part is model.text_encoder and name.endswith("attn.q"):
                    std /= math.sqrt(model.text_encoder.config.head_width)  # T5 does not scale its scores
                module.weight.normal_(0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


def new_model(codec: Encodec, seed: int, text: T5Config = TEXT, decoder: DecoderConfig = DECODER) -> MusicGen:
    """An untrained model around a trained codec, with a tokenizer of its own."""
    tokenizer = train_tokenizer(text.vocab_size, seed)
    model = MusicGen(replace(text, vocab_size=tokenizer.vocab_size), decoder, codec.config, tokenizer)
    model.codec = codec.requires_grad_(False)
    initialise(model, seed)
    return model


class Naming(nn.Module):
    """Names what captions say from the text encoder's mean state; learns with it, and is not part of the model.

    Beside what NAMED has it names the pitch of the key's third, which root and mode tell together and neither alone:
    the text encoder left to itself kept the two apart, and the decoder could not join them.
    """

    def __init__(self, width: int, seed: int):
        super().__init__()
        self.sizes = [*(len(values) for values in NAMED.values()), 12]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.Linear(width, sum(self.sizes))

    def forward(self, model: MusicGen, rng: np.random.Generator, rows: int = 96) -> tuple[Tensor, float]:
        """Cross entropy of the names over so many new captions, summed over what is named, and the share right."""
        drawn = [synth.sample_attributes(rng, held_out=False) for _ in range(rows)]
        captions = [caption(a, rng) for a in drawn]
        ids, mask = model.tokenizer([text for text, _ in captions])
        states = model.text_encoder(ids, mask)
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        loss, hits, asked = torch.zeros(()), 0, 0
        target = torch.tensor([[*to_row(a), (a.root + synth.SCALES[a.mode][2]) % 12] for a in drawn])
        each = self.heads(pooled).split(self.sizes, dim=1)
        for i, (name, logits) in enumerate(zip([*NAMED, "third"], each, strict=True)):
            claim = "key" if name in ("root", "mode", "third") else name
            said = torch.tensor([claim in claims for _, claims in captions])
            loss = loss + F.cross_entropy(logits[said], target[said, i])
            hits += int((logits[said].argmax(1) == target[said, i]).sum())
            asked += int(said.sum())
        return loss, hits / asked


def learn_to_name(model: MusicGen, naming: Naming, options: Options) -> float:
    """Train the text encoder alone to name what captions say; returns the share named right in the last 20 batches."""
    rng = np.random.default_rng((options.seed, 3))
    trained = [*model.text_encoder.parameters(), *naming.parameters()]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    right: list[float] = []
    for step in range(options.name_steps):
        loss, share = naming(model, rng)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - step / options.name_steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        right.append(share)
    return sum(right[-20:]) / max(1, len(right[-20:]))


class Training:
    """A run: the model, its moving average, the optimiser, and how far it is. step() does one step, state and all."""

    def __init__(self, model: MusicGen, options: Options, data: dict[int, Clips]):
        self.model, self.options, self.data = model, options, data
        self.naming = Naming(model.text_encoder.config.width, options.seed)
        self.trained = [p for p in [*model.parameters(), *self.naming.parameters()] if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.trained]
        matrices = [p for p in self.trained if p.dim() > 1]
        vectors = [p for p in self.trained if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, options.lr, betas=(0.9, 0.98))
        self.done, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []

    def batch(self, step: int, progress: float) -> tuple[Tensor, list[str | None], list[str | None]]:
        """Codes (B, K, T) of clips, their captions, and captions in which one attribute, most often one that is hard
        to hear, is another."""
        o, rng = self.options, np.random.default_rng((self.options.seed, 4, step))
        chances = next(chances for until, chances in o.schedule if progress <= until)
        frames, rows, _ = o.lengths[rng.choice(len(o.lengths), p=chances)]
        data = self.data[frames]
        index = rng.integers(len(data["codes"]), size=rows)
        texts: list[str | None] = []
        others: list[str | None] = []
        for row in data["attributes"][index]:
            wording, name = int(rng.integers(2**32)), rng.choice(list(NAMED), p=(0.2, 0.05, 0.05, 0.15, 0.45, 0.1))
            attributes, without = from_row(row), rng.random() < o.no_text
            value = rng.choice([v for v in NAMED[name] if v != getattr(attributes, name)])
            for into, said in ((texts, attributes), (others, replace(attributes, **{name: value}))):
                into.append(None if without else caption(said, np.random.default_rng(wording))[0])
        return torch.from_numpy(data["codes"][index].astype(np.int64)), texts, others

    def confuse(self, columns: Tensor) -> Tensor:
        """Columns (B, K, S) that the decoder reads; in half of the rows up to `noise` of them another row's."""
        rng = np.random.default_rng((self.options.seed, 7, self.done))
        share = self.options.noise * rng.random((len(columns), 1, 1)) * (rng.random((len(columns), 1, 1)) < 0.5)
        foreign = torch.from_numpy(rng.random(columns.shape) < share)
        return torch.where(foreign, columns.roll(1, 0), columns)

    def contrast(self, codes: Tensor, texts: list[str | None], others: list[str | None]) -> Tensor:
        """How badly the model tells which of two captions clips (B, K, T) have: mean cross entropy, log 2 by chance."""
        steps = delay.apply(codes.repeat(2, 1, 1), self.model.delays, fill=-1)
        special = self.model.decoder.config.vocab_size
        columns = F.pad(steps.masked_fill(steps < 0, special), (1, 0), value=special)[..., :-1]
        memory, mask = self.model.encode_text([*texts, *others])
        logits = self.model.decoder(columns, memory, mask, backend=self.model.backend).float()
        nats = F.cross_entropy(logits.movedim(3, 1), steps, ignore_index=-1, reduction="none").sum((1, 2))
        right, other = nats.chunk(2)
        return F.softplus(right - other).mean()

    def step(self) -> dict[str, float]:
        """Train on the next batch."""
        o, began = self.options, time.perf_counter()
        progress = o.progress(self.done, self.seconds)
        rate = o.lr * min(1.0, (progress + 1e-4) / o.lr_warmup) * (0.52 + 0.48 * math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        codes, texts, others = self.batch(self.done, progress)
        rows = [i for i, (text, other) in enumerate(zip(texts, others, strict=True)) if text != other]
        rows = rows[: o.contrast_rows] if codes.shape[2] == o.lengths[0][0] and o.contrast else []
        noise = self.model.decoder.register_forward_pre_hook(lambda _, args: (self.confuse(args[0]), *args[1:]))
        with torch.autocast("cpu", torch.bfloat16, enabled=o.bfloat16):
            loss = self.model.loss(codes, texts)
            noise.remove()
            row = {f"loss {codes.shape[2]}": float(loss.detach())}
            if rows:
                contrast = self.contrast(codes[rows], [texts[i] for i in rows], [others[i] for i in rows])
                loss = loss + o.contrast * contrast
                row["contrast"] = float(contrast.detach())
        if o.naming:
            naming, row["named right"] = self.naming(self.model, np.random.default_rng((o.seed, 8, self.done)), 32)
            loss = loss + o.naming * naming
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"training diverged at step {self.done}: gradient norm {float(norm)}")
        self.optimizer.step()
        keep = min(o.average, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.trained], 1 - keep)
        self.done += 1
        self.seconds += time.perf_counter() - began
        return row | {"gradient": float(norm)}

    def swap(self) -> None:
        """Exchange the weights and their moving averages; call it twice around what should see the averages."""
        with torch.no_grad():
            for p, average in zip(self.trained, self.averages, strict=True):
                kept = p.clone()
                p.copy_(average)
                average.copy_(kept)

    @torch.no_grad()
    def gate(self, unseen: Clips) -> dict[str, float]:
        """Loss of the averaged weights on unseen clips: over 30 frames with the right, another's and no caption;
        whole."""
        rng = np.random.default_rng(5)
        texts = [caption(from_row(row), rng, complete=True)[0] for row in unseen["attributes"]]
        codes = torch.from_numpy(unseen["codes"].astype(np.int64))
        self.swap()
        cases = {
            "right": (30, texts),
            "shuffled": (30, texts[1:] + texts[:1]),
            "none": (30, None),
            "whole": (400, texts),
        }
        losses = {name: float(self.model.loss(codes[..., :frames], text)) for name, (frames, text) in cases.items()}
        self.swap()
        return {name: round(loss, 4) for name, loss in losses.items()}

    def save(self, path: Path) -> None:
        """Write everything a run needs to go on."""
        state = {
            "trained": [p.detach() for p in self.trained],
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "progress": (self.done, self.seconds),
            "history": self.history,
            "options": json.dumps(asdict(self.options)),
        }
        replace_file(path, lambda beside: torch.save(state, beside))

    def load(self, path: Path) -> None:
        """Go on where save() was called. Budgets may differ; raises ValueError where another option does."""
        state = torch.load(path, weights_only=True)
        ours, theirs = json.loads(json.dumps(asdict(self.options))), json.loads(state["options"])
        differ = [name for name in ours if ours[name] != theirs[name] and name not in ("steps", "seconds")]
        if differ:
            raise ValueError(f"{path} was trained with other options: {differ}; remove it or choose another folder")
        with torch.no_grad():
            for p, kept in zip(self.trained, state["trained"], strict=True):
                p.copy_(kept)
        self.averages = state["averages"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds = state["progress"]
        self.history = state["history"]


def train(
    codec: Encodec,
    options: Options,
    out: Path,
    every: int = 100,
    save_seconds: float = 180.0,
    text: T5Config = TEXT,
    decoder: DecoderConfig = DECODER,
    start: MusicGen | None = None,
) -> MusicGen:
    """Train to the end of the budget, from out/checkpoint.pt if it is there; returns the averaged model, in eval
    mode. start: a trained model to go on from, instead of a new one."""
    out.mkdir(parents=True, exist_ok=True)
    model = start or new_model(codec, options.seed, text, decoder)
    model.codec.requires_grad_(False)
    if options.bfloat16:
        model.backend = "eager"  # SDPA's backward pass takes three times as long as all the rest in bfloat16 on a CPU
    data = dataset(codec, options, out / "data")
    unseen = encode_clips(codec, min(96, options.lengths[-1][2]), (options.seed, 6), held_out=True)
    run = Training(model, options, data)
    if (out / "checkpoint.pt").exists():
        run.load(out / "checkpoint.pt")
    elif start is None:
        run.history.append({"step": 0, "named before": round(learn_to_name(model, run.naming, options), 4)})
        run.averages = [p.detach().clone() for p in run.trained]
    saved, rows = run.seconds, []
    while options.progress(run.done, run.seconds) < 1:
        rows.append(run.step())
        if run.done % every:
            continue
        row: dict[str, Any] = {"step": run.done, "seconds": round(run.seconds)}
        for name in sorted({name for r in rows for name in r}):
            values = [r[name] for r in rows if name in r]
            row[name] = round(sum(values) / len(values), 4)
        rows = []
        run.history.append(row | run.gate(unseen))
        log = "".join(json.dumps(row) + "\n" for row in run.history)
        replace_file(out / "log.jsonl", partial(Path.write_text, data=log, encoding="utf-8"))
        if run.seconds - saved >= save_seconds:
            run.save(out / "checkpoint.pt")
            saved = run.seconds
            run.swap()
            write_samples(model, out / "samples", run.done)
            run.swap()
            plot_curves(out, *CURVES)
    run.save(out / "checkpoint.pt")
    run.swap()
    return model.eval()


def write_samples(model: MusicGen, folder: Path, step: int) -> None:
    """What the model makes of CAPTIONS after so many steps: folder/STEP.0.wav and so on."""
    folder.mkdir(exist_ok=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(CAPTIONS))]
    out = model.generate(CAPTIONS, GenerationOptions(seconds=4.0), generator=generators)
    for i, audio in enumerate(out.audio):
        write_wav(folder / f"{step}.{i}.wav", audio, out.sampling_rate)


def main() -> None:
    """Train, and write the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--codec", type=Path, default="demo", help="folder that train_codec wrote, or demo")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results and the checkpoint")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="time to train, earlier runs in this folder included")
    budget.add_argument("--steps", type=int)
    parser.add_argument("--start", help="checkpoint directory, or demo, to go on from; its codec is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="multiply matrices in bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seconds = args.minutes * 60 if args.minutes else None
    options = Options(steps=args.steps, seconds=seconds, seed=args.seed, bfloat16=args.bfloat16)
    start = MusicGen.from_pretrained(args.start).train() if args.start else None
    model = train(start.codec if start else load_codec(args.codec), options, args.out, start=start)
    model.save_pretrained(args.out / "model")
    plot_curves(args.out, *CURVES)


if __name__ == "__main__":
    main()
