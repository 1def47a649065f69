"""What a file or a folder holds, before a domain is written for it: which sources it makes, and the texts in them.

for found in survey(Path("tickets.xlsx"), say=print):
    found.columns, len(found.exchanges)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal, TypeVar

from factory.config.paths import data_path, expand, no_such
from factory.config.sources import DOCUMENT_SUFFIXES
from factory.data.documents import document_files, read_documents, visible_files
from factory.data.layouts import CONVERSATIONS, Exchange, Layout, layout_of, read_rows
from factory.data.records import READERS, Say, beside, kind_of, read_records, silent
from factory.errors import DataError

COVERED = 0.98  # share of the texts that a limit leaves whole
ROUNDED = 16  # limits are multiples of it
MAX_MEASURED = 2000  # texts whose tokens are counted

T = TypeVar("T")


@dataclass(frozen=True)
class FoundSource:
    """A file of rows; or documents: a folder, one, or a pattern."""

    path: Path
    kind: Literal["file", "documents"]
    columns: tuple[str | None, str | None]  # of prompt and answer where every row has the same; None: recognised row by row
    exchanges: tuple[Exchange, ...]  # a document is an answer without a prompt
    said: tuple[str, ...]  # what it was taken for, how many rows were kept, and why others were not


def survey(path: Path, *, prompt: str | None = None, answer: str | None = None, say: Say = silent) -> list[FoundSource]:
    """``survey(Path("exports"))``: every file of rows in a folder, and its documents together; or one file, or a pattern's.

    ``say`` hears how each was read. Raises: DataError for what is missing, cannot be read, or holds nothing that can be used.
    """
    tables, documents = rows_and_documents(path)
    return [
        *(_survey_file(one, prompt, answer, say) for one in tables),
        *(_survey_documents(one, say) for one in documents),
    ]


def rows_and_documents(path: Path) -> tuple[list[Path], list[Path]]:
    """``rows_and_documents(Path("exports"))``: its files of rows, and the path itself if it has documents.

    Raises: DataError for a path that is missing, or has neither.
    """
    path = data_path(Path(), str(path))
    if not any(found.exists() for found in expand(path)):
        raise DataError(f"{no_such('file', path)}; {beside(path)}")
    if path.is_file() and path.suffix.lower() not in DOCUMENT_SUFFIXES:
        return [path], []
    tables = [file for file in visible_files(path) if kind_of(file) in READERS]
    documents = [path] if document_files(path) else []
    if not tables and not documents:
        raise DataError(f"no file in {path} ends in {', '.join([*READERS, *DOCUMENT_SUFFIXES])}; {beside(path / '*')}")
    return tables, documents


def _survey_file(path: Path, prompt: str | None, answer: str | None, say: Say) -> FoundSource:
    tell, said = _heard(say)
    columns: dict[tuple[str | None, str | None], None] = {}  # a set in order
    exchanges: list[Exchange] = []
    for record, found in read_rows(read_records(path, tell), str(path), prompt=prompt, answer=answer, say=tell):
        if found:
            columns[_columns(layout_of(record.fields, prompt, answer))] = None
            exchanges += found
    if not exchanges:
        raise DataError(f"no row of {path} can be used: {said[-1]}" if len(said) > 1 else f"{path} has no rows")
    alike = next(iter(columns)) if len(columns) == 1 else (None, None)
    return FoundSource(path, "file", alike, tuple(exchanges), _by_name(path, said))


def _survey_documents(path: Path, say: Say) -> FoundSource:
    tell, said = _heard(say)
    texts = tuple(Exchange("", text) for _, text in read_documents(path, tell))
    return FoundSource(path, "documents", (None, None), texts, _by_name(path, said))


def _heard(say: Say) -> tuple[Say, list[str]]:
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        say(line)

    return tell, said


def _by_name(path: Path, said: Sequence[str]) -> tuple[str, ...]:
    """Without the folders above it, which the reader of a YAML file need not know."""
    return tuple(line.replace(str(path), path.name) for line in said)


def _columns(layout: Layout | None) -> tuple[str | None, str | None]:
    """Unless the row is a chat or running text, or its prompt is joined from several columns."""
    if layout is None or len(layout.prompt) != 1 or layout.prompt[0].strip().lower() in CONVERSATIONS:
        return None, None
    return layout.prompt[0], layout.answer


# ---------------------------------------------------------------------------------------------------------------- lengths


def lengths(texts: Sequence[T], count: Callable[[T], int]) -> list[int]:
    """``lengths(answers, count_answer)``: in tokens, of at most ``MAX_MEASURED`` texts from the whole list, evenly spaced."""
    number = min(len(texts), MAX_MEASURED)
    return [count(texts[place * len(texts) // number]) for place in range(number)]


def limit_for(measured: Sequence[int], share: float = COVERED) -> int:
    """``limit_for([10] * 98 + [900] * 2) == 16``: the least multiple of ``ROUNDED`` that ``share`` of them do not exceed."""
    enough = sorted(measured)[ceil(share * len(measured)) - 1]
    return max(ROUNDED, ceil(enough / ROUNDED) * ROUNDED)


def share_above(measured: Sequence[int], limit: int) -> float:
    """``share_above([10, 200], 112) == 0.5``"""
    return sum(one > limit for one in measured) / len(measured)
