from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.manifests import publish

from factory.errors import RegistryError
from factory.registry.registry import Registry

FAILED = {"status": "failed", "reasons": ["KL(teacher ‖ student), nats/token: 2.1 > 1"]}


@settings(max_examples=60)
@given(st.text(max_size=12) | st.from_regex(r"\A(\.\./|/|a/|[A-Z]|-|a--|)[a-z0-9-]*\Z"))
def test_a_name_is_a_plain_folder_name_or_an_error(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "registry"
        registry = Registry(root)
        try:
            version = publish(registry, name)
        except RegistryError as error:
            assert "bad name" in str(error)
            assert "\n" not in str(error)
            with pytest.raises(RegistryError):
                registry.resolve(name)
            assert registry.versions("student") == []
        else:
            assert version.folder == root / "students" / name / "1"
            assert re.fullmatch("[a-z][a-z0-9-]*", name)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", ".", "", "A", "a b", "-a", "a-", "a\n", "a\0", "a@b", "a" * 101])
def test_unsafe_names_are_refused_everywhere(registry: Registry, name: str) -> None:
    publish(registry)
    with pytest.raises(RegistryError, match="bad name"):
        publish(registry, name)
    with pytest.raises(RegistryError):
        registry.resolve(name)
    with pytest.raises(RegistryError, match="bad alias"):
        registry.promote("healthcare-small", name)


def test_a_bare_name_is_its_champion_else_its_newest_valid_version(registry: Registry) -> None:
    publish(registry)
    publish(registry, verdict={"status": "unchecked"})
    publish(registry, verdict=FAILED)
    (publish(registry).folder / "adapter_model.safetensors").unlink()
    (publish(registry).folder / "manifest.json").unlink()
    assert registry.resolve("healthcare-small").number == 2
    registry.promote("healthcare-small@1")
    assert registry.resolve("healthcare-small").number == 1
    assert registry.resolve("healthcare-small@champion").number == 1
    assert registry.resolve("healthcare-small@3").verdict == "failed"


def test_a_name_with_no_valid_version_says_why(registry: Registry) -> None:
    publish(registry, verdict=FAILED)
    (publish(registry).folder / "adapter_model.safetensors").unlink()
    with pytest.raises(RegistryError, match="no valid version: 2 is damaged, 1 failed its gates"):
        registry.resolve("healthcare-small")


def test_an_empty_registry_says_how_to_fill_it(empty: Registry) -> None:
    with pytest.raises(RegistryError, match="is empty; build one with `factory build`"):
        empty.resolve("healthcare-small")


def test_errors_say_what_exists_and_what_comes_close(registry: Registry) -> None:
    publish(registry)
    publish(registry, "legal-small")
    registry.promote("healthcare-small@1", "champion")
    with pytest.raises(RegistryError, match=r"'helthcare-small'; did you mean healthcare-small\?; available: .*legal-sm"):
        registry.resolve("helthcare-small")
    with pytest.raises(RegistryError, match="healthcare-small has no version 7; versions: 1; aliases: champion → 1"):
        registry.resolve("healthcare-small@7")
    with pytest.raises(RegistryError, match=r"no alias 'champoin'; did you mean champion\?"):
        registry.resolve("healthcare-small@champoin")
    with pytest.raises(RegistryError, match="no alias '3@4'"):
        registry.resolve("healthcare-small@3@4")


def test_a_damaged_version_is_not_resolved(registry: Registry) -> None:
    version = publish(registry)
    (version.folder / "adapter_model.safetensors").chmod(0o644)
    (version.folder / "adapter_model.safetensors").write_bytes(b"longer than before")
    with pytest.raises(RegistryError, match=r"cannot be used: adapter_model\.safetensors was changed"):
        registry.resolve("healthcare-small@1")
