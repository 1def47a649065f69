"""Training: what a step is trained on, the value of each term, and that resuming changes nothing."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from support import tiny
from support.damage import flipped
from torch import Tensor, nn

import factory.distill.trainer as module
import factory.distill.training_arguments as training_arguments
from factory.config.schema import DistillConfig, OnPolicyConfig
from factory.distill.features import last_states, teacher_features
from factory.distill.losses import bucket_log_probs, generalized_jsd_loss, relation_loss
from factory.distill.soft_targets import score_live
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import DistillTrainer, asks_teacher, distill
from factory.distill.training_data import TrainingSet, concat
from factory.errors import SpecError, TrainingError
from factory.models.base import Base, Shape, attach_adapter, trim_teacher
from factory.models.device import mixed_precision
from factory.models.forward import States, hidden_states, logits, make_batch, mean_pool
from factory.models.generation import sample
from factory.models.teacher import Teacher

TEACHER = tiny.teacher()
ON_POLICY = OnPolicyConfig(steps=1, learning_rate=1e-4)
ROWS = tiny.sequences(6)


@pytest.fixture(autouse=True)
def every_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_arguments, "LOG_EVERY", 1)


@pytest.fixture(scope="session")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    store = SoftTargetStore.make(tmp_path_factory.mktemp("targets"), TEACHER, ROWS, top_k=16, temperature=1.0)
    return TrainingSet(ROWS, store, np.random.default_rng(0).normal(size=(len(ROWS), 5)).astype(np.float32))


def config(**over: Any) -> DistillConfig:
    """``model_copy`` skips validation, which refuses a relation term with batches of four."""
    plain = DistillConfig(steps=3, batch=4, learning_rate=5e-3, rank=4, alpha=8, max_new_tokens=5)
    return plain.model_copy(update=over)


def adapter(base: Base, settings: DistillConfig) -> PeftModel:
    torch.manual_seed(0)
    return attach_adapter(base, settings)


def trainer(training_set: TrainingSet, settings: DistillConfig, folder: Path, base: Base | None = None) -> DistillTrainer:
    base = base or tiny.base()
    return DistillTrainer(adapter(base, settings), base, TEACHER, training_set, settings, folder=folder, seed=0)


def train(
    training_set: TrainingSet,
    settings: DistillConfig,
    folder: Path,
    base: Base | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[PeftModel, list[dict[str, float]]]:
    base = base or tiny.base()
    model = adapter(base, settings)
    report = distill(model, base, TEACHER, training_set, settings, folder=folder, seed=0, progress=progress)
    return model, report.curve


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def record(monkeypatch: pytest.MonkeyPatch, loss: str) -> list[tuple[Tensor, Tensor]]:
    """The student's and teacher's states that a loss of the trainer is called with; the loss itself becomes 0."""
    seen: list[tuple[Tensor, Tensor]] = []

    def recording(student: Tensor, teacher: Tensor) -> Tensor:
        seen.append((student.detach(), teacher))
        return student.sum() * 0

    monkeypatch.setattr(module, loss, recording)
    return seen


def autocast() -> Any:
    return mixed_precision(tiny.CPU)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_loss_falls_on_examples_seen_again_and_again(training_set: TrainingSet, tmp_path: Path, beta: float) -> None:
    counted: list[int] = []
    model, curve = train(
        training_set, config(steps=40, beta=beta, rank=8, alpha=16, learning_rate=3e-2), tmp_path, progress=counted.append
    )
    losses = [row["loss"] for row in curve]
    assert [row["step"] for row in curve] == list(range(1, 41)) and counted == [1] * 40
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert not model.training


def test_healing_trains_all_weights_of_a_base(training_set: TrainingSet, tmp_path: Path) -> None:
    base = tiny.base()
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    settings = config(steps=8, learning_rate=2e-3)
    curve = distill(base.model, base, TEACHER, training_set, settings, folder=tmp_path, seed=0).curve
    assert curve[-1]["loss"] < curve[0]["loss"]
    moved = {name for name, p in base.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() and base.model.dtype == torch.float32


def test_the_teacher_is_left_as_it_is(training_set: TrainingSet, tmp_path: Path) -> None:
    before = {name: p.detach().clone() for name, p in TEACHER.model.named_parameters()}
    train(training_set, config(lmbda=1.0, feature=1.0), tmp_path)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in TEACHER.model.named_parameters())
    assert not TEACHER.model.training


@pytest.mark.parametrize("healing", [False, True])
def test_a_copy_of_a_trained_model_is_a_model_of_its_own(training_set: TrainingSet, tmp_path: Path, healing: bool) -> None:
    base, settings = tiny.base(), config(steps=1)
    if healing:
        distill(base.model, base, TEACHER, training_set, settings, folder=tmp_path, seed=0)
    trained: Any = base.model if healing else train(training_set, settings, tmp_path, base)[0].merge_and_unload()  # type: ignore[operator]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = trained(input_ids=ids).logits
        copied = copy.deepcopy(trained)
        for weight in copied.parameters():
            weight.zero_()
        assert float(copied(input_ids=ids).logits.abs().max()) == 0
        torch.testing.assert_close(trained(input_ids=ids).logits, before)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(training_set: TrainingSet, tmp_path: Path) -> None:
    base = tiny.base()
    with pytest.raises(TrainingError, match=r"the loss became nan by step 6; lower distill.learning_rate"):
        distill(base.model, base, TEACHER, training_set, config(steps=6, learning_rate=1e30), folder=tmp_path, seed=0)


def test_different_vocabularies_are_refused(training_set: TrainingSet, tmp_path: Path) -> None:
    trimmed = trim_teacher(TEACHER, list(range(300)))
    base = Base(trimmed.model, trimmed.tokenizer, Shape(None, None))
    with pytest.raises(TrainingError, match=r"different vocabularies \(300 and 360 tokens"):
        train(training_set, config(), tmp_path, base)


# -------------------- a step's text


class Recorded:
    """What ``sample`` and ``score`` were asked, and what ``sample`` wrote."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sampled: list[tuple[Any, list[list[int]], dict[str, Any]]] = []
        self.written: list[list[list[int]]] = []
        self.scored: list[tuple[Any, Any]] = []

        def sampling(model: Any, prompts: Any, **kwargs: Any) -> Any:
            self.sampled.append((model, [list(p) for p in prompts], {**kwargs, "training": model.training}))
            self.written.append(sample(model, prompts, **kwargs))
            return self.written[-1]

        def scoring(teacher: Teacher, prompts: Any, completions: Any) -> Any:
            self.scored.append((prompts, completions))
            return score_live(teacher, prompts, completions)

        monkeypatch.setattr(module, "sample", sampling)
        monkeypatch.setattr(module, "score_live", scoring)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


