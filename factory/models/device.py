"""Where torch computes, and in what: ``--device``, and the dtype that the device multiplies fast."""

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


def compute_dtype(device: torch.device) -> torch.dtype:
    """``compute_dtype(device)``: bfloat16 where the device has products for it, else float32.

    Weights on disk are bfloat16 either way. A CPU without AVX-512, which most laptops have, takes a hundred times as long for
    a bfloat16 product as for one in float32 (docs/log.md, "bfloat16 on a laptop").
    """
    return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


def mixed_precision(device: torch.device) -> torch.autocast:
    """``with mixed_precision(device): model(ids)``: products in ``compute_dtype``, whatever the weights are held in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_multiplies_bfloat16(device))


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
