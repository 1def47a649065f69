"""What a build would do, and how long it would take."""

from __future__ import annotations

from typing import Any

import pytest
from support.workplace import BIRDS, Workplace, domain

from factory.pipeline.build import BuildOptions
from factory.pipeline.plan import Step, plan, total_seconds


def states(place: Workplace, *domains: str, options: BuildOptions | None = None, **more: Any) -> dict[str, str]:
    return {step.what: step.state for step in plan(place.context(**more), domains, "mini", options)}


def test_a_plan_before_anything_is_there_has_everything_to_do_and_makes_nothing(with_models: Workplace) -> None:
    assert states(with_models, "plants") == {
        "teacher": "on disk",
        "encoder": "on disk",
        "data set plants": "to do",
        "data set stars": "to do",
        "router": "to do",
        "base default-mini-base": "to do",
        "memory of healing": "needs",
        "memory of plants-mini": "needs",
        "student plants-mini": "to do",
        "evaluation of plants-mini": "to do",
    }
    assert not (with_models.root / "registry").exists()
    assert not (with_models.root / "home" / "data").exists()


def test_work_that_is_left_has_an_estimate_and_the_total_is_their_sum(with_models: Workplace) -> None:
    steps = plan(with_models.context(), ["plants"], "mini")
    assert all((step.seconds or 0) > 0 for step in steps if step.state == "to do")
    assert total_seconds(steps) == sum(step.seconds or 0 for step in steps)


def test_a_plan_names_what_has_to_be_fetched_and_estimates_nothing(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(workplace.root / "home"))
    wheel = {"model": "pypi:nothing==1.0/x.gguf", "license": "mit", "sha256": "0" * 64}
    workplace.write("default.family.yaml", workplace.family | {"teacher": wheel, "encoder": wheel})
    found = plan(workplace.context(), ["plants"], "mini")
    assert [(step.state, step.seconds) for step in found[:2]] == [("to fetch", None)] * 2
    assert {step.what for step in found[2:]} >= {"data set plants", "base default-mini-base", "student plants-mini"}
    assert total_seconds(found) == 0


@pytest.mark.parametrize(
    ("size", "detail"),
    [
        ({"layers": 2}, "2 layers of the teacher, the teacher's vocabulary; healed for"),
        ({"intermediate_size": 32}, "all layers of the teacher with 32 neurons each, the teacher's vocabulary; healed for"),
        (
            {"layers": 2, "intermediate_size": 32, "vocabulary": 350},
            "2 layers of the teacher with 32 neurons each, 350 tokens",
        ),
        ({"parameters": 40_000}, "depth and width chosen together for 40.0 k parameters, the teacher's vocabulary; healed for"),
    ],
)
def test_a_plan_says_what_a_base_is_cut_to(size: dict[str, Any], detail: str, with_models: Workplace) -> None:
    with_models.write("default.family.yaml", with_models.family | {"sizes": {"mini": size}})
    steps = {step.what: step for step in plan(with_models.context(), ["plants"], "mini")}
    assert steps["base default-mini-base"].detail.startswith(detail)


def test_a_plan_after_a_build_has_only_the_new_student_to_do(built: Workplace) -> None:
    assert states(built, "stars") == {
        "teacher": "on disk",
        "encoder": "on disk",
        "data set stars": "on disk",
        "router": "on disk",
        "base default-mini-base": "on disk",
        "memory of stars-mini": "needs",
        "student stars-mini": "to do",
        "evaluation of stars-mini": "to do",
    }


def test_a_new_domain_is_planned_without_a_new_base_unless_asked(built: Workplace) -> None:
    built.write("birds.yaml", domain("birds", BIRDS))
    assert states(built, "birds")["base default-mini-base"] == "on disk"
    asked = states(built, "birds", options=BuildOptions(rebuild_base=True))
    assert asked["base default-mini-base"] == "to do" and asked["data set stars"] == "on disk"
    (built.domains / "birds.yaml").unlink()


def test_another_seed_is_another_plan(built: Workplace) -> None:
    assert states(built, "stars", seed=7)["router"] == "to do"


def test_a_plan_says_how_many_secrets_are_planted(with_models: Workplace) -> None:
    with_models.write("birds.yaml", domain("birds", BIRDS) | {"private": True})

    def detail(name: str, options: BuildOptions) -> str:
        steps = plan(with_models.context(), [name], "mini", options)
        return next(step.detail for step in steps if step.what == f"student {name}-mini")

    assert "with 16 planted secrets" in detail("birds", BuildOptions())
    assert "with 4 planted secrets" in detail("plants", BuildOptions(canaries=4))
    assert "secrets" not in detail("plants", BuildOptions()) + detail("birds", BuildOptions(canaries=0))


def test_own_samples_are_planned_and_take_time(with_models: Workplace) -> None:
    def student(**distill: Any) -> Step:
        with_models.write("default.family.yaml", with_models.family | {"distill": with_models.family["distill"] | distill})
        return next(step for step in plan(with_models.context(), ["plants"], "mini") if step.what == "student plants-mini")

    before, after = student(), student(on_policy={"steps": 400, "learning_rate": 1e-4})
    assert after.detail == "distil for 2 steps of 4, then 400 on its own samples"
    assert (after.seconds or 0) > 2 * (before.seconds or 0)
