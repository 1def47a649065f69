"""Which family and size a command means."""

from __future__ import annotations

from factory.config.schema import DEFAULT_PROFILE, FamilySpec, Specs
from factory.errors import SpecError

DEFAULT_FAMILY = "default"


def choose_family(
    specs: Specs, size: str | None = None, family: str | None = None, profile: str = DEFAULT_PROFILE
) -> tuple[FamilySpec, str]:
    """``choose_family(specs, size="gemma-tiny")``: the family of a size; ``family`` alone means its default size.

    Raises: SpecError for a name that does not exist, or a size of another family.
    """
    chosen, size = _family_and_size(specs, size, family)
    chosen.settings(profile)  # an unknown profile is an error here, before anything is loaded
    return chosen, size


def _family_and_size(specs: Specs, size: str | None, family: str | None) -> tuple[FamilySpec, str]:
    if size is None:
        if family is None and DEFAULT_FAMILY not in specs.families and len(specs.families) == 1:
            family = next(iter(specs.families))
        chosen = specs.family(family or DEFAULT_FAMILY)
        return chosen, chosen.default_size
    owner = specs.family_of_size(size)
    if family is not None and specs.family(family) != owner:
        theirs = ", ".join(specs.family(family).sizes)
        raise SpecError(f"size {size!r} belongs to family {owner.name}, not {family}; sizes of {family}: {theirs}")
    return owner, size
