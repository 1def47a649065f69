"""A whole tiny factory on disk: a random teacher, two domains, a general pool. Nothing here needs a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.workplace import Refused, Result, Workplace, tiny_models


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """Specs only: its models' folders are not there."""
    place = Workplace(tmp_path)
    place.domains.mkdir()
    place.write_all()
    return place


@pytest.fixture
def with_models(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """Everything that a build needs."""
    tiny_models(workplace, monkeypatch)
    return workplace


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A workplace where ``plants-mini`` and its base are published, made once for a whole file."""
    place = Workplace(tmp_path_factory.mktemp("built"))
    place.domains.mkdir()
    place.write_all()
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny_models(place, monkeypatch)
        result = place.run("build", "plants", "--baselines")
        assert result.exit_code == 0, (result.output, result.exception)
        yield place


@pytest.fixture
def refused() -> Refused:
    """``line = refused(result)``: it failed with exit code 1 and one line of stderr, which is given; no traceback."""

    def check(result: Result) -> str:
        assert result.exit_code == 1, (result.output, result.exception)
        assert isinstance(result.exception, SystemExit), result.exception
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        assert "Traceback" not in result.output
        return lines[0]

    return check
