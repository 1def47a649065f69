"""What a version is made of, in words. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from factory.reports.format import format_metric, format_number

if TYPE_CHECKING:
    from factory.registry.manifest import (
        ApiUsage,
        BaseManifest,
        ConfidenceInfo,
        EmbeddingInfo,
        EvalReport,
        TeacherAdaptationInfo,
        VocabularyGrowth,
        VocabularyInfo,
    )


def describe_adaptation(info: TeacherAdaptationInfo) -> str:
    """``describe_adaptation(manifest.teacher_adaptation)`` → "60 steps on 412 references; bits/byte of held-out ones …"."""
    before, after, fewer = (format_metric(one) for one in (info.before, info.after, info.fewer))
    return (
        f"{info.settings['steps']} steps on {info.references:,} references of the domain; bits/byte of held-out ones "
        f"{before} → {after}, {fewer} fewer"
    )


def describe_head(info: EmbeddingInfo) -> str:
    """``describe_head(manifest.embedding)`` → "960 dimensions, fitted on 2,000 unlabelled texts beside pypi:…"."""
    return f"{info.dimensions} dimensions, fitted on {info.texts:,} unlabelled texts beside {info.encoder}"


def describe_confidence(info: ConfidenceInfo) -> str:
    """``describe_confidence(manifest.confidence)`` → "fitted on 200 answers, 71.0 % of them right: …"."""
    return (
        f"fitted on {info.examples:,} answers, {format_number(info.right, '%')} of them right: to the teacher at most "
        f"{info.margin:g} nats/token less likely than the data set's own"
    )


def describe_risk(report: EvalReport) -> str:
    """``describe_risk(manifest.evaluation)`` → "9.1 % of the surest half; 17.0 % of all": wrong answers to test prompts."""
    kept = {round(coverage, 1): risk for coverage, risk in report.risk_coverage}
    shown = {0.3: "the surest 30 %", 0.5: "the surest half", 0.8: "the surest 80 %", 1.0: "all"}
    return "; ".join(f"{format_number(kept[share], '%')} of {name}" for share, name in shown.items() if share in kept)


def describe_rounding(base: BaseManifest) -> str:
    """``describe_rounding(base)`` → "q4_1; KL 0.000 nats/token"; "" for a base that was not rounded."""
    return f"{base.quantization}; KL {format_number(base.quantization_kl)} nats/token" if base.quantization else ""


def describe_vocabulary(vocabulary: VocabularyInfo) -> str:
    """``describe_vocabulary(base.vocabulary)`` → "36,000 of 49,152 tokens, 99.9 % of the teacher's probability mass; …"."""
    return (
        f"{vocabulary.kept:,} of {vocabulary.teacher:,} tokens, {format_number(vocabulary.kept_mass, '%')} of the teacher's "
        f"probability mass; KL to the full teacher {format_number(vocabulary.kl_to_full_teacher)} nats/token"
    )


def describe_growth(grown: VocabularyGrowth) -> str:
    """``describe_growth(base.grown[0])`` → "661 for psychology, whose text took 2.9 % more than the teacher's, …"."""
    before, after = (format_number(share, "%") for share in (grown.growth_before, grown.growth_after))
    return f"{grown.rows:,} for {grown.domain}, whose text took {before} more than the teacher's, and now {after}"


def describe_usage(usage: ApiUsage) -> str:
    """``describe_usage(manifest.teacher.api)`` → "240 requests, 9,600 tokens of prompts, 2,400 of answers; cost 0.0312"."""
    uncounted = f", {usage.uncounted:,} of them without a count, counted as what they cost at most" if usage.uncounted else ""
    cost = f"; cost {usage.cost:.6g}" if usage.cost else ""
    return (
        f"{usage.requests:,} requests{uncounted}, {usage.prompt_tokens:,} tokens of prompts, {usage.completion_tokens:,} of "
        f"answers{cost}"
    )
