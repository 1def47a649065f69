"""What a row is taken for: hand-written rows of every layout, what is left out of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.config.sources import TeacherContext, Turn
from factory.data.layouts import (
    CONTROL_CHARACTERS,
    CUT,
    CUT_TOOLS,
    GREETING,
    NO_PROMPT,
    OUT_OF_TURN,
    TOOL_CALL,
    UNANSWERED,
    Exchange,
    layout_of,
    read_questions,
    read_rows,
    row_of,
)
from factory.data.records import Record
from factory.errors import DataError


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def row(**fields: Any) -> Record:
    return Record("line 3", fields)


def exchange_of(record: Record, prompt: str | None = None, answer: str | None = None) -> Exchange:
    """Of a row that has one."""
    [only] = row_of(record, prompt, answer).exchanges
    return only


def after(*turns: tuple[str, str], system: str = "") -> TeacherContext:
    return TeacherContext(system=system, examples=tuple(Turn(prompt=asked, completion=said) for asked, said in turns))


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
    found = row_of(Record("line 3", fields))
    assert found.layout is not None
    assert (found.layout.name, found.exchanges, found.remarks) == (name, (Exchange(prompt, completion),), ())


def test_columns_that_are_named_decide() -> None:
    both = row(prompt="p", completion="c", Frage="Why?", Antwort="So.", text="t")
    assert exchange_of(both, "Frage", "Antwort").completion == "So."
    assert (exchange_of(both, "Frage").prompt, exchange_of(both, "Frage").completion) == ("Why?", "")
    assert (exchange_of(both, None, "Antwort").prompt, exchange_of(both, None, "Antwort").completion) == ("p", "So.")
    assert exchange_of(row(text="t", Antwort="So."), None, "Antwort").prompt == "t"
    assert exchange_of(row(messages=[user("Why?")], Frage="No?"), "Frage").prompt == "No?"


def test_rows_of_other_columns_are_none() -> None:
    assert layout_of({"Frage": "Why?", "Antwort": "So."}) is None
    assert row_of(row(Frage="Why?")).remarks == (NO_PROMPT,)


WHY, AND = Exchange("Why?", "So."), Exchange("And?", "Yes.", after(("Why?", "So.")))
TOOL = {"role": "tool", "content": "{}"}


@pytest.mark.parametrize(
    ("turns", "exchanges", "remarks"),
    [
        ([user("Why?"), assistant("So."), user("And?"), assistant("Yes.")], [WHY, AND], []),
        (
            [SYSTEM, user("Why?"), assistant("So."), user("And?"), assistant("Yes.")],
            [
                Exchange("Why?", "So.", after(system="Be brief.")),
                Exchange("And?", "Yes.", after(("Why?", "So."), system="Be brief.")),
            ],
            [],
        ),
        ([user("Why?"), assistant("So."), user("And?")], [WHY], [UNANSWERED]),
        ([assistant("Hello!"), user("Why?"), assistant("So.")], [WHY], [GREETING]),
        ([user("Why?"), assistant("So."), user("And?"), user("Hello?"), assistant("Yes.")], [WHY], [CUT]),
        ([user("Why?"), assistant("So."), SYSTEM, user("And?"), assistant("Yes.")], [WHY], [CUT]),
        ([user("Why?"), assistant("So."), user("And?"), assistant(None, tool_calls=[{"id": "1"}]), TOOL], [WHY], [CUT_TOOLS]),
        ([user("Why?"), assistant("So."), TOOL], [WHY], [CUT_TOOLS]),
        ([user("Why\x1b?"), assistant("So."), user("And?")], [WHY], [UNANSWERED, CONTROL_CHARACTERS]),
        ([SYSTEM, user("Why?")], [Exchange("Why?", "", after(system="Be brief."))], []),
        ([user("Why?"), assistant(None, tool_calls=[{"id": "1"}])], [], [TOOL_CALL]),
        ([user("Why?"), TOOL], [], [TOOL_CALL]),
        ([user("Why?"), user("Why, I say?"), assistant("So.")], [], [OUT_OF_TURN]),
        ([assistant("Hello!")], [], [NO_PROMPT]),
        ([user("\x1b"), assistant("So.")], [], [NO_PROMPT]),
        ([SYSTEM, user("  "), assistant("So.")], [], [NO_PROMPT]),
        ([], [], [NO_PROMPT]),
    ],
)
def test_of_a_chat_every_question_has_its_answer_and_what_was_said_before(
    turns: list[dict[str, Any]], exchanges: list[Exchange], remarks: list[str]
) -> None:
    found = row_of(row(messages=turns))
    assert (list(found.exchanges), list(found.remarks)) == (exchanges, remarks)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [user("Why?"), assistant("So."), user("And?")], "completion": [assistant("Yes.")]},
        {"prompt": [user("Why?"), assistant("So."), user("And?")], "completion": "Yes."},
        {
            "chosen": [user("Why?"), assistant("So."), user("And?"), assistant("Yes.")],
            "rejected": [user("Why?")],
            "prompt": "Why?",
        },
    ],
)
def test_of_a_column_of_answers_only_the_answer_is_learnt(fields: dict[str, Any]) -> None:
    assert row_of(row(**fields)).exchanges == (AND,)


def test_an_answer_that_does_not_follow_its_question_is_not_replaced_by_another() -> None:
    found = row_of(row(prompt=[user("Why?"), assistant("So."), user("And?"), user("Well?")], completion="Yes."))
    assert (found.exchanges, found.remarks) == ((), (OUT_OF_TURN,))


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
    exchanges = row_of(row(messages=turns)).exchanges
    plain = [(turn["role"], turn["content"].replace("\x1b", "").strip()) for turn in turns]
    said = [one for one in plain if one[1] or one[0] == "tool"]
    for number, one in enumerate(exchanges):
        assert list(one.history.examples) == [Turn(prompt=e.prompt, completion=e.completion) for e in exchanges[:number]]
        if one.completion:
            place = next(at for at in range(len(said)) if said[at] == ("user", one.prompt) and said[at + 1 :][:1])
            assert ("assistant", one.completion) in said[place:]
    joined = [part for one in exchanges for part in (("user", one.prompt), ("assistant", one.completion)) if part[1]]
    first = next((at for at, (role, _) in enumerate(said) if role == "user"), 0)
    assert said[first : first + len(joined)] == joined  # side by side in the chat, nothing left out between them


# -------------------------------------------------------------------------------------------------------------- a file


def test_a_file_is_summed_up_in_one_line() -> None:
    fields = [{"question": f"Why {n}?", "answer": "So."} for n in range(6)]
    fields[1]["question"] = "\u202eWhy?"
    rows = [*fields, *({"question": "", "answer": "So.", "id": n} for n in range(4)), {"prompt": "Why?"}]
    heard: list[str] = []
    found = list(read_rows([Record(f"row {n}", one) for n, one in enumerate(rows, 2)], "a.csv", say=heard.append))
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
        ({"data": [{"prompt": "Why?"}]}, {}, "no column of a.csv is a prompt; save the list in 'data' as a file"),
        ({"Frage": "Why?"}, {"prompt": "frage"}, "no column 'frage' in a.csv; columns there: Frage"),
        ({"prompt": "Why?"}, {"answer": "answer"}, "no column 'answer' in a.csv"),
        ({"prompt": ["Why?"]}, {}, "a.csv: line 3: column 'prompt' is a list"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_it_has(fields: dict[str, Any], named: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_rows([row(**fields)], "a.csv", **named))


def test_a_file_without_rows_says_nothing() -> None:
    heard: list[str] = []
    assert list(read_rows([], "a.csv", prompt="Frage", say=heard.append)) == heard == []


def test_a_row_that_asks_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Why?"}\n{"ask": "Why?"}\n')
    with pytest.raises(DataError, match=r"a.jsonl: line 2 has no question; its columns: ask; call it `prompt` or `question`"):
        list(read_questions(path))


def test_of_chats_in_a_file_of_questions_the_first_question_is_asked_and_that_is_said(tmp_path: Path) -> None:
    path, heard = tmp_path / "a.jsonl", list[str]()
    chats = [[user("Why?"), assistant("So."), user("And?"), assistant("Yes.")], [user("Who?")], [SYSTEM, user("When?")]]
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    assert [question.prompt for _, question in read_questions(path, heard.append)] == ["Why?", "Who?", "When?"]
    assert heard[1:] == [
        "3 of 3 rows as OpenAI messages; chats of several turns have 2 answers",
        "of 2 chats only the first question is asked, without a system prompt",
    ]


# ------------------------------------------------------------------------------------------------- templates, system prompts


ALPACA = "{instruction}\n\nInput: {input}"


def test_a_template_joins_columns_and_leaves_no_trace_of_an_empty_one() -> None:
    named = exchange_of(row(instruction=" Add. ", input="2 and 3", output="5", url="x"), ALPACA, "{output}\nSource: {url}")
    assert named == Exchange("Add.\n\nInput: 2 and 3", "5\nSource: x")
    for empty in ("", None, " \n"):
        assert exchange_of(row(instruction="Add.", input=empty, output="5"), ALPACA, "output") == Exchange("Add.", "5")
    assert exchange_of(row(instruction="Add.", output=5), ALPACA, "{output}") == Exchange("Add.", "5")  # a number is text


def test_a_template_whose_columns_are_all_empty_is_no_prompt() -> None:
    assert row_of(row(instruction="", input=None, output="5"), ALPACA, "output").remarks == (NO_PROMPT,)


def test_a_template_of_answers_leaves_its_columns_out_of_the_prompt() -> None:
    assert exchange_of(row(prompt="Why?", text="So."), None, "{text}!") == Exchange("Why?", "So.!")
    assert layout_of({"question": "", "prompt": "", "answer": ""}, None, "{prompt} {answer}") == layout_of(
        {"question": "", "answer": ""}, None, "{prompt} {answer}"
    )


def test_a_cell_of_a_template_that_is_not_text_is_an_error() -> None:
    with pytest.raises(DataError, match="line 3: column 'input' is a list, not text"):
        row_of(row(instruction="Add.", input=[2, 3]), ALPACA)


@pytest.mark.parametrize("which", ["prompt", "answer", "system"])
def test_a_column_of_a_template_that_no_row_has_is_one_line_with_those_there_are(which: str) -> None:
    named = {"prompt": "instruction", "answer": "output"} | {which: "{output}\n{inptu}"}
    records = [row(instruction="Add.", input="2", output="5"), row(instruction="Add.", output="5")]
    with pytest.raises(DataError) as caught:
        list(read_rows(records, "a.jsonl", **named))
    assert str(caught.value) == (
        "no column 'inptu' of '{output}\\n{inptu}' in a.jsonl; columns there: instruction, input, output"
    )


def test_a_column_that_some_rows_lack_is_empty_in_them() -> None:
    said: list[str] = []
    records = [row(instruction="Add.", input="2", output="5", id=1), row(instruction="Go.", output="6", id=2)]
    rows = list(read_rows(records, "a.jsonl", prompt="{instruction} {input}", answer="output", say=said.append))
    assert [found.prompt for _, (found,) in rows] == ["Add. 2", "Go."]
    assert said == ["2 of 2 rows as instruction + input + output; other columns: id"]


def test_a_system_prompt_of_a_row_is_said_before_its_question_or_its_chat() -> None:
    asked = row(persona="Be brief.", tone="Kindly.", question="Why?", answer="So.")
    found = row_of(asked, system="{persona} {tone}")
    assert found.exchanges == (Exchange("Why?", "So.", after(system="Be brief. Kindly.")),)
    assert found.layout is not None and found.layout.name == "persona + tone + question + answer"
    assert row_of(row(persona=None, question="Why?", answer="So."), system="persona").exchanges == (Exchange("Why?", "So."),)
    chat = row(persona="You are Ada.", messages=[SYSTEM, user("Why?"), assistant("So.")])
    assert row_of(chat, system="persona").exchanges == (Exchange("Why?", "So.", after(system="You are Ada.\n\nBe brief.")),)


def test_text_to_continue_has_no_system_prompt_and_its_column_is_said_to_be_left() -> None:
    said: list[str] = []
    [(_, exchanges)] = read_rows([row(text="Once.", persona="Ada")], "a.jsonl", system="persona", say=said.append)
    assert exchanges == (Exchange("", "Once."),)
    assert said == ["1 of 1 rows as running text; other columns: persona"]
