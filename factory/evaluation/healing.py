"""How close healing brought a base to its teacher, and which path brings it closest.

report = healing_report(320, before, after, bootstrap)
warnings = healing_warnings(report)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from factory.evaluation.stats import BootstrapConfig, ExampleSums, paired_difference, summarize
from factory.registry.manifest import HealingReport, MetricValue

PathName = Literal["direct", "stepwise", "teacher_assistant"]
METRICS = ("kl", "top5_overlap", "entropy_gap")


def healing_report(steps: int, before: ExampleSums, after: ExampleSums, bootstrap: BootstrapConfig) -> HealingReport:
    """``healing_report(320, before, after, bootstrap).after["kl"].value``: of what ``measure`` found before and after."""
    summaries = [summarize(sums, None, bootstrap) for sums in (before, after)]
    first, last = ({name: metrics[name] for name in METRICS} for metrics in summaries)
    return HealingReport(steps=steps, before=first, after=last)


def healing_warnings(report: HealingReport) -> list[str]:
    """``healing_warnings(report)``: one line where the base is no closer to its teacher than before, else none."""
    before, after = report.before["kl"].value, report.after["kl"].value
    if not after >= before:  # NaN, where nothing was held out, does not warn
        return []
    return [
        f"healing did not bring the base closer to its teacher: KL {before:.3f} → {after:.3f} nats/token on held-out text "
        f"after {report.steps} steps; lower heal.learning_rate or heal on more text"
    ]


def best_path(probes: Mapping[PathName, ExampleSums], bootstrap: BootstrapConfig) -> tuple[PathName, MetricValue]:
    """``best, ahead = best_path({"direct": direct, "stepwise": stepwise}, bootstrap)``: the best one but the direct one.

    ``ahead`` is the direct path's KL to the teacher less its own, after as many steps and on the same held-out examples; it
    is better where the lower end is above 0.
    """
    direct = probes["direct"]
    others = {name: sums for name, sums in probes.items() if name != "direct"}
    ahead = {name: paired_difference(direct.kl, sums.kl, direct.tokens, bootstrap) for name, sums in others.items()}
    best = max(ahead, key=lambda name: ahead[name].value)
    return best, ahead[best]
