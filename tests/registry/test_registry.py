from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import GateError, RegistryError
from factory.registry.versions import Version, checksum, entries, failed_gates, read_metric
from factory.registry.registry import Registry


def manifest(**more: Any) -> dict[str, Any]:
    return {"domain": "healthcare", "verdict": {"status": "passed", "reasons": []}} | more


GATES = [
    {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.8, "found": 0.8001, "passed": False},
    {"metric": "top1_agreement", "of": "value", "bound": "at_least", "threshold": 0.6, "found": 0.7, "passed": True},
    {"metric": "canary_exposure", "of": "value", "bound": "at_most", "threshold": 2, "found": None, "passed": False},
]
FAILED = {"status": "failed", "reasons": ["KL 2.1 is above 1"]}


def publish(registry: Registry, name: str = "healthcare-small", kind: Any = "student", **more: Any) -> Version:
    with registry.stage(name) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        return registry.publish(kind, name, folder, manifest(**more))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


# ---------------------------------------------------------------------------------------------------------- publish


def test_publish_numbers_versions_and_records_every_file(registry: Registry) -> None:
    first, second = publish(registry), publish(registry)
    assert (first.reference, second.reference) == ("healthcare-small@1", "healthcare-small@2")
    assert set(second.manifest["files"]) == {"adapter_model.safetensors", "tokenizer/tokenizer.json"}
    assert second.manifest["files"]["adapter_model.safetensors"]["bytes"] == 7
    assert json.loads((second.folder / "manifest.json").read_text()) == second.manifest
    assert second.manifest["version"] == 2
    assert second.manifest["kind"] == "student"
    assert second.manifest["created"].endswith("Z")
    assert registry.verify(second) == []


def test_published_files_are_read_only_and_the_folder_is_readable(registry: Registry) -> None:
    version = publish(registry)
    assert {p.stat().st_mode & 0o777 for p in version.folder.rglob("*") if p.is_file()} == {0o444}
    assert version.folder.stat().st_mode & 0o777 == 0o755


def test_concurrent_publishers_get_different_numbers(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda seed: publish(registry, seed=seed), range(24)))
    assert sorted(version.number for version in versions) == list(range(1, 25))
    assert sorted(v.manifest["seed"] for v in versions) == list(range(24))
    assert all(registry.verify(version) == [] for version in versions)
    assert len(registry.versions()) == 24


