"""Everything that is measured about a trained student before its verdict. Nothing is made here: all data is handed in.

suite = load_eval_suite(domain, specs.root)           # before anything is trained
measured = evaluate_student(target, data, suite, config, bootstrap)
measured.metrics["kl"].value
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.schema import DomainSpec, EvaluateConfig
from factory.data.router import DomainRouter
from factory.data.splitting import cluster_of
from factory.evaluation.bias import Pair, load_pairs, measure_bias
from factory.evaluation.data_fit import DataFitReport, check_bits_per_byte, check_routing, check_templates, merge_reports
from factory.evaluation.fidelity import (
    Candidate,
    Fidelity,
    HeldOut,
    base_only,
    measure_fidelity,
    with_adapter,
)
from factory.evaluation.golden_set import Question, load_golden_set, measure_golden_set
from factory.evaluation.lm_eval import TaskResult, load_tasks, run_tasks, task_metrics
from factory.evaluation.memorization import Canary, measure_canaries
from factory.evaluation.refusals import measure_refusals
from factory.evaluation.stats import BootstrapConfig
from factory.models.chat import NO_CONTEXT
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.registry.manifest import MetricValue

MAX_ROUTED = 500  # prompts of a domain behind its data-fit metrics
CANARY_CONTROLS = 63  # secrets that were not planted, beside each that was
MEASUREMENTS = 6  # steps of the progress bar after fidelity

Row = Mapping[str, Any]
Metrics = dict[str, MetricValue]


@dataclass(frozen=True)
class EvalSuite:
    """A domain's own evaluation files, read before training, since a mistake in them must not cost a training."""

    bias_pairs: Sequence[Pair]
    golden_set: Sequence[Question]


def load_eval_suite(spec: DomainSpec, root: Path) -> EvalSuite:
    """``load_eval_suite(domain, specs.root)``. Raises: SpecError or DataError for a file that cannot be used."""
    load_tasks(spec.tasks, root)
    return EvalSuite(load_pairs(spec.bias_pairs, root), load_golden_set(spec.golden_set, root) if spec.golden_set else ())


@dataclass(frozen=True)
class EvalTarget:
    """A trained student beside its teacher."""

    adapter: Any  # a peft model: "default" is the student, "sft" its baseline where there is one
    teacher: Teacher  # trimmed to the student's vocabulary
    tasks: Sequence[TaskResult] = ()  # what teacher and base scored on the domain's tasks in the pre-check

    @property
    def candidates(self) -> dict[str, Candidate]:
        """student, base, and sft where it was trained."""
        sft = {"sft": with_adapter(self.adapter, "sft")} if "sft" in self.adapter.peft_config else {}
        return {"student": with_adapter(self.adapter, "default"), "base": base_only(self.adapter), **sft}


@dataclass(frozen=True)
class DomainRows:
    """Rows of a data set with the domain they belong to."""

    spec: DomainSpec
    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]


@dataclass(frozen=True)
class EvalData:
    """What a student is measured on."""

    domain: DomainRows
    others: Sequence[DomainRows]  # the family's other domains, as far as their data sets exist
    general: Sequence[Row]  # general prompts with the teacher's answers
    general_texts: Sequence[str]  # the general pool's texts, for the bits-per-byte ratio
    embed: Callable[[Sequence[Row]], np.ndarray]  # rows → (E, D) of the family's encoder
    router: DomainRouter | None  # None for a private domain
    canaries: Sequence[Canary] = ()


@dataclass(frozen=True)
class Measured:
    """All metrics by name, the fidelity report they extend, and what a user should know."""

    metrics: Metrics
    fidelity: Fidelity
    warnings: tuple[str, ...]


