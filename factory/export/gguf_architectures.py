"""What llama.cpp's implementation of each architecture needs, and what it cannot express: one record for each.

    check_config(config)               # ExportError for what cannot be written
    write_config(writer, config)       # the architecture's own metadata
    as_llamacpp(key, weight, config)   # a weight as llama.cpp keeps it

Tensor names come from the gguf package. Records follow llama.cpp's converter and its ``src/models/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, RopeScalingType
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from factory.errors import ExportError

FACTORS = frozenset({"default", "linear", "llama3"})  # rope types that a factor for each frequency expresses


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures, as far as it differs from transformers' model of the same weights."""

    name: MODEL_ARCH
    activation: str = "silu"
    norm_offset: float = 0.0  # transformers adds it to norm weights when it applies them, llama.cpp does not
    interleaved: bool = False  # llama.cpp's RoPE rotates neighbouring rows of a head, transformers' its two halves
    rope_types: frozenset[str] = frozenset({"default"})
    rope_factors: bool = False  # whether it reads a tensor of them
    windows: bool = False  # whether layers may have sliding windows
    always_windows: bool = False  # whether one has to
    partial_rope: bool = False  # whether only a part of a head may be rotated
    own_head: bool = False  # its head is a tensor of its own also where the model's is tied
    tied_head: bool = False  # its head is always the embedding
    square: bool = False  # its heads together are as wide as the hidden state
    deepest: int = 0  # the depth at which it takes a head's size to be hidden size / heads when it scales queries
    rope_step: int = 0  # every so many layers one has no RoPE
    gate_up: GGMLQuantizationType = GGMLQuantizationType.Q4_0  # under q4, so that it costs less than its bound (docs/export.md)
    settings: Mapping[str, str] = field(default_factory=dict)  # a config's attribute → the writer's method for it
    without: frozenset[str] = frozenset()  # a config's attributes that it knows nothing of


_BIASES = frozenset({"attention_bias", "mlp_bias"})
_LLAMA = Architecture(MODEL_ARCH.LLAMA, interleaved=True, rope_types=FACTORS, rope_factors=True)
ARCHITECTURES: dict[str, Architecture] = {  # by transformers' model_type
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, without=_BIASES),
    "gemma2": Architecture(
        MODEL_ARCH.GEMMA2,
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        windows=True,
        always_windows=True,
        tied_head=True,
        deepest=46,
        settings={
            "attn_logit_softcapping": "add_attn_logit_softcapping",
            "final_logit_softcapping": "add_final_logit_softcapping",
        },
        without=_BIASES | {"use_bidirectional_attention"},
    ),
    "gemma3_text": Architecture(
        MODEL_ARCH.GEMMA3,
        activation="gelu_pytorch_tanh",
        norm_offset=1.0,
        rope_types=frozenset({"default", "linear"}),
        windows=True,
        deepest=62,
        gate_up=GGMLQuantizationType.Q5_0,
        settings={"final_logit_softcapping": "add_final_logit_softcapping"},
        without=_BIASES | {"use_bidirectional_attention", "attn_logit_softcapping"},
    ),
    "phi3": Architecture(
        MODEL_ARCH.PHI3, rope_types=frozenset({"default", "longrope"}), partial_rope=True, square=True, without=_BIASES
    ),
    "olmo2": Architecture(MODEL_ARCH.OLMO2, own_head=True, square=True, without=_BIASES),
    "smollm3": Architecture(MODEL_ARCH.SMOLLM3, interleaved=True, rope_step=4),
    "granite": Architecture(
        MODEL_ARCH.GRANITE,
        interleaved=True,
        rope_types=FACTORS,
        rope_factors=True,
        settings={
            "attention_multiplier": "add_attention_scale",
            "embedding_multiplier": "add_embedding_scale",
            "residual_multiplier": "add_residual_scale",
            "logits_scaling": "add_logit_scale",
        },
    ),
}


def architecture_of(config: Any) -> Architecture:
    """``architecture_of(model.config).name``. Raises: ExportError for one that has no record."""
    if config.model_type not in ARCHITECTURES:
        raise ExportError(
            f"{config.model_type} cannot be written as GGUF (supported: {', '.join(ARCHITECTURES)}); use --format merged"
        )
    return ARCHITECTURES[config.model_type]


