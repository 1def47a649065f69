"""YAML and Python in the documentation are what the factory reads and what can be imported."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from support.markdown import ROOT, Block, blocks, name_of, pages

import factory
from factory.config.experiment import ExperimentSpec
from factory.config.schema import DomainSpec, FamilySpec, Source, Strict
from factory.data.sources import load_examples
from factory.evaluation.bias import load_pairs
from factory.evaluation.golden_set import Question

DOMAINS = ROOT / "domains"


def in_blocks(*languages: str) -> Any:
    found = [block for page in pages() for block in blocks(page, *languages)]
    return pytest.mark.parametrize("block", found, ids=lambda block: f"{name_of(block.page)}:{block.text[:30].strip()!r}")


@in_blocks("yaml")
def test_yaml_is_valid(block: Block, tmp_path: Path) -> None:
    first, content = block.text.partition("\n")[0], yaml.safe_load(block.text)
    if first.startswith("#") and first.endswith(".bias_pairs.yaml"):
        (tmp_path / "shown.yaml").write_text(block.text, encoding="utf-8")
        assert load_pairs(["shown.yaml"], tmp_path)
    elif first == "# keys.yaml":
        from factory.serve.auth import Keys

        (tmp_path / "keys.yaml").write_text(block.text, encoding="utf-8")
        assert Keys.load(tmp_path / "keys.yaml").callers
    elif first == "# methods.yaml":
        ExperimentSpec.model_validate(content)
    elif isinstance(content, list):
        TypeAdapter(list[Source]).validate_python(content)
    else:
        refusals: list[ValidationError] = []
        for spec, whole in _wholes(content):
            try:
                spec.model_validate(whole | content)
                return
            except ValidationError as error:
                refusals.append(error)
        raise refusals[0] if refusals else AssertionError(f"no kind of file has all of these keys: {', '.join(content)}")


def _wholes(content: dict[str, Any]) -> Iterator[tuple[type[Strict], dict[str, Any]]]:
    """The kinds of file that have all of these keys, each with a file of it for what the example leaves out."""
    shipped = {DomainSpec: DOMAINS / "healthcare.yaml", FamilySpec: DOMAINS / "default.family.yaml"}
    for spec, path in shipped.items():
        if set(content) <= set(spec.model_fields):
            complete = all(name in content for name, field in spec.model_fields.items() if field.is_required())
            yield spec, {} if complete else yaml.safe_load(path.read_text(encoding="utf-8"))


@in_blocks("jsonl")
def test_lines_of_a_golden_set_are_valid(block: Block) -> None:
    for line in block.text.splitlines():
        Question.model_validate(json.loads(line))


@in_blocks("python")
def test_python_compiles_and_imports_names_that_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "factory":
            exists = _exists_in(node.module)
            assert not [alias.name for alias in node.names if not exists(alias.name)]


def _exists_in(module: str) -> Callable[[str], bool]:
    if module == "factory":
        return set(factory.__all__).__contains__
    found = importlib.import_module(module)
    return lambda name: hasattr(found, name)


def test_the_domain_behind_the_figures_loads_is_small_and_has_prompts() -> None:
    text = (ROOT / "scripts" / "veterinary.yaml").read_text(encoding="utf-8")
    domain = DomainSpec.model_validate(yaml.safe_load(text))
    assert len(text.splitlines()) < 40
    assert len(load_examples(domain.sources, root=ROOT, seed=0, count_tokens=len)) == 12 * 24


def test_the_application_that_is_shown_is_the_one_that_ships() -> None:
    application = (ROOT / "scripts" / "application.py").read_text(encoding="utf-8")
    assert application in [block.text for block in blocks(ROOT / "docs" / "serving.md", "python")]
