"""What a plan says of prompts in a language that the teacher or the encoder does not know."""

from __future__ import annotations

from factory.config.schema import DomainSpec
from factory.data.language import count_unknown
from factory.data.sources import sample_evenly
from factory.data.survey import MAX_MEASURED
from factory.pipeline.context import BuildContext
from factory.pipeline.plan_answers import KnownAnswers
from factory.pipeline.plan_base import Step

MIN_SHARE = 0.01  # of the prompts; fewer are quotations and names


def language_steps(context: BuildContext, spec: DomainSpec, known: KnownAnswers) -> list[Step]:
    """``language_steps(context, spec, known_answers(context, models, spec))``: a warning, or nothing.

    Of data on the Hub, of documents and of prompts that the teacher will write nothing is known yet.
    """
    texts = [one.text for one in sample_evenly(known.examples, MAX_MEASURED, context.seed)]
    counted = count_unknown(texts, context.family.taught_by(spec).languages)
    if counted.share < MIN_SHARE:
        return []
    return [Step(f"prompts of {spec.name}", "warning", counted.describe())]
