"""Text to T5 token ids, in the four steps of transformers 5.23's T5 tokenizer (tokenizers 0.23):

1. special tokens spelled out in the text ("</s>", "<extra_id_0>") are cut out;
2. the rest is normalised by the vocabulary's own character table, roughly NFKC;
3. it is split at whitespace, and each word gets the prefix "▁";
4. a word becomes the pieces with the highest sum of log-probabilities (Unigram: Kudo 2018, arXiv:1804.10959).

sentencepiece reads spiece.model but does not segment, because transformers does it otherwise: it adds scores in
float64, where float32 breaks ties by rounding ("huhuhu"); it normalises cluster by cluster, where sentencepiece takes
the longest match (an accent on the ligature "fi" is lost); it finds special tokens among the pieces, where they are
no text to sentencepiece (a fullwidth "<pad>" is id 0). Left out of transformers, as ids differ only where one of them
meets a compatibility character with an accent: clusters by emoji joiner, Indic conjunct, prefixed sign, or a mark newer
than Python's Unicode tables.

B texts, L tokens of the longest one.
"""

import base64
import json
import math
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from torch import Tensor

FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)
SPECIAL = ["<pad>", "</s>", "<unk>"]  # ids 0, 1, 2 of every T5 vocabulary
UNKNOWN_PENALTY = 10.0  # an unknown character scores this much below the rarest piece
# Unicode's White_Space; str.split() would also split at U+001C to U+001F.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Characters that join the one before them into a grapheme cluster (UAX 29) and are no marks; marks that do not join.
JOINING = re.compile("[\u0e33\u0eb3\u200c\u200d\uff9e\uff9f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
APART = re.compile(
    "[\u102b\u102c\u1038\u1062-\u1064\u1067-\u106d\u1083\u1087-\u108c\u108f\u109a-\u109c\u1a61\u1a63\u1a64\uaa7b\uaa7d"
    "\U00011720\U00011721]"
)


class Tokenizer:
    """Strings to T5 token ids, equal to those of transformers 5.23 for the same files.

    files: bytes by name, of FILES; path: their directory, for messages. Raises FileNotFoundError if spiece.model and
    tokenizer.json are both absent; ValueError, naming file and field, if one is malformed or if the two disagree
    (transformers would follow tokenizer.json).
    """

    pad_id, eos_id, unk_id = 0, 1, 2

    def __init__(self, files: dict[str, bytes], path: str | os.PathLike[str] = "") -> None:
        spiece, source, settings, _, legacy = (Path(path, name) for name in FILES)
        config = _json(files.get("tokenizer_config.json", b"{}"), settings)
        extra_ids = config.get("extra_ids", 100)
        if type(extra_ids) is not int or extra_ids < 0:
            raise ValueError(f"{settings}: extra_ids must be an integer of at least 0, got {extra_ids!r}")
        extra = [f"<extra_id_{i}>" for i in range(extra_ids)]
        added: Any = []
        if "spiece.model" in files:
            base, charsmap = _read_spiece(files["spiece.model"], spiece)
            pieces = base + [(token, 0.0) for token in reversed(extra)]
        if "tokenizer.json" in files:
            pieces, table, added = _read_tokenizer_json(files["tokenizer.json"], source)
            if "spiece.model" in files and (pieces[: len(base)] != base or table != charsmap):
                raise ValueError(f"{spiece} and {source} hold different vocabularies")
            charsmap = table
        elif "spiece.model" in files:
            source = spiece
        else:
            raise FileNotFoundError(f"path: no spiece.model and no tokenizer.json in {Path(path)}")
        if [piece for piece, _ in pieces[:3]] != SPECIAL:
            raise ValueError(f"{source}: the first pieces must be {SPECIAL}, got {pieces[:3]}")
        self.files, self.pieces, self.charsmap = files, pieces, Charsmap(charsmap, source)
        self._piece = {piece: (i, score) for i, (piece, score) in enumerate(pieces)}
        self._longest = max(map(len, self._piece))
        self._unknown = min(score for _, score in pieces) - UNKNOWN_PENALTY

        if "added_tokens_decoder" in config:  # then transformers does not look at the list in tokenizer.json
            source, added = settings, config["added_tokens_decoder"]
        stated, self._greedy = _read_added(added, source)
        self._special: dict[str, int] = {}
        self.vocab_size = len(pieces)
        for token in dict.fromkeys([*stated, *SPECIAL, *extra]):  # what is no piece gets the next id, in this order
            self._special[token] = self._piece.get(token, (self.vocab_size, 0.0))[0]
            self.vocab_size += token not in self._piece
        for token, i in (stated | _json(files.get("added_tokens.json", b"{}"), legacy)).items():
            if self._special.get(token) != i:
                right = self._special.get(token)
                raise ValueError(f"{source} or {legacy}: the id of {token!r} must be {right}, got {i!r}")
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) + ")")

    @staticmethod
    def lies_in(path: str | os.PathLike[str]) -> bool:
        """Whether a directory holds a vocabulary."""
        return any(Path(path, name).exists() for name in ("spiece.model", "tokenizer.json"))

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer of a checkpoint directory; raises what the constructor raises."""
        return cls({name: Path(path, name).read_bytes() for name in FILES if Path(path, name).is_file()}, path)

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Ids (B, L) int64, padded on the right with pad_id, and mask (B, L) bool; None: a row of padding, all False.

        Raises ValueError, naming the position, for what is no list of at least one text.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or len(texts) == 0:
            raise ValueError(f"texts must be a list of at least one string or None, got {texts!r}")
        rows = [[] if text is None else self._encode(text, f"texts[{i}]") for i, text in enumerate(texts)]
        ids = torch.full((len(rows), max(1, *map(len, rows))), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[b, : len(row)] = True
        return ids, mask

    def encode(self, text: str) -> list[int]:
        """Ids of one text, the last of them eos_id; raises ValueError for what is no string and for lone surrogates."""
        return self._encode(text, "text")

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids, special tokens spelled out or left out; raises ValueError for an id that there is not."""
        token = {i: name for name, i in self._special.items()}
        names = []
        for i in ids:
            if i not in token and not 0 <= i < len(self.pieces):
                raise ValueError(f"ids must be in 0..{self.vocab_size - 1}, got {i}")
            if i not in token or not skip_special:
                names.append(token[i] if i in token else self.pieces[i][0])
        return "".join(names).replace("▁", " ").removeprefix(" ")

    def _encode(self, text: str, name: str) -> list[int]:
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a string, got {text!r}")
        if surrogate := re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{name} has the lone surrogate {surrogate[0]!r} at character {surrogate.start()}")
        parts = self._split.split(text)  # plain, special, plain, ..., special, plain
        ids = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._special[part])
                continue
            if i > 0 and parts[i - 1] in self._greedy:
                part = part.lstrip(WHITESPACE)
            for word in filter(None, re.split(f"[{WHITESPACE}]+", self.charsmap.normalize(part))):
                # A "▁" that the character table leaves in a word begins a word of its own.
                for marked in re.findall("▁[^▁]*", word if word[0] == "▁" else "▁" + word):
                    ids += self._segment(marked)
        return [*ids, self.eos_id]

    def _segment(self, word: str) -> list[int]:
        """Ids of the best path through one word; among equals, the one whose last pieces are longest."""
        best = [(0.0, 0, 0)] + [(-math.inf, 0, 0)] * len(word)  # for each end: score, start and id of the last piece
        for start in range(len(word)):
            for end in range(start + 1, min(start + self._longest, len(word)) + 1):
                unknown = self._unknown if end == start + 1 else -math.inf
                i, score = self._piece.get(word[start:end], (self.unk_id, unknown))
                if best[start][0] + score > best[end][0]:
                    best[end] = (best[start][0] + score, start, i)
        ids: list[int] = []
        at = len(word)
        while at > 0:
            _, at, i = best[at]
            if i != self.unk_id or ids[-1:] != [i]:  # neighbouring unknown characters are one token
                ids.append(i)
        return ids[::-1]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the files back, byte for byte, and what transformers 4.57 and 5.23 lack to open them.

        That is tokenizer.json (they read spiece.model only with protobuf) and tokenizer_config.json. In the latter
        a list extra_special_tokens, on which 4.57 fails, is renamed to additional_special_tokens, which both know.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "T5Tokenizer"}
        files = {"tokenizer_config.json": json.dumps(names).encode()} | self.files
        if "tokenizer.json" not in files:
            files["tokenizer.json"] = self._tokenizer_json()
        config = json.loads(files["tokenizer_config.json"])
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
            files["tokenizer_config.json"] = json.dumps(config, indent=2).encode()
        for name, content in files.items():
            beside = directory / f"{name}.{uuid.uuid4().hex}"
            try:
                beside.write_bytes(content)
                os.replace(beside, directory / name)
            finally:
                beside.unlink(missing_ok=True)

    def _tokenizer_json(self) -> bytes:
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.charsmap.content).decode()}
        text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}
        pair = [text, end, {"Sequence": {"id": "B", "type_id": 0}}, end]
        template: dict[str, Any] = {"type": "TemplateProcessing", "single": pair[:2], "pair": pair}
        template["special_tokens"] = {"</s>": {"id": "</s>", "ids": [self.eos_id], "tokens": ["</s>"]}}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        root = {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": token} | flags for token, i in self._special.items()],
            "normalizer": table if self.charsmap.content else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
            "post_processor": template,
            "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": self.unk_id, "vocab": self.pieces, "byte_fallback": False},
        }
        return json.dumps(root).encode()


