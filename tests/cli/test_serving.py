"""``factory key``: a key, and the line for the file of keys that it is admitted by."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory.cli import app
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
