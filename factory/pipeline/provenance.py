"""The fields that the manifests of bases and students share: where a version comes from, and what it cost."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from factory.config.schema import Settings
from factory.energy import Meter
from factory.pipeline.api_teacher import spent
from factory.pipeline.context import BuildContext, FamilyModels
from factory.registry.manifest import ApiUsage, EnergyInfo, ModelInfo, TeacherInfo
from factory.registry.provenance import library_versions


def family_fields(context: BuildContext, models: FamilyModels, settings: Settings, size: str) -> dict[str, Any]:
    """``StudentManifest(**family_fields(context, models, settings, size), ...)``: family, teacher, encoder, settings, code."""
    family, files, usage = context.family, models.teacher_files, spent(models.teacher)
    teacher, base = models.family.teacher, family.sizes[size].base
    if base is None and models.shared is not models:
        base = family.weights  # which the base was cut from, and a domain's own teacher is another
    return {
        "family": family.name,
        "profile": context.profile,
        "seed": context.seed,
        "teacher": TeacherInfo(
            reference=teacher.reference,
            license=teacher.license,
            sha256=files.sha256,
            revision=files.revision,
            parameters=None if family.api else models.teacher.parameters,
            api=ApiUsage(**vars(usage)) if usage else None,
            languages=teacher.languages,
        ),
        "base_model": ModelInfo(reference=base.model, license=base.license) if base else None,
        "encoder": ModelInfo(reference=family.encoder.model, license=family.encoder.license),
        "settings": settings.model_dump(),
        "libraries": library_versions(),
        "git_commit": context.git_commit,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """``environment(context.device)["processor"]``: of the machine and its libraries, all that may change a measurement."""
    return {
        "libraries": library_versions(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def processor_name() -> str:
    """``processor_name()`` → "AMD EPYC 9B45": as Linux names it, elsewhere as Python does."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def energy_info(meter: Meter, per_1000_tokens_wh: Mapping[str, float] | None = None) -> EnergyInfo:
    """``energy_info(context.meter)``: the estimate by stage, and of 1,000 generated tokens where it was made."""
    return EnergyInfo(method=meter.method, stages_wh=meter.stages_wh, per_1000_tokens_wh=dict(per_1000_tokens_wh or {}))
