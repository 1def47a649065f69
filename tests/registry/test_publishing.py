from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.manifests import publish, student_manifest

from factory.errors import RegistryError, StorageError
from factory.registry.manifest import to_dict
from factory.registry.registry import Registry


def test_publish_numbers_versions_and_records_every_file(registry: Registry) -> None:
    first, second = publish(registry), publish(registry)
    assert (first.reference, second.reference) == ("healthcare-small@1", "healthcare-small@2")
    assert set(second.manifest.files) == {"adapter_model.safetensors", "tokenizer/tokenizer.json"}
    assert second.manifest.files["adapter_model.safetensors"].bytes == 7
    assert json.loads((second.folder / "manifest.json").read_text()) == to_dict(second.manifest)
    assert second.manifest.version == 2
    assert second.manifest.created.endswith("Z")
    assert second.manifest.base_sha256 == registry.resolve("default-small-base").manifest.manifest_sha256
    assert registry.verify(second) == []


def test_published_files_are_read_only_and_the_folder_is_readable(registry: Registry) -> None:
    version = publish(registry)
    assert {p.stat().st_mode & 0o777 for p in version.folder.rglob("*") if p.is_file()} == {0o444}
    assert version.folder.stat().st_mode & 0o777 == 0o755


def test_concurrent_publishers_get_different_numbers(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda seed: publish(registry, seed=seed), range(24)))
    assert sorted(version.number for version in versions) == list(range(1, 25))
    assert sorted(v.manifest.seed for v in versions) == list(range(24))
    assert all(registry.verify(version) == [] for version in versions)
    assert len(registry.versions("student")) == 24


def test_a_folder_that_takes_the_number_meanwhile_is_not_overwritten(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real = publish(registry), os.rename

    def rename(source: Any, target: Any) -> None:
        monkeypatch.undo()
        shutil.copytree(first.folder, target)  # by hand, just now
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError, match="cannot publish healthcare-small"):
        publish(registry)
    assert [one.number for one in registry.versions("student")] == [1]
    assert publish(registry).number == 3


