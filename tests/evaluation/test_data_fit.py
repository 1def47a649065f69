"""How a domain's data fits the domain and the teacher, on a stub router, a tiny teacher and hand-made rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from support import tiny

from factory.evaluation.data_fit import check_bits_per_byte, check_routing, check_templates, merge_reports
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.stats import BootstrapConfig
from factory.models.chat import NO_CONTEXTS
from factory.models.device import mixed_precision
from factory.models.tokenize import tokenize_examples

BOOTSTRAP = BootstrapConfig(200)
WORDS = "the tree has green leaves in spring and the bird sings"


@dataclass(frozen=True)
class Route:
    domain: str | None
    score: float
    threshold: float
    scores: dict[str, float]


class Router:
    """Routes a text to the domain named by its first word, with the probability that is its second."""

    def route(self, texts: list[str]) -> list[Route]:
        found = []
        for text in texts:
            name, score = text.split()[:2]
            found.append(Route(name if name != "none" else None, float(score), 0.5, {name: float(score), "other": 0.2}))
        return found


def test_prompts_routed_elsewhere_are_counted_and_one_is_named() -> None:
    router: Any = Router()
    prompts = ["legal 0.9"] * 6 + ["health 0.95"] * 2 + ["legal 0.55", "none 0.45"]
    found = check_routing(prompts, router, "legal", BOOTSTRAP)
    assert found.metrics["routed_elsewhere"].value == pytest.approx(0.3)
    assert found.metrics["near_boundary"].value == pytest.approx(0.2)
    assert len(found.warnings) == 1 and "'health 0.95' to health" in found.warnings[0] and "30%" in found.warnings[0]
    quiet = check_routing(["legal 0.9"] * 9, router, "legal", BOOTSTRAP)
    assert quiet.warnings == () and quiet.metrics["routed_elsewhere"].value == 0
    assert math.isnan(check_routing([], router, "legal", BOOTSTRAP).metrics["routed_elsewhere"].value)


def test_texts_unfamiliar_to_the_teacher_raise_the_ratio_and_one_is_named() -> None:
    model, sequences = tiny.memorized()
    teacher = tiny.teacher(model)
    known = [teacher.tokenizer.decode(s.completion, skip_special_tokens=True) for s in sequences]
    strange = ["zzz qqq xxx kkk", "jjj vvv bbb www"]
    found = check_bits_per_byte(teacher, strange, known, "odd", BOOTSTRAP)
    assert found.metrics["bits_per_byte_ratio"].value > 1.5
    assert len(found.warnings) == 1 and "odd's texts" in found.warnings[0]
    same = check_bits_per_byte(teacher, known, known, "known", BOOTSTRAP)
    assert same.metrics["bits_per_byte_ratio"].value == pytest.approx(1)
    assert same.warnings == ()
    nothing = check_bits_per_byte(teacher, [], known, "none", BOOTSTRAP)
    assert math.isnan(nothing.metrics["bits_per_byte_ratio"].value) and nothing.warnings == ()


def test_bits_per_byte_are_the_teachers_bits_over_the_bytes_of_the_text() -> None:
    teacher = tiny.teacher()
    found = check_bits_per_byte(teacher, [WORDS], [WORDS], "one", BOOTSTRAP).metrics["domain_bits_per_byte"]
    documents = tokenize_examples([{"prompt": "", "completion": WORDS}], teacher.tokenizer, NO_CONTEXTS)
    with mixed_precision(tiny.CPU):  # as every model's bits are measured
        by_hand = measure(teacher, {"itself": fixed_model(teacher.model)}, documents)["itself"]
    assert found.value == pytest.approx(by_hand.teacher_nll[0] / math.log(2) / len(WORDS))
    assert found.n == len(WORDS)


def rows(template: str, completions: list[str]) -> list[dict[str, Any]]:
    return [
        {"template": template, "topic": [f"slot{i}"], "completion": text.replace("SLOT", f"slot{i}")}
        for i, text in enumerate(completions)
    ]


def test_templates_with_one_answer_for_every_slot_are_named() -> None:
    alike = rows("What is {x}?", ["SLOT is something that you should ask a professional about"] * 6)
    varied = rows("Why {x}?", [f"because of {a} {b} and {c}" for a, b, c in zip("abcdef", "ghijkl", "mnopqr", strict=True)])
    found = check_templates([*alike, *varied], "legal", BOOTSTRAP)
    assert found.metrics["alike_templates"].value == 0.5 and found.metrics["alike_templates"].n == 2
    assert len(found.warnings) == 1 and "What is {x}?" in found.warnings[0] and "slot0 is something" in found.warnings[0]
    assert check_templates(varied, "legal", BOOTSTRAP).warnings == ()


def test_templates_with_empty_or_repetitive_answers_are_degenerate() -> None:
    loops = rows("Say {x}", [f"no no no no {word} no no" for word in ("a", "b", "c", "d", "e")])
    found = check_templates(loops, "legal", BOOTSTRAP)
    assert found.metrics["degenerate_templates"].value == 1
    assert any("empty or repetitive" in warning for warning in found.warnings)


def test_templates_with_few_answers_are_not_judged() -> None:
    found = check_templates(rows("What is {x}?", ["the same"] * 4), "legal", BOOTSTRAP)
    assert found.warnings == () and math.isnan(found.metrics["alike_templates"].value)
    assert merge_reports([found, found]).metrics == found.metrics
