"""The three terms: values by hand, limits, a dense float64 reference, and gradients that stay numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from factory.distill.losses import (
    LOG_NOTHING,
    LOSSES,
    bucket_log_probs,
    feature_loss,
    find_loss,
    generalized_jsd_loss,
    relation_angle_loss,
    relation_distance_loss,
    skew_kl_loss,
)
from factory.errors import SpecError

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.gkd import GKDTrainer

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
betas = pytest.mark.parametrize("beta", BETAS)


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense_reference(student: Tensor, teacher: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    """Eq. 1 of the GKD paper, in float64 and with probabilities instead of their logarithms. (N, V) → (N,)"""
    p = (teacher.double() / temperature).softmax(-1)
    q = (student.double() / temperature).softmax(-1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    if beta in (0.0, 1.0):
        return kl(p, q) if beta == 0.0 else kl(q, p)
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def bucketed(student: Tensor, teacher: Tensor, k: int, beta: float, temperature: float = 1.0) -> Tensor:
    ids = teacher.topk(k, dim=-1).indices
    ours, theirs = (bucket_log_probs(values, ids, temperature) for values in (student, teacher))
    return generalized_jsd_loss(ours, theirs, beta)


# --------------------------------------------------------------------------------------------------------- response


def test_divergence_has_its_hand_computed_values() -> None:
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # 0.1308
    backward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)  # 0.1438
    middle = 0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375))
    middle += 0.5 * (0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375))
    values = [generalized_jsd_loss(student, teacher, beta).item() for beta in (0.0, 1.0, 0.5)]
    assert values == pytest.approx([forward, backward, middle], rel=1e-5)


def test_skew_kl_has_its_hand_computed_value_and_is_kl_without_a_skew() -> None:
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    mixed = 0.75 * math.log(0.75 / 0.525) + 0.25 * math.log(0.25 / 0.475)  # 0.1 P + 0.9 Q = [0.525, 0.475]
    values = [skew_kl_loss(student, teacher, beta).item() for beta in (0.1, 0.0, 1.0)]
    assert values == pytest.approx([mixed, generalized_jsd_loss(student, teacher, 0.0).item(), 0.0], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5])
def test_every_registered_loss_is_a_divergence_per_position_with_a_finite_gradient(name: str, beta: float) -> None:
    """Also against hard targets, whose teacher gives all other tokens nothing."""
    soft, hard = logits(5, 7, seed=1).log_softmax(-1), torch.full((5, 7), LOG_NOTHING).index_fill(1, torch.tensor([2]), 0.0)
    for teacher in (soft, hard):
        student = logits(5, 7).requires_grad_()
        values = find_loss(name)(student.log_softmax(-1), teacher, beta)
        values.sum().backward()
        assert values.shape == (5,) and (values > 0).all() and student.grad is not None and student.grad.isfinite().all()
        assert find_loss(name)(teacher, teacher, beta).abs().max() < 1e-5


def test_an_unknown_loss_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SpecError, match=r"unknown loss 'hinge': distill.loss is one of generalized_jsd, skew_kl"):
        find_loss("hinge")


def test_buckets_have_their_hand_computed_values() -> None:
    values = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    buckets = bucket_log_probs(values, torch.tensor([[0, 3]]))
    torch.testing.assert_close(buckets, torch.tensor([[0.5, 0.1, 0.4]]).log())


def test_temperature_flattens_before_the_buckets_are_made() -> None:
    values = torch.tensor([[0.64, 0.32, 0.04]]).log()
    roots = torch.tensor([0.8, math.sqrt(0.32), 0.2]) / (0.8 + math.sqrt(0.32) + 0.2)
    buckets = bucket_log_probs(values, torch.tensor([[0]]), temperature=2.0)
    torch.testing.assert_close(buckets, torch.stack([roots[0], roots[1] + roots[2]]).log().unsqueeze(0))


@pytest.mark.parametrize("scale", [1.0, 4.0, 12.0], ids=["flat", "sharp", "certain"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_buckets_and_their_gradient_are_those_of_float64(scale: float, temperature: float) -> None:
    """Down to rests of e-40, which 1 - (what was kept) would lose."""
    values, ids = logits(12, 60, scale=scale), logits(12, 60, scale=scale, seed=1).topk(5).indices
    weights = logits(12, 6, seed=2)
    ours, exact = values.clone().requires_grad_(), values.double().requires_grad_()
    other = torch.ones(12, 60, dtype=torch.bool).scatter_(1, ids, False)
    log_probs = (exact / temperature).log_softmax(-1)
    rest = log_probs.masked_fill(~other, -torch.inf).logsumexp(-1, keepdim=True)
    expected = torch.cat([log_probs.gather(-1, ids), rest], dim=-1)
    buckets = bucket_log_probs(ours, ids, temperature)
    torch.testing.assert_close(buckets.double(), expected, rtol=1e-5, atol=1e-5)
    (buckets * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None and exact.grad is not None
    assert (ours.grad.double() - exact.grad).norm() <= 1e-5 * exact.grad.norm()


def test_a_bucket_that_holds_nothing_is_far_below_and_has_no_gradient() -> None:
    values = torch.tensor([[0.0, -1.0, -500.0]], requires_grad=True)
    buckets = bucket_log_probs(values, torch.tensor([[0, 1]]))
    assert LOG_NOTHING - 1 < buckets[0, 2].item() <= LOG_NOTHING
    [gradient] = torch.autograd.grad(buckets[0, 2], values)
    assert gradient.isfinite().all() and gradient[0, 2] == 0


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_divergence_of_p_with_itself_is_exactly_zero_at_the_ends(beta: float) -> None:
    values = logits(6, 50, scale=8.0)
    assert bucketed(values, values, 8, beta).abs().max() == 0


@pytest.mark.parametrize("beta", [1e-4, 0.1, 0.5, 0.9, 1 - 1e-4])
def test_divergence_of_p_with_itself_is_zero_up_to_rounding_between(beta: float) -> None:
    values = logits(6, 50, scale=8.0)
    assert bucketed(values, values, 8, beta).abs().max() < 1e-6


@betas
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_with_every_token_kept_it_is_the_dense_float64_divergence(beta: float, temperature: float) -> None:
    student, teacher = logits(20, 40, seed=1), logits(20, 40, seed=2)
    ours = bucketed(student, teacher, 40, beta, temperature)
    torch.testing.assert_close(ours.double(), dense_reference(student, teacher, beta, temperature), rtol=1e-5, atol=2e-6)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 30),
    beta=st.sampled_from(BETAS),
    scale=st.floats(0.1, 8.0),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_bucketed_divergence_never_exceeds_the_full_one(
    seed: int, k: int, beta: float, scale: float, temperature: float
) -> None:
    student, teacher = logits(4, 30, seed=seed, scale=scale), logits(4, 30, seed=seed + 1, scale=scale)
    ours = bucketed(student, teacher, k, beta, temperature).double()
    full = dense_reference(student, teacher, beta, temperature)
    assert (ours >= -1e-6).all()
    assert (ours <= full * (1 + 1e-4) + 2e-6).all()


@betas
@pytest.mark.parametrize("k", [1, 8, 40])
def test_gradient_is_the_float64_reference_s(beta: float, k: int) -> None:
    teacher = logits(10, 40, seed=2, scale=1.5)
    ids = teacher.topk(k, dim=-1).indices
    student = logits(10, 40, seed=1, scale=1.5).requires_grad_()
    bucketed(student, teacher, k, beta).sum().backward()  # type: ignore[no-untyped-call]

    def bucket_in_float64(values: Tensor) -> Tensor:
        p = values.double().softmax(-1)
        rest = p.clone().scatter(-1, ids, 0.0).sum(-1, keepdim=True)
        return torch.cat([p.gather(-1, ids), rest.clamp_min(1e-300)], dim=-1).log()

    exact = student.detach().double().requires_grad_()
    dense_reference(bucket_in_float64(exact), bucket_in_float64(teacher), beta).sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert exact.grad is not None
    error = (student.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error <= 1e-5


@betas
def test_agrees_with_trl_up_to_its_reduction(beta: float) -> None:
    student, teacher = logits(1, 12, 40, seed=1), logits(1, 12, 40, seed=2)
    labels = torch.tensor([[-100] * 4 + [7] * 8])
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta, temperature=2.0)
    ours = bucketed(student[0, 4:], teacher[0, 4:], 40, beta, temperature=2.0)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-5, atol=1e-6)  # "batchmean" there is over unmasked positions


def test_a_certain_student_and_a_certain_teacher_give_numbers() -> None:
    """Logits as far apart as bf16 models make them: no mass is left in the bucket."""
    certain = torch.full((1, 30), -60.0)
    certain[0, 3] = 60.0
    for beta in BETAS:
        student = certain.roll(5, dims=-1).requires_grad_()
        loss = bucketed(student, certain, 4, beta)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------------------- feature


def test_feature_loss_is_zero_for_states_equal_up_to_scale() -> None:
    states = logits(3, 4, 16)
    assert feature_loss(states * torch.rand(3, 4, 1).add(0.5), states).item() == pytest.approx(0, abs=1e-6)


def test_feature_loss_of_orthogonal_states_is_two_and_of_opposite_ones_four() -> None:
    one, other = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 0.2]]])
    assert feature_loss(one, other).item() == pytest.approx(2)
    assert feature_loss(one, -one).item() == pytest.approx(4)


def test_feature_loss_is_the_mean_over_examples_and_layers() -> None:
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert feature_loss(student, teacher).item() == pytest.approx(1)


# --------------------------------------------------------------------------------------------------------- relation

RELATIONS = pytest.mark.parametrize("loss", [relation_distance_loss, relation_angle_loss])
Loss = Callable[[Tensor, Tensor], Tensor]


@RELATIONS
def test_relation_is_invariant_to_rotation_shift_and_scale(loss: Loss) -> None:
    embeddings = logits(10, 6)
    rotation = torch.linalg.qr(logits(6, 6, seed=3)).Q
    assert loss(embeddings @ rotation * 3 + 1, embeddings).item() == pytest.approx(0, abs=1e-6)
    assert loss(logits(10, 6, seed=5), embeddings).item() > 1e-3


@RELATIONS
def test_relation_compares_embeddings_of_different_widths(loss: Loss) -> None:
    embeddings = logits(10, 6)
    wider = torch.cat([embeddings, torch.zeros(10, 3)], dim=-1)
    assert loss(wider, embeddings).item() == pytest.approx(0, abs=1e-6)


@RELATIONS
def test_a_single_example_has_no_relations(loss: Loss) -> None:
    student = logits(1, 5).requires_grad_()
    value = loss(student, logits(1, 3))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0 and student.grad is not None and student.grad.isfinite().all()


def test_distance_loss_of_three_points_has_its_hand_computed_value() -> None:
    student = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3, 2: standardised -√1.5, √1.5, 0
    teacher = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 3.0]])  # 2, 3, 1: 0, √1.5, -√1.5
    assert relation_distance_loss(student, teacher).item() == pytest.approx(2 * (math.sqrt(1.5) - 0.5) / 3, rel=1e-4)


def test_angle_loss_of_two_triangles_has_its_hand_computed_value() -> None:
    right = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # cosines 0, 1/√2, 1/√2: standardised -√2, 1/√2, 1/√2
    scalene = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # cosines 0, 3/5, 4/5
    deviation = math.sqrt((0.0 + 0.36 + 0.64) / 3 - (1.4 / 3) ** 2)
    ours, theirs = (-math.sqrt(2), math.sqrt(0.5), math.sqrt(0.5)), [(c - 1.4 / 3) / deviation for c in (0.0, 0.6, 0.8)]
    huber = [0.5 * (a - b) ** 2 for a, b in zip(ours, theirs, strict=True)]
    assert relation_angle_loss(right, scalene).item() == pytest.approx(sum(huber) / 3, rel=1e-4)


@RELATIONS
def test_examples_equally_far_apart_have_no_order_and_a_finite_gradient(loss: Loss) -> None:
    equilateral = torch.eye(3).requires_grad_()
    value = loss(equilateral, torch.tensor([[0.0], [1.0], [3.0]]))
    value.backward()  # type: ignore[no-untyped-call]
    assert equilateral.grad is not None
    assert torch.isfinite(equilateral.grad).all()
    assert value.item() > 0


@RELATIONS
@pytest.mark.parametrize("where", ["student", "teacher", "both", "all"])
def test_two_examples_alike_leave_gradients_of_ordinary_size(loss: Loss, where: str) -> None:
    """A distance of 0 has no derivative; a gradient of 1e12 there would throw away the whole step."""
    student, teacher = logits(8, 5, seed=1), logits(8, 5, seed=2)
    if where in ("student", "both"):
        student[3] = student[6]
    if where in ("teacher", "both"):
        teacher[3] = teacher[6]
    if where == "all":
        student[:] = student[0]
    student.requires_grad_()
    value = loss(student, teacher)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 10
