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

from musicgen_ref import GenerationOptions, MusicGen

from .codec_files import replace
from .evaluate import TEMPERATURE, TOP_K

REPRODUCE = """python -m examples.demo_model.train_codec --out run/codec --steps 12000 --threads 1
train="python -m examples.demo_model.train_lm --threads 1"
$train --codec run/codec --out run/first --steps 3000  # as of commit cda9b84
$train --start run/first/model --out run/second --steps 2000  # as of 6f9213e, and the next
mkdir run/third && mv run/second/data run/third/  # saves encoding the same clips again, here and below
$train --start run/second/model --out run/third --steps 4500
# as of 8358927; stopped after 4,800 steps, which `--steps 4800` then made a model of
$train --start demo --out run/fourth --steps 8000 --bfloat16 --seed 4
# as of e22b2c4; in parts: to 1,000 steps of 5,000, to 1,700 of 3,844, to 2,500 of 3,200, which this made a model of
$train --start run/fourth/model --out run/fifth --steps 2500 --bfloat16 --seed 5
# as of a5ce845; to some 3,000 of 6,000 steps, then to the end of 4,800
$train --start run/fifth/model --out run/sixth --steps 4800 --bfloat16 --seed 6
python -m examples.demo_model.publish --model run/sixth/model --out run/demo
python -m examples.demo_model.evaluate --model run/demo --out run/evaluation
python -m examples.demo_model.publish --model run/sixth/model --evaluation run/evaluation --out run/demo"""
ROWS = ("drums yes/no", "drums", "tempo", "instrument", "texture", "key", "energy in scale")


def save_half(model: MusicGen, folder: Path) -> None:
    """Weights in float16, which halves the files; config.json asks for float32, in which they are computed with, and
    generation_config.json for the sampling that is evaluated."""
    model.defaults = GenerationOptions(temperature=TEMPERATURE, top_k=TOP_K)
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"dtype": "float32"}, indent=2) + "\n"
    replace(folder / "config.json", partial(Path.write_text, data=text, encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def card(result: dict[str, Any], sizes: dict[str, int], gate: dict[str, float]) -> str:
    """The model card of an evaluation's figures; gate: the last line of the training's log."""
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
    half, int8 = ("\n".join(f"- {k}: {value:g}" for k, value in result[name].items()) for name in ("bfloat16", "int8"))
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
rendered, sampled with top-k 250 and, but where another is named, temperature {result["temperature"]:g}, chosen on other
captions: what generation_config.json says, so that it is the default. What analysers hear in them
(`examples/demo_model/analysis.py`) against what was asked for; in brackets the same clips against another clip's
caption, which is chance. "synthesised" is what the analysers make of the synthesiser's own clips, and of these coded
and decoded: no model could do better.

{table(["", *columns], heard)}

![Spectrograms of four generated clips](clips.png)

## The codec alone

48 unseen clips of 4 s: scale-invariant signal-to-distortion ratio, and the mean difference of log-mel spectra in
nepers.

{table(["codebooks", "SI-SDR, dB", "log-mel"], fidelity)}

{table(["codebook", "codes in use", "perplexity"], books)}

## bfloat16 against float32

{half}

## int8 against float32

Of the logits of eight clips of 4 s (`python -m benchmarks.int8`); the accuracies are in the table above.

{int8}

## Reproducing it

Some seven hours on one core, five on two. Everything is seeded, and a run that was stopped goes on where it was;
another number of threads, or another machine, rounds differently. Each run went on from the weights before it, with
what had been learnt of its faults: the first, on 6,000 clips of 8 s, knew their starts by heart; the second and third
had 82,000 clips, most of them of a second, and a history that is partly another clip's; the fourth was a longer one of
the same; it had never learnt major from minor, so the fifth also tells captions apart and goes on naming what they say;
the sixth does so to the end of its schedule, the instrument more often. The loss over the first 30 frames of unseen
clips fell from 1.8 to {gate["right"]:.2f} with their captions; it is {gate["none"]:.2f} with none and
{gate["shuffled"]:.2f} with another clip's.

```bash
{REPRODUCE}
```
"""


def main() -> None:
    """Write the checkpoint, and its card where there are figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="directory that train_lm wrote")
    parser.add_argument("--evaluation", type=Path, help="folder that evaluate wrote")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = MusicGen.from_pretrained(args.model)
    parts = {"text encoder": model.text_encoder, "decoder": model.decoder, "codec": model.codec, "all": model}
    sizes = {name: sum(t.numel() for t in [*part.parameters(), *part.buffers()]) for name, part in parts.items()}
    save_half(model, args.out)
    if args.evaluation:
        result = json.loads((args.evaluation / "evaluation.json").read_text(encoding="utf-8"))
        log = (args.model.parent / "log.jsonl").read_text(encoding="utf-8")
        text = card(result, sizes, json.loads(log.splitlines()[-1]))
        replace(args.out / "README.md", partial(Path.write_text, data=text, encoding="utf-8"))
        shutil.copyfile(args.evaluation / "clips.png", args.out / "clips.png")


if __name__ == "__main__":
    main()
