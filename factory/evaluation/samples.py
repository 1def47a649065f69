"""A few held-out prompts with the answers of teacher and student, and where each would have chosen another token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factory.config.schema import TeacherContext
from factory.data.history import asked_alone
from factory.evaluation.answers import Answer
from factory.models.chat import prompt_ids, stop_tokens
from factory.models.device import mixed_precision
from factory.models.scoring import score_completions
from factory.models.teacher import Teacher
from factory.registry.manifest import Sample

SAMPLES = 3


def sample_prompts(test: Sequence[Mapping[str, Any]]) -> list[str]:
    """``sample_prompts(data.domain.test)``: the first held-out ones, of those that mean the same alone if there are any."""
    return [row["prompt"] for row in (asked_alone(test) or test)[:SAMPLES]]


def answer_samples(
    adapter: Any,
    teacher: Teacher,
    prompts: Sequence[str],
    seen: Mapping[str, TeacherContext],
    answers: Mapping[str, Sequence[Answer]],
) -> tuple[Sample, ...]:
    """``answer_samples(adapter, teacher, prompts, seen, ask_models(...).answers)[0].student``: of every prompt.

    ``answers`` are those of ``teacher``, which was shown the context that a prompt has in ``seen``, and of ``student``.
    """
    tokenizer, by_teacher, by_student = teacher.tokenizer, answers["teacher"], answers["student"]
    teacher_prompts = [prompt_ids(tokenizer, prompt, seen[prompt]) for prompt in prompts]
    student_prompts = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    teacher_agrees = top1_agreement(teacher.model, teacher_prompts, [answer.ids for answer in by_student])
    student_agrees = top1_agreement(adapter, student_prompts, [answer.ids for answer in by_teacher])
    return tuple(
        Sample(
            prompt=prompt,
            teacher=by_teacher[i].text,
            student=by_student[i].text,
            teacher_tokens=_tokens(tokenizer, by_teacher[i].ids, student_agrees[i]),
            student_tokens=_tokens(tokenizer, by_student[i].ids, teacher_agrees[i]),
        )
        for i, prompt in enumerate(prompts)
    )


def top1_agreement(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[list[bool]]:
    """``top1_agreement(teacher.model, prompts, answers)``: of each token of each answer, whether it is this model's top-1."""
    device = next(model.parameters()).device
    with mixed_precision(device):
        scores = score_completions(model, prompts, answers, device)
    return [score.top1.tolist() for score in scores]


def _tokens(tokenizer: Any, ids: Sequence[int], agrees: Sequence[bool]) -> tuple[tuple[str, bool], ...]:
    """(text, whether the other model agrees) of each token before the end of the turn."""
    stop = stop_tokens(tokenizer)
    return tuple((str(tokenizer.decode([token])), same) for token, same in zip(ids, agrees, strict=True) if token not in stop)
