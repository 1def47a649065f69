"""How numbers are written in tables, cards and reports.

format_number(0.755, "%")                                   # "75.5 %"
format_metric(version.manifest.evaluation.metrics["kl"])    # "0.412 [0.380, 0.440]"
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factory.registry.manifest import MetricValue

DASH = "-"  # of what was not measured
PREFIXES = {"parameters": ("", " k", " M", " G"), "bytes": (" B", " kB", " MB", " GB")}


def format_number(value: float | None, unit: str = "") -> str:
    """``format_number(0.4123)`` → "0.412"; ``(0.75, "%")`` → "75.0 %"; ``(80e6, "parameters")`` → "80.0 M".

    A dash for None, NaN and infinity.
    """
    if value is None or not math.isfinite(value):
        return DASH
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit in PREFIXES:
        step = min(3, (len(str(int(abs(value)))) - 1) // 3)
        return f"{value / 1000**step:.{1 if step else 0}f}{PREFIXES[unit][step]}"
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"  # a learning rate, which three decimals would round to 0
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def format_metric(metric: MetricValue | float | None, unit: str = "") -> str:
    """``format_metric(MetricValue(0.4, 0.38, 0.44, 5120))`` → "0.400 [0.380, 0.440]"; a plain number has no interval."""
    if metric is None or isinstance(metric, int | float):
        return format_number(metric, unit)
    interval = format_interval(metric, unit)
    return f"{format_number(metric.value, unit)} [{interval}]" if interval else format_number(metric.value, unit)


def format_interval(metric: MetricValue | float | None, unit: str = "") -> str:
    """``format_interval(MetricValue(0.4, 0.38, 0.44, 5120))`` → "0.380, 0.440"; empty where there is none."""
    if metric is None or isinstance(metric, int | float):
        return ""
    low, high = format_number(metric.low, unit), format_number(metric.high, unit)
    return "" if DASH in (low, high) else f"{low}, {high}"
