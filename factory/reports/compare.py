"""Versions side by side: a row a figure, and which of them is the best of a row, if any can be told from the others.

    console.print(compare_table([registry.resolve("healthcare-small"), registry.resolve("legal-small")], teacher=True))

Intervals and paired bootstraps decide: the best of a row is starred, those that cannot be told from it are tied.
rich is imported where the table is drawn, so that ``--json`` and ``factory --help`` do not wait for it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from operator import itemgetter
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from factory.errors import RegistryError
from factory.evaluation.metrics import DASH, format_metric, rows_of
from factory.registry.versions import Version, read_metrics, read_teacher_metrics, section

if TYPE_CHECKING:
    from rich.table import Table

BEST = "★"
TIED = "≈"


def compare_json(versions: Sequence[Version], *, teacher: bool = False) -> dict[str, Any]:
    """``compare_json(versions, teacher=True)`` → {"columns", "rows", "same_test_set"}.

    A row is {"key", "label", "better", "unit", "values": {column: metric or None}, "best": [columns], "tied": [columns],
    "paired": bool}. Where the best cannot be told from another, nobody is best and all those are tied; "paired" says that
    a paired bootstrap on the same held-out examples decided it, else whether intervals overlap. A teacher's column comes
    from the first version that it taught and never wins. Rows that no version has are left out.

    Raises:
        RegistryError: without a version to compare.
    """
    if not versions:
        raise RegistryError("compare needs at least one student or base: `factory list` shows what there is")
    columns = list(dict.fromkeys(version.reference for version in versions))
    by_reference = {version.reference: version for version in versions}
    facts = {name: read_metrics(by_reference[name].raw) for name in columns}
    if teacher:
        first: dict[Any, Version] = {}  # of each teacher
        for version in versions:
            first.setdefault(section(version.raw, "teacher").get("sha256"), version)
        for one in first.values():
            facts["teacher" if len(first) == 1 else f"teacher of {one.reference}"] = read_teacher_metrics(one.raw)
    rows = []
    for key, metric in rows_of(facts.values()).items():
        values = {name: figures.get(key) for name, figures in facts.items()}
        if all(value is None for value in values.values()):
            continue
        known = _known({name: values[name] for name in columns})
        sums = _same_examples(key, {name: by_reference[name].raw for name in known})
        best, tied = _best(known, metric.better, sums)
        paired = metric.better is not None and bool(sums) and len(known) > 1
        rows.append({"key": key, **asdict(metric), "values": values, "best": best, "tied": tied, "paired": paired})
    test_sets = {section(version.raw, "dataset").get("fingerprint") for version in versions}
    return {"columns": list(facts), "rows": rows, "same_test_set": len(test_sets) == 1}


def compare_table(versions: Sequence[Version], *, teacher: bool = False) -> Table:
    """``compare_table(versions, teacher=True)``: a column a version, a row a figure, the best starred or marked as tied."""
    from rich.table import Table
    from rich.text import Text

    content = compare_json(versions, teacher=teacher)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in content["columns"]:
        table.add_column(Text(name), justify="right")
    for row in content["rows"]:
        cells = [Text(row["label"])]
        for name in content["columns"]:
            written = format_metric(row["values"][name], row["unit"])
            mark = BEST if name in row["best"] else TIED if name in row["tied"] else ""
            cells.append(Text(f"{written} {mark}".rstrip(), style="bold green" if mark == BEST else ""))
        table.add_row(*cells)
    for label, key in (("base", "base"), ("profile", "profile"), ("verdict", "")):
        words = {v.reference: (v.raw.get(key) or DASH) if key else v.verdict for v in versions}
        table.add_row(Text(label), *(Text(str(words.get(name, DASH))) for name in content["columns"]))
    table.caption = "; ".join(compare_notes(content)) or None
    return table


def compare_notes(content: Mapping[str, Any]) -> list[str]:
    """``compare_notes(compare_json(versions))``: what a reader of the table must know of its marks and its test sets."""
    notes = []
    ties = [row for row in content["rows"] if row["tied"]]
    ways = ["the 95 % interval of their paired difference holds 0"] if any(row["paired"] for row in ties) else []
    ways += ["their 95 % intervals overlap"] if any(not row["paired"] for row in ties) else []
    if ways:
        notes.append(f"{TIED} cannot be told from the best of the row: {', or '.join(ways)}")
    if not content["same_test_set"]:
        notes.append("each measured on its own held-out prompts: figures of different data sets compare only roughly")
    return notes


Known = Mapping[str, Mapping[str, Any]]  # column → a figure that has a value
Ratio = tuple[Sequence[float], Sequence[float]]  # (E,) numerators and (E,) denominators, one a held-out example

# Rows that can be decided example by example, as sums of ``evaluation.per_example``; perplexity by its logarithm.
PAIRED: dict[str, tuple[str, str]] = {
    "kl": ("kl", "tokens"),
    "top1_agreement": ("agree", "tokens"),
    "top5_overlap": ("top5", "tokens"),
    "accuracy_retained": ("correct", "teacher_correct"),
    "student_perplexity": ("nll", "tokens"),
}


def _known(values: Mapping[str, dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Without those that were not measured, or have no number."""
    return {name: metric for name, metric in values.items() if metric is not None and metric["value"] == metric["value"]}


