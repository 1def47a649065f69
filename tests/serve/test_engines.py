"""What the engines load: GGUF files of published versions, written at the first request that needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from support import exporting
from support.workplace import Workplace

from factory.config.load import load_specs
from factory.config.quantization import Quantization
from factory.errors import RegistryError
from factory.pipeline.context import FamilyModels
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.serve.engines import GgufFiles
from factory.serve.server import Options, make_app


def no_models() -> FamilyModels:
    raise AssertionError("the teacher's files were asked for")


Published = tuple[Registry, Version]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A tiny student on its base, and a cache of its own."""
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    return exporting.publish_student(tmp_path)


def license_of(path: Path) -> str:
    return str(GGUFReader(path).fields["general.license"].contents())


def test_a_served_base_carries_its_licence_and_needs_no_teacher(built: Workplace) -> None:
    registry = Registry(built.root / "registry")
    base = registry.resolve("default-mini-base@1")
    path = GgufFiles(registry, no_models, "q8_0").base(base.reference)
    assert license_of(path) == base.manifest.teacher.license == "apache-2.0"


def test_a_file_is_written_once(built: Workplace) -> None:
    files = GgufFiles(Registry(built.root / "registry"), no_models, "q8_0")
    version = files.registry.resolve("plants-mini@1")
    written = files.adapter(version).stat().st_mtime_ns
    assert files.adapter(version).stat().st_mtime_ns == written


Damage = Callable[[Path], object]
DAMAGE: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "another byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
    "gone": lambda path: path.unlink(),
    "no checksum": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
    "another checksum": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_cached_file_that_is_not_as_it_was_written_is_written_again(published: Published, damage: str) -> None:
    registry, version = published
    files = GgufFiles(registry, no_models, "q8_0")
    for make in (lambda: files.adapter(version), lambda: files.base("mini-base@1")):
        path = make()
        whole = path.read_bytes()
        DAMAGE[damage](path)
        assert make() == path and path.read_bytes() == whole


def test_no_file_is_made_of_a_damaged_version_and_its_repair_is_served(published: Published) -> None:
    registry, version = published
    files, weights = GgufFiles(registry, no_models, "q8_0"), version.folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RegistryError, match=r"plants-mini@1 is damaged: adapter_model\.safetensors was changed"):
        files.adapter(version)
    weights.write_bytes(whole)
    assert GGUFReader(files.adapter(version)).tensors


def test_making_the_app_loads_no_model(workplace: Workplace) -> None:
    """The folders of teacher and encoder are not there."""
    specs = load_specs(workplace.domains)
    assert make_app(Registry(workplace.root / "registry"), specs, specs.family("default"), Options()).routes


def test_a_base_is_served_on_the_grid_that_it_was_rounded_to(tmp_path: Path) -> None:
    registry, version = exporting.publish_student(tmp_path, grid="q5_1")
    assert GgufFiles(registry, no_models, None).base(version.base or "").name == "q5_1.gguf"
    assert GgufFiles(registry, no_models, "f16").base(version.base or "").name == "f16.gguf"


@pytest.mark.parametrize("quantization", ["f16", "q4"])
def test_each_quantization_has_a_file_of_its_own(built: Workplace, quantization: Quantization) -> None:
    files = GgufFiles(Registry(built.root / "registry"), no_models, quantization)
    assert files.base("default-mini-base@1").name == f"{quantization}.gguf"
