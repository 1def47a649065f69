"""On a GPU, where there is one: the CPU's figures within bfloat16's rounding, and a build whose student answers anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.workplace import Workplace
from torch import Tensor, nn

from factory.config.schema import DistillConfig
from factory.distill.target_store import SoftTargetStore
from factory.distill.trainer import DistillTrainer, distill
from factory.distill.training_data import TrainingSet
from factory.models.base import Base, attach_adapter
from factory.models.device import pick_device
from factory.models.lora import fused_adapters
from factory.models.teacher import Teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

ROWS = tiny.sequences(8)
EMBEDDINGS = np.random.default_rng(0).normal(size=(len(ROWS), 5)).astype(np.float32)


def config(**over: Any) -> DistillConfig:
    plain = DistillConfig(steps=1, batch=8, learning_rate=3e-2, rank=8, alpha=16, max_new_tokens=5, feature=0.5)
    return plain.model_copy(update={"relation": 0.5, **over})


def on(device: str, folder: Path, make: Any = tiny.llama) -> tuple[Teacher, Base, TrainingSet]:
    """The same teacher, base and stored targets on either device."""
    teacher = tiny.teacher(make().to(device))
    base = Base(make(seed=1).to(device), tiny.tokenizer(), tiny.base().shape)
    store = SoftTargetStore.make(folder / device, teacher, ROWS, top_k=16, temperature=1.0)
    return teacher, base, TrainingSet(ROWS, store, EMBEDDINGS)


def gradients(device: str, folder: Path, settings: DistillConfig, make: Any) -> tuple[float, Tensor]:
    """The loss of one step over every example, and all gradients in one vector."""
    teacher, base, training_set = on(device, folder, make)
    torch.manual_seed(0)
    model = attach_adapter(base, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.02)
    trainer = DistillTrainer(model, base, teacher, training_set, settings, folder=folder / "run", seed=0)
    with fused_adapters(model.train()):
        loss = trainer.compute_loss(model, {"examples": list(range(len(ROWS)))})
        loss.backward()
    found = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma], ids=["llama", "gemma"])
def test_stored_targets_are_those_of_the_cpu(tmp_path: Path, make: Any) -> None:
    stores = [on(device, tmp_path, make)[2].targets for device in ("cpu", "cuda")]
    cpu, gpu = (store.rows(range(len(ROWS)), pick_device("cuda")) for store in stores if store is not None)
    assert cpu.log_probs.device.type == "cuda"
    torch.testing.assert_close(gpu.log_probs.exp(), cpu.log_probs.exp(), rtol=0, atol=0.03)
    assert (gpu.ids == cpu.ids).float().mean() > 0.9  # near ties change places


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma], ids=["llama", "gemma"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_step_has_the_loss_and_the_gradient_of_the_cpu(tmp_path: Path, beta: float, make: Any) -> None:
    settings = config(beta=beta)
    (cpu, on_cpu), (gpu, on_gpu) = (gradients(device, tmp_path / device, settings, make) for device in ("cpu", "cuda"))
    assert gpu == pytest.approx(cpu, rel=0.02)
    assert torch.cosine_similarity(on_cpu, on_gpu, dim=0) > 0.99
    assert float(on_gpu.norm()) == pytest.approx(float(on_cpu.norm()), rel=0.05)


@pytest.mark.parametrize("lmbda", [0.0, 1.0], ids=["off-policy", "on-policy"])
def test_a_student_learns(tmp_path: Path, lmbda: float) -> None:
    teacher, base, training_set = on("cuda", tmp_path)
    settings = config(steps=60, lmbda=lmbda, relation=0.0, feature=0.0)
    model = attach_adapter(base, settings)
    report = distill(model, base, teacher, training_set, settings, folder=tmp_path / "run", seed=0)
    losses = [row["loss"] for row in report.curve]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_student_that_is_built_on_a_gpu_answers_on_the_cpu(with_models: Workplace) -> None:
    torch.cuda.reset_peak_memory_stats()
    built = with_models.run("build", "plants", "--baselines", "--device", "cuda")
    assert built.exit_code == 0, (built.output, built.exception)
    assert torch.cuda.max_memory_allocated() > 0
    for device in ("cpu", "cuda"):
        answered = with_models.run("ask", "plants-mini@1", "what is the use of oak ?", "--device", device)
        assert answered.exit_code == 0, (answered.output, answered.exception)
