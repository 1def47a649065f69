"""``factory experiment``: methods of distillation beside one another, for researchers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.context import choose, load_context
from factory.cli.options import (
    DOMAINS,
    REGISTRY,
    Device,
    Domains,
    Family,
    Json,
    PinnedBase,
    Profile,
    RegistryFolder,
    Seed,
    Size,
    in_a_folder,
)
from factory.cli.tables import experiment_table
from factory.cli.terminal import print_report, say
from factory.registry.registry import Registry

if TYPE_CHECKING:
    from factory.pipeline.experiment import ExperimentReport


def experiment(
    methods: Annotated[Path, typer.Argument(help="A YAML file of methods: docs/experiments.md.")],
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="The domain that all methods are trained on.")],
    size: Size = None,
    family: Family = None,
    profile: Profile = "default",
    seed: Seed = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each method, from --seed upward.")] = 3,
    base: PinnedBase = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.json", callback=in_a_folder, help="Write the results here, and as CSV beside it."),
    ] = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Compare methods of distillation on one domain: equal budgets, tuned learning rates, several seeds. Resumable."""
    from factory.config.load import load_methods

    specs, chosen, size = choose(domains, family=family, size=size, profile=profile)
    spec = load_methods(methods, chosen.settings(profile, specs.domain(domain)).distill)
    context = load_context(specs, chosen, Registry(registry), profile=profile, seed=seed, device=device, json=json)
    from factory.pipeline.experiment import run_experiment

    _print_report(run_experiment(context, domain, size, spec, seeds=seeds, base=base), out, json)


def _print_report(report: ExperimentReport, out: Path | None, json: bool) -> None:
    from factory.cache import replace_file, storage_errors
    from factory.reports.experiment import csv_text

    content = report.content
    print_report(content, experiment_table(content), json=json, save=out)
    if out is not None:
        with storage_errors(f"cannot write {out.with_suffix('.csv')}"):
            replace_file(out.with_suffix(".csv"), csv_text(content).encode())
        say(f"wrote {out} and {out.with_suffix('.csv')}")
