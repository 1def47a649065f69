"""Records of a file, one after the other: JSON lines, JSON, CSV, TSV, Parquet or Excel, each also gzipped.

for record in read_records(Path("tickets.csv.gz")):
    record.place, text_of(record, "question")

Memory holds one block of the file at a time. No object becomes text by ``str``: a cell that is not text is an error.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO

from factory.bounded import Bounded, Limits
from factory.data.encoding import (
    BLOCK,
    MAX_RECORD,
    MAX_UNPACKED,
    describe_encoding,
    encoding_of,
    lines_of,
    open_bytes,
    open_text,
)
from factory.errors import DataError, in_one_line

TABLE_LIMITS = Limits(seconds=120, memory=2 << 30, output=MAX_UNPACKED)
BATCH = 256  # rows
DELIMITERS = (",", ";", "\t", "|")
EXTRAS = "pip install 'student-factory[files]'"

LINE_END = re.compile(r"\r\n|[\r\v\f]")
# Control characters but newline and tab, marks that turn the direction of writing, and halves of surrogate pairs.
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
NOT_GAP = re.compile(r"[^\s,]")  # what follows the spaces and commas between two objects of a JSON file

KNOWN_OBJECTS = {  # keys -> where such objects are from
    frozenset({"text", "answer_start"}): "answers of SQuAD",
    frozenset({"role", "content"}): "a message of OpenAI's chat format",
    frozenset({"from", "value"}): "a turn of ShareGPT",
    frozenset({"bytes", "path"}): "an image or a sound",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """One row of a file by the names of its columns."""

    place: str  # "line 3" of a JSON file; "row 3", as spreadsheets count, of a table
    fields: Mapping[str, Any]


def silent(line: str) -> None:
    """``read_records(path)``: for callers that want no messages."""


def read_records(path: Path, say: Say = silent) -> Iterator[Record]:
    """``list(read_records(Path("tickets.csv")))``: by the file's name, which may end in .gz; empty rows are skipped.

    Before the first record ``say`` hears what the file was taken for: "tickets.csv is CSV separated by ';', cp1252".
    Raises: DataError for a missing file, another name or a malformed record, with its line.
    """
    kind = kind_of(path)
    if kind not in READERS:
        raise DataError(f"{path} must end in {', '.join(READERS)}, or one of these and .gz")
    if not path.is_file():
        raise DataError(f"no file {path}; {beside(path)}")
    try:
        yield from READERS[kind](path, lambda taken_for: say(f"{path} is {taken_for}"))
    except DataError:
        raise
    except (gzip.BadGzipFile, EOFError):
        raise DataError(f"cannot read {path}: it is cut off or not gzipped; fetch it again, or take .gz off its name") from None
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not {error.encoding} throughout; save it as UTF-8") from None
    except Exception as error:  # the parsers of damaged files raise dozens of kinds
        raise DataError(f"cannot read {path}: {in_one_line(error)}") from error


def describe_columns(names: Iterable[str]) -> str:
    """``describe_columns(record.fields) == "id, question"``: for messages; they are long where a file has no header."""
    return ", ".join(shorten(name, 40, placeholder=" ...") for name in islice(names, 20)) or "none"


def kind_of(path: Path) -> str:
    """``kind_of(Path("A.CSV.gz")) == ".csv"``"""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def beside(path: Path) -> str:
    """``beside(path)``: for the message about a missing path, what the nearest existing folder above it contains."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"in {folder}: {', '.join(names[:10]) or 'nothing'}{' ...' if len(names) > 10 else ''}"


# -------------------------------------------------------------------------------------------------------------------- JSON


def read_json_lines(path: Path, say: Say) -> Iterator[Record]:
    """One object per line; blank lines are skipped."""
    encoding = encoding_of(path)
    say(f"JSON lines{describe_encoding(encoding)}")
    with open_text(path, encoding) as file:
        for number, line in enumerate(lines_of(file), start=1):
            if line.strip():
                place = f"line {number}"
                line = line.strip()
                try:
                    value = json.loads(line, object_pairs_hook=distinct_keys)
                except json.JSONDecodeError as error:
                    if error.pos == 0:  # a page or a pointer in place of the file
                        raise ValueError(f"{place} is not JSON but {shorten(line, 60, placeholder=' ...')!r}") from error
                    raise ValueError(f"{place} is not valid JSON ({error.msg} at column {error.colno})") from error
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{place}: {in_one_line(error)}") from error
                yield as_record(value, place)


