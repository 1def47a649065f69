"""``factory doctor``: what this machine has, what is cached, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factory import cache
from factory.cli.context import read_domains
from factory.config.schema import FamilySpec, ModelSpec
from factory.errors import FactoryError
from factory.registry.registry import Registry
from factory.reports.format import format_number

DISTRIBUTION = "student-factory"
REINSTALL = "pip install -e . -c constraints.txt"
MIN_MEMORY = 6 << 30  # bytes; a build of the default family peaks below this
MIN_DISK = 5 << 30  # bytes; models, soft targets and checkpoints of the default family
MODELS = "models"  # the folder of FACTORY_HOME that holds model folders


@dataclass(frozen=True)
class Finding:
    """A line of the report. ``missing`` can be fetched; ``problem`` is damage, or would stop a build."""

    what: str
    state: Literal["ok", "missing", "warning", "problem"]
    detail: str
    fix: str = ""  # the command that helps, or what to do


def examine(domains: Path, registry: Path, *, verify: bool = False) -> list[Finding]:
    """``examine(Path("domains"), Path("registry"))``; ``verify`` reads every byte of models and versions."""
    return [
        *_machine(),
        *_libraries(),
        *_device(),
        *_home(verify),
        *_cached_models(verify),
        *_specs(domains),
        *_registry(registry, verify),
    ]


def can_build(findings: list[Finding]) -> bool:
    """``can_build(examine(...))``: nothing is a problem; what is only missing can be fetched."""
    return all(finding.state != "problem" for finding in findings)


def fetch_models(family: FamilySpec, root: Path) -> list[str]:
    """``fetch_models(specs.family("default"), specs.root)``: fetches a family's models; returns their references."""
    from factory.models.references import resolve
    from factory.models.templates import resolve_teacher

    bases = [size.base for size in family.sizes.values() if size.base is not None]
    teachers = [] if family.api else [family.weights]
    for teacher in teachers:
        resolve_teacher(teacher, root=root)
    for spec in (family.encoder, *bases):
        resolve(spec, root=root)
    return [spec.model for spec in (*teachers, family.encoder, *bases)]


# ----------------------------------------------------------------------------------------------------------------- machine


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "problem", f"{version}, {sys.executable}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok", str(cores))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    small = "" if memory >= MIN_MEMORY else f"less than {_format_bytes(MIN_MEMORY)}: lower `batch` in the family file"
    yield Finding("memory", "warning" if small else "ok", _format_bytes(memory), small)


