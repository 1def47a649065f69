"""What a row is: a prompt with or without an answer, a chat, an instruction with its input, or running text.

for record, exchange in read_exchanges(read_records(path), str(path)):
    exchange.prompt, exchange.completion
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.data.records import CONTROL, Record, Say, describe_columns, describe_value, plain_text, raw_text, silent
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
OUT_OF_TURN = "dropped, as they do not begin with one question and its answer"
SYSTEM_TURN = "without their system turn (`teacher_context` can have it)"
LATER_TURNS = "without the turns after the first answer"
CONTROL_CHARACTERS = "without their control characters"


@dataclass(frozen=True)
class Layout:
    """Which columns of a row are used."""

    name: str
    prompt: tuple[str, ...]  # joined by a blank line; none for running text
    answer: str | None = None

    @property
    def columns(self) -> set[str]:
        """All of them."""
        return {*self.prompt, *([self.answer] if self.answer else [])}


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: str  # a value of ROLES
    text: str


@dataclass(frozen=True)
class Exchange:
    """A question and its answer. Without either it is a row that cannot be used, and ``remarks`` say why."""

    prompt: str  # "" for running text
    completion: str  # "" where there is no answer
    layout: Layout | None  # None where no column was recognised
    remarks: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------- a file


def read_exchanges(
    records: Iterable[Record],
    where: str,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    say: Say = silent,
) -> Iterator[tuple[Record, Exchange]]:
    """``for record, exchange in read_exchanges(read_records(path), str(path), prompt="Frage"):`` every row, in order.

    Columns that are not named are recognised. At the end ``say`` hears how many rows are what, what was left out with the
    first places, and which columns were not used.
    Raises: DataError where no row has a named column or one that is recognised, or a cell is not text.
    """
    summary = Summary()
    for record in records:
        try:
            exchange = exchange_of(record, prompt, answer)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        summary.add(record, exchange)
        yield record, exchange
    columns = describe_columns(summary.columns)
    for named in (prompt, answer):
        if summary.rows and named is not None and named not in summary.columns:
            raise DataError(f"no column {named!r} in {where}; columns there: {columns}")
    if summary.rows and not summary.used:
        raise DataError(f"no column of {where} is a prompt; name it (`prompt: ...`); columns there: {columns}")
    if summary.rows:
        say(str(summary))


@dataclass
class Summary:
    """What is known of a file's rows when all were read."""

    rows: int = 0
    kept: Counter[str] = field(default_factory=Counter)  # by layout
    columns: dict[str, None] = field(default_factory=dict)  # in order
    used: set[str] = field(default_factory=set)
    remarks: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)  # the first of each remark

    def add(self, record: Record, exchange: Exchange) -> None:
        self.rows += 1
        self.columns |= dict.fromkeys(record.fields)
        if exchange.layout:
            self.used |= exchange.layout.columns
        if exchange.layout and (exchange.prompt or exchange.completion):
            self.kept[exchange.layout.name] += 1
        for remark in exchange.remarks:
            self.remarks[remark] += 1
            places = self.places.setdefault(remark, [])
            if len(places) < SHOWN:
                places.append(record.place)

    def __str__(self) -> str:
        """``97 of 100 rows as question + answer; 3 dropped without a prompt (row 4, row 9, row 12); other columns: id``"""
        layouts = [name if len(self.kept) == 1 else f"{name} {count}" for name, count in self.kept.most_common()]
        kept = f"{self.kept.total()} of {self.rows} rows{' as ' if layouts else ''}{', '.join(layouts)}"
        remarks = [
            f"{count} {remark} ({', '.join(self.places[remark])}{', ...' if count > SHOWN else ''})"
            for remark, count in self.remarks.items()
        ]
        others = [name for name in self.columns if name not in self.used]
        return "; ".join([kept, *remarks, *([f"other columns: {describe_columns(others)}"] if others else [])])


def no_question(record: Record, path: Path) -> DataError:
    """``raise no_question(record, path)``: for files in which every row is to be asked."""
    columns = describe_columns(record.fields)
    return DataError(f"{path}: {record.place} has no question; its columns: {columns}; call it `prompt` or `question`")


# ----------------------------------------------------------------------------------------------------------------- a row


