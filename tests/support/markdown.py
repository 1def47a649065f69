"""Pages of the documentation, read as a newcomer copies from them: links, code blocks, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
ASSIGNMENT = re.compile(r"^\w+=")
BETWEEN = ("&&", "||", "|", ";", "&", ">", "2>")


def pages() -> list[Path]:
    """``for page in pages():`` README.md, the registry's, and everything below docs/."""
    return [ROOT / "README.md", ROOT / "registry" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """``name_of(page)`` → "docs/serving.md"."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the page it stands on."""

    page: Path
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """``blocks(page, "yaml")``: the fenced blocks in these languages, or all."""
    found = [Block(page, language, text) for language, text in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def prose(page: Path) -> str:
    """``prose(page)``: the page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """``links(page)``: the targets of its links, without those to other sites."""
    return [target for target in LINK.findall(prose(page)) if not re.match(r"\w+:", target)]


def anchors(page: Path) -> set[str]:
    """``anchors(page)``: of its headings, as GitHub writes them."""
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


# ------------------------------------------------------------------------------------------------------------- commands


def shell_commands(page: Path, program: str) -> Iterator[list[str]]:
    """``shell_commands(page, "factory")``: the arguments of each call in its blocks of commands.

    In a console block commands follow a ``$``, and the rest is output; a block without a language may be a drawing.
    """
    for block in blocks(page, "bash", "console", ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.language == "console" and not line.startswith("$ "):
                continue
            if block.language or line.startswith(f"{program} "):
                yield from _calls(line.removeprefix("$ "), program)


def inline_commands(page: Path, program: str) -> Iterator[list[str]]:
    """``inline_commands(page, "factory")``: the arguments of each call in its text; they may be incomplete."""
    for text in INLINE.findall(prose(page)):
        yield from _calls(text, program)


def _calls(line: str, program: str) -> Iterator[list[str]]:
    words = shlex.split(line, comments=True) if program in line else []
    while words:
        end = next((i for i, word in enumerate(words) if word in BETWEEN), len(words))
        call = words[:end]
        while call and ASSIGNMENT.match(call[0]):
            call = call[1:]
        if call and call[0] == program:
            yield call[1:]
        words = words[end + 1 :]
