"""Bases: the routes that a small one is healed by, and the teacher's check before anything is trained."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from support.workplace import Refused, Workplace

from factory.config.schema import FamilySpec
from factory.registry.registry import Registry

SIZES = {"mini": {"layers": 3, "vocabulary": 340}, "micro": {"layers": 1, "vocabulary": 340}}


def family_with(workplace: Workplace, **changes: Any) -> dict[str, Any]:
    family = workplace.family | {"sizes": SIZES} | changes
    workplace.write("default.family.yaml", family)
    return family


def base_of(workplace: Workplace, size: str) -> dict[str, Any]:
    registry = Registry(workplace.root / "registry")
    return dict(registry.resolve(f"default-{size}-base").manifest)


def test_auto_tries_both_routes_and_keeps_what_is_ahead_and_says_why(with_models: Workplace) -> None:
    family_with(with_models, path="auto")
    result = with_models.run("build", "plants", "--size", "micro", "--json")
    assert result.exit_code == 0, result.output
    cascade = base_of(with_models, "micro")["cascade"]
    assert cascade["assistant"] == "default-mini-base@1"
    assert set(cascade["probes"]) == {"direct", "assistant"}
    assert all(one["steps"] == 1 and one["after"]["kl"]["n"] > 0 for one in cascade["probes"].values())
    assert (cascade["chosen"] == "assistant") == (cascade["ahead"]["low"] > 0)
    assert cascade["route"] == ["teacher", *(["default-mini-base@1"] if cascade["chosen"] == "assistant" else [])]
    assert "after 1 steps each" in cascade["reason"]
    student = json.loads(result.stdout)[0]
    assert student["route"] == [*cascade["route"], "default-micro-base@1"]
    shown = " ".join(with_models.run("show", "default-micro-base").stdout.split())
    assert all(words in shown for words in ("route", "direct, 1 steps", "assistant, 1 steps", "closed in 100 steps"))
    assert base_of(with_models, "mini")["cascade"] is None  # nothing is larger than it


def test_a_named_assistant_is_forced_and_the_layers_are_still_the_teacher_s(with_models: Workplace) -> None:
    family_with(with_models, path=["mini"])
    assert with_models.run("build", "plants", "--size", "micro").exit_code == 0
    micro, mini = base_of(with_models, "micro"), base_of(with_models, "mini")
    assert micro["cascade"]["chosen"] == "assistant" and micro["cascade"]["probes"] == {}
    assert micro["cascade"]["route"] == ["teacher", "default-mini-base@1"]
    assert set(micro["layers"]) < set(mini["layers"])
    assert micro["vocabulary"]["kept"] == mini["vocabulary"]["kept"]


def test_none_forbids_an_assistant(with_models: Workplace) -> None:
    family_with(with_models, path="none")
    assert with_models.run("build", "plants", "--size", "micro").exit_code == 0
    assert base_of(with_models, "micro")["cascade"] is None
    assert [one.name for one in Registry(with_models.root / "registry").versions(kind="base")] == ["default-micro-base"]


@pytest.mark.parametrize(
    ("sizes", "path", "size", "assistant"),
    [
        ({}, "auto", "micro", "mini"),
        ({}, "auto", "mini", None),
        ({}, "none", "micro", None),
        ({}, ("mini",), "micro", "mini"),
        ({}, ("mini",), "mini", None),
        ({"midi": {"layers": 2, "vocabulary": 340}}, "auto", "micro", "midi"),  # the next larger
        ({"midi": {"layers": 2, "vocabulary": 340}}, ("mini",), "micro", "mini"),
        ({"midi": {"layers": 2, "vocabulary": 320}}, "auto", "micro", "mini"),  # other tokens
    ],
)
def test_the_assistant_is_the_next_larger_size_with_as_many_tokens(
    workplace: Workplace, sizes: dict[str, Any], path: Any, size: str, assistant: str | None
) -> None:
    family = FamilySpec.model_validate(family_with(workplace, sizes=SIZES | sizes, path=path))
    assert family.teacher_assistant(size) == assistant


@pytest.mark.parametrize("path", [["maxi"], "always", ["foreign"]])
def test_a_path_through_what_is_not_a_pruned_size_is_refused(workplace: Workplace, path: Any) -> None:
    foreign = {"base": {"model": "path:./other", "license": "mit"}}
    with pytest.raises(ValidationError, match="path"):
        FamilySpec.model_validate(family_with(workplace, sizes=SIZES | {"foreign": foreign}, path=path))


def test_a_teacher_that_knows_nothing_is_refused_before_training_and_nothing_is_published(
    with_models: Workplace, refused: Refused
) -> None:
    line = refused(with_models.run("build", "plants", "--no-force"))
    assert "teacher pre-check failed for" in line and "ahead of chance" in line and "--force" in line
    assert Registry(with_models.root / "registry").versions() == []
    assert not (with_models.root / "home" / "heal").exists()  # not a step was trained


def test_with_force_it_is_built_and_its_card_says_so(with_models: Workplace) -> None:
    result = with_models.run("build", "plants", "--json")
    assert result.exit_code == 0
    student = json.loads(result.stdout)[0]
    assert any("built with --force although the teacher pre-check failed" in warning for warning in student["warnings"])
    card = (with_models.root / "registry" / "students" / "plants-mini" / "1" / "README.md").read_text(encoding="utf-8")
    assert "built with --force although" in card
    assert student["evaluation"]["metrics"]["teacher_ahead_of_chance"]["value"] < 0.01


def test_what_healing_brought_is_kept_and_a_base_that_it_spoiled_warns_its_students(with_models: Workplace) -> None:
    family_with(with_models, heal=with_models.family["heal"] | {"learning_rate": 0.3})
    result = with_models.run("build", "plants", "--json")
    assert result.exit_code == 0, result.output
    base = base_of(with_models, "mini")
    assert base["healing"]["steps"] == 2 and base["healing"]["before"]["kl"]["n"] > 0
    assert base["healing"]["after"]["kl"]["value"] > base["healing"]["before"]["kl"]["value"]
    (warning,) = base["warnings"]
    assert "healing brought the base no nearer" in warning
    assert warning in json.loads(result.stdout)[0]["warnings"]
    shown = " ".join(with_models.run("show", "default-mini-base").stdout.split())
    assert "healing, 2 steps" in shown and "warning: healing brought" in shown
