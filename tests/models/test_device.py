"""Where torch computes, and in what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tiny

from factory.errors import UsageError
from factory.models import device
from factory.models.attention import load_causal_model
from factory.models.device import compute_dtype, mixed_precision, pick_device

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
