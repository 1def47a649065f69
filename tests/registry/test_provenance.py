"""Keys that change with what decides a result, versions, the commit, and what a base was healed on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.manifests import COMMON

from factory.cache import cache_key
from factory.registry.manifest import DatasetInfo
from factory.registry.provenance import LIBRARIES, git_commit, library_versions, merge_dataset_infos


def test_a_digest_is_the_same_for_the_same_parts_in_any_order_of_keys() -> None:
    assert cache_key({"a": 1, "b": [2, 3]}, 0) == cache_key({"b": (2, 3), "a": 1}, 0)
    assert len(cache_key("x")) == 16 and int(cache_key("x"), 16) >= 0
    assert cache_key({"a": 1}, 0) == "f386eb488c24fef9"  # a cache of yesterday is found today


@pytest.mark.parametrize(
    "other", [({"a": 2}, 0), ({"a": 1}, 1), ({"a": "1"}, 0), ({"a": 1},), (0, {"a": 1}), ({"a": 1}, 0, None)]
)
def test_a_digest_changes_with_any_part(other: tuple[object, ...]) -> None:
    assert cache_key(*other) != cache_key({"a": 1}, 0)


def test_parts_are_not_glued_together() -> None:
    assert cache_key("ab", "c") != cache_key("a", "bc") != cache_key("abc")


def test_every_library_has_a_version_or_says_that_it_is_not_there() -> None:
    versions = library_versions()
    assert set(versions) == set(LIBRARIES) and versions["torch"][0].isdigit()


def git(folder: Path, *arguments: str) -> str:
    named = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(named, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_the_folder_s_and_uncommitted_changes_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    git(tmp_path, "init", "-q")
    assert git_commit() is None  # no commit yet
    (tmp_path / "a.txt").write_text("1")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first", "--no-gpg-sign")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked.txt").write_text("1")
    assert git_commit() == commit
    (tmp_path / "a.txt").write_text("2")
    assert git_commit() == f"{commit}+changes"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_personal_data_of_all_sources_are_kept_under_the_most_permissive_policy() -> None:
    infos = [
        DatasetInfo.model_validate(COMMON["dataset"] | {"personal_data": {"policy": policy, "found": found}})
        for policy, found in (("drop", {"notes": {"email": 2}}), ("allow", {"letters": {"phone": 1}}))
    ]
    merged = merge_dataset_infos(infos).personal_data
    assert merged is not None
    assert (merged.policy, merged.found) == ("allow", {"notes": {"email": 2}, "letters": {"phone": 1}})


def test_merged_data_sets_add_up() -> None:
    own = {"license": "mit", "n": 5}
    first = DatasetInfo(
        fingerprint="f1", counts={"train": 10, "test": 2}, dropped={"empty": 1}, refusals=1, sources=[{"id": "a", **own}]
    )
    second = DatasetInfo(
        fingerprint="f2", counts={"train": 5}, dropped={"empty": 2, "long": 3}, refusals=0, sources=[{"id": "b", **own}]
    )
    merged = merge_dataset_infos([first, second])
    assert merged.counts == {"train": 15, "test": 2} and merged.dropped == {"empty": 3, "long": 3}
    assert merged.refusals == 1 and [source.id for source in merged.sources] == ["a", "b"]
    assert merged.fingerprint == cache_key(["f1", "f2"]) != merge_dataset_infos([second, first]).fingerprint
    assert first.counts == {"train": 10, "test": 2}
