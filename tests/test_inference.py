"""What a student and its teacher expect next, and how a version is asked."""

from __future__ import annotations

import math

import pytest
import torch
from support.workplace import Workplace

from factory.config.load import load_specs
from factory.errors import SpecError, TrainingError
from factory.inference import ask, explain, explanation_line, load_chat_model, load_teacher_chat_model
from factory.registry.registry import Registry
from factory.registry.versions import Version

CPU = torch.device("cpu")
TEXT = "what is the"


def of(place: Workplace, ref: str) -> tuple[Version, Registry]:
    registry = Registry(place.root / "registry")
    return registry.resolve(ref), registry


def test_the_two_lists_are_sorted_and_agree_with_each_other(built: Workplace) -> None:
    version, registry = of(built, "plants-mini")
    found = explain(version, TEXT, registry, load_specs(built.domains), CPU)
    theirs = [guess.teacher for guess in found.teacher]
    own = [guess.student or 0.0 for guess in found.student]
    assert theirs == sorted(theirs, reverse=True)
    assert own == sorted(own, reverse=True)
    by_token = {guess.token: guess for guess in found.student}
    shared = [guess for guess in found.teacher if guess.token in by_token]
    assert shared
    assert all(guess == by_token[guess.token] for guess in shared)


def test_kl_is_zero_for_a_student_that_is_its_teacher(with_models: Workplace) -> None:
    """All layers, all tokens, an untouched adapter, healing at a rate of nothing: only bfloat16 is between them."""
    with_models.family["sizes"]["mini"] = {"layers": 4}
    for stage in ("heal", "distill"):
        with_models.family[stage] |= {"learning_rate": 1e-12}
    with_models.write_all()
    assert with_models.run("build", "plants").exit_code == 0
    version, registry = of(with_models, "plants-mini")
    found = explain(version, TEXT, registry, load_specs(with_models.domains), CPU)
    assert found.kl == pytest.approx(0, abs=1e-3)
    assert found.kept_mass == pytest.approx(1, abs=1e-5)
    assert found.lacking == ()
    assert [guess.token for guess in found.teacher] == [guess.token for guess in found.student]


def test_what_the_student_s_vocabulary_lacks_is_named(built: Workplace) -> None:
    """20 tokens of 360 are trimmed: after some text one of them is among the teacher's ten."""
    version, registry = of(built, "plants-mini")
    specs = load_specs(built.domains)
    texts = [
        "landlord may",
        "a b c",
        "what is",
        "sugar",
        "see doctor",
        "light turns into",
        "home",
        "be brief",
        "x",
        "cough",
    ]
    found = [explain(version, text, registry, specs, CPU) for text in texts]
    assert all(0 < one.kept_mass < 1 and one.kl >= -1e-6 and math.isfinite(one.kl) for one in found)
    lacking = next(one for one in found if one.lacking)
    assert {guess.token for guess in lacking.teacher if guess.student is None} == set(lacking.lacking)
    assert repr(lacking.lacking[0]) in explanation_line(lacking)


def test_a_base_can_be_explained_too(built: Workplace) -> None:
    version, registry = of(built, "default-mini-base")
    assert explain(version, TEXT, registry, load_specs(built.domains), CPU).reference == "default-mini-base@1"


def test_an_empty_text_is_refused(built: Workplace) -> None:
    version, registry = of(built, "plants-mini")
    with pytest.raises(TrainingError, match="the text is empty"):
        explain(version, " ", registry, load_specs(built.domains), CPU)


def test_a_family_file_with_another_teacher_is_refused(built: Workplace) -> None:
    version, registry = of(built, "plants-mini")
    specs = load_specs(built.domains)
    family = specs.families["default"]
    other = family.model_copy(update={"teacher": family.teacher.model_copy(update={"model": "path:./other"})})
    with pytest.raises(TrainingError, match=r"learned from path:\./teacher, but family default now names path:\./other"):
        explain(version, TEXT, registry, specs.model_copy(update={"families": {"default": other}}), CPU)
    with pytest.raises(SpecError, match="unknown family"):
        explain(version, TEXT, registry, specs.model_copy(update={"families": {"second": family}}), CPU)


def test_an_answer_names_its_version_and_is_the_same_each_time(built: Workplace) -> None:
    chat_model = load_chat_model(*of(built, "plants-mini"), CPU)
    first, second = (ask(chat_model, "what is the age of oak ?") for _ in range(2))
    assert first.reference == "plants-mini@1"
    assert first.answer == second.answer


def test_the_teacher_can_be_asked(built: Workplace) -> None:
    specs = load_specs(built.domains)
    assert (
        ask(load_teacher_chat_model(specs.family("default"), specs, CPU), "what is it ?").reference == "teacher path:./teacher"
    )
