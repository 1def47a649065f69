"""``registry.json``: which versions were published here, and every move of an alias. Replaced as a whole, under a lock. No torch.

    read_ledger(root).aliases["healthcare-small"]["champion"]                  # 3
    with locked(root):
        write_ledger(root, with_move(adopt(root), "healthcare-small", "champion", 3))

    {"published": {name: {number: sha256 of its manifest, or null once it was deleted}},
     "moves": [{"name", "alias", "from", "to", "at", "by"}, ...],
     "publishing": [name, number], or null once the folder is there
     "sha256": of the rest}

A version is entered before its folder appears, so a folder without an entry was copied in by hand. A process that was killed
between the two has used no number: the next change takes the entry out. Registries of older releases
have ``aliases.json`` instead; they get their ledger at the first change, with what is there at that time.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from factory.cache import replace_file
from factory.config.names import check_name
from factory.errors import RegistryError, in_one_line
from factory.registry.layout import FOLDERS, MANIFEST, is_number, names, numbers
from factory.registry.plain_json import checksum, parse_json, to_json
from factory.registry.records import utc_now

LEDGER = "registry.json"
LOCK = ".lock"
OLD_ALIASES = "aliases.json"  # {name: {alias: number}}
OLD_LAST = ".last"  # in the folder of a name: its last number


@dataclass(frozen=True)
class AliasMove:
    """Who pointed an alias at which version, when, and where it pointed before; None is nowhere."""

    name: str
    alias: str
    before: int | None
    number: int | None
    at: str  # UTC
    by: str


@dataclass(frozen=True)
class Ledger:
    """What ``registry.json`` says. ``published`` is None in a registry of an older release: then every folder counts."""

    published: Mapping[str, Mapping[int, str | None]] | None
    moves: tuple[AliasMove, ...] = ()
    publishing: tuple[str, int] | None = None  # entered; its folder may not be there

    @cached_property
    def aliases(self) -> dict[str, dict[str, int]]:
        """``ledger.aliases["healthcare-small"]["champion"]`` → 3."""
        found: dict[str, dict[str, int]] = {}
        for move in self.moves:
            if move.number is None:
                found.get(move.name, {}).pop(move.alias, None)
            else:
                found.setdefault(move.name, {})[move.alias] = move.number
        return found

    def stamp(self, name: str, number: int) -> str | None:
        """``ledger.stamp("healthcare-small", 3)``: the checksum that its manifest must have; "" for a version that was deleted.

        None where the folder was not published here. In a registry of an older release every folder has the stamp "any".
        """
        if self.published is None:
            return "any"
        known = self.published.get(name, {})
        return (known[number] or "") if number in known else None


def objection(ledger: Ledger, name: str, number: int, manifest_sha256: str) -> str | None:
    """``objection(ledger, "healthcare-small", 3, sha256)``: why a complete folder is not a version of this registry."""
    stamp = ledger.stamp(name, number)
    if stamp is None:
        return "it was copied in and not published here: move it elsewhere, then run `factory import` on it"
    if stamp == "":
        return "it was deleted: `factory gc` removes what is left of it"
    if stamp not in ("any", manifest_sha256):
        return f"its {MANIFEST} is not the one that was published: restore it from a backup, or delete the version"
    return None


# ---------------------------------------------------------------------------------------------------------------- reading


def read_ledger(root: Path) -> Ledger:
    """``read_ledger(root).aliases``. Raises: RegistryError for a ledger that was changed or is damaged."""
    path = root / LEDGER
    try:
        state = path.stat()
    except FileNotFoundError:
        return _of_older_release(root)
    except OSError as error:
        raise _unreadable(path, error) from None
    return _read(path, (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, int, int]) -> Ledger:
    """Read once for each ``stamp``: a list of a thousand versions asks for it a thousand times."""
    try:
        content = parse_json(path.read_bytes())
        if content.pop("sha256") != checksum(content):
            raise ValueError("its checksum differs")
        published = {
            name: {int(number): sha256 for number, sha256 in known.items()} for name, known in content["published"].items()
        }
        moves = [AliasMove(one["name"], one["alias"], one["from"], one["to"], one["at"], one["by"]) for one in content["moves"]]
        begun = content.get("publishing")  # older releases did not say it
        return Ledger(published, tuple(moves), (str(begun[0]), int(begun[1])) if begun else None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from None


def _of_older_release(root: Path) -> Ledger:
    path = root / OLD_ALIASES
    try:
        content = parse_json(path.read_bytes())
        moves = [
            AliasMove(check_name(name), check_name(alias, "alias"), None, int(number), "", "")
            for name, aliases in content.items()
            for alias, number in aliases.items()
        ]
    except FileNotFoundError:
        return Ledger(None)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RegistryError) as error:
        raise _unreadable(path, error) from None
    return Ledger(None, tuple(moves))


def _unreadable(path: Path, error: Exception) -> RegistryError:
    return RegistryError(
        f"{path} was changed or is damaged ({in_one_line(error)}): restore it from a backup, or run `factory reindex` and promote "
        "again"
    )


# --------------------------------------------------------------------------------------------------------------- changing


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """``with locked(root):`` one process and thread at a time changes a registry. Raises: OSError where the disk refuses."""
    from filelock import FileLock  # imported here: reading never locks

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / LOCK):
        yield


def adopt(root: Path) -> Ledger:
    """``adopt(root)``: the ledger to change, without a version whose process was killed before its folder appeared.

    Of an older release's registry, with every folder that is there now. Callers hold the lock.
    """
    ledger = read_ledger(root)
    if ledger.published is None:
        return replace(ledger, published=_on_disk(root))
    if ledger.publishing is None:
        return ledger
    name, number = ledger.publishing
    there = any((root / folder / name / str(number)).exists() for folder in FOLDERS.values())
    known = {one: sha256 for one, sha256 in ledger.published.get(name, {}).items() if there or one != number}
    return replace(ledger, published={**ledger.published, name: known}, publishing=None)


def rebuild_ledger(root: Path) -> bool:
    """``rebuild_ledger(root)``: writes it anew from the folders where it cannot be read; whether it had to. Callers hold the lock.

    Aliases, their history and the numbers of deleted versions are then lost.
    """
    try:
        read_ledger(root)
    except RegistryError:
        write_ledger(root, Ledger(_on_disk(root)))
        return True
    return False


def with_version(ledger: Ledger, name: str, number: int, sha256: str | None) -> Ledger:
    """``with_version(ledger, "healthcare-small", 3, sha256)``: published with this manifest; None: deleted."""
    published = dict(ledger.published or {})
    published[name] = dict(published.get(name, {})) | {number: sha256}
    return replace(ledger, published=published)


def with_move(ledger: Ledger, name: str, alias: str, number: int | None) -> Ledger:
    """``with_move(ledger, "healthcare-small", "champion", 3)``: by this user, now; None removes the alias."""
    before = ledger.aliases.get(name, {}).get(alias)
    return replace(ledger, moves=(*ledger.moves, AliasMove(name, alias, before, number, utc_now(), _user())))


def write_ledger(root: Path, ledger: Ledger) -> None:
    """``write_ledger(root, ledger)``: on disk when it returns. Callers hold the lock. Raises: OSError where the disk refuses."""
    moves = [
        {"name": one.name, "alias": one.alias, "from": one.before, "to": one.number, "at": one.at, "by": one.by}
        for one in ledger.moves
    ]
    content: dict[str, Any] = {
        "published": {name: {str(number): sha for number, sha in known.items()} for name, known in (ledger.published or {}).items()},
        "moves": moves,
        "publishing": ledger.publishing,
    }
    replace_file(root / LEDGER, to_json(content | {"sha256": checksum(content)}))


def _on_disk(root: Path) -> dict[str, dict[int, str | None]]:
    """Every folder with a manifest, and the last number of a name that an older release noted."""
    found: dict[str, dict[int, str | None]] = {}
    for kind, folder in FOLDERS.items():
        for name in names(root, kind):
            last = _last_number(root / folder / name / OLD_LAST)
            known: dict[int, str | None] = {last: None} if last else {}
            for number in numbers(root, kind, name):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no manifest: no version
                    known[number] = str(parse_json((root / folder / name / str(number) / MANIFEST).read_bytes())["manifest_sha256"])
            found[name] = known
    return {name: known for name, known in found.items() if known}


def _last_number(path: Path) -> int:
    """0 where there is no such note, or no number in it."""
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text(encoding="utf-8").strip()
        return int(text) if is_number(text) else 0
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
