"""What base and adapter learn from: tokens, the teacher's stored soft targets, and the encoder's embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from factory.cache import cache_key, home, is_kept, kept_folder
from factory.config.schema import DistillConfig, TeacherContexts
from factory.data.history import history_of
from factory.distill.target_store import FORMAT, SoftTargetStore, shard_count
from factory.distill.training_data import TrainingSet
from factory.evaluation.memorization import Canary, canary_rows
from factory.models.chat import NO_CONTEXT, NO_CONTEXTS
from factory.models.teacher import Teacher
from factory.models.tokenize import row_text, tokenize_examples
from factory.models.top_logprobs import MAX_TOP_LOGPROBS
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset

EMBEDDINGS = "train.npy"  # in a folder of its own beside the data set
CANARY_REPEATS = 4  # times that each planted secret is in the training split


def make_training_set(
    context: BuildContext, models: FamilyModels, data: DomainDataset, teacher: Teacher, config: DistillConfig
) -> TrainingSet:
    """``make_training_set(context, models, data, trimmed_teacher, settings.distill)``: of a domain's training split.

    ``teacher`` has the student's vocabulary. Soft targets and embeddings that are on disk already are read, not made.
    """
    examples = tokenize_examples(data.rows["train"], teacher.tokenizer, data.spec.contexts)
    if teacher.gives_text_alone:
        return TrainingSet(examples, None, _embeddings(context, models, data))
    folder = data.targets_folder(_targets_key(data, teacher, config))
    context.note.add("targets", folder, shard_count(len(examples)))
    with context.meter.stage("targets"), context.progress(f"{data.spec.name}: soft targets", len(examples)) as advance:
        store = SoftTargetStore.make(
            folder,
            teacher,
            examples,
            top_k=_top_k(teacher, config),
            temperature=config.temperature,
            progress=advance,
            say=context.say,
        )
    return TrainingSet(examples, store, _embeddings(context, models, data))


def make_canary_set(
    context: BuildContext,
    models: FamilyModels,
    canaries: Sequence[Canary],
    data: DomainDataset,
    teacher: Teacher,
    config: DistillConfig,
) -> TrainingSet:
    """``make_canary_set(context, models, canaries, data, trimmed_teacher, settings.distill)``: beside the domain's own set.

    The data set and its targets are the same with and without canaries, which belong to no source.
    """
    rows, contexts = canary_rows(canaries, CANARY_REPEATS), TeacherContexts(data.spec.teacher_context)
    return _set_beside(context, "canaries", rows, models, contexts, teacher, config)


def make_validation_set(
    context: BuildContext, models: FamilyModels, data: DomainDataset, teacher: Teacher, config: DistillConfig
) -> TrainingSet:
    """``make_validation_set(context, models, data, trimmed_teacher, settings.distill)``: what checks measure; ``concat`` it."""
    rows = list(data.rows["validation"])
    return _set_beside(context, "validation", rows, models, data.spec.contexts, teacher, config).as_validation()


def make_general_set(
    context: BuildContext, models: FamilyModels, rows: Sequence[dict[str, Any]], teacher: Teacher, config: DistillConfig
) -> TrainingSet:
    """``make_general_set(context, models, general_training_rows(context, models, 500), trimmed_teacher, settings.distill)``"""
    return _set_beside(context, "general", rows, models, NO_CONTEXTS, teacher, config)


def _set_beside(
    context: BuildContext,
    name: str,
    rows: Sequence[dict[str, Any]],
    models: FamilyModels,
    contexts: TeacherContexts,
    teacher: Teacher,
    config: DistillConfig,
) -> TrainingSet:
    """Rows that are no part of a data set, with targets of their own."""
    examples = tokenize_examples(rows, teacher.tokenizer, contexts)
    if teacher.gives_text_alone:
        return TrainingSet(examples, None, embed_rows(models, rows))
    seen = [[row["prompt"], row["completion"], row.get("source"), *_said(row)] for row in rows]
    key = cache_key(FORMAT, seen, teacher.revision, _vocabulary(teacher), teacher.tokenizer.chat_template,
                    config.top_k, config.temperature, contexts.dump())  # fmt: skip
    store = SoftTargetStore.make(
        home() / "targets" / f"{name}-{key}",
        teacher,
        examples,
        top_k=_top_k(teacher, config),
        temperature=config.temperature,
        say=context.say,
    )
    return TrainingSet(examples, store, embed_rows(models, rows))


def _said(row: Mapping[str, Any]) -> list[Any]:
    """What was said before its prompt, if anything was."""
    history = history_of(row)
    return [] if history == NO_CONTEXT else [history.model_dump()]


def training_set_key(training_set: TrainingSet) -> str:
    """``training_set_key(training_set)``: of the tokens that are trained on or checked, as student and teacher see them."""

    def tokens(indices: Sequence[int]) -> list[Any]:
        chosen = [training_set.examples[i] for i in indices]
        return [[one.prompt, one.teacher_prompt, one.completion, one.reference] for one in chosen]

    checked = [tokens(training_set.validation)] if training_set.validation else []
    return cache_key(tokens(training_set.indices), training_set.targets is not None, *checked)


def embed_rows(models: FamilyModels, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """``embed_rows(models, data.rows["test"])``: (N, D), prompt and completion together, as the relation term sees them."""
    return models.embed([row_text(row) for row in rows])


def _targets_key(data: DomainDataset, teacher: Teacher, config: DistillConfig) -> str:
    return cache_key(
        FORMAT,
        data.manifest.fingerprint,
        teacher.revision,
        _vocabulary(teacher),
        teacher.tokenizer.chat_template,
        config.top_k,
        config.temperature,
        data.spec.contexts.dump(),
    )


def _top_k(teacher: Teacher, config: DistillConfig) -> int:
    return config.top_k if teacher.api is None else min(config.top_k, MAX_TOP_LOGPROBS)


def _vocabulary(teacher: Teacher) -> list[str]:
    """In the order of ids, which targets are stored by: a vocabulary that grew has its new tokens last."""
    ids = teacher.tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _embeddings(context: BuildContext, models: FamilyModels, data: DomainDataset) -> np.ndarray:
    """(E, D) float32 of the training split, made once for all students, kept beside the data set, and memory-mapped."""
    folder = data.folder / f"embeddings-{cache_key(models.family.encoder.model_dump())}"
    if not is_kept(folder, context.say):
        with context.meter.stage("embeddings"):
            made = embed_rows(models, list(data.rows["train"]))
        with kept_folder(folder) as new:
            np.save(new / EMBEDDINGS, made)
    mapped: np.ndarray = np.load(folder / EMBEDDINGS, mmap_mode="r")
    return mapped
