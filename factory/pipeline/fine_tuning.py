"""The rival that a student has to beat: a model as downloaded, fine-tuned by LoRA on the domain's references.

tuned = fine_tune(context, resolve(spec), references, config, seconds=360)
tuned.best.held_out, tuned.adapter    # bits per byte of the held-out tenth, the folder of the adapter

It gets what a student gets: the same batch, rank, optimizer and schedule, and for each of three learning rates as long as the
student was distilled.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from factory.cache import cache_key, home, is_kept, keep, kept, kept_folder
from factory.config.schema import DistillConfig
from factory.config.settings import PLAIN
from factory.data.sources import seeded_order
from factory.distill.budget import ENDLESS, Budget, Spent, train_within
from factory.distill.trainer import DistillTrainer
from factory.distill.training_data import TrainingSet
from factory.errors import DataError
from factory.evaluation.benchmark import Question, bits_per_byte, question_clusters
from factory.evaluation.stats import by_cluster, ratio
from factory.models.attention import load_causal_model
from factory.models.base import Base, Shape, attach_adapter
from factory.models.chat import NO_CONTEXTS
from factory.models.folders import load_tokenizer
from factory.models.references import ResolvedModel
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.pipeline.context import BuildContext
from factory.registry.manifest import Entry, MetricValue

FORMAT = 1  # raised when the training changes, so that older adapters are not taken for it
RATES = (2e-4, 5e-4, 1e-3)
HELD_OUT = 0.1  # share of the references that chooses among the rates
EPOCHS = 3  # passes over the references at most, transformers' own default: more of a few references is learning by heart
RESULT = "result.json"


class Attempt(Entry):
    """What one learning rate reached."""

    learning_rate: float
    steps: int
    seconds: float
    held_out: MetricValue  # bits per byte of the held-out references


class FineTuning(Entry):
    """A fine-tuned download: what it was trained on, and what each rate reached."""

    folder: Path
    references: int  # trained on
    before: MetricValue  # bits per byte of the held-out references, as downloaded
    attempts: tuple[Attempt, ...]

    @property
    def best(self) -> Attempt:
        """The attempt with the fewest bits per byte; one that diverged to NaN is never it, unless all did."""
        return min(self.attempts, key=lambda one: (math.isnan(one.held_out.value), one.held_out.value))

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest of those tried: one beyond it may be better."""
        return self.best.learning_rate in (min(RATES), max(RATES))

    @property
    def adapter(self) -> Path:
        """The folder of the best adapter, as peft writes it."""
        return _attempt_folder(self.folder, self.best.learning_rate)


def fine_tune(
    context: BuildContext, files: ResolvedModel, references: Sequence[Question], config: DistillConfig, seconds: float
) -> FineTuning:
    """``fine_tune(context, files, references, config, seconds=360).best.learning_rate``: trained once, then read from disk.

    A tenth of the references is held out, whole clusters of it. ``config`` is the student's; ``seconds`` are for each rate.
    Raises: DataError where all references are one cluster.
    """
    train, held_out = hold_out(references, context.seed)
    tokenizer = load_tokenizer(files.folder)
    config = config.model_copy(update=PLAIN | {"report_to": "none"})
    key = cache_key(
        FORMAT,
        files.sha256,
        tokenizer.chat_template,
        [[astuple(one) for one in part] for part in (train, held_out)],
        config.model_dump(exclude={"learning_rate", "steps"}),
        [RATES, EPOCHS, round(seconds)],
        [context.seed, context.device.type],
    )
    folder = home() / "rivals" / key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        found = kept(folder / RESULT, context.say)
        attempts_kept = [is_kept(_attempt_folder(folder, rate), context.say) for rate in RATES]
        if found is None or not all(attempts_kept):
            run = _Run(context, files, tokenizer, train, held_out, config, seconds / 60, folder)
            before = _held_out_bits(run, load_causal_model(files.folder, tokenizer, context.device))
            attempts = tuple(_attempt(run, rate) for rate in RATES)
            result = FineTuning(folder=folder, references=len(train), before=before, attempts=attempts)
            found = result.model_dump_json(exclude={"folder"}).encode()
            keep(folder / RESULT, found)
        return FineTuning(folder=folder, **json.loads(found))


