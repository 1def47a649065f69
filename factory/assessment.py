"""Everything that is asked of a trained student before its verdict: fidelity, bias, memory, tasks, refusals, energy.

assessment = assess(factory, Subject(adapter, teacher, data, canaries), settings)
judge(assessment.figures, family.gates_of(domain))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from factory.data.cleaning import is_refusal
from factory.distill.targets import encode
from factory.materials import DomainData, Materials
from factory.models.chat import NO_CONTEXT, prompt_ids, stop_tokens
from factory.models.lora import merged_adapters
from factory.models.sampling import sample
from factory.models.teacher import Teacher, split_prefix
from factory.quality.acceptance import Question, acceptance_figures, load_acceptance, passes
from factory.quality.audit import Mismatch, joined, routed, surprise, templates
from factory.quality.bias import Pair, load_pairs, measure_bias
from factory.quality.evaluate import (
    Candidate,
    EvalReport,
    HeldOut,
    answers,
    evaluate,
    itself,
    switched,
    switched_off,
)
from factory.quality.memorisation import Canary, measure_canaries
from factory.quality.metrics import Figure, ratio
from factory.quality.tasks import TaskResult, load_tasks, run_tasks, task_figures
from factory.spec import DomainSpec, Settings

MOST_ROUTED = 500  # prompts of a domain behind its mismatch figures
MOST_REFUSALS = 32
CONTROLS = 63  # secrets that were not planted, beside each that was
ENERGY_TOKENS = 64  # of each of 16 answers, behind the energy of 1,000 tokens


@dataclass(frozen=True)
class Exam:
    """A domain's own files, read before anything is trained: a mistake in them must not cost a training."""

    pairs: Sequence[Pair]
    questions: Sequence[Question]


def load_exam(spec: DomainSpec, root: Path) -> Exam:
    """``load_exam(domain, specs.root)``. Raises: SpecError or DataError for a file that cannot be used."""
    load_tasks(spec.tasks, root)
    return Exam(load_pairs(spec.pairs, root), load_acceptance(spec.acceptance, root) if spec.acceptance else ())


@dataclass(frozen=True)
class Subject:
    """A trained student with what it is judged by."""

    adapter: Any  # a peft model; "default" is the student, "sft" its baseline where there is one
    teacher: Teacher  # trimmed to the student's vocabulary
    data: DomainData
    exam: Exam
    canaries: Sequence[Canary] = ()
    tasks: Sequence[TaskResult] = ()  # of the domain's tasks, what teacher and base have scored in the check

    @property
    def candidates(self) -> dict[str, Candidate]:
        """student, base, and sft where it was trained."""
        sft = {"sft": switched(self.adapter, "sft")} if "sft" in self.adapter.peft_config else {}
        return {"student": switched(self.adapter, "default"), "base": switched_off(self.adapter), **sft}


@dataclass(frozen=True)
class Assessment:
    """All figures by name, the report they extend, what a user should know, and the energy of answers."""

    figures: dict[str, Figure]
    report: EvalReport
    warnings: tuple[str, ...]
    per_1000_tokens_wh: dict[str, float]


def assess(factory: Materials, subject: Subject, settings: Settings) -> Assessment:
    """``assess(factory, subject, settings).figures["kl"].value``: measured on held-out text and on the domain's own files."""
    sure: dict[str, Any] = {"resamples": settings.evaluate.bootstrap, "seed": factory.seed}
    data, spec, tokenizer = subject.data, subject.data.spec, subject.teacher.tokenizer
    report = _fidelity(factory, subject, settings)
    figures = dict(report.metrics)
    with factory.timed("evaluate"), factory.progress(f"{spec.name}: trust", 6) as advance:
        figures |= refusals(factory, subject, sure)
        advance(1)
        if subject.exam.pairs:
            figures |= measure_bias(subject.teacher, subject.candidates, subject.exam.pairs, tokenizer, **sure)
        advance(1)
        trained = {name: candidate for name, candidate in subject.candidates.items() if name != "base"}
        results = run_tasks(trained, tokenizer, spec.tasks, root=factory.specs.root)
        for result, known in zip(results, subject.tasks, strict=True):
            figures |= task_figures(replace(result, scores=result.scores | known.scores), **sure)
        advance(1)
        figures |= acceptance(subject, sure)
        advance(1)
        if subject.canaries:
            student = subject.candidates["student"]
            figures |= measure_canaries(subject.teacher, student, tokenizer, subject.canaries, controls=CONTROLS, **sure)
        advance(1)
        fit = mismatch(factory, subject.teacher, data, sure)
        energy = answer_energy(factory, subject)
        advance(1)
    unasked = [] if subject.exam.pairs else [f"bias transfer was not measured: {spec.name} has no `pairs`"]
    return Assessment(figures | fit.figures, report, (*fit.warnings, *unasked), energy)


