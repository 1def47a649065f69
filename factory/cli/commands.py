"""The commands: each parses, calls one function and prints. ``factory --help`` lists them.

Nothing heavy is imported here: torch is loaded inside the commands that need it, pydantic inside those that read YAML.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from factory.cli.terminal import OneLineErrors, load_libraries, print_json, print_table, progress_bars, say
from factory.config import default_domains
from factory.errors import ExportError, FactoryError, RegistryError, ServeError
from factory.registry.registry import CHAMPION, Registry
from factory.reports.compare import compare_json, compare_table
from factory.reports.console import list_json, list_table, show, show_json

if TYPE_CHECKING:
    from factory.config.schema import FamilySpec, Specs
    from factory.inference import ChatModel
    from factory.registry.versions import Version

app = typer.Typer(
    cls=OneLineErrors,
    help="Distils a teacher into small domain students and keeps them in a local registry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TEACHER = "teacher"

Domains = Annotated[
    Path,
    typer.Option(
        "--domains",
        callback=lambda given: default_domains() if given == DOMAINS else given,
        help="Folder of the YAML files; the shipped ones if there is no ./domains.",
    ),
]
RegistryFolder = Annotated[Path, typer.Option("--registry", help="Folder of the published students and bases.")]
AllMetrics = Annotated[bool, typer.Option("--all-metrics", help="Show everything that was measured.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and no progress.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where models run.")]
Family = Annotated[str | None, typer.Option("--family", help="A family file's name; `default` if left out.")]
Size = Annotated[str | None, typer.Option("--size", help="A size of one family; its default size if left out.")]
Profile = Annotated[str, typer.Option("--profile", help="Settings of the family file, such as `demo`.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Another seed than the family file's.")]
Ref = Annotated[str, typer.Argument(help="NAME (its champion, else its newest), NAME@3 or NAME@champion.")]

DOMAINS, REGISTRY = Path("domains"), Path("registry")


def _version_wanted(wanted: bool) -> None:
    if wanted:
        from factory import __version__

        typer.echo(f"student-factory {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version_wanted, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distils a teacher into small domain students and keeps them in a local registry."""


# ------------------------------------------------------------------------------------------------------------- domains


@app.command(rich_help_panel="Domains")
def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens: veterinary.")],
    domains: Annotated[Path, typer.Option("--domains", help="Folder to write to.")] = DOMAINS,
    json: Json = False,
) -> None:
    """Write domains/NAME.yaml: commented, valid, ready to build and to be filled with prompts."""
    from factory.config.new_domain import new_domain

    path = new_domain(name, domains)
    if json:
        return print_json({"path": str(path)})
    typer.echo(f"wrote {path}; edit it, then:\n  factory validate\n  factory data {name}\n  factory build {name}")


@app.command(rich_help_panel="Domains")
def validate(
    domains: Domains = DOMAINS,
    fix: Annotated[bool, typer.Option("--fix", help="Rename old keys and paths in the files first.")] = False,
    json: Json = False,
) -> None:
    """Check every YAML file and report each mistake with its line."""
    from factory.config.fix import fix_folder
    from factory.config.load import load_specs

    for change in fix_folder(domains) if fix else ():
        say(change)
    counts = _counted(load_specs(domains))
    if json:
        return print_json({"valid": True, **counts})
    typer.echo(f"{domains}: valid; " + ", ".join(f"{count} {what}" for what, count in counts.items()))


