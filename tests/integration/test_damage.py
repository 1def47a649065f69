"""A flipped bit, a file cut off or emptied, in each file that is read again later: found before use, and mended or named.

What was made can be made again: a build drops the damaged entry of ``FACTORY_HOME``, says so in one line, and its result is
that of an undisturbed build. What was published cannot: who loads it is told which file of which version, and what to do.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.damage import damage, damages
from support.workplace import Refused, Workplace

import factory.pipeline.build
from factory.errors import FactoryError
from factory.inference import load_version
from factory.registry.registry import Registry
from factory.registry.versions import Version

STUDENT = "students/plants-mini/1/adapter_model.safetensors"
BASE = "bases/default-mini-base/1/model.safetensors"
UNREAD = (".lock", "events.out.tfevents", "plants-mini-")  # hold nothing, only people read them, or a build's note


# --------------------------------------------------------------------------------------------------------------- registry


def files_of(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_byte_of_a_version_or_its_base_is_loaded(built: Workplace, data: st.DataObject) -> None:
    registry, cpu = Registry(built.root / "registry"), torch.device("cpu")
    version = registry.resolve("plants-mini@1")
    path = data.draw(st.sampled_from(files_of(version.folder, registry.resolve("default-mini-base@1").folder)))
    content, state = path.read_bytes(), path.stat()
    owner = "plants-mini@1" if version.folder in path.parents else "default-mini-base@1"
    path.chmod(0o644)
    try:
        path.write_bytes(data.draw(damages(content)))
        with pytest.raises(FactoryError) as caught:
            load_version(registry.resolve("plants-mini@1"), registry, cpu)
        line = str(caught.value)
        assert "\n" not in line and owner in line
        assert path.name in line or "manifest" in line
    finally:
        path.write_bytes(content)
        path.chmod(state.st_mode)
    load_version(registry.resolve("plants-mini@1"), registry, cpu)


@pytest.mark.parametrize(
    "whose", ["students/plants-mini/1/adapter_model.safetensors", "bases/default-mini-base/1/model.safetensors"]
)
@pytest.mark.parametrize(
    "command",
    [
        ("ask", "plants-mini@1", "what is the color of oak ?"),
        ("explain", "plants-mini@1", "what is"),
        ("review", "plants-mini@1", "--out", "review.csv"),
        ("export", "plants-mini@1", "--format", "merged", "--to", "out"),
        ("promote", "plants-mini@1", "--override", "tests have no gates"),
        ("build", "plants", "--base", "default-mini-base@1"),
    ],
    ids=lambda command: command[0],
)
def test_each_command_names_the_damaged_version_and_how_to_mend_it(
    built: Workplace, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, command: tuple[str, ...]
) -> None:
    if (command[0] == "build" and whose.startswith("students")) or (command[0] == "promote" and whose.startswith("bases")):
        pytest.skip("it does not read that file")
    root = tmp_path / "place"
    shutil.copytree(built.root, root)
    monkeypatch.chdir(tmp_path)
    damage(root / "registry" / whose, random.Random(1))
    line = refused(Workplace(root).run(*command))
    _, name, number, file = whose.split("/")
    assert f"{name}@{number}" in line and file in line
    assert "restore" in line and "build it again" in line


# ------------------------------------------------------------------------------------------------------------------ caches


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, built_once: Workplace) -> Workplace:
    """A second build, stopped before it was published: everything that a build keeps is in its home."""
    root = tmp_path_factory.mktemp("stopped")
    shutil.copytree(built_once.root, root, dirs_exist_ok=True)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place = Workplace(root)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTORY_HOME", str(root / "home"))
        patched.setattr(factory.pipeline.build, "publish_student", stop)
        assert place.run("build", "plants").exit_code == 130
    return place


def kept_files(place: Workplace) -> list[Path]:
    return [path for path in files_of(place.root / "home") if not any(name in path.name for name in UNREAD)]


def build(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> tuple[Version, str]:
    monkeypatch.setenv("FACTORY_HOME", str(place.root / "home"))
    result = place.run("build", "plants")
    assert result.exit_code == 0, (result.output, result.exception)
    return Registry(place.root / "registry").resolve("plants-mini@2"), result.stderr


def test_every_kind_of_cache_is_in_the_test(stopped: Workplace) -> None:
    home = stopped.root / "home"
    assert {path.relative_to(home).parts[0] for path in kept_files(stopped)} == {
        "completions", "data", "distill", "routers", "targets",
    }  # fmt: skip
    assert {path.suffix for path in kept_files(stopped)} >= {
        ".jsonl",
        ".arrow",
        ".npy",
        ".npz",
        ".bin",
        ".safetensors",
        ".pt",
        ".json",
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_a_home_whose_every_file_is_damaged_heals_and_says_so(
    stopped: Workplace, built_once: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    shutil.copytree(stopped.root, tmp_path / "place")
    place, rng = Workplace(tmp_path / "place"), random.Random(seed)
    for path in kept_files(place):
        damage(path, rng)
    version, said = build(place, monkeypatch)
    assert {"completions", "data", "distill", "routers", "targets"} <= {
        line.removeprefix(f"{place.root}/home/").split("/")[0] for line in said.splitlines() if "damaged" in line
    }
    first = Registry(place.root / "registry").resolve("plants-mini@1")
    assert version.manifest.files["adapter_model.safetensors"] == first.manifest.files["adapter_model.safetensors"]
    assert version.manifest.evaluation.metrics["kl"] == first.manifest.evaluation.metrics["kl"]


@pytest.mark.slow
@pytest.mark.big
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_damaged_file_of_a_home_changes_no_build(
    stopped: Workplace, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(stopped.root, root, dirs_exist_ok=True)
    path = data.draw(st.sampled_from(kept_files(Workplace(root))))
    path.write_bytes(data.draw(damages(path.read_bytes())))
    with pytest.MonkeyPatch.context() as patched:
        version, _ = build(Workplace(root), patched)
    first = Registry(root / "registry").resolve("plants-mini@1")
    assert version.manifest.files["adapter_model.safetensors"] == first.manifest.files["adapter_model.safetensors"]
    assert version.manifest.evaluation.metrics["kl"] == first.manifest.evaluation.metrics["kl"]
    shutil.rmtree(root)
