"""One published version: its folder, its typed manifest, its records. No torch.

version = load_version(root, "student", "healthcare-small", 3)
version.manifest.evaluation.metrics["kl"].value
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.errors import RegistryError
from factory.registry.records import read_records

if TYPE_CHECKING:
    from factory.registry.manifest import BaseManifest, StudentManifest

FOLDERS: dict[str, str] = {"student": "students", "base": "bases"}
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Version:
    """One published folder and its manifest."""

    kind: str
    name: str
    number: int
    folder: Path
    manifest: BaseManifest | StudentManifest
    records: tuple[dict[str, Any], ...] = ()

    @cached_property
    def raw(self) -> dict[str, Any]:  # TODO(issue 1): goes when every reader is typed
        from factory.registry.manifest import to_dict

        return to_dict(self.manifest) | ({"records": list(self.records)} if self.records else {})

    @property
    def reference(self) -> str:
        """``healthcare-small@3``."""
        return f"{self.name}@{self.number}"

    @property
    def base(self) -> str | None:
        """The reference of the base that a student's adapter belongs on."""
        return self.manifest.base if self.manifest.kind == "student" else None

    @property
    def verdict(self) -> str:
        """``passed``, ``failed`` or ``unchecked``."""
        return self.manifest.verdict.status if self.manifest.kind == "student" else "unchecked"


@dataclass(frozen=True)
class Summary:
    """One line of ``factory list``: what the index keeps of a manifest. None where it does not apply or was not measured."""

    kind: str
    name: str
    number: int
    created: str
    domain: str | None
    family: str | None
    size: str | None
    profile: str | None
    base: str | None
    verdict: str
    kl: float | None  # nats/token, KL(teacher ‖ student)
    top1_agreement: float | None
    relation_alignment: float | None
    parameters: int | None
    teacher_parameters: int | None
    bytes: int  # of the folder's files without manifest.json
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """``healthcare-small@3``."""
        return f"{self.name}@{self.number}"


COLUMNS = tuple(field.name for field in fields(Summary) if field.name != "aliases")


def load_version(root: Path, kind: str, name: str, number: int) -> Version:
    """``load_version(root, "student", "healthcare-small", 3)``: its manifest and its records; its files are not checked.

    Raises: RegistryError for a manifest that is missing, unreadable, malformed, of another schema version, or of another
        name or number than its folder.
    """
    from factory.registry.manifest import parse_manifest  # imported here: `factory list` reads only the index

    folder = root / FOLDERS[kind] / name / str(number)
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise RegistryError(f"incomplete: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise RegistryError(f"its {MANIFEST} cannot be read ({error})") from error
    manifest = parse_manifest(content)
    found = (manifest.kind, manifest.name, manifest.version)
    if found != (kind, name, number):
        raise RegistryError(f"its {MANIFEST} belongs to {found[0]} {found[1]}@{found[2]}: the folder was copied or renamed")
    records, _ = read_records(folder)
    return Version(kind, name, number, folder, manifest, tuple(records))


def summary_row(version: Version) -> tuple[Any, ...]:
    """``summary_row(version)``: the values of COLUMNS; source ids joined by newlines."""
    manifest = version.manifest
    student = manifest if manifest.kind == "student" else None
    metrics = student.evaluation.metrics if student else {}
    found = {name: metrics[name].value for name in ("kl", "top1_agreement", "relation_alignment") if name in metrics}
    values = {
        "kind": version.kind,
        "name": version.name,
        "number": version.number,
        "created": manifest.created,
        "domain": student.domain if student else None,
        "family": manifest.family,
        "size": manifest.size,
        "profile": manifest.profile,
        "base": version.base,
        "verdict": version.verdict,
        "parameters": manifest.parameters,
        "teacher_parameters": manifest.teacher.parameters,
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "sources": "\n".join(source.id for source in manifest.dataset.sources),
    } | {name: value for name, value in found.items() if math.isfinite(value)}
    return tuple(values.get(name) for name in COLUMNS)


def missing_files(version: Version) -> list[str]:
    """``missing_files(version)``: one line for each file that is missing or has another length. Reads none of them."""
    problems = []
    for path, file in version.manifest.files.items():
        try:
            if os.stat(version.folder / path).st_size != file.bytes:
                problems.append(f"{path} was changed: its length differs")
        except OSError:
            problems.append(f"{path} is missing")
    return problems


# TODO: the readers below go with Version.raw


def section(manifest: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """``section(manifest, "evaluation", "speed")``: the mapping under these keys, empty where the manifest has none."""
    found: Any = manifest
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def entries(manifest: Mapping[str, Any], *keys: str) -> list[Mapping[str, Any]]:
    """``entries(manifest, "evaluation", "samples")``: the mappings of the list under these keys, none where it is not one."""
    found = section(manifest, *keys[:-1]).get(keys[-1])
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list | tuple) else []


def read_metric(manifest: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """``read_metric(manifest, "kl")`` → {"value", "low", "high", "n"}, the last three None if unknown; or None."""
    metrics = (manifest.get("evaluation") or {}).get("metrics") or {}
    return as_metric(metrics.get(name))


def as_metric(raw: Any) -> dict[str, Any] | None:
    """``as_metric(0.4)`` or ``as_metric({"value": 0.4, "n": 7})`` → all of value, low, high, n; None if no number."""
    facts = raw if isinstance(raw, Mapping) else {"value": raw}
    value = facts.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return {"value": value, "low": facts.get("low"), "high": facts.get("high"), "n": facts.get("n")}


def read_parameters(manifest: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """``student, teacher = read_parameters(manifest)``: parameter counts, None where the manifest has none."""
    sizes = (manifest.get("evaluation") or {}).get("sizes") or {}
    student = (sizes.get("student") or {}).get("parameters", manifest.get("parameters"))
    teacher = (sizes.get("teacher") or {}).get("parameters", (manifest.get("teacher") or {}).get("parameters"))
    return (student if isinstance(student, int) else None, teacher if isinstance(teacher, int) else None)