STUDENT_PROMPTS = [one.prompt for one in ROWS]
TEACHER_PROMPTS = [one.teacher_prompt for one in ROWS]


def test_off_policy_steps_neither_sample_nor_score(training_set: TrainingSet, tmp_path: Path, recorded: Recorded) -> None:
    train(training_set, config(lmbda=0.0), tmp_path)
    assert recorded.sampled == [] and recorded.scored == []


def test_off_policy_training_never_loads_the_teacher(training_set: TrainingSet, tmp_path: Path) -> None:
    def load() -> Any:
        raise AssertionError("the teacher's weights were loaded")

    teacher, base, settings = replace(TEACHER, load_model=load), tiny.base(), config()
    distill(adapter(base, settings), base, teacher, training_set, settings, folder=tmp_path, seed=0)


def test_the_caller_s_teacher_stays_in_memory(training_set: TrainingSet, tmp_path: Path) -> None:
    teacher, base, settings = replace(TEACHER), tiny.base(), config()
    loaded = teacher.model
    distill(adapter(base, settings), base, teacher, training_set, settings, folder=tmp_path, seed=0)
    assert teacher.model is loaded


@pytest.mark.parametrize(
    ("over", "asked"),
    [({}, False), ({"lmbda": 0.1}, True), ({"seq_kd": True}, True), ({"feature": 0.1}, True), ({"on_policy": ON_POLICY}, True)],
)
def test_the_teacher_is_asked_only_for_samples_and_hidden_states(over: dict[str, Any], asked: bool) -> None:
    assert asks_teacher(config(**over)) is asked


