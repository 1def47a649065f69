"""The response term in chunks of positions, so that memory does not grow with the vocabulary (docs/log.md, "growth")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from factory.models.forward import logits, positions_at_once, unwrap

Divergence = Callable[[Tensor, slice], Tensor]  # the student's logits (n, V) at some of N positions, and which → (n,) nats


def position_loss(student: Any, states: Tensor, divergence: Divergence) -> Tensor:
    """``position_loss(model, states, divergence)``: mean of ``divergence`` over the positions of ``states`` (N, H), ()."""
    head: Any = unwrap(student).get_output_embeddings()
    return response_loss(
        lambda part: logits(student, part), list(head.parameters()), states, divergence, vocabulary=head.weight.shape[0]
    )


def response_loss(
    head: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    states: Tensor,
    divergence: Divergence,
    *,
    vocabulary: int,
) -> Tensor:
    """``response_loss(head, head_parameters, states, divergence, vocabulary=14_000)``: mean over N positions, ().

    states (N, H); ``head`` maps (n, H) → (n, V) and ``parameters`` are its weights, of which those that require a gradient get
    one. ``divergence`` is called for one chunk of positions after the other. Each chunk's gradient is computed in the forward
    pass, before the next chunk's logits exist, so the loss is differentiable once only.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _ResponseLoss.apply(states, head, divergence, positions_at_once(vocabulary), *trained)  # type: ignore[no-untyped-call, no-any-return]


class _ResponseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Callable[[Tensor], Tensor],
        divergence: Divergence,
        rows: int,
        *parameters: Tensor,
    ) -> Tensor:
        total = states.new_zeros((), dtype=torch.float32)
        needs_gradient = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(tensor) for tensor in (states, *parameters)] if needs_gradient else []
        for start in range(0, len(states), rows):
            span = slice(start, start + rows)
            with torch.set_grad_enabled(needs_gradient):
                part = states[span].detach().requires_grad_(needs_gradient)
                loss = divergence(head(part), span).sum() / len(states)
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
        return (of_states, None, None, None, *of_parameters)
