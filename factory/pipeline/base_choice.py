"""Which published base a build uses: one whose settings, and whose domains' data, are what they were when it was made."""

from __future__ import annotations

from dataclasses import dataclass

from factory.cache import cache_key
from factory.errors import RegistryError, UsageError
from factory.pipeline.context import BuildContext
from factory.pipeline.dataset import dataset_key, general_key
from factory.registry.manifest import BaseManifest
from factory.registry.versions import Version

BASE_FORMAT = 1  # raised when the making of a base changes, so that older ones are not taken for it


@dataclass(frozen=True)
class BaseChoice:
    """Which published base a build uses; ``version`` None means that one has to be made."""

    version: Version | None
    reason: str = ""  # one line for people, where there is something to say


def base_name(context: BuildContext, size: str) -> str:
    """``base_name(context, "small")`` → "default-small-base"."""
    return f"{context.family.name}-{size}-base"


def settings_key(context: BuildContext, teacher_sha256: str, size: str) -> str:
    """``settings_key(context, models.teacher_files.sha256, "small")``: of all that decides a base but its domains' data."""
    family, assistant = context.family, context.family.larger_size(size)
    spec, heal = family.sizes[size], context.of_size(size).settings().heal
    return cache_key(
        BASE_FORMAT,
        teacher_sha256,
        *family.teacher.template_parts,
        family.encoder.model_dump(),
        spec.dump(),
        None if spec.trimmed or family.api else heal.model_dump(exclude={"report_to", "checks", "on_policy"}),
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
    same_settings = [version for version in published if base_manifest(version).settings_key == key]
    if rebuild and published:
        return BaseChoice(None, f"making a new {name}, as --rebuild-base asks")
    for version in same_settings:
        if not changed_domains(context, teacher_sha256, version):
            manifest = base_manifest(version)
            unseen = [one.name for one in context.healing_domains if not manifest.trimmed and one.name not in manifest.domains]
            seen = (
                f"{version.reference} was healed without {', '.join(unseen)}; --rebuild-base makes one with" if unseen else ""
            )
            return BaseChoice(version, seen)
    if same_settings:
        newest = same_settings[0]
        changed = ", ".join(changed_domains(context, teacher_sha256, newest))
        why = f"the data of {changed} changed since {newest.reference} was made"
    elif published:
        newest, why = published[0], f"{published[0].reference} was made with other settings"
    else:
        return BaseChoice(None)
    return BaseChoice(None, f"{why}: making a new base (--base {newest.reference} keeps the old one)")


def changed_domains(context: BuildContext, teacher_sha256: str, base: Version) -> list[str]:
    """``changed_domains(context, models.teacher_files.sha256, base)``: whose data is no longer what it was healed on.

    A domain that has become private counts, even where its text only chose tokens; one whose YAML is gone does not, since
    nothing is known of it.
    """
    manifest = base_manifest(base)
    healed, named = manifest.domains, {*manifest.domains, *manifest.vocabulary.chosen_by}
    known = [spec for spec in context.specs.domains.values() if spec.name in named]
    return [
        spec.name
        for spec in known
        if spec.private
        or (spec.name in healed and dataset_key(context, teacher_sha256, spec.unadapted()) != healed[spec.name].dataset_key)
    ]


def _pinned(context: BuildContext, teacher_sha256: str, size: str, reference: str) -> BaseChoice:
    version, name = context.registry.resolve(reference), base_name(context, size)
    if version.name != name:
        exist = ", ".join(one.reference for one in context.registry.versions("base", name)) or "none"
        raise UsageError(f"--base {reference}: a student of size {size} needs a base called {name}; there are: {exist}")
    changed = changed_domains(context, teacher_sha256, version)
    since = f", although the data of {', '.join(changed)} changed since it was made" if changed else ""
    return BaseChoice(version, f"using {version.reference} as --base asks{since}")


def base_manifest(version: Version) -> BaseManifest:
    """``base_manifest(registry.resolve("default-medium-base"))``. Raises: RegistryError for a student."""
    if version.manifest.kind != "base":
        raise RegistryError(f"{version.reference} is a student, not a base")
    return version.manifest
