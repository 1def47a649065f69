"""Metrics from example sums: values worked out by hand, intervals around them, NaN where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.evaluation.stats import (
    MIN_ALIGNED,
    BootstrapConfig,
    ExampleSums,
    _linear_ratio,
    by_cluster,
    concatenate,
    cosines,
    exponentiate,
    mean,
    paired_difference,
    paired_ratio_difference,
    ratio,
    relation_alignment,
    share,
    share_difference,
    summarize,
    unpaired_quotient,
)
from factory.registry.manifest import MetricValue

TOKENS = np.array([2.0, 4.0, 4.0])


def sums(count: int = 3, seed: int = 0) -> ExampleSums:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 9, count).astype(float)
    columns = {name: rng.random(count) * tokens for name in ExampleSums.__dataclass_fields__ if name != "embeddings"}
    return ExampleSums(**(columns | {"tokens": tokens, "embeddings": rng.normal(size=(count, 4))}))


def test_a_ratio_is_sum_over_sum_and_counts_the_denominator() -> None:
    metric = ratio(np.array([1.0, 1.0, 3.0]), TOKENS, BootstrapConfig(200))
    assert (metric.value, metric.n) == (0.5, 10)  # 5 / 10, not the mean of 0.5, 0.25 and 0.75 by accident
    assert ratio(np.array([2.0, 1.0, 0.0]), TOKENS, BootstrapConfig(200)).value == pytest.approx(0.3)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 60)), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_the_interval_stays_within_the_values_of_the_examples(rows: list[tuple[float, int]], seed: int) -> None:
    numerator, denominator = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    metric = ratio(numerator, denominator, BootstrapConfig(300, seed))
    each = numerator / denominator
    assert each.min() - 1e-9 <= metric.low <= metric.high <= each.max() + 1e-9
    if len(rows) == 1:
        assert metric.low == pytest.approx(metric.value) == metric.high


def test_the_interval_contains_the_value_and_narrows_with_more_examples() -> None:
    widths = []
    for count in (20, 2000):
        one = sums(count)
        metric = ratio(one.kl, one.tokens, BootstrapConfig(500))
        assert metric.low < metric.value < metric.high
        widths.append(metric.high - metric.low)
    assert widths[1] < widths[0] / 5


def test_examples_are_resampled_not_tokens() -> None:
    """Three equal examples of many tokens say no more than three examples."""
    numerator, denominator = np.array([0.0, 50.0, 100.0]), np.array([100.0] * 3)
    metric = ratio(numerator, denominator, BootstrapConfig(4000))
    assert metric.low == pytest.approx(0.0, abs=0.17) and metric.high == pytest.approx(1.0, abs=0.17)


@pytest.mark.parametrize("empty", [np.array([]), np.array([0.0, 0.0])], ids=["no examples", "no tokens"])
def test_without_examples_or_tokens_nothing_is_measured(empty: np.ndarray) -> None:
    metric = ratio(empty, empty, BootstrapConfig(100))
    assert math.isnan(metric.value) and math.isnan(metric.low) and math.isnan(metric.high) and metric.n == 0


def test_nan_in_the_sums_gives_nan() -> None:
    assert math.isnan(ratio(np.array([1.0, math.nan, 1.0]), TOKENS, BootstrapConfig(100)).value)


def test_resamples_without_tokens_are_left_out() -> None:
    metric = ratio(np.array([0.0, 2.0]), np.array([0.0, 4.0]), BootstrapConfig(100))
    assert (metric.value, metric.low, metric.high, metric.n) == (0.5, 0.5, 0.5, 4)


def test_the_seed_decides_the_interval_and_not_the_value() -> None:
    one, encoder = sums(30), np.random.default_rng(9).normal(size=(30, 6))
    first = summarize(one, encoder, BootstrapConfig(100, 1))
    assert first == summarize(one, encoder, BootstrapConfig(100, 1))
    other = summarize(one, encoder, BootstrapConfig(100, 2))
    assert first["kl"].value == other["kl"].value and first["kl"].low != other["kl"].low


def test_a_paired_difference_ignores_how_widely_examples_differ() -> None:
    rng = np.random.default_rng(0)
    tokens = np.full(50, 10.0)
    b = rng.random(50) * 100  # examples differ widely, the two models by a constant
    metric = paired_difference(b + 2, b, tokens, BootstrapConfig(300))
    assert metric.value == pytest.approx(0.2) and metric.high - metric.low < 1e-9
    assert paired_difference(b, b + 2, tokens, BootstrapConfig(300)).value == pytest.approx(-0.2)


def test_a_paired_ratio_difference_is_ratio_minus_ratio_on_the_same_examples() -> None:
    rng = np.random.default_rng(0)
    right, possible = rng.random(40) * 10, np.full(40, 10.0)
    metric = paired_ratio_difference(right + 1, possible, right, possible, BootstrapConfig(300))
    assert (metric.value, metric.n) == (pytest.approx(0.1), 400) and metric.high - metric.low < 1e-9
    other = paired_ratio_difference(right, possible, rng.random(40), rng.integers(1, 9, 40), BootstrapConfig(300))
    assert other.low < other.value < other.high
    assert math.isnan(paired_ratio_difference(right, possible, right, 0 * possible, BootstrapConfig(300)).value)


def test_an_unpaired_quotient_resamples_both_samples() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random(30) * 8, np.full(30, 4.0)), (rng.random(50) * 4, np.full(50, 4.0))
    metric = unpaired_quotient(first, second, BootstrapConfig(300))
    assert metric.value == pytest.approx(first[0].mean() / second[0].mean()) and metric.n == 120
    assert metric.low < metric.value < metric.high
    assert math.isnan(unpaired_quotient(first, (np.zeros(0), np.zeros(0)), BootstrapConfig(300)).value)


def test_a_mean_counts_its_values() -> None:
    assert (mean(np.array([1.0, 0.0, 0.5]), BootstrapConfig(100)).value, mean(np.ones(3), BootstrapConfig(100)).n) == (0.5, 3)


def test_perplexity_is_the_exponential_of_value_and_interval() -> None:
    metric = exponentiate(MetricValue(math.log(4), math.log(2), math.log(8), 7))
    assert (metric.value, metric.low, metric.high, metric.n) == pytest.approx((4, 2, 8, 7))
    assert math.isnan(exponentiate(MetricValue(math.nan, math.nan, math.nan, 0)).value)


def test_every_metric_of_a_summary_has_its_hand_computed_value() -> None:
    one = ExampleSums(
        tokens=TOKENS,
        kl=np.array([1.0, 2.0, 3.0]),
        agree=np.array([1.0, 3.0, 4.0]),
        top5=np.array([1.2, 3.0, 2.8]),
        correct=np.array([1.0, 1.0, 1.0]),
        teacher_correct=np.array([2.0, 1.0, 3.0]),
        nll=TOKENS * math.log(3),
        teacher_nll=TOKENS * math.log(2),
        entropy=TOKENS * 3.0,
        teacher_entropy=TOKENS * 2.5,
        sure=np.array([1.0, 2.0, 1.0]),
        sure_agree=np.array([1.0, 2.0, 0.0]),
        trimmed=np.array([0.5, 0.0, 0.5]),
        embeddings=np.eye(3),
    )
    metrics = summarize(one, None, BootstrapConfig(100))
    values = {name: metric.value for name, metric in metrics.items()}
    assert values == pytest.approx(
        {
            "kl": 0.6,
            "top1_agreement": 0.8,
            "sure_agreement": 0.75,
            "kl_whole_teacher": 0.7,
            "top5_overlap": 0.7,
            "entropy_gap": 0.5,
            "student_perplexity": 3.0,
            "teacher_perplexity": 2.0,
            "accuracy_retained": 0.5,
        }
    )
    assert {metric.n for name, metric in metrics.items() if name not in ("accuracy_retained", "sure_agreement")} == {10}
    assert metrics["sure_agreement"].n == 4  # where the teacher was sure
    assert metrics["accuracy_retained"].n == 6  # what the teacher had right


def test_one_example_has_metrics_without_width_and_no_alignment() -> None:
    one = sums(1)
    metrics = summarize(one, np.ones((1, 3)), BootstrapConfig(100))
    assert metrics["kl"].value == metrics["kl"].low == metrics["kl"].high == pytest.approx(one.kl[0] / one.tokens[0])
    assert math.isnan(metrics["relation_alignment"].value) and metrics["relation_alignment"].n == 1


def test_a_summary_of_nothing_is_nan() -> None:
    nothing = ExampleSums(**{name: value[:0] for name, value in vars(sums()).items()})
    metrics = summarize(nothing, np.zeros((0, 4)), BootstrapConfig(100))
    assert all(math.isnan(metric.value) and metric.n == 0 for metric in metrics.values())


# ---------------------------------------------------------------------------------------------------------- relation


def test_alignment_is_one_for_the_same_geometry() -> None:
    embeddings = np.random.default_rng(0).normal(size=(12, 5))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5))).Q
    metric = relation_alignment(embeddings @ rotation * 7, embeddings, BootstrapConfig(100))
    assert (metric.value, metric.low, metric.high, metric.n) == pytest.approx((1, 1, 1, 12))


def test_alignment_compares_embeddings_of_different_widths() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(40, 6))
    student = np.concatenate([teacher + rng.normal(size=(40, 6)), np.zeros((40, 2))], axis=1)
    metric = relation_alignment(student, teacher, BootstrapConfig(200))
    assert 0.2 < metric.low < metric.value < metric.high < 1


@pytest.mark.parametrize("count", [0, 1, 3, MIN_ALIGNED - 1])
def test_too_few_examples_have_no_alignment(count: int) -> None:
    embeddings = np.random.default_rng(0).normal(size=(count, 4))
    metric = relation_alignment(embeddings, embeddings, BootstrapConfig(100))
    assert math.isnan(metric.value) and math.isnan(metric.low) and metric.n == count


def test_equal_embeddings_have_no_alignment_and_give_no_warning() -> None:
    metric = relation_alignment(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)), BootstrapConfig(100))
    assert math.isnan(metric.value) and metric.n == 9


def test_the_fewest_examples_with_an_alignment_have_an_interval() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, MIN_ALIGNED, 4))
    metric = relation_alignment(first, second, BootstrapConfig(100))
    assert -1 <= metric.low <= metric.value <= metric.high <= 1


def test_a_zero_vector_has_cosine_zero() -> None:
    np.testing.assert_allclose(cosines(np.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0, 1]])


def test_parts_are_concatenated_in_order() -> None:
    first, second = sums(2, seed=1), sums(3, seed=2)
    whole = concatenate([first, second])
    np.testing.assert_array_equal(whole.kl, [*first.kl, *second.kl])
    assert whole.embeddings.shape == (5, 4)


# ------------------------------------------------------------------------------------------------------------ clusters


def test_sums_by_cluster_are_those_of_its_rows() -> None:
    found = by_cluster(np.array([1.0, 2.0, 4.0]), ["b", "a", "b"])
    assert found.tolist() == [2.0, 5.0]
    assert by_cluster(np.eye(3), ["b", "a", "b"]).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert by_cluster(np.zeros(0), []).tolist() == []


def test_copies_within_a_cluster_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).random(20)
    one = mean(values, BootstrapConfig(500))
    copied = np.repeat(values, 10)
    alone = mean(copied, BootstrapConfig(500))
    labels = [str(i) for i in np.repeat(np.arange(20), 10)]
    clustered = ratio(by_cluster(copied, labels), by_cluster(np.ones(200), labels), BootstrapConfig(500))
    assert (clustered.n, clustered.clusters) == (200, 20) and (alone.n, alone.clusters) == (200, 200)
    assert clustered.high - clustered.low == pytest.approx(one.high - one.low, rel=0.1)
    assert alone.high - alone.low < (one.high - one.low) / 2


def test_the_standard_error_of_a_ratio_is_the_linearized_one() -> None:
    """By hand: ratio 5 / 10; residuals 0, -1, 1 over 10; sqrt(3 / 2 * 2) / 10."""
    assert _linear_ratio(np.array([[1.0, 1.0, 3.0], TOKENS])).standard_error == pytest.approx(math.sqrt(3) / 10)


CLUSTERS = 25
Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, float]]


def share_of(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    sizes = rng.integers(1, 16, CLUSTERS)
    return rng.binomial(sizes, rng.beta(2, 3, CLUSTERS)), sizes, 0.4


def rare_share(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    sizes = rng.integers(1, 16, CLUSTERS)
    return rng.binomial(sizes, rng.beta(1, 9, CLUSTERS)), sizes, 0.1


def difference(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    sizes = rng.integers(1, 16, CLUSTERS)
    shift = rng.uniform(-0.15, 0.15, CLUSTERS)
    drawn = [rng.multinomial(size, [0.2 - one / 2, 0.6, 0.2 + one / 2]) for size, one in zip(sizes, shift, strict=True)]
    return np.array([up - down for down, _, up in drawn]), sizes, 0.0


def divergence(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    tokens = rng.integers(1, 16, CLUSTERS) * rng.integers(20, 80, CLUSTERS)
    return tokens * rng.lognormal(-1, 0.4, CLUSTERS), tokens, math.exp(-1 + 0.08)


@pytest.mark.parametrize("count", [400, pytest.param(4000, marks=[pytest.mark.slow, pytest.mark.big])])
@pytest.mark.parametrize("draw", [share_of, rare_share, difference, divergence])
def test_intervals_hold_the_true_value_in_95_of_100_simulations(draw: Draw, count: int) -> None:
    """25 clusters of unequal size; ±2 of 100, and two standard errors of so many simulations."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(count):
        numerator, denominator, truth = draw(rng)
        metric = ratio(numerator.astype(float), denominator.astype(float), BootstrapConfig(400, int(rng.integers(1 << 30))))
        held += metric.low <= truth <= metric.high
    assert held / count == pytest.approx(0.95, abs=0.02 + 2 * math.sqrt(0.95 * 0.05 / count))


