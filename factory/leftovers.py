"""Temporary files and folders that no other process takes for a dead one's, and the removal of those that are.

    with temporary_folder(root / ".staging", "healthcare-small-") as folder:
        ...                                  # held as long as this process lives and is in here
    clear((root / ".staging").iterdir())     # what processes that were killed have left

Who writes holds a lock of the system (flock), which ends with its process, however that ends. A disk without such locks keeps
what is left on it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """``with temporary_folder(parent, ".rows-") as folder:`` an empty folder, which the caller removes or renames."""
    with _held(lambda: tempfile.mkdtemp(prefix=prefix, dir=parent)) as folder:
        yield folder


@contextmanager
def temporary_file(parent: Path, prefix: str) -> Iterator[Path]:
    """``with temporary_file(parent, ".rows.json-") as path:`` an empty file, which the caller removes or renames."""

    def make() -> str:
        handle, name = tempfile.mkstemp(prefix=prefix, dir=parent)
        os.close(handle)
        return name

    with _held(make) as path:
        yield path


def clear(paths: Iterable[Path]) -> None:
    """``clear(folder.glob(".rows.json-????????"))``: removes those files and folders that no living process holds."""
    for path in paths:
        with suppress(OSError):  # it is held, or gone, or a link
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(handle)


def is_held(path: Path) -> bool:
    """``is_held(path)``: whether a living process writes it, or holds it as its lock; also where that cannot be told."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


@contextmanager
def _held(make: Callable[[], str]) -> Iterator[Path]:
    """Makes another one where a ``clear`` was quicker than the lock."""
    handle = None
    while handle is None:
        path = Path(make())
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            with suppress(OSError):  # a disk without such locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not path.exists():
                os.close(handle)
                handle = None
    try:
        yield path
    finally:
        os.close(handle)
