"""Methods of distillation compared on one domain: ``factory experiment methods.yaml``.

    spec = load_methods(Path("methods.yaml"), context.settings(domain).distill)
    report = run_experiment(context, "healthcare", "small", spec, seeds=3)

All runs share one base and one split, and may spend the same minutes and teacher tokens. A method is trained with every
learning rate at the first seed; the rate with the lowest KL on the validation split is trained at the other seeds too, and only
these runs are measured on the test split. An experiment that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from factory.config.experiment import ExperimentSpec, MethodSpec
from factory.distill.losses import find_loss
from factory.distill.trainer import asks_teacher
from factory.distill.training_data import TrainingSet
from factory.energy import Meter
from factory.errors import DataError, UsageError
from factory.evaluation.golden_set import asked_questions
from factory.evaluation.method_comparison import Compared, best_rate, compare_methods, metric_value
from factory.evaluation.stats import BootstrapConfig
from factory.evaluation.suite import load_eval_suite
from factory.pipeline.adapter import adapter_training_set, check_targets, training_teacher
from factory.pipeline.base import make_base
from factory.pipeline.context import BuildContext, resolve_models
from factory.pipeline.dataset import make_dataset
from factory.pipeline.experiment_run import Bench, HeldOutScores, Run, held_out_scores, train_run
from factory.pipeline.provenance import environment
from factory.registry.manifest import MetricValue
from factory.registry.plain_json import plain_json

RESAMPLES = 10_000  # so that the smallest p-value stays far below 0.05 when it is corrected for ten comparisons


@dataclass(frozen=True)
class MethodResult:
    """What was chosen for a method on the validation split, and what was measured on the test split."""

    name: str
    settings: dict[str, Any]  # as in the file of methods
    validation_kl: dict[str, float]  # of the first seed, by learning rate
    learning_rate: float
    at_edge: bool  # the best rate is the lowest or the highest of those tried: one beyond it may be better
    runs: tuple[dict[str, Any], ...]  # of each seed: what it spent
    teacher_seconds: float  # before training, for stored targets that all methods and students share: in no run's minutes
    metrics: dict[str, Compared]
    relation_alignment: tuple[float | None, ...]  # of each seed


@dataclass(frozen=True)
class ExperimentReport:
    """All that ``factory experiment`` writes."""

    domain: str
    size: str
    profile: str
    base: str
    seeds: tuple[int, ...]
    minutes: float  # that a run may spend
    teacher_tokens: int  # that a run may spend
    learning_rates: tuple[float, ...]
    examples: dict[str, int]  # by split
    untrained: dict[str, MetricValue]  # the base without an adapter, on the test split
    methods: tuple[MethodResult, ...]  # the first is what the others are compared with
    digests: dict[str, str]  # of data, base, teacher and methods
    git_commits: tuple[str, ...]  # of the code of every run: several where the code changed before the experiment went on
    environment: dict[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        """As its JSON holds it; numbers that are not finite are null."""
        content: dict[str, Any] = plain_json(asdict(self), "experiment")
        return content


def run_experiment(
    context: BuildContext, domain: str, size: str, spec: ExperimentSpec, *, seeds: int, base: str | None = None
) -> ExperimentReport:
    """``run_experiment(context, "healthcare", "small", spec, seeds=3).methods[1].metrics["kl"].difference``

    ``base`` pins a published base; otherwise the one that a build would use is found, or made.
    Raises: SpecError for an unknown loss, DataError without a validation split, TrainingError where a method diverges.
    """
    bench = prepare(replace(context, meter=Meter()), domain, size, spec, base)
    numbers = tuple(range(context.seed, context.seed + seeds))
    count, done = len(spec.methods) * (len(spec.learning_rates) + seeds - 1), itertools.count(1)
    with context.progress(f"{domain}: experiment", count) as advance:

        def report(method: MethodSpec, run: Run) -> None:
            context.say(f"{next(done)} of {count} runs done: {method.name}, {run}")
            advance(1)

        trained = [train_method(bench, method, numbers, report) for method in spec.methods]
    bootstrap = BootstrapConfig(RESAMPLES, context.seed)
    with context.progress(f"{domain}: test split", 1 + len(spec.methods) * seeds) as advance:
        untrained = held_out_scores(bench, None)
        advance(1)
        scores: dict[str, list[HeldOutScores]] = {}
        for one in trained:
            scores[one.method.name] = [held_out_scores(bench, run) for run in one.chosen]
            advance(seeds)
    compared = compare_methods({name: [run.metrics for run in runs] for name, runs in scores.items()}, bootstrap)
    return ExperimentReport(
        domain=domain,
        size=size,
        profile=context.profile,
        base=bench.base.version.reference,
        seeds=numbers,
        minutes=spec.minutes,
        teacher_tokens=spec.teacher_tokens,
        learning_rates=spec.learning_rates,
        examples={split: len(bench.rows(split)) for split in ("validation", "test")},
        untrained={name: metric_value(name, one, bootstrap) for name, one in untrained.metrics.items()},
        methods=tuple(_result(spec, one, compared[one.method.name], scores[one.method.name]) for one in trained),
        digests=_digests(bench),
        git_commits=tuple(sorted({str(run.git_commit) for one in trained for run in one.chosen})),
        environment=environment(context.device),
    )


def prepare(context: BuildContext, domain: str, size: str, spec: ExperimentSpec, base: str | None) -> Bench:
    """``prepare(context, "healthcare", "small", spec, base=None)``: the data set, the base and the golden set of all runs."""
    domain_spec = context.specs.domain(domain)
    settings = context.settings(domain_spec)
    if context.family.api is not None:
        raise UsageError(f"methods are compared by KL, and the teacher of family {context.family.name} is behind an API")
    for method in spec.methods:
        config = method.config(settings.distill)
        find_loss(config.loss)
        check_targets(domain_spec, config, live=asks_teacher(config) or method.trainer == "trl_gkd")
    questions = load_eval_suite(domain_spec, context.family, context.specs.root).golden_set
    models = resolve_models(context.family, context.specs.root, context.device).of(domain_spec)
    data = make_dataset(context, models, domain_spec)
    if not len(data.rows["validation"]):
        raise DataError(f"the data set of {domain} has no validation split to choose learning rates on; give it more topics")
    student_base = make_base(context, models, size, domain_spec, pinned=base)
    teacher = training_teacher(models, data, student_base)
    return Bench(context, spec, models, data, student_base, teacher, asked_questions(questions, settings.evaluate.golden_set))


# ----------------------------------------------------------------------------------------------------------------- a method


@dataclass(frozen=True)
class TrainedMethod:
    """All runs of a method."""

    method: MethodSpec
    tried: dict[float, Run]  # of the first seed, by learning rate
    chosen: tuple[Run, ...]  # of the best learning rate, by seed
    teacher_seconds: float


def train_method(
    bench: Bench, method: MethodSpec, seeds: Sequence[int], report: Callable[[MethodSpec, Run], None]
) -> TrainedMethod:
    """``train_method(bench, method, [0, 1, 2], report).chosen``: every rate at the first seed, the best at the others."""
    training_set = method_training_set(bench, method)

    def trained(rate: float, seed: int) -> Run:
        run = train_run(bench, method, training_set, rate, seed)
        report(method, run)
        return run

    tried = {rate: trained(rate, seeds[0]) for rate in bench.spec.learning_rates}
    best = best_rate({rate: run.validation_kl for rate, run in tried.items()})
    store = training_set.targets if method.trainer == "factory" else None
    seconds = store.describe().teacher_seconds if store else 0.0
    return TrainedMethod(method, tried, (tried[best], *(trained(best, seed) for seed in seeds[1:])), seconds)


def method_training_set(bench: Bench, method: MethodSpec) -> TrainingSet:
    """``method_training_set(bench, method)``: the examples of a build's adapter, with the method's targets."""
    data = bench.data if method.teacher_context or method.trainer == "trl_gkd" else bench.data.without_context()
    config = method.config(bench.settings)
    training_set = adapter_training_set(bench.context, bench.models, data, bench.base, config, bench.teacher)
    return replace(training_set, targets=None) if method.targets == "hard" else training_set


def _result(
    spec: ExperimentSpec, one: TrainedMethod, metrics: dict[str, Compared], scores: Sequence[HeldOutScores]
) -> MethodResult:
    rates, rate = spec.learning_rates, one.chosen[0].learning_rate
    return MethodResult(
        name=one.method.name,
        settings=one.method.model_dump(exclude={"name"}),
        validation_kl={str(tried): run.validation_kl for tried, run in one.tried.items()},
        learning_rate=rate,
        at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
        runs=tuple({"seed": run.seed, **asdict(run.spent)} for run in one.chosen),
        teacher_seconds=one.teacher_seconds,
        metrics=metrics,
        relation_alignment=tuple(run.relation_alignment for run in scores),
    )


def _digests(bench: Bench) -> dict[str, str]:
    return {
        "data": bench.data.manifest.fingerprint,
        "base": str(bench.base.manifest.manifest_sha256),
        "teacher": bench.models.teacher_files.sha256,
        **({"adapted_teacher": bench.data.key} if bench.data.adaptation else {}),
        "methods": hashlib.sha256(bench.spec.model_dump_json().encode()).hexdigest(),
    }