def read_json(path: Path, say: Say) -> Iterator[Record]:
    """A list of objects, or objects one after the other, on as many lines as they like."""
    encoding = encoding_of(path)
    say(f"JSON{describe_encoding(encoding)}")
    with open_text(path, encoding) as file:
        yield from json_records(file)


def json_records(file: TextIO) -> Iterator[Record]:
    """``list(json_records(io.StringIO('[{"a": 1},\\n{"a": 2}]')))[1].place == "line 2"``"""
    values = JSONValues(file)
    is_list, start = values.peek() == "[", values.line
    if is_list:
        values.skip()
    while values.peek() not in ("", "]"):
        place = f"line {values.line}"
        yield as_record(values.read(), place)
    if is_list and not values.peek():
        raise ValueError(f"the list that begins on line {start} is not closed; is the file cut off?")
    if is_list:
        values.skip()
    if values.peek():
        raise ValueError(f"line {values.line}: {values.peek()!r} comes after the end of the list; put all rows into one list")


@dataclass
class JSONValues:
    """One value of a file after the other, with commas between them or without. Holds a block, or as much as a value needs."""

    file: TextIO
    text: str = ""
    at: int = 0
    line: int = 1  # of the position

    def peek(self) -> str:
        """The next character that is neither a space nor a comma; "" at the end."""
        while True:
            next_one = NOT_GAP.search(self.text, self.at)
            self._go_to(next_one.start() if next_one else len(self.text))
            if next_one:
                return next_one[0]
            self.text, self.at = self.file.read(BLOCK), 0
            if not self.text:
                return ""

    def skip(self) -> None:
        """Over the character that ``peek`` saw."""
        self.at += 1

    def read(self) -> Any:
        """The value that begins here. Raises: ValueError with the line that is wrong."""
        decode = json.JSONDecoder(object_pairs_hook=distinct_keys).raw_decode
        while True:
            try:
                value, end = decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._read_on():
                    continue
                wrong = self.line + self.text.count("\n", self.at, error.pos)
                raise ValueError(f"line {wrong} is not valid JSON ({error.msg} at column {error.colno})") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {self.line}: {in_one_line(error)}") from error
            self._go_to(end)
            return value

    def _read_on(self) -> bool:
        """Twice as much, because what was read may be the beginning of a value; False where there is no more."""
        more = self.file.read(max(BLOCK, len(self.text))) if len(self.text) < MAX_RECORD else ""
        if more:
            self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def _go_to(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end


def distinct_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """``json.loads(text, object_pairs_hook=distinct_keys)``: of equal keys, the last would win."""
    check_distinct([key for key, _ in pairs], "an object has two values for")
    return dict(pairs)


def check_distinct(names: Sequence[str], problem: str) -> None:
    """Raises: ValueError with the first name that is there twice."""
    if len(set(names)) < len(names):
        [(name, _)] = Counter(names).most_common(1)
        raise ValueError(f"{problem} {name!r}; rename one")


def as_record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {describe_value(value)}, expected an object {{...}}")
    return Record(place, value)


# ------------------------------------------------------------------------------------------------------------------ tables


def read_csv(path: Path, say: Say) -> Iterator[Record]:
    """Cells by the names in the header, whose line decides the delimiter."""
    encoding = encoding_of(path)
    csv.field_size_limit(MAX_RECORD)  # for every reader of this process; its own, 131,072, is less than some articles have
    with open_text(path, encoding) as file:
        first = next((line for line in lines_of(file) if line.strip()), "")
        delimiter = max(DELIMITERS, key=lambda one: len(next(csv.reader([first], delimiter=one), [])))
        separated = "tabs" if delimiter == "\t" else repr(delimiter)
        say(f"CSV separated by {separated}{describe_encoding(encoding)}")
        file.seek(0)
        yield from table_records(csv_rows(lines_of(file), delimiter))


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Every row, empty ones too. Raises: ValueError with the line on which a row with a stray or unclosed quote starts."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        start = reader.line_num + 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"the row that starts on line {start} is not valid CSV ({error}); is a quote open?") from error


def read_binary(path: Path, say: Say) -> Iterator[Record]:
    """Parquet or Excel, in a process that ends at its limits: a small file may stand for any number of rows."""
    for said, records in _binary_reader().ask(path):
        for line in said:
            say(line)
        yield from records


@lru_cache(maxsize=1)
def _binary_reader() -> Bounded:
    return Bounded(read_batches, TABLE_LIMITS)


def read_batches(path: Path) -> Iterator[tuple[list[str], list[Record]]]:
    """``for said, records in read_batches(path):`` what ``read_binary``'s process does; the last batch is empty."""
    said: list[str] = []
    records = BINARY_READERS[kind_of(path)](path, said.append)
    while batch := list(islice(records, BATCH)):
        yield said, batch
        said.clear()
    yield said, []


def read_parquet(path: Path, say: Say) -> Iterator[Record]:
    """Nested columns are lists and dictionaries."""
    import pyarrow.parquet

    say("Parquet")
    with open_bytes(path) as file:
        table = pyarrow.parquet.ParquetFile(file)
        check_distinct(table.schema_arrow.names, "two columns are called")
        rows = chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(batch_size=BATCH, use_threads=False))
        for number, row in enumerate(rows, start=1):
            yield Record(f"row {number}", row)


