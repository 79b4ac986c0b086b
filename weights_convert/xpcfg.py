"""The text form of an audiocraft configuration: the part of YAML that a dump of nested settings uses.

Block mappings and sequences, `[..]` and `{}` on one line, plain and quoted scalars, comments. ${..} and ??? stay
strings until value() follows them. Anything else (anchors, tags, block scalars, several documents) is a ValueError with
its line.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

LIMIT, DEPTH = 1_000_000, 32  # characters, levels of nesting
KEY = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|\w[\w./-]*)\s*:(?=\s|$)""")
# A value in a sequence in brackets, and the comma after it.
ITEM = re.compile(
    r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s,'"\[\]{}](?:[^,'"\[\]{}]*[^\s,'"\[\]{}])?)\s*(?:,\s*|$)"""
)
QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'""")
WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
INT, FLOAT = re.compile(r"[-+]?(0|[1-9]\d*)"), re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]\d+)?")
SPECIAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
# What YAML 1.1 reads as something else than the string it looks like; no dump leaves it bare.
AMBIGUOUS = re.compile(
    r"(?i:yes|no|on|off|y|n)|[-+]?0[0-9xob_]\w*|[-+]?[\d_]+(:[0-5]?\d)+(\.\d*)?|\d{4}-\d\d?-\d\d?.*|=|<<"
)


def parse(text: str, where: str = "xp.cfg") -> dict[str, Any]:
    """The mapping that a text describes. Raises ValueError naming `where` and the line for what is not understood."""
    if len(text) > LIMIT:
        raise ValueError(f"{where}: must have at most {LIMIT} characters, got {len(text)}")
    lines = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        if not line.isprintable():
            raise ValueError(f"{where}: line {number}: expected printable characters, got {line[:60]!r}")
        body = line.strip(" ")
        if body and not body.startswith("#"):
            lines.append((number, len(line) - len(line.lstrip(" ")), body))
    parser = _Parser(lines, where)
    parsed = parser.block(0, 0) if lines else {}
    if parser.at < len(lines) or not isinstance(parsed, dict):
        raise parser.error("expected a mapping, indented as the line before")
    return parsed


