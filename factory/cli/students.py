"""``factory plan | build | list | show | compare | promote | export``: students and the registry that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factory.cli.context import choose, choose_domains, domains_of, load_context
from factory.cli.options import (
    DOMAINS,
    REGISTRY,
    TEACHER,
    All,
    AllMetrics,
    Baselines,
    Canaries,
    Device,
    DomainOrAll,
    Domains,
    Family,
    Json,
    PinnedBase,
    Profile,
    RebuildBase,
    Ref,
    RegistryFolder,
    Seed,
    Size,
)
from factory.cli.tables import matrix_json, matrix_table, plan_json, plan_lines, plan_table
from factory.cli.terminal import load_libraries, print_json, print_table, say
from factory.config.quantization import Quantization
from factory.errors import RegistryError, UsageError
from factory.registry.references import CHAMPION
from factory.registry.registry import Registry

if TYPE_CHECKING:
    from factory.pipeline.adapter_matrix import AdapterMatrix
    from factory.pipeline.build import BuildOptions
    from factory.pipeline.context import BuildContext
    from factory.registry.versions import Version


def plan(
    name: DomainOrAll = None,
    every: All = False,
    size: Size = None,
    family: Family = None,
    profile: Profile = "default",
    seed: Seed = None,
    baselines: Baselines = False,
    canaries: Canaries = None,
    base: PinnedBase = None,
    rebuild_base: RebuildBase = False,
    sample: Annotated[
        bool, typer.Option("--sample", help="Have the teacher answer 16 prompts, to see how long its answers are.")
    ] = False,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Show what `factory build` would do with the same arguments, and how long it would take. Makes nothing."""
    specs, chosen, size = choose(domains, family=family, size=size, profile=profile)
    names = choose_domains(specs, name, every)
    context = load_context(specs, chosen, Registry(registry), profile=profile, seed=seed, device=device, json=json)
    from factory.pipeline import plan as planning
    from factory.pipeline.build import BuildOptions

    steps = planning.plan(context, names, size, BuildOptions(baselines, canaries, base, rebuild_base), sample=sample)
    print_json(plan_json(steps)) if json else print_table(plan_table(steps))


