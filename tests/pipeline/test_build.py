"""A whole build on tiny models: what it publishes, what it leaves alone, and what it reports."""

from __future__ import annotations

import json

from support import tiny
from support.teacher import ANSWERS
from support.workplace import BIRDS, PLANTS, STARS, Workplace, domain, two_contexts

from factory.config.schema import DomainSpec
from factory.config.settings import PRIVATE_GATES
from factory.pipeline.build import BuildOptions, build_student, build_students
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import dataset_folder, dataset_key, load_router
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


def test_private_domains_alone_have_students_a_router_and_a_base_without_their_text(with_models: Workplace) -> None:
    for name, things in (("plants", PLANTS), ("stars", STARS)):
        with_models.write(f"{name}.yaml", domain(name, things) | {"private": True})
    assert "router" in with_models.run("plan", "plants").stdout
    student = build_student(with_models.context(force=True), "plants", "mini", BuildOptions(canaries=0))
    base = Registry(with_models.root / "registry").resolve(student.base).manifest
    assert base.kind == "base" and set(base.domains) == {"general"} and not base.vocabulary.chosen_by
    assert {source.id for source in base.dataset.sources} == {"general-questions"}
    context = with_models.context()
    router = load_router(context, resolve_models(context.family, context.specs.root, context.device))
    assert router.domains == ("plants", "stars") and student.manifest.router == router.version
    assert [one.domain for one in router.route(["what is the price of oak ?", "what is the price of vega ?"])] == [
        "plants",
        "stars",
    ]


def test_a_second_student_asks_the_teacher_for_no_targets(built: Workplace) -> None:
    (version,) = build_students(built.context(), ["plants"], "mini")
    assert version.manifest.soft_targets.saved_seconds == version.manifest.soft_targets.teacher_seconds


def test_a_student_of_sources_with_contexts_of_their_own_names_each(with_models: Workplace) -> None:
    with_models.write("plants.yaml", two_contexts(teacher_context={"system": "be long"}))
    student = build_student(with_models.context(force=True), "plants", "mini").manifest
    assert student.teacher_context == {"system": "be brief", "examples": []}  # of a question of no source
    assert [source.get("teacher_context") for source in student.spec["sources"]] == [
        None,
        {"system": "be long", "examples": []},
    ]
    assert {source.id for source in student.dataset.sources} == {"plants-questions", "birds-questions"}
    assert len(student.evaluation.samples) == 3 and student.evaluation.per_example.tokens


def test_a_build_with_force_says_so_on_the_card(built: Workplace) -> None:
    size = {"base": {"model": "path:./teacher", "license": "apache-2.0"}}  # the teacher itself: it cannot be ahead of it
    built.write("default.family.yaml", built.family | {"sizes": {"same": size}, "default_size": "same"})
    version = build_student(built.context(force=True), "plants", "same")
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert "built with --force although the teacher pre-check failed" in card
    built.write("default.family.yaml", built.family)


def write_diary(place: Workplace) -> None:
    """A private domain of 60 questions that bring their answers, each of 24 tokens or more."""
    texts = [" ".join(tiny.sentences(9, seed)) for seed in range(60)]
    prompts = [f"what is the {what} of {bird} ?" for what in ANSWERS for bird in BIRDS.split()]
    rows = [{"prompt": prompt, "completion": text} for prompt, text in zip(prompts, texts, strict=False)]
    place.write("diary.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = {"id": "notes", "kind": "file", "path": "diary.jsonl", "completion": "completion", "license": "mit"}
    place.write("diary.yaml", {"name": "diary", "description": "notes", "private": True, "sources": [source]})


def test_a_private_domain_has_canaries_and_is_judged_by_what_its_student_repeats(built: Workplace) -> None:
    write_diary(built)
    manifest = build_student(built.context(force=True), "diary", "mini").manifest
    metrics, gates = manifest.evaluation.metrics, {gate.metric: gate for gate in manifest.verdict.gates}
    assert manifest.canaries == metrics["canary_exposure"].n == metrics["canaries_extracted"].n == 16
    assert metrics["verbatim_extracted"].n == metrics["verbatim_extracted_base"].n == manifest.dataset.counts["train"] == 24
    assert metrics["verbatim_extracted_held_out"].n == manifest.dataset.counts["test"]
    assert set(gates) == set(PRIVATE_GATES)
    assert gates["canaries_extracted"].status == "passed"
    assert gates["verbatim_extraction_change"].status == "undecidable"  # 24 rows
    assert not any("memorization" in warning for warning in manifest.warnings)
    (built.domains / "diary.yaml").unlink()


def test_without_canaries_a_private_student_s_card_says_that_memorization_was_not_measured(built: Workplace) -> None:
    write_diary(built)
    version = build_student(built.context(force=True), "diary", "mini", BuildOptions(canaries=0))
    assert version.manifest.canaries == 0 and "canary_exposure" not in version.manifest.evaluation.metrics
    assert version.manifest.verdict.status == "failed"
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert "memorization was not measured: diary is private and was built with --canaries 0" in card
    (built.domains / "diary.yaml").unlink()


def test_a_public_domain_has_canaries_only_on_request() -> None:
    public, private = (DomainSpec.model_validate(domain("birds", BIRDS) | {"private": private}) for private in (False, True))
    assert [BuildOptions().canaries_in(spec) for spec in (public, private)] == [0, 16]
    assert [BuildOptions(canaries=4).canaries_in(spec) for spec in (public, private)] == [4, 4]
    assert [BuildOptions(canaries=0).canaries_in(spec) for spec in (public, private)] == [0, 0]
