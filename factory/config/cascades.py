"""The names of cascades: a domain's name asks its students in the sizes of ``serve.cascade``, from the smallest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factory.config.schema import FamilySpec


def cascade_sizes(family: FamilySpec) -> list[str]:
    """``cascade_sizes(family) == ["tiny", "small"]``: without a last step that is no student."""
    return [step for step in family.serve.cascade if step not in ("teacher", *family.models)]


def cascade_students(family: FamilySpec, domain: str) -> list[str]:
    """``cascade_students(family, "healthcare") == ["healthcare-tiny", "healthcare-small"]``, whether they exist or not."""
    return [f"{domain}-{size}" for size in cascade_sizes(family)]


def cascade_domains(family: FamilySpec, students: Iterable[str]) -> list[str]:
    """``cascade_domains(family, ["healthcare-small"]) == ["healthcare"]``: with a student in one of the sizes, each once."""
    sizes = [f"-{size}" for size in cascade_sizes(family)]
    return list(dict.fromkeys(name.removesuffix(size) for name in students for size in sizes if name.endswith(size)))
