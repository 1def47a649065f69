"""Stage `base`: the family's shared base of a size, found in the registry or made.

    base = make_base(context, models, "small")
    base.version.reference      # "default-small-base@1"

A published base is used again as long as its settings and the data it was healed on are what they were. A new domain never
rebuilds it: the domain's adapter learns from all of its examples instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from factory.cache import cache_key, remove_folder
from factory.distill.gradients import gradient_warnings
from factory.energy import Meter
from factory.errors import RegistryError, UsageError
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.healing import healing_warnings
from factory.models.base import Base, count_parameters, load_base, save_base, trim_teacher
from factory.models.quantization import RoundedBase, round_base
from factory.models.teacher import Teacher
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset, dataset_key, general_key, make_dataset
from factory.pipeline.healing import (
    CutBase,
    HealedBase,
    choose_base_tokens,
    choose_path,
    cut_base,
    direct_path,
    heal_base,
    heal_folder,
)
from factory.pipeline.precheck import check_domain, require_teacher
from factory.pipeline.provenance import energy_info, family_fields
from factory.pipeline.trimmed import TrimmedBase, trim_base, vocabulary_info
from factory.registry.manifest import BaseDomain, BaseManifest, PathChoice, Training
from factory.registry.provenance import merge_dataset_infos
from factory.registry.versions import Version
from factory.reports.card import model_card

BASE_FORMAT = 1  # raised when the making of a base changes, so that older ones are not taken for it


@dataclass(frozen=True)
class StudentBase:
    """A published base in memory, and the teacher in its vocabulary."""

    version: Version
    base: Base
    teacher: Teacher

    @property
    def manifest(self) -> BaseManifest:
        return _manifest(self.version)


@dataclass(frozen=True)
class BaseChoice:
    """Which published base a build uses; ``version`` None means that one has to be made."""

    version: Version | None
    reason: str = ""  # one line for people, where there is something to say


# ------------------------------------------------------------------------------------------------------------------- choose


def base_name(context: BuildContext, size: str) -> str:
    """``base_name(context, "small")`` → "default-small-base"."""
    return f"{context.family.name}-{size}-base"


def settings_key(context: BuildContext, teacher_sha256: str, size: str) -> str:
    """``settings_key(context, models.teacher_files.sha256, "small")``: of all that decides a base but its domains' data."""
    family, assistant = context.family, context.family.teacher_assistant(size)
    spec, heal = family.sizes[size], context.of_size(size).settings().heal
    return cache_key(
        BASE_FORMAT,
        teacher_sha256,
        *family.teacher.template_parts,
        family.encoder.model_dump(),
        spec.model_dump(exclude={"heal"} if spec.quantization else {"heal", "quantization"}),
        None if spec.trimmed else heal.model_dump(exclude={"report_to", "checks"}),
        general_key(context),
        context.profile,
        context.seed,
        [family.path, settings_key(context, teacher_sha256, assistant)] if assistant else [],
    )


def choose_base(
    context: BuildContext, teacher_sha256: str, size: str, *, pinned: str | None = None, rebuild: bool = False
) -> BaseChoice:
    """``choose_base(context, models.teacher_files.sha256, "small", pinned="default-small-base@3")``: makes nothing.

    Raises: UsageError where the pinned reference is not a base of this family and size; RegistryError where it is unknown.
    """
    if pinned is not None:
        return _pinned(context, teacher_sha256, size, pinned)
    name, key = base_name(context, size), settings_key(context, teacher_sha256, size)
    published = [context.registry.resolve(summary.reference) for summary in reversed(context.registry.versions("base", name))]
    same_settings = [version for version in published if _manifest(version).settings_key == key]
    if rebuild and published:
        return BaseChoice(None, f"making a new {name}, as --rebuild-base asks")
    for version in same_settings:
        if not changed_domains(context, teacher_sha256, version):
            manifest = _manifest(version)
            unseen = [one.name for one in context.public_domains if not manifest.trimmed and one.name not in manifest.domains]
            seen = (
                f"{version.reference} was healed without {', '.join(unseen)}; --rebuild-base makes one with" if unseen else ""
            )
            return BaseChoice(version, seen)
    if same_settings:
        newest = same_settings[0]
        changed = ", ".join(changed_domains(context, teacher_sha256, newest))
        why = f"the data of {changed} changed since {newest.reference} was healed"
    elif published:
        newest, why = published[0], f"{published[0].reference} was made with other settings"
    else:
        return BaseChoice(None)
    return BaseChoice(None, f"{why}: making a new base (--base {newest.reference} keeps the old one)")


def changed_domains(context: BuildContext, teacher_sha256: str, base: Version) -> list[str]:
    """``changed_domains(context, models.teacher_files.sha256, base)``: whose data is no longer what it was healed on.

    A domain that has become private counts; one whose YAML is gone does not, since nothing is known of it.
    """
    domains = context.specs.domains
    return [
        name
        for name, healed in _manifest(base).domains.items()
        if name in domains
        and (domains[name].private or dataset_key(context, teacher_sha256, domains[name].unadapted()) != healed.dataset_key)
    ]