class _Parser:
    def __init__(self, lines: list[tuple[int, int, str]], where: str):
        self.lines, self.where, self.at = lines, where, 0

    def error(self, reason: str) -> ValueError:
        number, _, body = self.lines[min(self.at, len(self.lines) - 1)]
        return ValueError(f"{self.where}: line {number}: {reason}, got {body[:60]!r}")

    def block(self, indent: int, depth: int) -> Any:
        if depth > DEPTH:
            raise self.error(f"more than {DEPTH} levels")
        body = self.lines[self.at][2]
        return self.sequence(indent, depth) if body == "-" or body.startswith("- ") else self.mapping(indent, depth)

    def mapping(self, indent: int, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while self.at < len(self.lines) and self.lines[self.at][1] == indent:
            body = self.lines[self.at][2]
            if body == "-" or body.startswith("- "):
                break
            match = KEY.match(body)
            if match is None:
                raise self.error("expected `key: value`")
            key = self.scalar(match[1])
            if not isinstance(key, str):
                raise self.error("a key that is a string")
            if key in out:
                raise self.error("a key is given twice")
            rest = self.uncomment(body[match.end() :].strip())
            if rest:
                out[key] = self.inline(rest)
                self.at += 1
                continue
            self.at += 1
            following = self.lines[self.at] if self.at < len(self.lines) else (0, -1, "")
            listed = following[2] == "-" or following[2].startswith("- ")
            if following[1] > indent or (following[1] == indent and listed):
                out[key] = self.block(following[1], depth + 1)
            else:
                out[key] = None
        self.check_indent(indent)
        return out

    def sequence(self, indent: int, depth: int) -> list[Any]:
        out = []
        while self.at < len(self.lines) and self.lines[self.at][1] == indent:
            number, _, body = self.lines[self.at]
            if body != "-" and not body.startswith("- "):
                break
            rest = self.uncomment(body[1:].strip())
            if not rest:
                raise self.error("an empty entry of a sequence")
            if (KEY.match(rest) and rest[0] not in "[{") or rest == "-" or rest.startswith("- "):
                # The rest of the line begins a block of its own, as if it stood on the next line.
                inner = indent + len(body) - len(body[1:].lstrip())
                self.lines[self.at] = (number, inner, rest)
                out.append(self.block(inner, depth + 1))
                continue
            out.append(self.inline(rest))
            self.at += 1
        self.check_indent(indent)
        return out

    def check_indent(self, indent: int) -> None:
        if self.at < len(self.lines) and self.lines[self.at][1] > indent:
            raise self.error("indented deeper than the line before")

    def uncomment(self, text: str) -> str:
        if text.startswith("#"):
            return ""
        if text[:1] in ("'", '"') and (match := QUOTED.match(text)):
            rest = text[match.end() :]
            if rest.strip() and not re.match(r"\s+#", rest):
                raise self.error("something after a quoted string")
            return match[0]
        return re.split(r"\s#", text, maxsplit=1)[0].strip()

    def quoted(self, text: str) -> str:
        if not QUOTED.fullmatch(text):
            raise self.error("a quoted string on one line")
        if text[0] == "'":
            return text[1:-1].replace("''", "'")
        try:
            if re.search(r"\\u[dD][89a-fA-F]", text):  # half a character, which YAML leaves so
                raise ValueError
            return str(json.loads(text))  # of YAML's escapes the dumps need no others than JSON's
        except ValueError:
            raise self.error("an escape that is not understood") from None

    def inline(self, text: str) -> Any:
        if text[0] == "[":
            if text[-1] != "]":
                raise self.error("a sequence in brackets that ends on its line")
            return [self.scalar(item) for item in self.items(text[1:-1].strip())]
        if text[0] == "{":
            if text[-1] != "}" or text[1:-1].strip():
                raise self.error("braces other than {} are not read")
            return {}
        return self.scalar(text)

    def items(self, text: str) -> list[str]:
        found, at = [], 0
        while at < len(text):
            match = ITEM.match(text, at)
            if match is None:
                raise self.error("a sequence of plain values")
            found.append(match[1])
            at = match.end()
        return found

    def scalar(self, text: str) -> Any:
        if text[0] in "\"'":
            return self.quoted(text)
        if text.lower() in WORDS and text in (text.lower(), text.upper(), text.capitalize()):
            return WORDS[text.lower()]
        if INT.fullmatch(text) and len(text) < 30:
            return int(text)
        if FLOAT.fullmatch(text):
            return float(text)
        if text.lower() in SPECIAL:
            return SPECIAL[text.lower()]
        if text == "???" or (text[0] == "$" and "${" in text):
            return text
        odd = text[0] in "&*!|>%@`#,[]{}" or (text[0] in "-?:" and (text[1:2] or " ") == " ")
        if odd or AMBIGUOUS.fullmatch(text) or re.search(r":(\s|$)", text) or "\t" in text:
            raise self.error("a value that is not understood")
        return text


def value(config: Mapping[str, Any], path: str, default: Any = None, where: str = "xp.cfg") -> Any:
    """The setting at a dotted path, ${..} to other settings followed; the default where there is none.

    Raises ValueError for a reference to nothing or in a circle, and for ???, which a run would have had to give.
    """
    seen: list[str] = []
    while True:
        found: Any = config
        for key in path.split("."):
            found = found.get(key, _ABSENT) if isinstance(found, Mapping) else _ABSENT
        if found is _ABSENT and not seen:
            return default
        if found is _ABSENT or found == "???" or path in seen:
            raise ValueError(f"{where}: {' -> '.join([*seen, path])} leads to no value")
        match = re.fullmatch(r"\$\{([\w.]+)\}", found) if isinstance(found, str) else None
        if match is None:
            if isinstance(found, str) and "${" in found:
                raise ValueError(f"{where}: {path} must be a value or a reference to one, got {found!r:.100}")
            return found
        seen.append(path)
        path = match[1]


_ABSENT = object()


def dump(config: Mapping[str, Any], indent: int = 0) -> str:
    """The text of nested settings, which parse() and YAML read back."""
    out = []
    for key, item in config.items():
        if isinstance(item, Mapping) and item:
            out.append(f"{' ' * indent}{key}:\n{dump(item, indent + 2)}")
        elif isinstance(item, (list, tuple)) and item:
            out.append(f"{' ' * indent}{key}:\n" + "".join(f"{' ' * indent}- {_scalar(each)}\n" for each in item))
        else:
            out.append(f"{' ' * indent}{key}: {_scalar(item)}\n")
    return "".join(out)


def _scalar(item: Any) -> str:
    if item is None or isinstance(item, bool):
        return {None: "null", True: "true", False: "false"}[item]
    if isinstance(item, float):
        if not math.isfinite(item):
            return {math.inf: ".inf", -math.inf: "-.inf"}.get(item, ".nan")
        text = repr(item)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")  # YAML wants the point
    if isinstance(item, (Mapping, list, tuple)):
        return "{}" if isinstance(item, Mapping) else "[]"
    if isinstance(item, str):
        if not item.isprintable():
            raise ValueError(f"a setting must be of printable characters, got {item!r}")
        plain = re.fullmatch(r"[A-Za-z/$][\w./${}-]*|//[\w./-]+", item) and item.lower() not in WORDS
        return item if plain and not AMBIGUOUS.fullmatch(item) else json.dumps(item, ensure_ascii=False)
    return str(item)
