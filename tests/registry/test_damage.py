"""A damaged version is neither listed nor resolved, is reported, and neither hides nor breaks another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.manifests import publish

from factory.errors import RegistryError
from factory.registry.plain_json import parse_json
from factory.registry.registry import Registry
from factory.registry.versions import Version


def rewrite(version: Version, content: bytes) -> None:
    path = version.folder / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(content)


def edit(version: Version, *place: Any, value: Any) -> None:
    """The manifest with another value at a place."""
    content = json.loads((version.folder / "manifest.json").read_bytes())
    inner = content
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    rewrite(version, json.dumps(content).encode())


def check(registry: Registry, bad: Version) -> str:
    """What is said of the bad version; everything else is as if it were not there."""
    others = [reference for reference in ("default-small-base@1", "healthcare-small@1") if reference != bad.reference]
    for _ in range(2):  # the second time from the index
        assert sorted(one.reference for one in registry.versions()) == others
    with pytest.raises(RegistryError, match="cannot be used") as caught:
        registry.resolve(bad.reference)
    assert registry.resolve("healthcare-small").number == 1
    assert list(registry.invalid()) == [(bad.kind, bad.name, bad.number)]
    [problem] = registry.problems()
    assert problem.startswith(f"students/{bad.name}/{bad.number}: ") and "\n" not in problem + str(caught.value)
    problem.encode()  # a terminal can print it
    return problem


# -------------------------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"{}", b'{"kind": "student", "seed": ' + b"9" * 5000 + b"}", b"NaN"],
    ids=["empty", "deep lists", "deep objects", "no UTF-8", "no fields", "5000 digits", "NaN"],
)
def test_what_is_no_manifest_is_no_version(registry: Registry, content: bytes) -> None:
    publish(registry)
    bad = publish(registry)
    rewrite(bad, content)
    assert "manifest.json" in check(registry, bad)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("teacher", "parameters"), 10**30),
        (("teacher", "parameters"), 2**53),
        (("evaluation", "sizes", "student", "parameters"), 10**30),
        (("evaluation", "sizes", "student", "bytes"), -1),
        (("evaluation", "metrics", "kl", "n"), 10**30),
        (("dataset", "counts", "train"), 10**30),
        (("notice",), "\ud800"),
        (("dataset", "sources", 0, "id"), "half a pair \udfff"),
        (("created",), "yesterday"),
        (("created",), None),
        (("created",), "2026-13-45T00:00:00Z"),
        (("created",), "2026-11-25T00:53:09"),
        (("evaluation",), [1]),
        (("evaluation",), None),
        (("version",), 10**30),
        (("version",), True),
        (("files", "adapter_model.safetensors", "bytes"), 8),
        (("files",), {"../1/adapter_model.safetensors": {"sha256": "0" * 64, "bytes": 7}}),
        (("files",), {"tokenizer": {"sha256": "0" * 64, "bytes": 4096}}),
    ],
)
def test_a_field_that_breaks_others_is_refused(registry: Registry, place: tuple[Any, ...], value: Any) -> None:
    publish(registry)
    bad = publish(registry)
    edit(bad, *place, value=value)
    check(registry, bad)


ODD = (None, True, -1, 2**53, 10**40, 1e308, "", "\ud800", "x" * 70_000, [], {}, [[]], {"a": 1})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_listed_resolved_and_reported_are_one_decision(registry: Registry, data: st.DataObject) -> None:
    """Whatever value stands anywhere in a manifest."""
    version = publish(registry, "odd-small")
    try:
        inner: Any = json.loads((version.folder / "manifest.json").read_bytes())
        place: list[Any] = []
        while isinstance(inner, dict | list) and inner and (not place or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            place, inner = [*place, key], inner[key]
        edit(version, *place, value=data.draw(st.sampled_from(ODD)))
        try:
            resolved = [registry.resolve(version.reference).reference]
        except RegistryError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            resolved = []
        listed = [one.reference for one in registry.versions("student")]
        refused = [f"{name}@{number}" for _, name, number in registry.invalid()]
        assert (listed, refused) == (resolved, [] if resolved else [version.reference])
        assert [one.reference for one in registry.versions("base")] == ["default-small-base@1"]
    finally:
        shutil.rmtree(version.folder)


@pytest.mark.parametrize("data", [b'"\\ud800"', b'"\\udc00x"', b"NaN", b"-Infinity", b"[" * 300, b"9" * 5000, b"\xed\xa0\x80", b"1 2"])
def test_json_that_is_never_written_is_not_read(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(data)


# -------------------------------------------------------------------------------------------------------------- the folder


def linked(path: Path, target: Path | str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


LINKS: dict[str, Callable[[Version, Path], None]] = {
    "weights elsewhere": lambda bad, elsewhere: linked(bad.folder / "adapter_model.safetensors", elsewhere / "adapter_model.safetensors"),
    "a card elsewhere": lambda bad, _: linked(bad.folder / "README.md", "/etc/hostname"),
    "the manifest": lambda bad, elsewhere: linked(bad.folder / "manifest.json", elsewhere / "manifest.json"),
    "records": lambda bad, elsewhere: linked(bad.folder / "records.jsonl", elsewhere / "records.jsonl"),
    "nowhere": lambda bad, _: linked(bad.folder / "more", "nowhere"),
    "a pipe": lambda bad, _: os.mkfifo(bad.folder / "pipe"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_in_a_version_is_refused_everywhere(registry: Registry, tmp_path: Path, kind: str) -> None:
    publish(registry)
    bad = publish(registry)
    shutil.copytree(bad.folder, tmp_path / "elsewhere")
    LINKS[kind](bad, tmp_path / "elsewhere")
    assert "is a link or a device; a version has files of its own only, copy the file instead" in check(registry, bad)
    assert any("is a link" in problem for problem in registry.verify(bad))
    with pytest.raises(RegistryError, match="is a link"):
        registry.promote(bad.reference)


def test_a_folder_that_is_a_link_is_no_version(registry: Registry, tmp_path: Path) -> None:
    publish(registry)
    bad = publish(registry)
    shutil.move(bad.folder, tmp_path / "elsewhere")
    bad.folder.symlink_to(tmp_path / "elsewhere")
    assert "its folder is a link" in check(registry, bad)


def test_a_linked_folder_inside_is_refused(registry: Registry, tmp_path: Path) -> None:
    publish(registry)
    bad = publish(registry)
    shutil.move(bad.folder / "tokenizer", tmp_path / "elsewhere")
    (bad.folder / "tokenizer").symlink_to(tmp_path / "elsewhere")
    assert "tokenizer is a link" in check(registry, bad)


def test_a_file_that_is_gone_or_cut_off_takes_its_version_from_the_list_until_it_is_back(registry: Registry) -> None:
    publish(registry)
    bad = publish(registry)
    weights = bad.folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    assert "adapter_model.safetensors is missing" in check(registry, bad)
    weights.write_bytes(content[:-1])
    assert "adapter_model.safetensors was changed: its length differs" in check(registry, bad)
    weights.write_bytes(content)
    assert len(registry.versions("student")) == 2 and registry.problems() == []


@pytest.mark.parametrize("name", ["Healthcare", "a b", os.fsdecode(b"healthcare-\xff"), "x" * 101])
def test_a_folder_whose_name_is_none_is_reported_and_hides_nothing(registry: Registry, name: str) -> None:
    version = publish(registry)
    shutil.copytree(version.folder, registry.root / "students" / name / "1")
    assert [one.reference for one in registry.versions("student")] == [version.reference]
    [problem] = registry.problems()
    assert "no name of a student: use lower-case letters" in problem
    problem.encode()
    with pytest.raises(RegistryError, match="bad name"):
        registry.resolve(f"{name}@1")
