"""Layers: which ones stay, and that a pruned model is a whole model."""

from __future__ import annotations

import copy
from collections.abc import Iterable
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
from factory.models.calibration import calibration_batches, mean_kl
from factory.models.pruning import FINALISTS, SCREENED, prune_layers, removal_order
from factory.models.tokenize import TokenizedExample

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


def examples(count: int = 4, context: int = 3) -> list[TokenizedExample]:
    """With a context of so many tokens, which the teacher alone sees."""
    torch.manual_seed(1)
    shown = torch.randint(3, 64, (context,)).tolist()
    rows = [torch.randint(3, 64, (9,)).tolist() for _ in range(count)]
    return [TokenizedExample(row[:4], [*shown, *row[:4]], row[4:]) for row in rows]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 27).view(2, 12)).logits


def divergence(model: PreTrainedModel, keep: list[int], of: list[TokenizedExample]) -> float:
    """KL(whole ‖ pruned), from two whole models."""
    pruned = copy.deepcopy(model)
    prune_layers(pruned, keep)
    return mean_kl(model, pruned, calibration_batches(of, model.device))


def least(model: PreTrainedModel, kept: list[int], candidates: Iterable[int], of: list[TokenizedExample]) -> int:
    return min(candidates, key=lambda out: divergence(model, [i for i in kept if i != out], of))


@MODELS
@pytest.mark.parametrize("context", [0, 3])
def test_the_layer_leaves_without_which_the_divergence_is_least(make: Any, context: int) -> None:
    model, seen = make(), examples(context=context)
    first = least(model, list(range(6)), range(6), seen)
    left = [i for i in range(6) if i != first]
    assert removal_order(model, seen, 4) == [first, least(model, left, left, seen)]


def test_all_examples_decide_among_the_best_of_the_screened_ones() -> None:
    model, seen = llama(), examples(3 * SCREENED)
    by_screen = sorted(range(6), key=lambda out: divergence(model, [i for i in range(6) if i != out], seen[:SCREENED]))
    assert removal_order(model, seen, 5) == [least(model, list(range(6)), by_screen[:FINALISTS], seen)]


def test_a_layer_that_changes_nothing_leaves_first() -> None:
    model = llama()
    for projection in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        torch.nn.init.zeros_(projection.weight)
    assert removal_order(model, examples(), 5) == [2]


def test_choosing_layers_leaves_the_model_as_it_was() -> None:
    model = llama()
    before = logits(model)
    assert len(removal_order(model, examples(), 1)) == 5
    assert removal_order(model, examples(), 6) == []
    assert torch.equal(logits(model), before)
    assert not model.model.layers[0]._forward_pre_hooks


def test_examples_without_completions_are_an_error() -> None:
    with pytest.raises(TrainingError, match="no completion position"):
        removal_order(llama(), [TokenizedExample([3, 4], [3, 4], [])], 5)


@pytest.mark.parametrize("n", [0, 7])
def test_more_layers_than_there_are_is_an_error(n: int) -> None:
    with pytest.raises(TrainingError, match=f"student of {n} layers .* teacher of 6 layers"):
        removal_order(llama(), examples(), n)


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
