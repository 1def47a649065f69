from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import flipped
from support.manifests import publish

from factory.errors import RegistryError
from factory.registry.manifest import to_dict
from factory.registry.registry import Registry
from factory.registry.versions import Version


def test_incomplete_and_unreadable_folders_are_problems_and_never_listed(registry: Registry) -> None:
    version = publish(registry)
    students = registry.root / "students"
    (students / "half" / "1").mkdir(parents=True)
    (students / "broken" / "1").mkdir(parents=True)
    (students / "broken" / "1" / "manifest.json").write_text("{")
    (students / "odd" / "1").mkdir(parents=True)
    (students / "odd" / "1" / "manifest.json").write_text("[]")
    (students / "note.txt").write_text("a file")
    shutil.copytree(version.folder, students / "healthcare-small" / "9")
    assert [s.reference for s in registry.versions("student")] == ["healthcare-small@1"]
    assert registry.resolve("healthcare-small").number == 1
    with pytest.raises(RegistryError, match="incomplete"):
        registry.resolve("half@1")
    found = "\n".join(registry.problems())
    assert "students/half/1: incomplete" in found
    assert "students/broken/1: its manifest.json cannot be read" in found
    assert "students/odd/1" in found
    assert "healthcare-small/9: its manifest.json belongs to student healthcare-small@1" in found


def rewrite(version: Version, change: dict[str, Any]) -> None:
    """As an older or newer student-factory would have written it."""
    path = version.folder / "manifest.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 1}, "its manifest has schema version 1, this student-factory reads 3: build it again"),
        ({"schema_version": 9}, "its manifest has schema version 9, .*install a newer student-factory"),
        ({"dataset": ["odd"]}, r"its manifest\.json is malformed: dataset: "),
        ({"surprise": 1}, r"its manifest\.json is malformed: surprise: "),
        ({"kind": "teacher"}, "does not describe a student or a base"),
    ],
)
def test_another_schema_is_refused_in_one_line_and_hides_nothing(
    registry: Registry, change: dict[str, Any], words: str
) -> None:
    publish(registry)
    rewrite(publish(registry), change)
    for _ in range(2):  # the second list reads the index
        assert [s.number for s in registry.versions("student")] == [1]
    with pytest.raises(RegistryError, match=words) as caught:
        registry.resolve("healthcare-small@2")
    assert "\n" not in str(caught.value)
    (problem,) = registry.problems()
    assert re.match(f"students/healthcare-small/2: .*{words}", problem)
    assert registry.resolve("healthcare-small").number == 1


def test_a_manifest_that_was_repaired_is_listed_again(registry: Registry) -> None:
    version = publish(registry)
    content = json.loads((version.folder / "manifest.json").read_text())
    rewrite(version, {"schema_version": 1, "padding": "x"})
    assert registry.versions("student") == []
    (version.folder / "manifest.json").write_text(json.dumps(content))
    assert [s.number for s in registry.versions("student")] == [1]


def test_the_list_parses_no_manifest_once_the_index_knows_every_version(registry: Registry) -> None:
    publish(registry)
    rewrite(publish(registry), {"schema_version": 1})
    assert len(registry.versions()) == 2
    code = (
        "import sys; from factory.registry.registry import Registry; from factory.reports.console import list_table\n"
        "print(list_table(Registry(sys.argv[1]).versions()).row_count, {'pydantic', 'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(registry.root)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2 set()\n", "")


@pytest.mark.parametrize("folder", ["0", "01", "٣", "1x", "-1", "9" * 30])
def test_a_folder_that_is_no_number_is_no_version(registry: Registry, folder: str) -> None:
    version = publish(registry)
    shutil.copytree(version.folder, version.folder.parent / folder)
    assert [s.number for s in registry.versions("student")] == [1]
    assert registry.problems() == []
    with pytest.raises(RegistryError):
        registry.resolve(f"healthcare-small@{folder}")


def test_a_read_only_registry_can_be_listed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(registry)
    before, connect = registry.versions("student"), sqlite3.connect
    shutil.rmtree(publish(registry).folder)  # the index is behind, and cannot be written
    monkeypatch.setattr(
        sqlite3, "connect", lambda where, timeout: connect(where if ":" in where else f"file:{where}?mode=ro", uri=True)
    )
    assert registry.versions("student") == before


def test_removed_and_hand_copied_versions_show_at_once(registry: Registry, tmp_path: Path) -> None:
    kept, gone = publish(registry), publish(registry)
    shutil.copytree(gone.folder, tmp_path / "copy")
    shutil.rmtree(gone.folder)
    assert [s.number for s in registry.versions("student")] == [kept.number]
    shutil.copytree(tmp_path / "copy", gone.folder)
    assert [s.number for s in registry.versions("student")] == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"not a database" * 400, None])
