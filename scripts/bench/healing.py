"""Ways to heal a pruned base beside one another: nats/token and seconds, from the same cut base on the same examples.

    python scripts/bench/healing.py small --steps 80 --way '{}' --way '{"feature": 0}' --save healing.json

Each way is a JSON object of keys of ``heal`` that replace the family's. The others are compared with the first, paired by
example, on held-out examples of all public domains.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from factory.config.load import load_specs
from factory.config.schema import Profile
from factory.energy import Meter
from factory.errors import FactoryError
from factory.evaluation.stats import paired_difference
from factory.models.base import count_parameters
from factory.pipeline.context import BuildContext, FamilyModels, make_context, resolve_models
from factory.pipeline.cutting import choose_base_tokens, cut_base
from factory.pipeline.dataset import make_dataset
from factory.pipeline.healing import PROBE_SHARE, direct_path, probe
from factory.registry.manifest import MetricValue
from factory.registry.plain_json import plain_json, to_json
from factory.registry.registry import Registry


@dataclass(frozen=True)
class Result:
    """One way of healing."""

    way: dict[str, Any]
    before: MetricValue  # KL to the teacher, nats/token
    after: MetricValue
    behind: MetricValue | None  # its KL minus the first way's, paired by example
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size")
    parser.add_argument("--way", type=json.loads, action="append", metavar="JSON", required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    specs = load_specs(given.domains)
    family = specs.family_of_size(given.size)
    context = make_context(specs, family, registry=Registry("registry"), profile=given.profile).of_size(given.size)
    models = resolve_models(family, specs.root, context.device)
    results, parameters = compare(context, models, given.size, given.way, given.steps)
    if given.save:
        run = {
            "size": given.size,
            "parameters": parameters,
            "profile": given.profile,
            "steps": given.steps,
            "seed": context.seed,
            "git_commit": context.git_commit,
            "results": [asdict(one) for one in results],
        }
        given.save.write_bytes(to_json(plain_json(run, given.save.name)))


def compare(
    context: BuildContext, models: FamilyModels, size: str, ways: list[dict[str, Any]], steps: int
) -> tuple[list[Result], int]:
    """Every way, from a copy of the same base; and the parameters of that."""
    datasets = [make_dataset(context, models, domain.unadapted()) for domain in context.public_domains]
    spec = context.family.sizes[size]
    cut = cut_base(context, models, spec, datasets, choose_base_tokens(context, models, spec, datasets))
    models.teacher.release()
    results: list[Result] = []
    first = None
    for way in ways:
        own = with_healing(context, {**way, "steps": round(steps / PROBE_SHARE)})
        healing = probe(own, direct_path(own, models, cut, datasets), cut.teacher, datasets)
        first = first or healing.sums
        behind = paired_difference(healing.sums.kl, first.kl, first.tokens, context.bootstrap) if results else None
        seconds = own.meter.seconds["probe"]
        results.append(Result(way, healing.report.before["kl"], healing.report.after["kl"], behind, seconds))
        print(f"{json.dumps(way)}: KL {results[-1].before} → {results[-1].after}, {seconds:.0f} s, behind {behind}", flush=True)
    return results, count_parameters(cut.base.model)


def with_healing(context: BuildContext, heal: dict[str, Any]) -> BuildContext:
    """The same build with other healing, and a meter of its own."""
    family = context.family
    profile = family.profiles.get(context.profile, Profile())
    profile = profile.model_copy(update={"heal": profile.heal | heal})
    profiles = family.profiles | {context.profile: profile}
    return replace(context, family=family.model_copy(update={"profiles": profiles}), meter=Meter())


if __name__ == "__main__":
    try:
        main()
    except FactoryError as error:
        raise SystemExit(f"error: {error}") from error
