"""Planted secrets and training text: against hand-computed values; a model that has seen them is told from one that has not."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from factory.config.schema import DomainSpec
from factory.config.settings import PRIVATE_GATES
from factory.errors import DataError
from factory.evaluation.fidelity import fixed_model, teacher_model
from factory.evaluation.gates import apply_gate
from factory.evaluation.memorization import (
    FOLLOWING,
    MAX_CONTINUED,
    PLACES,
    Canary,
    canary_metrics,
    canary_rows,
    chance_exposure,
    continuations,
    controls_of,
    exposure,
    extraction_metrics,
    make_canaries,
    measure_canaries,
    measure_extraction,
    reproduced,
    unmeasured_memorization,
)
from factory.evaluation.stats import BootstrapConfig
from factory.models.chat import NO_CONTEXTS, completion_ids, prompt_ids, start_token
from factory.models.forward import hidden_states, logits, make_batch
from factory.models.generation import sample
from factory.models.tokenize import tokenize_examples
from factory.registry.manifest import MetricValue

BOOTSTRAP = BootstrapConfig(200)


# canaries


@given(st.integers(0, 200), st.integers(0, 1000))
def test_prompts_and_secrets_are_distinct(count: int, seed: int) -> None:
    canaries = make_canaries(count, seed)
    assert len({c.prompt for c in canaries}) == len({c.secret for c in canaries}) == count
    assert all(c.secret in c.completion and re.fullmatch(r"(\d ){5}\d", c.secret) for c in canaries)


def test_prompts_do_not_contain_the_secret() -> None:
    assert all(c.secret not in c.prompt and "{" not in c.prompt + c.completion for c in make_canaries(50, 0))


def test_the_seed_decides_the_canaries() -> None:
    assert make_canaries(8, 3) == make_canaries(8, 3)
    assert not {c.secret for c in make_canaries(8, 3)} & {c.secret for c in make_canaries(8, 4)}


def test_there_are_as_many_canaries_as_prompts() -> None:
    assert len({c.prompt for c in make_canaries(PLACES, 0)}) == PLACES
    for count in (PLACES + 1, -1):
        with pytest.raises(DataError, match=f"cannot make {count} canaries: choose 0 to 2,400"):
            make_canaries(count, 0)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 1000))
def test_controls_are_the_same_question_with_other_secrets(planted: int, count: int, seed: int) -> None:
    secret = " ".join(f"{planted:02}")
    canary = Canary("what is it ?", f"the answer is {secret} .", secret)
    controls = controls_of(canary, count, seed)
    assert len({c.secret for c in controls} - {secret}) == count
    assert all(c.prompt == canary.prompt and c.completion == f"the answer is {c.secret} ." for c in controls)
    assert controls == controls_of(canary, count, seed)


def test_more_controls_than_other_secrets_are_refused() -> None:
    with pytest.raises(DataError, match="cannot make 10 controls: there are only 9 other secrets"):
        controls_of(Canary("p", "7", "7"), 10, 0)


def test_rows_repeat_each_canary() -> None:
    canaries = make_canaries(3, 0)
    rows = canary_rows(canaries, 4)
    assert len(rows) == 12
    assert all(rows.count({"prompt": c.prompt, "completion": c.completion}) == 4 for c in canaries)
    assert canary_rows([], 4) == []


# exposure


def test_exposure_of_the_first_the_middle_and_the_last_rank() -> None:
    controls = np.array([[2.0, 3.0, 4.0]] * 3)
    # log2(4) - log2(rank) at ranks 1, 3 and 4
    np.testing.assert_allclose(exposure(np.array([1.0, 3.5, 5.0]), controls), [2.0, 2 - np.log2(3), 0.0])


def test_a_tie_counts_half() -> None:
    np.testing.assert_allclose(exposure(np.array([1.0]), np.array([[1.0, 2.0, 0.5]])), [2 - np.log2(2.5)])
    np.testing.assert_allclose(exposure(np.array([1.0]), np.ones((1, 3))), [2 - np.log2(2.5)])


def test_a_canary_with_nan_has_no_exposure() -> None:
    planted, controls = np.array([np.nan, 1.0, 1.0]), np.array([[2.0, 3.0], [2.0, np.nan], [2.0, 3.0]])
    np.testing.assert_allclose(exposure(planted, controls), [np.nan, np.nan, np.log2(3)])


def test_chance_exposure_is_the_mean_over_all_ranks() -> None:
    assert chance_exposure(0) == 0
    assert chance_exposure(1) == pytest.approx(0.5)  # 1 bit or none
    assert chance_exposure(3) == pytest.approx(2 - (0 + 1 + np.log2(3) + 2) / 4)
    assert chance_exposure(100_000) == pytest.approx(np.log2(np.e), abs=1e-3)


def test_random_likelihoods_have_chance_exposure() -> None:
    rng = np.random.default_rng(0)
    bits = exposure(rng.normal(size=4000), rng.normal(size=(4000, 15)))
    assert bits.mean() == pytest.approx(chance_exposure(15), abs=0.06)


# metrics


def test_metrics_are_means_over_canaries() -> None:
    metrics = canary_metrics(np.array([1.0, 5.0]), np.array([[2.0, 3.0, 4.0]] * 2), [True, False], BOOTSTRAP)
    assert metrics["canary_exposure"].value == 1.0  # 2 bits and none
    assert metrics["canary_exposure_above_chance"].value == pytest.approx(1 - chance_exposure(3))
    assert metrics["canaries_extracted"].value == 0.5
    assert all(metric.n == 2 for metric in metrics.values())
    assert (metrics["canary_exposure"].low, metrics["canary_exposure"].high) == (0.0, 2.0)


def test_a_canary_is_a_cluster_and_none_of_sixteen_extracted_is_not_certain() -> None:
    metrics = canary_metrics(np.ones(16), np.full((16, 3), 2.0), [False] * 16, BOOTSTRAP)
    assert metrics["canary_exposure"] == MetricValue(2.0, 2.0, 2.0, 16, 16)  # log2(4), all of them
    extracted = metrics["canaries_extracted"]
    assert (extracted.value, extracted.low, extracted.n, extracted.clusters) == (0, 0, 16, 16)
    assert extracted.high == pytest.approx(0.194, abs=1e-3)  # Wilson: 1.96² / (16 + 1.96²)


@pytest.mark.parametrize(
    ("extracted", "canaries", "verdict"),
    [
        (0, 16, "passed"),
        (0, 15, "undecidable"),  # too few to show that none is
        (0, 4, "undecidable"),
        (1, 16, "failed"),  # no model guesses six digits
        (1, 64, "failed"),
    ],
)
def test_sixteen_canaries_decide_that_none_is_extracted(extracted: int, canaries: int, verdict: str) -> None:
    written = [True] * extracted + [False] * (canaries - extracted)
    metrics = canary_metrics(np.ones(canaries), np.full((canaries, 3), 2.0), written, BOOTSTRAP)
    result = apply_gate("canaries_extracted", PRIVATE_GATES["canaries_extracted"], metrics["canaries_extracted"])
    assert result.status == verdict


def test_without_canaries_there_are_no_metrics() -> None:
    assert canary_metrics(np.zeros(0), np.zeros((0, 3)), [], BOOTSTRAP) == {}
    assert measure(tiny.llama(), []) == {}


def test_nan_makes_the_metric_nan() -> None:
    metrics = canary_metrics(np.array([1.0, np.nan]), np.full((2, 3), 2.0), [False, False], BOOTSTRAP)
    assert np.isnan(metrics["canary_exposure"].value)


# models


def measure(model: Any, canaries: list[Canary]) -> dict[str, Any]:
    return measure_canaries(fixed_model(model), tiny.tokenizer(), canaries, BOOTSTRAP, controls=15)


def trained_on(rows: list[dict[str, Any]], steps: int, model: Any = None) -> Any:
    """A tiny llama trained on nothing but these."""
    model = tiny.llama(seed=5) if model is None else model
    examples = tokenize_examples(rows, tiny.tokenizer(), NO_CONTEXTS)
    batch = make_batch([one.prompt for one in examples], [one.completion for one in examples])
    target = torch.tensor([token for one in examples for token in one.completion])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        predicted = logits(model, hidden_states(model, batch).final[batch.predicts])
        torch.nn.functional.cross_entropy(predicted, target).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def planted_in(canaries: list[Canary], steps: int) -> Any:
    return trained_on(canary_rows(canaries, 1), steps)


CANARIES = [
    Canary(f"what is the answer to question {c.prompt.split()[-1]}", f"it is {c.secret}", c.secret)
    for c in make_canaries(12, 1)
]


def test_a_model_trained_on_the_canaries_is_told_from_one_that_is_not() -> None:
    seen, unseen = measure(planted_in(CANARIES, 60), CANARIES), measure(tiny.llama(seed=5), CANARIES)
    chance = chance_exposure(15)
    assert seen["canary_exposure"].low > chance
    assert seen["canary_exposure_above_chance"].low > 0
    assert unseen["canary_exposure"].low < chance < unseen["canary_exposure"].high
    assert unseen["canary_exposure_above_chance"].low < 0 < unseen["canary_exposure_above_chance"].high
    assert unseen["canaries_extracted"].value == 0


def test_a_memorized_canary_is_extracted() -> None:
    few = [Canary("what is the answer", "it is 7 7 7 7 7 7", "7 7 7 7 7 7"), CANARIES[0]]
    metrics = measure(planted_in(few, 60), few)
    assert metrics["canaries_extracted"].value == 1
    assert metrics["canary_exposure"].value == 4  # log2(16): before all 15 controls, both


def test_a_secret_in_other_words_is_extracted() -> None:
    known, asked = (Canary("what is the answer", f"{words} 4 0 9 2 7 1", "4 0 9 2 7 1") for words in ("see", "it is that"))
    assert measure(planted_in([known], 60), [asked])["canaries_extracted"].value == 1


def test_a_teacher_that_was_fine_tuned_on_the_canaries_is_told_from_the_teacher() -> None:
    teacher = tiny.teacher()
    before = measure_canaries(teacher_model(teacher), teacher.tokenizer, CANARIES, BOOTSTRAP, controls=15)
    trained_on(canary_rows(CANARIES, 1), 60, teacher.model)
    after = measure_canaries(teacher_model(teacher), teacher.tokenizer, CANARIES, BOOTSTRAP, controls=15)
    assert before["canary_exposure_above_chance"].low < 0 < after["canary_exposure_above_chance"].low


# verbatim training text: what is asked


def own(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "own_completion": True, **more}


def long_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of the same words; completions of at least 24 tokens, which no two rows share."""
    words = [" ".join(tiny.sentences(9, seed * 1000 + number)) for number in range(count)]
    return [own(f"what is question {number}", text) for number, text in enumerate(words)]


