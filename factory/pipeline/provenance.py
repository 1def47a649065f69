"""The fields that the manifests of bases and students share: where a version comes from, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory.config.schema import Settings
from factory.energy import Meter
from factory.pipeline.context import BuildContext, FamilyModels
from factory.registry.manifest import EnergyInfo, ModelInfo, TeacherInfo
from factory.registry.provenance import library_versions


def family_fields(context: BuildContext, models: FamilyModels, settings: Settings) -> dict[str, Any]:
    """``StudentManifest(**family_fields(context, models, settings), ...)``: family, teacher, encoder, settings, code."""
    family, files = context.family, models.teacher_files
    return {
        "family": family.name,
        "profile": context.profile,
        "seed": context.seed,
        "teacher": TeacherInfo(
            reference=family.teacher.model,
            license=family.teacher.license,
            sha256=files.sha256,
            revision=files.revision,
            parameters=models.teacher.parameters,
        ),
        "encoder": ModelInfo(reference=family.encoder.model, license=family.encoder.license),
        "settings": settings.model_dump(),
        "libraries": library_versions(),
        "git_commit": context.git_commit,
    }


def energy_info(meter: Meter, per_1000_tokens_wh: Mapping[str, float] | None = None) -> EnergyInfo:
    """``energy_info(context.meter)``: the estimate by stage, and of 1,000 generated tokens where it was made."""
    return EnergyInfo(method=meter.method, stages_wh=meter.stages_wh, per_1000_tokens_wh=dict(per_1000_tokens_wh or {}))
