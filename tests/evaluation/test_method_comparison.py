"""Methods beside one another: seeds pooled by hand, the rate that validation chooses, corrected p-values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from factory.errors import TrainingError
from factory.evaluation.method_comparison import Scores, best_rate, compare_methods, pool
from factory.evaluation.stats import BootstrapConfig, holm, paired_difference, paired_p_value

BOOTSTRAP = BootstrapConfig(2000)


def scores(over: list[float], under: float = 10.0) -> Scores:
    """Each row its own cluster."""
    return Scores(np.array(over), np.full(len(over), under), tuple(map(str, range(len(over)))))


def test_seeds_are_averaged_within_a_row_before_rows_are_compared() -> None:
    pooled = pool([scores([1.0, 5.0]), scores([3.0, 5.0])])
    assert pooled.over.tolist() == [2.0, 5.0] and pooled.value == pytest.approx(7 / 20)


def test_the_first_method_is_what_the_others_are_compared_with() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random(40) * 8
    runs = {
        "first": [{"kl": scores(list(rows))}, {"kl": scores(list(rows + 2))}],
        "worse": [{"kl": scores(list(rows + 5 + rng.normal(size=40)))}] * 2,
        "same": [{"kl": scores(list(rows + 2))}, {"kl": scores(list(rows))}],
    }
    found = compare_methods(runs, BOOTSTRAP)
    first, worse, same = (found[name]["kl"] for name in runs)
    assert first.difference is None and first.p is None and first.p_holm is None
    assert first.value.value == pytest.approx((rows.sum() + 40) / 400)
    assert first.seeds == pytest.approx((rows.sum() / 400, (rows.sum() + 80) / 400))
    assert worse.difference is not None and 0.3 < worse.difference.low < worse.difference.value < worse.difference.high < 0.5
    assert same.difference is not None and same.difference.value == pytest.approx(0) and same.p_holm == 1.0
    assert worse.p == pytest.approx(2 / 2001) and worse.p_holm == pytest.approx(4 / 2001)  # of two comparisons


def test_rows_of_one_cluster_count_once() -> None:
    rng = np.random.default_rng(1)
    first, other = rng.random(60) * 10, rng.random(60) * 10 + 1
    clusters = tuple(str(row // 6) for row in range(60))
    alone = [Scores(column, np.ones(60), tuple(map(str, range(60)))) for column in (first, other)]
    grouped = [Scores(column, np.ones(60), clusters) for column in (first, other)]
    wide, narrow = (compare_methods({"a": [{"kl": a}], "b": [{"kl": b}]}, BOOTSTRAP)["b"]["kl"] for a, b in (grouped, alone))
    assert (wide.value.clusters, narrow.value.clusters) == (10, 60)
    assert wide.difference is not None and narrow.difference is not None
    assert wide.difference.value == pytest.approx(narrow.difference.value)


def test_a_share_of_few_items_that_all_pass_is_not_certain() -> None:
    run = {"golden_set_passed": scores([1.0] * 12, under=1.0)}
    value = compare_methods({"a": [run], "b": [run]}, BOOTSTRAP)["a"]["golden_set_passed"].value
    assert value.value == 1.0 and value.low < 0.8


@pytest.mark.parametrize(
    ("validation", "best"),
    [
        ({2e-4: 0.71, 5e-4: 0.66, 1e-3: 0.70}, 5e-4),
        ({2e-4: 0.71, 5e-4: 0.66, 1e-3: math.nan}, 5e-4),
        ({1e-3: 0.66, 5e-4: 0.66}, 5e-4),
    ],
)
def test_the_best_rate_has_the_lowest_kl_that_is_a_number(validation: dict[float, float], best: float) -> None:
    assert best_rate(validation) == best


def test_a_method_that_diverges_at_every_rate_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"training diverged at every learning rate \(0.1, 1.0\); try lower ones"):
        best_rate({0.1: math.nan, 1.0: math.inf})


# ----------------------------------------------------------------------------------------------------------- p-values


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01, then 2 x 0.03, then at least as much for 0.04
        ([0.5, 0.2], [0.5, 0.4]),
        ([0.9, 0.8, 0.001], [1.0, 1.0, 0.003]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_s_correction_has_its_hand_computed_values(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


def test_a_p_value_agrees_with_the_interval() -> None:
    """0.05 where 0 is at an end of the interval: shifting the difference by that end moves 0 there."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 60, 25).astype(float)
    a, b = rng.normal(1.0, 1.0, 25) * tokens, rng.normal(0.6, 1.0, 25) * tokens
    difference = paired_difference(a, b, tokens, BootstrapConfig(20_000))
    for end in (difference.low, difference.high):
        assert paired_p_value(a - end * tokens, b, tokens, BootstrapConfig(20_000)) == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("rows", [5, 25])
def test_without_a_difference_one_test_in_twenty_is_below_a_twentieth(rows: int) -> None:
    rng, found = np.random.default_rng(4), []
    for seed in range(600):
        tokens = rng.integers(5, 60, rows).astype(float)
        found.append(paired_p_value(rng.normal(size=rows) * tokens, np.zeros(rows), tokens, BootstrapConfig(400, seed)))
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.025)


def test_equal_scores_have_p_value_one_and_a_single_row_none() -> None:
    tokens = np.full(9, 5.0)
    assert paired_p_value(tokens, tokens, tokens, BOOTSTRAP) == 1.0
    assert math.isnan(paired_p_value(np.array([3.0]), np.array([1.0]), np.array([5.0]), BOOTSTRAP))
