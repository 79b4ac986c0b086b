"""Hostile and damaged tokenizer files: refused in a line that names the file, or read as they are; time and memory
grow with the size of the file and of the text, and no faster."""

import base64
import json
import os
import random
import shutil
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from musicgen_ref import MusicGen, hf, strict, text
from musicgen_ref.text import FILES, Tokenizer
from tests import tiny
from tests.test_text import change, damage_table, train, write_layout

SPIECE, JSON, CONFIG, MAP, ADDED = FILES
HUGE = 10**400


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all five files; not to be written to."""
    folder = write_layout(tmp_path_factory.mktemp("written"), "both")
    (folder / MAP).write_text(json.dumps({"eos_token": "</s>"}))
    (folder / ADDED).write_text("{}")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "tokenizer"))


def check_refused(folder: Path, name: str, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tokenizer.from_directory(folder)
    message = str(caught.value)
    assert caught.type is ValueError
    assert str(folder / name) in message
    assert len(message) < 4000 and "\n" not in message
    assert all(word in message for word in words), message


def table(replacement: bytes) -> bytes:
    """A character map of one entry: "a" becomes the replacement."""
    units = [0] * 512
    units[0] = 256 << 10  # the root's children: character c at 256 ^ c
    units[256 ^ 97] = 1 << 10 | 0x100 | 97  # "a", where a key ends, whose value is at 1 ^ its own place
    units[256 ^ 97 ^ 1] = 0x80000000  # the first replacement
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(trie).to_bytes(4, "little") + trie + replacement + b"\0"


def vocab(edit: Callable[[list[Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda root: edit(root["model"]["vocab"])


def token(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda root: root["added_tokens"][5].update(fields)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


DEEP = nested(300)
# The file, what is done to its JSON, and what the message says beside the file.
FIELDS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "an endless score": (JSON, vocab(lambda rows: rows[9].__setitem__(1, float("inf"))), "a score no finite number"),
    "a score of 400 digits": (JSON, vocab(lambda rows: rows[9].__setitem__(1, HUGE)), "int too large"),
    "a score that is true": (JSON, vocab(lambda rows: rows[9].__setitem__(1, True)), "a score no finite number"),
    "a score in text": (JSON, vocab(lambda rows: rows[9].__setitem__(1, "1")), "a score no finite number"),
    "a piece that is a list": (JSON, vocab(lambda rows: rows[9].__setitem__(0, DEEP)), "a piece is no string"),
    "a piece without a score": (JSON, vocab(lambda rows: rows[9].pop()), "[piece, score]"),
    "pieces in an object": (JSON, lambda root: root["model"].update(vocab={"a1": 0}), "its type is another"),
    "a piece of 1,000 characters": (JSON, vocab(lambda rows: rows.append(["a" * 1000, -1])), "at most 256 characters"),
    "half a character": (JSON, vocab(lambda rows: rows.append(["\ud800", -1.0])), "a piece is no text"),
    "another beginning": (JSON, vocab(lambda rows: rows[0].__setitem__(0, "\U0001f3fb" * 10**5)), "first pieces must"),
    "an endless id": (JSON, token(id=float("inf")), "must each have an id"),
    "an id of 400 digits": (JSON, token(id=HUGE), "must be 92, got a number of more than 20 digits"),
    "an id that is true": (JSON, token(id=True), "must each have an id"),
    "an id in text": (JSON, token(id="92"), "must each have an id"),
    "an id below 0": (JSON, token(id=-1), "must be 92, got -1"),
    "no id": (JSON, lambda root: root["added_tokens"][5].pop("id"), "must each have an id"),
    "a deep id": (JSON, token(id=DEEP), "must each have an id"),
    "a deep token": (JSON, token(content=DEEP), "must each have a content"),
    "an empty token": (JSON, token(content=""), "not empty"),
    "a token of 1,000 characters": (JSON, token(content="\U0001f3fb" * 1000), "at most 256 characters"),
    "half a character in a token": (JSON, token(content="<\udfff>"), "must be text"),
    "a token of another place": (JSON, token(content="<new>"), "must be 190, got 92"),
    "tokens that are a number": (JSON, lambda root: root.update(added_tokens=HUGE), "must be a list or an object"),
    "a table that is a list": (
        JSON, lambda root: root["normalizer"].update(precompiled_charsmap=DEEP), "no readable precompiled_charsmap"
    ),
    "a table that is a number": (
        JSON, lambda root: root["normalizer"].update(precompiled_charsmap=HUGE), "no readable precompiled_charsmap"
    ),
    "a deep normaliser": (JSON, lambda root: root.update(normalizer=DEEP), "no readable precompiled_charsmap"),
    "a million for one character": (
        JSON, lambda root: damage_table(root, lambda _: table(b"x" * 10**6)), "a replacement has 1000000 bytes"
    ),
    "an entry without an end": (
        JSON, lambda root: damage_table(root, lambda content: content + b"x" * 10**6), "must have at most 256"
    ),
    "a last entry without an end": (
        JSON, lambda root: damage_table(root, lambda content: content + b"x"), "its last replacement does not end"
    ),
    "an entry that is no text": (
        JSON, lambda root: damage_table(root, lambda content: content + b"\xff\0"), "a replacement is no text"
    ),
    "a million sentinels": (CONFIG, lambda root: root.update(extra_ids=10**6), "extra_ids must be an integer"),
    "sentinels of 400 digits": (CONFIG, lambda root: root.update(extra_ids=HUGE), "at most 10000, got a number of"),
    "endless sentinels": (CONFIG, lambda root: root.update(extra_ids=float("inf")), "extra_ids must be an integer"),
    "sentinels that are true": (CONFIG, lambda root: root.update(extra_ids=True), "extra_ids must be an integer"),
    "deep sentinels": (CONFIG, lambda root: root.update(extra_ids=DEEP), "got a list"),
    "a token by an id of 400 digits": (
        CONFIG, lambda root: root.update(added_tokens_decoder={str(HUGE): {"content": "</s>"}}), "objects by their ids"
    ),
    "a token by an id below 0": (
        CONFIG, lambda root: root.update(added_tokens_decoder={"-1": {"content": "</s>"}}), "objects by their ids"
    ),
    "deep special tokens": (CONFIG, lambda root: root.update(extra_special_tokens=DEEP), "have a content, got a"),
    "special tokens in text": (CONFIG, lambda root: root.update(extra_special_tokens="<a>"), "must be a list"),
    "a deep name": (CONFIG, lambda root: root.update(mask_token=DEEP), "mask_token: added tokens must each have"),
    "a long name": (
        CONFIG, lambda root: root.update({"x\n" * 10**5 + "_token": {"content": 5}}), "x\\nx\\n"
    ),
    "a long name in an object": (
        CONFIG, lambda root: root.update(extra_special_tokens={"x\n" * 10**5: 5}), "must each have a content"
    ),
    "a name in the map": (MAP, lambda root: root.update(cls_token=HUGE), "cls_token: added tokens must each have"),
    "a list in the map": (MAP, lambda root: root.update(extra_special_tokens=DEEP), "must each have a content"),
    "an added id of 400 digits": (ADDED, lambda root: root.update({"</s>": HUGE}), "must be 1, got a number of more"),
    "an endless added id": (ADDED, lambda root: root.update({"</s>": float("inf")}), "must be 1, got inf"),
    "an added id that is true": (ADDED, lambda root: root.update({"</s>": True}), "must be 1, got True"),
    "a deep added id": (ADDED, lambda root: root.update({"</s>": DEEP}), "must be 1, got a list"),
    "a long added token": (ADDED, lambda root: root.update({"x" * 10**5: 1}), "must be None, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_that_cannot_be_is_refused(case: str, folder: Path) -> None:
    name, edit, words = FIELDS[case]
    if name == JSON:
        (folder / SPIECE).unlink()
    change(folder / name, edit)
    content = (folder / name).read_text()
    (folder / name).write_text(content.replace("Infinity", "1e999"))
    check_refused(folder, name, words)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize(
    "bomb, words",
    [
        (lambda text: "[" * 10**6, "not valid JSON"),
        (lambda text: '{"a":' * 10**6, "not valid JSON"),
        (lambda text: text.rstrip()[:-1] + (", " if len(text) > 5 else "") + '"x": 1, "x": 2}', "'x' is given twice"),
        (lambda text: text.rstrip()[:-1] + (", " if len(text) > 5 else "") + f'"x": {"9" * 10**5}' + "}", "not valid"),
        (lambda text: "[]", "must hold an object, got list"),
        (lambda text: text + " " * strict.LIMIT, "must have at most 8000000 bytes"),
        (lambda text: "\ufeff" + text, "not valid JSON"),
    ],
    ids=["deep", "deep objects", "twice", "digits", "a list", "large", "a mark of its order"],
)
def test_a_json_bomb_is_refused(name: str, bomb: Callable[[str], str], words: str, folder: Path) -> None:
    file = folder / name
    file.write_text(bomb(file.read_text()))
    check_refused(folder, name, words)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_read_of_a_file_that_is_larger_than_any_tokenizers(name: str, folder: Path) -> None:
    os.truncate(folder / name, 2**40)  # takes no room on the disk
    tracemalloc.start()
    check_refused(folder, name, "must have at most 8000000 bytes, got 1099511627776")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


# What is no sentencepiece model, as it could stand in one.
MESSAGES: dict[str, bytes] = {
    "the start of a group": b"\x0b",
    "a group without an end": b"\x0b\x0a\x01a",
    "the end of a group": b"\x0c",
    "a group inside a piece": b"\x0a\x02\x0b\x0c",
    "a type that there is not": b"\x0e",
    "no number of a field": b"\x02\x01a",
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a number that does not end": b"\x08" + b"\xff" * 30,
    "half a number": b"\x0a\x03\x15\x00\x00",
    "a score of eight bytes": b"\x0a\x0c\x0a\x01a\x11" + bytes(8),
    "a piece of no text": b"\x0a\x03\x0a\x01\xff",
    "an empty piece": b"\x0a\x02\x0a\x00",
    "a piece twice": b"\x0a\x03\x0a\x01a" * 2,
    "an endless score": b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\x7f",
    "no score at all": b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f",
    "a score of another length": b"\x0a\x06\x0a\x01a\x12\x01x",
    "a damaged table": b"\x1a\x02\x12\x05",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_message_that_is_no_model_is_refused(case: str, folder: Path) -> None:
    (folder / JSON).unlink()
    for before in (b"", (folder / SPIECE).read_bytes()):
        (folder / SPIECE).write_bytes(before + MESSAGES[case])
        check_refused(folder, SPIECE, "is damaged or no sentencepiece model: ")


def test_every_cut_of_a_model_is_refused_or_read(tmp_path: Path) -> None:
    model = train("identity")
    read = []
    for at in range(len(model)):
        try:
            read.append(Tokenizer({SPIECE: model[:at]}))
        except ValueError as error:
            assert type(error) is ValueError and SPIECE in str(error) and len(str(error)) < 4000
    assert len(read) < 10  # what follows the last field that is needed may be missing
    assert all(own.pieces == read[0].pieces for own in read)


def test_changed_bytes_are_refused_or_read(written: Path) -> None:
    rng = random.Random(0)
    texts = ["a slow piano </s> ﬁ\u0301", "x" * 300]
    counts = {"read": 0, "refused": 0}
    for name in FILES:
        content = (written / name).read_bytes()
        few = len(content) < 10_000
        for _ in range(60 if few else 30):
            changed = bytearray(content)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.choice([0, 0xFF, 0x22, 0x7B, 0x0B, rng.randrange(256)])
            files = {name: bytes(changed)} if name in (SPIECE, JSON) else {SPIECE: (written / SPIECE).read_bytes()}
            try:
                own = Tokenizer(files | {name: bytes(changed)})
                for given in texts:
                    own.decode(own.encode(given))
                counts["read"] += 1
            except ValueError as error:
                assert type(error) is ValueError
                assert name in str(error) or "precompiled_charsmap" in str(error) or "ids" in str(error), str(error)
                assert len(str(error)) < 4000
                counts["refused"] += 1
    assert min(counts.values()) > 20


def test_a_vocabulary_of_more_ids_than_the_model_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.complete(tmp_path)
    for name in (JSON, CONFIG):
        (tmp_path / name).unlink()
    (tmp_path / CONFIG).write_text('{"extra_ids": 300000}')

    def built(*_: Any) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(text, "_listed", built)
    for load in (MusicGen.from_pretrained, hf.MusicgenForConditionalGeneration.from_pretrained):
        with pytest.raises(ValueError, match=rf"{tmp_path / CONFIG}: extra_ids must be .* at most 200, got 300000"):
            load(tmp_path)
    for load in (hf.T5Tokenizer.from_pretrained, hf.AutoProcessor.from_pretrained):
        with pytest.raises(ValueError, match=rf"{tmp_path / CONFIG}: extra_ids must be .* at most 10000, got 300000"):
            load(tmp_path)


def test_a_limit_of_ids_counts_pieces_and_special_tokens(folder: Path) -> None:
    size = Tokenizer.from_directory(folder).vocab_size
    assert Tokenizer.from_directory(folder, size).vocab_size == size
    message = (
        f"{folder}: the tokenizer has {size} ids, text_encoder.vocab_size must be as many at least, got {size - 1}"
    )
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_directory(folder, size - 1)


def test_a_file_that_is_none_is_not_found(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        with pytest.raises(FileNotFoundError, match="no such file"):
            strict.read_file(tmp_path / name)


# Time and memory


def seconds(work: Callable[[], object]) -> float:
    """The least of three runs, of this process alone."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def lines(work: Callable[[], object]) -> int:
    """How many lines of the tokenizer run: a count, which is the same on every machine."""
    count, files = 0, (text.__file__, strict.__file__)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def check_linear(make: Callable[[int], Callable[[], object]], size: int) -> None:
    """Ten times as much takes ten times as many lines, or a little more; what a line does takes no longer, either: in
    seconds, the hundred times of what grows with the square is far off, whatever else the machine does."""
    small, large = make(size), make(10 * size)
    assert lines(large) < 12 * lines(small) + 1000
    assert seconds(large) < 40 * seconds(small) + 0.02


