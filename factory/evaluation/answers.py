"""What teacher and students answer when they are asked, greedily and at the family's own limit of length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.config.schema import TeacherContext
from factory.evaluation.fidelity import Candidate
from factory.models.chat import NO_CONTEXT, prompt_ids, split_prefix, stop_tokens
from factory.models.generation import generate_ids
from factory.models.lora import merged_adapters
from factory.models.teacher import Teacher


@dataclass(frozen=True)
class Answer:
    """What a model said, and whether it ended by itself."""

    text: str
    finished: bool
    ids: tuple[int, ...] = ()  # its tokens, the end of the turn included


def generate_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], context: TeacherContext, max_new_tokens: int
) -> list[Answer]:
    """``generate_answers(teacher.model, tokenizer, prompts, spec.teacher_context, 112)[0].text``

    Greedy, in batches; ``context`` precedes every prompt and is computed once. An answer is finished if its last token ends
    a turn. The answers depend on the arguments alone.
    """
    if not prompts:
        return []
    prefix, rest = split_prefix([prompt_ids(tokenizer, prompt, context) for prompt in prompts])
    stop = stop_tokens(tokenizer)
    return [
        Answer(str(tokenizer.decode(ids, skip_special_tokens=True)).strip(), ids[-1] in stop, tuple(ids))
        for ids in generate_ids(model, tokenizer, rest, prefix, max_new_tokens)
    ]


def ask_models(
    teacher: Teacher, candidates: Mapping[str, Candidate], context: TeacherContext, max_new_tokens: int, prompts: Sequence[str]
) -> dict[str, list[Answer]]:
    """``ask_models(teacher, {"student": student}, spec.teacher_context, 112, prompts)["student"][0].text``

    The teacher sees ``context``, candidates do not; adapters are merged into their base meanwhile, as they are served.
    """
    tokenizer = teacher.tokenizer
    answers = {"teacher": generate_answers(teacher.model, tokenizer, prompts, context, max_new_tokens)}
    for name, candidate in candidates.items():
        with candidate() as model, merged_adapters(model):
            answers[name] = generate_answers(model, tokenizer, prompts, NO_CONTEXT, max_new_tokens)
    return answers
