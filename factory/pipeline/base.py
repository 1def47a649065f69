"""Stage `base`: the family's shared base of a size, found in the registry or made.

    base = make_base(context, models, "small")
    base.version.reference      # "default-small-base@1"

A published base is used again as long as its settings and the data it was healed on are what they were. A new domain never
rebuilds it: the domain's adapter learns from all of its examples instead, and tokens that its text lacks are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from factory.config.schema import DomainSpec, SizeSpec
from factory.distill.checkpoints import remove_checkpoints
from factory.distill.gradients import gradient_warnings
from factory.energy import Meter
from factory.evaluation.healing import healing_warnings
from factory.models.base import Base, count_parameters, load_base, load_shape, save_base, trim_teacher
from factory.models.dimensions import check_size, whole_dimensions
from factory.models.quantization import RoundedBase, round_base
from factory.models.teacher import Teacher
from factory.pipeline.base_choice import base_manifest, base_name, choose_base, settings_key
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.cutting import CutBase, choose_base_tokens, cut_base
from factory.pipeline.dataset import DomainDataset, make_dataset
from factory.pipeline.device import fit_device, size_options
from factory.pipeline.grown import find_gap, grow
from factory.pipeline.healing import HealedBase, choose_path, direct_path, heal_base, heal_folder
from factory.pipeline.precheck import require_teachers
from factory.pipeline.provenance import energy_info, family_fields
from factory.pipeline.trimmed import TrimmedBase, take_base, text_keys, trim_base, vocabulary_info
from factory.registry.manifest import BaseDomain, BaseManifest, PathChoice, Training, VocabularyInfo
from factory.registry.provenance import merge_dataset_infos
from factory.registry.versions import Version
from factory.reports.card import model_card


@dataclass(frozen=True)
class StudentBase:
    """A published base in memory, and the teacher of the student that will stand on it, in its vocabulary."""

    version: Version
    base: Base
    teacher: Teacher

    @property
    def manifest(self) -> BaseManifest:
        return base_manifest(self.version)


def make_base(
    context: BuildContext,
    models: FamilyModels,
    size: str,
    domain: DomainSpec | None = None,
    *,
    pinned: str | None = None,
    rebuild: bool = False,
) -> StudentBase:
    """``make_base(context, models, "small", spec).version``: the published base, made first where ``choose_base`` finds none.

    It is made with the family's teacher; ``.teacher`` is that of ``models``, perhaps a domain's own. A base that is not pinned
    is grown by the tokens that the ``domain``'s text lacks.
    Raises: TrainingError where the teacher pre-check fails for a domain, unless the context is to ``force`` it.
    """
    rebuild = rebuild and not context.note.has_base(base_name(context, size))  # one that was stopped after it did
    shared = models.shared
    if models is not shared:
        models.teacher.release()  # two teachers need not be in memory at once
    choice = choose_base(context, shared.teacher_files.sha256, size, pinned=pinned, rebuild=rebuild)
    if choice.reason:
        context.say(choice.reason)
    version = choice.version or publish_base(replace(context, meter=Meter()), shared, size, rebuild=rebuild)
    if domain is not None and pinned is None:
        version = _grow_for(context, shared, version, domain)
    base = load_base(context.registry.require_intact(version).folder, context.device)
    teacher = trim_teacher(models.teacher, base.shape.tokens)
    if models is not shared:
        shared.teacher.release()
    if _depth(models.teacher) != _depth(shared.teacher):  # whose layers have other numbers
        base = replace(base, shape=replace(base.shape, layers=None))
    return StudentBase(version, base, teacher)


def _depth(teacher: Teacher) -> int:
    return int(teacher.config.get_text_config().num_hidden_layers)


def _grow_for(context: BuildContext, models: FamilyModels, version: Version, domain: DomainSpec) -> Version:
    """The version itself, where the domain's text lacks no tokens in it."""
    manifest = base_manifest(version)
    context.registry.require_intact(version)
    gap = find_gap(context, models, manifest, load_shape(version.folder).tokens, domain)
    if gap is None:
        return version
    context.say(
        f"{domain.name}'s text takes {gap.fit.growth:.1%} more tokens in {version.reference} than with the teacher's "
        f"tokenizer: adding {len(gap.tokens):,}"
    )
    base = load_base(version.folder, context.device)
    grown = grow(replace(context, meter=Meter()), models, base, manifest, gap)
    return _publish(context, grown.base, grown.manifest)


