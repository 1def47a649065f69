"""What the teacher knows of examples: soft targets at every completion position, and hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factory.config.schema import TeacherContext
from factory.distill.chunked_loss import positions_at_once
from factory.distill.losses import LOG_NOTHING, bucket_log_probs
from factory.models.chat import completion_ids, prompt_ids
from factory.models.forward import Batch, hidden_states, logits, make_batch, mean_pool
from factory.models.teacher import Teacher, split_prefix

LONGEST_COMPLETION = 512  # tokens; a source's own completions are cut here, on the right
FEATURE_DEPTHS = (0.25, 0.5, 0.75, 1.0)  # of the teacher's layers, whose pooled states are kept


@dataclass(frozen=True)
class TokenizedExample:
    """One example in ids: what the student sees, what the teacher sees, and the completion that both predict."""

    prompt: list[int]
    teacher_prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's distribution at N completion positions: k tokens and the mass of all others."""

    ids: Tensor  # (N, k) int64
    log_probs: Tensor  # (N, k + 1) float32; the last column is the bucket of all other tokens
    states: Tensor  # (B, M, H) float32: states at FEATURE_DEPTHS, mean over each example's completion


def tokenize_examples(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, context: TeacherContext
) -> list[TokenizedExample]:
    """``tokenize_examples(dataset["train"], tokenizer, domain.teacher_context)``: rows of a data set as ids."""
    return [
        TokenizedExample(
            prompt_ids(tokenizer, row["prompt"]),
            prompt_ids(tokenizer, row["prompt"], context),
            completion_ids(tokenizer, row["completion"], ends=bool(row["prompt"]))[:LONGEST_COMPLETION],
        )
        for row in rows
    ]


def feature_layers(depth: int) -> list[int]:
    """``feature_layers(30)``: indices into hidden states (0 is the embedding) at FEATURE_DEPTHS."""
    return [max(1, round(share * depth)) for share in FEATURE_DEPTHS]


@torch.no_grad()
def score(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    top_k: int,
    temperature: float,
) -> SoftTargets:
    """``score(teacher, prompts, completions, 64, 1.0)``: the teacher's live pass over one batch."""
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
    """``hard_targets(completions, device)``: all mass on the completion itself; the divergence is then SFT's loss."""
    ids = torch.tensor([token for completion in completions for token in completion], device=device).unsqueeze(-1)
    log_probs = torch.tensor([[0.0, LOG_NOTHING]], device=device).expand(len(ids), 2)
    return SoftTargets(ids, log_probs, torch.zeros(len(completions), 0, 0, device=device))


def batches_of(sequences: Sequence[TokenizedExample], size: int) -> list[Batch]:
    """``batches_of(sequences, 16)``: the student's view of a data set, in order."""
    parts = [sequences[i : i + size] for i in range(0, len(sequences), size)]
    return [make_batch([s.prompt for s in part], [s.completion for s in part]) for part in parts]
