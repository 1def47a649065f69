"""What is measured of a student whose teacher gives text alone: nothing that would need the teacher's distributions.

measured = evaluate_by_texts(target, data, suite, settings, ask)
measured.metrics["nats_below_base"].value  # nats/token of the teacher's held-out texts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from factory.config.schema import TeacherContext
from factory.evaluation.answers import Answer, ask_students
from factory.evaluation.benchmark import bits_per_byte
from factory.evaluation.data_fit import check_routing, check_templates, merge_reports
from factory.evaluation.endings import ending_rows, endings_part
from factory.evaluation.evaluate import (
    MAX_ROUTED,
    EvalData,
    EvalSettings,
    EvalTarget,
    contexts_seen,
    declined_prompts,
    golden_set_part,
    held_out_text,
    measure_tasks,
    memorization_part,
    merge_parts,
)
from factory.evaluation.fidelity import Candidate, short_labels
from factory.evaluation.items import Item
from factory.evaluation.parts import Part, kept_part
from factory.evaluation.real_text import real_texts
from factory.evaluation.refusals import kept_report, refusal_report, refusals_part
from factory.evaluation.retrieval import retrieval_part
from factory.evaluation.safety import injection_metrics, jailbreak_metrics
from factory.evaluation.samples import sample_prompts
from factory.evaluation.speed import student_speed
from factory.evaluation.stats import BootstrapConfig, by_cluster, exponentiate, paired_difference, ratio
from factory.evaluation.suite import EvalSuite, sample_suite
from factory.models.device import mixed_precision
from factory.models.scoring import score_completions
from factory.models.tokenize import TokenizedExample
from factory.registry.manifest import MetricValue, PerExample, Sample, Speeds

PARTS = (
    "texts",
    "real text",
    "retrieval",
    "answers",
    "samples",
    "endings",
    "refusals",
    "safety",
    "tasks",
    "golden set",
    "memorization",
    "data fit",
)
UNMEASURED = (
    "its teacher is behind an API: KL and agreement with it, its perplexity, the bias transfer and all "
    "else that needs its distributions were not measured"
)
BATCH = 16
Ask = Callable[[Mapping[str, TeacherContext]], Mapping[str, Answer]]  # prompts, each with its context → the teacher's answers


@dataclass(frozen=True)
class TextSums:
    """What one model makes of E texts that the teacher wrote."""

    nll: np.ndarray  # (E,) nats
    correct: np.ndarray  # (E,) positions where its top-1 token is the text's
    tokens: np.ndarray  # (E,)


def evaluate_by_texts(
    target: EvalTarget,
    data: EvalData,
    suite: EvalSuite,
    settings: EvalSettings,
    ask: Ask,
    progress: Callable[[int], None] = lambda steps: None,
) -> Part:
    """``evaluate_by_texts(target, data, suite, settings, ask).metrics["golden_set_change"]``: all parts, as one.

    ``ask`` has the teacher answer. It is asked no attack, since whoever sends harmful requests to an API may lose their access.
    """
    bootstrap, suite, tokenizer = settings.bootstrap, sample_suite(suite, settings.config), target.teacher.tokenizer
    to_decline, report = (suite.refusals, refusal_report) if suite.refusals else (declined_prompts(data), kept_report)
    shown = sample_prompts(data.domain.test)
    attacks = [item.prompt for item in (*suite.injections, *suite.jailbreaks)]
    ends = ending_rows(suite.golden_set, data.domain.test, settings.config.golden_set)
    questions = [*(item.prompt for item in (*suite.golden_set, *to_decline)), *(row["prompt"] for row in ends)]
    asked = contexts_seen(data.domain, [*questions, *shown])
    parts: dict[str, Part] = {}

    def answers_to(prompts: Sequence[str]) -> dict[str, list[Answer]]:
        given = parts["answers"].answers
        return {name: [own[one] for one in prompts] for name, own in given.items() if all(one in own for one in prompts)}

    def answers(items: Sequence[Item]) -> dict[str, list[Answer]]:
        return answers_to([item.prompt for item in items])

    def answered() -> Part:
        found = ask_students(tokenizer, target.trained, [*asked, *attacks], settings.max_new_tokens, settings.energy_of)
        return Part(answers={"teacher": dict(ask(asked)), **found.answers}, per_1000_tokens_wh=found.per_1000_tokens_wh)

    measures: dict[str, Callable[[], Part]] = {
        "texts": lambda: texts_part(target, data, settings),
        "real text": lambda: real_text_alone(target.candidates["student"], target, data, bootstrap),
        "retrieval": lambda: retrieval_part(
            target.candidates["student"],
            tokenizer,
            target.head,
            data.embed,
            data.domain.test[: settings.config.examples],
            bootstrap,
        ),
        "answers": answered,
        "samples": lambda: Part(samples=tuple(_sample(prompt, parts["answers"].answers) for prompt in shown)),
        "endings": lambda: endings_part(ends, answers_to([row["prompt"] for row in ends]), bootstrap),
        "refusals": lambda: refusals_part(report(to_decline, answers(to_decline), bootstrap)),
        "safety": lambda: Part(
            metrics=injection_metrics(suite.injections, answers(suite.injections), bootstrap)
            | jailbreak_metrics(suite.jailbreaks, answers(suite.jailbreaks), bootstrap)
        ),
        "tasks": lambda: Part(metrics=measure_tasks(target, data.domain.spec, settings)),
        "golden set": lambda: golden_set_part(suite.golden_set, answers(suite.golden_set), bootstrap),
        "memorization": lambda: memorization_part(target, data, bootstrap),
        "data fit": lambda: data_alone(data, bootstrap),
    }
    for name, measure_part in measures.items():
        parts[name] = kept_part(settings.folder, name, measure_part, settings.say)
        progress(1)
    return merge_parts([Part(warnings=(UNMEASURED,)), *parts.values()])


def _sample(prompt: str, answers: Mapping[str, Mapping[str, Answer]]) -> Sample:
    """Both answers; where the teacher would have chosen another token, it does not say."""
    return Sample(prompt=prompt, teacher=answers["teacher"][prompt].text, student=answers["student"][prompt].text)


def measure_texts(candidate: Candidate, examples: Sequence[TokenizedExample], target: EvalTarget) -> TextSums:
    """``measure_texts(target.candidates["student"], held_out.domain, target).nll``: no context is seen."""
    prompts, texts = [one.prompt for one in examples], [one.completion for one in examples]
    with candidate() as model, mixed_precision(target.teacher.device):
        scores = score_completions(model, prompts, texts, target.teacher.device, batch=BATCH)
    return TextSums(
        np.array([-float(one.log_probs.sum(dtype=float)) for one in scores]),
        np.array([float(one.top1.sum()) for one in scores]),
        np.array([float(len(text)) for text in texts]),
    )


def texts_part(target: EvalTarget, data: EvalData, settings: EvalSettings) -> Part:
    """``texts_part(target, data, settings).metrics["student_perplexity"]``: of the teacher's held-out texts."""
    held_out, bootstrap = held_out_text(target, data, settings.config), settings.bootstrap
    found = {name: measure_texts(one, held_out.domain, target) for name, one in target.candidates.items()}
    student, base, labels = found["student"], found["base"], held_out.clusters

    def rows(column: np.ndarray) -> np.ndarray:
        return by_cluster(column, labels)

    def perplexity(sums: TextSums) -> dict[str, MetricValue]:
        return {"student_perplexity": exponentiate(ratio(rows(sums.nll), rows(sums.tokens), bootstrap))}

    below = paired_difference(rows(base.nll), rows(student.nll), rows(student.tokens), bootstrap)
    metrics = perplexity(student) | {"nats_below_base": below}
    outside, clusters = [*held_out.general, *held_out.others], [*held_out.general_clusters, *held_out.other_clusters]
    if outside:
        own, before = (measure_texts(target.candidates[name], outside, target) for name in ("student", "base"))
        ours, theirs, tokens = (by_cluster(column, clusters) for column in (own.correct, before.correct, own.tokens))
        metrics["outside_accuracy_change"] = paired_difference(ours, theirs, tokens, bootstrap)
    return Part(
        metrics=metrics,
        baselines={name: perplexity(sums) for name, sums in found.items() if name != "student"},
        speed=Speeds(
            teacher=None, student=student_speed(target.adapter, target.teacher, [one.prompt for one in held_out.domain])
        ),
        per_example=_per_example(student, labels),
    )


