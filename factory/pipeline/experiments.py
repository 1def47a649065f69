"""Questions about students: is each best on its own domain, what does each part of the objective do, is one of use?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from factory.config.schema import DomainSpec, FamilySpec, Specs, TeacherContext
from factory.errors import RegistryError
from factory.evaluation.benchmark import Row, benchmark_metrics, bits_per_byte, load_questions
from factory.evaluation.fidelity import base_only, fixed_model, measure, with_adapter
from factory.evaluation.lm_eval import run_tasks, task_metrics
from factory.evaluation.stats import BootstrapConfig, ExampleSums, paired_difference, summarize
from factory.models.base import load_base, load_student, trim_teacher
from factory.models.chat import NO_CONTEXT
from factory.models.references import resolve
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.build import Factory
from factory.pipeline.context import ProgressBar
from factory.registry.manifest import MetricValue
from factory.registry.registry import Registry
from factory.registry.versions import Version
from factory.reports.format import format_metric


@dataclass(frozen=True)
class Matrix:
    """KL of every adapter on every domain's held-out text, and how far the domain's own adapter is ahead of each other."""

    kl: dict[str, dict[str, MetricValue]]  # domain → student or "base" → KL(teacher ‖ student), nats per token
    ahead: dict[str, dict[str, MetricValue]]  # domain → other → other's KL minus the own adapter's, paired by example

    def own_is_best(self, domain: str) -> bool:
        """Whether the domain's own adapter is ahead of every other beyond the 95 % interval."""
        return all(figure.low > 0 for figure in self.ahead[domain].values())


def adapter_matrix(factory: Factory, versions: Sequence[Version]) -> Matrix:
    """``adapter_matrix(factory, [healthcare, education, legal]).own_is_best("legal")``

    Every adapter, and the base alone, on the test split of every student's domain; all students stand on one base.
    Raises: RegistryError where they do not, or where two are of one domain.
    """
    bases, domains = {version.base for version in versions}, [version.raw.get("domain") for version in versions]
    if len(bases) != 1 or len(set(domains)) != len(domains) or len(domains) < 2 or None in domains:
        raise RegistryError(
            f"a matrix needs two or more students of one base and of different domains, not "
            f"{', '.join(f'{v.reference} ({v.base})' for v in versions)}; factory list shows bases"
        )
    base = load_base(factory.registry.resolve(str(versions[0].base)).folder, factory.device)
    teacher = trim_teacher(factory.teacher, base.shape.tokens)
    model: Any = load_student(base, versions[0].folder)  # its adapter is called "default"
    names = {versions[0].reference: "default"}
    for version in versions[1:]:
        names[version.reference] = version.name
        model.load_adapter(str(version.folder), version.name)
    model.eval()
    candidates = {reference: with_adapter(model, name) for reference, name in names.items()}
    candidates["base"] = base_only(model)
    kl: dict[str, dict[str, MetricValue]] = {}
    ahead: dict[str, dict[str, MetricValue]] = {}
    for version in versions:
        domain = version.raw["domain"]
        data, settings = factory.data(domain), factory.family.settings(factory.profile).evaluate
        rows = list(data.rows["test"])[: settings.examples]
        with factory.progress(f"{domain}: every adapter", len(rows)) as advance:
            sums = measure(teacher, candidates, tokenize_examples(rows, teacher.tokenizer, data.spec.teacher_context), advance)
        bootstrap = BootstrapConfig(settings.bootstrap, factory.seed)
        kl[domain] = {name: summarize(one, None, bootstrap)["kl"] for name, one in sums.items()}
        own = sums[version.reference]
        ahead[domain] = {
            name: paired_difference(one.kl, own.kl, own.tokens, bootstrap)
            for name, one in sums.items()
            if name != version.reference
        }
    return Matrix(kl, ahead)


def matrix_table(matrix: Matrix) -> Table:
    """``print_table(matrix_table(matrix))``: a row a domain, a column an adapter."""
    columns = list(next(iter(matrix.kl.values())))
    table = Table("KL, nats per token", *columns, "own adapter best?")
    for domain, row in matrix.kl.items():
        figures = [format_metric(row[name]) for name in columns]
        nearest = min(matrix.ahead[domain].values(), key=lambda figure: figure.low)
        verdict = "yes" if matrix.own_is_best(domain) else "not beyond its interval"
        table.add_row(domain, *figures, f"{verdict}: ahead by {format_metric(nearest)}")
    return table


def matrix_json(matrix: Matrix) -> dict[str, Any]:
    """The same as plain values."""
    return {
        domain: {
            "kl": {name: asdict(figure) for name, figure in row.items()},
            "ahead": {name: asdict(figure) for name, figure in matrix.ahead[domain].items()},
            "own_is_best": matrix.own_is_best(domain),
        }
        for domain, row in matrix.kl.items()
    }


@dataclass(frozen=True)
class Ablation:
    """One variation of the objective, trained for the same steps and measured on the same examples."""

    name: str
    figures: dict[str, MetricValue]
    seconds: float
    ahead: MetricValue | None  # response-only KL minus this one's, paired by example


WITHOUT_CONTEXT = "response, teacher without its context"
VARIATIONS: dict[str, dict[str, Any]] = {
    "response": {"feature": 0.0, "relation": 0.0, "lmbda": 0.0},
    "response + feature": {"relation": 0.0, "lmbda": 0.0},
    "response + relation": {"feature": 0.0, "lmbda": 0.0},
    "response + feature + relation": {"lmbda": 0.0},
    "response, half on-policy": {"feature": 0.0, "relation": 0.0, "lmbda": 0.5},
    WITHOUT_CONTEXT: {"feature": 0.0, "relation": 0.0, "lmbda": 0.0},
}


