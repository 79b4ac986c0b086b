"""What int8 costs in precision, on a checkpoint: python -m benchmarks.int8 --model DIR

Both models read the same codes, which the fp32 model draws under one seed: logits, the likeliest code, the divergence
of the distributions. Then both generate greedily: how many frames agree before the first difference. --layers times
the linear layers alone instead, those of torchao too where it is installed.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from musicgen_ref import GenerationOptions, MusicGen, delay
from musicgen_ref.fast.int8 import Int8Linear

from .worker import best

LAYERS = (1024, 1024), (4096, 1024), (1024, 4096)  # outputs and inputs, in musicgen-small


@torch.no_grad()
def compare(path: str | Path, texts: list[str | None], seconds: float, seed: int = 0) -> dict[str, float]:
    """Numbers of int8 against fp32 over clips of some seconds, one a text, without guidance.

    logits error: root mean square of the difference over the standard deviation of the logits. KL: mean divergence in
    nats of int8's distribution of the next code from fp32's. same likeliest code: share of all codes. equal greedy
    frames: mean number of frames, guidance 3, before the first that differs; and how many there are.
    """
    plain, int8 = MusicGen.from_pretrained(path), MusicGen.from_pretrained(path, dtype="int8")
    text: Any = texts if plain.tokenizer is not None else None
    if text is None:
        ids = torch.arange(2, 14).expand(len(texts), -1).clone()
        text = ids, torch.ones_like(ids)
    drawn = GenerationOptions(seconds=seconds, guidance_scale=1.0, temperature=1.0, top_k=250, top_p=1.0)
    columns, steps = plain.generate_steps(text, drawn, generator=torch.Generator().manual_seed(seed))
    for _ in steps:
        pass
    logits = [model.decoder(columns[..., :-1], *model.encode_text(text)) for model in (plain, int8)]
    codes = delay.undo(columns[..., 1:], plain.delays)
    exact, near = (delay.undo(each, plain.delays) for each in logits)
    log_p, log_q = exact.log_softmax(-1), near.log_softmax(-1)
    greedy = GenerationOptions(seconds=seconds, greedy=True, guidance_scale=3.0)
    made = [torch.stack(list(model.generate_codes(text, greedy)), dim=-1) for model in (plain, int8)]
    same = (made[0] == made[1]).all(1).long().cumprod(-1).sum(-1)
    return {
        "logits error": float((near - exact).pow(2).mean().sqrt() / exact.std()),
        "KL": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "same likeliest code": float((exact.argmax(-1) == near.argmax(-1)).float().mean()),
        "equal greedy frames": float(same.float().mean()),
        "frames": float(codes.shape[-1]),
    }


@torch.no_grad()
def layers(rows: int = 2, rounds: int = 5) -> dict[str, dict[str, float]]:
    """Microseconds that a linear layer takes for some rows, by its size and kind; the best of some rounds.

    In each round layers of 400 MB in fp32 are called in turn, so that no cache holds them all.
    """
    kinds: dict[str, Callable[[nn.Linear], nn.Module]] = {"fp32": lambda linear: linear, "ours": Int8Linear}
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        pass
    else:

        def torchao(linear: nn.Linear, config: Any) -> nn.Module:
            quantize_(whole := nn.Sequential(linear), config)
            return whole

        kinds["torchao, weights"] = lambda linear: torchao(linear, Int8WeightOnlyConfig())
        kinds["torchao, dynamic"] = lambda linear: torchao(linear, Int8DynamicActivationInt8WeightConfig())
    table: dict[str, dict[str, float]] = {}
    for outputs, inputs in LAYERS:
        x = torch.randn(rows, inputs)
        for kind, make in kinds.items():
            made = [make(nn.Linear(inputs, outputs, bias=False)) for _ in range(10**8 // (outputs * inputs))]
            seconds = best(lambda made=made, x=x: [layer(x) for layer in made], rounds) / len(made)
            table.setdefault(f"{outputs} x {inputs}", {})[kind] = round(seconds * 1e6, 1)
    return table


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="demo", metavar="DIR")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each clip (default: %(default)s)")
    parser.add_argument("--text", nargs="+", default=["80s pop track with bassy drums", "slow piano"])
    parser.add_argument("--layers", action="store_true", help="time linear layers of two rows instead")
    args = parser.parse_args()
    result: Any = layers() if args.layers else compare(args.model, args.text, args.seconds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
