"""What a row is: a prompt with or without an answer, a chat, an instruction with its input, or running text.

for record, exchanges in read_rows(read_records(path), str(path)):
    [(one.history, one.prompt, one.completion) for one in exchanges]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from factory.config.columns import columns_in, fill, is_template
from factory.config.sources import TeacherContext, Turn
from factory.data.history import NOTHING
from factory.data.records import (
    CONTROL,
    Record,
    Say,
    describe_columns,
    describe_value,
    plain_text,
    raw_text,
    read_records,
    silent,
)
from factory.errors import DataError

PROMPTS = ("prompt", "question", "instruction", "query", "input")
ANSWERS = ("completion", "response", "answer", "output", "reference", "chosen")
INPUTS = ("input", "context")  # what an instruction of Alpaca or Dolly is about
CONVERSATIONS = {"messages": "OpenAI messages", "conversations": "ShareGPT conversations"}
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython"), "tool"),
}
# A chat that a spreadsheet or pandas wrote into a cell of text.
WRITTEN_CHAT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")

SHOWN = 3  # places of each remark
NO_PROMPT, TOOL_CALL = "dropped without a prompt", "dropped with a tool call"
OUT_OF_TURN = "dropped, as question and answer do not take turns"
GREETING = "without what is said before the first question"
CUT = "without the turns from where question and answer no longer take turns"
CUT_TOOLS = "without the turns from a tool call on"
UNANSWERED = "without a last question that has no answer"
CONTROL_CHARACTERS = "without their control characters"


@dataclass(frozen=True)
class Layout:
    """Which columns of a row, or templates of them, are used."""

    name: str
    prompt: tuple[str, ...]  # joined by a blank line; none for running text
    answer: str | None = None
    system: str | None = None

    @property
    def columns(self) -> set[str]:
        """All of them."""
        return {column for named in (*self.prompt, self.answer, self.system) if named for column in columns_in(named)}


@dataclass(frozen=True)
class Message:
    """What one side says in a chat."""

    role: str  # a value of ROLES
    text: str


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, after what was said before."""

    prompt: str  # "" for running text
    completion: str = ""  # "" where there is no answer
    history: TeacherContext = NOTHING


@dataclass(frozen=True)
class Row:
    """The exchanges of a row: several of a chat, none of a row that cannot be used; ``remarks`` say why."""

    layout: Layout | None  # None where no column was recognised
    exchanges: tuple[Exchange, ...] = ()
    remarks: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------- a file


def read_rows(
    records: Iterable[Record],
    where: str,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    system: str | None = None,
    say: Say = silent,
) -> Iterator[tuple[Record, tuple[Exchange, ...]]]:
    """``for record, exchanges in read_rows(read_records(path), str(path), prompt="Frage"):`` every row, in order.

    Columns or templates of columns may be named; prompt and answer are recognised where they are not. At the end ``say`` hears
    how many rows are what, what was left out with the first places, and which columns were not used.
    Raises: DataError where no row has a named column or one that is recognised, or a cell is not text.
    """
    summary = Summary()
    for record in records:
        try:
            row = row_of(record, prompt, answer, system)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        summary.add(record, row)
        yield record, row.exchanges
    columns = describe_columns(summary.columns)
    for named in filter(None, (prompt, answer, system) if summary.rows else ()):
        for column in columns_in(named):
            if column not in summary.columns:
                of = f" of {named!r}" if is_template(named) else ""
                raise DataError(f"no column {column!r}{of} in {where}; columns there: {columns}")
    if summary.rows and not summary.used:
        inside = next((name for name, cell in record.fields.items() if isinstance(cell, list) and cell), None)
        hint = (
            f"save the list in {inside!r} as a file" if inside else "name it (`prompt: ...` in YAML, --prompt of `factory new`)"
        )
        raise DataError(f"no column of {where} is a prompt; {hint}; columns there: {columns}")
    if summary.rows:
        say(str(summary))


def read_questions(path: Path, say: Say = silent) -> Iterator[tuple[Record, Exchange]]:
    """``for record, question in read_questions(path):`` of a chat the first one alone, as ``say`` hears.

    Raises: DataError as ``read_rows`` does, and for a row without a question.
    """
    chats = 0
    for record, exchanges in read_rows(read_records(path, say), str(path), say=say):
        if not exchanges or not exchanges[0].prompt:
            columns = describe_columns(record.fields)
            raise DataError(f"{path}: {record.place} has no question; its columns: {columns}; call it `prompt` or `question`")
        chats += len(exchanges) > 1 or bool(exchanges[0].history.system)
        yield record, exchanges[0]
    if chats:
        say(f"of {chats} chats only the first question is asked, without a system prompt")


