"""Writes bases, merged students and adapters as GGUF files for llama.cpp.

write_base_gguf(model, tokenizer, Path("base.gguf"), "q8_0", name="healthcare-small@3", license="apache-2.0")
write_adapter_gguf(version.folder, model.config, Path("healthcare.gguf"))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.constants import GGUF_DEFAULT_ALIGNMENT
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from factory.cache import atomic_file
from factory.config.quantization import DEFAULT, GRIDS, Grid, Quantization
from factory.errors import ExportError
from factory.export.gguf_tokenizer import write_tokenizer
from factory.models.adapter import WEIGHTS, check_adapter
from factory.models.dimensions import empty_model
from factory.registry.versions import Version


@dataclass(frozen=True)
class _Architecture:
    name: MODEL_ARCH
    norm_offset: float  # transformers adds it to norm weights when it applies them, llama.cpp does not
    interleaved: bool  # llama.cpp's RoPE rotates neighbouring rows of a head, transformers' its two halves


ARCHITECTURES = {  # by transformers' model_type
    "llama": _Architecture(MODEL_ARCH.LLAMA, norm_offset=0.0, interleaved=True),
    "gemma3_text": _Architecture(MODEL_ARCH.GEMMA3, norm_offset=1.0, interleaved=False),
}
Types = GGMLQuantizationType


@dataclass(frozen=True)
class _Quantization:
    """Tensor types by place; a layer is most sensitive in values and down, least in gate and up, which are half of it."""

    gate_up: Types
    value_down: Types
    other: Types
    embedding: Types  # and head
    file_type: LlamaFileType


def _one_grid(grid: Grid) -> _Quantization:
    kind = GGMLQuantizationType[grid.upper()]
    return _Quantization(kind, kind, kind, Types.Q8_0, LlamaFileType[f"MOSTLY_{grid.upper()}"])


# q4 does not use Q4_1, although it has the lowest weight error of the types that the gguf package can write: the teacher came
# as Q4_1, and rounding to that grid again undoes what healing changed (docs/log.md). For the same reason q4_1 costs a base that
# is the teacher with fewer tokens nothing.
QUANTIZATIONS: dict[str, _Quantization] = {
    "f16": _Quantization(Types.F16, Types.F16, Types.F16, Types.F16, LlamaFileType.MOSTLY_F16),
    **{grid: _one_grid(grid) for grid in GRIDS},
    "q4": _Quantization(Types.Q4_0, Types.Q8_0, Types.Q5_0, Types.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}


def write_base_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    quantization: str,
    *,
    name: str,
    license: str,
) -> None:
    """``write_base_gguf(model, tokenizer, Path("base.gguf"), "q8_0", name="small", license="mit")``: base or merged model.

    quantization: "f16", "q4" (4 bits per weight in half of each layer, 5 or 8 in the rest), or one grid for all of a layer.
    Norms stay float32, and matrices whose rows are not a multiple of 32 stay f16.
    Raises: ExportError for an unsupported architecture, setting or tokenizer; nothing is left behind.
    """
    config: Any = model.config.get_text_config()
    architecture = _architecture(config)
    _check_config(config)
    if quantization not in QUANTIZATIONS:
        raise ExportError(f"unknown quantization {quantization!r}; available: {', '.join(QUANTIZATIONS)}")
    with _gguf_file(path, architecture) as writer:
        _write_metadata(writer, config, tokenizer, quantization, name=name, license=license)
        for target, key, weight, kind in _tensors(model, quantization):
            writer.add_tensor(target, quantize(_as_llamacpp(key, weight, config), kind), raw_dtype=kind)


def _write_metadata(
    writer: GGUFWriter, config: Any, tokenizer: PreTrainedTokenizerBase, quantization: str, *, name: str, license: str
) -> None:
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_license(license)
    writer.add_file_type(QUANTIZATIONS[quantization].file_type)
    _write_config(writer, config)
    write_tokenizer(writer, tokenizer, config.vocab_size)


def _tensors(model: PreTrainedModel, quantization: str) -> Iterator[tuple[str, str, Tensor, Types]]:
    """llama.cpp's name of each tensor, the model's own, its weight, and the type that it is written in."""
    config: Any = model.config.get_text_config()
    architecture = _architecture(config)
    names = get_tensor_name_map(architecture.name, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue  # without a head llama.cpp uses the embedding
        target = names.get_name(key, try_suffixes=(".weight",))
        if target is None:
            raise ExportError(f"llama.cpp's {MODEL_ARCH_NAMES[architecture.name]} architecture has no tensor for {key}")
        yield target, key, weight, _tensor_type(target, tuple(weight.shape), QUANTIZATIONS[quantization])


def gguf_bytes(config: PreTrainedConfig, quantization: str, metadata: int) -> int:
    """``gguf_bytes(model.config, "q4_1", gguf_metadata_bytes(...))``: of the file that ``write_base_gguf`` would write.

    No weights are needed. Raises: ExportError for an architecture that it would not write.
    """
    descriptions, values = 0, 0
    for target, _, weight, kind in _tensors(empty_model(config), quantization):
        block, size = GGML_QUANT_SIZES[kind]
        descriptions += 8 + len(target) + 4 + 8 * weight.ndim + 4 + 8  # name, dimensions, type, offset
        values += GGUFWriter.ggml_pad(weight.numel() // block * size, GGUF_DEFAULT_ALIGNMENT)
    return GGUFWriter.ggml_pad(metadata + descriptions, GGUF_DEFAULT_ALIGNMENT) + values


def gguf_metadata_bytes(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, quantization: str, *, name: str, license: str
) -> int:
    """``gguf_metadata_bytes(model.config, tokenizer, "q4_1", name="small", license="mit")``: of what precedes the tensors.

    Nearly all of it are the tokens and their merges. Raises: ExportError as ``write_base_gguf`` does.
    """
    text: Any = config.get_text_config()
    architecture = _architecture(text)
    _check_config(text)
    with TemporaryDirectory() as folder:
        path = Path(folder, "metadata.gguf")
        writer = GGUFWriter(path, MODEL_ARCH_NAMES[architecture.name])
        _write_metadata(writer, text, tokenizer, quantization, name=name, license=license)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path.stat().st_size


@torch.no_grad()
def load_gguf_weights(model: PreTrainedModel, path: Path) -> None:
    """``load_gguf_weights(model, path)``: the model's weights become those of the file, dequantized, in place.

    ``path`` is what ``write_base_gguf`` wrote of this model. What quantization costs can then be measured as any model is.
    """
    config: Any = model.config.get_text_config()
    names = get_tensor_name_map(_architecture(config).name, config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for key, weight in model.state_dict().items():
        tensor = tensors.get(names.get_name(key, try_suffixes=(".weight",)) or "")
        if tensor is None:
            continue  # a tied head, which is the embedding
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(weight.shape))
        weight.copy_(torch.from_numpy(_from_llamacpp(key, values, config)))


def own_quantization(base: Version) -> Quantization:
    """``own_quantization(registry.resolve("default-medium-base"))``: the grid it was rounded to, else q8_0."""
    return (base.manifest.quantization if base.manifest.kind == "base" else None) or DEFAULT


def write_adapter_gguf(adapter_folder: Path, model_config: PreTrainedConfig, path: Path) -> None:
    """``write_adapter_gguf(version.folder, model.config, Path("healthcare.gguf"))``: for llama.cpp's ``--lora``.

    Raises: ExportError for an unsupported architecture, ModelResolutionError for an adapter that does not fit the model.
    """
    config: Any = model_config.get_text_config()
    architecture, adapter = _architecture(config), check_adapter(adapter_folder, model_config)
    names = get_tensor_name_map(architecture.name, config.num_hidden_layers)
    with _gguf_file(path, architecture) as writer:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(adapter.lora_alpha))
        for key, weight in load_file(adapter_folder / WEIGHTS).items():
            module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
            target = names.get_name(module)
            if target is None or part not in ("lora_A", "lora_B"):
                raise ExportError(f"{adapter_folder}: llama.cpp has no tensor for {key}; use --part merged")
            values = _as_llamacpp(module if part == "lora_B" else key, weight, config)
            writer.add_tensor(f"{target}.weight.{part.lower()}", values)


def _architecture(config: Any) -> _Architecture:
    if config.model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ExportError(f"{config.model_type} cannot be written as GGUF (supported: {supported}); use --format merged")
    return ARCHITECTURES[config.model_type]


def _check_config(config: Any) -> None:
    """Refuse settings that llama.cpp's implementations of these architectures do not support."""
    ropes = _ropes(config)
    required = {
        "rope_type": ({rope["rope_type"] for rope in ropes.values()}, {"default"}),
        "attention_bias": (config.attention_bias, False),
        "mlp_bias": (getattr(config, "mlp_bias", False), False),
        "query_pre_attn_scalar": (getattr(config, "query_pre_attn_scalar", config.head_dim), config.head_dim),
        "attn_logit_softcapping": (getattr(config, "attn_logit_softcapping", None), None),
        "use_bidirectional_attention": (getattr(config, "use_bidirectional_attention", False), False),
    }
    for key, (value, supported) in required.items():
        if value != supported:
            raise ExportError(f"{config.model_type} with {key} {value} cannot be written as GGUF, only with {supported}")


