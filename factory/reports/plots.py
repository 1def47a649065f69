"""The plots of a report: one SVG element each, in the colours of the page. What was not measured has no plot.

fidelity(versions), training(versions)      # several versions in one plot
bias(version, index=0), energy(version)     # one version
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from factory.registry.versions import Version
from factory.reports.format import format_number
from factory.reports.view import curves_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from factory.registry.manifest import MetricValue

# matplotlib wants colours, the page has variables that change with light and dark: these are placeholders for them.
COLOURS = {f"#0000{number:02x}": f"var(--{name})" for number, name in enumerate(("ink", "muted", "line"), start=1)}
INK, MUTED, LINE = COLOURS
SERIES = [f"#0001{number:02x}" for number in range(8)]  # of the versions, in the order asked for
COLOURS |= {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
PREFERENCE = re.compile(r"bias_(?:(\w+)_)?preference_(?:teacher|base|student|change)")


@dataclass(frozen=True)
class Plot:
    """Its heading, what it shows in words, and the SVG element."""

    title: str
    caption: str
    svg: str


def fidelity(versions: Sequence[Version]) -> Plot | None:
    """``fidelity(versions)``: size against KL, a point per student, the teacher at its own size and 0."""
    points = []
    for index, version in enumerate(versions):
        manifest = version.manifest
        metric = manifest.evaluation.metrics.get("kl") if manifest.kind == "student" else None
        if metric and isfinite(metric.value) and (of := manifest.teacher.parameters):
            share = 100 * manifest.parameters / of
            points.append((index, version.reference, share, metric))
    if not points:
        return None
    widest = max(100, *(share for _, _, share, _ in points))

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        seen: list[float] = []
        for index, name, share, metric in points:
            beside = sum(abs(share - other) < 0.01 * widest for other in seen)  # those of one size stand side by side
            seen.append(share)
            ends = [[metric.value - metric.low], [metric.high - metric.value]]
            axes.errorbar([share + 0.025 * widest * beside], [metric.value], yerr=ends, label=name, **_dot(index))
        axes.plot([100], [0], marker="o", color=INK, fillstyle="none", linestyle="", label="teacher", clip_on=False)
        axes.axhline(0, color=LINE, linewidth=1, zorder=0)
        axes.set_xlim(0, 1.06 * widest)
        axes.set_xlabel("parameters, % of the teacher's")
        axes.set_ylabel("KL, nats/token")
        _legend(figure, axes)

    caption = "Lower is closer to the teacher, further left is smaller. Bars: 95 % intervals."
    return Plot("Size against fidelity", caption, _svg("fidelity", draw))


def training(versions: Sequence[Version]) -> Plot | None:
    """``training(versions)``: the training loss by step, a line per version."""
    losses = [
        (index, version.reference, curve)
        for index, version in enumerate(versions)
        for curve in curves_of(version.manifest.training)
        if curve.name == "loss" and len(curve.values) > 1
    ]
    if not losses:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        for index, name, curve in losses:
            colour, dashes = SERIES[index % len(SERIES)], DASHES[index % len(DASHES)]
            axes.plot(curve.steps, curve.values, label=name, linewidth=1.8, color=colour, linestyle=dashes)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _legend(figure, axes)

    caption = "The weighted sum of all terms of the loss: comparable only between runs with the same weights."
    return Plot("Training", caption, _svg("training", draw))


def bias(version: Version, index: int) -> list[Plot]:
    """``bias(version, 0)``: stereotype preference of teacher, base and student by axis, and the student's change.

    ``index`` tells the plots of one page apart.
    """
    metrics = version.manifest.evaluation.metrics if version.manifest.kind == "student" else {}
    found = [match[1] or "" for name in metrics if (match := PREFERENCE.fullmatch(name))]
    axes_ = sorted(dict.fromkeys(found), key=lambda axis: axis == "")  # all axes together last

    def of(who: str) -> dict[str, MetricValue]:
        keys = {axis: f"bias_{axis}_preference_{who}" if axis else f"bias_preference_{who}" for axis in axes_}
        return {axis: metrics[key] for axis, key in keys.items() if key in metrics and isfinite(metrics[key].value)}

    share = "Share of sentence pairs in which the model prefers the stereotype; 50 % is neutral. Bars: 95 % intervals."
    change = "Above 0 the student prefers stereotypes more often than its teacher. Bars: 95 % intervals."
    models = {who: of(who) for who in ("teacher", "base", "student")}
    plots = [
        _dots(f"Preference, {version.reference}", share, f"bias-{index}", axes_, models, 50),
        _dots(f"Change, {version.reference}", change, f"bias-change-{index}", axes_, {"change": of("change")}, 0),
    ]
    return [plot for plot in plots if plot is not None]


def _dots(
    title: str,
    caption: str,
    name: str,
    rows: Sequence[str],
    series: Mapping[str, Mapping[str, MetricValue]],
    neutral: float,
) -> Plot | None:
    """A row per axis, a dot per model, in per cent."""
    series = {label: metrics for label, metrics in series.items() if metrics}
    if not series:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        for number, (label, metrics) in enumerate(series.items()):
            places = [rows.index(axis) + 0.2 * (number - (len(series) - 1) / 2) for axis in metrics]
            values = [100 * metric.value for metric in metrics.values()]
            below = [100 * (metric.value - metric.low) for metric in metrics.values()]
            above = [100 * (metric.high - metric.value) for metric in metrics.values()]
            axes.errorbar(values, places, xerr=[below, above], label=label, **_dot(number))
        axes.axvline(neutral, color=INK, linewidth=1, zorder=0)
        axes.set_yticks(range(len(rows)), [row.replace("_", " ") or "all axes" for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("pairs, %" if neutral else "pairs, percentage points")
        if len(series) > 1:
            _legend(figure, axes)

    return Plot(title, caption, _svg(name, draw, height=1.3 + 0.42 * len(rows)))


def energy(version: Version) -> list[Plot]:
    """``energy(version)``: estimated watt-hours of each stage of the build, and of answering."""
    estimate = version.manifest.energy
    total = format_number(float(sum(estimate.stages_wh.values())))
    plots = [
        _bars(f"Building, {version.reference}", f"By stage, {total} Wh in total.", "energy-stages", estimate.stages_wh),
        _bars(f"Answering, {version.reference}", "For 1,000 generated tokens.", "energy-tokens", estimate.per_1000_tokens_wh),
    ]
    return [plot for plot in plots if plot is not None]


def _bars(title: str, caption: str, name: str, values: Mapping[str, float]) -> Plot | None:
    if not values:
        return None

    def draw(figure: Figure) -> None:
        axes = _axes(figure)
        bars = axes.barh(range(len(values)), list(values.values()), height=0.6, color=SERIES[0])
        axes.bar_label(bars, [format_number(float(value)) for value in values.values()], padding=4, color=INK)
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
    """A colour and a marker: series are never told apart by colour alone."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)], "linestyle": "", "capsize": 3}


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the plot, where it covers no point."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) < 10 else 2 if max(map(len, labels)) < 26 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)


def _svg(name: str, draw: Callable[[Figure], None], height: float = 3.8) -> str:
    """An ``<svg>`` element that fills its container, 5.2 x ``height`` in proportion, in the page's colours."""
    import matplotlib
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: selectable, and read out
        "svg.hashsalt": name,
        "text.parse_math": False,  # a dollar in a name does not start a formula
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "font.size": 11,
    }
    written = io.StringIO()
    with matplotlib.rc_context(settings | dict.fromkeys(inks, INK)), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a character that only the reader's fonts have
        figure = Figure(figsize=(5.2, height), layout="constrained")
        draw(figure)
        nothing: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]  # no XML or DOCTYPE line inside HTML
    svg = re.sub(
        r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL
    )  # its rules would apply to the whole page
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{re.sub(r'[^a-z0-9]+', '-', name.lower())}-", svg)  # ids of one page
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.strip()
