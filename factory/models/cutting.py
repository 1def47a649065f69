"""Cuts a base from a teacher: fewer layers, narrower MLPs, or whichever of several depths and widths loses least.

base = prune_teacher(trimmed_teacher, tokens, [Dimensions(20, 1536)], examples).base
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from factory.models.base import Base, Shape, count_parameters
from factory.models.calibration import CalibrationBatch, calibration_batches, mean_kl
from factory.models.chat import stop_tokens
from factory.models.dimensions import Dimensions, whole_dimensions
from factory.models.forward import check_head
from factory.models.pruning import prune_layers, removal_order
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample
from factory.models.width import prune_width


@dataclass(frozen=True)
class Tried:
    """A depth and width that a base might have, unhealed."""

    dimensions: Dimensions
    parameters: int
    kl: float  # KL(teacher ‖ base) on the calibration examples, nats/token


@dataclass(frozen=True)
class PrunedTeacher:
    """An unhealed float32 base; ``tried`` are the dimensions that it was chosen from, none where there was no choice."""

    base: Base
    tried: tuple[Tried, ...] = ()


def prune_teacher(
    teacher: Teacher,
    tokens: tuple[int, ...] | None,
    dimensions: Sequence[Dimensions],
    examples: Sequence[TokenizedExample],
    progress: Callable[[int], None] = lambda steps: None,
) -> PrunedTeacher:
    """``prune_teacher(trimmed_teacher, tokens, [Dimensions(20, 1536)], examples).base``: the examples decide what stays.

    Of several dimensions the base has those with the least KL to the teacher on the examples. ``progress`` counts
    ``pruning_steps``. Raises: TrainingError for dimensions that the teacher does not have.
    """
    depth, least = whole_dimensions(teacher.config).layers, min(one.layers for one in dimensions)
    order = removal_order(teacher.model, examples, least, progress)
    batches = calibration_batches(examples, teacher.device)

    tried: list[Tried] = []
    for wanted in dimensions:
        leave = set(order[: depth - wanted.layers])
        base = _cut(teacher, tokens, [i for i in range(depth) if i not in leave], wanted.intermediate_size, batches)
        progress(1)
        if len(dimensions) == 1:
            return PrunedTeacher(base)
        tried.append(Tried(wanted, count_parameters(base.model), mean_kl(teacher.model, base.model, batches)))
        if min(tried, key=lambda one: one.kl) is tried[-1]:
            best = base
    return PrunedTeacher(best, tuple(tried))


def pruning_steps(teacher: Teacher, dimensions: Sequence[Dimensions]) -> int:
    """``pruning_steps(teacher, dimensions)``: how many layers leave and bases are cut, for a progress bar."""
    leave = whole_dimensions(teacher.config).layers - min(one.layers for one in dimensions)
    return max(0, leave) + len(dimensions)


def _cut(
    teacher: Teacher,
    tokens: tuple[int, ...] | None,
    layers: Sequence[int],
    intermediate_size: int,
    batches: Sequence[CalibrationBatch],
) -> Base:
    model = copy.deepcopy(teacher.model).float()
    prune_layers(model, layers)
    if intermediate_size != whole_dimensions(teacher.config).intermediate_size:
        prune_width(model, intermediate_size, batches)
    model.generation_config.eos_token_id = stop_tokens(teacher.tokenizer)
    check_head(model)
    return Base(model, teacher.tokenizer, Shape(tuple(layers), tokens))
