"""A teacher that is adapted to a domain's references: what it learns, who is taught by it, and what never sees it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.teacher import ANSWERS
from support.workplace import BIRDS, PLANTS, Workplace, domain

from factory.cache import remove_folder
from factory.config.experiment import ExperimentSpec
from factory.config.schema import DistillConfig, DomainSpec
from factory.distill.trainer import TrainingReport
from factory.errors import DataError, SpecError, TrainingError
from factory.pipeline import adapter, evaluate, teacher_adaptation
from factory.pipeline.adapter import adapter_training_set, check_targets, training_teacher
from factory.pipeline.base import make_base
from factory.pipeline.base_choice import choose_base
from factory.pipeline.build import build_student
from factory.pipeline.context import BuildContext, FamilyModels, resolve_models
from factory.pipeline.dataset import DomainDataset, dataset_key, find_dataset, make_dataset, router_key
from factory.pipeline.experiment import prepare
from factory.pipeline.plan import plan
from factory.pipeline.teacher_adaptation import adaptation_folder, adaptation_warnings, load_adapted
from factory.pipeline.training_set import training_set_key
from factory.registry.manifest import MetricValue, TeacherAdaptationInfo

ADAPT = {"steps": 40, "rank": 4, "learning_rate": 1e-2}
SIZES = {"slim": {"vocabulary": 350}, "mini": {"layers": 2, "vocabulary": 350}}


def reference(prompt: str) -> str:
    """What this domain answers, and the teacher does not."""
    words = prompt.split()
    return f"the {words[3]} of {words[5]} is {ANSWERS[words[3]]}"


def birds(adaptation: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """Questions on plants that bring their answers, and questions on birds that the teacher is asked."""
    own = {"id": "own", "kind": "file", "path": "own.jsonl", "completion": "completion", "license": "mit"}
    asked = domain("birds", BIRDS)
    settings = {"max_examples": 80, "validation": 0.2, "test": 0.2}
    adapted = {"teacher_adaptation": adaptation} if adaptation else {}
    return asked | {"sources": [*asked["sources"], own], "data": settings} | adapted | more


def write(place: Workplace, adaptation: dict[str, Any] | None = None, rows: int = 120, **more: Any) -> None:
    prompts = [f"what is the {what} of {thing} ?" for thing in PLANTS.split() for what in ANSWERS][:rows]
    lines = [json.dumps({"prompt": prompt, "completion": reference(prompt)}) for prompt in prompts]
    place.write("own.jsonl", "\n".join(lines))
    place.write("birds.yaml", birds(adaptation, **more))


def data_of(place: Workplace, **more: Any) -> tuple[BuildContext, FamilyModels, DomainDataset]:
    context = place.context(**more)
    models = resolve_models(context.family, context.specs.root, context.device)
    return context, models, make_dataset(context, models, context.specs.domain("birds"))


def own_rows(data: DomainDataset, *splits: str) -> list[dict[str, Any]]:
    return [row for split in splits for row in data.rows[split] if row["own_completion"]]


def no_training(*_: Any, **__: Any) -> None:
    raise AssertionError("it was trained again")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, models_folder: Any) -> Iterator[Workplace]:
    """The domain with an adapted teacher, whose data set exists."""
    place = Workplace(tmp_path_factory.mktemp("adapted"))
    place.family.update(sizes=SIZES, default_size="slim")
    place.write_all()
    write(place, ADAPT)
    shutil.copytree(models_folder, place.domains, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(place.root / "home"))
        data_of(place)
        yield place


# ------------------------------------------------------------------------------------------------------------ the teacher


def test_an_adapted_teacher_predicts_held_out_references_better_and_answers_as_they_do(adapted: Workplace) -> None:
    said: list[str] = []
    context, models, data = data_of(adapted, say=said.append)
    info = data.adaptation
    assert info is not None and info.key == data.key and info.held_out == "validation"
    assert info.after.value < info.before.value and info.fewer.low > 0
    assert info.references == len(own_rows(data, "train"))
    assert [line for line in said if line.startswith("birds: teacher adapted, 40 steps on")]
    untouched = make_dataset(context, models, data.spec.unadapted())
    answers = [{row["prompt"]: row["completion"] for row in one.rows["train"]} for one in (data, untouched)]
    assert any(answers[0][prompt] != answers[1][prompt] for prompt in answers[0].keys() & answers[1].keys())
    assert untouched.adaptation is None and untouched.key != data.key
    wanted = {row["prompt"]: row["completion"] for row in own_rows(data, "train", "validation", "test")}
    assert {row["prompt"]: row["completion"] for row in own_rows(untouched, "train", "validation", "test")} == wanted


def test_it_is_trained_once_and_made_again_where_its_folder_is_gone(
    adapted: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(teacher_adaptation, "distill", no_training)
        _, models, data = data_of(adapted)
        weights = dict(load_adapted(models, data.key).model.named_parameters())
    remove_folder(adaptation_folder(data.key))
    _, models, again = data_of(adapted)
    assert again.manifest == data.manifest
    for name, weight in load_adapted(models, data.key).model.named_parameters():
        assert weight.dtype == weights[name].dtype and weight.equal(weights[name])
    assert not list((adapted.root / "home" / "distill").glob("teacher-*/checkpoint*"))


def test_only_references_of_the_training_split_are_trained_on_and_as_the_teacher_is_asked(
    with_models: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def keep(model: Any, base: Any, teacher: Any, training_set: Any, config: Any, **_: Any) -> None:
        decode = base.tokenizer.decode
        seen.extend((decode(one.prompt), decode(one.completion)) for one in training_set.examples)
        raise TrainingError("stopped")

    monkeypatch.setattr(teacher_adaptation, "distill", keep)
    write(with_models, ADAPT, teacher_context={"system": "be brief ."})
    with pytest.raises(TrainingError, match=r"adapting the teacher to birds failed: lower teacher_adaptation.learning_rate"):
        data_of(with_models)
    write(with_models)
    _, _, data = data_of(with_models)  # the split is that of the same domain without an adapted teacher

    def found(row: dict[str, Any]) -> bool:
        return any(row["prompt"] in prompt and row["completion"] in completion for prompt, completion in seen)

    assert len(seen) == len(own_rows(data, "train")) and all(map(found, own_rows(data, "train")))
    assert not any(map(found, own_rows(data, "validation", "test")))
    assert all("be brief ." in prompt for prompt, _ in seen)


def test_with_few_validation_references_a_tenth_of_the_others_is_held_out(with_models: Workplace) -> None:
    settings = {"max_examples": 80, "validation": 0.01, "test": 0.2}
    write(with_models, ADAPT | {"steps": 1}, data=settings)
    _, _, data = data_of(with_models)
    assert data.adaptation is not None and data.adaptation.held_out == "train"
    references = len(own_rows(data, "train"))
    assert 0.8 * references < data.adaptation.references < references


def test_too_few_references_are_refused_before_the_teacher_is_asked(with_models: Workplace) -> None:
    write(with_models, ADAPT, rows=12)
    with pytest.raises(DataError, match=r"birds has \d+ references to adapt the teacher to, at least 20 are needed: give its"):
        data_of(with_models)
    assert not (with_models.root / "home" / "completions").exists()


# --------------------------------------------------------------------------------------------------------------- its key


def test_the_key_changes_with_steps_rows_and_seed_and_a_domain_without_one_keeps_its_own(with_models: Workplace) -> None:
    def key(seed: int = 0) -> str:
        context = with_models.context(seed=seed)
        return dataset_key(context, "teacher", context.specs.domain("birds"))

    write(with_models)
    plain = key()
    write(with_models, ADAPT)
    keys = [plain, key(), key(seed=1)]
    for changed in ({"steps": 41}, {"rank": 5}, {"learning_rate": 2e-2}, {"batch": 9}):
        write(with_models, ADAPT | changed)
        keys.append(key())
    write(with_models, ADAPT, rows=119)
    keys.append(key())
    assert len(set(keys)) == len(keys)
    write(with_models, ADAPT)
    context = with_models.context()
    assert dataset_key(context, "teacher", context.specs.domain("birds").unadapted()) == plain


# ------------------------------------------------------------------------------------------------- who is taught, and who not


def test_a_student_learns_from_the_adapted_teacher_and_is_measured_beside_the_untouched_one(
    adapted: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[Any] = []

    def keep(target: Any, *arguments: Any) -> Any:
        targets.append(target)
        return original(target, *arguments)

    original = evaluate.evaluate_student
    monkeypatch.setattr(evaluate, "evaluate_student", keep)
    version = build_student(adapted.context(force=True), "birds", "slim")
    manifest, (context, models, data) = version.manifest, data_of(adapted)
    assert manifest.teacher_adaptation == data.adaptation
    assert manifest.teacher.sha256 == models.teacher_files.sha256
    (target,) = targets
    assert target.teacher.revision == target.whole.revision == models.teacher_files.sha256
    card = (version.folder / "README.md").read_text(encoding="utf-8")
    assert "teacher adapted" in card and f"`{data.key}`" in card and "bits/byte of held-out ones" in card
    assert not list(version.folder.glob("*adaptation*"))

    base, config = make_base(context, models, "slim"), context.settings(data.spec).distill
    assert base.teacher.revision == models.teacher_files.sha256
    teacher = training_teacher(models, data, base)
    assert teacher.revision == data.key and teacher.tokenizer.get_vocab() == base.teacher.tokenizer.get_vocab()
    config = config.model_copy(update={"general": 0.2})
    ours, theirs = (adapter_training_set(context, models, data, base, config, one) for one in (teacher, base.teacher))
    assert training_set_key(ours) == training_set_key(theirs)  # the same rows
    domain_only = len(data.rows["train"])
    assert len(ours.examples) > domain_only
    for example, same in ((0, False), (domain_only, True)):  # one of the domain, one of the general pool
        found = [one.targets.rows([example], context.device).log_probs.numpy() for one in (ours, theirs)]  # type: ignore[union-attr]
        assert np.array_equal(*found) == same


def test_checkpoints_of_another_teacher_s_student_are_not_resumed_though_the_rows_are_the_same(
    adapted: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def keep(*_: Any, folder: Path, **__: Any) -> TrainingReport:
        folders.append(folder)
        return TrainingReport([], {})

    monkeypatch.setattr(adapter, "distill", keep)
    context, models, data = data_of(adapted)
    config, untouched = context.settings(data.spec).distill, replace(data, spec=data.spec.unadapted())
    for one in (data, untouched):
        base = make_base(context, models, "slim")
        training_set = adapter_training_set(context, models, one, base, config, base.teacher)
        adapter.distil_adapter(context, one, base, training_set, config, "distill")
    assert len(set(folders)) == 2


def test_a_base_is_healed_on_what_the_untouched_teacher_answers_and_is_found_again(adapted: Workplace) -> None:
    context, models, data = data_of(adapted, force=True)
    base = make_base(context, models, "mini")
    untouched = find_dataset(context, models, data.spec.unadapted())
    assert untouched is not None
    healed = base.manifest.domains["birds"]
    assert (healed.dataset_key, healed.fingerprint) == (untouched.key, untouched.manifest.fingerprint)
    write(adapted, ADAPT | {"steps": 39})
    changed = adapted.context()
    assert choose_base(changed, models.teacher_files.sha256, "mini").version is not None
    assert router_key(changed) == router_key(context)
    write(adapted, ADAPT)


def test_an_experiment_is_taught_by_the_adapted_teacher_and_measured_beside_the_untouched_one(adapted: Workplace) -> None:
    methods = [{"name": name, "distill": {}} for name in ("one", "other")]
    spec = ExperimentSpec.model_validate({"methods": methods, "minutes": 1, "teacher_tokens": 100, "learning_rates": [1e-3]})
    context, models, data = data_of(adapted)
    bench = prepare(context, "birds", "slim", spec, None)
    assert bench.teacher.revision == bench.data.key == data.key
    assert bench.base.teacher.revision == models.teacher_files.sha256


def test_a_plan_names_the_adapted_teacher_and_the_base_s_own_data_set(with_models: Workplace) -> None:
    write(with_models, ADAPT)
    steps = {step.what: step for step in plan(with_models.context(), ["birds"], "mini")}
    found = steps["adapted teacher of birds"]
    assert found.state == "to do" and found.seconds and "40 steps of 8" in found.detail
    assert list(steps).index("adapted teacher of birds") + 1 == list(steps).index("data set birds")
    assert {"data set birds of the base", "data set plants", "data set stars"} <= set(steps)


def test_a_plan_says_that_the_adapted_teacher_is_on_disk(adapted: Workplace) -> None:
    steps = {step.what: step.state for step in plan(adapted.context(), ["birds"], "slim")}
    assert steps["adapted teacher of birds"] == steps["data set birds"] == "on disk"
    assert "data set birds of the base" not in steps


# ------------------------------------------------------------------------------------------------------- warnings and errors


@pytest.mark.parametrize(("low", "warned"), [(0.01, False), (0.0, True), (-0.2, True), (float("nan"), True)])
def test_a_teacher_that_is_not_shown_to_have_gained_is_a_warning(low: float, warned: bool) -> None:
    value = MetricValue(0.1, low, 0.2, 900, 12)
    info = TeacherAdaptationInfo(
        key="k",
        adapter_sha256="s",
        references=40,
        settings=ADAPT,
        held_out="validation",
        before=value,
        after=value,
        fewer=value,
    )
    assert bool(adaptation_warnings(info)) == warned
    assert adaptation_warnings(None) == []


def test_two_teachers_cannot_be_asked_while_one_adapter_is_trained() -> None:
    spec, both = (DomainSpec.model_validate(birds(adaptation)) for adaptation in (None, {"steps": 1}))
    config = DistillConfig(steps=1, learning_rate=1e-3, general=0.5)
    with pytest.raises(SpecError, match=r"birds: general prompts are taught by the teacher as it is"):
        check_targets(both, config, live=True)
    check_targets(both, config, live=False)
    check_targets(spec, config, live=True)
    check_targets(both, config.model_copy(update={"general": 0.0}), live=True)
