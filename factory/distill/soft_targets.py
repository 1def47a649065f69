"""The teacher's distributions at every completion position.

``SoftTargets`` hold k tokens a position and can be stored; ``LiveTargets`` hold the whole distribution, of text that the
student has just sampled and that is scored once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factory.distill.losses import LOG_NOTHING, bucket_log_probs
from factory.models.chat import split_prefix
from factory.models.forward import hidden_states, logits, make_batch, positions_at_once
from factory.models.teacher import Teacher


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's distribution at N completion positions: k tokens and the mass of all others."""

    ids: Tensor  # (N, k) int64
    log_probs: Tensor  # (N, k + 1) float32; the last column is all other tokens together

    def aligned(self, logits: Tensor, span: slice, temperature: float) -> tuple[Tensor, Tensor]:
        """``student, teacher = targets.aligned(student_logits, slice(0, 300), 1.0)``: log-probabilities over the same events.

        (n, V) logits at the positions of ``span`` → (n, k + 1) and (n, k + 1).
        """
        return bucket_log_probs(logits, self.ids[span], temperature), self.log_probs[span]


@dataclass(frozen=True)
class LiveTargets:
    """The teacher's whole distribution at N completion positions, as its final states: logits are made where they are used.

    With β near 1 the loss is the student's to decide: where it likes a token that is not among the teacher's top k, only the
    whole distribution says how far off it is.
    """

    final: Tensor  # (N, H)
    head: Callable[[Tensor], Tensor]  # (n, H) → (n, V)

    def aligned(self, logits: Tensor, span: slice, temperature: float) -> tuple[Tensor, Tensor]:
        """``student, teacher = targets.aligned(student_logits, slice(0, 300), 1.0)``: (n, V) log-probabilities of both."""
        with torch.no_grad():
            teacher = self.head(self.final[span]).float()
        return (logits.float() / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)


@torch.no_grad()
def score(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    top_k: int,
    temperature: float,
) -> SoftTargets:
    """``score(teacher, prompts, completions, 64, 1.0)``: one pass of the teacher over a batch, k = min(top_k, V)."""
    final = _final_states(teacher, prompts, completions)
    kept: list[tuple[Tensor, Tensor]] = []
    for part in final.split(positions_at_once(teacher.config.get_text_config().vocab_size)):
        values = logits(teacher.model, part)
        top = values.topk(min(top_k, values.shape[-1]), dim=-1).indices
        kept.append((top, bucket_log_probs(values, top, temperature)))
    ids, log_probs = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return SoftTargets(ids, log_probs)


@torch.no_grad()
def score_live(teacher: Teacher, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> LiveTargets:
    """``score_live(teacher, prompts, sampled)``: one pass of the teacher over a batch; its whole distributions."""
    return LiveTargets(_final_states(teacher, prompts, completions), lambda part: logits(teacher.model, part))


def _final_states(teacher: Teacher, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
    """(N, H): those that predict the completions."""
    prefix, rest = split_prefix(prompts)
    batch = make_batch(rest, completions).to(teacher.device)
    return hidden_states(teacher.model, batch, prefix).final[batch.predicts]


def hard_targets(completions: Sequence[Sequence[int]], device: torch.device) -> SoftTargets:
    """``hard_targets(completions, device)``: all mass on the completion; the loss is then that of SFT."""
    ids = torch.tensor([token for completion in completions for token in completion], device=device).unsqueeze(-1)
    log_probs = torch.tensor([[0.0, LOG_NOTHING]], device=device).expand(len(ids), 2)
    return SoftTargets(ids, log_probs)
