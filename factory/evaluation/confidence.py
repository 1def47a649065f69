"""How sure a student is of its own answer: calibrated probabilities from what any engine says of its tokens.

    confidence = Confidence.load(version.folder)
    confidence.of_answer(tokens)       # 0.83: the share of answers like this one that are right
    confidence.of_beginning(tokens)    # the same from the first tokens alone, before a stream has to begin
    confidence.threshold(0.95, beginning=False)
    decide(confidence, tokens, 0.95, beginning=False)   # kept, or passed on to the next model

An answer is *right* where the teacher, shown its context, finds it at most ``margin`` nats/token less likely than the answer
of the data set: its own, or a source's. The likelihood of a whole answer favours short ones, so quantiles of its tokens'
uncertainty stand beside the mean (arXiv 2404.10136). Everything here but ``fit_confidence`` is plain arithmetic: an
application without this package computes the same from ``confidence.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from factory.cache import replace_file
from factory.errors import RegistryError, in_one_line
from factory.evaluation.stats import BootstrapConfig, FloatArray, by_cluster, cluster_resamples, percentiles, ratio
from factory.registry.manifest import MetricValue
from factory.registry.plain_json import parse_json

FILE = "confidence.json"
FIRST = 8  # tokens of a beginning
TOP = 5  # log-probabilities of a token that an engine is asked for
QUANTILE = 0.9
KEPT, ESCALATED = "kept", "escalated"
MIN_EXAMPLES = 40  # answers to fit on, and
MIN_EACH = 5  # of the right and the wrong ones among them
FOLDS = 5
BINS = 5  # of equal mass, for the calibration error
SIGNALS = ("mean nats", "highest nats", "nats, 0.9 quantile", "mean margin", "lowest margin", "mean entropy", "log of length")


@dataclass(frozen=True)
class TokenSignal:
    """What an engine says of one token."""

    nats: float  # -log p of the token that was written
    margin: float  # p of the most likely token minus p of the second
    entropy: float  # nats, over the likeliest tokens and all others as one


def token_signal(log_prob: float, top: Sequence[float]) -> TokenSignal:
    """``token_signal(-0.1, [-0.1, -3.0, ...])``: log p of the token, and of the ``TOP`` most likely ones in any order."""
    probabilities = sorted((math.exp(one) for one in top), reverse=True)[:TOP]
    first, second, *_ = (*probabilities, 0.0, 0.0)
    rest = max(0.0, 1.0 - sum(probabilities))
    entropy = -sum(p * math.log(p) for p in (*probabilities, rest) if p > 0)
    return TokenSignal(-log_prob, first - second, entropy)


def answer_signals(tokens: Sequence[TokenSignal]) -> list[float]:
    """``answer_signals(tokens)``: one number for each of ``SIGNALS``; an answer has at least one token."""
    nats, margins = sorted(one.nats for one in tokens), [one.margin for one in tokens]
    place = QUANTILE * (len(nats) - 1)
    below = math.floor(place)
    above = min(below + 1, len(nats) - 1)
    return [
        sum(nats) / len(nats),
        nats[-1],
        nats[below] + (place - below) * (nats[above] - nats[below]),
        sum(margins) / len(margins),
        min(margins),
        sum(one.entropy for one in tokens) / len(tokens),
        math.log(len(tokens)),
    ]


@dataclass(frozen=True)
class Calibration:
    """A logistic regression on standardised signals, and what it said of answers that it was not fitted on."""

    means: tuple[float, ...]  # (S,)
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    held_out: tuple[tuple[float, bool], ...]  # confidence of each answer without its own fold, and whether it is right

    def confidence(self, signals: Sequence[float]) -> float:
        """``calibration.confidence(answer_signals(tokens))``: between 0 and 1."""
        columns = zip(signals, self.means, self.scales, self.weights, strict=True)
        score = self.bias + sum(weight * (one - mean) / scale for one, mean, scale, weight in columns)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, score))))

    def threshold(self, keep: float) -> float:
        """``calibration.threshold(0.95)``: the lowest from which on at most 5 % of all answers are wrong and kept.

        Above 1 where no threshold does: then nothing is kept.
        """
        allowed, wrong, threshold = (1 - keep) * len(self.held_out) + 1e-9, 0, 1.01
        for confidence, alike in groupby(sorted(self.held_out, reverse=True), key=itemgetter(0)):
            wrong += sum(not right for _, right in alike)
            if wrong > allowed:
                break
            threshold = confidence
        return threshold


@dataclass(frozen=True)
class Confidence:
    """A student's, of a whole answer and of its beginning."""

    margin: float  # nats/token
    whole: Calibration
    beginning: Calibration  # of the first ``FIRST`` tokens

    def of_answer(self, tokens: Sequence[TokenSignal]) -> float:
        """``confidence.of_answer(tokens)``: the probability that the answer is right."""
        return self.whole.confidence(answer_signals(tokens))

    def of_beginning(self, tokens: Sequence[TokenSignal]) -> float:
        """``confidence.of_beginning(tokens)``: the same from the first ``FIRST`` tokens, or as many as there are."""
        return self.beginning.confidence(answer_signals(tokens[:FIRST]))

    def threshold(self, keep: float, *, beginning: bool) -> float:
        """``confidence.threshold(0.95, beginning=True)``: below it the next model of a cascade is asked."""
        return (self.beginning if beginning else self.whole).threshold(keep)

    def save(self, folder: Path) -> None:
        """``confidence.save(folder)``: as ``confidence.json``."""
        replace_file(folder / FILE, (json.dumps(self.content(), indent=1) + "\n").encode())

    def content(self) -> dict[str, Any]:
        """``confidence.content()["first"]``: as plain values, with what its numbers are of."""
        return {"signals": SIGNALS, "first": FIRST, "top": TOP, **asdict(self)}

    @classmethod
    def load(cls, folder: Path) -> Confidence | None:
        """``Confidence.load(version.folder)``: None where the version has none. Raises: RegistryError for a malformed file."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            content = parse_json(path.read_bytes())
            if (tuple(content["signals"]), content["first"], content["top"]) != (SIGNALS, FIRST, TOP):
                raise ValueError("it has other signals")
            whole, beginning = (_calibration(content[name]) for name in ("whole", "beginning"))
            return cls(float(content["margin"]), whole, beginning)
        except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise RegistryError(
                f"{path} is not a student's confidence ({in_one_line(error)}); build the student again"
            ) from None


def _calibration(content: dict[str, Any]) -> Calibration:
    means, scales, weights = (tuple(map(float, content[name])) for name in ("means", "scales", "weights"))
    if not len(means) == len(scales) == len(weights) == len(SIGNALS):
        raise ValueError(f"it has not {len(SIGNALS)} signals")
    held_out = tuple((float(confidence), bool(right)) for confidence, right in content["held_out"])
    return Calibration(means, scales, weights, float(content["bias"]), held_out)


# ---------------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class Decision:
    """What became of one step, and what of its answer said so: ``Decision("escalated", "0.41 < 0.62")``."""

    outcome: str  # KEPT or ESCALATED; a server knows others
    judgement: str = ""  # "" where nothing was judged


def decide(confidence: Confidence | None, tokens: Sequence[TokenSignal], keep: float, *, beginning: bool) -> Decision:
    """``decide(Confidence.load(version.folder), tokens, 0.95, beginning=False)``: whether the student is sure of its answer.

    It is not where it cannot tell: it has no ``confidence.json``, or the engine said nothing of its tokens.
    """
    if confidence is None:
        return Decision(ESCALATED, "has no confidence")
    if not tokens:
        return Decision(ESCALATED, "said nothing that can be judged")
    sure = confidence.of_beginning(tokens) if beginning else confidence.of_answer(tokens)
    threshold = confidence.threshold(keep, beginning=beginning)
    if sure >= threshold:
        return Decision(KEPT, f"{sure:.2f} >= {threshold:.2f}")
    return Decision(ESCALATED, f"{sure:.2f} < {threshold:.2f}")


def fit_confidence(
    answers: Sequence[Sequence[TokenSignal]], right: Sequence[bool], clusters: Sequence[str], margin: float
) -> Confidence | None:
    """``fit_confidence(answers, right, clusters, 0.2)``: on answers to held-out prompts that nothing was trained on.

    None with fewer than ``MIN_EXAMPLES`` answers, of right or wrong ones fewer than ``MIN_EACH``, or all of a kind in few
    clusters: nothing can be told then.
    """
    from sklearn.model_selection import GroupKFold

    if len(right) < MIN_EXAMPLES or not MIN_EACH <= sum(right) <= len(right) - MIN_EACH or len(set(clusters)) < FOLDS:
        return None
    labels = np.asarray(right)
    folds = list(GroupKFold(FOLDS).split(labels, groups=clusters))  # a cluster is never on both sides
    if any(labels[rows].all() or not labels[rows].any() for rows, _ in folds):
        return None
    whole = np.array([answer_signals(tokens) for tokens in answers])
    beginning = np.array([answer_signals(tokens[:FIRST]) for tokens in answers])
    return Confidence(margin, *(_fit(signals, labels, folds) for signals in (whole, beginning)))


def _fit(signals: FloatArray, right: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Calibration:
    """(E, S) and (E,) → a calibration."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
    held_out = cross_val_predict(model, signals, right, cv=folds, method="predict_proba")[:, 1]
    scaler, regression = model.fit(signals, right)
    pairs = tuple((round(float(one), 4), bool(is_right)) for one, is_right in zip(held_out, right, strict=True))
    means, scales, weights = (tuple(map(float, one)) for one in (scaler.mean_, scaler.scale_, regression.coef_[0]))
    return Calibration(means, scales, weights, float(regression.intercept_[0]), pairs)


