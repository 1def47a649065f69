from __future__ import annotations

from pathlib import Path

import pytest

from factory.cache import home


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    assert home() == tmp_path / "home"
    monkeypatch.delenv("FACTORY_HOME")
    assert home() == Path("~/.cache/student-factory").expanduser().resolve()
