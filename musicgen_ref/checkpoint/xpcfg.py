"""Reading and writing the text of an audiocraft configuration: nested settings, as PyYAML dumps them.

parse() reads whatever PyYAML may write when it dumps null, booleans, numbers, strings, lists and mappings in block
style, with any width, indentation and order: block mappings and sequences, plain and quoted scalars on one line or
folded over several, keys of every scalar type, keys on a line of their own after `? `, [] and {}. It also reads
comments, and scalars in brackets, as people write them. Every value is the one that yaml.safe_load reads. ${..} and ???
stay strings until value() follows them. Anything else (anchors, aliases, tags, block scalars, several documents, dates,
the other spellings of booleans and integers), and a key that is given twice, is a ValueError that tells the line.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..messages import shown, spelled

LIMIT, DEPTH = 1_000_000, 32  # characters of a text, levels of nesting
DIGITS = 4300  # of an integer; Python, and so PyYAML, reads no more
KEY = 1024  # characters from the start of a key to its colon; YAML looks no further for one
# Many large integers may have the same hash in Python, which would make a dict of them slow: no more keys of this size.
LARGE, LARGE_KEYS = 2**61 - 1, 1000
# A reference to another setting, by its path; and how many references may lead from a setting to its value.
REFERENCE, MOST_REFERENCES = re.compile(r"\$\{([\w.]{1,500})\}"), 20

# Characters that no YAML text has, and the byte order mark, which PyYAML always writes as an escape.
FOREIGN = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
BREAK = re.compile("(\r\n|[\r\n\x85\u2028\u2029])")
MARKER = re.compile(r"(?:---|\.\.\.)(?=[ \t]|$)")  # between documents, at the start of a line
SPACES, BLANKS = re.compile(" *"), re.compile("[ \t]*")
ENTRY, QUESTION, COLON = (re.compile(rf"{sign}(?= |$)") for sign in ("-", r"\?", ":"))
# What may follow a value on its line.
REST = re.compile(" *$| +#")
# A plain scalar does not begin with a sign of YAML's, ends before a comment, and holds no `: ` and no tab.
PLAIN = re.compile(r"""[^ \t\-?:,\[\]{}#&*!|>'"%@`]|[-?:](?=[^ \t])""")
STOP = re.compile(r" #|:(?=[ \t]|$)|\t")
AFTER_QUOTES = re.compile(r" *:(?=[ \t]|$)")
ONE_LINE = re.compile(r""""[^"\\]*(?:\\.[^"\\]*)*"|'[^']*(?:''[^']*)*'""")
# Inside of quotes: text that stands for itself, an escape, or the end of the line. Where none of them matches, there is
# the closing quote.
INSIDE = {
    "'": re.compile(r"[^' \t]+|(?P<escape>'')|(?P<end>[ \t]*$)|[ \t]+"),
    '"': re.compile(
        r"""[^"\\ \t]+|(?P<end>\\$|[ \t]*$)|[ \t]+"""
        r"|(?P<escape>\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.))"
    ),
}
ESCAPES = {"''": "'"} | {
    "\\" + sign: character
    for sign, character in zip(
        '0abt\tnvfre "\\/N_LP', '\0\a\b\t\t\n\v\f\r\x1b "\\/\x85\xa0\u2028\u2029', strict=True
    )
}  # fmt: skip
BRACKETED = re.compile(r"""[^ ,'"?:\[\]{}][^,'"?\[\]{}]*""")

# The types of plain scalars in YAML 1.1 as PyYAML reads it, to which -.5 and 1e5 are strings.
WORDS = {"~": None} | {
    spelled: meant
    for word, meant in {"null": None, "true": True, "false": False}.items()
    for spelled in (word, word.capitalize(), word.upper())
}
INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
FLOAT = re.compile(r"(?:[-+]?[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?")
SPECIAL = {
    sign + spelled: float(sign + "inf") for sign in ("", "+", "-") for spelled in (".inf", ".Inf", ".INF")
} | dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan)  # fmt: skip
# Scalars that PyYAML reads as something else than these or a string. No dump of settings holds one without quotes.
OTHER = re.compile(
    r"""yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF               # booleans
    |[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|[1-9][0-9_]*)    # integers of other bases, and with underscores
    |[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?              # floats with underscores
    |\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?
    |[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+                         # of base 60
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[0-9]{4}-[0-9]{2}-[0-9]{2}                                 # a date, and with a time
    |[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ ]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?
     (?:[ ]*(?:Z|[-+][0-9]{1,2}(?::[0-9]{2})?))?
    |=|<<                                                       # a default, a merge""",
    re.VERBOSE,
)
# Why a value that begins with one of these signs is refused.
REFUSED = {
    "&": "anchors and aliases are not read, write the value out",
    "*": "anchors and aliases are not read, write the value out",
    "!": "tags are not read, write the value without",
    "|": "block scalars are not read, write the text in quotes",
    ">": "block scalars are not read, write the text in quotes",
    "\t": "a tab may stand in quotes and comments only",
}


