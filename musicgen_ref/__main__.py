"""Command line: `musicgen-ref generate` makes a WAV file, anatomy a page that shows a clip from the inside, info
describes a checkpoint, parity and record compare it."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

try:
    import torch

    from . import __version__, checkpoint
    from .anatomy import check_page, dissect, write_page
    from .audio import check_target, match_channels, read_wav, resample, write_wav
    from .checkpoint.info import Report, report
    from .model import GenerationOptions, MusicGen, Sampling
    from .parity.command import add_arguments, run_parity, run_record
except KeyboardInterrupt:  # they take seconds
    print("musicgen-ref: stopped, nothing written", file=sys.stderr)
    sys.exit(130)

DTYPES: dict[str, torch.dtype | str] = {str(dtype).removeprefix("torch."): dtype for dtype in checkpoint.DTYPES}
DTYPES["int8"] = "int8"
DIRECTORY = "checkpoint directory of transformers or audiocraft, or demo, the small model that ships with the package"
Item = TypeVar("Item")


def parser() -> argparse.ArgumentParser:
    """The command line's arguments; their defaults are GenerationOptions', where None is what the checkpoint says."""
    main = argparse.ArgumentParser(prog="musicgen-ref", description="MusicGen: music from text, offline.")
    main.add_argument("--version", action="version", version=__version__)
    commands = main.add_subparsers(dest="command", required=True)

    make = commands.add_parser("generate", help="make a WAV file from a text", description="Make a WAV file.")
    add_generation(make, "out.wav", "WAV; with the extra audio .flac, .ogg, .mp3 as well")
    make.add_argument("--audio-prompt", type=Path, metavar="FILE", help="continue this audio, at any rate and channels")
    make.add_argument("--compile", action="store_true", help="compile the decode step first, in seconds")
    make.add_argument(
        "--cache", choices=["bfloat16", "int8"],
        help="with --compile: keep keys and values of earlier steps in fewer bits, which is faster and changes numbers",
    )  # fmt: skip

    show = commands.add_parser(
        "anatomy",
        help="make a clip and a page that shows it from the inside",
        description="Make a clip and a page, one file for any browser, that shows it from the inside.",
    )
    add_generation(show, "clip.html", "HTML")

    info = commands.add_parser(
        "info", help="describe a checkpoint", description="What a directory is, and whether it opens."
    )
    info.add_argument("model", nargs="?", default="demo", metavar="DIR", help=f"{DIRECTORY} (default: %(default)s)")
    info.add_argument("--check", action="store_true", help="read the weights too: are all numbers finite?")

    record = commands.add_parser(
        "record", help="write what every stage computes", description="Write what every stage computes from one input."
    )
    parity = commands.add_parser(
        "parity", help="compare with another implementation", description="Compare stage by stage with another one."
    )
    for command in (record, parity):
        command.add_argument(
            "model", nargs="?", default="demo", metavar="DIR", help=f"{DIRECTORY} (default: %(default)s)"
        )
        add_choice(command)
    add_arguments(record, parity)
    return main


def add_generation(command: argparse.ArgumentParser, output: str, formats: str) -> None:
    """The arguments of a command that makes a clip; their defaults are GenerationOptions'."""
    command.add_argument("text", nargs="?", help="what the music should be; without it, music of no text")
    command.add_argument("--model", default="demo", metavar="DIR", help=f"{DIRECTORY} (default: %(default)s)")
    add_choice(command)
    command.add_argument(
        "-o", "--output", type=Path, default=Path(output), metavar="FILE", help=f"{formats} (default: %(default)s)"
    )
    command.add_argument(
        "--seconds", type=float, default=8.0, help="length, audio prompt included (default: %(default)s)"
    )
    command.add_argument(
        "--seed", type=int, help="the same seed makes the same music (default: a new one, which is told)"
    )
    said, usual = "default: what the checkpoint says", Sampling()
    command.add_argument(
        "--guidance", type=float, help=f"how closely to follow the text ({said}, or else {usual.guidance_scale:g})"
    )
    command.add_argument("--temperature", type=float, help=f"{said}, or else {usual.temperature:g}")
    command.add_argument("--top-k", type=int, help=f"0 keeps all ({said}, or else {usual.top_k})")
    command.add_argument("--top-p", type=float, help=f"1 keeps all ({said}, or else {usual.top_p:g})")
    command.add_argument("--min-p", type=float, default=0.0, help="0 keeps all (default: %(default)s)")
    command.add_argument("--greedy", action="store_true", help="take the likeliest codes instead of drawing")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    command.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    command.add_argument(
        "--max-bytes",
        type=int,
        default=GenerationOptions().max_bytes,
        metavar="BYTES",
        help="most memory for keys, values, codes and audio (default: %(default)s, 16 GiB)",
    )
    command.add_argument(
        "--max-text-tokens",
        type=int,
        default=GenerationOptions().max_text_tokens,
        metavar="TOKENS",
        help="longest text that is taken (default: %(default)s)",
    )


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
    """Run a command; returns its exit code, see guarded()."""

    def command() -> int:
        args = parser().parse_args(argv)
        return RUN[args.command](args)

    return guarded("musicgen-ref", command)


