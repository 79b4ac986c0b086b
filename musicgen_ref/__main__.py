"""Command line: `musicgen-ref generate` makes a WAV file, `musicgen-ref info` describes a checkpoint."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import __version__, checkpoint
from .audio import match_channels, read_wav, resample, write_wav
from .checkpoint.info import Report, report
from .model import GenerationOptions, MusicGen

DTYPES: dict[str, torch.dtype | str] = {str(dtype).removeprefix("torch."): dtype for dtype in checkpoint.DTYPES}
DTYPES["int8"] = "int8"


def parser() -> argparse.ArgumentParser:
    """The command line's arguments; their defaults are GenerationOptions'."""
    main = argparse.ArgumentParser(prog="musicgen-ref", description="MusicGen: music from text, offline.")
    main.add_argument("--version", action="version", version=__version__)
    commands = main.add_subparsers(dest="command", required=True)

    make = commands.add_parser("generate", help="make a WAV file from a text", description="Make a WAV file.")
    make.add_argument("text", nargs="?", help="what the music should be; without it, music of no text")
    directory = (
        "checkpoint directory of transformers or audiocraft, or demo, the small model that ships with the package"
    )
    make.add_argument("--model", default="demo", metavar="DIR", help=f"{directory} (default: %(default)s)")
    add_choice(make)
    make.add_argument("-o", "--output", type=Path, default=Path("out.wav"), metavar="FILE", help="default: %(default)s")
    make.add_argument("--seconds", type=float, default=8.0, help="length, audio prompt included (default: %(default)s)")
    make.add_argument("--seed", type=int, help="the same seed makes the same music (default: a new one, which is told)")
    make.add_argument("--audio-prompt", type=Path, metavar="FILE", help="continue this audio, at any rate and channels")
    make.add_argument(
        "--guidance", type=float, default=3.0, help="how closely to follow the text (default: %(default)s)"
    )
    make.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    make.add_argument("--top-k", type=int, default=250, help="0 keeps all (default: %(default)s)")
    make.add_argument("--top-p", type=float, default=1.0, help="1 keeps all (default: %(default)s)")
    make.add_argument("--min-p", type=float, default=0.0, help="0 keeps all (default: %(default)s)")
    make.add_argument("--greedy", action="store_true", help="take the likeliest codes instead of drawing")
    make.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    make.add_argument("--compile", action="store_true", help="compile the decode step first, which takes minutes")
    make.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")

    info = commands.add_parser(
        "info", help="describe a checkpoint", description="What a directory is, and whether it opens."
    )
    info.add_argument("model", nargs="?", default="demo", metavar="DIR", help=f"{directory} (default: %(default)s)")
    info.add_argument("--check", action="store_true", help="read the weights too: are all numbers finite?")
    return main


def add_choice(command: argparse.ArgumentParser) -> None:
    """The arguments that choose among the weights of a directory of transformers."""
    group = command.add_mutually_exclusive_group()
    group.add_argument(
        "--adapter",
        nargs="?",
        const=True,
        metavar="ADAPTER",
        help="merge the LoRA adapter of this directory (without one: that beside the weights) into the weights",
    )
    group.add_argument(
        "--no-adapter", dest="adapter", action="store_false", default=None, help="leave out the adapter beside them"
    )
    command.add_argument("--variant", metavar="NAME", help="of the weights: fp32 reads model.fp32.safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0, or 2 after a bad argument, 130 after Ctrl-C, with one line on stderr."""
    args = parser().parse_args(argv)
    try:
        generate(args) if args.command == "generate" else info(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"musicgen-ref: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("musicgen-ref: stopped, nothing written", file=sys.stderr)
        return 130
    return 0


def generate(args: argparse.Namespace) -> None:
    """Check everything, load the model, make the frames under a progress bar, write the file when all is there."""
    if not args.output.parent.is_dir() or args.output.is_dir():
        raise ValueError(f"--output must be a file in an existing directory, got {args.output}")
    options = GenerationOptions(
        seconds=args.seconds,
        guidance_scale=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        greedy=args.greedy,
    )
    clip = read_wav(args.audio_prompt) if args.audio_prompt else None
    try:
        generator = torch.Generator(args.device)
    except RuntimeError:
        raise ValueError(f"--device must be one that this torch and machine have, got {args.device!r}") from None
    seed = generator.seed() % 2**32 if args.seed is None else args.seed
    generator.manual_seed(seed)

    model = MusicGen.from_pretrained(
        args.model, dtype=DTYPES[args.dtype], device=args.device, adapter=args.adapter, variant=args.variant
    )
    if args.compile:
        began = time.perf_counter()
        model.compile(guided=args.guidance not in (0, 1))
        print(f"compiled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    prompt = None
    if clip is not None:
        audio = match_channels(resample(*clip, model.sampling_rate), model.decoder.config.channels)
        prompt = audio[None].to(model.device), model.sampling_rate
    frames = model.generate_codes([args.text], options, prompt=prompt, generator=generator)
    total = model.frames(args.seconds)
    codes = torch.stack(list(progress(frames, total, "frames")), dim=-1)
    write_wav(args.output, model.decode(codes)[0].float(), model.sampling_rate)
    print(f"{args.output}: {total * model.codec.config.hop / model.sampling_rate:g} s, seed {seed}")


def progress(items: Iterable[Tensor], total: int, unit: str) -> Iterable[Tensor]:
    """The items, under a progress bar where stderr is a terminal and tqdm (extra `audio`) is there."""
    if not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    bar: Iterable[Tensor] = tqdm(items, total=total, unit=" " + unit, leave=False)
    return bar


def info(args: argparse.Namespace) -> None:
    """Print what a directory is, and every reason why it does not open, without reading the weights unless asked to."""
    tell(report(checkpoint.DEMO if args.model == "demo" else args.model, check=args.check))


def tell(told: Report) -> None:
    """Print what a directory is. Raises ValueError with the first reason if it does not open, or else with what is
    wrong with its numbers."""
    print("\n".join(told.lines()))
    if told.reasons or told.values:
        raise ValueError(told.reasons[0] if told.reasons else told.values)


if __name__ == "__main__":
    sys.exit(main())
