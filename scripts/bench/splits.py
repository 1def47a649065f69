"""What each domain's splits hold, and how near they are to one another: python scripts/bench/splits.py

Prompts are read, cleaned and split as a build does it; the teacher answers nothing. "near in train" are the validation and test
prompts whose cosine with a training prompt is at least 0.95, 0.90 and 0.85.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from factory.config.load import load_specs
from factory.data.dataset import SPLITS, PromptSet, describe_dropped
from factory.data.sources import Example
from factory.pipeline.context import FamilyModels, make_context, resolve_models
from factory.pipeline.dataset import load_prompts
from factory.registry.registry import Registry

COSINES = (0.95, 0.90, 0.85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="*", metavar="domain", help="all public domains by default")
    parser.add_argument("--family", default="default")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--folder", type=Path, default=Path("domains"), help="of the YAML files")
    given = parser.parse_args()
    specs = load_specs(given.folder)
    context = make_context(specs, specs.family(given.family), registry=Registry("registry"), profile=given.profile)
    models = resolve_models(context.family, specs.root, context.device)
    print("| domain | train, validation, test | their templates | validation near in train | test near in train | dropped |")
    print("|---|---|---|---|---|---|")
    for name in given.domains or [domain.name for domain in context.public_domains]:
        print(describe(name, load_prompts(context, models, specs.domain(name))[0], models), flush=True)


def describe(name: str, prompts: PromptSet, models: FamilyModels) -> str:
    """One row of the table."""
    parts = [getattr(prompts, split) for split in SPLITS]
    cells = [
        ", ".join(f"{len(part):,}" for part in parts),
        ", ".join(str(len({example.template for example in part if example.template})) for part in parts),
        near(prompts.validation, prompts.train, models),
        near(prompts.test, prompts.train, models),
        describe_dropped(prompts.dropped),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def near(held_out: Sequence[Example], train: Sequence[Example], models: FamilyModels) -> str:
    """``near(prompts.test, prompts.train, models) == "0, 12, 80"``: of the held-out prompts, by ``COSINES``."""
    if not held_out or not train:
        return "-"
    closest = (models.embed([one.text for one in held_out]) @ models.embed([one.text for one in train]).T).max(axis=1)
    return ", ".join(str(int((closest >= cosine).sum())) for cosine in COSINES)


if __name__ == "__main__":
    main()
