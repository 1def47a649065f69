"""A small size with and without a teacher assistant: python scripts/bench/teacher_assistant.py tiny --steps 550

Publishes four bases of the size and compares them, example by example, on the test splits of all public domains: cut from the
next larger base and taught by it; cut from it and taught by the teacher; cut from the teacher and taught by it for the same
total cost, and for as many steps. The total cost includes the healing of the larger base, in proportion to its parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from healing import with_healing

from factory.config.load import load_specs
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.stats import paired_difference, summarize
from factory.models.base import load_base, trim_teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.base import make_base, publish_base
from factory.pipeline.context import BuildContext, FamilyModels, make_context, resolve_models
from factory.pipeline.dataset import make_dataset
from factory.registry.manifest import MetricValue
from factory.registry.plain_json import plain_json, to_json
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.format import format_metric

METRICS = ("kl", "top1_agreement", "entropy_gap")


@dataclass(frozen=True)
class Result:
    """One base beside the teacher."""

    name: str
    parameters: int
    of_teacher: float  # its share of the teacher's parameters
    metrics: dict[str, MetricValue]
    ahead: MetricValue | None  # this base's KL minus the first one's, paired by example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size")
    parser.add_argument("--steps", type=int, default=550, help="healing steps of the size itself, after the assistant")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--domains", type=Path, default=Path("domains"))
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    specs = load_specs(given.domains)
    family = specs.family_of_size(given.size)
    context = make_context(specs, family, registry=Registry(given.registry), profile=given.profile)
    models = resolve_models(family, specs.root, context.device)
    results = compare(context, models, make_bases(context, models, given.size, given.steps))
    print(table(results))
    print(f"\nn {results[0].metrics['kl'].n:,} completion tokens, seed {context.seed}")
    if given.save:
        run = {"size": given.size, "profile": given.profile, "steps": given.steps, "seed": context.seed,
               "git_commit": context.git_commit, "results": [asdict(one) for one in results]}  # fmt: skip
        given.save.write_bytes(to_json(plain_json(run, "teacher_assistant")))


def make_bases(context: BuildContext, models: FamilyModels, size: str, steps: int) -> dict[str, Version]:
    """The four bases, the one that was taught by the assistant first."""
    named = context.family.model_copy(update={"path": "auto"}).larger_size(size)
    if named is None:
        raise SystemExit(f"error: family {context.family.name} has no larger size than {size} with the same vocabulary")
    assistant = make_base(context, models, named).version
    assisted = publish_base(with_path(context, "assistant", steps), models, size, assistant=assistant)
    stepwise = publish_base(with_path(context, "stepwise", steps), models, size, assistant=assistant)
    share = assistant.manifest.parameters / assisted.manifest.parameters
    total = steps + round(assistant.manifest.training.config["steps"] * share)
    return {
        f"taught by the assistant {assistant.reference}, {steps} steps": assisted,
        f"stepwise from {assistant.reference}, {steps} steps": stepwise,
        f"direct, equal total budget: {total:,} steps": make_base(with_path(context, "direct", total), models, size).version,
        f"direct, equal steps: {steps:,}": make_base(with_path(context, "direct", steps), models, size).version,
    }


def with_path(context: BuildContext, path: Any, steps: int) -> BuildContext:
    """The same build with another ``path`` and other healing steps."""
    changed = with_healing(context, {"steps": steps})
    return replace(changed, family=changed.family.model_copy(update={"path": path}))


def compare(context: BuildContext, models: FamilyModels, versions: Mapping[str, Version]) -> list[Result]:
    """Every base on the same held-out examples."""
    bases = {name: load_base(version.folder, context.device) for name, version in versions.items()}
    teacher = trim_teacher(models.teacher, next(iter(bases.values())).shape.tokens)
    datasets = [make_dataset(context, models, domain) for domain in context.public_domains]
    limit = context.settings().evaluate.examples
    held_out = [
        example
        for data in datasets
        for example in tokenize_examples(list(data.rows["test"])[:limit], teacher.tokenizer, data.spec.contexts)
    ]
    sums = measure(teacher, {name: fixed_model(base.model) for name, base in bases.items()}, held_out)
    first = next(iter(sums.values()))
    return [
        Result(
            name=name,
            parameters=versions[name].manifest.parameters,
            of_teacher=versions[name].manifest.parameters / models.teacher.parameters,
            metrics=summarize(one, None, context.bootstrap),
            ahead=None if one is first else paired_difference(one.kl, first.kl, one.tokens, context.bootstrap),
        )
        for name, one in sums.items()
    ]


def table(results: list[Result]) -> str:
    """Markdown, one base per line."""
    lines = ["| base | parameters | of the teacher | KL | top-1 agreement | entropy gap | the first is ahead by, paired |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in results:
        cells = [
            f"{one.parameters / 1e6:.1f} M",
            f"{one.of_teacher:.1%}",
            *(format_metric(one.metrics[name]) for name in METRICS),
        ]
        lines.append(f"| {one.name} | {' | '.join(cells)} | {format_metric(one.ahead)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