def _best(known: Known, better: str | None, sums: Mapping[str, Ratio]) -> tuple[list[str], list[str]]:
    """Columns with the best value, and instead of them those that are tied; nobody wins alone, or where all are equal."""
    if better is None or len(known) < 2:
        return [], []
    values = {name: metric["value"] for name, metric in known.items()}
    best = min(values.values()) if better == "low" else max(values.values())
    leader = next(name for name, value in values.items() if value == best)
    others = [name for name in known if name != leader]
    if sums:
        intervals = {name: paired_interval(sums[name], sums[leader]) for name in others}
        tied = [name for name, (low, high) in intervals.items() if not (low > 0 or high < 0)]  # NaN: nothing is known
    else:
        tied = [name for name in others if _overlap(known[name], known[leader])]
    if tied:
        return [], [name for name in known if name in (leader, *tied)]
    winners = [name for name, value in values.items() if value == best]
    return (winners if len(winners) < len(known) else []), []


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Of two intervals, or of one and a value; two plain values never overlap."""
    (low, high), (least, most) = _ends(one), _ends(other)
    return (low < high or least < most) and low <= most and least <= high


def _ends(metric: Mapping[str, Any]) -> tuple[float, float]:
    low, high = metric.get("low"), metric.get("high")
    return (metric["value"], metric["value"]) if low is None or high is None else (low, high)


def _same_examples(row: str, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Ratio]:
    """What decides this row pairwise, by column; empty unless every version kept it of the same held-out examples."""
    parts = {name: section(manifest, "evaluation", "per_example") for name, manifest in manifests.items()}
    keys = {str(part.get("key") or "") for part in parts.values()}
    if row not in PAIRED or len(keys) != 1 or "" in keys:
        return {}
    above, below = PAIRED[row]
    sums: dict[str, Ratio] = {name: (_numbers(part.get(above)), _numbers(part.get(below))) for name, part in parts.items()}
    lengths = {len(column) for ratio in sums.values() for column in ratio}
    return sums if len(lengths) == 1 and 0 not in lengths else {}


def _numbers(values: Any) -> list[float]:
    """The list, or an empty one where something in it is no number."""
    values = values if isinstance(values, list) else []
    return values if all(isinstance(value, int | float) for value in values) else []


def paired_interval(ours: Ratio, theirs: Ratio, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """``low, high = paired_interval((kl, tokens), (other_kl, other_tokens))``: 95 % interval of ours minus theirs.

    Each is a sum over a sum, per token; the same drawn examples are summed on both sides (paired percentile bootstrap,
    Efron and Tibshirani 1993, ch. 13). NaN and NaN with fewer than two examples, or where no draw has a denominator.
    In plain Python, since `factory compare` waits for no NumPy: 150 examples take some hundredths of a second.
    """
    differences = []
    for pick in _draws(len(ours[0]), resamples, seed) if len(ours[0]) > 1 else ():
        above, below, other_above, other_below = (sum(pick(column)) for column in (*ours, *theirs))
        if below and other_below:
            differences.append(above / below - other_above / other_below)
    if len(differences) < 2:
        return float("nan"), float("nan")
    cuts = quantiles(differences, n=40, method="inclusive")  # 2.5 %, 5 %, … 97.5 %
    return cuts[0], cuts[-1]


@lru_cache(maxsize=1)
def _draws(examples: int, resamples: int, seed: int) -> list[itemgetter[Any]]:
    """Each picks its draw of E examples, with replacement, from a list of E; kept for the next row."""
    rng, every = random.Random(seed), list(range(examples))
    return [itemgetter(*rng.choices(every, k=examples)) for _ in range(resamples)]