def check_config(config: Any) -> None:
    """``check_config(model.config)``: whether llama.cpp can compute what this model does.

    Raises: ExportError that names the setting, what it is and what it would have to be.
    """
    architecture = architecture_of(config)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", architecture.activation)
    required: dict[str, tuple[Any, Any]] = {
        "hidden_act": (activation, architecture.activation),
        **{name: (value, False) for name in architecture.without if (value := getattr(config, name, False))},
        **{name: (getattr(config, name), "a number") for name in _caps(architecture) if not getattr(config, name)},
    }
    if not architecture.partial_rope:
        required["partial_rotary_factor"] = (_first_rope(config).get("partial_rotary_factor", 1.0), 1.0)
    if architecture.square:
        required["head_dim"] = (head_dim(config), config.hidden_size // config.num_attention_heads)
    if architecture.tied_head:
        required["tie_word_embeddings"] = (config.tie_word_embeddings, True)
    for name, (value, supported) in required.items():
        if value != supported:
            raise ExportError(f"{config.model_type} with {name} {value} cannot be written as GGUF, only with {supported}")
    _check_ropes(config)


def _caps(architecture: Architecture) -> list[str]:
    """Soft caps that llama.cpp always applies."""
    return [name for name in architecture.settings if name.endswith("softcapping")] if architecture.tied_head else []


def _check_ropes(config: Any) -> None:
    architecture = architecture_of(config)
    for rope in ropes(config).values():
        kind = rope["rope_type"]
        if kind not in architecture.rope_types:
            supported = ", ".join(sorted(architecture.rope_types))
            raise ExportError(f"{config.model_type} with rope_type {kind} cannot be written as GGUF, only with {supported}")
    if ropes(config).get("sliding_attention", {}).get("rope_type", "default") != "default":
        raise ExportError(f"{config.model_type} with a scaled RoPE in sliding layers cannot be written as GGUF")
    step = architecture.rope_step
    if step and list(config.no_rope_layers) != [int((i + 1) % step != 0) for i in range(config.num_hidden_layers)]:
        found = [i for i, rotates in enumerate(config.no_rope_layers) if not rotates]
        raise ExportError(
            f"{config.model_type} with layers {found} of {config.num_hidden_layers} without RoPE cannot be written as GGUF: "
            f"llama.cpp leaves it out in every {step}th layer; keep all layers and prune intermediate_size or vocabulary"
        )


def ropes(config: Any) -> dict[str, Any]:
    """``ropes(config)["full_attention"]``: RoPE parameters by layer type; a single set for all layers is under that name."""
    found: dict[str, Any] = config.rope_parameters
    return {"full_attention": found} if "rope_type" in found else found


def _first_rope(config: Any) -> dict[str, Any]:
    rope: dict[str, Any] = ropes(config)["full_attention"]
    return rope


def head_dim(config: Any) -> int:
    """``head_dim(config)``: rows of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def exact_context(config: Any) -> int:
    """``exact_context(config)``: tokens up to which llama.cpp computes what transformers does.

    It reads no sliding windows of most architectures, and takes one set of longrope's factors for all contexts of a server.
    """
    limits, rope = [config.max_position_embeddings], _first_rope(config)
    if _has_windows(config) and not architecture_of(config).windows:
        limits.append(config.sliding_window)
    if rope["rope_type"] == "longrope":
        limits.append(rope["original_max_position_embeddings"])
    return int(min(limits))


def _has_windows(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds is not None else bool(getattr(config, "sliding_window", None))


# ------------------------------------------------------------------------------------------------------------- metadata


def write_config(writer: GGUFWriter, config: Any) -> None:
    """``write_config(writer, model.config)``: everything but the tokenizer and the names."""
    architecture, size, rope = architecture_of(config), head_dim(config), _first_rope(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(exact_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    _write_windows(writer, config)
    if rope["rope_type"] == "linear" and not architecture.rope_factors:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(ROPE_INIT_FUNCTIONS["longrope"](config)[1])
    for name, method in architecture.settings.items():
        if value := getattr(config, name, None):
            getattr(writer, method)(value)


def _write_windows(writer: GGUFWriter, config: Any) -> None:
    """Layer by layer: by default llama.cpp assumes a fixed period, which pruning changes."""
    architecture = architecture_of(config)
    if architecture.windows and _has_windows(config):
        writer.add_rope_freq_base_swa(ropes(config).get("sliding_attention", _first_rope(config))["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    elif architecture.always_windows:  # as wide as any context
        writer.add_sliding_window(config.max_position_embeddings)
        writer.add_sliding_window_pattern([True] * config.num_hidden_layers)


def extra_tensors(config: Any) -> dict[str, NDArray[np.float32]]:
    """``extra_tensors(config)["rope_freqs.weight"]``: tensors that are not weights: what divides each frequency of RoPE."""
    rope = _first_rope(config)
    if rope["rope_type"] == "longrope":
        kinds = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: np.asarray(rope[key], dtype=np.float32) for name, key in kinds.items()}
    if rope["rope_type"] == "default" or not architecture_of(config).rope_factors:
        return {}
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    size = head_dim(config)
    plain = rope["rope_theta"] ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    return {"rope_freqs.weight": (plain / scaled.double().numpy()).astype(np.float32)}


# -------------------------------------------------------------------------------------------------------------- weights


def as_llamacpp(key: str, weight: Tensor, config: Any) -> NDArray[np.float32]:
    """``as_llamacpp("model.layers.0.self_attn.q_proj.weight", weight, config)``: in float32, rows in llama.cpp's order.

    Two interleaved halves of a head become pairs. Of an adapter's second matrix the key is its module's.
    """
    values: NDArray[np.float32] = weight.float().cpu().numpy()
    if heads := _interleaved_heads(key, config):
        values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return (values + _norm_offset(key, config)) * _query_scale(key, config)


def from_llamacpp(key: str, values: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """``from_llamacpp(key, as_llamacpp(key, weight, config), config)``: the weight."""
    if heads := _interleaved_heads(key, config):
        values = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return values / _query_scale(key, config) - _norm_offset(key, config)


def _interleaved_heads(key: str, config: Any) -> int:
    """Heads of a weight or bias whose rows llama.cpp orders otherwise, else 0."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(_module(key), 0) if architecture_of(config).interleaved else 0


def _norm_offset(key: str, config: Any) -> np.float32:
    return np.float32(architecture_of(config).norm_offset if _module(key).endswith("norm") else 0.0)


def _query_scale(key: str, config: Any) -> np.float32:
    """What queries are multiplied by, at their last linear step before RoPE, where llama.cpp derives another scale."""
    wanted, deepest = getattr(config, "query_pre_attn_scalar", None), architecture_of(config).deepest
    last = "q_norm" if config.model_type == "gemma3_text" else "q_proj"
    if not wanted or not deepest or _module(key) != last:
        return np.float32(1.0)
    own = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == deepest else head_dim(config)
    return np.float32(math.sqrt(own / wanted))


def _module(key: str) -> str:
    return key.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