def test_on_policy_steps_sample_from_the_student_and_score_with_the_teacher_s_context(
    training_set: TrainingSet, tmp_path: Path, recorded: Recorded
) -> None:
    model, _ = train(training_set, config(lmbda=1.0, temperature=1.7), tmp_path)
    assert len(recorded.sampled) == len(recorded.scored) == 3
    seeds = set()
    for (sampler, prompts, asked), written, (seen, completions) in zip(
        recorded.sampled, recorded.written, recorded.scored, strict=True
    ):
        assert sampler is model and not asked["training"]
        assert all(prompt in STUDENT_PROMPTS for prompt in prompts)
        assert (asked["temperature"], asked["max_new_tokens"], asked["stop"]) == (1.7, 5, [2])
        assert seen == [TEACHER_PROMPTS[STUDENT_PROMPTS.index(prompt)] for prompt in prompts]
        assert completions == written
        seeds.add(asked["seed"])
    assert len(seeds) == 3


def test_seq_kd_samples_from_the_teacher_with_its_context(
    training_set: TrainingSet, tmp_path: Path, recorded: Recorded
) -> None:
    train(training_set, config(seq_kd=True), tmp_path)
    assert len(recorded.sampled) == 3
    for (sampler, prompts, _), (seen, _) in zip(recorded.sampled, recorded.scored, strict=True):
        assert sampler is TEACHER.model and seen == prompts
        assert all(prompt in TEACHER_PROMPTS for prompt in prompts)


def test_lmbda_is_the_share_of_on_policy_steps(training_set: TrainingSet, tmp_path: Path, recorded: Recorded) -> None:
    train(training_set, config(lmbda=0.5, steps=20), tmp_path)
    assert 4 <= len(recorded.sampled) <= 16


def test_the_student_trains_on_after_it_has_sampled(training_set: TrainingSet, tmp_path: Path) -> None:
    running = trainer(training_set, config(lmbda=1.0), tmp_path)
    running.model.train()
    running.current_gradient_accumulation_steps = 1  # which train() would set
    running.training_step(running.model, {"examples": [0, 1]})
    assert running.model.training


# -------------------- terms


@torch.no_grad()
def expected_response(model: Any, training_set: TrainingSet, examples: list[int], temperature: float, beta: float) -> Tensor:
    chosen = [ROWS[i] for i in examples]
    batch = make_batch([s.prompt for s in chosen], [s.completion for s in chosen])
    assert training_set.targets is not None
    targets = training_set.targets.rows(examples, tiny.CPU)
    with autocast():
        values = logits(model, hidden_states(model, batch).final[batch.predicts])
        return generalized_jsd_loss(bucket_log_probs(values, targets.ids, temperature), targets.log_probs, beta).mean()


@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 0.0), (2.5, 0.0), (2.5, 0.7)])
def test_the_response_is_the_divergence_at_this_temperature_and_beta(
    training_set: TrainingSet, tmp_path: Path, temperature: float, beta: float
) -> None:
    running = trainer(training_set, config(temperature=temperature, beta=beta, response=0.5), tmp_path)
    loss = running.compute_loss(running.model, {"examples": [4, 1]})
    expected = 0.5 * expected_response(running.model, training_set, [4, 1], temperature, beta)
    torch.testing.assert_close(loss.detach(), expected)


def test_a_live_score_is_the_divergence_of_whole_distributions(training_set: TrainingSet, tmp_path: Path) -> None:
    running = trainer(training_set, config(temperature=1.7, beta=1.0), tmp_path)
    chosen = [ROWS[0], ROWS[3]]
    live = running.compute_loss(running.model, {"examples": [0, 3], "sampled": [s.completion for s in chosen]})
    batch, seen = (
        make_batch(prompts, [s.completion for s in chosen])
        for prompts in ([s.prompt for s in chosen], [s.teacher_prompt for s in chosen])
    )
    with torch.no_grad(), autocast():
        student = logits(running.model, hidden_states(running.model, batch).final[batch.predicts])
        teacher = logits(TEACHER.model, hidden_states(TEACHER.model, seen).final[seen.predicts])
    ours, theirs = ((values.float() / 1.7).log_softmax(-1) for values in (student, teacher))
    torch.testing.assert_close(live.detach(), generalized_jsd_loss(ours, theirs, 1.0).mean(), rtol=1e-3, atol=1e-4)


