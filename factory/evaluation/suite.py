"""Everything that is asked of a trained student before its verdict: fidelity, bias, memory, tasks, refusals, energy.

evaluation = evaluate_student(factory, EvalTarget(adapter, teacher, data, canaries), settings)
judge(evaluation.figures, family.gates_of(domain))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from factory.config.schema import DomainSpec, Settings
from factory.evaluation.bias import Pair, load_pairs, measure_bias
from factory.evaluation.data_fit import DataFitReport, check_bits_per_byte, check_routing, check_templates, merge_reports
from factory.evaluation.fidelity import Candidate, Fidelity, HeldOut, base_only, measure_fidelity, teacher_model, with_adapter
from factory.evaluation.golden_set import Question, load_golden_set, measure_golden_set
from factory.evaluation.lm_eval import TaskResult, load_tasks, run_tasks, task_metrics
from factory.evaluation.memorization import Canary, measure_canaries
from factory.evaluation.refusals import measure_refusals
from factory.evaluation.stats import BootstrapConfig
from factory.models.chat import NO_CONTEXT, prompt_ids, stop_tokens
from factory.models.generation import sample
from factory.models.lora import merged_adapters
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.context import DomainData, Materials
from factory.registry.manifest import MetricValue

MAX_ROUTED = 500  # prompts of a domain behind its mismatch figures
CONTROLS = 63  # secrets that were not planted, beside each that was
ENERGY_TOKENS = 64  # of each of 16 answers, behind the energy of 1,000 tokens


@dataclass(frozen=True)
class EvalSuite:
    """A domain's own files, read before anything is trained: a mistake in them must not cost a training."""

    pairs: Sequence[Pair]
    questions: Sequence[Question]


def load_eval_suite(spec: DomainSpec, root: Path) -> EvalSuite:
    """``load_eval_suite(domain, specs.root)``. Raises: SpecError or DataError for a file that cannot be used."""
    load_tasks(spec.tasks, root)
    return EvalSuite(load_pairs(spec.bias_pairs, root), load_golden_set(spec.golden_set, root) if spec.golden_set else ())


@dataclass(frozen=True)
class EvalTarget:
    """A trained student with what it is judged by."""

    adapter: Any  # a peft model; "default" is the student, "sft" its baseline where there is one
    teacher: Teacher  # trimmed to the student's vocabulary
    data: DomainData
    suite: EvalSuite
    canaries: Sequence[Canary] = ()
    tasks: Sequence[TaskResult] = ()  # of the domain's tasks, what teacher and base have scored in the check

    @property
    def candidates(self) -> dict[str, Candidate]:
        """student, base, and sft where it was trained."""
        sft = {"sft": with_adapter(self.adapter, "sft")} if "sft" in self.adapter.peft_config else {}
        return {"student": with_adapter(self.adapter, "default"), "base": base_only(self.adapter), **sft}


@dataclass(frozen=True)
class Evaluation:
    """All figures by name, the report they extend, what a user should know, and the energy of answers."""

    figures: dict[str, MetricValue]
    report: Fidelity
    warnings: tuple[str, ...]
    per_1000_tokens_wh: dict[str, float]


def evaluate_student(factory: Materials, target: EvalTarget, settings: Settings) -> Evaluation:
    """``evaluate_student(factory, target, settings).figures["kl"].value``: on held-out text and on the domain's own files."""
    bootstrap = BootstrapConfig(settings.evaluate.bootstrap, factory.seed)
    data, spec, tokenizer = target.data, target.data.spec, target.teacher.tokenizer
    report = _fidelity(factory, target, settings)
    figures = dict(report.metrics)
    with factory.timed("evaluate"), factory.progress(f"{spec.name}: trust", 6) as advance:
        figures |= refusals(factory, target, bootstrap)
        advance(1)
        if target.suite.pairs:
            figures |= measure_bias(target.teacher, target.candidates, target.suite.pairs, tokenizer, bootstrap)
        advance(1)
        trained = {name: candidate for name, candidate in target.candidates.items() if name != "base"}
        results = run_tasks(trained, tokenizer, spec.tasks, root=factory.specs.root)
        for result, known in zip(results, target.tasks, strict=True):
            figures |= task_metrics(replace(result, scores=result.scores | known.scores), bootstrap)
        advance(1)
        figures |= measure_golden_set(
            target.teacher, target.candidates, tokenizer, target.suite.questions, spec.teacher_context, bootstrap
        )
        advance(1)
        if target.canaries:
            student = target.candidates["student"]
            figures |= measure_canaries(target.teacher, student, tokenizer, target.canaries, bootstrap, controls=CONTROLS)
        advance(1)
        fit = data_fit(factory, target.teacher, data, bootstrap)
        energy = answer_energy(factory, target)
        advance(1)
    unasked = [] if target.suite.pairs else [f"bias transfer was not measured: {spec.name} has no `bias_pairs`"]
    return Evaluation(figures | fit.metrics, report, (*fit.warnings, *unasked), energy)


