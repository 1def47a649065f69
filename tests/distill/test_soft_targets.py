"""Soft targets: what is stored is what a live pass gives, at completion positions only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import tiny
from torch import Tensor

from factory.config.schema import TeacherContext
from factory.distill.losses import bucket_log_probs, generalized_jsd_loss
from factory.distill.soft_targets import hard_targets, score, score_live
from factory.models.chat import NO_CONTEXT
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample

SEQUENCES = tiny.sequences(7)
LONG = TeacherContext(system="students answer the question of a landlord")


@torch.no_grad()
def dense(teacher: Teacher, one: TokenizedExample, prompt: list[int]) -> Tensor:
    """The whole model on one row: logits at its completion (n, V)."""
    logits: Tensor = teacher.model(input_ids=torch.tensor([[*prompt, *one.completion]])).logits
    return logits[0, len(prompt) - 1 : -1]


def test_a_live_score_is_the_teacher_with_its_context_at_completion_positions() -> None:
    teacher = tiny.teacher()
    targets = score(teacher, [s.teacher_prompt for s in SEQUENCES], [s.completion for s in SEQUENCES], 8, 1.5)
    values = torch.cat([dense(teacher, one, one.teacher_prompt) for one in SEQUENCES])
    torch.testing.assert_close(targets.ids, values.topk(8, dim=-1).indices)
    torch.testing.assert_close(targets.log_probs, bucket_log_probs(values, targets.ids, 1.5), atol=1e-4, rtol=1e-4)
    without = torch.cat([dense(teacher, one, one.prompt) for one in SEQUENCES])
    assert (without - values).abs().max() > 0.5  # the context is seen


def test_mixed_contexts_in_one_batch_give_the_targets_of_each_alone() -> None:
    teacher, mixed = tiny.teacher(), [*SEQUENCES[:3], *tiny.sequences(7, NO_CONTEXT)[3:5], *tiny.sequences(7, LONG)[5:]]
    prompts, completions = [s.teacher_prompt for s in mixed], [s.completion for s in mixed]
    together = score(teacher, prompts, completions, 8, 1.5)
    alone = [score(teacher, [s.teacher_prompt], [s.completion], 8, 1.5) for s in mixed]
    assert torch.equal(together.ids, torch.cat([one.ids for one in alone]))
    torch.testing.assert_close(together.log_probs, torch.cat([one.log_probs for one in alone]), atol=1e-4, rtol=1e-4)
    final = torch.cat([score_live(teacher, [s.teacher_prompt], [s.completion]).final for s in mixed])
    torch.testing.assert_close(score_live(teacher, prompts, completions).final, final, atol=1e-4, rtol=1e-4)


def test_live_targets_are_the_whole_distribution_of_the_teacher_with_its_context() -> None:
    teacher, prompts = tiny.teacher(), [s.teacher_prompt for s in SEQUENCES]
    completions = [s.completion for s in SEQUENCES]
    live = score_live(teacher, prompts, completions)
    values = torch.cat([dense(teacher, one, one.teacher_prompt) for one in SEQUENCES])
    span, own = slice(2, 9), torch.randn(7, 360, generator=torch.Generator().manual_seed(0))
    student, scored = live.aligned(own, span, 1.5)
    torch.testing.assert_close(scored, (values[span] / 1.5).log_softmax(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(student, (own / 1.5).log_softmax(-1))


def test_live_targets_see_what_the_student_likes_and_the_teacher_s_top_k_does_not_have() -> None:
    """Two students that differ in how they spread mass over tokens outside the teacher's top k."""
    teacher, one = tiny.teacher(), SEQUENCES[0]
    live, stored = score_live(teacher, [one.prompt], [one.completion]), score(teacher, [one.prompt], [one.completion], 8, 1.0)
    span, values = slice(0, 1), teacher.model(torch.tensor([[*one.prompt, *one.completion]])).logits[0, len(one.prompt) - 1]
    order = values.argsort(descending=True)
    swapped = values.clone()
    swapped[order[8]], swapped[order[-1]] = values[order[-1]], values[order[8]]  # the ninth token and the last
    reverse = {
        kind: generalized_jsd_loss(*targets.aligned(swapped.detach().unsqueeze(0), span, 1.0), 1.0).item()
        for kind, targets in {"whole": live, "top 8": stored}.items()
    }
    assert reverse["top 8"] == pytest.approx(0, abs=1e-5) and reverse["whole"] > 1e-3


def test_more_tokens_asked_for_than_there_are_gives_all() -> None:
    one = SEQUENCES[0]
    targets = score(tiny.teacher(), [one.teacher_prompt], [one.completion], 9999, 1.0)
    assert targets.ids.shape == (len(one.completion), 360)


def test_hard_targets_make_the_divergence_the_negative_log_likelihood() -> None:
    values = torch.randn(7, 360, generator=torch.Generator().manual_seed(0)).requires_grad_()
    completions = [[5, 9, 2], [7, 300, 41, 2]]
    targets = hard_targets(completions, tiny.CPU)
    loss = generalized_jsd_loss(bucket_log_probs(values, targets.ids), targets.log_probs, 0.0)
    exact = F.cross_entropy(values, torch.tensor([5, 9, 2, 7, 300, 41, 2]), reduction="none")
    torch.testing.assert_close(loss, exact)
    ours, theirs = (torch.autograd.grad(part.sum(), values)[0] for part in (loss, exact))
    torch.testing.assert_close(ours, theirs)
