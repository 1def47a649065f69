"""What the terminal shows of the registry: the list of versions, and one version.

    console.print(list_table(registry.versions()))
    console.print(show(registry.resolve("healthcare-small")))

Each ``*_json`` gives the same as plain lists and dicts, complete. rich is imported where something is drawn, so that
``--json`` and ``factory --help`` do not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from factory.registry.versions import Summary, Version
from factory.reports.format import DASH, format_number
from factory.reports.view import Row, View, view_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
HIDDEN = ("kind", "order", "seed")  # of a record: an expert who reads this must not learn the order of a blind review


# -------------------------------------------------------------------------------------------------------------- list


def list_json(summaries: Iterable[Summary]) -> list[dict[str, Any]]:
    """``list_json(registry.versions())``: one dict per version, with its reference."""
    return [{"reference": summary.reference, **asdict(summary)} for summary in summaries]


def list_table(summaries: Sequence[Summary], limit: int | None = 100) -> Table:
    """``list_table(registry.versions())``: one line per version, only the newest ``limit``, since rich is slow."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    shown = list(summaries)
    if limit is not None and len(shown) > limit:
        newest = sorted(range(len(shown)), key=lambda row: (shown[row].created, shown[row].number))[-limit:]
        shown = [shown[row] for row in sorted(newest)]
        table.caption = f"the newest {limit} of {len(summaries):,} versions"
    for heading in ("version", "alias", "kind", "profile", "verdict"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "version")
    for heading in ("parameters", "of teacher", "size", "KL", "top-1", "relation"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("created", no_wrap=True)
    for one in shown:
        table.add_row(*map(Text, _cells(one)))
    return table


def _cells(summary: Summary) -> tuple[str, ...]:
    share = summary.parameters / summary.teacher_parameters if summary.parameters and summary.teacher_parameters else None
    return (
        summary.reference,
        ", ".join(summary.aliases),
        summary.kind,
        summary.profile or DASH,
        summary.verdict,
        format_number(summary.parameters, "parameters"),
        format_number(share, "%"),
        format_number(summary.bytes, "bytes"),
        format_number(summary.kl),
        format_number(summary.top1_agreement, "%"),
        format_number(summary.relation_alignment),
        summary.created[:16].replace("T", " "),
    )


# -------------------------------------------------------------------------------------------------------------- show


def show_json(version: Version, aliases: Sequence[str] = ()) -> dict[str, Any]:
    """``show_json(version)``: the manifest, with where it is, its aliases and its records."""
    from factory.registry.manifest import to_dict

    own = {"reference": version.reference, "folder": str(version.folder), "aliases": list(aliases)}
    return own | to_dict(version.manifest) | {"records": list(version.records)}


def show(version: Version, aliases: Sequence[str] = (), all_metrics: bool = False) -> Group:
    """``console.print(show(version))``: the dozen lines that matter first; everything with ``all_metrics``."""
    from rich.console import Group
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    view = view_of(version.manifest)
    chapters = _chapters(version, view, aliases) if all_metrics else {version.reference: _headline(version, view, aliases)}
    parts: list[Any] = []
    for title, rows in chapters.items():
        if not rows:
            continue
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(Text(row.label), Text(row.value))
        parts += [Rule(Text(title), align="left", style="dim"), table]
    if all_metrics:
        parts += [Text(f"warning: {warning}", style="yellow") for warning in view.warnings]
    else:
        parts.append(Text("--all-metrics shows every metric, the lineage, the data, the training and samples", style="dim"))
    return Group(*parts)


def _headline(version: Version, view: View, aliases: Sequence[str]) -> list[Row]:
    rows = [
        Row("verdict", view.verdict_words),
        *(Row(row.metric.label, row.words) for row in view.headline),
        *view.healing,
        Row("base", version.base or ""),
        Row("profile", view.profile),
        Row("aliases", ", ".join(aliases)),
        Row("warning", view.worst_warning),
        Row("folder", str(version.folder)),
    ]
    return [row for row in rows if row.value]


def _chapters(version: Version, view: View, aliases: Sequence[str]) -> dict[str, list[Row]]:
    facts = [
        Row("kind", view.kind),
        Row("domain", view.domain),
        Row("aliases", ", ".join(aliases)),
        Row("notice", view.notice),
        Row("verdict", view.verdict_words),
        *(Row(f"gate {gate.status}", gate.words) for gate in view.gates),
        Row("folder", str(version.folder)),
    ]
    samples = [
        Row(who, " ".join(getattr(sample, who).split()))
        for sample in view.samples[:3]
        for who in ("prompt", "teacher", "student")
    ]
    return {
        version.reference: [row for row in facts if row.value],
        "metrics [95 % interval]": [Row(row.metric.label, row.words + _count(row.value)) for row in view.metrics],
        "lineage": list(view.lineage),
        "data": [*view.data, *(Row(f"source {one.id}", f"{one.n:,} examples, {one.license}") for one in view.sources)],
        "training": [
            *view.healing,
            *view.training,
            *(Row(curve.name, _curve(curve.values)) for curve in view.curves),
            *view.settings,
        ],
        "energy (estimate)": list(view.energy),
        "samples": samples,
        "records": [Row(str(record["kind"]), _record(record)) for record in version.records],
    }


def _count(metric: Any) -> str:
    return "" if isinstance(metric, int | float) else f", n = {metric.n:,}"


def _record(record: Mapping[str, Any]) -> str:
    """One line of what was recorded after publishing."""
    words = []
    for key, value in record.items():
        if key in HIDDEN:
            continue
        if isinstance(value, list):
            words.append(f"{key} {'; '.join(map(str, value))}")
        elif isinstance(value, Mapping):  # the share of a blind review
            words.append(
                f"{key} {format_number(value['value'])} [{format_number(value['low'])}, {format_number(value['high'])}]"
            )
        else:
            words.append(f"{key} {value}")
    return ", ".join(words)


def _curve(values: Sequence[float]) -> str:
    """First value, sparkline, last value."""
    return f"{format_number(values[0])} {sparkline(values)} {format_number(values[-1])}"


def sparkline(values: Iterable[float], width: int = 48) -> str:
    """``sparkline([3, 2, 1])`` → "█▅▁"; means of equal stretches where there are more values than characters."""
    numbers = list(values)
    if not numbers:
        return ""
    count = min(width, len(numbers))
    edges = [round(position * len(numbers) / count) for position in range(count + 1)]
    means = [sum(numbers[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BARS[round((m - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for m in means)
