"""What a plan says of the memory that the trainings will need, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig

from factory.config.schema import DistillConfig, DomainSpec
from factory.data.survey import lengths
from factory.distill.memory import TrainingShape, training_bytes
from factory.distill.trainer import asks_teacher
from factory.machine import machine_memory
from factory.models.chat import completion_ids, prompt_ids
from factory.models.device import compute_dtype
from factory.models.dimensions import dimensions_of, resized
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.plan_answers import READ, KnownAnswers
from factory.pipeline.plan_base import Step
from factory.pipeline.publish import student_name
from factory.reports.format import format_number


def memory_steps(
    context: BuildContext,
    models: FamilyModels,
    size: str,
    own: Sequence[DomainSpec],
    known: Mapping[str, KnownAnswers],
    *,
    heals: bool,
) -> list[Step]:
    """``memory_steps(context, models, "small", [legal], known, heals=True)``: a line a training, a warning where too little.

    ``known`` are the answers of these domains and of those that the base is healed on. On a GPU, and for a base that is another
    model, nothing is said.
    """
    config = _base_config(context, models, size)
    if config is None or context.device.type != "cpu":
        return []
    steps = []
    if heals:
        shared = context.of_size(size).settings()
        row = max(
            longest_row(context, models, spec, known[spec.name]) for spec in context.healing_domains if spec.name in known
        )
        shape = TrainingShape(shared.heal.batch, row, None, _beside(models, shared.heal))
        steps.append(_step(context, config, "healing", "heal", shared.heal, shape))
    for spec in own:
        distill, row = context.settings(spec).distill, longest_row(context, models, spec, known[spec.name])
        shape = TrainingShape(distill.batch, row, distill.rank, _beside(models.of(spec), distill))
        steps.append(_step(context, config, student_name(spec.name, size), "distill", distill, shape))
    return steps


def longest_row(context: BuildContext, models: FamilyModels, spec: DomainSpec, known: KnownAnswers) -> int:
    """``longest_row(context, models, spec, known)``: tokens of the longest prompt and answer that a data set may hold.

    The settings' limits, or what files and templates hold where that is less, measured on some of it.
    """
    config, tokenizer = context.settings(spec).data, models.tokenizer
    prompt, answer = config.max_prompt_tokens, config.max_completion_tokens
    if known.examples and all(source.kind in READ for source in spec.sources):
        asked = lengths(known.examples, lambda one: len(prompt_ids(tokenizer, one.prompt, one.history)))
        prompt = min(prompt, max(asked))
        if not known.unanswered:
            answers = lengths(known.examples, lambda one: len(completion_ids(tokenizer, one.completion)))
            answer = min(answer, max(answers))
    return prompt + answer


def _base_config(context: BuildContext, models: FamilyModels, size: str) -> PreTrainedConfig | None:
    """Of the base, at most."""
    spec, config = context.family.sizes[size], models.teacher.config
    if spec.base is not None:
        return config if context.family.api is not None else None
    return resized(config, dimensions_of(spec, config), spec.vocabulary)


def _beside(models: FamilyModels, config: DistillConfig) -> int:
    """Bytes of the teacher, where it stays in memory."""
    if models.teacher.api or not asks_teacher(config):
        return 0
    return models.teacher.parameters * compute_dtype(models.device).itemsize


def _step(
    context: BuildContext, config: PreTrainedConfig, what: str, section: str, settings: DistillConfig, shape: TrainingShape
) -> Step:
    held = 4 if shape.rank is None else compute_dtype(context.device).itemsize
    needed, there = training_bytes(config, shape, held), machine_memory()
    detail = f"about {format_number(needed, 'bytes')} at the peak: {shape.batch} rows of at most {shape.row:,} tokens"
    if needed <= there:
        return Step(f"memory of {what}", "needs", detail)
    also = f" (with {section}.relation: 0, below 32)" if settings.relation > 0 else ""
    advice = f"lower {section}.batch{also} or data.max_completion_tokens"
    return Step(f"memory of {what}", "warning", f"{detail}; this machine has {format_number(there, 'bytes')}: {advice}")
