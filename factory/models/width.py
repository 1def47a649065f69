"""Width pruning: the neurons of every MLP that are active least leave, and what is left is fitted to what the MLP gave before.

prune_width(model, 1024, calibration_batches(examples, device))  # in place; how many MLPs were fitted
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from factory.errors import TrainingError
from factory.models.calibration import CalibrationBatch, LayerWalk, begin_walk, decoder_layers

HELD_OUT = 4  # of every so many examples of a batch one is held out
# Penalty of a change in a neuron's weights, as a share of the neuron's own energy. With less of it each MLP alone comes nearer
# to what it gave, on other examples too, but the model moves away: its MLPs are not given what they were fitted on
# (docs/log.md, "width").
RIDGE = 1.0
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@torch.no_grad()
def prune_width(model: PreTrainedModel, n: int, batches: Sequence[CalibrationBatch], *, fit: bool = True) -> int:
    """``prune_width(model, 1024, batches)``: in place, n neurons of every MLP stay; the number of MLPs that were fitted.

    A neuron's importance is the mean of its absolute activation, the input of the down projection, over the examples' tokens
    (Minitron, arXiv 2407.14679, section 2.2, and 2408.11796; its code takes such means by example, then their norm over
    examples). A context is seen, but its tokens do not count. Then the down projection is fitted to the whole MLP's output by
    ridge regression on three quarters of the examples, and the result taken where its squared error on the last quarter is
    below that of the weights as they were; ``fit=False`` leaves them so. Each MLP is given what the whole model gives it.
    Raises: TrainingError for an MLP that is not gated, or one with no more than n neurons.
    """
    check_gated(model, n)
    layers, walks, fitted = decoder_layers(model), [begin_walk(model, batch) for batch in batches], 0
    for i, layer in enumerate(layers):
        walks, learnt, held_out = _run(walks, i)
        mlp: Any = layer.mlp
        keep = (learnt.magnitude + held_out.magnitude).topk(n).indices.sort().values
        down = mlp.down_proj.weight.double()  # (H, I)
        weights = down[:, keep]
        if fit:
            better = _fitted(down, keep, learnt.gram)
            if _error(down, keep, better, held_out.gram) < _error(down, keep, weights, held_out.gram):
                weights, fitted = better, fitted + 1
        _keep_neurons(mlp, keep, weights)
    model.config.get_text_config().intermediate_size = n
    return fitted


def check_gated(model: PreTrainedModel, n: int) -> None:
    """``check_gated(model, 1024)``. Raises: TrainingError for an MLP that is not gated, or one with no more than n neurons."""
    for layer in decoder_layers(model):
        mlp: Any = getattr(layer, "mlp", None)
        if not all(isinstance(getattr(mlp, name, None), nn.Linear) for name in PROJECTIONS):
            raise TrainingError(
                f"{type(model).__name__}: only gated MLPs ({', '.join(PROJECTIONS)}) can be made narrower, not "
                f"{type(mlp).__name__}; prune `layers` instead"
            )
        found = mlp.down_proj.in_features
        if n >= found:
            raise TrainingError(f"an MLP of {n} neurons cannot be cut from a teacher's of {found}; keep fewer")


@dataclass(frozen=True)
class _Moments:
    """One MLP's activations a over some tokens, summed."""

    magnitude: Tensor  # (I,) float64, of |a|
    gram: Tensor  # (I, I) float64, of a aᵀ

    @classmethod
    def of(cls, activations: Tensor) -> _Moments:
        """(tokens, I), any float."""
        values = activations.double()
        return cls(values.abs().sum(dim=0), values.T @ values)

    @classmethod
    def total(cls, parts: Sequence[_Moments]) -> _Moments:
        magnitude, gram = parts[0].magnitude, parts[0].gram
        for part in parts[1:]:
            magnitude, gram = magnitude + part.magnitude, gram + part.gram
        return cls(magnitude, gram)


def _run(walks: Sequence[LayerWalk], i: int) -> tuple[list[LayerWalk], _Moments, _Moments]:
    """Every walk after the i-th layer, and the moments of its MLP: of the examples that are learnt, and of those held out."""
    after, learnt, held_out = [], [], []
    for walk in walks:
        one, activations = _activations(walk, i)
        after.append(one)
        held = (torch.arange(len(activations), device=activations.device) % HELD_OUT == HELD_OUT - 1).unsqueeze(-1)  # (B, 1)
        learnt.append(_Moments.of(activations[walk.batch.real & ~held]))
        held_out.append(_Moments.of(activations[walk.batch.real & held]))
    return after, _Moments.total(learnt), _Moments.total(held_out)


def _activations(walk: LayerWalk, i: int) -> tuple[LayerWalk, Tensor]:
    """The walk after the i-th layer, and what its down projection was given for the rows, (B, T, I)."""
    seen: list[Tensor] = []  # of the context, where there is one, and of the rows
    mlp: Any = decoder_layers(walk.model)[i].mlp
    handle = mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        after = walk.through([i])
    finally:
        handle.remove()
    return after, seen[-1]


def _fitted(down: Tensor, keep: Tensor, gram: Tensor) -> Tensor:
    """(H, n): the weights of the kept neurons, changed to give what those that leave gave, by ridge regression.

    Of the gram matrix G of all activations, kept K and leaving L, and the weights W: W_K + W_L G_LK (G_KK + λ diag G_KK)⁻¹.
    """
    leave = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    leave[keep] = False
    normal, missing = gram[keep][:, keep], gram[keep][:, leave] @ down[:, leave].T  # (n, n), (n, H)
    ridge = RIDGE * normal.diagonal() + torch.finfo(normal.dtype).tiny  # of a neuron that is never active too
    change: Tensor = torch.linalg.solve(normal + ridge.diag(), missing).T
    return down[:, keep] + change


def _error(down: Tensor, keep: Tensor, weights: Tensor, gram: Tensor) -> float:
    """Squared error of the output with ``weights`` of the kept neurons, summed over the tokens of ``gram``."""
    missing = down.clone()
    missing[:, keep] -= weights
    return float(((missing @ gram) * missing).sum())


def _keep_neurons(mlp: Any, keep: Tensor, down: Tensor) -> None:
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight = _parameter(projection.weight[keep])
        if projection.bias is not None:
            projection.bias = _parameter(projection.bias[keep])
        projection.out_features = len(keep)
    mlp.down_proj.weight = _parameter(down.to(mlp.down_proj.weight.dtype))
    mlp.down_proj.in_features = mlp.intermediate_size = len(keep)


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone().contiguous())
