"""Files that survive a crash, a full disk and a second writer."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.errors import RegistryError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def seal(staged: Path, *, but: str) -> dict[str, dict[str, Any]]:
    """``seal(folder, but="manifest.json")``: makes every other file read-only and durable; {path: {"sha256", "bytes"}}.

    Raises: RegistryError for a folder that is absent or empty, or has links.
    """
    sealed = {}
    if not staged.is_dir():
        raise RegistryError(f"cannot publish {staged}: no such folder")
    for path in sorted(staged.rglob("*")):
        inside = path.relative_to(staged).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RegistryError(f"cannot publish {inside}: no links in a version, copy the file instead")
        if path.is_dir():
            path.chmod(0o755)
            sync(path)
        elif inside != but:
            path.chmod(0o444)
            sync(path)
            sealed[inside] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    if not sealed:
        raise RegistryError(f"cannot publish {staged.name}: the folder is empty")
    staged.chmod(0o755)  # mkdtemp's is 0o700
    return sealed


def is_number(text: str) -> bool:
    """Whether a folder of that name is a version: ``3``, not ``03``, ``+3`` or ``.last``."""
    return text.isascii() and text.isdecimal() and text[0] != "0" and len(text) < 10


def visible_names(folder: Path | str) -> list[str]:
    """ModelResolver in it that are not hidden; none where there is no such folder."""
    try:
        return [name for name in os.listdir(folder) if name[0] != "."]
    except OSError:
        return []


def sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_read_only(path: Path, content: bytes) -> None:
    """Durable when it returns."""
    path.unlink(missing_ok=True)  # a read-only one of an earlier try
    path.write_bytes(content)
    path.chmod(0o444)
    sync(path)


def replace_file(path: Path, content: bytes) -> None:
    """Readers see the old content or the new, never half of it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's is 0o600
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk when it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def full_disk(doing: str, where: Path | str) -> RegistryError:
    """``raise full_disk("cannot write healthcare-small", folder)``."""
    return RegistryError(f"{doing}: no space left on the disk that holds {where}; free some, then run it again")


@contextlib.contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Turn what the disk refuses into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk(doing, error.filename or "the registry") from error
        raise RegistryError(f"{doing}: {error.strerror or error} ({error.filename or 'registry'})") from error
