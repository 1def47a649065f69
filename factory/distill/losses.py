"""The three terms of the objective: response, feature and relation. Pure functions, computed in float32.

The response term has a choice of divergences, by the name that ``distill.loss`` gives: ``find_loss("generalized_jsd")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from factory.errors import SpecError

LOG_NOTHING = -80.0  # log-probability of an empty bucket, in nats
ANGLE_WEIGHT = 2.0  # of angles relative to distances: RKD-DA of Park et al. 2019
MIN_REST = math.exp(LOG_NOTHING)  # relative to the most likely token; still a normal float32 number


Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: dict[str, Loss] = {}  # by the name that ``distill.loss`` gives


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """``@register_loss("skew_kl")``: makes ``distill: {loss: skew_kl}`` train with the function below.

    It is given log-probabilities of student and teacher over the same K events, (N, K) each, whose rows sum to one, and
    ``distill.beta``; it returns the divergence at each position in nats, (N,), with a gradient to the student. Stored targets
    have the k tokens and all others as events; text that the teacher scores live has the whole vocabulary.
    """

    def register(loss: Loss) -> Loss:
        LOSSES[name] = loss
        return loss

    return register


def find_loss(name: str) -> Loss:
    """``find_loss("skew_kl")``. Raises: SpecError that lists the losses."""
    if name not in LOSSES:
        raise SpecError(f"unknown loss {name!r}: distill.loss is one of {', '.join(sorted(LOSSES))}")
    return LOSSES[name]


def bucket_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """``bucket_log_probs(student_logits, soft_targets.ids)``: log-probabilities of k tokens and of all others together.

    logits (N, V), distinct ids (N, k) → (N, k + 1). The last column holds all the mass outside the k tokens, so each row is a
    whole distribution, and the divergence of two bucketed distributions never exceeds the full one (data-processing
    inequality). Renormalising the top k instead biases the student (arXiv 2503.16870).
    """
    buckets: Tensor = _BucketLogProbs.apply(logits, ids, temperature)  # type: ignore[no-untyped-call]
    return buckets


class _BucketLogProbs(torch.autograd.Function):
    """Hand-written: one (N, V) tensor is kept and two are written, 1 to 2 % faster than autograd (docs/log.md).

    With x = logits / T - max, R = Σ exp(x) over the other tokens and Z = R + Σ exp(x) over the k tokens, the buckets are
    x - log Z and log R - log Z. R is summed directly, which needs no special case where it is small. Differentiable once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        values = logits.to(torch.float32, copy=True).sub_(logits.amax(dim=-1, keepdim=True).float())
        if temperature != 1:
            values.div_(temperature)
        kept = values.gather(-1, ids)  # (N, k)
        others = values.exp_().scatter_(-1, ids, 0.0)  # (N, V)
        rest = others.sum(dim=-1, keepdim=True)  # (N, 1)
        total = rest + kept.exp().sum(dim=-1, keepdim=True)
        shown = rest.clamp_min(MIN_REST)  # Z ≤ V, so an empty bucket is far below any other
        buckets = torch.cat([kept, shown.log()], dim=-1) - total.log()
        ctx.save_for_backward(others, ids, buckets, torch.where(rest > MIN_REST, rest, torch.inf), total)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return buckets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        others, ids, buckets, rest, total = ctx.saved_tensors
        outer = outer / ctx.temperature
        total_outer = outer.sum(dim=-1, keepdim=True)  # (N, 1)
        gradient = others * (outer[:, -1:] / rest - total_outer / total)
        gradient.scatter_(-1, ids, outer[:, :-1] - buckets[:, :-1].exp() * total_outer)
        return gradient.to(ctx.dtype), None, None


@register_loss("generalized_jsd")
def generalized_jsd_loss(student_log_probs: Tensor, teacher_log_probs: Tensor, beta: float) -> Tensor:
    """``generalized_jsd_loss(student, teacher, beta=0.5)``: divergence per position in nats, (N, K) and (N, K) → (N,).

    Generalized Jensen-Shannon divergence, Eq. 1 of Agarwal et al. 2023 (GKD, arXiv 2306.13649), with M = βP + (1-β)Q for
    teacher P and student Q:  β KL(P‖M) + (1-β) KL(Q‖M).  As in trl, β = 0 is KL(P‖Q) and β = 1 is KL(Q‖P).
    """
    student, teacher = student_log_probs.float(), teacher_log_probs.float()
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = _mixture(teacher, student, beta)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


