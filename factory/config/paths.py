"""Paths to a user's data: a file, a folder, or a pattern for several; `~` is a home."""

from __future__ import annotations

import os
from glob import glob, has_magic
from os.path import isdir, lexists  # False for a name that no file can have
from pathlib import Path


def data_path(root: Path, given: str) -> Path:
    """``data_path(specs.root, "~/tickets/*.jsonl")``: a relative path starts at ``root``; it may be a pattern still."""
    return root / (os.path.expanduser(given) if given.startswith(("~/", "~\\")) or given == "~" else given)


def expand(path: Path) -> list[Path]:
    """``expand(Path("tickets/*.jsonl"))``: the files and folders that a pattern matches, sorted; any other path is itself.

    `*` and `?` match no hidden names, `**` any number of folders. What is there is no pattern, whatever is in its name.
    """
    if not _is_pattern(path):
        return [path]
    folder = folder_of(path)
    return sorted(folder / name for name in glob(str(path.relative_to(folder)), root_dir=folder, recursive=True))


def folder_of(path: Path) -> Path:
    """``folder_of(Path("tickets/*.jsonl")) == Path("tickets")``: a folder itself, else the nearest above it that is there."""
    return path if isdir(path) else next(parent for parent in path.parents if isdir(parent))


def no_such(what: str, path: Path) -> str:
    """``no_such("file", Path("tickets/*.jsonl")) == "no file matches tickets/*.jsonl"``"""
    return f"no {what}{' matches' if _is_pattern(path) else ''} {path}"


def _is_pattern(path: Path) -> bool:
    below = str(path.relative_to(folder_of(path)))
    return has_magic(below) and not lexists(path) and "\0" not in below