class Charsmap:
    """A vocabulary's character table: a double-array trie (Darts) of UTF-8 keys, then NUL-terminated replacements.

    An empty one changes nothing. Raises ValueError, naming the file, if the bytes are no such table.
    """

    def __init__(self, content: bytes, path: str | os.PathLike[str]) -> None:
        size = int.from_bytes(content[:4], "little")
        if content and (size % 4 or not 0 < size < len(content) - 4):
            raise ValueError(f"{path}: precompiled_charsmap is damaged: {len(content)} bytes, {size} of them a trie")
        self.content, self.path, self.replacements = content, path, content[4 + size :]
        self.units: list[int] = np.frombuffer(content[4 : 4 + size], "<u4").tolist()

    def normalize(self, text: str) -> str:
        """The text with each short cluster replaced, else each of its characters, where the table has them.

        That clusters of 6 bytes and more do not count as short is a quirk of transformers, not of the table.
        """
        if not self.units:
            return text
        out = []
        for cluster in _clusters(text):
            whole = self._replacement(cluster) if len(cluster.encode()) < 6 else None
            if whole is not None:
                out.append(whole)
            else:
                out += [char if (new := self._replacement(char)) is None else new for char in cluster]
        return "".join(out)

    def _replacement(self, text: str) -> str | None:
        """That of the shortest key which begins the text: in transformers it stands for the whole text."""
        node = 0
        try:
            for byte in text.encode():
                node ^= _offset(self.units[node]) ^ byte
                unit = self.units[node]
                if unit & 0x800000FF != byte:
                    return None
                if unit & 0x100:  # a key ends here
                    start = self.units[node ^ _offset(unit)] & 0x7FFFFFFF
                    return self.replacements[start : self.replacements.index(0, start)].decode()
        except (IndexError, ValueError) as error:
            raise ValueError(f"{self.path}: precompiled_charsmap is damaged at the entry for {text!r}") from error
        return None


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _clusters(text: str) -> Iterator[str]:
    """Grapheme clusters: each character with the marks on it."""
    start = 0
    for at in range(1, len(text)):
        char, control = text[at], unicodedata.category(text[at - 1]) in ("Cc", "Cf", "Zl", "Zp")
        joins = JOINING.match(char) or (unicodedata.category(char)[0] == "M" and not APART.match(char))
        if not joins or (control and not JOINING.match(text[at - 1])):
            yield text[start:at]
            start = at
    if text:
        yield text[start:]


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_tokenizer_json(content: bytes, path: Path) -> tuple[list[tuple[str, float]], bytes, Any]:
    """Pieces, character table and added tokens of a tokenizer.json."""
    root = _json(content, path)
    try:
        model, normalizer = root["model"], root.get("normalizer") or {}
        pieces = [(piece, float(score)) for piece, score in model["vocab"]]
        if model.get("type", "Unigram") != "Unigram" or not all(type(p) is str and math.isfinite(s) for p, s in pieces):
            raise ValueError("its type, a piece or a score is another")
    except MALFORMED as error:
        raise ValueError(f"{path}: model must be a Unigram with a vocab of [piece, score]: {error!r}") from error
    try:
        steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
        encoded = next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), "")
        charsmap = base64.b64decode(encoded, validate=True)
    except MALFORMED as error:
        raise ValueError(f"{path}: normalizer has no readable precompiled_charsmap: {error!r}") from error
    return pieces, charsmap, root.get("added_tokens") or []


