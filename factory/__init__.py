"""Distils one teacher into small domain students, kept in a local registry.

    from pathlib import Path
    from factory import Factory, Registry, load_specs

    specs = load_specs(Path("domains"))
    factory = Factory(specs, specs.family("default"), profile="demo", registry=Registry("registry"))
    version = factory.student("healthcare", "small")

Names are imported when they are first used, so ``import factory`` and the command line load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.build import Factory
    from factory.data.router import DomainRouter, Route
    from factory.errors import (
        DataError,
        ExportError,
        FactoryError,
        ReferenceError,
        RegistryError,
        ServeError,
        SpecError,
        TrainingError,
    )
    from factory.export.export import export_version
    from factory.export.papers import Certificate
    from factory.loading import load_specs
    from factory.manifests import Summary, Version
    from factory.models.teacher import Teacher
    from factory.quality.evaluate import EvalReport
    from factory.registry import Registry
    from factory.spec import DomainSpec, FamilySpec, PoolSpec, Specs

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "DataError",
    "DomainRouter",
    "DomainSpec",
    "EvalReport",
    "ExportError",
    "Factory",
    "FactoryError",
    "FamilySpec",
    "PoolSpec",
    "ReferenceError",
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
    "export_version",
    "load_specs",
]

HOMES = {
    "factory.build": ("Factory",),
    "factory.data.router": ("DomainRouter", "Route"),
    "factory.errors": (
        "DataError",
        "ExportError",
        "FactoryError",
        "ReferenceError",
        "RegistryError",
        "ServeError",
        "SpecError",
        "TrainingError",
    ),
    "factory.export.export": ("export_version",),
    "factory.export.papers": ("Certificate",),
    "factory.models.teacher": ("Teacher",),
    "factory.quality.evaluate": ("EvalReport",),
    "factory.manifests": ("Summary", "Version"),
    "factory.registry": ("Registry",),
    "factory.loading": ("load_specs",),
    "factory.spec": ("DomainSpec", "FamilySpec", "PoolSpec", "Specs"),
}


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'factory' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
