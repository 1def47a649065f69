"""Grouped-query attention for the CPU: two matrix products per group of heads, without repeating keys.

torch's own kernel for grouped heads takes half of a training step of short texts, most of it backward; this one a tenth
(docs/log.md). It holds scores of all pairs, (B, heads, T, S): less than a layer's other activations up to some 500 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import eager_mask

from factory.errors import TrainingError

GROUPED = "factory_grouped"


def load_causal_model(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """``load_causal_model(folder, device, torch.bfloat16)``: in evaluation mode, with the attention that suits the device."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if device.type == "cpu":
        model.set_attn_implementation(GROUPED)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, heads, T, D), key and value (B, groups, S, D), mask (B, 1, T, S) to add → (B, T, heads, D).

    Called by transformers. Raises: TrainingError for attention sinks, which it does not support.
    """
    if s_aux is not None:
        raise TrainingError(
            f"{type(module).__name__} has attention sinks, which are not supported on a CPU; choose another teacher"
        )
    batch, heads, length, width = query.shape
    groups, seen = key.shape[1:3]
    rows = (query * scaling).reshape(batch * groups, heads // groups * length, width)
    keys = key.reshape(batch * groups, seen, width)
    # A cache with room is not contiguous, and only as the first factor is it not copied: 3 times as fast for one new token.
    scores = torch.bmm(keys, rows.transpose(1, 2)).transpose(1, 2) if length == 1 else torch.bmm(rows, keys.transpose(1, 2))
    scores = scores.reshape(batch, heads, length, seen)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., :seen]
    weights = nn.functional.softmax(scores, dim=-1).to(value.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    mixed = torch.bmm(weights.view(batch * groups, -1, seen), value.reshape(batch * groups, seen, width))
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
