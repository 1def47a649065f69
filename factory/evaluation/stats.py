"""Pure functions from per-example sums to figures with n and interval. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import spearmanr

FloatArray = np.ndarray
MIN_RELATED = 8  # examples, 28 pairs


@dataclass(frozen=True)
class MetricValue:
    """A measured value, its 95 % bootstrap interval and its n (completion tokens, unless the metric says otherwise)."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """``0.412 [0.380, 0.440]``."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass(frozen=True)
class Sums:
    """What one model did on E held-out examples, beside the teacher: sums over each example's completion tokens."""

    tokens: FloatArray  # (E,)
    kl: FloatArray  # (E,) nats
    agree: FloatArray  # (E,) positions where both have the same most likely token
    top5: FloatArray  # (E,) share of the teacher's five most likely tokens among the model's five
    correct: FloatArray  # (E,) positions where the model's most likely token is the completion's
    teacher_correct: FloatArray  # (E,)
    nll: FloatArray  # (E,) nats of the completion under the model
    teacher_nll: FloatArray  # (E,)
    entropy: FloatArray  # (E,) nats, of the model's distributions
    teacher_entropy: FloatArray  # (E,)
    embeddings: FloatArray  # (E, H) mean-pooled final states of prompt and completion


def ratio(numerator: FloatArray, denominator: FloatArray, *, resamples: int, seed: int) -> MetricValue:
    """``ratio(sums.kl, sums.tokens, resamples=1000, seed=0)``: sum over sum, percentile bootstrap over examples.

    Examples are resampled, not tokens: tokens of one completion are not independent. n is the denominator's sum. An empty
    or zero denominator gives NaN.
    """
    n = int(denominator.sum()) if len(denominator) else 0
    if n == 0:
        return MetricValue(float("nan"), float("nan"), float("nan"), 0)
    drawn = draws(len(numerator), resamples, seed)
    below = denominator[drawn].sum(axis=1)
    values = numerator[drawn].sum(axis=1)[below > 0] / below[below > 0]
    low, high = np.percentile(values, [2.5, 97.5])
    return MetricValue(float(numerator.sum() / denominator.sum()), float(low), float(high), n)


def paired_difference(a: FloatArray, b: FloatArray, tokens: FloatArray, *, resamples: int, seed: int) -> MetricValue:
    """``paired_difference(own.kl, other.kl, own.tokens, …)``: mean of a - b per token, both on the same examples."""
    return ratio(a - b, tokens, resamples=resamples, seed=seed)


def exponentiated(figure: MetricValue) -> MetricValue:
    """``exponentiated(ratio(sums.nll, sums.tokens, …))``: perplexity."""
    return MetricValue(float(np.exp(figure.value)), float(np.exp(figure.low)), float(np.exp(figure.high)), figure.n)


def relation_alignment(student: FloatArray, teacher: FloatArray, *, resamples: int, seed: int) -> MetricValue:
    """``relation_alignment(sums.embeddings, encoder_embeddings, …)``: Spearman of pairwise cosines; n counts examples.

    (E, Hs) and (E, Ht). The bootstrap resamples examples and leaves out pairs of an example with itself. NaN with fewer
    than ``MIN_RELATED`` examples: the ranks of a few pairs agree by chance.
    """
    n = len(student)
    if n < MIN_RELATED:
        return MetricValue(float("nan"), float("nan"), float("nan"), n)
    ours, theirs = cosines(student), cosines(teacher)
    value = _spearman(ours, theirs, np.arange(n))
    if np.isnan(value):
        return MetricValue(value, value, value, n)
    resampled = [_spearman(ours, theirs, rows) for rows in draws(n, min(resamples, 200), seed)]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return MetricValue(value, float(low), float(high), n)


def cosines(embeddings: FloatArray) -> FloatArray:
    """(E, H) → (E, E)."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    result: FloatArray = unit @ unit.T
    return result


def draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, n) indices drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def _spearman(ours: FloatArray, theirs: FloatArray, rows: np.ndarray) -> float:
    first, second = np.triu_indices(len(rows), k=1)
    pairs = rows[first] != rows[second]
    i, j = rows[first][pairs], rows[second][pairs]
    if len(i) < 2 or min(np.ptp(ours[i, j]), np.ptp(theirs[i, j])) < 1e-12:  # all alike: nothing has a rank
        return float("nan")
    return float(spearmanr(ours[i, j], theirs[i, j]).statistic)


def summarise(sums: Sums, encoder: FloatArray | None, *, resamples: int, seed: int) -> dict[str, MetricValue]:
    """``summarise(sums, embeddings, resamples=1000, seed=0)["kl"].value``: every fidelity figure of one model."""

    def per_token(numerator: FloatArray) -> MetricValue:
        return ratio(numerator, sums.tokens, resamples=resamples, seed=seed)

    figures = {
        "kl": per_token(sums.kl),
        "top1_agreement": per_token(sums.agree),
        "top5_overlap": per_token(sums.top5),
        "student_perplexity": exponentiated(per_token(sums.nll)),
        "teacher_perplexity": exponentiated(per_token(sums.teacher_nll)),
        "entropy_gap": per_token(sums.entropy - sums.teacher_entropy),
        "accuracy_retained": ratio(sums.correct, sums.teacher_correct, resamples=resamples, seed=seed),
    }
    if encoder is not None:
        figures["relation_alignment"] = relation_alignment(sums.embeddings, encoder, resamples=resamples, seed=seed)
    return figures


def concatenate(parts: Sequence[Sums]) -> Sums:
    """One ``Sums`` of several batches, in order."""
    names = Sums.__dataclass_fields__
    return Sums(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
