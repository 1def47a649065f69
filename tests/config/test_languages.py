"""Languages that a family file states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import specs

from factory.config.schema import FamilySpec
from factory.pipeline.context import make_context
from factory.pipeline.dataset import router_key
from factory.registry.registry import Registry


def stated(model: str, languages: Any) -> dict[str, Any]:
    return specs.family(**{model: specs.FAMILY[model] | {"languages": languages}})


def test_a_family_knows_what_its_models_state() -> None:
    assert FamilySpec.model_validate(specs.FAMILY).languages == {}
    assert FamilySpec.model_validate(stated("teacher", ["en", "de"])).languages == {"teacher": ("en", "de")}
    api = specs.family(teacher={"api": "https://example.org/v1", "model": "m", "license": "none", "languages": ["fr"]})
    assert FamilySpec.model_validate(api).languages == {"teacher": ("fr",)}


@pytest.mark.parametrize("model", ["teacher", "encoder"])
@pytest.mark.parametrize("code", ["english", "EN", "eng", "zxx"])
def test_what_is_no_code_is_a_mistake_with_its_line(model: str, code: str, tmp_path: Path) -> None:
    [mistake] = specs.mistakes(tmp_path, small_family=stated(model, ["en", code]))
    assert f"languages.1: '{code}' is no code of a language that can be told; write the two letters" in mistake


def test_stating_languages_makes_nothing_again(tmp_path: Path) -> None:
    keys = []
    for name, family in (("before", specs.FAMILY), ("after", stated("encoder", ["en"]))):
        folder = tmp_path / name
        folder.mkdir()
        found = specs.load(folder, small_family=family)
        keys.append(router_key(make_context(found, found.family("small"), registry=Registry(tmp_path / "registry"))))
    assert keys[0] == keys[1]
