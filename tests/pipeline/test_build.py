"""A whole build on tiny models: what it publishes, what it leaves alone, and what it reports."""

from __future__ import annotations

from support.workplace import BIRDS, Workplace, domain

from factory.pipeline.build import build_student, build_students
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import dataset_folder, dataset_key
from factory.registry.registry import Registry


def test_a_student_stands_on_a_base_and_names_all_that_it_came_from(built: Workplace) -> None:
    student = Registry(built.root / "registry").resolve("plants-mini@1").manifest
    assert student.kind == "student"
    assert student.base == "default-mini-base@1" and student.path == ("teacher", "default-mini-base@1")
    assert student.evaluation.sizes.student.base_parameters < student.evaluation.sizes.student.parameters
    assert {"distill", "sft", "evaluate", "check"} <= set(student.seconds)
    assert "heal" not in student.seconds  # the base's own meter counted it
    assert student.soft_targets is not None and student.soft_targets.positions > 0


def test_a_domain_dropped_in_later_is_neither_made_nor_measured(built: Workplace) -> None:
    built.write("birds.yaml", domain("birds", BIRDS))
    context = built.context()
    version = build_student(context, "plants", "mini")
    assert version.manifest.base == "default-mini-base@1"
    sha256 = resolve_models(context.family, context.specs.root, context.device).teacher_files.sha256
    birds = context.specs.domain("birds")
    assert not dataset_folder(birds, dataset_key(context, sha256, birds)).exists()
    (built.domains / "birds.yaml").unlink()


def test_a_second_student_asks_the_teacher_for_no_targets(built: Workplace) -> None:
    (version,) = build_students(built.context(), ["plants"], "mini")
    assert version.manifest.soft_targets.saved_seconds == version.manifest.soft_targets.teacher_seconds


def test_a_build_with_force_says_so_on_the_card(built: Workplace) -> None:
    size = {"base": {"model": "path:./teacher", "license": "apache-2.0"}}  # the teacher itself: it cannot be ahead of it
    built.write("default.family.yaml", built.family | {"sizes": {"same": size}, "default_size": "same"})
    version = build_student(built.context(force=True), "plants", "same")
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert "built with --force although the teacher pre-check failed" in card
    built.write("default.family.yaml", built.family)