def test_a_number_taken_meanwhile_is_skipped(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(registry)
    real, tried = os.rename, []

    def rename(source: Any, target: Any) -> None:
        tried.append(Path(target).name)
        if len(tried) == 1:  # another publisher was quicker
            shutil.copytree(registry.root / "students" / "healthcare-small" / "1", target)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    version = publish(registry)
    assert tried == ["2", "3"]
    assert version.number == version.manifest["version"] == 3


def test_a_deleted_number_is_not_given_again(registry: Registry) -> None:
    publish(registry)
    shutil.rmtree(publish(registry).folder)
    assert publish(registry).number == 3


def test_a_build_that_stops_while_staging_leaves_nothing(registry: Registry) -> None:
    with pytest.raises(KeyboardInterrupt), registry.stage("healthcare-small") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list((registry.root / ".staging").iterdir()) == []
    assert registry.versions() == []


def test_a_killed_process_leaves_nothing_that_is_listed(registry: Registry) -> None:
    publish(registry)
    code = (
        "import os, sys; from factory.registry.registry import Registry\n"
        "with Registry(sys.argv[1]).stage('healthcare-small') as folder:\n"
        "    (folder / 'half').write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(registry.root)], check=False).returncode == 9
    assert [s.reference for s in registry.versions()] == ["healthcare-small@1"]
    assert registry.resolve("healthcare-small").number == 1
    assert len(registry.problems()) == 1
    assert ".staging/healthcare-small-" in registry.problems()[0]


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_full_disk_is_one_line_and_leaves_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    def publish_on_a_full_disk() -> None:
        with registry.stage("healthcare-small") as folder:
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
            monkeypatch.setattr(os, call, full)
            registry.publish("student", "healthcare-small", folder, manifest())

    with pytest.raises(RegistryError, match="cannot publish healthcare-small: no space left") as caught:
        publish_on_a_full_disk()
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert [p for p in registry.root.rglob("*") if p.is_file()] == []
    assert registry.versions() == []
    assert registry.problems() == []


def test_a_full_disk_while_writing_weights_is_one_line(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="no space left"), registry.stage("healthcare-small"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_while_staging_pass_through(registry: Registry) -> None:
    with pytest.raises(FileNotFoundError), registry.stage("healthcare-small") as folder:
        (folder / "missing").read_text()


def test_an_empty_folder_a_link_and_an_unknown_base_are_refused(registry: Registry) -> None:
    with registry.stage("a") as folder, pytest.raises(RegistryError, match="the folder is empty"):
        registry.publish("student", "a", folder, manifest())
    with registry.stage("a") as folder, pytest.raises(RegistryError, match=r"cannot publish tokens\.json: no links"):
        (folder / "tokens.json").symlink_to("/etc/hostname")
        registry.publish("student", "a", folder, manifest())
    with pytest.raises(RegistryError, match=r"its base is not in .*default-small"):
        publish(registry, "a", base="default-small@1")
    with pytest.raises(RegistryError, match="kind 'teacher' is not one of student, base"):
        publish(registry, "a", kind="teacher")
    assert registry.versions() == []


def test_a_base_and_a_student_cannot_share_a_name(registry: Registry) -> None:
    publish(registry, "default-small", "base")
    with pytest.raises(RegistryError, match="a base has that name"):
        publish(registry, "default-small", "student")


def test_values_json_cannot_hold_become_plain_or_are_named(registry: Registry, tmp_path: Path) -> None:
    import numpy as np

    version = publish(registry, folder=tmp_path, curve=({"loss": float("nan")}, {"loss": np.float32(0.5)}), tag="\ud800")
    assert version.manifest["curve"] == [{"loss": None}, {"loss": 0.5}]
    assert version.manifest["folder"] == str(tmp_path)
    assert version.manifest["tag"] == "?"
    with pytest.raises(RegistryError, match=r"manifest\.spec\.odd\[0\] is a set"):
        publish(registry, spec={"odd": [{1}]})


# ------------------------------------------------------------------------------------------------------------- names


@settings(deadline=None, max_examples=60)
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
            assert list(Path(folder).iterdir()) == []
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


# ----------------------------------------------------------------------------------------------------------- resolve


def test_a_bare_name_is_its_champion_else_its_newest_sound_version(registry: Registry) -> None:
    publish(registry)
    publish(registry, verdict={"status": "unchecked"})
    publish(registry, verdict={"status": "failed", "reasons": ["KL 2.1 is above 1"]})
    (publish(registry).folder / "adapter_model.safetensors").unlink()
    (publish(registry).folder / "manifest.json").unlink()
    assert registry.resolve("healthcare-small").number == 2
    registry.promote("healthcare-small@1")
    assert registry.resolve("healthcare-small").number == 1
    assert registry.resolve("healthcare-small@champion").number == 1
    assert registry.resolve("healthcare-small@3").verdict == "failed"


def test_a_name_with_no_sound_version_says_why(registry: Registry) -> None:
    publish(registry, verdict={"status": "failed", "reasons": []})
    (publish(registry).folder / "adapter_model.safetensors").unlink()
    with pytest.raises(RegistryError, match="no sound version: 2 is not whole, 1 failed its gates"):
        registry.resolve("healthcare-small")


def test_errors_say_what_exists_and_what_comes_close(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="is empty"):
        registry.resolve("healthcare-small")
    publish(registry)
    publish(registry, "legal-small")
    registry.promote("healthcare-small@1", "champion")
    with pytest.raises(RegistryError, match=r"'helthcare-small'; did you mean healthcare-small\?; there are: .*legal-sm"):
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


# ----------------------------------------------------------------------------------------------------------- aliases


def test_aliases_move_and_show_in_the_list(registry: Registry) -> None:
    publish(registry)
    publish(registry)
    registry.promote("healthcare-small@1", "champion")
    registry.promote("healthcare-small@2", "champion")
    registry.promote("healthcare-small@2", "tried")
    assert registry.aliases("healthcare-small") == {"champion": 2, "tried": 2}
    assert [s.aliases for s in registry.versions()] == [(), ("champion", "tried")]
    assert registry.aliases("unknown") == {}


def test_concurrent_promotions_are_all_kept(registry: Registry) -> None:
    publish(registry)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: registry.promote("healthcare-small@1", f"alias-{n}"), range(16)))
    assert len(registry.aliases("healthcare-small")) == 16


def test_a_failed_or_damaged_version_is_not_promoted(registry: Registry) -> None:
    version = publish(registry, verdict={"status": "failed", "reasons": ["KL 2.1 is above 1"]})
    with pytest.raises(RegistryError, match=r"failed its gates, so champion stays where it is: KL 2\.1 is above 1"):
        registry.promote(version.reference)
    registry.promote(version.reference, override="the clinic asked for it")
    file = version.folder / "adapter_model.safetensors"
    file.chmod(0o644)
    file.write_bytes(b"WEIGHTS")  # the same length
    with pytest.raises(RegistryError, match="is damaged"):
        registry.promote(version.reference, override="the clinic asked for it")
    assert len(registry.resolve(version.reference).manifest["records"]) == 1  # what is refused is not recorded


def test_the_refusal_names_each_failed_gate_with_figure_and_threshold(registry: Registry) -> None:
    version = publish(registry, verdict=FAILED | {"gates": GATES})
    with pytest.raises(GateError) as caught:
        registry.promote(version.reference)
    assert "upper end of kl is 0.8001, at most 0.8 passes; canary_exposure is not measured, at most 2" in str(caught.value)
    assert "top1_agreement" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.exit_code, RegistryError.exit_code) == (2, 1)
    assert registry.aliases("healthcare-small") == {}


