"""LoRA in fewer operations than peft: 3 to 5 % more training tokens/s, 3 % less memory (docs/log.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from factory.models.packing import can_pack, packed_linear, replaced_forward


@contextmanager
def fused_adapters(model: nn.Module) -> Iterator[None]:
    """``with fused_adapters(peft_model): loss.backward()``: the same values and gradients, computed in place.

    peft materialises x A, (x A) B, the scaled product and the sum, and keeps a second copy of x in the adapter's dtype.
    Layers with dropout, DoRA or several active adapters are left to peft.
    """
    with replaced_forward(_plain_layers(model), lambda layer: partial(_forward, layer)):
        yield


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """``with merged_adapters(peft_model): sample(…)``: one product per layer, by W + s B A; W itself is unchanged."""
    chosen = _plain_layers(model)
    packs = can_pack([layer.base_layer.weight for layer in chosen])

    def merged(layer: Any) -> Callable[[Tensor], Tensor]:
        (name,), base = layer.active_adapters, layer.base_layer
        weight = base.weight + layer.get_delta_weight(name).to(base.weight.dtype)
        if packs:
            return packed_linear(weight, base.bias)
        return partial(nn.functional.linear, weight=weight, bias=base.bias)

    with torch.no_grad(), replaced_forward(chosen, merged):
        yield


def _plain_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Linear) and _plain(module)]


def _plain(module: Linear) -> bool:
    names = module.active_adapters
    return (
        type(module) is Linear
        and not (module.disable_adapters or module.merged)
        and len(names) == 1
        and names[0] in module.lora_A
        and not module.lora_variant
        and isinstance(module.lora_dropout[names[0]], nn.Identity)
        and not module.lora_bias[names[0]]
        and not module.base_layer.weight.requires_grad
    )


def _forward(module: Any, x: Tensor) -> Tensor:
    (name,), base = module.active_adapters, module.base_layer
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    a, b, bias = module.lora_A[name].weight, module.lora_B[name].weight, base.bias
    result: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
        x.to(dtype), base.weight.to(dtype), None if bias is None else bias.to(dtype), a, b, module.scaling[name]
    )
    return result


class _Adapted(torch.autograd.Function):
    """y = x Wᵀ + bias + s (x Aᵀ) Bᵀ, with x (…, I), W (O, I), A (r, I), B (O, r); W is frozen. Differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.dtype = scale, a.dtype
        rows, a, b = x.reshape(-1, x.shape[-1]), a.to(x.dtype), (b * scale).to(x.dtype)
        inner = rows @ a.t()  # (N, r)
        y = nn.functional.linear(rows, weight, bias).addmm_(inner, b.t())
        ctx.save_for_backward(rows, weight, a, b, inner)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        of_y = outer.reshape(-1, outer.shape[-1])
        of_inner = of_y @ b  # (N, r)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_y @ weight).addmm_(of_inner, a).view(*outer.shape[:-1], -1)
        of_a, of_b = of_inner.t() @ rows, of_y.t() @ inner
        return of_x, None, None, of_a.to(ctx.dtype), of_b.to(ctx.dtype) * ctx.scale, None
