"""The memory that a training needs at its peak on a CPU, before anything is trained.

    shape = TrainingShape(batch=32, row=144, rank=8)
    training_bytes(resized(teacher.config, dimensions, 36_000), shape, weight_bytes=4)

The constants were fitted to the peak resident memory of `distill` (docs/log.md, "memory before a training"). They hold where
products are float32; in bfloat16 a training needs less.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from factory.models.dimensions import parameters_of
from factory.models.forward import WIDTH

LIBRARIES = 600_000_000  # torch, transformers, trl and what they load
CHUNKS = 100_000_000  # logits of the positions that exist at once, and what a loss makes of them
NUMBER = 4  # bytes of a number that a layer keeps for backward: two of it, and as many that the allocator does not give back
SCORE = 3.3  # bytes of an attention score that a layer keeps: it holds those of all pairs of tokens
SCORES_NOW = 8  # bytes of each score of the layer that is computed right now
TRAINED = 12  # bytes of a weight's gradient and two moments


@dataclass(frozen=True)
class TrainingShape:
    """What decides the memory of a training beside its model."""

    batch: int
    row: int  # tokens of the longest row: prompt and answer
    rank: int | None = None  # of the adapter; None: all weights are trained
    beside: int = 0  # bytes of a teacher that stays in memory


def training_bytes(config: PreTrainedConfig, shape: TrainingShape, weight_bytes: int) -> int:
    """``training_bytes(base.config, TrainingShape(batch=32, row=144, rank=8), weight_bytes=4)``: of the whole process.

    Rows are padded to the longest of their batch, and the longest rows are in one batch.
    """
    one = config.get_text_config()
    layers, hidden, neurons, heads = (
        one.num_hidden_layers,
        one.hidden_size,
        one.intermediate_size,
        one.num_attention_heads,
    )
    row: int = -(-shape.row // WIDTH) * WIDTH
    tokens, pairs = shape.batch * row, shape.batch * heads * row * row
    kept = layers * (tokens * (6 * hidden + 4 * neurons) * NUMBER + pairs * SCORE)
    parameters = parameters_of(config)
    trained = parameters if shape.rank is None else layers * shape.rank * (9 * hidden + 3 * neurons)
    weights = parameters * weight_bytes + trained * (TRAINED + (0 if shape.rank is None else 4))
    return int(LIBRARIES + CHUNKS + weights + kept + pairs * SCORES_NOW + shape.beside)
