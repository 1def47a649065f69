"""Key-value caches: one for a prefix that many sequences share, and one that grows without copying itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, DynamicLayer, PreTrainedModel

from factory.models.attention import GROUPED, WithPrefix

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


def expand_cache(model: PreTrainedModel, cache: DynamicCache | None, rows: int) -> Cache:
    """``expand_cache(model, prefix_cache(model, ids), 64)``: a cache of 64 rows that begin with a one-row cache.

    ``grouped_attention`` reads that row where it is, for all 64; for any other attention it is copied 64 times. Layers that
    hold nothing, since they were not run, stay so.
    """
    layers: Any = [] if cache is None else cache.layers
    if layers and model.config.get_text_config()._attn_implementation == GROUPED:
        return Cache(layers=[SharedPrefixLayer(layer.keys, layer.values) for layer in layers])
    expanded = Cache(layer_class_to_replicate=RoomyLayer)
    for index, layer in enumerate(layers):
        if layer.is_initialized:
            expanded.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), index)
    return expanded


def join_caches(caches: Sequence[Cache], prefix: int) -> Cache:
    """``join_caches([cache, longer], 193)``: one cache with the rows of all, made of the first.

    The ``prefix`` tokens that they all begin with stay at the left, what follows them ends together at the right.
    """
    first, *others = caches
    if others:
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            roomy: Any = layers
            roomy[0].join(roomy[1:], prefix)
    return first


class RoomyLayer(DynamicLayer):
    """Keys and values with ``ROOM`` spare tokens.

    transformers' own layer copies everything it holds for each new token, which took 58 % of the time of generating 64
    completions after a context of 193 tokens (docs/log.md).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room: tuple[torch.Tensor, torch.Tensor] | None = None  # each (B, heads, allocated length, D)
        self.length = 0  # tokens held of each row

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.length
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
            self._hold((self.room[0][indices], self.room[1][indices]), self.length)

    def join(self, others: Sequence[RoomyLayer], prefix: int) -> None:
        """Adds the rows of other layers. Up to ``prefix`` they begin alike; the rest is moved to the right end."""
        parts = [self, *others]
        rooms = [part.room for part in parts if part.room is not None]
        start = max(0, prefix - (self.get_seq_length() - self.length))  # a prefix that is held apart is in no room
        longest, rows = max(part.length for part in parts), sum(len(keys) for keys, _ in rooms)
        joined = []
        for held in zip(*rooms, strict=True):  # all keys, then all values
            states = held[0].new_zeros(rows, held[0].shape[1], longest + ROOM, held[0].shape[3])
            begin = 0
            for part, one in zip(parts, held, strict=True):
                span = slice(begin, begin := begin + len(one))
                states[span, :, :start] = one[:, :, :start]
                states[span, :, longest - part.length + start : longest] = one[:, :, start : part.length]
            joined.append(states)
        self._hold((joined[0], joined[1]), longest)

    def _hold(self, room: tuple[torch.Tensor, torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps ``room``; its first ``length`` tokens are the keys and values in use."""
        self.room, self.length = room, length
        self.keys, self.values = keys, values = room[0][..., :length, :], room[1][..., :length, :]
        return keys, values


class SharedPrefixLayer(RoomyLayer):
    """Rows that begin with the same prefix, whose keys and values are held once, (1, heads, P, D) each.

    To be read by ``grouped_attention``, which takes the two parts as they are.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.prefix = keys, values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        own = super().update(key_states, value_states)
        return tuple(WithPrefix(shared, held) for shared, held in zip(self.prefix, own, strict=True))

    def get_seq_length(self) -> int:
        return self.prefix[0].shape[-2] + self.length
