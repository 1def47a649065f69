"""The teacher's soft targets at every completion position, and its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factory.distill.losses import LOG_NOTHING, bucket_log_probs
from factory.models.chat import split_prefix
from factory.models.forward import hidden_states, logits, make_batch, mean_pool, positions_at_once
from factory.models.teacher import Teacher

FEATURE_DEPTHS = (0.25, 0.5, 0.75, 1.0)  # relative depths at which the teacher's states are kept


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's distribution at N completion positions: k tokens and the mass of all others."""

    ids: Tensor  # (N, k) int64
    log_probs: Tensor  # (N, k + 1) float32; the last column is all other tokens together
    states: Tensor  # (B, M, H) float32: at FEATURE_DEPTHS, the mean over each completion


def feature_layers(depth: int) -> list[int]:
    """``feature_layers(30)``: indices into the hidden states at FEATURE_DEPTHS; 0 is the embedding."""
    return [max(1, round(share * depth)) for share in FEATURE_DEPTHS]


@torch.no_grad()
def score(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    top_k: int,
    temperature: float,
) -> SoftTargets:
    """``score(teacher, prompts, completions, 64, 1.0)``: one pass of the teacher over a batch, k = min(top_k, V)."""
    prefix, rest = split_prefix(prompts)
    batch = make_batch(rest, completions).to(teacher.device)
    states = hidden_states(teacher.model, batch, prefix)
    kept: list[tuple[Tensor, Tensor]] = []
    for part in states.final[batch.predicts].split(positions_at_once(teacher.config.get_text_config().vocab_size)):
        values = logits(teacher.model, part)
        top = values.topk(min(top_k, values.shape[-1]), dim=-1).indices
        kept.append((top, bucket_log_probs(values, top, temperature)))
    ids, log_probs = (torch.cat(parts) for parts in zip(*kept, strict=True))
    chosen = [mean_pool(states.layers[i], batch.predicts) for i in feature_layers(len(states.layers) - 1)]
    return SoftTargets(ids, log_probs, torch.stack(chosen, dim=1))


def hard_targets(completions: Sequence[Sequence[int]], device: torch.device) -> SoftTargets:
    """``hard_targets(completions, device)``: all mass on the completion; the loss is then that of SFT."""
    ids = torch.tensor([token for completion in completions for token in completion], device=device).unsqueeze(-1)
    log_probs = torch.tensor([[0.0, LOG_NOTHING]], device=device).expand(len(ids), 2)
    return SoftTargets(ids, log_probs, torch.zeros(len(completions), 0, 0, device=device))