def _read_added(added: Any, path: Path) -> tuple[dict[str, int], set[str]]:
    """Ids of the added tokens, ascending, and which of them take the whitespace on their right.

    added: the list added_tokens of a tokenizer.json, or the mapping added_tokens_decoder of a tokenizer_config.json.
    Whether one takes that on its left is of no account: step 3 drops it.
    """
    try:
        tokens = [token | {"id": int(i)} for i, token in added.items()] if isinstance(added, dict) else added
        ids = {str(token["content"]): int(token["id"]) for token in sorted(tokens, key=lambda token: token["id"])}
        greedy = {token["content"] for token in tokens if token.get("rstrip")}
        refused = [token for token in tokens if token.get("single_word") or token.get("normalized")]
    except MALFORMED as error:
        raise ValueError(f"{path}: added tokens must each have an id and a content: {error!r}") from error
    if refused or "" in ids:
        raise ValueError(f"{path}: added tokens must be neither empty nor single_word nor normalized: {refused}")
    return ids, greedy


def _read_spiece(content: bytes, path: Path) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces and character table of a spiece.model."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged or no sentencepiece model: {error}") from error
    normalizers = [field for number, field in _fields(content) if number == 3]
    if not normalizers:
        raise ValueError(f"{path} is damaged: normalizer_spec is missing")
    charsmap = next((field for number, field in _fields(normalizers[-1]) if number == 2), b"")
    try:
        pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: a piece is no text: {error}") from error
    return pieces, charsmap


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the byte fields in a valid protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 in (1, 5):  # fixed-width numbers
            at += 8 if key & 7 == 1 else 4
            continue
        size, at = _varint(message, at)
        if key & 7 == 2:
            yield key >> 3, message[at : at + size]
            at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1