# -------------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(("passed", "low", "high"), [(8, 0.676, 1.0), (0, 0.0, 0.324)])
def test_a_few_equal_items_are_not_certain(passed: int, low: float, high: float) -> None:
    """Wilson's interval for 8 of 8: 8 / (8 + 1.96²) to 1."""
    metric = share(np.array([1.0] * passed + [0.0] * (8 - passed)), np.ones(8), BootstrapConfig(200))
    assert (metric.low, metric.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_two_models_that_agree_on_a_few_items_may_still_differ() -> None:
    """By hand: residuals 0, 0, 0, 0, 1, -1 over 6 items; Student's 2.5706 times sqrt(6 / 5 * 2) / 6."""
    both = np.array([1.0, 0.0, 1.0, 1.0])
    metric = share_difference(both, both, np.ones(4))
    assert (metric.value, metric.n, metric.clusters) == (0, 4, 4)
    assert metric.high == -metric.low == pytest.approx(2.5706 * math.sqrt(2.4) / 6, abs=1e-4)
    assert math.isnan(share_difference(np.zeros(0), np.zeros(0), np.zeros(0)).value)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(9, 12)), min_size=1, max_size=30))
def test_the_interval_of_a_difference_holds_it_and_turns_with_its_sign(rows: list[tuple[int, int, int]]) -> None:
    a, b, items = np.array(rows, dtype=float).T
    one, other = share_difference(a, b, items), share_difference(b, a, items)
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@pytest.mark.parametrize("count", [400, pytest.param(4000, marks=[pytest.mark.slow, pytest.mark.big])])
@pytest.mark.parametrize(("up", "down"), [(0.03, 0.03), (0.02, 0.06), (0.15, 0.10)])
@pytest.mark.parametrize(("clusters", "largest"), [(25, 15), (40, 5), (40, 1)])
def test_a_difference_of_few_items_is_held_in_at_least_95_of_100_simulations(
    clusters: int, largest: int, up: float, down: float, count: int
) -> None:
    """Clusters of 1 to ``largest`` items; less 2 of 100, and two standard errors of so many simulations."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(count):
        sizes = rng.integers(1, largest + 1, clusters)
        drawn = rng.multinomial(sizes, [up, down, 1 - up - down]).astype(float)
        metric = share_difference(drawn[:, 0], drawn[:, 1], sizes.astype(float))
        held += metric.low <= up - down <= metric.high
    assert held / count >= 0.93 - 2 * math.sqrt(0.95 * 0.05 / count)


def test_shares_that_vary_have_the_bootstrap_s_interval() -> None:
    scores = np.random.default_rng(0).integers(0, 2, 80).astype(float)
    assert share(scores, np.ones(80), BootstrapConfig(200)) == mean(scores, BootstrapConfig(200))


def test_one_failure_of_forty_items_in_fourteen_topics_is_not_certain() -> None:
    passed, items = np.array([3.0] * 12 + [2.0, 1.0]), np.array([3.0] * 13 + [1.0])
    metric = share(passed, items, BootstrapConfig(1000))
    assert metric.value == 0.975 and metric.low < 0.95 and metric.high == 1.0
