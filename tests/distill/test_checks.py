"""Checks on validation: the best weights are kept, training ends when they get no better, and resuming changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from torch import Tensor, nn

import factory.distill.trainer as module
from factory.config.schema import DistillConfig
from factory.distill import training_arguments
from factory.distill.checkpoints import checkpoints
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import PROJECTION, DistillTrainer, distill
from factory.distill.training_data import TrainingSet, concat
from factory.distill.training_report import TrainingReport, learning_curve
from factory.errors import TrainingError
from factory.models.base import attach_adapter

TEACHER = tiny.teacher()
ROWS, HELD_OUT = tiny.sequences(6), tiny.sequences(6, seed=50)
# The loss at each check of a training with a check every second step: the second one is the best.
LOSSES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5, 12: 0.4}
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_arguments, "LOG_EVERY", 1)


def stored(folder: Path, rows: Any) -> TrainingSet:
    store = SoftTargetStore.make(folder, TEACHER, rows, top_k=16, temperature=1.0)
    return TrainingSet(rows, store, np.random.default_rng(0).normal(size=(len(rows), 5)).astype(np.float32))


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Six examples to train on, and six for validation."""
    folder = tmp_path_factory.mktemp("targets")
    return concat([stored(folder / "train", ROWS), stored(folder / "validation", HELD_OUT).as_validation()])


def config(**over: Any) -> DistillConfig:
    """``model_copy`` skips validation, which refuses a relation term with batches of four."""
    plain = DistillConfig(steps=12, checks=6, batch=4, learning_rate=5e-3, rank=4, alpha=8, max_new_tokens=5)
    return plain.model_copy(update=over)