# -------------------------------------------------------------------------------------------------------------- measuring


Statistic = Callable[[FloatArray, np.ndarray], float]


def auroc(confidences: FloatArray, right: np.ndarray, clusters: Sequence[str], bootstrap: BootstrapConfig) -> MetricValue:
    """``auroc(confidences, right, clusters, bootstrap)``: how often a right answer has more confidence than a wrong one.

    (E,) and (E,); NaN where all are right or all wrong. n counts answers.
    """
    return _with_interval(_auroc, confidences, right, clusters, bootstrap)


def _auroc(confidences: FloatArray, right: np.ndarray) -> float:
    """By ranks, ties counted half: Mann and Whitney 1947."""
    count = int(right.sum())
    if count in (0, len(right)):
        return float("nan")
    above = rankdata(confidences)[right].sum() - count * (count + 1) / 2
    return float(above / (count * (len(right) - count)))


def calibration_error(
    confidences: FloatArray, right: np.ndarray, clusters: Sequence[str], bootstrap: BootstrapConfig
) -> MetricValue:
    """``calibration_error(confidences, right, clusters, bootstrap)``: how far confidence is from the share that is right.

    Root mean square over ``BINS`` bins of equal mass; of each bin the variance of its share is subtracted, without which few
    answers always look miscalibrated (Kumar et al. 2019, arXiv 1909.10155, section 5). NaN with fewer than two answers a bin.
    """
    return _with_interval(_calibration_error, confidences, right, clusters, bootstrap)


