"""One HTML file about one version or several side by side: everything that their manifests say, and nothing else.

    write_page([registry.resolve("healthcare-small")], Path("report.html"), lineage={"default-small-base@1": base})

The file needs no other one: style and plots are inside, there is no script. What a manifest lacks has no section.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.comparison import BEST, TIED, compare_json, compare_notes
from factory.errors import RegistryError
from factory.figures import metric_named, write_metric, write_number
from factory.files import one_line, replace_file
from factory.manifests import Version, entries, read_metric, read_parameters, section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib wants colours, the page has variables that change with light and dark: these stand for them until written.
COLOURS = {f"#0000{number:02x}": f"var(--{name})" for number, name in enumerate(("ink", "muted", "line"), start=1)}
INK, MUTED, LINE = COLOURS
SERIES = [f"#0001{number:02x}" for number in range(8)]  # of the versions, in the order asked for
COLOURS |= {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
BOUNDS = {"at_most": "at most", "at_least": "at least"}
ENDS = {"low": ", lower end", "high": ", upper end"}


@dataclass(frozen=True)
class Plot:
    """One drawing: its heading, what it shows in words, and the SVG element."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Node:
    """One model of a lineage."""

    role: str  # teacher, assistant, base or student
    name: str
    facts: str = ""


def write_page(versions: Sequence[Version], path: Path, *, lineage: Mapping[str, Version]) -> None:
    """``write_page([student], Path("report.html"), lineage={base.reference: base})`` writes or replaces that one file.

    ``lineage`` has the bases of these students by reference, as far as they are known; what it lacks is left out.

    Raises:
        RegistryError: without a version, or where the file cannot be written. An older file then stays as it was.
    """
    if not path.parent.is_dir():
        raise RegistryError(f"cannot write {path}: there is no folder {path.parent}; make it first, or name another file")
    if path.is_dir():
        raise RegistryError(f"cannot write {path}: it is a folder; name a file in it, as in {path / 'report.html'}")
    content = render(versions, lineage).encode("utf-8", "replace")
    with one_line(f"cannot write {path}"):
        replace_file(path, content)


def render(versions: Sequence[Version], lineage: Mapping[str, Version]) -> str:
    """``render(versions, {})``: the page's text; the same manifests give the same text.

    Raises: RegistryError without a version.
    """
    from jinja2 import Environment, StrictUndefined

    if not versions:
        raise RegistryError("a report needs at least one student or base: `factory list` shows what there is")
    versions = list({version.reference: version for version in versions}.values())
    comparison = compare_json(versions, teacher=True)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        (files("factory") / "page.html.j2").read_text(encoding="utf-8")
    )
    names = " and ".join(version.reference for version in versions)
    return template.render(
        title=names if len(versions) < 3 else f"{len(versions)} versions compared",
        created=max(_text(version.manifest.get("created")) for version in versions)[:16].replace("T", " ").replace("Z", ""),
        verdicts=[_verdict(version) for version in versions],
        columns=comparison["columns"],
        figures=[_figure_row(row, comparison["columns"]) for row in comparison["rows"]],
        notes=compare_notes(comparison),
        has_best=any(row["best"] for row in comparison["rows"]),
        best=BEST,
        plots=_present([_fidelity(versions), _curves(versions)]),
        bias=_present([plot for index, version in enumerate(versions) for plot in _bias(version, index)]),
        energy=[energy for version in versions if (energy := _energy(version)) is not None],
        lineages=_lineages(versions, lineage),
        samples=[(version.reference, samples) for version in versions if (samples := _samples(version.manifest))],
        warnings=[(version.reference, found) for version in versions if (found := _texts(version.manifest.get("warnings")))],
        provenance=[(version.reference, _provenance(version.manifest)) for version in versions],
    )


# ---------------------------------------------------------------------------------------------------------------- text


def _verdict(version: Version) -> dict[str, Any]:
    """The card of one version: badge, gates, reasons where there are no gates, notice."""
    manifest = version.manifest
    verdict = section(manifest, "verdict")
    gates = [_gate(gate) for gate in entries(manifest, "verdict", "gates")]
    own, teacher = read_parameters(manifest)
    size = f"{write_number(own, 'parameters')} parameters" if own else ""
    size += f", {write_number(own / teacher, '%')} of its teacher's" if own and teacher else ""
    words = [_text(manifest.get(key)) for key in ("domain", "profile")]
    failed = [gate for gate in gates if not gate["passed"]]
    return {
        "reference": version.reference,
        "facts": ", ".join(word for word in (version.kind, words[0], words[1] and f"profile {words[1]}", size) if word),
        "status": version.verdict,
        "failed": failed,
        "passed": [gate for gate in gates if gate["passed"]],
        "reasons": [] if failed else _texts(verdict.get("reasons")),
        "notice": _text(manifest.get("notice")),
    }


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    metric = metric_named(_text(gate.get("metric")))
    found = gate.get("found")
    return {
        "passed": gate.get("passed") is True,
        "label": metric.label + ENDS.get(_text(gate.get("of")), ""),
        "found": "not measured" if found is None else write_number(found, metric.unit),
        "bound": f"{BOUNDS.get(_text(gate.get('bound')), 'bound')} {write_number(gate.get('threshold'), metric.unit)}",
    }


