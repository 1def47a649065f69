"""Speed of teacher and student."""

from __future__ import annotations

from support import tiny

from factory.config.schema import DistillConfig
from factory.evaluation.speed import compare_speed
from factory.models.base import attach_adapter


def test_speed_is_measured_of_both_models() -> None:
    adapter = attach_adapter(tiny.base(), DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8))
    speeds = compare_speed(adapter, tiny.teacher(), [one.prompt for one in tiny.sequences(2)])
    for speed in (speeds.teacher, speeds.student):
        assert min(speed.latency_ms, speed.tokens_per_second, speed.batch_tokens_per_second) > 0
