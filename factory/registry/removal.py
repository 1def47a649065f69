"""Deleting a version, and what killed processes leave behind.

delete_version(root, "healthcare-small@3")
for left in leftovers(root):
    remove(root, left.path)
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from factory.cache import remove_folder, storage_errors, sync
from factory.errors import RegistryError
from factory.registry.layout import FOLDERS, MANIFEST, is_number, kind_of, names, numbers
from factory.registry.ledger import adopt, locked, read_ledger, with_version, write_ledger
from factory.registry.plain_json import parse_json
from factory.registry.publishing import FAILED, STAGING, left_behind
from factory.registry.references import check_number, shorten, unknown_name

MAX_NAMED = 5


@dataclass(frozen=True)
class Leftover:
    """A file or folder in a registry that nothing needs."""

    path: Path
    why: str


def delete_version(root: Path, reference: str) -> None:
    """``delete_version(root, "healthcare-small@3")``; see ``Registry.delete``. A damaged one can be deleted, too."""
    name, _, selector = reference.partition("@")
    kind = kind_of(root, name)
    if kind is None:
        raise unknown_name(root, name)
    if not is_number(selector):
        newest = f"{name}@{numbers(root, kind, name)[-1]}"
        raise RegistryError(f"{reference} does not say which version to delete: give its number, as in {newest}")
    with storage_errors(f"cannot delete {reference}"), locked(root):
        check_number(root, kind, name, int(selector), reference)
        if needed := _needed_by(root, name, int(selector)):
            raise RegistryError(f"{reference} cannot be deleted: {needed}")
        write_ledger(root, with_version(adopt(root), name, int(selector), None))  # what a kill leaves from here on is no version
        remove(root, root / FOLDERS[kind] / name / selector)


def _needed_by(root: Path, name: str, number: int) -> str | None:
    """What to remove first: aliases that point at it, students that stand on it. Callers hold the lock."""
    aliases = [f"{name}@{alias}" for alias, to in read_ledger(root).aliases.get(name, {}).items() if to == number]
    if aliases:
        return f"{shorten(aliases, MAX_NAMED)} points at it; `factory demote {aliases[0]}` first"
    if kind_of(root, name) != "base":
        return None
    bases = _bases_of_students(root)
    students = [student for student, base in bases.items() if base == f"{name}@{number}"]
    if students:
        return f"it is the base of {shorten(students, MAX_NAMED)}; delete these first"
    unknown = [student for student, base in bases.items() if base is None]
    return f"it may be the base of {shorten(unknown, MAX_NAMED)}, damaged; restore or delete these first" if unknown else None


def _bases_of_students(root: Path) -> dict[str, str | None]:
    """{"healthcare-small@3": "default-small-base@1"}: of all that were published, also of one that is damaged: it may be restored.

    None where its manifest cannot be read.
    """
    ledger, found = read_ledger(root), dict[str, str | None]()
    for name in names(root, "student"):
        for number in numbers(root, "student", name):
            if ledger.stamp(name, number):  # neither deleted nor copied in
                manifest = root / FOLDERS["student"] / name / str(number) / MANIFEST
                try:
                    found[f"{name}@{number}"] = str(parse_json(manifest.read_bytes())["base"])
                except (OSError, ValueError, KeyError, TypeError):
                    found[f"{name}@{number}"] = None
    return found


def remove(root: Path, path: Path) -> None:
    """``remove(root, folder)``: out of sight by one rename, then gone; the next build may be quicker.

    Raises: OSError where the disk refuses the rename.
    """
    staging = root / STAGING
    staging.mkdir(exist_ok=True)
    hidden = staging / f"removed-{secrets.token_hex(4)}"
    os.rename(path, hidden)
    sync(path.parent)
    if hidden.is_dir():
        remove_folder(hidden)
    else:
        hidden.unlink(missing_ok=True)


def leftovers(root: Path) -> list[Leftover]:
    """``leftovers(root)``: what killed processes left in a registry; nothing that a living one writes.

    Raises: RegistryError where the ledger cannot be read.
    """
    ledger = read_ledger(root)
    deleted = [
        Leftover(root / folder / name / str(number), "what is left of a deleted version")
        for kind, folder in FOLDERS.items()
        for name in names(root, kind)
        for number in numbers(root, kind, name)
        if ledger.stamp(name, number) == ""
    ]
    killed = [Leftover(path, "left by a process that was killed") for path in left_behind(root)]
    failed = [Leftover(path, "kept from a build that failed") for path in sorted((root / STAGING).glob(f"*{FAILED}"))]
    return [*deleted, *killed, *failed]
