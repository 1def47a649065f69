"""Writes the generated pages of docs/: ``python scripts/docs.py``; ``--check`` fails if one is out of date.

A page is a function that returns Markdown, registered in ``PAGES``. Of a page that is partly prose only what stands between
``<!-- generated: NAME -->`` and ``<!-- end -->`` is written.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from factory.cli import app
from factory.config import schema
from factory.config.experiment import ExperimentSpec, MethodSpec
from factory.config.names import RESERVED
from factory.config.yaml_text import MAX_BYTES, MAX_NODES
from factory.evaluation.metrics import METRICS, metric_named
from factory.registry.manifest import MetricValue
from factory.reports.experiment import markdown_table
from factory.reports.format import format_metric

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by scripts/docs.py: change {source} and run `python scripts/docs.py`. -->\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale = [path for path, render in PAGES.items() if not up_to_date(ROOT / path, render())]
    if check and stale:
        sys.exit(f"error: out of date: {', '.join(stale)}; run: python scripts/docs.py")
    for path in stale:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(PAGES[path](), encoding="utf-8")
        print(f"wrote {path}")


def up_to_date(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == content


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def with_generated(path: str, parts: Mapping[str, str]) -> str:
    """``with_generated("docs/evaluation.md", {"metrics": table(...)})``: the page with new content at each part's marker."""
    page = (ROOT / path).read_text(encoding="utf-8")
    for name, content in parts.items():
        before, begin, rest = page.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not begin or not end:
            sys.exit(f"error: {path} has no place for {name}: <!-- generated: {name} --> and, below it, <!-- end -->")
        page = before + begin + content + end + after
    return page


# ------------------------------------------------------------------------------------------------- docs/domains.md

FAMILY_SECTIONS: dict[str, type[BaseModel]] = {
    "teacher": schema.TeacherSpec,
    "teacher_api": schema.ApiTeacherSpec,
    "encoder": schema.EncoderSpec,
    "base": schema.ModelSpec,
    "sizes": schema.SizeSpec,
    "router": schema.RouterConfig,
    "data": schema.DataConfig,
    "heal": schema.HealConfig,
    "distill": schema.DistillConfig,
    "on_policy": schema.OnPolicyConfig,
    "embed": schema.EmbedConfig,
    "confidence": schema.ConfidenceConfig,
    "evaluate": schema.EvaluateConfig,
    "gates": schema.Gate,
    "serve": schema.ServeConfig,
    "models": schema.EndpointSpec,
    "price": schema.Price,
    "profiles": schema.Profile,
}
DOMAIN_SECTIONS: dict[str, type[BaseModel]] = {
    "teacher_context": schema.TeacherContext,
    "examples": schema.Turn,
    "teacher_adaptation": schema.TeacherAdaptation,
}
EXPERIMENT_SECTIONS: dict[str, type[BaseModel]] = {"methods": MethodSpec}
TITLES = {model: title for title, model in (FAMILY_SECTIONS | DOMAIN_SECTIONS | EXPERIMENT_SECTIONS).items()}

DOMAINS_HEAD = """\
# The YAML files in `domains/`

Everything that decides a student is in three kinds of YAML file:

- [`<name>.yaml`](#domains), a **domain**: its prompts, how the teacher answers them, how its students are judged;
- [`<name>.family.yaml`](#families), a **family**: one teacher, and the sizes and settings of its students;
- [`<name>.pool.yaml`](#pools), a **pool**: texts of no domain.

`factory new NAME` writes a domain to start from, `factory validate` checks all files and reports each mistake with its line,
and `factory validate --fix` gives old keys their new names. The commands read `./domains`, another folder with `--domains`, or
the shipped files if there is no `./domains`.

Files are UTF-8 and end in `.yaml`; hidden ones are skipped. A key that is given twice, a number that is infinite and a file of
more than {max_bytes:,} bytes or {max_nodes:,} keys and values are mistakes; dates are text. `validate` reports every mistake of
every file. `factory data NAME` and commands on published students go on where only other domains have mistakes, and say which
are left out; whatever uses a base or the server's router needs every file.

No domain is called {reserved}: a command, a setting or
a client of the server may mean something else by these.

A setting comes from the family, then from the domain's `data`, `distill`, `embed` and `confidence`, then from the profile
(`--profile`): the last one that has it wins.

## An example

This domain ([scripts/veterinary.yaml](../scripts/veterinary.yaml)) builds as it is:

```yaml
{example}```
"""


