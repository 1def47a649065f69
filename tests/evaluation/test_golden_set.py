"""Acceptance questions: every shipped file is sound, an answer passes by whole words, figures are worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.errors import DataError
from factory.evaluation.golden_set import Question, golden_set_metrics, load_golden_set, passes
from factory.evaluation.stats import BootstrapConfig

DOMAINS = Path(__file__).parents[2] / "domains"


def question(must: list[str] | None = None, must_not: list[str] | None = None) -> Question:
    return Question(question="What is it?", must=tuple(must or ()), must_not=tuple(must_not or ()))


def written(root: Path, *lines: Any) -> str:
    path = root / "mine.golden_set.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), encoding="utf-8")
    return path.name


@pytest.mark.parametrize("domain", ["healthcare", "education", "legal"])
def test_a_shipped_file_has_twenty_questions_whose_references_pass(domain: str) -> None:
    questions = load_golden_set(f"evals/{domain}.golden_set.jsonl", DOMAINS)
    assert len(questions) == 20
    assert [one.question for one in questions if not (one.reference and passes(one, one.reference))] == []
    assert [one.question for one in questions if passes(one, "Bananas, perhaps?") and one.must] == []
    asked_only = [one.question for one in questions if one.must and passes(one, one.question)]
    assert len(asked_only) <= 4, asked_only  # repeating the question is seldom an answer
    forbidden = [(one, entry.split("|")[0]) for one in questions for entry in one.must_not]
    assert len(forbidden) >= 8
    assert [entry for one, entry in forbidden if passes(one, f"{one.reference} {entry}")] == []


@pytest.mark.parametrize(
    ("entry", "answer", "said"),
    [
        ("doctor", "See a DOCTOR.", True),
        ("doctor", "See the doctors.", False),
        ("doctor|doctors", "See the doctors.", True),
        ("art", "The heart beats.", False),
        ("blood sugar", "Your blood\n   sugar is low", True),
        ("blood sugar", "sugar in the blood", False),
        ("27", "It is 127.", False),
        ("27", "It is 27.", True),
        ("don't", "You don\N{RIGHT SINGLE QUOTATION MARK}t need it", True),
        ("$50", "It costs US$50 a day", True),
        ("$50", "It costs $500", False),
        ("c++", "in C++, mostly", True),
        ("a.c", "abc", False),
        ("stra\N{LATIN SMALL LETTER SHARP S}e", "In der STRASSE", True),
    ],
)
def test_an_entry_is_found_as_whole_words(entry: str, answer: str, said: bool) -> None:
    assert passes(question([entry]), answer) is said
    assert passes(question(must_not=[entry]), answer) is not said


def test_every_must_and_no_must_not_is_there() -> None:
    both = question(["water|milk", "daily"], ["beer|wine", "never"])
    assert passes(both, "Drink milk daily.")
    assert not passes(both, "Drink milk.")
    assert not passes(both, "Drink wine and milk daily.")
    assert not passes(both, "Never drink milk daily.")


@given(st.text(alphabet=" \t\n\r\f\v"))
def test_an_empty_answer_never_passes(blank: str) -> None:
    assert not passes(question(must_not=["anything"]), blank)


@given(st.lists(st.sampled_from(["water", "milk", "tea", "wine"]), max_size=6), st.booleans(), st.sampled_from(" \n\t"))
def test_case_and_spaces_change_nothing(words: list[str], upper: bool, space: str) -> None:
    text = f"{space}{space}".join(words)
    expected = "milk" in words and "wine" not in words
    assert passes(question(["milk"], ["wine"]), text.upper() if upper else text) is expected


def test_questions_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    name = written(tmp_path, {"question": "Z?", "must": ["a"]}, "", {"question": "A?", "must_not": ["b"], "reference": "c"})
    assert load_golden_set(name, tmp_path) == [
        Question(question="Z?", must=("a",)),
        Question(question="A?", must_not=("b",), reference="c"),
    ]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    text = '{"question": "One\N{LINE SEPARATOR}two?", "must": ["a"]}'
    assert len(load_golden_set(written(tmp_path, text), tmp_path)) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not JSON", "Invalid JSON"),
        ("[1]", "object"),
        ({"must": ["a"]}, "question: Field required"),
        ({"question": "  ", "must": ["a"]}, "question: the question is empty"),
        ({"question": "Why?"}, "it needs `must` or `must_not`"),
        ({"question": "Why?", "must": [], "must_not": []}, "it needs `must` or `must_not`"),
        ({"question": "Why?", "must": "a"}, "must: Input should be a valid"),
        ({"question": "Why?", "must": [1]}, "must.0: Input should be a valid string"),
        ({"question": "Why?", "must": ["a||b"]}, "'a||b' has an empty phrase"),
        ({"question": "Why?", "must_not": [""]}, "'' has an empty phrase"),
        ({"question": "Why?", "must": ["a"], "musst": ["b"]}, "musst: Extra inputs"),
        ({"question": "first ?", "must": ["a"]}, "'first ?' appears twice"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(line: Any, said: str, tmp_path: Path) -> None:
    name = written(tmp_path, {"question": "First  ?", "must": ["a"]}, "", line)
    with pytest.raises(DataError) as caught:
        load_golden_set(name, tmp_path)
    message = str(caught.value)
    assert f"{name}:3: " in message and said in message and "\n" not in message


def test_a_missing_file_says_which_exist(tmp_path: Path) -> None:
    written(tmp_path, {"question": "Why?", "must": ["a"]})
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read \(FileNotFoundError\); .* has: mine\.golden_set\.jsonl"):
        load_golden_set("none.jsonl", tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UnicodeDecodeError"):
        load_golden_set("latin.jsonl", tmp_path)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no questions; write one per line"):
        load_golden_set(written(tmp_path, "", "  "), tmp_path)


def test_a_question_stays_as_it_is() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        question(["a"]).question = "Another?"


def test_figures_are_shares_and_their_paired_difference() -> None:
    passed = {"student": [True, False, True, True], "teacher": [True, True, True, True], "base": [False] * 4}
    figures = golden_set_metrics(passed, BootstrapConfig(200))
    assert {name: (figure.value, figure.n) for name, figure in figures.items()} == {
        "golden_set_passed": (0.75, 4),
        "golden_set_passed_teacher": (1.0, 4),
        "golden_set_passed_base": (0.0, 4),
        "golden_set_change": (-0.25, 4),
    }
    assert figures["golden_set_change"].low < -0.25 < figures["golden_set_change"].high <= 0
    assert figures["golden_set_passed_teacher"].low == 1.0  # all alike: nothing to resample


def test_a_change_is_paired() -> None:
    """Both pass the same half: whatever is drawn, the difference is 0."""
    half = [True, False] * 10
    change = golden_set_metrics({"student": half, "teacher": half}, BootstrapConfig(200))["golden_set_change"]
    assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)


def test_one_question_and_none() -> None:
    one = golden_set_metrics({"student": [True]}, BootstrapConfig(100))
    assert list(one) == ["golden_set_passed"]
    assert (one["golden_set_passed"].low, one["golden_set_passed"].high, one["golden_set_passed"].n) == (1.0, 1.0, 1)
    none = golden_set_metrics({"student": [], "teacher": []}, BootstrapConfig(100))
    assert all(math.isnan(figure.value) and figure.n == 0 for figure in none.values()) and len(none) == 3
    assert golden_set_metrics({}, BootstrapConfig(100)) == {}
