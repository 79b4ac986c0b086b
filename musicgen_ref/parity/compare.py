"""Two implementations of the same stages: how far apart they are, and where that begins."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sampling import top_k
from .inputs import Inputs
from .recording import Recording, described

# From the name of a stage to its tensor, or to what computes it; numpy's arrays will do.
Array = Tensor | np.ndarray
Stages = Mapping[str, Array | Callable[[Inputs], Array]]
# How far two orders of the same sums drift apart in some fifty layers, times the largest number of a stage.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
EQUAL, ROUNDED, NEAR, DIFFERENT = "equal", "rounding", "near tie", "DIFFERENT"


@dataclass(frozen=True)
class Row:
    """One stage. scale: the largest absolute value of theirs; largest, mean: of the absolute differences, or of codes
    whether they differ (0 or 1). by_step: the largest difference at each position of the stage's axis of time.

    first: of codes, the first step that decided otherwise: of the decoder, or of the quantiser, whose steps are its
    codebooks. note: a sentence about it. verdict: "equal" to the bit; "rounding", within what the dtype explains; "near
    tie", of codes: every first decision that came out otherwise was nearer than the two sides are; "DIFFERENT".
    allowed: what counts as rounding, over the scale; 0 for codes.
    """

    stage: str
    shape: tuple[int, ...]
    scale: float
    largest: float
    mean: float
    verdict: str
    allowed: float = 0.0
    by_step: tuple[float, ...] = ()
    first: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What compare() found.

    missing: stages that only one of the two has. stopped: which of the two ended with an error, after which stage.
    """

    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    ours: Mapping[str, str]
    theirs: Mapping[str, str]
    stopped: str = ""

    @property
    def first(self) -> Row | None:
        """The first stage that differs by more than rounding: where to look for the mistake."""
        return next((row for row in self.rows if row.verdict == DIFFERENT), None)

    @property
    def agree(self) -> bool:
        """Whether no stage differs by more than rounding, and both came to their end."""
        return self.first is None and not self.stopped

    def lines(self) -> list[str]:
        """The table, and what it comes to, as text."""
        told = [f"ours:   {_one_line(self.ours)}", f"theirs: {_one_line(self.theirs)}", ""]
        width = max([len("stage"), *(len(row.stage) for row in self.rows)])
        shapes = ["x".join(map(str, row.shape)) for row in self.rows]
        wide = max([len("shape"), *map(len, shapes)])
        told.append(f"{'stage':<{width}}  {'shape':<{wide}}  {'scale':>9}  {'largest':>9}  {'mean':>9}  verdict")
        for row, shape in zip(self.rows, shapes, strict=True):
            numbers = f"{row.scale:>9.3g}  {row.largest:>9.2g}  {row.mean:>9.2g}"
            told.append(f"{row.stage:<{width}}  {shape:<{wide}}  {numbers}  {row.verdict}")
        told += ["", *(f"{row.stage}: {row.note}" for row in self.rows if row.note)]
        if self.missing:
            told.append(f"only one side has: {', '.join(self.missing)}")
        return [*told, self.conclusion()]

    def conclusion(self) -> str:
        """One sentence."""
        if self.first is not None:
            return f"The first stage that differs by more than rounding is {self.first.stage}."
        if self.stopped:
            return self.stopped
        equal = sum(row.verdict == EQUAL for row in self.rows)
        return f"No stage differs by more than rounding; {equal} of {len(self.rows)} are equal to the bit."

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> str:
        """All of it, for a program."""
        rows = [{**vars(row), "shape": list(row.shape), "by_step": list(row.by_step)} for row in self.rows]
        for row in rows:  # JSON has no NaN
            row |= {key: None if isinstance(x, float) and x != x else x for key, x in row.items()}
            row["by_step"] = [None if x != x else x for x in row["by_step"]]
        told: dict[str, Any] = {
            "agree": self.agree,
            "first": self.first and self.first.stage,
            "ours": dict(self.ours),
            "theirs": dict(self.theirs),
            "stages": rows,
            "missing": list(self.missing),
            "stopped": self.stopped,
        }
        return json.dumps(told, indent=1)


