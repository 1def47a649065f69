"""What the engines load: GGUF files of published versions, written at the first request that needs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader
from support import exporting
from support.workplace import Workplace

from factory.config.load import load_specs
from factory.config.quantization import Quantization
from factory.pipeline.context import FamilyModels
from factory.registry.registry import Registry
from factory.serve.engines import GgufFiles
from factory.serve.server import Options, make_app


def no_models() -> FamilyModels:
    raise AssertionError("the teacher's files were asked for")


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