def domains_page() -> str:
    example = (ROOT / "scripts" / "veterinary.yaml").read_text(encoding="utf-8")
    reserved = ", ".join(f"`{name}`" for name in RESERVED[:-1]) + f" or `{RESERVED[-1]}`"
    parts = [DOMAINS_HEAD.format(example=example, reserved=reserved, max_bytes=MAX_BYTES, max_nodes=MAX_NODES)]
    parts += [section("##", "Domains", schema.DomainSpec)]
    parts += [section("###", f"`{title}`", model) for title, model in DOMAIN_SECTIONS.items()]
    parts += ["## Sources\n\nEvery source has these keys, `kind`, and those of its kind:\n\n" + keys(schema.SourceBase)]
    common = schema.SourceBase.model_fields
    parts += [
        section("###", f"`kind: {kind}`", model, leave_out={*common, "kind"}) for kind, model in schema.SOURCE_KINDS.items()
    ]
    parts += [section("##", "Families", schema.FamilySpec)]
    distill = schema.DistillConfig.model_fields
    parts += [
        section("###", f"`{title}`", model, leave_out=distill if model is schema.HealConfig else ())
        + (f"\n{kinds_of_size()}" if model is schema.SizeSpec else "")
        for title, model in FAMILY_SECTIONS.items()
    ]
    parts += [section("##", "Pools", schema.PoolSpec)]
    return NOTE.format(source="factory/config/") + "\n".join(parts)


KINDS = (
    (
        "trimmed",
        "`vocabulary` alone",
        "First. The whole teacher with fewer tokens: nearest to it, nothing to heal, made in a minute.",
    ),
    ("fewer layers", "`layers`", "Where time counts as much as size: it falls with the layers. Healed."),
    (
        "narrower",
        "`intermediate_size`, with or without `layers`",
        "Where a third of the layers would have to go: fewer neurons in all of them lose less, before healing. Healed.",
    ),
    (
        "a number of parameters",
        "`parameters`",
        "You know how many, not how deep or wide: up to five ways are tried unhealed. Healed.",
    ),
    (
        "a number of bytes",
        "`max_bytes`",
        "A file has to fit a device: fewer tokens, fewer layers and fewer neurons are each tried for an eighth of the healing.",
    ),
    ("another model", "`base`", "There is a smaller model of the teacher's series with the very same tokens. Healed."),
)


def kinds_of_size() -> str:
    return table(("kind of size", "keys", "when to use it"), KINDS)


def my_own_teacher_page() -> str:
    return with_generated("docs/my-own-teacher.md", {"kinds": kinds_of_size()})


def section(level: str, title: str, model: type[BaseModel], leave_out: Iterable[str] = ()) -> str:
    about = " ".join((model.__doc__ or "").replace("``", "`").split())
    return f"{level} {title}\n\n{about}\n\n{keys(model, leave_out)}"


def keys(model: type[BaseModel], leave_out: Iterable[str] = ()) -> str:
    """A table of a model's keys."""
    rows = [
        (f"`{name}`", field_type(field), field_default(field), field.description or "")
        for name, field in model.model_fields.items()
        if name not in set(leave_out)
    ]
    return table(("key", "type", "default", "meaning"), rows)


