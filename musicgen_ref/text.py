"""Text to T5 token ids, in the four steps of transformers 5.24's T5 tokenizer (tokenizers 0.23):

1. special tokens spelled out in the text ("</s>", "<extra_id_0>") are cut out;
2. the rest is normalised by the vocabulary's own character table, roughly NFKC;
3. it is split at whitespace, and each word gets the prefix "▁";
4. a word becomes the pieces with the highest sum of log-probabilities (Unigram: Kudo 2018, arXiv:1804.10959).

The library sentencepiece gives other ids: it adds scores in float32, so that rounding decides between equally good
segmentations ("huhuhu"); it normalises by the longest match, while transformers goes cluster by cluster (and loses an
accent on the ligature "fi"); and it finds no special tokens in normalised text, while transformers does (a fullwidth
"<pad>" is id 0). So the files are read here, in the few lines that their format takes. One thing is not as in
transformers: clusters that are joined by an emoji joiner, an Indic conjunct, a prefixed sign, or a mark newer than
Python's Unicode tables. Ids differ only where one of these meets a compatibility character with an accent.

Files are not trusted: time and memory are at most proportional to their size and the text's.

B texts, L tokens of the longest one.
"""

import base64
import json
import math
import os
import re
import struct
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .messages import shown
from .strict import check_pointer, parse_json, read_file

FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MALFORMED = (AttributeError, KeyError, OverflowError, TypeError, ValueError)
SPECIAL = ["<pad>", "</s>", "<unk>"]  # ids 0, 1, 2 of every T5 vocabulary
# The special tokens that a configuration may name. Those that are no pieces get ids in this order, as in transformers.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
UNKNOWN_PENALTY = 10.0  # an unknown character scores this much below the rarest piece
# These limits bound the work for a character of text. T5's longest piece has 16 characters, and no character of Unicode
# is normalised to more than 18.
PIECE_LIMIT, REPLACEMENT_LIMIT = 256, 256  # characters of a piece or special token, bytes of a replacement
EXTRA_LIMIT = 10_000  # sentinels (T5 has 100) where no model says how many embeddings it has
# Unicode's White_Space; str.split() would also split at U+001C to U+001F.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Characters that are no marks and yet join the one before them in a grapheme cluster (UAX 29); and marks that do not.
JOINING = re.compile("[\u0e33\u0eb3\u200c\u200d\uff9e\uff9f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
APART = re.compile(
    "[\u102b\u102c\u1038\u1062-\u1064\u1067-\u106d\u1083\u1087-\u108c\u108f\u109a-\u109c\u1a61\u1a63\u1a64\uaa7b\uaa7d"
    "\U00011720\U00011721]"
)
# Control characters that Unicode has set aside and not assigned: they have no category of their own.
RESERVED = re.compile("[\u2065\ufff0-\ufff8\U000e0000\U000e0002-\U000e001f\U000e0080-\U000e00ff\U000e01f0-\U000e0fff]")
# Where clean_up_tokenization_spaces removes spaces from decoded text, in this order.
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Added(NamedTuple):
    """A token that is looked for in the text itself.

    id: as its file says, None where it says nothing. greedy: the token takes the whitespace on its right. (Whitespace
    on its left makes no difference, since step 3 drops it.) special: it can be left out of decoded text. odd: it would
    have to be looked for in another way, which is not supported.
    """

    content: str
    id: int | None = None
    greedy: bool = False
    special: bool = True
    odd: bool = False


class Tokenizer:
    """Strings to T5 token ids, equal to those of transformers 5.24 for the same files.

    files: the content of each of FILES that there is, by name. path: their directory, for messages. limit: the most ids
    that the tokenizer may have, which is a model's vocab_size. A damaged spiece.model beside a good tokenizer.json is
    ignored, since it is not needed. Attributes: `config` is the content of tokenizer_config.json, `special` has the id
    of each token that is looked for in the text, and `listed` has the tokens that a configuration lists as special.
    Raises FileNotFoundError if spiece.model and tokenizer.json are both absent; ValueError, naming file and field, if
    a file is malformed, if there are more ids than the limit, or if the two files disagree (transformers would follow
    tokenizer.json).
    """

    pad_id, eos_id, unk_id = 0, 1, 2

    def __init__(self, files: Mapping[str, bytes], path: str | os.PathLike[str] = "", limit: int | None = None) -> None:
        spiece, source, settings, names, legacy = (Path(path, name) for name in FILES)
        self.files = dict(files)
        parsed = {name: parse_json(files[name], str(Path(path, name))) for name in FILES[1:] if name in files}
        self.config = config = parsed.get("tokenizer_config.json", {})
        extra = [f"<extra_id_{i}>" for i in range(_extra_ids(config, settings, limit))]
        controls: list[Added] | None = None
        if "tokenizer.json" in files:
            pieces, charsmap, added = _read_tokenizer_json(parsed["tokenizer.json"], source)
            if "spiece.model" in files and not _agrees(files["spiece.model"], spiece, pieces, charsmap, source):
                del self.files["spiece.model"]
        elif "spiece.model" in files:
            source, added = spiece, []
            pieces, charsmap, controls = _read_spiece(files["spiece.model"], spiece)
            pieces += [(token, 0.0) for token in reversed(extra)]
        else:
            raise FileNotFoundError(f"path: no spiece.model and no tokenizer.json in {Path(path)}")
        _check_pieces(pieces, source)
        self.pieces, self.charsmap = pieces, Charsmap(charsmap, source)
        self._piece = {piece: (i, score) for i, (piece, score) in enumerate(pieces)}
        self._longest = max(map(len, self._piece))
        self._unknown = min(score for _, score in pieces) - UNKNOWN_PENALTY

        # Where the configuration has this mapping, transformers ignores the list in tokenizer.json and the map.
        mapped = "added_tokens_decoder" in config
        if mapped:
            source, added = settings, config["added_tokens_decoder"]
        stated = _read_added(added, source)
        listed = _listed(config, {} if mapped else parsed.get("special_tokens_map.json", {}), controls, extra, names)
        self.listed = list(dict.fromkeys(token.content for token in listed))
        tokens: dict[str, Added] = {}
        for token in [*stated, *listed]:
            tokens.setdefault(token.content, token)
        if odd := next((content for content, token in tokens.items() if token.odd), None):
            where = source if tokens[odd] in stated else f"{settings} or {names}"
            raise ValueError(f"{where}: added tokens must be neither single_word nor normalized, {shown(odd)} is")
        self.special: dict[str, int] = {}
        self.vocab_size = len(pieces)
        for content in tokens:  # a token that is no piece gets the next free id
            self.special[content] = self._piece.get(content, (self.vocab_size, 0.0))[0]
            self.vocab_size += content not in self._piece
        said = {token.content: token.id for token in stated} | parsed.get("added_tokens.json", {})
        for content, i in said.items():
            if type(i) is not int or self.special.get(content) != i:
                right = self.special.get(content)
                raise ValueError(f"{source} or {legacy}: the id of {shown(content)} must be {right}, got {shown(i)}")
        if limit is not None and self.vocab_size > limit:
            raise ValueError(
                f"{Path(path)}: the tokenizer has {self.vocab_size} ids, text_encoder.vocab_size must be as many at "
                f"least, got {limit}"
            )
        self._greedy = {content for content, token in tokens.items() if token.greedy}
        self._skipped = {self.special[content] for content, token in tokens.items() if token.special}
        self._content = {i: content for content, i in self.special.items()}
        # By the first character of a special token: the lengths of those that begin with it, the longest first.
        lengths: dict[str, set[int]] = {}
        for content in tokens:
            lengths.setdefault(content[0], set()).add(len(content))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, lengths)) + "]")

    @staticmethod
    def lies_in(path: str | os.PathLike[str]) -> bool:
        """Whether a directory holds the files of a tokenizer."""
        return any(Path(path, name).exists() for name in ("spiece.model", "tokenizer.json"))

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str], limit: int | None = None) -> "Tokenizer":
        """The tokenizer of a checkpoint directory. Raises what the constructor raises, and ValueError for a file that
        is too large."""
        files = {name: Path(path, name) for name in FILES}
        return cls({name: read_file(file) for name, file in files.items() if file.is_file()}, path, limit)

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Ids (B, L) int64, padded on the right with pad_id, and mask (B, L) bool. A text of None is a row of padding.

        Raises ValueError for texts that are no list of at least one text, naming the position of a wrong one.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence) or len(texts) == 0:
            raise ValueError(f"texts must be a list of at least one string or None, got {texts!r:.100}")
        rows = [[] if text is None else self._encode(text, f"texts[{i}]") for i, text in enumerate(texts)]
        ids = torch.full((len(rows), max(1, *map(len, rows))), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[b, : len(row)] = True
        return ids, mask

    def encode(self, text: str, end: bool = True) -> list[int]:
        """The ids of one text, the last of them eos_id unless `end` is False. Raises ValueError for what is no string,
        and for lone surrogates."""
        return self._encode(text, "text")[: None if end else -1]

    def tokens(self, text: str) -> list[str]:
        """The parts of the text that encode() finds an id for each, without the end token."""
        return [token for _, token in self._tokens(text, "text")]

    def token(self, i: int) -> str:
        """The piece or special token with an id. Raises ValueError for an id that does not exist."""
        if i in self._content:
            return self._content[i]
        if not 0 <= i < len(self.pieces):
            raise ValueError(f"ids must be in 0..{self.vocab_size - 1}, got {shown(i)}")
        return self.pieces[i][0]

    def id(self, token: str) -> int | None:
        """The id of a piece or special token; None where it is neither."""
        return self.special[token] if token in self.special else self._piece.get(token, (None, 0.0))[0]

    def decode(self, ids: Sequence[int], skip_special: bool = False, clean_up: bool | None = None) -> str:
        """The text of ids. skip_special: leave special tokens out. clean_up: remove the space before punctuation, as in
        " !" (None: as clean_up_tokenization_spaces of the configuration says). Raises ValueError for an id that does
        not exist."""
        text = self.join([self.token(i) for i in ids if not (skip_special and i in self._skipped)])
        if self.config.get("clean_up_tokenization_spaces") if clean_up is None else clean_up:
            for spaced in CLEANED:
                text = text.replace(spaced, spaced.strip())
        return text

    @staticmethod
    def join(tokens: Sequence[str]) -> str:
        """The text of tokens: "▁" is a space, except in the first token, where it is dropped."""
        return "".join([*(token.replace("▁", "") for token in tokens[:1]), "".join(tokens[1:]).replace("▁", " ")])

    def _encode(self, text: str, name: str) -> list[int]:
        return [*(i for i, _ in self._tokens(text, name)), self.eos_id]

    def _tokens(self, text: str, name: str) -> list[tuple[int, str]]:
        """The ids of a text without the end token, each with the characters that it stands for."""
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a string, got {text!r:.100}")
        if surrogate := re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{name} has the lone surrogate {surrogate[0]!r} at character {surrogate.start()}")
        found = []
        before = ""
        for i, part in enumerate(self._parts(text)):
            if i % 2:
                found.append((self.special[part], part))
                before = part
                continue
            if before in self._greedy:
                part = part.lstrip(WHITESPACE)
            for word in filter(None, re.split(f"[{WHITESPACE}]+", self.charsmap.normalize(part))):
                # A "▁" inside a word, after normalisation, begins another word.
                for marked in re.findall("▁[^▁]*", word if word[0] == "▁" else "▁" + word):
                    found += self._segment(marked)
        return found

    def _parts(self, text: str) -> Iterator[str]:
        """The text in parts: plain, special, plain, ..., special, plain. Where special tokens overlap, the first one
        counts, and where several begin at one character, the longest. (One regular expression of all of them would try
        each token at every character.)"""
        start = at = 0
        while (found := self._first.search(text, at)) is not None:
            at = found.start()
            fits = (text[at : at + length] for length in self._lengths[text[at]])
            token = next((part for part in fits if part in self.special), None)
            if token is None:
                at += 1
                continue
            yield text[start:at]
            yield token
            start = at = at + len(token)
        yield text[start:]

    def _segment(self, word: str) -> list[tuple[int, str]]:
        """The pieces of one word with the highest sum of scores; of equally good ones, those whose last pieces are
        longest."""
        best = [(0.0, 0, 0)] + [(-math.inf, 0, 0)] * len(word)  # for each end: score, start and id of the last piece
        for start in range(len(word)):
            for end in range(start + 1, min(start + self._longest, len(word)) + 1):
                unknown = self._unknown if end == start + 1 else -math.inf
                i, score = self._piece.get(word[start:end], (self.unk_id, unknown))
                if best[start][0] + score > best[end][0]:
                    best[end] = (best[start][0] + score, start, i)
        path: list[tuple[int, int, int]] = []  # id, start, end; from the end of the word
        at = len(word)
        while at > 0:
            end, (_, at, i) = at, best[at]
            if i == self.unk_id and path and path[-1][0] == i:  # neighbouring unknown characters are one token
                end = path.pop()[2]
            path.append((i, at, end))
        return [(i, word[start:end]) for i, start, end in reversed(path)]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the files back, byte for byte, and those that transformers 4.57 and 5.24 also need to open them.

        These are tokenizer.json (transformers reads spiece.model only with protobuf installed) and
        tokenizer_config.json. In the latter a list extra_special_tokens, on which 4.57 fails, is renamed to
        additional_special_tokens, which both know.
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
        flags = {"single_word": False, "lstrip": False, "normalized": False}
        root = {
            "version": "1.0",
            "added_tokens": [
                {"id": i, "content": token, "rstrip": token in self._greedy, "special": i in self._skipped} | flags
                for token, i in self.special.items()
            ],
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
        each = self.replacements.split(b"\0")
        if (longest := max(map(len, each))) > REPLACEMENT_LIMIT:
            raise ValueError(
                f"{path}: precompiled_charsmap is damaged: a replacement has {longest} bytes, must have at most "
                f"{REPLACEMENT_LIMIT}"
            )
        try:
            self.replacements.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: precompiled_charsmap is damaged: a replacement is no text: {error}") from None
        if each[-1]:
            raise ValueError(f"{path}: precompiled_charsmap is damaged: its last replacement does not end")
        self.units: list[int] = np.frombuffer(content[4 : 4 + size], "<u4").tolist()

    def normalize(self, text: str) -> str:
        """The text with each short cluster replaced, if the table has it, or else each of the cluster's characters.

        Clusters of 6 bytes and more are not short: that is a quirk of transformers, not of the table.
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
        """The replacement of the shortest key that the text begins with; in transformers it replaces the whole text."""
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
            raise ValueError(f"{self.path}: precompiled_charsmap is damaged at the entry for {shown(text)}") from error
        return None


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _clusters(text: str) -> Iterator[str]:
    """The grapheme clusters of a text: each character with the marks that belong to it."""
    start = 0
    for at in range(1, len(text)):
        char, last = text[at], text[at - 1]
        control = unicodedata.category(last) in ("Cc", "Cf", "Zl", "Zp") or RESERVED.match(last)
        joins = JOINING.match(char) or (unicodedata.category(char)[0] == "M" and not APART.match(char))
        if not joins or (control and not JOINING.match(last)):
            yield text[start:at]
            start = at
    if text:
        yield text[start:]


def _extra_ids(config: Mapping[str, Any], path: Path, limit: int | None) -> int:
    """How many sentinels ("<extra_id_0>") a configuration asks for; checked before they are made."""
    count, most = config.get("extra_ids", 100), EXTRA_LIMIT if limit is None else max(100, limit)
    if type(count) is not int or not 0 <= count <= most:
        must = f"an integer of at least 0 and at most {most}"
        raise ValueError(f"{path}: extra_ids must be {must}, got {shown(count)}")
    return count


def _agrees(content: bytes, path: Path, pieces: list[tuple[str, float]], charsmap: bytes, source: Path) -> bool:
    """Whether the spiece.model beside a tokenizer.json is sound and says the same; False for a damaged one. Raises
    ValueError where it says something else. source: the tokenizer.json, which pieces and charsmap are from."""
    try:
        base, table, _ = _read_spiece(content, path)
        Charsmap(table, path)
    except ValueError:
        return False
    if pieces[: len(base)] != base or table != charsmap:
        raise ValueError(f"{path} and {source} hold different vocabularies")
    return True


def _check_pieces(pieces: list[tuple[str, float]], path: Path) -> None:
    """Raise ValueError, naming the file, for pieces that are no vocabulary of T5."""
    if [piece for piece, _ in pieces[:3]] != SPECIAL:
        raise ValueError(f"{path}: the first pieces must be {SPECIAL}, got {pieces[:3]!r:.1000}")
    longest = max((piece for piece, _ in pieces), key=len)
    if len(longest) > PIECE_LIMIT:
        raise ValueError(f"{path}: a piece must have at most {PIECE_LIMIT} characters, got {len(longest)}")
    try:
        "".join(piece for piece, _ in pieces).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: a piece is no text: {error.reason}") from None


def _read_tokenizer_json(root: Mapping[str, Any], path: Path) -> tuple[list[tuple[str, float]], bytes, Any]:
    """The pieces, character table and added tokens of a tokenizer.json."""
    try:
        model, normalizer = root["model"], root.get("normalizer") or {}
        if model.get("type", "Unigram") != "Unigram" or type(model["vocab"]) is not list:
            raise ValueError("its type is another")
        pieces = [(piece, float(score)) for piece, score in model["vocab"] if type(score) in (int, float)]
        if len(pieces) < len(model["vocab"]) or not all(type(p) is str and math.isfinite(s) for p, s in pieces):
            raise ValueError("a piece is no string, or a score no finite number")
    except MALFORMED as error:
        reason = str(error)[:200] if type(error) is not KeyError else f"{error} is missing"
        raise ValueError(f"{path}: model must be a Unigram with a vocab of [piece, score]: {reason}") from None
    try:
        steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
        encoded = next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), "")
        charsmap = base64.b64decode(encoded, validate=True)
    except MALFORMED as error:
        raise ValueError(f"{path}: normalizer has no readable precompiled_charsmap: {error!r:.200}") from None
    return pieces, charsmap, root.get("added_tokens") or []


def _read_token(token: Any, where: str, special: bool = False) -> Added:
    """A token from JSON: a string, which is special, or an object. special: True makes it special whatever the object
    says."""
    fields = {"content": token, "special": True} if isinstance(token, str) else token
    if not isinstance(fields, dict) or not isinstance(content := fields.get("content"), str):
        raise ValueError(f"{where}: added tokens must each have a content, got {shown(token)}")
    if not 0 < len(content) <= PIECE_LIMIT or re.search("[\ud800-\udfff]", content):
        raise ValueError(
            f"{where}: added tokens must be text, not empty and of at most {PIECE_LIMIT} characters, got "
            f"{shown(content)}"
        )
    special = special or bool(fields.get("special"))
    odd = bool(fields.get("single_word") or fields.get("normalized", not special))
    return Added(content, fields.get("id"), bool(fields.get("rstrip")), special, odd)


def _read_added(added: Any, path: Path) -> list[Added]:
    """The added tokens that a file states with their ids, in the order of the ids.

    added: the list added_tokens of a tokenizer.json, or the mapping added_tokens_decoder of a tokenizer_config.json.
    """
    if isinstance(added, dict):
        if not all(re.fullmatch("[0-9]{1,9}", i) and isinstance(token, dict) for i, token in added.items()):
            raise ValueError(f"{path}: added tokens must be objects by their ids")
        added = [token | {"id": int(i)} for i, token in added.items()]
    if not isinstance(added, list):
        raise ValueError(f"{path}: added tokens must be a list or an object, got {shown(added)}")
    tokens = [_read_token(token, str(path)) for token in added]
    for token in tokens:
        if type(token.id) is not int:
            raise ValueError(f"{path}: added tokens must each have an id, {shown(token.content)} has {shown(token.id)}")
    return sorted(tokens, key=lambda token: token.id or 0)


def _listed(
    config: Mapping[str, Any], names: Mapping[str, Any], controls: list[Added] | None, extra: list[str], path: Path
) -> list[Added]:
    """The special tokens that files state without an id, in transformers' order: those with a name, then a list.

    names: the content of special_tokens_map.json, {} where it does not count. controls: the control tokens of a
    spiece.model, None where a tokenizer.json is read. extra: the sentinels, which are among the tokens unless a list in
    a configuration says otherwise.
    """
    settings = path.with_name("tokenizer_config.json")

    def read(field: str, tokens: Any) -> list[Added]:
        if not isinstance(tokens, list):
            raise ValueError(f"{settings} or {path}: {field} must be a list of tokens, got {shown(tokens)}")
        return [_read_token(token, f"{settings} or {path}: {field}") for token in tokens]

    both = {**config, **names}
    more = config.get("extra_special_tokens")
    if not more and "additional_special_tokens" in config:
        more = config["additional_special_tokens"]
    by_name = {field: both.get(field) for field in NAMED}
    by_name |= {k: v for k, v in both.items() if k.endswith("_token") and isinstance(v, (str, dict)) and k not in NAMED}
    if isinstance(more, dict):
        by_name, more = by_name | more, None
    named = []
    for field, default in by_name.items():
        right = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}.get(field)
        if default is None and right is None:
            continue
        where = f"{settings} or {path}: {field if field in NAMED else shown(field)}"
        token = _read_token(right if default is None else default, where, special=True)
        if token.content != (right or token.content):
            raise ValueError(f"{where} must be {right!r}, got {shown(token.content)}")
        named.append(token)
    listed = None if more is None else read("additional_special_tokens", more)
    if "extra_special_tokens" in names:
        listed = (listed or []) + read("extra_special_tokens", names["extra_special_tokens"])
    if listed is None:
        own = controls
        if own is None and names.get("additional_special_tokens") is not None:
            own = read("additional_special_tokens", names["additional_special_tokens"])
        sentinels = sum("<extra_id_" in token.content for token in own or [])
        if sentinels and extra and sentinels != len(extra):
            raise ValueError(
                f"{path}: the special tokens hold {sentinels} of the form <extra_id_0>, extra_ids of {settings.name} "
                f"must be as many, got {len(extra)}"
            )
        listed = (own or []) + ([] if sentinels else [Added(token) for token in extra])
    return named + listed


def _read_spiece(content: bytes, path: Path) -> tuple[list[tuple[str, float]], bytes, list[Added]]:
    """The pieces, the character table, and the control and user-defined tokens of a spiece.model."""
    check_pointer(content, str(path))
    pieces: dict[str, float] = {}
    controls: list[Added] = []
    charsmap: bytes | None = None
    try:
        for field, kind, value in _fields(content):
            if field == 3 and kind == 2:  # normalizer_spec
                charsmap = {(number, kind): inside for number, kind, inside in _fields(value)}.get((2, 2), b"")
            elif field == 1 and kind == 2:
                # Of a piece: its text, its score, and whether it is ordinary (1), control (3) or user-defined (4).
                inside = {number: inside for number, _, inside in _fields(value)}
                piece = inside.get(1, b"").decode()
                (score,) = struct.unpack("<f", inside.get(2, bytes(4)))
                if not piece or piece in pieces or not math.isfinite(score):
                    raise ValueError(f"the piece {shown(piece)} is empty, twice there, or of score {score}")
                pieces[piece] = score
                if (sort := inside.get(3, b"\1")) in (b"\3", b"\4"):
                    controls.append(Added(piece, special=sort == b"\3"))
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged or no sentencepiece model: {error}") from None
    if charsmap is None:
        raise ValueError(f"{path} is damaged: normalizer_spec is missing")
    return list(pieces.items()), charsmap, controls


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The number, type and content of each field of a protobuf message.

    Raises ValueError for a message that ends inside a field, and for groups, which no sentencepiece model has.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        start = at
        if key & 7 == 0:
            _, at = _varint(message, at)
        elif key & 7 == 2:
            size, start = _varint(message, at)
            at = start + size
        elif key & 7 in (1, 5):  # fixed-width numbers
            at += 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"a field is of type {key & 7}")
        if at > len(message) or key < 8:
            raise ValueError("a field has no number, or ends beyond its message")
        yield key >> 3, key & 7, message[start:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError("a number ends beyond its message, or is too long")
