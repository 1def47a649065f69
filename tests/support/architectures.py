"""Tiny random models of every architecture that can be exported, with what sets each apart made large enough to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from support import tiny

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 6.0], "long_factor": [2.0] * 6}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0, "sliding_window": 8, "query_pre_attn_scalar": 24}
GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0}

CONFIGS: dict[str, Callable[[int], PreTrainedConfig]] = {  # of so many tokens; four layers each but one
    "Llama 3": lambda tokens: LlamaConfig(
        **_common(tokens, head_dim=8), rope_parameters=LLAMA3 | {"rope_theta": 500.0, "original_max_position_embeddings": 32}
    ),
    "Qwen2.5": lambda tokens: Qwen2Config(**_common(tokens)),
    "Qwen3": lambda tokens: Qwen3Config(**_common(tokens, head_dim=16)),
    "Mistral": lambda tokens: MistralConfig(**_common(tokens, head_dim=16), sliding_window=None),
    "Gemma 2": lambda tokens: Gemma2Config(**_common(tokens, head_dim=8), **CAPS),
    "Gemma 3": lambda tokens: Gemma3TextConfig(
        **_common(tokens, head_dim=8),
        sliding_window=8,
        query_pre_attn_scalar=24,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=GEMMA3_ROPES,
    ),
    "Phi-3": lambda tokens: Phi3Config(**_common(tokens, tie_word_embeddings=False), sliding_window=None),
    "Phi-4": lambda tokens: Phi3Config(
        **_common(tokens, hidden_size=64),
        sliding_window=None,
        original_max_position_embeddings=1024,
        rope_parameters=LONGROPE | {"rope_theta": 1000.0, "partial_rotary_factor": 0.75},
    ),
    "OLMo 2": lambda tokens: Olmo2Config(**_common(tokens, tie_word_embeddings=False)),
    "SmolLM3": lambda tokens: SmolLM3Config(**_common(tokens, num_hidden_layers=8)),  # the fourth and eighth without RoPE
    "Granite": lambda tokens: GraniteConfig(**_common(tokens), **GRANITE),
}


def model(name: str, tokens: int = 360, seed: int = 0, scale: float = 1.0) -> PreTrainedModel:
    """``model("Qwen3")``: random, its norms and biases not trivial; its matrices are scaled."""
    torch.manual_seed(seed)
    made: Any = AutoModelForCausalLM.from_config(CONFIGS[name](tokens)).eval()
    for key, weight in made.named_parameters():
        if "norm" in key or key.endswith("bias"):
            weight.data += 0.3 * torch.randn_like(weight)
        elif weight.ndim > 1:
            weight.data *= scale
    result: PreTrainedModel = made
    return result


def _common(tokens: int, **own: Any) -> dict[str, Any]:
    shared = tiny.config(layers=4, width=32, vocabulary=tokens)
    shared.pop("head_dim")
    return shared | {"initializer_range": 0.2, "max_position_embeddings": 2048} | own