def compare(
    ours: Recording | Stages, theirs: Recording | Stages, inputs: Inputs | None = None, tolerance: float | None = None
) -> Report:
    """Compare the stages that both have, in the order of `ours`.

    inputs: what functions among the stages are called with; by default those of the recording among the two.
    tolerance: how much of a stage's largest number counts as rounding; by default ROUNDING of the least exact dtype
    among the stage's and those of the recorded models: logits are guided in float32, whatever made them.
    Raises ValueError where no stage is on both sides, for inputs that are missing, and for two recordings of different
    inputs.
    """
    recordings = [side for side in (ours, theirs) if isinstance(side, Recording)]
    if len(recordings) == 2:
        _same_inputs(*(recording.inputs for recording in recordings))
    if inputs is None and recordings:
        inputs = recordings[0].inputs
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be 0 or more and below 1, got {tolerance}")
    mine, other = (side.stages if isinstance(side, Recording) else side for side in (ours, theirs))
    both = [stage for stage in mine if stage in other]
    if not both:
        raise ValueError(f"the two have no stage in common: {', '.join(mine)}; and {', '.join(other)}")
    values: dict[str, tuple[Tensor, Tensor]] = {}
    failed: dict[str, Row] = {}
    for stage in both:
        one, two = _made(stage, mine, inputs), _made(stage, other, inputs)
        if isinstance(one, Tensor) and isinstance(two, Tensor):
            values[stage] = one, two
        else:
            note = next(side for side in (one, two) if isinstance(side, str))
            failed[stage] = Row(stage, (), torch.nan, torch.nan, torch.nan, DIFFERENT, note=note)
    models = max((_rounding(recording.about.get("dtype", "")) for recording in recordings), default=0.0)
    rows = [failed.get(stage) or _row(stage, values, inputs, tolerance, models) for stage in both]
    missing = tuple(stage for stage in [*mine, *other] if stage not in both)
    told = [side.about if isinstance(side, Recording) else {"by": "functions"} for side in (ours, theirs)]
    stopped = [
        f"{who} stopped after {[*side.stages][-1]}: {side.stopped}."
        for who, side in (("Ours", ours), ("Theirs", theirs))
        if isinstance(side, Recording) and side.stopped
    ]
    return Report(tuple(rows), missing, told[0], told[1], " ".join(stopped))


def _same_inputs(one: Inputs, other: Inputs) -> None:
    names = [name for name, x in one.tensors().items() if not _equal(x, other.tensors().get(name))]
    names += [name for name, x in one.numbers().items() if other.numbers().get(name) != x]
    if names:
        raise ValueError(f"the two were made of different inputs: {', '.join(names)}")


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and bool((one == other).all())


def _made(stage: str, stages: Stages, inputs: Inputs | None) -> Tensor | str:
    """The tensor of a stage; or the error that a function of another implementation raised, as text."""
    value = stages[stage]
    if callable(value):
        if inputs is None:
            raise ValueError(f"inputs must be given: {stage} is a function of them")
        try:
            value = value(inputs)
        except Exception as error:
            return f"failed: {type(error).__name__}: {str(error)[:200]}"
    return torch.as_tensor(value).detach().cpu()


def _rounding(dtype: str) -> float:
    # Of a dtype by its name, which a file may have for something else.
    return next((allowed for known, allowed in ROUNDING.items() if str(known) == f"torch.{dtype}"), 0.0)


def _row(
    stage: str,
    values: Mapping[str, tuple[Tensor, Tensor]],
    inputs: Inputs | None,
    tolerance: float | None,
    models: float,
) -> Row:
    one, other = values[stage]
    shape = tuple(one.shape)
    if one.shape != other.shape:
        note = f"shapes differ: {shape} and {tuple(other.shape)}"
        return Row(stage, shape, torch.nan, torch.nan, torch.nan, DIFFERENT, note=note)
    codes = not (one.is_floating_point() or other.is_floating_point())
    difference = (one != other).double() if codes else (one.double() - other.double()).abs()
    # Equal infinities are no difference, and neither is NaN on both sides.
    difference = difference.masked_fill((one == other) | (one.isnan() & other.isnan()), 0)
    kind, _, what = stage.rpartition(".")
    first = _first_steps(kind, values, inputs) if kind in SCORES else None
    if first is not None and what == SCORES[kind]:
        # After another code the two go on from something else: nothing later can be compared.
        difference = difference.masked_fill((_steps(kind, shape, inputs) > first)[..., None], 0)
    largest, mean = (float(x) for x in (difference.max(), difference.mean())) if difference.numel() else (0.0, 0.0)
    scale = float(other.double().nan_to_num(0, 0, 0).abs().max()) if other.numel() else 0.0
    least = max(models, *(ROUNDING.get(dtype, 0.0) for dtype in (one.dtype, other.dtype)))
    allowed = 0.0 if codes else least if tolerance is None else tolerance
    row = Row(stage, shape, scale, largest, mean, EQUAL, allowed, _by_step(stage, difference))
    if largest == 0:
        return row
    if codes and first is not None and inputs is not None:
        return _with_decisions(row, kind, values, inputs, first)
    # Written so that NaN differs.
    return replace(row, verdict=ROUNDED if largest <= allowed * scale else DIFFERENT)


def _by_step(stage: str, difference: Tensor) -> tuple[float, ...]:
    # The largest at each position of the axis of time, where the stage has one.
    axes = described(stage)[0].split()
    time = next((i for i, axis in enumerate(axes) if axis in ("L", "S", "1+S", "T")), None)
    if time is None or len(axes) != difference.dim() or not difference.numel():
        return ()
    return tuple(difference.movedim(time, 0).flatten(1).amax(1).tolist())


