"""Embeddings and soft targets are made once for all students of a domain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.workplace import Workplace, two_contexts

from factory.config.schema import DistillConfig
from factory.distill import trainer, training_arguments
from factory.distill.soft_targets import score
from factory.models.base import trim_teacher
from factory.models.chat import NO_CONTEXTS, prompt_ids
from factory.models.generation import sample
from factory.models.tokenize import tokenize_examples
from factory.pipeline import adapter
from factory.pipeline.adapter import adapter_training_set
from factory.pipeline.base import StudentBase, make_base
from factory.pipeline.build import build_student
from factory.pipeline.context import BuildContext, FamilyModels, resolve_models
from factory.pipeline.dataset import DomainDataset, general_training_rows, make_dataset
from factory.pipeline.training_set import embed_rows, make_training_set, training_set_key


def plants(place: Workplace) -> tuple[BuildContext, FamilyModels, DomainDataset, StudentBase, DistillConfig]:
    """What a domain's training set is made from."""
    context = place.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    data = make_dataset(context, models, context.specs.domain("plants"))
    return context, models, data, make_base(context, models, "mini"), context.settings(data.spec).distill


def test_embeddings_are_read_from_disk_and_made_again_if_they_are_damaged(built: Workplace) -> None:
    context, models, data, base, config = plants(built)

    def embeddings() -> np.ndarray:
        return np.array(make_training_set(context, models, data, base.teacher, config).embeddings)

    made = embed_rows(models, list(data.rows["train"]))
    (path,) = data.folder.glob("embeddings-*/train.npy")
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(embeddings(), made)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(embeddings(), made)


def test_an_adapter_learns_general_prompts_beside_its_domain_s(with_models: Workplace) -> None:
    context, models, data, base, config = plants(with_models)
    alone = adapter_training_set(context, models, data, base, config, base.teacher)
    beside = adapter_training_set(context, models, data, base, config.model_copy(update={"general": 0.5}), base.teacher)
    rows = general_training_rows(context, models, round(0.5 * len(alone.indices)))
    assert len(beside.indices) == len(alone.indices) + len(rows) > len(alone.indices)
    general = [beside.examples[i] for i in list(beside.indices)[len(alone.indices) :]]
    assert general == tokenize_examples(rows, base.teacher.tokenizer, NO_CONTEXTS)
    assert all(one.prompt == one.teacher_prompt for one in general)  # the teacher sees no context
    np.testing.assert_array_equal(beside.embeddings[len(alone.examples) :], embed_rows(models, rows))
    assert beside.targets is not None


def test_checks_measure_the_validation_split_which_is_not_trained_on(built: Workplace) -> None:
    context, models, data, base, config = plants(built)
    plain = adapter_training_set(context, models, data, base, config, base.teacher)
    checked = adapter_training_set(context, models, data, base, config.model_copy(update={"checks": 2}), base.teacher)
    assert list(checked.indices) == list(plain.indices) and not plain.validation
    held_out = tokenize_examples(data.rows["validation"], base.teacher.tokenizer, data.spec.contexts)
    assert [checked.examples[i] for i in checked.validation] == held_out != []
    assert checked.targets is not None
    assert len(checked.targets.rows([checked.validation[-1]], context.device).ids) == len(held_out[-1].completion)
    assert training_set_key(checked) != training_set_key(plain)


