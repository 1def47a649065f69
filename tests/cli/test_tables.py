"""Tables and JSON of what commands compute."""

from __future__ import annotations

import io
import math
from typing import Any

from rich.console import Console

from factory.cli.tables import (
    benchmark_json,
    benchmark_table,
    describe_total,
    explanation_summary,
    explanation_table,
    plan_lines,
    plan_table,
)
from factory.evaluation.benchmark import Question, Questions, Row
from factory.inference import Explanation, TokenProb
from factory.pipeline.benchmark import BenchmarkReport
from factory.pipeline.plan import Step
from factory.registry.manifest import MetricValue


def lines_of(table: Any) -> list[str]:
    """The table as it is printed, with single spaces."""
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------------------------- plan

STEPS = [
    Step("teacher", "on disk", "pypi:one"),
    Step("encoder", "to fetch", "pypi:two", None),
    Step("data set legal", "to do", "at most 24 examples", 100.0),
    Step("student legal-small", "to do", "distil for 30 steps", 1400.0),
]


def test_a_build_announces_what_is_not_on_disk_and_the_total() -> None:
    assert plan_lines(STEPS) == [
        "to fetch: encoder: pypi:two",
        "to do: data set legal (about 2 min): at most 24 examples",
        "to do: student legal-small (about 23 min): distil for 30 steps",
        "about 25 min in all, without downloads",
    ]


def test_a_plan_has_a_row_per_step_and_the_total() -> None:
    lines = lines_of(plan_table(STEPS))
    assert lines[0] == "on disk teacher pypi:one"
    assert lines[3] == "to do student legal-small about 23 min distil for 30 steps"
    assert lines[-1] == "about 25 min in all, without downloads"


def test_a_plan_without_the_teacher_has_no_estimate() -> None:
    steps = [Step("teacher", "to fetch", "pypi:one", None), Step("student legal-small", "to do", "distil", None)]
    assert describe_total(steps) == "no estimate before the teacher is on disk"


# --------------------------------------------------------------------------------------------------------------- benchmark

BITS = MetricValue(1.25, 1.2, 1.3, 500)
TASK = {"arc [easy]": MetricValue(0.4, 0.3, 0.5, 100)}
REPORT = BenchmarkReport(
    student="healthcare-small@1",
    download="pypi:one",
    questions=Questions((Question("a?", "A"),), seen=2),
    clusters=1,
    fine_tuning=None,
    rows=[
        Row("student", "bf16", 80_500_000, 167_500_000, BITS, None, TASK, 28.44),
        Row("student", "q4", 80_500_000, 60_000_000, BITS, MetricValue(0.05, 0.01, 0.09, 500), {}, None),
        Row("teacher", "bf16", 134_515_008, 269_000_000, MetricValue(math.nan, math.nan, math.nan, 0), None, {}, 12.0),
    ],
    notes=("1 question", "not fine-tuned"),
)


def test_the_table_has_a_row_per_model_and_format_and_a_column_per_task() -> None:
    lines = lines_of(benchmark_table(REPORT))
    assert "arc [easy]" in lines[0]
    assert lines[1] == "student bf16 80.5 M 167.5 MB 1.250 [1.200, 1.300] - 0.400 [0.300, 0.500] 28.4"
    assert lines[2] == "student q4 80.5 M 60.0 MB 1.250 [1.200, 1.300] 0.050 [0.010, 0.090] - -"
    assert lines[3] == "teacher bf16 134.5 M 269.0 MB - - - 12.0"
    assert lines[4:6] == ["1 question", "not fine-tuned"]


def test_json_has_a_dict_per_row_and_what_it_was_measured_on() -> None:
    found = benchmark_json(REPORT)
    first, second, third = found["rows"]
    assert first == {
        "name": "student",
        "format": "bf16",
        "parameters": 80_500_000,
        "bytes": 167_500_000,
        "bits_per_byte": {"value": 1.25, "low": 1.2, "high": 1.3, "n": 500, "clusters": None},
        "student_below": None,
        "tasks": {"arc [easy]": {"value": 0.4, "low": 0.3, "high": 0.5, "n": 100, "clusters": None}},
        "tokens_per_second": 28.44,
    }
    assert second["student_below"]["value"] == 0.05 and second["tasks"] == {}
    assert third["bits_per_byte"]["value"] is None  # JSON has no NaN
    assert found["questions"] == {
        "asked": 1,
        "clusters": 1,
        "left_out": {"without_reference": 0, "too_long": 0, "seen": 2, "not_drawn": 0},
    }
    assert (found["student"], found["download"], found["fine_tuning"]) == ("healthcare-small@1", "pypi:one", None)


# ------------------------------------------------------------------------------------------------------------- explanation


def test_an_explanation_has_a_row_per_rank_and_names_what_the_vocabulary_lacks() -> None:
    teacher = (TokenProb(" sun", 0.5, 0.25), TokenProb(" moon", 0.25, None))
    student = (TokenProb(" sun", 0.5, 0.25), TokenProb(" star", 0.125, 0.125))
    found = Explanation("a@1", "the", 0.25, 0.75, teacher, student, (" moon",), (1, 1))
    lines = lines_of(explanation_table(found))
    assert lines[1:] == ["' sun' 0.500 0.250 ' sun' 0.250 0.500", "' moon' 0.250 not in vocabulary ' star' 0.125 0.125"]
    assert explanation_summary(found) == (
        "KL(teacher ‖ student) 0.250 nats; the student's vocabulary covers 75.0% of the teacher's probability; "
        "missing from the teacher's top 2 tokens: ' moon'"
    )
