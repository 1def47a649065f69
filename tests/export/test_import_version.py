"""A version of another registry is taken in whole and checked, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import exporting
from support.tiny import CPU

from factory.errors import ModelResolutionError, RegistryError
from factory.export.import_version import import_version
from factory.inference import load_version
from factory.registry.plain_json import checksum
from factory.registry.registry import Registry
from factory.registry.versions import Version


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, Version]:
    return exporting.publish_student(tmp_path_factory.mktemp("other"))


@pytest.fixture
def sent(published: tuple[Registry, Version], tmp_path: Path) -> dict[str, Path]:
    """``sent["student"]``: folders as they arrive from the other registry."""
    registry, student = published
    folders = {"student": student.folder, "base": registry.resolve(str(student.base)).folder}
    return {kind: Path(shutil.copytree(folder, tmp_path / kind)) for kind, folder in folders.items()}


@pytest.fixture
def here(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "here")


def edit(folder: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool = True) -> None:
    """Change a manifest; ``sealed``: as somebody does who means it, with the checksum that fits."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.chmod(0o644)
    path.write_text(json.dumps(content | ({"manifest_sha256": checksum(content)} if sealed else {})))


def replace(folder: Path, name: str, content: bytes, *, listed: bool = True) -> None:
    """Put a file into a folder, and into its manifest where it is ``listed``."""
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    if listed:
        import hashlib

        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        edit(folder, lambda manifest: manifest["files"].update({name: entry}))


def test_a_student_follows_its_base_and_answers_as_it_did(
    published: tuple[Registry, Version], sent: dict[str, Path], here: Registry
) -> None:
    there, original = published
    base, student = import_version(sent["base"], here), import_version(sent["student"], here)
    assert (base.reference, student.reference, student.base) == ("mini-base@1", "plants-mini@1", "mini-base@1")
    assert student.manifest.imported is not None
    assert student.manifest.imported.manifest_sha256 == original.manifest.manifest_sha256
    assert here.verify_all() == {"mini-base@1": [], "plants-mini@1": []} and here.problems() == []
    ours, theirs = load_version(student, here, CPU).model, load_version(original, there, CPU).model
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_a_bare_name_means_an_imported_version_once_it_is_promoted(sent: dict[str, Path], here: Registry) -> None:
    import_version(sent["base"], here)
    import_version(sent["student"], here)
    with pytest.raises(RegistryError, match="1 was imported and not promoted"):
        here.resolve("plants-mini")
    assert here.resolve("plants-mini@1").number == 1
    here.promote("plants-mini@1")
    assert here.resolve("plants-mini").number == 1


def test_numbers_are_this_registrys_own(published: tuple[Registry, Version], sent: dict[str, Path], tmp_path: Path) -> None:
    here, _ = exporting.publish_student(tmp_path, "narrow")  # has a mini-base@1 and a plants-mini@1 of its own
    assert import_version(sent["base"], here).reference == "mini-base@2"
    student = import_version(sent["student"], here)
    assert (student.reference, student.base) == ("plants-mini@2", "mini-base@2")
    assert here.resolve("plants-mini").number == 1


def test_the_same_version_is_taken_in_once_also_through_a_third_registry(
    sent: dict[str, Path], here: Registry, tmp_path: Path
) -> None:
    base = import_version(sent["base"], here)
    with pytest.raises(RegistryError, match="it is here already, as mini-base@1"):
        import_version(sent["base"], here)
    third = Registry(tmp_path / "third")
    again = import_version(base.folder, third)
    assert again.manifest.imported is not None and again.manifest.imported.reference == "mini-base@1"
    with pytest.raises(RegistryError, match="it is here already"):
        import_version(again.folder, here)


def test_a_student_waits_for_its_base(sent: dict[str, Path], here: Registry) -> None:
    with pytest.raises(RegistryError, match=r"its base mini-base@1 is not in .*: import that first"):
        import_version(sent["student"], here)
    assert here.versions() == [] and here.problems() == []


