"""What keeps the factory small: quick commands, few imports, one place that reads the environment, short functions."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import factory

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "factory").rglob("*.py"))
HEAVY = {"torch", "transformers", "datasets", "numpy", "sklearn", "sentence_transformers", "peft", "trl"}
PROGRAM = """
import sys
sys.argv = ["factory", *{arguments!r}]
from factory.cli.commands import app
try:
    app()
except SystemExit as stop:
    assert not stop.code, stop.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


def loaded_by(*arguments: str, folder: Path) -> set[str]:
    """Top-level names of every module that a command loads, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(arguments=arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["list", "--json"], ["validate", "--domains", str(ROOT / "domains")]]
)
def test_quick_commands_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert not loaded_by(*arguments, folder=tmp_path) & HEAVY


def test_help_does_not_wait_for_pydantic(tmp_path: Path) -> None:
    assert "pydantic" not in loaded_by("--help", folder=tmp_path)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import factory, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & (HEAVY | {"pydantic", "yaml", "typer", "rich"})


def test_every_public_name_exists() -> None:
    assert sorted(factory.__all__) == list(factory.__all__)
    assert all(getattr(factory, name) is not None for name in factory.__all__)
    assert dir(factory) == factory.__all__


def test_every_error_is_a_factory_error() -> None:
    errors = [getattr(factory, name) for name in factory.__all__ if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, factory.FactoryError) for error in errors)


def test_an_unknown_public_name_lists_those_that_exist() -> None:
    with pytest.raises(AttributeError, match="it has: ParityReport"):
        factory.Factroy  # noqa: B018


def test_one_place_reads_factory_home() -> None:
    readers = [path.name for path in MODULES if "environ" in (text := path.read_text()) and '"FACTORY_HOME"' in text]
    assert readers == ["cache.py"]


def test_no_code_of_a_model_is_ever_trusted() -> None:
    assert not [path for path in MODULES if "trust_remote_code=True" in path.read_text(encoding="utf-8")]


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long
