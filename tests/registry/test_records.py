from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import flipped
from support.manifests import publish, student_manifest

from factory.errors import RegistryError, StorageError
from factory.registry.manifest import to_dict
from factory.registry.plain_json import checksum
from factory.registry.records import read_records
from factory.registry.registry import Registry

CHANGED = "was changed, or is not a record: restore the file from a copy"


def test_records_are_appended_and_stay_out_of_the_checksum(registry: Registry) -> None:
    version = publish(registry)
    assert version.records == ()
    registry.record(version, "review", {"wins": 7, "share": float("nan"), "kind": "no", "at": "no"})
    (first,) = registry.resolve("healthcare-small").records
    assert (first["kind"], first["wins"], first["share"]) == ("review", 7, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["at"])
    again = registry.record(version, "review", {"wins": 8})
    assert [record["wins"] for record in again.records] == [7, 8]
    assert checksum(to_dict(again.manifest)) == version.manifest.manifest_sha256
    assert registry.verify(again) == registry.problems() == []
    assert "records" not in json.loads((version.folder / "manifest.json").read_text())


@settings(max_examples=10)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3), min_size=1, max_size=4))
def test_any_text_comes_back_as_it_was_said(contents: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(folder)
        version = publish(registry)
        for content in contents:
            registry.record(version, "note", {"said": content})
        records = registry.resolve("healthcare-small").records
    assert [record["said"] for record in records] == contents


def test_concurrent_records_of_threads_and_processes_are_all_kept(registry: Registry) -> None:
    version = publish(registry)
    code = (
        "import sys; from factory.registry.registry import Registry\n"
        "here = Registry(sys.argv[1]); version = here.resolve('healthcare-small')\n"
        "for n in range(60): here.record(version, 'note', {'by': sys.argv[2], 'n': n, 'text': 'x' * 9000})"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(registry.root), name]) for name in ("one", "two")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: registry.record(version, "note", {"by": "threads", "n": n}), range(60)))
    assert [other.wait() for other in others] == [0, 0]
    records = registry.resolve("healthcare-small").records
    for who in ("one", "two", "threads"):
        assert sorted(record["n"] for record in records if record["by"] == who) == list(range(60))
    assert len(records) == 180
    assert registry.problems() == []


@pytest.mark.parametrize("half", [b'{"kind": "review", "wi', '{"kind": "ü'.encode()[:-1], b'{"kind": "whole"}', b"\0\0"])
def test_half_a_line_of_a_crash_is_ignored_and_overwritten(registry: Registry, half: bytes) -> None:
    version = registry.record(publish(registry), "note", {"n": 1})
    path = version.folder / "records.jsonl"
    with path.open("ab") as file:
        file.write(half)
    assert [record["n"] for record in registry.resolve("healthcare-small").records] == [1]
    assert registry.verify(version) == registry.problems() == []
    again = registry.record(version, "note", {"n": 2})
    assert [record["n"] for record in again.records] == [1, 2]
    assert path.read_bytes().count(b"\n") == 2
    assert half not in path.read_bytes()


@pytest.mark.parametrize("line", [b"not json", b"[1]", b'{"at": "now"}', b"", b"\xff"])
def test_a_line_that_is_no_record_is_said_and_the_others_are_read(registry: Registry, line: bytes) -> None:
    version = registry.record(publish(registry), "note", {"n": 1})
    with (version.folder / "records.jsonl").open("ab") as file:
        file.write(line + b"\n")
    again = registry.record(version, "note", {"n": 2})
    assert [record["n"] for record in again.records] == [1, 2]
    assert registry.verify(again) == [f"records.jsonl line 2 {CHANGED}"]
    assert registry.problems() == [f"students/healthcare-small/1: records.jsonl line 2 {CHANGED}"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_record_with_a_flipped_bit_is_never_read_as_another(registry: Registry, offset: int, bit: int) -> None:
    version = publish(registry)
    for wins in (7, 8, 9):
        version = registry.record(version, "review", {"wins": wins})
    path = version.folder / "records.jsonl"
    path.write_bytes(flipped(path.read_bytes(), offset % path.stat().st_size, bit))
    found, problems = read_records(version.folder)
    whole = [{key: record.get(key) for key in ("kind", "at", "wins")} for record in found]
    assert all(record in [{key: one[key] for key in ("kind", "at", "wins")} for one in version.records] for record in whole)
    assert len(found) == 3 or problems or not path.read_bytes().endswith(b"\n")


def test_records_that_cannot_be_opened_are_said_and_do_not_stop_reading(registry: Registry) -> None:
    version = publish(registry)
    (version.folder / "records.jsonl").mkdir()
    assert registry.resolve("healthcare-small").records == ()
    assert registry.verify(version) == ["records.jsonl cannot be read (Is a directory)"]
    with pytest.raises(StorageError, match=r"cannot record a note of healthcare-small@1: Is a directory"):
        registry.record(version, "note", {})


def test_a_record_of_a_version_that_is_gone_is_one_line(registry: Registry) -> None:
    version = publish(registry)
    shutil.rmtree(version.folder)
    with pytest.raises(StorageError, match="cannot record a note of healthcare-small@1: No such file") as caught:
        registry.record(version, "note", {"n": 1})
    assert "\n" not in str(caught.value)
    assert not version.folder.exists()


def test_a_staged_folder_cannot_bring_its_own_records(registry: Registry) -> None:
    with registry.stage("a") as folder, pytest.raises(RegistryError, match=r"records\.jsonl belongs to the registry"):
        (folder / "records.jsonl").write_text("{}\n")
        registry.publish(student_manifest("a"), folder)


def test_a_read_only_folder_shows_its_records(registry: Registry) -> None:
    version = registry.record(publish(registry), "note", {"n": 1})
    (version.folder / "records.jsonl").chmod(0o444)
    version.folder.chmod(0o555)
    try:
        assert registry.resolve("healthcare-small").records[0]["n"] == 1
        assert registry.verify(version) == []
    finally:
        version.folder.chmod(0o755)
