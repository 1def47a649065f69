from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.manifests import publish

from factory.errors import RegistryError
from factory.registry.ledger import read_ledger
from factory.registry.registry import Registry


def as_older_release(registry: Registry, aliases: str = "{}") -> None:
    """Without a ledger, with the file of aliases that there was before."""
    (registry.root / "registry.json").unlink()
    (registry.root / "aliases.json").write_text(aliases)


def test_every_move_of_an_alias_is_kept_with_who_when_and_from_what(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry)
    publish(registry, verdict={"status": "passed", "champion": "healthcare-small@1"})
    monkeypatch.setenv("LOGNAME", "ann")
    registry.promote("healthcare-small@1", "trial")
    monkeypatch.setenv("LOGNAME", "ben")
    registry.promote("healthcare-small@2", "trial")
    assert registry.resolve("healthcare-small@trial").number == 2
    removed = registry.demote("healthcare-small@trial")
    assert (removed.before, removed.number) == (2, None)
    found = registry.history("healthcare-small")
    assert [(move.by, move.before, move.number) for move in found] == [("ann", None, 1), ("ben", 1, 2), ("ben", 2, None)]
    assert all(move.at.endswith("Z") for move in found)
    assert registry.history("another") == []
    assert registry.aliases("healthcare-small") == {}


@pytest.mark.parametrize("ref", ["healthcare-small@champion", "healthcare-small", "nobody@champion", "healthcare-small@1", ""])
def test_what_is_no_alias_cannot_be_removed(registry: Registry, ref: str) -> None:
    publish(registry)
    registry.promote("healthcare-small@1", "trial")
    with pytest.raises(RegistryError, match="is no alias"):
        registry.demote(ref)
    assert registry.aliases("healthcare-small") == {"trial": 1}


def test_a_folder_that_was_copied_in_is_no_version(registry: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "other")
    publish(other)
    copied = publish(other)
    publish(registry)
    shutil.copytree(copied.folder, registry.root / "students" / "healthcare-small" / "2")
    with pytest.raises(RegistryError, match="it was copied in and not published here: .*factory import"):
        registry.resolve("healthcare-small@2")
    assert registry.resolve("healthcare-small").number == 1
    assert [one.number for one in registry.versions("student")] == [1]
    assert publish(registry).number == 3


def test_a_version_of_another_registry_in_the_place_of_one_is_found(registry: Registry, tmp_path: Path) -> None:
    ours, theirs = publish(registry), publish(Registry(tmp_path / "other"), seed=9)
    shutil.rmtree(ours.folder)
    shutil.copytree(theirs.folder, ours.folder)
    with pytest.raises(RegistryError, match="is not the one that was published"):
        registry.resolve("healthcare-small@1")


def test_a_version_that_is_put_back_from_a_backup_is_one_again(registry: Registry, tmp_path: Path) -> None:
    version = publish(registry)
    shutil.copytree(version.folder, tmp_path / "backup")
    shutil.rmtree(version.folder)
    shutil.copytree(tmp_path / "backup", version.folder)
    assert registry.resolve("healthcare-small").number == 1


# ------------------------------------------------------------------------------------------------- registries of older releases


def test_a_registry_of_an_older_release_goes_on(registry: Registry) -> None:
    publish(registry)
    publish(registry)
    as_older_release(registry, '{"healthcare-small": {"champion": 1}}')
    (registry.root / "students" / "healthcare-small" / ".last").write_text("7\n")
    assert registry.resolve("healthcare-small").number == 1
    assert len(registry.versions("student")) == 2
    assert publish(registry).number == 8  # 3 to 7 were deleted
    assert registry.resolve("healthcare-small@champion").number == 1
    assert [one.number for one in registry.versions("student")] == [1, 2, 8]
    assert registry.problems() == []


@pytest.mark.parametrize("note", [b"", b"three", b"\xff", b"-5", b"99999999999", "٣".encode()])
def test_a_number_file_that_is_damaged_is_recovered_from_the_folders(registry: Registry, note: bytes) -> None:
    publish(registry)
    as_older_release(registry)
    (registry.root / "students" / "healthcare-small" / ".last").write_bytes(note)
    assert publish(registry).number == 2


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a": {"champion": 1e999}}', '{"\\ud800": {"champion": 1}}', "[1]"])
def test_aliases_that_are_none_are_one_line(registry: Registry, content: str) -> None:
    publish(registry)
    as_older_release(registry, content)
    with pytest.raises(RegistryError, match=r"aliases\.json was changed or is damaged"):
        registry.versions()


# ---------------------------------------------------------------------------------------------------------------- damage


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_is_found_and_reindex_mends_it(registry: Registry, data: st.DataObject) -> None:
    if not registry.versions("student"):
        publish(registry)
        registry.promote("healthcare-small@1")
    path = registry.root / "registry.json"
    content = bytearray(path.read_bytes())
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    try:
        same = read_ledger(registry.root).aliases == {"healthcare-small": {"champion": 1}}  # another space between two entries
        assert same
    except RegistryError as error:
        assert "restore it from a backup, or run `factory reindex` and promote again" in str(error)
    registry.reindex()
    assert registry.resolve("healthcare-small@1").number == 1
    if not registry.aliases("healthcare-small"):
        registry.promote("healthcare-small@1")


def test_reindex_keeps_a_ledger_that_is_sound_and_trusts_no_copy(registry: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "other")
    publish(registry)
    registry.promote("healthcare-small@1")
    shutil.copytree(publish(other, "legal-small").folder, registry.root / "students" / "legal-small" / "1")
    assert registry.reindex() is False
    assert registry.aliases("healthcare-small") == {"champion": 1}
    with pytest.raises(RegistryError, match="copied in"):
        registry.resolve("legal-small@1")


def test_a_ledger_is_plain_json(registry: Registry) -> None:
    version = publish(registry)
    registry.promote("healthcare-small@1")
    content = json.loads((registry.root / "registry.json").read_text())
    assert content["published"]["healthcare-small"] == {"1": version.manifest.manifest_sha256}
    [move] = content["moves"]
    assert (move["name"], move["alias"], move["from"], move["to"]) == ("healthcare-small", "champion", None, 1)
