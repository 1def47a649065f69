"""The files that docs/data.md shows, and what is said of each: a sample of every format, and malformed ones.

    python scripts/data_files.py

    for file in MALFORMED:
        read(file, folder)

scripts/docs.py writes the page from these lists, and tests/docs/test_data.py holds it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from factory.data.survey import survey
from factory.errors import DataError

Content = str | bytes | Callable[[], bytes] | None


@dataclass(frozen=True)
class DataFile:
    """A file; one in a folder stands for that folder."""

    about: str  # the format, or what is wrong
    name: str
    content: Content  # None: the file is not there
    sample: str = ""  # for the page, where the content is not text; in a table "|" parts the columns


def read(file: DataFile) -> str:
    """``read(MALFORMED[0])``: what `factory new` says of the file, a line each; FOLDER is the folder that it is in."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file.name)
        content = file.content() if callable(file.content) else file.content
        if content is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            survey(Path(folder, Path(file.name).parts[0]), say=said.append)
        except DataError as error:
            said = [f"error: {error}"]
        return "\n".join(line.replace(folder, "FOLDER") for line in said)


def excel(rows: Sequence[Sequence[Any]]) -> bytes:
    import openpyxl

    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in rows:
        book.worksheets[0].append(list(row))
    book.save(file)
    return file.getvalue()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def pdf(text: str = "") -> bytes:
    """A page with one line of text; without, what a scanner writes."""
    import pypdf
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    made, file, drawn = pypdf.PdfWriter(), io.BytesIO(), DecodedStreamObject()
    page = made.add_blank_page(600, 300)
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    fonts = DictionaryObject({NameObject("/F"): DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})})
    drawn.set_data(f"BT /F 12 Tf 20 200 Td ({text}) Tj ET".encode() if text else b"")
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    page[NameObject("/Contents")] = drawn
    made.write(file)
    return file.getvalue()


def word(*paragraphs: str) -> bytes:
    import docx

    made, file = docx.Document(), io.BytesIO()
    for paragraph in paragraphs:
        made.add_paragraph(paragraph)
    made.save(file)
    return file.getvalue()


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


QA = [
    ("Why is the sky blue?", "It scatters blue light most."),
    ("What is a lease?", "A contract to use a flat."),
    ("Who was Ada Lovelace?", "She wrote the first program."),
    ("What is yeast?", "A fungus that lets dough rise."),
]
TABLE = [("question", "answer"), *QA[:3]]
GERMAN = "Nr;question;answer\n1;Was heißt „müde“?;Ohne Kraft.\n2;Wo liegt Köln?;Am Rhein.\n3;Was ist Hefe?;Ein Pilz.\n"
PAIRS = lines(*({"prompt": question, "completion": answer} for question, answer in QA))
INPUTS = [("Hund", "dog"), ("Katze", "cat"), ("Maus", "mouse"), ("Vogel", "bird")]
TEXT = "Leave\n\nYou have 30 days of leave a year.\nAsk for it four weeks before, in writing.\n"
PAGE = """\
<h1>Leave</h1>
<p>You have <b>30 days</b> of leave a year.</p>
<ul><li>Ask four weeks before.</li>
<li>Ask in writing.</li></ul>
"""
OBJECT = """\
[{
    "question": "Why is the sky blue?",
    "answer": "It scatters blue light most."
}]
"""

