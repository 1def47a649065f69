"""The teacher adapted to a domain's references before it is asked: teacher correction (Minitron, arXiv 2408.11796).

adapted = adapt_teacher(context, models, spec, key, references)
adapted.teacher.complete(...), adapted.info.fewer    # its answers, and how many bits/byte fewer held-out references take

A domain's answers and soft targets are then the adapted teacher's. All that is shared (base, vocabulary, router, general
prompts), the pre-check and the evaluation keep the teacher as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from transformers import PreTrainedModel

from factory.cache import home, is_kept, kept_folder, replace_file, sha256
from factory.config.schema import DistillConfig, DomainSpec, TeacherAdaptation
from factory.config.settings import PLAIN
from factory.data.history import history_of
from factory.data.splitting import cluster_of
from factory.distill.checkpoints import remove_checkpoints
from factory.distill.trainer import distill
from factory.errors import DataError, TrainingError
from factory.evaluation.benchmark import Question, bits_per_byte, question_clusters
from factory.evaluation.stats import FloatArray, by_cluster, paired_difference, ratio
from factory.models.adapter import load_adapter
from factory.models.attention import load_causal_model
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.fine_tuning import hold_out, sft_arguments
from factory.registry.manifest import TeacherAdaptationInfo
from factory.registry.plain_json import plain_json, to_json
from factory.reports.describe import describe_adaptation

FORMAT = 1  # raised when the training changes, so that older adapters are not taken for it
MIN_REFERENCES = 20  # of the training split: fewer would be learnt by heart
MIN_HELD_OUT = 8  # of validation; with fewer, a tenth of the training split's is held out
MAX_HELD_OUT = 64  # measured on, as in the teacher pre-check
INFO = "adaptation.json"  # beside the adapter

Rows = Sequence[Mapping[str, Any]]
References = Callable[[str], Rows]  # the rows of a split whose completion is the source's own


@dataclass(frozen=True)
class AdaptedTeacher:
    """A teacher with its whole vocabulary, adapted to one domain, and what adapting it brought."""

    teacher: Teacher
    info: TeacherAdaptationInfo


def adaptation_parts(spec: DomainSpec) -> list[Any]:
    """``cache_key(..., *adaptation_parts(spec))``: nothing where a domain is answered by the teacher as it is."""
    return [] if spec.teacher_adaptation is None else [["teacher_adaptation", FORMAT, spec.teacher_adaptation.model_dump()]]


def adaptation_folder(key: str) -> Path:
    """``adaptation_folder(dataset_key(context, sha256, spec))``: where the adapter is, or will be, as peft writes it."""
    return home() / "teachers" / key


def adapt_teacher(
    context: BuildContext, models: FamilyModels, spec: DomainSpec, key: str, references: References
) -> AdaptedTeacher | None:
    """``adapt_teacher(context, models, spec, dataset_key(...), references).teacher``: trained once, then read from disk.

    None where the domain does not ask for it. ``key`` is the data set's, which all that decides the adapter is part of. Only
    ``references("train")`` are trained on, as the teacher is asked: after the domain's context.
    Raises: DataError where there are too few of them, TrainingError where the training diverges.
    """
    settings = spec.teacher_adaptation
    if settings is None:
        return None
    folder = adaptation_folder(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not is_kept(folder, context.say):
            with (
                context.meter.stage("adapt"),
                context.progress(f"{spec.name}: adapting the teacher", settings.steps) as advance,
            ):
                models.teacher.release()  # the training loads a copy of its own
                _train(_Run(context, models, spec, settings, key), references, advance)
    adapted = load_adapted(models, key)
    adapted.release()  # what the training has left in memory
    info = TeacherAdaptationInfo.model_validate_json((folder / INFO).read_bytes())
    context.say(f"{spec.name}: teacher adapted, {describe_adaptation(info)}")
    return AdaptedTeacher(adapted, info)


def load_adapted(models: FamilyModels, key: str) -> Teacher:
    """``load_adapted(models, data.key).model``: the downloaded weights with the adapter merged into them."""

    def load_model() -> PreTrainedModel:
        whole = load_causal_model(models.teacher_files.folder, models.tokenizer, models.device)
        merged: Any = load_adapter(whole, adaptation_folder(key)).merge_and_unload()
        adapted: PreTrainedModel = merged.eval()
        return adapted

    return replace(models.teacher, load_model=load_model, revision=key)


def adaptation_warnings(info: TeacherAdaptationInfo | None) -> list[str]:
    """``adaptation_warnings(data.adaptation)``: what a card must say of a teacher that is not shown to have gained."""
    if info is None or info.fewer.low > 0:
        return []
    return [
        f"adapting the teacher is not shown to help: held-out references of the domain take {info.fewer} bits/byte fewer, and "
        "the lower end should be above 0; try more references, fewer steps or a lower learning_rate, or leave it out"
    ]


# ------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class _Run:
    """What is trained and measured with."""

    context: BuildContext
    models: FamilyModels
    spec: DomainSpec
    settings: TeacherAdaptation
    key: str

    @property
    def config(self) -> DistillConfig:
        """Plain SFT: the targets are the references."""
        return DistillConfig(**{**PLAIN, **self.settings.model_dump(), "alpha": 2 * self.settings.rank})


def _train(run: _Run, references: References, advance: Callable[[int], None]) -> None:
    """Writes the adapter's folder. Checkpoints are kept beside it, so that a stopped training goes on."""
    context, spec = run.context, run.spec
    train, held_out, split = _held_apart(run, references)
    examples = [
        replace(one, prompt=one.teacher_prompt) for one in tokenize_examples(train, run.models.tokenizer, spec.contexts)
    ]
    arguments = sft_arguments(context, run.models.teacher_files, examples, run.config)
    model, measured = arguments[0], partial(_bits, run, held_out)
    with model.disable_adapter():
        before, sizes = measured(model)
    folder, checkpoints = adaptation_folder(run.key), home() / "distill" / f"teacher-{run.key}"
    if not context.resume:
        remove_checkpoints(checkpoints)
    try:
        distill(*arguments, folder=checkpoints, seed=context.seed, progress=advance, say=context.say)
    except TrainingError as error:
        raise TrainingError(f"adapting the teacher to {spec.name} failed: lower teacher_adaptation.learning_rate") from error
    with kept_folder(folder) as new:
        model.save_pretrained(str(new))
        after, _ = measured(model.merge_and_unload())  # as it will be asked
        info = TeacherAdaptationInfo(
            key=run.key,
            adapter_sha256=sha256(new / "adapter_model.safetensors"),
            references=len(train),
            settings=run.settings.model_dump(),
            held_out=split,
            before=ratio(before, sizes, context.bootstrap),
            after=ratio(after, sizes, context.bootstrap),
            fewer=paired_difference(before, after, sizes, context.bootstrap),
        )
        replace_file(new / INFO, to_json(plain_json(info.model_dump(), INFO)))
    remove_checkpoints(checkpoints)


