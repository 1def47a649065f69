"""Shares of the gradient: by hand, beside gradients taken one by one, and that measuring them changes no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from torch import Tensor, nn

import factory.distill.trainer as module
import factory.distill.training_arguments as training_arguments
from factory.config.schema import DistillConfig
from factory.distill.gradients import (
    SHARE_OF,
    gradient_shares,
    gradient_warnings,
    measured_steps,
    median_shares,
)
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import DistillTrainer, distill
from factory.distill.training_arguments import LOG_EVERY
from factory.distill.training_data import TrainingSet
from factory.distill.training_report import TrainingReport
from factory.models.base import Base, attach_adapter
from factory.models.lora import fused_adapters

TEACHER = tiny.teacher()
ROWS = tiny.sequences(6)
TERMS = {"response": 1.0, "feature": 0.5, "relation": 0.2}


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    store = SoftTargetStore.make(tmp_path_factory.mktemp("targets"), TEACHER, ROWS, top_k=16, temperature=1.0)
    return TrainingSet(ROWS, store, np.random.default_rng(0).normal(size=(len(ROWS), 5)).astype(np.float32))


def config(**over: Any) -> DistillConfig:
    """``model_copy`` skips validation, which refuses a relation term with so small a batch."""
    plain = DistillConfig(steps=1, batch=len(ROWS), learning_rate=5e-3, rank=4, alpha=8, max_new_tokens=5)
    return plain.model_copy(update=over)


def student(base: Base, settings: DistillConfig, healing: bool) -> Any:
    torch.manual_seed(0)
    return base.model.train() if healing else attach_adapter(base, settings).train()


def train(
    training_set: TrainingSet,
    settings: DistillConfig,
    folder: Path,
    *,
    healing: bool = False,
    width: int = 32,
    progress: Callable[[int], None] | None = None,
) -> tuple[TrainingReport, dict[str, Tensor]]:
    """What ``distill`` says of the training, and the weights after it."""
    base = tiny.base(width=width)
    model = student(base, settings, healing)
    report = distill(model, base, TEACHER, training_set, settings, folder=folder, seed=0, progress=progress)
    return report, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------------------------------------------- by hand


def test_shares_are_norms_of_gradients_over_their_sum_and_the_step_that_follows_is_untouched() -> None:
    """Of 3a + 4b the gradient is (3, 4), of norm 5; of (a² + b²) / 2 at (0.6, 0.8) it is (0.6, 0.8), of norm 1."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.6, 0.8]]))
    terms = {"first": model(torch.tensor([3.0, 4.0])).squeeze(), "second": model.weight.square().sum() / 2}
    assert gradient_shares(terms, list(model.parameters())) == pytest.approx({"first": 5 / 6, "second": 1 / 6})
    assert model.weight.grad is None
    sum(terms.values()).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(model.weight.grad, torch.tensor([[3.6, 4.8]]))


def test_a_parameter_that_a_term_does_not_reach_adds_nothing_to_its_norm() -> None:
    shared, own = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    terms = {"both": 3 * shared + 4 * own, "one": 5 * shared}  # norms 5 and 5
    assert gradient_shares(terms, [shared, own]) == pytest.approx({"both": 0.5, "one": 0.5})


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_without_a_finite_gradient_there_are_no_shares(factor: float) -> None:
    weight = torch.tensor(1.0, requires_grad=True)
    assert gradient_shares({"first": factor * weight, "second": factor * weight}, [weight]) == {}


def test_the_median_is_over_the_rows_of_the_log_that_have_the_share() -> None:
    relation = [{SHARE_OF + "relation": share} for share in (0.1, 0.5, 0.2)]
    log = [{"loss": 1.0}, {"loss": 0.9, SHARE_OF + "response": 0.8}, *relation, {"train_loss": 0.5}]
    assert median_shares(log) == {"response": 0.8, "relation": 0.2}
    assert median_shares([{"loss": 1.0}]) == {}


