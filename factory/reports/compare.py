"""Versions side by side: a row per metric, and which version is the best of a row, if they can be told apart.

    console.print(compare_table([registry.resolve("healthcare-small"), registry.resolve("legal-small")], teacher=True))

The best of a row is starred; where it cannot be told from others, all of them are marked as tied instead. Versions that
were measured on the same held-out examples are compared by a paired bootstrap, others by whether their intervals overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from factory.errors import RegistryError
from factory.evaluation.metrics import Metric
from factory.registry.versions import Version
from factory.reports.format import DASH, format_metric
from factory.reports.view import (
    declared_order,
    headline_keys,
    measurements,
    metric_json,
    teacher_measurements,
    view_of,
)

if TYPE_CHECKING:
    from rich.table import Table

    from factory.registry.manifest import PerExample
    from factory.reports.view import Measured

BEST = "★"
TIED = "≈"
# Metrics that can be compared example by example: numerator and denominator among the fields of PerExample. Perplexity is
# compared by its logarithm.
PAIRED: dict[str, tuple[str, str]] = {
    "kl": ("kl", "tokens"),
    "top1_agreement": ("agree", "tokens"),
    "sure_agreement": ("sure_agree", "sure"),
    "top5_overlap": ("top5", "tokens"),
    "accuracy_retained": ("correct", "teacher_correct"),
    "student_perplexity": ("nll", "tokens"),
}


@dataclass(frozen=True)
class ComparedRow:
    """One metric of every column; where the best cannot be told from others, ``best`` is empty and ``tied`` has them all."""

    key: str
    metric: Metric
    values: Mapping[str, Measured | None]  # by column
    best: tuple[str, ...]
    tied: tuple[str, ...]
    paired: bool  # a paired bootstrap decided, not the intervals

    def words(self, column: str) -> str:
        """``0.412 [0.380, 0.440]``."""
        return format_metric(self.values[column], self.metric.unit)

    def mark(self, column: str) -> str:
        """The star of the best, the sign of a tie, or nothing."""
        return BEST if column in self.best else TIED if column in self.tied else ""


@dataclass(frozen=True)
class Comparison:
    """Every metric of versions side by side."""

    columns: tuple[str, ...]  # references; a teacher's column is never ranked
    rows: tuple[ComparedRow, ...]
    same_test_set: bool

    @property
    def headline(self) -> list[ComparedRow]:
        """The few rows that matter first."""
        rows = {row.key: row for row in self.rows}
        return [rows[key] for key in headline_keys(rows)]

    @property
    def notes(self) -> list[str]:
        """What the marks mean, and whether the test sets differ."""
        notes, ties = [], [row for row in self.rows if row.tied]
        ways = ["the 95 % interval of their paired difference contains 0"] if any(row.paired for row in ties) else []
        ways += ["their 95 % intervals overlap"] if any(not row.paired for row in ties) else []
        if ways:
            notes.append(f"{TIED} cannot be told from the best of the row: {', or '.join(ways)}")
        if not self.same_test_set:
            notes.append("measured on different held-out prompts: compare only roughly")
        return notes


def compare(versions: Sequence[Version], *, teacher: bool = False) -> Comparison:
    """``compare([one, other], teacher=True)``; a teacher's column comes from the first version that it taught.

    Raises: RegistryError without a version.
    """
    if not versions:
        raise RegistryError("compare needs at least one student or base; `factory list` shows them")
    by_reference = {version.reference: version for version in versions}
    columns = {reference: measurements(version.manifest) for reference, version in by_reference.items()}
    taught = _first_taught(versions) if teacher else []
    for version in taught:
        name = "teacher" if len(taught) == 1 else f"teacher of {version.reference}"
        columns[name] = teacher_measurements(version.manifest)
    rows = []
    for key, metric in declared_order(columns.values()).items():
        values = {name: column.get(key) for name, column in columns.items()}
        own = {name: value for name in by_reference if (value := values[name]) is not None and isfinite(_value(value))}
        sums = _same_examples(key, [by_reference[name] for name in own])
        best, tied = rank(own, metric.better, sums)
        paired = metric.better is not None and bool(sums) and len(own) > 1
        rows.append(ComparedRow(key, metric, values, tuple(best), tuple(tied), paired))
    test_sets = {version.manifest.dataset.fingerprint for version in versions}
    return Comparison(tuple(columns), tuple(rows), len(test_sets) == 1)


def compare_json(versions: Sequence[Version], *, teacher: bool = False) -> dict[str, Any]:
    """``compare_json(versions, teacher=True)`` → {"columns", "rows", "same_test_set"}: every metric.

    A row is {"key", "label", "better", "unit", "values": {column: metric or None}, "best", "tied", "paired"}.
    """
    found = compare(versions, teacher=teacher)
    rows = [
        {
            "key": row.key,
            **asdict(row.metric),
            "values": {name: metric_json(value) for name, value in row.values.items()},
            "best": list(row.best),
            "tied": list(row.tied),
            "paired": row.paired,
        }
        for row in found.rows
    ]
    return {"columns": list(found.columns), "rows": rows, "same_test_set": found.same_test_set}


def compare_table(versions: Sequence[Version], *, teacher: bool = False, all_metrics: bool = False) -> Table:
    """``compare_table(versions, teacher=True)``: a column per version; the dozen rows that matter first, or all of them."""
    from rich.table import Table
    from rich.text import Text

    found = compare(versions, teacher=teacher)
    views = {version.reference: view_of(version.manifest) for version in versions}
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in found.columns:
        table.add_column(Text(name), justify="right", overflow="fold")

    def add(label: str, words: Mapping[str, str]) -> None:
        table.add_row(Text(label), *(Text(words.get(name) or DASH) for name in found.columns))

    add("verdict", {name: view.verdict for name, view in views.items()})
    for row in found.rows if all_metrics else found.headline:
        marked = [(f"{row.words(name)} {row.mark(name)}".rstrip(), name in row.best) for name in found.columns]
        table.add_row(Text(row.metric.label), *(Text(words, "bold green" if best else "") for words, best in marked))
    add("base", {version.reference: version.base or "" for version in versions})
    add("profile", {name: view.profile for name, view in views.items()})
    add("warning", {name: _cut(view.worst_warning) for name, view in views.items()})
    table.caption = "; ".join(found.notes + ([] if all_metrics else ["--all-metrics shows every metric"])) or None
    return table


def _cut(words: str, limit: int = 60) -> str:
    return words if len(words) <= limit else words[:limit].rstrip() + " …"


# ------------------------------------------------------------------------------------------------------------- ranking


@dataclass(frozen=True)
class Ratio:
    """A metric's numerators (E,) and denominators (E,), one per held-out example, and the examples' clusters."""

    numerator: Sequence[float]
    denominator: Sequence[float]
    cluster: Sequence[str]


def rank(known: Mapping[str, Measured], better: str | None, sums: Mapping[str, Ratio]) -> tuple[list[str], list[str]]:
    """``rank({"a": metric, "b": metric}, "low", {})`` → best, tied: columns; one of the two is empty.

    Nobody wins alone, or where all are equal. ``sums`` decides by a paired bootstrap; without it overlapping intervals tie.
    """
    if better is None or len(known) < 2:
        return [], []
    values = {name: _value(metric) for name, metric in known.items()}
    best = min(values.values()) if better == "low" else max(values.values())
    leader = next(name for name, value in values.items() if value == best)
    others = [name for name in known if name != leader]
    if sums:
        tied = [name for name in others if not _differ(sums[name], sums[leader])]
    else:
        tied = [name for name in others if _overlap(known[name], known[leader])]
    if tied:
        return [], [name for name in known if name in (leader, *tied)]
    winners = [name for name, value in values.items() if value == best]
    return (winners if len(winners) < len(known) else []), []


def _differ(ours: Ratio, theirs: Ratio) -> bool:
    """Whether the 95 % interval of the paired difference excludes 0; False where there is nothing to measure it with."""
    import numpy as np

    from factory.evaluation.stats import BootstrapConfig, by_cluster, paired_ratio_difference

    (a, of_a), (b, of_b) = (
        [by_cluster(np.array(column), ratio.cluster) for column in (ratio.numerator, ratio.denominator)]
        for ratio in (ours, theirs)
    )
    difference = paired_ratio_difference(a, of_a, b, of_b, BootstrapConfig())
    return difference.low > 0 or difference.high < 0


def _same_examples(key: str, versions: Sequence[Version]) -> dict[str, Ratio]:
    """What compares this metric example by example; empty unless all versions saw the same examples, at least two."""
    if key not in PAIRED:
        return {}
    numerator, denominator = PAIRED[key]
    parts: dict[str, PerExample] = {
        version.reference: manifest.evaluation.per_example
        for version in versions
        if (manifest := version.manifest).kind == "student"
    }
    if len(parts) < len(versions) or len({(part.key, len(part.tokens)) for part in parts.values()}) != 1:
        return {}
    sums = {name: Ratio(getattr(part, numerator), getattr(part, denominator), part.cluster) for name, part in parts.items()}
    return sums if all(len(set(one.cluster)) > 1 for one in sums.values()) else {}


def _first_taught(versions: Sequence[Version]) -> list[Version]:
    """The first version of each teacher."""
    first: dict[str, Version] = {}
    for version in versions:
        first.setdefault(version.manifest.teacher.sha256, version)
    return list(first.values())


def _value(metric: Measured) -> float:
    return metric if isinstance(metric, int | float) else metric.value


def _overlap(one: Measured, other: Measured) -> bool:
    """Of two intervals, or of one and a plain value; two plain values never overlap."""
    (low, high), (lowest, highest) = _ends(one), _ends(other)
    return (low < high or lowest < highest) and low <= highest and lowest <= high


def _ends(metric: Measured) -> tuple[float, float]:
    return (metric, metric) if isinstance(metric, int | float) else (metric.low, metric.high)
