"""What was said before a question: a system prompt, and the questions and answers of a chat before it.

history_of(data.rows["train"][0]).examples[-1].completion   # the answer before
conversation_of(data.rows["train"][0])                      # all of it as one text, as a router reads it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from factory.config.sources import TeacherContext

Row = Mapping[str, Any]
NOTHING = TeacherContext()


def history_of(row: Row) -> TeacherContext:
    """``history_of(data.rows["train"][0])``: data sets of older releases have no such column, and nothing was said."""
    return TeacherContext.model_validate(row.get("history") or {})


def conversation_text(prompt: str, history: TeacherContext) -> str:
    """``conversation_text(example.prompt, example.history)``: what both sides said, a line each, without the system prompt."""
    said = [text for turn in history.examples for text in (turn.prompt, turn.completion)]
    return "\n".join([*said, prompt])


def conversation_of(row: Row) -> str:
    """``conversation_of(data.rows["train"][0])``: its prompt after what was said before, or the text of a document's chunk."""
    return conversation_text(row["prompt"], history_of(row)) or str(row["completion"])


def asked_alone(rows: Iterable[Row]) -> list[Row]:
    """``asked_alone(data.rows["test"])``: rows whose prompt means the same without what was said before: nothing was."""
    return [row for row in rows if history_of(row) == NOTHING]
