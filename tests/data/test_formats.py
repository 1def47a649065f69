"""Readers of row files; tests/data/test_sources.py reads the same rows in every format."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.data.formats import beside, read_csv, read_jsonl


def test_blank_lines_and_a_byte_order_mark_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8-sig")
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [{"a": 1}, {"a": 2}]


def test_mistakes_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(ValueError, match=r"line 2 is not valid JSON \(.* at column"):
        list(read_jsonl(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.csv").write_text("a\n1\n2,3\n")
    with pytest.raises(ValueError, match="line 3 has more fields than the header"):
        list(read_csv(tmp_path / "rows.csv"))


def test_beside_a_missing_path_lists_what_the_nearest_folder_contains(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    assert beside(tmp_path / "gone" / "deeper.csv") == f"in {tmp_path}: there.csv"
