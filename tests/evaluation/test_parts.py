"""Parts of an evaluation: measured once, read again, and measured anew where their file cannot be read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from factory.errors import StorageError
from factory.evaluation.parts import Part, kept_part
from factory.registry.manifest import MetricValue

FOUND = Part(
    metrics={"kl": MetricValue(0.4, 0.3, math.nan, 12, 3)}, warnings=("few examples",), passed={"student": (True, False)}
)


def counted(calls: list[str]) -> Part:
    calls.append("measured")
    return FOUND


def test_a_part_is_measured_once_and_read_again_as_it_was(tmp_path: Path) -> None:
    calls: list[str] = []
    first, again = (kept_part(tmp_path / "evaluation", "bias", lambda: counted(calls), print) for _ in range(2))
    assert calls == ["measured"] and first == FOUND
    assert again.warnings == FOUND.warnings and again.passed == FOUND.passed
    assert str(again.metrics) == str(FOUND.metrics)  # as text: NaN is not equal to itself


def test_parts_have_files_of_their_own(tmp_path: Path) -> None:
    calls: list[str] = []
    for name in ("bias", "tasks"):
        kept_part(tmp_path, name, lambda: counted(calls), print)
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", '{"metrics": {"kl": {"value": 1}}}', '{"of an older version": 1}'])
def test_a_file_that_cannot_be_read_is_measured_again(tmp_path: Path, content: str) -> None:
    calls: list[str] = []
    (tmp_path / "bias.json").write_text(content)
    assert kept_part(tmp_path, "bias", lambda: counted(calls), print) == FOUND
    assert kept_part(tmp_path, "bias", lambda: counted(calls), print).warnings == FOUND.warnings
    assert calls == ["measured"]


def test_what_fails_leaves_no_file_and_a_folder_that_refuses_is_one_line(tmp_path: Path) -> None:
    def broken() -> Part:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        kept_part(tmp_path, "bias", broken, print)
    assert not (tmp_path / "bias.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot keep what was measured in"):
        kept_part(tmp_path / "file" / "folder", "bias", lambda: FOUND, print)