def _held_apart(run: _Run, references: References) -> tuple[Rows, Rows, Any]:
    """What is trained on, what is measured on, and the split that the latter is of; the test split is not looked at."""
    train, validation = references("train"), references("validation")
    if len(train) < MIN_REFERENCES:
        raise DataError(
            f"{run.spec.name} has {len(train)} references to adapt the teacher to, at least {MIN_REFERENCES} are needed: give "
            "its sources more answers of their own, or take teacher_adaptation out of its YAML"
        )
    if len(validation) >= MIN_HELD_OUT:
        return train, validation[:MAX_HELD_OUT], "validation"
    by_question = {_question(row): row for row in train}
    kept, held_out = hold_out([*by_question], run.context.seed)
    return [by_question[one] for one in kept], [by_question[one] for one in held_out], "train"


def _question(row: Mapping[str, Any]) -> Question:
    return Question(row["prompt"], row["completion"], cluster_of(row), history_of(row))


def _bits(run: _Run, held_out: Rows, model: Any) -> tuple[FloatArray, FloatArray]:
    """(C,) bits and (C,) bytes of each cluster of held-out references, each after the context of its source."""
    questions, bits, sizes = [_question(row) for row in held_out], np.zeros(len(held_out)), np.zeros(len(held_out))
    for context in run.spec.contexts.all:
        chosen = [number for number, row in enumerate(held_out) if run.spec.contexts.of(row["source"]) == context]
        if chosen:
            bits[chosen], sizes[chosen] = bits_per_byte(
                model, run.models.tokenizer, [questions[i] for i in chosen], context=context, device=run.context.device
            )
    labels = question_clusters(questions)
    return by_cluster(bits, labels), by_cluster(sizes, labels)
