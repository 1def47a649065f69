"""Rounds a base to the grid that will be served, so that adapters are trained on the very weights that answer later.

rounded = round_base(base, "q4_1", batches)
rounded.kl  # what the rounding costs, nats/token
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from factory.config.quantization import Grid
from factory.models.base import Base
from factory.models.calibration import CalibrationBatch, mean_kl
from factory.models.forward import Batch

EMBEDDING = GGMLQuantizationType.Q8_0  # and head, whatever the grid of the layers is


@dataclass(frozen=True)
class RoundedBase:
    """A base whose weights are on a grid; without a grid it is as it was."""

    base: Base
    grid: Grid | None
    kl: float | None  # KL(as it was ‖ rounded), nats/token


def round_base(base: Base, grid: Grid | None, batches: Sequence[Batch]) -> RoundedBase:
    """``round_base(base, "q4_1", batches).base``: a rounded copy, and KL over what ``batches`` predict."""
    if grid is None:
        return RoundedBase(base, None, None)
    rounded = copy.deepcopy(base.model)
    round_weights(rounded, grid)
    kl = mean_kl(base.model, rounded, [CalibrationBatch((), batch) for batch in batches])
    return RoundedBase(replace(base, model=rounded), grid, kl)


@torch.no_grad()
def round_weights(model: Any, grid: Grid) -> None:
    """``round_weights(model, "q4_1")``: in place, as ``write_base_gguf`` would write it and llama.cpp read it.

    Matrices are rounded in blocks along their rows, embedding and head to q8_0; norms and biases stay, and so does a matrix
    without whole blocks.
    """
    for weight, kind in _kinds(model, grid):
        weight.copy_(on_grid(weight, kind))


def rounded_bytes(model: Any, grid: Grid) -> int:
    """``rounded_bytes(model, "q4_1")``: of its weights in a file, as ``round_weights`` rounds them; what stays is float32."""
    sizes = [(weight.numel(), *GGML_QUANT_SIZES[kind]) for weight, kind in _kinds(model, grid)]
    return sum(count // block * size for count, block, size in sizes)


def _kinds(model: Any, grid: Grid) -> Iterator[tuple[torch.nn.Parameter, GGMLQuantizationType]]:
    """Each weight with the kind that it is rounded to, F32 where it stays. An encoder has no output embedding."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(module.weight) for module in modules if module is not None}
    for weight in model.parameters():
        kind = EMBEDDING if id(weight) in embeddings else GGMLQuantizationType[grid.upper()]
        yield weight, kind if _has_blocks(weight, kind) else GGMLQuantizationType.F32


def _has_blocks(weight: Tensor, kind: GGMLQuantizationType) -> bool:
    return weight.ndim == 2 and weight.shape[1] % GGML_QUANT_SIZES[kind][0] == 0


def on_grid(weight: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """``on_grid(rows, EMBEDDING)``: rounded in blocks along the rows, so that no row decides another; else as it is."""
    if kind == GGMLQuantizationType.F32 or not _has_blocks(weight, kind):
        return weight
    return torch.from_numpy(dequantize(quantize(weight.float().cpu().numpy(), kind), kind))