def _pinned(context: BuildContext, teacher_sha256: str, size: str, reference: str) -> BaseChoice:
    version, name = context.registry.resolve(reference), base_name(context, size)
    if version.name != name:
        exist = ", ".join(one.reference for one in context.registry.versions("base", name)) or "none"
        raise UsageError(f"--base {reference}: a student of size {size} needs a base called {name}; there are: {exist}")
    changed = changed_domains(context, teacher_sha256, version)
    since = f", although the data of {', '.join(changed)} changed since it was healed" if changed else ""
    return BaseChoice(version, f"using {version.reference} as --base asks{since}")


def _manifest(version: Version) -> BaseManifest:
    if version.manifest.kind != "base":
        raise RegistryError(f"{version.reference} is a student, not a base")
    return version.manifest


# --------------------------------------------------------------------------------------------------------------------- make


def make_base(
    context: BuildContext, models: FamilyModels, size: str, *, pinned: str | None = None, rebuild: bool = False
) -> StudentBase:
    """``make_base(context, models, "small").version``: the published base, made first where ``choose_base`` finds none.

    Raises: TrainingError where the teacher pre-check fails for a domain, unless the context is to ``force`` it.
    """
    choice = choose_base(context, models.teacher_files.sha256, size, pinned=pinned, rebuild=rebuild)
    if choice.reason:
        context.say(choice.reason)
    version = choice.version or publish_base(replace(context, meter=Meter()), models, size, rebuild=rebuild)
    base = load_base(version.folder, context.device)
    return StudentBase(version, base, trim_teacher(models.teacher, base.shape.tokens))


def publish_base(
    context: BuildContext,
    models: FamilyModels,
    size: str,
    *,
    rebuild: bool = False,
    assistant: Version | None = None,
) -> Version:
    """``publish_base(context, models, "small")``: makes and publishes a new base; its cost goes to ``context.meter``.

    A size without layers is trimmed; others are cut, then healed, on what the teacher answers as it is: a base is shared, and
    no domain's adapted teacher is. ``assistant`` stands in for the teacher assistant that the family's ``path`` would have had
    made.
    """
    spec, named = context.family.sizes[size], context.family.teacher_assistant(size)
    if spec.trimmed:
        trimmed = trim_base(context, models, spec)
        rounded = round_base(trimmed.base, spec.quantization, trimmed.calibration)
        return _publish(context, rounded.base, _trimmed_manifest(context, models, size, trimmed, rounded))
    if assistant is None and named is not None:
        assistant = make_base(context, models, named, rebuild=rebuild).version
    context = context.of_size(size)
    datasets = [make_dataset(context, models, domain.unadapted()) for domain in context.public_domains]
    if assistant is not None:
        tokens = load_base(assistant.folder, context.device).shape.tokens
    else:
        tokens = choose_base_tokens(context, models, spec, datasets)
    cut = cut_base(context, models, spec, datasets, tokens)
    for data in datasets:
        check = check_domain(context, models, data, cut.teacher, fixed_model(cut.base.model), tokens)
        require_teacher(context, data, check)
    models.teacher.release()  # it has written the data and been measured; from here on the trimmed one is asked
    if assistant is None:
        path, choice = direct_path(context, models, cut, datasets), None
    else:
        path, choice = choose_path(context, models, cut, spec, assistant, datasets)
    healed = heal_base(context, path, cut.teacher, datasets)
    rounded = round_base(healed.base, spec.quantization, [cut.calibration])
    version = _publish(context, rounded.base, _healed_manifest(context, models, size, cut, healed, rounded, choice, datasets))
    remove_folder(heal_folder(context, path, context.settings().heal))
    return version


def _publish(context: BuildContext, base: Base, manifest: BaseManifest) -> Version:
    with context.registry.stage(manifest.name) as folder:
        save_base(base, folder)
        (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
        return context.registry.publish(manifest, folder)


def _trimmed_manifest(
    context: BuildContext, models: FamilyModels, size: str, trimmed: TrimmedBase, rounded: RoundedBase
) -> BaseManifest:
    """Trained on nothing, so that every domain's examples are its adapter's."""
    return BaseManifest(
        **family_fields(context, models, context.settings()),
        name=base_name(context, size),
        size=size,
        path=("teacher",),
        parameters=count_parameters(trimmed.base.model),
        layers=trimmed.base.shape.layers,
        vocabulary=trimmed.vocabulary,
        quantization=rounded.grid,
        quantization_kl=rounded.kl,
        settings_key=settings_key(context, models.teacher_files.sha256, size),
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
    cut: CutBase,
    healed: HealedBase,
    rounded: RoundedBase,
    choice: PathChoice | None,
    datasets: Sequence[DomainDataset],
) -> BaseManifest:
    through = [choice.teacher_assistant] if choice is not None and choice.chosen == "teacher_assistant" else []
    return BaseManifest(
        **family_fields(context, models, context.settings()),
        name=base_name(context, size),
        size=size,
        path=("teacher", *through),
        path_choice=choice,
        parameters=count_parameters(healed.base.model),
        layers=healed.base.shape.layers,
        vocabulary=vocabulary_info(models, cut.teacher, cut.vocabulary_cost),
        quantization=rounded.grid,
        quantization_kl=rounded.kl,
        healing=healed.report,
        settings_key=settings_key(context, models.teacher_files.sha256, size),
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
