"""The SQLite index of a registry: a cache of its manifests that may be deleted at any time. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from factory.config.names import is_name
from factory.errors import RegistryError
from factory.registry.layout import FOLDERS, is_number, tree, visible_names
from factory.registry.ledger import Ledger, read_ledger
from factory.registry.versions import COLUMNS, load_version, summary_row

Key = tuple[str, str, int]  # kind, name, number
Row = tuple[Any, ...]  # the values of COLUMNS

INDEX_LAYOUT = 5  # raise it when Summary or the manifest's schema version changes: older indexes are then rebuilt
# SQLite's codes of an index that is not damaged, but cannot be written now: busy, locked, read-only, I/O error, disk full,
# cannot open.
UNUSABLE = (5, 6, 8, 10, 13, 14)


class Index(NamedTuple):
    """Every numbered folder of a registry: a row where ``load_version`` accepts it, else its key."""

    rows: list[Row]
    invalid: list[Key]


def read_index(root: Path, *, rebuild: bool = False) -> Index:
    """``read_index(Path("registry")).rows``: up to date with the folders, by kind, name and number.

    A damaged index is rebuilt, and any other where ``rebuild`` says so; where it cannot be written, it is built in memory.
    Raises: RegistryError where the ledger cannot be read.
    """
    on_disk = _scan(root, read_ledger(root))
    if not on_disk:
        return Index([], [])
    path = root / "index.sqlite"
    for where in (str(path), str(path), ":memory:"):
        try:
            with contextlib.closing(sqlite3.connect(where, timeout=1.0)) as connection:
                return _update(connection, root, on_disk, rebuild)
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a damaged name in SQLite's own message
            if where == ":memory:":
                raise
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in UNUSABLE:
                continue
            for suffix in ("", "-journal"):  # damaged
                with contextlib.suppress(OSError):
                    os.unlink(f"{path}{suffix}")
    raise AssertionError("the index in memory returns or raises")


def _scan(root: Path, ledger: Ledger) -> dict[Key, str]:
    """A stamp of each numbered folder, which differs once a file in it is new, changed or gone, or its entry in the ledger."""
    return {
        (kind, name, int(number)): _stamp(f"{root}/{folder}/{name}/{number}", ledger.stamp(name, int(number)))
        for kind, folder in FOLDERS.items()
        for name in visible_names(root / folder)
        if is_name(name)  # others cannot be published, and SQLite cannot hold some of them
        for number in visible_names(f"{root}/{folder}/{name}")
        if is_number(number)
    }


def _stamp(folder: str, published: str | None) -> str:
    """Of what ``load_version`` looks at: names, kinds, lengths and times of files, and what the ledger says of it."""
    try:
        found = tree(folder).items()
        states = sorted((path, one.st_mode, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in found)
    except OSError:  # gone meanwhile, or closed to us
        return ""
    return hashlib.sha256(repr((published, states)).encode()).hexdigest()[:16]


def _update(connection: sqlite3.Connection, root: Path, on_disk: Mapping[Key, str], rebuild: bool) -> Index:
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if rebuild or layout != INDEX_LAYOUT:
        with connection:
            connection.execute("DROP TABLE IF EXISTS versions")
            connection.execute(f"CREATE TABLE versions (stamp, {', '.join(COLUMNS)}, PRIMARY KEY (kind, name, number))")
            connection.execute(f"PRAGMA user_version = {INDEX_LAYOUT}")
    known = _rows(connection)
    current = {key: row for key, (stamp, row) in known.items() if on_disk.get(key) == stamp}
    if len(current) < max(len(known), len(on_disk)):
        read = {key: row for key in on_disk.keys() - current if (row := _row(root, *key)) is not None}
        fresh = [(_sealed(on_disk[key], row), *row) for key, row in read.items()]
        with connection:
            connection.executemany("DELETE FROM versions WHERE kind = ? AND name = ? AND number = ?", known.keys() - current)
            marks = ", ".join("?" * (1 + len(COLUMNS)))
            connection.executemany(f"INSERT OR REPLACE INTO versions VALUES ({marks})", fresh)
        current |= read  # not read back: another process, which has looked at the folders earlier, may have changed it already
    valid = [row for row in current.values() if row[COLUMNS.index("created")] is not None]
    valid.sort(key=lambda row: (row[0] != "student", *row[1:3]))
    return Index(valid, sorted(on_disk.keys() - {row[:3] for row in valid}))


def _sealed(stamp: str, row: Sequence[Any]) -> str:
    """The stamp with a checksum of the row: SQLite notices a damaged page only where its structure is hit."""
    return f"{stamp} {hashlib.sha256(repr(tuple(row)).encode()).hexdigest()[:16]}"


def _rows(connection: sqlite3.Connection) -> dict[Key, tuple[str, Row]]:
    """Stamp and values of each version. Raises: sqlite3.DatabaseError where a row is not as it was written."""
    rows = connection.execute(f"SELECT stamp, {', '.join(COLUMNS)} FROM versions NOT INDEXED").fetchall()
    found: dict[Key, tuple[str, Row]] = {}
    for sealed, *values in rows:
        stamp, row = str(sealed).partition(" ")[0], tuple(values)
        if row[:3] in found or sealed != _sealed(stamp, row):
            raise sqlite3.DatabaseError("a row was changed, or is there twice")
        found[row[:3]] = stamp, row
    return found


def _row(root: Path, kind: str, name: str, number: int) -> Row | None:
    """The values of COLUMNS; None where the disk refuses, so that the next list tries again.

    A folder that is not a version has only its key: it is not read again until it changes.
    """
    try:
        return summary_row(load_version(root, kind, name, number))
    except RegistryError as error:  # problems() names it
        refused = isinstance(error.__cause__, OSError)
        return None if refused else (kind, name, number, *[None] * (len(COLUMNS) - 3))
