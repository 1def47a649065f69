"""``factory key``: a key, and the line for the file of keys that it is admitted by; and the first line of ``factory serve``."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import manifests
from typer.testing import CliRunner

from factory.cli import app
from factory.cli.serving import _announcement
from factory.registry.registry import Registry
from factory.serve.auth import Keys
from factory.serve.limits import APIError


@pytest.mark.parametrize("models", [[], ["healthcare-medium", "teacher"]])
def test_a_key_is_admitted_by_its_line_and_by_no_other(models: list[str], tmp_path: Path) -> None:
    printed = [CliRunner().invoke(app, ["key", *models]).stdout.splitlines() for _ in range(2)]
    for number, lines in enumerate(printed):
        key, entry = (line.partition(": ")[2] for line in lines)
        assert key not in entry
        path = tmp_path / f"keys{number}.yaml"
        path.write_text(f"{entry}\n")
        caller = Keys.load(path).caller(f"Bearer {key}", date(2027, 1, 31))
        assert caller.models == frozenset(models or ["*"])
        with pytest.raises(APIError, match="unknown API key"):
            Keys.load(path).caller(f"Bearer {printed[1 - number][0].partition(': ')[2]}", date(2027, 1, 31))


def family(*cascade: str) -> Any:
    return SimpleNamespace(serve=SimpleNamespace(cascade=cascade), models={})


def test_the_first_line_names_students_cascades_teacher_and_auto(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for name in ("healthcare-tiny", "healthcare-small", "legal-medium"):
        manifests.publish(registry, name)
    told = _announcement(registry, family("tiny", "small", "teacher"), "http://127.0.0.1:8000")
    students = "healthcare-small, healthcare-tiny, legal-medium"
    assert told.startswith(f"serving {students}, healthcare, teacher, auto at http://127.0.0.1:8000/v1")
    assert _announcement(registry, family(), "http://a").startswith(f"serving {students}, teacher, auto at http://a/v1")
