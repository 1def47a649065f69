"""Stage `adapter`: one domain's LoRA adapter, distilled on the frozen base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from factory.cache import cache_key, home
from factory.config.schema import DistillConfig, DomainSpec
from factory.config.settings import PLAIN
from factory.distill.checkpoints import remove_checkpoints
from factory.distill.gradients import gradient_warnings
from factory.distill.trainer import asks_teacher, distill
from factory.distill.training_data import TrainingSet, concat
from factory.distill.training_report import TrainingReport
from factory.errors import SpecError
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.memorization import Canary
from factory.evaluation.teacher_check import TeacherCheck
from factory.models.adapter import load_adapter
from factory.models.base import attach_adapter, load_base, trim_teacher
from factory.models.teacher import Teacher
from factory.pipeline.base import StudentBase
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset, general_training_rows
from factory.pipeline.precheck import check_domain, require_teacher
from factory.pipeline.teacher_adaptation import adaptation_warnings, load_adapted
from factory.pipeline.training_set import (
    make_canary_set,
    make_general_set,
    make_training_set,
    make_validation_set,
    training_set_key,
)

MIN_VALIDATION = 8  # examples; which check is the best of fewer is chance


@dataclass(frozen=True)
class TrainedAdapter:
    """A trained student: its peft model in memory and its files on disk."""

    model: Any  # "default" is the student, "sft" its baseline where it was trained
    folder: Path  # checkpoints; `final/` holds the adapter's files, removed once they are published
    training: TrainingReport
    training_set: TrainingSet
    check: TeacherCheck
    warnings: tuple[str, ...]
    sft_folder: Path | None = None  # checkpoints of the SFT baseline, kept as long

    @property
    def files(self) -> Path:
        """The adapter as peft writes it."""
        return self.folder / "final"

    @property
    def parameters(self) -> int:
        """Of the adapter alone."""
        return sum(p.numel() for name, p in self.model.named_parameters() if ".default." in name)


def train_adapter(
    context: BuildContext,
    models: FamilyModels,
    data: DomainDataset,
    base: StudentBase,
    *,
    canaries: Sequence[Canary] = (),
    baselines: bool = False,
) -> TrainedAdapter:
    """``train_adapter(context, models, data, base).model``: checks the teacher, then distils.

    ``canaries`` are planted in the training split; ``baselines`` trains plain SFT as well.
    Raises: TrainingError where the teacher pre-check fails, unless the context is to ``force`` it.
    """
    config, warnings = with_enough_validation(context.settings(data.spec).distill, data)
    candidate = fixed_model(base.base.model)
    check = check_domain(
        context,
        models,
        data,
        base.teacher,
        candidate,
        base.base.shape.tokens,
        tasks=data.spec.tasks,
        trimmed=base.manifest.trimmed,
    )
    warnings = [*require_teacher(context, data, check), *adaptation_warnings(data.adaptation), *warnings]
    models.teacher.release()  # from here on a trimmed one is asked
    teacher = training_teacher(models, data, base)
    training_set = adapter_training_set(context, models, data, base, config, teacher)
    if canaries:
        training_set = concat([training_set, make_canary_set(context, models, canaries, data, teacher, config)])
    if teacher is not base.teacher:
        base.teacher.release()  # the evaluation loads it again
    base = replace(base, teacher=teacher)
    model, training, folder = distil_adapter(context, data, base, training_set, config, "distill")
    warnings += gradient_warnings(training.gradient_shares, "distill")
    sft_folder = None
    if baselines:
        plain = config.model_copy(update=PLAIN)
        fresh = replace(base, base=load_base(base.version.folder, context.device))
        sft, _, sft_folder = distil_adapter(context, data, fresh, replace(training_set, targets=None), plain, "sft")
        sft.save_pretrained(sft_folder / "final")
        load_adapter(model, sft_folder / "final", "sft")
    trained = TrainedAdapter(model, folder, training, training_set, check, tuple(warnings), sft_folder)
    model.save_pretrained(trained.files)  # the SFT baseline in a folder of its own
    return trained


def with_enough_validation(config: DistillConfig, data: DomainDataset) -> tuple[DistillConfig, list[str]]:
    """``config, warnings = with_enough_validation(settings.distill, data)``: without checks where validation is too small."""
    count = len(data.rows["validation"])
    if not config.checks or count >= MIN_VALIDATION:
        return config, []
    warning = (
        f"the training was not checked, and the last weights were kept: checks need {MIN_VALIDATION} validation examples, and "
        f"{data.spec.name} has {count}; give it more prompts or raise data.validation, or set distill.checks to 0"
    )
    return config.model_copy(update={"checks": 0}), [warning]


def training_teacher(models: FamilyModels, data: DomainDataset, base: StudentBase) -> Teacher:
    """``training_teacher(models, data, base)``: who teaches a domain, in the student's vocabulary.

    The teacher that was adapted to the domain, where the domain asks for one; else the base's own.
    """
    if data.spec.teacher_adaptation is None:
        return base.teacher
    return trim_teacher(load_adapted(models, data.key), base.base.shape.tokens)


def check_targets(spec: DomainSpec, config: DistillConfig, *, live: bool) -> None:
    """``check_targets(spec, config, live=asks_teacher(config))``: can two teachers teach one adapter?

    Stored targets can be of both, those scored while training only of one. Raises: SpecError.
    """
    if spec.teacher_adaptation and config.general and live:
        raise SpecError(
            f"{spec.name}: general prompts are taught by the teacher as it is, so with teacher_adaptation and distill.general "
            "no teacher can be asked while training: set distill.lmbda and feature to 0 and seq_kd to false and leave out "
            "on_policy, or set general to 0"
        )


def adapter_training_set(
    context: BuildContext, models: FamilyModels, data: DomainDataset, base: StudentBase, config: DistillConfig, teacher: Teacher
) -> TrainingSet:
    """``adapter_training_set(context, models, data, base, config, training_teacher(models, data, base))``: with its targets.

    The domain's examples that the base was not healed on: what a base has learnt teaches its adapter nothing new. A domain that
    the base has not seen gives all of its examples, and so does one with a teacher of its own, who did not heal the base.
    Beside them are the general prompts that ``config.general`` asks for, whose answers and targets are those of the base's
    teacher, and the validation split for ``config.checks``.
    """
    training_set = make_training_set(context, models, data, teacher, config)
    manifest = base.manifest
    healed = manifest.domains.get(data.spec.name)
    same = healed is not None and healed.fingerprint == data.manifest.fingerprint
    if same and data.spec.teacher is None and manifest.heal_share < 1:
        training_set = training_set.slice(manifest.heal_share, 1)
    sets = [training_set]
    if config.general:
        general = general_training_rows(context, models, round(config.general * len(training_set.indices)))
        sets += [make_general_set(context, models, general, base.teacher, config)] if general else []
    if config.checks:
        sets.append(make_validation_set(context, models, data, teacher, config))
    return concat(sets) if len(sets) > 1 else training_set


def distil_adapter(
    context: BuildContext,
    data: DomainDataset,
    base: StudentBase,
    training_set: TrainingSet,
    config: DistillConfig,
    stage: str,
) -> tuple[Any, TrainingReport, Path]:
    """``model, training, folder = distil_adapter(context, data, base, training_set, config, "distill")``

    ``folder`` holds checkpoints under the key of all that decides the weights: a later call with the same key goes on.
    """
    key = cache_key(
        stage,
        base.version.manifest.manifest_sha256,  # not its reference: another registry may have that too
        training_set_key(training_set),
        config.model_dump(exclude={"report_to"}),
        context.family.encoder.model_dump(),
        context.seed,
        *([data.key] if data.spec.has_own_teacher else []),  # whose targets they are: the rows may be the same
    )
    folder = home() / "distill" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(context.seed)
    model, own = attach_adapter(base.base, config), config.own_samples()
    with (
        context.meter.stage(stage),
        FileLock(f"{folder}.lock"),
        context.progress(f"{data.spec.name}: {stage}", config.steps + (own.steps if own else 0)) as advance,
    ):
        if not context.resume:
            remove_checkpoints(folder)
        if not asks_teacher(config):
            base.teacher.release()  # its soft targets are stored

        def train(phase: DistillConfig, checkpoints: Path) -> TrainingReport:
            context.note.add("training", checkpoints, phase.steps)
            return distill(
                model,
                base.base,
                base.teacher,
                training_set,
                phase,
                folder=checkpoints,
                seed=context.seed,
                progress=advance,
                say=context.say,
            )

        training = train(config, folder)
        if own:
            training = training.followed_by(train(own, folder / "own-samples"), config.steps)
    return model, training, folder
