"""Is a student useful beside what else one could use? Its base, its baselines and its teacher on the same real questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.schema import FamilySpec, TeacherContext
from factory.errors import RegistryError
from factory.evaluation.benchmark import Row, benchmark_metrics, bits_per_byte, load_questions
from factory.evaluation.fidelity import base_only, fixed_model, with_adapter
from factory.evaluation.lm_eval import run_tasks, task_metrics
from factory.inference import load_version
from factory.models.chat import NO_CONTEXT
from factory.pipeline.context import BuildContext, FamilyModels, resolve_models
from factory.registry.manifest import StudentManifest
from factory.registry.versions import Version


@dataclass(frozen=True)
class EvalModel:
    """One model of a benchmark: a student, its base, its SFT baseline, a teacher."""

    name: str
    model: Any
    tokenizer: Any
    parameters: int
    context: TeacherContext = NO_CONTEXT


def run_benchmark(
    context: BuildContext, version: Version, questions: Path, others: Sequence[FamilySpec], limit: int
) -> list[Row]:
    """``run_benchmark(context, version, Path("questions.jsonl"), [other_family], 200)``: a row for every model.

    The models are the student, its base, its SFT baseline where that was published with it, its teacher with and without the
    domain's context, and the teachers of other families as they are downloaded. All answer the same questions and tasks.
    """
    manifest = version.manifest
    if manifest.kind != "student":
        raise RegistryError(f"{version.reference} is a base; a benchmark needs a student")
    domain = context.specs.domain(manifest.domain)
    asked = load_questions(questions, limit, context.seed).rows
    bits: dict[str, np.ndarray] = {}
    parameters, tasks, sizes = {}, {}, np.zeros(0)
    with context.progress(f"{domain.name}: real questions", 5 + len(others)) as advance:
        for one in _eval_models(context, version, manifest, others):
            bits[one.name], sizes = bits_per_byte(one.model, one.tokenizer, asked, context=one.context, device=context.device)
            parameters[one.name] = one.parameters
            if one.context == NO_CONTEXT:  # a task has a prompt of its own
                results = run_tasks({"student": fixed_model(one.model)}, one.tokenizer, domain.tasks, root=context.specs.root)
                tasks[one.name] = {
                    result.name: task_metrics(result, context.bootstrap)[f"task_{result.name}_accuracy"] for result in results
                }
            advance(1)
    metrics = benchmark_metrics(bits, sizes, context.bootstrap)
    return [
        Row(name, parameters[name], metrics[name], metrics.get(f"student_below_{name}"), tasks.get(name, {})) for name in bits
    ]


def _eval_models(
    context: BuildContext, version: Version, manifest: StudentManifest, others: Sequence[FamilySpec]
) -> Iterator[EvalModel]:
    """One after the other: only the models of one student are in memory together."""
    loaded, sizes = load_version(version, context.registry, context.device), manifest.evaluation.sizes.student
    model, tokenizer = loaded.model, loaded.base.tokenizer
    yield EvalModel("student", model, tokenizer, sizes.parameters)
    with base_only(model)() as plain:
        yield EvalModel("base", plain, tokenizer, sizes.base_parameters or sizes.parameters)
    if (version.folder / "sft").is_dir():
        model.load_adapter(str(version.folder / "sft"), "sft")
        with with_adapter(model, "sft")() as sft:
            yield EvalModel("sft", sft.eval(), tokenizer, sizes.parameters)
    del loaded, model
    for number, family in enumerate([context.family, *others]):
        models = resolve_models(family, context.specs.root, context.device)
        yield from _teachers(context, models, manifest.domain, own=number == 0)
        models.teacher.release()


def _teachers(context: BuildContext, models: FamilyModels, domain: str, *, own: bool) -> Iterator[EvalModel]:
    teacher = models.teacher
    name = "teacher" if own else f"{models.family.name}'s teacher"
    yield EvalModel(name, teacher.model, teacher.tokenizer, teacher.parameters)
    if own:
        shown = context.specs.domain(domain).teacher_context
        yield EvalModel("teacher, with its context", teacher.model, teacher.tokenizer, teacher.parameters, shown)
