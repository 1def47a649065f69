"""The SQLite index of a registry: a cache of its manifests that may be deleted at any time. No torch here."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.errors import RegistryError
from factory.registry.files import is_number, visible_names
from factory.registry.versions import COLUMNS, FOLDERS, MANIFEST, load_version, summary_row

Key = tuple[str, str, int]  # kind, name, number
Stamp = tuple[int, int]  # mtime in ns and bytes of a manifest.json: when it differs, the index reads the manifest again

INDEX_LAYOUT = 1  # raise it when Summary changes: older indexes are then rebuilt
# The index cannot be written right now, but is not damaged: busy, locked, read-only, I/O error, disk full, cannot open.
UNUSABLE = (5, 6, 8, 10, 13, 14)


def index_rows(root: Path) -> list[tuple[Any, ...]]:
    """``index_rows(Path("registry"))``: rows of COLUMNS, in step with the folders.

    A damaged index is rebuilt; where it cannot be written, it is made in memory.
    """
    on_disk = _scan(root)
    if not on_disk:
        return []
    path = root / "index.sqlite"
    for where in (str(path), str(path), ":memory:"):
        try:
            with contextlib.closing(sqlite3.connect(where, timeout=1.0)) as connection:
                return _in_step(connection, root, on_disk)
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
    """One stat for each version: new, changed, removed and half-made folders all show. Plain calls, for speed."""
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


def _in_step(connection: sqlite3.Connection, root: Path, on_disk: Mapping[Key, Stamp]) -> list[tuple[Any, ...]]:
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
        fresh = []
        for key in [key for key, stamp in on_disk.items() if known.get(key) != stamp]:
            with contextlib.suppress(RegistryError):  # unreadable: problems() names it
                fresh.append((*on_disk[key], *summary_row(load_version(root, *key))))
        stale = [key for key, stamp in known.items() if on_disk.get(key) != stamp]
        if fresh or stale:
            with connection:
                connection.executemany("DELETE FROM versions WHERE kind = ? AND name = ? AND number = ?", stale)
                marks = ", ".join("?" * (2 + len(COLUMNS)))
                connection.executemany(f"INSERT OR REPLACE INTO versions VALUES ({marks})", fresh)
            rows = connection.execute(everything).fetchall()
    return [row[2:] for row in rows]
