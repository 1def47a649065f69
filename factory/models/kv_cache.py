"""Key-value caches: one for a prefix that many sequences share, and one that grows without copying itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, DynamicLayer, PreTrainedModel

ROOM = 64  # spare tokens allocated whenever a cache grows


def prefix_cache(model: PreTrainedModel, prefix: Sequence[int]) -> DynamicCache | None:
    """``prefix_cache(model, context_ids)``: keys and values of a shared prefix, one row; None for an empty prefix."""
    if not prefix:
        return None
    ids = torch.tensor([list(prefix)], device=model.device)
    with torch.inference_mode():
        # The model's own cache would drop what is outside a sliding window, and one mask cannot fit layers of two lengths.
        cache = DynamicCache()
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def expand_cache(cache: DynamicCache | None, rows: int) -> Cache:
    """``expand_cache(prefix_cache(model, ids), 64)``: a copy of a one-row cache with 64 rows and room to grow."""
    expanded = Cache(layer_class_to_replicate=RoomyLayer)
    if cache is not None:
        layers: Any = cache.layers
        for index, layer in enumerate(layers):
            expanded.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), index)
    return expanded


class RoomyLayer(DynamicLayer):
    """Keys and values with ``ROOM`` spare tokens.

    transformers' own layer copies everything it holds for each new token, which took 58 % of the time of generating 64
    completions after a context of 193 tokens (docs/log.md).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room: tuple[torch.Tensor, torch.Tensor] | None = None  # each (B, heads, allocated length, D)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self.room is None or stop > self.room[0].shape[-2]:
            shape = (*key_states.shape[:2], stop + ROOM)
            roomy = key_states.new_empty(*shape, key_states.shape[-1]), value_states.new_empty(*shape, value_states.shape[-1])
            for states, held in zip(roomy, (self.keys, self.values), strict=True):
                if start and held is not None:
                    states[..., :start, :] = held
            self.room = roomy
        self.room[0][..., start:stop, :], self.room[1][..., start:stop, :] = key_states, value_states
        return self._hold(self.room, stop)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.room is not None:
            self._hold((self.room[0][indices], self.room[1][indices]), self.get_seq_length())

    def _hold(self, room: tuple[torch.Tensor, torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps ``room``; its first ``length`` tokens are the keys and values in use."""
        self.room = room
        self.keys, self.values = keys, values = room[0][..., :length, :], room[1][..., :length, :]
        return keys, values
