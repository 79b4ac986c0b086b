"""Turn a trained model into the checkpoint that ships with the package: half-precision weights and a model card.

    python -m examples.demo_model.publish --model DIR --evaluation DIR --out musicgen_ref/demo

Run evaluate.py on what this writes, and this again to put its figures into the card.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from musicgen_ref import MusicGen

from .codec_files import replace

REPRODUCE = """python -m examples.demo_model.train_codec --out run/codec --steps {codec} --threads 1
python -m examples.demo_model.train_lm --codec run/codec --out run/lm --steps {lm} --threads 1
python -m examples.demo_model.publish --model run/lm/model --out run/demo
python -m examples.demo_model.evaluate --model run/demo --out run/evaluation
python -m examples.demo_model.publish --model run/lm/model --evaluation run/evaluation --out run/demo"""
ROWS = ("drums yes/no", "drums", "tempo", "instrument", "texture", "key", "energy in scale")


def save_half(model: MusicGen, folder: Path) -> None:
    """Weights in float16, which halves the files; config.json asks for float32, in which they are computed with."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"dtype": "float32"}, indent=2) + "\n"
    replace(folder / "config.json", partial(Path.write_text, data=text, encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def card(result: dict[str, Any], sizes: dict[str, int], steps: dict[str, int]) -> str:
    """The model card of an evaluation's figures."""
    columns = [name for name in result if isinstance(result[name], dict) and "drums yes/no" in result[name]]
    heard = [[row, *("{:.2f} ({:.2f})".format(*result[name][row]) for name in columns)] for row in ROWS]
    codec = result["codec"]
    fidelity = [
        [name, *(f"{codec[figure][name]:.2f}" for figure in ("si_sdr", "log_mel_l1"))] for name in codec["si_sdr"]
    ]
    books = [
        [str(k + 1), f"{used:.0%}", f"{perplexity:.0f}"]
        for k, (used, perplexity) in enumerate(zip(codec["used"], codec["perplexity"], strict=True))
    ]
    half = "\n".join(f"- {name}: {value:g}" for name, value in result["bfloat16"].items())
    parts = ", ".join(f"{name} {count / 1e6:.2f}" for name, count in sizes.items() if name != "all")
    return f"""# The demo model of musicgen_ref

A MusicGen small enough to ship with the code: {sizes["all"] / 1e6:.1f} M parameters ({parts}),
16 kHz mono, 50 frames a second, 4 codebooks of 256 codes, weights in half precision. It was trained from scratch on
synthesised music (`examples/demo_model`) and knows nothing else: one instrument (sine pad, plucked string, square lead,
FM bell, saw bass) playing a melody, an arpeggio, chords or a bass line in one of 24 keys at 80, 110 or 140 bpm, with
no, simple or busy drums. It shows how the package works; it is no substitute for Meta's models. Licence: MIT, like the
code; no other weights or recordings went into it.

## Does it follow its captions?

{result["clips"]} clips of {result["seconds"]:g} s, from captions of attribute combinations that training never
rendered, sampled with top-k 250. What analysers hear in them (`examples/demo_model/analysis.py`) against what was
asked for; in
brackets the same clips against another clip's caption, which is chance. "synthesised" is what the analysers make of
the synthesiser's own clips, and of these coded and decoded: no model could do better.

{table(["", *columns], heard)}

![Spectrograms of four generated clips](clips.png)

## The codec alone

48 unseen clips of 4 s: scale-invariant signal-to-distortion ratio, and the mean difference of log-mel spectra in
nepers.

{table(["codebooks", "SI-SDR, dB", "log-mel"], fidelity)}

{table(["codebook", "codes in use", "perplexity"], books)}

## bfloat16 against float32

{half}

## Reproducing it

About two hours on two cores. Everything is seeded, and a run that was stopped goes on where it was; another number of
threads, or another machine, rounds differently. This run was cut from 4,000 to 3,000 steps of the second command after
the first 300, whose learning rates were those of the longer one. It learned the starts of its 6,000 clips by heart
(cross entropy 0.5 a code, 1.8 on unseen clips): more clips are the first thing to give the next one.

```bash
{REPRODUCE.format(**steps)}
```
"""


def main() -> None:
    """Write the checkpoint, and its card where there are figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="directory that train_lm wrote")
    parser.add_argument("--evaluation", type=Path, help="folder that evaluate wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codec-steps", type=int, default=12_000, help="for the card")
    parser.add_argument("--lm-steps", type=int, default=3_000, help="for the card")
    args = parser.parse_args()
    model = MusicGen.from_pretrained(args.model)
    parts = {"text encoder": model.text_encoder, "decoder": model.decoder, "codec": model.codec, "all": model}
    sizes = {name: sum(t.numel() for t in [*part.parameters(), *part.buffers()]) for name, part in parts.items()}
    save_half(model, args.out)
    if args.evaluation:
        result = json.loads((args.evaluation / "evaluation.json").read_text(encoding="utf-8"))
        text = card(result, sizes, {"codec": args.codec_steps, "lm": args.lm_steps})
        replace(args.out / "README.md", partial(Path.write_text, data=text, encoding="utf-8"))
        shutil.copyfile(args.evaluation / "clips.png", args.out / "clips.png")


if __name__ == "__main__":
    main()