def test_a_negligible_term_is_warned_of_with_the_setting_that_weighs_it() -> None:
    shares = {"response": 0.976, "feature": 0.02, "relation": 0.004}
    assert gradient_warnings(shares, "distill") == [
        "the relation term has 0.4 % of the gradient: raise distill.relation, or leave the term out with 0"
    ]
    assert gradient_warnings({}, "heal") == []


# --------------------------------------------------------------------------------------------------------- measured steps


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, {0}), (2, {1}), (30, {15}), (90, {45}), (100, {25, 75}), (300, {50, 150, 250}), (1100, {183, 550, 916})],
)
def test_measured_steps_are_the_middles_of_equal_parts(steps: int, expected: set[int]) -> None:
    assert measured_steps(steps) == expected


@given(st.integers(min_value=1, max_value=5000))
def test_every_measurement_is_logged_before_the_last_checkpoint_and_apart_from_the_others(steps: int) -> None:
    every = min(LOG_EVERY, steps)
    points = [-(-(step + 1) // every) * every for step in measured_steps(steps)]  # the next one on the log's grid
    assert max(points) <= steps and len(set(points)) == len(points)


# ------------------------------------------------------------------------------------------------------------ trainings


@pytest.mark.parametrize("healing", [False, True], ids=["adapter", "healing"])
def test_a_training_reports_the_shares_of_gradients_taken_one_by_one(
    training_set: TrainingSet, tmp_path: Path, healing: bool
) -> None:
    def norm(term: str) -> float:
        settings, base = config(**dict.fromkeys(TERMS, 0.0) | {term: TERMS[term]}), tiny.base()
        model = student(base, settings, healing)
        alone = DistillTrainer(model, base, TEACHER, training_set, settings, folder=tmp_path / term, seed=0)
        with fused_adapters(model):
            alone.compute_loss(model, {"examples": list(range(len(ROWS)))}).backward()
        return float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())

    norms = {term: norm(term) for term in TERMS}
    report, _ = train(training_set, config(**TERMS), tmp_path / "all", healing=healing)
    assert report.gradient_shares == pytest.approx({term: n / sum(norms.values()) for term, n in norms.items()}, rel=0.02)
    assert min(report.gradient_shares.values()) > 0.001


def test_an_objective_of_one_term_has_no_shares(training_set: TrainingSet, tmp_path: Path) -> None:
    report, _ = train(training_set, config(), tmp_path)
    assert report.curve and report.gradient_shares == {}


@pytest.mark.parametrize(
    ("over", "how"),
    [({}, {}), ({}, {"healing": True}), ({"lmbda": 1.0}, {}), ({}, {"width": 16})],
    ids=["adapter", "healing", "on-policy", "a projection"],
)
def test_measuring_leaves_every_weight_as_it_would_be(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: dict[str, Any], how: dict[str, Any]
) -> None:
    settings = config(steps=4, **TERMS, **over)
    measured, ours = train(training_set, settings, tmp_path / "measured", **how)
    monkeypatch.setattr(module, "measured_steps", lambda steps: frozenset())
    plain, theirs = train(training_set, settings, tmp_path / "plain", **how)
    assert measured.gradient_shares and not plain.gradient_shares
    assert measured.curve == plain.curve and same(ours, theirs)


@pytest.mark.parametrize("stop", [5, 7], ids=["measured again", "measured before the checkpoint"])
def test_a_resumed_training_ends_with_the_same_weights_and_shares(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(training_arguments, "SAVE_EVERY", 2)
    monkeypatch.setattr(training_arguments, "LOG_EVERY", 1)
    settings = config(steps=8, batch=4, **TERMS)
    whole, theirs = train(training_set, settings, tmp_path / "whole")
    done: list[int] = []

    def stop_early(count: int) -> None:
        done.append(count)
        if sum(done) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training_set, settings, tmp_path / "stopped", progress=stop_early)
    resumed, ours = train(training_set, settings, tmp_path / "stopped")
    finished, again = train(training_set, settings, tmp_path / "stopped")
    assert set(whole.gradient_shares) == set(TERMS)
    assert resumed.gradient_shares == finished.gradient_shares == whole.gradient_shares
    assert same(ours, theirs) and same(again, theirs)
