"""How long the quick commands take: python scripts/bench/startup.py --registry registry --versions 10000

Fills a temporary registry with copies of the manifests of ``--registry``, which is all that `factory list` reads. Prints
the median and the slowest run after the first, and the first, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from factory.registry.layout import FOLDERS, MANIFEST
from factory.registry.manifest import to_dict
from factory.registry.plain_json import checksum, to_json
from factory.registry.registry import Registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=11)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        fill(Path(folder), Registry(given.registry), given.versions)
        commands = {
            "factory --help": ["factory", "--help"],
            f"factory list, {given.versions:,} versions": ["factory", "list", "--registry", folder],
        }
        print(f"| command | median of {given.runs - 1} | slowest | first |\n|---|---|---|---|")
        for name, command in commands.items():
            first, *others = [timed(command) for _ in range(given.runs)]
            print(f"| {name} | {statistics.median(others):.2f} | {max(others):.2f} | {first:.2f} |")


def fill(folder: Path, source: Registry, count: int) -> None:
    """Writes so many manifests, copies of those in ``source`` under new names with 100 versions each."""
    manifests = [to_dict(source.resolve(summary.reference).manifest) for summary in source.versions()]
    for n in range(count):
        copied = manifests[n % len(manifests)]
        copied = copied | {"name": f"{copied['name']}-{n // 100}", "version": n % 100 + 1}
        path = folder / FOLDERS[copied["kind"]] / copied["name"] / str(copied["version"]) / MANIFEST
        path.parent.mkdir(parents=True)
        path.write_bytes(to_json(copied | {"manifest_sha256": checksum(copied)}))


def timed(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
