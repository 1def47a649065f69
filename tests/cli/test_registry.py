"""``factory verify | history | demote | delete | import | reindex | gc``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import exporting
from support.manifests import publish
from support.workplace import Refused, Workplace

from factory.registry.registry import Registry


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """With two versions of a student and their base, and an empty cache."""
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    place = Workplace(tmp_path)
    for _ in range(2):
        publish(Registry(tmp_path / "registry"))
    return place


def damage(place: Workplace, number: int) -> None:
    path = place.root / "registry" / "students" / "healthcare-small" / str(number) / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"WEIGHTS")


def test_verify_says_of_every_version_whether_it_is_as_it_was_published(place: Workplace) -> None:
    result = place.run("verify")
    assert result.exit_code == 0, result.output
    references = ("healthcare-small@1", "healthcare-small@2", "default-small-base@1")
    assert sorted(result.stdout.splitlines()) == sorted(f"{ref}: as it was published" for ref in references)


def test_verify_fails_for_a_damaged_version_and_checks_a_base_with_its_student(place: Workplace) -> None:
    damage(place, 2)
    result = place.run("verify", "healthcare-small@2")
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert first.startswith("healthcare-small@2: adapter_model.safetensors was changed")
    assert second == "default-small-base@1: as it was published"
    assert json.loads(place.run("verify", "--json").stdout)["ok"] is False
    assert place.run("verify", "healthcare-small@1").exit_code == 0


def test_an_alias_comes_and_goes_and_its_history_stays(place: Workplace) -> None:
    assert "no alias was ever moved" in place.run("history").stdout
    place.run("promote", "healthcare-small@1", "trial")
    result = place.run("demote", "healthcare-small@trial")
    assert result.stdout == "healthcare-small@trial is no more; it was healthcare-small@1\n"
    assert len(place.run("history", "healthcare-small").stdout.splitlines()) == 3  # with the heading
    moves = json.loads(place.run("history", "--json").stdout)
    assert [(move["before"], move["number"]) for move in moves] == [(None, 1), (1, None)]


def test_demote_names_the_aliases_that_exist(place: Workplace, refused: Refused) -> None:
    assert "aliases of healthcare-small: none" in refused(place.run("demote", "healthcare-small@champion"))


def test_delete_says_what_is_gone_or_what_needs_it(place: Workplace, refused: Refused) -> None:
    assert "it is the base of healthcare-small@1" in refused(place.run("delete", "default-small-base@1"))
    assert place.run("delete", "healthcare-small@2").stdout == "deleted healthcare-small@2; its number is not used again\n"
    assert "healthcare-small has no version 2" in refused(place.run("show", "healthcare-small@2"))


def test_import_takes_a_version_in_or_says_why_not(place: Workplace, refused: Refused, tmp_path: Path) -> None:
    other, student = exporting.publish_student(tmp_path / "other")
    assert "import that first" in refused(place.run("import", str(student.folder)))
    base = other.resolve("mini-base").folder
    assert place.run("import", str(base)).stdout == f"{base} is now mini-base@1; promote it, and mini-base alone means it\n"
    assert json.loads(place.run("import", str(student.folder), "--json").stdout)["reference"] == "plants-mini@1"
    assert "imported from" in place.run("show", "plants-mini@1", "--all-metrics").stdout


def test_reindex_counts_versions_and_mends_a_damaged_ledger(place: Workplace) -> None:
    shutil.copytree(place.root / "registry/students/healthcare-small/1", place.root / "registry/students/healthcare-small/9")
    assert place.run("reindex").stdout == "3 versions, 1 folders that are none\n"
    (place.root / "registry" / "registry.json").write_text("{")
    assert "registry.json was damaged: aliases have to be promoted again" in place.run("reindex").stdout


def test_gc_shows_first_and_removes_then(place: Workplace) -> None:
    left = place.root / "registry" / ".staging" / "healthcare-small-0000"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    shown = place.run("gc", "--dry-run")
    assert "healthcare-small-0000" in shown.stdout and "4 B would be freed" in shown.stdout and left.exists()
    assert "4 B freed" in place.run("gc").stdout and not left.exists()
    assert json.loads(place.run("gc", "--json").stdout) == {"removed": True, "garbage": []}
    assert place.run("gc").stdout.strip() == "0 B freed"
