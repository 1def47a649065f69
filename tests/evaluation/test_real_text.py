"""Real text is what people wrote: references where there are enough of them, else prompts."""

from __future__ import annotations

from typing import Any

import pytest

from factory.evaluation.real_text import MIN_TEXTS, real_texts


def row(number: int, *, own: bool, prompt: str = "what is it") -> dict[str, Any]:
    text = {"id": str(number), "prompt": prompt, "completion": f"answer {number}", "own_completion": own}
    return text | {"source": "a", "template": "", "topic": []}


@pytest.mark.parametrize(("references", "expected"), [(MIN_TEXTS, "answer 0"), (MIN_TEXTS - 1, "what is it")])
def test_prompts_stand_in_for_too_few_references(references: int, expected: str) -> None:
    rows = [row(number, own=number < references) for number in range(20)]
    texts = real_texts(rows)
    assert texts[0].reference == expected
    assert len(texts) == (references if references == MIN_TEXTS else 20)


def test_a_chunk_of_a_document_has_no_prompt_to_read() -> None:
    assert not real_texts([row(0, own=False, prompt=" ")])
