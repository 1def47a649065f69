"""The text on which a teacher is pruned: examples as the teacher sees them, and a model that is run over them layer by layer.

    batches = calibration_batches(examples, teacher.device)
    walk = begin_walk(model, batches[0])
    walk.through(range(20)).rows  # (B, T, H): what the 21st layer would be given

A context that rows share is run once, as a row of its own, before every layer that is run: what is left out changes its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from factory.errors import TrainingError
from factory.models.chat import split_prefix
from factory.models.forward import Batch, hidden_states, make_batch, output_head, positions_at_once
from factory.models.kv_cache import expand_cache
from factory.models.scoring import length_batches
from factory.models.tokenize import TokenizedExample

BATCH = 32
Head = Callable[[Tensor], Tensor]  # final states (N, H) → logits (N, V)


@dataclass(frozen=True)
class CalibrationBatch:
    """Examples of one context."""

    context: tuple[int, ...]  # tokens that every row begins with, beside those of ``rows``
    rows: Batch


def calibration_batches(examples: Sequence[TokenizedExample], device: torch.device) -> list[CalibrationBatch]:
    """``calibration_batches(examples, device)``: as the teacher sees them; contexts are told apart by their tokens' number."""
    groups: dict[int, list[TokenizedExample]] = {}
    for one in examples:
        groups.setdefault(len(one.teacher_prompt) - len(one.prompt), []).append(one)
    return [
        _batch([group[i] for i in rows], device)
        for group in groups.values()
        for rows in length_batches([len(one.prompt) + len(one.completion) for one in group], BATCH)
    ]


def _batch(examples: Sequence[TokenizedExample], device: torch.device) -> CalibrationBatch:
    context, rest = split_prefix([one.teacher_prompt for one in examples])
    return CalibrationBatch(tuple(context), make_batch(rest, [one.completion for one in examples]).to(device))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """``decoder_layers(model)``. Raises: TrainingError for a model that has them elsewhere than the usual architectures."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise TrainingError(f"{type(model).__name__} has no decoder layers at model.layers, so it cannot be pruned")
    return layers


@dataclass(frozen=True)
class LayerWalk:
    """A batch on its way through a model's layers, any of which may be left out.

    ``calls`` are each layer's other arguments, masks and positions: for the context if there is one, and for the rows.
    """

    model: PreTrainedModel
    batch: Batch
    context: Tensor | None  # (1, P, H)
    rows: Tensor  # (B, T, H)
    calls: Sequence[Sequence[dict[str, Any]]]  # by layer

    def through(self, layers: Iterable[int]) -> LayerWalk:
        """``walk.through([3, 4, 6])``: after these layers of the model."""
        walk = self
        for i in layers:
            walk = walk._after(i)
        return walk

    def _after(self, i: int) -> LayerWalk:
        layer, held = decoder_layers(self.model)[i], DynamicCache()
        if self.context is None:
            return replace(self, rows=_output(layer(self.rows, **self.calls[i][0])))
        for_context, for_rows = self.calls[i]
        context = _output(layer(self.context, **for_context | {"past_key_values": held}))
        seen = expand_cache(self.model, held, len(self.rows))
        return replace(self, context=context, rows=_output(layer(self.rows, **for_rows | {"past_key_values": seen})))

    def final(self) -> Tensor:
        """``walk.final()``: (N, H), after the model's last norm, where a completion token comes next."""
        norm: Any = self.model.base_model.norm
        states: Tensor = norm(self.rows)[self.batch.predicts]
        return states


def _output(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


@torch.no_grad()
def begin_walk(model: PreTrainedModel, batch: CalibrationBatch) -> LayerWalk:
    """``begin_walk(model, batch)``: before the first layer. The model is run once, to learn how its layers are called."""
    layers = decoder_layers(model)
    inputs: list[Tensor] = []
    calls: list[list[dict[str, Any]]] = [[] for _ in layers]

    def hook_of(i: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[i].append({name: value for name, value in kwargs.items() if name not in ("hidden_states", "past_key_values")})
            if i == 0:
                inputs.append(args[0] if args else kwargs["hidden_states"])

        return hook

    handles = [layer.register_forward_pre_hook(hook_of(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        hidden_states(model, batch.rows, batch.context)
    finally:
        for handle in handles:
            handle.remove()
    return LayerWalk(model, batch.rows, inputs[0] if batch.context else None, inputs[-1], calls)


def kl_sum(states: tuple[Tensor, Tensor], heads: tuple[Head, Head], positions: int) -> float:
    """``kl_sum((whole, rest), (head, head), 300)``: KL(first ‖ second) in nats, summed over N positions.

    (N, H) final states of two models and their heads, of which logits of so many ``positions`` may exist at once.
    """
    total = 0.0
    for parts in zip(*(one.split(positions) for one in states), strict=True):
        first, second = (head(part).float().log_softmax(-1) for head, part in zip(heads, parts, strict=True))  # (n, V)
        total += functional.kl_div(second, first, reduction="sum", log_target=True).item()
    return total


@torch.inference_mode()
def mean_kl(model: PreTrainedModel, other: PreTrainedModel, batches: Sequence[CalibrationBatch]) -> float:
    """``mean_kl(teacher.model, pruned, batches)``: KL(model ‖ other) in nats/token, with both heads in float32.

    Both see the context, so that what is measured is the difference in weights alone.
    """
    (head, vocabulary), (other_head, _) = (output_head(one, torch.float32) for one in (model, other))
    total, count = 0.0, 0
    for batch in batches:
        predicts = batch.rows.predicts
        states, others = (hidden_states(one, batch.rows, batch.context).final[predicts] for one in (model, other))
        total += kl_sum((states, others), (head, other_head), positions_at_once(vocabulary))
        count += len(states)
    return total / count
