"""One published version: its folder, its typed manifest, its records. No torch.

version = load_version(root, "student", "healthcare-small", 3)
version.manifest.evaluation.metrics["kl"].value
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from factory.config.names import check_name
from factory.errors import RegistryError
from factory.registry.layout import FOLDERS, MANIFEST, links, tree
from factory.registry.ledger import objection, read_ledger
from factory.registry.records import read_records

if TYPE_CHECKING:
    from factory.registry.manifest import BaseManifest, StudentManifest


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

    def read(self, path: str) -> bytes:
        """``version.read("README.md")``: a file as it was published. Raises: RegistryError where it is missing or was changed."""
        try:
            content = (self.folder / path).read_bytes()
            if hashlib.sha256(content).hexdigest() == self.manifest.files[path].sha256:
                return content
        except (OSError, KeyError):
            raise RegistryError(f"{self.reference} has no {path}") from None
        raise RegistryError(f"{self.reference} is damaged: {path} was changed; restore it from a copy, or build it again")


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
    """``load_version(root, "student", "healthcare-small", 3)``: its manifest and its records. Reads none of its other files.

    What it returns is a version: listed, resolved, promoted, shown. What it refuses is none of these, and ``Registry.problems``
    says why.
    Raises: RegistryError for a manifest that is missing, unreadable, malformed, of another schema version, or of another
        name or number than its folder; for a folder that was not published here, or was deleted; for a file that is missing or
        has another length; for a link in place of a file.
    """
    from factory.registry.manifest import parse_manifest  # imported here: `factory list` reads only the index
    from factory.registry.plain_json import checksum

    folder, ledger = root / FOLDERS[kind] / check_name(name) / str(number), read_ledger(root)
    found, content = read_folder(folder)
    manifest = parse_manifest(content)
    stated = (manifest.kind, manifest.name, manifest.version)
    if stated != (kind, name, number):
        raise RegistryError(f"its {MANIFEST} belongs to {stated[0]} {stated[1]:.100}@{stated[2]}: the folder was copied or renamed")
    if manifest.manifest_sha256 != checksum(content):
        raise RegistryError(f"its {MANIFEST} was changed after publishing: restore it from a backup, or delete the version")
    if refused := objection(ledger, name, number, manifest.manifest_sha256):
        raise RegistryError(refused)
    for path, file in manifest.files.items():
        if path not in found or not S_ISREG(found[path].st_mode):
            raise RegistryError(f"{path} is missing")
        if found[path].st_size != file.bytes:
            raise RegistryError(f"{path} was changed: its length differs")
    records, _ = read_records(folder)
    return Version(kind, name, number, folder, manifest, tuple(records))


def read_folder(folder: Path) -> tuple[dict[str, os.stat_result], Any]:
    """``found, content = read_folder(version.folder)``: all that is in it, and its manifest as plain JSON, not yet checked.

    Raises: RegistryError for a folder that cannot be read, has a link in place of a file, or a manifest that is missing or
        malformed.
    """
    from factory.registry.plain_json import parse_json

    try:
        found = tree(folder)
        if linked := links(found):
            raise RegistryError(linked[0])
        if MANIFEST not in found:
            raise RegistryError(f"incomplete: it has no {MANIFEST}")
        return found, parse_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise RegistryError(f"its folder cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RegistryError(f"its {MANIFEST} cannot be read ({error})") from error


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
