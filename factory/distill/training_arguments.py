"""How transformers runs a training: the optimiser, how often it logs, saves and checks, and when checks end it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback

from factory.config.schema import DistillConfig
from factory.models.device import compute_dtype

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.gkd import GKDConfig

LOG_EVERY = 5  # steps between points of the training curve
SAVE_EVERY = 50  # steps between checkpoints
PATIENCE = 2  # checks in a row that are no better than the best one: then training ends


def training_arguments(config: DistillConfig, folder: Path, seed: int, device: torch.device, examples: int) -> GKDConfig:
    """``training_arguments(settings.distill, folder, seed=0, device=device, examples=400)``: as trl's trainers take them."""
    return GKDConfig(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, config.steps // 20),
        weight_decay=0.0,
        max_grad_norm=1.0,
        lmbda=config.lmbda,
        beta=config.beta,
        temperature=config.temperature,
        seq_kd=config.seq_kd,
        max_new_tokens=config.max_new_tokens,
        activation_checkpointing=False,
        train_sampling_strategy="group_by_length",
        bf16=compute_dtype(device) == torch.bfloat16,
        use_cpu=device.type == "cpu",
        seed=seed,
        logging_steps=min(LOG_EVERY, config.steps),
        save_strategy="steps",
        report_to=config.report_to,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        dataloader_drop_last=examples >= config.batch,  # the last, smaller batch of an epoch has few relations
        logging_nan_inf_filter=False,
        **_checkpoints(config),
    )


def _checkpoints(config: DistillConfig) -> dict[str, Any]:
    """The last checkpoint is kept, to go on from, and where there are checks the best one too."""
    if not config.checks:
        return {"save_steps": SAVE_EVERY, "save_total_limit": 1}
    every = -(-config.steps // config.checks)  # rounded up, since the last step is always checked
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "restore_callback_states_from_checkpoint": True,  # how many checks in a row were no better
    }


class EndWithoutProgress(EarlyStoppingCallback):
    """``EndWithoutProgress(PATIENCE)``: a callback that ends a training after so many checks in a row that are no better."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves between checks too, as they may lie far apart, and logs first: a checkpoint lacks what is not logged yet."""
        control.should_save = control.should_save or state.global_step % SAVE_EVERY == 0
        control.should_log = control.should_log or control.should_save
