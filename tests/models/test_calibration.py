"""Calibration: each context once, layers run one by one as the whole model runs them, and how far a cut model is from it."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import architectures, tiny
from transformers import PreTrainedModel

from factory.models.attention import GROUPED
from factory.models.calibration import BATCH, begin_walk, calibration_batches, kl_sum, mean_kl
from factory.models.chat import NO_CONTEXT
from factory.models.forward import hidden_states
from factory.models.pruning import prune_layers
from factory.models.tokenize import TokenizedExample

EXAMPLES = tiny.sequences(5)


def grouped(model: Any) -> PreTrainedModel:
    model.set_attn_implementation(GROUPED)
    whole: PreTrainedModel = model
    return whole


def of_architecture(name: str) -> PreTrainedModel:
    return grouped(architectures.model(name))


MODELS = {
    "llama": tiny.llama,
    "gemma": tiny.gemma,
    "llama, a prefix read in place": lambda: grouped(tiny.llama()),
    "gemma, a prefix read in place": lambda: grouped(tiny.gemma()),
    **{name: partial(of_architecture, name) for name in architectures.CONFIGS},
}


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3))
@settings(max_examples=25)
def test_every_example_is_in_one_batch_and_each_batch_has_its_context_once(counts: list[int]) -> None:
    contexts = [[7] * (5 * number) for number in range(len(counts))]
    examples = [
        TokenizedExample([20 + place], [*shown, 20 + place], [9, place % 10])
        for shown, count in zip(contexts, counts, strict=True)
        for place in range(count)
    ]
    found = []
    for batch in calibration_batches(examples, tiny.CPU):
        assert len(batch.rows.input_ids) <= BATCH
        for ids, real in zip(batch.rows.input_ids, batch.rows.real, strict=True):
            found.append([*batch.context, *ids[real].tolist()])
    assert sorted(found) == sorted([*one.teacher_prompt, *one.completion] for one in examples)
    shortest = {len(batch.context) for batch in calibration_batches(examples, tiny.CPU)}
    assert shortest <= {len(shown) for shown in contexts} | {len(shown) + 1 for shown in contexts}  # a row alone shares more


@pytest.mark.parametrize("examples", [EXAMPLES, tiny.sequences(5, NO_CONTEXT)], ids=["context", "no context"])
@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_a_walk_through_some_layers_is_what_a_model_of_these_layers_computes(
    name: str, examples: list[TokenizedExample]
) -> None:
    model = MODELS[name]()
    depth = model.config.num_hidden_layers
    [batch] = calibration_batches(examples, tiny.CPU)
    walk = begin_walk(model, batch)
    for keep in (list(range(depth)), [0, depth - 1], [1]):
        pruned: Any = copy.deepcopy(model)
        prune_layers(pruned, keep)
        expected = hidden_states(pruned, batch.rows, batch.context).final[batch.rows.predicts]
        torch.testing.assert_close(walk.through(keep).final(), expected)


def test_a_context_changes_what_the_rows_are() -> None:
    model = tiny.llama()
    seen, unseen = (calibration_batches(one, tiny.CPU)[0] for one in (EXAMPLES, tiny.sequences(5, NO_CONTEXT)))
    with torch.no_grad():
        one, other = (begin_walk(model, batch).through(range(4)).final() for batch in (seen, unseen))
    assert one.shape == other.shape and not torch.allclose(one, other, atol=1e-2)


def test_kl_by_hand_whatever_is_computed_at_once() -> None:
    first, second = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    p, q = first.double().softmax(-1), second.double().softmax(-1)
    expected = float((p * (p / q).log()).sum())
    for positions in (1, 2, 300):
        assert kl_sum((first, second), (lambda states: states, lambda states: states), positions) == pytest.approx(expected)


def test_mean_kl_is_over_the_completions_as_the_teacher_sees_them() -> None:
    model, other = tiny.llama(seed=1), tiny.llama(seed=2)
    total, count = 0.0, 0
    for one in EXAMPLES:
        ids = torch.tensor([[*one.teacher_prompt, *one.completion]])
        with torch.no_grad():
            where = slice(len(one.teacher_prompt) - 1, ids.shape[1] - 1)
            p, q = (m(input_ids=ids).logits[0, where].double().log_softmax(-1) for m in (model, other))
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(one.completion)
    batches = calibration_batches(EXAMPLES, tiny.CPU)
    assert mean_kl(model, other, batches) == pytest.approx(total / count, rel=1e-4)
    assert mean_kl(model, model, batches) == 0
