"""The forward pass at completion positions is the whole model's there: any padding, any prefix, with an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import architectures, tiny
from torch import Tensor, nn
from transformers import PreTrainedModel

from factory.errors import TrainingError
from factory.models.forward import check_head, hidden_states, logits, make_batch, mean_pool, output_head, unwrap

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63]]
COMPLETIONS = [[70, 71, 2], [80, 2], [90, 91, 92, 93, 94, 95, 96, 2]]
PREFIX = [1, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109]  # longer than the tiny Gemma's window of 8
MODELS = pytest.mark.parametrize("make", [tiny.llama, tiny.gemma])
Make = Callable[[], PreTrainedModel]


def whole_model(model: Any, prefix: list[int] = []) -> Tensor:  # noqa: B006 - only read
    """Row by row and without padding: the model's own logits where a completion token comes next. (N, V)"""
    rows = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = [*prefix, *prompt, *completion]
        values = model(input_ids=torch.tensor([ids])).logits[0]
        rows.append(values[len(prefix) + len(prompt) - 1 : len(ids) - 1])
    return torch.cat(rows)


def ours(model: Any, prefix: list[int] = []) -> Tensor:  # noqa: B006 - only read
    batch = make_batch(PROMPTS, COMPLETIONS)
    return logits(model, hidden_states(model, batch, prefix).final[batch.predicts])


@MODELS
@torch.no_grad()
def test_logits_are_the_whole_model_s_at_completion_positions(make: Make) -> None:
    model = make()
    torch.testing.assert_close(ours(model), whole_model(model), atol=1e-4, rtol=1e-4)


@MODELS
@torch.no_grad()
def test_a_prefix_gives_the_same_as_writing_it_out(make: Make) -> None:
    model = make()
    torch.testing.assert_close(ours(model, PREFIX), whole_model(model, PREFIX), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing() -> None:
    model = tiny.llama()
    alone, beside = make_batch(PROMPTS[:1], COMPLETIONS[:1]), make_batch(PROMPTS, COMPLETIONS)
    first = hidden_states(model, alone).final[0, : len(PROMPTS[0]) + len(COMPLETIONS[0])]
    torch.testing.assert_close(hidden_states(model, beside).final[0, : len(first)], first, atol=1e-5, rtol=1e-5)
    beside.input_ids[~beside.real] = 7  # whatever stands there
    torch.testing.assert_close(hidden_states(model, beside).final[0, : len(first)], first, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_adapter_is_part_of_the_pass_and_switching_it_off_leaves_the_base() -> None:
    plain = whole_model(tiny.llama())
    model = get_peft_model(tiny.llama(), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    assert unwrap(model) is model.get_base_model()
    torch.testing.assert_close(ours(model), whole_model(model), atol=1e-4, rtol=1e-4)
    assert (ours(model) - plain).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(ours(model), plain, atol=1e-4, rtol=1e-4)


@MODELS
@torch.no_grad()
def test_hidden_states_are_the_embedding_and_every_layer_the_last_one_after_the_norm(make: Make) -> None:
    model = make()
    batch = make_batch(PROMPTS, COMPLETIONS)
    states = hidden_states(model, batch)
    whole = model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
    assert len(states.layers) == model.config.num_hidden_layers + 1
    for mine, theirs in zip(states.layers, whole, strict=True):
        torch.testing.assert_close(mine[batch.real], theirs[batch.real], atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_weights() -> None:
    model = tiny.llama()
    ours(model).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_batch_marks_where_the_next_token_is_a_completion_s() -> None:
    batch = make_batch([[1, 2], [3]], [[4, 5], [6]])
    assert batch.input_ids[:, :5].tolist() == [[1, 2, 4, 5, 0], [3, 6, 0, 0, 0]]
    assert batch.predicts[:, :5].int().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert batch.real[:, :5].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert not batch.input_ids[:, 5:].any() and not batch.predicts[:, 5:].any() and not batch.real[:, 5:].any()


@pytest.mark.parametrize(("length", "width"), [(1, 16), (15, 16), (16, 16), (17, 32), (33, 48)])
def test_widths_are_multiples_that_recur(length: int, width: int) -> None:
    assert make_batch([[1]], [[2] * (length - 1)] if length > 1 else [[]]).input_ids.shape == (1, width)


def test_pooling_is_the_mean_over_the_mask_and_zero_where_it_is_empty() -> None:
    states = torch.tensor([[[1.0], [3.0], [8.0]], [[5.0], [5.0], [5.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_pool(states.bfloat16(), mask).tolist() == [[2.0], [0.0]]


@MODELS
def test_the_head_of_both_families_is_understood(make: Make) -> None:
    check_head(make())
    check_head(make().bfloat16())


def test_an_unusual_head_is_refused_in_one_line() -> None:
    class ScaledHead(type(tiny.llama())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.5
            return output

    model = tiny.llama()
    model.__class__ = ScaledHead
    with pytest.raises(
        TrainingError, match=r"ScaledHead's output head is not a linear layer .* another architecture"
    ) as raised:
        check_head(model)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", list(architectures.CONFIGS))
def test_logits_are_the_model_s_own_of_every_architecture(name: str) -> None:
    model = architectures.model(name)
    check_head(model)
    batch = make_batch([[1, 2, 3]], [[4, 5]])
    with torch.no_grad():
        states = hidden_states(model, batch).final[batch.real]
        head, tokens = output_head(model, torch.float32)
        torch.testing.assert_close(head(states), model(input_ids=batch.input_ids).logits[batch.real])
        torch.testing.assert_close(logits(model, states), head(states))
    assert tokens == 360
