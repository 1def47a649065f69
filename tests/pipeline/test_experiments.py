"""The adapter matrix and the ablations, on a tiny family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from support.workplace import Workplace

from factory.data.dataset import Completion
from factory.errors import DataError, RegistryError
from factory.models.teacher import Teacher
from factory.pipeline.build import build_student
from factory.pipeline.context import FamilyModels, resolve_models
from factory.pipeline.dataset import make_general_rows
from factory.pipeline.experiments import VARIATIONS, WITHOUT_CONTEXT, AdapterMatrix, ablations, adapter_matrix
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


def test_ablations_change_one_thing_each_and_are_compared_with_the_first(built: Workplace) -> None:
    few = {name: VARIATIONS[name] for name in ("response", "response + feature", WITHOUT_CONTEXT)}
    found = list(ablations(built.context(), "plants", "mini", steps=1, variations=few))
    assert [one.name for one in found] == list(few)
    assert found[0].ahead is None and all(one.ahead is not None for one in found[1:])
    assert all(one.metrics["kl"].n > 0 and one.seconds > 0 for one in found)


class CutOff(Teacher):
    """A teacher that finishes no answer."""

    def complete(self, examples: Sequence[Any], *_: Any, **__: Any) -> Mapping[str, Completion]:  # type: ignore[override]
        return {example.id: Completion("cut of", finished=False) for example in examples}


def test_a_general_pool_without_a_finished_answer_is_refused(built: Workplace) -> None:
    context = built.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    teacher = CutOff.load(models.teacher_files, context.device)
    with pytest.raises(DataError, match=r"finished none of \d+ general prompts.*max_completion_tokens"):
        make_general_rows(context, FamilyModels(models.family, models.root, models.device, models.teacher_files, teacher))
