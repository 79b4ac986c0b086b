"""`musicgen-ref record` and `musicgen-ref parity`."""

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import output
from ..checkpoint import DTYPES
from .compare import Report, compare
from .page import page
from .recording import FRAMES, Recording, record, record_audiocraft, record_transformers

NAMES: dict[str, torch.dtype] = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def add_arguments(record: argparse.ArgumentParser, parity: argparse.ArgumentParser) -> None:
    """Those of the two commands, but for the directory and what chooses among the weights in it."""
    record.add_argument(
        "-o", "--output", type=Path, default=Path("golden.safetensors"), metavar="FILE", help="default: %(default)s"
    )
    parity.add_argument(
        "--against",
        default="transformers",
        metavar="WHAT",
        help="transformers, audiocraft, or a file that `musicgen-ref record` wrote (default: %(default)s)",
    )
    parity.add_argument("--tolerance", type=float, help="what counts as rounding, times the largest number of a stage")
    parity.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON too")
    parity.add_argument("--report", type=Path, metavar="FILE", help="write a page with pictures too")
    for command in (record, parity):
        command.add_argument("--frames", type=int, default=FRAMES, help="to generate (default: %(default)s)")
        command.add_argument("--plain", action="store_true", help="without the faster layers")
        command.add_argument("--dtype", choices=NAMES, default="float32", help="of the weights (default: %(default)s)")
        command.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")


def run_record(args: argparse.Namespace, choice: dict[str, Any]) -> str:
    """Write the recording of a checkpoint; returns what to tell."""
    output.check_target(args.output)
    made = record(
        args.model, frames=args.frames, dtype=NAMES[args.dtype], device=args.device, fast=not args.plain, **choice
    )
    made.save(args.output)
    return f"{args.output}: {len(made.stages)} stages, {args.output.stat().st_size / 1e6:.1f} MB"


def run_parity(args: argparse.Namespace, choice: dict[str, Any]) -> Report:
    """Compare a checkpoint with another implementation, and write what was asked for."""
    for file in (args.json, args.report):
        if file is not None:
            output.check_target(file)
    golden = None if args.against in ("transformers", "audiocraft") else Recording.open(args.against)
    inputs = None if golden is None else golden.inputs
    where: dict[str, Any] = {"dtype": NAMES[args.dtype], "device": args.device}
    ours = record(args.model, inputs=inputs, frames=args.frames, fast=not args.plain, **where, **choice)
    # One model at a time: ours is gone before theirs is loaded.
    if golden is not None:
        theirs = golden
    elif args.against == "audiocraft":
        theirs = record_audiocraft(args.model, ours.inputs, **choice)
    else:
        theirs = record_transformers(args.model, ours.inputs, **where, **choice)
    report = compare(ours, theirs, tolerance=args.tolerance)
    if args.json is not None:
        output.write(args.json, report.to_json().encode())
    if args.report is not None:
        output.write(args.report, page(report).encode())
    return report
