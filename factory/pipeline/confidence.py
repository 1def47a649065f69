"""Stage `confidence`: how sure a student is of its own answers, fitted on the validation split. No weight changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from factory.cache import cache_key, is_kept, kept_folder
from factory.evaluation.answer_confidence import ask_held_out
from factory.evaluation.confidence import MIN_EACH, MIN_EXAMPLES, Confidence, fit_confidence
from factory.evaluation.fidelity import with_adapter
from factory.pipeline.adapter import TrainedAdapter
from factory.pipeline.base import StudentBase
from factory.pipeline.context import BuildContext
from factory.pipeline.dataset import DomainDataset
from factory.registry.manifest import ConfidenceInfo


@dataclass(frozen=True)
class FittedConfidence:
    """A student's confidence, and what its manifest says of it; or a warning that says why it has none."""

    confidence: Confidence | None
    info: ConfidenceInfo | None
    warnings: tuple[str, ...] = ()


def fit_student_confidence(
    context: BuildContext, data: DomainDataset, base: StudentBase, adapter: TrainedAdapter
) -> FittedConfidence:
    """``fit_student_confidence(context, data, base, adapter).confidence``: None where ``confidence.examples`` is 0.

    Kept beside the checkpoints, so that a stopped build does not ask again. None, with a warning, where the validation split
    has too few prompts, or nearly all answers are right or wrong.
    """
    settings = context.settings(data.spec)
    config = settings.confidence
    if not config.examples:
        return FittedConfidence(None, None)
    rows = list(data.rows["validation"])[: config.examples]
    folder = adapter.folder / f"confidence-{cache_key(config.model_dump(), data.key, settings.data.max_completion_tokens)}"
    confidence = Confidence.load(folder) if is_kept(folder, context.say) else None
    if confidence is None:
        with context.meter.stage("confidence"), context.progress(f"{data.spec.name}: confidence", 1) as advance:
            found = ask_held_out(
                with_adapter(adapter.model, "default"),
                base.teacher,
                rows,
                data.spec.contexts,
                max_new_tokens=settings.data.max_completion_tokens,
                margin=config.margin,
            )
            confidence = fit_confidence(found.tokens, found.right.tolist(), found.clusters, config.margin)
            advance(1)
        if confidence is None:
            return FittedConfidence(None, None, (_too_few(data.spec.name, found.right),))
        with kept_folder(folder) as new:
            confidence.save(new)
    held_out = confidence.whole.held_out
    right = sum(is_right for _, is_right in held_out) / len(held_out)
    return FittedConfidence(confidence, ConfidenceInfo(examples=len(held_out), right=right, margin=config.margin))


def _too_few(domain: str, right: np.ndarray) -> str:
    return (
        f"it does not know how sure it is: {int(right.sum())} of {len(right)} answers to {domain}'s validation prompts are "
        f"right, and {MIN_EXAMPLES} answers are needed, {MIN_EACH} right and {MIN_EACH} wrong ones; raise data.validation or "
        "change confidence.margin"
    )
