"""Training does not depend on the tokens that a tokenizer names, of which trl and transformers ask for some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from factory.config.schema import DistillConfig
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import distill
from factory.distill.training_data import TrainingSet
from factory.models.base import attach_adapter

ROWS = tiny.sequences(6)
CONFIG = DistillConfig(steps=2, batch=4, learning_rate=5e-3, rank=4, alpha=8, max_new_tokens=5, relation=0, lmbda=0.5)


def loss(folder: Path, **named: Any) -> float:
    """After two steps, on the student's own samples too."""
    own = tiny.tokenizer(**named)
    base, teacher = replace(tiny.base(), tokenizer=own), replace(tiny.teacher(), tokenizer=own)
    store = SoftTargetStore.make(folder / "targets", teacher, ROWS, top_k=16, temperature=1.0)
    training_set = TrainingSet(ROWS, store, np.zeros((len(ROWS), 0), dtype=np.float32))
    torch.manual_seed(0)
    model = attach_adapter(base, CONFIG)
    return distill(model, base, teacher, training_set, CONFIG, folder=folder / "run", seed=0).curve[-1]["loss"]


@pytest.mark.parametrize(
    "named",
    [{"pad_token": None}, {"eos_token": None}, {"pad_token": "<|im_end|>"}, {"pad_token": None, "eos_token": None}],
    ids=["no pad", "no eos", "pad is eos", "neither"],
)
def test_a_tokenizer_without_pad_or_eos_trains_as_any_other(named: dict[str, Any], tmp_path: Path) -> None:
    assert loss(tmp_path / "named", **named) == pytest.approx(loss(tmp_path / "all"), rel=1e-6)
