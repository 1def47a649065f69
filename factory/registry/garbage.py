"""What nothing needs any more: leftovers of killed processes, and cached work that no build has used for weeks.

for one in find_garbage(Registry("registry")):
    collect(registry, one)
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from factory.cache import folder_bytes, home
from factory.errors import StorageError
from factory.leftovers import is_held
from factory.registry.publishing import STAGING
from factory.registry.registry import Registry
from factory.registry.removal import leftovers, remove

KINDS = ("builds", "completions", "data", "distill", "experiments", "heal", "rivals", "routers", "serve", "targets", "teachers")
ROWS = "manifest.json"  # in the folder of a data set
DAY = 86_400  # seconds


@dataclass(frozen=True)
class Garbage:
    """A file or folder that ``factory gc`` removes, and why."""

    path: Path
    bytes: int
    why: str


def find_garbage(registry: Registry, unused_days: float = 30) -> list[Garbage]:
    """``find_garbage(Registry("registry"))``: in the registry and in ``FACTORY_HOME``. Removes nothing.

    What a living build holds is no garbage, nor are models, nor the rows that a version of this registry was made of.
    Raises: RegistryError where the registry cannot be read.
    """
    old = time.time() - unused_days * DAY
    found = [(left.path, left.why) for left in leftovers(registry.root)]
    found += _unused(old, _needed_rows(registry), f"not used for {unused_days:g} days")
    temporaries = [*home().glob("*/.*"), *home().glob(f"{STAGING}/*")]
    found += [(path, "left by a process that was killed") for path in temporaries if _last_used(path) < time.time() - DAY]
    return [Garbage(path, _bytes(path), why) for path, why in found]


def collect(registry: Registry, garbage: Garbage) -> None:
    """``collect(registry, garbage)``: out of sight by one rename, then gone. Raises: StorageError where the disk refuses."""
    root = registry.root if garbage.path.is_relative_to(registry.root) else home()
    try:
        remove(root, garbage.path)
    except FileNotFoundError:  # another one was quicker
        return
    except OSError as error:
        raise StorageError(f"{garbage.path} cannot be removed ({error.strerror}): is it another user's?") from error


def _unused(old: float, needed: set[str], why: str) -> Iterator[tuple[Path, str]]:
    for kind in KINDS:
        for path in sorted((home() / kind).glob("[!.]*")):
            lock = path if path.suffix == ".lock" else path.with_name(f"{path.name}.lock")
            if _last_used(path) < old and not is_held(lock) and _fingerprint(path) not in needed:
                yield path, why


def _needed_rows(registry: Registry) -> set[str]:
    """Fingerprints of the data sets that the versions of this registry were made of."""
    found = set()
    for summary in registry.versions():
        manifest = registry.resolve(summary.reference).manifest
        found.add(manifest.dataset.fingerprint)
        if manifest.kind == "base":
            found |= {domain.fingerprint for domain in manifest.domains.values()}
    return found


def _fingerprint(path: Path) -> str | None:
    try:
        return str(json.loads((path / ROWS).read_bytes())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _last_used(path: Path) -> float:
    """The newest time of an entry and of what is directly in it."""
    try:
        inside = path.iterdir() if path.is_dir() else ()
        return max((one.lstat().st_mtime for one in (path, *inside)), default=0.0)
    except OSError:  # gone meanwhile
        return time.time()


def _bytes(path: Path) -> int:
    with contextlib.suppress(OSError):  # gone meanwhile
        return folder_bytes(path) if path.is_dir() else path.lstat().st_size
    return 0
