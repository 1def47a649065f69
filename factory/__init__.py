"""Distils one teacher into small domain students, kept in a local registry.

    from pathlib import Path
    from factory import Registry, build_student, load_specs, make_context

    specs = load_specs(Path("domains"))
    context = make_context(specs, specs.family("default"), profile="demo", registry=Registry("registry"))
    version = build_student(context, "healthcare", "small")

ModelResolver are imported when they are first used, so ``import factory`` and the command line load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.config.load import load_specs
    from factory.config.schema import DomainSpec, FamilySpec, PoolSpec, Specs
    from factory.data.router import DomainRouter, Route
    from factory.errors import (
        DataError,
        ExportError,
        FactoryError,
        ModelResolutionError,
        RegistryError,
        ServeError,
        SpecError,
        TrainingError,
    )
    from factory.export.export import export_version
    from factory.export.metadata import ParityReport
    from factory.models.teacher import Teacher
    from factory.pipeline.build import build_student
    from factory.pipeline.context import make_context
    from factory.registry.manifest import EvalReport
    from factory.registry.registry import Registry
    from factory.registry.versions import Summary, Version

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "DomainRouter",
    "DomainSpec",
    "EvalReport",
    "ExportError",
    "FactoryError",
    "FamilySpec",
    "ModelResolutionError",
    "ParityReport",
    "PoolSpec",
    "Registry",
    "RegistryError",
    "Route",
    "ServeError",
    "SpecError",
    "Specs",
    "Summary",
    "Teacher",
    "TrainingError",
    "Version",
    "__version__",
    "build_student",
    "export_version",
    "load_specs",
    "make_context",
]

HOMES = {
    "factory.pipeline.build": ("build_student",),
    "factory.pipeline.context": ("make_context",),
    "factory.data.router": ("DomainRouter", "Route"),
    "factory.errors": (
        "DataError",
        "ExportError",
        "FactoryError",
        "ModelResolutionError",
        "RegistryError",
        "ServeError",
        "SpecError",
        "TrainingError",
    ),
    "factory.export.export": ("export_version",),
    "factory.export.metadata": ("ParityReport",),
    "factory.models.teacher": ("Teacher",),
    "factory.registry.manifest": ("EvalReport",),
    "factory.registry.versions": ("Summary", "Version"),
    "factory.registry.registry": ("Registry",),
    "factory.config.load": ("load_specs",),
    "factory.config.schema": ("DomainSpec", "FamilySpec", "PoolSpec", "Specs"),
}


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'factory' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
