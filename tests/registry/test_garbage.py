from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.manifests import publish

from factory.errors import StorageError
from factory.registry.garbage import collect, find_garbage
from factory.registry.registry import Registry

Make = Callable[..., Path]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """``cached("data/law-3f", days=40)``: an entry of the cache that was last used so long ago."""
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))

    def make(name: str, days: float, content: str = "{}") -> Path:
        path = tmp_path / "home" / name
        path.mkdir(parents=True)
        (path / "manifest.json").write_text(content)
        age(path, days)
        return path

    return make


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    for one in (path, *(path.iterdir() if path.is_dir() else ())):
        os.utime(one, (then, then))


def found(registry: Registry, days: float = 30) -> dict[str, str]:
    return {one.path.name: one.why for one in find_garbage(registry, days)}


@pytest.mark.parametrize("kind", ["completions", "data", "distill", "experiments", "heal", "rivals", "routers", "serve", "targets"])
def test_cached_work_is_garbage_once_it_was_not_used_for_weeks(registry: Registry, cached: Make, kind: str) -> None:
    cached(f"{kind}/old", days=31)
    cached(f"{kind}/new", days=29)
    assert found(registry) == {"old": "not used for 30 days"}
    assert found(registry, days=28) == {"old": "not used for 28 days", "new": "not used for 28 days"}


def test_models_are_never_garbage(registry: Registry, cached: Make) -> None:
    cached("models/teacher", days=900)
    assert found(registry, days=0) == {}


def test_the_rows_of_a_version_stay_while_it_is_there(registry: Registry, cached: Make) -> None:
    cached("data/law-1", days=99, content=json.dumps({"fingerprint": "mine"}))
    publish(registry, dataset={**student_dataset(), "fingerprint": "mine"})
    assert found(registry) == {}
    registry.delete("healthcare-small@1")
    assert found(registry) == {"law-1": "not used for 30 days"}


def student_dataset() -> dict[str, Any]:
    from support.manifests import COMMON

    dataset: dict[str, Any] = COMMON["dataset"]
    return dataset


def test_what_a_living_build_holds_stays(registry: Registry, cached: Make) -> None:
    entry = cached("distill/held", days=99)
    with FileLock(f"{entry}.lock"):
        age(Path(f"{entry}.lock"), 99)
        assert found(registry) == {}
    assert set(found(registry)) == {"held", "held.lock"}


def test_temporary_folders_of_yesterday_are_garbage(registry: Registry, cached: Make) -> None:
    cached("models/.teacher-x1/new", days=2)
    cached("data/.law-x2", days=0.5)
    age(cached("data/.law-x3", days=0), 2)
    age(Path(os.environ["FACTORY_HOME"]) / "models/.teacher-x1", 2)
    assert found(registry) == {".teacher-x1": "left by a process that was killed", ".law-x3": "left by a process that was killed"}


def test_what_is_collected_is_gone_and_the_rest_stays(registry: Registry, cached: Make) -> None:
    old, new = cached("targets/old", days=99), cached("targets/new", days=1)
    with registry.stage("healthcare-small") as folder:
        left = folder.parent / "killed-1"
        left.mkdir()
        [first, second] = find_garbage(registry)
        assert (first.path, second.path, second.bytes) == (left, old, 2)
        for one in (first, second, second):  # twice: another `factory gc` was quicker
            collect(registry, one)
        assert folder.is_dir()
    assert not old.exists() and not left.exists() and new.exists()
    assert find_garbage(registry) == []


def test_what_the_disk_refuses_to_remove_is_one_line(registry: Registry, cached: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cached("targets/old", days=99)
    [garbage] = find_garbage(registry)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StorageError, match=r"targets/old cannot be removed \(Permission denied\)"):
        collect(registry, garbage)
