"""A size names its family, and a family its default size."""

from __future__ import annotations

import pytest
from support.workplace import Workplace

from factory.config.choose import choose_family
from factory.config.load import load_specs
from factory.config.schema import Specs
from factory.errors import SpecError


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
