"""A published base meets a new domain: what its text lacks is added, and nothing is made again."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from support.teacher import ANSWERS, answer
from support.workplace import BIRDS, Workplace, domain

from factory.inference import load_version
from factory.models.base import load_shape
from factory.models.teacher import Teacher
from factory.pipeline import base as base_stage
from factory.pipeline import cutting, healing, trimmed
from factory.pipeline import grown as growth
from factory.pipeline.base import make_base
from factory.pipeline.base_choice import choose_base
from factory.pipeline.build import BuildOptions, build_student
from factory.pipeline.context import resolve_models
from factory.pipeline.plan import Step, plan
from factory.registry.manifest import BaseManifest

SIZES = {"full": {"vocabulary": 310}, "mini": {"layers": 3, "vocabulary": 310}}  # of 360 tokens, 262 of which are always kept
PROMPTS = [f"what is the {what} of {bird} ?" for what in ANSWERS for bird in BIRDS.split()]


def write_birds(place: Workplace, **more: Any) -> None:
    """Questions as the other domains have them, and answers whose words no other domain's text has."""
    rows = [{"prompt": prompt, "completion": answer(prompt)} for prompt in PROMPTS]
    (place.domains / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"id": "birds-file", "kind": "file", "license": "mit", "path": "birds.jsonl", "completion": "completion"}
    place.write("birds.yaml", {"name": "birds", "description": "questions on birds", "sources": [source]} | more)


def base_for(place: Workplace, name: str | None, size: str = "full", **more: Any) -> BaseManifest:
    context = place.context(force=True)
    models = resolve_models(context.family, context.specs.root, context.device)
    return make_base(context, models, size, context.specs.domain(name) if name else None, **more).manifest


def chosen(place: Workplace, size: str = "full") -> str | None:
    context = place.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    version = choose_base(context, models.teacher_files.sha256, size).version
    return version.reference if version else None


def tokens(place: Workplace, reference: str) -> tuple[int, ...]:
    return load_shape(place.context().registry.resolve(reference).folder).tokens or ()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, models_folder: Any) -> Workplace:
    """``default-full-base@1``, made for plants and stars, before there were birds; tests get copies."""
    place = Workplace(tmp_path_factory.mktemp("published"))
    place.write_all()
    place.write("default.family.yaml", place.family | {"sizes": SIZES, "default_size": "full", "path": "direct"})
    shutil.copytree(models_folder, place.domains, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(place.root / "home"))
        assert base_for(place, "plants").version == 1
    return place


