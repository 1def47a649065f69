"""A domain with a teacher of its own: who is asked, whose base it stands on, and what says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import tiny
from support.endpoints import fake_endpoint
from support.teacher import ANSWERS, answer, train_teacher
from support.tiny import CHATML
from support.workplace import BIRDS, PLANTS, WHAT, Refused, Workplace, domain

from factory.cli.context import load_chat_model
from factory.config.experiment import ExperimentSpec
from factory.errors import ModelResolutionError, TrainingError
from factory.evaluation.fidelity import fixed_model, measure
from factory.export.metadata import model_licenses, notice_text
from factory.inference import ask, explain, matching_family
from factory.models.tokenize import tokenize_examples
from factory.pipeline import precheck
from factory.pipeline.adapter_matrix import adapter_matrix
from factory.pipeline.base import make_base
from factory.pipeline.base_choice import choose_base, settings_key
from factory.pipeline.build import build_student
from factory.pipeline.context import models_for, resolve_models
from factory.pipeline.cutting import CutBase
from factory.pipeline.dataset import NOT_DATA, dataset_key, make_dataset, router_key
from factory.pipeline.experiment import adapter_training_set, prepare
from factory.pipeline.plan import plan
from factory.pipeline.rivals import teachers
from factory.pipeline.teacher_adaptation import load_adapted
from factory.registry.versions import Version
from factory.reports.html import lineages_of
from factory.serve.agreement import load_pair

EXPERT = {"model": "path:./expert", "license": "gemma", "languages": ["en"]}
NEXT = dict(zip(ANSWERS, [*list(ANSWERS)[1:], next(iter(ANSWERS))], strict=True))


def expert_answer(prompt: str) -> str:
    """What the domain's own teacher answers: what the family's does to the next question."""
    words = prompt.split()
    return answer(prompt.replace(f" {words[3]} ", f" {NEXT[words[3]]} "))


def birds(**more: Any) -> dict[str, Any]:
    return domain("birds", BIRDS) | more


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models_folder: Any) -> Iterator[Workplace]:
    """A base that was healed before the domain birds named its own teacher, of another depth and width than the family's."""
    place = Workplace(tmp_path_factory.mktemp("own-teacher"))
    place.write_all()
    place.write("birds.yaml", birds())
    shutil.copytree(models_folder, place.domains, dirs_exist_ok=True)
    prompts = [f"what is the {what} of {thing} ?" for what in WHAT for thing in BIRDS.split()]
    train_teacher(place.domains / "expert", prompts, expert_answer, model=tiny.llama(2, 48, seed=5))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(place.root / "home"))
        context = place.context(force=True)
        make_base(context, resolve_models(context.family, context.specs.root, context.device), "mini")
        place.write("birds.yaml", birds(teacher=EXPERT))
        yield place


@pytest.fixture(scope="module")
def student(place: Workplace) -> Version:
    return build_student(place.context(force=True), "birds", "mini")


# --------------------------------------------------------------------------------------------------------- who teaches what


def test_the_domain_s_answers_are_its_own_teacher_s_and_the_others_the_family_s(place: Workplace) -> None:
    context = place.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    for name, said in (("birds", expert_answer), ("stars", answer)):
        rows = make_dataset(context, models, context.specs.domain(name)).rows["train"]
        right = [row["completion"] == said(row["prompt"]) for row in rows]
        assert len(right) >= 12 and np.mean(right) > 0.8, name


def test_soft_targets_are_the_domain_teacher_s_too(place: Workplace) -> None:
    """The untrained base is at another distance from either teacher, and targets are of the one that it is given."""
    context = place.context(force=True)
    shared = resolve_models(context.family, context.specs.root, context.device)
    models = models_for(context, context.specs.domain("birds"))
    data = make_dataset(context, models, context.specs.domain("birds"))
    config = context.settings(data.spec).distill
    bases = [make_base(context, one, "mini") for one in (models, shared)]
    rows = tokenize_examples(data.rows["test"], bases[0].base.tokenizer, data.spec.contexts)
    kl = [measure(one.teacher, {"base": fixed_model(one.base.model)}, rows)["base"].kl.sum() for one in bases]
    assert abs(kl[0] - kl[1]) > 0.1
    sets = [adapter_training_set(context, models, data, one, config, one.teacher) for one in bases]
    targets = [one.targets.rows([0], context.device).log_probs.numpy() for one in sets]  # type: ignore[union-attr]
    assert sets[0].examples == sets[1].examples and not np.allclose(*targets)
    assert bases[0].base.shape.layers is None and bases[1].base.shape.layers is not None  # numbers of other layers


