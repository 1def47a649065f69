"""Numbers are short, and what was not measured is a dash."""

from __future__ import annotations

import subprocess
import sys

import pytest

from factory.registry.manifest import MetricValue
from factory.reports.format import format_metric, format_number


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.41234, "", "0.412"),
        (1234.56, "", "1,234.6"),
        (5120, "", "5,120"),
        (1e-4, "", "1.0e-04"),
        (0.755, "%", "75.5 %"),
        (134_515_008, "parameters", "134.5 M"),
        (999, "bytes", "999 B"),
        (0, "bytes", "0 B"),
        (2_500_000_000_000, "bytes", "2500.0 GB"),
        (None, "", "-"),
        (float("nan"), "%", "-"),
        (float("inf"), "bytes", "-"),
    ],
)
def test_numbers_are_short(value: float | None, unit: str, written: str) -> None:
    assert format_number(value, unit) == written


def test_a_metric_has_its_interval_where_there_is_one() -> None:
    nan = float("nan")
    assert format_metric(MetricValue(0.4, 0.38, 0.44, 5120)) == "0.400 [0.380, 0.440]"
    assert format_metric(MetricValue(0.76, 0.75, 0.77, 5120), "%") == "76.0 % [75.0 %, 77.0 %]"
    assert format_metric(MetricValue(0.4, nan, nan, 1)) == "0.400"
    assert format_metric(MetricValue(nan, nan, nan, 0)) == format_metric(None) == "-"
    assert format_metric(80_000_000, "parameters") == "80.0 M"


@pytest.mark.parametrize("module", ["format", "view", "compare", "console", "html", "card", "review"])
def test_importing_a_report_loads_nothing_heavy(module: str) -> None:
    heavy = {"rich", "numpy", "torch", "matplotlib", "jinja2", "huggingface_hub", "pydantic"}
    code = f"import sys, factory.reports.{module}; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
