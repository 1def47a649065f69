"""A user's own questions with what a good answer must and must not say, and how many of them a model passes.

questions = load_golden_set("evals/healthcare.golden_set.jsonl", specs.root)
passes(questions[0], "Call a doctor.")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from factory.config.schema import Strict, TeacherContext
from factory.errors import DataError
from factory.evaluation.stats import BootstrapConfig, FloatArray, mean, paired_difference
from factory.registry.manifest import MetricValue

if TYPE_CHECKING:
    from factory.evaluation.fidelity import Candidate
    from factory.models.teacher import Teacher


class Question(Strict):
    """A line of a golden set. ``first aid|emergency`` in a list means either phrase; at least one list has an entry."""

    question: str
    must: tuple[str, ...] = Field(default=())  # a good answer says all of these
    must_not: tuple[str, ...] = Field(default=())  # and none of these
    reference: str = ""  # a good answer, for readers of the report

    @field_validator("question")
    @classmethod
    def question_is_not_empty(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("the question is empty")
        return question

    @model_validator(mode="after")
    def phrases_are_not_empty(self) -> Question:
        entries = [*self.must, *self.must_not]
        if not entries:
            raise ValueError("it needs `must` or `must_not`, a list of words or phrases")
        for entry in entries:
            if not all(phrase.strip() for phrase in entry.split("|")):
                raise ValueError(f"{entry!r} has an empty phrase, which every answer contains")
        return self


# ---------------------------------------------------------------------------------------------------------------- file


def load_golden_set(path: str, root: Path) -> list[Question]:
    """``load_golden_set("evals/healthcare.golden_set.jsonl", specs.root)``: the questions of a JSON-lines file, in order.

    A relative path starts at ``root``, the folder of the YAML files. Blank lines are skipped.

    Raises:
        DataError: for a file that is missing, unreadable or empty, and for a malformed or repeated question, with its line.
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
        question = _parse(line, f"{file}:{number}")
        key = _normalize(question.question)
        if key in questions:
            raise DataError(f"{file}:{number}: {question.question!r} appears twice; ask each question once")
        questions[key] = question
    if not questions:
        raise DataError(f'{file} has no questions; write one per line: {{"question": "...", "must": ["..."]}}')
    return list(questions.values())


def _parse(line: str, where: str) -> Question:
    try:
        return Question.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}: {field + ': ' if field else ''}{message}") from None


# ------------------------------------------------------------------------------------------------------------- marking


def passes(question: Question, answer: str) -> bool:
    """``passes(question, "Call a doctor.")``: whether it says every ``must`` and no ``must_not``; an empty answer fails.

    Whole words, whatever their case and spacing: "heart" does not contain ``art``, "Blood\\n sugar" contains ``blood
    sugar``. Inflected forms are words of their own: write ``doctor|doctors``.
    """
    said = _normalize(answer)
    required = all(_says(said, entry) for entry in question.must)
    return bool(said) and required and not any(_says(said, entry) for entry in question.must_not)


def _normalize(text: str) -> str:
    return " ".join(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").casefold().split())


def _says(said: str, entry: str) -> bool:
    """Whether normalized text contains one of the phrases; only a letter or digit at a phrase's edge needs a word border."""
    for phrase in map(_normalize, entry.split("|")):
        before = r"(?<!\w)" if re.match(r"\w", phrase) else ""
        after = r"(?!\w)" if re.search(r"\w$", phrase) else ""
        if re.search(before + re.escape(phrase) + after, said):
            return True
    return False


# ------------------------------------------------------------------------------------------------------------- measure


def measure_golden_set(
    teacher: Teacher,
    candidates: Mapping[str, Candidate],
    tokenizer: Any,
    questions: Sequence[Question],
    context: TeacherContext,
    bootstrap: BootstrapConfig,
) -> dict[str, MetricValue]:
    """``measure_golden_set(teacher, candidates, tokenizer, questions, context, bootstrap)["golden_set_passed"].value``

    Greedy answers; the teacher sees ``context``, candidates do not. No questions, no metrics.
    """
    if not questions:
        return {}
    from factory.models.chat import prompt_ids, split_prefix
    from factory.models.generation import generate_text

    asked = [question.question for question in questions]
    prefix, rest = split_prefix([prompt_ids(tokenizer, one, context) for one in asked])
    answers = {"teacher": generate_text(teacher.model, tokenizer, rest, prefix)}
    for name, candidate in candidates.items():
        with candidate() as model:
            answers[name] = generate_text(model, tokenizer, [prompt_ids(tokenizer, one) for one in asked])
    passed = {
        name: [passes(question, answer) for question, answer in zip(questions, given, strict=True)]
        for name, given in answers.items()
    }
    return golden_set_metrics(passed, bootstrap)


def golden_set_metrics(passed: Mapping[str, Sequence[bool]], bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``golden_set_metrics({"student": [...], "teacher": [...]}, bootstrap)["golden_set_passed"].value``

    The student's share of questions passed, each other model's (``golden_set_passed_teacher``), and ``golden_set_change``,
    the student's minus the teacher's, paired. n counts questions.
    """
    scores = {name: np.array(one, dtype=float) for name, one in passed.items()}
    return share_metrics(scores, "golden_set_passed", "golden_set_change", bootstrap)


def share_metrics(
    scores: Mapping[str, FloatArray], share: str, change: str, bootstrap: BootstrapConfig
) -> dict[str, MetricValue]:
    """``share_metrics({"student": s, "teacher": t}, "passed", "change", bootstrap)``: mean scores of the same E items.

    ``share`` is the student's mean of (E,) scores, ``share_<name>`` another model's, and ``change`` the student's minus the
    teacher's, paired.
    """
    metrics = {share if name == "student" else f"{share}_{name}": mean(one, bootstrap) for name, one in scores.items()}
    if "student" in scores and "teacher" in scores:
        items = np.ones(len(scores["student"]))
        metrics[change] = paired_difference(scores["student"], scores["teacher"], items, bootstrap)
    return metrics
