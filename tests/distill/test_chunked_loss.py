"""The chunked response term against the plain one in float64: the same value and the same gradients, whatever the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factory.distill.chunked_loss import Divergence, response_loss
from factory.distill.losses import bucket_log_probs, generalized_jsd_loss
from factory.distill.soft_targets import SoftTargets

H, V, K, N = 16, 97, 8, 23


def plain(logits: Tensor, ids: Tensor, targets: Tensor, beta: float, temperature: float) -> Tensor:
    """GKD's divergence over k tokens and the bucket of the others, in float64, one position after the other."""
    losses = []
    for row, kept, log_p in zip(logits.double(), ids, targets.double(), strict=True):
        q = F.softmax(row / temperature, dim=-1)
        other = torch.ones(len(row), dtype=torch.bool).index_fill(0, kept, False)
        q = torch.cat([q[kept], q[other].sum()[None]])
        p = log_p.exp()
        if beta == 0:
            losses.append((p * (log_p - q.log())).sum())
        elif beta == 1:
            losses.append((q * (q.log() - log_p)).sum())
        else:
            mixed = beta * p + (1 - beta) * q
            losses.append(beta * (p * (log_p - mixed.log())).sum() + (1 - beta) * (q * (q.log() - mixed.log())).sum())
    return torch.stack(losses).mean()


def given(seed: int = 0, vocabulary: int = V) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(N, H, generator=generator)
    teacher = torch.randn(N, vocabulary, generator=generator).mul(2).log_softmax(-1)
    ids = teacher.topk(K).indices
    kept = teacher.gather(-1, ids)
    return states, ids, torch.cat([kept, (1 - kept.exp().sum(-1, keepdim=True)).log()], dim=-1)


def divergence(ids: Tensor, targets: Tensor, beta: float, temperature: float = 1.0) -> Divergence:
    soft = SoftTargets(ids, targets)
    return lambda logits, span: generalized_jsd_loss(*soft.aligned(logits, span, temperature), beta)


class LoraHead(nn.Module):
    """A frozen head with an adapter on it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(H, V, bias=False).requires_grad_(False)
        self.a, self.b = nn.Linear(H, 2, bias=False), nn.Linear(2, V, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.frozen(states) + self.b(self.a(states))
        return result


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    "make_head", [lambda: nn.Linear(H, V, bias=False), LoraHead, lambda: nn.Linear(H, V).requires_grad_(False)]
)
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
def test_value_and_gradients_are_those_of_the_plain_way(
    beta: float, make_head: Callable[[], Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.models.forward.LOGITS", rows * V)
    torch.manual_seed(3)
    head = make_head()
    states, ids, targets = given()
    parameters = [p for p in head.parameters() if p.requires_grad]
    states.requires_grad_()
    loss = response_loss(head, list(head.parameters()), states, divergence(ids, targets, beta, 1.5), vocabulary=V)
    found = torch.autograd.grad(loss * 3, [states, *parameters])  # a weight on the term
    exact_head = make_head()
    exact_head.load_state_dict(head.state_dict())
    exact_head.double()
    exact_states = states.detach().double().requires_grad_()
    exact = plain(exact_head(exact_states), ids, targets, beta, 1.5)
    references = torch.autograd.grad(exact * 3, [exact_states, *(p for p in exact_head.parameters() if p.requires_grad)])
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    for ours, theirs in zip(found, references, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_a_head_tied_with_the_embedding_gets_both_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.models.forward.LOGITS", 4 * V)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(V, H))
    tokens = torch.randint(V, (N,))
    _, ids, targets = given()
    loss = response_loss(
        lambda s: F.linear(s, weight),
        [weight],
        F.embedding(tokens, weight),
        divergence(ids, targets, 0.0),
        vocabulary=V,
    )
    [found] = torch.autograd.grad(loss, [weight])
    double = weight.detach().double().requires_grad_()
    exact = plain(F.linear(F.embedding(tokens, double), double), ids, targets, 0.0, 1.0)
    assert relative_error(found, torch.autograd.grad(exact, [double])[0]) < 1e-5


def test_gradients_of_two_steps_add_up() -> None:
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=False)
    for seed in (0, 1):
        states, ids, targets = given(seed)
        loss = response_loss(head, [head.weight], states, divergence(ids, targets, 0.5), vocabulary=V)
        (loss / 2).backward()
    exact = nn.Linear(H, V, bias=False).double()
    exact.weight.data = head.weight.detach().double()
    both = [plain(exact(s.double()), i, t, 0.5, 1.0) for s, i, t in (given(0), given(1))]
    (sum(both) / 2).backward()
    assert head.weight.grad is not None and exact.weight.grad is not None
    assert relative_error(head.weight.grad, exact.weight.grad) < 1e-5


@pytest.mark.parametrize(("beta", "least"), [(0.0, 1e-9), (1.0, 1e-9), (0.5, 1e-6), (0.1, 1e-6)])
def test_a_distribution_with_itself_is_no_loss(beta: float, least: float) -> None:
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=False)
    states, _, _ = given()
    log_probs = head(states).detach().log_softmax(-1)
    ids = log_probs.topk(K).indices
    exact = bucket_log_probs(head(states).detach(), ids)
    loss = response_loss(head, [], states, divergence(ids, exact, beta), vocabulary=V)
    assert abs(loss.item()) <= least


def test_no_gradient_is_kept_where_none_is_wanted() -> None:
    head = nn.Linear(H, V, bias=False).requires_grad_(False)
    states, ids, targets = given()
    loss = response_loss(head, [head.weight], states, divergence(ids, targets, 0.0), vocabulary=V)
    assert not loss.requires_grad and loss.isfinite()
