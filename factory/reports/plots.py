"""The plots of a report: an SVG element each, its colours the page's variables. What a manifest lacks has no plot.

fidelity(versions), curves(versions)         # of several versions beside each other
bias(version, index=0), energy(version)      # of one
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factory.evaluation.metrics import format_number
from factory.registry.versions import Version, entries, read_metric, read_parameters, section

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


@dataclass(frozen=True)
class Plot:
    """One drawing: its heading, what it shows in words, and the SVG element."""

    title: str
    caption: str
    svg: str


def fidelity(versions: Sequence[Version]) -> Plot | None:
    """``fidelity(versions)``: size against fidelity, a point a version, the teacher where it belongs."""
    key = next((key for key in ("kl", "top1_agreement") if any(_interval(v.raw, key) for v in versions)), None)
    sizes = {version.reference: read_parameters(version.raw) for version in versions}
    of_teacher = any(own and teacher for own, teacher in sizes.values())
    points = []
    for index, version in enumerate(versions):
        own, teacher = sizes[version.reference]
        figure = _interval(version.raw, key) if key else None
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


def curves(versions: Sequence[Version]) -> Plot | None:
    """``curves(versions)``: the training loss by step, a line a version."""
    lines = []
    for index, version in enumerate(versions):
        curve = entries(version.raw, "training", "curve")
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


def bias(version: Version, index: int) -> list[Plot]:
    """``bias(version, 0)``: stereotype preference by axis of teacher, base and student; how far it is from the teacher's.

    index: tells the drawings of one page apart.
    """
    pattern = re.compile(r"bias_(?:(\w+)_)?preference_(?:teacher|base|student|change)")
    names = section(version.raw, "evaluation", "metrics")
    axes_ = list(dict.fromkeys(match[1] or "" for name in names if (match := pattern.fullmatch(name))))
    axes_ = [axis for axis in axes_ if axis] + [axis for axis in axes_ if not axis]  # all together last

    def of(who: str) -> dict[str, tuple[float, float, float]]:
        keys = {axis: f"bias_{axis}_preference_{who}" if axis else f"bias_preference_{who}" for axis in axes_}
        return {axis: figure for axis, key in keys.items() if (figure := _interval(version.raw, key))}

    share = "Share of sentence pairs in which the model prefers the stereotype; 50 % prefers neither. Bars: 95 % intervals."
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


def energy(version: Version) -> list[Plot]:
    """``energy(version)``: watt-hours of each stage of building, and of answering; as far as they were estimated."""
    estimated = section(version.raw, "energy")
    stages = _finite(section(estimated, "stages_wh"))
    answering = _finite(section(estimated, "per_1000_tokens_wh"))
    sum_ = format_number(float(sum(stages.values())))
    plots = [
        _bars(f"Building, {version.reference}", f"Estimate by stage, {sum_} Wh together.", "energy-stages", stages),
        _bars(f"Answering, {version.reference}", "Estimate for 1,000 generated tokens.", "energy-tokens", answering),
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


def _interval(manifest: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """Value, low, high of a figure; both ends are the value where no interval was recorded."""
    metric = read_metric(manifest, name)
    if metric is None or not _number(metric["value"]):
        return None
    value = float(metric["value"])
    low, high = (float(metric[end]) if _number(metric[end]) else value for end in ("low", "high"))
    return value, min(low, value), max(high, value)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if _number(value)}


def _number(value: Any) -> bool:
    """Neither a bool nor NaN, infinity or a word."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
