"""A few held-out prompts with the answers of teacher and student, and where each would have chosen another token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from factory.models.chat import split_prefix, stop_tokens
from factory.models.generation import generate_ids
from factory.models.scoring import score_completions
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample
from factory.registry.manifest import Sample

SAMPLES = 3


def answer_samples(
    adapter: Any, teacher: Teacher, prompts: Sequence[str], examples: Sequence[TokenizedExample]
) -> tuple[Sample, ...]:
    """``answer_samples(adapter, teacher, held_out.prompts, held_out.domain)[0].student``: of the first prompts.

    ``prompts`` are the texts of ``examples``. The teacher answers with its context, the student without.
    """
    first, tokenizer = examples[:SAMPLES], teacher.tokenizer
    student_prompts, teacher_prompts = [one.prompt for one in first], [one.teacher_prompt for one in first]
    prefix, rest = split_prefix(teacher_prompts)
    by_student = generate_ids(adapter, tokenizer, student_prompts)
    by_teacher = generate_ids(teacher.model, tokenizer, rest, prefix)
    teacher_agrees = top1_agreement(teacher.model, teacher_prompts, by_student)
    student_agrees = top1_agreement(adapter, student_prompts, by_teacher)
    return tuple(
        Sample(
            prompt=prompt,
            teacher=_text(tokenizer, by_teacher[i]),
            student=_text(tokenizer, by_student[i]),
            teacher_tokens=_tokens(tokenizer, by_teacher[i], student_agrees[i]),
            student_tokens=_tokens(tokenizer, by_student[i], teacher_agrees[i]),
        )
        for i, prompt in enumerate(prompts[:SAMPLES])
    )


def top1_agreement(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[list[bool]]:
    """``top1_agreement(teacher.model, prompts, answers)``: of each token of each answer, whether it is this model's top-1."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=torch.bfloat16):
        scores = score_completions(model, prompts, answers, device)
    return [score.top1.tolist() for score in scores]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _tokens(tokenizer: Any, ids: Sequence[int], agrees: Sequence[bool]) -> tuple[tuple[str, bool], ...]:
    """(text, whether the other model agrees) of each token before the end of the turn."""
    stop = stop_tokens(tokenizer)
    return tuple((str(tokenizer.decode([token])), same) for token, same in zip(ids, agrees, strict=True) if token not in stop)