def parse(text: str, where: str = "xp.cfg") -> dict[str, Any]:
    """The mapping that a text describes; {} for an empty text. A key is a string, unless YAML reads another scalar.

    Raises ValueError, naming `where` and the line, for a text that is not supported, and for more than LIMIT characters
    or DEPTH levels.
    """
    if len(text) > LIMIT:
        raise ValueError(f"{where}: must have at most {LIMIT} characters, got {len(text)}")
    if foreign := FOREIGN.search(text):
        number = 1 + len(BREAK.findall(text, 0, foreign.start()))
        raise ValueError(f"{where}: line {number}: expected the characters of a YAML text, got {foreign[0]!r}")
    return _Reader(text, where).document()


class _Reader:
    """A cursor over the lines. A method that reads something expects it at the cursor, and then moves the cursor to the
    next token: the next character that is no blank, no comment and no end of a line.

    indent is always the column of the innermost block around the cursor, which is the column of its keys or hyphens.
    What belongs to the block stands to the right of it.
    """

    def __init__(self, text: str, where: str):
        pieces = BREAK.split(text)
        self.lines, self.breaks = pieces[::2], pieces[1::2]
        self.where, self.row, self.at = where, 0, 0
        self.large_keys = 0

    def error(self, reason: str, row: int | None = None) -> ValueError:
        row = self.row if row is None else row
        return ValueError(f"{self.where}: line {row + 1}: {reason}, got {self.lines[row].strip()[:60]!r}")

    @property
    def line(self) -> str:
        return self.lines[self.row]

    @property
    def next(self) -> str:
        """The character at the cursor; "" at the end of the line."""
        return self.line[self.at : self.at + 1]

    @property
    def marker(self) -> str:
        """The --- or ... at the cursor, or ""."""
        found = MARKER.match(self.line) if self.at == 0 else None
        return found[0] if found else ""

    @property
    def column(self) -> int:
        """The column of the token at the cursor; -1 at the end of the document, which belongs to no block."""
        return -1 if not self.next or self.marker else self.at

    def sees(self, sign: re.Pattern[str]) -> bool:
        return sign.match(self.line, self.at) is not None

    def pass_over(self, blanks: re.Pattern[str]) -> None:
        if found := blanks.match(self.line, self.at):
            self.at = found.end()

    def skip(self) -> None:
        """Move the cursor to the next token, or to the end of the last line."""
        self.pass_over(SPACES)
        while self.next in ("", "#"):
            if self.row == len(self.lines) - 1:
                self.at = len(self.line)
                return
            self.row, self.at = self.row + 1, 0
            self.pass_over(SPACES)

    # Blocks

    def document(self) -> dict[Any, Any]:
        self.skip()
        beside = -1  # the row where no block can begin, since --- stands there
        if self.marker == "---":
            self.at, beside = 3, self.row
            self.skip()
        if not self.next:
            return {}
        row = self.row
        parsed = self.inline(-1) if row == beside else self.node(-1, 0)
        if not isinstance(parsed, dict):
            raise self.error("expected a mapping, `key: value`", row)
        if self.marker == "...":
            self.at = 3
            self.finish()
        if self.next:
            raise self.error("several documents are not read" if self.marker else "expected the end of the mapping")
        return parsed

    def node(self, indent: int, depth: int) -> Any:
        """The value at the cursor, where a block may begin: at the start of a line, after `- `, and after the `: ` that
        belongs to a `? `."""
        if self.sees(ENTRY):
            return self.sequence(depth)
        if self.sees(QUESTION) or self.colon() is not None:
            return self.mapping(depth)
        return self.inline(indent)

    def content(self, indent: int, depth: int, *, beside: bool, hanging: bool) -> Any:
        """The value that follows an indicator (`-`, `:`), on its line or on the next ones; None where there is none.

        beside: a block may begin on the same line. hanging: a sequence may stand at the same column as the block around
        it. YAML allows that for the value of a key, since the hyphens look like an indentation.
        """
        row = self.row
        self.skip()
        if self.column <= indent:
            hangs = hanging and self.column == indent and self.sees(ENTRY)
            return self.sequence(depth + 1) if hangs else None
        if self.row == row and not beside:
            return self.inline(indent)
        return self.node(indent, depth + 1)

    def sequence(self, depth: int) -> list[Any]:
        indent, out = self.enter(depth), []
        while self.column == indent and self.sees(ENTRY):
            self.at += 1
            out.append(self.content(indent, depth, beside=True, hanging=False))
        self.leave(indent)
        return out

    def mapping(self, depth: int) -> dict[Any, Any]:
        indent, out = self.enter(depth), {}
        while self.column == indent:
            row, questioned = self.row, self.sees(QUESTION)
            key = self.questioned_key(indent) if questioned else self.key()
            if key in out:
                raise self.error("a key is given twice", row)
            if type(key) is int and abs(key) >= LARGE:
                self.large_keys += 1
                if self.large_keys > LARGE_KEYS:
                    raise self.error(f"more than {LARGE_KEYS} integer keys of more than 60 bits", row)
            out[key] = self.content(indent, depth, beside=questioned, hanging=True)
        self.leave(indent)
        return out

    def enter(self, depth: int) -> int:
        """The column of the block that begins at the cursor. Raises ValueError for too many levels."""
        if depth > DEPTH:
            raise self.error(f"more than {DEPTH} levels")
        return self.at

    def leave(self, indent: int) -> None:
        if self.column > indent:
            raise self.error("indented deeper than the line before")

    # Keys

    def colon(self) -> int | None:
        """The position on the line of the colon in a `key: value` that begins at the cursor; None where none does."""
        if quoted := ONE_LINE.match(self.line, self.at):
            found = AFTER_QUOTES.match(self.line, quoted.end())
        else:
            found = STOP.search(self.line, self.at) if self.sees(PLAIN) else None
        if found is None or found[0][-1] != ":" or found.end() - 1 - self.at > KEY:
            return None
        return found.end() - 1

    def key(self) -> Any:
        """The key of `key: value`; leaves the cursor after the colon."""
        colon = self.colon()
        if colon is None:
            raise self.error(REFUSED.get(self.next, "expected `key: value`"))
        quoted = self.next in INSIDE
        key = self.quoted() if quoted else self.resolve(self.line[self.at : colon].rstrip(" "), self.row)
        self.at = colon + 1
        return key

    def questioned_key(self, indent: int) -> Any:
        """The key of a `? key`, which may have several lines, with its `: value` below; leaves the cursor after the
        colon. PyYAML writes long keys, empty keys and keys of several lines so.
        """
        row = self.row
        self.at += 1
        self.pass_over(SPACES)
        key = self.scalar(indent)
        if self.column != indent or not self.sees(COLON):
            raise self.error("a key after `? ` without its value after `: `", row)
        self.at += 1
        return key

    # Values

    def inline(self, indent: int) -> Any:
        """The value at the cursor, which is no block."""
        if self.next == "[":
            return self.bracketed()
        if self.next == "{":
            self.at += 1
            self.pass_over(SPACES)
            if self.next != "}":
                raise self.error("mappings in braces other than {} are not read, write each key on its line")
            self.at += 1
            self.finish()
            return {}
        return self.scalar(indent)

    def bracketed(self) -> list[Any]:
        """The list of scalars in brackets at the cursor: [], or a short list as people write it."""
        out = []
        self.at += 1
        self.pass_over(SPACES)
        while self.next != "]":
            if self.next in INSIDE:
                out.append(self.quoted())
            else:
                found = BRACKETED.match(self.line, self.at)
                text = found[0].rstrip(" ") if found else ""
                if not found or not PLAIN.match(text) or STOP.search(text):
                    raise self.error("expected scalars in brackets that end on their line")
                out.append(self.resolve(text, self.row))
                self.at = found.end()
            self.pass_over(SPACES)
            if self.next == ",":
                self.at += 1
                self.pass_over(SPACES)
            elif self.next != "]":
                raise self.error("expected scalars in brackets that end on their line")
        self.at += 1
        self.finish()
        return out

    def scalar(self, indent: int) -> Any:
        if self.next not in INSIDE:
            row = self.row
            return self.resolve(self.plain(indent), row)
        text = self.quoted()
        self.finish()
        return text

    def plain(self, indent: int) -> str:
        """A plain scalar; the lines after it belong to it, too, if they stand to the right of the block's column."""
        if not self.sees(PLAIN):
            raise self.error(REFUSED.get(self.next, "a value that is not understood"))
        parts = []
        while True:
            stop = STOP.search(self.line, self.at)
            end = stop.start() if stop else len(self.line)
            if stop and stop[0] != " #":
                raise self.error("a tab or a colon and a blank in a value that is not in quotes")
            parts.append(self.line[self.at : end].rstrip(" "))
            self.at = end
            if stop:
                break
            breaks = self.next_line(SPACES)
            if self.column <= indent or self.next == "#":
                break
            parts.append(_folded(breaks))
        self.skip()
        return "".join(parts)

    def quoted(self) -> str:
        """A scalar in quotes; leaves the cursor after the closing quote."""
        parts, row, inside = [], self.row, INSIDE[self.next]
        self.at += 1
        while found := inside.match(self.line, self.at):
            self.at = found.end()
            if found.lastgroup == "end":
                breaks = self.next_line(BLANKS)
                if self.column == -1:
                    raise self.error("a quoted string without its closing quote", row)
                # A backslash before the end of the line takes that end away.
                parts.append("".join(breaks[1:]) if found[0] == "\\" else _folded(breaks))
            elif found.lastgroup == "escape":
                parts.append(self.unescaped(found[0]))
            else:
                parts.append(found[0])
        self.at += 1
        return "".join(parts)

    def unescaped(self, escape: str) -> str:
        if escape in ESCAPES:
            return ESCAPES[escape]
        code = int(escape[2:], 16) if len(escape) > 2 else math.inf
        if code > 0x10FFFF:
            raise self.error(f"an escape that is not understood, {escape}")
        return chr(int(code))

    def next_line(self, blanks: re.Pattern[str]) -> list[str]:
        """Move the cursor from the end of a line to the first token of the next line that is not blank, and return the
        line breaks between the two. Two of Unicode's stay what they are, all others are newlines."""
        breaks = []
        while not self.next and self.row < len(self.lines) - 1:
            found = self.breaks[self.row]
            breaks.append(found if found in "\u2028\u2029" else "\n")
            self.row, self.at = self.row + 1, 0
            self.pass_over(blanks)
        return breaks

    def finish(self) -> None:
        """Move the cursor to the next token after a value whose end is marked; nothing else may follow on its line."""
        if not self.sees(REST):
            raise self.error("something after the end of a value")
        self.skip()

    def resolve(self, text: str, row: int) -> Any:
        """The value of a plain scalar."""
        if text in WORDS:
            return WORDS[text]
        if INT.fullmatch(text):
            if len(text.lstrip("+-")) > DIGITS:
                raise self.error(f"an integer of more than {DIGITS} digits", row)
            return int(text)
        if FLOAT.fullmatch(text):
            return float(text)
        if text in SPECIAL:
            return SPECIAL[text]
        if OTHER.fullmatch(text):
            raise self.error(
                "a value that YAML reads neither as a number nor as a string; a string must be quoted", row
            )
        return text