def _libraries() -> Iterator[Finding]:
    """The versions of what pyproject.toml requires, and each requirement that is not met."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, "problem", "not installed", REINSTALL)
        return
    met = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and requirement.specifier.contains(version, prereleases=True):
            met.append(f"{requirement.name} {version}")
        else:
            detail = f"{version or 'not installed'}, {requirement.specifier} is required"
            yield Finding(requirement.name, "problem", detail, REINSTALL)
    yield Finding("libraries", "ok", ", ".join(met))


def _device() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("device", "problem", f"torch cannot be imported: {error}", REINSTALL)
        return
    if not torch.cuda.is_available():
        yield Finding("device", "ok", f"cpu, {torch.get_num_threads()} threads (no CUDA)")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("device", "ok", f"cuda:{index} {properties.name}, {_format_bytes(properties.total_memory)}")


# ------------------------------------------------------------------------------------------------------------------- cache


@dataclass(frozen=True)
class CachedModel:
    """A model folder under ``FACTORY_HOME``."""

    folder: Path
    complete: bool  # its manifest can be read, and every file is there with its size


def cached_models() -> list[CachedModel]:
    """``cached_models()``: what ``references.resolve`` has put into ``FACTORY_HOME``, by name. Reads no weights."""
    from factory.models.references import MANIFEST

    return [CachedModel(path.parent, _is_complete(path)) for path in sorted((cache.home() / MODELS).glob(f"*/{MANIFEST}"))]


def _is_complete(manifest: Path) -> bool:
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return all((manifest.parent / name).stat().st_size == size for name, (size, _) in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _home(verify: bool) -> Iterator[Finding]:
    home = cache.home()
    parent = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    detail = f"{home}, {_format_bytes(free)} free on its disk"
    if not os.access(parent, os.W_OK):
        yield Finding("FACTORY_HOME", "problem", f"{detail}, not writable", "set FACTORY_HOME to a folder of yours")
    elif free < MIN_DISK:
        fix = f"less than {_format_bytes(MIN_DISK)}: free some, or set FACTORY_HOME to another disk"
        yield Finding("FACTORY_HOME", "warning", detail, fix)
    else:
        yield Finding("FACTORY_HOME", "ok", detail)
    for folder in sorted(home.glob("*/")):
        if folder.name != MODELS:
            entries = sum(1 for _ in folder.iterdir())
            for seal in folder.rglob(cache.SEAL) if verify else ():
                if not cache.is_intact(seal.parent):
                    fix = "the next command that needs it makes it again"
                    yield Finding(f"cached {folder.name}", "warning", f"{seal.parent} was damaged", fix)
            yield Finding(f"cached {folder.name}", "ok", f"{entries} entries, {_format_bytes(cache.folder_bytes(folder))}")


def _cached_models(verify: bool) -> Iterator[Finding]:
    from factory.models import references

    for model in cached_models():
        problems = references.verify(model.folder) if verify else []
        if not model.complete and not problems:
            problems = [f"{model.folder} is incomplete"]
        if problems:
            yield Finding("cached model", "problem", problems[0], f"rm -r {model.folder}")
        else:
            verified = ", every byte verified" if verify else ""
            detail = f"{model.folder.name}, {_format_bytes(cache.folder_bytes(model.folder))}{verified}"
            yield Finding("cached model", "ok", detail)


# ------------------------------------------------------------------------------------------------------ specs and registry


def _specs(domains: Path) -> Iterator[Finding]:
    try:
        specs = read_domains(domains).specs()
    except FactoryError as error:
        yield from (Finding("specs", "problem", line, "factory validate") for line in str(error).splitlines())
        return
    from factory.models.references import is_cached

    names = ", ".join(specs.domains) or "no domain"
    yield Finding("specs", "ok", f"{domains}: {names}; families: {', '.join(specs.families) or 'none'}")
    models: list[tuple[str, ModelSpec, str]] = []  # what it is, and the command that fetches it
    for family in specs.families.values():
        command = f"factory doctor --fetch {family.name}"
        models.append((f"{family.name}: {'base' if family.api else 'teacher'}", family.files, command))
        models.append((f"{family.name}: encoder", family.encoder, command))
    for domain in specs.domains.values():
        if domain.teacher is not None:
            models.append((f"{domain.name}: teacher", domain.teacher, f"factory data {domain.name}, which fetches it"))
    for what, spec, command in models:
        cached = is_cached(spec, specs.root)
        yield Finding(what, "ok" if cached else "missing", f"{spec.model} ({spec.license})", "" if cached else command)


def _registry(root: Path, verify: bool) -> Iterator[Finding]:
    registry = Registry(root)
    problems = registry.problems()
    versions = registry.versions()
    students = sum(version.kind == "student" for version in versions)
    if not versions and not problems:
        yield Finding("registry", "missing", f"{root} is empty", "factory build healthcare --profile demo")
        return
    free = shutil.disk_usage(root).free
    counts = f"{root}: students {students}, bases {len(versions) - students}, {_format_bytes(free)} free on its disk"
    yield Finding("registry", "ok", counts)
    if verify:
        problems += [
            f"{version.reference}: {problem}"
            for version in versions
            for problem in registry.verify(registry.resolve(version.reference))
            if not any(version.reference in known for known in problems)
        ]
    for problem in problems:
        yield Finding("registry", "warning" if re.match(r"\.staging/", problem) else "problem", problem)


def _format_bytes(count: int) -> str:
    return format_number(count, "bytes")
