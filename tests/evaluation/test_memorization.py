"""Planted secrets: exposure against hand-computed values, and a model that has seen them is told from one that has not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from factory.errors import DataError
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.memorization import (
    PLACES,
    Canary,
    canary_metrics,
    canary_rows,
    chance_exposure,
    controls_of,
    exposure,
    make_canaries,
    measure_canaries,
)
from factory.evaluation.stats import BootstrapConfig
from factory.models.chat import NO_CONTEXT
from factory.models.forward import hidden_states, logits, make_batch
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


def test_one_canary_has_an_interval_without_width() -> None:
    metrics = canary_metrics(np.array([1.0]), np.array([[2.0]]), [False], BOOTSTRAP)
    assert metrics["canary_exposure"] == MetricValue(1.0, 1.0, 1.0, 1, 1)
    assert metrics["canaries_extracted"].value == 0.0


def test_without_canaries_there_are_no_metrics() -> None:
    assert canary_metrics(np.zeros(0), np.zeros((0, 3)), [], BOOTSTRAP) == {}
    assert measure(tiny.llama(), []) == {}


def test_nan_makes_the_metric_nan() -> None:
    metrics = canary_metrics(np.array([1.0, np.nan]), np.full((2, 3), 2.0), [False, False], BOOTSTRAP)
    assert np.isnan(metrics["canary_exposure"].value)


# models


def measure(model: Any, canaries: list[Canary]) -> dict[str, Any]:
    return measure_canaries(tiny.teacher(), fixed_model(model), tiny.tokenizer(), canaries, BOOTSTRAP, controls=15)


def planted_in(canaries: list[Canary], steps: int) -> Any:
    """A tiny llama trained on nothing but these."""
    model = tiny.llama(seed=5)
    rows = tokenize_examples(canary_rows(canaries, 1), tiny.tokenizer(), NO_CONTEXT)
    batch = make_batch([row.prompt for row in rows], [row.completion for row in rows])
    target = torch.tensor([token for row in rows for token in row.completion])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        predicted = logits(model, hidden_states(model, batch).final[batch.predicts])
        torch.nn.functional.cross_entropy(predicted, target).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


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
