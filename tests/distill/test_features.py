"""The feature term's hidden states: which tokens of a row, which layers, and what a model of another width needs."""

from __future__ import annotations

import pytest
import torch
from support import tiny
from torch import nn

from factory.distill.features import (
    feature_layers,
    feature_projection,
    last_states,
    mapped_layers,
    shared_tokens,
    teacher_features,
)
from factory.models.chat import NO_CONTEXT
from factory.models.forward import hidden_states, make_batch
from factory.models.tokenize import TokenizedExample

ROWS = tiny.sequences(5)


@pytest.mark.parametrize(
    ("prompt", "teacher", "count"),
    [
        ([1, 5, 6], [1, 9, 9, 5, 6], 2),  # the first token stands before the context, too
        ([1, 5, 6], [1, 5, 6], 2),
        ([1, 5, 6], [5, 6], 2),
        ([1, 5, 6], [6], 1),  # what is left of a teacher's prompt after the prefix of its batch
        ([1, 5, 6], [1, 5, 7], 0),
        ([1], [1], 0),
    ],
)
def test_shared_tokens_are_the_common_end_without_the_first_token(prompt: list[int], teacher: list[int], count: int) -> None:
    assert shared_tokens([prompt], [teacher]) == [count]


def test_last_states_are_those_of_each_row_s_last_tokens_without_padding() -> None:
    model = tiny.llama()
    batch = make_batch([[1, 5, 6], [7, 8]], [[9, 10], [11]])
    states = hidden_states(model, batch)
    chosen = last_states(states, batch, [3, 2], [1, 4])
    expected = [(0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    assert chosen.shape == (5, 2, 32)
    for row, (b, t) in zip(chosen, expected, strict=True):
        torch.testing.assert_close(row, torch.stack([states.layers[1][b, t], states.layers[4][b, t]]))


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [*ROWS[:2], *tiny.sequences(5, NO_CONTEXT)[2:]]])
def test_teacher_features_are_those_of_each_row_alone_after_its_context(rows: list[TokenizedExample]) -> None:
    teacher = tiny.teacher()
    prompts, shown, answers = ([getattr(one, name) for one in rows] for name in ("prompt", "teacher_prompt", "completion"))
    found, counts = teacher_features(teacher, shown, prompts, answers)
    assert all(len(one.completion) < count for one, count in zip(rows, counts, strict=True))  # prompts included
    for part, one, count in zip(found.split(counts), rows, counts, strict=True):
        ids = torch.tensor([[*one.teacher_prompt, *one.completion]])
        with torch.no_grad():
            alone = teacher.model(input_ids=ids, output_hidden_states=True).hidden_states
        expected = torch.stack([alone[layer][0, -count:] for layer in feature_layers(4)], dim=1)
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


def test_teacher_and_student_states_are_of_the_same_tokens() -> None:
    """A student that is the teacher itself, without a context: all its states are the teacher's."""
    teacher, rows = tiny.teacher(), tiny.sequences(5, NO_CONTEXT)
    prompts, answers = [one.prompt for one in rows], [one.completion for one in rows]
    found, counts = teacher_features(teacher, [one.teacher_prompt for one in rows], prompts, answers)
    batch = make_batch(prompts, answers)
    with torch.no_grad():
        own = last_states(hidden_states(teacher.model, batch), batch, counts, mapped_layers(None, 4, 4))
    torch.testing.assert_close(own, found, atol=1e-4, rtol=1e-4)


def test_a_student_of_another_width_is_projected() -> None:
    teacher = tiny.teacher()
    same, narrow = feature_projection(tiny.base(), teacher), feature_projection(tiny.base(width=16), teacher)
    assert isinstance(same, nn.Identity)
    assert narrow(torch.zeros(7, 4, 16)).shape == (7, 4, 32)


@pytest.mark.parametrize(("depth", "layers"), [(30, [8, 15, 22, 30]), (4, [1, 2, 3, 4]), (1, [1, 1, 1, 1])])
def test_feature_layers_are_quarters_of_the_depth_and_never_the_embedding(depth: int, layers: list[int]) -> None:
    assert feature_layers(depth) == layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((0, 1, 2, 3), [1, 2, 3, 4]), ((0, 3), [1, 1, 1, 2]), ((0, 2, 3), [1, 1, 2, 3]), ((3,), [1, 1, 1, 1])],
)
def test_a_pruned_base_maps_to_the_last_kept_layer_at_or_below(layers: tuple[int, ...], expected: list[int]) -> None:
    assert mapped_layers(layers, 4, len(layers)) == expected


def test_a_base_cut_from_an_assistant_maps_by_the_assistant_s_layer_numbers() -> None:
    """Eight layers of an assistant of 20, which itself has two of every three layers of a teacher of 30."""
    layers = (0, 3, 6, 9, 12, 15, 17, 19)
    assert mapped_layers(layers, 20, 8) == [2, 4, 5, 8]
    assert mapped_layers([layer + layer // 2 for layer in layers], 20, 8) == [2, 3, 4, 5]  # the original teacher's numbers


def test_another_base_maps_to_the_same_relative_depth() -> None:
    assert mapped_layers(None, 4, 2) == [1, 1, 2, 2]
    assert mapped_layers(None, 30, 4) == [1, 2, 3, 4]