def test_two_teachers_are_not_in_memory_at_once(place: Workplace) -> None:
    context = place.context(force=True)
    models = models_for(context, context.specs.domain("birds"))
    both = [models.teacher, models.shared.teacher]
    assert all(one.model for one in both)
    make_base(context, models, "mini")
    assert not any("model" in vars(one) for one in both)


def test_a_student_names_its_domain_s_teacher_and_its_base_the_family_s(place: Workplace, student: Version) -> None:
    context = place.context()
    base = context.registry.resolve(str(student.base))
    versions = context.registry.versions("base", "default-mini-base")
    assert [one.reference for one in versions] == [base.reference]  # that from before the key
    assert base.manifest.teacher.reference == "path:./teacher" and base.manifest.base_model is None
    assert base.manifest.domains.keys() == {"birds", "plants", "stars"}
    manifest = student.manifest
    assert (manifest.teacher.reference, manifest.teacher.license) == ("path:./expert", "gemma")
    assert manifest.teacher.sha256 != base.manifest.teacher.sha256
    assert manifest.base_model is not None and manifest.base_model.reference == "path:./teacher"
    assert manifest.spec["teacher"]["model"] == "path:./expert"
    models = models_for(context, context.specs.domain("birds"))
    assert manifest.teacher.parameters == models.teacher.parameters != models.shared.teacher.parameters
    assert manifest.dataset.fingerprint == make_dataset(context, models, context.specs.domain("birds")).manifest.fingerprint


def test_cards_pages_and_licence_texts_name_both_models(place: Workplace, student: Version) -> None:
    card = (student.folder / "README.md").read_text(encoding="utf-8")
    assert "base_model: teacher" in card and "distilled from expert" in card and "gemma-and-apache-2.0" in card
    assert model_licenses(student.manifest) == "gemma and apache-2.0"
    notice = notice_text(student.manifest)
    assert "path:./expert, licence: gemma" in notice and "path:./teacher, licence: apache-2.0" in notice
    assert "Gemma Terms of Use" in notice
    shown = place.run("show", student.reference, "--all-metrics").output
    assert "path:./expert" in shown and "path:./teacher" in shown
    [lineage] = lineages_of([student], {})
    assert [(node.role, node.name) for node in lineage.chain[:2]] == [("teacher", "expert"), ("model of the base", "teacher")]


def test_a_published_student_is_explained_beside_its_own_teacher_and_refused_once_that_is_gone(
    place: Workplace, student: Version
) -> None:
    context = place.context()
    own = explain(student, "what is the price", context.registry, context.specs, context.device)
    place.write("birds.yaml", birds())
    with pytest.raises(TrainingError, match=r"distilled from path:./expert, but family default now names path:./teacher"):
        matching_family(student, place.context().specs)
    place.write("birds.yaml", birds(teacher=EXPERT | {"model": "path:./teacher"}))
    with pytest.raises(TrainingError, match=r"distilled from path:./expert, but domain birds now names path:./teacher"):
        matching_family(student, place.context().specs)
    place.write("birds.yaml", birds(teacher=EXPERT))
    assert own.teacher and np.isfinite(own.kl)


def test_students_of_both_teachers_stand_on_one_base_and_each_is_measured_beside_its_own(
    place: Workplace, student: Version
) -> None:
    context = place.context(force=True)
    other = build_student(context, "stars", "mini")
    assert other.base == student.base and other.manifest.base_model is None
    assert other.manifest.teacher.reference == "path:./teacher" and "teacher" not in other.manifest.spec
    found = adapter_matrix(context, [student, other])
    for one in (student, other):
        own = one.manifest.evaluation.metrics["kl"].value
        assert found.kl[str(one.manifest.domain)][one.reference].value == pytest.approx(own, rel=0.02)  # type: ignore[union-attr]


def test_what_shows_a_student_beside_its_teacher_loads_its_own(place: Workplace, student: Version) -> None:
    context = place.context()
    pair = load_pair(student, context.registry, context.specs, context.device)
    assert pair.teacher_reference == "path:./expert" and pair.teacher.revision == student.manifest.teacher.sha256
    args = (context.registry, place.domains)
    said = [load_chat_model("teacher", *args, family="default", device="cpu", json=True, domain=one) for one in ("birds", "")]
    assert [one.reference for one in said] == ["teacher path:./expert", "teacher path:./teacher"]
    assert [ask(one, "what is the price of robin ?").answer for one in said] == [
        expert_answer("what is the price of robin ?"),
        answer("what is the price of robin ?"),
    ]
    [rival, *_] = teachers(context, context.specs.domain("birds"), [])
    assert rival.license == "gemma" and rival.folder == place.domains / "expert"


