"""Packed weights: the same products, for the layers that compute, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import tiny
from torch import nn

from factory.models import packing
from factory.models.generation import PACK_FROM, sample
from factory.models.lora import merged_adapters
from factory.models.packing import can_pack, packed_linear, packed_weights

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
needs_bfloat16 = pytest.mark.skipif(not can_pack([torch.ones(1, 1).bfloat16()]), reason="no bfloat16 products on this CPU")


def bfloat16_model() -> Any:
    torch.manual_seed(0)
    return tiny.llama().to(torch.bfloat16).eval()


def replaced(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@needs_bfloat16
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 48).bfloat16()])
@pytest.mark.parametrize("rows", [1, 2, 84])
def test_a_packed_product_is_that_of_float64(rows: int, bias: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 32).bfloat16(), torch.randn(rows, 3, 32).bfloat16()
    exact = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = packed_linear(weight, bias)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6 + float(exact.abs().max()) * 2**-9)


@needs_bfloat16
def test_a_model_computes_the_same_and_is_as_before_afterwards() -> None:
    model = bfloat16_model()
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        with packed_weights(model):
            assert len(replaced(model)) == 7 * model.config.num_hidden_layers + 1
            packed = model(input_ids=IDS).logits
    torch.testing.assert_close(packed, plain, rtol=0.02, atol=0.02)
    assert not replaced(model)


@needs_bfloat16
def test_layers_that_merged_adapters_stand_in_for_are_not_packed_again() -> None:
    model = get_peft_model(bfloat16_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with merged_adapters(model):
        merged = set(replaced(model))
        with packed_weights(model):
            assert [name for name in replaced(model) if name not in merged] == ["base_model.model.lm_head"]
        assert set(replaced(model)) == merged


@needs_bfloat16
def test_the_inner_of_two_contexts_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bfloat16_model()
    with packed_weights(model):
        outer = {name: vars(module)["forward"] for name, module in model.named_modules() if "forward" in vars(module)}
        with packed_weights(model):
            pass
        assert {name: vars(module)["forward"] for name, module in model.named_modules() if "forward" in vars(module)} == outer


def test_models_in_float32_and_models_too_large_to_hold_twice_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    with packed_weights(model):
        assert not replaced(model)
    monkeypatch.setattr(packing, "PACKED_BYTES", 1000)
    model = bfloat16_model()
    with packed_weights(model):
        assert not replaced(model)


@needs_bfloat16
def test_long_answers_are_written_with_packed_weights_and_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[torch.Tensor] = []

    def counting(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        counted.append(weight)
        return packed_linear(weight, bias)

    model = bfloat16_model()
    monkeypatch.setattr(packing, "packed_linear", counting)
    sample(model, [[3, 1, 4]], max_new_tokens=PACK_FROM - 1, stop=())
    assert not counted
    sample(model, [[3, 1, 4]], max_new_tokens=PACK_FROM, stop=())
    assert len(counted) == 7 * model.config.num_hidden_layers + 1 and not replaced(model)
