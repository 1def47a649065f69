"""The results of an experiment as a table and as CSV, from the JSON that it wrote.

content = json.loads(Path("results.json").read_text())
markdown_table(content), csv_text(content)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from factory.evaluation.metrics import metric_named
from factory.registry.manifest import MetricValue
from factory.reports.format import DASH, format_metric, format_number

Content = Mapping[str, Any]
SPENT = {"minutes": 1, "teacher_tokens": 0, "steps": 0}  # and the digits that are shown
SHOWN = ("kl", "top1_agreement", "bits_per_byte", "golden_set_passed")  # with a column of their own; the CSV has all


def table_rows(content: Content) -> list[list[str]]:
    """``headings, *rows = table_rows(content)``: the base as it was, and a row per method, its KL beside the first method's."""
    first = content["methods"][0]
    labels = [metric_named(name).label for name in SHOWN if name in first["metrics"]]
    paired = [f"KL minus that of {first['name']} (paired)", "p (Holm)", "KL of each seed"]
    headings = ["method", "learning rate", *labels, *paired, "minutes", "teacher tokens", "steps"]
    before = ["base, untrained", DASH, *_values(content["untrained"])]
    return [headings, before + [DASH] * (len(headings) - len(before)), *map(_row, content["methods"])]


def _row(method: Content) -> list[str]:
    kl = method["metrics"]["kl"]
    return [
        method["name"],
        format_rate(method["learning_rate"]) + (" (edge)" if method["at_edge"] else ""),
        *_values({name: one["value"] for name, one in method["metrics"].items()}),
        _metric(kl["difference"]),
        format_p(kl["p_holm"]),
        ", ".join(map(format_number, kl["seeds"])),
        *(f"{_mean(method, name):,.{digits}f}" for name, digits in SPENT.items()),
    ]


def _values(metrics: Content) -> list[str]:
    return [_metric(metrics[name], metric_named(name).unit) for name in SHOWN if name in metrics]


def markdown_table(content: Content) -> str:
    """``markdown_table(content)``: the table, and what stands behind it in one line."""
    headings, *rows = table_rows(content)
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + f"\n{caption(content)}\n"


def caption(content: Content) -> str:
    """``caption(content)``: what all methods had in common."""
    first, examples = content["methods"][0]["metrics"]["kl"]["value"], content["examples"]
    return (
        f"{content['domain']}-{content['size']} on {content['base']}, profile {content['profile']}. "
        f"A run ends after {content['minutes']:g} min or {content['teacher_tokens']:,} teacher tokens; means are shown. "
        f"Learning rates {', '.join(map(format_rate, content['learning_rates']))}: the best on {examples['validation']} "
        "validation examples; edge: the lowest or the highest of them. "
        f"Test: {examples['test']} examples in {first['clusters']} clusters; seeds {', '.join(map(str, content['seeds']))}, "
        f"averaged within an example; 95 % intervals; Holm's correction over {len(content['methods']) - 1} comparisons."
    )


def csv_text(content: Content) -> str:
    """``csv_text(content)``: a line per method and metric, with the digests and the machine on each."""
    common = {
        **{name: content[name] for name in ("domain", "size", "profile", "base")},
        **{f"{name}_digest": digest for name, digest in content["digests"].items()},
        "git_commits": " ".join(content["git_commits"]),
        "processor": content["environment"]["processor"],
        "threads": content["environment"]["threads"],
        **content["environment"]["libraries"],
    }
    lines = [
        {
            "method": method["name"],
            "learning_rate": method["learning_rate"],
            "metric": metric,
            **_interval("", one["value"]),
            **_interval("difference_", one["difference"]),
            "p": one["p"],
            "p_holm": one["p_holm"],
            "seeds": " ".join(f"{value:.6g}" for value in one["seeds"] if value is not None),
            **{f"mean_{name}": _mean(method, name) for name in SPENT},
            **common,
        }
        for method in content["methods"]
        for metric, one in method["metrics"].items()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def format_rate(rate: float) -> str:
    """``format_rate(0.0005)`` → "5e-4"."""
    mantissa, _, exponent = f"{rate:.6e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def format_p(p: float | None) -> str:
    """``format_p(0.0123)`` → "0.012"; a dash for the first method."""
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _metric(content: Content | None, unit: Any = "") -> str:
    return DASH if content is None else format_metric(MetricValue(**content), unit)


def _interval(prefix: str, content: Content | None) -> dict[str, Any]:
    names = ("value", "low", "high", "n", "clusters")
    return {f"{prefix}{name}": None if content is None else content[name] for name in names}


def _mean(method: Content, name: str) -> float:
    """Of what its runs spent."""
    return fmean(run[name] for run in method["runs"])