def unigram(pieces: list[str], tokens: list[str] = [], charsmap: bytes = b"") -> bytes:  # noqa: B006
    """A tokenizer.json."""
    rows = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], *([piece, -1.0] for piece in pieces)]
    known = {piece: i for i, (piece, _) in enumerate(rows)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": known.get(one, len(rows) + i), "content": one} | flags for i, one in enumerate(tokens)]
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    model = {"type": "Unigram", "unk_id": 2, "vocab": rows}
    return json.dumps({"model": model, "normalizer": normalizer if charsmap else None, "added_tokens": added}).encode()


NO_SENTINELS = {CONFIG: b'{"extra_ids": 0}'}


def tokenizer(pieces: list[str], tokens: list[str] = [], charsmap: bytes = b"") -> Tokenizer:  # noqa: B006
    return Tokenizer({JSON: unigram(pieces, tokens, charsmap)} | NO_SENTINELS)


def test_sentinels_take_time_by_their_number() -> None:
    spiece = tiny.spiece()

    def make(count: int) -> Callable[[], object]:
        return lambda: Tokenizer({SPIECE: spiece, CONFIG: b'{"extra_ids": %d}' % count}, limit=10**6)

    check_linear(make, 400)


def test_added_tokens_with_one_prefix_take_time_by_their_number() -> None:
    def make(count: int) -> Callable[[], object]:
        content = unigram(["▁"], [f"<song_{i:07}>" for i in range(count)])
        return lambda: Tokenizer({JSON: content} | NO_SENTINELS)

    check_linear(make, 800)


def test_a_text_takes_no_longer_for_the_number_of_added_tokens() -> None:
    given = "<song_" * 500 + "<song_0000007>"
    few, many = (tokenizer(["▁"], [f"<song_{i:07}>" for i in range(n)]) for n in (100, 20_000))
    assert few.encode(given)[-2] == few.special["<song_0000007>"]
    assert many.tokens(given) == few.tokens(given)
    assert lines(lambda: many.encode(given)) == lines(lambda: few.encode(given))
    # A pattern that tries them one after another takes 200 times as long.
    assert seconds(lambda: many.encode(given)) < 20 * seconds(lambda: few.encode(given)) + 0.02


def test_of_added_tokens_the_first_and_then_the_longest_is_found() -> None:
    """Lengths are tried from the longest; no more of them than there are, which the limit of a token bounds."""
    own = tokenizer(["▁"], ["<a" + "b" * i for i in range(200)])
    middle, longest = "<a" + "b" * 50, "<a" + "b" * 199
    given = f"x{middle}c{longest}{'b' * 103}"
    assert own.tokens(given) == ["▁", "x", middle, "▁", "c", longest, "▁", "b" * 103]
    check_linear(lambda n: lambda: own.encode("<a" * n), 100)


TEXTS: dict[str, Callable[[int], str]] = {
    "one word": lambda n: "a" * n,
    "unknown characters": lambda n: "☃" * n,
    "words": lambda n: "ab " * (n // 3),
    "spaces": lambda n: " " * n,
    "signs of a space": lambda n: "▁" * n,
    "marks": lambda n: "e" + "\u0301" * n,
    "starts of a token": lambda n: "<" * n,
    "tokens": lambda n: "</s>" * (n // 4),
    "invisible": lambda n: "\u200d\u200b" * (n // 2),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_takes_time_by_its_length(case: str, written: Path) -> None:
    own = Tokenizer.from_directory(written)
    check_linear(lambda n: lambda: own.encode(TEXTS[case](n)), 400)


def test_long_pieces_take_time_by_the_length_of_the_text() -> None:
    own = tokenizer(["▁", *("a" * n for n in range(1, 257))])
    assert own.tokens("a" * 600) == ["▁", "a" * 88, "a" * 256, "a" * 256]
    own = tokenizer(["▁", *("a" * n for n in range(1, 41))])
    check_linear(lambda n: lambda: own.encode("a" * n), 200)


def test_a_character_becomes_no_more_than_a_line() -> None:
    """The most that a table may make of a text: its number of characters times the limit of a replacement."""
    own = tokenizer(["▁"], charsmap=table(b"x" * 256))
    assert own.charsmap.normalize("aba") == "x" * 256 + "b" + "x" * 256
    tracemalloc.start()
    assert len(own.charsmap.normalize("a" * 1000)) == 256_000
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    with pytest.raises(ValueError, match="a replacement has 257 bytes, must have at most 256"):
        tokenizer(["▁"], charsmap=table(b"x" * 257))


def test_a_file_takes_memory_by_its_size() -> None:
    """A piece takes two objects and a place in two tables: some 500 bytes."""
    content = unigram(["▁", *(f"{i:05}" for i in range(10_000))])
    tracemalloc.start()
    Tokenizer({JSON: content} | NO_SENTINELS)
    assert tracemalloc.get_traced_memory()[1] < 40 * len(content)
    tracemalloc.stop()


def test_a_name_that_is_given_twice_is_found_in_time() -> None:
    def make(count: int) -> Callable[[], object]:
        content = json.dumps({f"name {i}": 0 for i in range(count)})[:-1] + f', "name {count - 1}": 0}}'

        def read() -> None:
            with pytest.raises(ValueError, match=f"x.json: not valid JSON: 'name {count - 1}' is given twice"):
                strict.parse_json(content.encode(), "x.json")

        return read

    check_linear(make, 2_000)