def _folded(breaks: list[str]) -> str:
    """The text that the line breaks between two lines of a scalar stand for: a single one is a blank, and of several
    the first is dropped."""
    first, further = breaks[0], "".join(breaks[1:])
    return (further or " ") if first == "\n" else first + further


def value(config: Mapping[str, Any], path: str, default: Any = None, where: str = "xp.cfg") -> Any:
    """The setting at a dotted path, or the default where there is none. References ${..} to others are followed.

    Raises ValueError for a reference to nothing, for references in a circle or more than MOST_REFERENCES of them, and
    for ???, which stands for a setting that has to be given when a training starts.
    """
    seen: dict[str, None] = {}  # in the order in which they were followed
    while True:
        found: Any = config
        for key in path.split("."):
            found = found.get(key, _ABSENT) if isinstance(found, Mapping) else _ABSENT
        if found is _ABSENT and not seen:
            return default
        if found is _ABSENT or found == "???" or path in seen or len(seen) > MOST_REFERENCES:
            followed = " -> ".join([*seen, path])
            if len(followed) > 200:
                followed = f"{followed[:100]} ... {followed[-100:]}"
            most = f" within {MOST_REFERENCES} references" if len(seen) > MOST_REFERENCES else ""
            raise ValueError(f"{where}: {followed} leads to no value{most}")
        match = REFERENCE.fullmatch(found) if isinstance(found, str) else None
        if match is None:
            if isinstance(found, str) and "${" in found:
                raise ValueError(f"{where}: {spelled(path)} must be a value or a reference to one, got {shown(found)}")
            return found
        seen[path] = None
        path = match[1]


