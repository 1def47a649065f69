"""Files of records: what is written in any format is read back, and what is malformed is one line with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.bounded import Bounded, Limits
from factory.data import encoding, records
from factory.data.records import (
    CONTROL,
    READERS,
    Record,
    beside,
    check_distinct,
    describe_value,
    plain_text,
    read_batches,
    read_records,
    text_of,
)
from factory.errors import DataError

ROWS = [{"question": "Why, then?", "answer": 'So; "always".'}, {"question": "How?\nAnd when?", "answer": "Thus\t| so."}]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def as_excel(rows: list[dict[str, Any]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, file = openpyxl.Workbook(), io.BytesIO()
    book.active.title = "Notes"  # without rows
    sheet = book.create_sheet("Tickets")
    for row in [[], [*rows[0]], *([row[name] for name in rows[0]] for row in rows)]:
        sheet.append(row)
    book.save(file)
    return file.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": lines,
    "a.NDJSON": lines,
    "a.json": lambda rows: json.dumps(rows).encode(),
    "pretty.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "one-by-one.json": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows).encode(),
    "a.csv": as_csv,
    "semicolon.csv": lambda rows: as_csv(rows, ";"),
    "bar.csv": lambda rows: as_csv(rows, "|"),
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.parquet": as_parquet,
    "a.xlsx": as_excel,
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_reads_alike(tmp_path: Path, name: str, gzipped: bool) -> None:
    content = WRITERS[name](ROWS)
    path = write(tmp_path / f"{name}{'.gz' * gzipped}", gzip.compress(content) if gzipped else content)
    assert [dict(record.fields) for record in read_records(path)] == ROWS


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("a.jsonl", ["line 1", "line 2"]),
        ("pretty.json", ["line 2", "line 6"]),
        ("a.csv", ["row 2", "row 3"]),  # though the second begins on line 3 and ends on line 4
        ("a.parquet", ["row 1", "row 2"]),
        ("a.xlsx", ["row 3", "row 4"]),  # row 1 is empty
    ],
)
def test_a_place_is_what_an_editor_or_a_spreadsheet_shows(tmp_path: Path, name: str, places: list[str]) -> None:
    path = write(tmp_path / name, WRITERS[name](ROWS))
    assert [record.place for record in read_records(path)] == places


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t,;|\"' "), max_size=20)


@settings(max_examples=60)
@given(
    rows=st.lists(st.fixed_dictionaries({"q": CELLS, "a b": CELLS}), min_size=1, max_size=5), name=st.sampled_from([*WRITERS])
)
def test_any_text_is_read_as_it_was_written(tmp_path_factory: Any, rows: list[dict[str, str]], name: str) -> None:
    if name.endswith(("csv", "tsv", "xlsx")):  # empty rows of a table are none
        rows = [row | {"q": f"x{row['q']}"} for row in rows]
    if name.endswith("xlsx"):  # XML's line ends are newlines; a formula is no text
        rows = [{column: f"x{cell}" for column, cell in row.items()} for row in rows]
    path = write(tmp_path_factory.mktemp("any") / name, WRITERS[name](rows))
    found = [{column: text_of(record, column) for column in ("q", "a b")} for record in read_records(path)]
    assert found == [{column: plain_text(cell) for column, cell in row.items()} for row in rows]


@settings(max_examples=150)
@given(st.binary(max_size=60) | st.text('[]{}":,;\n\t\\ au1\x00é', max_size=40).map(str.encode), st.sampled_from([*READERS]))
def test_whatever_a_file_has_is_records_or_one_line(tmp_path_factory: Any, content: bytes, name: str) -> None:
    for ending, packed in (("", content), (".gz", content), (".gz", gzip.compress(content))):
        path = write(tmp_path_factory.mktemp("fuzz") / f"a{name}{ending}", packed)
        try:
            assert all(isinstance(record, Record) for record in read_records(path))
        except DataError as error:
            assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"question": f"{i} " * 200, "answer": "So."} for i in range(9_000)]
    path = write(tmp_path / name, WRITERS[name](rows))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path)) == 9_000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000  # of 10 MB; a block is 1 MB, or twice and thrice that
    finally:
        tracemalloc.stop()


def test_an_object_may_be_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK", 3)
    path = write(tmp_path / "a.json", json.dumps(ROWS, indent=1))
    assert [dict(record.fields) for record in read_records(path)] == ROWS
    monkeypatch.setattr(records, "MAX_RECORD", 5)
    with pytest.raises(DataError, match=r"a.json: line \d is not valid JSON"):
        list(read_records(path))


def test_a_cell_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    [record] = read_records(write(tmp_path / "a.csv", f"question\n{'long ' * 40_000}\n"))
    assert len(record.fields["question"]) == 200_000


def test_columns_without_a_name_and_empty_rows_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",question,,\n0,Why?,,\n,,,\n\n1,How?\n")
    assert [(record.place, dict(record.fields)) for record in read_records(path)] == [
        ("row 2", {"question": "Why?"}),
        ("row 5", {"question": "How?"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"q": 1}', "JSON lines"),
        ("a.csv", "q,a\n1,2\n", "CSV separated by ','"),
        ("a.csv", "q\ta\n1\t2\n", "CSV separated by tabs"),
        ("a.tsv", '"q; long";a\n1;2\n', "CSV separated by ';'"),
        ("a.csv", "Frage;Antwort\nWie heißt er?;Öl für Größe\n".encode("latin-1"), "CSV separated by ';', cp125[02]"),
        ("a.csv", "q;a\nä;ö\n".encode("utf-16"), "CSV separated by ';', utf-16"),
    ],
)
def test_it_is_said_what_a_file_was_taken_for(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    heard: list[str] = []
    assert list(read_records(write(tmp_path / name, content), heard.append))
    [line] = heard
    assert pytest.importorskip("re").fullmatch(f".*{name} is {said}", line)


def test_the_sheet_that_was_read_is_named(tmp_path: Path) -> None:
    heard: list[str] = []
    list(read_records(write(tmp_path / "a.xlsx", as_excel(ROWS)), heard.append))
    assert heard == [f"{tmp_path / 'a.xlsx'} is Excel, sheet 'Tickets' of 2"]


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", r"a\.txt must end in \.jsonl, .*\.xlsx, or one of these and \.gz"),
        ("a.jsonl", '{"a": 1}\n{"a":\n', r"line 2 is not valid JSON \(.* at column"),
        ("a.jsonl", "[1, 2]\n", r"line 1 is a list, expected an object \{\.\.\.\}"),
        ("a.jsonl", '{"a": 1, "a": 2}', "line 1: an object has two values for 'a'"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1: .*recursion"),
        ("a.jsonl", '{"a": "ä"}\n{"a": "ö"}\n'.encode() + b'{"a": "\xe4"}', "line 3 is not UTF-8, as 2 others are"),
        ("a.jsonl", b"\xff\xfe\x00", "not utf-16.* throughout; save it as UTF-8"),
        ("a.json", '[{"a": 1},\n{"a": 2}', "the list that begins on line 1 is not closed; is the file cut off"),
        ("a.json", '[{"a": 1}]\n[{"a": 2}]', r"line 2: '\[' comes after the end of the list; put all rows into one list"),
        ("a.json", '{"a": 1}\n\n{"a": }', "line 3 is not valid JSON"),
        ("a.json", '\n[\n{"a": 1},\n{"a": 2,\n "b": }]', r"line 5 is not valid JSON \(.* at column"),
        ("a.json", '\n[{"a": 1},', "the list that begins on line 2 is not closed"),
        ("a.json", '[{"a": 1},\n3]', "line 2 is the number 3, expected an object"),
        ("a.json", '["Why?"]', "line 1 is the text 'Why\\?', expected an object"),
        ("a.json", '{"a":\n{"b": 1, "b": 2}}', "line 1: an object has two values for 'b'"),
        ("a.csv", "a,b\n" + '1,"open\n' + "2,3\n" * 60, "the row that starts on line 2 is not valid CSV .*is a quote open"),
        ("a.csv", 'a,b\n1,"x"y\n', "the row that starts on line 2 is not valid CSV"),
        ("a.csv", "a\n1\n2,3\n", "row 3 has 2 cells, its header 1; are quotes missing"),
        ("a.csv", "q,a,q\n1,2,3\n", "two columns are called 'q'; rename one"),
        ("a.parquet", "no parquet at all", "cannot read .*a.parquet: "),
        ("a.csv.gz", "no gzip", "cannot read .*a.csv.gz: "),
        ("a.csv.gz", gzip.compress(b"q\n" * 999, mtime=0)[:-9], "cannot read .*a.csv.gz: "),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        list(read_records(write(tmp_path / name, content)))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def rows_far_apart() -> bytes:
    """A sheet whose second row is said to be the row of number 99,999,999,999."""
    file, made = io.BytesIO(as_excel(ROWS)), io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb'r="([A-Z]?)4"', rb'r="\g<1>99999999999"', old.read(name)))
    return made.getvalue()


def one_text_many_times() -> bytes:
    file = io.BytesIO()
    column = pyarrow.array(["x" * 100_000]).dictionary_encode()
    indices = pyarrow.array([0] * 300_000, pyarrow.int32())
    table = pyarrow.table({"q": pyarrow.DictionaryArray.from_arrays(indices, column.dictionary)})
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


BOMBS = {
    "a.xlsx": rows_far_apart,
    "a.parquet": one_text_many_times,
    "a.parquet.gz": lambda: gzip.compress(one_text_many_times()),
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's memory")
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_stands_for_endless_rows_is_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Bounded(read_batches, Limits(seconds=4, memory=1 << 29, output=1 << 26))
    monkeypatch.setattr(records, "_binary_reader", lambda: small)
    path = write(tmp_path / name, BOMBS[name]())
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=f"cannot read .*{name}: it (takes|holds) more than"):
        for _ in read_records(path):
            pass


def test_a_line_and_a_file_that_never_end_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_RECORD", 1000)
    for name in ("a.jsonl", "a.csv"):
        with pytest.raises(DataError, match="line 2 has more than 1,000 characters"):
            list(read_records(write(tmp_path / name, '{"a": "b"}\n' + "x" * 2000)))
    monkeypatch.setattr(encoding, "MAX_UNPACKED", 1 << 28)
    monkeypatch.setattr(encoding, "MAX_LINES", 1 << 27)
    for text in (b"\n", b" ", "\ufeff".encode("utf-16-le")):
        packed = gzip.compress(text * (1 << 22)) * 70  # members of a gzip file are joined
        assert len(packed) < 1_000_000
        with pytest.raises(DataError, match=r"it has more than .* lines or .* bytes, unpacked; split it"):
            list(read_records(write(tmp_path / "a.jsonl.gz", packed)))


def test_a_name_twice_among_a_million_is_found_at_once() -> None:
    with pytest.raises(ValueError, match="two columns are called 'x'"):
        check_distinct([*map(str, range(1_000_000)), "x", "x"], "two columns are called")


def test_parquet_with_one_name_for_two_columns_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns are called 'a'"):
        list(read_records(tmp_path / "a.parquet"))


def test_a_missing_file_says_what_is_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "there.csv", "")
    with pytest.raises(DataError, match=r"no file .*gone\.csv; in .*: there\.csv"):
        list(read_records(tmp_path / "gone.csv"))
    assert beside(tmp_path / "gone" / "deeper.csv") == f"in {tmp_path}: there.csv"


# --------------------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (" a ", "a"), (3, "3"), (0, "0"), (2.5, "2.5"), (Decimal("1.20"), "1.20"), ("a\r\nb\rc\x0cd", "a\nb\nc\nd")],
)
def test_texts_and_numbers_have_a_text(value: Any, text: str) -> None:
    assert text_of(Record("row 2", {"a": value}), "a") == text
    assert text_of(Record("row 2", {"a": value}), "b") == text_of(Record("row 2", {}), None) == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), r"is nan \(a missing number\), not text"),
        (Decimal("inf"), "is Infinity"),
        (True, "is true, not text"),
        (["a"], "is a list, not text"),
        ({"text": ["a"], "answer_start": [3]}, r"is an object with text, answer_start \(answers of SQuAD\), not text"),
        (
            [{"role": "user", "content": "Hi"}],
            r"is a list whose first item is an object with role, content \(a message of OpenAI",
        ),
        ({}, "is an object with no keys"),
        (b"a", "is bytes"),
        (date(2026, 1, 1), "is the date 2026-01-01"),
    ],
)
def test_what_is_no_text_is_never_turned_into_one(value: Any, words: str) -> None:
    with pytest.raises(DataError, match=f"^row 2: column 'a' {words}"):
        text_of(Record("row 2", {"a": value}), "a")


@given(st.text(st.sampled_from("ab \r\n\t\x0b\x1b\x85\u202e\u2066\ufeff\ud800é")))
def test_plain_text_has_no_control_characters_and_stays_as_it_is(text: str) -> None:
    plain = plain_text(text)
    assert not CONTROL.search(plain) and "\r" not in plain
    assert plain_text(plain) == plain
    plain.encode()


def test_control_characters_are_removed_but_not_newlines_tabs_and_joiners() -> None:
    assert plain_text("a\x00b\x1b[31m\u202ec\u2066d\ud800\n\te") == "ab[31mcd\n\te"
    assert plain_text("👩\u200d🚀 לא\u200f") == "👩\u200d🚀 לא\u200f"


def test_a_long_text_is_described_shortly() -> None:
    assert describe_value("word " * 50) == "the text 'word word word word word word word ...'"
