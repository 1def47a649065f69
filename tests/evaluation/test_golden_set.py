"""Golden sets: every shipped file is sound, an answer is marked by rules, metrics are worked out by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.errors import DataError
from factory.evaluation.answers import Answer
from factory.evaluation.golden_set import (
    Question,
    asked_questions,
    golden_set_report,
    load_golden_set,
    passed_difference,
    passes,
)
from factory.evaluation.stats import BootstrapConfig

DOMAINS = Path(__file__).parents[2] / "domains"


def question(must: list[str] | None = None, must_not: list[str] | None = None) -> Question:
    return Question(question="What is it?", must=tuple(must or ()), must_not=tuple(must_not or ()))


def asking(text: str, exact: str) -> Question:
    return Question(question=text, exact=exact)


def written(root: Path, *lines: Any) -> str:
    path = root / "mine.golden_set.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), encoding="utf-8")
    return path.name


SHIPPED = ("healthcare", "education", "legal")


def shipped(domain: str) -> list[Question]:
    return load_golden_set(f"evals/{domain}.golden_set.jsonl", DOMAINS)


@pytest.mark.parametrize("domain", SHIPPED)
def test_a_shipped_file_has_enough_questions_of_every_kind(domain: str) -> None:
    questions = shipped(domain)
    splits = Counter(question.split for question in questions)
    assert len(questions) >= 200 and splits["validation"] >= 80 and splits["test"] >= 120
    exact = [question.exact for question in questions if question.exact]
    assert len(exact) >= len(questions) / 3
    letters = [key for key in exact if re.fullmatch("[A-E]", key)]
    numbers = [key for key in exact if re.fullmatch(r"[\d.]+", key)]
    assert len(letters) >= 20 and len(numbers) >= 30 and len(exact) - len(letters) - len(numbers) >= 20
    assert max(Counter(letters).values()) <= 0.4 * len(letters)  # a guess by letter is no better than any


@pytest.mark.parametrize("domain", SHIPPED)
def test_a_shipped_topic_is_in_one_split(domain: str) -> None:
    questions = shipped(domain)
    topics = {split: {question.topic for question in questions if question.split == split} for split in ("validation", "test")}
    assert "" not in topics["validation"] | topics["test"] and topics["validation"].isdisjoint(topics["test"])
    assert len(topics["validation"] | topics["test"]) >= 60


@pytest.mark.parametrize("domain", SHIPPED)
def test_a_shipped_reference_passes_and_what_is_no_answer_does_not(domain: str) -> None:
    questions = shipped(domain)
    assert [one.prompt for one in questions if not passes(one, one.reference)] == []
    asking = [one for one in questions if one.must or one.exact]
    for answer in ("", "I do not know.", "I'm not sure.", "{question}", "{question} {question}", "Bananas, perhaps?"):
        assert [one.prompt for one in asking if passes(one, answer.replace("{question}", one.prompt))] == [], answer
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
        ({"question": "  ", "must": ["a"]}, "question: there is nothing to ask"),
        ({"question": "Why?"}, "it needs `must` or `must_not`"),
        ({"question": "Why?", "exact": " "}, "' ' has an empty phrase"),
        ({"question": "Why?", "exact": "A|"}, "'A|' has an empty phrase"),
        ({"question": "Why? (A) so (B) because", "exact": "C"}, "the question lists no (C)"),
        ({"question": "Why?", "exact": "a", "split": "train"}, "split: Input should be 'validation' or 'test'"),
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
    with pytest.raises(DataError, match=r"is empty; write one item per line: \{\"question\": "):
        load_golden_set(written(tmp_path, "", "  "), tmp_path)


def test_a_question_stays_as_it_is() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        question(["a"]).question = "Another?"


# ---------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize(
    ("key", "answer", "passed"),
    [
        ("366", "366", True),
        ("366", "A leap year has 366 days, a common year 365.", True),
        ("366", "A common year has 365 days, a leap year 366.", False),
        ("366", "It has 3660 days.", False),
        ("1200", "About 1,200 of them.", True),
        ("1,200", "1200", True),
        ("0.08", "The limit is .08 percent.", True),
        ("7.25", "It is $7.25 an hour.", True),
        ("7", "7.0", True),
        ("7", "There are seven.", True),
        ("7", "A seven-day week.", True),
        ("20", "Twenty", True),
        ("20", "twenty-one", False),
        ("5", "thirty-five", False),
        ("20", "Give 20mg.", True),
        ("21", "The 21st Amendment.", True),
        ("12", "Vitamin B12 helps.", False),
        ("3", "1. There are 3 lobes.", True),
        ("3", "1) three", True),
        ("3", "One lung has 3 lobes, the other one 2.", True),
        ("3", "It is a number.", False),
        ("1", "There is one moon.", True),
        ("1", "1. The moon", True),
        ("1", "No one knows, one of them said. I say 5.", False),
    ],
)
def test_a_number_is_the_first_of_the_answer(key: str, answer: str, passed: bool) -> None:
    assert passes(asking("How many are there?", key), answer) is passed


def test_numbers_of_the_question_are_passed_over_unless_they_are_the_key() -> None:
    sum_ = asking("What is 12 plus 15?", "27")
    assert passes(sum_, "12 + 15 = 27")
    assert passes(sum_, "If you add fifteen to twelve you get 27.")
    assert not passes(sum_, "12 + 15 = 26, not 27")
    assert not passes(sum_, "12 + 15")
    key_asked = asking("Which is larger, 9 or 11?", "11")
    assert passes(key_asked, "11 is larger than 9.")
    assert not passes(key_asked, "9 is larger than 11.")


@pytest.mark.parametrize(
    ("key", "answer", "passed"),
    [
        ("B", "B", True),
        ("B", "(B)", True),
        ("B", "B) two", True),
        ("B", "**B.** It is two.", True),
        ("B", "Answer: B", True),
        ("B", "The answer is B, not A.", True),
        ("B", "b", False),
        ("B", "Because of it", False),
        ("B", "A", False),
        ("B", "A right answer is B.", True),
        ("A", "A right answer is B.", False),
        ("A", "A is right, since B has two.", True),
        ("A", "A because of it", True),
        ("A", "A\nB is wrong", True),
        ("A", "A: one", True),
        ("A", "I think (A) one.", True),
        ("A", "one", False),
        ("C", "Vitamin C3", False),
    ],
)
def test_a_choice_is_the_first_capital_that_stands_alone(key: str, answer: str, passed: bool) -> None:
    assert passes(asking("Which? (A) one (B) two (C) three. Answer with the letter.", key), answer) is passed


def test_a_span_is_found_as_whole_words() -> None:
    organ = asking("Which organ makes insulin?", "pancreas|the islets")
    assert passes(organ, "The PANCREAS does.") and passes(organ, "the\nislets")
    assert not passes(organ, "Pancreases do.") and not passes(organ, "The liver.")


def test_exact_and_the_lists_hold_together() -> None:
    both = Question(question="How many?", exact="3", must=("lobes",), must_not=("never",))
    assert passes(both, "3 lobes")
    assert not any(passes(both, answer) for answer in ("3", "2 lobes", "never 3 lobes"))


def test_a_repeated_question_is_no_answer() -> None:
    choice = asking("Which is even? (A) two (B) one. Answer with the letter.", "A")
    assert not passes(choice, choice.prompt)
    assert passes(choice, f"{choice.prompt} A")
    assert not passes(choice, f"{choice.prompt} B")


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(["{}", "{:,}", "It is {}.", "{}%", "({:,})", "{}.0"]))
def test_a_number_passes_however_it_is_written(key: int, other: int, form: str) -> None:
    asked = asking("How many?", str(key))
    assert passes(asked, form.format(key))
    assert passes(asked, form.format(other)) is (key == other)
    assert passes(asked, f"{form.format(key)} or {other}")


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"), st.sampled_from(["{}", "({})", "{}. so", "Answer: {}", "It is {}"]))
def test_a_letter_passes_however_it_is_written(key: str, given_letter: str, form: str) -> None:
    asked = asking("Which? (A) u (B) v (C) w (D) x (E) y", key)
    assert passes(asked, form.format(given_letter)) is (key == given_letter)


# -------------------------------------------------------------------------------------------------------------- metrics


def answers(*texts: str, finished: bool = True) -> list[Answer]:
    return [Answer(text, finished) for text in texts]


ASKED = [
    Question(question="Two?", exact="2", topic="numbers"),
    Question(question="Three?", exact="3", topic="numbers"),
    Question(question="Colours?", must=("red",), topic="colours"),
    Question(question="Sounds?", must=("loud",)),
]


def test_metrics_are_shares_and_their_paired_difference() -> None:
    given = {
        "teacher": answers("2", "3", "red", "loud"),
        "student": answers("2", "4", "red", "quiet", finished=False),
        "base": answers("", "", "", ""),
    }
    report = golden_set_report(ASKED, given, BootstrapConfig(200))
    assert {name: (metric.value, metric.n, metric.clusters) for name, metric in report.metrics.items()} == {
        "golden_set_passed": (0.5, 4, 3),
        "golden_set_passed_teacher": (1.0, 4, 3),
        "golden_set_passed_base": (0.0, 4, 3),
        "golden_set_change": (-0.5, 4, 3),
        "golden_set_exact": (0.5, 2, 1),
        "golden_set_exact_teacher": (1.0, 2, 1),
        "golden_set_exact_base": (0.0, 2, 1),
        "golden_set_exact_change": (-0.5, 2, 1),
        "answers_finished": (0.0, 4, 3),
        "answers_finished_teacher": (1.0, 4, 3),
        "answers_finished_base": (1.0, 4, 3),
        "answers_finished_change": (-1.0, 4, 3),
    }
    assert report.metrics["golden_set_passed_teacher"].low < 1  # four questions make nothing certain
    assert report.passed["student"] == [True, False, True, False]


def test_the_difference_between_two_versions_is_paired_by_topic() -> None:
    behind = passed_difference(ASKED, [True, True, True, False], [True, False, False, False])
    assert (behind.value, behind.n, behind.clusters) == (0.5, 4, 3)
    assert behind.low < 0.5 <= behind.high


def test_without_questions_there_are_no_metrics() -> None:
    report = golden_set_report([], {"student": [], "teacher": []}, BootstrapConfig(100))
    assert (report.metrics, report.passed) == ({}, {})
    only_must = golden_set_report(ASKED[2:], {"student": answers("red", "loud")}, BootstrapConfig(100))
    assert list(only_must.metrics) == ["golden_set_passed", "answers_finished"]


def test_only_the_test_split_is_asked_over_all_its_topics() -> None:
    questions = shipped("legal")
    asked = asked_questions(questions, 60)
    assert len(asked) == 60 and {one.split for one in asked} == {"test"}
    assert {one.topic for one in asked} == {one.topic for one in questions if one.split == "test"}
    assert asked_questions(questions, 30) == asked[:30]  # a smaller sample is part of a larger one
    assert asked_questions(questions, 0) == []
    assert len(asked_questions(questions, None)) == sum(one.split == "test" for one in questions)
