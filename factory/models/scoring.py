"""Log-probabilities of completions, and batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factory.models.chat import split_prefix
from factory.models.forward import Batch, hidden_states, make_batch, output_head, positions_at_once
from factory.models.tokenize import TokenizedExample


@dataclass(frozen=True)
class CompletionScore:
    """How a model predicts the T tokens of one completion."""

    log_probs: np.ndarray  # (T,) float32, nats
    top1: np.ndarray  # (T,) bool: the token is the model's most likely one
    top: np.ndarray  # (T, k) float32, nats: log-probabilities of the k most likely tokens, of which k were asked for


def length_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """``length_batches([5, 1, 9], 2) == [[1, 0], [2]]``: indices, shortest first, so that batches need little padding."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [order[start : start + size] for start in range(0, len(order), size)]


def teacher_batches(examples: Sequence[TokenizedExample], size: int) -> list[list[int]]:
    """``teacher_batches(examples, 16)``: indices, examples of one context beside each other, shortest first.

    A batch then shares its context, which is computed once; contexts are told apart by their tokens' number.
    """
    contexts = [len(one.teacher_prompt) - len(one.prompt) for one in examples]
    lengths = [len(one.prompt) + len(one.completion) for one in examples]
    order = sorted(range(len(examples)), key=lambda index: (contexts[index], lengths[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def student_batches(examples: Sequence[TokenizedExample], size: int) -> list[Batch]:
    """``student_batches(examples, 16)``: what the student sees of the examples, in order."""
    parts = [examples[start : start + size] for start in range(0, len(examples), size)]
    return [make_batch([one.prompt for one in part], [one.completion for one in part]) for part in parts]


@torch.inference_mode()
def score_completions(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    batch: int = 16,
    top: int = 0,
) -> list[CompletionScore]:
    """``score_completions(model, prompts, completions, device)[0].log_probs``: one score per completion, in order.

    The head runs in float32 whatever the model's dtype or an autocast outside: bfloat16 logits tie at 4 % of positions
    (docs/design.md). A prefix that a batch of prompts shares is computed once.
    """
    head, vocabulary = output_head(model, torch.float32)
    scores: dict[int, CompletionScore] = {}
    for rows in length_batches([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], batch):
        chosen = [completions[i] for i in rows]
        prefix, rest = split_prefix([prompts[i] for i in rows])
        padded = make_batch(rest, chosen).to(device)
        states = hidden_states(model, padded, prefix).final[padded.predicts]  # (N, H)
        targets = torch.tensor([token for completion in chosen for token in completion], device=device)  # (N,)
        lengths, size = [len(completion) for completion in chosen], positions_at_once(vocabulary)
        parts = [_score(head(part), wanted, top) for part, wanted in zip(states.split(size), targets.split(size), strict=True)]
        columns = [torch.cat(values).cpu().split(lengths) for values in zip(*parts, strict=True)]
        scores |= {i: CompletionScore(*(column[n].numpy() for column in columns)) for n, i in enumerate(rows)}
    return [scores[i] for i in range(len(prompts))]


def completion_log_probs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    batch: int = 16,
) -> list[np.ndarray]:
    """``completion_log_probs(model, prompts, completions, device)[0].sum()``: per completion (T,) log-probabilities in nats."""
    return [score.log_probs for score in score_completions(model, prompts, completions, device, batch)]


def _score(logits: Tensor, targets: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, V) float32 logits and (N,) targets → (N,) log-probabilities, (N,) whether the target is the top one, (N, top)."""
    log_probs = logits.log_softmax(dim=-1)
    of_targets = log_probs.gather(-1, targets.unsqueeze(-1))[:, 0]
    return of_targets, log_probs.argmax(dim=-1) == targets, log_probs.topk(top, dim=-1).values
