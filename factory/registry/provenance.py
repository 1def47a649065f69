"""Where things come from: keys of what decides a result, library versions, the git commit. No torch."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Sequence
from typing import Any

from factory.cache import cache_key

LIBRARIES = ("student-factory", "torch", "transformers", "trl", "peft", "datasets", "sentence-transformers")


def library_versions() -> dict[str, str]:
    """Versions of what a build stands on."""
    return {name: _installed(name) for name in LIBRARIES}


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """The commit of the folder the command runs in, ``+changes`` where it has uncommitted ones; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def merged_datasets(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a base was healed on: counts, reasons and sources of several data sets together."""
    merged: dict[str, Any] = {
        "fingerprint": cache_key([manifest["fingerprint"] for manifest in manifests]),
        "counts": {},
        "dropped": {},
        "refusals": sum(manifest["refusals"] for manifest in manifests),
        "sources": [source for manifest in manifests for source in manifest["sources"]],
    }
    for name in ("counts", "dropped"):
        for manifest in manifests:
            for key, count in manifest[name].items():
                merged[name][key] = merged[name].get(key, 0) + count
    return merged
