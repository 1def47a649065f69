"""What students reach and which gates they pass, as a Markdown table: python scripts/bench/students.py healthcare-medium@1

``--save FILE.json`` keeps the figures, and ``--from FILE.json`` renders them again without the registry.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from factory.evaluation.metrics import metric_named
from factory.registry.manifest import MetricValue, StudentManifest, plain_json, to_json
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.format import format_metric

ROWS = (
    "kl", "base_kl", "kl_whole_teacher", "top1_agreement", "sure_agreement", "kl_below_base", "bits_per_byte",
    "bits_per_byte_teacher", "golden_set_passed", "golden_set_passed_teacher", "answers_finished", "refused", "refused_teacher",
    "injected", "injected_teacher", "jailbroken", "jailbroken_teacher",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", nargs="*", metavar="student", help="healthcare-medium@1")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    parser.add_argument("--from", type=Path, metavar="FILE.json", dest="saved")
    given = parser.parse_args()
    if given.saved:
        students = json.loads(given.saved.read_text(encoding="utf-8"))
    else:
        students = [figures(Registry(given.registry).resolve(one)) for one in given.references]
    if given.save:
        given.save.write_bytes(to_json(plain_json(students, given.save.name)))
    print(table(students), end="")


def figures(version: Version) -> dict[str, Any]:
    """What the table needs of a student's manifest."""
    manifest = version.manifest
    assert isinstance(manifest, StudentManifest)
    metrics = manifest.evaluation.metrics
    gates = {gate.metric: gate.status for gate in manifest.verdict.gates}
    return {
        "reference": version.reference,
        "profile": manifest.profile,
        "seed": manifest.seed,
        "git_commit": manifest.git_commit,
        "verdict": manifest.verdict.status,
        "seconds": sum(manifest.seconds.values()),
        "metrics": {name: asdict(metrics[name]) for name in dict.fromkeys((*ROWS, *gates)) if name in metrics},
        "gates": gates,
    }


def table(students: list[dict[str, Any]]) -> str:
    """A row for each metric; one that a gate judges says how that ended."""
    names = dict.fromkeys(name for one in students for name in (*ROWS, *one["gates"]))
    rows = [
        ["", *(one["reference"] for one in students)],
        ["---"] * (1 + len(students)),
        ["verdict", *(f"**{one['verdict']}**" for one in students)],
        *([metric_named(name).label, *(cell(one, name) for one in students)] for name in names),
        ["minutes of building", *(f"{one['seconds'] / 60:.0f}" for one in students)],
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(student: dict[str, Any], name: str) -> str:
    """``0.103 [0.093, 0.113], n 2,166, passed``"""
    found = student["metrics"].get(name)
    if found is None:
        return "-"
    metric = MetricValue(**found)
    gate = f", {student['gates'][name]}" if name in student["gates"] else ""
    return f"{format_metric(metric)}, n {metric.n:,}{gate}"


if __name__ == "__main__":
    main()
