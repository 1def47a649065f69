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
from typing import Any, Literal

from factory import cache
from factory.config.load import load_specs
from factory.config.schema import FamilySpec
from factory.errors import FactoryError
from factory.registry.registry import Registry
from factory.reports.format import format_number

DISTRIBUTION = "student-factory"
REINSTALL = "pip install -e . -c constraints.txt"
MEMORY = 6 << 30  # the default family's build peaks below this
DISK = 5 << 30  # models, targets and checkpoints of the default family
SNAPSHOTS = "models"  # the part of FACTORY_HOME that holds model folders


@dataclass(frozen=True)
class Finding:
    """One line: ``missing`` can be fetched, ``problem`` stops a build or is damage."""

    what: str
    state: Literal["ok", "missing", "warning", "problem"]
    detail: str
    fix: str = ""


def examine(domains: Path, registry: Path, *, verify: bool = False) -> list[Finding]:
    """``examine(Path("domains"), Path("registry"))``; ``verify`` reads every byte of models and versions again."""
    return [
        *_machine(),
        *_libraries(),
        *_torch(),
        *_home(verify),
        *_specs(domains),
        *_registry(registry, verify),
    ]


def fetch(family: FamilySpec, root: Path) -> list[str]:
    """``fetch(specs.family("default"), specs.root)`` puts a family's models into the cache; their references."""
    from factory.models.references import resolve

    bases = [size.base for size in family.sizes.values() if size.base is not None]
    resolve(family.teacher, root=root, chat_template=family.teacher.chat_template)
    for spec in (family.encoder, *bases):
        resolve(spec, root=root)
    return [spec.model for spec in (family.teacher, family.encoder, *bases)]


# ------------------------------------------------------------------------------------------------------------- machine


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "problem", f"{version}, {sys.executable}", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok", str(cores))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    small = "" if memory >= MEMORY else f"under {_written(MEMORY)}: lower `batch` in the family file"
    yield Finding("memory", "warning" if small else "ok", _written(memory), small)