@app.command(rich_help_panel="Domains")
def data(
    name: Annotated[str, typer.Argument(help="A domain.")],
    family: Family = None,
    profile: Profile = "default",
    seed: Seed = None,
    domains: Domains = DOMAINS,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Make a domain's data set and preview it: counts, what was dropped and why, samples, whether it is too small."""
    specs = _specs(domains)
    spec, _ = _chosen(specs, None, family, profile)
    specs.domain(name)  # an unknown domain is said before torch is loaded
    load_libraries(shown=not json)
    from factory.pipeline.context import make_context, resolve_models
    from factory.pipeline.dataset import make_dataset
    from factory.pipeline.preview import preview, preview_table

    bars = progress_bars(shown=not json)
    context = make_context(specs, spec, profile=profile, registry=Registry(REGISTRY), device=device, seed=seed, progress=bars)
    models = resolve_models(spec, specs.root, context.device)
    content = preview(context, models, make_dataset(context, models, specs.domain(name)))
    print_json(content) if json else print_table(preview_table(content))


@app.command(rich_help_panel="Domains")
def route(
    text: Annotated[str, typer.Argument(help="Any text, in quotes.")],
    family: Family = None,
    domains: Domains = DOMAINS,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Say which domain a text belongs to, or none."""
    specs = _specs(domains)
    spec, _ = _chosen(specs, None, family)
    load_libraries(shown=not json)
    from factory.pipeline.context import make_context, resolve_models
    from factory.pipeline.dataset import load_router

    context = make_context(specs, spec, registry=Registry(REGISTRY), device=device, progress=progress_bars(shown=not json))
    router = load_router(context, resolve_models(spec, specs.root, context.device))
    found = router.route([text])[0]
    if json:
        return print_json({**vars(found), "router": router.version})
    scores = ", ".join(f"{name} {score:.3f}" for name, score in found.scores.items())
    typer.echo(f"{found.domain or 'none'}   score {found.score:.3f}, threshold {found.threshold:.3f}   ({scores})")


# ------------------------------------------------------------------------------------------------------------ students


@app.command(rich_help_panel="Students")
def build(
    name: Annotated[str | None, typer.Argument(help="A domain; or --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every domain.")] = False,
    size: Size = None,
    family: Family = None,
    profile: Profile = "default",
    seed: Seed = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    baselines: Annotated[bool, typer.Option("--baselines", help="Train and measure plain SFT as well.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if the teacher fails its check; the card says so.")] = False,
    canaries: Annotated[
        int, typer.Option("--canaries", min=0, max=64, help="Plant so many secrets, and measure how well they are memorised.")
    ] = 0,
    base: Annotated[str | None, typer.Option("--base", help="Use this published base.")] = None,
    rebuild_base: Annotated[bool, typer.Option("--rebuild-base", help="Make a new base.")] = False,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Distil a student of a domain, measure it, and publish it in the registry."""
    specs = _specs(domains)
    spec, size_name = _chosen(specs, size, family, profile)
    names = _domains_to_build(specs, name, every)
    load_libraries(shown=not json)
    from factory.pipeline.build import BuildOptions, build_students
    from factory.pipeline.context import make_context

    context = make_context(
        specs,
        spec,
        profile=profile,
        registry=Registry(registry),
        device=device,
        seed=seed,
        resume=resume,
        force=force,
        progress=progress_bars(shown=not json),
        say=say,
    )
    options = BuildOptions(baselines, canaries, base, rebuild_base)
    if dry_run:
        from factory.pipeline.plan import plan

        return print_json([vars(step) for step in plan(context, names, size_name, options)])
    versions = list(build_students(context, names, size_name, options))
    print_json(list(map(show_json, versions))) if json else print_table(compare_table(versions, teacher=True))


@app.command("list", rich_help_panel="Students")
def list_(
    source: Annotated[str | None, typer.Option("--source", help="Only what was trained on this source id.")] = None,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """List students and bases: version, alias, size, fidelity, date."""
    here = Registry(registry)
    found = here.versions() if source is None else here.trained_on(source)
    if json:
        return print_json(list_json(found))
    if found:
        return print_table(list_table(found))
    typer.echo(f"nothing in {registry} was trained on {source!r}" if source else f"{registry} is empty: factory build")


@app.command("show", rich_help_panel="Students")
def show_(ref: Ref, all_metrics: AllMetrics = False, registry: RegistryFolder = REGISTRY, json: Json = False) -> None:
    """Show one version: verdict, fidelity, size and speed; everything else with --all-metrics."""
    here = Registry(registry)
    version = here.resolve(ref)
    aliases = [alias for alias, number in here.aliases(version.name).items() if number == version.number]
    print_json(show_json(version, aliases)) if json else print_table(show(version, aliases, all_metrics))


@app.command(rich_help_panel="Students")
def compare(
    refs: Annotated[list[str], typer.Argument(help="Two or more versions; the word `teacher` adds a column for it.")],
    matrix: Annotated[bool, typer.Option("--matrix", help="Measure every adapter on every one's domain.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one self-contained page: plots, verdicts, samples.")
    ] = None,
    all_metrics: AllMetrics = False,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Compare versions, one column each; the best of each row is marked."""
    here, teacher = Registry(registry), TEACHER in refs
    versions = [here.resolve(ref) for ref in refs if ref != TEACHER]
    if matrix:
        return _print_matrix(versions, here, domains, device, json)
    if html is not None:
        from factory.reports.html import write_page

        write_page(versions, html, lineage=here.lineage(versions))
        say(f"wrote {html}")
    if json:
        return print_json(compare_json(versions, teacher=teacher))
    print_table(compare_table(versions, teacher=teacher, all_metrics=all_metrics))


@app.command(rich_help_panel="Students")
def promote(
    ref: Ref,
    alias: Annotated[str, typer.Argument(help="The alias that shall point at this version.")] = CHAMPION,
    override: Annotated[
        str | None, typer.Option("--override", metavar="REASON", help="Why, though it failed its gates; kept for ever.")
    ] = None,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Point an alias at a version; a bare name means its champion. Exit code 2: it failed its gates."""
    here = Registry(registry)
    version = here.promote(ref, alias, override=override)
    content = {"reference": version.reference, "alias": f"{version.name}@{alias}"}
    line = f"{version.name}@{alias} is now {version.reference}"
    if override is not None:
        try:
            content["bare_name"] = here.resolve(version.name).reference
            line += f", against its gates; {version.name} alone still means {content['bare_name']}"
        except RegistryError as error:
            line += f", against its gates; {version.name} alone means nothing: {error}"
    print_json(content) if json else typer.echo(line)


@app.command(rich_help_panel="Students")
def review(
    ref: Ref,
    other: Annotated[str, typer.Argument(help="Whom it is compared with: a version, or the word `teacher`.")] = TEACHER,
    out: Annotated[Path | None, typer.Option("--out", help="Write both one's answers to this CSV, in blind order.")] = None,
    votes: Annotated[Path | None, typer.Option("--in", help="Read one expert's votes from this CSV.")] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="A .jsonl or .csv with `question`; held-out samples if left out.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Only so many questions.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the blind order; another each time if left out.")] = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Let an expert judge two candidates blind: --out writes their answers, --in reads the votes."""
    if (out is None) == (votes is None):
        raise typer.BadParameter("give --out FILE to write answers, or --in FILE to read votes", param_hint="'--out' / '--in'")
    here = Registry(registry)
    version = here.resolve(ref)
    if votes is not None:
        from factory.reports.review import read_back, result_line

        result = read_back(here, version, votes)
        return print_json(result) if json else typer.echo(result_line(version, result))
    assert out is not None
    compared = other if other == TEACHER else here.resolve(other).reference
    found = _hand_out(version, compared, out, questions, count, seed, domains, here, device, json)
    if json:
        return print_json(found)
    typer.echo(
        f"wrote {found['questions']} questions to {out}, review {found['review']} of {version.reference} against "
        f"{found['against']}; when its column vote says a, b or tie in each row:\n"
        f"  factory review {version.reference} --in {out}"
    )


@app.command(rich_help_panel="Students")
def ask(
    ref: Annotated[str, typer.Argument(help="NAME, NAME@3, NAME@champion, or the word `teacher`.")],
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    family: Family = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Ask a student a question. Stderr says which version answered."""
    chat_model = _teacher(domains, family, device, json) if ref == TEACHER else _student(ref, registry, device, json)
    from factory import inference as students

    answer = students.ask(chat_model, question)
    if json:
        return print_json(vars(answer))
    typer.echo(answer.answer)
    say(f"— {answer.reference}, {answer.seconds:.1f} s" + (f". {answer.notice}" if answer.notice else ""))


@app.command(rich_help_panel="Students")
def explain(
    ref: Ref,
    text: Annotated[str, typer.Argument(help="First words of a text, in quotes.")],
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Show what teacher and student expect to come next, side by side."""
    here = Registry(registry)
    version, specs = here.resolve(ref), _specs(domains)
    load_libraries(shown=not json)
    from factory import inference as students
    from factory.models.device import pick_device

    found = students.explain(version, text, here, specs, pick_device(device))
    if json:
        return print_json(asdict(found))
    print_table(students.explanation_table(found), students.explanation_summary(found))
    say(f"— {found.reference}")


@app.command(rich_help_panel="Students")
def useful(
    ref: Ref,
    questions: Annotated[Path, typer.Option("--questions", help="A .jsonl of real questions with reference answers.")],
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="FAMILY", help="That family's teacher as it is downloaded.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=2, help="At most so many questions.")] = 200,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Measure a student, its base and teacher, and other small models on real questions: bits per byte, tasks."""
    here, specs = Registry(registry), _specs(domains)
    version = here.resolve(ref)
    load_libraries(shown=not json)
    from factory.evaluation.benchmark import benchmark_json, benchmark_table
    from factory.pipeline.experiments import run_benchmark

    others = [specs.family(name) for name in against or ()]
    bars = progress_bars(shown=not json)
    from factory.pipeline.context import make_context

    family = specs.family(version.raw["family"])
    rows = run_benchmark(
        make_context(specs, family, registry=here, device=device, progress=bars), version, questions, others, limit
    )
    print_json(benchmark_json(rows)) if json else print_table(benchmark_table(rows))


# ------------------------------------------------------------------------------------------------------------- serving


@app.command(rich_help_panel="Serving")
def serve(
    host: Annotated[
        str, typer.Option("--host", help="Where it listens; others than this machine only with keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option("--api-keys", metavar="FILE", help="YAML or JSON: key to the students it opens, '*' for all.")
    ] = None,
    upstream: Annotated[
        str | None, typer.Option("--upstream", metavar="URL", help="An OpenAI-compatible server that does the work, as vLLM.")
    ] = None,
    upstream_key: Annotated[
        Path | None, typer.Option("--upstream-key", metavar="FILE", help="Holds that server's key, nothing else.")
    ] = None,
    quantization: Annotated[Literal["f16", "q8_0", "q4"], typer.Option("--quantization", help="Of bases.")] = "q8_0",
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Requests that an engine answers at once.")] = 4,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests in all; the next gets 429 and Retry-After.")] = 128,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of an engine; every core if left out.")] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="Bytes of a request.")] = 1_000_000,
    max_prompt: Annotated[int, typer.Option("--max-prompt", min=1, help="Tokens of a request.")] = 1024,
    max_output: Annotated[int, typer.Option("--max-output", min=1, help="Tokens of an answer.")] = 1024,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds of a request.")] = 120.0,
    family: Family = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    device: Device = "auto",
) -> None:
    """Answer applications over HTTP as OpenAI's API does, and show the students on a page; Ctrl-C stops it."""
    specs, here = _specs(domains), Registry(registry)
    spec, _ = _chosen(specs, None, family)
    server = _serving()
    limits = server.Limits(max_body, max_prompt, max_output, timeout, parallel, queue)
    options = server.Options(host, port, api_keys, upstream, upstream_key, quantization, threads, device, limits)
    with server.listen(options) as listening:
        app = server.make_app(here, specs, spec, options)
        students = sorted({one.name for one in here.versions("student")})
        url = f"http://{host}:{listening.getsockname()[1]}"
        typer.echo(f"{url}/v1 answers for {', '.join([*students, TEACHER, 'auto'])}; {url} shows them")
        server.run(app, listening, limits)


@app.command(rich_help_panel="Students")
def export(
    ref: Ref,
    format: Annotated[
        Literal["peft", "merged", "gguf", "ollama", "sentence-transformers"],
        typer.Option("--format", help="What the application loads."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new folder.")],
    quantization: Annotated[
        Literal["f16", "q8_0", "q4"], typer.Option("--quantization", help="Of gguf and ollama: bits of a weight.")
    ] = "q8_0",
    part: Annotated[
        Literal["merged", "base", "adapter"], typer.Option("--part", help="Of gguf: adapter and base together, or one alone.")
    ] = "merged",
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Write a version as other programs load it, proven to be what is registered; DIR/parity.json says how near."""
    here = Registry(registry)
    version = _exportable(ref, here)
    load_libraries(shown=not json)
    from factory.export.export import export_version
    from factory.export.metadata import format_report

    found = export_version(version, here, format, to, quantization=quantization, part=part, device=device)
    print_json(vars(found)) if json else typer.echo(f"wrote {to}: {format_report(found)}")


# ------------------------------------------------------------------------------------------------------------- machine


@app.command(rich_help_panel="Machine")
def doctor(
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte of cached models and versions.")] = False,
    fetch: Annotated[str | None, typer.Option("--fetch", metavar="FAMILY", help="Fetch this family's models.")] = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
) -> None:
    """Say what this machine has, what is cached, what is missing, and the command that gets it."""
    from factory.cli import doctor as machine

    if fetch is not None:
        family = _specs(domains).family(fetch)
        load_libraries(shown=not json)
        machine.fetch(family, domains)
    findings = machine.examine(domains, registry, verify=verify)
    print_json(machine.doctor_json(findings)) if json else print_table(machine.doctor_table(findings))
    if not machine.is_sound(findings):
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------- what commands share


def _specs(domains: Path) -> Specs:
    from factory.config.load import load_specs

    return load_specs(domains)


def _counted(specs: Specs) -> dict[str, int]:
    """Raises: FactoryError where there is nothing that could be built."""
    counts = {"domains": len(specs.domains), "families": len(specs.families), "pools": len(specs.pools)}
    for what in ("domains", "families"):
        if not counts[what]:
            raise FactoryError(f"{specs.root} has no {what}, so nothing can be built; factory new NAME adds a domain")
    return {"files": sum(counts.values()), **counts}


def _chosen(specs: Specs, size: str | None, family: str | None, profile: str = "default") -> tuple[FamilySpec, str]:
    """The family and size meant; a wrong name is said before torch is loaded."""
    from factory.pipeline.plan import choose_family

    return choose_family(specs, size, family, profile)


def _domains_to_build(specs: Specs, name: str | None, every: bool) -> list[str]:
    if (name is None) == (not every):
        raise typer.BadParameter(f"give one domain, or --all; domains: {', '.join(specs.domains)}", param_hint="NAME")
    return list(specs.domains) if name is None else [specs.domain(name).name]


def _print_matrix(versions: list[Version], registry: Registry, domains: Path, device: str, json: bool) -> None:
    if not versions:
        raise RegistryError("a matrix needs two or more students of one base, not the teacher alone; factory list shows them")
    specs, first = _specs(domains), versions[0].raw
    load_libraries(shown=not json)
    from dataclasses import asdict

    from factory.pipeline.context import make_context
    from factory.pipeline.experiments import adapter_matrix

    family = specs.family(first["family"])
    context = make_context(specs, family, profile=first["profile"], registry=registry, device=device, seed=first["seed"])
    found = adapter_matrix(context, versions)
    print_json({"kl": {d: {n: asdict(m) for n, m in row.items()} for d, row in found.kl.items()}})


def _serving() -> Any:
    """The module ``factory.serve.server``; what it needs besides the factory is an extra."""
    load_libraries(shown=True)
    try:
        from factory.serve import server
    except ImportError as error:
        raise ServeError(f"{error.name} is not installed: pip install 'student-factory[serve]'") from error
    return server


def _student(ref: str, registry: Path, device: str, json: bool) -> ChatModel:
    here = Registry(registry)
    version = here.resolve(ref)
    load_libraries(shown=not json)
    from factory.inference import load_chat_model
    from factory.models.device import pick_device

    return load_chat_model(version, here, pick_device(device))


def _exportable(ref: str, registry: Registry) -> Version:
    if ref == TEACHER:
        raise ExportError("the teacher is not in the registry and is not exported: name a student or a base; factory list")
    return registry.resolve(ref)


def _hand_out(
    version: Version,
    compared: str,
    out: Path,
    questions: Path | None,
    count: int | None,
    seed: int | None,
    domains: Path,
    registry: Registry,
    device: str,
    json: bool,
) -> dict[str, object]:
    from factory.reports import review

    review.check_free(out)
    if compared == version.reference:
        raise RegistryError(f"{compared} cannot be reviewed against itself: name another version, or teacher")
    load_libraries(shown=not json)
    asked = review.load_questions(questions, count) if questions else review.sample_questions(version, count)
    answers = _answers_of(version, compared, asked, domains, registry.root, device, json)
    against = list(answers)[1]
    id = review.hand_out(registry, version, out, asked, *answers.values(), against=against, seed=seed)
    content: dict[str, object] = {"review": id, "path": str(out), "questions": len(asked)}
    return content | {"reference": version.reference, "against": against}


def _answers_of(
    version: Version, other: str, questions: list[str], domains: Path, registry: Path, device: str, json: bool
) -> dict[str, list[str]]:
    """Both candidates' answers by their references, the version's first; cut at one length, which would else tell them."""
    from factory import inference as students

    found: dict[str, list[str]] = {}
    family, limit = version.raw.get("family"), None
    for ref in (version.reference, other):
        chat_model = _teacher(domains, family, device, json) if ref == TEACHER else _student(ref, registry, device, json)
        limit = limit or chat_model.max_new_tokens
        chat_model = replace(chat_model, max_new_tokens=limit)
        with progress_bars(shown=not json)(f"answers of {chat_model.reference}", len(questions)) as advance:
            found[chat_model.reference] = []
            for question in questions:
                found[chat_model.reference].append(students.ask(chat_model, question).answer)
                advance(1)
    return found


def _teacher(domains: Path, family: str | None, device: str, json: bool) -> ChatModel:
    specs = _specs(domains)
    spec, _ = _chosen(specs, None, family)
    load_libraries(shown=not json)
    from factory.inference import load_teacher_chat_model
    from factory.models.device import pick_device

    return load_teacher_chat_model(spec, specs, pick_device(device))
