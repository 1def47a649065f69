"""Weights in the layout that oneDNN multiplies by, for as long as a model writes.

A plain bfloat16 weight is brought into that layout anew in every product: on two cores a fifth of a token's time with 84 rows,
a third with one (docs/log.md, "packed weights"). torch's own compiler packs by the same two operations.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from factory.models.device import onednn_multiplies_bfloat16

PACKED_BYTES = 2**30  # of weights that are held a second time
X86 = ("x86_64", "amd64")


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """``with packed_weights(model): model(input_ids)``: the same products, without gradients. Nested, the outer one counts.

    Weights of other dtypes and devices are left as they are, and so are all of a model with more than ``PACKED_BYTES``.
    """
    replaced = [module for module in model.modules() if "forward" in vars(module)]
    unused = {id(inner) for module in replaced for inner in module.modules()}  # merged adapters compute without them
    chosen = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and id(module) not in unused
    ]
    if not can_pack([module.weight for module in chosen]):
        yield
        return
    with torch.no_grad(), replaced_forward(chosen, lambda module: packed_linear(module.weight, module.bias)):
        yield


def can_pack(weights: Sequence[Tensor]) -> bool:
    """``can_pack([layer.weight])``: bfloat16 on an x86 CPU that has products for it, and not too large to hold twice."""
    return (
        platform.machine().lower() in X86  # oneDNN multiplies by another library on ARM, where this was not tried
        and all(weight.dtype == torch.bfloat16 and weight.device.type == "cpu" for weight in weights)
        and sum(weight.nbytes for weight in weights) <= PACKED_BYTES
        and onednn_multiplies_bfloat16()
    )


def packed_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """``packed_linear(layer.weight, layer.bias)(x)``: (…, I) → (…, O) for a weight (O, I) that ``can_pack``."""
    packed, dtype = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), weight.dtype

    def forward(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, bias, "none", [], "")
        return y

    return forward


@contextmanager
def replaced_forward(modules: Sequence[Any], forward: Callable[[Any], Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """``with replaced_forward(layers, lambda layer: …): model(ids)``: each layer computes by its replacement inside."""
    try:
        for module in modules:
            module.forward = forward(module)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
