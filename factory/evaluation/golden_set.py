"""A user's own questions with what a good answer must and must not say, and how many of them a model passes. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from factory.config.schema import Strict
from factory.errors import DataError
from factory.evaluation.stats import BootstrapConfig, FloatArray, paired_difference, ratio
from factory.registry.manifest import MetricValue


class Question(Strict):
    """One line of a golden set. ``first aid|emergency`` in a list means either; at least one list has an entry."""

    question: str
    must: tuple[str, ...] = Field(default=())  # all of these are in a good answer
    must_not: tuple[str, ...] = Field(default=())  # none of these is
    reference: str = ""  # a good answer, for whoever reads the report

    @field_validator("question")
    @classmethod
    def question_has_words(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("the question is empty")
        return question

    @model_validator(mode="after")
    def something_is_asked_for(self) -> Question:
        entries = [*self.must, *self.must_not]
        if not entries:
            raise ValueError("it needs `must` or `must_not`, a list of words or phrases")
        for entry in entries:
            if not all(phrase.strip() for phrase in entry.split("|")):
                raise ValueError(f"{entry!r} has an empty phrase, which every answer contains")
        return self


def load_golden_set(path: str, root: Path) -> list[Question]:
    """``load_golden_set("evals/healthcare.golden_set.jsonl", specs.root)``: the questions of a JSON-lines file, in order.

    A relative path starts at ``root``, the folder of the YAML files. Blank lines are skipped.

    Raises:
        DataError: for a missing or unreadable file, one without questions, or a line that is no question, with its number.
    """
    file = root / path
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(str(p.relative_to(root)) for p in root.rglob("*.golden_set.jsonl"))) or "none"
        raise DataError(f"golden set {file} cannot be read ({type(error).__name__}); {root} has: {there}") from None
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = Question.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{file}:{number}: {field + ': ' if field else ''}{said}") from None
        key = _normalised(question.question)
        if key in questions:
            raise DataError(f"{file}:{number}: {question.question!r} is there twice; ask each question once")
        questions[key] = question
    if not questions:
        raise DataError(f'{file} has no questions; write one a line: {{"question": "...", "must": ["..."]}}')
    return list(questions.values())


def passes(question: Question, answer: str) -> bool:
    """``passes(question, "Call a doctor.")``: every ``must`` is said and no ``must_not``; an empty answer never passes.

    Whole words, whatever their case and the spaces between them: ``art`` is not in "heart", ``blood sugar`` is in
    "Blood\\n sugar". Inflected forms are words of their own: write ``doctor|doctors``.
    """
    said = _normalised(answer)
    return bool(said) and all(_says(said, e) for e in question.must) and not any(_says(said, e) for e in question.must_not)


def golden_set_metrics(passed: Mapping[str, Sequence[bool]], bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``golden_set_metrics({"student": […], "teacher": […]}, bootstrap)["golden_set_passed"].value``

    The share of questions passed, of the student and of each other (``golden_set_passed_teacher``), and
    ``golden_set_change``, the student's less the teacher's on the same questions. n counts questions; none gives NaN.
    """
    scores = {who: np.array(one, dtype=float) for who, one in passed.items()}
    return share_metrics(scores, "golden_set_passed", "golden_set_change", bootstrap)


def share_metrics(
    scores: Mapping[str, FloatArray], share: str, change: str, bootstrap: BootstrapConfig
) -> dict[str, MetricValue]:
    """``share_metrics({"student": s, "teacher": t}, "passed", "change", …)``: (E,) scores of the same items → mean scores.

    ``share`` is the student's, ``share_<who>`` another's; ``change`` is student minus teacher, paired.
    """
    figures = {
        share if who == "student" else f"{share}_{who}": ratio(one, np.ones(len(one)), bootstrap) for who, one in scores.items()
    }
    if "student" in scores and "teacher" in scores:
        items = np.ones(len(scores["student"]))
        figures[change] = paired_difference(scores["student"], scores["teacher"], items, bootstrap)
    return figures


def _normalised(text: str) -> str:
    return " ".join(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").casefold().split())


def _says(said: str, entry: str) -> bool:
    """``said`` is normalised; an edge of a phrase that is no letter or digit (``$50``) needs no border."""
    for phrase in map(_normalised, entry.split("|")):
        before = r"(?<!\w)" if re.match(r"\w", phrase) else ""
        after = r"(?!\w)" if re.search(r"\w$", phrase) else ""
        if re.search(before + re.escape(phrase) + after, said):
            return True
    return False
