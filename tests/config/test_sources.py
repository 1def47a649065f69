"""Templates and their slots: what can be filled, and what is refused in its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.specs import SOURCE, domain, load, mistakes

from factory.config.sources import FileSource


def templates(*templates: str, **slots: list[str]) -> dict[str, Any]:
    return domain(sources=[SOURCE | {"templates": list(templates), "slots": slots}])


@pytest.mark.parametrize("template", ["is { x } red", "is {{x}} red", "is {x red", "is x} red", "is {} red", "is {x.y} red"])
def test_braces_that_are_no_slot_are_refused(tmp_path: Path, template: str) -> None:
    [mistake] = mistakes(tmp_path, law=templates("is {x} red", template, x=["ivy"]))
    said = "a slot is a word in single braces without spaces, such as {illness}; put any other brace into a value of a slot"
    assert mistake == f"law.yaml:9: sources.0.templates.1: {said} (found {template!r})"


def test_braces_in_the_value_of_a_slot_are_text(tmp_path: Path) -> None:
    assert load(tmp_path, law=templates("what does {code} mean?", code=["{ a: 1 }"])).domain("law")


@pytest.mark.parametrize("blank", ["", " \t\n"])
def test_blank_templates_and_values_are_refused(tmp_path: Path, blank: str) -> None:
    [mistake] = mistakes(tmp_path, law=templates("is {x} red", blank, x=["ivy"]))
    assert mistake == f"law.yaml:9: sources.0.templates.1: must not be blank (found {blank!r})"
    [mistake] = mistakes(tmp_path, law=templates("is {x} red", x=["ivy", blank]))
    assert mistake == f"law.yaml:12: sources.0.slots.x.1: must not be blank (found {blank!r})"


@pytest.mark.parametrize("key", ["prompt", "completion", "system"])
def test_a_template_of_columns_with_a_mistake_is_refused_in_its_line(tmp_path: Path, key: str) -> None:
    (tmp_path / "rows.jsonl").touch()
    rows = {"id": "rows", "kind": "file", "license": "MIT", "path": "rows.jsonl"}
    [mistake] = mistakes(tmp_path, law=domain(sources=[rows | {key: "{instruction\n{input}"}]))
    assert mistake.startswith(
        f"law.yaml:8: sources.0.{key}: a column stands in single braces, {{question}}, and a brace that is"
    )
    assert load(tmp_path, law=domain(sources=[rows | {key: "{instruction}\n{input}"}])).domain("law")


def test_a_source_without_system_prompts_is_dumped_as_before_there_were_any() -> None:
    rows = {"id": "rows", "kind": "file", "license": "MIT", "path": "rows.jsonl"}
    assert "system" not in FileSource.model_validate(rows).model_dump()
    assert FileSource.model_validate(rows | {"system": "persona"}).model_dump()["system"] == "persona"