@pytest.mark.parametrize("verdict", [None, "failed", {"status": "failed"}, {"status": "failed", "gates": ["odd", {}]}])
def test_failed_gates_of_a_verdict_without_any_are_its_reasons_if_it_has_some(verdict: Any) -> None:
    assert failed_gates({"verdict": verdict}) == []
    assert failed_gates({"verdict": FAILED | {"gates": []}}) == ["KL 2.1 is above 1"]
    assert failed_gates({}) == []


def test_a_verdict_without_reasons_is_refused_as_well(registry: Registry) -> None:
    version = publish(registry, verdict="failed")
    with pytest.raises(GateError, match="no reason given"):
        registry.promote(version.reference)


def test_an_override_is_recorded_with_its_reason_for_ever(registry: Registry) -> None:
    version = publish(registry, verdict=FAILED | {"gates": GATES})
    promoted = registry.promote(version.reference, "tried", override="  the clinic\nasked for it ")
    (record,) = promoted.manifest["records"]
    assert record["at"].endswith("Z")
    assert {key: value for key, value in record.items() if key != "at"} == {
        "kind": "override",
        "alias": "tried",
        "reason": "the clinic\nasked for it",
        "gates": failed_gates(version.manifest),
    }
    registry.promote(publish(registry).reference, "tried")  # the alias moves on, the record stays
    again = Registry(registry.root).resolve(version.reference)
    assert again.manifest["records"] == promoted.manifest["records"]
    assert registry.verify(again) == registry.problems() == []


def test_only_a_failure_can_be_overridden_and_only_with_a_reason(registry: Registry) -> None:
    publish(registry)
    publish(registry, verdict=FAILED)
    with pytest.raises(RegistryError, match="nothing to override: healthcare-small@1 is passed"):
        registry.promote("healthcare-small@1", override="to be sure")
    for reason in ("", " \n"):
        with pytest.raises(RegistryError, match="the reason to override the gates of healthcare-small@2 is empty"):
            registry.promote("healthcare-small@2", override=reason)
    assert registry.aliases("healthcare-small") == {}
    assert list(registry.root.rglob("records.jsonl")) == []


def test_a_bare_name_never_means_a_version_that_failed(registry: Registry) -> None:
    publish(registry, verdict=FAILED)
    registry.promote("healthcare-small@1", override="the clinic asked for it")
    assert registry.resolve("healthcare-small@champion").number == 1
    with pytest.raises(RegistryError, match="no sound version: 1 failed its gates"):
        registry.resolve("healthcare-small")
    publish(registry)
    publish(registry)
    assert registry.resolve("healthcare-small").number == 3
    registry.promote("healthcare-small@2")
    assert registry.resolve("healthcare-small").number == 2