def test_the_response_is_the_loss_that_the_settings_name(training_set: TrainingSet, tmp_path: Path) -> None:
    running = trainer(training_set, config(loss="skew_kl", beta=1.0), tmp_path)
    assert running.compute_loss(running.model, {"examples": [4, 1]}).item() == pytest.approx(0, abs=1e-6)  # KL(P ‖ P)
    with pytest.raises(SpecError, match="unknown loss 'hinge'"):
        trainer(training_set, config(loss="hinge"), tmp_path)


def test_without_targets_sampled_answers_are_trained_on_by_cross_entropy(
    training_set: TrainingSet, tmp_path: Path, recorded: Recorded
) -> None:
    """Sequence-level distillation on the teacher's samples."""
    _, curve = train(replace(training_set, targets=None), config(seq_kd=True), tmp_path)
    assert len(recorded.sampled) == 3 and recorded.scored == [] and all(np.isfinite(row["loss"]) for row in curve)
    running = trainer(replace(training_set, targets=None), config(seq_kd=True), tmp_path)
    sampled = [[5, 9, 2], [7, 2]]
    loss = running.compute_loss(running.model, {"examples": [2, 5], "sampled": sampled})
    batch = make_batch([ROWS[2].prompt, ROWS[5].prompt], sampled)
    with autocast():
        values = logits(running.model, hidden_states(running.model, batch).final[batch.predicts])
    torch.testing.assert_close(loss, F.cross_entropy(values.float(), torch.tensor([5, 9, 2, 7, 2])))


def test_without_targets_it_is_cross_entropy_on_the_completions(training_set: TrainingSet, tmp_path: Path) -> None:
    running = trainer(replace(training_set, targets=None), config(), tmp_path)
    loss = running.compute_loss(running.model, {"examples": [2, 5]})
    chosen = [ROWS[2], ROWS[5]]
    batch = make_batch([s.prompt for s in chosen], [s.completion for s in chosen])
    with autocast():
        values = logits(running.model, hidden_states(running.model, batch).final[batch.predicts])
    exact = F.cross_entropy(values.float(), torch.tensor([token for s in chosen for token in s.completion]))
    torch.testing.assert_close(loss, exact)
    ours, theirs = (
        torch.autograd.grad(part, [p for n, p in running.model.named_parameters() if "lora_B" in n]) for part in (loss, exact)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-2)


def test_the_loss_of_sft_falls_without_a_teacher_pass(training_set: TrainingSet, tmp_path: Path, recorded: Recorded) -> None:
    _, curve = train(replace(training_set, targets=None), config(steps=20, learning_rate=2e-2), tmp_path)
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"] and recorded.scored == []


def test_ground_truth_is_cross_entropy_on_references_alone(training_set: TrainingSet, tmp_path: Path) -> None:
    rows = [replace(row, reference=number in (2, 5)) for number, row in enumerate(ROWS)]
    mixed = replace(training_set, examples=rows)
    running = trainer(mixed, config(ground_truth=0.3), tmp_path)
    loss = running.compute_loss(running.model, {"examples": [2, 0, 5]})
    batch = make_batch([rows[i].prompt for i in (2, 5)], [rows[i].completion for i in (2, 5)])
    with torch.no_grad(), autocast():
        values = logits(running.model, hidden_states(running.model, batch).final[batch.predicts])
    truth = F.cross_entropy(values.float(), torch.tensor([*rows[2].completion, *rows[5].completion]))
    expected = expected_response(running.model, training_set, [2, 0, 5], 1.0, 0.0) + 0.3 * truth
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-3, atol=1e-4)


def test_without_a_reference_in_the_batch_or_on_samples_there_is_no_ground_truth(
    training_set: TrainingSet, tmp_path: Path
) -> None:
    rows = [replace(row, reference=number == 5) for number, row in enumerate(ROWS)]
    with_it, without = (trainer(replace(training_set, examples=rows), config(ground_truth=w), tmp_path) for w in (1.0, 0.0))
    for inputs in ({"examples": [0, 1]}, {"examples": [5], "sampled": [[5, 9, 2]]}):
        torch.testing.assert_close(*(one.compute_loss(one.model, inputs) for one in (with_it, without)))


