"""The teacher check, the capacity probe and the domain's mismatch, on tiny models and hand-made rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from factory.distill.soft_targets import tokenize_examples
from factory.evaluation.audit import (
    assistant_helps,
    bits_per_byte_ratio,
    check_teacher,
    joined,
    probe,
    references,
    routed,
    templates,
    unhealed,
    unigram_nll,
)
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.lm_eval import TaskResult
from factory.evaluation.stats import Sums
from factory.models.chat import NO_CONTEXT

SURE: dict[str, int] = {"resamples": 200, "seed": 0}
WORDS = "the tree has green leaves in spring and the bird sings"


def sums(kl: list[float]) -> Sums:
    count = len(kl)
    columns = {name: np.ones(count) for name in Sums.__dataclass_fields__}
    return Sums(**(columns | {"kl": np.array(kl), "tokens": np.full(count, 2.0), "embeddings": np.eye(count)}))


# ------------------------------------------------------------------------------------------------------- teacher check


def taught(steps: int = 40) -> Any:
    """A teacher that has learnt the references by heart, beside a base that has not."""
    model: Any = tiny.llama(seed=3)
    sequences = tiny.sequences(12, NO_CONTEXT)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids = [torch.tensor([[*s.prompt, *s.completion]]) for s in sequences]
    for _ in range(steps):
        for one in ids:
            loss = model(input_ids=one, labels=one).loss
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval(), sequences


def test_a_teacher_that_knows_the_references_passes_and_an_equal_base_is_refused() -> None:
    model, sequences = taught()
    teacher, base = tiny.teacher(model), tiny.llama(seed=4)
    training = [s.completion for s in sequences]
    knows = check_teacher(teacher, fixed_model(base), sequences, training, kept_mass=1.0, **SURE)
    assert knows.reasons == ()
    assert knows.figures["teacher_ahead_of_base"].low > 0
    equal = check_teacher(teacher, fixed_model(model), sequences, training, kept_mass=1.0, **SURE)
    assert len(equal.reasons) == 1 and "than the base alone" in equal.reasons[0]
    assert abs(equal.figures["teacher_ahead_of_base"].value) < 0.02  # bfloat16 candidates


def test_a_teacher_below_chance_and_a_vocabulary_that_lacks_too_much_are_refused() -> None:
    sequences = tiny.sequences(12, NO_CONTEXT)
    untrained = tiny.teacher(tiny.llama(seed=3))
    found = check_teacher(
        untrained, fixed_model(tiny.llama(seed=4)), sequences, [s.completion for s in sequences], kept_mass=0.8, **SURE
    )
    assert any("than chance" in reason for reason in found.reasons)
    assert any("keeps 0.800 of the teacher's mass" in reason for reason in found.reasons)


def task(teacher: list[float], base: list[float]) -> TaskResult:
    return TaskResult("quiz", "acc_norm", 0.25, {"teacher": np.array(teacher), "base": np.array(base)})


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (([1.0] * 20, [0.0] * 20), None),
        (([0.0] * 20, [0.0] * 20), "chance is 0.250"),
        (([0.0, 1.0] * 10, [1.0] * 20), "behind the base alone"),
    ],
)
def test_tasks_decide_only_beyond_their_interval(scores: tuple[list[float], list[float]], reason: str | None) -> None:
    model, sequences = taught()
    found = check_teacher(
        tiny.teacher(model), fixed_model(tiny.llama(seed=4)), sequences, [s.completion for s in sequences],
        kept_mass=1.0, tasks=[task(*scores)], **SURE,
    )  # fmt: skip
    assert (reason is None and found.reasons == ()) or (reason is not None and reason in found.reasons[-1])


def test_chance_is_the_frequency_of_tokens_smoothed_by_one() -> None:
    (sequence,) = tiny.sequences(1, NO_CONTEXT)
    one = type(sequence)(sequence.prompt, sequence.teacher_prompt, [2, 3])
    nll = unigram_nll([one], [[2, 2], [2]], vocabulary=4)
    assert nll == pytest.approx([-math.log(4 / 7) - math.log(1 / 7)])


def test_references_are_the_sources_own_where_there_are_enough() -> None:
    own = [{"own_completion": True}] * 8
    others = [{"own_completion": False}] * 3
    assert references([*own, *others]) == own
    assert references([*own[:7], *others]) == [*own[:7], *others]
    assert references([]) == []


# -------------------------------------------------------------------------------------------------------- capacity gap


def test_a_probe_says_where_the_student_was_and_how_fast_it_came_nearer() -> None:
    found = probe(50, sums([4.0, 4.0]), sums([1.0, 3.0]), **SURE)
    assert found.before["kl"].value == 2 and found.after["kl"].value == 1
    assert found.closing == 2  # nats in a hundred steps
    assert set(found.to_dict()) == {"steps", "before", "after", "kl_closed_in_100_steps"}
    assert set(found.after) == {"kl", "top5_overlap", "entropy_gap"}


@pytest.mark.parametrize(("after", "warned"), [([1.0, 3.0], False), ([4.0, 4.0], True), ([4.0, 5.0], True), ([], False)])
def test_healing_that_brings_a_base_no_nearer_is_warned_of(after: list[float], warned: bool) -> None:
    before = [4.0, 4.0] if after else []
    found = unhealed(probe(50, sums(before), sums(after), **SURE))
    assert len(found) == warned
    assert all("KL 2.000 →" in line and "50 steps" in line and "heal.learning_rate" in line for line in found)


def test_an_assistant_helps_only_beyond_the_paired_interval() -> None:
    direct = sums([2.0, 4.0, 6.0, 8.0])
    helps, ahead = assistant_helps(direct, sums([1.0, 3.0, 5.0, 7.0]), **SURE)
    assert helps and ahead.value == pytest.approx(0.5)
    helps, ahead = assistant_helps(direct, sums([1.0, 5.0, 5.0, 9.0]), **SURE)
    assert not helps and ahead.low <= 0
    helps, ahead = assistant_helps(sums([]), sums([]), **SURE)
    assert not helps and math.isnan(ahead.value)


# ----------------------------------------------------------------------------------------------------- domain mismatch


@dataclass(frozen=True)
class Route:
    domain: str | None
    score: float
    threshold: float
    scores: dict[str, float]


class Router:
    """Sends a text to the domain that its first word names, as surely as its second says."""

    def route(self, texts: list[str]) -> list[Route]:
        found = []
        for text in texts:
            name, score = text.split()[:2]
            found.append(Route(name if name != "none" else None, float(score), 0.5, {name: float(score), "other": 0.2}))
        return found


def test_prompts_that_the_router_puts_elsewhere_are_a_share_and_an_example() -> None:
    router: Any = Router()
    prompts = ["legal 0.9"] * 6 + ["health 0.95"] * 2 + ["legal 0.55", "none 0.45"]
    found = routed(prompts, router, "legal", **SURE)
    assert found.figures["routed_elsewhere"].value == pytest.approx(0.3)
    assert found.figures["near_boundary"].value == pytest.approx(0.2)
    assert len(found.warnings) == 1 and "'health 0.95' (health)" in found.warnings[0] and "30%" in found.warnings[0]
    quiet = routed(["legal 0.9"] * 9, router, "legal", **SURE)
    assert quiet.warnings == () and quiet.figures["routed_elsewhere"].value == 0
    assert math.isnan(routed([], router, "legal", **SURE).figures["routed_elsewhere"].value)


def test_texts_that_surprise_the_teacher_are_a_ratio_and_an_example() -> None:
    model, sequences = taught()
    teacher = tiny.teacher(model)
    known = [teacher.tokenizer.decode(s.completion, skip_special_tokens=True) for s in sequences]
    strange = ["zzz qqq xxx kkk", "jjj vvv bbb www"]
    found = bits_per_byte_ratio(teacher, strange, known, "odd", **SURE)
    assert found.figures["bits_per_byte_ratio"].value > 1.5
    assert len(found.warnings) == 1 and "odd's texts" in found.warnings[0]
    same = bits_per_byte_ratio(teacher, known, known, "known", **SURE)
    assert same.figures["bits_per_byte_ratio"].value == pytest.approx(1)
    assert same.warnings == ()
    nothing = bits_per_byte_ratio(teacher, [], known, "none", **SURE)
    assert math.isnan(nothing.figures["bits_per_byte_ratio"].value) and nothing.warnings == ()


def test_surprise_is_the_teacher_s_bits_over_the_text_s_bytes() -> None:
    teacher = tiny.teacher()
    found = bits_per_byte_ratio(teacher, [WORDS], [WORDS], "one", **SURE).figures["domain_bits_per_byte"]
    documents = tokenize_examples([{"prompt": "", "completion": WORDS}], teacher.tokenizer, NO_CONTEXT)
    by_hand = measure(teacher, {"itself": fixed_model(teacher.model)}, documents)["itself"]
    assert found.value == pytest.approx(by_hand.teacher_nll[0] / math.log(2) / len(WORDS))
    assert found.n == len(WORDS)


def rows(template: str, completions: list[str]) -> list[dict[str, Any]]:
    return [
        {"template": template, "topic": [f"slot{i}"], "completion": text.replace("SLOT", f"slot{i}")}
        for i, text in enumerate(completions)
    ]


def test_templates_with_one_answer_whatever_the_slot_are_found_with_an_example() -> None:
    alike = rows("What is {x}?", ["SLOT is something that you should ask a professional about"] * 6)
    varied = rows("Why {x}?", [f"because of {a} {b} and {c}" for a, b, c in zip("abcdef", "ghijkl", "mnopqr", strict=True)])
    found = templates([*alike, *varied], "legal", **SURE)
    assert found.figures["alike_templates"].value == 0.5 and found.figures["alike_templates"].n == 2
    assert len(found.warnings) == 1 and "What is {x}?" in found.warnings[0] and "slot0 is something" in found.warnings[0]
    assert templates(varied, "legal", **SURE).warnings == ()


def test_templates_with_empty_or_repeating_answers_are_degenerate() -> None:
    loops = rows("Say {x}", [f"no no no no {word} no no" for word in ("a", "b", "c", "d", "e")])
    found = templates(loops, "legal", **SURE)
    assert found.figures["degenerate_templates"].value == 1
    assert any("empty or repeating" in warning for warning in found.warnings)


def test_too_few_answers_judge_no_template() -> None:
    found = templates(rows("What is {x}?", ["the same"] * 4), "legal", **SURE)
    assert found.warnings == () and math.isnan(found.figures["alike_templates"].value)
    assert joined([found, found]).figures == found.figures
