"""Why examples are dropped, in words."""

from __future__ import annotations

import ast
from pathlib import Path

import factory
from factory.data.drops import REASONS, SETTINGS, describe_dropped


def test_most_come_first_with_the_setting_that_decides_it() -> None:
    said = "12 answers cut off (data.max_completion_tokens), 1 repeated prompts"
    assert describe_dropped({"duplicate": 1, "cut_off": 12}) == said
    assert describe_dropped({}) == "nothing"
    assert describe_dropped({"of_another_version": 2}) == "2 of_another_version"


def test_every_reason_that_the_code_counts_has_words() -> None:
    counted = {
        node.slice.value
        for path in Path(factory.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
        if isinstance(node.value, ast.Name) and node.value.id == "dropped"
    }
    assert len(counted) > 4 and counted <= set(REASONS)
    assert set(SETTINGS) <= set(REASONS)
