"""What a training may spend, in wall-clock time and in the teacher's tokens.

spent = train_within(DistillTrainer(...), Budget(minutes=10, teacher_tokens=60_000))
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import TrainerCallback

ENDLESS = 10**6  # optimizer steps of a config whose training ends with its budget, long before
WARM_UP = 0.05  # share of the budget over which the learning rate rises


@dataclass(frozen=True)
class Budget:
    """A training ends when either is spent."""

    minutes: float  # from the first step on; loading models and scoring what is stored are not in it
    teacher_tokens: int  # answer tokens with the teacher's signal in a loss; one that is read again counts again


@dataclass(frozen=True)
class Spent:
    """What a training took."""

    minutes: float
    teacher_tokens: int
    steps: int


class CountingTrainer(Protocol):
    """A transformers trainer that counts the answer tokens of its losses."""

    teacher_tokens: int

    def add_callback(self, callback: Any) -> None: ...
    def train(self) -> Any: ...


def train_within(trainer: CountingTrainer, budget: Budget) -> Spent:
    """``train_within(DistillTrainer(...), Budget(minutes=10, teacher_tokens=60_000)).minutes``: trains until either is spent.

    The step that spends the last of it is finished. The trainer's own number of steps is an upper bound.
    """
    running = _WithinBudget(trainer, budget)
    trainer.add_callback(running)
    trainer.train()
    return running.spent


class _WithinBudget(TrainerCallback):
    """Stops the training, and lets the learning rate follow the share that is spent, in place of the share of steps.

    So every run ends its schedule, however long its steps take (budgeted training, arXiv 1905.04753).
    """

    def __init__(self, trainer: CountingTrainer, budget: Budget) -> None:
        self.trainer, self.budget, self.spent, self.begun = trainer, budget, Spent(0.0, 0, 0), 0.0

    @property
    def share(self) -> float:
        """Of the budget, from 0 to a little above 1."""
        return max(self.spent.minutes / self.budget.minutes, self.spent.teacher_tokens / self.budget.teacher_tokens)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * schedule(self.share)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.spent = Spent((time.perf_counter() - self.begun) / 60, self.trainer.teacher_tokens, state.global_step)
        control.should_training_stop = control.should_training_stop or self.share >= 1


def schedule(share: float) -> float:
    """``schedule(0.5)``: the learning rate at this share of the budget, relative to its peak: a warm-up, then a cosine to 0."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (share - WARM_UP) / (1 - WARM_UP)))