def test_ground_truth_is_in_the_curve(training_set: TrainingSet, tmp_path: Path) -> None:
    rows = [replace(row, reference=True) for row in ROWS]
    _, curve = train(replace(training_set, examples=rows), config(ground_truth=1.0, steps=8, learning_rate=2e-2), tmp_path)
    assert curve[-1]["ground_truth"] < curve[0]["ground_truth"]


def test_a_term_of_weight_zero_is_not_computed(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("computed")

    for name in ("feature_loss", "relation_loss", "mean_pool"):
        monkeypatch.setattr(module, name, never)
    _, curve = train(training_set, config(), tmp_path)
    assert all(set(row) == {"step", "loss", "response", "learning_rate"} for row in curve)


def test_a_response_of_weight_zero_needs_no_logits(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "position_loss", lambda *args: pytest.fail("computed"))
    _, curve = train(training_set, config(response=0.0, feature=1.0), tmp_path)
    assert set(curve[0]) == {"step", "loss", "feature", "learning_rate"}


def test_the_curve_holds_the_magnitude_of_every_term_and_the_loss_is_their_weighted_sum(
    training_set: TrainingSet, tmp_path: Path
) -> None:
    settings = config(response=0.7, feature=0.5, relation=2.0)
    _, curve = train(training_set, settings, tmp_path)
    assert len(curve) == 3
    for row in curve:
        weighted = 0.7 * row["response"] + 0.5 * row["feature"] + 2.0 * row["relation"]
        assert row["loss"] == pytest.approx(weighted, rel=1e-3)
        assert min(row["response"], row["feature"], row["relation"]) > 0


def test_only_the_chosen_part_of_a_training_set_is_trained_on(training_set: TrainingSet, tmp_path: Path) -> None:
    both = concat([training_set.slice(0, 0.5), training_set.slice(0.5, 1)])
    half = len(ROWS) // 2
    expected = [*range(half), *range(len(ROWS) + half, 2 * len(ROWS))]
    assert list(both.indices) == expected and len(both.examples) == 2 * len(ROWS)
    running = trainer(both, config(), tmp_path)
    assert list(running.train_dataset["example"]) == expected  # type: ignore[index]
    lengths = [len(both.examples[i].prompt) + len(both.examples[i].completion) for i in expected]
    assert list(running.train_dataset["length"]) == lengths  # type: ignore[index]


@pytest.mark.parametrize("examples", [5, 3, 1])
def test_examples_left_over_at_the_end_of_an_epoch_do_not_break_relations(
    training_set: TrainingSet, tmp_path: Path, examples: int
) -> None:
    """Five in batches of four leave one over, which is in no pair."""
    part = TrainingSet(ROWS[:examples], training_set.targets, training_set.embeddings[:examples])
    _, curve = train(part, config(relation=1.0, steps=4), tmp_path)
    assert len(curve) == 4 and all(np.isfinite(row["loss"]) for row in curve)
    assert all(row["relation"] > 0 for row in curve) or examples < 3


def test_training_prints_nothing(training_set: TrainingSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(training_set, config(), tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("term", ["feature", "relation"])
def test_feature_and_relation_alone_go_down_too(training_set: TrainingSet, tmp_path: Path, term: str) -> None:
    settings = config(response=0.0, batch=6, steps=25).model_copy(update={term: 1.0})
    _, curve = train(training_set, settings, tmp_path)
    assert sum(row[term] for row in curve[-5:]) < 0.8 * sum(row[term] for row in curve[:5])


def test_the_feature_term_compares_mapped_layers(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record(monkeypatch, "feature_loss")
    base = tiny.base(layers=2)
    running = trainer(training_set, config(feature=1.0), tmp_path, base)
    running.compute_loss(running.model, {"examples": [1, 2]})
    batch = make_batch([ROWS[i].prompt for i in (1, 2)], [ROWS[i].completion for i in (1, 2)])
    with torch.no_grad(), autocast():
        layers = hidden_states(running.model, batch).layers
    student, teacher = seen[0]
    prompts, shown, answers = ([getattr(ROWS[i], name) for i in (1, 2)] for name in ("prompt", "teacher_prompt", "completion"))
    with autocast():
        theirs, counts = teacher_features(TEACHER, shown, prompts, answers)
    torch.testing.assert_close(student, last_states(States(layers), batch, counts, [1, 1, 2, 2]))  # 1 to 4 of the teacher's
    torch.testing.assert_close(teacher, theirs)
    assert min(counts) > max(map(len, answers))  # prompts included


@pytest.mark.parametrize("on_policy", [False, True])
def test_relations_are_of_prompt_and_stored_completion_on_every_step(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_policy: bool
) -> None:
    seen = record(monkeypatch, "relation_loss")
    running = trainer(training_set, config(relation=1.0), tmp_path)
    inputs: dict[str, Any] = {"examples": [3, 0, 5]} | ({"sampled": [[9, 9, 2]] * 3} if on_policy else {})
    running.compute_loss(running.model, inputs)
    batch = make_batch([ROWS[i].prompt for i in (3, 0, 5)], [ROWS[i].completion for i in (3, 0, 5)])
    with torch.no_grad(), autocast():
        expected = mean_pool(hidden_states(running.model, batch).final, batch.real)
    torch.testing.assert_close(seen[0][0], expected)
    np.testing.assert_array_equal(seen[0][1].numpy(), training_set.embeddings[[3, 0, 5]])


def test_relation_loss_is_zero_for_the_same_directions_and_finite_for_two_examples_alike() -> None:
    states = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert relation_loss(states * 5, states).item() == pytest.approx(0, abs=1e-6)
    twice = torch.cat([states, states[:1]]).requires_grad_()
    relation_loss(twice, torch.randn(7, 3, generator=torch.Generator().manual_seed(1))).backward()
    assert twice.grad is not None and twice.grad.abs().max() < 10


# -------------------- students of other widths


class Watched(module.TrainerCallback):  # type: ignore[misc]
    """The projection's gradient as the optimiser sees it, beside what each step alone added."""

    def __init__(self, projection: nn.Module) -> None:
        self.weight = next(projection.parameters())
        self.own: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.weight.register_hook(lambda gradient: self.own.append(gradient.clone()))

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        assert self.weight.grad is not None
        self.seen.append(self.weight.grad.clone())


def test_a_projection_between_widths_learns_and_is_not_saved(training_set: TrainingSet, tmp_path: Path) -> None:
    base = tiny.base(width=16)
    running = trainer(training_set, config(feature=1.0, steps=2), tmp_path / "run", base)
    assert running.projection.weight.shape == (32, 16)
    before = running.projection.weight.detach().clone()
    running.train()
    assert not torch.equal(running.projection.weight, before)
    running.model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved)


def test_a_step_of_the_projection_follows_that_step_s_gradient_alone(training_set: TrainingSet, tmp_path: Path) -> None:
    running = trainer(training_set, config(feature=1.0, steps=4), tmp_path, tiny.base(width=16))
    watched = Watched(running.projection)
    running.add_callback(watched)
    running.train()
    assert len(watched.seen) == len(watched.own) == 4
    for seen, own in zip(watched.seen, watched.own, strict=True):
        torch.testing.assert_close(seen, own)


def test_students_of_the_teacher_s_width_need_no_projection(training_set: TrainingSet, tmp_path: Path) -> None:
    assert not list(trainer(training_set, config(feature=1.0), tmp_path).projection.parameters())


def test_a_base_cut_from_an_assistant_maps_by_the_assistant_s_layer_numbers(training_set: TrainingSet, tmp_path: Path) -> None:
    """Eight layers of an assistant of 20, which itself has two of every three layers of a teacher of 30."""
    layers = (0, 3, 6, 9, 12, 15, 17, 19)
    assistant, settings = tiny.teacher(tiny.llama(layers=20)), config(feature=1.0)
    base = Base(tiny.llama(layers=8), tiny.tokenizer(), Shape(layers, None))
    running = DistillTrainer(adapter(base, settings), base, assistant, training_set, settings, folder=tmp_path, seed=0)
    assert running.student_layers == [2, 4, 5, 8]


# -------------------- going on


@pytest.mark.parametrize(
    ("over", "width"),
    [({}, 32), ({"lmbda": 0.5}, 32), ({"feature": 1.0}, 16)],
    ids=["stored completions", "on-policy steps", "a projection"],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: dict[str, Any], width: int
) -> None:
    monkeypatch.setattr(training_arguments, "SAVE_EVERY", 2)
    settings = config(steps=8, **over)
    whole, curve = train(training_set, settings, tmp_path / "whole", tiny.base(width=width))
    done: list[int] = []

    def stop_at_five(count: int) -> None:
        done.append(count)
        if sum(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training_set, settings, tmp_path / "stopped", tiny.base(width=width), stop_at_five)
    resumed: list[int] = []
    model, second = train(training_set, settings, tmp_path / "stopped", tiny.base(width=width), resumed.append)
    assert resumed == [4, 1, 1, 1, 1]
    assert [row["loss"] for row in second] == pytest.approx([row["loss"] for row in curve], rel=1e-5)
    ours, theirs = trained_weights(model), trained_weights(whole)
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-5)


def test_a_finished_run_is_not_trained_again_and_returns_its_curve(training_set: TrainingSet, tmp_path: Path) -> None:
    first, curve = train(training_set, config(), tmp_path)
    counted: list[int] = []
    again, same = train(training_set, config(), tmp_path, progress=counted.append)
    assert sum(counted) == 3 and same == curve
    ours, theirs = trained_weights(again), trained_weights(first)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_same_seed_gives_the_same_student(training_set: TrainingSet, tmp_path: Path) -> None:
    settings = config(lmbda=0.5)
    first, _ = train(training_set, settings, tmp_path / "a")
    torch.rand(5)
    second, _ = train(training_set, settings, tmp_path / "b")
    ours, theirs = trained_weights(first), trained_weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_concatenated_training_sets_keep_every_example_with_its_targets(training_set: TrainingSet, tmp_path: Path) -> None:
    rows = tiny.sequences(3, seed=7)
    store = SoftTargetStore.make(tmp_path, TEACHER, rows, top_k=16, temperature=1.0)
    joined = concat([training_set, TrainingSet(rows, store, np.zeros((3, 5), dtype=np.float32))])
    assert joined.examples == [*ROWS, *rows] and joined.embeddings.shape == (9, 5)
    assert joined.targets is not None
    assert torch.equal(joined.targets.rows([7], tiny.CPU).ids, store.rows([1], tiny.CPU).ids)


def test_a_training_shorter_than_the_curve_s_grid_still_has_a_point(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_arguments, "LOG_EVERY", 5)
    _, curve = train(training_set, config(steps=3), tmp_path / "short")
    assert [point["step"] for point in curve] == [3]
    _, curve = train(training_set, config(steps=7), tmp_path / "longer")
    assert [point["step"] for point in curve] == [5] and "loss" in curve[0]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_back_or_forth_loses_no_checkpoint(
    training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The newest is the one of the highest step, whatever the times of the folders say."""
    monkeypatch.setattr(training_arguments, "SAVE_EVERY", 2)
    undisturbed, _ = train(training_set, config(steps=6), tmp_path / "undisturbed")
    there: list[list[str]] = []

    def set_the_clock(steps: int) -> None:
        for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
            os.utime(checkpoint, (time.time() - 3600 * hours,) * 2)
        there.append(sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")))

    model, _ = train(training_set, config(steps=6), tmp_path / "run", progress=set_the_clock)
    assert there[2:6] == [["checkpoint-2"], ["checkpoint-2"], ["checkpoint-4"], ["checkpoint-4"]]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    ours, theirs = (get_peft_model_state_dict(one) for one in (model, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["flipped", "cut off", "emptied", "gone"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "checksums.json"])
def test_a_damaged_checkpoint_is_not_resumed_from_and_the_training_is_as_undisturbed(
    training_set: TrainingSet, tmp_path: Path, kind: str, name: str
) -> None:
    folder, said = tmp_path / "run", list[str]()
    first, _ = train(training_set, config(), folder)
    path = folder / "checkpoint-3" / name
    content = path.read_bytes()
    changed = {"flipped": flipped(content, len(content) // 2, 0), "cut off": content[:-9], "emptied": b""}
    path.unlink() if kind == "gone" else path.write_bytes(changed[kind])
    base, settings = tiny.base(), config()
    model = adapter(base, settings)
    distill(model, base, TEACHER, training_set, settings, folder=folder, seed=0, say=said.append)
    unsealed = name == "checksums.json" and kind == "gone"  # as a kill leaves it: no damage
    assert said == ([] if unsealed else [f"{folder / 'checkpoint-3'} was damaged: it is dropped and made again"])
    ours, theirs = (get_peft_model_state_dict(one) for one in (model, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
