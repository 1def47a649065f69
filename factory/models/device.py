"""Where torch computes, and in what: ``--device``, and the dtype that the device multiplies fast."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from factory.errors import UsageError

LARGE = 1 << 16  # numbers, from which on it is worth keeping half of their bytes


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


@contextmanager
def small_activations(device: torch.device) -> Iterator[None]:
    """``with small_activations(device): loss = compute(model)``: what backward needs is kept in bfloat16, as elsewhere.

    Where products are float32, a training step's activations would take twice the memory. Weights are kept as they are.
    """
    if _multiplies_bfloat16(device):
        yield
        return
    known: Any = WeakTensorKeyDictionary()  # several layers keep the same input

    def rounded(tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        whole = _viewed(tensor)
        if tensor.dtype != torch.float32 or tensor.numel() < LARGE or isinstance(whole, nn.Parameter):
            return tensor, tensor.dtype
        version, kept = known.get(whole, (-1, whole))
        if version != whole._version:
            kept = whole.detach().to(torch.bfloat16)
            known[whole] = whole._version, kept
        return kept.view(tensor.shape), tensor.dtype

    with torch.autograd.graph.saved_tensors_hooks(rounded, lambda kept: kept[0].to(kept[1])):
        yield


def _viewed(tensor: Tensor) -> Tensor:
    """The tensor that this one is another shape of, or the weight that it is a view of, or itself."""
    whole = tensor._base if tensor._is_view() else None
    if whole is None or not (isinstance(whole, nn.Parameter) or _reshaped(tensor, whole)):
        return tensor
    return whole


def _reshaped(tensor: Tensor, whole: Tensor) -> bool:
    return whole.numel() == tensor.numel() and whole.is_contiguous() and tensor.is_contiguous()


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return onednn_multiplies_bfloat16()


def onednn_multiplies_bfloat16() -> bool:
    """``onednn_multiplies_bfloat16()``: whether this CPU has products of bfloat16."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
