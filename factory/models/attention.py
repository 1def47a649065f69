"""Grouped-query attention for the CPU: two matrix products per group of heads, without repeating keys.

torch's own kernel for grouped heads takes half of a training step of short texts, most of it backward; this one a tenth
(docs/log.md). It holds scores of all pairs, (B, heads, T, S): less than a layer's other activations up to some 500 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.masking_utils import eager_mask

from factory.errors import TrainingError
from factory.models.device import compute_dtype
from factory.models.folders import load_weights
from factory.models.vocabulary import trim_padding

GROUPED = "factory_grouped"


class WithPrefix(NamedTuple):
    """Keys or values of a prefix that all rows share, and of what each row has after it."""

    prefix: Tensor  # (1, groups, P, D)
    own: Tensor  # (B, groups, S, D)


def load_causal_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """``load_causal_model(folder, load_tokenizer(folder), device)``: in evaluation mode, in ``compute_dtype(device)``.

    With the attention that suits the device, and a row of embedding and head for every token of the folder's tokenizer, and
    none beyond (``trim_padding``). Large tokenizers take seconds to load, so whoever has one passes it on.
    Raises: ModelResolutionError where transformers refuses the folder, or weights are missing.
    """
    model: Any = load_weights(folder, dtype or compute_dtype(device))
    trim_padding(model, tokenizer)
    if device.type == "cpu":
        model.set_attn_implementation(GROUPED)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | WithPrefix,
    value: Tensor | WithPrefix,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, heads, T, D), key and value (B, groups, S, D), mask (B, 1, T, S) to add → (B, T, heads, D).

    Called by transformers. A shared prefix of P tokens is read once for all rows (Juravsky et al. 2024, Hydragen, arXiv
    2402.05099); the mask then has P + S columns. Raises: TrainingError for attention sinks, which it does not support.
    """
    if s_aux is not None:
        raise TrainingError(
            f"{type(module).__name__} has attention sinks, which are not supported on a CPU; choose another teacher"
        )
    keys, values = (one if isinstance(one, WithPrefix) else WithPrefix(one[:1, :, :0], one) for one in (key, value))
    shared = keys.prefix.shape[2]  # P
    rows = query * scaling
    scores = _own_scores(rows, keys.own)
    if shared:
        scores = torch.cat([_prefix_product(rows, keys.prefix.transpose(2, 3)), scores], dim=-1)  # (B, heads, T, P + S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : scores.shape[-1]]
    weights = nn.functional.softmax(scores, dim=-1).to(values.own.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    mixed = _own_mixture(weights[..., shared:], values.own)
    if shared:
        mixed = mixed + _prefix_product(weights[..., :shared], values.prefix)
    return mixed.transpose(1, 2).contiguous(), None


def _own_scores(rows: Tensor, key: Tensor) -> Tensor:
    """rows (B, heads, T, D), key (B, groups, S, D) → (B, heads, T, S)."""
    batch, heads, length, width = rows.shape
    groups, seen = key.shape[1:3]
    rows, keys = rows.reshape(batch * groups, -1, width), key.reshape(batch * groups, seen, width)
    # A cache with room is not contiguous, and only as the first factor is it not copied: 3 times as fast for one new token.
    scores = torch.bmm(keys, rows.transpose(1, 2)).transpose(1, 2) if length == 1 else torch.bmm(rows, keys.transpose(1, 2))
    return scores.reshape(batch, heads, length, seen)


def _own_mixture(weights: Tensor, value: Tensor) -> Tensor:
    """weights (B, heads, T, S), value (B, groups, S, D) → (B, heads, T, D)."""
    batch, heads, length, seen = weights.shape
    groups, width = value.shape[1], value.shape[3]
    mixed = torch.bmm(weights.reshape(batch * groups, -1, seen), value.reshape(batch * groups, seen, width))
    return mixed.view(batch, heads, length, width)


def _prefix_product(rows: Tensor, shared: Tensor) -> Tensor:
    """rows (B, heads, T, K), shared (1, groups, K, N) → (B, heads, T, N): one product a group, whatever B is."""
    batch, heads, length, width = rows.shape
    groups, wanted = shared.shape[1], shared.shape[3]
    by_group = rows.reshape(batch, groups, -1, width).transpose(0, 1)  # (groups, B, heads / groups * T, K)
    product = torch.bmm(by_group.reshape(groups, -1, width), shared[0])
    return product.view(groups, batch, -1, wanted).transpose(0, 1).reshape(batch, heads, length, wanted)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
