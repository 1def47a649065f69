"""Layers: how influence is measured, which ones stay, and that a pruned model is a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
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
from factory.models.pruning import block_influence, layers_to_keep, prune_layers

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


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    attention = torch.ones(3, 10, dtype=torch.long)
    attention[0, 7:] = 0
    completion = torch.zeros(3, 10, dtype=torch.long)
    completion[:, 4:7] = 1
    return {
        "input_ids": torch.randint(3, 64, (3, 10)),
        "attention_mask": attention,
        "completion_mask": completion,
    }


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 27).view(2, 12)).logits


@MODELS
def test_influence_is_one_minus_cosine_at_completion_positions(make: Any) -> None:
    model, one = make(), batch()
    measured = block_influence(model, [one])
    with torch.no_grad():
        states = model(
            input_ids=one["input_ids"], attention_mask=one["attention_mask"], output_hidden_states=True
        ).hidden_states
    chosen = one["completion_mask"].bool()
    for layer in range(5):  # the sixth state is after the final norm
        cosine = functional.cosine_similarity(states[layer][chosen], states[layer + 1][chosen], dim=-1)
        assert measured[layer] == pytest.approx(float((1 - cosine).mean()), abs=1e-5)


def test_the_last_layers_output_is_taken_before_the_final_norm() -> None:
    model, one = llama(), batch()
    before = block_influence(model, [one])
    torch.nn.init.uniform_(model.model.norm.weight, -3, 3)
    assert block_influence(model, [one]) == before


def test_a_layer_that_changes_nothing_has_no_influence() -> None:
    model = llama()
    for projection in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        torch.nn.init.zeros_(projection.weight)
    influence = block_influence(model, [batch()])
    assert influence[2] == pytest.approx(0, abs=1e-6)
    assert min(influence[:2] + influence[3:]) > 1e-3
    assert 2 not in layers_to_keep(influence, 5)


def test_batches_weigh_by_their_positions_and_leave_the_model_as_it_was() -> None:
    model, one = llama().train(), batch()
    empty = {**one, "completion_mask": torch.zeros_like(one["completion_mask"])}
    assert block_influence(model, [one, empty]) == pytest.approx(block_influence(model, [one]))
    assert model.training
    assert not model.model.layers[0]._forward_hooks
    with pytest.raises(TrainingError, match="no batch has a completion position"):
        block_influence(model, [empty])


def test_first_and_last_layer_always_stay() -> None:
    influence = [0.0, 0.5, 0.1, 0.4, 0.1, 0.0]
    assert layers_to_keep(influence, 1) == [0]
    assert layers_to_keep(influence, 2) == [0, 5]
    assert layers_to_keep(influence, 4) == [0, 1, 3, 5]
    assert layers_to_keep(influence, 5) == [0, 1, 2, 3, 5]  # of equals the earlier
    assert layers_to_keep(influence, 6) == list(range(6))
    assert layers_to_keep([0.3], 1) == [0]


@pytest.mark.parametrize("n", [0, 7])
def test_more_layers_than_there_are_is_an_error(n: int) -> None:
    with pytest.raises(TrainingError, match=f"student of {n} layers .* teacher of 6 layers"):
        layers_to_keep([0.1] * 6, n)


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