def test_methods_are_compared_by_the_domain_s_own_teacher(place: Workplace) -> None:
    methods = [{"name": name, "distill": {}} for name in ("one", "other")]
    spec = ExperimentSpec.model_validate({"methods": methods, "minutes": 1, "teacher_tokens": 100, "learning_rates": [1e-3]})
    context = place.context(force=True)
    bench = prepare(context, "birds", "mini", spec, None)
    assert bench.teacher.revision == bench.base.teacher.revision == bench.models.teacher_files.sha256
    assert bench.models.family.teacher.reference == "path:./expert"


def test_the_domain_s_own_teacher_is_what_is_adapted(place: Workplace) -> None:
    prompts = [f"what is the {what} of {thing} ?" for thing in PLANTS.split()[:6] for what in ANSWERS]
    place.write("own.jsonl", "\n".join(json.dumps({"prompt": one, "completion": "it is brief ."}) for one in prompts))
    own = {"id": "own", "kind": "file", "path": "own.jsonl", "completion": "completion", "license": "mit"}
    settings = {"data": {"max_examples": 80, "validation": 0.2, "test": 0.2}, "teacher_adaptation": {"steps": 2, "rank": 2}}
    place.write("birds.yaml", birds(teacher=EXPERT, sources=[*birds()["sources"], own], **settings))
    context = place.context()
    models = models_for(context, context.specs.domain("birds"))
    data = make_dataset(context, models, context.specs.domain("birds"))
    assert data.adaptation is not None and data.manifest.provenance["teacher"] == "path:./expert"
    assert load_adapted(models, data.key).model.config.num_hidden_layers == 2 != models.shared.teacher.config.num_hidden_layers
    place.write("birds.yaml", birds(teacher=EXPERT))


