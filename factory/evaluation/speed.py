"""How fast a student answers beside its teacher, one after the other on one machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.models.chat import stop_tokens
from factory.models.generation import sample
from factory.models.lora import merged_adapters
from factory.models.packing import packed_weights
from factory.models.teacher import Teacher
from factory.registry.manifest import Speed, Speeds

LATENCY_PROMPTS = 5
STREAMS = 16
TOKENS = 16  # of each stream


def compare_speed(adapter: Any, teacher: Teacher, prompts: Sequence[Sequence[int]]) -> Speeds:
    """``compare_speed(adapter, teacher, prompts).student.latency_ms``: of prompts in ids.

    Adapters are merged into their base beforehand and weights packed, as an application that serves one student has them.
    """
    student = student_speed(adapter, teacher, prompts)
    with packed_weights(teacher.model):
        return Speeds(teacher=measure_speed(teacher.model, prompts, stop_tokens(teacher.tokenizer)), student=student)


def student_speed(adapter: Any, teacher: Teacher, prompts: Sequence[Sequence[int]]) -> Speed:
    """``student_speed(adapter, teacher, prompts).latency_ms``: of the student alone; ``teacher`` has its tokens."""
    with merged_adapters(adapter), packed_weights(adapter):
        return measure_speed(adapter, prompts, stop_tokens(teacher.tokenizer))


def measure_speed(model: Any, prompts: Sequence[Sequence[int]], stop: Sequence[int]) -> Speed:
    """``measure_speed(model, prompts, stop).tokens_per_second``: ms to the first token, then tokens/s of 1 and 16 streams."""
    latencies = []
    for prompt in prompts[:LATENCY_PROMPTS]:
        begun = time.perf_counter()
        sample(model, [prompt], stop=stop, max_new_tokens=1)
        latencies.append(1000 * (time.perf_counter() - begun))
    return Speed(
        latency_ms=float(np.median(latencies)),
        tokens_per_second=_tokens_per_second(model, [prompts[0]]),
        batch_tokens_per_second=_tokens_per_second(model, [prompts[0]] * STREAMS),
    )


def _tokens_per_second(model: Any, prompts: Sequence[Sequence[int]]) -> float:
    begun = time.perf_counter()
    generated = sample(model, prompts, stop=(), max_new_tokens=TOKENS)
    return sum(map(len, generated)) / (time.perf_counter() - begun)