FORMATS = [
    DataFile("CSV", "tickets.csv", "".join(f"{question},{answer}\n" for question, answer in TABLE)),
    DataFile("CSV with semicolons, in another encoding", "tickets.csv", GERMAN.encode("cp1252"), GERMAN),
    DataFile("TSV", "tickets.tsv", "".join(f"{question}\t{answer}\n" for question, answer in TABLE)),
    DataFile("Excel", "tickets.xlsx", lambda: excel(TABLE), "".join(f"{one:24}{other}\n" for one, other in TABLE)),
    DataFile(
        "Parquet",
        "tickets.parquet",
        lambda: parquet([{"question": q, "answer": a} for q, a in QA]),
        "".join(f"{one:24}{other}\n" for one, other in TABLE),
    ),
    DataFile("JSON lines of prompts and answers", "tickets.jsonl", PAIRS),
    DataFile("the same, gzipped", "tickets.jsonl.gz", lambda: gzip.compress(PAIRS.encode()), PAIRS),
    DataFile("a JSON list, or objects on several lines", "tickets.json", OBJECT),
    DataFile(
        "instructions with an input (Alpaca, Dolly)",
        "alpaca.jsonl",
        lines(*({"instruction": "Translate.", "input": one, "output": other} for one, other in INPUTS)),
    ),
    DataFile(
        "OpenAI messages", "chats.jsonl", lines(*({"messages": [user(question), assistant(answer)]} for question, answer in QA))
    ),
    DataFile(
        "ShareGPT conversations",
        "chats.jsonl",
        lines(
            *(
                {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
                for question, answer in QA
            )
        ),
    ),
    DataFile(
        "pairs of preferences",
        "preferences.jsonl",
        lines(*({"prompt": question, "chosen": answer, "rejected": "No idea."} for question, answer in QA)),
    ),
    DataFile(
        "texts with labels",
        "labels.jsonl",
        lines(
            *(
                {"text": text, "label": label}
                for text, label in [
                    ("Great phone.", "good"),
                    ("It broke.", "bad"),
                    ("Fast delivery.", "good"),
                    ("Too dear.", "bad"),
                ]
            )
        ),
    ),
    DataFile(
        "prompts alone, which the teacher answers",
        "prompts.csv",
        "question\n" + "".join(f"{question}\n" for question, _ in QA[:3]),
    ),
    DataFile("running text", "texts.jsonl", lines(*({"text": f"{question} {answer}"} for question, answer in QA))),
    DataFile("plain text", "handbook/leave.txt", TEXT),
    DataFile("Markdown", "handbook/leave.md", f"# {TEXT}"),
    DataFile("HTML", "handbook/leave.html", PAGE),
    DataFile("PDF", "handbook/leave.pdf", lambda: pdf("You have 30 days of leave a year."), TEXT),
    DataFile("Word", "handbook/leave.docx", lambda: word(*TEXT.split("\n")), TEXT),
]

MALFORMED = [
    DataFile("an ending that is not read", "tickets.xls", b"\xd0\xcf\x11\xe0"),
    DataFile("no such file", "gone.csv", None),
    DataFile("an empty file", "tickets.csv", ""),
    DataFile("a header without rows", "tickets.csv", "question,answer\n"),
    DataFile("columns with other names", "tickets.csv", "Frage,Antwort\nWarum?,Darum.\n"),
    DataFile("no header", "tickets.csv", "Why?,So.\nHow?,Thus.\n"),
    DataFile("a quote that is not closed", "tickets.csv", 'question,answer\nWhy?,"So.\nHow?,Thus.\n'),
    DataFile("a quote inside quotes that is not doubled", "tickets.csv", 'question,answer\nWhy?,"So"ish.\n'),
    DataFile("a comma in a cell without quotes", "tickets.csv", "question,answer\nWhy?,Well, so.\n"),
    DataFile("two columns with one name", "tickets.csv", "question,answer,answer\nWhy?,So.,Thus.\n"),
    DataFile("two encodings", "tickets.csv", "question,answer\nQué?,Así.\nPor qué?,Sí.\n".encode() + b"C\xf3mo?,As\xed.\n"),
    DataFile("no text at all", "tickets.csv", bytes(range(256)) * 4),
    DataFile(
        "a chat that pandas wrote into a cell",
        "tickets.csv",
        "question,messages\nWhy?,\"[{'role': 'user', 'content': 'Why?'}]\"\n",
    ),
    DataFile("a line that is cut off", "tickets.jsonl", '{"question": "Why?"}\n{"question": "How?"\n'),
    DataFile("Python in place of JSON", "tickets.jsonl", "{'question': 'Why?'}\n"),
    DataFile("lists in place of objects", "tickets.jsonl", '["Why?", "So."]\n'),
    DataFile("a key twice", "tickets.jsonl", '{"question": "Why?", "question": "How?"}\n'),
    DataFile("a page that was saved in place of the file", "tickets.jsonl", "<!doctype html>\n"),
    DataFile("a pointer of Git LFS", "tickets.jsonl", "version https://git-lfs.github.com/spec/v1\n"),
    DataFile("several answers in one cell", "tickets.jsonl", lines({"question": "Why?", "answer": ["So.", "Thus."]})),
    DataFile(
        "answers of SQuAD", "tickets.jsonl", lines({"question": "Why?", "answer": {"text": ["So."], "answer_start": [0]}})
    ),
    DataFile("a missing number where text belongs", "tickets.jsonl", '{"question": "Why?", "answer": NaN}\n'),
    DataFile("true or false where text belongs", "tickets.jsonl", lines({"question": "Is it?", "answer": True})),
    DataFile("a role that nobody knows", "chats.jsonl", lines({"messages": [{"role": "moderator", "content": "Stop."}]})),
    DataFile("a picture in a chat", "chats.jsonl", lines({"messages": [user([{"type": "image_url", "image_url": "a.png"}])]})),
    DataFile(
        "only chats that call tools",
        "chats.jsonl",
        lines({"messages": [user("Why?"), {"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
    ),
    DataFile(
        "chats without a question",
        "chats.jsonl",
        lines({"messages": [{"role": "assistant", "content": "Hello!"}]}),
    ),
    DataFile("a list that is not closed", "tickets.json", '[{"question": "Why?"},\n{"question": "How?"}'),
    DataFile("a list of texts", "tickets.json", '["Why?", "How?"]'),
    DataFile("the rows are inside an object", "tickets.json", '{"data": [{"question": "Why?", "answer": "So."}]}'),
    DataFile("two lists", "tickets.json", '[{"question": "Why?"}]\n[{"question": "How?"}]'),
    DataFile("not gzipped", "tickets.csv.gz", "question,answer\nWhy?,So.\n"),
    DataFile("a download that was cut off", "tickets.csv.gz", gzip.compress(b"question,answer\n" * 999, mtime=0)[:-9]),
    DataFile("a CSV file with another ending", "tickets.parquet", "question,answer\nWhy?,So.\n"),
    DataFile(
        "pictures", "tickets.parquet", lambda: parquet([{"question": "Why?", "answer": {"bytes": b"x", "path": "a.png"}}])
    ),
    DataFile("a CSV file with another ending", "tickets.xlsx", "question,answer\nWhy?,So.\n"),
    DataFile("a password, or Excel's old format", "tickets.xlsx", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600)),
    DataFile(
        "a date where text belongs", "tickets.xlsx", lambda: excel([["question", "answer"], ["When?", date(2026, 1, 31)]])
    ),
    DataFile("a damaged PDF", "handbook/leave.pdf", "no pdf"),
    DataFile("only scans without text", "handbook/leave.pdf", pdf),
    DataFile("a damaged Word document", "handbook/leave.docx", "no docx"),
    DataFile("a folder without anything that is read", "handbook/leave.docm", "macro"),
    DataFile("a pattern that nothing matches", "tickets-*.jsonl", None),
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for file in (*FORMATS, *MALFORMED):
        print(f"{file.about}: {read(file)}")


if __name__ == "__main__":
    main()