def _ropes(config: Any) -> dict[str, Any]:
    """RoPE parameters by layer type; a single set for all layers is under ``full_attention``."""
    ropes: dict[str, Any] = config.rope_parameters
    return {"full_attention": ropes} if "rope_type" in ropes else ropes


def _write_config(writer: GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    ropes = _ropes(config)
    writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
    if "sliding_attention" in getattr(config, "layer_types", ()):  # llama.cpp expects these keys only if a layer has a window
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        # Per layer: by default llama.cpp assumes that every sixth layer is full, which pruning changes.
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _as_llamacpp(key: str, weight: Tensor, config: Any) -> NDArray[np.float32]:
    """A weight in float32, with its rows in llama.cpp's order: two interleaved halves of a head become pairs."""
    values: NDArray[np.float32] = weight.float().cpu().numpy()
    if heads := _interleaved_heads(key, config):
        values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    return values + _norm_offset(key, config)


def _from_llamacpp(key: str, values: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """The inverse of ``_as_llamacpp``."""
    if heads := _interleaved_heads(key, config):
        values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    return values - _norm_offset(key, config)


def _interleaved_heads(key: str, config: Any) -> int:
    """Heads of a weight whose rows llama.cpp orders otherwise, else 0."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(_module(key), 0) if _architecture(config).interleaved else 0


def _norm_offset(key: str, config: Any) -> np.float32:
    return np.float32(_architecture(config).norm_offset if _module(key).endswith("norm") else 0.0)


def _module(key: str) -> str:
    return key.removesuffix(".weight").rpartition(".")[2]


def _tensor_type(target: str, shape: tuple[int, ...], quantization: _Quantization) -> GGMLQuantizationType:
    if len(shape) == 1:
        return Types.F32
    if target in ("token_embd.weight", "output.weight"):
        wanted = quantization.embedding
    elif "ffn_gate" in target or "ffn_up" in target:
        wanted = quantization.gate_up
    elif "attn_v" in target or "ffn_down" in target:
        wanted = quantization.value_down
    else:
        wanted = quantization.other
    block, _ = GGML_QUANT_SIZES[wanted]
    return Types.F16 if shape[-1] % block else wanted


@contextmanager
def _gguf_file(path: Path, architecture: _Architecture) -> Iterator[GGUFWriter]:
    """A writer whose file appears at ``path`` once it is complete."""
    with atomic_file(path) as temporary:
        writer = GGUFWriter(temporary, MODEL_ARCH_NAMES[architecture.name])
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
