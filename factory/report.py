"""Tables of what the registry holds: the list, the comparison, everything about one version.

    console.print(list_table(registry.versions()))
    console.print(compare_table([registry.resolve("healthcare-small"), registry.resolve("legal-small")], teacher=True))
    console.print(show(registry.resolve("healthcare-small")))

Each ``*_json`` gives the same as plain lists and dicts. Only what manifests hold is shown; what one lacks is a dash.
rich is imported where a table is drawn, so that ``--json`` and ``factory --help`` do not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from factory.errors import RegistryError
from factory.manifests import Summary, Version, as_metric, read_metric, read_parameters

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

DASH = "-"
BEST = "★"
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Metric:
    """How a measured figure is called, written, and which end of it is good."""

    label: str
    better: Literal["low", "high"] | None = None  # None: shown for reference, nobody wins it
    unit: Literal["", "%", "parameters", "bytes"] = ""


METRICS: dict[str, Metric] = {
    "kl": Metric("KL(teacher ‖ student), nats per token", "low"),
    "top1_agreement": Metric("top-1 agreement with the teacher", "high", "%"),
    "top5_overlap": Metric("top-5 overlap with the teacher", "high", "%"),
    "accuracy_retained": Metric("next-token accuracy retained", "high", "%"),
    "student_perplexity": Metric("perplexity", "low"),
    "teacher_perplexity": Metric("perplexity of the teacher"),
    "relation_alignment": Metric("relation alignment (Spearman)", "high"),
    "base_relation_alignment": Metric("relation alignment of the base"),
    "base_kl": Metric("KL of the base without adapter"),
    "base_top1_agreement": Metric("top-1 agreement of the base without adapter", None, "%"),
    "kl_below_sft": Metric("KL below SFT at equal steps, paired", "high"),
    "general_kl": Metric("KL on general text, nats per token", "low"),
    "base_general_kl": Metric("KL of the base on general text"),
    "general_top1_agreement": Metric("top-1 agreement on general text", "high", "%"),
    "base_general_top1_agreement": Metric("top-1 agreement of the base on general text", None, "%"),
    "general_retained": Metric("general agreement kept, of the base's", "high", "%"),
}


# ----------------------------------------------------------------------------------------------------------- writing


def write_number(value: Any, unit: str = "") -> str:
    """``write_number(0.4123)`` → "0.412"; ``(0.75, "%")`` → "75.0 %"; ``(80e6, "parameters")`` → "80.0 M"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit in ("parameters", "bytes"):
        ends = {"parameters": ("", " k", " M", " G"), "bytes": (" B", " kB", " MB", " GB")}[unit]
        step = min(3, (len(str(int(abs(value)))) - 1) // 3)
        return f"{value / 1000**step:.{1 if step else 0}f}{ends[step]}"
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"  # a learning rate, which three decimals would call 0
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def write_metric(metric: Mapping[str, Any] | None, unit: str = "") -> str:
    """``write_metric({"value": 0.4, "low": 0.38, "high": 0.44})`` → "0.400 [0.380, 0.440]"."""
    if metric is None:
        return DASH
    value, low, high = (write_number(metric.get(key), unit) for key in ("value", "low", "high"))
    return value if DASH in (low, high) else f"{value} [{low}, {high}]"


def sparkline(values: Iterable[Any], width: int = 48) -> str:
    """``sparkline([3, 2, 1])`` → "█▅▁"; means of equal stretches where there are more values than characters."""
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if not numbers:
        return ""
    count = min(width, len(numbers))
    edges = [round(position * len(numbers) / count) for position in range(count + 1)]
    means = [sum(numbers[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BARS[round((m - low) / (high - low) * (len(BARS) - 1)) if high > low else 0] for m in means)


def _section(manifest: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping under these keys, empty where the manifest has none."""
    found: Any = manifest
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


# -------------------------------------------------------------------------------------------------------------- list


def list_json(summaries: Iterable[Summary]) -> list[dict[str, Any]]:
    """``list_json(registry.versions())``: one dict a version, with its reference."""
    return [{"reference": summary.reference, **asdict(summary)} for summary in summaries]


def list_table(summaries: Sequence[Summary], limit: int | None = 100) -> Table:
    """``list_table(registry.versions())``: one line a version, the newest ``limit`` of them, since rich is slow."""
    from rich.table import Table
    from rich.text import Text

    shown = list(summaries)
    table = Table(box=None, pad_edge=False)
    if limit is not None and len(shown) > limit:
        newest = sorted(range(len(shown)), key=lambda row: (shown[row].created, shown[row].number))[-limit:]
        shown = [shown[row] for row in sorted(newest)]
        table.caption = f"the newest {limit} of {len(summaries):,} versions"
    for heading in ("version", "alias", "kind", "profile", "verdict"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "version")
    for heading in ("parameters", "of teacher", "bytes", "KL", "top-1", "relation"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("date", no_wrap=True)
    for s in shown:
        share = s.parameters / s.teacher_parameters if s.parameters and s.teacher_parameters else None
        words = (s.reference, ", ".join(s.aliases), s.kind, s.profile or DASH, s.verdict)
        figures = (
            write_number(s.parameters, "parameters"),
            write_number(share, "%"),
            write_number(s.bytes, "bytes"),
            write_number(s.kl),
            write_number(s.top1_agreement, "%"),
            write_number(s.relation_alignment),
        )
        table.add_row(*(Text(word) for word in (*words, *figures, s.created[:16].replace("T", " "))))
    return table


# ----------------------------------------------------------------------------------------------------------- compare


def compare_json(versions: Sequence[Version], *, teacher: bool = False) -> dict[str, Any]:
    """``compare_json(versions, teacher=True)`` → {"columns", "rows", "same_test_set"}.

    A row is {"key", "label", "better", "unit", "values": {column: metric or None}, "best": [columns]}. A teacher's
    column comes from the first version that it taught and never wins. Rows that no version has are left out.

    Raises:
        RegistryError: without a version to compare.
    """
    if not versions:
        raise RegistryError("compare needs at least one student or base: `factory list` shows what there is")
    columns = list(dict.fromkeys(version.reference for version in versions))
    by_reference = {version.reference: version for version in versions}
    facts = {name: _figures(by_reference[name].manifest) for name in columns}
    if teacher:
        first: dict[Any, Version] = {}  # of each teacher
        for version in versions:
            first.setdefault(_section(version.manifest, "teacher").get("sha256"), version)
        for one in first.values():
            facts["teacher" if len(first) == 1 else f"teacher of {one.reference}"] = _teacher_figures(one.manifest)
    rows = []
    for key, metric in _rows(facts.values()).items():
        values = {name: figures.get(key) for name, figures in facts.items()}
        if all(value is None for value in values.values()):
            continue
        best = _best({name: values[name] for name in columns}, metric.better)
        rows.append({"key": key, **asdict(metric), "values": values, "best": best})
    test_sets = {_section(version.manifest, "dataset").get("fingerprint") for version in versions}
    return {"columns": list(facts), "rows": rows, "same_test_set": len(test_sets) == 1}


def compare_table(versions: Sequence[Version], *, teacher: bool = False) -> Table:
    """``compare_table(versions, teacher=True)``: a column a version, a row a figure, the best of each row starred."""
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
            written = write_metric(row["values"][name], row["unit"])
            is_best = name in row["best"]
            cells.append(Text(f"{written} {BEST}" if is_best else written, style="bold green" if is_best else ""))
        table.add_row(*cells)
    for label, key in (("base", "base"), ("profile", "profile"), ("verdict", "")):
        words = {v.reference: (v.manifest.get(key) or DASH) if key else v.verdict for v in versions}
        table.add_row(Text(label), *(Text(str(words.get(name, DASH))) for name in content["columns"]))
    if not content["same_test_set"]:
        table.caption = "each measured on its own held-out prompts: figures of different data sets compare only roughly"
    return table


SIZES_AND_SPEED: dict[str, Metric] = {
    "parameters": Metric("parameters", "low", "parameters"),
    "base_parameters": Metric("parameters of the base", "low", "parameters"),
    "bytes": Metric("bytes", "low", "bytes"),
    "adapter_bytes": Metric("bytes of the adapter alone", "low", "bytes"),
    "tokens_per_second": Metric("tokens per second, one stream", "high"),
    "batch_tokens_per_second": Metric("tokens per second, 16 streams", "high"),
    "latency_ms": Metric("latency, ms", "low"),
}


def _rows(columns: Iterable[Mapping[str, Any]]) -> dict[str, Metric]:
    """Known rows first, in a fixed order; then whatever else was measured, under its own name."""
    known = {**METRICS, **SIZES_AND_SPEED}
    return known | {key: Metric(key) for column in columns for key in column if key not in known}


def _figures(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Every figure of one version by its row's key."""
    evaluation = _section(manifest, "evaluation")
    metrics = _section(evaluation, "metrics")
    plain = {**_section(evaluation, "sizes", "student"), **_section(evaluation, "speed", "student")}
    plain["parameters"] = read_parameters(manifest)[0]
    return {name: read_metric(manifest, name) for name in metrics} | {key: as_metric(v) for key, v in plain.items()}


def _teacher_figures(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """What a student's manifest says of its teacher, under the student's row keys."""
    evaluation = _section(manifest, "evaluation")
    plain = {**_section(evaluation, "sizes", "teacher"), **_section(evaluation, "speed", "teacher")}
    plain["parameters"] = read_parameters(manifest)[1]
    perplexity = read_metric(manifest, "teacher_perplexity")
    return {"student_perplexity": perplexity} | {key: as_metric(value) for key, value in plain.items()}


def _best(values: Mapping[str, Mapping[str, Any] | None], better: str | None) -> list[str]:
    """Columns with the best value; nobody wins alone, or where all are equal."""
    known = {name: metric["value"] for name, metric in values.items() if metric is not None}
    if better is None or len(set(known.values())) < 2:
        return []
    best = min(known.values()) if better == "low" else max(known.values())
    return [name for name, value in known.items() if value == best]


# -------------------------------------------------------------------------------------------------------------- show


def show_json(version: Version, aliases: Sequence[str] = ()) -> dict[str, Any]:
    """``show_json(version)``: the manifest, with where it is and what it is called."""
    return {
        "reference": version.reference,
        "folder": str(version.folder),
        "aliases": list(aliases),
        **version.manifest,
    }


def show(version: Version, aliases: Sequence[str] = ()) -> Group:
    """``console.print(show(version))``: verdict, lineage, data, figures, training curve and samples of one version."""
    from rich.console import Group
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for title, pairs in _chapters(version, aliases).items():
        kept = [(label, value) for label, value in pairs if value not in (None, "", DASH)]
        if not kept:
            continue
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, value in kept:
            table.add_row(Text(label), Text(str(value)))
        parts += [Rule(Text(title), align="left", style="dim"), table]
    for warning in version.manifest.get("warnings") or ():
        parts.append(Text(f"warning: {warning}", style="yellow"))
    return Group(*parts)


def _chapters(version: Version, aliases: Sequence[str]) -> dict[str, list[tuple[str, Any]]]:
    manifest = version.manifest
    training = _section(manifest, "training")
    curve = [point for point in training.get("curve") or () if isinstance(point, Mapping)]
    seconds = {f"seconds, {stage}": write_number(value) for stage, value in _section(manifest, "seconds").items()}
    return {
        version.reference: [
            ("kind", version.kind),
            ("aliases", ", ".join(aliases)),
            *((key, manifest.get(key)) for key in ("domain", "family", "size", "profile", "seed", "created", "notice")),
            ("verdict", "; ".join([version.verdict, *map(str, _section(manifest, "verdict").get("reasons") or ())])),
            ("folder", version.folder),
        ],
        "lineage": _lineage(manifest),
        "data": _data(manifest),
        "figures [interval]": _measured(manifest),
        "training": [("examples learnt from", training.get("examples"))]
        + [(name, _curve(curve, name)) for name in _curve_names(curve)]
        + [(key, value) for key, value in _section(training, "config").items() if not isinstance(value, Mapping)]
        + list(seconds.items()),
        "samples": [
            (who, " ".join(str(sample.get(who) or "").split()))
            for sample in (_section(manifest, "evaluation").get("samples") or ())[:3]
            for who in ("prompt", "teacher", "student")
        ],
    }


def _lineage(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    teacher = _section(manifest, "teacher")
    libraries = ", ".join(f"{name} {version}" for name, version in _section(manifest, "libraries").items())
    vocabulary = _section(manifest, "vocabulary")
    return [
        ("teacher", teacher.get("reference")),
        ("teacher's licence", teacher.get("license")),
        ("teacher's sha256", teacher.get("sha256")),
        ("base", manifest.get("base")),
        ("layers kept", ", ".join(map(str, manifest.get("layers") or ()))),
        *((f"vocabulary, {key}", write_number(value)) for key, value in vocabulary.items()),
        ("router", _section(manifest, "router").get("version")),
        ("spec", manifest.get("spec_hash")),
        ("git commit", manifest.get("git_commit")),
        ("libraries", libraries),
    ]


def _data(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    data = _section(manifest, "dataset")
    dropped = ", ".join(f"{reason} {count}" for reason, count in _section(data, "dropped").items())
    pairs = [
        (f"source {source.get('id')}", f"{write_number(source.get('n'))} examples, {source.get('license')}")
        for source in data.get("sources") or ()
        if isinstance(source, Mapping)
    ]
    counts = ", ".join(f"{split} {count}" for split, count in _section(data, "counts").items())
    return [
        ("fingerprint", data.get("fingerprint")),
        ("examples", counts),
        ("dropped", dropped),
        ("refusals kept", data.get("refusals")),
        ("soft targets", _stored(_section(manifest, "targets"))),
        *pairs,
    ]


def _stored(targets: Mapping[str, Any]) -> str | None:
    """What soft targets take, and what reading them saved."""
    if not targets:
        return None
    return (
        f"{write_number(targets.get('bytes'), 'bytes')}, "
        f"{write_number(targets.get('response_bytes_per_position'))} bytes a token for the response; "
        f"{write_number(targets.get('saved_seconds'))} of the teacher's "
        f"{write_number(targets.get('teacher_seconds'))} s saved by reading"
    )


def _measured(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    figures, teacher = _figures(manifest), _teacher_figures(manifest)
    pairs = []
    for key, metric in _rows([figures]).items():
        own = figures.get(key)
        if own is None:
            continue
        words = write_metric(own, metric.unit)
        words += f", n = {write_number(own['n'])}" if own["n"] is not None else ""
        other = teacher.get(key)
        pairs.append((metric.label, f"{words}   (teacher {write_metric(other, metric.unit)})" if other else words))
    return pairs


def _curve_names(curve: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(key for point in curve for key in point) if name != "step"]


def _curve(curve: Sequence[Mapping[str, Any]], name: str) -> str:
    """First value, sparkline, last value of one column of the training curve."""
    values = [point[name] for point in curve if isinstance(point.get(name), int | float)]
    return f"{write_number(values[0])} {sparkline(values)} {write_number(values[-1])}" if values else ""