def hold_out(references: Sequence[Question], seed: int) -> tuple[list[Question], list[Question]]:
    """``train, held_out = hold_out(references, seed=0)``: whole clusters, together about a tenth.

    Raises: DataError where all references are one cluster.
    """
    labels = question_clusters(references)
    sizes = Counter(labels)
    if len(sizes) < 2:
        raise DataError(
            f"the {len(references)} references share one answer or document, so none can be held out to measure on; add "
            "references with other answers, or of other documents (for a benchmark also by --references FILE)"
        )
    wanted, chosen = round(HELD_OUT * len(references)), set[str]()
    for label in sorted(sizes, key=lambda label: seeded_order(seed, label)):
        if sum(sizes[one] for one in chosen) + sizes[label] <= wanted:
            chosen.add(label)
    chosen = chosen or {min(sizes, key=lambda label: (sizes[label], seeded_order(seed, label)))}
    parts: tuple[list[Question], list[Question]] = [], []
    for one, label in zip(references, labels, strict=True):
        parts[label in chosen].append(one)
    return parts


# ------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Run:
    """What all attempts share."""

    context: BuildContext
    files: ResolvedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Question]
    held_out: Sequence[Question]
    config: DistillConfig
    minutes: float
    folder: Path


def _attempt_folder(folder: Path, rate: float) -> Path:
    return folder / f"{rate:g}"


def _attempt(run: _Run, rate: float) -> Attempt:
    """Trained, unless it is on disk from a run that was stopped."""
    folder = _attempt_folder(run.folder, rate)
    if not is_kept(folder, run.context.say):
        with run.context.progress(f"fine-tuning the download, rate {rate:g}", 1) as advance:
            model, spent = _train(run, rate)
            advance(1)
        found = Attempt(learning_rate=rate, steps=spent.steps, seconds=60 * spent.minutes, held_out=_held_out_bits(run, model))
        with kept_folder(folder) as new:
            model.save_pretrained(new)
            (new / RESULT).write_text(found.model_dump_json(), encoding="utf-8")
    return Attempt.model_validate_json((folder / RESULT).read_bytes())


def _train(run: _Run, rate: float) -> tuple[Any, Spent]:
    config = run.config.model_copy(update={"learning_rate": rate, "steps": ENDLESS})
    rows = [{"prompt": one.prompt, "completion": one.reference, "history": one.history.model_dump()} for one in run.train]
    examples = tokenize_examples(rows, run.tokenizer, NO_CONTEXTS)
    budget = Budget(run.minutes, EPOCHS * sum(len(one.completion) for one in examples))
    arguments = sft_arguments(run.context, run.files, examples, config)
    with TemporaryDirectory() as scratch:
        trainer = DistillTrainer(*arguments, folder=Path(scratch), seed=run.context.seed)
        spent = train_within(trainer, budget)
    return arguments[0].eval(), spent


def sft_arguments(
    context: BuildContext, files: ResolvedModel, examples: Sequence[TokenizedExample], config: DistillConfig
) -> tuple[Any, Base, Teacher, TrainingSet, DistillConfig]:
    """``DistillTrainer(*sft_arguments(context, files, examples, config), folder=folder, seed=0)``; ``distill`` takes the same.

    The model as downloaded with a new adapter, whose targets are the examples' completions: supervised fine-tuning (SFT).
    """
    teacher = Teacher.load(files, context.device)  # nothing asks for its weights
    model = load_causal_model(files.folder, teacher.tokenizer, context.device)
    base = Base(model, teacher.tokenizer, Shape(None, None))
    torch.manual_seed(context.seed)
    student = attach_adapter(base, config)
    training_set = TrainingSet(examples, None, np.zeros((len(examples), 0), dtype=np.float32))
    return student, base, teacher, training_set, config


def _held_out_bits(run: _Run, model: Any) -> MetricValue:
    labels = question_clusters(run.held_out)
    bits, sizes = bits_per_byte(model, run.tokenizer, run.held_out, device=run.context.device)
    return ratio(by_cluster(bits, labels), by_cluster(sizes, labels), run.context.bootstrap)
