"""Where a version comes from: library versions, the git commit, the data. No torch."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from factory.cache import cache_key

if TYPE_CHECKING:
    from factory.registry.manifest import DatasetInfo, PersonalDataInfo

LIBRARIES = ("student-factory", "torch", "transformers", "trl", "peft", "datasets", "sentence-transformers")


def library_versions() -> dict[str, str]:
    """``library_versions()["torch"]`` → "2.13.0"; "not installed" where it is missing."""
    return {name: _installed(name) for name in LIBRARIES}


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """``git_commit()``: of the current folder, with ``+changes`` where files differ from it; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def merge_dataset_infos(infos: Sequence[DatasetInfo]) -> DatasetInfo:
    """``merge_dataset_infos([healthcare, legal])``: the data that a base was healed on, all domains together."""
    from factory.registry.manifest import DatasetInfo

    counts, dropped = Counter[str](), Counter[str]()
    for info in infos:
        counts.update(info.counts)
        dropped.update(info.dropped)
    return DatasetInfo(
        fingerprint=cache_key([info.fingerprint for info in infos]),
        counts=dict(counts),
        dropped=dict(dropped),
        refusals=sum(info.refusals for info in infos),
        sources=tuple(source for info in infos for source in info.sources),
        templates=sum(info.templates for info in infos),
        personal_data=_merge_personal_data([info.personal_data for info in infos if info.personal_data]),
    )


def _merge_personal_data(infos: Sequence[PersonalDataInfo]) -> PersonalDataInfo | None:
    """What was found in all sources, under the most permissive policy of any domain."""
    from factory.registry.manifest import PersonalDataInfo

    if not infos:
        return None
    policies = [info.policy for info in infos]
    policy = min(policies, key=("allow", "drop", "refuse").index)
    return PersonalDataInfo(policy=policy, found={source: kinds for info in infos for source, kinds in info.found.items()})
