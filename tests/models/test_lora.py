"""The adapter's own pass: peft's values and gradients, and peft's own code where a layer is more than plain LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import tiny
from torch import Tensor

from factory.models.lora import fused_adapters, merged_adapters

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def adapted(dtype: torch.dtype = torch.float32, **over: Any) -> Any:
    """A tiny model with an adapter that does something."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **over)
    model = get_peft_model(tiny.llama().to(dtype), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model.train()


def outcome(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    logits.float().square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_values_and_gradients_are_those_of_peft() -> None:
    model = adapted(torch.float64)
    (values, gradients) = outcome(model)
    with fused_adapters(model):
        (ours, our_gradients) = outcome(model)
    torch.testing.assert_close(ours, values)
    assert our_gradients.keys() == gradients.keys() and len(gradients) == 2 * 7 * model.config.num_hidden_layers
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-6, atol=1e-9)


def test_under_autocast_gradients_are_near_those_of_float32() -> None:
    exact = outcome(adapted())[1]
    model = adapted(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), fused_adapters(model):
        ours = outcome(model)[1]
    flat, near = (torch.cat([g.flatten() for g in found.values()]) for found in (exact, ours))
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())
    assert torch.cosine_similarity(flat, near, dim=0) > 0.99


def test_a_bias_of_the_frozen_layer_is_added() -> None:
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(6, 5))
    model: Any = get_peft_model(inner, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    x = torch.randn(3, 6)
    with torch.no_grad():
        expected = model(x)
        with fused_adapters(model):
            torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("over", [{"lora_dropout": 0.5}, {"use_dora": True}], ids=["dropout", "dora"])
def test_a_layer_that_is_more_than_plain_lora_stays_peft_s(over: dict[str, Any]) -> None:
    model = adapted(**over).eval()
    expected = model(input_ids=IDS).logits
    with fused_adapters(model):
        assert not [m for m in model.modules() if "forward" in m.__dict__]
        torch.testing.assert_close(model(input_ids=IDS).logits, expected)


def test_a_switched_off_adapter_stays_off() -> None:
    model = adapted().eval()
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=IDS).logits
        with fused_adapters(model):
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=0)


def test_merged_for_sampling_the_values_are_those_of_peft_and_the_weights_stay() -> None:
    model = adapted(torch.float64).eval()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        with merged_adapters(model):
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-9, atol=1e-9)
    assert not [m for m in model.modules() if "forward" in m.__dict__]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_afterwards_the_layers_are_peft_s_again_even_after_an_error() -> None:
    model = adapted()
    with pytest.raises(ValueError, match="stop"), fused_adapters(model):
        assert [m for m in model.modules() if "forward" in m.__dict__]
        raise ValueError("stop")
    assert not [m for m in model.modules() if "forward" in m.__dict__]
