"""A student's answers to held-out prompts: what is said of their tokens, and whether the teacher finds them right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import tiny

from factory.config.schema import TeacherContexts
from factory.evaluation.answer_confidence import HeldOutAnswers, ask_held_out, confidence_part
from factory.evaluation.confidence import TOP, TokenSignal, fit_confidence
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.stats import BootstrapConfig
from factory.models.chat import prompt_ids
from factory.models.generation import generate_ids
from factory.models.teacher import Teacher

CONTEXTS = TeacherContexts(tiny.CONTEXT)


def rows(teacher: Teacher, count: int, *, own: bool) -> list[dict[str, object]]:
    """Prompts with the teacher's own answers after its context, or with random ones."""
    prompts = tiny.sentences(count)
    shown = [prompt_ids(teacher.tokenizer, prompt, tiny.CONTEXT) for prompt in prompts]
    written = generate_ids(teacher.model, teacher.tokenizer, shown, max_new_tokens=8)
    answers = [str(teacher.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
    texts = answers if own else tiny.sentences(count, seed=9)
    return [row(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def row(prompt: str, completion: str) -> dict[str, object]:
    found = {"id": prompt, "prompt": prompt, "completion": completion, "source": "s"}
    return {**found, "template": "", "topic": [], "own_completion": False}


def test_a_random_student_is_wrong_beside_the_teacher_s_own_answers_and_right_beside_random_ones() -> None:
    teacher, student = tiny.teacher(), fixed_model(tiny.llama(seed=5))

    def right(own: bool, margin: float) -> float:
        found = ask_held_out(student, teacher, rows(teacher, 12, own=own), CONTEXTS, max_new_tokens=8, margin=margin)
        assert len(found.tokens) == len(found.clusters) == 12
        return float(found.right.mean())

    assert right(own=True, margin=0.2) < 0.2 and right(own=True, margin=50.0) == 1
    assert right(own=False, margin=2.0) > right(own=True, margin=2.0)


def test_signals_are_those_of_the_whole_model_token_by_token() -> None:
    teacher, model = tiny.teacher(), tiny.llama(seed=5)
    found = ask_held_out(fixed_model(model), teacher, rows(teacher, 3, own=True), CONTEXTS, max_new_tokens=6, margin=0.2)
    for prompt, tokens in zip(tiny.sentences(3), found.tokens, strict=True):
        ids = prompt_ids(teacher.tokenizer, prompt)
        [answer] = generate_ids(model, teacher.tokenizer, [ids], max_new_tokens=6)
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        assert len(tokens) == len(answer)
        for one, token, seen in zip(answer, tokens, log_probs, strict=True):
            assert token.nats == pytest.approx(-float(seen[one]), abs=0.05)
            top = seen.topk(TOP).values.exp()
            assert token.margin == pytest.approx(float(top[0] - top[1]), abs=0.02)


def test_rows_without_a_prompt_are_left_out() -> None:
    teacher = tiny.teacher()
    chunks = [row("", "a text")]
    found = ask_held_out(
        fixed_model(teacher.model), teacher, [*chunks, *rows(teacher, 2, own=True)], CONTEXTS, max_new_tokens=4, margin=0.2
    )
    assert len(found.right) == 2


@pytest.mark.parametrize("informed", [True, False])
def test_a_confidence_that_knows_nothing_is_warned_of(informed: bool) -> None:
    rng = np.random.default_rng(0)

    def answers(count: int) -> HeldOutAnswers:
        right = rng.random(count) < 0.6
        nats = np.where(right, 0.1, 0.8) if informed else np.full(count, 0.4)
        tokens = [[TokenSignal(float(n * rng.uniform(0.5, 1.5)), 0.5, 0.5) for _ in range(5)] for n in nats]
        return HeldOutAnswers(tokens, right, [str(i) for i in range(count)])

    fitted = answers(100)
    confidence = fit_confidence(fitted.tokens, fitted.right.tolist(), fitted.clusters, 0.2)
    assert confidence is not None
    part = confidence_part(confidence, answers(100), BootstrapConfig(resamples=200))
    assert set(part.metrics) == {
        "answers_right", "confidence_auroc", "confidence_auroc_beginning", "confidence_error", "confidence_error_beginning"
    }  # fmt: skip
    assert part.metrics["answers_right"].n == 100 and len(part.risk_coverage) == 10
    assert part.risk_coverage[-1] == (1.0, pytest.approx(1 - part.metrics["answers_right"].value))
    assert bool(part.warnings) is not informed
    if not informed:
        assert "no better than chance (AUROC 0." in part.warnings[0]
