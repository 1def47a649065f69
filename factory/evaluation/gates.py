"""The verdict: which of a family's gates a student's figures pass. No torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from factory.config.schema import Gate
from factory.evaluation.metrics import gate_line
from factory.evaluation.stats import MetricValue


@dataclass(frozen=True)
class Judged:
    """One gate and what it found; ``found`` is None where the figure was not measured or is no number."""

    metric: str
    of: Literal["value", "low", "high"]
    bound: Literal["at_most", "at_least"]
    threshold: float
    found: float | None
    passed: bool


def judge(figures: Mapping[str, MetricValue], gates: Mapping[str, Gate]) -> dict[str, Any]:
    """``judge(report.metrics, family.gates_of(domain))["status"]``: the manifest's ``verdict``.

    A figure on its threshold passes; one that is no number, or that a required gate does not find, fails. Without a gate
    the status is ``unchecked``.
    """
    judged = [one for name, gate in gates.items() if (one := _judged(name, gate, figures)) is not None]
    failed = [one for one in judged if not one.passed]
    return {
        "status": "unchecked" if not judged else "failed" if failed else "passed",
        "reasons": [_explained(one, figures) for one in failed],
        "gates": [asdict(one) for one in judged],
    }


def _judged(name: str, gate: Gate, figures: Mapping[str, MetricValue]) -> Judged | None:
    figure = figures.get(name)
    if figure is None and not gate.required:
        return None
    number = float(getattr(figure, gate.of)) if figure is not None else math.nan
    found = number if math.isfinite(number) else None
    if gate.at_most is not None:
        return Judged(name, gate.of, "at_most", gate.at_most, found, found is not None and found <= gate.at_most)
    assert gate.at_least is not None
    return Judged(name, gate.of, "at_least", gate.at_least, found, found is not None and found >= gate.at_least)


def _explained(judged: Judged, figures: Mapping[str, MetricValue]) -> str:
    """The reason, with what a mistyped figure may have meant."""
    close = [] if judged.metric in figures else difflib.get_close_matches(judged.metric, figures, n=1)
    return gate_line(asdict(judged)) + (f" (did you mean {close[0]}?)" if close else "")
