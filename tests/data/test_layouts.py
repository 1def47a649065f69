"""What a row is taken for: hand-written rows of every layout, what is left out of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.data.layouts import (
    CONTROL_CHARACTERS,
    LATER_TURNS,
    NO_PROMPT,
    OUT_OF_TURN,
    SYSTEM_TURN,
    TOOL_CALL,
    exchange_of,
    layout_of,
    no_question,
    read_exchanges,
)
from factory.data.records import Record
from factory.errors import DataError


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def row(**fields: Any) -> Record:
    return Record("line 3", fields)


SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}
PARTS = [{"type": "text", "text": "Why"}, {"type": "text", "text": "now?"}]


@pytest.mark.parametrize(
    ("fields", "name", "prompt", "completion"),
    [
        ({"prompt": "Why?"}, "prompt", "Why?", ""),
        ({"prompt": "Why?", "completion": "So."}, "prompt + completion", "Why?", "So."),
        ({" Question ": "Why?", "ANSWER": "So."}, " Question  + ANSWER", "Why?", "So."),
        ({"question": "Why?", "response": None, "reference": "So."}, "question + reference", "Why?", "So."),
        ({"input": "Why?", "output": 3}, "input + output", "Why?", "3"),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "instruction + input + output", "Add.\n\n1 2", "3"),
        ({"instruction": "Add.", "input": "", "output": "3"}, "instruction + input + output", "Add.", "3"),
        ({"instruction": "Add.", "context": "1 2", "response": "3"}, "instruction + context + response", "Add.\n\n1 2", "3"),
        ({"text": "A letter.", "label": 1}, "text + label", "A letter.", "1"),
        ({"text": "A letter."}, "running text", "", "A letter."),
        ({"messages": [user("Why?"), assistant("So.")], "prompt": "Why?"}, "OpenAI messages", "Why?", "So."),
        ({"messages": [user(PARTS), assistant("So.")]}, "OpenAI messages", "Why\nnow?", "So."),
        ({"messages": [user("Why?")]}, "OpenAI messages", "Why?", ""),
        ({"conversations": [HUMAN, GPT]}, "ShareGPT conversations", "Why?", "So."),
        ({"prompt": [user("Why?")], "completion": [assistant("So.")]}, "prompt + completion", "Why?", "So."),
        ({"prompt": "Why?", "chosen": [user("Why?"), assistant("So.")]}, "prompt + chosen", "Why?", "So."),
    ],
)
def test_rows_of_every_layout(fields: dict[str, Any], name: str, prompt: str, completion: str) -> None:
    found = exchange_of(Record("line 3", fields))
    assert found.layout is not None
    assert (found.layout.name, found.prompt, found.completion, found.remarks) == (name, prompt, completion, ())


def test_columns_that_are_named_decide() -> None:
    both = row(prompt="p", completion="c", Frage="Why?", Antwort="So.", text="t")
    assert exchange_of(both, "Frage", "Antwort").completion == "So."
    assert (exchange_of(both, "Frage").prompt, exchange_of(both, "Frage").completion) == ("Why?", "")
    assert (exchange_of(both, None, "Antwort").prompt, exchange_of(both, None, "Antwort").completion) == ("p", "So.")
    assert exchange_of(row(text="t", Antwort="So."), None, "Antwort").prompt == "t"
    assert exchange_of(row(messages=[user("Why?")], Frage="No?"), "Frage").prompt == "No?"


def test_rows_of_other_columns_are_none() -> None:
    assert layout_of({"Frage": "Why?", "Antwort": "So."}) is None
    assert exchange_of(row(Frage="Why?")).remarks == (NO_PROMPT,)


@pytest.mark.parametrize(
    ("turns", "exchange", "remarks"),
    [
        ([SYSTEM, user("Why?"), assistant("So.")], ("Why?", "So."), [SYSTEM_TURN]),
        ([user("Why?"), assistant("So."), user("And?"), assistant("Yes.")], ("Why?", "So."), [LATER_TURNS]),
        (
            [SYSTEM, user("Why\x1b?"), assistant("So."), user("And?")],
            ("Why?", "So."),
            [SYSTEM_TURN, LATER_TURNS, CONTROL_CHARACTERS],
        ),
        ([user("Why?"), assistant(None, tool_calls=[{"id": "1"}])], ("", ""), [TOOL_CALL]),
        ([user("Why?"), {"role": "tool", "content": "{}"}], ("", ""), [TOOL_CALL]),
        ([user("Why?"), assistant("So."), {"role": "tool", "content": "{}"}], ("Why?", "So."), [LATER_TURNS]),
        ([assistant("Hello!"), user("Why?")], ("", ""), [OUT_OF_TURN]),
        ([user("Why?"), user("Why, I say?"), assistant("So.")], ("", ""), [OUT_OF_TURN]),
        ([assistant("Hello!")], ("", ""), [NO_PROMPT]),
        ([user("\x1b"), assistant("So.")], ("", ""), [NO_PROMPT]),
        ([SYSTEM, user("  "), assistant("So.")], ("", ""), [NO_PROMPT]),
        ([], ("", ""), [NO_PROMPT]),
    ],
)
def test_of_a_chat_the_first_question_and_its_answer_are_taken(
    turns: list[dict[str, Any]], exchange: tuple[str, str], remarks: list[str]
) -> None:
    found = exchange_of(row(messages=turns))
    assert (found.prompt, found.completion) == exchange
    assert list(found.remarks) == remarks


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": True}, "column 'prompt' is true, not text"),
        ({"prompt": float("nan")}, "column 'prompt' is nan"),
        ({"question": "Why?", "answer": {"text": ["So."], "answer_start": [1]}}, r"column 'answer' is an object .*SQuAD"),
        ({"prompt": "Why?", "completion": ["So.", "Or so."]}, "column 'completion' is a list, not text"),
        ({"messages": [user({"image": "a.png"})]}, "column 'content of messages' is an object with image"),
        ({"messages": [user([{"type": "image_url", "image_url": "a.png"}])]}, "column 'content of messages' is a list"),
        ({"messages": [{"role": "moderator", "content": "Stop."}]}, "a turn of the text 'moderator'; known are user, human"),
        ({"messages": [{"from": 3, "value": "Why?"}]}, "a turn of the number 3"),
        ({"messages": "[{'role': 'user', 'content': 'Why?'}]"}, "column 'messages' is .*a chat that was written as text"),
        ({"prompt": '[{"role": "user", "content": "Why?"}]'}, "column 'prompt' is .*a chat that was written as text"),
    ],
)
def test_what_is_no_text_and_no_chat_is_an_error_with_its_place(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"^line 3: .*{words}") as caught:
        exchange_of(row(**fields))
    assert "\n" not in str(caught.value)


def test_a_bracket_in_a_question_is_no_chat() -> None:
    assert exchange_of(row(prompt='What does [{"a": 1}] mean?')).prompt == 'What does [{"a": 1}] mean?'


ROLE = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLE, "content": st.text("ab \n\x1b")}))


@given(TURNS)
def test_an_answer_always_follows_the_question_that_it_is_trained_with(turns: list[dict[str, str]]) -> None:
    found = exchange_of(row(messages=turns))
    if not found.prompt:
        assert not found.completion
        return
    said = [turn for turn in turns if turn["role"] != "system" and (turn["content"].strip(" \n\x1b") or turn["role"] == "tool")]
    assert said[0]["role"] == "user"
    assert not found.completion or said[1]["role"] == "assistant"


# -------------------------------------------------------------------------------------------------------------- a file


def test_a_file_is_summed_up_in_one_line() -> None:
    fields = [{"question": f"Why {n}?", "answer": "So."} for n in range(6)]
    fields[1]["question"] = "\u202eWhy?"
    rows = [*fields, *({"question": "", "answer": "So.", "id": n} for n in range(4)), {"prompt": "Why?"}]
    heard: list[str] = []
    found = list(read_exchanges([Record(f"row {n}", one) for n, one in enumerate(rows, 2)], "a.csv", say=heard.append))
    assert [record.place for record, _ in found] == [f"row {n}" for n in range(2, 13)]
    assert heard == [
        "7 of 11 rows as question + answer 6, prompt 1; 1 without their control characters (row 3); "
        "4 dropped without a prompt (row 8, row 9, row 10, ...); other columns: id"
    ]


@pytest.mark.parametrize(
    ("fields", "named", "words"),
    [
        ({"Frage": "Why?"}, {}, "no column of a.csv is a prompt; name it .*; columns there: Frage"),
        (
            {"Why is it so cold in this long winter, tell me?": "So."},
            {},
            "columns there: Why is it so cold in this long ...",
        ),
        ({}, {}, "columns there: none"),
        ({"Frage": "Why?"}, {"prompt": "frage"}, "no column 'frage' in a.csv; columns there: Frage"),
        ({"prompt": "Why?"}, {"answer": "answer"}, "no column 'answer' in a.csv"),
        ({"prompt": ["Why?"]}, {}, "a.csv: line 3: column 'prompt' is a list"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_it_has(fields: dict[str, Any], named: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_exchanges([row(**fields)], "a.csv", **named))


def test_a_file_without_rows_says_nothing() -> None:
    heard: list[str] = []
    assert list(read_exchanges([], "a.csv", prompt="Frage", say=heard.append)) == heard == []


def test_a_row_that_asks_nothing_is_named() -> None:
    assert str(no_question(row(ask="Why?"), Path("a.csv"))) == (
        "a.csv: line 3 has no question; its columns: ask; call it `prompt` or `question`"
    )