def read_excel(path: Path, say: Say) -> Iterator[Record]:
    """The first sheet that has rows; formulas have the values that were last computed."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(f"{path} needs openpyxl: {EXTRAS}, or save it as CSV") from None
    with open_bytes(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not an .xlsx file; save it as one in a spreadsheet, without a password, or save it as CSV")
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # which some programs write wrongly
            rows = sheet.iter_rows(values_only=True)
            first = next((row for row in rows if not all(map(is_blank, row))), None)
            if first is not None:
                say(f"Excel, sheet {sheet.title!r}" + (f" of {len(book.worksheets)}" if len(book.worksheets) > 1 else ""))
                yield from table_records(sheet.iter_rows(values_only=True))
                return


def table_records(rows: Iterable[Sequence[Any]]) -> Iterator[Record]:
    """The first row that is not empty is the header; columns without a name are left out."""
    names: list[str] = []
    for number, cells in enumerate(rows, start=1):
        if all(map(is_blank, cells)):
            continue
        if not names:
            names = ["" if cell is None else str(cell).strip() for cell in cells]
            check_distinct([name for name in names if name], "two columns are called")
            continue
        if not all(map(is_blank, cells[len(names) :])):
            raise ValueError(f"row {number} has {len(cells)} cells, its header {len(names)}; are quotes missing?")
        yield Record(f"row {number}", {name: cell for name, cell in zip(names, cells, strict=False) if name})


def is_blank(cell: Any) -> bool:
    return cell is None or cell == ""


READERS: dict[str, Callable[[Path, Say], Iterator[Record]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_binary,
    ".xlsx": read_binary,
}
BINARY_READERS: dict[str, Callable[[Path, Say], Iterator[Record]]] = {".parquet": read_parquet, ".xlsx": read_excel}


# ------------------------------------------------------------------------------------------------------------------- cells


def text_of(record: Record, column: str | None) -> str:
    """``text_of(record, "question")``: the cell's text without control characters, "" where there is none; a number's digits.

    Raises: DataError for a list, an object, NaN, true, a date: with the row, the column and what it looks like.
    """
    return "" if column is None else plain_text(raw_text(record, column))


def raw_text(record: Record, column: str) -> str:
    """``raw_text(record, "question")``: as ``text_of``, with what ``plain_text`` removes."""
    value = record.fields.get(column)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return f"{value}"
    raise DataError(f"{record.place}: column {column!r} is {describe_value(value)}, not text")


def plain_text(text: str) -> str:
    """``plain_text(" a\\x1b\\r\\n") == "a"``: without control characters and spaces around it; lines end in a newline."""
    return CONTROL.sub("", LINE_END.sub("\n", text)).strip()


def describe_value(value: Any) -> str:
    """``describe_value({"text": ["x"], "answer_start": [3]}) == "an object with text, answer_start (answers of SQuAD)"``"""
    match value:
        case None:
            return "null"
        case bool():
            return f"{value}".lower()
        case int() | float() | Decimal():
            return f"the number {value}" if math.isfinite(value) else f"{value} (a missing number)"
        case str():
            return f"the text {shorten(value, 40, placeholder=' ...')!r}"
        case dict():
            known = (what for keys, what in KNOWN_OBJECTS.items() if keys <= value.keys())
            return f"an object with {', '.join(list(value)[:5]) or 'no keys'}" + "".join(f" ({what})" for what in known)
        case [dict(), *_]:
            return f"a list whose first item is {describe_value(value[0])}"
        case list():
            return "a list"
        case bytes():
            return "bytes"
        case date():
            return f"the date {value:%Y-%m-%d}"
        case _:
            return f"a {type(value).__name__}"
