"""What the teacher is shown in an evaluation: a row's own source decides, in the domain's text and in that of others."""

from __future__ import annotations

from typing import Any

import numpy as np
from support import tiny

from factory.config.schema import DomainSpec, EvaluateConfig, TeacherContext
from factory.evaluation.evaluate import DomainRows, EvalData, EvalTarget, contexts_seen, held_out_text
from factory.models.chat import NO_CONTEXT, prompt_ids

LONG = TeacherContext(system="be long")


def domain_rows(name: str, *rows: dict[str, Any]) -> DomainRows:
    """A domain whose context is ``tiny.CONTEXT``, and whose source of letters has its own."""
    source = {"kind": "templates", "license": "mit", "templates": ["what is light"]}
    sources = [source | {"id": "questions"}, source | {"id": "letters", "teacher_context": LONG.model_dump()}]
    spec = DomainSpec.model_validate(
        {"name": name, "description": name, "sources": sources, "teacher_context": tiny.CONTEXT.model_dump()}
    )
    return DomainRows(spec, train=[], validation=rows[2:], test=rows[:2])


def row(prompt: str, source: str) -> dict[str, Any]:
    text = {"id": prompt, "prompt": prompt, "completion": "it is sugar", "own_completion": False}
    return text | {"source": source, "template": "", "topic": []}


PLANTS = domain_rows("plants", row("what is light", "letters"), row("how is it treated", "questions"))
STARS = domain_rows("stars", row("is it a cough", "letters"), row("see the doctor", "questions"))


def test_held_out_text_has_the_context_of_each_row_s_source() -> None:
    teacher = tiny.teacher()
    data = EvalData(
        domain=PLANTS,
        others=[STARS],
        general=[row("what is asthma", "letters")],  # an id of the general pool may be one of the domain's, too
        general_texts=[],
        embed=lambda rows: np.zeros((len(rows), 1)),
        router=None,
    )
    text = held_out_text(EvalTarget(None, teacher), data, EvaluateConfig(examples=2, general=2))
    for examples, prompts, contexts in (
        (text.domain, ["what is light", "how is it treated"], [LONG, tiny.CONTEXT]),
        (text.others, ["is it a cough", "see the doctor"], [LONG, tiny.CONTEXT]),
        (text.general, ["what is asthma"], [NO_CONTEXT]),
    ):
        shown = [prompt_ids(teacher.tokenizer, prompt, context) for prompt, context in zip(prompts, contexts, strict=True)]
        assert [example.teacher_prompt for example in examples] == shown


def test_a_question_of_no_source_has_the_domain_s_context_and_a_held_out_row_its_source_s() -> None:
    rows = domain_rows("plants", *PLANTS.test, row("is it sugar", "letters"))
    seen = contexts_seen(rows, ["what is ivy", "is it sugar", "what is light", "how is it treated", "is it sugar"])
    assert list(seen) == ["what is ivy", "is it sugar", "what is light", "how is it treated"]
    assert list(seen.values()) == [tiny.CONTEXT, LONG, LONG, tiny.CONTEXT]
