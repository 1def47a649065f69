from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.manifests import publish

from factory.errors import RegistryError, StorageError
from factory.registry.registry import Registry
from factory.registry.removal import leftovers, remove


def test_a_deleted_version_is_gone_and_its_number_is_not_used_again(registry: Registry) -> None:
    publish(registry)
    version = publish(registry)
    registry.delete("healthcare-small@2")
    assert not version.folder.exists()
    assert [one.number for one in registry.versions("student")] == [1]
    assert registry.problems() == []
    assert publish(registry).number == 3


def test_the_last_version_of_a_name_can_be_deleted(registry: Registry) -> None:
    publish(registry)
    registry.delete("healthcare-small@1")
    with pytest.raises(RegistryError, match="no student or base named"):
        registry.resolve("healthcare-small")
    assert publish(registry).number == 2


def test_what_an_alias_points_at_is_not_deleted(registry: Registry) -> None:
    version = publish(registry)
    registry.promote("healthcare-small@1")
    with pytest.raises(RegistryError, match="healthcare-small@champion points at it; `factory demote healthcare-small@champion`"):
        registry.delete("healthcare-small@1")
    assert registry.verify(version) == []
    registry.demote("healthcare-small@champion")
    registry.delete("healthcare-small@1")


def test_a_base_that_students_stand_on_is_not_deleted(registry: Registry) -> None:
    base = publish(registry, "default-tiny-base", "base")
    for name in "abcdefg":
        publish(registry, f"{name}-tiny", base="default-tiny-base@1")
    with pytest.raises(RegistryError, match="it is the base of a-tiny@1, .* and 2 more; delete these first"):
        registry.delete("default-tiny-base@1")
    for name in "abcdefg":
        registry.delete(f"{name}-tiny@1")
    registry.delete("default-tiny-base@1")
    assert not base.folder.exists()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "manifest.json"])
def test_a_base_that_a_damaged_student_may_stand_on_is_not_deleted(registry: Registry, file: str) -> None:
    student = publish(registry)  # on the fixture's base, and somebody may restore its file
    (student.folder / file).unlink()
    with pytest.raises(RegistryError, match=f"it (is|may be) the base of {student.reference}"):
        registry.delete(str(student.base))
    registry.delete(student.reference)
    registry.delete(str(student.base))
    assert registry.versions() == []


@pytest.mark.parametrize("ref", ["healthcare-small", "healthcare-small@champion", "healthcare-small@", "healthcare-small@01"])
def test_only_a_number_says_which_version_to_delete(registry: Registry, ref: str) -> None:
    publish(registry)
    with pytest.raises(RegistryError, match="give its number, as in healthcare-small@1"):
        registry.delete(ref)


@pytest.mark.parametrize("ref", ["healthcare-small@9", "nobody@1", "../healthcare-small@1", "bases/x@1", ""])
def test_what_does_not_exist_cannot_be_deleted(registry: Registry, ref: str) -> None:
    publish(registry)
    with pytest.raises(RegistryError):
        registry.delete(ref)
    assert len(registry.versions()) == 2


def test_a_damaged_version_can_be_deleted(registry: Registry) -> None:
    version = publish(registry)
    (version.folder / "manifest.json").unlink()
    registry.delete("healthcare-small@1")
    assert registry.problems() == []


def test_a_student_is_not_published_on_a_base_that_was_deleted_meanwhile(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.registry import publishing

    publish(registry, "default-tiny-base", "base")
    seal = publishing.seal

    def seal_and_delete(staged: Path) -> Any:
        registry.delete("default-tiny-base@1")
        return seal(staged)

    monkeypatch.setattr(publishing, "seal", seal_and_delete)
    with pytest.raises(RegistryError, match="cannot publish a-tiny: its base is not in"):
        publish(registry, "a-tiny", base="default-tiny-base@1")
    assert [one.name for one in registry.versions()] == ["default-small-base"]
    assert registry.problems() == []


def test_what_is_left_of_a_deletion_is_no_version_and_is_removed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(registry)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="cannot delete healthcare-small@1"):
        patched.setattr(os, "rename", refuse)
        registry.delete("healthcare-small@1")
    with pytest.raises(RegistryError, match="it was deleted: `factory gc` removes what is left of it"):
        registry.resolve("healthcare-small@1")
    [left] = leftovers(registry.root)
    assert (left.path, left.why) == (version.folder, "what is left of a deleted version")
    assert len(registry.problems()) == 1
    remove(registry.root, left.path)
    assert leftovers(registry.root) == registry.problems() == []


def test_what_a_living_process_writes_is_no_leftover(registry: Registry) -> None:
    with registry.stage("healthcare-small") as folder:
        (folder / "half").write_text("half")
        assert leftovers(registry.root) == []
        assert registry.problems() == []


def test_what_a_killed_process_wrote_is_one(registry: Registry) -> None:
    code = (
        "import os, sys; from factory.registry.registry import Registry; from factory.cache import atomic_file\n"
        "with Registry(sys.argv[1]).stage('healthcare-small') as folder, atomic_file(folder.parents[1] / 'registry.json'):\n"
        "    (folder / 'half').write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(registry.root)], check=False).returncode == 9
    found = leftovers(registry.root)
    assert [left.path.is_dir() for left in found] == [True, False]  # what was staged, and a temporary file
    assert len(registry.problems()) == 2
    for left in found:
        remove(registry.root, left.path)
    assert leftovers(registry.root) == []
    assert list((registry.root / ".staging").iterdir()) == []


def test_a_folder_that_holds_a_read_only_tree_is_removed(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry)
    shutil.copytree(version.folder, registry.root / ".staging" / "old")
    remove(registry.root, registry.root / ".staging" / "old")
    assert list((registry.root / ".staging").iterdir()) == []
