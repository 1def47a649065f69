"""Methods compared on one test: seeds averaged within a row, differences paired, p-values corrected. No torch.

    compared = compare_methods({"forward KL": [seed_0, seed_1], "SFT": [other_0, other_1]}, bootstrap)
    compared["SFT"]["kl"].difference, compared["SFT"]["kl"].p_holm

An interval is about other test prompts of the same kind, with these seeds: what seeds change is shown beside it, run by run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from factory.errors import TrainingError
from factory.evaluation.metrics import metric_named
from factory.evaluation.stats import (
    BootstrapConfig,
    FloatArray,
    by_cluster,
    holm,
    paired_difference,
    paired_p_value,
    ratio,
    share,
    share_difference,
)
from factory.registry.manifest import MetricValue


@dataclass(frozen=True)
class Scores:
    """One metric of one model on R test rows: the sum of ``over`` divided by that of ``under``, as KL by tokens."""

    over: FloatArray  # (R,)
    under: FloatArray  # (R,)
    clusters: tuple[str, ...]  # (R,)

    @property
    def value(self) -> float:
        """NaN where nothing was measured."""
        total = float(self.under.sum())
        return float(self.over.sum()) / total if total else math.nan

    def by_cluster(self) -> tuple[FloatArray, FloatArray]:
        """``over, under = scores.by_cluster()``: sums over each cluster's rows, (C,) each."""
        return by_cluster(self.over, self.clusters), by_cluster(self.under, self.clusters)


@dataclass(frozen=True)
class Compared:
    """One metric of one method over all of its seeds, and beside the first method."""

    value: MetricValue
    seeds: tuple[float, ...]  # of each run
    difference: MetricValue | None = None  # this method minus the first, paired; None for the first itself
    p: float | None = None  # two-sided, of no difference
    p_holm: float | None = None  # the same, corrected for all methods that are compared with the first


def best_rate(validation: Mapping[float, float]) -> float:
    """``best_rate({2e-4: 0.71, 5e-4: 0.66, 1e-3: nan}) == 5e-4``: the learning rate with the lowest KL, the lower one of two.

    Raises: TrainingError where every training diverged.
    """
    finite = {rate: kl for rate, kl in sorted(validation.items()) if math.isfinite(kl)}
    if not finite:
        raise TrainingError(f"training diverged at every learning rate ({', '.join(map(str, validation))}); try lower ones")
    return min(finite, key=lambda rate: finite[rate])


def compare_methods(
    runs: Mapping[str, Sequence[Mapping[str, Scores]]], bootstrap: BootstrapConfig
) -> dict[str, dict[str, Compared]]:
    """``compare_methods({"forward KL": [seed_0, seed_1], "SFT": [...]}, bootstrap)["SFT"]["kl"]``: every method and metric.

    ``runs`` are the scores of each method's seeds by metric, all on the same test rows. The first method is what the others are
    compared with; Holm's correction is over these comparisons, for each metric by itself.
    """
    first, *others = runs
    compared: dict[str, dict[str, Compared]] = {method: {} for method in runs}
    for metric in runs[first][0]:
        seeds = {method: tuple(run[metric].value for run in runs[method]) for method in runs}
        pooled = {method: pool([run[metric] for run in runs[method]]) for method in runs}
        values = {method: metric_value(metric, scores, bootstrap) for method, scores in pooled.items()}
        p_values = [_p_value(pooled[method], pooled[first], bootstrap) for method in others]
        compared[first][metric] = Compared(values[first], seeds[first])
        for method, p, p_holm in zip(others, p_values, holm(p_values), strict=True):
            difference = _difference(metric, pooled[method], pooled[first], bootstrap)
            compared[method][metric] = Compared(values[method], seeds[method], difference, p, p_holm)
    return compared


def pool(runs: Sequence[Scores]) -> Scores:
    """``pool([seed_0, seed_1])``: the mean over seeds within each row."""
    return Scores(np.mean([run.over for run in runs], axis=0), np.mean([run.under for run in runs], axis=0), runs[0].clusters)


def metric_value(metric: str, scores: Scores, bootstrap: BootstrapConfig) -> MetricValue:
    """``metric_value("kl", scores, bootstrap)``: clusters are resampled."""
    over, under = scores.by_cluster()
    return (share if metric_named(metric).items else ratio)(over, under, bootstrap)


def _difference(metric: str, own: Scores, first: Scores, bootstrap: BootstrapConfig) -> MetricValue:
    (over, under), (first_over, _) = own.by_cluster(), first.by_cluster()
    if metric_named(metric).items:
        return share_difference(over, first_over, under)
    return paired_difference(over, first_over, under, bootstrap)


def _p_value(own: Scores, first: Scores, bootstrap: BootstrapConfig) -> float:
    (over, under), (first_over, _) = own.by_cluster(), first.by_cluster()
    return paired_p_value(over, first_over, under, bootstrap)