def test_a_student_says_which_step_s_weights_it_has(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MIN_VALIDATION", 1)
    built.write("default.family.yaml", built.family | {"distill": built.family["distill"] | {"checks": 2}})
    version = build_student(built.context(), "plants", "mini")
    training = version.manifest.training
    assert training.kept_step in (1, 2) and [point["step"] for point in training.curve if "validation" in point] == [1, 2]
    assert training.examples == version.manifest.dataset.counts["train"] and training.config["checks"] == 2
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert f"| weights of step | {training.kept_step} of 2, the best on validation |" in card
    built.write("default.family.yaml", built.family)


def test_too_few_validation_examples_are_not_checked_and_the_card_says_so(built: Workplace) -> None:
    built.write("default.family.yaml", built.family | {"distill": built.family["distill"] | {"checks": 2}})
    version = build_student(built.context(), "plants", "mini")
    assert version.manifest.training.kept_step is None
    count = version.manifest.dataset.counts["validation"]
    assert 0 < count < 8
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert f"checks need 8 validation examples, and plants has {count}; give it more prompts" in card
    built.write("default.family.yaml", built.family)


def test_a_student_goes_on_with_its_own_samples_after_the_stored_answers(
    built: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = build_student(built.context(), "plants", "mini")
    written: list[int] = []

    def sampling(model: Any, prompts: Any, **settings: Any) -> list[list[int]]:
        written.append(len(prompts))
        return sample(model, prompts, **settings)

    monkeypatch.setattr(trainer, "sample", sampling)
    distill = built.family["distill"] | {"on_policy": {"steps": 3, "learning_rate": 1e-3}}
    built.write("default.family.yaml", built.family | {"distill": distill})
    version = build_student(built.context(), "plants", "mini")
    assert len(written) == 3
    training, before = version.manifest.training, alone.manifest.training
    assert training.curve[: len(before.curve)] == before.curve
    assert [point["step"] for point in training.curve[len(before.curve) :]] == [5] and "relation" not in training.curve[-1]
    files = [one.folder / "adapter_model.safetensors" for one in (alone, version)]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert "| then on its own samples | 3 steps |" in (version.folder / "README.md").read_text(encoding="utf-8")
    built.write("default.family.yaml", built.family)


def test_a_stop_during_the_own_samples_loses_neither_phase(built: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    distill = built.family["distill"] | {"on_policy": {"steps": 3, "learning_rate": 2e-3}}
    built.write("default.family.yaml", built.family | {"distill": distill})
    for every in ("SAVE_EVERY", "LOG_EVERY"):
        monkeypatch.setattr(training_arguments, every, 1)
    whole = build_student(built.context(), "plants", "mini")
    steps: list[int] = []

    def stopping(model: Any, prompts: Any, **settings: Any) -> list[list[int]]:
        steps.append(len(prompts))
        if len(steps) == 3:
            raise KeyboardInterrupt
        return sample(model, prompts, **settings)

    monkeypatch.setattr(trainer, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_student(built.context(), "plants", "mini")
    again = build_student(built.context(), "plants", "mini")
    assert len(steps) == 4  # the step that was stopped, once more
    weights = [load_file(one.folder / "adapter_model.safetensors") for one in (whole, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert again.manifest.training.curve == whole.manifest.training.curve
    built.write("default.family.yaml", built.family)


def test_the_same_tokens_under_other_ids_have_targets_of_their_own(built: Workplace) -> None:
    context, models, data, base, config = plants(built)
    tokens = base.base.shape.tokens or ()
    for kept in (tokens, tokens[::-1]):
        make_training_set(context, models, data, trim_teacher(models.teacher, kept), config)
    assert len(data.targets_folders()) == 2


def test_another_size_with_the_same_tokens_asks_the_teacher_for_no_targets(with_models: Workplace) -> None:
    with_models.family["sizes"]["short"] = {"layers": 1, "vocabulary": 350}
    with_models.write_all()
    build_student(with_models.context(), "plants", "mini")
    targets = build_student(with_models.context(), "plants", "short").manifest.soft_targets
    assert targets.saved_seconds == targets.teacher_seconds > 0


def test_targets_are_made_under_each_row_s_own_context_and_another_context_makes_others(
    with_models: Workplace,
) -> None:
    base = None
    found = []
    for system in ("be long", "see the doctor soon"):
        with_models.write("plants.yaml", two_contexts(teacher_context={"system": system}))
        context = with_models.context()
        models = resolve_models(context.family, context.specs.root, context.device)
        data = make_dataset(context, models, context.specs.domain("plants"))
        base = base or make_base(context, models, "mini")
        training_set = make_training_set(context, models, data, base.teacher, context.settings(data.spec).distill)
        found.append((data, training_set))
    (data, training_set), (other, _) = found
    rows, contexts = list(data.rows["train"]), data.spec.contexts
    assert {row["source"] for row in rows} == {"plants-questions", "birds-questions"}
    shown = [prompt_ids(base.teacher.tokenizer, row["prompt"], contexts.of(row["source"])) for row in rows]
    assert [example.teacher_prompt for example in training_set.examples] == shown
    completions = [example.completion for example in training_set.examples]
    config = context.settings(data.spec).distill
    stored = training_set.targets.rows(range(len(rows)), context.device).log_probs.exp()

    def difference(prompts: list[list[int]]) -> float:
        live = [
            score(base.teacher, [p], [c], config.top_k, config.temperature) for p, c in zip(prompts, completions, strict=True)
        ]
        return float((stored - torch.cat([one.log_probs for one in live]).exp()).abs().mean())

    under_domain_s = [prompt_ids(base.teacher.tokenizer, row["prompt"], contexts.domain) for row in rows]
    assert difference(shown) < 0.1 * difference(under_domain_s)  # rounding: a byte each, of a teacher in bfloat16
    folders = [{path.name.rpartition("-")[2] for path in one.targets_folders()} for one in (data, other)]
    assert len(folders[0] ^ folders[1]) >= 2 and not folders[0] & folders[1]
