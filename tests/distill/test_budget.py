"""Equal budgets: a training ends when its minutes or its teacher tokens are spent, and its schedule ends with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

import factory.distill.budget as module
from factory.config.schema import DistillConfig
from factory.distill.budget import Budget, Spent, schedule, train_within
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import DistillTrainer
from factory.distill.training_data import TrainingSet
from factory.distill.trl_gkd import make_trl_trainer
from factory.models.base import attach_adapter

TEACHER = tiny.teacher()
ROWS = tiny.sequences(4, context=tiny.NO_CONTEXT)
TOKENS = sum(len(one.completion) for one in ROWS)  # of a batch, which is all rows
MANY = 10_000


def config(**over: Any) -> DistillConfig:
    settings = {"steps": MANY, "batch": 4, "learning_rate": 5e-3, "rank": 4, "alpha": 8, "max_new_tokens": 5}
    return DistillConfig.model_validate(settings | over)


def ours(folder: Path, settings: DistillConfig) -> DistillTrainer:
    store = SoftTargetStore.make(folder / "targets", TEACHER, ROWS, top_k=16, temperature=1.0)
    training_set, base = TrainingSet(ROWS, store, np.zeros((4, 1), dtype=np.float32)), tiny.base()
    return DistillTrainer(attach_adapter(base, settings), base, TEACHER, training_set, settings, folder=folder / "run", seed=0)


def theirs(folder: Path, settings: DistillConfig) -> Any:
    base = tiny.base()
    return make_trl_trainer(attach_adapter(base, settings), base, TEACHER, ROWS, settings, folder=folder, seed=0)


class Rates(module.TrainerCallback):  # type: ignore[misc]
    """The learning rates that the steps were taken with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(kwargs["optimizer"].param_groups[0]["lr"])


@pytest.mark.parametrize("make", [ours, theirs], ids=["this project's", "trl's"])
def test_both_trainers_end_with_the_step_that_spends_the_last_teacher_token(make: Any, tmp_path: Path) -> None:
    trainer, rates = make(tmp_path, config()), Rates()
    trainer.add_callback(rates)
    spent = train_within(trainer, Budget(minutes=60, teacher_tokens=5 * TOKENS - 1))
    assert (spent.steps, spent.teacher_tokens) == (5, 5 * TOKENS)
    assert 0 < spent.minutes < 2
    shares = [step * TOKENS / (5 * TOKENS - 1) for step in range(5)]
    assert rates.seen == pytest.approx([5e-3 * schedule(share) for share in shares])


@pytest.mark.parametrize("make", [ours, theirs], ids=["this project's", "trl's"])
def test_both_trainers_count_the_tokens_that_the_student_samples(make: Any, tmp_path: Path) -> None:
    trainer = make(tmp_path, config(lmbda=1.0))
    spent = train_within(trainer, Budget(minutes=60, teacher_tokens=30))
    per_step = spent.teacher_tokens / spent.steps
    assert spent.teacher_tokens >= 30 and len(ROWS) <= per_step <= 5 * len(ROWS)


def test_a_training_ends_when_its_minutes_are_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 30))  # half a minute a step
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    spent = train_within(ours(tmp_path, config()), Budget(minutes=1.5, teacher_tokens=10**9))
    assert spent == Spent(1.5, 3 * TOKENS, 3)


def test_the_learning_rate_rises_and_falls_with_the_share_that_is_spent() -> None:
    assert [schedule(share) for share in (0.0, 0.025, 0.05, 1.0, 1.2)] == pytest.approx([0.0, 0.5, 1.0, 0.0, 0.0])
    assert schedule(0.525) == pytest.approx(0.5)  # half way down
    assert schedule(0.3) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 0.25 / 0.95))


def test_trl_s_trainer_learns_and_leaves_the_teacher_as_it_is(tmp_path: Path) -> None:
    before = {name: p.detach().clone() for name, p in TEACHER.model.named_parameters()}
    forward = TEACHER.model.forward
    trainer = theirs(tmp_path, config(learning_rate=3e-2))
    train_within(trainer, Budget(minutes=60, teacher_tokens=30 * TOKENS))
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert TEACHER.model.forward == forward
    assert all(torch.equal(p, before[name]) for name, p in TEACHER.model.named_parameters())
