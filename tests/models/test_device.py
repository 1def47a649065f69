"""Where torch computes, and in what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support import tiny
from torch import nn

from factory.errors import UsageError
from factory.models import device
from factory.models.attention import load_causal_model
from factory.models.device import compute_dtype, mixed_precision, pick_device, small_activations

MULTIPLIES = device._multiplies_bfloat16  # as it is before tests have one dtype


def test_auto_uses_the_gpu_only_if_there_is_one(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("device", "message"), [("cuda", "torch finds no GPU"), ("tpu", "unknown device 'tpu'")])
def test_a_missing_gpu_and_an_unknown_device_are_refused(device: str, message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=message):
        pick_device(device)


def with_bfloat16(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    """A CPU that has, or has not, products of bfloat16."""
    monkeypatch.setattr(device, "_multiplies_bfloat16", MULTIPLIES)
    operations: Any = torch.ops.mkldnn
    monkeypatch.setattr(operations, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_model_is_held_and_multiplied_in_what_the_device_multiplies(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with_bfloat16(monkeypatch, supported)
    assert compute_dtype(tiny.CPU) == dtype
    with mixed_precision(tiny.CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    folder = tiny.saved(tmp_path, tiny.llama().bfloat16())
    assert load_causal_model(folder, tiny.tokenizer(), tiny.CPU).dtype == dtype
    assert load_causal_model(folder, tiny.tokenizer(), tiny.CPU, torch.bfloat16).dtype == torch.bfloat16


def test_without_onednn_models_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_multiplies_bfloat16", MULTIPLIES)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert compute_dtype(tiny.CPU) == torch.float32


def kept_dtypes(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], torch.Tensor]) -> list[torch.dtype]:
    """Of what backward is given for each tensor that forward kept."""
    hooks, found = torch.autograd.graph.saved_tensors_hooks, list[torch.dtype]()

    def watched(pack: Any, unpack: Any) -> Any:
        def unpacking(kept: tuple[torch.Tensor, torch.dtype]) -> torch.Tensor:
            found.append(kept[0].dtype)
            whole: torch.Tensor = unpack(kept)
            return whole

        return hooks(pack, unpacking)

    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd.graph, "saved_tensors_hooks", watched)
        with small_activations(tiny.CPU):
            compute().backward()
    return found


def test_activations_are_kept_in_bfloat16_where_products_are_float32_and_weights_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = nn.Parameter(torch.randn(256, 256))

    def compute() -> torch.Tensor:
        hidden = torch.randn(300, 256) @ weight
        return ((hidden * 2) @ weight).square().sum()

    with_bfloat16(monkeypatch, False)
    dtypes = kept_dtypes(monkeypatch, compute)
    assert torch.bfloat16 in dtypes and torch.float32 in dtypes
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    with_bfloat16(monkeypatch, True)
    assert kept_dtypes(monkeypatch, compute) == []


def test_what_several_layers_keep_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bfloat16(monkeypatch, False)
    packed: list[int] = []
    original = torch.Tensor.to

    def counting(tensor: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        packed.extend([1] * (given == (torch.bfloat16,)))
        return original(tensor, *given, **more)

    weights = [nn.Parameter(torch.randn(256, 256)) for _ in range(3)]
    with small_activations(tiny.CPU):
        hidden = torch.randn(300, 256) @ weights[0] * 1.5
        monkeypatch.setattr(torch.Tensor, "to", counting)
        torch.stack([(hidden @ weight).sum() for weight in weights]).sum().backward()
    assert len(packed) == 1


def test_gradients_are_near_those_of_whole_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bfloat16(monkeypatch, False)
    monkeypatch.setattr(device, "LARGE", 1)

    def gradient(small: bool) -> torch.Tensor:
        model: Any = tiny.llama()
        with small_activations(tiny.CPU) if small else nullcontext():
            model(input_ids=torch.tensor([[5, 6, 7, 8]]), labels=torch.tensor([[5, 6, 7, 8]])).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, rounded = gradient(False), gradient(True)
    assert not torch.equal(whole, rounded)
    assert torch.cosine_similarity(whole, rounded, dim=0) > 0.999
