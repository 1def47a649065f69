"""Embeddings and soft targets are made once for all students of a domain."""

from __future__ import annotations

import numpy as np
from support.workplace import Workplace

from factory.models.chat import NO_CONTEXT
from factory.models.tokenize import tokenize_examples
from factory.pipeline.adapter import adapter_training_set
from factory.pipeline.base import make_base
from factory.pipeline.build import build_student
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import general_training_rows, make_dataset
from factory.pipeline.training_set import embed_rows, make_training_set


def test_embeddings_are_read_from_disk_and_made_again_if_they_are_damaged(built: Workplace) -> None:
    context = built.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    data = make_dataset(context, models, context.specs.domain("plants"))
    teacher, config = make_base(context, models, "mini").teacher, context.settings(data.spec).distill

    def embeddings() -> np.ndarray:
        return np.array(make_training_set(context, models, data, teacher, config).embeddings)

    made = embed_rows(models, list(data.rows["train"]))
    (path,) = data.folder.glob("embeddings-*.npy")
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(embeddings(), made)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(embeddings(), made)


def test_an_adapter_learns_general_prompts_beside_its_domain_s(with_models: Workplace) -> None:
    context = with_models.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    data = make_dataset(context, models, context.specs.domain("plants"))
    base, config = make_base(context, models, "mini"), context.settings(data.spec).distill
    alone = adapter_training_set(context, models, data, base, config, base.teacher)
    beside = adapter_training_set(context, models, data, base, config.model_copy(update={"general": 0.5}), base.teacher)
    rows = general_training_rows(context, models, round(0.5 * len(alone.indices)))
    assert len(beside.indices) == len(alone.indices) + len(rows) > len(alone.indices)
    general = [beside.examples[i] for i in list(beside.indices)[len(alone.indices) :]]
    assert general == tokenize_examples(rows, base.teacher.tokenizer, NO_CONTEXT)
    assert all(one.prompt == one.teacher_prompt for one in general)  # the teacher sees no context
    np.testing.assert_array_equal(beside.embeddings[len(alone.examples) :], embed_rows(models, rows))
    assert beside.targets is not None


def test_another_size_with_the_same_tokens_asks_the_teacher_for_no_targets(with_models: Workplace) -> None:
    with_models.family["sizes"]["short"] = {"layers": 1, "vocabulary": 350}
    with_models.write_all()
    build_student(with_models.context(), "plants", "mini")
    targets = build_student(with_models.context(), "plants", "short").manifest.soft_targets
    assert targets.saved_seconds == targets.teacher_seconds > 0
