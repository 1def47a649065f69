"""Writes bases, merged students and adapters as GGUF files for llama.cpp.

write_base_gguf(model, tokenizer, Path("base.gguf"), "q8_0", name="healthcare-small@3", license="apache-2.0")
write_adapter_gguf(version.folder, model.config, Path("healthcare.gguf"))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf import (
    GGML_QUANT_SIZES,
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
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from factory.cache import atomic_file
from factory.config.quantization import DEFAULT, GRIDS, Grid, Quantization
from factory.errors import ExportError
from factory.export.gguf_architectures import (
    Architecture,
    architecture_of,
    as_llamacpp,
    check_config,
    extra_tensors,
    from_llamacpp,
    write_config,
)
from factory.export.gguf_tokenizer import strips_as_phi3, write_tokenizer
from factory.models.adapter import WEIGHTS, check_adapter
from factory.models.dimensions import empty_model
from factory.registry.versions import Version

Types = GGMLQuantizationType
SUFFIXES = (".weight", ".bias")


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


def kinds_of(quantization: str, architecture: Architecture) -> _Quantization:
    """``kinds_of("q4", architecture_of(config)).gate_up``: under q4 an architecture's own."""
    kinds = QUANTIZATIONS[quantization]
    if quantization != "q4":
        return kinds
    return replace(kinds, gate_up=architecture.gate_up, file_type=LlamaFileType[f"MOSTLY_{architecture.gate_up.name}"])


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

    quantization: "f16", "q4" (4 bits per weight in half of each layer, 5 of Gemma 3's, and 5 or 8 in the rest), or one grid
    for all of a layer.
    Norms stay float32, and matrices whose rows are not a multiple of 32 stay f16.
    Raises: ExportError for an unsupported architecture, setting or tokenizer; nothing is left behind.
    """
    config: Any = model.config.get_text_config()
    architecture = architecture_of(config)
    check_config(config)
    if quantization not in QUANTIZATIONS:
        raise ExportError(f"unknown quantization {quantization!r}; available: {', '.join(QUANTIZATIONS)}")
    with _gguf_file(path, architecture) as writer:
        _write_metadata(writer, config, tokenizer, quantization, name=name, license=license)
        for target, key, weight, kind in _tensors(model, quantization):
            writer.add_tensor(target, quantize(as_llamacpp(key, weight, config), kind), raw_dtype=kind)
        for target, values in extra_tensors(config).items():
            writer.add_tensor(target, values)


def _write_metadata(
    writer: GGUFWriter, config: Any, tokenizer: PreTrainedTokenizerBase, quantization: str, *, name: str, license: str
) -> None:
    writer.add_type(GGUFType.MODEL)
    writer.add_name(f"{name} (phi-3)" if strips_as_phi3(tokenizer) else name)
    writer.add_license(license)
    writer.add_file_type(kinds_of(quantization, architecture_of(config)).file_type)
    write_config(writer, config)
    write_tokenizer(writer, tokenizer, config.vocab_size)


def _tensors(model: PreTrainedModel, quantization: str) -> Iterator[tuple[str, str, Tensor, Types]]:
    """llama.cpp's name of each tensor, the model's own, its weight, and the type that it is written in."""
    config: Any = model.config.get_text_config()
    architecture = architecture_of(config)
    names = get_tensor_name_map(architecture.name, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings and not architecture.own_head:
            continue  # without a head llama.cpp uses the embedding
        target = names.get_name(key, try_suffixes=SUFFIXES)
        if target is None:
            raise ExportError(f"llama.cpp's {MODEL_ARCH_NAMES[architecture.name]} architecture has no tensor for {key}")
        yield target, key, weight, _tensor_type(target, tuple(weight.shape), kinds_of(quantization, architecture))


def gguf_bytes(config: PreTrainedConfig, quantization: str, metadata: int) -> int:
    """``gguf_bytes(model.config, "q4_1", gguf_metadata_bytes(...))``: of the file that ``write_base_gguf`` would write.

    No weights are needed. Raises: ExportError for an architecture that it would not write.
    """
    descriptions, values = 0, 0
    weights = [(name, weight.shape, kind) for name, _, weight, kind in _tensors(empty_model(config), quantization)]
    extra = [(name, factors.shape, Types.F32) for name, factors in extra_tensors(config.get_text_config()).items()]
    for name, shape, kind in [*weights, *extra]:
        block, size = GGML_QUANT_SIZES[kind]
        descriptions += 8 + len(name) + 4 + 8 * len(shape) + 4 + 8  # name, dimensions, type, offset
        values += GGUFWriter.ggml_pad(math.prod(shape) // block * size, GGUF_DEFAULT_ALIGNMENT)
    return GGUFWriter.ggml_pad(metadata + descriptions, GGUF_DEFAULT_ALIGNMENT) + values


def gguf_metadata_bytes(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, quantization: str, *, name: str, license: str
) -> int:
    """``gguf_metadata_bytes(model.config, tokenizer, "q4_1", name="small", license="mit")``: of what precedes the tensors.

    Nearly all of it are the tokens and their merges. Raises: ExportError as ``write_base_gguf`` does.
    """
    text: Any = config.get_text_config()
    architecture = architecture_of(text)
    check_config(text)
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
    names = get_tensor_name_map(architecture_of(config).name, config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for key, weight in model.state_dict().items():
        tensor = tensors.get(names.get_name(key, try_suffixes=SUFFIXES) or "")
        if tensor is None:
            continue  # a tied head, which is the embedding
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(weight.shape))
        weight.copy_(torch.from_numpy(from_llamacpp(key, values, config)))


def own_quantization(base: Version) -> Quantization:
    """``own_quantization(registry.resolve("default-medium-base"))``: the grid it was rounded to, else q8_0."""
    return (base.manifest.quantization if base.manifest.kind == "base" else None) or DEFAULT


def write_adapter_gguf(adapter_folder: Path, model_config: PreTrainedConfig, path: Path) -> None:
    """``write_adapter_gguf(version.folder, model.config, Path("healthcare.gguf"))``: for llama.cpp's ``--lora``.

    Raises: ExportError for an unsupported architecture, ModelResolutionError for an adapter that does not fit the model.
    """
    config: Any = model_config.get_text_config()
    architecture, adapter = architecture_of(config), check_adapter(adapter_folder, model_config)
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
            values = as_llamacpp(module if part == "lora_B" else key, weight, config)
            writer.add_tensor(f"{target}.weight.{part.lower()}", values)


def _tensor_type(target: str, shape: tuple[int, ...], quantization: _Quantization) -> GGMLQuantizationType:
    if len(shape) == 1:
        return Types.F32
    if target in ("token_embd.weight", "output.weight"):
        wanted = quantization.embedding
    elif "ffn_gate" in target or "ffn_up" in target:
        wanted = quantization.gate_up
    elif "attn_v" in target or "attn_qkv" in target or "ffn_down" in target:
        wanted = quantization.value_down
    else:
        wanted = quantization.other
    block, _ = GGML_QUANT_SIZES[wanted]
    return Types.F16 if shape[-1] % block else wanted


@contextmanager
def _gguf_file(path: Path, architecture: Architecture) -> Iterator[GGUFWriter]:
    """A writer whose file appears at ``path`` once it is complete."""
    with atomic_file(path) as temporary:
        writer = GGUFWriter(temporary, MODEL_ARCH_NAMES[architecture.name])
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
