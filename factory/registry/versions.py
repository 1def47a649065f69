"""One published version: its folder, its typed manifest, its records. No torch.

version = load_version(root, "student", "healthcare-small", 3)
version.manifest.evaluation.metrics["kl"].value
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
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
        """``passed``, ``failed``, ``undecidable`` or ``unchecked``; a base is ``unchecked``."""
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
