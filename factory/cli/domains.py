"""``factory new | validate | data | route``: domains and their data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.context import choose, load_context, read_domains
from factory.cli.options import DOMAINS, REGISTRY, Device, Domains, Family, Json, Profile, RegistryFolder, Seed
from factory.cli.tables import heap_table, plan_json, plan_table, preview_table
from factory.cli.terminal import load_libraries, print_json, print_table, say
from factory.errors import UsageError
from factory.registry.registry import Registry

if TYPE_CHECKING:
    from factory.config.languages import UnknownLanguage
    from factory.config.load import SpecFolder
    from factory.config.new_domain import FolderSpec
    from factory.config.schema import Specs
    from factory.pipeline.context import BuildContext


def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens, such as `veterinary`.")],
    data: Annotated[
        Path | None,
        typer.Option("--from", metavar="DATA", help="A file, or a folder of files: write a domain and a family that fit it."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="REF", help="With --from: hub:org/name@revision, pypi:..., path:folder.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", metavar="N", help="With --from: bytes of the base at most, such as 60MB.")
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="With --from: the licence of the data, which cards list.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="COLUMN", help="With --from: the column of the prompts.")
    ] = None,
    completion: Annotated[
        str | None, typer.Option("--completion", metavar="COLUMN", help="With --from: the column of the answers.")
    ] = None,
    domains: Annotated[
        Path | None,
        typer.Option(
            "--domains", metavar="DIR", help="Folder to write to: `domains` if left out; with --from a new one, NAME."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a domain that can be built as it is: from data with --from, else from templates to put your own prompts into."""
    from factory.config.new_domain import FolderSpec, new_domain

    if data is not None:
        return _new_from(FolderSpec(name, data, domains or Path(name), teacher, max_bytes, license, prompt, completion), json)
    if given := [one for one in (teacher, max_bytes, license, prompt, completion) if one is not None]:
        raise UsageError(f"{given[0]} has no effect without data; name them with --from")
    path = new_domain(name, domains or DOMAINS)
    line = f"wrote {path}; edit it, then:\n  factory validate\n  factory data {name}\n  factory build {name}"
    print_json({"path": str(path)}) if json else typer.echo(line)


def _new_from(wish: FolderSpec, json: bool) -> None:
    """Writes the folder, and shows what a build of it would do."""
    load_libraries(shown=not json)
    from factory.pipeline.new_folder import new_folder
    from factory.pipeline.plan import plan

    folder = new_folder(wish, say=(lambda line: None) if json else say)
    specs, family, size = choose(folder)
    steps = plan(load_context(specs, family, Registry(REGISTRY), json=json), [wish.name], size)
    if json:
        return print_json({"path": str(folder), **plan_json(steps)})
    print_table(plan_table(steps))
    typer.echo(f"wrote {folder}/; then:\n  factory build {wish.name} --domains {folder}")


def validate(
    domains: Domains = DOMAINS,
    fix: Annotated[bool, typer.Option("--fix", help="First rename old keys and paths in the files.")] = False,
    json: Json = False,
) -> None:
    """Check every YAML file, and report each mistake with its line."""
    from factory.config.fix import fix_folder

    for change in fix_folder(domains) if fix else ():
        say(change)
    folder = _with_what_is_missing(read_domains(domains))
    if json and folder.mistakes:
        print_json({"valid": False, "mistakes": [mistake.json() for mistake in folder.mistakes]})
    counts = _count(folder.specs())
    line = f"{domains}: valid; " + ", ".join(f"{what} {count}" for what, count in counts.items())
    print_json({"valid": True, **counts}) if json else typer.echo(line)


def data(
    name: Annotated[str | None, typer.Argument(help="A domain.")] = None,
    pool: Annotated[
        Path | None, typer.Option("--pool", metavar="PATH", help="In place of a domain: texts to sort into all of them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="With --pool: write a file for each domain here.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read, clean and split only: the teacher answers nothing, no data set is kept.")
    ] = False,
    family: Family = None,
    profile: Profile = "default",
    seed: Seed = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Make a domain's data set and preview it: counts, what was dropped and why, samples, whether it is too small.

    With --pool sort a heap of texts into the domains instead.
    """
    if (name is None) == (pool is None) or (out and not pool) or (dry_run and pool):
        raise typer.BadParameter("give a domain, or --pool PATH (with or without --out DIR)", param_hint="NAME")
    specs, chosen, _ = choose(domains, family=family, profile=profile, needs=[name] if name else None)
    context = load_context(specs, chosen, Registry(registry), profile=profile, seed=seed, device=device, json=json)
    content = _sorted(context, pool, out) if pool else _data_set(context, str(name), dry_run)
    print_json(content) if json else print_table(heap_table(content) if pool else preview_table(content))


def route(
    text: Annotated[str, typer.Argument(help="Any text, in quotes.")],
    family: Family = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Say which domain a text belongs to, or none."""
    specs, chosen, _ = choose(domains, family=family)
    context = load_context(specs, chosen, Registry(registry), device=device, json=json)
    content, unknown = _routed(context, text)
    print_json(content) if json else typer.echo(_describe(content))
    if unknown and not json:
        say(f"warning: {unknown}")


def _data_set(context: BuildContext, name: str, dry_run: bool) -> dict[str, Any]:
    from factory.pipeline.context import models_for
    from factory.pipeline.dataset import make_dataset
    from factory.pipeline.preview import dry_preview, preview

    spec = context.specs.domain(name)
    models = models_for(context, spec)
    return dry_preview(context, models, spec) if dry_run else preview(context, models, make_dataset(context, models, spec))


def _sorted(context: BuildContext, pool: Path, out: Path | None) -> dict[str, Any]:
    from factory.pipeline.context import resolve_models
    from factory.pipeline.sorting import sort_pool

    return sort_pool(context, resolve_models(context.family, context.specs.root, context.device), pool, out)


def _routed(context: BuildContext, text: str) -> tuple[dict[str, Any], UnknownLanguage | None]:
    from factory.data.language import unknown_language
    from factory.pipeline.context import resolve_models
    from factory.pipeline.dataset import load_router

    router = load_router(context, resolve_models(context.family, context.specs.root, context.device))
    unknown = unknown_language(text, context.family.languages)
    language = {"language": unknown.language, "unknown_to": list(unknown.known)} if unknown else {}
    return {**vars(router.route([text])[0]), "router": router.version, **language}, unknown


def _describe(found: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{name} {score:.3f}" for name, score in found["scores"].items())
    return f"{found['domain'] or 'none'}   score {found['score']:.3f}, threshold {found['threshold']:.3f}   ({scores})"


def _with_what_is_missing(folder: SpecFolder) -> SpecFolder:
    """With a mistake where no file has one and there is no domain, or no family."""
    from factory.config.mistakes import Mistake

    if folder.mistakes:
        return folder
    missing = [what for what, count in _count(folder.specs()).items() if count == 0 and what != "pools"]
    message = f"has no {' and no '.join(missing)}, so nothing can be built; `factory new NAME` adds a domain"
    return folder.with_mistakes([Mistake(folder.root, None, "", message)] if missing else [])


def _count(specs: Specs) -> dict[str, int]:
    counts = {"domains": len(specs.domains), "families": len(specs.families), "pools": len(specs.pools)}
    return {"files": sum(counts.values()), **counts}
