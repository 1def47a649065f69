"""Bases cut from a teacher: to stated dimensions, and to those of several that lose least."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tiny

from factory.models.base import count_parameters
from factory.models.calibration import calibration_batches, mean_kl
from factory.models.chat import stop_tokens
from factory.models.cutting import prune_teacher, pruning_steps
from factory.models.dimensions import Dimensions
from factory.models.forward import check_head
from factory.models.teacher import Teacher

EXAMPLES = tiny.sequences(12)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma])
@pytest.mark.parametrize("wanted", [Dimensions(2, 64), Dimensions(3, 32), Dimensions(2, 32)], ids=str)
def test_a_pruned_base_is_a_whole_float32_model_that_knows_its_layers_and_stops(make: Any, wanted: Dimensions) -> None:
    teacher = Teacher.of(make(), tiny.tokenizer(), "tiny")
    before = {name: weight.clone() for name, weight in teacher.model.state_dict().items()}
    base = prune_teacher(teacher, None, [wanted], EXAMPLES).base
    config = base.model.config
    assert base.shape.layers is not None and len(base.shape.layers) == wanted.layers == config.num_hidden_layers
    assert config.intermediate_size == wanted.intermediate_size == base.model.model.layers[0].mlp.down_proj.in_features
    assert base.model.dtype == torch.float32 and config.vocab_size == 360
    assert base.model.generation_config.eos_token_id == stop_tokens(base.tokenizer)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.model.state_dict().items())
    check_head(base.model)


def test_all_layers_and_neurons_kept_is_the_teacher_itself() -> None:
    teacher = tiny.teacher()
    pruned = prune_teacher(teacher, None, [Dimensions(4, 64)], EXAMPLES)
    assert mean_kl(teacher.model, pruned.base.model, calibration_batches(EXAMPLES, tiny.CPU)) == pytest.approx(0, abs=1e-6)
    assert pruned.tried == ()


def test_of_several_dimensions_the_base_has_those_with_the_least_kl_and_all_are_told() -> None:
    teacher, wanted = tiny.teacher(), [Dimensions(4, 32), Dimensions(3, 32), Dimensions(2, 64)]
    pruned = prune_teacher(teacher, None, wanted, EXAMPLES)
    alone = {one: prune_teacher(teacher, None, [one], EXAMPLES).base for one in wanted}
    batches = calibration_batches(EXAMPLES, tiny.CPU)
    assert [one.dimensions for one in pruned.tried] == wanted
    for tried in pruned.tried:
        assert tried.kl == pytest.approx(mean_kl(teacher.model, alone[tried.dimensions].model, batches), rel=1e-5)
        assert tried.parameters == count_parameters(alone[tried.dimensions].model)
    best = min(pruned.tried, key=lambda one: one.kl)
    assert pruned.base.shape == alone[best.dimensions].shape
    assert pruned.base.model.config.intermediate_size == best.dimensions.intermediate_size


@pytest.mark.parametrize("wanted", [[Dimensions(2, 64)], [Dimensions(4, 32)], [Dimensions(4, 32), Dimensions(2, 64)]])
def test_progress_counts_every_step(wanted: list[Dimensions]) -> None:
    teacher, seen = tiny.teacher(), []
    prune_teacher(teacher, None, wanted, EXAMPLES, seen.append)
    assert sum(seen) == pruning_steps(teacher, wanted)
