"""What teacher and students answer when they are asked, greedily and at the family's own limit of length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from factory.config.schema import TeacherContext
from factory.evaluation.fidelity import Candidate, teacher_model
from factory.models.chat import NO_CONTEXT, prompt_ids, split_prefix, stop_tokens
from factory.models.generation import generate_ids
from factory.models.lora import merged_adapters
from factory.models.teacher import Teacher

EnergyOf = Callable[[Callable[[], int]], float | None]  # an action that returns how many tokens it wrote → Wh of 1,000 of them


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


@dataclass(frozen=True)
class Asked:
    """What each model answered, in the order of the prompts, and the Wh of 1,000 tokens of it, where they were measured."""

    answers: dict[str, list[Answer]]
    per_1000_tokens_wh: dict[str, float]


def ask_models(
    teacher: Teacher,
    candidates: Mapping[str, Candidate],
    asked: Mapping[str, TeacherContext],
    max_new_tokens: int,
    energy_of: EnergyOf,
) -> Asked:
    """``ask_models(teacher, {"student": student}, {prompt: context}, 112, meter.energy_of).answers["student"]``

    The teacher sees the prompts' contexts, candidates do not; adapters are merged into their base meanwhile, as they are
    served.
    """
    contexts = {"teacher": asked}
    return _ask(
        teacher.tokenizer, {"teacher": teacher_model(teacher), **candidates}, asked, contexts, max_new_tokens, energy_of
    )


@dataclass(frozen=True)
class AskedStudents:
    """What each student answered to each prompt, and the Wh of 1,000 tokens of it, where they were measured."""

    answers: dict[str, dict[str, Answer]]
    per_1000_tokens_wh: dict[str, float]


def ask_students(
    tokenizer: Any, candidates: Mapping[str, Candidate], prompts: Sequence[str], max_new_tokens: int, energy_of: EnergyOf
) -> AskedStudents:
    """``ask_students(tokenizer, {"student": student}, prompts, 112, meter.energy_of).answers["student"][prompt]``"""
    asked = dict.fromkeys(prompts, NO_CONTEXT)
    found = _ask(tokenizer, candidates, asked, {}, max_new_tokens, energy_of)
    by_prompt = {name: dict(zip(asked, given, strict=True)) for name, given in found.answers.items()}
    return AskedStudents(by_prompt, found.per_1000_tokens_wh)


def _ask(
    tokenizer: Any,
    candidates: Mapping[str, Candidate],
    asked: Mapping[str, TeacherContext],
    contexts: Mapping[str, Mapping[str, TeacherContext]],
    max_new_tokens: int,
    energy_of: EnergyOf,
) -> Asked:
    """``contexts``: of the prompts, for candidates that see any."""
    answers, spent = {}, {}
    for name, candidate in candidates.items():
        seen = contexts.get(name, dict.fromkeys(asked, NO_CONTEXT))
        with candidate() as model, merged_adapters(model):
            write = partial(_answers, model, tokenizer, seen, max_new_tokens)
            answers[name], spent[name] = _with_energy(energy_of, write)
    return Asked(answers, {name: wh for name, wh in spent.items() if wh is not None})


def _answers(model: Any, tokenizer: Any, seen: Mapping[str, TeacherContext], max_new_tokens: int) -> list[Answer]:
    """To each prompt after its context; one context after the other, so that each is computed once."""
    answers: dict[str, Answer] = {}
    for context in dict.fromkeys(seen.values()):
        prompts = [prompt for prompt, shown in seen.items() if shown == context]
        answers |= zip(prompts, generate_answers(model, tokenizer, prompts, context, max_new_tokens), strict=True)
    return [answers[prompt] for prompt in seen]


def _with_energy(energy_of: EnergyOf, write: Callable[[], list[Answer]]) -> tuple[list[Answer], float | None]:
    """The answers, and the Wh of 1,000 tokens of them."""
    answers: list[Answer] = []

    def count() -> int:
        answers[:] = write()
        return sum(len(answer.ids) for answer in answers)

    wh = energy_of(count)
    return answers, wh
