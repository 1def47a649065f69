"""A build, stage by stage: read this first.

    context = make_context(specs, specs.family("default"), registry=Registry("registry"), profile="demo")
    version = build_student(context, "healthcare", "small")

resolve → dataset → base → adapter → embed → confidence → evaluate → judge → publish. Each stage is one function that takes and
returns frozen dataclasses. What a stage makes is kept on disk under the cache key of everything that decides it, so a stopped
build goes on where it was and nothing is made twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from factory.cache import cache_key, home
from factory.config.schema import DomainSpec
from factory.distill.losses import find_loss
from factory.distill.trainer import asks_teacher
from factory.energy import Meter
from factory.evaluation.gates import judge
from factory.evaluation.memorization import Canary, make_canaries
from factory.evaluation.suite import EvalSuite, load_eval_suite
from factory.pipeline.adapter import check_targets, train_adapter
from factory.pipeline.base import make_base
from factory.pipeline.confidence import fit_student_confidence
from factory.pipeline.context import BuildContext, FamilyModels, models_for
from factory.pipeline.dataset import dataset_key, general_key, make_dataset
from factory.pipeline.embedding import fit_head
from factory.pipeline.evaluate import evaluate_adapter, find_champion, gather_eval_data
from factory.pipeline.publish import publish_student, student_name
from factory.pipeline.unfinished import begun
from factory.registry.versions import Version

PRIVATE_CANARIES = 16  # fewer could not show that none is extracted


@dataclass(frozen=True)
class BuildOptions:
    """What a single build may be asked for besides its settings."""

    baselines: bool = False  # train and measure plain SFT as well
    canaries: int | None = None  # secrets to plant in the training split; None: as the domain needs
    base: str | None = None  # use this published base, whatever has changed since
    rebuild_base: bool = False  # make a new base even where the published one would do

    def canaries_in(self, domain: DomainSpec) -> int:
        """``options.canaries_in(spec)``: as many as were asked for; else ``PRIVATE_CANARIES`` in a private domain, or none."""
        if self.canaries is not None:
            return self.canaries
        return PRIVATE_CANARIES if domain.private else 0


def build_student(context: BuildContext, domain: str, size: str, options: BuildOptions | None = None) -> Version:
    """``build_student(context, "healthcare", "small").reference``: builds, measures, judges and publishes one student.

    Raises: SpecError or DataError for files that cannot be used, TrainingError where the teacher pre-check fails.
    """
    options = options or BuildOptions()
    context, spec = replace(context, meter=Meter()), context.specs.domain(domain)
    # First, since a mistake in these files must not cost a training.
    suite = load_eval_suite(spec, context.family, context.specs.root)
    distill = context.settings(spec).distill
    for stage in (context.of_size(size).settings().heal, distill):
        find_loss(stage.loss)
    check_targets(spec, distill, live=asks_teacher(distill))
    canaries = make_canaries(options.canaries_in(spec), context.seed)

    models = models_for(context, spec)
    for note in models.teacher_files.notes:
        context.say(f"teacher: {note}")
    key = build_key(context, models, spec, size, options, suite)
    with begun(home() / "builds" / f"{student_name(domain, size)}-{key}.json", context.say) as unfinished:
        if published := unfinished.published(context.registry):
            with context.registry.stage(published.name):  # which removes what that build left in the registry
                pass
            context.say(f"{published.reference} was published already, by a build that was stopped at its very end")
            return published
        if context.resume and (found := unfinished.found()):
            context.say(f"going on with an unfinished build: {found}")
        return _make(replace(context, note=unfinished), models, spec, size, options, suite, canaries)


def _make(
    context: BuildContext,
    models: FamilyModels,
    spec: DomainSpec,
    size: str,
    options: BuildOptions,
    suite: EvalSuite,
    canaries: Sequence[Canary],
) -> Version:
    """Every stage after `resolve`."""
    data = make_dataset(context, models, spec)
    base = make_base(context, models, size, spec, pinned=options.base, rebuild=options.rebuild_base)
    eval_data = gather_eval_data(context, models, data, canaries)
    adapter = train_adapter(context, models, data, base, canaries=canaries, baselines=options.baselines)
    embedding = fit_head(context, models, data, base, adapter)
    confidence = fit_student_confidence(context, data, base, adapter)
    champion = find_champion(context, models, student_name(spec.name, size))
    evaluation = evaluate_adapter(
        context, models, data, eval_data, suite, base, adapter, embedding, confidence.confidence, champion
    )
    verdict = judge(
        evaluation.report.metrics,
        context.family.gates_of(spec),
        champion.reference if champion else None,
        texts_alone=models.teacher.api is not None,
    )
    return publish_student(
        context,
        models,
        size,
        data,
        base,
        adapter,
        embedding,
        confidence,
        evaluation,
        verdict,
        router=eval_data.router,
        canaries=len(canaries),
    )


def build_key(
    context: BuildContext, models: FamilyModels, spec: DomainSpec, size: str, options: BuildOptions, suite: EvalSuite
) -> str:
    """``build_key(context, models, spec, "small", options, suite)``: of all that decides a student, and of its registry."""
    sha256, domains = models.teacher_files.sha256, {one.name: one for one in (*context.public_domains, spec)}
    return cache_key(
        str(context.registry.root.resolve()),
        size,
        asdict(options),
        context.profile,
        context.seed,
        context.family.model_dump() | ({"teacher": api.dump()} if (api := context.family.api) else {}),  # a raised cap goes on
        spec.dump(),
        suite,
        [dataset_key(context, sha256, one) for one in domains.values()],
        general_key(context),
    )


def build_students(
    context: BuildContext, domains: Sequence[str], size: str, options: BuildOptions | None = None
) -> Iterator[Version]:
    """``for version in build_students(context, ["healthcare", "legal"], "small"):`` one after the other, on one base."""
    options = options or BuildOptions()
    for number, domain in enumerate(domains):
        yield build_student(context, domain, size, options if number == 0 else replace(options, rebuild_base=False))
