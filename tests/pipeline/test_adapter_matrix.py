"""The adapter matrix, on a tiny family."""

from __future__ import annotations

import pytest
from support.workplace import Workplace

from factory.errors import RegistryError
from factory.pipeline.adapter_matrix import AdapterMatrix, adapter_matrix
from factory.pipeline.build import build_student
from factory.registry.manifest import MetricValue


def test_the_matrix_has_every_adapter_and_the_base_on_every_domain(built: Workplace) -> None:
    context = built.context()
    plants, stars = context.registry.resolve("plants-mini"), build_student(context, "stars", "mini")
    found = adapter_matrix(context, [plants, stars])
    assert list(found.kl) == ["plants", "stars"]
    for row in found.kl.values():
        assert set(row) == {"plants-mini@1", "stars-mini@1", "base"}
        assert all(metric.n > 0 for metric in row.values())
    own = plants.manifest.evaluation.metrics["kl"].value
    assert found.kl["plants"]["plants-mini@1"].value == pytest.approx(own, rel=0.02)  # the same text, measured again


@pytest.mark.parametrize("names", [["plants-mini"], ["default-mini-base"], ["plants-mini", "plants-mini"], []])
def test_a_matrix_needs_students_of_different_domains_on_one_base(built: Workplace, names: list[str]) -> None:
    context = built.context()
    with pytest.raises(RegistryError, match="two or more students of one base and of different domains"):
        adapter_matrix(context, [context.registry.resolve(name) for name in names])


@pytest.mark.parametrize(("low", "best"), [(0.001, True), (0.0, False), (-0.01, False)])
def test_the_own_adapter_is_best_only_beyond_the_interval(low: float, best: bool) -> None:
    matrix = AdapterMatrix({}, {"plants": {"base": MetricValue(0.2, 0.1, 0.3, 9), "other": MetricValue(0.1, low, 0.2, 9)}})
    assert matrix.own_is_best("plants") is best
