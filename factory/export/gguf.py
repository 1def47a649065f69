"""Bases, merged students and adapters as GGUF files for llama.cpp.

write_base_gguf(model, tokenizer, Path("base.gguf"), "q8_0", name="healthcare-small@3", license="apache-2.0")
write_adapter_gguf(version.folder, model.config, Path("healthcare.gguf"))
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from factory.errors import ExportError
from factory.export.gguf_tokenizer import write_tokenizer


@dataclass(frozen=True)
class _Architecture:
    name: MODEL_ARCH
    shift: float  # what transformers adds to a norm's weights and llama.cpp does not
    interleaved: bool  # whether llama.cpp turns neighbouring pairs of a head's rows, where transformers turns halves


ARCHITECTURES = {  # by transformers' model_type
    "llama": _Architecture(MODEL_ARCH.LLAMA, shift=0.0, interleaved=True),
    "gemma3_text": _Architecture(MODEL_ARCH.GEMMA3, shift=1.0, interleaved=False),
}
# q4 is not Q4_1, although of all kinds that the gguf package can write its error of a weight is the least by far: the teacher
# came as Q4_1, so that rounding to Q4_1's grid takes back what healing moved (docs/log.md). Values and what leaves a layer
# are felt most, gate and up, half of a layer, least.
Kinds = GGMLQuantizationType
QUANTIZATIONS = {  # of gate and up; of value and down; of other matrices; of embedding and head; what the file says it is
    "f16": (Kinds.F16, Kinds.F16, Kinds.F16, Kinds.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (Kinds.Q8_0, Kinds.Q8_0, Kinds.Q8_0, Kinds.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4": (Kinds.Q4_0, Kinds.Q8_0, Kinds.Q5_0, Kinds.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
ROOMS = (("ffn_gate", "ffn_up"), ("attn_v", "ffn_down"), ("",))  # in a tensor's name, in the order of QUANTIZATIONS
PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
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
    """``write_base_gguf(model, tokenizer, Path("base.gguf"), "q8_0", name="small", license="apache-2.0")``: one file.

    quantization: "f16", "q8_0" or "q4": 4 bits a weight in half of each layer, 5 or 8 in the rest.
    A matrix whose rows are not whole blocks of 32 stays f16, norms are float32. For a merged student pass the merged model.
    Raises: ExportError for an architecture, a setting of it, or a tokenizer that is not known. Nothing is left behind.
    """
    config: Any = model.config.get_text_config()
    architecture = _architecture(config)
    _check(config)
    if quantization not in QUANTIZATIONS:
        raise ExportError(f"unknown quantization {quantization!r}; known are {', '.join(QUANTIZATIONS)}")
    with _staged(path, architecture) as writer:
        writer.add_type(GGUFType.MODEL)
        writer.add_name(name)
        writer.add_license(license)
        writer.add_file_type(QUANTIZATIONS[quantization][-1])
        _write_config(writer, config)
        write_tokenizer(writer, tokenizer, config.vocab_size)
        names = get_tensor_name_map(architecture.name, config.num_hidden_layers)
        for key, weight in model.state_dict().items():
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue  # llama.cpp takes the embedding where there is no head
            target = names.get_name(key, try_suffixes=(".weight",))
            if target is None:
                raise ExportError(f"llama.cpp's {MODEL_ARCH_NAMES[architecture.name]} has no place for {key}")
            values = _as_llamacpp(key, weight, config)
            kind = _type(target, values, quantization)
            writer.add_tensor(target, quantize(values, kind), raw_dtype=kind)


def write_adapter_gguf(adapter_folder: Path, model_config: PreTrainedConfig, path: Path) -> None:
    """``write_adapter_gguf(version.folder, model.config, Path("healthcare.gguf"))``: for llama.cpp's ``--lora``.

    Raises: ExportError for an architecture that is not known, or an adapter that is more than plain LoRA on linear layers.
    """
    config: Any = model_config.get_text_config()
    architecture = _architecture(config)
    adapter = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    beyond = [f"{key} {adapter[key]!r}" for key, plain in PLAIN.items() if adapter.get(key, plain) not in (plain, None)]
    if adapter["peft_type"] != "LORA" or beyond:
        what = ", ".join(beyond) or adapter["peft_type"]
        raise ExportError(f"{adapter_folder.name}: an adapter with {what} cannot be written as GGUF; export it merged")
    names = get_tensor_name_map(architecture.name, config.num_hidden_layers)
    with _staged(path, architecture) as writer:
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(adapter["lora_alpha"]))
        for key, weight in load_file(adapter_folder / "adapter_model.safetensors").items():
            module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
            target = names.get_name(module)
            if target is None or part not in ("lora_A", "lora_B"):
                raise ExportError(f"{adapter_folder.name}: llama.cpp has no place for {key}; export it merged")
            values = _as_llamacpp(module if part == "lora_B" else key, weight, config)
            writer.add_tensor(f"{target}.weight.{part.lower()}", values)


def _architecture(config: Any) -> _Architecture:
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ExportError(f"{config.model_type} cannot be written as GGUF; known architectures: {known}; export it merged")
    return ARCHITECTURES[config.model_type]


def _check(config: Any) -> None:
    """What llama.cpp takes for granted in these architectures, or would need another key for."""
    ropes = _ropes(config)
    needed = {
        "rope_type": ({rope["rope_type"] for rope in ropes.values()}, {"default"}),
        "attention_bias": (config.attention_bias, False),
        "mlp_bias": (getattr(config, "mlp_bias", False), False),
        "query_pre_attn_scalar": (getattr(config, "query_pre_attn_scalar", config.head_dim), config.head_dim),
        "attn_logit_softcapping": (getattr(config, "attn_logit_softcapping", None), None),
        "use_bidirectional_attention": (getattr(config, "use_bidirectional_attention", False), False),
    }
    for key, (value, known) in needed.items():
        if value != known:
            raise ExportError(f"{config.model_type} with {key} {value} cannot be written as GGUF, only with {known}")


def _ropes(config: Any) -> dict[str, Any]:
    """By layer type; one for all of them under ``full_attention``."""
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
    if "sliding_attention" in getattr(config, "layer_types", ()):  # where all layers are full, llama.cpp asks for no window
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        # A layer each: pruning keeps some of the layers, and llama.cpp would take every sixth for a full one.
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _as_llamacpp(key: str, weight: Tensor, config: Any) -> NDArray[np.float32]:
    """A weight's values in float32, in llama.cpp's order and meaning."""
    architecture = _architecture(config)
    values: NDArray[np.float32] = weight.float().numpy()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    module = key.removesuffix(".weight").rpartition(".")[2]
    if architecture.interleaved and module in heads:  # (heads, 2, half a head, in): halves become pairs
        rows = values.reshape(heads[module], 2, -1, values.shape[1])
        values = rows.swapaxes(1, 2).reshape(values.shape)
    return values + np.float32(architecture.shift) if module.endswith("norm") else values


def _type(target: str, values: NDArray[np.float32], quantization: str) -> GGMLQuantizationType:
    if values.ndim == 1:
        return GGMLQuantizationType.F32
    *kinds, table, _ = QUANTIZATIONS[quantization]
    kind = next(kind for kind, parts in zip(kinds, ROOMS, strict=True) if any(part in target for part in parts))
    kind = table if target in ("token_embd.weight", "output.weight") else kind
    return GGMLQuantizationType.F16 if values.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


@contextmanager
def _staged(path: Path, architecture: _Architecture) -> Iterator[GGUFWriter]:
    """A writer whose file takes its name when all of it is written."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        writer = GGUFWriter(temporary, MODEL_ARCH_NAMES[architecture.name])
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.chmod(temporary, 0o644)  # mkstemp's is 0o600
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