def weights_of(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def trainer(training_set: TrainingSet, settings: DistillConfig, folder: Path, width: int = 32) -> DistillTrainer:
    torch.manual_seed(0)
    base = tiny.base(width=width)
    model = attach_adapter(base, settings)
    return DistillTrainer(model, base, TEACHER, training_set, settings, folder=folder, seed=0)


def train(
    training_set: TrainingSet, settings: DistillConfig, folder: Path, progress: Callable[[int], None] | None = None
) -> tuple[TrainingReport, Weights]:
    torch.manual_seed(0)
    base = tiny.base()
    model = attach_adapter(base, settings)
    report = distill(model, base, TEACHER, training_set, settings, folder=folder, seed=0, progress=progress)
    assert not model.training
    return report, weights_of(model)


def stop_at(step: int) -> Callable[[int], None]:
    done: list[int] = []

    def count(steps: int) -> None:
        done.append(steps)
        if sum(done) == step:
            raise KeyboardInterrupt

    return count


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> dict[int, Weights]:
    """The weights at each check, whose losses are ``LOSSES``."""
    seen: dict[int, Weights] = {}

    def loss(self: DistillTrainer, student: nn.Module) -> float:
        assert not student.training
        seen[self.state.global_step] = weights_of(student)
        return LOSSES[self.state.global_step]

    monkeypatch.setattr(DistillTrainer, "_validation_loss", loss)
    return seen


# -------------------- what is kept, and when it ends


def test_training_ends_after_two_checks_that_are_no_better_and_keeps_the_weights_of_the_best(
    training_set: TrainingSet, tmp_path: Path, checked: dict[int, Weights]
) -> None:
    counted: list[int] = []
    report, kept = train(training_set, config(), tmp_path, counted.append)
    assert list(checked) == [2, 4, 6, 8] and report.kept_step == 4
    assert same(kept, checked[4]) and not same(kept, checked[8])
    assert {row["step"]: row["validation"] for row in report.curve if "validation" in row} == {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5}
    assert [row["step"] for row in report.curve] == list(range(1, 9)) and all("loss" in row for row in report.curve)
    assert sum(counted) == 12  # the progress bar is full


def test_a_loss_that_always_falls_keeps_the_last_weights(
    training_set: TrainingSet, tmp_path: Path, checked: dict[int, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in LOSSES:
        monkeypatch.setitem(LOSSES, step, 1 / step)
    report, kept = train(training_set, config(), tmp_path)
    assert list(checked) == [2, 4, 6, 8, 10, 12] and report.kept_step == 12 and same(kept, checked[12])


def test_weights_that_fit_validation_best_are_kept_where_its_loss_rises_again(
    training_set: TrainingSet, tmp_path: Path
) -> None:
    report, _ = train(training_set, config(steps=60, checks=30, learning_rate=2e-2, rank=8, alpha=16), tmp_path)
    losses = {row["step"]: row["validation"] for row in report.curve if "validation" in row}
    best = min(losses, key=lambda step: losses[step])
    assert report.kept_step == best == list(losses)[-3] and 2 < best < 56
    assert max(losses.values()) == losses[2]  # it did fall


@pytest.mark.parametrize(
    ("steps", "checks", "expected"), [(12, 6, 2), (90, 4, 23), (10, 6, 2), (3, 8, 1)], ids=["even", "odd", "fewer", "many"]
)
def test_checks_are_spread_evenly_over_the_steps(tmp_path: Path, steps: int, checks: int, expected: int) -> None:
    arguments = training_arguments.training_arguments(config(steps=steps, checks=checks), tmp_path, 0, tiny.CPU, 6)
    assert arguments.eval_steps == arguments.save_steps == expected
    assert -(-steps // expected) <= checks  # the last step is checked, too


# -------------------- the loss


def test_the_loss_on_validation_is_the_mean_over_its_tokens_without_feature_and_relation_terms(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six examples in batches of four, and all six at once."""
    referenced = [replace(row, reference=number % 5 == 0) for number, row in enumerate(training_set.examples)]
    mixed = replace(training_set, examples=referenced)
    settings = config(response=0.7, ground_truth=0.3)
    running = trainer(mixed, settings, tmp_path)
    expected = running.compute_loss(running.model, {"examples": list(mixed.validation)}).item()
    for name in ("feature_loss", "relation_loss"):
        monkeypatch.setattr(module, name, lambda *args: pytest.fail("computed"))
    both = trainer(mixed, settings.model_copy(update={"feature": 1.0, "relation": 1.0}), tmp_path)
    both.model.train()
    assert both.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-3)
    assert not any(both._metrics["train"].values()) and both.teacher_tokens == 0
    assert all(p.grad is None for p in both.model.parameters())


def test_without_targets_the_loss_on_validation_is_of_the_completions(training_set: TrainingSet, tmp_path: Path) -> None:
    running = trainer(replace(training_set, targets=None), config(), tmp_path)
    expected = running.compute_loss(running.model, {"examples": list(training_set.validation)}).item()
    assert running.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-3)


def test_checks_change_no_step(training_set: TrainingSet, tmp_path: Path) -> None:
    """Only the last of six steps is checked, so both have its weights."""
    settings = config(steps=6, lmbda=0.5)
    with_it, ours = train(training_set, settings.model_copy(update={"checks": 1}), tmp_path / "with")
    without, theirs = train(training_set, settings.model_copy(update={"checks": 0}), tmp_path / "without")
    assert same(ours, theirs) and (with_it.kept_step, without.kept_step) == (6, None)
    assert [row["loss"] for row in with_it.curve] == [row["loss"] for row in without.curve]


def test_without_checks_validation_examples_are_not_read(training_set: TrainingSet, tmp_path: Path) -> None:
    plain = replace(training_set, validation=(), part=range(6))
    beside, ours = train(training_set, config(steps=4, checks=0), tmp_path / "beside")
    alone, theirs = train(plain, config(steps=4, checks=0), tmp_path / "alone")
    assert same(ours, theirs) and beside == alone and len(list((tmp_path / "beside").glob("checkpoint-*"))) == 1


def test_validation_examples_are_never_trained_on(training_set: TrainingSet, tmp_path: Path) -> None:
    assert list(training_set.validation) == [6, 7, 8, 9, 10, 11]
    assert list(trainer(training_set, config(), tmp_path).train_dataset["example"]) == [0, 1, 2, 3, 4, 5]  # type: ignore[index]
    assert list(replace(training_set, part=None).indices) == [0, 1, 2, 3, 4, 5]


def test_checks_without_validation_examples_are_refused(training_set: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="checks is 6, but there are no validation examples to check on; set it to 0"):
        trainer(replace(training_set, validation=()), config(), tmp_path)


def test_a_loss_that_is_not_finite_is_an_error(training_set: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss became nan by step"):
        train(training_set, config(learning_rate=1e30), tmp_path)


def test_a_point_of_the_curve_has_what_was_logged_and_checked_at_its_step() -> None:
    log: list[dict[str, float]] = [
        {"step": 5, "loss": 2.0, "grad_norm": 1.0},
        {"step": 5, "eval_loss": 3.0},
        {"step": 7, "eval_loss": 2.5},
        {"step": 7, "train_loss": 1.0, "response": 0.5},
    ]
    points = [{"step": 5.0, "loss": 2.0, "validation": 3.0}, {"step": 7.0, "validation": 2.5}]
    assert learning_curve(log) == points


# -------------------- going on


@pytest.mark.parametrize("stop", [3, 5, 7, 8], ids=["before the best", "after it", "one was no better", "at the last check"])
def test_a_resumed_training_keeps_the_weights_of_an_undisturbed_one(
    training_set: TrainingSet, tmp_path: Path, checked: dict[int, Weights], stop: int
) -> None:
    whole, theirs = train(training_set, config(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(training_set, config(), tmp_path / "stopped", stop_at(stop))
    checked.clear()
    resumed, ours = train(training_set, config(), tmp_path / "stopped")
    assert same(ours, theirs) and resumed == whole and max(checked) == 8
    assert min(checked) == 2 * ((stop - 1) // 2) + 2  # no check was repeated
    checked.clear()
    finished, again = train(training_set, config(), tmp_path / "stopped")
    assert same(again, theirs) and finished == whole and not checked


def test_checkpoints_between_checks_let_a_training_go_on(
    training_set: TrainingSet, tmp_path: Path, checked: dict[int, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_arguments, "SAVE_EVERY", 5)
    monkeypatch.setattr(training_arguments, "LOG_EVERY", 4)
    whole, theirs = train(training_set, config(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(training_set, config(), tmp_path / "stopped", stop_at(6))
    counted: list[int] = []
    resumed, ours = train(training_set, config(), tmp_path / "stopped", counted.append)
    assert counted[0] == 5 and same(ours, theirs) and resumed == whole


def test_a_finished_training_whose_folder_has_moved_has_the_best_weights(
    training_set: TrainingSet, tmp_path: Path, checked: dict[int, Weights]
) -> None:
    first, theirs = train(training_set, config(), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    again, ours = train(training_set, config(), tmp_path / "there")
    assert again == first and same(ours, theirs)


@pytest.mark.usefixtures("checked")
def test_the_projection_is_that_of_the_best_check(training_set: TrainingSet, tmp_path: Path) -> None:
    running = trainer(training_set, config(feature=1.0), tmp_path, width=16)
    running.train()
    best, last = (load_file(tmp_path / f"checkpoint-{step}" / PROJECTION) for step in (4, 8))
    assert same(dict(running.projection.state_dict()), best) and not same(best, last)
    assert weights_of(running.model)  # the adapter is still trainable
    again = trainer(training_set, config(feature=1.0), tmp_path, width=16)
    assert again.finished(checkpoints(tmp_path)[-1])
    assert same(dict(again.projection.state_dict()), best)
    assert same(weights_of(again.model), weights_of(running.model))
