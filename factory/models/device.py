"""``--device``: where torch computes."""

import torch

from factory.errors import UsageError


def pick_device(device: str) -> torch.device:
    """``pick_device("auto")``: the GPU if there is one, else the CPU.

    Raises: UsageError for an unknown name, or ``cuda`` without a GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; use auto, cpu or cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError("device cuda: torch finds no GPU; use --device auto or cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")
