"""Layer pruning: remove, again and again, the layer whose absence changes the predictions least.

order = removal_order(model, examples, 20)
prune_layers(model, [i for i in range(30) if i not in order])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from factory.errors import TrainingError
from factory.models.calibration import LayerWalk, begin_walk, calibration_batches, decoder_layers, kl_sum
from factory.models.forward import logits, positions_at_once
from factory.models.tokenize import TokenizedExample

SCREENED = 16  # examples on which every layer is left out once a round
FINALISTS = 3  # layers of a round that are left out on the other examples, too


@torch.no_grad()
def removal_order(
    model: PreTrainedModel,
    examples: Sequence[TokenizedExample],
    n: int,
    progress: Callable[[int], None] = lambda layers: None,
) -> list[int]:
    """``removal_order(teacher.model, examples, 20)``: the layers that leave, first to last, until n are left.

    Greedy: each round removes the layer that leaves KL(whole model ‖ rest) smallest, averaged over completion positions. Of L
    layers that takes L²/2 runs of a layer a round, so a round tries all of them on the first 16 examples, and decides among the
    best three on all examples: with 64 of them it takes about a third longer. ``progress`` counts the layers removed.
    Raises: TrainingError if ``n`` is below 1 or above the number of layers, or the examples have no completion position.
    Source: Song et al. 2024, SLEB, arXiv 2402.09025, there by perplexity. Ranking all layers at once by block influence
    (ShortGPT, arXiv 2403.03853) left SmolLM2 worse before and after healing: docs/log.md has the figures.
    """
    depth = len(decoder_layers(model))
    if not 1 <= n <= depth:
        raise TrainingError(f"a student of {n} layers cannot be cut from a teacher of {depth} layers")
    if not any(one.completion for one in examples):
        raise TrainingError("layers to keep: the examples have no completion position to compare predictions at")
    screened, others = (_comparison(model, part) for part in (examples[:SCREENED], examples[SCREENED:]))
    kept, order = list(range(depth)), []
    while len(kept) > n:
        missed = screened.without_each(kept, kept)
        finalists = sorted(sorted(kept, key=lambda i: missed[i])[:FINALISTS])
        more = others.without_each(kept, finalists)
        order.append(min(finalists, key=lambda i: missed[i] + more[i]))
        kept.remove(order[-1])
        progress(1)
    return order


@dataclass(frozen=True)
class _Comparison:
    """The whole model's final states for some examples, (N, H) a batch, to compare those of fewer layers with."""

    model: PreTrainedModel
    walks: Sequence[LayerWalk]
    whole: Sequence[Tensor]

    def without_each(self, kept: Sequence[int], candidates: Sequence[int]) -> dict[int, float]:
        """KL(whole ‖ the kept layers but one), summed over positions, for each of the sorted ``candidates`` to leave."""
        missed, positions = dict.fromkeys(candidates, 0.0), positions_at_once(self.model.config.get_text_config().vocab_size)
        for walk, whole in zip(self.walks, self.whole, strict=True):
            before = walk  # what comes before a candidate is run once for all that follow
            for place, i in enumerate(kept):
                if i in missed:
                    left = before.through(kept[place + 1 :]).final()
                    missed[i] += kl_sum((whole, left), (self._head, self._head), positions)
                if i == candidates[-1]:
                    break
                before = before.through([i])
        return missed

    def _head(self, states: Tensor) -> Tensor:
        return logits(self.model, states)


def _comparison(model: PreTrainedModel, examples: Sequence[TokenizedExample]) -> _Comparison:
    walks = [begin_walk(model, batch) for batch in calibration_batches(examples, model.device)]
    return _Comparison(model, walks, [walk.through(range(len(decoder_layers(model)))).final() for walk in walks])


def prune_layers(model: PreTrainedModel, keep: Sequence[int]) -> None:
    """``prune_layers(model, [0, 1, 4, 5])``: in place; the model keeps these layers.

    Attention modules are renumbered, since a layer's number is its place in the key-value cache; so are the config's layer
    count and per-layer lists (``layer_types``: a Gemma 3 layer stays sliding or full).
    Raises: TrainingError if ``keep`` is empty, unsorted, or names a missing layer.
    """
    layers = decoder_layers(model)
    last = len(layers) - 1
    if not keep or sorted(set(keep)) != list(keep) or keep[0] < 0 or keep[-1] > last:
        raise TrainingError(f"layers to keep must be sorted, distinct and between 0 and {last}: {list(keep)}")
    keep_in_config(model.config, keep)
    kept = nn.ModuleList([layers[i] for i in keep])
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - nn.Module types its attributes as tensors
    model.base_model.layers = kept


def keep_in_config(config: Any, keep: Sequence[int]) -> None:
    """``keep_in_config(config, [0, 1, 4, 5])``: in place, the layer count and per-layer lists."""
    text = config.get_text_config()
    for name, value in list(vars(text).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == text.num_hidden_layers:
            setattr(text, name, [value[i] for i in keep])
    text.num_hidden_layers = len(keep)
