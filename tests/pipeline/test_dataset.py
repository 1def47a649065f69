"""What a teacher that finishes no answer costs: one metric, said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from support.workplace import Workplace

from factory.data.dataset import Completion
from factory.models.teacher import Teacher
from factory.pipeline.context import resolve_models
from factory.pipeline.dataset import make_general_rows


class CutOff(Teacher):
    """A teacher that finishes no answer."""

    def complete(self, examples: Sequence[Any], *_: Any, **__: Any) -> Mapping[str, Completion]:  # type: ignore[override]
        return {example.id: Completion("cut of", finished=False) for example in examples}


def test_a_general_pool_without_a_finished_answer_is_said_and_left_out(with_models: Workplace) -> None:
    said: list[str] = []
    context = replace(with_models.context(), say=said.append)
    models = resolve_models(context.family, context.specs.root, context.device)
    teacher = CutOff.load(models.teacher_files, context.device)
    assert make_general_rows(context, replace(models, teacher=teacher)) == []
    (line,) = said
    assert "finished none of 4 general prompts" in line and "raise data.max_completion_tokens" in line