def publish_base(
    context: BuildContext,
    models: FamilyModels,
    size: str,
    *,
    rebuild: bool = False,
    assistant: Version | None = None,
) -> Version:
    """``publish_base(context, models, "small")``: makes and publishes a new base; its cost goes to ``context.meter``.

    A size with fewer tokens alone is trimmed; others are cut, then healed, on what the teacher answers as it is: a base is
    shared, and no domain's adapted teacher is. ``assistant`` stands in for the teacher assistant that the family's ``path``
    would have had made.
    Raises: TrainingError for a size that cannot be cut from the teacher, before anything is made.
    """
    spec, named = context.family.sizes[size], context.family.larger_size(size)
    check_size(spec, models.teacher.config)
    if assistant is None and named is not None:
        assistant = make_base(context, models, named, rebuild=rebuild).version
    key = settings_key(context, models.teacher_files.sha256, size)
    context = context.of_size(size)
    made, datasets = _make(context, models, spec, assistant)
    if isinstance(made, TrimmedBase):
        rounded = round_base(made.base, spec.grid, made.calibration)
        return _publish(context, rounded.base, _trimmed_manifest(context, models, size, key, made, rounded))
    models.teacher.release()  # it has written the data and been measured; from here on the trimmed one is asked
    if assistant is None:
        path, choice = direct_path(context, models, made, datasets), None
    else:
        path, choice = choose_path(context, models, made, spec, assistant, datasets)
    healed = heal_base(context, path, made.teacher, datasets)
    rounded = round_base(healed.base, spec.grid, made.batches[:1])
    chosen_by = text_keys(context) if assistant is None else base_manifest(assistant).vocabulary.chosen_by
    vocabulary = vocabulary_info(models, made.teacher, made.vocabulary_cost, chosen_by)
    manifest = _healed_manifest(context, models, size, key, vocabulary, made, healed, rounded, choice, datasets)
    version = _publish(context, rounded.base, manifest)
    remove_checkpoints(heal_folder(context, path, context.settings().heal))
    return version


def _make(
    context: BuildContext, models: FamilyModels, size: SizeSpec, assistant: Version | None
) -> tuple[TrimmedBase | CutBase, list[DomainDataset]]:
    """A base that is not healed yet, and the data to heal it on: none for one that needs no healing."""
    if models.teacher.api is not None:
        return take_base(context, models, size), []
    if size.trimmed:
        return trim_base(context, models, size), []
    options = size_options(models, size) if size.max_bytes is not None else []
    if options and all(option.size.trimmed for option in options):
        return fit_device(context, models, options, []), []
    datasets = [make_dataset(context, models, domain.unadapted()) for domain in context.healing_domains]
    if options:
        return fit_device(context, models, options, datasets), datasets
    if assistant is not None:
        tokens = load_shape(assistant.folder).tokens
    else:
        tokens = choose_base_tokens(context, models, size, datasets)
    cut = cut_base(context, models, size, datasets, tokens)
    require_teachers(context, models, datasets, cut)
    return cut, datasets


def _publish(context: BuildContext, base: Base, manifest: BaseManifest) -> Version:
    with context.registry.stage(manifest.name) as folder:
        save_base(base, folder)
        (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
        version = context.registry.publish(manifest, folder)
    context.note.add("base", version.folder, 1)
    return version


def _trimmed_manifest(
    context: BuildContext, models: FamilyModels, size: str, key: str, trimmed: TrimmedBase, rounded: RoundedBase
) -> BaseManifest:
    """Trained on nothing, so that every domain's examples are its adapter's."""
    return BaseManifest(
        **family_fields(context, models, context.settings(), size),
        name=base_name(context, size),
        size=size,
        path=("teacher",),
        parameters=count_parameters(trimmed.base.model),
        layers=trimmed.base.shape.layers,
        size_choice=trimmed.choice,
        vocabulary=trimmed.vocabulary,
        quantization=rounded.grid,
        quantization_kl=rounded.kl,
        settings_key=key,
        domains={},
        dataset=merge_dataset_infos([]),
        training=Training(curve=(), config={}, examples=0),
        seconds=dict(context.meter.seconds),
        energy=energy_info(context.meter),
    )


def _healed_manifest(
    context: BuildContext,
    models: FamilyModels,
    size: str,
    key: str,
    vocabulary: VocabularyInfo,
    cut: CutBase,
    healed: HealedBase,
    rounded: RoundedBase,
    choice: PathChoice | None,
    datasets: Sequence[DomainDataset],
) -> BaseManifest:
    through = [choice.teacher_assistant] if choice is not None and choice.chosen != "direct" else []
    return BaseManifest(
        **family_fields(context, models, context.settings(), size),
        name=base_name(context, size),
        size=size,
        path=("teacher", *through),
        path_choice=choice,
        parameters=count_parameters(healed.base.model),
        layers=healed.base.shape.layers,
        intermediate_size=_neurons(models, healed.base),
        size_choice=cut.choice,
        vocabulary=vocabulary,
        quantization=rounded.grid,
        quantization_kl=rounded.kl,
        healing=healed.report,
        settings_key=key,
        domains={data.spec.name: BaseDomain(dataset_key=data.key, fingerprint=data.manifest.fingerprint) for data in datasets},
        dataset=merge_dataset_infos([data.info for data in datasets]),
        training=Training(
            curve=tuple(healed.training.curve),
            config=context.settings().heal.model_dump(),
            examples=len(healed.path.training_set.indices),
            gradient_shares=healed.training.gradient_shares,
        ),
        warnings=(*healing_warnings(healed.report), *gradient_warnings(healed.training.gradient_shares, "heal")),
        seconds=dict(context.meter.seconds),
        energy=energy_info(context.meter),
    )


def _neurons(models: FamilyModels, base: Base) -> int | None:
    """Of every MLP, where they are fewer than the teacher's."""
    kept = whole_dimensions(base.model.config).intermediate_size
    fewer = base.shape.layers is not None and kept < whole_dimensions(models.teacher.config).intermediate_size
    return kept if fewer else None
