"""Which family and size are meant, and what a build would do."""

from __future__ import annotations

from typing import Any

import pytest
from support.workplace import BIRDS, Workplace, domain

from factory.config.load import load_specs
from factory.config.schema import Specs
from factory.errors import SpecError
from factory.pipeline.build import BuildOptions
from factory.pipeline.estimate import format_duration
from factory.pipeline.plan import choose_family, plan, total_seconds


@pytest.fixture
def specs(workplace: Workplace) -> Specs:
    second = workplace.family | {"name": "second", "sizes": {"grand": {"layers": 1}}, "default_size": "grand"}
    workplace.write("second.family.yaml", second)
    return load_specs(workplace.domains)


@pytest.mark.parametrize(
    ("size", "family", "meant"),
    [
        (None, None, ("default", "mini")),
        ("grand", None, ("second", "grand")),
        (None, "second", ("second", "grand")),
        ("grand", "second", ("second", "grand")),
    ],
)
def test_a_size_names_its_family_and_a_family_its_default_size(
    specs: Specs, size: str | None, family: str | None, meant: tuple[str, str]
) -> None:
    chosen, name = choose_family(specs, size, family)
    assert (chosen.name, name) == meant


def test_a_size_of_another_family_is_refused(specs: Specs) -> None:
    with pytest.raises(SpecError, match=r"size 'mini' belongs to family default, not second; sizes of second: grand"):
        choose_family(specs, "mini", "second")


def test_a_family_that_is_alone_need_not_be_named(workplace: Workplace) -> None:
    (workplace.domains / "default.family.yaml").unlink()
    workplace.write("only.family.yaml", workplace.family | {"name": "only"})
    assert choose_family(load_specs(workplace.domains))[0].name == "only"


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
        "student plants-mini": "to do",
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


def test_a_plan_after_a_build_has_only_the_new_student_to_do(built: Workplace) -> None:
    assert states(built, "stars") == {
        "teacher": "on disk",
        "encoder": "on disk",
        "data set stars": "on disk",
        "router": "on disk",
        "base default-mini-base": "on disk",
        "student stars-mini": "to do",
    }


def test_a_new_domain_is_planned_without_a_new_base_unless_asked(built: Workplace) -> None:
    built.write("birds.yaml", domain("birds", BIRDS))
    assert states(built, "birds")["base default-mini-base"] == "on disk"
    asked = states(built, "birds", options=BuildOptions(rebuild_base=True))
    assert asked["base default-mini-base"] == "to do" and asked["data set stars"] == "on disk"
    (built.domains / "birds.yaml").unlink()


def test_another_seed_is_another_plan(built: Workplace) -> None:
    assert states(built, "stars", seed=7)["router"] == "to do"


@pytest.mark.parametrize(("seconds", "written"), [(0.2, "1 s"), (75, "75 s"), (1500, "25 min"), (9000, "2.5 h")])
def test_durations_are_written_for_people(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written
