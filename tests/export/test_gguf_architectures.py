"""GGUF files of every architecture: llama.cpp predicts what transformers predicts, whole, pruned and with an adapter."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from support import architectures, tiny
from torch import nn
from transformers import PreTrainedModel

from factory.errors import ExportError
from factory.export.gguf import gguf_bytes, gguf_metadata_bytes, load_gguf_weights, write_adapter_gguf, write_base_gguf
from factory.models.llama_server import LlamaServer
from factory.models.pruning import prune_layers

IDS = random.Random(0).choices(range(3, 360), k=60)  # longer than the windows of 8
METADATA = {"name": "tiny@1", "license": "apache-2.0"}
KEPT = {"SmolLM3": [0, 1, 2]}  # else its layer without RoPE is no longer the fourth
# llama.cpp has 16-bit weights, activations, keys and values, and these random weights are large.
CLOSE = 1e-3


def transformers_log_probs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0].float().log_softmax(-1))


def llamacpp_log_probs(base: Path, *adapters: Path) -> np.ndarray:
    with LlamaServer(base, adapters=adapters, context=128, threads=1) as server:
        return server.log_probs([IDS], 0 if adapters else None)[0]


def kl(reference: np.ndarray, other: np.ndarray) -> float:
    """The largest of any position, nats."""
    return float((np.exp(reference) * (reference - other)).sum(-1).max())


def written(model: PreTrainedModel, folder: Path, quantization: str = "f16") -> Path:
    write_base_gguf(model, tiny.tokenizer(), folder / "base.gguf", quantization, **METADATA)
    return folder / "base.gguf"


def fields(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", list(architectures.CONFIGS))
def test_llamacpp_predicts_what_transformers_predicts_also_of_a_pruned_model_with_an_adapter(name: str, tmp_path: Path) -> None:
    model: Any = architectures.model(name)
    assert kl(transformers_log_probs(model), llamacpp_log_probs(written(model, tmp_path))) < CLOSE
    prune_layers(model, KEPT.get(name, [0, 2, 3]))
    base, before = written(model, tmp_path), transformers_log_probs(model)
    student: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for key, weight in student.named_parameters():
        if ".lora_B." in key:
            weight.data.normal_(0, 0.1)
    student.save_pretrained(tmp_path / "adapter")
    write_adapter_gguf(tmp_path / "adapter", model.config, tmp_path / "adapter.gguf")
    expected = transformers_log_probs(student.eval())
    assert kl(expected, before) > 100 * CLOSE
    assert kl(expected, llamacpp_log_probs(base, tmp_path / "adapter.gguf")) < CLOSE
    assert kl(before, llamacpp_log_probs(base)) < CLOSE


@pytest.mark.parametrize("quantization", ["f16", "q8_0", "q4"])
@pytest.mark.parametrize("name", list(architectures.CONFIGS))
def test_sizes_are_counted_and_weights_come_back(name: str, quantization: str, tmp_path: Path) -> None:
    model: Any = architectures.model(name)
    path = written(model, tmp_path, quantization)
    metadata = gguf_metadata_bytes(model.config, tiny.tokenizer(), quantization, **METADATA)
    assert gguf_bytes(model.config, quantization, metadata) == path.stat().st_size
    other: Any = architectures.model(name, seed=1)
    for weight in other.parameters():
        nn.init.zeros_(weight)
    load_gguf_weights(other, path)
    for key, weight in other.state_dict().items():
        expected = model.state_dict()[key]
        torch.testing.assert_close(weight, expected, rtol=0.002, atol=0.002 if quantization == "f16" else 0.2)


def test_biases_and_scaled_frequencies_of_a_llama_are_kept(tmp_path: Path) -> None:
    config: Any = architectures.CONFIGS["Llama 3"](360)
    config.attention_bias = config.mlp_bias = True
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    model: Any = tiny.llama()
    model = type(model)(config).eval()
    for key, weight in model.named_parameters():
        if key.endswith("bias"):
            weight.data.normal_(0, 0.3)
    assert kl(transformers_log_probs(model), llamacpp_log_probs(written(model, tmp_path))) < CLOSE


def test_a_gemma_2_without_windows_is_one_of_windows_as_wide_as_its_context(tmp_path: Path) -> None:
    model: Any = architectures.model("Gemma 2")
    prune_layers(model, [1, 3])
    assert model.config.layer_types == ["full_attention"] * 2
    assert kl(transformers_log_probs(model), llamacpp_log_probs(written(model, tmp_path))) < CLOSE


@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 3"])
def test_queries_of_the_deepest_gemmas_are_scaled_as_llamacpp_expects(name: str, tmp_path: Path) -> None:
    """At 46 layers of Gemma 2, and 62 of Gemma 3, llama.cpp derives the scale otherwise."""
    model: Any = architectures.model(name)
    config: Any = type(model.config)(**model.config.to_dict() | {"layer_types": None, "head_dim": 16})
    config.num_hidden_layers = {"Gemma 2": 46, "Gemma 3": 62}[name]
    config.layer_types = (["sliding_attention", "full_attention"] * 31)[: config.num_hidden_layers]
    deep: Any = type(model)(config).eval()
    for weight in deep.parameters():
        weight.data.mul_(0.7)
    assert kl(transformers_log_probs(deep), llamacpp_log_probs(written(deep, tmp_path))) < 3 * CLOSE


@pytest.mark.parametrize(
    ("name", "changed", "tokens"),
    [
        ("Mistral", {"sliding_window": 100}, 100),
        ("Mistral", {"sliding_window": None}, 2048),
        ("Phi-3", {"sliding_window": 100}, 100),
        ("Phi-4", {}, 1024),
        ("Qwen2.5", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 64}, 64),
        ("Gemma 2", {}, 2048),
    ],
)
def test_the_context_is_what_llamacpp_computes_as_transformers_does(
    name: str, changed: dict[str, Any], tokens: int, tmp_path: Path
) -> None:
    model: Any = architectures.model(name)
    for key, value in changed.items():
        setattr(model.config, key, value)
    [found] = [value for key, value in fields(written(model, tmp_path)).items() if key.endswith(".context_length")]
    assert found == tokens


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        (
            "Qwen3",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "qwen3 with rope_type yarn .* with default",
        ),
        ("Qwen3", {"attention_bias": True}, "qwen3 with attention_bias True cannot be written as GGUF, only with False"),
        ("Llama 3", {"hidden_act": "gelu"}, "llama with hidden_act gelu cannot be written as GGUF, only with silu"),
        ("Gemma 2", {"attn_logit_softcapping": None}, "gemma2 with attn_logit_softcapping None .* only with a number"),
        ("Gemma 2", {"tie_word_embeddings": False}, "gemma2 with tie_word_embeddings False .* only with True"),
        ("Gemma 3", {"use_bidirectional_attention": True}, "gemma3_text with use_bidirectional_attention True"),
        ("OLMo 2", {"head_dim": 16}, "olmo2 with head_dim 16 cannot be written as GGUF, only with 8"),
        ("SmolLM3", {"no_rope_layers": [1, 0, 1, 1]}, r"layers \[1\] of 8 without RoPE .* in every 4th layer"),
    ],
)
def test_what_llamacpp_would_compute_otherwise_is_refused(
    name: str, changed: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model: Any = architectures.model(name)
    for key, value in changed.items():
        setattr(model.config, key, value)
    with pytest.raises(ExportError, match=reason):
        written(model, tmp_path)
    assert not list(tmp_path.iterdir())
