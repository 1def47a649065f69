"""Depth and width: what a size states, what a budget leaves to choose from, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from transformers import GPT2Config, Phi3Config, Qwen3MoeConfig

from factory.config.schema import SizeSpec
from factory.errors import TrainingError
from factory.models.base import count_parameters
from factory.models.dimensions import (
    DEPTHS,
    Dimensions,
    check_size,
    dimensions_of,
    dimensions_within,
    parameters_of,
    resized,
    whole_dimensions,
)

LLAMA: Any = tiny.llama(layers=8, width=64).config  # 128 neurons
GEMMA: Any = tiny.gemma(layers=6).config


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (SizeSpec(layers=3), Dimensions(3, 128)),
        (SizeSpec(intermediate_size=64), Dimensions(8, 64)),
        (SizeSpec(layers=3, intermediate_size=64), Dimensions(3, 64)),
        (SizeSpec(vocabulary=300), Dimensions(8, 128)),
    ],
)
def test_what_a_size_leaves_out_is_the_teacher_s(size: SizeSpec, found: Dimensions) -> None:
    assert dimensions_of(size, LLAMA) == found


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma])
def test_parameters_are_counted_without_weights(make: Any) -> None:
    model = make(layers=4)
    assert parameters_of(model.config) == count_parameters(model)
    smaller = make(layers=2, vocabulary=300)
    assert parameters_of(resized(model.config, Dimensions(2, 64), 300)) == count_parameters(smaller)
    assert model.config.num_hidden_layers == 4 and model.config.vocab_size == 360  # as it was


def test_a_vocabulary_is_never_made_larger() -> None:
    assert resized(LLAMA, whole_dimensions(LLAMA), 9999).vocab_size == 360
    assert resized(LLAMA, whole_dimensions(LLAMA)).vocab_size == 360


@given(share=st.floats(0.45, 0.99), config=st.sampled_from([LLAMA, GEMMA]))
@settings(max_examples=8)
def test_what_a_budget_leaves_to_choose_from_fits_and_is_as_wide_as_fits(share: float, config: Any) -> None:
    whole, budget = whole_dimensions(config), round(parameters_of(config) * share)
    found = dimensions_within(config, budget)
    assert 1 <= len(found) <= DEPTHS
    assert [one.layers for one in found] == sorted({one.layers for one in found}, reverse=True)
    for one in found:
        assert parameters_of(resized(config, one)) <= budget
        if one.intermediate_size != whole.intermediate_size:
            assert one.intermediate_size % 32 == 0
            assert parameters_of(resized(config, Dimensions(one.layers, one.intermediate_size + 32))) > budget
        elif one.layers < whole.layers:
            assert parameters_of(resized(config, Dimensions(one.layers + 1, one.intermediate_size))) > budget


def test_depths_are_spread_from_all_layers_to_as_many_as_fit_at_full_width() -> None:
    budget = parameters_of(resized(LLAMA, Dimensions(4, 128)))
    found = dimensions_within(LLAMA, budget)
    assert [one.layers for one in found] == [8, 7, 6, 5, 4] and found[-1].intermediate_size == 128
    assert [one.intermediate_size for one in found] == sorted(one.intermediate_size for one in found)


@pytest.mark.parametrize(("budget", "why"), [(10**9, "hold the whole teacher"), (1000, "do not hold a layer of the teacher")])
def test_a_budget_that_leaves_no_choice_is_an_error(budget: int, why: str) -> None:
    with pytest.raises(TrainingError, match=why):
        dimensions_within(LLAMA, budget)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (SizeSpec(layers=9), "a student of 9 layers cannot be cut from a teacher of 8 layers"),
        (SizeSpec(intermediate_size=128), "an MLP of 128 neurons cannot be cut from a teacher's of 128"),
        (SizeSpec(parameters=10**9), "hold the whole teacher"),
    ],
)
def test_a_size_that_the_teacher_does_not_hold_is_an_error(size: SizeSpec, why: str) -> None:
    with pytest.raises(TrainingError, match=why):
        check_size(size, LLAMA)


@pytest.mark.parametrize("size", [SizeSpec(layers=8), SizeSpec(intermediate_size=96), SizeSpec(parameters=100_000)])
def test_a_size_that_the_teacher_holds_is_none(size: SizeSpec) -> None:
    check_size(size, LLAMA)


@pytest.mark.parametrize("size", [SizeSpec(intermediate_size=32), SizeSpec(parameters=15_000)])
def test_mlps_that_are_not_gated_are_known_without_weights(size: SizeSpec) -> None:
    shape = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(TrainingError, match="only gated MLPs"):
        check_size(size, Phi3Config(**shape, pad_token_id=0, original_max_position_embeddings=64))


def test_an_architecture_without_one_number_of_neurons_can_still_be_trimmed() -> None:
    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=400)
    assert whole_dimensions(config) == Dimensions(2, 0)
    check_size(SizeSpec(vocabulary=300), config)
    fewer = parameters_of(resized(config, dimensions_of(SizeSpec(vocabulary=300), config), 300))
    assert parameters_of(config) - fewer == 100 * 8


def test_no_student_is_cut_from_a_mixture_of_experts() -> None:
    config = Qwen3MoeConfig(num_hidden_layers=2, num_experts=8)
    for size in (SizeSpec(vocabulary=350), SizeSpec(layers=1), SizeSpec(parameters=1000)):
        with pytest.raises(TrainingError, match=r"qwen3_moe is a mixture of 8 experts, .* choose a dense model"):
            check_size(size, config)
    check_size(SizeSpec(base={"model": "path:./dense", "license": "mit"}), config)
