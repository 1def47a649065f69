"""Hidden states of teacher and student at mapped layers, token by token: what the feature term compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from factory.models.base import Base
from factory.models.chat import split_prefix
from factory.models.forward import Batch, States, hidden_states, make_batch
from factory.models.teacher import Teacher

FEATURE_DEPTHS = (0.25, 0.5, 0.75, 1.0)  # relative depths at which the teacher's states are taught


def feature_layers(depth: int) -> list[int]:
    """``feature_layers(30)``: indices into the hidden states at FEATURE_DEPTHS; 0 is the embedding."""
    return [max(1, round(share * depth)) for share in FEATURE_DEPTHS]


def mapped_layers(kept: Sequence[int] | None, teacher_depth: int, student_depth: int) -> list[int]:
    """``mapped_layers([0, 2, 5, 9], 10, 4) == [1, 2, 3, 4]``: the student's hidden state for each of ``feature_layers``.

    ``kept`` are the layers of the *training* teacher that a pruned student has: a teacher state is matched with the last kept
    layer at or below it. None is a model of its own: it is matched at the same relative depth. Index 0 is the embedding.
    """
    layers = feature_layers(teacher_depth)
    if kept is None:
        return [max(1, round(layer / teacher_depth * student_depth)) for layer in layers]
    return [max(1, sum(number < layer for number in kept)) for layer in layers]


def feature_projection(base: Base, teacher: Teacher) -> nn.Module:
    """``feature_projection(base, teacher)``: from the student's width to the teacher's; the identity where they are equal."""
    student_width = base.model.config.get_text_config().hidden_size
    teacher_width = teacher.config.get_text_config().hidden_size
    return nn.Identity() if student_width == teacher_width else nn.Linear(student_width, teacher_width, bias=False)


def shared_tokens(prompts: Sequence[Sequence[int]], longer: Sequence[Sequence[int]]) -> list[int]:
    """``shared_tokens([[1, 5, 6]], [[1, 9, 5, 6]]) == [2]``: how many tokens at the end of each prompt are also at the other's.

    A prompt's first token is left out: a model parks its attention there, and shown a context it does so elsewhere.
    """
    return [_common_end(prompt[1:], other) for prompt, other in zip(prompts, longer, strict=True)]


def _common_end(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count


def last_states(states: States, batch: Batch, counts: Sequence[int], layers: Sequence[int]) -> Tensor:
    """``last_states(states, batch, [9, 4], layers)``: (P, M, H), of so many last tokens of each row, at M layers."""
    lengths = batch.real.sum(dim=1, keepdim=True)  # (B, 1)
    first = lengths - torch.tensor(counts, device=lengths.device).unsqueeze(1)
    columns = torch.arange(batch.real.shape[1], device=lengths.device)
    chosen = batch.real & (columns >= first)  # (B, T), P in all
    return torch.stack([states.layers[layer][chosen] for layer in layers], dim=1)


@torch.no_grad()
def teacher_features(
    teacher: Teacher,
    teacher_prompts: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
) -> tuple[Tensor, list[int]]:
    """``states, counts = teacher_features(teacher, teacher_prompts, prompts, completions)``: one pass, with its contexts.

    (P, M, H) at ``feature_layers``, of the last ``counts`` tokens of each row: those that teacher and student both see.
    """
    prefix, rest = split_prefix(teacher_prompts)
    shared = shared_tokens(prompts, rest)
    counts = [count + len(completion) for count, completion in zip(shared, completions, strict=True)]
    batch = make_batch(rest, completions).to(teacher.device)
    states = hidden_states(teacher.model, batch, prefix)
    return last_states(states, batch, counts, feature_layers(len(states.layers) - 1)), counts