_ABSENT = object()


def dump(config: Mapping[str, Any], indent: int = 0) -> str:
    """The text of nested settings; parse() and every reader of YAML give the settings back."""
    out = []
    for key, item in config.items():
        if isinstance(item, Mapping) and item:
            out.append(f"{' ' * indent}{key}:\n{dump(item, indent + 2)}")
        elif isinstance(item, (list, tuple)) and item:
            out.append(f"{' ' * indent}{key}:\n" + "".join(f"{' ' * indent}- {_scalar(each)}\n" for each in item))
        else:
            out.append(f"{' ' * indent}{key}: {_scalar(item)}\n")
    return "".join(out)


# Words that some reader of YAML takes for null or a boolean.
QUOTED_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def _scalar(item: Any) -> str:
    if item is None or isinstance(item, bool):
        return {None: "null", True: "true", False: "false"}[item]
    if isinstance(item, float):
        if not math.isfinite(item):
            return {math.inf: ".inf", -math.inf: "-.inf"}.get(item, ".nan")
        text = repr(item)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")  # without a point: a string in YAML
    if isinstance(item, (Mapping, list, tuple)):
        return "{}" if isinstance(item, Mapping) else "[]"
    if isinstance(item, str):
        if not item.isprintable():
            raise ValueError(f"a setting must be of printable characters, got {item!r}")
        plain = re.fullmatch(r"[A-Za-z/$][\w./${}-]*|//[\w./-]+", item) and item.lower() not in QUOTED_WORDS
        return item if plain else json.dumps(item, ensure_ascii=False)
    return str(item)