def field_type(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expects" in extra:
        return str(extra["expects"])
    return type_name(field.annotation) + bounds(field.metadata)


def bounds(metadata: Iterable[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(one, name):g}" for one in metadata for name, sign in signs.items() if hasattr(one, name)]
    return f", {', '.join(found)}" if found else ""


def type_name(annotation: Any) -> str:
    """``type_name(tuple[str, ...])``: "list of text"."""
    if annotation == schema.Source:
        return "[source](#sources)"
    if annotation in TITLES:
        return f"[{TITLES[annotation]}](#{TITLES[annotation]})"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return "name" if annotation == schema.Name else type_name(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(type_name(one) for one in arguments if one is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"map of {type_name(arguments[0])} → {type_name(arguments[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "value"}
    return names[annotation]


def field_default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**"
    if field.default is None or field.default in ((), {}, ""):
        return "-"
    if isinstance(field.default, BaseModel):
        return "its own"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


# ------------------------------------------------------------------------------------------------- docs/cli.md

CLI_HEAD = """\
# The command line

`factory --help` lists the commands, `factory COMMAND --help` describes one. `factory --version` prints the version.

- Results go to stdout; progress, warnings and errors to stderr. With `--json`, stdout is JSON and there is no progress.
- `--domains` is the folder of the [YAML files](domains.md), `--registry` the folder of the published [versions](registry.md).
- The cache is in `FACTORY_HOME`, `~/.cache/student-factory` if it is not set.
- A stopped build continues when the same command is run again.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed; one line on stderr says what, and what to do |
| 2 | the arguments do not fit the command |
| 3 | `promote`: the version failed its gates |
| 130 | stopped with Ctrl-C |
"""


def cli_page() -> str:
    group: Any = typer.main.get_command(app)
    sections = [command_section(name, command.help, command.params) for name, command in group.commands.items()]
    return NOTE.format(source="factory/cli/") + "\n".join([CLI_HEAD, *sections])


def command_section(name: str, about: str, parameters: Sequence[Any]) -> str:
    """Usage, arguments and options of one command."""
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join([f"factory {name} [OPTIONS]", *map(argument_usage, arguments)])
    rows = [
        (f"`{parameter_name(parameter)}`", parameter_default(parameter), parameter.help)
        for parameter in parameters
        if parameter.name != "help"
    ]
    return f"## factory {name}\n\n{about}\n\n```\n{usage}\n```\n\n" + table(("", "default", "meaning"), rows)


def argument_usage(argument: Any) -> str:
    name = parameter_name(argument)
    return name if argument.required else f"[{name}]"


def parameter_name(parameter: Any) -> str:
    """``NAME``, ``--resume/--no-resume``, ``--seed INT`` or ``--device auto|cpu|cuda``."""
    if parameter.param_type_name == "argument":
        return parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    names = "/".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    kind = parameter.display_type(typer.Context(typer.main.get_command(app))).strip("<>").removesuffix(" range")
    return f"{names} {parameter.metavar or (kind if '|' in kind else kind.upper())}"


def parameter_default(parameter: Any) -> str:
    if parameter.required:
        return "**required**"
    if parameter.default is None or parameter.default is False:
        return "-"
    return f"`{'true' if parameter.default is True else parameter.default}`"


# ------------------------------------------------------------------------------------------------- docs/evaluation.md


def evaluation_page() -> str:
    rows = [(f"`{key}`", metric.label, metric.better or "", metric.unit) for key, metric in METRICS.items()]
    return with_generated("docs/evaluation.md", {"metrics": table(("metric", "label", "better", "unit"), rows)})


# ------------------------------------------------------------------------------------------------- docs/experiments.md


def experiments_page() -> str:
    sections = [section("###", f"`{title}`", model) for title, model in EXPERIMENT_SECTIONS.items()]
    return with_generated("docs/experiments.md", {"keys": "\n".join([keys(ExperimentSpec), *sections])})


# ------------------------------------------------------------------------------------------------- docs/data.md

DATA_HEAD = """\
# Data in every format

`factory new NAME --from DATA` takes a file, or a folder of files, and says what it took it for, how many rows it kept and why
others were not; so do `factory data` and `factory build`. Nothing becomes text that is not text: where a list, an object,
`true`, a date or a missing number stands in place of text, the row is named. [my-own-data.md](my-own-data.md) explains what a
student learns from each.

Columns are recognised by their names, in any case; others are named: `--prompt Frage --completion Antwort`, or `prompt:` and
`completion:` of a source. Delimiter, encoding and sheet are found. Excel, PDF and Word need
`pip install 'student-factory[files]'`.

## What is read

| format | what is said of the sample below |
|---|---|
"""
MALFORMED_HEAD = """\
## What is refused

Exit code 1, one line, and nothing is written. `FOLDER` is the folder that the file is in.

"""


def data_page() -> str:
    from data_files import FORMATS, MALFORMED, read  # which load torch

    rows = "".join(f"| [{one.about}](#{anchor(one.about)}) | {'<br>'.join(read(one).splitlines())} |\n" for one in FORMATS)
    samples = [
        f"### {one.about}\n\n```\n{one.sample or one.content}```\n\n`factory new office --from {Path(one.name).parts[0]}`\n"
        for one in FORMATS
    ]
    refused = table(
        ("what is wrong", "file", "message"), ([one.about, f"`{one.name}`", f"`` {read(one)} ``"] for one in MALFORMED)
    )
    return NOTE.format(source="scripts/data_files.py") + "\n".join([DATA_HEAD + rows, *samples, MALFORMED_HEAD + refused])


def anchor(title: str) -> str:
    """``anchor("JSON lines, too") == "json-lines-too"``: as GitHub calls the heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# ------------------------------------------------------------------------------------------------- docs/serving.md


def serving_page() -> str:
    from openai_fields import HEAD, coverage, rows, strict_app  # which load torch

    return with_generated("docs/serving.md", {"fields": table(HEAD, rows(coverage(strict_app())))})


# ------------------------------------------------------------------------------------------------- docs/results/

TRAINERS_HEAD = """\
# Trainers compared

This trainer and trl's, on the same teacher, student, data, batch and length, with two CPU cores and no GPU, seed 0. The top of
[scripts/bench/trainers.py](../../scripts/bench/trainers.py) describes the comparison. Tokens are those of prompts and answers,
without padding. Memory is the peak of the whole process. KL is measured on 64 held-out examples, before and after the steps of
the line, in nats/token. "Trimmed" runs use a smaller vocabulary than the others, so compare drops in KL, not its values. The
second line of a run trains for ten minutes.
"""
TRAINERS = {
    "SmolLM2-135M-Instruct, 20 of 30 layers": (
        "trainers-smollm2.json",
        "python scripts/bench/trainers.py healthcare --size small --minutes 10",
    ),
    "Gemma 3 270M, 13 of 18 layers": (
        "trainers-gemma.json",
        "python scripts/bench/trainers.py healthcare --size gemma-small --minutes 10 --accumulate 2",
    ),
}


def results(file: str) -> Any:
    """``results("students-demo.json")``: what a benchmark wrote."""
    return json.loads((ROOT / "docs" / "results" / file).read_text(encoding="utf-8"))


def objective_page() -> str:
    return with_generated("docs/results/objective.md", {"methods": markdown_table(results("methods-demo.json"))})


def training_page() -> str:
    rows = [
        [one["spins"], one["what"], *(f"{one[when]:.3f}" for when in ("alone", "busy")), f"{one['busy'] / one['alone']:.1f}"]
        for one in results("busy.json")["results"]
    ]
    head = ("turns before a thread sleeps", "", "alone, s", "beside a busy process, s", "times as long")
    return with_generated("docs/results/training.md", {"busy": table(head, rows)})


def students_page() -> str:
    tables = {
        "thorough": seeds_table(results("students-thorough.json")),
        "default": students_table(results("students-default.json")),
        "demo": students_table(results("students-demo.json")),
    }
    return with_generated("docs/results/students.md", tables)


def references_page() -> str:
    """A table for each domain of scripts/bench/references.py that was built, from a file for each seed."""
    reports: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((ROOT / "docs" / "results" / "references").glob("*-*.json")):
        reports.setdefault(file.stem.rpartition("-")[0], []).append(json.loads(file.read_text(encoding="utf-8")))
    return with_generated("docs/results/references.md", {name: references_table(one) for name, one in reports.items()})


def references_table(reports: Sequence[dict[str, Any]]) -> str:
    """A row for each model that `factory benchmark --save` compared; a cell holds the seeds in turn."""
    asked = reports[0]["questions"]["asked"]
    head = ("model", "parameters", f"bits per byte, n {asked}", "student lower by, paired", "chosen right, of four")
    rows = []
    for model in zip(*(report["rows"] for report in reports), strict=True):
        tasks = [next(iter(row["tasks"].values()), None) for row in model]
        rows.append(
            [
                model[0]["name"],
                f"{model[0]['parameters'] / 1e6:.1f} M",
                metric_cells(row["bits_per_byte"] for row in model),
                metric_cells(row["student_below"] for row in model),
                metric_cells(tasks),
            ]
        )
    return table(head, rows)


def metric_cells(metrics: Iterable[dict[str, Any] | None]) -> str:
    """``metric_cells([{"value": 0.64, ...}, None])`` → "0.640 [0.620, 0.660]; -"."""
    return "; ".join(format_metric(MetricValue(**one)) if one else "-" for one in metrics)


def students_table(students: Sequence[dict[str, Any]]) -> str:
    """A row for each metric; one that a gate judges says how that ended."""
    names = dict.fromkeys(name for one in students for name in one["metrics"])
    return table(
        ["", *(one["reference"] for one in students)],
        [
            ["verdict", *(f"**{one['verdict']}**" for one in students)],
            *([metric_named(name).label, *(students_cell(one, name) for one in students)] for name in names),
            ["minutes of building", *(f"{one['seconds'] / 60:.0f}" for one in students)],
        ],
    )


IN_README = {
    "kl": "KL to the teacher, nats/token",
    "base_kl": "the same of its base, without the adapter",
    "top1_agreement": "top-1 agreement with the teacher",
    "golden_set_passed": "golden set passed, 120 questions",
    "golden_set_passed_teacher": "the same by the teacher, shown its context",
}


def readme() -> str:
    columns = by_seeds(results("students-thorough.json"))
    rows = [[label, *(spread(seeds, name) for seeds in columns.values())] for name, label in IN_README.items()]
    return with_generated("README.md", {"students": table(["", *(name.split("@")[0] for name in columns)], rows)})


def by_seeds(students: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Students of all seeds, by reference."""
    return {name: [one for one in students if one["reference"] == name] for name in (one["reference"] for one in students)}


def spread(seeds: Sequence[dict[str, Any]], name: str) -> str:
    """``0.045 (0.040 to 0.048)``: the mean of a metric over the seeds that have it, the lowest and the highest."""
    values = [one["metrics"][name]["value"] for one in seeds if name in one["metrics"]]
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"


def seeds_table(students: Sequence[dict[str, Any]]) -> str:
    """A column for each student, over its seeds: the mean of a metric, its range, and how often each gate ended how."""
    by_reference = by_seeds(students)
    names = dict.fromkeys(name for one in students for name in one["metrics"])
    return table(
        ["", *by_reference],
        [
            ["verdict", *(counted(one["verdict"] for one in seeds) for seeds in by_reference.values())],
            *([metric_named(name).label, *(seeds_cell(seeds, name) for seeds in by_reference.values())] for name in names),
        ],
    )


def seeds_cell(seeds: Sequence[dict[str, Any]], name: str) -> str:
    """``0.045 (0.040 to 0.048); passed 3``"""
    gates = [one["gates"][name] for one in seeds if name in one["gates"]]
    return spread(seeds, name) + (f"; {counted(gates)}" if gates else "")


def counted(statuses: Iterable[str]) -> str:
    """``counted(["passed", "failed", "passed"]) == "passed 2, failed 1"``"""
    return ", ".join(f"{status} {count}" for status, count in Counter(statuses).most_common())


def students_cell(student: dict[str, Any], name: str) -> str:
    """``0.103 [0.093, 0.113], n 2,166, passed``"""
    found = student["metrics"].get(name)
    if found is None:
        return "-"
    metric, gate = MetricValue(**found), student["gates"].get(name)
    return f"{format_metric(metric)}, n {metric.n:,}" + (f", {gate}" if gate else "")


NOT_MEASURED = """\
Not measured in full yet. Of 600 pairs of MedQuAD, 300 of them held out, the encoder finds 0.933, the student with a head of
3,000 texts 0.870, and its raw states 0.132 of all 600 ([log](../log.md)).
"""


def retrieval_page() -> str:
    """A table for each source, once they are measured."""
    if not (ROOT / "docs" / "results" / "retrieval.json").is_file():
        return with_generated("docs/results/retrieval.md", {"retrieval": NOT_MEASURED})
    report = results("retrieval.json")
    tables = [f"## {name}\n\n{retrieval_table(report['models'], found)}" for name, found in report["sources"].items()]
    return with_generated("docs/results/retrieval.md", {"retrieval": "\n".join(tables)})


def retrieval_table(models: Mapping[str, Any], found: dict[str, Any]) -> str:
    """A row for each model, and for the student with each of its heads; last the student and the encoder, as two files."""
    head = ["", "MB", "ms a text", f"recall@10 of {found['questions']} questions", "recall@1", "alignment"]
    heads = {name for name in found["rows"] if name not in models}
    rows = []
    for name, row in found["rows"].items():
        model = models["student" if name in heads else name]
        rows.append(retrieval_row(name, model["bytes"] + row["head_bytes"], model["milliseconds"], row))
    bytes_ = models["student"]["bytes"] + models["encoder, q8_0"]["bytes"]
    both = "student, and encoder in q8_0"
    rows.append(retrieval_row(both, bytes_, models["encoder, q8_0"]["milliseconds"], found["rows"]["encoder, q8_0"]))
    return table(head, rows)


def retrieval_row(name: str, size: int, milliseconds: float, row: dict[str, Any]) -> list[str]:
    metrics = (format_metric(MetricValue(**row[key])) for key in ("recall@10", "recall@1", "alignment"))
    return [name, f"{size / 1e6:.1f}", f"{milliseconds:.0f}", *metrics]


def router_page() -> str:
    """Twelve neighbouring subjects: what abstaining brings, and which are taken for which."""
    found = results("subjects.json")
    f1, names = found["macro_f1"], found["names"]
    measured = format_metric(MetricValue(**f1, n=found["n"]))
    line = f"Macro-F1 {measured} on {found['n']} questions; {found['abstained']} were sent to none.\n"
    kept = [[f"{one['share']:.0%}", f"{one['n']}", f"{one['right']:.1%}"] for one in found["kept"]]
    rows = [[name, *(f"{count or ''}" for count in row)] for name, row in zip(names, found["confusion"], strict=False)]
    tables = [
        line,
        table(["the surest", "questions", "nearest subject is right"], kept),
        table(["is, routed to", *names], rows),
    ]
    return with_generated("docs/results/router.md", {"subjects": "\n".join(tables)})


def cascade_page() -> str:
    """Every pair of models, once they are measured."""
    if not (ROOT / "docs" / "results" / "cascade.json").is_file():
        return with_generated(
            "docs/cascade.md", {"cascade": "Not measured yet: `python scripts/bench/cascade.py` measures it.\n"}
        )
    report = results("cascade.json")
    return with_generated("docs/cascade.md", {"cascade": cascade_table(report)})


def cascade_table(report: dict[str, Any]) -> str:
    """A row for each pair and each part of an answer that decides, at the threshold that was fitted on validation prompts."""
    head = (
        "asked first, then",
        "decides",
        "asked of both",
        "golden set passed",
        "the same at random",
        "ahead",
        "compute",
        "cached",
    )
    rows = []
    for pair in report["pairs"]:
        at, (ahead, low, high) = pair["at_threshold"], pair["at_threshold"]["ahead"]
        part = {"whole": "the whole answer", "beginning": "its first 8 tokens"}[pair["part"]]
        shares = [f"{100 * at[key]:.1f} %" for key in ("share", "passed", "at_random")]
        costs = [f"{100 * at[key]:.0f} %" for key in ("compute", "cached")]
        models, beside = f"{pair['small']}, {pair['large']}", f"{ahead:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append((models, part, *shares, beside, *costs))
    alone = "; ".join(f"{name} {100 * one['passed']:.1f} %" for name, one in report["alone"].items())
    asked = f"{report['questions']} questions of {report['topics']} topics, `keep: {report['keep']:g}`"
    return f"{table(head, rows)}\n{asked}. Golden set passed alone: {alone}.\n"


def load_page() -> str:
    return with_generated("docs/results/serving.md", {"load": load_tables(results("serving.json"))})


def load_tables(report: dict[str, Any]) -> str:
    """What became of the requests of scripts/bench/load.py, how long answers took, and the memory of the processes."""

    def counts(kind: str) -> str:
        return ", ".join(f"{n:,} with {what}" for what, n in sorted(report[kind].items())) or "none"

    sent = sum(report["answers"].values())
    rows = [
        ["proper requests, a second", f"{report['offered']:.1f}; capacity measured before: {report['capacity']:.1f}"],
        ["proper requests, by status", f"{sent:,}: {counts('answers')}"],
        ["answers that were another's, or not as they should be", str(len(report["wrong"]))],
        ["nonsense, by status", counts("nonsense")],
        ["clients that left", f"{report['left']:,}"],
        ["clients that stalled", counts("stalled")],
    ]
    latency = [[when, *(f"{1000 * one:,.0f} ms" for one in values)] for when, values in report["latency"].items()]
    memory = [
        [
            name,
            *(f"{one[key]:.0f} MB" for key in ("first_mb", "last_mb", "peak_mb")),
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*one["mb_per_minute"]),
        ]
        for name, one in report["memory"].items()
    ]
    return "\n".join(
        [
            table((f"{report['seconds'] / 60:.1f} minutes", ""), rows),
            table(("an answer takes", "p50", "p95"), latency),
            table(("memory", "first", "last", "most", "slope of the second half, MB a minute"), memory),
        ]
    )


def models_page() -> str:
    report = results("architectures.json")
    parts = {"architectures": architectures_table(report), "reasons": reasons_table(report)}
    return with_generated("docs/models.md", parts)


def architectures_table(report: Mapping[str, Any]) -> str:
    """A column an architecture, a row each thing that was tried."""
    tried = report["architectures"]
    head = ["", *(f"{one['name']}{' †' if one['own'] else ''}" for one in tried)]
    rows = [["`model_type`", *(f"`{one['model_type']}`" for one in tried)], ["tokenizer", *(one["tokenizer"] for one in tried)]]
    rows += [[column, *(architecture_cell(one["cells"][column]) for one in tried)] for column in report["columns"]]
    cells = [cell["works"] for one in tried for cell in one["cells"].values()]
    command = f"`{report['command']}`, seed {report['seed']}"
    return f"{sum(cells)} of {len(cells)} cells work ({command}).\n\n{table(head, rows)}"


def architecture_cell(cell: Mapping[str, Any]) -> str:
    return cell["found"].partition(";")[0] if cell["works"] else "**no**"


def reasons_table(report: Mapping[str, Any]) -> str:
    """What does not work, and texts whose ids differ; a line for all architectures that have the same."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in report["architectures"]:
        for column, cell in one["cells"].items():
            reason = cell["found"].partition("; ")[2] if cell["works"] else cell["found"]
            if reason:
                found.setdefault((column, reason), []).append(one["name"])
    return table(["", "of", "why"], [[column, ", ".join(names), reason] for (column, reason), names in found.items()])


def trainers_page() -> str:
    parts = [TRAINERS_HEAD]
    for title, (file, command) in TRAINERS.items():
        parts.append(f"## {title}\n\n`{command}` ([{file}]({file}))\n\n{trainers_table(results(file))}")
    return NOTE.format(source="the JSON files here") + "\n".join(parts)


def trainers_table(runs: Iterable[dict[str, Any]]) -> str:
    head = ("run", "steps", "tokens/s", "peak memory", "teacher beforehand", "KL", "KL drop", "share of the bf16 matrix rate")
    rows = [
        (
            run["name"],
            f"{run['steps']:,}",
            f"{run['tokens_per_second']:,.0f}",
            f"{run['peak_bytes'] / 1e9:.2f} GB",
            f"{run['teacher_seconds']:.0f} s",
            f"{run['kl_before']:.3f} → {run['kl_after']:.3f}",
            f"{run['kl_before'] - run['kl_after']:.3f}",
            f"{run['matrix_share']:.2f}",
        )
        for run in runs
    ]
    return table(head, rows)


# ------------------------------------------------------------------------------------------------- docs/design.md

AROUND = {  # what stands beside factory/
    "domains/": "what ships: families, domains, the general pool; evals/ holds what students are asked",
    "docs/": "these pages; results/ is rendered from the JSON that scripts write",
    "registry/": "the local registry; git keeps its README alone",
    "scripts/": "demo.sh, test.sh, install.sh, docs.py; bench/ holds the benchmarks",
    "tests/": "the same folders as factory/; support/ is shared, integration/ runs whole builds",
    "CITATION.cff": "how to cite this project",
}


def design_page() -> str:
    """The tree, with the first sentence of every module's docstring."""
    lines = ["factory/"]
    for path in sorted((ROOT / "factory").rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name)):
        folder, phrase = path.parent.relative_to(ROOT / "factory"), first_sentence(path)
        if path.name == "__init__.py":
            lines += [f"  {folder}/".ljust(30) + phrase] if folder.parts else []
        else:
            lines.append(f"{'  ' * (len(folder.parts) + 1)}{path.name}".ljust(30) + phrase)
    lines += [name.ljust(30) + phrase for name, phrase in AROUND.items()]
    return with_generated("docs/design.md", {"tree": "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n"})


def first_sentence(path: Path) -> str:
    """``first_sentence(Path("factory/cache.py"))``: of the module's docstring, without its full stop."""
    summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    return re.split(r"\.\s+(?=[A-Z])", " ".join(summary.split()))[0].removesuffix(".").replace("``", "")


PAGES: dict[str, Callable[[], str]] = {
    "docs/cli.md": cli_page,
    "docs/data.md": data_page,
    "docs/design.md": design_page,
    "docs/domains.md": domains_page,
    "docs/evaluation.md": evaluation_page,
    "docs/experiments.md": experiments_page,
    "docs/my-own-teacher.md": my_own_teacher_page,
    "README.md": readme,
    "docs/models.md": models_page,
    "docs/results/objective.md": objective_page,
    "docs/results/references.md": references_page,
    "docs/results/retrieval.md": retrieval_page,
    "docs/results/router.md": router_page,
    "docs/cascade.md": cascade_page,
    "docs/results/serving.md": load_page,
    "docs/serving.md": serving_page,
    "docs/results/students.md": students_page,
    "docs/results/trainers.md": trainers_page,
    "docs/results/training.md": training_page,
}

if __name__ == "__main__":
    main()