def ablations(factory: Factory, domain: str, size: str, steps: int) -> Iterator[Ablation]:
    """``for one in ablations(factory, "healthcare", "small", steps=30)``: the same adapter, base, examples and steps.

    Judged against the teacher with its context, in every variation.
    """
    version, data = factory.base(size), factory.data(domain)
    settings = factory.family.settings(factory.profile, factory.specs.domain(domain))
    rows = list(data.rows["test"])[: settings.evaluate.examples]
    embeddings = factory.embed_rows(rows)
    teacher = trim_teacher(factory.teacher, load_base(version.folder, factory.device).shape.tokens)
    held_out = tokenize_examples(rows, teacher.tokenizer, data.spec.teacher_context)
    bootstrap = BootstrapConfig(settings.evaluate.bootstrap, factory.seed)
    first: ExampleSums | None = None
    for name, over in VARIATIONS.items():
        config = settings.distill.model_copy(update={"steps": steps, **over})
        base = load_base(version.folder, factory.device)  # anew: an adapter is attached to it
        seen = data.without_context() if name == WITHOUT_CONTEXT else data
        training_set = factory.adapter_training_set(seen, teacher, config, version)
        adapter, _, folder = factory.train_adapter(base, teacher, training_set, data, config, version, name)
        shutil.rmtree(folder, ignore_errors=True)
        sums = measure(teacher, {"student": with_adapter(adapter, "default")}, held_out)["student"]
        ahead = None if first is None else paired_difference(first.kl, sums.kl, sums.tokens, bootstrap)
        first = first or sums
        yield Ablation(name, summarize(sums, embeddings, bootstrap), factory.seconds.pop(name), ahead)


@dataclass(frozen=True)
class EvalModel:
    """One model on real questions: a student, its base, its SFT baseline, a teacher."""

    name: str
    model: Any
    tokenizer: Any
    parameters: int
    context: TeacherContext = NO_CONTEXT


def run_benchmark(
    version: Version,
    registry: Registry,
    specs: Specs,
    questions: Path,
    others: Sequence[FamilySpec],
    limit: int,
    device: torch.device,
    progress: ProgressBar,
) -> list[Row]:
    """``run_benchmark(version, registry, specs, Path("questions.jsonl"), [other_family], 200, device, bars)``: a row a model.

    The student, its base, its SFT baseline where that was published with it, its teacher plainly and with the domain's
    context, and other families' teachers as they are downloaded. All answer the same questions and the domain's tasks.
    """
    family, domain = specs.family(str(version.raw["family"])), specs.domain(str(version.raw["domain"]))
    bootstrap = BootstrapConfig(family.evaluate.bootstrap, family.seed)
    asked = load_questions(questions, limit, family.seed).rows
    bits: dict[str, Any] = {}
    parameters, tasks = {}, {}
    bytes_ = np.zeros(0)
    names = ["student", "base", "sft", "teacher", "teacher, with its context", *(f"{one.name}'s teacher" for one in others)]
    with progress(f"{domain.name}: real questions", len(names)) as advance:
        for one in _eval_models(version, registry, specs, [family, *others], domain, device):
            bits[one.name], bytes_ = bits_per_byte(one.model, one.tokenizer, asked, context=one.context, device=device)
            parameters[one.name] = one.parameters
            if one.context == NO_CONTEXT:  # a task has its own form
                results = run_tasks({"student": fixed_model(one.model)}, one.tokenizer, domain.tasks, root=specs.root)
                tasks[one.name] = {
                    result.name: task_metrics(result, bootstrap)[f"task_{result.name}_accuracy"] for result in results
                }
            advance(1)
    figures = benchmark_metrics(bits, bytes_, bootstrap)
    return [
        Row(name, parameters[name], figures[name], figures.get(f"student_below_{name}"), tasks.get(name, {})) for name in bits
    ]


def _eval_models(
    version: Version,
    registry: Registry,
    specs: Specs,
    families: Sequence[FamilySpec],
    domain: DomainSpec,
    device: torch.device,
) -> Iterator[EvalModel]:
    """One after the other: no two are in memory at once but those of one student."""
    base = load_base(registry.resolve(str(version.base)).folder, device)
    model: Any = load_student(base, version.folder)
    sizes = version.raw["evaluation"]["sizes"]["student"]
    yield EvalModel("student", model, base.tokenizer, sizes["parameters"])
    with base_only(model)() as plain:
        yield EvalModel("base", plain, base.tokenizer, sizes["base_parameters"])
    if (version.folder / "sft").is_dir():
        model.load_adapter(str(version.folder / "sft"), "sft")
        with with_adapter(model, "sft")() as sft:
            yield EvalModel("sft", sft.eval(), base.tokenizer, sizes["parameters"])
    del base, model
    for number, family in enumerate(families):
        files = resolve(family.teacher, root=specs.root, chat_template=family.teacher.chat_template)
        teacher = Teacher.load(files, device)
        name = "teacher" if number == 0 else f"{family.name}'s teacher"
        yield EvalModel(name, teacher.model, teacher.tokenizer, teacher.parameters)
        if number == 0:
            context = domain.teacher_context
            yield EvalModel("teacher, with its context", teacher.model, teacher.tokenizer, teacher.parameters, context)
        teacher.release()
