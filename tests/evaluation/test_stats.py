"""Figures from sums: each against a value worked out by hand, with an interval around it, and NaN where nothing is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.evaluation.stats import (
    MIN_RELATED,
    MetricValue,
    Sums,
    _spearman,
    concatenate,
    cosines,
    draws,
    exponentiated,
    paired_difference,
    ratio,
    relation_alignment,
    summarise,
)

TOKENS = np.array([2.0, 4.0, 4.0])


def sums(count: int = 3, seed: int = 0) -> Sums:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 9, count).astype(float)
    columns = {name: rng.random(count) * tokens for name in Sums.__dataclass_fields__ if name != "embeddings"}
    return Sums(**(columns | {"tokens": tokens, "embeddings": rng.normal(size=(count, 4))}))


def test_a_ratio_is_sum_over_sum_and_n_the_denominator_s() -> None:
    figure = ratio(np.array([1.0, 1.0, 3.0]), TOKENS, resamples=200, seed=0)
    assert (figure.value, figure.n) == (0.5, 10)  # 5 / 10, not the mean of 0.5, 0.25 and 0.75 by accident
    assert ratio(np.array([2.0, 1.0, 0.0]), TOKENS, resamples=200, seed=0).value == pytest.approx(0.3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 60)), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_the_interval_holds_the_values_of_resamples_around_the_value(rows: list[tuple[float, int]], seed: int) -> None:
    numerator, denominator = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    figure = ratio(numerator, denominator, resamples=300, seed=seed)
    each = numerator / denominator
    assert each.min() - 1e-9 <= figure.low <= figure.high <= each.max() + 1e-9
    if len(rows) == 1:
        assert figure.low == pytest.approx(figure.value) == figure.high


def test_the_interval_contains_the_value_and_narrows_with_more_examples() -> None:
    widths = []
    for count in (20, 2000):
        one = sums(count)
        figure = ratio(one.kl, one.tokens, resamples=500, seed=0)
        assert figure.low < figure.value < figure.high
        widths.append(figure.high - figure.low)
    assert widths[1] < widths[0] / 5


def test_the_interval_is_the_bootstrap_s_over_examples() -> None:
    """Three equal examples of many tokens say no more than three examples."""
    numerator, denominator = np.array([0.0, 50.0, 100.0]), np.array([100.0] * 3)
    figure = ratio(numerator, denominator, resamples=4000, seed=0)
    assert figure.low == pytest.approx(0.0, abs=0.17) and figure.high == pytest.approx(1.0, abs=0.17)


@pytest.mark.parametrize("empty", [np.array([]), np.array([0.0, 0.0])], ids=["no examples", "no tokens"])
def test_nothing_measured_is_nan_and_zero(empty: np.ndarray) -> None:
    figure = ratio(empty, empty, resamples=100, seed=0)
    assert math.isnan(figure.value) and math.isnan(figure.low) and math.isnan(figure.high) and figure.n == 0


def test_a_nan_in_the_sums_is_a_nan_in_the_figure() -> None:
    assert math.isnan(ratio(np.array([1.0, math.nan, 1.0]), TOKENS, resamples=100, seed=0).value)


def test_resamples_without_a_single_token_are_left_out() -> None:
    figure = ratio(np.array([0.0, 2.0]), np.array([0.0, 4.0]), resamples=100, seed=0)
    assert (figure.value, figure.low, figure.high, figure.n) == (0.5, 0.5, 0.5, 4)


def test_the_same_seed_gives_the_same_figures_and_another_another_interval() -> None:
    one, encoder = sums(30), np.random.default_rng(9).normal(size=(30, 6))
    first = summarise(one, encoder, resamples=100, seed=1)
    assert first == summarise(one, encoder, resamples=100, seed=1)
    other = summarise(one, encoder, resamples=100, seed=2)
    assert first["kl"].value == other["kl"].value and first["kl"].low != other["kl"].low


def test_a_paired_difference_is_of_the_same_examples() -> None:
    rng = np.random.default_rng(0)
    tokens = np.full(50, 10.0)
    b = rng.random(50) * 100  # examples differ widely, the two models by a constant
    figure = paired_difference(b + 2, b, tokens, resamples=300, seed=0)
    assert figure.value == pytest.approx(0.2) and figure.high - figure.low < 1e-9
    assert paired_difference(b, b + 2, tokens, resamples=300, seed=0).value == pytest.approx(-0.2)


def test_perplexity_is_the_exponential_of_value_and_interval() -> None:
    figure = exponentiated(MetricValue(math.log(4), math.log(2), math.log(8), 7))
    assert (figure.value, figure.low, figure.high, figure.n) == pytest.approx((4, 2, 8, 7))
    assert math.isnan(exponentiated(MetricValue(math.nan, math.nan, math.nan, 0)).value)


def test_every_figure_of_a_summary_has_its_hand_computed_value() -> None:
    one = Sums(
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
        embeddings=np.eye(3),
    )
    figures = summarise(one, None, resamples=100, seed=0)
    values = {name: figure.value for name, figure in figures.items()}
    assert values == pytest.approx(
        {
            "kl": 0.6,
            "top1_agreement": 0.8,
            "top5_overlap": 0.7,
            "entropy_gap": 0.5,
            "student_perplexity": 3.0,
            "teacher_perplexity": 2.0,
            "accuracy_retained": 0.5,
        }
    )
    assert {figure.n for name, figure in figures.items() if name != "accuracy_retained"} == {10}
    assert figures["accuracy_retained"].n == 6  # what the teacher had right
    assert figures["kl"].to_dict() == {"value": 0.6, "low": figures["kl"].low, "high": figures["kl"].high, "n": 10}


def test_a_summary_of_one_example_has_figures_and_no_alignment() -> None:
    one = sums(1)
    figures = summarise(one, np.ones((1, 3)), resamples=100, seed=0)
    assert figures["kl"].value == figures["kl"].low == figures["kl"].high == pytest.approx(one.kl[0] / one.tokens[0])
    assert math.isnan(figures["relation_alignment"].value) and figures["relation_alignment"].n == 1


def test_a_summary_of_nothing_is_nan() -> None:
    nothing = Sums(**{name: value[:0] for name, value in vars(sums()).items()})
    figures = summarise(nothing, np.zeros((0, 4)), resamples=100, seed=0)
    assert all(math.isnan(figure.value) and figure.n == 0 for figure in figures.values())


# ---------------------------------------------------------------------------------------------------------- relation


def test_alignment_is_one_for_the_same_geometry_and_minus_one_for_the_reverse_order() -> None:
    embeddings = np.random.default_rng(0).normal(size=(12, 5))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5))).Q
    figure = relation_alignment(embeddings @ rotation * 7, embeddings, resamples=100, seed=0)
    assert (figure.value, figure.low, figure.high, figure.n) == pytest.approx((1, 1, 1, 12))
    # Cosines 0.8, 0.6 and 0 of three vectors, against three whose order is the reverse.
    student = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    teacher = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    ours, theirs = cosines(student), cosines(teacher)
    assert [ours[0, 1], ours[1, 2], ours[0, 2]] == pytest.approx([0.8, 0.6, 0])
    assert [theirs[0, 1], theirs[1, 2], theirs[0, 2]] == pytest.approx([0, 0.6, 0.8])
    three = np.arange(3)
    repeated = np.concatenate([three, three, three])  # pairs of an example with itself are left out
    assert [_spearman(ours, theirs, rows) for rows in (three, repeated)] == pytest.approx([-1, -1])


def test_alignment_s_interval_contains_its_value_and_widths_may_differ() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(40, 6))
    student = np.concatenate([teacher + rng.normal(size=(40, 6)), np.zeros((40, 2))], axis=1)
    figure = relation_alignment(student, teacher, resamples=200, seed=0)
    assert 0.2 < figure.low < figure.value < figure.high < 1


@pytest.mark.parametrize("count", [0, 1, 3, MIN_RELATED - 1])
def test_few_examples_have_no_alignment_for_three_alike_would_have_a_perfect_one(count: int) -> None:
    embeddings = np.random.default_rng(0).normal(size=(count, 4))
    figure = relation_alignment(embeddings, embeddings, resamples=100, seed=0)
    assert math.isnan(figure.value) and math.isnan(figure.low) and figure.n == count


def test_embeddings_all_alike_have_no_alignment_and_give_no_warning() -> None:
    figure = relation_alignment(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)), resamples=100, seed=0)
    assert math.isnan(figure.value) and figure.n == 9


def test_the_fewest_examples_that_have_an_alignment_have_an_interval_too() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, MIN_RELATED, 4))
    figure = relation_alignment(first, second, resamples=100, seed=0)
    assert -1 <= figure.low <= figure.value <= figure.high <= 1


def test_a_zero_vector_has_cosine_zero() -> None:
    np.testing.assert_allclose(cosines(np.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0, 1]])


def test_draws_are_rows_of_indices_with_replacement() -> None:
    drawn = draws(5, 300, 0)
    assert drawn.shape == (300, 5) and set(drawn.ravel()) == set(range(5))
    assert any(len(set(row)) < 5 for row in drawn.tolist())


def test_parts_are_put_together_in_order() -> None:
    first, second = sums(2, seed=1), sums(3, seed=2)
    whole = concatenate([first, second])
    np.testing.assert_array_equal(whole.kl, [*first.kl, *second.kl])
    assert whole.embeddings.shape == (5, 4)


def test_a_figure_is_written_with_its_interval() -> None:
    assert str(MetricValue(0.4123, 0.38, 12.5, 5120)) == "0.412 [0.380, 12.500]"
