"""What healing brought, and whether a teacher assistant helps, from hand-made sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from factory.evaluation.healing import healing_report, healing_warnings, teacher_assistant_helps
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


def test_a_teacher_assistant_helps_only_beyond_the_paired_interval() -> None:
    direct = sums([2.0, 4.0, 6.0, 8.0])
    helps, ahead = teacher_assistant_helps(direct, sums([1.0, 3.0, 5.0, 7.0]), BOOTSTRAP)
    assert helps and ahead.value == pytest.approx(0.5)
    helps, ahead = teacher_assistant_helps(direct, sums([1.0, 5.0, 5.0, 9.0]), BOOTSTRAP)
    assert not helps and ahead.low <= 0
    helps, ahead = teacher_assistant_helps(sums([]), sums([]), BOOTSTRAP)
    assert not helps and math.isnan(ahead.value)
