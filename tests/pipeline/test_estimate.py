"""Estimates: proportional to the work, and to the machine's speed."""

from __future__ import annotations

import pytest

from factory.config.schema import DataConfig
from factory.pipeline.estimate import (
    adapter_seconds,
    answer_tokens,
    evaluation_seconds,
    example_tokens,
    generation_seconds,
    scoring_seconds,
    training_seconds,
)

RATE = 4e11  # FLOP/s


def test_tokens_are_guessed_from_the_longest_that_are_allowed() -> None:
    config = DataConfig(max_prompt_tokens=192, max_completion_tokens=112)
    assert (answer_tokens(config), example_tokens(config)) == (50, 75)
    assert example_tokens(DataConfig(max_prompt_tokens=10, max_completion_tokens=112)) == 60


@pytest.mark.parametrize("estimate", [generation_seconds, scoring_seconds, training_seconds, adapter_seconds])
def test_twice_the_work_takes_twice_as_long_and_twice_the_speed_half_of_it(estimate: object) -> None:
    assert callable(estimate)
    once = estimate(RATE, 134_000_000, 10_000)
    assert estimate(RATE, 134_000_000, 20_000) == estimate(RATE, 268_000_000, 10_000) == pytest.approx(2 * once)
    assert estimate(2 * RATE, 134_000_000, 10_000) == pytest.approx(once / 2)


def test_an_adapter_takes_two_thirds_of_a_training_of_all_weights_since_these_need_no_gradients() -> None:
    assert adapter_seconds(RATE, 10**8, 10**5) == pytest.approx(training_seconds(RATE, 10**8, 10**5) * 2 / 3)


def test_an_evaluation_is_of_every_model() -> None:
    both = evaluation_seconds(RATE, [10**8, 2 * 10**8], scored=1000, sentences=10, written=500)
    each = [evaluation_seconds(RATE, [one], scored=1000, sentences=10, written=500) for one in (10**8, 2 * 10**8)]
    assert both == pytest.approx(sum(each)) and each[1] == pytest.approx(2 * each[0])
