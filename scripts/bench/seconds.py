"""Seconds of a build by stage: python scripts/bench/seconds.py healthcare-small@1 legal-small@1

One line per student and per base. ``teacher`` is the time spent on this version's soft targets: 0 where an earlier build had
stored them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from factory.registry.plain_json import to_json
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
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    registry = Registry(given.registry)
    students = [registry.resolve(student) for student in given.students]
    pairs = [(registry.resolve(student.base), student) for student in students]
    versions = {version.reference: version for pair in pairs for version in pair}  # a shared base once
    results = [measured(version) for version in versions.values()]
    print(f"| version | {' | '.join(STAGES)} | all | teacher |\n|{'---|' * (len(STAGES) + 3)}")
    for one in results:
        cells = [*(one["seconds"].get(stage, 0) for stage in STAGES), sum(one["seconds"].values()), one["teacher"]]
        print(f"| {one['version']} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")
    if given.save:
        given.save.write_bytes(to_json({"results": results}))


def measured(version: Version) -> dict[str, Any]:
    """Seconds by stage, and those that the teacher needed for the soft targets."""
    manifest = version.manifest
    targets = manifest.soft_targets if manifest.kind == "student" else None
    teacher = targets.teacher_seconds - targets.saved_seconds if targets else manifest.seconds.get("targets", 0)
    return {"version": version.reference, "seconds": manifest.seconds, "teacher": teacher}


if __name__ == "__main__":
    main()
