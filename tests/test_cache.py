from __future__ import annotations

from pathlib import Path

import pytest

from factory.cache import atomic_file, home


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    assert home() == tmp_path / "home"
    monkeypatch.delenv("FACTORY_HOME")
    assert home() == Path("~/.cache/student-factory").expanduser().resolve()


def test_a_file_is_replaced_only_if_it_was_written_completely(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with atomic_file(target) as new:
        new.write_text("first")
        assert not target.exists()
    with pytest.raises(ValueError, match="stopped"), atomic_file(target) as new:
        new.write_text("half")
        raise ValueError("stopped")
    assert target.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert target.stat().st_mode & 0o777 == 0o644
