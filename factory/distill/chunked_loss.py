"""The response term in chunks of positions, so that memory does not grow with the vocabulary (docs/log.md, "growth")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from factory.distill.losses import bucket_log_probs, generalized_jsd_loss
from factory.models.forward import positions_at_once


def response_loss(
    head: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    states: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    *,
    vocabulary: int,
    beta: float,
    temperature: float,
) -> Tensor:
    """``response_loss(head, head_parameters, states, targets.ids, targets.log_probs, …)``: mean over N positions, ().

    states (N, H), ids (N, k), log_probs (N, k + 1); ``head`` maps (n, H) → (n, V) and ``parameters`` are its weights, of which
    those that require a gradient get one. The divergence is ``generalized_jsd_loss`` of ``bucket_log_probs``. Each chunk's
    gradient is computed in the forward pass, before the next chunk's logits exist, so the loss is differentiable once only.
    """
    rows = positions_at_once(vocabulary)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _ResponseLoss.apply(states, head, ids, log_probs, rows, beta, temperature, *trained)  # type: ignore[no-untyped-call, no-any-return]


class _ResponseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Callable[[Tensor], Tensor],
        ids: Tensor,
        log_probs: Tensor,
        rows: int,
        beta: float,
        temperature: float,
        *parameters: Tensor,
    ) -> Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        needs_gradient = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(tensor) for tensor in (states, *parameters)] if needs_gradient else []
        for start in range(0, len(states), rows):
            span = slice(start, start + rows)
            with torch.set_grad_enabled(needs_gradient):
                part = states[span].detach().requires_grad_(needs_gradient)
                buckets = bucket_log_probs(head(part), ids[span], temperature)
                loss = generalized_jsd_loss(buckets, log_probs[span], beta).sum() / len(states)
            if needs_gradient:
                of_states, *of_parameters = torch.autograd.grad(loss, [part, *parameters])
                gradients[0][span] = of_states
                for gradient, one in zip(gradients[1:], of_parameters, strict=True):
                    gradient += one
            total += loss.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        of_states, *of_parameters = (outer.to(gradient.dtype) * gradient for gradient in ctx.saved_tensors)
        return (of_states, None, None, None, None, None, None, *of_parameters)
