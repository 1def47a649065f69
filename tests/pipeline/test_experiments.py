"""The matrix and the ablations, on a tiny family that is built once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.workplace import Workplace

from factory.data.dataset import Completion
from factory.errors import DataError, RegistryError
from factory.pipeline.experiments import VARIATIONS, Matrix, ablations, adapter_matrix
from factory.registry.manifest import MetricValue
from factory.registry.registry import Registry

Refused = Callable[[Any], str]


def test_the_matrix_has_every_adapter_and_the_base_on_every_domain(built: Workplace) -> None:
    assert built.run("build", "stars").exit_code == 0
    result = built.run("compare", "plants-mini", "stars-mini", "--matrix", "--json", "--domains", str(built.domains))
    found = json.loads(result.stdout)
    assert list(found) == ["plants", "stars"]
    for row in found.values():
        assert set(row["kl"]) == {"plants-mini@1", "stars-mini@1", "base"}
        assert all(figure["n"] > 0 for figure in row["kl"].values())
    registry = Registry(built.root / "registry")
    own = registry.resolve("plants-mini").manifest["evaluation"]["metrics"]["kl"]["value"]
    assert found["plants"]["kl"]["plants-mini@1"]["value"] == pytest.approx(own, rel=0.02)  # the same text, measured again
    table = built.run("compare", "plants-mini", "stars-mini", "--matrix", "--domains", str(built.domains)).stdout
    assert "plants" in table and "stars" in table


def test_one_student_makes_no_matrix(built: Workplace, refused: Refused) -> None:
    line = refused(built.run("compare", "plants-mini", "--matrix", "--domains", str(built.domains)))
    assert "two or more students of one base" in line
    for refs in (["teacher"], ["default-mini-base"], ["default-mini-base", "default-mini-base"]):
        assert "two or more students of one base" in refused(
            built.run("compare", *refs, "--matrix", "--domains", str(built.domains))
        )
    factory = built.factory()
    twice = [factory.registry.resolve("plants-mini")] * 2
    with pytest.raises(RegistryError, match="different domains"):
        adapter_matrix(factory, twice)


@pytest.mark.parametrize(("low", "best"), [(0.001, True), (0.0, False), (-0.01, False)])
def test_the_own_adapter_is_best_only_beyond_the_interval(low: float, best: bool) -> None:
    matrix = Matrix({}, {"plants": {"base": MetricValue(0.2, 0.1, 0.3, 9), "other": MetricValue(0.1, low, 0.2, 9)}})
    assert matrix.own_is_best("plants") is best


def test_ablations_change_one_thing_each_and_are_compared_with_the_first(built: Workplace) -> None:
    small = {name: VARIATIONS[name] for name in ("response", "response + feature", "response, teacher without its context")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("factory.pipeline.experiments.VARIATIONS", small)
        found = list(ablations(built.factory(), "plants", "mini", steps=1))
    assert [one.name for one in found] == list(small)
    assert found[0].ahead is None and all(one.ahead is not None for one in found[1:])
    assert all(one.figures["kl"].n > 0 and one.seconds > 0 for one in found)


def test_a_general_pool_without_one_finished_answer_is_refused(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = built.factory()
    monkeypatch.setattr(
        factory, "_complete", lambda examples, *_: {e.id: Completion("cut of", finished=False) for e in examples}
    )
    with pytest.raises(DataError, match=r"none of \d+ general prompts has a finished answer.*max_completion_tokens"):
        factory.general_rows()
