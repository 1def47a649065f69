"""``factory doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli.context import choose
from factory.cli.options import DOMAINS, REGISTRY, Domains, Json, RegistryFolder
from factory.cli.tables import findings_table
from factory.cli.terminal import load_libraries, print_json, print_table


def doctor(
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte of cached models and versions.")] = False,
    fetch: Annotated[str | None, typer.Option("--fetch", metavar="FAMILY", help="Fetch this family's models first.")] = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Check this machine, the cache and the registry: what is there, what is missing, and the command that gets it."""
    from factory.cli.doctor import can_build, examine, fetch_models

    if fetch is not None:
        _, family, _ = choose(domains, family=fetch)
        load_libraries(shown=not json)
        fetch_models(family, domains)
    findings = examine(domains, registry, verify=verify)
    content = {"ok": can_build(findings), "findings": [vars(finding) for finding in findings]}
    print_json(content) if json else print_table(findings_table(findings))
    raise typer.Exit(0 if can_build(findings) else 1)
