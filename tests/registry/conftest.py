from __future__ import annotations

from pathlib import Path

import pytest
from support.manifests import BASE, publish

from factory.registry.registry import Registry


@pytest.fixture
def empty(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def registry(empty: Registry) -> Registry:
    """With the base that students stand on."""
    publish(empty, BASE, "base")
    return empty
