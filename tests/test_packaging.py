"""The package declares what it imports, and a wheel of it holds the files that it reads."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def imported_by(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_every_third_party_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *extras["files"], *extras["serve"]]
    declared = {canonicalize_name(Requirement(one).name) for one in requirements}
    imported = set().union(*(imported_by(path) for path in (ROOT / "factory").rglob("*.py")))
    third_party = imported - sys.stdlib_module_names - {"factory"}
    owners = packages_distributions()
    undeclared = {name for name in third_party if not declared & {canonicalize_name(one) for one in owners.get(name, [name])}}
    assert not undeclared, f"declare in pyproject.toml: {', '.join(sorted(undeclared))}"


def test_every_data_file_of_the_package_is_in_the_wheel() -> None:
    package = ROOT / "factory"
    declared = PYPROJECT["tool"]["setuptools"]["package-data"]["factory"]
    shipped = {path for pattern in declared for path in package.glob(pattern)}
    folders = [package, package / "shipped", package / "shipped" / "evals"]  # rglob does not follow the link
    present = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    missing = {path for path in present if path.suffix not in (".py", ".pyc")} - shipped
    assert not missing, f"add to package-data: {sorted(str(path.relative_to(package)) for path in missing)}"
