"""A folder of a small family, a domain and a pool, and the mistakes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from factory.config.load import load_specs
from factory.config.schema import Specs
from factory.errors import SpecError

SOURCE: dict[str, Any] = {"id": "prompts", "kind": "templates", "license": "CC0-1.0", "templates": ["what is light"]}
FAMILY: dict[str, Any] = {
    "name": "small",
    "teacher": {"model": "path:./teacher", "license": "apache-2.0"},
    "encoder": {"model": "path:./encoder", "license": "apache-2.0"},
    "sizes": {"mini": {"layers": 2}},
    "default_size": "mini",
    "general": "general",
    "data": {"max_examples": 500},
    "heal": {"steps": 10, "learning_rate": 1e-3},
    "distill": {"steps": 20, "learning_rate": 2e-3, "beta": 0.5},
    "profiles": {"demo": {"distill": {"steps": 3}, "data": {"max_examples": 50}}},
}
DOMAIN: dict[str, Any] = {"name": "law", "description": "questions on law", "sources": [SOURCE]}
POOL: dict[str, Any] = {"name": "general", "sources": [SOURCE]}


def family(**over: Any) -> dict[str, Any]:
    return FAMILY | over


def domain(**over: Any) -> dict[str, Any]:
    return DOMAIN | over


def load(folder: Path, **files: Any) -> Specs:
    """``load(tmp_path, law=domain())``: a family, a domain and a pool, with these files instead or beside them."""
    whole = {"small.family": FAMILY, "law": DOMAIN, "general.pool": POOL} | {k.replace("_", "."): v for k, v in files.items()}
    for name, content in whole.items():
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_specs(folder)


def mistakes(folder: Path, **files: Any) -> list[str]:
    with pytest.raises(SpecError) as raised:
        load(folder, **files)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


def said(folder: Path, mistake: str) -> str:
    """The mistake without its line number, after a look that the line is the one that it is about."""
    file, number, field, message = mistake.split(":", 3)
    line = (folder / file).read_text().splitlines()[int(number) - 1]
    named = [part for part in field.strip().split(".") if not part.isdigit()]
    assert any(f"{part}:" in line for part in named) or line.startswith("- id:"), (mistake, line)
    return f"{file}:{field}:{message}"
