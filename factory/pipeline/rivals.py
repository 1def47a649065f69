"""The models that a benchmark compares: each is a folder of weights, perhaps with an adapter, loaded when its turn comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from factory.cache import folder_bytes
from factory.config.schema import DomainSpec, FamilySpec, TeacherContext, TeacherSpec
from factory.evaluation.benchmark import STUDENT
from factory.models.adapter import load_adapter
from factory.models.attention import load_causal_model
from factory.models.chat import NO_CONTEXT
from factory.models.folders import load_tokenizer
from factory.models.references import ResolvedModel
from factory.models.templates import resolve_teacher
from factory.pipeline.context import BuildContext, resolve_models
from factory.pipeline.fine_tuning import FineTuning
from factory.registry.versions import Version


@dataclass(frozen=True)
class Rival:
    """One model, and a row of the table for each context that it is shown before a question."""

    rows: Mapping[str, TeacherContext]  # by the row's name
    folder: Path  # of transformers: weights and tokenizer
    license: str
    adapter: Path | None = None  # a folder of peft

    def load(self, device: torch.device) -> Any:
        """``rival.load(device)``: a transformers model, or peft's with the adapter."""
        model: Any = load_causal_model(self.folder, self.tokenizer, device)
        return model if self.adapter is None else load_adapter(model, self.adapter)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder)

    @property
    def bytes(self) -> int:
        """On disk."""
        adapter = 0 if self.adapter is None else (self.adapter / "adapter_model.safetensors").stat().st_size
        return folder_bytes(self.folder) + adapter


def model_files(context: BuildContext, spec: TeacherSpec) -> ResolvedModel:
    """``model_files(context, family.teacher)``: fetched where they are missing."""
    return resolve_teacher(spec, root=context.specs.root)


def students(context: BuildContext, version: Version) -> list[Rival]:
    """``students(context, version)``: the student, its base, and its SFT baseline where that was published with it."""
    context.registry.require_intact(version)
    base = context.registry.require_intact(context.registry.resolve(str(version.base)))
    sft = version.folder / "sft"
    adapters = {STUDENT: version.folder, "base": None} | ({"sft": sft} if sft.is_dir() else {})
    license = version.manifest.teacher.license
    return [Rival({name: NO_CONTEXT}, base.folder, license, adapter) for name, adapter in adapters.items()]


def teachers(context: BuildContext, domain: DomainSpec, others: Sequence[FamilySpec]) -> list[Rival]:
    """``teachers(context, specs.domain("legal"), [gemma])``: the domain's, also with its context, and those of others.

    Raises: SpecError for a teacher behind an API, which has no weights to measure.
    """
    shown = domain.teacher_context
    own = {"teacher": NO_CONTEXT} | ({"teacher, with its context": shown} if shown != NO_CONTEXT else {})
    files = model_files(context, context.family.weights)
    if domain.teacher is not None:
        files = resolve_models(context.family, context.specs.root, context.device).of(domain).teacher_files
    rows: list[tuple[Mapping[str, TeacherContext], ResolvedModel]] = [(own, files)]
    for family in others:
        if family.api is None:
            rows.append(({f"{family.name}'s teacher": NO_CONTEXT}, model_files(context, family.weights)))
    return [Rival(names, files.folder, files.license) for names, files in rows]


def downloads(context: BuildContext, files: ResolvedModel, tuned: FineTuning | None) -> list[Rival]:
    """``downloads(context, files, tuned)``: a download, unless it is the teacher, and what fine-tuning makes of it."""
    adapters: dict[str, Path | None] = {}
    if files.folder != model_files(context, context.family.weights).folder:
        adapters["download"] = None
    if tuned is not None:
        adapters["download, fine-tuned"] = tuned.adapter
    return [Rival({name: NO_CONTEXT}, files.folder, files.license, adapter) for name, adapter in adapters.items()]
