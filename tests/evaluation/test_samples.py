"""Answers of teacher and student side by side, and whether each would have chosen the other's tokens."""

from __future__ import annotations

from support import tiny

from factory.evaluation.samples import answer_samples, top1_agreement
from factory.models.chat import stop_tokens
from factory.models.generation import generate_ids, generate_text, sample

EXAMPLES = tiny.sequences(6)
PROMPTS = [f"prompt {i}" for i in range(6)]


def test_samples_hold_both_answers_the_teachers_with_its_context() -> None:
    student, teacher = tiny.llama(seed=3), tiny.teacher()
    tokenizer = teacher.tokenizer
    samples = answer_samples(student, teacher, PROMPTS, EXAMPLES)
    assert [sample.prompt for sample in samples] == PROMPTS[:3]
    for found, example in zip(samples, EXAMPLES, strict=False):
        assert found.student == generate_text(student, tokenizer, [example.prompt])[0]
        assert found.teacher == generate_text(teacher.model, tokenizer, [example.teacher_prompt])[0]
        ids = generate_ids(student, tokenizer, [example.prompt])[0]
        kept = [token for token in ids if token not in stop_tokens(tokenizer)]
        assert [text for text, _ in found.student_tokens] == [tokenizer.decode([token]) for token in kept]


def test_agreement_is_whether_each_token_is_the_other_models_top_1() -> None:
    model = tiny.llama()
    prompts = [one.prompt for one in EXAMPLES[:2]]
    own = sample(model, prompts, stop=[2], max_new_tokens=5)
    found = [same for row in top1_agreement(model, prompts, own) for same in row]
    assert len(found) == sum(map(len, own)) and sum(found) >= len(found) - 1  # greedy, against itself, but for rounding
    other = [[(token + 1) % 300 for token in ids] for ids in own]
    assert not any(found[0] for found in top1_agreement(model, prompts, other))
    assert top1_agreement(model, prompts[:1], [[]]) == [[]]
