"""Everything that is measured about a trained student before its verdict. Nothing is made here: all data is handed in.

measured = evaluate_student(target, data, suite, settings)  # suite: load_eval_suite, before anything is trained
measured.metrics["kl"].value
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from factory.config.schema import DomainSpec, EvaluateConfig, TeacherContext
from factory.data.history import asked_alone, conversation_of, history_of
from factory.data.router import DomainRouter
from factory.data.splitting import cluster_of
from factory.evaluation.answer_confidence import ask_held_out, confidence_part
from factory.evaluation.answers import Answer, EnergyOf, ask_models, generate_answers
from factory.evaluation.bias import measure_bias
from factory.evaluation.confidence import Confidence
from factory.evaluation.data_fit import check_bits_per_byte, check_routing, check_templates, merge_reports
from factory.evaluation.endings import ending_rows, endings_part
from factory.evaluation.fidelity import Candidate, HeldOut, base_only, measure, measure_fidelity, with_adapter
from factory.evaluation.golden_set import Question, golden_set_report, marks, passed_difference
from factory.evaluation.items import Item
from factory.evaluation.lm_eval import TaskResult, run_tasks, task_metrics
from factory.evaluation.memorization import Canary, measure_canaries, measure_extraction, unmeasured_memorization
from factory.evaluation.parts import Part, kept_part
from factory.evaluation.real_text import real_text_metrics
from factory.evaluation.refusals import RefusalPrompt, kept_report, refusal_report, refusals_part
from factory.evaluation.retrieval import retrieval_part
from factory.evaluation.safety import injection_metrics, jailbreak_metrics
from factory.evaluation.samples import answer_samples, sample_prompts
from factory.evaluation.stats import BootstrapConfig, by_cluster, paired_ratio_difference
from factory.evaluation.suite import EvalSuite, sample_suite
from factory.models.chat import NO_CONTEXT, NO_CONTEXTS
from factory.models.embedding_head import EmbeddingHead
from factory.models.teacher import Teacher
from factory.models.tokenize import row_text, tokenize_examples
from factory.registry.manifest import MetricValue, PerExample

MAX_DECLINED = 32  # prompts of the data set that are asked, where a domain has no file of refusals
MAX_ROUTED = 500  # prompts of a domain that are routed
MAX_SCORED = 64  # texts behind the teacher's bits per byte
CANARY_CONTROLS = 63  # secrets that were not planted, beside each that was

Row = Mapping[str, Any]
Metrics = dict[str, MetricValue]


@dataclass(frozen=True)
class Champion:
    """The version that a student would replace."""

    reference: str
    model: Candidate
    teacher: Teacher  # trimmed to the champion's vocabulary, which may differ from the student's


@dataclass(frozen=True)
class EvalTarget:
    """A trained student beside its teacher."""

    adapter: Any  # a peft model: "default" is the student, "sft" its baseline where there is one
    teacher: Teacher  # trimmed to the student's vocabulary
    whole: Teacher | None = None  # with all of its tokens; None where nothing was trimmed
    tasks: Sequence[TaskResult] = ()  # what teacher and base scored on the domain's tasks in the pre-check
    champion: Champion | None = None
    head: EmbeddingHead | None = None  # of the student
    confidence: Confidence | None = None  # of the student

    @property
    def candidates(self) -> dict[str, Candidate]:
        """student, base, and sft where it was trained."""
        sft = {"sft": with_adapter(self.adapter, "sft")} if "sft" in self.adapter.peft_config else {}
        return {"student": with_adapter(self.adapter, "default"), "base": base_only(self.adapter), **sft}

    @property
    def trained(self) -> dict[str, Candidate]:
        """student, and sft where it was trained."""
        return {name: candidate for name, candidate in self.candidates.items() if name != "base"}


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
    embed: Callable[[Sequence[str]], np.ndarray]  # texts → (N, D) unit vectors of the family's encoder
    router: DomainRouter | None  # None for a private domain
    canaries: Sequence[Canary] = ()


@dataclass(frozen=True)
class EvalSettings:
    """How much is measured, and where what was measured is kept until the student is published."""

    config: EvaluateConfig
    bootstrap: BootstrapConfig
    root: Path  # the folder of the YAML files, where paths of tasks start
    folder: Path  # a file for each part; under the key of all that decides them
    max_new_tokens: int  # of an answer
    energy_of: EnergyOf
    say: Callable[[str], object]  # one line for people
    confidence_examples: int = 0  # test prompts whose answers the student's confidence is measured on, at most


PARTS = (
    "fidelity",
    "real text",
    "retrieval",
    "answers",
    "samples",
    "endings",
    "refusals",
    "safety",
    "bias",
    "tasks",
    "golden set",
    "memorization",
    "data fit",
    "confidence",
    "champion",
)


def evaluate_student(
    target: EvalTarget,
    data: EvalData,
    suite: EvalSuite,
    settings: EvalSettings,
    progress: Callable[[int], None] = lambda steps: None,
) -> Part:
    """``evaluate_student(target, data, suite, settings).metrics["kl"].value``: all parts, as one.

    Each part is kept in ``settings.folder`` once it is measured. ``progress`` counts parts, of which there are ``PARTS``.
    """
    bootstrap, spec, suite = settings.bootstrap, data.domain.spec, sample_suite(suite, settings.config)
    tokenizer = target.teacher.tokenizer
    to_decline, report = (suite.refusals, refusal_report) if suite.refusals else (declined_prompts(data), kept_report)
    shown = sample_prompts(data.domain.test)
    ends = ending_rows(suite.golden_set, data.domain.test, settings.config.golden_set)
    asked = [item.prompt for item in (*suite.golden_set, *to_decline, *suite.injections, *suite.jailbreaks)]
    seen = contexts_seen(data.domain, [*asked, *shown, *(row["prompt"] for row in ends)])
    parts: dict[str, Part] = {}

    def answers_to(prompts: Sequence[str]) -> dict[str, list[Answer]]:
        return {name: [given[prompt] for prompt in prompts] for name, given in parts["answers"].answers.items()}

    def answers(items: Sequence[Item]) -> dict[str, list[Answer]]:
        return answers_to([item.prompt for item in items])

    measures: dict[str, Callable[[], Part]] = {
        "fidelity": lambda: fidelity_part(target, data, settings),
        "real text": lambda: real_text_part(target, data, bootstrap),
        "retrieval": lambda: retrieval_part(
            target.candidates["student"], tokenizer, target.head, data.embed, _test_rows(data, settings.config), bootstrap
        ),
        "answers": lambda: answers_part(target, seen, settings),
        "samples": lambda: Part(samples=answer_samples(target.adapter, target.teacher, shown, seen, answers_to(shown))),
        "endings": lambda: endings_part(ends, answers_to([row["prompt"] for row in ends]), bootstrap),
        "refusals": lambda: refusals_part(report(to_decline, answers(to_decline), bootstrap)),
        "safety": lambda: Part(
            metrics=injection_metrics(suite.injections, answers(suite.injections), bootstrap)
            | jailbreak_metrics(suite.jailbreaks, answers(suite.jailbreaks), bootstrap)
        ),
        "bias": lambda: Part(metrics=measure_bias(target.teacher, target.trained, suite.bias_pairs, tokenizer, bootstrap)),
        "tasks": lambda: Part(metrics=measure_tasks(target, spec, settings)),
        "golden set": lambda: golden_set_part(suite.golden_set, answers(suite.golden_set), bootstrap),
        "memorization": lambda: memorization_part(target, data, bootstrap),
        "data fit": lambda: data_fit_part(target.teacher, data, bootstrap),
        "confidence": lambda: measured_confidence(target, data, settings),
        "champion": lambda: champion_part(target, data, suite, settings, parts),
    }
    for name, measure_part in measures.items():
        parts[name] = kept_part(settings.folder, name, measure_part, settings.say)
        progress(1)
    unmeasured = () if suite.bias_pairs else (f"bias transfer was not measured: {spec.name} has no `bias_pairs`",)
    return merge_parts([*parts.values(), Part(warnings=unmeasured)])


def merge_parts(parts: Sequence[Part]) -> Part:
    """``merge_parts([fidelity, bias])``: all metrics and warnings; whatever only one part has."""
    own = {name: getattr(part, name) for part in parts for name in part.model_fields_set if getattr(part, name)}
    metrics = {name: metric for part in parts for name, metric in part.metrics.items()}
    warnings = tuple(warning for part in parts for warning in part.warnings)
    return Part(**own | {"metrics": metrics, "warnings": warnings})


# -------------------------------------------------------------------------------------------------------------- parts


def fidelity_part(target: EvalTarget, data: EvalData, settings: EvalSettings) -> Part:
    """``fidelity_part(target, data, settings).per_example``: the student beside its teacher on held-out text."""
    found = measure_fidelity(
        target.adapter, target.teacher, held_out_text(target, data, settings.config), settings.bootstrap, whole=target.whole
    )
    missing = () if data.general else ("forgetting was not measured: the teacher finished no answer to a general prompt",)
    return Part(
        metrics=found.metrics,
        warnings=missing,
        baselines=found.baselines,
        speed=found.speed,
        per_example=found.per_example,
    )


def held_out_text(target: EvalTarget, data: EvalData, config: EvaluateConfig) -> HeldOut:
    """``held_out_text(target, data, config)``: the test split, general text, and as much of the family's other domains."""
    test, others, tokenizer = _test_rows(data, config), _other_rows(data, config), target.teacher.tokenizer
    return HeldOut(
        domain=tokenize_examples(test, tokenizer, data.domain.spec.contexts),
        clusters=[cluster_of(row) for row in test],
        later_turn=[bool(history_of(row).examples) for row in test],
        embeddings=data.embed([row_text(row) for row in test]),
        general=tokenize_examples(data.general, tokenizer, NO_CONTEXTS),
        general_clusters=[cluster_of(row) for row in data.general],
        others=[one for spec, row in others for one in tokenize_examples([row], tokenizer, spec.contexts)],
        other_clusters=[cluster_of(row) for _, row in others],
    )


