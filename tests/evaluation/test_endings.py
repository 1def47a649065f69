"""The share of answers that end, of domains without a golden set."""

from __future__ import annotations

from typing import Any

import pytest

from factory.evaluation.answers import Answer
from factory.evaluation.endings import ending_rows, endings_part
from factory.evaluation.golden_set import Question
from factory.evaluation.stats import BootstrapConfig

QUESTION = Question.model_validate({"question": "What is gout?", "must": ["joint"]})


def row(prompt: str, template: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": prompt, "prompt": prompt, "template": template, "source": "s", "topic": [], "completion": "x"} | more


def answers(*finished: bool) -> list[Answer]:
    return [Answer("so", one, (1,)) for one in finished]


def test_held_out_prompts_are_asked_where_there_is_no_golden_set() -> None:
    said = {"system": "", "examples": [{"prompt": "Hello.", "completion": "Yes?"}]}
    test = [row("one"), row("later", history=said), row(""), row("two"), row("three")]
    assert [one["prompt"] for one in ending_rows((), test, 2)] == ["one", "two"]
    assert ending_rows([QUESTION], test, 2) == [] == ending_rows((), test, 0)


def test_answers_that_ended_are_counted_beside_the_teachers() -> None:
    rows = [row(str(number), template="ab"[number % 2]) for number in range(4)]
    given = {"student": answers(True, False, False, False), "teacher": answers(True, True, True, False)}
    found = endings_part(rows, given, BootstrapConfig(200, 0)).metrics
    assert found["answers_finished"].value == 0.25 and found["answers_finished"].n == 4
    assert found["answers_finished_teacher"].value == 0.75
    assert found["answers_finished_change"].value == pytest.approx(-0.5)
    low, high = found["answers_finished_change"].low, found["answers_finished_change"].high
    assert low < -0.5 < high


def test_without_prompts_nothing_is_measured() -> None:
    assert endings_part([], {"student": [], "teacher": []}, BootstrapConfig(200, 0)).metrics == {}
