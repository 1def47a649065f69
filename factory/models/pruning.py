"""Which layers a student keeps: those that change the hidden state most (ShortGPT, arXiv 2403.03853).

influence = block_influence(model, batches)
prune_layers(model, layers_to_keep(influence, 20))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from factory.errors import TrainingError


@torch.no_grad()
def block_influence(model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> list[float]:
    """``block_influence(model, batches)``: one value a layer, 1 - cosine(its input, its output), 0 = changes nothing.

    Averaged over completion positions. A batch holds ``input_ids``, ``attention_mask`` and ``completion_mask``, each
    (B, T). Raises: TrainingError where no position is a completion's.
    Source: Men et al. 2024, ShortGPT, arXiv 2403.03853, equation 1.
    """
    layers = _decoder_layers(model)
    totals = torch.zeros(len(layers), dtype=torch.float64)
    positions = 0
    completion = torch.empty(0, dtype=torch.bool)

    def measure(index: int) -> Callable[..., None]:
        # A hook sees the last layer's output before the final norm; `output_hidden_states` has it after the norm.
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]  # (B, T, D)
            after = output[0] if isinstance(output, tuple) else output  # (B, T, D)
            chosen = completion.to(before.device)
            cosine = functional.cosine_similarity(before[chosen].float(), after[chosen].float(), dim=-1)  # (N,)
            totals[index] += (1 - cosine).double().sum().cpu()

        return hook

    handles = [layer.register_forward_hook(measure(i), with_kwargs=True) for i, layer in enumerate(layers)]
    training = model.training
    model.train(False)
    try:
        for batch in batches:
            completion = batch["completion_mask"].bool()
            positions += int(completion.sum())
            model.base_model(  # without the head: its logits are not needed
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                use_cache=False,
            )
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if positions == 0:
        raise TrainingError("block influence: no batch has a completion position; is completion_mask all zeros?")
    return [float(value) for value in totals / positions]


def layers_to_keep(influence: Sequence[float], n: int) -> list[int]:
    """``layers_to_keep(influence, 20)``: the n most influential layers, sorted; the first and the last are among them.

    Of equal layers the earlier one stays. ``n = 1`` keeps the first alone.
    Raises: TrainingError where there are fewer than ``n`` layers, or ``n`` is below 1.
    """
    if not 1 <= n <= len(influence):
        raise TrainingError(f"a student of {n} layers cannot be cut from a teacher of {len(influence)} layers")
    ends = [0, len(influence) - 1][:n]
    middle = sorted(range(1, len(influence) - 1), key=lambda i: (-influence[i], i))
    return sorted({*ends, *middle[: max(0, n - 2)]})


def prune_layers(model: PreTrainedModel, keep: Sequence[int]) -> None:
    """``prune_layers(model, [0, 1, 4, 5])``: in place; the model then has these layers, in this order.

    Attention modules are numbered anew (a layer's number is its place in the key-value cache), and the config's layer
    count and per-layer lists follow (``layer_types``: a Gemma 3 layer stays sliding or full).
    Raises: TrainingError where ``keep`` is empty, unsorted, or names a layer that is not there.
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
        raise TrainingError(f"{type(model).__name__} has no decoder layers at model.layers: it cannot be pruned")
    return layers
