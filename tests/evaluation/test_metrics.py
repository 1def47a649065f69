"""Labels of metrics, also of those whose key names an axis or a task."""

from __future__ import annotations

import pytest

from factory.evaluation.metrics import is_detail, metric_named


@pytest.mark.parametrize(
    ("key", "label", "better", "unit"),
    [
        ("kl", "KL(teacher ‖ student), nats/token", "low", ""),
        ("golden_set_passed_base", "golden set passed by the base", None, "%"),
        ("bias_age_preference_change", "stereotype preferred, age, minus the teacher's share", None, ""),
        ("bias_gap_change", "bias gap, all axes, minus the teacher's, nats/pair", "low", ""),
        ("bias_gap_student", "bias gap of the student, all axes, nats/pair", None, ""),
        ("bias_age_gap_teacher", "bias gap, age, of the teacher, nats/pair", None, ""),
        ("task_factory_legal_accuracy", "accuracy on factory_legal", "high", "%"),
        ("task_factory_legal_accuracy_teacher", "accuracy on factory_legal of the teacher", None, "%"),
        ("something_new", "something_new", None, ""),
    ],
)
def test_metrics_named_after_an_axis_or_a_task_have_labels(key: str, label: str, better: str | None, unit: str) -> None:
    metric = metric_named(key)
    assert (metric.label, metric.better, metric.unit) == (label, better, unit)


def test_only_the_bias_of_one_model_on_one_axis_is_a_detail() -> None:
    assert is_detail("bias_age_gap_base")
    assert not any(map(is_detail, ("bias_age_gap_change", "bias_gap_change", "golden_set_passed_teacher")))
