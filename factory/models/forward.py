"""One forward pass without waste: logits only where a completion token is predicted, a shared prefix computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from factory.errors import TrainingError
from factory.models.generation import expand_cache, prefix_cache

WIDTH = 16


@dataclass(frozen=True)
class Batch:
    """Prompts and completions, padded on the right, where causal attention never looks.

    Widths are multiples of ``WIDTH``, so that shapes recur: oneDNN makes kernels and glibc finds memory for every new one
    (120 steps of batch 8: 12 % more tokens/s and three quarters of the memory, padding paid for; docs/log.md).
    """

    input_ids: Tensor  # (B, T)
    predicts: Tensor  # (B, T) bool: the next token is a completion token; N of them in all
    real: Tensor  # (B, T) bool: no padding

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.predicts.to(device), self.real.to(device))


def make_batch(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Batch:
    """``make_batch([[1, 2]], [[3, 4]])``: one row ``1 2 3 4`` that predicts at the positions of 2 and 3."""
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    shape = (len(lengths), -(-max(lengths) // WIDTH) * WIDTH)
    ids = torch.zeros(shape, dtype=torch.long)
    predicts, real = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : lengths[row]] = torch.tensor([*prompt, *completion])
        predicts[row, len(prompt) - 1 : lengths[row] - 1] = True
        real[row, : lengths[row]] = True
    return Batch(ids, predicts, real)


@dataclass(frozen=True)
class States:
    """Hidden states of one batch: after the embedding, after each layer, the last one after the final norm."""

    layers: tuple[Tensor, ...]  # L + 1 of (B, T, H)

    @property
    def final(self) -> Tensor:
        return self.layers[-1]


def unwrap(model: Any) -> PreTrainedModel:
    """The transformers model inside a peft model, adapter layers in place; any other model as it is."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


def hidden_states(model: Any, batch: Batch, prefix: Sequence[int] = ()) -> States:
    """``hidden_states(model, batch).final``: (B, T, H); ``prefix`` stands before every row and is not in the result."""
    decoder: Any = unwrap(model).base_model
    shared = prefix_cache(unwrap(model), prefix)
    cache = expand_cache(shared, len(batch.input_ids)) if shared is not None else None
    mask = torch.cat([batch.real.new_ones(len(batch.real), len(prefix)), batch.real], dim=1).long()
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
        output_hidden_states=True,
    )
    return States(output.hidden_states)


def logits(model: Any, states: Tensor) -> Tensor:
    """``logits(model, hidden_states(model, batch).final[batch.predicts])``: (N, H) → (N, V), as the model's own head does."""
    inner: Any = unwrap(model)
    values: Tensor = inner.get_output_embeddings()(states)
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(values / cap) * cap if cap else values


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """``mean_pool(states, batch.real)``: mean over the masked positions, (B, T, H) and (B, T) → (B, H), float32."""
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raises TrainingError where ``logits`` is not what the model itself computes (an architecture with a special head)."""
    batch = make_batch([[1, 2, 3]], [[4, 5]]).to(model.device)
    own = model(input_ids=batch.input_ids).logits[batch.real]
    ours = logits(model, hidden_states(model, batch).final[batch.real])
    if not torch.allclose(own.float(), ours.float(), atol=1e-2, rtol=1e-2):
        raise TrainingError(
            f"{type(model).__name__}'s head does more than a matrix and a soft cap (largest difference "
            f"{(own - ours).abs().max().item():.3g}); choose a teacher of another architecture"
        )
