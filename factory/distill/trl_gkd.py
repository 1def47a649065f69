"""trl's own GKDTrainer on the same ids, to be compared with: ``make_trl_trainer(model, base, teacher, examples, config, ...)``.

It is left as it is: its teacher sees the student's prompt, ``temperature`` is of sampling alone, and an on-policy step divides
by the tokens of the stored answers (trl 1.16).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback

from factory.config.schema import DistillConfig
from factory.distill.checkpoints import SeededOrder
from factory.distill.training_arguments import training_arguments
from factory.models.base import Base, check_vocabularies
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.gkd import GKDTrainer


class CountingGKDTrainer(GKDTrainer):
    """trl's trainer in our order of examples, which also counts the answer tokens of its losses."""

    teacher_tokens = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder:
        rows: Any = self.train_dataset
        return SeededOrder(self.args.train_batch_size, rows["length"], seed=self.args.seed)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        self.teacher_tokens += int((inputs["labels"] != -100).sum())
        compute: Any = super().compute_loss
        loss: Tensor | tuple[Tensor, Any] = compute(model, inputs, return_outputs, num_items_in_batch)
        return loss


def make_trl_trainer(
    model: nn.Module,
    base: Base,
    teacher: Teacher,
    examples: Sequence[TokenizedExample],
    config: DistillConfig,
    *,
    folder: Path,
    seed: int,
) -> CountingGKDTrainer:
    """``make_trl_trainer(attach_adapter(base, config), base, teacher, examples, config, folder=folder, seed=0).train()``.

    The vocabulary, the optimiser, the batches and the adapter are those of ``DistillTrainer``; ``lmbda``, ``beta`` and
    ``seq_kd`` mean the same. The terms beside the response, and stored targets, are not for it.
    """
    check_vocabularies(base.tokenizer, teacher.tokenizer)
    trainer = CountingGKDTrainer(
        model=model,
        teacher_model=copy.deepcopy(teacher.model),  # accelerate wraps its forward pass for good
        args=training_arguments(config, folder, seed, teacher.device, len(examples)),
        train_dataset=trl_rows(examples, base.tokenizer),
        processing_class=base.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trl_rows(examples: Sequence[TokenizedExample], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """``trl_rows(examples, tokenizer)``: as trl's trainers read them, with the ids that this project trains on."""
    return Dataset.from_list(
        [
            {
                "prompt": tokenizer.decode(one.prompt),
                "input_ids": [*one.prompt, *one.completion],
                "attention_mask": [1] * (len(one.prompt) + len(one.completion)),
                "completion_mask": [0] * len(one.prompt) + [1] * len(one.completion),
                "length": len(one.prompt) + len(one.completion),
            }
            for one in examples
        ]
    )
