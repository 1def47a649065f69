"""A base that is the whole teacher with fewer tokens: nothing is pruned, so there is nothing to heal and no answer to wait for.

Its tokens are chosen by what people write, without a model's answers: the prompts and references of every public domain, the
teacher's contexts and the general pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.cache import cache_key
from factory.config.schema import DomainSpec, SizeSpec, TeacherPromptSource
from factory.data.sources import content_hash, sample_evenly
from factory.models.base import Base, Shape, choose_tokens, load_external_base, trim_teacher, trimming_cost
from factory.models.chat import NO_CONTEXTS, messages, stop_tokens
from factory.models.forward import Batch
from factory.models.references import resolve
from factory.models.scoring import student_batches
from factory.models.teacher import Teacher
from factory.models.tokenize import tokenize_examples
from factory.pipeline.context import BuildContext, FamilyModels
from factory.pipeline.dataset import general_examples, load_domain_examples
from factory.registry.manifest import VocabularyInfo
from factory.registry.size_choice import SizeChoice

MAX_TEXTS = 4000  # of each domain, evenly over its sources
SCORED_TEXTS = 64  # behind the mass that the kept tokens have


@dataclass(frozen=True)
class TrimmedBase:
    """The teacher in its smaller vocabulary, as a base and as a teacher, and what the trimming costs."""

    base: Base
    teacher: Teacher
    vocabulary: VocabularyInfo
    calibration: tuple[Batch, ...]  # texts of the domains and of the general pool
    choice: SizeChoice | None = None  # why it is trimmed, where that was one way to fit a device


def trim_base(context: BuildContext, models: FamilyModels, size: SizeSpec) -> TrimmedBase:
    """``trim_base(context, models, family.sizes["medium"]).base``: all layers, at most ``size.vocabulary`` tokens."""
    with context.meter.stage("trim"), context.progress("base: tokens", 1) as advance:
        domains = [domain_texts(context, models, domain) for domain in context.public_domains]
        general = [example.prompt for example in general_examples(context, models)]
        tokens = choose_tokens(models.teacher, [*(text for texts in domains for text in texts), *general], size)
        teacher = trim_teacher(models.teacher, tokens)
        batches = scored_batches(context, teacher, [*domains, general])
        cost = trimming_cost(models.teacher, teacher, tokens, batches)
        depth = int(teacher.config.get_text_config().num_hidden_layers)
        base = Base(teacher.model, teacher.tokenizer, Shape(tuple(range(depth)), tokens))
        base.model.generation_config.eos_token_id = stop_tokens(teacher.tokenizer)
        advance(1)
    return TrimmedBase(base, teacher, vocabulary_info(models, teacher, cost, text_keys(context)), batches)


def take_base(context: BuildContext, models: FamilyModels, size: SizeSpec) -> TrimmedBase:
    """``take_base(context, models, family.sizes["medium"]).base``: the model that the size names, as it is."""
    assert size.base is not None  # as family_limits has it
    with context.meter.stage("trim"), context.progress("base: weights", 1) as advance:
        base = load_external_base(resolve(size.base, root=context.specs.root).folder, models.teacher)
        general = [example.prompt for example in general_examples(context, models)]
        batches = scored_batches(context, models.teacher, [general])
        cost = trimming_cost(models.teacher, models.teacher, None, batches)
        advance(1)
    return TrimmedBase(base, models.teacher, vocabulary_info(models, models.teacher, cost, {}), batches)


def scored_batches(context: BuildContext, trimmed: Teacher, texts: Sequence[Sequence[str]]) -> tuple[Batch, ...]:
    """``scored_batches(context, trimmed_teacher, [healthcare, legal, general])``: some texts of each, for ``trimming_cost``."""
    scored = [text for group in zip(*texts, strict=False) for text in group][:SCORED_TEXTS]
    documents = tokenize_examples([{"prompt": "", "completion": text} for text in scored], trimmed.tokenizer, NO_CONTEXTS)
    return tuple(batch.to(context.device) for batch in student_batches(documents, 16))


def vocabulary_info(
    models: FamilyModels, trimmed: Teacher, cost: Mapping[str, float], chosen_by: dict[str, str]
) -> VocabularyInfo:
    """``vocabulary_info(models, trimmed_teacher, trimming_cost(...), text_keys(context))``: as a manifest describes it."""
    return VocabularyInfo(
        kept=len(trimmed.tokenizer),
        teacher=len(models.tokenizer),
        kept_mass=cost["kept_mass"],
        kl_to_full_teacher=cost["kl_to_full_teacher"],
        positions=int(cost["positions"]),
        chosen_by=chosen_by,
    )


def domain_texts(context: BuildContext, models: FamilyModels, domain: DomainSpec) -> list[str]:
    """``domain_texts(context, models, spec)``: what people wrote: prompts, references where there are any, and contexts.

    Prompts that the teacher writes are left out.
    """
    written = [source for source in domain.sources if not isinstance(source, TeacherPromptSource)]
    examples = sample_evenly(load_domain_examples(context, models, written), MAX_TEXTS, context.seed)
    contexts = [turn["content"] for shown in domain.contexts.all for turn in messages("", shown)]
    return [*(f"{one.prompt}\n{one.completion}" if one.completion else one.prompt for one in examples), *contexts]


def text_key(context: BuildContext, domain: DomainSpec) -> str:
    """``text_key(context, spec)``: of all that decides ``domain_texts``."""
    written = domain.model_dump(include={"sources", "teacher_context"})
    return cache_key(written, content_hash(domain.sources, context.specs.root), context.seed)


def text_keys(context: BuildContext) -> dict[str, str]:
    """``text_keys(context)["legal"]``: of every public domain, whose texts choose the tokens of a base that is made now."""
    return {domain.name: text_key(context, domain) for domain in context.public_domains}
