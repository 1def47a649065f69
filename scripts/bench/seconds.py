"""Seconds of a build by stage: python scripts/bench/seconds.py healthcare-small@1 legal-small@1 --registry registry

Each student alone, and together with its base. ``teacher`` is the time to write this student's soft targets: 0 if another
student's build had written them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from factory.registry.registry import Registry
from factory.registry.versions import Version

STAGES = (
    "router",
    "data",
    "completions",
    "prune",
    "check",
    "targets",
    "embeddings",
    "probe",
    "heal",
    "distill",
    "sft",
    "evaluate",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    given = parser.parse_args()
    registry = Registry(given.registry)
    print(f"| version | {' | '.join(STAGES)} | all | teacher |\n|{'---|' * (len(STAGES) + 3)}")
    shown: set[str] = set()
    for student in (registry.resolve(name) for name in given.students):
        base = registry.resolve(str(student.manifest["base"]))
        for version in (base, student):
            if version.reference not in shown:
                print(row(version))
            shown.add(version.reference)


def row(version: Version) -> str:
    taken: dict[str, float] = version.manifest["seconds"]
    targets: dict[str, Any] = version.manifest.get("targets") or {}
    teacher = targets.get("teacher_seconds", 0.0) - targets.get("saved_seconds", 0.0) if targets else taken.get("targets", 0.0)
    cells = [taken.get(stage, 0.0) for stage in STAGES]
    return f"| {version.reference} | {' | '.join(f'{cell:.0f}' for cell in [*cells, sum(taken.values()), teacher])} |"


if __name__ == "__main__":
    main()
