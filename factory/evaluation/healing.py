"""How close healing brought a base to its teacher, and whether a teacher assistant closes the gap further.

report = healing_report(320, before, after, bootstrap)
warnings = healing_warnings(report)
"""

from __future__ import annotations

from factory.evaluation.stats import BootstrapConfig, ExampleSums, paired_difference, summarize
from factory.registry.manifest import HealingReport, MetricValue

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


def teacher_assistant_helps(direct: ExampleSums, assisted: ExampleSums, bootstrap: BootstrapConfig) -> tuple[bool, MetricValue]:
    """``helps, ahead = teacher_assistant_helps(direct, assisted, bootstrap)``

    ``ahead`` is the KL to the teacher of the direct path less that of the path by a teacher assistant (Mirzadeh et al.
    2019, arXiv 1902.03393), after as many steps and on the same held-out examples; it helps where the lower end is above 0.
    """
    ahead = paired_difference(direct.kl, assisted.kl, direct.tokens, bootstrap)
    return ahead.low > 0, ahead