def _figure_row(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """{"label", "cells": [(value, interval, mark)]}."""
    cells = []
    for name in columns:
        value, _, interval = write_metric(row["values"][name], row["unit"]).partition(" [")
        mark = BEST if name in row["best"] else TIED if name in row["tied"] else ""
        cells.append((value, f"[{interval}" if interval else "", mark))
    return {"label": row["label"], "cells": cells}


def _lineages(versions: Sequence[Version], lineage: Mapping[str, Version]) -> list[dict[str, Any]]:
    """One chain for all versions of the same teacher, assistants and base: {"chain": [Node], "ends": [Node], "reason"}."""
    known = dict(lineage) | {version.reference: version for version in versions}
    ends: dict[tuple[Node, ...], list[Node]] = {}
    reasons: dict[tuple[Node, ...], str] = {}
    for version in versions:
        if any(version.reference == other.base for other in versions):
            continue  # it stands before its students
        base = known.get(version.base or "")
        root = version if version.kind == "base" else base
        manifest = root.manifest if root is not None else version.manifest
        teacher = section(version.manifest, "teacher") or section(manifest, "teacher")
        chain = []
        if teacher:
            parameters = read_parameters(version.manifest)[1] or read_parameters(manifest)[1]
            name = _text(teacher.get("reference")).rpartition("/")[2] or "teacher"  # all of it is in the provenance
            chain.append(Node("teacher", name, _size(parameters, teacher.get("license"))))
        own = root.reference if root is not None else version.base
        route = _texts(section(manifest, "cascade").get("route"))[1:]
        chain += [_node("assistant", reference, known.get(reference)) for reference in route if reference != own]
        if version.base:
            chain.append(_node("base", version.base, base))
        ends.setdefault(tuple(chain), []).append(_node(version.kind, version.reference, version))
        reasons[tuple(chain)] = _text(section(manifest, "cascade").get("reason"))
    return [{"chain": chain, "ends": last, "reason": reasons[chain]} for chain, last in ends.items()]


def _node(role: str, reference: str, version: Version | None) -> Node:
    if version is None:
        return Node(role, reference)
    return Node(role, reference, _size(read_parameters(version.manifest)[0], version.manifest.get("domain")))


def _size(parameters: int | None, word: Any) -> str:
    size = f"{write_number(parameters, 'parameters')} parameters" if parameters else ""
    return ", ".join(part for part in (size, _text(word)) if part)


def _samples(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{"prompt", "teacher", "student", "coloured"}; an answer is runs of (text, whether the other agrees, or None)."""
    found = []
    for sample in entries(manifest, "evaluation", "samples"):
        both = {who: _runs(sample.get(f"{who}_tokens")) for who in ("teacher", "student")}
        answers = {who: runs or [(_text(sample.get(who)), None)] for who, runs in both.items()}
        found.append({"prompt": _text(sample.get("prompt")), **answers, "coloured": any(both.values())})
    return found


def _runs(tokens: Any) -> list[tuple[str, bool | None]]:
    """``[["Pain", true], [" is", true]]`` → ``[("Pain is", True)]``: neighbours that agree alike are one run."""
    pairs = [pair for pair in (tokens if isinstance(tokens, list) else ()) if isinstance(pair, list | tuple) and len(pair) == 2]
    runs: list[tuple[str, bool | None]] = []
    for agree, run in groupby(pairs, key=lambda pair: bool(pair[1])):
        text = "".join(_text(text) for text, _ in run)
        word = text.lstrip()
        runs += [(text[: len(text) - len(word)], None), (word, agree)]  # the space before a token is not coloured
    return [(text, agree) for text, agree in runs if text]


def _provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    teacher, data = section(manifest, "teacher"), section(manifest, "dataset")
    pairs = [
        ("teacher", teacher.get("reference")),
        ("teacher's licence", teacher.get("license")),
        ("teacher's sha256", teacher.get("sha256")),
        ("base", manifest.get("base")),
        ("data set", data.get("fingerprint")),
        ("examples", ", ".join(f"{split} {write_number(count)}" for split, count in section(data, "counts").items())),
        ("left out", ", ".join(f"{reason} {write_number(count)}" for reason, count in section(data, "dropped").items())),
        ("sources", ", ".join(f"{one.get('id')} ({one.get('license')})" for one in entries(data, "sources"))),
        ("family", manifest.get("family")),
        ("profile", manifest.get("profile")),
        ("seed", manifest.get("seed")),
        ("spec", manifest.get("spec_hash")),
        ("git commit", manifest.get("git_commit")),
        ("libraries", ", ".join(f"{name} {version}" for name, version in section(manifest, "libraries").items())),
        ("created", manifest.get("created")),
        ("manifest's sha256", manifest.get("manifest_sha256")),
    ]
    return [(label, _text(value)) for label, value in pairs if _text(value)]


# --------------------------------------------------------------------------------------------------------------- plots


def _fidelity(versions: Sequence[Version]) -> Plot | None:
    """Size against fidelity, a point a version, the teacher where it belongs."""
    key = next((key for key in ("kl", "top1_agreement") if any(_interval(v.manifest, key) for v in versions)), None)
    sizes = {version.reference: read_parameters(version.manifest) for version in versions}
    of_teacher = any(own and teacher for own, teacher in sizes.values())
    points = []
    for index, version in enumerate(versions):
        own, teacher = sizes[version.reference]
        figure = _interval(version.manifest, key) if key else None
        if figure and own and (teacher or not of_teacher):
            points.append((index, version.reference, 100 * own / teacher if of_teacher and teacher else own / 1e6, figure))
    if not points:
        return None
    scale = 100 if key == "top1_agreement" else 1

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        seen: list[float] = []
        widest = 100 if of_teacher else max(x for _, _, x, _ in points)
        for index, name, x, (value, low, high) in points:
            beside = sum(abs(x - other) < 0.01 * widest for other in seen)  # those of one size stand side by side
            seen.append(x)
            place, ends = x + 0.025 * widest * beside, [[scale * (value - low)], [scale * (high - value)]]
            axes.errorbar([place], [scale * value], yerr=ends, label=name, **_dot(index))
        perfect = 0 if key == "kl" else 100
        if of_teacher:
            axes.plot([100], [perfect], marker="o", color=INK, fillstyle="none", linestyle="", label="teacher", clip_on=False)
        axes.axhline(perfect, color=LINE, linewidth=1, zorder=0)
        axes.set_xlim(0, 1.06 * widest)
        axes.set_xlabel("parameters, % of the teacher's" if of_teacher else "parameters, millions")
        axes.set_ylabel("KL, nats per token" if key == "kl" else "top-1 agreement, %")
        _legend(figure, axes)

    better = "Lower" if key == "kl" else "Higher"
    caption = f"{better} is nearer to the teacher, further left is smaller. Bars: 95 % intervals."
    return Plot("Size against fidelity", caption, _svg("fidelity", draw))


def _curves(versions: Sequence[Version]) -> Plot | None:
    lines = []
    for index, version in enumerate(versions):
        curve = entries(version.manifest, "training", "curve")
        pairs = [(point.get("step"), point.get("loss")) for point in curve]
        points = [(step, loss) for step, loss in pairs if _number(step) and _number(loss)]
        if len(points) > 1:
            lines.append((index, version.reference, points))
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        for index, name, points in lines:
            steps, losses = zip(*points, strict=True)
            colour, dashes = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
            axes.plot(steps, losses, label=name, linewidth=1.8, color=colour, linestyle=dashes)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _legend(figure, axes)

    caption = "The training loss, all terms of the objective with their weights: it compares only within one objective."
    return Plot("Training", caption, _svg("training", draw))


def _bias(version: Version, index: int) -> list[Plot | None]:
    """Stereotype preference by axis of teacher, base and student; and how far the student's is from its teacher's."""
    pattern = re.compile(r"bias_(?:(\w+)_)?preference_(?:teacher|base|student|change)")
    names = section(version.manifest, "evaluation", "metrics")
    axes_ = list(dict.fromkeys(match[1] or "" for name in names if (match := pattern.fullmatch(name))))
    axes_ = [axis for axis in axes_ if axis] + [axis for axis in axes_ if not axis]  # all together last

    def of(who: str) -> dict[str, tuple[float, float, float]]:
        keys = {axis: f"bias_{axis}_preference_{who}" if axis else f"bias_preference_{who}" for axis in axes_}
        return {axis: figure for axis, key in keys.items() if (figure := _interval(version.manifest, key))}

    share = "Share of sentence pairs in which the model prefers the stereotype; 50 % prefers neither. Bars: 95 % intervals."
    change = "Above 0 the student prefers stereotypes more often than its teacher. Bars: 95 % intervals."
    models = {who: of(who) for who in ("teacher", "base", "student")}
    return [
        _dots(f"Preference, {version.reference}", share, f"bias-{index}", axes_, models, 50),
        _dots(f"Change, {version.reference}", change, f"bias-change-{index}", axes_, {"change": of("change")}, 0),
    ]


def _dots(
    title: str,
    caption: str,
    name: str,
    rows: Sequence[str],
    series: Mapping[str, Mapping[str, tuple[float, float, float]]],
    neutral: float,
) -> Plot | None:
    """A row an axis, a dot a model, in per cent."""
    series = {label: figures for label, figures in series.items() if figures}
    if not series:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        for number, (label, figures) in enumerate(series.items()):
            places = [rows.index(axis) + 0.2 * (number - (len(series) - 1) / 2) for axis in figures]
            values, lows, highs = zip(*figures.values(), strict=True)
            ends = [[100 * (v - low) for v, low in zip(values, lows, strict=True)]]
            ends.append([100 * (high - v) for v, high in zip(values, highs, strict=True)])
            axes.errorbar([100 * v for v in values], places, xerr=ends, label=label, **_dot(number))
        axes.axvline(neutral, color=INK, linewidth=1, zorder=0)
        axes.set_yticks(range(len(rows)), [row.replace("_", " ") or "all axes" for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("pairs, %" if neutral else "pairs, percentage points")
        if len(series) > 1:
            _legend(figure, axes)

    return Plot(title, caption, _svg(name, draw, height=1.3 + 0.42 * len(rows)))


def _energy(version: Version) -> dict[str, Any] | None:
    """{"reference", "method", "plots"}, or None where none was measured."""
    energy = section(version.manifest, "energy")
    stages = _finite(section(energy, "stages_wh"))
    answering = _finite(section(energy, "per_1000_tokens_wh"))
    sum_ = write_number(float(sum(stages.values())))
    plots = [
        _bars(f"Building, {version.reference}", f"Estimate by stage, {sum_} Wh together.", "energy-stages", stages),
        _bars(f"Answering, {version.reference}", "Estimate for 1,000 generated tokens.", "energy-tokens", answering),
    ]
    if not _present(plots):
        return None
    return {"reference": version.reference, "method": _text(energy.get("method")), "plots": _present(plots)}


def _bars(title: str, caption: str, name: str, values: Mapping[str, float]) -> Plot | None:
    if not values:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        bars = axes.barh(range(len(values)), list(values.values()), height=0.6, color=SERIES[0])
        axes.bar_label(bars, [write_number(float(value)) for value in values.values()], padding=4, color=INK)
        axes.set_yticks(range(len(values)), [stage.replace("_", " ") for stage in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.margins(x=0.18)  # for the numbers at the ends
        axes.set_xlabel("watt-hours, estimate")

    return Plot(title, caption, _svg(f"{name}-{title.rpartition(' ')[2]}", draw, height=1.0 + 0.38 * len(values)))


def _axes(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _dot(index: int) -> dict[str, Any]:
    """A colour and a marker, with an interval through it: never told apart by colour alone."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)], "linestyle": "", "capsize": 3}


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the plot, where it hides no point."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) < 10 else 2 if max(map(len, labels)) < 26 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)


def _svg(name: str, draw: Callable[[Figure], None], height: float = 3.8) -> str:
    """An ``<svg>`` element as wide as its place, 5.2 x ``height`` inches in proportion, its colours the page's variables."""
    import matplotlib
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: selectable, and read out
        "svg.hashsalt": name,
        "text.parse_math": False,  # a name with a dollar is no formula
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "font.size": 11,
    }
    written = io.StringIO()
    with matplotlib.rc_context(settings | dict.fromkeys(inks, INK)), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a letter that only the reader's own fonts have
        figure = Figure(figsize=(5.2, height), layout="constrained")
        draw(figure)
        nothing: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]  # no XML or DOCTYPE line inside HTML
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # its rules would hold everywhere
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{re.sub(r'[^a-z0-9]+', '-', name.lower())}-", svg)  # ids of one page
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.strip()


# ------------------------------------------------------------------------------------------------------------- reading


def _texts(items: Any) -> list[str]:
    return [_text(item) for item in items] if isinstance(items, list | tuple) else []


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> bool:
    """Neither a bool nor NaN, infinity or a word."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if _number(value)}


def _interval(manifest: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """Value, low, high of a figure; both ends are the value where no interval was recorded."""
    metric = read_metric(manifest, name)
    if metric is None or not _number(metric["value"]):
        return None
    value = float(metric["value"])
    low, high = (float(metric[end]) if _number(metric[end]) else value for end in ("low", "high"))
    return value, min(low, value), max(high, value)


def _present(plots: Sequence[Plot | None]) -> list[Plot]:
    return [plot for plot in plots if plot is not None]