def guarded(name: str, command: Callable[[], int]) -> int:
    """Run a command; whatever happens is an exit code and, where it is not the command's own, one line on stderr.

    2: a bad argument or file, or what the system refuses. 130, 143, 129: Ctrl-C, SIGTERM, SIGHUP, which raise
    KeyboardInterrupt inside, so that what is half written is removed. 141: the reader of stdout has gone. 70: anything
    else, such as no memory, told with the place in the source. argparse's own SystemExit passes through.
    """
    with _streams(), _signals() as handled:
        try:
            try:
                code = command()
            except SystemExit:  # after --help, say
                sys.stdout.flush()
                raise
            sys.stdout.flush()  # now, when it can be told that it does not work
            return code
        except BrokenPipeError as error:
            if error.filename is None:
                return _failed(name, "stopped: nobody reads what it prints", 128 + 13)  # SIGPIPE
            return _failed(name, str(error), 2)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            return _failed(name, str(error), 2)
        except KeyboardInterrupt as stopped:
            for number in handled:
                signal.signal(number, signal.SIG_IGN)  # all is tidied up: a second one has nothing to stop
            code = 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
            return _failed(name, "stopped, nothing written", code)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}, line {place.lineno}"
            return _failed(name, f"{type(error).__name__}: {error} (at {where})", 70)


def _failed(name: str, message: str, code: int) -> int:
    """Tell why on stderr, if it can be told there."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{name}: {' '.join(message.split())}"[:4000], file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """An stdout and an stderr that a command can write to, and leave.

    A closed one is /dev/null: a file that is opened later would get its number, and what is printed. Characters that a
    terminal has not are printed as escapes. What could not be written in the end is dropped: Python would try again as
    it ends, and exit with 120.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    with contextlib.ExitStack() as stack:
        if sys.stdout is None:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        if sys.stderr is None:
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                before = stream.errors
                with contextlib.suppress(OSError):  # where what lies below it has been exchanged
                    stream.reconfigure(errors="backslashreplace")
                    stack.callback(stream.reconfigure, errors=before)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    with contextlib.suppress(OSError, ValueError):
                        nowhere = os.open(os.devnull, os.O_WRONLY)
                        os.dup2(nowhere, stream.fileno())
                        os.close(nowhere)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt with their number; those that were ignored (nohup) stay so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    ours = (signal.SIG_DFL, signal.default_int_handler)
    numbers = [int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number, handler in before.items() if handler in ours]
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        handled = []
    try:
        for number in handled:
            signal.signal(number, stop)
        yield handled
    finally:
        for number in handled:
            signal.signal(number, before[number])