@register_loss("skew_kl")
def skew_kl_loss(student_log_probs: Tensor, teacher_log_probs: Tensor, beta: float) -> Tensor:
    """``skew_kl_loss(student, teacher, beta=0.1)``: KL(P ‖ βP + (1-β)Q) per position in nats, (N, K) and (N, K) → (N,).

    Skew KL divergence of Ko et al. 2024 (DistiLLM, arXiv 2402.03898), whose alpha is β here: β = 0 is KL(P‖Q), and a small
    β keeps the gradient small where the student gives a likely token almost nothing.
    """
    student, teacher = student_log_probs.float(), teacher_log_probs.float()
    return _kl(teacher, _mixture(teacher, student, beta))


def _mixture(p: Tensor, q: Tensor, weight: float) -> Tensor:
    """Log-probabilities of weight · p + (1 - weight) · q."""
    weights = torch.tensor([weight, 1 - weight], device=p.device).log()
    return torch.logaddexp(p + weights[0], q + weights[1])


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) of log-probabilities over the last dimension."""
    return (p.exp() * (p - q)).sum(dim=-1)


def feature_loss(student_states: Tensor, teacher_states: Tensor) -> Tensor:
    """``feature_loss(student, teacher)``: squared distance of unit-length hidden states, (B, M, H) and (B, M, H) → ().

    M mapped layers; each state is the mean over a completion. The hints of Romero et al. 2014 (FitNets, arXiv 1412.6550) on
    unit vectors, so that no layer's scale dominates. Where widths differ, project the student's states first.
    """
    student = F.normalize(student_states.float(), dim=-1)
    teacher = F.normalize(teacher_states.float(), dim=-1)
    return (student - teacher).square().sum(dim=-1).mean()


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``relation_loss(states, embeddings)``: RKD-DA on unit vectors, (B, Hs) and (B, Ht) → ()."""
    student, teacher = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
    return relation_distance_loss(student, teacher) + ANGLE_WEIGHT * relation_angle_loss(student, teacher)


def relation_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``relation_distance_loss(student, teacher)``: are the same pairs far apart, (B, Hs) and (B, Ht) → ().

    After RKD-D, Eq. 4 and 5 of Park et al. 2019 (arXiv 1904.05068): Huber loss between pairwise distances. The
    paper divides distances by the batch mean; here both sides are standardised (mean 0, deviation 1), because a language
    model's states lie in a narrow cone: matching the spread of distances hurt the response term without ordering the pairs
    (docs/log.md). Widths may differ. The loss is 0 where the distances agree up to an increasing linear map, and for fewer
    than three examples.
    """
    if len(student) < 3:
        return student.float().sum() * 0  # a single distance has no order
    return F.smooth_l1_loss(_standardize(F.pdist(student.float())), _standardize(F.pdist(teacher.float())))


def relation_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``relation_angle_loss(student, teacher)``: do triplets form the same angles, (B, Hs) and (B, Ht) → ().

    After RKD-A, Eq. 6 and 7 of Park et al. 2019 (arXiv 1904.05068): Huber loss between the cosines of all angles of three
    different examples, standardised like the distances.
    """
    if len(student) < 3:
        return student.float().sum() * 0
    return F.smooth_l1_loss(_standardize(_angles(student.float())), _standardize(_angles(teacher.float())))


def _standardize(values: Tensor) -> Tensor:
    """(P,) → (P,) with mean 0 and deviation 1; values that are all equal become 0."""
    centred = values - values.mean()
    scale = values.square().mean().clamp_min(1e-24)
    return centred / (centred.square().mean() + 1e-6 * scale).sqrt()


def _angles(embeddings: Tensor) -> Tensor:
    """(B, H) → (B(B-1)(B-2)/2,): cosines of the angle at j between i and k, each once."""
    edges = embeddings.unsqueeze(0) - embeddings.unsqueeze(1)  # (B, B, H), [j, i] = i - j
    lengths = edges.norm(dim=-1, keepdim=True)
    # Identical examples form no angle: cosine 0 and no gradient, where F.normalize would give a gradient of 1e12.
    edges = edges / lengths.masked_fill(lengths == 0, torch.inf)
    cosines = torch.bmm(edges, edges.transpose(1, 2))  # [j, i, k]
    index = torch.arange(len(embeddings), device=embeddings.device)
    j, i, k = index[:, None, None], index[None, :, None], index[None, None, :]
    return cosines[(i < k) & (i != j) & (k != j)]
