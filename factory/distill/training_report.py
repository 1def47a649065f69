"""What is known of a training when it has ended: its curve, the share of each term, and the step whose weights were kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

# What a curve has of the trainer's log, and its name there.
COLUMNS = {name: name for name in ("loss", "response", "ground_truth", "feature", "relation", "learning_rate")}
COLUMNS["eval_loss"] = "validation"


@dataclass(frozen=True)
class TrainingReport:
    """What is known of a training when it has ended."""

    curve: list[dict[str, float]]  # by step: loss, each of its terms, learning rate; at checks the loss on validation too
    gradient_shares: dict[str, float]  # median share of each term; empty where the objective has one term only
    kept_step: int | None = None  # whose weights were kept; None is the last one, where nothing was checked

    def followed_by(self, later: TrainingReport, steps: int) -> TrainingReport:
        """``report.followed_by(later, 60)``: with the curve of one that went on after 60 steps."""
        curve = [{**point, "step": point["step"] + steps} for point in later.curve]
        return replace(self, curve=[*self.curve, *curve])


def learning_curve(log: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """``learning_curve(trainer.state.log_history)[0]["loss"]``: a point for each step that was logged or checked."""
    points: dict[float, dict[str, float]] = {}
    for row in log:
        if "loss" in row or "eval_loss" in row:  # the log's last row has means over what no point is of
            found = {name: float(row[key]) for key, name in COLUMNS.items() if key in row}
            points.setdefault(row["step"], {"step": float(row["step"])}).update(found)
    return list(points.values())
