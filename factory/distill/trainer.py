"""Generalized knowledge distillation on trl's GKDTrainer, with ground truth, feature and relation terms beside the response."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from factory.cache import seal, storage_errors
from factory.config.schema import DistillConfig
from factory.distill.checkpoints import SeededOrder, keep_newest, last_checkpoint
from factory.distill.chunked_loss import position_loss
from factory.distill.features import feature_projection, last_states, mapped_layers, teacher_features
from factory.distill.gradients import SHARE_OF, gradient_shares, measured_steps, median_shares
from factory.distill.losses import feature_loss, find_loss, relation_loss
from factory.distill.soft_targets import LiveTargets, SoftTargets, hard_targets, score_live
from factory.distill.training_arguments import PATIENCE, EndWithoutProgress, training_arguments
from factory.distill.training_data import TrainingSet
from factory.distill.training_report import TrainingReport, learning_curve
from factory.errors import TrainingError
from factory.models.base import Base, check_vocabularies
from factory.models.chat import stop_tokens
from factory.models.device import mixed_precision, small_activations
from factory.models.forward import Batch, States, hidden_states, make_batch, mean_pool, unwrap
from factory.models.generation import sample
from factory.models.lora import fused_adapters, merged_adapters
from factory.models.scoring import length_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from trl.experimental.gkd import GKDTrainer

PROJECTION = "projection.safetensors"  # in a checkpoint, never in an adapter


class DistillTrainer(GKDTrainer):
    """``DistillTrainer(model, base, teacher, training_set, config, folder=folder, seed=0).train()``.

    It differs from trl's trainer in seven ways: the teacher's targets are read from disk, and only sampled completions are
    scored live, over the whole vocabulary; logits are computed at completion positions only; the teacher sees its context and
    the student does not, aligned at the completion; ``temperature`` reaches the loss; the loss of an on-policy step is the mean
    over its own tokens; ground truth, feature and relation terms are added; a check is the mean over all validation tokens.
    Without targets it is supervised fine-tuning (SFT).
    """

    def __init__(
        self,
        model: nn.Module,
        base: Base,
        teacher: Teacher,
        training_set: TrainingSet,
        config: DistillConfig,
        *,
        folder: Path,
        seed: int,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        check_vocabularies(base.tokenizer, teacher.tokenizer)
        self.training_set, self.config, self.teacher = training_set, config, teacher
        self.loss = find_loss(config.loss)
        self.teacher_tokens = 0  # answer tokens in the losses so far, each as often as it was read
        self.stop = stop_tokens(base.tokenizer)
        indices = list(training_set.indices)
        lengths = [_length(training_set.examples[i]) for i in indices]
        if config.checks and not training_set.validation:
            raise TrainingError(f"checks is {config.checks}, but there are no validation examples to check on; set it to 0")
        super().__init__(
            model=model,
            teacher_model=_NoTeacher(teacher.config),
            args=training_arguments(config, folder, seed, teacher.device, len(lengths)),
            train_dataset=Dataset.from_dict({"example": indices, "length": lengths}),
            eval_dataset=Dataset.from_dict({"example": list(training_set.validation)}) if config.checks else None,
            data_collator=self._collate,
            processing_class=base.tokenizer,
            callbacks=[*callbacks, EndWithoutProgress(PATIENCE)] if config.checks else list(callbacks),
        )
        # trl puts a forward of its own on the model, for a loss that is not ours. A copy of the model would run the original's.
        unwrap(self.model).__dict__.pop("forward", None)
        self.model_accepts_loss_kwargs = False  # a step's loss is a mean over its own completion tokens
        teacher_depth, depth = (one.get_text_config().num_hidden_layers for one in (teacher.config, base.model.config))
        self.student_layers = mapped_layers(base.shape.layers, teacher_depth, depth)
        self.projection = feature_projection(base, teacher).to(teacher.device)
        self.measured_steps = measured_steps(config.steps)
        self.remove_callback(PrinterCallback)  # the caller has a progress bar and the returned curve

    def _collate(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        return {"examples": [row["example"] for row in rows]}

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs  # compute_loss makes the tensors

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The projection is optimised with the model, but not saved with it."""
        optimizer = super().create_optimizer()
        parameters = list(self.projection.parameters())
        if parameters and self.config.feature > 0:
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0})
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder:
        rows: Any = self.train_dataset
        return SeededOrder(self.args.train_batch_size, rows["length"], seed=self.args.seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The projection is part of a checkpoint, so that training resumes with it. A sealed checkpoint is whole.

        Older ones go once it is.
        """
        save: Any = super()._save_checkpoint
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # transformers' own rotation goes by the clock
        with storage_errors(f"cannot write {folder}"):
            save(model, trial)
            if state := self.projection.state_dict():
                save_file(state, folder / PROJECTION)
            seal(folder)
        self.args.save_total_limit = limit
        keep_newest(folder.parent, limit or 1, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / PROJECTION
        if path.exists():
            self.projection.load_state_dict(load_file(path))

    def _load_best_model(self) -> None:
        """As any checkpoint: with the projection, and the adapter stays trainable."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def finished(self, checkpoint: Path) -> bool:
        """``trainer.finished(checkpoint)``: whether the training has ended; the kept weights and the curve are then loaded."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        ended = state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]  # by its checks, too
        if state.global_step < self.config.steps and not ended:
            return False
        kept = state.best_global_step or state.global_step
        self._load_from_checkpoint(str(checkpoint.with_name(f"checkpoint-{kept}")))
        self.state = state
        return True

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Chooses this step's completions (the student's, the teacher's or the stored ones) and takes the step."""
        self.projection.zero_grad()  # the parent only clears the model's gradients
        chosen = [self.training_set.examples[i] for i in inputs["examples"]]
        if random.random() < self.config.lmbda:
            inputs["sampled"] = self._sampled(model, [s.prompt for s in chosen])
        elif self.config.seq_kd:
            inputs["sampled"] = self._sampled(self.teacher.model, [s.teacher_prompt for s in chosen])
        step: Any = super(GKDTrainer, self).training_step  # skips GKDTrainer, which would sample again
        with fused_adapters(model), small_activations(self.teacher.device):
            loss: Tensor = step(model, inputs, num_items_in_batch)
        return loss

    def _sampled(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        training = model.training
        model.eval()
        with mixed_precision(self.teacher.device), merged_adapters(model):
            sampled = sample(
                model,
                prompts,
                stop=self.stop,
                max_new_tokens=self.config.max_new_tokens,
                temperature=self.config.temperature,
                seed=random.getrandbits(32),
            )
        model.train(training)
        return sampled

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The weighted sum of the terms; one of weight 0, or ground truth without a reference, is not computed."""
        student = self.accelerator.unwrap_model(model)
        terms = self._terms(student, inputs, ("response", "ground_truth", "feature", "relation"))
        self.teacher_tokens += sum(map(len, self._completions(inputs)))
        for name, term in terms.items():
            self._metrics["train"][name].append(term.item())
        weighted = {name: getattr(self.config, name) * term for name, term in terms.items()}
        if len(weighted) > 1 and self.state.global_step in self.measured_steps:
            self._log_gradient_shares(student, weighted)
        return torch.stack(list(weighted.values())).sum()

    def _terms(self, student: nn.Module, inputs: dict[str, Any], names: Collection[str]) -> dict[str, Tensor]:
        """Those of the named terms that have a weight, each without it."""
        wanted = {name for name in names if getattr(self.config, name) > 0}
        device, examples, completions = self.teacher.device, inputs["examples"], self._completions(inputs)
        chosen = [self.training_set.examples[i] for i in examples]
        batch = make_batch([s.prompt for s in chosen], completions).to(device)
        targets = self._targets(examples, completions, live="sampled" in inputs)
        terms: dict[str, Tensor] = {}
        with mixed_precision(self.teacher.device):
            states = hidden_states(student, batch)
            if "response" in wanted:
                terms["response"] = self._response(student, states, batch, targets)
            if "ground_truth" in wanted and "sampled" not in inputs and any(one.reference for one in chosen):
                terms["ground_truth"] = _ground_truth(student, states, batch, chosen)
            if "feature" in wanted:
                terms["feature"] = self._feature(states, batch, chosen, completions)
            if "relation" in wanted:
                embeddings = torch.from_numpy(self.training_set.embeddings[examples]).to(device)
                terms["relation"] = relation_loss(self._stored_embeddings(student, states, batch, inputs, chosen), embeddings)
        return terms

    def _completions(self, inputs: dict[str, Any]) -> Sequence[Sequence[int]]:
        return inputs.get("sampled") or [self.training_set.examples[i].completion for i in inputs["examples"]]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """A check: ``eval_loss`` is the loss on the validation examples.

        In place of transformers' loop, which leaves out a last, smaller batch where training does, and weighs batches alike.
        """
        student = self.accelerator.unwrap_model(self.model).eval()
        metrics = {"eval_loss": self._validation_loss(student)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _validation_loss(self, student: nn.Module) -> float:
        """Response and ground truth, each a mean over its tokens in all validation examples, on the stored completions.

        A feature term says little of what a student writes, and a relation term depends on who is in a batch with whom.
        """
        sums, tokens = defaultdict[str, float](float), defaultdict[str, int](int)
        validation, known = self.training_set.validation, self.training_set.examples
        for batch in length_batches([_length(known[i]) for i in validation], self.config.batch):
            examples = [validation[i] for i in batch]
            with fused_adapters(student):
                terms = self._terms(student, {"examples": examples}, ("response", "ground_truth"))
            for name, term in terms.items():
                counted = [len(known[i].completion) for i in examples if name == "response" or known[i].reference]
                tokens[name] += sum(counted)
                sums[name] += term.item() * sum(counted)
        weights: dict[str, float] = {name: getattr(self.config, name) for name in sums}
        return sum(weights[name] * sums[name] / tokens[name] for name in sums)

    def _log_gradient_shares(self, student: nn.Module, weighted: dict[str, Tensor]) -> None:
        """In the log, since that is part of a checkpoint."""
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        for name, share in gradient_shares(weighted, trained).items():
            self._metrics["train"][SHARE_OF + name].append(share)

    def _targets(
        self, examples: Sequence[int], completions: Sequence[Sequence[int]], *, live: bool
    ) -> SoftTargets | LiveTargets:
        if self.training_set.targets is None:
            return hard_targets(completions, self.teacher.device)
        if not live:
            return self.training_set.targets.rows(examples, self.teacher.device)
        return score_live(self.teacher, [self.training_set.examples[i].teacher_prompt for i in examples], completions)

    def _response(self, student: nn.Module, states: States, batch: Batch, targets: SoftTargets | LiveTargets) -> Tensor:
        def divergence(values: Tensor, span: slice) -> Tensor:
            return self.loss(*targets.aligned(values, span, self.config.temperature), self.config.beta)

        return position_loss(student, states.final[batch.predicts], divergence)

    def _feature(
        self, states: States, batch: Batch, chosen: Sequence[TokenizedExample], completions: Sequence[Sequence[int]]
    ) -> Tensor:
        """Token by token, over what teacher and student both see; the student's states are projected if the widths differ."""
        teacher, counts = teacher_features(
            self.teacher, [s.teacher_prompt for s in chosen], [s.prompt for s in chosen], completions
        )
        student: Tensor = self.projection(last_states(states, batch, counts, self.student_layers))
        return feature_loss(student, teacher)

    def _stored_embeddings(
        self, student: nn.Module, states: States, batch: Batch, inputs: dict[str, Any], chosen: Sequence[TokenizedExample]
    ) -> Tensor:
        """(B, H): mean final states over prompt and *stored* completion, the text that the encoder embedded."""
        if inputs.get("sampled"):
            batch = make_batch([s.prompt for s in chosen], [s.completion for s in chosen]).to(batch.input_ids.device)
            states = hidden_states(student, batch)
        return mean_pool(states.final, batch.real)


def _length(example: TokenizedExample) -> int:
    return len(example.prompt) + len(example.completion)


def _ground_truth(student: nn.Module, states: States, batch: Batch, chosen: Sequence[TokenizedExample]) -> Tensor:
    """Mean cross-entropy of the tokens of references: Hinton et al. 2015, arXiv 1503.02531, section 2."""
    device = states.final.device
    labels = torch.tensor([token for one in chosen if one.reference for token in one.completion], device=device)  # (M,)
    counts = [one.reference for one in chosen for _ in one.completion]  # (N,)

    def cross_entropy(values: Tensor, span: slice) -> Tensor:
        return nn.functional.cross_entropy(values.float(), labels[span], reduction="none")

    return position_loss(student, states.final[batch.predicts][torch.tensor(counts, device=device)], cross_entropy)


def asks_teacher(config: DistillConfig) -> bool:
    """``asks_teacher(settings.distill)``: whether training needs the teacher in memory, for samples or hidden states."""
    return config.lmbda > 0 or config.seq_kd or config.feature > 0 or config.on_policy is not None


def distill(
    model: nn.Module,
    base: Base,
    teacher: Teacher,
    training_set: TrainingSet,
    config: DistillConfig,
    *,
    folder: Path,
    seed: int,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> TrainingReport:
    """``distill(model, base, teacher, training_set, config, folder=folder, seed=0).curve``: trains in place.

    ``base.shape.layers`` are layers of this ``teacher``. ``folder`` holds checkpoints; a later call with the same folder
    resumes from the last one that is whole, and ``say`` hears of one that is not. Unless ``asks_teacher(config)``, the
    teacher's weights are not used, so the caller may release them first.
    Raises: TrainingError if the loss becomes NaN or infinite.
    """
    random.seed(seed)
    trainer = DistillTrainer(
        model, base, teacher, training_set, config, folder=folder, seed=seed, callbacks=[_Progress(progress)]
    )
    checkpoint = last_checkpoint(folder, say)
    if checkpoint is None or not trainer.finished(checkpoint):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    elif progress is not None:
        progress(config.steps)
    unwrap(model).eval()
    model.eval()
    curve = learning_curve(trainer.state.log_history)
    if curve and not np.isfinite(curve[-1]["loss"]):
        raise TrainingError(f"the loss became {curve[-1]['loss']} by step {curve[-1]['step']:.0f}; lower distill.learning_rate")
    return TrainingReport(curve, median_shares(trainer.state.log_history), trainer.state.best_global_step)


class _NoTeacher(nn.Module):
    """Stands in for the teacher that GKDTrainer wants: ours is used by ``score`` and ``sample`` only."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config


class _Progress(TrainerCallback):
    """Advances the caller's progress bar, at once for the steps of a resumed run, and for those that are not needed."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None and state.global_step:
            self.progress(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None and (left := state.max_steps - state.global_step) > 0:  # checks have ended it
            self.progress(left)
