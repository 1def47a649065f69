"""A base that is the whole teacher with fewer tokens: nothing is pruned, so there is nothing to heal and no answer to wait for.

Its tokens are chosen by what people write, without a model's answers: the prompts and references of every public domain, the
teacher's contexts and the general pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.config.schema import SizeSpec, Source, TeacherPromptSource
from factory.data.sources import sample_evenly
from factory.models.base import Base, Shape, choose_tokens, trim_teacher, trimming_cost
from factory.models.chat import NO_CONTEXTS, messages, stop_tokens
from factory.models.forward import Batch
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
        domains = [_domain_texts(context, models, domain.sources) for domain in context.public_domains]
        general = [example.prompt for example in general_examples(context, models)]
        shown = [one for domain in context.public_domains for one in domain.contexts.all]
        contexts = [turn["content"] for one in shown for turn in messages("", one)]
        tokens = choose_tokens(models.teacher, [*(text for texts in domains for text in texts), *contexts, *general], size)
        teacher = trim_teacher(models.teacher, tokens)
        scored = [text for group in zip(*domains, general, strict=False) for text in group][:SCORED_TEXTS]
        documents = tokenize_examples([{"prompt": "", "completion": text} for text in scored], teacher.tokenizer, NO_CONTEXTS)
        batches = tuple(batch.to(context.device) for batch in student_batches(documents, 16))
        cost = trimming_cost(models.teacher, teacher, tokens, batches)
        depth = int(teacher.config.get_text_config().num_hidden_layers)
        base = Base(teacher.model, teacher.tokenizer, Shape(tuple(range(depth)), tokens))
        base.model.generation_config.eos_token_id = stop_tokens(teacher.tokenizer)
        advance(1)
    return TrimmedBase(base, teacher, vocabulary_info(models, teacher, cost), batches)


def vocabulary_info(models: FamilyModels, trimmed: Teacher, cost: Mapping[str, float]) -> VocabularyInfo:
    """``vocabulary_info(models, trimmed_teacher, trimming_cost(...))``: as a base's manifest describes it."""
    return VocabularyInfo(
        kept=len(trimmed.tokenizer),
        teacher=len(models.tokenizer),
        kept_mass=cost["kept_mass"],
        kl_to_full_teacher=cost["kl_to_full_teacher"],
        positions=int(cost["positions"]),
    )


def _domain_texts(context: BuildContext, models: FamilyModels, sources: Sequence[Source]) -> list[str]:
    """What people wrote: prompts, and the references of those that have one. Prompts that the teacher writes are left out."""
    written = [source for source in sources if not isinstance(source, TeacherPromptSource)]
    examples = sample_evenly(load_domain_examples(context, models, written), MAX_TEXTS, context.seed)
    return [f"{one.prompt}\n{one.completion}" if one.completion else one.prompt for one in examples]
