"""What each part of the objective does: python scripts/bench/ablations.py healthcare --steps 30 --registry registry

Trains one adapter per variation on the family's published base, all for the same steps, and prints a Markdown table. Negative
results are results: the last column is the KL of response alone minus the variation's, so a value below 0 is worse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from factory.config.load import load_specs
from factory.pipeline.build import Factory
from factory.pipeline.experiments import ablations
from factory.registry.registry import Registry
from factory.reports.format import format_metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domain")
    parser.add_argument("--size", default="small")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    given = parser.parse_args()
    specs = load_specs(given.domains)
    family = specs.family_of_size(given.size)
    factory = Factory(specs, family, profile=given.profile, registry=Registry(given.registry))
    print(f"{given.domain}-{given.size}, {given.steps} steps, seed {factory.seed}\n")
    print("| objective | KL | top-1 agreement | relation alignment | seconds | KL ahead of response only |")
    print("|---|---|---|---|---|---|")
    for one in ablations(factory, given.domain, given.size, given.steps):
        cells = [
            format_metric(figure)
            for figure in (
                one.figures["kl"],
                one.figures["top1_agreement"],
                one.figures["relation_alignment"],
                one.ahead,
            )
        ]
        print(f"| {one.name} | {' | '.join(cells[:3])} | {one.seconds:.0f} | {cells[3]} |", flush=True)


if __name__ == "__main__":
    main()
