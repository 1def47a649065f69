"""Where a registry keeps versions: ``students/<name>/<number>/`` and ``bases/<name>/<number>/``. Reads no file.

numbers(root, "student", "healthcare-small")   # [1, 2, 3]
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISDIR, S_ISREG

FOLDERS: dict[str, str] = {"student": "students", "base": "bases"}
MANIFEST = "manifest.json"


def names(root: Path, kind: str) -> list[str]:
    """``names(root, "student")``: every folder of that kind, sorted."""
    return sorted(visible_names(root / FOLDERS[kind]))


def numbers(root: Path, kind: str, name: str) -> list[int]:
    """``numbers(root, "student", "healthcare-small")`` → [1, 2, 3], complete or not."""
    return sorted(int(number) for number in visible_names(root / FOLDERS[kind] / name) if is_number(number))


def kind_of(root: Path, name: str) -> str | None:
    """``kind_of(root, "healthcare-small")`` → "student", "base" or None. None also for paths: ``../`` is never joined."""
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        return None
    return next((kind for kind in FOLDERS if numbers(root, kind, name)), None)


def is_number(text: str) -> bool:
    """``is_number("3")``: a version's folder; not ``03``, ``+3`` or ``.last``."""
    return text.isascii() and text.isdecimal() and text[0] != "0" and len(text) < 10


def visible_names(folder: Path | str) -> list[str]:
    """``visible_names(root / "students")``: what is in it and not hidden; nothing where there is no such folder."""
    try:
        return [name for name in os.listdir(folder) if name[0] != "."]
    except OSError:
        return []


def tree(folder: Path | str) -> dict[str, os.stat_result]:
    """``tree(version.folder)["README.md"].st_size``: all that is in a folder, and itself as ``""``; a link is a link.

    Raises: OSError for a folder that is missing or cannot be read.
    """
    found, folders = {"": os.lstat(folder)}, [""]
    for inside in folders if S_ISDIR(found[""].st_mode) else []:
        with os.scandir(f"{folder}/{inside}") as entries:
            for entry in entries:
                path = f"{inside}/{entry.name}" if inside else entry.name
                found[path] = entry.stat(follow_symlinks=False)
                if S_ISDIR(found[path].st_mode):
                    folders.append(path)
    return found


def links(found: Mapping[str, os.stat_result]) -> list[str]:
    """``links(tree(version.folder))``: one line for each entry that is neither a file of its own nor a folder."""
    kinds = {path: state.st_mode for path, state in found.items()}
    return [
        f"{shown(path) or 'its folder'} is a link or a device; a version has files of its own only, copy the file instead"
        for path, mode in kinds.items()
        if not (S_ISREG(mode) or S_ISDIR(mode))
    ]


def shown(path: str) -> str:
    """``shown(path)``: a name that a terminal can print, even if it is not UTF-8."""
    return path.encode(errors="backslashreplace").decode()