def test_a_base_is_healed_on_the_domain_though_the_family_s_teacher_does_not_know_it(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(precheck, "check_domain", lambda _, __, data, *more: checked.append(data.spec.name))
    monkeypatch.setattr(precheck, "require_teacher", lambda *_: [])
    context = place.context()
    models = resolve_models(context.family, context.specs.root, context.device)
    datasets = [make_dataset(context, models, spec.unadapted()) for spec in context.healing_domains]
    base = make_base(context, models, "mini")
    precheck.require_teachers(context, models, datasets, CutBase(base.base, base.teacher, {}, (), (), None))
    assert {data.manifest.provenance["teacher"] for data in datasets} == {"path:./teacher"}
    assert {data.spec.name for data in datasets} == {"birds", "plants", "stars"} and sorted(checked) == ["plants", "stars"]


# ---------------------------------------------------------------------------------------------------------------------- keys


def test_only_the_domain_s_own_keys_tell_the_teachers_apart(place: Workplace) -> None:
    def keys() -> tuple[dict[str, str], list[Any]]:
        context = place.context()
        models = resolve_models(context.family, context.specs.root, context.device)
        specs, sha256 = context.specs.domains.values(), models.teacher_files.sha256
        data = {spec.name: dataset_key(context, models.of(spec).teacher_files.sha256, spec) for spec in specs}
        base = choose_base(context, sha256, "mini").version
        return data, [router_key(context), settings_key(context, sha256, "mini"), base and base.reference]

    named = keys()
    place.write("birds.yaml", birds())
    plain = keys()
    place.write("birds.yaml", birds(teacher=EXPERT))
    assert named[1] == plain[1] and None not in named[1]
    assert {name for name in plain[0] if named[0][name] != plain[0][name]} == {"birds"}


def test_a_domain_without_the_key_is_dumped_as_before(place: Workplace) -> None:
    specs = place.context().specs
    of_data = {"name", "sources", "teacher_context", "personal_data", "private", "confidence"}
    assert all(set(spec.model_dump(exclude=NOT_DATA)) == of_data for spec in specs.domains.values())  # in keys of data sets
    assert "teacher" in specs.domain("birds").dump() and "teacher" not in specs.domain("stars").dump()
    assert specs.domain("birds").unadapted().dump() == {
        key: value for key, value in specs.domain("birds").dump().items() if key != "teacher"
    }


# --------------------------------------------------------------------------------------------------------- plans and refusals


def test_a_plan_names_the_domain_s_teacher(place: Workplace) -> None:
    steps = {step.what: step for step in plan(place.context(), ["birds"], "mini")}
    assert (steps["teacher of birds"].state, steps["teacher of birds"].detail) == ("on disk", "path:./expert (gemma)")
    assert steps["base default-mini-base"].state == "on disk"
    away = EXPERT | {"model": "pypi:nothing==1.0/x.gguf", "sha256": "0" * 64}
    place.write("birds.yaml", birds(teacher=away))
    found = {step.what: step for step in plan(place.context(), ["birds"], "mini")}
    assert found["teacher of birds"].state == "to fetch" and found["data set birds"].seconds is None
    assert "teacher of birds" not in {step.what for step in plan(place.context(), ["stars"], "mini")}
    doctor = place.run("doctor", "--json").output
    assert "birds: teacher" in doctor and "factory data birds" in doctor
    place.write("birds.yaml", birds(teacher=EXPERT))


def test_a_teacher_with_other_tokens_is_refused_in_one_line(with_models: Workplace, refused: Refused) -> None:
    with_models.write("birds.yaml", birds(teacher=EXPERT | {"model": "path:./other"}))
    tiny.saved(with_models.domains / "other", tiny.llama(vocabulary=400), tiny.sentencepiece(CHATML))
    context = with_models.context()
    with pytest.raises(ModelResolutionError) as raised:
        models_for(context, context.specs.domain("birds"))
    ours, theirs = tiny.tokenizer().get_vocab(), tiny.sentencepiece().get_vocab()
    count = sum(ours.get(token) != theirs.get(token) for token in ours.keys() | theirs.keys())
    assert f"path:./other, a domain's own teacher, and of path:./teacher, its family's, differ in {count:,} (" in str(
        raised.value
    )
    for command in (["build", "birds"], ["plan", "birds"], ["data", "birds"]):
        assert str(raised.value) in refused(with_models.run(*command))
    assert with_models.run("plan", "stars").exit_code == 0


@pytest.mark.parametrize("more", [{"chat_template": CHATML}, {"chat_template_kwargs": {"enable_thinking": True}}])
def test_a_template_of_its_own_is_refused_in_one_line(with_models: Workplace, more: dict[str, Any]) -> None:
    with_models.write("birds.yaml", birds(teacher=EXPERT | more))
    result = with_models.run("validate")
    assert result.exit_code == 1
    assert "birds.yaml" in result.stderr and "with its family's chat template, as its student does" in result.stderr


def test_the_family_s_template_is_asked_with_whatever_the_model_has(with_models: Workplace) -> None:
    own = tiny.tokenizer("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    tiny.saved(with_models.domains / "expert", tiny.llama(seed=5), own)
    with_models.write("birds.yaml", birds(teacher=EXPERT))
    context = with_models.context()
    models = models_for(context, context.specs.domain("birds"))
    assert models.tokenizer is models.shared.tokenizer and models.teacher.revision != models.shared.teacher.revision
    assert models.of(context.specs.domain("birds")) is models and models.of(context.specs.domain("stars")) is models.shared


def test_a_family_behind_an_api_has_no_place_for_it(with_models: Workplace, refused: Refused) -> None:
    with fake_endpoint() as far:
        size = {"base": {"model": "path:./teacher", "license": "apache-2.0"}}
        own = {"teacher": {"api": far.api, "model": "big", "license": "its terms"}, "serve": {"fallback": "refuse"}}
        settings = {"steps": 2, "batch": 4, "learning_rate": 1e-3, "rank": 2}
        api = with_models.family | own | {"sizes": {"same": size}, "default_size": "same", "distill": settings}
        with_models.write("default.family.yaml", api)
        assert with_models.run("validate").exit_code == 0
        with_models.write("birds.yaml", birds(teacher=EXPERT))
        lines = [line for line in with_models.run("validate").stderr.splitlines() if "birds.yaml" in line]
        assert len(lines) == 1 and "a domain's own teacher stands in for a family's whose weights are at hand" in lines[0]
        # where another family has weights the file is right, and only this family refuses
        with_models.write("far.family.yaml", api | {"name": "far"})
        with_models.write("default.family.yaml", with_models.family)
        assert with_models.run("validate").exit_code == 0
        for command in ("plan", "build", "data"):
            line = refused(with_models.run(command, "birds", "--family", "far"))
            assert "birds: teacher: a domain's own teacher stands in for" in line and "(with family far)" in line
        assert far.asked == 0
