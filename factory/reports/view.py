"""One view of a manifest: what console, card and HTML report show of a version, in words and in order.

    view = view_of(version.manifest)
    view.verdict, view.headline, view.lineage, view.warnings

A renderer decides how a row looks, never what it says. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from factory.data.drops import describe_dropped
from factory.evaluation.metrics import METRICS, Metric, is_detail, metric_named
from factory.reports.describe import (
    describe_adaptation,
    describe_confidence,
    describe_growth,
    describe_head,
    describe_risk,
    describe_rounding,
    describe_usage,
    describe_vocabulary,
)
from factory.reports.format import format_metric, format_number

if TYPE_CHECKING:
    from factory.registry.manifest import (
        BaseManifest,
        EnergyInfo,
        HealingReport,
        MetricValue,
        PersonalDataInfo,
        Sample,
        SoftTargetsInfo,
        SourceInfo,
        StudentManifest,
        Training,
    )
    from factory.registry.size_choice import SizeChoice

    AnyManifest = StudentManifest | BaseManifest
    Measured = MetricValue | float  # a size or a speed has no interval

SIZE_AND_SPEED = (
    "parameters", "base_parameters", "bytes", "adapter_bytes", "tokens_per_second", "batch_tokens_per_second", "latency_ms",
)  # fmt: skip
# What a reader wants to know first; the accuracy on each task stands between fidelity and size.
FIRST = ("kl", "base_kl", "top1_agreement", "golden_set_passed")
LAST = ("parameters", "bytes", "tokens_per_second")
TASK = re.compile(r"task_.+_accuracy")
OF_TEACHER = re.compile(r"(golden_set_passed|task_.+_accuracy)_teacher")


@dataclass(frozen=True)
class Row:
    """One line of text beside its label."""

    label: str
    value: str
    code: bool = False  # an identifier or a checksum


@dataclass(frozen=True)
class MetricRow:
    """One metric of a version, and of its teacher where the teacher has it too."""

    key: str
    metric: Metric
    value: Measured
    teacher: Measured | None = None

    @property
    def words(self) -> str:
        """``0.412 [0.380, 0.440]``, or ``40.0   (teacher 28.0)``."""
        own = format_metric(self.value, self.metric.unit)
        return own if self.teacher is None else f"{own}   (teacher {format_metric(self.teacher, self.metric.unit)})"


@dataclass(frozen=True)
class GateRow:
    """One gate in words."""

    words: str
    status: str  # passed, failed or undecidable


@dataclass(frozen=True)
class Curve:
    """One column of the training curve."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class View:
    """Everything that the manifest of one version says."""

    name: str
    reference: str
    kind: str
    domain: str
    profile: str
    created: str
    size: str  # "80.0 M parameters, 59.5 % of its teacher's"
    notice: str
    verdict: str
    reasons: tuple[str, ...]
    gates: tuple[GateRow, ...]
    warnings: tuple[str, ...]
    metrics: tuple[MetricRow, ...]
    lineage: tuple[Row, ...]
    sources: tuple[SourceInfo, ...]
    data: tuple[Row, ...]
    healing: tuple[Row, ...]  # of a base, and of the paths that were tried for it
    training: tuple[Row, ...]
    curves: tuple[Curve, ...]
    settings: tuple[Row, ...]
    energy: tuple[Row, ...]
    samples: tuple[Sample, ...]

    @property
    def headline(self) -> tuple[MetricRow, ...]:
        """The few metrics that matter first."""
        rows = {row.key: row for row in self.metrics}
        return tuple(rows[key] for key in headline_keys(rows))

    @property
    def verdict_words(self) -> str:
        """``failed: KL(teacher ‖ student), nats/token: 0.912 > 0.8``."""
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict

    @property
    def worst_warning(self) -> str:
        """The first one, since a build warns of its teacher and data before anything else, and how many more there are."""
        more = f" (and {len(self.warnings) - 1} more)" if len(self.warnings) > 1 else ""
        return self.warnings[0] + more if self.warnings else ""


