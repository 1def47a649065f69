"""The names of cascades, from a family's sizes and models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from factory.config.cascades import cascade_domains, cascade_sizes, cascade_students


def family(*cascade: str) -> Any:
    return SimpleNamespace(serve=SimpleNamespace(cascade=cascade), models={"giant": None})


@pytest.mark.parametrize("last", [(), ("teacher",), ("giant",)])
def test_the_last_step_is_no_size_where_it_is_no_student(last: tuple[str, ...]) -> None:
    assert cascade_sizes(family("tiny", "small", *last)) == ["tiny", "small"]
    assert cascade_students(family("tiny", "small", *last), "law") == ["law-tiny", "law-small"]


def test_a_domain_has_a_cascade_where_it_has_a_student_in_one_of_the_sizes() -> None:
    names = ["law-small", "law-tiny", "health-care-small", "tax-medium", "small"]
    assert cascade_domains(family("tiny", "small", "teacher"), names) == ["law", "health-care"]
    assert cascade_domains(family(), names) == []
