"""Stage `publish`: manifest, model card and files of a student, as a new version in the registry."""

from __future__ import annotations

import shutil

from factory.cache import cache_key, sha256
from factory.config.schema import DistillConfig
from factory.data.router import DomainRouter
from factory.distill.checkpoints import remove_checkpoints
from factory.pipeline.adapter import TrainedAdapter
from factory.pipeline.base import StudentBase
from factory.pipeline.confidence import FittedConfidence
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import DomainDataset
from factory.pipeline.embedding import FittedHead
from factory.pipeline.evaluate import Evaluation
from factory.pipeline.provenance import energy_info, family_fields
from factory.pipeline.unfinished import WEIGHTS
from factory.registry.manifest import StudentManifest, Training, Verdict
from factory.registry.versions import Version
from factory.reports.card import model_card


def student_name(domain: str, size: str) -> str:
    """``student_name("healthcare", "small")`` → "healthcare-small"."""
    return f"{domain}-{size}"


def publish_student(
    context: BuildContext,
    models: FamilyModels,
    size: str,
    data: DomainDataset,
    base: StudentBase,
    adapter: TrainedAdapter,
    embedding: FittedHead | None,
    confidence: FittedConfidence,
    evaluation: Evaluation,
    verdict: Verdict,
    *,
    router: DomainRouter | None,
    canaries: int = 0,
) -> Version:
    """``publish_student(context, models, "small", data, base, adapter, head, confidence, evaluation, verdict, router=router)``

    Its cost is what ``context.meter`` has counted. The adapter's checkpoints are removed once the version is published.
    """
    spec, settings = data.spec, context.settings(data.spec)
    manifest = StudentManifest(
        **family_fields(context, models, settings, size),
        name=student_name(spec.name, size),
        domain=spec.name,
        description=spec.description,
        size=size,
        base=base.version.reference,
        path=(*base.manifest.path, base.version.reference),
        dataset=data.info,
        training=_training(adapter, settings.distill),
        soft_targets=adapter.training_set.targets.describe() if adapter.training_set.targets else None,
        teacher_adaptation=data.adaptation,
        embedding=embedding.info if embedding else None,
        confidence=confidence.info,
        evaluation=evaluation.report,
        verdict=verdict,
        warnings=(*evaluation.warnings, *confidence.warnings),
        canaries=canaries,
        router=router.version if router else None,
        notice=spec.notice,
        append_notice=spec.append_notice,
        teacher_context=spec.teacher_context.model_dump(),
        spec=spec.dump(),
        spec_hash=cache_key(spec.dump()),
        seconds=dict(context.meter.seconds),
        energy=energy_info(context.meter, evaluation.per_1000_tokens_wh),
    )
    context.note.publishing(context.registry, manifest.name, sha256(adapter.files / WEIGHTS))
    with context.registry.stage(manifest.name) as staged:
        shutil.copytree(adapter.files, staged, dirs_exist_ok=True)
        if embedding is not None:
            embedding.head.save(staged)
        if confidence.confidence is not None:
            confidence.confidence.save(staged)
        (staged / "README.md").write_text(model_card(manifest), encoding="utf-8")
        version = context.registry.publish(manifest, staged)
    for folder in (adapter.folder, adapter.sft_folder):
        if folder is not None:
            remove_checkpoints(folder)
    return version


def _training(adapter: TrainedAdapter, config: DistillConfig) -> Training:
    return Training(
        curve=tuple(adapter.training.curve),
        config=config.model_dump(),
        examples=len(adapter.training_set.indices),
        gradient_shares=adapter.training.gradient_shares,
        kept_step=adapter.training.kept_step,
    )