def _fidelity(factory: Materials, subject: Subject, settings: Settings) -> EvalReport:
    """On the domain's test split, on general text, and on as many examples of the family's other domains."""
    data, config = subject.data, settings.evaluate
    test = list(data.rows["test"])[: config.examples]
    general = factory.general_rows()
    tokenizer = subject.teacher.tokenizer
    others = [other for other in factory.public_domains if other.name != data.spec.name]
    elsewhere = [
        sequence
        for other in others
        for sequence in encode(
            list(factory.data(other.name).rows["test"])[: max(2, config.general // len(others))],
            tokenizer,
            other.teacher_context,
        )
    ]
    total = len(test) + len(general) + len(elsewhere)
    with factory.timed("evaluate"), factory.progress(f"{data.spec.name}: evaluate", total) as advance:
        held_out = HeldOut(
            [row["prompt"] for row in test],
            encode(test, tokenizer, data.spec.teacher_context),
            factory.embed_rows(test),
            encode(general, tokenizer, NO_CONTEXT),
            elsewhere,
        )
        return evaluate(subject.adapter, subject.teacher, held_out, config, seed=factory.seed, progress=advance)


def refusals(factory: Materials, subject: Subject, sure: Mapping[str, int]) -> dict[str, Figure]:
    """Where the teacher declined on held-out prompts of any domain, the share that student and base decline as well.

    No figure where the teacher declined nowhere.
    """
    every = [subject.data, *(factory.data(one.name) for one in factory.public_domains if one.name != subject.data.spec.name)]
    declined = [
        row["prompt"] for data in every for split in ("test", "validation") for row in data.rows[split] if row["refusal"]
    ]
    prompts = [prompt_ids(subject.teacher.tokenizer, prompt) for prompt in declined[:MOST_REFUSALS]]
    if not prompts:
        return {}
    figures = {}
    for who, name in (("student", "refusals_kept"), ("base", "base_refusals_kept")):
        with subject.candidates[who]() as model:
            said = answers(model, subject.teacher.tokenizer, prompts)
        figures[name] = ratio(np.array([float(is_refusal(one)) for one in said]), np.ones(len(said)), **sure)
    return figures


def acceptance(subject: Subject, sure: Mapping[str, int]) -> dict[str, Figure]:
    """The share of a user's own questions that are answered as they must be; the teacher answers with its context."""
    spec, tokenizer = subject.data.spec, subject.teacher.tokenizer
    questions = subject.exam.questions
    if not questions:
        return {}
    asked = [question.question for question in questions]
    prefix, rest = split_prefix([prompt_ids(tokenizer, one, spec.teacher_context) for one in asked])
    said = {"teacher": answers(subject.teacher.model, tokenizer, rest, prefix)}
    for who, candidate in subject.candidates.items():
        with candidate() as model:
            said[who] = answers(model, tokenizer, [prompt_ids(tokenizer, one) for one in asked])
    passed = {who: [passes(q, a) for q, a in zip(questions, given, strict=True)] for who, given in said.items()}
    return acceptance_figures(passed, **sure)


def mismatch(factory: Materials, teacher: Teacher, data: DomainData, sure: Mapping[str, int]) -> Mismatch:
    """Whether a domain's data is of that domain, and of what the teacher knows."""
    name, rows = data.spec.name, list(data.rows["train"])
    prompts = [
        f"{row['prompt']}\n{row['completion']}" if row["own_completion"] else row["prompt"] for row in rows[:MOST_ROUTED]
    ]
    general = [example.text for example in factory.general[:MOST_ROUTED]]
    parts = [templates(rows, name, **sure), surprise(teacher, prompts, general, name, **sure)]
    if not data.spec.private:
        parts.append(routed([row["prompt"] or row["completion"] for row in rows[:MOST_ROUTED]], factory.router, name, **sure))
    return joined(parts)


def answer_energy(factory: Materials, subject: Subject) -> dict[str, float]:
    """Wh of 1,000 generated tokens by teacher and student, 16 answers at once."""
    stop, rows = stop_tokens(subject.teacher.tokenizer), list(subject.data.rows["test"])[:16]
    prompts = [prompt_ids(subject.teacher.tokenizer, row["prompt"]) for row in rows]
    found = {}
    for who, candidate in (("teacher", itself(subject.teacher)), ("student", subject.candidates["student"])):
        with candidate() as model, merged_adapters(model):
            spent = factory.energy.energy_of(partial(_write, model, prompts, stop))
        if spent is not None:
            found[who] = spent
    return found


def _write(model: Any, prompts: Sequence[Sequence[int]], stop: Sequence[int]) -> int:
    return sum(map(len, sample(model, prompts, stop=stop, max_new_tokens=ENERGY_TOKENS)))