@dataclass
class Summary:
    """What is known of a file's rows when all were read."""

    rows: int = 0
    answers: int = 0  # of chats with more than one
    kept: Counter[str] = field(default_factory=Counter)  # by layout
    columns: dict[str, None] = field(default_factory=dict)  # in order
    used: set[str] = field(default_factory=set)
    remarks: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)  # the first of each remark

    def add(self, record: Record, row: Row) -> None:
        self.rows += 1
        self.columns |= dict.fromkeys(record.fields)
        if row.layout:
            self.used |= row.layout.columns
        if row.layout and row.exchanges:
            self.kept[row.layout.name] += 1
        self.answers += len(row.exchanges) if len(row.exchanges) > 1 else 0
        for remark in row.remarks:
            self.remarks[remark] += 1
            places = self.places.setdefault(remark, [])
            if len(places) < SHOWN:
                places.append(record.place)

    def __str__(self) -> str:
        """``97 of 100 rows as question + answer; 3 dropped without a prompt (row 4, row 9, row 12); other columns: id``"""
        layouts = [name if len(self.kept) == 1 else f"{name} {count}" for name, count in self.kept.most_common()]
        kept = f"{self.kept.total()} of {self.rows} rows{' as ' if layouts else ''}{', '.join(layouts)}"
        chats = [f"chats of several turns have {self.answers} answers"] if self.answers else []
        remarks = [
            f"{count} {remark} ({', '.join(self.places[remark])}{', ...' if count > SHOWN else ''})"
            for remark, count in self.remarks.items()
        ]
        others = [name for name in self.columns if name not in self.used]
        return "; ".join([kept, *chats, *remarks, *([f"other columns: {describe_columns(others)}"] if others else [])])


# ----------------------------------------------------------------------------------------------------------------- a row


def row_of(record: Record, prompt: str | None = None, answer: str | None = None, system: str | None = None) -> Row:
    """``row_of(Record("row 2", {"Question": "Why?", "Answer": "So."})).exchanges[0].completion == "So."``

    Raises: DataError with the row's place for a cell that is not text.
    """
    layout = layout_of(record.fields, prompt, answer, system)
    if layout is None:
        return Row(None, remarks=(NO_PROMPT,))
    told = [Message("system", _text_of(record, layout.system))] if layout.system else []
    asked = messages_of(record, layout.prompt, "user")
    answered = messages_of(record, (layout.answer,) if layout.answer else (), "assistant")
    if answered and answered[0].role != "assistant":  # a whole chat, as pairs of a chosen and a rejected one have
        asked = []
    messages = [message for message in (*told, *asked, *answered) if plain_text(message.text) or message.role == "tool"]
    row = _chat(layout, messages) if layout.prompt else _running_text(layout, messages)
    removed = row.exchanges and any(CONTROL.search(message.text) for message in messages)
    return replace(row, remarks=(*row.remarks, CONTROL_CHARACTERS)) if removed else row


def layout_of(
    fields: Mapping[str, Any], prompt: str | None = None, answer: str | None = None, system: str | None = None
) -> Layout | None:
    """``layout_of({"instruction": "...", "input": "...", "output": "..."}).prompt == ("instruction", "input")``

    Names count in any case; of several columns of one kind the first that is filled is taken. Beside a ``prompt`` that is named
    no answer is looked for.
    """
    taken = {column for named in (answer, system) if named for column in columns_in(named)}
    columns = {name.strip().lower(): name for name in fields if name not in taken}

    def first(names: Iterable[str]) -> str | None:
        there = [columns[name] for name in names if name in columns]
        return next((name for name in there if fields[name] is not None and fields[name] != ""), there[0] if there else None)

    chat = first(CONVERSATIONS)
    if prompt is None and answer is None and chat:
        return Layout(_name_of(system, CONVERSATIONS[chat.strip().lower()]), (chat,), system=system)
    asked = first(PROMPTS) if prompt is None else prompt
    if asked is None and "text" in columns:
        text, label = columns["text"], answer or columns.get("label")
        return Layout(_name_of(system, text, label), (text,), label, system) if label else Layout("running text", (), text)
    if asked is None:
        return None
    about = first(INPUTS) if prompt is None and asked.strip().lower() == "instruction" else None
    found = answer or (first(ANSWERS) if prompt is None else None)
    return Layout(_name_of(system, asked, about, found), (asked, about) if about else (asked,), found, system)


