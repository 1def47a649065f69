"""Batched sampling that pays for each sequence only as long as it runs. Used by the teacher, on-policy steps and ``ask``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, DynamicLayer, PreTrainedModel

from factory.config.schema import DataConfig
from factory.models.chat import stop_tokens

ROOM = 64  # further tokens that a cache has room for when it grows
FINISHED = 1 / 8  # of a batch's rows: so many are dropped together, since each time the whole cache is copied


def padded_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``ids, mask = padded_left([[5, 7], [9]], device)``: (B, T) each, every row with at least one column of padding.

    A mask without a zero is dropped by transformers, and torch's CPU attention for grouped heads without a mask is two to
    three times slower than with one (measured with torch 2.13, 9 query and 3 key heads).
    """
    width = 1 + max(map(len, sequences))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences], device=device)
    return ids, mask


def prefix_cache(model: PreTrainedModel, prefix: Sequence[int]) -> DynamicCache | None:
    """``cache = prefix_cache(model, context_ids)``: keys and values of a context that many prompts share."""
    if not prefix:
        return None
    ids = torch.tensor([list(prefix)], device=model.device)
    with torch.inference_mode():
        # A cache of our own: the model's would keep a sliding layer's window alone, and layers of two lengths fit no mask.
        cache = DynamicCache()
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values with room for tokens to come.

    transformers' own layer copies all that it holds for every new token: 58 % of the time of writing 64 completions after a
    context of 193 tokens.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room: tuple[torch.Tensor, torch.Tensor] | None = None  # (B, heads, length and more, D) each

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
        """Keeps ``room``, whose first ``length`` columns are the keys and values."""
        self.room = room
        self.keys, self.values = keys, values = room[0][..., :length, :], room[1][..., :length, :]
        return keys, values


def expand_cache(cache: DynamicCache | None, rows: int) -> Cache:
    """A copy of a one-row cache with ``rows`` rows, and with room for more tokens."""
    expanded = Cache(layer_class_to_replicate=RoomyLayer)
    if cache is not None:
        layers: Any = cache.layers
        for index, layer in enumerate(layers):
            expanded.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), index)
    return expanded


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    prefix: Sequence[int] = (),
    temperature: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """``sample(model, [[1, 5, 7]], max_new_tokens=64, stop=[2])``: one list of new token ids a prompt.

    A stop token ends a sequence and is its last id; a sequence without one was cut off. ``temperature`` 0 is greedy.
    ``repetition_penalty`` above 1 makes every token already in this completion less likely (Keskar et al. 2019, CTRL, arXiv
    1909.05858); the prompt's own words are not penalised. ``prefix`` comes before every prompt and is computed once.
    Finished rows leave the batch, several together.
    """
    longest = len(prefix) + max(map(len, prompts), default=0) + 1 + max_new_tokens
    if prefix and longest > (getattr(model.config.get_text_config(), "sliding_window", None) or longest):
        # Padding stands between prefix and prompt, where a sliding window would count it: write the prefix out instead.
        prompts, prefix = [[*prefix, *prompt] for prompt in prompts], ()
    shared = prefix_cache(model, prefix)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    stops = torch.tensor(list(stop), device=model.device)
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding, and little time lost
    for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
        cache = expand_cache(shared, len(rows))
        active = torch.tensor(rows, device=model.device)
        tokens, real = padded_left([prompts[i] for i in rows], model.device)  # (B, P)
        mask = torch.cat([real.new_ones(len(rows), len(prefix)), real], dim=1)  # (B, prefix + P)
        written = torch.zeros(len(rows), model.config.get_text_config().vocab_size, dtype=torch.bool, device=model.device)
        running = torch.ones_like(active, dtype=torch.bool)
        for _ in range(max_new_tokens):
            logits = apply_repetition_penalty(_next_logits(model, tokens, mask, cache), written, repetition_penalty)
            tokens = next_tokens(logits, temperature, generator)  # (B, 1)
            written.scatter_(1, tokens, True)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            for index, token in zip(active[running].tolist(), tokens[running, 0].tolist(), strict=True):
                out[index].append(token)
            running &= ~torch.isin(tokens[:, 0], stops)
            if not running.any():
                break
            if (~running).sum() >= FINISHED * len(running):
                cache.batch_select_indices(running.nonzero()[:, 0])
                active, tokens, mask, written = active[running], tokens[running], mask[running], written[running]
                running = running[running]
        if progress is not None:
            progress(len(rows))
    return out


def generate_ids(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], prefix: Sequence[int] = (), max_new_tokens: int = 96
) -> list[list[int]]:
    """``generate_ids(model, tokenizer, prompts)``: greedy answers in ids, with the repetition penalty that data sets have."""
    return sample(
        model,
        prompts,
        prefix=prefix,
        stop=stop_tokens(tokenizer),
        max_new_tokens=max_new_tokens,
        repetition_penalty=DataConfig().repetition_penalty,
    )


def generate_text(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], prefix: Sequence[int] = (), max_new_tokens: int = 96
) -> list[str]:
    """``generate_text(model, tokenizer, prompts)``: the same as text, without special tokens."""
    answers = generate_ids(model, tokenizer, prompts, prefix, max_new_tokens)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]


def _next_logits(model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
    """(B, V): what follows ``tokens`` (B, T); the cache grows by them. Positions count what the mask shows."""
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
    logits: torch.Tensor = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits


def apply_repetition_penalty(logits: torch.Tensor, written: torch.Tensor, penalty: float) -> torch.Tensor:
    """``apply_repetition_penalty(logits, written, 1.1)``: (B, V) with the logits of the tokens in ``written`` (B, V) lowered."""
    if penalty == 1:
        return logits
    return torch.where(written, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def next_tokens(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """(B, V) logits to (B, 1) token ids: the most likely one at temperature 0, else a sample."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator)
