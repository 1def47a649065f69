"""Layer pruning: remove, again and again, the layer whose absence changes the predictions least.

prune_layers(model, layers_to_keep(model, batch, 20))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from factory.errors import TrainingError
from factory.models.forward import Batch, hidden_states, logits


@torch.no_grad()
def layers_to_keep(
    model: PreTrainedModel, batch: Batch, n: int, progress: Callable[[int], None] = lambda layers: None
) -> list[int]:
    """``layers_to_keep(teacher.model, batch, 20)``: the numbers of n layers, sorted.

    Greedy: each round removes the layer that leaves KL(whole model ‖ rest) smallest, averaged over the batch's completion
    positions. With L layers a round runs L²/2 of them. ``progress`` counts the layers removed.
    Raises: TrainingError if ``n`` is below 1 or above the number of layers, or the batch has no completion position.
    Source: Song et al. 2024, SLEB, arXiv 2402.09025, there by perplexity. Ranking all layers at once by block influence
    (ShortGPT, arXiv 2403.03853) left SmolLM2 worse before and after healing: docs/log.md has the figures.
    """
    layers = _decoder_layers(model)
    if not 1 <= n <= len(layers):
        raise TrainingError(f"a student of {n} layers cannot be cut from a teacher of {len(layers)} layers")
    if not batch.predicts.any():
        raise TrainingError("layers to keep: the batch has no completion position to compare predictions at")
    states, settings = _calls(model, layers, batch)

    def run(hidden: Tensor, through: Sequence[int]) -> Tensor:  # (B, T, H) → (B, T, H)
        for i in through:
            output = layers[i](hidden, **settings[i])
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def predicted(hidden: Tensor) -> Tensor:  # (B, T, H) → (N, V) log-probabilities
        final: Any = model.base_model.norm
        return functional.log_softmax(logits(model, final(hidden)[batch.predicts]).float(), dim=-1)

    kept = list(range(len(layers)))
    whole = predicted(run(states, kept))
    while len(kept) > n:
        hidden, missed = states, {}
        for place, i in enumerate(kept):
            left = predicted(run(hidden, kept[place + 1 :]))
            missed[i] = functional.kl_div(left, whole, reduction="batchmean", log_target=True).item()
            hidden = run(hidden, [i])
        kept.remove(min(missed, key=lambda i: missed[i]))
        progress(1)
    return kept


def _calls(model: PreTrainedModel, layers: nn.ModuleList, batch: Batch) -> tuple[Tensor, list[dict[str, Any]]]:
    """The first layer's input (B, T, H), and each layer's keyword arguments: masks and positions of this architecture."""
    states: list[Tensor] = []
    settings: list[dict[str, Any]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])
        settings.append({name: value for name, value in kwargs.items() if name != "hidden_states"})

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        hidden_states(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return states[0], settings


def prune_layers(model: PreTrainedModel, keep: Sequence[int]) -> None:
    """``prune_layers(model, [0, 1, 4, 5])``: in place; the model keeps these layers.

    Attention modules are renumbered, since a layer's number is its place in the key-value cache; so are the config's layer
    count and per-layer lists (``layer_types``: a Gemma 3 layer stays sliding or full).
    Raises: TrainingError if ``keep`` is empty, unsorted, or names a missing layer.
    """
    layers = _decoder_layers(model)
    last = len(layers) - 1
    if not keep or sorted(set(keep)) != list(keep) or keep[0] < 0 or keep[-1] > last:
        raise TrainingError(f"layers to keep must be sorted, distinct and between 0 and {last}: {list(keep)}")
    config = model.config.get_text_config()
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == len(layers):
            setattr(config, name, [value[i] for i in keep])
    config.num_hidden_layers = len(keep)
    kept = nn.ModuleList([layers[i] for i in keep])
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 - nn.Module types its attributes as tensors
    model.base_model.layers = kept


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise TrainingError(f"{type(model).__name__} has no decoder layers at model.layers, so it cannot be pruned")
    return layers
