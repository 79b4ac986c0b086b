"""The page of a clip: one HTML file with all numbers in it, as base64, and the sound as 16-bit samples."""

import base64
import html
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import output
from .clip import Anatomy, page_bytes

HERE = Path(__file__).parent
# What the rates of the whole sound and of fewer codebooks are divided by (None: left out), in order of preference.
RATES = ((1, 1), (1, 2), (1, 4), (1, None), (2, None), (4, None))


def check_page(path: str | os.PathLike[str]) -> None:
    """Raise what write_page() would raise for its path, so that it is known before there is a clip to show.

    Raises FileNotFoundError where the folder does not exist; PermissionError where folder or file must not be written
    to; ValueError for a suffix other than .html or .htm, and for what is a folder, a block device or a socket.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"path: {path} must end in .html or .htm")
    output.check_target(Path(path))


def write_page(path: str | os.PathLike[str], clip: Anatomy, facts: dict[str, str] | None = None) -> int:
    """Write the page of a clip, whole or not at all; returns its size in bytes. facts: more to tell of it, such as the
    model's name. Raises what check_page() raises, and OSError where the system does not write."""
    check_page(path)
    content = page(clip, facts).encode()
    output.write(Path(path), content)
    return len(content)


def page(clip: Anatomy, facts: dict[str, str] | None = None) -> str:
    """The page of a clip. facts: more to tell of it, such as the model's name."""
    template, style, script = (
        (HERE / name).read_text(encoding="utf-8") for name in ("template.html", "anatomy.css", "anatomy.js")
    )
    told = contents(clip, facts)
    # The sound gets what the numbers leave over.
    used = len(template) + len(style) + len(script) + len(json.dumps(told))
    sounds, left_out = _sounds(clip, page_bytes(clip.seconds) - used)
    told |= {"sounds": sounds, "leftOut": told["leftOut"] + left_out}
    parts = {
        "title": html.escape("no text" if clip.text is None else clip.text),
        "style": style,
        "script": script,
        # No "<" in it, which could end the element that holds it.
        "data": json.dumps(told, allow_nan=False).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def contents(clip: Anatomy, facts: dict[str, str] | None = None) -> dict[str, Any]:
    """All that the page's script reads but the sound. An array: its dtype, shape and content, base64, little-endian."""
    left_out: list[str] = []
    arrays = {
        "codes": _array(clip.codes, np.uint16),
        "probability": _array(clip.probability, np.float32),
        "rank": _array(clip.rank, np.uint16),
        "kept": _array(clip.kept, np.uint16),
        "entropy": _array(clip.entropy, np.float32),
        "likeliest": _array(clip.likeliest, np.uint16),
        "likeliest_probability": _array(clip.likeliest_probability, np.float32),
    }
    if clip.moved is not None:
        arrays["moved"] = _array(clip.moved, np.float32)
    if clip.attention is not None:
        arrays["attention"] = _array((clip.attention * 255).round(), np.uint8)
        left_out = _left_out_of_attention(clip)
    return {
        "text": clip.text,
        "tokens": list(clip.tokens),
        "facts": _facts(clip) | (facts or {}),
        "delays": list(clip.delays),
        "codebookSize": clip.codebook_size,
        "greedy": clip.sampling.greedy,
        "frameRate": clip.sampling_rate / clip.hop,
        "seconds": clip.seconds,
        "stepsPerColumn": clip.steps_per_column,
        "leftOut": left_out,
        "arrays": arrays,
    }


def _facts(clip: Anatomy) -> dict[str, str]:
    how, (K, T) = clip.sampling, clip.codes.shape
    drawn = [
        f"temperature {how.temperature:g}",
        f"top-k {how.top_k}" if how.top_k else "",
        f"top-p {how.top_p:g}" if how.top_p < 1 else "",
        f"min-p {how.min_p:g}" if how.min_p else "",
    ]
    channels = clip.audio[-1].shape[0]
    return {
        "length": f"{clip.seconds:g} s, {T} frames, {T + max(clip.delays)} steps",
        "codes": f"{K} codebooks of {clip.codebook_size}" + (f" on {channels} channels" if channels > 1 else ""),
        "audio": f"{clip.sampling_rate} Hz, {'mono' if channels == 1 else 'stereo'}",
        "decoder": f"{clip.blocks} blocks of {clip.heads} heads",
        "guidance": f"{how.guidance_scale:g}",
        "codes are": "the likeliest" if how.greedy else "drawn, " + ", ".join(filter(None, drawn)),
    }


def _left_out_of_attention(clip: Anatomy) -> list[str]:
    assert clip.attention is not None
    told = []
    if clip.steps_per_column > 1:
        told.append(f"Attention to the text is shown as the mean of {clip.steps_per_column} steps each.")
    if clip.attention.shape[0] < clip.blocks:
        told.append("Attention to the text is shown as the mean of all blocks and heads.")
    elif clip.attention.shape[1] < clip.heads:
        told.append("Attention to the text is shown as the mean of all heads of a block.")
    return told


def _sounds(clip: Anatomy, budget: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The sounds that fit into so many bytes, the whole one last, and what is left out of them."""
    C, N = clip.audio[-1].shape
    for whole, partial in RATES:
        samples = C * N / whole + (0 if partial is None else (len(clip.audio) - 1) * C * N / partial)
        if samples * 2 * 4 / 3 + 200 * len(clip.audio) <= budget:  # base64 takes 4 bytes for 3
            break
    sounds = []
    for count, audio in enumerate(clip.audio, start=1):
        divisor = whole if count == len(clip.audio) else partial
        if divisor is not None:
            rate = max(1, clip.sampling_rate // divisor)
            pcm = (_at_rate(audio, clip.sampling_rate, rate).clamp(-1, 1) * (2**15 - 1)).round()
            sounds.append({"codebooks": count, "rate": rate, "samples": _array(pcm, np.int16)})
    told = []
    if whole > 1:
        told.append(f"The sound is stored at {clip.sampling_rate // whole} Hz.")
    if partial is None and len(clip.audio) > 1:
        told.append("The sound of fewer than all codebooks is left out.")
    elif partial is not None and partial > 1 and len(clip.audio) > 1:
        told.append(f"The sound of fewer than all codebooks is stored at {clip.sampling_rate // partial} Hz.")
    return sounds, told


def _at_rate(audio: Tensor, rate: int, new_rate: int) -> Tensor:
    """Audio (C, N) at a lower rate: its spectrum (of the whole clip at once), cut off above the new one's half."""
    if rate == new_rate:
        return audio
    N = audio.shape[-1]
    samples = max(1, round(N * new_rate / rate))
    return torch.fft.irfft(torch.fft.rfft(audio)[..., : samples // 2 + 1], n=samples) * samples / N


def _array(values: Tensor, dtype: type[np.generic]) -> list[Any]:
    """Dtype, shape and content of an array."""
    kind = np.dtype(dtype).newbyteorder("<")
    content: Sequence[Any] = [np.dtype(dtype).name, list(values.shape)]
    return [*content, base64.b64encode(values.numpy().astype(kind).tobytes()).decode()]
