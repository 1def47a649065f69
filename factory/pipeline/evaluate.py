"""Stage `evaluate`: the trained student beside its teacher, as one report that everything shown later is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from factory.cache import cache_key, folder_bytes
from factory.data.dataset import small_dataset_warning
from factory.data.history import conversation_of
from factory.evaluation.confidence import Confidence
from factory.evaluation.evaluate import (
    PARTS,
    Champion,
    DomainRows,
    EvalData,
    EvalSettings,
    EvalTarget,
    evaluate_student,
)
from factory.evaluation.fidelity import fixed_model, measure, with_adapter
from factory.evaluation.memorization import Canary
from factory.evaluation.suite import EvalSuite
from factory.evaluation.text_teacher import PARTS as TEXT_PARTS
from factory.evaluation.text_teacher import evaluate_by_texts
from factory.inference import load_version
from factory.models.base import trim_teacher
from factory.models.embedding_head import EmbeddingHead
from factory.models.vocabulary import vocabulary_growth
from factory.pipeline.adapter import TrainedAdapter
from factory.pipeline.api_teacher import answers_of
from factory.pipeline.base import StudentBase
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import (
    DomainDataset,
    find_dataset,
    general_examples,
    general_key,
    load_router,
    make_general_rows,
)
from factory.pipeline.embedding import FittedHead
from factory.pipeline.grown import MAX_GROWTH
from factory.registry.manifest import EvalReport, ModelSize, Sizes
from factory.registry.references import CHAMPION

EVALUATION_FORMAT = 5  # raised when what a part measures changes, so that one kept by older code is measured again
LOSS_EXAMPLES = 12  # of train, whose KL is compared with the test split's: is the data set too small?


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of a student, what a user should know, and Wh of 1,000 generated tokens by model."""

    report: EvalReport
    warnings: tuple[str, ...]
    per_1000_tokens_wh: dict[str, float]


def gather_eval_data(
    context: BuildContext, models: FamilyModels, data: DomainDataset, canaries: Sequence[Canary] = ()
) -> EvalData:
    """``gather_eval_data(context, models, data)``: what a student of this domain is measured on.

    The teacher answers general prompts here, before training, so that a pool it cannot answer is found early. Other domains
    are measured as far as their data sets exist: none is made for it, and no other domain's own teacher is looked for.
    """
    others = [
        found
        for spec in context.public_domains
        if spec.name != data.spec.name
        and (found := find_dataset(context, models, spec.unadapted() if spec.teacher else spec)) is not None
    ]
    return EvalData(
        domain=_rows(data),
        others=[_rows(other) for other in others],
        general=make_general_rows(context, models),
        general_texts=[example.text for example in general_examples(context, models)],
        embed=models.embed,
        router=load_router(context, models) if data.spec in context.routed_domains else None,
        canaries=canaries,
    )


def _rows(data: DomainDataset) -> DomainRows:
    return DomainRows(data.spec, *(list(data.rows[split]) for split in ("train", "validation", "test")))


def find_champion(context: BuildContext, models: FamilyModels, name: str) -> Champion | None:
    """``find_champion(context, models, "healthcare-small")``: the version that a new one would replace, if it can be compared.

    One with another teacher cannot: both would have to be measured beside the same.
    """
    if CHAMPION not in context.registry.aliases(name):
        return None
    version = context.registry.resolve(f"{name}@{CHAMPION}")
    if version.manifest.teacher.sha256 != models.teacher_files.sha256:
        context.say(f"{version.reference}, the champion, has another teacher: the new version will not be compared with it")
        return None
    if models.teacher.api is not None:
        context.say(
            f"the teacher is behind an API and gives no distributions: the new version is not compared with {version.reference}"
        )
        return None
    loaded = load_version(version, context.registry, context.device)
    teacher = trim_teacher(models.teacher, loaded.base.shape.tokens)
    return Champion(version.reference, fixed_model(loaded.model), teacher)