def view_of(manifest: AnyManifest) -> View:
    """``view_of(version.manifest)``: also of a manifest that is not published yet."""
    from factory.evaluation.gates import describe_gate

    student = manifest if manifest.kind == "student" else None
    verdict = student.verdict if student else None
    own, teacher = measurements(manifest), teacher_measurements(manifest)
    return View(
        name=manifest.name,
        reference=f"{manifest.name}@{manifest.version}",
        kind=manifest.kind,
        domain=student.domain if student else "",
        profile=manifest.profile,
        created=manifest.created,
        size=describe_size(manifest.parameters, manifest.teacher.parameters),
        notice=student.notice if student else "",
        verdict=verdict.status if verdict else "unchecked",
        reasons=verdict.reasons if verdict else (),
        gates=tuple(GateRow(describe_gate(gate), gate.status) for gate in verdict.gates) if verdict else (),
        warnings=manifest.warnings,
        metrics=tuple(MetricRow(key, metric, own[key], teacher.get(key)) for key, metric in declared_order([own]).items()),
        lineage=_shown(_lineage(manifest)),
        sources=manifest.dataset.sources,
        data=_shown(_data(manifest)),
        healing=tuple(_healing(manifest)),
        training=_shown(_training(manifest)),
        curves=curves_of(manifest.training),
        settings=tuple(Row(key, str(value), code=True) for key, value in manifest.training.config.items()),
        energy=_shown(_energy(manifest.energy)),
        samples=student.evaluation.samples if student else (),
    )


# ------------------------------------------------------------------------------------------------------------- metrics


def measurements(manifest: AnyManifest) -> dict[str, Measured]:
    """``measurements(version.manifest)["kl"]``: every metric, size and speed of one version."""
    if manifest.kind == "base":
        size = sum(file.bytes for file in manifest.files.values())
        found: dict[str, Measured] = {"parameters": manifest.parameters}
        return found | {"bytes": size} if size else found  # before publishing no file is known
    evaluation = manifest.evaluation
    plain = evaluation.sizes.student.model_dump(exclude_none=True) | evaluation.speed.student.model_dump()
    return dict(evaluation.metrics) | plain


def teacher_measurements(manifest: AnyManifest) -> dict[str, Measured]:
    """``teacher_measurements(version.manifest)``: the teacher's, under the names that the student's have."""
    if manifest.kind == "base":
        return {} if manifest.teacher.parameters is None else {"parameters": manifest.teacher.parameters}
    evaluation = manifest.evaluation
    sides = (evaluation.sizes.teacher, evaluation.speed.teacher)  # None behind an API
    plain = {key: value for side in sides if side for key, value in side.model_dump(exclude_none=True).items()}
    named = {match[1]: metric for key, metric in evaluation.metrics.items() if (match := OF_TEACHER.fullmatch(key))}
    if "teacher_perplexity" in evaluation.metrics:
        named["student_perplexity"] = evaluation.metrics["teacher_perplexity"]
    return named | plain


def declared_order(columns: Iterable[Collection[str]]) -> dict[str, Metric]:
    """``declared_order([measurements(manifest), ...])``: declared metrics first and in their order, without details."""
    found = list(dict.fromkeys(key for column in columns for key in column))
    others = [key for key in found if key not in METRICS and not is_detail(key)]
    return {key: metric_named(key) for key in (*(key for key in METRICS if key in found), *others)}


def headline_keys(keys: Collection[str]) -> list[str]:
    """``headline_keys(measurements(manifest))``: fidelity, golden set, accuracy on each task, size and speed."""
    tasks = [key for key in keys if TASK.fullmatch(key)]
    return [key for key in (*FIRST, *tasks, *LAST) if key in keys]


def describe_size(parameters: int, teacher: int | None) -> str:
    """``describe_size(80_000_000, 134_515_008)`` → "80.0 M parameters, 59.5 % of its teacher's"."""
    if teacher is None:
        return f"{format_number(parameters, 'parameters')} parameters"
    return f"{format_number(parameters, 'parameters')} parameters, {format_number(parameters / teacher, '%')} of its teacher's"