def generate(args: argparse.Namespace) -> int:
    """Check everything, load the model, make the frames under a progress bar, write the file when all is there."""
    _check_output(check_target, args)
    if args.cache and not args.compile:
        raise ValueError(f"--cache {args.cache} must come with --compile: the plain step gains nothing by it")
    options, generator, seed = _options(args)
    # A clip that is longer by less than a second is told in frames.
    clip = read_wav(args.audio_prompt, max_seconds=args.seconds + 1) if args.audio_prompt else None
    model = _open(args)
    if args.compile:
        began = time.perf_counter()
        model.compile(guided=options.sampling(model.defaults).guidance_scale not in (0, 1), cache=args.cache)
        print(f"compiled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    prompt = None
    if clip is not None:
        audio = match_channels(resample(*clip, model.sampling_rate), model.decoder.config.channels)
        prompt = audio[None].to(model.device), model.sampling_rate
    frames = model.generate_codes([args.text], options, prompt=prompt, generator=generator)
    total = model.frames(args.seconds)
    codes = torch.stack(list(progress(frames, total, "frames")), dim=-1)
    to = sys.stderr if _is_stdout(args.output) else sys.stdout
    clipped = write_wav(args.output, model.decode(codes)[0].float(), model.sampling_rate)
    told = f", {clipped} samples beyond full scale clipped" if clipped else ""
    print(f"{args.output}: {total * model.codec.config.hop / model.sampling_rate:g} s{told}, seed {seed}", file=to)
    return 0


def anatomy(args: argparse.Namespace) -> int:
    """Check everything, load the model, make a clip under a progress bar, write the page when all is there."""
    _check_output(check_page, args)
    options, generator, seed = _options(args)
    model = _open(args)
    clip = dissect(
        model, args.text, options, generator=generator, watch=lambda steps, total: progress(steps, total, "steps")
    )
    facts = {"model": args.model, "dtype": args.dtype, "seed": str(seed)}
    size = write_page(args.output, clip, facts)
    print(f"{args.output}: {clip.seconds:g} s, {size / 1e6:.1f} MB, seed {seed}")
    return 0


def _check_output(check: Callable[[Path], None], args: argparse.Namespace) -> None:
    """Raise what cannot be written to, under the argument's name."""
    try:
        check(args.output)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"--output: {str(error).removeprefix('path: ')}") from None


def _options(args: argparse.Namespace) -> tuple[GenerationOptions, torch.Generator, int]:
    """How to generate, and the generator of a seed."""
    if args.seed is not None and not -(2**63) <= args.seed < 2**64:
        raise ValueError("--seed must be a whole number from -2**63 to 2**64 - 1")
    options = GenerationOptions(
        seconds=args.seconds,
        guidance_scale=args.guidance,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        greedy=args.greedy,
        max_bytes=args.max_bytes,
        max_text_tokens=args.max_text_tokens,
    )
    try:
        generator = torch.Generator(args.device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device must be one that this torch and machine have, got {args.device!r}") from None
    seed = generator.seed() % 2**32 if args.seed is None else args.seed
    generator.manual_seed(seed)
    return options, generator, seed


def _open(args: argparse.Namespace) -> MusicGen:
    """The model that was asked for."""
    return MusicGen.from_pretrained(
        args.model, dtype=DTYPES[args.dtype], device=args.device, adapter=args.adapter, variant=args.variant
    )


def _is_stdout(path: Path) -> bool:
    """Whether what is written to a path goes where prints go."""
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def progress(items: Iterable[Item], total: int, unit: str) -> Iterable[Item]:
    """The items, under a progress bar where stderr is a terminal and tqdm (extra `audio`) is there."""
    if sys.stderr is None or not sys.stderr.isatty():
        return items
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    bar: Iterable[Item] = tqdm(items, total=total, unit=" " + unit, leave=False)
    return bar


def info(args: argparse.Namespace) -> int:
    """Print what a directory is, and every reason why it does not open, without reading the weights unless asked to."""
    tell(report(checkpoint.DEMO if args.model == "demo" else args.model, check=args.check))
    return 0


def record(args: argparse.Namespace) -> int:
    """Write what every stage computes."""
    print(run_record(args, {"adapter": args.adapter, "variant": args.variant}))
    return 0


def parity(args: argparse.Namespace) -> int:
    """Print the comparison with another implementation; 1 where they differ."""
    told = run_parity(args, {"adapter": args.adapter, "variant": args.variant})
    print(told)
    return 0 if told.agree else 1


RUN = {"generate": generate, "anatomy": anatomy, "info": info, "record": record, "parity": parity}


def tell(told: Report) -> None:
    """Print what a directory is. Raises ValueError with the first reason if it does not open, or else with what is
    wrong with its numbers."""
    print("\n".join(told.lines()))
    if told.reasons or told.values:
        raise ValueError(told.reasons[0] if told.reasons else told.values)


if __name__ == "__main__":
    sys.exit(main())
