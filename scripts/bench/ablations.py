"""What each term of the objective does: python scripts/bench/ablations.py healthcare --steps 30

Trains one adapter per variation on the family's published base, all for the same number of steps, and prints a Markdown table.
The last column is the KL of the first variation minus this one's, paired by example; below 0 is worse.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from factory.config.load import load_specs
from factory.pipeline.context import make_context
from factory.pipeline.experiments import VARIATIONS, Ablation, ablations
from factory.registry.manifest import plain_json, to_json
from factory.registry.registry import Registry
from factory.reports.format import format_metric

METRICS = ("kl", "top1_agreement", "relation_alignment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain")
    parser.add_argument("--size", default="small")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--only", action="append", choices=list(VARIATIONS), help="may be repeated")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    specs = load_specs(given.domains)
    family = specs.family_of_size(given.size)
    context = make_context(specs, family, registry=Registry(given.registry), profile=given.profile)
    print(f"{given.domain}-{given.size}, {given.steps} steps, seed {context.seed}\n")
    print("| objective | KL | top-1 agreement | relation alignment | seconds | KL ahead of the first |")
    print("|---|---|---|---|---|---|")
    results = []
    variations = {name: VARIATIONS[name] for name in given.only or VARIATIONS}
    for ablation in ablations(context, given.domain, given.size, given.steps, variations):
        print(row(ablation), flush=True)
        results.append(asdict(ablation))
    if given.save:
        run = {"student": f"{given.domain}-{given.size}", "profile": given.profile, "steps": given.steps, "seed": context.seed,
               "git_commit": context.git_commit, "results": results}  # fmt: skip
        given.save.write_bytes(to_json(plain_json(run, "ablations")))


def row(ablation: Ablation) -> str:
    metrics = " | ".join(format_metric(ablation.metrics[name]) for name in METRICS)
    return f"| {ablation.name} | {metrics} | {ablation.seconds:.0f} | {format_metric(ablation.ahead)} |"


if __name__ == "__main__":
    main()
