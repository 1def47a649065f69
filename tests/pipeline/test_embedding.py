"""A student's embedding head: fitted on training texts alone, published beside the adapter, named in manifest and plan."""

from __future__ import annotations

import numpy as np
from support import tiny
from support.workplace import Workplace

from factory.inference import embed, load_version
from factory.pipeline.build import build_student
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import make_dataset, split_general
from factory.pipeline.embedding import unlabelled_texts
from factory.pipeline.plan import plan
from factory.reports.card import model_card


def test_a_student_embeds_by_the_head_that_it_was_built_with(built: Workplace) -> None:
    built.write("default.family.yaml", built.family | {"embed": {"texts": 100}})
    context = built.context()
    assert any("an embedding head on 100 texts" in step.detail for step in plan(context, ["plants"], "mini"))
    version = build_student(context, "plants", "mini")
    info = version.manifest.embedding
    assert info is not None and 50 < info.texts <= 100
    assert info.encoder == "path:./encoder" and info.dimensions == 64 + 32  # of the encoder and of the student
    assert "embedding_head.safetensors" in version.manifest.files and "embed" in version.manifest.seconds
    loaded = load_version(version, context.registry, tiny.CPU)
    assert loaded.head is not None
    vectors = embed(loaded, ["what is the cause of oak ?", "sun"])
    assert vectors.shape == (2, 96)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    card = model_card(version.manifest)
    assert f"| embedding head | 96 dimensions, fitted on {info.texts} unlabelled texts beside path:./encoder |" in card
    assert "retrieval was not measured: 4 held-out prompts have a completion, and 30 are needed" in card
    built.write("default.family.yaml", built.family)


def test_without_the_setting_there_is_no_head(built: Workplace) -> None:
    version = built.context().registry.resolve("plants-mini@1")
    assert version.manifest.embedding is None and not (version.folder / "embedding_head.safetensors").exists()
    loaded = load_version(version, built.context().registry, tiny.CPU)
    assert loaded.head is None and embed(loaded, ["sun"]).shape == (1, 32)


def test_a_head_sees_no_held_out_text_and_general_prompts_only_where_the_domain_has_too_few(built: Workplace) -> None:
    context = built.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    data = make_dataset(context, models, context.specs.domain("plants"))
    train = {row[part] for row in data.rows["train"] for part in ("prompt", "completion")}
    held_out = {row["prompt"] for split in ("validation", "test") for row in data.rows[split]}
    taught, kept = ({example.text for example in part} for part in split_general(context, models))
    few, many = (unlabelled_texts(context, models, data, count) for count in (10, 1000))
    assert len(few) == 10 and set(few) <= train
    assert set(many) == train | taught and len(many) == len(set(many))
    assert not set(many) & (held_out | kept)