def _test_rows(data: EvalData, config: EvaluateConfig) -> Sequence[Row]:
    return data.domain.test[: config.examples]


def _other_rows(data: EvalData, config: EvaluateConfig) -> list[tuple[DomainSpec, Row]]:
    share = max(2, config.general // max(1, len(data.others)))
    return [(other.spec, row) for other in data.others for row in other.test[:share]]


def real_text_part(target: EvalTarget, data: EvalData, bootstrap: BootstrapConfig) -> Part:
    """``real_text_part(target, data, bootstrap).metrics["bits_per_byte_change"]``: of student and untrimmed teacher."""
    held_out, whole = [*data.domain.test, *data.domain.validation], target.whole or target.teacher
    return Part(metrics=real_text_metrics(target.candidates["student"], target.teacher, whole, held_out, bootstrap))


def contexts_seen(domain: DomainRows, prompts: Sequence[str]) -> dict[str, TeacherContext]:
    """``contexts_seen(data.domain, prompts)``: of each; a held-out row's is its source's, another question's the domain's."""
    contexts = domain.spec.contexts
    sources = {row["prompt"]: row["source"] for row in (*domain.test, *domain.validation)}
    return {prompt: contexts.of(sources.get(prompt)) for prompt in prompts}


def answers_part(target: EvalTarget, seen: Mapping[str, TeacherContext], settings: EvalSettings) -> Part:
    """``answers_part(target, {prompt: context}, settings).answers["student"]``: in common batches.

    The base is not asked: what its adapter adds is seen in KL, and answers are most of an evaluation's cost.
    """
    found = ask_models(target.teacher, target.trained, seen, settings.max_new_tokens, settings.energy_of)
    return Part(
        answers={name: dict(zip(seen, given, strict=True)) for name, given in found.answers.items()},
        per_1000_tokens_wh=found.per_1000_tokens_wh,
    )


def golden_set_part(asked: Sequence[Question], answers: Mapping[str, Sequence[Answer]], bootstrap: BootstrapConfig) -> Part:
    """``golden_set_part(suite.golden_set, answers, bootstrap).passed["student"]``"""
    found = golden_set_report(asked, answers, bootstrap)
    return Part(metrics=found.metrics, passed={name: tuple(one) for name, one in found.passed.items()})


def declined_prompts(data: EvalData) -> list[RefusalPrompt]:
    """``declined_prompts(data)``: the first held-out prompts of any domain that the teacher declined to answer."""
    rows = [row for domain in (data.domain, *data.others) for part in (domain.test, domain.validation) for row in part]
    prompts = dict.fromkeys(row["prompt"] for row in asked_alone(rows) if row["refusal"])
    return [RefusalPrompt(prompt=prompt, expect="refuse") for prompt in prompts][:MAX_DECLINED]


def measure_tasks(target: EvalTarget, spec: DomainSpec, settings: EvalSettings) -> Metrics:
    """``measure_tasks(target, spec, settings)``: of student and SFT.

    Teacher and base were scored on the same items by the pre-check.
    """
    limit = settings.config.task_items
    if not limit:
        return {}
    results = run_tasks(target.trained, target.teacher.tokenizer, spec.tasks, root=settings.root, limit=limit)
    metrics: Metrics = {}
    for result, known in zip(results, target.tasks, strict=True):
        metrics |= task_metrics(replace(result, scores=result.scores | known.scores), settings.bootstrap)
    return metrics


def memorization_part(target: EvalTarget, data: EvalData, bootstrap: BootstrapConfig) -> Part:
    """``memorization_part(target, data, bootstrap).metrics["canary_exposure"]``: whether the student repeats what it has seen.

    Planted secrets where there are any; a private domain's own texts.
    """
    spec, tokenizer, student = data.domain.spec, target.teacher.tokenizer, target.candidates["student"]
    metrics = measure_canaries(student, tokenizer, data.canaries, bootstrap, controls=CANARY_CONTROLS)
    if spec.private:
        base = target.candidates["base"]
        metrics |= measure_extraction(student, base, tokenizer, data.domain.train, data.domain.test, bootstrap)
    return Part(metrics=metrics, warnings=tuple(unmeasured_memorization(spec, metrics)))


def data_fit_part(teacher: Teacher, data: EvalData, bootstrap: BootstrapConfig) -> Part:
    """``data_fit_part(teacher, data, bootstrap).warnings``: whether data and domain, and data and teacher, belong together."""
    name, rows = data.domain.spec.name, data.domain.train
    first = rows[:MAX_ROUTED]
    prompts = [f"{row['prompt']}\n{row['completion']}" if row["own_completion"] else row["prompt"] for row in first]
    parts = [
        check_templates(rows, name, bootstrap),
        check_bits_per_byte(teacher, prompts[:MAX_SCORED], data.general_texts[:MAX_SCORED], name, bootstrap),
    ]
    if data.router is not None:
        parts.append(check_routing([conversation_of(row) for row in first], data.router, name, bootstrap))
    found = merge_reports(parts)
    return Part(metrics=found.metrics, warnings=found.warnings)


def measured_confidence(target: EvalTarget, data: EvalData, settings: EvalSettings) -> Part:
    """``measured_confidence(target, data, settings).metrics["confidence_auroc"]``: nothing where the student has none."""
    if target.confidence is None:
        return Part()
    found = ask_held_out(
        target.candidates["student"],
        target.teacher,
        data.domain.test[: settings.confidence_examples],
        data.domain.spec.contexts,
        max_new_tokens=settings.max_new_tokens,
        margin=target.confidence.margin,
    )
    return confidence_part(target.confidence, found, settings.bootstrap)


def champion_part(
    target: EvalTarget, data: EvalData, suite: EvalSuite, settings: EvalSettings, parts: Mapping[str, Part]
) -> Part:
    """``champion_part(target, data, suite, settings, parts).metrics["kl_behind_champion"]``: nothing without a champion.

    ``parts`` are what was measured of the student before.
    """
    champion, own = target.champion, parts["fidelity"].per_example
    if champion is None or own is None:
        return Part()
    return Part(
        metrics=champion_metrics(champion, own, target, data, settings)
        | champion_golden_set(champion, parts["golden set"].passed, suite, settings)
    )


def champion_metrics(
    champion: Champion, own: PerExample, target: EvalTarget, data: EvalData, settings: EvalSettings
) -> Metrics:
    """``champion_metrics(champion, per_example, target, data, settings)["kl_behind_champion"]``: on the student's test split.

    KL to the whole teacher, trimming included, since the two may have different vocabularies; each per token of its own.
    """
    test = _test_rows(data, settings.config)
    examples = tokenize_examples(test, champion.teacher.tokenizer, data.domain.spec.contexts)
    whole = target.whole or target.teacher
    theirs = measure(champion.teacher, {"champion": champion.model}, examples, whole=whole)["champion"]
    labels = [cluster_of(row) for row in test]

    def summed(column: Any) -> np.ndarray:
        return by_cluster(np.asarray(column), labels)

    return {
        "kl_behind_champion": paired_ratio_difference(
            summed(np.add(own.kl, own.trimmed)),
            summed(own.tokens),
            summed(theirs.kl + theirs.trimmed),
            summed(theirs.tokens),
            settings.bootstrap,
        )
    }


def champion_golden_set(
    champion: Champion, passed: Mapping[str, Sequence[bool]], suite: EvalSuite, settings: EvalSettings
) -> Metrics:
    """``champion_golden_set(champion, part.passed, suite, settings)["golden_set_behind_champion"]``: the same questions."""
    asked = suite.golden_set
    if not asked:
        return {}
    prompts = [question.prompt for question in asked]
    with champion.model() as model:
        answers = generate_answers(model, champion.teacher.tokenizer, prompts, NO_CONTEXT, settings.max_new_tokens)
    theirs = marks(asked, answers)
    return {"golden_set_behind_champion": passed_difference(asked, theirs, passed["student"])}
