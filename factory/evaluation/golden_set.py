"""A domain's own questions with what a good answer says or must not say, and how many of them a model passes.

questions = load_golden_set("evals/healthcare.golden_set.jsonl", specs.root)
passes(questions[0], "Call a doctor.")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from factory.evaluation.items import Item, load_items, normalize, sample_items, share_metrics
from factory.evaluation.stats import BootstrapConfig, by_cluster, share_difference
from factory.registry.manifest import MetricValue

if TYPE_CHECKING:
    from factory.evaluation.answers import Answer

NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+")
CHOICE = re.compile(r"[A-E]")


class Question(Item):
    """A line of a golden set. ``first aid|emergency`` means either phrase; one of ``must``, ``must_not``, ``exact`` is needed.

    ``exact`` is a number ("366"), the letter of a choice that the question lists ("B"), or a span ("pancreas|the pancreas").
    """

    EXAMPLE: ClassVar[str] = '{"question": "...", "must": ["..."]}'

    prompt: str = Field(alias="question")
    must: tuple[str, ...] = ()  # a good answer says all of these
    must_not: tuple[str, ...] = ()  # and none of these
    exact: str = ""  # and gives this
    split: Literal["validation", "test"] = "test"  # students are measured on test; validation is for choosing a recipe
    reference: str = ""  # a good answer, for readers of the report

    @model_validator(mode="after")
    def can_be_marked(self) -> Question:
        entries = [*self.must, *self.must_not, *([self.exact] if "exact" in self.model_fields_set else [])]
        if not entries:
            raise ValueError("it needs `must` or `must_not`, a list of words or phrases, or `exact`, the answer itself")
        for entry in entries:
            if not all(phrase.strip() for phrase in entry.split("|")):
                raise ValueError(f"{entry!r} has an empty phrase, which every answer contains")
        if CHOICE.fullmatch(self.exact) and f"({self.exact})" not in self.prompt:
            raise ValueError(f"exact {self.exact!r} is the letter of a choice, but the question lists no ({self.exact})")
        return self


def load_golden_set(path: str, root: Path) -> list[Question]:
    """``load_golden_set("evals/healthcare.golden_set.jsonl", specs.root)``. Raises: DataError, as ``load_items``."""
    return load_items(path, root, Question)


# ------------------------------------------------------------------------------------------------------------- marking


def passes(question: Question, answer: str) -> bool:
    """``passes(question, "Call a doctor.")``: whether it says every ``must``, no ``must_not``, and gives ``exact``.

    An empty answer fails, and what only repeats the question counts as empty. Whole words, whatever their case and spacing:
    "heart" does not contain ``art``, "Blood\\n sugar" contains ``blood sugar``. Inflected forms are words of their own: write
    ``doctor|doctors``.
    """
    own = answer.replace(question.prompt, " ")
    said = normalize(own)
    if not said or any(_says(said, entry) for entry in question.must_not):
        return False
    return all(_says(said, entry) for entry in question.must) and (not question.exact or _gives(question, own))


def marks(questions: Sequence[Question], answers: Sequence[Answer]) -> list[bool]:
    """``marks(asked, answers)``: of each question, whether its answer passes."""
    return [passes(question, answer.text) for question, answer in zip(questions, answers, strict=True)]


def _gives(question: Question, answer: str) -> bool:
    if NUMBER.fullmatch(question.exact):
        return first_number(answer, question) == _number(question.exact)
    if CHOICE.fullmatch(question.exact):
        return first_choice(answer) == question.exact
    return _says(normalize(answer), question.exact)


def _says(said: str, entry: str) -> bool:
    """Whether normalized text contains one of the phrases; only a letter or digit at a phrase's edge needs a word border."""
    for phrase in map(normalize, entry.split("|")):
        before = r"(?<!\w)" if re.match(r"\w", phrase) else ""
        after = r"(?!\w)" if re.search(r"\w$", phrase) else ""
        if re.search(before + re.escape(phrase) + after, said):
            return True
    return False