def exchange_of(record: Record, prompt: str | None = None, answer: str | None = None) -> Exchange:
    """``exchange_of(Record("row 2", {"Question": "Why?", "Answer": "So."})).completion == "So."``

    Of a chat the first question and its answer are taken. Raises: DataError with the row's place for a cell that is not text.
    """
    layout = layout_of(record.fields, prompt, answer)
    if layout is None:
        return Exchange("", "", None, (NO_PROMPT,))
    asked = turns_of(record, layout.prompt, "user")
    answered = turns_of(record, (layout.answer,) if layout.answer else (), "assistant")
    if answered and answered[0].role != "assistant":  # a whole chat, as pairs of a chosen and a rejected one have
        asked = []
    return first_exchange(layout, [*asked, *answered])


def layout_of(fields: Mapping[str, Any], prompt: str | None = None, answer: str | None = None) -> Layout | None:
    """``layout_of({"instruction": "...", "input": "...", "output": "..."}).prompt == ("instruction", "input")``

    Names count in any case; of several columns of one kind the first that is filled is taken. Beside a ``prompt`` that is named
    no answer is looked for.
    """
    columns = {name.strip().lower(): name for name in fields if name != answer}

    def first(names: Iterable[str]) -> str | None:
        there = [columns[name] for name in names if name in columns]
        return next((name for name in there if fields[name] is not None and fields[name] != ""), there[0] if there else None)

    chat = first(CONVERSATIONS)
    if prompt is None and answer is None and chat:
        return Layout(CONVERSATIONS[chat.strip().lower()], (chat,))
    asked = first(PROMPTS) if prompt is None else prompt
    if asked is None and "text" in columns:
        text, label = columns["text"], answer or columns.get("label")
        return Layout(f"{text} + {label}", (text,), label) if label else Layout("running text", (), text)
    if asked is None:
        return None
    about = first(INPUTS) if prompt is None and asked.strip().lower() == "instruction" else None
    found = answer or (first(ANSWERS) if prompt is None else None)
    parts = (asked, about) if about else (asked,)
    return Layout(" + ".join([*parts, *([found] if found else [])]), parts, found)


def first_exchange(layout: Layout, turns: Sequence[Turn]) -> Exchange:
    """The first question of a chat and its answer, or why there is none."""
    said = [turn for turn in turns if turn.role != "system" and (plain_text(turn.text) or turn.role == "tool")]
    roles = [turn.role for turn in said[:2]]
    if not layout.prompt and said:
        prompt, completion = "", said[0].text
    elif "tool" in roles:
        return Exchange("", "", layout, (TOOL_CALL,))
    elif roles in (["user"], ["user", "assistant"]):
        prompt, completion = said[0].text, "".join(turn.text for turn in said[1:2])
    else:
        return Exchange("", "", layout, (OUT_OF_TURN if len(said) > 1 else NO_PROMPT,))
    left_out = {
        SYSTEM_TURN: any(turn.role == "system" for turn in turns),
        LATER_TURNS: len(said) > 2,
        CONTROL_CHARACTERS: CONTROL.search(prompt + completion),
    }
    remarks = tuple(remark for remark, found in left_out.items() if found)
    return Exchange(plain_text(prompt), plain_text(completion), layout, remarks)


# ----------------------------------------------------------------------------------------------------------------- chats


def turns_of(record: Record, columns: Sequence[str], role: str) -> list[Turn]:
    """The turns of a chat in one of these columns, or one turn of ``role`` with their texts."""
    for column in columns:
        cell = record.fields.get(column)
        if isinstance(cell, list) and all(isinstance(one, dict) and one.keys() & {"role", "from"} for one in cell):
            return [_turn(one, record.place, column) for one in cell]
        written = isinstance(cell, str) and (WRITTEN_CHAT.match(cell) or column.strip().lower() in CONVERSATIONS)
        if written and plain_text(str(cell)):
            raise DataError(
                f"{record.place}: column {column!r} is {describe_value(cell)}, a chat that was written as text; "
                "save it as JSON lines or Parquet"
            )
    text = "\n\n".join(filter(None, (raw_text(record, column).strip() for column in columns)))
    return [Turn(role, text)] if text else []


def _turn(message: Mapping[str, Any], place: str, column: str) -> Turn:
    """Of OpenAI's role and content or ShareGPT's from and value."""
    said = message.get("role") or message.get("from")
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{place}: column {column!r} has a turn of {describe_value(said)}; known are {', '.join(ROLES)}")
    if role == "tool" or message.get("tool_calls"):
        return Turn("tool", "")
    content = message.get("value") if message.get("content") is None else message["content"]
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        content = "\n".join(part["text"] for part in content)  # OpenAI's parts of one message
    return Turn(role, raw_text(Record(place, {f"content of {column}": content}), f"content of {column}"))
