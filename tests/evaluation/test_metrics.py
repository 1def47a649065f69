from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from factory.evaluation.metrics import format_metric, format_number, gate_line, gate_outcome, metric_named, rows_of


@pytest.mark.parametrize(
    ("key", "label", "better", "unit"),
    [
        ("kl", "KL(teacher ‖ student), nats per token", "low", ""),
        ("bias_age_preference_change", "stereotype preferred, age, minus the teacher's share", None, ""),
        ("bias_gap_change", "bias gap, all axes, minus the teacher's, nats a pair", "low", ""),
        ("bias_gap_student", "bias gap of the student, all axes, nats a pair", None, ""),
        ("bias_age_gap_teacher", "bias gap, age, of the teacher, nats a pair", None, ""),
        ("task_factory_legal_accuracy", "accuracy on factory_legal", "high", "%"),
        ("task_factory_legal_accuracy_teacher", "accuracy on factory_legal of the teacher", None, "%"),
        ("something_new", "something_new", None, ""),
    ],
)
def test_figures_named_after_an_axis_or_a_task_have_labels(key: str, label: str, better: str | None, unit: str) -> None:
    metric = metric_named(key)
    assert (metric.label, metric.better, metric.unit) == (label, better, unit)


def test_rows_are_in_a_fixed_order_the_unknown_last_and_details_left_out() -> None:
    rows = list(rows_of([{"something_new": None, "bias_age_gap_base": None}, {"latency_ms": None, "kl": None}]))
    assert rows[0] == "kl" and rows[-2:] == ["latency_ms", "something_new"]
    assert "bias_age_gap_base" not in rows


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.41234, "", "0.412"),
        (1234.56, "", "1,234.6"),
        (5120, "", "5,120"),
        (0.755, "%", "75.5 %"),
        (134_515_008, "parameters", "134.5 M"),
        (999, "bytes", "999 B"),
        (0, "bytes", "0 B"),
        (2_500_000_000_000, "bytes", "2500.0 GB"),
        (None, "", "-"),
        ("high", "", "-"),
        (True, "", "-"),
    ],
)
def test_numbers_are_written_short(value: Any, unit: str, written: str) -> None:
    assert format_number(value, unit) == written


def test_a_metric_without_an_interval_is_its_value() -> None:
    assert format_metric({"value": 0.4, "low": None, "high": None, "n": 7}) == "0.400"
    assert format_metric(None) == "-"


@pytest.mark.parametrize(
    ("gate", "line", "outcome"),
    [
        (
            {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.8, "found": 0.80012, "passed": False},
            "upper end of kl is 0.80012, at most 0.8 passes",
            "failed: 0.800 (high end), at most 0.800",
        ),
        (
            {"metric": "top1_agreement", "of": "value", "bound": "at_least", "threshold": 0.6, "found": 0.7, "passed": True},
            "top1_agreement is 0.7, at least 0.6 passes",
            "passed: 0.700, at least 0.600",
        ),
        (
            {"metric": "canary_exposure", "of": "low", "bound": "at_most", "threshold": 2, "found": None, "passed": False},
            "lower end of canary_exposure is not measured, at most 2 passes",
            "failed: - (low end), at most 2",
        ),
    ],
)
def test_a_gate_is_written_with_what_it_found_and_what_passes(gate: dict[str, Any], line: str, outcome: str) -> None:
    assert (gate_line(gate), gate_outcome(gate)) == (line, outcome)


@pytest.mark.parametrize("module", ["figures", "comparison", "report"])
def test_what_tables_are_made_of_loads_no_rich_and_no_numpy(module: str) -> None:
    code = f"import sys, factory.{module}; print({{'rich', 'numpy', 'torch'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