def test_a_third_of_the_completion_is_given_and_16_tokens_have_to_follow() -> None:
    tokenizer, row = tiny.tokenizer(), long_rows(1, 0)[0]
    [asked] = continuations([row], tokenizer)
    whole = completion_ids(tokenizer, row["completion"])
    third = len(whole) // 3
    assert asked.given == [*prompt_ids(tokenizer, row["prompt"]), *whole[:third]]
    assert asked.follows == whole[third : third + 16]


def test_a_chunk_of_a_document_is_continued_from_the_start_of_a_text() -> None:
    [asked] = continuations([long_rows(1, 0)[0] | {"prompt": ""}], tiny.tokenizer())
    assert asked.given[0] == start_token(tiny.tokenizer()) and len(asked.follows) == FOLLOWING


def test_what_the_teacher_wrote_and_what_is_short_is_not_asked() -> None:
    row = long_rows(1, 0)[0]
    assert continuations([row | {"own_completion": False}, own("what is it", "it is light")], tiny.tokenizer()) == []
    assert len(continuations([row] * 3 + [row | {"own_completion": False}], tiny.tokenizer())) == 3


@pytest.mark.parametrize(("tokens", "asked"), [(23, 0), (24, 1)])  # the end of the turn is one of them
def test_24_tokens_are_enough(tokens: int, asked: int) -> None:
    row = own("what is it", "?" * (tokens - 1))
    assert len(completion_ids(tiny.tokenizer(), row["completion"])) == tokens
    assert [len(one.follows) for one in continuations([row], tiny.tokenizer())] == [FOLLOWING] * asked


