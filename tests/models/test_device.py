from __future__ import annotations

from typing import Any

import pytest
import torch

from factory.errors import UsageError
from factory.models.device import pick_device


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
