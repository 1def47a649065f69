r"""Which regular expressions a JSON schema's ``pattern`` may be, and how much of an engine's grammar each of them takes.

engine_pattern(r"^\d{4}-\d{2}$")   # Pattern("^[0-9]{4}-[0-9]{2}$", size=7, choices=0)

llama.cpp writes a pattern into its grammar, between quotation marks. Where it does not know the syntax it accepts any string,
and where a pattern accepts quotation marks, backslashes or control characters, the answer is not JSON (docs/log.md, "schemas").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LENGTH = 200  # characters
MAX_SIZE = 1000  # characters of the pattern with its counted repetitions written out
MAX_CHOICES = 50  # optional, repeated and alternative parts in it: the engine follows them all at once

TAKEN = r"letters, digits, \d, \w, classes of those, groups, |, *, +, ? and {m,n}"
SETS = {r"\d": "0-9", r"\w": "A-Za-z0-9_"}
TOKEN = re.compile(
    r"(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<either>\|)"
    r"|(?P<repeat>[*+?]|\{(?P<least>\d{1,4})(?P<range>,(?P<most>[1-9]\d{0,3})?)?\})(?![*+?{])"
    r"|(?P<set>\\[dw])"
    r"|(?P<class>\[(?:\\[dw]|[A-Za-z0-9]-[A-Za-z0-9]|[A-Za-z0-9 _.,:;!?@#$%&*+=/'<>(){}|~])+-?\])"
    r"|(?P<character>\\[-^$.\[\](){}|*+?/]|[A-Za-z0-9 _,:;!@#%&=/'<>~`-])"
)


@dataclass(frozen=True)
class Pattern:
    """A pattern in the engine's syntax, or a part of one."""

    text: str
    size: int = 0
    choices: int = 0

    def __add__(self, other: Pattern) -> Pattern:
        return Pattern(self.text + other.text, self.size + other.size, self.choices + other.choices)


def engine_pattern(pattern: str) -> Pattern:
    r"""``engine_pattern(r"^\d+$").text`` → "^[0-9]+$". Raises: ValueError with what is wrong, as the end of a sentence."""
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"has {len(pattern)} characters; at most {MAX_LENGTH} are taken")
    if len(pattern) < 2 or pattern[0] != "^" or pattern[-1] != "$":
        raise ValueError("must begin with ^ and end with $")
    groups: list[list[Pattern]] = [[]]  # parts of the whole, and of each group that is open
    place, end = 1, len(pattern) - 1
    while place < end:
        token = TOKEN.match(pattern, place, end)
        if token is None or not _add(groups, token):
            raise ValueError(f"has {pattern[place]!r} at character {place + 1}, where an engine takes {TAKEN}")
        place = token.end()
    if len(groups) > 1:
        raise ValueError("has a group that does not end")
    found = Pattern("^") + _joined(groups[0]) + Pattern("$")
    if found.size > MAX_SIZE or found.choices > MAX_CHOICES:
        written_out = f"{found.size} characters and {found.choices} choices when its repetitions are written out"
        raise ValueError(f"has {written_out}; at most {MAX_SIZE} and {MAX_CHOICES} are taken")
    return found


def _add(groups: list[list[Pattern]], token: re.Match[str]) -> bool:
    """Adds a token to the innermost open group; False where it cannot stand."""
    kind, text, parts = token.lastgroup, token[0], groups[-1]
    if kind == "open":
        groups.append([])
    elif kind == "close":
        if len(groups) == 1:
            return False
        groups.pop()
        groups[-1].append(Pattern("(") + _joined(parts) + Pattern(")"))
    elif kind == "either":
        parts.append(Pattern("|", choices=1))
    elif kind == "repeat":
        if not parts or parts[-1].text == "|" or int(token["most"] or token["least"] or 1) < max(1, int(token["least"] or 0)):
            return False
        parts.append(_repeated(parts.pop(), token))
    else:
        parts.append(Pattern(_engine_text(text), size=1))
        return kind != "class" or all(low <= high for low, high in re.findall(r"(\w)-(\w)", text))
    return True


def _joined(parts: list[Pattern]) -> Pattern:
    return sum(parts, Pattern(""))


def _repeated(part: Pattern, token: re.Match[str]) -> Pattern:
    least, most = token["least"], token["most"]
    if least is None:  # *, + or ?
        times, chooses = 2 if token[0] == "+" else 1, True
    else:
        times, chooses = int(most or least) + (token["range"] == ","), token["range"] is not None
    return Pattern(part.text + token[0], part.size * times, part.choices * times + chooses)


def _engine_text(text: str) -> str:
    """Sets written out, and the escapes left away that the engine does not know."""
    if text in SETS:
        return f"[{SETS[text]}]"
    if text in (r"\-", r"\/"):
        return text[1]
    return text.replace(r"\d", SETS[r"\d"]).replace(r"\w", SETS[r"\w"]) if text.startswith("[") else text
