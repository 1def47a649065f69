"""Texts of documents: plain text, Markdown, HTML, PDF and Word; and how they are cut into chunks.

for path, text in read_documents(Path("handbook"), say=print):
    cut_chunks(text, 160, count_tokens)
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

from factory.bounded import Bounded, BoundedError, Limits
from factory.config.paths import expand, folder_of, no_such
from factory.data.encoding import encoding_of, open_text
from factory.data.records import CONTROL, EXTRAS, Say, beside, plain_text, silent
from factory.errors import DataError, in_one_line

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
PARAGRAPH_END = re.compile(r"\n\s*\n")
SHOWN = 5  # names of skipped files
LIMITS = Limits(seconds=120, memory=2 << 30, output=1 << 28)  # of one document

CountTokens = Callable[[str], int]


def read_documents(path: Path, say: Say = silent) -> Iterator[tuple[Path, str]]:
    """``for file, text in read_documents(Path("handbook")):`` every document below a folder, by name.

    The path may also be of a document, or a pattern. Hidden files and folders are skipped. At the end ``say`` hears how many
    documents there were, and what was skipped and why.
    Raises: DataError for a missing folder, a damaged document, or one whose reader is not installed.
    """
    if not any(one.exists() for one in expand(path)):
        raise DataError(f"{no_such('folder or document', path)}; {beside(path)}")
    folder = folder_of(path)
    others = [file for file in visible_files(path) if not _read_by(file)]
    skipped = {file.relative_to(folder).as_posix(): f"not {', '.join(READERS)}" for file in others}
    count = cleaned = 0
    for file in document_files(path):
        text = read_document(file)
        if not plain_text(text):
            skipped[file.relative_to(folder).as_posix()] = "no text in it; a scan needs OCR first"
            continue
        count += 1
        cleaned += bool(CONTROL.search(text))
        yield file, plain_text(text)
    if not count and skipped:
        raise DataError(f"no text in {path}{_describe_skipped(skipped)}")
    if not count:
        raise DataError(f"no text in {', '.join(READERS)} files in {path}; {beside(path / '*')}")
    removed = f"; {cleaned} without their control characters" if cleaned else ""
    say(f"{path}: {count} document{'s' if count > 1 else ''}{removed}{_describe_skipped(skipped)}")


def document_files(path: Path) -> list[Path]:
    """``document_files(Path("handbook"))``: those that are read, by name."""
    return [file for file in visible_files(path) if _read_by(file)]


def visible_files(path: Path) -> list[Path]:
    """``visible_files(Path("handbook"))``: below a folder all that are neither hidden nor in a hidden folder, by name.

    Of a pattern, what it matches and what is in folders that it matches; a file is itself.
    """
    found: set[Path] = set()
    for start in expand(path):
        for parent, folders, names in os.walk(start):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found |= {file for name in names if not name.startswith(".") and (file := Path(parent, name)).is_file()}
        found |= {start} if start.is_file() else set()
    return sorted(found)


def _describe_skipped(skipped: dict[str, str]) -> str:
    """``"; skipped 2: a.png (not .txt, .md), b.pdf (no text in it)"``, or nothing."""
    if not skipped:
        return ""
    named = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:SHOWN])
    return f"; skipped {len(skipped)}: {named}{', ...' if len(skipped) > SHOWN else ''}"


def read_document(path: Path) -> str:
    """``read_document(Path("leave.pdf"))``: its text, paragraphs apart; read in a process that ends at its limits.

    Raises: DataError for a damaged document, one that takes too long, or one whose reader is not installed.
    """
    try:
        return "".join(_reader().ask(path))
    except BoundedError as error:
        raise DataError(f"cannot read {path}: {in_one_line(error)}; mend it, or take it out of the folder") from None


@lru_cache(maxsize=1)
def _reader() -> Bounded:
    return Bounded(parse_document, LIMITS)


def parse_document(path: Path) -> Iterator[str]:
    """``"".join(parse_document(path))``: what ``read_document``'s process does."""
    read = _read_by(path)
    assert read is not None
    try:
        yield read(path)
    except ImportError as error:
        raise DataError(f"{path} needs {error.name}: {EXTRAS}, or take it out of the folder") from None


def _read_by(path: Path) -> Callable[[Path], str] | None:
    return READERS.get(path.suffix.lower())


# ----------------------------------------------------------------------------------------------------------------- formats


def read_text(path: Path) -> str:
    """Plain text or Markdown, in UTF-8 or a guessed encoding."""
    with open_text(path, encoding_of(path)) as file:
        return file.read()


def read_html(path: Path) -> str:
    """What a reader of the page sees: no scripts, styles and navigation."""
    page = _Page()
    page.feed(read_text(path))
    page.close()
    lines = (" ".join(line.split()) for line in "".join(page.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


class _Page(HTMLParser):
    """Collects the text of a page; a block of it begins a paragraph."""

    HIDDEN = frozenset({"script", "style", "head", "nav", "template", "noscript", "svg"})
    LINES = frozenset({"br", "li", "tr", "dt", "dd"})
    CELLS = frozenset({"td", "th"})
    BLOCKS = frozenset(
        {"p", "div", "section", "article", "main", "header", "footer", "aside", "table", "ul", "ol", "dl", "pre", "blockquote"}
        | {"h1", "h2", "h3", "h4", "h5", "h6", "hr", "figure", "figcaption", "form", "title"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden: list[str] = []  # tags that are open, from the first hidden one

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "body":  # ends a head that was not closed
            self.hidden.clear()
        if tag in self.HIDDEN:
            self.hidden.append(tag)
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(" ".join(data.split("\n")))

    def _break(self, tag: str) -> None:
        for tags, space in ((self.BLOCKS, "\n\n"), (self.LINES, "\n"), (self.CELLS, " ")):
            if tag in tags and not self.hidden:
                self.parts.append(space)


def read_pdf(path: Path) -> str:
    """The text of every page; a scan has none."""
    import pypdf

    return "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)


def read_word(path: Path) -> str:
    """Paragraphs and tables in their order; a row of a table is a line."""
    import docx
    from docx.table import Table

    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a Word document (.docx)")
    return "\n\n".join(
        "\n".join("\t".join(cell.text for cell in row.cells) for row in part.rows) if isinstance(part, Table) else part.text
        for part in docx.Document(str(path)).iter_inner_content()
    )


READERS: dict[str, Callable[[Path], str]] = {
    ".txt": read_text,
    ".md": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_word,
}


# ------------------------------------------------------------------------------------------------------------------ chunks


def cut_chunks(text: str, chunk_tokens: int, count_tokens: CountTokens) -> list[str]:
    """Chunks of whole sentences, up to ``chunk_tokens`` each; only a sentence longer than that is cut, between words."""
    chunks: list[str] = []
    chunk = ""
    for piece, joiner in sentences(text, chunk_tokens, count_tokens):
        longer = f"{chunk}{joiner}{piece}" if chunk else piece
        if chunk and count_tokens(longer) > chunk_tokens:
            chunks.append(chunk)
            longer = piece
        chunk = longer
    return [*chunks, chunk] if chunk else chunks


def sentences(text: str, chunk_tokens: int, count_tokens: CountTokens) -> Iterator[tuple[str, str]]:
    """Pairs of a sentence (or a word of one that is too long) and the separator before it."""
    for paragraph in PARAGRAPH_END.split(text):
        joiner = "\n\n"
        for sentence in SENTENCE_END.split(paragraph.strip()):
            pieces = [sentence] if count_tokens(sentence) <= chunk_tokens else sentence.split()
            for piece in filter(None, pieces):
                yield piece, joiner
                joiner = " "
