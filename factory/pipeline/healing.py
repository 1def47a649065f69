"""How a base is healed after it was cut from a teacher: distillation of all its weights on all public domains.

A small base is cut from the teacher or from a larger base that was healed before, and is taught by the teacher or by that base,
its *teacher assistant*. A ``DistillationPath`` is one of these ways.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from factory.cache import cache_key, home
from factory.config.schema import HealConfig, SizeSpec
from factory.distill.checkpoints import remove_checkpoints
from factory.distill.trainer import asks_teacher, distill
from factory.distill.training_data import TrainingSet, concat
from factory.distill.training_report import TrainingReport
from factory.evaluation.fidelity import fixed_model, measure
from factory.evaluation.healing import PathName, best_path, healing_report
from factory.evaluation.stats import ExampleSums
from factory.models.base import Base, assistant_teacher, count_parameters, layers_of_teacher, load_base
from factory.models.cutting import prune_teacher
from factory.models.dimensions import dimensions_of
from factory.models.teacher import Teacher
from factory.models.tokenize import TokenizedExample, tokenize_examples
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.cutting import CutBase, to_device
from factory.pipeline.dataset import DomainDataset
from factory.pipeline.training_set import make_training_set, training_set_key
from factory.registry.manifest import HealingReport, PathChoice
from factory.registry.versions import Version

HELD_OUT_EXAMPLES = 48  # of each domain, behind the healing report
NAMES = {"stepwise": "the stepwise path", "teacher_assistant": "the teacher assistant's path"}
PROBE_SHARE = 1 / 8  # of the healing steps, after which bases are compared


@dataclass(frozen=True)
class DistillationPath:
    """One way to heal a base: what it starts from, who teaches it, and what it learns from.

    ``base.shape.layers`` are numbers of the layers of whoever teaches; ``layers`` are the original teacher's.
    """

    name: PathName
    base: Base
    teacher: Teacher
    training_set: TrainingSet
    layers: tuple[int, ...] | None


@dataclass(frozen=True)
class Healing:
    """How a base was trained, and what it is beside its teacher on held-out text."""

    training: TrainingReport
    report: HealingReport
    sums: ExampleSums  # after it


@dataclass(frozen=True)
class HealedBase:
    base: Base
    path: DistillationPath
    training: TrainingReport
    report: HealingReport


# -------------------------------------------------------------------------------------------------------------------- paths


def direct_path(
    context: BuildContext, models: FamilyModels, cut: CutBase, datasets: Sequence[DomainDataset]
) -> DistillationPath:
    """``direct_path(context, models, cut, datasets)``: the teacher itself teaches, each domain with its context."""
    config = context.settings().heal
    parts = [make_training_set(context, models, data, cut.teacher, config).slice(0, config.share) for data in datasets]
    return DistillationPath("direct", cut.base, cut.teacher, concat(parts), cut.base.shape.layers)


@dataclass(frozen=True)
class SmallerCut:
    """What a larger base is cut to, for a small size."""

    base: Base  # its layers are numbered as the larger base's
    larger: Teacher  # the larger base, where it is to teach
    layers: tuple[int, ...] | None  # the same layers, numbered as the original teacher's


def cut_larger(context: BuildContext, cut: CutBase, size: SizeSpec, larger: Version) -> SmallerCut:
    """``cut_larger(context, cut, size, larger).base``: with the layers that the larger base needs most."""
    between = load_base(context.registry.require_intact(larger).folder, context.device)
    teacher = assistant_teacher(larger, between, context.device)
    seen = [replace(one, teacher_prompt=one.prompt) for one in cut.calibration]
    base = prune_teacher(teacher, between.shape.tokens, [dimensions_of(size, teacher.config)], seen).base
    to_device(base, context.device)
    return SmallerCut(base, teacher, layers_of_teacher(base, between))


def stepwise_path(direct: DistillationPath, smaller: SmallerCut) -> DistillationPath:
    """``stepwise_path(direct_path(...), cut_larger(...))``: cut from the larger base, taught by the teacher.

    What is left out is what that base needs least (Minitron, arXiv 2407.14679).
    """
    base = replace(smaller.base, shape=replace(smaller.base.shape, layers=smaller.layers))
    return replace(direct, name="stepwise", base=base, layers=smaller.layers)


def assistant_path(
    context: BuildContext, models: FamilyModels, smaller: SmallerCut, datasets: Sequence[DomainDataset]
) -> DistillationPath:
    """``assistant_path(context, models, cut_larger(...), datasets)``: cut from and taught by the larger base.

    It has learnt what the contexts say, so it teaches without them (Mirzadeh et al. 2019, arXiv 1902.03393).
    """
    config = context.settings().heal
    plain = [data.without_context().first(config.share) for data in datasets]
    training_set = concat([make_training_set(context, models, data, smaller.larger, config) for data in plain])
    return DistillationPath("teacher_assistant", smaller.base, smaller.larger, training_set, smaller.layers)


def choose_path(
    context: BuildContext,
    models: FamilyModels,
    cut: CutBase,
    size: SizeSpec,
    larger: Version,
    datasets: Sequence[DomainDataset],
) -> tuple[DistillationPath, PathChoice]:
    """``path, choice = choose_path(context, models, cut, size, larger, datasets)``: as the family's ``path`` says.

    Where it says ``auto``, all are tried for a share of the steps and measured beside the teacher. The best of those that are
    ahead of the direct one by more than their interval is kept, else the direct one.
    """
    smaller, wanted = cut_larger(context, cut, size, larger), context.family.path
    paths = []
    if wanted != "assistant":
        direct = direct_path(context, models, cut, datasets)
        paths += [direct, stepwise_path(direct, smaller)]
    if wanted != "stepwise":
        paths.append(assistant_path(context, models, smaller, datasets))
    if wanted != "auto":
        path = paths[-1]
        return path, PathChoice(chosen=path.name, teacher_assistant=larger.reference, reason="the family file says so")
    probes = {path.name: probe(context, path, cut.teacher, datasets) for path in paths}
    best, ahead = best_path({name: one.sums for name, one in probes.items()}, context.bootstrap)
    chosen = best if ahead.low > 0 else "direct"
    reason = (
        f"after {probe_steps(context)} steps each, {NAMES[best]} is {'' if ahead.low > 0 else 'not '}ahead of the direct one "
        f"beyond the interval: {ahead} nats/token, n {ahead.n:,}"
    )
    choice = PathChoice(
        chosen=chosen,
        teacher_assistant=larger.reference,
        reason=reason,
        ahead=ahead,
        probes={name: one.report for name, one in probes.items()},
    )
    return next(path for path in paths if path.name == chosen), choice


def probe(
    context: BuildContext,
    path: DistillationPath,
    teacher: Teacher,
    datasets: Sequence[DomainDataset],
    whole: Teacher | None = None,
) -> Healing:
    """``probe(context, path, cut.teacher, datasets).sums``: a short healing of a copy of the path's base.

    ``whole`` is the teacher with all of its tokens, where bases of different vocabularies are compared.
    """
    config = context.settings().heal
    short = config.model_copy(update={"steps": probe_steps(context)})
    tried = replace(path, base=replace(path.base, model=copy.deepcopy(path.base.model)))
    folder = heal_folder(context, tried, short)
    with context.meter.stage("probe"):
        healing = _heal(context, tried, teacher, datasets, short, folder, f"probe, {path.name}", whole)
    remove_checkpoints(folder)
    return healing


def probe_steps(context: BuildContext) -> int:
    """``probe_steps(context)``: an eighth of the healing's."""
    return max(1, round(context.settings().heal.steps * PROBE_SHARE))


