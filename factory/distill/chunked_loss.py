"""The response term without the logits of all positions at once: memory does not grow with the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from factory.distill.losses import bucket_log_probs, generalized_jsd_loss

LOGITS = 1 << 22  # at once, 16 MiB in float32: 300 positions of 14,000 tokens, 16 of 262,144


def positions_at_once(vocabulary: int) -> int:
    """``states.split(positions_at_once(14_000))``: how many positions' logits may exist together."""
    return max(1, LOGITS // vocabulary)


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
    """``response_loss(head, head_parameters, states, targets.ids, targets.log_probs, …)``: mean over positions, ().

    states (N, H), ids (N, k), log_probs (N, k + 1); ``head`` is (n, H) → (n, V), and ``parameters`` those of its weights that
    are trained (tied with the embedding, LoRA, or none). The divergence is ``generalized_jsd_loss`` of ``bucket_log_probs``.
    A chunk's gradient is taken at once, so that its logits are gone before the next one's exist, and no head is multiplied
    twice; the loss can be differentiated once, not twice.
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
        wanted = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(tensor) for tensor in (states, *parameters)] if wanted else []
        for start in range(0, len(states), rows):
            span = slice(start, start + rows)
            with torch.set_grad_enabled(wanted):
                part = states[span].detach().requires_grad_(wanted)
                buckets = bucket_log_probs(head(part), ids[span], temperature)
                loss = generalized_jsd_loss(buckets, log_probs[span], beta).sum() / len(states)
            if wanted:
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
