"""One clip from the inside: the numbers on the page are those that the model computed, and the page works in a browser.

The browser is a headless Chromium; where there is none, its tests are skipped.
"""

import base64
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional as F

from musicgen_ref import GenerationOptions, MusicGen, delay
from musicgen_ref.__main__ import main
from musicgen_ref.anatomy import Anatomy, clip, dissect, page, write_page
from musicgen_ref.attention import Trace
from musicgen_ref.encodec import Chunk
from musicgen_ref.model import Sampling, Step
from tests import tiny
from tests.browser import Browser, find

CAPTION = "a calm <piano> & {{data}}"
OPTIONS = GenerationOptions(seconds=0.4, temperature=0.7, top_k=20, guidance_scale=2.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.complete(tmp_path_factory.mktemp("mono") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> MusicGen:
    return MusicGen.from_pretrained(folder)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> MusicGen:
    return MusicGen.from_pretrained(tiny.complete(tmp_path_factory.mktemp("stereo") / "model", channels=2))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def embedded(html: str) -> dict[str, Any]:
    """The data of a page."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    told: dict[str, Any] = json.loads(data)
    return told


def array(packed: list[Any]) -> np.ndarray:
    dtype, shape, content = packed
    return np.frombuffer(base64.b64decode(content), np.dtype(dtype).newbyteorder("<")).reshape(shape)


def arrays(html: str) -> dict[str, np.ndarray]:
    return {name: array(packed) for name, packed in embedded(html)["arrays"].items()}


@pytest.mark.parametrize("kind", ["model", "stereo"])
def test_the_numbers_of_a_code_are_those_it_was_drawn_by(kind: str, request: pytest.FixtureRequest) -> None:
    """Computed anew from generate()'s logits, with nothing of sampling.py."""
    model: MusicGen = request.getfixturevalue(kind)
    made = model.generate([CAPTION], OPTIONS, generator=seeded(), return_logits=True)
    assert made.logits is not None
    shown = arrays(page(dissect(model, CAPTION, OPTIONS, generator=seeded())))
    assert_array_equal(shown["codes"], made.codes[0])

    logits = made.logits[0].double().numpy() / 0.7  # (K, T, V)
    order = np.argsort(-logits, axis=-1)
    kept = np.take_along_axis(logits, order[..., :20], -1)
    p = np.exp(kept - kept.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    (K, T), codes = shown["codes"].shape, shown["codes"]
    rank = (order == codes[..., None]).argmax(-1)
    assert rank.max() < 20
    assert_array_equal(shown["rank"], rank)
    assert_array_equal(shown["kept"], np.full((K, T), 20))
    assert_allclose(shown["probability"], np.take_along_axis(p, rank[..., None], -1)[..., 0], rtol=1e-5)
    assert_allclose(shown["entropy"], -(p * np.log2(p)).sum(-1), rtol=1e-4)
    assert_array_equal(shown["likeliest"], order[..., :10])
    assert_allclose(shown["likeliest_probability"], p[..., :10], rtol=1e-5)


def test_what_guidance_moves_is_the_distance_from_the_texts_own_logits(model: MusicGen) -> None:
    """The decoder runs over the whole table at once, with the text alone."""
    made = model.generate([CAPTION], OPTIONS, generator=seeded(), return_logits=True)
    assert made.logits is not None
    V = model.decoder.config.vocab_size
    table = F.pad(delay.apply(made.codes, model.delays, fill=V), (1, 0), value=V)
    with torch.no_grad():
        own = delay.undo(model.decoder(table[..., :-1], *model.encode_text([CAPTION])), model.delays)
    expected = (made.logits - own)[0].square().mean(-1).sqrt()
    shown = arrays(page(dissect(model, CAPTION, OPTIONS, generator=seeded())))["moved"]
    assert expected.min() > 0.1
    assert_allclose(shown, expected, rtol=1e-4)


def test_attention_to_the_caption_is_what_every_step_computed(model: MusicGen) -> None:
    made = model.generate([CAPTION], OPTIONS, generator=seeded(), trace=Trace(weights=True, states=False))
    expected = np.stack([[w[0, :, 0] for w in step.cross_weights] for step in made.traces], axis=2)
    html = page(dissect(model, CAPTION, OPTIONS, generator=seeded()))
    told, shown = embedded(html), arrays(html)["attention"] / 255
    L = len(told["tokens"])
    assert told["leftOut"] == [] and told["stepsPerColumn"] == 1
    config = model.decoder.config
    assert shown.shape == expected.shape == (config.layers, config.heads, len(made.traces), L)
    assert_allclose(shown, expected, atol=0.5 / 255 + 1e-6, rtol=0)  # a weight is one of 256
    assert_allclose(shown.sum(-1), 1, atol=L * 0.5 / 255, rtol=0)
    assert model.tokenizer.decode(model.tokenizer.encode(CAPTION)).replace(" ", "") == "".join(told["tokens"])


@pytest.mark.parametrize(
    ("budget", "shape", "steps", "words"),
    [
        (600, (2, 4, 12, 5), 2, ["the mean of 2 steps each"]),
        (100, (2, 1, 6, 5), 4, ["the mean of 4 steps each", "of all heads of a block"]),
        (15, (1, 1, 3, 5), 8, ["the mean of 8 steps each", "of all blocks and heads"]),
        (1, (1, 1, 3, 5), 8, ["the mean of 8 steps each", "of all blocks and heads"]),
    ],
)
def test_attention_that_would_be_too_large_is_a_mean_and_the_page_says_so(
    budget: int, shape: tuple[int, ...], steps: int, words: list[str], model: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = (torch.tensor([[5, 6, 7, 8, 1]]), torch.ones(1, 5, dtype=torch.bool))
    monkeypatch.setattr(model, "tokenizer", lambda texts: ids)
    monkeypatch.setattr(clip, "attention_budget", lambda *_: budget)
    options = GenerationOptions(frames=20, guidance_scale=1)  # 23 steps
    made = model.generate(ids, options, generator=seeded(), trace=Trace(weights=True, states=False))
    whole = torch.stack([torch.stack([w[0, :, 0] for w in step.cross_weights]) for step in made.traces], dim=2)
    if shape[1] == 1:
        whole = whole.mean(1, keepdim=True)
    if shape[0] == 1:
        whole = whole.mean(0, keepdim=True)
    expected = torch.stack([part.mean(2) for part in whole.split(steps, dim=2)], dim=2)
    seen = dissect(model, "a", options, generator=seeded())
    assert seen.attention is not None and seen.attention.shape == shape and seen.steps_per_column == steps
    torch.testing.assert_close(seen.attention, expected)
    left_out = embedded(page(seen))["leftOut"]
    assert len(left_out) == len(words) and all(word in told for word, told in zip(words, left_out, strict=True))
    assert seen.tokens == ["5", "6", "7", "8", "1"]  # this tokenizer does not tell what an id stands for


@pytest.mark.parametrize("kind", ["model", "stereo"])
def test_the_sound_of_the_first_codebooks_is_the_codecs(kind: str, request: pytest.FixtureRequest) -> None:
    model: MusicGen = request.getfixturevalue(kind)
    channels = model.decoder.config.channels
    html = page(dissect(model, CAPTION, OPTIONS, generator=seeded()))
    codes = torch.from_numpy(arrays(html)["codes"].astype(np.int64))[None]
    sounds = embedded(html)["sounds"]
    assert [sound["codebooks"] for sound in sounds] == [1, 2, 3, 4]
    assert {sound["rate"] for sound in sounds} == {model.sampling_rate}
    for sound in sounds:
        count = sound["codebooks"]
        with torch.no_grad():
            sides = [
                model.codec.decode([Chunk(codes[:, c : c + count * channels : channels])]) for c in range(channels)
            ]
        expected = torch.cat(sides, dim=1)[0].clamp(-1, 1)
        assert_allclose(array(sound["samples"]) / 32767, expected, atol=0.51 / 32767, rtol=0)
    assert_allclose(array(sounds[-1]["samples"]) / 32767, model.decode(codes)[0].clamp(-1, 1), atol=1e-4, rtol=0)


def test_greedy_codes_no_text_no_guidance_and_another_pattern_are_shown(model: MusicGen) -> None:
    options = GenerationOptions(frames=6, greedy=True, guidance_scale=1, pattern="parallel")
    html = page(dissect(model, None, options))
    told, shown = embedded(html), arrays(html)
    made = model.generate(None, options, return_logits=True)
    assert made.logits is not None
    assert_array_equal(shown["codes"], made.codes[0])
    assert not shown["rank"].any()
    assert_allclose(shown["probability"], made.logits[0].softmax(-1).amax(-1), rtol=1e-5)
    assert {"moved", "attention"}.isdisjoint(shown) and told["tokens"] == [] and told["text"] is None
    assert told["delays"] == [0] * 4 and told["greedy"]
    for scale in (0, 3):  # nothing is read of a text that is ignored, or that is not there
        quiet = dissect(
            model, "a calm piano" if scale == 0 else None, GenerationOptions(frames=2, guidance_scale=scale)
        )
        assert quiet.attention is None and quiet.moved is None and quiet.tokens == []


def test_the_steps_are_watched_as_they_are_taken(model: MusicGen) -> None:
    columns, totals = [], []

    def watch(steps: Iterable[Step], total: int) -> Iterator[Step]:
        totals.append(total)
        for step in steps:
            columns.append(step.column)
            yield step

    seen = dissect(model, None, GenerationOptions(frames=5), generator=seeded(), watch=watch)
    assert totals == [8] and columns == [*range(1, 9)]
    assert torch.equal(seen.codes, dissect(model, None, GenerationOptions(frames=5), generator=seeded()).codes)


def large(channels: int, rate: int, seconds: int, codebooks: int) -> Anatomy:
    """A clip of random numbers in the sizes of a large model, its attention as large as it may be."""
    T = 50 * seconds
    cells = torch.rand(codebooks, T)
    codes = (cells * 2048).long()
    columns = clip.attention_budget(T, codebooks, rate, rate // 50) // (24 * 16 * 5)
    audio = [torch.rand(channels, rate * seconds) - 0.5] * (codebooks // channels)
    return Anatomy(
        text="a", tokens=["a"] * 5, sampling=Sampling(), delays=delay.delays(codebooks, channels),
        codebook_size=2048, sampling_rate=rate, hop=rate // 50, codes=codes, probability=cells, rank=codes, kept=codes,
        entropy=cells, likeliest=codes[..., None].repeat(1, 1, 10),
        likeliest_probability=cells[..., None].repeat(1, 1, 10), moved=cells,
        attention=torch.rand(24, 16, columns, 5), steps_per_column=2, blocks=24, heads=16, audio=audio,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1, 32000, 8, 4), []),
        ((2, 32000, 8, 8), ["fewer than all codebooks is stored at 16000 Hz"]),
        ((1, 44100, 8, 9), ["fewer than all codebooks is stored at 11025 Hz"]),
        ((2, 48000, 8, 32), ["fewer than all codebooks is left out"]),
        ((2, 96000, 8, 32), ["The sound is stored at 48000 Hz", "fewer than all codebooks is left out"]),
        ((2, 32000, 30, 8), ["fewer than all codebooks is stored at 16000 Hz"]),
        ((1, 16000, 2, 4), []),
    ],
    ids=str,
)
def test_a_page_of_eight_seconds_has_at_most_five_megabytes(sizes: tuple[int, int, int, int], words: list[str]) -> None:
    html = page(large(*sizes))
    assert len(html.encode()) <= 5_000_000 * max(1, sizes[2] / 8)
    told = embedded(html)
    assert told["leftOut"][0] == "Attention to the text is shown as the mean of 2 steps each."
    assert [word for word in words if not any(word in left for left in told["leftOut"][1:])] == []
    assert len(told["leftOut"]) == 1 + len(words)


def test_a_lower_rate_keeps_what_it_can_hold() -> None:
    """A tone below half of the new rate is the same tone, one above it is gone."""
    time = torch.arange(96000 * 8, dtype=torch.float64) / 96000
    seen = large(2, 96000, 8, 32)
    tone, high = torch.sin(2 * torch.pi * 440 * time) / 2, torch.sin(2 * torch.pi * 40000 * time) / 2
    (sound,) = embedded(page(dataclasses.replace(seen, audio=[torch.stack([tone, high])] * 16)))["sounds"]
    assert (sound["codebooks"], sound["rate"]) == (16, 48000)
    left, right = array(sound["samples"]) / 32767
    assert_allclose(left, tone[::2], atol=1e-3)
    assert np.abs(right).max() < 1e-3


def test_the_page_needs_nothing_from_outside_and_a_caption_cannot_break_out(model: MusicGen) -> None:
    caption = '</script><script>alert("1")</script><img src=x onerror=alert(1)>'
    html = page(dissect(model, caption, GenerationOptions(frames=2)), {"model": "</script><b>"})
    code = html.replace(embedded_text(html), "")
    assert not re.findall(r"https?:|//\w|\bsrc=[^x]|@import|url\(|fetch\(|XMLHttpRequest|import\(|WebSocket", code)
    assert "default-src 'none'" in html and html.count("<script") == 2
    assert embedded(html)["text"] == caption and embedded(html)["facts"]["model"] == "</script><b>"


def embedded_text(html: str) -> str:
    return html[html.index('id="data">') : html.index("</script>", html.index('id="data">'))]


def test_the_pages_files_add_little_to_the_wheel() -> None:
    files = [file for file in Path(clip.__file__).parent.iterdir() if file.is_file()]
    assert {file.suffix for file in files} == {".py", ".html", ".css", ".js"}
    assert sum(file.stat().st_size for file in files) < 1_000_000


def test_the_command_shows_the_clip_that_generate_makes(
    folder: Path, model: MusicGen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "clip.html"
    arguments = ["--seconds", "0.4", "--seed", "5", "--temperature", "0.7", "--top-k", "20", "--guidance", "2.5"]
    assert main(["anatomy", CAPTION, "--model", str(folder), "-o", str(output), *arguments]) == 0
    size = output.stat().st_size
    assert capsys.readouterr().out == f"{output}: 0.4 s, {size / 1e6:.1f} MB, seed 5\n"
    told = embedded(output.read_text(encoding="utf-8"))
    assert (told["facts"]["model"], told["facts"]["seed"]) == (str(folder), "5")
    made = model.generate([CAPTION], OPTIONS, generator=seeded())
    assert_array_equal(array(told["arrays"]["codes"]), made.codes[0])
    assert [file.name for file in tmp_path.iterdir()] == ["clip.html"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("clip.wav", "--output: clip.wav must end in .html or .htm"),
        ("no/clip.html", "--output: no folder"),
        ("folder.html", "--output: folder.html is a folder, must be a file name"),
    ],
)
def test_a_page_that_cannot_be_written_is_told_before_the_model_is_opened(
    output: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(MusicGen, "from_pretrained", None)
    assert main(["anatomy", "a", "-o", output]) == 2
    assert capsys.readouterr().err.startswith(f"musicgen-ref: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "0"], "temperature must be above 0, got 0.0"),
        (["--seconds", "1e6"], "more than max_bytes"),
        (["--seed", str(2**64)], "--seed must be a whole number"),
        (["--device", "meta"], "--device must be one that"),
    ],
)
def test_a_bad_argument_of_the_command_is_one_line(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "clip.html"
    assert main(["anatomy", "a", "--model", str(folder), "-o", str(output), *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error and not output.exists()


def test_a_stopped_command_leaves_the_old_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "clip.html"
    output.write_text("old")

    def interrupted(*_: object, **named: object) -> None:
        raise KeyboardInterrupt

    for step in ("generate_steps", "decode"):
        owner = MusicGen if step == "generate_steps" else type(MusicGen.from_pretrained(folder).codec)
        monkeypatch.setattr(owner, step, interrupted)
        command = ["anatomy", "a", "--model", str(folder), "-o", str(output), "--seconds", "0.1"]
        assert main(command) == 130
        assert capsys.readouterr().err == "musicgen-ref: stopped, nothing written\n"
        monkeypatch.undo()
    assert output.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["clip.html"]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("no Chromium is installed here: the page is not tried in a browser")
    with Browser(program) as running:
        yield running


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
    """The page of four seconds of the demo model: its file, its arrays and all of its data."""
    file = tmp_path_factory.mktemp("page") / "clip.html"
    made = dissect(
        MusicGen.from_pretrained("demo"), "a fast bell melody", GenerationOptions(seconds=4), generator=seeded()
    )
    write_page(file, made, {"model": "demo"})
    html = file.read_text(encoding="utf-8")
    return file, arrays(html), embedded(html)


@pytest.fixture
def opened(browser: Browser, shown: tuple[Path, Any, Any]) -> Iterator[Browser]:
    """The page, in a new tab; in the end it has complained of nothing and asked for nothing."""
    browser.console.clear()
    browser.requests.clear()
    yield browser.open(shown[0])
    assert browser.console == []
    assert [url for url in browser.requests if url != "data:,"] == [shown[0].resolve().as_uri()]


def cell_place(page: Browser, k: int, column: int, columns: int) -> tuple[float, float]:
    """The middle of a cell of the picture of codes."""
    left, top, width, height = page.place("#codes")
    return left + (column + 0.5) * width / columns, top + (k + 0.5) * height / 4


def colour(page: Browser, k: int, column: int, columns: int) -> list[int]:
    """Of the middle of a cell, as it is drawn: copied to a canvas of one pixel, because Chromium warns of reads."""
    return page.value(
        "((c, one) => {"
        f"one.drawImage(c, -Math.floor(({column} + 0.5) * c.width / {columns}),"
        f" -Math.floor(({k} + 0.5) * c.height / 4));"
        "return [...one.getImageData(0, 0, 1, 1).data]; })"
        "(document.querySelector('#codes'), new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}))"
    )


def seen_by(k: int, frame: int, frames: int) -> set[tuple[int, int]]:
    """The cells that stand before a cell's column in the table of delay.py."""
    numbers = torch.arange(4 * frames).view(1, 4, frames)
    table = delay.apply(numbers, (0, 1, 2, 3), fill=-1)[0]
    column = int((table[k] == numbers[0, k, frame]).nonzero())
    return {divmod(int(n), frames) for n in table[:, :column].flatten() if n >= 0}


def check_told(page: Browser, k: int, frame: int, values: dict[str, np.ndarray]) -> None:
    """What the page says of a cell is what the arrays hold."""
    text, code = page.text("#cell"), values["codes"][k, frame]
    assert text.startswith(
        f"Codebook k = {k}, frame {frame} ({frame / 50:.2f} s): code {code}, decided in step {frame + k}."
    )
    told = float(re.search(r"Probability ([\d.e+-]+) %", text)[1])
    assert told == pytest.approx(100 * values["probability"][k, frame], rel=0.01)
    bits = re.search(
        r"Surprise (\d+\.\d+) bits, entropy (\d+\.\d+) bits, guidance moved the logits by (\d+\.\d+)", text
    )
    expected = [-np.log2(values["probability"][k, frame]), values["entropy"][k, frame], values["moved"][k, frame]]
    assert_allclose([float(bit) for bit in bits.groups()], expected, atol=0.0051)
    frames = values["codes"].shape[1]
    assert f"It had seen {len(seen_by(k, frame, frames))} of {4 * frames} codes" in text
    rows = page.value("[...document.querySelectorAll('#alternatives li')].map(row => row.textContent)")
    likeliest = list(values["likeliest"][k, frame])
    assert [int(re.match(r"code (\d+):", row)[1]) for row in rows[:10]] == likeliest
    assert next(row for row in rows if "taken" in row).startswith(f"code {code}:")
    assert len(rows) == 10 + (code not in likeliest)


def test_a_code_that_the_mouse_points_at_is_told_and_what_it_had_seen_is_lit(
    opened: Browser, shown: tuple[Path, dict[str, np.ndarray], Any]
) -> None:
    values, columns, frames = shown[1], 203, 200
    before = {(j, f): colour(opened, j, f, columns) for j in range(4) for f in range(55, 70)}
    opened.mouse(*cell_place(opened, 2, 60, columns))
    check_told(opened, 2, 60, values)
    after = {cell: colour(opened, *cell, columns) for cell in before}
    near = {cell for cell in before if cell[1] not in (59, 61)} - {(2, 60)}  # those beside it lie under its frame
    lit = {cell for cell in near if after[cell] == before[cell]}
    assert lit == seen_by(2, 60, frames) & near and len(near - lit) > 20

    opened.mouse(*cell_place(opened, 1, 100, columns), click=True)  # holds it
    opened.mouse(*cell_place(opened, 3, 20, columns))
    check_told(opened, 1, 100, values)
    assert opened.text("#cell-title") == "The code that is held (another click lets go)"
    opened.mouse(*cell_place(opened, 3, 20, columns), click=True)
    assert opened.text("#cell-title") == "The code that is pointed at"
    opened.mouse(*cell_place(opened, 0, 0, columns))
    check_told(opened, 0, 0, values)
    assert "It had seen 0 of 800 codes (k = 0: none; k = 1: none; k = 2: none; k = 3: none)." in opened.text("#cell")


def test_the_delayed_view_shows_a_code_where_it_is_decided(
    opened: Browser, shown: tuple[Path, dict[str, np.ndarray], Any]
) -> None:
    values, columns = shown[1], 203
    plain = [colour(opened, k, 80, columns) for k in range(4)]
    opened.click("#views label:nth-of-type(2)")
    assert [colour(opened, k, 80 + k, columns) for k in range(4)] == plain
    cells = [(k, column) for k in range(4) for column in range(70, 95) if column not in (82, 83, 84)]
    before = {cell: colour(opened, *cell, columns) for cell in cells}
    opened.mouse(*cell_place(opened, 3, 83, columns))
    check_told(opened, 3, 80, values)
    for cell, drawn in before.items():  # every code left of its column is lit, every other is not
        assert (colour(opened, *cell, columns) == drawn) == (cell[1] < 83)
    told = opened.text("#cell")
    opened.mouse(*cell_place(opened, 3, 1, columns))  # a special token: nothing to tell
    assert opened.text("#cell") == told
    opened.click("#views label:nth-of-type(1)")
    opened.mouse(*cell_place(opened, 0, 0, columns))
    opened.mouse(*cell_place(opened, 3, 80, columns))
    assert opened.text("#cell") == told


def test_the_keyboard_reaches_every_code_and_every_control(
    opened: Browser, shown: tuple[Path, dict[str, np.ndarray], Any]
) -> None:
    reached = []
    for _ in range(20):
        opened.press("Tab")
        reached.append(opened.value("document.activeElement.id || document.activeElement.name"))
        if reached[-1] == "codes":
            break
    controls = ["play", "position", "sound", "view", "colour", "block", "head", "narrower", "wider", "scroll", "codes"]
    assert reached == controls
    assert opened.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, place in (
        ("ArrowRight", (0, 0)),
        ("ArrowRight", (0, 1)),
        ("ArrowDown", (1, 1)),
        ("PageDown", (1, 51)),
        ("ArrowLeft", (1, 50)),
        ("End", (1, 199)),
        ("ArrowRight", (1, 199)),
        ("ArrowUp", (0, 199)),
        ("ArrowUp", (0, 199)),
        ("PageUp", (0, 149)),
        ("Home", (0, 0)),
    ):
        opened.press(key)
        check_told(opened, *place, shown[1])


def now(page: Browser) -> float:
    return float(page.text("#time").split()[0])


# Keeps what is played: from where, and a piece of the sound, which is looked at and not heard.
SPY = """
window.played = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, offset) {
  played.push([offset, [...this.buffer.getChannelData(0).slice(20000, 20050)], this.buffer.duration]);
  return start.call(this, when, offset);
};
"""


def test_the_pictures_are_those_of_the_sound_that_is_chosen(opened: Browser) -> None:
    pictures = set()
    for i in (1, 2, 3, 4):
        opened.click(f"#sounds label:nth-of-type({i})")
        name = {1: "the first", 4: "all 4"}.get(i, f"the first {i}")
        assert opened.value("document.querySelector('#waveform').ariaLabel") == f"Waveform of {name}"
        assert opened.value("document.querySelector('#spectrogram').ariaLabel") == f"Spectrogram of {name}"
        pictures |= {opened.value(f"document.querySelector('#{id}').toDataURL()") for id in ("waveform", "spectrogram")}
    assert len(pictures) == 8


def test_it_plays_and_the_codebooks_switch_at_the_same_place(
    opened: Browser, shown: tuple[Path, Any, dict[str, Any]]
) -> None:
    opened.value(SPY)
    opened.click("#play")
    assert opened.text("#play") == "Pause"
    opened.until("parseFloat(document.querySelector('#time').textContent) > 0.1")
    for i in (1, 2, 3):
        before = now(opened)
        opened.click(f"#sounds label:nth-of-type({i})")
        opened.until(f"parseFloat(document.querySelector('#time').textContent) > {before}")  # it goes on from there
        offset, sound, seconds = opened.value("played.at(-1)")
        assert before <= offset <= now(opened) < 4 and seconds == 4
        assert_allclose(sound, array(shown[2]["sounds"][i - 1]["samples"])[0, 20000:20050] / 32768, atol=1e-6)
    assert len(opened.value("played")) == 4
    cursor = "new DOMMatrix(getComputedStyle(document.querySelector('#cursor')).transform).e"
    opened.click("#play")
    assert opened.text("#play") == "Play"
    stopped = now(opened)
    width = opened.place("#waveform")[2]
    assert opened.value(cursor) == pytest.approx(stopped * 50 * width / 203, abs=3)
    assert now(opened) == stopped > 0.1 and len(opened.value("played")) == 4
    opened.value("document.querySelector('#position').focus()")
    opened.press("End")
    assert now(opened) == 4
    opened.press("Home")
    opened.press("ArrowRight")
    assert now(opened) == 0.02
    left, top, width, height = opened.place("#waveform")
    opened.mouse(left + width * 100 / 203, top + height / 2, click=True)
    assert now(opened) == pytest.approx(2, abs=0.03)


def test_enter_plays_from_the_code_and_the_end_stops(opened: Browser) -> None:
    opened.value("document.querySelector('#codes').focus()")
    for key in ("ArrowRight", "End", "PageUp", "Enter"):
        opened.press(key)
    assert opened.text("#play") == "Pause" and 2.9 < now(opened) <= 4
    opened.until("document.querySelector('#play').textContent === 'Play'")
    assert now(opened) == 4
    opened.click("#play")  # from the beginning again
    assert now(opened) < 3


def test_attention_is_chosen_by_block_and_head(
    opened: Browser, shown: tuple[Path, dict[str, np.ndarray], dict[str, Any]]
) -> None:
    _, values, told = shown
    weights, tokens = values["attention"] / 255, told["tokens"]
    opened.mouse(*cell_place(opened, 2, 60, 203))
    told_before = opened.text("#read")
    assert told_before.startswith("In step 62 all blocks, all heads read most of ")
    for block, head in ((3, -1), (-1, 2), (4, 5)):
        for name, value in (("block", block), ("head", head)):
            opened.value(f"document.querySelector('#{name}').value = '{value}'")
            opened.value(f"document.querySelector('#{name}').dispatchEvent(new Event('change'))")
        chosen = weights if block < 0 else weights[block : block + 1]
        chosen = (chosen if head < 0 else chosen[:, head : head + 1]).mean((0, 1))[62]
        best = int(chosen.argmax())
        read = re.search(r'read most of "(.*?)" ([\d.e+-]+) %', opened.text("#read"))
        assert read[1] == (tokens[best] or "␣")
        assert float(read[2]) == pytest.approx(100 * chosen[best], rel=0.01)


def test_the_averages_by_codebook_are_those_of_the_arrays(
    opened: Browser, shown: tuple[Path, dict[str, np.ndarray], Any]
) -> None:
    values = shown[1]
    rows = opened.value(
        "[...document.querySelectorAll('#means tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert [row[0] for row in rows] == ["k = 0", "k = 1", "k = 2", "k = 3"]
    told = [[float(cell.split()[0]) for cell in row[1:]] for row in rows]
    surprise = -np.log2(values["probability"])
    means = [values["entropy"], surprise, 100 * (values["rank"] == 0), values["moved"]]
    assert_allclose(told, np.stack([each.mean(-1) for each in means], axis=-1), atol=0.0051)


def test_a_screen_reader_finds_names_roles_and_what_changes(opened: Browser) -> None:
    nodes = opened.send("Accessibility.getFullAXTree")["nodes"]
    of_role: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            of_role.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", "").strip())
    assert {"Play", "Narrower", "Wider"} == set(of_role["button"])
    assert of_role["radio"] == [
        "the first",
        "the first 2",
        "the first 3",
        "all 4",
        "by frame",
        "delayed, as they are decided",
    ]
    assert of_role["slider"] == ["Position in the clip"]
    assert of_role["combobox"] == ["Colour of a code", "Attention of block", "head"]
    assert len(of_role["image"]) == 5 and all(of_role["image"])
    assert of_role["application"][0].startswith("Codes. Left and right: frames")
    assert opened.value("document.querySelector('#cell').ariaLive") == "polite"
    assert opened.value("document.documentElement.lang") == "en"
    assert opened.value("document.querySelector('#position').getAttribute('aria-valuetext')") == "0.00 s of 4.00 s"


def test_dark_follows_the_system_and_colours_and_widths_are_chosen(
    browser: Browser, shown: tuple[Path, dict[str, np.ndarray], Any]
) -> None:
    papers = []
    for dark in (False, True):
        page = browser.open(shown[0], dark=dark)
        papers.append(page.value("getComputedStyle(document.body).backgroundColor"))
        drawn_before = page.value("document.querySelector('#spectrogram').toDataURL()")
        other = {"name": "prefers-color-scheme", "value": "light" if dark else "dark"}
        page.send("Emulation.setEmulatedMedia", features=[other])  # the system changes: it is drawn anew
        page.until(f"document.querySelector('#spectrogram').toDataURL() !== '{drawn_before}'")
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 22, 26)"]
    drawn = {page.value("document.querySelector('#codes').toDataURL()")}
    for name in ("probability", "surprise", "entropy"):
        page.value(f"document.querySelector('#colour').value = '{name}'")
        page.value("document.querySelector('#colour').dispatchEvent(new Event('change'))")
        drawn.add(page.value("document.querySelector('#codes').toDataURL()"))
    assert len(drawn) == 4
    width = page.place("#codes")[2]
    page.click("#wider")
    assert page.place("#codes")[2] == pytest.approx(1.5 * width, abs=2)
    page.click("#narrower")
    assert page.place("#codes")[2] == pytest.approx(width, abs=2)


def test_a_clip_of_no_text_and_one_of_two_channels_open_and_play(
    browser: Browser, model: MusicGen, stereo: MusicGen, tmp_path: Path
) -> None:
    """The tiny models' rate, 400 Hz, is one that a browser does not play: it is brought to one that it does."""
    browser.console.clear()
    for name, own, text in (("mono", model, None), ("stereo", stereo, CAPTION)):
        write_page(tmp_path / f"{name}.html", dissect(own, text, OPTIONS, generator=seeded()))
        page = browser.open(tmp_path / f"{name}.html")
        assert page.text("#caption") == ("Music of no text" if text is None else f"\u201c{CAPTION}\u201d")
        hidden = page.value("['#moved-track', '#attention-track'].map(id => document.querySelector(id).hidden)")
        assert hidden == [text is None] * 2
        page.value("document.querySelector('#codes').focus()")
        page.press("ArrowRight")
        page.press("End")
        frame, books = 19, len(own.delays)
        assert page.text("#cell").startswith(f"Codebook k = 0, frame {frame} (0.38 s)")
        total = sum(min(20, max(0, frame - lag)) for lag in own.delays)
        assert f"It had seen {total} of {20 * books} codes" in page.text("#cell")
        page.click("#play")
        page.until("document.querySelector('#play').textContent === 'Play'")  # to its end
        assert now(page) == 0.4
    assert browser.console == []


def test_a_page_of_a_large_models_sizes_works(browser: Browser, tmp_path: Path) -> None:
    """24 blocks of 16 heads, whose attention is kept as the mean of two steps."""
    browser.console.clear()
    seen = large(1, 32000, 8, 4)
    attention = torch.rand(24, 16, 202, 5).softmax(-1)  # of 403 steps
    falling = 0.02 / torch.arange(1, 11).expand(4, 400, 10)
    file = tmp_path / "large.html"
    whole = dataclasses.replace(seen, attention=attention, likeliest_probability=falling)
    assert write_page(file, whole) <= 5_000_000
    page = browser.open(file)
    assert page.text("#left-out") == "Attention to the text is shown as the mean of 2 steps each."
    assert [page.value(f"document.querySelectorAll('#{name} option').length") for name in ("block", "head")] == [25, 17]
    page.value("document.querySelector('#block').value = '23'")
    page.value("document.querySelector('#block').dispatchEvent(new Event('change'))")
    for key, (k, frame), steps in (
        ("ArrowRight", (0, 0), "steps 0 to 1, on average,"),
        ("End", (0, 399), "steps 398 to 399, on average,"),
        ("ArrowDown", (1, 399), "steps 400 to 401, on average,"),
        ("ArrowDown", (2, 399), "steps 400 to 401, on average,"),
        ("ArrowDown", (3, 399), "step 402"),  # the last, by itself
    ):
        page.value("document.querySelector('#codes').focus()")
        page.press(key)
        assert page.text("#cell").startswith(f"Codebook k = {k}, frame {frame} ")
        assert page.text("#read").startswith(f"In {steps} block 23, all heads read most of ")
        told = float(re.search(r'"a" ([\d.]+) %', page.text("#read"))[1])
        best = attention[23, :, (frame + k) // 2].mean(0).max()
        assert told == pytest.approx(100 * float(best), abs=0.3)  # a weight is one of 256
    bars = page.value("[...document.querySelectorAll('#alternatives span')].map(bar => parseFloat(bar.style.width))")
    assert_allclose(bars, 6 / np.arange(1, 11), rtol=1e-3)  # by the likeliest's, however unlikely that is
    page.click("#play")
    page.until("parseFloat(document.querySelector('#time').textContent) > 0.1")
    page.click("#sounds label:nth-of-type(1)")
    page.click("#play")
    assert browser.console == []
