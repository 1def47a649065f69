"""How sure a student is: signals by hand, calibration against scikit-learn's own, thresholds, metrics with known values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import RegistryError
from factory.evaluation.confidence import (
    FIRST,
    SIGNALS,
    Calibration,
    Confidence,
    TokenSignal,
    answer_signals,
    auroc,
    calibration_error,
    fit_confidence,
    risk_coverage,
    token_signal,
)
from factory.evaluation.stats import BootstrapConfig

BOOTSTRAP = BootstrapConfig(resamples=200)


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def answers(count: int, seed: int = 0) -> tuple[list[list[TokenSignal]], list[bool], list[str]]:
    """Right ones have a low entropy; some of either kind overlap."""
    rng = np.random.default_rng(seed)
    right = rng.random(count) < 0.7
    found = []
    for is_right in right:
        nats = rng.gamma(2, 0.1 if is_right else 0.3, size=int(rng.integers(3, 20)))
        found.append([TokenSignal(float(one), math.exp(-float(one)), float(one)) for one in nats])
    return found, right.tolist(), [f"topic {i // 2}" for i in range(count)]


# ------------------------------------------------------------------------------------------------------------- signals


def test_a_token_s_signal_by_hand() -> None:
    found = token_signal(math.log(0.5), logs(0.25, 0.5))  # in any order
    assert found.nats == pytest.approx(math.log(2)) and found.margin == pytest.approx(0.25)
    assert found.entropy == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))  # what is left is a bucket of its own


def test_a_token_that_is_not_among_the_likeliest_has_the_nats_of_its_own() -> None:
    assert token_signal(math.log(0.01), logs(0.9, 0.05)).nats == pytest.approx(-math.log(0.01))


def test_a_certain_token_has_no_entropy() -> None:
    found = token_signal(0.0, [0.0])
    assert (found.nats, found.margin, found.entropy) == (0.0, 1.0, 0.0)


def test_only_the_five_likeliest_count() -> None:
    six = logs(0.3, 0.2, 0.15, 0.1, 0.1, 0.05)
    assert token_signal(six[0], six) == token_signal(six[0], six[:5])


def test_an_answer_s_signals_by_hand() -> None:
    tokens = [
        TokenSignal(nats, margin, entropy) for nats, margin, entropy in ((0.1, 0.9, 0.2), (1.1, 0.1, 1.0), (0.3, 0.5, 0.6))
    ]
    assert answer_signals(tokens) == pytest.approx([0.5, 1.1, 0.3 + 0.8 * 0.8, 0.5, 0.1, 0.6, math.log(3)])


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_the_quantile_is_numpy_s(nats: list[float]) -> None:
    found = answer_signals([TokenSignal(one, 0.5, 1.0) for one in nats])
    assert found[SIGNALS.index("nats, 0.9 quantile")] == pytest.approx(float(np.quantile(nats, 0.9)), abs=1e-9)
    assert len(found) == len(SIGNALS)


# --------------------------------------------------------------------------------------------------------- calibration


def test_confidence_tells_right_from_wrong_on_answers_it_was_not_fitted_on_and_is_calibrated() -> None:
    confidence = fit_confidence(*answers(300), margin=0.2)
    assert confidence is not None
    tokens, right, clusters = answers(400, seed=1)
    sure = np.array([confidence.of_answer(one) for one in tokens])
    assert auroc(sure, np.array(right), clusters, BOOTSTRAP).low > 0.8
    assert calibration_error(sure, np.array(right), clusters, BOOTSTRAP).value < 0.08
    first = np.array([confidence.of_beginning(one) for one in tokens])
    assert 0.5 < auroc(first, np.array(right), clusters, BOOTSTRAP).value < 1


def test_a_beginning_is_the_first_tokens_alone() -> None:
    confidence = fit_confidence(*answers(100), margin=0.2)
    assert confidence is not None
    start, sure, unsure = [TokenSignal(0.3, 0.7, 0.5)] * FIRST, TokenSignal(0.0, 1.0, 0.0), TokenSignal(9.0, 0.0, 3.0)
    assert confidence.of_beginning([*start, sure]) == confidence.of_beginning([*start, *[unsure] * 9])
    assert confidence.of_answer([*start, sure]) != confidence.of_answer([*start, *[unsure] * 9])


def test_what_is_held_out_was_not_fitted_on() -> None:
    """Signals that say nothing: on the answers that they were fitted on they would seem to."""
    rng = np.random.default_rng(3)
    tokens = [[TokenSignal(*map(float, rng.random(3))) for _ in range(4)] for _ in range(60)]
    right = (rng.random(60) < 0.5).tolist()
    confidence = fit_confidence(tokens, right, [str(i) for i in range(60)], 0.2)
    assert confidence is not None
    fitted = np.array([confidence.of_answer(one) for one in tokens])
    held_out, of = (np.array(column) for column in zip(*confidence.whole.held_out, strict=True))
    names = [str(i) for i in range(60)]
    assert auroc(held_out, of.astype(bool), names, BOOTSTRAP).value < auroc(fitted, np.array(right), names, BOOTSTRAP).value


@pytest.mark.parametrize("change", ["few", "all right", "few wrong", "few clusters", "all wrong ones in one cluster"])
def test_nothing_is_fitted_where_nothing_can_be_told(change: str) -> None:
    tokens, right, clusters = answers(60)
    if change == "few":
        tokens, right, clusters = tokens[:39], right[:39], clusters[:39]
    elif change == "all wrong ones in one cluster":
        right = [i >= 10 for i in range(60)]
        clusters = ["wrong"] * 10 + [str(i) for i in range(50)]
    elif change == "few clusters":
        clusters = ["a", "b", "c", "d"] * 15
    else:
        right = [True] * 60 if change == "all right" else [False] * 4 + [True] * 56
    assert fit_confidence(tokens, right, clusters, 0.2) is None


def test_a_confidence_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    confidence = fit_confidence(*answers(80), margin=0.3)
    assert confidence is not None and Confidence.load(tmp_path) is None
    confidence.save(tmp_path)
    assert Confidence.load(tmp_path) == confidence


@pytest.mark.parametrize("damage", ["{", '{"signals": []}', "other signals", "no weights", "weights of another length"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    confidence = fit_confidence(*answers(80), margin=0.3)
    assert confidence is not None
    confidence.save(tmp_path)
    path = tmp_path / "confidence.json"
    content = json.loads(path.read_text())
    if damage == "other signals":
        content["signals"][0] = "median nats"
    elif damage == "no weights":
        del content["whole"]["weights"]
    elif damage == "weights of another length":
        content["beginning"]["weights"].append(1.0)
    path.write_text(damage if damage.startswith("{") else json.dumps(content))
    with pytest.raises(RegistryError, match=r"confidence\.json is not a student's confidence .*; build the student again"):
        Confidence.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------- thresholds


def calibration(*held_out: tuple[float, bool]) -> Calibration:
    zeros = (0.0,) * len(SIGNALS)
    return Calibration(zeros, zeros, zeros, 0.0, held_out)


HELD_OUT = ((0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False), (0.4, True), (0.3, True), (0.2, False))


@pytest.mark.parametrize(
    ("keep", "threshold"),
    [
        (1.0, 0.8),  # none of eight wrong
        (0.9, 0.8),  # less than one of eight
        (0.875, 0.6),  # one
        (0.75, 0.3),  # two
        (0.625, 0.2),  # three: all are kept
    ],
)
def test_a_threshold_keeps_as_many_as_it_may_without_more_wrong_ones(keep: float, threshold: float) -> None:
    assert calibration(*HELD_OUT).threshold(keep) == threshold


def test_nothing_is_kept_where_the_surest_answer_is_wrong_and_none_may_be() -> None:
    assert calibration((0.9, False), (0.5, True)).threshold(1.0) > 1


def test_equal_confidences_are_kept_or_not_together() -> None:
    found = calibration((0.9, True), (0.5, True), (0.5, False), (0.4, True)).threshold(1.0)
    assert found == 0.9


# ------------------------------------------------------------------------------------------------------------- metrics


def test_auroc_by_hand() -> None:
    sure, right = np.array([0.9, 0.8, 0.7, 0.3]), np.array([True, False, True, False])
    assert auroc(sure, right, list("abcd"), BOOTSTRAP).value == pytest.approx(3 / 4)
    assert auroc(np.full(4, 0.5), right, list("abcd"), BOOTSTRAP).value == 0.5
    assert math.isnan(auroc(sure, np.ones(4, dtype=bool), list("abcd"), BOOTSTRAP).value)


def test_auroc_is_scikit_learn_s() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    sure, right = rng.random(200).round(1), rng.random(200) < 0.6
    names = [str(i) for i in range(200)]
    found = auroc(sure, right, names, BOOTSTRAP)
    assert found.value == pytest.approx(roc_auc_score(right, sure)) and found.low < found.value < found.high
    assert (found.n, found.clusters) == (200, 200)


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    sure, right = np.repeat(rng.random(20), 10), np.repeat(rng.random(20) < 0.6, 10)
    alone = auroc(sure, right, [str(i) for i in range(200)], BOOTSTRAP)
    together = auroc(sure, right, [str(i // 10) for i in range(200)], BOOTSTRAP)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_a_calibrated_confidence_has_no_error_and_one_that_is_off_by_a_fifth_has_that() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.2, 0.8, 4000)
    right, names = rng.random(4000) < truth, [str(i) for i in range(4000)]
    assert calibration_error(truth, right, names, BOOTSTRAP).value < 0.02
    assert calibration_error(truth + 0.2, right, names, BOOTSTRAP).value == pytest.approx(0.2, abs=0.03)


def test_few_answers_do_not_look_miscalibrated_on_average() -> None:
    """Without the correction the mean over such samples is 0.15."""
    rng, found = np.random.default_rng(2), []
    for _ in range(200):
        truth = rng.uniform(0.3, 0.9, 50)
        names = [str(i) for i in range(50)]
        found.append(calibration_error(truth, rng.random(50) < truth, names, BootstrapConfig(resamples=1)).value)
    assert np.mean(found) < 0.09
    assert math.isnan(calibration_error(np.ones(9), np.ones(9, dtype=bool), [str(i) for i in range(9)], BOOTSTRAP).value)


def test_risk_and_coverage_by_hand() -> None:
    sure, right = np.array([0.1, 0.9, 0.5, 0.7]), np.array([False, True, True, False])
    assert risk_coverage(sure, right, points=4) == [(0.25, 0.0), (0.5, 0.5), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)]