def test_no_alias_moves_where_its_reason_cannot_be_written(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(registry, verdict=FAILED)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(RegistryError, match="no space left"):
        patched.setattr("factory.registry.versions.os.fsync", full)
        registry.promote(version.reference, override="the clinic asked for it")
    assert registry.aliases("healthcare-small") == {}


def test_an_alias_of_a_deleted_version_is_an_error(registry: Registry) -> None:
    publish(registry)
    gone = publish(registry)
    registry.promote(gone.reference)
    shutil.rmtree(gone.folder)
    with pytest.raises(RegistryError, match="healthcare-small@champion: healthcare-small has no version 2"):
        registry.resolve("healthcare-small")
    assert registry.problems() == ["healthcare-small@champion points at 2, which is gone"]


def test_unreadable_aliases_are_one_line(registry: Registry) -> None:
    publish(registry)
    (registry.root / "aliases.json").write_text("{")
    with pytest.raises(RegistryError, match=r"aliases\.json cannot be read"):
        registry.versions()
    assert registry.resolve("healthcare-small@1").number == 1


# ----------------------------------------------------------------------------------------------------------- records


def test_records_are_appended_and_stay_out_of_the_checksum(registry: Registry) -> None:
    version = publish(registry)
    assert "records" not in version.manifest
    registry.record(version, "review", {"wins": 7, "share": float("nan"), "kind": "no", "at": "no"})
    (first,) = registry.resolve("healthcare-small").manifest["records"]
    assert (first["kind"], first["wins"], first["share"]) == ("review", 7, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["at"])
    again = registry.record(version, "review", {"wins": 8})
    assert [record["wins"] for record in again.manifest["records"]] == [7, 8]
    assert checksum(again.manifest) == version.manifest["manifest_sha256"]
    assert registry.verify(again) == registry.problems() == []
    assert "records" not in json.loads((version.folder / "manifest.json").read_text())


@settings(deadline=None, max_examples=10)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3), min_size=1, max_size=4))
def test_any_text_comes_back_as_it_was_said(contents: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(folder)
        version = publish(registry)
        for content in contents:
            registry.record(version, "note", {"said": content})
        records = registry.resolve("healthcare-small").manifest["records"]
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
    records = registry.resolve("healthcare-small").manifest["records"]
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
    assert [record["n"] for record in registry.resolve("healthcare-small").manifest["records"]] == [1]
    assert registry.verify(version) == registry.problems() == []
    again = registry.record(version, "note", {"n": 2})
    assert [record["n"] for record in again.manifest["records"]] == [1, 2]
    assert path.read_bytes().count(b"\n") == 2
    assert half not in path.read_bytes()


@pytest.mark.parametrize("line", [b"not json", b"[1]", b'{"at": "now"}', b"", b"\xff"])
def test_a_line_that_is_no_record_is_said_and_the_others_are_read(registry: Registry, line: bytes) -> None:
    version = registry.record(publish(registry), "note", {"n": 1})
    with (version.folder / "records.jsonl").open("ab") as file:
        file.write(line + b"\n")
    again = registry.record(version, "note", {"n": 2})
    assert [record["n"] for record in again.manifest["records"]] == [1, 2]
    assert registry.verify(again) == ["records.jsonl line 2 cannot be read: it is no record"]
    assert registry.problems() == ["students/healthcare-small/1: records.jsonl line 2 cannot be read: it is no record"]


def test_records_that_cannot_be_opened_are_said_and_do_not_stop_reading(registry: Registry) -> None:
    version = publish(registry)
    (version.folder / "records.jsonl").mkdir()
    assert "records" not in registry.resolve("healthcare-small").manifest
    assert registry.verify(version) == ["records.jsonl cannot be read (Is a directory)"]
    with pytest.raises(RegistryError, match=r"cannot record a note of healthcare-small@1: Is a directory"):
        registry.record(version, "note", {})


def test_a_record_of_a_version_that_is_gone_is_one_line(registry: Registry) -> None:
    version = publish(registry)
    shutil.rmtree(version.folder)
    with pytest.raises(RegistryError, match="cannot record a note of healthcare-small@1: No such file") as caught:
        registry.record(version, "note", {"n": 1})
    assert "\n" not in str(caught.value)
    assert not version.folder.exists()


def test_only_the_file_of_records_holds_records(registry: Registry) -> None:
    version = publish(registry, records=[{"kind": "review"}])
    path = version.folder / "manifest.json"
    content = json.loads(path.read_text())
    assert "records" not in content
    path.chmod(0o644)
    path.write_text(json.dumps(content | {"records": [{"kind": "review"}]}))
    assert "records" not in registry.resolve("healthcare-small").manifest
    with registry.stage("a") as folder, pytest.raises(RegistryError, match=r"records\.jsonl is the registry's own"):
        (folder / "records.jsonl").write_text("{}\n")
        registry.publish("student", "a", folder, manifest())


def test_a_read_only_folder_shows_its_records(registry: Registry) -> None:
    version = registry.record(publish(registry), "note", {"n": 1})
    (version.folder / "records.jsonl").chmod(0o444)
    version.folder.chmod(0o555)
    try:
        assert registry.resolve("healthcare-small").manifest["records"][0]["n"] == 1
        assert registry.verify(version) == []
    finally:
        version.folder.chmod(0o755)


# ------------------------------------------------------------------------------------------------- lineage and checks


def test_verify_names_what_is_missing_changed_or_added(registry: Registry) -> None:
    version = publish(registry)
    weights = version.folder / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"WEIGHTS")
    (version.folder / "tokenizer" / "tokenizer.json").unlink()
    (version.folder / "extra.txt").write_text("extra")
    assert registry.verify(version) == [
        "adapter_model.safetensors was changed: its sha256 is not the manifest's",
        "tokenizer/tokenizer.json is missing",
        "extra.txt is not in the manifest",
    ]


