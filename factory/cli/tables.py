"""What commands print: tables for people, plain values for ``--json``. rich is imported where a table is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from factory.cli.terminal import format_duration
from factory.data.drops import describe_dropped
from factory.reports.format import format_metric, format_number

if TYPE_CHECKING:
    from rich.table import Table

    from factory.cli.doctor import Finding
    from factory.inference import Explanation
    from factory.pipeline.adapter_matrix import AdapterMatrix
    from factory.pipeline.benchmark import BenchmarkReport
    from factory.pipeline.plan import Step
    from factory.registry.garbage import Garbage
    from factory.registry.ledger import AliasMove

HEAP_WIDTH = 100  # characters of a text in a heap


def make_table(rows: Iterable[Sequence[str]], headings: Sequence[str] = (), *, right: int = 0) -> Table:
    """``make_table([["ok", "cores"]])``: plain cells; the last ``right`` columns are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(box=None, pad_edge=False, show_header=bool(headings))
    columns = len(headings) or max(map(len, rows), default=0)
    for number in range(columns):
        heading = Text(headings[number]) if headings else ""
        table.add_column(heading, overflow="fold", justify="right" if number >= columns - right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


# -------------------------------------------------------------------------------------------------------------------- plan


def plan_json(steps: Sequence[Step]) -> dict[str, Any]:
    """``print_json(plan_json(plan(...)))``: every step, and the seconds of all that can be estimated."""
    from factory.pipeline.plan import total_seconds

    return {"steps": [asdict(step) for step in steps], "seconds": total_seconds(steps)}


def plan_table(steps: Sequence[Step]) -> Table:
    """``print_table(plan_table(plan(...)))``: a row per step with its estimate; the total is the caption."""
    table = make_table([[step.state, step.what, _estimate(step), step.detail] for step in steps])
    table.caption, table.caption_justify = describe_total(steps), "left"
    return table


def plan_lines(steps: Sequence[Step]) -> list[str]:
    """``plan_lines(plan(...))``: what is not on disk yet, and how long all of it takes."""
    lines = [
        f"{step.state}: {step.what}{f' ({estimate})' if (estimate := _estimate(step)) else ''}: {step.detail}"
        for step in steps
        if step.state != "on disk"
    ]
    return [*lines, describe_total(steps)]


def describe_total(steps: Sequence[Step]) -> str:
    """``describe_total(plan(...))`` → "about 25 min in all, without downloads"."""
    from factory.pipeline.plan import total_seconds

    unknown, elsewhere = [step.seconds is None for step in steps if step.state == "to do"], _has(steps, "elsewhere")
    if all(unknown) if elsewhere else any(unknown):
        return f"no estimate before the {'base' if elsewhere else 'teacher'} is on disk"
    without = ", without downloads" if _has(steps, "to fetch") else ""
    without += ", without the answers of the API" if elsewhere else ""
    return f"about {format_duration(total_seconds(steps))} in all{without}"


def _has(steps: Sequence[Step], state: str) -> bool:
    return any(step.state == state for step in steps)


def _estimate(step: Step) -> str:
    return f"about {format_duration(max(1.0, step.seconds))}" if step.seconds else ""


# ----------------------------------------------------------------------------------------------------------------- data set


def preview_table(content: Mapping[str, Any]) -> Table:
    """``print_table(preview_table(preview(context, models, data)))``: also of ``dry_preview``."""
    rows = _dry_rows(content) if content.get("dry_run") else _data_set_rows(content)
    for row in content["samples"]:
        answer = " ".join(row["completion"].split()) or "(the teacher's)"
        rows += [("", ""), (row["source"], row["prompt"]), ("refusal" if row.get("refusal") else "answer", answer)]
    return make_table(rows)


def _dry_rows(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    own, kept = content["own_answers"], sum(content["counts"].values())
    return [
        ("data set", f"{content['domain']}, as it would be: nothing was asked or kept"),
        ("kept", _describe_counts(content)),
        ("answers", f"{own} of sources, {kept - own} for the teacher to write"),
        ("dropped", describe_dropped(content["dropped"])),
        ("personal identifiers", content["personal_data"]),
        _other_languages(content),
        *_source_rows(content),
        *(("not read", f"{source}: the teacher writes its prompts") for source in content["left_out"]),
    ]


def _other_languages(content: Mapping[str, Any]) -> tuple[str, str]:
    return "other languages", content["other_languages"]["said"] or "none that is sure"


def _data_set_rows(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    own, kept = content["own_answers"], sum(content["counts"].values())
    return [
        ("data set", content["domain"]),
        ("folder", content["folder"]),
        ("kept", _describe_counts(content)),
        ("answers", f"{own} of sources, {kept - own} of the teacher"),
        ("dropped", describe_dropped(content["dropped"])),
        ("personal identifiers", content["personal_data"]),
        ("refusals kept", str(content["refusals"])),
        *_source_rows(content),
        ("templates", str(content["templates"])),
        _other_languages(content),
        ("router disagrees", f"on {content['disagreements']} prompts"),
        *(("", f"{prompt} → {domain or 'none'}") for prompt, domain in content["disagreement_examples"]),
        *(
            ("soft targets", f"{format_number(one['bytes'], 'bytes')}; they save {one['teacher_seconds']:.0f} s of the teacher")
            for one in content["soft_targets"]
        ),
        ("too small", content["too_small"] or "no"),
    ]


def _describe_counts(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{split} {count}" for split, count in content["counts"].items())


def _source_rows(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("source", f"{source['id']}: {source['n']} examples, {source['license']}") for source in content["sources"]]


def heap_table(content: Mapping[str, Any]) -> Table:
    """``print_table(heap_table(sort_pool(context, models, path)))``: of each domain how many texts, and some of them."""
    rows = []
    for part in content["domains"]:
        share = part["texts"] / max(1, content["texts"])
        rows.append((part["domain"] or "none", f"{part['texts']} texts ({share:.0%})", ""))
        for one in part["samples"]:
            nearest = "" if part["domain"] else f" {one['nearest']}"
            rows.append(("", shorten(one["text"], HEAP_WIDTH, placeholder=" …"), f"{one['score']:.2f}{nearest}"))
    sure = f"a score of {content['threshold']:.2f}"
    rows.append(("", f"none is below {sure}; {content['duplicates']} duplicates left out", ""))
    if said := content["other_languages"]["said"]:
        rows.append(("", f"warning: {said}", ""))
    return make_table(rows, ["domain", "", "score"])


# --------------------------------------------------------------------------------------------------------------- registry


def history_table(moves: Sequence[AliasMove]) -> Table:
    """``print_table(history_table(registry.history()))``: a row per move, the oldest first."""
    ends = [[f"{move.name}@{number}" if number else "-" for number in (move.before, move.number)] for move in moves]
    rows = [[move.at, move.by, f"{move.name}@{move.alias}", *end] for move, end in zip(moves, ends, strict=True)]
    return make_table(rows, ["when", "who", "alias", "from", "to"])


def garbage_json(found: Sequence[Garbage]) -> list[dict[str, Any]]:
    """``print_json(garbage_json(find_garbage(registry)))``: a dict per file or folder."""
    return [{"path": str(one.path), "bytes": one.bytes, "why": one.why} for one in found]


def garbage_table(found: Sequence[Garbage], *, removed: bool) -> Table:
    """``print_table(garbage_table(find_garbage(registry), removed=False))``: a row per file or folder, and their sum."""
    total = format_number(sum(one.bytes for one in found), "bytes")
    rows = [[str(one.path), one.why, format_number(one.bytes, "bytes")] for one in found]
    return make_table([*rows, [f"{total} {'freed' if removed else 'would be freed'}"]])


# ------------------------------------------------------------------------------------------------------------ experiments


def matrix_json(matrix: AdapterMatrix) -> dict[str, Any]:
    """``print_json(matrix_json(adapter_matrix(context, versions)))``: KL of every adapter by domain."""
    return {
        domain: {
            "kl": {name: asdict(metric) for name, metric in row.items()},
            "ahead": {name: asdict(metric) for name, metric in matrix.ahead[domain].items()},
            "own_is_best": matrix.own_is_best(domain),
        }
        for domain, row in matrix.kl.items()
    }


def matrix_table(matrix: AdapterMatrix) -> Table:
    """``print_table(matrix_table(adapter_matrix(context, versions)))``: a row per domain, a column per adapter."""
    names = list(next(iter(matrix.kl.values())))
    rows = []
    for domain, row in matrix.kl.items():
        nearest = min(matrix.ahead[domain].values(), key=lambda metric: metric.low)
        best = "yes" if matrix.own_is_best(domain) else "not beyond the interval"
        rows.append([domain, *(format_metric(row[name]) for name in names), f"{best}: ahead by {format_metric(nearest)}"])
    return make_table(rows, ["KL, nats/token", *names, "is its own adapter best?"])


def experiment_table(content: Mapping[str, Any]) -> Table:
    """``print_table(experiment_table(report.content))``: a row per method; what they have in common is the caption."""
    from factory.reports.experiment import caption, table_rows

    headings, *rows = table_rows(content)
    table = make_table(rows, headings, right=len(headings) - 1)
    table.caption = caption(content)
    return table


def benchmark_json(report: BenchmarkReport) -> dict[str, Any]:
    """``print_json(benchmark_json(run_benchmark(...)))``: a dict per row of the table, and what it was measured on."""
    from factory.registry.plain_json import plain_json

    questions = {name: value for name, value in vars(report.questions).items() if name != "rows"}
    tuned = report.fine_tuning
    content = {
        "student": report.student,
        "download": report.download,
        "questions": {"asked": len(report.questions.rows), "clusters": report.clusters, "left_out": questions},
        "fine_tuning": tuned.model_dump(exclude={"folder"}) | {"best": tuned.best.learning_rate} if tuned else None,
        "rows": [asdict(row) for row in report.rows],
        "notes": report.notes,
    }
    plain: dict[str, Any] = plain_json(content, "benchmark")
    return plain


def benchmark_table(report: BenchmarkReport) -> Table:
    """``print_table(benchmark_table(run_benchmark(...)))``: a row per model and format, a column per task."""
    tasks = list(dict.fromkeys(task for row in report.rows for task in row.tasks))
    cells = [
        [
            row.name,
            row.format,
            format_number(row.parameters, "parameters"),
            format_number(row.bytes, "bytes"),
            *map(format_metric, [row.bits_per_byte, row.student_below, *(row.tasks.get(task) for task in tasks)]),
            "-" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}",
        ]
        for row in report.rows
    ]
    headings = ["", "", "parameters", "size", "bits per byte", "student is lower by (paired)", *tasks, "tokens/s"]
    table = make_table(cells, headings, right=len(headings) - 2)
    table.caption, table.caption_justify = "\n".join([*report.notes, BENCHMARK_CAPTION]), "left"
    return table


BENCHMARK_CAPTION = (
    "bits per byte of the reference answers: lower is better; 95 % intervals; one stream, bf16 in transformers, "
    "quantized in llama.cpp"
)


# ---------------------------------------------------------------------------------------------------------- explanations


def explanation_table(explanation: Explanation) -> Table:
    """``print_table(explanation_table(explain(...)))``: a row per rank; the teacher's tokens left, the student's right."""
    rows = [
        [
            repr(left.token),
            f"{left.teacher:.3f}",
            _probability(left.student),
            repr(right.token),
            _probability(right.student),
            f"{right.teacher:.3f}",
        ]
        for left, right in zip(explanation.teacher, explanation.student, strict=True)
    ]
    return make_table(rows, ["teacher", "p", "student's p", "student", "p", "teacher's p"])


def explanation_summary(explanation: Explanation) -> str:
    """``explanation_summary(explain(...))``: KL, and what the student's vocabulary lacks, in one line."""
    missing = ", ".join(map(repr, explanation.missing)) or "none"
    return (
        f"KL(teacher ‖ student) {explanation.kl:.3f} nats; the student's vocabulary covers {explanation.kept_mass:.1%} of "
        f"the teacher's probability; missing from the teacher's top {len(explanation.teacher)} tokens: {missing}"
    )


def _probability(value: float | None) -> str:
    return "not in vocabulary" if value is None else f"{value:.3f}"


# ----------------------------------------------------------------------------------------------------------------- machine


def findings_table(findings: Sequence[Finding]) -> Table:
    """``print_table(findings_table(examine(...)))``: a row per finding, with the command that fixes it."""
    return make_table(
        [finding.state, finding.what, f"{finding.detail}  → {finding.fix}" if finding.fix else finding.detail]
        for finding in findings
    )