def test_records_stay_behind_and_the_card_is_written_anew(sent: dict[str, Path], here: Registry) -> None:
    (sent["base"] / "records.jsonl").write_text('{"kind": "override", "at": "2026-01-01T00:00:00Z"}\n')
    replace(sent["base"], "README.md", b"<script>alert(1)</script>")
    version = import_version(sent["base"], here)
    assert version.records == ()
    assert "script" not in (version.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", b"\x80\x04"),
        ("modeling_llama.py", b"import os"),
        ("adapter.json", b"{}"),
        (".hidden", b""),
        ("tokenizer.model", b"\x0a"),
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "beside"])
def test_only_safetensors_and_known_json_are_taken_in(
    sent: dict[str, Path], here: Registry, name: str, content: bytes, listed: bool
) -> None:
    replace(sent["base"], name, content, listed=listed)
    with pytest.raises(RegistryError, match=f"{name} is no file that a base has"):
        import_version(sent["base"], here)
    assert here.versions() == [] and here.problems() == []


@pytest.mark.parametrize("path", ["../../escape", "/etc/passwd", "a/../../b", "tokenizer.json/../../x"])
def test_no_file_is_written_elsewhere(sent: dict[str, Path], here: Registry, path: str) -> None:
    edit(sent["base"], lambda manifest: manifest["files"].update({path: {"sha256": "ab" * 32, "bytes": 1}}))
    with pytest.raises(RegistryError, match="is no file that a base has"):
        import_version(sent["base"], here)


def test_links_and_pipes_are_refused(sent: dict[str, Path], here: Registry) -> None:
    weights = sent["base"] / "model.safetensors"
    weights.rename(sent["base"].parent / "elsewhere")
    weights.symlink_to(sent["base"].parent / "elsewhere")
    with pytest.raises(RegistryError, match=r"model\.safetensors is a link or a device"):
        import_version(sent["base"], here)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(RegistryError, match=r"model\.safetensors is a link or a device"):
        import_version(sent["base"], here)


@pytest.mark.parametrize("kind", ["base", "student"])
def test_a_changed_byte_in_any_file_is_found(sent: dict[str, Path], here: Registry, kind: str) -> None:
    if kind == "student":
        import_version(sent["base"], here)
    before = here.versions()
    for path in sorted(sent[kind].iterdir()):
        whole = path.read_bytes()
        path.chmod(0o644)
        flipped = bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]])
        for damaged in (flipped, whole[:-9], whole + b"x", b""):
            path.write_bytes(damaged)
            with pytest.raises(RegistryError, match="cannot be imported"):
                import_version(sent[kind], here)
        path.write_bytes(whole)
    assert here.versions() == before and here.problems() == []
    import_version(sent[kind], here)


def test_an_edited_manifest_is_found(sent: dict[str, Path], here: Registry) -> None:
    edit(sent["base"], lambda manifest: manifest.update(seed=7), sealed=False)
    with pytest.raises(RegistryError, match="was changed after publishing"):
        import_version(sent["base"], here)


def test_weights_that_do_not_fit_are_refused(sent: dict[str, Path], here: Registry, tmp_path: Path) -> None:
    config = json.loads((sent["base"] / "config.json").read_bytes())
    replace(sent["base"], "config.json", json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]}).encode())
    with pytest.raises(ModelResolutionError, match=r"do not fit its config\.json: .* has shape"):
        import_version(sent["base"], here)
    assert here.versions() == [] and here.problems() == []


def test_an_adapter_of_another_rank_is_refused(sent: dict[str, Path], here: Registry) -> None:
    import_version(sent["base"], here)
    settings = json.loads((sent["student"] / "adapter_config.json").read_bytes())
    replace(sent["student"], "adapter_config.json", json.dumps(settings | {"r": 8}).encode())
    with pytest.raises(ModelResolutionError, match="does not fit its base"):
        import_version(sent["student"], here)
    assert [one.kind for one in here.versions()] == ["base"]


@pytest.mark.parametrize("what", ["missing", "empty", "file", "registry"])
def test_what_is_no_version_is_one_line(published: tuple[Registry, Version], here: Registry, tmp_path: Path, what: str) -> None:
    places = {
        "missing": tmp_path / "none",
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
        "registry": published[0].root,
    }
    places["empty"].mkdir()
    places["file"].write_text("x")
    with pytest.raises(RegistryError, match="cannot be imported") as caught:
        import_version(places[what], here)
    assert "\n" not in str(caught.value)
    assert here.versions() == []