def _name_of(*named: str | None) -> str:
    """``_name_of(None, "{title}\\n{body}", "answer") == "title + body + answer"``"""
    return " + ".join(column for one in named if one for column in columns_in(one))


# ----------------------------------------------------------------------------------------------------------------- chats


def _running_text(layout: Layout, messages: Sequence[Message]) -> Row:
    texts = tuple(Exchange("", plain_text(message.text)) for message in messages[:1])
    return Row(layout, texts, () if texts else (NO_PROMPT,))


def _chat(layout: Layout, messages: Sequence[Message]) -> Row:
    """Every question with its answer, up to where the two sides no longer take turns; of a column of answers the last alone."""
    first = next((number for number, one in enumerate(messages) if one.role in ("user", "tool")), len(messages))
    opening, said = messages[:first], messages[first:]
    pairs = _pairs(said)
    rest = [one.role for one in said[2 * len(pairs) :]]
    if not pairs and rest == ["user"]:
        pairs, rest = [Turn(prompt=plain_text(said[0].text), completion="")], []
    if not pairs or (layout.answer and rest):
        return Row(layout, remarks=(TOOL_CALL if "tool" in rest[:2] else OUT_OF_TURN if len(said) > 1 else NO_PROMPT,))
    system = plain_text("\n\n".join(one.text for one in opening if one.role == "system"))
    exchanges = tuple(
        Exchange(pair.prompt, pair.completion, TeacherContext(system=system, examples=tuple(pairs[:number])))
        for number, pair in enumerate(pairs)
    )
    greeting = [GREETING] if any(one.role == "assistant" for one in opening) else []
    left = [UNANSWERED if rest == ["user"] else CUT_TOOLS if "tool" in rest[:2] else CUT] if rest else []
    return Row(layout, exchanges[-1:] if layout.answer else exchanges, (*greeting, *left))


def _pairs(said: Sequence[Message]) -> list[Turn]:
    """Questions with their answers, as long as these take turns."""
    pairs: list[Turn] = []
    for asked, answered in zip(said[::2], said[1::2], strict=False):
        if (asked.role, answered.role) != ("user", "assistant"):
            break
        pairs.append(Turn(prompt=plain_text(asked.text), completion=plain_text(answered.text)))
    return pairs


def messages_of(record: Record, columns: Sequence[str], role: str) -> list[Message]:
    """The messages of a chat in one of these columns, or one message of ``role`` with the texts of all, or of templates."""
    for column in columns:
        cell = record.fields.get(column)
        if isinstance(cell, list) and all(isinstance(one, dict) and one.keys() & {"role", "from"} for one in cell):
            return [_message(one, record.place, column) for one in cell]
        written = isinstance(cell, str) and (WRITTEN_CHAT.match(cell) or column.strip().lower() in CONVERSATIONS)
        if written and plain_text(str(cell)):
            raise DataError(
                f"{record.place}: column {column!r} is {describe_value(cell)}, a chat that was written as text; "
                "save it as JSON lines or Parquet"
            )
    text = "\n\n".join(filter(None, (_text_of(record, column) for column in columns)))
    return [Message(role, text)] if text else []


def _text_of(record: Record, named: str) -> str:
    """Of a column, or of a template of columns."""
    if not is_template(named):
        return raw_text(record, named).strip()
    return fill(named, {column: raw_text(record, column).strip() for column in columns_in(named)}).strip()


def _message(message: Mapping[str, Any], place: str, column: str) -> Message:
    """Of OpenAI's role and content or ShareGPT's from and value."""
    said = message.get("role") or message.get("from")
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{place}: column {column!r} has a turn of {describe_value(said)}; known are {', '.join(ROLES)}")
    if role == "tool" or message.get("tool_calls"):
        return Message("tool", "")
    content = message.get("value") if message.get("content") is None else message["content"]
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        content = "\n".join(part["text"] for part in content)  # OpenAI's parts of one message
    return Message(role, raw_text(Record(place, {f"content of {column}": content}), f"content of {column}"))
