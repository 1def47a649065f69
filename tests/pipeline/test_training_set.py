"""Embeddings and soft targets are made once for all students of a domain."""

from __future__ import annotations

import numpy as np
from support.workplace import Workplace

from factory.pipeline.base import make_base
from factory.pipeline.build import build_student
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import make_dataset
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


def test_another_size_with_the_same_tokens_asks_the_teacher_for_no_targets(with_models: Workplace) -> None:
    with_models.family["sizes"]["short"] = {"layers": 1, "vocabulary": 350}
    with_models.write_all()
    build_student(with_models.context(), "plants", "mini")
    targets = build_student(with_models.context(), "plants", "short").manifest.soft_targets
    assert targets.saved_seconds == targets.teacher_seconds > 0
