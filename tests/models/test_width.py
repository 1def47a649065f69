"""Neurons: which ones stay, what the rest of an MLP is fitted to, and that a narrower model is a whole model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from transformers import (
    AutoModelForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from factory.errors import TrainingError
from factory.models.calibration import calibration_batches, mean_kl
from factory.models.forward import check_head, hidden_states
from factory.models.width import RIDGE, prune_width

EXAMPLES = tiny.sequences(16)
BATCHES = calibration_batches(EXAMPLES, tiny.CPU)
SMALL: dict[str, Any] = {
    "vocab_size": 360, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.25, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL)).eval()


MODELS = pytest.mark.parametrize("make", [tiny.llama, tiny.gemma, qwen])


@torch.no_grad()
def activations(model: Any, layer: int) -> torch.Tensor:
    """What a down projection is given for the tokens of prompts and completions, one example after the other: (tokens, I)."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for one in EXAMPLES:
        model(input_ids=torch.tensor([[*one.teacher_prompt, *one.completion]]))
    handle.remove()
    context = len(BATCHES[0].context)
    return torch.cat([one[context:] for one in seen])


@MODELS
def test_the_neurons_that_are_active_most_stay_in_their_order(make: Any) -> None:
    model = make()
    narrow: Any = copy.deepcopy(model)
    prune_width(narrow, 32, BATCHES, fit=False)
    for number, (whole, left) in enumerate(zip(model.model.layers, narrow.model.layers, strict=True)):
        keep = activations(model, number).abs().mean(dim=0).topk(32).indices.sort().values
        for name in ("gate_proj", "up_proj"):
            assert torch.equal(getattr(left.mlp, name).weight, getattr(whole.mlp, name).weight[keep])
        assert torch.equal(left.mlp.down_proj.weight, whole.mlp.down_proj.weight[:, keep])


def test_neurons_that_are_never_active_leave_and_nothing_changes() -> None:
    model: Any = tiny.llama()
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[::2] = 0  # 32 of 64
    narrow = copy.deepcopy(model)
    prune_width(narrow, 32, BATCHES)
    assert mean_kl(model, narrow, BATCHES) == pytest.approx(0, abs=1e-5)


def test_a_neuron_that_others_can_stand_in_for_is_made_up_for() -> None:
    model: Any = tiny.llama(layers=1)
    mlp = model.model.layers[0].mlp
    for weight in (mlp.gate_proj.weight.data, mlp.up_proj.weight.data):
        weight[32:] = weight[:32]  # every neuron twice
    mlp.up_proj.weight.data[32:] *= 0.02  # the second is hardly active, and leaves
    mlp.down_proj.weight.data[:, 32:] *= 50  # yet it counts as much
    fitted, plain = copy.deepcopy(model), copy.deepcopy(model)
    assert prune_width(fitted, 32, BATCHES) == 1
    assert prune_width(plain, 32, BATCHES, fit=False) == 0
    assert mean_kl(model, fitted, BATCHES) < 0.5 * mean_kl(model, plain, BATCHES)


@torch.no_grad()
def test_the_change_is_that_of_ridge_regression_on_what_leaves() -> None:
    model, fitted = tiny.llama(), tiny.llama()
    assert prune_width(fitted, 32, BATCHES) == 4
    seen: list[torch.Tensor] = []
    mlp: Any = model.model.layers[0].mlp
    mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    [batch] = BATCHES
    hidden_states(model, batch.rows, batch.context)
    every = seen[-1][batch.rows.real].double()
    keep = every.abs().mean(dim=0).topk(32).indices.sort().values
    leave = [i for i in range(64) if i not in keep.tolist()]
    learnt = seen[-1][batch.rows.real & (torch.arange(16) % 4 != 3).unsqueeze(-1)].double()
    down = mlp.down_proj.weight.double()
    penalty = (RIDGE**0.5) * learnt[:, keep].norm(dim=0).diag()
    target = torch.cat([learnt[:, leave] @ down[:, leave].T, torch.zeros(32, 32, dtype=torch.double)])
    change = torch.linalg.lstsq(torch.cat([learnt[:, keep], penalty]), target).solution.T
    torch.testing.assert_close(fitted.model.layers[0].mlp.down_proj.weight.double(), down[:, keep] + change, atol=1e-5, rtol=0)


@MODELS
def test_what_is_left_is_fitted_to_the_whole_mlp_s_output_where_that_holds_on_other_examples(make: Any) -> None:
    model = make()
    fitted, plain = copy.deepcopy(model), copy.deepcopy(model)
    assert 0 < prune_width(fitted, 32, BATCHES) <= model.config.num_hidden_layers
    prune_width(plain, 32, BATCHES, fit=False)
    assert mean_kl(model, fitted, BATCHES) < mean_kl(model, plain, BATCHES)


def test_without_other_examples_the_weights_stay_as_they_were() -> None:
    alone = calibration_batches(EXAMPLES[:1], tiny.CPU)  # none is held out
    assert prune_width(tiny.llama(), 32, alone) == 0


@MODELS
def test_a_narrower_model_is_the_same_after_saving_and_loading(make: Any, tmp_path: Path) -> None:
    model = make()
    prune_width(model, 32, BATCHES)
    check_head(model)
    assert model.config.intermediate_size == 32
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert mean_kl(model, loaded, BATCHES) == pytest.approx(0, abs=1e-6)
    prompt = {"input_ids": torch.tensor([EXAMPLES[0].prompt]), "do_sample": False, "max_new_tokens": 8}
    assert torch.equal(loaded.generate(**prompt), model.generate(**prompt))


@pytest.mark.parametrize("n", [64, 96])
def test_no_fewer_neurons_than_there_are_is_an_error(n: int) -> None:
    with pytest.raises(TrainingError, match=f"an MLP of {n} neurons cannot be cut from a teacher's of 64; keep fewer"):
        prune_width(tiny.llama(), n, BATCHES)


def test_an_mlp_that_is_not_gated_by_two_projections_is_an_error() -> None:
    model = Phi3ForCausalLM(Phi3Config(**SMALL, original_max_position_embeddings=64))
    with pytest.raises(TrainingError, match=r"only gated MLPs \(gate_proj, up_proj, down_proj\).*not Phi3MLP; prune `layers`"):
        prune_width(model, 32, BATCHES)