def test_verify_notices_an_edited_manifest(registry: Registry) -> None:
    version = publish(registry, evaluation={"metrics": {"kl": {"value": 2.0}}})
    path = version.folder / "manifest.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("2.0", "0.1"))
    assert registry.verify(registry.resolve(version.reference)) == ["manifest.json was changed after publishing"]


def test_trained_on_includes_students_of_a_base_that_saw_the_source(registry: Registry) -> None:
    dataset = {"sources": [{"id": "medquad", "license": "cc-by-4.0", "n": 10}]}
    publish(registry, "default-small", "base", dataset=dataset)
    publish(registry, "default-small", "base")
    publish(registry, "a-small", base="default-small@1")
    publish(registry, "b-small", base="default-small")  # the newest: recorded as @2
    publish(registry, "c-small", dataset=dataset)
    assert registry.resolve("b-small").base == "default-small@2"
    found = [s.reference for s in registry.trained_on("medquad")]
    assert found == ["a-small@1", "c-small@1", "default-small@1"]
    assert registry.trained_on("unknown") == []


def test_a_base_that_is_gone_or_replaced_is_a_problem(registry: Registry) -> None:
    base = publish(registry, "default-small", "base")
    student = publish(registry, base="default-small@1")
    assert registry.verify(student) == registry.problems() == []
    shutil.rmtree(base.folder)
    assert "its base is gone" in registry.verify(student)[0]
    shutil.rmtree(base.folder.parent)
    publish(registry, "default-small", "base", seed=1)
    assert "is not the one it was trained on" in registry.problems()[0]


# ------------------------------------------------------------------------------------------------------------- index


def test_half_made_and_unreadable_folders_are_problems_and_never_listed(registry: Registry) -> None:
    version = publish(registry)
    students = registry.root / "students"
    (students / "half" / "1").mkdir(parents=True)
    (students / "broken" / "1").mkdir(parents=True)
    (students / "broken" / "1" / "manifest.json").write_text("{")
    (students / "odd" / "1").mkdir(parents=True)
    (students / "odd" / "1" / "manifest.json").write_text("[]")
    (students / "note.txt").write_text("a file")
    shutil.copytree(version.folder, students / "healthcare-small" / "9")
    assert [s.reference for s in registry.versions()] == ["healthcare-small@1"]
    assert registry.resolve("healthcare-small").number == 1
    with pytest.raises(RegistryError, match="half made"):
        registry.resolve("half@1")
    found = "\n".join(registry.problems())
    assert "students/half/1: half made" in found
    assert "students/broken/1: its manifest.json cannot be read" in found
    assert "students/odd/1" in found
    assert "healthcare-small/9: its manifest.json is of student healthcare-small@1" in found


def test_a_manifest_of_an_odd_shape_does_not_break_the_list(registry: Registry) -> None:
    publish(registry)
    publish(registry, dataset=["not", "a", "mapping"])
    publish(registry, domain=["not", "a", "word"])
    assert [s.number for s in registry.versions()] == [1]


@pytest.mark.parametrize("folder", ["0", "01", "٣", "1x", "-1", "9" * 30])
def test_a_folder_that_is_no_number_is_no_version(registry: Registry, folder: str) -> None:
    version = publish(registry)
    shutil.copytree(version.folder, version.folder.parent / folder)
    assert [s.number for s in registry.versions()] == [1]
    assert registry.problems() == []
    with pytest.raises(RegistryError):
        registry.resolve(f"healthcare-small@{folder}")


def test_a_read_only_registry_can_be_listed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    publish(registry)
    before, connect = registry.versions(), sqlite3.connect
    shutil.rmtree(publish(registry).folder)  # the index is behind, and cannot be written
    monkeypatch.setattr(
        sqlite3, "connect", lambda where, timeout: connect(where if ":" in where else f"file:{where}?mode=ro", uri=True)
    )
    assert registry.versions() == before


