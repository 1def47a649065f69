"""Names, version numbers and aliases: from ``healthcare-small@champion`` to a folder.

resolve(root, "healthcare-small@3").folder
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from factory.config.names import check_name
from factory.errors import RegistryError
from factory.registry.layout import FOLDERS, is_number, kind_of, names, numbers
from factory.registry.ledger import read_ledger
from factory.registry.versions import Version, load_version

CHAMPION = "champion"


def resolve(root: Path, reference: str) -> Version:
    """``resolve(root, "healthcare-small" | "healthcare-small@3" | "healthcare-small@champion")``; see ``Registry.resolve``."""
    name, at, selector = reference.partition("@")
    kind = kind_of(root, name)
    if kind is None:
        raise unknown_name(root, name)
    if is_number(selector):
        return load_number(root, kind, name, int(selector), reference)
    aliases = read_ledger(root).aliases.get(name, {})
    if not at:
        champion = load_number(root, kind, name, aliases[CHAMPION], f"{name}@{CHAMPION}") if CHAMPION in aliases else None
        return champion if champion and champion.verdict != "failed" else _newest_valid(root, kind, name)
    if selector not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise RegistryError(
            f"{name} has no alias {selector!r}{_did_you_mean(selector, aliases)}; "
            f"aliases: {known}; versions: {shorten(numbers(root, kind, name))}"
        )
    return load_number(root, kind, name, aliases[selector], reference)


def load_number(root: Path, kind: str, name: str, number: int, reference: str) -> Version:
    """``load_number(root, "student", "healthcare-small", 3, "healthcare-small@3")``: that version, with all its files.

    Raises: RegistryError, which names ``reference``, for one that does not exist or is damaged.
    """
    check_number(root, kind, name, number, reference)
    try:
        return load_version(root, kind, name, number)
    except RegistryError as error:
        raise RegistryError(f"{reference} cannot be used: {error}; versions: {shorten(numbers(root, kind, name))}") from None


def check_number(root: Path, kind: str, name: str, number: int, reference: str) -> None:
    """``check_number(root, "student", "healthcare-small", 3, "healthcare-small@3")``: there is such a folder, whole or not.

    Raises: RegistryError, which names the versions and aliases that exist.
    """
    existing = numbers(root, kind, name)
    if number not in existing:
        aliases = ", ".join(f"{a} → {n}" for a, n in sorted(read_ledger(root).aliases.get(name, {}).items())) or "none"
        raise RegistryError(f"{reference}: {name} has no version {number}; versions: {shorten(existing)}; aliases: {aliases}")


def _newest_valid(root: Path, kind: str, name: str) -> Version:
    """The newest version that is complete, has not failed its gates and was built here."""
    rejected = []
    for number in reversed(numbers(root, kind, name)):
        try:
            version = load_number(root, kind, name, number, f"{name}@{number}")
        except RegistryError:
            rejected.append(f"{number} is damaged")
            continue
        if version.verdict != "failed" and version.manifest.imported is None:
            return version
        rejected.append(f"{number} failed its gates" if version.verdict == "failed" else f"{number} was imported and not promoted")
    raise RegistryError(
        f"{name} has no valid version: {shorten(rejected)}; build it again, promote one, or name one, as in {name}@{number}"
    )


def unknown_name(root: Path, name: str) -> RegistryError:
    """``raise unknown_name(root, "healthcare-smal")``: names what is close and what exists."""
    check_name(name)
    known = [one for kind in FOLDERS for one in names(root, kind) if numbers(root, kind, one)]
    if not known:
        return RegistryError(f"no student or base named {name!r}: {root} is empty; build one with `factory build`")
    return RegistryError(f"no student or base named {name!r}{_did_you_mean(name, known)}; available: {shorten(known)}")


# ------------------------------------------------------------------------------------------------------------- messages


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean a or b?", or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def shorten(items: Iterable[object], limit: int = 12) -> str:
    """``shorten([1, 2, 3], limit=2)`` → "1, 2 and 1 more"."""
    words = [str(item) for item in items]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