def build(
    name: DomainOrAll = None,
    every: All = False,
    size: Size = None,
    family: Family = None,
    profile: Profile = "default",
    seed: Seed = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Build even if the teacher pre-check fails; it is recorded.")] = False,
    baselines: Baselines = False,
    canaries: Canaries = None,
    base: PinnedBase = None,
    rebuild_base: RebuildBase = False,
    all_metrics: AllMetrics = False,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Distil a student for a domain, evaluate it, and publish it in the registry."""
    specs, chosen, size = choose(domains, family=family, size=size, profile=profile)
    names, here = choose_domains(specs, name, every), Registry(registry)
    context = load_context(
        specs, chosen, here, profile=profile, seed=seed, device=device, resume=resume, force=force, json=json
    )
    from factory.pipeline.build import BuildOptions

    versions = _build(context, names, size, BuildOptions(baselines, canaries, base, rebuild_base))
    _print_built(versions, all_metrics, json)


def _build(context: BuildContext, names: list[str], size: str, options: BuildOptions) -> list[Version]:
    """Says what will be done and how long it takes; then builds, and reports each student's warnings and failed gates."""
    from factory.pipeline.build import build_students
    from factory.pipeline.plan import plan
    from factory.reports.view import view_of

    for line in plan_lines(plan(context, names, size, options)):
        context.say(line)
    versions = []
    for version in build_students(context, names, size, options):
        context.say(f"published {version.reference} in {version.folder}")
        view = view_of(version.manifest)
        for line in (*(f"warning: {text}" for text in view.warnings), *(f"gate not passed: {text}" for text in view.reasons)):
            context.say(line)
        versions.append(version)
    return versions


def _print_built(versions: list[Version], all_metrics: bool, json: bool) -> None:
    from factory.reports.compare import compare_table
    from factory.reports.console import show_json

    if json:
        return print_json([show_json(version) for version in versions])
    print_table(compare_table(versions, teacher=True, all_metrics=all_metrics))


def list_(
    source: Annotated[str | None, typer.Option("--source", help="Only versions trained on this source id.")] = None,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """List students and bases: version, alias, size, fidelity, date."""
    from factory.reports.console import list_json, list_table

    here = Registry(registry)
    found = here.versions() if source is None else here.trained_on(source)
    if json:
        return print_json(list_json(found))
    if found:
        return print_table(list_table(found))
    typer.echo(f"nothing in {registry} was trained on {source!r}" if source else f"{registry} is empty; try `factory build`")


def show(ref: Ref, all_metrics: AllMetrics = False, registry: RegistryFolder = REGISTRY, json: Json = False) -> None:
    """Show one version: verdict, metrics, lineage, data, training, samples."""
    from factory.reports import console

    here = Registry(registry)
    version = here.resolve(ref)
    aliases = [alias for alias, number in here.aliases(version.name).items() if number == version.number]
    if json:
        return print_json(console.show_json(version, aliases))
    print_table(console.show(version, aliases, all_metrics=all_metrics))


def compare(
    refs: Annotated[list[str], typer.Argument(help="Versions; the word `teacher` adds a column for it.")],
    matrix: Annotated[bool, typer.Option("--matrix", help="Evaluate every adapter on every student's domain.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained report: verdict, plots, samples.")
    ] = None,
    all_metrics: AllMetrics = False,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Compare versions side by side; the best of each row is marked."""
    here = Registry(registry)
    versions = [here.resolve(ref) for ref in refs if ref != TEACHER]
    if matrix:
        found = _adapter_matrix(versions, here, domains, device, json)
        return print_json(matrix_json(found)) if json else print_table(matrix_table(found))
    if html is not None:
        _write_report(versions, here, html)
    _print_comparison(versions, TEACHER in refs, all_metrics, json)


def _adapter_matrix(versions: list[Version], registry: Registry, domains: Path, device: str, json: bool) -> AdapterMatrix:
    """With the settings of the first version's build."""
    if not versions:
        raise RegistryError("a matrix needs two or more students of one base; `factory list` shows them")
    manifest = versions[0].manifest
    specs, family, _ = choose(domains, family=manifest.family, profile=manifest.profile, needs=domains_of(versions))
    context = load_context(specs, family, registry, profile=manifest.profile, seed=manifest.seed, device=device, json=json)
    from factory.pipeline.adapter_matrix import adapter_matrix

    return adapter_matrix(context, versions)


def _write_report(versions: list[Version], registry: Registry, path: Path) -> None:
    from factory.reports.html import write_page

    write_page(versions, path, lineage=registry.lineage(versions))
    say(f"wrote {path}")


def _print_comparison(versions: list[Version], teacher: bool, all_metrics: bool, json: bool) -> None:
    from factory.reports.compare import compare_json, compare_table

    if json:
        return print_json(compare_json(versions, teacher=teacher))
    print_table(compare_table(versions, teacher=teacher, all_metrics=all_metrics))


def promote(
    ref: Ref,
    alias: Annotated[str, typer.Argument(help="The alias to point at this version.")] = CHAMPION,
    override: Annotated[
        str | None,
        typer.Option("--override", metavar="REASON", help="Promote although it failed its gates; the reason is recorded."),
    ] = None,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Point an alias at a version; a bare name means its champion. Exit code 3: the version failed its gates."""
    here = Registry(registry)
    version = here.promote(ref, alias, override=override)
    content: dict[str, str | None] = {"reference": version.reference, "alias": f"{version.name}@{alias}"}
    line = f"{content['alias']} is now {version.reference}"
    if override is not None:
        content["bare_name"] = _meaning_of(version.name, here)
        line += f" despite its gates; {version.name} alone means {content['bare_name'] or 'no version'}"
    print_json(content) if json else typer.echo(line)


def _meaning_of(name: str, registry: Registry) -> str | None:
    try:
        return registry.resolve(name).reference
    except RegistryError:
        return None


def export(
    ref: Ref,
    format: Annotated[
        Literal["peft", "merged", "gguf", "ollama", "sentence-transformers"],
        typer.Option("--format", help="What the application loads."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new folder.")],
    quantization: Annotated[
        Quantization | None,
        typer.Option("--quantization", help="For gguf and ollama; a base's own grid if it has one, else q8_0, if left out."),
    ] = None,
    part: Annotated[
        Literal["merged", "base", "adapter"],
        typer.Option("--part", help="For gguf: base and adapter merged, or only one of them."),
    ] = "merged",
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Write a version in another program's format and check that it answers alike; the result is in DIR/parity.json."""
    if ref == TEACHER:
        raise UsageError("the teacher is not in the registry, so it cannot be exported; `factory list` shows what can")
    here = Registry(registry)
    version = here.resolve(ref)
    load_libraries(shown=not json)
    from factory.export.export import export_version
    from factory.export.metadata import format_report

    found = export_version(version, here, format, to, quantization=quantization, part=part, device=device)
    print_json(vars(found)) if json else typer.echo(f"wrote {to}: {format_report(found)}")
