"""What keeps the code small: quick commands, few imports, one place that reads the environment, short functions."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import factory
from factory import errors

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "factory").rglob("*.py"))
HEAVY = {"torch", "transformers", "datasets", "numpy", "scipy", "sklearn", "sentence_transformers", "peft", "trl"}
PROGRAM = """
import sys
sys.argv = ["factory", *{arguments!r}]
from factory.cli import app
try:
    app()
except SystemExit as stop:
    assert not stop.code, stop.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""


def loaded_by(program: str, folder: Path = ROOT) -> set[str]:
    """Top-level names of every module that a program has loaded; it prints them as its last line on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=environment, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


# ------------------------------------------------------------------------------------------------------------ quick imports


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["list", "--json"], ["validate", "--domains", str(ROOT / "domains")]]
)
def test_quick_commands_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert not loaded_by(PROGRAM.format(arguments=arguments), tmp_path) & HEAVY


def test_help_does_not_wait_for_pydantic(tmp_path: Path) -> None:
    assert "pydantic" not in loaded_by(PROGRAM.format(arguments=["--help"]), tmp_path)


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    loaded = loaded_by("import factory, sys; print(*sys.modules, file=sys.stderr)")
    assert not loaded & (HEAVY | {"pydantic", "yaml", "typer", "rich"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "a count", "a policy"],
)
def test_threads_give_way_to_other_processes_unless_the_user_decides(given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import factory, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    run = subprocess.run([sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected


# --------------------------------------------------------------------------------------------------------------- public API


@pytest.mark.parametrize("name", factory.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(factory, name).__name__ == name


def test_the_public_names_are_those_of_the_stub_and_every_error() -> None:
    stub = (ROOT / "factory" / "__init__.pyi").read_text(encoding="utf-8")
    assert factory.__all__ == sorted(re.findall(r"import (\w+) as \1\n", stub))
    every_error = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}
    assert every_error <= set(factory.__all__)


def test_the_snippet_of_the_readme_is_the_docstring_s_and_uses_public_names_only() -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert textwrap.indent(snippet, "    ") in (factory.__doc__ or "")
    [imported] = re.findall(r"from factory import (.*)", snippet)
    assert set(imported.split(", ")) <= set(factory.__all__)


# --------------------------------------------------------------------------------------------------------------------- code


def test_one_place_reads_factory_home() -> None:
    readers = [path.name for path in MODULES if "environ" in (text := path.read_text()) and '"FACTORY_HOME"' in text]
    assert readers == ["cache.py"]


def loads(path: Path) -> list[str]:
    """Each call in a module that may read a model from a folder, as source text."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        callee = ast.unparse(call.func)
        encoder = callee in ("SentenceTransformer", "Transformer") and call.args
        if callee.endswith((".from_pretrained", ".from_config")) or encoder:
            found.append(ast.unparse(call))
    return found


def test_no_code_of_a_model_is_ever_trusted_and_no_pickle_is_loaded() -> None:
    calls = [call for path in MODULES for call in loads(path) if not call.startswith("PeftModel")]  # it has no such settings
    assert {call.partition("(")[0] for call in calls} >= {"AutoConfig.from_pretrained", "SentenceTransformer"}
    trusting = [call for call in calls if not re.search(r"trust_remote_code['\"]?[=:] ?False", call)]
    weights = [call for call in calls if not call.startswith(("AutoTokenizer", "AutoConfig")) and "from_config" not in call]
    unpickling = [call for call in weights if not re.search(r"use_safetensors['\"]?[=:] ?True", call)]
    assert not trusting and not unpickling


def test_adapters_are_loaded_in_one_place() -> None:
    """And once more by an export, which looks at what an application would load."""
    loading = re.compile(r"PeftModel\.from_pretrained\((?!Auto)|\.load_adapter\(")  # Auto: code that cards show
    places = [path.relative_to(ROOT / "factory").as_posix() for path in MODULES if loading.search(path.read_text())]
    assert places == ["export/export.py", "models/adapter.py"]


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {str(path): length for path, length in lengths.items() if length > 400}


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long
