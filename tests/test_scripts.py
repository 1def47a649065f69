"""The scripts run as the commands that they are; their benchmarks measure something on a tiny factory."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.workplace import Workplace

SCRIPTS = Path(__file__).parents[1] / "scripts"
EVERY = sorted([*SCRIPTS.glob("*.py"), *SCRIPTS.glob("bench/*.py")])
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("bench/seconds.py", "plants-mini")``: in this process; what it prints."""

    def run_script(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out

    return run_script


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_help_explains_the_script(path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(str(path.relative_to(SCRIPTS)), "--help")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def saved(path: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return results


def test_planted_identifiers_are_found(built: Workplace, run: Run, tmp_path: Path) -> None:
    folders = ["--domains", built.domains, "--registry", built.root / "registry"]
    run("bench/planted.py", "plants", "--size", "mini", "--only", "identifiers", *folders, "--save", tmp_path / "saved.json")
    (line,) = saved(tmp_path / "saved.json")
    assert line["found"] and line["control_clean"]
    assert (line["with_it"], line["without_it"]) == ("email 1, phone 1", "none")


def test_a_busy_neighbour_is_measured_by_training_and_by_writing(run: Run) -> None:
    measured = json.loads(run("bench/busy.py", "--one", "--layers", 1, "--steps", 1))
    assert set(measured) == {"training step", "new tokens"} and min(measured.values()) > 0


def test_seconds_show_a_shared_base_once(built: Workplace, run: Run) -> None:
    table = run("bench/seconds.py", "plants-mini@1", "plants-mini@1", "--registry", built.root / "registry")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| default-mini-base@1", "| plants-mini@1"]
