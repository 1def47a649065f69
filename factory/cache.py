"""``FACTORY_HOME``: keys of what decides a result, and files and folders that appear whole or not at all.

folder = home() / "data" / f"legal-{cache_key(spec, settings, seed)}"
with atomic_folder(folder) as new:
    (new / "rows.json").write_text(...)
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.errors import FactoryError, StorageError
from factory.leftovers import clear, temporary_file, temporary_folder

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def home() -> Path:
    """``home() / "models"``: the cache folder. The only place that reads ``FACTORY_HOME``."""
    return Path(os.environ.get("FACTORY_HOME") or "~/.cache/student-factory").expanduser().resolve()


def cache_key(*parts: Any) -> str:
    """``cache_key(spec.model_dump(), seed)``: 16 hex digits that change with any part.

    Give it everything and exclude what does not decide the result: a forgotten field then repeats work, and never answers
    with a stale result.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """``sha256(path)``: of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """``sync(path)``: a file's bytes, or a folder's names, are on the disk when it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """``replace_file(path, b"...")``: readers see the old content or the new, never half of it."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """``with atomic_file(path) as new:`` write to ``new``; it becomes ``path`` unless something is raised.

    Here and in ``atomic_folder``, what processes that were killed meanwhile have left beside it is removed first.
    """
    clear(_temporaries(target))
    with temporary_file(target.parent, f".{target.name}-") as temporary:
        try:
            yield temporary
            sync(temporary)
            temporary.chmod(0o644)  # mkstemp's is 0o600
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """``with atomic_folder(folder) as new:`` write into ``new``; it becomes ``folder`` unless something is raised.

    A folder that is there already is replaced, and put back where the rename fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear(_temporaries(target))
    with temporary_folder(target.parent, f".{target.name}-") as temporary:
        try:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()  # 0o755, where the temporary folder itself is 0o700
            yield new
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        finally:
            remove_folder(temporary)


def _temporaries(target: Path) -> Iterator[Path]:
    return target.parent.glob(f".{glob.escape(target.name)}-????????")


def folder_bytes(folder: Path) -> int:
    """``folder_bytes(version.folder)``: what its files take; a file with two names (hard links) counts twice."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_folder(folder: Path) -> None:
    """``remove_folder(checkpoints)``: gone, also where it never was."""
    shutil.rmtree(folder, ignore_errors=True)


def full_disk(doing: str, where: Path | str, kind: type[FactoryError] = StorageError) -> FactoryError:
    """``raise full_disk("cannot write healthcare-small", folder)``."""
    return kind(f"{doing}: no space left on the disk that holds {where}; free some, then run the command again")


@contextlib.contextmanager
def storage_errors(doing: str, kind: type[FactoryError] = StorageError) -> Iterator[None]:
    """``with storage_errors(f"cannot write {path}"):`` what the disk refuses becomes one line.

    Raises: StorageError, or ``kind``, in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk(doing, error.filename or "it", kind) from error
        raise kind(f"{doing}: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}") from error
