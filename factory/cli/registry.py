"""``factory verify | history | demote | delete | import | reindex | gc``: looking after the registry."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.options import REGISTRY, Json, RegistryFolder
from factory.cli.tables import garbage_json, garbage_table, history_table
from factory.cli.terminal import load_libraries, print_json, print_table
from factory.registry.registry import Registry

Number = Annotated[str, typer.Argument(metavar="NAME@NUMBER", help="A version by its number, as in healthcare-medium@3.")]


def verify(
    ref: Annotated[str | None, typer.Argument(help="A version, checked with its base; every version if left out.")] = None,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Read every byte of a version, or of all, and compare it with what was published. Exit code 1: something differs."""
    here = Registry(registry)
    found = here.verify_all() if ref is None else here.verify_lineage(ref)
    content = {"ok": not any(found.values()), "versions": found}
    if json:
        print_json(content)
    for reference, problems in {} if json else found.items():
        typer.echo("\n".join(f"{reference}: {problem}" for problem in problems or ["as it was published"]))
    raise typer.Exit(0 if content["ok"] else 1)


def history(
    name: Annotated[str | None, typer.Argument(help="A student or base; all of them if left out.")] = None,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Show every move of an alias: who, when, from which version to which."""
    moves = Registry(registry).history(name)
    if json:
        return print_json([asdict(move) for move in moves])
    print_table(history_table(moves)) if moves else typer.echo("no alias was ever moved; `factory promote` moves one")


def demote(
    alias: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="As in healthcare-medium@champion.")],
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Remove an alias. The version that it points at stays."""
    move = Registry(registry).demote(alias)
    print_json(asdict(move)) if json else typer.echo(f"{alias} is no more; it was {move.name}@{move.before}")


def delete(ref: Number, registry: RegistryFolder = REGISTRY) -> None:
    """Delete a version for good. Refused while an alias points at it or students stand on it."""
    Registry(registry).delete(ref)
    typer.echo(f"deleted {ref}; its number is not used again")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of one version in another registry.")],
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Check a version that was published in another registry, and take it in. A bare name means it once it is promoted."""
    load_libraries(shown=not json)
    from factory.export.import_version import import_version

    version = import_version(folder, Registry(registry))
    content = {"reference": version.reference, "from": str(folder)}
    said = f"{folder} is now {version.reference}; promote it, and {version.name} alone means it"
    print_json(content) if json else typer.echo(said)


def reindex(registry: RegistryFolder = REGISTRY) -> None:
    """Read every manifest anew: the index, and registry.json if that is damaged."""
    here = Registry(registry)
    rebuilt = here.reindex()
    invalid = here.invalid()
    more = "; registry.json was damaged: aliases have to be promoted again" if rebuilt else ""
    typer.echo(f"{len(here.versions())} versions, {len(invalid)} folders that are none{more}")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    unused: Annotated[float, typer.Option("--unused", min=0, metavar="DAYS", help="How long cached work is kept unused.")] = 30,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Remove what nothing needs: leftovers of killed processes, deleted versions, cached work that was not used for weeks."""
    from factory.registry.garbage import collect, find_garbage

    here = Registry(registry)
    found = find_garbage(here, unused)
    for garbage in [] if dry_run else found:
        collect(here, garbage)
    if json:
        return print_json({"removed": not dry_run, "garbage": garbage_json(found)})
    print_table(garbage_table(found, removed=not dry_run))
