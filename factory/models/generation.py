"""Batched generation that pays for each sequence only as long as it runs.

trl and transformers generate whole batches until the last row ends and copy the cache for every token; this loop was
measured at 1.25 times their speed (docs/log.md, "a cache with room").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel

from factory.config.schema import DataConfig
from factory.models.chat import stop_tokens
from factory.models.kv_cache import expand_cache, join_caches, prefix_cache
from factory.models.packing import packed_weights
from factory.models.scoring import length_batches

READ = 8, 16  # a batch's prompts are read in at most so many parts, of at least so many rows
PACK_FROM = 16  # new tokens, from which on weights are packed
FINISHED = 1 / 8  # finished rows leave the batch once they are this share of it: each removal copies the whole cache
CACHE_BYTES = 3 * 2**29  # of keys and values at once, on a CPU
LIMIT = 96  # new tokens of generate_ids and generate_text, unless the caller says otherwise


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    prefix: Sequence[int] = (),
    prefilled: DynamicCache | None = None,
    temperature: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """``sample(model, [[1, 5, 7]], max_new_tokens=64, stop=[2])``: for each prompt the list of new token ids.

    A sequence that ends has the stop token as its last id; one without a stop token was cut off at ``max_new_tokens``.
    ``temperature`` 0 is greedy. ``repetition_penalty`` above 1 lowers the logits of tokens already generated, but not of
    the prompt's (Keskar et al. 2019, CTRL, arXiv 1909.05858). ``prefix`` precedes every prompt and is computed once;
    ``prefilled`` is its ``prefix_cache``, where the caller has it already. ``batch`` is found by ``rows_at_once``.
    """
    longest = len(prefix) + max(map(len, prompts), default=0) + 1 + max_new_tokens
    if prefix and longest > (getattr(model.config.get_text_config(), "sliding_window", None) or longest):
        # A sliding window would count the padding between prefix and prompt, so every row gets the prefix itself.
        prompts, prefix = [[*prefix, *prompt] for prompt in prompts], ()
    shared = prefilled if prefix and prefilled is not None else prefix_cache(model, prefix)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    stops = torch.tensor(list(stop), device=model.device)
    out: list[list[int]] = [[] for _ in prompts]
    # Packing costs as much as ten tokens of one row save.
    with packed_weights(model) if max_new_tokens >= PACK_FROM else nullcontext():
        for rows in length_batches([len(prompt) for prompt in prompts], batch or rows_at_once(model, longest)):
            logits, mask, cache = _read_prompts(model, [prompts[i] for i in rows], shared, len(prefix))
            active = torch.tensor(rows, device=model.device)  # the rows still in the batch; (B,)
            seen = torch.zeros(len(rows), model.config.get_text_config().vocab_size, dtype=torch.bool, device=model.device)
            running = torch.ones_like(active, dtype=torch.bool)
            for left in reversed(range(max_new_tokens)):
                penalised = apply_repetition_penalty(logits, seen, repetition_penalty)
                tokens = next_tokens(penalised, temperature, generator)  # (B, 1)
                seen.scatter_(1, tokens, True)
                for index, token in zip(active[running].tolist(), tokens[running, 0].tolist(), strict=True):
                    out[index].append(token)
                running &= ~torch.isin(tokens[:, 0], stops)
                if not (left and running.any()):
                    break
                if (~running).sum() >= FINISHED * len(running):
                    cache.batch_select_indices(running.nonzero()[:, 0])
                    active, tokens, mask, seen = active[running], tokens[running], mask[running], seen[running]
                    running = running[running]
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                logits = _next_logits(model, tokens, mask, cache)
            if progress is not None:
                progress(len(rows))
    return out


def rows_at_once(model: PreTrainedModel, longest: int) -> int:
    """``rows_at_once(model, 400)``: 64 to 128 sequences of that length, as many as have their cache in ``CACHE_BYTES``.

    Rows leave a batch as they end, so a large one stays efficient for longer: 234 tokens/s with 128 where 64 gave 191
    (docs/log.md, "larger batches"). A GPU waits for its host whatever the batch is: up to 512, in a quarter of its free memory.
    """
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * width * longest * model.dtype.itemsize
    if model.device.type == "cuda":
        return int(min(max(64, torch.cuda.mem_get_info(model.device)[0] // 4 // row), 512))
    return int(min(max(64, CACHE_BYTES // row), 128))


def generate_ids(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], prefix: Sequence[int] = (), max_new_tokens: int = LIMIT
) -> list[list[int]]:
    """``generate_ids(model, tokenizer, prompts)``: greedy answers as ids, with the default repetition penalty."""
    return sample(
        model,
        prompts,
        prefix=prefix,
        stop=stop_tokens(tokenizer),
        max_new_tokens=max_new_tokens,
        repetition_penalty=DataConfig().repetition_penalty,
    )


def generate_text(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], prefix: Sequence[int] = (), max_new_tokens: int = LIMIT
) -> list[str]:
    """``generate_text(model, tokenizer, prompts)``: greedy answers as text, without special tokens."""
    answers = generate_ids(model, tokenizer, prompts, prefix, max_new_tokens)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]


def padded_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``ids, mask = padded_left([[5, 7], [9]], device)``: (B, T) each; every row has at least one padding column.

    transformers drops a mask without a zero, and without a mask torch's CPU attention for grouped heads is two to three
    times slower (docs/log.md, "attention masks on the CPU").
    """
    width = 1 + max(map(len, sequences))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences], device=device)
    return ids, mask


def _read_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], shared: DynamicCache | None, prefix: int
) -> tuple[torch.Tensor, torch.Tensor, Cache]:
    """Logits (B, V) of what follows each prompt, the mask (B, prefix + T) and the cache; ``prompts`` are shortest first.

    Read in parts, so that one long prompt does not pad all others: of 84 questions to a student two thirds were padding.
    """
    parts, rows = READ
    size = max(rows, -(-len(prompts) // parts))
    logits, masks, caches = [], [], []
    for start in range(0, len(prompts), size):
        tokens, real = padded_left(prompts[start : start + size], model.device)  # (b, t)
        mask = torch.cat([real.new_ones(len(real), prefix), real], dim=1)
        cache = expand_cache(model, shared, len(tokens))
        logits.append(_next_logits(model, tokens, mask, cache))
        masks.append(real)
        caches.append(cache)
    width = masks[-1].shape[1]
    own = torch.cat([nn.functional.pad(real, (width - real.shape[1], 0)) for real in masks])  # (B, T)
    mask = torch.cat([own.new_ones(len(own), prefix), own], dim=1)
    return torch.cat(logits), mask, join_caches(caches, prefix)


def _next_logits(model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
    """(B, V) logits of what follows ``tokens`` (B, T), which are added to the cache. Padding has no position."""
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


def apply_repetition_penalty(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """``apply_repetition_penalty(logits, seen, 1.1)``: logits (B, V) lowered where ``seen`` (B, V) is true."""
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def next_tokens(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """(B, V) logits → (B, 1) ids: the top-1 token at temperature 0, else a sample."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator)
