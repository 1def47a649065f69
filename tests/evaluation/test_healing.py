"""What healing brought, and whether a teacher assistant helps, from hand-made sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from factory.evaluation.healing import best_path, healing_report, healing_warnings
from factory.evaluation.stats import BootstrapConfig, ExampleSums

BOOTSTRAP = BootstrapConfig(200)


def sums(kl: list[float]) -> ExampleSums:
    count = len(kl)
    columns = {name: np.ones(count) for name in ExampleSums.__dataclass_fields__}
    return ExampleSums(**(columns | {"kl": np.array(kl), "tokens": np.full(count, 2.0), "embeddings": np.eye(count)}))


def test_a_healing_report_compares_before_and_after() -> None:
    found = healing_report(50, sums([4.0, 4.0]), sums([1.0, 3.0]), BOOTSTRAP)
    assert found.before["kl"].value == 2 and found.after["kl"].value == 1
    assert found.kl_closed_per_100_steps == 2
    assert set(found.after) == {"kl", "top5_overlap", "entropy_gap"}


@pytest.mark.parametrize(("after", "warned"), [([1.0, 3.0], False), ([4.0, 4.0], True), ([4.0, 5.0], True), ([], False)])
def test_healing_that_does_not_reduce_kl_warns(after: list[float], warned: bool) -> None:
    before = [4.0, 4.0] if after else []
    found = healing_warnings(healing_report(50, sums(before), sums(after), BOOTSTRAP))
    assert len(found) == warned
    assert all("KL 2.000 →" in line and "50 steps" in line and "heal.learning_rate" in line for line in found)


def test_the_best_path_is_the_one_furthest_ahead_of_the_direct_one() -> None:
    direct = sums([2.0, 4.0, 6.0, 8.0])
    ahead, behind = sums([1.0, 3.0, 5.0, 7.0]), sums([1.0, 5.0, 5.0, 9.0])
    best, by = best_path({"direct": direct, "stepwise": behind, "teacher_assistant": ahead}, BOOTSTRAP)
    assert best == "teacher_assistant" and by.value == pytest.approx(0.5) and by.low > 0
    best, by = best_path({"direct": direct, "stepwise": behind}, BOOTSTRAP)
    assert best == "stepwise" and by.low <= 0
    _, by = best_path({"direct": sums([]), "stepwise": sums([])}, BOOTSTRAP)
    assert math.isnan(by.value) and not by.low > 0
