"""Documents of a folder: what is read of each format, what is skipped and why, and chunks that lose no word."""

from __future__ import annotations

import builtins
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.documents import a_pdf

from factory.bounded import Bounded, Limits
from factory.data import documents
from factory.data.documents import cut_chunks, document_files, parse_document, read_document, read_documents
from factory.errors import DataError

PAGE = """<!doctype html><html><head><title>Leave</title><style>p {color: red}</style>
<body><nav>Home</nav><h1>Leave</h1><p>You have <b>30</b> days
of leave&nbsp;&amp; more.</p><script>alert(1)</script><ul><li>Ask early.<li>Ask in writing.</ul>
<table><tr><th>Year<td>Days</tr><tr><td>2026</td><td>30</td></tr></table>"""


def count_words(text: str) -> int:
    return len(text.split())


def texts_of(folder: Path, said: list[str] | None = None) -> dict[str, str]:
    found = read_documents(folder, (said if said is not None else []).append)
    return {path.relative_to(folder).as_posix(): text for path, text in found}


def test_text_and_markdown_are_read_whatever_their_case_and_encoding(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "UPPER.TXT").write_bytes("Größe\r\nund \x1bÖl\r\n".encode("cp1252"))
    (tmp_path / "deep" / "a.md").write_text("# Leave\n", encoding="utf-8-sig")
    said: list[str] = []
    assert texts_of(tmp_path, said) == {"UPPER.TXT": "Größe\nund Öl", "deep/a.md": "# Leave"}
    assert said == [f"{tmp_path}: 2 documents; 1 without their control characters"]


def test_of_a_page_is_read_what_a_reader_sees(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    lines = [line for line in read_document(tmp_path / "a.html").split("\n") if line.strip()]
    assert [line.strip() for line in lines] == [
        *("Leave", "You have 30 days of leave & more.", "Ask early.", "Ask in writing.", "Year Days", "2026 30")
    ]


def test_every_page_of_a_pdf_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(a_pdf("You have 30 days.", "Ask early."))
    assert read_document(tmp_path / "a.pdf").split() == ["You", "have", "30", "days.", "Ask", "early."]


def test_paragraphs_and_tables_of_word_are_read_in_order(tmp_path: Path) -> None:
    made = pytest.importorskip("docx").Document()
    made.add_heading("Leave")
    table = made.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "2026", "30 days"
    made.add_paragraph("Ask early.")
    made.save(tmp_path / "a.docx")
    assert read_document(tmp_path / "a.docx") == "Leave\n\n2026\t30 days\n\nAsk early."


def test_hidden_files_are_left_and_others_are_named_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    for name in (".git/description.txt", ".notes.md", "b/.cache/x.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("hidden")
    (tmp_path / "a.md").write_text("Leave.")
    (tmp_path / "b" / "c.png").write_bytes(b"")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "scan.pdf").write_bytes(a_pdf(""))
    said: list[str] = []
    assert texts_of(tmp_path, said) == {"a.md": "Leave."}
    assert [path.name for path in document_files(tmp_path)] == ["a.md", "empty.txt", "scan.pdf"]
    assert said == [
        f"{tmp_path}: 1 document; skipped 3: b/c.png (not .txt, .md, .html, .htm, .pdf, .docx), "
        "empty.txt (no text in it; a scan needs OCR first), scan.pdf (no text in it; a scan needs OCR first)"
    ]


@pytest.mark.parametrize("name", ["a.pdf", "a.docx"])
def test_damaged_documents_are_one_line(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pypdf" if name == "a.pdf" else "docx")
    (tmp_path / name).write_bytes(b"neither\nof them")
    with pytest.raises(DataError, match=f"cannot read .*{name}: .*; mend it, or take it out of the folder") as caught:
        texts_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_reader_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name in ("pypdf", "docx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"a\.pdf needs pypdf: pip install 'student-factory\[files\]', or take it out"):
        list(parse_document(tmp_path / "a.pdf"))


def test_a_missing_or_empty_folder_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*texts; in "):
        texts_of(tmp_path / "texts")
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"no text in .*; skipped 1: a\.png \(not \.txt"):
        texts_of(tmp_path)


def word(body: str) -> bytes:
    """A document of Word whose body is this XML."""
    file = io.BytesIO()
    pytest.importorskip("docx").Document().save(file)
    made = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "word/document.xml":
                text = re.sub(rb"<w:body>.*</w:body>", b"<w:body>" + body.encode() + b"</w:body>", text, flags=re.DOTALL)
            new.writestr(name, text)
    return made.getvalue()


SPANS = "<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val='999999999'/></w:tcPr><w:p/></w:tc></w:tr></w:tbl>"
TEXT = "<w:p><w:r><w:t>" + "a" * 900_000 + "</w:t></w:r></w:p>"
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a cell of a billion columns": ("spans.docx", lambda: word(SPANS)),
    "a text a thousand times as large as its file": ("text.docx", lambda: word(TEXT * 300)),
    "a page that a megabyte of operators draws": ("long.pdf", lambda: a_pdf("Leave.) Tj (" * 200_000)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's memory")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_and_other_documents_are_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Bounded(parse_document, Limits(seconds=4, memory=1 << 28, output=1 << 20))
    monkeypatch.setattr(documents, "_reader", lambda: small)
    file, made = BOMBS[name]
    (tmp_path / file).write_bytes(made())
    assert (tmp_path / file).stat().st_size < 3_000_000
    with pytest.raises(DataError, match=f"cannot read .*{file}: it (takes|holds) more than .*; mend it, or take it out"):
        texts_of(tmp_path)
    (tmp_path / "a.md").write_text("Leave.")
    assert read_document(tmp_path / "a.md") == "Leave."


def test_a_pipe_among_documents_is_left(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("Leave.")
    assert texts_of(tmp_path) == {"b.txt": "Leave."}


WORDS = st.sampled_from(["One.", "two", "three!", "\n\n", "four?", "a-word-that-is-long"])


@given(st.lists(WORDS, max_size=40), st.integers(1, 12))
def test_chunks_are_short_and_lose_no_word(words: list[str], limit: int) -> None:
    text = " ".join(words)
    chunks = cut_chunks(text, limit, count_words)
    assert " ".join(chunks).split() == text.split()
    assert all(0 < count_words(chunk) <= limit for chunk in chunks)
