"""What a plan says of answers that are too long: how many `max_completion_tokens` drops, and what would keep them.

known = known_answers(context, models, spec)
known.unanswered, answer_steps(context, models, spec, known)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.cache import home, is_intact
from factory.config.schema import DomainSpec
from factory.data.dataset import load_dataset_folder
from factory.data.sources import Example, sample_evenly
from factory.data.survey import COVERED, lengths, limit_for, share_above
from factory.models.chat import completion_ids
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import dataset_folder, dataset_key, load_domain_examples
from factory.pipeline.plan_base import Step

MAX_LOST = 0.05  # share of the answers that may be dropped without a warning
SAMPLED = 16  # prompts that the teacher answers for a plan
LONGEST = 4  # times `max_completion_tokens` that it may take for them
READ = ("file", "templates")  # kinds of source that are read for a plan; the others may take minutes, or a network


@dataclass(frozen=True)
class KnownAnswers:
    """What is known of a domain's answers before the teacher writes any."""

    examples: tuple[Example, ...]  # of its files and templates, answered or not
    prompts: tuple[Example, ...]  # that the teacher will answer
    answers: tuple[str, ...]  # that come with the data, to prompts
    unanswered: float  # share of the examples that the teacher answers


def known_answers(context: BuildContext, models: FamilyModels, spec: DomainSpec) -> KnownAnswers:
    """``known_answers(context, models, specs.domain("tickets")).answers``: of its files and templates.

    Raises: DataError for a file that cannot be used.
    """
    examples = load_domain_examples(context, models, [source for source in spec.sources if source.kind in READ])
    prompts = tuple(one for one in examples if one.prompt and not one.completion)
    answers = tuple(one.completion for one in examples if one.prompt and one.completion)
    asks = any(source.kind in ("hub", "teacher_prompts") for source in spec.sources)
    return KnownAnswers(tuple(examples), prompts, answers, 1.0 if asks else len(prompts) / max(1, len(examples)))


def answer_steps(
    context: BuildContext, models: FamilyModels, spec: DomainSpec, known: KnownAnswers, sample: bool = False
) -> list[Step]:
    """``answer_steps(context, models, spec, known, sample=True)``: a line on the data's answers, and one on the teacher's.

    The teacher's are those of the data set that is on disk; with ``sample`` it answers ``SAMPLED`` prompts first, of which each
    may be ``LONGEST`` times as long as the limit.
    """
    limit = context.settings(spec).data.max_completion_tokens
    steps = []
    if known.answers:
        steps.append(_step(spec, "answers", _lengths(models, known.answers), limit, len(known.answers), "in the data"))
    if sample and known.prompts:
        measured = _sampled(context, models, spec, known.prompts, limit)
        steps.append(
            _step(
                spec, "teacher's answers", measured, limit, len(measured), f"to sampled prompts, of {LONGEST * limit} at most"
            )
        )
    elif cut := _cut_off(context, models, spec):
        lost, written = cut
        detail = f"{lost / written:.1%} of {written:,} on disk were cut off at data.max_completion_tokens ({limit}) and dropped"
        advice = f"; raise it to {2 * limit}, or see `factory plan --sample`" if lost > MAX_LOST * written else ""
        steps.append(Step(f"teacher's answers for {spec.name}", "warning" if advice else "on disk", detail + advice))
    return steps


def _step(spec: DomainSpec, what: str, measured: Sequence[int], limit: int, count: int, where: str) -> Step:
    lost, enough = share_above(measured, limit), limit_for(measured)
    detail = (
        f"{lost:.1%} of {count:,} {where} are longer than data.max_completion_tokens ({limit}) and will be dropped; "
        f"{COVERED:.0%} fit into {enough}"
    )
    return Step(f"{what} of {spec.name}", "warning" if lost > MAX_LOST else "on disk", detail)


def _lengths(models: FamilyModels, answers: Sequence[str]) -> list[int]:
    return lengths(answers, lambda text: len(completion_ids(models.tokenizer, text)))


def _sampled(
    context: BuildContext, models: FamilyModels, spec: DomainSpec, prompts: Sequence[Example], limit: int
) -> list[int]:
    """Tokens of the teacher's answers; it is loaded for them."""
    config, measured = context.settings(spec).data, []
    for one in sample_evenly(prompts, SAMPLED, context.seed):
        written = models.teacher.complete(
            [one],
            spec.contexts.of(one.source),
            folder=home() / "completions",
            max_new_tokens=LONGEST * limit,
            repetition_penalty=config.repetition_penalty,
            seed=context.seed,
        )[one.id]
        measured.append(len(completion_ids(models.tokenizer, written.text)) if written.finished else LONGEST * limit + 1)
    return measured


def _cut_off(context: BuildContext, models: FamilyModels, spec: DomainSpec) -> tuple[int, int] | None:
    """How many answers of the teacher were cut off, and how many it wrote, for the data set where it is on disk."""
    folder = dataset_folder(spec, dataset_key(context, models.teacher_files.sha256, spec))
    if not is_intact(folder):
        return None
    rows, manifest = load_dataset_folder(folder)
    lost = manifest.dropped.get("cut_off", 0)
    kept = sum(not own for split in rows.values() for own in split["own_completion"])
    return (lost, lost + kept) if lost else None