# By what codes are decided: the largest of these, plus noise where they are drawn, or the smallest distance.
SCORES = {"greedy": "logits", "sampled": "logits", "codec": "distances"}


def _steps(kind: str, shape: tuple[int, ...], inputs: Inputs | None) -> Tensor:
    # (K, T): which step decides each code. Frames are coded apart from each other, codebook after codebook.
    K, T = shape[1:3]
    if kind == "codec" or inputs is None:
        return torch.arange(K)[:, None].expand(K, T)
    return torch.arange(T) + torch.tensor(inputs.delays)[:, None]


def _first_steps(kind: str, values: Mapping[str, tuple[Tensor, Tensor]], inputs: Inputs | None) -> Tensor | None:
    """The first step that decided otherwise, or one past the end: of each row (B, 1, 1), of the codec's codes for each
    frame (B, 1, T). None where codes cannot be compared."""
    one, other = values.get(f"{kind}.codes", (torch.empty(0), torch.empty(1)))
    known = inputs is not None and (kind == "codec" or (one.dim() == 3 and one.shape[1] == len(inputs.delays)))
    if one.shape != other.shape or one.dim() != 3 or not known:
        return None
    step = _steps(kind, tuple(one.shape), inputs)
    step = step.masked_fill(one == other, int(step.max()) + 1)
    return step.amin(1, keepdim=True) if kind == "codec" else step.flatten(1).amin(1)[:, None, None]


def _with_decisions(
    row: Row, kind: str, values: Mapping[str, tuple[Tensor, Tensor]], inputs: Inputs, first: Tensor
) -> Row:
    """The row of codes that differ, with the first decisions that came out otherwise, and how near they were.

    Where theirs won by less than the scores of the two sides are apart, either may win.
    """
    one, other = values[row.stage]
    steps = _steps(kind, row.shape, inputs)
    cells = ((one != other) & (steps == first)).nonzero().tolist()
    cells.sort(key=lambda cell: int(steps[cell[1], cell[2]]))
    told = [_decision(kind, values, inputs, int(steps[k, t]), b, k, t) for b, k, t in cells]
    far = [note for note, near in told if not near]
    note = far[0] if far else told[0][0]
    if len(cells) > 1:
        note += f"; of {len(cells)} decisions that were the first to come out otherwise {len(far)} were not near"
    return replace(row, verdict=DIFFERENT if far else NEAR, first=int(first.min()), note=note)


def _decision(
    kind: str, values: Mapping[str, tuple[Tensor, Tensor]], inputs: Inputs, step: int, b: int, k: int, t: int
) -> tuple[str, bool]:
    """A sentence about one decision that came out otherwise, and whether it was near."""
    one, other = values[f"{kind}.codes"]
    mine, code = int(one[b, k, t]), int(other[b, k, t])
    told = f"differs at step {step}: row {b}, codebook {k}, frame {t} is {mine} here and {code} there"
    sides = [side[b, k, t].double() for side in values.get(f"{kind}.{SCORES[kind]}", ())]
    if len(sides) != 2 or sides[0].shape != sides[1].shape:
        return told, False
    apart = float((sides[0] - sides[1]).abs().max())
    scores = -sides[1] if kind == "codec" else sides[1]
    if kind == "sampled":
        apart /= inputs.temperature
        scores = top_k(scores / inputs.temperature, inputs.top_k) - _noise(inputs, step, one.shape, b, k, len(scores))
    if not 0 <= code < len(scores) or scores[code] < scores.max():
        return f"{told}, which its own {SCORES[kind]} do not explain", False
    if not 0 <= mine < len(scores):
        return f"{told}, of {len(scores)} codes", False
    gap = float(scores[code] - scores[mine])
    near = gap <= 2 * apart
    how = "nearer" if near else "not so near"
    return f"{told}; it won by {gap:.2g}, where the {SCORES[kind]} are apart by {apart:.2g}: {how}", near


def _noise(inputs: Inputs, step: int, shape: torch.Size, b: int, k: int, codes: int) -> Tensor:
    """(V,): what torch.multinomial subtracts from the log probabilities before it takes the largest: the logarithm of
    an exponential number for each cell of (B * K, V), one call a step, on a CPU."""
    generator = torch.Generator().manual_seed(inputs.sampling_seed)
    for _ in range(step + 1):
        drawn = torch.empty(shape[0] * shape[1], codes).exponential_(generator=generator)
    return drawn.view(*shape[:2], codes)[b, k].double().log()


def _one_line(about: Mapping[str, str]) -> str:
    return ", ".join(value if key in ("by", "device", "dtype") else f"{key} {value}" for key, value in about.items())
