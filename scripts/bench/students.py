"""What students reach and which gates they pass, for docs/results/students.md:

python scripts/bench/students.py healthcare-medium@1 education-medium@1 --save docs/results/students-demo.json
python scripts/docs.py

Students of several seeds stand in a registry each: name them all by --registry.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from factory.registry.manifest import StudentManifest
from factory.registry.plain_json import plain_json, to_json
from factory.registry.registry import Registry
from factory.registry.versions import Version

ROWS = (
    "kl", "base_kl", "kl_whole_teacher", "top1_agreement", "sure_agreement", "kl_below_base", "bits_per_byte",
    "bits_per_byte_teacher", "golden_set_passed", "golden_set_passed_teacher", "answers_finished", "refused", "refused_teacher",
    "injected", "injected_teacher", "jailbroken", "jailbroken_teacher",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", nargs="+", metavar="student", help="healthcare-medium@1")
    parser.add_argument("--registry", type=Path, nargs="+", default=[Path("registry")])
    parser.add_argument("--save", type=Path, metavar="FILE.json", required=True)
    given = parser.parse_args()
    students = [figures(Registry(folder).resolve(one)) for folder in given.registry for one in given.references]
    given.save.write_bytes(to_json(plain_json(students, given.save.name)))


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


if __name__ == "__main__":
    main()
