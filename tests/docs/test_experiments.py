"""docs/experiments.md: the loss that it adds trains, and the files of methods that ship are valid."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.markdown import ROOT, blocks

from factory.config.load import load_methods, load_specs
from factory.config.schema import DistillConfig
from factory.distill import losses
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import distill
from factory.distill.training_data import TrainingSet
from factory.models.base import attach_adapter

PAGE = ROOT / "docs" / "experiments.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Python of the page, imported from a file, as if it stood at the end of losses.py."""
    [block] = blocks(PAGE, "python")
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    (tmp_path / "shown.py").write_text(block.text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("shown", tmp_path / "shown.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loss_of_the_page_has_at_most_30_lines_and_its_hand_computed_value(shown: Any) -> None:
    [block] = blocks(PAGE, "python")
    assert len(block.text.splitlines()) <= 30
    teacher, student = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    assert losses.find_loss("total_variation")(student, teacher, 0.0).tolist() == pytest.approx([0.25, 0.0])


@pytest.mark.parametrize("lmbda", [0.0, 1.0], ids=["stored targets", "on-policy"])
def test_an_adapter_trains_with_it_by_its_name(shown: Any, tmp_path: Path, lmbda: float) -> None:
    teacher, base, rows = tiny.teacher(), tiny.base(), tiny.sequences(4)
    settings = DistillConfig(
        steps=25, batch=4, learning_rate=2e-2, rank=4, loss="total_variation", lmbda=lmbda, max_new_tokens=5
    )
    store = SoftTargetStore.make(tmp_path / "targets", teacher, rows, top_k=16, temperature=1.0)
    training_set = TrainingSet(rows, store, np.zeros((4, 1), dtype=np.float32))
    model = attach_adapter(base, settings)
    curve = distill(model, base, teacher, training_set, settings, folder=tmp_path / "run", seed=0).curve
    assert curve[-1]["response"] < curve[0]["response"]


@pytest.mark.parametrize(("name", "least"), [("methods.yaml", 6), ("ablations.yaml", 6)])
def test_the_files_of_methods_that_ship_fit_every_profile_of_the_shipped_family(name: str, least: int) -> None:
    specs = load_specs(ROOT / "domains")
    family = specs.family("default")
    for profile in ("default", *family.profiles):
        settings = family.settings(profile, specs.domain("healthcare")).distill
        spec = load_methods(ROOT / "scripts" / "bench" / name, settings)
        assert len(spec.methods) >= least and len(spec.learning_rates) == 3
        assert all(losses.find_loss(method.config(settings).loss) for method in spec.methods)