def _calibration_error(confidences: FloatArray, right: np.ndarray) -> float:
    if len(right) < 2 * BINS:
        return float("nan")
    squares = []
    for rows in np.array_split(np.argsort(confidences, kind="stable"), BINS):
        share = right[rows].mean()
        squares.append(len(rows) * ((confidences[rows].mean() - share) ** 2 - share * (1 - share) / (len(rows) - 1)))
    return math.sqrt(max(0.0, sum(squares) / len(right)))


def _with_interval(
    statistic: Callable[[FloatArray, np.ndarray], float],
    confidences: FloatArray,
    right: np.ndarray,
    clusters: Sequence[str],
    bootstrap: BootstrapConfig,
) -> MetricValue:
    """A percentile interval; clusters are resampled."""
    labels, value = np.asarray(clusters, dtype=str), statistic(confidences, right)
    drawn = cluster_resamples(labels, bootstrap.resamples, bootstrap.seed)
    found = np.array([statistic(confidences[rows], right[rows]) for rows in drawn])
    low, high = percentiles(found, 2.5) if np.isfinite(value) and np.isfinite(found).any() else (value, value)
    return MetricValue(value, low, high, len(right), len(np.unique(labels)))


def risk_coverage(confidences: FloatArray, right: np.ndarray, points: int = 10) -> list[tuple[float, float]]:
    """``risk_coverage(confidences, right)``: (share of answers kept, share of those that is wrong), the surest kept first."""
    order = np.argsort(-confidences, kind="stable")
    wrong = np.cumsum(~right[order])
    counts = [max(1, round(len(right) * share / points)) for share in range(1, points + 1)]
    return [(count / len(right), float(wrong[count - 1]) / count) for count in counts]


def share_right(right: np.ndarray, clusters: Sequence[str], bootstrap: BootstrapConfig) -> MetricValue:
    """``share_right(right, clusters, bootstrap)``: of all answers; n counts them."""
    return ratio(by_cluster(right.astype(float), clusters), by_cluster(np.ones(len(right)), clusters), bootstrap)