def test_a_damaged_or_absent_index_is_rebuilt(registry: Registry, damage: bytes | None) -> None:
    publish(registry)
    before, index = registry.versions("student"), registry.root / "index.sqlite"
    index.unlink() if damage is None else index.write_bytes(damage)
    assert registry.versions("student") == before
    assert index.read_bytes().startswith(b"SQLite format 3")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 10**6), bit=st.integers(0, 8))  # 8: cut off there
def test_no_damaged_byte_of_the_index_changes_what_is_listed(registry: Registry, offset: int, bit: int) -> None:
    if not registry.versions("student"):
        publish(registry)
        publish(registry)
    before, index = registry.versions(), registry.root / "index.sqlite"
    content = index.read_bytes()
    offset %= len(content)
    index.write_bytes(content[:offset] if bit == 8 else flipped(content, offset, bit))
    assert registry.versions() == before


def test_a_version_that_was_changed_and_kept_its_times_is_read_again(registry: Registry) -> None:
    version = publish(registry)
    assert len(registry.versions("student")) == 1
    path = version.folder / "manifest.json"
    content, state = path.read_bytes(), path.stat()
    path.chmod(0o644)
    path.write_bytes(content.replace(b'"student"', b'"studenT"'))
    path.chmod(0o444)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert registry.versions("student") == []


def test_an_index_of_another_layout_is_rebuilt(registry: Registry) -> None:
    publish(registry)
    before = registry.versions("student")
    for change in ("ALTER TABLE versions DROP COLUMN kl", "PRAGMA user_version = 99"):
        with sqlite3.connect(registry.root / "index.sqlite") as connection:
            connection.execute(change)
        connection.close()
        assert registry.versions("student") == before


def test_a_locked_index_does_not_stop_the_list(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(registry)
    before, connect = registry.versions("student"), sqlite3.connect
    other = connect(registry.root / "index.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", lambda where, timeout: connect(where, timeout=0.01))
    assert registry.versions("student") == before
    other.close()
    assert registry.versions("student") == before


def test_another_process_that_changes_the_index_meanwhile_changes_no_list(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, "law-small")
    path = registry.root / "index.sqlite"
    path.unlink()

    connect = sqlite3.connect

    class Overtaken(sqlite3.Connection):
        """Somebody who looked at the folders before the student was there commits just after us."""

        def __exit__(self, *failure: Any) -> Any:
            done = super().__exit__(*failure)
            with contextlib.closing(connect(path)) as other, other:
                other.execute("DELETE FROM versions WHERE name = 'law-small'")
            return done

    with monkeypatch.context() as during:
        during.setattr(sqlite3, "connect", lambda where, timeout: connect(where, timeout, factory=Overtaken))
        assert [one.name for one in registry.versions("student")] == ["law-small"]
    assert [one.name for one in registry.versions("student")] == ["law-small"]


def test_a_moved_registry_answers_the_same(registry: Registry, tmp_path: Path) -> None:
    publish(registry, "default-small", "base")
    publish(registry, base="default-small@1")
    registry.promote("healthcare-small")
    before = registry.versions()
    moved = Registry(shutil.move(registry.root, tmp_path / "elsewhere"))
    assert moved.versions() == before
    version = moved.resolve("healthcare-small")
    assert version.folder.is_relative_to(tmp_path / "elsewhere")
    assert moved.verify(version) == []
    assert str(registry.root) not in json.dumps(to_dict(version.manifest))


def test_a_registry_that_does_not_exist_is_empty_and_stays_so(empty: Registry) -> None:
    assert (empty.versions(), empty.problems(), empty.trained_on("x")) == ([], [], [])
    assert not empty.root.exists()


def test_versions_filter_by_kind_and_name(registry: Registry) -> None:
    publish(registry)
    publish(registry, "legal-small", domain="legal")
    (base,) = registry.versions("base")
    assert (base.name, base.domain, base.kl, base.verdict) == ("default-small-base", None, None, "unchecked")
    (summary,) = registry.versions("student", "healthcare-small")
    assert (summary.kl, summary.top1_agreement, summary.relation_alignment) == (0.41, 0.76, None)
    assert (summary.parameters, summary.teacher_parameters, summary.bytes) == (80_000_000, 134_515_008, 9)
    assert summary.sources == ("healthcare-conditions",)
    assert [one.domain for one in registry.versions(name="legal-small")] == ["legal"]
