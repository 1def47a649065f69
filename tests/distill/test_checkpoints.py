"""What a training goes on from: only whole checkpoints, and the order of examples that an undisturbed one has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from factory.cache import seal
from factory.config.schema import DistillConfig
from factory.distill import training_arguments
from factory.distill.checkpoints import SeededOrder, checkpoints, last_checkpoint, step_of
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import DistillTrainer, distill
from factory.distill.training_data import TrainingSet
from factory.models.base import attach_adapter

CONFIG = DistillConfig(steps=14, batch=4, learning_rate=5e-3, rank=2, relation=0.0)
ROWS = tiny.sequences(22)  # five batches an epoch, and two rows that it leaves out


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    store = SoftTargetStore.make(tmp_path_factory.mktemp("targets"), tiny.teacher(), ROWS, top_k=16, temperature=1.0)
    return TrainingSet(ROWS, store, np.zeros((len(ROWS), 5), dtype=np.float32))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The examples of each step."""
    batches: list[list[int]] = []
    step = DistillTrainer.training_step

    def recording(self: Any, model: Any, inputs: dict[str, Any], count: Any = None) -> Any:
        batches.append(inputs["examples"])
        return step(self, model, inputs, count)

    monkeypatch.setattr(DistillTrainer, "training_step", recording)
    monkeypatch.setattr(training_arguments, "SAVE_EVERY", 4)
    return batches


def train(training_set: TrainingSet, folder: Path, progress: Callable[[int], None] | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = tiny.base()
    model = attach_adapter(base, CONFIG)
    distill(model, base, tiny.teacher(), training_set, CONFIG, folder=folder, seed=0, progress=progress)
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def stop_at(step: int) -> Callable[[int], None]:
    done: list[int] = []

    def advance(count: int) -> None:
        done.append(count)
        if sum(done) == step:
            raise KeyboardInterrupt

    return advance


@pytest.mark.parametrize("stop", [3, 7, 11, 13], ids=["no checkpoint", "in epoch 1", "in epoch 2", "in epoch 3"])
def test_a_resumed_training_sees_the_examples_that_an_undisturbed_one_does(
    training_set: TrainingSet, tmp_path: Path, seen: list[list[int]], stop: int
) -> None:
    theirs = train(training_set, tmp_path / "whole")
    undisturbed, _ = list(seen), seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(training_set, tmp_path / "stopped", stop_at(stop))
    seen.clear()
    ours = train(training_set, tmp_path / "stopped")
    assert seen == undisturbed[stop - stop % 4 :]
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_each_epoch_has_an_order_of_its_own_that_the_seed_decides() -> None:
    torch.manual_seed(1)
    order, other = SeededOrder(4, [7] * 40, seed=0), SeededOrder(4, [7] * 40, seed=5)
    first = list(order)
    torch.rand(3)
    assert list(order) == first and sorted(first) == list(range(40))
    order.set_epoch(1)
    assert list(order) not in (first, list(other))


@pytest.mark.parametrize("left", ["nothing", "", '{"epoch": 1.0, "global_st'])
def test_a_half_written_checkpoint_is_removed_and_the_one_before_it_used(
    training_set: TrainingSet, tmp_path: Path, seen: list[list[int]], left: str
) -> None:
    theirs = train(training_set, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(training_set, tmp_path / "stopped", stop_at(6))
    (whole,) = checkpoints(tmp_path / "stopped")
    half = shutil.copytree(whole, whole.with_name("checkpoint-8"))
    state = half / "trainer_state.json"
    state.unlink() if left == "nothing" else state.write_text(left)
    seen.clear()
    ours = train(training_set, tmp_path / "stopped")
    assert len(seen) == CONFIG.steps - 4
    assert [step_of(path) for path in checkpoints(tmp_path / "stopped")] == [14]
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (50, 100, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        seal(tmp_path / f"checkpoint-{step}")
    assert [step_of(path) for path in checkpoints(tmp_path)] == [9, 50, 100]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
