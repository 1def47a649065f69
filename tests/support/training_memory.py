"""What a training of a random model takes: ``python -m support.training_memory "long rows"`` prints its peak as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factory.config.schema import DistillConfig
from factory.distill.memory import TrainingShape
from factory.distill.trainer import distill
from factory.distill.training_data import TrainingSet
from factory.models.attention import GROUPED
from factory.models.base import Base, Shape, attach_adapter
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample
from support import tiny

# hidden, intermediate, layers, heads, vocabulary, rows, tokens of a row, rank (None: all weights)
MEASURED: dict[str, tuple[int, int, int, int, int, int, int, int | None]] = {
    "8 layers": (256, 768, 8, 4, 2_000, 8, 256, 8),
    "16 layers": (256, 768, 16, 4, 2_000, 8, 256, 8),
    "all weights": (256, 768, 8, 4, 2_000, 8, 256, None),
    "wide": (256, 2048, 4, 4, 30_000, 4, 256, 8),
    "long rows": (64, 128, 1, 2, 400, 1, 3000, 8),
    "longer layers": (256, 768, 4, 4, 2_000, 1, 2048, 8),
}


def config_of(name: str) -> LlamaConfig:
    hidden, neurons, layers, heads, vocabulary, *_ = MEASURED[name]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


def shape_of(name: str) -> TrainingShape:
    *_, rows, tokens, rank = MEASURED[name]
    return TrainingShape(rows, tokens, rank)


def train(name: str) -> float:
    """Two steps; the last loss."""
    torch.manual_seed(0)
    shape, tokenizer, rng = shape_of(name), tiny.tokenizer(), np.random.default_rng(0)
    model = LlamaForCausalLM(config_of(name))
    model.set_attn_implementation(GROUPED)
    base = Base(model, tokenizer, Shape(None, None))
    teacher = Teacher(lambda: model, tokenizer, "random", model.config, torch.device("cpu"))
    ids = rng.integers(3, 350, (shape.batch, shape.row)).tolist()
    rows = [TokenizedExample(row[:16], row[:16], row[16:]) for row in ids]
    training_set = TrainingSet(rows, None, np.zeros((len(rows), 5), np.float32))
    config = DistillConfig(steps=2, batch=shape.batch, learning_rate=1e-3, rank=shape.rank or 8, alpha=16)
    trained = base.model if shape.rank is None else attach_adapter(base, config)
    with tempfile.TemporaryDirectory() as folder:
        report = distill(trained, base, teacher, training_set, config, folder=Path(folder), seed=0)
    return report.curve[-1]["loss"]


def peak() -> int:
    """Bytes of this process; ``ru_maxrss`` would begin with those of the process that started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


if __name__ == "__main__":
    loss = train(sys.argv[1])
    print(json.dumps({"peak": peak(), "loss": loss}))
