"""What a path makes before there is a domain: sources for files of rows, and one for documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.config.sources import DOCUMENT_SUFFIXES
from factory.data.documents import READERS
from factory.data.survey import survey
from factory.errors import DataError


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    for name in ("b.csv", "a.csv"):
        (folder / name).write_text("question,answer\nWhy?,So.\n")
    (folder / "leave.txt").write_text("You have 30 days of leave.")
    return folder


def found(path: Path) -> list[tuple[str, str]]:
    return [(source.kind, source.path.name) for source in survey(path)]


def test_a_single_document_is_data(exports: Path) -> None:
    [source] = survey(exports / "leave.txt")
    assert (source.kind, source.path) == ("documents", exports / "leave.txt")
    assert [one.completion for one in source.exchanges] == ["You have 30 days of leave."]
    assert source.said == ("leave.txt: 1 document",)


def test_a_pattern_is_read_as_a_folder_is(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(exports / "*.csv") == [("file", "a.csv"), ("file", "b.csv")]
    assert found(exports / "*.txt") == [("documents", "*.txt")]
    assert found(exports) == [("file", "a.csv"), ("file", "b.csv"), ("documents", "exports")]
    monkeypatch.setenv("HOME", str(exports.parent))
    assert found(Path("~/exports/b.csv")) == [("file", "b.csv")]


def test_what_is_not_there_is_one_line(exports: Path) -> None:
    for name, said in (("*.xlsx", "no file matches "), ("leave.pdf", "no file "), ("none.docx", "no file ")):
        with pytest.raises(DataError, match=rf"^{said}.*; in .*exports: a\.csv, b\.csv, leave\.txt$"):
            survey(exports / name)


def test_every_kind_of_document_that_a_domain_may_name_is_read() -> None:
    assert tuple(READERS) == DOCUMENT_SUFFIXES
