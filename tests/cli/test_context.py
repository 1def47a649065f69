"""What a command reads before it loads a model: every YAML file, or those that it needs."""

from __future__ import annotations

import pytest
from support.workplace import Workplace, domain

from factory.cli.context import choose
from factory.errors import SpecError

SORTED = {"id": "heap", "kind": "templates", "license": "mit", "templates": ["what is it ?"]}


@pytest.fixture
def broken(workplace: Workplace) -> Workplace:
    """Its stars.yaml has a gate on what is no metric."""
    workplace.write("stars.yaml", domain("stars", "sun vega") | {"gates": {"brightness": {"at_least": 1}}})
    return workplace


def test_a_command_that_needs_every_domain_is_refused(broken: Workplace) -> None:
    with pytest.raises(SpecError, match=r"stars\.yaml:\d+: gates\.brightness: no such metric"):
        choose(broken.domains)


def test_a_command_goes_on_without_a_domain_that_it_does_not_need_and_says_so(
    broken: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    specs, _, size = choose(broken.domains, needs=["plants"])
    assert list(specs.domains) == ["plants"] and size == "mini"
    assert capsys.readouterr().err == (
        f"warning: {broken.domains}/stars.yaml: left out for mistakes, which `factory validate` lists\n"
    )


def test_a_command_that_needs_the_domain_is_refused(broken: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match=r"stars\.yaml"):
        choose(broken.domains, needs=["stars"])
    assert capsys.readouterr().err == ""


def test_where_a_router_sorts_a_pool_every_domain_is_needed(broken: Workplace) -> None:
    broken.write("default.family.yaml", broken.family | {"pool": [SORTED]})
    with pytest.raises(SpecError, match=r"stars\.yaml"):
        choose(broken.domains, needs=["plants"])


def test_without_mistakes_nothing_is_said(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    specs, _, _ = choose(workplace.domains, needs=[])
    assert set(specs.domains) == {"plants", "stars"} and capsys.readouterr().err == ""