def test_a_deleted_number_is_not_given_again(registry: Registry) -> None:
    publish(registry)
    shutil.rmtree(publish(registry).folder)
    assert publish(registry).number == 3


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_process_that_is_killed_as_its_version_appears_uses_one_number_or_none(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    class KilledError(BaseException):
        pass

    def rename(source: Path, target: Path) -> None:
        if killed == "after":
            source.replace(target)
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr("factory.registry.publishing.os.rename", rename)
        publish(registry)
    there = [one.number for one in registry.versions("student")]
    assert there == ([1] if killed == "after" else [])
    assert publish(registry).number == len(there) + 1
    assert [problem for problem in registry.problems() if ".failed" not in problem] == []


def test_work_is_kept_where_publishing_fails_for_a_reason_that_nobody_foresaw(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr("factory.registry.publishing.seal", broken)
        publish(registry)
    [kept] = (registry.root / ".staging").iterdir()
    assert (kept / "adapter_model.safetensors").read_bytes() == b"weights"
    [problem] = registry.problems()
    assert problem == f".staging/{kept.name}: kept from a build that failed; `factory gc` removes it"
    publish(registry)
    assert registry.problems() == [problem] and kept.name.endswith(".failed")


def test_a_build_that_stops_while_staging_leaves_nothing(registry: Registry) -> None:
    with pytest.raises(KeyboardInterrupt), registry.stage("healthcare-small") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list((registry.root / ".staging").iterdir()) == []
    assert registry.versions("student") == []


def test_a_killed_process_leaves_nothing_that_is_listed(registry: Registry) -> None:
    publish(registry)
    code = (
        "import os, sys; from factory.registry.registry import Registry\n"
        "with Registry(sys.argv[1]).stage('healthcare-small') as folder:\n"
        "    (folder / 'half').write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(registry.root)], check=False).returncode == 9
    assert [s.reference for s in registry.versions("student")] == ["healthcare-small@1"]
    assert registry.resolve("healthcare-small").number == 1
    assert len(registry.problems()) == 1
    assert ".staging/healthcare-small-" in registry.problems()[0]
    with registry.stage("legal-small"):
        assert [path.name[:12] for path in (registry.root / ".staging").iterdir()] == ["legal-small-"]
    assert registry.problems() == []


def test_temporary_files_of_killed_processes_go_with_the_next_publication_of_any_name(registry: Registry) -> None:
    publish(registry)
    left = [registry.root / path for path in ("students/healthcare-small/..last-6ndm4rrr", ".aliases.json-x_1z9abc")]
    kept = [registry.root / path for path in ("students/healthcare-small/.last", "students/healthcare-small/notes", ".lock")]
    for path in (*left, *kept):
        path.touch()
    with registry.stage("legal-small"):
        assert [path.exists() for path in (*left, *kept)] == [False, False, True, True, True]


def test_what_another_process_is_staging_is_left_alone(registry: Registry) -> None:
    with registry.stage("healthcare-small") as folder:
        (folder / "half").write_text("half")
        code = "import sys; from factory.registry.registry import Registry\nwith Registry(sys.argv[1]).stage('legal-small'): pass"
        subprocess.run([sys.executable, "-c", code, str(registry.root)], check=True)
        assert (folder / "half").read_text() == "half"


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_full_disk_is_one_line_and_leaves_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    def publish_on_a_full_disk() -> None:
        with registry.stage("healthcare-small") as folder:
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
            monkeypatch.setattr(os, call, full)
            registry.publish(student_manifest(), folder)

    with pytest.raises(StorageError, match="cannot publish healthcare-small: no space left") as caught:
        publish_on_a_full_disk()
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert list((registry.root / "students").rglob("*/*")) == []
    assert registry.versions("student") == []
    assert registry.problems() == []


def test_a_full_disk_while_writing_weights_is_one_line(registry: Registry) -> None:
    with pytest.raises(StorageError, match="no space left"), registry.stage("healthcare-small"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_while_staging_pass_through(registry: Registry) -> None:
    with pytest.raises(FileNotFoundError), registry.stage("healthcare-small") as folder:
        (folder / "missing").read_text()


def test_an_empty_folder_a_link_and_an_unknown_base_are_refused(registry: Registry) -> None:
    with registry.stage("a") as folder, pytest.raises(RegistryError, match="the folder is empty"):
        registry.publish(student_manifest("a"), folder)
    with registry.stage("a") as folder, pytest.raises(RegistryError, match=r"cannot publish tokens\.json: .*links"):
        (folder / "tokens.json").symlink_to("/etc/hostname")
        registry.publish(student_manifest("a"), folder)
    with pytest.raises(RegistryError, match=r"its base is not in .*no student or base named 'default-tiny'"):
        publish(registry, "a", base="default-tiny@1")
    assert registry.versions("student") == []


def test_a_base_and_a_student_cannot_share_a_name(registry: Registry) -> None:
    publish(registry, "default-small", "base")
    with pytest.raises(RegistryError, match="a base already has that name"):
        publish(registry, "default-small", "student")


def test_values_that_json_cannot_hold_become_plain_or_are_named(registry: Registry, tmp_path: Path) -> None:
    training = {"curve": [{"step": 1, "loss": float("nan")}], "config": {"folder": tmp_path}, "examples": 8}
    version = publish(registry, training=training, notice="\ud800")
    content = json.loads((version.folder / "manifest.json").read_text())
    assert content["training"]["curve"] == [{"step": 1.0, "loss": None}]
    assert math.isnan(version.manifest.training.curve[0]["loss"])
    assert version.manifest.training.config["folder"] == str(tmp_path)
    assert version.manifest.notice == "?"
    with pytest.raises(RegistryError, match=r"manifest\.spec\.odd\[0\] is a set"):
        publish(registry, spec={"odd": [{1}]})
