"""How deep and how wide a base is, what that makes of a teacher's config, and which depths and widths fit a budget.

    dimensions_of(size, teacher.config)                                     # Dimensions(layers=20, intermediate_size=1536)
    dimensions_within(teacher.config, 80_000_000)                           # at most five, the deepest first
    parameters_of(resized(teacher.config, Dimensions(20, 1024), 14_000))    # 61_234_560

No weights are loaded.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from factory.config.models import SizeSpec
from factory.errors import TrainingError
from factory.models.pruning import keep_in_config
from factory.models.width import check_gated

MULTIPLE = 32  # of neurons: a block of a quantized GGUF tensor
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # what configs call their number
DEPTHS = 5  # tried for a budget at most


@dataclass(frozen=True)
class Dimensions:
    layers: int
    intermediate_size: int  # neurons of every MLP

    def __str__(self) -> str:
        return f"{self.layers} layers with {self.intermediate_size:,} neurons each"


def dimensions_of(size: SizeSpec, config: PreTrainedConfig) -> Dimensions:
    """``dimensions_of(size, teacher.config)``: of a size that states them; what it leaves out is the teacher's."""
    whole = whole_dimensions(config)
    return Dimensions(size.layers or whole.layers, size.intermediate_size or whole.intermediate_size)


def whole_dimensions(config: PreTrainedConfig) -> Dimensions:
    """``whole_dimensions(teacher.config)``: as it is; no neurons where the architecture has no one number of them."""
    text: Any = config.get_text_config()
    width = getattr(text, "intermediate_size", None)
    return Dimensions(int(text.num_hidden_layers), width if isinstance(width, int) else 0)


def check_size(size: SizeSpec, config: PreTrainedConfig) -> None:
    """``check_size(size, teacher.config)``: what can be known of a pruned size before anything is made.

    Raises: TrainingError for more layers or no fewer neurons than the teacher has, for a budget of parameters that holds all of
    it or nothing, for MLPs that are not gated, and for a mixture of experts.
    """
    if size.base is None:
        check_dense(config)
    depth = whole_dimensions(config).layers
    if size.layers is not None and size.layers > depth:
        raise TrainingError(f"a student of {size.layers} layers cannot be cut from a teacher of {depth} layers")
    if size.intermediate_size is not None:
        check_gated(empty_model(config), size.intermediate_size)
    if size.parameters is not None:
        check_gated(empty_model(config), MULTIPLE)
        dimensions_within(resized(config, whole_dimensions(config), size.vocabulary), size.parameters)


def check_dense(config: PreTrainedConfig) -> None:
    """``check_dense(teacher.config)``. Raises: TrainingError for a mixture of experts."""
    text: Any = config.get_text_config()
    counts = [count for name in EXPERTS if isinstance(count := getattr(text, name, None), int)]
    if max(counts, default=1) > 1:
        raise TrainingError(
            f"{text.model_type} is a mixture of {max(counts)} experts, which no student is cut from: choose a dense model of "
            "its series as teacher, or give the size a dense `base` with the same tokens"
        )


def resized(config: PreTrainedConfig, dimensions: Dimensions, vocabulary: int | None = None) -> PreTrainedConfig:
    """``resized(teacher.config, Dimensions(20, 1024), 14_000)``: of the model with its first layers and as many tokens."""
    changed = copy.deepcopy(config)
    text: Any = changed.get_text_config()
    keep_in_config(changed, range(dimensions.layers))
    if dimensions.intermediate_size:
        text.intermediate_size = dimensions.intermediate_size
    text.vocab_size = min(vocabulary or text.vocab_size, text.vocab_size)
    return changed


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """``empty_model(config)``: names and shapes of a model's weights, without the weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def parameters_of(config: PreTrainedConfig) -> int:
    """``parameters_of(teacher.config)``: a tied head counts once."""
    return sum(parameter.numel() for parameter in empty_model(config).parameters())


def fitting_layers(whole: Dimensions, budget: int, cost: Callable[[Dimensions], int]) -> int:
    """``fitting_layers(whole, 80_000_000, cost)``: as many layers as fit at full width; 0 where not one does."""
    return bisect_right(range(1, whole.layers + 1), budget, key=lambda depth: cost(Dimensions(depth, whole.intermediate_size)))


def fitting_width(whole: Dimensions, layers: int, budget: int, cost: Callable[[Dimensions], int]) -> int:
    """``fitting_width(whole, 30, 80_000_000, cost)``: as many neurons as fit in so many layers; 0 where 32 do not."""
    widths = range(MULTIPLE, whole.intermediate_size, MULTIPLE)
    fitting = bisect_right(widths, budget, key=lambda width: cost(Dimensions(layers, width)))
    return widths[fitting - 1] if fitting else 0


def dimensions_within(config: PreTrainedConfig, budget: int) -> list[Dimensions]:
    """``dimensions_within(trimmed_teacher.config, 80_000_000)``: depths with the width at which each has so many parameters.

    At most five, evenly from all layers down to as many as fit at full width; widths are the largest multiples of 32 that fit.
    Raises: TrainingError where the whole model fits, or nothing does.
    """
    whole, tokens = whole_dimensions(config), config.get_text_config().vocab_size

    def count(dimensions: Dimensions) -> int:
        return parameters_of(resized(config, dimensions))

    if count(whole) <= budget:
        raise TrainingError(
            f"{budget:,} parameters hold the whole teacher with {tokens:,} tokens ({count(whole):,}): give fewer, or leave "
            "`parameters` out and nothing has to be pruned"
        )
    at_full_width = fitting_layers(whole, budget, count)
    shallowest = max(1, at_full_width)
    depths = {whole.layers + round((shallowest - whole.layers) * step / (DEPTHS - 1)) for step in range(DEPTHS)}
    widths = {depth: fitting_width(whole, depth, budget, count) for depth in sorted(depths, reverse=True)}
    if at_full_width:
        widths[at_full_width] = whole.intermediate_size
    found = [Dimensions(depth, width) for depth, width in widths.items() if width]
    if not found:
        raise TrainingError(
            f"{budget:,} parameters do not hold a layer of the teacher with {tokens:,} tokens "
            f"({count(Dimensions(1, MULTIPLE)):,}): give more, or a smaller `vocabulary`"
        )
    return found
