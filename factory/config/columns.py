"""Columns of rows, as a source names them: one, ``question``, or a template of several, ``{instruction}\\n{input}``."""

from __future__ import annotations

import re
from collections.abc import Mapping

PART = re.compile(r"{{|}}|{([^{}]+)}")  # a literal brace, or a column
PARAGRAPH_END = re.compile(r"(\n[^\S\n]*\n\s*)")


def is_template(named: str) -> bool:
    """``is_template("{question}")``: by its braces, which the name of a column cannot have."""
    return "{" in named or "}" in named


def columns_in(named: str) -> tuple[str, ...]:
    """``columns_in("{instruction}\\n{input}") == ("instruction", "input")``; a name without braces is a column itself."""
    return _columns(named) if is_template(named) else (named,)


def fill(template: str, cells: Mapping[str, str]) -> str:
    """``fill("{instruction}\\n\\nInput: {input}", {"instruction": "Add.", "input": ""}) == "Add."``

    A line or a paragraph is left out with its words where all its columns are empty; so is all of a template.
    """
    if _is_empty(template, cells):
        return ""
    text = ""
    pieces = ["", *PARAGRAPH_END.split(template)]  # what is before each paragraph, and the paragraph
    for gap, paragraph in zip(pieces[::2], pieces[1::2], strict=True):
        if not _is_empty(paragraph, cells):
            lines = [line for line in paragraph.split("\n") if not _is_empty(line, cells)]
            text += (gap if text else "") + "\n".join(_fill_in(line, cells) for line in lines)
    return text


def check_named(named: str) -> str:
    """``check_named("{instruction}")`` → the same. Raises: ValueError for a blank name, or braces that are no template."""
    if not named.strip():
        raise ValueError("must not be blank; name a column, or leave it out")
    if not is_template(named):
        return named
    if re.search(r"[{}]", PART.sub("", named)):
        raise ValueError("a column stands in single braces, {question}, and a brace that is text is written twice, {{ or }}")
    if not columns_in(named):
        raise ValueError(
            "with braces it is a template, which needs a column, such as {question}; without, it is a column's name"
        )
    return named


def _is_empty(template: str, cells: Mapping[str, str]) -> bool:
    """Where it has columns, and all are empty."""
    columns = _columns(template)
    return bool(columns) and not any(cells[column] for column in columns)


def _columns(template: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(match[1] for match in PART.finditer(template) if match[1]))


def _fill_in(template: str, cells: Mapping[str, str]) -> str:
    return PART.sub(lambda match: cells[match[1]] if match[1] else match[0][0], template)
