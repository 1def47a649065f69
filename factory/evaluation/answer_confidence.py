"""A student's answers to held-out prompts: what an engine would say of their tokens, and whether the teacher agrees.

found = ask_held_out(student, teacher, rows, contexts, max_new_tokens=112, margin=0.2)
found.right.mean()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.config.schema import TeacherContexts
from factory.data.splitting import cluster_of
from factory.evaluation.confidence import (
    TOP,
    Confidence,
    TokenSignal,
    auroc,
    calibration_error,
    risk_coverage,
    share_right,
    token_signal,
)
from factory.evaluation.fidelity import Candidate
from factory.evaluation.parts import Part
from factory.evaluation.stats import BootstrapConfig
from factory.models.device import mixed_precision
from factory.models.generation import generate_ids
from factory.models.lora import merged_adapters
from factory.models.scoring import CompletionScore, completion_log_probs, score_completions
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples

CHANCE = 0.5  # AUROC of a confidence that knows nothing


@dataclass(frozen=True)
class HeldOutAnswers:
    """A student's answers to E prompts."""

    tokens: list[list[TokenSignal]]
    right: np.ndarray  # (E,) bool
    clusters: list[str]


def ask_held_out(
    student: Candidate,
    teacher: Teacher,
    rows: Sequence[Mapping[str, Any]],
    contexts: TeacherContexts,
    *,
    max_new_tokens: int,
    margin: float,
) -> HeldOutAnswers:
    """``ask_held_out(student, teacher, data.rows["test"], spec.contexts, max_new_tokens=112, margin=0.2).right.mean()``

    Greedy answers to the rows' prompts; rows without one, chunks of documents, are left out. ``teacher`` has the student's
    vocabulary.
    """
    asked = [row for row in rows if row["prompt"].strip()]
    examples = tokenize_examples(asked, teacher.tokenizer, contexts)
    answers, tokens = answer_with_signals(student, teacher, [one.prompt for one in examples], max_new_tokens)
    shown = [one.teacher_prompt for one in examples]
    given = completion_log_probs(teacher.model, shown, answers, teacher.device)
    own = completion_log_probs(teacher.model, shown, [one.completion for one in examples], teacher.device)
    behind = np.array([theirs.mean() - ours.mean() for ours, theirs in zip(given, own, strict=True)])
    return HeldOutAnswers(tokens, behind <= margin, [cluster_of(row) for row in asked])


def answer_with_signals(
    student: Candidate, teacher: Teacher, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> tuple[list[list[int]], list[list[TokenSignal]]]:
    """``answers, tokens = answer_with_signals(student, teacher, prompt_ids, 112)``: greedy answers, and what is said of them.

    ``teacher`` has the student's tokens, and is not asked.
    """
    device = teacher.device
    with student() as model:
        with merged_adapters(model):
            answers = generate_ids(model, teacher.tokenizer, prompts, max_new_tokens=max_new_tokens)
        with mixed_precision(device):
            scores = score_completions(model, prompts, answers, device, top=TOP)
    return answers, list(map(token_signals, scores))


def token_signals(score: CompletionScore) -> list[TokenSignal]:
    """``token_signals(score_completions(model, [prompt], [answer], device, top=TOP)[0])``: as an engine would say them."""
    return [token_signal(float(nats), list(map(float, top))) for nats, top in zip(score.log_probs, score.top, strict=True)]


def confidence_part(confidence: Confidence, found: HeldOutAnswers, bootstrap: BootstrapConfig) -> Part:
    """``confidence_part(confidence, ask_held_out(...), bootstrap).metrics["confidence_auroc"]``: on prompts not fitted on.

    A warning where it tells right from wrong no better than chance.
    """
    right, clusters = found.right, found.clusters
    sure = {
        "": np.array([confidence.of_answer(tokens) for tokens in found.tokens]),
        "_beginning": np.array([confidence.of_beginning(tokens) for tokens in found.tokens]),
    }
    metrics = {"answers_right": share_right(right, clusters, bootstrap)}
    for name, confidences in sure.items():
        metrics[f"confidence_auroc{name}"] = auroc(confidences, right, clusters, bootstrap)
        metrics[f"confidence_error{name}"] = calibration_error(confidences, right, clusters, bootstrap)
    whole = metrics["confidence_auroc"]
    warning = (
        f"its confidence tells right answers from wrong ones no better than chance (AUROC {whole}): a cascade would ask others "
        "at random; raise data.validation or confidence.examples"
    )
    return Part(
        metrics=metrics,
        warnings=() if whole.low > CHANCE else (warning,),
        risk_coverage=tuple(risk_coverage(sure[""], right)),
    )