# --------------------------------------------------------------------------------------------------------------------- heal


def heal_base(context: BuildContext, path: DistillationPath, teacher: Teacher, datasets: Sequence[DomainDataset]) -> HealedBase:
    """``heal_base(context, path, cut.teacher, datasets)``: trains the path's base in place, measured before and after.

    The layers of the result are numbered as the original teacher's.
    """
    config = context.settings().heal
    folder = heal_folder(context, path, config)
    with context.meter.stage("heal"):
        healing = _heal(context, path, teacher, datasets, config, folder, "healing")
    base = replace(path.base, shape=replace(path.base.shape, layers=path.layers))
    return HealedBase(base, path, healing.training, healing.report)


def heal_folder(context: BuildContext, path: DistillationPath, config: HealConfig) -> Path:
    """``heal_folder(context, path, config)``: checkpoints, under the key of all that decides the weights.

    Data, tokens, layers, neurons and context are part of it: a build whose YAML was edited never resumes from older weights.
    """
    key = cache_key(
        path.name,
        path.teacher.revision,
        path.base.shape.layers,
        path.base.shape.tokens,
        count_parameters(path.base.model),  # which neurons are left, the training set decides
        training_set_key(path.training_set),
        config.model_dump(exclude={"report_to", "checks", "on_policy"}),
        context.family.encoder.model_dump(),
        context.seed,
    )
    return home() / "heal" / key


def _heal(
    context: BuildContext,
    path: DistillationPath,
    teacher: Teacher,
    datasets: Sequence[DomainDataset],
    config: HealConfig,
    folder: Path,
    what: str,
    whole: Teacher | None = None,
) -> Healing:
    """Trains the path's base in place, measured beside the teacher before and after."""
    held_out = held_out_examples(datasets, teacher)
    base, candidates = path.base, {"student": fixed_model(path.base.model)}
    context.note.add("healing", folder, config.steps)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"), context.progress(f"base: {what}", config.steps) as advance:
        before = measure(teacher, candidates, held_out)["student"]
        if not context.resume:
            remove_checkpoints(folder)
        teacher.release()  # measured; from here on only who teaches is asked, and only for samples
        if not asks_teacher(config):
            path.teacher.release()
        training = distill(
            base.model,
            base,
            path.teacher,
            path.training_set,
            config,
            folder=folder,
            seed=context.seed,
            progress=advance,
            say=context.say,
        )
        after = measure(teacher, candidates, held_out, whole=whole)["student"]
    teacher.release()
    return Healing(training, healing_report(config.steps, before, after, context.bootstrap), after)


def held_out_examples(datasets: Sequence[DomainDataset], teacher: Teacher) -> list[TokenizedExample]:
    """``held_out_examples(datasets, trimmed_teacher)``: the first 48 of every domain, behind the healing report."""
    return [
        one
        for data in datasets
        for one in tokenize_examples(data.held_out[:HELD_OUT_EXAMPLES], teacher.tokenizer, data.spec.contexts)
    ]