def test_removed_and_hand_copied_versions_show_at_once(registry: Registry, tmp_path: Path) -> None:
    kept, gone = publish(registry), publish(registry)
    shutil.copytree(gone.folder, tmp_path / "copy")
    shutil.rmtree(gone.folder)
    assert [s.number for s in registry.versions()] == [kept.number]
    shutil.copytree(tmp_path / "copy", gone.folder)
    assert [s.number for s in registry.versions()] == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"not a database" * 400, None])
def test_a_damaged_or_absent_index_is_rebuilt(registry: Registry, damage: bytes | None) -> None:
    publish(registry)
    before, index = registry.versions(), registry.root / "index.sqlite"
    index.unlink() if damage is None else index.write_bytes(damage)
    assert registry.versions() == before
    assert index.read_bytes().startswith(b"SQLite format 3")


def test_an_index_of_another_layout_is_rebuilt(registry: Registry) -> None:
    import sqlite3

    publish(registry)
    before = registry.versions()
    for change in ("ALTER TABLE versions DROP COLUMN kl", "PRAGMA user_version = 99"):
        with sqlite3.connect(registry.root / "index.sqlite") as connection:
            connection.execute(change)
        connection.close()
        assert registry.versions() == before


def test_a_locked_index_does_not_stop_the_list(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    publish(registry)
    before, connect = registry.versions(), sqlite3.connect
    other = connect(registry.root / "index.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", lambda where, timeout: connect(where, timeout=0.01))
    assert registry.versions() == before
    other.close()
    assert registry.versions() == before


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
    assert str(registry.root) not in json.dumps(version.manifest)


def test_a_registry_that_does_not_exist_is_empty_and_stays_so(registry: Registry) -> None:
    assert (registry.versions(), registry.problems(), registry.trained_on("x")) == ([], [], [])
    assert not registry.root.exists()


def test_versions_filter_by_kind_and_name_and_tolerate_missing_keys(registry: Registry) -> None:
    publish(registry, "default-small", "base")
    sizes = {"student": {"parameters": 80}, "teacher": {"parameters": 135}}
    publish(registry, evaluation={"metrics": {"kl": {"value": 0.4, "n": 9}, "top1_agreement": 0.7}, "sizes": sizes})
    publish(registry, "legal-small", domain=None)
    assert [s.name for s in registry.versions("base")] == ["default-small"]
    (summary,) = registry.versions("student", "healthcare-small")
    assert (summary.kl, summary.top1_agreement, summary.relation_alignment) == (0.4, 0.7, None)
    assert (summary.parameters, summary.teacher_parameters, summary.bytes) == (80, 135, 9)
    (bare,) = registry.versions(name="legal-small")
    assert bare.domain is None
    assert bare.kl is None
    assert bare.sources == ()


def test_a_metric_is_read_with_or_without_its_interval() -> None:
    assert read_metric({"evaluation": {"metrics": {"kl": 0.4}}}, "kl") == {
        "value": 0.4,
        "low": None,
        "high": None,
        "n": None,
    }
    assert read_metric({}, "kl") is None
    assert read_metric({"evaluation": {"metrics": {"kl": None}}}, "kl") is None


def test_importing_the_registry_loads_nothing_heavy() -> None:
    code = "import sys, factory.registry.registry; print([m for m in ('torch','numpy','pydantic','rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_lineage_has_the_bases_that_a_student_and_its_route_name(registry: Registry) -> None:
    """A word such as `teacher`, or a base that is gone, is left out."""
    with registry.stage("default-small-base") as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        base = registry.publish("base", "default-small-base", folder, {})
    manifest = {"base": base.reference, "route": ["teacher", "gone-base@4", base.reference]}
    with registry.stage("legal-small") as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        student = registry.publish("student", "legal-small", folder, manifest)
    assert registry.lineage([student]) == {base.reference: base}
    assert registry.lineage([]) == {}


@pytest.mark.parametrize("odd", [None, "odd", 7, {"id": "a"}, [], ["odd", None]])
def test_entries_are_the_mappings_of_a_list_and_nothing_else(odd: object) -> None:
    assert entries({"dataset": {"sources": [{"id": "a"}, "odd", None, {"id": "b"}]}}, "dataset", "sources") == [
        {"id": "a"},
        {"id": "b"},
    ]
    assert entries({"dataset": {"sources": odd}}, "dataset", "sources") == []
    assert entries({"dataset": odd}, "dataset", "sources") == []
    assert entries({"sources": odd}, "sources") == []
