"""Files of a version: read-only, durable, with their checksums."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from factory.cache import sha256, sync
from factory.errors import RegistryError


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



def write_read_only(path: Path, content: bytes) -> None:
    """Durable when it returns."""
    path.unlink(missing_ok=True)  # a read-only one of an earlier try
    path.write_bytes(content)
    path.chmod(0o444)
    sync(path)



