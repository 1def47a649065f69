"""Verdicts at, just under and just over a threshold, and of figures that are no numbers or were not measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.config.schema import Gate
from factory.evaluation.gates import judge
from factory.evaluation.stats import MetricValue

KL = MetricValue(0.5, 0.4, 0.6, 900)
NAN = MetricValue(math.nan, math.nan, math.nan, 0)


def status(figure: MetricValue, **gate: object) -> str:
    return str(judge({"kl": figure}, {"kl": Gate.model_validate(gate)})["status"])


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ({"at_most": 0.5}, "passed"),  # on the threshold
        ({"at_most": math.nextafter(0.5, 0)}, "failed"),
        ({"at_most": math.nextafter(0.5, 1)}, "passed"),
        ({"at_least": 0.5}, "passed"),
        ({"at_least": math.nextafter(0.5, 1)}, "failed"),
        ({"at_least": math.nextafter(0.5, 0)}, "passed"),
        ({"at_most": 0.45, "of": "low"}, "passed"),
        ({"at_most": 0.55, "of": "high"}, "failed"),
        ({"at_least": 0.45, "of": "low"}, "failed"),
    ],
)
def test_a_threshold_is_met_on_it_and_on_its_good_side(gate: dict[str, object], verdict: str) -> None:
    assert status(KL, **gate) == verdict


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_either_side_of_every_threshold(value: float, threshold: float) -> None:
    figure = MetricValue(value, value, value, 1)
    assert (status(figure, at_most=threshold) == "passed") == (value <= threshold)
    assert (status(figure, at_least=threshold) == "passed") == (value >= threshold)


@pytest.mark.parametrize("bound", ["at_most", "at_least"])
def test_what_is_no_number_fails_whatever_the_bound(bound: str) -> None:
    for figure in (NAN, MetricValue(math.inf, 0, math.inf, 3)):
        verdict = judge({"kl": figure}, {"kl": Gate.model_validate({bound: 0.5})})
        assert verdict["status"] == "failed"
        assert verdict["gates"][0]["found"] is None
        assert "not measured" in verdict["reasons"][0]


def test_a_figure_that_was_not_measured_fails_unless_its_gate_is_not_required() -> None:
    required = judge({"kl": KL}, {"k_l": Gate(at_most=1)})
    assert required["status"] == "failed"
    assert required["reasons"] == ["k_l is not measured, at most 1 passes (did you mean kl?)"]
    passed_over = judge({"kl": KL}, {"kl": Gate(at_most=1), "canary_exposure": Gate(at_most=1, required=False)})
    assert passed_over["status"] == "passed"
    assert [gate["metric"] for gate in passed_over["gates"]] == ["kl"]


def test_without_a_gate_nothing_is_judged() -> None:
    assert judge({"kl": KL}, {}) == {"status": "unchecked", "reasons": [], "gates": []}


def test_the_reasons_name_each_failed_gate_with_figure_and_threshold() -> None:
    verdict = judge({"kl": KL, "top": KL}, {"kl": Gate(at_most=0.55, of="high"), "top": Gate(at_least=0.7)})
    assert verdict["reasons"] == ["upper end of kl is 0.6, at most 0.55 passes", "top is 0.5, at least 0.7 passes"]
    assert verdict["gates"][1] == {
        "metric": "top", "of": "value", "bound": "at_least", "threshold": 0.7, "found": 0.5, "passed": False
    }  # fmt: skip


@pytest.mark.parametrize("gate", [{}, {"at_most": 1, "at_least": 0}, {"at_most": 1, "of": "middle"}, {"below": 1}])
def test_a_gate_has_one_bound_and_nothing_unknown(gate: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Gate.model_validate(gate)