LOW_NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = f"{LOW_NUMBERS} eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
SPELLED = rf"(?<![\w-])(?:{'|'.join(NUMBER_WORDS)})\b(?!(?<=twenty)-)"  # not the five of "thirty-five"
NUMBERS = re.compile(rf"(?<![\w.])(?:{NUMBER.pattern})|{SPELLED}", re.IGNORECASE)
ONE = re.compile(r"\bone\b|^\s*1[.)]\s", re.IGNORECASE | re.MULTILINE)
NOT_ONE = re.compile(r"\bno one\b|\bone (?:of|another)\b", re.IGNORECASE)


def first_number(answer: str, question: Question) -> float | None:
    """``first_number("12 plus 15 is 27.", question) == 27``: the first that the question does not mention; None without any.

    Where the question mentions the key itself, the first of all. Numbers are digits ("1,200", ".25", "20mg", not "B12") and
    the words zero to twenty. "One" is seldom a number, and a leading "1." begins a list: both count only where the key is 1,
    and then not in "no one", "one of" and "one another".
    """
    key = _number(question.exact)
    own = (NOT_ONE if key == 1 else ONE).sub(" ", answer)
    asked = [_number(found) for found in NUMBERS.findall(question.prompt)]
    for number in map(_number, NUMBERS.findall(own)):
        if key in asked or number not in asked:
            return number
    return None


def _number(text: str) -> float:
    return float(NUMBER_WORDS.index(text.casefold()) if text.isalpha() else text.replace(",", ""))


ARTICLE = r"A(?=\s+[a-z])(?!\s+(?:is|because|and|or)\b)"  # "A cold is ...", but not "A is right"
CHOSEN = re.compile(rf"(?<![\w'])(?!{ARTICLE})[A-E](?![\w'])")


def first_choice(answer: str) -> str | None:
    """``first_choice("The answer is (B).") == "B"``: the first of the letters A to E that stands alone; None without any.

    A capital: "B", "(B)", "B)" and "Answer: B." name a choice. The article of "A cold is" does not.
    """
    found = CHOSEN.search(answer)
    return found[0] if found else None


# ------------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class GoldenSetReport:
    """Metrics, and what is behind them."""

    metrics: dict[str, MetricValue] = field(default_factory=dict)
    passed: dict[str, list[bool]] = field(default_factory=dict)  # by model: of each question, in the order asked


def asked_questions(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """``asked_questions(questions, limit=120)``: those of the split test, sampled over topics."""
    return sample_items([question for question in questions if question.split == "test"], limit)


def passed_difference(questions: Sequence[Question], first: Sequence[bool], second: Sequence[bool]) -> MetricValue:
    """``passed_difference(asked, champion_passed, passed)``: share of the first minus the second, paired."""
    topics = [question.cluster for question in questions]
    passed, other, items = (
        by_cluster(np.asarray(column, dtype=float), topics) for column in (first, second, np.ones(len(topics)))
    )
    return share_difference(passed, other, items)


def golden_set_report(
    questions: Sequence[Question], answers: Mapping[str, Sequence[Answer]], bootstrap: BootstrapConfig
) -> GoldenSetReport:
    """``golden_set_report(asked, {"student": [...], "teacher": [...]}, bootstrap).metrics["golden_set_passed"].value``

    Shares of the student, of each other model (``golden_set_passed_teacher``) and the student's minus the teacher's, paired:
    of questions passed, of those among them with an exact answer, and of answers that ended by themselves. Topics are
    resampled; n counts questions. No questions, no metrics.
    """
    if not questions:
        return GoldenSetReport()
    topics = [question.cluster for question in questions]
    exact = [row for row, question in enumerate(questions) if question.exact]
    passed = {name: marks(questions, given) for name, given in answers.items()}
    finished = {name: [answer.finished for answer in given] for name, given in answers.items()}
    passed_exact = {name: [one[row] for row in exact] for name, one in passed.items()}
    metrics = {
        **share_metrics(passed, "golden_set_passed", "golden_set_change", bootstrap, topics),
        **share_metrics(passed_exact, "golden_set_exact", "golden_set_exact_change", bootstrap, [topics[row] for row in exact]),
        **share_metrics(finished, "answers_finished", "answers_finished_change", bootstrap, topics),
    }
    return GoldenSetReport(metrics, passed)
