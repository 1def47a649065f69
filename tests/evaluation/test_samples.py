"""Answers of teacher and student side by side, and whether each would have chosen the other's tokens."""

from __future__ import annotations

from support import tiny

from factory.evaluation.answers import ask_models
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.samples import answer_samples, sample_prompts, top1_agreement
from factory.models.chat import NO_CONTEXT, prompt_ids, stop_tokens
from factory.models.generation import sample

EXAMPLES = tiny.sequences(6)
PROMPTS = [f"prompt {i}" for i in range(3)]
SEEN = dict(zip(PROMPTS, (tiny.CONTEXT, NO_CONTEXT, tiny.CONTEXT), strict=True))  # as prompts of two sources


def test_samples_hold_both_answers_and_whether_the_other_agrees_with_each_token() -> None:
    student, teacher = tiny.llama(seed=3), tiny.teacher()
    tokenizer = teacher.tokenizer
    answers = ask_models(teacher, {"student": fixed_model(student)}, SEEN, 8, lambda write: float(write())).answers
    samples = answer_samples(student, teacher, PROMPTS, SEEN, answers)
    assert [sample.prompt for sample in samples] == PROMPTS
    for found, prompt, of_student, of_teacher in zip(samples, PROMPTS, answers["student"], answers["teacher"], strict=True):
        assert (found.student, found.teacher) == (of_student.text, of_teacher.text)
        kept = [token for token in of_student.ids if token not in stop_tokens(tokenizer)]
        assert [text for text, _ in found.student_tokens] == [tokenizer.decode([token]) for token in kept]
        [agrees] = top1_agreement(teacher.model, [prompt_ids(tokenizer, prompt, SEEN[prompt])], [of_student.ids])
        assert [same for _, same in found.student_tokens] == agrees[: len(kept)]
        [agrees] = top1_agreement(student, [prompt_ids(tokenizer, prompt, NO_CONTEXT)], [of_teacher.ids])
        assert [same for _, same in found.teacher_tokens] == agrees[: len(found.teacher_tokens)]


def test_samples_are_prompts_that_mean_the_same_alone() -> None:
    said = {"system": "be brief", "examples": []}
    rows = [{"prompt": "and then ?", "history": said}, *({"prompt": f"why {n} ?"} for n in range(4))]
    assert sample_prompts(rows) == ["why 0 ?", "why 1 ?", "why 2 ?"]
    assert sample_prompts(rows[:1]) == ["and then ?"]  # rather than none


def test_agreement_is_whether_each_token_is_the_other_models_top_1() -> None:
    model = tiny.llama()
    prompts = [one.prompt for one in EXAMPLES[:2]]
    own = sample(model, prompts, stop=[2], max_new_tokens=5)
    found = [same for row in top1_agreement(model, prompts, own) for same in row]
    assert len(found) == sum(map(len, own)) and sum(found) >= len(found) - 1  # greedy, against itself, but for rounding
    other = [[(token + 1) % 300 for token in ids] for ids in own]
    assert not any(found[0] for found in top1_agreement(model, prompts, other))
    assert top1_agreement(model, prompts[:1], [[]]) == [[]]