def evaluate_student(
    target: EvalTarget,
    data: EvalData,
    suite: EvalSuite,
    config: EvaluateConfig,
    bootstrap: BootstrapConfig,
    *,
    root: Path,
    progress: Callable[[int], None] = lambda steps: None,
) -> Measured:
    """``evaluate_student(target, data, suite, settings.evaluate, bootstrap, root=specs.root).metrics["kl"].value``

    ``root`` is the folder of the YAML files, where paths of tasks start; ``progress`` counts examples, then measurements.
    """
    spec, tokenizer = data.domain.spec, target.teacher.tokenizer
    held_out = held_out_text(target, data, config)
    fidelity = measure_fidelity(target.adapter, target.teacher, held_out, bootstrap, progress)
    measurements: list[Callable[[], Metrics]] = [
        lambda: measure_refusals(target.candidates, tokenizer, declined_prompts(data), bootstrap),
        lambda: measure_bias(target.teacher, target.candidates, suite.bias_pairs, tokenizer, bootstrap),
        lambda: measure_tasks(target, spec, root, bootstrap),
        lambda: measure_golden_set(
            target.teacher, target.candidates, tokenizer, suite.golden_set, spec.teacher_context, bootstrap
        ),
        lambda: measure_canaries(
            target.teacher,
            target.candidates["student"],
            tokenizer,
            data.canaries,
            bootstrap,
            controls=CANARY_CONTROLS,
        ),
    ]
    metrics = dict(fidelity.metrics)
    for measurement in measurements:
        metrics |= measurement()
        progress(1)
    fit = data_fit(target.teacher, data, bootstrap)
    progress(1)
    unmeasured = () if suite.bias_pairs else (f"bias transfer was not measured: {spec.name} has no `bias_pairs`",)
    return Measured(metrics | fit.metrics, fidelity, (*fit.warnings, *unmeasured))


def evaluation_steps(data: EvalData, config: EvaluateConfig) -> int:
    """``evaluation_steps(data, settings.evaluate)``: what ``progress`` of ``evaluate_student`` adds up to."""
    return len(_test_rows(data, config)) + len(data.general) + len(_other_rows(data, config)) + MEASUREMENTS


def held_out_text(target: EvalTarget, data: EvalData, config: EvaluateConfig) -> HeldOut:
    """``held_out_text(target, data, config)``: the test split, general text, and as much of the family's other domains."""
    test, others, tokenizer = _test_rows(data, config), _other_rows(data, config), target.teacher.tokenizer
    return HeldOut(
        prompts=[row["prompt"] for row in test],
        domain=tokenize_examples(test, tokenizer, data.domain.spec.teacher_context),
        clusters=[cluster_of(row) for row in test],
        embeddings=data.embed(test),
        general=tokenize_examples(data.general, tokenizer, NO_CONTEXT),
        general_clusters=[cluster_of(row) for row in data.general],
        others=[one for spec, row in others for one in tokenize_examples([row], tokenizer, spec.teacher_context)],
        other_clusters=[cluster_of(row) for _, row in others],
    )


def _test_rows(data: EvalData, config: EvaluateConfig) -> Sequence[Row]:
    return data.domain.test[: config.examples]


def _other_rows(data: EvalData, config: EvaluateConfig) -> list[tuple[DomainSpec, Row]]:
    share = max(2, config.general // max(1, len(data.others)))
    return [(other.spec, row) for other in data.others for row in other.test[:share]]


def declined_prompts(data: EvalData) -> list[str]:
    """``declined_prompts(data)``: held-out prompts of any domain that the teacher declined to answer."""
    return [
        row["prompt"]
        for domain in (data.domain, *data.others)
        for rows in (domain.test, domain.validation)
        for row in rows
        if row["refusal"]
    ]


def measure_tasks(target: EvalTarget, spec: DomainSpec, root: Path, bootstrap: BootstrapConfig) -> Metrics:
    """``measure_tasks(target, spec, specs.root, bootstrap)``: of student and SFT.

    Teacher and base were scored on the same items by the pre-check.
    """
    trained = {name: candidate for name, candidate in target.candidates.items() if name != "base"}
    results = run_tasks(trained, target.teacher.tokenizer, spec.tasks, root=root)
    metrics: Metrics = {}
    for result, known in zip(results, target.tasks, strict=True):
        metrics |= task_metrics(replace(result, scores=result.scores | known.scores), bootstrap)
    return metrics


def data_fit(teacher: Teacher, data: EvalData, bootstrap: BootstrapConfig) -> DataFitReport:
    """``data_fit(teacher, data, bootstrap).warnings``: whether the data belongs to the domain.

    And whether the teacher is familiar with it.
    """
    name, rows = data.domain.spec.name, data.domain.train
    first = rows[:MAX_ROUTED]
    prompts = [f"{row['prompt']}\n{row['completion']}" if row["own_completion"] else row["prompt"] for row in first]
    parts = [
        check_templates(rows, name, bootstrap),
        check_bits_per_byte(teacher, prompts, data.general_texts[:MAX_ROUTED], name, bootstrap),
    ]
    if data.router is not None:
        parts.append(check_routing([row["prompt"] or row["completion"] for row in first], data.router, name, bootstrap))
    return merge_reports(parts)
