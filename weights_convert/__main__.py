"""Command line: python -m weights_convert audiocraft | huggingface | to-audiocraft | verify SRC DST, or info DIR."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from musicgen_ref.__main__ import add_choice, guarded, tell
    from musicgen_ref.checkpoint.files import UNITS
    from musicgen_ref.checkpoint.info import report

    from .convert import DTYPES, from_audiocraft, from_huggingface, to_audiocraft
    from .verify import verify
except KeyboardInterrupt:  # they take seconds
    print("weights_convert: stopped, nothing written", file=sys.stderr)
    sys.exit(130)


def size(text: str) -> int:
    """Bytes of a size like 2GB, 500MB, 1.5GiB. Raises ArgumentTypeError, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text.strip().upper())
    number = int(float(match[1]) * UNITS[match[2] or ""]) if match and len(text) < 30 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a size like 2GB or 500MB, got {text!r}")
    return number


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    main = argparse.ArgumentParser(prog="weights_convert", description="MusicGen checkpoints from layout to layout.")
    commands = main.add_subparsers(dest="command", required=True)

    def command(name: str, help: str, source: str, target: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.add_argument("source", type=Path, metavar="SRC" if target else "DIR", help=source)
        if target:
            sub.add_argument("target", type=Path, metavar="DST", help=target)
        return sub

    def conversion(name: str, help: str) -> argparse.ArgumentParser:
        return command(name, help, "directory to read", "directory to write")

    original = conversion("audiocraft", "audiocraft's state_dict.bin and compression_state_dict.bin to transformers")
    original.add_argument(
        "--text-encoder",
        metavar="DIR",
        help="directory of T5, which those files do not hold (default: inside or beside SRC); hub downloads it",
    )
    original.add_argument(
        "--codec",
        metavar="DIR",
        help="directory of the EnCodec, in either layout, where compression_state_dict.bin is missing or holds its "
        "name alone, as the stereo models' does (default: inside or beside SRC); hub downloads it",
    )
    transformers = conversion(
        "huggingface", "transformers' files to safetensors, another dtype, other shards, new names"
    )
    for sub in (original, transformers):
        sub.add_argument("--dtype", choices=DTYPES, help="of the weights (default: each tensor keeps its own)")
        sub.add_argument("--shard-size", type=size, metavar="SIZE", help="largest file, like 2GB (default: one file)")
    back = conversion("to-audiocraft", "transformers' files to audiocraft's, T5 in a directory inside")
    for sub in (original, transformers, back):
        sub.add_argument("--overwrite", action="store_true", help="replace DST if it is there and is a checkpoint")
    for sub in (transformers, back):
        add_choice(sub)
    described = command("info", "what a directory is, and every reason why it does not open", "directory to describe")
    for name, what in (("text-encoder", "T5"), ("codec", "the EnCodec")):
        described.add_argument(f"--{name}", metavar="DIR", help=f"directory of {what}, as the conversions take it")
    described.add_argument("--check", action="store_true", help="read the weights too: are all numbers finite?")
    check = command(
        "verify", "what two checkpoints, of any layout, compute from the same input", "directory of one",
        "directory of the other",
    )  # fmt: skip
    check.add_argument(
        "--tolerance", type=float, default=1e-5, help="of numbers, times the largest (default: %(default)s)"
    )
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 where verify finds a difference, or that of guarded()."""
    return guarded("weights_convert", lambda: run(parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    """What a command's arguments ask for; 0, or 1 where verify finds a difference."""
    if args.command == "verify":
        return compare(args)
    if args.command == "info":
        tell(report(args.source, args.text_encoder, args.codec, args.check))
        return 0
    if args.command == "to-audiocraft":
        to_audiocraft(args.source, args.target, overwrite=args.overwrite, adapter=args.adapter, variant=args.variant)
    else:
        dtype = DTYPES[args.dtype] if args.dtype else None
        if args.command == "audiocraft":
            from_audiocraft(
                args.source,
                args.target,
                text_encoder=args.text_encoder,
                codec=args.codec,
                dtype=dtype,
                shard_size=args.shard_size,
                overwrite=args.overwrite,
            )
        else:
            from_huggingface(
                args.source,
                args.target,
                dtype=dtype,
                shard_size=args.shard_size,
                overwrite=args.overwrite,
                adapter=args.adapter,
                variant=args.variant,
            )
    print(f"{args.target}: written")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Print the table of differences; 0 if there are none that count."""
    rows = verify(args.source, args.target, args.tolerance)
    print(f"{'':<22} {'largest value':>14} {'difference':>12}")
    for row in rows:
        print(f"{row.what:<22} {row.scale:>14.6g} {row.largest:>12.3g}  {'same' if row.agree else 'DIFFERENT'}")
    return 0 if all(row.agree for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
