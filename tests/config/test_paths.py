"""Paths to a user's data: patterns and `~` mean the same wherever one is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.config.paths import data_path, expand, folder_of, no_such


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data/*.jsonl", ["data/a.jsonl", "data/b.jsonl"]),
        ("data/[bc].*", ["data/b.jsonl", "data/c.csv"]),
        ("data/**/*.jsonl", ["data/a.jsonl", "data/b.jsonl", "data/deep/d.jsonl"]),
        ("*/?.csv", ["data/c.csv"]),
        ("data/*.xlsx", []),
        ("nowhere/*.jsonl", []),
        ("data/a.jsonl", ["data/a.jsonl"]),
        ("data/nothing.jsonl", ["data/nothing.jsonl"]),  # no pattern: whoever reads it says that it is missing
        ("data/\0*", ["data/\0*"]),
    ],
)
def test_a_pattern_is_what_it_matches_sorted_and_without_hidden_names(tmp_path: Path, pattern: str, names: list[str]) -> None:
    make(tmp_path, "data/b.jsonl", "data/a.jsonl", "data/c.csv", "data/.hidden.jsonl", "data/deep/d.jsonl")
    assert expand(data_path(tmp_path, pattern)) == [tmp_path / name for name in names]


def test_what_is_there_is_no_pattern_whatever_is_in_its_name(tmp_path: Path) -> None:
    make(tmp_path, "export [1]/a*.csv", "export [1]/ab.csv", "export 1/ac.csv")
    assert expand(tmp_path / "export [1]" / "a*.csv") == [tmp_path / "export [1]" / "a*.csv"]
    assert expand(tmp_path / "export [1]" / "*b.csv") == [tmp_path / "export [1]" / "ab.csv"]


def test_a_tilde_is_a_home_and_a_relative_path_starts_at_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert data_path(Path("domains"), "~/a.csv") == tmp_path / "me" / "a.csv"
    assert data_path(Path("domains"), "../a.csv") == Path("domains/../a.csv")
    assert data_path(Path("domains"), "~a.csv") == Path("domains/~a.csv")  # an old copy that an editor left
    assert data_path(Path("domains"), "/a.csv") == Path("/a.csv")


def test_names_of_what_a_pattern_matches_start_at_the_last_folder_that_is_there(tmp_path: Path) -> None:
    make(tmp_path, "data/deep/a.txt")
    assert folder_of(tmp_path / "data") == tmp_path / "data"
    assert folder_of(tmp_path / "data" / "**" / "*.txt") == tmp_path / "data"
    assert folder_of(tmp_path / "data" / "deep" / "a.txt") == tmp_path / "data" / "deep"


def test_a_pattern_without_a_match_is_not_called_a_missing_file(tmp_path: Path) -> None:
    assert no_such("file", tmp_path / "*.csv") == f"no file matches {tmp_path}/*.csv"
    assert no_such("file", tmp_path / "a.csv") == f"no file {tmp_path}/a.csv"
