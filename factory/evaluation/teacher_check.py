"""The teacher pre-check: does the teacher know the domain that it is to teach? Nothing is trained.

check = check_teacher(teacher, fixed_model(base.model), held_out, training, bootstrap, kept_mass=0.98)
if check.reasons:
    raise TrainingError(check.failure("legal"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.evaluation.fidelity import Candidate, measure
from factory.evaluation.lm_eval import TaskResult
from factory.evaluation.stats import BootstrapConfig, mean, paired_difference
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample
from factory.registry.manifest import MetricValue

MIN_KEPT_MASS = 0.9  # of the teacher's distribution, in the student's vocabulary
MIN_AHEAD = 0.01  # nats/token: bfloat16 rounding alone can set two equal models this far apart
MIN_REFERENCES = 8  # of a domain's sources; with fewer, completions by the teacher count as references too


@dataclass(frozen=True)
class TeacherCheck:
    """What the teacher knows of a domain; ``reasons`` are empty where it passed, ``warnings`` do not stop a build."""

    metrics: dict[str, MetricValue]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    tasks: Sequence[TaskResult] = ()  # scores of teacher and base, for the evaluation to reuse


def references(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """``references(rows["validation"])``: rows whose completion comes from a source; all rows, where those are too few."""
    own = [row for row in rows if row["own_completion"]]
    return own if len(own) >= MIN_REFERENCES else list(rows)


def check_teacher(
    teacher: Teacher,
    base: Candidate,
    held_out: Sequence[TokenizedExample],
    training: Iterable[Sequence[int]],
    bootstrap: BootstrapConfig,
    *,
    kept_mass: float,
    tasks: Sequence[TaskResult] = (),
    trimmed: bool = False,
    learns_references: bool = False,
) -> TeacherCheck:
    """``check_teacher(teacher, base, held_out, training, bootstrap, kept_mass=0.98).reasons``

    On held-out references the teacher, with its context, must be ahead of the student's base and of chance by more than
    ``MIN_AHEAD`` nats/token, at the lower end of the paired 95 % interval. Chance is the frequency of tokens in
    ``training`` (completions in ids), smoothed by one. ``kept_mass`` is the share of the teacher's distribution that the
    student's vocabulary keeps. A ``trimmed`` base is the teacher without its context: where that says nothing, the adapter
    has little to learn, which is a warning, unless it ``learns_references`` that no teacher knows. On ``tasks``, which have
    few items, the teacher fails only where its whole interval is at chance or below, or behind the base.
    """
    sums = measure(teacher, {"base": base}, held_out)["base"]
    chance = unigram_nll(held_out, training, len(teacher.tokenizer))
    metrics = {
        "teacher_ahead_of_base": paired_difference(sums.nll, sums.teacher_nll, sums.tokens, bootstrap),
        "teacher_ahead_of_chance": paired_difference(chance, sums.teacher_nll, sums.tokens, bootstrap),
        "vocabulary_kept_mass": MetricValue(kept_mass, kept_mass, kept_mass, int(sums.tokens.sum())),
    }
    behind = {
        name: f"on the domain's references it is only {_with_n(metrics[name])} nats/token ahead of {other}; the lower end must "
        f"be above {MIN_AHEAD:g}"
        for name, other in (("teacher_ahead_of_base", "the base"), ("teacher_ahead_of_chance", "chance"))
        if not metrics[name].low > MIN_AHEAD  # NaN fails too
    }
    warnings = []
    if trimmed and behind.pop("teacher_ahead_of_base", "") and not learns_references:
        warnings.append(
            f"the base is the teacher with fewer tokens and only {_with_n(metrics['teacher_ahead_of_base'])} nats/token behind "
            "it: the adapter has little to learn; a teacher_context would give it more, or ground_truth on your own references"
        )
    reasons = list(behind.values())
    if kept_mass < MIN_KEPT_MASS:
        reasons.append(
            f"the student's vocabulary keeps {kept_mass:.3f} of its probability mass; at least {MIN_KEPT_MASS} is needed"
        )
    for task in tasks:
        reasons += _task_reasons(task, bootstrap)
    return TeacherCheck(metrics, tuple(reasons), tuple(warnings), tasks)


def _task_reasons(task: TaskResult, bootstrap: BootstrapConfig) -> list[str]:
    accuracy = mean(task.scores["teacher"], bootstrap)
    ahead = mean(task.scores["teacher"] - task.scores["base"], bootstrap)
    reasons = []
    if task.chance is not None and accuracy.high <= task.chance:
        reasons.append(f"on task {task.name} it scores {_with_n(accuracy)}, no better than chance ({task.chance:.3f})")
    if ahead.high < 0:
        reasons.append(f"on task {task.name} it scores {_with_n(ahead)} relative to the base")
    return reasons


def unigram_nll(held_out: Sequence[TokenizedExample], training: Iterable[Sequence[int]], vocabulary: int) -> np.ndarray:
    """``unigram_nll(held_out, training, len(tokenizer))``: (E,) nats of each completion under the training's token counts.

    Counts are smoothed by one; ``training`` are completions in ids.
    """
    counts = np.ones(vocabulary)
    for completion in training:
        np.add.at(counts, list(completion), 1)
    nats = -np.log(counts / counts.sum())
    return np.array([nats[example.completion].sum() for example in held_out])


def _with_n(metric: MetricValue) -> str:
    return f"{metric} (n {metric.n:,})"
