"""What weights and caches of fewer bits cost in precision, on a checkpoint: python -m benchmarks.int8 --model DIR

Both models read the same codes, which the fp32 model draws under one seed: logits, the likeliest code, the divergence
of the distributions. Then both generate greedily: how many frames agree before the first difference. Of the demo, also
how often its clips sound as their captions ask. --layers times the linear layers alone instead, those of torchao too
where it is installed.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musicgen_ref import GenerationOptions, MusicGen, delay
from musicgen_ref.fast import native
from musicgen_ref.fast.cache import CACHES
from musicgen_ref.fast.int8 import Int8Linear

from .worker import best

LAYERS = (1024, 1024), (4096, 1024), (1024, 4096)  # outputs and inputs, in musicgen-small
# By name: the dtype of the weights, that of keys and values, and whether the step is compiled: what is then between the
# layers is fp32, and int8 weights are multiplied by inputs of 16 bits in place of 8.
VARIANTS: dict[str, tuple[torch.dtype | str, str | None, bool]] = {
    "bfloat16 weights": (torch.bfloat16, None, False),
    "bfloat16 weights, compiled": (torch.bfloat16, None, True),
    "int8 weights": ("int8", None, False),
    "int8 weights, compiled": ("int8", None, True),
    "bfloat16 cache, compiled": (torch.float32, "bfloat16", True),
    "int8 cache, compiled": (torch.float32, "int8", True),
    "int8 weights, int8 cache, compiled": ("int8", "int8", True),
}


def open_variant(path: str | Path, variant: str) -> MusicGen:
    """A checkpoint with the weights and the cache of one of VARIANTS."""
    dtype, cache, compiled = VARIANTS[variant]
    model = MusicGen.from_pretrained(path, dtype=dtype)
    if compiled:
        return model.compile(cache=cache)
    native.library.cache_clear()  # what another variant built would multiply here as well
    model.decoder.cache_class = CACHES[cache]
    return model


def steps_of(model: MusicGen, text: Any, columns: Tensor) -> Tensor:
    """The logits (B, K, S, V) of columns (B, K, S), step after step, as generation takes them."""
    cache = model.decoder.new_cache(len(columns), columns.shape[-1], *model.encode_text(text))
    return torch.cat([model.decoder(column, cache=cache).float() for column in columns.split(1, -1)], dim=-2)


def divergence(exact: Tensor, near: Tensor) -> dict[str, float]:
    """How far logits (..., V) are from exact ones of the same codes.

    logits error: root mean square of the difference over the standard deviation of the exact ones. KL: mean divergence
    in nats of the distribution of the next code. same likeliest code: share of all codes.
    """
    log_p, log_q = exact.log_softmax(-1), near.log_softmax(-1)
    return {
        "logits error": float((near - exact).pow(2).mean().sqrt() / exact.std()),
        "KL": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        "same likeliest code": float((exact.argmax(-1) == near.argmax(-1)).float().mean()),
    }


@torch.no_grad()
def compare(
    path: str | Path, texts: list[str | None], seconds: float, variant: str = "int8 weights", seed: int = 0
) -> dict[str, float]:
    """Numbers of a variant against fp32 over clips of some seconds, one a text, without guidance.

    Those of divergence(), and equal greedy frames: the mean number of frames, guidance 3, before the first that
    differs; and how many there are.
    """
    models = MusicGen.from_pretrained(path), open_variant(path, variant)
    text: Any = texts if models[0].tokenizer is not None else None
    if text is None:
        ids = torch.arange(2, 14).expand(len(texts), -1).clone()
        text = ids, torch.ones_like(ids)
    drawn = GenerationOptions(seconds=seconds, guidance_scale=1.0, temperature=1.0, top_k=250, top_p=1.0)
    columns, steps = models[0].generate_steps(text, drawn, generator=torch.Generator().manual_seed(seed))
    for _ in steps:
        pass
    read = columns[..., :-1]
    logits = [steps_of(model, text, read) for model in models]
    codes = delay.undo(columns[..., 1:], models[0].delays)
    exact, near = (delay.undo(each, models[0].delays) for each in logits)
    greedy = GenerationOptions(seconds=seconds, greedy=True, guidance_scale=3.0)
    made = [torch.stack(list(model.generate_codes(text, greedy)), dim=-1) for model in models]
    same = (made[0] == made[1]).all(1).long().cumprod(-1).sum(-1)
    greedily = {"equal greedy frames": float(same.float().mean()), "frames": float(codes.shape[-1])}
    return divergence(exact, near) | greedily


def heard(clips: int) -> dict[str, float]:
    """By variant, and of fp32: the share of what captions ask of the demo's clips that is heard in them."""
    from examples.demo_model import evaluate  # deferred: it measures with compare()
    from examples.demo_model.analysis import fit_analyser
    from examples.demo_model.synth import SAMPLE_RATE

    plain = MusicGen.from_pretrained("demo")

    def coded(clip: Any) -> Any:
        audio = torch.from_numpy(clip)[None, None]
        return plain.decode(plain.encode(audio, SAMPLE_RATE))[0, 0, : len(clip)].numpy()

    analyser = fit_analyser(coded=coded)
    asked, captions = evaluate.asked_clips(clips)
    shares = {}
    for name in ("float32", *VARIANTS):
        model = plain if name == "float32" else open_variant("demo", name)
        audio = evaluate.generate(model, captions, guidance=3.0, temperature=evaluate.TEMPERATURE)
        judged = evaluate.judge(analyser, audio, asked)
        shares[name] = sum(right for right, _ in judged.values()) / len(judged)
    return shares


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
    """Print a table, or the times of layers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="demo", metavar="DIR")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each clip (default: %(default)s)")
    parser.add_argument("--text", nargs="+", default=["80s pop track with bassy drums", "slow piano"])
    parser.add_argument("--clips", type=int, default=100, help="of the demo to listen to (default: %(default)s)")
    parser.add_argument("--layers", action="store_true", help="time linear layers of two rows instead")
    args = parser.parse_args()
    if args.layers:
        print(json.dumps(layers(), indent=1))
        return
    shares = heard(args.clips) if args.model == "demo" and args.clips else {}
    names = ["logits error", "KL", "same likeliest code", "equal greedy frames", "frames"]
    print(f"| | {' | '.join(names)} | captions followed |")
    print("|---" * (len(names) + 2) + "|")
    if shares:
        print(f"| float32 | {' | '.join('-' for _ in names)} | {shares['float32']:.3f} |")
    for variant in VARIANTS:
        found = compare(args.model, args.text, args.seconds, variant)
        told = " | ".join(f"{found[name]:.4g}" for name in names)
        print(f"| {variant} | {told} | {f'{shares[variant]:.3f}' if shares else '-'} |", flush=True)


if __name__ == "__main__":
    main()
