"""Answers: as generated one by one, cut at the limit, and finished only where the model ended by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support import tiny

from factory.evaluation.answers import Answer, ask_models, generate_answers
from factory.evaluation.fidelity import fixed_model
from factory.models.chat import NO_CONTEXT, end_of_turn, prompt_ids
from factory.models.generation import generate_ids

PROMPTS = ["what is asthma", "how is it treated", "is a cough a sign of asthma"]
SEEN = dict.fromkeys(PROMPTS, tiny.CONTEXT)


def test_answers_are_those_of_the_prompts_with_their_context() -> None:
    model, tokenizer = tiny.llama(seed=1), tiny.tokenizer()
    for context in (NO_CONTEXT, tiny.CONTEXT):
        ids = generate_ids(model, tokenizer, [prompt_ids(tokenizer, prompt, context) for prompt in PROMPTS], max_new_tokens=8)
        texts = [tokenizer.decode(one, skip_special_tokens=True).strip() for one in ids]
        assert [answer.text for answer in generate_answers(model, tokenizer, PROMPTS, context, 8)] == texts


def test_an_answer_is_finished_where_its_last_token_ends_a_turn() -> None:
    tokenizer = tiny.tokenizer()
    end = end_of_turn(tokenizer)
    assert generate_answers(always(end), tokenizer, PROMPTS, NO_CONTEXT, 4) == [Answer("", True, (end,))] * 3
    word = tokenizer("asthma", add_special_tokens=False)["input_ids"][0]
    unfinished = generate_answers(always(word), tokenizer, PROMPTS, NO_CONTEXT, 4)
    assert [answer.finished for answer in unfinished] == [False] * 3 and all(answer.text for answer in unfinished)


def always(token: int) -> Any:
    """A model whose every prediction is one token."""
    model: Any = tiny.llama(seed=1)
    chosen = torch.nn.functional.one_hot(torch.tensor(token), model.config.vocab_size).float()
    model.lm_head.register_forward_hook(lambda module, given, logits: chosen.expand_as(logits))
    return model


def test_only_the_teacher_sees_the_context() -> None:
    teacher, student = tiny.teacher(), tiny.llama(seed=2)
    asked = ask_models(teacher, {"student": fixed_model(student)}, SEEN, 6, lambda write: 2.0 * write())
    assert asked.answers == {
        "teacher": generate_answers(teacher.model, teacher.tokenizer, PROMPTS, tiny.CONTEXT, 6),
        "student": generate_answers(student, teacher.tokenizer, PROMPTS, NO_CONTEXT, 6),
    }
    tokens = {name: sum(len(one.ids) for one in given) for name, given in asked.answers.items()}
    assert asked.per_1000_tokens_wh == {name: 2.0 * count for name, count in tokens.items()}


def test_the_teacher_is_shown_the_context_of_each_prompt_and_answers_keep_their_order() -> None:
    teacher = tiny.teacher()
    seen = dict(zip(PROMPTS, (tiny.CONTEXT, NO_CONTEXT, tiny.CONTEXT), strict=True))
    mixed = ask_models(teacher, {"student": fixed_model(teacher.model)}, seen, 6, lambda write: float(write())).answers
    alone = [
        generate_answers(teacher.model, teacher.tokenizer, [prompt], context, 6)[0].text for prompt, context in seen.items()
    ]
    assert [answer.text for answer in mixed["teacher"]] == alone
    assert mixed["student"] == generate_answers(teacher.model, teacher.tokenizer, PROMPTS, NO_CONTEXT, 6)
    assert mixed["student"] != mixed["teacher"]


def test_energy_that_was_not_measured_is_left_out() -> None:
    def unmeasured(write: Callable[[], int]) -> None:
        write()

    asked = ask_models(tiny.teacher(), {}, SEEN, 2, unmeasured)
    assert asked.per_1000_tokens_wh == {} and len(asked.answers["teacher"]) == len(PROMPTS)


def test_no_prompts_no_answers() -> None:
    assert generate_answers(None, None, [], NO_CONTEXT, 4) == []
