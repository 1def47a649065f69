"""How long the quick commands take: python scripts/bench/startup.py --registry registry --versions 10000

The manifests of all students and bases of the registry are repeated in a temporary one until there are so many versions;
`factory list` reads nothing else. Prints the median and the slowest of the runs after the first, in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from factory.registry.manifest import checksum, to_json
from factory.registry.registry import Registry
from factory.registry.versions import FOLDERS, MANIFEST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=11)
    given = parser.parse_args()
    with TemporaryDirectory() as place:
        repeat(given.registry, Path(place), given.versions)
        print(f"| command | median of {given.runs - 1} | slowest | first |\n|---|---|---|---|")
        for name, command in {
            "factory --help": ["factory", "--help"],
            f"factory list, {given.versions:,} versions": ["factory", "list", "--registry", place],
        }.items():
            first, *seconds = [timed(command) for _ in range(given.runs)]
            print(f"| {name} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {first:.2f} |")


def repeat(source: Path, place: Path, versions: int) -> None:
    """Writes so many versions, 100 a name, with the manifests of the versions that exist."""
    known = [json.loads((place_of(source, s.kind, s.name, s.number)).read_text()) for s in Registry(source).versions()]
    for n in range(versions):
        manifest = dict(known[n % len(known)])
        manifest["name"], manifest["version"] = f"{manifest['name']}-{n // 100}", n % 100 + 1
        manifest["manifest_sha256"] = checksum(manifest)
        path = place_of(place, manifest["kind"], manifest["name"], manifest["version"])
        path.parent.mkdir(parents=True)
        path.write_bytes(to_json(manifest))


def place_of(root: Path, kind: str, name: str, number: int) -> Path:
    return root / FOLDERS[kind] / name / str(number) / MANIFEST


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
