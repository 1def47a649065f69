"""The SQLite index of a registry: a cache of its manifests that may be deleted at any time. No torch."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.errors import RegistryError
from factory.registry.references import is_number, visible_names
from factory.registry.versions import COLUMNS, FOLDERS, MANIFEST, load_version, summary_row

Key = tuple[str, str, int]  # kind, name, number
Stamp = tuple[int, int]  # mtime in ns and bytes of a manifest.json: when it differs, the index reads the manifest again

INDEX_LAYOUT = 2  # raise it when Summary or the manifest's schema version changes: older indexes are then rebuilt
# SQLite's codes of an index that is not damaged, but cannot be written now: busy, locked, read-only, I/O error, disk full,
# cannot open.
UNUSABLE = (5, 6, 8, 10, 13, 14)


def index_rows(root: Path) -> list[tuple[Any, ...]]:
    """``index_rows(Path("registry"))``: rows of COLUMNS, up to date with the folders; unreadable manifests have none.

    A damaged index is rebuilt; where it cannot be written, it is built in memory.
    """
    on_disk = _scan(root)
    if not on_disk:
        return []
    path = root / "index.sqlite"
    for where in (str(path), str(path), ":memory:"):
        try:
            with contextlib.closing(sqlite3.connect(where, timeout=1.0)) as connection:
                return _update(connection, root, on_disk)
        except sqlite3.Error as error:
            if where == ":memory:":
                raise
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in UNUSABLE:
                continue
            for suffix in ("", "-journal"):  # damaged
                with contextlib.suppress(OSError):
                    os.unlink(f"{path}{suffix}")
    raise AssertionError("the index in memory returns or raises")


def _scan(root: Path) -> dict[Key, Stamp]:
    """One stat per version shows new, changed, removed and incomplete folders. Plain calls, for speed."""
    found: dict[Key, Stamp] = {}
    for kind, folder in FOLDERS.items():
        for name in visible_names(root / folder):
            here = f"{root}/{folder}/{name}"
            for number in visible_names(here):
                if is_number(number):
                    try:
                        status = os.stat(f"{here}/{number}/{MANIFEST}")
                    except OSError:
                        continue
                    found[kind, name, int(number)] = (status.st_mtime_ns, status.st_size)
    return found


def _update(connection: sqlite3.Connection, root: Path, on_disk: Mapping[Key, Stamp]) -> list[tuple[Any, ...]]:
    everything = f"SELECT mtime_ns, manifest_bytes, {', '.join(COLUMNS)} FROM versions ORDER BY kind DESC, name, number"
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout != INDEX_LAYOUT:
        with connection:
            connection.execute("DROP TABLE IF EXISTS versions")
            connection.execute(
                f"CREATE TABLE versions (mtime_ns, manifest_bytes, {', '.join(COLUMNS)}, PRIMARY KEY (kind, name, number))"
            )
            connection.execute(f"PRAGMA user_version = {INDEX_LAYOUT}")
    rows = connection.execute(everything).fetchall()
    known: dict[Key, Stamp] = {row[2:5]: row[:2] for row in rows}
    if known != on_disk:
        changed = [key for key, stamp in on_disk.items() if known.get(key) != stamp]
        fresh = [(*on_disk[key], *row) for key in changed if (row := _row(root, *key)) is not None]
        stale = [key for key, stamp in known.items() if on_disk.get(key) != stamp]
        with connection:
            connection.executemany("DELETE FROM versions WHERE kind = ? AND name = ? AND number = ?", stale)
            marks = ", ".join("?" * (2 + len(COLUMNS)))
            connection.executemany(f"INSERT OR REPLACE INTO versions VALUES ({marks})", fresh)
        rows = connection.execute(everything).fetchall()
    return [row[2:] for row in rows if row[2 + COLUMNS.index("created")] is not None]


def _row(root: Path, kind: str, name: str, number: int) -> tuple[Any, ...] | None:
    """The values of COLUMNS; None where the disk refuses, so that the next list tries again.

    A malformed manifest, or one of another schema version, has only its key: it is not parsed again until it changes.
    """
    try:
        return summary_row(load_version(root, kind, name, number))
    except RegistryError as error:  # problems() names it
        refused = isinstance(error.__cause__, OSError)
        return None if refused else (kind, name, number, *[None] * (len(COLUMNS) - 3))
