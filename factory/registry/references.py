"""Names, version numbers and aliases: from ``healthcare-small@champion`` to a folder.

resolve(root, "healthcare-small@3").folder

<root>/students/<name>/<number>/   <root>/bases/<name>/<number>/   <root>/aliases.json  {name: {alias: number}}
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from factory.config.names import check_name
from factory.errors import RegistryError
from factory.registry.versions import FOLDERS, Version, load_version

CHAMPION = "champion"
ALIASES = "aliases.json"


def resolve(root: Path, reference: str) -> Version:
    """``resolve(root, "healthcare-small" | "healthcare-small@3" | "healthcare-small@champion")``; see ``Registry.resolve``."""
    name, at, selector = reference.partition("@")
    kind = kind_of(root, name)
    if kind is None:
        raise _unknown_name(root, name)
    if is_number(selector):
        return load_number(root, kind, name, int(selector), reference)
    aliases = read_aliases(root).get(name, {})
    if not at:
        champion = load_number(root, kind, name, aliases[CHAMPION], f"{name}@{CHAMPION}") if CHAMPION in aliases else None
        return champion if champion and champion.verdict != "failed" else _newest_valid(root, kind, name)
    if selector not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise RegistryError(
            f"{name} has no alias {selector!r}{_did_you_mean(selector, aliases)}; "
            f"aliases: {known}; versions: {_shorten(numbers(root, kind, name))}"
        )
    return load_number(root, kind, name, aliases[selector], reference)


def load_number(root: Path, kind: str, name: str, number: int, reference: str) -> Version:
    """``load_number(root, "student", "healthcare-small", 3, "healthcare-small@3")``: that version, with all its files.

    Raises: RegistryError, which names ``reference``, for one that does not exist or is damaged.
    """
    existing = numbers(root, kind, name)
    if number not in existing:
        aliases = ", ".join(f"{a} → {n}" for a, n in sorted(read_aliases(root).get(name, {}).items())) or "none"
        raise RegistryError(f"{reference}: {name} has no version {number}; versions: {_shorten(existing)}; aliases: {aliases}")
    try:
        return load_version(root, kind, name, number)
    except RegistryError as error:
        raise RegistryError(f"{reference} cannot be used: {error}; versions: {_shorten(existing)}") from None


def _newest_valid(root: Path, kind: str, name: str) -> Version:
    """The newest version that is complete and has not failed its gates."""
    rejected = []
    for number in reversed(numbers(root, kind, name)):
        try:
            version = load_number(root, kind, name, number, f"{name}@{number}")
        except RegistryError:
            rejected.append(f"{number} is damaged")
            continue
        if version.verdict != "failed":
            return version
        rejected.append(f"{number} failed its gates")
    raise RegistryError(
        f"{name} has no valid version: {_shorten(rejected)}; build it again, or name a version, as in {name}@{number}"
    )


def _unknown_name(root: Path, name: str) -> RegistryError:
    check_name(name)
    known = [one for kind in FOLDERS for one in names(root, kind) if numbers(root, kind, one)]
    if not known:
        return RegistryError(f"no student or base named {name!r}: {root} is empty; build one with `factory build`")
    return RegistryError(f"no student or base named {name!r}{_did_you_mean(name, known)}; available: {_shorten(known)}")


# ----------------------------------------------------------------------------------------------------- what is on disk


def names(root: Path, kind: str) -> list[str]:
    """``names(root, "student")``: every folder of that kind, sorted."""
    return sorted(visible_names(root / FOLDERS[kind]))


def numbers(root: Path, kind: str, name: str) -> list[int]:
    """``numbers(root, "student", "healthcare-small")`` → [1, 2, 3], complete or not."""
    return sorted(int(number) for number in visible_names(root / FOLDERS[kind] / name) if is_number(number))


def kind_of(root: Path, name: str) -> str | None:
    """``kind_of(root, "healthcare-small")`` → "student", "base" or None. None also for paths: ``../`` is never joined."""
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        return None
    return next((kind for kind in FOLDERS if numbers(root, kind, name)), None)


def read_aliases(root: Path) -> dict[str, dict[str, int]]:
    """``read_aliases(root)["healthcare-small"]["champion"]`` → 3. Raises: RegistryError for an unreadable file."""
    path = root / ALIASES
    try:
        content = json.loads(path.read_bytes())
        return {
            check_name(name): {check_name(alias, "alias"): int(number) for alias, number in of.items()}
            for name, of in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, RegistryError) as error:
        raise RegistryError(f"{path} cannot be read ({error}); repair or delete it, then promote again") from None


def is_number(text: str) -> bool:
    """``is_number("3")``: a version's folder; not ``03``, ``+3`` or ``.last``."""
    return text.isascii() and text.isdecimal() and text[0] != "0" and len(text) < 10


def visible_names(folder: Path | str) -> list[str]:
    """``visible_names(root / "students")``: what is in it and not hidden; nothing where there is no such folder."""
    try:
        return [name for name in os.listdir(folder) if name[0] != "."]
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------------------- messages


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean a or b?", or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _shorten(items: Iterable[object], limit: int = 12) -> str:
    words = [str(item) for item in items]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