def _fidelity(factory: Materials, target: EvalTarget, settings: Settings) -> Fidelity:
    """On the domain's test split, on general text, and on as many examples of the family's other domains."""
    data, config = target.data, settings.evaluate
    test = list(data.rows["test"])[: config.examples]
    general = factory.general_rows()
    tokenizer = target.teacher.tokenizer
    others = [other for other in factory.public_domains if other.name != data.spec.name]
    elsewhere = [
        sequence
        for other in others
        for sequence in tokenize_examples(
            list(factory.data(other.name).rows["test"])[: max(2, config.general // len(others))],
            tokenizer,
            other.teacher_context,
        )
    ]
    total = len(test) + len(general) + len(elsewhere)
    with factory.timed("evaluate"), factory.progress(f"{data.spec.name}: evaluate", total) as advance:
        held_out = HeldOut(
            [row["prompt"] for row in test],
            tokenize_examples(test, tokenizer, data.spec.teacher_context),
            factory.embed_rows(test),
            tokenize_examples(general, tokenizer, NO_CONTEXT),
            elsewhere,
        )
        bootstrap = BootstrapConfig(config.bootstrap, factory.seed)
        return measure_fidelity(target.adapter, target.teacher, held_out, bootstrap, advance)


def refusals(factory: Materials, target: EvalTarget, bootstrap: BootstrapConfig) -> dict[str, MetricValue]:
    """Where the teacher declined on held-out prompts of any domain, the share that student and base decline as well.

    No figure where the teacher declined nowhere.
    """
    every = [target.data, *(factory.data(one.name) for one in factory.public_domains if one.name != target.data.spec.name)]
    declined = [
        row["prompt"] for data in every for split in ("test", "validation") for row in data.rows[split] if row["refusal"]
    ]
    return measure_refusals(target.candidates, target.teacher.tokenizer, declined, bootstrap)


def data_fit(factory: Materials, teacher: Teacher, data: DomainData, bootstrap: BootstrapConfig) -> DataFitReport:
    """Whether a domain's data is of that domain, and of what the teacher knows."""
    name, rows = data.spec.name, list(data.rows["train"])
    prompts = [f"{row['prompt']}\n{row['completion']}" if row["own_completion"] else row["prompt"] for row in rows[:MAX_ROUTED]]
    general = [example.text for example in factory.general[:MAX_ROUTED]]
    parts = [check_templates(rows, name, bootstrap), check_bits_per_byte(teacher, prompts, general, name, bootstrap)]
    if not data.spec.private:
        parts.append(
            check_routing([row["prompt"] or row["completion"] for row in rows[:MAX_ROUTED]], factory.router, name, bootstrap)
        )
    return merge_reports(parts)


def answer_energy(factory: Materials, target: EvalTarget) -> dict[str, float]:
    """Wh of 1,000 generated tokens by teacher and student, 16 answers at once."""
    stop, rows = stop_tokens(target.teacher.tokenizer), list(target.data.rows["test"])[:16]
    prompts = [prompt_ids(target.teacher.tokenizer, row["prompt"]) for row in rows]
    found = {}
    for who, candidate in (("teacher", teacher_model(target.teacher)), ("student", target.candidates["student"])):
        with candidate() as model, merged_adapters(model):
            spent = factory.energy.energy_of(partial(_write, model, prompts, stop))
        if spent is not None:
            found[who] = spent
    return found


def _write(model: Any, prompts: Sequence[Sequence[int]], stop: Sequence[int]) -> int:
    return sum(map(len, sample(model, prompts, stop=stop, max_new_tokens=ENERGY_TOKENS)))