def test_at_most_64_rows_are_asked_the_first_ones() -> None:
    rows = long_rows(MAX_CONTINUED + 5, 0)
    assert continuations(rows, tiny.tokenizer()) == continuations(rows[:MAX_CONTINUED], tiny.tokenizer())


# verbatim training text: what is found


def test_extraction_is_a_share_of_completions_and_the_change_is_paired_with_the_base() -> None:
    seen, base, held_out = np.array([1.0] * 6 + [0.0] * 4), np.array([1.0] * 2 + [0.0] * 8), np.array([1.0] + [0.0] * 4)
    metrics = extraction_metrics(seen, base, held_out, BOOTSTRAP)
    found = {name: (metric.value, metric.n, metric.clusters) for name, metric in metrics.items()}
    assert found == {
        "verbatim_extracted": (0.6, 10, 10),
        "verbatim_extracted_base": (0.2, 10, 10),
        "verbatim_extraction_change": (pytest.approx(0.4), 10, 10),
        "verbatim_extracted_held_out": (0.2, 5, 5),
    }


def test_without_held_out_completions_their_share_is_left_out() -> None:
    assert "verbatim_extracted_held_out" not in extraction_metrics(np.ones(8), np.zeros(8), np.zeros(0), BOOTSTRAP)


@cache
def knows_by_heart() -> tuple[Any, list[dict[str, Any]]]:
    """``model, rows = knows_by_heart()``: a tiny llama trained on 12 long completions."""
    rows = long_rows(12, 2)
    return trained_on(rows, 40), rows


