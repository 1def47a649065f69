"""Metrics with 95 % bootstrap intervals from sums over examples. No torch.

    bootstrap = BootstrapConfig(resamples=1000, seed=0)
    ratio(sums.kl, sums.tokens, bootstrap).value  # nats/token

Examples are resampled, not tokens: the tokens of one completion are not independent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from factory.registry.manifest import MetricValue

FloatArray = np.ndarray
NOT_MEASURED = MetricValue(np.nan, np.nan, np.nan, 0)
MIN_ALIGNED = 8  # examples, 28 pairs: the ranks of fewer pairs agree by chance
MAX_ALIGNMENT_RESAMPLES = 200  # each ranks every pair anew


@dataclass(frozen=True)
class BootstrapConfig:
    """``BootstrapConfig(settings.evaluate.bootstrap, seed)``: how the 95 % intervals are computed."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class ExampleSums:
    """What one model did on E held-out examples, summed over each example's completion tokens."""

    tokens: FloatArray  # (E,)
    kl: FloatArray  # (E,) KL(teacher ‖ model), nats
    agree: FloatArray  # (E,) positions where teacher and model have the same top-1 token
    top5: FloatArray  # (E,) share of the teacher's top-5 tokens among the model's top 5, summed over positions
    correct: FloatArray  # (E,) positions where the model's top-1 token is the completion's
    teacher_correct: FloatArray  # (E,) the same of the teacher
    nll: FloatArray  # (E,) nats of the completion under the model
    teacher_nll: FloatArray  # (E,) nats of the completion under the teacher
    entropy: FloatArray  # (E,) of the model's distributions, nats
    teacher_entropy: FloatArray  # (E,) of the teacher's distributions, nats
    embeddings: FloatArray  # (E, H) final hidden states, mean over prompt and completion

    def select(self, rows: np.ndarray) -> ExampleSums:
        """``sums.select(np.argsort(order))``: of these examples, in this order."""
        return ExampleSums(**{name: column[rows] for name, column in vars(self).items()})


def ratio(numerator: FloatArray, denominator: FloatArray, bootstrap: BootstrapConfig) -> MetricValue:
    """``ratio(sums.kl, sums.tokens, bootstrap)``: sum over sum, (E,) and (E,).

    n is the sum of the denominator. NaN where that is 0.
    """
    n = _total(denominator)
    if n == 0:
        return NOT_MEASURED
    return _measured((numerator, denominator), _sum_over_sum, n, bootstrap)


def mean(values: FloatArray, bootstrap: BootstrapConfig) -> MetricValue:
    """``mean(passed, bootstrap)``: of (E,) values; n counts them."""
    return ratio(values, np.ones(len(values)), bootstrap)


def paired_difference(a: FloatArray, b: FloatArray, tokens: FloatArray, bootstrap: BootstrapConfig) -> MetricValue:
    """``paired_difference(sft.kl, own.kl, own.tokens, bootstrap)``: mean of a - b per token, both on the same examples."""
    return ratio(a - b, tokens, bootstrap)


def paired_ratio_difference(
    numerator_a: FloatArray,
    denominator_a: FloatArray,
    numerator_b: FloatArray,
    denominator_b: FloatArray,
    bootstrap: BootstrapConfig,
) -> MetricValue:
    """``paired_ratio_difference(a.correct, a.teacher_correct, b.correct, b.teacher_correct, bootstrap)``: ratio a - ratio b.

    Both on the same examples, all (E,). n is the sum of the first denominator. NaN where either denominator is 0.
    """

    def difference(a: FloatArray, of_a: FloatArray, b: FloatArray, of_b: FloatArray, axis: int) -> FloatArray:
        return np.asarray(_sum_over_sum(a, of_a, axis) - _sum_over_sum(b, of_b, axis))

    n = _total(denominator_a)
    if n == 0 or _total(denominator_b) == 0:
        return NOT_MEASURED
    return _measured((numerator_a, denominator_a, numerator_b, denominator_b), difference, n, bootstrap)


def unpaired_quotient(
    a: tuple[FloatArray, FloatArray], b: tuple[FloatArray, FloatArray], bootstrap: BootstrapConfig
) -> MetricValue:
    """``unpaired_quotient((bits, bytes_), (general_bits, general_bytes), bootstrap)``: ratio of ``a`` over ratio of ``b``.

    Each is a pair of numerator and denominator, (Ea,) and (Eb,); the two samples are resampled independently. n is the sum
    of the first denominator. NaN where either is 0.
    """

    def quotient(i: np.ndarray, j: np.ndarray, axis: int) -> FloatArray:
        return np.asarray(_sum_over_sum(a[0][i], a[1][i], axis) / _sum_over_sum(b[0][j], b[1][j], axis))

    n = _total(a[1])
    if n == 0 or _total(b[1]) == 0:
        return NOT_MEASURED
    return _measured((np.arange(len(a[0])), np.arange(len(b[0]))), quotient, n, bootstrap, paired=False)


