"""One version's manifest and records: what they are read as, what is read from them, and whether it is whole. No torch.

    records.jsonl   one JSON object a line, of what was said of a version after it was published: {"kind", "at", ...}

Records are only ever appended. A line counts once its newline is written; what a crash left after the last one does not.
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
from factory.evaluation.metrics import gate_line
from factory.cache import sync

if TYPE_CHECKING:
    from factory.registry.manifest import BaseManifest, EvalReport, StudentManifest

FOLDERS: dict[str, str] = {"student": "students", "base": "bases"}
MANIFEST = "manifest.json"
RECORDS = "records.jsonl"


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
    """One line of ``factory list``: what the index keeps of a manifest. What a manifest does not say is None."""

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
    kl: float | None  # nats per token, KL(teacher || student)
    top1_agreement: float | None
    relation_alignment: float | None
    parameters: int | None
    teacher_parameters: int | None
    bytes: int  # of the folder's files, manifest.json not counted
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """``healthcare-small@3``."""
        return f"{self.name}@{self.number}"


COLUMNS = tuple(field.name for field in fields(Summary) if field.name != "aliases")


def load_version(root: Path, kind: str, name: str, number: int) -> Version:
    """``load_version(root, "student", "healthcare-small", 3)``: its manifest, and what was recorded since.

    Raises: RegistryError for a folder that is half made, whose manifest cannot be read, or is another version's.
    """
    from factory.registry.manifest import parse_manifest  # pydantic would cost `factory list` a quarter of its time

    folder = root / FOLDERS[kind] / name / str(number)
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise RegistryError(f"half made: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise RegistryError(f"its {MANIFEST} cannot be read ({error})") from None
    parsed = parse_manifest(content)
    says = (parsed.kind, parsed.name, parsed.version)
    if says != (kind, name, number):
        raise RegistryError(f"its {MANIFEST} is of {says[0]} {says[1]}@{says[2]}: it was moved here by hand")
    records, _ = read_records(folder)
    return Version(kind, name, number, folder, parsed, tuple(records))


def read_records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """``records, problems = read_records(version.folder)``: every record in order, and what of them cannot be read."""
    try:
        lines = (folder / RECORDS).read_bytes().split(b"\n")[:-1]  # after the last newline: nothing, or half a line
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{RECORDS} cannot be read ({error.strerror})"]
    records, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            records.append(record)
        else:
            problems.append(f"{RECORDS} line {number} cannot be read: it is no record")
    return records, problems


def append_record(folder: Path, record: Mapping[str, Any]) -> None:
    """``append_record(version.folder, {"kind": "override", "at": ...})``: durable when it returns. Callers hold a lock.

    Raises: OSError where the disk refuses. Half a line may then be left, which readers ignore and the next call removes.
    """
    path = folder / RECORDS
    with path.open("a+b") as file:  # "a": whatever is written goes to the end
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(folder)


def failed_gates(manifest: Mapping[str, Any]) -> list[str]:
    """``failed_gates(version.manifest)`` → ``["upper end of kl is 0.912, at most 0.8 passes"]``; reasons if there are none."""
    gates = [gate for gate in entries(manifest, "verdict", "gates") if gate.get("passed") is False]
    return [gate_line(gate) for gate in gates] or [str(reason) for reason in section(manifest, "verdict").get("reasons") or ()]


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


def read_metrics(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """``read_metrics(version.manifest)["kl"]``: every figure of one version, its sizes and speed too, each as a metric."""
    evaluation = section(manifest, "evaluation")
    metrics = section(evaluation, "metrics")
    plain = {**section(evaluation, "sizes", "student"), **section(evaluation, "speed", "student")}
    plain["parameters"] = read_parameters(manifest)[0]
    return {name: read_metric(manifest, name) for name in metrics} | {key: as_metric(v) for key, v in plain.items()}


def read_teacher_metrics(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """``read_teacher_metrics(version.manifest)``: what a student's manifest says of its teacher, under the student's names."""
    evaluation = section(manifest, "evaluation")
    plain = {**section(evaluation, "sizes", "teacher"), **section(evaluation, "speed", "teacher")}
    plain["parameters"] = read_parameters(manifest)[1]
    perplexity = read_metric(manifest, "teacher_perplexity")
    return {"student_perplexity": perplexity} | {key: as_metric(value) for key, value in plain.items()}


def verdict_of(manifest: Mapping[str, Any]) -> str:
    verdict = manifest.get("verdict")
    return str((verdict.get("status") if isinstance(verdict, Mapping) else verdict) or "unchecked")


def summary_row(version: Version) -> tuple[Any, ...]:
    """The values of COLUMNS."""
    manifest = version.manifest
    own = (manifest.domain, manifest.base) if manifest.kind == "student" else (None, None)
    evaluation = manifest.evaluation if manifest.kind == "student" else None
    fidelity = [_value(evaluation, name) for name in ("kl", "top1_agreement", "relation_alignment")]
    parameters = evaluation.sizes.student.parameters if evaluation else manifest.parameters  # type: ignore[union-attr]
    return (
        version.kind,
        version.name,
        version.number,
        manifest.created,
        own[0],
        manifest.family,
        manifest.size,
        manifest.profile,
        own[1],
        version.verdict,
        *fidelity,
        parameters,
        manifest.teacher.parameters,
        sum(file.bytes for file in manifest.files.values()),
        "\n".join(source.id for source in manifest.dataset.sources),
    )


def _value(evaluation: EvalReport | None, name: str) -> float | None:
    metric = evaluation.metrics.get(name) if evaluation else None
    return metric.value if metric and math.isfinite(metric.value) else None


def missing_files(version: Version) -> list[str]:
    """Files that are gone or have another length: what can be seen without reading them."""
    problems = []
    for path, file in version.manifest.files.items():
        try:
            if os.stat(version.folder / path).st_size != file.bytes:
                problems.append(f"{path} was changed: it has another length")
        except OSError:
            problems.append(f"{path} is missing")
    return problems