def _libraries() -> Iterator[Finding]:
    """The installed versions of what pyproject.toml names, and each that is missing or out of the wanted range."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, "problem", "not installed", REINSTALL)
        return
    fitting = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and requirement.specifier.contains(version, prereleases=True):
            fitting.append(f"{requirement.name} {version}")
        else:
            found = f"{version or 'not installed'}, wanted {requirement.specifier}"
            yield Finding(requirement.name, "problem", found, REINSTALL)
    yield Finding("libraries", "ok", ", ".join(fitting))


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("device", "problem", f"torch cannot be imported: {error}", REINSTALL)
        return
    if not torch.cuda.is_available():
        yield Finding("device", "ok", f"cpu, {torch.get_num_threads()} threads (no CUDA)")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Finding("device", "ok", f"cuda:{index} {facts.name}, {_written(facts.total_memory)}")


# --------------------------------------------------------------------------------------------------------------- cache


@dataclass(frozen=True)
class CachedModel:
    """A model folder under ``FACTORY_HOME``, as its manifest describes it."""

    folder: Path
    reference: str
    sha256: str | None  # of the wheel or file; None of a copy with another chat template
    whole: bool  # every file is there with its size


def cached_models() -> list[CachedModel]:
    """``cached_models()``: what ``references.resolve`` has put into ``FACTORY_HOME``, by name; reads no weights."""
    from factory.models.references import MANIFEST

    found = []
    for path in sorted((cache.home() / SNAPSHOTS).glob(f"*/{MANIFEST}")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            reference, pins, files = manifest["reference"], manifest["pins"], manifest["files"]
            sizes = [(path.parent / name, size) for name, (size, _) in files.items()]
        except (OSError, ValueError, KeyError, TypeError):
            found.append(CachedModel(path.parent, f"unreadable {MANIFEST}", None, whole=False))
            continue
        whole = all(file.is_file() and file.stat().st_size == size for file, size in sizes)
        found.append(CachedModel(path.parent, reference, pins.get("sha256"), whole))
    return found


def _home(verify: bool) -> Iterator[Finding]:
    from factory.models import references

    home = cache.home()
    parent = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    full = "" if free >= DISK else f"under {_written(DISK)}: free some, or set FACTORY_HOME to another disk"
    writable = os.access(parent, os.W_OK)
    where = f"{home}, {_written(free)} free on its disk"
    if writable:
        yield Finding("FACTORY_HOME", "warning" if full else "ok", where, full)
    else:
        yield Finding("FACTORY_HOME", "problem", f"{where}, not writable", "set FACTORY_HOME to a folder of yours")
    for model in cached_models():
        problems = references.verify(model.folder) if verify else []
        if not model.whole and not problems:
            problems = [f"{model.folder} is not whole"]
        if problems:
            yield Finding("cached model", "problem", problems[0], f"rm -r {model.folder}")
        else:
            read = ", every byte as it was made" if verify else ""
            yield Finding("cached model", "ok", f"{model.folder.name}, {_written(_size(model.folder))}{read}")
    others = sorted(f for f in home.glob("*/") if f.name not in (SNAPSHOTS, "checksums")) if home.is_dir() else []
    for folder in others:
        entries = sum(1 for _ in folder.iterdir())
        yield Finding(f"cached {folder.name}", "ok", f"{entries} entries, {_written(_size(folder))}")


# --------------------------------------------------------------------------------------------------- specs and registry


def _specs(domains: Path) -> Iterator[Finding]:
    try:
        specs = load_specs(domains)
    except FactoryError as error:
        yield from (Finding("specs", "problem", line, "factory validate") for line in str(error).splitlines())
        return
    from factory.models.references import is_cached

    names = ", ".join(specs.domains) or "no domain"
    yield Finding("specs", "ok", f"{domains}: {names}; families {', '.join(specs.families) or 'none'}")
    for family in specs.families.values():
        command = f"factory doctor --fetch {family.name}"
        for what, spec in (("teacher", family.teacher), ("encoder", family.encoder)):
            cached = is_cached(spec, specs.root)
            detail = f"{spec.model} ({spec.license})"
            yield Finding(f"{family.name}: {what}", "ok" if cached else "missing", detail, "" if cached else command)


def _registry(root: Path, verify: bool) -> Iterator[Finding]:
    registry = Registry(root)
    problems = registry.problems()
    versions = registry.versions()
    students = sum(version.kind == "student" for version in versions)
    if not versions and not problems:
        yield Finding("registry", "missing", f"{root} holds nothing yet", "factory build healthcare --profile demo")
        return
    free = shutil.disk_usage(root).free
    counted = f"{root}: students {students}, bases {len(versions) - students}, {_written(free)} free on its disk"
    yield Finding("registry", "ok", counted)
    if verify:
        problems += [
            f"{version.reference}: {problem}"
            for version in versions
            for problem in registry.verify(registry.resolve(version.reference))
            if not any(version.reference in known for known in problems)
        ]
    for problem in problems:
        yield Finding("registry", "warning" if re.match(r"\.staging/", problem) else "problem", problem)


# ------------------------------------------------------------------------------------------------------------- writing


def doctor_json(findings: list[Finding]) -> dict[str, Any]:
    """``doctor_json(examine(...))``: the findings and whether a build can work."""
    return {"sound": is_sound(findings), "findings": [vars(finding) for finding in findings]}


def is_sound(findings: list[Finding]) -> bool:
    """False where anything is a problem; what is only missing can be fetched."""
    return all(finding.state != "problem" for finding in findings)


def doctor_table(findings: list[Finding]) -> Any:
    """``print_table(doctor_table(findings))``: a line a finding, with the command that mends it."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "missing": "yellow", "warning": "yellow", "problem": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in findings:
        detail = f"{finding.detail}  → {finding.fix}" if finding.fix else finding.detail
        table.add_row(Text(finding.state, style=styles[finding.state]), Text(finding.what), Text(detail))
    return table


def _size(folder: Path) -> int:
    """Bytes of a folder's files; a file with two names (hard links) counts twice."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _written(count: int) -> str:
    return format_number(count, "bytes")