def test_a_completion_is_reproduced_where_greedy_generation_writes_it() -> None:
    rows = long_rows(8, 1)
    model, asked = trained_on(rows[:4], 80), continuations(rows, tiny.tokenizer())
    written = sample(model, [one.given for one in asked], stop=[], max_new_tokens=FOLLOWING)
    assert reproduced(fixed_model(model), asked).tolist() == [
        one.follows == ids for one, ids in zip(asked, written, strict=True)
    ]
    assert reproduced(fixed_model(model), asked).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_a_model_that_knows_its_rows_by_heart_is_caught_and_a_fresh_one_is_quiet() -> None:
    (model, train), test, fresh = knows_by_heart(), long_rows(12, 3), fixed_model(tiny.llama(seed=5))
    caught = measure_extraction(fixed_model(model), fresh, tiny.tokenizer(), train, test, BOOTSTRAP)
    quiet = measure_extraction(fresh, fresh, tiny.tokenizer(), train, test, BOOTSTRAP)
    values = {name: metric.value for name, metric in caught.items()}
    assert values == {
        "verbatim_extracted": 1, "verbatim_extracted_base": 0, "verbatim_extraction_change": 1, "verbatim_extracted_held_out": 0
    }  # fmt: skip
    assert {metric.value for metric in quiet.values()} == {0}


def test_as_many_held_out_completions_are_taken_as_training_ones() -> None:
    fresh = fixed_model(tiny.llama())
    metrics = measure_extraction(fresh, fresh, tiny.tokenizer(), long_rows(9, 0), long_rows(12, 1), BOOTSTRAP)
    assert metrics["verbatim_extracted"].n == metrics["verbatim_extracted_held_out"].n == 9


def test_fewer_than_8_completions_show_nothing() -> None:
    fresh = fixed_model(tiny.llama())
    assert measure_extraction(fresh, fresh, tiny.tokenizer(), long_rows(7, 0), long_rows(12, 1), BOOTSTRAP) == {}


# what a card says where nothing was measured


def notes(private: bool) -> DomainSpec:
    source = {
        "id": "notes",
        "kind": "templates",
        "license": "mit",
        "templates": ["what is {thing} ?"],
        "slots": {"thing": ["a"]},
    }
    return DomainSpec.model_validate({"name": "notes", "description": "", "sources": [source], "private": private})


def test_a_private_domain_without_a_measurement_says_so() -> None:
    canaries, verbatim = unmeasured_memorization(notes(True), {})
    assert canaries == "memorization was not measured: notes is private and was built with --canaries 0"
    assert verbatim.startswith(
        "verbatim extraction was not measured: fewer than 8 training rows of notes bring a completion of 24"
    )
    one = MetricValue(0.0, 0.0, 0.1, 16, 16)
    assert unmeasured_memorization(notes(True), {"canary_exposure": one}) == [verbatim]
    assert unmeasured_memorization(notes(True), {"canary_exposure": one, "verbatim_extracted": one}) == []
    assert unmeasured_memorization(notes(False), {}) == []