def exponentiate(metric: MetricValue) -> MetricValue:
    """``exponentiate(ratio(sums.nll, sums.tokens, bootstrap))``: perplexity."""
    return MetricValue(float(np.exp(metric.value)), float(np.exp(metric.low)), float(np.exp(metric.high)), metric.n)


def relation_alignment(student: FloatArray, teacher: FloatArray, bootstrap: BootstrapConfig) -> MetricValue:
    """``relation_alignment(sums.embeddings, encoder_embeddings, bootstrap)``: Spearman's rho of pairwise cosines.

    (E, Hs) and (E, Ht); n counts examples. A resample leaves out pairs of an example with itself. NaN with fewer than
    ``MIN_ALIGNED`` examples, or where all pairs are equally similar.
    """
    n = len(student)
    if n < MIN_ALIGNED:
        return MetricValue(np.nan, np.nan, np.nan, n)
    ours, theirs = cosines(student), cosines(teacher)
    fewer = BootstrapConfig(min(bootstrap.resamples, MAX_ALIGNMENT_RESAMPLES), bootstrap.seed)
    return _measured((np.arange(n),), lambda rows: _spearman(ours, theirs, rows), n, fewer, vectorized=False)


def cosines(embeddings: FloatArray) -> FloatArray:
    """``cosines(embeddings)``: (E, H) → (E, E); a zero vector has cosine 0 with all."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    return np.asarray(unit @ unit.T)


def summarize(sums: ExampleSums, encoder_embeddings: FloatArray | None, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """``summarize(sums, None, bootstrap)["kl"].value``: every fidelity metric of one model.

    ``relation_alignment`` is among them where ``encoder_embeddings`` (E, D) of the same examples are given.
    """
    metrics = {
        "kl": ratio(sums.kl, sums.tokens, bootstrap),
        "top1_agreement": ratio(sums.agree, sums.tokens, bootstrap),
        "top5_overlap": ratio(sums.top5, sums.tokens, bootstrap),
        "student_perplexity": exponentiate(ratio(sums.nll, sums.tokens, bootstrap)),
        "teacher_perplexity": exponentiate(ratio(sums.teacher_nll, sums.tokens, bootstrap)),
        "entropy_gap": paired_difference(sums.entropy, sums.teacher_entropy, sums.tokens, bootstrap),
        "accuracy_retained": ratio(sums.correct, sums.teacher_correct, bootstrap),
    }
    if encoder_embeddings is not None:
        metrics["relation_alignment"] = relation_alignment(sums.embeddings, encoder_embeddings, bootstrap)
    return metrics


def concatenate(parts: Sequence[ExampleSums]) -> ExampleSums:
    """``concatenate([domain_sums, general_sums])``: the examples of all parts, in order."""
    names = ExampleSums.__dataclass_fields__
    return ExampleSums(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


# ----------------------------------------------------------------------------------------------------------- bootstrap


def _measured(
    data: Sequence[FloatArray],
    statistic: Callable[..., Any],
    n: int,
    bootstrap: BootstrapConfig,
    *,
    paired: bool = True,
    vectorized: bool = True,
) -> MetricValue:
    """The statistic of ``data`` with its percentile interval; resamples in which it is undefined are left out."""
    value = float(statistic(*data, axis=-1) if vectorized else statistic(*data))
    if not np.isfinite(value):
        return MetricValue(value, value, value, n)
    data = [np.repeat(sample, 2) if len(sample) == 1 else sample for sample in data]  # scipy refuses a sample of one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of an undefined resample
        found = stats.bootstrap(
            data,
            statistic,
            n_resamples=bootstrap.resamples,
            method="percentile",
            paired=paired and len(data) > 1,
            vectorized=vectorized,
            rng=np.random.default_rng(bootstrap.seed),
        )
    resampled = found.bootstrap_distribution
    low, high = np.percentile(resampled[~np.isnan(resampled)], [2.5, 97.5])
    return MetricValue(value, float(low), float(high), n)


def _sum_over_sum(numerator: FloatArray, denominator: FloatArray, axis: int) -> FloatArray:
    """(..., E) and (..., E) → (...,); NaN where nothing was counted."""
    total = denominator.sum(axis=axis)
    return np.asarray(numerator.sum(axis=axis) / np.where(total > 0, total, np.nan))


def _total(denominator: FloatArray) -> int:
    return int(denominator.sum()) if len(denominator) else 0


def _spearman(ours: FloatArray, theirs: FloatArray, rows: np.ndarray) -> float:
    """Of the cosines (E, E) between the examples ``rows``; NaN where all are alike, since nothing has a rank then."""
    first, second = np.triu_indices(len(rows), k=1)
    differ = rows[first] != rows[second]
    i, j = rows[first][differ], rows[second][differ]
    if len(i) < 2 or min(np.ptp(ours[i, j]), np.ptp(theirs[i, j])) < 1e-12:
        return float("nan")
    return float(stats.spearmanr(ours[i, j], theirs[i, j]).statistic)