@pytest.fixture
def place(published: Workplace, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    shutil.copytree(published.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    return Workplace(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- growing


def test_a_new_domain_s_tokens_are_a_new_version_that_begins_with_the_old_one(place: Workplace) -> None:
    before = base_for(place, "plants")
    write_birds(place)
    grown = base_for(place, "birds")
    (added,) = grown.grown
    old, new = tokens(place, "default-full-base@1"), tokens(place, "default-full-base@2")
    assert (before.version, grown.version, grown.grown_from) == (1, 2, "default-full-base@1")
    assert new[: len(old)] == old and len(new) == len(old) + added.rows <= round(1.1 * 310)
    assert added.domain == "birds" and added.growth_before > 3 * added.growth_after > 0  # there was no room for all
    assert added.missing_before > added.missing_after >= 0
    assert grown.vocabulary.kept == len(new) and grown.vocabulary.kept_mass >= before.vocabulary.kept_mass
    assert set(grown.vocabulary.chosen_by) == {"plants", "stars", "birds"}
    registry = place.context().registry
    assert grown.parameters > before.parameters and grown.settings_key == before.settings_key
    assert set(grown.seconds) == {"grow"} and grown.layers == before.layers
    assert registry.problems() == [] and registry.verify(registry.resolve("default-full-base@1")) == []


def test_the_grown_base_is_used_from_then_on_and_does_not_grow_again(place: Workplace) -> None:
    write_birds(place)
    assert [base_for(place, name).version for name in ("birds", "birds", "plants", "stars")] == [2, 2, 2, 2]
    assert chosen(place) == "default-full-base@2"
    shown = place.run("show", "default-full-base", "--all-metrics")
    assert "for birds, whose text took" in shown.stdout and "default-full-base@1" in shown.stdout


def test_a_base_made_with_a_domain_s_text_does_not_grow_for_it_but_for_its_new_text(place: Workplace) -> None:
    write_birds(place)
    assert base_for(place, "birds", rebuild=True).grown == ()  # its text chose tokens with the others'
    assert base_for(place, "birds").version == 2
    words = "landlord deposit asthma wheeze breath sugar photosynthesis students question"
    place.write("stars.yaml", domain("stars", words))
    assert [one.domain for one in base_for(place, "stars").grown] == ["stars"]


def test_private_text_adds_no_token_and_a_pinned_base_stays_as_it_is(place: Workplace) -> None:
    write_birds(place)
    assert base_for(place, "birds", pinned="default-full-base@1").version == 1
    write_birds(place, private=True)
    assert base_for(place, "birds").version == 1
    assert base_for(place, None).version == 1


def test_tokens_of_a_domain_that_became_private_are_left_behind(place: Workplace) -> None:
    write_birds(place)
    assert base_for(place, "birds").version == 2
    write_birds(place, private=True)
    assert chosen(place) == "default-full-base@1"
    place.write("plants.yaml", domain("plants", BIRDS) | {"private": True})  # its text chose the tokens of both
    assert chosen(place) is None


def test_a_base_grows_by_a_tenth_at_most_over_all_domains(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MAX_ROWS", 4 / 310)
    write_birds(place)
    kept = len(tokens(place, "default-full-base@1"))
    assert sum(one.rows for one in base_for(place, "birds").grown) <= 314 - kept
    place.write("homes.yaml", domain("homes", "landlord deposit damage rented home keep may"))
    assert len(tokens(place, f"default-full-base@{base_for(place, 'homes').version}")) <= 314


def test_a_domain_whose_prompts_the_teacher_writes_has_no_text_to_lack_tokens(place: Workplace) -> None:
    source = {"id": "written", "kind": "teacher_prompts", "license": "mit", "count": 4}
    place.write("dreams.yaml", {"name": "dreams", "description": "dreams", "sources": [source]})
    assert base_for(place, "dreams").version == 1


# -------------------------------------------------------------------------------------------------------------------- plan


def steps(place: Workplace, *domains: str, **options: Any) -> list[Step]:
    return [step for step in plan(place.context(), domains, "full", BuildOptions(**options)) if "vocabulary" in step.what]


def test_a_plan_says_how_many_tokens_will_be_added(place: Workplace) -> None:
    write_birds(place)
    assert steps(place, "plants", "stars") == []
    (step,) = steps(place, "plants", "birds")
    assert step.state == "to do" and (step.seconds or 0) > 0
    assert steps(place, "birds", base="default-full-base@1") == [] == steps(place, "birds", rebuild_base=True)
    rows = base_for(place, "birds").grown[0].rows
    assert step.detail.startswith(f"{rows} tokens will be added for birds: ")
    assert steps(place, "birds") == []  # they are there


# --------------------------------------------------------------------------------------------- a domain that is added later


@pytest.mark.parametrize("size", ["full", "mini"])
def test_a_domain_added_later_needs_no_work_on_the_base_and_no_other_domain_s_answers(
    size: str, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = place.context(force=True)
    first = build_student(context, "plants", size)
    made = {path.name for path in (place.root / "home" / "data").iterdir()}
    asked: list[str] = []

    def work(*_: Any, **__: Any) -> Any:
        raise AssertionError("a base was worked on")

    for module, name in (
        (base_stage, "publish_base"),
        (trimmed, "choose_tokens"),
        (cutting, "choose_tokens"),
        (healing, "distill"),
    ):
        monkeypatch.setattr(module, name, work)
    write = Teacher._write
    monkeypatch.setattr(Teacher, "_write", lambda self, prompts, *more: (asked.extend(prompts), write(self, prompts, *more))[1])
    write_birds(place)
    second = build_student(place.context(force=True), "birds", size)

    base = f"default-{size}-base"
    assert (first.base, second.base) == (f"{base}@1", f"{base}@2")
    assert any(f"more tokens in {base}@2" in warning and "--rebuild-base" in warning for warning in second.manifest.warnings)
    assert {path.name.split("-")[0] for path in (place.root / "home" / "data").iterdir() if path.name not in made} == {"birds"}
    assert not any("of oak" in prompt or "of sun" in prompt for prompt in asked)
    registry = place.context().registry
    assert registry.problems() == [] and registry.verify(first) == []
    for student in (first, second):
        loaded = load_version(student, registry, context.device)
        assert loaded.base_version.reference == student.base
