"""``factory review | ask | explain | benchmark``: what published students answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.context import choose, choose_download, domains_of, load_answerer, load_chat_model, load_context
from factory.cli.options import (
    DOMAINS,
    REGISTRY,
    TEACHER,
    Device,
    Domains,
    Family,
    Json,
    Ref,
    RegistryFolder,
    Save,
)
from factory.cli.tables import benchmark_json, benchmark_table, explanation_summary, explanation_table
from factory.cli.terminal import load_libraries, print_json, print_report, print_table, progress_bars, say
from factory.config.quantization import QUANTIZATIONS
from factory.errors import UsageError
from factory.registry.registry import Registry
from factory.registry.versions import Version


def review(
    ref: Ref,
    other: Annotated[str, typer.Argument(help="Compared with: another version, or the word `teacher`.")] = TEACHER,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write both candidates' answers to this CSV, in blind order.")
    ] = None,
    votes: Annotated[Path | None, typer.Option("--in", metavar="FILE", help="Read the expert's votes from this file.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="A file with a column `question`; by default held-out samples.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="At most this many questions.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the blind order; a random one if left out.")] = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Let an expert judge two candidates blind: --out writes their answers, --in reads the votes."""
    if (out is None) == (votes is None):
        raise typer.BadParameter("give --out FILE to write answers, or --in FILE to read votes", param_hint="'--out' / '--in'")
    here = Registry(registry)
    if votes is not None:
        return _read_votes(here, ref, votes, json)
    assert out is not None
    compared = TEACHER if other == TEACHER else here.resolve(other).reference
    _hand_out(here, ref, compared, out, questions, count, seed, domains, device, json)


def ask(
    ref: Annotated[str, typer.Argument(help="NAME, NAME@3, NAME@champion, a domain with a cascade, or the word `teacher`.")],
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    family: Family = None,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Ask a student, a cascade, a base or the teacher a question. Stderr says which version answered."""
    answer = load_answerer(ref, Registry(registry), domains, family=family, device=device, json=json)(question)
    if json:
        return print_json(asdict(answer))
    typer.echo(answer.answer)
    if answer.language:
        say(f"warning: {answer.language}")
    asked = f"; asked: {', '.join(answer.asked)}" if answer.asked else ""
    say(f"— {answer.reference}, {answer.seconds:.1f} s{asked}" + (f". {answer.notice}" if answer.notice else ""))


def explain(
    ref: Ref,
    text: Annotated[str, typer.Argument(help="First words of a text, in quotes.")],
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Show the next tokens that teacher and student expect after a text, side by side."""
    here = Registry(registry)
    version = here.resolve(ref)
    specs, family, _ = choose(domains, family=version.manifest.family, needs=())
    context = load_context(specs, family, here, device=device, json=json)
    from factory import inference

    found = inference.explain(version, text, here, specs, context.device)
    if json:
        return print_json(asdict(found))
    print_table(explanation_table(found), explanation_summary(found))


def benchmark(
    ref: Ref,
    questions: Annotated[Path, typer.Argument(help="A file of real questions with reference answers.")],
    references: Annotated[
        Path | None,
        typer.Option(
            "--references", metavar="FILE", help="Fine-tune the download on these; by default on the domain's own answers."
        ),
    ] = None,
    download: Annotated[
        str | None,
        typer.Option(
            "--download",
            metavar="MODEL",
            help="A rival to fine-tune: hub:org/name@revision, path:folder or a family; by default the teacher.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Fine-tuning, for each of three rates; by default as long as the student's."),
    ] = None,
    quantizations: Annotated[
        str,
        typer.Option(
            "--quantizations",
            metavar="LIST",
            callback=lambda given: ",".join(_quantizations(given)),
            help=f"Every model also in these, joined by commas: {', '.join(QUANTIZATIONS)}; or none.",
        ),
    ] = "q8_0,q4,q4_1",
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="FAMILY", help="Also the teacher of this family, as downloaded.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=2, help="At most this many questions.")] = 200,
    domains: Domains = DOMAINS,
    registry: RegistryFolder = REGISTRY,
    save: Save = None,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Compare a student with its base, its teacher and a fine-tuned download on real questions: bits per byte, tasks, speed."""
    here = Registry(registry)
    version = here.resolve(ref)
    specs, family, _ = choose(domains, family=version.manifest.family, needs=domains_of([version]))
    chosen, others = choose_download(specs, family, download), [specs.family(name) for name in against or ()]
    context = load_context(specs, family, here, device=device, json=json)
    from factory.pipeline.benchmark import BenchmarkConfig, run_benchmark

    config = BenchmarkConfig(limit, _quantizations(quantizations), chosen, references, minutes, others)
    report = run_benchmark(context, version, questions, config)
    print_report(benchmark_json(report), benchmark_table(report), json=json, save=save)


def _quantizations(given: str) -> tuple[str, ...]:
    """``_quantizations("q8_0,q4") == ("q8_0", "q4")``; "none" or "" is none."""
    kinds = tuple(kind.strip() for kind in given.split(",") if kind.strip() not in ("", "none"))
    unknown = sorted(set(kinds) - set(QUANTIZATIONS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: give some of {', '.join(QUANTIZATIONS)}, or none")
    return kinds


# ------------------------------------------------------------------------------------------------------- blind reviews


def _read_votes(registry: Registry, ref: str, votes: Path, json: bool) -> None:
    from factory.reports.review import read_back, result_line

    version = registry.resolve(ref)
    result = read_back(registry, version, votes)
    print_json(result) if json else typer.echo(result_line(version, result))


def _hand_out(
    registry: Registry,
    ref: str,
    other: str,
    out: Path,
    questions: Path | None,
    count: int | None,
    seed: int | None,
    domains: Path,
    device: str,
    json: bool,
) -> None:
    from factory.reports.review import check_free, hand_out, load_questions, sample_questions

    version = registry.resolve(ref)
    check_free(out)
    if other == version.reference:
        raise UsageError(f"{other} cannot be reviewed against itself; name another version, or `teacher`")
    load_libraries(shown=not json)
    asked = load_questions(questions, count) if questions else sample_questions(version, count)
    answers = _answer(registry, version, other, asked, domains, device, json)
    against = list(answers)[1]
    review = hand_out(registry, version, out, asked, *answers.values(), against=against, seed=seed)
    if json:
        content = {"review": review, "path": str(out), "questions": len(asked)}
        return print_json(content | {"reference": version.reference, "against": against})
    typer.echo(
        f"wrote {len(asked)} questions to {out}: review {review} of {version.reference} against {against}.\n"
        f"When every row has a vote (a, b or tie):\n  factory review {version.reference} --in {out}"
    )


def _answer(
    registry: Registry,
    version: Version,
    other: str,
    questions: Sequence[str],
    domains: Path,
    device: str,
    json: bool,
) -> dict[str, list[str]]:
    """Reference → its answers, all cut at the version's own length, since length would give them away.

    ``teacher`` is who taught the version.
    """
    from factory import inference

    answers: dict[str, list[str]] = {}
    limit = None
    family, domain = version.manifest.family, version.manifest.domain if version.manifest.kind == "student" else ""
    for ref in (version.reference, other):
        chat_model = load_chat_model(ref, registry, domains, family=family, device=device, json=json, domain=domain)
        limit = limit or chat_model.max_new_tokens
        chat_model = replace(chat_model, max_new_tokens=limit)
        answers[chat_model.reference] = []
        with progress_bars(shown=not json)(f"answers of {chat_model.reference}", len(questions)) as advance:
            for question in questions:
                answers[chat_model.reference].append(inference.ask(chat_model, question).answer)
                advance(1)
    return answers