# --------------------------------------------------------------------------------------------------------------- rows


def _shown(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Without those that do not apply to this version."""
    return tuple(row for row in rows if row.value)


def _lineage(manifest: AnyManifest) -> list[Row]:
    student = manifest if manifest.kind == "student" else None
    base = manifest if manifest.kind == "base" else None
    adaptation = student.teacher_adaptation if student else None
    return [
        Row("teacher", manifest.teacher.reference, code=True),
        Row("teacher's licence", manifest.teacher.license),
        Row("teacher's sha256", "" if manifest.teacher.api else manifest.teacher.sha256, code=True),
        Row("asked of its API", describe_usage(manifest.teacher.api) if manifest.teacher.api else ""),
        Row("model of the base", manifest.base_model.reference if manifest.base_model else "", code=True),
        Row("its licence", manifest.base_model.license if manifest.base_model else ""),
        Row("teacher adapted", describe_adaptation(adaptation) if adaptation else ""),
        Row("adapted teacher", adaptation.key if adaptation else "", code=True),
        Row("base", student.base if student else "", code=True),
        Row("distillation path", " → ".join(manifest.path), code=True),
        Row("why this path", base.path_choice.reason if base and base.path_choice else ""),
        Row("layers kept", ", ".join(map(str, base.layers or ())) if base else ""),
        Row("neurons kept of every MLP", format_number(base.intermediate_size) if base and base.intermediate_size else ""),
        *(_size_choice(base.size_choice) if base and base.size_choice else ()),
        Row("vocabulary", describe_vocabulary(base.vocabulary) if base else ""),
        Row("grown from", base.grown_from or "" if base else "", code=True),
        Row("tokens added", "; ".join(map(describe_growth, base.grown)) if base else ""),
        Row("weights rounded to", describe_rounding(base) if base else ""),
        Row("embedding head", describe_head(student.embedding) if student and student.embedding else ""),
        Row("confidence", describe_confidence(student.confidence) if student and student.confidence else ""),
        Row("wrong of the answers kept", describe_risk(student.evaluation) if student else ""),
        Row("router", student.router or "" if student else "", code=True),
        Row(
            "imported from",
            f"{manifest.imported.reference}, published {manifest.imported.created}" if manifest.imported else "",
        ),
        Row("family", manifest.family),
        Row("profile", manifest.profile),
        Row("seed", str(manifest.seed)),
        Row("spec", student.spec_hash if student else "", code=True),
        Row("git commit", manifest.git_commit or "", code=True),
        Row("libraries", ", ".join(f"{name} {version}" for name, version in manifest.libraries.items())),
        Row("created", manifest.created),
        Row("manifest's sha256", manifest.manifest_sha256, code=True),
    ]


def _size_choice(choice: SizeChoice) -> list[Row]:
    """Why a base has its size, then all that was tried for its budget."""
    ahead = f"; ahead of the next by {format_metric(choice.ahead)} nats/token" if choice.ahead else ""
    tried = [
        Row(
            f"{one.layers} layers, {one.intermediate_size:,} neurons, {one.vocabulary:,} tokens",
            f"{'chosen; ' if place == choice.chosen else ''}KL {format_number(one.kl)} nats/token; "
            f"{format_number(one.parameters, 'parameters')} parameters"
            + (f", {format_number(one.bytes, 'bytes')}" if one.bytes else ""),
        )
        for place, one in enumerate(choice.candidates)
    ]
    return [Row("why this size", choice.reason + ahead), *tried]


def _data(manifest: AnyManifest) -> list[Row]:
    data = manifest.dataset
    targets = manifest.soft_targets if manifest.kind == "student" else None
    return [
        Row("examples", _counts(data.counts)),
        Row("dropped", describe_dropped(data.dropped)),
        Row("refusals kept", format_number(data.refusals)),
        Row("personal identifiers", describe_personal_data(data.personal_data)),
        Row("soft targets", _soft_targets(targets) if targets else ""),
        Row("fingerprint", data.fingerprint, code=True),
    ]


def describe_personal_data(info: PersonalDataInfo | None) -> str:
    """``describe_personal_data(manifest.dataset.personal_data)`` → "dropped; notes: 2 email"."""
    if info is None:
        return "not searched for"
    done = {"drop": "dropped", "allow": "kept", "refuse": "refused"}[info.policy]
    found = [f"{source}: {_counts(kinds)}" for source, kinds in info.found.items() if kinds]
    return f"{done}; {'; '.join(found)}" if found else "none found"


def _soft_targets(targets: SoftTargetsInfo) -> str:
    return (
        f"{format_number(targets.bytes, 'bytes')}, {format_number(targets.response_bytes_per_position)} bytes/token for the "
        f"response; reading them saved {format_number(targets.saved_seconds)} of the teacher's "
        f"{format_number(targets.teacher_seconds)} s"
    )


def _healing(manifest: AnyManifest) -> list[Row]:
    if manifest.kind == "student":
        return []
    probes = manifest.path_choice.probes if manifest.path_choice else {}
    healed = [_healing_row("healing", manifest.healing)] if manifest.healing else []
    return [*healed, *(_healing_row(name, report) for name, report in probes.items())]


def _healing_row(name: str, report: HealingReport) -> Row:
    before, after = (format_metric(end["kl"]) for end in (report.before, report.after))
    overlap, gap = (format_metric(report.after[key]) for key in ("top5_overlap", "entropy_gap"))
    return Row(
        f"{name}, {report.steps} steps",
        f"KL {before} → {after} nats/token, {format_number(report.kl_closed_per_100_steps)} per 100 steps; "
        f"top-5 overlap {overlap}, entropy gap {gap}",
    )


def _training(manifest: AnyManifest) -> list[Row]:
    seconds = ", ".join(f"{stage} {format_number(value)}" for stage, value in manifest.seconds.items())
    shares = ", ".join(f"{term} {format_number(share, '%')}" for term, share in manifest.training.gradient_shares.items())
    kept, config = manifest.training.kept_step, manifest.training.config
    own = config.get("on_policy")
    return [
        Row("examples", format_number(manifest.training.examples)),
        Row("weights of step", f"{kept} of {config.get('steps')}, the best on validation" if kept else ""),
        Row("then on its own samples", f"{own['steps']} steps" if own else ""),
        Row("share of the gradient", shares),
        Row("seconds by stage", seconds),
    ]


def curves_of(training: Training) -> tuple[Curve, ...]:
    """``curves_of(manifest.training)``: the loss and each of its terms by step; values that are not finite are left out."""
    names = dict.fromkeys(name for point in training.curve for name in point if name != "step")
    curves = []
    for name in names:
        points = [(point["step"], point[name]) for point in training.curve if isfinite(point.get(name, nan))]
        if points:
            steps, values = zip(*points, strict=True)
            curves.append(Curve(name, steps, values))
    return tuple(curves)


def _energy(energy: EnergyInfo) -> list[Row]:
    stages = [Row(f"{stage}, Wh", format_number(wh)) for stage, wh in energy.stages_wh.items()]
    answers = [Row(f"1,000 tokens of the {who}, Wh", format_number(wh)) for who, wh in energy.per_1000_tokens_wh.items()]
    return [*stages, *answers, Row("estimated from", energy.method)]


def _counts(counts: Mapping[str, int]) -> str:
    """``{"train": 800, "test": 90}`` → "800 train, 90 test"."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


# ---------------------------------------------------------------------------------------------------------------- JSON


def metric_json(metric: Measured | None) -> dict[str, Any] | None:
    """``metric_json(MetricValue(0.4, 0.38, 0.44, 5120))``; a size or a speed has only a value, and NaN is None."""
    if metric is None:
        return None
    if isinstance(metric, int | float):
        return {"value": metric if isfinite(metric) else None, "low": None, "high": None, "n": None}
    ends = {"value": metric.value, "low": metric.low, "high": metric.high}
    return {key: end if isfinite(end) else None for key, end in ends.items()} | {"n": metric.n}
