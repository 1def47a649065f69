"""The parts of an evaluation, each kept on disk as soon as it is measured, so that a stopped build repeats none.

part = kept_part(folder, "bias", lambda: Part(metrics=measure_bias(...)), context.say)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import Field, ValidationError

from factory.cache import keep, kept, storage_errors
from factory.evaluation.answers import Answer
from factory.registry.manifest import Entry, MetricValue, PerExample, Sample, Speeds
from factory.registry.plain_json import plain_json, to_json


class Part(Entry):
    """What one part of an evaluation found."""

    metrics: dict[str, MetricValue] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    baselines: dict[str, dict[str, MetricValue]] = Field(default_factory=dict)
    speed: Speeds | None = None
    samples: tuple[Sample, ...] = ()
    per_example: PerExample | None = None
    answers: dict[str, dict[str, Answer]] = Field(default_factory=dict)  # model → prompt → what it said
    per_1000_tokens_wh: dict[str, float] = Field(default_factory=dict)  # by model, while it answered
    risk_coverage: tuple[tuple[float, float], ...] = ()
    passed: dict[str, tuple[bool, ...]] = Field(default_factory=dict)  # model → golden-set questions, in order


def kept_part(folder: Path, name: str, measure: Callable[[], Part], say: Callable[[str], object]) -> Part:
    """``kept_part(folder, "bias", measure, say).metrics``: what ``folder`` has under that name, else measured and kept there.

    A file that was damaged, or is of an older version, is measured again.
    """
    path = folder / f"{name}.json"
    content = kept(path, say)
    if content is not None:
        with suppress(ValidationError):
            return Part.model_validate_json(content)
    found = measure()
    with storage_errors(f"cannot keep what was measured in {folder}"):
        keep(path, to_json(plain_json(found.model_dump(), name)))
    return found


def count_parts(folder: Path) -> int:
    """``count_parts(folder)``: how many are kept there."""
    return len(list(folder.glob("*.json")))