def _per_example(sums: TextSums, clusters: Sequence[str]) -> PerExample:
    """What needs the teacher's distributions is NaN."""
    measured = {"tokens": sums.tokens, "nll": sums.nll, "correct": sums.correct}
    columns = {
        name: tuple(round(float(value), 6) for value in measured.get(name, [nan] * len(sums.tokens)))
        for name in PerExample.model_fields
        if name not in ("key", "cluster")
    }
    return PerExample(key="texts", cluster=tuple(short_labels(clusters)), **columns)


def real_text_alone(student: Candidate, target: EvalTarget, data: EvalData, bootstrap: BootstrapConfig) -> Part:
    """``real_text_alone(student, target, data, bootstrap).metrics["bits_per_byte"]``: of the student."""
    rows = real_texts([*data.domain.test, *data.domain.validation])
    if not rows:
        return Part()
    with student() as model:
        bits, sizes = bits_per_byte(model, target.teacher.tokenizer, rows, device=target.teacher.device)
    labels = [row.document for row in rows]
    return Part(metrics={"bits_per_byte": ratio(by_cluster(bits, labels), by_cluster(sizes, labels), bootstrap)})


def data_alone(data: EvalData, bootstrap: BootstrapConfig) -> Part:
    """``data_alone(data, bootstrap).warnings``: whether the data belongs to the domain."""
    name, rows = data.domain.spec.name, data.domain.train
    parts = [check_templates(rows, name, bootstrap)]
    if data.router is not None:
        prompts = [row["prompt"] or row["completion"] for row in rows[:MAX_ROUTED]]
        parts.append(check_routing(prompts, data.router, name, bootstrap))
    found = merge_reports(parts)
    return Part(metrics=found.metrics, warnings=found.warnings)
