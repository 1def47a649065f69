"""A small size with and without a teacher assistant: python scripts/bench/teacher_assistant.py tiny --steps 550

The budgets are equal: the direct path gets extra steps for those that healed the assistant, weighted by parameters. Three bases
are built in the registry, evaluated on the test splits of every public domain and compared example by example: through the
assistant, directly at equal total budget, and directly at equal steps (for an assistant that exists anyway).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from factory.config.load import load_specs
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.stats import BootstrapConfig, ExampleSums, paired_difference, summarize
from factory.models.base import load_base, trim_teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.base import Bases
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.format import format_metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size")
    parser.add_argument("--steps", type=int, default=550, help="healing steps of the size itself, after the assistant")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    given = parser.parse_args()
    specs, registry = load_specs(given.domains), Registry(given.registry)
    family = specs.family_of_size(given.size)
    assistant = family.model_copy(update={"path": "auto"}).teacher_assistant(given.size)
    if assistant is None:
        raise SystemExit(f"error: family {family.name} has no larger size than {given.size} with as many tokens")

    def bases(path: Any, steps: int) -> Bases:
        heal = family.settings(given.profile).heal.model_copy(update={"steps": steps})
        other = family.model_copy(update={"path": path, "heal": heal, "profiles": {}})
        return Bases(specs, other, profile="default", registry=registry)

    between = Bases(specs, family, profile=given.profile, registry=registry).base(assistant)
    through = bases((assistant,), given.steps).base(given.size, between)
    share = between.manifest["parameters"] / through.manifest["parameters"]
    paid = round(between.manifest["training"]["config"]["steps"] * share)
    equal = bases("none", given.steps).base(given.size)
    direct = bases("none", given.steps + paid).base(given.size)
    named = {
        f"through {between.reference}, {given.steps} steps": through,
        f"direct, equal total budget: {given.steps + paid} steps": direct,
        f"direct, equal steps: {given.steps}": equal,
    }
    print(table(bases("none", given.steps), named))


def table(bases: Bases, named: dict[str, Version]) -> str:
    """Markdown: a base a line, KL of all domains' test splits together, and how far the first is ahead of it."""
    loaded = {name: load_base(version.folder, bases.device) for name, version in named.items()}
    teacher = trim_teacher(bases.teacher, next(iter(loaded.values())).shape.tokens)
    examples = bases.family.settings(bases.profile).evaluate.examples
    held_out = [
        one
        for domain in bases.public_domains
        for one in tokenize_examples(
            list(bases.data(domain.name).rows["test"])[:examples], teacher.tokenizer, domain.teacher_context
        )
    ]
    sums: dict[str, ExampleSums] = measure(teacher, {name: fixed_model(base.model) for name, base in loaded.items()}, held_out)
    bootstrap = BootstrapConfig(bases.family.evaluate.bootstrap, bases.seed)
    first = next(iter(sums.values()))
    lines = ["| base | parameters | of the teacher | KL | top-1 agreement | entropy gap | the first is ahead by, paired |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, one in sums.items():
        figures = summarize(one, None, bootstrap)
        parameters = named[name].manifest["parameters"]
        ahead = paired_difference(one.kl, first.kl, one.tokens, bootstrap)
        written = {key: format_metric(figures[key]) for key in ("kl", "top1_agreement", "entropy_gap")}
        cells = [f"{parameters / 1e6:.1f} M", f"{parameters / bases.teacher.parameters:.1%}", *written.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {'-' if one is first else format_metric(ahead)} |")
    lines.append(f"\nn {int(first.tokens.sum()):,} completion tokens of {len(held_out)} examples, seed {bases.seed}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