def evaluate_adapter(
    context: BuildContext,
    models: FamilyModels,
    data: DomainDataset,
    eval_data: EvalData,
    suite: EvalSuite,
    base: StudentBase,
    adapter: TrainedAdapter,
    embedding: FittedHead | None = None,
    confidence: Confidence | None = None,
    champion: Champion | None = None,
) -> Evaluation:
    """``evaluate_adapter(context, models, data, eval_data, suite, base, adapter).report.metrics["kl"].value``"""
    whole = models.teacher if base.base.shape.tokens is not None else None
    head = embedding.head if embedding else None
    target = EvalTarget(adapter.model, base.teacher, whole, adapter.check.tasks, champion, head, confidence)
    of_domain = context.settings(data.spec)
    settings = EvalSettings(
        of_domain.evaluate,
        context.bootstrap,
        context.specs.root,
        adapter.folder / f"evaluation-{evaluation_key(context, data, eval_data, suite, target)}",
        of_domain.data.max_completion_tokens,
        context.meter.energy_of,
        context.say,
        of_domain.confidence.examples,
    )
    parts = len(PARTS if models.teacher.api is None else TEXT_PARTS)
    context.note.add("evaluation", settings.folder, parts)
    with context.meter.stage("evaluate"), context.progress(f"{data.spec.name}: evaluate", parts) as advance:
        if models.teacher.api is not None:
            ask = partial(answers_of, models.teacher, max_new_tokens=settings.max_new_tokens)
            measured, warnings = evaluate_by_texts(target, eval_data, suite, settings, ask, advance), []
        else:
            measured = evaluate_student(target, eval_data, suite, settings, advance)
            warnings = data_warnings(models, data, base, adapter, measured.metrics["kl"].value)
    assert measured.speed is not None and measured.per_example is not None
    report = EvalReport(
        metrics=measured.metrics | adapter.check.metrics,
        baselines=measured.baselines,
        sizes=model_sizes(models, base, adapter, head),
        speed=measured.speed,
        samples=measured.samples,
        per_example=measured.per_example,
        risk_coverage=measured.risk_coverage,
    )
    inherited = base.manifest.warnings
    found = (*adapter.warnings, *warnings, *measured.warnings, *inherited)
    return Evaluation(report, found, {who: wh for who, wh in measured.per_1000_tokens_wh.items() if who != "sft"})


def evaluation_key(
    context: BuildContext, data: DomainDataset, eval_data: EvalData, suite: EvalSuite, target: EvalTarget
) -> str:
    """``evaluation_key(context, data, eval_data, suite, target)``: of all that decides the figures but the student's weights.

    The weights decide the folder that the parts are kept in.
    """
    rows = [eval_data.general, *(other.test for other in eval_data.others)]
    settings = context.settings(data.spec)
    return cache_key(
        EVALUATION_FORMAT,
        settings.evaluate.model_dump(),
        settings.embed.model_dump(),
        settings.confidence.model_dump(),
        general_key(context),  # texts that the embedding head is fitted on
        settings.data.max_completion_tokens,
        data.manifest.fingerprint,
        data.spec.private,
        [one.spec.contexts.dump() for one in (eval_data.domain, *eval_data.others)],
        [[conversation_of(row), row["completion"]] for part in rows for row in part],
        suite,
        [(task.name, who, scores.tolist()) for task in target.tasks for who, scores in task.scores.items()],
        target.champion.reference if target.champion else None,
        [canary.completion for canary in eval_data.canaries],
        [*target.trained],  # with the SFT baseline or without
        context.seed,
    )


def model_sizes(models: FamilyModels, base: StudentBase, adapter: TrainedAdapter, head: EmbeddingHead | None = None) -> Sizes:
    """``model_sizes(models, base, adapter, head)``: parameters of what answers, and bytes on disk."""
    adapter_bytes = (adapter.files / "adapter_model.safetensors").stat().st_size
    of_base = base.manifest.parameters
    return Sizes(
        teacher=None
        if models.teacher.api
        else ModelSize(parameters=models.teacher.parameters, bytes=folder_bytes(models.teacher_files.folder)),
        student=ModelSize(
            parameters=of_base + adapter.parameters,
            bytes=adapter_bytes + (head.bytes if head else 0) + folder_bytes(base.version.folder),
            base_parameters=of_base,
            adapter_bytes=adapter_bytes,
        ),
    )


def data_warnings(
    models: FamilyModels, data: DomainDataset, base: StudentBase, adapter: TrainedAdapter, held_out_kl: float
) -> list[str]:
    """``data_warnings(models, data, base, adapter, kl)``: a data set that is too small, a vocabulary that does not fit."""
    found = []
    name, teacher = data.spec.name, base.teacher
    learnt = [adapter.training_set.examples[i] for i in adapter.training_set.indices[:LOSS_EXAMPLES]]
    sums = measure(teacher, {"student": with_adapter(adapter.model, "default")}, learnt)["student"]
    found.append(small_dataset_warning(float(sums.kl.sum() / sums.tokens.sum()), held_out_kl, data.manifest))
    if base.manifest.layers is not None:
        texts = [f"{row['prompt']} {row['completion']}" for row in data.rows["train"]]
        growth = vocabulary_growth(models.tokenizer, teacher.tokenizer, texts)  # type: ignore[arg-type]
        if growth > MAX_GROWTH:
            anew = "" if data.spec.private else ", or --rebuild-base to choose the tokens anew with every public domain's text"
            found.append(
                f"{name} needs {growth:.1%} more tokens in {base.version.reference} than with the teacher's tokenizer: use a "
                f"larger `vocabulary`{anew}"
            )
    return [warning for warning in found if warning]
