"""Layers: which ones stay, and that a pruned model is a whole model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from factory.errors import TrainingError
from factory.models.forward import Batch, make_batch
from factory.models.pruning import layers_to_keep, prune_layers

SHARED: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA_TYPES = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHARED, num_hidden_layers=6)).eval()


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma3TextConfig(**SHARED, num_hidden_layers=6, sliding_window=4, layer_types=GEMMA_TYPES)
    return Gemma3ForCausalLM(config).eval()


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(**SHARED, num_hidden_layers=6, use_sliding_window=True, sliding_window=4, max_window_layers=3)
    return Qwen2ForCausalLM(config).eval()


MODELS = pytest.mark.parametrize("make", [llama, gemma, qwen])


def batch() -> Batch:
    torch.manual_seed(1)
    return make_batch(torch.randint(3, 64, (3, 4)).tolist(), torch.randint(3, 64, (3, 5)).tolist())


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 27).view(2, 12)).logits


def divergence(model: PreTrainedModel, keep: list[int]) -> float:
    """KL(whole ‖ pruned) at completion positions, from two whole models."""
    pruned = copy.deepcopy(model)
    prune_layers(pruned, keep)
    one = batch()
    with torch.no_grad():
        p, q = (m(one.input_ids).logits[one.predicts].log_softmax(-1) for m in (model, pruned))
    return float((p.exp() * (p - q)).sum(-1).mean())


@MODELS
def test_the_layer_leaves_without_which_the_divergence_is_least(make: Any) -> None:
    model = make()
    five = layers_to_keep(model, batch(), 5)
    others = [[i for i in range(6) if i != out] for out in range(6)]
    assert five == min(others, key=lambda keep: divergence(model, keep))
    four = layers_to_keep(model, batch(), 4)
    assert four == min(([i for i in five if i != out] for out in five), key=lambda keep: divergence(model, keep))


def test_a_layer_that_changes_nothing_leaves_first() -> None:
    model = llama()
    for projection in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        torch.nn.init.zeros_(projection.weight)
    assert layers_to_keep(model, batch(), 5) == [0, 1, 3, 4, 5]


def test_choosing_layers_leaves_the_model_as_it_was() -> None:
    model = llama()
    before = logits(model)
    assert len(layers_to_keep(model, batch(), 1)) == 1
    assert layers_to_keep(model, batch(), 6) == list(range(6))
    assert torch.equal(logits(model), before)
    assert not model.model.layers[0]._forward_pre_hooks


def test_a_batch_without_completions_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no completion position"):
        layers_to_keep(llama(), make_batch([[3, 4, 5]], [[]]), 5)


@pytest.mark.parametrize("n", [0, 7])
def test_more_layers_than_there_are_is_an_error(n: int) -> None:
    with pytest.raises(TrainingError, match=f"student of {n} layers .* teacher of 6 layers"):
        layers_to_keep(llama(), batch(), n)


@MODELS
def test_keeping_all_layers_changes_nothing(make: Any) -> None:
    model = make()
    before = logits(model)
    prune_layers(model, range(6))
    assert torch.equal(logits(model), before)


@MODELS
@pytest.mark.parametrize("keep", [[0, 2, 5], [0, 1, 3], [2, 5]])
def test_a_pruned_model_is_the_same_after_saving_and_loading(make: Any, keep: list[int], tmp_path: Path) -> None:
    model = make()
    types = list(getattr(model.config, "layer_types", None) or [])
    prune_layers(model, keep)
    assert model.config.num_hidden_layers == len(model.model.layers) == len(keep)
    assert list(getattr(model.config, "layer_types", None) or []) == [types[i] for i in keep if types]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(loaded), logits(model), atol=1e-6)


@MODELS
def test_a_pruned_model_generates_the_same_with_and_without_cache(make: Any, tmp_path: Path) -> None:
    model = make()
    prune_layers(model, [0, 2, 3, 5])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt: dict[str, Any] = {"input_ids": torch.arange(3, 15).view(2, 6), "attention_mask": torch.ones(2, 6).long()}
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}  # past the window of 4
    with_cache = model.generate(**prompt, **settings, use_cache=True)
    assert torch.equal(with_cache, model.generate(**prompt, **settings, use_cache=False))
    assert torch.equal(with_cache, loaded.generate(**prompt, **settings, use_cache=True))


@pytest.mark.parametrize("keep", [[], [0, 6], [2, 1], [1, 1], [-1, 2]])
def test_layers_that_are_not_there_are_an_error(keep: list[int]) -> None:
    with pytest.raises(TrainingError, match="layers to keep must be sorted"):
        prune_layers(llama(), keep)


def test_a_model_of_another_build_is_an_error() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0))
    with pytest.raises(TrainingError, match="GPT2LMHeadModel has no decoder layers"):
        prune_layers(model, [0])
