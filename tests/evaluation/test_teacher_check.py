"""The teacher pre-check on tiny models: what it passes, what it refuses, and the reasons it gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support import tiny

from factory.evaluation.fidelity import fixed_model
from factory.evaluation.lm_eval import TaskResult
from factory.evaluation.stats import BootstrapConfig
from factory.evaluation.teacher_check import check_teacher, references, unigram_nll
from factory.models.chat import NO_CONTEXT

BOOTSTRAP = BootstrapConfig(200)


def test_a_teacher_passes_where_it_is_ahead_and_fails_beside_an_equal_base() -> None:
    model, examples = tiny.memorized()
    teacher, base = tiny.teacher(model), tiny.llama(seed=4)
    training = [s.completion for s in examples]
    knows = check_teacher(teacher, fixed_model(base), examples, training, BOOTSTRAP, kept_mass=1.0)
    assert knows.reasons == ()
    assert knows.metrics["teacher_ahead_of_base"].low > 0
    equal = check_teacher(teacher, fixed_model(model), examples, training, BOOTSTRAP, kept_mass=1.0)
    assert len(equal.reasons) == 1 and "ahead of the base" in equal.reasons[0]
    assert abs(equal.metrics["teacher_ahead_of_base"].value) < 0.02  # bfloat16 candidates


def test_beside_a_trimmed_base_a_teacher_that_is_not_ahead_is_a_warning() -> None:
    model, examples = tiny.memorized()
    training = [s.completion for s in examples]
    equal = check_teacher(tiny.teacher(model), fixed_model(model), examples, training, BOOTSTRAP, kept_mass=1.0, trimmed=True)
    assert equal.reasons == () and "the adapter has little to learn" in equal.warnings[0]
    taught = check_teacher(
        tiny.teacher(model),
        fixed_model(model),
        examples,
        training,
        BOOTSTRAP,
        kept_mass=1.0,
        trimmed=True,
        learns_references=True,
    )
    assert taught.reasons == taught.warnings == ()
    ahead = check_teacher(
        tiny.teacher(model), fixed_model(tiny.llama(seed=4)), examples, training, BOOTSTRAP, kept_mass=1.0, trimmed=True
    )
    assert ahead.reasons == ahead.warnings == ()


def test_a_teacher_below_chance_and_a_vocabulary_that_keeps_too_little_fail() -> None:
    examples = tiny.sequences(12, NO_CONTEXT)
    untrained = tiny.teacher(tiny.llama(seed=3))
    found = check_teacher(
        untrained, fixed_model(tiny.llama(seed=4)), examples, [s.completion for s in examples], BOOTSTRAP, kept_mass=0.8
    )
    assert any("ahead of chance" in reason for reason in found.reasons)
    assert any("keeps 0.800 of its probability mass" in reason for reason in found.reasons)


def task(teacher: list[float], base: list[float]) -> TaskResult:
    return TaskResult("quiz", "acc_norm", 0.25, {"teacher": np.array(teacher), "base": np.array(base)})


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (([1.0] * 20, [0.0] * 20), None),
        (([0.0] * 20, [0.0] * 20), "no better than chance (0.250)"),
        (([0.0, 1.0] * 10, [1.0] * 20), "relative to the base"),
    ],
)
def test_tasks_decide_only_beyond_their_interval(scores: tuple[list[float], list[float]], reason: str | None) -> None:
    model, examples = tiny.memorized()
    found = check_teacher(
        tiny.teacher(model), fixed_model(tiny.llama(seed=4)), examples, [s.completion for s in examples],
        BOOTSTRAP, kept_mass=1.0, tasks=[task(*scores)],
    )  # fmt: skip
    assert (reason is None and found.reasons == ()) or (reason is not None and reason in found.reasons[-1])


def test_chance_is_the_smoothed_frequency_of_training_tokens() -> None:
    (sequence,) = tiny.sequences(1, NO_CONTEXT)
    one = type(sequence)(sequence.prompt, sequence.teacher_prompt, [2, 3])
    nll = unigram_nll([one], [[2, 2], [2]], vocabulary=4)
    assert nll == pytest.approx([-math.log(4 / 7) - math.log(1 / 7)])


def test_references_come_from_sources_where_there_are_enough() -> None:
    own = [{"own_completion": True}] * 8
    others = [{"own_completion": False}] * 3
    assert references([*own, *others]) == own
    assert references([*own[:7], *others]) == [*own[:7], *others]
    assert references([]) == []
