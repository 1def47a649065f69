"""Which terms of the objective steer a training: the norm of each term's gradient, as a share of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn

MIN_SHARE = 0.02  # of the gradient: a term below it hardly changes the student
STEPS_PER_MEASUREMENT = 50  # a measurement costs one to one and a half steps
MAX_MEASUREMENTS = 3
SHARE_OF = "gradient_share_of_"  # begins the names of shares in the trainer's log


def measured_steps(steps: int) -> frozenset[int]:
    """``measured_steps(300) == {50, 150, 250}``: the steps, counted from 0, at which the shares are measured.

    They are the middles of up to three equal parts of the training. The first step would say little of an adapter: its B is
    still 0, so that A has no gradient.
    """
    parts = min(MAX_MEASUREMENTS, max(1, steps // STEPS_PER_MEASUREMENT))
    return frozenset(steps * (2 * part + 1) // (2 * parts) for part in range(parts))


def gradient_shares(terms: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, float]:
    """``gradient_shares({"response": loss, "relation": other}, trained)``: each gradient's norm over the sum of the norms.

    Terms (), weighted. The graph is kept and no ``grad`` is touched, so a training step can follow. Empty where no term has a
    gradient, or one that is not finite.
    """
    norms = {name: _gradient_norm(term, parameters) for name, term in terms.items()}
    total = sum(norms.values())
    return {name: norm / total for name, norm in norms.items()} if 0 < total < float("inf") else {}


def _gradient_norm(term: Tensor, parameters: Sequence[Tensor]) -> float:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]).item()


def median_shares(log: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """``median_shares(trainer.state.log_history)["relation"]``: of each term, over the rows that have its share."""
    measured: dict[str, list[float]] = {}
    for row in log:
        for key, value in row.items():
            if key.startswith(SHARE_OF):
                measured.setdefault(key.removeprefix(SHARE_OF), []).append(value)
    return {name: median(values) for name, values in measured.items()}


def gradient_warnings(shares: Mapping[str, float], section: str) -> list[str]:
    """``gradient_warnings({"response": 0.996, "relation": 0.004}, "distill")``: one line per negligible term."""
    return [
        f"the {name} term has {100 * share:.2g} % of the gradient: raise {section}.{name}, or leave the term out with 0"
        for name, share in shares.items()
        if share < MIN_SHARE
    ]
