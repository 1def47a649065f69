"""Which of a family's gates a student passes. No torch.

verdict = judge(metrics, family.gates_of(domain))
verdict.status   # "passed", "failed", "undecidable" or "unchecked"
verdict.reasons  # ("KL(teacher ‖ student), nats/token: 0.912 > 0.8 (upper end of the interval)",)
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from factory.config.schema import Gate
from factory.evaluation.metrics import metric_named, needs_distributions
from factory.registry.manifest import GateResult, MetricValue, Verdict

ENDS = {"value": "", "low": " (lower end of the interval)", "high": " (upper end of the interval)"}


def judge(
    metrics: Mapping[str, MetricValue],
    gates: Mapping[str, Gate],
    champion: str | None = None,
    *,
    texts_alone: bool = False,
) -> Verdict:
    """``judge(metrics, family.gates_of(domain)).status``

    ``failed`` where a gate failed, else ``undecidable`` where one is, else ``passed``; ``unchecked`` where no gate applies. A
    metric equal to its threshold passes. One that is not finite, or that a required gate does not find, fails. ``champion`` is
    the version that the metrics compare the student with. ``texts_alone``: the teacher gave no distributions, so that a
    required gate on what needs them is undecidable.
    """
    results = tuple(
        apply_gate(name, gate, metrics.get(name)) for name, gate in gates.items() if name in metrics or gate.required
    )
    if texts_alone:
        results = tuple(
            one.model_copy(update={"status": "undecidable"}) if one.found is None and needs_distributions(one.metric) else one
            for one in results
        )
    open_gates = [result for result in results if result.status != "passed"]
    found = {result.status for result in results}
    return Verdict(
        status="failed" if "failed" in found else "undecidable" if open_gates else "passed" if results else "unchecked",
        reasons=tuple(describe_gate(result) + _did_you_mean(result.metric, metrics) for result in open_gates),
        gates=results,
        champion=champion,
    )


def apply_gate(name: str, gate: Gate, metric: MetricValue | None) -> GateResult:
    """``apply_gate("kl", Gate(at_most=0.8, of="high"), metrics.get("kl")).status``"""
    end = math.nan if metric is None else float(getattr(metric, gate.of))
    at_most = gate.at_most is not None
    threshold = gate.at_most if gate.at_most is not None else gate.at_least
    assert threshold is not None  # a gate has one of the two

    def met(found: float) -> bool:
        return found <= threshold if at_most else found >= threshold  # False for NaN

    result = GateResult(
        metric=name,
        of=gate.of,
        bound="at_most" if at_most else "at_least",
        threshold=threshold,
        found=end if math.isfinite(end) else None,
        status="passed" if math.isfinite(end) and met(end) else "failed",
    )
    if metric is None or not metric_named(name).items or not math.isfinite(end):
        return result
    reach = (metric.high - metric.low) / 2
    decisive = math.ceil(round(metric.n * (reach / gate.margin) ** 2, 6))  # an interval narrows with the square root of n
    possible = met(metric.low if at_most else metric.high)  # by the interval's better end
    undecided = possible and reach > gate.margin
    counted = {"margin": gate.margin, "n": metric.n, "decisive_n": decisive}
    return result.model_copy(update=counted | ({"status": "undecidable"} if undecided else {}))


def describe_gate(gate: GateResult) -> str:
    """``describe_gate(result)`` → "KL(teacher ‖ student), nats/token: 0.912 > 0.8 (upper end of the interval)".

    Six digits, so that a metric just beyond its threshold does not look equal to it.
    """
    label, at_most = metric_named(gate.metric).label, gate.bound == "at_most"
    if gate.found is None:
        return f"{label}: not measured, the gate needs {'at most' if at_most else 'at least'} {gate.threshold:.6g}"
    if gate.status == "undecidable":
        return (
            f"{label}: undecidable with {gate.n} items; about {gate.decisive_n} would show within ±{gate.margin:g} "
            f"whether it is {'at most' if at_most else 'at least'} {gate.threshold:.6g}"
        )
    relation = ("≤" if at_most else "≥") if gate.status == "passed" else (">" if at_most else "<")
    return f"{label}: {gate.found:.6g} {relation} {gate.threshold:.6g}{ENDS[gate.of]}"


def _did_you_mean(name: str, metrics: Mapping[str, MetricValue]) -> str:
    """A hint where a gate's name is misspelt."""
    close = [] if name in metrics else difflib.get_close_matches(name, metrics, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
